"""Replaying a trace: every call is performed by the model, and every result and final map is compared.

Nothing is adopted from the record but what the model cannot know: which VMAs were written to, how far stacks grew, and
what files are mapped.  Where nobody observed faults, two models run side by side: in one nothing is ever written to, in
the other every private writable VMA is written to at once.  What the two agree on does not depend on a fault; what they
do not agree on is *unknown*, and is counted as that and never as right or wrong.
"""

from __future__ import annotations

import errno
from collections import Counter
from typing import Final, final

from vmalab.calls import Call, Outcome
from vmalab.dispatch import perform
from vmalab.flags import CLONE_THREAD, CLONE_VM, MAP_32BIT, MAP_FIXED, MAP_HUGETLB, VM_MAYSHARE, VM_SHARED, VM_WRITE
from vmalab.machine import KernelError, Process
from vmalab.pages.memory import Memory
from vmalab.reason import YES
from vmalab.semantics import Semantics
from vmalab.syscalls.populate import grow_stack
from vmalab.trace import records
from vmalab.trace.compare import Difference, Inodes, compare_maps
from vmalab.trace.load import load_exec, load_file, load_machine
from vmalab.trace.partial import PartialCalls, Territory
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import File, Vma
from vmalab.vma.observer import Observer
from vmalab.vma.space import Mm


@final
class Mismatch:
    """A call whose result the model did not predict."""

    __slots__ = ("call", "kernel", "n", "outcome", "pid")

    def __init__(self, n: int, pid: int, call: Call, outcome: Outcome, kernel: int) -> None:
        self.n = n
        self.pid = pid
        self.call = call
        self.outcome = outcome
        self.kernel = kernel
        """What the record says: the result, or minus the errno."""


@final
class Program:
    """One program in one process, from its execve to its end: what the replay found."""

    def __init__(self, n: int, pid: int, exe: str) -> None:
        self.n: int = n
        """The record that began it."""
        self.pid: int = pid
        self.exe: str = exe
        self.calls: int = 0
        self.peak: int = 0
        """The largest number of VMAs."""
        self.vmas: int = 0
        """The number of VMAs at the end."""
        self.mismatches: int = 0
        self.first: Mismatch | None = None
        self.unknown: int = 0
        """Results and VMAs that depend on a fault nobody observed, or on a random choice of the kernel."""
        self.not_modelled: Counter[str] = Counter()
        self.final: list[Difference] | None = None
        """The differences of the final VMAs, or None where the trace holds none to compare with."""
        self.anon_vmas: bool = False
        """Those were compared too: which VMAs have one, and which share one."""
        self.replaced: bool = False
        """It ended in an execve: the next program of this process took its place."""
        self.lost: str = ""
        """Why something is missing since some record.  What differs from there on is unknown, not wrong."""
        self.partial: bool = False
        """What was mapped when it began is not all in the trace."""
        self.maps: str = ""
        """The model's final VMAs as /proc/PID/maps shows them, where they were asked for."""

    def is_equal(self) -> bool:
        """Every result was predicted and the final VMAs, if recorded, are the same."""
        return not self.mismatches and not self.final


class _WriteAtOnce(Observer):
    """Collects the VMAs that a program could write to, so that they are taken as written before the next call."""

    def __init__(self) -> None:
        self.pending: list[tuple[Mm, int]] = []

    def added(self, vma: Vma) -> None:
        self.pending.append((vma.mm, vma.start))

    def split(self, below: Vma, above: Vma) -> None:
        self.pending += [(below.mm, below.start), (above.mm, above.start)]

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        self.pending.append((survivor.mm, survivor.start))

    def flags_changed(self, vma: Vma, old: int) -> None:
        self.pending.append((vma.mm, vma.start))

    def write(self) -> None:
        """Take all that was collected as written to."""
        for mm, addr in self.pending:
            mm.mmap_read_lock()
            vma = mm.vma_lookup(addr)
            if vma is not None and vma.flags & VM_WRITE and not vma.flags & (VM_SHARED | VM_MAYSHARE):
                anon_vma_prepare(vma)
            mm.mmap_read_unlock()
        self.pending.clear()


