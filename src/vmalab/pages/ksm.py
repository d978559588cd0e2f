"""Merging pages of equal contents: what ksmd does when it comes by, and how merged pages part again (mm/ksm.c)."""

from __future__ import annotations

from typing import final

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import VM_MERGEABLE
from vmalab.pages.fault import handle_mm_fault
from vmalab.pages.folio import ANON, KSM, ZERO, Folio
from vmalab.pages.memory import FAULT_UNSHARE, Memory
from vmalab.pages.table import PAGE_AT, PMD_SHIFT, PRESENT, SOFT_DIRTY, WRITE, YOUNG, Huge, Leaf, Tables, pte_index
from vmalab.pages.zap import leaf_range
from vmalab.reason import YES
from vmalab.vma.area import Vma


@final
class _Candidate:
    """A page that may be merged, and where it is mapped."""

    def __init__(self, tables: Tables, addr: int, folio: Folio, page: int) -> None:
        self.tables = tables
        self.addr = addr
        self.folio = folio
        self.page = page


def ksm_scan(memory: Memory) -> int:
    """Merge pages of equal contents in memory that may be (MADV_MERGEABLE): how many mappings were changed.

    As ksmd leaves it when it has come by often enough: all that does not change, and that nobody else holds, is merged.
    """
    shared: dict[bytes, list[Folio]] = {}
    groups: dict[bytes, list[_Candidate]] = {}
    for tables in memory.all_tables():
        for vma in tables.mm.vmas():
            if vma.flags & VM_MERGEABLE:
                _collect(tables, vma, groups, shared)
    merged = 0
    for content, group in groups.items():
        if not content and memory.settings.ksm_use_zero_pages:
            merged += sum([_replace(memory, each, memory.zero) for each in group])
        else:
            merged += _merge(memory, group, shared.get(content, []))
    return merged


def _collect(tables: Tables, vma: Vma, groups: dict[bytes, list[_Candidate]], shared: dict[bytes, list[Folio]]) -> None:
    """Sort the pages of a VMA by their contents: those that may be merged, and those that are."""
    for number in tables.spans(vma.start, vma.end):
        found = tables.pmds[number]
        low, high = leaf_range(number, vma.start, vma.end)
        for at in range(low, high):
            if isinstance(found, Huge):
                if not found.bits & PRESENT:
                    break
                folio, page = found.folio, at
            else:
                entry = found.pages[at]
                if not isinstance(entry, Folio):
                    continue
                folio, page = entry, found.bits[at] >> PAGE_AT
            if not folio.flags & ANON or folio.flags & ZERO:
                continue
            content = folio.content(page)
            if folio.flags & KSM:
                known = shared.setdefault(content, [])
                if not any([each is folio for each in known]):
                    known.append(folio)
            else:
                addr = (number << PMD_SHIFT) + (at << PAGE_SHIFT)
                groups.setdefault(content, []).append(_Candidate(tables, addr, folio, page))


def _merge(memory: Memory, group: list[_Candidate], known: list[Folio]) -> int:
    """Merge pages of equal contents with one that is shared already, or with each other; how many were."""
    merged = 0
    waiting: _Candidate | None = None
    for each in group:
        goal = next((one for one in known if one.mapcount() < memory.settings.ksm_max_page_sharing), None)
        if goal is not None:
            merged += _replace(memory, each, goal)
        elif waiting is None or (waiting.folio is each.folio and waiting.page == each.page):
            # Pages that a fork shares are one already.
            waiting = each if waiting is None else waiting
        elif _single(memory, waiting) is None:
            waiting = each
        elif _share(memory, each):
            made = _leaf(memory, each).pages[pte_index(each.addr)]
            assert isinstance(made, Folio)
            known.append(made)
            merged += 1 + _replace(memory, waiting, made)
            waiting = None
    # What a fork shares with a page that was merged follows.
    for each in group:
        if known and known[0].mapcount() < memory.settings.ksm_max_page_sharing:
            merged += _replace(memory, each, known[0])
    return merged


def _leaf(memory: Memory, candidate: _Candidate) -> Leaf:
    """The page table of a candidate; a huge entry is split for it."""
    number = candidate.addr >> PMD_SHIFT
    found = candidate.tables.pmds[number]
    return memory.split_huge_pmd(candidate.tables, number) if isinstance(found, Huge) else found


def _single(memory: Memory, candidate: _Candidate) -> Folio | None:
    """The folio of a candidate as one of a single page that nobody else holds; None where that cannot be."""
    leaf = _leaf(memory, candidate)
    at = pte_index(candidate.addr)
    folio = leaf.pages[at]
    if not isinstance(folio, Folio) or folio.flags & (KSM | ZERO) or folio.swap is not None:
        return None
    if not folio.has_no_other_references() or (folio.order and not memory.split_folio(folio)):
        return None
    single = leaf.pages[at]
    return single if isinstance(single, Folio) and not single.flags & ZERO else None


def _share(memory: Memory, candidate: _Candidate) -> bool:
    """Make a page one that others can be merged with: nobody writes to it any more (try_to_merge_one_page)."""
    folio = _single(memory, candidate)
    if folio is None:
        return False
    folio.flags |= KSM
    folio.exclusive = 0
    leaf = _leaf(memory, candidate)
    leaf.bits[pte_index(candidate.addr)] &= ~WRITE
    return True


def _replace(memory: Memory, candidate: _Candidate, goal: Folio) -> int:
    """Map a shared page in place of one with the same contents: 1, or 0 where that cannot be (replace_page)."""
    if _single(memory, candidate) is None:
        return 0
    leaf = _leaf(memory, candidate)
    at = pte_index(candidate.addr)
    memory.drop(candidate.tables, leaf, at)
    memory.get(goal)
    memory.add_mapping(candidate.tables, goal, 1, entire=False)
    leaf.pages[at] = goal
    leaf.bits[at] = PRESENT | YOUNG | (SOFT_DIRTY if goal is memory.zero else 0)
    return 1


def unmerge_ksm_pages(memory: Memory, vma: Vma, start: int, end: int) -> int:
    """Give a process pages of its own in [start, end) where they were merged: YES, or FAULT_NO_MEMORY."""
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        if isinstance(found, Huge):
            continue
        low, high = leaf_range(number, start, end)
        for at in range(low, high):
            entry = found.pages[at]
            if isinstance(entry, Folio) and entry.flags & KSM:
                addr = (number << PMD_SHIFT) + (at << PAGE_SHIFT)
                refusal = handle_mm_fault(memory, vma, addr, FAULT_UNSHARE)
                if refusal != YES:
                    return refusal
    return YES
