"""Taking hold of pages: references and pins for devices and for other processes (mm/gup.c)."""

from __future__ import annotations

from typing import Final, final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import VM_HUGETLB, VM_IO, VM_MAYREAD, VM_MAYWRITE, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE
from vmalab.pages.fault import handle_mm_fault
from vmalab.pages.folio import ANON, HUGETLB, ZERO, Folio
from vmalab.pages.memory import FAULT_UNSHARE, FAULT_WRITE, Memory, is_cow_mapping
from vmalab.pages.table import PRESENT, UFFD_WP, WRITE
from vmalab.reason import PIN_NOT_MAPPED, PIN_NOT_PERMITTED, PIN_SPECIAL, YES
from vmalab.vma.area import Vma
from vmalab.vma.space import Mm

FOLL_WRITE: Final = 1
FOLL_GET: Final = 2
"""A reference: for looking at the page's place in memory."""
FOLL_FORCE: Final = 4
"""Access that the VMA does not permit but could (ptrace)."""
FOLL_PIN: Final = 8
"""A pin: somebody reads or writes the memory itself."""
FOLL_LONGTERM: Final = 16
"""For as long as somebody likes: a device."""
FOLL_FAST: Final = 32
"""First without locks, from the page tables alone; what that cannot do is done as without it."""


@final
class Held:
    """Pages that somebody holds, in the order of their addresses: (folio, page within it)."""

    def __init__(self, memory: Memory, flags: int) -> None:
        self.memory: Memory = memory
        self.flags: int = flags
        self.pages: list[tuple[Folio, int]] = []
        self.offset: int = 0
        """Where in the first page the range begins, in bytes."""

    def read(self, at: int, length: int) -> bytes:
        """Bytes of what is held, as the holder sees them."""
        parts: list[bytes] = []
        at += self.offset
        end = at + length
        while at < end:
            folio, page = self.pages[at >> PAGE_SHIFT]
            step = min(PAGE_SIZE - at % PAGE_SIZE, end - at)
            parts.append(folio.read(page, at % PAGE_SIZE, step))
            at += step
        return b"".join(parts)

    def write(self, at: int, data: bytes) -> None:
        """Write as the holder does: past the page tables."""
        at += self.offset
        done = 0
        while done < len(data):
            folio, page = self.pages[at >> PAGE_SHIFT]
            step = min(PAGE_SIZE - at % PAGE_SIZE, len(data) - done)
            folio.write(page, at % PAGE_SIZE, data[done : done + step])
            at += step
            done += step

    def release(self) -> None:
        """Let go (unpin_user_pages, put_page)."""
        for folio, _ in self.pages:
            if folio.flags & ZERO:
                continue
            if self.flags & FOLL_PIN:
                folio.pins -= 1
            self.memory.put(folio)
        self.pages = []


def get_user_pages(memory: Memory, mm: Mm, addr: int, length: int, flags: int) -> tuple[Held | None, int]:
    """Take hold of the pages of [addr, addr + length), in bytes: what is held, or None and a reason.

    Nothing is held after a refusal; the pages that were made accessible stay so.
    """
    held = Held(memory, flags)
    held.offset = addr % PAGE_SIZE
    if flags & FOLL_PIN:
        memory.tables(mm).has_pinned = True
    at = addr - held.offset
    while at < addr + length:
        refusal = _one(memory, mm, at, flags, held)
        if refusal != YES:
            held.release()
            return None, refusal
        at += PAGE_SIZE
    return held, YES


def _one(memory: Memory, mm: Mm, addr: int, flags: int, held: Held) -> int:
    vma = mm.vma_lookup(addr)
    if vma is None:
        return PIN_NOT_MAPPED
    refusal = check_vma_flags(vma, flags)
    if refusal != YES:
        return refusal
    while True:
        found, page, wanted = follow_page(memory, vma, addr, flags)
        if found is not None:
            _take(memory, found, flags)
            held.pages.append((found, page))
            return YES
        refusal = handle_mm_fault(memory, vma, addr, wanted)
        if refusal != YES:
            return refusal
        if wanted & FAULT_WRITE and not vma.flags & VM_WRITE and mm.semantics.force_write_reads_again:
            # The copy was made; from here on it is looked up as for a read.
            flags &= ~FOLL_WRITE


def check_vma_flags(vma: Vma, flags: int) -> int:
    """Whether the pages of a VMA may be held at all: YES, PIN_SPECIAL, PIN_NOT_PERMITTED."""
    if vma.flags & (VM_IO | VM_PFNMAP) or (vma.file is not None and vma.file.kind == "secretmem"):
        return PIN_SPECIAL
    if flags & FOLL_WRITE:
        if not vma.flags & VM_WRITE:
            if not flags & FOLL_FORCE or not vma.flags & VM_MAYWRITE or not is_cow_mapping(vma):
                return PIN_NOT_PERMITTED
            if vma.flags & VM_HUGETLB:
                return PIN_NOT_PERMITTED
        elif flags & FOLL_LONGTERM and vma.flags & VM_SHARED and vma.file is not None and vma.file.kind == "regular":
            # Pages of a file whose writes are tracked: they would be written behind its back.
            return PIN_NOT_PERMITTED
    elif not vma.flags & VM_READ and not (flags & FOLL_FORCE and vma.flags & VM_MAYREAD):
        return PIN_NOT_PERMITTED
    return YES


def follow_page(memory: Memory, vma: Vma, addr: int, flags: int) -> tuple[Folio | None, int, int]:
    """The page that may be held now: folio and page, or None and the fault that is needed (follow_page_mask)."""
    tables = memory.tables(vma.mm)
    entry, bits, page = tables.entry(addr)
    writes = flags & FOLL_WRITE != 0
    if not isinstance(entry, Folio) or not bits & PRESENT:
        return None, 0, FAULT_WRITE if writes else 0
    if writes and not bits & WRITE and not _can_follow_write(vma, entry, bits, page, flags):
        return None, 0, FAULT_WRITE
    if not writes and gup_must_unshare(vma, entry, page, flags):
        return None, 0, FAULT_UNSHARE
    return entry, page, 0


def _can_follow_write(vma: Vma, folio: Folio, bits: int, page: int, flags: int) -> bool:
    """Whether FOLL_FORCE may write to a page through an entry that is not writable (can_follow_write_common).

    Before exclusive marks it was enough that a copy had been made.
    """
    if not flags & FOLL_FORCE or vma.flags & VM_WRITE or not is_cow_mapping(vma) or bits & UFFD_WP:
        return False
    if not vma.mm.semantics.anonymous_exclusive:
        return folio.flags & ANON != 0
    return folio.flags & ANON != 0 and folio.is_exclusive(page if not folio.flags & HUGETLB else 0)


def gup_must_unshare(vma: Vma, folio: Folio, page: int, flags: int) -> bool:
    """Whether the process must first get a page of its own, though it only reads (gup_must_unshare).

    A pin of a page that others share would go stale with the next write.  Anonymous pages: since exclusive marks;
    pages of files and of zeros, for long-term pins: since pins break copy-on-write early.
    """
    if not flags & FOLL_PIN or flags & FOLL_WRITE:
        return False
    semantics = vma.mm.semantics
    if not folio.flags & ANON:
        return flags & FOLL_LONGTERM != 0 and semantics.pins_break_cow and is_cow_mapping(vma)
    return semantics.anonymous_exclusive and not folio.is_exclusive(page if not folio.flags & HUGETLB else 0)


def _take(memory: Memory, folio: Folio, flags: int) -> None:
    if folio.flags & ZERO:
        return
    memory.get(folio)
    if flags & FOLL_PIN:
        folio.pins += 1
