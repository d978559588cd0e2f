"""Faults on pages of files, and what happens to the folios of their page caches (mm/filemap.c, mm/truncate.c)."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import VM_SHARED, VM_UFFD, VM_UFFD_MINOR, VM_UFFD_MISSING, VM_UFFD_WP, VM_WRITE
from vmalab.pages.folio import ANON, PMD_ORDER, Folio, MigrationEntry, PageCache
from vmalab.pages.folio import DIRTY as FOLIO_DIRTY
from vmalab.pages.memory import FAULT_UNSHARE, FAULT_WRITE, Memory
from vmalab.pages.table import (
    ENTRIES,
    MKDIRTY,
    PAGE_AT,
    PMD_SHIFT,
    PRESENT,
    UFFD_WP,
    WRITE,
    YOUNG,
    Huge,
    Leaf,
    Tables,
    pte_index,
)
from vmalab.pages.thp import is_shmem, is_suitable, may_be_huge, shmem_orders
from vmalab.pages.zap import leaf_range
from vmalab.reason import (
    FAULT_BEYOND_FILE,
    FAULT_MIGRATION,
    FAULT_NO_MEMORY,
    FAULT_USERFAULTFD,
    FAULT_USERFAULTFD_MINOR,
    YES,
)
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import SHM_OPS, File, Vma

FAULT_AROUND: Final = 16
"""Pages that a fault on a file's page looks at (fault_around_bytes)."""


def file_page(memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, flags: int, fresh: bool) -> int:
    """The first access to a page of a file: YES or a reason (do_read_fault, do_cow_fault, do_shared_fault).

    fresh: the page table was made for it, so that one huge entry may take its place.
    """
    at = pte_index(addr)
    marker = leaf.bits[at] & UFFD_WP
    wants_own = flags & (FAULT_WRITE | FAULT_UNSHARE) != 0 and not vma.flags & VM_SHARED
    if wants_own and anon_vma_prepare(vma) != YES:
        return FAULT_NO_MEMORY
    if not flags and not vma.flags & (VM_UFFD_WP | VM_UFFD_MINOR) and vma.ops is not SHM_OPS:
        if _fault_around(memory, tables, vma, leaf, addr, fresh):
            return YES
        if leaf.pages[at] is not None:
            leaf.bits[at] |= YOUNG
            return YES
    folio, page, refusal = file_folio(memory, vma, addr)
    if folio is None:
        return refusal
    if not wants_own:
        writes = flags & FAULT_WRITE != 0 and vma.flags & VM_SHARED != 0
        if not (fresh and set_huge_pmd(memory, tables, vma, addr, folio, writes)):
            bits = PRESENT | YOUNG | marker | (WRITE | MKDIRTY if writes and not marker else 0)
            _finish_fault(memory, tables, vma, leaf, addr, folio, page, bits)
        return YES
    own = memory.alloc(vma.mm, 0, ANON)
    if own is None:
        return FAULT_NO_MEMORY
    own.set_content(0, folio.content(page))
    leaf.bits[at] = 0
    memory.map_new_anon(tables, own, vma, addr & -PAGE_SIZE)
    leaf.pages[at] = own
    written = MKDIRTY | (WRITE if vma.flags & VM_WRITE else 0) if flags & FAULT_WRITE else 0
    leaf.bits[at] = PRESENT | YOUNG | marker | written
    return YES


def _end_of(file: File | None) -> int:
    """How many pages a file has; without an end where that is not known."""
    return 1 << 52 if file is None or file.size < 0 else (file.size + PAGE_SIZE - 1) >> PAGE_SHIFT


def _may_map_whole(file: File | None, folio: Folio) -> bool:
    """Whether more of a folio than one page may be mapped: not past the end of a file, but for shared memory."""
    return is_shmem(file) or _end_of(file) >= folio.index + folio.count()


def _fault_around(memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, fresh: bool) -> bool:
    """Map the pages around an address that are in memory already, so that they need no fault (filemap_map_pages).

    A large folio is mapped whole where it fits; the answer is whether that was done by one huge entry.
    """
    at = pte_index(addr)
    before = (addr - vma.start) >> PAGE_SHIFT
    first = max(at & -FAULT_AROUND, at - min(at, before))
    last = min(first + FAULT_AROUND, ENTRIES, at + vma.pages() - before)
    # The index of the leaf's first entry.
    base: int = vma.pgoff + before - at
    end = min(base + last, _end_of(vma.file))
    for number, folio in enumerate(memory.cache_for(vma).overlapping(base + first, end)):
        if id(folio) in memory.moving:
            continue
        whole = _may_map_whole(vma.file, folio)
        if number == 0 and fresh and whole and set_huge_pmd(memory, tables, vma, addr, folio, False):
            return True
        low, high = max(folio.index - base, first), min(folio.index + folio.count() - base, end - base)
        if folio.order and whole and _fits(vma, base, folio):
            low, high = folio.index - base, folio.index + folio.count() - base
        for each in range(low, high):
            if leaf.pages[each] is None and not leaf.bits[each]:
                _map_page(memory, tables, leaf, each, folio, base + each - folio.index, PRESENT)
    return False


