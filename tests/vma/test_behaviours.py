"""Named behaviours that are bugs of a kernel: what happens with each, and without it."""

import errno

import pytest

from vmalab.calls import Call
from vmalab.flags import (
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_LOCKED,
    VM_UFFD,
)
from vmalab.machine import Machine, Process
from vmalab.semantics import Semantics
from vmalab.syscalls import uffd
from vmalab.vma.area import Userfaultfd

AT = 0x10000000
PAGE = 0x1000
FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED


def process_with(name: str, value: bool) -> Process:
    """A process of a kernel that has a behaviour, or not."""
    semantics = Semantics()
    assert getattr(semantics, name) is True
    setattr(semantics, name, value)
    return Machine(semantics).process()


def bounds(process: Process) -> list[tuple[int, int]]:
    """Where its VMAs lie, in pages from AT."""
    return [((vma.start - AT) // PAGE, (vma.end - AT) // PAGE) for vma in process.vmas()]


@pytest.mark.parametrize(("value", "expected"), [(True, [(0, 4)]), (False, [(0, 2), (2, 4)])])
def test_dontunmap_beside_itself(value: bool, expected: list[tuple[int, int]]) -> None:
    for above in (True, False):
        process = process_with("dontunmap_merges_source", value)
        first, second = (AT, AT + 2 * PAGE) if above else (AT + 2 * PAGE, AT)
        process.mmap(first, 2 * PAGE, flags=FIXED)
        process.mremap(first, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED, second)
        assert bounds(process) == expected


@pytest.mark.parametrize(("value", "expected"), [(True, [(0, 2)]), (False, [(0, 1), (1, 2)])])
def test_what_was_never_written_to_takes_what_was(value: bool, expected: list[tuple[int, int]]) -> None:
    for written in (AT + PAGE, AT):
        process = process_with("unfaulted_merges", value)
        process.mmap(AT, PAGE, flags=FIXED)
        process.mmap(AT + PAGE, PAGE, 7, FIXED)
        process.touch(written)
        process.mprotect(AT + PAGE, PAGE, 3)
        # The one below takes the other: that it was written to itself was always fine.
        assert bounds(process) == (expected if written != AT else [(0, 2)])


@pytest.mark.parametrize("value", [True, False])
def test_what_was_never_written_to_takes_its_like(value: bool) -> None:
    process = process_with("unfaulted_merges", value)
    process.mmap(AT, PAGE, flags=FIXED)
    process.mmap(AT + PAGE, PAGE, 7, FIXED)
    process.mprotect(AT + PAGE, PAGE, 3)
    assert bounds(process) == [(0, 2)]


@pytest.mark.parametrize("value", [True, False])
def test_guard_markers(value: bool) -> None:
    process = process_with("guard_regions", value)
    process.mmap(AT, 2 * PAGE, flags=FIXED)
    for advice in (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE):
        outcome = process.do(Call("madvise", (AT, PAGE, advice)))
        assert outcome.result == (0 if value else -errno.EINVAL)
    assert bounds(process) == [(0, 2)]


@pytest.mark.parametrize(("value", "lost"), [(True, 3), (False, 0)])
def test_a_move_that_shrinks(value: bool, lost: int) -> None:
    process = process_with("mremap_shrink_charges", value)
    process.mmap(AT, 4 * PAGE, flags=FIXED)
    process.mremap(AT, 4 * PAGE, PAGE, MOVE, AT + 16 * PAGE)
    commit = process.machine.commit
    assert (commit.committed, commit.lost) == (1 + lost, lost)


@pytest.mark.parametrize(("value", "keeps"), [(True, False), (False, True)])
def test_a_move_beside_memory_of_the_same_userfaultfd(value: bool, keeps: bool) -> None:
    process = process_with("mremap_uffd_merges_first", value)
    context = Userfaultfd("u")
    for addr in (AT, AT + 16 * PAGE):
        process.mmap(addr, PAGE, flags=FIXED)
        assert uffd.register(process.mm, context, addr, PAGE, 1) == 0
    process.mremap(AT + 16 * PAGE, PAGE, PAGE, MOVE, AT + PAGE)
    below = process.mm.vma_lookup(AT)
    assert below is not None
    assert (below.uffd is context, bool(below.flags & VM_UFFD)) == (keeps, keeps)
    assert bounds(process) == ([(0, 1), (1, 2)] if keeps else [(0, 2)])


@pytest.mark.parametrize(("value", "locked", "counted"), [(True, [False], 8), (False, [True, False, True], 6)])
def test_dontunmap_of_a_part_of_locked_memory(value: bool, locked: list[bool], counted: int) -> None:
    process = process_with("dontunmap_unlocks_source", value)
    process.mmap(AT, 6 * PAGE, flags=FIXED)
    process.mlock(AT, 6 * PAGE)
    process.mremap(AT + 2 * PAGE, 2 * PAGE, 2 * PAGE, MOVE | MREMAP_DONTUNMAP, AT + 32 * PAGE)
    source = [vma for vma in process.vmas() if vma.start < AT + 32 * PAGE]
    assert [bool(vma.flags & VM_LOCKED) for vma in source] == locked
    assert process.mm.locked_vm == counted
    process.mm.validate()


@pytest.mark.parametrize(("value", "lengths"), [(True, [3, 4]), (False, [3, 3])])
def test_an_ancestor_that_nobody_uses(value: bool, lengths: list[int]) -> None:
    first = process_with("anon_vma_reuse_counts_children", value)
    first.mmap(AT, 2 * PAGE, flags=FIXED)
    first.touch(AT)
    second = first.fork()
    third = second.fork()
    second.exit()
    fourth = third.fork()
    third.exit()
    fourth.mprotect(AT, PAGE, 1)
    # The third's is left, which nobody is below: it is for one of the two VMAs.
    assert [len(vma.chain) for vma in fourth.fork().vmas()] == lengths
