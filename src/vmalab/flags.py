"""The kernel's flag words as plain integers, and their decoding for people.

VM_ values are those of 6.18 on x86-64; the others are the stable user-space ABI.
"""

from typing import Final

# -- a VMA's flags (include/linux/mm.h) ---------------------------------------------------------

VM_NONE: Final = 0
VM_READ: Final = 0x1
VM_WRITE: Final = 0x2
VM_EXEC: Final = 0x4
VM_SHARED: Final = 0x8
VM_MAYREAD: Final = 0x10
VM_MAYWRITE: Final = 0x20
VM_MAYEXEC: Final = 0x40
VM_MAYSHARE: Final = 0x80
VM_GROWSDOWN: Final = 0x100
VM_UFFD_MISSING: Final = 0x200
VM_PFNMAP: Final = 0x400
VM_MAYBE_GUARD: Final = 0x800
VM_UFFD_WP: Final = 0x1000
VM_LOCKED: Final = 0x2000
VM_IO: Final = 0x4000
VM_SEQ_READ: Final = 0x8000
VM_RAND_READ: Final = 0x10000
VM_DONTCOPY: Final = 0x20000
VM_DONTEXPAND: Final = 0x40000
VM_LOCKONFAULT: Final = 0x80000
VM_ACCOUNT: Final = 0x100000
VM_NORESERVE: Final = 0x200000
VM_HUGETLB: Final = 0x400000
VM_SYNC: Final = 0x800000
VM_PAT: Final = 0x1000000
VM_WIPEONFORK: Final = 0x2000000
VM_DONTDUMP: Final = 0x4000000
VM_SOFTDIRTY: Final = 0x8000000
VM_MIXEDMAP: Final = 0x10000000
VM_HUGEPAGE: Final = 0x20000000
VM_NOHUGEPAGE: Final = 0x40000000
VM_MERGEABLE: Final = 0x80000000
VM_PKEY_SHIFT: Final = 32
VM_PKEY_MASK: Final = 0xF00000000
VM_SHADOW_STACK: Final = 0x2000000000
VM_ALLOW_ANY_UNCACHED: Final = 0x8000000000
VM_DROPPABLE: Final = 0x10000000000
VM_UFFD_MINOR: Final = 0x20000000000
VM_SEALED: Final = 0x40000000000

VM_ACCESS: Final = VM_READ | VM_WRITE | VM_EXEC
VM_MAYACCESS: Final = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
VM_SPECIAL: Final = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
"""A VMA with one of these is never merged with another by a change, and never locked."""
VM_LOCKED_MASK: Final = VM_LOCKED | VM_LOCKONFAULT
VM_UFFD: Final = VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR

# -- system-call arguments ----------------------------------------------------------------------

PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
PROT_EXEC: Final = 4
PROT_SEM: Final = 8
PROT_GROWSDOWN: Final = 0x01000000
PROT_GROWSUP: Final = 0x02000000

MAP_SHARED: Final = 1
MAP_PRIVATE: Final = 2
MAP_SHARED_VALIDATE: Final = 3
MAP_DROPPABLE: Final = 8
MAP_TYPE: Final = 0xF
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_32BIT: Final = 0x40
MAP_ABOVE4G: Final = 0x80
MAP_GROWSDOWN: Final = 0x100
MAP_DENYWRITE: Final = 0x800
MAP_EXECUTABLE: Final = 0x1000
MAP_LOCKED: Final = 0x2000
MAP_NORESERVE: Final = 0x4000
MAP_POPULATE: Final = 0x8000
MAP_NONBLOCK: Final = 0x10000
MAP_STACK: Final = 0x20000
MAP_HUGETLB: Final = 0x40000
MAP_SYNC: Final = 0x80000
MAP_FIXED_NOREPLACE: Final = 0x100000
MAP_UNINITIALIZED: Final = 0x4000000
MAP_HUGE_SHIFT: Final = 26
MAP_HUGE_MASK: Final = 0x3F

MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
MREMAP_DONTUNMAP: Final = 4

MLOCK_ONFAULT: Final = 1
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4

