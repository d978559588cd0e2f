"""What waits for a userfaultfd, its handshake, and moving pages: the same on the model and on the kernel."""

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from tests.syscalls.uffd_ground import PAGE, Ground, LiveGround, ModelGround
from vmalab import flags as f

A, B = 0x10000000, 0x20000000
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED
SHARED = f.MAP_SHARED | f.MAP_ANONYMOUS | f.MAP_FIXED
MISSING, WP, MINOR = 1, 2, 4
DONTWAKE, HOLES = 1, 2
EVENTS = (
    f.UFFD_FEATURE_EVENT_FORK | f.UFFD_FEATURE_EVENT_REMAP | f.UFFD_FEATURE_EVENT_REMOVE | f.UFFD_FEATURE_EVENT_UNMAP
)
NO_MEMBER, EXISTS, AGAIN, INVALID, BUSY, FAULT = (
    -errno.ENOENT,
    -errno.EEXIST,
    -errno.EAGAIN,
    -errno.EINVAL,
    -errno.EBUSY,
    -errno.EFAULT,
)


def _why_not() -> str:
    """Why the kernel cannot be asked; empty if it can."""
    if os.geteuid() != 0:
        return "a userfaultfd that serves the kernel, and one that hears of forks, needs privileges"
    ground = LiveGround()
    try:
        return "this kernel has no userfaultfd" if ground.open(0) else ""
    except OSError as error:
        return f"this kernel has no userfaultfd: {error}"
    finally:
        ground.end()


NOT_LIVE = _why_not()
live = pytest.param(LiveGround, id="kernel", marks=pytest.mark.skipif(bool(NOT_LIVE), reason=NOT_LIVE))
on_both = pytest.mark.parametrize("make", [pytest.param(ModelGround, id="model"), live])
Make = Callable[[], Ground]


@pytest.fixture
def ground(make: Make) -> Iterator[Ground]:
    """The process; it ends with the test."""
    found = make()
    yield found
    found.end()


def register(ground: Ground, mode: int, features: int = 0, flags: int = FIXED) -> None:
    """16 pages at A, registered, and 16 pages at B."""
    assert ground.open(features) == 0
    assert ground.call("mmap", A, 16 * PAGE, 3, flags, 0xFFFFFFFF, 0) == A
    assert ground.call("mmap", B, 16 * PAGE, 3, FIXED, 0xFFFFFFFF, 0) == B
    assert ground.tell(f.UFFDIO_REGISTER, A, 16 * PAGE, mode) == 0


def page(at: int, number: int = 0) -> int:
    return at + number * PAGE


def write(ground: Ground, addr: int) -> None:
    assert not ground.waits(ground.begin("write", addr))


@on_both
def test_the_handshake(ground: Ground) -> None:
    assert ground.open(0, 0xAB) == INVALID
    assert ground.read_one() == INVALID
    assert ground.tell(f.UFFDIO_REGISTER, A, PAGE, MISSING) == INVALID
    assert ground.tell(f.UFFDIO_WAKE, A, PAGE) == INVALID
    assert ground.open(1 << 40) == INVALID
    assert ground.open(f.UFFD_FEATURES & ~f.UFFD_FEATURE_SIGBUS) == 0
    assert ground.open(0) == INVALID
    assert ground.read_one() == AGAIN


@on_both
def test_accesses_wait_and_are_woken(ground: Ground) -> None:
    register(ground, MISSING)
    first, second = ground.begin("write", A + 5), ground.begin("read", page(A, 1) + 7)
    assert ground.waits(first)
    assert ground.waits(second)
    assert ground.read_one() in [("fault", A, 1, False), ("fault", page(A, 1), 0, False)]
    third = ground.begin("write", A + 9)
    assert ground.waits(third)
    # Put in place, and not woken, they wait on.
    assert ground.tell(f.UFFDIO_COPY, A, PAGE, DONTWAKE, b"abcdefghij") == 0
    assert ground.waits(first)
    assert ground.waits(third)
    assert ground.tell(f.UFFDIO_WAKE, A, PAGE) == 0
    assert not ground.waits(first)
    assert not ground.waits(third)
    assert ground.waits(second)
    # What was woken before it was read is not there to be read any more.
    assert ground.read() in [[("fault", page(A, 1), 0, False)], []]
    assert ground.tell(f.UFFDIO_WAKE, page(A, 1), PAGE) == 0
    # Nobody has put a page there: it waits anew.
    assert ground.waits(second)
    assert ground.read() == [("fault", page(A, 1), 0, False)]
    assert ground.tell(f.UFFDIO_ZEROPAGE, page(A, 1), PAGE) == 0
    assert not ground.waits(second)
    assert ground.read() == []


