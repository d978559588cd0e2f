"""A trace as an object: to be iterated over, replayed to any record, and shown in a notebook."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, final

from vmalab.errors import InputError
from vmalab.notebook import curve, safe, table
from vmalab.text import escape_text
from vmalab.trace.file import TraceReader
from vmalab.trace.replay import Replay

if TYPE_CHECKING:
    from vmalab.semantics import Semantics
    from vmalab.trace import records
    from vmalab.vma.observer import Observer

SHOWN: Final = 100_000
"""How many records a notebook replays to show a trace."""
_PROGRAMS: Final = 30
_POINTS: Final = 2000


@final
class Trace:
    """A recorded trace in a file.  Nothing but its header is held: iterating and replaying read the file again.

    >>> trace = Trace.open("trace.jsonl.zst")                    # doctest: +SKIP
    >>> process = trace.replay(at=100).process(4711)             # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the header of the file.  Raises InputError if it is no trace, or is standard input (-)."""
        self.path: str = os.fspath(path)
        if self.path == "-":
            raise InputError("a Trace reads its file more than once: it cannot be standard input")
        with TraceReader(self.path) as reader:
            self.header: records.Header = reader.header

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Trace:
        """The trace in a file.  Raises InputError if it is none."""
        return cls(path)

    def __iter__(self) -> Iterator[records.Record]:
        """The records in order.  Raises InputError at one that is not as it has to be."""
        return iter(TraceReader(self.path))

    def replay(
        self, *, at: int | None = None, semantics: Semantics | None = None, observer: Observer | None = None
    ) -> Replay:
        """A replay that has taken the records up to number at, or all: its processes are as they were then.

        Where nobody observed faults, nothing counts as written to.  Raises InputError as iterating does.
        """
        replay = Replay(self.header, semantics, observer)
        for record in self:
            if at is not None and record.n > at:
                break
            replay.step(record)
        replay.finish()
        return replay

    def __repr__(self) -> str:
        command = escape_text(" ".join(self.header.command), 60)
        what = f": {command}" if command else ""
        kernel = f", kernel {escape_text(self.header.machine.kernel, 40)}" if self.header.machine.kernel else ""
        return f"<Trace {escape_text(self.path)}{what}{kernel}>"

    def _repr_html_(self) -> str:
        """The map count over time, and what the replay found: for a notebook."""
        replay = Replay(self.header)
        counts: list[tuple[int, int]] = []
        first = 0
        more = ""
        for record in self:
            if record.n > SHOWN:
                more = f"<p>the first {SHOWN:,} records</p>"
                break
            replay.step(record)
            process = replay.process(first or getattr(record, "pid", 0))
            if process is not None:
                first = process.pid
                if not counts or counts[-1][1] != process.mm.map_count:
                    counts.append((record.n, process.mm.map_count))
        replay.finish()
        step = max(1, len(counts) // _POINTS)
        rows = [
            (
                str(program.pid),
                f"{program.calls:,}",
                f"{program.vmas:,}",
                f"{program.peak:,}",
                f"{program.mismatches:,} results differ" if program.mismatches else "as recorded",
                program.exe,
            )
            for program in replay.programs[:_PROGRAMS]
        ]
        if len(replay.programs) > _PROGRAMS:
            more += f"<p>… and {len(replay.programs) - _PROGRAMS:,} more programs</p>"
        picture = curve(counts[::step], f"map count of process {first} over the records")
        listed = table(("process", "calls", "VMAs", "peak", "replay", "program"), rows)
        return f"<div><b>{safe(repr(self))}</b><div>{picture}</div>{listed}{more}</div>"
