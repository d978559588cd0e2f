"""Lockstep: the same steps in the model and in a live kernel, everything compared after each."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, final

from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call
from vmalab.errors import VmalabError
from vmalab.flags import (
    IPC_STAT,
    MADV_COLLAPSE,
    MADV_REMOVE,
    RLIM_INFINITY,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    RLIMIT_STACK,
)
from vmalab.fuzz.divergence import Divergence, access_difference, result_text
from vmalab.fuzz.events import EVENTS, EventReader, Listener
from vmalab.fuzz.files import Files
from vmalab.fuzz.ops import FIRST_MADE, FLAG_ARGUMENTS, NUMBERS, REMOTE_MADVISE, Op
from vmalab.fuzz.page_views import PageViews
from vmalab.fuzz.pages import PageWatch, has_own_pages, page_settings
from vmalab.fuzz.segments import Segments
from vmalab.fuzz.status import COUNTERS, counters, layout_shown, pool_sizes, program_text
from vmalab.fuzz.translate import CLOSE, Resources, translate
from vmalab.fuzz.view import Ranges, Row, Rows, WholeView, adopt, outer_view, same_view
from vmalab.live.agent import CHANNELS, READ, WRITE, Agent, AgentDied, Reply, Step, Vmas
from vmalab.live.facts import free_huge_pages, machine_facts
from vmalab.live.procfs import read_process, read_status
from vmalab.machine import KernelError, Machine, Process
from vmalab.pages.memory import Memory
from vmalab.reason import YES, errno_of, explain
from vmalab.semantics import Semantics
from vmalab.syscalls import layout
from vmalab.trace.load import load_exec, load_machine
from vmalab.vma.area import File
from vmalab.vma.space import Mm

FIELDS: Final = ("start", "end", "flags", "page offset", "inode", "anon_vma", "chain length", "policy or userfaultfd")
BATCH: Final = 32
"""Steps that are sent at once, while the model goes on with the next."""
AHEAD: Final = 4
"""Batches that are sent before the answer to the first is waited for."""
ALONE: Final = frozenset({"fork", "exit", "crowd", "exec", "userfaultfd", "close"})
"""Steps that are taken when all before them are compared."""
TAKES_FROM_ALL: Final = {MADV_REMOVE, MADV_COLLAPSE}
"""Advices that take a file's pages from all who map them."""
CROWD: Final = 0x200000000000
"""Where a crowd of VMAs lies."""
CROWD_FLAGS: Final = 0x4032
"""MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE."""


@final
class _Expected:
    """What the model says of one step."""

    def __init__(self, place: int, op: Op, steps: list[Step]) -> None:
        self.place: int = place
        self.op: Op = op
        self.steps: list[Step] = steps
        """What the agent does for it; the last one's answer counts."""
        self.result: int = 0
        self.known: bool = False
        self.reason: int = YES
        self.view: list[Row] = []


def _asks_a_file(process: Process, op: Op) -> bool:
    """Whether an answer to a userfaultfd depends on which pages of a file are in memory, as other runs left them."""
    vma = process.mm.find_vma(op.args[0]) if op.name == "fill" else None
    return vma is not None and not has_own_pages(vma)


