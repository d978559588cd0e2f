"""How a recording ends: statuses, signals, Ctrl-C, a recorder that is killed, requests that are wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.conftest import Recorded, Recorder, record_command
from vmalab.trace.records import End, Exec, Exit

pytestmark = pytest.mark.usefixtures("can_record")
SLEEPER = """
import os, signal, time
signal.signal({}, lambda *given: os.write(1, b"caught\\n"))
os.write(1, b"up\\n")
time.sleep(30)
"""
SHOW = "cd /; ls -l /proc/self/fd | sed 's/.*[0-9] \\([0-9]* -> .*\\)/\\1/; /proc/d; s/:.*//'; env | sort | grep -v ^_="


class Running:
    """A recording that goes on."""

    def __init__(self, trace: Path, command: list[str], environment: dict[str, str]) -> None:
        self.trace = trace
        self.process = subprocess.Popen(
            record_command(trace, command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()

    def to_all(self, number: int) -> None:
        """As the terminal does."""
        os.killpg(self.process.pid, number)

    def end(self) -> Recorded:
        """Wait for the end."""
        out, err = self.process.communicate(timeout=20)
        return Recorded(subprocess.CompletedProcess([], self.process.returncode, out, err), self.trace)


@pytest.fixture
def running(tmp_path: Path, environment: dict[str, str]) -> Callable[..., Running]:
    def start(*command: str) -> Running:
        return Running(tmp_path / "trace.jsonl.zst", list(command), environment)

    return start


def test_death_by_a_signal(record: Recorder) -> None:
    got = record("sh", "-c", "kill -SEGV $$")
    assert got.status == 128 + signal.SIGSEGV
    assert got.of(Exit)[-1].signal == signal.SIGSEGV


def test_ctrl_c_ends_both(running: Callable[..., Running]) -> None:
    run = running("sh", "-c", "echo up; exec sleep 30")
    began = time.monotonic()
    run.to_all(signal.SIGINT)
    got = run.end()
    assert got.status == 128 + signal.SIGINT
    assert time.monotonic() - began < 2
    assert got.truncated is None
    assert got.records[-1] == End(n=len(got.records), reason="interrupted")
    assert got.of(Exit)[-1].signal == signal.SIGINT


@pytest.mark.parametrize("only_to_the_recorder", [False, True])
def test_the_program_gets_a_signal_once(running: Callable[..., Running], only_to_the_recorder: bool) -> None:
    run = running(sys.executable, "-c", SLEEPER.format("signal.SIGTERM"))
    if only_to_the_recorder:
        run.process.send_signal(signal.SIGTERM)
    else:
        run.to_all(signal.SIGTERM)
    time.sleep(0.4)
    run.to_all(signal.SIGINT)  # the second one ends it
    got = run.end()
    assert got.stdout == "caught\n"
    assert got.status == 128 + signal.SIGKILL
    assert got.of(Exit)[-1].signal == signal.SIGKILL
    assert got.records[-1] == End(n=len(got.records), reason="interrupted")


def test_what_ignores_ctrl_c_is_killed(running: Callable[..., Running]) -> None:
    run = running(sys.executable, "-c", SLEEPER.format("signal.SIGINT"))
    began = time.monotonic()
    run.to_all(signal.SIGINT)
    got = run.end()
    assert got.status == 128 + signal.SIGKILL
    assert 1.5 < time.monotonic() - began < 10


def test_a_program_that_faults_for_ever_can_be_ended(
    running: Callable[..., Running], program: Callable[..., str]
) -> None:
    run = running(program("faults"))
    run.to_all(signal.SIGTERM)
    got = run.end()
    assert got.status == 128 + signal.SIGKILL
    assert got.records[-1] == End(n=len(got.records), reason="interrupted")


def test_a_killed_recorder_leaves_a_readable_trace(running: Callable[..., Running]) -> None:
    run = running("sh", "-c", "echo up; echo $$; sleep 30")
    assert run.process.stdout is not None
    program = int(run.process.stdout.readline())
    time.sleep(0.6)
    run.process.kill()
    got = run.end()
    assert got.truncated is not None
    assert got.of(Exec)
    for _ in range(100):
        if not Path(f"/proc/{program}").exists():
            break
        time.sleep(0.02)
    assert not Path(f"/proc/{program}").exists()


def test_stopping_and_going_on(running: Callable[..., Running]) -> None:
    run = running("sh", "-c", "echo up; kill -STOP $$; echo on; exit 3")
    time.sleep(0.3)
    run.to_all(signal.SIGCONT)
    got = run.end()
    assert (got.status, got.stdout) == (3, "on\n")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no-such-program", "No such file"), ("/no/such", "No such file"), ("/etc/passwd", "Permission")],
)
def test_what_cannot_be_run(record: Recorder, tmp_path: Path, name: str, reason: str) -> None:
    got = record(name)
    assert got.status == 2
    assert got.stderr.startswith(f"vmalab: cannot run '{name}': {reason}")
    assert got.stderr.count("\n") == 1
    assert not (tmp_path / "trace.jsonl").exists()


@pytest.mark.parametrize("output", ["/no/such/directory/trace", "/dev/full", "-"])
def test_output_that_is_no_good(tmp_path: Path, environment: dict[str, str], output: str) -> None:
    witness = tmp_path / "ran"
    command = record_command(Path(output), ["touch", str(witness)])
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("vmalab: ")
    assert done.stderr.count("\n") == 1
    assert not witness.exists()


def test_a_traced_recorder_says_so(tmp_path: Path, environment: dict[str, str]) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace")
    command = [strace, "-f", "-o", "/dev/null", *record_command(tmp_path / "trace.jsonl", ["true"])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "vmalab itself is being traced" in done.stderr


def test_the_summary_is_on_standard_error(record: Recorder) -> None:
    got = record("true", options=["--json"])
    summary = json.loads(got.stderr)
    assert (summary["status"], summary["processes"], summary["records"]) == (0, 1, len(got.records))
    assert got.stdout == ""
    assert "1 process, " in record("true").stderr
    assert record("true", options=["--quiet"]).stderr == ""


def test_descriptors_and_environment_are_the_same(record: Recorder, environment: dict[str, str]) -> None:
    plain = subprocess.run(["sh", "-c", SHOW], capture_output=True, text=True, env=environment, check=False)
    assert record("sh", "-c", SHOW).stdout == plain.stdout


@pytest.mark.parametrize("recorder", ["ptrace", "bpf"])
def test_what_libraries_add_to_the_environment_is_not_the_programs(
    tmp_path: Path, environment: dict[str, str], recorder: str, request: pytest.FixtureRequest
) -> None:
    if recorder == "bpf":
        request.getfixturevalue("can_record_with_bpf")
    recording = record_command(tmp_path / "trace.jsonl", ["env"], recorder=recorder)
    added = "import ctypes, vmalab.cli; ctypes.CDLL(None).setenv(b'ADDED', b'1', 1); vmalab.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", added, *recording[3:]], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, "ADDED" in done.stdout, "PATH" in done.stdout) == (0, False, True), done.stderr


def test_an_unprivileged_user(tmp_path: Path, environment: dict[str, str]) -> None:
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("needs root, to become somebody else")
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    trace = tmp_path / "trace.jsonl"
    nobody = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
    importable = subprocess.run(
        [*nobody, sys.executable, "-c", "import vmalab, msgspec"], capture_output=True, env=environment, check=False
    )
    if importable.returncode:
        pytest.skip("this checkout lies in a folder that other users cannot enter")
    command = [*nobody, *record_command(trace, ["sh", "-c", "id -u | cat"])]
    done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=60)
    got = Recorded(done, trace)
    assert (got.status, got.stdout) == (0, "65534\n"), got.stderr
    assert len(got.of(Exit)) == 3
    assert all(end.vmas for end in got.of(Exit))
    assert got.header is not None
    assert any("no_new_privs" in note for note in got.header.notes)
