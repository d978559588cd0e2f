"""mremap: shrink, grow in place, move, duplicate."""

from __future__ import annotations

from typing import final

from vmalab.addr import PAGE_MASK, PAGE_SHIFT, is_unsigned_long, page_up
from vmalab.flags import (
    MAP_FIXED,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    UFFD_EVENT_REMAP,
    UFFD_FEATURE_EVENT_REMAP,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_PFNMAP,
    VM_SEALED,
    VM_SHARED,
    VM_UFFD,
)
from vmalab.pages.port import memory_of
from vmalab.pages.reclaim import lock_for_good
from vmalab.pages.uffd import forget_protection
from vmalab.reason import (
    BEYOND_TASK_SIZE,
    DRIVER_REFUSES_MOVE,
    MAP_COUNT_MREMAP,
    MREMAP_BEYOND_TASK_SIZE,
    MREMAP_CANNOT_GROW,
    MREMAP_CROSSES,
    MREMAP_DONTUNMAP_RESIZES,
    MREMAP_DONTUNMAP_SPECIAL,
    MREMAP_DUPLICATES_PRIVATE,
    MREMAP_HUGETLB,
    MREMAP_MANY_UNFIT,
    MREMAP_NEEDS_MAYMOVE,
    MREMAP_NEW_LENGTH_ZERO,
    MREMAP_OFFSET_OVERFLOW,
    MREMAP_OVERLAP,
    MREMAP_SPECIAL,
    NO_MEMORY_PAGE_TABLE,
    NOT_MAPPED_EFAULT,
    SEALED,
    UNALIGNED,
    UNKNOWN_FLAGS,
    YES,
)
from vmalab.syscalls.madvise import unmerge
from vmalab.syscalls.populate import mm_populate
from vmalab.vma.anon import unlink_anon_vmas
from vmalab.vma.area import UffdMessage, Vma
from vmalab.vma.merge import vma_merge_extend
from vmalab.vma.modify import may_split, set_flags, vma_modify_flags
from vmalab.vma.place import check_fixed, get_unmapped_area
from vmalab.vma.relocate import copy_vma
from vmalab.vma.space import Mm
from vmalab.vma.unmap import do_munmap


@final
class Remap:
    """One mremap on its way: what the caller asked for, and what has become of it (struct vma_remap_struct)."""

    __slots__ = ("addr", "charged", "delta", "flags", "mm", "new", "new_len", "old_len", "populates", "vma")

    def __init__(self, mm: Mm, addr: int, old_len: int, new_len: int, flags: int, new: int) -> None:
        self.mm: Mm = mm
        self.addr: int = addr
        self.old_len: int = page_up(old_len)
        self.new_len: int = page_up(new_len)
        self.flags: int = flags
        self.new: int = new
        self.vma: Vma | None = None
        self.delta: int = abs(self.old_len - self.new_len)
        self.charged: int = 0
        self.populates: bool = False

    def names_target(self) -> bool:
        """Whether the caller gave a new address that counts."""
        return self.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) != 0


def mremap(mm: Mm, addr: int, old_len: int, new_len: int, flags: int, new: int) -> int:
    """mremap: the new address, or minus a reason."""
    remap = Remap(mm, addr, old_len, new_len, flags, new)
    mm.mmap_write_lock()
    result = _do_mremap(remap)
    mm.mmap_write_unlock()
    if result >= 0 and remap.populates:
        mm_populate(mm, result + remap.old_len, result + remap.new_len)
    return result


def _do_mremap(remap: Remap) -> int:
    refusal = _check_arguments(remap)
    if refusal != YES:
        return -refusal
    same_length = remap.old_len == remap.new_len
    if remap.flags & MREMAP_FIXED and same_length and remap.mm.semantics.mremap_moves_many:
        return _remap_move(remap)
    return _remap_one(remap, remap.mm.vma_lookup(remap.addr))


def _check_arguments(remap: Remap) -> int:
    """All that can be said of the arguments without a look at a VMA (check_mremap_params)."""
    mm = remap.mm
    flags = remap.flags
    if flags & ~(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP):
        return UNKNOWN_FLAGS
    if remap.addr & PAGE_MASK:
        return UNALIGNED
    if remap.new_len == 0:
        return MREMAP_NEW_LENGTH_ZERO
    if remap.new_len > mm.task_size:
        return BEYOND_TASK_SIZE
    if not remap.names_target():
        return YES
    if remap.new > mm.task_size - remap.new_len:
        return MREMAP_BEYOND_TASK_SIZE
    if remap.new & PAGE_MASK:
        return UNALIGNED
    if not flags & MREMAP_MAYMOVE:
        return MREMAP_NEEDS_MAYMOVE
    if flags & MREMAP_DONTUNMAP and remap.old_len != remap.new_len:
        return MREMAP_DONTUNMAP_RESIZES
    if remap.addr + remap.old_len > remap.new and remap.new + remap.new_len > remap.addr:
        return MREMAP_OVERLAP
    if mm.map_count + 2 >= mm.settings.max_map_count - 3:
        return MAP_COUNT_MREMAP
    return YES