class Replay:
    """The model of one trace.  Feed it the records in order with step()."""

    def __init__(
        self,
        header: records.Header,
        semantics: Semantics | None = None,
        observer: Observer | None = None,
        *,
        write_at_once: bool = False,
        keep_maps: bool = False,
        memory: Memory | None = None,
    ) -> None:
        """A model as the header tells.  With a memory there are pages, as far as the faults of the trace show them."""
        self.header = header
        self.keep_maps = keep_maps
        self.machine = load_machine(header.machine, semantics, memory)
        self._writer = _WriteAtOnce() if write_at_once else None
        self.observer: Observer | None = self._writer if self._writer is not None else observer
        self.files: dict[int, File] = {}
        self.programs: list[Program] = []
        self.current: dict[int, Program] = {}
        self.n = 0
        """The number of the last record."""
        self.pid = 0
        """The process that the last record is of."""
        self.call: Call | None = None
        """The call that the last record is of, if it is one."""
        self.outcome: Outcome | None = None
        """What the model made of that call."""
        self.refused: int = 0
        """Why a fault of the last record (an access, or a stack that grew) fails in the model; 0 if none does."""
        self._inodes: dict[int, Inodes] = {}
        self._known: dict[int, Territory] = {}
        """By process: what is known of an address space whose first VMAs are not all in the trace."""

    # -- records ------------------------------------------------------------------------------------

    def step(self, record: records.Record) -> Mismatch | None:
        """Take one record.  A mismatch is returned as well as kept with its program."""
        self.n = record.n
        self.pid = getattr(record, "pid", 0)
        self.call = None
        self.outcome = None
        self.refused = YES
        if isinstance(record, records.Call):
            return self._call(record)
        if isinstance(record, records.File):
            self.files[record.id] = load_file(record)
        elif isinstance(record, records.Fault):
            process = self.machine.processes.get(record.pid)
            if process is not None and (not record.vma_lock or self.machine.memory is not None):
                self.refused = process.fault(record.addr, record.write)
        elif isinstance(record, records.Maps):
            self._maps(record)
        elif isinstance(record, records.Exec):
            self._exec(record)
        elif isinstance(record, records.Fork):
            return self._fork(record)
        elif isinstance(record, records.Exit):
            self._exit(record)
        elif isinstance(record, records.Lost):
            for program in self.current.values():
                if record.pid in (0, program.pid) and not program.lost:
                    program.lost = record.why
        return None

    def process(self, pid: int) -> Process | None:
        """The process with this number, if it lives at this point of the trace."""
        return self.machine.processes.get(pid)

    def _program(self, n: int, pid: int, exe: str) -> Program:
        program = Program(n, pid, exe)
        self.programs.append(program)
        self.current[pid] = program
        return program

    def _exec(self, record: records.Exec) -> None:
        process = self.machine.processes.get(record.pid)
        if process is None:
            process = self.machine.process(record.pid)
        else:
            old = self.current.get(record.pid)
            if old is not None:
                self._note_end(old, process)
                old.replaced = True
            self.machine.replace_mm(process)
        program = self._program(record.n, record.pid, record.exe)
        self._inodes[record.pid] = Inodes()
        self._known.pop(record.pid, None)
        if record.partial:
            program.partial = True
            self._known[record.pid] = Territory([(vma.start, vma.end) for vma in record.vmas])
        load_exec(process, record)
        process.mm.faults_observed = self.header.faults != "none"
        if self.observer is not None:
            process.mm.observer = self.observer
            if self._writer is not None:
                self._writer.pending += [(process.mm, vma.start) for vma in process.vmas()]

    def _fork(self, record: records.Fork) -> Mismatch | None:
        if record.flags & CLONE_THREAD:
            return None
        parent = self.machine.processes.get(record.parent)
        if parent is None:
            return None
        self.observe(parent, record.grown, record.written)
        program = self.current.get(record.parent)
        try:
            self.machine.fork(parent, record.flags, record.pid)
        except KernelError as error:
            self.call = Call("fork", ())
            self.outcome = error.outcome
            if program is not None and program.lost:
                program.unknown += 1
                return None
            mismatch = Mismatch(record.n, record.parent, self.call, error.outcome, record.pid)
            if program is not None:
                program.mismatches += 1
                program.first = program.first or mismatch
            return mismatch
        child = self._program(record.n, record.pid, program.exe if program is not None else "")
        known = self._known.get(record.parent)
        if known is not None:
            child.partial = True
            self._known[record.pid] = known if record.flags & CLONE_VM else known.copy()
        self._inodes[record.pid] = self._inodes.get(record.parent, Inodes())
        return None

    def _exit(self, record: records.Exit) -> None:
        process = self.machine.processes.get(record.pid)
        if process is None:
            return
        self.observe(process, record.grown, record.written)
        program = self.current.pop(record.pid, None)
        if program is not None:
            self._note_end(program, process)
            if record.vmas is not None and not program.final:
                self._compare(process, program, record)
        self.machine.exit(process)
        self._inodes.pop(record.pid, None)
        self._known.pop(record.pid, None)

    def _maps(self, record: records.Maps) -> None:
        process = self.machine.processes.get(record.pid)
        program = self.current.get(record.pid)
        if process is not None and program is not None and not program.final:
            self._compare(process, program, record)

    def _compare(self, process: Process, program: Program, record: records.Maps | records.Exit) -> None:
        inodes = self._inodes.get(record.pid)
        found = compare_maps(process, record.vmas or [], inodes, anon_vmas=record.anon_vmas)
        if found and program.lost:
            program.unknown += len({difference.addr for difference in found})
        else:
            program.final = found
            program.anon_vmas = record.anon_vmas

    def finish(self) -> None:
        """The trace is over: note what the programs that still run hold."""
        for pid, program in self.current.items():
            process = self.machine.processes.get(pid)
            if process is not None:
                self._note_end(program, process)

    def _note_end(self, program: Program, process: Process) -> None:
        program.peak = process.mm.hiwater_map_count
        program.vmas = process.mm.map_count
        if self.keep_maps:
            program.maps = process.maps()

    def observe(self, process: Process, grown: list[tuple[int, int]], written: list[int]) -> None:
        """Take over what the recorder saw of faults: stacks that grew, VMAs that were written to."""
        mm = process.mm
        mm.limits = process.limits
        mm.mmap_read_lock()
        for start, end in grown:
            stack = mm.vma_lookup(end - 1)
            if stack is not None and stack.start > start:
                self.refused = grow_stack(stack, start) or self.refused
        for addr in written:
            vma = mm.vma_lookup(addr)
            if vma is not None:
                anon_vma_prepare(vma)
        mm.mmap_read_unlock()
        if self._writer is not None:
            self._writer.write()

    def _lacks_huge_pages(self, record: records.Call, file: File | None) -> bool:
        """Whether a mapping failed for want of huge pages: who has reserved those of the pool is not modelled."""
        if record.call != "mmap" or record.ret != -errno.ENOMEM or not self.machine.settings.hugepages:
            return False
        return bool(record.args[3] & MAP_HUGETLB or (file is not None and file.huge_size))

    def _call(self, record: records.Call) -> Mismatch | None:
        process = self.machine.processes.get(record.pid)
        if process is None:
            return None
        program = self.current[record.pid]
        file = self.files.get(record.file) if record.file is not None else None
        call = Call(record.call, tuple(record.args), file, record.data)
        self.call = call
        self.observe(process, record.grown, record.written)
        program.calls += 1
        if self._lacks_huge_pages(record, file):
            program.unknown += 1
            return None
        outcome, certain = self._perform(process, record, call)
        self.outcome = outcome
        if not outcome.modelled:
            program.not_modelled[record.call] += 1
            return None
        if not outcome.known and certain:
            if record.call in _MEMORY_CALLS:
                program.unknown += 1
            return None
        if not certain:
            program.unknown += 1
            return None
        if record.ret is None or outcome.result == record.ret:
            return None
        if record.overtaken and record.call in _POPULATING and {outcome.result, record.ret} <= _POPULATED:
            program.unknown += 1
            return None
        if program.lost:
            program.unknown += 1
            return None
        mismatch = Mismatch(record.n, record.pid, call, outcome, record.ret)
        program.mismatches += 1
        if program.first is None:
            program.first = mismatch
        return mismatch

    def _perform(self, process: Process, record: records.Call, call: Call) -> tuple[Outcome, bool]:
        """The outcome of a call, and whether it is one to compare: it depends on nothing that nobody knows."""
        ret = record.ret
        if ret is None:
            return perform(process, call), False
        known = self._known.get(record.pid)
        if known is not None:
            partial = PartialCalls(process, known)
            outcome = partial.perform(call, ret)
            return outcome, partial.certain and (not record.unordered or outcome.result == ret)
        if record.call == "shmget" and ret >= 0:
            call.data = {**call.data, "id": ret}
        chosen = _random_choice(record, call.file)
        if chosen is not None:
            outcome = perform(process, chosen)
            return outcome, outcome.result != ret
        outcome = perform(process, call)
        return outcome, not record.unordered or outcome.result == ret


