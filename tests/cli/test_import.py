"""The command that imports logs: what it prints, and that what is wrong is said in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vmalab.trace.file import read_trace
from vmalab.trace.records import Header

LOGS = Path(__file__).parent.parent / "data/logs"
LOG = str(LOGS / "strace-cut-off.txt")


def _vmalab(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vmalab", "import", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _header(path: str) -> Header:
    with read_trace(path) as reader:
        return reader.header


def test_what_it_prints(tmp_path: Path) -> None:
    output = str(tmp_path / "out.jsonl")
    done = _vmalab(LOG, "-o", output)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"{LOG} is of strace, as its lines show" in " ".join(lines)
    assert "1 line was not understood" in lines
    assert "line 9: the call has no result" in " ".join(lines)
    header = _header(output)
    assert (header.recorder, header.faults) == ("strace", "none")
    assert any("page faults are not in the log" in note for note in header.notes)


def test_json(tmp_path: Path) -> None:
    done = _vmalab(LOG, "--json", "-o", str(tmp_path / "out.jsonl"), "--format", "strace", "--max-map-count", "65530")
    found = json.loads(done.stdout)
    assert (found["format"], found["chosen"], found["calls"], found["misread"]) == ("strace", "given", 6, 1)
    assert found["problems"][0]["line"] == 9
    assert _header(str(tmp_path / "out.jsonl")).machine.max_map_count == 65530


def test_the_trace_may_go_to_standard_output() -> None:
    done = _vmalab(LOG, "-o", "-")
    assert done.returncode == 0
    first, *_, last = done.stdout.splitlines()
    assert (json.loads(first)["vmalab"], json.loads(last)["type"]) == ("trace", "end")
    assert "1 line was not understood" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such"], "/no/such: cannot be read: No such file or directory"),
        (["/"], "/: cannot be read: Is a directory"),
        ([LOG, "--maps", LOG], "is no copy of /proc/PID/smaps or /proc/PID/maps"),
        ([LOG, "--maps", "7=/no/such"], "/no/such: cannot be read: No such file or directory"),
        ([LOG, LOG], "its lines name their tasks"),
        ([str(LOGS / "refused-empty.txt")], "is empty: there is strace"),
        ([str(LOGS / "strace-arm64.txt")], "another architecture"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = _vmalab(*arguments, "-o", str(output))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vmalab: ")
    assert not output.exists()


@pytest.mark.parametrize("through", ["log", "link"])
def test_a_log_is_not_written_over(through: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(Path(LOG).read_bytes())
    (tmp_path / "link").symlink_to(log)
    for read in ([str(log)], [LOG, "--maps", f"7={log}"]):
        done = _vmalab(*read, "-o", str(tmp_path / through))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"vmalab: {tmp_path / through} is what is read, and would be lost: name another with -o\n"
        assert log.read_bytes() == Path(LOG).read_bytes()


def test_an_output_that_cannot_be_written() -> None:
    done = _vmalab(LOG, "-o", "/no/such/place")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vmalab: /no/such/place: cannot be written: No such file or directory\n"
