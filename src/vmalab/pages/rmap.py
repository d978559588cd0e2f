"""The reverse map: from a page to the VMAs that can map it, found by its offset (mm/rmap.c).

The kernel keeps two kinds of interval tree: one for each anon_vma, of the VMAs that are chained to it, and one for each
file (i_mmap).  Here each is a list that is sorted when it is asked for, and only if a VMA in it has changed since.
Freed VMAs stay in it until then: what is found is checked.
"""

from __future__ import annotations

import bisect
from typing import final

from vmalab.vma.area import AnonVma, Vma


@final
class Intervals:
    """VMAs by the offsets that they map, in pages: of one anon_vma, or of one file."""

    __slots__ = ("_ends", "_kept", "_known", "_sorted", "_starts", "_vmas", "anon_vma")

    def __init__(self, anon_vma: AnonVma | None) -> None:
        self.anon_vma: AnonVma | None = anon_vma
        """None for those of a file."""
        self._known: dict[int, Vma] = {}
        """All that were ever added and are not known to be gone, by their identity."""
        self._kept: int = 0
        """How many were left when they were last looked through."""
        self._sorted: bool = True
        self._vmas: list[Vma] = []
        self._starts: list[int] = []
        self._ends: list[int] = []
        """The largest end among the first ones, up to each."""

    def add(self, vma: Vma) -> None:
        """A VMA has come, or has new bounds."""
        self._known[id(vma)] = vma
        self._sorted = False
        if len(self._known) > 2 * self._kept + 16:
            self._drop_freed()

    def note(self, vma: Vma) -> None:
        """A VMA is there, which may be known."""
        if id(vma) not in self._known:
            self.add(vma)

    def _drop_freed(self) -> None:
        self._known = {key: vma for key, vma in self._known.items() if self._holds(vma)}
        self._kept = len(self._known)

    def _holds(self, vma: Vma) -> bool:
        """Whether a VMA is not freed, and still what it was added for."""
        # Interpreted, a freed VMA of a sanitised machine has become something else, of which nothing can be read.
        kind: type = vma.__class__
        if kind is not Vma or vma.freed:
            return False
        anon_vma = self.anon_vma
        return vma.file is not None if anon_vma is None else vma.has_in_chain(anon_vma)

    def _sort(self) -> None:
        self._drop_freed()
        self._vmas = sorted(self._known.values(), key=_pgoff)
        self._starts = [vma.pgoff for vma in self._vmas]
        self._ends = []
        highest = 0
        for vma in self._vmas:
            highest = max(highest, vma.pgoff + vma.pages())
            self._ends.append(highest)
        self._sorted = True

    def overlapping(self, first: int, last: int) -> list[Vma]:
        """The VMAs that map any of the offsets from first to before last (vma_interval_tree_foreach)."""
        if not self._sorted:
            self._sort()
        found: list[Vma] = []
        at = bisect.bisect_left(self._starts, last) - 1
        while at >= 0 and self._ends[at] > first:
            vma = self._vmas[at]
            if self._holds(vma) and vma.pgoff + vma.pages() > first and vma.mm.vma_lookup(vma.start) is vma:
                found.append(vma)
            at -= 1
        return found


def _pgoff(vma: Vma) -> int:
    return vma.pgoff


@final
class ReverseMap:
    """The interval trees of all anon_vmas of a machine."""

    def __init__(self) -> None:
        self._anon: dict[AnonVma, Intervals] = {}
        self._kept: int = 0

    def changed(self, vma: Vma) -> None:
        """A VMA has a new chain, or new bounds."""
        for anon_vma in vma.chain:
            known = self._anon.get(anon_vma)
            if known is None:
                known = self._anon[anon_vma] = Intervals(anon_vma)
            known.add(vma)
        if len(self._anon) > 2 * self._kept + 64:
            self._anon = {key: known for key, known in self._anon.items() if key.links}
            self._kept = len(self._anon)

    def overlapping(self, anon_vma: AnonVma, first: int, last: int) -> list[Vma]:
        """The VMAs that are chained to an anon_vma and have any of the offsets from first to before last, in pages."""
        known = self._anon.get(anon_vma)
        return [] if known is None else known.overlapping(first, last)

    def violations(self, vmas: list[Vma]) -> list[str]:
        """Which VMAs are not found from an anon_vma that they are chained to; empty if all are."""
        return [
            f"{vma!r} is not found from an anon_vma in its chain"
            for vma in vmas
            for anon_vma in vma.chain
            if not any([each is vma for each in self.overlapping(anon_vma, vma.pgoff, vma.pgoff + vma.pages())])
        ]
