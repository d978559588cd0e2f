"""The arguments of a call as strace prints them.

Numbers and names of flags, strings with C escapes, ``{structures}``, ``[arrays]``, descriptors with their ``<paths>``,
``/* comments */`` beside raw numbers, ``...`` where something was left out, and ``=>`` before what a call changed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, final

from vmalab.text import octal_text
from vmalab.trace.constants import evaluate
from vmalab.trace.logs import Value

MAX_DEPTH: Final = 16
_FIELD: Final = re.compile(r"([A-Za-z_][\w.]*(?:\[\d+\])?)=(?!=|>)")
_PLAIN: Final = re.compile(r"([\w|-]{1,200})(?:, *|$)")
"""A number or names of flags, as most arguments are."""
_ESCAPE: Final = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|(.))")
_SIMPLE: Final = {"n": "\n", "t": "\t", "r": "\r", "v": "\v", "f": "\f", "a": "\a", "b": "\b", "e": "\x1b"}
_CLOSE: Final = {"{": "}", "[": "]"}


@lru_cache(maxsize=4096)
def _evaluate(text: str) -> int | None:
    """A log holds few different ones, but for addresses."""
    return evaluate(text)


class Unreadable(Exception):
    """The arguments are not as strace prints them."""


def read_arguments(text: str) -> list[Value]:
    """The arguments between the parentheses of a call.  Raises Unreadable."""
    scanner = _Scanner(text)
    found: list[Value] = []
    scanner.space()
    while scanner.at < len(text):
        plain = _PLAIN.match(text, scanner.at)
        if plain is not None:
            found.append(Value(number=_evaluate(plain[1])))
            scanner.at = plain.end()
            continue
        if scanner.skip("..."):
            scanner.space()
            scanner.skip(",")
            scanner.space()
            found.append(Value(cut=True))
            continue
        name = scanner.name()
        value = scanner.value(0)
        found.append(Value(items=[value], names=[name]) if name else value)
        scanner.after(value)
        if scanner.at < len(text) and not scanner.skip(","):
            raise Unreadable(f"at {text[scanner.at : scanner.at + 12]!r}")
        scanner.space()
    return found


def unescape(text: str) -> str:
    """A C string without its escapes, as a trace holds it."""
    if "\\" not in text:
        return octal_text(text)

    def plain(found: re.Match[str]) -> str:
        octal, hexadecimal, char = found.groups()
        if char is not None:
            return _SIMPLE.get(char, char)
        # A byte: latin-1 stands in until all bytes of the string are there.
        return chr(int(octal, 8) & 0xFF if octal else int(hexadecimal, 16))

    parts = text.encode("utf-8", "surrogateescape").decode("latin-1")
    raw = _ESCAPE.sub(plain, parts).encode("latin-1", "replace")
    return octal_text(raw.decode("utf-8", "surrogateescape"))


@final
class _Scanner:
    """Reads values from a text, from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def space(self) -> None:
        text = self.text
        while self.at < len(text) and text[self.at] == " ":
            self.at += 1

    def skip(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def name(self) -> str:
        """The name of a field, where one stands before the value."""
        found = _FIELD.match(self.text, self.at)
        if found is None:
            return ""
        self.at = found.end()
        return found[1]

    def after(self, value: Value) -> None:
        """What may follow a value: comments, the path of a descriptor behind one, and what the call changed it to."""
        while True:
            self.space()
            if self.text.startswith("/*", self.at):
                self._comment()
                if self.text.startswith("<", self.at):
                    self._path(value)
                elif self.skip("|"):
                    # -X verbose explains each part of a word of flags.
                    other = self._atom().number
                    value.number = None if other is None or value.number is None else value.number | other
            elif self.skip("=>"):
                self.space()
                self.name()
                self.value(0)
            else:
                return

    def value(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        char = self.text[self.at : self.at + 1]
        if char == '"':
            return self._string()
        if char == "~" and self.text[self.at + 1 : self.at + 2] == "[":
            self.at += 1
            value = self._items("[", depth)
            value.cut = True
            return value
        if char in ("{", "["):
            return self._items(char, depth)
        return self._atom()

    def _string(self) -> Value:
        text = self.text
        end = self.at + 1
        while end < len(text) and text[end] != '"':
            end += 2 if text[end] == "\\" else 1
        if end >= len(text):
            raise Unreadable("a string without an end")
        value = Value(text=unescape(text[self.at + 1 : end]))
        self.at = end + 1
        value.cut = self.skip("...")
        return value

    def _items(self, opening: str, depth: int) -> Value:
        self.at += 1
        close = _CLOSE[opening]
        items: list[Value] = []
        names: list[str] = []
        cut = False
        while True:
            self.space()
            if self.skip(close):
                return Value(items=items, names=names if any(names) else [], cut=cut)
            if self.at >= len(self.text):
                raise Unreadable(f"no {close}")
            if self.skip("..."):
                cut = True
            elif self.text.startswith("/*", self.at):
                self._comment()
            elif not self.skip(","):
                before = self.at
                name = self.name()
                items.append(self.value(depth + 1))
                names.append(name)
                self.after(items[-1])
                if self.at == before:
                    raise Unreadable(f"at {self.text[self.at : self.at + 12]!r}")

    def _comment(self) -> None:
        end = self.text.find("*/", self.at + 2)
        if end < 0:
            raise Unreadable("a comment without an end")
        self.at = end + 2

    def _atom(self) -> Value:
        """A number, names of flags, a descriptor with its path, or a macro with arguments."""
        text = self.text
        start = end = self.at
        while end < len(text) and text[end] not in ",)]} ":
            if text[end] == "(":
                end = self._closing(end)
            elif text[end] == "<" and text[end + 1 : end + 2] != "<" and end > start:
                break
            elif text[end] == "<":
                end += 1  # the first of <<
            end += 1
        if end == start:
            raise Unreadable("a value is missing")
        value = Value(number=evaluate(text[start:end]))
        self.at = end
        if text.startswith("<", end):
            self._path(value)
        return value

    def _path(self, value: Value) -> None:
        """The file that a descriptor stands for."""
        close = path_end(self.text, self.at)
        value.path = unescape(self.text[self.at + 1 : close])
        self.at = close + 1
        self.skip("(deleted)")

    def _closing(self, at: int) -> int:
        """Where the parenthesis that opens here closes."""
        depth = 0
        for end in range(at, len(self.text)):
            if self.text[end] == "(":
                depth += 1
            elif self.text[end] == ")":
                depth -= 1
                if depth == 0:
                    return end
        raise Unreadable("no )")


def path_end(text: str, at: int) -> int:
    """Where the path of a descriptor ends that opens here.  It may hold arrows, and with -yy the kind of a device."""
    depth = 0
    for end in range(at, len(text)):
        char = text[end]
        if char == "<":
            depth += 1
        elif char == ">" and text[end - 1] != "-":
            depth -= 1
            if depth == 0:
                return end
    raise Unreadable("no >")
