"""Advice, locks, seals, and what msync and mincore look at."""

import errno

from tests.witness.ground import (
    AT,
    DROPPABLE,
    HOLE,
    HUGE,
    HUGE_PAGES,
    LOOKING,
    MADE,
    MEMFD,
    PAGE,
    RW,
    SEALED,
    SHARED,
    SMALL_MEMFD,
    TASK_SIZE,
    VVAR,
    Witness,
    call,
    limited,
    mapped,
    of_file,
    unprivileged,
)
from vmalab import flags as f
from vmalab.fuzz.ops import Op

ADVICE = (
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
    Witness(
        "seals: a mapping that may still write throws nothing away",
        errno.EPERM,
        (
            call("memfd", 2, 8, file=MADE),
            of_file(MADE, prot=RW),
            call("write", AT),
            call("seal", f.F_SEAL_FUTURE_WRITE, file=MADE),
            call("madvise", AT, PAGE, f.MADV_REMOVE),
        ),
        pages=True,
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
)
