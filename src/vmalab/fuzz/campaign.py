"""Campaigns of lockstep: one random sequence after the other, until so many steps are done or something differs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from vmalab.behaviours import Value, semantics_of
from vmalab.fuzz.corpus import Corpus
from vmalab.fuzz.divergence import Divergence
from vmalab.fuzz.features import Counts
from vmalab.fuzz.files import Files
from vmalab.fuzz.generate import Generator
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.fuzz.safety import Safety
from vmalab.fuzz.shrink import shrink
from vmalab.live.agent import AgentDied

RUN_STEPS: Final = 400
"""Steps of one run, which starts with a fresh process."""
SELDOM: Final = 50_000
"""Objects made between two looks of the garbage collector."""
AGENT_RUNS: Final = 500
"""Runs with one agent."""


@dataclass
class Options:
    """How the runs of a campaign are made."""

    reader: str = ""
    swarm: bool = True
    shorten: bool = True
    jobs: int = 1
    pages: bool = False
    """What is below the VMAs is compared as well."""
    legacy: bool = False
    """Mappings are placed from below, as before the kernel placed them from above."""
    behaviours: dict[str, Value] = field(default_factory=dict)
    """Those that are not the default ones."""


@dataclass
class Run:
    """One run."""

    seed: int
    steps: int = 0
    reader: str = ""
    why_not_bpf: str = ""
    kernel: str = field(default_factory=lambda: os.uname().release)
    counts: Counts = field(default_factory=dict)
    """The steps that were compared."""
    pages: Counter[str] = field(default_factory=Counter)
    """How many pages were compared, by what."""
    missing: dict[str, str] = field(default_factory=dict)
    """What was not compared of pages, and why."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Of how many pages a difference says nothing, by what they are."""
    disturbed: int = 0
    """Runs that ended early with a difference that says nothing: khugepaged made huge pages, or somebody had changed
    the machine's settings of pages.
    """
    divergence: Divergence | None = None
    ops: list[Op] = field(default_factory=list)
    """The sequence, if it diverges."""


@dataclass
class Campaign:
    """What a campaign has done so far."""

    seed: int
    """Of the run that is next."""
    steps: int = 0
    seconds: float = 0.0
    """How long they took."""
    runs: int = 0
    reader: str = ""
    why_not_bpf: str = ""
    counts: Counter[tuple[str, int, int, int]] = field(default_factory=Counter)
    """The steps that were compared."""
    pages: Counter[str] = field(default_factory=Counter)
    """How many pages were compared, by what."""
    missing: dict[str, str] = field(default_factory=dict)
    """What was not compared of pages, and why."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Of how many pages a difference says nothing, by what they are."""
    disturbed: int = 0
    """Runs that ended early with a difference that says nothing: khugepaged made huge pages, or somebody had changed
    the machine's settings of pages.
    """
    divergence: Divergence | None = None
    ops: list[Op] = field(default_factory=list)
    """The sequence that diverges, made short if that was asked for."""

    def add(self, run: Run) -> None:
        """Count a run."""
        self.steps += run.steps
        self.runs += 1
        self.reader, self.why_not_bpf = run.reader, run.why_not_bpf
        self.counts.update(run.counts)
        self.pages.update(run.pages)
        self.missing.update(run.missing)
        self.left_out.update(run.left_out)
        self.disturbed += run.disturbed
        self.divergence, self.ops = run.divergence, run.ops
        self.seed = run.seed if run.divergence is not None else run.seed + 1


class Runner:
    """Runs sequences, each in a fresh process of an agent that serves many of them.  A context manager."""

    def __init__(self, options: Options | None = None) -> None:
        self._options = Options() if options is None else options
        self._files = Files()
        self._lockstep: Lockstep | None = None
        self._runs = 0
        self._disturbed = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *what: object) -> None:
        self._stop()
        self._files.close()

    def _stop(self) -> None:
        if self._lockstep is not None:
            self._lockstep.close()
            self._lockstep = None

    def run(self, make: Callable[[Lockstep], Iterator[Op]]) -> tuple[Lockstep, Divergence | None]:
        """Perform what is made for a lockstep at its start."""
        if self._lockstep is not None and self._runs:
            try:
                self._lockstep.restart()
            except AgentDied:
                # What the run before has left behind is no part of this one.
                self._stop()
        if self._lockstep is None:
            options = self._options
            kernel = semantics_of(options.behaviours)
            self._lockstep = Lockstep(options.reader, self._files, kernel, legacy=options.legacy, pages=options.pages)
            self._runs = 0
        lockstep = self._lockstep
        self._runs += 1
        finished = False
        try:
            found = lockstep.run(make(lockstep))
            finished = found is None
            if found is not None and lockstep.is_disturbed():
                self._disturbed += 1
                found = None
        finally:
            # What went wrong may have left either side with something that the next run would trip over.
            if not finished or self._runs >= AGENT_RUNS:
                self._stop()
        return lockstep, found

    def tries(self, ops: list[Op]) -> Divergence | None:
        """Perform a sequence, but for what the agent would not survive."""
        return self.run(lambda lockstep: _safe(lockstep, ops))[1]

    def one(self, seed: int) -> Run:
        """The run of a seed."""
        lockstep, found = self.run(lambda it: Generator(it, seed, swarm=self._options.swarm).steps(RUN_STEPS))
        agent = lockstep.agent
        done = Run(seed, lockstep.steps, agent.reader, agent.why_not_bpf, counts=lockstep.counts, divergence=found)
        if found is not None:
            done.ops = lockstep.sequence
        views = lockstep.page_views
        if views is not None:
            done.pages, views.compared = views.compared, Counter()
            done.missing = views.missing
            done.left_out, views.left_out = views.left_out, Counter()
        done.disturbed, self._disturbed = self._disturbed, 0
        return done


