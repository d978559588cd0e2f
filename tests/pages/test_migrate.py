"""Pages that are being moved: what everybody sees of migration entries, and what is left when they are gone."""

from __future__ import annotations

import random

import pytest

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.calls import Call
from vmalab.machine import KernelError, Machine, Process
from vmalab.pages.folio import PMD_ORDER, PUD_ORDER, Folio
from vmalab.pages.holders import MemoryRegion, Pipe, Refused
from vmalab.pages.memory import ALWAYS, Memory, PageSettings
from vmalab.pages.residency import PAGE_IS_FILE, PAGE_IS_HUGE, PAGE_IS_SWAPPED, mincore_pages, page_categories
from vmalab.reason import (
    FAULT_MIGRATION,
    FAULT_NO_MEMORY,
    MIGRATE_HELD,
    MIGRATE_NOTHING,
    MIGRATE_PINNED,
    MOVE_MIGRATION,
    YES,
)
from vmalab.testing.ports import FailingPort
from vmalab.vma.area import File

A, B, PAGE = 0x10000000, 0x20000000, PAGE_SIZE
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED


def a_process(pages: int = 4, **thp: int) -> Process:
    """A process with memory at A, each page of which holds its number."""
    settings = PageSettings()
    settings.swap_pages = 64
    settings.thp = {PMD_ORDER: thp.get("thp", 0)}
    process = Machine(swap_pages=64, memory=Memory(settings)).process()
    process.mmap(A, pages * PAGE, flags=FIXED)
    for number in range(min(pages, 8)):
        process.write(A + number * PAGE, bytes([number + 1]))
    return process


def folio_of(process: Process, addr: int = A) -> Folio:
    """The folio at an address."""
    folio = process.page(addr).folio
    assert folio is not None
    return folio


def test_a_page_arrives_as_it_was() -> None:
    process = a_process()
    old = folio_of(process)
    migration = process.migrate(A)
    page = process.page(A)
    assert (page.present, page.writable, page.migrating, page.content) == (False, False, "writable", b"\1")
    assert process.machine.memory is not None
    assert process.machine.memory.tables(process.mm).anon == 4, "it counts as if it were there"
    process.machine.validate()
    assert migration.finish() == YES
    page = process.page(A)
    assert (page.present, page.writable, page.exclusive, page.dirty, page.content) == (True, True, True, True, b"\1")
    assert folio_of(process) is migration.new is not old
    assert process.machine.memory.live == 4, "the old one is freed"
    process.write(A, b"new")
    assert process.read(A, 3) == b"new"


def test_a_migration_that_fails_leaves_all_as_it_was() -> None:
    process = a_process()
    old = folio_of(process)
    before = repr(process.page(A))
    assert process.migrate(A).finish(moved=False) == YES
    assert repr(process.page(A)) == before
    assert folio_of(process) is old


def test_fork_in_between_shares_what_was_one_process_s_alone() -> None:
    process = a_process()
    migration = process.migrate(A)
    child = process.fork()
    assert [each.page(A).migrating for each in (process, child)] == ["readable", "readable"]
    process.machine.validate()
    migration.finish()
    for each in (process, child):
        page = each.page(A)
        assert (page.present, page.writable, page.exclusive) == (True, False, False)
    child.write(A, b"child")
    assert process.read(A, 1) == b"\1"
    assert folio_of(process) is migration.new


def test_fork_of_shared_memory_leaves_the_parent_s_entry_writable() -> None:
    process = a_process()
    process.mmap(B, PAGE, flags=f.MAP_SHARED | f.MAP_ANONYMOUS | f.MAP_FIXED)
    process.write(B, b"shared")
    migration = process.migrate(B)
    child = process.fork()
    assert process.page(B).migrating == "writable"
    assert not child.page(B).migrating, "a child finds the file's pages again"
    reader = child.access(B, write=False)
    assert reader.waits, "also where it has no entry: the page cache has the page that is being moved"
    migration.finish()
    assert not reader.waits
    assert child.read(B, 6) == b"shared"
    assert folio_of(child, B) is folio_of(process, B) is migration.new


