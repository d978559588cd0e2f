"""Faults in memory of huge pages from a pool (mm/hugetlb.c)."""

from __future__ import annotations

from typing import Final, final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import VM_HUGETLB, VM_MAYSHARE, VM_NORESERVE, VM_SHARED, VM_UFFD_MISSING, VM_WRITE
from vmalab.pages.folio import ANON, PMD_ORDER, PUD_ORDER, Folio, PageCache
from vmalab.pages.memory import FAULT_UNSHARE, FAULT_WRITE, Memory
from vmalab.pages.table import MKDIRTY, PMD_SHIFT, PRESENT, PUD_SHIFT, WRITE, YOUNG, Huge, Tables
from vmalab.pages.zap import zap_range
from vmalab.reason import (
    FAULT_MIGRATION,
    FAULT_NO_HUGE_PAGES,
    FAULT_NO_MEMORY,
    FAULT_USERFAULTFD,
    HUGETLB_NO_PAGES,
    YES,
)
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import File, Vma
from vmalab.vma.space import Mm


def order_of(vma: Vma) -> int:
    """The order of a VMA's huge pages."""
    return PMD_ORDER if vma.file is None else order_of_file(vma.file)


def order_of_file(file: File) -> int:
    """The order of the huge pages of a file of such."""
    return PUD_ORDER if file.huge_size == 1 << PUD_SHIFT else PMD_ORDER


@final
class Reservation:
    """Pages of a pool that are promised to a private mapping, and its parts, of one process (struct resv_map)."""

    __slots__ = ("mm", "used")

    def __init__(self, mm: Mm) -> None:
        self.mm: Mm = mm
        self.used: set[int] = set()
        """The indexes, in pages, of those that it has got."""


@final
class Unmapped:
    """Stands for the reservation of a mapping whose page its owner has taken away: what is touched is not there."""


UNMAPPED: Final = Unmapped()


def _indexes(vma: Vma, order: int) -> range:
    """The indexes of the huge pages of a VMA, in pages."""
    first = vma.pgoff_at(vma.start)
    return range(first, first + vma.pages(), 1 << order)


def reserve_pages(memory: Memory, vma: Vma) -> int:
    """A new mapping: promise it its pages, unless it wants none: YES, HUGETLB_NO_PAGES (hugetlb_reserve_pages)."""
    assert vma.file is not None
    order = order_of(vma)
    cache = memory.cache_of(vma.file)
    cache.huge_order = order
    if vma.flags & VM_NORESERVE or vma.file.segment is not None:
        return YES
    wanted = list(_indexes(vma, order))
    if vma.flags & VM_MAYSHARE:
        wanted = [index for index in wanted if index not in cache.reserved]
    if not memory.reserve_hugetlb(order, len(wanted)):
        return HUGETLB_NO_PAGES
    if vma.flags & VM_MAYSHARE:
        cache.reserved.update(wanted)
    else:
        vma.private_data = Reservation(memory.tables(vma.mm).mm)
    return YES


def reserve_file(memory: Memory, file: File) -> int:
    """Promise a new file all its pages: YES, HUGETLB_NO_PAGES."""
    order = order_of_file(file)
    wanted = range(0, file.size >> PAGE_SHIFT, 1 << order)
    if not memory.reserve_hugetlb(order, len(wanted)):
        return HUGETLB_NO_PAGES
    cache = memory.cache_of(file)
    cache.huge_order = order
    cache.reserved.update(wanted)
    return YES


def forget_file(memory: Memory, file: File) -> None:
    """Nobody can map a file again: its pages, and what it was promised, are free again."""
    cache = memory.cache_of(file)
    memory.reserve_hugetlb(cache.huge_order, -len([index for index in cache.reserved if cache.find(index) is None]))
    cache.reserved.clear()
    memory.drop_cache(cache)


def opened(vma: Vma) -> None:
    """A copy or a part of a mapping: in a child nothing is promised to it (hugetlb_vm_op_open)."""
    found = vma.private_data
    if isinstance(found, Unmapped) or (isinstance(found, Reservation) and found.mm is not vma.mm):
        vma.private_data = None


def closed(memory: Memory, vma: Vma) -> None:
    """A mapping, or a part of one, goes: what it was promised and has not got is free again (hugetlb_vm_op_close)."""
    order = order_of(vma)
    found = vma.private_data
    if isinstance(found, Reservation):
        memory.reserve_hugetlb(order, -unused(vma, found, order))
        vma.private_data = None
    file = vma.file
    if file is not None and file.refs == 1 and file.path.startswith("/anon_hugepage"):
        forget_file(memory, file)


def unused(vma: Vma, reservation: Reservation, order: int) -> int:
    """How many pages of a VMA are promised and not got yet."""
    return len([index for index in _indexes(vma, order) if index not in reservation.used])


