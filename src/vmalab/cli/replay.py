"""Replay a trace through the model, predicting every result and the final VMAs."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table
from rich.text import Text

from vmalab.behaviours import read_semantics
from vmalab.cli.common import (
    console,
    escape_text,
    file_argument,
    json_option,
    print_json,
    progress,
    semantics_option,
    warn_of_shortcomings,
)
from vmalab.errors import InputError
from vmalab.semantics import Semantics
from vmalab.trace.file import TraceReader, read_trace
from vmalab.trace.replay import Mismatch, Program, Replay, replay_of
from vmalab.trace.show import call_text, result_text

SHOWN_DIFFERENCES = 10
PROGRESS_STEP = 512


@click.command()
@file_argument
@click.option("--at", type=click.IntRange(min=0), metavar="N", help="Stop after record N.")
@click.option("--maps", is_flag=True, help="Print the model's final VMAs as /proc/PID/maps shows them.")
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="With --maps: of this process only.")
@semantics_option
@json_option
def replay(file: str, at: int | None, maps: bool, pid: int | None, semantics: str | None, as_json: bool) -> int:
    """Run a trace through the model and compare every result, and the final VMAs, with the record.

    Exits with 1 at any mismatch.  FILE may be - for standard input.
    """
    reader = read_trace(file)
    kernel = read_semantics(semantics) if semantics is not None else None
    replayed = run_trace(reader, at, kernel, keep_maps=maps, quiet=as_json)
    programs = replayed.programs
    if maps and not as_json:
        _print_maps(programs, pid)
    elif as_json:
        print_json(_as_json(reader, replayed, maps))
    else:
        print_summary(reader, replayed)
    if not as_json:
        warn_of_shortcomings(reader)
    return 0 if all(program.is_equal() for program in programs) else 1


def run_trace(
    reader: TraceReader,
    at: int | None,
    semantics: Semantics | None = None,
    *,
    keep_maps: bool = False,
    quiet: bool = False,
) -> Replay:
    """Replay a trace to its end, or to record number at, with a progress bar."""
    replayed = replay_of(reader.header, semantics, keep_maps=keep_maps)
    with progress("replay", reader.size, quiet=quiet) as update:
        step = replayed.step
        countdown = PROGRESS_STEP
        if at != 0:
            for record in reader:
                step(record)
                countdown -= 1
                if countdown == 0:
                    update(reader.bytes_read)
                    countdown = PROGRESS_STEP
                if record.n == at:
                    break
    if at is not None and replayed.n < at:
        raise InputError(f"{reader.name}: there is no record {at}: the last one is {replayed.n}")
    replayed.finish()
    return replayed


def _print_maps(programs: list[Program], pid: int | None) -> None:
    chosen = [program for program in programs if not program.replaced and pid in (None, program.pid)]
    if not chosen:
        known = sorted({program.pid for program in programs})
        raise InputError(f"no process {pid} is in the trace; it has {', '.join(map(str, known[:20]))}")
    for program in chosen:
        if len(chosen) > 1:
            click.echo(f"# process {program.pid} {escape_text(program.exe)}")
        for line in program.maps.splitlines():
            click.echo(escape_text(line))


# -- for people ---------------------------------------------------------------------------------------


def _verdict(program: Program) -> tuple[str, str]:
    """How a program's replay went, in a few words, and the style to show it in."""
    if program.mismatches:
        return f"{program.mismatches} results differ", "red"
    if program.final is None:
        return "results equal" if program.calls else "-", "green" if program.calls else "dim"
    if program.final:
        return f"{len(program.final)} differences in the final VMAs", "red"
    return "all equal", "green"


def print_summary(reader: TraceReader, replayed: Replay) -> None:
    """Print how the replay of each program went, and the totals."""
    out = console()
    programs = replayed.programs
    shown = [program for program in programs if program.calls or program.final or not program.replaced]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("process", "calls", "VMAs", "peak"):
        table.add_column(title, justify="right")
    table.add_column("replay")
    table.add_column("program", overflow="fold")
    for program in shown:
        verdict, style = _verdict(program)
        if program.unknown:
            verdict += f", {program.unknown} unknown"
        if program.lost:
            verdict += ", then something was lost"
        numbers = [f"{value:,}" for value in (program.calls, program.vmas, program.peak)]
        table.add_row(str(program.pid), *numbers, Text(verdict, style), escape_text(program.exe))
    out.print(table)
    for program in shown:
        if program.first is not None:
            _print_mismatch(program.first, replayed)
        for difference in (program.final or [])[:SHOWN_DIFFERENCES]:
            out.print(
                f"process {program.pid}, at its end, {difference.addr:#x}: {difference.field}: "
                f"model {escape_text(difference.model)}; kernel {escape_text(difference.kernel)}"
            )
    _print_totals(reader, replayed)


