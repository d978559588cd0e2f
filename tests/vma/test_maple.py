"""The range tree in its hard cases, one by one; random operations are in test_maple_model."""

import pytest

from vmalab.vma.keys import to_address
from vmalab.vma.maple import MapleTree
from vmalab.vma.maple_nodes import BRANCH_SIZE, LEAF_SIZE

END = 1 << 64
MANY = LEAF_SIZE * BRANCH_SIZE + 1000
"""Entries enough for more than one branch."""


def tree_of(*ranges: tuple[int, int, str]) -> MapleTree[str]:
    tree: MapleTree[str] = MapleTree()
    for start, end, value in ranges:
        tree.store(start, end, value)
        tree.validate()
    return tree


def row(count: int, step: int = 10, size: int = 6) -> MapleTree[int]:
    """Entries [0, size), [step, step + size) and so on, whose values count up."""
    tree: MapleTree[int] = MapleTree()
    for i in range(count):
        assert tree.insert(i * step, i * step + size, i)
    tree.validate()
    return tree


class TestBounds:
    """At 0, at 2**64, and outside."""

    def test_empty_tree(self) -> None:
        tree: MapleTree[str] = MapleTree()
        tree.validate()
        assert (tree.count, tree.values(), tree.ranges(), tree.walk(0, END)) == (0, [], [], [])
        assert tree.load(0) is None
        assert tree.find(0) is None
        assert tree.find(END) is None
        assert tree.find_range(0) is None
        assert tree.find_range(END) is None
        assert tree.find_before(END) is None
        assert tree.find_before(0) is None
        assert tree.find_before_range(END) is None
        assert tree.gaps(0, END) == [(0, END)]
        assert tree.gaps(5, 5) == []
        assert tree.walk(5, 5) == []
        assert tree.is_empty(5, 5)
        assert tree.is_empty(0, END)
        assert tree.highest_gap(END, 0, END) == tree.lowest_gap(END, 0, END) == 0
        assert tree.highest_gap(1, 0, END) == END - 1
        tree.erase(0, END)
        tree.validate()

    def test_the_whole_space(self) -> None:
        tree = tree_of((0, END, "a"))
        assert tree.ranges() == [(0, END, "a")]
        assert tree.load(0) == tree.load(END - 1) == tree.find(END - 1) == tree.find_before(1) == "a"
        assert tree.find_before_range(END) == tree.find_range(0) == (0, END, "a")
        assert tree.gaps(0, END) == []
        for size in (1, 1 << 62, (1 << 63) - 2, (1 << 63) - 1, 1 << 63, END):
            assert tree.highest_gap(size, 0, END) == tree.lowest_gap(size, 0, END) == -1
        tree.erase(1 << 63, (1 << 63) + 1)
        tree.validate()
        assert tree.ranges() == [(0, 1 << 63, "a"), ((1 << 63) + 1, END, "a")]
        assert tree.highest_gap(1, 0, END) == tree.lowest_gap(1, 0, END) == 1 << 63

    def test_first_and_last_address(self) -> None:
        tree = tree_of((0, 1, "a"), (END - 1, END, "z"))
        assert tree.ranges() == [(0, 1, "a"), (END - 1, END, "z")]
        assert tree.find(1) == "z"
        assert tree.find_before(END - 1) == "a"
        assert tree.gaps(0, END) == [(1, END - 1)]
        assert tree.highest_gap(END - 2, 0, END) == tree.lowest_gap(END - 2, 0, END) == 1
        assert tree.highest_gap(END - 1, 0, END) == tree.lowest_gap(END - 1, 0, END) == -1
        assert tree.highest_gap(1, 0, 1) == tree.lowest_gap(1, END - 1, END) == -1
        tree.set_range(0, 0, END - 1)
        tree.set_range(END - 1, END - 1, END)
        tree.validate()
        assert tree.gaps(0, END) == []
        tree.set_range(0, 0, 1)
        tree.set_range(END - 1, 1, END)
        tree.validate()
        assert tree.ranges() == [(0, 1, "a"), (1, END, "z")]

    @pytest.mark.parametrize(
        ("start", "end"), [(-1, 5), (0, END + 1), (5, 5), (6, 5), (END, END), (0, 0), (END, END + 1)]
    )
    def test_refused(self, start: int, end: int) -> None:
        tree = tree_of((0, 10, "a"))
        with pytest.raises(ValueError, match=r"outside|empty"):
            tree.store(start, end, "b")
        with pytest.raises(ValueError, match=r"outside|empty"):
            tree.insert(start, end, "b")
        with pytest.raises(ValueError, match=r"outside|empty"):
            tree.erase(start, end)
        with pytest.raises(ValueError, match=r"outside|empty"):
            tree.preallocate(start, end)
        with pytest.raises(ValueError, match=r"outside|empty"):
            tree.set_range(0, start, end)
        tree.validate()
        assert tree.ranges() == [(0, 10, "a")]

    def test_refused_addresses(self) -> None:
        tree = tree_of((0, 10, "a"))
        for addr in (-1, END + 1):
            for look in (tree.load, tree.find, tree.find_before, tree.find_range, tree.find_before_range):
                with pytest.raises(ValueError, match="outside"):
                    look(addr)
        with pytest.raises(ValueError, match="outside"):
            tree.load(END)
        for search in (tree.highest_gap, tree.lowest_gap):
            with pytest.raises(ValueError, match="a gap of 0 bytes"):
                search(0, 0, END)
            assert search(5, 20, 10) == search(5, 20, 24) == -1
            for low, high in ((-1, 5), (0, END + 1)):
                with pytest.raises(ValueError, match="outside"):
                    search(5, low, high)

    def test_both_sides_of_an_address(self) -> None:
        """In the leaf of the search before, in another one, and beyond the last entry."""
        tree = row(5 * LEAF_SIZE)
        addresses = [0, 1, 5 * LEAF_SIZE * 10, END]
        addresses += [i * 10 + by for i in range(LEAF_SIZE, 5 * LEAF_SIZE, 7) for by in (0, 3, 6, 8)]
        for addr in addresses + addresses[::-1]:
            tree.find(addr * 3 % (50 * LEAF_SIZE))
            around = tree.around(addr)
            assert around == (tree.find_before(addr), tree.find(addr))


