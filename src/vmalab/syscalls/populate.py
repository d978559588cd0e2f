"""Populating: what mlock, MAP_POPULATE and MADV_POPULATE_ do to the VMAs whose pages they touch."""

from __future__ import annotations

from vmalab.flags import (
    VM_ACCESS,
    VM_EXEC,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKONFAULT,
    VM_MAYBE_GUARD,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from vmalab.pages.access import populate_pages, touch
from vmalab.pages.port import memory_of
from vmalab.reason import (
    FAULT_BEYOND_FILE,
    FAULT_NO_HUGE_PAGES,
    FAULT_NO_PERMISSION,
    FAULT_NOT_MAPPED,
    FAULT_PKEY,
    NOT_MAPPED,
    POPULATE_FAULT,
    POPULATE_NO_PERMISSION,
    YES,
)
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import Vma
from vmalab.vma.relocate import expand_stack
from vmalab.vma.space import Mm

UNCERTAIN: int = -1
"""Instead of a reason: nothing is assumed of the pages from here on."""


def _breaks_cow(vma: Vma) -> bool:
    """Whether populating writes: private writable memory gets pages of its own at once."""
    return vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE


def _pkey_denies(vma: Vma) -> bool:
    """Whether the protection key of memory that can be executed only is in the way of reading and writing it.

    The rights of other keys are a register of each thread, which the model does not have.
    """
    key = (vma.flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT
    return key != 0 and key == vma.mm.execute_only_pkey


def _is_secret(vma: Vma) -> bool:
    """Secret memory has pages that only its owner touches: the kernel does not take hold of them."""
    return vma.file is not None and vma.file.kind == "secretmem"


def mm_populate(mm: Mm, start: int, end: int) -> int:
    """Touch the pages of [start, end), under a lock of its own (__mm_populate).  As populate_range."""
    mm.mmap_read_lock()
    refusal = populate_range(mm, start, end)
    mm.mmap_read_unlock()
    return refusal


def populate_range(mm: Mm, start: int, end: int) -> int:
    """Touch the pages of [start, end) with the lock held: YES, or POPULATE_FAULT at the first page that cannot be.

    Holes end it, IO and PFNMAP VMAs are passed over, locked-on-fault ones are left alone.
    """
    vma = mm.find_vma(start) if start < end else None
    while vma is not None and vma.start < end:
        if not vma.flags & (VM_IO | VM_PFNMAP | VM_LOCKONFAULT):
            if not vma.flags & VM_ACCESS or _pkey_denies(vma) or _is_secret(vma):
                return POPULATE_FAULT
            refusal = _populate_vma(vma, start, end, _breaks_cow(vma))
            if refusal != YES:
                return YES if refusal == UNCERTAIN else refusal
        vma = mm.find_vma(vma.end)
    return YES


def _populate_vma(vma: Vma, start: int, end: int, breaks_cow: bool) -> int:
    """Touch the pages of a VMA in [start, end): YES, POPULATE_FAULT, or UNCERTAIN where pages are observed."""
    memory = memory_of(vma.mm)
    if memory is not None:
        refusal = populate_pages(memory, vma, max(start, vma.start), min(end, vma.end), breaks_cow)
        return POPULATE_FAULT if refusal != YES else YES
    observed = vma.mm.faults_observed
    if observed and vma.flags & VM_MAYBE_GUARD:
        return UNCERTAIN
    if (breaks_cow and not vma.flags & VM_SHARED) or _takes_huge_page(vma):
        # Before the file is asked for the page.
        refusal = anon_vma_prepare(vma)
        if refusal != YES:
            return refusal
    if observed and pages_uncertain(vma):
        return UNCERTAIN
    if _beyond_file(vma, min(end, vma.end) - 1) or _pool_is_empty(vma):
        return POPULATE_FAULT
    return YES


def pages_uncertain(vma: Vma) -> bool:
    """Whether a page of a VMA may not be there to populate: beyond the end of a file, or a guard marker."""
    return vma.flags & VM_MAYBE_GUARD != 0 or (vma.file is not None and vma.file.size < 0)


def _beyond_file(vma: Vma, addr: int) -> bool:
    """Whether an address lies beyond the end of its file, as far as that is known."""
    file = vma.file
    return file is not None and 0 <= file.size <= vma.offset_at(addr)


def _takes_huge_page(vma: Vma) -> bool:
    """Private huge pages are the process's own from the first access on, also if that only reads."""
    return vma.flags & (VM_HUGETLB | VM_MAYSHARE) == VM_HUGETLB


def _pool_is_empty(vma: Vma) -> bool:
    """Whether there is no huge page for a VMA that has none reserved."""
    return vma.flags & VM_HUGETLB != 0 and vma.mm.settings.hugepages == 0


def madvise_populate(mm: Mm, start: int, end: int, write: bool) -> int:
    """MADV_POPULATE_READ and _WRITE: YES, NOT_MAPPED at a hole, POPULATE_NO_PERMISSION."""
    mm.mmap_read_lock()
    refusal = _madvise_populate(mm, start, end, write)
    mm.mmap_read_unlock()
    return refusal


def _madvise_populate(mm: Mm, start: int, end: int, write: bool) -> int:
    at = start
    while at < end:
        vma = mm.vma_lookup(at)
        if vma is None:
            return NOT_MAPPED
        if (
            vma.flags & (VM_IO | VM_PFNMAP)
            or _pkey_denies(vma)
            or _is_secret(vma)
            or not vma.flags & (VM_WRITE if write else VM_READ)
        ):
            return POPULATE_NO_PERMISSION
        refusal = _populate_vma(vma, at, end, write)
        if refusal != YES:
            return YES if refusal == UNCERTAIN else refusal
        at = vma.end
    return YES


def grow_stack(vma: Vma, addr: int) -> int:
    """Grow a stack with the lock held for reading, which is exchanged for the write lock meanwhile."""
    mm = vma.mm
    mm.mmap_read_unlock()
    mm.mmap_write_lock()
    refusal = expand_stack(vma, addr)
    mm.mmap_write_unlock()
    mm.mmap_read_lock()
    return refusal


def handle_fault(mm: Mm, addr: int, write: bool, execute: bool = False) -> int:
    """One access to addr: grow a stack, check permissions, and give memory that is written to an anon_vma.

    execute: an instruction is fetched.  On x86 a page from which none may be is made present all the same.

    YES, or the reason for SIGSEGV or SIGBUS: FAULT_NOT_MAPPED, FAULT_NO_PERMISSION, or why a stack may not grow.
    """
    mm.mmap_read_lock()
    refusal = _handle_fault(mm, addr, write, execute)
    mm.mmap_read_unlock()
    return refusal


def _handle_fault(mm: Mm, addr: int, write: bool, execute: bool) -> int:
    vma = mm.find_vma(addr)
    if vma is None:
        return FAULT_NOT_MAPPED
    if addr < vma.start:
        refusal = grow_stack(vma, addr)
        if refusal != YES:
            return FAULT_NOT_MAPPED if mm.start_gap(vma) == vma.start else refusal
    if not execute and _pkey_denies(vma):
        return FAULT_PKEY
    if not vma.flags & (VM_WRITE if write else VM_ACCESS):
        return FAULT_NO_PERMISSION
    refusal = _fault_in(mm, vma, addr, write)
    if execute and refusal == YES and not vma.flags & VM_EXEC:
        # It is noticed when the page is there.
        return FAULT_NO_PERMISSION
    return refusal


def _fault_in(mm: Mm, vma: Vma, addr: int, write: bool) -> int:
    """Make a page accessible whose VMA permits the access: YES, or the reason for SIGBUS or for a guard's SIGSEGV."""
    memory = memory_of(mm)
    if memory is not None:
        return touch(memory, vma, addr, write)
    if (write and not vma.flags & (VM_SHARED | VM_MAYSHARE)) or _takes_huge_page(vma):
        # Before the file is asked for the page.
        refusal = anon_vma_prepare(vma)
        if refusal != YES:
            return refusal
    if _pool_is_empty(vma):
        return FAULT_NO_HUGE_PAGES
    return FAULT_BEYOND_FILE if _beyond_file(vma, addr) else YES
