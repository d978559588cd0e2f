"""shmat and shmdt: System V shared memory, as far as VMAs are concerned."""

from __future__ import annotations

from vmalab.addr import PAGE_MASK, PAGE_SHIFT, ULONG_END, page_down, page_up
from vmalab.flags import (
    MAP_FIXED,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SHM_EXEC,
    SHM_RDONLY,
    SHM_REMAP,
    SHM_RND,
    VM_LOCKED,
)
from vmalab.reason import SHM_NOT_ATTACHED, SHM_OVERLAPS, SHM_REMAP_NEEDS_ADDRESS, UNALIGNED, YES
from vmalab.syscalls.map import do_mmap
from vmalab.syscalls.populate import mm_populate
from vmalab.vma.area import File
from vmalab.vma.space import Mm
from vmalab.vma.unmap import munmap_range


def shmat(mm: Mm, segment: File, size: int, addr: int, flags: int) -> int:
    """Attach a segment of size bytes: the address, or minus a reason.  Every attach is a file of its own."""
    map_flags = MAP_SHARED
    if addr:
        if addr & PAGE_MASK:
            if not flags & SHM_RND:
                return -UNALIGNED
            addr = page_down(addr)
            if addr == 0 and flags & SHM_REMAP:
                return -SHM_REMAP_NEEDS_ADDRESS
        map_flags |= MAP_FIXED
    elif flags & SHM_REMAP:
        return -SHM_REMAP_NEEDS_ADDRESS
    prot = PROT_READ if flags & SHM_RDONLY else PROT_READ | PROT_WRITE
    if flags & SHM_EXEC:
        prot |= PROT_EXEC
    mm.mmap_write_lock()
    if addr and not flags & SHM_REMAP and _is_in_the_way(mm, addr, addr + size):
        result = -SHM_OVERLAPS
    else:
        segment.writable = not flags & SHM_RDONLY
        segment.size = size
        result = do_mmap(mm, segment, addr, size, prot, map_flags, 0, 0)
    mm.mmap_write_unlock()
    if result >= 0 and mm.def_flags & VM_LOCKED:
        mm_populate(mm, result, result + page_up(size))
    return result


def _is_in_the_way(mm: Mm, start: int, end: int) -> bool:
    return end >= ULONG_END or mm.find_vma_intersection(start, end) is not None


def shmdt(mm: Mm, addr: int) -> int:
    """Detach the segment that is attached at addr: 0 or minus a reason.  Parts of it that were moved away stay."""
    if addr & PAGE_MASK:
        return -SHM_NOT_ATTACHED
    mm.mmap_write_lock()
    refusal = _detach(mm, addr)
    mm.mmap_write_unlock()
    return -refusal


def _detach(mm: Mm, addr: int) -> int:
    first = mm.find_vma(addr)
    while first is not None and not (
        first.file is not None
        and first.ops is not None
        and first.ops.name == "shm"
        and first.start - addr == first.pgoff << PAGE_SHIFT
    ):
        first = mm.find_vma(first.end)
    if first is None:
        return SHM_NOT_ATTACHED
    file = first.file
    assert file is not None
    pieces = [(first.start, first.end)]
    vma = mm.find_vma(first.end)
    while vma is not None and vma.end - addr <= page_up(file.size):
        if vma.file is file and vma.start - addr == vma.pgoff << PAGE_SHIFT:
            pieces.append((vma.start, vma.end))
        vma = mm.find_vma(vma.end)
    for start, end in pieces:
        munmap_range(mm, start, end)
    return YES
