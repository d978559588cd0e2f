"""Huge pages in the page cache, in lockstep: MADV_COLLAPSE of shared memory and files, and what takes them apart."""

import errno
import itertools
from collections.abc import Iterable, Iterator

from tests.fuzz.test_lockstep import live
from vmalab import flags as f
from vmalab.flags import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
)
from vmalab.fuzz.campaign import Options, Runner
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import FIRST_MADE, Op
from vmalab.fuzz.shrink import as_python
from vmalab.reason import YES

AT = 0x40000000
OTHER = 0x60000000
PAGE = 0x1000
HUGE = 0x200000
PRIVATE = 0x32
SHARED = 0x31
OF_FILE = 0x11
PRIVATELY = 0x12
FILE, READ_ONLY, MEMFD, SHORT = 0, 2, 3, 4
"""Files that all runs map: of a disk, the same for reading only, a large memfd, one of 24 pages."""


def _advise(at: int, length: int, advice: int, who: int = 0) -> Op:
    return Op("madvise", (at, length, advice), who)


def _memfd(at: int, length: int = HUGE, flags: int = OF_FILE, offset: int = 0, file: int = MEMFD) -> Op:
    return Op("mmap", (at, length, 3, flags, offset), 0, file)


def follow(sequences: Iterable[list[Op]]) -> Iterator[Lockstep]:
    """Both sides do the same, unless somebody else has changed what pages may be had; the lockstep after each."""
    with Runner(Options(pages=True)) as runner:
        for ops in sequences:
            lockstep, found = runner.run(lambda _, ops=ops: iter(ops))  # type: ignore[misc]
            assert found is None, f"{found}\n{as_python(ops, pages=True)}"
            yield lockstep


def all_follow(sequences: Iterable[list[Op]]) -> None:
    for lockstep in follow(sequences):
        assert lockstep.steps


def _is_huge(lockstep: Lockstep, addr: int, who: int = 0) -> bool:
    """Whether the model maps an address by one huge entry of a file."""
    memory = lockstep.machine.memory
    assert memory is not None
    huge = memory.tables(lockstep.processes[who].mm).huge(addr)
    return huge is not None and huge.folio.cache is not None


@live
def test_shared_memory_becomes_huge_where_anything_is_there() -> None:
    kinds = [
        [Op("mmap", (AT, 2 * HUGE, 3, SHARED, 0))],
        [_memfd(AT, 2 * HUGE)],
        [_memfd(AT, 2 * HUGE, PRIVATELY)],
        [Op("shmget", (0, 2 * HUGE, 0o1600), 0, FIRST_MADE), Op("shmat", (AT, 0), 0, FIRST_MADE)],
    ]
    ends = [[], [Op("read", (AT + 5 * PAGE,))], [Op("write", (AT + 5 * PAGE,))]]
    cases = list(itertools.product(kinds, ends))
    sequences = [[*kind, *end, _advise(AT, HUGE, MADV_COLLAPSE)] for kind, end in cases]
    for (kind, end), lockstep in zip(cases, follow(sequences), strict=True):
        copied = kind is kinds[2] and end is ends[2]
        assert (lockstep.last_reason == YES) == (bool(end) and not copied)
        assert _is_huge(lockstep, AT) == (bool(end) and not copied)


@live
def test_a_file_of_a_disk_does_not() -> None:
    """Without CONFIG_READ_ONLY_THP_FOR_FS it is never collapsed, whatever is in memory of it."""
    sequences = [
        [Op("mmap", (AT, 2 * HUGE, 5, flags, 0), 0, file), *there, _advise(AT, HUGE, MADV_COLLAPSE)]
        for file in (FILE, READ_ONLY)
        for flags in (OF_FILE, PRIVATELY)
        for there in ([], [_advise(AT, 2 * HUGE, MADV_POPULATE_READ)])
    ]
    for lockstep in follow(sequences):
        assert lockstep.last_result == -errno.EINVAL


