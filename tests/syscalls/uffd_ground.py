"""A process with a userfaultfd, in the model and on the running kernel, to do the same with both."""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from vmalab import flags as f
from vmalab.calls import Call
from vmalab.machine import Access, KernelError, Machine, Process
from vmalab.pages.memory import Memory
from vmalab.vma.area import UffdMessage

PAGE = 4096
ROOT = Path(__file__).parents[2]
NUMBERS = {"mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25, "madvise": 28, "mlock": 149, "munlock": 150}
EVENTS = {
    f.UFFD_EVENT_PAGEFAULT: "fault",
    f.UFFD_EVENT_FORK: "fork",
    f.UFFD_EVENT_REMAP: "remap",
    f.UFFD_EVENT_REMOVE: "remove",
    f.UFFD_EVENT_UNMAP: "unmap",
}
Message = tuple[object, ...]


class Ground(Protocol):
    """One process, and who has its userfaultfd.  Results are as from a system call: minus an errno."""

    def open(self, features: int, version: int = f.UFFD_API) -> int:
        """A userfaultfd, the first time, and UFFDIO_API."""

    def tell(self, command: int, start: int, length: int, mode: int = 0, content: bytes = b"", src: int = 0) -> int:
        """An ioctl on it; UFFDIO_MOVE by the process, all others by somebody else."""

    def call(self, name: str, *arguments: int) -> int:
        """A system call of the process that nobody waits for; its result."""

    def begin(self, name: str, *arguments: int) -> Any:
        """A system call, or read or write of an address, that may wait for the userfaultfd: to ask `waits` about."""

    def waits(self, begun: Any) -> bool:
        """Whether it is not done."""

    def read(self) -> list[Message]:
        """All messages that are there."""

    def read_one(self) -> Message | int:
        """The next message, or minus an errno."""

    def content(self, addr: int, length: int = 1) -> bytes:
        """What the process reads."""

    def close(self) -> None:
        """The userfaultfd is closed."""

    def end(self) -> None:
        """The process ends."""


class ModelGround:
    """In the model."""

    def __init__(self) -> None:
        self.machine = Machine(memory=Memory())
        self.process: Process = self.machine.process()
        self.number = 0

    def open(self, features: int, version: int = f.UFFD_API) -> int:
        self.number = self.number or self.process.userfaultfd()
        return self._ioctl(f.UFFDIO_API, {"features": features, "api": version})

    def _ioctl(self, command: int, data: dict[str, int | str | list[int]]) -> int:
        return self.process.do(Call("ioctl", (self.number, command, 0), data={"uffd": self.number, **data})).result

    def tell(self, command: int, start: int, length: int, mode: int = 0, content: bytes = b"", src: int = 0) -> int:
        data: dict[str, int | str | list[int]] = {"start": start, "len": length, "mode": mode, "src": src}
        return self._ioctl(command, {**data, "content": content.ljust(length, b"\0").hex()})

    def call(self, name: str, *arguments: int) -> int:
        return self.process.do(Call(name, arguments)).result

    def begin(self, name: str, *arguments: int) -> Access | None:
        if name in ("read", "write"):
            access = self.process.access(arguments[0], name == "write")
            if name == "write" and not access.waits:
                self.process.write(arguments[0], b"*")
            return access
        if name == "fork":
            self.process.fork()
        else:
            assert self.call(name, *arguments) >= 0
        return None

    def waits(self, begun: Access | None) -> bool:
        if begun is not None:
            return begun.waits
        # Whoever makes an event goes on when it is read.
        queue = self.process.uffds[self.number].queue if self.number in self.process.uffds else None
        return queue is not None and bool(queue.events)

    def read(self) -> list[Message]:
        found = []
        while isinstance(message := self.read_one(), tuple):
            found.append(message)
        return found

    def read_one(self) -> Message | int:
        try:
            message = self.process.read_userfaultfd(self.number)
        except KernelError as error:
            return -(error.errno or 0)
        return -11 if message is None else _shown(message)

    def content(self, addr: int, length: int = 1) -> bytes:
        return self.process.read(addr, length)

    def close(self) -> None:
        self.process.do(Call("close", (self.number,), data={"uffd": self.number}))

    def end(self) -> None:
        self.machine.validate()


def _shown(message: UffdMessage) -> Message:
    if message.event == f.UFFD_EVENT_PAGEFAULT:
        return "fault", message.first, message.second, message.third != 0
    if message.event == f.UFFD_EVENT_FORK:
        return ("fork",)
    rest = (message.third,) if message.event == f.UFFD_EVENT_REMAP else ()
    return EVENTS[message.event], message.first, message.second, *rest


class LiveGround:
    """On the running kernel."""

    def __init__(self) -> None:
        self._channel, other = socket.socketpair()
        command = [sys.executable, "-m", "tests.syscalls.uffd_agent", str(other.fileno())]
        self._agent = subprocess.Popen(command, cwd=ROOT, pass_fds=[other.fileno()])
        other.close()
        self._begun = 0
        self._done: dict[int, Any] = {}
        self._unread = b""
        self._descriptor = -1
        self._children: list[int] = []

    def open(self, features: int, version: int = f.UFFD_API) -> int:
        if self._descriptor < 0:
            self._done[self.begin("userfaultfd")] = 0
            _, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
            self._descriptor = descriptors[0]
        return self._ioctl(f.UFFDIO_API, version, features, 0)

    def _ioctl(self, command: int, *words: int) -> int:
        buffer = bytearray(struct.pack(f"{len(words)}Q", *words))
        try:
            fcntl.ioctl(self._descriptor, command, buffer)
        except OSError as error:
            return -(error.errno or 0)
        return 0

    def tell(self, command: int, start: int, length: int, mode: int = 0, content: bytes = b"", src: int = 0) -> int:
        if command == f.UFFDIO_MOVE:
            return int(self._result(self._send("ioctl", [command, start, src, length, mode, 0])))
        if command == f.UFFDIO_COPY:
            source = ctypes.create_string_buffer(content, max(length, len(content), 1))
            return self._ioctl(command, start, ctypes.addressof(source), length, mode, 0)
        return self._ioctl(command, start, length, mode, 0)

    def _send(self, what: str, arguments: list[Any]) -> int:
        self._begun += 1
        self._channel.sendall(json.dumps([self._begun, what, arguments]).encode() + b"\n")
        return self._begun

    def _result(self, number: int) -> Any:
        deadline = time.monotonic() + 30
        while number not in self._done:
            assert time.monotonic() < deadline, "the process does not answer"
            self._hear(0.1)
        return self._done[number]

    def _hear(self, patience: float) -> None:
        if select.select([self._channel], [], [], patience)[0]:
            self._unread += self._channel.recv(65536)
            *lines, self._unread = self._unread.split(b"\n")
            self._done.update([json.loads(line) for line in lines])

    def call(self, name: str, *arguments: int) -> int:
        return int(self._result(self.begin(name, *arguments)))

    def begin(self, name: str, *arguments: int) -> int:
        if name in NUMBERS:
            return self._send("call", [NUMBERS[name], *arguments])
        return self._send(name, [arguments[0], 1 if name == "read" else "2a"] if name in ("read", "write") else [])

    def waits(self, begun: int) -> bool:
        """As many threads wait for a userfaultfd as have not answered: then none of them is about to."""
        deadline = time.monotonic() + 30
        while begun not in self._done:
            self._hear(0.002)
            waiting = self._waiting()
            if waiting and waiting >= self._begun - len(self._done):
                self._hear(0)
                return begun not in self._done
            assert time.monotonic() < deadline, "it neither waits nor goes on"
        return False

    def _waiting(self) -> int:
        """How many of its threads wait for a userfaultfd."""
        found = 0
        for path in Path(f"/proc/{self._agent.pid}/task").glob("*/wchan"):
            with contextlib.suppress(OSError):
                found += "userfault" in path.read_text()
        return found

    def read(self) -> list[Message]:
        found = []
        while isinstance(message := self.read_one(), tuple):
            found.append(message)
        return found

    def read_one(self) -> Message | int:
        try:
            data = os.read(self._descriptor, 32)
        except OSError as error:
            return -(error.errno or 0)
        kind = EVENTS[data[0]]
        if kind == "fault":
            flags, addr, thread = struct.unpack("QQI", data[8:28])
            return kind, addr, flags, thread != 0
        if kind == "fork":
            self._children.append(struct.unpack("I", data[8:12])[0])
            return (kind,)
        return kind, *struct.unpack("QQQ" if kind == "remap" else "QQ", data[8 : 32 if kind == "remap" else 24])

    def content(self, addr: int, length: int = 1) -> bytes:
        return bytes.fromhex(self._result(self._send("read", [addr, length])))

    def close(self) -> None:
        self._result(self._send("close", []))
        os.close(self._descriptor)
        self._descriptor = -1

    def end(self) -> None:
        self._agent.kill()
        self._agent.wait()
        self._channel.close()
        for descriptor in [*self._children, self._descriptor]:
            if descriptor >= 0:
                os.close(descriptor)
