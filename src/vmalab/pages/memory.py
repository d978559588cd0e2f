"""The memory of a machine: its folios, its page caches, its swap, and the page tables of its address spaces."""

from __future__ import annotations

from typing import Final, final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import VM_LOCKED, VM_MAYWRITE, VM_SHARED
from vmalab.pages.folio import (
    ANON,
    HUGETLB,
    PMD_ORDER,
    PUD_ORDER,
    REFERENCED,
    UNEVICTABLE,
    ZERO,
    Folio,
    MigrationEntry,
    PageCache,
    SwapSlot,
    zero_folio,
)
from vmalab.pages.folio import DIRTY as FOLIO_DIRTY
from vmalab.pages.rmap import ReverseMap
from vmalab.pages.table import (
    BITS,
    DIRTY,
    ENTRIES,
    PAGE_AT,
    PMD_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    UFFD_WP,
    YOUNG,
    Huge,
    Leaf,
    Tables,
    pte_index,
)
from vmalab.vma.area import File, Vma
from vmalab.vma.port import ALLOC_PAGE, ALLOC_PAGE_TABLE
from vmalab.vma.shm import Segment
from vmalab.vma.space import Mm

FAULT_WRITE: Final = 1
FAULT_UNSHARE: Final = 2
"""Give the process a page of its own, but do not make it writable: a pin that only reads asks for it."""

NEVER: Final = 0
MADVISE: Final = 1
ALWAYS: Final = 2
WITHIN_SIZE: Final = 3
"""Of shared memory: where it lies within the file."""
INHERIT: Final = 4
"""Of one size: as the setting of all of them says."""
DENY: Final = 5
FORCE: Final = 6
"""Of shared memory, for tests: never, or always, whatever else is set."""
SHMEM_MODES: Final = {
    "never": NEVER,
    "advise": MADVISE,
    "within_size": WITHIN_SIZE,
    "always": ALWAYS,
    "inherit": INHERIT,
    "deny": DENY,
    "force": FORCE,
}
"""What shmem_enabled is set to, in words."""


@final
class PageSettings:
    """What of a machine concerns its pages."""

    def __init__(self) -> None:
        self.thp: dict[int, int] = {PMD_ORDER: MADVISE}
        """For each order of transparent huge pages that anonymous memory may have: NEVER, MADVISE or ALWAYS."""
        self.shmem: int = NEVER
        """Of shared memory (shmem_enabled): NEVER, MADVISE, WITHIN_SIZE, ALWAYS, DENY or FORCE."""
        self.shmem_orders: dict[int, int] = {PMD_ORDER: INHERIT}
        """For each order that shared memory without a name may have: NEVER, MADVISE, WITHIN_SIZE, ALWAYS or INHERIT."""
        self.huge_zero: bool = True
        """A read of memory that may be huge maps the huge page of zeros."""
        self.swap_pages: int = 0
        self.ksm_use_zero_pages: bool = False
        """Pages of zeros that are merged become the page of zeros, not one of their own."""
        self.ksm_max_page_sharing: int = 256
        """So many mappings a merged page may have; then another is made."""
        self.hugetlb: dict[int, int] = {PMD_ORDER: 0, PUD_ORDER: 0}
        """How many pages each pool has, by order."""
        self.hugetlb_overcommit: dict[int, int] = {}
        """How many more each pool may take from other memory while they are needed (nr_overcommit_hugepages)."""