def _remap_move(remap: Remap) -> int:
    """Move every VMA of the range, keeping the gaps between them; nothing is resized (remap_move)."""
    mm = remap.mm
    start = remap.addr
    end = start + remap.old_len
    target = remap.new
    result = -NOT_MAPPED_EFAULT
    last_end = 0
    at = start
    while at < end:
        vma = mm.find_vma_intersection(at, end)
        if vma is None:
            break
        first = at == start
        if first and vma.start > start:
            return -NOT_MAPPED_EFAULT
        if not _may_move_with_others(vma) and (not first or vma.end < end):
            return -MREMAP_MANY_UNFIT
        vma_end: int = vma.end
        piece_start = max(vma.start, start)
        length = min(end, vma_end) - piece_start
        gap = 0 if first else vma.start - last_end
        last_end = vma_end
        piece = Remap(mm, piece_start, length, length, remap.flags, target + gap)
        moved = _remap_one(piece, vma)
        if moved < 0:
            return moved
        if first:
            result = moved
        target = moved + length
        at = vma_end
    return result


def _may_move_with_others(vma: Vma) -> bool:
    """Whether a VMA can be one of several that move: no userfaultfd, no driver that chooses addresses."""
    if vma.uffd is not None:
        return False
    if vma.ops is not None and vma.ops.name == "shm" and not vma.flags & VM_HUGETLB:
        # A System V segment; shared anonymous memory is shmem, which may, and so may huge pages.
        return False
    return vma.file is None or vma.file.kind in ("regular", "memfd", "shm", "hugetlb", "secretmem")


def _remap_one(remap: Remap, vma: Vma | None) -> int:
    """Remap one VMA: move it, shrink it, or grow it in place or elsewhere."""
    refusal = _check_vma(remap, vma)
    if refusal != YES:
        return -refusal
    remap.vma = vma
    if remap.names_target():
        return _mremap_to(remap)
    if remap.old_len == remap.new_len:
        return remap.addr
    if remap.old_len > remap.new_len:
        refusal = do_munmap(remap.mm, remap.addr + remap.new_len, remap.delta)
        if refusal != YES:
            return -refusal
        return remap.addr
    return _expand(remap)


def _check_vma(remap: Remap, vma: Vma | None) -> int:
    """Whether this VMA can be remapped so (check_prep_vma)."""
    mm = remap.mm
    if vma is None:
        return NOT_MAPPED_EFAULT
    if vma.flags & VM_SEALED:
        return SEALED
    if vma.flags & VM_HUGETLB and not _align_hugetlb(remap, vma):
        return MREMAP_HUGETLB
    if remap.old_len >= remap.new_len and not remap.names_target():
        return YES
    if remap.old_len == 0 and not vma.flags & (VM_SHARED | VM_MAYSHARE):
        return MREMAP_DUPLICATES_PRIVATE
    if remap.flags & MREMAP_DONTUNMAP and vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return MREMAP_DONTUNMAP_SPECIAL
    # What a shrink gives up may be anything: only what stays must lie in one VMA.
    if min(remap.old_len, remap.new_len) > vma.end - remap.addr:
        return MREMAP_CROSSES
    if remap.new_len <= remap.old_len:
        return YES
    if vma.flags & VM_LOCKED:
        remap.populates = True
    if not is_unsigned_long(vma.pgoff_at(remap.addr) + (remap.new_len >> PAGE_SHIFT)):
        return MREMAP_OFFSET_OVERFLOW
    if vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        return MREMAP_SPECIAL
    refusal = mm.mlock_future_ok(vma.flags, remap.delta)
    if refusal != YES:
        return refusal
    return mm.may_expand_vm(vma.flags, remap.delta >> PAGE_SHIFT)


def _align_hugetlb(remap: Remap, vma: Vma) -> bool:
    """Round to huge pages; they may not be cut, nor the mapping grown."""
    mask = (vma.file.huge_size if vma.file is not None else 0x200000) - 1
    remap.old_len = (remap.old_len + mask) & ~mask
    remap.new_len = (remap.new_len + mask) & ~mask
    remap.delta = abs(remap.old_len - remap.new_len)
    return not remap.addr & mask and not remap.new & mask and remap.new_len <= remap.old_len


