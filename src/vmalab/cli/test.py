"""Run the tests that come with the package, and print the results as KTAP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmalab.cli.common import json_option, print_json

if TYPE_CHECKING:
    from vmalab.testing import cow_families


@click.group(invoke_without_command=True)
@click.option("--check", is_flag=True, help="Say what of `test cow --live` this machine can run, and why not the rest.")
@click.pass_context
def test(ctx: click.Context, check: bool) -> int | None:
    """Run the tests that come with the package: results as KTAP, exit statuses as kselftest's."""
    if check:
        ctx.exit(_check_live())
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
    return None


@test.command()
@click.option(
    "--scenes",
    "paths",
    multiple=True,
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    help="Scenes to run instead of the packaged ones: a file, or a directory of .scene files.",
)
@click.option("--filter", "text", default="", metavar="TEXT", help="Only scenes whose name holds this text.")
@click.option("--list", "only_list", is_flag=True, help="Print the names of the scenes.")
@click.option("--failures/--no-failures", default=True, help="Fail each allocation in turn as well.", show_default=True)
@click.option("--sanitise/--no-sanitise", default=True, help="Poison what is freed, assert locks.", show_default=True)
@json_option
def vma(paths: tuple[Path, ...], text: str, only_list: bool, failures: bool, sanitise: bool, as_json: bool) -> int:
    """The core of the model on scenes: merge, split, modify, expand, shrink, relocate, map, unmap.

    Each scene runs as it is, and again with each of its allocations failing in turn.
    """
    from vmalab.testing import ktap
    from vmalab.testing.suite import Result as SceneResult
    from vmalab.testing.suite import find_scenes, run_scene

    scenes = [scene for scene in find_scenes(list(paths)) if text in scene.name]
    if only_list:
        for scene in scenes:
            click.echo(scene.name)
        return 0
    if not scenes:
        raise click.UsageError(f"no scene's name holds {text!r}")
    lines = ktap.heading(len(scenes))
    results: list[SceneResult] = []
    totals = ktap.Totals()
    for number, scene in enumerate(scenes, 1):
        result = run_scene(scene, sanitise=sanitise, failures=failures)
        results.append(result)
        totals.failed += bool(result.problems)
        totals.passed += not result.problems
        where = [f"{scene.path}, line {scene.line}"] if result.problems else []
        lines += ktap.result_lines(number, scene.name, [*where, *result.problems])
    pairs = {pair for result in results for pair in result.pairs}
    count = sum(result.failures for result in results)
    if as_json:
        print_json(
            {
                "scenes": [
                    {"name": each.scene.name, "problems": each.problems, "failures": each.failures} for each in results
                ],
                "failures": count,
                "pairs": sorted(pairs),
            }
        )
        return totals.status()
    click.echo("\n".join(lines))
    if failures:
        click.echo(f"# {count:,} allocations failed in turn: {len(pairs)} pairs of operation and site")
    click.echo(totals.line())
    return totals.status()


@test.command()
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


def _check_live() -> int:
    """Print which cases can run on this machine, by what keeps the others from it; 0, or 4 if none can."""
    from vmalab.live.cow import LiveGround
    from vmalab.testing.cow_families import cases

    able = 0
    missing: Counter[str] = Counter()
    with LiveGround() as ground:
        for case in cases():
            reason = ground.missing(case)
            able += not reason
            missing[reason] += bool(reason)
    click.echo(f"{able} cases of copy-on-write can be tried on this machine")
    for reason, count in missing.most_common():
        if reason:
            click.echo(f"{count} cannot: {reason}")
    return 0 if able else 4


def _wanted(name: str, texts: tuple[str, ...]) -> bool:
    return not texts or any(text in name for text in texts)


def _model_runner() -> Callable[[cow_families.Case], cow_families.Result]:
    from vmalab.testing.cow_model import run_in_model

    return run_in_model


def _live_runner(stack: ExitStack) -> Callable[[cow_families.Case], cow_families.Result]:
    """Each case on the kernel; where the verdict is not the model's, that is what is wrong."""
    from vmalab.live.cow import LiveGround
    from vmalab.testing.cow_families import run_case
    from vmalab.testing.cow_model import run_in_model

    ground = stack.enter_context(LiveGround())

    def run(case: cow_families.Case) -> cow_families.Result:
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


def _run(
    chosen: list[cow_families.Case], run: Callable[[cow_families.Case], cow_families.Result], as_json: bool
) -> int:
    from vmalab.testing import ktap

    totals = ktap.Totals()
    reasons: Counter[str] = Counter()
    results: list[cow_families.Result] = []
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
