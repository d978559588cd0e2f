"""A script: the calls of a workload with the result of each, made once and run by every contender.

The model makes it, from the address space that the agent has, so every address is known beforehand: the contenders take
prepared arguments and only compare results.  A result that differs would mean that they do not do the same work.
"""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec

from vmalab.calls import Call
from vmalab.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE
from vmalab.machine import Machine, Process
from vmalab.pages.memory import Memory
from vmalab.trace import records
from vmalab.trace.load import load_exec, load_machine

READ: Final = -1
WRITE: Final = -2
"""Touches of memory, numbered as the agent numbers them."""
FORK: Final = -3
EXIT: Final = -4
"""The child that was forked last ends, and is waited for."""

MMAP: Final = 9
MPROTECT: Final = 10
MUNMAP: Final = 11
BRK: Final = 12
MREMAP: Final = 25
MADVISE: Final = 28
NAMES: Final = {
    MMAP: "mmap",
    MPROTECT: "mprotect",
    MUNMAP: "munmap",
    BRK: "brk",
    MREMAP: "mremap",
    MADVISE: "madvise",
}
"""The system calls of scripts, by their number on x86-64."""

HUGE: Final = 2 << 20
PRIVATE: Final = MAP_PRIVATE | MAP_ANONYMOUS


class Op(msgspec.Struct, array_like=True, gc=False):
    """One step: a system call by its number, or READ, WRITE, FORK, EXIT; and its result."""

    number: int
    args: tuple[int, ...] = ()
    result: int = 0


class Round(msgspec.Struct, array_like=True):
    """What is done in one round: what is timed, and what is done before and after it."""

    timed: list[Op] = []
    before: list[Op] = []
    after: list[Op] = []


class Script(msgspec.Struct):
    """A workload as calls."""

    name: str
    machine: records.Machine
    start: records.Exec
    """The address space that it begins with."""
    pages: bool = False
    """Whether there are pages below the VMAs."""
    top: int = 0
    """Mappings go below this address, a multiple of 2 MiB: all above it is full."""
    brk: int = 0
    """Where the heap ends at the start."""
    setup: list[Op] = []
    rounds: list[Round] = []
    vmas: int = 0
    """How many there are when the rounds begin."""
    ops: int = 0
    """How many of the steps of a round are counted."""


def load(script: Script) -> Process:
    """The process that a script begins with."""
    machine = load_machine(script.machine, None, Memory() if script.pages else None)
    process = machine.process(1)
    load_exec(process, script.start)
    return process


class Scribe:
    """Performs calls in a model and notes them down."""

    def __init__(self, script: Script, seed: int) -> None:
        self.script = script
        self.random = Random(seed)
        self.process = load(script)
        self.machine: Machine = self.process.machine
        self.ops: list[Op] = []
        self._children: list[Process] = []
        self._fill_up()
        script.brk = self.process.mm.brk

    @property
    def vmas(self) -> int:
        """How many VMAs there are now."""
        return self.process.mm.map_count

    def call(self, number: int, *args: int) -> int:
        """A system call, which must succeed: its result."""
        outcome = self.process.do(Call(NAMES[number], args))
        assert outcome.result >= 0, f"{NAMES[number]}{args}: {outcome}"
        self.ops.append(Op(number, args, outcome.result))
        return outcome.result

    def map(self, length: int, prot: int, flags: int = PRIVATE, addr: int = 0) -> int:
        """mmap of anonymous memory."""
        return self.call(MMAP, addr, length, prot, flags, 0xFFFFFFFF, 0)

    def unmap(self, addr: int, length: int) -> None:
        """munmap."""
        self.call(MUNMAP, addr, length)

    def protect(self, addr: int, length: int, prot: int) -> None:
        """mprotect."""
        self.call(MPROTECT, addr, length, prot)

    def touch(self, addr: int, *, write: bool) -> None:
        """Read or write a byte."""
        self.process.touch(addr, write)
        self.ops.append(Op(WRITE if write else READ, (addr,)))

    def fork(self) -> None:
        """Fork a child, which does nothing."""
        self._children.append(self.process.fork())
        self.ops.append(Op(FORK))

    def exit(self) -> None:
        """End the child that was forked last."""
        self._children.pop().exit()
        self.ops.append(Op(EXIT))

    def take(self) -> list[Op]:
        """What was noted since the last time."""
        taken, self.ops = self.ops, []
        return taken

    def _fill_up(self) -> None:
        """Fill the holes above the one large gap: every process that runs the script then maps below the same place."""
        fixed = PRIVATE | MAP_FIXED | MAP_NORESERVE
        while True:
            addr = self.call(MMAP, 0, 4096, PROT_NONE, PRIVATE | MAP_NORESERVE, 0xFFFFFFFF, 0)
            gaps = [gap for gap in self.process.mm.tree.gaps(0, addr) if gap[1] == addr]
            start = gaps[0][0] if gaps else addr
            if addr - start >= 1 << 40:
                break
            if start < addr:
                self.map(addr - start, PROT_NONE, fixed, start)
        top = addr & -HUGE
        if top < addr:
            self.map(addr - top, PROT_NONE, fixed, top)
        self.script.top = top
