"""The long campaign against the range tree: random operations, and a naive model that says what each must do.

The model is an array of cells and a dictionary of values.  It shares nothing with the tree, and its gap searches are
plain searches for a run of zero bytes.  An episode is a fresh tree with its own place in the 64-bit space, its own mix
of operations and its own habits about where and how wide (swarm testing); a campaign is episodes until the steps are
done.  A seed gives the same campaign on every machine, and in the compiled and the interpreted form.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from vmalab.vma.maple import MapleTree
from vmalab.vma.maple_cursor import Cursor

ULONG_END: Final = 1 << 64

Op = tuple[str, int, int, int]
"""An operation and its three numbers, in cells; what they mean is in _Pair.apply()."""

CHECK_EVERY: Final = 2000
"""Steps between two full comparisons, and as many more as there are entries.

The neighbourhood of each change is compared at once.
"""

SHRINK_REPLAYS: Final = 400
"""How many shorter lists of operations are tried on a difference."""

MOST_TREES: Final = 3
"""How many duplicates of a tree an episode keeps and goes on changing."""


@dataclass(frozen=True)
class TreeDifference:
    """Where the tree and the model part ways."""

    seed: int
    step: int
    """The step of the campaign that showed it, from 0."""
    what: str
    """What was seen, in one line."""
    operations: list[str]
    """The fewest operations found that still show a difference, as calls on an empty tree."""
    dump: str
    """The tree after them."""

    def __str__(self) -> str:
        lines = [f"step {self.step} of seed {self.seed}: {self.what}", *self.operations, self.dump]
        return "\n".join(lines)


@dataclass(frozen=True)
class Place:
    """Where an episode's cells lie: cell i is [base + i * unit, base + (i + 1) * unit)."""

    base: int
    unit: int
    cells: int


class Cells:
    """The naive model: which cells are taken, which of them start an entry, and the value of each entry."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = bytearray(count)
        self.starts = bytearray(count)
        self.values: dict[int, int] = {}

    def copy(self) -> Cells:
        twin = type(self)(self.count)
        twin.taken[:] = self.taken
        twin.starts[:] = self.starts
        twin.values.update(self.values)
        return twin

    def fill(self, start: int, end: int, value: int | None) -> None:
        """Map the cells [start, end) to a value, or to nothing.  An entry that reaches beyond goes on at end."""
        if end < self.count and self.taken[end] and not self.starts[end]:
            self.values[end] = self.values[self.starts.rfind(1, 0, end)]
            self.starts[end] = 1
        at = self.starts.find(1, start, end)
        while at >= 0:
            del self.values[at]
            at = self.starts.find(1, at + 1, end)
        size = end - start
        self.starts[start:end] = bytes(size)
        self.taken[start:end] = bytes(size) if value is None else b"\1" * size
        if value is not None:
            self.starts[start] = 1
            self.values[start] = value

    def entry(self, cell: int) -> tuple[int, int, int] | None:
        """The entry that holds a taken cell; None for cell -1."""
        if cell < 0:
            return None
        start = self.starts.rfind(1, 0, cell + 1)
        end = self.taken.find(0, cell)
        end = self.count if end < 0 else end
        following = self.starts.find(1, cell + 1, end)
        return start, end if following < 0 else following, self.values[start]

    def find(self, cell: int) -> tuple[int, int, int] | None:
        """The first entry that ends above a cell's start."""
        return self.entry(self.taken.find(1, cell))

    def find_before(self, cell: int) -> tuple[int, int, int] | None:
        """The last entry that starts below a cell's start."""
        return self.entry(self.taken.rfind(1, 0, cell))

    def is_empty(self, start: int, end: int) -> bool:
        return self.taken.find(1, start, end) < 0

    def may_move(self, old: int, start: int, end: int) -> bool:
        """Whether the entry that starts at old exists and may have the bounds [start, end) without reaching another."""
        if not self.starts[old]:
            return False
        entry = self.entry(old)
        before = self.find_before(old)
        after = None if entry is None or entry[1] == self.count else self.find(entry[1])
        return (before is None or before[1] <= start) and (after is None or end <= after[0])

    def ranges(self) -> list[tuple[int, int, int]]:
        """All entries, in order."""
        starts = sorted(self.values)
        ends = [*starts, self.count][1:]
        holes = [self.taken.find(0, start, end) for start, end in zip(starts, ends, strict=True)]
        return [
            (start, end if hole < 0 else hole, self.values[start])
            for start, end, hole in zip(starts, ends, holes, strict=True)
        ]


