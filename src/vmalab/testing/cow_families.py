"""What is done to the pages of the copy-on-write suite, and the list of all its cases."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.flags import (
    MADV_COLLAPSE,
    MADV_DOFORK,
    MADV_DONTFORK,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    PROT_READ,
    PROT_WRITE,
)
from vmalab.testing.cow import (
    HUGETLB_SIZES,
    NEW,
    OLD,
    Actor,
    Held,
    PageType,
    Range,
    Skip,
    expected,
    page_types,
)

PIPE: Final = "vmsplice"
RING: Final = "io_uring"
PIN: Final = "long-term read-only pin"
FILES: Final = "files"


@dataclass(frozen=True)
class Family:
    """Something that is done to a page, and what must hold afterwards."""

    name: str
    run: Callable[[Actor, Range], str]
    """Returns what is wrong; empty if nothing is."""
    needs: str = ""
    """What a ground must have for it."""
    fails_on_hugetlb: bool = False
    """Linux is known to fail it on pages of a pool, which are written in place while a pipe holds them."""


@dataclass(frozen=True)
class Case:
    """One case of the suite."""

    name: str
    run: Callable[[Actor], str]
    family: str
    kind: str
    needs: str = ""
    thp: int = 0
    hugetlb: int = 0
    swaps: bool = False
    expected_to_fail: bool = False


class Ground(abc.ABC):
    """Where cases run."""

    @abc.abstractmethod
    def process(self) -> Actor:
        """A fresh process."""

    @abc.abstractmethod
    def missing(self, case: Case) -> str:
        """Why a case cannot be run here; empty if it may be tried."""


def _differs(what: str, found: bytes, wanted: bytes) -> str:
    """What is wrong where something was seen; empty if nothing is."""
    if found == wanted:
        return ""
    at = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b) // 16
    return (
        f"{what} sees {found[at * 16 : at * 16 + 16].hex()} in sample {at}, not {wanted[at * 16 : at * 16 + 16].hex()}"
    )


def _protect_and_back(actor: Actor, where: Range) -> None:
    """What may make entries writable that must not be."""
    actor.mprotect(where.addr, where.length, PROT_READ)
    actor.mprotect(where.addr, where.length, PROT_READ | PROT_WRITE)


def _after_fork(protects: bool) -> Callable[[Actor, Range], str]:
    def run(actor: Actor, where: Range) -> str:
        child = actor.fork()
        if protects:
            _protect_and_back(actor, where)
        actor.fill(where, NEW)
        found = child.looks(where)
        child.exit()
        return _differs("the child", found, expected(where, OLD))

    return run


def _splice_in_child(protects: bool) -> Callable[[Actor, Range], str]:
    """The child keeps the pages in a pipe, and unmaps them: the parent must not think that it is alone."""

    def run(actor: Actor, where: Range) -> str:
        child = actor.fork()
        pipe = child.vmsplice(where.addr, where.length)
        child.munmap(where.addr, where.length)
        if protects:
            _protect_and_back(actor, where)
        actor.fill(where, NEW)
        found = pipe.read()
        pipe.close()
        child.exit()
        return _differs("the pipe", found, expected(where, OLD))

    return run


def _splice_in_parent(before: bool) -> Callable[[Actor, Range], str]:
    """The parent keeps the pages in a pipe, and unmaps them: the child must not think that it is alone."""

    def run(actor: Actor, where: Range) -> str:
        pipe = actor.vmsplice(where.addr, where.length) if before else None
        child = actor.fork()
        pipe = actor.vmsplice(where.addr, where.length) if pipe is None else pipe
        actor.munmap(where.addr, where.length)
        child.fill(where, NEW)
        found = pipe.read()
        pipe.close()
        child.exit()
        return _differs("the pipe", found, expected(where, OLD))

    return run


def _fixed_buffer_protected(actor: Actor, where: Range) -> str:
    """What becomes read-only and writable again is still what the ring reads."""
    buffer = actor.fixed_buffer(where.addr, where.length)
    _protect_and_back(actor, where)
    return _written_through(actor, where, buffer)


def _fixed_buffer_forked(actor: Actor, where: Range) -> str:
    """What is pinned stays the parent's: the child has a copy."""
    buffer = actor.fixed_buffer(where.addr, where.length)
    child = actor.fork()
    wrong = _written_through(actor, where, buffer)
    found = child.looks(where)
    child.exit()
    return wrong or _differs("the child", found, expected(where, OLD))