@on_both
def test_waking(ground: Ground) -> None:
    register(ground, MISSING)
    assert ground.tell(f.UFFDIO_WAKE, 0x30000000, PAGE) == 0
    assert ground.tell(f.UFFDIO_WAKE, A + 1, PAGE) == INVALID
    assert ground.tell(f.UFFDIO_WAKE, A, 0) == INVALID
    # An answer that comes to an end wakes for what it has done.
    waiting = ground.begin("write", page(A, 1))
    assert ground.waits(waiting)
    assert ground.tell(f.UFFDIO_ZEROPAGE, page(A, 2), PAGE) == 0
    assert ground.tell(f.UFFDIO_COPY, page(A, 1), 2 * PAGE) == AGAIN
    assert not ground.waits(waiting)


@on_both
def test_protected_pages(ground: Ground) -> None:
    register(ground, MISSING | WP)
    assert ground.tell(f.UFFDIO_COPY, A, PAGE, WP, b"a") == 0
    waiting = ground.begin("write", A)
    assert ground.waits(waiting)
    assert ground.read() == [("fault", A, 3, False)]
    assert ground.content(A) == b"a"
    assert ground.tell(f.UFFDIO_WRITEPROTECT, A, PAGE, 2) == 0
    assert ground.waits(waiting)
    assert ground.tell(f.UFFDIO_WAKE, A, 16 * PAGE) == 0
    assert not ground.waits(waiting)
    assert ground.tell(f.UFFDIO_WRITEPROTECT, A, PAGE, 1) == 0
    waiting = ground.begin("write", A)
    assert ground.waits(waiting)
    assert ground.tell(f.UFFDIO_WRITEPROTECT, A, PAGE, 0) == 0
    assert not ground.waits(waiting)
    assert ground.tell(f.UFFDIO_WRITEPROTECT, A, PAGE, 3) == INVALID


@on_both
def test_a_page_of_shared_memory(ground: Ground) -> None:
    register(ground, MINOR, flags=SHARED)
    write(ground, A)
    assert ground.call("madvise", A, PAGE, f.MADV_DONTNEED) == 0
    reads, writes = ground.begin("read", A), ground.begin("write", A)
    assert ground.waits(reads)
    assert ground.waits(writes)
    assert sorted(ground.read()) == [("fault", A, 4, False), ("fault", A, 5, False)]
    assert ground.tell(f.UFFDIO_CONTINUE, A, PAGE) == 0
    assert not ground.waits(reads)
    assert not ground.waits(writes)
    assert ground.tell(f.UFFDIO_CONTINUE, A, PAGE) == EXISTS


@on_both
def test_thread_and_address(ground: Ground) -> None:
    register(ground, MISSING, f.UFFD_FEATURE_THREAD_ID | f.UFFD_FEATURE_EXACT_ADDRESS)
    assert ground.waits(ground.begin("read", A + 123))
    assert ground.read() == [("fault", A + 123, 0, True)]
    assert ground.tell(f.UFFDIO_ZEROPAGE, A, PAGE) == 0


@on_both
@pytest.mark.parametrize("how", ["unregister", "close"])
def test_nobody_answers_any_more(ground: Ground, how: str) -> None:
    register(ground, MISSING)
    read, unread = ground.begin("write", A), ground.begin("write", page(A, 1))
    assert ground.waits(read)
    assert ground.waits(unread)
    ground.read_one()
    if how == "close":
        ground.close()
    else:
        assert ground.tell(f.UFFDIO_UNREGISTER, A, 16 * PAGE) == 0
    assert not ground.waits(read)
    assert not ground.waits(unread)


