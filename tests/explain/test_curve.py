"""A number over time, and what of it can be left out without a difference to the eye."""

from hypothesis import given
from hypothesis import strategies as st

from vmalab.explain.curve import Curve


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60), st.integers(4, 20))
def test_as_a_list_says(steps: list[tuple[int, int]], most: int) -> None:
    curve = Curve()
    values: dict[int, int] = {}
    n = 1
    for further, value in steps:
        n += further
        curve.set(n, value)
        values[n] = value
    now = 0
    for at in range(n + 2):
        now = values.get(at, now)
        assert curve.at(at) == now
    assert curve.last() == now
    highest = max(values.values(), default=0)
    at, peak = curve.peak()
    assert peak == highest
    assert curve.at(at) == peak
    points, sampled = curve.points(), curve.sampled(most)
    assert len(sampled) <= max(most, 4)
    assert set(sampled) <= set(points)
    assert sampled == sorted(sampled)
    if points:
        assert sampled[0] == points[0]
        assert sampled[-1] == points[-1]
        assert max(value for _, value in sampled) == highest
