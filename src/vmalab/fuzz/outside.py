"""What the kernel shows of the processes of a run outside the agent's answers: their beginnings and their counters."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.live.agent import Vmas
from vmalab.live.facts import machine_facts
from vmalab.live.procfs import read_status
from vmalab.machine import Process
from vmalab.trace import records
from vmalab.vma.area import AnonVma, Policy, Userfaultfd
from vmalab.vma.space import Mm

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


def shown_layout(pid: int) -> list[int]:
    """What /proc/PID/stat tells of the layout, in the order of layout.ORDER; 0 for the break, which it does not tell.

    Whoever may not know it is told 1.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        words = file.read().rpartition(b") ")[2].split()
    fields = (26, 27, 45, 46, 47, 0, 28, 48, 49, 50, 51)
    return [int(words[field - 3]) if field else 0 for field in fields]


_FACTS: list[records.Machine] = []


def facts() -> records.Machine:
    """The facts of this machine, found once."""
    if not _FACTS:
        _FACTS.append(machine_facts())
    return _FACTS[0]


def adopt(mm: Mm, shown: Vmas) -> None:
    """Take over what only the BPF reader shows of a fresh address space: raw flags, offsets, anon_vmas."""
    mm.mmap_write_lock()
    anon_vmas: dict[int, AnonVma] = {}
    vmas = mm.vmas()
    for start, _, flags, pgoff, _, anon, length, extra in shown:
        vma = next((each for each in vmas if each.start == start), None)
        if vma is None:
            continue
        vma.flags = flags
        vma.pgoff = pgoff
        for link in vma.chain:
            link.links -= 1
        if vma.anon_vma is not None:
            vma.anon_vma.active -= 1
        vma.chain = ()
        vma.anon_vma = None
        if anon:
            anon_vma = anon_vmas.setdefault(anon, AnonVma(None))
            anon_vma.active += 1
            anon_vma.links += 1
            vma.anon_vma = anon_vma
            vma.chain = (anon_vma,)
            mm.port.anon_vma_changed(vma)
        if extra & 1 and vma.policy is None:
            vma.set_policy(Policy(0, 0, ()))
        if extra & 2 and vma.uffd is None:
            vma.uffd = Userfaultfd("as found")
        assert length <= 1, "a fresh program has inherited nothing"
    mm.mmap_write_unlock()