def _written_through(actor: Actor, where: Range, held: Held) -> str:
    """Whether who holds the pages sees what the owner writes."""
    actor.fill(where, NEW)
    found = held.read()
    held.close()
    return _differs("the pin", found, expected(where, NEW))


def _pinned(sharing: str, fast: bool) -> Callable[[Actor, Range], str]:
    def run(actor: Actor, where: Range) -> str:
        child = actor.fork() if sharing != "exclusive" else None
        if sharing == "previously shared" and child is not None:
            child.exit()
            child = None
        pin = actor.pin(where.addr, where.length, fast)
        wrong = _written_through(actor, where, pin)
        if child is None:
            return wrong
        found = child.looks(where)
        child.exit()
        return wrong or _differs("the child", found, expected(where, OLD))

    return run


def families() -> list[Family]:
    """The fourteen that are tried on every page type."""
    found = [
        Family("COW after fork", _after_fork(False)),
        Family("COW after fork, with mprotect", _after_fork(True)),
        Family("vmsplice in the child, then unmap", _splice_in_child(False), PIPE, True),
        Family("vmsplice in the child, then unmap, with mprotect", _splice_in_child(True), PIPE, True),
        Family("vmsplice before fork, unmap in the parent", _splice_in_parent(True), PIPE, True),
        Family("vmsplice after fork, unmap in the parent", _splice_in_parent(False), PIPE, True),
        Family("fixed buffer, then mapped read-only", _fixed_buffer_protected, RING),
        Family("fixed buffer, then fork", _fixed_buffer_forked, RING),
    ]
    for sharing in ("shared", "previously shared", "exclusive"):
        for fast in (False, True):
            name = f"read-only {'fast ' if fast else ''}pin of a page that is {sharing}"
            found.append(Family(name, _pinned(sharing, fast), PIN))
    return found


# -- collapse -----------------------------------------------------------------------------------------


def _collapse(shared: str) -> Callable[[Actor], str]:
    """Small pages become one huge page: before a fork, or when all or half of them are shared with a child."""

    def run(actor: Actor) -> str:
        half = PMD_SIZE // 2
        where = Range(actor.mmap(2 * PMD_SIZE) + PMD_SIZE - 1 & -PMD_SIZE, PMD_SIZE)
        actor.madvise(where.addr, where.length, MADV_NOHUGEPAGE)
        actor.fill(where, OLD)
        actor.madvise(where.addr, where.length, MADV_HUGEPAGE)
        left_out = {"lower": where.addr + half, "upper": where.addr}.get(shared)
        if left_out is not None:
            actor.madvise(left_out, half, MADV_DONTFORK)
        child = actor.fork() if shared else None
        if left_out is not None:
            actor.madvise(left_out, half, MADV_DOFORK)
        if not actor.madvise(where.addr, where.length, MADV_COLLAPSE):
            if child is not None:
                child.exit()
            raise Skip("MADV_COLLAPSE did not collapse the range")
        child = actor.fork() if child is None else child
        parts = {"lower": Range(where.addr, half), "upper": Range(where.addr + half, half)}
        seen = parts.get(shared, where)
        before = actor.looks(seen)
        actor.fill(where, NEW)
        found = child.looks(seen)
        child.exit()
        return _differs("the child", found, before)

    return run


_COLLAPSES: Final = {
    "before fork": "",
    "after full sharing": "all",
    "after sharing of the lower half": "lower",
    "after sharing of the upper half": "upper",
}


# -- pages that are not anonymous ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """A private mapping of a page that belongs to somebody else, and where its own contents can be seen."""

    name: str
    make: Callable[[Actor], tuple[Range, Range | None]]
    thp: int = 0
    hugetlb: int = 0


def _zero(actor: Actor) -> tuple[Range, Range | None]:
    addr = actor.mmap(PAGE_SIZE)
    actor.madvise(addr, PAGE_SIZE, MADV_NOHUGEPAGE)
    other = actor.mmap(PAGE_SIZE)
    actor.madvise(other, PAGE_SIZE, MADV_NOHUGEPAGE)
    return Range(addr, PAGE_SIZE), Range(other, PAGE_SIZE)


