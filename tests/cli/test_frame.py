"""The frame of the command line: what exists is listed, and each failure is one line and an exit status."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from vmalab import cli
from vmalab.cli import common, main
from vmalab.errors import InputError, VmalabError
from vmalab.text import escape_text


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[int, str]]:
    """Runs a function as the command ``it``; gives the exit status and what was written to standard error."""

    def runner(body: Callable[[], Any]) -> tuple[int, str]:
        command = click.command("it")(body)
        monkeypatch.setattr(type(main), "get_command", lambda *_: command)
        result = CliRunner().invoke(main, ["it"])
        return result.exit_code, result.stderr

    return runner


def _raise(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


Run = Callable[[Callable[[], Any]], tuple[int, str]]


def test_ctrl_c_while_the_command_is_imported(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n")
    source = str(Path(cli.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{source}"}
    done = subprocess.run([sys.executable, "-m", "vmalab"], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
    code = "import signal, vmalab.cli; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"True\n"


@pytest.mark.parametrize(("value", "status"), [(None, 0), (0, 0), (1, 1), (2, 2)])
def test_a_command_returns_its_status(run: Run, value: int | None, status: int) -> None:
    assert run(lambda: value) == (status, "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a.trace: line 3: nonsense"), "a.trace: line 3: nonsense"),
        (VmalabError("two\nlines \x1b[31mred\u202e"), r"two\x0alines \x1b[31mred\u202e"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a b"), "a b: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", b"a"), "a: Permission denied"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a: b: Invalid cross-device link"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (click.ClickException("cannot"), "cannot"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError("odd\nthing"),
            r"internal error: RuntimeError: odd\x0athing (VMALAB_DEBUG=1 shows the traceback; please report it)",
        ),
    ],
)
def test_a_failure_is_one_line(run: Run, error: Exception, line: str) -> None:
    assert run(_raise(error)) == (2, f"vmalab: {line}\n")


def test_an_interrupt_is_one_line(run: Run) -> None:
    status, text = run(_raise(KeyboardInterrupt()))
    assert (status, text.strip()) == (130, "vmalab: interrupted")


def test_a_closed_pipe_says_nothing(run: Run) -> None:
    assert run(_raise(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == (141, "")


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMALAB_DEBUG", "1")
    monkeypatch.setattr(type(main), "get_command", lambda *_: click.command("it")(_raise(RuntimeError("odd"))))
    assert isinstance(CliRunner().invoke(main, ["it"]).exception, RuntimeError)


def _vmalab(*arguments: str, code: str = "", **more: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "vmalab"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=60, **more)


def test_help_lists_what_there_is() -> None:
    done = _vmalab("--help")
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(cli.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "common"}
    for name in names:
        assert f"  {name.rstrip('_').replace('_', '-')} " in done.stdout
    assert "  common" not in done.stdout


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from vmalab.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith(('vmalab.cli.', 'msgspec', 'rich', 'zstandard'))])"
    )
    assert _vmalab(code=code).stdout.splitlines()[-1] == "[]"


def test_every_command_has_help() -> None:
    context = click.Context(main)
    for name in main.list_commands(context):
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0, name
        assert result.stdout.startswith("Usage: ")


def test_version_tells_the_form() -> None:
    environment = {**os.environ, "VMALAB_PURE": "1"}
    done = _vmalab("--version", env=environment)
    assert done.stdout.startswith("vmalab ")
    assert done.stdout.endswith(" (interpreted core)\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["no/pe"], ["common"], ["__init__"]])
def test_a_wrong_request_is_status_2(arguments: list[str]) -> None:
    done = _vmalab(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: No such" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away() -> None:
    code = (
        "import click; from vmalab.cli import main\n"
        "type(main).get_command = lambda *_: click.command('it')(lambda: print('x\\n' * 999999))\n"
        "main(['it'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


def test_output_that_the_encoding_lacks_is_escaped() -> None:
    code = (
        "import click; from vmalab.cli import main\n"
        "type(main).get_command = lambda *_: click.command('it')(lambda: print('\\u2026'))\n"
        "main(['it'])"
    )
    done = _vmalab(code=code, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u2026\n", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain /path-with_[brackets] \\012", "plain /path-with_[brackets] \\012"),
        ("\x1b[2J\x07\x7f\x9b", r"\x1b[2J\x07\x7f\x9b"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\u202egpj.exe\u2066\u200b\ufeff", r"\u202egpj.exe\u2066\u200b\ufeff"),
        ("\u2028\udcff\U000e0041", r"\u2028\udcff\U000e0041"),
        ("größe 数", "größe 数"),
    ],
)
def test_text_from_outside_is_made_visible(text: str, shown: str) -> None:
    assert escape_text(text) == shown
    assert escape_text(shown) == shown


def test_long_text_is_cut() -> None:
    assert escape_text("abcdef", 3) == "abc…"
    assert escape_text("abc", 3) == "abc"


def test_the_console_shows_markup_as_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    common.console().print("[bold]x[/bold] :smile: " + "y" * 150)
    assert capsys.readouterr().out == "[bold]x[/bold] :smile: " + "y" * 150 + "\n"


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"path": "a\x1b\x7f\x9b\u202e", "n": [1, None]}
    common.print_json(value)
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x7f" not in text
    assert json.loads(text) == value


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with common.progress("reading", 10) as update:
        update(5)
    assert capsys.readouterr() == ("", "")


def test_progress_moves_on_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    code = (
        "import time; from vmalab.cli.common import progress\n"
        "with progress('reading', 100) as update:\n"
        "    for i in range(0, 101, 25): update(i); time.sleep(0.15)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, check=True, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError:
        pass
    os.close(ours)
    assert done.stdout == b""
    assert b"25%" in shown
    assert b"75%" in shown
