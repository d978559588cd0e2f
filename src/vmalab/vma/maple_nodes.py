"""The nodes of the range tree: three levels of flat arrays, and the changes that keep them in order.

Three levels, always::

    tree     mins  bounds  branches     as many branches as it takes
    Branch   mins  bounds  leaves       at most 128 leaves
    Leaf     starts  lasts  values      at most 60 entries

``mins`` holds the first key of each child, and for the first of all the lowest that there is, so a search touches
nothing but arrays.  ``bounds`` holds, for each child, a number that no gap in front of any of its entries exceeds.  It
is an upper bound, not the truth: a gap that grows raises it at once, a gap that shrinks leaves it, and a search that
finds nothing behind it lowers it to the truth.  So no change rescans anything.  The gap above the last entry is in no
bound; searches look at it by itself.

A duplicate shares all nodes.  Each node names its owner, and a tree copies a node that it does not own before it
changes it.  Entries are held with inclusive bounds, start and last, because 2**64 has no key; see ``keys``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

from vmalab.vma.keys import (
    COMPILED,
    copy_keys,
    delete_keys,
    distance,
    first_above,
    first_above_far,
    first_at_least,
    first_at_least_far,
    insert_key,
    join_keys,
    lowest,
    no_keys,
    one_key,
    slice_keys,
    to_address,
    to_key,
)

if TYPE_CHECKING:
    from mypy_extensions import i64

    from vmalab.vma.keys import Keys

T = TypeVar("T")

LEAF_SIZE: Final = 60
"""The most entries that a leaf holds: with one more its arrays are the largest that Python's own allocator makes."""

SMALL: Final = LEAF_SIZE >> 2
"""Leaves with fewer entries are joined to others."""

BRANCH_SIZE: Final = 128
"""The most leaves that a branch holds."""


@final
class Owner:
    """Stands for one tree in the nodes that only that tree may change."""

    __slots__ = ()


@final
class Leaf:
    """A run of neighbouring entries.  Not generic, nor is Branch: compiled, that costs a check at each access."""

    __slots__ = ("lasts", "owner", "starts", "values")

    def __init__(self, owner: Owner, starts: Keys, lasts: Keys, values: list[Any]) -> None:
        self.owner: Owner = owner
        self.starts: Keys = starts
        self.lasts: Keys = lasts
        self.values: list[Any] = values


@final
class Branch:
    """A run of neighbouring leaves."""

    __slots__ = ("bounds", "leaves", "mins", "owner")

    def __init__(self, owner: Owner, mins: Keys, bounds: Keys, leaves: list[Leaf]) -> None:
        self.owner: Owner = owner
        self.mins: Keys = mins
        self.bounds: Keys = bounds
        self.leaves: list[Leaf] = leaves

    def last(self) -> i64:
        """The last key of the last entry."""
        lasts = self.leaves[len(self.leaves) - 1].lasts
        return lasts[len(lasts) - 1]


