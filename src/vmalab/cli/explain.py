"""Explain every VMA that did not merge with its neighbour: all reasons, and the call that made the difference."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click
from rich.table import Table

from vmalab.cli.common import FILE, console, escape_text, json_option, print_json, progress
from vmalab.errors import InputError
from vmalab.explain.obstacles import Boundary, Obstacle, boundaries
from vmalab.explain.story import Edges, Event, describe
from vmalab.machine import Process
from vmalab.trace import records
from vmalab.trace.file import read_trace
from vmalab.trace.load import load_exec, load_machine
from vmalab.trace.replay import Replay
from vmalab.trace.show import call_text

SHOWN = 40


def _parse_at(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A record number, or None for "end"."""
    if value == "end":
        return None
    if not value.isascii() or not value.isdecimal():
        raise click.BadParameter(f"{escape_text(value)} is neither a record number nor end")
    return int(value)


class Explained:
    """What there is to explain: a process, and for a trace the events at its edges."""

    def __init__(self, process: Process, title: str, edges: Edges | None, *, hidden: bool) -> None:
        self.process = process
        self.title = title
        self.edges = edges
        self.hidden = hidden
        """Whether the VMAs come from /proc, which does not show all that decides a merge."""
        self.boundaries: list[Boundary] = list(boundaries(process.mm, hidden=hidden))

    def event(self, boundary: Boundary, obstacle: Obstacle) -> Event | None:
        """The call that made the difference, where the trace shows it."""
        if self.edges is None or not obstacle.reason:
            return None
        return self.edges.last(self.process.mm, boundary.addr, obstacle.reason, obstacle.bits)


@click.command()
@click.argument("file", metavar="[FILE]", required=False, type=FILE)
@click.option("--live", type=click.IntRange(min=1), metavar="PID", help="Explain a running process instead of a trace.")
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="The process in the trace; else the first.")
@click.option("--at", callback=_parse_at, default="end", metavar="N|end", help="After record N; else when it exits.")
@click.option("--all", "everything", is_flag=True, help="Show all boundaries, also between segments of one file.")
@json_option
def explain(
    file: str | None, live: int | None, pid: int | None, at: int | None, everything: bool, as_json: bool
) -> int:
    """Say for each pair of adjacent VMAs that touch why they did not merge.

    FILE is a trace, or - for standard input.
    """
    if (file is None) == (live is None):
        raise click.UsageError("give either a trace FILE or --live PID")
    if live is not None:
        explained = _explain_live(live)
    else:
        assert file is not None
        explained = explain_trace(file, pid, at, quiet=as_json)
    if as_json:
        print_json(_as_json(explained))
    else:
        show(explained, everything=everything)
    return 0


def _explain_live(pid: int) -> Explained:
    from vmalab.live.facts import machine_facts
    from vmalab.live.procfs import read_process

    found = read_process(pid)
    machine = load_machine(machine_facts())
    process = machine.process(pid)
    load_exec(process, found)
    return Explained(process, f"process {pid}, {escape_text(found.exe)}, as it is now", None, hidden=True)


def explain_trace(file: str, pid: int | None, at: int | None, *, quiet: bool = False) -> Explained:
    """Replay a trace to record at, or to the end of the process, and look for what did not merge."""
    reader = read_trace(file)
    edges = Edges()
    replay = Replay(reader.header, observer=edges)
    edges.replay = replay
    seen: set[int] = set()
    chosen = pid
    with progress("replay", reader.size, quiet=quiet) as update:
        for record in reader:
            if isinstance(record, records.Exec | records.Fork):
                seen.add(record.pid)
                chosen = record.pid if chosen is None else chosen
            if isinstance(record, records.Exit) and record.pid == chosen and at is None:
                return _explain_process(reader.name, replay, chosen, edges, reader.header)
            replay.step(record)
            if record.n % 512 == 0:
                update(reader.bytes_read)
            if record.n == at:
                break
    if at is not None and replay.n < at:
        raise InputError(f"{reader.name}: there is no record {at}: the last one is {replay.n}")
    if chosen is None:
        raise InputError(f"{reader.name}: no program has started by record {replay.n}, so there is nothing to explain")
    if replay.process(chosen) is None:
        listed = ", ".join(map(str, sorted(seen)[:20])) or "none"
        when = f"at record {replay.n}" if at is not None else "in this trace"
        raise InputError(f"{reader.name}: there is no process {chosen} {when}; seen so far: {listed}")
    return _explain_process(reader.name, replay, chosen, edges, reader.header)


