"""userfaultfd: registration, and the answers to its faults."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_MASK, PAGE_SIZE
from vmalab.flags import (
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_MAYWRITE,
    VM_UFFD,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
)
from vmalab.pages import uffd as pages
from vmalab.pages.memory import Memory
from vmalab.pages.port import memory_of
from vmalab.reason import (
    BEYOND_TASK_SIZE,
    FILL_PARTLY,
    LENGTH_ZERO,
    UFFD_BAD_MODE,
    UFFD_BUSY,
    UFFD_NOT_ANONYMOUS,
    UFFD_NOT_WRITABLE,
    UFFD_NOTHING_MAPPED,
    UFFD_OF_ANOTHER,
    UNALIGNED,
    YES,
)
from vmalab.vma.area import Userfaultfd, Vma
from vmalab.vma.modify import vma_modify_uffd
from vmalab.vma.space import Mm

REGISTER_MODE_MISSING: Final = 1
REGISTER_MODE_WP: Final = 2
REGISTER_MODE_MINOR: Final = 4
MODE_DONTWAKE: Final = 1
MODE_WP: Final = 2
WRITEPROTECT_WP: Final = 1
WRITEPROTECT_DONTWAKE: Final = 2


def _check_range(mm: Mm, start: int, length: int) -> int:
    if start & PAGE_MASK or length & PAGE_MASK:
        return UNALIGNED
    if length == 0:
        return LENGTH_ZERO
    if start >= mm.task_size or length > mm.task_size - start:
        return BEYOND_TASK_SIZE
    return YES


def vma_can_userfault(vma: Vma, flags: int, wp_async: bool) -> bool:
    """Whether a VMA can be registered with these VM_UFFD_ flags: anonymous, shmem or hugetlb memory."""
    if vma.flags & VM_DROPPABLE:
        return False
    kind = "" if vma.ops is None else vma.ops.name
    if flags & VM_UFFD_MINOR and kind not in ("hugetlb", "shmem"):
        return False
    if wp_async and flags == VM_UFFD_WP:
        # Nobody waits for an answer: any memory will do.
        return True
    return kind in ("", "hugetlb", "shmem")


def _page_size(vma: Vma) -> int:
    """The size in bytes of the pages of a VMA."""
    return vma.file.huge_size if vma.flags & VM_HUGETLB and vma.file is not None else PAGE_SIZE


def register(mm: Mm, uffd: Userfaultfd, start: int, length: int, mode: int) -> int:
    """UFFDIO_REGISTER: 0 or minus a reason.  Registering again replaces the mode,
    unless it asks for less than there is.
    """
    if mode == 0 or mode & ~7:
        return -UFFD_BAD_MODE
    refusal = _check_range(mm, start, length)
    if refusal != YES:
        return -refusal
    wanted = (
        (VM_UFFD_MISSING if mode & REGISTER_MODE_MISSING else 0)
        | (VM_UFFD_WP if mode & REGISTER_MODE_WP else 0)
        | (VM_UFFD_MINOR if mode & REGISTER_MODE_MINOR else 0)
    )
    mm.mmap_write_lock()
    refusal = _register_range(mm, uffd, start, start + length, wanted)
    mm.mmap_write_unlock()
    return -refusal


def _register_range(mm: Mm, uffd: Userfaultfd, start: int, end: int, wanted: int) -> int:
    vmas = mm.tree.walk(start, end)
    if not vmas:
        return UFFD_NOTHING_MAPPED
    if start & (_page_size(vmas[0]) - 1):
        return UNALIGNED
    for vma in vmas:
        if not vma_can_userfault(vma, wanted, uffd.wp_async):
            return UFFD_NOT_ANONYMOUS
        if not vma.flags & VM_MAYWRITE:
            return UFFD_NOT_WRITABLE
        if vma.uffd is not None and vma.uffd is not uffd:
            return UFFD_BUSY
        if vma.start < end <= vma.end and end & (_page_size(vma) - 1):
            return UNALIGNED
    at = start
    while at < end:
        found = mm.find_vma_intersection(at, end)
        if found is None:
            break
        upto: int = min(found.end, end)
        flags = found.flags & ~VM_UFFD | wanted
        if found.uffd is not uffd or found.flags & wanted != wanted:
            found, refusal = vma_modify_uffd(found, max(at, found.start), upto, flags, uffd)
            if refusal != YES:
                return refusal
        at = max(upto, found.end)
    return YES


def unregister(mm: Mm, uffd: Userfaultfd, start: int, length: int) -> int:
    """UFFDIO_UNREGISTER: 0 or minus a reason."""
    refusal = _check_range(mm, start, length)
    if refusal != YES:
        return -refusal
    mm.mmap_write_lock()
    refusal = _unregister_range(mm, uffd, start, start + length)
    mm.mmap_write_unlock()
    return -refusal


def _unregister_range(mm: Mm, uffd: Userfaultfd, start: int, end: int) -> int:
    vmas = mm.tree.walk(start, end)
    if not vmas:
        return UFFD_NOTHING_MAPPED
    if start & (_page_size(vmas[0]) - 1):
        return UNALIGNED
    for vma in vmas:
        if vma.uffd is not None and vma.uffd is not uffd:
            return UFFD_OF_ANOTHER
        if not vma_can_userfault(vma, vma.flags & VM_UFFD, uffd.wp_async):
            return UFFD_NOT_ANONYMOUS
    at = start
    while at < end:
        found = mm.find_vma_intersection(at, end)
        if found is None:
            break
        upto: int = min(found.end, end)
        if found.uffd is not None:
            found, refusal = _clear(found, max(at, found.start), upto)
            if refusal != YES:
                return refusal
        at = max(upto, found.end)
    return YES


def _clear(vma: Vma, start: int, end: int) -> tuple[Vma, int]:
    """Let [start, end) of a VMA leave its userfaultfd, and its pages the protection (userfaultfd_clear_vma)."""
    memory = memory_of(vma.mm)
    if memory is not None and vma.flags & VM_UFFD_WP:
        pages.protect_range(memory, vma, start, end, False)
    return vma_modify_uffd(vma, start, end, vma.flags & ~VM_UFFD, None)


def fill(mm: Mm, memory: Memory, start: int, length: int, kind: int, mode: int, data: bytes) -> int:
    """UFFDIO_COPY (of data), _ZEROPAGE, _CONTINUE and _POISON, by kind: 0 or minus a reason."""
    refusal = _check_range(mm, start, length)
    if refusal != YES:
        return -refusal
    if mode & ~(MODE_DONTWAKE | (MODE_WP if kind in (pages.COPY, pages.CONTINUE) else 0)):
        return -UFFD_BAD_MODE
    mm.mmap_read_lock()
    done, refusal = pages.fill(memory, mm, start, length, data, kind, mode & MODE_WP != 0)
    mm.mmap_read_unlock()
    return -(FILL_PARTLY if refusal != YES and done else refusal)


def write_protect(mm: Mm, memory: Memory, start: int, length: int, mode: int) -> int:
    """UFFDIO_WRITEPROTECT: 0 or minus a reason."""
    refusal = _check_range(mm, start, length)
    if refusal != YES:
        return -refusal
    if mode & ~(WRITEPROTECT_WP | WRITEPROTECT_DONTWAKE) or mode == WRITEPROTECT_WP | WRITEPROTECT_DONTWAKE:
        return -UFFD_BAD_MODE
    mm.mmap_read_lock()
    refusal = pages.write_protect(memory, mm, start, start + length, mode & WRITEPROTECT_WP != 0)
    mm.mmap_read_unlock()
    return -refusal


def release(mm: Mm, uffd: Userfaultfd) -> None:
    """Closing a userfaultfd: every VMA that is registered with it leaves it."""
    mm.mmap_write_lock()
    vma = mm.find_vma(0)
    while vma is not None:
        end: int = vma.end
        if vma.uffd is uffd:
            vma, _ = _clear(vma, vma.start, vma.end)
        vma = mm.find_vma(max(end, vma.end))
    mm.mmap_write_unlock()