def filled(ground: Ground) -> None:
    """All that can be told of, with a page at each of the first 12."""
    register(ground, MISSING, EVENTS)
    for number in range(12):
        assert ground.tell(f.UFFDIO_COPY, page(A, number), PAGE, content=b"%x" % number) == 0


@on_both
def test_events_wait_to_be_read(ground: Ground) -> None:
    filled(ground)
    discards = ground.begin("madvise", A, 2 * PAGE, f.MADV_DONTNEED)
    assert ground.waits(discards)
    for command in (f.UFFDIO_COPY, f.UFFDIO_ZEROPAGE, f.UFFDIO_WRITEPROTECT, f.UFFDIO_POISON):
        assert ground.tell(command, page(A, 13), PAGE) == AGAIN
    assert ground.tell(f.UFFDIO_MOVE, page(A, 13), PAGE, src=B) == AGAIN
    assert ground.tell(f.UFFDIO_WAKE, A, PAGE) == 0
    faults = ground.begin("read", page(A, 15))
    assert ground.waits(faults)
    # Whoever has waited longer: faults come first.
    assert ground.read_one() == ("fault", page(A, 15), 0, False)
    assert ground.waits(discards)
    assert ground.read_one() == ("remove", A, page(A, 2))
    assert not ground.waits(discards)
    assert ground.waits(faults)
    assert ground.tell(f.UFFDIO_ZEROPAGE, page(A, 15), PAGE) == 0
    assert not ground.waits(faults)


@on_both
def test_events_of_calls(ground: Ground) -> None:
    filled(ground)
    fixed = f.MREMAP_MAYMOVE | f.MREMAP_FIXED
    seen = []
    for name, arguments in [
        ("mremap", (page(A, 1), 2 * PAGE, 2 * PAGE, fixed, 0x30000000)),
        ("munmap", (page(A, 3), PAGE)),
        ("mmap", (page(A, 6), PAGE, 3, FIXED, 0xFFFFFFFF, 0)),
        ("mremap", (page(A, 7), PAGE, PAGE, fixed, page(A, 8))),
        ("mremap", (page(A, 9), 2 * PAGE, PAGE, 0, 0)),
        ("fork", ()),
        ("madvise", (A, PAGE, f.MADV_FREE)),
        ("mremap", (page(A, 11), PAGE, PAGE, fixed | f.MREMAP_DONTUNMAP, 0x31000000)),
        # What covers several VMAs is told once, as it was asked for.
        ("munmap", (0x2FFFF000, 0x2000000)),
    ]:
        begun = ground.begin(name, *arguments)
        while ground.waits(begun):
            message = ground.read_one()
            if isinstance(message, tuple):
                seen.append(message)
    assert ground.read() == []
    assert seen == [
        ("remap", page(A, 1), 0x30000000, 2 * PAGE),
        ("unmap", page(A, 1), page(A, 3)),
        ("unmap", page(A, 3), page(A, 4)),
        ("unmap", page(A, 6), page(A, 7)),
        ("unmap", page(A, 8), page(A, 9)),
        ("remap", page(A, 7), page(A, 8), PAGE),
        ("unmap", page(A, 7), page(A, 8)),
        ("unmap", page(A, 10), page(A, 11)),
        ("fork",),
        ("remove", A, page(A, 1)),
        ("remap", page(A, 11), 0x31000000, PAGE),
        ("unmap", 0x2FFFF000, 0x31FFF000),
    ]


