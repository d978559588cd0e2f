"""Writes to /proc/PID/clear_refs: referenced pages as on the running kernel, soft-dirty ones as the sources say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.calls import Call
from vmalab.errors import VmalabError
from vmalab.machine import Machine, Process
from vmalab.pages.clear_refs import (
    CLEAR_REFS_ALL,
    CLEAR_REFS_ANON,
    CLEAR_REFS_MAPPED,
    CLEAR_REFS_SOFT_DIRTY,
)
from vmalab.pages.folio import HUGETLB, PMD_ORDER
from vmalab.pages.holders import FixedBuffer, access_process_vm
from vmalab.pages.memory import ALWAYS, Memory, PageSettings
from vmalab.pages.residency import PAGE_IS_SOFT_DIRTY, page_categories
from vmalab.vma.area import File

A, B, PAGE = 0x10000000, 0x20000000, PAGE_SIZE
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED
ANONYMOUS = 0
MEMFD = 1
STEPS: tuple[tuple[str | int, ...], ...] = (
    ("map", ANONYMOUS),
    *(("write", 0), ("write", 1), ("write", 2), ("write", 3)),
    *(("clear", CLEAR_REFS_ALL), ("read", 0), ("clear", CLEAR_REFS_MAPPED), ("clear", CLEAR_REFS_ANON)),
    *(("write", 1), ("advise", 1, f.MADV_COLD), ("read", 6), ("look", 2), ("clear", CLEAR_REFS_ALL)),
    *(("read", 0), ("read", 1), ("fork", 0), ("clear", CLEAR_REFS_ANON), ("unmap", 0)),
    *(("map", MEMFD), ("write", 0), ("read", 1), ("clear", CLEAR_REFS_ANON), ("clear", CLEAR_REFS_MAPPED)),
    # What was referenced when it left the page tables is so when it comes back; what comes with it is as well.
    *(("read", 0), ("unmap", 0), ("map", MEMFD), ("read", 1), ("clear", CLEAR_REFS_ALL)),
)


def in_model() -> list[int]:
    """How many pages are referenced after each step."""
    machine = Machine(memory=Memory())
    process = machine.process()
    memfd = File("/memfd:pages", "00:01", 7, kind="shmem")
    memfd.size = 8 * PAGE
    found = []
    for verb, *args in STEPS:
        at = A + int(args[0]) * PAGE
        seen = process
        if verb == "map":
            kind = f.MAP_SHARED | f.MAP_FIXED if args[0] == MEMFD else FIXED
            process.mmap(A, 8 * PAGE, flags=kind, file=memfd if args[0] == MEMFD else None)
        elif verb == "unmap":
            process.munmap(A, 8 * PAGE)
        elif verb in ("write", "read"):
            process.touch(at, write=verb == "write")
        elif verb == "advise":
            process.madvise(at, PAGE, int(args[1]))
        elif verb == "look":
            access_process_vm(process.mm, at, 1, force=False)
        elif verb == "clear":
            process.clear_refs(int(args[0]))
        else:
            seen = process.fork()
        found.append(sum(seen.page(A + each * PAGE).referenced for each in range(8)) if seen.vmas() else -1)
    return found


def test_referenced_pages_are_those_of_the_kernel() -> None:
    """The same steps in the model and on this kernel, which tells how much of a VMA is Referenced."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the kernel has no /proc/PID/clear_refs")
    if not os.access("/proc/self/smaps", os.R_OK):
        pytest.skip("/proc/PID/smaps cannot be read")
    program = Path(__file__).with_name("clear_refs_program.py")
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(STEPS)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    model, kernel = in_model(), json.loads(done.stdout)
    assert list(zip(STEPS, model, strict=True)) == list(zip(STEPS, kernel, strict=True))


# -- soft-dirty ---------------------------------------------------------------------------------------------


def tracking(settings: PageSettings | None = None) -> Process:
    """A process of a machine that tracks what is written to."""
    machine = Machine(swap_pages=1 << 16, memory=Memory(settings))
    machine.settings.soft_dirty = f.VM_SOFTDIRTY
    return machine.process()


def dirty(process: Process, addr: int = A, pages: int = 8) -> list[int]:
    """Which pages are soft-dirty, by number."""
    return [number for number in range(pages) if process.page(addr + number * PAGE).soft_dirty]


