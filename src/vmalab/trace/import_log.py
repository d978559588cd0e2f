"""Imports a log of another tool: finds out what it is, reads it, and writes a trace of it."""

from __future__ import annotations

import gzip
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import msgspec

from vmalab.errors import InputError
from vmalab.text import escape_text
from vmalab.trace import perf, strace, syzkaller
from vmalab.trace.file import TraceWriter
from vmalab.trace.importing import TraceBuilder
from vmalab.trace.logs import Event, Family, Problem, Tally, lines_of
from vmalab.trace.records import VERSION, End, Exec, Header, Machine, Record

UNKNOWN_RAM: Final = 1 << 34
"""Pages: no amount of memory is known, so none is too much."""
UNKNOWN_COUNT: Final = (1 << 31) - 1
"""The largest value of vm.max_map_count: no limit is known."""
_SAMPLE: Final = 1 << 17
_CHUNK: Final = 1 << 18
_MAPS: Final = re.compile(rb"[0-9a-f]{1,16}-[0-9a-f]{1,16} [r-][w-][x-][ps] ")
_GZIP: Final = b"\x1f\x8b"

Lines = Iterable[tuple[int, str]]


class Format(NamedTuple):
    """A kind of log."""

    title: str
    looks_like: Callable[[str], bool]
    look_through: Callable[[Lines, Family], None]
    read: Callable[[Lines, Family, Tally], Iterator[Event]]


FORMATS: Final[dict[str, Format]] = {
    "strace": Format("strace", strace.looks_like_strace, strace.look_through, strace.read_strace),
    "perf-trace": Format("perf trace", perf.looks_like_trace, perf.look_through_trace, perf.read_trace),
    "perf-script": Format("perf script", perf.looks_like_script, perf.look_through_script, perf.read_script),
    "syzkaller": Format(
        "a syzkaller program", syzkaller.looks_like_program, syzkaller.look_through, syzkaller.read_program
    ),
}


class Imported(msgspec.Struct):
    """What an import came to."""

    file: str
    format: str
    chosen: str
    """How the format was told: "detected" or "given"."""
    lines: int
    calls: int
    """Calls in the trace."""
    others: int
    """Calls that have nothing to do with memory."""
    passed: dict[str, int]
    """Lines that are understood and of no use, by kind."""
    misread: int
    """Lines that were not understood."""
    problems: list[Problem]
    """The first of them: line, text, why."""
    missing: list[str]
    """What an exact replay would need and the log does not hold, a sentence each."""
    assumed: list[str]
    """What was taken for granted, a sentence each."""
    programs: int
    faults: int
    with_stack: int
    """Calls and faults with the stack that made them."""
    unordered: int


def import_log(
    paths: list[str],
    output: str,
    *,
    kind: str = "auto",
    first: dict[int, Exec] | None = None,
    together: bool = True,
    max_map_count: int | None = None,
    update: Callable[[int], None] | None = None,
) -> Imported:
    """Import one log, or the several that strace -ff writes, and write the trace to output.

    kind: one of `FORMATS`, or "auto".  first: the VMAs of processes when the log begins (0: of the first).  Raises
    InputError if it is no log, or one of which nothing can be replayed; the output is not touched then.
    """
    with ExitStack() as stack:
        files = [_Log(path, stack) for path in paths]
        name = files[0].name
        chosen = _detect(files[0]) if kind == "auto" else kind
        form = FORMATS[chosen]
        family = Family(together=together)
        tally = Tally()
        spool = stack.enter_context(tempfile.TemporaryFile())
        encoder = msgspec.json.Encoder()
        buffer = bytearray()

        def write(record: Record) -> None:
            encoder.encode_into(record, buffer)
            spool.write(buffer + b"\n")

        builder = TraceBuilder(family, tally, write, first, name=name)
        builder.ordered = len(files) == 1
        for event in _events(files, form, family, tally, update):
            builder.take(event)
        builder.flush()
        _check_success(name, form, tally)
        result = _summary(name, chosen, "detected" if kind == "auto" else "given", builder, tally, first)
        machine = Machine(ram_pages=UNKNOWN_RAM, max_map_count=max_map_count or UNKNOWN_COUNT)
        header = Header(
            vmalab="trace",
            version=VERSION,
            recorder=chosen,
            faults="none",
            machine=machine,
            notes=[*result.missing, *result.assumed],
        )
        spool.seek(0)
        _write(output, header, spool)
        return result


def _write(output: str, header: Header, spool: BinaryIO) -> None:
    decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
    with TraceWriter(output, header) as writer:
        for line in spool:
            writer.write(decoder.decode(line))
        writer.write(End(n=0, reason="done"))


def _events(
    files: list[_Log], form: Format, family: Family, tally: Tally, update: Callable[[int], None] | None
) -> Iterator[Event]:
    if len(files) == 1:
        form.look_through(files[0].lines(), family)
        yield from form.read(files[0].lines(update), family, tally)
        return
    if form.title != "strace":
        raise InputError(f"{files[1].name}: several files are one log with strace -ff alone; import one at a time")
    yield from strace.read_separate([(file.name, file.pid, file.lines) for file in files], family, tally)


