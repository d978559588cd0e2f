"""A copy of /proc/PID/smaps or maps in a file, as the record of a process."""

import os
import re
from typing import Final, NamedTuple

from vmalab.errors import InputError
from vmalab.flags import MNEMONICS
from vmalab.live.procfs import describe_vmas, parse_maps, parse_smaps
from vmalab.text import escape_text
from vmalab.trace.check import check
from vmalab.trace.records import Exec, Vma

_LIMIT: Final = 1 << 30
_FIRST_LINE: Final = re.compile(rb"[0-9a-f]{8,16}-[0-9a-f]{8,16} [r-][w-][x-][ps] [0-9a-f]{8,16} ")


class Snapshot(NamedTuple):
    """What a copy shows of a process."""

    process: Exec
    whole: bool
    """It is smaps; maps shows of the flags no more than the permissions."""
    notes: list[str]
    """What it shows that is not known here, a sentence each."""


def read_snapshot(path: str) -> Snapshot | None:
    """The process that a copy shows; None where the file does not begin as one, or cannot be looked into.

    ``-`` is standard input, which must be a file: a pipe cannot be read twice.  Raises InputError if it is damaged.
    """
    try:
        descriptor = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        if not _FIRST_LINE.match(os.pread(descriptor, 64, 0)):
            return None
        parts = []
        read = 0
        while read < _LIMIT and (part := os.pread(descriptor, 1 << 20, read)):
            parts.append(part)
            read += len(part)
    except OSError:
        return None
    finally:
        if descriptor:
            os.close(descriptor)
    return _describe(b"".join(parts), "standard input" if path == "-" else escape_text(path))


def _describe(text: bytes, name: str) -> Snapshot:
    whole = b"\nVmFlags:" in text
    notes: list[str] = []
    try:
        if whole:
            vmas = parse_smaps(text)
            notes = _without_unknown(vmas)
        else:
            vmas = parse_maps(text)
            for vma in vmas:
                # Every mapping may have all permissions, but for a few that maps does not tell from others.
                vma.flags += " mr mw me ms" if "sh" in vma.flags else " mr mw me"
        found = describe_vmas(vmas)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    found.n = 1
    found.exe = name
    heap = [vma for vma in found.vmas if vma.path == "[heap]"]
    found.start_brk = min([vma.start for vma in heap], default=0)
    found.brk = max([vma.end for vma in heap], default=0)
    found.start_stack = max([vma.end for vma in found.vmas if vma.path == "[stack]"], default=0)
    problem = check(found)
    if problem is not None:
        raise InputError(f"{name}: {problem}")
    return Snapshot(found, whole, notes)


def _without_unknown(vmas: list[Vma]) -> list[str]:
    """Leave out the letters of VmFlags that are not known here, and say so."""
    unknown: set[str] = set()
    for vma in vmas:
        letters = vma.flags.split()
        strange = [word for word in letters if word not in MNEMONICS]
        if strange:
            unknown.update(strange)
            vma.flags = " ".join([word for word in letters if word in MNEMONICS])
    return (
        [f"flags that are not known here are left out: {escape_text(' '.join(sorted(unknown)), 80)}"] if unknown else []
    )


def guess_flags(vmas: list[Vma]) -> None:
    """Add to what maps shows the flags that such VMAs have in most programs: committed memory, and the stack."""
    for vma in vmas:
        words = vma.flags.split()
        if "wr" in words and "sh" not in words:
            vma.flags += " ac"
        if vma.path == "[stack]":
            vma.flags += " gd"
        elif vma.path.startswith("[v"):
            vma.flags += " de"
