"""Where to stop: conditions on a record and on what it did, and the breakpoints that hold them."""

from __future__ import annotations

import errno
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, final

from vmalab.addr import PAGE_SIZE
from vmalab.debug.expressions import Expression
from vmalab.debug.moment import Moment, errno_name, result_of
from vmalab.errors import InputError
from vmalab.text import address_of, escape_text
from vmalab.trace.check import ARGUMENTS


class Condition(ABC):
    """Something that is so or not at a moment."""

    needs_state: bool = False
    """Whether it needs the model, not the trace alone."""

    def prime(self, moment: Moment) -> None:  # noqa: B027 - most conditions have nothing to remember
        """Look at the moment before the first that is asked about."""

    @abstractmethod
    def holds(self, moment: Moment) -> bool:
        """Whether it is so."""


@final
class Always(Condition):
    """Every record."""

    def holds(self, moment: Moment) -> bool:
        return True


@final
class CallIs(Condition):
    """A call by name, with flags that it must have, or with ! must not have."""

    def __init__(self, names: Sequence[str], words: Sequence[str] = ()) -> None:
        """Both are patterns as of a shell; several names are alternatives, all the flags have to be so."""
        self._names = list(names)
        self._words = list(words)

    def holds(self, moment: Moment) -> bool:
        call = moment.call
        if call is None or not any(fnmatchcase(call.call, name) for name in self._names):
            return False
        return all(self._has(moment, word) for word in self._words)

    @staticmethod
    def _has(moment: Moment, word: str) -> bool:
        wanted = not word.startswith("!")
        return any(fnmatchcase(each, word.removeprefix("!")) for each in moment.words) == wanted


@final
class ErrnoIs(Condition):
    """A call that the kernel refused with this errno, or with any."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def holds(self, moment: Moment) -> bool:
        name = errno_name(result_of(moment.record))
        return bool(name) and (not self._names or name in self._names)


@final
class Touches(Condition):
    """A record that asks about [low, high), or changes something there."""

    needs_state = True

    def __init__(self, low: int, high: int) -> None:
        self._low = low
        self._high = high

    def holds(self, moment: Moment) -> bool:
        return moment.touches(self._low, self._high)


@final
class MapCount(Condition):
    """The map count of the record's process comes to be so: it was not before the record."""

    needs_state = True

    def __init__(self, compare: Callable[[int, int], bool], value: int) -> None:
        self._compare = compare
        self._value = value

    def holds(self, moment: Moment) -> bool:
        return self._compare(moment.map_count, self._value) and not self._compare(moment.count_before, self._value)


@final
class Mismatches(Condition):
    """The model predicted another result than the record has."""

    needs_state = True

    def holds(self, moment: Moment) -> bool:
        return moment.mismatch is not None


