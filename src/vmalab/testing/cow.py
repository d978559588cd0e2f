"""The copy-on-write suite: what a child, a pipe and a pin may see of a process's pages, for every kind of page.

Cases are families (what is done) times page types (what it is done to).  One driver runs them on any ground: in the
model (testing/cow_model.py) or on the running kernel (live/cow.py).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from vmalab.flags import (
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    PROT_READ,
    PROT_WRITE,
)

THP_SIZES: Final = tuple(PAGE_SIZE << order for order in range(2, 10))
"""Transparent huge pages, in bytes."""
HUGETLB_SIZES: Final = (PMD_SIZE, 1 << 30)
"""Pages of the pools, in bytes."""
MOST_PAGES: Final = 512
"""So many pages of a range are written and looked at, evenly spread."""
UNIT: Final = 16
"""Bytes that are written to the beginning of a page."""


class Skip(Exception):
    """A case cannot be run on this ground; the text says why."""


@dataclass(frozen=True)
class Range:
    """Memory that a case is about."""

    addr: int
    length: int

    def samples(self) -> range:
        """The numbers of the pages that are written and looked at."""
        pages = self.length >> PAGE_SHIFT
        return range(0, pages, max(1, pages // MOST_PAGES))


def pattern(tag: int, number: int) -> bytes:
    """What is written to the beginning of a page."""
    return (tag << 64 | number + 1).to_bytes(UNIT, "little")


def expected(where: Range, tag: int) -> bytes:
    """All patterns of a tag."""
    return b"".join([pattern(tag, number) for number in where.samples()])


OLD: Final = 0x51
NEW: Final = 0xA7


class Held(abc.ABC):
    """Pages that somebody outside the page tables holds."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """The first bytes of each sampled page, as the holder sees them."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go."""


class Actor(abc.ABC):
    """A process on a ground.  Addresses and lengths in bytes."""

    @abc.abstractmethod
    def mmap(self, length: int, hugetlb: int = 0) -> int:
        """Private anonymous memory, from the pool of a size if one is given.  Raises Skip where there is none."""

    @abc.abstractmethod
    def mmap_file(self, kind: str, length: int, hugetlb: int = 0) -> tuple[int, int]:
        """A private and a shared mapping of one fresh file: memfd, or tmpfile.  Raises Skip where there is none."""

    @abc.abstractmethod
    def munmap(self, addr: int, length: int) -> None:
        """Unmap."""

    @abc.abstractmethod
    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """Set permissions."""

    @abc.abstractmethod
    def madvise(self, addr: int, length: int, advice: int) -> bool:
        """Give an advice; whether it was taken."""

    @abc.abstractmethod
    def move(self, addr: int, length: int) -> None:
        """Move a range to a place of its own (mremap)."""

    @abc.abstractmethod
    def write(self, addr: int, data: bytes) -> None:
        """Write as the program does."""

    @abc.abstractmethod
    def read(self, addr: int, length: int) -> bytes:
        """Read as the program does."""

    def fill(self, where: Range, tag: int) -> None:
        """Write a pattern to each sampled page."""
        for number in where.samples():
            self.write(where.addr + (number << PAGE_SHIFT), pattern(tag, number))

    def looks(self, where: Range) -> bytes:
        """The patterns of a range, as the process sees them."""
        return b"".join([self.read(where.addr + (number << PAGE_SHIFT), UNIT) for number in where.samples()])

    @abc.abstractmethod
    def fork(self) -> Actor:
        """A child."""

    @abc.abstractmethod
    def exit(self) -> None:
        """End the process."""

    @abc.abstractmethod
    def resident(self, addr: int, length: int) -> int:
        """How many pages of a range are in memory."""

    @abc.abstractmethod
    def swapped(self, addr: int, length: int) -> int:
        """How many pages of a range are in swap."""

    @abc.abstractmethod
    def vmsplice(self, addr: int, length: int) -> Held:
        """Put pages into a pipe."""

    @abc.abstractmethod
    def fixed_buffer(self, addr: int, length: int) -> Held:
        """Register a fixed buffer with io_uring."""

    @abc.abstractmethod
    def pin(self, addr: int, length: int, fast: bool) -> Held:
        """Pin pages for long, for reading."""


