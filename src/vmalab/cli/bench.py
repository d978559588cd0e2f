"""Measure the model beside the kernel that runs here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.table import Table

from vmalab.cli.common import console, escape_text, json_option, print_json, progress

if TYPE_CHECKING:
    from vmalab.bench.measure import Result


class _Workload(click.ParamType[str]):
    """The name of a workload; what there is is looked up when it is asked for."""

    name = "workload"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from vmalab.bench.measure import NAMES

        if value not in NAMES:
            self.fail(f"there is no workload {escape_text(value)}; there are {', '.join(NAMES)}", param, ctx)
        return value


@click.command()
@click.option("--workload", "names", type=_Workload(), multiple=True, metavar="NAME", help="Only this one.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Medians are of so many.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Reproduces the calls.")
@click.option("--memory", is_flag=True, help="Only measure the memory of a million VMAs and of a million pages.")
@click.option("--markdown", is_flag=True, help="Print the table as docs/benchmarks.md has it.")
@json_option
def bench(names: tuple[str, ...], rounds: int, seed: int, memory: bool, markdown: bool, as_json: bool) -> int:
    """Run workloads in the model, compiled and interpreted, and in the live kernel, in turn, and compare the rates.

    Each round makes the same calls in all of them, and all results are compared.  The live kernel is measured by the
    agent, which takes prepared batches, and through ctypes; "face" is the model called from an interpreted loop, as
    ctypes is.  With Ctrl-C, what is done is shown.
    """
    from vmalab.bench.measure import NAMES, measure
    from vmalab.bench.measure import memory as measure_memory

    if memory:
        vma, page = measure_memory()
        if as_json:
            print_json({"bytes_per_vma": vma, "bytes_per_page": page})
        else:
            console().print(f"{vma:,.0f} bytes for each VMA, {page:,.0f} bytes for each page")
        return 0
    results: list[Result] = []
    interrupted = False
    try:
        for name in names or NAMES:
            with progress(f"bench {name}", rounds, quiet=as_json) as update:
                results.append(measure(name, rounds, update, seed))
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        print_json(results)
    elif markdown:
        for line in _markdown(results):
            click.echo(line)
    else:
        _show(results)
    return 130 if interrupted else 0


_TITLES = ("workload", "VMAs", "vmalab", "face", "interpreted", "live", "ctypes")
_RATIOS = ("vmalab/live", "face/ctypes", "interpreted/live")


def _cells(result: Result) -> list[str]:
    """The cells of one row: thousands of steps a second, then ratios with their spread."""
    rates = (
        result.vmalab_ops_s,
        result.face_ops_s,
        result.interpreted_ops_s,
        result.live_ops_s,
        result.ctypes_ops_s,
    )
    ratios = (
        (result.ratio_live, result.ratio_live_spread),
        (result.ratio_ctypes, result.ratio_ctypes_spread),
        (result.ratio_interpreted, result.ratio_interpreted_spread),
    )
    cells = [result.workload, f"{result.vmas:,}"]
    cells += ["-" if rate is None else _thousands(rate) for rate in rates]
    for ratio, spread in ratios:
        cells.append("-" if ratio is None or spread is None else f"{ratio:.2f} ({spread[0]:.2f}-{spread[1]:.2f})")
    return cells


def _thousands(rate: float) -> str:
    rate /= 1000
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _show(results: list[Result]) -> None:
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(_TITLES[0])
    for title in (*_TITLES[1:], *_RATIOS):
        table.add_column(title, justify="right")
    for result in results:
        table.add_row(*_cells(result))
    out.print(table)
    out.print("\nthousands of steps a second; ratios of each round: median (smallest-largest)")
    for result in results:
        for note in result.notes:
            out.print(f"{result.workload}: {escape_text(note)}")


def _markdown(results: list[Result]) -> list[str]:
    titles = (*_TITLES, *_RATIOS)
    lines = [f"| {' | '.join(titles)} |", f"|---|{'---:|' * (len(titles) - 1)}"]
    lines += [f"| {' | '.join(_cells(result))} |" for result in results]
    lines.append("")
    lines += [f"- {result.workload}: {escape_text(note)}" for result in results for note in result.notes]
    return lines
