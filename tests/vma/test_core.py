"""The core on its own: moves of the stack, stack growth, and every allocation failed in turn."""

from collections.abc import Callable

import pytest

from vmalab import reason
from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call
from vmalab.flags import (
    MADV_DONTFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_PRIVATE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
    VM_ACCOUNT,
    VM_GROWSDOWN,
)
from vmalab.machine import KernelError, Machine, Process
from vmalab.reason import YES
from vmalab.vma.anon import anon_vma_fork, anon_vma_found, anon_vma_restore
from vmalab.vma.area import Vma
from vmalab.vma.merge import is_mergeable_vma, request_for_modify
from vmalab.vma.modify import vma_modify_flags, vma_modify_flags_name
from vmalab.vma.observer import Observer
from vmalab.vma.place import unmapped_area
from vmalab.vma.port import Port
from vmalab.vma.relocate import expand_stack, relocate_vma_down
from vmalab.vma.space import Mm

AT = 0x10000000
RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


class FailNth(Port):
    """Fails the N-th allocation (0: none) and counts them all."""

    def __init__(self) -> None:
        self.fail_at = 0
        self.count = 0

    def arm(self, number: int) -> None:
        """Fail the allocation with this number from now on counted from 1."""
        self.fail_at = number
        self.count = 0

    def may_fail(self, site: int) -> bool:
        self.count += 1
        return self.count == self.fail_at


def relocate(vma: Vma, shift: int) -> int:
    """relocate_vma_down under the lock."""
    mm = vma.mm
    mm.mmap_write_lock()
    refusal = relocate_vma_down(vma, shift)
    mm.mmap_write_unlock()
    return refusal


def grow(vma: Vma, addr: int) -> int:
    """expand_stack under the lock."""
    mm = vma.mm
    mm.mmap_write_lock()
    refusal = expand_stack(vma, addr)
    mm.mmap_write_unlock()
    return refusal


def start(port: Port | None = None) -> Process:
    return Machine(port=port).process()


