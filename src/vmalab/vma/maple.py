"""The range tree: what the kernel's maple tree does, in flat arrays.

A tree maps half-open ranges of the unsigned 64-bit space to values.  Ranges do not overlap, are in order, and may reach
from 0 to 2**64.  Neighbours with the same value stay two entries: whoever uses the tree decides what to join.
How it is made is in ``maple_nodes``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, final

from vmalab.vma.keys import (
    ADDRESS_END,
    HIGHEST,
    HUGE,
    WORD,
    delete_keys,
    distance,
    first_above,
    first_at_least,
    first_bound,
    first_gap,
    insert_key,
    largest,
    largest_gap,
    last_bound,
    last_gap,
    lowest,
    slice_keys,
    to_address,
    to_key,
)
from vmalab.vma.maple_ceilings import Ceilings
from vmalab.vma.maple_nodes import BRANCH_SIZE, LEAF_SIZE, Leaf, Nodes, Owner

if TYPE_CHECKING:
    from mypy_extensions import i64

T = TypeVar("T")


@final
class MapleTree(Nodes[T]):
    """Non-overlapping half-open ranges [start, end) of the 64-bit space, each with a value.

    Addresses are plain integers with 0 <= start < end <= 2**64; anything else raises ValueError.  A value may be
    anything but None, which is how the searches say that there is nothing.
    """

    __slots__ = ("_ceilings",)

    def __init__(self) -> None:
        super().__init__()
        self._ceilings: Ceilings = Ceilings()

    # -- looking -------------------------------------------------------------------------------------------------------

    def load(self, addr: int) -> T | None:
        """The value of the entry that holds an address, or None."""
        key = to_key(addr)
        value: T | None = None
        if self._seek(key) and self._leaf.starts[self._i] <= key:
            value = self._leaf.values[self._i]
        return value

    def find(self, addr: int) -> T | None:
        """The value of the first entry that ends above an address, or None."""
        value: T | None = None
        if addr != ADDRESS_END and self._seek(to_key(addr)):
            value = self._leaf.values[self._i]
        return value

    def find_before(self, addr: int) -> T | None:
        """The value of the last entry that starts below an address, or None."""
        return self._leaf.values[self._i] if self._seek_before(addr) else None

    def around(self, addr: int) -> tuple[T | None, T | None]:
        """What find_before() and find() of an address say, by one search."""
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
            i = last_gap(leaf.starts, leaf.lasts, room, self._i, self._below_leaf(b, c))
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
            below = self._below_leaf(b, c)
            i = last_gap(leaf.starts, leaf.lasts, room, len(leaf.starts), below)
            if i < 0:
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

    # -- change --------------------------------------------------------------------------------------------------------

    def store(self, start: int, end: int, value: T) -> None:
        """Map [start, end) to a value.  What it covers is erased, trimmed, or split in two."""
        last = to_key(end - 1)
        first = self._check(start, last)
        if self._seek(first):
            leaf = self._leaf
            i = self._i
            if leaf.starts[i] == first and leaf.lasts[i] == last:
                self.generation += 1
                self._own_leaf().values[i] = value
                return
            if leaf.starts[i] <= last:
                self._empty(first, last)
        self.generation += 1
        self._insert_here(first, last, value)

    def insert(self, start: int, end: int, value: T) -> bool:
        """Map [start, end) to a value if that is all empty.  False, and nothing changed, if anything overlaps it."""
        last = to_key(end - 1)
        first = self._check(start, last)
        if self._seek(first) and self._leaf.starts[self._i] <= last:
            return False
        self.generation += 1
        self._insert_here(first, last, value)
        return True

    def erase(self, start: int, end: int) -> None:
        """Empty [start, end).  Entries inside go, entries that reach out of it are trimmed or split in two."""
        last = to_key(end - 1)
        first = self._check(start, last)
        if self._seek(first) and self._leaf.starts[self._i] <= last:
            self.generation += 1
            self._empty(first, last)
            if self._i < len(self._leaf.starts):
                above = self._leaf.starts[self._i]
                self._ceilings.grew(distance(self._below(), above), above - 1)
            else:
                self._ceilings.grew(HUGE, HIGHEST)

    def set_range(self, old_start: int, new_start: int, new_end: int) -> None:
        """Give the entry that starts at old_start the bounds [new_start, new_end).

        Raises ValueError, and changes nothing, if no entry starts there or the new range would reach another one.
        """
        old = to_key(old_start)
        last = to_key(new_end - 1)
        first = self._check(new_start, last)
        if not self._seek(old) or self._leaf.starts[self._i] != old:
            raise ValueError(f"no range starts at {old_start:#x}")
        leaf = self._leaf
        i = self._i
        below = self._below()
        following = self._start_after()
        if first < below or (last >= following and following > old):
            raise ValueError(f"[{new_start:#x}, {new_end:#x}) reaches another range")
        self.generation += 1
        leaf = self._own_leaf()
        was_last = leaf.lasts[i]
        leaf.starts[i] = first
        leaf.lasts[i] = last
        if i == 0:
            self._set_min(first)
        self._raise_bound(first, below)
        if first > old:
            self._ceilings.grew(distance(below, first), first - 1)
        if following > old:
            if i + 1 == len(leaf.starts):
                self._next_leaf()
            self._raise_bound(following, last + 1)
            if last < was_last:
                self._ceilings.grew(distance(last + 1, following), following - 1)
        elif last < was_last:
            self._ceilings.grew(HUGE, HIGHEST)

    def split(self, at: int, value: T, below: bool) -> None:
        """Split the entry around an address in two, one of which is new and has this value: the one below, or above.

        No gap changes.  Raises ValueError, and changes nothing, if no entry reaches from below the address beyond it.
        """
        key = to_key(at)
        if not self._seek(key) or self._leaf.starts[self._i] >= key:
            raise ValueError(f"no range to split at {at:#x}")
        self.generation += 1
        leaf = self._own_leaf()
        i = self._i
        leaf.starts = insert_key(leaf.starts, i + 1, key)
        leaf.lasts = insert_key(leaf.lasts, i, key - 1)
        leaf.values.insert(i if below else i + 1, value)
        self.count += 1
        if len(leaf.starts) > LEAF_SIZE:
            self._split_leaf()

    def move_boundary(self, old: int, new: int) -> None:
        """Move the address at which two entries touch; each keeps a part of what it had, or grows.

            AAAA|BBBBBB   ->   AAAAAA|BBBB

        No gap changes.  Raises ValueError, and changes nothing, if none touch there, or one would be left with nothing.
        """
        was = to_key(old)
        key = to_key(new)
        if self._seek(was) and self._i > 0:
            leaf = self._leaf
            i = self._i
            if leaf.starts[i] == was and leaf.lasts[i - 1] == was - 1 and leaf.starts[i - 1] < key <= leaf.lasts[i]:
                self.generation += 1
                leaf = self._own_leaf()
                leaf.starts[i] = key
                leaf.lasts[i - 1] = key - 1
                return
        self._move_boundary_of_leaves(old, new, key)

    def _move_boundary_of_leaves(self, old: int, new: int, key: i64) -> None:
        """move_boundary() where the entries lie in two leaves, or not at all."""
        before = self.find_before_range(old)
        after = self.find_range(old)
        if before is None or after is None or before[1] != old or after[0] != old or not before[0] < new < after[1]:
            raise ValueError(f"no boundary to move from {old:#x} to {new:#x}")
        self.generation += 1
        # The upper one is the first of its leaf: else both were found in one.
        self._own_leaf().starts[0] = key
        self._set_min(key)
        self._previous()
        self._own_leaf().lasts[self._i] = key - 1

    def absorb(self, of: int, start: int, end: int) -> None:
        """The entry that starts at one address takes [start, end), and the other entries in there go.

        Raises ValueError, and changes nothing, unless [start, end) holds the entry, and every other wholly or not at
        all.
        """
        last = to_key(end - 1)
        first = self._check(start, last)
        origin = to_key(of)
        if self._seek(first):
            leaf = self._leaf
            i = self._i
            j: i64 = first_above(leaf.lasts, last)
            if i < j < len(leaf.starts) and leaf.starts[i] >= first and leaf.starts[j] > last:
                k: i64 = first_at_least(leaf.starts, origin)
                if i <= k < j and leaf.starts[k] == origin:
                    self._absorb_here(first, last, k, j)
                    return
        self._absorb_far(of, start, end)

    def _absorb_here(self, first: i64, last: i64, k: i64, j: i64) -> None:
        """Entry k of the leaf at the position takes the place of all from the position to j."""
        self.generation += 1
        leaf = self._own_leaf()
        i = self._i
        if k > i:
            leaf.values[i] = leaf.values[k]
        leaf.starts[i] = first
        leaf.lasts[i] = last
        if i == 0:
            self._set_min(first)
        if j > i + 1:
            leaf.starts = delete_keys(leaf.starts, i + 1, j)
            leaf.lasts = delete_keys(leaf.lasts, i + 1, j)
            self.count -= j - i - 1
            while j > i + 1:
                leaf.values.pop(i + 1)
                j -= 1
            self._join()

    def _absorb_far(self, of: int, start: int, end: int) -> None:
        """absorb() where more than one leaf is touched."""
        entry = self.find_range(of)
        inside = self.find_range(start)
        above = self.find_before_range(end)
        if (
            entry is None
            or entry[0] != of
            or inside is None
            or inside[0] < start
            or above is None
            or above[1] > end
            or of < start
            or entry[1] > end
        ):
            raise ValueError(f"[{start:#x}, {end:#x}) is not what the range at {of:#x} can take")
        self.store(start, end, entry[2])

    def clear(self) -> None:
        """Empty the tree."""
        super().clear()
        self._ceilings = Ceilings()

    def _fault(self) -> str:
        fault = super()._fault()
        if not fault and self._ceilings.known():
            fault = self._ceilings.fault(self.gaps(0, ADDRESS_END))
        return fault

    def duplicate(self) -> MapleTree[T]:
        """A tree with the same entries.  Each copies what it changes from then on; the values themselves are shared."""
        twin: MapleTree[T] = MapleTree()
        twin._mins = slice_keys(self._mins, 0, len(self._mins))
        twin._bounds = slice_keys(self._bounds, 0, len(self._bounds))
        twin._branches = self._branches[:]
        twin._branch = twin._branches[0]
        twin._leaf = twin._branch.leaves[0]
        twin.count = self.count
        twin._shared = True
        self._shared = True
        self._owner = Owner()
        return twin

    def runs(self) -> list[list[T]]:
        """All values in order, as the tree holds them: not the caller's to change, and good until the tree changes."""
        return [leaf.values for branch in self._branches for leaf in branch.leaves]

    def with_runs(self, runs: list[list[T]]) -> MapleTree[T]:
        """A tree with the same ranges and other values: for each of runs() one of the same length, which it keeps."""
        twin: MapleTree[T] = MapleTree()
        twin._mins = slice_keys(self._mins, 0, len(self._mins))
        twin._bounds = slice_keys(self._bounds, 0, len(self._bounds))
        twin._branches = []
        at: i64 = 0
        for branch in self._branches:
            leaves: list[Leaf] = []
            for leaf in branch.leaves:
                size: i64 = len(leaf.starts)
                values = runs[at]
                assert len(values) == size, f"{len(values)} values for {size} entries"
                starts = slice_keys(leaf.starts, 0, size)
                leaves.append(twin._new_leaf(starts, slice_keys(leaf.lasts, 0, size), values))
                at += 1
            count: i64 = len(branch.mins)
            mins = slice_keys(branch.mins, 0, count)
            twin._branches.append(twin._new_branch(mins, slice_keys(branch.bounds, 0, count), leaves))
        assert at == len(runs), f"{len(runs)} runs for {at}"
        twin._branch = twin._branches[0]
        twin._leaf = twin._branch.leaves[0]
        twin.count = self.count
        return twin

    def preallocate(self, start: int, end: int) -> int:
        """How many nodes store(), insert() or erase() of [start, end) makes at most."""
        last = to_key(end - 1)
        first = self._check(start, last)
        if self.count and first <= self._mins[0] and last >= self._branches[len(self._branches) - 1].last():
            return 2
        self._seek(first)
        need = self._shared_here()
        at_edge = self._full_here()
        leaf = self._leaf
        # Where the position is after emptying: on the entry above, or if there is none behind the entry below.
        if last == HIGHEST or not self._seek(last + 1):
            self._seek_before(start)
        if self._leaf is not leaf:
            need += self._shared_here()
            at_edge = max(at_edge, self._full_here())
        # Nodes that become small may be joined to neighbours that have to be copied for it.
        return need + at_edge + (5 if self._shared else 0)

    def _full_here(self) -> int:
        """How many new nodes two entries more in the leaf at the position can take."""
        if len(self._leaf.starts) + 2 <= LEAF_SIZE:
            return 0
        return 1 if len(self._branch.leaves) < BRANCH_SIZE else 2

    def _shared_here(self) -> int:
        """How many of the two nodes at the position belong to another tree as well."""
        if self._leaf.owner is self._owner:
            return 0
        return 1 if self._branch.owner is self._owner else 2

    def _check(self, start: int, last: i64) -> i64:
        """The key of start, which must not be above last."""
        first = to_key(start)
        if first > last:
            raise ValueError(f"[{start:#x}, {to_address(last) + 1:#x}) is empty")
        return first
