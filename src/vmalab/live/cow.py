"""The copy-on-write suite's ground on the running kernel: processes of the agent, and settings that are put back."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import (
    MAP_ANONYMOUS,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from vmalab.live.agent import Agent, Step, why_not
from vmalab.live.facts import POOLS, THP
from vmalab.live.procfs import PM_PRESENT, PM_SWAP
from vmalab.live.settings import change_setting, lock_settings
from vmalab.testing.cow import HUGETLB_SIZES, THP_SIZES, UNIT, Actor, Held, Range, Skip, expected
from vmalab.testing.cow_families import PIN, Case, Ground

SWAP_PAGES: Final = 16384
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_POOL: Final = 3
"""Huge pages of each pool that a case can do with: its page, a copy, and one to spare for what is freed late."""
_PIPE_BYTES: Final = 1 << 20
"""What a pipe may hold without privilege."""
_NO_FILE: Final = (1 << 64) - 1
_OPEN, _CLOSE, _MMAP, _MPROTECT, _MUNMAP, _PREAD, _PWRITE, _MREMAP, _MADVISE = 2, 3, 9, 10, 11, 17, 18, 25, 28
_FTRUNCATE, _FCNTL, _VMSPLICE, _PIPE2, _MEMFD_CREATE = 77, 72, 278, 293, 319
_IO_URING_SETUP, _IO_URING_ENTER, _IO_URING_REGISTER, _PIDFD_OPEN, _PIDFD_GETFD = 425, 426, 427, 434, 438
_F_SETPIPE_SZ: Final = 1031
_REGISTER_BUFFERS: Final = 0
_WRITE_FIXED: Final = 5
_OFF_SQES: Final = 0x10000000
_MFD_HUGETLB: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(*args: int | ctypes.Array[ctypes.c_char]) -> int:
    """A system call of this process.  Raises OSError."""
    result = int(_libc.syscall(*[ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class LiveActor(Actor):
    """A process of the agent."""

    def __init__(self, ground: LiveGround, channel: int, parent: int) -> None:
        self._ground = ground
        self.agent = ground.agent
        """The agent that it is a process of."""
        self._channel = channel
        self._parent = parent
        self._children: list[LiveActor] = []
        self._gone = False

    def call(self, number: int, *args: int, data: bytes = b"") -> int:
        """A system call of the process: its result, or minus an errno."""
        return self.agent.run([Step(number, args, data)], self._channel, report=0)[0].result

    def must(self, number: int, *args: int, data: bytes = b"") -> int:
        """The same, where a refusal ends the case.  Raises Skip."""
        result = self.call(number, *args, data=data)
        if result < 0:
            raise Skip(f"system call {number} is answered with {os.strerror(-result)}")
        return result

    def _map(self, length: int, prot: int, flags: int, descriptor: int = _NO_FILE) -> int:
        return self.must(_MMAP, 0, length, prot, flags, descriptor, 0)

    def mmap(self, length: int, hugetlb: int = 0) -> int:
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        if hugetlb:
            flags |= MAP_HUGETLB | (hugetlb.bit_length() - 1) << MAP_HUGE_SHIFT
        return self._map(length, PROT_READ | PROT_WRITE, flags)

    def mmap_file(self, kind: str, length: int, hugetlb: int = 0) -> tuple[int, int]:
        if kind == "memfd":
            flags = _MFD_HUGETLB | (hugetlb.bit_length() - 1) << MAP_HUGE_SHIFT if hugetlb else 0
            descriptor = self.must(_MEMFD_CREATE, self.agent.scratch, flags, data=b"cow\0")
            self.must(_FTRUNCATE, descriptor, length)
        else:
            with tempfile.TemporaryFile() as file:
                file.truncate(length)
                path = f"/proc/{os.getpid()}/fd/{file.fileno()}".encode() + b"\0"
                descriptor = self.must(_OPEN, self.agent.scratch, os.O_RDWR, data=path)
        both = PROT_READ | PROT_WRITE
        private = self._map(length, both, MAP_PRIVATE, descriptor)
        shared = self._map(length, both, MAP_SHARED, descriptor)
        self.must(_CLOSE, descriptor)
        return private, shared

    def munmap(self, addr: int, length: int) -> None:
        self.must(_MUNMAP, addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        self.must(_MPROTECT, addr, length, prot)

    def madvise(self, addr: int, length: int, advice: int) -> bool:
        return self.call(_MADVISE, addr, length, advice) == 0

    def move(self, addr: int, length: int) -> None:
        target = self._map(length, 0, MAP_PRIVATE | MAP_ANONYMOUS)
        self.must(_MREMAP, addr, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target)

    def write(self, addr: int, data: bytes) -> None:
        os.pwrite(self._ground.exchange, data, 0)
        self.must(_PREAD, self._ground.theirs, addr, len(data), 0)

    def read(self, addr: int, length: int) -> bytes:
        self.must(_PWRITE, self._ground.theirs, addr, length, 0)
        return os.pread(self._ground.exchange, length, 0)

    def fill(self, where: Range, tag: int) -> None:
        os.pwrite(self._ground.exchange, expected(where, tag), 0)
        self._at_once(_PREAD, where)

    def looks(self, where: Range) -> bytes:
        self._at_once(_PWRITE, where)
        return os.pread(self._ground.exchange, len(where.samples()) * UNIT, 0)

    def _at_once(self, number: int, where: Range) -> None:
        """Read or write the sampled pages by the exchange file, in one go."""
        theirs = self._ground.theirs
        steps = [
            Step(number, (theirs, where.addr + (page << PAGE_SHIFT), UNIT, at * UNIT))
            for at, page in enumerate(where.samples())
        ]
        for reply in self.agent.run(steps, self._channel, report=0):
            if reply.result != UNIT:
                raise Skip(f"memory cannot be accessed: {os.strerror(-reply.result)}")

    def fork(self) -> Actor:
        child = self._ground.forked(self._channel)
        self._children.append(child)
        return child

    def exit(self) -> None:
        if self._gone:
            return
        self._gone = True
        for child in self._children:
            child.exit()
        self._ground.end(self._channel, self._parent)

    def _pagemap(self, addr: int, length: int, bit: int) -> int:
        with open(f"/proc/{self.agent.pid_of(self._channel)}/pagemap", "rb", buffering=0) as file:
            file.seek((addr >> PAGE_SHIFT) * 8)
            words = struct.unpack(f"<{length >> PAGE_SHIFT}Q", file.read((length >> PAGE_SHIFT) * 8))
        return sum([word & bit != 0 for word in words])

    def resident(self, addr: int, length: int) -> int:
        return self._pagemap(addr, length, PM_PRESENT)

    def swapped(self, addr: int, length: int) -> int:
        return self._pagemap(addr, length, PM_SWAP)

    def open_descriptor(self, descriptor: int) -> int:
        """This process's own descriptor of what the process of the agent has open."""
        pidfd = _syscall(_PIDFD_OPEN, self.agent.pid_of(self._channel), 0)
        try:
            return _syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
        finally:
            os.close(pidfd)

    def scratch(self, length: int) -> bytes:
        """What a call has left in the scratch page."""
        with open(f"/proc/{self.agent.pid_of(self._channel)}/mem", "rb", buffering=0) as file:
            file.seek(self.agent.scratch)
            return file.read(length)

    def vmsplice(self, addr: int, length: int) -> Held:
        return LivePipe(self, Range(addr, length))

    def fixed_buffer(self, addr: int, length: int) -> Held:
        return LiveBuffer(self, Range(addr, length))

    def pin(self, addr: int, length: int, fast: bool) -> Held:
        raise Skip("pages can be pinned for reading by a test module alone")


