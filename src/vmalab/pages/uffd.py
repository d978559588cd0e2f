"""What answers to a userfaultfd do to pages: copy, zero page, continue, poison, write protection (mm/userfaultfd.c)."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from vmalab.flags import (
    UFFD_FEATURE_WP_UNPOPULATED,
    VM_ACCESS,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_SHARED,
    VM_UFFD_WP,
    VM_WRITE,
)
from vmalab.pages.folio import ANON, Folio, MigrationEntry
from vmalab.pages.folio import ZERO as ZERO_FOLIO
from vmalab.pages.memory import Memory
from vmalab.pages.migrate import downgraded
from vmalab.pages.protect import can_change_writable
from vmalab.pages.table import (
    ENTRIES,
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
from vmalab.pages.zap import leaf_range
from vmalab.reason import (
    FAULT_NO_MEMORY,
    FILL_NO_PAGE,
    FILL_NOT_REGISTERED,
    FILL_NOT_SUPPORTED,
    FILL_NOT_WP,
    FILL_THERE,
    MOVE_HOLE,
    MOVE_MARKER,
    MOVE_MIGRATION,
    MOVE_NOT_MAPPED,
    MOVE_SHARED,
    MOVE_UNFIT,
    YES,
)
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import Userfaultfd, Vma
from vmalab.vma.space import Mm

COPY: Final = 0
ZERO: Final = 1
CONTINUE: Final = 2
MARK_POISON: Final = 3


def fill(memory: Memory, mm: Mm, addr: int, length: int, data: bytes, kind: int, protect: bool) -> tuple[int, int]:
    """Put pages where none are: how many, and YES or why the next was not (mfill_atomic).

    length: in bytes.  data: what they hold, for COPY.  protect: they are write-protected at once.
    """
    vma = mm.vma_lookup(addr)
    if vma is None:
        return 0, FILL_NOT_REGISTERED
    if not vma.flags & VM_SHARED and anon_vma_prepare(vma) != YES:
        return 0, FAULT_NO_MEMORY
    if addr < vma.start or addr + length > vma.end or vma.uffd is None:
        return 0, FILL_NOT_REGISTERED
    if protect and not vma.flags & VM_UFFD_WP:
        return 0, FILL_NOT_WP
    is_shmem = vma.ops is not None and vma.ops.name == "shmem"
    if vma.flags & VM_HUGETLB or not (vma.is_anonymous() or is_shmem) or (kind == CONTINUE and not is_shmem):
        return 0, FILL_NOT_SUPPORTED
    tables = memory.tables(mm)
    for at in range(0, length, PAGE_SIZE):
        content = data[at : at + PAGE_SIZE].rstrip(b"\0")
        refusal = _fill_page(memory, tables, vma, addr + at, content, kind, protect)
        if refusal != YES:
            return at >> PAGE_SHIFT, refusal
    return length >> PAGE_SHIFT, YES


def _fill_page(memory: Memory, tables: Tables, vma: Vma, addr: int, content: bytes, kind: int, protect: bool) -> int:
    if isinstance(tables.pmds.get(addr >> PMD_SHIFT), Huge):
        return FILL_THERE
    if vma.file is not None and 0 <= vma.file.size <= vma.offset_at(addr):
        return FILL_NO_PAGE if kind != CONTINUE else FILL_NOT_SUPPORTED
    leaf = memory.leaf_for(tables, addr)
    if leaf is None:
        return FAULT_NO_MEMORY
    at = pte_index(addr)
    if kind == CONTINUE or (kind != MARK_POISON and vma.flags & VM_SHARED):
        return _fill_shared(memory, tables, vma, leaf, addr, content, kind, protect)
    if leaf.pages[at] is not None or (kind != COPY and leaf.bits[at]):
        return FILL_THERE
    if kind == MARK_POISON:
        leaf.bits[at] = POISON
        return YES
    if kind == ZERO:
        leaf.pages[at] = memory.zero
        leaf.bits[at] = PRESENT | YOUNG
        return YES
    folio = memory.alloc(vma.mm, 0, ANON)
    if folio is None:
        return FAULT_NO_MEMORY
    folio.set_content(0, content)
    memory.map_new_anon(tables, folio, vma, addr)
    leaf.pages[at] = folio
    leaf.bits[at] = PRESENT | YOUNG | MKDIRTY | _protection(vma, protect)
    return YES


def move_pages(
    memory: Memory, uffd: Userfaultfd, mm: Mm, to: int, start: int, length: int, skips_holes: bool
) -> tuple[int, int]:
    """UFFDIO_MOVE: take pages from `start` and put them at `to`: how many bytes, and YES or why no more (move_pages).

    skips_holes: where there is no page to move, none is moved, and it counts as done.
    """
    vma, goal = mm.vma_lookup(start), mm.vma_lookup(to)
    if vma is None or goal is None:
        return 0, MOVE_NOT_MAPPED
    if start + length > vma.end or to + length > goal.end or not _areas_fit(uffd, vma, goal):
        return 0, MOVE_UNFIT
    if anon_vma_prepare(goal) != YES:
        return 0, FAULT_NO_MEMORY
    tables = memory.tables(mm)
    done = 0
    while done < length:
        step, refusal = _move_some(memory, tables, goal, to + done, start + done, length - done, skips_holes)
        if refusal != YES:
            return done, refusal
        done += step
    return done, YES


def _areas_fit(uffd: Userfaultfd, vma: Vma, goal: Vma) -> bool:
    """Whether pages of one VMA may be moved to another (validate_move_areas)."""
    special = VM_SHARED | VM_PFNMAP | VM_IO | VM_HUGETLB | VM_MIXEDMAP
    return (
        (vma.flags ^ goal.flags) & (VM_ACCESS | VM_LOCKED) == 0
        and vma.flags & VM_WRITE != 0
        and (vma.flags | goal.flags) & special == 0
        and goal.uffd is uffd
        and vma.is_anonymous()
        and goal.is_anonymous()
    )


def _move_some(
    memory: Memory, tables: Tables, goal: Vma, to: int, start: int, length: int, skips_holes: bool
) -> tuple[int, int]:
    """Move one page, or a huge one where it fits: how many bytes, and YES or a reason."""
    number = start >> PMD_SHIFT
    source = tables.pmds.get(number)
    if isinstance(tables.pmds.get(to >> PMD_SHIFT), Huge):
        return 0, FILL_THERE
    if source is None and not skips_holes:
        return 0, MOVE_HOLE
    if isinstance(source, Huge):
        if (to | start) & PMD_SIZE - 1 == 0 and length >= PMD_SIZE and to >> PMD_SHIFT not in tables.pmds:
            refusal = _may_leave(memory, source.folio, 0)
            if refusal == YES:
                del tables.pmds[number]
                _settle(source.folio, goal, to)
                writable = 0 if source.folio.flags & ZERO_FOLIO else WRITE | MKDIRTY
                tables.pmds[to >> PMD_SHIFT] = Huge(source.folio, PRESENT | YOUNG | writable)
            return PMD_SIZE, refusal
        source = memory.split_huge_pmd(tables, number)
    leaf = memory.leaf_for(tables, to)
    if leaf is None:
        return 0, FAULT_NO_MEMORY
    return PAGE_SIZE, _move_page(memory, goal, leaf, source, to, start, skips_holes)


def _may_leave(memory: Memory, folio: Folio, page: int) -> int:
    """Whether a page that is there may go somewhere else: nobody else has it, and no device (move_present_pte)."""
    if folio.flags & ZERO_FOLIO:
        return YES
    if id(folio) in memory.moving:
        return MOVE_MIGRATION
    return YES if folio.is_exclusive(page) and not folio.pins else MOVE_SHARED


def _settle(folio: Folio, goal: Vma, to: int) -> None:
    """A folio that was moved is found through its new VMA."""
    if not folio.flags & ZERO_FOLIO:
        folio.move_to(goal)
        folio.index = goal.pgoff_at(to)


def _move_page(
    memory: Memory, goal: Vma, leaf: Leaf, source: Leaf | None, to: int, start: int, skips_holes: bool
) -> int:
    """Move one entry: YES or a reason (move_pages_pte)."""
    into, at = pte_index(to), pte_index(start)
    if leaf.pages[into] is not None or leaf.bits[into]:
        return FILL_THERE
    entry = None if source is None else source.pages[at]
    if source is None or entry is None:
        if source is not None and source.bits[at]:
            return MOVE_MARKER
        return YES if skips_holes else MOVE_HOLE
    if isinstance(entry, Folio):
        refusal = _may_leave(memory, entry, source.bits[at] >> PAGE_AT)
        if refusal == YES and entry.order and not memory.split_folio(entry):
            refusal = MOVE_SHARED
        if refusal != YES:
            return refusal
        moved = source.pages[at]
        assert isinstance(moved, Folio)
        _settle(moved, goal, to)
        leaf.pages[into] = moved
        leaf.bits[into] = PRESENT | YOUNG | (0 if moved.flags & ZERO_FOLIO else MKDIRTY | WRITE)
    elif isinstance(entry, MigrationEntry):
        return MOVE_MIGRATION
    else:
        if not source.bits[at] & SWAP_EXCLUSIVE:
            return MOVE_SHARED
        leaf.pages[into] = entry
        leaf.bits[into] = source.bits[at] | SOFT_DIRTY
    source.pages[at] = None
    source.bits[at] = 0
    return YES


def _protection(vma: Vma, protect: bool) -> int:
    """The bits of a new entry: writable, unless it is to be write-protected."""
    if protect:
        return UFFD_WP
    return WRITE if vma.flags & VM_WRITE else 0


def _fill_shared(
    memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, content: bytes, kind: int, protect: bool
) -> int:
    """A page of shared memory: made, or for CONTINUE found."""
    at = pte_index(addr)
    cache = memory.cache_for(vma)
    index = vma.pgoff_at(addr)
    folio = cache.find(index)
    if kind == CONTINUE:
        if folio is None:
            return FILL_NO_PAGE
        if leaf.pages[at] is not None:
            return FILL_THERE
        if id(folio) in memory.moving:
            return MOVE_MIGRATION
    else:
        if folio is not None or leaf.pages[at] is not None:
            return FILL_THERE
        folio = memory.alloc(vma.mm, 0, 0)
        if folio is None:
            return FAULT_NO_MEMORY
        folio.set_content(0, content)
        memory.insert(cache, folio, index)
    memory.get(folio)
    memory.add_mapping(tables, folio, 1, entire=False)
    leaf.pages[at] = folio
    writable = _protection(vma, protect) if vma.flags & VM_SHARED else UFFD_WP if protect else 0
    leaf.bits[at] = PRESENT | YOUNG | MKDIRTY | writable | (index - folio.index) << PAGE_AT
    return YES


def write_protect(memory: Memory, mm: Mm, start: int, end: int, protect: bool) -> int:
    """UFFDIO_WRITEPROTECT: YES, or FILL_NOT_REGISTERED where a VMA of the range is not registered for it."""
    at = start
    vma = mm.find_vma_intersection(start, end)
    if vma is None:
        return FILL_NOT_REGISTERED
    while vma is not None and at < end:
        if not vma.flags & VM_UFFD_WP:
            return FILL_NOT_REGISTERED
        if vma.flags & VM_HUGETLB and (start | end) & PMD_SIZE - 1:
            return FILL_NOT_SUPPORTED
        protect_range(memory, vma, max(at, vma.start), min(end, vma.end), protect)
        at = vma.end
        vma = mm.find_vma_intersection(at, end) if at < end else None
    return YES


def forget_protection(memory: Memory, mm: Mm, start: int, end: int) -> None:
    """Entries that were moved away from their userfaultfd are no longer protected; none becomes writable by that."""
    tables = memory.tables(mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        if isinstance(found, Huge):
            found.bits &= ~UFFD_WP
            continue
        low, high = leaf_range(number, start, end)
        for at in range(low, high):
            found.bits[at] &= ~UFFD_WP


def protect_range(memory: Memory, vma: Vma, start: int, end: int, protect: bool) -> None:
    """Set or clear the protection of entries (uffd_wp_range).

    Where no page is, shared memory remembers it, and anonymous memory if the userfaultfd asked for it.
    """
    tables = memory.tables(vma.mm)
    first, last = start >> PMD_SHIFT, end - 1 >> PMD_SHIFT
    for number in range(first, last + 1):
        found = tables.pmds.get(number)
        low, high = leaf_range(number, start, end)
        if isinstance(found, Huge):
            if (low, high) == (0, ENTRIES) and (vma.is_anonymous() or not protect):
                huge = (found.bits if found.bits & PRESENT else downgraded(found.folio, found.bits)) & ~UFFD_WP
                found.bits = huge & ~WRITE | UFFD_WP if protect else huge
                continue
            found = memory.split_pmd(tables, number)
        unpopulated = vma.uffd is not None and vma.uffd.has(UFFD_FEATURE_WP_UNPOPULATED)
        marks = protect and (not vma.is_anonymous() or unpopulated)
        if found is None:
            if not marks:
                continue
            found = tables.pmds[number] = Leaf()
        for at in range(low, high):
            _protect_entry(vma, found, at, protect, marks)


def _protect_entry(vma: Vma, leaf: Leaf, at: int, protect: bool, marks: bool) -> None:
    bits = leaf.bits[at]
    entry = leaf.pages[at]
    if isinstance(entry, MigrationEntry):
        bits = downgraded(entry.folio, bits)
    if entry is None:
        if not bits & ~UFFD_WP:
            leaf.bits[at] = UFFD_WP if marks else 0 if not protect else bits
    elif protect:
        leaf.bits[at] = bits & ~WRITE | UFFD_WP
    else:
        bits &= ~UFFD_WP
        if isinstance(entry, Folio) and can_change_writable(vma, entry, bits, bits >> PAGE_AT):
            bits |= WRITE
        leaf.bits[at] = bits
