"""What a lockstep knows of the machine, and of the processes of its agent, from /proc."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.live.facts import POOLS
from vmalab.live.procfs import read_status
from vmalab.machine import Process

COUNTERS: Final = ("VmSize", "VmLck", "VmData", "VmStk")
"""What both sides count for each process: all, locked, data and stack pages."""


def program_text(pid: int, process: Process) -> tuple[int, bytes]:
    """Where a program begins, and its first page, which never changes."""
    start: int = process.vmas()[0].start
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(start)
        return start, file.read(PAGE_SIZE)


def counters(pid: int) -> dict[str, int]:
    """What /proc/PID/status counts, in pages."""
    fields = read_status(pid)
    return {name: int(fields[name.encode()].split()[0]) // 4 for name in COUNTERS if name.encode() in fields}


def layout_shown(pid: int) -> list[int]:
    """What /proc/PID/stat tells of the layout, in the order of layout.ORDER; 0 for the break, which it does not tell.

    Whoever may not know it is told 1.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        words = file.read().rpartition(b") ")[2].split()
    fields = (26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51)
    return [int(words[field - 3]) if field else 0 for field in fields]


def pools() -> dict[str, int]:
    """How many huge pages there are, taken or not, by their size."""
    return {pool.name: int((pool / "nr_hugepages").read_text("ascii")) for pool in POOLS.glob("hugepages-*kB")}
