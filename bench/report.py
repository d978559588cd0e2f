"""What a report of a long trace costs: python -m bench.report [CALLS] [SEED], or python -m bench.report PAGE.html

A trace of so many calls (100,000) is made with the model: a program that maps arenas, protects pages of a JIT, gives
advice, frees, grows its heap, and is refused now and then.  Then: the time to make the page, as a ratio to a replay
alone; its size; and, where Chromium is there, the time to the first picture, and until all of it can be read.  Of a
page that is there already only the last.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.browser import chromium, open_page, why_no_browser
from vmalab import form
from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call
from vmalab.dispatch import perform
from vmalab.flags import (
    MADV_DODUMP,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from vmalab.report.collect import collect
from vmalab.report.html import report_html
from vmalab.trace import records
from vmalab.trace.file import TraceWriter, read_trace
from vmalab.trace.replay import Replay

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession

CALLS = 100_000
OPENINGS = 7
_MARKS = """[...performance.getEntriesByType("paint").slice(0, 1), ...performance.getEntriesByType("mark")]
    .map((each) => each.startTime / 1000)"""
ARENA = 64 * PAGE_SIZE
JIT = PROT_READ | PROT_EXEC


class Program:
    """Makes calls as a program would, and writes them down with what the model answers."""

    def __init__(self, writer: TraceWriter, header: records.Header, first: records.Exec, seed: int) -> None:
        self.writer = writer
        self.replay = Replay(header)
        self.pid = first.pid
        self.random = random.Random(seed)
        self.arenas: list[int] = []
        self._put(first)
        process = self.replay.process(self.pid)
        assert process is not None
        self.process = process

    def _put(self, record: records.Record) -> None:
        self.writer.write(record)
        self.replay.step(record)

    def call(self, name: str, *args: int) -> int:
        """One call; memory that can be written to is written to before the next."""
        call = Call(name, args)
        written = [addr for addr in self.arenas[-1:] if self.random.random() < 0.3]
        self.replay.observe(self.process, [], written)
        outcome = perform(self.process, call)
        self.writer.write(
            records.Call(0, self.pid, self.pid, name, list(args), outcome.result, written=written, data={})
        )
        return outcome.result

    def step(self) -> None:
        """One of the things that a program does."""
        pick = self.random.random()
        rw = PROT_READ | PROT_WRITE
        if not self.arenas or pick < 0.12:
            found = self.call("mmap", 0, ARENA, rw, MAP_PRIVATE | MAP_ANONYMOUS, 0xFFFFFFFF, 0)
            if found > 0:
                self.arenas.append(found)
            return
        place = self.random.randrange(len(self.arenas))
        page = self.arenas[place] + self.random.randrange(64) * PAGE_SIZE
        if pick < 0.55:
            self.call("mprotect", page, PAGE_SIZE, self.random.choice((rw, rw, PROT_READ, JIT, PROT_NONE)))
        elif pick < 0.8:
            self.call("madvise", page, PAGE_SIZE, self.random.choice((MADV_DONTFORK, MADV_DONTDUMP, MADV_DODUMP)))
        elif pick < 0.9:
            self.call("munmap", self.arenas.pop(place), ARENA)
        elif pick < 0.905:
            self.call("mprotect", page + 1, PAGE_SIZE, rw)
        elif pick < 0.95:
            self.call("munmap", page, PAGE_SIZE)
        else:
            self.call("brk", self.process.mm.brk + PAGE_SIZE * self.random.randrange(1, 9))


def make_trace(path: Path, calls: int, seed: int) -> None:
    """Write a trace of so many calls that begins as the trace of the demo does."""
    with resources.as_file(resources.files("vmalab").joinpath("data/demo.jsonl.zst")) as demo:
        reader = read_trace(demo)
        header = reader.header
        first = next(record for record in reader if isinstance(record, records.Exec))
    header.recorder = "model"
    header.command = ["a made-up program", str(calls), str(seed)]
    with TraceWriter(path, header) as writer:
        program = Program(writer, header, first, seed)
        for _ in range(calls):
            program.step()
        writer.write(records.End(0, "done"))


def _print_opening(long: Path) -> None:
    """How long a browser takes, and how long its main thread works, which other load on the machine changes less.

    Each is the median of some openings, those of the page and of that of the demo by turns.
    """
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        short = Path(folder) / "short.html"
        with resources.as_file(resources.files("vmalab").joinpath("data/demo.jsonl.zst")) as demo:
            reader = read_trace(demo)
            short.write_text(report_html(collect(reader, lambda _: None), reader.header, "demo"), "utf-8")
        found: dict[Path, list[list[float]]] = {short: [], long: []}
        for _ in range(OPENINGS):
            for path, times in found.items():
                with open_page(browser, path) as tab:
                    session = tab.context.new_cdp_session(tab)
                    session.send("Performance.enable", {"timeDomain": "threadTicks"})
                    before = _work(session)
                    tab.reload()
                    for _ in range(3_000):
                        if tab.evaluate("document.documentElement.dataset.ready") == "whole":
                            break
                        tab.wait_for_timeout(20)
                    else:
                        sys.exit(f"{path} cannot be read after a minute")
                    times.append([*tab.evaluate(_MARKS), _work(session) - before])
    paint, picture, whole, worked = (median(column) for column in zip(*found[long], strict=True))
    ratio = worked / median(times[-1] for times in found[short])
    print(f"in Chromium without a GPU, the median of {OPENINGS}: painted first after {paint:.2f} s,")
    print(f"  the picture after {picture:.2f} s, all that can be read after {whole:.2f} s;")
    print(f"  its main thread works {worked:.2f} s, {ratio:.1f} times as long as for the page of the demo")


def _work(session: CDPSession) -> float:
    return next(
        float(each["value"])
        for each in session.send("Performance.getMetrics")["metrics"]
        if each["name"] == "TaskDuration"
    )


def main() -> int:
    """Print what it costs."""
    missing = why_no_browser()
    if sys.argv[1:] and sys.argv[1].endswith(".html"):
        if missing is not None:
            sys.exit(f"not opened in a browser: {missing}")
        _print_opening(Path(sys.argv[1]).resolve())
        return 0
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else CALLS
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "long.jsonl.zst"
        make_trace(trace, calls, seed)
        began = time.perf_counter()
        reader = read_trace(trace)
        replay = Replay(reader.header)
        for record in reader:
            replay.step(record)
        alone = time.perf_counter() - began
        began = time.perf_counter()
        reader = read_trace(trace)
        collected = collect(reader, lambda _: None)
        seen = time.perf_counter() - began
        page = report_html(collected, reader.header, "long")
        whole = time.perf_counter() - began
        replay.finish()
        print(f"{calls:,} calls, {form()} core; the largest map count {replay.programs[0].peak:,}")
        print(f"replay alone 1.0, with all that the report tells {seen / alone:.1f}, and the page {whole / alone:.1f}")
        print(f"  ({alone:.1f} s, {seen:.1f} s, {whole:.1f} s)")
        lives = sum(len(space.start) for space in collected.lives.spaces)
        print(f"{lives:,} lives, {len(collected.tale.n):,} happenings: a page of {len(page) / (1 << 20):.1f} MiB")
        if missing is not None:
            print(f"not opened in a browser: {missing}")
            return 0
        path = Path(folder) / "long.html"
        path.write_text(page, "utf-8")
        _print_opening(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
