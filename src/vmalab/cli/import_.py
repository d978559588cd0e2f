"""Make a trace of a log that strace or perf has written, or of a syzkaller program."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from vmalab.cli.common import FILE, console, escape_text, json_option, keep_what_is_read, print_json, progress
from vmalab.cli.record import DEFAULT
from vmalab.errors import InputError

if TYPE_CHECKING:
    from vmalab.trace.import_log import Imported
    from vmalab.trace.records import Exec

KINDS: Final = ("auto", "strace", "perf-trace", "perf-script", "syzkaller")


@click.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@click.option(
    "-o", "--output", metavar="OUT", default=DEFAULT, show_default=True, help="The trace; .zst compresses it."
)
@click.option("--format", "kind", type=click.Choice(KINDS), default="auto", show_default=True, help="What FILE is.")
@click.option(
    "--maps",
    multiple=True,
    metavar="[PID=]FILE",
    help="What was mapped when the log begins: a copy of /proc/PID/smaps or maps; without PID, of the first process.",
)
@click.option(
    "--separate", is_flag=True, help="Tasks that the log does not show being made are processes, not threads."
)
@click.option(
    "--max-map-count", type=click.IntRange(1, 2**31 - 1), metavar="N", help="vm.max_map_count of the machine."
)
@json_option
def import_(
    files: tuple[str, ...],
    output: str,
    kind: str,
    maps: tuple[str, ...],
    separate: bool,
    max_map_count: int | None,
    as_json: bool,
) -> int:
    """Read a log and write a trace that the other commands read.

    FILE is what strace, perf trace or perf script has written, or a syzkaller program; several are those of one strace
    -ff.  - is standard input, and gzip is unpacked.  What an exact replay would need and the log does not hold is said,
    and so is what was taken for granted; results that depend on it are unknown, not wrong.
    """
    from vmalab.trace.import_log import import_log

    keep_what_is_read(output, *files, *[_parted(given)[1] for given in maps])
    first = dict([_first(given) for given in maps])
    with progress("import", _size(files), quiet=as_json) as update:
        done = import_log(
            list(files),
            output,
            kind=kind,
            first=first,
            together=not separate,
            max_map_count=max_map_count,
            update=update,
        )
    if as_json:
        print_json({"output": output, **msgspec.to_builtins(done)})
    else:
        _show(done, output)
    return 0


def _size(files: tuple[str, ...]) -> int | None:
    """The bytes that there are to read; None where that is not known."""
    path = Path(files[0])
    return path.stat().st_size if len(files) == 1 and path.is_file() and path.suffix != ".gz" else None


def _parted(given: str) -> tuple[int, str]:
    """A process (0: the first) and the file that has its VMAs."""
    head, equals, rest = given.partition("=")
    return (int(head), rest) if equals and head.isascii() and head.isdigit() and len(head) < 8 else (0, given)


def _first(given: str) -> tuple[int, Exec]:
    """A process (0: the first) and what it had mapped."""
    from vmalab.live.snapshot import guess_flags, read_snapshot

    pid, path = _parted(given)
    try:
        found = read_snapshot(path)
        if found is None and path != "-":
            os.stat(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{escape_text(path)}: cannot be read: {why}") from None
    if found is None:
        raise InputError(f"{escape_text(path)} is no copy of /proc/PID/smaps or /proc/PID/maps")
    process = found.process
    process.exe = ""
    if not found.whole:
        guess_flags(process.vmas)
    return pid, process


def _show(done: Imported, output: str) -> None:
    out = console(stderr=output == "-")
    told = "" if done.chosen == "given" else ", as its lines show"
    out.print(f"{done.file} is of {_TITLES[done.format]}{told}")
    programs = f"{done.programs:,} {'program' if done.programs == 1 else 'programs'}"
    stacks = f", {done.with_stack:,} with their stacks" if done.with_stack else ""
    out.print(f"{escape_text(output)}: {programs}, {done.calls:,} calls{stacks}, from {done.lines:,} lines")
    passed = [f"{count:,} {kind}" for kind, count in sorted(done.passed.items())]
    if done.others:
        passed.insert(0, f"{done.others:,} calls that are not about memory")
    if passed:
        out.print(f"of no use: {escape_text('; '.join(passed))}")
    for sentence in done.missing:
        out.print(f"missing: {escape_text(sentence)}", style="yellow")
    for sentence in done.assumed:
        out.print(f"assumed: {escape_text(sentence)}", style="yellow")
    if done.misread:
        out.print(f"{done.misread:,} {'line was' if done.misread == 1 else 'lines were'} not understood", style="red")
        for problem in done.problems:
            where = f"{problem.file}: " if problem.file else ""
            out.print(f"  {where}line {problem.line}: {problem.why}: {problem.text}")
        if done.misread > len(done.problems):
            out.print(f"  ... and {done.misread - len(done.problems):,} more")


_TITLES: Final = {
    "strace": "strace",
    "perf-trace": "perf trace",
    "perf-script": "perf script",
    "syzkaller": "syzkaller",
}