class LivePipe(Held):
    """Pages that a process has put into pipes, a MiB in each; this process reads them."""

    def __init__(self, actor: LiveActor, where: Range) -> None:
        self._where = where
        self._pipes: list[int] = []
        for start in range(where.addr, where.addr + where.length, _PIPE_BYTES):
            self._splice(actor, start, min(_PIPE_BYTES, where.addr + where.length - start))

    def _splice(self, actor: LiveActor, start: int, length: int) -> None:
        scratch = actor.agent.scratch
        actor.must(_PIPE2, scratch, 0, data=bytes(8))
        ours, theirs = struct.unpack("<ii", actor.scratch(8))
        self._pipes.append(actor.open_descriptor(ours))
        actor.must(_CLOSE, ours)
        try:
            actor.must(_FCNTL, theirs, _F_SETPIPE_SZ, length)
            done = 0
            while done < length:
                vector = struct.pack("<QQ", start + done, length - done)
                done += actor.must(_VMSPLICE, theirs, scratch, 1, 0, data=vector)
        except Skip:
            self.close()
            raise
        actor.must(_CLOSE, theirs)

    def read(self) -> bytes:
        found = b"".join([_all_of(pipe) for pipe in self._pipes])
        if len(found) != self._where.length:
            raise Skip("the pipe holds less than was put into it")
        return b"".join([found[page << PAGE_SHIFT :][:UNIT] for page in self._where.samples()])

    def close(self) -> None:
        for pipe in self._pipes:
            os.close(pipe)
        self._pipes = []


