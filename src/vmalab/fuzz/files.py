"""The files that all runs of a lockstep map: regular ones and memfds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.flags import IPC_CREAT
from vmalab.trace import records
from vmalab.trace.load import load_file
from vmalab.vma.area import File
from vmalab.vma.shm import IPC_PRIVATE

FILE_PAGES: Final = 1 << 18
SEGMENT_PAGES: Final = (3, 16)
"""Sizes of the segments of shared memory that are there from the start of a run."""
FIRST_SEGMENTS: Final = tuple([(IPC_PRIVATE, pages * PAGE_SIZE, IPC_CREAT | 0o600) for pages in SEGMENT_PAGES])
"""The arguments of the shmgets that make them."""


class Files:
    """Files that are there as long as this object: close() removes them, and so does the end of this process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmalab-")
        self.descriptors: list[int] = []
        """Of the files."""
        self.records: list[records.File] = []
        path = Path(self._folder.name) / "file"
        path.write_bytes(b"")
        os.truncate(path, FILE_PAGES * PAGE_SIZE)
        for flags in (os.O_RDWR, os.O_RDWR, os.O_RDONLY):
            self._add(os.open(path, flags | os.O_CLOEXEC), "regular", str(path), flags == os.O_RDWR)
        for name, pages in (("m", FILE_PAGES), ("n", 24)):
            descriptor = os.memfd_create(name)
            os.ftruncate(descriptor, pages * PAGE_SIZE)
            self._add(descriptor, "memfd", f"/memfd:{name} (deleted)", True)

    def _add(self, descriptor: int, kind: str, path: str, writable: bool) -> None:
        found = os.fstat(descriptor)
        dev = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
        filesystem = "tmpfs" if kind == "memfd" else _filesystem(found.st_dev)
        record = records.File(0, 0, dev, found.st_ino, path, kind=kind, writable=writable, fs=filesystem)
        self.descriptors.append(descriptor)
        self.records.append(record)

    def models(self) -> list[File]:
        """The files as a model has them."""
        made = [load_file(record) for record in self.records]
        for file, descriptor in zip(made, self.descriptors, strict=True):
            file.size = os.fstat(descriptor).st_size
        return made

    def empty(self) -> None:
        """Throw away what the memfds hold."""
        for record, descriptor in zip(self.records, self.descriptors, strict=True):
            if record.kind == "memfd":
                size = os.fstat(descriptor).st_size
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, size)

    def close(self) -> None:
        """Close and remove them, if that is not done yet."""
        while self.descriptors:
            os.close(self.descriptors.pop())
        self._folder.cleanup()


def _filesystem(device: int) -> str:
    """The name of the filesystem of a device number; empty where no mount shows it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split(" ")[2] == number:
            return kind.split(" ")[0]
    return ""
