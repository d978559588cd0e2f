"""Shared memory of System V."""

import errno

from tests.witness.ground import (
    AT,
    ATTACHED,
    HUGE,
    KEYED,
    KEYED_TO_GO,
    MADE,
    NEW,
    PAGE,
    TO_GO,
    Witness,
    call,
    huge_segment,
    limited,
    mapped,
    unprivileged,
)
from vmalab import flags as f
from vmalab.fuzz.ops import Op

SEGMENTS = (
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
        "remap_file_pages: over the last attachment of a segment that is to go",
        errno.EINVAL,
        (*TO_GO, call("remap_file_pages", AT, 3 * PAGE, 0, 0, 0)),
    ),
    Witness(
        "remap_file_pages: over a part of that attachment",
        0,
        (*TO_GO, call("remap_file_pages", AT, PAGE, 0, 0, 0)),
    ),
    Witness(
        "remap_file_pages: not from the start of a huge page",
        errno.EINVAL,
        (huge_segment(0o10000), call("shmat", AT, 0, file=MADE), call("remap_file_pages", AT, HUGE, 0, 1, 0)),
    ),
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
)
