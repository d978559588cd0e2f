"""Explain every VMA that did not merge with its neighbour: all reasons, and the call that made the difference."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from vmalab.behaviours import read_semantics
from vmalab.cli.common import FILE, console, escape_text, json_option, print_json, progress, semantics_option
from vmalab.errors import InputError
from vmalab.explain.obstacles import Boundary, Obstacle, Sight, boundaries, count_merges
from vmalab.explain.story import Edges, Event, describe
from vmalab.semantics import Semantics
from vmalab.trace import records
from vmalab.trace.file import TraceReader, read_trace
from vmalab.trace.load import load_exec, load_machine
from vmalab.trace.replay import Replay
from vmalab.trace.show import call_text

if TYPE_CHECKING:
    from vmalab.machine import Machine, Process
    from vmalab.vma.area import Vma

SHOWN = 40
EXAMPLES = 4
"""How many boundaries of one kind are shown."""
ORDINARY = 3
"""How many kinds that every program has are shown."""
SEGMENTS = 8
"""A file that is mapped in more pieces than this was not only loaded by the dynamic linker."""
PROMISES = 5
"""How many kinds the sentences about what would go are for."""
NOTES = {
    Sight.FULL: [],
    Sight.NO_FAULTS: [
        "nobody observed the faults of this trace: what was written to apart (anon_vma) is not known, "
        "and a reason with (?) depends on it"
    ],
    Sight.SNAPSHOT: [
        "/proc shows no anon_vma, anonymous offset, memory policy, open file or userfaultfd: "
        "they may be in the way as well, and nothing else is left where a reason is unknown"
    ],
    Sight.MAPS: [
        "maps shows of a VMA's flags its permissions alone (smaps shows all), and /proc shows no anon_vma, anonymous "
        "offset, memory policy, open file or userfaultfd: they may be in the way as well"
    ],
}


def _parse_at(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A record number, or None for "end"."""
    if value == "end":
        return None
    if not value.isascii() or not value.isdecimal():
        raise click.BadParameter(f"{escape_text(value)} is neither a record number nor end")
    return int(value)


class Group:
    """The boundaries of one kind: the same reasons."""

    def __init__(self, kind: str, ordinary: bool) -> None:
        self.kind = kind
        self.ordinary = ordinary
        """Whether every program has such: segments of a library, different files, memory of a driver."""
        self.boundaries: list[Boundary] = []
        self.would_go = 0
        """How many VMAs would go without these reasons."""


class Explained:
    """What there is to explain: a process, and for a trace the events at its edges."""

    def __init__(self, process: Process, title: str, edges: Edges | None, sight: Sight, notes: list[str]) -> None:
        self.process = process
        self.title = title
        self.edges = edges
        self.sight = sight
        self.notes = NOTES[sight] + notes
        """What limits the answer, a sentence each."""
        self.boundaries: list[Boundary] = list(boundaries(process.mm, sight))
        self.groups: list[Group] = self._group()

    def _group(self) -> list[Group]:
        """The kinds: first what a program can do something about, and then the most frequent."""
        of_file = Counter(id(boundary.above.file) for boundary in self.boundaries if boundary.is_within_file())
        found: dict[tuple[str, bool], Group] = {}
        for boundary in self.boundaries:
            segment = boundary.is_within_file() and of_file[id(boundary.above.file)] <= SEGMENTS
            key = (boundary.kind(), segment or boundary.is_foreign())
            found.setdefault(key, Group(*key)).boundaries.append(boundary)
        for group in found.values():
            group.would_go = count_merges(group.boundaries)
        return sorted(found.values(), key=lambda group: (group.ordinary, -len(group.boundaries), group.kind))

    def event(self, boundary: Boundary, obstacle: Obstacle) -> Event | None:
        """The call that made the difference, where the trace shows it."""
        if self.edges is None or not obstacle.reason:
            return None
        return self.edges.last(self.process.mm, boundary.addr, obstacle.reason, obstacle.bits)


@click.command()
@click.argument("file", metavar="[FILE]", required=False, type=FILE)
@click.option("--live", type=click.IntRange(min=1), metavar="PID", help="Explain a running process instead of a file.")
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="The process in the trace; else the first.")
@click.option("--at", callback=_parse_at, default="end", metavar="N|end", help="After record N; else when it exits.")
@click.option("--all", "everything", is_flag=True, help="Show all boundaries, in order of address.")
@semantics_option
@json_option
def explain(
    file: str | None,
    live: int | None,
    pid: int | None,
    at: int | None,
    everything: bool,
    semantics: str | None,
    as_json: bool,
) -> int:
    """Say for each pair of adjacent VMAs that touch why they did not merge.

    FILE is a trace, or a copy of /proc/PID/smaps or maps; - is standard input.
    """
    if (file is None) == (live is None):
        raise click.UsageError("give either a FILE or --live PID")
    kernel = read_semantics(semantics) if semantics is not None else None
    if live is not None:
        if pid is not None or at is not None:
            raise click.UsageError("--pid and --at choose within a trace: they do not go with --live")
        explained = _explain_live(live, kernel)
    else:
        assert file is not None
        explained = _explain_file(file, pid, at, kernel, quiet=as_json)
    if as_json:
        print_json(_as_json(explained))
    else:
        show(explained, everything=everything)
    return 0


