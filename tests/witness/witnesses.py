"""A few calls for each answer of the memory calls: the last of them gets it, in the model and on the kernel."""

import errno
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

WITNESSES = (
    # -- mmap
    Witness("mmap: length 0", errno.EINVAL, (call("mmap", AT, 0, RW, FIXED, 0),)),
    Witness("mmap: the length rounds up to nothing", errno.ENOMEM, (call("mmap", 0, (1 << 64) - 1, RW, 0x22, 0),)),
    Witness("mmap: the offset overflows", errno.EOVERFLOW, (of_file(REGULAR, offset=(1 << 64) - PAGE),)),
    Witness("mmap: the offset is not aligned", errno.EINVAL, (of_file(REGULAR, offset=1),)),
    Witness("mmap: a fixed address is not aligned", errno.EINVAL, (mapped(AT + 1),)),
    Witness("mmap: beyond the end of user space", errno.ENOMEM, (mapped(TASK_SIZE - PAGE, 2),)),
    Witness("mmap: a fixed address that looks like an error", errno.EPERM, (mapped((1 << 64) - 1, 1),)),
    Witness("mmap: neither shared nor private", errno.EINVAL, (mapped(flags=0x30),)),
    Witness("mmap: MAP_FIXED_NOREPLACE over something", errno.EEXIST, (mapped(), mapped(AT - PAGE, flags=0x100022))),
    Witness("mmap: MAP_FIXED_NOREPLACE beside something", 0, (mapped(), mapped(AT - 4 * PAGE, flags=0x100022))),
    Witness("mmap: writing to a read-only file, shared", errno.EACCES, (of_file(READ_ONLY, prot=RW),)),
    Witness("mmap: an unknown flag with MAP_SHARED_VALIDATE", errno.EOPNOTSUPP, (of_file(MEMFD, flags=0x400013),)),
    Witness("mmap: MAP_SYNC on a file that cannot", errno.EOPNOTSUPP, (of_file(REGULAR, flags=0x80013),)),
    Witness("mmap: a shared stack", errno.EINVAL, (mapped(flags=SHARED | f.MAP_GROWSDOWN),)),
    Witness("mmap: a droppable stack", errno.EINVAL, (mapped(flags=0x138),)),
    Witness("mmap: droppable and locked", errno.EINVAL, (mapped(flags=0x2038),)),
    Witness("mmap: huge pages of no size", errno.EINVAL, (mapped(flags=FIXED | f.MAP_HUGETLB | 13 << 26),)),
    Witness("mmap: the pool of huge pages is empty", errno.ENOMEM, (mapped(flags=FIXED | f.MAP_HUGETLB),)),
    Witness("mmap: MAP_HUGETLB on a file of small pages", errno.EINVAL, (of_file(MEMFD, flags=0x40011),)),
    Witness("mmap: RLIMIT_AS", errno.ENOMEM, limited(f.RLIMIT_AS, 100, mapped())),
    Witness("mmap: RLIMIT_DATA", errno.ENOMEM, limited(f.RLIMIT_DATA, 100, mapped())),
    Witness("mmap: RLIMIT_DATA is not for shared memory", 0, limited(f.RLIMIT_DATA, 100, mapped(flags=SHARED))),
    Witness("mmap: more than there is", errno.ENOMEM, (call("mmap", 0, 1 << 46, RW, 0x22, 0),)),
    Witness("mmap: more than there is, unreserved", 0, (call("mmap", 0, 1 << 46, RW, 0x4022, 0),)),
    Witness("mmap: more than there is, shared", errno.ENOMEM, (call("mmap", 0, 1 << 46, 1, 0x21, 0),)),
    Witness("mmap: more than there is, shared and unreserved", 0, (call("mmap", 0, 1 << 46, RW, 0x4021, 0),)),
    Witness(
        "mmap: memory-deny-write-execute", errno.EACCES, (call("prctl", f.PR_SET_MDWE, 1, 0, 0, 0), mapped(prot=7))
    ),
    Witness("mmap: over sealed memory", errno.EPERM, (*SEALED, mapped())),
    Witness(
        "mmap: writing to a memfd that is sealed against it",
        errno.EPERM,
        (call("memfd", 2, 8, file=MADE), call("seal", f.F_SEAL_WRITE, file=MADE), of_file(MADE, prot=RW)),
    ),
    Witness(
        "mmap: private secret memory", errno.EINVAL, (call("memfd_secret", 8, file=MADE), of_file(MADE, flags=0x12))
    ),
    Witness("mmap: page 0 without CAP_SYS_RAWIO", errno.EPERM, unprivileged(mapped(0, 1))),
    Witness("mmap: page 0 with it", 0, (mapped(0, 1),)),
    Witness(
        "mmap: MAP_LOCKED beyond RLIMIT_MEMLOCK",
        errno.EAGAIN,
        unprivileged(*limited(f.RLIMIT_MEMLOCK, 2, mapped(flags=FIXED | f.MAP_LOCKED))),
    ),
    Witness(
        "mmap: MAP_LOCKED without any right to lock",
        errno.EPERM,
        unprivileged(*limited(f.RLIMIT_MEMLOCK, 0, mapped(flags=FIXED | f.MAP_LOCKED))),
    ),
    Witness(
        "mmap: beyond RLIMIT_MEMLOCK after mlockall(MCL_FUTURE)",
        errno.EAGAIN,
        unprivileged(call("mlockall", 2), *limited(f.RLIMIT_MEMLOCK, 2, mapped())),
    ),
    Witness(
        "mmap: refused when what was there is gone", errno.ENOMEM, (mapped(), call("mmap", AT, 1 << 46, RW, SHARED, 0))
    ),
    Witness(
        "mmap: over something, refused by its driver",
        errno.EINVAL,
        (call("memfd_secret", 8, file=MADE), mapped(), of_file(MADE, flags=0x12)),
    ),
    # -- munmap
    Witness("munmap: length 0", errno.EINVAL, (call("munmap", AT, 0),)),
    Witness("munmap: not aligned", errno.EINVAL, (call("munmap", AT + 1, PAGE),)),
    Witness("munmap: beyond user space", errno.EINVAL, (call("munmap", TASK_SIZE, PAGE),)),
    Witness("munmap: holes are fine", 0, (*HOLE, call("munmap", AT, 4 * PAGE))),
    Witness("munmap: sealed", errno.EPERM, (*SEALED, call("munmap", AT, 4 * PAGE))),
    Witness("munmap: a part of a huge page", errno.EINVAL, (HUGE_PAGES, call("munmap", AT, PAGE))),
    Witness("munmap: the vdso cannot be split", errno.EINVAL, (call("munmap", VDSO, PAGE),)),
    # -- brk answers the break that is in force, so there is no errno to see
    Witness("brk: RLIMIT_DATA", errno.ENOMEM, limited(f.RLIMIT_DATA, 0, call("brk", 0x800000))),
    Witness("brk: RLIMIT_AS", errno.ENOMEM, limited(f.RLIMIT_AS, 100, call("brk", 0x800000))),
    Witness("brk: something is in the way", errno.ENOMEM, (mapped(0x760000, 1), call("brk", 0x760000))),
    Witness("brk: more than there is", errno.ENOMEM, (call("brk", 1 << 46),)),
    Witness(
        "brk: RLIMIT_MEMLOCK after mlockall(MCL_FUTURE)",
        errno.EAGAIN,
        unprivileged(call("mlockall", 2), *limited(f.RLIMIT_MEMLOCK, 2, call("brk", 0x800000))),
    ),
    Witness(
        "brk: sealed", errno.EPERM, (call("brk", 0x760000), call("mseal", 0x75B000, PAGE, 0), call("brk", 0x75B000))
    ),
    # -- the stack
    Witness("fault: nothing is mapped", errno.EFAULT, (call("write", AT),)),
    Witness("fault: no permission", errno.EFAULT, (mapped(prot=1), call("write", AT))),
    Witness("fault: below a mapping that does not grow", errno.EFAULT, (mapped(), call("write", AT - 8))),
    Witness("stack: it grows", 0, (mapped(flags=0x132), call("write", AT - 8))),
    Witness(
        "stack: accessible memory within 256 pages",
        errno.ENOMEM,
        (mapped(AT - 100 * PAGE, 1), mapped(flags=0x132), call("write", AT - 8)),
    ),
    Witness(
        "stack: PROT_NONE memory is no hindrance",
        0,
        (mapped(AT - 100 * PAGE, 1, prot=0), mapped(flags=0x132), call("write", AT - 8)),
    ),
    Witness(
        "stack: RLIMIT_STACK", errno.ENOMEM, limited(f.RLIMIT_STACK, 4, mapped(flags=0x132), call("write", AT - 8))
    ),
    Witness("stack: RLIMIT_AS", errno.ENOMEM, limited(f.RLIMIT_AS, 100, mapped(flags=0x132), call("write", AT - 8))),
    Witness(
        "stack: RLIMIT_MEMLOCK",
        errno.ENOMEM,
        unprivileged(
            *limited(f.RLIMIT_MEMLOCK, 4, mapped(flags=0x132), call("mlock", AT, 4 * PAGE), call("write", AT - 8))
        ),
    ),
    Witness("stack: below mmap_min_addr", errno.EPERM, (mapped(0x10000, 1, flags=0x132), call("write", 0xFFF8))),
    # -- mprotect
    Witness("mprotect: not aligned", errno.EINVAL, (call("mprotect", AT + 1, PAGE, 1),)),
    Witness("mprotect: wraps", errno.ENOMEM, (call("mprotect", TASK_SIZE, (1 << 64) - PAGE, 1),)),
    Witness("mprotect: unknown permissions", errno.EINVAL, (mapped(), call("mprotect", AT, PAGE, 0x10))),
    Witness("mprotect: grows up and down", errno.EINVAL, (mapped(), call("mprotect", AT, PAGE, 0x03000001))),
    Witness(
        "mprotect: PROT_GROWSDOWN on what does not", errno.EINVAL, (mapped(), call("mprotect", AT, PAGE, 0x01000001))
    ),
    Witness("mprotect: a hole", errno.ENOMEM, (*HOLE, call("mprotect", AT, 4 * PAGE, 1))),
    Witness("mprotect: what may not be written to", errno.EACCES, (of_file(READ_ONLY), call("mprotect", AT, PAGE, RW))),
    Witness("mprotect: sealed", errno.EPERM, (*SEALED, call("mprotect", AT, 4 * PAGE, 1))),
    Witness(
        "mprotect: memory-deny-write-execute",
        errno.EACCES,
        (mapped(), call("prctl", f.PR_SET_MDWE, 1, 0, 0, 0), call("mprotect", AT, PAGE, 5)),
    ),
    Witness("mprotect: the vdso cannot be split", errno.EINVAL, (call("mprotect", VDSO, PAGE, 1),)),
    Witness("pkey_mprotect: no such key", errno.EINVAL, (mapped(), call("pkey_mprotect", AT, PAGE, 1, 5))),
    Witness("pkey_free: no such key", errno.EINVAL, (call("pkey_free", 5),)),
    Witness("pkey_alloc: flags", errno.EINVAL, (call("pkey_alloc", 1, 0),)),
    # -- mremap
    Witness("mremap: unknown flags", errno.EINVAL, (mapped(), call("mremap", AT, PAGE, PAGE, 8, 0))),
    Witness("mremap: not aligned", errno.EINVAL, (mapped(), call("mremap", AT + 1, PAGE, PAGE, 0, 0))),
    Witness("mremap: new length 0", errno.EINVAL, (mapped(), call("mremap", AT, PAGE, 0, 0, 0))),
    Witness(
        "mremap: longer than user space", errno.EINVAL, (mapped(), call("mremap", AT, PAGE, TASK_SIZE + PAGE, 1, 0))
    ),
    Witness("mremap: to beyond user space", errno.EINVAL, (mapped(), call("mremap", AT, PAGE, PAGE, TO, TASK_SIZE))),
    Witness(
        "mremap: to what is not aligned", errno.EINVAL, (mapped(), call("mremap", AT, PAGE, PAGE, TO, AT + 0x8001))
    ),
    Witness("mremap: MREMAP_FIXED without MAYMOVE", errno.EINVAL, (mapped(), call("mremap", AT, PAGE, PAGE, 2, 0))),
    Witness("mremap: DONTUNMAP resizes", errno.EINVAL, (mapped(), call("mremap", AT, PAGE, 2 * PAGE, 5, 0))),
    Witness("mremap: onto itself", errno.EINVAL, (mapped(), call("mremap", AT, 2 * PAGE, 2 * PAGE, TO, AT + PAGE))),
    Witness("mremap: nothing is mapped", errno.EFAULT, (call("mremap", AT, PAGE, PAGE, 0, 0),)),
    Witness("mremap: sealed", errno.EPERM, (*SEALED, call("mremap", AT + PAGE, PAGE, 2 * PAGE, MOVE, 0))),
    Witness("mremap: a part of a huge page", errno.EINVAL, (HUGE_PAGES, call("mremap", AT, PAGE, 4 * HUGE, MOVE, 0))),
    Witness("mremap: old length 0 of private memory", errno.EINVAL, (mapped(), call("mremap", AT, 0, PAGE, MOVE, 0))),
    Witness("mremap: old length 0 duplicates", 0, (mapped(flags=SHARED), call("mremap", AT, 0, PAGE, MOVE, 0))),
    Witness(
        "mremap: old length 0 without MAYMOVE", errno.ENOMEM, (mapped(flags=SHARED), call("mremap", AT, 0, PAGE, 0, 0))
    ),
    Witness("mremap: beyond its VMA", errno.EFAULT, (mapped(), call("mremap", AT, 5 * PAGE, 6 * PAGE, MOVE, 0))),
    Witness("mremap: special memory does not grow", errno.EFAULT, (call("mremap", VVAR, 4 * PAGE, 8 * PAGE, MOVE, 0),)),
    Witness("mremap: no room, may not move", errno.ENOMEM, (mapped(), call("mremap", AT, PAGE, 2 * PAGE, 0, 0))),
    Witness("mremap: a gap at the start", errno.EFAULT, (*HOLE, call("mremap", AT + PAGE, 0x3000, 0x3000, TO, 2 * AT))),
    Witness(
        "mremap: several, resized",
        errno.EFAULT,
        (mapped(), mapped(AT + 4 * PAGE, prot=1), call("mremap", AT, 8 * PAGE, 9 * PAGE, TO, 2 * AT)),
    ),
    Witness(
        "mremap: several", 0, (mapped(), mapped(AT + 4 * PAGE, prot=1), call("mremap", AT, 0x8000, 0x8000, TO, 2 * AT))
    ),
    Witness(
        "mremap: RLIMIT_MEMLOCK",
        errno.EAGAIN,
        unprivileged(
            *limited(
                f.RLIMIT_MEMLOCK, 4, mapped(), call("mlock", AT, 4 * PAGE), call("mremap", AT, 0x4000, 0x8000, 1, 0)
            )
        ),
    ),
    Witness(
        "mremap: RLIMIT_AS", errno.ENOMEM, limited(f.RLIMIT_AS, 100, mapped(), call("mremap", AT, 0x4000, 0x8000, 1, 0))
    ),
    Witness("mremap: more than there is", errno.ENOMEM, (mapped(), call("mremap", AT, PAGE, 1 << 46, MOVE, 0))),
    Witness("mremap: DONTUNMAP without MAYMOVE", errno.EINVAL, (mapped(), call("mremap", AT, PAGE, PAGE, 4, 0))),
    Witness("mremap: DONTUNMAP of special memory", errno.EINVAL, (call("mremap", VVAR, 4 * PAGE, 4 * PAGE, 5, 0),)),
    Witness(
        "mremap: RLIMIT_DATA",
        errno.ENOMEM,
        limited(f.RLIMIT_DATA, 100, mapped(), call("mremap", AT, PAGE, 2 * PAGE, 1, 0)),
    ),
    # -- madvise
    Witness("madvise: unknown", errno.EINVAL, (mapped(), call("madvise", AT, PAGE, 99))),
    Witness("madvise: not aligned", errno.EINVAL, (mapped(), call("madvise", AT + 1, PAGE, 4))),
    Witness(
        "madvise: a hole, after the rest is done", errno.ENOMEM, (*HOLE, call("madvise", AT, 4 * PAGE, f.MADV_DONTDUMP))
    ),
    Witness("madvise: DOFORK on device memory", errno.EINVAL, (call("madvise", VVAR, PAGE, f.MADV_DOFORK),)),
    Witness("madvise: WIPEONFORK on a file", errno.EINVAL, (of_file(MEMFD), call("madvise", AT, PAGE, 18))),
    Witness(
        "madvise: WIPEONFORK on shared memory", errno.EINVAL, (mapped(flags=SHARED), call("madvise", AT, PAGE, 18))
    ),
    Witness("madvise: KEEPONFORK on droppable memory", errno.EINVAL, (DROPPABLE, call("madvise", AT, PAGE, 19))),
    Witness("madvise: DODUMP on droppable memory", errno.EINVAL, (DROPPABLE, call("madvise", AT, PAGE, 17))),
    Witness(
        "madvise: DONTNEED on locked memory",
        errno.EINVAL,
        (mapped(), call("mlock", AT, PAGE), call("madvise", AT, PAGE, 4)),
    ),
    Witness("madvise: FREE on a file", errno.EINVAL, (of_file(MEMFD, flags=0x12), call("madvise", AT, PAGE, 8))),
    Witness(
        "madvise: guards in locked memory",
        errno.EINVAL,
        (mapped(), call("mlock", AT, PAGE), call("madvise", AT, PAGE, 102)),
    ),
    Witness("madvise: guards in huge pages", errno.EINVAL, (HUGE_PAGES, call("madvise", AT, HUGE, 102))),
    Witness("madvise: guards in special memory", errno.EINVAL, (call("madvise", VVAR, PAGE, 102),)),
    Witness(
        "madvise: a sealed memory that cannot be written to is not discarded",
        errno.EPERM,
        (mapped(prot=1), call("mseal", AT, PAGE, 0), call("madvise", AT, PAGE, 4)),
    ),
    Witness(
        "madvise: POPULATE_WRITE of read-only memory", errno.EINVAL, (mapped(prot=1), call("madvise", AT, PAGE, 23))
    ),
    Witness("madvise: POPULATE_READ of a hole", errno.ENOMEM, (*HOLE, call("madvise", AT, 4 * PAGE, 22))),
    Witness(
        "madvise: POPULATE_READ beyond a file",
        errno.EFAULT,
        (of_file(SMALL_MEMFD, offset=20 * PAGE, pages=8), call("madvise", AT, 8 * PAGE, 22)),
    ),
    Witness("process_madvise: flags", errno.EINVAL, (mapped(), call("process_madvise", 4, 1, AT, PAGE))),
    Witness("process_madvise: not user space", errno.EFAULT, (call("process_madvise", 4, 0, TASK_SIZE, PAGE),)),
    # What went well before a refusal is the result, so here as well there is no errno to see.
    Witness(
        "process_madvise: what went well counts, though the next range has a hole",
        errno.ENOMEM,
        (*HOLE, call("process_madvise", 20, 0, AT, PAGE, AT, 4 * PAGE)),
    ),
    Witness(
        "process_madvise: a hole in the first range", errno.ENOMEM, (*HOLE, call("process_madvise", 20, 0, AT, 0x4000))
    ),
    Witness(
        "process_madvise: of another process",
        0,
        (mapped(), Op("fork"), call("process_madvise", f.MADV_COLD, 0, AT, PAGE, file=1)),
    ),
    Witness(
        "process_madvise: a part of another process",
        errno.ENOMEM,
        (*HOLE, Op("fork"), call("process_madvise", f.MADV_COLD, 0, AT, PAGE, AT, 0x4000, file=1)),
    ),
    Witness(
        "process_madvise: not this advice about another process",
        errno.EINVAL,
        (mapped(), Op("fork"), call("process_madvise", f.MADV_DONTNEED, 0, AT, PAGE, file=1)),
    ),
    Witness(
        "process_madvise: of another process without CAP_SYS_NICE",
        errno.EPERM,
        unprivileged(mapped(), Op("fork"), call("process_madvise", f.MADV_COLD, 0, AT, PAGE, file=1)),
    ),
    Witness(
        "process_madvise: of one that has more capabilities",
        errno.EACCES,
        (
            mapped(),
            Op("fork"),
            call("capset", LOOKING | 1 << f.CAP_SYS_RAWIO),
            call("process_madvise", f.MADV_DONTNEED, 0, AT, PAGE, file=1),
        ),
    ),
    Witness(
        "process_madvise: of one that has as many capabilities, without CAP_SYS_PTRACE and the like",
        0,
        (
            mapped(),
            Op("fork"),
            Op("capset", (LOOKING | 1 << f.CAP_SYS_RAWIO,), 1),
            call("capset", LOOKING | 1 << f.CAP_SYS_RAWIO),
            call("process_madvise", f.MADV_COLD, 0, AT, PAGE, file=1),
        ),
    ),
    # -- locks
    Witness("mlock: a hole", errno.ENOMEM, (*HOLE, call("mlock", AT, 4 * PAGE))),
    Witness("mlock: wraps", errno.EINVAL, (call("mlock", (1 << 64) - PAGE, 2 * PAGE),)),
    Witness("mlock: no access", errno.ENOMEM, (mapped(prot=0), call("mlock", AT, PAGE))),
    Witness("mlock2: unknown flags", errno.EINVAL, (mapped(), call("mlock2", AT, PAGE, 2))),
    Witness(
        "mlock: no right at all",
        errno.EPERM,
        unprivileged(*limited(f.RLIMIT_MEMLOCK, 0, mapped(), call("mlock", AT, PAGE))),
    ),
    Witness(
        "mlock: RLIMIT_MEMLOCK",
        errno.ENOMEM,
        unprivileged(*limited(f.RLIMIT_MEMLOCK, 2, mapped(), call("mlock", AT, 0x3000))),
    ),
    Witness(
        "mlock: what is locked is not counted twice",
        0,
        unprivileged(*limited(f.RLIMIT_MEMLOCK, 2, mapped(), call("mlock", AT, 0x2000), call("mlock", AT, 0x2000))),
    ),
    Witness("munlock: a hole", errno.ENOMEM, (*HOLE, call("munlock", AT, 4 * PAGE))),
    Witness("mlockall: unknown flags", errno.EINVAL, (call("mlockall", 8),)),
    Witness("mlockall: ONFAULT alone", errno.EINVAL, (call("mlockall", 4),)),
    Witness("mlockall: RLIMIT_MEMLOCK", errno.ENOMEM, unprivileged(*limited(f.RLIMIT_MEMLOCK, 2, call("mlockall", 1)))),
    Witness("mlockall: no right at all", errno.EPERM, unprivileged(*limited(f.RLIMIT_MEMLOCK, 0, call("mlockall", 1)))),
    # -- policies
    Witness(
        "mbind: secret memory cannot be moved",
        errno.EIO,
        (*SECRET_PAGES, call("write", AT), call("mbind", AT, PAGE, 1, 0, 3)),
        pages=True,
    ),
    Witness(
        "mbind: secret memory that is not there",
        0,
        (*SECRET_PAGES, call("mbind", AT, PAGE, 1, 0, 3)),
        pages=True,
    ),
    Witness("mbind: a hole", errno.EFAULT, (*HOLE, call("mbind", AT, 4 * PAGE, 2, 1, 0))),
    Witness("mbind: a hole is fine for the default", 0, (*HOLE, call("mbind", AT, 4 * PAGE, 0, 0, 0))),
    Witness("mbind: not aligned", errno.EINVAL, (mapped(), call("mbind", AT + 1, PAGE, 2, 1, 0))),
    Witness("mbind: unknown mode", errno.EINVAL, (mapped(), call("mbind", AT, PAGE, 50, 1, 0))),
    Witness("mbind: unknown flags", errno.EINVAL, (mapped(), call("mbind", AT, PAGE, 2, 1, 1 << 6))),
    Witness(
        "mbind: a page on another node",
        errno.EIO,
        (mapped(), call("write", AT), call("mbind", AT, PAGE, 4, 0, 1)),
        pages=True,
    ),
    Witness(
        "mbind: a page on another node, and a hole behind it",
        errno.EFAULT,
        (*HOLE, call("write", AT), call("mbind", AT, 4 * PAGE, 4, 0, 1)),
        pages=True,
    ),
    Witness(
        "mbind: a page on another node, and a hole further on",
        errno.EIO,
        (mapped(), mapped(AT + 4 * PAGE, prot=1), call("write", AT), call("mbind", AT, 10 * PAGE, 4, 0, 1)),
        pages=True,
    ),
    Witness(
        "mbind: a page that may move", 0, (mapped(), call("write", AT), call("mbind", AT, PAGE, 4, 0, 2)), pages=True
    ),
    Witness("mbind: MOVE_ALL", 0, (mapped(), call("mbind", AT, PAGE, 2, 1, 4))),
    Witness(
        "mbind: MOVE_ALL without CAP_SYS_NICE",
        errno.EPERM,
        unprivileged(mapped(), call("mbind", AT + 1, PAGE, 2, 1, 4)),
    ),
    Witness("mbind: no nodes", errno.EINVAL, (mapped(), call("mbind", AT, PAGE, 2, 0, 0))),
    Witness("set_mempolicy: no nodes", errno.EINVAL, (call("set_mempolicy", 2, 0),)),
    Witness(
        "set_mempolicy_home_node: no policy", errno.ENOENT, (mapped(), call("set_mempolicy_home_node", AT, PAGE, 0, 0))
    ),
    Witness(
        "set_mempolicy_home_node: no such node",
        errno.EINVAL,
        (mapped(), call("set_mempolicy_home_node", AT, PAGE, 9, 0)),
    ),
    Witness(
        "set_mempolicy_home_node: of another mode",
        errno.EOPNOTSUPP,
        (mapped(), call("mbind", AT, PAGE, 3, 1, 0), call("set_mempolicy_home_node", AT, PAGE, 0, 0)),
    ),
    Witness("get_mempolicy: nothing is mapped", errno.EFAULT, (call("get_mempolicy", AT, 2),)),
    Witness("get_mempolicy: an address for nothing", errno.EINVAL, (call("get_mempolicy", AT, 0),)),
    Witness("get_mempolicy: no next node", errno.EINVAL, (call("get_mempolicy", 0, 1),)),
    Witness("get_mempolicy: the next node", 0, (call("set_mempolicy", 3, 1), call("get_mempolicy", 0, 1))),
    Witness("get_mempolicy: the node of a page", 0, (mapped(), call("get_mempolicy", AT, 3))),
    Witness(
        "get_mempolicy: the node of a page that is only written to",
        0,
        (mapped(prot=2), call("write", AT), call("get_mempolicy", AT, 3)),
        pages=True,
    ),
    Witness("get_mempolicy: no page may be there", errno.EFAULT, (mapped(prot=0), call("get_mempolicy", AT, 3))),
    # -- seals
    Witness("mseal: flags", errno.EINVAL, (mapped(), call("mseal", AT, PAGE, 1))),
    Witness("mseal: not aligned", errno.EINVAL, (mapped(), call("mseal", AT + 1, PAGE, 0))),
    Witness("mseal: a hole", errno.ENOMEM, (*HOLE, call("mseal", AT, 4 * PAGE, 0))),
    Witness("mseal: twice", 0, (*SEALED, call("mseal", AT, 4 * PAGE, 0))),
    Witness(
        "seals: writable mappings are there",
        errno.EBUSY,
        (call("memfd", 2, 8, file=MADE), of_file(MADE), call("seal", f.F_SEAL_WRITE, file=MADE)),
    ),
    Witness("seals: none may be added", errno.EPERM, (call("memfd", 0, 8, file=MADE), call("seal", 2, file=MADE))),
    Witness("seals: unknown", errno.EINVAL, (call("memfd", 2, 8, file=MADE), call("seal", 64, file=MADE))),
    # -- msync, mincore
    Witness("msync: unknown flags", errno.EINVAL, (mapped(), call("msync", AT, PAGE, 8))),
    Witness("msync: two kinds", errno.EINVAL, (mapped(), call("msync", AT, PAGE, 5))),
    Witness("msync: a hole", errno.ENOMEM, (*HOLE, call("msync", AT, 4 * PAGE, 1))),
    Witness("msync: locked", errno.EBUSY, (mapped(), call("mlock", AT, PAGE), call("msync", AT, PAGE, 2))),
    Witness("mincore: not aligned", errno.EINVAL, (mapped(), call("mincore", AT + 1, PAGE))),
    Witness("mincore: a hole", errno.ENOMEM, (*HOLE, call("mincore", AT, 4 * PAGE))),
    # -- System V shared memory
    Witness("shmat: not aligned", errno.EINVAL, (call("shmat", AT + 8, 0, file=0),)),
    Witness("shmat: something is there", errno.EINVAL, (mapped(), call("shmat", AT, 0, file=0))),
    Witness("shmat: SHM_REMAP without an address", errno.EINVAL, (call("shmat", 0, f.SHM_REMAP, file=0),)),
    Witness("shmdt: nothing is attached", errno.EINVAL, (mapped(), call("shmdt", AT))),
    Witness("shmget: no bytes", errno.EINVAL, (call("shmget", 0, 0, NEW, file=MADE),)),
    Witness("shmget: more than there is", errno.ENOMEM, (call("shmget", 0, 1 << 46, NEW, file=MADE),)),
    Witness("shmget: more than there is, unreserved", 0, (call("shmget", 0, 1 << 46, NEW | 0o10000, file=MADE),)),
    Witness("shmget: no such size of huge pages", errno.EINVAL, (huge_segment(13 << 26),)),
    Witness("shmget: the pool of huge pages is empty", errno.ENOMEM, (huge_segment(0),)),
    Witness("shmget: huge pages, unreserved", 0, (huge_segment(0o10000), call("shmctl", 2, 1, file=MADE))),
    Witness("shmat: where a huge page begins", 0, (huge_segment(0o10000), call("shmat", AT, 0, file=MADE))),
    Witness("shmat: within a huge page", errno.EINVAL, (huge_segment(0o10000), call("shmat", AT + PAGE, 0, file=MADE))),
    Witness(
        "mprotect: a part of a segment of huge pages",
        errno.EINVAL,
        (huge_segment(0o10000), call("shmat", AT, 0, file=MADE), call("mprotect", AT, PAGE, 1)),
    ),
    Witness(
        "madvise: the pool of huge pages is empty",
        errno.EFAULT,
        (huge_segment(0o10000), call("shmat", AT, 0, file=MADE), call("madvise", AT, HUGE, f.MADV_POPULATE_WRITE)),
    ),
    Witness(
        "shmdt: a segment of huge pages", 0, (huge_segment(0o10000), call("shmat", AT, 0, file=MADE), call("shmdt", AT))
    ),
    Witness(
        "mremap: several VMAs, the first a segment of huge pages",
        errno.EINVAL,
        (
            huge_segment(0o10000),
            call("shmat", AT, 0, file=MADE),
            call("mremap", AT + HUGE - PAGE, 4 * PAGE, 4 * PAGE, 7, 0),
        ),
    ),
    Witness("shmctl: huge pages are locked anyway", 0, (huge_segment(0o10000), call("shmctl", 11, 0, file=MADE))),
    Witness(
        "shmctl: the mode does not say so",
        0,
        (huge_segment(0o10000), call("shmctl", 11, 0, file=MADE), call("shmctl", 2, 2, file=MADE)),
    ),
    Witness("shmget: no such key", errno.ENOENT, (call("shmget", 1, PAGE, 0o600, file=MADE),)),
    Witness("shmget: the key", 0, (KEYED, call("shmget", 1, PAGE, 0o600, file=MADE + 1))),
    Witness("shmget: the key is taken", errno.EEXIST, (KEYED, call("shmget", 1, PAGE, NEW | 0o2000, file=MADE + 1))),
    Witness("shmget: it is smaller", errno.EINVAL, (KEYED, call("shmget", 1, 4 * PAGE, NEW, file=MADE + 1))),
    Witness(
        "shmget: its mode does not permit it",
        errno.EACCES,
        unprivileged(KEYED, call("shmctl", 1, 0o400, file=MADE), call("shmget", 1, PAGE, 0o600, file=MADE + 1)),
    ),
    Witness(
        "shmat: its mode does not permit it",
        errno.EACCES,
        unprivileged(call("shmctl", 1, 0o400, file=0), call("shmat", 0, 0, file=0)),
    ),
    Witness(
        "shmat: its mode permits reading",
        0,
        unprivileged(call("shmctl", 1, 0o400, file=0), call("shmat", 0, f.SHM_RDONLY, file=0)),
    ),
    Witness("shmat: to execute it", errno.EACCES, unprivileged(call("shmat", 0, f.SHM_EXEC, file=0))),
    Witness("shmat: a segment that is gone", errno.EINVAL, (call("shmctl", 0, 0, file=0), call("shmat", 0, 0, file=0))),
    Witness("shmat: one that is to go, and is attached", 0, (*TO_GO, call("shmat", 0, 0, file=0))),
    Witness(
        "shmat: one that went with its last attachment",
        errno.EINVAL,
        (*TO_GO, call("shmdt", AT), call("shmat", 0, 0, file=0)),
    ),
    Witness("shmat: over its own last attachment", 0, (*TO_GO, call("shmat", AT, f.SHM_REMAP, file=0))),
    Witness(
        "shmctl: how many VMAs have it", 0, (ATTACHED, call("munmap", AT + PAGE, PAGE), call("shmctl", 2, 0, file=0))
    ),
    Witness("shmctl: also those of a child", 0, (ATTACHED, Op("fork"), call("shmctl", 2, 0, file=0))),
    Witness(
        "shmctl: not those of one that has ended",
        0,
        (ATTACHED, Op("fork"), Op("exit", (), 1), call("shmctl", 2, 0, file=0)),
    ),
    Witness(
        "shmctl: nor those of one that executes",
        0,
        (ATTACHED, Op("fork"), Op("exec", (), 1), call("shmctl", 2, 0, file=0)),
    ),
    Witness("shmctl: its size", 0, (call("shmget", 0, 5, NEW, file=MADE), call("shmctl", 2, 1, file=MADE))),
    Witness("shmctl: its mode says that it is to go", 0, (*TO_GO, call("shmctl", 2, 2, file=0))),
    Witness(
        "shmctl: its mode says that it is locked", 0, (call("shmctl", 11, 0, file=0), call("shmctl", 2, 2, file=0))
    ),
    Witness(
        "shmctl: one that is to go has no key", errno.ENOENT, (*KEYED_TO_GO, call("shmget", 1, PAGE, 0, file=MADE + 1))
    ),
    Witness("shmctl: one that is gone", errno.EINVAL, (call("shmctl", 0, 0, file=0), call("shmctl", 2, 0, file=0))),
    Witness("shmctl: unknown command", errno.EINVAL, (call("shmctl", 99, 0, file=0),)),
    Witness(
        "shmctl: reading is not permitted",
        errno.EACCES,
        unprivileged(call("shmctl", 1, 0o200, file=0), call("shmctl", 2, 0, file=0)),
    ),
    Witness("shmctl: of any index", 0, unprivileged(call("shmctl", 1, 0o200, file=0), call("shmctl", 15, 0, file=0))),
    Witness(
        "shmctl: RLIMIT_MEMLOCK of the user",
        errno.ENOMEM,
        unprivileged(*limited(f.RLIMIT_MEMLOCK, 18, call("shmctl", 11, 0, file=1), call("shmctl", 11, 0, file=0))),
    ),
    Witness(
        "shmctl: what is locked is not counted twice",
        0,
        unprivileged(*limited(f.RLIMIT_MEMLOCK, 18, call("shmctl", 11, 0, file=1), call("shmctl", 11, 0, file=1))),
    ),
    Witness(
        "shmctl: what was locked is given back",
        0,
        unprivileged(
            *limited(
                f.RLIMIT_MEMLOCK,
                18,
                call("shmctl", 11, 0, file=1),
                call("shmctl", 12, 0, file=1),
                call("shmctl", 11, 0, file=0),
            )
        ),
    ),
    Witness(
        "shmctl: what was locked goes with its segment",
        0,
        unprivileged(
            *limited(
                f.RLIMIT_MEMLOCK,
                18,
                call("shmctl", 11, 0, file=1),
                call("shmctl", 0, 0, file=1),
                call("shmctl", 11, 0, file=0),
            )
        ),
    ),
    Witness(
        "shmctl: no right to lock at all",
        errno.EPERM,
        unprivileged(*limited(f.RLIMIT_MEMLOCK, 0, call("shmctl", 11, 0, file=0))),
    ),
    # -- userfaultfd
    Witness("register: nothing is mapped", errno.EINVAL, (UFFD, call("register", AT, PAGE, 1, file=MADE))),
    Witness("register: not aligned", errno.EINVAL, (UFFD, mapped(), call("register", AT + 1, PAGE, 1, file=MADE))),
    Witness("register: length 0", errno.EINVAL, (UFFD, mapped(), call("register", AT, 0, 1, file=MADE))),
    Witness("register: no mode", errno.EINVAL, (UFFD, mapped(), call("register", AT, PAGE, 0, file=MADE))),
    Witness("register: a file", errno.EINVAL, (UFFD, of_file(REGULAR), call("register", AT, PAGE, 1, file=MADE))),
    Witness(
        "register: minor faults of anonymous memory",
        errno.EINVAL,
        (UFFD, mapped(), call("register", AT, PAGE, 4, file=MADE)),
    ),
    Witness(
        "register: what may never be written to",
        errno.EPERM,
        (
            call("memfd", 2, 8, file=MADE + 1),
            call("seal", f.F_SEAL_WRITE, file=MADE + 1),
            of_file(MADE + 1),
            UFFD,
            call("register", AT, PAGE, 1, file=MADE),
        ),
    ),
    Witness(
        "register: another userfaultfd has it",
        errno.EBUSY,
        (
            UFFD,
            call("userfaultfd", file=MADE + 1),
            mapped(),
            call("register", AT, PAGE, 1, file=MADE),
            call("register", AT, PAGE, 1, file=MADE + 1),
        ),
    ),
    Witness("register: holes are fine", 0, (UFFD, *HOLE, call("register", AT, 4 * PAGE, 1, file=MADE))),
    Witness(
        "unregister: another userfaultfd has it",
        errno.EINVAL,
        (
            UFFD,
            call("userfaultfd", file=MADE + 1),
            mapped(),
            call("register", AT, PAGE, 1, file=MADE),
            call("unregister", AT, PAGE, file=MADE + 1),
        ),
    ),
    # -- prctl, limits, remap_file_pages
    Witness("prctl: MDWE stays", errno.EPERM, (call("prctl", 65, 1, 0, 0, 0), call("prctl", 65, 0, 0, 0, 0))),
    Witness("prctl: MDWE, unknown bits", errno.EINVAL, (call("prctl", 65, 4, 0, 0, 0),)),
    Witness("prctl: arguments that are none", errno.EINVAL, (call("prctl", 67, 1, 1, 0, 0),)),
    Witness("prctl: PR_SET_MM without CAP_SYS_RESOURCE", errno.EPERM, unprivileged(call("prctl", 35, 7, AT, 0, 0))),
    Witness("prctl: PR_SET_MM, an argument that is none", errno.EINVAL, (call("prctl", 35, 7, AT, 1, 0),)),
    Witness("prctl: PR_SET_MM_MAP, no such size", errno.EINVAL, (call("prctl", 35, 14, AT, 96, 0),)),
    Witness("layout: as it may be", 0, (laid_out(),)),
    Witness("layout: below mmap_min_addr", errno.EINVAL, (laid_out(arg_start=0x1000),)),
    Witness("layout: not in user space", errno.EINVAL, (laid_out(start_stack=TASK_SIZE),)),
    Witness("layout: no code", errno.EINVAL, (laid_out(end_code=AT),)),
    Witness("layout: data that end before they start", errno.EINVAL, (laid_out(end_data=AT),)),
    Witness("layout: a break below the heap", errno.EINVAL, (laid_out(brk=2 * AT - 1),)),
    Witness("layout: arguments that end before they start", errno.EINVAL, (laid_out(arg_end=AT),)),
    Witness("layout: an environment that ends before it starts", errno.EINVAL, (laid_out(env_end=AT),)),
    Witness("layout: RLIMIT_DATA", errno.EINVAL, limited(f.RLIMIT_DATA, 2, laid_out(brk=2 * AT + 2 * PAGE))),
    Witness("layout: RLIMIT_DATA, just", 0, limited(f.RLIMIT_DATA, 2, laid_out(brk=2 * AT + PAGE))),
    Witness("layout: no auxiliary vector of that size", errno.EINVAL, (laid_out(vector=0, size=16, file=0xFFFFFFFF),)),
    Witness("layout: nor of this one", errno.EINVAL, (laid_out(vector=AT, size=449, file=0xFFFFFFFF),)),
    Witness(
        "layout: another executable, which needs a capability",
        errno.EPERM,
        (call("capset", RESTORING), laid_out(vector=0, size=0, file=0)),
    ),
    Witness("layout: the heap is where it says", 0, (laid_out(), call("brk", 2 * AT + PAGE))),
    Witness("layout: not below it", errno.ENOMEM, (laid_out(), call("brk", 2 * AT - 1))),
    Witness(
        "layout: what is mapped there goes as the heap does",
        0,
        (mapped(2 * AT, 8, prot=1), laid_out(brk=2 * AT + 8 * PAGE), call("brk", 2 * AT + PAGE)),
    ),
    Witness(
        "layout: a break below which nothing is", errno.ENOMEM, (laid_out(brk=2 * AT + 0x8000), call("brk", 2 * AT))
    ),
    # -- execve: what lasts, and what is over
    Witness("execve: mlockall(MCL_FUTURE) is over", 0, (call("mlockall", 2), EXEC, mapped())),
    Witness(
        "execve: memory-deny-write-execute stays", errno.EACCES, (call("prctl", 65, 1, 0, 0, 0), EXEC, mapped(prot=7))
    ),
    Witness("execve: but not without inheritance", 0, (call("prctl", 65, 3, 0, 0, 0), EXEC, mapped(prot=7))),
    Witness(
        "execve: KSM may go on merging",
        0,
        (call("prctl", 67, 1, 0, 0, 0), EXEC, mapped(), call("prctl", 68, 0, 0, 0, 0)),
    ),
    Witness(
        "execve: no huge pages, as before",
        0,
        (call("prctl", 41, 1, 0, 0, 0), EXEC, mapped(), call("prctl", 42, 0, 0, 0, 0)),
    ),
    Witness(
        "execve: protection keys are gone",
        errno.EINVAL,
        (call("pkey_alloc", 0, 0), EXEC, mapped(), call("pkey_mprotect", AT, PAGE, 1, 1)),
    ),
    Witness(
        "execve: the policy of the task stays", 0, (call("set_mempolicy", 3, 1), EXEC, call("get_mempolicy", 0, 1))
    ),
    Witness(
        "execve: limits stay",
        errno.ENOMEM,
        (call("prlimit64", f.RLIMIT_STACK, 64 * PAGE), EXEC, mapped(pages=64, flags=0x132), call("write", AT - 8)),
    ),
    Witness("execve: seals are over, with what they seal", 0, (*SEALED, EXEC, mapped(), call("munmap", AT, 4 * PAGE))),
    Witness(
        "execve: nothing is registered", 0, (UFFD, mapped(), call("register", AT, PAGE, 1, file=MADE), EXEC, mapped())
    ),
    Witness("execve: the layout is the program's again", 0, (laid_out(), EXEC, call("brk", 0x760000))),
    Witness("remap_file_pages: private memory", errno.EINVAL, (mapped(), call("remap_file_pages", AT, PAGE, 0, 0, 0))),
    Witness(
        "remap_file_pages: permissions",
        errno.EINVAL,
        (mapped(flags=SHARED), call("remap_file_pages", AT, PAGE, 1, 0, 0)),
    ),
)

NOT_PROVOKED = {
    "ENOMEM because the kernel has no memory": "no fault injection here; the scenes fail each allocation in turn",
    "mmap EINVAL of the architecture": "x86-64 accepts all flags",
    "relocate_vma_down EFAULT and ENOMEM, insert_vm_struct ENOMEM": "they happen within execve",
    "EBADF for a name on a file": "the kernel here has no names of anonymous memory; PR_SET_VMA is EINVAL",
}
"""Answers that nothing here can provoke, and why."""
