"""Moving and copying VMAs: mremap's copy, exec's stack, stack growth, fork."""

from __future__ import annotations

from mypy_extensions import i64

from vmalab.addr import PAGE_SHIFT, page_down
from vmalab.flags import (
    UFFD_EVENT_FORK,
    UFFD_FEATURE_EVENT_FORK,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_UFFD,
    VM_WIPEONFORK,
)
from vmalab.reason import (
    LIMIT_MEMLOCK_STACK,
    LIMIT_STACK,
    NO_MEMORY_PAGE_TABLE,
    NO_MEMORY_POLICY,
    NO_MEMORY_TREE,
    NO_MEMORY_VMA,
    OVERLAPS_STACK_MOVE,
    STACK_BELOW_MIN_ADDR,
    STACK_GUARD_GAP,
    STACK_NOT_GROWSDOWN,
    YES,
)
from vmalab.vma.anon import anon_vma_clone, anon_vma_fork, anon_vma_prepare
from vmalab.vma.area import UffdMessage, UffdQueue, Userfaultfd, Vma
from vmalab.vma.merge import MergeRequest, request_for_vma, vma_expand, vma_merge_copied_range
from vmalab.vma.modify import vma_shrink
from vmalab.vma.port import ALLOC_POLICY, ALLOC_TREE, ALLOC_VMA
from vmalab.vma.space import Mm


def copy_vma(
    vma: Vma, old: i64, new: i64, length: i64, *, keeps_source: bool = False, drops_uffd: bool = False
) -> tuple[Vma | None, Vma, i64]:
    """Describe [new, new + length), which must be empty, as vma describes its memory from old on (copy_vma).

    Anonymous memory that was never written to takes its offset from the new address, so that it can merge there.
    keeps_source: the source stays mapped (MREMAP_DONTUNMAP).  drops_uffd: the new range leaves the userfaultfd.

    Returns the VMA that holds the new range, the source (which may have been merged into it), and YES; or None and a
    reason.
    """
    mm = vma.mm
    pgoff = vma.pgoff_at(old)
    if vma.is_anonymous() and vma.anon_vma is None:
        pgoff = new >> PAGE_SHIFT
    request = request_for_vma(vma, new, new + length)
    request.pgoff = pgoff
    request.prev, request.next = mm.tree.around(new)
    if drops_uffd and not mm.semantics.mremap_uffd_merges_first:
        request.uffd = None
        request.flags &= ~VM_UFFD
    if keeps_source and not mm.semantics.dontunmap_merges_source:
        request.prev = None if request.prev is vma else request.prev
        request.next = None if request.next is vma else request.next
    source_start: i64 = vma.start
    merged = vma_merge_copied_range(request, vma)
    if merged is not None:
        if merged.start <= source_start < merged.end:
            return merged, merged, YES
        return merged, vma, YES
    copy, refusal = _new_copy(vma, new, new + length, pgoff)
    return copy, vma, refusal


def _new_copy(vma: Vma, start: i64, end: i64, pgoff: i64) -> tuple[Vma | None, i64]:
    """A VMA of its own with all that vma has, in the tree; or None and a reason with nothing changed."""
    mm = vma.mm
    port = mm.port
    if port.may_fail(ALLOC_VMA):
        return None, NO_MEMORY_VMA
    copy = vma.duplicate()
    copy.start = start
    copy.end = end
    copy.pgoff = pgoff
    if vma.policy is not None and port.may_fail(ALLOC_POLICY):
        return None, NO_MEMORY_POLICY
    refusal = anon_vma_clone(copy, vma)
    if refusal != YES:
        return None, refusal
    copy.take_references()
    if copy.ops is not None:
        mm.vma_open(copy)
    if port.may_fail(ALLOC_TREE):
        if copy.ops is not None:
            mm.vma_close(copy)
        mm.free(copy, "copy_vma")
        return None, NO_MEMORY_TREE
    mm.link(copy)
    mm.observer.added(copy)
    return copy, YES


