"""What /proc and /sys show of a process's address space, as records of a trace.

Everything is checked on the way in: what does not look as the kernel prints it raises InputError with one line.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from vmalab import flags
from vmalab.errors import InputError
from vmalab.live import maps_text
from vmalab.live.maps_text import Mapping, bad_line
from vmalab.text import escape_text, octal_text
from vmalab.trace.records import Exec, Limits, Vma

PM_PRESENT: Final = 1 << 63
"""A page is there: this bit and the following of a word of /proc/PID/pagemap."""
PM_SWAP: Final = 1 << 62
"""In swap, or a marker."""
PM_FILE: Final = 1 << 61
"""Of a file, or shared memory."""
PM_GUARD: Final = 1 << 58
PM_UFFD_WP: Final = 1 << 57
PM_EXCLUSIVE: Final = 1 << 56
"""Mapped once."""
ADDR_COMPAT_LAYOUT: Final = 0x0200000
TASK_SIZE: Final = 0x7FFFFFFFF000
MIN_GAP: Final = 128 << 20
"""The kernel leaves at least this to the stack, and at most five sixths of the address space."""
MMAP_LOWEST: Final = TASK_SIZE // 6 - (1 << 44)
"""No randomisation moves a base from the top down below this."""
LEGACY_BASE: Final = 0x2AAAAAAAB000
"""Where the search starts without randomisation in the layout from the bottom up: a third of the address space."""
PIE_BASE: Final = 0x555555554000
"""Position-independent programs start here: two thirds."""
_SIZE: Final = re.compile(rb" *(\d{1,20}) kB")


class ProcessFiles(msgspec.Struct):
    """The files of /proc/PID that describe an address space; empty where one could not be read."""

    smaps: bytes
    exe: bytes = b""
    """Where the link points to."""
    cmdline: bytes = b""
    stat: bytes = b""
    status: bytes = b""
    limits: bytes = b""
    personality: bytes = b""
    ksm_stat: bytes = b""


def printable(raw: bytes) -> str:
    """A path or a name as a trace holds it: what is not printable, and the backslash, as octal digits."""
    return octal_text(raw.decode("utf-8", "surrogateescape"))


def printable_path(shown: bytes) -> str:
    """A path as maps and smaps show it: they write a line feed as ``\\012`` and leave all else as it is."""
    return printable(shown.replace(b"\\012", b"\n") if b"\\" in shown else shown)


def parse_smaps(text: bytes | str) -> list[Vma]:
    """The VMAs of a smaps file, without [vsyscall], which is not part of the address space."""
    return _parse(_as_bytes(text), "smaps", with_fields=True)


def parse_maps(text: bytes | str) -> list[Vma]:
    """The VMAs of a maps file.  Of the flags only rd, wr, ex and sh are known."""
    return _parse(_as_bytes(text), "maps", with_fields=False)


def _parse(text: bytes, name: str, *, with_fields: bool) -> list[Vma]:
    found: list[Vma] = []
    number = 1
    file = maps_text.parse(text, name)
    number += len(file.before)
    for mapping in file.mappings:
        vma = _vma(mapping, with_flags=not with_fields)
        if with_fields:
            for below, line in enumerate(mapping.lines, 1):
                key, _, value = line.partition(b":")
                _set_field(vma, key, value, name, number + below)
            if not vma.flags:
                last = mapping is file.mappings[-1]
                raise (
                    InputError(f"{name}: the last VMA has no VmFlags")
                    if last
                    else bad_line(name, number + len(mapping.lines) + 1, "the VMA before has no VmFlags")
                )
        elif any(mapping.lines):
            raise bad_line(name, number + 1, "a field, which only smaps has")
        number += 1 + len(mapping.lines)
        found.append(vma)
    return [vma for vma in found if vma.path != "[vsyscall]"]


def _vma(mapping: Mapping, *, with_flags: bool) -> Vma:
    flags = ""
    if with_flags:
        names = zip(mapping.mode, "rwxs", ("rd", "wr", "ex", "sh"), strict=True)
        flags = " ".join(name for shown, letter, name in names if shown == letter)
    return Vma(
        start=mapping.start,
        end=mapping.end,
        flags=flags,
        offset=mapping.offset,
        dev=mapping.device,
        ino=mapping.inode,
        path=printable_path(mapping.name),
    )


def _set_field(vma: Vma, key: bytes, value: bytes, name: str, number: int) -> None:
    if key == b"VmFlags":
        vma.flags = " ".join(value.decode("ascii", "replace").split())
    elif key == b"ProtectionKey":
        digits = value.strip()
        if not digits.isdigit() or len(digits) > 2:
            raise bad_line(name, number, "not a protection key")
        vma.pkey = int(digits)
    elif key in (b"Anonymous", b"Swap"):
        size = _SIZE.fullmatch(value)
        if size is None:
            raise bad_line(name, number, "not a size in kB")
        if key == b"Swap":
            vma.swap = int(size[1]) << 10
        else:
            vma.anon = int(size[1]) << 10


def _as_bytes(text: bytes | str) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def parse_limits(text: bytes) -> Limits:
    """The soft limits that matter to an address space, from /proc/PID/limits."""
    names = {
        "Max address space": "as_",
        "Max data size": "data",
        "Max stack size": "stack",
        "Max locked memory": "memlock",
    }
    limits = Limits()
    for line in text.decode("ascii", "replace").splitlines():
        field = names.get(line[:25].strip())
        if field is not None:
            words = line[25:].split()
            if not words or not (words[0] == "unlimited" or words[0].isdigit()):
                raise InputError(f"limits: {escape_text(line, 60)}: not a limit")
            setattr(limits, field, None if words[0] == "unlimited" else int(words[0]))
    return limits


def read_limits(pid: int) -> Limits:
    """The soft limits of a running process."""
    return parse_limits(_read(pid, "limits"))


def describe(pid: int, files: ProcessFiles) -> Exec:
    """An address space as a record; its number is still 0."""
    return describe_vmas(parse_smaps(files.smaps), files, pid)


def describe_vmas(vmas: list[Vma], files: ProcessFiles | None = None, pid: int = 1) -> Exec:
    """As describe, of VMAs that have been read already."""
    files = files if files is not None else ProcessFiles(smaps=b"")
    limits = parse_limits(files.limits)
    status = _fields(files.status)
    stat = files.stat.rpartition(b")")[2].split()  # the fields from the third on
    numbers = [int(word) if word.isdigit() else 0 for word in stat] + [0] * 60
    personality = int(files.personality.strip() or b"0", 16)
    topdown = not personality & ADDR_COMPAT_LAYOUT and not legacy_layout()
    start_brk = numbers[44]
    effective = int(status.get(b"CapEff", b"0"), 16)
    return Exec(
        n=0,
        pid=pid,
        exe=printable(files.exe),
        vmas=vmas,
        argv=[printable(word) for word in files.cmdline.split(b"\0")[:-1]],
        mmap_base=find_mmap_base(vmas, limits.stack, topdown=topdown),
        topdown=topdown,
        start_brk=start_brk,
        brk=max([vma.end for vma in vmas if vma.path == "[heap]"] + [start_brk]),
        start_stack=numbers[25],
        start_code=numbers[23],
        end_code=numbers[24],
        start_data=numbers[42],
        end_data=numbers[43],
        limits=limits,
        caps=[name for name, bit in flags.CAPABILITIES.items() if effective >> bit & 1],
        personality=personality,
        thp_disabled=status.get(b"THP_enabled") == b"0",
        memory_merge=_fields(files.ksm_stat).get(b"ksm_merge_any") == b"yes",
    )


def find_mmap_base(vmas: list[Vma], stack_limit: int | None, *, topdown: bool) -> int | None:
    """Where the search for free addresses starts, told from what was mapped first: it lies at that very place.

    True of an address space right after exec; None if nothing is mapped there.
    """
    if not topdown:
        return min([vma.start for vma in vmas if LEGACY_BASE <= vma.start < PIE_BASE], default=None)
    # The gap for the stack bounds the base; above it may lie the program itself, below it only libraries and the vdso.
    gap = min(max(stack_limit if stack_limit is not None else TASK_SIZE, MIN_GAP), TASK_SIZE // 6 * 5)
    stack = min([vma.start for vma in vmas if vma.path == "[stack]"], default=TASK_SIZE)
    highest = min(stack, (TASK_SIZE - gap + 0xFFF) & ~0xFFF)
    return max([vma.end for vma in vmas if vma.end <= highest and vma.start >= MMAP_LOWEST], default=None)


def legacy_layout() -> bool:
    """Whether the layout from the bottom up is this machine's setting."""
    try:
        return Path("/proc/sys/vm/legacy_va_layout").read_text("ascii").strip() not in ("0", "")
    except OSError:
        return False


