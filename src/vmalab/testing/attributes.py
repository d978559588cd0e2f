"""What a scene says of a VMA: words for flags, file, anon_vma and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmalab import flags as f
from vmalab.vma.account import accountable_mapping

PERMISSIONS: Final = {
    "none": 0,
    "r": f.VM_READ,
    "w": f.VM_WRITE,
    "x": f.VM_EXEC,
    "rw": f.VM_READ | f.VM_WRITE,
    "rx": f.VM_READ | f.VM_EXEC,
    "wx": f.VM_WRITE | f.VM_EXEC,
    "rwx": f.VM_ACCESS,
}
FLAGS: Final = {
    "shared": f.VM_SHARED | f.VM_MAYSHARE,
    "mayshare": f.VM_MAYSHARE,
    "account": f.VM_ACCOUNT,
    "locked": f.VM_LOCKED,
    "onfault": f.VM_LOCKONFAULT,
    "io": f.VM_IO,
    "dontexpand": f.VM_DONTEXPAND,
    "pfnmap": f.VM_PFNMAP,
    "mixedmap": f.VM_MIXEDMAP,
    "dontcopy": f.VM_DONTCOPY,
    "dontdump": f.VM_DONTDUMP,
    "wipeonfork": f.VM_WIPEONFORK,
    "guard": f.VM_MAYBE_GUARD,
    "softdirty": f.VM_SOFTDIRTY,
    "growsdown": f.VM_GROWSDOWN,
    "sealed": f.VM_SEALED,
    "hugetlb": f.VM_HUGETLB,
    "noreserve": f.VM_NORESERVE,
    "hugepage": f.VM_HUGEPAGE,
    "nohugepage": f.VM_NOHUGEPAGE,
    "mergeable": f.VM_MERGEABLE,
    "droppable": f.VM_DROPPABLE,
    "seqread": f.VM_SEQ_READ,
    "randread": f.VM_RAND_READ,
    "missing": f.VM_UFFD_MISSING,
    "wp": f.VM_UFFD_WP,
    "minor": f.VM_UFFD_MINOR,
    "sync": f.VM_SYNC,
}
"""The words for flags.  VM_MAY and, where memory is private and writable, VM_ACCOUNT go without saying."""
DRIVERS: Final = ("file", "close", "shmem", "hugetlb", "special", "secret", "zero", "ext4")
"""The drivers a file can have: a plain one, one with a close hook, and those with rules of their own."""


@dataclass(frozen=True)
class Attributes:
    """The attributes of a VMA; whatever is named (file, anon_vma, ...) is the same wherever it has the same name."""

    flags: int
    file: str = ""
    driver: str = ""
    pgoff: int | None = None
    """The page offset, or None where it follows from the place."""
    shift: int = 0
    """Pages to add to the offset that follows from the place."""
    chain: tuple[str, ...] = ()
    """The anon_vma, and behind it those of the ancestors."""
    uffd: str = ""
    name: str = ""
    policy: str = ""


def parse_attributes(words: list[str]) -> Attributes | str:
    """The attributes that the words say; or what is wrong with them."""
    flags = f.VM_MAYACCESS
    access = PERMISSIONS["rw"]
    values: dict[str, str] = {}
    explicit = True
    for word in words:
        key, equals, value = word.partition("=")
        if equals and value:
            if key not in ("file", "driver", "pgoff", "anon", "chain", "uffd", "name", "policy"):
                return f"{key}= is no attribute"
            values[key] = value
        elif word in PERMISSIONS:
            access = PERMISSIONS[word]
        elif word in FLAGS:
            flags |= FLAGS[word]
        elif word == "noaccount":
            explicit = False
        elif word.startswith("pgoff+"):
            values["shift"] = word[6:]
        else:
            return f"{word!r} is no permission, flag or attribute"
    flags |= access
    if explicit and accountable_mapping(flags):
        flags |= f.VM_ACCOUNT
    if "uffd" in values and not flags & f.VM_UFFD:
        flags |= f.VM_UFFD_MISSING
    for number in ("pgoff", "shift"):
        if not values.get(number, "0").removeprefix("-").isdigit():
            return f"{number} is a number of pages, not {values[number]!r}"
    driver = values.get("driver", "file" if "file" in values else "")
    if driver and driver not in DRIVERS:
        return f"driver={driver} is none of {', '.join(DRIVERS)}"
    chain = tuple(values.get("chain", values.get("anon", "")).split(","))
    return Attributes(
        flags,
        values.get("file", ""),
        driver,
        int(values["pgoff"]) if "pgoff" in values else None,
        int(values.get("shift", "0")),
        chain if chain != ("",) else (),
        values.get("uffd", ""),
        values.get("name", ""),
        values.get("policy", ""),
    )
