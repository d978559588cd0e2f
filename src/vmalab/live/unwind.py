"""Unwinding a copy of a user stack by the .eh_frame of the ELF files, which code without frame pointers has too.

The table of .eh_frame_hdr finds the entry of an address; pyelftools decodes it.  Where no file tells, as in code that a
JIT made, the frame pointer is followed.
"""

import bisect
import io
import struct
from pathlib import Path
from typing import BinaryIO, Final

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.callframe import FDE, CallFrameInfo, CFARule, RegisterRule
from elftools.dwarf.structs import DWARFStructs
from elftools.elf.elffile import ELFFile

from vmalab.live.symbols import Symbols

DEPTH: Final = 127
"""The most frames of a stack, as the kernel has it too."""
_RBP, _RSP, _RIP = 6, 7, 16
_REGISTERS: Final = (_RIP, _RSP, _RBP, 3, 12, 13, 14, 15)
"""Those that an event has, by their numbers in DWARF: what a function saves, and where it is."""
_HEADER: Final = struct.Struct("<8Q")
_PLAIN_TABLE: Final = (1, 0x1B, 0x03, 0x3B)
"""The .eh_frame_hdr that all linkers write: version, and the encodings of a pointer, a count and a table."""
_UNREADABLE: Final = (
    OSError,
    ELFError,
    DWARFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    struct.error,
)
"""What comes of a file that is no ELF file, or of a damaged one."""
_WORD: Final = (1 << 64) - 1

Rule = tuple[int, int, dict[int, int | None]]
"""Where the caller's registers are: the CFA as a register plus an offset; those saved, by their distance from the CFA.
None instead of a distance: the register is not to be had."""


class _File:
    """The unwinding rules of one ELF file, by the address that it was linked for."""

    def __init__(self, path: str) -> None:
        self._rules: dict[int, Rule | None] = {}
        self._loads: list[tuple[int, int, int]] = []
        self._entries: list[tuple[int, int]] = []
        self._frames = b""
        self._frames_at = 0
        try:
            with Path(path).open("rb") as file:
                elf = ELFFile(file)
                self._loads = [
                    (part["p_vaddr"], part["p_offset"], part["p_filesz"]) for part in elf.iter_segments("PT_LOAD")
                ]
                for part in elf.iter_segments("PT_GNU_EH_FRAME"):
                    self._read(file, part["p_vaddr"], part["p_offset"])
        except _UNREADABLE:
            self._entries = []

    def _read(self, file: BinaryIO, base: int, offset: int) -> None:
        """Read the table, and the entries that it leads to: from their beginning to the end of their segment."""
        most = file.seek(0, io.SEEK_END)
        file.seek(offset)
        head = file.read(12)
        if tuple(head[:4]) != _PLAIN_TABLE:
            return
        pointer, count = struct.unpack_from("<iI", head, 4)
        self._frames_at = base + 4 + pointer
        table = struct.iter_unpack("<ii", file.read(min(8 * count, most) & ~7))
        self._entries = sorted([(base + start, base + entry) for start, entry in table])
        for vaddr, start, size in self._loads:
            if vaddr <= self._frames_at < vaddr + size:
                file.seek(start + self._frames_at - vaddr)
                self._frames = file.read(min(vaddr + size - self._frames_at, most))

    def rule(self, offset: int, *, within: bool) -> Rule | None:
        """The rule for an offset in the file; within: the place is that of a call's return, not of an instruction."""
        found = [offset - start + vaddr for vaddr, start, size in self._loads if start <= offset < start + size]
        if not found:
            return None
        address = found[0] - within
        if address not in self._rules:
            try:
                self._rules[address] = self._find(address)
            except _UNREADABLE:
                self._rules[address] = None
        return self._rules[address]

    def _find(self, address: int) -> Rule | None:
        number = bisect.bisect_right(self._entries, address, key=lambda entry: entry[0])
        return self._decode(self._entries[number - 1][1], address) if number else None

    def _decode(self, entry: int, address: int) -> Rule | None:
        """What the entry (FDE) says of an address.  It is given to pyelftools together with what it refers to (CIE)."""
        at = entry - self._frames_at
        own = self._part(at)
        common = self._part(at + 4 - int.from_bytes(own[4:8], "little"))
        moved = own[:4] + (len(common) + 4).to_bytes(4, "little") + own[8:]
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        both, size = io.BytesIO(common + moved), len(common) + len(moved)
        info = CallFrameInfo(both, size, entry - len(common), structs, for_eh_frame=True)
        _, found = info.get_entries()
        if not isinstance(found, FDE):
            return None
        start = found["initial_location"]
        rows = [each for each in found.get_decoded().table if each["pc"] <= address]
        if not start <= address < start + found["address_range"] or not rows:
            return None
        row = rows[-1]
        cfa = row["cfa"]
        if not isinstance(cfa, CFARule) or cfa.reg is None or cfa.offset is None:
            return None  # an expression, as in the tables of calls into other libraries (PLT)
        saved = {
            int(number): rule.arg if rule.type == RegisterRule.OFFSET and isinstance(rule.arg, int) else None
            for number, rule in row.items()
            if isinstance(rule, RegisterRule) and rule.type != RegisterRule.SAME_VALUE
        }
        return cfa.reg, cfa.offset, saved

    def _part(self, at: int) -> bytes:
        if not 0 <= at < len(self._frames) - 8:
            raise ValueError("the entry does not lie in .eh_frame")
        return self._frames[at : at + 4 + int.from_bytes(self._frames[at : at + 4], "little")]


class Unwinder:
    """Makes stacks of copies of the memory that they are in."""

    def __init__(self, symbols: Symbols) -> None:
        self._symbols = symbols
        self._files: dict[str, _File] = {}

    def addresses(self, pid: int, body: bytes) -> tuple[int, ...]:
        """The frames, innermost first, of an event: registers, then what lies from the stack pointer upwards."""
        registers: dict[int, int | None] = dict(zip(_REGISTERS, _HEADER.unpack_from(body), strict=True))
        bottom = registers[_RSP] or 0
        memory = body[_HEADER.size :]

        def word(address: int) -> int | None:
            at = address - bottom
            return int.from_bytes(memory[at : at + 8], "little") if 0 <= at <= len(memory) - 8 else None

        found: list[int] = []
        while len(found) < DEPTH:
            here, stack = registers[_RIP], registers[_RSP]
            if not here or stack is None:
                break
            found.append(here)
            rule = self._rule(pid, here, within=len(found) > 1)
            if rule is None:
                break
            number, offset, saved = rule
            base = registers.get(number)
            if base is None:
                break
            cfa = base + offset & _WORD
            for register, distance in saved.items():
                registers[register] = None if distance is None else word(cfa + distance & _WORD)
            registers[_RSP] = cfa
            if cfa <= stack:
                break
        return tuple(found)

    def _rule(self, pid: int, address: int, *, within: bool) -> Rule | None:
        place = self._symbols.place(pid, address)
        if place is None:  # as a function that keeps a frame pointer
            return _RBP, 16, {_RBP: -16, _RIP: -8}
        path, offset = place
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _File(path)
        return file.rule(offset, within=within)
