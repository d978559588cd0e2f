"""What is no trace, or not a whole one, through every command that reads one: one line, exit status 2, no traceback."""

import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import zstandard

COMMANDS = {
    "replay": ["replay", "FILE"],
    "replay --json": ["replay", "--json", "FILE"],
    "explain": ["explain", "FILE"],
    "why": ["why", "FILE", "0x1000"],
    "report": ["report", "FILE", "-o", "-"],
}


def _trace() -> list[bytes]:
    """The lines of the trace that ships with the package."""
    with as_file(files("vmalab") / "data/demo.jsonl.zst") as path, path.open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file).read().splitlines(keepends=True)


def _vmalab(arguments: list[str], data: bytes | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vmalab", *arguments]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=120)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def _bad_files() -> dict[str, tuple[bytes, str]]:
    lines = _trace()
    call = next(number for number, line in enumerate(lines) if b'"args":[' in line)
    return {
        "nothing": (b"", "is empty, not a trace"),
        "text": (b"root:x:0:0\n", "is not a trace"),
        "program": (b"\x7fELF\x02\x01\x01" + bytes(4096), "is not a trace"),
        "newer": (
            b"".join([lines[0].replace(b'"version":1', b'"version":2'), *lines[1:]]),
            "was made by a newer vmalab",
        ),
        "garbage": (
            b"".join([*lines[:4], b"gar\x1b[31mbage\n", *lines[4:]]),
            "line 5 (record 4): the line is not JSON",
        ),
        "argument": (
            b"".join([*lines[:call], lines[call].replace(b'"args":[', b'"args":[-1,'), *lines[call + 1 :]]),
            f"line {call + 1} (record {call}): ",
        ),
    }


BAD = _bad_files()


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("kind", sorted(BAD))
def test_it_is_refused_in_one_line(command: str, kind: str, tmp_path: Path) -> None:
    data, message = BAD[kind]
    path = tmp_path / "a"
    path.write_bytes(data)
    done = _vmalab([str(path) if word == "FILE" else word for word in COMMANDS[command]])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"vmalab: {path}")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name, reason in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        done = _vmalab(["replay", str(name)])
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"vmalab: {name}: cannot be read: {reason}\n"


def test_what_comes_before_a_bad_line_can_be_used() -> None:
    done = _vmalab(["replay", "--at", "3", "-"], BAD["garbage"][0])
    assert (done.returncode, done.stderr) == (0, "")


def test_a_trace_that_was_cut_off_is_used_with_a_warning() -> None:
    lines = _trace()
    done = _vmalab(["replay", "-"], b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    assert done.returncode == 0
    assert f"standard input is not whole: it was cut off within record {len(lines) // 2}" in done.stderr
    assert "Traceback" not in done.stderr
