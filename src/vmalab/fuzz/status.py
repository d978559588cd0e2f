"""What a lockstep knows of the machine, and of the processes of its agent, from /proc."""

from __future__ import annotations

import os
import re
from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.live.facts import pools
from vmalab.machine import Process

COUNTERS: Final = ("VmSize", "VmLck", "VmData", "VmStk")
"""What both sides count for each process: all, locked, data and stack pages."""
_COUNTERS: Final = re.compile(rf"^({'|'.join(COUNTERS)}):\s*(\d+) kB$".encode("ascii"), re.MULTILINE)


def program_text(pid: int, process: Process) -> tuple[int, bytes]:
    """Where a program begins, and its first page, which never changes."""
    start: int = process.vmas()[0].start
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(start)
        return start, file.read(PAGE_SIZE)


def counters(pid: int) -> dict[str, int]:
    """What /proc/PID/status counts, in pages."""
    found = _COUNTERS.findall(_read(f"/proc/{pid}/status"))
    return {name.decode("ascii"): int(kilobytes) // 4 for name, kilobytes in found}


def layout_shown(pid: int) -> list[int]:
    """What /proc/PID/stat tells of the layout, in the order of layout.ORDER; 0 for the break, which it does not tell.

    Whoever may not know it is told 1.
    """
    words = _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()
    fields = (26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51)
    return [int(words[field - 3]) if field else 0 for field in fields]


def pool_sizes() -> dict[str, int]:
    """How many huge pages there are, taken or not, by their size in KiB."""
    return {size: int(_read(f"{pool}/nr_hugepages")) for size, pool in pools().items()}


def _read(path: str) -> bytes:
    """A small file of the kernel, read at once: this is done for every run."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 14)
    finally:
        os.close(descriptor)
