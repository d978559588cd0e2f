"""An address space over time: every VMA with its bounds and attributes, from the record they are so to the one they
are not.

A *life* is a rectangle in addresses and records: one VMA as long as nothing about it changes.  The lives that hold at a
record are the address space after it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from typing import Final, final

from vmalab.addr import PAGE_SHIFT
from vmalab.explain.attribution import joined
from vmalab.explain.obstacles import policy_text
from vmalab.flags import permissions, vm_flags_text
from vmalab.kinds import kind_of
from vmalab.machine import Process
from vmalab.trace import records
from vmalab.trace.replay import Replay
from vmalab.vma.area import AnonVma, File, Vma
from vmalab.vma.observer import Observer
from vmalab.vma.space import Mm

FOREVER: Final = 0xFFFFFFFF
"""The end of a life that the trace does not see end."""


NameOf = Callable[[Vma], str]
"""The last column of /proc/PID/maps for a VMA."""
ApartBy = Callable[[Mm, int], int]
"""The number of what keeps the VMA that starts at an address of an address space from merging with the one below."""


@final
class Attributes:
    """The attributes of VMAs, each combination once."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str | int]] = []
        self._known: dict[tuple[object, ...], int] = {}
        self._keep: list[object] = []
        self._anon: dict[AnonVma, int] = {}

    def number(self, vma: Vma, name: str) -> int:
        """The number of a VMA's combination: all that does not depend on where it is."""
        file, policy, uffd = vma.file, vma.policy, vma.uffd
        key = (vma.flags, id(file), name, id(policy), id(uffd))
        found = self._known.get(key)
        if found is None:
            found = len(self.rows)
            self._known[key] = found
            # They stay, so that no other object gets their id.
            self._keep += [file, policy, uffd]
            self.rows.append(self._row(vma, name, file))
        return found

    def anon_vma(self, anon_vma: AnonVma | None) -> int:
        """The number of an anon_vma, from 1 in the order of their appearance; 0 is none."""
        return self._anon.setdefault(anon_vma, len(self._anon) + 1) if anon_vma is not None else 0

    def _row(self, vma: Vma, name: str, file: File | None) -> dict[str, str | int]:
        row: dict[str, str | int] = {
            "kind": kind_of(vma, name),
            "name": name,
            "perm": permissions(vma.flags),
            "flags": vm_flags_text(vma.flags),
        }
        if file is not None:
            row["file"] = f"{file.dev} {file.ino}"
        if vma.policy is not None:
            row["policy"] = policy_text(vma.policy)
        if vma.uffd is not None:
            row["uffd"] = vma.uffd.name
        return row


@final
class Space:
    """The lives of one address space, as columns: one row a life, in the order of their beginnings."""

    def __init__(self, mm: Mm, pid: int, exe: str, first: int) -> None:
        self.mm: Mm | None = mm
        """None once it is gone."""
        self.pid: int = pid
        self.pids: list[int] = [pid]
        """The processes that have had it; after vfork the child as well."""
        self.exe: str = exe
        self.first: int = first
        """The record that began it."""
        self.last: int = first
        """The last record at which it was there."""
        self.parent: int = -1
        """The number of the space that it is a copy of, by fork."""
        self.calls: int = 0
        self.start = array("Q")
        """Addresses in bytes, as is end."""
        self.end = array("Q")
        self.born = array("I")
        self.died = array("I")
        """The record from which it is no more, or FOREVER."""
        self.attributes = array("I")
        self.anon = array("I")
        self.moved = array("q")
        """The page offset, less the page number of the start: 0 for anonymous memory where it was mapped first."""
        self.apart = array("I")
        """The number of what keeps it from merging with the VMA below."""
        self.counter_n = array("I")
        """A record after which the map count is another."""
        self.map_count = array("I")
        self._starts: list[int] = []
        self._lives: list[int] = []
        """The lives that hold now: their starts in order, and their rows."""

    def change(self, n: int, lo: int, hi: int, name_of: NameOf, apart: ApartBy, attributes: Attributes) -> None:
        """After record n something in [lo, hi) may be otherwise: end the lives that are over, begin new ones."""
        mm = self.mm
        assert mm is not None
        # What keeps the VMA above from merging may be otherwise as well.
        first, last, now = self._affected(mm, lo, hi + 1)
        kept: dict[tuple[int, ...], int] = {}
        columns = (self.start, self.end, self.attributes, self.anon, self.moved, self.apart)
        for row in self._lives[first:last]:
            kept[tuple([column[row] for column in columns])] = row
        lives: list[int] = []
        for vma in now:
            start, end = vma.start, vma.end
            number = attributes.number(vma, name_of(vma))
            anon, moved = attributes.anon_vma(vma.anon_vma), vma.pgoff - (start >> PAGE_SHIFT)
            values = (start, end, number, anon, moved, apart(mm, start))
            row = kept.pop(values, -1)
            if row < 0:
                row = len(self.start)
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
                self.born.append(n)
                self.died.append(FOREVER)
            lives.append(row)
        for row in kept.values():
            self.died[row] = n
        self._starts[first:last] = [vma.start for vma in now]
        self._lives[first:last] = lives

    def _affected(self, mm: Mm, lo: int, hi: int) -> tuple[int, int, list[Vma]]:
        """The lives, from and to, and the VMAs that a range concerns: until no other reaches into them."""
        starts = self._starts
        while True:
            first, last = bisect_left(starts, lo), bisect_left(starts, hi)
            if first and self.end[self._lives[first - 1]] > lo:
                first -= 1
            now = mm.tree.walk(lo, hi)
            low, high = lo, hi
            if first < last:
                low, high = min(low, starts[first]), max(high, self.end[self._lives[last - 1]])
            if now:
                low, high = min(low, now[0].start), max(high, now[-1].end)
            if (low, high) == (lo, hi):
                return first, last, now
            lo, hi = low, high

    def count(self, n: int) -> None:
        """Take the map count after record n."""
        mm = self.mm
        assert mm is not None
        if self.counter_n and mm.map_count == self.map_count[-1]:
            return
        self.counter_n.append(n)
        self.map_count.append(mm.map_count)

    def close(self, n: int) -> None:
        """Record n has ended it."""
        for row in self._lives:
            self.died[row] = n
        self.last = n
        self.mm = None
        self._starts.clear()
        self._lives.clear()

    def at(self, n: int) -> list[int]:
        """The rows that hold after record n, in the order of their addresses."""
        rows = [row for row in range(len(self.start)) if self.born[row] <= n < self.died[row]]
        return sorted(rows, key=lambda row: self.start[row])


