"""What one address refers to, for people: Process.page."""

from __future__ import annotations

from typing import Final

from vmalab.pages.clear_refs import is_referenced, is_soft_dirty
from vmalab.pages.folio import ANON, HUGETLB, KSM, ZERO, Folio, MigrationEntry, SwapSlot
from vmalab.pages.memory import Memory
from vmalab.pages.migrate import kind_of
from vmalab.pages.table import DIRTY, GUARD, POISON, PRESENT, SWAP_EXCLUSIVE, UFFD_WP, WRITE
from vmalab.vma.space import Mm

_SHOWN: Final = 16
"""Bytes of a page that its repr shows."""


class PageView:
    """What an address refers to: a page in memory, one in swap, or nothing."""

    def __init__(self, memory: Memory, mm: Mm, addr: int) -> None:
        found, bits, page = memory.tables(mm).entry(addr)
        self.addr: int = addr
        self.folio: Folio | None = None
        """The page in memory, also while it is being moved."""
        if isinstance(found, MigrationEntry):
            self.folio = found.folio
        elif isinstance(found, Folio):
            self.folio = found
        self.slot: SwapSlot | None = found if isinstance(found, SwapSlot) else None
        self.number: int = page
        """Which page of its folio it is."""
        self.present: bool = bits & PRESENT != 0
        self.special: bool = self.folio is not None and self.folio.flags & ZERO != 0
        """The page of zeros, small or huge: nobody counts who maps it."""
        self.writable: bool = self.present and bits & WRITE != 0
        self.migrating: str = "" if self.present or self.folio is None else kind_of(bits)
        """What the entry will be again when the page has been moved: writable, readable-exclusive or readable."""
        self.dirty: bool = bits & DIRTY != 0
        """Written to, as the processor marks it."""
        self.soft_dirty: bool = is_soft_dirty(mm, mm.vma_lookup(addr), found, bits)
        """Written to since Process.clear_refs, or new; False where the machine does not track it."""
        self.referenced: bool = is_referenced(found, bits)
        """Accessed since Process.clear_refs."""
        self.write_protected: bool = bits & UFFD_WP != 0
        """By a userfaultfd, also where no page is."""
        self.guard: bool = bits & GUARD != 0
        """A guard marker: an access gets SIGSEGV."""
        self.poisoned: bool = bits & POISON != 0
        """A marker of UFFDIO_POISON: an access gets SIGBUS."""
        self.exclusive: bool = bits & SWAP_EXCLUSIVE != 0
        """Whether it is an anonymous page of this process alone."""
        if self.folio is not None and self.present:
            self.exclusive = self.folio.is_exclusive(0 if self.folio.flags & HUGETLB else page)
        self.content: bytes = b""
        """What it holds, without the zeros at its end."""
        if self.folio is not None:
            self.content = self.folio.content(page)
        elif self.slot is not None:
            self.content = self.slot.content

    def marks(self) -> list[str]:
        """What is set in its entry, as the ledger says it."""
        marks = {
            "writable": self.writable,
            "exclusive": self.exclusive,
            "soft-dirty": self.soft_dirty,
            "write-protected": self.write_protected,
            "guard": self.guard,
            "poisoned": self.poisoned,
        }
        return [name for name, is_set in marks.items() if is_set]

    def __repr__(self) -> str:
        what = self._kind()
        more = self.marks() + (["dirty"] if self.dirty else []) + (["referenced"] if self.referenced else [])
        is_empty = self.special or (self.folio is None and self.slot is None)
        holds = f", holds {_shown(self.content)}" if self.content or not is_empty else ""
        return f"<page {self.addr:#x}: {', '.join([what, *more])}{holds}>"

    def _kind(self) -> str:
        folio = self.folio
        if folio is None:
            return "nothing there" if self.slot is None else "in swap"
        if self.special:
            return "the page of zeros"
        kind = "anonymous" if folio.flags & ANON else "of a file"
        kind += ", merged" if folio.flags & KSM else ", hugetlb" if folio.flags & HUGETLB else ""
        size = f", page {self.number} of {folio.count()}" if folio.order else ""
        return f"{kind}{size}" + (f", being moved ({self.migrating})" if self.migrating else "")


def _shown(content: bytes) -> str:
    """Its first bytes."""
    if not content:
        return "zeros"
    return repr(content[:_SHOWN]) + ("..." if len(content) > _SHOWN else "")
