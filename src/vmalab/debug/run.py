"""Going on until a breakpoint, forward or back."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from vmalab.debug.moment import Moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmalab.debug.breakpoints import Breakpoint
    from vmalab.debug.timeline import Poll, Timeline
    from vmalab.trace import records


@final
class Stop:
    """Where a run has stopped, and by which breakpoints; by none at the end of the trace, or at its start."""

    __slots__ = ("n", "reached")

    def __init__(self, n: int, reached: Sequence[Breakpoint] = ()) -> None:
        self.n = n
        self.reached = list(reached)


def run_forward(timeline: Timeline, breakpoints: Sequence[Breakpoint], poll: Poll, pid: int = 0) -> Stop:
    """Find the first record behind this position, of a process if one is given, at which a breakpoint is hit.

    If there is none it is the last record.  Raises InputError where an expression has no value.
    """
    end = len(timeline.tape)
    stop = Stop(end)
    first = timeline.n + 1
    if not any(each.needs_state for each in breakpoints):
        for record in timeline.tape.between(first, end if breakpoints else 0):
            if record.n % 1024 == 0:
                poll(record.n)
            reached = _hits(breakpoints, Moment(timeline.tape, record), pid)
            if reached:
                stop = Stop(record.n, reached)
                break
    else:
        _prime(timeline, breakpoints)
        for record in timeline.tape.between(first, end):
            reached = _advance(timeline, breakpoints, record, pid)
            if reached:
                stop = Stop(record.n, reached)
                break
            if record.n % 64 == 0:
                poll(record.n)
    return stop


def run_back(timeline: Timeline, breakpoints: Sequence[Breakpoint], poll: Poll, pid: int = 0) -> Stop:
    """Find the last record before this position, of a process if one is given, at which a breakpoint is hit.

    If there is none it is position 0.
    """
    here = timeline.n
    if not any(each.needs_state for each in breakpoints):
        for record in timeline.tape.backwards(1, here - 1 if breakpoints else 0):
            if record.n % 1024 == 0:
                poll(record.n)
            reached = _hits(breakpoints, Moment(timeline.tape, record), pid)
            if reached:
                return Stop(record.n, reached)
        return Stop(0)
    for start, last in timeline.segments_before(here - 1):
        timeline.move(start, poll)
        _prime(timeline, breakpoints)
        stop = Stop(0)
        for record in timeline.tape.between(start + 1, last):
            reached = _advance(timeline, breakpoints, record, pid)
            if reached:
                stop = Stop(record.n, reached)
            if record.n % 64 == 0:
                poll(record.n)
        if stop.reached:
            return stop
    return Stop(0)


def _hits(breakpoints: Sequence[Breakpoint], moment: Moment, pid: int) -> list[Breakpoint]:
    # All are asked: each may compare with what it saw last.
    reached = [each for each in breakpoints if each.hit(moment)]
    return reached if not pid or getattr(moment.record, "pid", 0) == pid else []


def _prime(timeline: Timeline, breakpoints: Sequence[Breakpoint]) -> None:
    """Let the breakpoints see this position, to compare the next one with."""
    tape = timeline.tape
    moment = Moment(tape, tape[max(timeline.n, 1)], timeline)
    for each in breakpoints:
        each.prime(moment)


def _advance(
    timeline: Timeline, breakpoints: Sequence[Breakpoint], record: records.Record, pid: int
) -> list[Breakpoint]:
    process = timeline.processes.get(getattr(record, "pid", 0))
    before = process.mm.map_count if process is not None else 0
    mismatch = timeline.advance(record)
    moment = Moment(timeline.tape, record, timeline)
    moment.mismatch = mismatch
    moment.count_before = before
    return _hits(breakpoints, moment, pid)
