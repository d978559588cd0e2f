"""Tell the story of one address: mapped by, split by, flags changed by, merged by, unmapped by."""

from __future__ import annotations

from typing import Any

import click

from vmalab.calls import Call
from vmalab.cli.common import (
    console,
    escape_text,
    file_argument,
    json_option,
    print_json,
    progress,
    warn_of_shortcomings,
)
from vmalab.errors import InputError
from vmalab.explain.story import Line, Story
from vmalab.text import address_of
from vmalab.trace import records
from vmalab.trace.file import TraceReader, read_trace
from vmalab.trace.replay import Replay
from vmalab.trace.show import call_text

SHOWN_PROCESSES = 8


def _parse_address(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """An address as maps shows it, with or without 0x; decimal if it would lie beyond all memory in hexadecimal."""
    addr = address_of(value)
    if addr is None:
        raise click.BadParameter(
            f"{escape_text(value, 40)} is no address: give it in hexadecimal, such as 7f12a0000000, or decimal"
        )
    return addr


@click.command()
@file_argument
@click.argument("address", callback=_parse_address)
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="In this process only.")
@json_option
def why(file: str, address: int, pid: int | None, as_json: bool) -> int:
    """Tell what happened to ADDRESS in a trace: mapped, split, changed, merged, moved, unmapped, and by which call.

    ADDRESS is hexadecimal as in /proc/PID/maps, or decimal.  FILE may be - for standard input.
    """
    reader = read_trace(file)
    lines, seen = tell(reader, address, quiet=as_json)
    had = sorted({each for line in lines for each in line.pids})
    if pid is not None:
        if pid not in seen:
            listed = ", ".join(map(str, sorted(seen)[:20])) or "none"
            raise InputError(f"{reader.name}: there is no process {pid} in this trace; it has: {listed}")
        lines = [line for line in lines if pid in line.pids]
    if as_json:
        print_json([_as_json(line) for line in lines])
    else:
        _show(address, lines, pid, had)
        warn_of_shortcomings(reader)
    return 0


def _show(address: int, lines: list[Line], pid: int | None, had: list[int]) -> None:
    out = console()
    if not lines and pid is None:
        out.print(f"{address:#x} was never mapped")
    elif not lines:
        others = f"; these had: {', '.join(map(str, had[:20]))}" if had else ""
        out.print(f"{address:#x} was never mapped in process {pid}{others}")
    last: tuple[int, Call | None] = (-1, None)
    chosen = had if pid is not None else had[:SHOWN_PROCESSES]
    for line in lines:
        if not line.pids.intersection(chosen):
            continue
        head = f"{line.n:>7}  process {line.pid}  "
        if line.call is None:
            out.print(f"{head}{escape_text(line.what)}")
            continue
        if (line.n, line.call) != last:
            out.print(f"{head}{call_text(line.call)}", style="dim")
        out.print(f"         {escape_text(line.what)}")
        last = (line.n, line.call)
    if len(chosen) < len(had):
        more = ", ".join(map(str, had[len(chosen) :][:20]))
        out.print(f"... and {len(had) - len(chosen):,} more processes had it mapped: --pid shows one of them ({more})")


def tell(reader: TraceReader, address: int, *, quiet: bool = False) -> tuple[list[Line], set[int]]:
    """Replay a trace and write down what happens to an address; and all processes of the trace."""
    story = Story(address)
    replay = Replay(reader.header, observer=story)
    story.replay = replay
    seen: set[int] = set()
    with progress("replay", reader.size, quiet=quiet) as update:
        for record in reader:
            story.step(record)
            if isinstance(record, records.Exec | records.Fork):
                seen.add(record.pid)
            if record.n % 512 == 0:
                update(reader.bytes_read)
    return story.lines, seen


def _as_json(line: Line) -> dict[str, Any]:
    call = call_text(line.call) if line.call is not None else None
    return {"record": line.n, "pid": line.pid, "pids": sorted(line.pids), "what": line.what, "call": call}
