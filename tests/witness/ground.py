"""What witnesses are made of: calls, and the ground on which they are made."""

from typing import NamedTuple

from vmalab import flags as f
from vmalab.fuzz.ops import Op
from vmalab.syscalls import shm

AT = 0x10000000
PAGE = 0x1000
HUGE = 0x200000
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED
SHARED = f.MAP_SHARED | f.MAP_ANONYMOUS | f.MAP_FIXED
RW = 3
END = f.RLIM_INFINITY
TASK_SIZE = 0x7FFFFFFFF000
REGULAR, READ_ONLY, MEMFD, SMALL_MEMFD = 0, 2, 3, 4
MADE = 16
VVAR, VDSO = 0x7FFFF7FF7000, 0x7FFFF7FFD000
MOVE = f.MREMAP_MAYMOVE
TO = f.MREMAP_MAYMOVE | f.MREMAP_FIXED
MEMORY_CAPABILITIES = 1 << f.CAP_IPC_LOCK | 1 << f.CAP_IPC_OWNER | 1 << f.CAP_SYS_RAWIO | 1 << f.CAP_SYS_NICE
MEMORY_CAPABILITIES |= 1 << f.CAP_SYS_RESOURCE
"""What is lost by a capset of 0; one of another number loses those bits."""
LOOKING = 1 << f.CAP_SYS_PTRACE | 1 << f.CAP_SYS_ADMIN | 1 << f.CAP_PERFMON
RESTORING = 1 << f.CAP_SYS_ADMIN | 1 << f.CAP_CHECKPOINT_RESTORE


class Witness(NamedTuple):
    """A fact, and the calls that show it."""

    fact: str
    errno: int
    """Of the last call; 0 if it works."""
    ops: tuple[Op, ...]
    pages: bool = False
    """What is below the VMAs matters."""


def mapped(at: int = AT, pages: int = 4, prot: int = RW, flags: int = FIXED) -> Op:
    """An anonymous mapping."""
    return Op("mmap", (at, pages * PAGE, prot, flags, 0))


def of_file(file: int, at: int = AT, pages: int = 4, prot: int = 1, flags: int = 0x11, offset: int = 0) -> Op:
    """A mapping of a file, shared if nothing else is said."""
    return Op("mmap", (at, pages * PAGE, prot, flags, offset), 0, file)


def call(name: str, *args: int, file: int = -1) -> Op:
    """A call of the first process."""
    return Op(name, args, 0, file)


def laid_out(**changes: int) -> Op:
    """PR_SET_MM_MAP of a layout with its heap at 2 * AT, empty."""
    parts = {"start_code": AT, "end_code": AT + PAGE, "start_data": AT + PAGE, "end_data": AT + 2 * PAGE}
    parts |= {"start_brk": 2 * AT, "brk": 2 * AT, "start_stack": 3 * AT, "arg_start": 3 * AT, "arg_end": 3 * AT}
    parts |= {"env_start": 3 * AT, "env_end": 3 * AT}
    return Op("layout", tuple((parts | changes).values()))


NEW = f.IPC_CREAT | 0o600


def limited(resource: int, pages: int, *ops: Op) -> tuple[Op, ...]:
    """Calls under a limit in pages."""
    return (*ops[:-1], call("prlimit64", resource, pages * PAGE), ops[-1])


def unprivileged(*ops: Op) -> tuple[Op, ...]:
    """Calls without the capabilities that memory calls ask for; the test puts in those that are left."""
    return (call("capset", 0), *ops)


def huge_segment(flags: int) -> Op:
    """A segment of a page, made of huge pages."""
    return call("shmget", 0, PAGE, NEW | shm.HUGETLB | flags, file=MADE)


HUGE_PAGES = call("mmap", AT, 2 * HUGE, RW, FIXED | f.MAP_HUGETLB | f.MAP_NORESERVE, 0)
SECRET_PAGES = (call("memfd_secret", 8 * PAGE, file=MADE), of_file(MADE, prot=RW, flags=0x11))
SEALED = (mapped(), call("mseal", AT + PAGE, PAGE, 0))
DROPPABLE = call("mmap", AT, 4 * PAGE, RW, f.MAP_DROPPABLE | f.MAP_ANONYMOUS | f.MAP_FIXED, 0)
HOLE = (mapped(), call("munmap", AT + PAGE, PAGE))
UFFD = call("userfaultfd", file=MADE)
EXEC = Op("exec")
ATTACHED = call("shmat", AT, 0, file=0)
TO_GO = (ATTACHED, call("shmctl", f.IPC_RMID, 0, file=0))
KEYED = call("shmget", 1, PAGE, NEW, file=MADE)
KEYED_TO_GO = (KEYED, call("shmat", AT, 0, file=MADE), call("shmctl", f.IPC_RMID, 0, file=MADE))