def shape(mm: Mm) -> list[tuple[int, int, int]]:
    return [((vma.start - AT) // PAGE_SIZE, (vma.end - AT) // PAGE_SIZE, vma.flags & 7) for vma in mm.vmas()]


def three(process: Process) -> None:
    """Read-write, read-only, read-write: two pages each, all but the last written to."""
    process.mmap(AT, 6 * PAGE_SIZE, RW, FIXED)
    process.touch(AT)
    process.mprotect(AT + 2 * PAGE_SIZE, 2 * PAGE_SIZE, PROT_READ)


OPERATIONS: dict[str, Callable[[Process], object]] = {
    "join three": lambda process: process.mprotect(AT + 2 * PAGE_SIZE, 2 * PAGE_SIZE, RW),
    "join left": lambda process: process.mprotect(AT + 2 * PAGE_SIZE, PAGE_SIZE, RW),
    "join right": lambda process: process.mprotect(AT + 3 * PAGE_SIZE, PAGE_SIZE, RW),
    "split twice": lambda process: process.madvise(AT, PAGE_SIZE, MADV_DONTFORK),
    "cut a hole": lambda process: process.munmap(AT + PAGE_SIZE, 4 * PAGE_SIZE),
    "map over": lambda process: process.mmap(AT + PAGE_SIZE, 2 * PAGE_SIZE, PROT_READ, FIXED),
    "move": lambda process: process.mremap(
        AT, 2 * PAGE_SIZE, 2 * PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, AT + 10 * PAGE_SIZE
    ),
    "grow": lambda process: process.mremap(AT + 4 * PAGE_SIZE, 2 * PAGE_SIZE, 4 * PAGE_SIZE),
    "fork": lambda process: process.fork().exit(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_allocation_fails_in_turn(name: str) -> None:
    """A refusal leaves the space consistent: as it was, with completed splits, or with a hole where the old was."""
    number = reached = 0
    while True:
        number += 1
        port = FailNth()
        process = start(port)
        three(process)
        before = shape(process.mm)
        mapped = process.mm.total_vm
        port.arm(number)
        refused: KernelError | None = None
        try:
            OPERATIONS[name](process)
        except KernelError as error:
            refused = error
        port.arm(0)
        process.machine.validate()
        if refused is not None:
            assert refused.errno in (12, 11)
            reached += 1
            if name not in ("map over", "move"):
                assert process.mm.total_vm == mapped
            if name.startswith("join") or name in ("fork", "grow"):
                assert len(process.mm.vmas()) >= len(before)
        elif port.count < number:
            break
        process.exit()
        assert process.machine.commit.committed == 0
    assert reached or name == "join three"


def stack(process: Process, pages: int = 4) -> Vma:
    """A stack of some pages at AT + 64 pages."""
    at = AT + 64 * PAGE_SIZE
    process.mmap(at, pages * PAGE_SIZE, RW, FIXED | MAP_GROWSDOWN)
    vma = process.mm.vma_lookup(at)
    assert vma is not None
    assert vma.flags & VM_GROWSDOWN
    return vma


@pytest.mark.parametrize("shift", [1, 3, 4, 9])
def test_relocate_down_slides_one_vma(shift: int) -> None:
    process = start()
    vma = stack(process)
    began, pgoff = vma.start, vma.pgoff
    assert relocate(vma, shift * PAGE_SIZE) == YES
    assert process.vmas() == [vma]
    assert (vma.start, vma.end, vma.pgoff) == (
        began - shift * PAGE_SIZE,
        began - shift * PAGE_SIZE + 4 * PAGE_SIZE,
        pgoff,
    )
    process.machine.validate()


@pytest.mark.parametrize("below", [1, 2, 3])
def test_relocate_down_is_refused_when_something_is_in_the_way(below: int) -> None:
    process = start()
    vma = stack(process)
    process.mmap(vma.start - below * PAGE_SIZE, PAGE_SIZE, PROT_READ, FIXED)
    bounds = (vma.start, vma.end)
    assert relocate(vma, 3 * PAGE_SIZE) == reason.OVERLAPS_STACK_MOVE
    assert (vma.start, vma.end) == bounds
    process.machine.validate()


def test_relocate_down_without_memory() -> None:
    port = FailNth()
    process = start(port)
    vma = stack(process)
    bounds = (vma.start, vma.end)
    port.arm(1)
    assert relocate(vma, PAGE_SIZE) == reason.NO_MEMORY_TREE
    assert (vma.start, vma.end) == bounds
    port.arm(2)
    assert relocate(vma, PAGE_SIZE) == reason.NO_MEMORY_TREE
    assert (vma.start, vma.end) == (bounds[0] - PAGE_SIZE, bounds[1]), "grown at the bottom, not yet cut at the top"


def test_a_stack_grows_to_its_limits() -> None:
    process = start()
    vma = stack(process)
    assert grow(vma, vma.start - 1) == YES
    assert vma.pages() == 5
    assert vma.anon_vma is not None, "growth gives a stack its anon_vma, even on a read"
    process.limits.stack = 6 * PAGE_SIZE
    process.mm.limits = process.limits
    assert grow(vma, vma.start - 2 * PAGE_SIZE) == reason.LIMIT_STACK
    process.mmap(AT, PAGE_SIZE, RW, FIXED)
    assert grow(vma, vma.start - PAGE_SIZE) == reason.STACK_GUARD_GAP
    process.mprotect(AT, PAGE_SIZE, 0)
    assert grow(vma, vma.start - PAGE_SIZE) == YES, "what cannot be accessed is guard enough"
    process.machine.validate()


@pytest.mark.parametrize("write", [True, False])
def test_a_fault_grows_a_stack(write: bool) -> None:
    process = start()
    vma = stack(process)
    process.touch(vma.start - 3 * PAGE_SIZE, write)
    assert vma.pages() == 7
    with pytest.raises(KernelError):
        process.touch(vma.start - (8 << 20), write)


def test_memory_that_was_written_to_stays_committed() -> None:
    process = start()
    process.mmap(AT, 4 * PAGE_SIZE, RW, FIXED)
    process.mprotect(AT, 2 * PAGE_SIZE, PROT_READ)
    assert not process.vmas()[0].flags & VM_ACCOUNT, "never written to: given back"
    process.touch(AT + 2 * PAGE_SIZE)
    process.mprotect(AT + 2 * PAGE_SIZE, 2 * PAGE_SIZE, PROT_READ)
    assert process.vmas()[1].flags & VM_ACCOUNT
    assert process.mm.map_count == 2


class Told(Observer):
    """Remembers what it is told of splits and changes."""

    def __init__(self) -> None:
        self.splits: list[tuple[int, int]] = []
        self.changes = 0

    def split(self, below: Vma, above: Vma) -> None:
        self.splits.append((below.start, above.start))

    def flags_changed(self, vma: Vma, old: int) -> None:
        self.changes += 1

    def attribute_changed(self, vma: Vma, what: str) -> None:
        self.changes += 1


class Unmapped(Port):
    """Remembers whose pages went."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def unmap_pages(self, vma: Vma, start: int, end: int) -> None:
        self.ranges.append((start, end))


def test_the_pages_of_each_vma_go() -> None:
    port = Unmapped()
    process = start(port)
    three(process)
    process.munmap(AT, 6 * PAGE_SIZE)
    assert port.ranges == [(AT + 2 * PAGE_SIZE * at, AT + 2 * PAGE_SIZE * (at + 1)) for at in range(3)]


def test_observers_are_told_of_splits_from_low_to_high() -> None:
    process = start()
    process.mm.observer = told = Told()
    process.mmap(AT, 6 * PAGE_SIZE, RW, FIXED)
    process.madvise(AT + 2 * PAGE_SIZE, 2 * PAGE_SIZE, MADV_DONTFORK)
    assert told.splits == [(AT, AT + 2 * PAGE_SIZE), (AT + 2 * PAGE_SIZE, AT + 4 * PAGE_SIZE)]
    assert told.changes == 1


def test_what_does_not_change_is_not_told() -> None:
    process = start()
    process.mmap(AT, 2 * PAGE_SIZE, RW, FIXED)
    mm = process.mm
    mm.observer = told = Told()
    for _ in range(2):
        mm.mmap_write_lock()
        (vma,) = process.vmas()
        # Equal, and yet another object.
        vma_modify_flags(vma, vma.start, vma.end, int(str(int(vma.flags))))
        vma_modify_flags_name(vma, vma.start, vma.end, int(str(int(vma.flags))), "".join(["a", " name"]))
        mm.mmap_write_unlock()
    assert told.changes == 1
    mm.mmap_write_lock()
    request = request_for_modify(vma, vma.start, vma.end)
    request.name = "".join(["a", " name"])
    assert is_mergeable_vma(vma, request) == YES
    mm.mmap_write_unlock()


def test_a_child_does_not_merge_what_it_shares() -> None:
    process = start()
    process.mmap(AT, 2 * PAGE_SIZE, RW, FIXED)
    process.touch(AT)
    child = process.fork()
    for each, count in ((process, 1), (child, 2)):
        each.mmap(AT + 2 * PAGE_SIZE, 2 * PAGE_SIZE, RW, FIXED)
        assert each.mm.map_count == count
    child.exit()
    process.exit()
    assert process.machine.commit.committed == 0


def test_at_the_map_count_limit() -> None:
    process = start()
    three(process)
    process.machine.settings.max_map_count = 3
    process.mmap(AT + 8 * PAGE_SIZE, 4 * PAGE_SIZE, PROT_READ, FIXED)
    middle = AT + 9 * PAGE_SIZE
    for call, why in (
        (Call("munmap", (middle, PAGE_SIZE)), reason.MAP_COUNT_UNMAP),
        (Call("mprotect", (middle, PAGE_SIZE, RW)), reason.MAP_COUNT_SPLIT),
        (Call("madvise", (middle, PAGE_SIZE, MADV_DONTFORK)), reason.MAP_COUNT_SPLIT_EAGAIN),
    ):
        assert process.do(call).reason == why
    process.munmap(AT + 8 * PAGE_SIZE, PAGE_SIZE)
    process.machine.validate()


def test_an_anon_vma_that_a_running_process_has() -> None:
    """Its length of chain is what keeps it from merging with memory that is mapped beside it."""
    process = Machine().process()
    start = process.mmap(0x10000000, 0x2000, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    (vma,) = process.vmas()
    anon_vma = anon_vma_found(3)
    anon_vma_restore(vma, anon_vma)
    assert (vma.anon_vma, len(vma.chain), anon_vma.active) == (anon_vma, 3, 1)
    process.mmap(start + 0x2000, 0x1000, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)
    assert [each.start for each in process.vmas()] == [start, start + 0x2000]
    process.mm.validate()


def test_a_duplicate_has_all_but_references_and_a_chain() -> None:
    process = Machine().process()
    vma = process.mm.vma_lookup(process.mmap(0, 0x1000))
    assert vma is not None
    vma.private_data = "its driver's"
    vma.label = "[special]"
    copy = vma.duplicate()
    assert (copy.private_data, copy.label, copy.chain) == ("its driver's", "[special]", ())
    assert copy.offset_at(copy.start + 0x1000) == copy.pgoff_at(copy.start) * 0x1000 + 0x1000
    assert anon_vma_fork(copy, vma) == YES
    assert copy.chain == ()


def test_nothing_is_chosen_below_the_lowest_address() -> None:
    mm = Machine().process().mm
    assert unmapped_area(mm, 0x1000, 0, mm.task_size) == mm.settings.min_addr
