"""Text from outside, made safe to show: a file name or a program's argument may hold anything."""

import unicodedata
from typing import Final

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, change colours, reorder what follows, or show nothing."""
USER_END: Final = 1 << 47
"""One past the last address that a program can have."""


def escape_text(text: str, limit: int = 0) -> str:
    """A text with everything that is not visible written as an escape: ``\\x1b``, ``\\u202e``, ``\\U000e0001``.

    So it can neither break the line, nor send commands to a terminal, nor reorder what is read.  With a limit, at most
    that many characters of the text are shown and an ellipsis says that there is more.
    """
    shown = text[:limit] if limit else text
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join([_escape(char) if unicodedata.category(char) in _HIDDEN else char for char in shown])
    return shown + "…" if limit and len(text) > limit else shown


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def address_of(text: str) -> int | None:
    """An address as people write it: hexadecimal as in /proc/PID/maps, with or without 0x.  None if it is none.

    Decimal digits that would lie beyond all memory in hexadecimal are taken as decimal.
    """
    text = text.strip()
    if not (text.isascii() and text.isalnum()):
        return None
    try:
        addr = int(text, 16)
        if addr >= USER_END and text.isdecimal():
            addr = int(text)
    except ValueError:
        return None
    return addr if addr < USER_END else None


def octal_text(text: str) -> str:
    """A text with every byte that is not printable, and the backslash, as a backslash and three octal digits.

    Bytes that are no UTF-8 are in the text as surrogates (errors="surrogateescape").
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join([char if char.isprintable() and char != "\\" else _octal(char) for char in text])


def _octal(char: str) -> str:
    return "".join([f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape")])


def count_text(count: int, what: str) -> str:
    """A number of things: 1 VMA, 2 VMAs."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
