"""What a record can be: the ranges and orders that its types do not say.

A record that passes describes something that a kernel could have done as far as one line shows it; `Sequence` adds what
only the records before it can tell.
"""

import re
from typing import Final

from vmalab.flags import CAPABILITIES, CLONE_THREAD, vm_flags_from_text
from vmalab.text import escape_text
from vmalab.trace.records import (
    Call,
    End,
    Exec,
    Exit,
    Fault,
    File,
    Fork,
    Header,
    Limits,
    Lost,
    Machine,
    Maps,
    Record,
    Stack,
    Vma,
)

PAGE: Final = 4096
WORD: Final = 1 << 64
PID_LIMIT: Final = 1 << 22
"""The kernel's PID_MAX_LIMIT: no process number is above it."""
MAX_ERRNO: Final = 4095

ARGUMENTS: Final[dict[str, int]] = {
    "arch_prctl": 2,
    "brk": 1,
    "clone": 5,
    "clone3": 2,
    "close": 1,
    "close_range": 3,
    "dup": 1,
    "dup2": 2,
    "dup3": 3,
    "execve": 3,
    "execveat": 5,
    "exit": 1,
    "exit_group": 1,
    "fallocate": 4,
    "fcntl": 3,
    "fork": 0,
    "ftruncate": 2,
    "get_mempolicy": 5,
    "io_uring_enter": 6,
    "io_uring_register": 4,
    "io_uring_setup": 2,
    "ioctl": 3,
    "madvise": 3,
    "map_shadow_stack": 3,
    "mbind": 6,
    "membarrier": 3,
    "memfd_create": 2,
    "memfd_secret": 1,
    "migrate_pages": 4,
    "mincore": 3,
    "mlock": 2,
    "mlock2": 3,
    "mlockall": 1,
    "mmap": 6,
    "move_pages": 6,
    "mprotect": 3,
    "mremap": 5,
    "mseal": 3,
    "msync": 3,
    "munlock": 2,
    "munlockall": 0,
    "munmap": 2,
    "open": 3,
    "openat": 4,
    "openat2": 4,
    "personality": 1,
    "pkey_alloc": 2,
    "pkey_free": 1,
    "pkey_mprotect": 4,
    "prctl": 5,
    "prlimit64": 4,
    "process_madvise": 5,
    "process_mrelease": 2,
    "remap_file_pages": 5,
    "set_mempolicy": 3,
    "set_mempolicy_home_node": 4,
    "setrlimit": 2,
    "shmat": 3,
    "shmctl": 3,
    "shmdt": 1,
    "shmget": 3,
    "userfaultfd": 1,
    "vfork": 0,
}
"""How many arguments a call takes on x86-64.  A call that is not here may have up to six."""

FAULTS: Final = frozenset({"exact", "at-calls", "none"})
KINDS: Final = frozenset({"regular", "memfd", "shm", "hugetlb", "device", "other"})
CAPS: Final = frozenset(CAPABILITIES)
REASONS: Final = frozenset({"done", "interrupted"})

