"""What a program would do to its address space if something were different: a limit, the kernel, a call, a rule.

Two models take the same trace.  One is as the trace says, the other is changed.  Where the changed run places memory
elsewhere, the later calls of the program follow it: an address of the recording is translated to where the same memory
lies in the changed run.  What cannot be known is what the program would have done with another answer: from the first
call that fails in one run and not in the other, all that follows is a prediction, and is said to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, final

import msgspec

from vmalab.addr import PAGE_MASK, PAGE_SIZE, page_up
from vmalab.calls import Call, Outcome
from vmalab.explain.curve import Curve
from vmalab.explain.failures import Failures, State, failed_with
from vmalab.explain.moves import Moves
from vmalab.explain.rewrite import ARGUMENTS
from vmalab.flags import (
    CLONE_THREAD,
    CLONE_VM,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PR_SET_VMA,
)
from vmalab.reason import YES
from vmalab.trace import records
from vmalab.trace.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmalab.explain.decisions import Decisions
    from vmalab.explain.rewrite import Rule
    from vmalab.machine import Process
    from vmalab.semantics import Semantics

RLIMITS: Final = ("as", "data", "stack", "memlock")

_Observed = TypeVar("_Observed", records.Call, records.Fork, records.Exit)


class Change:
    """What is different in the changed run."""

    def __init__(self) -> None:
        self.machine: dict[str, int] = {}
        """Settings of the machine, by the name that the header of a trace has for them."""
        self.limits: dict[str, int | None] = {}
        """Soft limits in bytes at each execve, by a name of RLIMITS; None is no limit."""
        self.semantics: Semantics | None = None
        self.rules: list[Rule] = []
        """The first that fits a call is taken."""
        self.decisions: Decisions | None = None

    def header(self, header: records.Header) -> records.Header:
        """The header of the changed run."""
        machine = msgspec.structs.replace(header.machine, **self.machine)
        return msgspec.structs.replace(header, machine=machine)

    def exec(self, record: records.Exec) -> records.Exec:
        """The start of a program in the changed run."""
        if not self.limits:
            return record
        named = {"as_" if name == "as" else name: value for name, value in self.limits.items()}
        return msgspec.structs.replace(record, limits=msgspec.structs.replace(record.limits, **named))


@final
class Measured:
    """One program in one of the two runs: its counters over time."""

    def __init__(self, n: int, pid: int, exe: str) -> None:
        self.n: int = n
        """The record that began it."""
        self.pid: int = pid
        self.exe: str = exe
        self.last: int = n
        self.maps: Curve = Curve()
        """How many VMAs it has."""
        self.locked: Curve = Curve()
        """Locked pages (locked_vm)."""
        self.total: Curve = Curve()
        """Mapped pages (total_vm)."""


@final
class Run:
    """One of the two runs: a model that takes records, and what is measured of it."""

    def __init__(self, replay: Replay) -> None:
        self.replay: Replay = replay
        self.programs: dict[tuple[int, int], Measured] = {}
        """By process and the record that began it."""
        self.committed: Curve = Curve()
        """Pages that all processes of the trace have committed."""

    def measure(self, n: int, pid: int) -> None:
        """Note the counters of a process, as they are after record n."""
        replay = self.replay
        self.committed.set(n, max(0, replay.machine.commit.committed))
        process, program = replay.process(pid), replay.current.get(pid)
        if process is None or program is None:
            return
        found = self.programs.get((pid, program.n))
        if found is None:
            found = Measured(program.n, pid, program.exe)
            self.programs[pid, program.n] = found
        mm = process.mm
        found.last = n
        found.maps.set(n, mm.map_count)
        found.locked.set(n, mm.locked_vm)
        found.total.set(n, mm.total_vm)


@final
class Turn:
    """A call, a fault or a fork that has another errno in the changed run: the program would go on otherwise."""

    __slots__ = ("before", "now", "pid", "record")

    def __init__(self, record: records.Record, before: int, now: int) -> None:
        self.record: records.Record = record
        self.pid: int = getattr(record, "pid", 0)
        self.before: int = before
        """The errno in the unchanged run, 0 if it succeeds."""
        self.now: int = now


@final
class WhatIf:
    """A trace taken twice, as it is and with a change.  Feed it the records with step()."""

    def __init__(
        self, header: records.Header, change: Change, *, write_at_once: bool = False, keep_maps: bool = False
    ) -> None:
        """write_at_once: where nobody observed faults, every private writable VMA is written to at once.

        keep_maps: the programs of the changed run keep their final VMAs as text.
        """
        self.change: Change = change
        self.before: Run = Run(Replay(header, write_at_once=write_at_once))
        changed = Replay(change.header(header), change.semantics, write_at_once=write_at_once, keep_maps=keep_maps)
        self.after: Run = Run(changed)
        self.turn: Turn | None = None
        """The first call that fails in one run and not in the other."""
        self.turns: int = 0
        """How many there are."""
        self.new_failures: Failures = Failures()
        """What fails only in the changed run, or for another errno there."""
        self.gone_failures: Failures = Failures()
        """What fails only in the unchanged run, or for another errno there."""
        self.new_faults: int = 0
        """Accesses, and stacks that grew, which fail only in the changed run: SIGSEGV."""
        self.dropped: int = 0
        self.replaced: int = 0
        self.joined: int = 0
        """Calls that an earlier one does with its own."""
        self.moved: int = 0
        """Calls whose addresses were translated."""
        self.absent: int = 0
        """Calls on memory that is not there in the changed run: they were left out."""
        self.overwritten: int = 0
        """MAP_FIXED mappings over memory that is there in the changed run only."""
        self.mismatches: int = 0
        """Results that the unchanged model does not predict."""
        self.n: int = 0
        self._moves: dict[int, Moves] = {}

    def step(self, record: records.Record, joint: tuple[int, ...] | None = None) -> None:
        """Take a record in both runs.  joint: see vmalab.explain.join."""
        self.n = record.n
        pid = getattr(record, "pid", 0)
        if isinstance(record, records.Call):
            self._call(record, joint)
        elif isinstance(record, records.Fault):
            self._fault(record)
        elif isinstance(record, records.Fork):
            self._fork(record)
        elif isinstance(record, records.Exec):
            self.before.replay.step(record)
            self._moves[pid] = Moves()
            self._changed(self.change.exec(record))
        elif isinstance(record, records.Exit):
            bare = msgspec.structs.replace(record, vmas=None)
            self.before.replay.step(bare)
            self._changed(self._follow(bare, self._moves_of(pid)))
            self._moves.pop(pid, None)
        else:
            self.before.replay.step(record)
            if not isinstance(record, records.Maps):
                # A list of VMAs to compare with is that of the recorded program.
                self._changed(record)
        self.before.measure(record.n, pid)
        self.after.measure(record.n, pid)

    def finish(self) -> None:
        """The trace is over: note what the programs that still run hold."""
        self.before.replay.finish()
        self.after.replay.finish()

    def programs(self) -> list[tuple[Measured, Measured | None]]:
        """Each program as it is, and as it is in the changed run (None if that never gets there)."""
        return [(found, self.after.programs.get(key)) for key, found in self.before.programs.items()]

    # -- both runs ------------------------------------------------------------------------------------------

    def _changed(self, record: records.Record) -> None:
        """Take a record in the changed run, with the changed rules in force."""
        decisions = self.change.decisions
        if decisions is None:
            self.after.replay.step(record)
            return
        with decisions:
            self.after.replay.step(record)

    def _moves_of(self, pid: int) -> Moves:
        return self._moves.setdefault(pid, Moves())

    def _note_turn(self, record: records.Record, before: int, now: int) -> None:
        self.turns += 1
        if self.turn is None:
            self.turn = Turn(record, before, now)

    def _fault(self, record: records.Fault) -> None:
        self.before.replay.step(record)
        addr = self._moves_of(record.pid).address(record.addr)
        if addr is None:
            self._compare_faults(record, self.before.replay.refused, 1)
            return
        self._changed(record if addr == record.addr else msgspec.structs.replace(record, addr=addr))
        self._compare_faults(record, self.before.replay.refused, self.after.replay.refused)

    def _compare_faults(self, record: records.Record, before: int, now: int) -> None:
        if before == YES and now != YES:
            self.new_faults += 1
            self._note_turn(record, 0, 0)

    def _fork(self, record: records.Fork) -> None:
        if not record.flags & CLONE_THREAD:
            parent = self._moves_of(record.parent)
            self._moves[record.pid] = parent if record.flags & CLONE_VM else parent.copy()
        self.mismatches += self.before.replay.step(record) is not None
        self._changed(self._follow(record, self._moves_of(record.parent)))
        process = self.after.replay.process(record.parent)
        if process is not None:
            # A fork that succeeds has no outcome of its own.
            outcomes = [run.replay.outcome or Outcome(0) for run in (self.before, self.after)]
            self._compare(record, process, Call("fork", ()), outcomes, [State(process.mm)] * 2)

    # -- calls ----------------------------------------------------------------------------------------------

    def _call(self, record: records.Call, joint: tuple[int, ...] | None) -> None:
        before, after = self.before.replay, self.after.replay
        processes = before.process(record.pid), after.process(record.pid)
        states = [State(process.mm) for process in processes if process is not None]
        heap = processes[0].mm.brk if processes[0] is not None else 0
        mismatch = before.step(record)
        self.mismatches += mismatch is not None
        if processes[0] is None or processes[1] is None:
            self.absent += processes[0] is not None
            return
        outcome = before.outcome
        found = self._perform_changed(record, joint)
        if outcome is not None and found is not None:
            self._remember(record, outcome, found, heap, processes[0].mm.brk)
            call = before.call
            assert call is not None
            self._compare(record, processes[1], after.call or call, [outcome, found], states)
            return
        if record.call == "munmap" and record.ret == 0:
            self._moves_of(record.pid).set(*_pages(record.args[0], record.args[1]), 0)

    def _compare(
        self, record: records.Record, process: Process, call: Call, outcomes: list[Outcome], states: list[State]
    ) -> None:
        """Whether a call fails in one run and not in the other."""
        before, now = outcomes
        if not (before.known and before.modelled and now.known and now.modelled) or len(states) != 2:
            return
        errnos = [failed_with(call, outcome.result, outcome) for outcome in outcomes]
        if errnos[0] == errnos[1]:
            return
        if errnos[0]:
            old = self.before.replay.process(process.pid)
            if old is not None:
                self.gone_failures.add(record.n, old, self.before.replay.call or call, before.result, before, states[0])
        if errnos[1]:
            self.new_failures.add(record.n, process, call, now.result, now, states[1])
        self._note_turn(record, *errnos)

    def _perform_changed(self, record: records.Call, joint: tuple[int, ...] | None) -> Outcome | None:
        """Make the call in the changed run, if it is made there: its outcome, or None."""
        moves = self._moves_of(record.pid)
        followed = self._follow(record, moves)
        name, args = record.call, tuple(record.args)
        if joint == ():
            self.joined += 1
            self._observe(followed)
            return None
        if joint is not None:
            args = joint
        for rule in self.change.rules:
            if rule.fits(name, args):
                rule.used += 1
                made = rule.apply(args)
                if made is None:
                    self.dropped += 1
                    self._observe(followed)
                    return None
                self.replaced += 1
                name, args = made
                break
        return self._place_call(msgspec.structs.replace(followed, call=name, args=list(args)), moves)

    def _observe(self, record: records.Call) -> None:
        """What was seen of faults before a call holds although the call is not made."""
        replay = self.after.replay
        process = replay.process(record.pid)
        if process is not None:
            replay.n, replay.pid, replay.call, replay.outcome = record.n, record.pid, None, None
            replay.observe(process, record.grown, record.written)

    def _place_call(self, record: records.Call, moves: Moves) -> Outcome | None:
        """Make a call where its memory lies: in several parts if that is no longer in one piece."""
        placed = place_call(record, moves) if moves else [record]
        if not placed:
            self.absent += 1
            self._observe(record)
            return None
        self.moved += placed[0] is not record
        first: Outcome | None = None
        for part in placed:
            self._watch_overwriting(part)
            self._changed(part)
            self._compare_faults(part, self.before.replay.refused, self.after.replay.refused)
            outcome = self.after.replay.outcome
            if first is None or (outcome is not None and outcome.result < 0):
                first = outcome
            if first is not None and first.result < 0:
                break
        return first

    def _watch_overwriting(self, record: records.Call) -> None:
        if record.call != "mmap" or not record.args[3] & MAP_FIXED or record.args[3] & MAP_FIXED_NOREPLACE:
            return
        start, end = _pages(record.args[0], record.args[1])
        before, after = self.before.replay.process(record.pid), self.after.replay.process(record.pid)
        if before is None or after is None or start != record.args[0]:
            return
        was_there = before.mm.find_vma_intersection(start, end)
        if was_there is None and after.mm.find_vma_intersection(start, end) is not None:
            self.overwritten += 1

    def _remember(self, record: records.Call, known: Outcome, found: Outcome, old_brk: int, new_brk: int) -> None:
        """What the answer to a call that was made in both runs says of where memory lies now."""
        ret = known.result if record.ret is None else record.ret
        if ret < 0 or not found.modelled:
            return
        moves = self._moves_of(record.pid)
        args = record.args
        # Where the unchanged model is wrong about the kernel, the changed one follows that model.
        shift = found.result - (known.result if known.result >= 0 else ret) if found.result >= 0 else None
        if record.call == "mmap":
            moves.set(*_pages(ret, args[1]), shift)
        elif record.call == "mremap":
            if not args[3] & MREMAP_DONTUNMAP:
                moves.set(*_pages(args[0], args[1]), 0 if ret != args[0] else shift)
            moves.set(*_pages(ret, args[2]), shift)
        elif record.call == "shmat":
            size = record.data.get("size")
            if isinstance(size, int):
                moves.set(*_pages(ret, size), shift)
        elif record.call == "brk" and new_brk > old_brk:
            moves.set(page_up(old_brk), page_up(new_brk), 0 if found.result >= new_brk else None)
        elif record.call == "munmap":
            moves.set(*_pages(args[0], args[1]), 0)

    def _follow(self, record: _Observed, moves: Moves) -> _Observed:
        """The same record, with what was seen of faults where that memory lies in the changed run."""
        if not moves or not (record.written or record.grown):
            return record
        written = [there for addr in record.written if (there := moves.address(addr)) is not None]
        grown: list[tuple[int, int]] = []
        for start, end in record.grown:
            top = moves.address(end - PAGE_SIZE)
            if top is not None and top >= end - PAGE_SIZE - start:
                grown.append((top - (end - PAGE_SIZE - start), top + PAGE_SIZE))
        return msgspec.structs.replace(record, written=written, grown=grown)


def _pages(start: int, length: int) -> tuple[int, int]:
    """The whole pages that a range touches."""
    return start & ~PAGE_MASK, start + page_up(length) if length < 1 << 63 else start


def place_call(record: records.Call, moves: Moves) -> list[records.Call]:
    """The calls to make instead of one whose memory may lie elsewhere; the record itself if it does not.

    None if all that the call is about is absent.
    """
    args = list(record.args)
    name = record.call
    if name in ("ioctl", "process_madvise", "io_uring_register"):
        return _place_data(record, moves)
    if name == "prctl":
        if args[0] != PR_SET_VMA:
            return [record]
        return _place_range(record, moves, 2, 3)
    if name == "shmat" and not args[1]:
        return [record]
    if name in ("mmap", "shmat"):
        return _place_mapping(record, moves)
    if name == "mremap":
        if args[3] & (MREMAP_FIXED | MREMAP_DONTUNMAP) and args[4]:
            there = moves.address(args[4])
            args[4] = args[4] if there is None else there
        where = moves.address(args[0])
        if where is None:
            return []
        args[0] = where
        return [_with(record, args)]
    if name == "get_mempolicy" and args[3]:
        there = moves.address(args[3])
        args[3] = args[3] if there is None else there
        return [_with(record, args)]
    arguments = ARGUMENTS.get(name, ())
    if "length" in arguments:
        return _place_range(record, moves, arguments.index("addr"), arguments.index("length"))
    if name == "shmdt":
        there = moves.address(args[0])
        return [] if there is None else [_with(record, [there])]
    return [record]


def _with(record: records.Call, args: list[int]) -> records.Call:
    return record if args == record.args else msgspec.structs.replace(record, args=args)


def _place_mapping(record: records.Call, moves: Moves) -> list[records.Call]:
    args = list(record.args)
    at = 0 if record.call == "mmap" else 1
    if record.call == "mmap" and not args[3] & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        args[at] = moves.hint(args[at])
        return [_with(record, args)]
    there = moves.address(args[at])
    if there is None:
        return []
    args[at] = there
    return [_with(record, args)]


def _place_range(record: records.Call, moves: Moves, at: int, length: int) -> list[records.Call]:
    """A call on a range: one for each part that lies elsewhere."""
    start, size = record.args[at], record.args[length]
    if size >= 1 << 63 or size == 0:
        return [record]
    placed: list[records.Call] = []
    for piece in moves.pieces(start, start + size):
        there = piece.place(piece.start)
        if there is not None:
            args = list(record.args)
            args[at], args[length] = there, piece.end - piece.start
            # What was seen of faults is taken over once.
            part = record if not placed else msgspec.structs.replace(record, written=[], grown=[])
            placed.append(_with(part, args))
    return placed


def _place_data(record: records.Call, moves: Moves) -> list[records.Call]:
    """A call whose ranges are where its arguments point to."""
    data = dict(record.data)
    start, ranges = data.get("start"), data.get("ranges")
    if isinstance(start, int):
        there = moves.address(start)
        if there is None:
            return []
        data["start"] = there
    if isinstance(ranges, list):
        moved: list[int] = []
        for addr, size in zip(ranges[::2], ranges[1::2], strict=True):
            for piece in moves.pieces(addr, addr + size) if size < 1 << 63 else []:
                there = piece.place(piece.start)
                if there is not None:
                    moved += [there, piece.end - piece.start]
        data["ranges"] = moved
    return [record if data == record.data else msgspec.structs.replace(record, data=data)]


def run(header: records.Header, trace: Iterable[records.Record], change: Change, *, join: bool = False) -> WhatIf:
    """Take a whole trace, as it is and changed."""
    from vmalab.explain.join import joined

    found = WhatIf(header, change)
    if join:
        for record, joint in joined(trace):
            found.step(record, joint)
    else:
        for record in trace:
            found.step(record)
    found.finish()
    return found