class TestStore:
    def test_split(self) -> None:
        tree = tree_of((0, 30, "a"), (10, 20, "b"))
        assert tree.ranges() == [(0, 10, "a"), (10, 20, "b"), (20, 30, "a")]

    def test_trim_both_sides(self) -> None:
        tree = tree_of((0, 10, "a"), (10, 20, "b"), (20, 30, "c"), (5, 25, "d"))
        assert tree.ranges() == [(0, 5, "a"), (5, 25, "d"), (25, 30, "c")]

    def test_exact(self) -> None:
        tree = tree_of((0, 10, "a"), (10, 20, "b"), (0, 10, "c"))
        assert tree.ranges() == [(0, 10, "c"), (10, 20, "b")]

    def test_adjacent_equal_values_stay_apart(self) -> None:
        tree = tree_of((0, 10, "a"), (10, 20, "a"), (20, 30, "a"))
        assert tree.count == 3
        tree.store(5, 15, "a")
        assert tree.ranges() == [(0, 5, "a"), (5, 15, "a"), (15, 20, "a"), (20, 30, "a")]
        assert tree.gaps(0, 30) == []

    def test_insert_refuses_overlap(self) -> None:
        tree = tree_of((10, 20, "a"))
        for start, end in ((0, 11), (19, 30), (12, 13), (0, 30), (10, 20)):
            assert not tree.insert(start, end, "b")
            assert not tree.is_empty(start, end)
        assert tree.insert(0, 10, "b")
        assert tree.insert(20, END, "c")
        tree.validate()
        assert tree.ranges() == [(0, 10, "b"), (10, 20, "a"), (20, END, "c")]

    @pytest.mark.parametrize("shift", range(-4, 14))
    @pytest.mark.parametrize("count", [3, LEAF_SIZE, 5 * LEAF_SIZE, 20 * LEAF_SIZE])
    def test_spanning(self, count: int, shift: int) -> None:
        """Over many entries and leaves, with the edges inside entries, at their bounds and in gaps."""
        tree = row(2 * count)
        start, end = 5 * count + shift, 15 * count - shift
        before = tree.ranges()
        tree.store(start, end, -1)
        tree.validate()
        expect = [(a, min(b, start), v) for a, b, v in before if a < start]
        expect += [(start, end, -1)]
        expect += [(max(a, end), b, v) for a, b, v in before if b > end]
        assert tree.ranges() == expect
        assert tree.count == len(expect)

    def test_spanning_branches(self) -> None:
        tree = row(MANY)
        assert len(tree._branches) > 1
        tree.store(15, MANY * 10 - 25, -1)
        tree.validate()
        assert tree.values() == [0, 1, -1, MANY - 3, MANY - 2, MANY - 1]
        assert tree.ranges()[2] == (15, MANY * 10 - 25, -1)
        assert len(tree._branches) == 1


