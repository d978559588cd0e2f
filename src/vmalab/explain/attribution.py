"""Where the VMAs of a program come from: the map count over time, by call, by reason and by stack.

Every VMA has two causes.  Something made it: the call that mapped it, or that split it from another; this is its
*maker*.  And something keeps it apart from the VMA below: a reason why the two do not merge, or a gap between them.
So at each record the number of VMAs is the sum over all makers, and also the sum over all reasons.

Attribution listens to a replay, and after each record looks at the places that changed and at no others.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final, TypeVar, final

from vmalab.explain.curve import Curve
from vmalab.explain.failures import Failures, State
from vmalab.explain.obstacles import Boundary, Sight, find_obstacles
from vmalab.trace import records
from vmalab.trace.show import call_text, shape_text
from vmalab.vma.observer import Observer

if TYPE_CHECKING:
    from vmalab.calls import Call
    from vmalab.trace.replay import Mismatch, Replay
    from vmalab.vma.area import Vma
    from vmalab.vma.space import Mm

GAP: Final = "nothing below it: a gap"
"""The reason of a VMA that touches none below."""
UNASKED: Final = "nothing: they would merge, but no call has asked"
"""The reason of a VMA that could be merged with the one below."""
EXECVE: Final = "execve"
FORK: Final = "fork"
FAULT: Final = "fault"
SEGMENTS: Final = 8
"""A file that is mapped in more pieces than this was not only loaded by the dynamic linker."""


class Tally:
    """How many VMAs something made, and how long they live; lives are counted in records."""

    __slots__ = ("_born", "_lived", "alive", "made")

    def __init__(self) -> None:
        self.made: int = 0
        self.alive: int = 0
        """How many of them there are at the end (of the address space, or of the trace)."""
        self._lived: int = 0
        self._born: int = 0

    def birth(self, n: int) -> None:
        """It made a VMA, at record n."""
        self.made += 1
        self.alive += 1
        self._born += n

    def death(self, born: int, n: int) -> None:
        """A VMA that it made at record born is gone at record n."""
        self.alive -= 1
        self._born -= born
        self._lived += n - born

    def weight(self, end: int) -> int:
        """The records that its VMAs lived for until record end, all together: what they cost over all the time."""
        return self._lived + self.alive * end - self._born


@final
class Maker(Tally):
    """What made VMAs: calls of one shape, one stack, or the start of a program."""

    __slots__ = ("curve", "lives", "title")

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title: str = title
        self.lives = array("q")
        """How many records each VMA lived for that is gone."""
        self.curve: Curve = Curve()
        """How many of its VMAs there are."""

    def death(self, born: int, n: int) -> None:
        super().death(born, n)
        self.lives.append(n - born)

    def settle(self, n: int) -> None:
        """Record n is over."""
        self.curve.set(n, self.alive)

    def median_life(self) -> int | None:
        """The number of records that half of its VMAs outlive; None if half of them are still there."""
        gone = sorted(self.lives)
        place = self.made // 2
        return gone[place] if place < len(gone) else None


@final
class Group:
    """The VMAs that one kind of reason keeps from merging with the VMA below."""

    __slots__ = ("alive", "curve", "file", "foreign", "kind", "reasons")

    def __init__(self, kind: str, reasons: tuple[str, ...], file: str, foreign: bool) -> None:
        self.kind: str = kind
        """The reasons in words."""
        self.reasons: tuple[str, ...] = reasons
        """Their names, without repetitions."""
        self.file: str = file
        """The path of the file whose pieces these are; empty if they are not within one file."""
        self.foreign: bool = foreign
        """The two sides are of different things: different files, or memory of a driver."""
        self.alive: int = 0
        self.curve: Curve = Curve()

    def is_ordinary(self) -> bool:
        """Whether every program has such: gaps, segments of a library, different files, memory of a driver."""
        few_pieces = bool(self.file) and self.curve.peak()[1] <= SEGMENTS
        return self.kind == GAP or self.foreign or few_pieces


@final
class _Birth:
    """A VMA's beginning: when, by what; and the object that it is now."""

    __slots__ = ("group", "makers", "n", "vma")

    def __init__(self, n: int, makers: tuple[Tally, ...], vma: Vma) -> None:
        self.n = n
        self.makers = makers
        self.vma = vma
        self.group: Group | None = None


