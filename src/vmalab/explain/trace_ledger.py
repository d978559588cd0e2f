"""The ledger of a recorded program: who shares which page, and where copy-on-write parts them, record by record.

A trace shows which pages were touched, and so which page of memory each process has.  What the pages hold it does not
show, nor who has pinned them.  The trace is read twice: first to find out which pages were touched and parted, then to
write down what all see of those that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.errors import InputError
from vmalab.explain.ledger import Ledger, Step
from vmalab.explain.story import span
from vmalab.flags import CLONE_THREAD
from vmalab.machine import Process
from vmalab.pages.folio import ANON, ZERO, Folio
from vmalab.pages.table import MKDIRTY, YOUNG, Target
from vmalab.reason import YES
from vmalab.text import address_of, escape_text
from vmalab.trace import records
from vmalab.trace.file import TraceReader
from vmalab.trace.load import load_memory
from vmalab.trace.replay import Replay
from vmalab.trace.show import record_text
from vmalab.vma.area import Vma

NOTES: Final = (
    "a trace does not show what pages hold, nor who has pinned them (RDMA, io_uring, vmsplice, O_DIRECT): "
    "in a script of the ledger both can be said",
    "pages that no fault of the trace has touched are not known",
)
FEWER: Final = "faults that changed no VMA were not recorded: a copy that such a fault made is missing here"
MOST_RANGE: Final = 1 << 20
"""Pages that a range to be shown may have."""

Opener = Callable[[], TraceReader]
Page = tuple[int, int]
"""A program (the number of the record that began it) and an address: all that were forked since see the same."""
_Print = tuple[Target | None, int, int, bool, int]
"""What is seen of a page, to be compared: what it is, its bits, its page in the folio, its mark, who maps it."""


@dataclass
class Where:
    """Pages that somebody asks for: a range of addresses, or a VMA by its name."""

    start: int = 0
    end: int = 0
    name: str = ""

    def has(self, addr: int, name: str) -> bool:
        """Whether it means the page at an address, in a VMA with this name."""
        if self.name:
            return self.name in (name, name.rpartition("/")[2])
        return self.start <= addr < self.end


def where(text: str) -> Where:
    """What ``--page`` was given: an address, START-END, or the name of a VMA as /proc/PID/maps shows it.

    Raises ValueError, with what is wrong.
    """
    addr = address_of(text)
    if addr is not None:
        start = addr & -PAGE_SIZE
        return Where(start, start + PAGE_SIZE)
    low, dash, high = text.partition("-")
    first, last = address_of(low), address_of(high)
    if dash and first is not None and last is not None:
        if last <= first:
            raise ValueError("the range is empty")
        if last - first > MOST_RANGE * PAGE_SIZE:
            raise ValueError(f"the range has more than {MOST_RANGE:,} pages")
        return Where(first & -PAGE_SIZE, last)
    if not text:
        raise ValueError("give an address, a range START-END, or the name of a VMA")
    return Where(name=text)


@dataclass
class Touched:
    """What a first reading of the trace has found of one page."""

    addr: int
    name: str
    """Of the VMA: as in /proc/PID/maps; empty for anonymous memory."""
    vma: str
    """Its bounds at that time."""
    pid: int
    """The process that touched it first."""
    pids: set[int] = field(default_factory=set)
    parted: int = 0
    """How many copies were made of it while somebody else had it too."""


@dataclass
class TraceLedger:
    """What was asked for, and what was found."""

    steps: list[Step] = field(default_factory=list)
    """The records that changed what somebody sees, by their numbers; each with all who see the pages it concerns."""
    pages: list[Touched] = field(default_factory=list)
    """The pages that are shown."""
    more: int = 0
    """How many others were meant as well."""
    chosen: bool = False
    """Whether somebody chose the pages; else they are those that were shared by fork and then parted."""
    notes: list[str] = field(default_factory=list)
    touched: list[Touched] = field(default_factory=list)
    """All that could be chosen."""

    def could_be_chosen(self) -> list[tuple[str, str, int, int]]:
        """The VMAs with pages that were touched: name, bounds, the first process, how many pages."""
        found: dict[tuple[int, str], list[Touched]] = {}
        for each in self.touched:
            found.setdefault((each.pid, each.vma), []).append(each)
        return [(pages[0].name, vma, pid, len(pages)) for (pid, vma), pages in found.items()]


class _Reading:
    """One reading of the trace, with the program that each process belongs to."""

    def __init__(self, reader: TraceReader) -> None:
        header = reader.header
        if header.faults != "exact":
            raise InputError(
                f"{reader.name}: this trace does not hold each fault (faults: {escape_text(header.faults)}), "
                "so nobody knows which pages there are: record with --with bpf"
            )
        self.reader = reader
        self.memory = load_memory(header.machine)
        self.memory.copies = []
        self.replay = Replay(header, memory=self.memory)
        self.programs: dict[int, int] = {}
        """By process: the record that began its program, or that of the process it was forked from."""
        self.mismatches = 0

    def follow(self, update: Callable[[int], None]) -> Iterator[records.Record]:
        """The records of the trace, each when the model has taken it."""
        for record in self.reader:
            assert self.memory.copies is not None
            self.memory.copies.clear()
            if self.replay.step(record) is not None:
                self.mismatches += 1
            if isinstance(record, records.Exec):
                self.programs[record.pid] = record.n
            elif isinstance(record, records.Fork) and not record.flags & CLONE_THREAD:
                self.programs[record.pid] = self.programs.get(record.parent, record.n)
            yield record
            if record.n % 512 == 0:
                update(self.reader.bytes_read)

    def touched(self, record: records.Record) -> tuple[Process, Vma] | None:
        """The process and the VMA that a fault has touched, if it did."""
        if not isinstance(record, records.Fault) or self.replay.refused != YES:
            return None
        process = self.replay.process(record.pid)
        vma = None if process is None else process.mm.vma_lookup(record.addr)
        return None if process is None or vma is None else (process, vma)


def read_ledger(
    opener: Opener,
    wanted: list[Where],
    *,
    pid: int | None = None,
    most: int = 8,
    update: Callable[[int], None] = lambda done: None,
) -> TraceLedger:
    """The ledger of a trace, which is opened twice.

    wanted: the pages to show; where none are asked for, those that processes shared after a fork and then parted.
    pid: only pages that this process has touched.  most: how many pages are shown.  update: told how many bytes
    are read.  Raises InputError where the trace does not tell what pages there are.
    """
    found = TraceLedger(chosen=bool(wanted), notes=list(NOTES))
    with opener() as reader:
        reading = _Reading(reader)
        if reader.header.notes:
            found.notes += [FEWER if "faults that changed no VMA" in note else note for note in reader.header.notes]
        seen = _survey(reading, update)
        if reader.truncated:
            found.notes.append(f"the trace is not whole: {reader.truncated}")
        if reading.mismatches:
            found.notes.append(
                f"the model does not follow all of this trace ({reading.mismatches} results differ): "
                "vmalab replay shows where; what comes after is not certain"
            )
    if pid is not None:
        pids = {each for page in seen.values() for each in page.pids}
        if pid not in pids:
            listed = ", ".join(map(str, sorted(pids)[:20])) or "none"
            raise InputError(f"{reader.name}: process {pid} has touched no page in this trace; these have: {listed}")
    found.touched = [page for page in seen.values() if pid is None or pid in page.pids]
    chosen = {
        key: page
        for key, page in seen.items()
        if (pid is None or pid in page.pids)
        and (any(each.has(page.addr, page.name) for each in wanted) if wanted else page.parted)
    }
    shown = dict(sorted(chosen.items())[:most])
    found.pages = list(shown.values())
    found.more = len(chosen) - len(shown)
    if shown:
        with opener() as reader:
            found.steps = _Writer(_Reading(reader), list(shown)).write(update)
    return found


def _survey(reading: _Reading, update: Callable[[int], None]) -> dict[Page, Touched]:
    """Which pages a trace touches, and which of them part."""
    found: dict[Page, Touched] = {}
    for record in reading.follow(update):
        for mm, addr, folio, _ in reading.memory.copies or []:
            if not folio.flags & ANON or not folio.mapcount():
                # Nobody else had it.
                continue
            owner = next((each for each in reading.replay.machine.processes.values() if each.mm is mm), None)
            vma = mm.vma_lookup(addr)
            if owner is not None and vma is not None:
                _note(found, reading, owner, vma, addr).parted += 1
        touched = reading.touched(record)
        if touched is not None:
            assert isinstance(record, records.Fault)
            _note(found, reading, *touched, record.addr & -PAGE_SIZE)
    return found


def _note(found: dict[Page, Touched], reading: _Reading, process: Process, vma: Vma, addr: int) -> Touched:
    key = (reading.programs.get(process.pid, 0), addr)
    page = found.get(key)
    if page is None:
        page = found[key] = Touched(addr, process.name_of(vma), span(vma), process.pid)
    page.pids.add(process.pid)
    return page


class _Writer:
    """The second reading: writes down each record that changes what somebody sees of the chosen pages."""

    def __init__(self, reading: _Reading, pages: list[Page]) -> None:
        self._reading = reading
        self._pages = pages
        self._ledger = Ledger(reading.memory)
        self._last: dict[tuple[int, int], _Print] = {}
        """By process and address."""
        self._touched: set[int] = set()

    def write(self, update: Callable[[int], None]) -> list[Step]:
        """All steps."""
        steps: list[Step] = []
        for record in self._reading.follow(update):
            now = self._look()
            if now != self._last:
                steps.append(self._step(record, now))
                self._last = now
        return steps

    def _look(self) -> dict[tuple[int, int], _Print]:
        """What each process has of each page that it maps."""
        found: dict[tuple[int, int], _Print] = {}
        spaces: set[int] = set()
        for pid, process in self._reading.replay.machine.processes.items():
            if id(process.mm) in spaces:
                # Two processes share an address space (vfork): they see the same.
                continue
            spaces.add(id(process.mm))
            program = self._reading.programs.get(pid)
            tables = self._reading.memory.tables(process.mm)
            for began, addr in self._pages:
                if began != program or process.mm.vma_lookup(addr) is None:
                    continue
                entry, bits, page = tables.entry(addr)
                mapped = entry.mapcount() if isinstance(entry, Folio) and not entry.flags & ZERO else 0
                found[pid, addr] = (entry, bits & ~(MKDIRTY | YOUNG), page, process.page(addr).exclusive, mapped)
        return found

    def _step(self, record: records.Record, now: dict[tuple[int, int], _Print]) -> Step:
        replay = self._reading.replay
        step = Step(record.n, f"{replay.pid}: {record_text(record, replay.call)}", "; ".join(self._said(now)))
        changed = {key[1] for key in now.keys() | self._last.keys() if now.get(key) != self._last.get(key)}
        for pid, addr in now:
            if addr not in changed:
                continue
            process = replay.process(pid)
            assert process is not None
            sight = self._ledger.sight(str(pid), f"{addr:x}", process, addr)
            sight.content = None
            entry, _, page, _, mapped = now[pid, addr]
            if entry is not None:
                self._touched.add(addr)
            elif addr not in self._touched:
                sight.marks = ["not touched yet"]
            if isinstance(entry, Folio) and entry.order:
                sight.marks.append(f"page {page} of {entry.count()} of a huge page")
            if mapped > 1:
                others = [str(who) for (who, at), seen in now.items() if who != pid and at == addr and seen[0] is entry]
                sight.marks.append(f"shared with {', '.join(others)}" if others else f"mapped {mapped} times")
            step.sights.append(sight)
        return step

    def _said(self, now: dict[tuple[int, int], _Print]) -> list[str]:
        """What copy-on-write has done in this step to the pages that are shown."""
        said: list[str] = []
        for mm, addr, folio, page in self._reading.memory.copies or []:
            pid = next((who for who, at in now if at == addr and self._mm_of(who) is mm), None)
            if pid is None:
                continue
            if folio.flags & ZERO:
                said.append(f"{pid} gets a page of its own in place of the page of zeros")
            elif not folio.flags & ANON:
                said.append(f"{pid} gets a copy of the file's page")
            else:
                said.append(f"copy-on-write: {pid} gets a copy of {self._ledger.frame(folio, page)}")
        for (pid, addr), (entry, _, page, exclusive, _) in now.items():
            before = self._last.get((pid, addr))
            if isinstance(entry, Folio) and exclusive and before is not None and before[0] is entry and not before[3]:
                said.append(
                    f"nobody but {pid} has {self._ledger.frame(entry, page)} any more: it is written to in place"
                )
        return said

    def _mm_of(self, pid: int) -> object:
        process = self._reading.replay.process(pid)
        return None if process is None else process.mm
