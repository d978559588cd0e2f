"""fork, below the VMAs: what is shared from then on, and what is copied at once (copy_page_range)."""

from __future__ import annotations

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import VM_HUGETLB, VM_MAYBE_GUARD, VM_PFNMAP, VM_SHARED, VM_UFFD_WP, VM_WRITE
from vmalab.pages.folio import ANON, Folio, MigrationEntry, SwapSlot
from vmalab.pages.memory import Memory, is_cow_mapping
from vmalab.pages.table import (
    DIRTY,
    MKDIRTY,
    PAGE_AT,
    PMD_SHIFT,
    PRESENT,
    PUD_SHIFT,
    SWAP_EXCLUSIVE,
    UFFD_WP,
    WRITE,
    YOUNG,
    Huge,
    Leaf,
    Tables,
)
from vmalab.pages.zap import leaf_range
from vmalab.reason import FAULT_NO_MEMORY, YES
from vmalab.vma.area import Vma


def needs_copy(copy: Vma, vma: Vma) -> bool:
    """Whether a child needs the page tables: what a fault finds again is left out (vma_needs_copy)."""
    return bool(vma.anon_vma is not None or copy.flags & VM_UFFD_WP or vma.flags & (VM_PFNMAP | VM_MAYBE_GUARD))


def copy_page_range(memory: Memory, copy: Vma, vma: Vma) -> int:
    """Give a child's copy of a VMA the pages of the parent's: YES, or FAULT_NO_MEMORY."""
    if not needs_copy(copy, vma):
        return YES
    source = memory.tables(vma.mm)
    target = memory.tables(copy.mm)
    for large in source.large_spans(vma.start, vma.end):
        new = _duplicate_hugetlb(memory, source, target, copy, source.puds[large], large << PUD_SHIFT)
        if new is None:
            return FAULT_NO_MEMORY
        target.puds[large] = new
    start: int = vma.start
    end: int = vma.end
    for number in source.spans(start, end):
        found = source.pmds[number]
        if isinstance(found, Huge):
            if vma.flags & VM_HUGETLB:
                own = _duplicate_hugetlb(memory, source, target, copy, found, number << PMD_SHIFT)
                if own is None:
                    return FAULT_NO_MEMORY
                target.pmds[number] = own
                continue
            if not vma.is_anonymous():
                # A file's pages are found again.
                continue
            if _copy_huge(memory, source, target, vma, found, number, _kept(copy)):
                continue
            found = memory.split_huge_pmd(source, number)
        leaf = memory.leaf_for(target, number << PMD_SHIFT)
        if leaf is None:
            return FAULT_NO_MEMORY
        low, high = leaf_range(number, start, end)
        refusal = _copy_leaf(memory, source, target, copy, vma, number, found, leaf, low, high)
        if refusal != YES:
            return refusal
    return YES


def _kept(copy: Vma) -> int:
    """The bits that a child takes over: the protection of a userfaultfd only where it has that as well."""
    return ~0 if copy.flags & VM_UFFD_WP else ~UFFD_WP


def _new_bits(copy: Vma, bits: int) -> int:
    """The bits of a child's own copy of a page, from those of the parent's entry."""
    if bits & UFFD_WP and copy.flags & VM_UFFD_WP:
        return PRESENT | YOUNG | MKDIRTY | UFFD_WP
    return PRESENT | YOUNG | MKDIRTY | (WRITE if copy.flags & VM_WRITE else 0)


def _shared_entry(bits: int, cow: bool) -> int:
    """The bits of a migration entry that two processes have from now on: what was one's alone is so no more."""
    return bits & ~(WRITE | SWAP_EXCLUSIVE) if cow else bits


def _share_moving(memory: Memory, target: Tables, huge: Huge, cow: bool, kept: int) -> Huge:
    """The child's entry for a huge page that is being moved."""
    huge.bits = _shared_entry(huge.bits, cow)
    memory.account(target, huge.folio, huge.folio.count())
    return Huge(huge.folio, huge.bits & kept)


def _must_copy_now(source: Tables, folio: Folio, page: int) -> bool:
    """Whether a page cannot be shared: somebody may have it pinned, and it is exclusive (folio_try_dup_anon_rmap)."""
    return source.has_pinned and folio.pins > 0 and folio.is_exclusive(page)


