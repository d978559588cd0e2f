"""Names for the addresses of a user stack: from the symbol tables of ELF files, and the perf maps of JITs."""

import bisect
import struct
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from vmalab.live.demangle import demangle
from vmalab.live.procfs import printable

_DELETED: Final = " (deleted)"
_SYMBOL: Final = struct.Struct("<IBBHQQ")
"""Of a 64-bit file: name, type, visibility, section, value, size."""
_FUNCTION: Final = 2


class _Table:
    """The functions of one file, by where they lie in it."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.names: list[str] = []

    def add(self, functions: list[tuple[int, int, str]]) -> None:
        """Take functions (start, size, name) in any order."""
        for start, size, name in sorted(set(functions)):
            self.starts.append(start)
            self.ends.append(start + size)
            self.names.append(name)

    def find(self, address: int) -> str | None:
        """``name+0x12``, or None where no function is."""
        at = bisect.bisect_right(self.starts, address) - 1
        if at < 0 or (self.ends[at] > self.starts[at] and address >= self.ends[at]):
            return None
        return f"{demangle(self.names[at])}+{address - self.starts[at]:#x}"


def _read_elf(path: str) -> _Table:
    """The functions of an ELF file by their offset in it; none where it cannot be read or has no symbols."""
    table = _Table()
    try:
        with Path(path.removesuffix(_DELETED)).open("rb") as file:
            elf = ELFFile(file)
            loads = [(part["p_vaddr"], part["p_memsz"], part["p_offset"]) for part in elf.iter_segments("PT_LOAD")]
            found: list[tuple[int, int, str]] = []
            for section in elf.iter_sections():
                if isinstance(section, SymbolTableSection) and elf.elfclass == 64:
                    found += _functions(section.data(), section.stringtable.data(), loads)
            table.add(found)
    except (OSError, ELFError, LookupError, TypeError, ValueError, MemoryError):
        return _Table()
    return table


def _functions(symbols: bytes, names: bytes, loads: list[tuple[int, int, int]]) -> list[tuple[int, int, str]]:
    """The functions of a symbol table: offset in the file, size, name.

    The library would make an object of each symbol, which takes seconds for a file with a hundred thousand of them.
    """
    found: list[tuple[int, int, str]] = []
    for name, info, _, _, value, size in _SYMBOL.iter_unpack(symbols[: len(symbols) // _SYMBOL.size * _SYMBOL.size]):
        if info & 15 != _FUNCTION or not value:
            continue
        for start, length, offset in loads:
            if start <= value < start + length:
                text = names[name : names.index(0, name)]
                found.append((value - start + offset, size, printable(text)))
    return found


def _read_perf_map(pid: int) -> _Table:
    """The functions that a JIT has told perf of, by address."""
    table = _Table()
    try:
        lines = Path(f"/tmp/perf-{pid}.map").read_text("utf-8", "replace").splitlines()
    except OSError:
        return table
    found = []
    for line in lines:
        words = line.split(" ", 2)
        try:
            found.append((int(words[0], 16), int(words[1], 16), printable(words[2].encode())))
        except (ValueError, IndexError):
            continue  # a line that the JIT has not finished
    table.add(found)
    return table


class Symbols:
    """What is mapped where in each process, as far as code of files goes, and the names in it."""

    def __init__(self) -> None:
        self._maps: dict[int, dict[int, tuple[int, int, str]]] = {}
        self._tables: dict[str, _Table] = {}
        self._jits: dict[int, tuple[int, _Table]] = {}

    def map(self, pid: int, start: int, end: int, offset: int, path: str) -> None:
        """Code of a file is mapped at [start, end), from an offset in the file."""
        self._maps.setdefault(pid, {})[start] = (end, offset, path)

    def fork(self, parent: int, child: int) -> None:
        """A child has what its parent has."""
        self._maps[child] = dict(self._maps.get(parent, {}))

    def clear(self, pid: int) -> None:
        """The process has a new address space."""
        self._maps.pop(pid, None)

    def frame(self, pid: int, address: int) -> str:
        """An address as a frame of a Stack record."""
        place = self.place(pid, address)
        if place is None:
            return self._jit(pid).find(address) or hex(address)
        path, at = place
        table = self._tables.get(path)
        if table is None:
            table = self._tables[path] = _read_elf(path)
        return f"{table.find(at) or hex(at)} ({path})"

    def place(self, pid: int, address: int) -> tuple[str, int] | None:
        """The file whose code is mapped at an address, and the offset in it."""
        for start, (end, offset, path) in self._maps.get(pid, {}).items():
            if start <= address < end:
                return path, address - start + offset
        return None

    def _jit(self, pid: int) -> _Table:
        try:
            size = Path(f"/tmp/perf-{pid}.map").stat().st_size
        except OSError:
            size = 0
        known = self._jits.get(pid)
        if known is None or known[0] != size:
            known = self._jits[pid] = (size, _read_perf_map(pid))
        return known[1]
