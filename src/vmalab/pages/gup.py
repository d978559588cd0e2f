"""Taking hold of pages: references and pins for devices and for other processes (mm/gup.c)."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Final, final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import VM_HUGETLB, VM_IO, VM_MAYREAD, VM_MAYWRITE, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE
from vmalab.pages.fault import handle_mm_fault
from vmalab.pages.folio import ANON, HUGETLB, REFERENCED, ZERO, Folio
from vmalab.pages.memory import FAULT_UNSHARE, FAULT_WRITE, Memory, is_cow_mapping, needs_soft_dirty_wp
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
    """Pages that somebody holds, in the order of their addresses."""

    def __init__(self, memory: Memory, flags: int) -> None:
        self.memory: Memory = memory
        self.flags: int = flags
        self.offset: int = 0
        """Where in the first page the range begins, in bytes."""
        self.pages: int = 0
        """How many are held."""
        self.race: Callable[[], None] | None = None
        """What happens once between a fault and the next look."""
        self._starts: list[int] = []
        self._runs: list[tuple[Folio, int, int]] = []
        """Folio, first page within it, how many; beside them the number that the first has among those held."""

    def take(self, folio: Folio, page: int, count: int) -> None:
        """Hold so many pages more."""
        if not folio.flags & ZERO:
            folio.flags |= REFERENCED
            self.memory.get(folio, count)
            if self.flags & FOLL_PIN:
                folio.pins += count
        self._starts.append(self.pages)
        self._runs.append((folio, page, count))
        self.pages += count

    def page(self, number: int) -> tuple[Folio, int]:
        """One of the pages: its folio, and which page of that it is."""
        at = bisect.bisect_right(self._starts, number) - 1
        folio, page, _ = self._runs[at]
        return folio, page + number - self._starts[at]

    def read(self, at: int, length: int) -> bytes:
        """Bytes of what is held, as the holder sees them."""
        parts: list[bytes] = []
        at += self.offset
        end = at + length
        while at < end:
            folio, page = self.page(at >> PAGE_SHIFT)
            step = min(PAGE_SIZE - at % PAGE_SIZE, end - at)
            parts.append(folio.read(page, at % PAGE_SIZE, step))
            at += step
        return b"".join(parts)

    def write(self, at: int, data: bytes) -> None:
        """Write as the holder does: past the page tables."""
        at += self.offset
        done = 0
        while done < len(data):
            folio, page = self.page(at >> PAGE_SHIFT)
            step = min(PAGE_SIZE - at % PAGE_SIZE, len(data) - done)
            folio.write(page, at % PAGE_SIZE, data[done : done + step])
            at += step
            done += step

    def release(self) -> None:
        """Let go (unpin_user_pages, put_page)."""
        for folio, _, count in self._runs:
            if folio.flags & ZERO:
                continue
            if self.flags & FOLL_PIN:
                folio.pins -= count
            self.memory.put(folio, count)
        self._starts = []
        self._runs = []
        self.pages = 0


def get_user_pages(
    memory: Memory, mm: Mm, addr: int, length: int, flags: int, race: Callable[[], None] | None = None
) -> tuple[Held | None, int]:
    """Take hold of the pages of [addr, addr + length), in bytes: what is held, or None and a reason.

    Nothing is held after a refusal; the pages that were made accessible stay so.  race is what somebody else does when
    the first page has been made accessible, and is not held yet: the lock is free then.
    """
    held = Held(memory, flags)
    held.race = race
    held.offset = addr % PAGE_SIZE
    if flags & FOLL_PIN:
        memory.tables(mm).has_pinned = True
    at = addr - held.offset
    while at < addr + length:
        vma = mm.vma_lookup(at)
        refusal = PIN_NOT_MAPPED if vma is None else check_vma_flags(vma, flags)
        if vma is not None and refusal == YES:
            end = min(addr + length, vma.end)
            while at < end and refusal == YES:
                refusal, count = _some(memory, vma, at, end, flags, held)
                at += count << PAGE_SHIFT
        if refusal != YES:
            held.release()
            return None, refusal
    return held, YES


def _some(memory: Memory, vma: Vma, addr: int, end: int, flags: int, held: Held) -> tuple[int, int]:
    """Hold the page of an address, and with it what one huge entry maps up to end: YES or a reason, how many."""
    while True:
        found, page, wanted = follow_page(memory, vma, addr, flags)
        if found is not None:
            huge = memory.tables(vma.mm).huge(addr)
            count = 1 if huge is None else min((1 << found.order) - page, (end - addr + PAGE_SIZE - 1) >> PAGE_SHIFT)
            held.take(found, page, count)
            return YES, count
        refusal = handle_mm_fault(memory, vma, addr, wanted)
        if refusal != YES:
            return refusal, 0
        race = held.race
        if race is not None:
            held.race = None
            vma.mm.mmap_read_unlock()
            race()
            vma.mm.mmap_read_lock()
        if wanted & FAULT_WRITE and not vma.flags & VM_WRITE and vma.mm.semantics.force_write_reads_again:
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
    if needs_soft_dirty_wp(vma, bits):
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
