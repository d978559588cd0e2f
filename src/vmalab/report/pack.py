"""Columns of numbers as one text that a page can hold: packed side by side, deflated, in base64."""

from __future__ import annotations

import base64
import sys
import zlib
from array import array
from collections.abc import Iterable
from typing import Final, final

_TYPES: Final = {"B": "u8", "H": "u16", "I": "u32", "d": "f64"}
_WIDTHS: Final = (("B", 0xFF), ("H", 0xFFFF), ("I", 0xFFFFFFFF))
_ALIGN: Final = 8
_LEVEL: Final = 6
"""Of zlib: beyond it the time doubles for some parts in a hundred."""


@final
class Columns:
    """Named columns: arrays of typecode I or d, or bytes.  A page reads them as views of one buffer.

    Whole numbers take no more bytes each than the largest of their column needs.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str, str, bytes, int, str]] = []
        self._columns: dict[str, array[int]] = {}

    def add(self, name: str, column: array[int] | array[float] | bytes, less: str = "") -> None:
        """Add a column.

        less, for a column of I, says that its numbers are near to those of another that was added before, or, if it is
        the name of the column itself, each to the one above: then the differences are kept, which take less room.
        """
        if isinstance(column, bytes):
            self._parts.append((name, "u8", column, len(column), ""))
            return
        if column.typecode == "I":
            self._columns[name] = whole = array("I", [int(value) for value in column])
            most = max(whole, default=0)
            typecode, mask = next((typecode, mask) for typecode, mask in _WIDTHS if most <= mask)
            if less:
                base = [0, *whole][: len(whole)] if less == name else self._columns[less]
                column = array(typecode, [(value - other) & mask for value, other in zip(whole, base, strict=True)])
            else:
                column = array(typecode, whole)
        if sys.byteorder == "big":
            column = column[:]
            column.byteswap()
        self._parts.append((name, _TYPES[column.typecode], column.tobytes(), len(column), less))

    def index(self) -> dict[str, tuple[str, int, int, str]]:
        """Of each column: the type, the place in the buffer in bytes, how many numbers it has, and what it is less."""
        places: dict[str, tuple[str, int, int, str]] = {}
        at = 0
        for name, kind, data, length, less in self._parts:
            places[name] = (kind, at, length, less)
            at += len(data) + -len(data) % _ALIGN
        return places

    def text(self) -> str:
        """All of it: raw deflate in base64, which holds no character that means anything in HTML."""
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        parts = [packer.compress(data + bytes(-len(data) % _ALIGN)) for _, _, data, _, _ in self._parts]
        parts.append(packer.flush())
        return base64.b64encode(b"".join(parts)).decode("ascii")


@final
class Places:
    """The addresses of a report, each once and in order, so that a column of them is one of small numbers."""

    def __init__(self, columns: Iterable[array[int]]) -> None:
        found: set[int] = set()
        for column in columns:
            found.update(column)
        self._sorted = sorted(found)
        self._number = {addr: number for number, addr in enumerate(self._sorted)}

    def addresses(self) -> array[float]:
        """The addresses: below 2**53, so that a double holds them exactly."""
        return array("d", self._sorted)

    def numbers(self, column: Iterable[int]) -> array[int]:
        """A column of addresses by their numbers."""
        return array("I", [self._number[addr] for addr in column])
