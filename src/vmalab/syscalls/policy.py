"""mbind, set_mempolicy and set_mempolicy_home_node, as far as VMAs are concerned."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_MASK, PAGE_SIZE, ULONG_END, page_up, within_word
from vmalab.flags import VM_ACCESS, VM_READ
from vmalab.pages.gup import check_vma_flags
from vmalab.pages.port import memory_of
from vmalab.pages.zap import has_pages
from vmalab.reason import (
    LENGTH_WRAPS,
    MOVE_ALL_NOT_PERMITTED,
    NO_PAGE_EFAULT,
    NOT_MAPPED_EFAULT,
    NOT_MODELLED,
    POLICY_ADDRESS,
    POLICY_BAD_MODE,
    POLICY_BAD_NODES,
    POLICY_MISPLACED,
    POLICY_NONE,
    POLICY_NOT_INTERLEAVED,
    POLICY_NOT_SUPPORTED,
    UNALIGNED,
    UNKNOWN_FLAGS,
    YES,
)
from vmalab.syscalls.populate import handle_fault
from vmalab.vma.area import Policy, Vma, mpol_equal
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
MPOL_MF_STRICT: Final = 1
MPOL_MF_MOVE: Final = 2
MPOL_MF_MOVE_ALL: Final = 4
MPOL_MF_VALID: Final = 7
MPOL_F_NUMA_BALANCING: Final = 0x2000
MPOL_F_NODE: Final = 1
MPOL_F_ADDR: Final = 2
MPOL_F_MEMS_ALLOWED: Final = 4


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


def set_mempolicy(mm: Mm, mode: int, nodes: tuple[int, ...]) -> tuple[int, int]:
    """set_mempolicy, whose policy concerns no VMA: the mode that the task has from then on, and YES or a reason."""
    policy, refusal = make_policy(mm, mode, nodes)
    return MPOL_DEFAULT if policy is None else policy.mode, refusal


def get_mempolicy(mm: Mm, task_mode: int, mask_bits: int, addr: int, flags: int) -> int:
    """get_mempolicy: YES or a reason.

    mask_bits is how many nodes the mask has room for, or -1 without a mask; task_mode is the mode of the task's own
    policy.  With MPOL_F_NODE and MPOL_F_ADDR the page of the address is made present, as by a read.
    """
    if flags & ~(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
        return UNKNOWN_FLAGS
    if 0 <= mask_bits < mm.settings.numa_nodes:
        return POLICY_BAD_NODES
    if flags & MPOL_F_MEMS_ALLOWED:
        return UNKNOWN_FLAGS if flags & (MPOL_F_NODE | MPOL_F_ADDR) else YES
    if flags & MPOL_F_ADDR:
        vma = mm.vma_lookup(addr)
        if vma is None:
            return NOT_MAPPED_EFAULT
        return _lookup_node(vma, addr) if flags & MPOL_F_NODE else YES
    if addr:
        return POLICY_ADDRESS
    if flags & MPOL_F_NODE and task_mode not in (MPOL_INTERLEAVE, MPOL_WEIGHTED_INTERLEAVE):
        return POLICY_NOT_INTERLEAVED
    return YES


def _lookup_node(vma: Vma, addr: int) -> int:
    """Whether the page of an address can be held for a moment, to see which node it is on (lookup_node).

    A page that is there is taken without a look at the VMA, as long as the processor may read it (gup_fast).
    """
    if vma.flags & VM_ACCESS and not vma.flags & VM_READ:
        memory = memory_of(vma.mm)
        if memory is None:
            return NOT_MODELLED
        if has_pages(memory.tables(vma.mm), addr & -PAGE_SIZE, (addr & -PAGE_SIZE) + PAGE_SIZE):
            return YES
    if check_vma_flags(vma, 0) != YES or handle_fault(vma.mm, addr, False) != YES:
        return NO_PAGE_EFAULT
    return YES


def mbind(mm: Mm, start: int, length: int, mode: int, nodes: tuple[int, ...], flags: int) -> int:
    """mbind: 0 or minus a reason.  VMAs before a refusal stay changed."""
    refusal = sanitize_mpol_flags(mode)
    if refusal != YES:
        return -refusal
    if flags & ~MPOL_MF_VALID:
        return -UNKNOWN_FLAGS
    if flags & MPOL_MF_MOVE_ALL and not mm.limits.sys_nice:
        return -MOVE_ALL_NOT_PERMITTED
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
    refusal = YES
    mm.mmap_write_lock()
    if flags == MPOL_MF_STRICT and policy is not None:
        refusal = _queue_pages_range(mm, start, end, nodes)
    if refusal == YES:
        refusal = _mbind_range(mm, start, end, policy)
    if refusal == YES and flags & MPOL_MF_STRICT and policy is not None and 0 not in nodes:
        refusal = _cannot_move(mm, start, end)
    mm.mmap_write_unlock()
    return -refusal


def _cannot_move(mm: Mm, start: int, end: int) -> int:
    """Whether a page that is to be moved cannot be: YES or a reason.

    Secret memory never is (secretmem_migrate_folio).
    """
    for vma in mm.tree.walk(start, end):
        if vma.file is None or vma.file.kind != "secretmem":
            continue
        memory = memory_of(mm)
        if memory is None:
            return NOT_MODELLED
        if has_pages(memory.tables(mm), max(start, vma.start), min(within_word(end), vma.end)):
            return POLICY_MISPLACED
    return YES


def _mbind_range(mm: Mm, start: int, end: int, policy: Policy | None) -> int:
    if not mm.tree.walk(start, end) or (policy is not None and _has_hole(mm, start, end)):
        return NOT_MAPPED_EFAULT
    at = start
    while at < end:
        vma = mm.find_vma_intersection(at, end)
        if vma is None:
            break
        first = max(at, vma.start)
        upto: int = min(vma.end, within_word(end))
        if not mpol_equal(vma.policy, policy):
            vma, refusal = vma_modify_policy(vma, first, upto, policy)
            if refusal != YES:
                return refusal
        at = max(upto, vma.end)
    return YES


def _queue_pages_range(mm: Mm, start: int, end: int, nodes: tuple[int, ...]) -> int:
    """Whether all pages of a range are on some nodes (queue_pages_range): YES, or the first thing that is wrong.

    With one node they are all on that; with several it is not modelled where they are.
    """
    if mm.settings.numa_nodes == 1 and 0 in nodes:
        return YES
    memory = memory_of(mm)
    if memory is None or mm.settings.numa_nodes > 1:
        return NOT_MODELLED
    tables = memory.tables(mm)
    at = start
    while at < end:
        vma = mm.vma_lookup(at)
        if vma is None:
            return NOT_MAPPED_EFAULT
        upto: int = min(vma.end, within_word(end))
        if upto < end and mm.vma_lookup(upto) is None:
            # A hole behind it is noticed before its pages are looked at.
            return NOT_MAPPED_EFAULT
        if has_pages(tables, at, upto):
            return POLICY_MISPLACED
        at = upto
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
        upto: int = min(vma.end, within_word(end))
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
