"""Which random steps may be taken: those that the agent survives, and that the model can follow."""

from __future__ import annotations

from typing import Final, final

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.machine import Process
from vmalab.pages.table import UFFD_WP
from vmalab.syscalls import shm
from vmalab.syscalls.map import huge_page_size
from vmalab.syscalls.policy import MPOL_F_ADDR, MPOL_F_NODE, MPOL_MF_STRICT
from vmalab.vma.area import Vma

LARGE: Final = 1 << 24
"""Bytes that no step may touch at once."""
TOUCHES: Final = frozenset(
    {
        "read",
        "write",
        "mlock",
        "mlock2",
        "mlockall",
        "madvise",
        "process_madvise",
        "mprotect",
        "pkey_mprotect",
        "mremap",
        "get_mempolicy",
    }
)
"""Steps that can touch pages that are there; what is mapped anew has none, and gets small ones."""
IF_LOCKED: Final = frozenset({"mprotect", "pkey_mprotect", "mremap"})
"""Steps that touch the pages that are there only where they are locked."""
NO_RANGE: Final = frozenset(
    {"crowd", "fork", "exit", "prlimit64", "munlockall", "prctl", "personality", "capset", "memfd", "seal", "close"}
    | {"memfd_secret", "userfaultfd", "pkey_alloc", "pkey_free", "set_mempolicy", "get_mempolicy", "mincore", "msync"}
    | {"shmdt", "mlockall", "shmget", "layout"}
)
"""Steps that change no VMA of their own choice, or none of the agent's."""
LOOKS_AT_PAGE: Final = MPOL_F_NODE | MPOL_F_ADDR
"""With these get_mempolicy makes a page present, as a read does."""
KEPT_CAPABILITIES: Final[int] = 1 << f.CAP_SYS_PTRACE | 1 << f.CAP_SYS_ADMIN
"""Without them there are no userfaultfds, and no reader of VMAs."""
HARMFUL_ADVICES: Final = (f.MADV_HWPOISON, f.MADV_SOFT_OFFLINE)
"""They take memory away from the whole machine."""


@final
class Safety:
    """Judges steps for a lockstep at its start."""

    def __init__(self, lockstep: Lockstep) -> None:
        self._lockstep: Lockstep = lockstep

    def allows(self, op: Op) -> bool:
        """Whether a step may be taken now."""
        process = self._lockstep.processes[op.who]
        args = op.args
        if op.name == "process_madvise" and op.file >= 0:
            target = self._lockstep.processes.get(op.file)
            if target is None:
                return False
            process = target
        if op.clone and op.name == "pkey_alloc":
            # Rights to memory with a key are the thread's own; in the model there are none but those of its owner.
            return False
        if op.name.startswith("shm") and not self._may_share(process, op):
            return False
        if op.name in TOUCHES and not _can_follow(process, op):
            return False
        if op.name == "capset":
            return self._lockstep.capabilities & KEPT_CAPABILITIES & ~args[0] == 0
        if op.name == "exec":
            # Root would get its capabilities back, and with them lose the layout that is always the same.
            return process.limits.ipc_lock
        if op.name in NO_RANGE:
            return True
        if op.name == "mbind" and args[4] & MPOL_MF_STRICT and process.machine.memory is None:
            # Whether pages are there that are not where a policy wants them, or cannot be moved there.
            if args[4] == MPOL_MF_STRICT or _has_secrets(process, *_ranges(op)[0]):
                return False
        if op.name == "brk":
            # The break may have been put anywhere: below it the agent's own memory could go.
            low, high = sorted((args[0], process.mm.brk))
            return high - low < LARGE and not self.is_own(low, high + PAGE_SIZE)
        if op.name == "mmap" and not args[3] & (f.MAP_FIXED | f.MAP_FIXED_NOREPLACE):
            # The low search starts at a random page.
            return args[1] < LARGE and not args[3] & f.MAP_32BIT
        if op.name == "mremap" and max(args[1], args[2]) >= LARGE:
            return False
        if op.name in ("fill", "writeprotect"):
            # The source has one page; and without pages it is not known what is there.
            return process.machine.memory is not None and args[1] <= PAGE_SIZE
        for start, length in _ranges(op):
            if length >= LARGE and start < TASK_SIZE and length <= TASK_SIZE:
                return False
            if self.is_own(start, start + length + PAGE_SIZE):
                return False
        return True

    def _may_share(self, process: Process, op: Op) -> bool:
        """Whether a step of System V shared memory may be taken: in the run's own IPC namespace, where there is one.

        What is locked counts for the user, and who else runs as the same user is not known.
        """
        namespace = process.ipc
        if not namespace.whole:
            return False
        if op.name == "shmget":
            # What is promised to others of the pool of huge pages is known with the pages alone.
            knows_pool = process.machine.memory is not None or not process.mm.settings.hugepages
            return knows_pool or not op.args[2] & shm.HUGETLB or op.args[2] & shm.NORESERVE != 0
        segment = namespace.segments.get(self._lockstep.resources[op.who].segments.get(op.file, -1))
        if op.name == "shmat":
            # Whoever locks all memory would have it all made present.
            if segment is None or op.args[0] == 0:
                return segment is None or segment.length < LARGE
            return segment.length < LARGE and not self.is_own(op.args[0], op.args[0] + segment.length + PAGE_SIZE)
        if op.name != "shmctl" or op.args[0] & 0xFFFFFFFF != shm.LOCK:
            return True
        limits = process.limits
        if segment is None or limits.ipc_lock or limits.memlock in (0, f.RLIM_INFINITY):
            return True
        return segment.length > limits.memlock

    def is_own(self, start: int, end: int) -> bool:
        """Whether a range touches the memory of the agent itself, which is left alone."""
        return self._lockstep.own.touch(start, end)