class Lockstep:
    """A model and a live kernel that do the same.  A context manager.

    The agent's first process never takes a step: every run starts with a child of it, process 0 of the run.
    """

    def __init__(
        self,
        reader: str = "",
        files: Files | None = None,
        semantics: Semantics | None = None,
        *,
        legacy: bool = False,
        pages: bool = False,
    ) -> None:
        """Start an agent with a reader, and a model of it with a kernel's semantics.

        legacy: mappings are placed from below.  pages: what is below the VMAs is compared as well.
        """
        self.pages: bool = pages
        """Whether the model has pages, and they are compared."""
        self._legacy: bool = legacy
        self._semantics: Semantics | None = semantics
        self._own_files: bool = files is None
        self.files: Files = Files() if files is None else files
        self._stopped: bool = True
        try:
            self._start(reader)
        except BaseException:
            self.close()
            raise

    def _start(self, reader: str) -> None:
        self.agent: Agent = Agent(reader, legacy=self._legacy)
        self._segments: Segments = Segments(self.agent)
        self._stopped = False
        self._in_step: bool = False
        """The run has come to its end without a difference: the agent is there, and nothing is on its way."""
        self._listener: Listener = Listener()
        self._readers: dict[int, EventReader] = {}
        """Of the events of userfaultfds, by file."""
        self.page_views: PageViews | None = None
        self._load()
        self.restart()

    def _load(self) -> None:
        """The model of the agent's first process."""
        memory = Memory(page_settings()) if self.pages else None
        self.machine: Machine = load_machine(machine_facts(), self._semantics, memory)
        found = read_process(self.agent.pid)
        self._first: Process = self.machine.process(self.agent.pid)
        load_exec(self._first, found)
        self.models: list[File] = self.files.models()
        self._descriptors: list[int] = self._open_files()
        if memory is not None:
            self.page_views = PageViews(memory, self.agent)
        self.whole: bool = self.agent.reader == "bpf"
        outside = self.agent.reads_outside() or self.pages
        if self.pages:
            # What waits in the lists of one processor is not seen by the others.
            os.sched_setaffinity(self.agent.pid, {min(os.sched_getaffinity(0))})
        self._batch: int = 1 if outside else BATCH
        self._ahead: int = 0 if outside else AHEAD
        if self.whole and self.agent.first is not None:
            adopt(self._first.mm, self.agent.first)
        self.capabilities: int = int(read_status(self.agent.pid).get(b"CapEff", b"0"), 16)
        """What the agent may do, as bits."""
        self._source: tuple[int, bytes] = program_text(self.agent.pid, self._first)
        self._hard_limits: dict[int, int] = {}
        for limit in (RLIMIT_AS, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK):
            hard = resource.prlimit(self.agent.pid, limit)[1]
            self._hard_limits[limit] = RLIM_INFINITY if hard == resource.RLIM_INFINITY else hard
        self.processes: dict[int, Process] = {}
        self.parents: dict[int, int] = {}
        self.resources: dict[int, Resources] = {}

    def restart(self) -> None:
        """End the processes of the run before, and begin the next."""
        self._end_run()
        self._look_at_pools()
        self._empty_files()
        self._kernel: dict[int, Vmas] = {}
        self.agent.known.clear()
        self._rows: Rows = Rows(self.agent.known)
        self._views: dict[int, WholeView] = {}
        """Of the model's processes."""
        self.looks: bool = self.agent.reader != "none"
        """Whether VMAs are compared, or results alone."""
        for reader in self._readers.values():
            reader.forget()
        self._readers.clear()
        self._before: dict[int, list[Row]] = {}
        """The last view of each process that was equal on both sides."""
        self._last_place: int = -1
        self._sent: list[list[_Expected]] = []
        self.sequence: list[Op] = []
        """What was to be performed since."""
        self.steps: int = 0
        """How many steps were compared."""
        self.last_call: Call | None = None
        """The last call that the model was asked to do."""
        self.last_result: int = 0
        """What the kernel answered to the last step."""
        self.last_reason: int = YES
        """The model's answer to the last of them."""
        self.counts: dict[tuple[str, int, int, int], int] = {}
        """Those steps by name, by the arguments that FLAG_ARGUMENTS names, and by the model's answer (a reason)."""
        self.slots: int = 0
        """The first that no file of the run has been made in."""
        self.resources = {-1: Resources(self.models, self._descriptors, {}, self._hard_limits)}
        self.own: Ranges = Ranges()
        """Where the agent's own memory lies, in any process of the run."""
        self.own.add_all(self._first.mm)
        mine = self.resources[-1]
        mine.source, mine.content = self._source
        memory = self.machine.memory
        self._watch: PageWatch | None = None
        if memory is not None and self.page_views is not None:
            self._watch = PageWatch(memory, self.own, self.page_views)
        mine.user, mine.group = os.geteuid(), os.getegid()
        self._first_fork: Divergence | None = self._fork(Op("fork", (), -1)) or self._segments.make(
            self.processes[0], self.resources[0]
        )

    def _end_run(self) -> None:
        """End the processes of a run, and with the last of them what the run has locked of segments."""
        if self.processes:
            self._segments.remove(self.processes[0])
        while self.processes:
            for who in [each for each in self.processes if each not in self.parents.values()]:
                self._end(who)

    def _look_at_pools(self) -> None:
        """How many huge pages there are is nothing that a machine stays with."""
        self._pools: dict[str, int] = pool_sizes()
        self.machine.settings.hugepages = free_huge_pages().get("2048", 0)

    def _empty_files(self) -> None:
        """What the run before has left in memfds that all runs map is gone, where pages are compared."""
        memory = self.machine.memory
        if memory is not None:
            self.files.empty()
            for file in self.models:
                if file.kind == "memfd":
                    memory.drop_cache(memory.cache_of(file))

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def close(self) -> None:
        """End the agent, and give back what the model holds."""
        if not self._stopped:
            self._stopped = True
            # Of an agent that has died there is nothing left to end.
            with suppress(AgentDied):
                if self._in_step:
                    self._end_run()
            self.agent.close()
            self._listener.close()
            self._readers.clear()
            if self.page_views is not None:
                self.page_views.close()
        if self._own_files:
            self.files.close()

    def _open_files(self) -> list[int]:
        """The agent's own descriptors of the files: it opens what this process holds open."""
        opened: list[int] = []
        for descriptor, record in zip(self.files.descriptors, self.files.records, strict=True):
            path = f"/proc/{os.getpid()}/fd/{descriptor}".encode() + b"\0"
            flags = os.O_RDWR if record.writable else os.O_RDONLY
            reply = self.agent.run([Step(2, (self.agent.scratch, flags), path)], report=0)[0]
            if reply.result < 0:
                raise OSError(-reply.result, os.strerror(-reply.result), record.path)
            opened.append(reply.result)
        return opened

    # -- steps --------------------------------------------------------------------------------------------

    def run(self, ops: Iterable[Op]) -> Divergence | None:
        """Perform a sequence on both sides; the first difference, or None.  After one the two are out of step."""
        if self._first_fork is not None:
            return self._first_fork
        self._in_step = False
        waiting: list[_Expected] = []
        for place, op in enumerate(ops):
            self._last_place = place
            self.sequence.append(op)
            found: Divergence | None = None
            if not self._is_possible(op):
                # What makes the process, or the file, is left out of a sequence that is made short.
                continue
            alone = op.name in ALONE
            switches = len(waiting) > 0 and waiting[0].op.who != op.who
            if alone or switches or len(waiting) >= self._batch:
                found = self._send(waiting, 0 if alone else self._ahead)
                if found is not None:
                    return found
                waiting = []
            try:
                found = self._take(place, op, waiting)
            except (VmalabError, OSError):
                raise
            except Exception as error:  # a fault of the model is a finding, with the step that shows it
                found = Divergence(place, op, "the model fails", f"{type(error).__name__}: {error}", "")
            if found is None and op.name == "userfaultfd":
                # Whoever reads its events has to be there before the first.
                found = self._send(waiting, 0)
                waiting = []
            if found is not None:
                return found
        found = self._send(waiting, 0) or self._conclude()
        self._in_step = found is None
        return found

    def _is_possible(self, op: Op) -> bool:
        """Whether the process of a step is there, and what it acts on."""
        if op.who not in self.processes:
            return False
        if op.name == "process_madvise":
            return op.file < 0 or op.file in self.processes
        return self.resources[op.who].has(op)

    def _take(self, place: int, op: Op, waiting: list[_Expected]) -> Divergence | None:
        """Perform a step that concerns processes at once; take any other in the model, and put it among the waiting."""
        if op.name == "fork":
            return self._fork(op)
        if op.name == "exit":
            return self._exit(op)
        if op.name == "crowd":
            return self._crowd(op)
        if op.name == "exec":
            return self._exec(op)
        if op.name == "close" and op.file in self._readers:
            # The last descriptor is to be the agent's.
            self._readers[op.file].stop()
        waiting.append(self._predict(place, op))
        return None

    def _conclude(self) -> Divergence | None:
        """At the end of a sequence: what each process counts, and whether the model is whole."""
        op = Op("end")
        for who, process in self.processes.items():
            mm = process.mm
            counted = (mm.total_vm, mm.locked_vm, mm.data_vm, mm.stack_vm)
            kernel = counters(self.agent.pid_of(who + 1))
            for name, pages in zip(COUNTERS, counted, strict=True):
                if kernel.get(name, pages) != pages:
                    text = f"process {who}: {name} in pages"
                    return Divergence(self._last_place, op, text, str(pages), str(kernel[name]))
            shown = layout_shown(self.agent.pid_of(who + 1))
            for option, ours, theirs in zip(layout.ORDER, layout.layout_of(mm), shown, strict=True):
                if ours != theirs and ours and theirs > 1:
                    text = f"process {who}: {layout.OPTIONS[option]}"
                    return Divergence(self._last_place, op, text, hex(ours), hex(theirs))
            found = self._look_at_pages(who, whole=True)
            if found is not None:
                return Divergence(self._last_place, op, *found)
        try:
            self.machine.validate()
        except AssertionError as error:
            return Divergence(self._last_place, op, "the model's state", str(error), "")
        return None

    def _view(self, who: int) -> list[Row]:
        if not self.looks:
            return []
        mm: Mm = self.processes[who].mm
        if self.whole:
            view = self._views.get(who)
            if view is None:
                view = self._views[who] = WholeView(self._rows)
            return view.look(mm)
        return outer_view(mm, self._rows, self.agent.reader == "smaps")

    def _predict(self, place: int, op: Op) -> _Expected:
        process = self.processes[op.who]
        if op.name == "read" or op.name == "write":
            writes = op.name == "write"
            expected = _Expected(place, op, [Step(WRITE if writes else READ, op.args)])
            expected.reason = process.fault(op.args[0], writes)
            expected.result = -errno_of(expected.reason) if expected.reason != YES else 0
            if self.pages and expected.reason == YES:
                self._access(process, op.args[0], writes, expected)
        else:
            call, steps = self._translate(op)
            self.last_call = call
            if op.clone:
                child = self.machine.fork(process, op.clone)
                outcome = child.do(call)
                self.machine.exit(child)
                for step in steps:
                    if step.number == NUMBERS[op.name]:
                        step.number |= op.clone << 32
            else:
                outcome = process.do(call)
            expected = _Expected(place, op, steps)
            expected.result = outcome.result
            expected.known = outcome.known and not _asks_a_file(process, op)
            expected.reason = outcome.reason
            if op.name == "shmget":
                self.resources[op.who].segments[op.file] = outcome.result
            elif op.name == "shmctl" and op.args[0] == IPC_STAT and outcome.result == 0:
                segment = process.ipc.segments[call.args[0]]
                fields = (segment.attached, segment.size, segment.mode)
                expected.result = fields[op.args[1] % len(fields)]
        expected.view = self._view(op.who)
        return expected

    def _access(self, process: Process, addr: int, writes: bool, expected: _Expected) -> None:
        """What the agent does with the byte that it touches: a write adds one to it, a read tells it."""
        (byte,) = process.read(addr, 1)
        if writes:
            process.write(addr, bytes([byte + 1 & 255]))
            return
        vma = process.mm.vma_lookup(addr)
        expected.result = byte
        expected.known = vma is not None and has_own_pages(vma)

    def _translate(self, op: Op) -> tuple[Call, list[Step]]:
        self.slots = max(self.slots, op.file - FIRST_MADE + 1)
        return translate(op, self.resources[op.who], self.agent.scratch)

    def _send(self, waiting: list[_Expected], ahead: int) -> Divergence | None:
        """Send a batch to the agent, and compare what comes back until only so many batches are on their way.

        Those that are on their way are all of one process: another begins when they are done.
        """
        if waiting:
            if self._sent and self._sent[0][0].op.who != waiting[0].op.who:
                found = self._send([], 0)
                if found is not None:
                    return found
            steps = [step for each in waiting for step in each.steps]
            self._sent.append(waiting)
            try:
                self.agent.send(steps, waiting[0].op.who + 1, report=int(self.looks))
            except AgentDied as died:
                return self._death(died)
        while len(self._sent) > ahead:
            batch = self._sent[0]
            found = self._receive(batch)
            if found is not None:
                return found
            del self._sent[0]
        return None

    def _receive(self, batch: list[_Expected]) -> Divergence | None:
        who = batch[0].op.who
        for expected in batch:
            try:
                for at in range(len(expected.steps)):
                    reply = self.agent.receive(who + 1)
                    if at == 0:
                        first = reply.result
                    if reply.vmas is not None:
                        self._kernel[who] = reply.vmas
            except AgentDied as died:
                return self._death(died, expected)
            self.steps += 1
            self.last_result = reply.result
            self._listen(expected.op, first)
            found = self._compare(expected, reply, who)
            if found is not None:
                return found
            self._count(expected.op, expected.reason)
        return None

    def _listen(self, op: Op, descriptor: int) -> None:
        """Read the events of a new userfaultfd that has any."""
        if op.name == "userfaultfd" and op.args and op.args[0] & EVENTS and descriptor >= 0:
            self._readers[op.file] = self._listener.follow(self.agent.pid_of(op.who + 1), descriptor)

    def _count(self, op: Op, reason: int) -> None:
        self.last_reason = reason
        first = second = 0
        name = REMOTE_MADVISE if op.name == "process_madvise" and op.file >= 0 else op.name
        at = FLAG_ARGUMENTS.get(op.name)
        if at is not None and op.args:
            first = op.args[at[0]]
            second = op.args[at[1]]
        keys = [(name, first, second, reason)]
        if op.clone:
            keys.append(("clone", op.clone, 0, YES))
        for key in keys:
            self.counts[key] = self.counts.get(key, 0) + 1

    def _death(self, died: AgentDied, expected: _Expected | None = None) -> Divergence:
        at = self._sent[0][0] if expected is None else expected
        return Divergence(at.place, at.op, "outcome", explain(at.reason).name, str(died))

    def _compare(self, expected: _Expected, reply: Reply, who: int) -> Divergence | None:
        op = expected.op
        if op.name == "read" or op.name == "write":
            told = access_difference(expected.reason, op.args[0], reply.signal)
            if told is not None:
                return Divergence(expected.place, op, "access", told[0], told[1])
            if expected.known and op.name == "read" and expected.result != reply.result:
                return Divergence(expected.place, op, "content", hex(expected.result), hex(reply.result))
        elif expected.known and expected.result != reply.result:
            model = f"{expected.result:#x} ({explain(expected.reason).name})"
            return Divergence(expected.place, op, "result", model, result_text(reply.result))
        kernel_view = self._kernel[who]
        if not self.looks or same_view(expected.view, kernel_view, self._rows):
            self._before[who] = expected.view
            return self._compare_pages(expected, who)
        found = self._difference(expected, kernel_view)
        found.before = self._before.get(who, [])
        found.model_view, found.kernel_view = expected.view, kernel_view
        return found

    def _compare_pages(self, expected: _Expected, who: int) -> Divergence | None:
        op = expected.op
        seen = [who, op.file] if op.name == "process_madvise" and op.file >= 0 else [who]
        if self._watch is not None and op.name == "mbind" and op.args[4]:
            # Pages are moved; what others have is seen later.
            self._watch.forget_all()
        elif self._watch is not None and op.name in ("madvise", "process_madvise") and TAKES_FROM_ALL & {*op.args}:
            self._watch.forget_all()
            seen = list(self.processes)
        for each in seen:
            found = self._look_at_pages(each, whole=False)
            if found is not None:
                return Divergence(expected.place, op, *found)
        return None

    def is_disturbed(self) -> bool:
        """Whether somebody else has changed the pages of the run, or how many huge pages there are."""
        return pool_sizes() != self._pools or (self._watch is not None and self._watch.is_disturbed())

    def _look_at_pages(self, who: int, *, whole: bool) -> tuple[str, str, str] | None:
        watch = self._watch
        if watch is None or not self.looks:
            return None
        return watch.compare(who, self.processes[who], self.agent.pid_of(who + 1), whole=whole)

    def _difference(self, expected: _Expected, kernel: Vmas) -> Divergence:
        """What exactly differs."""
        model = expected.view
        for ours, theirs in zip(model, kernel, strict=False):
            for i, name in enumerate(FIELDS):
                if ours[i] == theirs[i] or (name == "inode" and self._rows.is_inode(ours[i], theirs[i])):
                    continue
                where = f"VMA {ours[0]:x}-{ours[1]:x}: {name}"
                return Divergence(expected.place, expected.op, where, hex(ours[i]), hex(theirs[i]))
        counts = (str(len(model)), str(len(kernel)))
        return Divergence(expected.place, expected.op, "number of VMAs", *counts)

    def _crowd(self, op: Op) -> Divergence | None:
        """Many VMAs, away from all others: from here on results are compared alone, lists of VMAs would be long."""
        process = self.processes[op.who]
        pages = op.args[0]
        whole = (CROWD, pages * PAGE_SIZE, 1, CROWD_FLAGS)
        process.do(Call("mmap", (*whole, 3, 0)))
        steps = [Step(NUMBERS["mmap"], (*whole, 0xFFFFFFFFFFFFFFFF, 0))]
        for at in range(1, pages, 2):
            # One page with other permissions makes two VMAs more.
            args = (CROWD + at * PAGE_SIZE, PAGE_SIZE, 3)
            process.do(Call("mprotect", args))
            steps.append(Step(NUMBERS["mprotect"], args))
        self.looks = False
        try:
            replies = self.agent.run(steps, op.who + 1, report=0)
        except AgentDied as died:
            return self._death(died, _Expected(self._last_place, op, []))
        self.steps += 1
        self._count(op, YES)
        failed = [reply for reply in replies if reply.result < 0]
        if failed:
            return Divergence(self._last_place, op, "result", "YES", result_text(failed[0].result))
        return None

    # -- processes ----------------------------------------------------------------------------------------

    def _fork(self, op: Op) -> Divergence | None:
        """A child of a process of the run, or (by -1) the run's first."""
        child = next((each for each in range(CHANNELS - 1) if each not in self.processes), None)
        if child is None:
            return None
        place = self._last_place
        parent = self._first if op.who < 0 else self.processes[op.who]
        process: Process | None = None
        reason = YES
        try:
            process = self.machine.fork(parent)
        except KernelError as error:
            reason = error.reason
        try:
            pid = self.agent.fork(op.who + 1, child + 1, report=int(self.looks))
        except AgentDied as died:
            return Divergence(place, op, "outcome", explain(reason).name, str(died))
        if (pid > 0) != (process is not None):
            return Divergence(place, op, "result", explain(reason).name, result_text(pid))
        if process is None:
            return None
        self.steps += 1
        self.processes[child] = process
        self.parents[child] = op.who
        self.resources[child] = self.resources[op.who].inherited()
        self.resources[child].peers[child] = (pid, process.pid)
        shown = self.agent.first
        self._kernel[child] = [] if shown is None else shown
        self._learn_tables(child)
        closing = self.resources[op.who].contexts()
        if closing:
            self.agent.run([Step(CLOSE, slots=(slot + 1, 0, 0, 0, 0, 0)) for slot in closing], child + 1, report=0)
        return self._look(op, child)

    def _look(self, op: Op, who: int) -> Divergence | None:
        """Count a step that has made an address space, and compare that."""
        self._count(op, YES)
        expected = _Expected(self._last_place, op, [])
        expected.view = self._view(who)
        return self._compare(expected, Reply(0, 0, None), who)

    def _learn_tables(self, who: int) -> None:
        if self.page_views is not None:
            self.page_views.learn_tables(self.processes[who], self.agent.pid_of(who + 1))

    def _exec(self, op: Op) -> Divergence | None:
        """A process executes the agent anew; the model takes its VMAs as they are then."""
        process = self.processes[op.who]
        try:
            self.agent.exec(op.who + 1)
        except AgentDied as died:
            return Divergence(self._last_place, op, "outcome", "it goes on", str(died))
        shown = self.agent.first
        self._kernel[op.who] = [] if shown is None else shown
        mm = self.machine.replace_mm(process)
        load_exec(process, read_process(self.agent.pid_of(op.who + 1)))
        if self.whole and shown is not None:
            adopt(mm, shown)
        self.own.add_all(mm)
        self._learn_tables(op.who)
        self.resources[op.who].made.clear()
        self.resources[op.who].pidfds.clear()
        self.steps += 1
        return self._look(op, op.who)

    def _exit(self, op: Op) -> Divergence | None:
        # Its own children go on without it; only a process without any is ended.
        if op.who == 0 or op.who in self.parents.values():
            return None
        self.steps += 1
        try:
            self._end(op.who)
        except AgentDied as died:
            return Divergence(self._last_place, op, "outcome", "it exits", str(died))
        self._count(op, YES)
        return None

    def _end(self, who: int) -> None:
        """End a process that has no children."""
        process = self.processes.pop(who)
        parent = self.parents.pop(who)
        del self.resources[who]
        for each in self.resources.values():
            # A process that has the number after it is another one.
            each.pidfds.discard(who)
        if self._watch is not None:
            self._watch.forget(who)
        self.machine.exit(process)
        self.agent.exit(who + 1, parent + 1)
