"""Semantics as a file: the behaviours of a kernel by name, as `vmalab probe` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from vmalab.errors import InputError
from vmalab.semantics import Semantics
from vmalab.text import escape_text

MOST: Final = 1 << 20
"""Bytes that a file of semantics may have."""

Value = int | bool


def behaviours(semantics: Semantics) -> dict[str, Value]:
    """The behaviours by name."""
    return {name: getattr(semantics, name) for name in dir(semantics) if not name.startswith("_")}


def semantics_of(values: dict[str, Value]) -> Semantics:
    """The semantics that have these behaviours, and the defaults of the others."""
    semantics = Semantics()
    for name, value in values.items():
        setattr(semantics, name, value)
    return semantics


def write_semantics(path: str, kernel: str, values: dict[str, Value]) -> None:
    """Write behaviours to a file."""
    text = json.dumps({"kernel": kernel, "behaviours": values}, indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, "utf-8")


def read_semantics(path: str) -> Semantics:
    """The semantics of a file.  Raises InputError, in one line, for anything else."""
    name = "standard input" if path == "-" else escape_text(path)
    data = sys.stdin.buffer.read(MOST + 1) if path == "-" else _read(path)
    if len(data) > MOST:
        raise InputError(f"{name}: this is no file of semantics: it has more than {MOST} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: this is no file of semantics: {escape_text(str(error), 80)}") from None
    given = found.get("behaviours") if isinstance(found, dict) else None
    if not isinstance(given, dict):
        raise InputError(f'{name}: this is no file of semantics: it has no "behaviours" (vmalab probe -o writes one)')
    check_behaviours(name, given)
    return semantics_of(given)


def check_behaviours(name: str, given: dict[str, Any]) -> None:
    """Raises InputError where what a file, called name, gives are not behaviours with values that they can have."""
    known = behaviours(Semantics())
    for key, value in given.items():
        if key not in known:
            raise InputError(f"{name}: there is no behaviour {escape_text(key, 40)}; there are: {', '.join(known)}")
        if type(value) is not type(known[key]) or not 0 <= value < 1 << 63:
            wanted = "true or false" if isinstance(known[key], bool) else "a number"
            raise InputError(f"{name}: {key} must be {wanted}")


def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(MOST + 1)
