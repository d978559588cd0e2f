"""Traces made by a generator: random calls of several processes, performed by the model."""

import random

from vmalab import Machine, Process
from vmalab.calls import Call
from vmalab.flags import MADV_DOFORK, MADV_DONTFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE
from vmalab.trace import records
from vmalab.trace.records import Exec, Exit, Fault, Fork, Header, Record, Vma

PAGE = 4096
ANON = 0x22
FIXED = 0x10
NONE = 0xFFFFFFFF
AREA = 0x10000000
STACK = 0x7FFFF0000000


class Generator:
    """Writes the records of a random run; span is in how many pages it maps: more pages, more VMAs."""

    def __init__(self, seed: int, *, span: int = 64, faults: str = "exact") -> None:
        self.random = random.Random(seed)
        self.span = span
        self.machine = Machine()
        self.header = Header(vmalab="trace", version=1, faults=faults)
        self.records: list[Record] = []
        self._next_pid = 100
        self._file = 0
        self.exec()

    def _add(self, record: Record) -> None:
        record.n = len(self.records) + 1
        self.records.append(record)

    def exec(self) -> None:
        """A new program with a stack."""
        pid = self._next_pid
        self._next_pid += 1
        process = self.machine.process(pid)
        process.mm.mmap_base = STACK - 0x10000000
        stack = Vma(start=STACK - 0x21000, end=STACK, flags="rd wr mr mw me gd ac", path="[stack]")
        exe = f"/bin/generated-{pid}"
        record = Exec(n=0, pid=pid, exe=exe, vmas=[stack], mmap_base=process.mm.mmap_base, start_stack=STACK - 0x100)
        from vmalab.trace.load import load_exec

        load_exec(process, record)
        process.mm.faults_observed = True
        self._add(record)

    def run(self, count: int) -> list[Record]:
        """That many records more."""
        goal = len(self.records) + count
        while len(self.records) < goal:
            process = self.random.choice(list(self.machine.processes.values()))
            self._step(process)
        return self.records

    def finish(self) -> None:
        """End all processes, with what they hold."""
        for process in list(self.machine.processes.values()):
            self._exit(process)
        self._add(records.End(n=0, reason="done"))

    def _step(self, process: Process) -> None:
        kind = self.random.random()
        if kind < 0.01 and len(self.machine.processes) < 4:
            self._fork(process)
        elif kind < 0.015 and len(self.machine.processes) > 1:
            self._exit(process)
        elif kind < 0.02:
            self._file += 1
            path = f"/lib/lib{self._file}.so"
            self._add(records.File(n=0, id=self._file, dev="08:01", ino=self._file, path=path, fs="ext4"))
        elif kind < 0.15 and self.header.faults == "exact":
            addr = self._addr()
            write = self.random.random() < 0.7
            process.fault(addr, write)
            self._add(Fault(n=0, pid=process.pid, tid=process.pid, addr=addr, write=write))
        else:
            self._call(process, self._random_call())

    def _addr(self) -> int:
        return AREA + self.random.randrange(self.span) * PAGE

    def _random_call(self) -> Call:
        some = self.random
        addr = self._addr()
        length = some.randint(1, 8) * PAGE
        name = some.choice(["mmap"] * 4 + ["munmap", "mprotect", "mprotect", "madvise", "mremap", "mlock", "munlock"])
        if name == "mmap":
            where = some.choice([addr, addr, addr, 0])
            flags = ANON | (FIXED if where else 0)
            return Call("mmap", (where, length, some.choice([0, 1, 3, 3]), flags, NONE, 0))
        if name == "mprotect":
            return Call(name, (addr, length, some.choice([0, 1, 3])))
        if name == "madvise":
            advice = some.choice([MADV_DONTFORK, MADV_DOFORK, MADV_HUGEPAGE, MADV_NOHUGEPAGE])
            return Call(name, (addr, length, advice))
        if name == "mremap":
            flags = some.choice([0, 1, 1])
            return Call(name, (addr, length, some.randint(1, 8) * PAGE, flags, 0))
        return Call(name, (addr, length))

    def _call(self, process: Process, call: Call) -> None:
        result = process.do(call).result
        self._add(records.Call(n=0, pid=process.pid, tid=process.pid, call=call.name, args=list(call.args), ret=result))

    def _fork(self, parent: Process) -> None:
        pid = self._next_pid
        self._next_pid += 1
        self.machine.fork(parent, 0, pid)
        self._add(Fork(n=0, pid=pid, tid=pid, parent=parent.pid, parent_tid=parent.pid, flags=17))

    def _exit(self, process: Process) -> None:
        self._add(Exit(n=0, pid=process.pid, code=0))
        self.machine.exit(process)
