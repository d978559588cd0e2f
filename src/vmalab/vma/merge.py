"""Merging: first a plan, from decisions that change nothing, then its commit.

A MergeRequest says what range with what attributes is wanted between which neighbours.  A plan says for each side
whether the neighbour can take the range, or the Reason why not.  Explanations ask the same decisions again.
"""

from __future__ import annotations

from typing import final

from mypy_extensions import i64, mypyc_attr

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import VM_SPECIAL
from vmalab.reason import (
    ANON_VMA_DIFFERS,
    ANON_VMA_OF_FORK,
    CLOSE_HOOK,
    EXPAND_ONLY,
    FILE_DIFFERS,
    FLAGS_DIFFER,
    NAME_DIFFERS,
    NO_EDGE,
    NO_MEMORY_TREE,
    NO_NEIGHBOUR,
    NOT_ADJACENT,
    OFFSET_NOT_CONTIGUOUS,
    POLICY_DIFFERS,
    SPECIAL_VMA,
    UFFD_DIFFERS,
    YES,
)
from vmalab.vma.anon import dup_anon_vma, is_fork_child, unlink_anon_vmas
from vmalab.vma.area import AnonVma, File, Policy, Userfaultfd, Vma, mpol_equal
from vmalab.vma.port import ALLOC_TREE
from vmalab.vma.space import Mm


@mypyc_attr(free_list_len=1, acyclic=True)
@final
class MergeRequest:
    """The range [start, end) with the attributes it shall have, and what lies around it (struct vma_merge_struct).

    middle is the VMA that holds the range now, or None for memory that is not mapped yet.  copied_from is the source of
    an mremap.  failure is set to a reason if memory ran out.
    """

    __slots__ = (
        "anon_vma",
        "copied_from",
        "end",
        "expand_only",
        "failure",
        "file",
        "flags",
        "middle",
        "mm",
        "name",
        "next",
        "pgoff",
        "policy",
        "prev",
        "start",
        "uffd",
    )

    def __init__(
        self,
        mm: Mm,
        start: i64,
        end: i64,
        flags: i64,
        pgoff: i64,
        like: Vma | None = None,
        prev: Vma | None = None,
        middle: Vma | None = None,
        following: Vma | None = None,
    ) -> None:
        """A request for anonymous memory that was never written to, or for memory like that of a VMA."""
        self.mm: Mm = mm
        self.prev: Vma | None = prev
        self.middle: Vma | None = middle
        self.next: Vma | None = following
        self.start: i64 = start
        self.end: i64 = end
        self.flags: i64 = flags
        self.pgoff: i64 = pgoff
        if like is None:
            self.file: File | None = None
            self.anon_vma: AnonVma | None = None
            self.policy: Policy | None = None
            self.uffd: Userfaultfd | None = None
            self.name: str | None = None
        else:
            self.file = like.file
            self.anon_vma = like.anon_vma
            self.policy = like.policy
            self.uffd = like.uffd
            self.name = like.name
        self.copied_from: Vma | None = None
        self.expand_only: bool = False
        self.failure: i64 = YES


def request_for_vma(vma: Vma, start: i64, end: i64) -> MergeRequest:
    """A request for [start, end) with the attributes of a VMA, its offset continued; neighbours are left out."""
    return MergeRequest(vma.mm, start, end, vma.flags, vma.pgoff_at(start), vma)


def request_for_modify(vma: Vma, start: i64, end: i64) -> MergeRequest:
    """A request to change [start, end) of a VMA, with the neighbours that the range touches."""
    mm = vma.mm
    prev = mm.tree.find_before(start) if start == vma.start else None
    following = mm.tree.find(end) if end == vma.end else None
    return MergeRequest(mm, start, end, vma.flags, vma.pgoff_at(start), vma, prev, vma, following)


# -- decisions ----------------------------------------------------------------------------------------


def is_mergeable_vma(vma: Vma, request: MergeRequest) -> i64:
    """Whether a neighbour has the attributes that are asked for: YES, or the first that differs."""
    if not mpol_equal(request.policy, vma.policy):
        return POLICY_DIFFERS
    if (vma.flags ^ request.flags) & ~request.mm.semantics.ignored_flags:
        return FLAGS_DIFFER
    if vma.file is not request.file:
        return FILE_DIFFERS
    if vma.uffd is not request.uffd:
        return UFFD_DIFFERS
    if vma.name != request.name:
        return NAME_DIFFERS
    return YES


