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
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.machine import Process

T = TypeVar("T")
WINDOWS: Final = (0x10000000, 0x20000000 - 16 * PAGE_SIZE, 0x7FFFE0000000)
"""Where fixed addresses lie: the second around a boundary of huge pages, the third near what the kernel chooses."""
WINDOW_PAGES: Final = 40
PROTECTIONS: Final = (0, 1, 3, 3, 3, 5, 7, 2, 4)
LENGTHS: Final = (1, 1, 1, 2, 2, 3, 4, 6, 10, 16)
ADVICES: Final = (
    *(f.MADV_NORMAL, f.MADV_RANDOM, f.MADV_SEQUENTIAL, f.MADV_WILLNEED, f.MADV_DONTNEED, f.MADV_FREE),
    *(f.MADV_DONTFORK, f.MADV_DOFORK, f.MADV_MERGEABLE, f.MADV_UNMERGEABLE, f.MADV_HUGEPAGE, f.MADV_NOHUGEPAGE),
    *(f.MADV_DONTDUMP, f.MADV_DODUMP, f.MADV_WIPEONFORK, f.MADV_KEEPONFORK, f.MADV_COLD, f.MADV_PAGEOUT),
    *(f.MADV_POPULATE_READ, f.MADV_POPULATE_WRITE, f.MADV_DONTNEED_LOCKED),
)
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
}
"""The kinds of step, with their weights where a run has them all."""


POPULATES: Final = frozenset({"read", "mlock", "mlock2", "mlockall", "mmap", "madvise", "mremap", "brk"})
"""Steps that can read memory that was never written to."""


def _may_fault_huge(process: Process, op: Op) -> bool:
    """Whether a step may read the place of a huge page: that makes an anon_vma, where a small page would not."""
    if op.name == "madvise" and op.args[2] not in (f.MADV_POPULATE_READ, f.MADV_HUGEPAGE):
        return False
    for vma in process.vmas():
        first = vma.start + PMD_SIZE - 1 & -PMD_SIZE
        if vma.is_anonymous() and vma.anon_vma is None and first + PMD_SIZE <= vma.end:
            if vma.flags & f.VM_HUGEPAGE or op.name == "madvise":
                return True
    return False


