"""Which memory calls and flags are supported, and how that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from vmalab.cli.common import console, escape_text, json_option, print_json
from vmalab.errors import InputError


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of the README.")
@click.option("--add", "added", multiple=True, metavar="FILE", help="Add a run: what vmalab fuzz live --json printed.")
@click.option("--data", metavar="FILE", type=click.Path(dir_okay=False), help="The record to read, and to add to.")
@json_option
def support(as_markdown: bool, added: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """For every memory call and flag: confirmed in lockstep with a kernel, modelled only, or not modelled."""
    from vmalab.support import DATA, add, load, markdown, table

    path = Path(data) if data is not None else Path(str(DATA))
    record = load(path)
    for name in added:
        add(record, *_run(name))
    if added:
        written = path.with_name(path.name + ".new")
        written.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        written.replace(path)
    if as_json:
        print_json([vars(row) for row in table(record)])
    elif as_markdown:
        click.echo(markdown(record), nl=False)
    else:
        _print(record)
    return 0


def _run(name: str) -> tuple[str, int, dict[str, int]]:
    """The kernel, the steps and the features of a run that found no difference."""
    try:
        run = json.loads(Path(name).read_text("utf-8"))
        divergence = run["divergence"]
        found = str(run["kernel"]), int(run["steps"]), {str(name): int(many) for name, many in run["features"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{escape_text(name)}: this is not what vmalab fuzz live --json prints: {error}") from None
    if divergence is not None:
        raise InputError(f"{escape_text(name)}: the run found a difference: there is nothing to add")
    return found


def _print(record: dict[str, Any]) -> None:
    from vmalab.support import table

    out = console()
    for kernel, found in record["kernels"].items():
        out.print(f"{found['steps']:,} steps without a difference on {escape_text(kernel)}")
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("call", "flag", "level"):
        shown.add_column(title)
    shown.add_column("steps", justify="right")
    for row in table(record):
        shown.add_row(row.call if not row.flag else "", row.flag, row.level, f"{row.steps:,}" if row.steps else "")
    out.print(shown)
