"""Calls and results as text for people, with the names of flags instead of their numbers."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from vmalab import flags
from vmalab.calls import Call
from vmalab.flags import CLONE_THREAD
from vmalab.syscalls import shm
from vmalab.text import count_text, escape_text
from vmalab.trace import records

ADDRESS: Final = "address"
NUMBER: Final = "number"
DESCRIPTOR: Final = "descriptor"
_COMMAND: Final = "shmctl_"

_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "mmap": (ADDRESS, NUMBER, "PROT_", "MAP_", DESCRIPTOR, ADDRESS),
    "munmap": (ADDRESS, NUMBER),
    "mprotect": (ADDRESS, NUMBER, "PROT_"),
    "pkey_mprotect": (ADDRESS, NUMBER, "PROT_", DESCRIPTOR),
    "brk": (ADDRESS,),
    "mremap": (ADDRESS, NUMBER, NUMBER, "MREMAP_", ADDRESS),
    "madvise": (ADDRESS, NUMBER, "MADV_"),
    "process_madvise": (DESCRIPTOR, ADDRESS, NUMBER, "MADV_", NUMBER),
    "mlock": (ADDRESS, NUMBER),
    "mlock2": (ADDRESS, NUMBER, "MLOCK_"),
    "munlock": (ADDRESS, NUMBER),
    "mlockall": ("MCL_",),
    "mseal": (ADDRESS, NUMBER, NUMBER),
    "mbind": (ADDRESS, NUMBER, NUMBER, ADDRESS, NUMBER, NUMBER),
    "remap_file_pages": (ADDRESS, NUMBER, "PROT_", NUMBER, "MAP_"),
    "shmget": (NUMBER, NUMBER, ADDRESS),
    "shmat": (NUMBER, ADDRESS, "SHM_"),
    "shmctl": (NUMBER, _COMMAND, ADDRESS),
    "shmdt": (ADDRESS,),
    "prctl": ("PR_", NUMBER, ADDRESS, NUMBER, ADDRESS),
}

_ONE_OF: Final = frozenset({"MADV_", "PR_", _COMMAND})
MAP_TYPES: Final = {1: "MAP_SHARED", 2: "MAP_PRIVATE", 3: "MAP_SHARED_VALIDATE", 8: "MAP_DROPPABLE"}
_NOT_FLAGS: Final = frozenset(
    {"MAP_TYPE", "MAP_HUGE_SHIFT", "MAP_HUGE_MASK", *MAP_TYPES.values()}
    | {"PR_SET_VMA_ANON_NAME", "PR_MDWE_REFUSE_EXEC_GAIN", "PR_MDWE_NO_INHERIT"}
)
"""Masks and types within a word of flags, and arguments of a prctl option."""


def flag_names(prefix: str) -> list[tuple[int, str]]:
    """The flags, or the choices, whose names begin so: their values and names, types of mappings left out."""
    found = [(value, name) for name, value in vars(flags).items() if name.startswith(prefix) and isinstance(value, int)]
    return [(value, name) for value, name in found if name not in _NOT_FLAGS]


_NAMES: Final = {
    prefix: flag_names(prefix) for kinds in _ARGUMENTS.values() for prefix in kinds if prefix.endswith("_")
} | {_COMMAND: list(shm.COMMANDS.items())}


def flags_text(prefix: str, value: int) -> str:
    """A word of flags or a choice by name, for instance PROT_READ|PROT_WRITE; what has no name is hexadecimal."""
    if prefix in _ONE_OF:
        for number, name in _NAMES[prefix]:
            if number == value:
                return name
        return str(value)
    parts: list[str] = []
    if prefix == "MAP_":
        kind = value & flags.MAP_TYPE
        parts.append(MAP_TYPES.get(kind, hex(kind)))
        value &= ~flags.MAP_TYPE
    for bit, name in _NAMES[prefix]:
        if bit and value & bit == bit:
            parts.append(name)
            value &= ~bit
    if value:
        parts.append(hex(value))
    if not parts:
        return "PROT_NONE" if prefix == "PROT_" else "0"
    return "|".join(parts)


def argument_kinds(name: str) -> tuple[str, ...]:
    """What each argument of a call is: ADDRESS, NUMBER, DESCRIPTOR or the prefix of its flags; empty if not known."""
    return _ARGUMENTS.get(name, ())


def call_text(call: Call) -> str:
    """A call as a programmer writes it: ``mmap(0, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)``."""
    kinds = _ARGUMENTS.get(call.name, ())
    shown: list[str] = []
    for i, arg in enumerate(call.args):
        kind = kinds[i] if i < len(kinds) else ADDRESS
        if kind == DESCRIPTOR:
            word = arg & 0xFFFFFFFF
            text = str(word - (1 << 32) if word >> 31 else word)
            shown.append(f"{text}<{escape_text(call.file.path)}>" if call.file is not None else text)
        elif kind == NUMBER:
            shown.append(str(arg))
        elif kind == ADDRESS:
            shown.append(hex(arg) if arg else "0")
        else:
            shown.append(flags_text(kind, arg))
    return f"{escape_text(call.name)}({', '.join(shown)})"


def shape_text(call: Call) -> str:
    """What a call is about, without its addresses and lengths: ``mprotect(PROT_NONE)``, ``mmap(PROT_READ, MAP_PRIVATE,
    file)``.  Calls of one shape are of one kind.
    """
    shown = [
        flags_text(kind, arg)
        for kind, arg in zip(argument_kinds(call.name), call.args, strict=False)
        if kind.endswith("_")
    ]
    if call.file is not None:
        shown.append(call.file.kind if call.file.kind != "regular" else "file")
    return f"{escape_text(call.name)}({', '.join(shown)})"


def result_text(result: int | None) -> str:
    """A result: an errno by name, an address in hexadecimal; a question mark where it is not known."""
    if result is None:
        return "?"
    if result < 0:
        return errno.errorcode.get(-result, str(result))
    return hex(result) if result > 9 else str(result)


def argument_flags(name: str, args: Sequence[int]) -> list[str]:
    """The names of all flags and choices in the arguments of a call: MAP_PRIVATE, PROT_NONE, MADV_DONTNEED, ..."""
    found: list[str] = []
    for kind, arg in zip(_ARGUMENTS.get(name, ()), args, strict=False):
        if kind.endswith("_"):
            found += [word for word in flags_text(kind, arg).split("|") if word.startswith(kind)]
    return found


def record_text(record: records.Record, call: Call | None = None) -> str:
    """A record in one line, without its number and process; escaped.  call is that of a record of one."""
    if isinstance(record, records.Call):
        shown = call_text(call) if call is not None else f"{escape_text(record.call)}(...)"
        return f"{shown} = {result_text(record.ret)}"
    if isinstance(record, records.Fault):
        return f"{'write' if record.write else 'read'} fault at {record.addr:#x}"
    if isinstance(record, records.Exec):
        words = " ".join(record.argv) or record.exe
        return f"exec {escape_text(record.exe)} [{escape_text(words, 60)}], {count_text(len(record.vmas), 'VMA')}"
    if isinstance(record, records.Fork):
        what = f"thread {record.tid}" if record.flags & CLONE_THREAD else f"process {record.pid}"
        return f"fork: {what} of {record.parent}"
    if isinstance(record, records.Exit):
        how = f"signal {record.signal}" if record.signal is not None else f"code {record.code}"
        return f"exit with {how}" if record.signal is not None or record.code is not None else "exit"
    if isinstance(record, records.File):
        return f"file {record.id}: {escape_text(record.path)}"
    if isinstance(record, records.Lost):
        return f"lost: {escape_text(record.why)}"
    if isinstance(record, records.Stack):
        return f"stack {record.id}: {count_text(len(record.frames), 'frame')}"
    if isinstance(record, records.Maps):
        return f"list of {count_text(len(record.vmas), 'VMA')}"
    return f"end: {escape_text(record.reason)}"
