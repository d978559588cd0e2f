"""mmap_region and brk: how a new range comes into an address space."""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import (
    VM_ACCOUNT,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_EXEC,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_SYNC,
    VM_WRITE,
)
from vmalab.reason import (
    FLAGS_NOT_SUPPORTED,
    HUGETLB_NO_PAGES,
    HUGETLB_OFFSET,
    MAP_COUNT_BRK,
    MDWE,
    NO_MEMORY_TREE,
    NO_MEMORY_VMA,
    OVERLAPS_INSERT,
    SECRET_PRIVATE,
    YES,
)
from vmalab.vma.account import accountable_mapping
from vmalab.vma.area import SHMEM_OPS, File, Vma
from vmalab.vma.merge import MergeRequest, vma_merge_new_range
from vmalab.vma.port import ALLOC_TREE, ALLOC_VMA
from vmalab.vma.space import Mm
from vmalab.vma.unmap import Gathered, complete, gather, zap

VM_DATA_FLAGS: Final = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC


DAX_FILESYSTEMS: Final = ("ext2", "ext4", "xfs")
"""Their files refuse MAP_SYNC unless they lie on persistent memory.  Confirmed for ext4."""


def map_deny_write_exec(mm: Mm, old: i64, new: i64) -> i64:
    """Memory-deny-write-execute: nothing becomes executable that is or was writable.  YES or MDWE."""
    if not mm.mdwe or not new & VM_EXEC:
        return YES
    return MDWE if new & VM_WRITE or not old & VM_EXEC else YES


def ksm_vma_flags(mm: Mm, flags: i64) -> i64:
    """The flags of a new VMA of a process all of whose memory KSM may merge."""
    if mm.merge_any and ksm_compatible(flags):
        return flags | VM_MERGEABLE
    return flags


def ksm_compatible(flags: i64) -> bool:
    """Whether KSM can merge pages of a VMA: private, and neither special nor huge nor droppable."""
    return flags & (VM_SHARED | VM_MAYSHARE | VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE) == 0


def mmap_region(request: MergeRequest) -> i64:
    """Map a range, over whatever is there: YES or a reason.  Its neighbours are looked for here.

    Until the old mapping is zapped a refusal leaves it in place (but for splits); after that it leaves a hole.
    """
    mm = request.mm
    flags = request.flags
    refusal = map_deny_write_exec(mm, flags, flags)
    if refusal != YES:
        return refusal
    start = request.start
    end = request.end
    gathered: Gathered | None = None
    gone: i64 = 0
    accounted: i64 = 0
    request.prev, following = mm.tree.around(start)
    if following is not None and following.start < end:
        gathered = Gathered(mm, start, end)
        refusal = gather(gathered)
        if refusal != YES:
            return refusal
        gone = gathered.pages
        accounted = gathered.accounted
    pages = (end - start) >> PAGE_SHIFT
    refusal = mm.may_expand_vm(flags, pages - gone)
    if refusal != YES:
        return refusal
    charged: i64 = 0
    replaced: i64 = 0
    if accountable_mapping(flags):
        charged = pages - accounted
        if charged:
            refusal = mm.charge(charged)
            if refusal != YES:
                return refusal
        replaced = accounted
        if gathered is not None:
            gathered.accounted = 0
        request.flags = flags | VM_ACCOUNT
    if gathered is not None:
        zap(gathered)
        request.prev, following = mm.tree.around(start)
    request.next = following
    refusal = _place_mapping(request, pages)
    if gathered is not None:
        complete(gathered)
    if refusal != YES:
        # What the old mapping had committed is forgotten, though it is gone.
        mm.commit.lost += replaced
        mm.commit.uncharge(charged)
    return refusal


def _place_mapping(request: MergeRequest, pages: i64) -> i64:
    """Put that many pages into their empty range: into a neighbour if one takes them, else as a new VMA."""
    mm = request.mm
    refusal: i64 = YES
    if request.file is not None:
        refusal = _prepare(request, request.file)
        if refusal != YES:
            return refusal
    request.flags = ksm_vma_flags(mm, request.flags)
    vma = vma_merge_new_range(request)
    if vma is None:
        vma, refusal = _new_vma(request)
        if refusal != YES:
            return refusal
    mm.vm_stat_account(request.flags, pages)
    if vma.flags & VM_LOCKED:
        _count_locked(vma, pages)
    vma.flags = vma.flags | mm.settings.soft_dirty
    return YES


def _count_locked(vma: Vma, pages: i64) -> None:
    """A locked mapping counts, unless it is of a kind that is never locked: then it loses the flag."""
    if vma.flags & (VM_SPECIAL | VM_HUGETLB | VM_DROPPABLE):
        vma.flags = vma.flags & ~VM_LOCKED_MASK
    else:
        vma.mm.locked_vm += pages


