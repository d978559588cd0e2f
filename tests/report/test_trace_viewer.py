"""The trace for the Perfetto UI, read with Perfetto's own definitions of its format."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.programs import vmalab
from tests.report.traces import ENDING, SCRIPT, demo, made_up, write
from vmalab.report.collect import Collected
from vmalab.report.trace_viewer import RECORD, TraceViewer, varint
from vmalab.trace import records

perfetto: Any = pytest.importorskip(
    "perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="no perfetto (among the dependencies for development)"
)


def read(data: bytes) -> Any:
    trace = perfetto.Trace()
    trace.ParseFromString(data)
    trace.DiscardUnknownFields()
    assert trace.ByteSize() == len(data), "every field is one that Perfetto knows, in its place"
    return trace


def viewed(trace: tuple[records.Header, list[records.Record]]) -> tuple[Any, Collected]:
    viewer = TraceViewer()
    collected = Collected(trace[0], viewer)
    for record in trace[1]:
        collected.step(record)
    collected.finish()
    return read(viewer.data()), collected


def events(trace: Any, kind: str) -> list[Any]:
    wanted = getattr(perfetto.TrackEvent, f"TYPE_{kind}")
    return [packet for packet in trace.packet if packet.HasField("track_event") and packet.track_event.type == wanted]


def tracks(trace: Any) -> dict[int, Any]:
    found = [packet.track_descriptor for packet in trace.packet if packet.HasField("track_descriptor")]
    assert len({track.uuid for track in found}) == len(found)
    return {track.uuid: track for track in found}


def test_every_call_is_a_slice() -> None:
    trace, _ = viewed(demo())
    calls = [record for record in demo()[1] if isinstance(record, records.Call)]
    begun, ended = events(trace, "SLICE_BEGIN"), events(trace, "SLICE_END")
    described = tracks(trace)
    assert len(begun) == len(ended) == len(calls)
    for begin, end, call in zip(begun, ended, calls, strict=True):
        assert (begin.timestamp, end.timestamp) == (call.n * RECORD, (call.n + 1) * RECORD)
        assert begin.track_event.name == call.call
        assert begin.track_event.track_uuid == end.track_event.track_uuid
        thread = described[begin.track_event.track_uuid].thread
        assert (thread.pid, thread.tid) == (call.pid, call.tid)


def test_the_counters_are_those_of_the_model() -> None:
    trace, collected = viewed(demo())
    described = tracks(trace)
    space = collected.lives.spaces[0]
    shown = []
    for packet in events(trace, "COUNTER"):
        track = described[packet.track_event.track_uuid]
        if track.name == "map count" and described[track.parent_uuid].process.pid == space.pid:
            shown.append((packet.timestamp // RECORD, packet.track_event.counter_value))
    points = dict(zip(space.counter_n, space.map_count, strict=True))
    assert len(shown) > 50
    assert all(points[n] == value for n, value in shown)
    assert {track.name for track in described.values() if track.HasField("counter")} == {
        "map count",
        "mapped",
        "locked",
        "committed",
    }


def test_failures_and_processes_are_told() -> None:
    trace, _ = viewed(made_up())
    instants = [packet.track_event for packet in events(trace, "INSTANT")]
    [failed] = [event for event in instants if event.name == "mprotect: ENOMEM"]
    notes = {note.name: note.string_value for note in failed.debug_annotations}
    assert notes["reason"] == "part of the range is not mapped"
    assert {"makes process 101", "exits", f"execve {SCRIPT}"} <= {event.name for event in instants}
    processes = {
        track.process.pid: track.process.process_name for track in tracks(trace).values() if track.HasField("process")
    }
    assert processes == {100: SCRIPT, 101: SCRIPT}
    texts = [note.string_value for event in instants for note in event.debug_annotations]
    slices = [note.string_value for each in events(trace, "SLICE_BEGIN") for note in each.track_event.debug_annotations]
    assert any(ENDING in value for value in texts + slices)


def test_faults_are_instants() -> None:
    header, made = made_up()
    made.insert(4, records.Fault(0, 100, 102, 0x10000000, True))
    for n, record in enumerate(made, 1):
        record.n = n
    trace, _ = viewed((header, made))
    [fault] = [packet for packet in events(trace, "INSTANT") if packet.track_event.name == "write fault"]
    assert fault.timestamp == 5 * RECORD
    assert tracks(trace)[fault.track_event.track_uuid].thread.tid == 102


@given(st.integers(-(2**63), 2**64 - 1))
def test_numbers_are_written_as_protobuf_does(value: int) -> None:
    data = varint(value)
    read_back = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data))
    assert read_back == value % 2**64
    assert [byte >> 7 for byte in data] == [1] * (len(data) - 1) + [0]


def test_the_command(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.jsonl", made_up())
    done = vmalab("report", str(trace), "--trace-viewer", str(tmp_path / "out.gz"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gz", "t.jsonl"]
    assert len(events(read(gzip.decompress((tmp_path / "out.gz").read_bytes())), "SLICE_BEGIN")) == 10
    both = vmalab("report", str(trace), "--trace-viewer", "-", "-o", "-")
    assert both.returncode == 2
    assert "standard output" in both.stderr
