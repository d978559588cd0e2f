"""What the commands share: options, output for people and for programs, progress."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vmalab.errors import InputError
from vmalab.text import escape_text
from vmalab.trace.file import TraceReader

__all__ = [
    "FILE",
    "console",
    "escape_text",
    "file_argument",
    "json_option",
    "print_json",
    "progress",
    "semantics_option",
    "warn_of_shortcomings",
]

FILE: Final = click.Path(allow_dash=True)
"""A file to read, or ``-`` for standard input.  Whether it can be read is found by reading it."""

file_argument = click.argument("file", metavar="FILE", type=FILE)
"""The argument ``file``."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
"""The option ``--json``, as the parameter ``as_json``."""

semantics_option = click.option(
    "--semantics", metavar="FILE", type=FILE, help="Behaviours of another kernel, as vmalab probe -o writes them."
)
"""The option ``--semantics``: a file that `vmalab.behaviours.read_semantics` reads."""

_PIPE_WIDTH: Final = 200
"""Columns where the output is no terminal: nothing is wrapped that a program may read line by line."""


def console(*, stderr: bool = False) -> Console:
    """A console for standard output, or standard error.

    Without colours where NO_COLOR is set or the output is no terminal.  Markup, emoji codes and highlighting are off:
    what is printed is shown as it is.  For colours use styles and rich's Text.  Text from outside still has to go
    through `escape_text`.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, width=width)


def warn_of_shortcomings(reader: TraceReader) -> None:
    """Say on standard error what a trace that has been read lacks, if anything."""
    for each in reader.shortcomings():
        click.echo(f"vmalab: warning: {each}", err=True)


def keep_what_is_read(output: str, *given: str) -> None:
    """Refuse to write to a file that is read: what it held would be gone.  "-" is a stream, and no file."""
    for name in given:
        try:
            same = "-" not in (output, name) and os.path.samefile(output, name) and os.path.isfile(name)
        except (OSError, ValueError):
            continue
        if same:
            raise InputError(f"{escape_text(output)} is what is read, and would be lost: name another with -o")


def print_json(value: Any) -> None:
    """Print a value as JSON, in ASCII, so that text from outside cannot do anything to a terminal.

    Takes what msgspec can turn into plain values: dictionaries, lists, dataclasses, its own structures.
    """
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2).replace("\x7f", "\\u007f"))


@contextmanager
def progress(description: str, total: int | None, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error while the block runs; yields a function to call with how far it is.

    Shown only on a terminal, and not when quiet (with ``--json``).  Without a total it only shows that it moves.  The
    function costs some microseconds: call it every few hundred steps.
    """
    output = console(stderr=True)
    if quiet or not output.is_terminal or output.is_dumb_terminal:
        yield _ignore
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output, transient=True) as bar:
        task = bar.add_task(escape_text(description), total=total)

        def update(completed: int) -> None:
            bar.update(task, completed=completed)

        yield update


def _ignore(completed: int) -> None:
    """Progress that nobody sees."""
