"""What looks in the range tree: for entries, and for room between them.

Interpreted, the frequent searches begin with one bisection, by a function in C, of the leaf where the last one ended;
only what that does not answer for certain goes the way of the compiled form.  An index above 0 is certain: the entry
before it is in the same leaf.  So is 0 in the first leaf of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vmalab.vma.keys import (
    ADDRESS_END,
    COMPILED,
    HUGE,
    WORD,
    bad_address,
    distance,
    first_above,
    first_bound,
    first_gap,
    largest,
    largest_gap,
    last_bound,
    last_gap,
    lowest,
    to_address,
    to_key,
)
from vmalab.vma.maple_ceilings import Ceilings
from vmalab.vma.maple_nodes import Nodes

if not COMPILED:
    from bisect import bisect_left

if TYPE_CHECKING:
    from mypy_extensions import i64

T = TypeVar("T")


class Searches(Nodes[T]):
    """A range tree that can be looked at.  The changes are in ``maple``, which says what the arguments are."""

    __slots__ = ("_ceilings",)

    def __init__(self) -> None:
        super().__init__()
        self._ceilings: Ceilings = Ceilings()

    # -- looking -------------------------------------------------------------------------------------------------------

    def load(self, addr: int) -> T | None:
        """The value of the entry that holds an address, or None."""
        if not COMPILED:
            leaf = self._leaf
            i = bisect_left(leaf.lasts, addr)
            if i < len(leaf.lasts) and (i or (addr >= 0 and not (self._b or self._c))):
                return leaf.values[i] if leaf.starts[i] <= addr else None
        key = to_key(addr)
        value: T | None = None
        if self._seek(key) and self._leaf.starts[self._i] <= key:
            value = self._leaf.values[self._i]
        return value

    def find(self, addr: int) -> T | None:
        """The value of the first entry that ends above an address, or None."""
        if not COMPILED:
            leaf = self._leaf
            i = bisect_left(leaf.lasts, addr)
            if i < len(leaf.lasts) and (i or (addr >= 0 and not (self._b or self._c))):
                return leaf.values[i]
        value: T | None = None
        if addr != ADDRESS_END and self._seek(to_key(addr)):
            value = self._leaf.values[self._i]
        return value

    def find_before(self, addr: int) -> T | None:
        """The value of the last entry that starts below an address, or None."""
        if not COMPILED:
            leaf = self._leaf
            i = bisect_left(leaf.starts, addr)
            if 0 < i < len(leaf.starts):
                return leaf.values[i - 1]
        return self._leaf.values[self._i] if self._seek_before(addr) else None

    def around(self, addr: int) -> tuple[T | None, T | None]:
        """What find_before() and find() of an address say, by one search."""
        if not COMPILED:
            leaf = self._leaf
            i = bisect_left(leaf.lasts, addr)
            if i < len(leaf.lasts) and (i or (addr >= 0 and not (self._b or self._c))):
                following = leaf.values[i]
                if leaf.starts[i] < addr:
                    return following, following
                return leaf.values[i - 1] if i else None, following
        if addr == 0 or addr == ADDRESS_END:
            return self.find_before(addr), self.find(addr)
        key = to_key(addr)
        following: T | None = None
        if self._seek(key):
            following = self._leaf.values[self._i]
            if self._leaf.starts[self._i] < key:
                return following, following
        return self._leaf.values[self._i] if self._previous() else None, following

    def find_range(self, addr: int) -> tuple[int, int, T] | None:
        """Like find(), with the bounds: (start, end, value)."""
        if addr != ADDRESS_END and self._seek(to_key(addr)):
            return self._here()
        return None

    def find_before_range(self, addr: int) -> tuple[int, int, T] | None:
        """Like find_before(), with the bounds: (start, end, value)."""
        return self._here() if self._seek_before(addr) else None

    def is_empty(self, start: int, end: int) -> bool:
        """Whether nothing overlaps [start, end)."""
        if start >= end:
            return True
        last = to_key(end - 1)
        return not self._seek(to_key(start)) or self._leaf.starts[self._i] > last

    def walk(self, start: int, end: int) -> list[T]:
        """The values of the entries that overlap [start, end), in order.  The list is the caller's."""
        found: list[T] = []
        if start >= end:
            return found
        if not COMPILED:
            leaf = self._leaf
            i = bisect_left(leaf.lasts, start)
            j = bisect_left(leaf.starts, end, i)
            if j < len(leaf.starts) and (i or (start >= 0 and not (self._b or self._c))):
                return leaf.values[i:j]
        last = to_key(end - 1)
        more = self._seek(to_key(start))
        while more:
            leaf = self._leaf
            i = self._i
            stop: i64 = first_above(leaf.starts, last)
            while i < stop:
                found.append(leaf.values[i])
                i += 1
            more = stop == len(leaf.starts) and self._next_leaf()
        return found

    def values(self) -> list[T]:
        """All values, in order.  The list is the caller's."""
        found: list[T] = []
        for branch in self._branches:
            for leaf in branch.leaves:
                found.extend(leaf.values)
        return found

    def ranges(self) -> list[tuple[int, int, T]]:
        """All entries as (start, end, value), in order."""
        found: list[tuple[int, int, T]] = []
        more = self._seek(lowest())
        while more:
            leaf = self._leaf
            for i in range(len(leaf.values)):
                found.append((to_address(leaf.starts[i]), to_address(leaf.lasts[i]) + 1, leaf.values[i]))
            more = self._next_leaf()
        return found

    def gaps(self, low: int, high: int) -> list[tuple[int, int]]:
        """The empty ranges (start, end) inside [low, high), in order."""
        found: list[tuple[int, int]] = []
        at = low
        if low < high:
            last = to_key(high - 1)
            more = self._seek(to_key(low))
            while more and self._leaf.starts[self._i] <= last:
                start, end, _ = self._here()
                if at < start:
                    found.append((at, start))
                at = end
                self._i += 1
                more = self._i < len(self._leaf.lasts) or self._next_leaf()
        if at < high:
            found.append((at, high))
        return found

    # -- room ----------------------------------------------------------------------------------------------------------

    def highest_gap(self, size: int, low: int, high: int) -> int:
        """The highest address a with [a, a + size) empty inside [low, high), or -1.

        Like the kernel's mas_empty_area_rev().  Raises ValueError unless size > 0.
        """
        if size <= 0:
            raise ValueError(f"a gap of {size} bytes")
        if high - low < size:
            return -1
        if not COMPILED:
            if low < 0 or high > ADDRESS_END:
                raise bad_address(low if low < 0 else high - 1)
            top = self._ceilings.below(size, high - 1)
            leaf = self._leaf
            i = bisect_left(leaf.lasts, top)
            if i < len(leaf.lasts) and (i or not (self._b or self._c)):
                last = leaf.starts[i] - 1
                if last > top:
                    last = top
                found = last - size + 1
                if found >= low and (not i or found > leaf.lasts[i - 1]):
                    self._i = i
                    if last < top:
                        self._ceilings.found(size, high - 1, last)
                    return found
        if size > WORD and size >= HUGE:
            return self._huge_gap(size, low, high, True)
        room: i64 = size
        floor = to_key(low)
        highest = to_key(high - 1)
        top = self._ceilings.below(room, highest)
        if top < floor:
            return -1
        if self._seek(top):
            first = self._leaf.starts[self._i]
            if first <= floor:
                return -1
            if first <= top:
                top = first - 1
        below = self._below()
        if distance(below if below > floor else floor, top) < room - 1:
            if below <= floor or not self._gap_before(room):
                return -1
            top = self._leaf.starts[self._i] - 1
            if top < floor or distance(floor, top) < room - 1:
                return -1
        self._ceilings.found(room, highest, top)
        return to_address(top - room + 1)

    def above_gap(self) -> T | None:
        """The value of the entry above the gap that highest_gap() has just found, or None."""
        return self._leaf.values[self._i] if self._i < len(self._leaf.values) else None

    def _gap_before(self, room: i64) -> bool:
        """Put the position on the last entry before it that has this much room in front; False if there is none."""
        b = self._b
        branch = self._branch
        c = self._c
        leaf = self._leaf
        i: i64 = -1
        if branch.bounds[c] >= room:
            i = last_gap(leaf.starts, leaf.lasts, room, self._i)
            if i < 0 and self._i > 0 and distance(self._below_leaf(b, c), leaf.starts[0]) >= room:
                i = 0
        while i < 0:
            c = last_bound(branch.bounds, room, c)
            while c < 0:
                b = last_bound(self._bounds, room, b)
                if b < 0:
                    return False
                branch = self._branches[b]
                c = last_bound(branch.bounds, room, len(branch.bounds))
                if c < 0:
                    self._bounds[b] = largest(branch.bounds)
            leaf = branch.leaves[c]
            i = last_gap(leaf.starts, leaf.lasts, room, len(leaf.starts))
            if i < 0:
                # Only now is another leaf to be looked at.
                below = self._below_leaf(b, c)
                if distance(below, leaf.starts[0]) >= room:
                    i = 0
                else:
                    branch = self._own_branch(b)
                    branch.bounds[c] = largest_gap(leaf.starts, leaf.lasts, below)
        self._b = b
        self._branch = branch
        self._c = c
        self._leaf = leaf
        self._i = i
        return True

    def lowest_gap(self, size: int, low: int, high: int) -> int:
        """The lowest address a with [a, a + size) empty inside [low, high), or -1.

        Like the kernel's mas_empty_area().  Raises ValueError unless size > 0.
        """
        if size <= 0:
            raise ValueError(f"a gap of {size} bytes")
        if high - low < size:
            return -1
        if size > WORD and size >= HUGE:
            return self._huge_gap(size, low, high, False)
        room: i64 = size
        floor = to_key(low)
        top = to_key(high - 1)
        if not self._seek(floor):
            return low
        first = self._leaf.starts[self._i]
        if first > floor and distance(floor, first) >= room:
            return low
        if self._gap_after(room):
            below = self._below()
        else:
            below = self._branches[len(self._branches) - 1].last()
            if below >= top:
                return -1
            below += 1
        return to_address(below) if below <= top and distance(below, top) >= room - 1 else -1

    def _gap_after(self, room: i64) -> bool:
        """Put the position on the first entry after it that has this much room in front; False if there is none."""
        b = self._b
        branch = self._branch
        c = self._c
        leaf = self._leaf
        i: i64 = -1
        if branch.bounds[c] >= room:
            i = first_gap(leaf.starts, leaf.lasts, room, self._i + 1, lowest())
        while i < 0:
            c = first_bound(branch.bounds, room, c + 1)
            while c < 0:
                b = first_bound(self._bounds, room, b + 1)
                if b < 0:
                    return False
                branch = self._branches[b]
                c = first_bound(branch.bounds, room, 0)
                if c < 0:
                    self._bounds[b] = largest(branch.bounds)
            leaf = branch.leaves[c]
            below = self._below_leaf(b, c)
            i = first_gap(leaf.starts, leaf.lasts, room, 0, below)
            if i < 0:
                branch = self._own_branch(b)
                branch.bounds[c] = largest_gap(leaf.starts, leaf.lasts, below)
        self._b = b
        self._branch = branch
        self._c = c
        self._leaf = leaf
        self._i = i
        return True

    def _huge_gap(self, size: int, low: int, high: int, highest: bool) -> int:
        """highest_gap() or lowest_gap() for sizes that the bounds cannot tell apart: from 2**63 - 1 on.

        So much room holds at least one of two addresses near the middle of the space.
        """
        found = -1
        for middle in (HUGE - 1, HUGE + 2):
            if found >= 0 and not highest:
                break
            if self.load(middle) is not None:
                continue
            before = self.find_before_range(middle)
            after = self.find_range(middle)
            start = low if before is None or before[1] < low else before[1]
            end = high if after is None or after[0] > high else after[0]
            if end - start >= size:
                found = end - size if highest else start
        return found
