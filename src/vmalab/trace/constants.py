"""Expressions of constants as logs print them: ``PROT_READ|PROT_WRITE``, ``21<<MAP_HUGE_SHIFT``, ``8192*1024``."""

from __future__ import annotations

import errno
import re
from typing import Final

from vmalab import flags
from vmalab.syscalls import layout, shm

_FLAGS: Final = ("PROT_", "MAP_", "MREMAP_", "MLOCK_", "MCL_", "MADV_", "CLONE_", "PR_", "RLIM", "UFFD", "F_", "MFD_")
_MORE: Final[dict[str, int]] = {
    "NULL": 0,
    "MAP_FILE": 0,
    "MAP_ANON": flags.MAP_ANONYMOUS,
    "MAP_NOSYNC": 0,
    "MAP_HUGE_64KB": 16 << 26,
    "MAP_HUGE_512KB": 19 << 26,
    "MAP_HUGE_1MB": 20 << 26,
    "MAP_HUGE_2MB": 21 << 26,
    "MAP_HUGE_16MB": 24 << 26,
    "MAP_HUGE_1GB": 30 << 26,
    "PROT_BTI": 0x10,
    "PROT_MTE": 0x20,
    "MADV_WIPE_ON_FORK": flags.MADV_WIPEONFORK,
    "CLONE_NEWTIME": 0x80,
    "CLONE_FS": 0x200,
    "CLONE_SIGHAND": 0x800,
    "CLONE_PIDFD": 0x1000,
    "CLONE_PTRACE": 0x2000,
    "CLONE_PARENT": 0x8000,
    "CLONE_NEWNS": 0x20000,
    "CLONE_SYSVSEM": 0x40000,
    "CLONE_SETTLS": 0x80000,
    "CLONE_PARENT_SETTID": 0x100000,
    "CLONE_CHILD_CLEARTID": 0x200000,
    "CLONE_DETACHED": 0x400000,
    "CLONE_UNTRACED": 0x800000,
    "CLONE_CHILD_SETTID": 0x1000000,
    "CLONE_NEWCGROUP": 0x2000000,
    "CLONE_NEWUTS": 0x4000000,
    "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
    "CLONE_IO": 0x80000000,
    "CLONE_CLEAR_SIGHAND": 1 << 32,
    "CLONE_INTO_CGROUP": 1 << 33,
    "SIGCHLD": 17,
    "IPC_PRIVATE": 0,
    "IPC_NOWAIT": 0o4000,
    "SHM_HUGETLB": 0o4000,
    "SHM_NORESERVE": 0o10000,
    "SHM_HUGE_SHIFT": 26,
    "MFD_CLOEXEC": 1,
    "MFD_HUGETLB": 4,
    "MFD_NOEXEC_SEAL": 8,
    "MFD_EXEC": 16,
    "MFD_HUGE_SHIFT": 26,
    "MFD_HUGE_2MB": 21 << 26,
    "MFD_HUGE_1GB": 30 << 26,
    "FD_CLOEXEC": 1,
    "F_DUPFD": 0,
    "F_SETFD": 2,
    "F_DUPFD_CLOEXEC": 1030,
    "O_RDONLY": 0,
    "O_WRONLY": 1,
    "O_RDWR": 2,
    "O_CREAT": 0o100,
    "O_EXCL": 0o200,
    "O_NOCTTY": 0o400,
    "O_TRUNC": 0o1000,
    "O_APPEND": 0o2000,
    "O_NONBLOCK": 0o4000,
    "O_NDELAY": 0o4000,
    "O_DSYNC": 0o10000,
    "O_SYNC": 0o4010000,
    "O_DIRECT": 0o40000,
    "O_LARGEFILE": 0o100000,
    "O_DIRECTORY": 0o200000,
    "O_NOFOLLOW": 0o400000,
    "O_NOATIME": 0o1000000,
    "O_CLOEXEC": 0o2000000,
    "O_TMPFILE": 0o20200000,
    "O_PATH": 0o10000000,
    "AT_FDCWD": -100,
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_MF_STRICT": 1,
    "MPOL_MF_MOVE": 2,
    "MPOL_MF_MOVE_ALL": 4,
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
    "RLIM64_INFINITY": flags.RLIM_INFINITY,
    "PKEY_DISABLE_ACCESS": 1,
    "PKEY_DISABLE_WRITE": 2,
    "PER_LINUX": 0,
    "UNAME26": 0x20000,
    "ADDR_NO_RANDOMIZE": 0x40000,
    "FDPIC_FUNCPTRS": 0x80000,
    "MMAP_PAGE_ZERO": 0x100000,
    "ADDR_LIMIT_32BIT": 0x800000,
    "SHORT_INODE": 0x1000000,
    "WHOLE_SECONDS": 0x2000000,
    "STICKY_TIMEOUTS": 0x4000000,
    "ADDR_LIMIT_3GB": 0x8000000,
    "CLOSE_RANGE_UNSHARE": 2,
    "CLOSE_RANGE_CLOEXEC": 4,
    "UFFDIO_REGISTER_MODE_MISSING": 1,
    "UFFDIO_REGISTER_MODE_WP": 2,
    "UFFDIO_REGISTER_MODE_MINOR": 4,
    "UFFD_API": 0xAA,
    "UFFD_USER_MODE_ONLY": 1,
    "IORING_REGISTER_BUFFERS": 0,
    "IORING_REGISTER_BUFFERS2": 15,
}
"""Names that the model has no use for, but a reader of logs has."""


