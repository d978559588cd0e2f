"""Builds the recorder's helper and the agent from C: run as a script, or call `build`.

Needs nothing but Python and a C compiler.  Both run on Linux on x86-64 only; elsewhere there is nothing to build, and
that is no failure.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parent / "native"
PROGRAM: Final = Path(__file__).resolve().parent / "_native" / "ptrace-recorder"
AGENT: Final = PROGRAM.with_name("agent")
FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
FREESTANDING: Final = (
    *("-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"),
    *("-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-mgeneral-regs-only"),
    *("-Wl,-z,noexecstack", "-Wl,-z,norelro", "-Wl,--build-id=none"),
)
"""The agent has no libc: nothing is mapped in it that it did not ask for."""


def unsupported() -> str | None:
    """Why there is nothing to build here; None if there is."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"recording needs Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    return None


def find_compiler() -> list[str] | None:
    """The C compiler as a command: $CC, gcc or cc; None if there is none."""
    for name in (os.environ.get("CC", ""), "gcc", "cc"):
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    return None


def is_current() -> bool:
    """Whether the helper has been built since its sources changed."""
    try:
        built = min(PROGRAM.stat().st_mtime, AGENT.stat().st_mtime)
    except OSError:
        return False
    return all(path.stat().st_mtime <= built for path in SOURCES.rglob("*"))


def build() -> str | None:
    """Build both.  Returns None if they are there afterwards, else one line that says why they are not."""
    reason = unsupported()
    if reason is not None:
        return reason
    compiler = find_compiler()
    if compiler is None:
        return "recording and lockstep need a C compiler: install gcc, or set CC"
    PROGRAM.parent.mkdir(exist_ok=True)
    recorder = sorted(SOURCES.glob("*.c"))
    agent = sorted((SOURCES / "agent").glob("*.c"))
    return _compile(compiler, PROGRAM, recorder, ()) or _compile(compiler, AGENT, agent, FREESTANDING)


def _compile(compiler: list[str], program: Path, sources: list[Path], flags: tuple[str, ...]) -> str | None:
    made = program.with_name(f".{program.name}.{os.getpid()}")
    command = [*compiler, *FLAGS, *flags, "-o", str(made), *[str(path) for path in sources]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            made.replace(program)
            return None
    except OSError as error:
        return f"the {program.name} could not be built: {compiler[0]}: {error.strerror}"
    finally:
        made.unlink(missing_ok=True)
    lines = done.stderr.strip().splitlines()
    first = next((line for line in lines if "error" in line), lines[0] if lines else f"status {done.returncode}")
    return f"the {program.name} could not be built: {compiler[0]}: {first}"


def main() -> int:
    """Build, and say in one line what is wrong."""
    reason = build()
    if reason is None:
        return 0
    print(f"vmalab: {reason}", file=sys.stderr)
    return 0 if unsupported() else 1


if __name__ == "__main__":
    sys.exit(main())
