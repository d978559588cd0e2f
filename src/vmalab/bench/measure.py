"""Measuring a workload: the contenders in turn, round by round, and the ratios of what each round took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from vmalab._form import VARIABLE, is_built
from vmalab.bench.contenders import Contender, Live
from vmalab.bench.script import Scribe, Script
from vmalab.bench.workloads import MANY, PAGED, WORKLOADS
from vmalab.errors import VmalabError
from vmalab.trace.records import Exec

REPLAY: Final = "replay"
NAMES: Final = (*WORKLOADS, REPLAY)
FEWEST: Final = 5
"""Rounds that a median is taken of, at least."""
_CHILD: Final = [sys.executable, "-m", "vmalab.bench.worker"]
_PROGRAM: Final = """
import asyncio, decimal, json, sqlite3, threading
workers = [threading.Thread(target=lambda: json.loads(json.dumps(list(range(100_000))))) for _ in range(4)]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""
"""A real program, which says nothing."""
_QUIET_HEAP: Final = {"MALLOC_TOP_PAD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""glibc's malloc shall leave the break alone while a script moves it."""


class Result(msgspec.Struct):
    """What was measured of one workload.

    Rates are medians, of steps a second; None where there was nobody to measure.
    """

    workload: str
    vmas: int
    vmalab_ops_s: float | None = None
    """The model, compiled, by its compiled loop."""
    face_ops_s: float | None = None
    """The same, called from interpreted Python."""
    interpreted_ops_s: float | None = None
    live_ops_s: float | None = None
    """The kernel by the agent; for replay, the program itself."""
    ctypes_ops_s: float | None = None
    ratio_live: float | None = None
    """vmalab_ops_s to live_ops_s: the median of the ratios of each round."""
    ratio_live_spread: tuple[float, float] | None = None
    """The smallest and the largest of them."""
    ratio_ctypes: float | None = None
    """face_ops_s to ctypes_ops_s, both from the same interpreted loop."""
    ratio_ctypes_spread: tuple[float, float] | None = None
    ratio_interpreted: float | None = None
    """interpreted_ops_s to live_ops_s."""
    ratio_interpreted_spread: tuple[float, float] | None = None
    rounds: int = 0
    ops: int = 0
    """Steps of one round."""
    notes: list[str] = []
    """Why something was not measured."""


class _Worker:
    """A contender in a process of its own."""

    def __init__(self, kind: str, path: str, *, interpreted: bool) -> None:
        environment = {**os.environ, VARIABLE: "1" if interpreted else "0", "VMALAB_SANITISE": "0"}
        if kind == "ctypes":
            environment.update(_QUIET_HEAP)
        self._process = subprocess.Popen(
            [*_CHILD, kind, path], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def setup(self) -> None:
        """Wait until it is prepared."""
        self.answer()

    def answer(self) -> dict[str, Any]:
        """What it says next.  Raises VmalabError where it could not do what it was to."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise VmalabError(f"a process of the measurement has ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise VmalabError(answer["error"])
        return answer

    def round(self, number: int) -> float:
        """The seconds of a round."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return float(self.answer()["seconds"])

    def close(self) -> None:
        """End it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()


class _Program:
    """The program that a trace was recorded of, run by itself: the time from its start to its end."""

    def __init__(self, command: list[str], start_up: list[str]) -> None:
        self._command = command
        self._start_up = start_up

    def setup(self) -> None:
        """The first run reads the files from the disk."""
        self.round(0)

    def round(self, number: int) -> float:
        """The seconds of one run less those of the bare interpreter."""
        return max(_elapsed(self._command) - _elapsed(self._start_up), 1e-6)

    def close(self) -> None:
        """It has ended."""


def _elapsed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(name: str, rounds: int, tell: Callable[[int], None], seed: int = 1) -> Result:
    """Measure one workload in so many rounds.  tell is called with how many rounds are done."""
    if name == REPLAY:
        return _measure_replay(rounds, tell)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmalab-"))
        script, live, notes = _make(name, rounds, seed)
        if live is not None:
            stack.callback(live.close)
        path = str(Path(folder) / "script")
        Path(path).write_bytes(msgspec.msgpack.encode(script))
        result = Result(name, script.vmas, rounds=rounds, ops=script.ops, notes=notes)
        workers: dict[str, Contender] = {}
        if is_built():
            workers["vmalab"] = _Worker("model", path, interpreted=False)
            workers["face"] = _Worker("face", path, interpreted=False)
        else:
            notes.append("the core is not compiled here")
        if name in MANY:
            notes.append("interpreted, so many VMAs take minutes to make")
        else:
            workers["interpreted"] = _Worker("model", path, interpreted=True)
        if live is not None:
            workers["live"] = live
            workers["ctypes"] = _Worker("ctypes", path, interpreted=True)
        _fill_in(result, _run(workers, stack, rounds, tell))
        return result


def _run(
    workers: dict[str, Contender], stack: ExitStack, rounds: int, tell: Callable[[int], None]
) -> dict[str, list[float]]:
    """All rounds, each by every contender in turn: the seconds of each."""
    for worker in workers.values():
        if isinstance(worker, _Worker):
            stack.callback(worker.close)
    for worker in workers.values():
        worker.setup()
    seconds: dict[str, list[float]] = {who: [] for who in workers}
    for number in range(rounds):
        for who, worker in workers.items():
            seconds[who].append(worker.round(number))
        tell(number + 1)
    return seconds


def _make(name: str, rounds: int, seed: int) -> tuple[Script, Live | None, list[str]]:
    """The script of a workload; the kernel as one who runs it, where it can; and why not."""
    from vmalab.live.agent import Agent, why_not
    from vmalab.live.facts import machine_facts
    from vmalab.live.procfs import read_process

    notes: list[str] = []
    agent: Agent | None = None
    reason = why_not()
    machine = machine_facts()
    needed = MANY.get(name, 0)
    if reason is None and machine.max_map_count < needed:
        reason = f"vm.max_map_count is {machine.max_map_count:,}; it would have to be {needed:,}"
        machine.max_map_count = needed
    if reason is None:
        agent = Agent("none", seconds=60.0)
        start = read_process(agent.pid)
    else:
        notes.append(f"no kernel to compare with: {reason}")
        start = Exec(1, 1, "", [], mmap_base=0x7FFFF7FFF000, start_brk=0x404000, brk=0x404000)
    script = Script(name, machine, start, pages=name in PAGED)
    WORKLOADS[name](Scribe(script, seed), rounds)
    return script, Live(script, agent) if agent is not None else None, notes


def _fill_in(result: Result, seconds: dict[str, list[float]]) -> None:
    """Rates and ratios from what each round took."""

    def rate(who: str) -> float | None:
        return result.ops / median(seconds[who]) if who in seconds else None

    def ratio(ours: str, theirs: str) -> tuple[float | None, tuple[float, float] | None]:
        if ours not in seconds or theirs not in seconds:
            return None, None
        found = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
        return median(found), (min(found), max(found))

    result.vmalab_ops_s = rate("vmalab")
    result.face_ops_s = rate("face")
    result.interpreted_ops_s = rate("interpreted")
    result.live_ops_s = rate("live")
    result.ctypes_ops_s = rate("ctypes")
    result.ratio_live, result.ratio_live_spread = ratio("vmalab", "live")
    result.ratio_ctypes, result.ratio_ctypes_spread = ratio("face", "ctypes")
    result.ratio_interpreted, result.ratio_interpreted_spread = ratio("interpreted", "live")


def memory() -> tuple[float, float]:
    """Bytes of memory that the model takes for each of a million VMAs, and of a million pages, at most."""
    worker = _Worker("memory", "-", interpreted=not is_built())
    try:
        found = worker.answer()
        return found["vma"], found["page"]
    finally:
        worker.close()


def _measure_replay(rounds: int, tell: Callable[[int], None]) -> Result:
    """A real program: recorded once, then run by itself and replayed in turn."""
    from vmalab.bench.worker import Replaying
    from vmalab.live.record import record, why_not

    result = Result(REPLAY, 0, rounds=rounds)
    command = [sys.executable, "-c", _PROGRAM]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmalab-"))
        path = str(Path(folder) / "trace.jsonl.zst")
        workers: dict[str, Contender] = {}
        reason = why_not()
        if reason is None:
            record(command, path)
            workers["live"] = _Program(command, [sys.executable, "-c", ""])
        else:
            result.notes.append(f"no program to compare with: {reason}")
            path = str(Path(__file__).parent.parent / "data/demo.jsonl.zst")
        if is_built():
            workers["vmalab"] = _Worker("replay", path, interpreted=False)
        else:
            result.notes.append("the core is not compiled here")
        workers["interpreted"] = _Worker("replay", path, interpreted=True)
        trial = Replaying(path)
        trial.round(0)
        result.ops = trial.calls
        result.vmas = trial.vmas
        _fill_in(result, _run(workers, stack, rounds, tell))
    return result