class Generator:
    """Steps for one run, from a seed."""

    def __init__(self, lockstep: Lockstep, seed: int, *, swarm: bool = True) -> None:
        self._lockstep = lockstep
        self._random = random.Random(seed)
        self._own = {vma.start for vma in lockstep.processes[0].vmas()}
        """Where the agent itself lies: left alone."""
        chosen = dict(KINDS)
        if swarm:
            kept = self._random.sample(list(KINDS), self._random.randint(3, len(KINDS)))
            chosen = {kind: KINDS[kind] * self._random.choice((1, 1, 3)) for kind in kept}
            chosen.setdefault("mmap", KINDS["mmap"])
        self._kinds = list(chosen)
        self._weights = list(itertools.accumulate(chosen.values()))
        self._windows = self._random.sample(WINDOWS, self._random.randint(1, len(WINDOWS)) if swarm else len(WINDOWS))
        self._wrong = self._random.choice((0.0, 0.02, 0.1)) if swarm else 0.03
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
        }

    def steps(self, count: int) -> Iterator[Op]:
        """So many steps, each made when the one before it is done on the model."""
        who = 0
        for _ in range(count):
            # One process goes on for a while: the agent takes its steps in one batch.
            if who not in self._lockstep.processes or self._random.random() < 0.04:
                who = self._choose(list(self._lockstep.processes))
            kind = self._kinds[bisect.bisect(self._weights, self._random.random() * self._weights[-1])]
            op = self._makers[kind](self._lockstep.processes[who], who)
            if self._random.random() < self._wrong and op.args and op.name not in ("read", "write", "prlimit64"):
                op = self._spoil(op)
            if self._is_safe(op):
                yield op

    # -- choices ------------------------------------------------------------------------------------------

    def _choose(self, among: Sequence[T]) -> T:
        return among[int(self._random.random() * len(among))]

    def _pages(self) -> int:
        return self._choose(LENGTHS) * PAGE_SIZE

    def _place(self) -> int:
        """A page of a window."""
        return self._choose(self._windows) + int(self._random.random() * WINDOW_PAGES) * PAGE_SIZE

    def _edge(self, process: Process) -> int:
        """An address at or near an edge of a VMA that is not the agent's own."""
        vmas = process.vmas()
        for _ in range(4):
            vma = self._choose(vmas)
            if vma.start not in self._own:
                near = self._choose((vma.start, vma.end, vma.start + PAGE_SIZE, vma.end - PAGE_SIZE, vma.start))
                return max(near, PAGE_SIZE)
        return self._place()

    def _range(self, process: Process) -> tuple[int, int]:
        if self._random.random() < 0.5:
            return self._place(), self._pages()
        vma = process.mm.find_vma(self._edge(process))
        if vma is not None and vma.start not in self._own and self._random.random() < 0.5:
            length = vma.end - vma.start
            return vma.start, min(length, self._choose((length, PAGE_SIZE, length + PAGE_SIZE)))
        return self._edge(process), self._pages()

    def _touched(self, process: Process) -> int:
        addr = self._edge(process) if self._random.random() < 0.6 else self._place()
        return addr + self._choose((0, 0, 8, 4095))

    def _spoil(self, op: Op) -> Op:
        """The same with one argument that is wrong, or at an edge of what is right."""
        args = list(op.args)
        at = int(self._random.random() * len(args))
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

    def _is_safe(self, op: Op) -> bool:
        """Whether the agent survives it: its own memory is left alone, and no huge amount of it is touched."""
        process = self._lockstep.processes[op.who]
        if op.name in POPULATES and _may_fault_huge(process, op):
            # Whether the huge page fits beside the pages that are there is not modelled.
            return False
        if op.name in ("fork", "exit", "prlimit64", "mlockall", "munlockall"):
            return True
        if op.name == "mbind" and op.args[4] & 7:
            # Whether pages lie where a policy wants them is not modelled.
            return False
        if op.name == "brk":
            return abs(op.args[0] - process.mm.brk) < 1 << 24
        ranges = [(op.args[0], op.args[1] if len(op.args) > 1 else 1)]
        if op.name == "mmap" and not op.args[3] & (f.MAP_FIXED | f.MAP_FIXED_NOREPLACE):
            return op.args[1] < 1 << 24 or not op.args[3] & (f.MAP_POPULATE | f.MAP_LOCKED)
        if op.name == "mremap":
            ranges.append((op.args[4], op.args[2]))
            if max(op.args[1], op.args[2]) >= 1 << 24:
                return False
        for start, length in ranges:
            if length >= 1 << 24 and start < TASK_SIZE and length <= TASK_SIZE:
                return False
            last = min(start + length + PAGE_SIZE, 1 << 64)
            if any(vma.start in self._own for vma in process.mm.tree.walk(min(start, last), last)):
                return False
        return True

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
        offset = addr % (1 << 24) if self._random.random() < 0.8 else self._pages()
        file = int(self._random.random() * len(self._lockstep.models))
        return Op("mmap", (addr & -PAGE_SIZE, length, self._choose(PROTECTIONS), flags, offset & -PAGE_SIZE), who, file)

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
        if self._random.random() < 0.5:
            return Op("munlockall", (), who)
        return Op("mlockall", (self._choose((1, 2, 3, 2, 6, 7, 4)),), who)

    def _mbind(self, process: Process, who: int) -> Op:
        mode, mask = self._choose(((0, 0), (1, 1), (2, 1), (3, 1), (4, 0), (2, 0), (1, 0)))
        return Op("mbind", (*self._range(process), mode, mask, 0), who)

    def _brk(self, process: Process, who: int) -> Op:
        now = process.mm.brk
        return Op("brk", (max(0, now + self._choose((1, 2, 5, -1, -2, 0)) * PAGE_SIZE + self._choose((0, 0, 7))),), who)

    def _limit(self, process: Process, who: int) -> Op:
        mm = process.mm
        resource, used = self._choose(((f.RLIMIT_AS, mm.total_vm), (f.RLIMIT_DATA, mm.data_vm), (f.RLIMIT_STACK, 2048)))
        value = self._choose((f.RLIM_INFINITY, (used + self._choose((0, 1, 4, 20))) * PAGE_SIZE))
        return Op("prlimit64", (resource, value), who)

    def _remap_file_pages(self, process: Process, who: int) -> Op:
        addr, length = self._range(process)
        return Op("remap_file_pages", (addr, length, 0, int(self._random.random() * 64), 0), who)
