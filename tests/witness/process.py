"""What is set for a process, userfaultfd, and what execve leaves of it all."""

import errno

from tests.witness.ground import (
    AT,
    EXEC,
    HOLE,
    HUGE,
    HUGE_PAGES,
    MADE,
    PAGE,
    REGULAR,
    RESTORING,
    SEALED,
    SHARED,
    TASK_SIZE,
    UFFD,
    Witness,
    call,
    laid_out,
    limited,
    mapped,
    of_file,
    unprivileged,
)
from vmalab import flags as f

PROCESS = (
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
    Witness(
        "register: a part of a huge page that another userfaultfd has",
        errno.EINVAL,
        (
            UFFD,
            call("userfaultfd", file=MADE + 1),
            HUGE_PAGES,
            call("register", AT, HUGE, 1, file=MADE),
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