def relocate_vma_down(vma: Vma, shift: i64) -> i64:
    """Slide a VMA down by shift bytes, page tables and all: exec's stack on its way to its final place.

        ....SSSS  ->  SSSSSSSS  ->  SSSS....      expand the bottom, move the pages, shrink the top

    The offset stays as it is, so pages keep their index.  YES or a reason; nothing else may lie in the new range.
    """
    mm = vma.mm
    old_start: i64 = vma.start
    old_end: i64 = vma.end
    pgoff: i64 = vma.pgoff
    new_start = old_start - shift
    new_end = old_end - shift
    if mm.find_vma(new_start) is not vma:
        return OVERLAPS_STACK_MOVE
    request = MergeRequest(mm, new_start, old_end, vma.flags, pgoff)
    if not vma_expand(request, vma, new_start, old_end, pgoff, None):
        return request.failure
    length = old_end - old_start
    refusal = NO_MEMORY_PAGE_TABLE
    if mm.port.move_pages(vma, vma, old_start, new_start, length) == length:
        refusal = vma_shrink(vma, new_start, new_end, pgoff)
    if refusal != YES:
        # It stays larger than it is counted; execve fails, and the process with it.
        mm.doomed = True
        if vma.flags & VM_ACCOUNT:
            mm.commit.lost -= shift >> PAGE_SHIFT
    return refusal


def expand_stack(vma: Vma, addr: i64) -> i64:
    """Grow a stack down to the page of addr: YES or a reason (expand_downwards)."""
    mm = vma.mm
    if not vma.flags & VM_GROWSDOWN:
        return STACK_NOT_GROWSDOWN
    addr = page_down(addr)
    if addr < mm.settings.min_addr:
        return STACK_BELOW_MIN_ADDR
    below = mm.find_vma_prev(vma.start)
    if (
        below is not None
        and not below.flags & VM_GROWSDOWN
        and below.flags & VM_ACCESS
        and addr - below.end < mm.settings.stack_guard_gap
    ):
        return STACK_GUARD_GAP
    if mm.port.may_fail(ALLOC_TREE):
        return NO_MEMORY_TREE
    refusal = anon_vma_prepare(vma)
    if refusal != YES or addr >= vma.start:
        return refusal
    grow = (vma.start - addr) >> PAGE_SHIFT
    if grow > vma.pgoff:
        return STACK_BELOW_MIN_ADDR
    refusal = _account_stack_growth(vma, vma.end - addr, grow)
    if refusal != YES:
        return refusal
    old_start: i64 = vma.start
    old_end: i64 = vma.end
    if vma.flags & VM_LOCKED:
        mm.locked_vm += grow
    if not vma.flags & VM_ACCOUNT:
        # Growth is always committed, and given back only where VM_ACCOUNT says so.
        mm.commit.lost += grow
    mm.vm_stat_account(vma.flags, grow)
    mm.set_range(vma, addr, vma.end, vma.pgoff - grow)
    mm.observer.resized(vma, old_start, old_end)
    return YES


def _account_stack_growth(vma: Vma, size: int, grow: i64) -> i64:
    """Whether a stack may have size bytes, grow pages of them new: YES or a reason (acct_stack_growth)."""
    mm = vma.mm
    refusal = mm.may_expand_vm(vma.flags, grow)
    if refusal != YES:
        return refusal
    if size > mm.limits.stack:
        return LIMIT_STACK
    if mm.mlock_future_ok(vma.flags, grow << PAGE_SHIFT) != YES:
        return LIMIT_MEMLOCK_STACK
    return mm.charge(grow)


def dup_mmap(child: Mm, parent: Mm) -> i64:
    """Fill a new address space with copies of a process's VMAs: fork.  YES or a reason (dup_mmap).

    DONTFORK VMAs are left out, WIPEONFORK ones have no anon_vma, locks are not inherited, and a userfaultfd context
    only if it wants to hear of forks.
    """
    parent.mmap_write_lock()
    child.mmap_write_lock()
    refusal = _dup_vmas(child, parent)
    child.mmap_write_unlock()
    parent.mmap_write_unlock()
    return refusal


def _dup_vmas(child: Mm, parent: Mm) -> i64:
    child.total_vm = parent.total_vm
    child.data_vm = parent.data_vm
    child.exec_vm = parent.exec_vm
    child.stack_vm = parent.stack_vm
    contexts: list[tuple[Userfaultfd, Userfaultfd]] = []
    left_out: list[Vma] = []
    runs: list[list[Vma]] = []
    refusal: i64 = YES
    for values in parent.tree.runs():
        copies: list[Vma] = []
        runs.append(copies)
        for vma in values:
            if vma.flags & VM_DONTCOPY:
                left_out.append(vma)
                copies.append(vma)
                continue
            copy, refusal = _dup_vma(child, vma, contexts)
            if copy is not None:
                copies.append(copy)
            if refusal != YES:
                break
        if refusal != YES:
            break
    _fill(child, parent, runs, left_out)
    if refusal == YES:
        for old, new in contexts:
            old.tell(UffdMessage(UFFD_EVENT_FORK, context=new))
        child.observer.forked(child, parent)
    return refusal


