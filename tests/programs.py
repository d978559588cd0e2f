"""Compiling the C programs of the tests, and recording them with the command as a user does."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vmalab.live.record import why_not

SOURCE = Path(__file__).resolve().parents[1] / "src"


def compile_program(source: Path, folder: Path, *flags: str) -> str:
    """The path of a compiled C program; skips where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = folder / source.stem
    subprocess.run([compiler, "-O1", "-Wall", "-Wextra", "-Werror", *flags, "-o", made, source], check=True)
    return str(made)


def vmalab(*arguments: str, timeout: int = 120) -> "subprocess.CompletedProcess[str]":
    """Run the command line."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "vmalab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)


def record(trace: Path, command: Sequence[str]) -> str:
    """Record a command and return its output; skips where nothing can be recorded."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    done = vmalab("record", "-q", "--with", "ptrace", "-o", str(trace), "--", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout
