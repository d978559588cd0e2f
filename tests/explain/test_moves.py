"""From recorded addresses to those of a changed run, against a plain list of pages."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vmalab.explain.moves import Moves

SPACE = 40
step = st.tuples(
    st.integers(0, SPACE), st.integers(0, SPACE), st.one_of(st.none(), st.integers(-3, 3).map(lambda each: each * 1000))
)


@given(st.lists(step, max_size=30), st.integers(0, SPACE), st.integers(0, SPACE))
def test_as_a_list_of_pages_says(steps: list[tuple[int, int, int | None]], low: int, high: int) -> None:
    moves = Moves()
    pages: list[int | None] = [0] * (SPACE + 1)
    for start, end, shift in steps:
        moves.set(start, end, shift)
        pages[start:end] = [shift] * max(0, end - start)
    assert len(pages) == SPACE + 1
    assert bool(moves) == any(shift != 0 for shift in pages)
    for addr, shift in enumerate(pages):
        assert moves.address(addr) == (None if shift is None else (addr + shift) % 2**64)
    other = moves.copy()
    moves.set(0, SPACE + 1, 0)
    assert not moves
    found = other.pieces(low, high) if low < high else []
    assert [shift for piece in found for shift in [piece.shift] * (piece.end - piece.start)] == pages[low:high]
    assert all(one.end == two.start and one.shift != two.shift for one, two in pairwise(found))


def test_a_hint_just_behind_moved_memory_moves_with_it() -> None:
    moves = Moves()
    moves.set(10, 20, 100)
    assert (moves.hint(15), moves.hint(20), moves.hint(21), moves.hint(9)) == (115, 120, 21, 9)
