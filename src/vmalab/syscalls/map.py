"""mmap, munmap, brk and remap_file_pages."""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64

from vmalab.addr import PAGE_MASK, PAGE_SHIFT, ULONG_END, is_unsigned_long, page_down, page_up
from vmalab.flags import (
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_HUGE_MASK,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_SYNC,
    MAP_TYPE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_DROPPABLE,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_SYNC,
    VM_WIPEONFORK,
    VM_WRITE,
)
from vmalab.reason import (
    BAD_DESCRIPTOR,
    BRK_BELOW_START,
    BRK_IN_THE_WAY,
    BRK_NO_HEAP,
    DROPPABLE_CONFLICT,
    FILE_NOEXEC,
    FILE_NOT_READABLE,
    FILE_NOT_WRITABLE,
    FILE_SEALED,
    FLAGS_NOT_SUPPORTED,
    GROWSDOWN_NOT_PRIVATE,
    HUGETLB_NO_SIZE,
    HUGETLB_NOT_HUGE,
    LENGTH_OVERFLOW,
    LENGTH_WRAPS,
    LENGTH_ZERO,
    LIMIT_DATA_BRK,
    LOCK_NOT_PERMITTED,
    MAP_COUNT_MAP,
    MAP_TYPE_MISSING,
    NOT_MAPPABLE,
    OFFSET_OVERFLOW,
    OFFSET_UNALIGNED,
    OVERLAPS,
    PROT_UNKNOWN,
    REMAP_NOT_SHARED,
    YES,
)
from vmalab.syscalls.populate import mm_populate
from vmalab.vma.area import HUGETLB_1G_OPS, HUGETLB_OPS, File, VmaOps
from vmalab.vma.map import DAX_FILESYSTEMS, do_brk_flags, mmap_region
from vmalab.vma.merge import MergeRequest
from vmalab.vma.place import check_fixed, get_unmapped_area, round_hint_to_min
from vmalab.vma.space import OVERCOMMIT_NEVER, Mm
from vmalab.vma.unmap import do_munmap, munmap_range

SIZED_KINDS: Final = ("regular", "memfd", "shm", "secretmem", "hugetlb")
"""Files that are mapped within the largest size of a file."""
LEGACY_MAP_MASK: Final = 0xFFFFF & ~MAP_SYNC | 0xFC000000
"""The flags that MAP_SHARED has always passed over in silence."""


def calc_vm_prot_bits(prot: int, pkey: i64 = 0) -> i64:
    """PROT_ as VM_ flags, with a protection key."""
    access: i64 = prot & (PROT_READ | PROT_WRITE | PROT_EXEC)
    return access | pkey << 32


def execute_only_pkey(mm: Mm) -> int:
    """The protection key that makes memory executable and nothing else, or -1 where there is none.

    The first that asks takes the first free key for it; it stays (execute_only_pkey).
    """
    if not mm.settings.pkeys:
        return -1
    if mm.execute_only_pkey < 0:
        mm.execute_only_pkey = take_pkey(mm)
    return mm.execute_only_pkey


def take_pkey(mm: Mm) -> int:
    """Allocate the first free protection key: its number, or -1 (mm_pkey_alloc)."""
    for key in range(16):
        if not mm.pkeys >> key & 1:
            mm.pkeys |= 1 << key
            return key
    return -1


def _calc_vm_flag_bits(mm: Mm, flags: int) -> i64:
    """Those MAP_ flags that are VM_ flags too."""
    if not flags & (MAP_GROWSDOWN | MAP_LOCKED | MAP_SYNC | MAP_STACK):
        return 0
    bits: i64 = 0
    if flags & MAP_GROWSDOWN:
        bits |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        bits |= VM_LOCKED
    if flags & MAP_SYNC:
        bits |= VM_SYNC
    if flags & MAP_STACK and mm.settings.thp and mm.semantics.map_stack_no_hugepage:
        bits |= VM_NOHUGEPAGE
    return bits


