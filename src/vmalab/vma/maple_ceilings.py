"""What searches for room remember, so that the next one need not look where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab.vma.keys import COMPILED, insert_key, lowest, no_keys, to_address

if not COMPILED:
    from bisect import bisect_left, bisect_right
    from operator import neg

if TYPE_CHECKING:
    from mypy_extensions import i64

    from vmalab.vma.keys import Keys

SHIFT: Final = 12
"""Rooms are told apart by pages."""

MOST: Final = 32
"""Rooms of more pages are not told apart."""


@final
class Ceilings:
    """For each number of pages, a key above which no room for so many ends: a search from above starts there.

    Like the bounds of gaps this is no more than a bound: room that appears raises it, room that is taken leaves it, and
    a search that finds the highest room lowers it to where that ends.  What lies above the highest key that a search
    ever started from is left out.
    """

    __slots__ = ("_ceilings", "_top")

    def __init__(self) -> None:
        self._top: i64 = lowest()
        self._ceilings: Keys = no_keys()
        """More pages never have a higher one."""

    def below(self, room: i64, top: i64) -> i64:
        """Where to start a search for so much room that ends at a key at most."""
        if top > self._top or len(self._ceilings) == 0:
            self._top = top
            self._ceilings = no_keys()
            for at in range(MOST + 1):
                self._ceilings = insert_key(self._ceilings, at, top)
            return top
        pages = room >> SHIFT
        if pages > MOST:
            pages = MOST
        ceiling = self._ceilings[pages]
        return ceiling if ceiling < top else top

    def found(self, room: i64, top: i64, last: i64) -> None:
        """The highest room of that size that ends at top at most has this last key."""
        pages = ((room - 1) >> SHIFT) + 1
        ceilings = self._ceilings
        # What lies between top and a ceiling above it was not looked at.
        if pages > MOST or ceilings[pages] > top:
            return
        if COMPILED:
            while pages <= MOST and ceilings[pages] > last:
                ceilings[pages] = last
                pages += 1
        elif ceilings[pages] > last:
            stop = bisect_left(ceilings, -last, pages, key=neg)
            ceilings[pages:stop] = [last] * (stop - pages)

    def grew(self, room: i64, last: i64) -> None:
        """There is more room than before that has this last key: so much now."""
        ceilings = self._ceilings
        if len(ceilings) == 0:
            return
        if last > self._top:
            last = self._top
        pages = room >> SHIFT
        if pages > MOST:
            pages = MOST
        if COMPILED:
            while pages > 0 and ceilings[pages] < last:
                ceilings[pages] = last
                pages -= 1
        elif pages > 0 and ceilings[pages] < last:
            start = bisect_right(ceilings, -last, 1, pages, key=neg)
            ceilings[start : pages + 1] = [last] * (pages + 1 - start)

    def known(self) -> bool:
        """Whether anything is known at all."""
        return len(self._ceilings) > 0

    def fault(self, gaps: list[tuple[int, int]]) -> str:
        """The first thing that is wrong, given all room that there is, as (start, end); empty if nothing is."""
        ceilings = self._ceilings
        for pages in range(1, len(ceilings)):
            if ceilings[pages] > ceilings[pages - 1]:
                return f"the ceiling of {pages} pages is above that of fewer"
        top = to_address(self._top) + 1
        for start, end in gaps:
            end = min(end, top)
            room = min((end - start) >> SHIFT, MOST)
            if room > 0 and to_address(ceilings[room]) < end - 1:
                return f"[{start:#x}, {end:#x}) lies above the ceiling of {room} pages"
        return ""
