"""System V shared memory: shmget, shmat, shmdt, shmctl (ipc/shm.c)."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_MASK, PAGE_SHIFT, ULONG_END, page_down, page_up
from vmalab.flags import (
    IPC_CREAT,
    IPC_EXCL,
    IPC_INFO,
    IPC_RMID,
    IPC_SET,
    IPC_STAT,
    MAP_FIXED,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SHM_EXEC,
    SHM_RDONLY,
    SHM_REMAP,
    SHM_RND,
    VM_LOCKED,
)
from vmalab.reason import (
    HUGETLB_NO_PAGES,
    HUGETLB_NO_SIZE,
    LOCK_NOT_PERMITTED,
    SHM_COMMAND,
    SHM_EXISTS,
    SHM_HUGETLB_NOT_PERMITTED,
    SHM_LOCK_LIMIT,
    SHM_NO_KEY,
    SHM_NO_SEGMENT,
    SHM_NOT_ATTACHED,
    SHM_NOT_PERMITTED,
    SHM_OVERLAPS,
    SHM_REMAP_NEEDS_ADDRESS,
    SHM_SIZE,
    SHM_TOO_MANY,
    SHM_TOO_SMALL,
    UNALIGNED,
    YES,
)
from vmalab.syscalls.map import can_do_mlock, do_mmap, huge_page_size, hugetlb_file
from vmalab.syscalls.populate import mm_populate
from vmalab.vma.area import SHM_HUGE_1G_OPS, SHM_HUGE_OPS, SHM_OPS, File
from vmalab.vma.shm import IPC_PRIVATE, MOST_INDEXES, SHM_LOCKED, IpcNamespace, Segment
from vmalab.vma.space import OVERCOMMIT_NEVER, Limits, Mm
from vmalab.vma.unmap import munmap_range

LOCK: Final = 11
UNLOCK: Final = 12
STAT: Final = 13
INFO: Final = 14
STAT_ANY: Final = 15
COMMANDS: Final = {
    IPC_RMID: "IPC_RMID",
    IPC_SET: "IPC_SET",
    IPC_STAT: "IPC_STAT",
    IPC_INFO: "IPC_INFO",
    LOCK: "SHM_LOCK",
    UNLOCK: "SHM_UNLOCK",
    STAT: "SHM_STAT",
    INFO: "SHM_INFO",
    STAT_ANY: "SHM_STAT_ANY",
}
"""What shmctl can be asked to do."""
HUGETLB: Final = 0o4000
NORESERVE: Final = 0o10000
PERMISSIONS: Final = 0o777
READ: Final = 4
WRITE: Final = 2
EXECUTE: Final = 1
MOST_SEGMENTS: Final = 4096
"""The sysctl kernel.shmmni, and below shmmax in bytes, as a new namespace has them."""
MOST_BYTES: Final[int] = ULONG_END - 1 - (1 << 24)
MOST_OF_A_FILE: Final[int] = (1 << 63) - 1


def _may(limits: Limits, segment: Segment, wanted: int) -> bool:
    """Whether the mode of a segment lets its owner do that: READ, WRITE, EXECUTE together (ipcperms)."""
    return wanted & ~(segment.mode >> 6) == 0 or limits.ipc_owner


def shmget(mm: Mm, namespace: IpcNamespace, key: int, size: int, flags: int) -> int:
    """Find or make a segment of size bytes: its id, or minus a reason."""
    if key == IPC_PRIVATE:
        return _new_segment(mm, namespace, key, size, flags)
    segment = next((each for each in namespace.segments.values() if each.key == key), None)
    if segment is None:
        return _new_segment(mm, namespace, key, size, flags) if flags & IPC_CREAT else -SHM_NO_KEY
    if flags & IPC_CREAT and flags & IPC_EXCL:
        return -SHM_EXISTS
    if segment.size < size:
        return -SHM_TOO_SMALL
    if not _may(mm.limits, segment, (flags >> 6 | flags >> 3 | flags) & 7):
        return -SHM_NOT_PERMITTED
    return segment.id


def _new_segment(mm: Mm, namespace: IpcNamespace, key: int, size: int, flags: int) -> int:
    if size < 1 or size > MOST_BYTES:
        return -SHM_SIZE
    if flags & HUGETLB:
        return _new_huge_segment(mm, namespace, key, size, flags)
    if size > MOST_OF_A_FILE:
        return -SHM_SIZE
    pages = page_up(size) >> PAGE_SHIFT
    if flags & NORESERVE and mm.commit.mode != OVERCOMMIT_NEVER:
        pages = 0
    refusal = mm.charge(pages) if pages else YES
    if refusal != YES:
        return -refusal
    if len(namespace.segments) >= MOST_SEGMENTS:
        mm.commit.uncharge(pages)
        return -SHM_TOO_MANY
    segment = Segment(namespace, namespace.new_id(), key, size, flags & PERMISSIONS, pages)
    namespace.add(segment)
    return segment.id


def _new_huge_segment(mm: Mm, namespace: IpcNamespace, key: int, size: int, flags: int) -> int:
    """A segment of huge pages, which are promised to it at once and not committed (hugetlb_file_setup)."""
    huge_size = huge_page_size(flags)
    if huge_size == 0:
        return -HUGETLB_NO_SIZE
    if not (mm.limits.ipc_lock or mm.limits.hugetlb_shm):
        return -SHM_HUGETLB_NOT_PERMITTED
    segment = Segment(namespace, -1, key, size, flags & PERMISSIONS, 0)
    file = segment.file = _huge_file(segment, huge_size)
    if not flags & NORESERVE:
        refusal = mm.port.reserve_huge(file) if mm.settings.hugepages else HUGETLB_NO_PAGES
        if refusal != YES:
            return -refusal
    if len(namespace.segments) >= MOST_SEGMENTS:
        mm.port.forget_segment(segment)
        return -SHM_TOO_MANY
    segment.id = file.ino = namespace.new_id()
    segment.port = mm.port
    namespace.add(segment)
    return segment.id


def _huge_file(segment: Segment, huge_size: int) -> File:
    """The file of a segment of huge pages, or of one attachment."""
    ops = SHM_HUGE_OPS if huge_size == 0x200000 else SHM_HUGE_1G_OPS
    file = hugetlb_file(segment.name, segment.id, huge_size, ops)
    file.size = -(-segment.size // huge_size) * huge_size
    file.segment = segment
    return file


def found_segment(namespace: IpcNamespace, id_: int, key: int, size: int, mode: int) -> Segment:
    """A segment that the model did not make itself, by the id that it was found to have.

    Nobody knows what else has it attached, or what is committed for it.
    """
    segment = namespace.segments.get(id_)
    if segment is None:
        segment = Segment(namespace, id_, key, size, mode, 0)
        namespace.add(segment)
    return segment


def shmat(mm: Mm, namespace: IpcNamespace, id_: int, addr: int, flags: int, file: File | None = None) -> int:
    """Attach a segment: the address, or minus a reason.  Every attach is a file of its own, as it is given or new."""
    map_flags = MAP_SHARED
    if addr:
        if addr & PAGE_MASK:
            if not flags & SHM_RND:
                return -UNALIGNED
            addr = page_down(addr)
            if addr == 0 and flags & SHM_REMAP:
                return -SHM_REMAP_NEEDS_ADDRESS
        map_flags |= MAP_FIXED
    elif flags & SHM_REMAP:
        return -SHM_REMAP_NEEDS_ADDRESS
    prot = PROT_READ if flags & SHM_RDONLY else PROT_READ | PROT_WRITE
    wanted = READ if flags & SHM_RDONLY else READ | WRITE
    if flags & SHM_EXEC:
        prot |= PROT_EXEC
        wanted |= EXECUTE
    segment = namespace.segments.get(id_)
    if segment is None:
        return -SHM_NO_SEGMENT
    if not _may(mm.limits, segment, wanted):
        return -SHM_NOT_PERMITTED
    if file is None and segment.file is not None:
        file = _huge_file(segment, segment.file.huge_size)
    elif file is None:
        file = File(segment.name, "00:01", segment.id, kind="shm", ops=SHM_OPS, private_ops=SHM_OPS)
    file.writable = not flags & SHM_RDONLY
    file.size = segment.length
    file.segment = segment
    segment.port = mm.port
    result = _attach(mm, segment, file, addr, prot, map_flags, flags & SHM_REMAP != 0)
    if result >= 0 and mm.def_flags & VM_LOCKED:
        mm_populate(mm, result, result + page_up(segment.length))
    return result


def _attach(mm: Mm, segment: Segment, file: File, addr: int, prot: int, map_flags: int, replaces: bool) -> int:
    # What goes to make room may be the last attachment of the same segment.
    segment.open()
    mm.mmap_write_lock()
    if addr and not replaces and _is_in_the_way(mm, addr, addr + segment.length):
        result = -SHM_OVERLAPS
    else:
        result = do_mmap(mm, file, addr, segment.length, prot, map_flags, 0, 0)
    mm.mmap_write_unlock()
    segment.close()
    return result


def shmctl(mm: Mm, namespace: IpcNamespace, id_: int, command: int, mode: int) -> int:
    """shmctl: 0, an id or an index, or minus a reason.  mode: the permissions that IPC_SET gives; -1 where
    nobody knows them.

    What IPC_STAT tells is in the segment.
    """
    if command not in COMMANDS:
        return -SHM_COMMAND
    if id_ < 0:
        return -SHM_NO_SEGMENT
    if command in (IPC_INFO, INFO):
        return max([each % MOST_INDEXES for each in namespace.segments], default=0)
    segment = namespace.segments.get(id_)
    if command in (STAT, STAT_ANY):
        found = [each for each in namespace.segments.values() if each.id % MOST_INDEXES == id_ % MOST_INDEXES]
        segment = found[0] if found else None
    if segment is None:
        return -SHM_NO_SEGMENT
    if command in (IPC_STAT, STAT, STAT_ANY):
        if command != STAT_ANY and not _may(mm.limits, segment, READ):
            return -SHM_NOT_PERMITTED
        return 0 if command == IPC_STAT else segment.id
    if command == IPC_RMID:
        namespace.remove(segment)
    elif command == IPC_SET:
        if mode >= 0:
            segment.mode = segment.mode & ~PERMISSIONS | mode & PERMISSIONS
    elif command == LOCK:
        return -_lock(mm, segment)
    else:
        _unlock(segment)
    return 0


def _lock(mm: Mm, segment: Segment) -> int:
    """Keep the pages of a segment in memory (shmctl_do_lock, user_shm_lock): YES or a reason.

    They count for the user, not for any address space, and what is locked is counted only once.
    """
    if not can_do_mlock(mm):
        return LOCK_NOT_PERMITTED
    if segment.mode & SHM_LOCKED or segment.file is not None:
        # Huge pages stay in memory anyway.
        return YES
    namespace = segment.namespace
    pages = page_up(segment.size) >> PAGE_SHIFT
    if namespace.user_locked + pages > mm.limits.memlock >> PAGE_SHIFT and not mm.limits.ipc_lock:
        return SHM_LOCK_LIMIT
    namespace.user_locked += pages
    segment.locked = pages
    segment.mode |= SHM_LOCKED
    return YES


def _unlock(segment: Segment) -> None:
    if segment.mode & SHM_LOCKED:
        segment.mode &= ~SHM_LOCKED
        segment.namespace.user_locked -= segment.locked
        segment.locked = 0


def _is_in_the_way(mm: Mm, start: int, end: int) -> bool:
    return end >= ULONG_END or mm.find_vma_intersection(start, end) is not None


def shmdt(mm: Mm, addr: int) -> int:
    """Detach the segment that is attached at addr: 0 or minus a reason.  Parts of it that were moved away stay."""
    if addr & PAGE_MASK:
        return -SHM_NOT_ATTACHED
    mm.mmap_write_lock()
    refusal = _detach(mm, addr)
    mm.mmap_write_unlock()
    return -refusal


def _detach(mm: Mm, addr: int) -> int:
    first = mm.find_vma(addr)
    while first is not None and not (
        first.file is not None
        and first.ops is not None
        and first.ops.name == "shm"
        and first.start - addr == first.pgoff << PAGE_SHIFT
    ):
        first = mm.find_vma(first.end)
    if first is None:
        return SHM_NOT_ATTACHED
    file = first.file
    assert file is not None
    pieces = [(first.start, first.end)]
    vma = mm.find_vma(first.end)
    while vma is not None and vma.end - addr <= page_up(file.size):
        if vma.file is file and vma.start - addr == vma.pgoff << PAGE_SHIFT:
            pieces.append((vma.start, vma.end))
        vma = mm.find_vma(vma.end)
    for start, end in pieces:
        munmap_range(mm, start, end)
    return YES
