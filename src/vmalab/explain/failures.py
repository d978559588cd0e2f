"""Calls that failed: each errno with its Reason, and the state of the address space that caused it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab import reason
from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.explain.story import describe
from vmalab.flags import RLIM_INFINITY
from vmalab.reason import Explanation, errno_of, explain
from vmalab.text import escape_text
from vmalab.trace.show import ADDRESS, NUMBER, argument_kinds, result_text, shape_text

if TYPE_CHECKING:
    from vmalab.calls import Call, Outcome
    from vmalab.machine import Process
    from vmalab.vma.space import Mm

UNEXPLAINED: Final = -1
"""Stands for the Reason of a failure that the model does not predict."""

_MAP_COUNT: Final = frozenset(
    {
        reason.MAP_COUNT_SPLIT,
        reason.MAP_COUNT_UNMAP,
        reason.MAP_COUNT_MAP,
        reason.MAP_COUNT_BRK,
        reason.MAP_COUNT_MREMAP,
        reason.MAP_COUNT_SPLIT_EAGAIN,
    }
)
_MEMLOCK: Final = frozenset({reason.LIMIT_MEMLOCK, reason.LIMIT_MEMLOCK_EAGAIN, reason.LIMIT_MEMLOCK_STACK})
_HOLES: Final = frozenset({reason.NOT_MAPPED, reason.NOT_MAPPED_EFAULT})


def size_text(size: int) -> str:
    """A number of bytes for people: 4096 bytes, 8 KiB, 1.5 GiB; RLIM_INFINITY is no limit."""
    if size == RLIM_INFINITY:
        return "no limit"
    if size < 0:
        return f"-{size_text(-size)}"
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift:
            return f"{size >> shift:,} {unit}" if size % (1 << shift) == 0 else f"{size / (1 << shift):,.1f} {unit}"
    return f"{size} bytes"


@final
class State:
    """The counters of an address space at one moment: a failed call may change them before it gives up."""

    __slots__ = ("committed", "data_vm", "locked_vm", "map_count", "total_vm")

    def __init__(self, mm: Mm) -> None:
        self.map_count: int = mm.map_count
        self.total_vm: int = mm.total_vm
        self.data_vm: int = mm.data_vm
        self.locked_vm: int = mm.locked_vm
        self.committed: int = mm.commit.committed


@final
class Failure:
    """Calls of one shape in one process that failed for one reason."""

    __slots__ = ("call", "cause", "count", "errno", "first", "last", "pid", "reason", "shape")

    def __init__(self, pid: int, call: Call, errno: int, why: int, n: int, cause: str) -> None:
        self.pid: int = pid
        self.call: Call = call
        """The first of them."""
        self.shape: str = shape_text(call)
        self.errno: int = errno
        self.reason: int = why
        """The Reason that the model gives, or UNEXPLAINED where the model does not predict the failure."""
        self.count: int = 0
        self.first: int = n
        """The record of the first."""
        self.last: int = n
        self.cause: str = cause
        """The state that caused the first, in words."""

    def explanation(self) -> Explanation | None:
        """What the reason means, if there is one."""
        return explain(self.reason) if self.reason != UNEXPLAINED else None

    def errno_text(self) -> str:
        """The errno by name."""
        return result_text(-self.errno)


@final
class Failures:
    """The failed calls of a trace, those of one kind together."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, str, int, int], Failure] = {}

    def add(self, n: int, process: Process, call: Call, ret: int, outcome: Outcome, before: State) -> None:
        """Take note of a call, if it failed.  ret is what the kernel answered, outcome what the model did."""
        errno = failed_with(call, ret, outcome)
        if errno == 0:
            return
        known = outcome.modelled and outcome.reason and errno_of(outcome.reason) == errno
        why = outcome.reason if known else UNEXPLAINED
        key = (process.pid, shape_text(call), errno, why)
        found = self._found.get(key)
        if found is None:
            cause = cause_of(why, process, call, before) if known else _unexplained(outcome, errno)
            found = Failure(process.pid, call, errno, why, n, cause)
            self._found[key] = found
        found.count += 1
        found.last = n

    def all(self) -> list[Failure]:
        """What failed: first for want of memory or a limit, then the most frequent."""
        return sorted(
            self._found.values(), key=lambda failure: (not is_limit(failure.reason), -failure.count, failure.first)
        )


