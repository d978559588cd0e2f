"""Each allocation failed in turn: in faults, in forks, while pages are held.  Nothing leaks, all counts are right."""

from collections.abc import Callable

import pytest

from vmalab.calls import Call
from vmalab.flags import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_PAGEOUT,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MADV_UNMERGEABLE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    UFFDIO_COPY,
    UFFDIO_MOVE,
    UFFDIO_REGISTER,
)
from vmalab.machine import KernelError, Machine, Process
from vmalab.pages.folio import PMD_ORDER
from vmalab.pages.holders import FixedBuffer, MemoryRegion, Pipe, Refused, access_process_vm
from vmalab.pages.memory import MADVISE, Memory, PageSettings
from vmalab.testing.ports import FailingPort
from vmalab.vma.area import File

PAGE = 4096
PMD = 1 << 21
POOL = 4


def machine() -> tuple[Machine, FailingPort, Memory]:
    settings = PageSettings()
    settings.thp = {4: MADVISE, 9: MADVISE}
    settings.swap_pages = 4096
    settings.hugetlb[PMD_ORDER] = POOL
    memory = Memory(settings)
    port = FailingPort()
    made = Machine(port=port, memory=memory)
    made.settings.hugepages = POOL
    return made, port, memory


def written(process: Process, pages: int = 8) -> int:
    addr = process.mmap(0, pages * PAGE)
    process.write(addr, b"old" * (pages * PAGE // 3))
    return addr


def huge(process: Process) -> int:
    addr = process.mmap(0, 2 * PMD) + PMD - 1 & -PMD
    process.madvise(addr, PMD, MADV_HUGEPAGE)
    process.write(addr, b"old")
    assert process.page(addr).folio is not None
    return addr


def fault(process: Process) -> None:
    addr = process.mmap(0, 2 * PMD)
    process.read(addr, 1)
    process.write(addr + PAGE - 2, b"text")
    process.madvise(addr, 2 * PMD, MADV_HUGEPAGE)
    process.write(addr + PMD + 5 * PAGE, b"text")


def fork_and_write(process: Process) -> None:
    addr, large = written(process), huge(process)
    child = process.fork()
    process.write(addr, b"new")
    child.write(addr + PAGE, b"new")
    process.write(large, b"new")
    assert child.read(addr, 3) == b"old"
    assert child.read(large, 3) == b"old"
    child.exit()


def fork_of_what_is_pinned(process: Process) -> None:
    addr, large = written(process), huge(process)
    regions = [MemoryRegion(process.mm, addr, 3 * PAGE)]
    try:
        regions.append(FixedBuffer(process.mm, large, PMD))
        child = process.fork()
        process.write(addr, b"new")
        assert regions[0].read()[:3] == b"new"
        child.exit()
    finally:
        for region in regions:
            region.close()


def files(process: Process) -> None:
    file = File("/file")
    file.size = 4 * PAGE
    private = process.mmap(0, 4 * PAGE, file=file, flags=MAP_PRIVATE)
    shared = process.mmap(0, 4 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS)
    process.read(private, 1)
    process.write(private + PAGE, b"own")
    process.write(shared, b"all")
    child = process.fork()
    assert child.read(shared, 3) == b"all"
    child.exit()


def held(process: Process) -> None:
    addr = process.mmap(0, 4 * PAGE)
    pipe = Pipe()
    try:
        pipe.vmsplice(process.mm, addr, 4 * PAGE)
        region = MemoryRegion(process.mm, addr, 4 * PAGE)
        process.write(addr, b"new")
        assert region.read()[:3] == b"new"
        region.close()
        access_process_vm(process.mm, addr, 3, b"dbg")
    finally:
        pipe.close()


def swapped(process: Process) -> None:
    addr = written(process)
    process.madvise(addr, 8 * PAGE, MADV_PAGEOUT)
    child = process.fork()
    child.write(addr, b"new")
    assert process.read(addr, 3) == b"old"
    child.exit()


def advised(process: Process) -> None:
    addr = huge(process)
    process.madvise(addr + PAGE, PAGE, MADV_DONTNEED)
    process.madvise(addr, PMD, MADV_COLLAPSE)
    process.madvise(addr, PMD, MADV_POPULATE_WRITE)
    process.madvise(addr + 8 * PAGE, 4 * PAGE, MADV_GUARD_INSTALL)
    process.munmap(addr + 32 * PAGE, 3 * PAGE)
    process.mremap(addr + 64 * PAGE, 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE)


def merged(process: Process) -> None:
    addr, large = written(process), huge(process)
    process.madvise(addr, 8 * PAGE, MADV_MERGEABLE)
    process.madvise(large, PMD, MADV_MERGEABLE)
    child = process.fork()
    assert process.machine.ksm_scan() > 0
    process.write(large + 3 * PAGE, b"new")
    child.madvise(large, 4 * PAGE, MADV_UNMERGEABLE)
    process.mremap(large, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE)
    child.exit()


def answered(process: Process) -> None:
    addr, large = process.mmap(0, 8 * PAGE), huge(process)
    number = process.userfaultfd(0)

    def tell(command: int, start: int, pages: int, **more: int | str) -> None:
        data: dict[str, int | str | list[int]] = {
            "uffd": number,
            "start": start,
            "len": pages * PAGE,
            "mode": 0,
            **more,
        }
        outcome = process.do(Call("ioctl", (number, command, 0), data=data))
        if outcome.result < 0:
            raise KernelError(outcome)

    tell(UFFDIO_REGISTER, addr, 8, mode=1)
    waiting = process.access(addr + PAGE)
    tell(UFFDIO_COPY, addr, 3, content=(b"page" * 3072).hex())
    assert not waiting.waits
    # A huge page is split where a part of it goes.
    tell(UFFDIO_MOVE, addr + 4 * PAGE, 2, src=large + PAGE)
    process.write(addr + 4 * PAGE, b"new")


def from_a_pool(process: Process) -> None:
    addr = process.mmap(0, 2 * PMD, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)
    shared = process.mmap(0, 2 * PMD, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB)
    process.write(addr, b"old")
    process.write(shared, b"all")
    child = process.fork()
    child.write(shared + PMD, b"all")
    process.write(addr, b"new")
    process.munmap(addr + PMD, PMD)
    process.mremap(addr, PMD, PMD, MREMAP_MAYMOVE | MREMAP_FIXED, 0x10000000)
    child.exit()


def moved(process: Process) -> None:
    addr, large = written(process), huge(process)
    under_way = [process.migrate(addr)]
    try:
        under_way.append(process.migrate(large))
        child = process.fork()
        # A huge page that is under way is split where a part of it goes.
        process.munmap(large + PAGE, PAGE)
        while under_way:
            under_way.pop().finish()
        child.write(addr, b"new")
        child.write(large, b"new")
        assert process.read(large, 3) == process.read(addr, 3) == b"old"
        child.exit()
    finally:
        for each in under_way:
            each.finish()


def collapsed(process: Process) -> None:
    """Shared memory becomes huge, is found by others, and is cut up."""
    addr = process.mmap(0x40000000, 2 * PMD, flags=MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED)
    process.write(addr + 3 * PAGE, b"old")
    process.write(addr + PMD, b"all")
    child = process.fork()
    process.madvise(addr, 2 * PMD, MADV_COLLAPSE)
    assert child.read(addr + 3 * PAGE, 3) == b"old"
    child.madvise(addr + 9 * PAGE, 7 * PAGE, MADV_REMOVE)
    child.write(addr + 9 * PAGE, b"new")
    child.madvise(addr, PMD, MADV_COLLAPSE)
    process.munmap(addr + PMD + PAGE, PAGE)
    assert process.read(addr + 9 * PAGE, 3) == b"new"
    child.exit()


SCENES = [
    *(fault, fork_and_write, fork_of_what_is_pinned, files, held, swapped, advised),
    *(merged, answered, from_a_pool, moved, collapsed),
]


@pytest.mark.parametrize("what", SCENES)
def test_each_allocation_fails_in_turn(what: Callable[[Process], None]) -> None:
    number = 0
    while True:
        made, port, memory = machine()
        process = made.process()
        port.arm(number)
        try:
            what(process)
            done = True
        except (KernelError, Refused):
            done = False
        assert number or done, "it works where nothing fails"
        failed = port.failed
        port.arm(0)
        made.validate()
        for each in list(made.processes.values()):
            each.exit()
        for cache in memory.caches():
            memory.drop_cache(cache)
        assert (memory.live, memory.resident, memory.swapped) == (0, 0, 0), f"after failure {number} ({failed})"
        made.validate()
        if number and not failed:
            break
        number += 1
    assert number > 5, "it allocates"