@final
class Memory:
    """All pages of a machine.

    A folio is counted by whoever refers to it: `get` and `put` are all that changes `refs`.
    """

    def __init__(self, settings: PageSettings | None = None) -> None:
        self.settings: PageSettings = PageSettings() if settings is None else settings
        self.zero: Folio = zero_folio(0)
        self.huge_zero: Folio = zero_folio(PMD_ORDER)
        self.live: int = 0
        """Folios that are not freed."""
        self.resident: int = 0
        """Their pages."""
        self.swapped: int = 0
        """Slots of swap in use."""
        self.hugetlb_free: dict[int, int] = dict(self.settings.hugetlb)
        """Pages of each pool that nobody has, by order; some of them are reserved."""
        self.hugetlb_reserved: dict[int, int] = {}
        """Those that are promised to mappings, which have not touched them yet."""
        self.hugetlb_lost: dict[int, int] = {}
        """Pages among them that nobody can get any more."""
        self.hugetlb_surplus: dict[int, int] = {}
        """Pages beyond the size of the pool; as many as that do not come back to it."""
        self.copies: list[tuple[Mm, int, Folio, int]] | None = None
        """Where somebody has made it a list, each copy that a write or a pin has made is put there: in which address
        space, at which address, of which folio, of which page of it."""
        self.moving: dict[int, MigrationEntry] = {}
        """The folios that are being moved, by their identity."""
        self.rmap: ReverseMap = ReverseMap()
        self._tables: dict[int, Tables] = {}
        self._inodes: dict[tuple[str, int], PageCache] = {}
        self._segments: dict[Segment, PageCache] = {}
        """Of System V shared memory."""
        self._files: dict[int, tuple[File, PageCache]] = {}

    def tables(self, mm: Mm) -> Tables:
        """The page tables of an address space."""
        found = self._tables.get(id(mm))
        if found is None:
            found = self._tables[id(mm)] = Tables(mm)
        return found

    def all_tables(self) -> list[Tables]:
        """Those of all address spaces that have any."""
        return list(self._tables.values())

    def forget(self, mm: Mm) -> None:
        """An address space is gone."""
        self._tables.pop(id(mm), None)

    # -- folios ---------------------------------------------------------------------------------------

    def alloc(self, mm: Mm, order: int, flags: int) -> Folio | None:
        """A folio with one reference, which is the caller's; None where memory is out."""
        if mm.port.may_fail(ALLOC_PAGE):
            return None
        self.live += 1
        self.resident += 1 << order
        return Folio(order, flags)

    def alloc_hugetlb(self, mm: Mm, order: int, flags: int, reserved: bool = False) -> Folio | None:
        """A folio from a pool; None where the pool has none but what is reserved for others (alloc_hugetlb_folio).

        reserved: it was promised.
        """
        free = self.hugetlb_free.get(order, 0)
        promised = self.hugetlb_reserved.get(order, 0)
        surplus = self.hugetlb_surplus.get(order, 0)
        is_free = reserved or free > promised
        if not is_free and surplus >= self.settings.hugetlb_overcommit.get(order, 0):
            return None
        folio = self.alloc(mm, order, flags | HUGETLB)
        if folio is None:
            return None
        if is_free:
            self.hugetlb_free[order] = free - 1
        else:
            self.hugetlb_surplus[order] = surplus + 1
        if reserved:
            self.hugetlb_reserved[order] = promised - 1
        return folio

    def reserve_hugetlb(self, order: int, count: int) -> bool:
        """Promise pages of a pool, or fewer where count is negative; False where there are not so many.

        (hugetlb_acct_memory)
        """
        free = self.hugetlb_free.get(order, 0)
        promised = self.hugetlb_reserved.get(order, 0) + count
        surplus = self.hugetlb_surplus.get(order, 0)
        more = max(promised - free, 0)
        if count < 0:
            more = -min(-count, surplus, free)
        elif surplus + more > self.settings.hugetlb_overcommit.get(order, 0) and more:
            return False
        self.hugetlb_reserved[order] = promised
        self.hugetlb_free[order] = free + more
        self.hugetlb_surplus[order] = surplus + more
        return True

    def get(self, folio: Folio, count: int = 1) -> None:
        """Take references."""
        assert folio.refs > 0, "use after free of a folio"
        if not folio.flags & ZERO:
            folio.refs += count

    def put(self, folio: Folio, count: int = 1) -> None:
        """Give references back; the last one frees the folio."""
        if folio.flags & ZERO:
            return
        assert folio.refs >= count, "a folio is put more often than it was got"
        folio.refs -= count
        if folio.refs == 0:
            assert folio.mapcount() == 0 and folio.pins == 0, f"{folio!r} is freed in use"
            self.live -= 1
            self.resident -= 1 << folio.order
            if folio.flags & HUGETLB:
                if self.hugetlb_surplus.get(folio.order, 0):
                    self.hugetlb_surplus[folio.order] -= 1
                else:
                    self.hugetlb_free[folio.order] += 1

    def note_copy(self, mm: Mm, addr: int, folio: Folio, page: int) -> None:
        """Copy-on-write gives a process a page of its own in place of one of a folio."""
        if self.copies is not None:
            self.copies.append((mm, addr & -PAGE_SIZE, folio, page))

    def vma_changed(self, vma: Vma) -> None:
        """A VMA has new bounds or a new chain, or is a copy: it is found from what it maps."""
        if vma.chain:
            self.rmap.changed(vma)
        known = None if vma.file is None else self._files.get(id(vma.file))
        if known is not None:
            known[1].mappings.add(vma)

    def places_of(self, folio: Folio, page: int = -1) -> list[tuple[Tables, int, int]]:
        """Where the pages of a folio, or one of them, can be mapped: page tables, address, which page (rmap_walk).

        Not those of a merged one (KSM), which has no place of its own.
        """
        begin: int = folio.index
        first, last = (begin, begin + folio.count()) if page < 0 else (begin + page, begin + page + 1)
        vmas: list[Vma] = []
        if folio.anon_vma is not None:
            vmas = self.rmap.overlapping(folio.anon_vma, first, last)
        elif folio.cache is not None:
            vmas = folio.cache.mappings.overlapping(first, last)
        found: list[tuple[Tables, int, int]] = []
        for vma in vmas:
            tables = self.tables(vma.mm)
            step = folio.count() if folio.flags & HUGETLB else 1
            for index in range(max(first, vma.pgoff), min(last, vma.pgoff + vma.pages()), step):
                found.append((tables, vma.start + (index - vma.pgoff << PAGE_SHIFT), index - begin))
        return found

    # -- mappings ----------------------------------------------------------------------------------

    def map_new_anon(self, tables: Tables, folio: Folio, vma: Vma, addr: int) -> None:
        """A fresh anonymous folio belongs to the process whose address addr it is for (folio_add_new_anon_rmap).

        The caller's reference becomes that of the first mapping; each further page is counted here.
        """
        folio.move_to(vma)
        folio.index = vma.pgoff_at(addr)
        folio.exclusive = folio.all_exclusive()
        if folio.flags & HUGETLB:
            folio.entire = 1
            tables.hugetlb += 1 << folio.order
            return
        count = 1 << folio.order
        tables.anon += count
        if folio.order == PMD_ORDER:
            folio.entire = 1
        else:
            folio.mapped = count
            self.get(folio, count - 1)
        if folio.order:
            folio.sharers = {id(tables): 1 if folio.entire else count}

    def add_mapping(self, tables: Tables, folio: Folio, count: int, entire: bool) -> None:
        """Count new mappings of pages of a folio, or of all of it; references are the caller's affair."""
        if folio.flags & ZERO:
            return
        if entire:
            folio.entire += 1
        else:
            folio.mapped += count
        self.account(tables, folio, (1 << folio.order) if entire else count)
        if folio.sharers is not None:
            folio.sharers[id(tables)] = folio.sharers.get(id(tables), 0) + (1 if entire else count)

    def remove_mapping(self, tables: Tables, folio: Folio, count: int, entire: bool) -> None:
        """The reverse; references are the caller's affair here as well."""
        if folio.flags & ZERO:
            return
        if entire:
            folio.entire -= 1
        else:
            folio.mapped -= count
        assert folio.entire >= 0 and folio.mapped >= 0, "more mappings are removed than there are"
        self.account(tables, folio, -((1 << folio.order) if entire else count))
        if folio.sharers is not None:
            left = folio.sharers[id(tables)] - (1 if entire else count)
            if left:
                folio.sharers[id(tables)] = left
            else:
                del folio.sharers[id(tables)]

    def account(self, tables: Tables, folio: Folio, pages: int) -> None:
        """Count pages among those of an address space, or fewer where pages is negative."""
        if folio.flags & HUGETLB:
            tables.hugetlb += pages
        elif folio.flags & ANON:
            tables.anon += pages
        else:
            tables.file += pages

    # -- page tables ----------------------------------------------------------------------------------

    def leaf_for(self, tables: Tables, addr: int) -> Leaf | None:
        """The leaf of an address, made where there is none; None where memory is out.  No huge entry may be there."""
        number = addr >> PMD_SHIFT
        found = tables.pmds.get(number)
        if found is None:
            if tables.mm.port.may_fail(ALLOC_PAGE_TABLE):
                return None
            found = tables.pmds[number] = Leaf()
        assert isinstance(found, Leaf), "a huge entry is in the way"
        return found

    def drop(self, tables: Tables, leaf: Leaf, at: int) -> None:
        """Clear one entry, and let go of what it refers to."""
        entry = leaf.pages[at]
        bits = leaf.bits[at]
        leaf.pages[at] = None
        leaf.bits[at] = 0
        if isinstance(entry, Folio):
            if bits & DIRTY and not entry.flags & ZERO:
                entry.flags |= FOLIO_DIRTY
            if bits & YOUNG and not entry.flags & (ANON | ZERO):
                entry.flags |= REFERENCED
            self.remove_mapping(tables, entry, 1, entire=False)
            self.put(entry)
        elif isinstance(entry, SwapSlot):
            tables.swap -= 1
            self.put_slot(entry)
        elif entry is not None:
            self.account(tables, entry.folio, -1)

    def drop_huge(self, tables: Tables, huge: Huge) -> None:
        """Let go of what a huge entry mapped; the entry itself is the caller's."""
        folio = huge.folio
        if not huge.bits & PRESENT:
            self.account(tables, folio, -folio.count())
            return
        if huge.bits & DIRTY and not folio.flags & ZERO:
            folio.flags |= FOLIO_DIRTY
        self.remove_mapping(tables, folio, 1, entire=True)
        self.put(folio)

    def split_huge_pmd(self, tables: Tables, number: int) -> Leaf:
        """Map by single entries what one huge entry mapped (__split_huge_pmd).

        The folio stays one.  The huge page of zeros becomes the small one, 512 times.  The page table was set aside
        when the huge entry was made, so this cannot fail.
        """
        huge = tables.pmds[number]
        assert isinstance(huge, Huge)
        folio = huge.folio
        assert folio.flags & (ANON | ZERO) and not folio.flags & HUGETLB, "only anonymous huge pages are split so"
        leaf = Leaf()
        bits = huge.bits & BITS
        if folio.flags & ZERO:
            for at in range(ENTRIES):
                leaf.pages[at] = self.zero
                leaf.bits[at] = bits & (PRESENT | YOUNG | UFFD_WP)
        elif not bits & PRESENT:
            for at in range(ENTRIES):
                leaf.pages[at] = self.moving[id(folio)]
                leaf.bits[at] = bits | at << PAGE_AT
        else:
            for at in range(ENTRIES):
                leaf.pages[at] = folio
                leaf.bits[at] = bits | at << PAGE_AT
            self.get(folio, ENTRIES - 1)
            folio.entire -= 1
            folio.mapped += ENTRIES
            if folio.sharers is not None:
                folio.sharers[id(tables)] += ENTRIES - 1
        tables.pmds[number] = leaf
        return leaf

    def split_pmd(self, tables: Tables, number: int) -> Leaf | None:
        """Take a huge entry apart: the entries that map the same; nothing for a file, whose pages are found again."""
        huge = tables.pmds[number]
        assert isinstance(huge, Huge)
        if huge.folio.flags & (ANON | ZERO):
            return self.split_huge_pmd(tables, number)
        del tables.pmds[number]
        self.drop_huge(tables, huge)
        return None

    def split_folio(self, folio: Folio) -> bool:
        """Make folios of one page each of a large anonymous one; False where somebody holds it (split_folio).

        Huge entries that map it are split.  Pages that nobody maps are freed, and so are those that hold zeros alone:
        the page of zeros is mapped in their place, unless they are locked (try_to_map_unused_to_zeropage).
        """
        if folio.order == 0 or folio.swap is not None or not folio.has_no_other_references():
            return False
        every = self.places_of(folio)
        for tables, addr, _ in every:
            huge = tables.pmds.get(addr >> PMD_SHIFT)
            if isinstance(huge, Huge) and huge.folio is folio:
                self.split_huge_pmd(tables, addr >> PMD_SHIFT)
        places: list[tuple[Tables, int, Leaf]] = []
        for tables, addr, page in every:
            leaf = tables.leaf(addr)
            at = pte_index(addr)
            if leaf is not None and leaf.pages[at] is folio and leaf.bits[at] >> PAGE_AT == page:
                places.append((tables, addr, leaf))
        if len(places) != folio.mapped:
            # Somebody maps it whom the reverse map does not find: it cannot be unmapped.
            return False
        parts: dict[int, Folio] = {}
        for tables, addr, leaf in places:
            at = pte_index(addr)
            vma = tables.mm.vma_lookup(addr)
            locked = folio.flags & UNEVICTABLE or (vma is not None and vma.flags & VM_LOCKED)
            if folio.content(leaf.bits[at] >> PAGE_AT) or locked:
                _replace_part(leaf, at, folio, parts)
            else:
                leaf.pages[at] = self.zero
                leaf.bits[at] &= PRESENT | YOUNG | UFFD_WP | SOFT_DIRTY
                tables.anon -= 1
        self.live += len(parts) - 1
        self.resident += len(parts) - folio.count()
        folio.refs = 0
        folio.mapped = 0
        folio.sharers = None
        return True

    # -- swap -----------------------------------------------------------------------------------------

    def put_slot(self, slot: SwapSlot) -> None:
        """One entry less refers to a slot; the last one frees it, and what it was read into leaves its cache."""
        slot.count -= 1
        assert slot.count >= 0, "a swap slot is put more often than it was got"
        if slot.count == 0:
            self.swapped -= 1
            self.leave_swap_cache(slot)

    def leave_swap_cache(self, slot: SwapSlot) -> None:
        """What a slot was read into is a page of its own again."""
        folio = slot.cache
        if folio is not None:
            slot.cache = None
            folio.swap = None
            self.put(folio)

    # -- files ----------------------------------------------------------------------------------------

    def cache_of(self, file: File) -> PageCache:
        """The page cache of a file: that of its segment, or of its inode, if that is known when the file is first used,
        else of its own.
        """
        known = self._files.get(id(file))
        if known is not None:
            return known[1]
        segment = file.segment
        if segment is not None:
            # Its number is its own only as long as it is there, and in its namespace alone.
            cache = self._segments.setdefault(segment, PageCache())
        elif file.ino:
            cache = self._inodes.setdefault((file.dev, file.ino), PageCache())
        else:
            cache = PageCache()
        self._files[id(file)] = (file, cache)
        return cache

    def forget_segment(self, segment: Segment) -> None:
        """A segment is gone: nobody maps it, nor can any more."""
        cache = self._segments.pop(segment, None)
        if cache is not None:
            self.drop_cache(cache)
            for key, (file, _) in list(self._files.items()):
                if file.segment is segment:
                    del self._files[key]

    def cache_for(self, vma: Vma) -> PageCache:
        """The page cache of the file that a VMA maps; from it the VMA is found from now on."""
        assert vma.file is not None, "a VMA with operations has a file"
        cache = self.cache_of(vma.file)
        cache.mappings.note(vma)
        return cache

    def sweep(self) -> None:
        """Let go of the shared memory that nobody maps any more, and that nobody can map again."""
        for key, (file, cache) in list(self._files.items()):
            if file.refs == 0 and (file.path.startswith("/dev/zero") or file.segment is not None):
                if file.segment is None:
                    self.drop_cache(cache)
                del self._files[key]

    def drop_cache(self, cache: PageCache) -> None:
        """Throw away what a cache holds and nobody maps: as when the file is deleted."""
        for folio in cache.folios():
            self.evict(folio)

    def insert(self, cache: PageCache, folio: Folio, index: int) -> None:
        """Put a new folio into a page cache; the reference that it was made with becomes the cache's."""
        folio.index = index
        if folio.order and not folio.flags & HUGETLB:
            folio.sharers = {}
        cache.add(folio)
        more = folio.cache_references() - 1
        if more:
            self.get(folio, more)

    def evict(self, folio: Folio) -> None:
        """Take a folio out of its page cache (filemap_remove_folio)."""
        references = folio.cache_references()
        if folio.cache is not None:
            folio.cache.remove(folio)
        self.put(folio, references)

    def caches(self) -> list[PageCache]:
        """All page caches."""
        found = {id(cache): cache for _, cache in self._files.values()}
        return list({**found, **{id(cache): cache for cache in self._segments.values()}}.values())


def _replace_part(leaf: Leaf, at: int, folio: Folio, parts: dict[int, Folio]) -> None:
    """Let an entry that maps a page of a folio map a folio of its own, which is made when it is first needed."""
    bits = leaf.bits[at]
    page = bits >> PAGE_AT
    part = parts.get(page)
    if part is None:
        part = parts[page] = Folio(0, folio.flags)
        part.refs = 0
        part.set_content(0, folio.content(page))
        part.exclusive = 1 if folio.is_exclusive(page) else 0
        part.index = folio.index + page
        part.anon_vma = folio.anon_vma
    part.refs += 1
    part.mapped += 1
    leaf.pages[at] = part
    leaf.bits[at] = bits & BITS


def needs_soft_dirty_wp(vma: Vma, bits: int) -> bool:
    """Whether the next write must be noticed, since it makes the page soft-dirty (pte_needs_soft_dirty_wp)."""
    return not bits & SOFT_DIRTY and vma.mm.settings.soft_dirty & ~vma.flags != 0


def is_cow_mapping(vma: Vma) -> bool:
    """Private memory that can be made writable: a write is never to the file's own page."""
    return vma.flags & (VM_SHARED | VM_MAYWRITE) == VM_MAYWRITE
