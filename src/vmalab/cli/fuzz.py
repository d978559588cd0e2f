"""Random campaigns that look for a difference."""

from __future__ import annotations

import click

from vmalab.cli.common import console, json_option, print_json, progress


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