def _huge_zero(actor: Actor) -> tuple[Range, Range | None]:
    ranges: list[Range] = []
    for _ in range(2):
        where = Range(actor.mmap(2 * PMD_SIZE) + PMD_SIZE - 1 & -PMD_SIZE, PMD_SIZE)
        actor.madvise(where.addr, where.length, MADV_HUGEPAGE)
        actor.read(where.addr, 1)
        ranges.append(where)
    if actor.resident(ranges[0].addr, PMD_SIZE) != PMD_SIZE // PAGE_SIZE:
        raise Skip("the huge page of zeros was not to be had")
    return ranges[0], ranges[1]


def _file(kind: str, size: int, hugetlb: int = 0) -> Callable[[Actor], tuple[Range, Range | None]]:
    def make(actor: Actor) -> tuple[Range, Range | None]:
        private, shared = actor.mmap_file(kind, size, hugetlb)
        actor.fill(Range(shared, size), OLD)
        return Range(private, size), Range(shared, size)

    return make


def _kinds() -> list[_Kind]:
    found = [
        _Kind("the page of zeros", _zero),
        _Kind("the huge page of zeros", _huge_zero, thp=PMD_SIZE),
        _Kind("memfd", _file("memfd", PAGE_SIZE)),
        _Kind("tmpfile", _file("tmpfile", PAGE_SIZE)),
    ]
    for size in HUGETLB_SIZES:
        name = f"memfd of hugetlb ({size >> 20} MB)"
        found.append(_Kind(name, _file("memfd", size, size), hugetlb=size))
    return found


def _other_cow(kind: _Kind) -> Callable[[Actor], str]:
    """A write is to a page of one's own: whoever has the other mapping sees what was there."""

    def run(actor: Actor) -> str:
        where, other = kind.make(actor)
        before = actor.looks(where)
        actor.fill(where, NEW)
        wrong = _differs("the process", actor.looks(where), expected(where, NEW))
        return wrong or ("" if other is None else _differs("the other mapping", actor.looks(other), before))

    return run


def _other_pin(kind: _Kind, fast: bool) -> Callable[[Actor], str]:
    """A pin for reading must see what its owner writes later: so the page has to be the owner's when it is pinned."""

    def run(actor: Actor) -> str:
        where, _ = kind.make(actor)
        actor.looks(where)
        return _written_through(actor, where, actor.pin(where.addr, where.length, fast))

    return run


# -- all of them --------------------------------------------------------------------------------------


def _bind(family: Family, kind: PageType) -> Callable[[Actor], str]:
    return lambda actor: family.run(actor, kind.make(actor))


def cases() -> Iterator[Case]:
    """All 778 cases, in order."""
    for family in families():
        for kind in page_types():
            yield Case(
                f"{family.name}: {kind.name}",
                _bind(family, kind),
                family.name,
                kind.name,
                family.needs,
                kind.thp,
                kind.hugetlb,
                kind.swaps,
                family.fails_on_hugetlb and kind.hugetlb > 0,
            )
    for name, shared in _COLLAPSES.items():
        yield Case(f"collapse {name}", _collapse(shared), "collapse", name, thp=PMD_SIZE)
    others: list[tuple[str, str, Callable[[_Kind], Callable[[Actor], str]]]] = [
        ("COW of", "", _other_cow),
        ("read-only pin of", PIN, lambda kind: _other_pin(kind, False)),
        ("read-only fast pin of", PIN, lambda kind: _other_pin(kind, True)),
    ]
    for what, needs, make in others:
        for other in _kinds():
            yield Case(
                f"{what} {other.name}", make(other), f"{what} other pages", other.name, needs, other.thp, other.hugetlb
            )


@dataclass
class Result:
    """How a case went."""

    case: Case
    wrong: str = ""
    """What is wrong; empty if nothing is."""
    skip: str = ""
    """Why it was not run, or not to its end."""
    differs: bool = False
    """The kernel's verdict is not the model's."""

    def verdict(self) -> str:
        """pass, fail, xfail, xpass or skip."""
        if self.skip:
            return "skip"
        if self.differs:
            return "fail"
        if self.case.expected_to_fail:
            return "xfail" if self.wrong else "xpass"
        return "fail" if self.wrong else "pass"


def run_case(case: Case, ground: Ground) -> Result:
    """Run a case as a process that ends with it."""
    missing = ground.missing(case)
    if missing:
        return Result(case, skip=missing)
    try:
        actor = ground.process()
    except Skip as skip:
        return Result(case, skip=str(skip))
    try:
        result = Result(case, case.run(actor))
    except Skip as skip:
        result = Result(case, skip=str(skip))
    actor.exit()
    return result
