"""Those that run a script: the model in two ways, the live kernel in two ways.

The calls are prepared beforehand: for the model and for the agent in batches of the same size, which are in the cache
when they are begun; for interpreted loops all at once.  Time is processor time of the thread that works, so what else
runs on the machine counts little.
"""

from __future__ import annotations

import ctypes
import gc
import os
import struct
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, Final, Protocol

from vmalab.bench.drive import Prepared, drive
from vmalab.bench.script import (
    BRK,
    EXIT,
    FORK,
    HUGE,
    MMAP,
    MREMAP,
    NAMES,
    PRIVATE,
    READ,
    WRITE,
    Op,
    Round,
    Script,
    load,
)
from vmalab.calls import Call
from vmalab.errors import VmalabError
from vmalab.flags import MAP_FIXED, MAP_NORESERVE, PROT_NONE
from vmalab.live.agent import CLOCK, Agent, Step
from vmalab.machine import Process

CHANNEL: Final = 1
"""Of the agent's child."""
THREAD_CPU: Final = 3
"""CLOCK_THREAD_CPUTIME_ID."""
BATCH: Final = 250
"""Steps at once: so few that they stay in the cache beside what they work on."""
_REPLY: Final = struct.Struct("<qQII")
_SPLITS: Final = (FORK, EXIT)

Loop = list[tuple[Callable[..., Any], tuple[Any, ...], Any]]
"""What to call, its arguments, and what it must return."""


class Contender(Protocol):
    """Runs a script round by round."""

    def setup(self) -> None:
        """Do what comes before the first round."""

    def round(self, number: int) -> float:
        """Do a round: the seconds that what is timed has taken.  Raises VmalabError where a result differs."""

    def close(self) -> None:
        """Let go of everything."""


def timed_loop(steps: Loop) -> tuple[float, int]:
    """Make all calls from interpreted Python: the seconds, and how many results differ."""
    wrong = 0
    began = time.thread_time_ns()
    for function, args, result in steps:
        if function(*args) != result:
            wrong += 1
    return (time.thread_time_ns() - began) / 1e9, wrong


def _must_be_none(wrong: int, who: str, script: Script) -> None:
    if wrong:
        raise VmalabError(f"{script.name}: {wrong:,} results of {who} are not those of the script")


def _parts(ops: list[Op]) -> Iterator[tuple[int, list[Op]]]:
    """Forks and exits by themselves, everything between them together: (FORK, EXIT or 0; the steps)."""
    for kind, part in groupby(ops, key=lambda op: op.number if op.number in _SPLITS else 0):
        yield kind, list(part)


def _prepared(op: Op) -> Prepared:
    if op.number in (READ, WRITE):
        return Prepared(None, op.args[0], op.number == WRITE, op.result)
    return Prepared(Call(NAMES[op.number], op.args), 0, False, op.result)


class Model:
    """The model by its compiled loop: `drive`."""

    who = "the model"

    def __init__(self, script: Script) -> None:
        self.script = script
        self.process: Process = load(script)
        self._children: list[Process] = []
        self._setup = self._prepare(script.setup)
        self._rounds = [[self._prepare(ops) for ops in (each.before, each.timed, each.after)] for each in script.rounds]

    def _prepare(self, ops: list[Op]) -> list[tuple[int, Any]]:
        return [(kind, len(part) if kind else self._prepare_part(part)) for kind, part in _parts(ops)]

    def _prepare_part(self, ops: list[Op]) -> Any:
        """Nothing yet: batches are prepared one after the other."""
        return ops

    def _do_part(self, steps: Any) -> tuple[float, int]:
        seconds = wrong = 0
        for first in range(0, len(steps), BATCH):
            batch = [_prepared(op) for op in steps[first : first + BATCH]]
            began = time.thread_time_ns()
            wrong += drive(self.process, batch)
            seconds += time.thread_time_ns() - began
        return seconds / 1e9, wrong

    def _do(self, parts: list[tuple[int, Any]]) -> float:
        seconds = 0.0
        for kind, part in parts:
            if kind == FORK:
                began = time.thread_time_ns()
                child = self.process.fork()
                seconds += (time.thread_time_ns() - began) / 1e9
                self._children.append(child)
            elif kind == EXIT:
                self._children.pop().exit()
            else:
                took, wrong = self._do_part(part)
                seconds += took
                _must_be_none(wrong, self.who, self.script)
        return seconds

    def setup(self) -> None:
        self._do(self._setup)
        self._setup = []
        # What is there is old from now on: a collection during a round looks at what is new.
        gc.collect()

    def round(self, number: int) -> float:
        before, timed, after = self._rounds[number]
        self._do(before)
        seconds = self._do(timed)
        self._do(after)
        return seconds

    def close(self) -> None:
        """Nothing is held that does not go by itself."""