def cleared(settings: PageSettings | None = None, pages: int = 8) -> Process:
    """A process with memory all of which was written to, and is not soft-dirty any more."""
    process = tracking(settings)
    process.mmap(A, pages * PAGE, flags=FIXED)
    for number in range(pages):
        process.touch(A + number * PAGE)
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    return process


def test_a_new_mapping_is_soft_dirty_all_over() -> None:
    process = tracking()
    process.mmap(A, 8 * PAGE, flags=FIXED)
    assert dirty(process) == list(range(8)), "also where no page is"
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    assert not dirty(process)
    assert not process.vmas()[0].flags & f.VM_SOFTDIRTY


def test_writes_are_noticed_and_reads_are_not() -> None:
    process = cleared()
    assert not dirty(process)
    assert not process.page(A).writable, "the next write is a fault"
    process.touch(A, write=False)
    process.write(A + PAGE, b"new")
    assert dirty(process) == [1]
    vma = process.vmas()[0]
    tables = process._memory().tables(process.mm)
    scanned = [page_categories(tables, vma, A + at * PAGE) & PAGE_IS_SOFT_DIRTY for at in range(2)]
    assert scanned == [0, PAGE_IS_SOFT_DIRTY]


def test_the_first_write_to_a_page_is_noticed() -> None:
    process = tracking()
    process.mmap(A, 8 * PAGE, flags=FIXED)
    process.touch(A, write=False)
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    process.touch(A)
    process.touch(A + 3 * PAGE)
    process.touch(A + 4 * PAGE, write=False)
    assert dirty(process) == [0, 3]


def test_mprotect_does_not_hide_a_write() -> None:
    """Without soft-dirty what is exclusive becomes writable at once; here a write must come as a fault."""
    process = cleared()
    process.write(A + PAGE, b"new")
    process.mprotect(A, 8 * PAGE, f.PROT_READ)
    process.mprotect(A, 8 * PAGE, f.PROT_READ | f.PROT_WRITE)
    assert [process.page(A + at * PAGE).writable for at in range(3)] == [False, True, False]
    process.write(A + 2 * PAGE, b"new")
    assert dirty(process) == [1, 2]


def test_a_debugger_does_not_write_unnoticed() -> None:
    process = cleared()
    process.mprotect(A, 8 * PAGE, f.PROT_READ)
    access_process_vm(process.mm, A + PAGE, 3, b"new")
    assert dirty(process) == [1]
    assert process.read(A + PAGE, 3) == b"new"
    assert not process.page(A + PAGE).writable


def test_it_goes_to_swap_and_comes_back() -> None:
    settings = PageSettings()
    settings.swap_pages = 64
    process = cleared(settings)
    process.write(A, b"new")
    process.madvise(A, 8 * PAGE, f.MADV_PAGEOUT)
    assert process.page(A).slot is not None
    assert dirty(process) == [0]
    for number in range(3):
        process.touch(A + number * PAGE, write=False)
    assert [process.page(A + at * PAGE).writable for at in range(2)] == [True, False]
    process.touch(A + 2 * PAGE)
    process.touch(A + 3 * PAGE)
    assert dirty(process) == [0, 2, 3]
    process.madvise(A, PAGE, f.MADV_PAGEOUT)
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    assert not dirty(process), "in swap as well"


def test_fork_passes_it_on() -> None:
    process = cleared()
    process.write(A + PAGE, b"new")
    child = process.fork()
    assert dirty(process) == dirty(child) == [1]
    process.write(A + 2 * PAGE, b"new")
    child.write(A + 3 * PAGE, b"new")
    assert (dirty(process), dirty(child)) == ([1, 2], [1, 3])


def test_what_is_copied_for_a_pin_is_new() -> None:
    process = cleared()
    buffer = FixedBuffer(process.mm, A + PAGE, PAGE)
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    assert dirty(process) == [1], "what a device may write to stays writable and soft-dirty"
    assert process.page(A + PAGE).writable
    child = process.fork()
    assert dirty(child) == [1]
    buffer.close()