@live
def test_only_whole_ones_of_the_range_count() -> None:
    parts = [(0, PAGE), (PAGE, PAGE), (PAGE, HUGE), (PAGE, 2 * HUGE - PAGE), (0, HUGE + PAGE), (0, 3 * HUGE), (HUGE, 1)]
    all_follow(
        [
            Op("mmap", (AT, 2 * HUGE + PAGE, 3, flags, 0)),
            Op("write", (AT,)),
            Op("write", (AT + HUGE,)),
            _advise(AT + start, length, MADV_COLLAPSE),
        ]
        for flags in (PRIVATE, SHARED)
        for start, length in parts
    )


@live
def test_what_is_wholly_empty_ends_it() -> None:
    all_follow(
        [
            _memfd(AT, 3 * HUGE),
            *[Op("write", (AT + at * HUGE,)) for at in there],
            _advise(AT, 3 * HUGE, MADV_COLLAPSE),
            Op("read", (AT + HUGE,)),
        ]
        for count in range(4)
        for there in itertools.combinations(range(3), count)
    )


CUTS = [
    [_advise(AT + 100 * PAGE, PAGE, MADV_REMOVE)],
    [_advise(AT + 100 * PAGE, 77 * PAGE, MADV_REMOVE)],
    [_advise(AT, 64 * PAGE, MADV_REMOVE)],
    [_advise(AT + 511 * PAGE, PAGE, MADV_REMOVE)],
    [_advise(AT, HUGE, MADV_REMOVE)],
    [_advise(AT + PAGE, 2 * HUGE - 2 * PAGE, MADV_REMOVE)],
    [_advise(AT + PAGE, PAGE, MADV_DONTNEED)],
    [_advise(AT, HUGE, MADV_DONTNEED)],
    [_advise(AT + PAGE, PAGE, MADV_COLD)],
    [_advise(AT, HUGE, MADV_COLD)],
    [_advise(AT + PAGE, PAGE, MADV_PAGEOUT)],
    [_advise(AT, HUGE, MADV_PAGEOUT)],
    [_advise(AT + 9 * PAGE, PAGE, MADV_GUARD_INSTALL)],
    [Op("mprotect", (AT + PAGE, PAGE, 1))],
    [Op("mprotect", (AT, HUGE, 1))],
    [Op("munmap", (AT + PAGE, PAGE))],
    [Op("mremap", (AT, 2 * PAGE, 2 * PAGE, 3, OTHER))],
    [Op("mremap", (AT, HUGE, HUGE, 3, OTHER))],
    [Op("mremap", (AT, HUGE, HUGE, 3, OTHER + PAGE))],
    [_advise(AT, 2 * HUGE, MADV_NOHUGEPAGE), _advise(AT, HUGE, MADV_DONTNEED)],
    [Op("mlock", (AT + PAGE, PAGE))],
]
"""What takes a huge page at AT apart, or not."""


@live
def test_a_huge_page_of_a_file_is_taken_apart_as_on_the_kernel() -> None:
    """And what is left is mapped by the next accesses, in pieces as large as they are."""
    places = (0, 1, 99, 101, 112, 128, 178, 300, 511)
    touches = [Op("write" if at % 2 else "read", (base + at * PAGE,)) for at in places for base in (AT, OTHER)]
    all_follow(
        [
            _memfd(AT, 2 * HUGE),
            Op("write", (AT + 3 * PAGE,)),
            Op("write", (AT + HUGE + 3 * PAGE,)),
            _advise(AT, 2 * HUGE, MADV_COLLAPSE),
            *cut,
            *touches,
            _advise(AT, HUGE, MADV_COLLAPSE),
            _advise(AT, 2 * HUGE, MADV_COLLAPSE),
            *touches[:3],
        ]
        for cut in CUTS
    )