@final
class Space:
    """One address space from its execve or fork to its end."""

    def __init__(self, mm: Mm, pid: int, exe: str, first: int) -> None:
        self.mm: Mm | None = mm
        """None once it is gone."""
        self.pid: int = pid
        """The process that had it first: with vfork several have."""
        self.exe: str = exe
        self.first: int = first
        """The record that began it."""
        self.last: int = first
        """The last record at which it was there."""
        self.count: Curve = Curve()
        """How many VMAs there are."""
        self.calls: dict[str, Maker] = {}
        """By the shape of the call, EXECVE, FORK or FAULT."""
        self.stacks: dict[tuple[str, ...], Maker] = {}
        """By the stack that made the call, the innermost function first; empty where the trace has no stacks."""
        self.single: dict[int, Tally] = {}
        """By the record: what each call made."""
        self.groups: dict[tuple[str, int, bool], Group] = {}
        self._births: dict[int, _Birth] = {}
        self._starts: list[int] = []

    def by_call(self) -> list[Maker]:
        """What made VMAs, by the shape of the call: first those whose VMAs were most for longest."""
        return sorted(self.calls.values(), key=lambda maker: (-maker.weight(self.last + 1), maker.title))

    def by_stack(self) -> list[tuple[tuple[str, ...], Maker]]:
        """What made VMAs, by stack, in the same order."""
        return sorted(self.stacks.items(), key=lambda item: (-item[1].weight(self.last + 1), item[0]))

    def by_record(self, most: int) -> list[tuple[int, Tally]]:
        """The single calls that made most VMAs that live longest."""
        ranked = sorted(self.single.items(), key=lambda item: (-item[1].weight(self.last + 1), item[0]))
        return ranked[:most]

    def by_reason(self) -> list[Group]:
        """What keeps VMAs apart: first what a program can do something about, then the most at the peak."""
        return sorted(
            self.groups.values(),
            key=lambda group: (group.is_ordinary(), -group.curve.peak()[1], group.kind, group.file),
        )

    # -- bookkeeping ----------------------------------------------------------------------------------

    def settle(self, n: int, change: _Change, source: _Source, sight: Sight) -> None:
        """Record n has changed some places: find what is there now."""
        mm = self.mm
        assert mm is not None
        touched_makers: set[Tally] = set()
        for lo, hi in joined(change.ranges):
            self._resettle(mm, n, lo, hi, change, source, touched_makers)
            change.edges.update(self._starts[bisect_left(self._starts, lo) : bisect_right(self._starts, hi)])
        touched_groups: set[Group] = change.left
        for start in change.edges:
            birth = self._births.get(start)
            if birth is not None:
                self._regroup(mm, birth, sight, touched_groups)
        for maker in touched_makers:
            if isinstance(maker, Maker):
                maker.settle(n)
        for group in touched_groups:
            group.curve.set(n, group.alive)
        self.count.set(n, mm.map_count)
        self.last = n

    def _resettle(
        self,
        mm: Mm,
        n: int,
        lo: int,
        hi: int,
        change: _Change,
        source: _Source,
        touched: set[Tally],
    ) -> None:
        """Match the VMAs that start in [lo, hi] with those that started there before."""
        place = bisect_left(self._starts, lo)
        end = bisect_right(self._starts, hi)
        old = {start: self._births.pop(start) for start in self._starts[place:end]}
        now = [vma for vma in mm.tree.walk(lo, hi + 1) if vma.start >= lo]
        rest: list[Vma] = []
        for vma in now:
            known = old.get(vma.start)
            if id(vma) in change.fresh or known is None or change.is_unmapped(vma.start):
                rest.append(vma)
            else:
                known.vma = vma
                self._births[vma.start] = old.pop(vma.start)
        moved = {id(birth.vma): start for start, birth in old.items()}
        for vma in rest:
            start = moved.get(id(vma), -1) if id(vma) not in change.fresh else -1
            if start >= 0:
                self._births[vma.start] = old.pop(start)
                continue
            birth = _Birth(n, source.makers(vma.start), vma)
            for maker in birth.makers:
                maker.birth(n)
            touched.update(birth.makers)
            self._births[vma.start] = birth
        for birth in old.values():
            self._bury(birth, n)
            touched.update(birth.makers)
            if birth.group is not None:
                change.left.add(birth.group)
        self._starts[place:end] = [vma.start for vma in now]

    def _bury(self, birth: _Birth, n: int) -> None:
        for maker in birth.makers:
            maker.death(birth.n, n)
        if birth.group is not None:
            birth.group.alive -= 1

    def _regroup(self, mm: Mm, birth: _Birth, sight: Sight, touched: set[Group]) -> None:
        group = self._group_of(mm, birth.vma, sight)
        if group is birth.group:
            return
        if birth.group is not None:
            birth.group.alive -= 1
            touched.add(birth.group)
        birth.group = group
        group.alive += 1
        touched.add(group)

    def _group_of(self, mm: Mm, vma: Vma, sight: Sight) -> Group:
        below = mm.tree.load(vma.start - 1) if vma.start else None
        if below is None:
            return self._group(GAP, (), "", 0, False)
        obstacles = find_obstacles(below, vma, sight)
        if not obstacles:
            return self._group(UNASKED, (), "", 0, False)
        boundary = Boundary(below, vma, obstacles)
        names = tuple(dict.fromkeys([obstacle.name for obstacle in obstacles]))
        file = vma.file if boundary.is_within_file() else None
        path = file.path or "(no name)" if file is not None else ""
        return self._group(boundary.kind(), names, path, id(file) if file is not None else 0, boundary.is_foreign())

    def _group(self, kind: str, names: tuple[str, ...], path: str, file: int, foreign: bool) -> Group:
        found = self.groups.get((kind, file, foreign))
        if found is None:
            found = Group(kind, names, path, foreign)
            self.groups[kind, file, foreign] = found
        return found

    def close(self, n: int) -> None:
        """The address space is gone."""
        self.last = n
        self.mm = None
        self._births.clear()
        self._starts.clear()

    def maker_at(self, start: int) -> str:
        """The title of what made the VMA that starts at an address; empty if none does."""
        birth = self._births.get(start)
        return (
            next((maker.title for maker in birth.makers if isinstance(maker, Maker)), "") if birth is not None else ""
        )

    def group_at(self, start: int) -> Group | None:
        """What keeps the VMA that starts at an address from merging with the one below; None if none starts there."""
        birth = self._births.get(start)
        return birth.group if birth is not None else None

    def starts(self) -> list[int]:
        """Where the VMAs start, for a check against the address space itself."""
        return list(self._starts)


