"""The core's port, made of pages: what happens to VMAs happens to their pages."""

from __future__ import annotations

from typing import final

from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.flags import VM_HUGETLB
from vmalab.pages import hugetlb
from vmalab.pages.fork import copy_page_range
from vmalab.pages.memory import Memory
from vmalab.pages.zap import free_pgtables, move_range, split_at, zap_range
from vmalab.reason import YES
from vmalab.vma.area import File, Vma
from vmalab.vma.port import Port
from vmalab.vma.shm import Segment
from vmalab.vma.space import Mm


@final
class PagePort(Port):
    """Carries the core's effects to a machine's memory; failures and drivers are those of another port."""

    def __init__(self, memory: Memory, outside: Port | None = None) -> None:
        self.memory: Memory = memory
        self.outside: Port = Port() if outside is None else outside
        self._unmapped: Vma | None = None
        """The first VMA whose pages are gone while it is still in the tree: where the unmap under way began."""
        self._unmapped_from: int = 0
        """Where that was."""

    def may_fail(self, site: int) -> bool:
        return self.outside.may_fail(site)

    def unmap_pages(self, vma: Vma, start: int, end: int) -> None:
        mm = vma.mm
        tables = self.memory.tables(mm)
        zap_range(self.memory, tables, start, end)
        if start < self._unmapped_from or mm.tree.find(self._unmapped_from) is not self._unmapped:
            self._unmapped, self._unmapped_from = vma, start
        free_pgtables(tables, start, end, self._unmapped_from)
        self.outside.unmap_pages(vma, start, end)

    def move_pages(self, vma: Vma, new_vma: Vma, old: int, new: int, length: int) -> int:
        moved = self.outside.move_pages(vma, new_vma, old, new, length)
        if vma.flags & VM_HUGETLB:
            # Huge pages move whole.
            moved &= -(PAGE_SIZE << hugetlb.order_of(vma))
            if vma is not new_vma and moved == length:
                hugetlb.moved(self.memory, vma, old, old + length)
        below = _realigned(vma, new_vma, old, new, length)
        done = move_range(self.memory, self.memory.tables(vma.mm), old - below, new - below, moved + below)
        return max(0, min(moved, done - below))

    def copy_pages(self, copy: Vma, vma: Vma) -> int:
        return copy_page_range(self.memory, copy, vma)

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        tables = self.memory.tables(vma.mm)
        split_at(self.memory, tables, vma.start)
        split_at(self.memory, tables, vma.end)
        self.memory.vma_changed(vma)
        self.outside.resized(vma, old_start, old_end)

    def anon_vma_changed(self, vma: Vma) -> None:
        self.memory.vma_changed(vma)
        self.outside.anon_vma_changed(vma)

    def opened(self, vma: Vma) -> None:
        hugetlb.opened(vma)
        self.memory.vma_changed(vma)
        self.outside.opened(vma)

    def closed(self, vma: Vma) -> None:
        if vma.flags & VM_HUGETLB:
            hugetlb.closed(self.memory, vma)
        self.outside.closed(vma)

    def may_split(self, vma: Vma, addr: int) -> int:
        return self.outside.may_split(vma, addr)

    def mapped(self, vma: Vma) -> int:
        refusal = self.outside.mapped(vma)
        return hugetlb.reserve_pages(self.memory, vma) if refusal == YES and vma.flags & VM_HUGETLB else refusal

    def reserve_huge(self, file: File) -> int:
        refusal = self.outside.reserve_huge(file)
        return hugetlb.reserve_file(self.memory, file) if refusal == YES else refusal

    def forget_segment(self, segment: Segment) -> None:
        if segment.file is not None:
            hugetlb.forget_file(self.memory, segment.file)
        self.memory.forget_segment(segment)
        self.outside.forget_segment(segment)

    def moved(self, vma: Vma) -> int:
        return self.outside.moved(vma)


def _realigned(vma: Vma, new_vma: Vma, old: int, new: int, length: int) -> int:
    """How many bytes below a range its move begins, so that page tables move whole (try_realign_addr).

    Where the range reaches the end of its first page table, lies alike in old and new ones, and nothing else is in
    that part of either.
    """
    below = old & PMD_SIZE - 1
    if below == 0 or new & PMD_SIZE - 1 != below or length < PMD_SIZE - below:
        return 0
    for each, addr in ((vma, old), (new_vma, new)):
        if vma is new_vma and addr - below >= each.start:
            # A stack may be moved within itself.
            continue
        if vma is not new_vma and each.start != addr:
            return 0
        if each.mm.find_vma_intersection(addr - below, each.start) is not None:
            return 0
    return below


def memory_of(mm: Mm) -> Memory | None:
    """The memory behind an address space; None where the machine has VMAs alone."""
    port = mm.port
    return port.memory if isinstance(port, PagePort) else None
