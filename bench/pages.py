"""What very much memory costs the model: python -m bench.pages

Each measurement runs in a process of its own, and tells the time and the most memory that it took.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from vmalab import form
from vmalab.addr import PAGE_SIZE
from vmalab.flags import MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_POPULATE_WRITE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE
from vmalab.machine import Machine, Process
from vmalab.pages.memory import Memory

HUGE_BYTES = 64 << 30
PAGES = 10_000_000
LIMIT = 2 << 30


def _populated(length: int, advice: int) -> Process:
    machine = Machine(ram_pages=1 << 30, memory=Memory())
    process = machine.process()
    addr = process.mmap(0, length, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
    process.madvise(addr, length, advice)
    process.madvise(addr, length, MADV_POPULATE_WRITE)
    return process


def touch_huge() -> dict[str, float]:
    """Touch all of 64 GiB, in huge pages."""
    began = time.perf_counter()
    process = _populated(HUGE_BYTES, MADV_HUGEPAGE)
    seconds = time.perf_counter() - began
    assert process.machine.memory is not None
    assert process.machine.memory.live == HUGE_BYTES >> 21
    return {"touch": seconds}


def fork_many() -> dict[str, float]:
    """Fork a process that has ten million small pages."""
    began = time.perf_counter()
    process = _populated(PAGES * PAGE_SIZE, MADV_NOHUGEPAGE)
    touched = time.perf_counter()
    child = process.fork()
    forked = time.perf_counter()
    assert child.page(child.vmas()[0].start).folio is process.page(process.vmas()[0].start).folio
    return {"touch": touched - began, "fork": forked - touched}


def _measure(what: Callable[[], dict[str, float]], result: Connection) -> None:
    found = what()
    result.send((found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10))


def main() -> int:
    """Run all; 1 if one takes more memory than it may."""
    status = 0
    print(f"{form()} core")
    for what in (touch_huge, fork_many):
        ours, theirs = multiprocessing.Pipe()
        worker = multiprocessing.get_context("spawn").Process(target=_measure, args=(what, theirs))
        worker.start()
        theirs.close()
        found, most = ours.recv()
        worker.join()
        times = ", ".join([f"{name} {seconds:.1f} s" for name, seconds in found.items()])
        print(f"{what.__doc__} {times}, {most / (1 << 30):.2f} GiB at most")
        status |= most > LIMIT
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
