"""What happened: to the edges of VMAs (which call made a difference), and to one address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab import flags, reason
from vmalab.addr import page_up
from vmalab.explain.obstacles import flag_words, single_bits
from vmalab.flags import VM_ACCESS, permissions
from vmalab.trace import records
from vmalab.vma.observer import Observer

if TYPE_CHECKING:
    from vmalab.calls import Call
    from vmalab.trace.replay import Mismatch, Replay
    from vmalab.vma.area import Vma
    from vmalab.vma.space import Mm

PRUNE_AT: Final = 200_000

_KINDS: Final[dict[int, str]] = {
    reason.POLICY_DIFFERS: "policy",
    reason.NAME_DIFFERS: "name",
    reason.UFFD_DIFFERS: "userfaultfd",
    reason.ANON_VMA_DIFFERS: "anon_vma",
    reason.ANON_VMA_OF_FORK: "anon_vma",
}

_ADVICE: Final[dict[int, int]] = {
    flags.MADV_NORMAL: flags.VM_SEQ_READ | flags.VM_RAND_READ,
    flags.MADV_RANDOM: flags.VM_SEQ_READ | flags.VM_RAND_READ,
    flags.MADV_SEQUENTIAL: flags.VM_SEQ_READ | flags.VM_RAND_READ,
    flags.MADV_DONTFORK: flags.VM_DONTCOPY,
    flags.MADV_DOFORK: flags.VM_DONTCOPY,
    flags.MADV_MERGEABLE: flags.VM_MERGEABLE,
    flags.MADV_UNMERGEABLE: flags.VM_MERGEABLE,
    flags.MADV_HUGEPAGE: flags.VM_HUGEPAGE | flags.VM_NOHUGEPAGE,
    flags.MADV_NOHUGEPAGE: flags.VM_HUGEPAGE | flags.VM_NOHUGEPAGE,
    flags.MADV_DONTDUMP: flags.VM_DONTDUMP,
    flags.MADV_DODUMP: flags.VM_DONTDUMP,
    flags.MADV_WIPEONFORK: flags.VM_WIPEONFORK,
    flags.MADV_KEEPONFORK: flags.VM_WIPEONFORK,
}
_ADVICE_ARGUMENT: Final = {"madvise": 2, "process_madvise": 3}
_CHANGES: Final[dict[str, tuple[int, str]]] = {
    "mprotect": (flags.VM_ACCESS | flags.VM_ACCOUNT, ""),
    "pkey_mprotect": (flags.VM_ACCESS | flags.VM_ACCOUNT | flags.VM_PKEY_MASK, ""),
    "mlock": (flags.VM_LOCKED_MASK, ""),
    "mlock2": (flags.VM_LOCKED_MASK, ""),
    "munlock": (flags.VM_LOCKED_MASK, ""),
    "mlockall": (flags.VM_LOCKED_MASK, ""),
    "munlockall": (flags.VM_LOCKED_MASK, ""),
    "mseal": (flags.VM_SEALED, ""),
    "mbind": (0, "policy"),
    "set_mempolicy_home_node": (0, "policy"),
    "prctl": (flags.VM_MERGEABLE, "name"),
    "ioctl": (flags.VM_UFFD, "userfaultfd"),
    "close": (flags.VM_UFFD, "userfaultfd"),
}
"""What a call that changes memory already mapped is about: flags, and another attribute."""
_MAPPING: Final = frozenset({"mmap", "brk", "mremap", "remap_file_pages", "shmat"})
"""Calls that map memory where there was none, or other memory."""


@final
class Event:
    """Something that happened at an edge: the record, the call it was made by (None for execve), and what it was."""

    __slots__ = ("call", "kind", "n")

    def __init__(self, n: int, call: Call | None, kind: str) -> None:
        self.n = n
        self.call = call
        self.kind = kind


class Edges(Observer):
    """Remembers for each edge of a VMA the last event of each kind that had an edge there."""

    def __init__(self) -> None:
        self.replay: Replay | None = None
        """Whose records are the events; to be set before the first."""
        self._spaces: dict[int, tuple[Mm, dict[int, dict[str, Event]]]] = {}
        self._count = 0

    def last(self, mm: Mm, addr: int, why: int, bits: int = 0) -> Event | None:
        """The event that made a difference at addr: the last that changed what the Reason is about, or that mapped a
        side.

        bits are the VM_ flags in question where the Reason is about flags.
        """
        space = self._spaces.get(id(mm))
        events = space[1].get(addr, {}) if space is not None else {}
        wanted = {"mapped", _KINDS.get(why, "mapped")}
        wanted.update([f"flag {bit:#x}" for bit in single_bits(bits)])
        found = [event for kind, event in events.items() if kind in wanted]
        if not found:
            found = [event for kind, event in events.items() if kind in ("split", "merged", "resized")]
        return max(found, key=lambda event: event.n, default=None)

    def _mark(self, vma: Vma, kind: str, *addrs: int) -> None:
        replay = self.replay
        assert replay is not None
        _, edges = self._spaces.setdefault(id(vma.mm), (vma.mm, {}))
        for addr in addrs:
            at = edges.setdefault(addr, {})
            self._count += kind not in at
            at[kind] = Event(replay.n, replay.call, kind)
        if self._count > PRUNE_AT:
            self._prune()

    def _prune(self) -> None:
        """Forget what is no edge any more."""
        self._count = 0
        for key, (mm, edges) in list(self._spaces.items()):
            live = {edge for vma in mm.vmas() for edge in (vma.start, vma.end)}
            kept = {addr: events for addr, events in edges.items() if addr in live}
            if kept:
                self._spaces[key] = (mm, kept)
            else:
                del self._spaces[key]
            self._count += sum(map(len, kept.values()))
        self._count = min(self._count, PRUNE_AT // 2)

    def added(self, vma: Vma) -> None:
        self._mark(vma, "mapped", vma.start, vma.end)

    def split(self, below: Vma, above: Vma) -> None:
        # It was no edge until now: what is known of it is of another time.
        space = self._spaces.get(id(above.mm))
        if space is not None:
            self._count -= len(space[1].pop(above.start, ()))
        self._mark(above, "split", above.start)

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        self._forget_inside(survivor, start, end)
        for kind in self._merge_kinds():
            self._mark(survivor, kind, *[addr for addr in (start, end) if addr in (survivor.start, survivor.end)])

    def _merge_kinds(self) -> list[str]:
        """What a merge changed at the edges of the merged range: all, if the call brought new memory there."""
        call = self.replay.call if self.replay is not None else None
        if call is None:
            return ["merged"]
        if call.name in _MAPPING:
            return ["mapped"]
        if call.name in _ADVICE_ARGUMENT:
            bits, what = _ADVICE.get(call.args[_ADVICE_ARGUMENT[call.name]] & 0xFFFFFFFF, 0), ""
        else:
            bits, what = _CHANGES.get(call.name, (0, ""))
        return ["merged", *[f"flag {bit:#x}" for bit in single_bits(bits)], *([what] if what else [])]

    def _forget_inside(self, vma: Vma, *addrs: int) -> None:
        """What is inside a VMA is no edge, and starts afresh if it becomes one again."""
        space = self._spaces.get(id(vma.mm))
        for addr in addrs:
            if space is not None and vma.start < addr < vma.end:
                self._count -= len(space[1].pop(addr, ()))

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        self._forget_inside(vma, old_start, old_end)
        self._mark(vma, "resized", vma.start, vma.end)

    def flags_changed(self, vma: Vma, old: int) -> None:
        for bit in single_bits(vma.flags ^ old):
            self._mark(vma, f"flag {bit:#x}", vma.start, vma.end)

    def attribute_changed(self, vma: Vma, what: str) -> None:
        self._mark(vma, what, vma.start, vma.end)

    def forked(self, child: Mm, parent: Mm) -> None:
        space = self._spaces.get(id(parent))
        if space is None:
            return
        copied = {addr: dict(events) for addr, events in space[1].items()}
        self._spaces[id(child)] = (child, copied)
        self._count += sum(map(len, copied.values()))
        if self._count > PRUNE_AT:
            self._prune()


@final
class Happening:
    """One thing that happened to a range of an address space: a line of the story of each address in it."""

    __slots__ = ("about", "after", "before", "call", "end", "kind", "mm", "n", "pid", "start")

    def __init__(self, replay: Replay, mm: Mm, start: int, end: int, kind: str) -> None:
        self.n: int = replay.n
        self.pid: int = replay.pid
        """The process that did it."""
        self.call: Call | None = replay.call
        self.mm: Mm = mm
        self.start: int = start
        self.end: int = end
        self.kind: str = kind
        """ARRIVED, GREW, REMOVED or nothing: what the order of lines, and their number, depends on."""
        self.before: str = ""
        self.about: tuple[int, int] | None = None
        """The bounds of the VMA that the words are about: they stand between before and after."""
        self.after: str = ""

    def what(self) -> str:
        """What happened, in words."""
        about = f"{self.about[0]:x}-{self.about[1]:x}" if self.about is not None else ""
        return f"{self.before}{about}{self.after}"


ARRIVED: Final = "arrived"
GREW: Final = "grew"
REMOVED: Final = "removed"


class Chronicle(Observer):
    """Puts all that happens to memory in words.  A subclass says which ranges it wants, and keeps what is told."""

    def __init__(self) -> None:
        self.replay: Replay | None = None
        """Whose records are told; to be set before the first."""

    def wants(self, start: int, end: int) -> bool:
        """Whether what happens to a range is to be told."""
        return True

    def vmas_told(self, mm: Mm) -> list[Vma]:
        """The VMAs of an address space that are to be told of when it comes or goes as a whole."""
        return mm.vmas()

    def keep(self, happening: Happening) -> None:
        """Take what happened."""

    def tell(
        self,
        mm: Mm,
        where: tuple[int, int],
        before: str,
        about: Vma | tuple[int, int] | None = None,
        after: str = "",
        kind: str = "",
    ) -> None:
        """Tell what happened to a range with the current record, if it is wanted."""
        replay = self.replay
        assert replay is not None
        if where[0] < where[1] and self.wants(*where):
            happening = Happening(replay, mm, *where, kind)
            happening.before = before
            happening.about = about if about is None or isinstance(about, tuple) else (about.start, about.end)
            happening.after = after
            self.keep(happening)

    def step(self, record: records.Record) -> Mismatch | None:
        """Feed the replay a record, and tell what execve and exit do to whole address spaces."""
        replay = self.replay
        assert replay is not None
        if not isinstance(record, records.Exec | records.Exit):
            return replay.step(record)
        process = replay.process(record.pid)
        mm = process.mm if process is not None else None
        held = [(vma.start, vma.end) for vma in self.vmas_told(mm)] if mm is not None else []
        replay.step(record)
        is_exec = isinstance(record, records.Exec)
        # One that others share, as after vfork, stays.
        if mm is not None and all(each.mm is not mm for each in replay.machine.processes.values()):
            why = "gone: execve gives the process a new address space" if is_exec else "gone: the process exits"
            for where in held:
                self.tell(mm, where, why, kind=REMOVED)
        process = replay.process(record.pid)
        if is_exec and process is not None:
            for vma in self.vmas_told(process.mm):
                self._tell_all("mapped by execve as ", vma, kind=ARRIVED)
        return None

    def _tell_all(self, before: str, vma: Vma, kind: str = "") -> None:
        """Tell of a whole VMA, with its description."""
        if self.wants(vma.start, vma.end):
            self.tell(vma.mm, (vma.start, vma.end), before, vma, describe_rest(vma), kind)

    def added(self, vma: Vma) -> None:
        call = self.replay.call if self.replay is not None else None
        moved = call is not None and call.name == "mremap"
        self._tell_all("moved here as " if moved else "mapped as ", vma, ARRIVED)

    def removed(self, vma: Vma) -> None:
        start, end = vma.start, vma.end
        call = self.replay.call if self.replay is not None else None
        # mremap moves memory away from one place, and may put it over other memory.
        low = high = start
        if call is not None and call.name == "mremap":
            low, high = max(start, call.args[0]), min(end, call.args[0] + page_up(call.args[1]))
            if low >= high:
                low = high = start
        self.tell(vma.mm, (start, low), "unmapped, with ", vma, kind=REMOVED)
        self.tell(vma.mm, (low, high), "moved away, with ", vma, kind=REMOVED)
        self.tell(vma.mm, (high, end), "unmapped, with ", vma, kind=REMOVED)

    def split(self, below: Vma, above: Vma) -> None:
        self.tell(below.mm, (below.start, below.end), "what is above it was split off: it is now in ", below)
        self.tell(above.mm, (above.start, above.end), "what is below it was split off: it is now in ", above)

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        if self.wants(start, end):
            self.tell(survivor.mm, (start, end), "merged: it is now in ", survivor, describe_rest(survivor), ARRIVED)
        grown = "its VMA grew: it is now in "
        self.tell(survivor.mm, (survivor.start, start), grown, survivor, kind=GREW)
        self.tell(survivor.mm, (end, survivor.end), grown, survivor, kind=GREW)

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        reached, left = "reached by a VMA that is now ", "left by a VMA that is now "
        self.tell(vma.mm, (vma.start, min(old_start, vma.end)), reached, vma)
        self.tell(vma.mm, (max(old_end, vma.start), vma.end), reached, vma)
        self.tell(vma.mm, (old_start, min(vma.start, old_end)), left, vma)
        self.tell(vma.mm, (max(vma.end, old_start), old_end), left, vma)

    def flags_changed(self, vma: Vma, old: int) -> None:
        where = (vma.start, vma.end)
        if not self.wants(*where):
            return
        for words in flag_changes(old, vma.flags):
            self.tell(vma.mm, where, words)

    def attribute_changed(self, vma: Vma, what: str) -> None:
        where = (vma.start, vma.end)
        words = attribute_change(what, there=vma.anon_vma is not None)
        if what != "anon_vma":
            self.tell(vma.mm, where, words)
        else:
            self.tell(vma.mm, where, "", vma, f" {words}{', before this' if vma.anon_vma is not None else ''}")

    def forked(self, child: Mm, parent: Mm) -> None:
        for vma in self.vmas_told(child):
            self._tell_all("inherited by fork, as ", vma)


def put_in_order(lines: list[Happening], new: Happening) -> None:
    """Add what happened to what is known already: what a fixed mapping replaces goes first, though it is told last."""
    at = len(lines)
    if new.kind == REMOVED:
        while at and (last := lines[at - 1]).n == new.n and last.kind in (ARRIVED, GREW, REMOVED):
            at -= 1
        while at < len(lines) and (lines[at].kind != ARRIVED or not _overlap(lines[at], new)):
            at += 1
    lines.insert(at, new)


def _overlap(one: Happening, other: Happening) -> bool:
    return one.mm is other.mm and one.start < other.end and other.start < one.end


@final
class Line:
    """One line of an address's story."""

    __slots__ = ("call", "n", "pid", "pids", "what")

    def __init__(self, n: int, pid: int, pids: frozenset[int], call: Call | None, what: str) -> None:
        self.n = n
        self.pid = pid
        """The process that did it."""
        self.pids = pids
        """The processes whose address space it was done to: more than one after vfork."""
        self.call = call
        self.what = what


