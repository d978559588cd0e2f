"""Presets: the named behaviours of kernels, as defaults where nobody has probed one.

A version number is not a behaviour: stable branches carry later fixes, so `vmalab probe` on the kernel in question
says more.  What is known to differ and has no name yet is listed with each preset.
"""

from __future__ import annotations

from typing import Final, final

from vmalab.flags import VM_SOFTDIRTY
from vmalab.semantics import THP_ALIGN_MULTIPLE, THP_ALIGN_NEVER, Semantics


@final
class Kernel:
    """The behaviours of one kernel that differ from those of 6.18, and what differs besides."""

    def __init__(self, name: str, values: dict[str, int | bool], missing: tuple[str, ...]) -> None:
        self.name: str = name
        self.values: dict[str, int | bool] = values
        self.missing: tuple[str, ...] = missing
        """What differs from 6.18 and is not modelled."""

    def semantics(self) -> Semantics:
        """The behaviours, to be given to a machine."""
        semantics = Semantics()
        for name, value in self.values.items():
            setattr(semantics, name, value)
        return semantics


_BEFORE_6_13: Final[dict[str, int | bool]] = {
    "ignored_flags": VM_SOFTDIRTY,
    "sticky_flags": 0,
    "unfaulted_merges": False,
    "guard_regions": False,
    "mremap_moves_many": False,
    "dontunmap_merges_source": False,
}
_MISSING_6_12: Final = (
    "mmap retries a merge after the file's mmap hook",
    "mremap looks the VMA up before it checks its arguments, and unmaps the target before it validates the source",
)

KERNELS: Final[dict[str, Kernel]] = {
    "6.1": Kernel(
        "6.1",
        {
            **_BEFORE_6_13,
            "thp_align_anonymous": THP_ALIGN_NEVER,
            "map_stack_no_hugepage": False,
            "pins_break_cow": False,
        },
        (
            *_MISSING_6_12,
            "no VMA whose driver has a close hook merges at all",
            "mmap unmaps what it replaces before the overcommit check",
            "munmap splits the head above and the tail below",
            "mseal (6.10) and MAP_DROPPABLE (6.11) are not known",
        ),
    ),
    "6.12": Kernel("6.12", {**_BEFORE_6_13, "thp_align_anonymous": THP_ALIGN_MULTIPLE}, _MISSING_6_12),
    "6.18": Kernel("6.18", {}, ()),
}
"""By the name that --kernel takes."""
