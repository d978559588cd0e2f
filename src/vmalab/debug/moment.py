"""One record as it has just happened: what conditions and expressions can ask about it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final

from vmalab.addr import PAGE_SHIFT
from vmalab.calls import Call, Outcome
from vmalab.debug.picture import Range, places_of
from vmalab.flags import MNEMONICS, VM_LOCKED, VM_MAYSHARE, permissions
from vmalab.trace import records
from vmalab.trace.load import load_file
from vmalab.trace.show import argument_flags, call_text

if TYPE_CHECKING:
    from vmalab.debug.changes import Change
    from vmalab.debug.tape import Tape
    from vmalab.debug.timeline import Timeline
    from vmalab.machine import Process
    from vmalab.trace.replay import Mismatch
    from vmalab.vma.area import Vma


@dataclass(frozen=True)
class VmaView:
    """A VMA as expressions see it."""

    start: int
    end: int
    perms: str
    flags: frozenset[str]
    name: str
    offset: int
    written: bool
    shared: bool
    locked: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def view_of(process: Process, vma: Vma) -> VmaView:
    """What expressions see of a VMA."""
    flags = frozenset([letters for letters, bit in MNEMONICS.items() if vma.flags & bit])
    return VmaView(
        vma.start,
        vma.end,
        permissions(vma.flags),
        flags,
        process.name_of(vma),
        vma.pgoff << PAGE_SHIFT if vma.file is not None else 0,
        vma.anon_vma is not None,
        vma.flags & VM_MAYSHARE != 0,
        vma.flags & VM_LOCKED != 0,
    )


def as_call(tape: Tape, record: records.Call) -> Call:
    """The call of a record, with the file that a descriptor of it stands for."""
    file = tape.file_of(record)
    return Call(record.call, tuple(record.args), load_file(file) if file is not None else None, record.data)


def result_of(record: records.Record) -> int:
    """What a call of a trace returned; 0 for what is no call, or not known."""
    return record.ret or 0 if isinstance(record, records.Call) else 0


def errno_name(result: int) -> str:
    """The name of the errno in a result; empty if it is none."""
    return errno.errorcode.get(-result, str(-result)) if result < 0 else ""


@final
class Moment:
    """The moment after a record.  What needs the state of the model is there only where a timeline is given."""

    def __init__(self, tape: Tape, record: records.Record, timeline: Timeline | None = None, pid: int = 0) -> None:
        self.tape = tape
        self.record = record
        self.pid: int = pid or getattr(record, "pid", 0)
        """The process whose state is asked for."""
        self.timeline = timeline
        self.mismatch: Mismatch | None = None
        self.count_before: int = 0

    @property
    def state(self) -> Timeline:
        """The model.  Asking a moment that has none is a defect."""
        assert self.timeline is not None, "this moment has no state"
        return self.timeline

    @property
    def process(self) -> Process | None:
        """The process, if it lives."""
        return self.state.processes.get(self.pid)

    @property
    def map_count(self) -> int:
        """How many VMAs the process has."""
        process = self.process
        return process.mm.map_count if process is not None else 0

    @property
    def call(self) -> records.Call | None:
        """The record, if it is a call."""
        return self.record if isinstance(self.record, records.Call) else None

    @property
    def outcome(self) -> Outcome | None:
        """The model's answer to the call."""
        return self.state.replay.outcome

    @property
    def changes(self) -> list[Change]:
        """What it changed, in all processes."""
        return self.state.changes

    @cached_property
    def words(self) -> frozenset[str]:
        """The names of the flags in the call's arguments."""
        return frozenset(argument_flags(self.call.call, self.call.args)) if self.call is not None else frozenset()

    @cached_property
    def places(self) -> list[Range]:
        """Where the record acts, by what it says."""
        return places_of(self.record, self.timeline.processes.get(self.pid) if self.timeline is not None else None)

    def touches(self, low: int, high: int) -> bool:
        """Whether the record asks about [low, high), or changes something there."""
        if any(start < high and low < end for start, end in self.places):
            return True
        return any(start < high and low < end for start, end in [change.range for change in self.changes])

    def vma(self, addr: int) -> VmaView | None:
        """The VMA of the process at an address."""
        process = self.process
        found = process.mm.vma_lookup(addr) if process is not None and 0 <= addr < 1 << 64 else None
        return view_of(process, found) if process is not None and found is not None else None


