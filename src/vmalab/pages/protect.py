"""mprotect and the write protection of userfaultfds, below the VMAs (change_protection)."""

from __future__ import annotations

from vmalab.flags import VM_SHARED, VM_WRITE
from vmalab.pages.folio import ANON, HUGETLB, ZERO, Folio, MigrationEntry
from vmalab.pages.memory import Memory, needs_soft_dirty_wp
from vmalab.pages.migrate import downgraded
from vmalab.pages.table import DIRTY, PAGE_AT, PMD_SHIFT, PRESENT, UFFD_WP, WRITE, Huge
from vmalab.pages.zap import leaf_range
from vmalab.vma.area import Vma


def change_protection(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """Make the entries of [start, end), in bytes, agree with the VMA's permissions, which are new.

    What becomes unwritable is so at once.  What becomes writable stays protected, so that the next write is noticed,
    but for pages where nothing is to notice.
    """
    tables = memory.tables(vma.mm)
    for large in tables.large_spans(start, end):
        _change_huge(vma, tables.puds[large])
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        low, high = leaf_range(number, start, end)
        if isinstance(found, Huge):
            if found.folio.flags & HUGETLB or (low == 0 and number + 1 << PMD_SHIFT <= end):
                _change_huge(vma, found)
                continue
            rest = memory.split_pmd(tables, number)
            if rest is None:
                continue
            found = rest
        for at in range(low, high):
            entry = found.pages[at]
            bits = found.bits[at]
            if isinstance(entry, MigrationEntry):
                found.bits[at] = downgraded(entry.folio, bits)
            if not isinstance(entry, Folio):
                continue
            if not vma.flags & VM_WRITE:
                found.bits[at] = bits & ~WRITE
            elif not bits & WRITE and can_change_writable(vma, entry, bits, bits >> PAGE_AT):
                found.bits[at] = bits | WRITE


def _change_huge(vma: Vma, huge: Huge) -> None:
    if not huge.bits & PRESENT:
        huge.bits = downgraded(huge.folio, huge.bits)
        return
    if not vma.flags & VM_WRITE:
        huge.bits &= ~WRITE
    elif not huge.folio.flags & HUGETLB and can_change_writable(vma, huge.folio, huge.bits, 0):
        huge.bits |= WRITE


def can_change_writable(vma: Vma, folio: Folio, bits: int, page: int) -> bool:
    """Whether an entry may become writable without a fault (can_change_pte_writable).

    Private: an exclusive anonymous page.  Shared: one that is dirty already, so that its file knows.
    """
    if not vma.flags & VM_WRITE or not bits & PRESENT or bits & UFFD_WP or folio.flags & ZERO:
        return False
    if needs_soft_dirty_wp(vma, bits):
        return False
    if vma.flags & VM_SHARED:
        return bits & DIRTY != 0
    return folio.flags & ANON != 0 and folio.is_exclusive(page)
