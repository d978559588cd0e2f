"""Pages and half-open address ranges.

Addresses and lengths are in bytes, page offsets and page counts in pages of 4096 bytes.  A range is always half-open:
``[start, end)``.
"""

from typing import Final

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 4096
PAGE_MASK: Final = 4095
"""The offset within a page (the complement of the kernel's PAGE_MASK)."""

PMD_SIZE: Final = 0x200000
"""The size of a huge page that one page-table entry of the second level maps: 2 MiB."""

TASK_SIZE: Final = 0x7FFFFFFFF000
"""One past the highest user address with four page-table levels on x86-64."""

ULONG_MAX: Final = 0xFFFFFFFFFFFFFFFF
ULONG_END: Final = 0x10000000000000000


WORD: Final = (1 << 62) - 1
"""The largest integer that mypyc holds in a machine word: comparisons with larger ones are slow."""


def is_unsigned_long(value: int) -> bool:
    """Whether a number that is not negative fits into an unsigned long."""
    return value <= WORD or value < ULONG_END


def within_word(end: int) -> int:
    """The end of a range, or the largest number that compiled code compares fast, where no memory lies any more."""
    return end if end < WORD else WORD


def page_up(size: int) -> int:
    """Round up to a whole number of pages.  Unlike the kernel's PAGE_ALIGN it does not wrap at 2**64."""
    return (size + PAGE_MASK) & ~PAGE_MASK


def page_down(addr: int) -> int:
    """The start of the page that holds an address."""
    return addr & ~PAGE_MASK


def is_page_aligned(addr: int) -> bool:
    """Whether an address is the start of a page."""
    return (addr & PAGE_MASK) == 0


def pages(start: int, end: int) -> int:
    """How many pages the page-aligned range [start, end) holds."""
    return (end - start) >> PAGE_SHIFT
