"""From a call as a log shows it to the call of a trace: its words, and what its pointers point to."""

from __future__ import annotations

from typing import Final

from vmalab.flags import (
    IPC_SET,
    PR_GET_MDWE,
    PR_GET_MEMORY_MERGE,
    PR_GET_THP_DISABLE,
    PR_SET_MDWE,
    PR_SET_MEMORY_MERGE,
    PR_SET_MM,
    PR_SET_THP_DISABLE,
    PR_SET_VMA,
    PR_SET_VMA_ANON_NAME,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    RLIMIT_STACK,
    UFFDIO_API,
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
)
from vmalab.trace.check import ARGUMENTS, WORD
from vmalab.trace.logs import LogCall, Value

Data = dict[str, int | str | list[int]]

POINTERS: Final[dict[str, frozenset[int]]] = {
    "io_uring_register": frozenset({2}),
    "io_uring_setup": frozenset({1}),
    "ioctl": frozenset({2}),
    "mbind": frozenset({3}),
    "memfd_create": frozenset({0}),
    "migrate_pages": frozenset({2, 3}),
    "mincore": frozenset({2}),
    "move_pages": frozenset({2, 3, 4, 5}),
    "prctl": frozenset({4}),
    "prlimit64": frozenset({2, 3}),
    "process_madvise": frozenset({1}),
    "set_mempolicy": frozenset({1}),
    "setrlimit": frozenset({1}),
    "shmctl": frozenset({2}),
    "userfaultfd": frozenset(),
}
"""The arguments that point to something.  A log that shows what they point to does not show the address."""
SOMEWHERE: Final = 1
"""Stands for an address that is not NULL."""
_OPTIONS: Final = frozenset(
    {
        PR_SET_VMA,
        PR_SET_MM,
        PR_SET_THP_DISABLE,
        PR_GET_THP_DISABLE,
        PR_SET_MDWE,
        PR_GET_MDWE,
        PR_SET_MEMORY_MERGE,
        PR_GET_MEMORY_MERGE,
    }
)
_REQUESTS: Final = frozenset({UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER})
_LIMITS: Final = frozenset({RLIMIT_AS, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK})
_REGISTER_BUFFERS: Final = frozenset({0, 15})
_DESCRIPTOR: Final = {"mmap": 4, "fcntl": 0, "ioctl": 0, "close": 0}
_NODES: Final = 1024


class NotUnderstood(Exception):
    """The call cannot be made a record; the message says why, in a few words."""


def is_about_memory(call: LogCall) -> bool:
    """Whether a call of a family such as prctl has to do with memory."""
    first = _number(call.args, 0)
    if call.name == "prctl":
        return first in _OPTIONS
    if call.name == "ioctl":
        second = _number(call.args, 1)
        return second is not None and second & 0xFFFFFFFF in _REQUESTS
    if call.name == "prlimit64":
        # Without a new limit it only asks.
        return _number(call.args, 1) in _LIMITS and _number(call.args, 2) != 0
    if call.name == "setrlimit":
        return first in _LIMITS
    if call.name == "personality":
        return first is None or first & 0xFFFFFFFF != 0xFFFFFFFF
    if call.name == "io_uring_register":
        return _number(call.args, 1) in _REGISTER_BUFFERS
    return True


def descriptor_of(call: LogCall) -> Value | None:
    """The argument that is a descriptor, where the call has one that a trace knows of."""
    place = _DESCRIPTOR.get(call.name)
    return call.args[place] if place is not None and place < len(call.args) else None


def words_of(call: LogCall) -> list[int]:
    """The arguments as unsigned words, as many as the call takes.  Raises NotUnderstood."""
    count = ARGUMENTS.get(call.name, len(call.args))
    pointers = POINTERS.get(call.name, frozenset())
    words: list[int] = []
    for place in range(min(count, 6)):
        value = call.args[place] if place < len(call.args) else Value(number=0)
        number = value.number
        if number is None:
            if place not in pointers:
                what = "was left out" if value.cut and value.text is None else "is not known here"
                raise NotUnderstood(f"argument {place + 1} of {call.name} {what}")
            number = SOMEWHERE
        words.append(number % WORD)
    if call.name == "mmap":
        words[4] &= 0xFFFFFFFF
    return words