class Nodes(Generic[T]):
    """The levels of a range tree, and a position among the entries that searches leave and changes act on.

    The position is branch number b, leaf number c in it, entry number i in that.  i is one past the leaf's last entry
    only at the end of the tree, or where an entry is about to follow.
    """

    __slots__ = (
        "_b",
        "_bounds",
        "_branch",
        "_branches",
        "_c",
        "_i",
        "_leaf",
        "_mins",
        "_owner",
        "_shared",
        "count",
        "generation",
        "nodes_allocated",
    )

    def __init__(self) -> None:
        self._owner: Owner = Owner()
        self._shared: bool = False
        self._leaf: Leaf = Leaf(self._owner, no_keys(), no_keys(), [])
        self._branch: Branch = Branch(self._owner, one_key(lowest()), one_key(0), [self._leaf])
        self._mins: Keys = one_key(lowest())
        self._bounds: Keys = one_key(0)
        self._branches: list[Branch] = [self._branch]
        self._b: i64 = 0
        self._c: i64 = 0
        self._i: i64 = 0
        self.count: int = 0
        """How many entries there are."""
        self.generation: i64 = 0
        """Changes whenever the tree does."""
        self.nodes_allocated: int = 0
        """How many nodes this tree has made since it was."""

    # -- position ------------------------------------------------------------------------------------------------------

    def _seek(self, key: i64) -> bool:
        """Put the position on the first entry whose last is at least key.  False, and at the end, if there is none."""
        leaf = self._leaf
        lasts = leaf.lasts
        size: i64 = len(lasts)
        if COMPILED:
            # Most searches are where the last one was, or beside it.
            i: i64 = self._i
            if 0 < i < size:
                if key <= lasts[i]:
                    if lasts[i - 1] < key:
                        return True
                    if i > 1 and lasts[i - 2] < key:
                        self._i = i - 1
                        return True
                elif i + 1 < size and key <= lasts[i + 1]:
                    self._i = i + 1
                    return True
            if size > 0:
                if key > lasts[size - 1]:
                    if self._c + 1 == len(self._branch.leaves) and self._b + 1 == len(self._branches):
                        self._i = size
                        return False
                elif key >= leaf.starts[0] or (self._c == 0 and self._b == 0):
                    self._i = first_at_least(lasts, key)
                    return True
        else:
            i = first_at_least(lasts, key)
            if 0 < i < size:
                self._i = i
                return True
        return self._descend(key)

    def _descend(self, key: i64) -> bool:
        """_seek() from the top."""
        b: i64 = 0
        c: i64 = 0
        i: i64 = 0
        branch = self._branch
        if len(self._branches) == 1:
            c = first_above(branch.mins, key) - 1
            leaf = branch.leaves[c]
            size = len(leaf.values)
            i = first_at_least(leaf.lasts, key)
        else:
            b = first_above_far(self._mins, key) - 1
            branch = self._branches[b]
            c = first_above_far(branch.mins, key) - 1
            leaf = branch.leaves[c]
            # The values are asked for before they are needed: here much of the time goes for waiting.
            size = len(leaf.values)
            i = first_at_least_far(leaf.lasts, key)
        self._b = b
        self._branch = branch
        self._c = c
        self._leaf = leaf
        self._i = i
        return i < size or self._next_leaf()

    def _next_leaf(self) -> bool:
        """Put the position on the first entry of the next leaf, or leave it and say False."""
        branch = self._branch
        c = self._c + 1
        if c >= len(branch.leaves):
            if self._b + 1 >= len(self._branches):
                return False
            self._b += 1
            branch = self._branches[self._b]
            self._branch = branch
            c = 0
        self._c = c
        self._leaf = branch.leaves[c]
        self._i = 0
        return True

    def _previous(self) -> bool:
        """Put the position on the entry before it, or leave it and say False."""
        if self._i > 0:
            self._i -= 1
            return True
        if self._c > 0:
            self._c -= 1
        elif self._b > 0:
            self._b -= 1
            self._branch = self._branches[self._b]
            self._c = len(self._branch.leaves) - 1
        else:
            return False
        self._leaf = self._branch.leaves[self._c]
        self._i = len(self._leaf.lasts) - 1
        return True

    def _seek_before(self, addr: int) -> bool:
        """Put the position on the last entry that starts below an address."""
        if addr <= 0:
            if addr < 0:
                to_key(addr)
            return False
        key = to_key(addr - 1)
        return (self._seek(key) and self._leaf.starts[self._i] <= key) or self._previous()

    def _below(self) -> i64:
        """The first key above the entry before the position.  Not to be asked where that entry reaches 2**64."""
        i = self._i
        if i > 0:
            return self._leaf.lasts[i - 1] + 1
        return self._below_leaf(self._b, self._c)

    def _below_leaf(self, b: i64, c: i64) -> i64:
        """The first key above the entries before leaf c of branch b."""
        if c > 0:
            lasts = self._branches[b].leaves[c - 1].lasts
            return lasts[len(lasts) - 1] + 1
        if b > 0:
            return self._branches[b - 1].last() + 1
        return lowest()

    def _here(self) -> tuple[int, int, T]:
        """The entry at the position."""
        leaf = self._leaf
        i = self._i
        return to_address(leaf.starts[i]), to_address(leaf.lasts[i]) + 1, leaf.values[i]

    def _start_after(self) -> i64:
        """Where the entry after the one at the position starts; the lowest key if there is none."""
        i = self._i + 1
        starts = self._leaf.starts
        if i < len(starts):
            return starts[i]
        if self._c + 1 < len(self._branch.leaves):
            return self._branch.mins[self._c + 1]
        if self._b + 1 < len(self._branches):
            return self._mins[self._b + 1]
        return lowest()

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _own_branch(self, b: i64) -> Branch:
        """Branch b, copied first if it belongs to another tree as well."""
        branch = self._branches[b]
        if branch.owner is self._owner:
            return branch
        size: i64 = len(branch.mins)
        branch = self._new_branch(
            slice_keys(branch.mins, 0, size), slice_keys(branch.bounds, 0, size), branch.leaves[:]
        )
        self._branches[b] = branch
        if b == self._b:
            self._branch = branch
        return branch

    def _own_leaf(self) -> Leaf:
        """The leaf at the position, copied first if it belongs to another tree as well; its branch too."""
        leaf = self._leaf
        if leaf.owner is self._owner:
            return leaf
        branch = self._own_branch(self._b)
        leaf = self._part(leaf, 0, len(leaf.starts))
        branch.leaves[self._c] = leaf
        self._leaf = leaf
        return leaf

    def _new_leaf(self, starts: Keys, lasts: Keys, values: list[T]) -> Leaf:
        self.nodes_allocated += 1
        return Leaf(self._owner, starts, lasts, values)

    def _part(self, leaf: Leaf, start: i64, stop: i64) -> Leaf:
        """A new leaf of entries [start, stop) of another, with room for as many as it can hold."""
        values = leaf.values[start:stop]
        # A list that has grown once has room for more.
        values.append(None)
        values.pop()
        room = LEAF_SIZE + 1
        return self._new_leaf(
            copy_keys(leaf.starts, start, stop, room), copy_keys(leaf.lasts, start, stop, room), values
        )

    def _new_branch(self, mins: Keys, bounds: Keys, leaves: list[Leaf]) -> Branch:
        self.nodes_allocated += 1
        return Branch(self._owner, mins, bounds, leaves)

    def _raise_bound(self, start: i64, below: i64) -> None:
        """Note that the entry at the position, or about to be there, has the room [below, start) in front."""
        gap = distance(below, start)
        if gap > self._branch.bounds[self._c]:
            self._own_branch(self._b).bounds[self._c] = gap
        if gap > self._bounds[self._b]:
            self._bounds[self._b] = gap

    def _set_min(self, start: i64) -> None:
        """Note where the first entry of the leaf at the position starts."""
        c = self._c
        if c == 0 and self._b == 0:
            start = lowest()
        branch = self._branch
        if branch.mins[c] != start:
            branch = branch if branch.owner is self._owner else self._own_branch(self._b)
            branch.mins[c] = start
        if c == 0:
            self._mins[self._b] = start

    def _insert_here(self, start: i64, last: i64, value: T) -> None:
        """Insert an entry before the position, which then stands on it.  There must be room."""
        below = self._below()
        leaf = self._own_leaf()
        i = self._i
        leaf.starts = insert_key(leaf.starts, i, start)
        leaf.lasts = insert_key(leaf.lasts, i, last)
        leaf.values.insert(i, value)
        self.count += 1
        if i == 0:
            self._set_min(start)
        self._raise_bound(start, below)
        if len(leaf.starts) > LEAF_SIZE:
            self._split_leaf()

    def _split_leaf(self) -> None:
        """Move the upper part of the leaf at the position to a new one.  The position stays on its entry."""
        leaf = self._leaf
        branch = self._branch
        size: i64 = len(leaf.starts)
        half = size >> 1
        # An entry at the edge is likely to be followed by more on that side: leave the room there.
        if self._i == 0:
            half = size >> 3
        elif self._i == size - 1:
            half = size - (size >> 3)
        upper = self._part(leaf, half, size)
        leaf.starts = delete_keys(leaf.starts, half, size)
        leaf.lasts = delete_keys(leaf.lasts, half, size)
        del leaf.values[half:]
        c = self._c + 1
        branch.mins = insert_key(branch.mins, c, upper.starts[0])
        branch.bounds = insert_key(branch.bounds, c, branch.bounds[c - 1])
        branch.leaves.insert(c, upper)
        if self._i >= half:
            self._i -= half
            self._c = c
            self._leaf = upper
        if len(branch.leaves) > BRANCH_SIZE:
            self._split_branch()

    def _split_branch(self) -> None:
        """Move the upper part of the branch at the position to a new one.  The position stays on its entry."""
        branch = self._branch
        size: i64 = len(branch.leaves)
        half = size >> 1
        if self._c <= 1:
            half = size >> 3
        elif self._c == size - 1:
            half = size - (size >> 3)
        upper = self._new_branch(
            slice_keys(branch.mins, half, size), slice_keys(branch.bounds, half, size), branch.leaves[half:]
        )
        branch.mins = delete_keys(branch.mins, half, size)
        branch.bounds = delete_keys(branch.bounds, half, size)
        del branch.leaves[half:]
        b = self._b + 1
        self._mins = insert_key(self._mins, b, upper.mins[0])
        self._bounds = insert_key(self._bounds, b, self._bounds[b - 1])
        self._branches.insert(b, upper)
        if self._c >= half:
            self._c -= half
            self._b = b
            self._branch = upper

    # -- emptying ------------------------------------------------------------------------------------------------------

    def _empty(self, start: i64, last: i64) -> None:
        """Empty [start, last]; the position is on an entry that overlaps it, the first, and then on the one above."""
        leaf = self._leaf
        i = self._i
        if leaf.starts[i] == start and leaf.lasts[i] == last and len(leaf.starts) > 1:
            self._erase_one()
            return
        if leaf.starts[i] < start:
            leaf = self._own_leaf()
            old_last = leaf.lasts[i]
            leaf.lasts[i] = start - 1
            self._i = i + 1
            if old_last > last:
                self._insert_here(last + 1, old_last, leaf.values[i])
                return
            if self._i == len(leaf.starts) and not self._next_leaf():
                return
        self._erase_whole(last)
        if self._i < len(self._leaf.starts):
            first = self._leaf.starts[self._i]
            if first <= last:
                first = last + 1
                self._own_leaf().starts[self._i] = first
            if self._i == 0:
                self._set_min(first)
            self._raise_bound(first, self._below())
        self._join()

    def _erase_one(self) -> None:
        """Erase the entry at the position, which is not the leaf's only one; the position is then on the one above."""
        below = self._below()
        leaf = self._own_leaf()
        i = self._i
        leaf.starts = delete_keys(leaf.starts, i, i + 1)
        leaf.lasts = delete_keys(leaf.lasts, i, i + 1)
        leaf.values.pop(i)
        self.count -= 1
        if i < len(leaf.starts):
            first = leaf.starts[i]
            if i == 0:
                self._set_min(first)
            self._raise_bound(first, below)
        elif self._next_leaf():
            self._raise_bound(self._leaf.starts[0], below)
        self._join()

    def _erase_whole(self, last: i64) -> None:
        """Erase the entries from the position on that end at or below last."""
        while True:
            leaf = self._leaf
            i = self._i
            size: i64 = len(leaf.lasts)
            if i == 0 and leaf.lasts[size - 1] <= last:
                more = self._drop_branch() if self._c == 0 and self._branch.last() <= last else self._drop_leaf()
                if not more:
                    return
                continue
            j = first_above(leaf.lasts, last)
            if j > i:
                leaf = self._own_leaf()
                leaf.starts = delete_keys(leaf.starts, i, j)
                leaf.lasts = delete_keys(leaf.lasts, i, j)
                del leaf.values[i:j]
                self.count -= j - i
            if j < size or not self._next_leaf():
                return

    def _drop_leaf(self) -> bool:
        """Drop the leaf at the position, which is not the branch's only one, and go to the next.

        False, and at the end of the tree, if there is no next one.  Where the next one is now the branch's first, the
        level above learns its first key from _set_min().
        """
        c = self._c
        branch = self._own_branch(self._b)
        self.count -= len(self._leaf.starts)
        branch.mins = delete_keys(branch.mins, c, c + 1)
        branch.bounds = delete_keys(branch.bounds, c, c + 1)
        branch.leaves.pop(c)
        self._i = 0
        if c < len(branch.leaves):
            self._leaf = branch.leaves[c]
            return True
        self._c = c - 1
        self._leaf = branch.leaves[c - 1]
        self._i = len(self._leaf.starts)
        return self._next_leaf()

    def _drop_branch(self) -> bool:
        """Drop the branch at the position and go to the next.  False, and at the end of the tree, if there is none."""
        b = self._b
        if len(self._branches) == 1:
            self.clear()
            return False
        for leaf in self._branch.leaves:
            self.count -= len(leaf.starts)
        self._mins = delete_keys(self._mins, b, b + 1)
        self._bounds = delete_keys(self._bounds, b, b + 1)
        self._branches.pop(b)
        more = b < len(self._branches)
        if not more:
            b -= 1
        self._b = b
        self._branch = self._branches[b]
        self._c = 0 if more else len(self._branch.leaves) - 1
        self._leaf = self._branch.leaves[self._c]
        self._i = 0 if more else len(self._leaf.starts)
        return more

    def _join(self) -> None:
        """Join what has become small around the position."""
        c = self._c
        leaves = self._branch.leaves
        if len(leaves) == 1 and len(self._branches) == 1:
            return
        # The leaf before has changed only where the position is at the edge to it.
        if len(self._leaf.starts) >= SMALL and (c == 0 or self._i > 0 or len(leaves[c - 1].starts) >= SMALL):
            return
        self._join_leaf(c)
        self._join_leaf(self._c - 1)
        self._join_leaf(self._c - 2)
        if len(self._branches) > 1 and len(self._branch.leaves) < BRANCH_SIZE >> 2:
            self._join_branch(self._b)
            self._join_branch(self._b - 1)

    def _join_leaf(self, c: i64) -> None:
        """Join leaf c of the branch at the position with the next one, if both together leave much room."""
        branch = self._branch
        if c < 0 or c + 1 >= len(branch.leaves):
            return
        left = branch.leaves[c]
        right = branch.leaves[c + 1]
        size: i64 = len(left.starts)
        if size + len(right.starts) > LEAF_SIZE >> 1:
            return
        branch = self._own_branch(self._b)
        if left.owner is not self._owner:
            left = self._part(left, 0, size)
            branch.leaves[c] = left
        left.starts = join_keys(left.starts, right.starts)
        left.lasts = join_keys(left.lasts, right.lasts)
        left.values.extend(right.values)
        if branch.bounds[c + 1] > branch.bounds[c]:
            branch.bounds[c] = branch.bounds[c + 1]
        branch.mins = delete_keys(branch.mins, c + 1, c + 2)
        branch.bounds = delete_keys(branch.bounds, c + 1, c + 2)
        branch.leaves.pop(c + 1)
        if self._c == c + 1:
            self._i += size
        if self._c > c:
            self._c -= 1
        self._leaf = branch.leaves[self._c]

    def _join_branch(self, b: i64) -> None:
        """Join branch b with the next one, if both together leave much room."""
        if b < 0 or b + 1 >= len(self._branches):
            return
        size: i64 = len(self._branches[b].leaves)
        right = self._branches[b + 1]
        if size + len(right.leaves) > BRANCH_SIZE >> 1:
            return
        left = self._own_branch(b)
        left.mins = join_keys(left.mins, right.mins)
        left.bounds = join_keys(left.bounds, right.bounds)
        left.leaves.extend(right.leaves)
        if self._bounds[b + 1] > self._bounds[b]:
            self._bounds[b] = self._bounds[b + 1]
        self._mins = delete_keys(self._mins, b + 1, b + 2)
        self._bounds = delete_keys(self._bounds, b + 1, b + 2)
        self._branches.pop(b + 1)
        if self._b == b + 1:
            self._c += size
        if self._b > b:
            self._b -= 1
        self._branch = self._branches[self._b]

    def clear(self) -> None:
        """Empty the tree."""
        self.generation += 1
        self.count = 0
        self._owner = Owner()
        self._shared = False
        self._leaf = self._new_leaf(no_keys(), no_keys(), [])
        self._branch = self._new_branch(one_key(lowest()), one_key(0), [self._leaf])
        self._mins = one_key(lowest())
        self._bounds = one_key(0)
        self._branches = [self._branch]
        self._b = self._c = self._i = 0
