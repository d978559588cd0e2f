"""Random campaigns that look for a difference."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from vmalab.cli.common import console, escape_text, json_option, print_json, progress, semantics_option
from vmalab.text import count_text

if TYPE_CHECKING:
    from vmalab.fuzz.campaign import Campaign


@click.group()
def fuzz() -> None:
    """Run random steps against something that knows better, and stop at the first difference."""


@fuzz.command()
@click.option("--steps", type=click.IntRange(min=1), default=100_000, show_default=True, help="How many operations.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Reproduces a run.")
@json_option
def tree(steps: int, seed: int, as_json: bool) -> int:
    """The range tree against a naive dictionary.  Exits with 1 at a difference."""
    from vmalab.fuzz.tree import run

    with progress("fuzz tree", steps, quiet=as_json) as update:
        difference = run(steps, seed, update)
    if as_json:
        shown = str(difference) if difference is not None else None
        print_json({"steps": steps, "seed": seed, "difference": shown})
    elif difference is None:
        console().print(f"{steps:,} operations from seed {seed}: no difference")
    else:
        console().print(str(difference))
    return 0 if difference is None else 1


@fuzz.command()
@click.option("--steps", type=click.IntRange(min=1), default=100_000, show_default=True, help="How many steps.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the first run.")
@click.option(
    "--reader",
    type=click.Choice(["bpf", "query", "smaps", "maps", "none"]),
    help="How VMAs are read; the best, if not said.",
)
@click.option("--swarm/--no-swarm", default=True, show_default=True, help="Each run has some kinds of step, or all.")
@click.option("--layout", type=click.Choice(["topdown", "legacy"]), default="topdown", help="Where mappings go.")
@click.option("--pages", is_flag=True, help="Compare the pages below the VMAs as well.")
@click.option("--hugepages", type=click.IntRange(min=0), default=0, help="Have so many huge pages of 2 MiB meanwhile.")
@click.option("--shrink/--no-shrink", default=True, show_default=True, help="Make a sequence that diverges short.")
@click.option("-j", "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Agents at once.")
@click.option("--corpus", type=click.Path(dir_okay=False), help="SQLite file that keeps runs and divergences.")
@click.option("--trace", metavar="FILE", help="Write the sequence that diverges as a trace, for vmalab replay.")
@semantics_option
@click.option("--resume", is_flag=True, help="Go on behind the last run that the corpus has.")
@json_option
def live(
    steps: int,
    seed: int,
    reader: str | None,
    swarm: bool,
    layout: str,
    pages: bool,
    hugepages: int,
    shrink: bool,
    jobs: int,
    corpus: str | None,
    trace: str | None,
    semantics: str | None,
    resume: bool,
    as_json: bool,
) -> int:
    """The model against this kernel: random calls on both, everything compared after each.  Exits with 1 at a
    difference.

    Every 400 steps are a run of their own, from a seed; with Ctrl-C all runs that are done are kept, and the seed to
    go on with is told.
    """
    from vmalab.behaviours import behaviours, read_semantics
    from vmalab.fuzz.campaign import Campaign, Options, run
    from vmalab.fuzz.corpus import Corpus
    from vmalab.fuzz.pool import huge_pages
    from vmalab.fuzz.show import write_trace

    if resume and corpus is None:
        raise click.UsageError("--resume goes on with a corpus: name it with --corpus FILE")
    kernel = behaviours(read_semantics(semantics)) if semantics is not None else {}
    options = Options(reader or "", swarm, shrink, jobs, pages, layout == "legacy", kernel)
    interrupted = False
    with ExitStack() as stack:
        stack.enter_context(huge_pages(hugepages))
        kept = stack.enter_context(Corpus(corpus)) if corpus is not None else None
        first = kept.next_seed(seed) if kept is not None and resume else seed
        campaign = Campaign(first)
        try:
            with progress("fuzz live", steps, quiet=as_json) as update:
                run(campaign, steps, update, options, kept)
        except KeyboardInterrupt:
            interrupted = True
    if trace is not None and campaign.divergence is not None:
        write_trace(trace, campaign.ops, reader or "")
    if as_json:
        print_json(_live_json(campaign, interrupted))
    else:
        _show_live(campaign, first, interrupted, pages)
    return 1 if campaign.divergence is not None else 130 if interrupted else 0


def _live_json(campaign: Campaign, interrupted: bool) -> dict[str, object]:
    from vmalab.fuzz.features import by_feature, by_outcome

    found = campaign.divergence
    return {
        "kernel": os.uname().release,
        "reader": campaign.reader,
        "steps": campaign.steps,
        "runs": campaign.runs,
        "next_seed": campaign.seed,
        "interrupted": interrupted,
        "pages_compared": dict(campaign.pages),
        "pages_not_compared": campaign.missing,
        "pages_left_out": dict(campaign.left_out),
        "runs_disturbed": campaign.disturbed,
        "features": dict(sorted(by_feature(campaign.counts).items())),
        "outcomes": {
            f"{call}: {reason}": steps for (call, reason), steps in sorted(by_outcome(campaign.counts).items())
        },
        "divergence": str(found) if found is not None else None,
        "sequence": [repr(op) for op in campaign.ops],
    }


def _show_live(campaign: Campaign, seed: int, interrupted: bool, pages: bool) -> None:
    from vmalab.fuzz.as_c import as_c
    from vmalab.fuzz.show import strips
    from vmalab.fuzz.shrink import as_python

    out = console()
    better = f" (no BPF iterator: {campaign.why_not_bpf})" if campaign.why_not_bpf else ""
    done = f"{campaign.steps:,} steps in {campaign.runs:,} runs from seed {seed}, read by {campaign.reader}{better}"
    if campaign.seconds:
        done += f", {campaign.steps / campaign.seconds:,.0f} a second"
    if campaign.divergence is None:
        more = f"; interrupted, go on with --seed {campaign.seed}" if interrupted else ""
        out.print(f"{done}: no difference{more}")
        _show_pages(campaign)
        return
    out.print(f"{done}: seed {campaign.seed} diverges")
    _show_pages(campaign)
    out.print(f"  {campaign.divergence}")
    for line in strips(campaign.divergence):
        out.print(line)
    out.print("\nthe sequence, as Python:\n")
    out.print(as_python(campaign.ops, pages))
    out.print("and as C:\n")
    out.print(as_c(campaign.ops))


def _show_pages(campaign: Campaign) -> None:
    """How many pages were compared, by what; and what could not be."""
    if campaign.pages:
        compared = ", ".join([f"{count:,} by {what}" for what, count in campaign.pages.items()])
        missing = "".join([f"; not by {what}: {escape_text(why)}" for what, why in campaign.missing.items()])
        console().print(f"  pages: {compared}{missing}")
    if campaign.left_out:
        console().print(f"  left out: {', '.join([f'{count:,} {what}' for what, count in campaign.left_out.items()])}")
    if campaign.disturbed:
        ended = f"{count_text(campaign.disturbed, 'run')} ended early"
        console().print(f"  {ended}: khugepaged made huge pages meanwhile, or somebody changed their settings or pool")