def _detect(file: _Log) -> str:
    """The kind of a log, told from its first lines."""
    scores = dict.fromkeys(FORMATS, 0)
    for _, line in lines_of([file.head]):
        for kind, form in FORMATS.items():
            scores[kind] += form.looks_like(line[:4096])
    best = max(scores, key=lambda kind: scores[kind])
    if not scores[best]:
        if file.head.startswith(b"PERFILE2"):
            raise InputError(f"{file.name} is what perf record writes: give what perf script makes of it")
        if _MAPS.match(file.head):
            raise InputError(f"{file.name} is a list of VMAs, and no log: vmalab explain reads it")
        what = "is empty" if not file.head.strip() else "is no log that can be imported"
        raise InputError(f"{file.name} {what}: there is {', '.join(form.title for form in FORMATS.values())}")
    return best


def _check_success(name: str, form: Format, tally: Tally) -> None:
    """Raises InputError where nothing came of it."""
    first = f"; line {tally.problems[0].line}: {tally.problems[0].why}" if tally.problems else ""
    if tally.misread * 2 > tally.lines:
        raise InputError(f"{name}: {tally.misread:,} of {tally.lines:,} lines are not of {form.title}{first}")
    if not tally.calls and tally.passed["calls of 32-bit programs"]:
        raise InputError(f"{name}: it is of a 32-bit program, and only 64-bit programs are modelled")
    if not tally.calls:
        raise InputError(
            f"{name}: no call in this log is one that changes memory, so there is nothing to replay{first}"
        )


def _summary(
    name: str, kind: str, how: str, builder: TraceBuilder, tally: Tally, first: dict[int, Exec] | None
) -> Imported:
    missing: list[str] = []
    if builder.partial:
        known = "of some processes " if first else ""
        missing.append(
            f"what was mapped at first {known}is not in the log (--maps gives it): what depends on it is unknown"
        )
    elif first:
        missing.append("what was mapped at first is taken from a list that may not be of that very moment")
    if builder.faults:
        missing.append(f"{builder.faults:,} page faults are in the trace, and there may be more that nobody saw")
    else:
        missing.append("page faults are not in the log: what depends on memory having been written to is unknown")
    if builder.without_result:
        missing.append(f"{builder.without_result:,} calls have no result to compare with")
    if builder.unordered:
        missing.append(
            f"{builder.unordered:,} calls overlapped with one of another thread: which took effect first is not known"
        )
    missing.append(
        "limits, capabilities, memory and vm.max_map_count are not known: the model refuses nothing for them"
    )
    assumed = [
        f"{what} ({count:,} {'time' if count == 1 else 'times'})" for what, count in sorted(tally.assumed.items())
    ]
    return Imported(
        file=name,
        format=kind,
        chosen=how,
        lines=tally.lines,
        calls=tally.calls,
        others=tally.others,
        passed=dict(tally.passed),
        misread=tally.misread,
        problems=tally.problems,
        missing=missing,
        assumed=assumed,
        programs=builder.programs,
        faults=builder.faults,
        with_stack=builder.with_stack,
        unordered=builder.unordered,
    )


class _Log:
    """A file to be read twice; what cannot be is copied first."""

    def __init__(self, path: str, stack: ExitStack) -> None:
        self.name = "standard input" if path == "-" else escape_text(path)
        suffix = path.rpartition(".")[2]
        self.pid = int(suffix) if suffix.isascii() and suffix.isdigit() and len(suffix) < 8 else 0
        """The task that a file of strace -ff is of; 0 where its name does not tell."""
        try:
            self._file: BinaryIO = stack.enter_context(_seekable(path))
            self.head = self._file.read(_SAMPLE)
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise _unreadable(self.name, error) from None

    def lines(self, update: Callable[[int], None] | None = None) -> Iterator[tuple[int, str]]:
        """All lines, from the beginning."""
        self._file.seek(0)
        return lines_of(self._parts(update))

    def _parts(self, update: Callable[[int], None] | None) -> Iterator[bytes]:
        done = 0
        while True:
            try:
                part = self._file.read(_CHUNK)
            except (OSError, EOFError, zlib.error) as error:
                raise _unreadable(self.name, error) from None
            if not part:
                return
            done += len(part)
            if update is not None:
                update(done)
            yield part


def _unreadable(name: str, error: Exception) -> InputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return InputError(f"{name}: cannot be read: {escape_text(reason)}")


@contextmanager
def _seekable(path: str) -> Iterator[BinaryIO]:
    """A file that can be read twice, unpacked if gzip has packed it."""
    with ExitStack() as stack:
        file: BinaryIO = sys.stdin.buffer if path == "-" else stack.enter_context(Path(path).open("rb"))
        if path == "-" or not file.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile())
            while part := file.read(_CHUNK):
                copy.write(part)
            copy.seek(0)
            file = copy
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        yield cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file))) if packed else file