# -- page types ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageType:
    """What a case is done to."""

    name: str
    make: Callable[[Actor], Range]
    thp: int = 0
    """The size of transparent huge pages that it needs, in bytes."""
    hugetlb: int = 0
    """The size of pages of a pool that it needs, in bytes."""
    swaps: bool = False


def _base(actor: Actor) -> Range:
    addr = actor.mmap(PAGE_SIZE)
    actor.madvise(addr, PAGE_SIZE, MADV_NOHUGEPAGE)
    where = Range(addr, PAGE_SIZE)
    actor.fill(where, OLD)
    return where


def _huge(actor: Actor, size: int) -> Range:
    """One transparent huge page, in all of an aligned range."""
    addr = actor.mmap(2 * size) + size - 1 & -size
    where = Range(addr, size)
    actor.madvise(addr, size, MADV_HUGEPAGE)
    actor.write(addr, pattern(OLD, 0))
    if actor.resident(addr, size) != size >> PAGE_SHIFT:
        raise Skip(f"a huge page of {size >> 10} kB was not to be had")
    actor.fill(where, OLD)
    return where


def _pte_mapped(actor: Actor, size: int) -> Range:
    where = _huge(actor, size)
    if size == PMD_SIZE:
        # Changing a part of it maps it by single entries.
        actor.mprotect(where.addr, PAGE_SIZE, PROT_READ)
        actor.mprotect(where.addr, PAGE_SIZE, PROT_READ | PROT_WRITE)
    return where


def _single_pte(actor: Actor, size: int) -> Range:
    where = _pte_mapped(actor, size)
    actor.madvise(where.addr + PAGE_SIZE, size - PAGE_SIZE, MADV_DONTNEED)
    return Range(where.addr, PAGE_SIZE)


def _partly_moved(actor: Actor, size: int) -> Range:
    where = _pte_mapped(actor, size)
    half = size // 2
    actor.move(where.addr + half, half)
    return Range(where.addr, half)


def _partly_shared(actor: Actor, size: int) -> Range:
    where = _pte_mapped(actor, size)
    half = size // 2
    actor.madvise(where.addr + half, half, MADV_DONTFORK)
    actor.fork().exit()
    actor.madvise(where.addr + half, half, MADV_DOFORK)
    return where


def _swapped(make: Callable[[Actor], Range]) -> Callable[[Actor], Range]:
    """The same, swapped out."""

    def made(actor: Actor) -> Range:
        where = make(actor)
        actor.madvise(where.addr, where.length, MADV_PAGEOUT)
        if actor.swapped(where.addr, where.length) != where.length >> PAGE_SHIFT:
            raise Skip("MADV_PAGEOUT did not swap all of it out")
        return where

    return made


def _pool(size: int) -> Callable[[Actor], Range]:
    def made(actor: Actor) -> Range:
        where = Range(actor.mmap(size, hugetlb=size), size)
        actor.fill(where, OLD)
        return where

    return made


def _of(make: Callable[[Actor, int], Range], size: int) -> Callable[[Actor], Range]:
    return lambda actor: make(actor, size)


def _size_name(size: int) -> str:
    return f"{size >> 10} kB" if size < 1 << 20 else f"{size >> 20} MB"


def page_types() -> Iterator[PageType]:
    """All 54, the plain ones first."""
    yield PageType("base page", _base)
    yield PageType("swapped-out base page", _swapped(_base), swaps=True)
    for size in THP_SIZES:
        kinds: list[tuple[str, Callable[[Actor, int], Range], bool]] = []
        if size == PMD_SIZE:
            kinds.append(("PMD-mapped THP", _huge, True))
        kinds += [
            ("PTE-mapped THP", _pte_mapped, True),
            ("single PTE of THP", _single_pte, True),
            ("partly mremapped THP", _partly_moved, False),
            ("partly shared THP", _partly_shared, False),
        ]
        for name, make, swaps in kinds:
            full = f"{name} ({_size_name(size)})"
            yield PageType(full, _of(make, size), thp=size)
            if swaps:
                yield PageType(f"swapped-out {full}", _swapped(_of(make, size)), thp=size, swaps=True)
    for size in HUGETLB_SIZES:
        yield PageType(f"hugetlb page ({_size_name(size)})", _pool(size), hugetlb=size)
