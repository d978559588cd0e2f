"""Where a new mapping goes: hints, the search for an unmapped area, alignment to huge pages."""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from vmalab.addr import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, ULONG_END, page_down, page_up, within_word
from vmalab.flags import MAP_32BIT, MAP_ABOVE4G, MAP_FIXED, MAP_SHARED, VM_GROWSDOWN
from vmalab.reason import ADDRESS_IS_ERROR, BELOW_MIN_ADDR, BEYOND_TASK_SIZE_MAP, HUGETLB_LENGTH, NO_GAP, UNALIGNED, YES
from vmalab.semantics import THP_ALIGN_LARGE, THP_ALIGN_MULTIPLE
from vmalab.vma.area import File
from vmalab.vma.space import Mm

LOW_4G: Final = 0x100000000
LOW_32BIT_START: Final = 0x40000000
LOW_32BIT_END: Final = 0x80000000


def unmapped_area_topdown(mm: Mm, length: i64, low: i64, high: i64, align: i64 = 0, offset: i64 = 0) -> i64:
    """The highest start of length free bytes in [low, high), or minus NO_GAP (unmapped_area_topdown).

    align is a mask and offset what the start shall be modulo it; the search asks for length + align bytes and so can
    miss a gap that fits exactly.  A stack above keeps its guard gap.
    """
    lowest: i64 = mm.settings.min_addr
    if low < lowest:
        low = lowest
    wanted = length + align
    while True:
        start: i64 = mm.tree.highest_gap(wanted, low, high)
        if start < 0:
            return -NO_GAP
        addr = start + wanted - length
        addr -= (addr - offset) & align
        above = mm.tree.above_gap()
        if above is None or not above.flags & VM_GROWSDOWN or mm.start_gap(above) >= start + wanted:
            return addr
        high = mm.start_gap(above)


def unmapped_area(mm: Mm, length: i64, low: i64, high: i64, align: i64 = 0, offset: i64 = 0) -> i64:
    """The lowest start of length free bytes in [low, high), or minus NO_GAP (unmapped_area)."""
    lowest: i64 = mm.settings.min_addr
    if low < lowest:
        low = lowest
    wanted = length + align
    while True:
        start: i64 = mm.tree.lowest_gap(wanted, low, high)
        if start < 0:
            return -NO_GAP
        addr = start + ((offset - start) & align)
        above = mm.tree.find(start + wanted - 1)
        if above is None or not above.flags & VM_GROWSDOWN or mm.start_gap(above) >= addr + length:
            return addr
        low = above.end


def _hint_fits(mm: Mm, addr: int, length: i64) -> bool:
    """Whether nothing, nor the guard gap of a stack above, is in the way of a hint."""
    above = mm.find_vma(addr)
    return above is None or addr + length <= mm.start_gap(above)


def _bottomup(mm: Mm, addr: int, length: i64, flags: int, align: i64, offset: i64) -> i64:
    low = LOW_32BIT_START if flags & MAP_32BIT else mm.legacy_base
    high = LOW_32BIT_END if flags & MAP_32BIT else mm.task_size
    if length > high:
        return -NO_GAP
    if addr:
        addr = page_up(addr)
        if high - length >= addr and _hint_fits(mm, addr, length):
            return addr
    if flags & MAP_ABOVE4G:
        low = max(low, LOW_4G)
    return unmapped_area(mm, length, low, high, align, offset)


def arch_get_unmapped_area(mm: Mm, addr: int, length: i64, flags: int, align: i64 = 0, offset: i64 = 0) -> int:
    """The address for a mapping without a wish for alignment of its own, or minus a reason (x86).

    A hint is taken if it is free; else the highest gap below mmap_base, else the lowest above the legacy base.
    """
    if flags & MAP_FIXED:
        return addr
    addr = within_word(addr)
    if not mm.topdown or flags & MAP_32BIT:
        return _bottomup(mm, addr, length, flags, align, offset)
    if addr:
        addr = page_down(addr)
        if addr <= mm.task_size - length and _hint_fits(mm, addr, length):
            return addr
    low = LOW_4G if flags & MAP_ABOVE4G else PAGE_SIZE
    found = unmapped_area_topdown(mm, length, low, mm.mmap_base, align, offset)
    if found >= 0:
        return found
    return _bottomup(mm, addr, length, flags, align, offset)


def thp_get_unmapped_area(mm: Mm, addr: int, length: int, pgoff: int, flags: int) -> int:
    """As arch_get_unmapped_area, but so that huge pages fit if the mapping holds a whole one."""
    file_offset = pgoff << PAGE_SHIFT
    first_huge = (file_offset + PMD_SIZE - 1) & ~(PMD_SIZE - 1)
    if file_offset + length <= first_huge or file_offset + length - first_huge < PMD_SIZE:
        return arch_get_unmapped_area(mm, addr, length, flags)
    found = arch_get_unmapped_area(mm, addr, length + PMD_SIZE, flags)
    if found < 0:
        # The padding may be what did not fit.
        return arch_get_unmapped_area(mm, addr, length, flags)
    if found == addr:
        return addr
    lead = (file_offset - found) & (PMD_SIZE - 1)
    if lead == 0 and mm.topdown:
        return found + PMD_SIZE
    return found + lead