class Story(Chronicle):
    """Writes down everything that happens to one address, in every process."""

    def __init__(self, addr: int) -> None:
        super().__init__()
        self.addr = addr
        self._happenings: list[Happening] = []
        self._pids: dict[int, frozenset[int]] = {}

    def wants(self, start: int, end: int) -> bool:
        return start <= self.addr < end

    def vmas_told(self, mm: Mm) -> list[Vma]:
        vma = mm.vma_lookup(self.addr)
        return [vma] if vma is not None else []

    def keep(self, happening: Happening) -> None:
        replay = self.replay
        assert replay is not None
        sharers = [each.pid for each in replay.machine.processes.values() if each.mm is happening.mm]
        self._pids[id(happening)] = frozenset([happening.pid, *sharers])
        put_in_order(self._happenings, happening)

    @property
    def lines(self) -> list[Line]:
        """What happened, in order; one line for any number of times that a VMA grew while nothing else happened."""
        lines: list[Line] = []
        times, first = 0, 0
        last: Happening | None = None
        for each in self._happenings:
            if each.kind == GREW and last is not None and last.kind == GREW and last.mm is each.mm:
                lines.pop()
                times += 1
            else:
                times, first = 1, each.n
            what = each.what()
            if times > 1:
                what = what.replace("grew", f"grew {times:,} times from record {first} to this", 1)
            lines.append(Line(each.n, each.pid, self._pids[id(each)], each.call, what))
            last = each
        return lines


