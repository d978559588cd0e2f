"""Merging pages of equal contents: the same steps in the model and on the running kernel show the same."""

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.syscalls.uffd_ground import NUMBERS, PAGE, ROOT
from vmalab import flags as f
from vmalab.calls import Call
from vmalab.machine import Machine, Process
from vmalab.pages.folio import KSM, ZERO, Folio
from vmalab.pages.holders import MemoryRegion
from vmalab.pages.memory import Memory, PageSettings

A, B = 0x10000000, 0x20000000
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED
SYS = Path("/sys/kernel/mm/ksm")
SCANNING = {"pages_to_scan": "100000", "sleep_millisecs": "1", "smart_scan": "0", "run": "1"}
KPF_KSM = 21
Step = tuple[Any, ...]
View = dict[tuple[str, int], tuple[int, bool]]
"""By process and page: which frame, by the first that has it, and whether KSM has merged it."""

STEPS: tuple[tuple[str, tuple[Step, ...]], ...] = (
    (
        "made",
        (
            *(("P", "mmap", A, 8 * PAGE, 3, FIXED, 0xFFFFFFFF, 0), ("P", "madvise", A, 8 * PAGE, f.MADV_MERGEABLE)),
            *(("P", "write", 0, "one"), ("P", "write", 1, "one"), ("P", "write", 2, "two"), ("P", "write", 3, "three")),
            *(("P", "mmap", B, PAGE, 3, FIXED, 0xFFFFFFFF, 0), ("P", "read", 6)),
            *(("Q", "mmap", A, 8 * PAGE, 3, FIXED, 0xFFFFFFFF, 0), ("Q", "madvise", A, 4 * PAGE, f.MADV_MERGEABLE)),
            # Of Q's the last is not to be merged.
            *(("Q", "write", 0, "two"), ("Q", "write", 1, "one"), ("Q", "write", 4, "one"), ("Q", "write", 3, "four")),
        ),
    ),
    ("merged", (("scan",),)),
    ("written to", (("P", "write", 0, "uno"), ("Q", "write", 0, "two"), ("P", "read", 1))),
    ("merged again", (("P", "write", 0, "one"), ("scan",))),
    ("unmerged in part", (("P", "madvise", A + PAGE, 2 * PAGE, f.MADV_UNMERGEABLE),)),
    ("moved", (("P", "mremap", A, PAGE, PAGE, 3, B),)),
    ("discarded", (("Q", "madvise", A, PAGE, f.MADV_DONTNEED), ("Q", "read", 0))),
    ("not permitted any more", (("Q", "madvise", A, 4 * PAGE, f.MADV_UNMERGEABLE), ("scan",))),
)


class Model:
    """Two processes in the model."""

    def __init__(self) -> None:
        self.machine = Machine(memory=Memory())
        self.processes: dict[str, Process] = {who: self.machine.process() for who in "PQ"}

    def do(self, step: Step) -> None:
        if step[0] == "scan":
            self.machine.ksm_scan()
        elif step[1] == "write":
            self.processes[step[0]].write(A + step[2] * PAGE, step[3].encode())
        elif step[1] == "read":
            self.processes[step[0]].read(A + step[2] * PAGE, 1)
        else:
            assert self.processes[step[0]].do(Call(step[1], step[2:])).result >= 0, step
        self.machine.validate()

    def frames(self) -> dict[tuple[str, int], tuple[object, bool]]:
        found: dict[tuple[str, int], tuple[object, bool]] = {}
        for who, process in self.processes.items():
            for number, addr in enumerate([*range(A, A + 8 * PAGE, PAGE), B]):
                folio = process.page(addr).folio
                if isinstance(folio, Folio) and not folio.flags & ZERO:
                    found[who, number] = id(folio), folio.flags & KSM != 0
        return found

    def end(self) -> None:
        pass