def is_mergeable_anon_vma(target: Vma, request: MergeRequest) -> i64:
    """Whether a neighbour's anon_vma can serve the range too: YES, ANON_VMA_DIFFERS or ANON_VMA_OF_FORK.

    One side without an anon_vma takes the other's, unless the other's pages may be shared through fork.
    """
    wanted = request.anon_vma
    if not request.mm.semantics.unfaulted_merges:
        if target.anon_vma is None and wanted is not None:
            return ANON_VMA_DIFFERS
    if target.anon_vma is None:
        if wanted is not None:
            source = request.middle if request.middle is not None else request.copied_from
            if source is not None and is_fork_child(source):
                return ANON_VMA_OF_FORK
        return YES
    if wanted is None:
        return ANON_VMA_OF_FORK if is_fork_child(target) else YES
    return YES if wanted is target.anon_vma else ANON_VMA_DIFFERS


def can_vma_merge_after(prev: Vma, request: MergeRequest) -> i64:
    """Whether the range can become the end of prev."""
    refusal = is_mergeable_vma(prev, request)
    if refusal == YES:
        refusal = is_mergeable_anon_vma(prev, request)
    if refusal == YES and prev.pgoff + ((prev.end - prev.start) >> PAGE_SHIFT) != request.pgoff:
        refusal = OFFSET_NOT_CONTIGUOUS
    return refusal


def can_vma_merge_before(following: Vma, request: MergeRequest) -> i64:
    """Whether the range can become the start of the VMA that follows."""
    refusal = is_mergeable_vma(following, request)
    if refusal == YES:
        refusal = is_mergeable_anon_vma(following, request)
    if refusal == YES and request.pgoff + ((request.end - request.start) >> PAGE_SHIFT) != following.pgoff:
        refusal = OFFSET_NOT_CONTIGUOUS
    return refusal


def can_vma_merge_left(request: MergeRequest) -> i64:
    """Whether the range can be merged into prev: YES or the reason."""
    prev = request.prev
    if prev is None:
        return NO_NEIGHBOUR
    if prev.end != request.start:
        return NOT_ADJACENT
    return can_vma_merge_after(prev, request)


def can_vma_merge_right(request: MergeRequest, left_merges: bool) -> i64:
    """Whether the range can be merged into next: YES or the reason.

    If it merges to the left as well, prev and next become one, so their anon_vmas must agree.
    """
    following = request.next
    if following is None:
        return NO_NEIGHBOUR
    if request.end != following.start:
        return NOT_ADJACENT
    refusal = can_vma_merge_before(following, request)
    if refusal != YES or not left_merges:
        return refusal
    prev = request.prev
    assert prev is not None
    if prev.anon_vma is None or following.anon_vma is None or prev.anon_vma is following.anon_vma:
        return YES
    return ANON_VMA_DIFFERS


def can_merge_remove_vma(vma: Vma) -> bool:
    """Whether a merge may make a VMA disappear: not if its driver would have to be told (close hook)."""
    return vma.ops is None or not vma.ops.has_close


def plan_existing_range(request: MergeRequest) -> tuple[i64, i64]:
    """How the range of an existing VMA would merge: for prev and for next, YES if it takes the range, or why not."""
    middle = request.middle
    assert middle is not None
    at_start = request.start == middle.start
    at_end = request.end == middle.end
    if request.flags & VM_SPECIAL:
        return SPECIAL_VMA, SPECIAL_VMA
    left: i64 = NO_EDGE
    right: i64 = NO_EDGE
    if at_start:
        left = can_vma_merge_left(request)
    if at_end:
        right = can_vma_merge_right(request, left == YES)
    if at_start and at_end and not can_merge_remove_vma(middle):
        if left == YES:
            left = CLOSE_HOOK
        if right == YES:
            right = CLOSE_HOOK
        return left, right
    if left == YES and right == YES:
        following = request.next
        assert following is not None
        if not can_merge_remove_vma(following):
            right = CLOSE_HOOK
    return left, right


def plan_new_range(request: MergeRequest) -> tuple[i64, i64]:
    """How memory that is not mapped yet would merge: for prev and for next, as plan_existing_range."""
    if request.flags & VM_SPECIAL:
        return SPECIAL_VMA, SPECIAL_VMA
    left = can_vma_merge_left(request)
    right: i64 = EXPAND_ONLY
    if not request.expand_only:
        right = can_vma_merge_right(request, left == YES)
    if left == YES and right == YES:
        following = request.next
        assert following is not None
        if not can_merge_remove_vma(following):
            right = CLOSE_HOOK
    return left, right


# -- commit -------------------------------------------------------------------------------------------


def _stick(target: Vma, flags: i64) -> None:
    """The survivor of a merge has the sticky flags of all its parts."""
    target.flags = target.flags | flags & target.mm.semantics.sticky_flags


