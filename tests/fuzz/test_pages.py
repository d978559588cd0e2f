"""Lockstep below the VMAs: what pagemap shows, contents, and who shares a frame."""

import itertools

import pytest

from tests.fuzz.test_lockstep import live, whole
from vmalab.flags import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MAP_NONBLOCK,
    UFFD_FEATURE_WP_ASYNC,
)
from vmalab.fuzz.campaign import Options, Runner
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.pages.folio import DIRTY, Folio
from vmalab.pages.memory import NEVER
from vmalab.syscalls import shm

AT = 0x10000000
PAGE = 0x1000
PRIVATE = 0x32
SHARED = 0x31


@live
def test_runs_without_a_difference() -> None:
    with Runner(Options(pages=True)) as runner:
        for seed in (*range(7001, 7004), *range(7005, 7012)):
            run = runner.one(seed)
            assert run.divergence is None, f"seed {seed}: {run.divergence}"
            assert run.steps > 100


@live
def test_known_sequences() -> None:
    ops = [
        Op("mmap", (AT, 8 * PAGE, 3, PRIVATE, 0)),
        Op("write", (AT,)),
        Op("write", (AT,)),
        Op("read", (AT,)),
        Op("read", (AT + 4 * PAGE,)),
        Op("fork"),
        Op("write", (AT,), 1),
        Op("read", (AT,), 0),
        Op("exit", (), 1),
        Op("write", (AT,)),
        Op("madvise", (AT + 2 * PAGE, PAGE, MADV_GUARD_INSTALL)),
        Op("write", (AT + 2 * PAGE,)),
        Op("mremap", (AT, 4 * PAGE, 4 * PAGE, 3, AT + 0x100000)),
        Op("read", (AT + 0x100000,)),
        Op("madvise", (AT + 0x100000, PAGE, MADV_DONTNEED)),
        Op("mmap", (AT + 0x200000, 8 * PAGE, 3, SHARED, 0)),
        Op("write", (AT + 0x200000,)),
        Op("fork"),
        Op("write", (AT + 0x200000,), 1),
        Op("read", (AT + 0x200000,)),
        Op("madvise", (AT + 0x200000, PAGE, MADV_REMOVE), 1),
        Op("read", (AT + 0x200000,)),
        Op("madvise", (AT + 0x200000, 8 * PAGE, MADV_PAGEOUT)),
    ]
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(ops)
        assert found is None, str(found)
        assert lockstep.steps == len(ops) + 1


@live
@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("written", [True, False])
def test_collapse(locked: bool, written: bool) -> None:
    """Locked memory becomes huge as well; memory that was never written to does not."""
    ops = [
        Op("mmap", (AT, 0x400000, 3, PRIVATE, 0)),
        Op("write" if written else "read", (AT,)),
        Op("mlock", (AT, 0x200000) if locked and written else (AT, 0)),
        Op("madvise", (AT, 0x200000, MADV_COLLAPSE)),
    ]
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(ops)
        assert found is None, str(found)
        assert (lockstep.processes[0].page(AT + PAGE).folio is not None) == written


@live
@pytest.mark.parametrize("first", [(), ("write",), ("write", "discard")])
def test_collapse_ends_where_there_is_no_page_table(first: tuple[str, ...]) -> None:
    huge = 0x200000
    steps = {"write": Op("write", (AT,)), "discard": Op("madvise", (AT, PAGE, MADV_DONTNEED))}
    ops = [
        Op("mmap", (AT, 3 * huge, 3, PRIVATE, 0)),
        *[steps[name] for name in first],
        Op("write", (AT + huge,)),
        Op("madvise", (AT, 3 * huge, MADV_COLLAPSE)),
    ]
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(ops)
        assert found is None, str(found)
        assert (lockstep.processes[0].page(AT + huge + PAGE).folio is not None) == bool(first)


