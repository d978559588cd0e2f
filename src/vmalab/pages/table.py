"""Page tables: leaves of 512 entries, huge entries in their place, and nothing where nothing is.

A leaf holds two lists: what each entry refers to (a folio, a swap slot, a folio that is being moved, nothing), and its
bits.  The page of a large folio that an entry maps stands above the bits.  A huge entry that is not present is a
migration entry.
"""

from __future__ import annotations

from typing import Final, final

from vmalab.addr import PAGE_SHIFT
from vmalab.pages.folio import PMD_ORDER, PUD_ORDER, Folio, MigrationEntry, SwapSlot
from vmalab.vma.space import Mm

Target = Folio | SwapSlot | MigrationEntry
"""What an entry refers to."""

ENTRIES: Final = 512
PMD_SHIFT: Final = 21
PUD_SHIFT: Final = 30

# What most entries have is below 256, so that their bits are numbers that Python keeps one of.
PRESENT: Final = 1
WRITE: Final = 2
DIRTY: Final = 4
YOUNG: Final = 8
SOFT_DIRTY: Final = 16
"""Written to since the bit was cleared, as far as the kernel has seen; shown where the machine tracks it."""
UFFD_WP: Final = 32
"""Write-protected by a userfaultfd, present or not."""
SWAP_EXCLUSIVE: Final = 64
"""A page in swap, or under way, that belonged to one process alone."""
GUARD: Final = 128
"""A marker: an access is answered with SIGSEGV."""
POISON: Final = 256
"""A marker: an access is answered with SIGBUS."""
BITS: Final = 511
PAGE_AT: Final = 9
"""How far above the bits the page's number in its folio stands."""

MKDIRTY: Final = DIRTY | SOFT_DIRTY
"""What an entry gets that the kernel makes dirty (pte_mkdirty).  The processor, which marks entries that are writable
already, sets DIRTY alone."""


def pte_index(addr: int) -> int:
    """Which entry of its leaf an address has."""
    return addr >> PAGE_SHIFT & (ENTRIES - 1)


@final
class Leaf:
    """A page table of the last level: 2 MiB of addresses."""

    __slots__ = ("bits", "pages")

    def __init__(self) -> None:
        self.pages: list[Target | None] = [None] * ENTRIES
        self.bits: list[int] = [0] * ENTRIES

    def is_empty(self) -> bool:
        """Whether no entry refers to anything, or marks anything."""
        return not any(self.bits) and not any([page is not None for page in self.pages])


@final
class Huge:
    """One entry that maps a whole folio of 2 MiB or 1 GiB."""

    __slots__ = ("bits", "folio")

    def __init__(self, folio: Folio, bits: int) -> None:
        self.folio: Folio = folio
        self.bits: int = bits


@final
class Tables:
    """The page tables of one address space, and what it counts of its pages."""

    def __init__(self, mm: Mm) -> None:
        self.mm: Mm = mm
        self.pmds: dict[int, Leaf | Huge] = {}
        """By address >> 21."""
        self.puds: dict[int, Huge] = {}
        """Entries of 1 GiB (hugetlb), by address >> 30."""
        self.has_pinned: bool = False
        """Whether it has ever been pinned: only then a fork looks for pins."""
        self.hugetlb: int = 0
        """Pages of hugetlb that it maps; they are in no other count."""
        self.anon: int = 0
        self.file: int = 0
        self.swap: int = 0

    def leaf(self, addr: int) -> Leaf | None:
        """The leaf of an address, if it has one."""
        found = self.pmds.get(addr >> PMD_SHIFT)
        return found if isinstance(found, Leaf) else None

    def huge(self, addr: int) -> Huge | None:
        """The huge entry that maps an address, if one does."""
        if self.puds:
            large = self.puds.get(addr >> PUD_SHIFT)
            if large is not None:
                return large
        found = self.pmds.get(addr >> PMD_SHIFT)
        return found if isinstance(found, Huge) else None

    def spans(self, start: int, end: int) -> list[int]:
        """Which numbers of the second level are in use between two addresses, in order."""
        first = start >> PMD_SHIFT
        last = end - 1 >> PMD_SHIFT
        if last - first < len(self.pmds):
            return [number for number in range(first, last + 1) if number in self.pmds]
        return sorted([number for number in self.pmds if first <= number <= last])

    def has_pmd_table(self, addr: int) -> bool:
        """Whether anything is there in the aligned 1 GiB of an address: then there is a table of its 2 MiB entries."""
        return addr >> PUD_SHIFT in {number >> PUD_SHIFT - PMD_SHIFT for number in self.pmds}

    def large_spans(self, start: int, end: int) -> list[int]:
        """Which entries of 1 GiB begin between two addresses, by number."""
        return [number for number in self.puds if start <= number << PUD_SHIFT < end]

    def entry(self, addr: int) -> tuple[Target | None, int, int]:
        """What an address refers to, or nothing; the bits; the page within the folio.

        A folio that is not present is one that is being moved, all of it.
        """
        huge = self.huge(addr)
        if huge is not None:
            order = PUD_ORDER if self.puds and addr >> PUD_SHIFT in self.puds else PMD_ORDER
            return huge.folio, huge.bits, addr >> PAGE_SHIFT & ((1 << order) - 1)
        leaf = self.leaf(addr)
        if leaf is None:
            return None, 0, 0
        at = pte_index(addr)
        bits = leaf.bits[at]
        return leaf.pages[at], bits & BITS, bits >> PAGE_AT
