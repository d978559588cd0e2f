"""Replay a trace with something changed, and tell what would be different: another limit, kernel, call or rule."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from rich.table import Table

from vmalab._form import VARIABLE
from vmalab.behaviours import read_semantics
from vmalab.cli.attribute import failure_json, spark
from vmalab.cli.common import console, escape_text, file_argument, json_option, print_json, progress, semantics_option
from vmalab.errors import InputError
from vmalab.explain.decisions import NeedsInterpreted, Rules, load_rules
from vmalab.explain.failures import Failure, size_text
from vmalab.explain.join import joined
from vmalab.explain.rewrite import parse_drop, parse_rule
from vmalab.explain.what_if import RLIMITS, Change, Measured, Turn, WhatIf
from vmalab.kernels import KERNELS, Kernel
from vmalab.trace import records
from vmalab.trace.file import TraceReader, read_trace
from vmalab.trace.show import call_text, result_text

SHOWN = 12
POINTS = 2000
"""The most points of one curve in JSON."""
PROGRESS_STEP = 256
PAGE = 4096
_MODES = {"0": 0, "1": 1, "2": 2, "guess": 0, "always": 1, "never": 2}


def _parse_size(text: str) -> int | None:
    """A size in bytes with K, M, G or T; None for unlimited.  Raises ValueError."""
    if text in ("unlimited", "infinity", "-1"):
        return None
    units = {"k": 10, "m": 20, "g": 30, "t": 40}
    shift = units.get(text[-1:].lower(), 0)
    digits = text[:-1] if shift else text
    if not digits.isascii() or not digits.isdecimal():
        raise ValueError(text)
    size = int(digits) << shift
    if size >> 64:
        raise ValueError(text)
    return size


def _parse_rlimits(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int | None]:
    """NAME=VALUE, several times."""
    found: dict[str, int | None] = {}
    for value in values:
        name, equals, size = value.partition("=")
        name = name.lower().removeprefix("rlimit_")
        if name not in RLIMITS or not equals:
            raise click.BadParameter(
                f"{escape_text(value, 60)}: write NAME=BYTES with NAME one of {', '.join(RLIMITS)}"
            )
        try:
            found[name] = _parse_size(size)
        except ValueError:
            raise click.BadParameter(
                f"{escape_text(value, 60)}: a limit is a number of bytes, with K, M, G or T behind it, or unlimited"
            ) from None
    return found


class Asked:
    """What the options ask for."""

    def __init__(self, change: Change, titles: list[str], join: bool, rules: Rules | None, keep_maps: bool) -> None:
        self.change = change
        self.titles = titles
        """What is changed, in words."""
        self.join = join
        self.rules = rules
        self.keep_maps = keep_maps


@click.command("what-if")
@file_argument
@click.option("--max-map-count", type=click.IntRange(0, 2**31 - 1), metavar="N", help="Another vm.max_map_count.")
@click.option(
    "--rlimit", multiple=True, callback=_parse_rlimits, metavar="NAME=BYTES", help="as, data, stack, memlock."
)
@click.option("--overcommit", type=click.Choice(list(_MODES)), help="Another vm.overcommit_memory.")
@click.option("--kernel", type=click.Choice(list(KERNELS)), help="The behaviours of another kernel.")
@semantics_option
@click.option("--replace", multiple=True, metavar="RULE", help="Make other calls: 'CALL(FLAGS) -> CALL(FLAGS)'.")
@click.option("--drop", multiple=True, metavar="CALL[:FLAGS]", help="Make no such call, for instance madvise:DONTFORK.")
@click.option("--coalesce", is_flag=True, help="Join successive calls that do the same to ranges that touch.")
@click.option("--rules", metavar="FILE.py", help="A changed rule: a subclass of Semantics, or functions of the core.")
@click.option("--maps", is_flag=True, help="Print the final VMAs of the changed run as /proc/PID/maps shows them.")
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="Show this process only.")
@json_option
def what_if(
    file: str,
    max_map_count: int | None,
    rlimit: dict[str, int | None],
    overcommit: str | None,
    kernel: str | None,
    semantics: str | None,
    replace: tuple[str, ...],
    drop: tuple[str, ...],
    coalesce: bool,
    rules: str | None,
    maps: bool,
    pid: int | None,
    as_json: bool,
) -> int:
    """Replay a trace with something changed, and tell the difference in VMAs, memory and failures.

    Exits with 1 if a call fails that did not.  FILE may be - for standard input.
    """
    change = Change()
    if max_map_count is not None:
        change.machine["max_map_count"] = max_map_count
    if overcommit is not None:
        change.machine["overcommit_memory"] = _MODES[overcommit]
    change.limits = rlimit
    change.rules = [parse_rule(text) for text in replace] + [parse_drop(text) for text in drop]
    titles = _titles(change, coalesce)
    notes: list[str] = []
    loaded = _take_rules(rules, quiet=as_json) if rules is not None else None
    if [kernel, semantics, loaded and loaded.semantics].count(None) < 2:
        raise click.UsageError("--kernel, --semantics and a Semantics in --rules are alternatives: give one of them")
    if kernel is not None:
        change.semantics = KERNELS[kernel].semantics()
        titles.append(f"the behaviours of {kernel}")
        notes += _kernel_notes(KERNELS[kernel])
    elif semantics is not None:
        change.semantics = read_semantics(semantics)
        titles.append(f"the behaviours in {'standard input' if semantics == '-' else escape_text(semantics)}")
    if loaded is not None:
        change.decisions = loaded.decisions
        change.semantics = loaded.semantics or change.semantics
        titles += [f"{title} of {escape_text(loaded.path)}" for title in loaded.titles()]
    if not titles:
        raise click.UsageError("say what is to be different: --max-map-count, --replace, --kernel, ... (see --help)")
    reader = read_trace(file)
    found = _run(reader, Asked(change, titles, coalesce, loaded, maps), quiet=as_json)
    if pid is not None and not any(measured.pid == pid for measured, _ in found[0].programs()):
        raise InputError(f"{reader.name}: there is no process {pid} in this trace")
    notes += _notes(reader, found[0], coalesce)
    if as_json:
        print_json(_as_json(reader, found, titles, notes, pid))
    elif maps:
        _print_maps(found, pid)
    else:
        _show(reader, found, titles, notes, pid)
    return 1 if any(each.new_failures.all() or each.new_faults for each in found) else 0


def _titles(change: Change, coalesce: bool) -> list[str]:
    titles = [f"{name} = {value:,}" for name, value in change.machine.items()]
    for name, value in change.limits.items():
        titles.append(f"RLIMIT_{name.upper()} = {'unlimited' if value is None else size_text(value)}")
    titles += [escape_text(rule.text) for rule in change.rules]
    return titles + (["successive calls on ranges that touch are joined"] if coalesce else [])


def _kernel_notes(kernel: Kernel) -> list[str]:
    return [f"of {kernel.name} is not modelled: {missing}" for missing in kernel.missing]


def _take_rules(path: str, *, quiet: bool) -> Rules:
    """The rules of a file.  If the core has to be the interpreted one for them, the command starts again with that."""
    try:
        return load_rules(path)
    except NeedsInterpreted:
        if not quiet:
            click.echo(f"vmalab: {escape_text(path)} replaces functions of the core: it runs interpreted", err=True)
        sys.stdout.flush()
        sys.stderr.flush()
        command = [sys.executable, "-m", "vmalab", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, VARIABLE: "1"})


def _run(reader: TraceReader, asked: Asked, *, quiet: bool) -> list[WhatIf]:
    """Take the trace in both runs; twice, if nobody observed the faults: nothing written to, and all at once."""
    extremes = (False, True) if reader.header.faults == "none" else (False,)
    found = [WhatIf(reader.header, asked.change, write_at_once=each, keep_maps=asked.keep_maps) for each in extremes]
    trace = joined(reader) if asked.join else ((record, None) for record in reader)
    try:
        with progress("replay", reader.size, quiet=quiet) as update:
            for record, joint in trace:
                for each in found:
                    each.step(record, joint)
                if record.n % PROGRESS_STEP == 0:
                    update(reader.bytes_read)
    except Exception as error:
        blamed = asked.rules.blame(error) if asked.rules is not None else None
        if blamed is None:
            raise
        raise blamed from error
    for each in found:
        each.finish()
    for rule in asked.change.rules:
        rule.used //= len(found)
    return found


def _notes(reader: TraceReader, found: WhatIf, coalesce: bool) -> list[str]:
    """What limits the answer, a sentence each."""
    notes: list[str] = []
    for rule in found.change.rules:
        notes.append(f"{rule.used:,} calls fit: {escape_text(rule.text)}")
    if coalesce:
        notes.append(f"{found.joined:,} calls are done by an earlier one")
    if found.turn is not None:
        notes.append(turn_text(found.turn))
    if found.turns > 1:
        notes.append(f"{found.turns - 1:,} later calls or accesses succeed or fail otherwise as well")
    if found.new_faults:
        notes.append(f"{found.new_faults:,} accesses or growing stacks fail that did not (SIGSEGV)")
    if found.moved:
        notes.append(f"{found.moved:,} calls follow memory that lies at another address")
    if found.absent:
        notes.append(f"{found.absent:,} calls are left out, because their memory is not there")
    if found.overwritten:
        notes.append(f"{found.overwritten:,} fixed mappings replace memory that only the changed run has there")
    if found.mismatches and reader.header.faults != "none":
        notes.append(f"the unchanged model does not predict {found.mismatches:,} results: vmalab replay tells more")
    if reader.header.faults == "none":
        notes.append("nobody observed the faults: numbers are for memory never written to, and for all written to")
    return notes + reader.shortcomings()


def turn_text(turn: Turn) -> str:
    """From where on what is told is a prediction, and why."""
    record = turn.record
    if isinstance(record, records.Call):
        what = f"{escape_text(record.call)} in process {turn.pid}"
    else:
        what = f"{'fork' if isinstance(record, records.Fork) else 'an access'} in process {turn.pid}"
    if turn.before == turn.now:
        how = "fails"
    elif turn.now == 0:
        how = f"failed with {result_text(-turn.before)} and now succeeds"
    elif turn.before == 0:
        how = f"now fails with {result_text(-turn.now)}"
    else:
        how = f"fails with {result_text(-turn.now)} instead of {result_text(-turn.before)}"
    return f"from record {record.n} on this is a prediction: {what} {how}, and the program would go another way"


# -- for people ---------------------------------------------------------------------------------------


def _numbers(values: list[int]) -> str:
    """One number, or the two that it lies between."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _sizes(values: list[int]) -> str:
    low, high = (size_text(value * PAGE) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _show(reader: TraceReader, found: list[WhatIf], titles: list[str], notes: list[str], pid: int | None) -> None:
    out = console()
    for title in titles:
        out.print(f"what if: {title}", style="bold")
    for note in notes:
        out.print(f"  {note}", style="yellow" if note.startswith("from record") else "")
    out.print()
    rows = list(zip(*[each.programs() for each in found], strict=True))
    shown = [row for row in rows if pid in (None, row[0][0].pid) and (len(rows) == 1 or row[0][0].last > row[0][0].n)]
    for row in shown:
        _show_program(row)
    before = [each.before.committed.peak()[1] for each in found]
    after = [each.after.committed.peak()[1] for each in found]
    out.print(f"committed memory of all processes, at most: {_sizes(before)} -> {_sizes(after)}")
    for title, failures in (
        ("fails now, and did not before", found[0].new_failures.all()),
        ("failed before, and does not now", found[0].gone_failures.all()),
    ):
        _show_failures(title, failures, pid)
    if not any(each.new_failures.all() or each.new_faults for each in found):
        out.print("no call fails that did not")


def _show_program(row: tuple[tuple[Measured, Measured | None], ...]) -> None:
    out = console()
    one = row[0][0]
    out.print(f"process {one.pid}, {escape_text(one.exe)}: records {one.n}-{one.last}", style="bold")
    befores = [before for before, _ in row]
    afters = [after for _, after in row if after is not None]
    if not afters:
        out.print("  is not there in the changed run\n")
        return
    if all(after is not None and _is_same(before, after) for before, after in row):
        last = [each.maps.last() for each in befores]
        most = [each.maps.peak()[1] for each in befores]
        out.print(f"  no difference: {_numbers(last)} VMAs at the end, {_numbers(most)} at most\n")
        return
    table = Table(box=None, pad_edge=True, header_style="bold")
    for name in ("", "as it is", "changed"):
        table.add_column(name, justify="right" if name else "left")
    for name, values in (
        ("VMAs at the end", [[each.maps.last() for each in side] for side in (befores, afters)]),
        ("VMAs at most", [[each.maps.peak()[1] for each in side] for side in (befores, afters)]),
    ):
        table.add_row(name, *[_numbers(side) for side in values])
    for name, sizes in (
        ("mapped at most", [[each.total.peak()[1] for each in side] for side in (befores, afters)]),
        ("locked at most", [[each.locked.peak()[1] for each in side] for side in (befores, afters)]),
    ):
        if any(map(any, sizes)):
            table.add_row(name, *[_sizes(side) for side in sizes])
    out.print(table)
    for side, measured in (("as it is", one), ("changed", afters[0])):
        line = spark(measured.maps, one.n, one.last, top=max(one.maps.peak()[1], afters[0].maps.peak()[1]))
        out.print(f"  {line} {side}", style="cyan" if side == "changed" else "")
    out.print()


def _is_same(before: Measured, after: Measured) -> bool:
    curves = ((before.maps, after.maps), (before.total, after.total), (before.locked, after.locked))
    return all(one.points() == other.points() for one, other in curves)


def _show_failures(title: str, failures: list[Failure], pid: int | None) -> None:
    listed = [failure for failure in failures if pid in (None, failure.pid)]
    if not listed:
        return
    out = console()
    out.print(f"\n{title}:", style="bold")
    for failure in listed[:SHOWN]:
        why = failure.explanation()
        said = f"{why.sentence} ({why.where})" if why is not None and why.where else why.sentence if why else ""
        times = f"{failure.count:,} times from record" if failure.count > 1 else "record"
        out.print(f"  {times} {failure.first}, process {failure.pid}: {call_text(failure.call)}")
        out.print(f"    {failure.errno_text()}: {said}: {failure.cause}")
    if len(listed) > SHOWN:
        out.print(f"  ... and {len(listed) - SHOWN:,} more kinds", style="dim")


def _print_maps(found: list[WhatIf], pid: int | None) -> None:
    """The final VMAs of the changed run; where nobody observed faults, of memory that was never written to."""
    chosen = [
        program for program in found[0].after.replay.programs if not program.replaced and pid in (None, program.pid)
    ]
    for program in chosen:
        if len(chosen) > 1:
            click.echo(f"# process {program.pid} {escape_text(program.exe)}")
        for line in program.maps.splitlines():
            click.echo(escape_text(line))


# -- for programs -------------------------------------------------------------------------------------


def _as_json(
    reader: TraceReader, found: list[WhatIf], titles: list[str], notes: list[str], pid: int | None
) -> dict[str, Any]:
    first = found[0]
    turn = first.turn
    return {
        "file": reader.name,
        "what_if": titles,
        "notes": notes,
        "records": first.n,
        "rules": [{"rule": rule.text, "calls": rule.used} for rule in first.change.rules],
        "calls": {
            "replaced": first.replaced,
            "dropped": first.dropped,
            "joined": first.joined,
            "moved": first.moved,
            "absent": first.absent,
        },
        "prediction_from": turn.record.n if turn is not None else None,
        "extremes": [_extreme_json(each, pid) for each in found],
    }


def _extreme_json(found: WhatIf, pid: int | None) -> dict[str, Any]:
    maps = {(program.pid, program.n): program.maps.splitlines() or None for program in found.after.replay.programs}
    return {
        "programs": [
            {
                "pid": before.pid,
                "exe": before.exe,
                "record": before.n,
                "last": before.last,
                "before": _measured_json(before),
                "after": _measured_json(after) if after is not None else None,
                "maps": maps.get((before.pid, before.n)),
            }
            for before, after in found.programs()
            if pid in (None, before.pid)
        ],
        "committed_peak_pages": {
            "before": found.before.committed.peak()[1],
            "after": found.after.committed.peak()[1],
        },
        "new_faults": found.new_faults,
        "new_failures": [failure_json(failure) for failure in found.new_failures.all()],
        "gone_failures": [failure_json(failure) for failure in found.gone_failures.all()],
    }


def _measured_json(measured: Measured) -> dict[str, Any]:
    return {
        "vmas": measured.maps.last(),
        "peak_vmas": measured.maps.peak()[1],
        "peak_locked_pages": measured.locked.peak()[1],
        "peak_mapped_pages": measured.total.peak()[1],
        "count": measured.maps.sampled(POINTS),
    }