def read_process(pid: int) -> Exec:
    """The address space of a running process.  Raises InputError if there is none, or it may not be read.

    Its mmap_base is where the highest mapping below the stack ends, which in a running process need not be the base.
    """
    files = ProcessFiles(smaps=_read(pid, "smaps"))
    if not files.smaps:
        raise InputError(f"process {pid} has no address space: it is a kernel thread, or has ended")
    for name in ("cmdline", "stat", "status", "limits"):
        setattr(files, name, _read(pid, name))
    for name in ("personality", "ksm_stat"):
        try:
            setattr(files, name, Path(f"/proc/{pid}/{name}").read_bytes())
        except OSError:
            continue
    try:
        files.exe = os.readlink(os.fsencode(f"/proc/{pid}/exe"))
    except OSError:
        files.exe = b""
    return describe(pid, files)


def read_status(pid: int) -> dict[bytes, bytes]:
    """The fields of /proc/PID/status.  Raises InputError if there is no such process."""
    return _fields(_read(pid, "status"))


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        if not Path("/proc/self").exists():
            raise InputError("/proc is not there: only Linux shows address spaces this way") from None
        raise InputError(f"there is no process {pid}") from None
    except OSError as error:
        raise InputError(f"process {pid} cannot be read: /proc/{pid}/{name}: {error.strerror}") from None


def _fields(text: bytes) -> dict[bytes, bytes]:
    lines: Callable[[bytes], list[bytes]] = bytes.splitlines
    return {key.strip(): value.strip() for key, _, value in (line.partition(b":") for line in lines(text))}
