"""Pools of huge pages: what is reserved, and who gets what, the same in the model and on the running kernel."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmalab import flags as f
from vmalab.calls import Call
from vmalab.fuzz.pool import POOL, huge_pages
from vmalab.live.agent import READ, WRITE, Agent, Step
from vmalab.machine import Machine, Process
from vmalab.pages.folio import PMD_ORDER
from vmalab.pages.memory import Memory, PageSettings
from vmalab.reason import YES
from vmalab.vma.area import HUGETLB_OPS, File

SIZE = 2 << 20
PAGES = 4
A, B, C, D = 0x10000000, 0x20000000, 0x30000000, 0x40000000
HUGE = f.MAP_ANONYMOUS | f.MAP_HUGETLB | f.MAP_FIXED
PRIVATE, SHARED = f.MAP_PRIVATE | HUGE, f.MAP_SHARED | HUGE
OVERCOMMIT = Path("/proc/sys/vm/nr_overcommit_hugepages")
NUMBERS = {"mmap": 9, "munmap": 11, "mremap": 25, "madvise": 28}
BUS = "SIGBUS"
Told = tuple[Any, ...]
"""What a step answers, and the pool then: free, reserved, surplus."""


def maps(who: int, at: int, count: int, flags: int = PRIVATE) -> Told:
    return who, "mmap", at, count * SIZE, 3, flags, 0xFFFFFFFF, 0


RESERVED: tuple[tuple[Told, Any, tuple[int, int, int]], ...] = (
    (maps(0, A, 2), A, (4, 2, 0)),
    ((0, "write", A), 0, (3, 1, 0)),
    (maps(0, B, 1, SHARED), B, (3, 2, 0)),
    (maps(0, C, 2), -errno.ENOMEM, (3, 2, 0)),
    (maps(0, C, 2, PRIVATE | f.MAP_NORESERVE), C, (3, 2, 0)),
    ((0, "write", C), 0, (2, 2, 0)),
    # What is free is promised to others.
    ((0, "write", C + SIZE), BUS, (2, 2, 0)),
    ((0, "fork"), 0, (2, 2, 0)),
    # A child has been promised nothing: it sees what its parent has, and gets nothing of its own.
    ((1, "read", A), 0, (2, 2, 0)),
    ((1, "write", A), BUS, (2, 2, 0)),
    ((1, "write", A + SIZE), BUS, (2, 2, 0)),
    # Its parent takes the page away from it, to write to it.
    ((0, "write", A), 0, (2, 2, 0)),
    ((1, "read", A), BUS, (2, 2, 0)),
    ((1, "write", B), 0, (1, 1, 0)),
    ((0, "read", B), 0, (1, 1, 0)),
    # What is moved keeps what it was promised.
    ((0, "mremap", A, 2 * SIZE, 2 * SIZE, f.MREMAP_MAYMOVE | f.MREMAP_FIXED, D), D, (1, 1, 0)),
    ((0, "write", D + SIZE), 0, (0, 0, 0)),
    ((0, "madvise", D + SIZE, SIZE, f.MADV_DONTNEED), 0, (1, 1, 0)),
    ((0, "munmap", D + SIZE, SIZE), 0, (1, 0, 0)),
    ((1, "exit"), 0, (1, 0, 0)),
    ((0, "munmap", C, 2 * SIZE), 0, (2, 0, 0)),
    ((0, "munmap", B, SIZE), 0, (3, 0, 0)),
    ((0, "munmap", D, SIZE), 0, (4, 0, 0)),
    # A part that was promised and not used.
    (maps(0, A, 3), A, (4, 3, 0)),
    ((0, "munmap", A + SIZE, SIZE), 0, (4, 2, 0)),
    ((0, "munmap", A, 3 * SIZE), 0, (4, 0, 0)),
)
BEYOND: tuple[tuple[Told, Any, tuple[int, int, int]], ...] = (
    (maps(0, A, 6), -errno.ENOMEM, (4, 0, 0)),
    (maps(0, A, 5), A, (5, 5, 1)),
    ((0, "write", A), 0, (4, 4, 1)),
    ((0, "munmap", A, SIZE), 0, (4, 4, 0)),
    ((0, "munmap", A, 5 * SIZE), 0, (4, 0, 0)),
    (maps(0, A, 5, PRIVATE | f.MAP_NORESERVE), A, (4, 0, 0)),
    *(((0, "write", A + number * SIZE), 0, (3 - number, 0, 0)) for number in range(4)),
    ((0, "write", A + 4 * SIZE), 0, (0, 0, 1)),
    ((0, "munmap", A, 5 * SIZE), 0, (4, 0, 0)),
)


PUNCHED: tuple[tuple[Told, Any, tuple[int, int, int]], ...] = (
    (maps(0, A, 3, SHARED), A, (4, 3, 0)),
    ((0, "fork"), 0, (4, 3, 0)),
    *(((0, "write", A), 0, (3, 2, 0)), ((1, "write", A + SIZE), 0, (2, 1, 0))),
    # A page that leaves the file is free, and promised to nobody; what nobody has touched stays promised.
    ((1, "madvise", A, SIZE, f.MADV_REMOVE), 0, (3, 1, 0)),
    ((1, "madvise", A + SIZE, 2 * SIZE, f.MADV_REMOVE), 0, (4, 1, 0)),
    ((0, "read", A), 0, (3, 1, 0)),
    ((0, "write", A + 2 * SIZE), 0, (2, 0, 0)),
    # Of a part it makes zeros.
    ((0, "madvise", A, 4096, f.MADV_REMOVE), 0, (2, 0, 0)),
    ((1, "exit"), 0, (2, 0, 0)),
    ((0, "munmap", A, 3 * SIZE), 0, (4, 0, 0)),
)


# Not for the kernel: it loses pages of this machine for good.
MOVED_IN_PART: tuple[tuple[Told, Any, tuple[int, int, int]], ...] = (
    (maps(0, A, 3), A, (4, 3, 0)),
    ((0, "write", A), 0, (3, 2, 0)),
    ((0, "mremap", A, SIZE, SIZE, f.MREMAP_MAYMOVE | f.MREMAP_FIXED, D), D, (3, 2, 0)),
    # What stays behind is promised nothing; nobody gets what it was promised.
    ((0, "write", A + SIZE), 0, (2, 2, 0)),
    ((0, "write", A + 2 * SIZE), BUS, (2, 2, 0)),
    ((0, "munmap", A, 3 * SIZE), 0, (3, 2, 0)),
    ((0, "munmap", D, SIZE), 0, (4, 2, 0)),
    (maps(0, A, 3), -errno.ENOMEM, (4, 2, 0)),
)


class Model:
    """A machine with a pool."""

    def __init__(self, overcommit: int) -> None:
        settings = PageSettings()
        settings.hugetlb[PMD_ORDER] = PAGES
        settings.hugetlb_overcommit[PMD_ORDER] = overcommit
        self.memory = Memory(settings)
        self.machine = Machine(memory=self.memory)
        self.machine.settings.hugepages = PAGES
        self.processes: list[Process] = [self.machine.process()]

    def do(self, who: int, what: str, *arguments: int) -> Any:
        process = self.processes[who]
        if what in ("read", "write"):
            return 0 if process.fault(arguments[0], what == "write") == YES else BUS
        if what == "fork":
            self.processes.append(process.fork())
            return 0
        if what == "exit":
            process.exit()
            return 0
        return process.do(Call(what, arguments)).result

    def pool(self) -> tuple[int, int, int]:
        self.machine.validate()
        memory = self.memory
        return (
            memory.hugetlb_free[PMD_ORDER],
            memory.hugetlb_reserved.get(PMD_ORDER, 0),
            memory.hugetlb_surplus.get(PMD_ORDER, 0),
        )


class Live:
    """The running kernel."""

    def __init__(self, agent: Agent, promised: int) -> None:
        self._agent = agent
        self._promised = promised
        """Pages that others have been promised and do not take."""

    def do(self, who: int, what: str, *arguments: int) -> Any:
        if what == "fork":
            return min(self._agent.fork(who, who + 1, report=0), 0)
        if what == "exit":
            self._agent.exit(who, who - 1)
            return 0
        number = {"read": READ, "write": WRITE, **NUMBERS}[what]
        (reply,) = self._agent.run([Step(number, arguments)], who, report=0)
        return BUS if reply.signal else reply.result if what in NUMBERS else 0

    def pool(self) -> tuple[int, int, int]:
        free, reserved, surplus = _pool()
        return free - self._promised, reserved - self._promised, surplus


def _pool() -> tuple[int, int, int]:
    """The pool of this machine: free, reserved, surplus."""
    found = {}
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        name, _, rest = line.partition(":")
        if name.startswith("HugePages_"):
            found[name] = int(rest)
    return found["HugePages_Free"], found["HugePages_Rsvd"], found["HugePages_Surp"]


def check(ground: Model | Live, steps: tuple[tuple[Told, Any, tuple[int, int, int]], ...]) -> None:
    for step, answer, pool in steps:
        assert (step, ground.do(*step), ground.pool()) == (step, answer, pool)


@pytest.mark.parametrize(
    ("steps", "overcommit"),
    [(RESERVED, 0), (BEYOND, 1), (PUNCHED, 0), (MOVED_IN_PART, 0)],
    ids=["reserved", "beyond the pool", "punched", "moved in part"],
)
def test_the_model(steps: Any, overcommit: int) -> None:
    check(Model(overcommit), steps)


def test_a_hole_takes_private_copies_along() -> None:
    """As seen on 6.18: what a private mapping has copied is gone, and it is promised a page again."""
    model = Model(0)
    process = model.processes[0]
    file = File("/memfd:huge", kind="hugetlb", ops=HUGETLB_OPS, private_ops=HUGETLB_OPS, huge_size=SIZE)
    file.size = 3 * SIZE
    process.mmap(A, 3 * SIZE, flags=f.MAP_SHARED | f.MAP_FIXED, file=file)
    process.mmap(B, SIZE, flags=f.MAP_PRIVATE | f.MAP_FIXED, file=file)
    assert model.pool() == (4, 4, 0)
    for addr in (A, A + SIZE, B):
        process.write(addr, b"x")
    assert model.pool() == (1, 1, 0)
    process.madvise(A, SIZE, f.MADV_REMOVE)
    assert model.pool() == (3, 2, 0)
    assert process.read(B, 1) == process.read(A, 1) == b"\0"
    assert model.pool() == (1, 1, 0)
    process.madvise(A + SIZE, 2 * SIZE, f.MADV_REMOVE)
    assert model.pool() == (2, 1, 0)
    process.write(A + 2 * SIZE, b"x")
    process.write(A + 2 * SIZE + 4096, b"y")
    process.madvise(A + 2 * SIZE, 4096, f.MADV_REMOVE)
    assert (process.read(A + 2 * SIZE, 1), process.read(A + 2 * SIZE + 4096, 1)) == (b"\0", b"y")
    assert model.pool() == (1, 0, 0)


@contextlib.contextmanager
def overcommitted(count: int) -> Iterator[None]:
    """So many pages more while the block runs."""
    before = OVERCOMMIT.read_text()
    OVERCOMMIT.write_text(str(count))
    try:
        yield
    finally:
        OVERCOMMIT.write_text(before)


def _why_not() -> str:
    """Why the kernel cannot be asked; empty if it can."""
    if not os.access(POOL, os.W_OK) or os.geteuid() != 0:
        return "the pool of huge pages cannot be set"
    free, reserved, _ = _pool()
    return "" if free == reserved else "the pool of huge pages is in use"


NOT_LIVE = _why_not()


@pytest.mark.skipif(bool(NOT_LIVE), reason=NOT_LIVE)
@pytest.mark.parametrize(
    ("steps", "overcommit"),
    [(RESERVED, 0), (BEYOND, 1), (PUNCHED, 0)],
    ids=["reserved", "beyond the pool", "punched"],
)
def test_the_kernel(steps: Any, overcommit: int) -> None:
    before = POOL.read_text(), OVERCOMMIT.read_text(), _pool()
    promised = before[2][1]
    with huge_pages(PAGES + promised), overcommitted(overcommit), Agent("none") as agent:
        check(Live(agent, promised), steps)
    assert (POOL.read_text(), OVERCOMMIT.read_text(), _pool()) == before