def _explain_file(file: str, pid: int | None, at: int | None, semantics: Semantics | None, *, quiet: bool) -> Explained:
    from vmalab.live.snapshot import read_snapshot

    found = read_snapshot(file)
    if found is None:
        return explain_trace(file, pid, at, semantics, quiet=quiet)
    name = "standard input" if file == "-" else escape_text(file)
    if pid is not None or at is not None:
        raise InputError(f"{name} is a snapshot of one process, not a trace: it has neither --pid nor --at")
    explained = _explain_snapshot(
        load_machine(records.Machine(), semantics), found.process, name, Sight.SNAPSHOT if found.whole else Sight.MAPS
    )
    explained.notes += found.notes
    return explained


def _explain_live(pid: int, semantics: Semantics | None) -> Explained:
    from vmalab.live.facts import machine_facts
    from vmalab.live.procfs import read_process

    found = read_process(pid)
    found.pid = pid
    title = f"process {pid}, {escape_text(found.exe)}, as it is now"
    return _explain_snapshot(load_machine(machine_facts(), semantics), found, title)


def _explain_snapshot(machine: Machine, found: records.Exec, title: str, sight: Sight = Sight.SNAPSHOT) -> Explained:
    try:
        process = machine.process(found.pid)
        load_exec(process, found)
    except ValueError as error:
        raise InputError(f"{title}: {escape_text(str(error))}") from None
    return Explained(process, title, None, sight, [])


def explain_trace(
    file: str, pid: int | None, at: int | None, semantics: Semantics | None = None, *, quiet: bool = False
) -> Explained:
    """Replay a trace to record at, or to the end of the process, and look for what did not merge."""
    reader = read_trace(file)
    edges = Edges()
    replay = Replay(reader.header, semantics, observer=edges)
    edges.replay = replay
    seen: set[int] = set()
    chosen = pid
    with progress("replay", reader.size, quiet=quiet) as update:
        for record in reader:
            if isinstance(record, records.Exec | records.Fork):
                seen.add(record.pid)
                chosen = record.pid if chosen is None else chosen
            if isinstance(record, records.Exit) and record.pid == chosen and at is None:
                process = replay.process(chosen)
                if process is not None:
                    replay.n, replay.pid, replay.call = record.n, record.pid, None
                    replay.observe(process, record.grown, record.written)
                    return _explain_process(reader, replay, process, edges, f"at its exit, record {record.n}")
            replay.step(record)
            if record.n % 512 == 0:
                update(reader.bytes_read)
            if at is not None and record.n >= at:
                break
    if at is not None and replay.n < at:
        raise InputError(f"{reader.name}: there is no record {at}: the last one is {replay.n}")
    if chosen is None:
        raise InputError(f"{reader.name}: no program has started by record {replay.n}, so there is nothing to explain")
    process = replay.process(chosen)
    if process is None:
        listed = ", ".join(map(str, sorted(replay.machine.processes if at is not None else seen)[:20])) or "none"
        when = f"at record {replay.n}" if at is not None else "in this trace"
        raise InputError(f"{reader.name}: there is no process {chosen} {when}; there is: {listed}")
    return _explain_process(reader, replay, process, edges, f"after record {replay.n}")


def _explain_process(reader: TraceReader, replay: Replay, process: Process, edges: Edges, when: str) -> Explained:
    program = replay.current[process.pid]
    notes = reader.shortcomings()
    if program.partial:
        notes.append("what was mapped at first is not known: VMAs that are not here may touch those that are")
    sight = Sight.NO_FAULTS if reader.header.faults == "none" else Sight.FULL
    if program.first is not None and sight is Sight.FULL:
        notes.append(
            f"the model went another way than the kernel at record {program.first.n}: "
            "what is said of memory touched since may be wrong; vmalab replay tells more"
        )
    title = f"process {process.pid}, {escape_text(program.exe)}, {when}"
    return Explained(process, title, edges, sight, notes)


# -- for people ---------------------------------------------------------------------------------------


def show(explained: Explained, *, everything: bool, limit: int = SHOWN) -> None:
    """Print the boundaries and a summary of them; without everything, some of each kind, at most limit in all."""
    out = console()
    found = explained.boundaries
    out.print(f"{explained.title}: {explained.process.mm.map_count:,} VMAs, {len(found):,} boundaries", style="bold")
    for note in explained.notes:
        out.print(f"note: {note}", style="yellow")
    if everything:
        for boundary in found:
            _show_boundary(explained, boundary)
    else:
        _show_groups(explained, limit)
    _show_summary(explained)


