"""Which sizes of transparent huge pages memory may have: by the settings, the VMA, and the place."""

from __future__ import annotations

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE, page_up
from vmalab.flags import THP_DISABLE_EXCEPT_ADVISED, VM_HUGEPAGE, VM_NOHUGEPAGE
from vmalab.pages.folio import PMD_ORDER
from vmalab.pages.memory import ALWAYS, DENY, FORCE, INHERIT, MADVISE, NEVER, WITHIN_SIZE, Memory
from vmalab.vma.area import SHMEM_OPS, File, Vma


def may_be_huge(vma: Vma, forced: bool = False) -> bool:
    """Whether neither the VMA, nor its process, nor the kernel rules transparent huge pages out (vma_thp_disabled).

    forced: somebody asks for one here and now, which is as good as having advised it.
    """
    if vma.flags & VM_NOHUGEPAGE or not vma.mm.settings.thp:
        return False
    disabled = vma.mm.thp_disable
    if disabled & THP_DISABLE_EXCEPT_ADVISED:
        return forced or vma.flags & VM_HUGEPAGE != 0
    return not disabled & 1


def is_suitable(vma: Vma, addr: int, order: int) -> bool:
    """Whether the aligned range of an order around an address lies in the VMA, and in its file is aligned as well.

    (thp_vma_suitable_order)
    """
    size = PAGE_SIZE << order
    if not vma.is_anonymous() and (vma.start >> PAGE_SHIFT) - vma.pgoff & (1 << order) - 1:
        return False
    start = addr & -size
    return start >= vma.start and start + size <= vma.end


def anon_orders(memory: Memory, vma: Vma) -> list[int]:
    """The orders that a fault may allocate for an anonymous VMA, largest first (thp_vma_allowable_orders)."""
    if not may_be_huge(vma):
        return []
    found: list[int] = []
    for order in range(PMD_ORDER, 1, -1):
        mode = memory.settings.thp.get(order, NEVER)
        if mode == ALWAYS or (mode == MADVISE and vma.flags & VM_HUGEPAGE):
            found.append(order)
    return found


def is_shmem(file: File | None) -> bool:
    """Whether a file's pages are memory alone: a memfd, shared anonymous memory, System V, tmpfs (shmem_file)."""
    return file is not None and (file.kind in ("memfd", "shm") or file.fs == "tmpfs")


def shmem_orders(memory: Memory, vma: Vma, index: int, forced: bool) -> list[int]:
    """The orders that shared memory may have at an index, in pages, largest first (shmem_allowable_huge_orders).

    forced: somebody asks for it (MADV_COLLAPSE), whatever the settings say of faults.
    """
    settings = memory.settings
    file = vma.file
    if file is None or settings.shmem == DENY or not may_be_huge(vma, forced):
        return []
    advised = vma.flags & VM_HUGEPAGE != 0
    if forced or settings.shmem == FORCE:
        top = [PMD_ORDER]
    elif file.kind not in ("memfd", "shm"):
        # A mount of its own: unless it is told otherwise there are no huge pages.
        top = []
    else:
        top = [order for order in range(PMD_ORDER, 0, -1) if _permits(settings.shmem, order, file, index, advised)]
        if not top and settings.shmem == WITHIN_SIZE and advised:
            top = list(range(PMD_ORDER, 0, -1))
    if vma.ops is not SHMEM_OPS or file.kind not in ("memfd", "shm"):
        return top
    # Memory without a name has settings for each size.
    if settings.shmem == FORCE:
        return [order for order in range(PMD_ORDER, 0, -1) if settings.shmem_orders.get(order, NEVER) == INHERIT]
    found: list[int] = []
    for order in range(PMD_ORDER, 0, -1):
        mode = settings.shmem_orders.get(order, NEVER)
        if (mode == INHERIT and top) or (mode != INHERIT and _permits(mode, order, file, index, advised)):
            found.append(order)
    return found


def _permits(mode: int, order: int, file: File, index: int, advised: bool) -> bool:
    """Whether one mode permits an order."""
    return mode == ALWAYS or (mode == MADVISE and advised) or (mode == WITHIN_SIZE and _fits(file, order, index))


def _fits(file: File, order: int, index: int) -> bool:
    """Whether all of the aligned range of an order is within the file (shmem_get_orders_within_size)."""
    return file.size < 0 or page_up(file.size) >> PAGE_SHIFT >= (index >> order) + 1 << order
