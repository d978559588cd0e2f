"""Campaigns of lockstep: one random sequence after the other, until so many steps are done or something differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vmalab.fuzz.generate import Generator
from vmalab.fuzz.lockstep import Divergence, Files, Lockstep, Op
from vmalab.fuzz.shrink import shrink

RUN_STEPS: Final = 400
"""Steps of one run, which starts with a fresh agent."""


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
    files = Files()
    try:
        while campaign.steps < steps and campaign.divergence is None:
            _one_run(campaign, files, reader, swarm)
            update(campaign.steps)
        if campaign.divergence is not None and shorten:
            campaign.ops, again = shrink(campaign.ops, lambda ops: _try(ops, files, reader))
            campaign.divergence = again or campaign.divergence
    finally:
        files.close()


def _one_run(campaign: Campaign, files: Files, reader: str, swarm: bool) -> None:
    ops: list[Op] = []
    with Lockstep(reader, files) as lockstep:
        campaign.reader, campaign.why_not_bpf = lockstep.agent.reader, lockstep.agent.why_not_bpf
        generator = Generator(lockstep, campaign.seed, swarm=swarm)
        found = lockstep.run(_keep(generator.steps(RUN_STEPS), ops))
        campaign.steps += lockstep.steps
    campaign.runs += 1
    campaign.kinds.update([op.name for op in ops])
    if found is not None:
        campaign.divergence, campaign.ops = found, ops
    else:
        campaign.seed += 1


def _keep(steps: Iterator[Op], kept: list[Op]) -> Iterator[Op]:
    """The same steps; each is put into a list as well."""
    for op in steps:
        kept.append(op)
        yield op


def _try(ops: list[Op], files: Files, reader: str) -> Divergence | None:
    with Lockstep(reader, files) as lockstep:
        return lockstep.run(ops)
