"""Tapes of generated traces, and what a test compares."""

from pathlib import Path

from tests.debug.generated import Generator
from vmalab.debug.commands import Debugger
from vmalab.debug.tape import Tape
from vmalab.debug.timeline import Timeline
from vmalab.trace.file import TraceWriter, read_trace
from vmalab.trace.records import Header, Record


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