def _show_groups(explained: Explained, limit: int) -> None:
    """Some boundaries of each kind; of the ordinary ones, which are the same in every program, few."""
    out = console()
    rest = 0
    ordinary = ORDINARY
    for group in explained.groups:
        few = group.boundaries[: min(limit, EXAMPLES)]
        if group.ordinary:
            few = [each for each in few[:1] if ordinary and not each.is_within_file()]
            ordinary -= len(few)
        limit -= len(few)
        for boundary in few:
            _show_boundary(explained, boundary)
        more = len(group.boundaries) - len(few)
        if more and few:
            out.print(f"\n  ... and {more:,} more of this kind", style="dim")
        elif more:
            rest += more
    if rest:
        out.print(f"\n{rest:,} of other kinds are not listed: --all shows them", style="dim")


def _show_boundary(explained: Explained, boundary: Boundary) -> None:
    out = console()
    below, above = boundary.below, boundary.above
    out.print(f"\n  {_strip(boundary)}  {boundary.addr:#x}", style="bold")
    out.print(f"    A {escape_text(describe(below))}{_label(explained, below)}")
    out.print(f"    B {escape_text(describe(above))}{_label(explained, above)}")
    events = [explained.event(boundary, obstacle) for obstacle in boundary.obstacles]
    for i, obstacle in enumerate(boundary.obstacles):
        if not obstacle.reason:
            out.print(f"    {obstacle.detail}")
            continue
        mark = "" if obstacle.certain else " (?)"
        out.print(f"    {obstacle.detail}{mark}: A {escape_text(obstacle.below)}, B {escape_text(obstacle.above)}")
        event = events[i]
        # Several reasons in a row by one call are told once, after the last.
        following = events[i + 1] if i + 1 < len(events) else None
        if event is not None and (following is None or _how(following) != _how(event)):
            out.print(f"      by record {event.n}: {_how(event)[1]}", style="dim")


def _how(event: Event) -> tuple[int, str]:
    """The record of an event and what it was, for people."""
    how = call_text(event.call) if event.call is not None else "execve, fork or exit"
    return event.n, f"found before {how}" if event.kind == "anon_vma" else how


def _label(explained: Explained, vma: Vma) -> str:
    name = explained.process.name_of(vma)
    return f" {name}" if name in ("[heap]", "[stack]") else ""


def _strip(boundary: Boundary) -> str:
    """Both VMAs as letters, wider ones as more of them."""
    widths = [min(12, max(1, int(vma.pages()).bit_length())) for vma in (boundary.below, boundary.above)]
    return "A" * widths[0] + "|" + "B" * widths[1]


def _show_summary(explained: Explained) -> None:
    out = console()
    total: int = explained.process.mm.map_count
    if not explained.groups:
        out.print("every VMA that touches another has merged with it")
        return
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("boundaries", justify="right")
    table.add_column("would go", justify="right")
    table.add_column("what differs", overflow="fold")
    for group in explained.groups:
        kind = escape_text(group.kind)
        would_go = f"{group.would_go:,}" if _is_known(group) else "?"
        table.add_row(f"{len(group.boundaries):,}", would_go, f"{kind} (ordinary)" if group.ordinary else kind)
    out.print()
    out.print(table)
    if any(group.ordinary for group in explained.groups):
        out.print("ordinary: segments of a library, different files, memory of a driver; every program has them")
    promising = [group for group in explained.groups if _is_known(group) and group.would_go and not group.ordinary]
    for group in promising[:PROMISES]:
        out.print(f"{group.would_go:,} of {total:,} VMAs would go if there were no difference in: {group.kind}")


def _is_known(group: Group) -> bool:
    return all(each.reason for each in group.boundaries[0].obstacles)


def _as_json(explained: Explained) -> dict[str, Any]:
    return {
        "what": explained.title,
        "pid": explained.process.pid,
        "vmas": explained.process.mm.map_count,
        "sight": explained.sight.value,
        "notes": explained.notes,
        "boundaries": [
            {
                "addr": boundary.addr,
                "below": {"start": boundary.below.start, "end": boundary.below.end, "name": describe(boundary.below)},
                "above": {"start": boundary.above.start, "end": boundary.above.end, "name": describe(boundary.above)},
                "obstacles": [_obstacle_json(explained, boundary, each) for each in boundary.obstacles],
            }
            for boundary in explained.boundaries
        ],
        "summary": [
            {
                "what": group.kind,
                "boundaries": len(group.boundaries),
                "would_go": group.would_go,
                "ordinary": group.ordinary,
            }
            for group in explained.groups
        ],
    }


def _obstacle_json(explained: Explained, boundary: Boundary, obstacle: Obstacle) -> dict[str, Any]:
    event = explained.event(boundary, obstacle)
    known = obstacle.explanation()
    return {
        "reason": obstacle.name,
        "sentence": known.sentence if obstacle.reason else obstacle.detail,
        "where": known.where if obstacle.reason else "",
        "what": obstacle.detail,
        "certain": obstacle.certain,
        "below": obstacle.below,
        "above": obstacle.above,
        "record": event.n if event is not None else None,
        "call": call_text(event.call) if event is not None and event.call is not None else None,
    }
