"""The ledger: what every process and every holder of pages sees, step by step, and where they part."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmalab.addr import PAGE_SIZE
from vmalab.machine import Process
from vmalab.pages.folio import ANON, ZERO, Folio
from vmalab.pages.gup import Held
from vmalab.pages.holders import MemoryRegion, Pipe
from vmalab.pages.memory import Memory
from vmalab.pages.validate import reverse_map_fault
from vmalab.pages.view import PageView
from vmalab.text import escape_text
from vmalab.vma.area import AnonVma, File, Vma

_SHOWN = 12
"""Bytes of a page that are shown."""


@dataclass
class Sight:
    """What one of them sees of one page."""

    viewer: str
    page: str
    frame: str
    """Which page of memory it is: zero, #1, #2 ..."""
    content: bytes | None
    """What it holds, without the zeros at its end; None where that is not known."""
    marks: list[str] = field(default_factory=list)
    """Writable, exclusive, in swap ..."""
    alarm: str = ""
    """What is wrong; empty if nothing is."""


@dataclass
class Step:
    """One step, and what all see after it."""

    number: int
    text: str
    said: str = ""
    """What the step answers: a refusal, or what was read."""
    sights: list[Sight] = field(default_factory=list)

    def alarms(self) -> list[str]:
        """Where somebody has parted, or sees what is not his."""
        return [f"{sight.viewer}: {sight.alarm}" for sight in self.sights if sight.alarm]


@dataclass
class _Holding:
    """Pages that somebody holds: whose they were, and what he saw first."""

    holder: Pipe | MemoryRegion
    owner: Process
    addr: int
    pages: int
    page: str
    first: list[bytes]


