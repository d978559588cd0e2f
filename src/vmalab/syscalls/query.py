"""Calls that ask about memory, or concern the file behind it, and change no VMA: msync, mincore, seals of a memfd."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_MASK, ULONG_END, page_up, within_word
from vmalab.flags import (
    F_SEAL_EXEC,
    F_SEAL_FUTURE_WRITE,
    F_SEAL_GROW,
    F_SEAL_SEAL,
    F_SEAL_SHRINK,
    F_SEAL_WRITE,
    MS_ASYNC,
    MS_INVALIDATE,
    MS_SYNC,
    VM_LOCKED,
    VM_SHARED,
)
from vmalab.reason import (
    BEYOND_USER,
    NOT_MAPPED,
    RANGE_WRAPS,
    SEALS_MAPPED,
    SEALS_NOT_SUPPORTED,
    SEALS_NOT_WRITABLE,
    SEALS_SEALED,
    SEALS_UNKNOWN,
    SYNC_FLAGS,
    SYNC_LOCKED,
    SYNC_NOTHING,
    UNALIGNED,
    YES,
)
from vmalab.vma.area import File
from vmalab.vma.space import Mm

_KINDS_OF_WRITING: Final = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
_ALL_SEALS: Final = _KINDS_OF_WRITING | F_SEAL_SEAL | F_SEAL_EXEC


def msync(mm: Mm, start: int, length: int, flags: int) -> int:
    """msync as far as it is refused: 0 or minus a reason.  Holes are passed over, and told at the end."""
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC):
        return -SYNC_FLAGS
    if start & PAGE_MASK:
        return -UNALIGNED
    if flags & MS_ASYNC and flags & MS_SYNC:
        return -SYNC_FLAGS
    # The length is rounded in 64 bits, and may wrap to nothing.
    end = start + page_up(length) % ULONG_END
    if end >= ULONG_END:
        return -RANGE_WRAPS
    if end == start:
        return 0
    mm.mmap_read_lock()
    refusal = _msync_range(mm, start, end, flags)
    mm.mmap_read_unlock()
    return -refusal


def _msync_range(mm: Mm, start: int, end: int, flags: int) -> int:
    result = YES
    at = start
    while at < end:
        vma = mm.find_vma(at)
        if vma is None or vma.start >= within_word(end):
            return NOT_MAPPED
        if vma.start > at:
            if flags == MS_ASYNC:
                return NOT_MAPPED
            result = NOT_MAPPED
        if flags & MS_INVALIDATE and vma.flags & VM_LOCKED:
            return SYNC_LOCKED
        file = vma.file
        if flags & MS_SYNC and file is not None and file.kind == "secretmem" and vma.flags & VM_SHARED:
            return SYNC_NOTHING
        at = vma.end
    return result


def mincore(mm: Mm, start: int, length: int) -> int:
    """mincore into a good buffer, as far as it is refused: 0 or minus a reason."""
    if start & PAGE_MASK:
        return -UNALIGNED
    end = start + length
    if end > mm.task_size:
        return -BEYOND_USER
    mm.mmap_read_lock()
    at = start
    refusal = YES
    while at < end:
        vma = mm.vma_lookup(at)
        if vma is None:
            refusal = NOT_MAPPED
            break
        at = vma.end
    mm.mmap_read_unlock()
    return -refusal


def add_seals(file: File, seals: int) -> int:
    """F_ADD_SEALS: 0 or minus a reason (memfd_add_seals)."""
    if not file.writable:
        return -SEALS_NOT_WRITABLE
    if seals & ~_ALL_SEALS:
        return -SEALS_UNKNOWN
    if file.kind != "memfd":
        return -SEALS_NOT_SUPPORTED
    if file.seals & F_SEAL_SEAL:
        return -SEALS_SEALED
    if seals & F_SEAL_EXEC and not file.noexec:
        # What can be executed is not to change.
        seals |= _KINDS_OF_WRITING
    if seals & F_SEAL_WRITE and not file.seals & F_SEAL_WRITE and file.writers:
        return -SEALS_MAPPED
    file.seals |= seals
    return 0