def test_an_access_waits_until_the_page_arrives() -> None:
    process = a_process()
    migration = process.migrate(A)
    with pytest.raises(KernelError) as refused:
        process.touch(A, write=False)
    assert refused.value.reason == FAULT_MIGRATION
    reader, writer = process.access(A, write=False), process.access(A)
    elsewhere = process.access(A + PAGE)
    assert (reader.waits, writer.waits, elsewhere.waits) == (True, True, False)
    process.madvise(A + 2 * PAGE, PAGE, f.MADV_DONTNEED)
    assert reader.waits, "other calls wake nobody"
    migration.finish()
    assert (reader.waits, writer.waits, reader.reason, writer.reason) == (False, False, YES, YES)
    assert not process.machine.waiting


def test_an_access_goes_on_where_the_mapping_is_gone() -> None:
    process = a_process()
    migration = process.migrate(A)
    reader = process.access(A, write=False)
    process.munmap(A, PAGE)
    migration.finish()
    assert not reader.waits
    assert reader.reason not in (YES, FAULT_MIGRATION)


def test_a_process_that_ends_waits_for_nothing() -> None:
    process = a_process()
    child = process.fork()
    migration = process.migrate(A)
    child.access(A)
    child.exit()
    assert not process.machine.waiting
    migration.finish()


def test_what_is_unmapped_meanwhile_is_freed() -> None:
    process = a_process()
    memory = process.machine.memory
    assert memory is not None
    migration = process.migrate(A)
    process.munmap(A, 4 * PAGE)
    process.machine.validate()
    assert memory.tables(process.mm).anon == 0
    assert memory.live == 2
    assert migration.finish() == YES
    assert memory.live == 0


def test_what_is_discarded_meanwhile_is_zeros() -> None:
    process = a_process()
    migration = process.migrate(A)
    process.madvise(A, PAGE, f.MADV_DONTNEED)
    process.write(A, b"new")
    migration.finish()
    assert process.read(A, 3) == b"new"
    process.machine.validate()


@pytest.mark.parametrize("prot", [f.PROT_READ, f.PROT_READ | f.PROT_WRITE | f.PROT_EXEC])
def test_mprotect_makes_an_entry_readable_exclusive(prot: int) -> None:
    """Also where it may be written to afterwards: a write is then a fault, which finds the page exclusive."""
    process = a_process()
    migration = process.migrate(A)
    process.mprotect(A, 4 * PAGE, prot)
    assert process.page(A).migrating == "readable-exclusive"
    migration.finish()
    page = process.page(A)
    assert (page.writable, page.exclusive) == (False, True)
    process.mprotect(A, 4 * PAGE, f.PROT_READ | f.PROT_WRITE)
    process.write(A, b"new")
    assert folio_of(process) is migration.new, "nothing was copied"


def test_mprotect_before_makes_a_readable_exclusive_entry() -> None:
    process = a_process()
    process.mprotect(A, 4 * PAGE, f.PROT_READ)
    migration = process.migrate(A)
    assert process.page(A).migrating == "readable-exclusive"
    migration.finish()
    assert process.page(A).exclusive


def test_shared_pages_have_readable_entries() -> None:
    process = a_process()
    child = process.fork()
    migration = child.migrate(A)
    assert [each.page(A).migrating for each in (process, child)] == ["readable", "readable"], "found by the reverse map"
    migration.finish()
    assert folio_of(process) is folio_of(child) is migration.new
    assert not process.page(A).exclusive


def test_a_pin_waits() -> None:
    process = a_process()
    migration = process.migrate(A)
    with pytest.raises(Refused) as refused:
        MemoryRegion(process.mm, A, 2 * PAGE)
    assert refused.value.reason == FAULT_MIGRATION
    migration.finish()
    device = MemoryRegion(process.mm, A, PAGE)
    process.write(A, b"new")
    assert device.read()[:3] == b"new"
    device.close()


def test_a_pinned_page_stays() -> None:
    process = a_process()
    device = MemoryRegion(process.mm, A, PAGE, write=True)
    with pytest.raises(KernelError) as refused:
        process.migrate(A)
    assert refused.value.reason == MIGRATE_PINNED
    page = process.page(A)
    assert (page.present, page.writable, page.exclusive) == (True, True, True)
    device.close()
    assert process.migrate(A).finish() == YES


def test_a_page_that_somebody_refers_to_goes_back() -> None:
    process = a_process()
    old = folio_of(process)
    pipe = Pipe()
    pipe.vmsplice(process.mm, A, PAGE)
    assert process.migrate(A).finish() == MIGRATE_HELD
    assert folio_of(process) is old
    assert process.page(A).writable
    pipe.close()
    assert process.migrate(A).finish() == YES