def _fits(vma: Vma, base: int, folio: Folio) -> bool:
    """Whether a VMA and a page table, whose first entry is for the index base, have all of a folio."""
    index: int = folio.index
    end = index + folio.count()
    return vma.pgoff <= index and end <= vma.pgoff + vma.pages() and base <= index and end <= base + ENTRIES


def _map_page(memory: Memory, tables: Tables, leaf: Leaf, at: int, folio: Folio, page: int, bits: int) -> None:
    memory.get(folio)
    memory.add_mapping(tables, folio, 1, entire=False)
    leaf.pages[at] = folio
    leaf.bits[at] = bits | page << PAGE_AT


def _finish_fault(
    memory: Memory, tables: Tables, vma: Vma, leaf: Leaf, addr: int, folio: Folio, page: int, bits: int
) -> None:
    """Map a page of a folio, and where nothing is in the way all others of it (finish_fault)."""
    at = pte_index(addr)
    first, count = at, 1
    if folio.order and not vma.flags & VM_UFFD and _may_map_whole(vma.file, folio):
        last = at - page + folio.count()
        if _fits(vma, vma.pgoff_at(addr) - at, folio) and _is_free(leaf, at - page, last):
            first, count = at - page, folio.count()
    for each in range(first, first + count):
        _map_page(memory, tables, leaf, each, folio, page + each - at, bits)


def _is_free(leaf: Leaf, low: int, high: int) -> bool:
    """Whether entries of a leaf refer to nothing and mark nothing."""
    return not any(leaf.bits[low:high]) and not any([entry is not None for entry in leaf.pages[low:high]])


def set_huge_pmd(memory: Memory, tables: Tables, vma: Vma, addr: int, folio: Folio, writes: bool) -> bool:
    """Map a folio of a file by one huge entry, in place of nothing, where that may be (do_set_pmd).

    The folio is huge already: that nobody has advised it (PR_THP_DISABLE_EXCEPT_ADVISED) is no matter here.
    """
    if folio.order != PMD_ORDER or not may_be_huge(vma, True) or not is_suitable(vma, addr, PMD_ORDER):
        return False
    if not _may_map_whole(vma.file, folio):
        return False
    memory.get(folio)
    memory.add_mapping(tables, folio, 1, entire=True)
    tables.pmds[addr >> PMD_SHIFT] = Huge(folio, PRESENT | YOUNG | (WRITE | MKDIRTY if writes else 0))
    return True


def file_folio(memory: Memory, vma: Vma, addr: int) -> tuple[Folio | None, int, int]:
    """The page of a file at an address, read or made where it is not in memory: the folio, the page in it, a reason.

    A userfaultfd may want to know of pages that are not there, or that are (minor): it is asked first.
    """
    cache = memory.cache_for(vma)
    index = vma.pgoff_at(addr)
    if index >= _end_of(vma.file):
        return None, 0, FAULT_BEYOND_FILE
    folio = cache.find(index)
    if vma.flags & (VM_UFFD_MISSING if folio is None else VM_UFFD_MINOR):
        return None, 0, FAULT_USERFAULTFD if folio is None else FAULT_USERFAULTFD_MINOR
    if folio is not None and id(folio) in memory.moving:
        return None, 0, FAULT_MIGRATION
    if folio is None:
        folio = _alloc_shmem(memory, vma, cache, addr, index) if is_shmem(vma.file) else None
    if folio is None:
        folio = memory.alloc(vma.mm, 0, 0)
        if folio is None:
            return None, 0, FAULT_NO_MEMORY
        at = index << PAGE_SHIFT
        folio.set_content(0, cache.content[at : at + PAGE_SIZE].rstrip(b"\0"))
        memory.insert(cache, folio, index)
    return folio, index - folio.index, YES


def _alloc_shmem(memory: Memory, vma: Vma, cache: PageCache, addr: int, index: int) -> Folio | None:
    """A large folio for shared memory that is touched first, where one may be (shmem_alloc_and_add_folio)."""
    for order in shmem_orders(memory, vma, index, False):
        first = index & -(1 << order)
        if not is_suitable(vma, addr, order) or cache.overlapping(first, first + (1 << order)):
            continue
        folio = memory.alloc(vma.mm, order, 0)
        if folio is not None:
            memory.insert(cache, folio, first)
            return folio
    return None


