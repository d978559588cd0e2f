"""The parts of the range tree: its keys, the cursor, the checks and the dump."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmalab.vma.keys import HIGHEST, delete_keys, distance, insert_key, lowest, to_address, to_key
from vmalab.vma.maple import MapleTree
from vmalab.vma.maple_cursor import Cursor
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


class TestKeys:
    @pytest.mark.parametrize("addr", [0, 1, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, END - 1])
    def test_round_trip(self, addr: int) -> None:
        assert to_address(to_key(addr)) == addr

    def test_keys_keep_the_order(self) -> None:
        addrs = [0, 1, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, END - 1]
        keys = [to_key(addr) for addr in addrs]
        assert keys == sorted(keys)
        assert (keys[0], keys[-1]) == (lowest(), HIGHEST)

    @pytest.mark.parametrize("addr", [-1, END, -END, 1 << 80])
    def test_outside(self, addr: int) -> None:
        with pytest.raises(ValueError, match="outside the 64-bit space"):
            to_key(addr)

    def test_distance(self) -> None:
        assert distance(to_key(5), to_key(9)) == 4
        assert distance(to_key((1 << 63) - 2), to_key((1 << 63) + 2)) == 4
        assert distance(to_key(0), to_key(END - 1)) >= (1 << 63) - 1


class TestCursor:
    def test_entries(self) -> None:
        tree = row(3 * LEAF_SIZE)
        cursor = Cursor(tree)
        seen = [cursor.value]
        while cursor.next() is not None:
            seen.append(cursor.value)
            assert (cursor.start, cursor.end) == (len(seen) * 10 - 10, len(seen) * 10 - 4)
        assert seen == list(range(3 * LEAF_SIZE))
        back = [cursor.value]
        while cursor.prev() is not None:
            back.append(cursor.here())
        assert back == seen[::-1]
        assert cursor.prev() is None
        assert cursor.value == 0

    def test_gaps(self) -> None:
        tree = tree_of((0, 10, "a"), (10, 20, "b"), (30, 40, "c"), (50, END, "d"))
        cursor = Cursor(tree, 15)
        assert (cursor.start, cursor.end, cursor.value) == (10, 20, "b")
        found = []
        while cursor.next_gap():
            found.append((cursor.start, cursor.end, cursor.address, cursor.value))
        assert found == [(20, 30, 20, None), (40, 50, 40, None)]
        assert cursor.prev_gap()
        assert (cursor.start, cursor.end) == (20, 30)
        assert not cursor.prev_gap()
        assert cursor.prev() == "b"
        assert cursor.next() == "c"

    def test_across_branches(self) -> None:
        tree = row(MANY)
        assert len(tree._branches) > 1
        cursor = Cursor(tree, MANY * 10 - 10)
        for i in reversed(range(MANY - 1)):
            assert cursor.prev() == i
        for i in range(1, MANY):
            assert tree.find_before(i * 10) == i - 1

    def test_empty_tree(self) -> None:
        tree: MapleTree[str] = MapleTree()
        cursor = Cursor(tree, 5)
        assert (cursor.start, cursor.end, cursor.value, cursor.here()) == (0, END, None, None)
        assert cursor.next() is None
        assert cursor.prev() is None
        assert not cursor.next_gap()
        assert not cursor.prev_gap()
        with pytest.raises(ValueError, match="outside"):
            cursor.seek(END)

    def test_change_under_it(self) -> None:
        tree = tree_of((0, 10, "a"), (20, 30, "b"), (40, 50, "c"))
        cursor = Cursor(tree, 25)
        tree.store(5, 45, "d")
        assert (cursor.start, cursor.end, cursor.value) == (20, 30, "b")
        assert cursor.here() == "d"
        assert (cursor.start, cursor.end) == (5, 45)
        assert cursor.next() == "c"
        tree.erase(0, END)
        assert cursor.next() is None
        assert cursor.prev() is None
        assert cursor.here() is None
        assert (cursor.start, cursor.end) == (0, END)

    def test_next_goes_to_what_reaches_beyond(self) -> None:
        tree = tree_of((0, 10, "a"), (20, 30, "b"))
        cursor = Cursor(tree, 5)
        tree.store(5, 25, "c")
        assert cursor.next() == "c"
        assert (cursor.start, cursor.end) == (5, 25)

    def test_a_duplicate_does_not_disturb_it(self) -> None:
        tree = row(10)
        cursor = Cursor(tree, 0)
        twin = tree.duplicate()
        twin.erase(0, END)
        assert cursor.next() == 1


class TestValidate:
    """Each fault is seen, and the message holds the whole tree."""

    def check(self, tree: MapleTree[int], fault: str) -> None:
        with pytest.raises(AssertionError, match=fault) as caught:
            tree.validate()
        assert "branch 0: " in str(caught.value)
        assert "[0x14, 0x1a) 2" in str(caught.value)

    def test_dump(self) -> None:
        tree = tree_of((0, 0x1000, "a"), (0x3000, END, "b"))
        assert tree.dump() == (
            "2 entries, 1 branches\n"
            "branch 0: 1 leaves, gaps <= 0x2000\n"
            "  leaf 0: 2 entries, gaps <= 0x2000\n"
            "    [0x0, 0x1000) 'a'\n"
            "    [0x3000, 0x10000000000000000) 'b'"
        )
        tree.duplicate()
        assert "  leaf 0: 2 entries, gaps <= 0x2000, shared" in tree.dump()

    def test_count(self) -> None:
        tree = row(10)
        tree.count += 1
        self.check(tree, "10 entries, but the count is 11")

    def test_gap_above_its_bound(self) -> None:
        tree = row(200)
        branch = tree._branches[0]
        branch.bounds = insert_key(delete_keys(branch.bounds, 1, 2), 1, 3)
        self.check(tree, "branch 0, leaf 1: a gap is larger than its bound")
        with pytest.raises(AssertionError, match="leaf 1: a gap is larger"):
            tree.check_near(to_address(branch.mins[1]))
        tree.check_near(0)

    def test_bound_above_the_top(self) -> None:
        tree = row(10)
        tree._bounds = insert_key(delete_keys(tree._bounds, 0, 1), 0, 3)
        self.check(tree, "branch 0: a gap is larger than its bound")
        with pytest.raises(AssertionError, match="bound of the branch"):
            tree.check_near(0)

    def test_order(self) -> None:
        tree = row(10)
        leaf = tree._branches[0].leaves[0]
        leaf.lasts = insert_key(delete_keys(leaf.lasts, 4, 5), 4, to_key(55))
        self.check(tree, "leaf 0: entry 5 is out of order")

    def test_overlap_between_leaves(self) -> None:
        tree = row(200)
        leaf = tree._branches[0].leaves[0]
        size = len(leaf.lasts)
        leaf.lasts = insert_key(delete_keys(leaf.lasts, size - 1, size), size - 1, to_key(size * 10 + 3))
        self.check(tree, "leaf 1: it overlaps the one before")

    def test_first_keys(self) -> None:
        tree = row(200)
        branch = tree._branches[0]
        branch.mins = insert_key(delete_keys(branch.mins, 1, 2), 1, branch.mins[1] + 1)
        self.check(tree, "leaf 1: its first key is wrong")
        tree = row(200)
        tree._mins = insert_key(delete_keys(tree._mins, 0, 1), 0, to_key(1))
        self.check(tree, "branch 0: its first key is wrong")

    def test_lengths(self) -> None:
        tree = row(10)
        tree._branches[0].leaves[0].values.append(3)
        self.check(tree, "10 starts, 10 lasts, 11 values")

    def test_arrays_of_a_branch(self) -> None:
        tree = row(10)
        branch = tree._branches[0]
        branch.mins = insert_key(branch.mins, 0, lowest())
        self.check(tree, "branch 0: its arrays differ in length")

    def test_a_bound_less(self) -> None:
        tree = row(10)
        tree._bounds = delete_keys(tree._bounds, 0, 1)
        self.check(tree, "the top level's arrays differ in length")
        assert "no bound" in tree.dump()

    def test_arrays_of_the_top(self) -> None:
        tree = row(10)
        tree._mins = insert_key(tree._mins, 0, lowest())
        self.check(tree, "the top level's arrays differ in length")

    def test_no_leaves(self) -> None:
        tree = row(MANY)
        tree._branches[1].leaves = []
        self.check(tree, "branch 1 has 0 leaves")

    def test_empty_leaf(self) -> None:
        tree = row(200)
        leaf = tree._branches[0].leaves[1]
        leaf.values.clear()
        self.check(tree, "leaf 1: it is empty")

    def test_owner(self) -> None:
        tree = row(10)
        leaf = tree._branches[0].leaves[0]
        owner = leaf.owner
        tree._branches[0].owner = tree.duplicate()._owner
        leaf.owner = tree._owner
        assert leaf.owner is not owner
        self.check(tree, "it is owned and its branch is not")


def test_other_values_in_the_same_ranges() -> None:
    tree: MapleTree[int] = MapleTree()
    for at in range(MANY):
        assert tree.insert(at * 16, at * 16 + 8, at + 1)
    twin = tree.with_runs([[-value for value in run] for run in tree.runs()])
    twin.validate()
    assert [(start, end, -value) for start, end, value in twin.ranges()] == tree.ranges()
    twin.erase(0, MANY * 8)
    twin.validate()
    tree.validate()
    assert tree.count == MANY
    with pytest.raises(AssertionError, match="1 values for"):
        tree.with_runs([[1] for _ in tree.runs()])
    with pytest.raises(AssertionError, match="runs for"):
        tree.with_runs([*tree.runs(), []])


def test_no_values_for_no_ranges() -> None:
    tree: MapleTree[int] = MapleTree()
    assert tree.with_runs([[]]).insert(0, 8, 1)


def test_around_is_both_searches_at_once() -> None:
    tree: MapleTree[int] = MapleTree()
    assert tree.around(5) == (None, None)
    for start in (8, 16, 32, END - 8):
        tree.insert(start, start + 8, start)
    for addr in (0, 4, 8, 9, 15, 16, 20, 24, 28, 32, 39, 40, 50, END - 8, END - 1, END):
        assert tree.around(addr) == (tree.find_before(addr), tree.find(addr))


def _row(sizes: list[tuple[int, int]]) -> tuple[MapleTree[int], list[tuple[int, int, int]]]:
    """A tree and its entries, from the room before each and its length."""
    tree: MapleTree[int] = MapleTree()
    entries: list[tuple[int, int, int]] = []
    at = 0
    for number, (room, length) in enumerate(sizes):
        start = at + room
        at = start + length
        entries.append((start, at, number))
        assert tree.insert(start, at, number)
    return tree, entries


ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=200)
NEAR = st.integers(0, 1000)


def _same(tree: MapleTree[int], entries: list[tuple[int, int, int]]) -> None:
    tree.validate()
    assert tree.ranges() == entries
    gaps = [0, *[end for _, end, _ in entries]]
    largest = max([(start - end, end) for end, (start, _, _) in zip(gaps, entries, strict=False)])[0]
    if largest:
        assert tree.highest_gap(largest, 0, entries[-1][0]) >= 0
    assert tree.highest_gap(largest + 1, 0, entries[-1][0]) == -1


@given(ROWS, NEAR, st.booleans(), st.booleans())
def test_split(sizes: list[tuple[int, int]], at: int, below: bool, shared: bool) -> None:
    tree, entries = _row(sizes)
    twin = tree.duplicate() if shared else None
    held = [place for place, (start, end, _) in enumerate(entries) if start < at < end]
    if not held:
        with pytest.raises(ValueError, match="no range to split"):
            tree.split(at, -1, below)
    else:
        start, end, value = entries[held[0]]
        halves = [(start, at, -1 if below else value), (at, end, value if below else -1)]
        tree.split(at, -1, below)
        if twin is not None:
            _same(twin, entries)
        entries[held[0] : held[0] + 1] = halves
    _same(tree, entries)


@given(ROWS, NEAR, st.integers(-5, 5), st.booleans())
def test_move_boundary(sizes: list[tuple[int, int]], which: int, by: int, shared: bool) -> None:
    tree, entries = _row(sizes)
    twin = tree.duplicate() if shared else None
    place = which % len(entries)
    old = entries[place][1]
    new = max(old + by, 0)
    touches = place + 1 < len(entries) and entries[place + 1][0] == old
    if not touches or not entries[place][0] < new < entries[place + 1][1]:
        with pytest.raises(ValueError, match="no boundary"):
            tree.move_boundary(old, new)
    else:
        tree.move_boundary(old, new)
        if twin is not None:
            _same(twin, entries)
        entries[place] = (entries[place][0], new, place)
        entries[place + 1] = (new, entries[place + 1][1], place + 1)
    _same(tree, entries)


@given(ROWS, NEAR, st.integers(0, 70), st.integers(0, 70), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_absorb(
    sizes: list[tuple[int, int]], which: int, below: int, above: int, lower: int, higher: int, shared: bool
) -> None:
    tree, entries = _row(sizes)
    twin = tree.duplicate() if shared else None
    place = which % len(entries)
    start = max(entries[max(place - below, 0)][0] - lower, 0)
    end = entries[min(place + above, len(entries) - 1)][1] + higher
    inside = [entry for entry in entries if entry[0] < end and start < entry[1]]
    if inside[0][0] < start or inside[-1][1] > end:
        with pytest.raises(ValueError, match="can take"):
            tree.absorb(entries[place][0], start, end)
    else:
        tree.absorb(entries[place][0], start, end)
        if twin is not None:
            _same(twin, entries)
        first = entries.index(inside[0])
        entries[first : first + len(inside)] = [(start, end, place)]
    _same(tree, entries)


def test_absorb_refuses_what_does_not_start_there() -> None:
    tree, entries = _row([(1, 4), (0, 4)])
    for of in (0, 2, 9, 20):
        with pytest.raises(ValueError, match="can take"):
            tree.absorb(of, 1, 9)
    with pytest.raises(ValueError, match="can take"):
        tree.absorb(1, 5, 9)
    _same(tree, entries)


def test_a_leaf_that_is_full_is_split() -> None:
    tree: MapleTree[int] = MapleTree()
    for at in range(LEAF_SIZE):
        tree.insert(at * 4, at * 4 + 4, at)
    tree.split(2, -1, True)
    tree.validate()
    assert tree.count == LEAF_SIZE + 1


def test_boundaries_between_leaves_move() -> None:
    tree: MapleTree[int] = MapleTree()
    for at in range(3 * LEAF_SIZE):
        tree.insert(at * 8, at * 8 + 8, at)
    for at in range(1, 3 * LEAF_SIZE):
        tree.move_boundary(at * 8, at * 8 + (3 if at % 2 else -3))
        tree.validate()
    assert tree.count == 3 * LEAF_SIZE


def test_absorb_refuses_what_is_not_there() -> None:
    tree, entries = _row([(1, 4), (0, 4), (0, 4)])
    for of in (3, 0):
        with pytest.raises(ValueError, match="can take"):
            tree.absorb(of, 1, 9)
    with pytest.raises(ValueError, match="can take"):
        tree.absorb(40, 40, 50)
    _same(tree, entries)


def test_a_shared_leaf_changes_in_one_tree_only() -> None:
    tree, entries = _row([(2, 4)] * 20)
    twin = tree.duplicate()
    twin.split(entries[5][0] + 2, -1, True)
    twin = tree.duplicate()
    start, end, value = entries[5]
    twin.absorb(start, start - 1, entries[7][1])
    _same(twin, [*entries[:5], (start - 1, entries[7][1], value), *entries[8:]])
    lower = tree.duplicate()
    lower.absorb(entries[1][0], 0, entries[1][1])
    _same(lower, [(0, entries[1][1], 1), *entries[2:]])
    wider = tree.duplicate()
    wider.absorb(start, start - 1, end + 1)
    _same(wider, [*entries[:5], (start - 1, end + 1, value), *entries[6:]])
    tree.split(end - 1, -1, False)
    _same(tree, [*entries[:5], (start, end - 1, value), (end - 1, end, -1), *entries[6:]])


def test_leaves_that_absorb_what_they_hold_are_joined() -> None:
    tree, entries = _row([(1, 3)] * (8 * LEAF_SIZE))
    runs = len(tree.runs())
    kept: list[tuple[int, int, int]] = []
    for place in range(0, len(entries) - 8, 8):
        start, _, value = entries[place]
        kept.append((start, entries[place + 7][1], value))
        for above in range(place + 1, place + 8):
            tree.absorb(start, start, entries[above][1])
        tree.validate()
    _same(tree, kept + entries[len(kept) * 8 :])
    assert len(tree.runs()) < runs // 2