class Live:
    """Two processes of the running kernel, which is set to scan; the settings are put back."""

    def __init__(self) -> None:
        self._before = {name: (SYS / name).read_text().strip() for name in SCANNING}
        self._channels: dict[str, socket.socket] = {}
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        for who in "PQ":
            self._channels[who], other = socket.socketpair()
            command = [sys.executable, "-m", "tests.syscalls.uffd_agent", str(other.fileno())]
            self._agents[who] = subprocess.Popen(command, cwd=ROOT, pass_fds=[other.fileno()])
            other.close()

    def do(self, step: Step) -> None:
        if step[0] == "scan":
            self._scan()
            return
        what, arguments = "call", [NUMBERS.get(step[1], 0), *step[2:]]
        if step[1] == "write":
            what, arguments = "write", [A + step[2] * PAGE, step[3].encode().hex()]
        elif step[1] == "read":
            what, arguments = "read", [A + step[2] * PAGE, 1]
        channel = self._channels[step[0]]
        channel.sendall(json.dumps([1, what, arguments]).encode() + b"\n")
        assert select.select([channel], [], [], 30)[0], "the process does not answer"
        assert json.loads(channel.recv(65536))[1] not in range(-4095, 0), step

    def _scan(self) -> None:
        """What does not change is merged when it was seen twice; one scan more, since one has begun already."""
        try:
            for name, value in SCANNING.items():
                (SYS / name).write_text(value)
            begun = int((SYS / "full_scans").read_text())
            deadline = time.monotonic() + 60
            while int((SYS / "full_scans").read_text()) < begun + 5:
                assert time.monotonic() < deadline, "KSM does not scan"
                time.sleep(0.005)
        finally:
            self._put_back()

    def _put_back(self) -> None:
        for name in reversed(SCANNING):
            (SYS / name).write_text(self._before[name])

    def frames(self) -> dict[tuple[str, int], tuple[object, bool]]:
        found: dict[tuple[str, int], tuple[object, bool]] = {}
        for who, agent in self._agents.items():
            for number, addr in enumerate([*range(A, A + 8 * PAGE, PAGE), B]):
                entry = _word(f"/proc/{agent.pid}/pagemap", addr // PAGE)
                frame = entry & (1 << 55) - 1
                flags = _word("/proc/kpageflags", frame) if entry >> 63 else 0
                if entry >> 63 and not flags >> 24 & 1:
                    found[who, number] = frame, flags >> KPF_KSM & 1 != 0
        return found

    def end(self) -> None:
        for who, agent in self._agents.items():
            agent.kill()
            agent.wait()
            self._channels[who].close()
        self._put_back()


def _word(path: str, number: int) -> int:
    with open(path, "rb", buffering=0) as file:
        file.seek(number * 8)
        (word,) = struct.unpack("Q", file.read(8))
        return int(word)


def _why_not() -> str:
    """Why the kernel cannot be asked; empty if it can."""
    if not os.access(SYS / "run", os.W_OK) or os.geteuid() != 0:
        return "this kernel has no KSM, or it cannot be set"
    with contextlib.suppress(OSError):
        _word("/proc/kpageflags", 1)
        return "" if (SYS / "run").read_text().strip() == "0" else "KSM is at work for others"
    return "this kernel does not tell the flags of pages"


NOT_LIVE = _why_not()


def _view(ground: Model | Live) -> View:
    names: dict[object, int] = {}
    return {where: (names.setdefault(frame, len(names)), ksm) for where, (frame, ksm) in ground.frames().items()}


def views(ground: Model | Live) -> list[tuple[str, View]]:
    """What is seen after each group of steps."""
    found = []
    try:
        for name, steps in STEPS:
            for step in steps:
                ground.do(step)
            found.append((name, _view(ground)))
    finally:
        ground.end()
    return found


def test_what_is_merged() -> None:
    seen = dict(views(Model()))
    merged = seen["merged"]
    assert merged["P", 0] == merged["P", 1] == merged["Q", 1] != merged["Q", 4]
    assert merged["P", 2] == merged["Q", 0]
    assert [where for where, (_, ksm) in merged.items() if not ksm] == [("P", 3), ("Q", 3), ("Q", 4)]
    assert seen["written to"]["P", 0] != seen["written to"]["P", 1] == seen["written to"]["Q", 1]
    assert seen["merged again"]["P", 0] == seen["merged again"]["P", 1]


@pytest.mark.skipif(bool(NOT_LIVE), reason=NOT_LIVE)
def test_the_kernel_merges_the_same() -> None:
    before = {name: (SYS / name).read_text() for name in SCANNING}
    assert views(Live()) == views(Model())
    assert {name: (SYS / name).read_text() for name in SCANNING} == before


def test_what_somebody_holds_is_not_merged() -> None:
    machine = Machine(memory=Memory())
    process = machine.process()
    addr = process.mmap(0, 2 * PAGE)
    process.madvise(addr, 2 * PAGE, f.MADV_MERGEABLE)
    process.write(addr, b"same")
    process.write(addr + PAGE, b"same")
    device = MemoryRegion(process.mm, addr, PAGE)
    assert machine.ksm_scan() == 0
    device.close()
    assert machine.ksm_scan() == 2
    # A pin gives the process a page of its own first.
    device = MemoryRegion(process.mm, addr, PAGE)
    process.write(addr, b"mine")
    assert device.read()[:4] == b"mine"
    device.close()


def test_a_huge_page_is_split_for_it() -> None:
    settings = PageSettings()
    settings.ksm_use_zero_pages = True
    machine = Machine(memory=Memory(settings))
    process = machine.process()
    addr = process.mmap(0, 4 << 20) + (2 << 20) - 1 & -(2 << 20)
    process.madvise(addr, 2 << 20, f.MADV_HUGEPAGE)
    process.write(addr, b"first")
    process.write(addr + PAGE, b"first")
    process.write(addr + 2 * PAGE, b"third")
    assert process.page(addr).folio is process.page(addr + 5 * PAGE).folio
    process.madvise(addr, 2 << 20, f.MADV_MERGEABLE)
    # The split has put the page of zeros where nothing else was.
    assert machine.ksm_scan() == 2
    machine.validate()
    assert machine.memory is not None
    assert (machine.memory.resident, process.page(addr).folio) == (2, process.page(addr + PAGE).folio)
    assert process.page(addr + 5 * PAGE).folio is machine.memory.zero
    assert process.read(addr + 2 * PAGE, 5) == b"third"


def test_so_many_share_a_page() -> None:
    settings = PageSettings()
    settings.ksm_max_page_sharing = 2
    machine = Machine(memory=Memory(settings))
    process = machine.process()
    addr = process.mmap(0, 5 * PAGE)
    process.madvise(addr, 5 * PAGE, f.MADV_MERGEABLE)
    for number in range(5):
        process.write(addr + number * PAGE, b"same")
    assert machine.ksm_scan() == 4
    machine.validate()
    assert len({id(process.page(addr + number * PAGE).folio) for number in range(5)}) == 3


def test_a_process_that_takes_it_all_back() -> None:
    machine = Machine(memory=Memory())
    process = machine.process()
    process.do(Call("prctl", (f.PR_SET_MEMORY_MERGE, 1, 0, 0, 0)))
    addr = process.mmap(0, 2 * PAGE)
    process.write(addr, b"same")
    process.write(addr + PAGE, b"same")
    child = process.fork()
    assert machine.ksm_scan() == 3
    process.do(Call("prctl", (f.PR_SET_MEMORY_MERGE, 0, 0, 0, 0)))
    machine.validate()
    assert process.page(addr).folio is not process.page(addr + PAGE).folio
    assert child.page(addr).folio is child.page(addr + PAGE).folio
