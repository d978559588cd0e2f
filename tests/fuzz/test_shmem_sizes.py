"""The sizes that a fault gives shared memory, in lockstep, with settings of this machine that permit some."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.test_collapse import AT, HUGE, MEMFD, OF_FILE, PAGE, PRIVATELY, SHARED, SHORT, all_follow, follow
from tests.fuzz.test_lockstep import REASON
from vmalab.flags import MADV_COLLAPSE, MADV_DONTNEED, MADV_HUGEPAGE, MADV_REMOVE
from vmalab.fuzz.ops import FIRST_MADE, Op
from vmalab.live.facts import THP
from vmalab.live.settings import changed_settings
from vmalab.pages.folio import PMD_ORDER

TOP = THP / "shmem_enabled"
SIZED = THP / "hugepages-64kB/shmem_enabled"
PMD_SIZED = THP / "hugepages-2048kB/shmem_enabled"


def _why_not() -> str:
    missing = next((path for path in (TOP, SIZED, PMD_SIZED) if not os.access(path, os.W_OK)), None)
    return REASON or ("" if missing is None else f"{missing} cannot be set")


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture(params=["inherit", "never"])
def advised(request: pytest.FixtureRequest) -> Iterator[str]:
    """Memory that is advised may have 64 KiB, and 2 MiB where the parameter says so: nobody else's is concerned."""
    values: dict[Path, str] = {TOP: "advise", SIZED: "advise", PMD_SIZED: request.param}
    with changed_settings(values):
        yield request.param


def _shared(length: int = 2 * HUGE, at: int = AT) -> list[Op]:
    return [Op("mmap", (at, length, 3, SHARED, 0)), Op("madvise", (at, length, MADV_HUGEPAGE))]


def _of_memfd(file: int, flags: int, offset: int = 0) -> list[Op]:
    return [Op("mmap", (AT, HUGE, 3, flags, offset), 0, file), Op("madvise", (AT, HUGE, MADV_HUGEPAGE))]


def test_a_fault_allocates_what_the_settings_and_the_place_permit(advised: str) -> None:
    touch = [Op("write", (AT + at * PAGE,)) for at in (5, 40, 300, 511)]
    read = [Op("read", (AT + at * PAGE,)) for at in (5, 40, 300, 511)]
    cut = [Op("madvise", (AT + 41 * PAGE, PAGE, MADV_REMOVE)), *touch]
    again = [Op("madvise", (AT, HUGE, MADV_DONTNEED)), *read]
    all_follow(
        [
            [Op("mmap", (AT, HUGE, 3, SHARED, 0)), *touch],
            [*_shared(), *touch, *cut, *again, Op("madvise", (AT, HUGE, MADV_COLLAPSE)), *read],
            [*_shared(), *read, *cut],
            [*_shared(HUGE - PAGE), *touch[:3], *again],
            [*_shared(100 * PAGE, AT + PAGE), *touch[:2], *cut],
            [Op("mmap", (AT, HUGE, 3, SHARED, 0)), touch[1], *_shared()[1:], *touch, *again],
            [*_of_memfd(MEMFD, OF_FILE), *touch, *cut, *again],
            [*_of_memfd(MEMFD, OF_FILE, PAGE), *touch, *again],
            [*_of_memfd(MEMFD, PRIVATELY), *touch, *again, *read],
            [*_of_memfd(SHORT, OF_FILE), Op("write", (AT + 20 * PAGE,)), Op("read", (AT + 30 * PAGE,)), *cut],
        ]
    )


def test_a_segment_has_no_settings_for_each_size(advised: str) -> None:
    ops = [
        Op("shmget", (0, 2 * HUGE, 0o1600), 0, FIRST_MADE),
        Op("shmat", (AT, 0), 0, FIRST_MADE),
        Op("madvise", (AT, 2 * HUGE, MADV_HUGEPAGE)),
        Op("write", (AT + 5 * PAGE,)),
        Op("read", (AT + HUGE,)),
    ]
    for lockstep in follow([ops]):
        folio = lockstep.processes[0].page(AT).folio
        assert folio is not None
        assert folio.order == PMD_ORDER


def test_a_userfaultfd_keeps_pages_single(advised: str) -> None:
    ops = [
        Op("userfaultfd", (0,), 0, FIRST_MADE),
        *_shared(),
        Op("register", (AT, HUGE, 1), 0, FIRST_MADE),
        Op("write", (AT,)),
        Op("fill", (AT, PAGE, 0, 0), 0, FIRST_MADE),
        Op("write", (AT + HUGE,)),
        Op("unregister", (AT, HUGE), 0, FIRST_MADE),
        Op("write", (AT + 3 * PAGE,)),
        Op("write", (AT + 100 * PAGE,)),
    ]
    all_follow([ops])
