"""vmalab debug as a script uses it: commands in, answers out, and one line for what is wrong."""

import doctest
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest

from tests.debug.tapes import BASE, made_trace, small, write
from tests.programs import SOURCE
from vmalab.cli import main
from vmalab.trace.records import Call, Exec, Header, Record, Stack

PAGE = Path(__file__).resolve().parents[2] / "docs" / "debug.md"


@dataclass
class Done:
    """What a run of the command said."""

    returncode: int
    stdout: str
    stderr: str


class Run:
    """Runs the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, path: Path | str, *commands: str, options: Sequence[str] = ()) -> Done:
        words = [word for each in commands for word in ("-x", each)]
        with pytest.raises(SystemExit) as left:
            main(["debug", *options, "--", str(path)] if not words else ["debug", *options, *words, "--", str(path)])
        said = self._capsys.readouterr()
        return Done(int(left.value.code or 0), said.out, said.err)


@pytest.fixture
def debug(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


def test_a_merge_is_shown_before_and_after(tmp_path: Path, debug: Run) -> None:
    done = debug(small(tmp_path), "break call mprotect", "continue")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:4] == [
        "breakpoint 1: call mprotect",
        "",
        "breakpoint 1: call mprotect",
        "record 4 of 8, process 5, /tmp/\\033[31m<script>[bold]x[/bold]\\u202e",
    ]
    text = done.stdout
    assert "mprotect(0x7fffffff3000" not in text
    assert f"mprotect({BASE - 0x4000:#x}, 8192, PROT_READ|PROT_WRITE) = 0" in text
    assert "as the model predicts; 2 -> 1 VMA\n" in text
    assert "before  AABB" in text
    assert "after   BBBB" in text
    assert f"  - A {BASE - 0x4000:x}-{BASE - 0x2000:x} r--p     8K anonymous" in text
    assert f"  + B {BASE - 0x4000:x}-{BASE:x} rw-p    16K written anonymous" in text


def test_a_refusal_has_its_reason(tmp_path: Path, debug: Run) -> None:
    done = debug(small(tmp_path), "break errno any", "continue", "print reason", "print errno")
    assert "ENOMEM in the model as well: part of the range is not mapped" in done.stdout
    assert done.stdout.rstrip().endswith("NOT_MAPPED\n\nENOMEM")


def test_text_from_a_trace_stays_text(tmp_path: Path, debug: Run) -> None:
    done = debug(small(tmp_path), "goto end", "vmas", "maps", "list", "print vmas", "print file", "process", "where")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<script>[bold]x[/bold]") >= 6
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


def test_json_is_what_a_program_reads(tmp_path: Path, debug: Run) -> None:
    path = small(tmp_path)
    done = debug(path, "goto 4", "print map_count", "break maps > 1", options=["--json"])
    first, second, third = json.loads(done.stdout)
    assert first["command"] == "goto 4"
    assert first["answer"]["map_count"] == [2, 1]
    assert [each["perms"] for each in first["answer"]["before"]] == ["r--p", "rw-p"]
    assert [each["perms"] for each in first["answer"]["after"]] == ["rw-p"]
    assert first["answer"]["mismatch"] is False
    assert (second["answer"], third["answer"]["breakpoint"]) == (1, 1)


def test_commands_from_standard_input_and_a_trace_from_it(tmp_path: Path) -> None:
    path = small(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}

    def run(*arguments: str, text: str) -> str:
        command = [sys.executable, "-m", "vmalab", "debug", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, env=environment)
        return done.stdout

    script = "# a comment\n\ngoto 3\nprint n\nquit\nnonsense\n"
    assert run(str(path), "--batch", text=script).endswith("\n3\n")
    assert run("-", "-x", "goto 3", "-x", "print n", text=path.read_text()).endswith("\n3\n")


def test_the_story_of_an_address_ends_at_this_record(tmp_path: Path, debug: Run) -> None:
    path = small(tmp_path)
    where = f"why {BASE - 0x4000:x}"
    early, late = debug(path, "goto 3", where).stdout, debug(path, "goto end", where).stdout
    assert "mapped as" in early
    assert "merged: it is now in" not in early
    assert "permissions changed from r-- to rw-" in late or "merged: it is now in" in late
    assert "was never mapped in process 5 up to record 2" in debug(path, "goto 2", where).stdout


def test_the_stack_that_made_a_call(tmp_path: Path, debug: Run) -> None:
    args = [0, 4096, 3, 0x22, 0xFFFFFFFF, 0]
    frames = ["mmap+0x1c (/lib/libc.so.6)", "arena\x1b[2J+0x8 (/bin/x)", "main+0x4 (/bin/x)", "_start+0x2 (/bin/x)"]
    made: list[Record] = [
        Exec(n=0, pid=5, exe="/bin/x", vmas=[], mmap_base=BASE),
        Stack(n=0, id=3, pid=5, frames=[each.replace("\x1b", "\\033") for each in frames]),
        Call(n=0, pid=5, tid=5, call="mmap", args=args, ret=BASE - 4096, stack=3),
    ]
    path = write(tmp_path / "stack.jsonl", Header(vmalab="trace", version=1, faults="exact"), made)
    done = debug(path, "break if any('main' in frame for frame in stack)", "continue", "print len(stack)")
    assert "record 3 of 3" in done.stdout
    assert "  from mmap+0x1c (/lib/libc.so.6)\n  from arena\\033[2J+0x8" in done.stdout
    assert "1 frames more; print stack" in done.stdout
    assert done.stdout.endswith("\n4\n")


def test_quit_ends_a_script(tmp_path: Path, debug: Run) -> None:
    done = debug(small(tmp_path), "goto 2", "quit", "nonsense")
    assert done.returncode == 0
    assert "record 2 of 8" in done.stdout


def test_an_empty_command_repeats_the_last_that_moved(tmp_path: Path, debug: Run) -> None:
    done = debug(small(tmp_path), "step", "step", "list 2")
    assert "> 2" in done.stdout


def test_where_a_trace_begins_and_ends(tmp_path: Path, debug: Run) -> None:
    path = small(tmp_path)
    assert "before the first of 8 records" in debug(path, "where").stdout
    assert "before the first" in debug(path, "goto 1", "back 5").stdout
    assert "this is the last record" in debug(path, "goto end", "step").stdout
    assert "record 3 of 8" in debug(path, "where", options=["--at", "3"]).stdout


WRONG = {
    "nonsense": "there is no command nonsense; help lists them",
    "b": None,
    "goto 99": "there is no record 99: the last one is 8",
    "goto x": '"x" is no number of records',
    "goto": "no number",
    "step x": '"x" is no number',
    "delete 4": "there is no breakpoint 4; there is: none",
    "process 77": "there is no process 77 in this trace; it has: 5",
    "print": "an expression is missing",
    "print foo": "there is no name foo",
    "watch": "choose a process first",
    "vmas": "no process has acted",
    "why": "why needs an address: nothing is none",
    "why zzz": "why needs an address: zzz is none",
    "di": None,
    "\x1b[2J": "\\x1b[2J",
}


@pytest.mark.parametrize("command", [each for each in WRONG if WRONG[each]])
def test_a_wrong_command_is_one_line(tmp_path: Path, debug: Run, command: str) -> None:
    done = debug(small(tmp_path), "list 1", command, "goto 1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("vmalab: ")
    assert str(WRONG[command]) in line
    assert "exec" in done.stdout, "what was answered before is printed"
    assert "record 1 of 8" not in done.stdout, "what follows is not performed"


def test_without_a_terminal_and_without_commands(tmp_path: Path, debug: Run) -> None:
    done = debug(small(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "vmalab: there is no terminal: give --command TEXT, or --batch with commands on standard input\n"
    )
    done = debug("-", options=["--batch"])
    assert "standard input is the trace" in done.stderr


def test_a_file_that_is_no_trace_or_is_cut_off(tmp_path: Path, debug: Run) -> None:
    path = tmp_path / "x"
    path.write_text("hello")
    assert "is not a trace" in debug(path, "where").stderr
    assert "No such file" in debug(tmp_path / "missing", "where").stderr
    whole = small(tmp_path).read_bytes()
    path.write_bytes(whole[:-40])
    done = debug(path, "goto end")
    assert (done.returncode, "cut off" in done.stderr) == (0, True)
    assert "record 6 of 6" in done.stdout
    path.write_bytes(whole.splitlines(keepends=True)[0])
    assert "holds no record" in debug(path, "where").stderr
    assert "there is no record 50" in debug(small(tmp_path), "where", options=["--at", "50"]).stderr


def test_without_faults_the_unknown_is_said(tmp_path: Path, debug: Run) -> None:
    path = made_trace(tmp_path, 3, 150, faults="none")
    done = debug(path, "break if not mismatch and ret != model and call", "continue", "goto end")
    assert done.returncode == 0, done.stderr
    first = debug(path, "break call mmap", *["continue"] * 30)
    assert first.returncode == 0
    assert "(?)" in debug(path, "goto 140", "obstacles 0-7fffffffffff").stdout


def test_textual_is_imported_by_the_application_alone() -> None:
    code = "import sys, vmalab.cli.debug; sys.exit(any(each.startswith('textual') for each in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


def test_the_application_in_a_real_terminal(tmp_path: Path) -> None:
    """It draws the trace on a pseudo-terminal of 80 columns and 24 rows, and leaves it at q."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "PYTHONPATH": str(SOURCE), "COLUMNS": "80", "LINES": "24"}
        os.execv(sys.executable, [sys.executable, "-m", "vmalab", "debug", str(small(tmp_path)), "-x", "goto 4"])
    seen = b""
    try:
        while b"before  " not in seen:
            seen += os.read(terminal, 65536)
        os.write(terminal, b"q")
        while True:
            seen += os.read(terminal, 65536)
    except OSError:
        pass
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"as the model predicts" in seen


DEMO = files("vmalab").joinpath("data/demo.jsonl.zst")


def test_the_examples_of_the_page(debug: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of docs/debug.md prints what the page shows."""
    (tmp_path / "demo.jsonl.zst").write_bytes(DEMO.read_bytes())
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```console\n\$ vmalab debug (.*?)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    for command, expected in blocks:
        name, *words = shlex.split(command)
        assert debug(name, *words[1::2]).stdout == expected, command


def test_the_python_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo.jsonl.zst").write_bytes(DEMO.read_bytes())
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert (failed, tried) == (0, 9)
