"""The lives of VMAs are the address space at every record, and what is told of an address is its story."""

import pytest

from tests.report.traces import BASE, PAGE, demo, made_up
from vmalab.explain.attribution import GAP
from vmalab.explain.story import Story
from vmalab.report.collect import Collected
from vmalab.report.lives import FOREVER
from vmalab.trace import records
from vmalab.trace.replay import Replay

Trace = tuple[records.Header, list[records.Record]]


@pytest.fixture(params=["demo", "made up"])
def trace(request: pytest.FixtureRequest) -> Trace:
    return demo() if request.param == "demo" else made_up()


def collected(trace: Trace) -> Collected:
    found = Collected(trace[0])
    for record in trace[1]:
        found.step(record)
    found.finish()
    return found


def test_at_every_record_they_are_the_vmas(trace: Trace) -> None:
    found = Collected(trace[0])
    compared = 0
    for record in trace[1]:
        found.step(record)
        for process in found.replay.machine.processes.values():
            space = found.lives.spaces[found.lives.number(process.mm)]
            shown = []
            for row in space.at(record.n):
                attributes = found.lives.attributes.rows[space.attributes[row]]
                offset = space.moved[row] + (space.start[row] >> 12)
                shown.append((space.start[row], space.end[row], attributes["perm"], attributes["name"], offset))
            real = [
                (vma.start, vma.end, process.maps_line(vma).split()[1], process.name_of(vma), vma.pgoff)
                for vma in process.vmas()
            ]
            assert shown == real, f"record {record.n}, process {process.pid}"
            groups = found.groups(found.lives.number(process.mm))
            for below, above in zip([None, *space.at(record.n)], space.at(record.n), strict=False):
                touches = below is not None and space.end[below] == space.start[above]
                assert (groups[space.apart[above]].kind == GAP) == (not touches)
            compared += len(real)
    assert compared > 50


def test_the_map_count_is_that_of_the_address_space(trace: Trace) -> None:
    found = Collected(trace[0])
    for record in trace[1]:
        found.step(record)
        process = found.replay.process(getattr(record, "pid", 0))
        if process is not None:
            space = found.lives.spaces[found.lives.number(process.mm)]
            assert space.map_count[-1] == process.mm.map_count


def test_what_ended_has_an_end() -> None:
    found = collected(made_up())
    child = found.lives.spaces[1]
    assert (child.pid, child.parent, child.first, child.last) == (101, 0, 10, 15)
    assert FOREVER not in child.died
    assert child.at(15) == []
    assert len(child.at(14)) > 0


def test_what_is_told_of_an_address_is_its_story(trace: Trace) -> None:
    """The same lines as the story of that address alone, for addresses in all VMAs that ever were."""
    found = collected(trace)
    tale = found.tale
    starts = sorted({start for space in found.lives.spaces for start in space.start})
    for addr in starts[:: max(1, len(starts) // 12)] + [BASE + 3 * PAGE]:
        story = Story(addr)
        story.replay = Replay(trace[0], observer=story)
        for record in trace[1]:
            story.step(record)
        told = []
        for row in range(len(tale.n)):
            if tale.start[row] <= addr < tale.end[row]:
                before, after = tale.words[tale.said[row]]
                about = f"{tale.about_start[row]:x}-{tale.about_end[row]:x}" if tale.about_end[row] else ""
                told.append((tale.n[row], before + about + after))
        grew = "its VMA grew"
        expected = [(line.n, line.what) for line in story.lines if grew not in line.what]
        assert [line for line in told if grew not in line[1]] == expected, hex(addr)


def test_a_failure_has_its_reason() -> None:
    found = collected(made_up())
    [failed] = found.failed
    assert (failed.n, failed.errno, failed.reason, failed.mismatch) == (9, "ENOMEM", "NOT_MAPPED", "")
    assert failed.cause == "nothing is mapped at 0x40000000"
