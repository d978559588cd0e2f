"""The trace file: what is written can be read, in part as well, and what is no trace is told in one line."""

import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
import zstandard

from vmalab.errors import InputError
from vmalab.trace import file as trace_file
from vmalab.trace.file import TraceReader, TraceWriter, read_trace
from vmalab.trace.records import Call, End, Exec, File, Header, Lost, Record, Vma

HEADER = Header(vmalab="trace", version=1, recorder="ptrace", command=["true"])
HEADER_LINE = b'{"vmalab":"trace","version":1}\n'
EXEC_LINE = b'{"type":"exec","n":1,"pid":7,"exe":"/bin/true","vmas":[]}\n'
END_LINE = b'{"type":"end","n":2,"reason":"done"}\n'


def _exec() -> Exec:
    return Exec(n=0, pid=7, exe="/bin/true", vmas=[Vma(0x1000, 0x3000, "rd ex mr mw me", dev="08:01", ino=5)])


def _call(number: int = 0) -> Call:
    return Call(n=0, pid=7, tid=7, call="munmap", args=[0x1000 * number, 0x1000], ret=0)


def _write(path: Path, records: Iterable[Record]) -> None:
    with TraceWriter(path, HEADER) as writer:
        for record in records:
            writer.write(record)


def _wrong(path: Path, data: bytes | None = None) -> str:
    """The message with which a file is refused."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught, read_trace(path) as reader:
        list(reader)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    return message.removeprefix(str(path))


@pytest.mark.parametrize("name", ["a.trace", "a.trace.zst"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    records: list[Record] = [_exec(), File(n=0, id=1, path="/tmp/a"), _call(3), End(n=0, reason="done")]
    _write(path, records)
    assert path.read_bytes().startswith(b"\x28\xb5\x2f\xfd" if name.endswith(".zst") else b'{"vmalab"')
    reader = read_trace(path)
    assert reader.header == HEADER
    assert list(reader) == records
    assert [record.n for record in records] == [1, 2, 3, 4]
    assert (reader.truncated, reader.count) == (None, 4)
    with pytest.raises(ValueError, match="once"):
        iter(reader)


def test_compression_is_told_by_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    _write(path, [_exec(), End(n=0, reason="done")])
    path.rename(tmp_path / "b")
    assert len(list(read_trace(tmp_path / "b"))) == 2
    (tmp_path / "c.zst").write_bytes(HEADER_LINE + EXEC_LINE + END_LINE)
    assert len(list(read_trace(tmp_path / "c.zst"))) == 2


def test_compressed_parts_one_after_the_other_are_one_trace(tmp_path: Path) -> None:
    pack = zstandard.ZstdCompressor().compress
    path = tmp_path / "a"
    path.write_bytes(pack(HEADER_LINE + EXEC_LINE[:20]) + pack(EXEC_LINE[20:] + END_LINE))
    reader = read_trace(path)
    assert len(list(reader)) == 2
    assert reader.truncated is None


@pytest.mark.parametrize("name", ["a.trace", "a.trace.zst"])
def test_what_was_flushed_can_be_read_while_the_writer_goes_on(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    writer = TraceWriter(path, HEADER)
    reader = read_trace(path)
    assert list(reader) == []
    assert reader.truncated == "it was cut off after its header"
    writer.write(_exec())
    writer.write(_call())
    writer.flush()
    reader = read_trace(path)
    assert len(list(reader)) == 2
    assert reader.truncated == "it was cut off after record 2"
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(_call())


@pytest.mark.parametrize("name", ["a.trace", "a.trace.zst"])
def test_the_writer_flushes_by_itself(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "_FLUSH_SECONDS", 0.0)
    with TraceWriter(tmp_path / name, HEADER) as writer:
        writer.write(_exec())
        assert len(list(read_trace(tmp_path / name))) == 1


def test_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for cut in range(1, len(EXEC_LINE) - 1):
        path.write_bytes(HEADER_LINE + EXEC_LINE[:cut])
        reader = read_trace(path)
        assert list(reader) == []
        assert reader.truncated == "it was cut off within record 1"


def test_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(HEADER_LINE + EXEC_LINE + END_LINE.rstrip())
    reader = read_trace(path)
    assert len(list(reader)) == 2
    assert reader.truncated is None


def test_lost_suspends_introductions(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _write(path, [Lost(n=0, pid=0, why="the buffer was full"), _call()])
    assert len(list(read_trace(path))) == 2


HINT = "; record one with: vmalab record -o FILE -- COMMAND"
NOT_A_TRACE = f" is not a trace: its first line is not a trace's header{HINT}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", f" is empty, not a trace{HINT}"),
        (
            zstandard.ZstdCompressor().compress(HEADER_LINE)[:8],
            f" was cut off within its header: no record is left{HINT}",
        ),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(500), NOT_A_TRACE),
        (b"execve(1)\nmmap(2)\n", NOT_A_TRACE),
        (b"[]\n", NOT_A_TRACE),
        (b'{"vmalab":"strip"}\n', NOT_A_TRACE),
        (b"[" * 100_000, NOT_A_TRACE),
        (b'{"vmalab":"tra', f" was cut off within its header: no record is left{HINT}"),
        (b'{"vmalab":"trace"}\n', ": line 1 (the header): object missing required field `version`"),
        (b'{"vmalab":"trace","version":0}\n', ": line 1 (the header): version 0 of the format does not exist"),
        (b'{"vmalab":"trace","version":"1"}\n', ": line 1 (the header): expected `int`, got `str` - at `$.version`"),
        (
            b'{"vmalab":"trace","version":2,"machine":7}\n',
            " was made by a newer vmalab: it has version 2 of the format, this one reads version 1; read it",
        ),
        (b'{"vmalab":"trace","version":1,"faults":"most"}\n', ': line 1 (the header): faults is "most"; it must be'),
        (
            b'{"vmalab":"trace","version":1,"machine":{"page_size":0}}\n',
            ": line 1 (the header): machine.page_size is 0; it must be a power of two",
        ),
    ],
)
def test_what_is_no_trace(tmp_path: Path, data: bytes, message: str) -> None:
    assert _wrong(tmp_path / "a", data).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"hello\n", "the line is not JSON; the file is damaged or was edited"),
        (b"\n", "the line is empty"),
        (b'{"type":"exec","n":2,"pid"\n', "the line is not JSON; the file is damaged or was edited"),
        (b'{"type":"end","n":2,"reason":"\xff"}\n', "the line is not JSON; the file is damaged or was edited"),
        (
            b'{"type":"warp\x1b[2J\xe2\x80\xae","n":2}\n',
            "the line is not JSON",
        ),
        (
            b'{"type":"warp\\u001b[2J\xe2\x80\xae","n":2}\n',
            r'"warp\x1b[2J\u202e" is no type of record; there are exec, file, stack, call, fault, ',
        ),
        (b"7\n", "expected `object`, got `int`"),
        (b'{"n":2}\n', "object missing required field `type`"),
        (b'{"type":"end","n":"2","reason":"done"}\n', "expected `int`, got `str` - at `$.n`"),
        (b'{"type":"end","n":2,"reason":"done","x":1}\n', "object contains unknown field `x`"),
        (b'{"type":"end","n":2,"reason":"done","x":' + b"[" * 100_000 + b"\n", "the line is not JSON"),
        (b'{"type":"end","n":3,"reason":"done"}\n', "n is 3 where 2 is due: records are numbered from 1 without gaps"),
        (
            b'{"type":"fault","n":2,"pid":8,"tid":8,"addr":0}\n',
            "process 8 was not introduced by an exec or fork record",
        ),
        (
            b'{"type":"call","n":2,"pid":7,"tid":7,"call":"munmap","args":[0,0],"ret":0,"file":3}\n',
            "file 3 was not introduced by a file record before it",
        ),
        (
            b'{"type":"call","n":2,"pid":7,"tid":7,"call":"munmap","args":[0,-1],"ret":0}\n',
            "argument 2 of munmap is -1; it must be an unsigned 64-bit word",
        ),
    ],
)
def test_a_line_that_is_no_record(tmp_path: Path, line: bytes, message: str) -> None:
    text = _wrong(tmp_path / "a", HEADER_LINE + EXEC_LINE + line + END_LINE)
    assert text.startswith(f": line 3 (record 2): {message}")
    assert text.endswith("; --at 1 uses what comes before")


def test_a_record_after_the_end(tmp_path: Path) -> None:
    text = _wrong(tmp_path / "a", HEADER_LINE + EXEC_LINE + END_LINE + END_LINE)
    assert text.startswith(": line 4 (record 3): a record follows the end record, which must be the last")


def test_the_records_before_a_wrong_one_are_delivered(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(HEADER_LINE + EXEC_LINE + b"garbage\n" + END_LINE)
    records = iter(read_trace(path))
    assert isinstance(next(records), Exec)
    with pytest.raises(InputError):
        next(records)


def test_damaged_compression(tmp_path: Path) -> None:
    path = tmp_path / "a.zst"
    _write(path, [_exec(), *[_call(number) for number in range(50)], End(n=0, reason="done")])
    data = bytearray(path.read_bytes())
    data[-20] ^= 0x55
    text = _wrong(path, bytes(data))
    assert ": the compressed data is damaged here (zstd " in text or " (record " in text
    assert "the compressed data is damaged here" in _wrong(path, path.read_bytes()[:0] + _packed() + b"more than that")


def _packed() -> bytes:
    return zstandard.ZstdCompressor().compress(HEADER_LINE + EXEC_LINE + END_LINE)


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "MAX_LINE", 1 << 20)
    path = tmp_path / "bomb.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file, closefd=False) as packed:
        packed.write(HEADER_LINE)
        for _ in range(1 << 9):
            packed.write(b"a" * (1 << 20))
    assert path.stat().st_size < 1 << 17
    tracemalloc.start()
    text = _wrong(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text.startswith(": line 2 (record 1): the line is longer than")
    assert peak < 100 << 20


@pytest.mark.parametrize("name", ["a.trace", "a.trace.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.{name}"
        with TraceWriter(path, HEADER) as writer:
            writer.write(_exec())
            record = _call()
            for number in range(count):
                record.args[0] = number << 12
                writer.write(record)
        tracemalloc.start()
        reader = read_trace(path)
        read = sum(1 for _ in reader)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert read == count + 1
        return highest

    assert peak(100_000) < peak(20_000) + (1 << 20)


@pytest.mark.parametrize("packed", [False, True])
def test_standard_input_and_output(packed: bool) -> None:
    code = (
        "import sys; from vmalab.trace.file import TraceWriter, read_trace\n"
        "reader = read_trace('-')\n"
        "with TraceWriter('-', reader.header) as writer:\n"
        "    for record in reader: writer.write(record)\n"
        "print(reader.name, reader.size, reader.truncated, file=sys.stderr)\n"
    )
    plain = HEADER_LINE + EXEC_LINE
    data = zstandard.ZstdCompressor().compress(plain) if packed else plain
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert msgspec.json.decode(done.stdout.splitlines()[1], type=Exec) == msgspec.json.decode(EXEC_LINE, type=Exec)
    assert done.stderr == b"standard input None it was cut off after record 1\n"


def test_a_pipe_is_read_as_it_comes() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, HEADER_LINE + EXEC_LINE)
    with os.fdopen(write_end, "wb") as file, read_trace(f"/proc/self/fd/{read_end}") as reader:
        records = iter(reader)
        assert isinstance(next(records), Exec)
        file.write(END_LINE)
        file.flush()
        assert isinstance(next(records), End)
    os.close(read_end)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    assert _wrong(tmp_path / "none") == ": cannot be read: No such file or directory"
    assert _wrong(tmp_path) == ": cannot be read: Is a directory"
    with pytest.raises(InputError, match=r"a\\x00b: cannot be read: embedded null byte"):
        read_trace("a\0b")
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        TraceWriter(tmp_path / "none" / "a", HEADER)
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        TraceWriter(tmp_path, HEADER)
    with pytest.raises(InputError, match=r"b\\x1bad\\udcff: cannot be read"):
        read_trace(os.fsdecode(b"b\x1bad\xff"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="/dev/full: cannot be written further; what it holds can be read: No space"):
        TraceWriter("/dev/full", HEADER)
    link = tmp_path / "a.zst"
    link.symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left on device"):
        TraceWriter(link, HEADER)


def test_an_error_on_the_way_out_keeps_the_first_one(tmp_path: Path) -> None:
    def fail_twice() -> None:
        with TraceWriter(tmp_path / "a", HEADER) as writer:
            writer._file.close()
            writer._file = _Full()
            writer.write(_exec())
            raise RuntimeError("first")

    with pytest.raises(RuntimeError, match="first"):
        fail_twice()


@pytest.mark.parametrize("name", ["a", "a.zst"])
def test_a_file_is_kept_until_there_is_a_record(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    TraceWriter(path, HEADER, at_first_record=True).abandon()
    assert not path.exists()
    _write(path, [_exec(), _call(3)])
    before = path.read_bytes()
    with TraceWriter(path, HEADER, at_first_record=True) as writer:
        writer.flush()
        writer.abandon()
    assert path.read_bytes() == before
    with pytest.raises(KeyboardInterrupt), TraceWriter(path, HEADER, at_first_record=True):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    with TraceWriter(path, HEADER, at_first_record=True) as writer:
        writer.write(record := _exec())
        writer.flush()
        assert list(read_trace(path)) == [record]
        writer.abandon()
    assert len(path.read_bytes()) < len(before)
    with TraceWriter(path, HEADER, at_first_record=True):
        pass
    assert list(read_trace(path)) == []


class _Full(io.BytesIO):
    """A file on a disk that is full."""

    def write(self, _data: object, /) -> int:
        raise OSError(28, "No space left on device")


def test_the_public_reader_is_the_one_that_opens(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HEADER_LINE)
    with read_trace(tmp_path / "a") as reader:
        assert isinstance(reader, TraceReader)
        assert reader.header == msgspec.json.decode(HEADER_LINE, type=Header)
