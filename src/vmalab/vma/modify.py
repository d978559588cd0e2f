"""Changing part of a VMA: try to merge the changed range with a neighbour, else split the VMA around it.

A change is no transaction: if the second of two splits fails, the first stays (as in the kernel).
"""

from __future__ import annotations

from mypy_extensions import i64

from vmalab.reason import (
    DRIVER_REFUSES_SPLIT,
    HUGETLB_SPLIT,
    MAP_COUNT_SPLIT,
    NO_MEMORY_POLICY,
    NO_MEMORY_TREE,
    NO_MEMORY_VMA,
    YES,
)
from vmalab.vma.anon import anon_vma_clone
from vmalab.vma.area import Policy, Userfaultfd, Vma
from vmalab.vma.merge import MergeRequest, request_for_modify, vma_merge_existing_range
from vmalab.vma.port import ALLOC_POLICY, ALLOC_TREE, ALLOC_VMA
from vmalab.vma.space import Mm


def may_split(vma: Vma, addr: i64) -> i64:
    """Whether the driver lets a VMA be split at addr: YES or the reason."""
    ops = vma.ops
    if ops is None:
        return YES
    if ops.never_split:
        return DRIVER_REFUSES_SPLIT
    if ops.split_size and addr % ops.split_size:
        return HUGETLB_SPLIT
    return YES if vma.mm.port.may_split(vma, addr) == YES else DRIVER_REFUSES_SPLIT


def split_vma_unchecked(vma: Vma, addr: i64, new_below: bool) -> tuple[Vma, i64]:
    """Split a VMA at addr without a look at the map count (__split_vma).

        VVVV|VVVV   ->   NNNN|VVVV if new_below, else VVVV|NNNN

    Returns the new VMA and YES, or the old one and a reason with nothing changed.
    """
    refusal = may_split(vma, addr)
    if refusal != YES:
        return vma, refusal
    mm = vma.mm
    port = mm.port
    if not mm.quiet and port.may_fail(ALLOC_VMA):
        return vma, NO_MEMORY_VMA
    new = vma.duplicate()
    if new_below:
        new.end = addr
    else:
        new.start = addr
        new.pgoff = vma.pgoff_at(addr)
    if not mm.quiet and port.may_fail(ALLOC_TREE):
        return vma, NO_MEMORY_TREE
    if vma.policy is not None and port.may_fail(ALLOC_POLICY):
        return vma, NO_MEMORY_POLICY
    if vma.chain:
        refusal = anon_vma_clone(new, vma)
        if refusal != YES:
            return vma, refusal
    new.take_references()
    if new.ops is not None:
        mm.vma_open(new)
    mm.split(vma, new, new_below)
    mm.observer.split(new if new_below else vma, vma if new_below else new)
    return new, YES


def split_vma(vma: Vma, addr: i64, new_below: bool) -> tuple[Vma, i64]:
    """Split a VMA at addr unless that would exceed max_map_count."""
    if vma.mm.map_count >= vma.mm.settings.max_map_count:
        return vma, MAP_COUNT_SPLIT
    return split_vma_unchecked(vma, addr, new_below)


def vma_modify(request: MergeRequest) -> tuple[Vma, i64]:
    """Bring the range of a request into a VMA of its own, or into a neighbour that has its attributes already.

    Returns the VMA that holds the range and YES, or a reason.  The caller sets the attributes: a neighbour that took
    the range has them.
    """
    vma = request.middle
    assert vma is not None
    merged = vma_merge_existing_range(request)
    if merged is not None:
        return merged, YES
    if request.failure != YES:
        return vma, request.failure
    if vma.start < request.start:
        _, refusal = split_vma(vma, request.start, True)
        if refusal != YES:
            return vma, refusal
    refusal = YES
    if vma.end > request.end:
        _, refusal = split_vma(vma, request.end, False)
    return vma, refusal


def vma_modify_flags(vma: Vma, start: i64, end: i64, flags: i64) -> tuple[Vma, i64]:
    """Give [start, end) of a VMA new flags, merging or splitting as needed.  Returns the VMA that holds it, or a
    reason.
    """
    request = request_for_modify(vma, start, end)
    request.flags = flags
    modified, refusal = vma_modify(request)
    if refusal == YES:
        set_flags(modified, flags)
    return modified, refusal


def set_flags(vma: Vma, flags: i64) -> None:
    """Give a whole VMA new flags in place, without a merge (vm_flags_set, vm_flags_clear).

    Sticky flags stay: a merge has put those of all parts together.
    """
    vma.mm.assert_write_locked()
    _store_flags(vma, flags | vma.flags & vma.mm.semantics.sticky_flags)


def set_flag_atomic(vma: Vma, flag: i64) -> None:
    """Set one of the flags that may be set with the lock held for reading (vma_flag_set_atomic)."""
    vma.mm.assert_locked()
    _store_flags(vma, vma.flags | flag)


def _store_flags(vma: Vma, flags: i64) -> None:
    old: i64 = vma.flags
    if old != flags:
        vma.flags = flags
        vma.mm.observer.flags_changed(vma, old)


def vma_modify_flags_name(vma: Vma, start: i64, end: i64, flags: i64, name: str | None) -> tuple[Vma, i64]:
    """As vma_modify_flags, with a new anonymous name as well."""
    request = request_for_modify(vma, start, end)
    request.flags = flags
    request.name = name
    modified, refusal = vma_modify(request)
    if refusal == YES:
        set_flags(modified, flags)
        if modified.name != name:
            modified.name = name
            modified.mm.observer.attribute_changed(modified, "name")
    return modified, refusal


def vma_modify_policy(vma: Vma, start: i64, end: i64, policy: Policy | None) -> tuple[Vma, i64]:
    """Give [start, end) of a VMA a new memory policy, merging or splitting as needed."""
    request = request_for_modify(vma, start, end)
    request.policy = policy
    modified, refusal = vma_modify(request)
    if refusal == YES and modified.policy is not policy:
        modified.set_policy(policy)
        modified.mm.observer.attribute_changed(modified, "policy")
    return modified, refusal


def vma_modify_uffd(vma: Vma, start: i64, end: i64, flags: i64, uffd: Userfaultfd | None) -> tuple[Vma, i64]:
    """Register [start, end) of a VMA with a userfaultfd or with none, merging or splitting as needed."""
    request = request_for_modify(vma, start, end)
    request.flags = flags
    request.uffd = uffd
    modified, refusal = vma_modify(request)
    if refusal == YES:
        set_flags(modified, flags)
        if modified.uffd is not uffd:
            modified.uffd = uffd
            modified.mm.observer.attribute_changed(modified, "userfaultfd")
    return modified, refusal


def vma_shrink(vma: Vma, start: i64, end: i64, pgoff: i64) -> i64:
    """Cut a VMA down to [start, end), which must lie within it, with this offset (vma_shrink).  YES or
    NO_MEMORY_TREE.
    """
    mm: Mm = vma.mm
    if mm.port.may_fail(ALLOC_TREE):
        return NO_MEMORY_TREE
    old_start: i64 = vma.start
    old_end: i64 = vma.end
    mm.set_range(vma, start, end, pgoff)
    mm.observer.resized(vma, old_start, old_end)
    return YES
