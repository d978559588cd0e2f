"""Unwinding: of a copy of a stack, by files that are as they should be, and by files that are not."""

import random
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tests.programs import compile_program
from vmalab.live.symbols import Symbols
from vmalab.live.unwind import DEPTH, Unwinder, _File

PROGRAMS = Path(__file__).resolve().parent / "programs"
CODE = 0x400000
STACK = 0x7FFF0000


def event(ip: int, bp: int, memory: bytes) -> bytes:
    """The registers, then the stack."""
    return struct.pack("<8Q", ip, STACK, bp, 0, 0, 0, 0, 0) + memory


def test_without_a_file_frame_pointers_are_followed() -> None:
    memory = struct.pack("<6Q", 1, 2, STACK + 32, 0x1111, STACK + 64, 0x2222)
    assert Unwinder(Symbols()).addresses(7, event(0x999, STACK + 16, memory)) == (0x999, 0x1111, 0x2222)


@pytest.mark.parametrize("bp", [0, STACK, STACK + 8, STACK - 16, 1 << 63, (1 << 64) - 1])
def test_a_stack_that_leads_nowhere_ends(bp: int) -> None:
    found = Unwinder(Symbols()).addresses(7, event(0x999, bp, struct.pack("<4Q", STACK, STACK, STACK, STACK)))
    assert 1 <= len(found) <= DEPTH


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return Path(compile_program(PROGRAMS / "deep.c", tmp_path, "-O2", "-fomit-frame-pointer"))


def offset_of(path: Path, name: str) -> int:
    with path.open("rb") as file:
        elf = ELFFile(file)
        section = elf.get_section_by_name(".symtab")
        assert isinstance(section, SymbolTableSection)
        symbol = (section.get_symbol_by_name(name) or [])[0]
        (offset,) = [
            symbol["st_value"] - part["p_vaddr"] + part["p_offset"]
            for part in elf.iter_segments("PT_LOAD")
            if part["p_vaddr"] <= symbol["st_value"] < part["p_vaddr"] + part["p_filesz"]
        ]
        return int(offset)


def test_at_its_first_instruction_a_function_returns_to_the_word_on_the_stack(program: Path) -> None:
    symbols = Symbols()
    symbols.map(7, CODE, CODE + (1 << 20), 0, str(program))
    start = CODE + offset_of(program, "inner")
    found = Unwinder(symbols).addresses(7, event(start, 0, struct.pack("<2Q", 0x1111, 0)))
    assert found == (start, 0x1111)
    assert _File(str(program)).rule(start - CODE, within=False) == (7, 8, {16: -8})


def test_of_other_files_nothing_is_told(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    for path in (text, tmp_path, tmp_path / "none"):
        assert _File(str(path)).rule(0, within=False) is None


def test_damaged_files_are_survived(program: Path, tmp_path: Path) -> None:
    whole = program.read_bytes()
    places = [offset_of(program, name) + 4 for name in ("inner", "middle", "main", "_start")]
    damaged = tmp_path / "damaged"
    source = random.Random(1)
    known = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(source.choice((1, 5, 50, 2000))):
            data[source.randrange(len(data))] = source.randrange(256)
        damaged.write_bytes(data[: source.choice((len(data), source.randrange(len(data))))])
        symbols = Symbols()
        symbols.map(7, 0, len(data), 0, str(damaged))
        assert all(symbols.frame(7, place) for place in places)
        file = _File(str(damaged))
        known += sum(file.rule(place, within=False) is not None for place in places)
    assert known > 0
