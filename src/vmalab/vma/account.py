"""Which counter memory belongs to, by the flags of its VMA."""

from __future__ import annotations

from mypy_extensions import i64

from vmalab.flags import VM_EXEC, VM_GROWSDOWN, VM_HUGETLB, VM_NORESERVE, VM_SHARED, VM_WRITE


def is_exec_mapping(flags: i64) -> bool:
    """Executable, not writable, no stack: counted as code."""
    return flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN) == VM_EXEC


def is_stack_mapping(flags: i64) -> bool:
    """A stack."""
    return flags & VM_GROWSDOWN != 0


def is_data_mapping(flags: i64) -> bool:
    """Private, writable, no stack: counted against RLIMIT_DATA."""
    return flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE


def accountable_mapping(flags: i64) -> bool:
    """Whether a new mapping commits memory: private and writable, unless NORESERVE or hugetlb (accountable_mapping)."""
    return flags & (VM_NORESERVE | VM_SHARED | VM_WRITE | VM_HUGETLB) == VM_WRITE