MADV_NORMAL: Final = 0
MADV_RANDOM: Final = 1
MADV_SEQUENTIAL: Final = 2
MADV_WILLNEED: Final = 3
MADV_DONTNEED: Final = 4
MADV_FREE: Final = 8
MADV_REMOVE: Final = 9
MADV_DONTFORK: Final = 10
MADV_DOFORK: Final = 11
MADV_MERGEABLE: Final = 12
MADV_UNMERGEABLE: Final = 13
MADV_HUGEPAGE: Final = 14
MADV_NOHUGEPAGE: Final = 15
MADV_DONTDUMP: Final = 16
MADV_DODUMP: Final = 17
MADV_WIPEONFORK: Final = 18
MADV_KEEPONFORK: Final = 19
MADV_COLD: Final = 20
MADV_PAGEOUT: Final = 21
MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23
MADV_DONTNEED_LOCKED: Final = 24
MADV_COLLAPSE: Final = 25
MADV_HWPOISON: Final = 100
MADV_SOFT_OFFLINE: Final = 101
MADV_GUARD_INSTALL: Final = 102
MADV_GUARD_REMOVE: Final = 103

CLONE_VM: Final = 0x100
CLONE_FILES: Final = 0x400
CLONE_VFORK: Final = 0x4000
CLONE_THREAD: Final = 0x10000
CLONE_NEWIPC: Final = 0x8000000

PR_SET_MM: Final = 35
PR_SET_THP_DISABLE: Final = 41
PR_GET_THP_DISABLE: Final = 42
THP_DISABLE_EXCEPT_ADVISED: Final = 2
PR_SET_MDWE: Final = 65
PR_GET_MDWE: Final = 66
PR_MDWE_REFUSE_EXEC_GAIN: Final = 1
PR_MDWE_NO_INHERIT: Final = 2
PR_SET_MEMORY_MERGE: Final = 67
PR_GET_MEMORY_MERGE: Final = 68
PR_SET_VMA: Final = 0x53564D41
PR_SET_VMA_ANON_NAME: Final = 0

RLIMIT_DATA: Final = 2
RLIMIT_STACK: Final = 3
RLIMIT_MEMLOCK: Final = 8
RLIMIT_AS: Final = 9
RLIM_INFINITY: Final = 0xFFFFFFFFFFFFFFFF

CAP_IPC_LOCK: Final = 14
CAP_IPC_OWNER: Final = 15
CAP_SYS_RAWIO: Final = 17
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21
CAP_SYS_NICE: Final = 23
CAP_SYS_RESOURCE: Final = 24
CAP_PERFMON: Final = 38
CAP_CHECKPOINT_RESTORE: Final = 40

CAPABILITIES: Final = {
    "ipc_lock": CAP_IPC_LOCK,
    "ipc_owner": CAP_IPC_OWNER,
    "sys_rawio": CAP_SYS_RAWIO,
    "sys_ptrace": CAP_SYS_PTRACE,
    "sys_admin": CAP_SYS_ADMIN,
    "sys_nice": CAP_SYS_NICE,
    "sys_resource": CAP_SYS_RESOURCE,
    "perfmon": CAP_PERFMON,
    "checkpoint_restore": CAP_CHECKPOINT_RESTORE,
}
"""The capabilities that memory calls ask for, as a trace names them, with their bits."""

UFFDIO_API: Final = 0xC018AA3F
UFFDIO_REGISTER: Final = 0xC020AA00
UFFDIO_UNREGISTER: Final = 0x8010AA01
UFFDIO_COPY: Final = 0xC028AA03
UFFDIO_ZEROPAGE: Final = 0xC020AA04
UFFDIO_WRITEPROTECT: Final = 0xC018AA06
UFFDIO_WAKE: Final = 0x8010AA02
UFFDIO_MOVE: Final = 0xC028AA05
UFFDIO_CONTINUE: Final = 0xC020AA07
UFFDIO_POISON: Final = 0xC020AA08
UFFD_FEATURE_EVENT_FORK: Final = 1 << 1
UFFD_FEATURE_EVENT_REMAP: Final = 1 << 2
UFFD_FEATURE_EVENT_REMOVE: Final = 1 << 3
UFFD_FEATURE_EVENT_UNMAP: Final = 1 << 6
UFFD_FEATURE_SIGBUS: Final = 1 << 7
UFFD_FEATURE_THREAD_ID: Final = 1 << 8
UFFD_FEATURE_EXACT_ADDRESS: Final = 1 << 11
UFFD_FEATURE_WP_UNPOPULATED: Final = 1 << 13
UFFD_FEATURE_WP_ASYNC: Final = 1 << 15
UFFD_FEATURES: Final = 0x1FFFF
"""All that 6.18 has."""
UFFD_API: Final = 0xAA
UFFD_EVENT_PAGEFAULT: Final = 0x12
UFFD_EVENT_FORK: Final = 0x13
UFFD_EVENT_REMAP: Final = 0x14
UFFD_EVENT_REMOVE: Final = 0x15
UFFD_EVENT_UNMAP: Final = 0x16
UFFD_PAGEFAULT_FLAG_WRITE: Final = 1
UFFD_PAGEFAULT_FLAG_WP: Final = 2
UFFD_PAGEFAULT_FLAG_MINOR: Final = 4