class _Wrong(Exception):
    """The tree did something else than the model."""


def _text(result: object) -> str:
    """A result for people: an entry with its bounds in hexadecimal."""
    if isinstance(result, tuple) and len(result) == 3:
        return f"[{result[0]:#x}, {result[1]:#x}) {result[2]}"
    return repr(result)


class _Pair:
    """A tree and its model.  apply() does one operation on both and raises _Wrong where they differ."""

    def __init__(self, place: Place, tree: MapleTree[int], model: Cells) -> None:
        self.place = place
        self.tree = tree
        self.model = model

    def duplicate(self) -> _Pair:
        return _Pair(self.place, self.tree.duplicate(), self.model.copy())

    def address(self, cell: int) -> int:
        return self.place.base + cell * self.place.unit

    def scaled(self, entry: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        return None if entry is None else (self.address(entry[0]), self.address(entry[1]), entry[2])

    def same(self, what: str, tree: object, model: object) -> None:
        if tree != model:
            raise _Wrong(f"{what}: the tree says {_text(tree)}, the model {_text(model)}")

    def apply(self, op: Op) -> None:
        """Do an operation.  The numbers are, for most, the cells [a, b) and a value or a size."""
        name, a, b, c = op
        if name in ("lowest", "highest"):
            self._search(name, a, b, c)
        elif name == "look":
            self._look(a, b)
        elif name == "clear":
            self.tree.clear()
            self.model.fill(0, self.model.count, None)
            self.check()
        elif name == "row":
            for cell in range(a, b, c):
                self._change("insert", cell, cell + 1, cell)
            self.near(a, b)
        else:
            self._change(name, a, b, c)
            self.near(a, b)

    def _change(self, name: str, a: int, b: int, c: int) -> None:
        tree, model = self.tree, self.model
        start, end = self.address(a), self.address(b)
        if name == "set_range":
            entry = model.entry(c) if model.may_move(c, a, b) else None
            try:
                tree.set_range(self.address(c), start, end)
                refused = False
            except ValueError:
                refused = True
            self.same("set_range refused", refused, entry is None)
            if entry is not None:
                model.fill(entry[0], entry[1], None)
                model.fill(a, b, entry[2])
            return
        most = tree.preallocate(start, end)
        made = tree.nodes_allocated
        if name == "store":
            tree.store(start, end, c)
            model.fill(a, b, c)
        elif name == "insert":
            free = model.is_empty(a, b)
            self.same("is_empty", tree.is_empty(start, end), free)
            self.same("insert", tree.insert(start, end, c), free)
            if free:
                model.fill(a, b, c)
        else:
            tree.erase(start, end)
            model.fill(a, b, None)
        made = tree.nodes_allocated - made
        if made > most:
            raise _Wrong(f"{name} made {made} nodes, preallocate() said at most {most}")

    def _search(self, name: str, a: int, b: int, size: int) -> None:
        low, high = self.address(a), self.address(b)
        if name == "lowest":
            cell = self.model.taken.find(bytes(size), a, b)
            addr = self.tree.lowest_gap(size * self.place.unit, low, high)
        else:
            cell = self.model.taken.rfind(bytes(size), a, b)
            addr = self.tree.highest_gap(size * self.place.unit, low, high)
        self.same(f"{name}_gap", addr, -1 if cell < 0 else self.address(cell))

    def _look(self, a: int, b: int) -> None:
        tree, model = self.tree, self.model
        addr = self.address(a)
        entry = model.find(a)
        before = model.find_before(a)
        here = entry if entry is not None and entry[0] <= a else None
        self.same("load", tree.load(addr), None if here is None else here[2])
        self.same("find", tree.find(addr), None if entry is None else entry[2])
        self.same("find_before", tree.find_before(addr), None if before is None else before[2])
        values = []
        gaps = []
        at = a
        while entry is not None and entry[0] < b:
            values.append(entry[2])
            if at < entry[0]:
                gaps.append((self.address(at), self.address(entry[0])))
            at = entry[1]
            entry = model.find(at) if at < model.count else None
        if at < b:
            gaps.append((self.address(at), self.address(b)))
        self.same("walk", tree.walk(addr, self.address(b)), values)
        self.same("gaps", tree.gaps(addr, self.address(b)), gaps)
        cursor = Cursor(tree, addr)
        walked = [] if cursor.value is None else [cursor.value]
        while len(walked) < len(values):
            walked.append(cursor.next() or 0)
        self.same("cursor", walked, values)
        while len(walked) > 1:
            self.same("cursor back", cursor.value, walked.pop())
            cursor.prev()

    def near(self, a: int, b: int) -> None:
        """Compare what is around a change, and check the tree there."""
        tree, model = self.tree, self.model
        for cell in (a, b):
            addr = self.address(cell)
            after = model.find(cell) if cell < model.count else None
            self.same("find_range", tree.find_range(addr), self.scaled(after))
            self.same(
                f"find_before_range({addr:#x})", tree.find_before_range(addr), self.scaled(model.find_before(cell))
            )
        self.same("count", tree.count, len(model.values))
        tree.check_near(self.address(a))

    def check(self) -> None:
        """Compare everything, and validate the tree."""
        self.tree.validate()
        tree = self.tree.ranges()
        base, unit = self.place.base, self.place.unit
        model = [(base + a * unit, base + b * unit, value) for a, b, value in self.model.ranges()]
        if tree != model:
            for i, (one, other) in enumerate(zip(tree, model, strict=False)):
                self.same(f"entry {i}", one, other)
            self.same("entries", len(tree), len(model))


class _Episode:
    """A tree in its place, and its duplicates."""

    def __init__(self, place: Place, model: type[Cells]) -> None:
        self.place = place
        self.now = _Pair(place, MapleTree(), model(place.cells))
        self.others: list[_Pair] = []

    def apply(self, op: Op) -> None:
        """Do an operation: on the tree, or on which tree is the one."""
        if op[0] == "duplicate":
            if len(self.others) < MOST_TREES:
                self.others.append(self.now.duplicate())
        elif op[0] == "switch":
            if op[1] < len(self.others):
                self.now, self.others[op[1]] = self.others[op[1]], self.now
        elif op[0] == "drop":
            if op[1] < len(self.others):
                self.others.pop(op[1]).check()
        else:
            self.now.apply(op)

    def check(self) -> None:
        """Compare everything in all trees."""
        for pair in (self.now, *self.others):
            pair.check()

    def as_calls(self, ops: list[Op]) -> list[str]:
        """Operations as a person would type them."""
        lines = ["tree = MapleTree(); others = []"]
        for name, a, b, c in ops:
            start, end = (f"{self.now.address(cell):#x}" for cell in (a, b))
            if name in ("store", "insert"):
                lines.append(f"tree.{name}({start}, {end}, {c})")
            elif name == "set_range":
                lines.append(f"tree.set_range({self.now.address(c):#x}, {start}, {end})")
            elif name in ("lowest", "highest"):
                lines.append(f"tree.{name}_gap({c * self.place.unit:#x}, {start}, {end})")
            elif name == "row":
                unit = self.place.unit
                lines.append(f"for at in range({start}, {end}, {c * unit:#x}): tree.insert(at, at + {unit:#x}, 1)")
            elif name == "look":
                lines.append(f"tree.walk({start}, {end})")
            elif name == "erase":
                lines.append(f"tree.erase({start}, {end})")
            elif name == "clear":
                lines.append("tree.clear()")
            elif name == "duplicate":
                lines.append("others.append(tree.duplicate())")
            elif name == "switch":
                lines.append(f"tree, others[{a}] = others[{a}], tree")
            else:
                lines.append(f"others.pop({a})")
        return lines


class _Habits:
    """What an episode likes to do: drawn from its dice once, then an endless source of operations."""

    NAMES: Final = ("store", "insert", "erase", "set_range", "lowest", "highest", "look", "switch", "duplicate", "drop")
    RARE: Final = 7
    """From this name on, a hundredth of its weight or less."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        cells = dice.choice((48, 300, 300, 2048, 2048, 8192, 1 << 15, 1 << 16))
        unit = dice.choice((1, 4096, ULONG_END // (1 << cells.bit_length())))
        if cells & (cells - 1) == 0 and dice.random() < 0.3:
            unit = ULONG_END // cells
        span = cells * unit
        bases = (0, ULONG_END - span, max(0, (1 << 63) - span // 2), min(1 << 46, ULONG_END - span))
        self.place = Place(dice.choice(bases), unit, cells)
        self.steps = min(80_000, cells * dice.choice((2, 5, 20)) + 500)
        # The swarm: each operation has a weight of its own, and some do not occur at all.
        weights = [dice.choice((0.0, 0.3, 1.0, 1.0, 3.0)) for _ in self.NAMES]
        weights[0] += 0.3
        for i in range(self.RARE, len(weights)):
            weights[i] *= 0.01 if cells < 1 << 15 else 0.001
        self.weights = list(accumulate(weights))
        # A tree of more than one branch takes some fifteen thousand entries: rows of them, again and again.
        self.rows = 0.00003 if cells >= 1 << 15 else 0.0
        self.narrow = dice.choice((1, 2, 4, 12))
        self.wide = dice.choice((0.0, 0.001, 0.01, 0.05)) if not self.rows else dice.choice((0.0, 0.0002))
        self.values = dice.choice((1, 2, 1 << 30))
        self.local = dice.choice((0.0, 0.5, 0.95))
        self.drift = dice.choice((-1, 0, 1))
        self.at = dice.randrange(cells)
        self.number = 0

    def range(self) -> tuple[int, int]:
        """Some cells, near the last ones or anywhere."""
        dice, cells = self.dice, self.place.cells
        size = 1 + int(dice.random() * self.narrow)
        if dice.random() < self.wide:
            size = 1 + int(dice.random() * cells)
        if dice.random() < self.local:
            self.at = (self.at + self.drift * size + (dice.randrange(5) - 2 if self.drift == 0 else 0)) % cells
        else:
            self.at = int(dice.random() * cells)
        return self.at, min(cells, self.at + size)

    def next(self, model: Cells) -> Op:
        """The next operation."""
        dice = self.dice
        if self.rows and (self.number == 0 or dice.random() < self.rows):
            self.number += 1
            return "row", int(dice.random() * self.narrow), model.count, dice.choice((1, 2, 2, 3, 50))
        name = dice.choices(self.NAMES, cum_weights=self.weights)[0]
        if name in ("duplicate", "switch", "drop"):
            return name, dice.randrange(MOST_TREES), 0, 0
        if dice.random() < 1e-5:
            return "clear", 0, 0, 0
        a, b = self.range()
        if name in ("store", "insert"):
            self.number += 1
            return name, a, b, 1 + self.number % self.values
        if name in ("lowest", "highest"):
            low, high = sorted((a, dice.randrange(model.count)))
            if dice.random() < 0.3:
                low, high = 0, model.count
            size = 1 + int(dice.random() * (model.count if dice.random() < 0.02 else 4 * self.narrow))
            return name, low, high, size
        if name == "set_range":
            return self._move(model, a, b)
        return name, a, b, 0

    def _move(self, model: Cells, a: int, b: int) -> Op:
        """New bounds for the entry at or above a cell: mostly such as do not reach another one."""
        entry = model.find(a)
        if entry is None or self.dice.random() < 0.1:
            return "set_range", a, b, a
        start, end, _ = entry
        before = model.find_before(start)
        after = model.find(end) if end < model.count else None
        low = max(0 if before is None else before[1], start - 9)
        high = min(model.count if after is None else after[0], end + 9)
        new_start = self.dice.randrange(low, high)
        return "set_range", new_start, self.dice.randrange(new_start, high) + 1, start


def run(
    steps: int, seed: int, progress: Callable[[int], None] | None = None, *, model: type[Cells] = Cells
) -> TreeDifference | None:
    """Run random operations on range trees and on the model.

    Each change is compared in its neighbourhood at once; everything is compared, with validate(), every so often and
    at the end of each episode.  progress is called with the number of steps done, every CHECK_EVERY steps.  Tests pass
    a broken model, to see it found.  None if there was no difference; else the first one, with its operations made as
    few as SHRINK_REPLAYS allows.
    """
    dice = random.Random(seed)
    done = 0
    while done < steps:
        habits = _Habits(random.Random(dice.getrandbits(64)))
        episode = _Episode(habits.place, model)
        ops: list[Op] = []
        check_at = CHECK_EVERY
        try:
            for i in range(min(habits.steps, steps - done)):
                ops.append(habits.next(episode.now.model))
                episode.apply(ops[-1])
                done += 1
                if i >= check_at:
                    episode.now.check()
                    check_at = i + CHECK_EVERY + episode.now.tree.count
                if progress is not None and done % CHECK_EVERY == 0:
                    progress(done)
            episode.check()
        except Exception as error:
            return _shrunk(seed, done, ops, habits.place, model, _sentence(error))
    return None


def _sentence(error: Exception) -> str:
    """What a failed step says: its first line."""
    text = (str(error).splitlines() or [""])[0]
    return text if isinstance(error, _Wrong) else f"{type(error).__name__}: {text}"


def _replay(ops: list[Op], place: Place, model: type[Cells]) -> tuple[int, str, _Episode] | None:
    """Do operations on a fresh tree: how many until a difference, what it is, and all trees; None if there is none."""
    episode = _Episode(place, model)
    often = 1 if len(ops) < 100 else CHECK_EVERY
    done = 0
    try:
        for op in ops:
            done += 1
            episode.apply(op)
            if done % often == 0:
                episode.check()
        episode.check()
    except Exception as error:
        return done, _sentence(error), episode
    return None


def _shrunk(seed: int, step: int, ops: list[Op], place: Place, model: type[Cells], what: str) -> TreeDifference:
    """The difference with as few operations as SHRINK_REPLAYS tries find: chunks are left out, ever smaller ones."""
    found = _replay(ops, place, model)
    if found is None:
        calls = _Episode(place, model).as_calls(ops)
        return TreeDifference(seed, step, what + " (only where it was first seen)", calls, "")
    ops = ops[: found[0]]
    chunk = max(1, len(ops) // 2)
    tries = SHRINK_REPLAYS
    while chunk and tries > 0:
        at = 0
        shorter = False
        while at < len(ops) and tries > 0:
            tries -= 1
            fewer = ops[:at] + ops[at + chunk :]
            again = _replay(fewer, place, model)
            if again is None:
                at += chunk
                continue
            found = again
            ops = fewer[: again[0]]
            shorter = True
        if chunk > 1 or not shorter:
            chunk //= 2
    return TreeDifference(seed, step, found[1], found[2].as_calls(ops), found[2].now.tree.dump())
