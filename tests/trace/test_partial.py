"""Replaying without knowing what was mapped at first: nothing is called wrong that is not."""

from importlib.resources import as_file, files

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmalab.trace.file import read_trace
from vmalab.trace.partial import Territory
from vmalab.trace.records import Call, Exec, Exit, Header, Record
from vmalab.trace.replay import Replay, replay_of

LENGTH = 40
RANGES = st.tuples(st.booleans(), st.integers(0, LENGTH), st.integers(0, LENGTH))


@given(st.lists(RANGES, max_size=12), st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)))
def test_a_territory_is_a_set_of_addresses(changes: list[tuple[bool, int, int]], asked: tuple[int, int]) -> None:
    known: set[int] = set()
    territory = Territory()
    for add, start, end in changes:
        (territory.add if add else territory.remove)(start, end)
        (known.update if add else known.difference_update)(range(start, end))
    start, end = asked
    if start < end:
        assert territory.covers(start, end) == known.issuperset(range(start, end))
    copy = territory.copy()
    territory.remove(0, LENGTH)
    assert not any(territory.covers(at, at + 1) for at in range(LENGTH))
    assert all(copy.covers(at, at + 1) == (at in known) for at in range(LENGTH))


def demo() -> tuple[Header, list[Record]]:
    """The trace that ships with the package: recorded, and replayed without a difference."""
    with as_file(files("vmalab") / "data/demo.jsonl.zst") as path:
        reader = read_trace(path)
        return reader.header, list(reader)


def run(header: Header, records: list[Record]) -> Replay:
    replay = replay_of(header)
    for record in records:
        replay.step(record)
    replay.finish()
    return replay


def forgotten(records: list[Record], keep: float) -> list[Record]:
    """The same records, with some of the first VMAs and no final ones."""
    found: list[Record] = []
    for record in records:
        if isinstance(record, Exec):
            kept = record.vmas[: int(len(record.vmas) * keep)]
            record = msgspec.structs.replace(record, vmas=kept, partial=True)
        elif isinstance(record, Exit):
            record = msgspec.structs.replace(record, vmas=None)
        found.append(record)
    return found


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("faults", ["at-calls", "none"])
def test_what_is_forgotten_makes_nothing_wrong(keep: float, faults: str) -> None:
    header, records = demo()
    replay = run(msgspec.structs.replace(header, faults=faults), forgotten(records, keep))
    assert [program.first for program in replay.programs if program.first is not None] == []
    calls = sum(program.calls for program in replay.programs)
    unknown = sum(program.unknown for program in replay.programs)
    assert unknown < calls * 0.15, (unknown, calls)
    if keep == 1 and faults == "at-calls":
        whole = run(header, records)
        assert unknown == sum(program.unknown for program in whole.programs)
        assert [program.vmas for program in replay.programs] == [program.vmas for program in whole.programs]


def test_a_wrong_result_where_all_is_known_is_a_difference() -> None:
    header, records = demo()
    changed = forgotten(records, 1.0)
    place = next(n for n, record in enumerate(changed) if isinstance(record, Call) and record.call == "munmap")
    record = changed[place]
    assert isinstance(record, Call)
    changed[place] = msgspec.structs.replace(record, ret=-22)
    first = [program.first for program in run(header, changed).programs if program.first is not None]
    assert [each.n for each in first] == [record.n]


def test_a_call_without_a_result_is_performed_and_unknown() -> None:
    header, records = demo()
    changed: list[Record] = []
    count = 0
    for record in records:
        if isinstance(record, Call) and record.call == "mprotect":
            record = msgspec.structs.replace(record, ret=None)
            count += 1
        changed.append(record)
    replay = run(header, changed)
    assert all(program.is_equal() for program in replay.programs)
    assert sum(program.unknown for program in replay.programs) == count
