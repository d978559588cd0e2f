"""What the core tells userfaultfds: of forks and of unmapping, once each, in order."""

import pytest

from vmalab import flags as f
from vmalab.machine import Machine, Process
from vmalab.pages.memory import Memory
from vmalab.syscalls import uffd
from vmalab.vma.area import Userfaultfd

AT = 0x10000000
PAGE = 0x1000
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED


def registered(features: int, listens: bool = True) -> tuple[Process, Userfaultfd]:
    """Two mappings of two pages, with a page between them, of one userfaultfd."""
    process = Machine().process()
    context = process.uffds[process.userfaultfd(features)] if listens else Userfaultfd("nobody reads", features)
    for at in (AT, AT + 3 * PAGE):
        process.mmap(at, 2 * PAGE, flags=FIXED)
        assert uffd.register(process.mm, context, at, 2 * PAGE, uffd.REGISTER_MODE_MISSING) == 0
    return process, context


@pytest.mark.parametrize("features", [0, f.UFFD_FEATURE_EVENT_UNMAP])
def test_unmapping_is_told_once(features: int) -> None:
    process, context = registered(features)
    process.munmap(AT, 4 * PAGE)
    assert context.queue is not None
    told = [(message.event, message.first, message.second) for message in context.queue.events]
    assert told == ([(f.UFFD_EVENT_UNMAP, AT, AT + 4 * PAGE)] if features else [])


def test_a_child_has_a_context_of_its_own() -> None:
    process, context = registered(f.UFFD_FEATURE_EVENT_FORK)
    child = process.fork()
    first, second = child.vmas()
    assert first.uffd is second.uffd
    assert first.uffd is not None
    assert first.uffd is not context
    assert (first.uffd.features, first.uffd.mm) == (context.features, child.mm)
    assert context.queue is not None
    assert [message.context for message in context.queue.events] == [first.uffd]


def test_nobody_keeps_what_nobody_reads() -> None:
    process, context = registered(f.UFFD_FEATURE_EVENT_FORK | f.UFFD_FEATURE_EVENT_UNMAP, listens=False)
    child = process.fork()
    process.munmap(AT, PAGE)
    assert context.queue is None
    assert all(vma.uffd is not None and vma.uffd.queue is None for vma in child.vmas())


def test_a_child_of_whom_nobody_wants_to_hear() -> None:
    process, _ = registered(0)
    assert all(vma.uffd is None and not vma.flags & f.VM_UFFD for vma in process.fork().vmas())


def test_two_contexts_stay_two() -> None:
    process, context = registered(f.UFFD_FEATURE_EVENT_FORK)
    other = process.uffds[process.userfaultfd(f.UFFD_FEATURE_EVENT_FORK)]
    at = AT + 8 * PAGE
    for each, where in ((other, at), (other, at + 2 * PAGE), (context, at + 4 * PAGE)):
        process.mmap(where, PAGE, flags=FIXED)
        assert uffd.register(process.mm, each, where, PAGE, uffd.REGISTER_MODE_MISSING) == 0
    contexts = [vma.uffd for vma in process.fork().vmas()]
    assert [contexts.index(each) for each in contexts] == [0, 0, 2, 2, 0]


def test_an_access_waits_until_it_is_woken() -> None:
    process = Machine(memory=Memory()).process()
    context = process.uffds[process.userfaultfd(0)]
    process.mmap(AT, PAGE, flags=FIXED)
    assert uffd.register(process.mm, context, AT, PAGE, uffd.REGISTER_MODE_MISSING) == 0
    assert process.access(AT).waits
    assert context.queue is not None
    (fault,) = context.queue.faults
    assert (fault.message.event, fault.message.first, fault.woken) == (f.UFFD_EVENT_PAGEFAULT, AT, False)
    assert uffd.wake(process.mm, context, AT, PAGE) == 0
    assert fault.woken
