"""A folio: one or more pages of memory that are allocated, counted and freed together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab.pages.rmap import Intervals

if TYPE_CHECKING:
    from mypy_extensions import i64

    from vmalab.vma.area import AnonVma, Vma

ANON: Final = 1
"""Private memory of processes; not a page of a file."""
HUGETLB: Final = 2
"""From a pool of huge pages."""
ZERO: Final = 4
"""The page of zeros, or the huge one: mapped without being counted, and never written to."""
DIRTY: Final = 8
KSM: Final = 32
"""Shared because its contents were equal (KSM)."""
LAZYFREE: Final = 64
"""MADV_FREE: may be thrown away unless it is written to."""

UNEVICTABLE: Final = 128
"""Locked in memory by a lock that nobody can take away any more."""
REFERENCED: Final = 256
"""Somebody has looked at it otherwise than through an entry that says so: a holder, or an entry that is gone."""

PMD_ORDER: Final = 9
PUD_ORDER: Final = 18


@final
class SwapSlot:
    """A page's place in swap, and who refers to it."""

    __slots__ = ("cache", "content", "count")

    def __init__(self, content: bytes) -> None:
        self.content: bytes = content
        self.count: int = 0
        """Page-table entries that refer to it."""
        self.cache: Folio | None = None
        """The page that it was read into, while somebody else still refers to the slot (the swap cache)."""


@final
class MigrationEntry:
    """What page tables refer to while a folio is being moved: one for all of its pages.

    Its bits say what it will be: WRITE (writable), SWAP_EXCLUSIVE (readable-exclusive), neither (readable).
    """

    __slots__ = ("done", "folio")

    def __init__(self, folio: Folio) -> None:
        self.folio: Folio = folio
        self.done: bool = False
        """Whether the folio has arrived, or stays: whoever waits may go on."""


@final
class PageCache:
    """The pages of one file in memory, in folios of any order: each stands once, and is found by any of its pages."""

    __slots__ = ("_large", "_small", "content", "huge_order", "mappings", "reserved")

    def __init__(self) -> None:
        self._small: dict[int, Folio] = {}
        """Folios of one page, by their index in pages."""
        self._large: dict[int, dict[int, Folio]] = {}
        """By order, the others by their index in units of their own size, to which they are aligned."""
        self.mappings: Intervals = Intervals(None)
        """The VMAs that map the file (i_mmap), as far as any of its pages was touched in them."""
        self.huge_order: int = 0
        """The order of the pages of a hugetlb file."""
        self.reserved: set[int] = set()
        """Of a hugetlb file: the indexes, in pages, of the huge pages that a shared mapping has reserved or used."""
        self.content: bytes = b""
        """What the file holds beneath the cache; zeros follow."""

    def find(self, index: int) -> Folio | None:
        """The folio that holds a page of the file, by its index in pages (filemap_get_folio)."""
        found = self._small.get(index)
        if found is None and self._large:
            for order, folios in self._large.items():
                found = folios.get(index >> order)
                if found is not None:
                    break
        return found

    def add(self, folio: Folio) -> None:
        """Hold a folio at its index; references are the caller's affair."""
        order: int = folio.order
        index: int = folio.index
        assert not index & (1 << order) - 1, "a folio of a file is aligned to its size"
        folio.cache = self
        if order:
            self._large.setdefault(order, {})[index >> order] = folio
        else:
            self._small[index] = folio

    def remove(self, folio: Folio) -> None:
        """Hold it no more."""
        order: int = folio.order
        index: int = folio.index
        folio.cache = None
        if not order:
            del self._small[index]
            return
        folios = self._large[order]
        del folios[index >> order]
        if not folios:
            del self._large[order]

    def overlapping(self, first: int, last: int) -> list[Folio]:
        """The folios that hold any page from first to before last, in pages, in order (filemap_get_folios)."""
        found = _between(self._small, first, last)
        for order, folios in self._large.items():
            found += _between(folios, first >> order, (last - 1 >> order) + 1)
        return sorted(found, key=_index) if self._large else found

    def folios(self) -> list[Folio]:
        """All of them, in order."""
        found = list(self._small.values())
        for folios in self._large.values():
            found += folios.values()
        return sorted(found, key=_index)


def _index(folio: Folio) -> int:
    return folio.index


def _between(folios: dict[int, Folio], first: int, last: int) -> list[Folio]:
    """Those whose keys are in a range, in order."""
    if last - first <= len(folios):
        return [folios[key] for key in range(first, last) if key in folios]
    return [folios[key] for key in sorted(folios) if first <= key < last]


