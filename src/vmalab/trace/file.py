"""The trace file: written so that a part of it can be read, and read without trusting it.

A file that was cut off (the recorder died, the disk was full) is not an error: every whole record is delivered, and
`TraceReader.truncated` says why there are no more.  Anything else that is not as docs/trace-format.md has it raises
InputError: one line that names the file, the line and the record.
"""

import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, NoReturn, Self

import msgspec
import zstandard

from vmalab.errors import InputError
from vmalab.text import escape_text
from vmalab.trace.check import Sequence, check, check_header
from vmalab.trace.records import VERSION, Header, Lost, Record

MAX_LINE: Final = 64 << 20
"""The longest line that is read, in bytes: a dump of a million VMAs has room."""

STDIN_NAME: Final = "standard input"
_CHUNK: Final = 1 << 18
_COMPRESSED_CHUNK: Final = 1 << 9
"""How many compressed bytes are unpacked at once: zstd can make 32,768 times as much of them, 16 MiB."""
_FLUSH_SECONDS: Final = 1.0
_FLUSH_BYTES: Final = 1 << 22
_MAX_WINDOW: Final = 1 << 27
_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class TraceWriter:
    """Writes a trace: the header at once, then each record as it comes.

    A path that ends in ``.zst`` is compressed; ``-`` is standard output, not compressed.  What was written more than a
    second before the last call is in the file whatever happens next.  Raises InputError where the file cannot be
    written; what is in it stays and can be read.

    With at_first_record a file that is there keeps what it holds until there is a record, so that who has nothing to
    write can abandon() it.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header, *, at_first_record: bool = False) -> None:
        self._path = os.fspath(path)
        self._begun = True
        """What the file held before is gone."""
        self._made = False
        """There was no such file."""
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()
        self._count = 0
        self._unflushed = 0
        self._flushed_at = time.monotonic()
        self._closed = False
        self._file: BinaryIO
        if self._path == "-":
            self._file = sys.stdout.buffer
        else:
            try:
                self._made = not Path(self._path).exists()
                self._file = open(self._path, "wb", buffering=0, opener=_open_to_keep)  # noqa: SIM115
                self._begun = not (at_first_record and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode))
                if self._begun:
                    self._empty()
            except (OSError, ValueError) as error:
                raise _file_error(self._path, error, "cannot be written") from None
        self._zstd: Any = None
        if self._path.endswith(".zst"):
            compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
            self._zstd = compressor.stream_writer(self._file, closefd=False)
        self._put(header)
        try:
            if self._begun:
                self.flush()
        except BaseException:
            self._close_file()
            raise

    @property
    def count(self) -> int:
        """How many records have been written: the number of the last one."""
        return self._count

    @property
    def bytes_written(self) -> int:
        """How many bytes the file has, compressed if it is, as far as they have left the buffers."""
        try:
            return self._file.tell()
        except OSError:
            return 0

    def write(self, record: Record) -> int:
        """Write one record as the next one: its ``n`` is set here, and returned."""
        if not self._begun:
            self._begin()
        self._count += 1
        record.n = self._count
        self._put(record)
        size = len(self._buffer)
        if size >= _CHUNK:
            self._drain()
        now = time.monotonic()
        if now - self._flushed_at >= _FLUSH_SECONDS or self._unflushed >= _FLUSH_BYTES:
            self.flush()
        return self._count

    def flush(self) -> None:
        """Bring all that was written to where a reader can see it.  For a recorder that is about to wait."""
        if not self._begun:
            return
        self._drain()
        try:
            if self._zstd is not None:
                self._zstd.flush(zstandard.FLUSH_BLOCK)
            self._file.flush()
        except OSError as error:
            self._fail(error)
        self._unflushed = 0
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Write what is left and close the file.  Does nothing the second time."""
        if self._closed:
            return
        if not self._begun:
            self._begin()
        try:
            self._drain()
            if self._zstd is not None:
                self._zstd.close()
            self._file.flush()
        except OSError as error:
            self._fail(error)
        finally:
            self._close_file()

    def abandon(self) -> None:
        """Close without a trace where there is no record: what was there is as it was, and no new file is."""
        if self._closed or self._begun:
            return
        self._close_file()
        if self._made:
            Path(self._path).unlink(missing_ok=True)

    def _begin(self) -> None:
        self._begun = True
        try:
            self._empty()
        except OSError as error:
            self._fail(error)

    def _empty(self) -> None:
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.abandon()
        try:
            self.close()
        except InputError:
            if error is None:
                raise

    def _close_file(self) -> None:
        self._closed = True
        if self._path != "-":
            self._file.close()

    def _put(self, value: Header | Record) -> None:
        if self._closed:
            raise ValueError("the trace has been closed")
        self._encoder.encode_into(value, self._buffer, -1)
        self._buffer += b"\n"

    def _drain(self) -> None:
        if not self._buffer:
            return
        data = bytes(self._buffer)
        self._buffer.clear()
        self._unflushed += len(data)
        try:
            if self._zstd is not None:
                self._zstd.write(data)
            else:
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> NoReturn:
        self._close_file()
        if isinstance(error, BrokenPipeError):
            raise error
        raise _file_error(self._path, error, "cannot be written further; what it holds can be read") from None


