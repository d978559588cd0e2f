"""Taking pages out of page tables: unmap, discard, split at an edge."""

from __future__ import annotations

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from vmalab.pages.folio import HUGETLB, ZERO, Folio, MigrationEntry
from vmalab.pages.memory import Memory
from vmalab.pages.table import ENTRIES, GUARD, PMD_SHIFT, PUD_SHIFT, SOFT_DIRTY, UFFD_WP, Huge, Leaf, Tables, pte_index
from vmalab.vma.area import Vma


def leaf_range(number: int, start: int, end: int) -> tuple[int, int]:
    """Which entries of a leaf lie in [start, end): the first, and one past the last."""
    base = number << PMD_SHIFT
    low = max(start - base, 0) >> PAGE_SHIFT
    high = min(end - base, PMD_SIZE) >> PAGE_SHIFT
    return low, high


def zap_range(memory: Memory, tables: Tables, start: int, end: int) -> None:
    """Let go of all pages in [start, end), in bytes; the page tables stay."""
    for large in tables.large_spans(start, end):
        memory.drop_huge(tables, tables.puds.pop(large))
    for number in tables.spans(start, end):
        low, high = leaf_range(number, start, end)
        found = tables.pmds[number]
        if isinstance(found, Huge):
            if (low, high) == (0, ENTRIES):
                del tables.pmds[number]
                memory.drop_huge(tables, found)
                continue
            if found.folio.flags & HUGETLB:
                continue
            rest = memory.split_pmd(tables, number)
            if rest is None:
                continue
            found = rest
        zap_leaf(memory, tables, found, low, high)


def has_pages(tables: Tables, start: int, end: int) -> bool:
    """Whether any page but one of zeros is mapped in [start, end)."""
    for addr in range(start, end, PAGE_SIZE):
        entry = tables.entry(addr)[0]
        if isinstance(entry, MigrationEntry):
            return True
        if isinstance(entry, Folio) and not entry.flags & ZERO:
            return True
    return False


def free_pgtables(tables: Tables, start: int, end: int, floor: int) -> None:
    """Free the page tables of [start, end) that no VMA needs, so that a huge page may come there again.

    Every VMA in [floor, end) is being unmapped, and may still be in the tree.
    """
    mm = tables.mm
    for number in tables.spans(start, end):
        base = number << PMD_SHIFT
        upto = base + PMD_SIZE
        if not isinstance(tables.pmds[number], Leaf):
            continue
        if base < floor and mm.tree.walk(base, floor):
            continue
        if end < upto and mm.find_vma_intersection(end, upto) is not None:
            continue
        del tables.pmds[number]


def zap_leaf(memory: Memory, tables: Tables, leaf: Leaf, low: int, high: int) -> None:
    """Clear entries of a leaf, markers too."""
    for at in range(low, high):
        if leaf.pages[at] is not None:
            memory.drop(tables, leaf, at)
        else:
            leaf.bits[at] = 0


def discard(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """MADV_DONTNEED of a part of a VMA: its pages go, guards stay, and in files the protection of a userfaultfd."""
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        low, high = leaf_range(number, start, end)
        found = tables.pmds[number]
        if isinstance(found, Leaf):
            kept = GUARD if vma.is_anonymous() else GUARD | UFFD_WP
            for at in range(low, high):
                marker = found.bits[at] & kept
                if found.pages[at] is not None:
                    memory.drop(tables, found, at)
                    marker &= UFFD_WP
                found.bits[at] = marker
            if (low, high) == (0, ENTRIES) and found.is_empty():
                del tables.pmds[number]
        else:
            zap_range(memory, tables, max(start, number << PMD_SHIFT), min(end, number + 1 << PMD_SHIFT))
    for large in [each for each in tables.puds if start <= each << PUD_SHIFT and (each + 1) << PUD_SHIFT <= end]:
        memory.drop_huge(tables, tables.puds.pop(large))


def split_at(memory: Memory, tables: Tables, addr: int) -> None:
    """Cut a transparent huge page at an address inside it, as splitting its VMA does (vma_adjust_trans_huge)."""
    if addr & PMD_SIZE - 1:
        found = tables.pmds.get(addr >> PMD_SHIFT)
        if isinstance(found, Huge) and not found.folio.flags & HUGETLB:
            memory.split_pmd(tables, addr >> PMD_SHIFT)


def move_range(memory: Memory, tables: Tables, old: int, new: int, length: int) -> int:
    """Move page-table entries from old to new (move_page_tables).  Returns how many bytes were moved."""
    done = 0
    while done < length:
        source, target = old + done, new + done
        huge = tables.puds.get(source >> PUD_SHIFT)
        if huge is not None and source & ((1 << PUD_SHIFT) - 1) == 0:
            tables.puds[target >> PUD_SHIFT] = tables.puds.pop(source >> PUD_SHIFT)
            done += 1 << PUD_SHIFT
            continue
        step = min(PMD_SIZE - (source & PMD_SIZE - 1), PMD_SIZE - (target & PMD_SIZE - 1), length - done)
        if not _move_part(memory, tables, source, target, step):
            return done
        done += step
    return length


def _move_part(memory: Memory, tables: Tables, source: int, target: int, length: int) -> bool:
    """Move what lies within one leaf on either side; False where memory is out."""
    number = source >> PMD_SHIFT
    found = tables.pmds.get(number)
    if found is None:
        return True
    whole = length == PMD_SIZE
    if whole and tables.pmds.get(target >> PMD_SHIFT) is None:
        # All of a page table, or one huge entry, is moved at once.  What is in a table is not marked.
        if isinstance(found, Huge):
            found.bits |= SOFT_DIRTY
        tables.pmds[target >> PMD_SHIFT] = found
        del tables.pmds[number]
        return True
    if isinstance(found, Huge):
        rest = memory.split_pmd(tables, number)
        if rest is None:
            return True
        found = rest
    goal = memory.leaf_for(tables, target)
    if goal is None:
        return False
    first = pte_index(source)
    other = pte_index(target)
    pages, bits = found.pages, found.bits
    order = range(length >> PAGE_SHIFT)
    for at in order if target <= source else reversed(order):
        goal.pages[other + at] = pages[first + at]
        goal.bits[other + at] = bits[first + at] | (SOFT_DIRTY if pages[first + at] is not None else 0)
        pages[first + at] = None
        bits[first + at] = 0
    return True
