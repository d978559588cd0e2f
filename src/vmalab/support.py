"""How well each memory call is supported: what lockstep has confirmed, what is modelled, what is not.

The counts come from recorded runs (`vmalab fuzz live --json`, or its corpus) and are kept in data/support.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from vmalab.errors import InputError
from vmalab.fuzz.features import catalogue
from vmalab.fuzz.ops import NUMBERS
from vmalab.text import escape_text

DATA: Final = files("vmalab") / "data" / "support.json"
CLEAN: Final = "lockstep-clean"
UNCONFIRMED: Final = "modelled, not confirmed"
MISSING: Final = "not modelled"

NOT_MODELLED: Final = {
    "madvise": ("MADV_HWPOISON", "MADV_SOFT_OFFLINE"),
    "process_madvise": ("MADV_HWPOISON", "MADV_SOFT_OFFLINE"),
    "mbind": ("MPOL_MF_STRICT with several nodes",),
    "prctl": ("PR_SET_MM_AUXV", "PR_SET_MM_EXE_FILE"),
    "migrate_pages": ("",),
    "move_pages": ("",),
    "ioctl(UFFDIO_COPY)": ("",),
    "io_uring_register": ("",),
    "map_shadow_stack": ("",),
    "execve": ("the layout of the new program, which is taken from a list of its VMAs",),
}
"""Calls and flags that the model does not know; nothing after a call: all of it."""
NOT_IN_LOCKSTEP: Final = {
    "setrlimit": ("",),
    "prctl": ("PR_SET_VMA_ANON_NAME", "PR_SET_MM with CAP_SYS_RESOURCE"),
    "mmap": ("MAP_32BIT without MAP_FIXED",),
}
"""Modelled, but no step of the lockstep does it."""


@dataclass
class Support:
    """One call, or one flag of it."""

    call: str
    flag: str
    """Empty for the call itself."""
    level: str
    steps: int = 0


def load(path: Path | None = None) -> dict[str, Any]:
    """The recorded counts: kernels, with their steps and features.  Raises InputError for another file."""
    text = DATA.read_text("utf-8") if path is None else path.read_text("utf-8")
    try:
        found = json.loads(text)
        for kernel in found["kernels"].values():
            if not all(isinstance(steps, int) for steps in (kernel["steps"], *kernel["features"].values())):
                raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{escape_text(str(path or DATA))}: this is no record of support") from None
    return dict(found)


def add(record: dict[str, Any], kernel: str, steps: int, features: dict[str, int]) -> None:
    """Add a clean run to a record."""
    known = record["kernels"].setdefault(kernel, {"steps": 0, "features": {}})
    known["steps"] += steps
    for name, count in features.items():
        known["features"][name] = known["features"].get(name, 0) + count
    known["features"] = dict(sorted(known["features"].items()))


def table(record: dict[str, Any]) -> list[Support]:
    """The level of every call and flag, in the order of the calls' names."""
    counts: dict[str, int] = {}
    for kernel in record["kernels"].values():
        for name, steps in kernel["features"].items():
            counts[name] = counts.get(name, 0) + steps
    known = {name: list(flags) for name, flags in catalogue().items()}
    for name in (*NUMBERS, *(count for count in counts if " " not in count or count.startswith("("))):
        known.setdefault(name, [])
    for extra in (NOT_MODELLED, NOT_IN_LOCKSTEP):
        for call, flags in extra.items():
            known.setdefault(call, [])
            known[call] += [flag for flag in flags if flag not in known[call]]
    rows: list[Support] = []
    for call in sorted(known):
        for flag in ["", *[flag for flag in known[call] if flag]]:
            rows.append(_row(call, flag, counts))
    return rows


def _row(call: str, flag: str, counts: dict[str, int]) -> Support:
    steps = counts.get(f"{call} {flag}" if flag else call, 0)
    if flag in NOT_MODELLED.get(call, ()):
        # A flag that only lockstep's wrong arguments have had is none that the model knows.
        return Support(call, flag, MISSING)
    return Support(call, flag, CLEAN if steps else UNCONFIRMED, steps)


def markdown(record: dict[str, Any]) -> str:
    """The table of the README: a line for each call."""
    rows = table(record)
    lines = [
        "| call | steps compared | confirmed with | modelled, not confirmed | not modelled |",
        "|---|---:|---|---|---|",
    ]
    for call in dict.fromkeys(row.call for row in rows):
        of = [row for row in rows if row.call == call]
        parts = [", ".join([row.flag for row in of if row.flag and row.level == level]) for level in LEVELS]
        whole = of[0]
        if whole.level == MISSING:
            parts[2] = "all of it"
        elif whole.level == UNCONFIRMED and not any(parts):
            parts[1] = "all of it"
        lines.append(f"| `{call}` | {whole.steps:,} | {' | '.join(_short(part) for part in parts)} |")
    return "\n".join(lines) + "\n"


LEVELS: Final = (CLEAN, UNCONFIRMED, MISSING)


def _short(names: str) -> str:
    """Names of flags, all but the first without the prefix that they share."""
    words = names.split(", ")
    prefix = words[0]
    while prefix and not all(word.startswith(prefix) for word in words):
        prefix = prefix[: prefix[:-1].rfind("_") + 1]
    return ", ".join([words[0], *[word.removeprefix(prefix) for word in words[1:]]])