def data_of(call: LogCall) -> Data:
    """What its pointers point to, as docs/trace-format.md names it.  Raises NotUnderstood where the log left it out."""
    name = call.name
    args = call.args
    if name == "prctl" and _number(args, 0) == PR_SET_VMA and _number(args, 1) == PR_SET_VMA_ANON_NAME:
        return _name(args, 4)
    if name == "memfd_create":
        return _name(args, 0)
    if name in ("setrlimit", "prlimit64"):
        return _limit(args, 1 if name == "setrlimit" else 2)
    if name in ("mbind", "set_mempolicy"):
        return _node_mask(args, 3 if name == "mbind" else 1)
    if name == "process_madvise":
        return _target(args)
    if name == "io_uring_register":
        ranges = _ranges(args, 2)
        return {"ranges": ranges} if ranges is not None else {}
    if name == "ioctl":
        return _uffd(args)
    if name == "shmctl" and _number(args, 1) == IPC_SET:
        return _mode(args)
    return {}


def _number(args: list[Value], place: int) -> int | None:
    return args[place].number if place < len(args) else 0


def _name(args: list[Value], place: int) -> Data:
    value = args[place] if place < len(args) else Value(number=0)
    if value.text is not None and not value.cut:
        return {"name": value.text}
    if value.number == 0 and value.text is None:
        return {}
    return {"name": value.text or "(not shown)"}


def _limit(args: list[Value], place: int) -> Data:
    value = args[place] if place < len(args) else None
    found: Data = {}
    for key, field in (("cur", "rlim_cur"), ("max", "rlim_max")):
        item = value.field(field) if value is not None else None
        if item is not None and item.number is not None:
            found[key] = item.number % WORD
    if "cur" not in found:
        raise NotUnderstood("the new limit is not shown")
    return found


def _node_mask(args: list[Value], place: int) -> Data:
    value = args[place] if place < len(args) else None
    if value is None or value.items is None:
        if value is not None and value.number == 0:
            return {"nodes": []}
        raise NotUnderstood("the mask of nodes is not shown")
    nodes: list[int] = []
    for index, item in enumerate(value.items[: _NODES // 64]):
        if item.number is None:
            raise NotUnderstood("the mask of nodes is not shown whole")
        nodes += [64 * index + bit for bit in range(64) if item.number >> bit & 1]
    return {"nodes": nodes}


def _mode(args: list[Value]) -> Data:
    permissions = args[2].field("shm_perm") if len(args) > 2 else None
    mode = permissions.field("mode") if permissions is not None else None
    return {"mode": mode.number} if mode is not None and mode.number is not None else {}


def _ranges(args: list[Value], place: int) -> list[int] | None:
    """An array of iovecs as address, length, ...; None where it is not shown whole."""
    value = args[place] if place < len(args) else None
    if value is None or value.items is None or value.cut:
        return None
    found: list[int] = []
    for item in value.items:
        base, length = item.field("iov_base"), item.field("iov_len")
        if base is None or length is None or base.number is None or length.number is None:
            return None
        found += [base.number % WORD, length.number % WORD]
    return found


def _target(args: list[Value]) -> Data:
    """Of process_madvise: the ranges, and the process where the log tells which a descriptor stands for."""
    ranges = _ranges(args, 1)
    path = (args[0].path or "") if args else ""
    if ranges is None or not path.startswith("pid:") or not path[4:].isdigit():
        return {}
    return {"pid": int(path[4:]), "ranges": ranges}


def _uffd(args: list[Value]) -> Data:
    value = args[2] if len(args) > 2 else None
    command = (_number(args, 1) or 0) & 0xFFFFFFFF
    if value is None or value.items is None:
        raise NotUnderstood("what the ioctl is given is not shown")
    if command == UFFDIO_API:
        features = value.field("features")
        return {"features": features.number % WORD} if features is not None and features.number is not None else {}
    where = value.field("range") or value
    found: Data = {}
    for key, item in (("start", where.field("start")), ("len", where.field("len")), ("mode", value.field("mode"))):
        if item is not None and item.number is not None:
            found[key] = item.number % WORD
    if "start" not in found or "len" not in found or (command == UFFDIO_REGISTER and "mode" not in found):
        raise NotUnderstood("the range of the ioctl is not shown")
    return found