def test_nothing_is_moved_where_nothing_is() -> None:
    process = a_process()
    process.mmap(B, 2 * PAGE, flags=FIXED)
    process.touch(B, write=False)
    for addr in (B, B + PAGE):
        with pytest.raises(KernelError) as refused:
            process.migrate(addr)
        assert refused.value.reason == MIGRATE_NOTHING
    migration = process.migrate(A)
    with pytest.raises(KernelError) as refused:
        process.migrate(A)
    assert refused.value.reason == MIGRATE_NOTHING, "it is under way already"
    migration.finish()


def test_mremap_takes_the_entry_along() -> None:
    process = a_process()
    migration = process.migrate(A + PAGE)
    process.mremap(A, 4 * PAGE, 4 * PAGE, f.MREMAP_MAYMOVE | f.MREMAP_FIXED, B)
    assert process.page(B + PAGE).migrating == "writable"
    migration.finish()
    assert process.read(B + PAGE, 1) == b"\2"
    assert process.page(B + PAGE).writable


def test_what_is_told_of_it() -> None:
    process = a_process()
    memory = process.machine.memory
    assert memory is not None
    migration = process.migrate(A)
    vma = process.vmas()[0]
    assert page_categories(memory.tables(process.mm), vma, A) & PAGE_IS_SWAPPED
    assert mincore_pages(memory, vma, A, A + PAGE) == b"\1"
    migration.finish()


def test_a_page_of_a_file_goes_with_its_cache() -> None:
    process = a_process()
    file = File("/file", "00:01", 7)
    file.size = 4 * PAGE
    other = process.machine.process()
    for each in (process, other):
        each.mmap(B, 4 * PAGE, flags=f.MAP_SHARED | f.MAP_FIXED, file=file)
    process.write(B, b"both")
    other.touch(B, write=False)
    migration = other.migrate(B)
    assert (process.page(B).migrating, other.page(B).migrating) == ("writable", "readable")
    memory = process.machine.memory
    assert memory is not None
    assert page_categories(memory.tables(process.mm), process.mm.vma_lookup(B) or process.vmas()[0], B) & PAGE_IS_FILE
    assert migration.finish() == YES
    assert memory.cache_of(file).find(0) is migration.new
    process.write(B, b"all!")
    assert other.read(B, 4) == b"all!"


def test_a_hole_that_is_punched_meanwhile_takes_the_entries_along() -> None:
    process = a_process()
    process.mmap(B, 2 * PAGE, flags=f.MAP_SHARED | f.MAP_ANONYMOUS | f.MAP_FIXED)
    process.write(B, b"old")
    migration = process.migrate(B)
    process.madvise(B, PAGE, f.MADV_REMOVE)
    assert not process.page(B).migrating
    process.machine.validate()
    migration.finish()
    assert process.read(B, 3) == bytes(3)


def test_a_page_in_the_swap_cache_takes_its_slot_along() -> None:
    process = a_process()
    child = process.fork()
    child.munmap(A + PAGE, 3 * PAGE)
    process.madvise(A, PAGE, f.MADV_PAGEOUT)
    assert process.page(A).slot is None, "two processes have it"
    child.munmap(A, PAGE)
    process.madvise(A, PAGE, f.MADV_PAGEOUT)
    assert process.page(A).slot is not None
    child = process.fork()
    child.touch(A, write=False)
    migration = child.migrate(A)
    waits = process.access(A, write=False)
    assert waits.waits, "the page that its slot was read into is being moved"
    assert migration.finish() == YES
    assert not waits.waits
    assert folio_of(process) is folio_of(child) is migration.new


@pytest.mark.parametrize("split", [False, True])
def test_a_huge_page_moves_as_one(split: bool) -> None:
    process = a_process(512, thp=ALWAYS)
    memory = process.machine.memory
    assert memory is not None
    assert folio_of(process).order == PMD_ORDER
    migration = process.migrate(A + 3 * PAGE)
    page = process.page(A)
    assert (page.present, page.migrating) == (False, "writable")
    vma = process.vmas()[0]
    assert page_categories(memory.tables(process.mm), vma, A) & (PAGE_IS_HUGE | PAGE_IS_SWAPPED) == (
        PAGE_IS_HUGE | PAGE_IS_SWAPPED
    )
    waits = process.access(A + 9 * PAGE)
    if split:
        process.munmap(A + PAGE, PAGE)
        process.mprotect(A + 2 * PAGE, PAGE, f.PROT_READ)
        process.machine.validate()
    child = process.fork()
    process.machine.validate()
    assert migration.finish() == YES
    assert not waits.waits
    assert folio_of(process).order == PMD_ORDER
    assert folio_of(process) is folio_of(child) is migration.new
    assert child.read(A + 3 * PAGE, 1) == b"\4"
    assert not child.page(A + 9 * PAGE).writable