def _ranges(op: Op) -> list[tuple[int, int]]:
    """What a step names: addresses and lengths in bytes."""
    args = op.args
    if op.name == "process_madvise":
        return [(args[at], args[at + 1]) for at in range(2, len(args), 2)]
    if op.name == "mremap":
        return [(args[0], args[1]), (args[4], args[2])]
    if op.name == "shmctl":
        return []
    if op.name == "shmat":
        return [(args[0], 16 * PAGE_SIZE)] if args[0] else []
    if op.name == "mlockall":
        return [(0, TASK_SIZE)]
    if op.name == "mmap" and args[3] & f.MAP_HUGETLB:
        size = huge_page_size(args[3]) or PAGE_SIZE
        return [(args[0], -(-args[1] // size) * size)]
    return [(args[0], args[1] if op.name not in ("read", "write") else 1)]


def _can_follow(process: Process, op: Op) -> bool:
    """Whether the model knows what pages the step finds."""
    args = op.args
    advice = args[2] if op.name == "madvise" else args[0] if op.name == "process_madvise" else -1
    if advice & 0xFFFFFFFF in HARMFUL_ADVICES:
        return False
    if advice == f.MADV_GUARD_INSTALL and any([_guards_hang(process, *each) for each in _ranges(op)]):
        return False
    if advice >= 0 and advice not in (f.MADV_POPULATE_READ, f.MADV_POPULATE_WRITE, f.MADV_HUGEPAGE):
        return True
    if op.name == "get_mempolicy" and args[1] & LOOKS_AT_PAGE != LOOKS_AT_PAGE:
        return True
    if op.name in ("read", "write", "get_mempolicy"):
        found = process.mm.find_vma(args[0])
        if process.machine.memory is not None:
            # It knows its pages, and every userfaultfd answers with SIGBUS.
            return True
        if op.name == "get_mempolicy" and found is not None and not found.flags & f.VM_READ:
            return False
        return found is None or not (_hides_pages(found) or (op.name != "write" and _may_be_huge(found)))
    knows_pages = process.machine.memory is not None
    for start, length in _ranges(op):
        for vma in process.mm.tree.walk(min(start, TASK_SIZE), min(start + length + PAGE_SIZE, TASK_SIZE)):
            if knows_pages:
                continue
            if op.name in IF_LOCKED and not vma.flags & f.VM_LOCKED:
                continue
            if advice == f.MADV_HUGEPAGE:
                if vma.flags & f.VM_LOCKED:
                    return False
            elif _hides_pages(vma) or (advice != f.MADV_POPULATE_WRITE and _may_be_huge(vma)):
                return False
    return True


def _guards_hang(process: Process, start: int, length: int) -> bool:
    """Whether installing guards would never end: 6.18 goes on trying where a file's page is write-protected by a
    userfaultfd, because that protection stays when the page goes.
    """
    memory = process.machine.memory
    if memory is None:
        return False
    tables = memory.tables(process.mm)
    for vma in process.mm.tree.walk(min(start, TASK_SIZE), min(start + length + PAGE_SIZE, TASK_SIZE)):
        if vma.is_anonymous() or vma.pages() > 4096:
            continue
        for addr in range(vma.start, vma.end, PAGE_SIZE):
            if tables.entry(addr)[1] & UFFD_WP:
                return True
    return False


def _has_secrets(process: Process, start: int, length: int) -> bool:
    return any(
        vma.file is not None and vma.file.kind == "secretmem"
        for vma in process.mm.tree.walk(min(start, TASK_SIZE), min(start + length + PAGE_SIZE, TASK_SIZE))
    )


def _hides_pages(vma: Vma) -> bool:
    """Whether touching a VMA depends on which pages are there: guard markers, userfaultfd."""
    return vma.flags & (f.VM_MAYBE_GUARD | f.VM_UFFD_MISSING | f.VM_UFFD_MINOR | f.VM_UFFD_WP) != 0


def _may_be_huge(vma: Vma) -> bool:
    """Whether reading a VMA may give it a huge page: that makes an anon_vma, where a small page would not.

    Whether a huge page fits beside the pages that are there is not modelled.
    """
    if not vma.flags & f.VM_HUGEPAGE or vma.anon_vma is not None or not vma.is_anonymous():
        return False
    return (vma.start + PMD_SIZE - 1 & -PMD_SIZE) + PMD_SIZE <= vma.end
