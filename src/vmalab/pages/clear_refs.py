"""What a write to /proc/PID/clear_refs does to pages, and what is told of their bits (fs/proc/task_mmu.c).

Soft-dirty is tracked by machines whose Settings.soft_dirty is set (CONFIG_MEM_SOFT_DIRTY).  Its rules are from the
sources and not confirmed against a running kernel; those of referenced pages are.
"""

from __future__ import annotations

from typing import Final

from vmalab.flags import VM_PFNMAP, VM_SOFTDIRTY
from vmalab.pages.folio import HUGETLB, REFERENCED, ZERO, Folio
from vmalab.pages.memory import Memory, is_cow_mapping
from vmalab.pages.table import PRESENT, SOFT_DIRTY, WRITE, YOUNG, Huge, Tables, Target
from vmalab.pages.zap import leaf_range
from vmalab.vma.area import Vma
from vmalab.vma.space import Mm

CLEAR_REFS_ALL: Final = 1
"""Nothing was referenced, as far as page tables and folios tell."""
CLEAR_REFS_ANON: Final = 2
"""The same of memory without a file."""
CLEAR_REFS_MAPPED: Final = 3
"""The same of files."""
CLEAR_REFS_SOFT_DIRTY: Final = 4
"""Nothing is soft-dirty: the next write to a page makes it so, and is noticed, since the page is write-protected."""


def clear_refs(memory: Memory | None, mm: Mm, kind: int) -> None:
    """Clear what kind (CLEAR_REFS_) says of all pages of an address space (clear_refs_write)."""
    if kind == CLEAR_REFS_SOFT_DIRTY and not mm.settings.soft_dirty:
        return
    for vma in mm.vmas():
        if kind == CLEAR_REFS_SOFT_DIRTY:
            vma.flags = vma.flags & ~VM_SOFTDIRTY
        elif kind != CLEAR_REFS_ALL and (kind == CLEAR_REFS_ANON) == (vma.file is not None):
            continue
        if memory is not None and not vma.flags & VM_PFNMAP:
            _clear_range(memory.tables(mm), vma, kind == CLEAR_REFS_SOFT_DIRTY)


def _clear_range(tables: Tables, vma: Vma, soft_dirty: bool) -> None:
    """Clear the bits of a VMA's entries (clear_refs_pte_range).  Pages of hugetlb are left out."""
    for number in tables.spans(vma.start, vma.end):
        found = tables.pmds[number]
        if isinstance(found, Huge):
            if not found.folio.flags & HUGETLB:
                found.bits = _cleared(tables, vma, found.folio, found.bits, soft_dirty, huge=True)
            continue
        low, high = leaf_range(number, vma.start, vma.end)
        for at in range(low, high):
            entry = found.pages[at]
            if entry is not None:
                found.bits[at] = _cleared(tables, vma, entry, found.bits[at], soft_dirty, huge=False)


def _cleared(tables: Tables, vma: Vma, entry: Target, bits: int, soft_dirty: bool, *, huge: bool) -> int:
    present = bits & PRESENT != 0
    if not soft_dirty:
        if present and isinstance(entry, Folio) and not entry.flags & ZERO:
            entry.flags &= ~REFERENCED
            bits &= ~YOUNG
        return bits
    if not present:
        return bits & ~SOFT_DIRTY
    if not huge and _is_pinned(tables, vma, entry, bits):
        return bits
    return bits & ~(SOFT_DIRTY | WRITE)


def _is_pinned(tables: Tables, vma: Vma, entry: Target, bits: int) -> bool:
    """Whether an entry must stay writable, since a device may have its page pinned (pte_is_pinned)."""
    if not bits & WRITE or not is_cow_mapping(vma) or not tables.has_pinned:
        return False
    return isinstance(entry, Folio) and entry.pins > 0


def age(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """MADV_COLD: the pages of [start, end), in bytes, that one process maps count as not referenced."""
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        if isinstance(found, Huge):
            if not found.folio.maybe_mapped_shared():
                found.bits = _cleared(tables, vma, found.folio, found.bits, False, huge=True)
            continue
        low, high = leaf_range(number, start, end)
        for at in range(low, high):
            entry = found.pages[at]
            if isinstance(entry, Folio) and not entry.maybe_mapped_shared():
                found.bits[at] = _cleared(tables, vma, entry, found.bits[at], False, huge=False)


def is_soft_dirty(mm: Mm, vma: Vma | None, entry: Target | None, bits: int) -> bool:
    """Whether pagemap says soft-dirty of a page: its entry says so, or its VMA is new since the bits were cleared."""
    if not mm.settings.soft_dirty or vma is None:
        return False
    if vma.flags & VM_SOFTDIRTY:
        return True
    return bits & SOFT_DIRTY != 0 and not (isinstance(entry, Folio) and entry.flags & HUGETLB)


def is_referenced(entry: Target | None, bits: int) -> bool:
    """Whether a page counts as Referenced in /proc/PID/smaps."""
    if not isinstance(entry, Folio) or not bits & PRESENT or entry.flags & ZERO:
        return False
    return bits & YOUNG != 0 or entry.flags & REFERENCED != 0
