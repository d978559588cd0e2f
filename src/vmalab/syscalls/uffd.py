"""userfaultfd registration, as far as VMAs are concerned."""

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
from vmalab.reason import (
    BEYOND_TASK_SIZE,
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
            found, refusal = vma_modify_uffd(found, max(at, found.start), upto, found.flags & ~VM_UFFD, None)
            if refusal != YES:
                return refusal
        at = max(upto, found.end)
    return YES


def release(mm: Mm, uffd: Userfaultfd) -> None:
    """Closing a userfaultfd: every VMA that is registered with it leaves it."""
    mm.mmap_write_lock()
    vma = mm.find_vma(0)
    while vma is not None:
        end: int = vma.end
        if vma.uffd is uffd:
            vma, _ = vma_modify_uffd(vma, vma.start, vma.end, vma.flags & ~VM_UFFD, None)
        vma = mm.find_vma(max(end, vma.end))
    mm.mmap_write_unlock()
