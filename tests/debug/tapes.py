"""Tapes of generated traces, and what a test compares."""

from pathlib import Path
from typing import Any

from tests.debug.generated import Generator
from vmalab.debug.commands import Debugger
from vmalab.debug.tape import Tape
from vmalab.debug.timeline import Timeline
from vmalab.trace.file import TraceWriter, read_trace
from vmalab.trace.records import Call, End, Exec, File, Header, Record

BASE = 0x7FFFF7FFF000
ANON = 0x22
EVIL = "/tmp/\x1b[31m<script>[bold]x[/bold]\u202e"


def write(path: Path, header: Header, records: list[Record]) -> Path:
    """Write a trace."""
    with TraceWriter(path, header) as writer:
        for record in records:
            writer.write(record)
    return path


def made_trace(folder: Path, seed: int, count: int, *, span: int = 48, faults: str = "exact") -> Path:
    """A generated trace, written."""
    generator = Generator(seed, span=span, faults=faults)
    generator.run(count)
    generator.finish()
    return write(folder / f"{seed}-{count}-{faults}.jsonl", generator.header, generator.records)


def made_tape(folder: Path, seed: int, count: int, *, span: int = 48, faults: str = "exact") -> Tape:
    """A generated trace, written and read."""
    return Tape(read_trace(made_trace(folder, seed, count, span=span, faults=faults)))


def opened(path: Path, *, spacing: int = 64) -> Debugger:
    """A debugger of a trace."""
    return Debugger(Timeline(Tape(read_trace(path)), spacing=spacing))


def small(folder: Path) -> Path:
    """Two neighbours that become one, a call that fails, and a file whose name wants to be more than text."""
    top, low = BASE - 0x2000, BASE - 0x4000

    def call(name: str, args: list[int], ret: int, **more: Any) -> Call:
        return Call(n=0, pid=5, tid=5, call=name, args=args, ret=ret, **more)

    path = EVIL.replace("\x1b", "\\033")
    records: list[Record] = [
        Exec(n=0, pid=5, exe=path, vmas=[], mmap_base=BASE),
        call("mmap", [0, 0x2000, 3, ANON, 0xFFFFFFFF, 0], top),
        call("mmap", [0, 0x2000, 1, ANON, 0xFFFFFFFF, 0], low),
        call("mprotect", [low, 0x2000, 3], 0, written=[top]),
        call("mprotect", [0x1000, 0x1000, 3], -12),
        File(n=0, id=1, path=path, dev="08:01", ino=7, fs="ext4"),
        call("mmap", [0, 0x1000, 1, 2, 3, 0], low - 0x1000, file=1),
        End(n=0, reason="done"),
    ]
    return write(folder / "small.jsonl", Header(vmalab="trace", version=1, faults="at-calls"), records)
