"""Whatever a valid trace holds, a page and an export can be made of it."""

from hypothesis import HealthCheck, given, settings

from tests.trace.strategies import traces
from vmalab.machine import MACHINES
from vmalab.report.collect import Collected
from vmalab.report.html import report_html
from vmalab.report.trace_viewer import TraceViewer
from vmalab.trace.check import Sequence, check
from vmalab.trace.records import Header, Record

PIDS = 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traces())
def test_it_is_shown(trace: tuple[Header, list[Record]]) -> None:
    header, made = trace
    viewer = TraceViewer()
    collected = Collected(header, viewer)
    # What such a trace says need not be possible: that the machine is whole is not asked here.
    collected.replay.machine.settings.sanitise = False
    sequence = Sequence()
    for record in made:
        # Few processes, so that the records are of the same ones.
        for name in ("pid", "parent"):
            if getattr(record, name, 0):
                setattr(record, name, getattr(record, name) % PIDS + 1)
        record.n = sequence.count + 1
        if check(record) is not None or sequence.accept(record) is not None:
            continue
        collected.step(record)
        for process in collected.replay.machine.processes.values():
            space = collected.lives.spaces[collected.lives.number(process.mm)]
            shown = [(space.start[row], space.end[row]) for row in space.at(record.n)]
            assert shown == [(vma.start, vma.end) for vma in process.vmas()]
    collected.finish()
    html = report_html(collected, header, "any")
    assert html.count("<script") == html.count("</script>") == 5
    assert len(viewer.data()) > 0
    assert not any("\n" in text for text in collected.texts), "the page takes them apart at the ends of lines"
    MACHINES.clear()
