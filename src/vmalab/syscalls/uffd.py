"""userfaultfd: registration, and the answers to its faults."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_MASK, PAGE_SIZE
from vmalab.flags import (
    UFFD_API,
    UFFD_EVENT_PAGEFAULT,
    UFFD_FEATURE_EVENT_FORK,
    UFFD_FEATURE_EXACT_ADDRESS,
    UFFD_FEATURE_SIGBUS,
    UFFD_FEATURE_THREAD_ID,
    UFFD_FEATURE_WP_ASYNC,
    UFFD_FEATURE_WP_UNPOPULATED,
    UFFD_FEATURES,
    UFFD_PAGEFAULT_FLAG_MINOR,
    UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_MAYWRITE,
    VM_UFFD,
    VM_UFFD_MINOR,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
)
from vmalab.pages import uffd as pages
from vmalab.pages.memory import Memory
from vmalab.pages.port import memory_of
from vmalab.reason import (
    BEYOND_TASK_SIZE,
    FAULT_USERFAULTFD,
    FAULT_USERFAULTFD_MINOR,
    FAULT_USERFAULTFD_WP,
    FILL_PARTLY,
    LENGTH_ZERO,
    MOVE_OF_ANOTHER,
    UFFD_API_AGAIN,
    UFFD_API_REFUSED,
    UFFD_BAD_MODE,
    UFFD_BUSY,
    UFFD_CHANGING,
    UFFD_NO_PRIVILEGE,
    UFFD_NOT_ANONYMOUS,
    UFFD_NOT_READY,
    UFFD_NOT_WRITABLE,
    UFFD_NOTHING_MAPPED,
    UFFD_NOTHING_TO_READ,
    UFFD_OF_ANOTHER,
    UNALIGNED,
    YES,
)
from vmalab.vma.area import UffdFault, UffdMessage, Userfaultfd, Vma
from vmalab.vma.modify import vma_modify_uffd
from vmalab.vma.space import Mm

REGISTER_MODE_MISSING: Final = 1
REGISTER_MODE_WP: Final = 2
REGISTER_MODE_MINOR: Final = 4
MODE_DONTWAKE: Final = 1
MODE_WP: Final = 2
MODE_SRC_HOLES: Final = 2
WRITEPROTECT_WP: Final = 1
WRITEPROTECT_DONTWAKE: Final = 2


def api(mm: Mm, uffd: Userfaultfd, version: int, features: int) -> int:
    """UFFDIO_API, once for each userfaultfd: 0 or minus a reason."""
    if version != UFFD_API:
        return -UFFD_API_REFUSED
    if features & UFFD_FEATURE_EVENT_FORK and not mm.limits.sys_ptrace:
        return -UFFD_NO_PRIVILEGE
    if features & ~UFFD_FEATURES:
        return -UFFD_API_REFUSED
    queue = uffd.queue
    if queue is not None:
        if queue.initialised:
            return -UFFD_API_AGAIN
        queue.initialised = True
    enable(uffd, features)
    return 0


def enable(uffd: Userfaultfd, features: int) -> None:
    """Give a userfaultfd features: if writes wait for nobody, pages that are not there are protected as well."""
    uffd.features = features | (UFFD_FEATURE_WP_UNPOPULATED if features & UFFD_FEATURE_WP_ASYNC else 0)


def is_ready(uffd: Userfaultfd) -> int:
    """YES, or UFFD_NOT_READY before UFFDIO_API: every other use of it is refused."""
    queue = uffd.queue
    return YES if queue is None or queue.initialised else UFFD_NOT_READY


def _is_changing(uffd: Userfaultfd) -> bool:
    """Whether an event is not read yet: nobody may put pages in place meanwhile (mmap_changing)."""
    queue = uffd.queue
    return queue is not None and len(queue.events) > 0


def wait_for(uffd: Userfaultfd, vma: Vma, addr: int, write: bool, refusal: int, thread: int) -> UffdFault | None:
    """An access was refused with FAULT_USERFAULTFD, _WP or _MINOR: it waits from now on (handle_userfault).

    None where nobody waits: the userfaultfd answers with SIGBUS, or is read by somebody outside the model.
    """
    queue = uffd.queue
    if queue is None or uffd.has(UFFD_FEATURE_SIGBUS):
        return None
    flags = UFFD_PAGEFAULT_FLAG_WRITE if write else 0
    flags |= UFFD_PAGEFAULT_FLAG_WP if refusal == FAULT_USERFAULTFD_WP else 0
    flags |= UFFD_PAGEFAULT_FLAG_MINOR if refusal == FAULT_USERFAULTFD_MINOR else 0
    at = addr if uffd.has(UFFD_FEATURE_EXACT_ADDRESS) else addr & -_page_size(vma)
    fault = UffdFault(UffdMessage(UFFD_EVENT_PAGEFAULT, at, flags, thread if uffd.has(UFFD_FEATURE_THREAD_ID) else 0))
    queue.faults.append(fault)
    return fault


def is_userfault(refusal: int) -> bool:
    """Whether an access was refused since a userfaultfd is to answer first."""
    return refusal in (FAULT_USERFAULTFD, FAULT_USERFAULTFD_WP, FAULT_USERFAULTFD_MINOR)


def lets_wait(vma: Vma) -> bool:
    """Whether an access waits for the userfaultfd of a VMA, and does not get SIGBUS."""
    return vma.uffd is not None and not vma.uffd.has(UFFD_FEATURE_SIGBUS)


def read(uffd: Userfaultfd) -> tuple[UffdMessage | None, int]:
    """Read one message: faults first, then events, each the oldest first.  The message and YES, or None and a reason.

    Whoever has made an event goes on; a fault waits until it is woken.
    """
    queue = uffd.queue
    if queue is None or not queue.initialised:
        return None, UFFD_NOT_READY
    if queue.faults:
        fault = queue.faults.pop(0)
        queue.seen.append(fault)
        return fault.message, YES
    if queue.events:
        return queue.events.pop(0), YES
    return None, UFFD_NOTHING_TO_READ


def _wake(uffd: Userfaultfd, start: int, end: int) -> None:
    """Let the accesses to [start, end) be made again, whether they were read of or not (wake_userfault)."""
    queue = uffd.queue
    if queue is None:
        return
    for fault in queue.faults + queue.seen:
        fault.woken = fault.woken or start <= fault.message.first < end
    queue.faults = [fault for fault in queue.faults if not fault.woken]
    queue.seen = [fault for fault in queue.seen if not fault.woken]


def forget(uffd: Userfaultfd, fault: UffdFault) -> None:
    """Whoever waits is gone."""
    queue = uffd.queue
    if queue is not None:
        queue.faults = [each for each in queue.faults if each is not fault]
        queue.seen = [each for each in queue.seen if each is not fault]


def wake(mm: Mm, uffd: Userfaultfd, start: int, length: int) -> int:
    """UFFDIO_WAKE: 0 or minus a reason.  The range need not be registered, nor mapped."""
    refusal = _check_range(mm, start, length)
    if refusal == YES:
        _wake(uffd, start, start + length)
    return -refusal


def _check_range(mm: Mm, start: int, length: int) -> int:
    if start & PAGE_MASK or length & PAGE_MASK:
        return UNALIGNED
    if length == 0:
        return LENGTH_ZERO
    if start >= mm.task_size or length > mm.task_size - start:
        return BEYOND_TASK_SIZE
    return YES


def vma_can_userfault(vma: Vma, flags: int, wp_async: bool) -> bool:
    """Whether a VMA can be registered with these VM_UFFD_ flags: anonymous, shmem or hugetlb memory."""
    if vma.flags & VM_DROPPABLE:
        return False
    has_cache = vma.flags & VM_HUGETLB != 0 or (vma.ops is not None and vma.ops.name == "shmem")
    if flags & VM_UFFD_MINOR and not has_cache:
        return False
    if wp_async and flags == VM_UFFD_WP:
        # Nobody waits for an answer: any memory will do.
        return True
    return has_cache or vma.ops is None


def _page_size(vma: Vma) -> int:
    """The size in bytes of the pages of a VMA."""
    return vma.file.huge_size if vma.flags & VM_HUGETLB and vma.file is not None else PAGE_SIZE


def register(mm: Mm, uffd: Userfaultfd, start: int, length: int, mode: int) -> int:
    """UFFDIO_REGISTER: 0 or minus a reason.  Registering again replaces the mode,
    unless it asks for less than there is.
    """
    if mode == 0 or mode & ~7:
        return -UFFD_BAD_MODE
    refusal = _check_range(mm, start, length)
    if refusal != YES:
        return -refusal
    wanted = (
        (VM_UFFD_MISSING if mode & REGISTER_MODE_MISSING else 0)
        | (VM_UFFD_WP if mode & REGISTER_MODE_WP else 0)
        | (VM_UFFD_MINOR if mode & REGISTER_MODE_MINOR else 0)
    )
    mm.mmap_write_lock()
    refusal = _register_range(mm, uffd, start, start + length, wanted)
    mm.mmap_write_unlock()
    return -refusal


def _register_range(mm: Mm, uffd: Userfaultfd, start: int, end: int, wanted: int) -> int:
    vmas = mm.tree.walk(start, end)
    if not vmas:
        return UFFD_NOTHING_MAPPED
    if start & (_page_size(vmas[0]) - 1):
        return UNALIGNED
    for vma in vmas:
        if not vma_can_userfault(vma, wanted, uffd.has(UFFD_FEATURE_WP_ASYNC)):
            return UFFD_NOT_ANONYMOUS
        if not vma.flags & VM_MAYWRITE:
            return UFFD_NOT_WRITABLE
        if vma.start < end <= vma.end and end & (_page_size(vma) - 1):
            return UNALIGNED
        if vma.uffd is not None and vma.uffd is not uffd:
            return UFFD_BUSY
    at = start
    while at < end:
        found = mm.find_vma_intersection(at, end)
        if found is None:
            break
        upto: int = min(found.end, end)
        flags = found.flags & ~VM_UFFD | wanted
        if found.uffd is not uffd or found.flags & wanted != wanted:
            found, refusal = vma_modify_uffd(found, max(at, found.start), upto, flags, uffd)
            if refusal != YES:
                return refusal
            memory = memory_of(mm)
            if memory is not None and not found.is_anonymous():
                # From its file it is found, who wants to hear of pages that are missing, though none was ever there.
                memory.cache_for(found)
        at = max(upto, found.end)
    return YES


def unregister(mm: Mm, uffd: Userfaultfd, start: int, length: int) -> int:
    """UFFDIO_UNREGISTER: 0 or minus a reason."""
    refusal = _check_range(mm, start, length)
    if refusal != YES:
        return -refusal
    mm.mmap_write_lock()
    refusal = _unregister_range(mm, uffd, start, start + length)
    mm.mmap_write_unlock()
    return -refusal


def _unregister_range(mm: Mm, uffd: Userfaultfd, start: int, end: int) -> int:
    vmas = mm.tree.walk(start, end)
    if not vmas:
        return UFFD_NOTHING_MAPPED
    if start & (_page_size(vmas[0]) - 1):
        return UNALIGNED
    for vma in vmas:
        if vma.uffd is not None and vma.uffd is not uffd:
            return UFFD_OF_ANOTHER
        if not vma_can_userfault(vma, vma.flags & VM_UFFD, uffd.has(UFFD_FEATURE_WP_ASYNC)):
            return UFFD_NOT_ANONYMOUS
    at = start
    while at < end:
        found = mm.find_vma_intersection(at, end)
        if found is None:
            break
        upto: int = min(found.end, end)
        if found.uffd is not None:
            _wake(found.uffd, max(at, found.start), upto)
            found, refusal = _clear(found, max(at, found.start), upto)
            if refusal != YES:
                return refusal
        at = max(upto, found.end)
    return YES


def _clear(vma: Vma, start: int, end: int) -> tuple[Vma, int]:
    """Let [start, end) of a VMA leave its userfaultfd, and its pages the protection (userfaultfd_clear_vma)."""
    memory = memory_of(vma.mm)
    if memory is not None and vma.flags & VM_UFFD_WP:
        pages.protect_range(memory, vma, start, end, False)
    return vma_modify_uffd(vma, start, end, vma.flags & ~VM_UFFD, None)


def fill(mm: Mm, memory: Memory, uffd: Userfaultfd, start: int, length: int, kind: int, mode: int, data: bytes) -> int:
    """UFFDIO_COPY (of data), _ZEROPAGE, _CONTINUE and _POISON, by kind: 0 or minus a reason."""
    if _is_changing(uffd):
        return -UFFD_CHANGING
    refusal = _check_range(mm, start, length)
    if refusal != YES:
        return -refusal
    if mode & ~(MODE_DONTWAKE | (MODE_WP if kind in (pages.COPY, pages.CONTINUE) else 0)):
        return -UFFD_BAD_MODE
    mm.mmap_read_lock()
    done, refusal = pages.fill(memory, mm, start, length, data, kind, mode & MODE_WP != 0)
    mm.mmap_read_unlock()
    if not mode & MODE_DONTWAKE:
        _wake(uffd, start, start + done * PAGE_SIZE)
    return -(FILL_PARTLY if refusal != YES and done else refusal)


def move(mm: Mm, memory: Memory, uffd: Userfaultfd, to: int, start: int, length: int, mode: int) -> int:
    """UFFDIO_MOVE by a thread whose address space is mm: 0 or minus a reason."""
    if _is_changing(uffd):
        return -UFFD_CHANGING
    if uffd.mm is not None and uffd.mm is not mm:
        return -MOVE_OF_ANOTHER
    for addr in (to, start):
        refusal = _check_range(mm, addr, length)
        if refusal != YES:
            return -refusal
    if mode & ~(MODE_DONTWAKE | MODE_SRC_HOLES):
        return -UFFD_BAD_MODE
    mm.mmap_read_lock()
    done, refusal = pages.move_pages(memory, uffd, mm, to, start, length, mode & MODE_SRC_HOLES != 0)
    mm.mmap_read_unlock()
    if not mode & MODE_DONTWAKE:
        _wake(uffd, to, to + done)
    return -(FILL_PARTLY if refusal != YES and done else refusal)


def write_protect(mm: Mm, memory: Memory, uffd: Userfaultfd, start: int, length: int, mode: int) -> int:
    """UFFDIO_WRITEPROTECT: 0 or minus a reason."""
    if _is_changing(uffd):
        return -UFFD_CHANGING
    refusal = _check_range(mm, start, length)
    if refusal != YES:
        return -refusal
    if mode & ~(WRITEPROTECT_WP | WRITEPROTECT_DONTWAKE) or mode == WRITEPROTECT_WP | WRITEPROTECT_DONTWAKE:
        return -UFFD_BAD_MODE
    mm.mmap_read_lock()
    refusal = pages.write_protect(memory, mm, start, start + length, mode & WRITEPROTECT_WP != 0)
    mm.mmap_read_unlock()
    if refusal == YES and mode == 0:
        _wake(uffd, start, start + length)
    return -refusal


def release(mm: Mm, uffd: Userfaultfd) -> None:
    """Closing a userfaultfd: every VMA that is registered with it leaves it."""
    mm.mmap_write_lock()
    vma = mm.find_vma(0)
    while vma is not None:
        end: int = vma.end
        if vma.uffd is uffd:
            vma, _ = _clear(vma, vma.start, vma.end)
        vma = mm.find_vma(max(end, vma.end))
    mm.mmap_write_unlock()
    _wake(uffd, 0, mm.task_size)
    queue = uffd.queue
    if queue is not None:
        queue.events.clear()