def _copy_huge(memory: Memory, source: Tables, target: Tables, vma: Vma, huge: Huge, number: int, kept: int) -> bool:
    """Share a huge page, if that may be (copy_huge_pmd)."""
    folio = huge.folio
    if not huge.bits & PRESENT:
        target.pmds[number] = _share_moving(memory, target, huge, is_cow_mapping(vma), kept)
        return True
    if folio.flags & ANON and _must_copy_now(source, folio, 0):
        return False
    memory.get(folio)
    memory.add_mapping(target, folio, 1, entire=True)
    folio.exclusive = 0
    if is_cow_mapping(vma):
        huge.bits &= ~WRITE
    target.pmds[number] = Huge(folio, huge.bits & kept & ~(WRITE | YOUNG))
    return True


def _copy_leaf(
    memory: Memory,
    source: Tables,
    target: Tables,
    copy: Vma,
    vma: Vma,
    number: int,
    old: Leaf,
    new: Leaf,
    low: int,
    high: int,
) -> int:
    cow = is_cow_mapping(vma)
    kept = _kept(copy)
    for at in range(low, high):
        entry = old.pages[at]
        bits = old.bits[at]
        if entry is None:
            new.bits[at] = bits & kept
            continue
        if isinstance(entry, SwapSlot):
            entry.count += 1
            target.swap += 1
            old.bits[at] = bits & ~SWAP_EXCLUSIVE
            new.pages[at] = entry
            new.bits[at] = bits & ~SWAP_EXCLUSIVE & kept
            continue
        if isinstance(entry, MigrationEntry):
            old.bits[at] = _shared_entry(bits, cow)
            new.pages[at] = entry
            new.bits[at] = old.bits[at] & kept
            memory.account(target, entry.folio, 1)
            continue
        page = bits >> PAGE_AT
        if entry.flags & ANON:
            if entry.pins and _must_copy_now(source, entry, page):
                refusal = _copy_page(
                    memory, target, copy, new, at, (number << PMD_SHIFT) + (at << PAGE_SHIFT), entry, bits
                )
                if refusal != YES:
                    return refusal
                continue
            entry.exclusive &= ~(1 << page)
        memory.get(entry)
        memory.add_mapping(target, entry, 1, entire=False)
        if cow and bits & WRITE:
            bits &= ~WRITE
            old.bits[at] = bits
        new.pages[at] = entry
        new.bits[at] = bits & kept & ~(DIRTY | YOUNG if vma.flags & VM_SHARED else YOUNG)
    return YES


def _copy_page(
    memory: Memory, target: Tables, copy: Vma, leaf: Leaf, at: int, addr: int, folio: Folio, bits: int
) -> int:
    """The child gets a copy at once: the page is pinned, and what is pinned stays the parent's (copy_present_page)."""
    own = memory.alloc(copy.mm, 0, ANON)
    if own is None:
        return FAULT_NO_MEMORY
    own.set_content(0, folio.content(bits >> PAGE_AT))
    memory.map_new_anon(target, own, copy, addr)
    leaf.pages[at] = own
    leaf.bits[at] = _new_bits(copy, bits)
    return YES


def _duplicate_hugetlb(memory: Memory, source: Tables, target: Tables, copy: Vma, huge: Huge, addr: int) -> Huge | None:
    """The child's entry for a page of hugetlb (copy_hugetlb_page_range); None where the pool is empty."""
    folio = huge.folio
    if not huge.bits & PRESENT:
        return _share_moving(memory, target, huge, not copy.flags & VM_SHARED, _kept(copy))
    if folio.flags & ANON and _must_copy_now(source, folio, 0):
        own = memory.alloc_hugetlb(copy.mm, folio.order, ANON)
        if own is None:
            return None
        own.copy_from(folio)
        memory.map_new_anon(target, own, copy, addr)
        return Huge(own, _new_bits(copy, huge.bits))
    memory.get(folio)
    memory.add_mapping(target, folio, 1, entire=True)
    folio.exclusive = 0
    if not copy.flags & VM_SHARED:
        huge.bits &= ~WRITE
    return Huge(folio, huge.bits & _kept(copy))
