"""The long campaign against the range tree: it is clean, it repeats itself, and it finds what is broken."""

import pytest

from vmalab.fuzz.tree import CHECK_EVERY, Cells, run


class ForgetsOneCell(Cells):
    """Erasing three cells leaves the last one."""

    def fill(self, start: int, end: int, value: int | None) -> None:
        super().fill(start, end - 1 if value is None and end - start == 3 else end, value)


class JoinsEqualNeighbours(Cells):
    """Two entries with the same value that touch become one."""

    def fill(self, start: int, end: int, value: int | None) -> None:
        super().fill(start, end, value)
        before = self.entry(start - 1) if start and self.taken[start - 1] else None
        if value is not None and before is not None and before[2] == value:
            self.starts[start] = 0
            del self.values[start]


class SeesNoRoomAtTheEnd(Cells):
    """The last cell is never empty to a search."""

    def is_empty(self, start: int, end: int) -> bool:
        return end < self.count and super().is_empty(start, end)


@pytest.mark.parametrize("seed", range(4))
def test_no_difference(seed: int) -> None:
    difference = run(5000, seed)
    assert difference is None, str(difference)


def test_progress() -> None:
    seen: list[int] = []
    assert run(3 * CHECK_EVERY + 1, 1, seen.append) is None
    assert seen == [CHECK_EVERY, 2 * CHECK_EVERY, 3 * CHECK_EVERY]


@pytest.mark.parametrize("model", [ForgetsOneCell, JoinsEqualNeighbours, SeesNoRoomAtTheEnd])
def test_a_difference_is_found_and_made_short(model: type[Cells]) -> None:
    difference = run(30_000, 1, model=model)
    assert difference is not None
    assert len(difference.operations) <= 4
    assert difference.operations[0] == "tree = MapleTree(); others = []"
    assert "the tree says" in difference.what
    assert f"step {difference.step} of seed 1: " in str(difference)
    assert difference == run(30_000, 1, model=model)
