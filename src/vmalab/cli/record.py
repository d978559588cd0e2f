"""Record what a program and its children do to their address spaces."""

import os
from pathlib import Path
from typing import Final

import click
import msgspec

from vmalab.cli.common import escape_text, json_option

DEFAULT: Final = "trace.jsonl.zst"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "-o", "--output", metavar="FILE", default=DEFAULT, show_default=True, help="The trace; .zst compresses it."
)
@click.option("-q", "--quiet", is_flag=True, help="No summary.")
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def record(output: str, quiet: bool, as_json: bool, command: tuple[str, ...]) -> int:
    """Run COMMAND and record its memory calls, and those of all processes it starts, to FILE.

    Exits as the program does: with its status, or 128 + N if signal N ended it; 2 if it could not be run or the trace
    not be written.  The summary goes to standard error, because standard output belongs to the program.  Recording goes
    on until every process has ended.  Ctrl-C goes to the program; what has not ended two seconds later, or at the
    second Ctrl-C, is killed, and the trace can be read all the same.
    """
    from vmalab.live.record import record as run

    summary = run(command, output, environment=_environment())
    if as_json:
        click.echo(msgspec.json.encode(summary).decode(), err=True)
    elif not quiet:
        counts = [_count(summary.processes, "process", "processes"), _count(summary.calls, "call", "calls")]
        ending = ", interrupted" if summary.interrupted else ""
        click.echo(f"vmalab: {escape_text(output)}: {', '.join(counts)}{ending}", err=True)
        for loss in summary.lost:
            click.echo(f"vmalab: incomplete: {escape_text(loss)}", err=True)
    return summary.status


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _environment() -> dict[str, str] | None:
    """The environment that vmalab was given: Python itself sets LC_CTYPE where the locale is C."""
    if "LC_CTYPE" not in os.environ:
        return None
    try:
        given = Path("/proc/self/environ").read_bytes()
    except OSError:
        return None
    if any(pair.startswith(b"LC_CTYPE=") for pair in given.split(b"\0")):
        return None
    return {name: value for name, value in os.environ.items() if name != "LC_CTYPE"}
