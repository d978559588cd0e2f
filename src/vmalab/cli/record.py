"""Record what a program and its children do to their address spaces."""

import os
from pathlib import Path
from typing import Final

import click
import msgspec

from vmalab.cli.common import escape_text, json_option
from vmalab.errors import InputError
from vmalab.live.bpf_record import TRIGGERS, Options
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
@click.option(
    "--dwarf-stacks",
    is_flag=True,
    help="The same for code without frame pointers: those of calls are unwound by .eh_frame (bpf).",
)
@click.option("--pid", type=click.IntRange(min=1), metavar="P", help="Attach to a running process (bpf).")
@click.option("--time", "seconds", type=click.FloatRange(min=0.001), metavar="SECONDS", help="Stop then (bpf).")
@click.option("--size", type=click.IntRange(min=1), metavar="BYTES", help="Stop when the trace has this size (bpf).")
@click.option("--until-maps", type=click.IntRange(min=1), metavar="N", help="Stop above N VMAs (bpf).")
@click.option(
    "--ring",
    type=click.FloatRange(min=0.1, max=86400),
    metavar="SECONDS",
    help="Keep the last seconds only; written when a memory call fails with ENOMEM, or above --until-maps (bpf).",
)
@click.option(
    "--buffer",
    type=click.IntRange(min=4096, max=1 << 30),
    metavar="BYTES",
    help="The ring between the kernel and the recorder, 64 MiB unless told: more where events are lost (bpf).",
)
@click.option("--changing-faults", is_flag=True, help="Only the faults that can have changed a VMA (bpf).")
@click.option("-q", "--quiet", is_flag=True, help="No summary.")
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def record(
    output: str,
    recorder: str,
    stacks: bool,
    dwarf_stacks: bool,
    pid: int | None,
    seconds: float | None,
    size: int | None,
    until_maps: int | None,
    ring: float | None,
    buffer: int | None,
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
    with 0 if a call has failed, or there were more VMAs than --until-maps, and the trace is written; else with 1, and
    the file is as it was.
    """
    options = Options(
        pid=pid,
        stacks=stacks,
        unwound=dwarf_stacks,
        all_faults=not changing_faults,
        seconds=seconds,
        size=size,
        until_maps=until_maps,
        ring=ring,
        buffer=buffer,
    )
    if pid is not None and command:
        raise InputError("--pid attaches to a running process: give either it or a COMMAND")
    if pid is None and not command:
        raise InputError("nothing to record: vmalab record -o FILE -- COMMAND [ARGUMENT...], or --pid PID")
    summary = _record(recorder, command, output, options, quiet or as_json)
    if as_json:
        click.echo(msgspec.json.encode(summary).decode(), err=True)
    elif not quiet:
        _print_summary(summary, flight=ring is not None, limited=until_maps is not None)
    return summary.status


def _record(recorder: str, command: tuple[str, ...], output: str, options: Options, quiet: bool) -> Summary:
    """Record with the recorder that is asked for, or the better one that runs here; which it is is said, and why."""
    from vmalab.live import bpf_record
    from vmalab.live.record import record as record_with_ptrace

    needed = options.needs_bpf()
    if recorder == "ptrace" and needed:
        raise InputError(f"{needed} needs the BPF recorder: leave --with ptrace away")
    say = _say_nothing if quiet else _say
    environment = _environment()
    if recorder != "ptrace":
        why = "as asked for" if recorder == "bpf" else "it can run here, and sees every fault"
        reason = bpf_record.why_not(try_out=False)
        if reason is None:
            try:
                return bpf_record.record(
                    command, output, options, environment=environment, started=lambda: say(f"bpf: {why}")
                )
            except bpf_record.NotHereError as error:
                reason = str(error)
        if recorder == "bpf" or needed:
            raise InputError(f"cannot record with BPF: {reason}")
        say(f"ptrace: {reason}")
    return record_with_ptrace(command, output, environment=environment)


def _say(text: str) -> None:
    click.echo(f"vmalab: recording with {escape_text(text)}", err=True)


def _say_nothing(_text: str) -> None:
    """Nobody asked."""


_REASONS: Final = {
    "time": "the time is over",
    "size": "the trace has the size",
    "maps": "a process has more VMAs than the limit",
    "enomem": "a memory call failed with ENOMEM",
    "interrupted": "interrupted",
}


def _print_summary(summary: Summary, *, flight: bool, limited: bool) -> None:
    name = escape_text(summary.file)
    if flight and summary.reason not in TRIGGERS:
        limit = " and no process had more VMAs than the limit" if limited else ""
        click.echo(f"vmalab: no memory call failed with ENOMEM{limit}; {name} was not written", err=True)
        return
    counts = [_count(summary.processes, "process", "processes"), _count(summary.calls, "call", "calls")]
    if summary.recorder == "bpf":
        counts.append(_count(summary.faults, "fault", "faults"))
    why = _REASONS.get(summary.reason, "interrupted" if summary.interrupted else "")
    click.echo(f"vmalab: {name}: {', '.join(counts)}{', ' + why if why else ''}", err=True)
    for note in summary.notes:
        click.echo(f"vmalab: note: {note}", err=True)
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