@dataclass(frozen=True)
class Name:
    """A name that expressions may use."""

    get: Callable[[Moment], Any]
    says: str
    state: bool = True
    """It needs the model, not the trace alone."""
    record: bool = False
    """It is about the record rather than the state of a process."""


def _first(moment: Moment, side: int) -> int:
    places = moment.places
    return places[0][side] if places else 0


def _program(moment: Moment) -> str:
    program = moment.state.replay.current.get(moment.pid)
    return program.exe if program is not None else ""


def _mm(moment: Moment, field: str) -> int:
    process = moment.process
    return getattr(process.mm, field) if process is not None else 0


def _vmas(moment: Moment) -> list[VmaView]:
    process = moment.process
    return [view_of(process, vma) for vma in process.vmas()] if process is not None else []


def _file(moment: Moment) -> str:
    file = moment.tape.file_of(moment.call) if moment.call is not None else None
    return file.path if file is not None else ""


def _from_record(get: Callable[[Moment], Any], says: str, *, state: bool = False) -> Name:
    return Name(get, says, state, record=True)


NAMES: Final[dict[str, Name]] = {
    "n": _from_record(lambda at: at.record.n, "the number of the record"),
    "kind": _from_record(lambda at: kind_of(at.record), "call, exec, fork, exit, fault, file, lost or end"),
    "call": _from_record(lambda at: at.call.call if at.call else "", "the name of the call; empty if it is none"),
    "args": _from_record(lambda at: tuple(at.call.args) if at.call else (), "its arguments as unsigned numbers"),
    "ret": _from_record(lambda at: result_of(at.record), "what the kernel returned, or minus the errno; 0 if unknown"),
    "errno": _from_record(
        lambda at: errno_name(result_of(at.record)), "the name of the errno, such as ENOMEM, or empty"
    ),
    "flags": _from_record(lambda at: at.words, "the names of all flags in its arguments, such as MAP_FIXED"),
    "text": _from_record(lambda at: call_text(as_call(at.tape, at.call)) if at.call else "", "the call as it is shown"),
    "file": _from_record(_file, "the path of the file that a descriptor stands for"),
    "stack": _from_record(lambda at: at.tape.stack_of(at.record), "the user stack that made it, if it was recorded"),
    "pid": _from_record(lambda at: getattr(at.record, "pid", 0), "the process"),
    "tid": _from_record(lambda at: getattr(at.record, "tid", 0), "the thread"),
    "addr": _from_record(lambda at: _first(at, 0), "the first address that it acts on, or 0", state=True),
    "length": _from_record(lambda at: _first(at, 1) - _first(at, 0), "bytes that it acts on there", state=True),
    "model": _from_record(lambda at: at.outcome.result if at.outcome else 0, "what the model returned", state=True),
    "reason": _from_record(
        lambda at: at.outcome.explanation().name if at.outcome and at.outcome.reason else "",
        "the model's Reason, such as MAP_COUNT_SPLIT, or empty",
        state=True,
    ),
    "mismatch": _from_record(lambda at: at.mismatch is not None, "the model predicted another result", state=True),
    "changes": _from_record(lambda at: [change.text for change in at.changes], "all changes, a text each", state=True),
    "touches": _from_record(
        lambda at: lambda addr: at.touches(addr, addr + 1), "touches(ADDR): it acts on it or changes it", state=True
    ),
    "before": _from_record(lambda at: at.count_before, "the map count before the record", state=True),
    "map_count": Name(lambda at: at.map_count, "how many VMAs the process has"),
    "vma": Name(lambda at: at.vma, "vma(ADDR): the VMA there, or None"),
    "vmas": Name(_vmas, "all VMAs of the process"),
    "size": Name(lambda at: _mm(at, "total_vm") << PAGE_SHIFT, "bytes mapped"),
    "locked": Name(lambda at: _mm(at, "locked_vm") << PAGE_SHIFT, "bytes locked"),
    "brk": Name(lambda at: _mm(at, "brk"), "the end of the heap"),
    "committed": Name(lambda at: at.state.replay.machine.commit.committed << PAGE_SHIFT, "bytes committed, of all"),
    "exe": Name(_program, "the program of the process"),
    "processes": Name(lambda at: sorted(at.state.processes), "the processes that live"),
}
"""What an expression may name.  A VMA has start, end, size, perms, flags, name, offset, written, shared and locked."""


def kind_of(record: records.Record) -> str:
    """The type of a record as the trace has it."""
    return type(record).__name__.lower()
