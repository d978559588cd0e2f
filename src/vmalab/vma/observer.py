"""What the core tells: callbacks that cannot fail and cannot change anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

if TYPE_CHECKING:
    from vmalab.vma.area import Vma
    from vmalab.vma.space import Mm


@mypyc_attr(allow_interpreted_subclasses=True)
class Observer:
    """Is told of every change after it has happened.  The default listens to nothing.  Do not keep a Vma: it may go."""

    def added(self, vma: Vma) -> None:
        """A VMA is in the tree that was not there before (and is not half of a split)."""

    def removed(self, vma: Vma) -> None:
        """A VMA was unmapped."""

    def split(self, below: Vma, above: Vma) -> None:
        """One VMA has become two."""

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        """[start, end) has become part of survivor, which now has its new bounds."""

    def flags_changed(self, vma: Vma, old: int) -> None:
        """A VMA's flags are no longer old."""

    def attribute_changed(self, vma: Vma, what: str) -> None:
        """A VMA's policy, name, userfaultfd or anon_vma (what) has changed."""

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        """A VMA grew or shrank other than by a split or a merge."""

    def forked(self, child: Mm, parent: Mm) -> None:
        """An address space is a copy of another."""