def _open_to_keep(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


class TraceReader:
    """Reads a trace record by record, in memory that does not grow with the file.

    Iterate over it, once; that closes the file, and so does leaving a ``with`` block.  Compression is told by the data,
    not by the name.
    """

    header: Header
    size: int | None
    """The bytes of the file; None where that is not known (a pipe)."""
    truncated: str | None
    """After the last record: why the trace is not whole, as half a sentence; None if it is."""
    lost: Lost | None
    """The first record so far that says that something is missing."""

    def __init__(self, path: str | os.PathLike[str], name: str = "") -> None:
        """Open a file and read its header.  name: what it is called, if not by its path."""
        self._path = os.fspath(path)
        self.name = name or (STDIN_NAME if self._path == "-" else escape_text(self._path))
        self.size = None
        self.truncated = None
        self.lost = None
        self._lost_places = self._lost_events = 0
        self._sequence = Sequence()
        self._decoder = msgspec.json.Decoder(Record)
        self._line_number = 0
        try:
            self._file, self.size = _open(self._path)
        except (OSError, ValueError) as error:
            raise _file_error(self._path, error, "cannot be read") from None
        self._source = _Source(self._file)
        self._lines = self._split()
        self._started = False
        try:
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    @property
    def bytes_read(self) -> int:
        """How many bytes of the file have been read, to be compared with `size`."""
        return self._source.bytes_read

    @property
    def count(self) -> int:
        """How many records have been delivered: the number of the last one."""
        return self._sequence.count

    def shortcomings(self) -> list[str]:
        """What the records so far lack, a sentence each without its full stop; escaped."""
        found = [f"{self.name} is not whole: {self.truncated}"] if self.truncated else []
        if self.lost is not None:
            whose = f"process {self.lost.pid} in " if self.lost.pid else ""
            text = f"from record {self.lost.n} on {whose}{self.name} is incomplete: {escape_text(self.lost.why)}"
            if self._lost_places > 1:
                text += f"; {self._lost_places:,} records say the like"
            if self._lost_events:
                text += f" ({self._lost_events:,} events in all)"
            found.append(text)
        return found

    def close(self) -> None:
        """Close the file.  Standard input stays open."""
        if self._path != "-":
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Record]:
        if self._started:
            raise ValueError("a trace can be read once; open it again")
        self._started = True
        return self._records()

    def _records(self) -> Iterator[Record]:
        try:
            yield from self._checked()
        finally:
            self.close()

    def _checked(self) -> Iterator[Record]:
        decode = self._decoder.decode
        sequence = self._sequence
        for line, whole in self._lines:
            try:
                record = decode(line)
            except (ValueError, RecursionError) as error:
                if not whole and _is_cut(line):
                    self.truncated = f"it was cut off within record {sequence.count + 1}"
                    return
                raise self._bad_line(line, error) from None
            problem = check(record) or sequence.accept(record)
            if problem is not None:
                raise self._bad(problem)
            if isinstance(record, Lost):
                self.lost = self.lost or record
                self._lost_places += 1
                self._lost_events += record.events
            yield record
        if not sequence.ended:
            self.truncated = (
                f"it was cut off after record {sequence.count}" if sequence.count else "it was cut off after its header"
            )

    def _read_header(self) -> Header:
        hint = "record one with: vmalab record -o FILE -- COMMAND"
        cut = "was cut off within its header: no record is left"
        first = next(self._lines, None)
        if first is None:
            if self.bytes_read:  # compressed, and not as far as its first block
                raise InputError(f"{self.name} {cut}; {hint}")
            raise InputError(f"{self.name} is empty, not a trace; {hint}")
        line, whole = first
        try:
            probe: object = msgspec.json.decode(line)
        except (ValueError, RecursionError):
            if not whole and line.startswith(b'{"vmalab":') and _is_cut(line):
                raise InputError(f"{self.name} {cut}; {hint}") from None
            raise InputError(f"{self.name} is not a trace: its first line is not a trace's header; {hint}") from None
        if not isinstance(probe, dict) or probe.get("vmalab") != "trace":
            raise InputError(f"{self.name} is not a trace: its first line is not a trace's header; {hint}")
        version = probe.get("version")
        if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
            raise InputError(
                f"{self.name} was made by a newer vmalab: it has version {min(version, 1 << 64)} of the format, "
                f"this one reads version {VERSION}; read it with a newer vmalab"
            )
        try:
            header = msgspec.json.decode(line, type=Header)
        except (ValueError, RecursionError) as error:
            raise self._bad(_decode_problem(error)) from None
        if header.version != VERSION:
            raise self._bad(f"version {header.version} of the format does not exist; this one reads version {VERSION}")
        problem = check_header(header)
        if problem is not None:
            raise self._bad(problem)
        return header

    def _split(self) -> Iterator[tuple[bytes, bool]]:
        """The lines without their ends; and whether each was ended, which the last one of a file may not be."""
        parts: list[bytes] = []
        held = 0
        while True:
            try:
                data = self._source.read()
            except zstandard.ZstdError as error:
                raise self._bad(
                    f"the compressed data is damaged here ({escape_text(str(error), 80)})", self._line_number + 1
                ) from None
            except OSError as error:
                raise _file_error(self._path, error, "cannot be read further") from None
            if not data:
                break
            start = 0
            while (end := data.find(b"\n", start)) >= 0:
                line = data[start:end]
                if parts:
                    parts.append(line)
                    line = b"".join(parts)
                    parts.clear()
                    held = 0
                start = end + 1
                self._line_number += 1
                if len(line) > MAX_LINE:
                    raise self._bad(_TOO_LONG)
                yield line, True
            if start < len(data):
                parts.append(data[start:])
                held += len(data) - start
                if held > MAX_LINE:
                    raise self._bad(_TOO_LONG, self._line_number + 1)
        if parts:
            self._line_number += 1
            yield b"".join(parts), False

    def _bad_line(self, line: bytes, error: Exception) -> InputError:
        if not line.strip():
            return self._bad("the line is empty")
        try:
            value: object = msgspec.json.decode(line)
        except (ValueError, RecursionError):
            return self._bad("the line is not JSON; the file is damaged or was edited")
        if isinstance(value, dict):
            kind = value.get("type")
            if isinstance(kind, str) and kind not in _TYPES:
                return self._bad(f'"{escape_text(kind, 40)}" is no type of record; there are {", ".join(_TYPES)}')
        return self._bad(_decode_problem(error))

    def _bad(self, problem: str, line_number: int = 0) -> InputError:
        """The error for a line; the current one unless told."""
        number = line_number or self._line_number
        if number <= 1:
            return InputError(f"{self.name}: line 1 (the header): {problem}")
        count = self._sequence.count
        advice = f"; --at {count} uses what comes before" if 0 < count < number else ""
        return InputError(f"{self.name}: line {number} (record {number - 1}): {problem}{advice}")