class Ledger:
    """Watches pages of processes, of files and of who holds them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._pages: dict[tuple[str, str], tuple[Process, int]] = {}
        self._holdings: dict[str, _Holding] = {}
        self._files: dict[str, tuple[File, bytes]] = {}
        self._frames: dict[tuple[int, int], str] = {}
        self._kept: list[Folio] = []
        """So that no frame's name goes to another."""
        self.shows_anon_vma: bool = False
        """Whether each anonymous page says which anon_vma it is found from."""
        self.shows_soft_dirty: bool = False
        """Whether each page says if it was written to since the bits were cleared."""
        self._anon_vmas: list[AnonVma] = []
        """Those that were shown: the first is a1."""
        self.steps: list[Step] = []

    def watch(self, viewer: str, process: Process, name: str, addr: int, pages: int) -> None:
        """Show pages of a process from now on."""
        for number in range(pages):
            self._pages[viewer, _numbered(name, number, pages)] = (process, addr + number * PAGE_SIZE)

    def unwatch(self, viewer: str, name: str = "") -> None:
        """Show a process, or a range of it, no more."""
        for key in [key for key in self._pages if key[0] == viewer and (not name or key[1].split("[")[0] == name)]:
            del self._pages[key]

    def ranges_of(self, viewer: str) -> list[tuple[str, int]]:
        """The pages that are shown of a process: name, address."""
        return [(page, addr) for (who, page), (_, addr) in self._pages.items() if who == viewer]

    def copy(self, viewer: str, child: str, process: Process) -> None:
        """A child is shown as its parent is."""
        for (who, page), (_, addr) in list(self._pages.items()):
            if who == viewer:
                self._pages[child, page] = (process, addr)

    def hold(self, viewer: str, holder: Pipe | MemoryRegion, owner: Process, name: str, addr: int, pages: int) -> None:
        """Show what somebody holds."""
        held = _held_of(holder)
        first = [held.page(number)[0].content(held.page(number)[1]) for number in range(pages)]
        self._holdings[viewer] = _Holding(holder, owner, addr, pages, name, first)

    def release(self, viewer: str) -> None:
        """Somebody has let go."""
        del self._holdings[viewer]

    def file(self, name: str, file: File) -> None:
        """Show the first page of a file."""
        self._files[name] = (file, self._memory.cache_of(file).content[:PAGE_SIZE].rstrip(b"\0"))

    def step(self, text: str, said: str = "") -> Step:
        """Write down what all see now."""
        step = Step(len(self.steps) + 1, text, said)
        for (viewer, page), (process, addr) in self._pages.items():
            step.sights.append(self.sight(viewer, page, process, addr))
        for viewer, holding in self._holdings.items():
            for number in range(holding.pages):
                step.sights.append(self._held(viewer, holding, number))
        for name, (file, first) in self._files.items():
            step.sights.append(self._of_file(name, file, first))
        self.steps.append(step)
        return step

    def frame(self, folio: Folio, page: int) -> str:
        """The name of a page of memory, which it keeps for good."""
        if folio.flags & ZERO:
            return "zero"
        key = (id(folio), page)
        if key not in self._frames:
            self._kept.append(folio)
            self._frames[key] = f"#{len(self._frames) + 1}"
        return self._frames[key]

    def sight(self, viewer: str, page: str, process: Process, addr: int) -> Sight:
        """What a process sees of one page now."""
        seen = process.page(addr)
        if seen.slot is not None:
            return Sight(viewer, page, "swap", seen.content, self._marks_of(seen))
        if seen.migrating and seen.folio is not None:
            marks = [f"being moved, {seen.migrating}", *self._marks_of(seen)]
            return Sight(viewer, page, self.frame(seen.folio, seen.number), seen.content, marks)
        if seen.folio is None:
            return Sight(viewer, page, "-", b"", ["nothing there", *self._marks_of(seen)])
        marks = self._marks_of(seen)
        marks += ["the file's"] if not seen.folio.flags & (ANON | ZERO) else []
        sight = Sight(viewer, page, self.frame(seen.folio, seen.number), seen.content, marks)
        vma = process.mm.vma_lookup(addr)
        if seen.folio.flags & ANON and vma is not None:
            if self.shows_anon_vma:
                marks.append(self._chain_text(seen.folio, vma))
            sight.alarm = reverse_map_fault(vma, seen.folio)
        return sight

    def _marks_of(self, seen: PageView) -> list[str]:
        """What is marked in a page-table entry, as far as it is to be shown."""
        return [name for name in seen.marks() if name != "soft-dirty" or self.shows_soft_dirty]

    def _chain_text(self, folio: Folio, vma: Vma) -> str:
        """Which anon_vma a page is found from, and which the VMA is chained to, with a star at its own."""
        chain = " ".join([self._name(each) + ("*" if each is vma.anon_vma else "") for each in vma.chain])
        return f"{'-' if folio.anon_vma is None else self._name(folio.anon_vma)} in [{chain}]"

    def _name(self, anon_vma: AnonVma) -> str:
        for number, known in enumerate(self._anon_vmas, 1):
            if known is anon_vma:
                return f"a{number}"
        self._anon_vmas.append(anon_vma)
        return f"a{len(self._anon_vmas)}"

    def _held(self, viewer: str, holding: _Holding, number: int) -> Sight:
        folio, page = _held_of(holding.holder).page(number)
        is_pin = isinstance(holding.holder, MemoryRegion)
        name = _numbered(holding.page, number, holding.pages)
        sight = Sight(viewer, name, self.frame(folio, page), folio.content(page), ["pin" if is_pin else "reference"])
        owner = holding.owner
        addr = holding.addr + number * PAGE_SIZE
        if not is_pin:
            if sight.content != holding.first[number]:
                sight.alarm = "what it holds has been written to"
        elif owner.pid in owner.machine.processes and owner.mm.vma_lookup(addr) is not None:
            now = owner.page(addr)
            if now.folio is not None and (now.folio is not folio or now.number != page):
                sight.alarm = "it holds another page than its owner has"
        return sight

    def _of_file(self, name: str, file: File, first: bytes) -> Sight:
        cache = self._memory.cache_of(file)
        folio = cache.find(0)
        if folio is None:
            return Sight(name, "", "-", first, ["not in memory"])
        sight = Sight(name, "", self.frame(folio, 0), folio.content(0), ["in the page cache"])
        if sight.content != first:
            sight.alarm = "the file has changed"
        return sight


def _held_of(holder: Pipe | MemoryRegion) -> Held:
    return holder.held if isinstance(holder, MemoryRegion) else holder.held_first()


def _numbered(name: str, number: int, pages: int) -> str:
    return name if pages == 1 else f"{name}[{number}]"


def lines_of(step: Step) -> list[str]:
    """A step as text: what was done, then a line for each who sees a page."""
    said = f"  -> {escape_text(step.said)}" if step.said else ""
    found = [f"{step.number:3}  {escape_text(step.text)}{said}"]
    for sight in step.sights:
        who = escape_text(f"{sight.viewer}.{sight.page}" if sight.page else sight.viewer)
        content = ""
        if sight.content is not None:
            content = f"{escape_text(repr(sight.content[:_SHOWN])[1:]) if sight.content else 'zeros':<18} "
        line = f"   {'!' if sight.alarm else ' '}   {who:<16} {sight.frame:<5} {content}{', '.join(sight.marks)}"
        found.append(line.rstrip() + (f"   <- {sight.alarm}" if sight.alarm else ""))
    return found
