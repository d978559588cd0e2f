"""The range tree against naive models: an array of cells, and a sorted list of ranges."""

import random
from bisect import insort

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vmalab.vma.maple import MapleTree
from vmalab.vma.maple_cursor import Cursor

END = 1 << 64
Range = tuple[int, int, int]


class Cells:
    """A small space, one value or None per cell.  Cell i stands for unit bytes from base + i * unit on."""

    def __init__(self, count: int) -> None:
        self.cells: list[tuple[int, int] | None] = [None] * count
        self.number = 0

    def fill(self, start: int, end: int, value: int | None) -> None:
        """Set the cells, to a new entry unless value is None.  What was split becomes two entries."""
        if end < len(self.cells) and start > 0 and self.cells[start - 1] == self.cells[end]:
            self.renumber(end)
        self.number += 1
        for i in range(start, end):
            self.cells[i] = None if value is None else (self.number, value)

    def renumber(self, at: int) -> None:
        entry = self.cells[at]
        self.number += 1
        while entry is not None and at < len(self.cells) and self.cells[at] == entry:
            self.cells[at] = (self.number, entry[1])
            at += 1

    def ranges(self) -> list[Range]:
        found: list[Range] = []
        last: tuple[int, int] | None = None
        for i, cell in enumerate(self.cells):
            if cell is not None and cell == last:
                found[-1] = (found[-1][0], i + 1, cell[1])
            elif cell is not None:
                found.append((i, i + 1, cell[1]))
            last = cell
        return found

    def fits(self, size: int, low: int, high: int) -> list[int]:
        """Every cell at which so many cells are empty inside [low, high)."""
        return [i for i in range(low, high - size + 1) if not any(self.cells[i : i + size])]


