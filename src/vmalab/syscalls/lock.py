"""mlock, mlock2, munlock, mlockall and munlockall."""

from __future__ import annotations

from vmalab.addr import PAGE_MASK, PAGE_SHIFT, ULONG_END, page_down, page_up, within_word
from vmalab.flags import (
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_SPECIAL,
)
from vmalab.reason import (
    LENGTH_WRAPS,
    LIMIT_MEMLOCK,
    LOCK_NOT_PERMITTED,
    NOT_MAPPED,
    POPULATE_FAULT,
    POPULATE_FAULT_LOCK,
    UNKNOWN_FLAGS,
    YES,
)
from vmalab.syscalls.map import can_do_mlock
from vmalab.syscalls.populate import mm_populate
from vmalab.vma.area import Vma
from vmalab.vma.modify import vma_modify_flags
from vmalab.vma.space import Mm


def mlock(mm: Mm, start: int, length: int, flags: int = 0) -> int:
    """mlock and mlock2: 0 or minus a reason.  What was locked before a hole stays locked."""
    if flags & ~MLOCK_ONFAULT:
        return -UNKNOWN_FLAGS
    vm_flags = VM_LOCKED | VM_LOCKONFAULT if flags & MLOCK_ONFAULT else VM_LOCKED
    if not can_do_mlock(mm):
        return -LOCK_NOT_PERMITTED
    length = page_up(length + (start & PAGE_MASK)) % ULONG_END
    start = page_down(start)
    mm.mmap_write_lock()
    refusal = _do_mlock(mm, start, length, vm_flags)
    mm.mmap_write_unlock()
    if refusal == YES:
        refusal = mm_populate(mm, start, start + length)
    return -(POPULATE_FAULT_LOCK if refusal == POPULATE_FAULT else refusal)


def _do_mlock(mm: Mm, start: int, length: int, vm_flags: int) -> int:
    locked = (length >> PAGE_SHIFT) + mm.locked_vm
    limit = mm.limits.memlock >> PAGE_SHIFT
    if locked > limit and not mm.limits.ipc_lock:
        # What is locked already is not counted twice.
        locked -= _locked_pages(mm, start, start + length)
        if locked > limit:
            return LIMIT_MEMLOCK
    return _apply_vma_lock_flags(mm, start, length, vm_flags)


def _locked_pages(mm: Mm, start: int, end: int) -> int:
    count = 0
    end = within_word(end)
    for vma in mm.tree.walk(start, end):
        if vma.flags & VM_LOCKED:
            count += min(end, vma.end) - max(start, vma.start)
    return count >> PAGE_SHIFT


def munlock(mm: Mm, start: int, length: int) -> int:
    """munlock: 0 or minus a reason."""
    length = page_up(length + (start & PAGE_MASK)) % ULONG_END
    mm.mmap_write_lock()
    refusal = _apply_vma_lock_flags(mm, page_down(start), length, 0)
    mm.mmap_write_unlock()
    return -refusal


def _apply_vma_lock_flags(mm: Mm, start: int, length: int, flags: int) -> int:
    end = start + length
    if end >= ULONG_END:
        return LENGTH_WRAPS
    at = start
    while at < end:
        vma = mm.vma_lookup(at)
        if vma is None:
            return NOT_MAPPED
        upto: int = min(vma.end, within_word(end))
        vma, refusal = _mlock_fixup(vma, at, upto, vma.flags & ~VM_LOCKED_MASK | flags)
        if refusal != YES:
            return refusal
        at = max(upto, vma.end)
    return YES


def _mlock_fixup(vma: Vma, start: int, end: int, flags: int) -> tuple[Vma, int]:
    """Lock or unlock [start, end) of a VMA, unless it is of a kind that is never locked."""
    old: int = vma.flags
    if flags == old or old & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE) or (vma.ops is not None and vma.ops.never_locked):
        return vma, YES
    modified, refusal = vma_modify_flags(vma, start, end, flags)
    if refusal != YES:
        return modified, refusal
    pages = (end - start) >> PAGE_SHIFT
    if not flags & VM_LOCKED:
        modified.mm.locked_vm -= pages
    elif not old & VM_LOCKED:
        modified.mm.locked_vm += pages
    return modified, YES


def mlockall(mm: Mm, flags: int) -> int:
    """mlockall: 0 or minus a reason."""
    if flags == 0 or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        return -UNKNOWN_FLAGS
    if not can_do_mlock(mm):
        return -LOCK_NOT_PERMITTED
    mm.mmap_write_lock()
    over = mm.total_vm > mm.limits.memlock >> PAGE_SHIFT
    refused = flags & MCL_CURRENT and over and not mm.limits.ipc_lock
    if not refused:
        _apply_mlockall_flags(mm, flags)
    mm.mmap_write_unlock()
    if refused:
        return -LIMIT_MEMLOCK
    if flags & MCL_CURRENT:
        # As __mm_populate with errors ignored: one VMA that cannot be populated does not stop the others.
        for vma in mm.vmas():
            mm_populate(mm, vma.start, vma.end)
    return 0


def munlockall(mm: Mm) -> int:
    """munlockall: 0."""
    mm.mmap_write_lock()
    _apply_mlockall_flags(mm, 0)
    mm.mmap_write_unlock()
    return 0


def _apply_mlockall_flags(mm: Mm, flags: int) -> None:
    """Set what new VMAs get and, for the present ones, their locks; errors of single VMAs are ignored."""
    locked = VM_LOCKED | VM_LOCKONFAULT if flags & MCL_ONFAULT else VM_LOCKED
    mm.def_flags &= ~VM_LOCKED_MASK
    if flags & MCL_FUTURE:
        mm.def_flags |= locked
        if not flags & MCL_CURRENT:
            return
    wanted = locked if flags & MCL_CURRENT else 0
    vma = mm.find_vma(0)
    while vma is not None:
        end: int = vma.end
        vma, _ = _mlock_fixup(vma, vma.start, vma.end, vma.flags & ~VM_LOCKED_MASK | wanted)
        vma = mm.find_vma(max(end, vma.end))