F_ADD_SEALS: Final = 1033
F_SEAL_SEAL: Final = 1
F_SEAL_SHRINK: Final = 2
F_SEAL_GROW: Final = 4
F_SEAL_WRITE: Final = 8
F_SEAL_FUTURE_WRITE: Final = 16
F_SEAL_EXEC: Final = 32
MFD_ALLOW_SEALING: Final = 2

MS_ASYNC: Final = 1
MS_INVALIDATE: Final = 2
MS_SYNC: Final = 4

SHM_RDONLY: Final = 0o10000
SHM_RND: Final = 0o20000
SHM_REMAP: Final = 0o40000
SHM_EXEC: Final = 0o100000

IPC_CREAT: Final = 0o1000
IPC_EXCL: Final = 0o2000
IPC_RMID: Final = 0
IPC_SET: Final = 1
IPC_STAT: Final = 2
IPC_INFO: Final = 3

ADDR_COMPAT_LAYOUT: Final = 0x0200000
READ_IMPLIES_EXEC: Final = 0x0400000

# -- for people ---------------------------------------------------------------------------------

MNEMONICS: Final[dict[str, int]] = {
    "rd": VM_READ,
    "wr": VM_WRITE,
    "ex": VM_EXEC,
    "sh": VM_SHARED,
    "mr": VM_MAYREAD,
    "mw": VM_MAYWRITE,
    "me": VM_MAYEXEC,
    "ms": VM_MAYSHARE,
    "gd": VM_GROWSDOWN,
    "pf": VM_PFNMAP,
    "gu": VM_MAYBE_GUARD,
    "lo": VM_LOCKED,
    "io": VM_IO,
    "sr": VM_SEQ_READ,
    "rr": VM_RAND_READ,
    "dc": VM_DONTCOPY,
    "de": VM_DONTEXPAND,
    "lf": VM_LOCKONFAULT,
    "ac": VM_ACCOUNT,
    "nr": VM_NORESERVE,
    "ht": VM_HUGETLB,
    "sf": VM_SYNC,
    "ar": VM_PAT,
    "wf": VM_WIPEONFORK,
    "dd": VM_DONTDUMP,
    "sd": VM_SOFTDIRTY,
    "mm": VM_MIXEDMAP,
    "hg": VM_HUGEPAGE,
    "nh": VM_NOHUGEPAGE,
    "mg": VM_MERGEABLE,
    "um": VM_UFFD_MISSING,
    "uw": VM_UFFD_WP,
    "ui": VM_UFFD_MINOR,
    "ss": VM_SHADOW_STACK,
    "dp": VM_DROPPABLE,
    "sl": VM_SEALED,
}
"""The two letters of a flag in the VmFlags line of /proc/PID/smaps (fs/proc/task_mmu.c)."""


def vm_flags_text(flags: int) -> str:
    """A VMA's flags as the VmFlags line of smaps shows them; the protection key is not among them."""
    return " ".join([letters for letters, bit in MNEMONICS.items() if flags & bit])


def vm_flags_from_text(text: str) -> int:
    """The flags that a VmFlags line names.  Raises ValueError for a mnemonic that is not known."""
    flags = 0
    for letters in text.split():
        bit = MNEMONICS.get(letters)
        if bit is None:
            raise ValueError(f"unknown VmFlags mnemonic {letters!r}")
        flags |= bit
    return flags


def permissions(flags: int) -> str:
    """The four letters of /proc/PID/maps, for instance ``rw-p``."""
    return (
        ("r" if flags & VM_READ else "-")
        + ("w" if flags & VM_WRITE else "-")
        + ("x" if flags & VM_EXEC else "-")
        + ("s" if flags & VM_MAYSHARE else "p")
    )
