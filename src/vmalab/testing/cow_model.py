"""The copy-on-write suite's ground in the model."""

from __future__ import annotations

from vmalab.addr import PAGE_SHIFT, PMD_SIZE
from vmalab.flags import (
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_READ,
    PROT_WRITE,
)
from vmalab.machine import KernelError, Machine, Process
from vmalab.pages.folio import PMD_ORDER, PUD_ORDER
from vmalab.pages.holders import FixedBuffer, MemoryRegion, Pipe
from vmalab.pages.memory import MADVISE, Memory, PageSettings
from vmalab.semantics import Semantics
from vmalab.testing.cow import UNIT, Actor, Held, Range
from vmalab.testing.cow_families import Case, Ground, Result, run_case
from vmalab.vma.area import HUGETLB_1G_OPS, HUGETLB_OPS, SHMEM_OPS, File

_SWAP_PAGES = 1 << 16
_POOL = 8


class ModelHeld(Held):
    """Pages that something of the model holds."""

    def __init__(self, holder: Pipe | MemoryRegion, where: Range) -> None:
        self._holder = holder
        self._where = where

    def read(self) -> bytes:
        holder = self._holder
        found: list[bytes] = []
        for number in self._where.samples():
            at = number << PAGE_SHIFT
            if isinstance(holder, MemoryRegion):
                found.append(holder.held.read(at, UNIT))
            else:
                found.append(holder.held_first().read(at, UNIT))
        return b"".join(found)

    def close(self) -> None:
        self._holder.close()


class ModelActor(Actor):
    """A process of a model."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def mmap(self, length: int, hugetlb: int = 0) -> int:
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        if hugetlb:
            flags |= MAP_HUGETLB | (hugetlb.bit_length() - 1) << 26
        return self.process.mmap(0, length, PROT_READ | PROT_WRITE, flags)

    def mmap_file(self, kind: str, length: int, hugetlb: int = 0) -> tuple[int, int]:
        if hugetlb:
            ops = HUGETLB_OPS if hugetlb == PMD_SIZE else HUGETLB_1G_OPS
            file = File("/memfd:cow (deleted)", kind="hugetlb", ops=ops, private_ops=ops, huge_size=hugetlb)
        elif kind == "memfd":
            file = File("/memfd:cow (deleted)", kind="memfd", ops=SHMEM_OPS, private_ops=SHMEM_OPS)
        else:
            file = File("/tmp/cow (deleted)")
        file.size = length
        both = PROT_READ | PROT_WRITE
        private = self.process.mmap(0, length, both, MAP_PRIVATE, file)
        return private, self.process.mmap(0, length, both, MAP_SHARED, file)

    def munmap(self, addr: int, length: int) -> None:
        self.process.munmap(addr, length)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        self.process.mprotect(addr, length, prot)

    def madvise(self, addr: int, length: int, advice: int) -> bool:
        try:
            self.process.madvise(addr, length, advice)
        except KernelError:
            return False
        return True

    def move(self, addr: int, length: int) -> None:
        target = self.process.mmap(0, length, 0)
        self.process.mremap(addr, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target)

    def write(self, addr: int, data: bytes) -> None:
        self.process.write(addr, data)

    def read(self, addr: int, length: int) -> bytes:
        return self.process.read(addr, length)

    def fork(self) -> Actor:
        return ModelActor(self.process.fork())

    def exit(self) -> None:
        self.process.exit()

    def resident(self, addr: int, length: int) -> int:
        return sum([self.process.page(at).present for at in range(addr, addr + length, 1 << PAGE_SHIFT)])

    def swapped(self, addr: int, length: int) -> int:
        return sum([self.process.page(at).slot is not None for at in range(addr, addr + length, 1 << PAGE_SHIFT)])

    def vmsplice(self, addr: int, length: int) -> Held:
        pipe = Pipe()
        pipe.vmsplice(self.process.mm, addr, length)
        return ModelHeld(pipe, Range(addr, length))

    def fixed_buffer(self, addr: int, length: int) -> Held:
        return ModelHeld(FixedBuffer(self.process.mm, addr, length), Range(addr, length))

    def pin(self, addr: int, length: int, fast: bool) -> Held:
        return ModelHeld(MemoryRegion(self.process.mm, addr, length, fast=fast), Range(addr, length))


class ModelGround(Ground):
    """A machine with everything: huge pages of all sizes, pools, swap."""

    def __init__(self, semantics: Semantics | None = None) -> None:
        settings = PageSettings()
        settings.thp = dict.fromkeys(range(2, PMD_ORDER + 1), MADVISE)
        settings.swap_pages = _SWAP_PAGES
        settings.hugetlb = {PMD_ORDER: _POOL, PUD_ORDER: _POOL}
        self.machine = Machine(semantics, ram_pages=1 << 24, swap_pages=_SWAP_PAGES, memory=Memory(settings))
        self.machine.settings.hugepages = _POOL

    def process(self) -> Actor:
        return ModelActor(self.machine.process())

    def missing(self, case: Case) -> str:
        return ""

    def problems(self) -> list[str]:
        """What is wrong with the machine when all processes are gone: what is left, and what is counted wrong."""
        memory = self.machine.memory
        assert memory is not None
        found: list[str] = []
        try:
            self.machine.validate()
        except AssertionError as error:
            found.append(str(error))
        for cache in memory.caches():
            memory.drop_cache(cache)
        if memory.live or memory.swapped:
            found.append(f"{memory.live} folios and {memory.swapped} swap slots are left")
        return found


def run_in_model(case: Case, semantics: Semantics | None = None) -> Result:
    """Run a case on a machine of its own; what is left or counted wrong afterwards is a failure as well."""
    ground = ModelGround(semantics)
    result = run_case(case, ground)
    problems = ground.problems()
    if problems:
        result.wrong = "; ".join([*filter(None, [result.wrong]), *problems])
    return result
