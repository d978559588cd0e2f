"""process_madvise about another process: what it does there, and who may."""

import errno

import pytest

from vmalab import Machine, Process
from vmalab.calls import Call, Outcome
from vmalab.flags import MADV_COLD, MADV_DONTNEED, MADV_PAGEOUT
from vmalab.pages.memory import Memory, PageSettings

PAGE = 0x1000
AT = 0x10000000
FIXED = 0x32


def advise(caller: Process, target: int, advice: int, *ranges: int) -> Outcome:
    """Advise about ranges of another process: address, length, address, length, ..."""
    data: dict[str, int | str | list[int]] = {"pid": target, "ranges": list(ranges)}
    return caller.do(Call("process_madvise", (3, AT, len(ranges) // 2, advice, 0), data=data))


@pytest.fixture
def two() -> tuple[Process, Process]:
    """A process that may, and another one that has written to four pages."""
    settings = PageSettings()
    settings.swap_pages = 64
    machine = Machine(memory=Memory(settings))
    caller, target = machine.process(), machine.process()
    caller.limits.sys_nice = True
    target.mmap(AT, 4 * PAGE, flags=FIXED)
    for page in range(4):
        target.write(AT + page * PAGE, b"x")
    return caller, target


def test_pages_of_the_other_go_to_swap(two: tuple[Process, Process]) -> None:
    caller, target = two
    caller.mmap(AT, 4 * PAGE, flags=FIXED)
    caller.write(AT, b"y")
    assert advise(caller, target.pid, MADV_PAGEOUT, AT, 2 * PAGE).result == 2 * PAGE
    assert [target.page(AT + page * PAGE).slot is not None for page in range(4)] == [True, True, False, False]
    assert caller.page(AT).slot is None
    assert target.read(AT, 1) == b"x"


def test_a_hole_ends_it_and_what_was_done_counts(two: tuple[Process, Process]) -> None:
    caller, target = two
    target.munmap(AT + 2 * PAGE, PAGE)
    outcome = advise(caller, target.pid, MADV_PAGEOUT, AT, PAGE, AT + PAGE, 3 * PAGE, AT, PAGE)
    assert outcome.result == PAGE
    assert target.page(AT + 3 * PAGE).slot is not None, "behind the hole it goes on"


def test_who_may(two: tuple[Process, Process]) -> None:
    caller, target = two
    assert advise(caller, target.pid, MADV_DONTNEED, AT, PAGE).result == -errno.EINVAL
    caller.limits.sys_nice = False
    assert advise(caller, target.pid, MADV_COLD, AT, PAGE).result == -errno.EPERM
    caller.limits.sys_ptrace = False
    target.limits.sys_ptrace = False
    target.limits.sys_rawio = True
    assert advise(caller, target.pid, MADV_COLD, AT, PAGE).result == -errno.EACCES
    caller.limits.perfmon = True
    assert advise(caller, target.pid, MADV_COLD, AT, PAGE).result == -errno.EPERM
    assert not advise(caller, 99, MADV_COLD, AT, PAGE).known, "nobody knows that process"
