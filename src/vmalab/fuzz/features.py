"""What a step exercises: its call, and every flag, advice or option by name."""

from __future__ import annotations

import functools
from typing import Final

from vmalab import flags as f

_MAP_TYPES: Final = {
    f.MAP_SHARED: "MAP_SHARED",
    f.MAP_PRIVATE: "MAP_PRIVATE",
    f.MAP_SHARED_VALIDATE: "MAP_SHARED_VALIDATE",
    f.MAP_DROPPABLE: "MAP_DROPPABLE",
}
_NO_BITS: Final = frozenset({"MAP_TYPE", "MAP_HUGE_SHIFT", "MAP_HUGE_MASK", "PROT_NONE", *_MAP_TYPES.values()})


def _bits(prefix: str) -> list[tuple[int, str]]:
    """The flags of a prefix that are one bit each."""
    found = [(value, name) for name, value in vars(f).items() if name.startswith(prefix) and isinstance(value, int)]
    return [(value, name) for value, name in found if name not in _NO_BITS]


def _choices(prefix: str) -> dict[int, str]:
    """The values of a prefix, one of which is chosen."""
    return {value: name for value, name in _bits(prefix) if name not in ("PR_SET_VMA_ANON_NAME", *_MDWE)}


_MDWE: Final = ("PR_MDWE_REFUSE_EXEC_GAIN", "PR_MDWE_NO_INHERIT")
_PROT: Final = _bits("PROT_")
_MAP: Final = _bits("MAP_")
_ADVICES: Final = _choices("MADV_")
_OPTIONS: Final = _choices("PR_")
_LIMITS: Final = _choices("RLIMIT_")
_POLICIES: Final = {
    0: "MPOL_DEFAULT",
    1: "MPOL_PREFERRED",
    2: "MPOL_BIND",
    3: "MPOL_INTERLEAVE",
    4: "MPOL_LOCAL",
    5: "MPOL_PREFERRED_MANY",
    6: "MPOL_WEIGHTED_INTERLEAVE",
}
_UFFD_FEATURES: Final = [
    (1 << 1, "UFFD_FEATURE_EVENT_FORK"),
    (1 << 2, "UFFD_FEATURE_EVENT_REMAP"),
    (1 << 3, "UFFD_FEATURE_EVENT_REMOVE"),
    (1 << 6, "UFFD_FEATURE_EVENT_UNMAP"),
    (1 << 15, "UFFD_FEATURE_WP_ASYNC"),
]
_UFFD_MODES: Final = [
    (1, "UFFDIO_REGISTER_MODE_MISSING"),
    (2, "UFFDIO_REGISTER_MODE_WP"),
    (4, "UFFDIO_REGISTER_MODE_MINOR"),
]
_BITS: Final[dict[str, list[tuple[int, str]]]] = {
    "mprotect": _PROT,
    "pkey_mprotect": _PROT,
    "mremap": _bits("MREMAP_"),
    "mlock2": _bits("MLOCK_"),
    "mlockall": _bits("MCL_"),
    "msync": _bits("MS_"),
    "shmat": _bits("SHM_"),
    "seal": _bits("F_SEAL_"),
    "memfd": _bits("MFD_"),
    "register": _UFFD_MODES,
    "userfaultfd": _UFFD_FEATURES,
}
"""The names of the bits of a step's flags; those of mmap, which has two such words, are apart."""
_CHOICES: Final[dict[str, dict[int, str]]] = {
    "madvise": _ADVICES,
    "process_madvise": _ADVICES,
    "prctl": _OPTIONS,
    "prlimit64": _LIMITS,
    "mbind": _POLICIES,
    "set_mempolicy": _POLICIES,
}
CALLS: Final = {
    "exec": "execve",
    "memfd": "memfd_create",
    "seal": "fcntl(F_ADD_SEALS)",
    "register": "ioctl(UFFDIO_REGISTER)",
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
    if name == "mmap":
        bits = [(first, bit, flag) for bit, flag in _PROT] + [(second, bit, flag) for bit, flag in _MAP]
        if second & f.MAP_TYPE in _MAP_TYPES:
            found.append(f"{shown} {_MAP_TYPES[second & f.MAP_TYPE]}")
    found += [f"{shown} {flag}" for word, bit, flag in bits if word & bit]
    chosen = _CHOICES.get(name, {}).get(first & 0xFFFFFFFF)
    if chosen is not None:
        found.append(f"{shown} {chosen}")
    return tuple(found)


def catalogue() -> dict[str, list[str]]:
    """Every call that steps can be made of, with all its flags and choices."""
    found = {CALLS.get(name, name): [flag for _, flag in bits] for name, bits in _BITS.items()}
    found["mmap"] = [flag for _, flag in (*_PROT, *_MAP)] + list(_MAP_TYPES.values())
    for name, choices in _CHOICES.items():
        found[name] = list(choices.values())
    return found
