"""Lockstep: the same steps in the model and in a live kernel, everything compared after each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call
from vmalab.fuzz.view import WIDTH, outer_view, whole_view
from vmalab.live.agent import CHANNELS, READ, WRITE, Agent, AgentDied, Reply, Step, Vmas
from vmalab.live.facts import machine_facts
from vmalab.live.procfs import read_process
from vmalab.machine import KernelError, Machine, Process
from vmalab.reason import YES, errno_of, explain
from vmalab.trace import records
from vmalab.trace.load import load_exec, load_file, load_machine
from vmalab.vma.area import AnonVma, File, Policy, Userfaultfd
from vmalab.vma.space import Mm

NUMBERS: Final = {
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "mremap": 25,
    "madvise": 28,
    "mlock": 149,
    "munlock": 150,
    "mlockall": 151,
    "munlockall": 152,
    "remap_file_pages": 216,
    "mbind": 237,
    "prlimit64": 302,
    "mlock2": 325,
    "pkey_mprotect": 329,
    "set_mempolicy_home_node": 450,
    "mseal": 462,
}
"""The system calls that are run in lockstep, with their numbers on x86-64."""
FILE_PAGES: Final = 1 << 18
NODE_MASK_BITS: Final = 64
FIELDS: Final = ("start", "end", "flags", "page offset", "inode", "anon_vma", "chain length", "policy or userfaultfd")


@dataclass(frozen=True)
class Op:
    """One step of a sequence: a system call, or `read`, `write`, `fork`, `exit`; who does it, and to which file."""

    name: str
    args: tuple[int, ...] = ()
    who: int = 0
    file: int = -1

    def __str__(self) -> str:
        args = ", ".join([hex(arg) if arg > 9 else str(arg) for arg in self.args])
        by = f" by {self.who}" if self.who else ""
        of = f" of file {self.file}" if self.file >= 0 else ""
        return f"{self.name}({args}){of}{by}"


@dataclass
class Divergence:
    """The first difference between the model and the kernel."""

    step: int
    op: Op
    field: str
    model: str
    kernel: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.op}: {self.field}: model {self.model}, kernel {self.kernel}"


@dataclass
class _Expected:
    """What the model says of one step."""

    op: Op
    step: Step
    result: int
    known: bool
    faults: bool
    reason: int
    view: list[int]


class Files:
    """The files that both sides map: regular ones, opened twice or read-only, and memfds.  A context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vmalab-")
        self.descriptors: list[int] = []
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
        filesystem = "tmpfs" if kind == "memfd" else _filesystem(path)
        record = records.File(0, 0, dev, found.st_ino, path, kind=kind, writable=writable, fs=filesystem)
        self.descriptors.append(descriptor)
        self.records.append(record)

    def models(self) -> list[File]:
        """The files as a model has them."""
        made = [load_file(record) for record in self.records]
        for file, descriptor in zip(made, self.descriptors, strict=True):
            file.size = os.fstat(descriptor).st_size
        return made

    def close(self) -> None:
        """Close and remove them."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self._folder.cleanup()


def _filesystem(path: str) -> str:
    """The name of the filesystem that a path is on."""
    best, name = "", ""
    for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines():
        _, where, kind, *_ = line.split(" ")
        if path.startswith(where.rstrip("/") + "/") and len(where) >= len(best):
            best, name = where, kind
    return name


class Lockstep:
    """A model and a live kernel that do the same.  A context manager."""

    def __init__(self, reader: str = "", files: Files | None = None) -> None:
        self._own_files = files is None
        self.files = Files() if files is None else files
        try:
            self.agent = Agent(reader)
        except BaseException:
            self._close_files()
            raise
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        facts = _facts()
        self.machine: Machine = load_machine(facts)
        found = read_process(self.agent.pid)
        process = self.machine.process(self.agent.pid)
        load_exec(process, found)
        self.models = self.files.models()
        self.processes: dict[int, Process] = {0: process}
        self.parents: dict[int, int] = {0: 0}
        self._kernel: dict[int, Vmas] = {}
        self._unnumbered: dict[int, File] = {}
        """Files of shared anonymous memory: the kernel chooses their inodes, and the first look tells them."""
        self.whole = self.agent.reader == "bpf"
        self.steps = 0
        self._descriptors = self._open_files()
        (reply,) = self.agent.run([Step(39)])
        shown = reply.vmas if reply.vmas is not None else self.agent.first
        assert shown is not None
        self._kernel[0] = shown
        if self.whole:
            adopt(process.mm, shown)

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def close(self) -> None:
        """End the agent, and give back what the model holds."""
        self.agent.close()
        self._close_files()

    def _close_files(self) -> None:
        if self._own_files:
            self.files.close()

    def _open_files(self) -> list[int]:
        """The agent's own descriptors of the files: it opens what this process holds open."""
        opened: list[int] = []
        for descriptor, record in zip(self.files.descriptors, self.files.records, strict=True):
            path = f"/proc/{os.getpid()}/fd/{descriptor}".encode() + b"\0"
            flags = os.O_RDWR if record.writable else os.O_RDONLY
            (reply,) = self.agent.run([Step(2, (self.agent.scratch, flags | os.O_CLOEXEC), path)], report=0)
            if reply.result < 0:
                raise OSError(-reply.result, os.strerror(-reply.result), record.path)
            opened.append(reply.result)
        return opened

    # -- steps --------------------------------------------------------------------------------------------

    def run(self, ops: Iterable[Op]) -> Divergence | None:
        """Perform a sequence on both sides; the first difference, or None.  After one the two are out of step."""
        waiting: list[_Expected] = []
        for op in ops:
            found: Divergence | None = None
            if op.name in ("fork", "exit") or (waiting and waiting[0].op.who != op.who) or len(waiting) >= 200:
                found = self._flush(waiting)
                if found is not None:
                    return found
                waiting = []
            if op.name == "fork":
                found = self._fork(op)
            elif op.name == "exit":
                found = self._exit(op)
            elif op.who in self.processes:
                unnumbered = len(self._unnumbered)
                waiting.append(self._predict(op))
                if len(self._unnumbered) > unnumbered:
                    # The kernel tells the new file's inode, for all steps to come.
                    found = self._flush(waiting)
                    waiting = []
            if found is not None:
                return found
        return self._flush(waiting)

    def _view(self, mm: Mm) -> list[int]:
        return whole_view(mm, self._unnumbered) if self.whole else outer_view(mm, self._unnumbered)

    def _predict(self, op: Op) -> _Expected:
        process = self.processes[op.who]
        if op.name in ("read", "write"):
            refusal = process.fault(op.args[0], op.name == "write")
            step = Step(WRITE if op.name == "write" else READ, op.args)
            result = -errno_of(refusal) if refusal != YES else 0
            return _Expected(op, step, result, False, refusal != YES, refusal, self._view(process.mm))
        call, step = self._call(op)
        outcome = process.do(call)
        return _Expected(op, step, outcome.result, outcome.known, False, outcome.reason, self._view(process.mm))

    def _call(self, op: Op) -> tuple[Call, Step]:
        """A system call for the model, and for the agent."""
        args = op.args
        number = NUMBERS[op.name]
        scratch = self.agent.scratch
        if op.name == "mmap":
            file = self.models[op.file] if op.file >= 0 else None
            fd = self._descriptors[op.file] if op.file >= 0 else 0xFFFFFFFFFFFFFFFF
            return Call("mmap", (*args[:4], fd & 0xFFFFFFFF, args[4]), file), Step(number, (*args[:4], fd, args[4]))
        if op.name == "mbind":
            start, length, mode, mask, flags = args
            nodes = [node for node in range(NODE_MASK_BITS) if mask >> node & 1]
            call = Call("mbind", (start, length, mode, scratch, NODE_MASK_BITS + 1, flags), data={"nodes": nodes})
            data = mask.to_bytes(8, "little")
            return call, Step(number, (start, length, mode, scratch, NODE_MASK_BITS + 1, flags), data)
        if op.name == "prlimit64":
            resource, value = args
            call = Call("prlimit64", (0, resource, scratch, 0), data={"cur": value})
            hard = (1 << 64) - 1
            return call, Step(number, (0, resource, scratch, 0), _limit(value) + hard.to_bytes(8, "little"))
        return Call(op.name, args), Step(number, args)

    def _flush(self, waiting: list[_Expected]) -> Divergence | None:
        if not waiting:
            return None
        who = waiting[0].op.who
        try:
            replies = self.agent.run([each.step for each in waiting], who)
        except AgentDied as died:
            at = waiting[min(died.done, len(waiting) - 1)]
            return Divergence(self.steps + died.done, at.op, "outcome", explain(at.reason).name, str(died))
        for expected, reply in zip(waiting, replies, strict=True):
            self.steps += 1
            found = self._compare(expected, reply, who)
            if found is not None:
                return found
        return None

    def _compare(self, expected: _Expected, reply: Reply, who: int) -> Divergence | None:
        if reply.vmas is not None:
            self._kernel[who] = reply.vmas
        op = expected.op
        if op.name in ("read", "write"):
            if expected.faults != (reply.signal != 0):
                kernel = f"signal {reply.signal >> 56}, code {reply.signal >> 48 & 255}" if reply.signal else "works"
                return Divergence(self.steps, op, "access", explain(expected.reason).name, kernel)
        elif expected.known and expected.result != reply.result:
            model = f"{expected.result:#x} ({explain(expected.reason).name})"
            return Divergence(self.steps, op, "result", model, _result_text(reply.result))
        kernel_view = self._kernel[who]
        if kernel_view == tuple(expected.view):
            return None
        return self._difference(expected, kernel_view)

    def _difference(self, expected: _Expected, kernel: Vmas) -> Divergence | None:
        """What exactly differs; an inode that the kernel chose for shared anonymous memory is learned instead."""
        model = expected.view
        for at in range(0, min(len(model), len(kernel)), WIDTH):
            for i, name in enumerate(FIELDS):
                if model[at + i] == kernel[at + i]:
                    continue
                if name == "inode" and self._is_that_file(-model[at + i], kernel[at + i]):
                    continue
                where = f"VMA {model[at]:x}-{model[at + 1]:x}: {name}"
                return Divergence(self.steps, expected.op, where, hex(model[at + i]), hex(kernel[at + i]))
        if len(model) != len(kernel):
            counts = (str(len(model) // WIDTH), str(len(kernel) // WIDTH))
            return Divergence(self.steps, expected.op, "number of VMAs", *counts)
        return None

    def _is_that_file(self, key: int, ino: int) -> bool:
        """Whether a file that had no number yet has this inode; the first time tells which it has."""
        file = self._unnumbered.get(key)
        if file is None:
            return False
        if file.ino == 0:
            file.ino = ino
        return file.ino == ino

    def _fork(self, op: Op) -> Divergence | None:
        parent = self.processes.get(op.who)
        channel = next((each for each in range(1, CHANNELS) if each not in self.processes), None)
        if parent is None or channel is None:
            return None
        self.steps += 1
        try:
            child = self.machine.fork(parent)
            reason = YES
        except KernelError as error:
            reason = error.reason
        pid = self.agent.fork(op.who, channel)
        if (pid > 0) != (reason == YES):
            return Divergence(self.steps, op, "result", explain(reason).name, _result_text(pid))
        if reason != YES:
            return None
        self.processes[channel] = child
        self.parents[channel] = op.who
        (reply,) = self.agent.run([Step(39)], channel)
        view = self._view(child.mm)
        self._kernel[channel] = self.agent.first or ()
        return self._compare(_Expected(op, Step(39), 0, False, False, YES, view), reply, channel)

    def _exit(self, op: Op) -> Divergence | None:
        # Its own children go on without it; only a process without any is ended.
        if op.who == 0 or op.who not in self.processes or op.who in self.parents.values():
            return None
        self.steps += 1
        self.agent.exit(op.who, self.parents[op.who])
        self.machine.exit(self.processes.pop(op.who))
        del self.parents[op.who]
        return None


def _limit(value: int) -> bytes:
    return (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")


def _result_text(result: int) -> str:
    return f"-{os.strerror(-result)}" if result < 0 else hex(result)


_FACTS: list[records.Machine] = []


def _facts() -> records.Machine:
    """The facts of this machine, found once."""
    if not _FACTS:
        _FACTS.append(machine_facts())
    return _FACTS[0]


def adopt(mm: Mm, shown: Vmas) -> None:
    """Take over what only the BPF reader shows of a fresh address space: raw flags, offsets, anon_vmas."""
    mm.mmap_write_lock()
    anon_vmas: dict[int, AnonVma] = {}
    vmas = mm.vmas()
    for at in range(0, len(shown), WIDTH):
        start, _, flags, pgoff, _, anon, length, extra = shown[at : at + WIDTH]
        vma = next((each for each in vmas if each.start == start), None)
        if vma is None:
            continue
        vma.flags = flags
        vma.pgoff = pgoff
        for link in vma.chain:
            link.links -= 1
        if vma.anon_vma is not None:
            vma.anon_vma.active -= 1
        vma.chain = []
        vma.anon_vma = None
        if anon:
            anon_vma = anon_vmas.setdefault(anon, AnonVma(None))
            anon_vma.active += 1
            anon_vma.links += 1
            vma.anon_vma = anon_vma
            vma.chain = [anon_vma]
        if extra & 1 and vma.policy is None:
            vma.set_policy(Policy(0, 0, ()))
        if extra & 2 and vma.uffd is None:
            vma.uffd = Userfaultfd("as found")
        assert length <= 1, "a fresh program has inherited nothing"
    mm.mmap_write_unlock()