class Face(Model):
    """The model as a Python program calls it: the methods of Process, from an interpreted loop."""

    who = "the model's Python face"

    def _prepare_part(self, ops: list[Op]) -> Any:
        steps: Loop = []
        for op in ops:
            if op.number in (READ, WRITE):
                steps.append((self.process.touch, (op.args[0], op.number == WRITE), None))
            elif op.number == MMAP:
                steps.append((self.process.mmap, op.args[:4], op.result))
            else:
                returns = op.result if op.number in (MREMAP, BRK) else None
                steps.append((getattr(self.process, NAMES[op.number]), op.args, returns))
        return steps

    def _do_part(self, steps: Any) -> tuple[float, int]:
        return timed_loop(steps)


class Live:
    """The live kernel by the agent, which takes prepared batches and reads its own clock."""

    who = "the kernel"

    def __init__(self, script: Script, agent: Agent) -> None:
        """Run a script in an agent that nothing has been done in since the script was begun."""
        self.script = script
        self._agent = agent
        self._children = 0

    def _do(self, ops: list[Op]) -> float:
        seconds = 0.0
        for kind, part in _parts(ops):
            if kind == EXIT:
                self._agent.exit(CHANNEL, 0)
                self._children -= 1
                continue
            for first in range(0, len(part), BATCH):
                seconds += self._batch(part[first : first + BATCH])
            if kind == FORK:
                self._children += 1
        return seconds

    def _batch(self, ops: list[Op]) -> float:
        clock = Step(CLOCK, (THREAD_CPU,))
        steps = [Step(op.number, (CHANNEL,) if op.number == FORK else op.args) for op in ops]
        replies = self._agent.run_at_once([clock, *steps, clock])
        results = [result for result, *_ in _REPLY.iter_unpack(replies)]
        wrong = 0
        for op, result in zip(ops, results[1:-1], strict=True):
            if op.number == FORK and result > 0:
                self._agent.adopt(CHANNEL, result)
            elif op.number == READ:
                wrong += result < 0
            elif result != op.result:
                wrong += 1
        _must_be_none(wrong, self.who, self.script)
        took: int = results[-1] - results[0]
        return took / 1e9

    def setup(self) -> None:
        self._do(self.script.setup)

    def round(self, number: int) -> float:
        each: Round = self.script.rounds[number]
        self._do(each.before)
        seconds = self._do(each.timed)
        self._do(each.after)
        return seconds

    def close(self) -> None:
        self._agent.close()