def mmap(mm: Mm, addr: int, length: int, prot: int, flags: int, file: File | None, offset: int) -> int:
    """mmap: the address, or minus a reason.  file is None for anonymous memory, or where none is open; offset is in
    bytes.
    """
    if offset & PAGE_MASK:
        return -OFFSET_UNALIGNED
    if flags & MAP_ANONYMOUS:
        file = None
        if flags & MAP_HUGETLB:
            huge_size = huge_page_size(flags)
            if huge_size == 0:
                return -HUGETLB_NO_SIZE
            length = (length + huge_size - 1) & ~(huge_size - 1)
            ops = HUGETLB_OPS if huge_size == 0x200000 else HUGETLB_1G_OPS
            file = hugetlb_file("/anon_hugepage (deleted)", 0, huge_size, ops)
    elif file is None:
        return -BAD_DESCRIPTOR
    elif file.huge_size:
        length = (length + file.huge_size - 1) & ~(file.huge_size - 1)
    elif flags & MAP_HUGETLB:
        return -HUGETLB_NOT_HUGE
    mm.mmap_write_lock()
    result = do_mmap(mm, file, addr, length, prot, flags, 0, offset >> PAGE_SHIFT)
    populates = _populates(mm, flags)
    mm.mmap_write_unlock()
    if result >= 0 and populates:
        # Errors of populating are nobody's business: the mapping stands.
        mm_populate(mm, result, result + page_up(length))
    return result


def huge_page_size(flags: int) -> int:
    """The size in bytes of the huge pages that MAP_HUGE_ or SHM_HUGE_ bits ask for; 0 where there are none such."""
    shift = flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK
    return 1 << (shift or 21) if shift in (0, 21, 30) else 0


def hugetlb_file(path: str, ino: int, huge_size: int, ops: VmaOps) -> File:
    """A file of huge pages of that many bytes that the kernel makes by itself (hugetlb_file_setup)."""
    return File(
        path,
        "00:10",
        ino,
        kind="hugetlb",
        fs="hugetlbfs",
        ops=ops,
        private_ops=ops,
        huge_size=huge_size,
        driver_flags=VM_DONTEXPAND,
    )


def _populates(mm: Mm, flags: int) -> bool:
    """Whether a mapping with these flags (MAP_) is made present at once.

    What was to be locked is, even if the mapping is of a kind that is never locked.
    """
    locked = flags & MAP_LOCKED or mm.def_flags & VM_LOCKED
    return bool(locked or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE)


def do_mmap(mm: Mm, file: File | None, addr: int, length: int, prot: int, flags: int, vm_flags: i64, pgoff: int) -> int:
    """Check, choose the place and map (do_mmap): the address, or minus a reason.  pgoff is in pages."""
    if length == 0:
        return -LENGTH_ZERO
    if prot & PROT_READ and mm.read_implies_exec and not (file is not None and file.noexec):
        prot |= PROT_EXEC
    if flags & MAP_FIXED_NOREPLACE:
        flags |= MAP_FIXED
    if addr and not flags & MAP_FIXED:
        addr = round_hint_to_min(mm, addr)
    length = page_up(length)
    if not is_unsigned_long(length):
        return -LENGTH_OVERFLOW
    if not is_unsigned_long(pgoff + (length >> PAGE_SHIFT)):
        return -OFFSET_OVERFLOW
    if mm.map_count > mm.settings.max_map_count:
        return -MAP_COUNT_MAP
    pkey: i64 = 0
    if prot == PROT_EXEC:
        pkey = max(execute_only_pkey(mm), 0)
    def_flags: i64 = mm.def_flags
    vm_flags |= calc_vm_prot_bits(prot, pkey) | _calc_vm_flag_bits(mm, flags)
    vm_flags |= def_flags | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    addr = get_unmapped_area(mm, file, addr, length, pgoff, flags)
    if addr < 0:
        return addr
    if flags & MAP_FIXED_NOREPLACE and mm.find_vma_intersection(addr, addr + length) is not None:
        return -OVERLAPS
    if flags & MAP_LOCKED and not can_do_mlock(mm):
        return -LOCK_NOT_PERMITTED
    refusal: i64 = YES
    if vm_flags & VM_LOCKED:
        refusal = mm.mlock_future_ok(vm_flags, length)
        if refusal != YES:
            return -refusal
    if file is not None:
        vm_flags, refusal = _file_flags(file, pgoff, length, flags, prot, vm_flags)
    else:
        vm_flags, refusal = _anonymous_flags(flags, vm_flags)
        pgoff = 0 if vm_flags & VM_MAYSHARE else addr >> PAGE_SHIFT
    if refusal != YES:
        return -refusal
    if flags & MAP_NORESERVE and (mm.commit.mode != OVERCOMMIT_NEVER or (file is not None and file.huge_size)):
        vm_flags |= VM_NORESERVE
    request = MergeRequest(mm, addr, addr + length, vm_flags, pgoff)
    request.file = file
    refusal = mmap_region(request)
    if refusal != YES:
        return -refusal
    return addr