def shmem_get_unmapped_area(mm: Mm, addr: int, length: int, pgoff: int, flags: int) -> int:
    """As arch_get_unmapped_area for shared memory, aligned to huge pages where shared memory has them."""
    found = arch_get_unmapped_area(mm, addr, length, flags)
    if found < 0 or not mm.settings.thp_shmem or flags & MAP_FIXED or length < PMD_SIZE or found == addr:
        return found
    mask = PMD_SIZE - 1
    offset = (pgoff << PAGE_SHIFT) & mask
    if (offset and offset + length < 2 * PMD_SIZE) or found & mask == offset:
        return found
    padded = arch_get_unmapped_area(mm, 0, length + PMD_SIZE - PAGE_SIZE, flags)
    if padded < 0:
        return found
    aligned = padded + offset - (padded & mask)
    if padded & mask > offset:
        aligned += PMD_SIZE
    return found if aligned > mm.task_size - length else aligned


def hugetlb_get_unmapped_area(mm: Mm, addr: int, length: int, flags: int, huge_size: int) -> int:
    """The address for a mapping of huge pages, aligned to their size."""
    mask = huge_size - 1
    if length & mask:
        return -HUGETLB_LENGTH
    if flags & MAP_FIXED:
        return -HUGETLB_LENGTH if addr & mask else addr
    if addr:
        addr = (addr + mask) & ~mask
    return arch_get_unmapped_area(mm, addr, length, flags, mask & ~PAGE_MASK)


LAST_ADDRESS: Final = ULONG_END - 4096
"""What is above it the kernel takes for an error number (IS_ERR_VALUE), also where a program asks for it."""


def get_unmapped_area(mm: Mm, file: File | None, addr: int, length: int, pgoff: int, flags: int) -> int:
    """The address at which a mapping of length bytes goes, or minus a reason (__get_unmapped_area)."""
    if length > mm.task_size:
        return -BEYOND_TASK_SIZE_MAP
    if file is not None:
        found = _place_for_file(mm, file, addr, length, pgoff, flags)
    elif flags & MAP_SHARED:
        found = shmem_get_unmapped_area(mm, addr, length, pgoff, flags)
    elif length >= PMD_SIZE and addr == 0 and mm.settings.thp and _wants_huge_alignment(mm, length):
        found = thp_get_unmapped_area(mm, addr, length, 0, flags)
    else:
        found = arch_get_unmapped_area(mm, addr, length, flags)
    if found < 0:
        return found
    if found > mm.task_size - length:
        return -ADDRESS_IS_ERROR if found > LAST_ADDRESS else -BEYOND_TASK_SIZE_MAP
    if found & PAGE_MASK:
        return -UNALIGNED
    if found < mm.settings.dac_min_addr and not mm.limits.sys_rawio:
        return -BELOW_MIN_ADDR
    return found


def _place_for_file(mm: Mm, file: File, addr: int, length: int, pgoff: int, flags: int) -> int:
    """The address for a mapping of a file, or minus a reason: each kind has its alignment."""
    if file.huge_size:
        return hugetlb_get_unmapped_area(mm, addr, length, flags, file.huge_size)
    if file.kind in ("memfd", "shm") or (file.kind == "zero" and flags & MAP_SHARED):
        return shmem_get_unmapped_area(mm, addr, length, pgoff, flags)
    if file.thp_aligned and mm.settings.thp:
        return thp_get_unmapped_area(mm, addr, length, pgoff, flags)
    return arch_get_unmapped_area(mm, addr, length, flags)


def _wants_huge_alignment(mm: Mm, length: int) -> bool:
    """Whether anonymous memory that could hold a huge page, and has no hint, is aligned to huge pages."""
    rule = mm.semantics.thp_align_anonymous
    return rule == THP_ALIGN_LARGE or (rule == THP_ALIGN_MULTIPLE and length & (PMD_SIZE - 1) == 0)


def round_hint_to_min(mm: Mm, hint: int) -> int:
    """A hint rounded down to a page, and raised to mmap_min_addr; page 0 is no hint."""
    hint = page_down(hint)
    if hint and hint < mm.settings.min_addr:
        return page_up(mm.settings.min_addr)
    return hint


def check_fixed(mm: Mm, addr: int, length: int) -> int:
    """Whether a range may be mapped at a fixed address at all: YES or a reason."""
    found = get_unmapped_area(mm, None, addr, length, 0, MAP_FIXED)
    return YES if found >= 0 else -found