def _new_vma(request: MergeRequest) -> tuple[Vma, i64]:
    """A VMA of its own for a new range (__mmap_new_vma): the VMA and YES, or a reason."""
    mm = request.mm
    flags = request.flags
    vma = Vma(mm, request.start, request.end, flags, request.pgoff)
    if not mm.quiet:
        if mm.port.may_fail(ALLOC_VMA):
            return vma, NO_MEMORY_VMA
        if mm.port.may_fail(ALLOC_TREE):
            return vma, NO_MEMORY_TREE
    file = request.file
    if flags & VM_SHARED and (file is None or file.kind == "zero"):
        # Shared anonymous memory is a file of its own that nobody else can open; so is a shared /dev/zero.
        file = File("/dev/zero (deleted)", "00:01", 0, kind="shm", fs="tmpfs", ops=SHMEM_OPS)
        file.size = request.end - request.start
        if not flags & VM_NORESERVE:
            # All of it is committed at once, whatever its permissions are (shmem_acct_size).
            refusal = mm.charge(vma.pages())
            if refusal != YES:
                return vma, refusal
            file.charged = vma.pages()
    if file is not None:
        vma.file = file
        # A descriptor that cannot write makes a shared mapping without VM_SHARED; it keeps its driver.
        vma.ops = file.ops if flags & VM_MAYSHARE else file.private_ops
        vma.flags = vma.flags | file.driver_flags
        file.refs += 1
        file.writers += vma.is_shared_writer()
        refusal = _call_mmap(vma, file)
        if refusal != YES:
            mm.free(vma, "mmap_region")
            return vma, refusal
    mm.link(vma)
    mm.observer.added(vma)
    return vma, YES


def _call_mmap(vma: Vma, file: File) -> i64:
    """What the driver says to a new VMA (mmap_file, shm_mmap): YES or a reason."""
    mm = vma.mm
    segment = file.segment
    if segment is not None:
        # What has just gone to make room may have been its last attachment.
        refusal = segment.open()
        if refusal != YES:
            return refusal
    refusal = YES
    if file.huge_size and vma.pgoff << PAGE_SHIFT & (file.huge_size - 1):
        refusal = HUGETLB_OFFSET
    elif file.huge_size and segment is None and not vma.flags & VM_NORESERVE and not mm.settings.hugepages:
        # Huge pages are reserved as they are mapped, those of a segment when it is made; and the pool is empty.
        refusal = HUGETLB_NO_PAGES
    else:
        refusal = mm.port.mapped(vma)
    if refusal != YES and segment is not None:
        segment.close()
    return refusal


def _prepare(request: MergeRequest, file: File) -> i64:
    """What a file wants of its mapping before that is merged or made (mmap_prepare): YES or a reason.

    Secret memory is shared, and always locked (secretmem_mmap_prepare).  Filesystems that know DAX refuse MAP_SYNC for
    a file that is not on it (ext4_file_mmap_prepare).
    """
    if request.flags & VM_SYNC and file.fs in DAX_FILESYSTEMS:
        return FLAGS_NOT_SUPPORTED
    if file.kind != "secretmem":
        return YES
    if not request.flags & (VM_SHARED | VM_MAYSHARE):
        return SECRET_PRIVATE
    request.flags |= VM_LOCKED | VM_DONTDUMP
    return request.mm.mlock_future_ok(request.flags, request.end - request.start)


def do_brk_flags(mm: Mm, below: Vma | None, addr: i64, length: i64, flags: i64) -> i64:
    """Map length bytes of heap at addr, which must be empty: YES or a reason (do_brk_flags).

    Only the VMA below, which the caller names, may be extended; the heap does not merge with what lies above it.
    """
    data = VM_DATA_FLAGS | VM_EXEC if mm.read_implies_exec else VM_DATA_FLAGS
    flags = ksm_vma_flags(mm, flags | data | VM_ACCOUNT | mm.def_flags)
    pages = length >> PAGE_SHIFT
    refusal = mm.may_expand_vm(flags, pages)
    if refusal != YES:
        return refusal
    if mm.map_count > mm.settings.max_map_count:
        return MAP_COUNT_BRK
    refusal = mm.charge(pages)
    if refusal != YES:
        return refusal
    vma: Vma | None = None
    if below is not None and below.end == addr:
        request = MergeRequest(mm, addr, addr + length, flags, addr >> PAGE_SHIFT, None, below)
        request.expand_only = True
        vma = vma_merge_new_range(request)
        if vma is None and request.failure != YES:
            mm.commit.uncharge(pages)
            return request.failure
    if vma is None:
        if mm.port.may_fail(ALLOC_VMA):
            mm.commit.uncharge(pages)
            return NO_MEMORY_VMA
        if mm.port.may_fail(ALLOC_TREE):
            mm.commit.uncharge(pages)
            return NO_MEMORY_TREE
        vma = Vma(mm, addr, addr + length, flags, addr >> PAGE_SHIFT)
        mm.link(vma)
        mm.observer.added(vma)
    mm.total_vm += pages
    mm.data_vm += pages
    if flags & VM_LOCKED:
        mm.locked_vm += pages
    vma.flags = vma.flags | mm.settings.soft_dirty
    return YES


def insert_vm_struct(vma: Vma) -> i64:
    """Put a VMA that the kernel made into an address space: YES, OVERLAPS_INSERT or OVERCOMMIT."""
    mm = vma.mm
    if mm.find_vma_intersection(vma.start, vma.end) is not None:
        return OVERLAPS_INSERT
    if vma.flags & VM_ACCOUNT:
        refusal = mm.charge(vma.pages())
        if refusal != YES:
            return refusal
    if vma.is_anonymous() and vma.file is None and vma.anon_vma is None:
        vma.pgoff = vma.start >> PAGE_SHIFT
    if mm.port.may_fail(ALLOC_TREE):
        if vma.flags & VM_ACCOUNT:
            mm.commit.uncharge(vma.pages())
        return NO_MEMORY_TREE
    mm.link(vma)
    mm.observer.added(vma)
    return YES