def _file_flags(file: File, pgoff: int, length: int, flags: int, prot: int, vm_flags: i64) -> tuple[i64, i64]:
    """The VM_ flags for a mapping of a file, and YES or a reason."""
    if file.kind in SIZED_KINDS and pgoff + (length >> PAGE_SHIFT) > (1 << 63) >> PAGE_SHIFT:
        return 0, OFFSET_OVERFLOW
    kind = flags & MAP_TYPE
    if kind == MAP_SHARED:
        flags &= LEGACY_MAP_MASK
    if kind in (MAP_SHARED, MAP_SHARED_VALIDATE):
        if flags & ~(LEGACY_MAP_MASK | (MAP_SYNC if file.fs in DAX_FILESYSTEMS else 0)):
            return 0, FLAGS_NOT_SUPPORTED
        if prot & PROT_WRITE and not file.writable:
            return 0, FILE_NOT_WRITABLE
        vm_flags |= VM_SHARED | VM_MAYSHARE
        if not file.writable:
            # It can never be written to, so it is shared in name only.
            vm_flags &= ~(VM_MAYWRITE | VM_SHARED)
    elif kind != MAP_PRIVATE:
        return 0, MAP_TYPE_MISSING
    if not file.readable:
        return 0, FILE_NOT_READABLE
    if file.noexec:
        if vm_flags & VM_EXEC:
            return 0, FILE_NOEXEC
        vm_flags &= ~VM_MAYEXEC
    if file.kind == "unmappable":
        return 0, NOT_MAPPABLE
    if vm_flags & VM_GROWSDOWN:
        return 0, GROWSDOWN_NOT_PRIVATE
    if file.is_sealed() and vm_flags & VM_SHARED:
        if vm_flags & VM_WRITE:
            return 0, FILE_SEALED
        # A sealed memfd can be shared for reading, for good.
        vm_flags &= ~VM_MAYWRITE
    if file.huge_size:
        vm_flags |= VM_HUGETLB
    return vm_flags, YES


def _anonymous_flags(flags: int, vm_flags: i64) -> tuple[i64, i64]:
    """The VM_ flags for anonymous memory, and YES or a reason."""
    kind = flags & MAP_TYPE
    if kind == MAP_SHARED:
        if vm_flags & VM_GROWSDOWN:
            return 0, GROWSDOWN_NOT_PRIVATE
        return vm_flags | VM_SHARED | VM_MAYSHARE, YES
    if kind == MAP_DROPPABLE:
        if flags & (MAP_LOCKED | MAP_HUGETLB) or vm_flags & VM_GROWSDOWN:
            return 0, DROPPABLE_CONFLICT
        return vm_flags | VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP, YES
    if kind == MAP_PRIVATE:
        return vm_flags, YES
    return 0, MAP_TYPE_MISSING


def can_do_mlock(mm: Mm) -> bool:
    """Whether the process may lock memory at all."""
    return mm.limits.memlock != 0 or mm.limits.ipc_lock