@final
class Lives(Observer):
    """Writes down the lives in every address space of a trace.  To be told of each record before and after it."""

    def __init__(self, apart: ApartBy) -> None:
        self.attributes: Attributes = Attributes()
        self._apart = apart
        self.spaces: list[Space] = []
        """All address spaces in the order in which they began."""
        self._live: dict[int, tuple[int, Space, Process]] = {}
        self._changed: dict[int, list[tuple[int, int]]] = {}

    def number(self, mm: Mm) -> int:
        """The number of an address space that is there; -1 if it is not known."""
        found = self._live.get(id(mm))
        return found[0] if found is not None else -1

    def after(self, replay: Replay, record: records.Record) -> None:
        """The replay has taken a record."""
        if isinstance(record, records.Exec | records.Fork | records.Exit):
            self._follow_processes(replay, record)
        process = replay.process(replay.pid)
        here = self._live.get(id(process.mm)) if process is not None else None
        if here is not None:
            here[1].last = record.n
            here[1].calls += replay.call is not None
            self._changed.setdefault(id(here[1].mm), [])
        for key, ranges in self._changed.items():
            known = self._live.get(key)
            if known is not None:
                for lo, hi in joined(ranges):
                    known[1].change(record.n, lo, hi, known[2].name_of, self._apart, self.attributes)
                known[1].count(record.n)
        self._changed.clear()

    def finish(self, replay: Replay) -> None:
        """The trace is over."""
        for _, space, _ in self._live.values():
            space.last = replay.n

    def _follow_processes(self, replay: Replay, record: records.Exec | records.Fork | records.Exit) -> None:
        used = {id(process.mm): process for process in replay.machine.processes.values()}
        for key, (number, space, owner) in list(self._live.items()):
            if key not in used:
                del self._live[key]
                self._changed.pop(key, None)
                space.close(record.n)
            elif id(owner.mm) != key:
                self._live[key] = (number, space, used[key])
        process = replay.process(record.pid)
        if process is None:
            return
        known = self._live.get(id(process.mm))
        if known is not None:
            if process.pid not in known[1].pids:
                known[1].pids.append(process.pid)
            return
        program = replay.current.get(record.pid)
        space = Space(process.mm, record.pid, program.exe if program is not None else "", record.n)
        if isinstance(record, records.Fork):
            parent = replay.process(record.parent)
            space.parent = self.number(parent.mm) if parent is not None else -1
        self._live[id(process.mm)] = (len(self.spaces), space, process)
        self.spaces.append(space)
        self._changed[id(process.mm)] = [(0, process.mm.task_size)]

    # -- what the core tells ------------------------------------------------------------------------------

    def _note(self, mm: Mm, start: int, end: int) -> None:
        self._changed.setdefault(id(mm), []).append((start, end))

    def added(self, vma: Vma) -> None:
        self._note(vma.mm, vma.start, vma.end)

    def removed(self, vma: Vma) -> None:
        self._note(vma.mm, vma.start, vma.end)

    def split(self, below: Vma, above: Vma) -> None:
        self._note(above.mm, below.start, above.end)

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        self._note(survivor.mm, survivor.start, survivor.end)

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        self._note(vma.mm, min(vma.start, old_start), max(vma.end, old_end))

    def flags_changed(self, vma: Vma, old: int) -> None:
        self._note(vma.mm, vma.start, vma.end)

    def attribute_changed(self, vma: Vma, what: str) -> None:
        self._note(vma.mm, vma.start, vma.end)
