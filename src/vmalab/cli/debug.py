"""Go through a trace step by step, forward and back, in the terminal or by a script."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from vmalab.behaviours import read_semantics
from vmalab.cli.common import console, file_argument, json_option, print_json, progress, semantics_option
from vmalab.debug.commands import Answer, Debugger
from vmalab.debug.tape import Tape
from vmalab.debug.timeline import Timeline
from vmalab.errors import InputError
from vmalab.trace.file import read_trace


@click.command()
@file_argument
@click.option("--command", "-x", "commands", multiple=True, metavar="TEXT", help="Perform a command first; repeatable.")
@click.option("--batch", is_flag=True, help="No application: print the answers; commands from standard input if none.")
@click.option("--at", type=click.IntRange(min=0), metavar="N", help="Begin after record N.")
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="Go through the records of this process alone.")
@semantics_option
@json_option
def debug(
    file: str,
    commands: Sequence[str],
    batch: bool,
    at: int | None,
    pid: int | None,
    semantics: str | None,
    as_json: bool,
) -> int:
    """Go through a trace step by step, forward and back.

    In a terminal this is an application; press F1 or type help in it.  With --batch, with --json, or where there is no
    terminal, the commands are performed and their answers printed: step, back, continue, reverse, goto, break, ...
    FILE may be - for standard input.
    """
    batch = batch or as_json or (bool(commands) and not _has_terminal(file))
    if not batch and not _has_terminal(file):
        raise InputError("there is no terminal: give --command TEXT, or --batch with commands on standard input")
    if batch and not commands and file == "-":
        raise InputError("standard input is the trace: give the commands with --command TEXT")
    debugger = _open(file, at, pid, semantics, quiet=as_json)
    if batch:
        _perform_all(debugger, commands or _read_commands(), as_json)
        return 0
    for command in commands:
        debugger.execute(command)
    return _run_application(debugger, file)


def _has_terminal(file: str) -> bool:
    # The application draws on standard error.
    return (
        sys.stdout.isatty()
        and sys.stderr.isatty()
        and (sys.stdin.isatty() or file == "-")
        and os.environ.get("TERM", "dumb") != "dumb"
    )


def _open(file: str, at: int | None, pid: int | None, semantics: str | None, *, quiet: bool) -> Debugger:
    kernel = read_semantics(semantics) if semantics is not None else None
    reader = read_trace(file)
    with progress("read", reader.size, quiet=quiet) as update:
        tape = Tape(reader, update, wanted=at)
    if not len(tape):
        raise InputError(f"{tape.name} holds no record to go through")
    for each in tape.shortcomings:
        click.echo(f"vmalab: warning: {each}", err=True)
    debugger = Debugger(Timeline(tape, kernel))
    out = console()
    debugger.width = out.width if out.is_terminal else 100
    if pid is not None:
        debugger.execute(f"process {pid}")
    if at is not None:
        with progress("replay", len(tape), quiet=quiet) as update:
            debugger.goto(at, update)
    return debugger


def _read_commands() -> Iterable[str]:
    return (line.rstrip("\n") for line in sys.stdin)


def _perform_all(debugger: Debugger, commands: Iterable[str], as_json: bool) -> None:
    """Perform commands one by one; what was answered before one that is wrong is printed all the same."""
    answers: list[dict[str, Any]] = []
    first = True
    try:
        for command in commands:
            with progress(command, len(debugger.tape), quiet=as_json) as update:
                answer = debugger.execute(command, update) if command.strip() else Answer()
            if answer.over:
                break
            answers.append({"command": command, "answer": answer.data})
            if not as_json and answer.lines:
                _print(answer, first)
                first = False
    finally:
        if as_json:
            print_json(answers)


def _print(answer: Answer, first: bool) -> None:
    out = console()
    if not first:
        out.print()
    for line in answer.lines:
        out.print(line, soft_wrap=True)


def _run_application(debugger: Debugger, file: str) -> int:
    from vmalab.debug.app import DebuggerApp

    if file == "-":
        # The trace was read from standard input; the keyboard is the terminal itself.
        terminal = os.open("/dev/tty", os.O_RDWR)
        os.dup2(terminal, 0)
        os.close(terminal)
    DebuggerApp(debugger).run()
    return 0
