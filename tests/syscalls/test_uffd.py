"""Answers to a userfaultfd: copy, zero page, continue, poison, write protection."""

import errno
from pathlib import Path
from typing import Any

import pytest

from vmalab.calls import Call
from vmalab.flags import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_MAYMOVE,
    UFFD_EVENT_PAGEFAULT,
    UFFDIO_CONTINUE,
    UFFDIO_COPY,
    UFFDIO_POISON,
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
    UFFDIO_WRITEPROTECT,
    UFFDIO_ZEROPAGE,
)
from vmalab.machine import KernelError, Machine, Process
from vmalab.pages.memory import Memory
from vmalab.reason import FAULT_POISONED, FAULT_USERFAULTFD, FAULT_USERFAULTFD_MINOR, FAULT_USERFAULTFD_WP

PAGE = 4096
MISSING, WP, MINOR = 1, 2, 4
PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
SHARED = MAP_SHARED | MAP_ANONYMOUS


def registered(mode: int, flags: int = PRIVATE) -> tuple[Process, int]:
    process = Machine(memory=Memory()).process()
    addr = process.mmap(0, 8 * PAGE, flags=flags)
    assert tell(process, UFFDIO_REGISTER, addr, 8 * PAGE, mode) == 0
    return process, addr


def tell(process: Process, command: int, start: int, length: int, mode: int = 0, content: bytes = b"") -> int:
    """An ioctl on the userfaultfd: its result."""
    data: dict[str, int | str | list[int]] = {"uffd": 0, "start": start, "len": length, "mode": mode}
    if content:
        data["content"] = content.hex()
    return process.do(Call("ioctl", (3, command, 0), data=data)).result


def refusal(process: Process, addr: int, write: bool = True) -> int:
    with pytest.raises(KernelError) as caught:
        process.touch(addr, write)
    return caught.value.reason


def test_a_missing_page_waits_and_is_copied() -> None:
    process, addr = registered(MISSING)
    assert refusal(process, addr) == FAULT_USERFAULTFD
    assert refusal(process, addr, write=False) == FAULT_USERFAULTFD
    assert tell(process, UFFDIO_COPY, addr, 2 * PAGE, content=b"one".ljust(PAGE, b"\0") + b"two") == 0
    assert (process.read(addr, 3), process.read(addr + PAGE, 3)) == (b"one", b"two")
    process.write(addr, b"own")
    assert tell(process, UFFDIO_COPY, addr, PAGE, content=b"x") == -errno.EEXIST
    assert tell(process, UFFDIO_COPY, addr - PAGE, PAGE, content=b"x") == -errno.ENOENT
    assert tell(process, UFFDIO_COPY, addr + 2 * PAGE, PAGE, WP, content=b"x") == -errno.EINVAL
    process.machine.validate()


def test_some_of_the_pages() -> None:
    process, addr = registered(MISSING)
    assert tell(process, UFFDIO_ZEROPAGE, addr + PAGE, PAGE) == 0
    assert tell(process, UFFDIO_ZEROPAGE, addr, 2 * PAGE) == -errno.EAGAIN
    assert process.read(addr, 2 * PAGE) == bytes(2 * PAGE)
    assert tell(process, UFFDIO_CONTINUE, addr + 2 * PAGE, PAGE) == -errno.EINVAL


def test_a_minor_fault_goes_on_with_the_page_of_the_file() -> None:
    process, addr = registered(MINOR, SHARED)
    assert tell(process, UFFDIO_CONTINUE, addr, PAGE) == -errno.EFAULT
    process.write(addr, b"all")
    process.madvise(addr, PAGE, MADV_DONTNEED)
    assert refusal(process, addr) == FAULT_USERFAULTFD_MINOR
    assert tell(process, UFFDIO_CONTINUE, addr, PAGE) == 0
    assert process.read(addr, 3) == b"all"
    process.machine.validate()


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_a_poisoned_page(flags: int) -> None:
    process, addr = registered(MISSING, flags)
    assert tell(process, UFFDIO_POISON, addr, PAGE) == 0
    assert refusal(process, addr) == FAULT_POISONED
    process.madvise(addr, PAGE, MADV_DONTNEED)
    assert refusal(process, addr) == FAULT_USERFAULTFD


@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_write_protection(flags: int) -> None:
    process, addr = registered(WP, flags)
    process.write(addr, b"old")
    assert tell(process, UFFDIO_WRITEPROTECT, addr, 2 * PAGE, 1) == 0
    assert process.read(addr, 3) == b"old"
    assert refusal(process, addr) == FAULT_USERFAULTFD_WP
    if flags == SHARED:
        # Where no page is, shared memory remembers it.
        assert refusal(process, addr + PAGE) == FAULT_USERFAULTFD_WP
    else:
        process.write(addr + PAGE, b"new")
    assert tell(process, UFFDIO_WRITEPROTECT, addr, 2 * PAGE, 0) == 0
    process.write(addr, b"new")
    assert tell(process, UFFDIO_WRITEPROTECT, addr, 2 * PAGE, 3) == -errno.EINVAL
    assert tell(process, UFFDIO_WRITEPROTECT, addr + 8 * PAGE, PAGE, 1) == -errno.ENOENT


def test_who_leaves_takes_the_protection_along() -> None:
    process, addr = registered(WP)
    process.write(addr, b"old")
    tell(process, UFFDIO_WRITEPROTECT, addr, PAGE, 1)
    assert tell(process, UFFDIO_UNREGISTER, addr, 8 * PAGE) == 0
    process.write(addr, b"new")
    assert process.page(addr).writable


def test_what_is_moved_away_is_not_protected() -> None:
    process, addr = registered(WP)
    process.write(addr, b"old")
    tell(process, UFFDIO_WRITEPROTECT, addr, PAGE, 1)
    moved = process.mremap(addr, PAGE, 2 * PAGE, MREMAP_MAYMOVE)
    assert moved != addr
    process.write(moved, b"new")
    assert process.read(moved, 3) == b"new"


def test_a_child_without_the_context_has_no_protection() -> None:
    process, addr = registered(WP)
    process.write(addr, b"old")
    tell(process, UFFDIO_WRITEPROTECT, addr, PAGE, 1)
    child = process.fork()
    child.write(addr, b"new")
    assert refusal(process, addr) == FAULT_USERFAULTFD_WP
    assert process.read(addr, 3) == b"old"
    process.machine.validate()


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs/copy-on-write.md").read_text()
    lines = page.partition("## userfaultfd\n\n")[2].partition("\nThe ioctls are")[0].splitlines()
    names: dict[str, Any] = {}
    exec("\n".join([line.removeprefix("    ") for line in lines]), names)
    assert not names["access"].waits
    assert names["process"].read(names["addr"], 4) == b"page"
    assert (names["message"].event, names["message"].first) == (UFFD_EVENT_PAGEFAULT, names["addr"])
