"""A long trace: python -m bench.long [CALLS]

Writes a trace of so many calls (ten million), replays it, and tells the rate over its course and the most memory that
the replay took.  Exits with 1 if that is more than 1 GiB, or if the last tenth runs at less than 80 % of the first's
rate.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from vmalab import form
from vmalab.bench.script import NAMES, Scribe, Script
from vmalab.bench.workloads import STEPS, Mix
from vmalab.trace.file import TraceWriter, read_trace
from vmalab.trace.records import Call, End, Exec, Header, Machine
from vmalab.trace.replay import replay_of

CALLS = 10_000_000
LIMIT = 1 << 30
SLOWEST = 0.8
TENTHS = 10


def write(path: str, calls: int) -> None:
    """Write a trace of random maps, unmaps and protections among a thousand VMAs."""
    start = Exec(1, 1, "program", [], mmap_base=0x7FFFF7FFF000, start_brk=0x404000, brk=0x404000)
    scribe = Scribe(Script("long", Machine(), start), 1)
    header = Header("trace", 1, recorder="model", faults="exact", machine=scribe.script.machine)
    with TraceWriter(path, header) as writer:
        writer.write(start)
        mixed = Mix(scribe, 1_000)
        done = 0
        while done < calls:
            for op in scribe.take()[: calls - done]:
                writer.write(Call(0, 1, 1, NAMES[op.number], list(op.args), op.result))
                done += 1
            for _ in range(STEPS):
                mixed.step()
        writer.write(End(0, "done"))


def replay(path: str, calls: int) -> list[float]:
    """Replay a trace: the calls a second in each tenth of it."""
    rates: list[float] = []
    reader = read_trace(path)
    replayed = replay_of(reader.header)
    part = max(calls // TENTHS, 1)
    began = time.process_time()
    for record in reader:
        replayed.step(record)
        if record.n % part == 0:
            now = time.process_time()
            rates.append(part / (now - began))
            began = now
    replayed.finish()
    assert all(program.is_equal() for program in replayed.programs), "the replay differs from the trace"
    return rates


def main(arguments: list[str]) -> int:
    """Write, replay, tell."""
    calls = int(arguments[0]) if arguments else CALLS
    with tempfile.TemporaryDirectory(prefix="vmalab-") as folder:
        path = str(Path(folder) / "long.jsonl.zst")
        write(path, calls)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        rates = replay(path, calls)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    last = rates[-1] / rates[0]
    shown = ", ".join([f"{rate / 1e3:.0f}" for rate in rates])
    print(f"{form()} core: {calls:,} calls, thousands a second in each tenth: {shown}")
    print(f"the last at {last:.0%} of the first; {most / (1 << 20):.0f} MiB at most, {before / (1 << 20):.0f} before")
    return int(most > LIMIT or last < SLOWEST)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
