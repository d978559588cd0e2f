"""Reads the text that strace writes, whatever its options were.

A line is: the task, times, and other columns by options, then a call, a signal, an end, or a frame of a stack.  Calls
that others interrupt are split in two lines.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, final

from vmalab.errors import InputError
from vmalab.trace.constants import errno_of_name, is_restart, number_of
from vmalab.trace.logs import (
    FORKS,
    MAX_LINE,
    WANTED,
    Event,
    Family,
    Line,
    LogCall,
    LogEnd,
    LogTask,
    Tally,
    lost,
    with_stacks,
)
from vmalab.trace.strace_values import Unreadable, path_end, read_arguments, unescape

Lines = Iterable[tuple[int, str]]

_PREFIX: Final = re.compile(
    r" *(?:\[pid +(?P<pid1>\d{1,7})(?:<[^>\n]{0,64}>)?\] +|(?P<pid2>\d{1,7})(?:<[^>\n]{0,64}>)? +)?"
    r" *(?:(?:\d\d:\d\d:\d\d(?:\.\d{1,9})?|\d{1,12}\.\d{1,9}) +)?"
    r"(?:\(\+ *\d{1,12}\.\d{1,9}\) +)?"
    r"(?:\[ *\d{1,4}\] +)?"
    r"(?:\[(?:[0-9a-f]{8,16}|\?{8,16})\] +)?"
)
_CALL: Final = re.compile(r"([a-zA-Z_]\w{0,63})\((.*)", re.DOTALL)
_END: Final = re.compile(r"(.*)\)\s+= (.+)", re.DOTALL)
_RESUMED: Final = re.compile(r"<\.\.\. ([a-zA-Z_]\w{0,63}) resumed>(.*)", re.DOTALL)
_UNFINISHED: Final = ("<unfinished ...>", "<detached ...>", "<ptrace(SYSCALL):No such process>")
_VALUE: Final = re.compile(r"0x[0-9a-f]{1,16}|-?\d{1,20}|\?")
_AFTER: Final = re.compile(
    r"(?: (?P<errno>E[A-Z0-9_]{1,40})(?: \([^()]{0,100}\))?| \(errno (?P<raw>\d{1,4})\)| \([^()]{0,400}\))?"
    r"(?P<injected> \(INJECTED[^)]{0,40}\))?(?: \(DELAYED\))?(?: <\d{1,12}\.\d{1,9}>| <unavailable>)?\s{0,8}",
    re.DOTALL,
)
_TIME: Final = re.compile(r"(?:(\d\d):(\d\d):(\d\d(?:\.\d{1,9})?)|(\d{9,11}\.\d{1,9})) ")
_EXITED: Final = re.compile(r"\+\+\+ exited with (\d{1,3}) \+\+\+\s*")
_KILLED: Final = re.compile(r"\+\+\+ killed by (\w+)(?: \(core dumped\))? \+\+\+\s*")
_SUPERSEDED: Final = re.compile(r"\+\+\+ superseded by execve in pid (\d{1,7}) \+\+\+\s*")
_MODE: Final = re.compile(r"(?:strace: )?\[ Process PID=(\d{1,7}) runs in (\d\d) ?bit mode\. \]\s*")
_ATTACHED: Final = re.compile(r"(?:strace: )?Process (\d{1,7}) attached(?: with (\d+) threads.*| \(.*\))?\s*")
_BROKEN: Final = re.compile(r"(.*?)(?:strace: )?Process \d{1,7} (?:attached|suspended|detached)(?: \([^()]{0,60}\))?")
_NOTICE: Final = re.compile(r"(?:strace: )?Process (?:\d{1,7}) (?:detached|resumed|suspended).*|strace: .*")
_PART: Final = re.compile(r" *-+\[ *(?:kernel|stack).*")
_ADDRESS: Final = re.compile(r"[0-9a-f]{1,16}")
_DUMP: Final = re.compile(r" *(?:\* \d+ (?:bytes|vectors) in .*| \| [0-9a-f]{5,16}  [0-9a-f ]{1,60}.*\|\s*)")
_TABLE: Final = re.compile(
    r"% time +seconds.*|-{4,}[- ]*|\s*\d+\.\d+ +\d+\.\d+ +(?:\d+ +)?\d+ +(?:\d+ +)?[a-z_]\w*\s*|System call usage.*"
)
_SIGNALS: Final = {"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7,
                   "SIGFPE": 8, "SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12, "SIGPIPE": 13, "SIGALRM": 14,
                   "SIGTERM": 15, "SIGXCPU": 24, "SIGXFSZ": 25, "SIGSYS": 31}  # fmt: skip
_ONLY_32BIT: Final = frozenset({"mmap2", "old_mmap", "set_thread_area", "ugetrlimit", "_llseek", "fcntl64"})
_FORKED: Final = re.compile(r"(?:<\.\.\. )?(?:clone3?|v?fork)(?:\(| resumed>)")
_CHILD: Final = re.compile(r"(\d{1,7})(?:<[^>\n]{0,64}>)?(?: <[\d.]{1,30}>)?\s*")
_SELF: Final = re.compile(r"(?:gettid\(\)|set_tid_address\(0x[0-9a-f]+\)) += (\d{1,7})\b")
_EXECED: Final = re.compile(r"(?:<\.\.\. )?execve(?:at)?(?:\(| resumed>).*\) *= 0\b", re.DOTALL)


def looks_like_strace(line: str) -> bool:
    """Whether a line is one of strace's: a call with its result, or a part of one."""
    _, rest = _split(line)
    if _RESUMED.fullmatch(rest) or _EXITED.fullmatch(rest) or _KILLED.fullmatch(rest) or _ATTACHED.fullmatch(rest):
        return True
    call = _CALL.fullmatch(rest)
    if call is None:
        return False
    end = _END.fullmatch(call[2])
    return _begun(rest) is not None or (end is not None and _read_result(end[2]) is not None)