def is_limit(why: int) -> bool:
    """Whether a Reason is a limit that was reached, rather than a request that makes no sense."""
    return (
        why in _MAP_COUNT
        or why in _MEMLOCK
        or why
        in (
            reason.LIMIT_AS,
            reason.LIMIT_DATA,
            reason.LIMIT_DATA_BRK,
            reason.LIMIT_STACK,
            reason.OVERCOMMIT,
            reason.NO_GAP,
        )
    )


def failed_with(call: Call, ret: int, outcome: Outcome) -> int:
    """The errno of a failed call, else 0.  brk never answers one: what it was refused for counts."""
    if ret < 0:
        return -ret
    if call.name == "brk" and outcome.reason and call.args[0] and ret != call.args[0]:
        return errno_of(outcome.reason)
    return 0


def _unexplained(outcome: Outcome, errno: int) -> str:
    if not outcome.modelled:
        return "the call is not modelled"
    if not outcome.known:
        return "the model cannot know the result"
    if outcome.result == -errno and not outcome.reason:
        return "what it depends on is not in the trace"
    why = f" ({outcome.explanation().sentence})" if outcome.reason else ""
    return f"the model predicts {result_text(outcome.result)}{why}"


def cause_of(why: int, process: Process, call: Call, before: State) -> str:
    """The state of a process that led to a refusal, in words."""
    mm = process.mm
    if why in _MAP_COUNT:
        return f"{before.map_count:,} VMAs, with max_map_count {mm.settings.max_map_count:,}"
    if why == reason.LIMIT_AS:
        return f"{_pages(before.total_vm)} mapped, with RLIMIT_AS {size_text(process.limits.as_bytes)}"
    if why in (reason.LIMIT_DATA, reason.LIMIT_DATA_BRK):
        return f"{_pages(before.data_vm)} of data, with RLIMIT_DATA {size_text(process.limits.data)}"
    if why == reason.LIMIT_STACK:
        return f"RLIMIT_STACK is {size_text(process.limits.stack)}"
    if why in _MEMLOCK or why == reason.LOCK_NOT_PERMITTED:
        return f"{_pages(before.locked_vm)} locked, with RLIMIT_MEMLOCK {size_text(process.limits.memlock)}"
    if why == reason.OVERCOMMIT:
        commit = mm.commit
        if commit.mode == 2:
            return f"{_pages(before.committed)} committed, with a limit of {_pages(commit.limit())} (overcommit 2)"
        return f"more at once than there is: {_pages(commit.ram + commit.swap)} of memory and swap"
    return _place(why, mm, call) or f"{before.map_count:,} VMAs"


def _pages(pages: int) -> str:
    return size_text(pages << PAGE_SHIFT)


def call_range(call: Call) -> tuple[int, int] | None:
    """The [start, end) that a call is about: its first address with the length that follows, or None."""
    kinds = argument_kinds(call.name)
    for i, kind in enumerate(kinds[:2]):
        if kind == ADDRESS and i < len(call.args):
            length = call.args[i + 1] if i + 1 < len(kinds) and kinds[i + 1] == NUMBER else 1
            return call.args[i], call.args[i] + max(1, length)
    return None


def _place(why: int, mm: Mm, call: Call) -> str:
    """What lies where the call is about."""
    found = call_range(call)
    if found is None or found[0] == 0:
        return ""
    start, end = found[0], min(found[1], mm.task_size)
    if why in _HOLES:
        hole = start - start % PAGE_SIZE
        for vma in mm.tree.walk(start, end):
            if vma.start > hole:
                break
            hole = vma.end
        if hole < found[1]:
            return f"nothing is mapped at {hole:#x}"
    there = mm.tree.walk(start, end) if start < end else []
    if not there:
        return f"nothing is mapped at {start:#x}"
    more = f" and {len(there) - 1:,} more" if len(there) > 1 else ""
    return f"there is {escape_text(describe(there[0]))}{more}"
