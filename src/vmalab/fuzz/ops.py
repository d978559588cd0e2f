"""One step of a sequence that a model and a kernel both perform."""

from __future__ import annotations

from typing import Final, final

NUMBERS: Final = {
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "mremap": 25,
    "msync": 26,
    "mincore": 27,
    "madvise": 28,
    "shmget": 29,
    "shmat": 30,
    "shmctl": 31,
    "shmdt": 67,
    "personality": 135,
    "mlock": 149,
    "munlock": 150,
    "mlockall": 151,
    "munlockall": 152,
    "prctl": 157,
    "remap_file_pages": 216,
    "mbind": 237,
    "set_mempolicy": 238,
    "get_mempolicy": 239,
    "prlimit64": 302,
    "mlock2": 325,
    "pkey_mprotect": 329,
    "pkey_alloc": 330,
    "pkey_free": 331,
    "process_madvise": 440,
    "set_mempolicy_home_node": 450,
    "mseal": 462,
}
"""The system calls that are one step each, with their numbers on x86-64."""
OTHERS: Final = (
    *("read", "write", "fork", "exit"),
    *("crowd", "exec"),
    *("memfd", "memfd_secret", "seal", "userfaultfd", "register", "unregister", "close", "capset"),
    *("fill", "writeprotect", "layout"),
)
"""Steps that are no system call, or several."""


FLAG_ARGUMENTS: Final = {
    "mmap": (2, 3),
    "mprotect": (2, 2),
    "pkey_mprotect": (2, 2),
    "mremap": (3, 3),
    "mlock2": (2, 2),
    "mlockall": (0, 0),
    "msync": (2, 2),
    "shmget": (2, 2),
    "shmat": (1, 1),
    "shmctl": (0, 0),
    "seal": (0, 0),
    "memfd": (0, 0),
    "register": (2, 2),
    "fill": (2, 3),
    "writeprotect": (2, 2),
    "userfaultfd": (0, 0),
    "madvise": (2, 2),
    "process_madvise": (0, 0),
    "prctl": (0, 0),
    "prlimit64": (0, 0),
    "mbind": (2, 4),
    "get_mempolicy": (1, 1),
    "set_mempolicy": (0, 0),
}
"""Which arguments of a step are flags, an advice or an option: one, named twice, or two."""


REMOTE_MADVISE: Final = "remote madvise"
"""What a process_madvise of another process is counted as."""


@final
class Op:
    """One step: a system call, or one of OTHERS; who does it, and to which file (-1: none).

    The file of a process_madvise is the process that it is about (-1: the caller itself).

    clone: where not 0, a child of that process does the system call, and ends.  It is made with these flags, CLONE_VM
    among them, and so shares the memory.

    Processes are numbered from 0.  Files are those that all runs have, from 0; and from FIRST_MADE on those that the
    run itself makes: memfds, userfaultfds and segments.  Segments 0 and 1 are there from the start of a run.
    """

    __slots__ = ("args", "clone", "file", "name", "who")

    def __init__(self, name: str, args: tuple[int, ...] = (), who: int = 0, file: int = -1, clone: int = 0) -> None:
        self.name: str = name
        self.args: tuple[int, ...] = args
        self.who: int = who
        self.file: int = file
        self.clone: int = clone

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Op):
            return False
        return self._key() == other._key()

    def _key(self) -> tuple[str, tuple[int, ...], int, int, int]:
        return self.name, self.args, self.who, self.file, self.clone

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[object, ...]:
        return Op, self._key()

    def __repr__(self) -> str:
        args = ", ".join([hex(arg) if arg > 9 else str(arg) for arg in self.args])
        last = [str(self.who), str(self.file), hex(self.clone)]
        given = 3 if self.clone else 2 if self.file >= 0 else 1 if self.who else 0
        rest = "".join([f", {each}" for each in last[:given]])
        return f'Op("{self.name}", ({args}{"," if len(self.args) == 1 else ""}){rest})'

    def __str__(self) -> str:
        args = ", ".join([hex(arg) if arg > 9 else str(arg) for arg in self.args])
        by = f" by {self.who}" if self.who else ""
        of = f" of file {self.file}" if self.file >= 0 else ""
        through = f" through clone({self.clone:#x})" if self.clone else ""
        return f"{self.name}({args}){of}{by}{through}"


FIRST_MADE: Final = 16
"""Files from this number on are made by the run, in slots of the agent."""
