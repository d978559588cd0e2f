"""Reads syzkaller programs: calls with constants, results as rN, pointers into an arena, and call properties.

A program tells what is asked for and not what came of it, so the calls of its trace have no results.  Pointers are
written from 0x7f0000000000 on; the executor maps its arena elsewhere first, and so does the trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, final

from vmalab.flags import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE, UFFDIO_API
from vmalab.trace.logs import WANTED, Event, Family, LogCall, Tally, Value, lost
from vmalab.trace.strace_values import unescape

Lines = Iterable[tuple[int, str]]

TEXT_BASE: Final = 0x7F0000000000
"""Where the arena begins in the text."""
ARENA: Final = 0x200000000000
"""Where the executor maps it on x86-64."""
ARENA_SIZE: Final = 0x1000000
MAX_DEPTH: Final = 32
_FIRST_DESCRIPTOR: Final = 3

_LINE: Final = re.compile(r"(?:r(?P<var>\d{1,9}) = )?(?P<name>[a-z_]\w{0,63})(?P<variant>\$\w{1,100})?\((?P<rest>.*)")
_PROPERTY: Final = re.compile(r" *([a-z_]{1,20})(?:: ?(\d{1,9}))? *")
_NUMBER: Final = re.compile(r"(-?)0x([0-9a-fA-F]{1,16})|(-?\d{1,20})\b")
_VARIABLE: Final = re.compile(r"r(\d{1,9})(?:/0x[0-9a-f]{1,16})?(?:\+0x[0-9a-f]{1,16})?")
_RESULT: Final = re.compile(r"<r(\d{1,9})=>")
_POINTER: Final = re.compile(r"&(?:AUTO|\(0x(?P<addr>[0-9a-fA-F]{1,16})(?P<offset>[+-]0x[0-9a-f]{1,16})?"
                             r"(?:/0x[0-9a-f]{1,16})?\))")  # fmt: skip
_UNION: Final = re.compile(r"@\w{1,200}(=)?")
_SIZE: Final = re.compile(r"/(?:0x[0-9a-f]{1,16}|\d{1,9})")
_NOTICE: Final = re.compile(r"(?:\d{4}/\d\d/\d\d )?.{0,40}executing program.{0,40}|\{.{0,400}\}|\d{1,6}:")
_GIVES_NUMBER: Final = frozenset(
    {
        "creat", "dup", "dup2", "dup3", "epoll_create1", "eventfd2", "io_uring_setup", "memfd_create", "memfd_secret",
        "open", "openat", "openat2", "shmget", "socket", "userfaultfd",
    }
)  # fmt: skip
"""Calls whose results are descriptors or identifiers, which a program hands on."""
_IOVEC: Final = ["iov_base", "iov_len"]


class _Unreadable(Exception):
    """The line is not as syzkaller writes it."""


def looks_like_program(line: str) -> bool:
    """Whether a line is a call of a program."""
    text = line.strip()
    found = _LINE.fullmatch(text)
    if found is None:
        return False
    try:
        _Parser(found["rest"], {}).arguments()
    except _Unreadable:
        return False
    return True


def look_through(lines: Lines, family: Family) -> None:
    """A program is of one process: there is nothing to be found out first."""


def read_program(lines: Lines, family: Family, tally: Tally) -> Iterator[Event]:
    """The calls of a program, in its order; what is not understood goes to the tally."""
    yield from _arena()
    tally.assumed[f"the executor maps its arena at {ARENA:#x}, with a page without access on both sides"] += 1
    numbers: dict[int, int] = {}
    following = _FIRST_DESCRIPTOR
    for number, line in lines:
        if not tally.take(number, line):
            continue
        text = line.strip()
        if not text or text.startswith("#") or _NOTICE.fullmatch(text):
            tally.passed["empty lines and comments"] += 1
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            tally.bad(number, line, "not a call of syzkaller")
            continue
        name = found["name"]
        if name.startswith("syz_"):
            tally.assumed["pseudo calls of syzkaller (syz_...) change no memory"] += 1
            continue
        try:
            args, rest = _Parser(found["rest"], numbers).arguments()
        except _Unreadable as error:
            tally.bad(number, line, str(error))
            if name in WANTED:
                yield lost(number, 1, f"{name} was not understood")
            continue
        if name not in WANTED:
            tally.others += 1
            continue
        _properties(rest, number, line, tally)
        ret: int | None = None
        if name in _GIVES_NUMBER:
            ret = following
            following += 1
            tally.assumed["calls that give descriptors or identifiers succeed"] += 1
            if found["var"] is not None:
                numbers[int(found["var"])] = ret
        yield LogCall(number, 1, name, _named(name, args), ret)


def _arena() -> Iterator[LogCall]:
    """What the executor maps before it runs a program."""
    fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
    for start, length, prot in (
        (ARENA - 0x1000, 0x1000, 0),
        (ARENA, ARENA_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC),
        (ARENA + ARENA_SIZE, 0x1000, 0),
    ):
        yield LogCall(0, 1, "mmap", [Value(number=word) for word in (start, length, prot, fixed, -1, 0)])


def _properties(rest: str, number: int, line: str, tally: Tally) -> None:
    if not rest.strip():
        return
    text = rest.strip()
    words = text[1:-1].split(",") if text.startswith("(") and text.endswith(")") else [""]
    for word in words:
        found = _PROPERTY.fullmatch(word)
        what = found[1] if found is not None else ""
        if what == "fail_nth":
            tally.assumed["calls in which the kernel was to fail an allocation (fail_nth) do not fail"] += 1
        elif what == "async":
            tally.assumed["calls that are not waited for (async) are over before the next one"] += 1
        elif what == "rerun":
            tally.assumed["calls that are to be run again (rerun) run once"] += 1
        else:
            tally.bad(number, line, "what stands behind the call is not known")
            return


def _named(name: str, args: list[Value]) -> list[Value]:
    """Names for the fields of the structures that a trace holds something of."""
    if name in ("setrlimit", "prlimit64"):
        place = 1 if name == "setrlimit" else 2
        _name(args, place, ["rlim_cur", "rlim_max"])
    elif name in ("process_madvise", "io_uring_register"):
        place = 1 if name == "process_madvise" else 2
        for item in (args[place].items or []) if len(args) > place else []:
            if item.items is not None and len(item.items) == 2:
                item.names = _IOVEC
    elif name == "ioctl":
        if len(args) > 1 and args[1].number == UFFDIO_API:
            _name(args, 2, ["api", "features", "ioctls"])
        else:
            _name(args, 2, ["range", "mode", "ioctls"])
            items = args[2].items if len(args) > 2 else None
            if items and items[0].items is not None:
                _name(items, 0, ["start", "len"])
            else:
                _name(args, 2, ["start", "len"])
    return args


def _name(values: list[Value], place: int, names: list[str]) -> None:
    if place < len(values):
        items = values[place].items
        if items is not None:
            values[place].names = (names + [""] * len(items))[: len(items)]


@final
class _Parser:
    """Reads the arguments of a call, from left to right."""

    def __init__(self, text: str, numbers: dict[int, int]) -> None:
        self.text = text
        self.at = 0
        self.numbers = numbers

    def arguments(self) -> tuple[list[Value], str]:
        """The arguments up to the parenthesis that closes them, and what stands behind it."""
        args = self._list(")", 0)
        return args, self.text[self.at :]

    def _space(self) -> None:
        while self.text.startswith(" ", self.at):
            self.at += 1

    def _skip(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def _list(self, close: str, depth: int) -> list[Value]:
        found: list[Value] = []
        self._space()
        if self._skip(close):
            return found
        while True:
            self._space()
            found.append(self._value(depth))
            self._space()
            if self._skip(close):
                return found
            if not self._skip(","):
                raise _Unreadable(f"{close} or a comma is missing")

    def _value(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise _Unreadable("nested too deeply")
        text = self.text
        char = text[self.at : self.at + 1]
        if char == "&":
            return self._pointer(depth)
        if char in "'\"" and char:
            return self._string(char)
        if char in ("{", "["):
            self.at += 1
            return Value(items=self._list("}" if char == "{" else "]", depth + 1))
        if self._skip("nil"):
            return Value(number=0)
        if self._skip("AUTO"):
            return Value()
        for pattern, read in ((_RESULT, self._result), (_UNION, self._union)):
            found = pattern.match(text, self.at)
            if found is not None:
                self.at = found.end()
                return read(found, depth)
        found = _VARIABLE.match(text, self.at)
        if found is not None:
            self.at = found.end()
            return Value(number=self.numbers.get(int(found[1])))
        found = _NUMBER.match(text, self.at)
        if found is None:
            raise _Unreadable("a value is missing")
        self.at = found.end()
        value = int(found[2], 16) if found[2] else int(found[3])
        return Value(number=(-value if found[1] else value) % (1 << 64))

    def _result(self, found: re.Match[str], depth: int) -> Value:
        """A place that a call writes a result to, and what is there before."""
        self.numbers.pop(int(found[1]), None)
        return self._value(depth + 1)

    def _union(self, found: re.Match[str], depth: int) -> Value:
        return self._value(depth + 1) if found[1] else Value()

    def _pointer(self, depth: int) -> Value:
        found = _POINTER.match(self.text, self.at)
        if found is None:
            raise _Unreadable("not a pointer")
        self.at = found.end()
        addr: int | None = None
        if found["addr"] is not None:
            offset = int(found["offset"] or "0", 16)
            addr = int(found["addr"], 16) + offset
            if TEXT_BASE <= addr < TEXT_BASE + ARENA_SIZE + 0x1000:
                addr = addr - TEXT_BASE + ARENA
            addr %= 1 << 64
        value = Value(number=addr)
        if self._skip("=ANY"):
            value.cut = True
        if not self._skip("="):
            return value
        inner = self._value(depth + 1)
        if not value.cut:
            value.items, value.text = inner.items, inner.text
            if inner.items is None and inner.text is None and inner.number:
                value.items = [inner]
        return value

    def _string(self, quote: str) -> Value:
        text = self.text
        end = self.at + 1
        while end < len(text) and text[end] != quote:
            end += 2 if text[end] == "\\" else 1
        if end >= len(text):
            raise _Unreadable("a string without an end")
        raw = text[self.at + 1 : end]
        self.at = end + 1
        size = _SIZE.match(text, self.at)
        if size is not None:
            self.at = size.end()
        if quote == '"':
            return Value(text="(bytes)") if raw else Value()
        return Value(text=unescape(raw.removesuffix("\\x00")))