class Ctypes:
    """The live kernel as a Python program calls it: libc by ctypes, in this very process.

    Its mappings go where nothing is, below a place far enough from what the interpreter maps for itself; the addresses
    of the script are moved there.
    """

    who = "the kernel by ctypes"
    _AWAY: Final = 8 << 30

    def __init__(self, script: Script) -> None:
        self.script = script
        libc = ctypes.CDLL(None, use_errno=True)
        word, number = ctypes.c_size_t, ctypes.c_int
        for name, types in (
            ("mmap", (word, word, number, number, number, ctypes.c_long)),
            ("munmap", (word, word)),
            ("mprotect", (word, word, number)),
            ("madvise", (word, word, number)),
            ("mremap", (word, word, word, number, word)),
            ("memset", (word, number, word)),
        ):
            getattr(libc, name).argtypes = types
            getattr(libc, name).restype = ctypes.c_ssize_t
        libc.syscall.argtypes = (ctypes.c_long, word)
        libc.syscall.restype = ctypes.c_ssize_t
        self._libc = libc
        self._children: list[tuple[int, int]] = []
        top = (min(start for start, _ in _upper()) - self._AWAY) & -HUGE
        self._top = top
        self._delta = top - script.top
        self._brk_delta = int(libc.syscall(BRK, 0)) - script.brk
        self._setup = self._prepare(script.setup[_of_filling(script) :])
        self._rounds = [[self._prepare(ops) for ops in (each.before, each.timed, each.after)] for each in script.rounds]
        gc.collect()
        gc.disable()

    def _prepare(self, ops: list[Op]) -> list[tuple[int, Loop]]:
        return [(kind, [] if kind else [self._prepared(op) for op in part]) for kind, part in _parts(ops)]

    def _prepared(self, op: Op) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        args = list(op.args)
        result = op.result
        if op.number == BRK:
            return self._libc.syscall, (BRK, args[0] + self._brk_delta), result + self._brk_delta
        args[0] += self._delta if args[0] else 0
        if op.number == READ:
            return ctypes.string_at, (args[0], 1), b"\0"
        if op.number == WRITE:
            return self._libc.memset, (args[0], 1, 1), args[0]
        if op.number == MREMAP and args[4]:
            args[4] += self._delta
        if op.number == MMAP:
            args[4] = -1
        if op.number in (MMAP, MREMAP):
            result += self._delta
        return getattr(self._libc, NAMES[op.number]), tuple(args), result

    def _do(self, parts: list[tuple[int, Loop]]) -> float:
        seconds = 0.0
        for kind, steps in parts:
            if kind == FORK:
                seconds += self._fork()
            elif kind == EXIT:
                pid, pipe = self._children.pop()
                os.close(pipe)
                os.waitpid(pid, 0)
            else:
                took, wrong = timed_loop(steps)
                seconds += took
                _must_be_none(wrong, self.who, self.script)
        return seconds

    def _fork(self) -> float:
        theirs, ours = os.pipe()
        began = time.thread_time_ns()
        pid = os.fork()
        seconds = (time.thread_time_ns() - began) / 1e9
        if pid == 0:
            os.close(ours)
            os.read(theirs, 1)
            os._exit(0)
        os.close(theirs)
        self._children.append((pid, ours))
        return seconds

    def setup(self) -> None:
        """Fill all that is free above the place, and do what comes before the first round."""
        anywhere = PRIVATE | MAP_NORESERVE
        free = self._libc.mmap
        while True:
            found = free(0, 4096, PROT_NONE, anywhere, -1, 0)
            if found < self._top:
                break
            below = max([end for _, end in _upper() if end <= found], default=self._top)
            below = max(below, self._top)
            if found > below and free(below, found - below, PROT_NONE, anywhere | MAP_FIXED, -1, 0) != below:
                raise VmalabError(f"{self.script.name}: no place for its mappings in this process")
        self._libc.munmap(found, 4096)
        self._do(self._setup)

    def round(self, number: int) -> float:
        before, timed, after = self._rounds[number]
        self._do(before)
        seconds = self._do(timed)
        self._do(after)
        return seconds

    def close(self) -> None:
        """The process ends with it."""


def _upper() -> list[tuple[int, int]]:
    """The ranges of this process that lie in the upper half of the address space."""
    found: list[tuple[int, int]] = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            start, _, end = line.split(" ", 1)[0].partition("-")
            if 1 << 46 < int(start, 16) < 1 << 47:
                found.append((int(start, 16), int(end, 16)))
    # Position-independent programs and their heaps lie lower than what is mapped without a place of its own.
    return [pair for pair in found if pair[0] >= 0x700000000000]


def _of_filling(script: Script) -> int:
    """How many of the first steps fill what lies above the top."""
    count = 0
    for op in script.setup:
        if op.number != MMAP or op.result < script.top:
            break
        count += 1
    return count
