"""Reading and writing memory as a program does, page by page, faults included."""

from __future__ import annotations

from vmalab.addr import PAGE_SIZE
from vmalab.pages.fault import handle_mm_fault
from vmalab.pages.folio import ZERO, Folio
from vmalab.pages.memory import FAULT_WRITE, Memory
from vmalab.pages.table import DIRTY, PRESENT, WRITE, YOUNG, Huge, pte_index
from vmalab.reason import YES
from vmalab.vma.area import Vma


def touch(memory: Memory, vma: Vma, addr: int, write: bool) -> int:
    """One access to an address whose VMA permits it: YES or a reason."""
    if vma.file is None and not vma.is_anonymous():
        # A special mapping: its pages are the kernel's own.
        return YES
    tables = memory.tables(vma.mm)
    marks = YOUNG | DIRTY if write else YOUNG
    for _ in range(4):
        entry, bits, _ = tables.entry(addr)
        if isinstance(entry, Folio) and bits & PRESENT and (not write or bits & WRITE):
            if bits & marks != marks:
                # The processor marks the entry itself.
                huge = tables.huge(addr)
                leaf = tables.leaf(addr)
                if isinstance(huge, Huge):
                    huge.bits |= marks
                elif leaf is not None:
                    leaf.bits[pte_index(addr)] |= marks
            return YES
        refusal = handle_mm_fault(memory, vma, addr, FAULT_WRITE if write else 0)
        if refusal != YES:
            return refusal
    raise AssertionError(f"a fault at {addr:#x} is answered again and again without an effect")


def populate_pages(memory: Memory, vma: Vma, start: int, end: int, write: bool) -> int:
    """Touch each page of [start, end) of a VMA: YES, or why one of them cannot be (populate_vma_page_range)."""
    tables = memory.tables(vma.mm)
    at = start & -PAGE_SIZE
    while at < end:
        refusal = touch(memory, vma, at, write)
        if refusal != YES:
            return refusal
        huge = tables.huge(at)
        size = PAGE_SIZE << huge.folio.order if huge is not None else PAGE_SIZE
        at = (at & -size) + size
    return YES


def read_page(memory: Memory, vma: Vma, addr: int, length: int) -> bytes:
    """Bytes within one page that is present."""
    entry, _, page = memory.tables(vma.mm).entry(addr)
    assert isinstance(entry, Folio)
    return entry.read(page, addr % PAGE_SIZE, length)


def write_page(memory: Memory, vma: Vma, addr: int, data: bytes) -> None:
    """Write bytes within one page that is present and writable."""
    entry, _, page = memory.tables(vma.mm).entry(addr)
    assert isinstance(entry, Folio) and not entry.flags & ZERO, "the page of zeros stays one"
    entry.write(page, addr % PAGE_SIZE, data)
