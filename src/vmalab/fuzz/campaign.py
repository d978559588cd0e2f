"""Campaigns of lockstep: one random sequence after the other, until so many steps are done or something differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vmalab.fuzz.files import Files
from vmalab.fuzz.generate import Generator
from vmalab.fuzz.lockstep import Divergence, Lockstep
from vmalab.fuzz.ops import Op
from vmalab.fuzz.shrink import shrink

RUN_STEPS: Final = 400
"""Steps of one run, which starts with a fresh process."""
AGENT_RUNS: Final = 500
"""Runs with one agent."""


@dataclass
class Campaign:
    """What a campaign has done so far."""

    seed: int
    """Of the run that is next."""
    steps: int = 0
    runs: int = 0
    reader: str = ""
    why_not_bpf: str = ""
    kinds: Counter[str] = field(default_factory=Counter)
    """How many steps of each call were compared."""
    divergence: Divergence | None = None
    ops: list[Op] = field(default_factory=list)
    """The sequence that diverges."""


class Runner:
    """Runs sequences, each in a fresh process of an agent that serves many of them.  A context manager."""

    def __init__(self, reader: str = "") -> None:
        self._reader = reader
        self._files = Files()
        self._lockstep: Lockstep | None = None
        self._runs = 0

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
        if self._lockstep is None:
            self._lockstep = Lockstep(self._reader, self._files)
            self._runs = 0
        elif self._runs:
            self._lockstep.restart()
        lockstep = self._lockstep
        self._runs += 1
        finished = False
        try:
            found = lockstep.run(make(lockstep))
            finished = found is None
        finally:
            # What went wrong may have left either side with something that the next run would trip over.
            if not finished or self._runs >= AGENT_RUNS:
                self._stop()
        return lockstep, found

    def tries(self, ops: list[Op]) -> Divergence | None:
        """Perform a sequence."""
        return self.run(lambda lockstep: iter(ops))[1]


def run(
    campaign: Campaign,
    steps: int,
    update: Callable[[int], None],
    *,
    reader: str = "",
    swarm: bool = True,
    shorten: bool = True,
) -> None:
    """Go on with a campaign for so many steps, or to the first difference, which is made short.

    Interrupted, it is whole as far as it came, and can be gone on with.
    """
    with Runner(reader) as runner:
        while campaign.steps < steps and campaign.divergence is None:
            _one_run(campaign, runner, swarm)
            update(campaign.steps)
        if campaign.divergence is not None and shorten:
            campaign.ops, again = shrink(campaign.ops, runner.tries)
            campaign.divergence = again or campaign.divergence


def _one_run(campaign: Campaign, runner: Runner, swarm: bool) -> None:
    ops: list[Op] = []

    def make(lockstep: Lockstep) -> Iterator[Op]:
        campaign.reader, campaign.why_not_bpf = lockstep.agent.reader, lockstep.agent.why_not_bpf
        for op in Generator(lockstep, campaign.seed, swarm=swarm).steps(RUN_STEPS):
            ops.append(op)
            yield op

    lockstep, found = runner.run(make)
    campaign.steps += lockstep.steps
    campaign.runs += 1
    campaign.kinds.update([op.name for op in ops])
    if found is not None:
        campaign.divergence, campaign.ops = found, ops
    else:
        campaign.seed += 1