def _mremap_to(remap: Remap) -> int:
    """Move to a named place, over whatever is there; then shrink if asked to (mremap_to)."""
    mm = remap.mm
    if remap.flags & MREMAP_FIXED:
        refusal = do_munmap(mm, remap.new, remap.new_len)
        if refusal != YES:
            return -refusal
        remap.vma = mm.vma_lookup(remap.addr)
        if remap.vma is None:
            return -NOT_MAPPED_EFAULT
    if remap.old_len > remap.new_len:
        refusal = do_munmap(mm, remap.addr + remap.new_len, remap.delta)
        if refusal != YES:
            return -refusal
        remap.vma = mm.vma_lookup(remap.addr)
        if remap.vma is None:
            return -NOT_MAPPED_EFAULT
        remap.old_len = remap.new_len
    vma = remap.vma
    assert vma is not None
    if remap.flags & MREMAP_DONTUNMAP:
        refusal = mm.may_expand_vm(vma.flags, remap.old_len >> PAGE_SHIFT)
        if refusal != YES:
            return -refusal
    return _find_place_and_move(remap, vma, remap.new)


def _expand(remap: Remap) -> int:
    """Grow in place if the range ends where its VMA ends and there is room; else move, if that is allowed."""
    mm = remap.mm
    vma = remap.vma
    assert vma is not None
    new_end = vma.end + remap.delta
    if (
        remap.addr + remap.old_len == vma.end
        and mm.find_vma_intersection(vma.end, new_end) is None
        and check_fixed(mm, vma.start, new_end - vma.start) == YES
    ):
        return _expand_in_place(remap, vma)
    if not remap.flags & MREMAP_MAYMOVE:
        return -MREMAP_CANNOT_GROW
    return _find_place_and_move(remap, vma, 0)


def _expand_in_place(remap: Remap, vma: Vma) -> int:
    refusal = _charge(remap, vma)
    if refusal != YES:
        return -refusal
    merged, refusal = vma_merge_extend(vma, remap.delta)
    if merged is None:
        remap.mm.commit.uncharge(remap.charged)
        # Without memory, or because nothing may be added to this VMA: the caller cannot tell.
        return -(refusal if refusal != YES else MREMAP_CANNOT_GROW)
    _stat_account(merged, remap.delta)
    return remap.addr


def _charge(remap: Remap, vma: Vma) -> int:
    """Commit what is added; under DONTUNMAP, all of it.

    A remap that shrinks and moves is charged for what it gave up (Semantics.mremap_shrink_charges).
    """
    if not vma.flags & VM_ACCOUNT:
        return YES
    grown = remap.delta if remap.mm.semantics.mremap_shrink_charges else remap.new_len - remap.old_len
    pages = (remap.new_len if remap.flags & MREMAP_DONTUNMAP else grown) >> PAGE_SHIFT
    refusal = remap.mm.charge(pages)
    if refusal == YES:
        remap.charged = pages
    return refusal


def _stat_account(vma: Vma, length: int) -> None:
    pages = length >> PAGE_SHIFT
    vma.mm.vm_stat_account(vma.flags, pages)
    if vma.flags & VM_LOCKED:
        vma.mm.locked_vm += pages


def _find_place_and_move(remap: Remap, vma: Vma, hint: int) -> int:
    flags = MAP_FIXED if remap.flags & MREMAP_FIXED else 0
    if vma.flags & VM_MAYSHARE:
        flags |= MAP_SHARED
    found = get_unmapped_area(remap.mm, vma.file, hint, remap.new_len, vma.pgoff_at(remap.addr), flags)
    if found < 0:
        return found
    remap.new = found
    return _move_vma(remap, vma)