def _print_mismatch(mismatch: Mismatch, replayed: Replay) -> None:
    outcome = mismatch.outcome
    line = (
        f"record {mismatch.n}, process {mismatch.pid}: {call_text(mismatch.call)}: model {result_text(outcome.result)}"
    )
    if outcome.reason:
        why = outcome.explanation()
        line += f" ({why.sentence}; {why.where})" if why.where else f" ({why.sentence})"
    console().print(f"{line}; kernel {result_text(mismatch.kernel)}")


def _print_totals(reader: TraceReader, replayed: Replay) -> None:
    out = console()
    programs = replayed.programs
    calls = sum(program.calls for program in programs)
    wrong = sum(program.mismatches for program in programs)
    unknown = sum(program.unknown for program in programs)
    compared = [program for program in programs if program.final is not None]
    equal = sum(1 for program in compared if not program.final)
    only_forks = sum(1 for program in programs if program.replaced and not program.calls and not program.lost)
    out.print()
    out.print(f"{calls:,} calls: {calls - wrong:,} as recorded, {wrong:,} not")
    fields = "bounds, flags, offset and file"
    if all(program.anon_vmas for program in compared):
        fields = "bounds, flags, offset, file and anon_vma"
    if compared:
        out.print(f"final VMAs: {equal:,} of {len(compared):,} lists equal in {fields}")
    else:
        out.print("final VMAs: not compared, the trace has no list of them")
    if only_forks:
        forks = "1 fork" if only_forks == 1 else f"{only_forks:,} forks"
        out.print(f"not listed: {forks} that ran another program at once")
    if unknown:
        reasons = ["nobody observed the faults"]
        if reader.header.faults != "none":
            reasons = ["the kernel chose at random, or threads overtook one another"]
        if any(program.lost for program in programs):
            reasons.append("something was lost")
        if any(program.partial for program in programs):
            reasons.append("what was mapped at first is not known")
        out.print(f"{unknown:,} results or VMAs are unknown: {', or '.join(reasons)}")
    missing: dict[str, int] = {}
    for program in programs:
        for name, count in program.not_modelled.items():
            missing[name] = missing.get(name, 0) + count
    if missing:
        listed = ", ".join(f"{escape_text(name)} ({count})" for name, count in sorted(missing.items()))
        out.print(f"{sum(missing.values()):,} calls are not modelled and were passed over: {listed}")


# -- for programs -------------------------------------------------------------------------------------


def _as_json(reader: TraceReader, replayed: Replay, maps: bool) -> dict[str, Any]:
    return {
        "file": reader.name,
        "faults": reader.header.faults,
        "records": replayed.n,
        "truncated": reader.truncated,
        "shortcomings": reader.shortcomings(),
        "equal": all(program.is_equal() for program in replayed.programs),
        "programs": [_program_json(program, maps) for program in replayed.programs],
    }


def _program_json(program: Program, maps: bool) -> dict[str, Any]:
    first = program.first
    shown: dict[str, Any] = {
        "pid": program.pid,
        "exe": program.exe,
        "record": program.n,
        "calls": program.calls,
        "vmas": program.vmas,
        "peak_vmas": program.peak,
        "mismatches": program.mismatches,
        "unknown": program.unknown,
        "not_modelled": dict(program.not_modelled),
        "replaced": program.replaced,
        "lost": program.lost or None,
        "first_mismatch": None,
        "final": None,
        "anon_vmas_compared": program.anon_vmas,
    }
    if first is not None:
        shown["first_mismatch"] = {
            "record": first.n,
            "call": first.call.name,
            "args": list(first.call.args),
            "model": first.outcome.result,
            "reason": first.outcome.explanation().name,
            "kernel": first.kernel,
        }
    if program.final is not None:
        shown["final"] = [
            {"addr": each.addr, "field": each.field, "model": each.model, "kernel": each.kernel}
            for each in program.final
        ]
    if maps:
        shown["maps"] = program.maps.splitlines()
    return shown