@final
class _Change:
    """What one record has done to one address space."""

    __slots__ = ("edges", "fresh", "gone", "left", "ranges")

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        """[lo, hi]: VMAs that start here may have come, gone or moved."""
        self.edges: set[int] = set()
        """A VMA that starts here may differ otherwise from the one below."""
        self.fresh: dict[int, Vma] = {}
        """VMAs that were not there before, by id."""
        self.gone: list[tuple[int, int]] = []
        """[start, end) of VMAs that were unmapped."""
        self.left: set[Group] = set()
        """Groups that a VMA has left."""

    def is_unmapped(self, addr: int) -> bool:
        return any([start <= addr < end for start, end in self.gone])


@final
class _Source:
    """What the VMAs are made by that one record makes in one address space."""

    __slots__ = ("_parent", "_record", "_space", "_stack", "_tallies", "_title")

    def __init__(self, attribution: Attribution, space: Space, record: records.Record) -> None:
        replay = attribution.replay
        call = replay.call if replay is not None else None
        self._space = space
        self._record = record
        self._stack = attribution.stack_of(record)
        self._parent: Space | None = None
        self._tallies: tuple[Tally, ...] | None = None
        self._title = FAULT
        if call is not None:
            attribution.calls[record.n] = call
            self._title = shape_text(call)
        elif isinstance(record, records.Exec):
            self._title = EXECVE
        elif isinstance(record, records.Fork):
            self._title = FORK
            if record.n == space.first:
                self._parent = attribution.space_of(record.parent)

    def makers(self, start: int) -> tuple[Tally, ...]:
        """What a VMA is made by that starts at an address.  What fork copies is of what made the original."""
        if self._parent is not None:
            return self._tallies_of(inherited(self._parent.maker_at(start)))
        if self._tallies is None:
            self._tallies = self._tallies_of(self._title)
        return self._tallies

    def _tallies_of(self, title: str) -> tuple[Tally, ...]:
        space, n = self._space, self._record.n
        found: list[Tally] = [_maker(space.calls, title, title), space.single.setdefault(n, Tally())]
        if self._stack:
            found.append(_maker(space.stacks, self._stack, self._stack[0]))
        return tuple(found)


_Key = TypeVar("_Key")


def _maker(makers: dict[_Key, Maker], key: _Key, title: str) -> Maker:
    found = makers.get(key)
    if found is None:
        found = Maker(title)
        makers[key] = found
    return found


def inherited(title: str) -> str:
    """The title of what fork copies."""
    return title if title.startswith(FORK) else f"{FORK}: {title}" if title else FORK


