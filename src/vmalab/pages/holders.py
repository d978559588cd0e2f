"""Who holds pages of a process: pipes, fixed buffers of io_uring, memory regions of devices, debuggers."""

from __future__ import annotations

from collections.abc import Callable

from vmalab.addr import PAGE_SIZE
from vmalab.pages.gup import (
    FOLL_FAST,
    FOLL_FORCE,
    FOLL_GET,
    FOLL_LONGTERM,
    FOLL_PIN,
    FOLL_WRITE,
    Held,
    get_user_pages,
)
from vmalab.pages.memory import Memory
from vmalab.pages.port import memory_of
from vmalab.reason import PIN_NOT_PERMITTED, YES, explain
from vmalab.vma.space import Mm


class Refused(Exception):
    """Pages could not be held: `reason` says why."""

    def __init__(self, reason: int) -> None:
        why = explain(reason)
        super().__init__(f"{why.sentence} ({why.name})")
        self.reason = reason


def _memory(mm: Mm) -> Memory:
    memory = memory_of(mm)
    assert memory is not None, "only a machine with pages has any to hold"
    return memory


def _hold(mm: Mm, addr: int, length: int, flags: int, race: Callable[[], None] | None = None) -> Held:
    mm.mmap_read_lock()
    held, refusal = get_user_pages(_memory(mm), mm, addr, length, flags, race)
    mm.mmap_read_unlock()
    if held is None or refusal != YES:
        raise Refused(refusal)
    return held


class Pipe:
    """Pages that vmsplice has put into a pipe: references, taken by a read, that pin nothing."""

    def __init__(self) -> None:
        self._held: list[Held] = []
        self._lengths: list[int] = []

    def vmsplice(self, mm: Mm, addr: int, length: int) -> None:
        """Put the pages of a range into the pipe.  Raises Refused."""
        self._held.append(_hold(mm, addr, length, FOLL_GET | FOLL_FAST))
        self._lengths.append(length)

    def read(self) -> bytes:
        """All that is in the pipe, as it is now; the pages are let go."""
        found = b"".join([held.read(0, length) for held, length in zip(self._held, self._lengths, strict=True)])
        self.close()
        return found

    def held_first(self) -> Held:
        """What was put into the pipe first.  Raises IndexError where nothing was."""
        return self._held[0]

    def close(self) -> None:
        """Let go of the pages."""
        for held in self._held:
            held.release()
        self._held = []
        self._lengths = []


class MemoryRegion:
    """A range that a device has pinned for as long as it likes: RDMA, VFIO, a GPU.

    write: the device writes to it.  force: as drivers did before pins broke copy-on-write early (FOLL_FORCE).
    fast: from the page tables alone, where that is enough.
    """

    def __init__(
        self, mm: Mm, addr: int, length: int, *, write: bool = False, fast: bool = False, force: bool = False
    ) -> None:
        """Pin the pages.  Raises Refused."""
        flags = FOLL_PIN | FOLL_LONGTERM
        flags |= (FOLL_WRITE if write else 0) | (FOLL_FAST if fast else 0) | (FOLL_FORCE if force else 0)
        self.addr: int = addr
        self.length: int = length
        self.held: Held = _hold(mm, addr, length, flags)

    def read(self) -> bytes:
        """What the device reads."""
        return self.held.read(0, self.length)

    def write(self, at: int, data: bytes) -> None:
        """What the device writes, at an offset into the range.  Raises Refused where it is pinned for reading."""
        if not self.held.flags & FOLL_WRITE:
            raise Refused(PIN_NOT_PERMITTED)
        self.held.write(at, data)

    def close(self) -> None:
        """Unpin."""
        self.held.release()


class FixedBuffer(MemoryRegion):
    """A buffer that io_uring has registered: pinned for writing, for as long as it is registered."""

    def __init__(self, mm: Mm, addr: int, length: int) -> None:
        super().__init__(mm, addr, length, write=True, fast=True)


def access_process_vm(
    mm: Mm,
    addr: int,
    length: int,
    data: bytes | None = None,
    *,
    force: bool = True,
    race: Callable[[], None] | None = None,
) -> bytes:
    """Read, or write data, as a debugger does (ptrace, /proc/PID/mem; process_vm_readv without force).

    Page by page; what was read.  race: what another thread does when the first page was made accessible.

    Raises Refused at the first page that does not permit it.
    """
    flags = FOLL_GET | (FOLL_FORCE if force else 0) | (FOLL_WRITE if data is not None else 0)
    found: list[bytes] = []
    done = 0
    while done < length:
        step = min(PAGE_SIZE - (addr + done) % PAGE_SIZE, length - done)
        held = _hold(mm, addr + done, step, flags, race)
        race = None
        if data is not None:
            held.write(0, data[done : done + step])
        else:
            found.append(held.read(0, step))
        held.release()
        done += step
    return b"".join(found)