def frame_of(line: str) -> str | None:
    """A line of a stack (-k) as a frame; empty where it says nothing, None if it is no such line."""
    text = line[:MAX_LINE].strip()
    if not text.startswith("> "):
        return "" if _PART.fullmatch(text) else None
    head, bracket, tail = text[2:].rpartition("[0x")
    at, close, _ = tail.partition("]")
    if not bracket or not close or not _ADDRESS.fullmatch(at):
        return "" if "unexpected_backtracing_error" in text else None
    head = head.rstrip()
    begin = _opening(head)
    if begin < 0:
        return f"0x{at}"
    return f"{head[begin + 1 : -1] or f'0x{at}'} ({head[:begin]})"


def _opening(text: str) -> int:
    """Where the parenthesis is opened that is closed at the end of a text; -1 if there is none."""
    depth = 0
    for place in range(len(text) - 1, -1, -1):
        char = text[place]
        depth += (char == ")") - (char == "(")
        if depth == 0:
            return place if char == "(" else -1
    return -1


def look_through(lines: Lines, family: Family, main: int = 0) -> None:
    """The first look: which task made which, and whose the lines are that name none (main, if that is known)."""
    named: list[int] = []
    known: set[int] = set()
    made: set[int] = set()
    unnamed = False
    own = 0
    for _, line in lines:
        tid, rest = _split(line[:MAX_LINE])
        if tid is None:
            unnamed = unnamed or bool(_CALL.match(rest))
            found = None if own else _SELF.match(rest) or _MODE.fullmatch(rest)
            if found is not None:
                own = int(found[1])
            elif (attached := _ATTACHED.fullmatch(rest)) and attached[2]:
                family.leader = int(attached[1]) if not family.leader else -1
        elif tid not in known and len(named) < _MAX_NAMED:
            known.add(tid)
            named.append(tid)
        if _FORKED.match(rest) and (found := _CHILD.fullmatch(rest.rpartition("= ")[2])):
            child = int(found[1])
            if child and child <= _MAX_TID:
                family.parents.setdefault(child, []).append(tid if tid is not None else 0)
                made.add(child)
        elif _EXECED.match(rest):
            family.execs.add(tid if tid is not None else 0)
    if unnamed:
        family.main = main or own or next((tid for tid in named if tid not in made), 1)
    for parents in family.parents.values():
        parents[:] = [parent or family.main for parent in parents]
    family.leader = max(family.leader, 0)
    if named:
        family.seen.add(_NAMED)
    if 0 in family.execs:
        family.execs.add(family.main)