def flag_changes(old: int, new: int) -> list[str]:
    """What a VMA becomes by other flags: a few words for the permissions together, and for each other flag."""
    words = [f"permissions changed from {permissions(old)} to {permissions(new)}"] if (new ^ old) & VM_ACCESS else []
    for bit in single_bits((new ^ old) & ~VM_ACCESS):
        words.append(f"{'now' if new & bit else 'no longer'}: {flag_words(bit)}")
    return words


def attribute_change(what: str, *, there: bool) -> str:
    """What happens to a VMA whose attribute changes, as Observer names it; there: it has an anon_vma now."""
    if what == "anon_vma":
        return "was written to for the first time" if there else "was emptied by a move"
    return f"its {what} changed"


def span(vma: Vma) -> str:
    """The bounds of a VMA."""
    return f"{vma.start:x}-{vma.end:x}"


def describe(vma: Vma) -> str:
    """A VMA in a few words."""
    return described(vma.start, vma.end, vma.flags, vma.shown_name())


def described(start: int, end: int, vm_flags: int, name: str) -> str:
    """A VMA with these bounds, flags and name in a few words."""
    return f"{start:x}-{end:x}{_rest(vm_flags, name)}"


def describe_rest(vma: Vma) -> str:
    """What describe() says after the bounds."""
    return _rest(vma.flags, vma.shown_name())


def _rest(vm_flags: int, name: str) -> str:
    return f" {permissions(vm_flags)} {name or 'anonymous'}"