def given_back(memory: Memory, vma: Vma, start: int, end: int) -> list[int]:
    """Which pages in [start, end) are promised again when they are discarded: their indexes (__unmap_hugepage_range).

    Those that the owner has alone, as long as the pool has no pages beyond its size.
    """
    found = vma.private_data
    if not isinstance(found, Reservation) or memory.hugetlb_surplus.get(order_of(vma), 0):
        return []
    tables = memory.tables(vma.mm)
    indexes: list[int] = []
    size = PAGE_SIZE << order_of(vma)
    for addr in range(start + size - 1 & -size, end & -size, size):
        huge = tables.huge(addr)
        if huge is not None and huge.bits & PRESENT and huge.folio.flags & ANON and huge.folio.refs == 1:
            indexes.append(vma.pgoff_at(addr))
    return indexes


def promise_again(memory: Memory, vma: Vma, indexes: list[int]) -> None:
    """What given_back has found was discarded."""
    found = vma.private_data
    if isinstance(found, Reservation):
        found.used.difference_update(indexes)
        memory.reserve_hugetlb(order_of(vma), len(indexes))


def punch_hole(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """MADV_REMOVE: whole huge pages of [start, end) leave the file, of others a part becomes zeros.

    They leave all mappings, and with them what private ones have copied; a page of a private mapping is promised to it
    again, one of the file is promised to nobody any more (hugetlbfs_punch_hole).
    """
    assert vma.file is not None
    order = order_of(vma)
    cache = memory.cache_of(vma.file)
    first, last = vma.pgoff_at(start), vma.pgoff_at(end - 1) + 1
    low, high = (first + (1 << order) - 1) >> order << order, last >> order << order
    for each in cache.mappings.overlapping(low, high) if low < high else []:
        at = max(each.start, each.start + (low - each.pgoff << PAGE_SHIFT))
        upto = min(each.end, each.start + (high - each.pgoff << PAGE_SHIFT))
        again = given_back(memory, each, at, upto)
        zap_range(memory, memory.tables(each.mm), at, upto)
        promise_again(memory, each, again)
    for folio in cache.overlapping(first, last):
        if low <= folio.index < high:
            cache.reserved.discard(folio.index)
            memory.evict(folio)
            continue
        for index in range(max(first, folio.index), min(last, folio.index + folio.count())):
            folio.set_content(index - folio.index, b"")


def moved(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """[start, end) of a mapping has moved, and what was promised of it (clear_vma_resv_huge_pages).

    All of the old mapping forgets what it was promised, also where only a part has moved: that stays reserved for good.
    """
    found = vma.private_data
    if isinstance(found, Reservation):
        order = order_of(vma)
        rest = [*range(vma.start, start, PAGE_SIZE << order), *range(end, vma.end, PAGE_SIZE << order)]
        lost = len([addr for addr in rest if vma.pgoff_at(addr) not in found.used])
        memory.hugetlb_lost[order] = memory.hugetlb_lost.get(order, 0) + lost
    vma.private_data = None


def violations(memory: Memory) -> list[str]:
    """Whether as many pages are reserved as are promised and not got; empty if they are."""
    promised: dict[int, int] = dict(memory.hugetlb_lost)
    for tables in memory.all_tables():
        for vma in tables.mm.vmas():
            found = vma.private_data
            if vma.flags & VM_HUGETLB and isinstance(found, Reservation):
                order = order_of(vma)
                promised[order] = promised.get(order, 0) + unused(vma, found, order)
    for cache in memory.caches():
        for index in cache.reserved:
            if cache.find(index) is None:
                promised[cache.huge_order] = promised.get(cache.huge_order, 0) + 1
    faults: list[str] = []
    for order in {*promised, *memory.hugetlb_reserved}:
        reserved = memory.hugetlb_reserved.get(order, 0)
        if reserved != promised.get(order, 0):
            faults.append(f"{reserved} huge pages of order {order} are reserved, {promised.get(order, 0)} are promised")
    return faults


def _alloc(memory: Memory, vma: Vma, addr: int, order: int, flags: int) -> Folio | None:
    """A page for a first access: the one that was promised, or else one that nobody was."""
    index = vma.pgoff_at(addr) >> order << order
    found = vma.private_data
    if vma.flags & VM_MAYSHARE:
        cache = memory.cache_for(vma)
        folio = memory.alloc_hugetlb(vma.mm, order, flags, index in cache.reserved)
        if folio is not None:
            cache.reserved.add(index)
        return folio
    promised = isinstance(found, Reservation) and index not in found.used
    folio = memory.alloc_hugetlb(vma.mm, order, flags, promised)
    if folio is not None and isinstance(found, Reservation):
        found.used.add(index)
    return folio


def _unmap_ref_private(memory: Memory, vma: Vma, addr: int, folio: Folio) -> None:
    """Take a page away from others, so that its owner, to whom it was promised, can write to it."""
    for tables, at, page in memory.places_of(folio):
        huge = tables.huge(at) if page == 0 else None
        other = tables.mm.vma_lookup(at)
        if huge is None or other is None or other is vma or huge.folio is not folio:
            continue
        if other.file is not vma.file or isinstance(other.private_data, Reservation):
            continue
        if folio.order == PUD_ORDER:
            del tables.puds[at >> PUD_SHIFT]
        else:
            del tables.pmds[at >> PMD_SHIFT]
        memory.drop_huge(tables, huge)
        other.private_data = UNMAPPED


def hugetlb_fault(memory: Memory, vma: Vma, addr: int, flags: int) -> int:
    """A fault in a hugetlb VMA: YES, FAULT_NO_HUGE_PAGES where the pool is empty, or another reason."""
    tables = memory.tables(vma.mm)
    order = order_of(vma)
    huge = tables.huge(addr)
    if huge is None:
        return _no_page(memory, tables, vma, addr, order, flags)
    if not huge.bits & PRESENT:
        return FAULT_MIGRATION
    if flags & (FAULT_WRITE | FAULT_UNSHARE) and not huge.bits & WRITE:
        return _wp(memory, tables, vma, addr, huge, flags)
    huge.bits |= YOUNG | (MKDIRTY if flags & FAULT_WRITE else 0)
    return YES


def _set(tables: Tables, addr: int, huge: Huge) -> None:
    if huge.folio.order == PUD_ORDER:
        tables.puds[addr >> PUD_SHIFT] = huge
    else:
        tables.pmds[addr >> PMD_SHIFT] = huge


def _cached(memory: Memory, vma: Vma, addr: int, order: int) -> tuple[Folio | None, PageCache]:
    """What the file holds for an address."""
    cache = memory.cache_for(vma)
    index = vma.pgoff_at(addr) >> order << order
    return cache.find(index), cache


def _no_page(memory: Memory, tables: Tables, vma: Vma, addr: int, order: int, flags: int) -> int:
    """The first access (hugetlb_no_page).  Private memory gets a page of its own at once, unless the file has one."""
    if isinstance(vma.private_data, Unmapped):
        return FAULT_NO_HUGE_PAGES
    if vma.flags & VM_UFFD_MISSING:
        return FAULT_USERFAULTFD
    shared = vma.flags & VM_MAYSHARE != 0
    if not shared and anon_vma_prepare(vma) != YES:
        return FAULT_NO_MEMORY
    addr &= -(4096 << order)
    folio, cache = _cached(memory, vma, addr, order)
    if folio is not None and id(folio) in memory.moving:
        return FAULT_MIGRATION
    if folio is None:
        folio = _alloc(memory, vma, addr, order, 0 if shared else ANON)
        if folio is None:
            return FAULT_NO_HUGE_PAGES
        if not shared:
            memory.map_new_anon(tables, folio, vma, addr)
            writable = WRITE if vma.flags & VM_WRITE else 0
            _set(tables, addr, Huge(folio, PRESENT | YOUNG | MKDIRTY | writable))
            return YES
        memory.insert(cache, folio, vma.pgoff_at(addr))
    memory.get(folio)
    memory.add_mapping(tables, folio, 1, entire=True)
    writable = WRITE | MKDIRTY if vma.flags & VM_WRITE and vma.flags & VM_SHARED else 0
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
            huge.bits |= WRITE | MKDIRTY | YOUNG
        return YES
    if folio.flags & ANON and (folio.is_exclusive(0) or folio.mapcount() == 1):
        if not folio.is_exclusive(0):
            folio.move_to(vma)
        folio.exclusive = folio.all_exclusive()
        if flags & FAULT_WRITE:
            huge.bits |= WRITE | MKDIRTY | YOUNG
        return YES
    if anon_vma_prepare(vma) != YES:
        return FAULT_NO_MEMORY
    own = _alloc(memory, vma, addr, folio.order, ANON)
    if own is None and folio.flags & ANON and isinstance(vma.private_data, Reservation):
        _unmap_ref_private(memory, vma, addr, folio)
        if folio.mapcount() == 1:
            return _wp(memory, tables, vma, addr, huge, flags)
    if own is None:
        return FAULT_NO_HUGE_PAGES
    own.copy_from(folio)
    memory.note_copy(vma.mm, addr & -(PAGE_SIZE << folio.order), folio, 0)
    memory.drop_huge(tables, huge)
    memory.map_new_anon(tables, own, vma, addr & -(4096 << folio.order))
    writable = WRITE if vma.flags & VM_WRITE and not flags & FAULT_UNSHARE else 0
    _set(tables, addr, Huge(own, PRESENT | YOUNG | MKDIRTY | writable))
    return YES