_NAMED: Final = "lines that name a task"
_NOTICE_LENGTH: Final = 100
_LONGEST_BROKEN: Final = 4096
_MAX_NAMED: Final = 1 << 20
_MAX_TID: Final = 1 << 22


def _split(line: str) -> tuple[int | None, str]:
    """The task that a line names, and what stands after the columns."""
    found = _PREFIX.match(line)
    assert found is not None, "every part of the prefix may be absent"
    number = found["pid1"] or found["pid2"]
    tid = int(number) if number else None
    if tid is not None and not 0 < tid <= _MAX_TID:
        tid = None
    return tid, line[found.end() :]


def read_strace(lines: Lines, family: Family, tally: Tally) -> Iterator[Event]:
    """What a log holds, in its order; what is not understood goes to the tally."""
    reader = _Reader(family, tally)
    for line in with_stacks(lines, frame_of):
        yield from line.give_stack(reader.read(line.number, line.text), tally)
    for tid, (number, name, _) in reader.open.items():
        if name in WANTED:
            tally.passed[f"calls without an end, such as {name} of task {tid} in line {number}"] += 1


def read_separate(files: list[tuple[str, int, Callable[[], Lines]]], family: Family, tally: Tally) -> Iterator[Event]:
    """What the files of strace -ff hold: the name of each, the task (0: not known), and its lines.

    By time where every line has one; else a new task's file is read where the log of its maker shows that it was made.
    """
    sources: dict[int, tuple[str, Callable[[], Lines]]] = {}
    for place, (name, pid, lines) in enumerate(files):
        own = Family()
        look_through(lines(), own, pid)
        if _NAMED in own.seen:
            raise InputError(f"{name}: its lines name their tasks, which those of strace -ff do not: import it alone")
        tid = pid or (own.main if own.main != 1 else place + 1)
        if tid in sources:
            raise InputError(f"{name} and {sources[tid][0]} are both of task {tid}: give one log at a time")
        sources[tid] = (name, lines)
        for child in own.parents:
            family.parents.setdefault(child, []).append(tid)
        if own.execs:
            family.execs.add(tid)
    if all(_time(next(iter(lines()), (1, ""))[1]) is not None for _, lines in sources.values()):
        yield from _by_time(sources, family, tally)
    else:
        yield from _by_making(sources, family, tally)


def _time(line: str) -> float | None:
    """The time of day, or since 1970, in seconds, that a line begins with."""
    found = _TIME.match(line)
    if found is None:
        return None
    hours, minutes, seconds, epoch = found.groups()
    return float(epoch) if epoch else 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _by_time(sources: dict[int, tuple[str, Callable[[], Lines]]], family: Family, tally: Tally) -> Iterator[Event]:
    def timed(tid: int, lines: Lines) -> Iterator[tuple[float, int, Line]]:
        last = 0.0
        for line in with_stacks(lines, frame_of):
            last = max(_time(line.text) or last, last)
            yield last, tid, line

    readers = {tid: _Reader(Family(main=tid), tally) for tid in sources}
    # A task that another one made comes after it where the clock cannot tell.
    order = sorted(sources, key=lambda tid: (tid in family.parents, tid))
    for _, tid, line in heapq.merge(*[timed(tid, sources[tid][1]()) for tid in order], key=lambda each: each[0]):
        tally.file = sources[tid][0]
        yield from line.give_stack(readers[tid].read(line.number, line.text), tally)


def _by_making(sources: dict[int, tuple[str, Callable[[], Lines]]], family: Family, tally: Tally) -> Iterator[Event]:
    waiting = dict(sources)
    roots = [tid for tid in sources if tid not in family.parents] or list(sources)[:1]
    for root in [*roots, *sources]:
        stack = [root] if root in waiting else []
        running: dict[int, Iterator[Event]] = {}
        while stack:
            tid = stack[-1]
            if tid not in running:
                running[tid] = read_strace(waiting.pop(tid)[1](), Family(main=tid), tally)
            tally.file = sources[tid][0]
            event = next(running[tid], None)
            if event is None:
                stack.pop()
                continue
            yield event
            if isinstance(event, LogCall) and event.name in FORKS and event.ret is not None and event.ret in waiting:
                stack.append(event.ret)


