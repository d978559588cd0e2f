"""What another tool has logged, before it becomes a trace: calls, ends of tasks, faults, and what was not understood.

The readers of strace, perf and syzkaller text yield these; `vmalab.trace.importing` makes records of them.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from vmalab.text import escape_text, octal_text

MAX_LINE: Final = 1 << 18
"""The longest line that is read, in characters."""
SHOWN_PROBLEMS: Final = 20
"""How many lines that were not understood are kept to be shown; all are counted."""
MAX_FRAMES: Final = 128
"""How many frames of a stack are kept."""
_SHOWN_TEXT: Final = 100

MEMORY: Final = frozenset(
    [
        "mmap",
        "munmap",
        "mprotect",
        "pkey_mprotect",
        "pkey_alloc",
        "pkey_free",
        "brk",
        "mremap",
        "remap_file_pages",
        "madvise",
        "process_madvise",
        "mlock",
        "mlock2",
        "munlock",
        "mlockall",
        "munlockall",
        "mseal",
        "mbind",
        "set_mempolicy",
        "set_mempolicy_home_node",
        "migrate_pages",
        "move_pages",
        "msync",
        "mincore",
        "shmat",
        "shmdt",
        "shmget",
        "shmctl",
        "map_shadow_stack",
        "prctl",
        "setrlimit",
        "prlimit64",
        "personality",
        "userfaultfd",
        "memfd_create",
        "memfd_secret",
        "io_uring_setup",
        "io_uring_register",
        "process_mrelease",
        "ioctl",
    ]
)
"""Calls that a trace holds, or may hold: of prctl, ioctl and the limits only what is about memory."""
FORKS: Final = frozenset({"fork", "vfork", "clone", "clone3"})
FILES: Final = frozenset(
    [
        "open",
        "openat",
        "openat2",
        "creat",
        "dup",
        "dup2",
        "dup3",
        "fcntl",
        "close",
        "close_range",
        "pipe",
        "pipe2",
        "socket",
        "eventfd2",
        "epoll_create1",
    ]
)
"""Calls that say what a descriptor stands for."""
WANTED: Final = MEMORY | FORKS | FILES | {"execve", "execveat", "exit_group"}
"""All calls whose arguments are read; of others only the name is."""


class Value(msgspec.Struct, omit_defaults=True):
    """An argument as a log shows it: a number, a string, or what a pointer points to."""

    number: int | None = None
    text: str | None = None
    """A string, with what is not printable as octal digits."""
    path: str | None = None
    """The file that a descriptor stands for, where the log tells."""
    items: list[Value] | None = None
    names: list[str] = []
    """The names of the items, for those of a structure; empty where an item has none."""
    cut: bool = False
    """The log shows a part of it."""

    def field(self, name: str) -> Value | None:
        """The item of a structure by its name."""
        if self.items is None or name not in self.names:
            return None
        return self.items[self.names.index(name)]


class LogCall(msgspec.Struct):
    """A call that has returned, or (entered) one that has begun while others run."""

    line: int
    tid: int
    name: str
    args: list[Value]
    ret: int | None = None
    """The result or minus the errno; None where the log does not tell."""
    path: str | None = None
    """The file that the result, a descriptor, stands for."""
    unfinished: bool = False
    """It has begun; what it gave follows in a LogCall of its own, or never."""
    stack: list[str] = []
    """The frames of the stack that made it, innermost first, as a Stack record has them."""


class LogEnd(msgspec.Struct):
    """A task has ended."""

    line: int
    tid: int
    code: int | None = None
    signal: int | None = None


class LogFault(msgspec.Struct):
    """A page fault."""

    line: int
    tid: int
    addr: int
    write: bool
    stack: list[str] = []


class LogTask(msgspec.Struct):
    """What a log says of a task apart from its calls."""

    line: int
    tid: int
    what: str
    """ "group": a thread of `other`.  "superseded": it ended in an execve of thread `other`, which takes its number.
    "32-bit", "64-bit": it runs such a program.  "lost": events are missing (tid 0: of all)."""
    other: int = 0
    why: str = ""


Event = LogCall | LogEnd | LogFault | LogTask


def lost(line: int, tid: int, what: str) -> LogTask:
    """Something is missing in a line of the log, for a task, or for all (0)."""
    return LogTask(line, tid, "lost", why=f"line {line}: {what}")


class Family(msgspec.Struct):
    """What a first look through a log tells of its tasks."""

    main: int = 1
    """The task of lines that name none."""
    leader: int = 0
    """The process that the tool was attached to, where the log tells, and it is one alone."""
    parents: dict[int, list[int]] = {}
    """The makers of each task, one for each time that its number was given."""
    execs: set[int] = set()
    """Tasks that ran another program."""
    seen: set[str] = set()
    """The kinds of events that there are, where that matters."""
    together: bool = True
    """Tasks that nobody in the log has made are threads of one process."""


class Problem(msgspec.Struct):
    """A line that was not understood."""

    line: int
    text: str
    why: str
    file: str = ""
    """The file, where there are several."""


class Tally:
    """Counts what a log holds, so that nothing is passed over in silence."""

    def __init__(self) -> None:
        self.file: str = ""
        """The file that is being read, where there are several."""
        self.lines: int = 0
        self.calls: int = 0
        """Calls that are in the trace."""
        self.others: int = 0
        """Calls that have nothing to do with memory."""
        self.passed: Counter[str] = Counter()
        """Lines that are understood and of no use, by kind."""
        self.problems: list[Problem] = []
        self.misread: int = 0
        """How many lines were not understood."""
        self.assumed: Counter[str] = Counter()
        """What was taken for granted, and how often."""

    def take(self, line: int, text: str) -> bool:
        """Count a line; whether it is to be read."""
        self.lines += 1
        if len(text) <= MAX_LINE:
            return True
        self.bad(line, text[:_SHOWN_TEXT], "the line is too long")
        return False

    def bad(self, line: int, text: str, why: str) -> None:
        """Count a line that was not understood, and keep it if it is one of the first."""
        self.misread += 1
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(Problem(line, escape_text(text.strip(), _SHOWN_TEXT), why, self.file))


class Line(NamedTuple):
    """A line of a log, with the stack that stands below it."""

    number: int
    text: str
    frames: list[str]
    """The frames that say something, up to `MAX_FRAMES`."""
    below: int
    """How many lines the stack has."""

    def give_stack(self, events: Iterable[Event], tally: Tally) -> Iterator[Event]:
        """The events of this line; its calls and faults have the stack."""
        taken = False
        for event in events:
            if self.frames and isinstance(event, LogCall | LogFault):
                event.stack = self.frames
                taken = True
            yield event
        tally.lines += self.below
        if self.below and not taken:
            tally.passed["lines of stacks of other calls"] += self.below


def with_stacks(lines: Iterable[tuple[int, str]], frame_of: Callable[[str], str | None]) -> Iterator[Line]:
    """The lines of a log, each with the stack below it.

    frame_of tells a line of a stack as a frame, empty where it says nothing; None if the line is none.
    """
    held: Line | None = None
    for number, text in lines:
        frame = frame_of(text)
        if frame is None or held is None:
            if held is not None:
                yield held
            held = Line(number, text, [], 0)
            continue
        if frame and len(held.frames) < MAX_FRAMES:
            held.frames.append(octal_text(frame))
        held = held._replace(below=held.below + 1)
    if held is not None:
        yield held


def lines_of(parts: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, without their ends; one that is too long is cut at `MAX_LINE`."""
    number = 0
    held = b""
    for part in parts:
        *whole, rest = (held + part).split(b"\n")
        for line in whole:
            number += 1
            yield number, _text(line if number > 1 else line.removeprefix(BOM_UTF8))
        held = rest[: MAX_LINE + 1]
    if held:
        yield number + 1, _text(held)


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r")[: MAX_LINE + 1].decode("utf-8", "surrogateescape")