@live
def test_others_lose_their_single_pages_and_find_the_huge_one() -> None:
    """Page tables without pages of their own go, in every process; not those with guards, or with copies."""
    all_follow(
        [
            _memfd(AT),
            _memfd(OTHER),
            _memfd(OTHER + 2 * HUGE, flags=PRIVATELY),
            _memfd(OTHER + 4 * HUGE),
            _memfd(OTHER + 6 * HUGE + PAGE),
            _memfd(OTHER + 8 * HUGE, HUGE - PAGE),
            *[Op(first, (OTHER + at * HUGE + 3 * PAGE,)) for at in (0, 2, 4, 6, 8)],
            _advise(OTHER + 4 * HUGE, PAGE, MADV_GUARD_INSTALL),
            Op("fork"),
            Op("write", (AT + 7 * PAGE,), 1),
            _advise(AT, HUGE, MADV_COLLAPSE, 1),
            *[Op("read", (OTHER + at * HUGE + 9 * PAGE,), who) for at in (0, 2, 4, 6, 8) for who in (0, 1)],
            _advise(OTHER + 4 * HUGE, PAGE, MADV_GUARD_REMOVE),
            *[_advise(OTHER + at * HUGE, HUGE - PAGE if at == 8 else HUGE, MADV_COLLAPSE) for at in (0, 2, 4, 8)],
            Op("write", (OTHER + 2 * HUGE,)),
            Op("fork"),
            Op("read", (OTHER + 2 * HUGE + PAGE,), 2),
        ]
        for first in ("read", "write")
    )


@live
def test_a_private_page_in_its_place_ends_it() -> None:
    ops = [
        _memfd(AT, 2 * HUGE, PRIVATELY),
        Op("read", (AT,)),
        Op("read", (AT + HUGE,)),
        _advise(AT, 2 * HUGE, MADV_COLLAPSE),
        Op("write", (AT + 3 * PAGE,)),
        Op("read", (AT + 200 * PAGE,)),
        _advise(AT, 2 * HUGE, MADV_COLLAPSE),
        _advise(AT + HUGE, HUGE, MADV_COLLAPSE),
        _advise(AT, HUGE, MADV_DONTNEED),
        _advise(AT, 2 * HUGE, MADV_COLLAPSE),
    ]
    all_follow([ops])


@live
def test_memory_beyond_the_end_of_a_short_memfd_is_there_once_it_is_huge() -> None:
    """Until it is split: single pages past the end cannot be had."""
    ops = [
        _memfd(AT, file=SHORT),
        Op("write", (AT + 30 * PAGE,)),
        Op("write", (AT + 3 * PAGE,)),
        _advise(AT, HUGE, MADV_COLLAPSE),
        Op("write", (AT + 30 * PAGE,)),
        _advise(AT + 5 * PAGE, PAGE, MADV_REMOVE),
        Op("read", (AT + 23 * PAGE,)),
        Op("read", (AT + 24 * PAGE,)),
        Op("read", (AT + 6 * PAGE,)),
    ]
    all_follow([ops])


def _watched(where: int, mode: int, filled: bool) -> list[Op]:
    ops = [
        Op("userfaultfd", (0,), 0, FIRST_MADE),
        Op("mmap", (AT, 3 * HUGE, 3, where, 0)),
        *[Op("write", (AT + at * HUGE,)) for at in range(3)],
    ]
    ops += [_advise(AT, HUGE, MADV_POPULATE_WRITE)] if filled else []
    ops += [Op("register", (AT, 2 * HUGE, mode), 0, FIRST_MADE)]
    ops += [Op("writeprotect", (AT, PAGE, 1), 0, FIRST_MADE)] if mode == 2 else []
    ops += [_advise(AT, 3 * HUGE, MADV_COLLAPSE), Op("unregister", (AT, 2 * HUGE), 0, FIRST_MADE)]
    return [*ops, _advise(AT, 3 * HUGE, MADV_COLLAPSE), Op("write", (AT,))]


@live
def test_a_userfaultfd_hears_of_no_page_that_is_made_so() -> None:
    """Where it wants to know of pages that are not there, none is filled up; where they are protected, all stay."""
    all_follow(itertools.starmap(_watched, itertools.product((PRIVATE, SHARED), (1, 2, 4), (False, True))))


