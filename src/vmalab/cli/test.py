"""Run the tests that come with the package, and print the results as KTAP."""

from __future__ import annotations

from pathlib import Path

import click

from vmalab.cli.common import json_option, print_json
from vmalab.cli.test_cow import cow


@click.group()
def test() -> None:
    """Run the tests that come with the package: results as KTAP, exit statuses as kselftest's."""


test.add_command(cow)


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
    from vmalab.testing.suite import Result, find_scenes, run_scene

    scenes = [scene for scene in find_scenes(list(paths)) if text in scene.name]
    if only_list:
        for scene in scenes:
            click.echo(scene.name)
        return 0
    if not scenes:
        raise click.UsageError(f"no scene's name holds {text!r}")
    lines = ktap.heading(len(scenes))
    results: list[Result] = []
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