CELLS = 64
PLACES = [
    (0, 1),
    (0, 1 << 58),
    (END - CELLS, 1),
    ((1 << 63) - CELLS // 2, 1),
    (0, 4096),
    (1 << 40, 4096),
    (END - CELLS * 4096, 4096),
]
"""Where the cells are, and how many bytes each is."""
cell = st.integers(0, CELLS - 1)
length = st.one_of(st.integers(1, 3), st.integers(1, CELLS))


class TreeMachine(RuleBasedStateMachine):
    """All operations on one tree, which now and then goes on as its duplicate."""

    @initialize(place=st.sampled_from(PLACES))
    def start(self, place: tuple[int, int]) -> None:
        self.base, self.unit = place
        self.tree: MapleTree[int] = MapleTree()
        self.model = Cells(CELLS)
        self.frozen: list[tuple[MapleTree[int], list[Range]]] = []
        self.serial = 0

    def at(self, index: int) -> int:
        return self.base + index * self.unit

    def scaled(self, ranges: list[Range]) -> list[Range]:
        return [(self.at(a), self.at(b), v) for a, b, v in ranges]

    @rule(at=cell, size=length, same=st.booleans())
    def store(self, at: int, size: int, same: bool) -> None:
        end = min(CELLS, at + size)
        self.serial += not same
        most = self.tree.preallocate(self.at(at), self.at(end))
        made = self.tree.nodes_allocated
        self.tree.store(self.at(at), self.at(end), self.serial)
        assert self.tree.nodes_allocated - made <= most
        self.model.fill(at, end, self.serial)

    @rule(at=cell, size=length)
    def insert(self, at: int, size: int) -> None:
        end = min(CELLS, at + size)
        free = not any(self.model.cells[at:end])
        assert self.tree.is_empty(self.at(at), self.at(end)) == free
        assert self.tree.insert(self.at(at), self.at(end), -1) == free
        if free:
            self.model.fill(at, end, -1)

    @rule(at=cell, size=length)
    def erase(self, at: int, size: int) -> None:
        end = min(CELLS, at + size)
        self.tree.erase(self.at(at), self.at(end))
        self.model.fill(at, end, None)

    @rule(pick=st.randoms(use_true_random=False))
    def set_range(self, pick: random.Random) -> None:
        ranges = self.model.ranges()
        if not ranges:
            return
        i = pick.randrange(len(ranges))
        start, end, value = ranges[i]
        low = ranges[i - 1][1] if i else 0
        high = ranges[i + 1][0] if i + 1 < len(ranges) else CELLS
        new_start = pick.randrange(low, high)
        new_end = pick.randrange(new_start + 1, high + 1)
        self.tree.set_range(self.at(start), self.at(new_start), self.at(new_end))
        self.model.fill(start, end, None)
        self.model.fill(new_start, new_end, value)

    @rule(size=length, low=cell, span=length)
    def search(self, size: int, low: int, span: int) -> None:
        high = min(CELLS, low + span)
        fits = self.model.fits(size, low, high)
        unit = self.unit
        lowest = self.tree.lowest_gap(size * unit, self.at(low), self.at(high))
        highest = self.tree.highest_gap(size * unit, self.at(low), self.at(high))
        assert lowest == (self.at(fits[0]) if fits else -1)
        assert highest == (self.at(fits[-1]) if fits else -1)

    @rule(at=cell, size=length)
    def look(self, at: int, size: int) -> None:
        end = min(CELLS, at + size)
        ranges = self.model.ranges()
        here = [each for each in ranges if each[0] <= at < each[1]]
        after = [each for each in ranges if each[1] > at]
        before = [each for each in ranges if each[0] < at]
        tree = self.tree
        addr = self.at(at)
        assert tree.load(addr) == (here[0][2] if here else None)
        assert tree.find(addr) == (after[0][2] if after else None)
        assert tree.find_before(addr) == (before[-1][2] if before else None)
        assert tree.find_range(addr) == (self.scaled(after)[0] if after else None)
        assert tree.find_before_range(addr) == (self.scaled(before)[-1] if before else None)
        assert tree.walk(addr, self.at(end)) == [v for a, b, v in ranges if b > at and a < end]
        empty = [a for a in range(at, end) if self.model.cells[a] is None]
        assert sum(b - a for a, b in tree.gaps(addr, self.at(end))) == len(empty) * self.unit
        cursor = Cursor(tree, addr)
        assert cursor.value == tree.load(addr)
        assert cursor.start <= addr < cursor.end

    @rule(onward=st.booleans())
    def duplicate(self, onward: bool) -> None:
        twin = self.tree.duplicate()
        left = self.tree if onward else twin
        self.tree = twin if onward else self.tree
        self.frozen.append((left, self.tree.ranges()))

    @rule()
    def clear(self) -> None:
        self.tree.clear()
        self.model.fill(0, CELLS, None)

    @invariant()
    def same(self) -> None:
        self.tree.validate()
        assert self.tree.ranges() == self.scaled(self.model.ranges())

    def teardown(self) -> None:
        for tree, ranges in getattr(self, "frozen", []):
            tree.validate()
            assert tree.ranges() == ranges


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class Ranges:
    """A sorted list of ranges, for trees of many nodes."""

    def __init__(self, ranges: list[Range]) -> None:
        self.ranges = ranges

    def fill(self, start: int, end: int, value: int | None) -> None:
        kept = []
        for a, b, v in self.ranges:
            if b <= start or a >= end:
                kept.append((a, b, v))
                continue
            if a < start:
                kept.append((a, start, v))
            if b > end:
                kept.append((end, b, v))
        self.ranges = kept
        if value is not None:
            insort(self.ranges, (start, end, value))

    def gaps(self, low: int, high: int) -> list[tuple[int, int]]:
        found = []
        for a, b, _ in self.ranges:
            if b > low and a < high:
                if a > low:
                    found.append((low, a))
                low = b
        return found + [(low, high)] if low < high else found


@pytest.mark.parametrize("base", [0, (1 << 63) - 10000, END - 20000, 0x7F0000000000])
@pytest.mark.parametrize("seed", range(3))
def test_many_nodes(seed: int, base: int) -> None:
    """A thousand entries in a space of 20,000 bytes; now mostly stores of one byte, now wide ones."""
    dice = random.Random(f"{seed} {base}")
    top = 20000
    tree: MapleTree[int] = MapleTree()
    model = Ranges([])
    twins: list[tuple[MapleTree[int], list[Range]]] = []
    for step in range(2500):
        wide = dice.random() < (0.002 if step % 1000 < 800 else 0.05)
        start = dice.randrange(top)
        end = min(top, start + (dice.randrange(1, 6000) if wide else dice.choice((1, 1, 2, 5, 12))))
        op = dice.random()
        if op < 0.6:
            most = tree.preallocate(base + start, base + end)
            made = tree.nodes_allocated
            tree.store(base + start, base + end, step)
            assert tree.nodes_allocated - made <= most
            model.fill(start, end, step)
        elif op < 0.75:
            most = tree.preallocate(base + start, base + end)
            made = tree.nodes_allocated
            tree.erase(base + start, base + end)
            assert tree.nodes_allocated - made <= most
            model.fill(start, end, None)
        elif op < 0.95:
            low, high = sorted((dice.randrange(top + 1), dice.randrange(top + 1)))
            size = dice.choice((1, 3, 8, 20, 60, 200))
            fits = [(a, b) for a, b in model.gaps(low, high) if b - a >= size]
            assert tree.lowest_gap(size, base + low, base + high) == (base + fits[0][0] if fits else -1)
            assert tree.highest_gap(size, base + low, base + high) == (base + fits[-1][1] - size if fits else -1)
        elif op < 0.955:
            twin = tree.duplicate()
            if op < 0.952:
                tree, twin = twin, tree
            twins.append((twin, list(model.ranges)))
        tree.check_near(base + start)
        if step % 50 == 0:
            tree.validate()
            assert tree.ranges() == [(base + a, base + b, v) for a, b, v in model.ranges]
    for twin, ranges in twins:
        twin.validate()
        assert twin.ranges() == [(base + a, base + b, v) for a, b, v in ranges]


def test_many_entries() -> None:
    """Filled in a scattered order, it stays in order and finds the one gap that is wide enough."""
    count = 200_003
    tree: MapleTree[int] = MapleTree()
    for i in range(count):
        at = i * 7919 % count
        tree.insert(at * 16, at * 16 + 12, at)
    tree.validate()
    assert tree.values() == list(range(count))
    tree.erase(16 * 5000, 16 * 5000 + 12)
    assert tree.highest_gap(20, 0, count * 16) == 16 * 5000 - 4
    assert tree.lowest_gap(20, 0, count * 16) == 16 * 5000 - 4
