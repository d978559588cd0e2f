"""A cursor over the range tree: the kernel's VMA iterator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, final

from vmalab.vma.keys import ADDRESS_END, to_address, to_key
from vmalab.vma.maple import MapleTree
from vmalab.vma.maple_nodes import Leaf

if TYPE_CHECKING:
    from mypy_extensions import i64

T = TypeVar("T")


@final
class Cursor(Generic[T]):
    """Walks over the entries and the gaps of a tree.

    A cursor stands on an entry or a gap, [start, end), with value, which is None on a gap.  It holds addresses, so the
    tree may change under it: start, end and value stay what they were when the cursor last looked, here() looks again,
    and each step goes to the nearest entry or gap that the tree now has beyond those bounds, be it in part.
    """

    __slots__ = ("_generation", "_i", "_leaf", "address", "end", "start", "tree", "value")

    def __init__(self, tree: MapleTree[T], addr: int = 0) -> None:
        self.tree: MapleTree[T] = tree
        self.address: int = addr
        """The address that here() looks at: where seek() went, or the start of what a step went to."""
        self.start: int = addr
        self.end: int = addr
        self.value: T | None = None
        self._leaf: Leaf = tree._leaf
        self._i: i64 = 0
        self._generation: i64 = -1
        self.seek(addr)

    def seek(self, addr: int) -> T | None:
        """Stand on what holds an address.  Its value, or None on a gap."""
        tree = self.tree
        to_key(addr)
        found = tree.find_range(addr)
        self.address = addr
        if found is not None and found[0] <= addr:
            self._stand(found)
            return found[2]
        self.end = ADDRESS_END if found is None else found[0]
        before = tree.find_before_range(addr)
        self.start = 0 if before is None else before[1]
        self.value = None
        self._generation = -1
        return None

    def here(self) -> T | None:
        """Look again at the address that the cursor stands on.  The value there, or None on a gap."""
        return self.seek(self.address)

    def next(self) -> T | None:
        """Go to the next entry.  None, and the cursor stays, if there is none."""
        i = self._i + 1
        leaf = self._leaf
        if self._generation == self.tree.generation and i < len(leaf.starts):
            return self._step(i)
        found = self.tree.find_range(self.end)
        if found is None:
            return None
        self.address = found[0]
        self._stand(found)
        return found[2]

    def prev(self) -> T | None:
        """Go to the entry before.  None, and the cursor stays, if there is none."""
        i = self._i - 1
        if self._generation == self.tree.generation and i >= 0:
            return self._step(i)
        found = self.tree.find_before_range(self.start)
        if found is None:
            return None
        self.address = found[0]
        self._stand(found)
        return found[2]

    def next_gap(self) -> bool:
        """Go to the next gap.  False, and the cursor stays, if there is none."""
        return self._go_to_gap(self.tree.lowest_gap(1, self.end, ADDRESS_END))

    def prev_gap(self) -> bool:
        """Go to the gap before.  False, and the cursor stays, if there is none."""
        return self._go_to_gap(self.tree.highest_gap(1, 0, self.start))

    def _go_to_gap(self, addr: int) -> bool:
        if addr < 0:
            return False
        self.seek(addr)
        self.address = self.start
        return True

    def _stand(self, found: tuple[int, int, T]) -> None:
        """Stand on the entry that the tree has just found."""
        self.start, self.end, self.value = found
        self._leaf = self.tree._leaf
        self._i = self.tree._i
        self._generation = self.tree.generation

    def _step(self, i: i64) -> T:
        """Stand on another entry of the same leaf."""
        leaf = self._leaf
        value: T = leaf.values[i]
        self.start = to_address(leaf.starts[i])
        self.end = to_address(leaf.lasts[i]) + 1
        self.address = self.start
        self.value = value
        self._i = i
        return value
