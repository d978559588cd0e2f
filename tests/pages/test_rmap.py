"""The reverse map: what it finds is what a walk over all VMAs of all processes finds, whatever has happened to them."""

import contextlib
import random

import pytest

from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.flags import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
)
from vmalab.machine import KernelError, Machine, Process
from vmalab.pages.memory import Memory, PageSettings
from vmalab.pages.rmap import Intervals
from vmalab.vma.area import SHMEM_OPS, AnonVma, File, Vma

AT = 0x10000000
PAGES = 40


def _step(rng: random.Random, machine: Machine, file: File) -> None:
    process: Process = rng.choice(list(machine.processes.values()))
    addr = AT + rng.randrange(PAGES) * PAGE_SIZE
    length = rng.choice((1, 2, 5, 12)) * PAGE_SIZE
    fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    steps = (
        lambda: process.touch(addr),
        lambda: process.touch(addr, write=False),
        lambda: process.mmap(addr, length, 3, fixed),
        lambda: process.mmap(addr, length, 3, rng.choice((MAP_PRIVATE, MAP_SHARED)) | MAP_FIXED, file, addr % 0x100000),
        lambda: process.munmap(addr, length),
        lambda: process.mprotect(addr, length, rng.choice((1, 3))),
        lambda: process.madvise(addr, length, MADV_DONTNEED),
        lambda: process.mremap(addr, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, AT + rng.randrange(80) * PAGE_SIZE),
        lambda: process.fork() if len(machine.processes) < 5 else process.exit(),
    )
    with contextlib.suppress(KernelError):
        rng.choice(steps)()


def _walk(machine: Machine) -> list[Vma]:
    return [vma for process in machine.processes.values() for vma in process.vmas()]


def _overlaps(vma: Vma, first: int, last: int) -> bool:
    return vma.pgoff < last and vma.pgoff + vma.pages() > first


@pytest.mark.parametrize("seed", range(12))
def test_it_finds_what_a_walk_over_all_vmas_finds(seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine(memory=Memory())
    memory = machine.memory
    assert memory is not None
    file = File("/file", "00:01", 7, ops=SHMEM_OPS, private_ops=SHMEM_OPS)
    machine.process()
    for number in range(250):
        if not machine.processes:
            machine.process()
        _step(rng, machine, file)
        if number % 10:
            continue
        machine.validate()
        vmas = _walk(machine)
        first = rng.choice((AT >> 12, 0)) + rng.randrange(80)
        last = first + rng.randrange(1, 20)
        anon_vmas: set[AnonVma] = {anon_vma for vma in vmas for anon_vma in vma.chain}
        for anon_vma in anon_vmas:
            found = memory.rmap.overlapping(anon_vma, first, last)
            expected = [vma for vma in vmas if vma.has_in_chain(anon_vma) and _overlaps(vma, first, last)]
            assert sorted(map(id, found)) == sorted(map(id, expected))
        mapped = memory.cache_of(file).mappings.overlapping(first, last)
        tables = {id(process.mm): memory.tables(process.mm) for process in machine.processes.values()}
        for vma in vmas:
            has_pages = any(
                (folio := tables[id(vma.mm)].entry(addr)[0]) is not None and getattr(folio, "cache", None) is not None
                for addr in range(vma.start, vma.end, PAGE_SIZE)
            )
            if vma.file is file and has_pages and _overlaps(vma, first, last):
                assert any(each is vma for each in mapped)
        assert all(vma.file is file and _overlaps(vma, first, last) for vma in mapped)


def test_a_folio_is_split_wherever_it_is_mapped() -> None:
    """In the parent at one place, in the child at two others, of which one was moved."""
    settings = PageSettings()
    machine = Machine(memory=Memory(settings))
    memory = machine.memory
    assert memory is not None
    parent = machine.process()
    parent.mmap(AT, PMD_SIZE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    parent.madvise(AT, PMD_SIZE, MADV_HUGEPAGE)
    parent.write(AT, b"huge")
    parent.write(AT + 5 * PAGE_SIZE, b"other")
    child = parent.fork()
    child.mremap(AT, 4 * PAGE_SIZE, 4 * PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, AT + 0x1000000)
    parent.mprotect(AT, PAGE_SIZE, 1)
    folio = parent.page(AT).folio
    assert folio is not None
    assert folio is child.page(AT + 0x1000000).folio
    assert memory.split_folio(folio)
    part = parent.page(AT).folio
    assert part is child.page(AT + 0x1000000).folio
    assert (part.order, part.mapcount(), part.content(0)) == (0, 2, b"huge")  # type: ignore[union-attr]
    other = parent.page(AT + 5 * PAGE_SIZE).folio
    assert other is child.page(AT + 5 * PAGE_SIZE).folio is not memory.zero
    machine.validate()
    assert memory.resident == 2, "all others hold zeros"


def test_what_is_freed_is_forgotten() -> None:
    machine = Machine(memory=Memory())
    process = machine.process()
    process.mmap(AT, PAGES * PAGE_SIZE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    process.touch(AT)
    first = process.vmas()[0].anon_vma
    assert first is not None
    for _ in range(200):
        process.mprotect(AT + PAGE_SIZE, PAGE_SIZE, 1)
        process.mprotect(AT + PAGE_SIZE, PAGE_SIZE, 3)
    assert machine.memory is not None
    known: Intervals = machine.memory.rmap._anon[first]
    assert len(known._known) < 40
    for _ in range(300):
        process.mmap(AT, PAGE_SIZE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
        process.touch(AT)
        process.munmap(AT, PAGES * PAGE_SIZE)
    assert len(machine.memory.rmap._anon) < 130
