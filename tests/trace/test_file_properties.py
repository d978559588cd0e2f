"""The trace file under arbitrary records and arbitrary damage."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trace.strategies import traces
from vmalab.errors import InputError
from vmalab.trace.file import TraceWriter, read_trace
from vmalab.trace.records import Call, End, Exec, Header, Record, Vma


def _write(path: Path, header: Header, records: list[Record]) -> None:
    with TraceWriter(path, header) as writer:
        for record in records:
            writer.write(record)


@given(traces(), st.sampled_from(["trace", "trace.zst"]))
def test_what_is_written_is_read(trace: tuple[Header, list[Record]], name: str) -> None:
    header, records = trace
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        _write(path, header, records)
        with read_trace(path) as reader:
            assert reader.header == header
            assert list(reader) == records
            assert reader.truncated is None
            assert reader.bytes_read == reader.size == path.stat().st_size


def _sample(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        records: list[Record] = [
            Exec(n=0, pid=7, exe="/bin/true", vmas=[Vma(0x1000, 0x2000, "rd ex mr mw me", path="/bin/true")])
        ]
        records += [Call(n=0, pid=7, tid=7, call="brk", args=[0x5000 + i], ret=0x5000, written=[i]) for i in range(6)]
        _write(path, Header(vmalab="trace", version=1, faults="at-calls"), [*records, End(n=0, reason="done")])
        return path.read_bytes()


TOKENS = [b"-1", b"18446744073709551616", b"null", b'"', b"\n", b"{", b"[", b"]", b"1e9", b"\x00"]
SAMPLES = {name: _sample(name) for name in ("trace", "trace.zst")}


def _read(data: bytes) -> tuple[list[Record], str | None]:
    """What a reader makes of these bytes; an InputError must be one line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(data)
        try:
            with read_trace(path) as reader:
                return list(reader), reader.truncated
        except InputError as error:
            text = str(error)
            assert text.isprintable()
            assert len(text) < 600 + len(str(path))
            return [], text


@st.composite
def edits(draw: st.DrawFn, data: bytes) -> bytes:
    """The data with some bytes replaced, removed, repeated or put in."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        upto = min(len(data), at + draw(st.integers(0, 30)))
        token = st.sampled_from(
            [b"-1", b"18446744073709551616", b"null", b'"', b"\n", b"{", b"[", b"]", b"1e9", b"\x00"]
        )
        middle = draw(st.one_of(st.binary(max_size=6), token, st.just(data[at:upto] * 2)))
        data = data[:at] + middle + data[upto:]
    return data


@pytest.mark.parametrize("name", sorted(SAMPLES))
@settings(max_examples=400)
@given(st.data())
def test_damage_is_an_input_error_or_a_valid_trace(name: str, data: st.DataObject) -> None:
    _read(data.draw(edits(SAMPLES[name])))


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x28\xb5\x2f\xfd", b'{"vmalab":"trace",']))
def test_arbitrary_bytes_are_an_input_error(data: bytes, start: bytes) -> None:
    records, problem = _read(start + data)
    assert records == []
    assert problem is not None


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_cut_delivers_a_prefix(name: str) -> None:
    whole, none = _read(SAMPLES[name])
    assert none is None
    most = 0
    for size in range(len(SAMPLES[name])):
        records, problem = _read(SAMPLES[name][:size])
        assert records == whole[: len(records)]
        assert problem is not None or records == whole
        assert len(records) >= most
        most = len(records)
