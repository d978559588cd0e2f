"""What going back in a trace costs, as multiples of a step forward: python -m bench.timeline [RECORDS [PAGES]]

The trace is made by a generator: random calls of up to four processes, in so many pages; more pages, more VMAs.
Times are of the processor.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

from tests.debug.tapes import made_tape
from vmalab import form
from vmalab.debug.timeline import Timeline
from vmalab.trace.replay import replay_of

RECORDS = 100_000
PAGES = 2_000
JUMPS = 60
STEPS = 400


def _seconds(what: Callable[[], object]) -> float:
    began = time.process_time()
    what()
    return time.process_time() - began


def _report(name: str, times: list[float], step: float) -> None:
    shown = [f"{value / step:>9,.1f}" for value in (median(times), mean(times), max(times))]
    print(f"{name:<34}{''.join(shown)}")


def main(records: int = RECORDS, pages: int = PAGES) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        tape = made_tape(Path(folder), 1, records, span=pages)
    replay = replay_of(tape.header)
    plain = _seconds(lambda: [replay.step(record) for record in tape.between(1, len(tape))])
    step = plain / len(tape)
    timeline = Timeline(tape)
    first = _seconds(lambda: timeline.goto(len(tape)))
    timeline.goto(len(tape) * 2 // 3)
    vmas = sum(process.mm.map_count for process in timeline.processes.values())
    print(f"{form()} core, {len(tape):,} records, {vmas:,} VMAs after two thirds, {step * 1e6:.1f} us a step forward")
    print(f"through the trace with snapshots: {first / plain:.2f} times the replay without")
    shots = timeline.shots
    print(f"{len(shots.places())} snapshots, {shots.size():,} bytes; the records packed: {tape.size():,} bytes")
    print(f"\n{'in steps forward':<34}{'median':>9}{'mean':>9}{'most':>9}")
    chosen = random.Random(1)
    places = [chosen.randint(1, len(tape)) for _ in range(JUMPS)]
    _report("to any record", [_seconds(lambda n=n: timeline.goto(n)) for n in places], step)  # type: ignore[misc]
    _report("the same from the start (computed)", [n * step for n in places], step)
    timeline.goto(len(tape) * 2 // 3)
    _report("a step back", [_seconds(lambda: timeline.goto(timeline.n - 1)) for _ in range(STEPS)], step)
    _report("a step forward, looked at", [_seconds(lambda: timeline.goto(timeline.n + 1)) for _ in range(STEPS)], step)
    frozen = [_seconds(timeline._freeze) for _ in range(10)]
    _report("a snapshot", frozen, step)
    print(f"\nmost memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main(*[int(each) for each in sys.argv[1:3]])
