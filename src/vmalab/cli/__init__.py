"""The command line: finds the commands, and turns every failure into one line and an exit status.

A command is a module beside this one that holds a click command of its own name (``record.py`` holds ``record``; a name
that is a keyword ends in an underscore, as in ``import_.py``).  The first line of the module's docstring is what
``vmalab --help`` says about it.  It returns its exit status, None being 0: 0 is fine, 1 is a difference or a failed
test, 2 is a wrong request or input, which it raises as a VmalabError.
"""

# ruff: noqa: E402
import signal
from contextlib import suppress

_INTERRUPT = signal.getsignal(signal.SIGINT)
if _INTERRUPT is signal.default_int_handler:
    # While the rest is imported Ctrl-C ends the command as it ends other programs, without a traceback.
    with suppress(ValueError):  # imported by another thread than the main one
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import ast
import importlib
import keyword
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from vmalab.errors import VmalabError
from vmalab.text import escape_text

WRONG: Final = 2
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
"""What a shell shows for a program that SIGPIPE ended."""

_ORDER: Final = ("demo", "record", "import", "replay", "explain", "why", "report", "debug", "test", "fuzz")
"""The order in which a user meets the commands; all others follow by name."""


class _Commands(click.Group):
    """The commands as modules: none is imported before it is wanted, so one that cannot be spares the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        here = Path(__file__).parent
        names = {path.stem.rstrip("_").replace("_", "-") for path in here.glob("[a-z]*.py")} - {"common"}
        return [name for name in _ORDER if name in names] + sorted(names.difference(_ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        name = _module(cmd_name)
        command: object = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, _summary(name)) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            status: object = super().invoke(ctx)
            sys.stdout.flush()
        except (click.exceptions.Exit, click.UsageError):
            raise
        except BrokenPipeError:
            _pipe_closed()
        except (KeyboardInterrupt, click.Abort):
            _fail("interrupted", INTERRUPTED)
        except Exception as error:
            if os.environ.get("VMALAB_DEBUG", "0") not in ("", "0"):
                raise
            _fail(_message(error))
        if isinstance(status, int):
            ctx.exit(status)
        return status


def _module(name: str) -> str:
    """The module of a command, and the command's name in it."""
    module = name.replace("-", "_")
    return module + "_" if keyword.iskeyword(module) else module


def _message(error: Exception) -> str:
    """One line for a failure."""
    if isinstance(error, VmalabError):
        return str(error)
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        return ": ".join([*names, error.strerror])
    if isinstance(error, MemoryError):
        return "out of memory"
    kind = type(error).__name__
    return f"internal error: {kind}: {error} (VMALAB_DEBUG=1 shows the traceback; please report it)"


def _fail(message: str, status: int = WRONG) -> NoReturn:
    click.echo(f"vmalab: {escape_text(message)}", err=True)
    raise click.exceptions.Exit(status)


def _pipe_closed() -> NoReturn:
    """Nobody reads the output any more.  What is still in the buffer goes nowhere, so that the exit says nothing."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = sys.__stderr__
    raise click.exceptions.Exit(PIPE_CLOSED)


def _summary(name: str) -> str:
    """The first line of the docstring of a command's module, read without importing it."""
    path = Path(__file__).parent / (_module(name) + ".py")
    try:
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
    return text.partition("\n")[0].rstrip(".")


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    from vmalab._form import form

    try:
        number = version("vmalab")
    except PackageNotFoundError:
        number = "(not installed)"
    click.echo(f"vmalab {number} ({form()} core)")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """The Linux address space: record a program, replay it on a model of the kernel, and ask why.

    Exit status: 0 is fine, 1 is a difference or a failed test, 2 is a wrong request or input.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if _INTERRUPT is signal.default_int_handler:
    with suppress(ValueError):
        signal.signal(signal.SIGINT, _INTERRUPT)
