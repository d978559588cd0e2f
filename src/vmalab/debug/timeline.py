"""A trace that can be gone through in both directions: the replay of it, and snapshots of that on the way.

Position n is the moment after record n; 0 is before the first.  Going back is going forward from a snapshot before the
goal, so nothing is ever undone, and a position looks the same however it was reached.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final, final

from vmalab.debug.changes import Change, Changes
from vmalab.debug.freeze import Freezer
from vmalab.debug.picture import EVERYWHERE, Picture, Range, places_of, surroundings, take_picture
from vmalab.debug.tape import Tape
from vmalab.machine import Process
from vmalab.semantics import Semantics
from vmalab.trace import records
from vmalab.trace.replay import Mismatch, Replay, replay_of

SPACING: Final = 256
"""Fewest records between two snapshots."""
MEMORY: Final = 256 << 20
"""Bytes of snapshots; where more are needed, every second one goes, and the rest lie twice as far apart."""
STEPS_FOR_VMA: Final = 1.0
"""Records between two snapshots for each VMA that they hold: freezing a VMA takes a tenth to a fifth of a step."""
_TRAIL: Final = (256, 32)
"""How far before the goal of a way back further snapshots are left, for the next step back."""
_TRAIL_SNAPSHOTS: Final = 4
_REPORT: Final = 64


@final
class Step:
    """What one record did: the call, the model's answer, all changes, and the surroundings before and after."""

    def __init__(self, n: int, record: records.Record) -> None:
        self.n = n
        self.record = record
        self.mismatch: Mismatch | None = None
        self.refused: int = 0
        """Why an access of the record, or a stack that grew before it, fails in the model; 0 if it does not."""
        self.changes: list[Change] = []
        self.places: list[Range] = []
        """Where the record acts, and where the model did something else."""
        self.before: Picture = Picture([], [])
        self.after: Picture = Picture([], [])
        self.count_before: int = 0
        """The map count of the record's process before it; 0 where there was no such process."""
        self.count_after: int = 0