def _safe(lockstep: Lockstep, ops: list[Op]) -> Iterator[Op]:
    """Those steps of a sequence that may be taken when it is their turn."""
    safety = Safety(lockstep)
    for op in ops:
        if op.who not in lockstep.processes or safety.allows(op):
            yield op


def run(
    campaign: Campaign,
    steps: int,
    update: Callable[[int], None],
    options: Options | None = None,
    corpus: Corpus | None = None,
) -> None:
    """Go on with a campaign for so many steps, or to the first difference, which is made short.

    Interrupted, it is whole as far as it came, and can be gone on with: every run is added to it, and to a corpus,
    when it is done, in the order of their seeds.
    """
    chosen = Options() if options is None else options
    began = time.monotonic()
    with ExitStack() as stack:
        runs = stack.enter_context(_Workers(chosen)) if chosen.jobs > 1 else _serial(stack, chosen)
        for done in runs(count(campaign.seed)):
            with _undivided():
                campaign.add(done)
                now = time.monotonic()
                campaign.seconds, began = campaign.seconds + now - began, now
                if corpus is not None:
                    corpus.add(done)
            update(campaign.steps)
            if campaign.divergence is not None or campaign.steps >= steps:
                break
    if campaign.divergence is not None:
        _conclude(campaign, chosen, corpus)


@contextmanager
def _undivided() -> Iterator[None]:
    """An interrupt (Ctrl-C) that comes within waits for the end: it does not divide what is done here."""
    if threading.current_thread() is not threading.main_thread():
        # Interrupts are the main thread's.
        yield
        return
    arrived: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if arrived:
        signal.raise_signal(signal.SIGINT)


def _conclude(campaign: Campaign, options: Options, corpus: Corpus | None) -> None:
    """Make the sequence that diverges short, and keep it."""
    sequence = campaign.ops
    if options.shorten:
        with Runner(options) as runner:
            shortest, again = shrink(sequence, runner.tries)
        if again is not None:
            campaign.ops, campaign.divergence = shortest, again
    if corpus is not None:
        text = str(campaign.divergence)
        corpus.add_divergence(campaign.seed, text, [repr(op) for op in sequence], [repr(op) for op in campaign.ops])


Runs = Callable[[Iterator[int]], Iterator[Run]]


def _collect_seldom() -> None:
    """Spare the garbage collector what is there already and stays; of what a run makes, little is in cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(SELDOM)


def _serial(stack: ExitStack, options: Options) -> Runs:
    stack.callback(gc.unfreeze)
    stack.callback(gc.set_threshold, *gc.get_threshold())
    _collect_seldom()
    runner = stack.enter_context(Runner(options))
    return lambda seeds: (runner.one(seed) for seed in seeds)


class _Workers:
    """Processes that each have an agent; their runs come in the order of the seeds."""

    def __init__(self, options: Options) -> None:
        self._options = options
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(options.jobs, _start_worker, (options,))

    def __enter__(self) -> Runs:
        return self._runs

    def __exit__(self, *what: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def _runs(self, seeds: Iterator[int]) -> Iterator[Run]:
        waiting = [self._submit(next(seeds)) for _ in range(4 * self._options.jobs)]
        while True:
            yield waiting.pop(0).get()
            waiting.append(self._submit(next(seeds)))

    def _submit(self, seed: int) -> multiprocessing.pool.AsyncResult[Run]:
        return self._pool.apply_async(_work, (seed,))


_RUNNERS: list[Runner] = []
"""The one of this worker."""


def _start_worker(options: Options) -> None:
    # Ctrl-C is for the process that started this one, which ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _collect_seldom()
    _RUNNERS.append(Runner(options))


def _work(seed: int) -> Run:
    return _RUNNERS[0].one(seed)
