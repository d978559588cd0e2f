"""mbind, set_mempolicy and set_mempolicy_home_node, as far as VMAs are concerned."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_MASK, ULONG_END, page_up
from vmalab.reason import (
    LENGTH_WRAPS,
    NOT_MAPPED_EFAULT,
    POLICY_ADDRESS,
    POLICY_BAD_MODE,
    POLICY_BAD_NODES,
    POLICY_NONE,
    POLICY_NOT_SUPPORTED,
    UNALIGNED,
    UNKNOWN_FLAGS,
    YES,
)
from vmalab.vma.area import Policy, mpol_equal
from vmalab.vma.modify import vma_modify_policy
from vmalab.vma.space import Mm

MPOL_DEFAULT: Final = 0
MPOL_PREFERRED: Final = 1
MPOL_BIND: Final = 2
MPOL_INTERLEAVE: Final = 3
MPOL_LOCAL: Final = 4
MPOL_PREFERRED_MANY: Final = 5
MPOL_WEIGHTED_INTERLEAVE: Final = 6
MPOL_MODE_FLAGS: Final = 0xE000
MPOL_F_STATIC_NODES: Final = 0x8000
MPOL_F_RELATIVE_NODES: Final = 0x4000
MPOL_MF_VALID: Final = 7
MPOL_F_NUMA_BALANCING: Final = 0x2000
MPOL_F_NODE: Final = 1
MPOL_F_ADDR: Final = 2
MPOL_F_MEMS_ALLOWED: Final = 4
UNKNOWN: Final = -1
"""Stands for a reason that the model cannot tell."""


def sanitize_mpol_flags(word: int) -> int:
    """Whether a mode word makes sense at all: YES or POLICY_BAD_MODE."""
    flags = word & MPOL_MODE_FLAGS
    mode = word & ~MPOL_MODE_FLAGS
    if mode > MPOL_WEIGHTED_INTERLEAVE:
        return POLICY_BAD_MODE
    if flags & MPOL_F_STATIC_NODES and flags & MPOL_F_RELATIVE_NODES:
        return POLICY_BAD_MODE
    if flags & MPOL_F_NUMA_BALANCING and mode not in (MPOL_BIND, MPOL_PREFERRED_MANY):
        return POLICY_BAD_MODE
    return YES


def make_policy(mm: Mm, mode: int, nodes: tuple[int, ...]) -> tuple[Policy | None, int]:
    """The policy that a mode word and a node mask stand for, or None and YES (default) or a reason (mpol_new)."""
    refusal = sanitize_mpol_flags(mode)
    if refusal != YES:
        return None, refusal
    flags = mode & MPOL_MODE_FLAGS
    mode &= ~MPOL_MODE_FLAGS
    if mode == MPOL_DEFAULT:
        return None, POLICY_BAD_NODES if nodes else YES
    if mode == MPOL_LOCAL or (mode == MPOL_PREFERRED and not nodes):
        if nodes or flags & (MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES):
            return None, POLICY_BAD_NODES
        return Policy(MPOL_LOCAL, flags, ()), YES
    if flags & MPOL_F_RELATIVE_NODES:
        # Counted among the nodes that there are, over and over: any mask but none will do.
        return (Policy(mode, flags, nodes), YES) if nodes else (None, POLICY_BAD_NODES)
    allowed = tuple(node for node in nodes if node < mm.settings.numa_nodes)
    if not allowed:
        return None, POLICY_BAD_NODES
    # With one of the two flags a policy remembers what was asked for, and is compared by it.
    return Policy(mode, flags, nodes if flags & MPOL_F_STATIC_NODES else allowed), YES


def set_mempolicy(mm: Mm, mode: int, nodes: tuple[int, ...]) -> int:
    """set_mempolicy, whose policy concerns no VMA: 0 or minus a reason."""
    _, refusal = make_policy(mm, mode, nodes)
    return -refusal


def get_mempolicy(mm: Mm, mask_bits: int, addr: int, flags: int) -> int:
    """get_mempolicy as far as it is refused: YES, a reason, or UNKNOWN where the task's own policy decides.

    mask_bits is how many nodes the mask has room for, or -1 without a mask.
    """
    if flags & ~(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
        return UNKNOWN_FLAGS
    if 0 <= mask_bits < mm.settings.numa_nodes:
        return POLICY_BAD_NODES
    if flags & MPOL_F_MEMS_ALLOWED:
        return UNKNOWN_FLAGS if flags & (MPOL_F_NODE | MPOL_F_ADDR) else YES
    if flags & MPOL_F_ADDR:
        if mm.vma_lookup(addr) is None:
            return NOT_MAPPED_EFAULT
        return UNKNOWN if flags & MPOL_F_NODE else YES
    if addr:
        return POLICY_ADDRESS
    return UNKNOWN if flags & MPOL_F_NODE else YES


def mbind(mm: Mm, start: int, length: int, mode: int, nodes: tuple[int, ...], flags: int) -> int:
    """mbind: 0 or minus a reason.  VMAs before a refusal stay changed."""
    refusal = sanitize_mpol_flags(mode)
    if refusal != YES:
        return -refusal
    if flags & ~MPOL_MF_VALID:
        return -UNKNOWN_FLAGS
    if start & PAGE_MASK:
        return -UNALIGNED
    end = start + page_up(length)
    if end >= ULONG_END:
        return -LENGTH_WRAPS
    if end == start:
        return 0
    policy, refusal = make_policy(mm, mode, nodes)
    if refusal != YES:
        return -refusal
    mm.mmap_write_lock()
    refusal = _mbind_range(mm, start, end, policy)
    mm.mmap_write_unlock()
    return -refusal


def _mbind_range(mm: Mm, start: int, end: int, policy: Policy | None) -> int:
    if not mm.tree.walk(start, end) or (policy is not None and _has_hole(mm, start, end)):
        return NOT_MAPPED_EFAULT
    at = start
    while at < end:
        vma = mm.find_vma_intersection(at, end)
        if vma is None:
            break
        first = max(at, vma.start)
        upto: int = min(vma.end, end)
        if not mpol_equal(vma.policy, policy):
            vma, refusal = vma_modify_policy(vma, first, upto, policy)
            if refusal != YES:
                return refusal
        at = max(upto, vma.end)
    return YES


def _has_hole(mm: Mm, start: int, end: int) -> bool:
    at = start
    while at < end:
        vma = mm.vma_lookup(at)
        if vma is None:
            return True
        at = vma.end
    return False


def set_mempolicy_home_node(mm: Mm, start: int, length: int, home_node: int, flags: int) -> int:
    """set_mempolicy_home_node: 0 or minus a reason; VMAs without a policy are passed over."""
    if start & PAGE_MASK:
        return -UNALIGNED
    if flags:
        return -UNKNOWN_FLAGS
    if home_node >= mm.settings.numa_nodes:
        return -POLICY_BAD_NODES
    end = start + page_up(length)
    if end >= ULONG_END:
        return -LENGTH_WRAPS
    if end == start:
        return 0
    mm.mmap_write_lock()
    refusal = _set_home_node(mm, start, end, home_node)
    mm.mmap_write_unlock()
    return -refusal


def _set_home_node(mm: Mm, start: int, end: int, home_node: int) -> int:
    result = POLICY_NONE
    at = start
    while at < end:
        vma = mm.find_vma_intersection(at, end)
        if vma is None:
            break
        old = vma.policy
        upto: int = min(vma.end, end)
        if old is not None:
            if old.mode not in (MPOL_BIND, MPOL_PREFERRED_MANY):
                return POLICY_NOT_SUPPORTED
            new = Policy(old.mode, old.flags, old.nodes, home_node)
            result = YES
            if not mpol_equal(old, new):
                vma, result = vma_modify_policy(vma, max(at, vma.start), upto, new)
            if result != YES:
                return result
        at = max(upto, vma.end)
    return result