def _all_of(pipe: int) -> bytes:
    """All that a pipe holds, which nobody writes to any more."""
    parts: list[bytes] = []
    while part := os.read(pipe, _PIPE_BYTES):
        parts.append(part)
    return b"".join(parts)


class LiveBuffer(Held):
    """A buffer that a process has registered with a ring; this process asks the ring to write it to a file."""

    def __init__(self, actor: LiveActor, where: Range) -> None:
        self._where = where
        agent = actor.agent
        theirs = actor.must(_IO_URING_SETUP, 1, agent.scratch, data=bytes(64))
        self._offsets = struct.unpack_from("<10I", actor.scratch(120), 40)
        self._ring = actor.open_descriptor(theirs)
        vector = struct.pack("<QQ", where.addr, where.length)
        result = actor.call(_IO_URING_REGISTER, theirs, _REGISTER_BUFFERS, agent.scratch, 1, data=vector)
        actor.must(_CLOSE, theirs)
        if result < 0:
            os.close(self._ring)
            raise Skip(f"the buffer cannot be registered: {os.strerror(-result)}")

    def read(self) -> bytes:
        target = os.memfd_create("cow")
        both = mmap.PROT_READ | mmap.PROT_WRITE
        try:
            with (
                mmap.mmap(self._ring, PAGE_SIZE, mmap.MAP_SHARED, both) as ring,
                mmap.mmap(self._ring, PAGE_SIZE, mmap.MAP_SHARED, both, offset=_OFF_SQES) as entries,
            ):
                addr, length = self._where.addr, self._where.length
                entries[:64] = struct.pack(
                    "<BBHiQQIIQHHI16x", _WRITE_FIXED, 0, 0, target, 0, addr, length, 0, 0, 0, 0, 0
                )
                tail_at, array_at = self._offsets[1], self._offsets[6]
                (tail,) = struct.unpack_from("<I", ring, tail_at)
                struct.pack_into("<I", ring, array_at, 0)
                struct.pack_into("<I", ring, tail_at, tail + 1)
                _syscall(_IO_URING_ENTER, self._ring, 1, 1, 1, 0, 0)
            parts = [os.pread(target, UNIT, page << PAGE_SHIFT) for page in self._where.samples()]
        finally:
            os.close(target)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self._ring)


