"""prctl, as far as it concerns memory as a whole; names of anonymous memory are in madvise.py."""

from __future__ import annotations

from typing import Final

from vmalab.flags import (
    PR_GET_MDWE,
    PR_GET_MEMORY_MERGE,
    PR_GET_THP_DISABLE,
    PR_MDWE_NO_INHERIT,
    PR_MDWE_REFUSE_EXEC_GAIN,
    PR_SET_MDWE,
    PR_SET_MEMORY_MERGE,
    PR_SET_THP_DISABLE,
    THP_DISABLE_EXCEPT_ADVISED,
    VM_MERGEABLE,
)
from vmalab.reason import CONTROL_ARGUMENTS, FAULT_NO_MEMORY, MDWE_STAYS, YES
from vmalab.syscalls.madvise import unmerge
from vmalab.vma.map import ksm_compatible
from vmalab.vma.modify import set_flags
from vmalab.vma.space import Mm

OPTIONS: Final = (
    *(PR_SET_MDWE, PR_GET_MDWE, PR_SET_MEMORY_MERGE, PR_GET_MEMORY_MERGE),
    *(PR_SET_THP_DISABLE, PR_GET_THP_DISABLE),
)
"""The options that are modelled here."""


def prctl(mm: Mm, option: int, args: tuple[int, ...]) -> int:
    """One of OPTIONS with its four arguments: what it answers, or minus a reason."""
    first, second, third, fourth = args
    if option == PR_SET_THP_DISABLE:
        if third or fourth or second & ~THP_DISABLE_EXCEPT_ADVISED or (second and not first):
            return -CONTROL_ARGUMENTS
        mm.thp_disable = (1 | second) if first else 0
        return 0
    if option == PR_SET_MDWE:
        return -CONTROL_ARGUMENTS if second or third or fourth else _set_mdwe(mm, first)
    if option == PR_SET_MEMORY_MERGE:
        return -CONTROL_ARGUMENTS if second or third or fourth else _set_memory_merge(mm, first != 0)
    if first or second or third or fourth:
        return -CONTROL_ARGUMENTS
    if option == PR_GET_MDWE:
        return _mdwe_bits(mm)
    if option == PR_GET_MEMORY_MERGE:
        return 1 if mm.merge_any else 0
    return mm.thp_disable


def _mdwe_bits(mm: Mm) -> int:
    if not mm.mdwe:
        return 0
    return PR_MDWE_REFUSE_EXEC_GAIN | (0 if mm.mdwe_inherits else PR_MDWE_NO_INHERIT)


def _set_mdwe(mm: Mm, bits: int) -> int:
    if bits & ~(PR_MDWE_REFUSE_EXEC_GAIN | PR_MDWE_NO_INHERIT) or bits == PR_MDWE_NO_INHERIT:
        return -CONTROL_ARGUMENTS
    if mm.mdwe and bits != _mdwe_bits(mm):
        return -MDWE_STAYS
    if bits:
        mm.mdwe = True
        mm.mdwe_inherits = not bits & PR_MDWE_NO_INHERIT
    return 0


def _set_memory_merge(mm: Mm, on: bool) -> int:
    """All memory of the process may be merged by KSM, or none (ksm_enable_merge_any, ksm_disable_merge_any)."""
    mm.mmap_write_lock()
    if on != mm.merge_any:
        for vma in mm.vmas():
            if not on and unmerge(vma, vma.start, vma.end) != YES:
                mm.mmap_write_unlock()
                return -FAULT_NO_MEMORY
        mm.merge_any = on
        for vma in mm.vmas():
            if ksm_compatible(vma.flags):
                set_flags(vma, vma.flags | VM_MERGEABLE if on else vma.flags & ~VM_MERGEABLE)
    mm.mmap_write_unlock()
    return 0