@final
class _Reader:
    """Reads line by line, and keeps the first halves of calls that were split."""

    def __init__(self, family: Family, tally: Tally) -> None:
        self.family = family
        self.tally = tally
        self.open: dict[int, tuple[int, str, str]] = {}
        """By task: the line, the name and the arguments so far."""
        self.broken = ""
        """What a notice cut a line short of, in which an old strace does not begin a line of its own."""
        self.last = 0
        """The task of the line before, if that was the first half of a call."""

    def read(self, number: int, line: str) -> Iterator[Event]:
        """The events of a line."""
        tally = self.tally
        if not tally.take(number, line):
            return
        if self.broken:
            line, self.broken = self.broken + line, ""
        tid_given, rest = _split(line)
        tid = tid_given if tid_given is not None else self.family.main
        last, self.last = self.last, 0
        if not rest.strip():
            tally.passed["empty lines"] += 1
        elif rest.startswith("<... "):
            yield from self._resumed(number, tid, rest, line)
        elif "(" in rest and rest.endswith(("attached", "suspended", "detached", ")")) and self._is_broken(line, rest):
            tally.passed["notices of strace"] += 1
        elif call := _CALL.fullmatch(rest):
            yield from self._call(number, tid, call[1], call[2], line)
        elif rest.startswith("+++ "):
            yield from self._ended(number, tid, rest, line)
        elif rest.startswith("--- ") and rest.rstrip().endswith("---"):
            tally.passed["signals"] += 1
        elif frame_of(line) is not None:
            tally.passed["lines of stacks of other calls"] += 1
        elif _DUMP.fullmatch(line):
            tally.passed["lines of what was read or written"] += 1
        elif mode := _MODE.fullmatch(rest):
            yield LogTask(number, int(mode[1]) or tid, f"{mode[2]}-bit")
        elif _ATTACHED.fullmatch(rest) or _NOTICE.fullmatch(rest):
            tally.passed["notices of strace"] += 1
        elif _TABLE.fullmatch(rest) or _TABLE.fullmatch(line):
            tally.passed["rows of a table"] += 1
        elif (last in self.open) and (whole := _END.fullmatch(line)):
            # strace -z forgets to say that a call is resumed.
            _, name, text = self.open.pop(last)
            yield from self._finish(number, last, name, text + whole[1], whole[2], line)
        else:
            tally.bad(number, line, "not a line of strace")

    def _is_broken(self, line: str, rest: str) -> bool:
        """Whether a notice cut the line short; the next one goes on with it."""
        found = _BROKEN.fullmatch(line[-_NOTICE_LENGTH:])
        if found is None or not _CALL.match(rest) or _END.fullmatch(rest) or len(line) > _LONGEST_BROKEN:
            return False
        self.broken = line[:-_NOTICE_LENGTH] + found[1]
        return True

    def _ended(self, number: int, tid: int, rest: str, line: str) -> Iterator[Event]:
        self.open.pop(tid, None)
        if found := _EXITED.fullmatch(rest):
            yield LogEnd(number, tid, code=int(found[1]) & 0xFF)
        elif found := _KILLED.fullmatch(rest):
            yield LogEnd(number, tid, signal=_SIGNALS.get(found[1]))
        elif found := _SUPERSEDED.fullmatch(rest):
            begun = self.open.pop(int(found[1]), None)
            if begun is not None:
                self.open[tid] = begun
            yield LogTask(number, tid, "superseded", int(found[1]))
        else:
            self.tally.bad(number, line, "not a line of strace")

    def _call(self, number: int, tid: int, name: str, rest: str, line: str) -> Iterator[Event]:
        begun = _begun(rest)
        if begun is not None:
            self.open[tid] = (number, name, begun)
            self.last = tid
            if name in WANTED:
                yield from self._begin(number, tid, name, begun)
            return
        whole = _END.fullmatch(rest)
        if whole is None:
            self.tally.bad(number, line, "the call has no result")
            return
        yield from self._finish(number, tid, name, whole[1], whole[2], line)

    def _begin(self, number: int, tid: int, name: str, text: str) -> Iterator[Event]:
        try:
            yield LogCall(number, tid, name, read_arguments(text), unfinished=True)
        except Unreadable:
            # Its second half tells, when all arguments are there.
            yield LogCall(number, tid, name, [], unfinished=True)

    def _resumed(self, number: int, tid: int, rest: str, line: str) -> Iterator[Event]:
        found = _RESUMED.fullmatch(rest)
        if found is None:
            self.tally.bad(number, line, "not a line of strace")
            return
        begun = self.open.pop(tid, None)
        name, tail = found.groups()
        end = _END.fullmatch(tail)
        if end is None:
            again = _begun(tail)
            if begun is not None and again is not None:
                self.open[tid] = (begun[0], begun[1], begun[2] + again)
                return
            self.tally.bad(number, line, "the call has no result")
            return
        if begun is None or begun[1] != name:
            if name in WANTED and name not in ("execve", "exit_group"):
                self.tally.bad(number, line, "the first half of the call is missing")
                yield lost(number, tid, "the first half of a call is missing")
            elif name == "execve":
                yield from self._finish(number, tid, name, "", end[2], line)
            else:
                self.tally.others += 1
            return
        yield from self._finish(number, tid, name, begun[2] + end[1], end[2], line)

    def _finish(self, number: int, tid: int, name: str, text: str, result: str, line: str) -> Iterator[Event]:
        """A whole call."""
        if name in _ONLY_32BIT:
            yield LogTask(number, tid, "32-bit")
            return
        name = _RENAMED.get(name, name)
        if name not in WANTED:
            self.tally.others += 1
            return
        found = _read_result(result)
        if found is None:
            yield from self._unreadable(number, tid, name, line, "the result is none that strace prints")
            return
        if found.no_effect:
            self.tally.passed["calls without effect: restarted, or their result was put in by strace"] += 1
            return
        path = unescape(found.path) if found.path is not None else None
        try:
            yield LogCall(number, tid, name, read_arguments(text), found.ret, path)
        except Unreadable as error:
            yield from self._unreadable(number, tid, name, line, f"the arguments cannot be read: {error}")

    def _unreadable(self, number: int, tid: int, name: str, line: str, why: str) -> Iterator[Event]:
        self.tally.bad(number, line, why)
        if name not in FORKS:
            yield lost(number, tid, f"{name} was not understood")


