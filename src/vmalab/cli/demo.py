"""Record a program on this machine, replay it, and explain what its address space went through."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from vmalab.cli.common import console, escape_text, json_option, print_json
from vmalab.cli.explain import explain_trace, show
from vmalab.cli.replay import print_summary, run_trace
from vmalab.errors import VmalabError
from vmalab.trace.file import read_trace

DATA = Path(__file__).parent.parent / "data"
SHOWN = 6


@click.command()
@json_option
def demo(as_json: bool) -> int:
    """Record an ordinary Python program, replay it through the model, compare, and explain.

    Where this machine cannot record, it says why, and replays a trace that comes with the package.
    """
    with tempfile.TemporaryDirectory(prefix="vmalab-") as folder:
        trace = str(Path(folder) / "demo.jsonl.zst")
        why_not = _record(trace, quiet=as_json)
        if why_not is not None:
            if not as_json:
                console().print(
                    f"This machine cannot record: {why_not}\nReplaying the trace that comes with the package."
                )
            trace = str(DATA / "demo.jsonl.zst")
        _title("2. Replay it through the model, and compare every result and the final VMAs", as_json)
        reader = read_trace(trace)
        replay = run_trace(reader, None, quiet=as_json)
        equal = all(program.is_equal() for program in replay.programs)
        pid = replay.programs[-1].pid if why_not is None else None
        root = next((program.pid for program in replay.programs if not program.replaced and program.calls), pid)
        if not as_json:
            print_summary(reader, replay)
        _title("3. Explain what did not merge", as_json)
        explained = explain_trace(trace, root, None, quiet=as_json)
        if as_json:
            boundaries = len(explained.boundaries)
            print_json({"recorded": why_not is None, "why_not": why_not, "equal": equal, "boundaries": boundaries})
        else:
            show(explained, everything=False, limit=SHOWN)
            console().print("\nOn a program of yours:\n  vmalab record -- COMMAND...\n  vmalab replay trace.jsonl.zst")
            console().print("  vmalab explain trace.jsonl.zst")
    return 0 if equal else 1


def _record(trace: str, *, quiet: bool) -> str | None:
    """Record the demo program; why it cannot be done, if it cannot."""
    try:
        from vmalab.live.record import record, why_not
    except ImportError as error:
        return f"{escape_text(str(error))}"
    reason = why_not()
    if reason is not None:
        return reason
    program = str(DATA / "demo_program.py")
    _title(f"1. Record {Path(sys.executable).name} {Path(program).name}", quiet)
    try:
        summary = record((sys.executable, program), trace)
    except VmalabError as error:
        return str(error)
    if summary.status:
        return f"the demo program ended with status {summary.status}"
    if not quiet:
        console().print(f"{summary.processes} processes, {summary.calls:,} memory calls")
    return None


def _title(text: str, quiet: bool) -> None:
    if not quiet:
        console().print(f"\n{text}", style="bold")