def munmap(mm: Mm, addr: int, length: int) -> int:
    """munmap: 0 or minus a reason."""
    mm.mmap_write_lock()
    refusal = do_munmap(mm, addr, length)
    mm.mmap_write_unlock()
    return -refusal


def brk(mm: Mm, addr: int) -> tuple[int, int]:
    """brk: the break that is now in force, and YES or the reason why it is not the one that was asked for."""
    mm.mmap_write_lock()
    old: int = mm.brk
    refusal = _do_brk(mm, addr)
    mm.mmap_write_unlock()
    if refusal == YES and mm.brk > old and mm.def_flags & VM_LOCKED:
        mm_populate(mm, page_up(old), page_up(mm.brk))
    return mm.brk, refusal


def _do_brk(mm: Mm, addr: int) -> int:
    if addr < mm.start_brk:
        return BRK_BELOW_START
    data = (mm.end_data - mm.start_data) + (addr - mm.start_brk)
    if not is_unsigned_long(data) or (data >> PAGE_SHIFT >= mm.limits.data_pages and data > mm.limits.data):
        return LIMIT_DATA_BRK
    new = page_up(addr)
    old = page_up(mm.brk)
    if new == old:
        mm.brk = addr
        return YES
    if addr <= mm.brk:
        heap = mm.find_vma_intersection(new, old)
        if heap is None or heap.start >= old:
            return BRK_NO_HEAP
        refusal = munmap_range(mm, new, old)
        if refusal == YES:
            mm.brk = addr
        return refusal
    refusal = check_fixed(mm, old, new - old)
    if refusal == YES:
        refusal = mm.mlock_future_ok(mm.def_flags, new - old)
    if refusal != YES:
        return refusal
    above = mm.find_vma(old)
    if above is not None and new + PAGE_MASK + 1 > mm.start_gap(above):
        return BRK_IN_THE_WAY
    heap = mm.find_vma_prev(old)
    if heap is not None and heap.end <= mm.start_brk:
        # What ends where the heap starts is the program's own data, and is not extended.
        heap = None
    refusal = do_brk_flags(mm, heap, old, new - old, 0)
    if refusal != YES:
        return refusal
    mm.brk = addr
    return YES


def remap_file_pages(mm: Mm, start: int, size: int, prot: int, pgoff: int, flags: int) -> int:
    """remap_file_pages, which is an mmap of the same file over the range: 0 or minus a reason."""
    if prot:
        return -PROT_UNKNOWN
    start = page_down(start)
    size = page_down(size)
    if size == 0 or start + size >= ULONG_END:
        return -LENGTH_WRAPS
    if pgoff + (size >> PAGE_SHIFT) >= ULONG_END:
        return -LENGTH_WRAPS
    mm.mmap_write_lock()
    # With MAP_NONBLOCK nothing is made present.
    flags = flags & MAP_NONBLOCK | MAP_SHARED | MAP_FIXED | MAP_POPULATE
    vma = mm.vma_lookup(start)
    if vma is not None and vma.flags & VM_LOCKED:
        flags |= MAP_LOCKED
    result = _remap_file_pages(mm, start, size, pgoff, flags)
    populates = _populates(mm, flags)
    mm.mmap_write_unlock()
    if result >= 0 and populates:
        mm_populate(mm, start, start + size)
    return min(result, 0)


def _remap_file_pages(mm: Mm, start: int, size: int, pgoff: int, flags: int) -> int:
    """Map the same file over a range of shared memory, with flags (MAP_) for do_mmap."""
    vma = mm.vma_lookup(start)
    if vma is None or not vma.flags & VM_SHARED:
        return -REMAP_NOT_SHARED
    end = start + size
    last = vma
    while last.end < end:
        following = mm.vma_lookup(last.end)
        if following is None or following.file is not vma.file or following.flags != vma.flags:
            return -REMAP_NOT_SHARED
        last = following
    access = vma.flags & (VM_READ | VM_WRITE | VM_EXEC)
    return do_mmap(mm, vma.file, start, size, access, flags, 0, pgoff)
