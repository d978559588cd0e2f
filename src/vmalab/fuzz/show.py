"""A divergence for people: strips of memory before and after, and the sequence as a trace for `vmalab replay`."""

from __future__ import annotations

import itertools
import string
from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call
from vmalab.flags import CLONE_NEWIPC, permissions, vm_flags_text
from vmalab.fuzz.divergence import Divergence
from vmalab.fuzz.files import FIRST_SEGMENTS
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.fuzz.view import Row
from vmalab.live.facts import machine_facts
from vmalab.live.procfs import read_process
from vmalab.trace import records
from vmalab.trace.file import TraceWriter
from vmalab.vma.area import File

PID_MAX: Final = 1 << 22
"""Processes have numbers up to this one."""
SIGCHLD: Final = 17
AROUND: Final = 24
"""Pages to either side of what differs that a strip shows."""
WIDEST: Final = 6
"""Characters for a stretch of pages in which nothing changes, at most."""


def strips(found: Divergence) -> list[str]:
    """The memory around the difference: before the step, after it in the model, after it on the kernel."""
    views = {"before": found.before, "model": found.model_view, "kernel": found.kernel_view}
    different = list(set(views["model"]) ^ set(views["kernel"]))
    if not different:
        return []
    low = min(row[0] for row in different) - AROUND * PAGE_SIZE
    high = min(max(row[1] for row in different), low + 4 * AROUND * PAGE_SIZE) + AROUND * PAGE_SIZE
    shown = {name: [row for row in rows if row[1] > low and row[0] < high] for name, rows in views.items()}
    edges = sorted({edge for rows in shown.values() for row in rows for edge in row[:2] if low < edge < high})
    if not edges:
        return []
    cuts = [edges[0] - PAGE_SIZE, *edges, edges[-1] + PAGE_SIZE]
    letters: dict[Row, str] = {}
    lines = [f"  {name:<7} {_strip(rows, cuts, letters)}" for name, rows in shown.items()]
    lines += [f"    {letter} {_describe(row)}" for row, letter in letters.items()]
    return lines


def _strip(rows: list[Row], cuts: list[int], letters: dict[Row, str]) -> str:
    """Each stretch between two cuts as some letters of its VMA, a bar between two VMAs, dots for nothing."""
    text = ""
    last: Row | None = None
    for start, end in itertools.pairwise(cuts):
        row = next((row for row in rows if row[0] <= start < row[1]), None)
        if row is not None and row not in letters:
            letters[row] = string.ascii_letters[len(letters) % len(string.ascii_letters)]
        if row is not None and last is not None and row != last:
            text += "|"
        text += ("." if row is None else letters[row]) * min((end - start) // PAGE_SIZE, WIDEST)
        last = row
    return text


def _describe(row: Row) -> str:
    start, end, flags, pgoff, inode, anon, chain, _ = row
    words = [f"{start:x}-{end:x} {permissions(flags)} pgoff {pgoff:x}", vm_flags_text(flags)]
    if inode:
        words.append(f"inode {inode}" if inode > 0 else "a new inode")
    if anon:
        words.append(f"anon_vma of {anon:x}, chain of {chain}")
    return "  ".join(words)


def write_trace(path: str, ops: list[Op], reader: str = "") -> None:
    """Perform a sequence in lockstep, and write what the kernel did as a trace, with its final VMAs."""
    with Lockstep(reader) as lockstep:
        header = records.Header("trace", 1, recorder="lockstep", faults="exact", machine=machine_facts())
        with TraceWriter(path, header) as writer:
            _Recorder(lockstep, writer).record(ops)


class _Recorder:
    """Writes the records of one sequence."""

    def __init__(self, lockstep: Lockstep, writer: TraceWriter) -> None:
        self._lockstep = lockstep
        self._writer = writer
        self._files: dict[int, int] = {}
        """Their numbers in the trace, by identity."""
        self._pids: dict[int, int] = {}
        self._children = PID_MAX + 1
        """The number that the last child with shared memory was given: the agent does not tell the pids of those."""

    def record(self, ops: list[Op]) -> None:
        lockstep = self._lockstep
        agent = lockstep.agent.pid
        found = read_process(agent)
        found.pid = agent
        self._writer.write(found)
        self._new_process(0, agent)
        self._segments()
        for op in ops:
            known = set(lockstep.processes)
            divergence = lockstep.run([op])
            for who in set(lockstep.processes) - known:
                self._new_process(who, self._pids[op.who])
            if op.name == "exit" and op.who in known and op.who not in lockstep.processes:
                self._writer.write(records.Exit(0, self._pids[op.who], code=0))
            self._step(op)
            if divergence is not None:
                break
        for who in lockstep.processes:
            pid = self._pids[who]
            self._writer.write(records.Exit(0, pid, vmas=read_process(pid).vmas, code=0))
        self._writer.write(records.End(0, "done"))

    def _new_process(self, who: int, parent: int) -> None:
        pid = self._lockstep.agent.pid_of(who + 1)
        self._pids[who] = pid
        self._writer.write(records.Fork(0, pid, pid, parent, parent, flags=SIGCHLD))

    def _segments(self) -> None:
        """The segments that a run begins with, in an IPC namespace of its own."""
        pid = self._pids[0]
        made = self._lockstep.resources[0].segments
        if made:
            self._writer.write(records.Call(0, pid, pid, "unshare", [CLONE_NEWIPC], 0))
        for at, args in enumerate(FIRST_SEGMENTS):
            if at in made:
                self._writer.write(records.Call(0, pid, pid, "shmget", [*args], made[at]))

    def _step(self, op: Op) -> None:
        call = self._lockstep.last_call
        pid = self._pids.get(op.who, 0)
        if op.name in ("read", "write"):
            self._writer.write(records.Fault(0, pid, pid, op.args[0], op.name == "write"))
        elif call is not None and op.name not in ("fork", "exit"):
            file = self._file(call)
            result = self._lockstep.last_result
            words = [arg & 0xFFFFFFFFFFFFFFFF for arg in call.args]
            if op.clone:
                self._children -= 1
                self._writer.write(records.Fork(0, self._children, self._children, pid, pid, flags=op.clone | SIGCHLD))
                pid = self._children
            data = call.data
            if "pid" in data:
                data = {**data, "pid": self._pids[op.file]}
            self._writer.write(records.Call(0, pid, pid, call.name, words, result, file=file, data=data))
            if op.clone:
                self._writer.write(records.Exit(0, pid, code=0))

    def _file(self, call: Call) -> int | None:
        file: File | None = call.file
        if file is None:
            return None
        if id(file) not in self._files:
            number = len(self._files) + 1
            self._files[id(file)] = number
            told = records.File(0, number, file.dev, file.ino, file.path, file.readable, file.writable, file.kind)
            told.fs = file.fs
            self._writer.write(told)
        return self._files[id(file)]
