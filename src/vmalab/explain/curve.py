"""A number that changes with the records of a trace, such as the count of VMAs."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import final


@final
class Curve:
    """A step function over record numbers: each point says what the value is from its record on."""

    __slots__ = ("_records", "_values")

    def __init__(self) -> None:
        self._records = array("q")
        self._values = array("q")

    def set(self, n: int, value: int) -> None:
        """After record n the value is this.  Records come in order; the last word about one counts."""
        if self._values and self._values[-1] == value:
            return
        if self._records and self._records[-1] == n:
            self._values[-1] = value
            return
        self._records.append(n)
        self._values.append(value)

    def points(self) -> list[tuple[int, int]]:
        """All points: record, value."""
        return list(zip(self._records, self._values, strict=True))

    def at(self, n: int) -> int:
        """The value after record n: 0 before the first point."""
        place = bisect_right(self._records, n)
        return self._values[place - 1] if place else 0

    def last(self) -> int:
        """The value at the end."""
        return self._values[-1] if self._values else 0

    def peak(self) -> tuple[int, int]:
        """The record at which the largest value is first reached, and that value; (0, 0) for an empty curve."""
        if not self._values:
            return 0, 0
        value = max(self._values)
        return self._records[self._values.index(value)], value

    def sampled(self, most: int) -> list[tuple[int, int]]:
        """At most so many points (4 or more) that look the same from afar.

        The records are cut into equal parts, and of each the first, the lowest, the highest and the last point stay.
        """
        points = self.points()
        if len(points) <= most:
            return points
        parts = max(1, most // 4)
        first, last = points[0][0], points[-1][0]
        kept: list[tuple[int, int]] = []
        place = 0
        for part in range(parts):
            until = first + (last - first + 1) * (part + 1) // parts
            start = place
            while place < len(points) and points[place][0] < until:
                place += 1
            inside = points[start:place]
            if inside:
                lowest = min(inside, key=_value)
                highest = max(inside, key=_value)
                kept += sorted({inside[0], lowest, highest, inside[-1]})
        return kept


def _value(point: tuple[int, int]) -> int:
    return point[1]
