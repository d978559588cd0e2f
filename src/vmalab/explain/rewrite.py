"""Rules that replace calls of a trace by others: ``mprotect(PROT_NONE) -> madvise(GUARD_INSTALL)``.

docs/what-if.md describes the language.  It is parsed strictly: what is not understood is an error that says what
would be.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Final, final

from vmalab.errors import InputError
from vmalab.flags import MAP_FIXED, MAP_TYPE
from vmalab.text import escape_text
from vmalab.trace.show import MAP_TYPES, argument_kinds, flag_names

ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "mmap": ("addr", "length", "prot", "flags", "fd", "offset"),
    "munmap": ("addr", "length"),
    "mprotect": ("addr", "length", "prot"),
    "pkey_mprotect": ("addr", "length", "prot", "pkey"),
    "brk": ("addr",),
    "mremap": ("addr", "length", "new_length", "flags", "new_addr"),
    "madvise": ("addr", "length", "advice"),
    "mlock": ("addr", "length"),
    "mlock2": ("addr", "length", "flags"),
    "munlock": ("addr", "length"),
    "mlockall": ("flags",),
    "munlockall": (),
    "mseal": ("addr", "length", "flags"),
    "mbind": ("addr", "length", "mode", "nodemask", "maxnode", "flags"),
    "set_mempolicy_home_node": ("addr", "length", "node", "flags"),
    "msync": ("addr", "length", "flags"),
    "mincore": ("addr", "length", "vec"),
    "remap_file_pages": ("addr", "length", "prot", "pgoff", "flags"),
    "shmat": ("shmid", "addr", "flags"),
    "shmdt": ("addr",),
    "prctl": ("option", "arg2", "arg3", "arg4", "arg5"),
}
"""The arguments of the calls that a rule can name."""

GIVES_ADDRESS: Final = frozenset({"mmap", "mremap", "brk", "shmat"})
"""Calls whose result is an address that the program goes on with."""

_DEFAULTS: Final[dict[str, dict[str, int]]] = {
    "mmap": {"fd": 0xFFFFFFFFFFFFFFFF, "offset": 0},
    "mlock2": {"flags": 0},
    "mseal": {"flags": 0},
}
"""Arguments that a replacement may leave out, though the call replaced has none of that name."""

_OPERATORS: Final[dict[str, Callable[[int, int], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_CHOICES: Final = ("PROT_", "MADV_", "PR_")
"""Prefixes of words that a bare name gives whole; of the others a name is one flag among several."""

_CALL: Final = re.compile(r"\s*([a-z_0-9]+)\s*(?:\(([^()]*)\))?\s*\Z")
_NAMED: Final = re.compile(r"([a-z_0-9]+)\s*(<=|>=|!=|=|<|>)\s*(\S.*)\Z")
_NUMBER: Final = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgGtT]?)\Z")
_WORD: Final = (1 << 64) - 1


@final
class Rule:
    """One rule: which calls it is for, and what is made instead of each; nothing, if it has no replacement."""

    def __init__(self, text: str, name: str, tests: list[_Test], replacement: _Replacement | None) -> None:
        self.text: str = text
        self.name: str = name
        self._tests = tests
        self._replacement = replacement
        self.used: int = 0
        """How many calls it has replaced."""

    def drops(self) -> bool:
        """Whether nothing is made instead of a call."""
        return self._replacement is None

    def fits(self, name: str, args: tuple[int, ...]) -> bool:
        """Whether the rule is for this call."""
        return name == self.name and all([test.holds(args) for test in self._tests])

    def apply(self, args: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | None:
        """The call to make instead of one that fits; None for none."""
        return self._replacement.make(args) if self._replacement is not None else None


@final
class _Test:
    """One condition on an argument."""

    def __init__(self, place: int, mask: int, compare: Callable[[int, int], bool], value: int) -> None:
        self._place = place
        self._mask = mask
        self._compare = compare
        self._value = value

    def holds(self, args: tuple[int, ...]) -> bool:
        return self._place < len(args) and self._compare(args[self._place] & self._mask, self._value)


@final
class _Replacement:
    """The call to make instead: each argument is one of the call replaced, or a number; with flags set and cleared."""

    def __init__(self, name: str, sources: list[tuple[int, int]], changes: list[tuple[int, int, int]]) -> None:
        self.name = name
        self._sources = sources
        self._changes = changes

    def make(self, args: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        made = [args[place] if place >= 0 else value for place, value in self._sources]
        for place, keep, add in self._changes:
            made[place] = made[place] & keep | add
        return self.name, tuple(made)


def parse_rule(text: str) -> Rule:
    """The rule that a text like ``mprotect(PROT_NONE, length=4096) -> madvise(GUARD_INSTALL)`` stands for.

    Raises InputError for anything else.
    """
    where = f"rule {escape_text(text, 100)!r}"
    pattern, arrow, wanted = text.partition("->")
    if not arrow or "->" in wanted:
        raise InputError(f"{where}: a rule is CALL(CONDITIONS) -> CALL(CHANGES), or CALL(CONDITIONS) -> nothing")
    name, terms = _parse_call(pattern, where)
    tests = [test for term in terms for test in _parse_test(name, term, where)]
    if wanted.strip() == "nothing":
        if name in GIVES_ADDRESS:
            raise InputError(
                f"{where}: the program goes on with the address that {name} gives, so it cannot be dropped"
            )
        return Rule(text.strip(), name, tests, None)
    return Rule(text.strip(), name, tests, _parse_replacement(name, wanted, where))


def parse_drop(text: str) -> Rule:
    """The rule that ``--drop CALL`` or ``--drop CALL:CONDITIONS`` stands for.  Raises InputError."""
    name, _, terms = text.partition(":")
    return parse_rule(f"{name}({terms}) -> nothing" if terms else f"{name} -> nothing")


def _parse_call(text: str, where: str) -> tuple[str, list[str]]:
    found = _CALL.match(text)
    if found is None:
        raise InputError(f"{where}: {escape_text(text.strip(), 60)!r} is no call: write name(term, term, ...)")
    name, inside = found[1], found[2] or ""
    if name not in ARGUMENTS:
        raise InputError(f"{where}: there is no rule for {escape_text(name, 40)}; there is for {', '.join(ARGUMENTS)}")
    terms = [term.strip() for term in inside.split(",")] if inside.strip() else []
    if "" in terms:
        raise InputError(f"{where}: an empty term between two commas")
    return name, terms


def _parse_test(name: str, term: str, where: str) -> list[_Test]:
    """The conditions that a term of a pattern stands for."""
    named = _NAMED.match(term)
    if named is not None:
        place = _place(name, named[1], where)
        return [_Test(place, _mask(name, place), _OPERATORS[named[2]], _value(name, place, named[3], where))]
    absent = term.startswith("!")
    tests: list[_Test] = []
    parts = [part.strip() for part in term.lstrip("!").split("|")]
    place, prefix, _ = _flag(name, parts[0], where)
    values = [_flag_at(name, place, part, where) for part in parts]
    if prefix in _CHOICES:
        whole = 0
        for value in values:
            whole |= value
        return [_Test(place, _mask(name, place), operator.ne if absent else operator.eq, whole)]
    if absent and len(parts) > 1:
        raise InputError(f"{where}: write !{parts[0]}, !{parts[1]} for flags that must be absent")
    for part, value in zip(parts, values, strict=True):
        mask = MAP_TYPE if prefix == "MAP_" and _is_type(part) else value
        tests.append(_Test(place, mask, operator.ne if absent else operator.eq, value))
    return tests


def _parse_replacement(old: str, text: str, where: str) -> _Replacement:
    new, terms = _parse_call(text, where)
    if (old in GIVES_ADDRESS or new in GIVES_ADDRESS - {"mmap"}) and old != new:
        giver = old if old in GIVES_ADDRESS else new
        raise InputError(f"{where}: {giver} gives an address: it can be replaced by {giver} only, with other arguments")
    given: dict[int, int] = {}
    changes: list[tuple[int, int, int]] = []
    for term in terms:
        named = _NAMED.match(term)
        if named is not None:
            if named[2] != "=":
                raise InputError(f"{where}: {escape_text(term, 40)!r}: a replacement sets an argument with =")
            place = _place(new, named[1], where)
            given[place] = _value(new, place, named[3], where)
            continue
        sign = term[0] if term[0] in "+-" else ""
        parts = [part.strip() for part in term.lstrip("+-").split("|")]
        place, prefix, _ = _flag(new, parts[0], where)
        values = [_flag_at(new, place, part, where) for part in parts]
        whole = 0
        for value in values:
            whole |= value
        if sign == "" and prefix not in _CHOICES:
            argument = ARGUMENTS[new][place]
            raise InputError(
                f"{where}: write +{parts[0]} or -{parts[0]} to set or clear a flag, or {argument}=... for all"
            )
        if sign == "":
            given[place] = whole
        else:
            keep = _WORD & ~(MAP_TYPE if prefix == "MAP_" and any(map(_is_type, parts)) else whole)
            changes.append((place, keep, whole if sign == "+" else 0))
    replacement = _Replacement(new, _sources(old, new, given, where), changes)
    _check_fixed(old, new, replacement, where)
    return replacement


def _sources(old: str, new: str, given: dict[int, int], where: str) -> list[tuple[int, int]]:
    """For each argument of the new call, the place of the old one that it is, or -1 and its value."""
    sources: list[tuple[int, int]] = []
    for place, argument in enumerate(ARGUMENTS[new]):
        if place in given:
            sources.append((-1, given[place]))
        elif argument in ARGUMENTS[old] and (old == new or argument != "flags"):
            sources.append((ARGUMENTS[old].index(argument), 0))
        elif argument in _DEFAULTS.get(new, {}):
            sources.append((-1, _DEFAULTS[new][argument]))
        else:
            raise InputError(f"{where}: {old} has no {argument} for {new} to take over: give {argument}=...")
    return sources


def _check_fixed(old: str, new: str, replacement: _Replacement, where: str) -> None:
    """mmap in place of a call that gives no address has to map where that call was."""
    if new != "mmap" or old == "mmap":
        return
    _, made = replacement.make((0,) * len(ARGUMENTS[old]))
    if not made[3] & MAP_FIXED:
        raise InputError(f"{where}: mmap in place of {old} needs flags=MAP_FIXED|...: nobody takes its address")


def _place(name: str, argument: str, where: str) -> int:
    if argument not in ARGUMENTS[name]:
        listed = ", ".join(ARGUMENTS[name]) or "none"
        raise InputError(f"{where}: {name} has no argument {escape_text(argument, 40)}; it has: {listed}")
    return ARGUMENTS[name].index(argument)


def _prefix(name: str, place: int) -> str:
    kinds = argument_kinds(name)
    return kinds[place] if place < len(kinds) and kinds[place].endswith("_") else ""


def _mask(name: str, place: int) -> int:
    """Words of flags and advices are ints: the upper half of the register says nothing."""
    return 0xFFFFFFFF if _prefix(name, place) == "MADV_" else _WORD


def _is_type(name: str) -> bool:
    return name.removeprefix("MAP_") in [kind.removeprefix("MAP_") for kind in MAP_TYPES.values()]


def _flags_of(prefix: str) -> dict[str, int]:
    found = {name: value for value, name in flag_names(prefix)}
    if prefix == "MAP_":
        found.update({name: value for value, name in MAP_TYPES.items()})
    return found


def _flag(name: str, text: str, where: str) -> tuple[int, str, int]:
    """The argument that a name is a flag of, its prefix and its value."""
    for place in range(len(ARGUMENTS[name])):
        prefix = _prefix(name, place)
        if prefix:
            value = _flags_of(prefix).get(prefix + text.removeprefix(prefix))
            if value is not None:
                return place, prefix, value
    raise InputError(
        f"{where}: {escape_text(text, 40)!r} is no flag of {name}; a number needs the name of its argument, "
        f"such as length=4096"
    )


def _flag_at(name: str, place: int, text: str, where: str) -> int:
    prefix = _prefix(name, place)
    value = _flags_of(prefix).get(prefix + text.removeprefix(prefix)) if prefix else None
    if value is None:
        raise InputError(f"{where}: {escape_text(text, 40)!r} is no value of {ARGUMENTS[name][place]} of {name}")
    return value


def _value(name: str, place: int, text: str, where: str) -> int:
    """A number with K, M, G or T, or flags by name."""
    number = _NUMBER.match(text)
    if number is not None:
        value = int(number[1], 0 if number[1][:2] in ("0x", "0X") else 10) << _UNITS[number[2].lower()]
        if value > _WORD:
            raise InputError(f"{where}: {escape_text(text, 40)} is more than 64 bits")
        return value
    if text == "-1":
        return _WORD
    whole = 0
    for part in text.split("|"):
        whole |= _flag_at(name, place, part.strip(), where)
    return whole
