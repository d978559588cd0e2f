"""Somebody who reads the events of userfaultfds, so that what waits for them to be read goes on."""

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


class Listener:
    """Reads events of userfaultfds of other processes in one thread, from the first of them until it is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[int, EventReader] = {}
        """By the descriptor that is read."""
        self._poll: select.epoll | None = None
        self._thread: threading.Thread | None = None
        self._ended = self._end = -1

    def follow(self, pid: int, descriptor: int) -> EventReader:
        """Read what comes from a descriptor of a process.  Raises OSError."""
        process = os.pidfd_open(pid)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            own = int(libc.syscall(_PIDFD_GETFD, process, descriptor, 0))
            if own < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "pidfd_getfd")
        finally:
            os.close(process)
        reader = EventReader(self, own)
        if self._thread is None:
            self._start()
        with self._lock:
            self.add(own, reader)
        return reader

    def _start(self) -> None:
        self._ended, self._end = os.pipe()
        self._poll = select.epoll()
        self._poll.register(self._ended, select.EPOLLIN)
        self._thread = threading.Thread(target=self._listen, args=(self._poll,), daemon=True)
        self._thread.start()

    def _listen(self, poll: select.epoll) -> None:
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._ended:
                    return
                with self._lock:
                    reader = self._readers.get(descriptor)
                    if reader is not None:
                        reader.read_one(descriptor)

    def add(self, descriptor: int, reader: EventReader) -> None:
        """Listen to a descriptor, which is closed when it is dropped.  For whoever holds the lock."""
        assert self._poll is not None
        os.set_blocking(descriptor, False)
        self._readers[descriptor] = reader
        self._poll.register(descriptor, select.EPOLLIN)

    def drop(self, descriptors: list[int]) -> None:
        """Close descriptors; nobody is reading them then."""
        assert self._poll is not None
        with self._lock:
            for descriptor in descriptors:
                del self._readers[descriptor]
                # The file stays open in its process, and the poll would go on telling of it.
                self._poll.unregister(descriptor)
                os.close(descriptor)

    def close(self) -> None:
        """End the thread, and let go of everything."""
        if self._thread is None or self._poll is None:
            return
        os.write(self._end, b"x")
        self._thread.join()
        self.drop(list(self._readers))
        self._poll.close()
        os.close(self._ended)
        os.close(self._end)
        self._thread = self._poll = None


class EventReader:
    """What a listener has read of one userfaultfd, and of those that its events have brought."""

    def __init__(self, listener: Listener, own: int) -> None:
        self._listener = listener
        self._own = own
        self._children: list[int] = []
        self.seen: list[int] = []
        """The events, by number."""

    def read_one(self, descriptor: int) -> None:
        """Read one event, if there is one; a child's own userfaultfd that comes with it is listened to as well."""
        try:
            data = os.read(descriptor, _MESSAGE.size)
        except BlockingIOError:
            return
        event, first, _, _ = _MESSAGE.unpack(data)
        self.seen.append(event)
        if event == _EVENT_FORK:
            # The child's memory leaves its userfaultfd when this is closed; and what it does is told there.
            child = int(first & 0xFFFFFFFF)
            self._children.append(child)
            self._listener.add(child, self)

    def stop(self) -> None:
        """Let go of the userfaultfd.  Those of children stay until `forget`: their memory is still registered."""
        if self._own >= 0:
            self._listener.drop([self._own])
            self._own = -1

    def forget(self) -> None:
        """Let go of everything: the children are gone."""
        self.stop()
        self._listener.drop(self._children)
        self._children = []
