"""Somebody who reads the events of a userfaultfd, so that what waits for them to be read goes on."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from typing import Final

from vmalab.flags import (
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_UNMAP,
)

EVENTS: Final = (
    UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP
)
"""Features of a userfaultfd that make others wait until they are read."""
_EVENT_FORK: Final = 0x13
_MESSAGE: Final = struct.Struct("<B7xQQQ")
_PIDFD_GETFD: Final = 438


class EventReader:
    """Reads the events of a userfaultfd of another process, in a thread, until it is stopped."""

    def __init__(self, pid: int, descriptor: int) -> None:
        """Take hold of a descriptor of a process.  Raises OSError."""
        process = os.pidfd_open(pid)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            self._own = int(libc.syscall(_PIDFD_GETFD, process, descriptor, 0))
            if self._own < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "pidfd_getfd")
        finally:
            os.close(process)
        os.set_blocking(self._own, False)
        self.seen: list[int] = []
        """The events, by number."""
        self._children: list[int] = []
        self._ended, self._end = os.pipe()
        self._start()

    def _read(self) -> None:
        poll = select.poll()
        for descriptor in (self._ended, *self._children, *([self._own] if self._own >= 0 else [])):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self._ended in ready:
                return
            for descriptor in ready:
                child = self._read_one(descriptor)
                if child >= 0:
                    poll.register(child, select.POLLIN)

    def _read_one(self, descriptor: int) -> int:
        """Read one event: the descriptor of a child's own userfaultfd that comes with it, or -1."""
        try:
            data = os.read(descriptor, _MESSAGE.size)
        except BlockingIOError:
            return -1
        event, first, _, _ = _MESSAGE.unpack(data)
        self.seen.append(event)
        if event != _EVENT_FORK:
            return -1
        # The child's memory leaves its userfaultfd when this is closed; and what it does is told there.
        child = int(first & 0xFFFFFFFF)
        os.set_blocking(child, False)
        self._children.append(child)
        return child

    def stop(self) -> None:
        """Let go of the userfaultfd.  Those of children stay until `forget`: their memory is still registered."""
        if self._own >= 0:
            self._stop_thread()
            os.close(self._own)
            self._own = -1
            self._start()

    def forget(self) -> None:
        """Let go of everything: the children are gone."""
        self._stop_thread()
        for descriptor in (*self._children, self._ended, self._end, *([self._own] if self._own >= 0 else [])):
            os.close(descriptor)
        self._children = []
        self._own = self._ended = self._end = -1

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _stop_thread(self) -> None:
        os.write(self._end, b"x")
        self._thread.join()
        os.read(self._ended, 1)
