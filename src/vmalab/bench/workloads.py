"""The workloads: what a program does to its address space, in several sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmalab.bench.script import BRK, MADVISE, MREMAP, PRIVATE, Round, Scribe
from vmalab.flags import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_NOHUGEPAGE,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_STACK,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

PAGE: Final = 4096
RW: Final = PROT_READ | PROT_WRITE
PROTECTIONS: Final = (PROT_NONE, PROT_READ, RW, PROT_READ | PROT_EXEC)
STEPS: Final = 20_000
"""About so many steps has a round of calls."""
SPREAD: Final = 50
"""A mix keeps its number of VMAs within one part in so many."""


def _rounds(scribe: Scribe, rounds: int, body: Callable[[], None]) -> None:
    """Rounds in which all that the body does is timed."""
    scribe.script.setup = scribe.take()
    scribe.script.vmas = scribe.vmas
    for _ in range(rounds):
        body()
        scribe.script.rounds.append(Round(scribe.take()))
    scribe.script.ops = len(scribe.script.rounds[-1].timed)


def pairs(scribe: Scribe, rounds: int) -> None:
    """Map and unmap, again and again."""

    def body() -> None:
        for _ in range(STEPS // 2):
            length = PAGE * scribe.random.randint(1, 16)
            scribe.unmap(scribe.map(length, RW), length)

    _rounds(scribe, rounds, body)


class Mix:
    """Maps, unmaps and protections at random, that keep the number of VMAs."""

    def __init__(self, scribe: Scribe, wanted: int) -> None:
        self._scribe = scribe
        self._wanted = wanted
        self._ranges: list[tuple[int, int]] = []
        self._base = scribe.vmas
        while self.vmas() < wanted:
            self._map()

    def vmas(self) -> int:
        """How many there are beside those of the empty process."""
        return self._scribe.vmas - self._base

    def _map(self) -> None:
        random = self._scribe.random
        length = PAGE * random.randint(1, 16)
        self._ranges.append((self._scribe.map(length, random.choice(PROTECTIONS)), length))

    def _take(self) -> tuple[int, int]:
        """A range at random, which leaves the list."""
        ranges = self._ranges
        at = self._scribe.random.randrange(len(ranges))
        ranges[at], ranges[-1] = ranges[-1], ranges[at]
        return ranges.pop()

    def step(self) -> None:
        """One call."""
        random = self._scribe.random
        excess = self.vmas() - self._wanted
        kind = random.random()
        if len(self._ranges) < 2 or excess < -max(1, self._wanted // SPREAD):
            self._map()
        elif excess > max(1, self._wanted // SPREAD):
            self._scribe.unmap(*self._take())
        elif kind < 0.3:
            self._map()
        elif kind < 0.6:
            self._scribe.unmap(*self._take())
        else:
            start, length = random.choice(self._ranges)
            first = random.randrange(length // PAGE)
            pages = random.randint(1, length // PAGE - first)
            self._scribe.protect(start + first * PAGE, pages * PAGE, random.choice(PROTECTIONS))


def mix(wanted: int) -> Callable[[Scribe, int], None]:
    """Random maps, unmaps and protections among so many VMAs."""

    def make(scribe: Scribe, rounds: int) -> None:
        mixed = Mix(scribe, wanted)

        def body() -> None:
            for _ in range(STEPS):
                mixed.step()

        _rounds(scribe, rounds, body)

    return make


def protect(scribe: Scribe, rounds: int) -> None:
    """mprotect back and forth: a VMA is split in three, and merged again."""
    base = scribe.map(1000 * PAGE, RW)

    def body() -> None:
        for _ in range(STEPS // 2):
            addr = base + PAGE * scribe.random.randint(1, 990)
            scribe.protect(addr, PAGE, PROT_READ)
            scribe.protect(addr, PAGE, RW)

    _rounds(scribe, rounds, body)


def growth(scribe: Scribe, rounds: int) -> None:
    """20,000 mappings one after the other, which do not merge, and their teardown."""

    def body() -> None:
        made = [(scribe.map(PAGE, RW if at % 2 else PROT_READ), PAGE) for at in range(STEPS)]
        for addr, length in made:
            scribe.unmap(addr, length)

    _rounds(scribe, rounds, body)


def _thread(scribe: Scribe) -> tuple[int, int, int]:
    """What glibc does for a thread: a stack, and an arena that is cut to its alignment; (stack, arena, its size)."""
    size = 64 << 20
    stack = scribe.map((8 << 20) + PAGE, PROT_NONE, PRIVATE | MAP_STACK | MAP_NORESERVE)
    scribe.protect(stack + PAGE, 8 << 20, RW)
    found = scribe.map(2 * size, PROT_NONE, PRIVATE | MAP_NORESERVE)
    arena = (found + size - 1) & -size
    if arena > found:
        scribe.unmap(found, arena - found)
    if arena + size < found + 2 * size:
        scribe.unmap(arena + size, found + size - arena)
    scribe.protect(arena, 132 << 10, RW)
    return stack, arena, 132 << 10


def glibc_like(scribe: Scribe, rounds: int) -> None:
    """What malloc and threads ask for: arenas and heaps that grow and shrink, large blocks, stacks."""
    threads: list[tuple[int, int, int]] = []
    blocks: list[tuple[int, int]] = []
    top = scribe.script.brk

    def grow_heap(steps: int) -> None:
        at = top
        for _ in range(steps):
            at += 132 << 10
            scribe.call(BRK, at)
        scribe.call(BRK, top)

    def body() -> None:
        random = scribe.random
        while len(scribe.ops) < STEPS:
            kind = random.random()
            if kind < 0.25 or not blocks:
                length = PAGE * random.randint(33, 400)
                blocks.append((scribe.map(length, RW), length))
            elif kind < 0.5:
                scribe.unmap(*blocks.pop(random.randrange(len(blocks))))
            elif kind < 0.56:
                addr, length = blocks.pop()
                larger = length + PAGE * random.randint(1, 200)
                blocks.append((scribe.call(MREMAP, addr, length, larger, MREMAP_MAYMOVE, 0), larger))
            elif kind < 0.59:
                grow_heap(random.randint(1, 4))
            elif kind < 0.61 and len(threads) < 16:
                threads.append(_thread(scribe))
            elif kind < 0.62 and threads:
                stack, arena, _ = threads.pop(random.randrange(len(threads)))
                scribe.unmap(arena, 64 << 20)
                scribe.unmap(stack, (8 << 20) + PAGE)
            elif threads:
                at = random.randrange(len(threads))
                stack, arena, size = threads[at]
                if kind < 0.9 and size < 60 << 20:
                    step = PAGE * random.randint(1, 33)
                    scribe.protect(arena + size, step, RW)
                    threads[at] = (stack, arena, size + step)
                else:
                    scribe.call(MADVISE, arena + (132 << 10), PAGE * random.randint(1, 30), MADV_DONTNEED)

    _rounds(scribe, rounds, body)


def jit_like(scribe: Scribe, rounds: int) -> None:
    """What a JIT asks for: a large reservation, in which code is written and then made executable piece by piece."""
    size = 128 << 20
    code = scribe.map(size, PROT_NONE, PRIVATE | MAP_NORESERVE)
    scribe.call(MADVISE, code, size, MADV_NOHUGEPAGE)
    chunk = 64 << 10

    def body() -> None:
        random = scribe.random
        while len(scribe.ops) < STEPS:
            at = code + chunk * random.randrange(size // chunk)
            kind = random.random()
            if kind < 0.7:
                pages = random.randint(1, chunk // PAGE)
                scribe.protect(at, pages * PAGE, RW)
                scribe.protect(at, pages * PAGE, PROT_READ | PROT_EXEC)
            elif kind < 0.9:
                # What is given back is replaced by a fresh reservation.
                scribe.map(chunk, PROT_NONE, PRIVATE | MAP_NORESERVE | MAP_FIXED, at)
            else:
                scribe.call(MADVISE, at, chunk, MADV_FREE)

    for _ in range(3):
        body()
    _rounds(scribe, rounds, body)


def fork_60k(scribe: Scribe, rounds: int) -> None:
    """fork with 60,000 VMAs; the end of the child is not timed."""
    for at in range(60_000):
        scribe.map(PAGE, RW if at % 2 else PROT_READ)

    def body() -> None:
        scribe.fork()
        scribe.exit()

    _rounds(scribe, rounds, body)
    scribe.script.ops = 1


def faults(scribe: Scribe, rounds: int) -> None:
    """A storm of faults: each page of a fresh mapping is written to."""
    pages = STEPS // 2
    scribe.script.setup = scribe.take()
    scribe.script.vmas = scribe.vmas
    for _ in range(rounds):
        base = scribe.map(pages * PAGE, RW)
        scribe.call(MADVISE, base, pages * PAGE, MADV_NOHUGEPAGE)
        before = scribe.take()
        for at in range(pages):
            scribe.touch(base + at * PAGE, write=True)
        timed = scribe.take()
        scribe.unmap(base, pages * PAGE)
        scribe.script.rounds.append(Round(timed, before, scribe.take()))
    scribe.script.ops = pages


def cows(scribe: Scribe, rounds: int) -> None:
    """A storm of copy-on-write: a process writes to each of its pages while a child that it has forked lives."""
    pages = STEPS // 2
    base = scribe.map(pages * PAGE, RW)
    scribe.call(MADVISE, base, pages * PAGE, MADV_NOHUGEPAGE)
    for at in range(pages):
        scribe.touch(base + at * PAGE, write=True)
    scribe.script.setup = scribe.take()
    scribe.script.vmas = scribe.vmas
    for _ in range(rounds):
        scribe.fork()
        before = scribe.take()
        for at in range(pages):
            scribe.touch(base + at * PAGE, write=True)
        timed = scribe.take()
        scribe.exit()
        scribe.script.rounds.append(Round(timed, before, scribe.take()))
    scribe.script.ops = pages


WORKLOADS: Final[dict[str, Callable[[Scribe, int], None]]] = {
    "pairs": pairs,
    "mix-10": mix(10),
    "mix-1k": mix(1_000),
    "mix-60k": mix(60_000),
    "mix-1m": mix(1_000_000),
    "protect": protect,
    "growth": growth,
    "glibc-like": glibc_like,
    "jit-like": jit_like,
    "fork-60k": fork_60k,
    "faults": faults,
    "cow": cows,
}
"""Each makes the rounds of a script; "replay" is not among them, because it is a program that runs."""

PAGED: Final = frozenset({"faults", "cow"})
"""Those that have pages below the VMAs."""
MANY: Final = {"mix-1m": 2_000_000}
"""Those that need a higher vm.max_map_count, and how high."""
