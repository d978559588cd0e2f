"""The surroundings of a call: the VMAs there before and after it, and both drawn as strips of letters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Final, final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.explain.obstacles import detached_copy
from vmalab.machine import Process
from vmalab.trace import records
from vmalab.vma.area import Vma

Range = tuple[int, int]
"""[start, end) in bytes."""

EVERYWHERE: Final = (0, 1 << 64)
AROUND: Final = 3
"""How many neighbours on each side of the place are looked at."""
LIMIT: Final = 64
"""How many VMAs of one place are kept."""
GAP: Final = "."
HIDDEN: Final = "~"
"""Stands in a strip for VMAs that are not shown."""

_RANGES: Final[dict[str, tuple[int, int]]] = {
    "process_mrelease": (0, 0),
    "prctl": (2, 3),
}
"""Which arguments are address and length, where it is not the first two."""
_WHOLE: Final = frozenset({"mlockall", "munlockall"})
_NO_PLACE: Final = frozenset({"set_mempolicy", "personality", "pkey_alloc", "pkey_free", "memfd_create", "userfaultfd"})


@final
class Seen:
    """A VMA as it was at one moment."""

    __slots__ = ("name", "source", "vma")

    def __init__(self, source: Vma, name: str) -> None:
        self.source = source
        """The VMA itself, which goes on changing: only good to tell whether it is the same."""
        self.vma = detached_copy(source)
        self.name = name
        """The last column of /proc/PID/maps; it may hold anything."""


@final
class Picture:
    """All VMAs in some intervals of an address space, in order of address."""

    __slots__ = ("hidden", "intervals", "seen")

    def __init__(self, intervals: list[Range], seen: list[Seen], hidden: int = 0) -> None:
        self.intervals = intervals
        self.seen = seen
        self.hidden = hidden
        """How many VMAs of the intervals were too many to keep."""

    def covers(self, place: Range) -> bool:
        """Whether a place lies within what the picture shows."""
        return any(low <= place[0] and place[1] <= high for low, high in self.intervals)


def take_picture(process: Process, intervals: list[Range], *, limit: int = LIMIT) -> Picture:
    """What a process has in these intervals now: of each at most limit VMAs, from both ends, or all for 0."""
    seen: list[Seen] = []
    hidden = 0
    last: Vma | None = None
    for low, high in intervals:
        found = [vma for vma in process.mm.tree.walk(low, high) if vma is not last]
        last = found[-1] if found else last
        if limit and len(found) > limit:
            hidden += len(found) - limit
            found = found[: limit // 2] + found[-(limit // 2) :]
        seen += [Seen(vma, process.name_of(vma)) for vma in found]
    return Picture(intervals, seen, hidden)


def surroundings(process: Process, places: list[Range], around: int = AROUND) -> list[Range]:
    """The places with their neighbours; what then overlaps or touches is one."""
    tree = process.mm.tree
    wide: list[Range] = []
    for start, end in places:
        low, high = start, end
        for _ in range(around):
            below = tree.find_before(low)
            low = below.start if below is not None else 0
            above = tree.find(high)
            high = above.end if above is not None else EVERYWHERE[1]
        wide.append((low, high))
    merged: list[Range] = []
    for low, high in sorted(wide):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def places_of(record: records.Record, process: Process | None) -> list[Range]:
    """Where a record acts on an address space, by what it says itself: whole pages."""
    found: list[Range] = []
    if isinstance(record, records.Fault):
        found.append((record.addr, record.addr + 1))
    elif isinstance(record, records.Call):
        found += _places_of_call(record, process)
        found += record.grown
    return [each for each in map(_whole_pages, found) if each[0] < each[1]]


def _places_of_call(record: records.Call, process: Process | None) -> list[Range]:
    name, args = record.call, record.args
    # What a call returned that is not known is taken as nothing.
    ret = -1 if record.ret is None else record.ret
    if name in _WHOLE:
        return [EVERYWHERE]
    if name == "brk":
        now = process.mm.brk if process is not None else max(ret, 0)
        return [(min(now, args[0] or now), max(now, args[0], now + 1))]
    if name in ("mmap", "mremap", "shmat", "map_shadow_stack"):
        found = [(args[0], args[0] + args[1])] if name == "mremap" or ret < 0 else []
        if ret >= 0:
            length = {"mmap": 1, "mremap": 2}.get(name)
            found.append((ret, ret + (args[length] if length is not None else 1)))
        return found
    if name == "process_madvise":
        ranges = record.data.get("ranges")
        listed = ranges if isinstance(ranges, list) else []
        return [(addr, addr + length) for addr, length in zip(listed[::2], listed[1::2], strict=False)]
    if name in _NO_PLACE or not args:
        return []
    at, length = _RANGES.get(name, (0, 1))
    if at >= len(args) or args[at] < PAGE_SIZE:
        return []
    return [(args[at], args[at] + (args[length] if length < len(args) else 1))]


def _whole_pages(place: Range) -> Range:
    low = place[0] & -PAGE_SIZE
    high = (min(max(place[1], low + 1), EVERYWHERE[1]) + PAGE_SIZE - 1) & -PAGE_SIZE
    return low, min(high, EVERYWHERE[1])


# -- strips -------------------------------------------------------------------------------------------


@final
class Strips:
    """Two pictures drawn one above the other: a letter for each VMA of the first, a digit for each new one.

    The same column is the same address in both.  Wider VMAs are wider, but not in proportion.
    """

    def __init__(self, before: Picture, after: Picture, places: Sequence[Range], width: int) -> None:
        self.letters: dict[int, str] = {}
        """The letter of each VMA, by the identity of its source."""
        _name(self.letters, before.seen, ascii_uppercase + ascii_lowercase)
        _name(self.letters, after.seen, digits + ascii_lowercase[::-1])
        cuts = _cuts(before, after, places)
        widths = _widths(cuts, before, after, width)
        self.before = self._draw(before, cuts, widths)
        self.after = self._draw(after, cuts, widths)
        self.marks = "".join(
            ("^" if any(low <= start and end <= high for low, high in places) else " ") * columns
            for (start, end), columns in zip(cuts, widths, strict=True)
        ).rstrip()
        """A line that marks the places."""

    def letter(self, seen: Seen) -> str:
        """The letter or digit of a VMA."""
        return self.letters[id(seen.source)]

    def _draw(self, picture: Picture, cuts: list[Range], widths: list[int]) -> str:
        parts: list[str] = []
        at = 0
        seen = picture.seen
        for (start, end), columns in zip(cuts, widths, strict=True):
            while at < len(seen) and seen[at].vma.end <= start:
                at += 1
            if at < len(seen) and seen[at].vma.start <= start:
                parts.append(self.letter(seen[at]) * columns)
            else:
                known = any(low <= start and end <= high for low, high in picture.intervals)
                parts.append((GAP if known else HIDDEN) * columns)
        return "".join(parts)


def _name(letters: dict[int, str], seen: list[Seen], names: str) -> None:
    fresh = [id(each.source) for each in seen if id(each.source) not in letters]
    for place, key in enumerate(fresh):
        letters[key] = names[place] if place < len(names) else "?"


def _cuts(before: Picture, after: Picture, places: Sequence[Range]) -> list[Range]:
    """The stretches between all bounds of both pictures and of the places, in order."""
    edges: set[int] = set()
    for each in before.seen + after.seen:
        edges.update((each.vma.start, each.vma.end))
    if edges:
        low, high = min(edges), max(edges)
        for start, end in places:
            edges.update((max(start, low), min(end, high)))
    ordered = sorted(edges)
    return [(start, end) for start, end in itertools.pairwise(ordered) if start < end]


def _widths(cuts: list[Range], before: Picture, after: Picture, width: int) -> list[int]:
    """How many columns each stretch takes, so that all fit into the width if that is possible."""
    mapped = [(each.vma.start, each.vma.end) for each in before.seen + after.seen]
    wanted = []
    for start, end in cuts:
        pages = (end - start) >> PAGE_SHIFT
        held = any(low <= start and end <= high for low, high in mapped)
        wanted.append(pages.bit_length() if held else min(pages.bit_length(), 2))
    cap = 12
    while cap > 1 and sum(min(cap, each) for each in wanted) > width:
        cap -= 1
    return [max(1, min(cap, each)) for each in wanted]
