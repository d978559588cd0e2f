"""Programs to record, and a way to record them as a user does: with the command."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vmalab.live import bpf_record, build_native
from vmalab.live.record import why_not
from vmalab.trace.file import read_trace
from vmalab.trace.records import Header, Record

PROGRAMS = Path(__file__).resolve().parent / "programs"
SOURCE = Path(__file__).resolve().parents[2] / "src"


class Recorded:
    """A recording that has ended."""

    def __init__(self, done: "subprocess.CompletedProcess[bytes]", trace: Path) -> None:
        self.status = done.returncode
        self.stdout = done.stdout.decode()
        self.stderr = done.stderr.decode()
        self.header: Header | None = None
        self.records: list[Record] = []
        self.truncated: str | None = None
        if trace.exists():
            with read_trace(trace) as reader:
                self.header = reader.header
                self.records = list(reader)
                self.truncated = reader.truncated

    def of(self, kind: type[Any]) -> list[Any]:
        """The records of one type."""
        return [record for record in self.records if isinstance(record, kind)]


Recorder = Callable[..., Recorded]


def record_command(trace: Path, command: Sequence[str], *options: str, recorder: str = "ptrace") -> list[str]:
    """The command line that records a program."""
    program = [sys.executable, "-m", "vmalab", "record", "--with", recorder]
    return [*program, *options, "-o", str(trace), *(["--", *command] if command else [])]


@pytest.fixture
def environment() -> dict[str, str]:
    """This environment, with the package to test in the path."""
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


@pytest.fixture
def can_record() -> None:
    """Skips where nothing can be recorded."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def record(can_record: None, tmp_path: Path, environment: dict[str, str]) -> Recorder:
    """Records a command and reads the trace."""

    def run(*command: str, options: Sequence[str] = (), name: str = "trace.jsonl") -> Recorded:
        trace = tmp_path / name
        done = subprocess.run(
            record_command(trace, command, *options), capture_output=True, check=False, timeout=60, env=environment
        )
        return Recorded(done, trace)

    return run


@pytest.fixture(scope="session")
def can_record_with_bpf() -> None:
    """Skips where BPF cannot record."""
    reason = bpf_record.why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def record_bpf(can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str]) -> Recorder:
    """Records a command with BPF and reads the trace."""

    def run(*command: str, options: Sequence[str] = (), name: str = "trace.jsonl") -> Recorded:
        trace = tmp_path / name
        words = record_command(trace, command, *options, recorder="bpf")
        done = subprocess.run(words, capture_output=True, check=False, timeout=60, env=environment)
        return Recorded(done, trace)

    return run


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Compiles one of the programs, once for each set of flags."""
    made: dict[tuple[str, ...], str] = {}

    def compile_program(name: str, *flags: str) -> str:
        compiler = build_native.find_compiler()
        if compiler is None:
            pytest.skip("no C compiler")
        if (name, *flags) not in made:
            path = tmp_path_factory.mktemp("programs") / name
            source = PROGRAMS / f"{name}.c"
            command = [*compiler, "-O1", "-Wall", "-pthread", *flags, "-o", str(path), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0 and flags:
                pytest.skip(f"the compiler cannot do {' '.join(flags)}")
            assert done.returncode == 0, done.stderr
            made[(name, *flags)] = str(path)
        return made[(name, *flags)]

    return compile_program