class TestErase:
    def test_inside_one(self) -> None:
        tree = tree_of((0, 30, "a"))
        tree.erase(10, 20)
        tree.validate()
        assert tree.ranges() == [(0, 10, "a"), (20, 30, "a")]
        assert tree.gaps(0, 30) == [(10, 20)]

    def test_nothing_there(self) -> None:
        tree = tree_of((0, 10, "a"), (20, 30, "b"))
        generation = tree.generation
        tree.erase(10, 20)
        tree.erase(30, END)
        assert tree.generation == generation
        assert tree.count == 2

    @pytest.mark.parametrize("count", [1, LEAF_SIZE, LEAF_SIZE + 1, MANY])
    def test_everything(self, count: int) -> None:
        tree = row(count)
        tree.erase(0, END)
        tree.validate()
        assert (tree.count, tree.ranges()) == (0, [])
        assert tree.insert(5, 6, 1)
        tree.validate()
        assert tree.ranges() == [(5, 6, 1)]

    @pytest.mark.parametrize("order", ["up", "down", "inside out"])
    def test_one_by_one(self, order: str) -> None:
        count = 5 * LEAF_SIZE
        tree = row(count)
        numbers = list(range(count))
        if order == "down":
            numbers.reverse()
        elif order == "inside out":
            numbers.sort(key=lambda i: abs(i - count // 2))
        for done, i in enumerate(numbers):
            tree.erase(i * 10, i * 10 + 6)
            tree.validate()
            assert tree.count == count - done - 1
        assert tree.ranges() == []

    def test_to_the_end_and_from_the_start(self) -> None:
        tree = row(MANY)
        tree.erase(MANY * 5, END)
        tree.validate()
        assert tree.count == MANY // 2
        tree.erase(0, MANY * 5 - 100)
        tree.validate()
        assert tree.count == 10

    def test_branches_are_joined(self) -> None:
        tree = row(3 * MANY)
        branches = len(tree._branches)
        assert branches >= 3
        for i in range(3 * MANY):
            if i % 500:
                tree.erase(i * 10, i * 10 + 6)
        tree.validate()
        assert tree.values() == list(range(0, 3 * MANY, 500))
        assert len(tree._branches) == 1

    @pytest.mark.parametrize("first", ["lower", "upper"])
    def test_either_branch_is_joined(self, first: str) -> None:
        """With the wide gap in the branch that goes, and with it in the branch that stays."""
        for wide in (LEAF_SIZE * 3, 2 * MANY - LEAF_SIZE * 3):
            tree = row(2 * MANY)
            middle = to_address(tree._mins[1]) // 10
            lower = [i for i in range(middle) if i % 300 and i != wide - 1]
            upper = [i for i in range(middle, 2 * MANY) if i % 300 and i != wide - 1]
            tree.erase(wide * 10, wide * 10 + 100)
            for i in lower + upper if first == "lower" else upper[::-1] + lower[::-1]:
                tree.erase(i * 10, i * 10 + 6)
            tree.validate()
            assert len(tree._branches) < 3

    def test_filled_downwards(self) -> None:
        tree: MapleTree[int] = MapleTree()
        for i in reversed(range(MANY)):
            tree.insert(i * 10, i * 10 + 6, i)
        tree.validate()
        assert tree.values() == list(range(MANY))
        assert len(tree._branches) > 1

    def test_clear(self) -> None:
        tree = row(MANY)
        twin = tree.duplicate()
        tree.clear()
        tree.validate()
        assert tree.count == 0
        assert twin.count == MANY
        twin.validate()


class TestSetRange:
    def test_grow_and_shrink(self) -> None:
        tree = tree_of((10, 20, "a"), (30, 40, "b"), (50, 60, "c"))
        tree.set_range(30, 20, 50)
        tree.validate()
        assert tree.ranges() == [(10, 20, "a"), (20, 50, "b"), (50, 60, "c")]
        tree.set_range(20, 44, 45)
        tree.validate()
        assert tree.find_range(20) == (44, 45, "b")
        assert tree.gaps(0, 70) == [(0, 10), (20, 44), (45, 50), (60, 70)]
        tree.set_range(10, 0, 1)
        tree.set_range(50, 70, END)
        tree.validate()
        assert tree.gaps(0, END) == [(1, 44), (45, 70)]

    @pytest.mark.parametrize(("start", "end"), [(19, 40), (30, 51), (0, 5), (60, 70), (0, END)])
    def test_refused(self, start: int, end: int) -> None:
        tree = tree_of((10, 20, "a"), (30, 40, "b"), (50, 60, "c"))
        with pytest.raises(ValueError, match="reaches another range"):
            tree.set_range(30, start, end)
        assert tree.ranges() == [(10, 20, "a"), (30, 40, "b"), (50, 60, "c")]

    @pytest.mark.parametrize("start", [0, 11, 20, 29, 60])
    def test_not_a_start(self, start: int) -> None:
        tree = tree_of((10, 20, "a"), (30, 40, "b"), (50, 60, "c"))
        with pytest.raises(ValueError, match="no range starts at"):
            tree.set_range(start, start, start + 1)

    def test_across_leaves_and_branches(self) -> None:
        tree = row(MANY)
        for i in range(MANY):
            tree.set_range(i * 10, i * 10 + 1, i * 10 + 4)
        tree.validate()
        assert tree.lowest_gap(7, 0, END) == 4
        assert tree.highest_gap(8, 0, MANY * 10 - 10) == -1
        assert tree.ranges() == [(i * 10 + 1, i * 10 + 4, i) for i in range(MANY)]


class TestGaps:
    @pytest.mark.parametrize("count", [3, 3 * LEAF_SIZE, MANY])
    def test_one_wide_gap(self, count: int) -> None:
        """It is found wherever it is, and is not found when it is gone, though the bounds remember it."""
        tree = row(count)
        last = count * 10 - 4
        for i in {0, 1, count // 3, count // 2, count - 2}:
            tree.erase(i * 10, i * 10 + 6)
            wide = (0, 10) if i == 0 else (i * 10 - 4, i * 10 + 10)
            size = wide[1] - wide[0]
            assert tree.highest_gap(size, 0, last) == tree.lowest_gap(size, 0, last) == wide[0]
            assert tree.highest_gap(size - 2, 0, last) == wide[0] + 2
            assert tree.lowest_gap(size - 2, 0, last) == wide[0]
            assert tree.highest_gap(size, wide[0] + 1, last) == tree.lowest_gap(size, 0, wide[1] - 1) == -1
            tree.insert(i * 10, i * 10 + 6, i)
            tree.validate()
            assert tree.highest_gap(size, 0, last) == tree.lowest_gap(size, 0, last) == -1
            assert tree.highest_gap(size, 0, last) == tree.lowest_gap(size, 0, last) == -1
            tree.validate()

    def test_clipped(self) -> None:
        tree = tree_of((10, 20, "a"), (40, 50, "b"))
        assert tree.highest_gap(5, 0, 30) == 25
        assert tree.highest_gap(5, 0, 45) == 35
        assert tree.lowest_gap(5, 8, 100) == 20
        assert tree.lowest_gap(5, 22, 100) == 22
        assert tree.lowest_gap(19, 22, 100) == 50
        assert tree.lowest_gap(19, 22, 60) == -1
        assert tree.lowest_gap(60, 0, 50) == -1
        assert tree.highest_gap(20, 21, 50) == -1
        assert tree.highest_gap(11, 5, 30) == -1
        assert tree.highest_gap(10, 42, 50) == -1
        assert tree.lowest_gap(8, 15, 27) == -1
        assert tree.gaps(15, 45) == [(20, 40)]
        assert tree.gaps(0, 10) == [(0, 10)]

    @pytest.mark.parametrize("size", [(1 << 63) - 2, (1 << 63) - 1, 1 << 63, (1 << 63) + 1])
    def test_half_the_space(self, size: int) -> None:
        """Sizes that signed 64-bit differences cannot hold."""
        for start in (0, 1, 2, END - size - 1, END - size):
            tree: MapleTree[str] = MapleTree()
            if start:
                tree.store(0, start, "a")
            if start + size < END:
                tree.store(start + size, END, "b")
            tree.validate()
            assert tree.highest_gap(size, 0, END) == tree.lowest_gap(size, 0, END) == start
            assert tree.highest_gap(size - 1, 0, END) == start + 1
            assert tree.lowest_gap(size - 1, 0, END) == start
            assert tree.highest_gap(size + 1, 0, END) == tree.lowest_gap(size + 1, 0, END) == -1
            assert tree.highest_gap(size, start, start + size) == start
            assert tree.highest_gap(size, 0, start + size - 1) == tree.lowest_gap(size, start + 1, END) == -1

    def test_two_halves(self) -> None:
        half = (1 << 63) - 1
        tree = tree_of((half, half + 2, "a"))
        assert tree.lowest_gap(half, 0, END) == 0
        assert tree.highest_gap(half, 0, END) == half + 2
        assert tree.highest_gap(half, 0, END - 1) == 0
        assert tree.lowest_gap(half, 1, END) == half + 2
        assert tree.lowest_gap(half + 1, 0, END) == -1

    def test_bounds_are_raised_where_a_leaf_starts(self) -> None:
        tree = row(4 * LEAF_SIZE)
        for leaf in list(tree._branches[0].leaves):
            start = to_address(leaf.starts[0])
            tree.erase(start, start + 1)
            tree.validate()
        assert tree.lowest_gap(5, 1, END) == to_address(tree._branches[0].leaves[1].starts[0]) - 5


class TestDuplicate:
    @pytest.mark.parametrize("count", [0, 1, 5 * LEAF_SIZE, MANY])
    def test_both_change(self, count: int) -> None:
        tree = row(count)
        twin = tree.duplicate()
        third = twin.duplicate()
        before = tree.ranges()
        tree.store(15, 27, -1)
        tree.erase(50, 500)
        twin.store(0, 3, -2)
        twin.insert(END - 5, END, -3)
        for i in range(0, count, 7):
            twin.erase(i * 10, i * 10 + 1)
        for each in (tree, twin, third):
            each.validate()
        assert third.ranges() == before
        assert -2 not in tree.values()
        assert -1 not in twin.values()
        twin.clear()
        assert third.ranges() == before

    def test_shares_until_changed(self) -> None:
        tree = row(MANY)
        twin = tree.duplicate()
        assert twin.nodes_allocated == 0
        twin.store(0, 6, -1)
        assert twin.nodes_allocated == 2
        assert tree.load(0) == 0
        made = tree.nodes_allocated
        tree.store(0, 6, -2)
        assert tree.nodes_allocated == made + 2
        assert twin.load(0) == -1

    def test_search_in_a_duplicate(self) -> None:
        """Lowering a bound changes a branch, which must not reach the other tree."""
        tree = row(3 * LEAF_SIZE)
        tree.erase(300, 306)
        tree.insert(300, 306, 30)
        twin = tree.duplicate()
        assert twin.highest_gap(14, 0, 1700) == twin.lowest_gap(14, 0, 1700) == -1
        tree.erase(300, 306)
        assert tree.highest_gap(14, 0, 1700) == 296
        assert twin.highest_gap(14, 0, 1700) == -1
        tree.validate()
        twin.validate()

    def test_search_in_another_branch(self) -> None:
        tree = row(MANY)
        for i in (300, MANY - 300):
            tree.erase(i * 10, i * 10 + 6)
            tree.insert(i * 10, i * 10 + 6, i)
        twin = tree.duplicate()
        for each in (twin, tree):
            assert each.highest_gap(14, 0, MANY * 10 - 10) == each.lowest_gap(14, 0, MANY * 10 - 10) == -1
        tree.validate()
        twin.validate()

    def test_a_lowered_bound_stays_with_its_tree(self) -> None:
        """The gap in front of a branch is not the same in two trees that share the branch."""
        tree = row(MANY)
        start = to_address(tree._mins[1])
        for first in range(start - 50, start, 10):
            tree.erase(first, first + 6)
        for first in range(start - 50, start, 10):
            tree.insert(first, first + 6, -1)
        start = to_address(tree._mins[1])
        twin = tree.duplicate()
        tree.erase(start - 10, start - 4)
        assert twin.highest_gap(14, 0, MANY * 10 - 10) == twin.lowest_gap(14, 0, MANY * 10 - 10) == -1
        tree.validate()
        assert tree.highest_gap(14, 0, MANY * 10 - 10) == start - 14
        assert tree.lowest_gap(14, 0, MANY * 10 - 10) == start - 14


class TestPreallocate:
    def test_room_in_the_leaf(self) -> None:
        tree = row(10)
        assert tree.preallocate(7, 8) == 0

    def test_full_leaf(self) -> None:
        tree = row(LEAF_SIZE)
        assert tree.preallocate(7, 8) == 1

    def test_full_leaf_below_what_goes(self) -> None:
        """When all up to the end goes, the new entry lands in the leaf below."""
        tree = row(3 * LEAF_SIZE)
        leaf = tree._branches[0].leaves[-2]
        at = to_address(leaf.starts[0]) + 6
        while len(leaf.starts) < LEAF_SIZE:
            tree.insert(at, at + 1, -1)
            at += 10
        start = to_address(tree._branches[0].leaves[-1].starts[0])
        made = tree.nodes_allocated
        assert tree.preallocate(start, END) == 1
        tree.store(start, END, -1)
        assert tree.nodes_allocated == made + 1

    def test_full_branch(self) -> None:
        tree: MapleTree[int] = MapleTree()
        most = 0
        at = 0
        while len(tree._branches) == 1:
            most = tree.preallocate(at, at + 1)
            made = tree.nodes_allocated
            tree.store(at, at + 1, at)
            assert tree.nodes_allocated - made <= most
            at += 2
        assert most == 2

    def test_shared(self) -> None:
        tree = row(10)
        twin = tree.duplicate()
        assert twin.preallocate(7, 8) >= 2
        twin.store(7, 8, -1)
        assert twin.nodes_allocated == 2

    def test_everything(self) -> None:
        tree = row(MANY).duplicate()
        assert tree.preallocate(0, END) == 2
        tree.store(0, END, -1)
        assert tree.nodes_allocated == 2
