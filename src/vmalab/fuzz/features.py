"""What a step exercises: its call, and every flag, advice or option by name."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Final

from vmalab import flags as f
from vmalab.fuzz.ops import REMOTE_MADVISE
from vmalab.reason import explain
from vmalab.syscalls import policy, shm, uffd
from vmalab.syscalls.madvise import REMOTE
from vmalab.trace.show import MAP_TYPES, flag_names


def _bits(prefix: str) -> list[tuple[int, str]]:
    """The flags of a prefix that have a bit."""
    return [(value, name) for value, name in flag_names(prefix) if value]


def _policy_bits(prefix: str) -> list[tuple[int, str]]:
    return [(bit, name) for name, bit in vars(policy).items() if name.startswith(prefix) and bit & bit - 1 == 0]


_PROT: Final = _bits("PROT_")
_MAP: Final = _bits("MAP_")
_ADVICES: Final = dict(flag_names("MADV_"))
_OPTIONS: Final = dict(flag_names("PR_"))
_LIMITS: Final = dict(flag_names("RLIMIT_"))
_POLICIES: Final = {
    value: name
    for name, value in vars(policy).items()
    if name.startswith("MPOL_") and not name.startswith(("MPOL_F_", "MPOL_MF_", "MPOL_MODE_"))
}
_UFFD_MODES: Final = [
    (uffd.REGISTER_MODE_MISSING, "UFFDIO_REGISTER_MODE_MISSING"),
    (uffd.REGISTER_MODE_WP, "UFFDIO_REGISTER_MODE_WP"),
    (uffd.REGISTER_MODE_MINOR, "UFFDIO_REGISTER_MODE_MINOR"),
]
_BITS: Final[dict[str, list[tuple[int, str]]]] = {
    "mmap": _PROT,
    "mprotect": _PROT,
    "pkey_mprotect": _PROT,
    "mremap": _bits("MREMAP_"),
    "mlock2": _bits("MLOCK_"),
    "mlockall": _bits("MCL_"),
    "msync": _bits("MS_"),
    "shmget": [
        (f.IPC_CREAT, "IPC_CREAT"),
        (f.IPC_EXCL, "IPC_EXCL"),
        (shm.NORESERVE, "SHM_NORESERVE"),
        (shm.HUGETLB, "SHM_HUGETLB"),
    ],
    "shmat": _bits("SHM_"),
    "seal": _bits("F_SEAL_"),
    "memfd": _bits("MFD_"),
    "register": _UFFD_MODES,
    "get_mempolicy": [(bit, name) for bit, name in _policy_bits("MPOL_F_") if bit < 8],
    "clone": [(f.CLONE_VM, "CLONE_VM"), (f.CLONE_VFORK, "CLONE_VFORK")],
    "userfaultfd": [(bit, name) for bit, name in _bits("UFFD_FEATURE_") if bit != f.UFFD_FEATURE_SIGBUS],
}
"""The names of the bits of a step's flags: the first word that FLAG_ARGUMENTS names."""
_BITS_OF_SECOND: Final = {"mmap": _MAP, "mbind": _policy_bits("MPOL_MF_")}
"""The same of the second."""
_CHOICES: Final[dict[str, dict[int, str]]] = {
    "madvise": _ADVICES,
    "process_madvise": _ADVICES,
    REMOTE_MADVISE: {advice: _ADVICES[advice] for advice in sorted(REMOTE)},
    "prctl": _OPTIONS,
    "prlimit64": _LIMITS,
    "shmctl": shm.COMMANDS,
    "mbind": _POLICIES,
    "set_mempolicy": _POLICIES,
    "fill": {0: "UFFDIO_COPY", 1: "UFFDIO_ZEROPAGE", 2: "UFFDIO_CONTINUE", 3: "UFFDIO_POISON"},
}
CALLS: Final = {
    REMOTE_MADVISE: "process_madvise(another process)",
    "exec": "execve",
    "memfd": "memfd_create",
    "seal": "fcntl(F_ADD_SEALS)",
    "register": "ioctl(UFFDIO_REGISTER)",
    "fill": "ioctl(userfaultfd)",
    "layout": "prctl(PR_SET_MM_MAP)",
    "writeprotect": "ioctl(UFFDIO_WRITEPROTECT)",
    "unregister": "ioctl(UFFDIO_UNREGISTER)",
    "close": "close(userfaultfd)",
    "read": "(read access)",
    "write": "(write access)",
}
"""What steps are called that are no system call of their name."""


@functools.cache
def features(name: str, first: int, second: int) -> tuple[str, ...]:
    """The call of a step, and the call with each flag that it has: by the step's name and what FLAG_ARGUMENTS names."""
    shown = CALLS.get(name, name)
    found = [shown]
    bits = [(first, bit, flag) for bit, flag in _BITS.get(name, ())]
    bits += [(second, bit, flag) for bit, flag in _BITS_OF_SECOND.get(name, ())]
    if name == "mmap" and second & f.MAP_TYPE in MAP_TYPES:
        found.append(f"{shown} {MAP_TYPES[second & f.MAP_TYPE]}")
    found += [f"{shown} {flag}" for word, bit, flag in bits if word & bit]
    chosen = _CHOICES.get(name, {}).get(first & 0xFFFFFFFF)
    if chosen is not None:
        found.append(f"{shown} {chosen}")
    return tuple(found)


Counts = Mapping[tuple[str, int, int, int], int]
"""Steps by name, by the arguments that FLAG_ARGUMENTS names, and by the answer (a reason)."""


def by_feature(counts: Counts) -> Counter[str]:
    """How many steps were compared, by call and by call with flag."""
    found: Counter[str] = Counter()
    for (name, first, second, _), steps in counts.items():
        for feature in features(name, first, second):
            found[feature] += steps
    return found


def by_outcome(counts: Counts) -> Counter[tuple[str, str]]:
    """How many steps were compared, by call and answer (the name of a reason)."""
    found: Counter[tuple[str, str]] = Counter()
    for (name, _, _, reason), steps in counts.items():
        found[name, explain(reason).name] += steps
    return found


def catalogue() -> dict[str, list[str]]:
    """Every call that steps can be made of, with all its flags and choices."""
    found = {CALLS.get(name, name): [flag for _, flag in bits] for name, bits in _BITS.items()}
    for name, bits in _BITS_OF_SECOND.items():
        found.setdefault(name, []).extend([flag for _, flag in bits])
    found["mmap"] += MAP_TYPES.values()
    for name, choices in _CHOICES.items():
        found.setdefault(CALLS.get(name, name), []).extend(choices.values())
    return found