@final
class Attribution(Observer):
    """Writes down where the VMAs of each address space of a trace come from.

    ::

        attribution = Attribution()
        replay = Replay(header, observer=attribution)
        attribution.replay = replay
        for record in reader:
            attribution.step(record)
        attribution.finish()
    """

    def __init__(self, sight: Sight = Sight.FULL) -> None:
        self.replay: Replay | None = None
        """Whose records are followed; to be set before the first."""
        self.sight = sight
        self.spaces: list[Space] = []
        """All address spaces in the order in which they began."""
        self.failures: Failures = Failures()
        self._live: dict[int, Space] = {}
        self._changes: dict[int, _Change] = {}
        self._stacks: dict[int, tuple[str, ...]] = {}
        self._before: State | None = None
        self.calls: dict[int, Call] = {}
        """The calls that made VMAs, by record."""

    def step(self, record: records.Record) -> Mismatch | None:
        """Let the replay take a record, and note what it changed."""
        assert self.replay is not None
        self.before(record)
        mismatch = self.replay.step(record)
        self.after(record)
        return mismatch

    def before(self, record: records.Record) -> None:
        """To be called before the replay takes a record (step does it all)."""
        replay = self._must()
        self._before = None
        if isinstance(record, records.Stack):
            self._stacks[record.id] = tuple(record.frames)
        if isinstance(record, records.Call) and (record.failed or record.call == "brk"):
            process = replay.process(record.pid)
            if process is not None:
                self._before = State(process.mm)

    def after(self, record: records.Record) -> None:
        """To be called after the replay has taken a record."""
        replay = self._must()
        if isinstance(record, records.Exec | records.Fork | records.Exit):
            self._follow_processes(record)
        for key, change in self._changes.items():
            space = self._live.get(key)
            if space is not None:
                space.settle(record.n, change, _Source(self, space, record), self.sight)
        self._changes.clear()
        if self._before is not None and replay.call is not None and replay.outcome is not None:
            process = replay.process(replay.pid)
            if process is not None and isinstance(record, records.Call):
                self.failures.add(record.n, process, replay.call, record.ret or 0, replay.outcome, self._before)

    def finish(self) -> None:
        """The trace is over."""
        replay = self._must()
        for space in self._live.values():
            space.last = replay.n

    def space_of(self, pid: int) -> Space | None:
        """The address space that a process has now."""
        process = self._must().process(pid)
        return self._live.get(id(process.mm)) if process is not None else None

    def stack_of(self, record: records.Record) -> tuple[str, ...]:
        """The user stack of a call or a fault, the innermost function first; empty where the recorder took none."""
        if not isinstance(record, records.Call | records.Fault) or record.stack is None:
            return ()
        return self._stacks.get(record.stack, ())

    def space_at(self, mm: Mm) -> Space | None:
        """What is known of an address space that is there."""
        return self._live.get(id(mm))

    def call_of(self, n: int) -> str:
        """The call of a record that made VMAs, for people; or execve, fork, fault."""
        call = self.calls.get(n)
        return call_text(call) if call is not None else "execve or fork"

    def _must(self) -> Replay:
        replay = self.replay
        assert replay is not None, "Attribution.replay is set before the first record"
        return replay

    def _follow_processes(self, record: records.Exec | records.Fork | records.Exit) -> None:
        """Address spaces come and go."""
        replay = self._must()
        used = {id(process.mm) for process in replay.machine.processes.values()}
        for key in [key for key in self._live if key not in used]:
            self._live.pop(key).close(record.n)
            self._changes.pop(key, None)
        process = replay.process(record.pid)
        if process is None or id(process.mm) in self._live:
            return
        program = replay.current.get(record.pid)
        space = Space(process.mm, record.pid, program.exe if program is not None else "", record.n)
        self.spaces.append(space)
        self._live[id(process.mm)] = space
        change = self._changes.setdefault(id(process.mm), _Change())
        change.ranges.append((0, process.mm.task_size))

    # -- what the core tells ------------------------------------------------------------------------------

    def _change(self, mm: Mm) -> _Change:
        found = self._changes.get(id(mm))
        if found is None:
            found = _Change()
            self._changes[id(mm)] = found
        return found

    def added(self, vma: Vma) -> None:
        change = self._change(vma.mm)
        change.ranges.append((vma.start, vma.end))
        change.fresh[id(vma)] = vma

    def removed(self, vma: Vma) -> None:
        change = self._change(vma.mm)
        change.ranges.append((vma.start, vma.end))
        change.gone.append((vma.start, vma.end))

    def split(self, below: Vma, above: Vma) -> None:
        self._change(above.mm).ranges.append((below.start, above.end))

    def merged(self, survivor: Vma, start: int, end: int) -> None:
        self._change(survivor.mm).ranges.append((survivor.start, survivor.end))

    def resized(self, vma: Vma, old_start: int, old_end: int) -> None:
        self._change(vma.mm).ranges.append((min(vma.start, old_start), max(vma.end, old_end)))

    def flags_changed(self, vma: Vma, old: int) -> None:
        self._change(vma.mm).edges.update((vma.start, vma.end))

    def attribute_changed(self, vma: Vma, what: str) -> None:
        self._change(vma.mm).edges.update((vma.start, vma.end))


def joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ranges, those that overlap or touch made one."""
    if len(ranges) < 2:
        return ranges
    joined: list[tuple[int, int]] = []
    for lo, hi in sorted(ranges):
        if joined and lo <= joined[-1][1]:
            if hi > joined[-1][1]:
                joined[-1] = (joined[-1][0], hi)
        else:
            joined.append((lo, hi))
    return joined
