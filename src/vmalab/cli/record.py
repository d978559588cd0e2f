"""Record what a program and its children do to their address spaces."""

import os
from pathlib import Path
from typing import Final

import click
import msgspec

from vmalab.cli.common import escape_text, json_option
from vmalab.errors import InputError
from vmalab.live.bpf_record import Options
from vmalab.live.record import Summary

DEFAULT: Final = "trace.jsonl.zst"


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "-o", "--output", metavar="FILE", default=DEFAULT, show_default=True, help="The trace; .zst compresses it."
)
@click.option(
    "--with",
    "recorder",
    type=click.Choice(("auto", "bpf", "ptrace")),
    default="auto",
    show_default=True,
    help="How to record; auto takes bpf where it can run.",
)
@click.option("--stacks", is_flag=True, help="Also the user stacks of calls and faults (bpf).")
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="Attach to a running process (bpf).")
@click.option("--time", "seconds", type=click.FloatRange(min=0.001), metavar="SECONDS", help="Stop then (bpf).")
@click.option("--size", type=click.IntRange(min=1), metavar="BYTES", help="Stop when the trace has this size (bpf).")
@click.option("--until-maps", type=click.IntRange(min=1), metavar="N", help="Stop above N VMAs (bpf).")
@click.option(
    "--ring",
    type=click.FloatRange(min=0.1, max=86400),
    metavar="SECONDS",
    help="Keep the last seconds only; written when a memory call fails with ENOMEM (bpf).",
)
@click.option("--changing-faults", is_flag=True, help="Only the faults that can have changed a VMA (bpf).")
@click.option("-q", "--quiet", is_flag=True, help="No summary.")
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def record(
    output: str,
    recorder: str,
    stacks: bool,
    pid: int | None,
    seconds: float | None,
    size: int | None,
    until_maps: int | None,
    ring: float | None,
    changing_faults: bool,
    quiet: bool,
    as_json: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND and record its memory calls, and those of all processes it starts, to FILE.

    Exits as the program does: with its status, or 128 + N if signal N ended it; 2 if it could not be run or the trace
    not be written.  The summary goes to standard error, because standard output belongs to the program.  Recording goes
    on until every process has ended.  Ctrl-C goes to the program; what has not ended two seconds later, or at the
    second Ctrl-C, is killed, and the trace can be read all the same.

    With --pid, and with --ring, Ctrl-C ends the recording and the program runs on.  A flight recorder (--ring) exits
    with 0 if a call has failed and the trace is written, and with 1 if none has, and there is no trace.
    """
    from vmalab.live import bpf_record

    options = Options(
        pid=pid,
        stacks=stacks,
        all_faults=not changing_faults,
        seconds=seconds,
        size=size,
        until_maps=until_maps,
        ring=ring,
    )
    if pid is not None and command:
        raise InputError("--pid attaches to a running process: give either it or a COMMAND")
    if pid is None and not command:
        raise InputError("nothing to record: vmalab record -o FILE -- COMMAND [ARGUMENT...], or --pid PID")
    if _choose(recorder, options, quiet or as_json) == "bpf":
        summary = bpf_record.record(command, output, options, environment=_environment())
    else:
        from vmalab.live.record import record as run

        summary = run(command, output, environment=_environment())
    if as_json:
        click.echo(msgspec.json.encode(summary).decode(), err=True)
    elif not quiet:
        _print_summary(summary)
    return summary.status


def _choose(recorder: str, options: Options, quiet: bool) -> str:
    """The recorder to use, said with its reason.  Raises InputError if what is asked for cannot be had."""
    from vmalab.live.bpf_record import why_not

    needed = options.needs_bpf()
    if recorder == "ptrace":
        if needed:
            raise InputError(f"{needed} needs the BPF recorder: leave --with ptrace away")
        return "ptrace"
    reason = why_not()
    if reason is not None:
        if recorder == "bpf" or needed:
            raise InputError(f"cannot record with BPF: {reason}")
        if not quiet:
            click.echo(f"vmalab: recording with ptrace: {escape_text(reason)}", err=True)
        return "ptrace"
    if not quiet:
        why = "as asked for" if recorder == "bpf" else "it can run here, and sees every fault"
        click.echo(f"vmalab: recording with bpf: {why}", err=True)
    return "bpf"


_REASONS: Final = {
    "time": "the time is over",
    "size": "the trace has the size",
    "maps": "a process has more VMAs than the limit",
    "enomem": "a memory call failed with ENOMEM",
    "interrupted": "interrupted",
}


def _print_summary(summary: Summary) -> None:
    name = escape_text(summary.file)
    if summary.reason == "nothing failed":
        click.echo(f"vmalab: no memory call failed with ENOMEM; {name} is not written", err=True)
        return
    counts = [_count(summary.processes, "process", "processes"), _count(summary.calls, "call", "calls")]
    if summary.recorder == "bpf":
        counts.append(_count(summary.faults, "fault", "faults"))
    why = _REASONS.get(summary.reason, "interrupted" if summary.interrupted else "")
    click.echo(f"vmalab: {name}: {', '.join(counts)}{', ' + why if why else ''}", err=True)
    for loss in summary.lost:
        click.echo(f"vmalab: incomplete: {escape_text(loss)}", err=True)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _environment() -> dict[str, str] | None:
    """The environment that vmalab was given: Python itself sets LC_CTYPE where the locale is C."""
    if "LC_CTYPE" not in os.environ:
        return None
    try:
        given = Path("/proc/self/environ").read_bytes()
    except OSError:
        return None
    if any(pair.startswith(b"LC_CTYPE=") for pair in given.split(b"\0")):
        return None
    return {name: value for name, value in os.environ.items() if name != "LC_CTYPE"}
