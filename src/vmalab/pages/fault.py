"""Faults: what the kernel does when a page is touched that is not there, or not so (mm/memory.c)."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from vmalab.flags import (
    UFFD_FEATURE_WP_ASYNC,
    VM_HUGETLB,
    VM_SHARED,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WRITE,
)
from vmalab.pages.filemap import file_page
from vmalab.pages.folio import ANON, KSM, PMD_ORDER, ZERO, Folio, MigrationEntry, SwapSlot
from vmalab.pages.hugetlb import hugetlb_fault
from vmalab.pages.memory import FAULT_UNSHARE, FAULT_WRITE, Memory, needs_soft_dirty_wp
from vmalab.pages.table import (
    BITS,
    DIRTY,
    GUARD,
    MKDIRTY,
    PAGE_AT,
    PMD_SHIFT,
    POISON,
    PRESENT,
    SOFT_DIRTY,
    SWAP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Huge,
    Leaf,
    Tables,
    pte_index,
)
from vmalab.pages.thp import anon_orders
from vmalab.reason import (
    FAULT_GUARD,
    FAULT_MIGRATION,
    FAULT_NO_MEMORY,
    FAULT_POISONED,
    FAULT_USERFAULTFD,
    FAULT_USERFAULTFD_WP,
    YES,
)
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import Vma
from vmalab.vma.port import ALLOC_PAGE_TABLE

_TRY_SMALLER: Final = -1
"""Instead of a reason: a huge page does not do, go on with small ones."""


def handle_mm_fault(memory: Memory, vma: Vma, addr: int, flags: int) -> int:
    """Make the page of an address accessible, as flags (FAULT_) ask.  YES, or a reason (handle_mm_fault).

    The caller has looked at the permissions of the VMA.  An anonymous page needs the anon_vma; it is made here.
    """
    if vma.flags & VM_HUGETLB:
        return hugetlb_fault(memory, vma, addr, flags)
    tables = memory.tables(vma.mm)
    number = addr >> PMD_SHIFT
    found = tables.pmds.get(number)
    if found is None:
        refusal = _create_huge_pmd(memory, tables, vma, addr, flags)
        if refusal != _TRY_SMALLER:
            return refusal
    elif isinstance(found, Huge):
        refusal = _huge_pmd_fault(memory, tables, vma, found, number, flags)
        if refusal != _TRY_SMALLER:
            return refusal
    fresh = number not in tables.pmds
    leaf = memory.leaf_for(tables, addr)
    if leaf is None:
        return FAULT_NO_MEMORY
    refusal = _handle_pte_fault(memory, tables, vma, leaf, addr, flags, fresh)
    if refusal != YES and fresh and not vma.is_anonymous() and leaf.is_empty():
        # The page table of a file's page is put in place with the page, or with others around it.
        del tables.pmds[number]
    return refusal


def _handle_pte_fault(memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, flags: int, fresh: bool) -> int:
    at = pte_index(addr)
    entry = leaf.pages[at]
    bits = leaf.bits[at]
    if entry is None:
        if bits & UFFD_WP and not vma.flags & VM_UFFD_WP:
            # Nobody asks for it any more.
            bits &= ~UFFD_WP
            leaf.bits[at] = bits
        if bits & GUARD:
            return FAULT_GUARD
        if bits & POISON:
            return FAULT_POISONED
        if vma.is_anonymous():
            return _anonymous_page(memory, tables, vma, leaf, addr, flags)
        return file_page(memory, tables, vma, leaf, addr, flags, fresh)
    if isinstance(entry, MigrationEntry):
        return FAULT_MIGRATION
    if isinstance(entry, SwapSlot):
        return _swap_page(memory, tables, vma, leaf, addr, entry, flags)
    if flags & (FAULT_WRITE | FAULT_UNSHARE) and not bits & WRITE:
        return _wp_page(memory, tables, vma, leaf, addr, flags)
    leaf.bits[at] = bits | YOUNG | (MKDIRTY if flags & FAULT_WRITE else 0)
    return YES


# -- anonymous pages ----------------------------------------------------------------------------------


def _create_huge_pmd(memory: Memory, tables: Tables, vma: Vma, addr: int, flags: int) -> int:
    """A huge page where there is no page table yet: YES, a reason, or _TRY_SMALLER (do_huge_pmd_anonymous_page)."""
    start = addr & -PMD_SIZE
    fits = vma.is_anonymous() and vma.start <= start and start + PMD_SIZE <= vma.end
    if not fits or vma.flags & VM_UFFD_MISSING or PMD_ORDER not in anon_orders(memory, vma):
        return _TRY_SMALLER
    refusal = anon_vma_prepare(vma)
    if refusal != YES:
        return FAULT_NO_MEMORY
    if vma.mm.port.may_fail(ALLOC_PAGE_TABLE):
        return FAULT_NO_MEMORY
    number = addr >> PMD_SHIFT
    if not flags & FAULT_WRITE and memory.settings.huge_zero:
        tables.pmds[number] = Huge(memory.huge_zero, PRESENT | YOUNG)
        return YES
    return _map_huge(memory, tables, vma, number)


def _map_huge(memory: Memory, tables: Tables, vma: Vma, number: int) -> int:
    """Map a fresh huge page in place of nothing, or of the huge page of zeros."""
    folio = memory.alloc(vma.mm, PMD_ORDER, ANON)
    if folio is None:
        return _TRY_SMALLER
    memory.map_new_anon(tables, folio, vma, number << PMD_SHIFT)
    writable = WRITE if vma.flags & VM_WRITE else 0
    tables.pmds[number] = Huge(folio, PRESENT | YOUNG | MKDIRTY | writable)
    return YES


def _huge_pmd_fault(memory: Memory, tables: Tables, vma: Vma, huge: Huge, number: int, flags: int) -> int:
    """A fault on a huge entry that is there (do_huge_pmd_wp_page)."""
    if not huge.bits & PRESENT:
        return FAULT_MIGRATION
    if not flags & (FAULT_WRITE | FAULT_UNSHARE) or huge.bits & WRITE:
        huge.bits |= YOUNG | (MKDIRTY if flags & FAULT_WRITE else 0)
        return YES
    folio = huge.folio
    if not vma.is_anonymous():
        if vma.flags & VM_SHARED:
            huge.bits |= YOUNG | (WRITE | MKDIRTY if flags & FAULT_WRITE else 0)
            return YES
        # What is copied of a file is a small page; the others are found again.
        memory.split_pmd(tables, number)
        return _TRY_SMALLER
    if huge.bits & UFFD_WP and flags & FAULT_WRITE and not _wp_async(vma):
        return FAULT_USERFAULTFD_WP
    if folio.flags & ZERO:
        refusal = _map_huge(memory, tables, vma, number)
        if refusal != _TRY_SMALLER:
            return refusal
    elif folio.is_exclusive(0) or folio.refs == 1:
        if not folio.is_exclusive(0):
            folio.move_to(vma)
        folio.exclusive = folio.all_exclusive()
        if flags & FAULT_WRITE:
            huge.bits |= MKDIRTY | YOUNG | (WRITE if vma.flags & VM_WRITE else 0)
        return YES
    # It is shared: what is copied is a small page.
    memory.split_huge_pmd(tables, number)
    return _TRY_SMALLER


def _anonymous_page(memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, flags: int) -> int:
    """The first access to anonymous memory (do_anonymous_page)."""
    at = pte_index(addr)
    marker = leaf.bits[at] & UFFD_WP
    if not flags & (FAULT_WRITE | FAULT_UNSHARE):
        if vma.flags & VM_UFFD_MISSING:
            return FAULT_USERFAULTFD
        leaf.pages[at] = memory.zero
        leaf.bits[at] = PRESENT | YOUNG | marker
        return YES
    if anon_vma_prepare(vma) != YES:
        return FAULT_NO_MEMORY
    if vma.flags & VM_UFFD_MISSING:
        return FAULT_USERFAULTFD
    if marker and flags & FAULT_WRITE and vma.flags & VM_UFFD_WP and not _wp_async(vma):
        return FAULT_USERFAULTFD_WP
    folio, first = _alloc_anon_folio(memory, vma, leaf, addr)
    if folio is None:
        return FAULT_NO_MEMORY
    start = addr - ((at - first) << PAGE_SHIFT) & -PAGE_SIZE
    memory.map_new_anon(tables, folio, vma, start)
    bits = PRESENT | YOUNG | DIRTY | (WRITE | SOFT_DIRTY if vma.flags & VM_WRITE else 0)
    for page in range(1 << folio.order):
        leaf.pages[first + page] = folio
        leaf.bits[first + page] = bits | page << PAGE_AT
    return YES


def _alloc_anon_folio(memory: Memory, vma: Vma, leaf: Leaf, addr: int) -> tuple[Folio | None, int]:
    """The largest folio that may be and for which there is room, and the entry that it begins at (alloc_anon_folio)."""
    at = pte_index(addr)
    base = addr & -PMD_SIZE
    if not vma.uffd and not leaf.bits[at] & BITS:
        for order in anon_orders(memory, vma):
            first = at & -(1 << order)
            start = base + (first << PAGE_SHIFT)
            if order == PMD_ORDER or start < vma.start or start + (PAGE_SIZE << order) > vma.end:
                continue
            if any(leaf.bits[first : first + (1 << order)]) or any(leaf.pages[first : first + (1 << order)]):
                continue
            folio = memory.alloc(vma.mm, order, ANON)
            if folio is not None:
                return folio, first
    return memory.alloc(vma.mm, 0, ANON), at


# -- copy on write ------------------------------------------------------------------------------------


def _wp_async(vma: Vma) -> bool:
    return vma.uffd is not None and vma.uffd.has(UFFD_FEATURE_WP_ASYNC)


def _wp_page(memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, flags: int) -> int:
    """A write, or an unshare, of a page that is there and not writable (do_wp_page)."""
    at = pte_index(addr)
    bits = leaf.bits[at]
    folio = leaf.pages[at]
    assert isinstance(folio, Folio)
    if flags & FAULT_WRITE and bits & UFFD_WP:
        if not _wp_async(vma):
            return FAULT_USERFAULTFD_WP
        bits &= ~UFFD_WP
        leaf.bits[at] = bits
    if vma.flags & VM_SHARED:
        if flags & FAULT_WRITE:
            leaf.bits[at] = bits | WRITE | MKDIRTY | YOUNG
        return YES
    page = bits >> PAGE_AT
    if folio.flags & ANON and (folio.is_exclusive(page) or wp_can_reuse_anon_folio(vma, folio)):
        if not folio.order and not folio.is_exclusive(page):
            folio.move_to(vma)
        folio.exclusive |= 1 << page
        if flags & FAULT_WRITE:
            leaf.bits[at] = bits | MKDIRTY | YOUNG | (WRITE if vma.flags & VM_WRITE else 0)
        return YES
    return _wp_page_copy(memory, tables, vma, leaf, addr, flags)


def wp_can_reuse_anon_folio(vma: Vma, folio: Folio) -> bool:
    """Whether nobody but this mapping refers to an anonymous folio, so that a write need not copy it.

    Before exclusive marks (Semantics.anonymous_exclusive) only the mappings counted, not other references.
    """
    if folio.flags & KSM:
        return False
    if not vma.mm.semantics.anonymous_exclusive:
        return folio.mapcount() == 1 and folio.swap is None
    if folio.order:
        return not folio.maybe_mapped_shared() and folio.swap is None and folio.has_no_other_references()
    return folio.refs == 1


def _wp_page_copy(memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, flags: int) -> int:
    """Give the process a copy of the page (wp_page_copy)."""
    at = pte_index(addr)
    old = leaf.pages[at]
    bits = leaf.bits[at]
    assert isinstance(old, Folio)
    if anon_vma_prepare(vma) != YES:
        return FAULT_NO_MEMORY
    new = memory.alloc(vma.mm, 0, ANON)
    if new is None:
        return FAULT_NO_MEMORY
    new.set_content(0, old.content(bits >> PAGE_AT))
    memory.note_copy(vma.mm, addr, old, bits >> PAGE_AT)
    memory.drop(tables, leaf, at)
    memory.map_new_anon(tables, new, vma, addr & -PAGE_SIZE)
    leaf.pages[at] = new
    kept = bits & UFFD_WP
    if flags & FAULT_UNSHARE:
        kept |= bits & SOFT_DIRTY
    else:
        kept |= MKDIRTY | (WRITE if vma.flags & VM_WRITE else 0)
    leaf.bits[at] = PRESENT | YOUNG | kept
    return YES


# -- swap ---------------------------------------------------------------------------------------------


def _swap_page(memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, slot: SwapSlot, flags: int) -> int:
    """Read a page back from swap (do_swap_page)."""
    at = pte_index(addr)
    bits = leaf.bits[at]
    exclusive = bits & SWAP_EXCLUSIVE != 0
    folio = slot.cache
    if folio is not None and id(folio) in memory.moving:
        return FAULT_MIGRATION
    if folio is None:
        if anon_vma_prepare(vma) != YES:
            return FAULT_NO_MEMORY
        folio = memory.alloc(vma.mm, 0, ANON)
        if folio is None:
            return FAULT_NO_MEMORY
        folio.set_content(0, slot.content)
        folio.move_to(vma)
        if not exclusive and folio.anon_vma is not None:
            # Others, who have it in common with this one by some ancestor, may map it as well.
            folio.anon_vma = folio.anon_vma.root
        folio.index = vma.pgoff_at(addr)
        # Its first reference is the swap cache's.
        slot.cache = folio
        folio.swap = slot
    memory.get(folio)
    memory.add_mapping(tables, folio, 1, entire=False)
    leaf.pages[at] = folio
    bits &= UFFD_WP | SOFT_DIRTY
    leaf.bits[at] = PRESENT | YOUNG | bits
    tables.swap -= 1
    memory.put_slot(slot)
    if exclusive or folio.refs == 1:
        folio.exclusive = 1
        if vma.flags & VM_WRITE and not bits & UFFD_WP and not needs_soft_dirty_wp(vma, bits):
            leaf.bits[at] |= WRITE | (MKDIRTY if flags & FAULT_WRITE else 0)
    if flags & FAULT_UNSHARE or (flags & FAULT_WRITE and not leaf.bits[at] & WRITE):
        return _wp_page(memory, tables, vma, leaf, addr, flags)
    return YES