@live
def test_page_tables_go_when_nothing_is_mapped_there_any_more() -> None:
    """A page table that a neighbour still needs keeps the next page from being a huge one."""
    huge = 0x200000
    ops = [
        Op("mmap", (AT, huge, 3, PRIVATE, 0)),
        Op("madvise", (AT, huge, MADV_HUGEPAGE)),
        Op("mmap", (AT, huge // 2, 3, PRIVATE, 0)),
        Op("write", (AT,)),
        Op("munmap", (AT, huge // 2)),
        Op("mmap", (AT, huge // 2, 3, PRIVATE, 0)),
        Op("madvise", (AT, huge, MADV_HUGEPAGE)),
        Op("write", (AT,)),
        Op("munmap", (AT, huge)),
        Op("mmap", (AT, huge, 3, PRIVATE, 0)),
        Op("madvise", (AT, huge, MADV_HUGEPAGE)),
        Op("write", (AT,)),
    ]
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(ops[:8])
        assert found is None, str(found)
        assert lockstep.processes[0].page(AT + PAGE).folio is None
        found = lockstep.run(ops[8:])
        assert found is None, str(found)
        assert lockstep.processes[0].page(AT + PAGE).folio is not None


@live
@pytest.mark.parametrize("flags", [0, MAP_NONBLOCK])
def test_remap_file_pages_makes_the_range_present_unless_told_otherwise(flags: int) -> None:
    ops = [
        Op("mmap", (AT, 4 * PAGE, 1, SHARED, 0)),
        Op("remap_file_pages", (AT, PAGE, 0, 2, flags)),
    ]
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(ops)
        assert found is None, str(found)
        assert (lockstep.processes[0].page(AT).folio is None) == bool(flags)


@whole
def test_a_model_with_another_rule_is_found() -> None:
    """Without huge pages in the model, the kernel's show."""
    ops = [
        Op("mmap", (AT, 0x400000, 3, PRIVATE, 0)),
        Op("madvise", (AT, 0x400000, MADV_HUGEPAGE)),
        Op("write", (AT,)),
    ]
    with Lockstep(pages=True) as lockstep:
        assert lockstep.run(ops) is None
    with Lockstep(pages=True) as lockstep:
        assert lockstep.machine.memory is not None
        lockstep.machine.memory.settings.thp = {9: NEVER}
        found = lockstep.run(ops)
        assert found is not None
        assert found.field == f"page {AT + PAGE:x}"


def _private(pages: int) -> list[Op]:
    """Pages that are written to, and shared with a child."""
    return [
        Op("mmap", (AT, pages * PAGE, 3, PRIVATE, 0)),
        *[Op("write", (AT + at * PAGE,)) for at in range(pages)],
        Op("fork"),
    ]


@whole
@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("content", f"contents at {AT:x}"),
        ("count", f"map count of page {AT:x}"),
        ("table", f"PAGEMAP_SCAN of page {AT + 0x200000:x}"),
        ("cache", f"mincore at {AT + 0x400000:x}"),
    ],
)
def test_what_pagemap_does_not_show_is_found(what: str, shown: str) -> None:
    """At the end of a sequence all is looked at: a model that was changed behind its back differs."""
    with Lockstep(pages=True) as lockstep:
        assert lockstep.run(_private(2)) is None
        process, memory = lockstep.processes[0], lockstep.machine.memory
        assert memory is not None
        folio = process.page(AT).folio
        assert folio is not None
        at = AT + 0x400000
        if what == "content":
            folio.write(0, 0, b"\x07")
        elif what == "count":
            # In a third address space nobody looks.
            folio.mapped += 1
        elif what == "table":
            assert lockstep.run([Op("mmap", (AT, 0x202000, 3, PRIVATE, 0)), Op("write", (AT,))]) is None
            assert memory.leaf_for(memory.tables(process.mm), AT + 0x200000) is not None
        else:
            assert lockstep.run([Op("mmap", (at, 2 * PAGE, 3, SHARED, 0)), Op("write", (at + PAGE,))]) is None
            vma = process.mm.vma_lookup(at)
            assert vma is not None
            assert vma.file is not None
            cache = memory.cache_of(vma.file)
            stray = Folio(0, DIRTY)
            memory.insert(cache, stray, 0)
        found = lockstep.run([])
        assert found is not None
        assert found.field == shown
        if what == "count":
            folio.mapped -= 1
        elif what == "cache":
            cache.remove(stray)


@live
def test_what_was_compared_is_counted() -> None:
    ops = [*_private(3), Op("read", (AT,), 1)]
    with Runner(Options(pages=True)) as runner:
        lockstep, found = runner.run(lambda it: iter(ops))
        assert found is None, str(found)
        views = lockstep.page_views
        assert views is not None
        assert {"pagemap", "PAGEMAP_SCAN", "mincore", "contents"} <= set(views.compared) | set(views.missing)
        assert views.missing["soft-dirty"].startswith(("the kernel is not configured", "no call of a run"))


@live
@pytest.mark.parametrize("advice", [MADV_PAGEOUT, MADV_COLD, MADV_FREE, MADV_DONTNEED, MADV_COLLAPSE])
@pytest.mark.parametrize("pages", [1, 256, 512, 513])
def test_a_huge_page_is_cut_up_as_on_the_kernel(advice: int, pages: int) -> None:
    """Advice for a part of a huge page and for all of it; what is shared; what moves; the huge page of zeros."""
    huge = 0x200000
    ops = [
        Op("mmap", (AT, 3 * huge, 3, PRIVATE, 0)),
        Op("madvise", (AT, 3 * huge, MADV_HUGEPAGE)),
        Op("write", (AT,)),
        Op("write", (AT + huge + 5 * PAGE,)),
        Op("read", (AT + 2 * huge,)),
        Op("madvise", (AT, pages * PAGE, advice)),
        Op("write", (AT + 3 * PAGE,)),
        Op("fork"),
        Op("madvise", (AT + huge, pages * PAGE, advice), 1),
        Op("write", (AT + huge,), 1),
        Op("mremap", (AT + huge, huge, huge, 3, AT + 0x1000000)),
        Op("mremap", (AT, 2 * PAGE, 2 * PAGE, 3, AT + 0x1400000)),
        Op("munmap", (AT + 2 * huge, 7 * PAGE)),
        Op("mprotect", (AT + 0x1000000 + PAGE, PAGE, 1)),
        Op("exit", (), 1),
        Op("write", (AT + 0x1000000,)),
    ]
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(ops)
        assert found is None or lockstep.is_disturbed(), str(found)


@live
def test_a_page_table_goes_where_it_is_discarded_whole() -> None:
    """Not where a part of its range is another VMA's; and one for a file's page comes with the page."""
    huge = 0x200000
    ops = [
        Op("mmap", (AT + PAGE, 3 * huge - PAGE, 3, PRIVATE, 0)),
        Op("write", (AT + huge,)),
        Op("write", (AT + 2 * huge,)),
        Op("madvise", (AT + huge, PAGE, MADV_HUGEPAGE)),
        Op("madvise", (AT + huge, 2 * huge, MADV_DONTNEED)),
        Op("madvise", (AT + 2 * huge, huge, MADV_HUGEPAGE)),
        Op("write", (AT + huge + 2 * PAGE,)),
        Op("write", (AT + 2 * huge,)),
    ]
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(ops)
        assert found is None or lockstep.is_disturbed(), str(found)


@live
@pytest.mark.parametrize("kind", [PRIVATE, SHARED])
@pytest.mark.parametrize("mode", [1, 2, 3, 4])
@pytest.mark.parametrize("features", [0, UFFD_FEATURE_WP_ASYNC])
def test_what_a_scan_says_of_memory_that_was_never_touched(features: int, mode: int, kind: int) -> None:
    """Where it is registered for write protection, that it is written to."""
    ops = [
        Op("userfaultfd", (features,), 0, 17),
        Op("mmap", (AT, 0x600000, 3, kind, 0)),
        Op("write", (AT + 0x4FF000,)),
        Op("register", (AT, 0x500000, mode), 0, 17),
    ]
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(ops)
        assert found is None, str(found)


@whole
def test_a_frame_that_is_shared_on_one_side_alone_is_found_at_the_second_look_too() -> None:
    with Lockstep(pages=True) as lockstep:
        assert lockstep.run(_private(2)) is None
        process, memory = lockstep.processes[0], lockstep.machine.memory
        assert memory is not None
        leaf = memory.tables(process.mm).leaf(AT)
        assert leaf is not None
        pages = leaf.pages[:2]
        leaf.pages[:2] = pages[::-1]
        found = lockstep.run([Op("read", (AT,))])
        leaf.pages[:2] = pages
        assert found is not None
        assert "another frame than" in found.model + found.kernel


@live
@pytest.mark.parametrize("kind", [PRIVATE, SHARED])
def test_page_tables_move_whole_where_nothing_is_in_the_way(kind: int) -> None:
    """Also where the range begins within one: the rest of it is taken along, if nothing is mapped there."""
    source, goal = 0x40006000, 0x50006000
    with Runner(Options(pages=True)) as runner:
        for beside, length in itertools.product(((), (source,), (goal,)), (0x1F9000, 0x1FA000, 0x3FA000)):
            ops = [Op("mmap", (source, length, 3, kind, 0)), Op("write", (source + PAGE,))]
            ops += [Op("mmap", (at & -0x200000, PAGE, 1, PRIVATE, 0)) for at in beside]
            ops += [Op("mremap", (source, length, length, 7, goal)), Op("write", (source + 3 * PAGE,))]
            _, found = runner.run(lambda _, ops=ops: iter(ops))  # type: ignore[misc]
            assert found is None, str(found)


@live
@pytest.mark.parametrize("command", [shm.LOCK, shm.UNLOCK])
def test_a_locked_segment_stays_in_memory(command: int) -> None:
    """Also what is mapped without a lock, and advised away."""
    with Lockstep(pages=True) as lockstep:
        found = lockstep.run(
            [
                Op("shmat", (AT, 0), 0, 1),
                Op("write", (AT + PAGE,)),
                Op("shmctl", (command, 0), 0, 1),
                Op("madvise", (AT + PAGE, PAGE, MADV_PAGEOUT)),
                Op("read", (AT + PAGE,)),
            ]
        )
        assert found is None, str(found)