def read_trace(path: str | os.PathLike[str], name: str = "") -> TraceReader:
    """Open a trace and read its header.  ``-`` is standard input.  Raises InputError if it is no trace.

    name: what it is called in errors, if not by its path.
    """
    return TraceReader(path, name)


def looks_like_trace(start: bytes) -> bool:
    """Whether a file that begins with these bytes is meant to be a trace: JSON, or compressed."""
    return start.startswith((_MAGIC, b"{"))


class _Source:
    """The bytes of a file, unpacked if they are compressed: some at a time, as they come."""

    def __init__(self, file: BinaryIO) -> None:
        self.bytes_read = 0
        self._file = file
        self._unpack: Any = None
        self._packed = b""
        self._at = 0
        self._known = False

    def read(self) -> bytes:
        """The next bytes, at most some megabytes; empty at the end.  Raises ZstdError where they are damaged."""
        if not self._known:
            self._recognise()
        if self._unpack is None:
            data = self._packed or self._more()
            self._packed = b""
            return data
        while True:
            if self._at == len(self._packed):
                self._packed = self._more()
                self._at = 0
                if not self._packed:
                    return b""
            piece = self._packed[self._at : self._at + _COMPRESSED_CHUNK]
            if self._unpack.eof:
                self._unpack = self._frame()
            data = self._unpack.decompress(piece)
            self._at += len(piece)
            if self._unpack.eof:
                self._at -= len(self._unpack.unused_data)
            if data:
                return bytes(data)

    def _recognise(self) -> None:
        """Look at the first bytes: a pipe may deliver fewer than were asked for."""
        self._known = True
        while len(self._packed) < len(_MAGIC) and (more := self._more()):
            self._packed += more
        if self._packed.startswith(_MAGIC):
            self._unpack = self._frame()

    def _more(self) -> bytes:
        data = self._file.read(_CHUNK)
        self.bytes_read += len(data)
        return data

    @staticmethod
    def _frame() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()


