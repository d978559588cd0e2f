"""Random sequences of calls for the lockstep: each run a few kinds of call, a few places, and what is near their edges.

The generator looks at the model while it goes, so that most calls hit memory; some are wrong on purpose.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from vmalab.fuzz.events import EVENTS
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import FIRST_MADE, NUMBERS, Op
from vmalab.fuzz.safety import KEPT_CAPABILITIES, Safety
from vmalab.machine import Process
from vmalab.syscalls import layout, shm

T = TypeVar("T")
WINDOWS: Final = (0x10000000, 0x20000000 - 16 * PAGE_SIZE, 0x7FFFE0000000)
"""Where fixed addresses lie: the second around a boundary of huge pages, the third near what the kernel chooses."""
WINDOW_PAGES: Final = 28
HUGE_WINDOW: Final = 0x40000000
"""Where memory that may be huge lies, where pages are compared: HUGE_PAGES times 2 MiB."""
HUGE_PAGES: Final = 4
HUGE_ADVICES: Final = (
    *(f.MADV_HUGEPAGE, f.MADV_HUGEPAGE, f.MADV_HUGEPAGE, f.MADV_NOHUGEPAGE, f.MADV_COLLAPSE, f.MADV_COLLAPSE),
    *(f.MADV_REMOVE, f.MADV_REMOVE, f.MADV_COLD),
    *(f.MADV_DONTNEED, f.MADV_DONTNEED, f.MADV_FREE, f.MADV_PAGEOUT, f.MADV_POPULATE_READ, f.MADV_POPULATE_WRITE),
    *(f.MADV_GUARD_INSTALL, f.MADV_GUARD_REMOVE, f.MADV_DONTFORK, f.MADV_WIPEONFORK, f.MADV_DOFORK, f.MADV_KEEPONFORK),
)
HUGE_FILES: Final = (3, 3, 3, 3, 4, 0, 2)
"""What is mapped there, by place: most often the large memfd, the small one, a file, and one that is only read."""
SHARING: Final = (f.CLONE_VM, f.CLONE_VM | f.CLONE_VFORK)
"""How a child is made that does one call in the memory of its parent."""
CROWDED: Final = 0.003
"""How many runs are close to the limit of the map count."""
MOST_VMAS: Final = 1 << 17
"""A limit of the map count beyond this is never come close to."""
FEW_VMAS: Final = 1000
"""Up to so many VMAs a step may choose among all of them."""
MOST_SLOTS: Final = 40
"""How many files and userfaultfds a run makes."""
PROTECTIONS: Final = (0, 1, 3, 3, 3, 5, 7, 2, 4)
LENGTHS: Final = (1, 1, 1, 2, 2, 3, 4, 6, 10, 16)
ADVICES: Final = (
    *(f.MADV_NORMAL, f.MADV_RANDOM, f.MADV_SEQUENTIAL, f.MADV_WILLNEED, f.MADV_DONTNEED, f.MADV_FREE),
    *(f.MADV_DONTFORK, f.MADV_DOFORK, f.MADV_MERGEABLE, f.MADV_UNMERGEABLE, f.MADV_HUGEPAGE, f.MADV_NOHUGEPAGE),
    *(f.MADV_DONTDUMP, f.MADV_DODUMP, f.MADV_WIPEONFORK, f.MADV_KEEPONFORK, f.MADV_COLD, f.MADV_PAGEOUT),
    *(f.MADV_POPULATE_READ, f.MADV_POPULATE_WRITE, f.MADV_DONTNEED_LOCKED),
)
RARE_ADVICES: Final = (
    *(f.MADV_GUARD_INSTALL, f.MADV_GUARD_INSTALL, f.MADV_GUARD_REMOVE, f.MADV_REMOVE, f.MADV_COLLAPSE),
    *(f.MADV_COLD, f.MADV_PAGEOUT, f.MADV_WILLNEED),
)
REMOTE_ADVICES: Final = (
    *(f.MADV_COLD, f.MADV_PAGEOUT, f.MADV_WILLNEED, f.MADV_COLLAPSE, f.MADV_COLD, f.MADV_WILLNEED),
    *(f.MADV_DONTNEED, f.MADV_NORMAL, 99),
)
SPECIAL_PROTECTIONS: Final = (f.PROT_GROWSDOWN, f.PROT_GROWSDOWN | f.PROT_GROWSUP, f.PROT_GROWSUP, f.PROT_SEM, 0x10)
LARGE_FLAGS: Final = (
    *(f.MAP_HUGETLB, f.MAP_HUGETLB | 21 << f.MAP_HUGE_SHIFT, f.MAP_HUGETLB | 30 << f.MAP_HUGE_SHIFT),
    f.MAP_HUGETLB | 13 << f.MAP_HUGE_SHIFT,
)
ODD_FLAGS: Final = (
    *(f.MAP_SYNC, f.MAP_32BIT, f.MAP_NONBLOCK, f.MAP_DENYWRITE, f.MAP_ABOVE4G, f.MAP_GROWSDOWN, f.MAP_UNINITIALIZED),
    *(1 << 22, f.MAP_NORESERVE, f.MAP_STACK, f.MAP_POPULATE | f.MAP_NONBLOCK),
)
SEGMENT_SIZES: Final = (PAGE_SIZE, 3 * PAGE_SIZE, 16 * PAGE_SIZE, 5 * PAGE_SIZE + 1, 1, 0, 1 << 46)
HUGE_SEGMENTS: Final = (
    *(shm.HUGETLB | shm.NORESERVE, shm.HUGETLB | shm.NORESERVE),
    *(shm.HUGETLB | shm.NORESERVE | shift << f.MAP_HUGE_SHIFT for shift in (21, 30, 13)),
)
SEGMENT_COMMANDS: Final = (
    *(
        f.IPC_STAT,
        f.IPC_STAT,
        f.IPC_STAT,
        f.IPC_STAT,
        f.IPC_RMID,
        f.IPC_RMID,
        f.IPC_SET,
        shm.LOCK,
        shm.LOCK,
        shm.UNLOCK,
    ),
    *(shm.STAT, shm.STAT_ANY, shm.INFO, f.IPC_INFO, 4),
)
SEALS: Final = (
    *(f.F_SEAL_WRITE, f.F_SEAL_FUTURE_WRITE, f.F_SEAL_SEAL, f.F_SEAL_GROW, f.F_SEAL_SHRINK, f.F_SEAL_EXEC),
    64,
)
CONTROLS: Final = (
    *((f.PR_SET_MDWE, 1), (f.PR_SET_MDWE, 3), (f.PR_SET_MDWE, 2), (f.PR_SET_MDWE, 0), (f.PR_GET_MDWE, 0)),
    *((f.PR_SET_MEMORY_MERGE, 1), (f.PR_SET_MEMORY_MERGE, 0), (f.PR_GET_MEMORY_MERGE, 0), (f.PR_GET_MDWE, 1)),
    (f.PR_SET_VMA, f.PR_SET_VMA_ANON_NAME, WINDOWS[0], PAGE_SIZE),
    *((f.PR_SET_MM, layout.BRK, WINDOWS[0]), (f.PR_SET_MM, layout.MAP, 0, 1), (f.PR_SET_MM, 0, WINDOWS[0], 0, 1)),
    *((f.PR_SET_THP_DISABLE, 0), (f.PR_SET_THP_DISABLE, 0, 2), (f.PR_GET_THP_DISABLE, 0), (f.PR_SET_THP_DISABLE, 0, 1)),
)
DROPPABLE_CAPABILITIES: Final[int] = sum([1 << bit for bit in f.CAPABILITIES.values()]) & ~KEPT_CAPABILITIES
KINDS: Final = {
    "mmap": 10,
    "mmap anywhere": 4,
    "mmap file": 6,
    "munmap": 5,
    "mprotect": 8,
    "mremap": 5,
    "mremap to": 5,
    "madvise": 6,
    "mlock": 3,
    "mlockall": 1,
    "mbind": 3,
    "brk": 3,
    "write": 12,
    "read": 3,
    "fork": 1,
    "exit": 1,
    "growsdown": 2,
    "mseal": 1,
    "limit": 1,
    "remap_file_pages": 1,
    "mmap odd": 2,
    "mprotect odd": 1,
    "guard": 2,
    "process_madvise": 2,
    "pkey": 3,
    "shm": 3,
    "memfd": 2,
    "secret": 1,
    "userfaultfd": 4,
    "prctl": 1,
    "personality": 1,
    "query": 2,
    "layout": 0.5,
    "mempolicy": 1,
    "capset": 1,
    "exec": 0.2,
    "huge": 4,
}
"""The kinds of step, with their weights where a run has them all."""


FEATURES: Final = (0, 0, 0, f.UFFD_FEATURE_EVENT_FORK, f.UFFD_FEATURE_EVENT_REMAP, EVENTS, f.UFFD_FEATURE_WP_ASYNC)
"""Of userfaultfds: events of fork, remap, remove, unmap; writes that wait for nobody."""
NEVER_WRONG: Final = frozenset(
    {
        "read",
        "write",
        "prlimit64",
        "prctl",
        "personality",
        "capset",
        "memfd",
        "memfd_secret",
        "pkey_alloc",
        "pkey_free",
        "userfaultfd",
    }
)
"""Steps whose arguments are good as they are: others would concern more than memory."""


class Generator:
    """Steps for one run, from a seed."""

    def __init__(self, lockstep: Lockstep, seed: int, *, swarm: bool = True) -> None:
        self._lockstep = lockstep
        self._random = random.Random(seed)
        self._roll: Callable[[], float] = self._random.random
        self._safety = Safety(lockstep)
        chosen = dict(KINDS)
        if swarm:
            kept = self._random.sample(list(KINDS), self._random.randint(3, len(KINDS)))
            chosen = {kind: KINDS[kind] * self._random.choice((1, 1, 3)) for kind in kept}
            chosen.setdefault("mmap", KINDS["mmap"])
        self._kinds = list(chosen)
        self._weights = list(itertools.accumulate(chosen.values()))
        self._windows = self._random.sample(WINDOWS, self._random.randint(1, len(WINDOWS)) if swarm else len(WINDOWS))
        self._crowded = CROWDED if swarm else 0.0
        self._wrong = self._random.choice((0.0, 0.02, 0.1)) if swarm else 0.03
        self._shared = self._random.choice((0.0, 0.0, 0.02)) if swarm else 0.01
        self._makers: dict[str, Callable[[Process, int], Op]] = {
            "mmap": self._mmap,
            "mmap anywhere": self._mmap_anywhere,
            "mmap file": self._mmap_file,
            "munmap": lambda process, who: Op("munmap", self._range(process), who),
            "mprotect": lambda process, who: Op("mprotect", (*self._range(process), self._choose(PROTECTIONS)), who),
            "mremap": self._mremap,
            "mremap to": self._mremap_to,
            "madvise": lambda process, who: Op("madvise", (*self._range(process), self._choose(ADVICES)), who),
            "mlock": self._mlock,
            "mlockall": self._mlockall,
            "mbind": self._mbind,
            "brk": self._brk,
            "write": lambda process, who: Op("write", (self._touched(process),), who),
            "read": lambda process, who: Op("read", (self._touched(process),), who),
            "fork": lambda process, who: Op("fork", (), who),
            "exit": lambda process, who: Op("exit", (), who),
            "growsdown": self._growsdown,
            "mseal": lambda process, who: Op("mseal", (*self._range(process), 0), who),
            "limit": self._limit,
            "remap_file_pages": self._remap_file_pages,
            "mmap odd": self._mmap_odd,
            "mprotect odd": self._mprotect_odd,
            "guard": self._guard,
            "process_madvise": self._process_madvise,
            "pkey": self._pkey,
            "shm": self._shm,
            "memfd": self._memfd,
            "secret": self._secret,
            "userfaultfd": self._userfaultfd,
            "prctl": self._prctl,
            "personality": self._personality,
            "query": self._query,
            "layout": self._layout,
            "mempolicy": self._mempolicy,
            "exec": lambda process, who: Op("exec", (), who),
            "huge": self._huge,
            "capset": lambda process, who: Op("capset", (self._lockstep.capabilities & ~DROPPABLE_CAPABILITIES,), who),
        }

    def steps(self, count: int) -> Iterator[Op]:
        """So many steps, each made when the one before it is done on the model."""
        who = 0
        if self._roll() < self._crowded:
            settings = self._lockstep.machine.settings
            room = settings.max_map_count - self._lockstep.processes[0].mm.map_count
            if room < MOST_VMAS:
                yield Op("crowd", (max(1, room - int(self._roll() * 40)),))
        for _ in range(count):
            # One process goes on for a while: the agent takes its steps in one batch.
            if who not in self._lockstep.processes or self._roll() < 0.04:
                who = self._choose(list(self._lockstep.processes))
            kind = self._kinds[bisect.bisect(self._weights, self._roll() * self._weights[-1])]
            op = self._makers[kind](self._lockstep.processes[who], who)
            if self._roll() < self._wrong and op.args and op.name not in NEVER_WRONG:
                op = self._spoil(op)
            if op.name in NUMBERS and self._roll() < self._shared:
                op = Op(op.name, op.args, op.who, op.file, self._choose(SHARING))
            if self._safety.allows(op):
                yield op

    # -- choices ------------------------------------------------------------------------------------------

    def _choose(self, among: Sequence[T]) -> T:
        return among[int(self._roll() * len(among))]

    def _pages(self) -> int:
        return self._choose(LENGTHS) * PAGE_SIZE

    def _place(self) -> int:
        """A page of a window."""
        return self._choose(self._windows) + int(self._roll() * WINDOW_PAGES) * PAGE_SIZE

    def _edge(self, process: Process) -> int:
        """An address at or near an edge of a VMA that is not the agent's own."""
        mm = process.mm
        vmas = mm.vmas() if mm.map_count < FEW_VMAS else []
        for _ in range(4):
            vma = self._choose(vmas) if vmas else mm.find_vma(self._place())
            if vma is not None and not self._safety.is_own(vma.start, vma.end):
                near = self._choose((vma.start, vma.end, vma.start + PAGE_SIZE, vma.end - PAGE_SIZE, vma.start))
                return max(near, PAGE_SIZE)
        return self._place()

    def _range(self, process: Process) -> tuple[int, int]:
        if self._roll() < 0.5:
            return self._place(), self._pages()
        vma = process.mm.find_vma(self._edge(process))
        if vma is not None and self._roll() < 0.5 and not self._safety.is_own(vma.start, vma.end):
            length = vma.end - vma.start
            return vma.start, min(length, self._choose((length, PAGE_SIZE, length + PAGE_SIZE)))
        return self._edge(process), self._pages()

    def _touched(self, process: Process) -> int:
        addr = self._edge(process) if self._roll() < 0.6 else self._place()
        return addr + self._choose((0, 0, 8, 4095))

    def _spoil(self, op: Op) -> Op:
        """The same with one argument that is wrong, or at an edge of what is right."""
        args = list(op.args)
        at = int(self._roll() * len(args))
        args[at] = self._choose(
            (
                0,
                1,
                args[at] + 1,
                args[at] - 1 & (1 << 64) - 1,
                TASK_SIZE,
                TASK_SIZE - PAGE_SIZE,
                1 << 47,
                (1 << 64) - PAGE_SIZE,
            )
        )
        return Op(op.name, tuple(args), op.who, op.file)

    # -- the kinds ----------------------------------------------------------------------------------------

    def _mmap(self, process: Process, who: int) -> Op:
        kind = self._choose((f.MAP_PRIVATE, f.MAP_PRIVATE, f.MAP_PRIVATE, f.MAP_SHARED))
        flags = kind | f.MAP_ANONYMOUS | self._choose((f.MAP_FIXED, f.MAP_FIXED, f.MAP_FIXED, f.MAP_FIXED_NOREPLACE, 0))
        flags |= self._choose((0, 0, 0, 0, f.MAP_NORESERVE, f.MAP_POPULATE, f.MAP_LOCKED, f.MAP_STACK))
        addr, length = self._range(process)
        return Op("mmap", (addr, length, self._choose(PROTECTIONS), flags, 0), who)

    def _mmap_anywhere(self, process: Process, who: int) -> Op:
        flags = f.MAP_ANONYMOUS | self._choose((f.MAP_PRIVATE, f.MAP_PRIVATE, f.MAP_SHARED))
        length = self._choose((self._pages(), self._pages(), PMD_SIZE, PMD_SIZE + PAGE_SIZE, 3 * PMD_SIZE))
        hint = self._choose((0, 0, 0, self._edge(process), self._place()))
        return Op("mmap", (hint, length, self._choose(PROTECTIONS), flags, 0), who)

    def _mmap_file(self, process: Process, who: int) -> Op:
        flags = self._choose((f.MAP_PRIVATE, f.MAP_SHARED)) | self._choose((f.MAP_FIXED, f.MAP_FIXED, 0))
        flags |= self._choose((0, 0, 0, f.MAP_POPULATE, f.MAP_LOCKED))
        addr, length = self._range(process)
        # An offset that goes with the place makes neighbours that can merge.
        offset = addr % (1 << 24) if self._roll() < 0.8 else self._pages()
        file = int(self._roll() * len(self._lockstep.models))
        return Op("mmap", (addr & -PAGE_SIZE, length, self._choose(PROTECTIONS), flags, offset & -PAGE_SIZE), who, file)

    def _more_of_it(self, process: Process, who: int) -> Op:
        """Memory beside a VMA that is like it, but for what was done to that since: guards, say."""
        vmas = process.vmas() if process.mm.map_count < FEW_VMAS else []
        guarded = [vma for vma in vmas if vma.flags & f.VM_MAYBE_GUARD]
        vma = self._choose(guarded) if guarded else process.mm.find_vma(self._edge(process))
        if vma is None or not vma.is_anonymous():
            return self._mmap(process, who)
        length = self._pages()
        addr = self._choose((vma.end, max(vma.start - length, PAGE_SIZE)))
        flags = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED
        return Op("mmap", (addr, length, vma.flags & (f.VM_READ | f.VM_WRITE | f.VM_EXEC), flags, 0), who)

    def _growsdown(self, process: Process, who: int) -> Op:
        flags = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED | f.MAP_GROWSDOWN
        return Op("mmap", (self._place(), self._pages(), 3, flags, 0), who)

    def _mremap(self, process: Process, who: int) -> Op:
        addr, length = self._range(process)
        new = self._choose((length, length + PAGE_SIZE, max(PAGE_SIZE, length - PAGE_SIZE), self._pages()))
        return Op("mremap", (addr, length, new, self._choose((0, f.MREMAP_MAYMOVE)), 0), who)

    def _mremap_to(self, process: Process, who: int) -> Op:
        addr, length = self._range(process)
        flags = f.MREMAP_MAYMOVE | self._choose((f.MREMAP_FIXED, f.MREMAP_FIXED, f.MREMAP_DONTUNMAP, 6))
        new = self._choose((length, length, length, length + PAGE_SIZE, max(PAGE_SIZE, length - PAGE_SIZE)))
        old = self._choose((length, length, length, length, 0))
        return Op("mremap", (addr, old, new, flags, self._choose((self._place(), self._edge(process)))), who)

    def _mlock(self, process: Process, who: int) -> Op:
        addr, length = self._range(process)
        kind = self._choose(("mlock", "munlock", "mlock2"))
        return Op(kind, (addr, length, self._choose((0, 1))) if kind == "mlock2" else (addr, length), who)

    def _mlockall(self, process: Process, who: int) -> Op:
        if self._roll() < 0.5:
            return Op("munlockall", (), who)
        return Op("mlockall", (self._choose((1, 2, 3, 2, 6, 7, 4)),), who)

    def _mbind(self, process: Process, who: int) -> Op:
        mode, mask = self._choose(((0, 0), (1, 1), (2, 1), (3, 1), (4, 0), (2, 0), (1, 0)))
        flags = self._choose((0, 0, 1, 2, 3, 4, 5, 6)) if self._roll() < 0.3 else 0
        return Op("mbind", (*self._range(process), mode, mask, flags), who)

    def _brk(self, process: Process, who: int) -> Op:
        now = process.mm.brk
        return Op("brk", (max(0, now + self._choose((1, 2, 5, -1, -2, 0)) * PAGE_SIZE + self._choose((0, 0, 7))),), who)

    def _limit(self, process: Process, who: int) -> Op:
        mm = process.mm
        resource, pages = self._choose(
            (
                (f.RLIMIT_AS, mm.total_vm),
                (f.RLIMIT_DATA, mm.data_vm),
                (f.RLIMIT_STACK, 2048),
                (f.RLIMIT_MEMLOCK, mm.locked_vm),
                (f.RLIMIT_MEMLOCK, 0),
            )
        )
        used: int = pages
        value = self._choose((f.RLIM_INFINITY, (used + self._choose((0, 1, 4, 20))) * PAGE_SIZE))
        return Op("prlimit64", (resource, value), who)

    def _remap_file_pages(self, process: Process, who: int) -> Op:
        addr, length = self._range(process)
        return Op("remap_file_pages", (addr, length, 0, int(self._roll() * 64), 0), who)

    def _mmap_odd(self, process: Process, who: int) -> Op:
        """Rare flags and types, on anonymous memory or on a file."""
        kind = self._choose(
            (f.MAP_PRIVATE, f.MAP_SHARED, f.MAP_SHARED_VALIDATE, f.MAP_DROPPABLE, f.MAP_DROPPABLE, 0, 5)
        )
        flags = kind | self._choose((f.MAP_FIXED, f.MAP_FIXED, f.MAP_FIXED_NOREPLACE)) | self._choose((0, *ODD_FLAGS))
        prot = self._choose(PROTECTIONS)
        addr, length = self._range(process)
        which = self._roll()
        if which < 0.3:
            file = self._any_file(who)
            return Op("mmap", (addr, length, prot, flags, addr % (1 << 24)), who, file)
        if which < 0.5:
            flags |= f.MAP_ANONYMOUS | self._choose(LARGE_FLAGS)
            return Op("mmap", (addr & -PMD_SIZE, PMD_SIZE, prot, flags, 0), who)
        return Op("mmap", (addr, length, prot, flags | f.MAP_ANONYMOUS, 0), who)

    def _mprotect_odd(self, process: Process, who: int) -> Op:
        prot = self._choose(PROTECTIONS) | self._choose(SPECIAL_PROTECTIONS)
        return Op("mprotect", (*self._range(process), prot), who)

    def _guard(self, process: Process, who: int) -> Op:
        if self._roll() < 0.25:
            return self._more_of_it(process, who)
        return Op("madvise", (*self._range(process), self._choose(RARE_ADVICES)), who)

    def _process_madvise(self, process: Process, who: int) -> Op:
        target = -1
        if self._roll() < 0.4:
            target = self._choose(list(self._lockstep.processes))
            process = self._lockstep.processes[target]
        ranges = [*self._range(process)]
        if self._roll() < 0.5:
            ranges += self._range(process)
        advice = self._choose(REMOTE_ADVICES if target >= 0 else (*RARE_ADVICES, *ADVICES))
        return Op("process_madvise", (advice, self._choose((0, 0, 0, 0, 0, 1)), *ranges), who, target)

    def _pkey(self, process: Process, who: int) -> Op:
        which = self._roll()
        if which < 0.2:
            return Op("pkey_alloc", (self._choose((0, 0, 0, 0, 1)), 0), who)
        key = self._choose((0, 1, 1, 1, 2, 2, 3, 15, 16, (1 << 32) - 1))
        if which < 0.3:
            # Key 0 is that of the agent's own memory.
            return Op("pkey_free", (key or 1,), who)
        return Op("pkey_mprotect", (*self._range(process), self._choose(PROTECTIONS), key), who)

    def _shm(self, process: Process, who: int) -> Op:
        which = self._roll()
        if which < 0.4:
            vmas = process.vmas() if process.mm.map_count < FEW_VMAS else []
            attached = [vma for vma in vmas if vma.ops is not None and vma.ops.name == "shm"]
            at = self._choose(attached).start if attached else self._place()
            if which < 0.2 and attached:
                # A part of a segment goes one way and back: parts of what has a close hook never merge.
                return Op("mprotect", (at, self._choose((1, 1, 2)) * PAGE_SIZE, self._choose((1, 3))), who)
            return Op("shmdt", (at,), who)
        if which < 0.5 and self._lockstep.slots < MOST_SLOTS:
            mode = f.IPC_CREAT | self._choose((0o600, 0o600, 0o700, 0o400, 0))
            flags = mode | self._choose((0, 0, f.IPC_EXCL, shm.NORESERVE))
            flags |= self._choose((0, 0, 0, 0, shm.HUGETLB, *HUGE_SEGMENTS))
            flags &= ~self._choose((0, 0, 0, f.IPC_CREAT))
            return Op("shmget", (self._choose((0, 0, 1, 2)), self._choose(SEGMENT_SIZES), flags), who, self._new_file())
        segment = self._choose(list(self._lockstep.resources[who].segments) or [0])
        if which < 0.7:
            what = self._choose((0, 1, 2, 0o600, 0o400, 0o755))
            return Op("shmctl", (self._choose(SEGMENT_COMMANDS), what), who, segment)
        flags = self._choose((0, 0, f.SHM_RDONLY, f.SHM_EXEC)) | self._choose((0, f.SHM_REMAP, f.SHM_REMAP))
        addr = self._choose((0, self._place(), self._edge(process), self._place() + 8, self._place() & -PMD_SIZE))
        return Op("shmat", (addr, flags | self._choose((0, f.SHM_RND))), who, segment)

    def _made(self, who: int, contexts: bool) -> list[int]:
        """The files, or the userfaultfds, that the run has made and the process holds."""
        made = self._lockstep.resources[who].made
        return [FIRST_MADE + slot for slot, file in made.items() if (file is None) == contexts]

    def _new_file(self) -> int:
        return FIRST_MADE + self._lockstep.slots

    def _any_file(self, who: int) -> int:
        made = self._made(who, False)
        if made and self._roll() < 0.5:
            return self._choose(made)
        return int(self._roll() * len(self._lockstep.models))

    def _memfd(self, process: Process, who: int) -> Op:
        made = self._made(who, False)
        which = self._roll()
        if not made or (which < 0.1 and self._lockstep.slots < MOST_SLOTS):
            flags = self._choose((0, f.MFD_ALLOW_SEALING, f.MFD_ALLOW_SEALING))
            return Op("memfd", (flags, 1 << 14), who, self._new_file())
        if which < 0.25:
            return Op("seal", (self._choose(SEALS),), who, self._choose(made))
        op = self._mmap_file(process, who)
        return Op(op.name, op.args, who, self._choose(made))

    def _secret(self, process: Process, who: int) -> Op:
        if self._lockstep.slots < MOST_SLOTS and self._roll() < 0.3:
            return Op("memfd_secret", (1 << 14,), who, self._new_file())
        op = self._mmap_file(process, who)
        return Op(op.name, op.args, who, self._any_file(who))

    def _userfaultfd(self, process: Process, who: int) -> Op:
        made = self._made(who, True)
        which = self._roll()
        if not made or (which < 0.05 and self._lockstep.slots < MOST_SLOTS):
            return Op("userfaultfd", (self._choose(FEATURES),), who, self._new_file())
        if which < 0.15:
            return Op("close", (), who, self._choose(made))
        if which < 0.35:
            return Op("unregister", self._range(process), who, self._choose(made))
        if which < 0.65 and self._lockstep.pages:
            addr = self._edge(process) & -PAGE_SIZE
            if which < 0.5:
                args = (addr, PAGE_SIZE, self._choose((0, 0, 1, 2, 3)), self._choose((0, 0, 0, 2, 1, 4)))
                return Op("fill", args, who, self._choose(made))
            return Op("writeprotect", (addr, PAGE_SIZE, self._choose((1, 1, 0, 2, 3))), who, self._choose(made))
        return Op("register", (*self._range(process), self._choose((1, 2, 3, 1, 4, 2, 0, 8))), who, self._choose(made))

    def _prctl(self, process: Process, who: int) -> Op:
        option, *given = self._choose(CONTROLS)
        args = [option, *given, 0, 0, 0]
        if option == f.PR_SET_THP_DISABLE:
            args[1] = 1 if self._roll() < 0.5 else 0
        return Op("prctl", tuple(args[:5]), who)

    def _layout(self, process: Process, who: int) -> Op:
        parts = [part or process.mm.start_stack for part in layout.layout_of(process.mm)]
        at = layout.ORDER.index(layout.START_BRK)
        which = self._roll()
        if which < 0.1:
            option = self._choose((*layout.ORDER, layout.START_BRK, layout.BRK, 0, 16))
            return Op("prctl", (f.PR_SET_MM, option, self._edge(process), 0, 0), who)
        if which < 0.5:
            parts[at] = self._edge(process)
            parts[at + 1] = parts[at] + self._choose((0, 0, PAGE_SIZE, 5 * PAGE_SIZE, 7))
        elif which < 0.8:
            parts[at + 1] = max(0, parts[at + 1] + self._choose((PAGE_SIZE, -PAGE_SIZE, 1, 10 * PAGE_SIZE)))
        else:
            other = int(self._roll() * len(parts))
            parts[other] = self._choose(
                (parts[other] + PAGE_SIZE, parts[other] - 1, 0, TASK_SIZE, self._place(), 1 << 64)
            )
        return Op("layout", tuple(parts), who)

    def _personality(self, process: Process, who: int) -> Op:
        now = process.personality
        return Op("personality", (self._choose((now ^ f.READ_IMPLIES_EXEC, 0xFFFFFFFF)),), who)

    def _query(self, process: Process, who: int) -> Op:
        if self._roll() < 0.5:
            return Op("mincore", self._range(process), who)
        return Op("msync", (*self._range(process), self._choose((0, 1, 2, 3, 4, 5, 6, 8))), who)

    def _mempolicy(self, process: Process, who: int) -> Op:
        mode, mask = self._choose(
            ((0, 0), (1, 1), (2, 1), (3, 1), (4, 0), (5, 1), (6, 1), (0x8002, 1), (0x4002, 1), (0xC002, 1), (0x2003, 1))
        )
        which = self._roll()
        if which < 0.3:
            return Op("set_mempolicy", (mode, mask), who)
        if which < 0.5:
            return Op("mbind", (*self._range(process), mode, mask, 0), who)
        if which < 0.8:
            return Op("set_mempolicy_home_node", (*self._range(process), 0, self._choose((0, 0, 0, 1))), who)
        return Op("get_mempolicy", (self._choose((0, self._edge(process))), self._choose((0, 1, 2, 3, 4, 5, 8))), who)

    # -- huge pages ---------------------------------------------------------------------------------------

    def _huge_range(self) -> tuple[int, int]:
        """A part of the window of huge pages: whole ones, or cut at some page within."""
        first = HUGE_WINDOW + int(self._roll() * HUGE_PAGES) * PMD_SIZE
        length = self._choose((1, 1, 1, 2, 3)) * PMD_SIZE
        cut = self._choose((1, 1, 16, 255, 256, 511)) * PAGE_SIZE
        which = self._roll()
        if which < 0.5:
            return first, length
        if which < 0.65:
            return first + cut, length - cut
        return (first, cut) if which < 0.8 else (first + cut, self._pages())

    def _huge(self, process: Process, who: int) -> Op:
        """What makes huge pages, shares them, and cuts them up."""
        if not self._lockstep.pages:
            return self._mmap_anywhere(process, who)
        addr, length = self._huge_range()
        which = self._roll()
        if which < 0.15:
            flags = f.MAP_FIXED | self._choose((0, 0, 0, f.MAP_POPULATE, f.MAP_LOCKED))
            prot = self._choose((3, 3, 3, 1))
            if which < 0.07:
                # Most are aligned in the file as in memory.
                offset = addr - HUGE_WINDOW + self._choose((0, 0, 0, 0, 0, PAGE_SIZE, PMD_SIZE))
                flags |= self._choose((f.MAP_PRIVATE, f.MAP_SHARED, f.MAP_SHARED))
                return Op("mmap", (addr, length, prot, flags, offset), who, self._choose(HUGE_FILES))
            flags |= f.MAP_ANONYMOUS | self._choose((f.MAP_PRIVATE, f.MAP_PRIVATE, f.MAP_SHARED))
            return Op("mmap", (addr, length, prot, flags, 0), who)
        if which < 0.45:
            at = addr & -PMD_SIZE | self._choose((0, 1, 17, 255, 256, 511)) * PAGE_SIZE
            return Op(self._choose(("write", "write", "read")), (at,), who)
        if which < 0.52:
            return Op("madvise", (addr & -PMD_SIZE, PMD_SIZE, f.MADV_COLLAPSE), who)
        if which < 0.75:
            return Op("madvise", (addr, length, self._choose(HUGE_ADVICES)), who)
        if which < 0.82:
            return Op("mprotect", (addr, length, self._choose((1, 3, 3))), who)
        if which < 0.85:
            return Op("munmap", (addr, length), who)
        if which < 0.93:
            goal, _ = self._huge_range()
            return Op("mremap", (addr, length, length, f.MREMAP_MAYMOVE | f.MREMAP_FIXED, goal), who)
        return Op(self._choose(("fork", "exit")), (), who)