def test_a_huge_page_of_shared_memory_moves_as_one() -> None:
    """Cut while it is under way, its entry goes: what is there of it is found again when it has arrived."""
    machine = Machine(memory=Memory())
    process = machine.process()
    process.mmap(A, PMD_SIZE, flags=f.MAP_SHARED | f.MAP_ANONYMOUS | f.MAP_FIXED)
    for number in range(3):
        process.write(A + number * PAGE, bytes([number + 1]))
    process.madvise(A, PMD_SIZE, f.MADV_COLLAPSE)
    child = process.fork()
    child.touch(A + PAGE)
    assert folio_of(child, A).order == PMD_ORDER
    migration = child.migrate(A)
    process.munmap(A + PAGE, PAGE)
    machine.validate()
    waits = process.access(A + 2 * PAGE, write=False)
    assert (waits.waits, process.page(A).migrating, child.page(A).migrating) == (True, "", "writable")
    child.madvise(A + 8 * PAGE, PAGE, f.MADV_DONTNEED)
    assert migration.finish() == YES
    assert not waits.waits
    machine.validate()
    assert process.read(A + 2 * PAGE, 1) == child.read(A + 2 * PAGE, 1) == b"\3"
    assert folio_of(process, A + 2 * PAGE) is folio_of(child, A + 2 * PAGE) is migration.new


@pytest.mark.parametrize("order", [PMD_ORDER, PUD_ORDER])
@pytest.mark.parametrize("kind", [f.MAP_PRIVATE, f.MAP_SHARED])
def test_pages_of_hugetlb_move(order: int, kind: int) -> None:
    settings = PageSettings()
    settings.hugetlb[order] = 3
    machine = Machine(memory=Memory(settings))
    machine.settings.hugepages = 3
    process = machine.process()
    size = PAGE << order
    flags = kind | f.MAP_ANONYMOUS | f.MAP_HUGETLB | (30 if order == PUD_ORDER else 21) << f.MAP_HUGE_SHIFT
    addr = process.mmap(0, size, flags=flags)
    process.write(addr, b"huge")
    migration = process.migrate(addr)
    assert process.page(addr).migrating == "writable"
    waits = process.access(addr)
    child = process.fork()
    machine.validate()
    assert migration.finish() == YES
    assert not waits.waits
    assert child.read(addr, 4) == b"huge"
    assert machine.memory is not None
    for each in (process, child):
        each.munmap(addr, size)
    assert machine.memory.hugetlb_free[order] == 3


def test_a_userfaultfd_moves_nothing_that_is_moved_already() -> None:
    process = a_process()
    process.mmap(B, PAGE, flags=FIXED)
    number = process.userfaultfd(0)
    register: dict[str, int | str | list[int]] = {"uffd": number, "start": B, "len": PAGE, "mode": 1}
    process.do(Call("ioctl", (number, f.UFFDIO_REGISTER, 0), data=register))
    migration = process.migrate(A)
    move: dict[str, int | str | list[int]] = {"uffd": number, "start": B, "len": PAGE, "mode": 0, "src": A}
    assert process.do(Call("ioctl", (number, f.UFFDIO_MOVE, 0), data=move)).reason == MOVE_MIGRATION
    migration.finish()
    assert process.do(Call("ioctl", (number, f.UFFDIO_MOVE, 0), data=move)).result == 0


def test_write_protection_goes_along() -> None:
    process = a_process()
    number = process.userfaultfd(0)
    both: dict[str, int | str | list[int]] = {"uffd": number, "start": A, "len": PAGE}
    process.do(Call("ioctl", (number, f.UFFDIO_REGISTER, 0), data={**both, "mode": 2}))
    migration = process.migrate(A)
    assert process.do(Call("ioctl", (number, f.UFFDIO_WRITEPROTECT, 0), data={**both, "mode": 1})).result == 0
    assert process.page(A).migrating == "readable-exclusive"
    migration.finish()
    page = process.page(A)
    assert (page.write_protected, page.writable, page.exclusive) == (True, False, True)


