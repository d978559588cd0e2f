"""Find the behaviours of the running kernel."""

from __future__ import annotations

import os

import click
from rich.table import Table

from vmalab.cli.common import console, escape_text, json_option, print_json, progress


@click.command()
@click.option("-o", "--output", metavar="FILE", help="Write a file that --semantics takes (- for standard output).")
@json_option
def probe(output: str | None, as_json: bool) -> int:
    """Run the witness of each named behaviour on this kernel, and say which side it is on.

    Exits with 1 if the kernel does something that no behaviour stands for.  One witness commits 64 MiB and, where the
    kernel has the bug that it looks for, never gets that back.
    """
    from vmalab.behaviours import write_semantics
    from vmalab.fuzz.probe import WITNESSES
    from vmalab.fuzz.probe import probe as find

    with progress("probe", len(WITNESSES), quiet=as_json) as update:
        found = find(update)
    values = {finding.name: finding.value for finding in found if finding.value is not None}
    if output is not None:
        write_semantics(output, os.uname().release, values)
    if as_json:
        print_json({"kernel": os.uname().release, "behaviours": [vars(finding) for finding in found]})
    elif output != "-":
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("behaviour", "this kernel", "6.18"):
            table.add_column(title)
        for finding in found:
            shown = "unknown" if finding.value is None else _text(finding.value)
            table.add_row(finding.name, shown, _text(finding.default))
        console().print(f"kernel {escape_text(os.uname().release)}")
        console().print(table)
        for finding in found:
            if finding.told:
                console().print(f"{finding.name}: {escape_text(finding.told)}")
    return 1 if any(finding.value is None and not finding.hidden for finding in found) else 0


def _text(value: int | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else hex(value)