_MEMORY_CALLS: Final = frozenset({"mmap", "madvise", "mlock", "mlock2"})
"""Calls whose results are predicted but for what the model does not hold, such as the size of a file."""


_POPULATING: Final = frozenset({"mlock", "mlock2", "mlockall"})
"""Calls that touch pages after they have let go of the lock under which they changed VMAs, and answer how that went."""
_POPULATED: Final = frozenset({0, -errno.ENOMEM, -errno.EAGAIN})


def _random_choice(record: records.Call, file: File | None) -> Call | None:
    """A call with the place put in that the kernel chose at random: nobody can predict it (MAP_32BIT)."""
    if (
        record.call != "mmap"
        or record.ret is None
        or record.ret < 0
        or not record.args[3] & MAP_32BIT
        or record.args[3] & MAP_FIXED
    ):
        return None
    if record.args[0] == record.ret:
        return None
    _, length, prot, flags, fd, offset = record.args
    return Call("mmap", (record.ret, length, prot, flags | MAP_FIXED, fd, offset), file, record.data)


@final
class UncertainReplay(Replay):
    """A replay without observed faults: two models, and what they do not agree on is unknown."""

    def __init__(self, header: records.Header, semantics: Semantics | None = None, *, keep_maps: bool = False) -> None:
        super().__init__(header, semantics, keep_maps=keep_maps)
        self._other = Replay(header, semantics, write_at_once=True)

    def step(self, record: records.Record) -> Mismatch | None:
        pid = getattr(record, "pid", 0)
        mine = self.current.get(pid)
        others = self._other.current.get(pid)
        unknown = (mine.unknown if mine is not None else 0, others.unknown if others is not None else 0)
        one = super().step(record)
        two = self._other.step(record)
        if mine is None or others is None:
            return one
        if isinstance(record, records.Exit):
            _keep_what_is_certain(mine, others)
        if mine.unknown == unknown[0] and others.unknown > unknown[1] and one is None:
            mine.unknown += 1
        if one is not None and two is not None and one.outcome.result == two.outcome.result:
            return one
        if one is not None or two is not None:
            mine.unknown += 1
        if one is not None:
            mine.mismatches -= 1
            if mine.first is one:
                mine.first = None
        return None


def _keep_what_is_certain(mine: Program, others: Program) -> None:
    """Only a difference that both models show is one; the addresses of the others are counted as unknown."""
    if mine.final is None or others.final is None:
        return
    shown = {repr(difference) for difference in others.final}
    certain = [difference for difference in mine.final if repr(difference) in shown]
    sure = {difference.addr for difference in certain}
    mine.unknown += len({difference.addr for difference in mine.final + others.final} - sure)
    mine.final = certain


def replay_of(header: records.Header, semantics: Semantics | None = None, *, keep_maps: bool = False) -> Replay:
    """The replay that fits how the faults of a trace were observed."""
    if header.faults == "none":
        return UncertainReplay(header, semantics, keep_maps=keep_maps)
    return Replay(header, semantics, keep_maps=keep_maps)