@final
class Folio:
    """2**order pages.  Counts are of references: one for each mapping, for each pin, for each page in a cache."""

    def __init__(self, order: int, flags: int) -> None:
        self.order: i64 = order
        self.flags: i64 = flags
        self.refs: i64 = 1
        """Zero frees it."""
        self.entire: i64 = 0
        """Mappings of all of it at once: by one entry of the second level, or of the third."""
        self.mapped: i64 = 0
        """Mappings of single pages."""
        self.pins: i64 = 0
        """References that are pins (FOLL_PIN): somebody reads or writes the memory itself."""
        self.exclusive: int = 0
        """One bit a page: an anonymous page that belongs to one process alone (PageAnonExclusive)."""
        self.index: i64 = 0
        """Where in the file, or for an anonymous folio in the linear order of its VMA, in pages."""
        self.anon_vma: AnonVma | None = None
        self.cache: PageCache | None = None
        self.swap: SwapSlot | None = None
        """The slot in whose cache it is."""
        self.sharers: dict[int, int] | None = None
        """For a large folio that is not of a pool: mappings by address space (an identity)."""
        self._first: bytes = b""
        self._others: dict[int, bytes] | None = None

    def __repr__(self) -> str:
        kind = "zero" if self.flags & ZERO else "anonymous" if self.flags & ANON else "file"
        return (
            f"<Folio {kind}, order {self.order}, {self.refs} references, {self.mapcount()} mappings, {self.pins} pins>"
        )

    def count(self) -> int:
        """How many pages it has."""
        return 1 << self.order

    def mapcount(self) -> int:
        """How many page-table entries map it or a page of it (folio_mapcount)."""
        return self.entire + self.mapped

    def all_exclusive(self) -> int:
        """The marks of a folio that belongs to one process alone."""
        # An int of any size: one bit for each of up to 512 pages.
        pages: int = 1 << self.order
        return 1 if self.flags & HUGETLB else (1 << pages) - 1

    def is_exclusive(self, page: int) -> bool:
        """Whether one of its pages belongs to one process alone."""
        return self.exclusive >> page & 1 != 0

    def maybe_mapped_shared(self) -> bool:
        """Whether more than one address space maps it (folio_maybe_mapped_shared)."""
        return self.mapcount() > 1 if self.sharers is None else len(self.sharers) > 1 or self.entire > 1

    def cache_references(self) -> int:
        """How many references the page cache has to it: one for each page; for a page of a pool it is one."""
        if self.cache is None:
            return 0
        return 1 if self.flags & HUGETLB else 1 << self.order

    def has_no_other_references(self) -> bool:
        """Whether only page tables and caches refer to it (folio_ref_count == folio_expected_ref_count)."""
        return self.refs == self.mapcount() + self.cache_references() + (1 if self.swap is not None else 0)

    def move_to(self, vma: Vma) -> None:
        """An anonymous folio belongs to a VMA from now on, and is found through its anon_vma (folio_move_anon_rmap)."""
        self.anon_vma = vma.anon_vma

    def content(self, page: int) -> bytes:
        """What a page holds, without the zeros at its end."""
        if page == 0:
            return self._first
        return b"" if self._others is None else self._others.get(page, b"")

    def set_content(self, page: int, content: bytes) -> None:
        """Replace what a page holds."""
        if page == 0:
            self._first = content
        elif content or self._others is not None:
            if self._others is None:
                self._others = {}
            self._others[page] = content

    def copy_from(self, other: Folio) -> None:
        """Take over the contents of another folio, page by page."""
        self._first = other._first
        self._others = None if other._others is None else dict(other._others)

    def read(self, page: int, offset: int, length: int) -> bytes:
        """Bytes of a page."""
        found = self.content(page)[offset : offset + length]
        return found if len(found) == length else found + bytes(length - len(found))

    def write(self, page: int, offset: int, data: bytes) -> None:
        """Replace bytes of a page."""
        old = self.content(page)
        end = offset + len(data)
        if len(old) < offset:
            old += bytes(offset - len(old))
        self.set_content(page, (old[:offset] + data + old[end:]).rstrip(b"\0"))


def zero_folio(order: int) -> Folio:
    """The page of zeros of an order: never counted, never freed."""
    folio = Folio(order, ZERO)
    folio.refs = 1 << 20
    return folio
