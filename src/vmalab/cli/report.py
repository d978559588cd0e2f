"""Make a page of a trace: the address space over time, what keeps VMAs apart, what failed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from vmalab.cli.common import escape_text, file_argument, json_option, print_json, progress
from vmalab.errors import InputError
from vmalab.trace.file import read_trace

LARGE = 64 << 20
"""Bytes of a page from which on browsers take their time."""


@click.command()
@file_argument
@click.option("-o", "--output", metavar="OUT", type=click.Path(dir_okay=False), help="The page; else report.html.")
@json_option
def report(file: str, output: str | None, as_json: bool) -> int:
    """Write an HTML page about a trace that works without a network, in any current browser.

    FILE may be - for standard input, OUT may be - for standard output.
    """
    from vmalab.report.collect import collect
    from vmalab.report.html import report_html

    target = output if output is not None else "report.html"
    if as_json and target == "-":
        raise click.UsageError("--json and -o - both want standard output")
    reader = read_trace(file)
    with progress("replay", reader.size, quiet=as_json) as update:
        collected = collect(reader, update)
    data = report_html(collected, reader.header, reader.name).encode("utf-8")
    _write(target, data)
    spaces = collected.lives.spaces
    summary = {
        "output": target,
        "bytes": len(data),
        "records": len(collected.texts) - 1,
        "address_spaces": len(spaces),
        "failed": len(collected.failed),
        "truncated": reader.truncated,
    }
    if as_json:
        print_json(summary)
    else:
        click.echo(
            f"vmalab: {escape_text(target)}: {len(data) / (1 << 20):.1f} MiB, {len(collected.texts) - 1:,} records, "
            f"{len(spaces):,} address spaces",
            err=True,
        )
        if reader.truncated:
            click.echo(f"vmalab: warning: {reader.name} is not whole: {reader.truncated}", err=True)
        if len(data) > LARGE:
            click.echo("vmalab: warning: a page of this size takes a browser some seconds to open", err=True)
    return 0


def _write(target: str, data: bytes) -> None:
    """Write a file whole or not at all."""
    if target == "-":
        sys.stdout.buffer.write(data)
        return
    path = Path(target)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
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