# -- the folios of a page cache -----------------------------------------------------------------------


def unmap_folio(memory: Memory, folio: Folio) -> None:
    """Take a folio of a file out of all page tables; a userfaultfd's protection stays (try_to_unmap)."""
    for tables, addr, page in memory.places_of(folio):
        number = addr >> PMD_SHIFT
        found = tables.pmds.get(number)
        if isinstance(found, Huge):
            if found.folio is folio:
                memory.split_pmd(tables, number)
        elif found is not None:
            at = pte_index(addr)
            if found.pages[at] is folio and found.bits[at] >> PAGE_AT == page:
                marker = found.bits[at] & UFFD_WP
                memory.drop(tables, found, at)
                found.bits[at] = marker


def split_file_folio(memory: Memory, folio: Folio, file: File | None, at: int = -1) -> bool:
    """Split a folio of a file: into single pages, or around the page at, and so that as little as can be falls apart.

    False where somebody holds it.  It is mapped nowhere then; what is wholly past the end of its file is freed.
    (split_folio, try_folio_split)
    """
    cache = folio.cache
    if cache is None or not folio.order or not folio.has_no_other_references():
        return False
    unmap_folio(memory, folio)
    if at < 0:
        pieces = [(page, 0) for page in range(folio.count())]
    else:
        pieces = [(at, 0)]
        for order in range(folio.order):
            pieces.append((at >> order << order ^ 1 << order, order))
    end = _end_of(file)
    cache.remove(folio)
    memory.live -= 1
    memory.resident -= folio.count()
    folio.refs = 0
    for first, order in pieces:
        index = folio.index + first
        if index >= end:
            continue
        part = Folio(order, folio.flags)
        for page in range(1 << order):
            part.set_content(page, folio.content(first + page))
        memory.live += 1
        memory.resident += 1 << order
        memory.insert(cache, part, index)
    return True


def punch_hole(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """MADV_REMOVE: the file has zeros in place of [start, end) from now on, for everybody who maps it."""
    assert vma.file is not None
    cache = memory.cache_of(vma.file)
    first, last = vma.pgoff_at(start), vma.pgoff_at(end - 1) + 1
    for each in cache.mappings.overlapping(first, last):
        low = max(each.start, each.start + (first - each.pgoff << PAGE_SHIFT))
        high = min(each.end, each.start + (last - each.pgoff << PAGE_SHIFT))
        _zap_file_pages(memory, each, low, high)
    _drop_between(memory, cache, first, last)
    for index in (first, last - 1):
        folio = cache.find(index)
        if folio is not None:
            _drop_part(memory, cache, vma.file, folio, first, last)
    _drop_between(memory, cache, first, last)
    cache.content = (
        cache.content[: first << PAGE_SHIFT]
        + bytes(min(len(cache.content), last << PAGE_SHIFT) - min(len(cache.content), first << PAGE_SHIFT))
        + cache.content[last << PAGE_SHIFT :]
    )


def _drop_between(memory: Memory, cache: PageCache, first: int, last: int) -> None:
    """Throw away the folios that lie wholly between two indexes."""
    for folio in cache.overlapping(first, last):
        if first <= folio.index and folio.index + folio.count() <= last:
            unmap_folio(memory, folio)
            memory.evict(folio)


def _drop_part(memory: Memory, cache: PageCache, file: File, folio: Folio, first: int, last: int) -> None:
    """Cut what lies between two indexes out of a folio that reaches further (truncate_inode_partial_folio).

    Where somebody holds it, it stays, with zeros there.
    """
    low: int = max(first - folio.index, 0)
    high: int = min(last - folio.index, folio.count())
    for page in range(low, high):
        folio.set_content(page, b"")
    folio.flags |= FOLIO_DIRTY
    if split_file_folio(memory, folio, file, low) and high < folio.count():
        rest = cache.find(folio.index + high)
        if rest is not None:
            split_file_folio(memory, rest, file, folio.index + high - rest.index)


def _zap_file_pages(memory: Memory, vma: Vma, start: int, end: int) -> None:
    """Unmap the file's own pages; copies that a process has made stay (unmap_mapping_range)."""
    tables = memory.tables(vma.mm)
    for number in tables.spans(start, end):
        found = tables.pmds[number]
        if isinstance(found, Huge):
            memory.split_pmd(tables, number)
            continue
        low, high = leaf_range(number, start, end)
        for at in range(low, high):
            entry = found.pages[at]
            folio = entry.folio if isinstance(entry, MigrationEntry) else entry
            if isinstance(folio, Folio) and not folio.flags & ANON:
                marker = found.bits[at] & UFFD_WP
                memory.drop(tables, found, at)
                found.bits[at] = marker