def _dup_and_preallocate(request: MergeRequest, target: Vma, source: Vma | None) -> bool:
    """Do all of a merge that can fail.  False, with request.failure set and nothing changed, if memory runs out."""
    mm = request.mm
    duplicated = False
    if source is not None:
        duplicated = target.anon_vma is None and source.anon_vma is not None
        request.failure = dup_anon_vma(target, source)
        if request.failure != YES:
            return False
    if not mm.quiet and mm.port.may_fail(ALLOC_TREE):
        request.failure = NO_MEMORY_TREE
        if duplicated:
            unlink_anon_vmas(target)
        return False
    return True


def vma_merge_existing_range(request: MergeRequest) -> Vma | None:
    """Merge the range of an existing VMA, which is to get the request's attributes, with its neighbours.

        PPPP|****|NNNN   both: prev swallows the range and next      PPPPPPPPPPPP
        PPPP|**MM        left: prev grows, middle starts later        PPPPPPMM
             MM**|NNNN   right: middle ends earlier, next grows down  MMNNNNNN

    Returns the survivor, or None if nothing merged; request.failure then tells whether memory ran out.
    """
    mm = request.mm
    mm.assert_write_locked()
    left, right = plan_existing_range(request)
    if left != YES and right != YES:
        return None
    prev = request.prev
    middle = request.middle
    following = request.next
    assert middle is not None
    start = request.start
    end = request.end
    if left != YES:
        assert following is not None
        if not _dup_and_preallocate(request, following, middle):
            return None
        if start == middle.start:
            pgoff = following.pgoff - ((end - start) >> PAGE_SHIFT)
            mm.absorb(following, start, following.end, pgoff, middle)
        else:
            mm.move_boundary(middle, following, start)
        _stick(following, request.flags)
        mm.observer.merged(following, start, end)
        return following
    assert prev is not None
    if right == YES:
        assert following is not None
        # At most one of the two has an anon_vma that prev lacks.
        source = following if following.anon_vma is not None else middle
        if not _dup_and_preallocate(request, prev, source):
            return None
        end = following.end
        _stick(prev, following.flags)
        mm.absorb(prev, prev.start, end, prev.pgoff, middle)
        mm.drop(following)
    else:
        if not _dup_and_preallocate(request, prev, middle):
            return None
        if end == middle.end:
            mm.absorb(prev, prev.start, end, prev.pgoff, middle)
        else:
            mm.move_boundary(prev, middle, end)
    _stick(prev, request.flags)
    mm.observer.merged(prev, start, end)
    return prev


def vma_merge_new_range(request: MergeRequest) -> Vma | None:
    """Merge memory that is about to be mapped with its neighbours; the range must be empty.

    Returns the VMA that now holds it, or None if nothing merged; request.failure then tells whether memory ran out.
    """
    request.mm.assert_write_locked()
    left, right = plan_new_range(request)
    if left != YES and right != YES:
        return None
    if left != YES:
        following = request.next
        assert following is not None
        pages = (request.end - request.start) >> PAGE_SHIFT
        pgoff = following.pgoff - pages
        merged = vma_expand(request, following, request.start, following.end, pgoff, None)
        target = following
    else:
        prev = request.prev
        assert prev is not None
        swallowed = request.next if right == YES else None
        end = swallowed.end if swallowed is not None else request.end
        merged = vma_expand(request, prev, prev.start, end, prev.pgoff, swallowed)
        target = prev
    if not merged:
        return None
    request.mm.observer.merged(target, request.start, request.end)
    return target


def vma_expand(request: MergeRequest, target: Vma, start: i64, end: i64, pgoff: i64, swallowed: Vma | None) -> bool:
    """Grow target to [start, end), which may swallow the VMA that follows it.

    False, with request.failure set and nothing changed, if memory runs out.
    """
    source = request.copied_from
    if swallowed is not None and swallowed.anon_vma is not None:
        source = swallowed
    if not _dup_and_preallocate(request, target, source):
        return False
    mm = request.mm
    _stick(target, request.flags)
    if swallowed is not None:
        _stick(target, swallowed.flags)
        mm.absorb(target, start, end, pgoff, swallowed)
    else:
        mm.set_range(target, start, end, pgoff)
    return True


def vma_merge_copied_range(request: MergeRequest, source: Vma) -> Vma | None:
    """Merge the target range of an mremap: as for new memory, but it brings the anon_vma of its source."""
    request.middle = None
    request.copied_from = source
    return vma_merge_new_range(request)


def vma_merge_extend(vma: Vma, delta: i64) -> tuple[Vma | None, i64]:
    """Grow a VMA by delta bytes at its end, merging with what it then touches.

    Returns the VMA, or None and the reason if memory ran out.
    """
    request = request_for_vma(vma, vma.end, vma.end + delta)
    request.prev = vma
    request.next = vma.mm.tree.find(vma.end)
    merged = vma_merge_new_range(request)
    return merged, request.failure
