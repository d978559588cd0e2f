"""Tell the story of one address: mapped by, split by, flags changed by, merged by, unmapped by."""

from __future__ import annotations

from typing import Any

import click

from vmalab.cli.common import console, escape_text, file_argument, json_option, print_json, progress
from vmalab.errors import InputError
from vmalab.explain.story import Line, Story, describe
from vmalab.trace import records
from vmalab.trace.file import TraceReader, read_trace
from vmalab.trace.replay import Replay
from vmalab.trace.show import call_text


def _parse_address(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """An address in hexadecimal, with or without 0x."""
    try:
        addr = int(value, 16)
    except ValueError:
        addr = -1
    if not 0 <= addr < 1 << 64:
        raise click.BadParameter(f"{escape_text(value)} is no address: give it in hexadecimal, such as 7f12a0000000")
    return addr


@click.command()
@file_argument
@click.argument("address", callback=_parse_address)
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="In this process only.")
@json_option
def why(file: str, address: int, pid: int | None, as_json: bool) -> int:
    """Tell what happened to ADDRESS (hexadecimal) in a trace.

    FILE may be - for standard input.
    """
    reader = read_trace(file)
    lines = tell(reader, address, quiet=as_json)
    pids = {line.pid for line in lines}
    if pid is not None:
        lines = [line for line in lines if line.pid == pid]
        if not lines and pids:
            raise InputError(
                f"{reader.name}: process {pid} never had {address:#x} mapped; "
                f"these had: {', '.join(map(str, sorted(pids)))}"
            )
    if as_json:
        print_json([_as_json(line) for line in lines])
        return 0
    out = console()
    if not lines:
        out.print(f"{address:#x} was never mapped")
    for line in lines:
        out.print(f"{line.n:>7}  process {line.pid}  {escape_text(line.what)}")
        if line.call is not None:
            out.print(f"         {call_text(line.call)}", style="dim")
    return 0


def tell(reader: TraceReader, address: int, *, quiet: bool = False) -> list[Line]:
    """Replay a trace and write down what happens to an address."""
    story = Story(address)
    replay = Replay(reader.header, observer=story)
    story.replay = replay
    with progress("replay", reader.size, quiet=quiet) as update:
        for record in reader:
            if isinstance(record, records.Exit):
                process = replay.process(record.pid)
                vma = process.mm.vma_lookup(address) if process is not None else None
                replay.step(record)
                if vma is not None:
                    story.tell("the process exits")
                continue
            replay.step(record)
            if isinstance(record, records.Exec):
                process = replay.process(record.pid)
                vma = process.mm.vma_lookup(address) if process is not None else None
                if vma is not None:
                    story.tell(f"mapped by execve as {describe(vma)}")
            if record.n % 512 == 0:
                update(reader.bytes_read)
    return story.lines


def _as_json(line: Line) -> dict[str, Any]:
    call = call_text(line.call) if line.call is not None else None
    return {"record": line.n, "pid": line.pid, "what": line.what, "call": call}
