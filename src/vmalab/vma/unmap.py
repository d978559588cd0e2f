"""Unmapping in two steps: gather what can still refuse, complete what cannot.

gather splits the VMAs at both ends of the range and detaches what lies inside.  It may refuse, and then the VMAs are
attached again while the splits that were made stay.  complete frees pages, counters and VMAs.
"""

from __future__ import annotations

from typing import final

from mypy_extensions import i64, mypyc_attr

from vmalab.addr import PAGE_MASK, page_up
from vmalab.flags import UFFD_EVENT_UNMAP, UFFD_FEATURE_EVENT_UNMAP, VM_ACCOUNT, VM_LOCKED, VM_SEALED
from vmalab.reason import (
    BEYOND_TASK_SIZE,
    LENGTH_ZERO,
    MAP_COUNT_UNMAP,
    NO_MEMORY_TREE,
    SEALED,
    UNALIGNED,
    YES,
)
from vmalab.vma.area import UffdMessage, Userfaultfd, Vma
from vmalab.vma.modify import split_vma_unchecked
from vmalab.vma.port import ALLOC_DETACH, ALLOC_TREE
from vmalab.vma.space import Mm


@mypyc_attr(free_list_len=1, acyclic=True)
@final
class Gathered:
    """The VMAs that fill [start, end), about to go, and what their going gives back (struct vma_munmap_struct)."""

    __slots__ = ("accounted", "count", "end", "first", "mm", "more", "pages", "start", "told")

    def __init__(self, mm: Mm, start: i64, end: i64) -> None:
        self.mm: Mm = mm
        self.start: i64 = start
        self.end: i64 = end
        self.first: Vma | None = None
        """The lowest of them: most of the time there is no other."""
        self.more: list[Vma] | None = None
        """Those above it, in order."""
        self.count: i64 = 0
        self.pages: i64 = 0
        self.accounted: i64 = 0
        """Committed pages among them."""
        self.told: list[Userfaultfd] | None = None
        """The userfaultfds that know of it."""

    def take(self, vma: Vma) -> None:
        """One more VMA, above the others."""
        if self.first is None:
            self.first = vma
        elif self.more is None:
            self.more = [vma]
        else:
            self.more.append(vma)
        npages = vma.pages()
        self.count += 1
        self.pages += npages
        if vma.flags & VM_ACCOUNT:
            self.accounted += npages


def gather(gathered: Gathered) -> i64:
    """Split at both ends and collect the VMAs inside (vms_gather_munmap_vmas).  YES or a reason."""
    mm = gathered.mm
    mm.assert_write_locked()
    start = gathered.start
    end = gathered.end
    vma = mm.find_vma_intersection(start, end)
    if vma is None:
        return YES
    if start > vma.start:
        # Cutting out a middle is the one way in which unmapping makes more VMAs.
        if end < vma.end and mm.map_count >= mm.settings.max_map_count:
            return MAP_COUNT_UNMAP
        if vma.flags & VM_SEALED:
            return SEALED
        _, refusal = split_vma_unchecked(vma, start, True)
        if refusal != YES:
            return refusal
    while True:
        if vma.flags & VM_SEALED:
            return SEALED
        if vma.end > end:
            _, refusal = split_vma_unchecked(vma, end, False)
            if refusal != YES:
                return refusal
        if not mm.quiet and mm.port.may_fail(ALLOC_DETACH):
            return NO_MEMORY_TREE
        gathered.take(vma)
        if vma.end >= end:
            return YES
        vma = mm.tree.find(vma.end)
        if vma is None or vma.start >= end:
            return YES


def zap(gathered: Gathered) -> None:
    """The point of no return: the pages go, drivers and userfaultfds are told, and the range is empty."""
    assert gathered.first is not None
    _zap_vma(gathered, gathered.first)
    if gathered.more is not None:
        for vma in gathered.more:
            _zap_vma(gathered, vma)
    gathered.mm.tree.erase(gathered.start, gathered.end)


def _zap_vma(gathered: Gathered, vma: Vma) -> None:
    if vma.uffd is not None:
        _tell_unmapped(gathered, vma.uffd)
    mm = gathered.mm
    if not mm.quiet:
        mm.port.unmap_pages(vma, vma.start, vma.end)
    if vma.ops is not None:
        mm.vma_close(vma)


def _tell_unmapped(gathered: Gathered, uffd: Userfaultfd) -> None:
    """Tell a userfaultfd that the range goes, if it wants to know and does not yet."""
    told = [] if gathered.told is None else gathered.told
    if uffd.has(UFFD_FEATURE_EVENT_UNMAP) and not any([each is uffd for each in told]):
        uffd.tell(UffdMessage(UFFD_EVENT_UNMAP, gathered.start, gathered.end))
        gathered.told = [*told, uffd]


def complete(gathered: Gathered) -> None:
    """Free what was zapped and give back what it counted (vms_complete_munmap_vmas)."""
    mm = gathered.mm
    mm.map_count -= gathered.count
    assert gathered.first is not None
    _complete_vma(mm, gathered.first)
    if gathered.more is not None:
        for vma in gathered.more:
            _complete_vma(mm, vma)
    mm.commit.uncharge(gathered.accounted)


def _complete_vma(mm: Mm, vma: Vma) -> None:
    npages = vma.pages()
    if vma.flags & VM_LOCKED:
        mm.locked_vm -= npages
    mm.vm_stat_account(vma.flags, -npages)
    mm.observer.removed(vma)
    mm.free(vma, "munmap")


def munmap_range(mm: Mm, start: i64, end: i64) -> i64:
    """Unmap the page-aligned range [start, end) (do_vmi_align_munmap).  YES or a reason."""
    gathered = Gathered(mm, start, end)
    refusal = gather(gathered)
    if refusal != YES or gathered.first is None:
        return refusal
    if not mm.quiet and mm.port.may_fail(ALLOC_TREE):
        return NO_MEMORY_TREE
    zap(gathered)
    complete(gathered)
    return YES


def do_munmap(mm: Mm, start: int, length: int) -> int:
    """Unmap length bytes, rounded up to pages, from start (do_vmi_munmap).  YES or a reason; holes are fine."""
    if start & PAGE_MASK:
        return UNALIGNED
    if start + length > mm.task_size:
        return BEYOND_TASK_SIZE
    end = start + page_up(length)
    if end == start:
        return LENGTH_ZERO
    return munmap_range(mm, start, end)