_TYPES: Final = ("exec", "file", "stack", "call", "fault", "fork", "maps", "exit", "lost", "end")
_TOO_LONG: Final = f"the line is longer than {MAX_LINE >> 20} MiB, which no record is"


def _open(path: str) -> tuple[BinaryIO, int | None]:
    """A file to read as its bytes arrive, and its size where it has one."""
    file: BinaryIO
    file = open(0, "rb", buffering=0, closefd=False) if path == "-" else open(path, "rb", buffering=0)  # noqa: SIM115
    status = os.fstat(file.fileno())
    if stat.S_ISDIR(status.st_mode):
        file.close()
        raise IsADirectoryError(21, "Is a directory")
    return file, status.st_size if stat.S_ISREG(status.st_mode) else None


def _file_error(path: str, error: OSError | ValueError, what: str) -> InputError:
    name = "standard output" if path == "-" else escape_text(path)
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return InputError(f"{name}: {what}: {escape_text(reason)}")


def _is_cut(line: bytes) -> bool:
    """Whether a line without its end is no whole JSON value: then the rest was not written."""
    try:
        msgspec.json.decode(line)
    except ValueError:
        return True
    except RecursionError:
        return False
    return False


def _decode_problem(error: Exception) -> str:
    """What msgspec says, in one line: it quotes the file."""
    if isinstance(error, UnicodeDecodeError):
        return "the line is not UTF-8; the file is damaged or was edited"
    if isinstance(error, RecursionError):
        return "the line is nested too deeply, which no record is"
    text = str(error)
    return escape_text(text[:1].lower() + text[1:], 200)
