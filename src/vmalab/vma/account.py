"""Which counter memory belongs to, by the flags of its VMA."""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from vmalab.flags import VM_EXEC, VM_GROWSDOWN, VM_HUGETLB, VM_NORESERVE, VM_SHARED, VM_WRITE

NO_VM: Final = 0
DATA_VM: Final = 1
"""Private, writable, no stack: counted against RLIMIT_DATA (is_data_mapping)."""
EXEC_VM: Final = 2
"""Executable, not writable, no stack: counted as code (is_exec_mapping)."""
STACK_VM: Final = 3
"""A stack (is_stack_mapping)."""


def counter_of(flags: i64) -> i64:
    """Which counter of an address space has memory with these flags: DATA_VM, EXEC_VM, STACK_VM, or NO_VM for none."""
    if flags & VM_GROWSDOWN:
        return STACK_VM
    if flags & VM_WRITE:
        if flags & VM_SHARED:
            return NO_VM
        return DATA_VM
    if flags & VM_EXEC:
        return EXEC_VM
    return NO_VM


def accountable_mapping(flags: i64) -> bool:
    """Whether a new mapping commits memory: private and writable, unless NORESERVE or hugetlb (accountable_mapping)."""
    return flags & (VM_NORESERVE | VM_SHARED | VM_WRITE | VM_HUGETLB) == VM_WRITE
