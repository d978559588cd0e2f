"""Make a page of a trace: the address space over time, what keeps VMAs apart, what failed."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import click

from vmalab.behaviours import read_semantics
from vmalab.cli.common import (
    escape_text,
    file_argument,
    json_option,
    keep_what_is_read,
    print_json,
    progress,
    semantics_option,
    warn_of_shortcomings,
)
from vmalab.errors import InputError
from vmalab.trace.file import read_trace

LARGE = 64 << 20
"""Bytes of a page from which on browsers take their time."""


@click.command()
@file_argument
@click.option("-o", "--output", metavar="OUT", type=click.Path(dir_okay=False), help="The page; else report.html.")
@click.option(
    "--trace-viewer",
    "viewed",
    metavar="OUT",
    type=click.Path(dir_okay=False),
    help="Write a trace for the Perfetto UI instead (with -o, as well); .gz compresses it.",
)
@semantics_option
@json_option
def report(file: str, output: str | None, viewed: str | None, semantics: str | None, as_json: bool) -> int:
    """Write an HTML page about a trace that works without a network, in any current browser.

    FILE may be - for standard input, OUT may be - for standard output.  In the trace for the Perfetto UI a record is a
    microsecond: there is no clock in a trace.
    """
    from vmalab.report.collect import collect
    from vmalab.report.html import report_html
    from vmalab.report.trace_viewer import TraceViewer

    target = output if output is not None or viewed is not None else "report.html"
    for name in (target, viewed):
        keep_what_is_read(name or "-", file)
    if target is not None and viewed is not None and target != "-" and Path(target).resolve() == Path(viewed).resolve():
        raise click.UsageError(f"{escape_text(target)} can hold one thing: the page, or the trace for the Perfetto UI")
    if [target, viewed].count("-") + as_json > 1:
        raise click.UsageError("standard output can hold one thing: choose among -o -, --trace-viewer - and --json")
    reader = read_trace(file)
    kernel = read_semantics(semantics) if semantics is not None else None
    viewer = TraceViewer() if viewed is not None else None
    with progress("replay", reader.size, quiet=as_json) as update:
        collected = collect(reader, update, viewer, kernel)
    written: list[dict[str, str | int]] = []
    if target is not None:
        written.append(_write(target, report_html(collected, reader.header, reader.name).encode("utf-8")))
    if viewed is not None and viewer is not None:
        data = viewer.data()
        written.append(_write(viewed, gzip.compress(data, 6, mtime=0) if viewed.endswith(".gz") else data))
    summary = {
        "written": written,
        "records": len(collected.texts) - 1,
        "address_spaces": len(collected.lives.spaces),
        "failed": len(collected.failed),
        "truncated": reader.truncated,
        "shortcomings": reader.shortcomings(),
    }
    if as_json:
        print_json(summary)
        return 0
    for each in written:
        size = int(each["bytes"])
        click.echo(f"vmalab: {escape_text(str(each['output']))}: {size / (1 << 20):.1f} MiB", err=True)
        if size > LARGE:
            click.echo("vmalab: warning: a browser takes some seconds to open a file of this size", err=True)
    warn_of_shortcomings(reader)
    return 0


def _write(target: str, data: bytes) -> dict[str, str | int]:
    """Write a file whole or not at all; what was written, for the summary.  A device or a pipe stays what it is."""
    done: dict[str, str | int] = {"output": target, "bytes": len(data)}
    if target == "-":
        sys.stdout.buffer.write(data)
        return done
    path = Path(os.path.realpath(target))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return done
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            f"{escape_text(target)}: cannot be written: {escape_text(why)}; name another with -o"
        ) from None
    return done
