"""The files that all runs of a lockstep map: regular ones, memfds, and segments of shared memory."""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path
from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.trace import records
from vmalab.trace.load import load_file
from vmalab.vma.area import File

FILE_PAGES: Final = 1 << 18
SEGMENT_PAGES: Final = (3, 16)
_IPC_PRIVATE: Final = 0
_IPC_CREATE: Final = 0o1000 | 0o600
_IPC_RMID: Final = 0


class Files:
    """Files that are there as long as this object: close() removes them, and so does the end of this process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmalab-")
        self.descriptors: list[int] = []
        """Of the files; a segment of shared memory has its number here, and no record."""
        self.records: list[records.File] = []
        self.segments: list[int] = []
        """Numbers of the segments of shared memory."""
        self._attached: list[int] = []
        path = Path(self._folder.name) / "file"
        path.write_bytes(b"")
        os.truncate(path, FILE_PAGES * PAGE_SIZE)
        for flags in (os.O_RDWR, os.O_RDWR, os.O_RDONLY):
            self._add(os.open(path, flags | os.O_CLOEXEC), "regular", str(path), flags == os.O_RDWR)
        for name, pages in (("m", FILE_PAGES), ("n", 24)):
            descriptor = os.memfd_create(name)
            os.ftruncate(descriptor, pages * PAGE_SIZE)
            self._add(descriptor, "memfd", f"/memfd:{name} (deleted)", True)
        for pages in SEGMENT_PAGES:
            self._add_segment(pages)

    def _add(self, descriptor: int, kind: str, path: str, writable: bool) -> None:
        found = os.fstat(descriptor)
        dev = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
        filesystem = "tmpfs" if kind == "memfd" else _filesystem(found.st_dev)
        record = records.File(0, 0, dev, found.st_ino, path, kind=kind, writable=writable, fs=filesystem)
        self.descriptors.append(descriptor)
        self.records.append(record)

    def _add_segment(self, pages: int) -> None:
        """A segment that goes when this process detaches it: it is marked for removal as soon as it is attached."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.shmat.restype = ctypes.c_void_p
        number = int(libc.shmget(_IPC_PRIVATE, ctypes.c_size_t(pages * PAGE_SIZE), _IPC_CREATE))
        if number < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "shmget")
        at = libc.shmat(number, None, 0)
        libc.shmctl(number, _IPC_RMID, None)
        if at is None or at == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "shmat")
        self._attached.append(at)
        self.segments.append(number)

    def models(self) -> list[File]:
        """The files as a model has them, without the segments."""
        made = [load_file(record) for record in self.records]
        for file, descriptor in zip(made, self.descriptors, strict=True):
            file.size = os.fstat(descriptor).st_size
        return made

    def close(self) -> None:
        """Close and remove them."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        libc = ctypes.CDLL(None)
        for at in self._attached:
            libc.shmdt(ctypes.c_void_p(at))
        self._attached = []
        self._folder.cleanup()


def _filesystem(device: int) -> str:
    """The name of the filesystem of a device number; empty where no mount shows it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split(" ")[2] == number:
            return kind.split(" ")[0]
    return ""
