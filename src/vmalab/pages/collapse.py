"""MADV_COLLAPSE: a huge page in place of whatever is there, anonymous or of shared memory (mm/khugepaged.c)."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PMD_SIZE
from vmalab.flags import VM_HUGETLB, VM_MAYBE_GUARD, VM_SPECIAL, VM_UFFD, VM_UFFD_MISSING, VM_UFFD_WP, VM_WRITE
from vmalab.pages.filemap import set_huge_pmd, unmap_folio
from vmalab.pages.folio import ANON, PMD_ORDER, ZERO, Folio, MigrationEntry, PageCache, SwapSlot
from vmalab.pages.folio import DIRTY as FOLIO_DIRTY
from vmalab.pages.memory import Memory
from vmalab.pages.table import (
    ENTRIES,
    MKDIRTY,
    PAGE_AT,
    PMD_SHIFT,
    PRESENT,
    UFFD_WP,
    WRITE,
    YOUNG,
    Huge,
    Leaf,
)
from vmalab.pages.thp import is_shmem, is_suitable, may_be_huge, shmem_orders
from vmalab.reason import COLLAPSE_BUSY, COLLAPSE_HOLES, COLLAPSE_UNSUITABLE, FAULT_NO_MEMORY, YES
from vmalab.vma.area import Vma

_GOES_ON: Final = 1 << 16
"""Beside a reason: those that follow are tried all the same."""


def collapse(memory: Memory, vma: Vma, start: int, end: int) -> int:
    """MADV_COLLAPSE of a part of a VMA: YES, COLLAPSE_UNSUITABLE, COLLAPSE_BUSY, COLLAPSE_HOLES, FAULT_NO_MEMORY.

    Whatever is in each aligned 2 MiB of [start, end) is copied into a huge page: of the process's own, or for shared
    memory of its file.  YES if that was done for all of them, also where there is none; else the last reason.
    """
    first = start + PMD_SIZE - 1 & -PMD_SIZE
    last = end & -PMD_SIZE
    if not _is_allowed(memory, vma) or last < first:
        return COLLAPSE_UNSUITABLE
    result = YES
    for addr in range(first, last, PMD_SIZE):
        refusal = _collapse_huge_page(memory, vma, addr) if vma.is_anonymous() else _scan_file(memory, vma, addr)
        if refusal != YES:
            result = refusal & ~_GOES_ON
            if not refusal & _GOES_ON:
                break
    return result


def _is_allowed(memory: Memory, vma: Vma) -> bool:
    """Whether a VMA may get a huge page because somebody asks for it (thp_vma_allowable_order).

    Files other than shared memory may where the kernel has CONFIG_READ_ONLY_THP_FOR_FS, which is not modelled.
    """
    if vma.flags & (VM_SPECIAL | VM_HUGETLB) or not may_be_huge(vma, True):
        return False
    if vma.end - PMD_SIZE < 0 or not is_suitable(vma, vma.end - PMD_SIZE, PMD_ORDER):
        return False
    if vma.is_anonymous():
        return vma.anon_vma is not None
    return is_shmem(vma.file) and PMD_ORDER in shmem_orders(memory, vma, vma.pgoff, True)


def _collapse_huge_page(memory: Memory, vma: Vma, addr: int) -> int:
    """Collapse one aligned 2 MiB of anonymous memory (collapse_huge_page)."""
    tables = memory.tables(vma.mm)
    found = tables.pmds.get(addr >> PMD_SHIFT)
    if isinstance(found, Huge):
        return YES
    if found is None:
        # An empty entry ends it; where there is not even a table for one it goes on.
        return COLLAPSE_UNSUITABLE if tables.has_pmd_table(addr) else COLLAPSE_UNSUITABLE | _GOES_ON
    refusal = _scan_pmd(vma, found)
    if refusal != YES:
        return refusal
    folio = memory.alloc(vma.mm, PMD_ORDER, ANON)
    if folio is None:
        return FAULT_NO_MEMORY
    if any([entry is None and bits for entry, bits in zip(found.pages, found.bits, strict=True)]):
        # A guard, or poison, is taken for a page in swap, and cannot be read.
        memory.put(folio)
        return COLLAPSE_UNSUITABLE
    for at in range(ENTRIES):
        entry = found.pages[at]
        if isinstance(entry, Folio):
            folio.set_content(at, entry.content(found.bits[at] >> PAGE_AT))
        elif isinstance(entry, SwapSlot):
            folio.set_content(at, entry.content)
        if entry is not None:
            memory.drop(tables, found, at)
    memory.map_new_anon(tables, folio, vma, addr)
    bits = PRESENT | YOUNG | MKDIRTY | (WRITE if vma.flags & VM_WRITE else 0)
    tables.pmds[addr >> PMD_SHIFT] = Huge(folio, bits)
    return YES


def _scan_pmd(vma: Vma, leaf: Leaf) -> int:
    """Whether the pages of a page table of anonymous memory may become one (hpage_collapse_scan_pmd)."""
    for at in range(ENTRIES):
        entry, bits = leaf.pages[at], leaf.bits[at]
        nothing = (entry is None and not bits) or (isinstance(entry, Folio) and entry.flags & ZERO)
        if nothing and vma.flags & VM_UFFD:
            return COLLAPSE_HOLES
        if bits & UFFD_WP and not nothing:
            return COLLAPSE_UNSUITABLE | _GOES_ON
        if isinstance(entry, Folio) and entry.flags & ANON and not entry.has_no_other_references():
            return COLLAPSE_BUSY | _GOES_ON
        if isinstance(entry, MigrationEntry):
            return COLLAPSE_BUSY | _GOES_ON
    return YES


# -- shared memory ------------------------------------------------------------------------------------


def _scan_file(memory: Memory, vma: Vma, addr: int) -> int:
    """Make the 2 MiB of a file at an address one folio, and map it by one entry (hpage_collapse_scan_file)."""
    cache = memory.cache_for(vma)
    index = vma.pgoff_at(addr)
    folios = cache.overlapping(index, index + ENTRIES)
    if any([id(folio) in memory.moving for folio in folios]):
        return COLLAPSE_BUSY | _GOES_ON
    if not folios or folios[0].order != PMD_ORDER:
        if not all([folio.has_no_other_references() for folio in folios]):
            return COLLAPSE_BUSY | _GOES_ON
        refusal = _collapse_file(memory, vma, cache, index, folios)
        if refusal != YES:
            return refusal
    return _collapse_pte_mapped(memory, vma, addr, cache, index)


def _collapse_file(memory: Memory, vma: Vma, cache: PageCache, index: int, folios: list[Folio]) -> int:
    """Copy the folios of 2 MiB of shared memory into one; they are mapped nowhere then (collapse_file)."""
    huge = memory.alloc(vma.mm, PMD_ORDER, 0)
    if huge is None:
        return FAULT_NO_MEMORY
    refusal = YES if folios else COLLAPSE_UNSUITABLE
    for folio in folios:
        unmap_folio(memory, folio)
    if sum([folio.count() for folio in folios]) < ENTRIES:
        for other in cache.mappings.overlapping(index, index + ENTRIES):
            if other.flags & VM_UFFD_MISSING:
                refusal = COLLAPSE_HOLES
    if refusal != YES:
        memory.put(huge)
        return refusal
    for folio in folios:
        for page in range(folio.count()):
            huge.set_content(folio.index + page - index, folio.content(page))
        memory.evict(folio)
    huge.flags |= FOLIO_DIRTY
    memory.insert(cache, huge, index)
    _retract_page_tables(memory, cache, index)
    return YES


def _retract_page_tables(memory: Memory, cache: PageCache, index: int) -> None:
    """Free the page tables of 2 MiB of a file that hold nothing else, in every process: a huge entry may come there."""
    for vma in cache.mappings.overlapping(index, index + 1):
        if vma.anon_vma is not None or vma.flags & (VM_UFFD_WP | VM_MAYBE_GUARD):
            continue
        addr = vma.start + (index - vma.pgoff) * (PMD_SIZE // ENTRIES)
        tables = memory.tables(vma.mm)
        if not addr & PMD_SIZE - 1 and addr + PMD_SIZE <= vma.end and tables.leaf(addr) is not None:
            del tables.pmds[addr >> PMD_SHIFT]


def _collapse_pte_mapped(memory: Memory, vma: Vma, addr: int, cache: PageCache, index: int) -> int:
    """Map a folio of 2 MiB by one entry in place of single ones (collapse_pte_mapped_thp)."""
    tables = memory.tables(vma.mm)
    number = addr >> PMD_SHIFT
    found = tables.pmds.get(number)
    if isinstance(found, Huge):
        return YES
    if vma.flags & VM_UFFD_WP:
        return COLLAPSE_UNSUITABLE | _GOES_ON
    folio = cache.find(index)
    assert folio is not None
    if isinstance(found, Leaf):
        for at in range(ENTRIES):
            entry, bits = found.pages[at], found.bits[at]
            if entry is None and bits:
                return COLLAPSE_UNSUITABLE | _GOES_ON
            if isinstance(entry, SwapSlot | MigrationEntry):
                return COLLAPSE_UNSUITABLE | _GOES_ON
            if entry is not None and (entry is not folio or bits >> PAGE_AT != at):
                return COLLAPSE_UNSUITABLE
        for at in range(ENTRIES):
            if found.pages[at] is not None:
                memory.drop(tables, found, at)
        del tables.pmds[number]
    return YES if set_huge_pmd(memory, tables, vma, addr, folio, False) else COLLAPSE_UNSUITABLE
