"""What happened: to the edges of VMAs (which call made a difference), and to one address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab import flags, reason
from vmalab.explain.obstacles import flag_words, single_bits
from vmalab.flags import VM_ACCESS, permissions
from vmalab.vma.observer import Observer

if TYPE_CHECKING:
    from vmalab.calls import Call
    from vmalab.trace.replay import Replay
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


class Story(Observer):
    """Writes down everything that happens to one address, in every process."""

    def __init__(self, addr: int) -> None:
        self.addr = addr
        self.lines: list[Line] = []
        self._grown: tuple[Line, int, int] | None = None
        self.replay: Replay | None = None
        """Whose records are told; to be set before the first."""

    def tell(self, what: str, mm: Mm) -> None:
        """Add a line for the current record: what happened in an address space."""
        replay = self.replay
        assert replay is not None
        pids = frozenset([replay.pid, *[each.pid for each in replay.machine.processes.values() if each.mm is mm]])
        self.lines.append(Line(replay.n, replay.pid, pids, replay.call, what))

    def _holds(self, start: int, end: int) -> bool:
        return start <= self.addr < end

    def _is_moved(self) -> bool:
        """Whether the call moves memory away from the address, rather than put other memory over it."""
        call = self.replay.call if self.replay is not None else None
        return call is not None and call.name == "mremap" and self._holds(call.args[0], call.args[0] + call.args[1])

    def added(self, vma: Vma) -> None:
        if self._holds(vma.start, vma.end):
            call = self.replay.call if self.replay is not None else None
            moved = call is not None and call.name == "mremap"
            self.tell(f"{'moved here' if moved else 'mapped'} as {describe(vma)}", vma.mm)

    def removed(self, vma: Vma) -> None:
        if not self._holds(vma.start, vma.end):
            return
        verb = "moved away" if self._is_moved() else "unmapped"
        self.tell(f"{verb}, with {span(vma)}", vma.mm)
        # What a fixed mapping replaces goes first, though the kernel gives it back last.
        lines = self.lines
        if len(lines) > 1 and lines[-2].n == lines[-1].n and lines[-2].what.startswith(("mapped", "moved here")):
            lines[-1], lines[-2] = lines[-2], lines[-1]

    def split(self, below: Vma, above: Vma) -> None:
        if self._holds(below.start, above.end):
            part = below if self.addr < above.start else above
            self.tell(f"split at {above.start:#x}: it is now in {span(part)}", part.mm)

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        if self._holds(start, end):
            self.tell(f"merged: it is now in {describe(survivor)}", survivor.mm)
        elif self._holds(survivor.start, survivor.end):
            self._tell_growth(survivor)

    def _tell_growth(self, vma: Vma) -> None:
        """One line for any number of times that a VMA grew while nothing else happened to the address."""
        times, first = 1, 0
        if self._grown is not None and self.lines and self.lines[-1] is self._grown[0]:
            _, times, first = self._grown
            times += 1
            self.lines.pop()
        self.tell("", vma.mm)
        line = self.lines[-1]
        first = first or line.n
        often = f"grew {times:,} times from record {first} to this" if times > 1 else "grew"
        line.what = f"its VMA {often}: it is now in {span(vma)}"
        self._grown = (line, times, first)

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        if self._holds(vma.start, vma.end) != self._holds(old_start, old_end):
            now = "reached" if self._holds(vma.start, vma.end) else "left"
            self.tell(f"{now} by a VMA that is now {span(vma)}", vma.mm)

    def flags_changed(self, vma: Vma, old: int) -> None:
        if not self._holds(vma.start, vma.end):
            return
        if (vma.flags ^ old) & VM_ACCESS:
            self.tell(f"permissions changed from {permissions(old)} to {permissions(vma.flags)}", vma.mm)
        for bit in single_bits((vma.flags ^ old) & ~VM_ACCESS):
            self.tell(f"{'now' if vma.flags & bit else 'no longer'}: {flag_words(bit)}", vma.mm)

    def attribute_changed(self, vma: Vma, what: str) -> None:
        if not self._holds(vma.start, vma.end):
            return
        if what == "anon_vma" and vma.anon_vma is None:
            self.tell(f"{span(vma)} was emptied by a move", vma.mm)
        elif what == "anon_vma":
            self.tell(f"{span(vma)} was written to for the first time, before this", vma.mm)
        else:
            self.tell(f"its {what} changed", vma.mm)

    def forked(self, child: Mm, parent: Mm) -> None:
        vma = child.vma_lookup(self.addr)
        if vma is not None:
            self.tell(f"inherited by fork, as {describe(vma)}", child)


def span(vma: Vma) -> str:
    """The bounds of a VMA."""
    return f"{vma.start:x}-{vma.end:x}"


def describe(vma: Vma) -> str:
    """A VMA in a few words."""
    return described(vma.start, vma.end, vma.flags, vma.shown_name())


def described(start: int, end: int, vm_flags: int, name: str) -> str:
    """A VMA with these bounds, flags and name in a few words."""
    return f"{start:x}-{end:x} {permissions(vm_flags)} {name or 'anonymous'}"
