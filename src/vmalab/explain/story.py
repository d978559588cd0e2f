"""What happened: to the edges of VMAs (which call made a difference), and to one address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab import reason
from vmalab.flags import permissions, vm_flags_text
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
        wanted.update([f"flag {bit:#x}" for bit in _bits(bits)])
        found = [event for kind, event in events.items() if kind in wanted]
        if not found:
            found = [event for kind, event in events.items() if kind in ("split", "resized")]
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
        self._mark(above, "split", above.start)

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        self._mark(survivor, "mapped", start, end)

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        self._mark(vma, "resized", vma.start, vma.end)

    def flags_changed(self, vma: Vma, old: int) -> None:
        for bit in _bits(vma.flags ^ old):
            self._mark(vma, f"flag {bit:#x}", vma.start, vma.end)

    def attribute_changed(self, vma: Vma, what: str) -> None:
        self._mark(vma, what, vma.start, vma.end)

    def forked(self, child: Mm, parent: Mm) -> None:
        space = self._spaces.get(id(parent))
        if space is not None:
            self._spaces[id(child)] = (child, {addr: dict(events) for addr, events in space[1].items()})


def _bits(word: int) -> list[int]:
    """The single bits of a word."""
    return [1 << i for i in range(word.bit_length()) if word >> i & 1]


@final
class Line:
    """One line of an address's story."""

    __slots__ = ("call", "n", "pid", "what")

    def __init__(self, n: int, pid: int, call: Call | None, what: str) -> None:
        self.n = n
        self.pid = pid
        self.call = call
        self.what = what


class Story(Observer):
    """Writes down everything that happens to one address, in every process."""

    def __init__(self, addr: int) -> None:
        self.addr = addr
        self.lines: list[Line] = []
        self.replay: Replay | None = None

    def tell(self, what: str) -> None:
        """Add a line for the current record."""
        replay = self.replay
        assert replay is not None
        self.lines.append(Line(replay.n, replay.pid, replay.call, what))

    def _holds(self, start: int, end: int) -> bool:
        return start <= self.addr < end

    def added(self, vma: Vma) -> None:
        if self._holds(vma.start, vma.end):
            self.tell(f"mapped as {describe(vma)}")

    def removed(self, vma: Vma) -> None:
        if self._holds(vma.start, vma.end):
            self.tell(f"unmapped, with {span(vma)}")

    def split(self, below: Vma, above: Vma) -> None:
        if self._holds(below.start, above.end):
            part = below if self.addr < above.start else above
            self.tell(f"split at {above.start:#x}: it is now in {span(part)}")

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        if self._holds(start, end):
            self.tell(f"became part of {describe(survivor)}")

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        if self._holds(vma.start, vma.end) != self._holds(old_start, old_end):
            now = "reached" if self._holds(vma.start, vma.end) else "left"
            self.tell(f"{now} by a VMA that is now {span(vma)}")

    def flags_changed(self, vma: Vma, old: int) -> None:
        if self._holds(vma.start, vma.end):
            gone = vm_flags_text(old & ~vma.flags)
            new = vm_flags_text(vma.flags & ~old)
            changes = [text for text in (f"-{gone}" if gone else "", f"+{new}" if new else "") if text]
            self.tell(f"flags changed: {permissions(old)} to {permissions(vma.flags)} ({' '.join(changes)})")

    def attribute_changed(self, vma: Vma, what: str) -> None:
        if not self._holds(vma.start, vma.end):
            return
        if what == "anon_vma":
            self.tell(
                f"{span(vma)} was written to for the first time" if vma.anon_vma is not None else "emptied by a move"
            )
        else:
            self.tell(f"{what} changed")

    def forked(self, child: Mm, parent: Mm) -> None:
        vma = child.vma_lookup(self.addr)
        if vma is not None:
            self.tell(f"inherited by fork, as {describe(vma)}")


def span(vma: Vma) -> str:
    """The bounds of a VMA."""
    return f"{vma.start:x}-{vma.end:x}"


def describe(vma: Vma) -> str:
    """A VMA in a few words."""
    name = vma.shown_name()
    return f"{span(vma)} {permissions(vma.flags)}{' ' + name if name else ' anonymous'}"
