"""The range tree: what the kernel's maple tree does, in flat arrays.

A tree maps half-open ranges of the unsigned 64-bit space to values.  Ranges do not overlap, are in order, and may reach
from 0 to 2**64.  Neighbours with the same value stay two entries: whoever uses the tree decides what to join.
What looks is in ``maple_search``, how it is made in ``maple_nodes``.

Interpreted, erase() and absorb() leave a small leaf as it is but where its size is a multiple of eight: to join it to
another costs more than to search one leaf more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, final

from vmalab.vma.keys import (
    ADDRESS_END,
    COMPILED,
    HIGHEST,
    HUGE,
    delete_keys,
    distance,
    first_above,
    first_at_least,
    insert_key,
    largest,
    largest_gap,
    lowest,
    slice_keys,
    to_address,
    to_key,
)
from vmalab.vma.maple_ceilings import Ceilings
from vmalab.vma.maple_nodes import BRANCH_SIZE, LEAF_SIZE, SMALL, Leaf, Owner
from vmalab.vma.maple_search import Searches

if not COMPILED:
    from bisect import bisect_left

if TYPE_CHECKING:
    from mypy_extensions import i64

    from vmalab.vma.keys import Keys

T = TypeVar("T")


@final
class MapleTree(Searches[T]):
    """Non-overlapping half-open ranges [start, end) of the 64-bit space, each with a value.

    Addresses are plain integers with 0 <= start < end <= 2**64; anything else raises ValueError.  A value may be
    anything but None, which is how the searches say that there is nothing.
    """

    __slots__ = ()

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
        if not COMPILED:
            leaf = self._leaf
            lasts = leaf.lasts
            i = bisect_left(lasts, start)
            if (
                i < len(lasts) < LEAF_SIZE
                and start < end <= leaf.starts[i]
                and (i or (start >= 0 and not (self._b or self._c)))
                and leaf.owner is self._owner
            ):
                leaf.starts.insert(i, start)
                lasts.insert(i, end - 1)
                leaf.values.insert(i, value)
                self.count += 1
                self.generation += 1
                return True
        last = to_key(end - 1)
        first = self._check(start, last)
        if self._seek(first) and self._leaf.starts[self._i] <= last:
            return False
        self.generation += 1
        self._insert_here(first, last, value)
        return True

    def erase(self, start: int, end: int) -> None:
        """Empty [start, end).  Entries inside go, entries that reach out of it are trimmed or split in two."""
        if not COMPILED:
            leaf = self._leaf
            starts = leaf.starts
            lasts = leaf.lasts
            i = bisect_left(starts, start)
            j = bisect_left(starts, end, i)
            if (
                i < j < len(starts)
                and lasts[j - 1] < end
                and (lasts[i - 1] < start if i else (start >= 0 and not (self._b or self._c)))
                and (len(starts) - j + i >= SMALL or len(starts) & 7 or self.count == len(starts))
                and leaf.owner is self._owner
            ):
                del starts[i:j], lasts[i:j], leaf.values[i:j]
                self.generation += 1
                self.count -= j - i
                above = starts[i]
                gap = above - lasts[i - 1] - 1 if i else above
                if gap > self._branch.bounds[self._c]:
                    self._raise_bound(above, above - gap)
                self._ceilings.grew(gap, above - 1)
                return
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
        if not COMPILED:
            leaf = self._leaf
            starts = leaf.starts
            lasts = leaf.lasts
            i = bisect_left(starts, old_start)
            # Where neither end draws back, no gap grows.
            if 0 < i < len(starts) - 1 and starts[i] == old_start and leaf.owner is self._owner:
                if lasts[i - 1] < new_start <= old_start and lasts[i] < new_end <= starts[i + 1]:
                    self.generation += 1
                    starts[i] = new_start
                    lasts[i] = new_end - 1
                    return
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
        if not COMPILED:
            leaf = self._leaf
            lasts = leaf.lasts
            i = bisect_left(lasts, at)
            if i < len(lasts) < LEAF_SIZE and leaf.starts[i] < at and leaf.owner is self._owner:
                self.generation += 1
                self.count += 1
                leaf.starts.insert(i + 1, at)
                lasts.insert(i, at - 1)
                leaf.values.insert(i if below else i + 1, value)
                return
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
        if not COMPILED:
            leaf = self._leaf
            starts = leaf.starts
            i = bisect_left(starts, old)
            if 0 < i < len(starts) and starts[i] == old and leaf.owner is self._owner:
                lasts = leaf.lasts
                if lasts[i - 1] == old - 1 and starts[i - 1] < new <= lasts[i]:
                    self.generation += 1
                    starts[i] = new
                    lasts[i - 1] = new - 1
                    return
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
        if not COMPILED:
            leaf = self._leaf
            starts = leaf.starts
            lasts = leaf.lasts
            i = bisect_left(starts, start)
            j = bisect_left(starts, end, i)
            k = bisect_left(starts, of, i)
            if (
                i <= k < j < len(starts)
                and starts[k] == of
                and (lasts[i - 1] < start if i else (start >= 0 and not (self._b or self._c)))
                and lasts[j - 1] < end
            ):
                if not (len(starts) - j + i >= SMALL or len(starts) & 7) or leaf.owner is not self._owner:
                    self._i = i
                    self._absorb_here(start, end - 1, k, j)
                    return
                self.generation += 1
                self.count -= j - i - 1
                starts[i:j] = [start]
                lasts[i:j] = [end - 1]
                leaf.values[i:j] = [leaf.values[k]]
                return
        if COMPILED:
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
        self._check(start, to_key(end - 1))
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
        if (
            self.count
            and first <= self._branches[0].leaves[0].starts[0]
            and last >= self._branches[len(self._branches) - 1].last()
        ):
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

    # -- checking ------------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Check everything about the tree.  Raises AssertionError with the fault and dump()."""
        if fault := self._fault():
            raise AssertionError(f"range tree: {fault}\n{self.dump()}")

    def _fault(self) -> str:
        """The first thing that is wrong with the tree; empty if nothing is."""
        branches = self._branches
        if not branches or len(self._mins) != len(branches) or len(self._bounds) != len(branches):
            return "the top level's arrays differ in length"
        count = 0
        for b in range(len(branches)):
            branch = branches[b]
            if not branch.leaves or len(branch.leaves) > BRANCH_SIZE:
                return f"branch {b} has {len(branch.leaves)} leaves"
            if len(branch.mins) != len(branch.leaves) or len(branch.bounds) != len(branch.leaves):
                return f"branch {b}: its arrays differ in length"
            for c in range(len(branch.leaves)):
                fault = self._leaf_fault(b, c)
                if fault:
                    return f"branch {b}, leaf {c}: {fault}"
                count += len(branch.leaves[c].values)
            if self._mins[b] != branch.mins[0]:
                return f"branch {b}: its first key is wrong"
            if self._bounds[b] < largest(branch.bounds):
                return f"branch {b}: a gap is larger than its bound"
        if count != self.count:
            return f"{count} entries, but the count is {self.count}"
        return self._ceilings.fault(self.gaps(0, ADDRESS_END)) if self._ceilings.known() else ""

    def check_near(self, addr: int) -> None:
        """Check the leaf around an address, and its bounds in the levels above: a part of validate(), at small cost.

        Raises AssertionError with the fault and dump().
        """
        self._seek(to_key(addr))
        b = self._b
        c = self._c
        branch = self._branch
        fault = self._leaf_fault(b, c)
        if not fault and self._bounds[b] < branch.bounds[c]:
            fault = "a gap is larger than the bound of the branch"
        if fault:
            raise AssertionError(f"range tree: branch {b}, leaf {c}: {fault}\n{self.dump()}")

    def _leaf_fault(self, b: i64, c: i64) -> str:
        """The first thing that is wrong with a leaf; empty if nothing is."""
        branch = self._branches[b]
        leaf = branch.leaves[c]
        size: i64 = len(leaf.values)
        if size == 0:
            return "it is empty" if self.count else ""
        if size > LEAF_SIZE or len(leaf.starts) != size or len(leaf.lasts) != size:
            return f"{len(leaf.starts)} starts, {len(leaf.lasts)} lasts, {size} values"
        if leaf.owner is self._owner and branch.owner is not self._owner:
            return "it is owned and its branch is not"
        if branch.mins[c] != (leaf.starts[0] if b or c else lowest()):
            return "its first key is wrong"
        below = self._below_leaf(b, c)
        if below > leaf.starts[0]:
            return "it overlaps the one before"
        i: i64 = 0
        while i < size:
            if leaf.lasts[i] < leaf.starts[i] or (i > 0 and leaf.starts[i] <= leaf.lasts[i - 1]):
                return f"entry {i} is out of order"
            i += 1
        if largest_gap(leaf.starts, leaf.lasts, below) > branch.bounds[c]:
            return "a gap is larger than its bound"
        return ""

    def dump(self) -> str:
        """The tree as text: a line for each branch, leaf and entry.  Works on a broken tree too."""
        lines = [f"{self.count} entries, {len(self._branches)} branches"]
        for b, branch in enumerate(self._branches):
            lines.append(f"branch {b}: {len(branch.leaves)} leaves{self._remark(self._bounds, b, branch.owner)}")
            for c, leaf in enumerate(branch.leaves):
                lines.append(f"  leaf {c}: {len(leaf.values)} entries{self._remark(branch.bounds, c, leaf.owner)}")
                for i in range(min(len(leaf.starts), len(leaf.lasts))):
                    start = to_address(leaf.starts[i])
                    end = to_address(leaf.lasts[i]) + 1
                    value = repr(leaf.values[i]) if i < len(leaf.values) else "no value"
                    lines.append(f"    [{start:#x}, {end:#x}) {value}")
        return "\n".join(lines)

    def _remark(self, bounds: Keys, i: int, owner: Owner) -> str:
        """What dump() says of a node: its bound, and whether it is shared with another tree."""
        bound = f", gaps <= {bounds[i]:#x}" if i < len(bounds) else ", no bound"
        return bound if owner is self._owner else bound + ", shared"