def _explain_process(name: str, replay: Replay, pid: int, edges: Edges, header: records.Header) -> Explained:
    process = replay.process(pid)
    if process is None:
        raise InputError(f"{name}: process {pid} has no address space of its own at record {replay.n}")
    exe = escape_text(replay.current[pid].exe)
    return Explained(process, f"process {pid}, {exe}, after record {replay.n}", edges, hidden=header.faults == "none")


# -- for people ---------------------------------------------------------------------------------------


def show(explained: Explained, *, everything: bool, limit: int = SHOWN) -> None:
    """Print the boundaries and a summary of them."""
    out = console()
    found = explained.boundaries
    shown = found if everything else [boundary for boundary in found if not boundary.is_segment()]
    out.print(f"{explained.title}: {explained.process.mm.map_count:,} VMAs, {len(found):,} boundaries", style="bold")
    for boundary in shown if everything else shown[:limit]:
        _show_boundary(explained, boundary)
    left = len(shown) - limit
    if left > 0 and not everything:
        out.print(f"\n... and {left:,} more: --all shows them", style="dim")
    if len(shown) < len(found):
        out.print(
            f"\n{len(found) - len(shown):,} between the segments of one file are not listed: --all shows them",
            style="dim",
        )
    _show_summary(explained)


def _show_boundary(explained: Explained, boundary: Boundary) -> None:
    out = console()
    below, above = boundary.below, boundary.above
    out.print(f"\n  {_strip(boundary)}  {boundary.addr:#x}", style="bold")
    out.print(f"    A {escape_text(describe(below))}{_label(explained, below)}")
    out.print(f"    B {escape_text(describe(above))}{_label(explained, above)}")
    for obstacle in boundary.obstacles:
        if not obstacle.reason:
            out.print(f"    {obstacle.detail}")
            continue
        out.print(f"    {obstacle.detail}: A {escape_text(obstacle.below)}, B {escape_text(obstacle.above)}")
        event = explained.event(boundary, obstacle)
        if event is not None:
            how = call_text(event.call) if event.call is not None else "execve or fork"
            before = "found before " if event.kind == "anon_vma" else ""
            out.print(f"      by record {event.n}: {before}{how}", style="dim")
    if explained.hidden and boundary.obstacles[0].reason:
        out.print("      unknown: whether anything that /proc does not show is in the way too", style="dim")


def _label(explained: Explained, vma: Any) -> str:
    name = explained.process.name_of(vma)
    return f" {name}" if name in ("[heap]", "[stack]") else ""


def _strip(boundary: Boundary) -> str:
    """Both VMAs as letters, wider ones as more of them."""
    widths = [min(12, max(1, vma.pages().bit_length())) for vma in (boundary.below, boundary.above)]
    return "A" * widths[0] + "|" + "B" * widths[1]


def _show_summary(explained: Explained) -> None:
    out = console()
    total: int = explained.process.mm.map_count
    kinds = Counter(boundary.kind() for boundary in explained.boundaries)
    if not kinds:
        out.print("every VMA that touches another has merged with it")
        return
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("boundaries", justify="right")
    table.add_column("what differs")
    for kind, count in kinds.most_common():
        table.add_row(f"{count:,}", escape_text(kind))
    out.print()
    out.print(table)
    for kind, count in kinds.most_common(3):
        if not kind.startswith("unknown"):
            out.print(f"{count:,} of {total:,} VMAs would go if there were no difference in: {escape_text(kind)}")


def _as_json(explained: Explained) -> dict[str, Any]:
    return {
        "what": explained.title,
        "pid": explained.process.pid,
        "vmas": explained.process.mm.map_count,
        "hidden": explained.hidden,
        "boundaries": [
            {
                "addr": boundary.addr,
                "below": {"start": boundary.below.start, "end": boundary.below.end, "name": describe(boundary.below)},
                "above": {"start": boundary.above.start, "end": boundary.above.end, "name": describe(boundary.above)},
                "obstacles": [_obstacle_json(explained, boundary, each) for each in boundary.obstacles],
            }
            for boundary in explained.boundaries
        ],
        "summary": dict(Counter(boundary.kind() for boundary in explained.boundaries).most_common()),
    }


def _obstacle_json(explained: Explained, boundary: Boundary, obstacle: Obstacle) -> dict[str, Any]:
    event = explained.event(boundary, obstacle)
    known = obstacle.explanation()
    return {
        "reason": obstacle.name,
        "sentence": known.sentence if obstacle.reason else obstacle.detail,
        "where": known.where if obstacle.reason else "",
        "what": obstacle.detail,
        "below": obstacle.below,
        "above": obstacle.above,
        "record": event.n if event is not None else None,
        "call": call_text(event.call) if event is not None and event.call is not None else None,
    }