@live
def test_nor_of_one_that_is_missing_where_nothing_was_ever_touched() -> None:
    """It need not be the mapping that is collapsed, nor one that was ever looked at."""
    for_all = [_memfd(AT), Op("write", (AT,)), Op("fork"), Op("userfaultfd", (0,), 0, FIRST_MADE), _memfd(OTHER)]
    register = Op("register", (OTHER, HUGE, 1), 0, FIRST_MADE)
    all_follow(
        [*for_all, register, *more, _advise(AT, HUGE, MADV_COLLAPSE, 1), Op("read", (AT,))]
        for more in ([], [Op("munmap", (OTHER, PAGE))], [Op("munmap", (OTHER, HUGE))])
    )


@live
def test_protection_by_a_userfaultfd_takes_a_huge_page_of_a_file_apart() -> None:
    ops = [
        Op("userfaultfd", (0,), 0, FIRST_MADE),
        _memfd(AT),
        Op("write", (AT,)),
        _advise(AT, HUGE, MADV_COLLAPSE),
        Op("register", (AT, HUGE, 2), 0, FIRST_MADE),
        Op("writeprotect", (AT + 3 * PAGE, PAGE, 1), 0, FIRST_MADE),
        Op("read", (AT + 5 * PAGE,)),
        Op("write", (AT + 6 * PAGE,)),
        _advise(AT, HUGE, MADV_COLLAPSE),
        _advise(AT + 3 * PAGE, PAGE, MADV_REMOVE),
        Op("writeprotect", (AT + 3 * PAGE, PAGE, 0), 0, FIRST_MADE),
        Op("write", (AT + 3 * PAGE,)),
    ]
    all_follow([ops])


@live
def test_advice_and_alignment() -> None:
    all_follow(
        [
            _memfd(AT, 2 * HUGE, offset=offset),
            Op("write", (AT + PAGE,)),
            _advise(AT, 2 * HUGE, advice),
            _advise(AT, HUGE, MADV_COLLAPSE),
            Op("prctl", (f.PR_SET_THP_DISABLE, disabled, 0, 0, 0)),
            _advise(AT, HUGE, MADV_COLLAPSE),
            Op("read", (AT,)),
            _advise(AT, HUGE, MADV_DONTNEED),
            Op("read", (AT,)),
        ]
        for advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE)
        for offset in (0, PAGE)
        for disabled in (0, 1)
    )


@live
def test_a_guard_in_private_memory_ends_it() -> None:
    middle = AT + HUGE + 9 * PAGE
    all_follow(
        [
            Op("mmap", (AT, 3 * HUGE, 3, PRIVATE, 0)),
            *[Op("write", (AT + at * HUGE,)) for at in range(3)],
            *what,
            _advise(AT, 3 * HUGE, MADV_COLLAPSE),
        ]
        for what in ([], [_advise(middle, PAGE, MADV_GUARD_INSTALL)], [Op("read", (middle,))])
    )


@live
def test_a_process_without_huge_pages_but_those_that_are_advised() -> None:
    """What is asked for counts as advised, and what is huge already may be mapped so."""
    sequences = []
    for disabled, advised, shared in itertools.product((0, f.THP_DISABLE_EXCEPT_ADVISED), (False, True), (False, True)):
        disable = Op("prctl", (f.PR_SET_THP_DISABLE, 1, disabled, 0, 0))
        advise = [_advise(AT, HUGE, MADV_HUGEPAGE)] if advised else []
        made = Op("mmap", (AT, HUGE, 3, SHARED if shared else PRIVATE, 0))
        collapse = _advise(AT, HUGE, MADV_COLLAPSE)
        look = [Op("read", (AT + 5 * PAGE,)), Op("write", (AT + 6 * PAGE,))]
        sequences.append([made, disable, *advise, Op("write", (AT,)), collapse, *look])
        sequences.append([made, Op("write", (AT,)), disable, *advise, collapse, *look])
        sequences.append(
            [made, Op("write", (AT,)), collapse, disable, *advise, _advise(AT, HUGE, MADV_DONTNEED), *look]
        )
    all_follow(sequences)
