"""What a step exercises: its call, and every flag, advice or option by name."""

from __future__ import annotations

from typing import Final

from vmalab import flags as f
from vmalab.fuzz.ops import Op

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
_UFFD_MODES: Final = [
    (1, "UFFDIO_REGISTER_MODE_MISSING"),
    (2, "UFFDIO_REGISTER_MODE_WP"),
    (4, "UFFDIO_REGISTER_MODE_MINOR"),
]
_BIT_ARGUMENTS: Final[dict[str, list[tuple[int, list[tuple[int, str]]]]]] = {
    "mmap": [(2, _PROT), (3, _bits("MAP_"))],
    "mprotect": [(2, _PROT)],
    "pkey_mprotect": [(2, _PROT)],
    "mremap": [(3, _bits("MREMAP_"))],
    "mlock2": [(2, _bits("MLOCK_"))],
    "mlockall": [(0, _bits("MCL_"))],
    "msync": [(2, _bits("MS_"))],
    "shmat": [(1, _bits("SHM_"))],
    "seal": [(0, _bits("F_SEAL_"))],
    "memfd": [(0, _bits("MFD_"))],
    "register": [(2, _UFFD_MODES)],
}
"""Which arguments of a step are made of bits, and their names."""
_CHOICE_ARGUMENTS: Final[dict[str, tuple[int, dict[int, str]]]] = {
    "madvise": (2, _ADVICES),
    "process_madvise": (0, _ADVICES),
    "prctl": (0, _OPTIONS),
    "prlimit64": (0, _LIMITS),
    "mbind": (2, _POLICIES),
    "set_mempolicy": (0, _POLICIES),
}
CALLS: Final = {
    "memfd": "memfd_create",
    "seal": "fcntl(F_ADD_SEALS)",
    "register": "ioctl(UFFDIO_REGISTER)",
    "unregister": "ioctl(UFFDIO_UNREGISTER)",
    "close": "close(userfaultfd)",
    "read": "(read access)",
    "write": "(write access)",
}
"""What steps are called that are no system call of their name."""


def features(op: Op) -> list[str]:
    """The call of a step, and the call with each flag that it has."""
    name = CALLS.get(op.name, op.name)
    found = [name]
    for at, bits in _BIT_ARGUMENTS.get(op.name, ()):
        value = op.args[at]
        for bit, flag in bits:
            if value & bit:
                found.append(f"{name} {flag}")
    if op.name == "mmap" and op.args[3] & f.MAP_TYPE in _MAP_TYPES:
        found.append(f"{name} {_MAP_TYPES[op.args[3] & f.MAP_TYPE]}")
    choice = _CHOICE_ARGUMENTS.get(op.name)
    if choice is not None:
        chosen = choice[1].get(op.args[choice[0]] & 0xFFFFFFFF)
        if chosen is not None:
            found.append(f"{name} {chosen}")
    return found


def catalogue() -> dict[str, list[str]]:
    """Every call that steps can be made of, with all its flags and choices."""
    found: dict[str, list[str]] = {}
    for name, arguments in _BIT_ARGUMENTS.items():
        found[CALLS.get(name, name)] = [flag for _, bits in arguments for _, flag in bits]
    found["mmap"] += list(_MAP_TYPES.values())
    for name, (_, choices) in _CHOICE_ARGUMENTS.items():
        found[name] = list(choices.values())
    return found
