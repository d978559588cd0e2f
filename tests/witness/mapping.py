"""Mapping, unmapping, the heap and the stack, protection and moving."""

import errno

from tests.witness.ground import (
    AT,
    FIXED,
    HOLE,
    HUGE,
    HUGE_PAGES,
    MADE,
    MEMFD,
    MOVE,
    PAGE,
    READ_ONLY,
    REGULAR,
    RW,
    SEALED,
    SHARED,
    TASK_SIZE,
    TO,
    VDSO,
    VVAR,
    Witness,
    call,
    limited,
    mapped,
    of_file,
    unprivileged,
)
from vmalab import flags as f

MAPPING = (
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
)
