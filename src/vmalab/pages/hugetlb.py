"""Faults in memory of huge pages from a pool (mm/hugetlb.c)."""

from __future__ import annotations

from vmalab.flags import VM_MAYSHARE, VM_SHARED, VM_UFFD_MISSING, VM_WRITE
from vmalab.pages.folio import ANON, PMD_ORDER, PUD_ORDER, Folio, PageCache
from vmalab.pages.memory import FAULT_UNSHARE, FAULT_WRITE, Memory
from vmalab.pages.table import DIRTY, PMD_SHIFT, PRESENT, PUD_SHIFT, WRITE, YOUNG, Huge, Tables
from vmalab.reason import FAULT_NO_HUGE_PAGES, FAULT_NO_MEMORY, FAULT_USERFAULTFD, YES
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import Vma


def order_of(vma: Vma) -> int:
    """The order of a VMA's huge pages."""
    file = vma.file
    size = file.huge_size if file is not None and file.huge_size else 1 << PMD_SHIFT
    return PUD_ORDER if size == 1 << PUD_SHIFT else PMD_ORDER


def hugetlb_fault(memory: Memory, vma: Vma, addr: int, flags: int) -> int:
    """A fault in a hugetlb VMA: YES, FAULT_NO_HUGE_PAGES where the pool is empty, or another reason."""
    tables = memory.tables(vma.mm)
    order = order_of(vma)
    huge = tables.puds.get(addr >> PUD_SHIFT) if order == PUD_ORDER else tables.pmds.get(addr >> PMD_SHIFT)
    if huge is None:
        return _no_page(memory, tables, vma, addr, order, flags)
    assert isinstance(huge, Huge)
    if flags & (FAULT_WRITE | FAULT_UNSHARE) and not huge.bits & WRITE:
        return _wp(memory, tables, vma, addr, huge, flags)
    huge.bits |= YOUNG | (DIRTY if flags & FAULT_WRITE else 0)
    return YES


def _set(tables: Tables, addr: int, huge: Huge) -> None:
    if huge.folio.order == PUD_ORDER:
        tables.puds[addr >> PUD_SHIFT] = huge
    else:
        tables.pmds[addr >> PMD_SHIFT] = huge


def _cached(memory: Memory, vma: Vma, addr: int, order: int) -> tuple[Folio | None, PageCache]:
    """What the file holds for an address."""
    assert vma.file is not None
    cache = memory.cache_of(vma.file)
    index = vma.pgoff_at(addr) >> order << order
    return cache.pages.get(index), cache


def _no_page(memory: Memory, tables: Tables, vma: Vma, addr: int, order: int, flags: int) -> int:
    """The first access (hugetlb_no_page).  Private memory gets a page of its own at once, unless the file has one."""
    if vma.flags & VM_UFFD_MISSING:
        return FAULT_USERFAULTFD
    shared = vma.flags & VM_MAYSHARE != 0
    if not shared and anon_vma_prepare(vma) != YES:
        return FAULT_NO_MEMORY
    addr &= -(4096 << order)
    folio, cache = _cached(memory, vma, addr, order)
    if folio is None:
        folio = memory.alloc_hugetlb(vma.mm, order, 0 if shared else ANON)
        if folio is None:
            return FAULT_NO_HUGE_PAGES
        if not shared:
            memory.map_new_anon(tables, folio, vma, addr)
            writable = WRITE if vma.flags & VM_WRITE else 0
            _set(tables, addr, Huge(folio, PRESENT | YOUNG | DIRTY | writable))
            return YES
        folio.index = vma.pgoff_at(addr)
        folio.cache = cache
        for index in range(folio.index, folio.index + (1 << order)):
            cache.pages[index] = folio
    memory.get(folio)
    memory.add_mapping(tables, folio, 1, entire=True)
    writable = WRITE | DIRTY if vma.flags & VM_WRITE and vma.flags & VM_SHARED else 0
    huge = Huge(folio, PRESENT | YOUNG | writable)
    _set(tables, addr, huge)
    if flags & (FAULT_WRITE | FAULT_UNSHARE) and not shared:
        return _wp(memory, tables, vma, addr, huge, flags)
    return YES


def _wp(memory: Memory, tables: Tables, vma: Vma, addr: int, huge: Huge, flags: int) -> int:
    """A write, or an unshare, of a page that is not writable (hugetlb_wp).

    A page is reused where it is mapped once, whoever else refers to it: what vmsplice holds is written to.
    """
    folio = huge.folio
    if vma.flags & VM_SHARED:
        if flags & FAULT_WRITE:
            huge.bits |= WRITE | DIRTY | YOUNG
        return YES
    if folio.flags & ANON and (folio.is_exclusive(0) or folio.mapcount() == 1):
        if not folio.is_exclusive(0):
            folio.move_to(vma)
        folio.exclusive = folio.all_exclusive()
        if flags & FAULT_WRITE:
            huge.bits |= WRITE | DIRTY | YOUNG
        return YES
    if anon_vma_prepare(vma) != YES:
        return FAULT_NO_MEMORY
    own = memory.alloc_hugetlb(vma.mm, folio.order, ANON)
    if own is None:
        return FAULT_NO_HUGE_PAGES
    own.copy_from(folio)
    memory.drop_huge(tables, huge)
    memory.map_new_anon(tables, own, vma, addr & -(4096 << folio.order))
    writable = WRITE if vma.flags & VM_WRITE and not flags & FAULT_UNSHARE else 0
    _set(tables, addr, Huge(own, PRESENT | YOUNG | DIRTY | writable))
    return YES