class Shots:
    """Snapshots by position, in bounded memory."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._places: list[int] = []
        self._frozen: dict[int, bytes] = {}
        self._size = 0
        self.spread = 1
        """How many times farther apart than wanted they lie, because memory is short."""

    def add(self, n: int, frozen: bytes) -> None:
        """Keep a snapshot of position n."""
        if n in self._frozen:
            return
        self._places.insert(bisect_right(self._places, n), n)
        self._frozen[n] = frozen
        self._size += len(frozen)
        while self._size > self._memory and len(self._places) > 2:
            self.spread *= 2
            for gone in self._places[1::2]:
                self._size -= len(self._frozen.pop(gone))
            self._places = self._places[0::2]

    def before(self, n: int) -> int:
        """The position of the last snapshot at or before n; -1 if there is none."""
        i = bisect_right(self._places, n)
        return self._places[i - 1] if i else -1

    def frozen(self, n: int) -> bytes:
        """The snapshot of a position."""
        return self._frozen[n]

    def places(self) -> list[int]:
        """All positions."""
        return list(self._places)

    def size(self) -> int:
        """Bytes held."""
        return self._size


Poll = Callable[[int], None]
"""Is told the position now and then during a long way; may raise, which leaves the timeline there, in order."""


def _no_poll(n: int) -> None:
    """Nobody wants to know."""


class Timeline:
    """The replay of a tape, at any position."""

    def __init__(
        self, tape: Tape, semantics: Semantics | None = None, *, memory: int = MEMORY, spacing: int = SPACING
    ) -> None:
        self.tape = tape
        self.spacing = spacing
        self._freezer = Freezer()
        self._changes = Changes()
        self.replay: Replay = replay_of(tape.header, semantics)
        self.replay.observer = self._changes
        self.shots = Shots(memory)
        self._trail: dict[int, bytes] = {}
        self.shots.add(0, self._freeze())
        self.step: Step | None = None
        """What the record at this position did; None at position 0, or within a way."""

    @property
    def n(self) -> int:
        """The position: the number of the last record that was taken."""
        return self.replay.n

    @property
    def processes(self) -> dict[int, Process]:
        """The processes that live at this position."""
        return self.replay.machine.processes

    @property
    def changes(self) -> list[Change]:
        """What the last record changed, in order."""
        return self._changes.found

    # -- moving -------------------------------------------------------------------------------------

    def goto(self, n: int, poll: Poll = _no_poll) -> None:
        """Go to position n, and see what record n does.  Raises IndexError where there is no such position."""
        if not 0 <= n <= len(self.tape):
            raise IndexError(f"there is no record {n}")
        if self.step is not None and self.step.n == n == self.n:
            return
        self.move(max(n - 1, 0), poll)
        if n:
            self._look(n, poll)

    def move(self, n: int, poll: Poll = _no_poll) -> None:
        """Go to position n without looking at anything on the way or there."""
        self.step = None
        start = self._nearest(n)
        if n < self.n or self.n + self._thaw_cost() < start:
            back = n < self.n
            self._thaw(start)
            leave = [n - each for each in _TRAIL if start < n - each] if back else []
        else:
            leave = []
        for record in self.tape.between(self.n + 1, n):
            self.advance(record)
            if record.n in leave:
                self._leave_trail(record.n)
            if record.n % _REPORT == 0:
                poll(record.n)

    def advance(self, record: records.Record) -> Mismatch | None:
        """Take the next record.  The timeline is then between positions that were looked at: `goto` ends that."""
        self.step = None
        self._changes.clear()
        mismatch = self.replay.step(record)
        n = record.n
        since = n - self.shots.before(n)
        if since >= self.spacing and since >= self._gap():
            self.shots.add(n, self._freeze())
        return mismatch

    def segments_before(self, n: int) -> Iterable[tuple[int, int]]:
        """The stretches between snapshots before position n, the last first, as (position, last record)."""
        last = n
        while last > 0:
            start = max(self.shots.before(last - 1), 0)
            yield start, last
            last = start

    # -- the parts ----------------------------------------------------------------------------------

    def _look(self, n: int, poll: Poll) -> None:
        """From position n - 1 take record n, and keep what it does."""
        record = self.tape[n]
        hint: list[tuple[int, int]] = []
        while True:
            step = Step(n, record)
            pid = getattr(record, "pid", 0)
            process = self.processes.get(pid)
            places = places_of(record, process) + hint
            step.places = places
            intervals = []
            if process is not None:
                intervals = surroundings(process, places)
                step.before = take_picture(process, intervals)
                step.count_before = process.mm.map_count
            step.mismatch = self.advance(record)
            step.refused = self.replay.refused
            step.changes = list(self.changes)
            process = self.processes.get(pid)
            if process is not None:
                step.count_after = process.mm.map_count
                missed = [change.range for change in step.changes if change.mm is process.mm]
                missed = [each for each in missed if not step.before.covers(each)]
                if missed and not hint and step.count_before and not isinstance(record, records.Exec):
                    # The model went elsewhere than the record says: look again, there as well.
                    hint = missed
                    self.move(n - 1, poll)
                    continue
                fresh = isinstance(record, records.Exec | records.Fork)
                step.after = take_picture(process, [EVERYWHERE] if fresh else intervals)
            self.step = step
            return

    def _gap(self) -> int:
        """How many records apart snapshots lie now."""
        return max(self.spacing, int(self._vmas() * STEPS_FOR_VMA)) * self.shots.spread

    def _vmas(self) -> int:
        return sum(process.mm.map_count for process in self.processes.values())

    def _thaw_cost(self) -> int:
        """What taking up a snapshot costs, in steps."""
        return self._vmas() // 8 + 8

    def _nearest(self, n: int) -> int:
        """The position of the last snapshot of any kind at or before n."""
        return max([self.shots.before(n), *[each for each in self._trail if each <= n]])

    def _freeze(self) -> bytes:
        return self._freezer.freeze(self.replay, self._changes)

    def _thaw(self, n: int) -> None:
        frozen = self._trail.get(n)
        self.replay = self._freezer.thaw(self.shots.frozen(n) if frozen is None else frozen)
        self._changes.clear()

    def _leave_trail(self, n: int) -> None:
        if n in self._trail:
            return
        self._trail[n] = self._freeze()
        if len(self._trail) > _TRAIL_SNAPSHOTS:
            del self._trail[next(iter(self._trail))]