class LiveGround(Ground):
    """The running kernel, with huge pages, pools and swap as far as they can be had.  A context manager.

    What is set is put back when it is left, also by Ctrl-C and when the terminal is closed.  Two at once would put back
    what the other has set, so that one waits for the other.
    """

    def __init__(self, *, settings: bool = True) -> None:
        """settings: whether settings of the machine are touched, for huge pages and swap.

        Entering it raises VmalabError where another one has them for long.
        """
        self._settings = settings
        self._stack = ExitStack()
        self._missing: dict[str, str] = {}
        """What is not to be had, and why."""
        self._channels: list[int] = []

    def __enter__(self) -> LiveGround:
        with self._stack:
            for number in _ENDINGS:
                before = signal.getsignal(number)
                self._stack.callback(signal.signal, number, before)
                if before is not signal.SIG_IGN:
                    signal.signal(number, _stop)
            if self._settings:
                self._stack.callback(os.close, lock_settings())
                self._set_thp()
                for size in HUGETLB_SIZES:
                    self._set_pool(size)
                self._make_swap()
            self._start_agent()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *what: object) -> None:
        try:
            _ignore_endings()
        finally:
            self._stack.close()

    def _start_agent(self) -> None:
        reason = why_not()
        if reason is not None:
            self._missing["agent"] = reason
            return
        self.agent = self._stack.enter_context(Agent("none"))
        self._channels = list(range(1, 8))
        self.exchange = os.memfd_create("exchange")
        self._stack.callback(os.close, self.exchange)
        os.truncate(self.exchange, 1 << 20)
        path = f"/proc/{os.getpid()}/fd/{self.exchange}".encode() + b"\0"
        self.theirs = self.agent.run([Step(_OPEN, (self.agent.scratch, os.O_RDWR), path)], report=0)[0].result
        if self.theirs < 0:
            self._missing["agent"] = f"the agent cannot open a file of this process: {os.strerror(-self.theirs)}"

    def _put(self, path: Path, value: str) -> str:
        """Write a setting, to be put back: why it cannot be; empty if it was."""
        try:
            change_setting(self._stack, path, value)
        except OSError as error:
            return f"{path}: {error.strerror}"
        return ""

    def _set_thp(self) -> None:
        if not THP.exists():
            self._missing.update({f"thp {size}": "this kernel has no transparent huge pages" for size in THP_SIZES})
            return
        self._put(THP / "enabled", "madvise")
        for size in THP_SIZES:
            path = THP / f"hugepages-{size >> 10}kB/enabled"
            if path.exists():
                reason = self._put(path, "madvise")
            else:
                reason = "" if size == THP_SIZES[-1] else f"there are no huge pages of {size >> 10} kB"
            if reason:
                self._missing[f"thp {size}"] = reason

    def _set_pool(self, size: int) -> None:
        path = POOLS / f"hugepages-{size >> 10}kB/nr_hugepages"
        name = f"hugetlb {size}"
        if not path.exists():
            self._missing[name] = f"this machine has no huge pages of {size >> 20} MB"
            return
        reason = self._put(path, str(max(_POOL, int(path.read_text("ascii")))))
        if not reason and int(path.read_text("ascii")) < _POOL:
            reason = f"there is no room for {_POOL} huge pages of {size >> 20} MB"
        if reason:
            self._missing[name] = reason

    def _make_swap(self) -> None:
        """A swap file of its own, in the directory for temporary files."""
        try:
            descriptor, name = tempfile.mkstemp(prefix="vmalab-swap-")
        except OSError as error:
            self._missing["swap"] = f"no swap file can be made: {error.strerror}"
            return
        self._stack.callback(os.unlink, name)
        try:
            header = bytearray(PAGE_SIZE)
            struct.pack_into("<II", header, 1024, 1, SWAP_PAGES - 1)
            header[-10:] = b"SWAPSPACE2"
            os.write(descriptor, header)
            for _ in range(SWAP_PAGES - 1):
                os.write(descriptor, bytes(PAGE_SIZE))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._stack.callback(_libc.swapoff, name.encode())
        if _libc.swapon(name.encode(), 0):
            self._missing["swap"] = f"the swap file cannot be used: {os.strerror(ctypes.get_errno())}"

    def process(self) -> Actor:
        return self.forked(0)

    def forked(self, parent: int) -> LiveActor:
        """A child of a process of the agent."""
        channel = self._channels.pop(0)
        pid = self.agent.fork(parent, channel)
        if pid < 0:
            self._channels.append(channel)
            raise Skip(f"fork is answered with {os.strerror(-pid)}")
        return LiveActor(self, channel, parent)

    def end(self, channel: int, parent: int) -> None:
        """End a process of the agent."""
        self.agent.exit(channel, parent)
        self._channels.append(channel)

    def missing(self, case: Case) -> str:
        wanted = ["agent"]
        wanted += ["swap"] if case.swaps else []
        wanted += [f"thp {case.thp}"] if case.thp else []
        wanted += [f"hugetlb {case.hugetlb}"] if case.hugetlb else []
        for each in wanted:
            if each in self._missing:
                return self._missing[each]
        return "pages can be pinned for reading by a test module alone" if case.needs == PIN else ""


def _ignore_endings() -> None:
    """Let nothing stop this process any more while it puts the settings back."""
    for number in _ENDINGS:
        # Not SIG_IGN: where one has arrived already, Python says that it was lost.
        signal.signal(number, _pass_over)


def _pass_over(number: int, frame: FrameType | None) -> None:
    """A signal that comes too late."""


def _stop(number: int, frame: FrameType | None) -> None:
    _ignore_endings()
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
