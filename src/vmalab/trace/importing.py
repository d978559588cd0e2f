"""Makes a trace of what another tool has logged: `TraceBuilder` takes events, follows tasks and descriptors, and gives
the records.

A log tells neither which VMAs there were when it began nor what was written to.  After an execve the heap and the place
where the kernel begins its search are told from the first calls; all else that was mapped before stays unknown, and the
Exec record says that its list is not whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import msgspec

from vmalab.errors import InputError
from vmalab.flags import CLONE_FILES, CLONE_THREAD, CLONE_VFORK, CLONE_VM, MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE
from vmalab.trace.check import CAPS, PID_LIMIT
from vmalab.trace.descriptors import Description, Descriptors, described_by
from vmalab.trace.logged_calls import NotUnderstood, data_of, descriptor_of, is_about_memory, words_of
from vmalab.trace.logs import FILES, FORKS, MEMORY, Event, Family, LogCall, LogEnd, LogFault, LogTask, Tally
from vmalab.trace.records import Call, Exec, Exit, Fault, Fork, Limits, Lost, Record, Stack

TASK_END: Final = 1 << 47
"""No program on x86-64 has memory from here on, unless it asks for it."""
_HELD: Final = 5000
"""How many records wait at most for the first brk and mmap of a program."""
_KNOWN_STACKS: Final = 1 << 14
"""How many stacks are remembered, so that each is one record."""
_THREAD: Final = CLONE_VM | CLONE_FILES | CLONE_THREAD
_LAYOUT: Final = MEMORY - {
    "shmget", "memfd_create", "memfd_secret", "userfaultfd", "io_uring_setup", "personality", "msync", "mincore",
    "setrlimit", "prlimit64", "pkey_alloc", "pkey_free",
}  # fmt: skip
"""Calls whose order between threads matters."""
_LEGACY: Final = range(0x2AAAAAAAB000, 0x555555554000)
"""Where the search begins in the layout from the bottom up, give or take randomisation."""
_RLIMITS: Final = {2: "data", 3: "stack", 8: "memlock", 9: "as_"}


@final
class _Space:
    """An address space, which tasks may share."""

    __slots__ = ("running",)

    def __init__(self) -> None:
        self.running: dict[int, bool] = {}
        """The tasks that are within a call on it, and whether another overlapped."""


@final
class _Process:
    """A process of the log."""

    __slots__ = ("alive", "descriptors", "foreign", "limits", "pid", "space", "tasks")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.tasks: set[int] = set()
        self.descriptors = Descriptors()
        self.space = _Space()
        self.limits = Limits(as_=None, data=None, stack=None, memlock=None)
        self.foreign = False
        """It runs a 32-bit program."""
        self.alive = True


class TraceBuilder:
    """Takes the events of a log in their order and passes records on, numbered by whoever takes them."""

    def __init__(
        self,
        family: Family,
        tally: Tally,
        write: Callable[[Record], object],
        first: dict[int, Exec] | None = None,
        *,
        name: str = "the log",
    ) -> None:
        """first: what processes (0: the first that the log shows) had mapped when it began."""
        self._family = family
        self._tally = tally
        self._write = write
        self._first = dict(first or {})
        self._name = name
        self._tasks: dict[int, _Process] = {}
        self._forks: dict[int, int | None] = {}
        """The flags of a fork that a task is within."""
        self._unresolved: dict[int, Exec] = {}
        self._held: list[Record] = []
        self._files = 0
        self._segments: dict[int, tuple[int, int]] = {}
        self._begun: _Process | None = None
        """The process of tasks that nobody in the log has made."""
        self.ordered = True
        """The log is in the order in which things happened, also between threads."""
        self.faults = 0
        self.programs = 0
        self.partial = False
        """A process's first VMAs are not known."""
        self.unordered = 0
        """Calls that overlapped with one of another thread."""
        self.without_result = 0
        self.with_stack = 0
        """Calls and faults of which the log has the stack."""
        self._stacks: dict[tuple[str, ...], int] = {}
        self._stack_records = 0

    # -- records --------------------------------------------------------------------------------------

    def _emit(self, record: Record) -> None:
        if not self._unresolved:
            self._write(record)
            return
        self._held.append(record)
        if len(self._held) > _HELD:
            self.flush()

    def flush(self) -> None:
        """Pass on what waits for more to be known of a program."""
        self._unresolved.clear()
        held, self._held = self._held, []
        for record in held:
            self._write(record)

    def _resolve(self, pid: int, exec_: Exec) -> None:
        if exec_.mmap_base is not None and exec_.start_brk:
            self._unresolved.pop(pid, None)
            if not self._unresolved:
                self.flush()

    def _learn(self, process: _Process, event: LogCall, words: list[int]) -> None:
        """The first calls of a program show where its heap is and where the kernel begins to search."""
        exec_ = self._unresolved.get(process.pid)
        ret = event.ret
        if exec_ is None or ret is None or ret <= 0:
            return
        if event.name == "brk" and not exec_.start_brk:
            exec_.start_brk = exec_.brk = ret
        elif event.name == "mmap" and exec_.mmap_base is None and words[0] == 0:
            if words[3] & (MAP_FIXED | MAP_FIXED_NOREPLACE) or ret + words[1] > TASK_END:
                return
            exec_.topdown = ret not in _LEGACY
            exec_.mmap_base = ret + (words[1] + 0xFFF & ~0xFFF) if exec_.topdown else ret
        self._resolve(process.pid, exec_)

    # -- tasks ----------------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Take one event.  Raises InputError where the log is of a machine that is not modelled."""
        if not 0 <= event.tid <= PID_LIMIT:
            self._tally.bad(event.line, f"task {event.tid}", "no number of a task")
            return
        if isinstance(event, LogCall):
            self._call(event)
        elif isinstance(event, LogEnd):
            self._ended(event)
        elif isinstance(event, LogFault):
            process = self._process(event.tid)
            self.faults += 1
            stack = self._stack(process, event.stack)
            self._emit(Fault(n=0, pid=process.pid, tid=event.tid, addr=event.addr, write=event.write, stack=stack))
        else:
            self._task(event)

    def _process(self, tid: int) -> _Process:
        """The process of a task; one that is new to the log is introduced."""
        process = self._tasks.get(tid)
        if process is not None:
            return process
        parents = self._family.parents.get(tid)
        if parents:
            parent = parents.pop(0)
            if parent != tid and parent in self._tasks:
                return self._child(tid, parent, self._forks.get(parent))
        if self._begun is not None and self._begun.alive and self._family.together:
            if not self._family.leader:
                self._tally.assumed["tasks that nobody in the log has made are threads of one process"] += 1
            return self._add_thread(tid, self._begun, self._begun.pid)
        leader = self._family.leader if self._begun is None and self._family.together else 0
        process = self._start(leader or tid)
        self._begin(process, "", [])
        if self._begun is None or not self._begun.alive:
            self._begun = process
        return self._process(tid)

    def _start(self, pid: int) -> _Process:
        process = _Process(pid)
        process.tasks.add(pid)
        self._tasks[pid] = process
        return process

    def _add_thread(self, tid: int, process: _Process, parent: int) -> _Process:
        process.tasks.add(tid)
        self._tasks[tid] = process
        self._emit(Fork(n=0, pid=process.pid, tid=tid, parent=process.pid, parent_tid=parent, flags=_THREAD))
        return process

    def _child(self, tid: int, parent_tid: int, flags: int | None) -> _Process:
        """A task that another one made."""
        parent = self._tasks[parent_tid]
        if flags is None:
            # perf does not show what clone3 is given: the C library makes threads with it, and starts programs.
            flags = CLONE_VM | CLONE_VFORK if tid in self._family.execs else _THREAD
            self._tally.assumed[
                "tasks of which the log does not show how they were made are threads, unless they run another program"
            ] += 1
        if flags & CLONE_THREAD or tid == parent.pid:
            # A process keeps its number while one of its threads runs, so what has that number anew is one of them.
            return self._add_thread(tid, parent, parent_tid)
        process = self._start(tid)
        process.descriptors = parent.descriptors if flags & CLONE_FILES else parent.descriptors.copy()
        process.space = parent.space if flags & CLONE_VM else _Space()
        process.limits = msgspec.structs.replace(parent.limits)
        process.foreign = parent.foreign
        self._emit(Fork(n=0, pid=tid, tid=tid, parent=parent.pid, parent_tid=parent_tid, flags=flags & ((1 << 64) - 1)))
        return process

    def _begin(self, process: _Process, exe: str, argv: list[str]) -> None:
        """An address space of which the log does not show what is in it."""
        given = self._first.pop(process.pid, None)
        if given is None and not self.programs:
            given = self._first.pop(0, None)
        self.programs += 1
        if given is not None:
            made = given
            made.pid = process.pid
            made.exe = exe or given.exe
        else:
            self.partial = True
            made = Exec(n=0, pid=process.pid, exe=exe, vmas=[])
        made.argv = argv
        made.partial = True
        made.limits = msgspec.structs.replace(process.limits)
        made.caps = sorted(CAPS)
        if made.mmap_base is None or not made.start_brk:
            self._unresolved[process.pid] = made
            self._held.append(made)
        else:
            self._emit(made)

    def _task(self, event: LogTask) -> None:
        if event.what == "lost":
            pid = self._process(event.tid).pid if event.tid else 0
            self._emit(Lost(n=0, pid=pid, why=event.why))
        elif event.what == "group":
            if event.tid not in self._tasks:
                self._family.parents.pop(event.tid, None)
                self._add_thread(event.tid, self._process(event.other), event.other)
        elif event.what == "32-bit":
            process = self._process(event.tid)
            if not process.foreign:
                process.foreign = True
                self._emit(Lost(n=0, pid=process.pid, why="it runs a 32-bit program, which is not modelled"))
        elif event.what == "64-bit":
            self._process(event.tid).foreign = False
        elif event.what == "superseded" and event.other in self._tasks:
            self._tasks[event.other].tasks.discard(event.other)
            del self._tasks[event.other]

    def _ended(self, event: LogEnd) -> None:
        process = self._tasks.pop(event.tid, None)
        if process is None:
            return
        process.tasks.discard(event.tid)
        process.space.running.pop(event.tid, None)
        self._forks.pop(event.tid, None)
        if not process.tasks:
            process.alive = False
            self._emit(Exit(n=0, pid=process.pid, code=event.code, signal=event.signal))

    # -- calls ----------------------------------------------------------------------------------------

    def _call(self, event: LogCall) -> None:
        name = event.name
        ok = event.ret is None or event.ret >= 0
        if name in ("execve", "execveat"):
            if event.ret == 0 and not event.unfinished:
                self._exec(event)
            return
        process = self._process(event.tid)
        if event.unfinished:
            if name in FORKS:
                self._forks[event.tid] = _fork_flags(event)
            elif name in _LAYOUT:
                self._overlap(process, event.tid)
                process.space.running[event.tid] = len(process.space.running) > 0
            return
        if name in FORKS:
            flags = _fork_flags(event)
            begun = self._forks.pop(event.tid, None)
            if ok and event.ret:
                self._forked(event, flags if flags is not None else begun)
            return
        if process.foreign:
            self._tally.passed["calls of 32-bit programs"] += 1
            return
        if name == "exit_group":
            return
        unordered = name in _LAYOUT and self._finish(process, event.tid)
        taken = None
        if name in FILES or name in ("memfd_create", "memfd_secret", "userfaultfd"):
            taken = process.descriptors.take(event)
        if name in MEMORY:
            if is_about_memory(event):
                self._memory(process, event, unordered)
            else:
                self._tally.others += 1
        elif taken is not None and (name == "fcntl" or (taken.uffd and not self._is_open(taken))):
            self._memory(process, event, unordered, taken)
        else:
            self._tally.others += 1

    def _is_open(self, description: Description) -> bool:
        return any(description in process.descriptors.table.values() for process in self._tasks.values())

    @staticmethod
    def _overlap(process: _Process, tid: int) -> bool:
        """Mark what other tasks are within; whether there is any."""
        running = process.space.running
        for other in running:
            running[other] = True
        return any(other != tid for other in running)

    def _finish(self, process: _Process, tid: int) -> bool:
        """A call ends: whether one of another task overlapped."""
        begun = process.space.running.pop(tid, None)
        overlapped = begun if begun is not None else self._overlap(process, tid)
        overlapped = overlapped or (not self.ordered and len(process.tasks) > 1)
        self.unordered += overlapped
        return overlapped

    def _forked(self, event: LogCall, flags: int | None) -> None:
        child = event.ret
        assert child is not None
        if child in self._tasks or not 0 < child <= PID_LIMIT:
            return
        parents = self._family.parents.get(child)
        if parents is not None:
            if event.tid not in parents:
                # It was introduced by a call of its own, and has ended before the log tells who made it.
                return
            parents.remove(event.tid)
        self._child(child, event.tid, flags)

    def _exec(self, event: LogCall) -> None:
        process = self._tasks.get(event.tid)
        if process is None and self._family.parents.get(event.tid):
            process = self._process(event.tid)
        if process is None:
            process = self._start(event.tid)
        elif process.pid in self._unresolved:
            self.flush()
        for tid in process.tasks - {event.tid}:
            self._tasks.pop(tid, None)
        process.tasks = {event.tid}
        process.space = _Space()
        process.foreign = False
        process.descriptors = process.descriptors.copy()
        process.descriptors.exec()
        place = 1 if event.name == "execveat" else 0
        exe = (event.args[place].text if len(event.args) > place else None) or ""
        words = event.args[place + 1].items if len(event.args) > place + 1 else None
        self._begin(process, exe, [word.text or "" for word in words or []])

    def _memory(
        self, process: _Process, event: LogCall, unordered: bool, description: Description | None = None
    ) -> None:
        """A call that goes into the trace."""
        ret = event.ret
        try:
            words = words_of(event)
            data = data_of(event)
        except NotUnderstood as problem:
            self._tally.bad(event.line, event.name, str(problem))
            if ret is None or ret >= 0:
                self._emit(Lost(n=0, pid=process.pid, why=f"line {event.line}: {problem}"))
            return
        if event.name in ("mmap", "mremap", "brk") and ret is not None and ret >= TASK_END:
            raise InputError(
                f"{self._name}: line {event.line}: {event.name} gave {ret:#x}, which no program on x86-64 gets: "
                "the log is of another architecture, and only x86-64 is modelled"
            )
        self._learn(process, event, words)
        if event.name == "mmap" and not words[3] & MAP_ANONYMOUS:
            description = self._mapped(process, event, words)
        elif event.name in ("ioctl", "close"):
            place = descriptor_of(event)
            known = description or (process.descriptors.table.get(place.number or 0) if place is not None else None)
            data["uffd"] = self._introduce(known) if known is not None else words[0]
            description = None
        elif event.name == "shmget" and ret is not None and ret >= 0:
            self._segments[ret] = (words[1], words[0])
        elif event.name == "shmat":
            description = self._segment(words[0], data)
        elif event.name in ("setrlimit", "prlimit64") and ret == 0:
            self._limit(process, words, data)
        self._tally.calls += 1
        self.without_result += ret is None
        number = self._introduce(description) if description is not None else None
        stack = self._stack(process, event.stack)
        self._emit(
            Call(
                n=0,
                pid=process.pid,
                tid=event.tid,
                call=event.name,
                args=words,
                ret=ret,
                file=number,
                data=data,
                unordered=unordered,
                stack=stack,
            )
        )

    def _stack(self, process: _Process, frames: list[str]) -> int | None:
        """The number of a stack; its record comes first."""
        if not frames:
            return None
        self.with_stack += 1
        found = self._stacks.get(key := tuple(frames))
        if found is None:
            self._stack_records += 1
            found = self._stack_records
            if len(self._stacks) < _KNOWN_STACKS:
                self._stacks[key] = found
            self._emit(Stack(n=0, id=found, pid=process.pid, frames=frames))
        return found

    def _introduce(self, description: Description) -> int:
        """The number of an open file description; its record comes first."""
        if not description.number:
            self._files += 1
            description.number = self._files
            self._emit(description.record())
        return description.number

    def _mapped(self, process: _Process, event: LogCall, words: list[int]) -> Description:
        """What a mapping is of; where the log does not tell, something is taken for granted."""
        value = descriptor_of(event)
        path = value.path if value is not None else None
        table = process.descriptors.table
        number = words[4]
        known = table.get(number)
        if known is None or (path is not None and known.path != path and known.path.startswith("/")):
            if path is not None:
                self._tally.assumed["files whose opening the log does not show can be read and written"] += 1
                known = described_by(path)
            else:
                self._tally.assumed["descriptors of which the log tells nothing are of files that can be read"] += 1
                known = Description("(unknown)", writable=bool(words[2] & 2 and words[3] & 1))
            table[number] = known
        return known

    def _segment(self, number: int, data: dict[str, int | str | list[int]]) -> Description | None:
        found = self._segments.get(number)
        if found is None:
            return None
        data["size"], data["key"] = found[0], found[1] & 0xFFFFFFFF
        return Description(f"/SYSV{found[1] & 0xFFFFFFFF:08x}", "shm", writable=True)

    @staticmethod
    def _limit(process: _Process, words: list[int], data: dict[str, int | str | list[int]]) -> None:
        resource, target = (words[1], words[0]) if len(words) == 4 else (words[0], 0)
        value = data.get("cur")
        if target in (0, process.pid) and resource in _RLIMITS and isinstance(value, int):
            setattr(process.limits, _RLIMITS[resource], value if value < (1 << 64) - 1 else None)


def _fork_flags(event: LogCall) -> int | None:
    """The CLONE_ flags; None where the log does not show them."""
    if event.name == "fork":
        return 0
    if event.name == "vfork":
        return CLONE_VM | CLONE_VFORK
    for value in event.args:
        found = value.field("flags")
        if found is not None and found.number is not None:
            return found.number
    first = event.args[0].number if event.args else None
    return first if event.name == "clone" and len(event.args) == 5 else None