_RENAMED: Final = {
    "syscall_0x1ce": "mseal",
    "syscall_0x1b8": "process_madvise",
    "syscall_0x1c5": "map_shadow_stack",
    "syscall_0x1c2": "set_mempolicy_home_node",
    "syscall_0x1bf": "memfd_secret",
    "syscall_0x1c0": "process_mrelease",
    "syscall_462": "mseal",
    "prlimit": "prlimit64",
}
"""Calls that an older strace has no name for, by their numbers."""


@final
class _Result:
    """What stands behind the equals sign."""

    __slots__ = ("no_effect", "path", "ret")

    def __init__(self, ret: int | None, path: str | None, no_effect: bool) -> None:
        self.ret = ret
        """The result or minus the errno; None where it is not known."""
        self.path = path
        self.no_effect = no_effect


def _begun(rest: str) -> str | None:
    """The first half of a call that was split, without what says so; None if it was not."""
    text = rest.rstrip()
    for mark in _UNFINISHED:
        if text.endswith(mark):
            return text[: -len(mark)].rstrip()
    return None


def _read_result(text: str) -> _Result | None:
    """The result of a call; None if it is none that strace prints."""
    found = _VALUE.match(text)
    if found is None:
        return None
    at = found.end()
    path: str | None = None
    if text[at : at + 1] == "<":
        try:
            end = path_end(text, at)
        except Unreadable:
            return None
        path = text[at + 1 : end]
        at = end + 1
        at += len("(deleted)") if text.startswith("(deleted)", at) else 0
    rest = _AFTER.fullmatch(text, at)
    if rest is None:
        return None
    no_effect = rest["injected"] is not None or (rest["errno"] is not None and is_restart(rest["errno"]))
    if found[0] == "?" or no_effect:
        return _Result(None, path, no_effect)
    value = number_of(found[0])
    if value == -1:
        error = int(rest["raw"]) if rest["raw"] else errno_of_name(rest["errno"] or "")
        return _Result(-error, path, False) if error and error < 4096 else None
    return _Result(value, path, False) if value is not None and value >= -4095 else None