@final
class KindIs(Condition):
    """A record of a type: exec, fork, exit, fault, ..."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def holds(self, moment: Moment) -> bool:
        return type(moment.record).__name__.lower() == self._kind


@final
class Holds(Condition):
    """An expression is true."""

    def __init__(self, expression: Expression) -> None:
        self._expression = expression
        self.needs_state = expression.needs_state

    def holds(self, moment: Moment) -> bool:
        return bool(self._expression.value(moment))


@final
class ValueChanges(Condition):
    """The value of an expression about one process is another than before."""

    needs_state = True

    def __init__(self, expression: Expression, pid: int) -> None:
        self._expression = expression
        self._pid = pid
        self._last: Any = None

    def _value(self, moment: Moment) -> Any:
        return self._expression.value(Moment(moment.tape, moment.record, moment.timeline, self._pid))

    def prime(self, moment: Moment) -> None:
        self._last = self._value(moment)

    def holds(self, moment: Moment) -> bool:
        before, self._last = self._last, self._value(moment)
        return bool(before != self._last)


@final
class Breakpoint:
    """A condition with its number, and what else has to be so for a stop."""

    def __init__(self, number: int, text: str, condition: Condition, pid: int = 0, guard: Condition | None = None):
        self.number = number
        self.text = text
        """As it was asked for; it may hold anything."""
        self.enabled = True
        self.stops = 0
        """How many times it has stopped a run."""
        self._condition = condition
        self._pid = pid
        self._guard = guard
        self.needs_state: bool = condition.needs_state or (guard is not None and guard.needs_state)

    def prime(self, moment: Moment) -> None:
        """Look at the moment before the first that is asked about."""
        self._condition.prime(moment)

    def hit(self, moment: Moment) -> bool:
        """Whether to stop at this moment.  Raises InputError where an expression has no value."""
        try:
            return self._hit(moment)
        except InputError as error:
            raise InputError(f"breakpoint {self.number}: {error}") from None

    def _hit(self, moment: Moment) -> bool:
        # The condition first: it may compare with the moment before.
        if not self._condition.holds(moment):
            return False
        if self._pid and getattr(moment.record, "pid", 0) != self._pid:
            return False
        return self._guard is None or self._guard.holds(moment)


# -- what a user types --------------------------------------------------------------------------------

FORMS: Final = (
    "call NAME[,NAME] [FLAG] [!FLAG]    a call; names and flags may be patterns: break call mmap,mremap MAP_FIXED",
    "errno NAME|any                     a call that failed: break errno ENOMEM",
    "address ADDR[-END|+BYTES]          a record that acts on it or changes it: break address 7f12a0000000",
    "maps > N   (>= < <= == !=)         the map count comes to be so: break maps > 60000",
    "mismatch                           the model predicted another result",
    "exec, fork, exit, fault, lost      a record of that type",
    "if EXPRESSION                      Python, true at a record: break if ret < 0 and length > 1<<20",
)
"""The forms of a breakpoint.  Each takes `pid P` and `if EXPRESSION` behind it."""

_KINDS: Final = ("exec", "fork", "exit", "fault", "lost")
_COMPARE: Final[dict[str, Callable[[int, int], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
}
_MAPS: Final = re.compile(r"\s*(>=|<=|==|!=|>|<|=)\s*([0-9][0-9_,]*)\s*")
_WORD: Final = re.compile(r"!?[A-Z][A-Z0-9_*?\[\]]*")
_IF: Final = re.compile(r"(?:^|(?<=\s))if(?=\s|$)")
_PID: Final = re.compile(r"\s*\bpid\s+([0-9]+)\s*$")


def parse_breakpoint(number: int, text: str) -> Breakpoint:
    """The breakpoint that a text asks for.  Raises InputError that says what it may be."""
    text = " ".join(text.split())
    head, *condition = _IF.split(text, maxsplit=1)
    guard = Holds(Expression(condition[0])) if condition else None
    pid = 0
    found = _PID.search(head)
    if found is not None:
        pid = int(found[1])
        head = head[: found.start()]
    word, _, rest = head.strip().partition(" ")
    if not word and guard is not None:
        return Breakpoint(number, text, guard, pid)
    if not word and pid:
        return Breakpoint(number, text, Always(), pid)
    return Breakpoint(number, text, _condition(word, rest.strip()), pid, guard)


def parse_watch(number: int, text: str, pid: int) -> Breakpoint:
    """A breakpoint on a change of the value of an expression about a process."""
    expression = Expression(text)
    if expression.of_record:
        raise InputError(
            f"a watch is about the state of a process, not about a record as {expression.of_record[0]} is; "
            "use break if EXPRESSION"
        )
    return Breakpoint(number, f"watch {expression.text} of process {pid}", ValueChanges(expression, pid))


def _condition(word: str, rest: str) -> Condition:
    if word == "call":
        return _call_condition(rest)
    if word == "errno":
        return _errno_condition(rest)
    if word in ("address", "addr"):
        return Touches(*parse_range(rest))
    if word == "maps":
        found = _MAPS.fullmatch(rest)
        if found is None:
            raise InputError(f'"{escape_text(rest, 60)}" is no comparison of the map count; break maps > 60000, say')
        return MapCount(_COMPARE[found[1]], int(found[2].replace(",", "")))
    if word == "mismatch" and not rest:
        return Mismatches()
    if word in _KINDS and not rest:
        return KindIs(word)
    if not word:
        raise InputError("break needs a condition; help break lists them")
    what = f"{word} {rest}".strip()
    raise InputError(f'"{escape_text(what, 60)}" is no condition to break on; help break lists them')


def _call_condition(text: str) -> Condition:
    words = text.replace("|", " ").replace("(", " ").replace(")", " ").split()
    if not words:
        raise InputError("break call needs the name of a call, such as mmap, or a pattern, such as *lock*")
    names = [name for name in words[0].split(",") if name]
    for name in names:
        if not any(fnmatchcase(each, name) for each in ARGUMENTS):
            raise InputError(f"{escape_text(name, 60)} is no call that a trace has; help break has examples")
    for word in words[1:]:
        if _WORD.fullmatch(word) is None:
            raise InputError(
                f'"{escape_text(word, 60)}" is no flag such as MAP_FIXED, nor !MAP_FIXED; a condition begins with if'
            )
    return CallIs(names, words[1:])


def _errno_condition(text: str) -> Condition:
    names = [name.upper() for name in text.replace("|", ",").replace(" ", ",").split(",") if name]
    if names in ([], ["ANY"]):
        return ErrnoIs(frozenset())
    for name in names:
        if name not in errno.errorcode.values():
            raise InputError(f"{escape_text(name, 60)} is no errno; write ENOMEM, say, or any")
    return ErrnoIs(frozenset(names))


def parse_range(text: str) -> tuple[int, int]:
    """One page of an address, or ADDR-END, or ADDR+BYTES.  Raises InputError."""
    low, minus, high = text.partition("-")
    start, plus, length = text.partition("+")
    if minus:
        found = _address(low), _address(high)
    elif plus:
        addr = _address(start)
        found = addr, addr + _number(length)
    else:
        addr = _address(text) & -PAGE_SIZE
        found = addr, addr + PAGE_SIZE
    if found[0] >= found[1]:
        raise InputError(f"the range {escape_text(text, 60)} is empty")
    return found


def _address(text: str) -> int:
    found = address_of(text)
    if found is None:
        raise InputError(f"{escape_text(text.strip(), 60) or 'nothing'} is no address: write it as 7f12a0000000, say")
    return found


def _number(text: str) -> int:
    try:
        return int(text.strip(), 0)
    except ValueError:
        raise InputError(f'"{escape_text(text, 60)}" is no number of bytes') from None