def _dup_userfaultfd(copy: Vma, old: Userfaultfd, contexts: list[tuple[Userfaultfd, Userfaultfd]]) -> None:
    """A child's memory has a context of its own, if the parent's wants to hear of forks; else none (dup_userfaultfd).

    contexts: the parent's and the child's that are known by now.
    """
    if not old.has(UFFD_FEATURE_EVENT_FORK):
        copy.uffd = None
        copy.flags = copy.flags & ~VM_UFFD
        return
    for known, its_child in contexts:
        if known is old:
            copy.uffd = its_child
            return
    new = Userfaultfd(old.name, old.features)
    new.mm = copy.mm
    if old.queue is not None:
        new.queue = UffdQueue()
        new.queue.initialised = True
    contexts.append((old, new))
    copy.uffd = new


def _fill(child: Mm, parent: Mm, runs: list[list[Vma]], left_out: list[Vma]) -> None:
    """Put the copies into the child's tree, all at once: it has the shape of the parent's.

    left_out: VMAs of the parent that stand in the places of those that are not copied.  Where memory ran out, the last
    ones are missing.
    """
    copied = sum([len(run) for run in runs])
    if copied == parent.map_count:
        child.tree = parent.tree.with_runs(runs)
    else:
        for run in runs:
            for vma in run:
                child.tree.insert(vma.start, vma.end, vma)
    child.count_maps(copied - len(left_out))
    for vma in left_out:
        child.tree.erase(vma.start, vma.end)
        child.vm_stat_account(vma.flags, -vma.pages())


def _dup_vma(child: Mm, vma: Vma, contexts: list[tuple[Userfaultfd, Userfaultfd]]) -> tuple[Vma | None, i64]:
    """A copy of a VMA for a child, not in its tree yet, and YES; or a reason, with the copy if it is to be freed."""
    port = child.port
    charged: i64 = 0
    refusal: i64 = YES
    if vma.flags & VM_ACCOUNT:
        charged = vma.pages()
        refusal = vma.mm.charge(charged)
        if refusal != YES:
            return None, refusal
    copy: Vma | None = None
    if port.may_fail(ALLOC_VMA):
        refusal = NO_MEMORY_VMA
    elif vma.policy is not None and port.may_fail(ALLOC_POLICY):
        refusal = NO_MEMORY_POLICY
    else:
        copy = vma.duplicate(child)
        if copy.uffd is not None:
            _dup_userfaultfd(copy, copy.uffd, contexts)
        if copy.anon_vma is not None:
            copy.anon_vma = None
            if not copy.flags & VM_WIPEONFORK:
                refusal = anon_vma_fork(copy, vma)
        copy.flags = copy.flags & ~VM_LOCKED_MASK
    if copy is None or refusal != YES:
        child.commit.uncharge(charged)
        return None, refusal
    copy.take_references()
    if copy.ops is not None:
        child.vma_open(copy)
    if not copy.flags & VM_WIPEONFORK:
        refusal = port.copy_pages(copy, vma)
    return copy, refusal


def exit_mmap(mm: Mm) -> None:
    """Take everything down that an address space holds."""
    mm.mmap_write_lock()
    accounted = 0
    for vma in mm.vmas():
        mm.port.unmap_pages(vma, vma.start, vma.end)
        if vma.ops is not None:
            mm.vma_close(vma)
        if vma.flags & VM_ACCOUNT:
            accounted += vma.pages()
        mm.free(vma, "exit_mmap")
    mm.tree.clear()
    mm.commit.uncharge(accounted)
    mm.map_count = 0
    mm.total_vm = 0
    mm.data_vm = 0
    mm.exec_vm = 0
    mm.stack_vm = 0
    mm.locked_vm = 0
    mm.lost_locked = 0
    mm.mmap_write_unlock()
