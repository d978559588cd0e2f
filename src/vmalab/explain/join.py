"""Calls that do the same to ranges that touch, joined into one: what a program would do that asks once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from vmalab.addr import PAGE_MASK, page_up
from vmalab.explain.rewrite import ARGUMENTS, GIVES_ADDRESS
from vmalab.trace import records

WINDOW: Final = 4096
"""How many records ahead the next call of a process is looked for."""

JOINABLE: Final = frozenset(
    name for name, arguments in ARGUMENTS.items() if arguments[:2] == ("addr", "length") and name not in GIVES_ADDRESS
) - {"mbind", "mincore", "remap_file_pages"}
"""Calls on a range whose result is no address, and in which everything else that they are given is numbers."""


def joined(trace: Iterable[records.Record]) -> Iterator[tuple[records.Record, tuple[int, ...] | None]]:
    """Each record, with the arguments that its call has in the changed run: () if an earlier call does it all.

    Successive calls of one process are joined at the first of them if they differ in their ranges alone, and these
    touch or overlap.  For records that are no such calls it is None.
    """
    window: deque[records.Record] = deque()
    source = iter(trace)
    plan: dict[int, tuple[int, ...]] = {}
    while True:
        while len(window) < WINDOW:
            record = next(source, None)
            if record is None:
                break
            window.append(record)
        if not window:
            return
        record = window.popleft()
        if _is_joinable(record) and record.n not in plan:
            _plan(record, window, plan)
        yield record, plan.pop(record.n, None)


def _is_joinable(record: records.Record) -> bool:
    return isinstance(record, records.Call) and record.call in JOINABLE and record.ret == 0


def _plan(first: records.Record, window: deque[records.Record], plan: dict[int, tuple[int, ...]]) -> None:
    assert isinstance(first, records.Call)
    start, end = _range(first)
    taken: list[int] = []
    for record in window:
        if isinstance(record, records.File | records.Fault) or not _concerns(record, first.pid):
            continue
        if not isinstance(record, records.Call) or not _is_joinable(record):
            break
        if record.call != first.call or record.args[2:] != first.args[2:]:
            break
        other_start, other_end = _range(record)
        if other_start > end or other_end < start:
            break
        start, end = min(start, other_start), max(end, other_end)
        taken.append(record.n)
    if taken:
        plan[first.n] = (start, end - start, *first.args[2:])
        plan.update(dict.fromkeys(taken, ()))


def _range(call: records.Call) -> tuple[int, int]:
    start = call.args[0] & ~PAGE_MASK
    return start, start + page_up(call.args[1])


def _concerns(record: records.Record, pid: int) -> bool:
    return pid in (getattr(record, "pid", 0), getattr(record, "parent", 0)) or isinstance(record, records.Lost)
