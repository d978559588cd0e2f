"""Pages that leave memory and may come back: swap, collapse into huge pages, and the splitting of folios."""

from __future__ import annotations

from vmalab.addr import PMD_SIZE
from vmalab.flags import VM_DROPPABLE, VM_WRITE
from vmalab.pages.fault import may_be_huge
from vmalab.pages.folio import ANON, LAZYFREE, PMD_ORDER, UNEVICTABLE, ZERO, Folio, MigrationEntry, SwapSlot
from vmalab.pages.folio import DIRTY as FOLIO_DIRTY
from vmalab.pages.memory import Memory
from vmalab.pages.table import (
    DIRTY,
    ENTRIES,
    MKDIRTY,
    PAGE_AT,
    PMD_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    SWAP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Huge,
    Leaf,
    Tables,
)
from vmalab.pages.zap import leaf_range
from vmalab.reason import COLLAPSE_BUSY, COLLAPSE_UNSUITABLE, FAULT_NO_MEMORY, YES
from vmalab.vma.area import Vma


def page_out(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """MADV_PAGEOUT: what one process has alone and nobody holds goes to swap; a file's page leaves the page tables.

    Clean pages that MADV_FREE has given up are thrown away, and those of MAP_DROPPABLE.
    """
    cut_up(memory, vma, start, end)
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        low, high = leaf_range(number, start, end)
        if isinstance(found, Huge):
            folio = found.folio
            if low or high != ENTRIES or not _may_leave(folio):
                continue
            if folio.flags & LAZYFREE and not found.bits & DIRTY:
                del tables.pmds[number]
                memory.drop_huge(tables, found)
                continue
            found = memory.split_huge_pmd(tables, number)
        at = low
        while at < high:
            entry = found.pages[at]
            if isinstance(entry, Folio) and entry.flags & UNEVICTABLE:
                at += 1
                continue
            if isinstance(entry, Folio) and entry.flags & ANON:
                at += _page_out_folio(memory, tables, vma, found, at, high, entry)
                continue
            if isinstance(entry, Folio) and not entry.flags & ZERO and entry.mapcount() == 1 and entry.refs == 2:
                memory.drop(tables, found, at)
                _leave_cache(memory, entry)
            at += 1


def lock_for_good(memory: Memory, vma: Vma) -> None:
    """A VMA has lost its lock, its pages have not: they stay in memory until they are freed."""
    tables = memory.tables(vma.mm)
    for number in tables.spans(vma.start, vma.end):
        found = tables.pmds[number]
        if isinstance(found, Huge):
            found.folio.flags |= UNEVICTABLE
            continue
        low, high = leaf_range(number, vma.start, vma.end)
        for entry in found.pages[low:high]:
            if isinstance(entry, Folio) and not entry.flags & ZERO:
                entry.flags |= UNEVICTABLE


def _leave_cache(memory: Memory, folio: Folio) -> None:
    """A page of a file that nobody maps any more: one that was written to stays in the page cache."""
    cache = folio.cache
    if cache is not None and not folio.flags & FOLIO_DIRTY:
        del cache.pages[folio.index]
        folio.cache = None
        memory.put(folio)


def cut_up(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """Split the large folios of one process that reach beyond [start, end), so that an advice is for the rest alone.

    What several share, or somebody holds, stays as it is (madvise_cold_or_pageout_pte_range, madvise_free_pte_range).
    """
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        low, high = leaf_range(number, start, end)
        if isinstance(found, Huge):
            if (low, high) == (0, ENTRIES) or found.folio.flags & ZERO or found.folio.maybe_mapped_shared():
                continue
            memory.split_folio(found.folio)
            continue
        at = low
        while at < high:
            entry = found.pages[at]
            if not isinstance(entry, Folio) or not entry.order or not entry.flags & ANON:
                at += 1
                continue
            last = at + 1
            while (
                last < high
                and found.pages[last] is entry
                and found.bits[last] >> PAGE_AT == (found.bits[at] >> PAGE_AT) + last - at
            ):
                last += 1
            if last - at < entry.count() and not entry.maybe_mapped_shared() and memory.split_folio(entry):
                continue
            at = last


def _may_leave(folio: Folio) -> bool:
    """Whether reclaim would take a folio: it is mapped by one process, and nobody holds it."""
    held = folio.flags & (ZERO | UNEVICTABLE) or folio.maybe_mapped_shared() or not folio.has_no_other_references()
    return not held


def _page_out_folio(memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, at: int, high: int, folio: Folio) -> int:
    """Swap out the entries of a folio from at on; how many entries that were."""
    last = at
    while last < high and leaf.pages[last] is folio:
        last += 1
    given_up = vma.flags & VM_DROPPABLE or (folio.flags & LAZYFREE and not leaf.bits[at] & DIRTY)
    if given_up and folio.order == 0 and folio.refs == 1:
        memory.drop(tables, leaf, at)
        return 1
    if not _may_leave(folio):
        return last - at
    if memory.settings.swap_pages - memory.swapped < last - at:
        # There is no room for all of it, but may be for some.
        return 0 if folio.order and memory.split_folio(folio) else last - at
    if folio.swap is not None:
        memory.leave_swap_cache(folio.swap)
    for each in range(at, last):
        bits = leaf.bits[each]
        page = bits >> PAGE_AT
        slot = SwapSlot(folio.content(page))
        slot.count = 1
        memory.swapped += 1
        tables.swap += 1
        exclusive = SWAP_EXCLUSIVE if folio.is_exclusive(page) else 0
        memory.drop(tables, leaf, each)
        leaf.pages[each] = slot
        leaf.bits[each] = exclusive | bits & (UFFD_WP | SOFT_DIRTY)
    return last - at


def collapse(memory: Memory, vma: Vma, start: int, end: int) -> int:
    """MADV_COLLAPSE of anonymous memory: YES, COLLAPSE_UNSUITABLE, COLLAPSE_BUSY, FAULT_NO_MEMORY.

    Whatever is in each aligned 2 MiB of [start, end) is copied into a huge page of the process's own.
    """
    first = max(start, vma.start) + PMD_SIZE - 1 & -PMD_SIZE
    last = min(end, vma.end) & -PMD_SIZE
    if not vma.is_anonymous() or vma.anon_vma is None or not may_be_huge(vma) or last <= first:
        return COLLAPSE_UNSUITABLE
    tables = memory.tables(vma.mm)
    result = YES
    for addr in range(first, last, PMD_SIZE):
        refusal = _collapse_huge_page(memory, vma, addr)
        if refusal != YES:
            result = refusal
            if addr >> PMD_SHIFT not in tables.pmds and tables.has_pmd_table(addr):
                # An empty entry ends it; where there is not even a table for one it goes on.
                break
    return result


def _collapse_huge_page(memory: Memory, vma: Vma, addr: int) -> int:
    """Collapse one aligned 2 MiB (collapse_huge_page)."""
    tables = memory.tables(vma.mm)
    found = tables.pmds.get(addr >> PMD_SHIFT)
    if isinstance(found, Huge):
        return YES
    if found is None:
        return COLLAPSE_UNSUITABLE
    for at in range(ENTRIES):
        entry = found.pages[at]
        if isinstance(entry, Folio) and entry.flags & ANON and not entry.has_no_other_references():
            return COLLAPSE_BUSY
        if isinstance(entry, MigrationEntry):
            return COLLAPSE_BUSY
        if entry is None and found.bits[at]:
            return COLLAPSE_UNSUITABLE
    folio = memory.alloc(vma.mm, PMD_ORDER, ANON)
    if folio is None:
        return FAULT_NO_MEMORY
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