def _move_vma(remap: Remap, vma: Vma) -> int:
    """Copy the VMA, move its pages, and unmap the source or, under DONTUNMAP, leave it empty (move_vma)."""
    mm = remap.mm
    if mm.map_count >= mm.settings.max_map_count - 3:
        return -MAP_COUNT_MREMAP
    for edge in (remap.addr, remap.addr + remap.old_len):
        if vma.start < edge < vma.end:
            refusal = may_split(vma, edge)
            if refusal != YES:
                return -refusal
    refusal = unmerge(vma, remap.addr, remap.addr + remap.old_len)
    if refusal != YES:
        return -refusal
    refusal = _charge(remap, vma)
    if refusal != YES:
        return -refusal
    copy, vma, refusal = copy_vma(
        vma,
        remap.addr,
        remap.new,
        remap.new_len,
        keeps_source=remap.flags & MREMAP_DONTUNMAP != 0,
        drops_uffd=vma.uffd is not None and not vma.uffd.has(UFFD_FEATURE_EVENT_REMAP),
    )
    if copy is None:
        mm.commit.uncharge(remap.charged)
        return -refusal
    moved = mm.port.move_pages(vma, copy, remap.addr, remap.new, remap.old_len)
    refusal = YES
    if moved < remap.old_len:
        refusal = NO_MEMORY_PAGE_TABLE
    elif vma.ops is not None and mm.port.moved(copy) != YES:
        refusal = DRIVER_REFUSES_MOVE
    if refusal != YES:
        # Bring back what was moved, then unmap the copy in place of the source.
        mm.port.move_pages(copy, vma, remap.new, remap.addr, moved)
        vma = copy
        remap.addr = remap.new
        remap.old_len = remap.new_len
    else:
        if copy.uffd is not None and copy.uffd.has(UFFD_FEATURE_EVENT_REMAP):
            copy.uffd.tell(UffdMessage(UFFD_EVENT_REMAP, remap.addr, remap.new, remap.old_len))
        _drop_userfaultfd(copy, remap.new, remap.old_len)
    if remap.charged and not remap.flags & MREMAP_DONTUNMAP:
        # A move that failed, or that shrank, keeps a charge that no VMA stands for.
        mm.commit.lost += remap.charged - ((remap.new_len - remap.old_len) >> PAGE_SHIFT)
    _stat_account(vma, remap.new_len)
    if refusal == YES and remap.flags & MREMAP_DONTUNMAP:
        _dontunmap_complete(remap, vma, copy)
    else:
        _unmap_source(remap, vma)
    if refusal != YES:
        return -refusal
    return remap.new


def _drop_userfaultfd(copy: Vma, start: int, length: int) -> None:
    """A moved VMA leaves its userfaultfd unless that wants to hear of moves: after the merge was decided."""
    if copy.uffd is not None and not copy.uffd.has(UFFD_FEATURE_EVENT_REMAP):
        memory = memory_of(copy.mm)
        if memory is not None:
            forget_protection(memory, copy.mm, start, start + length)
        copy.uffd = None
        set_flags(copy, copy.flags & ~VM_UFFD)
        copy.mm.observer.attribute_changed(copy, "userfaultfd")


def _dontunmap_complete(remap: Remap, vma: Vma, copy: Vma) -> None:
    """The source stays, empty: not locked, and without anon_vma if all of it was moved.

    All of its VMA loses the lock, also where only a part was moved, and locked_vm keeps counting it
    (Semantics.dontunmap_unlocks_source).
    """
    if not vma.mm.semantics.dontunmap_unlocks_source:
        vma, _ = vma_modify_flags(vma, remap.addr, remap.addr + remap.old_len, vma.flags & ~VM_LOCKED_MASK)
        vma.mm.locked_vm -= vma.pages()
    if vma.flags & VM_LOCKED:
        vma.mm.lost_locked += vma.pages()
        memory = memory_of(vma.mm)
        if memory is not None:
            lock_for_good(memory, vma)
    set_flags(vma, vma.flags & ~VM_LOCKED_MASK)
    whole = vma.start == remap.addr and vma.end == remap.addr + remap.old_len
    if copy is not vma and whole and vma.anon_vma is not None:
        unlink_anon_vmas(vma)
        vma.mm.port.anon_vma_changed(vma)
        vma.mm.observer.attribute_changed(vma, "anon_vma")


def _unmap_source(remap: Remap, vma: Vma) -> None:
    """Unmap what was moved.  Its committed pages moved along, so they are not given back."""
    mm = remap.mm
    accountable = vma.flags & VM_ACCOUNT and not remap.flags & MREMAP_DONTUNMAP
    start: int = vma.start
    end: int = vma.end
    if accountable:
        vma.flags = vma.flags & ~VM_ACCOUNT
    if do_munmap(mm, remap.addr, remap.old_len) != YES:
        # The split found no memory: the source stays without VM_ACCOUNT, so what it has committed never comes back.
        mm.commit.committed += remap.old_len >> PAGE_SHIFT
        mm.commit.lost += (remap.old_len if not accountable else end - start) >> PAGE_SHIFT
        return
    if not accountable:
        return
    if start < remap.addr:
        below = mm.find_vma_prev(remap.addr)
        if below is not None:
            below.flags = below.flags | VM_ACCOUNT
    if end > remap.addr + remap.old_len:
        above = mm.find_vma(remap.addr)
        if above is not None:
            above.flags = above.flags | VM_ACCOUNT