def _names() -> dict[str, int]:
    found = {
        name: value
        for name, value in vars(flags).items()
        if isinstance(value, int) and (name.startswith((*_FLAGS, "MS_", "SHM_", "IPC_")) or name in _PERSONALITIES)
    }
    choices = {name: value for table in (layout.OPTIONS, shm.COMMANDS) for value, name in table.items()}
    return {**found, **choices, **_MORE}


_PERSONALITIES: Final = frozenset({"ADDR_COMPAT_LAYOUT", "READ_IMPLIES_EXEC"})
NAMES: Final = _names()
"""Every name that an expression may hold."""

_RESTARTS: Final = frozenset(
    {"ERESTARTSYS", "ERESTARTNOINTR", "ERESTARTNOHAND", "ERESTART_RESTARTBLOCK", "ERESTARTBLOCK"}
)
_NUMBER: Final = re.compile(r"-?(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})")
_MAX_TERMS: Final = 100


def number_of(text: str) -> int | None:
    """A number as C writes it: decimal, hexadecimal with 0x, octal with 0.  None if it is none, or beyond 64 bits."""
    if _NUMBER.fullmatch(text) is None:
        return None
    digits = text.lstrip("-")
    try:
        value = int(digits, 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10)
    except ValueError:
        return None
    value = -value if text[0] == "-" else value
    return value if -(1 << 63) <= value < 1 << 64 else None


def evaluate(text: str, prefix: str = "") -> int | None:
    """The value of an expression; None if it holds a name that is not known.  Names may lack the prefix."""
    terms = text.split("|")
    if len(terms) > _MAX_TERMS:
        return None
    value = 0
    for term in terms:
        one = _term(term.strip(), prefix)
        if one is None:
            return None
        value |= one
    return value


def _term(text: str, prefix: str) -> int | None:
    for operator in ("<<", "*"):
        left, found, right = text.partition(operator)
        if found:
            first, second = _atom(left.strip(), prefix), _atom(right.strip(), prefix)
            if first is None or second is None or first < 0 or not 0 <= second < 1 << 64:
                return None
            if operator == "<<" and second > 63:
                return None
            value = first << second if operator == "<<" else first * second
            return value if value < 1 << 64 else None
    return _atom(text, prefix)


def _atom(text: str, prefix: str) -> int | None:
    if prefix and prefix + text in NAMES:
        return NAMES[prefix + text]
    return NAMES[text] if text in NAMES else number_of(text)


def errno_of_name(name: str) -> int | None:
    """The number of an errno; None if there is none of that name."""
    return {"EWOULDBLOCK": errno.EAGAIN, "ENOTSUPP": 524, "EDEADLOCK": errno.EDEADLK}.get(
        name, getattr(errno, name, None) if name.startswith("E") else None
    )


def is_restart(name: str) -> bool:
    """Whether it says that the kernel made the call again by itself, so that this one had no effect."""
    return name in _RESTARTS
