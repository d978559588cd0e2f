"""What every process, device and pipe sees of the same pages, step by step, and where they part."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmalab.cli.common import escape_text, file_argument, json_option, print_json, progress
from vmalab.errors import InputError
from vmalab.text import count_text
from vmalab.trace.file import STDIN_NAME, looks_like_trace, read_trace

if TYPE_CHECKING:
    from vmalab.explain.ledger import Ledger, Step
    from vmalab.explain.trace_ledger import TraceLedger, Where

COULD_BE_CHOSEN = 30
"""How many VMAs are listed whose pages could be shown."""


def _where(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[Where]:
    from vmalab.explain.trace_ledger import where

    try:
        return [where(text) for text in value]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@file_argument
@click.option(
    "--page",
    "wanted",
    callback=_where,
    multiple=True,
    metavar="WHERE",
    help="Of a trace: show these pages: an address, START-END, or a VMA's name; may be repeated.",
)
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="Of a trace: pages that this process touched.")
@click.option(
    "--most", type=click.IntRange(min=1, max=1000), metavar="N", help="Of a trace: show N pages.  [default: 8]"
)
@json_option
def ledger(file: str, wanted: list[Where], pid: int | None, most: int | None, as_json: bool) -> int:
    """Show after each step who sees which page, and where they part.

    FILE is a trace, or a script; - is standard input.

    Of a trace made with BPF each record is shown that changes what somebody sees of the chosen pages; where none are
    chosen, of those that processes shared after a fork and that copy-on-write then parted.  Contents and pins are not
    in a trace.

    \b
    A line of a script is a step of processes, devices and pipes in the model:
      kernel pins_break_cow = no       a behaviour of the kernel, before all steps
      file f "old"                     a file of one page
      show anon_vma                    say how each page is found from the memory's side
      show soft-dirty                  track what is written to; P: clear_refs 4 begins anew
      P: map buf 1 [f] [ro] [shared] [thp] [hugetlb]
      P: write buf "text"              also: read, unmap, protect, advise, poke
      P: fork C                        also: exit
      P: migrate buf                   its page is being moved, until: P: settle buf [failed]
      dev: pin P buf [write] [force]   a long-term pin; also: splice, fixed
      dev: release                     also: read, write "text"

    Where somebody holds another page than its owner has, or sees what it should not, the line begins with "!".
    Exits with 1 if there is such a line.
    """
    from vmalab.explain.script import read_script

    with _local(file) as path:
        name = STDIN_NAME if file == "-" else escape_text(file)
        if _is_trace(path, name):
            found = _of_trace(path, name, wanted, pid, most, quiet=as_json)
            return _show_trace(found, as_json)
        if wanted or pid is not None or most is not None:
            raise click.UsageError("--page, --pid and --most choose within a trace: they do not go with a script")
        return _show_script(read_script(path, name), as_json)


@contextmanager
def _local(file: str) -> Iterator[str]:
    """The path of a file that can be read more than once: standard input, or a pipe, is copied to one."""
    if file != "-" and not Path(file).is_fifo():
        yield file
        return
    with ExitStack() as stack:
        source = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="vmalab-"))
        shutil.copyfileobj(source, copy)
        copy.flush()
        yield copy.name


def _is_trace(path: str, name: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return looks_like_trace(file.read(4))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{name}: cannot be read: {escape_text(reason)}") from None


def _of_trace(
    path: str, name: str, wanted: list[Where], pid: int | None, most: int | None, *, quiet: bool
) -> TraceLedger:
    from vmalab.explain.trace_ledger import read_ledger

    with read_trace(path, name) as reader:
        size = reader.size
    passes = 0

    def opener() -> Any:
        nonlocal passes
        passes += 1
        return read_trace(path, name)

    with progress("ledger", None if size is None else 2 * size, quiet=quiet) as update:
        return read_ledger(
            opener, wanted, pid=pid, most=most or 8, update=lambda done: update(done + (passes - 1) * (size or 0))
        )


def _show_trace(found: TraceLedger, as_json: bool) -> int:
    from vmalab.explain.ledger import lines_of

    alarms = any(step.alarms() for step in found.steps)
    if as_json:
        pages = [
            {"address": f"{page.addr:#x}", "name": page.name, "pids": sorted(page.pids), "copies": page.parted}
            for page in found.pages
        ]
        could = [dict(zip(("name", "vma", "pid", "pages"), each, strict=True)) for each in found.could_be_chosen()]
        print_json(
            {
                "pages": pages,
                "more": found.more,
                "steps": _steps(found.steps),
                "parted": alarms,
                "could_be_chosen": could,
                "notes": found.notes,
            }
        )
        return 1 if alarms else 0
    for note in found.notes:
        click.echo(f"note: {note}")
    for page in found.pages:
        who = ", ".join(map(str, sorted(page.pids)))
        name = f" {escape_text(page.name)}" if page.name else ""
        click.echo(f"page {page.addr:x} in {page.vma}{name}: process {who}, {count_text(page.parted, 'parting')}")
    for step in found.steps:
        click.echo("\n".join(lines_of(step)))
    if found.more:
        click.echo(f"... and {count_text(found.more, 'more page')}: --most shows more, --page others")
    if not found.pages:
        click.echo(_nothing(found))
    return 1 if alarms else 0


def _nothing(found: TraceLedger) -> str:
    """Why there is nothing to see, and what could be chosen instead."""
    what = "no touched page is meant" if found.chosen else "no page was shared after a fork and then parted"
    could = found.could_be_chosen()
    if not could:
        return f"{what}, and the trace touches none at all"
    lines = [f"{what}; --page can choose among:"]
    for name, vma, pid, count in could[:COULD_BE_CHOSEN]:
        lines.append(f"  {vma:<28} {count_text(count, 'page'):<12} process {pid:<8} {escape_text(name)}".rstrip())
    if len(could) > COULD_BE_CHOSEN:
        lines.append(f"  ... and {count_text(len(could) - COULD_BE_CHOSEN, 'more VMA')} (--json lists all)")
    return "\n".join(lines)


def _steps(steps: list[Step]) -> list[dict[str, Any]]:
    return [
        {
            "number": step.number,
            "text": step.text,
            "said": step.said,
            "sights": [
                {**vars(sight), "content": None if sight.content is None else sight.content.hex()}
                for sight in step.sights
            ],
        }
        for step in steps
    ]


def _show_script(found: Ledger, as_json: bool) -> int:
    from vmalab.explain.ledger import lines_of

    alarms = any(step.alarms() for step in found.steps)
    if as_json:
        print_json({"steps": _steps(found.steps), "parted": alarms})
    else:
        click.echo("\n".join([line for step in found.steps for line in lines_of(step)]))
    return 1 if alarms else 0
