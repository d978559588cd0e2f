"""vmalab test cow: the copy-on-write suite, in the model and on the running kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from vmalab.cli.common import json_option, print_json

if TYPE_CHECKING:
    from vmalab.testing.cow_families import Case, Result


@click.command()
@click.option("--live", is_flag=True, help="On the running kernel, and compare with the model's verdicts.")
@click.option("--family", "families", multiple=True, metavar="TEXT", help="Only families whose name holds this text.")
@click.option("--type", "types", multiple=True, metavar="TEXT", help="Only page types whose name holds this text.")
@click.option("--list", "only_list", is_flag=True, help="Print the names of the cases.")
@json_option
def cow(live: bool, families: tuple[str, ...], types: tuple[str, ...], only_list: bool, as_json: bool) -> int:
    """Copy-on-write: what a child, a pipe and a pin see, for every kind of page.  778 cases."""
    from vmalab.testing.cow_families import cases

    chosen = [case for case in cases() if _wanted(case.family, families) and _wanted(case.kind, types)]
    if not chosen:
        raise click.UsageError("no case's family and page type hold these texts: --list prints the cases")
    if only_list:
        for case in chosen:
            click.echo(case.name)
        return 0
    with ExitStack() as stack:
        return _run(chosen, _live_runner(stack) if live else _model_runner(), as_json)


def _wanted(name: str, texts: tuple[str, ...]) -> bool:
    return not texts or any(text in name for text in texts)


def _model_runner() -> Callable[[Case], Result]:
    from vmalab.testing.cow_model import run_in_model

    return run_in_model


def _live_runner(stack: ExitStack) -> Callable[[Case], Result]:
    """Each case on the kernel; where the verdict is not the model's, that is what is wrong."""
    from vmalab.live.cow import LiveGround
    from vmalab.testing.cow_families import run_case
    from vmalab.testing.cow_model import run_in_model

    ground = stack.enter_context(LiveGround())

    def run(case: Case) -> Result:
        result = run_case(case, ground)
        if not result.skip:
            model = run_in_model(case)
            if model.verdict() != result.verdict():
                result.wrong = (
                    f"{result.wrong or 'passes'}; the model says {model.verdict()}: {model.wrong or 'passes'}"
                )
                result.differs = True
        return result

    return run


def _run(chosen: list[Case], run: Callable[[Case], Result], as_json: bool) -> int:
    from vmalab.testing import ktap

    totals = ktap.Totals()
    reasons: Counter[str] = Counter()
    results: list[Result] = []
    if not as_json:
        click.echo("\n".join(ktap.heading(len(chosen))))
    for number, case in enumerate(chosen, 1):
        result = run(case)
        verdict = result.verdict()
        totals.passed += verdict == "pass"
        totals.failed += verdict == "fail"
        totals.expected += verdict == "xfail"
        totals.unexpected += verdict == "xpass"
        totals.skipped += verdict == "skip"
        if verdict == "skip":
            reasons[result.skip] += 1
        results.append(result)
        if not as_json:
            problems = (
                [result.wrong] if result.wrong else ["a known failure did not happen"] if verdict == "xpass" else []
            )
            lines = ktap.result_lines(number, case.name, problems, result.skip, xfail=verdict == "xfail")
            click.echo("\n".join(lines))
    if as_json:
        print_json(
            {
                "cases": [
                    {"name": each.case.name, "verdict": each.verdict(), "why": each.wrong or each.skip}
                    for each in results
                ],
                "totals": vars(totals),
                "skipped": dict(reasons),
            }
        )
        return totals.status()
    for reason, count in reasons.most_common():
        click.echo(f"# {count} skipped: {reason}")
    click.echo(totals.line())
    return totals.status()