def test_mremap_marks_what_it_moves() -> None:
    process = cleared()
    process.mremap(A + 2 * PAGE, 2 * PAGE, 2 * PAGE, f.MREMAP_MAYMOVE | f.MREMAP_FIXED, B)
    assert dirty(process, B, 2) == [0, 1]
    assert not dirty(process)


def test_what_was_discarded_is_not_dirty() -> None:
    process = cleared()
    process.write(A, b"new")
    process.madvise(A, PAGE, f.MADV_DONTNEED)
    assert not dirty(process)
    process.touch(A, write=False)
    assert not dirty(process)


def test_a_huge_page_is_one_until_it_is_split() -> None:
    settings = PageSettings()
    settings.thp[PMD_ORDER] = ALWAYS
    process = tracking(settings)
    process.mmap(A, PMD_SIZE, flags=FIXED)
    process.touch(A)
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    assert not dirty(process)
    process.touch(A + 5 * PAGE)
    assert dirty(process) == list(range(8)), "one entry, one bit"
    process.mprotect(A + PAGE, PAGE, f.PROT_READ)
    assert dirty(process, A, 512) == list(range(512))
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    process.touch(A + 5 * PAGE)
    assert dirty(process) == [5]


def test_pages_of_hugetlb_tell_of_their_vma_alone() -> None:
    settings = PageSettings()
    settings.hugetlb[PMD_ORDER] = 1
    process = tracking(settings)
    process.machine.settings.hugepages = 1
    process.mmap(A, PMD_SIZE, flags=FIXED | f.MAP_HUGETLB)
    process.touch(A)
    folio = process.page(A).folio
    assert folio is not None
    assert folio.flags & HUGETLB
    assert dirty(process, A, 2) == [0, 1]
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    assert process.page(A).writable
    process.touch(A)
    assert not dirty(process)


def test_shared_memory() -> None:
    process = tracking()
    process.mmap(A, 8 * PAGE, flags=f.MAP_SHARED | f.MAP_ANONYMOUS | f.MAP_FIXED)
    process.touch(A)
    process.touch(A + PAGE)
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    process.touch(A)
    child = process.fork()
    child.touch(A + PAGE)
    assert (dirty(process), dirty(child)) == ([0], [1]), "a child finds them by faults of its own"


def test_userfaultfd_copies_are_dirty_and_zeros_are_not() -> None:
    process = tracking()
    process.mmap(A, 8 * PAGE, flags=FIXED)
    number = process.userfaultfd(0)
    steps: tuple[tuple[int | None, int, dict[str, int | str | list[int]]], ...] = (
        (f.UFFDIO_REGISTER, A, {"len": 8 * PAGE, "mode": 1}),
        (None, 0, {}),
        (f.UFFDIO_COPY, A, {"len": PAGE, "mode": 0, "content": b"x".hex()}),
        (f.UFFDIO_ZEROPAGE, A + PAGE, {"len": PAGE, "mode": 0}),
        (None, 0, {}),
        (f.UFFDIO_MOVE, A + 4 * PAGE, {"len": PAGE, "mode": 0, "src": A}),
    )
    for command, start, extra in steps:
        if command is None:
            process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
            continue
        outcome = process.do(Call("ioctl", (number, command, 0), data={"uffd": number, "start": start, **extra}))
        assert outcome.result >= 0, outcome
        assert command != f.UFFDIO_COPY or dirty(process) == [0]
        assert command != f.UFFDIO_ZEROPAGE or dirty(process) == [0]
    assert dirty(process) == [4]


def test_where_it_is_not_tracked_nothing_happens() -> None:
    process = Machine(memory=Memory()).process()
    process.mmap(A, PAGE, flags=FIXED)
    process.touch(A)
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    assert process.page(A).writable
    assert not process.page(A).soft_dirty


def test_a_machine_without_pages_has_flags_alone() -> None:
    machine = Machine()
    machine.settings.soft_dirty = f.VM_SOFTDIRTY
    process = machine.process()
    process.mmap(A, PAGE, flags=FIXED)
    process.clear_refs(CLEAR_REFS_SOFT_DIRTY)
    assert not process.vmas()[0].flags & f.VM_SOFTDIRTY
    with pytest.raises(VmalabError, match="from 1 to 4, not 5"):
        process.clear_refs(5)
