"""The text of /proc/PID/maps and smaps, read and written: what is read is written again byte for byte."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from vmalab.errors import InputError

NAME_COLUMN: Final = 73
"""Where a name begins on a 64-bit kernel."""
_HEADER: Final = re.compile(
    rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][ps]) ([0-9a-f]{1,16}) ([0-9a-f]{2,8}:[0-9a-f]{2,8}) (\d{1,20})"
    rb"( *)(.*)"
)
_FIELD: Final = re.compile(rb"([A-Z]\w*):(.*)")
_DIGITS: Final = (8, 8, 8, 1)


class Mapping(msgspec.Struct):
    """One VMA as the kernel prints it: a line, and in smaps the lines of its fields."""

    start: int
    end: int
    mode: str
    """Four letters, for instance ``rw-p``."""
    offset: int = 0
    """In bytes."""
    device: str = "00:00"
    """Major and minor number in hexadecimal."""
    inode: int = 0
    name: bytes = b""
    """A path, a name in brackets, or nothing.  The kernel writes a line feed in it as ``\\012`` and leaves all else."""
    lines: list[bytes] = []
    """The lines of its fields."""
    digits: tuple[int, int, int, int] = _DIGITS
    """How many digits start, end, offset and inode have at least."""
    spaces: int = -1
    """How many stand before the name; -1: as many as a 64-bit kernel writes."""

    def field(self, key: bytes) -> bytes | None:
        """What smaps says of it, for instance of ``VmFlags``."""
        for line in self.lines:
            if line.startswith(key) and line[len(key) : len(key) + 1] == b":":
                return line[len(key) + 1 :]
        return None

    def header(self) -> bytes:
        """Its line in maps."""
        first, last, offset, inode = self.digits
        head = (
            f"{self.start:0{first}x}-{self.end:0{last}x} {self.mode} {self.offset:0{offset}x} {self.device} "
            f"{self.inode:0{inode}d}"
        ).encode("ascii")
        spaces = self.spaces
        if spaces < 0:
            spaces = max(NAME_COLUMN - len(head), 1) if self.name else 1
        return head + b" " * spaces + self.name


class MapsText(msgspec.Struct):
    """A maps or smaps file."""

    mappings: list[Mapping]
    before: list[bytes] = []
    """Empty lines before the first."""
    ended: bool = True
    """Whether the last line has its end."""

    def render(self) -> bytes:
        """The text."""
        lines = list(self.before)
        for mapping in self.mappings:
            lines.append(mapping.header())
            lines += mapping.lines
        text = b"\n".join(lines)
        return text + b"\n" if self.ended else text

    def has_fields(self) -> bool:
        """Whether it is smaps."""
        return any(mapping.field(b"VmFlags") is not None for mapping in self.mappings)


def parse(text: bytes, name: str) -> MapsText:
    """Read a maps or smaps file.  Raises InputError where it is not as the kernel writes it."""
    lines = text.split(b"\n")
    ended = lines[-1] == b"" and len(lines) > 1
    if ended:
        lines.pop()
    found = MapsText([], ended=ended)
    current = found.before
    for number, line in enumerate(lines, 1):
        if not line:
            current.append(line)
        elif _FIELD.fullmatch(line):
            if not found.mappings:
                raise bad_line(name, number, "a field stands before the first VMA")
            current.append(line)
        else:
            mapping = _mapping(line)
            if mapping is None:
                raise bad_line(name, number, "not a VMA as the kernel prints one")
            if mapping.start >= mapping.end:
                raise bad_line(name, number, "not a range of addresses")
            found.mappings.append(mapping)
            current = mapping.lines
    return found


def _mapping(line: bytes) -> Mapping | None:
    shown = _HEADER.fullmatch(line)
    if shown is None:
        return None
    start, end, mode, offset, device, inode, spaces, name = shown.groups()
    if name and not spaces:
        return None
    return Mapping(
        int(start, 16),
        int(end, 16),
        mode.decode("ascii"),
        int(offset, 16),
        device.decode("ascii"),
        int(inode),
        name,
        [],
        (len(start), len(end), len(offset), len(inode)),
        len(spaces),
    )


def bad_line(name: str, number: int, problem: str) -> InputError:
    """The error for a line of a file."""
    return InputError(f"{name}: line {number}: {problem}")