_CALL_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_DEVICE: Final = re.compile(r"[0-9a-f]{2,8}:[0-9a-f]{2,8}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

_known_flags: dict[str, str | None] = {}
"""What is wrong with a VmFlags line, by the line: a trace holds few different ones."""
_KNOWN_FLAGS_LIMIT: Final = 4096


def check_header(header: Header) -> str | None:
    """What is impossible in a header, as one sentence without its full stop; None if nothing is."""
    if header.faults not in FAULTS:
        return f"faults is {_show(header.faults)}; it must be one of {_list(FAULTS)}"
    return _check_machine(header.machine)


def check(record: Record) -> str | None:
    """What is impossible in a record, as one sentence without its full stop; None if nothing is."""
    if isinstance(record, Call):
        return _check_call(record)
    if isinstance(record, Fault):
        return _task(record.pid, record.tid) or _word("addr", record.addr)
    if isinstance(record, File):
        return _check_file(record)
    if isinstance(record, Exec):
        return _check_exec(record)
    if isinstance(record, Exit):
        return _check_exit(record)
    if isinstance(record, Fork):
        return (
            _task(record.pid, record.tid)
            or _pid("parent", record.parent)
            or _not_its_parent(record)
            or _pid("parent_tid", record.parent_tid)
            or _word("flags", record.flags)
            or _observed(record.written, record.grown)
        )
    if isinstance(record, Maps):
        return _pid("pid", record.pid) or _check_vmas(record.vmas)
    if isinstance(record, Stack):
        return _check_stack(record)
    if isinstance(record, Lost):
        return None if record.pid == 0 else _pid("pid", record.pid)
    return _check_end(record)


class Sequence:
    """What the records before one say about it: numbers without gaps, processes and files that were introduced.

    After a `lost` record anything may have been missed, so processes and files are no longer asked for.
    """

    def __init__(self) -> None:
        self.count = 0
        """How many records have been accepted: the number of the last one."""
        self.ended = False
        self._lost = False
        self._pids: set[int] = set()
        self._files: set[int] = set()
        self._stacks: set[int] = set()

    def accept(self, record: Record) -> str | None:
        """What is impossible about a record at this place; None if nothing is, and then it counts."""
        problem = self._problem(record)
        if problem is None:
            self.count += 1
        return problem

    def _problem(self, record: Record) -> str | None:
        if self.ended:
            return "a record follows the end record, which must be the last"
        if record.n != self.count + 1:
            return f"n is {record.n} where {self.count + 1} is due: records are numbered from 1 without gaps"
        if isinstance(record, Call | Fault) and record.stack is not None and record.stack not in self._stacks:
            return f"stack {record.stack} was not introduced by a stack record before it"
        if isinstance(record, Call):
            if record.file is not None and record.file not in self._files and not self._lost:
                return f"file {record.file} was not introduced by a file record before it"
            return self._known(record.pid)
        if isinstance(record, Exec):
            self._pids.add(record.pid)
        elif isinstance(record, File):
            self._files.add(record.id)
        elif isinstance(record, Stack):
            self._stacks.add(record.id)
        elif isinstance(record, Fork):
            problem = self._known(record.parent)
            if problem is not None:
                return problem
            self._pids.add(record.pid)
        elif isinstance(record, Lost):
            self._lost = True
        elif isinstance(record, End):
            self.ended = True
        else:
            return self._known(record.pid)
        return None

    def _known(self, pid: int) -> str | None:
        if pid in self._pids or self._lost:
            return None
        return f"process {pid} was not introduced by an exec or fork record before it"


def _check_call(record: Call) -> str | None:
    count = ARGUMENTS.get(record.call)
    args = record.args
    if count is None:
        if _CALL_NAME.fullmatch(record.call) is None:
            return f"{_show(record.call)} is no name of a system call"
        if len(args) > 6:
            return f"{record.call} has {len(args)} arguments; no call takes more than 6"
    elif len(args) != count:
        return f"{record.call} has {len(args)} argument{'' if len(args) == 1 else 's'}; it takes {count}"
    for place, value in enumerate(args):
        if not 0 <= value < WORD:
            return f"argument {place + 1} of {record.call} is {_number(value)}; it must be an unsigned 64-bit word"
    if record.ret is not None and not -MAX_ERRNO <= record.ret < WORD:
        return f"ret is {_number(record.ret)}; it must be a 64-bit result or minus an errno (at least -{MAX_ERRNO})"
    if record.file is not None and record.file < 0:
        return f"file is {_number(record.file)}; it must not be negative"
    if record.data:
        problem = _check_data(record.data)
        if problem is not None:
            return problem
    return _task(record.pid, record.tid) or _observed(record.written, record.grown)


def _check_data(data: dict[str, int | str | list[int]]) -> str | None:
    for key, value in data.items():
        if isinstance(value, str):
            problem = _text(f"data.{_show(key)}", value)
            if problem is not None:
                return problem
            continue
        for number in value if isinstance(value, list) else [value]:
            if not -(WORD >> 1) <= number < WORD:
                return f"data {_show(key)} holds {_number(number)}; it must be a 64-bit number"
        if key == "ranges" and (not isinstance(value, list) or len(value) % 2 != 0):
            return "data ranges must be a list of address, length, address, length, ..."
    return None


def _check_file(record: File) -> str | None:
    if not 0 <= record.id < WORD:
        return f"id is {_number(record.id)}; it must not be negative, nor above 2**64 - 1"
    if record.kind not in KINDS:
        return f"kind is {_show(record.kind)}; it must be one of {_list(KINDS)}"
    return _identity(record.dev, record.ino, record.path) or _flags("driver_flags", record.driver_flags)


def _check_exec(record: Exec) -> str | None:
    problem = _pid("pid", record.pid) or _check_vmas(record.vmas) or _check_limits(record.limits)
    if problem is not None:
        return problem
    if record.mmap_base is not None:
        problem = _word("mmap_base", record.mmap_base)
        if problem is not None:
            return problem
    for name in ("start_brk", "brk", "start_stack", "start_code", "end_code", "start_data", "end_data", "personality"):
        problem = _word(name, getattr(record, name))
        if problem is not None:
            return problem
    if record.brk < record.start_brk:
        return f"brk is 0x{record.brk:x}, below start_brk, 0x{record.start_brk:x}"
    for cap in record.caps:
        if cap not in CAPS:
            return f"caps holds {_show(cap)}; it may hold {_list(CAPS)}"
    return None


def _check_exit(record: Exit) -> str | None:
    if record.code is not None and not 0 <= record.code <= 255:
        return f"code is {_number(record.code)}; an exit code is from 0 to 255"
    if record.signal is not None and not 1 <= record.signal <= 64:
        return f"signal is {_number(record.signal)}; a signal is from 1 to 64"
    problem = _pid("pid", record.pid) or _observed(record.written, record.grown)
    if problem is None and record.vmas is not None:
        problem = _check_vmas(record.vmas)
    return problem


def _check_stack(record: Stack) -> str | None:
    if not 0 <= record.id < WORD:
        return f"id is {_number(record.id)}; it must not be negative, nor above 2**64 - 1"
    for frame in record.frames:
        problem = _text("frames", frame)
        if problem is not None:
            return problem
    return _pid("pid", record.pid)


def _check_end(record: End) -> str | None:
    if record.reason not in REASONS:
        return f"reason is {_show(record.reason)}; it must be one of {_list(REASONS)}"
    return None


_MACHINE_BITS: Final = {
    "task_size": 62,
    "mmap_min_addr": 62,
    "dac_mmap_min_addr": 62,
    "stack_guard_gap": 50,
    "max_map_count": 31,
    "overcommit_ratio": 31,
    "overcommit_kbytes": 62,
    "ram_pages": 52,
    "swap_pages": 52,
}
"""How large the numbers of a machine can be: addresses in bytes, sizes in pages and kB, and two integers of C."""


def _check_machine(machine: Machine) -> str | None:
    size = machine.page_size
    if not 1024 <= size <= 1 << 30 or size & (size - 1) != 0:
        return f"machine.page_size is {_number(size)}; it must be a power of two"
    for name, bits in _MACHINE_BITS.items():
        value: int | None = getattr(machine, name)
        if value is not None and not 0 <= value < 1 << bits:
            return f"machine.{name} is {_number(value)}; it must be from 0 to 2**{bits} - 1"
    if not 0 <= machine.overcommit_memory <= 2:
        return f"machine.overcommit_memory is {_number(machine.overcommit_memory)}; it must be 0, 1 or 2"
    if not 1 <= machine.numa_nodes <= 1024:
        return f"machine.numa_nodes is {_number(machine.numa_nodes)}; it must be from 1 to 1024"
    return None


def _check_limits(limits: Limits) -> str | None:
    for name in ("as_", "data", "stack", "memlock"):
        value: int | None = getattr(limits, name)
        if value is not None:
            problem = _word(f"limits.{name.rstrip('_')}", value)
            if problem is not None:
                return problem
    return None


def _check_vmas(vmas: list[Vma]) -> str | None:
    """A list of VMAs as the kernel shows it: each a range of whole pages, in order, none over another."""
    below = 0
    for place, vma in enumerate(vmas):
        start = vma.start
        end = vma.end
        if not 0 <= start < end <= WORD:
            return f"VMA {place + 1} is [{_number(start, 16)}, {_number(end, 16)}), which is no range of addresses"
        if start % PAGE != 0 or end % PAGE != 0:
            return f"VMA {place + 1} is [0x{start:x}, 0x{end:x}), which is not whole pages"
        if start < below:
            return f"VMA {place + 1} starts at 0x{start:x}, below the end of the one before it, 0x{below:x}"
        below = end
        problem = (
            _flags("flags", vma.flags)
            or _identity(vma.dev, vma.ino, vma.path)
            or _word("offset", vma.offset)
            or _word("anon", vma.anon)
            or _word("swap", vma.swap)
            or _word("anon_vma", vma.anon_vma)
            or _word("chain", vma.chain)
        )
        if problem is None and vma.offset % PAGE != 0:
            problem = f"offset is 0x{vma.offset:x}, which is not whole pages"
        if problem is None and not 0 <= vma.pkey <= 15:
            problem = f"pkey is {_number(vma.pkey)}; it must be from 0 to 15"
        if problem is not None:
            return f"VMA {place + 1}, at 0x{start:x}: {problem}"
    return None


def _observed(written: list[int], grown: list[tuple[int, int]]) -> str | None:
    for addr in written:
        if not 0 <= addr < WORD:
            return f"written holds {_number(addr)}, which is no address"
    for start, end in grown:
        if not 0 <= start < end <= WORD or start % PAGE != 0 or end % PAGE != 0:
            return f"grown holds [{_number(start, 16)}, {_number(end, 16)}), which is no range of whole pages"
    return None


def _not_its_parent(record: Fork) -> str | None:
    """A thread belongs to the process that makes it; a process does not."""
    if record.pid == record.parent and not record.flags & CLONE_THREAD:
        return f"pid is {record.pid}, the number of its parent; only a thread is of the same process"
    return None


def _task(pid: int, tid: int) -> str | None:
    if 0 < pid <= PID_LIMIT and 0 < tid <= PID_LIMIT:
        return None
    return _pid("pid", pid) or _pid("tid", tid)


def _pid(name: str, pid: int) -> str | None:
    return None if 0 < pid <= PID_LIMIT else f"{name} is {_number(pid)}; it must be from 1 to {PID_LIMIT}"


def _word(name: str, value: int) -> str | None:
    return None if 0 <= value < WORD else f"{name} is {_number(value)}; it must be from 0 to 2**64 - 1"


def _flags(name: str, line: str) -> str | None:
    if line not in _known_flags:
        if len(_known_flags) >= _KNOWN_FLAGS_LIMIT:
            _known_flags.clear()
        try:
            vm_flags_from_text(line)
            _known_flags[line] = None
        except ValueError as error:
            _known_flags[line] = escape_text(str(error), 120)
    problem = _known_flags[line]
    return None if problem is None else f"{name}: {problem}"


def _identity(dev: str, ino: int, path: str) -> str | None:
    if _DEVICE.fullmatch(dev) is None:
        return f"dev is {_show(dev)}; it must be two hexadecimal numbers, such as 08:01"
    return _word("ino", ino) or _text("path", path)


def _text(name: str, text: str) -> str | None:
    if _CONTROL.search(text) is None:
        return None
    return f"{name} is {_show(text)}: a byte that is not printable is written as a backslash and three octal digits"


def _show(text: str) -> str:
    return f'"{escape_text(text, 60)}"'


def _number(value: int, base: int = 10) -> str:
    """A number for a message: one of a thousand digits is not shown whole."""
    if -WORD < value <= WORD:
        return f"{value:#x}" if base == 16 and value >= 0 else str(value)
    return "below -2**64" if value < 0 else "above 2**64"


def _list(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
