"""A BPF iterator over the VMAs of one process, loaded without a compiler or a library.

The program is a few dozen instructions, put together here with the offsets that this kernel's own BTF tells.  It shows
what /proc does not: raw flags, the anon_vma, the length of its chain, whether there is a policy or a userfaultfd.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from pathlib import Path
from typing import Final

BTF: Final = Path("/sys/kernel/btf/vmlinux")
RECORD: Final = 64
"""Bytes of a record: eight numbers (start, end, flags, page offset, inode, anon_vma, chain length, extra)."""
EXTRA_POLICY: Final = 1
EXTRA_USERFAULTFD: Final = 2
CHAIN_MOST: Final = 24
"""Longer chains than this are cut."""
_CALL_BPF: Final = 321
_PROG_LOAD, _INFO, _LINK_CREATE = 5, 15, 28
_TRACING, _TRACE_ITER = 26, 28
_SEQ_WRITE: Final = 127


class BpfError(Exception):
    """Why the iterator cannot be had, in one line."""


class _Types:
    """The types of the kernel: structures with the offsets of their members, and functions, by name."""

    # Bytes behind the three words of a type: fixed, and for each member.
    _EXTRA: Final = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12)} | {
        17: (4, 0),
        19: (0, 12),
    }

    def __init__(self, data: bytes) -> None:
        magic, _, _, header, types, types_length, strings, _ = struct.unpack_from("<HBBIIIII", data)
        if magic != 0xEB9F:
            raise BpfError("the kernel's BTF is not as expected")
        self._data = data
        self._strings = header + strings
        self._at: list[int] = [0]
        at, end = header + types, header + types + types_length
        unpack = struct.Struct("<III").unpack_from
        while at < end:
            self._at.append(at)
            _, info, _ = unpack(data, at)
            fixed, each = self._EXTRA.get(info >> 24 & 31, (0, 0))
            at += 12 + fixed + each * (info & 0xFFFF)

    def find(self, kind: int, name: str) -> int:
        """The number of the type of a kind and name."""
        text = self._data.find(b"\0" + name.encode() + b"\0", self._strings) + 1 - self._strings
        for number, at in enumerate(self._at):
            if at and struct.unpack_from("<I", self._data, at)[0] == text and self._kind(number) == kind:
                return number
        raise BpfError(f"the kernel's BTF does not have {name}")

    def _kind(self, number: int) -> int:
        return self._word(self._at[number] + 4) >> 24 & 31

    def offset(self, number: int, member: str) -> int:
        """The offset in bytes of a member of a structure, also within its unnamed parts."""
        found = self._offset(number, member.encode())
        if found is None:
            raise BpfError(f"the kernel's BTF does not have the member {member}")
        return found

    def _word(self, at: int) -> int:
        return int.from_bytes(self._data[at : at + 4], "little")

    def _offset(self, number: int, member: bytes) -> int | None:
        while self._kind(number) in (8, 9, 10, 11, 18):
            number = self._word(self._at[number] + 8)
        if self._kind(number) not in (4, 5):
            return None
        at = self._at[number]
        info = self._word(at + 4)
        for i in range(info & 0xFFFF):
            name, kind, bits = [self._word(at + 12 + 12 * i + 4 * word) for word in range(3)]
            offset = (bits & 0xFFFFFF if info >> 31 else bits) // 8
            if name:
                start = self._strings + name
                if self._data[start : start + len(member) + 1] == member + b"\0":
                    return offset
            else:
                inner = self._offset(kind, member)
                if inner is not None:
                    return offset + inner
        return None


class _Program:
    """Instructions, with jumps to labels."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int, int]] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}

    def emit(self, opcode: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> None:
        """One instruction."""
        self._code.append((opcode, to, source, offset, value))

    def load(self, to: int, source: int, offset: int) -> None:
        """to = the 64-bit number at source + offset."""
        self.emit(0x79, to, source, offset)

    def store(self, place: int, source: int) -> None:
        """Put a register into a number of the record."""
        self.emit(0x7B, 10, source, 8 * place - RECORD)

    def move(self, to: int, source: int) -> None:
        """to = source."""
        self.emit(0xBF, to, source)

    def set(self, to: int, value: int) -> None:
        """to = value."""
        self.emit(0xB7, to, value=value)

    def add(self, to: int, value: int) -> None:
        """to += value."""
        self.emit(0x07, to, value=value)

    def skip_if_zero(self, register: int, label: str) -> None:
        """Jump if a register is 0."""
        self._jumps.append((len(self._code), label))
        self.emit(0x15, register)

    def skip_if_same(self, one: int, two: int, label: str) -> None:
        """Jump if two registers are the same."""
        self._jumps.append((len(self._code), label))
        self.emit(0x1D, one, two)

    def label(self, name: str) -> None:
        """The place that jumps go to."""
        self._labels[name] = len(self._code)

    def encode(self) -> bytes:
        """The instructions as the kernel takes them."""
        for at, label in self._jumps:
            opcode, to, source, _, value = self._code[at]
            self._code[at] = (opcode, to, source, self._labels[label] - at - 1, value)
        return b"".join(
            [struct.pack("<BBhi", op, to | source << 4, off, value) for op, to, source, off, value in self._code]
        )


def _assemble(types: _Types) -> bytes:
    """The program: one record for each VMA."""
    context, meta = types.find(4, "bpf_iter__task_vma"), types.find(4, "bpf_iter_meta")
    vma = types.find(4, "vm_area_struct")
    program = _Program()
    program.move(6, 1)
    program.load(7, 6, types.offset(context, "vma"))
    program.skip_if_zero(7, "end")
    program.load(8, 6, types.offset(context, "meta"))
    for place, member in enumerate(("vm_start", "vm_end", "vm_flags", "vm_pgoff")):
        program.load(1, 7, types.offset(vma, member))
        program.store(place, 1)
    program.set(1, 0)
    program.load(9, 7, types.offset(vma, "vm_file"))
    program.skip_if_zero(9, "no file")
    program.load(9, 9, types.offset(types.find(4, "file"), "f_inode"))
    program.load(1, 9, types.offset(types.find(4, "inode"), "i_ino"))
    program.label("no file")
    program.store(4, 1)
    program.load(1, 7, types.offset(vma, "anon_vma"))
    program.store(5, 1)
    chain = types.offset(vma, "anon_vma_chain")
    program.move(2, 7)
    program.add(2, chain)
    program.set(3, 0)
    program.load(9, 7, chain)
    for _ in range(CHAIN_MOST):
        program.skip_if_same(9, 2, "chain done")
        program.add(3, 1)
        program.load(9, 9, 0)
    program.label("chain done")
    program.store(6, 3)
    program.set(3, 0)
    for label, bit, offset in (
        ("no policy", EXTRA_POLICY, types.offset(vma, "vm_policy")),
        ("no userfaultfd", EXTRA_USERFAULTFD, types.offset(vma, "vm_userfaultfd_ctx")),
    ):
        program.load(9, 7, offset)
        program.skip_if_zero(9, label)
        program.add(3, bit)
        program.label(label)
    program.store(7, 3)
    program.load(1, 8, types.offset(meta, "seq"))
    program.move(2, 10)
    program.add(2, -RECORD)
    program.set(3, RECORD)
    program.emit(0x85, value=_SEQ_WRITE)
    program.label("end")
    program.set(0, 0)
    program.emit(0x95)
    return program.encode()


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    libc = _libc()
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(libc.syscall(_CALL_BPF, command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@functools.cache
def _program() -> int:
    """A descriptor of the loaded program.  Raises BpfError."""
    try:
        types = _Types(BTF.read_bytes())
    except OSError as error:
        raise BpfError(f"{BTF}: {error.strerror}") from None
    code = ctypes.create_string_buffer(_assemble(types))
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(1 << 16)
    attributes = struct.pack(
        "<IIQQIIQII16sIIIIQIIQIII",
        _TRACING,
        (len(code) - 1) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        1,
        len(log),
        ctypes.addressof(log),
        0,
        0,
        b"vmalab_vmas",
        0,
        _TRACE_ITER,
        *(0, 0, 0, 0, 0, 0, 0),
        types.find(12, "bpf_iter_task_vma"),
        0,
    )
    try:
        return _bpf(_PROG_LOAD, attributes)
    except OSError as error:
        said = log.value.decode("ascii", "replace").strip().splitlines()
        lines = [line for line in said if not line.startswith(("processed", "0:"))]
        raise BpfError(f"the kernel does not take the BPF program: {error.strerror} {lines[-1:]}") from None


class VmaIterator:
    """An iterator over the VMAs of a process, to be handed to the agent by its number.  Raises BpfError."""

    def __init__(self, pid: int) -> None:
        info = struct.pack("<IIII", pid, 0, 0, 0)
        target = ctypes.create_string_buffer(info, len(info))
        attributes = struct.pack("<IIIIQIIQ", _program(), 0, _TRACE_ITER, 0, ctypes.addressof(target), len(info), 0, 0)
        try:
            self._link = _bpf(_LINK_CREATE, attributes)
        except OSError as error:
            raise BpfError(f"the BPF iterator cannot be attached: {error.strerror}") from None
        told = ctypes.create_string_buffer(64)
        _bpf(_INFO, struct.pack("<IIQ", self._link, len(told), ctypes.addressof(told)))
        self.number: int = struct.unpack_from("<I", told, 4)[0]
        """The number of the link in this kernel."""

    def close(self) -> None:
        """Let go of it."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