@on_both
def test_moving_pages(ground: Ground) -> None:
    register(ground, MISSING)
    for number in (0, 1, 2, 3, 7, 9):
        write(ground, page(B, number))
    waiting = ground.begin("read", A)
    assert ground.waits(waiting)
    move = f.UFFDIO_MOVE
    assert ground.tell(move, A, 2 * PAGE, src=B) == 0
    assert not ground.waits(waiting)
    assert ground.content(page(A, 1)) == b"*"
    assert ground.tell(move, page(A, 2), PAGE, src=B) == NO_MEMBER
    assert ground.tell(move, page(A, 2), PAGE, HOLES, src=B) == 0
    assert ground.content(B) == b"\0"
    assert ground.tell(move, page(A, 2), PAGE, src=B) == 0
    assert ground.tell(move, A, PAGE, src=page(B, 2)) == EXISTS
    assert ground.tell(move, page(A, 3), PAGE, 4, src=page(B, 2)) == INVALID
    assert ground.tell(move, page(A, 3), PAGE, DONTWAKE, src=page(B, 2)) == 0
    # Two are moved, not the hole behind; with holes all is done.
    write(ground, page(B, 4))
    assert ground.tell(move, page(A, 4), 4 * PAGE, src=page(B, 3)) == AGAIN
    assert ground.tell(move, page(A, 6), 4 * PAGE, HOLES, src=page(B, 5)) == 0
    assert ground.content(page(A, 8)) == b"*"


@on_both
def test_what_cannot_be_moved(ground: Ground) -> None:
    register(ground, MISSING)
    move = f.UFFDIO_MOVE
    for number in range(8):
        write(ground, page(B, number))
    for to, start, length in [(A + 1, B, PAGE), (A, B + 1, PAGE), (A, B, 0), (1 << 47, B, PAGE), (A, 1 << 47, PAGE)]:
        assert ground.tell(move, to, length, src=start) == INVALID
    assert ground.tell(move, A, PAGE, src=0x30000000) == NO_MEMBER
    assert ground.tell(move, 0x30000000, PAGE, src=B) == NO_MEMBER
    assert ground.tell(move, page(B, 8), PAGE, src=B) == INVALID
    assert ground.tell(move, A, 2 * PAGE, src=page(B, 15)) == INVALID
    assert ground.tell(move, page(A, 15), 2 * PAGE, src=B) == INVALID
    assert ground.call("mprotect", page(B, 1), PAGE, 1) == 0
    assert ground.tell(move, A, PAGE, src=page(B, 1)) == INVALID
    assert ground.call("mprotect", page(A, 1), PAGE, 1) == 0
    assert ground.tell(move, page(A, 1), PAGE, src=page(B, 1)) == INVALID
    assert ground.call("mlock", page(B, 2), PAGE) == 0
    assert ground.tell(move, A, PAGE, src=page(B, 2)) == INVALID
    assert ground.call("madvise", page(B, 3), PAGE, f.MADV_GUARD_INSTALL) == 0
    assert ground.tell(move, A, PAGE, src=page(B, 3)) == FAULT
    assert ground.tell(move, A, PAGE, HOLES, src=page(B, 3)) == FAULT
    assert ground.tell(f.UFFDIO_POISON, page(A, 2), PAGE) == 0
    assert ground.tell(move, page(A, 2), PAGE, src=page(B, 4)) == EXISTS
    assert not ground.waits(ground.begin("fork"))
    assert ground.tell(move, A, PAGE, src=page(B, 4)) == BUSY
    write(ground, page(B, 4))
    assert ground.tell(move, A, PAGE, src=page(B, 4)) == 0


@on_both
def test_moved_pages_are_not_protected(ground: Ground) -> None:
    register(ground, MISSING | WP)
    assert ground.tell(f.UFFDIO_REGISTER, B, 16 * PAGE, WP) == 0
    write(ground, B)
    assert ground.tell(f.UFFDIO_WRITEPROTECT, B, PAGE, 1) == 0
    assert ground.tell(f.UFFDIO_MOVE, A, PAGE, src=B) == 0
    write(ground, A)
    # Of the zero page as well, which is then written to as anywhere else.
    assert ground.content(page(B, 1)) == b"\0"
    assert ground.tell(f.UFFDIO_MOVE, page(A, 1), PAGE, src=page(B, 1)) == 0
    write(ground, page(A, 1))


@on_both
def test_shared_memory_is_not_moved(ground: Ground) -> None:
    register(ground, MISSING, flags=SHARED)
    write(ground, B)
    assert ground.tell(f.UFFDIO_MOVE, A, PAGE, src=B) == INVALID
