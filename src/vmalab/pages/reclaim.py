"""Pages that leave memory and may come back: swap, and the splitting of folios."""

from __future__ import annotations

from vmalab.flags import VM_DROPPABLE
from vmalab.pages.filemap import split_file_folio
from vmalab.pages.folio import ANON, LAZYFREE, UNEVICTABLE, ZERO, Folio, SwapSlot
from vmalab.pages.folio import DIRTY as FOLIO_DIRTY
from vmalab.pages.memory import Memory
from vmalab.pages.table import (
    DIRTY,
    ENTRIES,
    PAGE_AT,
    SOFT_DIRTY,
    SWAP_EXCLUSIVE,
    UFFD_WP,
    Huge,
    Leaf,
    Tables,
)
from vmalab.pages.zap import leaf_range
from vmalab.vma.area import Vma
from vmalab.vma.shm import SHM_LOCKED


def page_out(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """MADV_PAGEOUT: what one process has alone and nobody holds goes to swap; a file's page leaves the page tables.

    Clean pages that MADV_FREE has given up are thrown away, and those of MAP_DROPPABLE.
    """
    cut_up(memory, vma, start, end)
    segment = None if vma.file is None else vma.file.segment
    if segment is not None and segment.mode & SHM_LOCKED:
        # Its pages stay in memory, whoever has them mapped (mapping_unevictable).
        return
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        low, high = leaf_range(number, start, end)
        if isinstance(found, Huge):
            folio = found.folio
            if low or high != ENTRIES or not _may_leave(folio):
                continue
            if not folio.flags & ANON:
                memory.split_pmd(tables, number)
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
            if isinstance(entry, Folio) and not entry.flags & ZERO:
                at = _page_out_file(memory, tables, found, at, high, entry)
                continue
            at += 1


def _page_out_file(memory: Memory, tables: Tables, leaf: Leaf, at: int, high: int, folio: Folio) -> int:
    """Unmap a file's folio of which nobody else has a page; the entry to go on with."""
    last = _run(leaf, at, high)
    if folio.mapcount() == last - at and folio.has_no_other_references():
        for each in range(at, last):
            marker = leaf.bits[each] & UFFD_WP
            memory.drop(tables, leaf, each)
            leaf.bits[each] = marker
        _leave_cache(memory, folio)
    return last


def _run(leaf: Leaf, at: int, high: int) -> int:
    """Up to which entry, from one on, a leaf maps the pages of one folio one after the other."""
    folio, page = leaf.pages[at], leaf.bits[at] >> PAGE_AT
    last = at + 1
    while last < high and leaf.pages[last] is folio and leaf.bits[last] >> PAGE_AT == page + last - at:
        last += 1
    return last


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
    if folio.cache is not None and not folio.flags & FOLIO_DIRTY:
        memory.evict(folio)


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
            _split(memory, vma, found.folio)
            continue
        at = low
        while at < high:
            entry = found.pages[at]
            if not isinstance(entry, Folio) or not entry.order or entry.flags & ZERO:
                at += 1
                continue
            last = _run(found, at, high)
            if last - at < entry.count() and not entry.maybe_mapped_shared() and _split(memory, vma, entry):
                continue
            at = last


def _split(memory: Memory, vma: Vma, folio: Folio) -> bool:
    """Split a folio that a VMA maps; False where somebody holds it."""
    return memory.split_folio(folio) if folio.flags & ANON else split_file_folio(memory, folio, vma.file)


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
