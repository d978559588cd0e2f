"""Where memory of a recorded run lies in a changed run: from recorded addresses to those of the other."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, final

_WORD: Final = (1 << 64) - 1


@final
class Piece:
    """A part of a recorded range that lies in one place: moved by so many bytes, or absent (None)."""

    __slots__ = ("end", "shift", "start")

    def __init__(self, start: int, end: int, shift: int | None) -> None:
        self.start: int = start
        self.end: int = end
        self.shift: int | None = shift

    def place(self, addr: int) -> int | None:
        """Where an address of the piece lies in the changed run; None if it is not there."""
        return None if self.shift is None else (addr + self.shift) & _WORD

    def __repr__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x}) {'absent' if self.shift is None else f'{self.shift:+#x}'}"


@final
class Moves:
    """The recorded ranges that lie elsewhere, or nowhere, in the changed run; all others lie where they did."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._starts: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def copy(self) -> Moves:
        """The same, to go another way: a fork."""
        other = Moves()
        other._pieces = [Piece(piece.start, piece.end, piece.shift) for piece in self._pieces]
        other._starts = list(self._starts)
        return other

    def set(self, start: int, end: int, shift: int | None) -> None:
        """[start, end) lies shift bytes further; None: it is not there."""
        if start >= end or (shift == 0 and not self._pieces):
            return
        first = max(0, bisect_right(self._starts, start) - 1)
        last = bisect_right(self._starts, end)
        kept: list[Piece] = []
        for piece in self._pieces[first:last]:
            if piece.start < start:
                kept.append(Piece(piece.start, min(piece.end, start), piece.shift))
            if piece.end > end:
                kept.append(Piece(max(piece.start, end), piece.end, piece.shift))
        if shift != 0:
            kept.append(Piece(start, end, shift))
        kept.sort(key=lambda piece: piece.start)
        self._pieces[first:last] = kept
        self._starts[first:last] = [piece.start for piece in kept]

    def pieces(self, start: int, end: int) -> list[Piece]:
        """[start, end) cut where the place changes, in order; neighbours of one shift are one piece."""
        if start >= end or not self._pieces:
            return [Piece(start, end, 0)]
        found: list[Piece] = []
        at = start
        for piece in self._pieces[max(0, bisect_right(self._starts, start) - 1) :]:
            if piece.start >= end:
                break
            if piece.end <= at:
                continue
            if piece.start > at:
                _append(found, Piece(at, piece.start, 0))
                at = piece.start
            upto = min(piece.end, end)
            _append(found, Piece(at, upto, piece.shift))
            at = upto
        if at < end:
            _append(found, Piece(at, end, 0))
        return found

    def address(self, addr: int) -> int | None:
        """Where one address lies; None if its memory is not there."""
        if not self._pieces:
            return addr
        return self.pieces(addr, addr + 1)[0].place(addr)

    def hint(self, addr: int) -> int:
        """Where a hint points that may lie just behind the memory that it is about."""
        if not self._pieces:
            return addr
        for at in (addr, addr - 1):
            piece = self.pieces(at, at + 1)[0]
            there = piece.place(addr)
            if piece.shift and there is not None:
                return there
        return addr


def _append(found: list[Piece], piece: Piece) -> None:
    if found and found[-1].shift == piece.shift:
        found[-1] = Piece(found[-1].start, piece.end, piece.shift)
    else:
        found.append(piece)