def test_soft_dirty_goes_along() -> None:
    process = a_process()
    process.machine.settings.soft_dirty = f.VM_SOFTDIRTY
    process.clear_refs(4)
    process.touch(A)
    for addr, expected in ((A, True), (A + PAGE, False)):
        migration = process.migrate(addr)
        assert process.page(addr).soft_dirty is expected
        migration.finish()
        assert process.page(addr).soft_dirty is expected
    migration = process.migrate(A)
    process.clear_refs(4)
    assert not process.page(A).soft_dirty
    migration.finish()
    assert not process.page(A).soft_dirty


def test_merged_pages_move() -> None:
    process = a_process()
    for number in range(3):
        process.write(A + number * PAGE, b"same")
    process.madvise(A, 3 * PAGE, f.MADV_MERGEABLE)
    assert process.machine.ksm_scan() == 3
    migration = process.migrate(A)
    assert [process.page(A + at * PAGE).migrating for at in range(3)] == ["readable"] * 3
    assert migration.finish() == YES
    assert folio_of(process, A + 2 * PAGE) is migration.new
    assert process.read(A + 2 * PAGE, 4) == b"same"


def test_out_of_memory() -> None:
    port = FailingPort()
    process = Machine(memory=Memory(), port=port).process()
    process.mmap(A, PAGE, flags=FIXED)
    process.touch(A)
    port.arm(1)
    with pytest.raises(KernelError) as refused:
        process.migrate(A)
    assert refused.value.reason == FAULT_NO_MEMORY
    assert process.page(A).writable


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_in_between_nothing_is_lost(seed: int) -> None:
    """Random calls with migrations under way: contents as in a plain dictionary, every count right at each step."""
    rng = random.Random(seed)
    settings = PageSettings()
    settings.swap_pages = 4096
    settings.thp = {PMD_ORDER: ALWAYS if seed % 3 == 0 else 0, 3: ALWAYS if seed % 3 == 1 else 0}
    machine = Machine(swap_pages=4096, memory=Memory(settings))
    first = machine.process()
    first.mmap(A, PMD_SIZE, flags=FIXED)
    first.mmap(B, PMD_SIZE, flags=f.MAP_SHARED | f.MAP_ANONYMOUS | f.MAP_FIXED)
    first.fork()
    moves = []
    private: dict[tuple[int, int], bytes] = {}
    shared: dict[int, bytes] = {}
    for step in range(150):
        process = rng.choice(list(machine.processes.values()))
        base, count = (A, 24) if rng.random() < 0.7 else (B, 16)
        addr = base + rng.randrange(count) * PAGE
        kept: dict[object, bytes] = shared if base == B else private  # type: ignore[assignment]
        key: object = addr if base == B else (process.pid, addr)
        verb = rng.choice(
            ("write", "write", "read", "migrate", "migrate", "finish", "finish", "fork", "advise", "protect")
        )
        try:
            if verb == "write":
                process.write(addr, data := step.to_bytes(2, "little"))
                kept[key] = data
            elif verb == "read":
                assert process.read(addr, 2) == kept.get(key, bytes(2)), f"step {step}"
            elif verb == "migrate":
                moves.append(process.migrate(addr))
            elif verb == "finish" and moves:
                moves.pop(rng.randrange(len(moves))).finish(moved=rng.random() < 0.8)
            elif verb == "fork" and len(machine.processes) < 4:
                child = process.fork()
                private.update({(child.pid, at): data for (pid, at), data in private.items() if pid == process.pid})
            elif verb == "advise":
                gone = f.MADV_DONTNEED if base == A else f.MADV_REMOVE
                advice = rng.choice((f.MADV_DONTNEED, gone, f.MADV_PAGEOUT, f.MADV_COLD, f.MADV_COLLAPSE))
                if advice == gone:
                    kept.pop(key, None)
                process.madvise(*((base, PMD_SIZE) if advice == f.MADV_COLLAPSE else (addr, PAGE)), advice)
            elif verb == "protect":
                process.mprotect(addr, PAGE, f.PROT_READ)
                process.mprotect(addr, PAGE, f.PROT_READ | f.PROT_WRITE)
        except KernelError as error:
            if error.reason != FAULT_MIGRATION and verb not in ("migrate", "advise"):
                raise
        machine.validate()
    for move in moves:
        move.finish()
    machine.validate()
    for (pid, addr), data in private.items():
        assert machine.processes[pid].read(addr, 2) == data
    for addr, data in shared.items():
        assert first.read(addr, 2) == data
