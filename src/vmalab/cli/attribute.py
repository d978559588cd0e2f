"""Tell where the VMAs of a program come from: over time, by call, by reason, by stack; and what failed."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from vmalab.behaviours import read_semantics
from vmalab.cli.common import (
    console,
    escape_text,
    file_argument,
    json_option,
    print_json,
    progress,
    semantics_option,
    warn_of_shortcomings,
)
from vmalab.errors import InputError
from vmalab.explain.attribution import Attribution, Space
from vmalab.explain.curve import Curve
from vmalab.explain.failures import Failure
from vmalab.explain.obstacles import Sight
from vmalab.semantics import Semantics
from vmalab.trace.file import TraceReader, read_trace
from vmalab.trace.replay import Replay
from vmalab.trace.show import call_text

SHOWN = 12
SHOWN_FRAMES = 12
"""Rows of a table."""
SINGLE = 5
"""How many single calls are shown."""
ORDINARY = "what every program has: gaps, segments of a library, different files, memory of a driver"
SPARK = 48
"""Columns of the map count over time."""
LEVELS = " ▁▂▃▄▅▆▇█"
POINTS = 2000
"""The most points of one curve in JSON."""
PROGRESS_STEP = 256


@click.command()
@file_argument
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="The address spaces of this process only.")
@click.option("--all", "everything", is_flag=True, help="Show every row, and programs that made no VMA.")
@semantics_option
@json_option
def attribute(file: str, pid: int | None, everything: bool, semantics: str | None, as_json: bool) -> int:
    """Say where the VMAs of a trace come from: which calls made them, and what keeps them apart.

    For each address space: the map count over time, by call, by reason and by stack, the calls that made most VMAs that
    live longest; and for each failed call its reason and the state that caused it.  FILE may be - for standard input.
    """
    reader = read_trace(file)
    kernel = read_semantics(semantics) if semantics is not None else None
    attribution = attribute_trace(reader, kernel, quiet=as_json)
    spaces = attribution.spaces
    if pid is not None:
        spaces = [space for space in spaces if space.pid == pid]
        if not spaces:
            known = sorted({space.pid for space in attribution.spaces})
            listed = ", ".join(map(str, known[:20])) or "none"
            raise InputError(f"{reader.name}: there is no process {pid} in this trace; it has: {listed}")
    failures = [failure for failure in attribution.failures.all() if pid in (None, failure.pid)]
    if as_json:
        print_json(_as_json(reader, attribution, spaces, failures))
        return 0
    _show(attribution, spaces, failures, everything=everything)
    warn_of_shortcomings(reader)
    return 0


def attribute_trace(reader: TraceReader, semantics: Semantics | None = None, *, quiet: bool = False) -> Attribution:
    """Replay a trace to its end and write down where its VMAs come from, with a progress bar."""
    attribution = Attribution(Sight.NO_FAULTS if reader.header.faults == "none" else Sight.FULL)
    attribution.replay = Replay(reader.header, semantics, observer=attribution)
    with progress("replay", reader.size, quiet=quiet) as update:
        for record in reader:
            attribution.step(record)
            if record.n % PROGRESS_STEP == 0:
                update(reader.bytes_read)
    attribution.finish()
    return attribution


# -- for people ---------------------------------------------------------------------------------------


def _show(attribution: Attribution, spaces: list[Space], failures: list[Failure], *, everything: bool) -> None:
    out = console()
    replay = attribution.replay
    assert replay is not None
    busy = [space for space in spaces if everything or _has_calls(space) or len(spaces) == 1]
    for space in busy:
        _show_space(attribution, space, everything=everything)
    if len(busy) < len(spaces):
        out.print(f"{len(spaces) - len(busy):,} address spaces in which no call made a VMA: --all shows them\n")
    _show_failures(failures, everything=everything)
    if attribution.sight is not Sight.FULL:
        out.print(
            "note: nobody observed the faults of this trace: what was written to apart is not known", style="yellow"
        )
    wrong = [program for program in replay.programs if program.mismatches]
    if wrong and attribution.sight is Sight.FULL:
        first = min(wrong, key=lambda program: program.first.n if program.first is not None else 0).first
        at = f" first at record {first.n}" if first is not None else ""
        out.print(f"note: the model went another way than the kernel,{at}; vmalab replay tells more", style="yellow")


def _has_calls(space: Space) -> bool:
    return any(maker.title != "execve" and not maker.title.startswith("fork") for maker in space.calls.values())


def _show_space(attribution: Attribution, space: Space, *, everything: bool) -> None:
    out = console()
    at, peak = space.count.peak()
    out.print(f"process {space.pid}, {escape_text(space.exe)}: records {space.first}-{space.last}", style="bold")
    out.print(f"  {space.count.last():,} VMAs at the end, {peak:,} at most (record {at})")
    out.print(f"  {spark(space.count, space.first, space.last)}", style="cyan")
    makers = space.by_call()
    total = max(1, sum(maker.weight(space.last + 1) for maker in makers))
    table = _table("share", "made", "at the peak", "at the end", "half live longer than", "made by")
    for maker in makers if everything else makers[:SHOWN]:
        life = maker.median_life()
        lives = "the end" if life is None else f"{life:,} records"
        share = f"{100 * maker.weight(space.last + 1) / total:.0f}%"
        table.add_row(share, *_numbers(maker.made, maker.curve.at(at), maker.alive), lives, maker.title)
    out.print(table)
    _show_rest(len(makers), everything)
    _show_reasons(space, at, everything=everything)
    stacks = space.by_stack()
    if stacks:
        table = _table("made", "at the end", "stack")
        for frames, maker in stacks if everything else stacks[:SHOWN]:
            table.add_row(*_numbers(maker.made, maker.alive), _stack_text(frames, everything=everything))
        out.print(table)
        _show_rest(len(stacks), everything)
    many = [(n, tally) for n, tally in space.by_record(SINGLE) if tally.made > 1 and n != space.first]
    for n, tally in many:
        alive = f"{tally.alive:,} of them to the end"
        out.print(f"  record {n} made {tally.made:,} VMAs, {alive}: {attribution.call_of(n)}", style="dim")
    out.print()


def _show_reasons(space: Space, at: int, *, everything: bool) -> None:
    """What keeps VMAs apart; what every program has in one line."""
    table = _table("at the peak", "at the end", "not merged with the VMA below because of")
    groups = [group for group in space.by_reason() if everything or group.curve.at(at) or group.curve.last()]
    listed = [group for group in groups if everything or not group.is_ordinary()]
    for group in listed if everything else listed[:SHOWN]:
        within = f", within {escape_text(group.file)}" if group.file else ""
        table.add_row(*_numbers(group.curve.at(at), group.curve.last()), f"{escape_text(group.kind)}{within}")
    rest = groups[len(listed) :]
    if rest:
        at_peak, at_end = (sum(group.curve.at(n) for group in rest) for n in (at, space.last))
        table.add_row(*_numbers(at_peak, at_end), ORDINARY, style="dim")
    console().print(table)
    _show_rest(len(listed), everything)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=True, header_style="bold")
    for title in titles[:-1]:
        table.add_column(title, justify="right")
    table.add_column(titles[-1], overflow="fold")
    return table


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _show_rest(count: int, everything: bool) -> None:
    if count > SHOWN and not everything:
        console().print(f"  ... and {count - SHOWN:,} more: --all shows them", style="dim")


def spark(curve: Curve, first: int, last: int, columns: int = SPARK, top: int = 0) -> str:
    """A curve as one line of bars, the highest value of each part; a full bar is top, or the peak."""
    top = max(1, top, curve.peak()[1])
    highest = [0] * columns
    points = curve.points()
    width = max(1, last - first + 1)
    for place, (n, value) in enumerate(points):
        until = points[place + 1][0] - 1 if place + 1 < len(points) else last
        begin = (n - first) * columns // width
        end = (max(n, until) - first) * columns // width
        for column in range(max(0, begin), min(columns - 1, end) + 1):
            highest[column] = max(highest[column], value)
    return "".join([LEVELS[(value * (len(LEVELS) - 1) + top - 1) // top] for value in highest])


def _show_failures(failures: list[Failure], *, everything: bool) -> None:
    if not failures:
        return
    out = console()
    out.print("failed calls", style="bold")
    table = _table("times", "first at", "process", "call, errno, reason and state")
    for failure in failures if everything else failures[:SHOWN]:
        why = failure.explanation()
        said = (
            f"{why.sentence} ({why.where})" if why is not None and why.where else why.sentence if why else "unexplained"
        )
        text = Text(f"{failure.shape}: {failure.errno_text()}: {said}: {failure.cause}")
        table.add_row(f"{failure.count:,}", str(failure.first), str(failure.pid), text)
    out.print(table)
    _show_rest(len(failures), everything)


def _stack_text(frames: tuple[str, ...], *, everything: bool) -> str:
    """A stack in one line, innermost first: each file by its name alone, where the one before was of another."""
    words: list[str] = []
    last = ""
    for frame in frames if everything else frames[:SHOWN_FRAMES]:
        name, _, file = frame.removesuffix(")").partition(" (")
        file = file.rpartition("/")[2]
        words.append(f"{name} ({file})" if file and file != last else name)
        last = file
    if len(words) < len(frames):
        words.append(f"{len(frames) - len(words)} more")
    return escape_text(" < ".join(words))


# -- for programs -------------------------------------------------------------------------------------


def _as_json(
    reader: TraceReader, attribution: Attribution, spaces: list[Space], failures: list[Failure]
) -> dict[str, Any]:
    replay = attribution.replay
    assert replay is not None
    return {
        "file": reader.name,
        "records": replay.n,
        "truncated": reader.truncated,
        "shortcomings": reader.shortcomings(),
        "sight": attribution.sight.value,
        "spaces": [_space_json(attribution, space) for space in spaces],
        "failures": [failure_json(failure) for failure in failures],
    }


def _space_json(attribution: Attribution, space: Space) -> dict[str, Any]:
    at, peak = space.count.peak()
    return {
        "pid": space.pid,
        "exe": space.exe,
        "first": space.first,
        "last": space.last,
        "peak": {"record": at, "vmas": peak},
        "vmas": space.count.last(),
        "count": space.count.sampled(POINTS),
        "by_call": [
            {
                "call": maker.title,
                "made": maker.made,
                "at_peak": maker.curve.at(at),
                "at_end": maker.alive,
                "vma_records": maker.weight(space.last + 1),
                "median_life": maker.median_life(),
                "count": maker.curve.sampled(POINTS),
            }
            for maker in space.by_call()
        ],
        "by_reason": [
            {
                "what": group.kind,
                "reasons": group.reasons,
                "file": group.file or None,
                "ordinary": group.is_ordinary(),
                "at_peak": group.curve.at(at),
                "at_end": group.curve.last(),
                "count": group.curve.sampled(POINTS),
            }
            for group in space.by_reason()
        ],
        "by_stack": [
            {"stack": frames, "made": maker.made, "at_end": maker.alive, "vma_records": maker.weight(space.last + 1)}
            for frames, maker in space.by_stack()
        ],
        "by_record": [
            {
                "record": n,
                "call": attribution.call_of(n),
                "made": tally.made,
                "at_end": tally.alive,
                "vma_records": tally.weight(space.last + 1),
            }
            for n, tally in space.by_record(SHOWN)
        ],
    }


def failure_json(failure: Failure) -> dict[str, Any]:
    """A failure as plain values."""
    why = failure.explanation()
    return {
        "pid": failure.pid,
        "shape": failure.shape,
        "call": call_text(failure.call),
        "times": failure.count,
        "first": failure.first,
        "last": failure.last,
        "errno": failure.errno_text(),
        "reason": why.name if why is not None else None,
        "sentence": why.sentence if why is not None else None,
        "where": why.where if why is not None else None,
        "cause": failure.cause,
    }
