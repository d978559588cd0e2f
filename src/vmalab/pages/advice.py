"""What madvise does to pages: every advice that leaves the VMAs as they are."""

from __future__ import annotations

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    VM_HUGETLB,
)
from vmalab.pages import hugetlb
from vmalab.pages.clear_refs import age
from vmalab.pages.collapse import collapse
from vmalab.pages.filemap import punch_hole
from vmalab.pages.folio import ANON, LAZYFREE, ZERO, Folio, SwapSlot
from vmalab.pages.memory import Memory
from vmalab.pages.reclaim import cut_up, page_out
from vmalab.pages.table import DIRTY, ENTRIES, GUARD, POISON, PRESENT, Leaf, pte_index
from vmalab.pages.zap import discard, leaf_range, zap_range
from vmalab.reason import FAULT_NO_MEMORY, YES
from vmalab.vma.area import Vma


def advise_pages(memory: Memory, vma: Vma, start: int, end: int, advice: int) -> int:
    """Carry out an advice (MADV_) that has been found permissible on [start, end) of a VMA: YES or a reason."""
    if advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
        again = hugetlb.given_back(memory, vma, start, end)
        discard(memory, vma, start, end)
        hugetlb.promise_again(memory, vma, again)
    elif advice == MADV_FREE:
        _free_lazily(memory, vma, start, end)
    elif advice == MADV_COLD:
        cut_up(memory, vma, start, end)
        age(memory, vma, start, end)
    elif advice == MADV_PAGEOUT:
        page_out(memory, vma, start, end)
    elif advice == MADV_COLLAPSE:
        return collapse(memory, vma, start, end)
    elif advice == MADV_GUARD_INSTALL:
        return _install_guards(memory, vma, start, end)
    elif advice == MADV_GUARD_REMOVE:
        _remove_guards(memory, vma, start, end)
    elif advice == MADV_REMOVE:
        if vma.flags & VM_HUGETLB:
            hugetlb.punch_hole(memory, vma, start, end)
        else:
            punch_hole(memory, vma, start, end)
    return YES


def _install_guards(memory: Memory, vma: Vma, start: int, end: int) -> int:
    """Markers in place of whatever is there (madvise_guard_install)."""
    tables = memory.tables(vma.mm)
    zap_range(memory, tables, start, end)
    for addr in range(start, end, 1 << PAGE_SHIFT):
        leaf = memory.leaf_for(tables, addr)
        if leaf is None:
            return FAULT_NO_MEMORY
        leaf.bits[pte_index(addr)] = GUARD
    return YES


def _remove_guards(memory: Memory, vma: Vma, start: int, end: int) -> None:
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        if isinstance(found, Leaf):
            low, high = leaf_range(number, start, end)
            for at in range(low, high):
                found.bits[at] &= ~GUARD


def _free_lazily(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """MADV_FREE: pages may be thrown away until they are written to; here they are kept, as where memory is plenty."""
    cut_up(memory, vma, start, end)
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        low, high = leaf_range(number, start, end)
        if not isinstance(found, Leaf):
            whole = high - low == ENTRIES and found.bits & PRESENT
            if whole and not found.folio.flags & ZERO and not found.folio.maybe_mapped_shared():
                found.bits &= ~DIRTY
                found.folio.flags |= LAZYFREE
            continue
        for at in range(low, high):
            entry = found.pages[at]
            if entry is None:
                found.bits[at] &= ~POISON
                continue
            if isinstance(entry, SwapSlot):
                memory.drop(tables, found, at)
            elif isinstance(entry, Folio) and entry.flags & ANON and not entry.maybe_mapped_shared():
                found.bits[at] &= ~DIRTY
                entry.flags |= LAZYFREE
