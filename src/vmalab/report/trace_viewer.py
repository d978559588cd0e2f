"""A trace for the Perfetto UI (https://ui.perfetto.dev): its TrackEvent format, which is protobuf.

What is written are seven message types of numbers and texts, so they are put together here rather than by a library
whose classes a program would have to load for it; the tests read the result with Perfetto's own definitions.

A trace has no clock: record N is shown as microsecond N, and a call takes one.  So a second on the time line is a
million records, and the length of a slice says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import CLONE_THREAD
from vmalab.text import escape_text
from vmalab.trace import records
from vmalab.trace.show import call_text, result_text

if TYPE_CHECKING:
    from vmalab.trace.replay import Mismatch, Replay
    from vmalab.vma.space import Mm

RECORD: Final = 1000
"""Nanoseconds of a record."""
SEQUENCE: Final = 1
"""All packets are of one sequence."""
INCREMENTAL_STATE_CLEARED: Final = 1

SLICE_BEGIN: Final = 1
SLICE_END: Final = 2
INSTANT: Final = 3
COUNTER: Final = 4
"""TrackEvent.Type."""

UNIT_COUNT: Final = 2
UNIT_SIZE_BYTES: Final = 3
"""CounterDescriptor.Unit."""


def varint(value: int) -> bytes:
    """A number as protobuf writes it; a negative one as 64 bits of two's complement."""
    value &= 0xFFFFFFFFFFFFFFFF
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def number(field: int, value: int) -> bytes:
    """A field that holds a number."""
    return varint(field << 3) + varint(value)


def text(field: int, value: str) -> bytes:
    """A field that holds text."""
    return message(field, value.encode("utf-8", "backslashreplace"))


def message(field: int, *parts: bytes) -> bytes:
    """A field that holds a message (or bytes) made of these."""
    whole = b"".join(parts)
    return varint(field << 3 | 2) + varint(len(whole)) + whole


def _packet(*parts: bytes) -> bytes:
    """Trace.packet, with TracePacket.trusted_packet_sequence_id."""
    return message(1, *parts, number(10, SEQUENCE))


def _note(name: str, value: str) -> bytes:
    """TrackEvent.debug_annotations: a DebugAnnotation with a text."""
    return message(4, text(10, name), text(6, value))


@final
class TraceViewer:
    """Makes the trace while a replay runs: to be told of each record after it, and then asked for data()."""

    def __init__(self) -> None:
        # The first packet says that nothing before it is referred to.
        self._out = bytearray(_packet(number(13, INCREMENTAL_STATE_CLEARED)))
        self._tracks: dict[tuple[str, int, int], int] = {}
        self._last: dict[int, int] = {}

    def data(self) -> bytes:
        """The whole trace."""
        return bytes(self._out)

    # -- tracks -----------------------------------------------------------------------------------------

    def _track(self, kind: str, pid: int, tid: int, *descriptor: bytes) -> int:
        """The number of a track, which is described when it is first asked for."""
        found = self._tracks.get((kind, pid, tid))
        if found is None:
            found = len(self._tracks) + 1
            self._tracks[kind, pid, tid] = found
            self._out += _packet(message(60, number(1, found), *descriptor))
        return found

    def _process(self, pid: int, exe: str = "") -> int:
        return self._track("process", pid, 0, message(3, number(1, pid), text(6, escape_text(exe) or "?")))

    def _thread(self, pid: int, tid: int) -> int:
        self._process(pid)
        return self._track("thread", pid, tid, message(4, number(1, pid), number(2, tid)))

    def _counter(self, name: str, pid: int, unit: int, value: int, n: int) -> None:
        """A value of a counter of a process, or of the machine (pid 0), if it is another than before."""
        parent = [number(5, self._process(pid))] if pid else []
        track = self._track(name, pid, 0, *parent, text(2, name), message(8, number(3, unit)))
        if self._last.get(track) != value:
            self._last[track] = value
            self._event(n, COUNTER, track, number(30, value))

    def _event(self, n: int, kind: int, track: int, *parts: bytes, after: int = 0) -> None:
        event = message(11, number(9, kind), number(11, track), *parts)
        self._out += _packet(number(8, (n + after) * RECORD), event)

    # -- records ----------------------------------------------------------------------------------------

    def after(self, replay: Replay, record: records.Record, mismatch: Mismatch | None) -> None:
        """The replay has taken a record."""
        if isinstance(record, records.Call):
            self._call(replay, record, mismatch)
        elif isinstance(record, records.Fault):
            what = "write fault" if record.write else "read fault"
            thread = self._thread(record.pid, record.tid)
            self._event(record.n, INSTANT, thread, text(23, what), _note("address", hex(record.addr)))
        elif isinstance(record, records.Exec):
            process = self._process(record.pid, record.exe)
            self._event(record.n, INSTANT, process, text(23, f"execve {escape_text(record.exe)}"))
        elif isinstance(record, records.Fork):
            what = f"thread {record.tid}" if record.flags & CLONE_THREAD else f"process {record.pid}"
            self._event(record.n, INSTANT, self._thread(record.parent, record.parent_tid), text(23, f"makes {what}"))
            if not record.flags & CLONE_THREAD:
                program = replay.current.get(record.pid)
                self._process(record.pid, program.exe if program is not None else "")
        elif isinstance(record, records.Exit):
            self._event(record.n, INSTANT, self._process(record.pid), text(23, "exits"))
        elif isinstance(record, records.Lost):
            for program in replay.current.values():
                if record.pid in (0, program.pid):
                    process = self._process(program.pid)
                    self._event(record.n, INSTANT, process, text(23, "lost"), _note("why", escape_text(record.why)))
        process_now = replay.process(getattr(record, "pid", 0))
        if process_now is not None:
            self._counters(record.n, process_now.pid, process_now.mm)

    def _counters(self, n: int, pid: int, mm: Mm) -> None:
        self._counter("map count", pid, UNIT_COUNT, mm.map_count, n)
        self._counter("mapped", pid, UNIT_SIZE_BYTES, mm.total_vm << PAGE_SHIFT, n)
        self._counter("locked", pid, UNIT_SIZE_BYTES, mm.locked_vm << PAGE_SHIFT, n)
        self._counter("committed", 0, UNIT_SIZE_BYTES, mm.commit.committed << PAGE_SHIFT, n)

    def _call(self, replay: Replay, record: records.Call, mismatch: Mismatch | None) -> None:
        thread = self._thread(record.pid, record.tid)
        call = replay.call
        notes = [_note("call", call_text(call))] if call is not None else []
        notes.append(_note("result", result_text(record.ret)))
        self._event(record.n, SLICE_BEGIN, thread, text(23, escape_text(record.call)), *notes)
        if record.failed or mismatch is not None:
            outcome = replay.outcome
            if outcome is not None and outcome.reason and mismatch is None:
                why = outcome.explanation()
                notes += [_note("reason", why.sentence), _note("where", why.where)]
            if mismatch is not None:
                notes.append(_note("the model predicts", result_text(mismatch.outcome.result)))
            name = result_text(record.ret) if record.failed else "not as predicted"
            self._event(record.n, INSTANT, thread, text(23, f"{escape_text(record.call)}: {name}"), *notes)
        self._event(record.n, SLICE_END, thread, after=1)
