"""anon_vma and its chain: what ties the anonymous pages of VMAs together, and so decides merges (mm/rmap.c)."""

from __future__ import annotations

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import VM_ACCESS
from vmalab.reason import NO_MEMORY_ANON_VMA, YES
from vmalab.vma.area import AnonVma, Vma, mpol_equal
from vmalab.vma.port import ALLOC_ANON_VMA


def is_fork_child(vma: Vma) -> bool:
    """Whether its pages may be shared with a process it was forked from (vma_is_fork_child)."""
    return vma.anon_vma is not None and len(vma.chain) > 1


def _link(vma: Vma, anon_vma: AnonVma) -> None:
    vma.chain += (anon_vma,)
    anon_vma.links += 1


def anon_vma_prepare(vma: Vma) -> int:
    """Give a VMA that is about to receive its first anonymous page an anon_vma (__anon_vma_prepare).

    A compatible neighbour's is shared, so that making the two equal later merges them.  YES or NO_MEMORY_ANON_VMA.
    """
    if vma.anon_vma is not None:
        return YES
    mm = vma.mm
    mm.assert_locked()
    if mm.port.may_fail(ALLOC_ANON_VMA):
        return NO_MEMORY_ANON_VMA
    anon_vma = find_mergeable_anon_vma(vma)
    if anon_vma is None:
        if mm.port.may_fail(ALLOC_ANON_VMA):
            return NO_MEMORY_ANON_VMA
        anon_vma = AnonVma(None)
    vma.anon_vma = anon_vma
    _link(vma, anon_vma)
    anon_vma.active += 1
    mm.port.anon_vma_changed(vma)
    mm.observer.attribute_changed(vma, "anon_vma")
    return YES


def anon_vma_found(chain: int) -> AnonVma:
    """An anon_vma that a running process was found with, at the end of a chain of that length.

    Of its ancestors, which belong to other processes, nothing is known but that they are there.
    """
    found = AnonVma(None)
    for _ in range(1, chain):
        parent = found
        parent.children += 1
        found = AnonVma(parent)
    return found


def anon_vma_restore(vma: Vma, anon_vma: AnonVma) -> None:
    """Give a VMA the anon_vma that it was found with, and chain it to all its ancestors."""
    vma.anon_vma = anon_vma
    anon_vma.active += 1
    _link(vma, anon_vma)
    while anon_vma.parent is not anon_vma:
        anon_vma = anon_vma.parent
        _link(vma, anon_vma)
    vma.mm.port.anon_vma_changed(vma)


def find_mergeable_anon_vma(vma: Vma) -> AnonVma | None:
    """The anon_vma of a neighbour that vma could be merged with if permissions became equal; next first, then prev."""
    mm = vma.mm
    after = mm.tree.load(vma.end)
    if after is not None and _anon_vma_compatible(vma, after):
        found = _reusable(after)
        if found is not None:
            return found
    before = mm.tree.load(vma.start - 1) if vma.start > 0 else None
    if before is not None and _anon_vma_compatible(before, vma):
        return _reusable(before)
    return None


def _anon_vma_compatible(below: Vma, above: Vma) -> bool:
    """Whether two touching VMAs agree in all that mprotect cannot change (anon_vma_compatible)."""
    ignored = VM_ACCESS | below.mm.semantics.ignored_flags
    return (
        below.end == above.start
        and mpol_equal(below.policy, above.policy)
        and below.file is above.file
        and ((below.flags ^ above.flags) & ~ignored) == 0
        and above.pgoff == below.pgoff + ((above.start - below.start) >> PAGE_SHIFT)
    )


def _reusable(vma: Vma) -> AnonVma | None:
    """A neighbour's anon_vma, unless the neighbour's pages are shared through fork (reusable_anon_vma)."""
    return vma.anon_vma if len(vma.chain) == 1 else None


def anon_vma_clone(dst: Vma, src: Vma) -> int:
    """Chain dst to every anon_vma that src is chained to (anon_vma_clone).

    dst takes part in its own anon_vma, if it has one already.  If it has none and src has, an anon_vma that no VMA uses
    any more and that has at most one child is reused.  YES, or NO_MEMORY_ANON_VMA with dst unchained.
    """
    port = src.mm.port
    for anon_vma in reversed(src.chain):
        if port.may_fail(ALLOC_ANON_VMA):
            # As the kernel does, forget the anon_vma first: its use was not counted yet.
            dst.anon_vma = None
            unlink_anon_vmas(dst)
            return NO_MEMORY_ANON_VMA
        _link(dst, anon_vma)
        if dst.anon_vma is None and src.anon_vma is not None and _is_abandoned(anon_vma, src):
            dst.anon_vma = anon_vma
    if dst.anon_vma is not None:
        dst.anon_vma.active += 1
    # A chain is kept with the newest first: cloning from the back keeps the order.
    if dst.chain:
        dst.chain = dst.chain[::-1]
        port.anon_vma_changed(dst)
    return YES


def _is_abandoned(anon_vma: AnonVma, src: Vma) -> bool:
    """Whether nobody uses an anon_vma of src's chain any more and at most one is below it, so that a child may have it.

    Before users and children were told apart, one user and no child passed for no user and one child.
    """
    if src.mm.semantics.anon_vma_reuse_counts_children:
        return anon_vma.active == 0 and anon_vma.children < 2
    return anon_vma is not src.anon_vma and anon_vma.active + anon_vma.children < 2


def anon_vma_fork(child: Vma, parent: Vma) -> int:
    """The chain of a forked VMA, which has no anon_vma yet: the parent's, and one of its own below (anon_vma_fork).

    An ancestor's that nobody uses any more serves as its own.
    """
    if parent.anon_vma is None:
        return YES
    refusal = anon_vma_clone(child, parent)
    if refusal != YES:
        return refusal
    if child.anon_vma is not None:
        return YES
    port = parent.mm.port
    if port.may_fail(ALLOC_ANON_VMA):
        unlink_anon_vmas(child)
        return NO_MEMORY_ANON_VMA
    own = AnonVma(parent.anon_vma)
    own.active = 1
    child.anon_vma = own
    child.chain = (own, *child.chain)
    own.links += 1
    parent.anon_vma.children += 1
    port.anon_vma_changed(child)
    return YES


def unlink_anon_vmas(vma: Vma) -> None:
    """Leave every anon_vma that vma is chained to (unlink_anon_vmas)."""
    for anon_vma in vma.chain:
        anon_vma.links -= 1
        if anon_vma.links == 0:
            anon_vma.parent.children -= 1
    if vma.anon_vma is not None:
        vma.anon_vma.active -= 1
        vma.anon_vma = None
    vma.chain = ()


def dup_anon_vma(dst: Vma, src: Vma) -> int:
    """Before a merge into dst: give it src's anon_vma if only src has one (dup_anon_vma)."""
    if src.anon_vma is None or dst.anon_vma is not None:
        return YES
    dst.anon_vma = src.anon_vma
    return anon_vma_clone(dst, src)
