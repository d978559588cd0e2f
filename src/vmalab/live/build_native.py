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
BPF_LOADER: Final = PROGRAM.with_name("bpf-recorder")
BPF_OBJECT: Final = PROGRAM.with_name("recorder.bpf.o")
FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
FREESTANDING: Final = (
    *("-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"),
    *("-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-mgeneral-regs-only"),
    *("-Wl,-z,noexecstack", "-Wl,-z,norelro", "-Wl,--build-id=none"),
)
"""The agent has no libc: nothing is mapped in it that it did not ask for."""
BPF_FLAGS: Final = (
    *("-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
    *("-D__TARGET_ARCH_x86", "-I/usr/include/x86_64-linux-gnu"),
)
STATIC_LIBBPF: Final = ("-Wl,-Bstatic", "-lbpf", "-lelf", "-lz", "-Wl,-Bdynamic")
"""The loader needs no library of the machine that it runs on but libc."""


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


def build_bpf() -> str | None:
    """Build the BPF recorder.  Returns None if it is there afterwards, else one line that says what is missing."""
    reason = unsupported()
    compiler = find_compiler()
    if reason is not None or compiler is None:
        return reason or "a C compiler is missing: install gcc, or set CC"
    clang = shutil.which(os.environ.get("CLANG", "clang"))
    if clang is None:
        return "clang is missing, which compiles for BPF: install clang and libbpf-dev (apt), or set CLANG"
    if not Path("/usr/include/bpf/libbpf.h").exists():
        return "the headers of libbpf are missing: install libbpf-dev (apt)"
    sources = SOURCES / "bpf"
    PROGRAM.parent.mkdir(exist_ok=True)
    compiled = [clang, *BPF_FLAGS, "-c", str(sources / "recorder.bpf.c")]
    linked = [*compiler, *FLAGS, str(sources / "bpf_recorder.c"), *STATIC_LIBBPF]
    reason = _run(compiled, BPF_OBJECT) or _run(linked, BPF_LOADER)
    strip = shutil.which("llvm-strip")
    if reason is None and strip is not None:  # the types stay, of the rest a third
        subprocess.run([strip, "-g", str(BPF_OBJECT)], capture_output=True, check=False)
    return reason


def _compile(compiler: list[str], program: Path, sources: list[Path], flags: tuple[str, ...]) -> str | None:
    return _run([*compiler, *FLAGS, *flags, *[str(path) for path in sources]], program)


def _run(words: list[str], program: Path) -> str | None:
    """Run a compiler and put what it makes in its place."""
    made = program.with_name(f".{program.name}.{os.getpid()}")
    command = [*words, "-o", str(made)]
    compiler = words[:1]
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
        without = build_bpf()
        if without is not None:
            print(f"vmalab: without the BPF recorder: {without}", file=sys.stderr)
        return 0
    print(f"vmalab: {reason}", file=sys.stderr)
    return 0 if unsupported() else 1


if __name__ == "__main__":
    sys.exit(main())
