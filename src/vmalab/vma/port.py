"""All that the core needs from outside: effects on pages, driver hooks, and the failure of allocations.

The kernel has one replaceable header for this (mm/vma_internal.h).  A port carries effects and failures and never an
input to a decision: what decides a merge is a field that the core compares itself.  Every method has a default that
does nothing and fails nothing, so a port overrides what it cares for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from vmalab.reason import YES

if TYPE_CHECKING:
    from vmalab.vma.area import File, Vma
    from vmalab.vma.shm import Segment

ALLOC_VMA: Final = 1
"""A VMA: vm_area_alloc, vm_area_dup."""
ALLOC_TREE: Final = 2
"""Nodes of the maple tree, preallocated before anything is changed."""
ALLOC_POLICY: Final = 3
"""A copy of a memory policy."""
ALLOC_ANON_VMA: Final = 4
"""An anon_vma or an element of its chain."""
ALLOC_DETACH: Final = 5
"""A node of the side tree in which munmap gathers."""

ALLOC_PAGE: Final = 6
"""A page, or a large folio."""
ALLOC_PAGE_TABLE: Final = 7

SITE_NAMES: Final[dict[int, str]] = {
    ALLOC_VMA: "vma",
    ALLOC_TREE: "tree",
    ALLOC_POLICY: "policy",
    ALLOC_ANON_VMA: "anon_vma",
    ALLOC_DETACH: "detach",
    ALLOC_PAGE: "page",
    ALLOC_PAGE_TABLE: "page table",
}


@mypyc_attr(allow_interpreted_subclasses=True)
class Port:
    """The outside of the core.  This one does nothing and never fails."""

    def may_fail(self, site: int) -> bool:
        """Whether the allocation at this site (an ALLOC_ number) fails."""
        return False

    def unmap_pages(self, vma: Vma, start: int, end: int) -> None:
        """The pages of [start, end) leave the page tables; vma still describes them."""

    def move_pages(self, vma: Vma, new_vma: Vma, old: int, new: int, length: int) -> int:
        """Move page tables from old to new.  Returns how many bytes were moved; less than length is out of memory."""
        return length

    def copy_pages(self, copy: Vma, vma: Vma) -> int:
        """fork: the child's copy of a VMA sees the same pages.  YES or a reason."""
        return YES

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        """vma has new bounds (the reverse map is keyed by them)."""

    def anon_vma_changed(self, vma: Vma) -> None:
        """vma has a new anon_vma, chain, or none."""

    def opened(self, vma: Vma) -> None:
        """The driver's open hook: vma is a copy or a part of an older VMA."""

    def closed(self, vma: Vma) -> None:
        """The driver's close hook: vma is about to be freed."""

    def may_split(self, vma: Vma, addr: int) -> int:
        """The driver's word on a split at addr: YES or a reason."""
        return YES

    def mapped(self, vma: Vma) -> int:
        """The driver's mmap hook for a new VMA of a file: YES or a reason."""
        return YES

    def reserve_huge(self, file: File) -> int:
        """Promise all its huge pages to a file that is new and not mapped yet: YES or a reason."""
        return YES

    def forget_segment(self, segment: Segment) -> None:
        """A segment of shared memory is gone: nobody maps it, and nobody can any more."""

    def moved(self, vma: Vma) -> int:
        """The driver's mremap hook: YES or a reason."""
        return YES
