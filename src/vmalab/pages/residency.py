"""What a process can ask about its pages without touching them: mincore, and the categories of PAGEMAP_SCAN."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.flags import UFFD_FEATURE_WP_ASYNC, VM_UFFD_WP
from vmalab.pages.folio import ANON, HUGETLB, ZERO, Folio, MigrationEntry, SwapSlot
from vmalab.pages.memory import Memory
from vmalab.pages.table import GUARD, POISON, PRESENT, SOFT_DIRTY, UFFD_WP, Tables, pte_index
from vmalab.vma.area import Vma

PAGE_IS_WPALLOWED: Final = 1
"""The categories of PAGEMAP_SCAN.  This one: write protection that waits for nobody (UFFD_FEATURE_WP_ASYNC)."""
PAGE_IS_WRITTEN: Final = 2
"""Not write-protected by a userfaultfd.  Where there is no page table it is told of VMAs alone that can be."""
PAGE_IS_FILE: Final = 4
PAGE_IS_PRESENT: Final = 8
PAGE_IS_SWAPPED: Final = 16
PAGE_IS_PFNZERO: Final = 32
PAGE_IS_HUGE: Final = 64
"""Mapped by one entry of 2 MiB, or of hugetlb."""
PAGE_IS_SOFT_DIRTY: Final = 128
PAGE_IS_GUARD: Final = 256


def mincore_pages(memory: Memory, vma: Vma, start: int, end: int) -> bytes:
    """One byte a page of [start, end) within a VMA, in bytes: whether an access would find it in memory (mincore).

    As for a process that may write to the file, or owns it; others are told that all is.  Linux counts a page that is
    on its way to swap as there until it is written; here that takes no time.
    """
    tables = memory.tables(vma.mm)
    return bytes([_is_resident(memory, tables, vma, addr) for addr in range(start, end, PAGE_SIZE)])


def _is_resident(memory: Memory, tables: Tables, vma: Vma, addr: int) -> bool:
    entry, _, _ = tables.entry(addr)
    if isinstance(entry, SwapSlot):
        return entry.cache is not None
    if entry is not None:
        return True
    return vma.file is not None and not vma.is_anonymous() and _is_cached(memory, vma, addr)


def _is_cached(memory: Memory, vma: Vma, addr: int) -> bool:
    return vma.file is not None and memory.cache_of(vma.file).find(vma.pgoff_at(addr)) is not None


def page_categories(tables: Tables, vma: Vma, addr: int) -> int:
    """What PAGEMAP_SCAN says of a page of a VMA (pagemap_page_category).

    Soft-dirty it tells of entries alone, not of new VMAs, where the machine tracks it.
    """
    allowed = 0
    if vma.flags & VM_UFFD_WP and vma.uffd is not None and vma.uffd.has(UFFD_FEATURE_WP_ASYNC):
        allowed = PAGE_IS_WPALLOWED
    entry, bits, _ = tables.entry(addr)
    written = 0 if bits & UFFD_WP else PAGE_IS_WRITTEN
    if bits & SOFT_DIRTY and vma.mm.settings.soft_dirty:
        written |= PAGE_IS_SOFT_DIRTY
    if entry is None:
        if bits & (GUARD | POISON | UFFD_WP):
            return allowed | written | PAGE_IS_SWAPPED | (PAGE_IS_GUARD if bits & GUARD else 0)
        tells = tables.leaf(addr) is not None or vma.flags & VM_UFFD_WP
        return allowed | (PAGE_IS_WRITTEN if tells else 0)
    if isinstance(entry, SwapSlot):
        return allowed | written | PAGE_IS_SWAPPED
    moving = entry.folio if isinstance(entry, MigrationEntry) else None if bits & PRESENT else entry
    huge = PAGE_IS_HUGE if tables.huge(addr) is not None else 0
    if isinstance(entry, MigrationEntry) or moving is not None:
        file = 0 if moving is None or moving.flags & ANON else PAGE_IS_FILE
        return allowed | written | huge | PAGE_IS_SWAPPED | file
    found = allowed | written | huge | PAGE_IS_PRESENT
    if entry.flags & ZERO:
        return found | PAGE_IS_PFNZERO
    return found if entry.flags & ANON else found | PAGE_IS_FILE


def page_mapcount(memory: Memory, folio: Folio, page: int) -> int:
    """How many page-table entries map one page of a folio, huge ones included (folio_precise_page_mapcount).

    That of a large folio is counted where the reverse map finds it.
    """
    if not folio.order or not folio.mapped or folio.flags & HUGETLB:
        return folio.mapcount()
    found: int = folio.entire
    for tables, addr, _ in memory.places_of(folio, page):
        leaf = tables.leaf(addr)
        if leaf is not None and leaf.pages[pte_index(addr)] is folio:
            found += 1
    return found
