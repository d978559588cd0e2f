"""What else a kernel shows of pages than pagemap: mincore, map counts, PAGEMAP_SCAN, and what the pages hold.

It takes time, so it is looked at after some of the steps only; which ones, the sequence alone decides.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from vmalab.flags import VM_PKEY_MASK, VM_READ
from vmalab.fuzz.view import Ranges
from vmalab.live.agent import Agent, Step
from vmalab.live.facts import machine_facts
from vmalab.machine import Process
from vmalab.pages.folio import DIRTY, ZERO, Folio, SwapSlot
from vmalab.pages.memory import Memory
from vmalab.pages.residency import (
    PAGE_IS_FILE,
    PAGE_IS_GUARD,
    PAGE_IS_HUGE,
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    PAGE_IS_WPALLOWED,
    PAGE_IS_WRITTEN,
    mincore_pages,
    page_categories,
    page_mapcount,
)
from vmalab.pages.table import Tables
from vmalab.vma.area import Vma

KPAGECOUNT: Final = Path("/proc/kpagecount")
EVERY: Final = 16
"""After so many looks at pagemap one at all of this."""
MOST_READ: Final = 64
"""Pages of a VMA that are read; the first of those that are there."""
_SCAN: Final = 3 << 30 | 96 << 16 | ord("f") << 8 | 16
"""The request PAGEMAP_SCAN."""
_SHOWN: Final = {
    PAGE_IS_WPALLOWED: "wp-allowed",
    PAGE_IS_WRITTEN: "written",
    PAGE_IS_FILE: "of a file",
    PAGE_IS_PRESENT: "present",
    PAGE_IS_SWAPPED: "swapped",
    PAGE_IS_PFNZERO: "zeros",
    PAGE_IS_HUGE: "huge",
    PAGE_IS_GUARD: "guard",
}
_ALL: Final = sum(_SHOWN)
_REGIONS: Final = 512
_OPEN, _PWRITE, _MINCORE = 2, 18, 27
"""Numbers of system calls."""

Difference = tuple[str, str, str]
"""Where, what the model has, what the kernel has."""


class PageViews:
    """Compares them, by way of an agent and of a file that it shares with this process."""

    def __init__(self, memory: Memory, agent: Agent) -> None:
        """Find out what can be had; `missing` says what cannot, and why."""
        self._memory = memory
        self._own = Ranges()
        self._agent = agent
        self.compared: Counter[str] = Counter()
        """How many pages, by what was compared of them."""
        self.left_out: Counter[str] = Counter()
        """Of how many pages a difference says nothing, by what they are."""
        self.missing: dict[str, str] = {}
        self._file = os.memfd_create("pages")
        path = f"/proc/{os.getpid()}/fd/{self._file}".encode() + b"\0"
        reply = agent.run([Step(_OPEN, (agent.scratch, os.O_RDWR), path)], report=0)[0]
        if reply.result < 0:
            raise OSError(-reply.result, os.strerror(-reply.result), path.decode())
        self._theirs = reply.result
        self._counts = -1
        try:
            self._counts = os.open(KPAGECOUNT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.missing["kpagecount"] = f"{KPAGECOUNT}: {error.strerror}"
        self.missing["soft-dirty"] = (
            "no call of a run clears it, so that it says nothing of most pages"
            if machine_facts().soft_dirty
            else "the kernel is not configured with it (CONFIG_MEM_SOFT_DIRTY)"
        )

    def close(self) -> None:
        """Close the files."""
        os.close(self._file)
        if self._counts >= 0:
            os.close(self._counts)

    def begin(self, own: Ranges) -> None:
        """A run begins, in which these are the ranges of the agent's own memory."""
        self._own = own

    def compare(
        self, who: int, process: Process, pid: int, vmas: list[Vma], frames: dict[int, int]
    ) -> Difference | None:
        """The first difference in VMAs whose pages nobody else has seen.  frames: the kernel's, by address."""
        found = self._compare_scan(process, pid, vmas) or self._compare_counts(process, frames)
        return found or self._compare_asked(who, process, vmas)

    def learn_tables(self, process: Process, pid: int) -> None:
        """Take over which page tables the agent's own memory has: what moves from beside it needs one where it goes."""
        if "PAGEMAP_SCAN" in self.missing:
            return
        tables = self._memory.tables(process.mm)
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
            for vma in process.vmas():
                if not self._own.hold(vma.start, vma.end):
                    continue
                for base in range(vma.start & -PMD_SIZE, vma.end, PMD_SIZE):
                    part = max(vma.start, base), min(vma.end, base + PMD_SIZE)
                    found = scan(file.fileno(), *part).values()
                    if tables.leaf(base) is None and any(each & PAGE_IS_WRITTEN for each in found):
                        self._memory.leaf_for(tables, base)

    # -- from outside -------------------------------------------------------------------------------------

    def _compare_scan(self, process: Process, pid: int, vmas: list[Vma]) -> Difference | None:
        if "PAGEMAP_SCAN" in self.missing:
            return None
        tables = self._memory.tables(process.mm)
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
            for vma in vmas:
                try:
                    shown = scan(file.fileno(), vma.start, vma.end)
                except OSError as error:
                    if error.errno not in (errno.ENOTTY, errno.EINVAL):
                        raise
                    self.missing["PAGEMAP_SCAN"] = f"the kernel does not have it: {error.strerror}"
                    return None
                tells = 0
                for addr in range(vma.start, vma.end, PAGE_SIZE):
                    if addr == vma.start or not addr & PMD_SIZE - 1:
                        base = addr & -PMD_SIZE
                        # Of a page that is not there it tells whether there is a page table, which may be the agent's.
                        tells = _ALL & ~PAGE_IS_WRITTEN if self._own.touch(base, base + PMD_SIZE) else _ALL
                    model, kernel = page_categories(tables, vma, addr), shown.get(addr, 0)
                    if model != kernel and model & tells != kernel & tells:
                        return f"PAGEMAP_SCAN of page {addr:x}", _text(model), _text(kernel)
                self.compared["PAGEMAP_SCAN"] += vma.pages()
        return None

    def _compare_counts(self, process: Process, frames: dict[int, int]) -> Difference | None:
        if self._counts < 0:
            return None
        tables = self._memory.tables(process.mm)
        for addr, frame in frames.items():
            entry, _, page = tables.entry(addr)
            if not frame or not isinstance(entry, Folio) or entry.flags & ZERO:
                continue
            model = page_mapcount(self._memory, entry, page)
            (kernel,) = struct.unpack("<Q", os.pread(self._counts, 8, frame * 8))
            if model != kernel:
                return f"map count of page {addr:x}", str(model), str(kernel)
            self.compared["kpagecount"] += 1
        return None

    # -- by the process itself ----------------------------------------------------------------------------

    def _compare_asked(self, who: int, process: Process, vmas: list[Vma]) -> Difference | None:
        """mincore, and the contents of pages that are there: the process writes them to the file."""
        steps: list[Step] = []
        expected: list[tuple[str, int, bytes]] = []
        offset = 0
        for vma in vmas:
            pages: int = vma.pages()
            model = mincore_pages(self._memory, vma, vma.start, vma.end)
            steps.append(Step(_MINCORE, (vma.start, pages << PAGE_SHIFT, self._agent.scratch)))
            steps.append(Step(_PWRITE, (self._theirs, self._agent.scratch, pages, offset)))
            expected.append(("mincore", vma.start, model))
            offset += pages
            if vma.flags & VM_PKEY_MASK or not vma.flags & VM_READ:
                continue
            for addr, content in self._contents(process, vma):
                steps.append(Step(_PWRITE, (self._theirs, addr, len(content), offset)))
                expected.append(("contents", addr, content))
                offset += len(content)
        replies = self._agent.run(steps, who, report=0)
        failed = next((each for each in replies if each.result < 0), None)
        if failed is not None:
            return "what the process reads of its pages", "it can", os.strerror(-failed.result)
        shown = os.pread(self._file, offset, 0)
        at = 0
        tables = self._memory.tables(process.mm)
        for what, addr, model in expected:
            kernel = shown[at : at + len(model)]
            at += len(model)
            if what == "mincore" and kernel != model:
                # What is being written to swap counts as there until that is done.
                kernel = bytes(
                    [
                        ours
                        if ours != theirs and self._is_under_way(process, tables, addr + (n << PAGE_SHIFT))
                        else theirs
                        for n, (ours, theirs) in enumerate(zip(model, kernel, strict=True))
                    ]
                )
            if kernel == model:
                self.compared[what] += len(model) if what == "mincore" else len(model) >> PAGE_SHIFT
                continue
            place = next(n for n, (ours, theirs) in enumerate(zip(model, kernel, strict=True)) if ours != theirs)
            page = addr + (place << PAGE_SHIFT) if what == "mincore" else addr + place
            return f"{what} at {page:x}", hex(model[place]), hex(kernel[place])
        return None

    def _is_under_way(self, process: Process, tables: Tables, addr: int) -> bool:
        """Whether a kernel may or may not have a page in memory: on its way to swap, or of zeros that nobody maps.

        Such a page of shared memory, which nobody has written to, is taken back when memory is short, or by DAMON.
        The model follows: what it holds is let go.
        """
        entry = tables.entry(addr)[0]
        vma = process.mm.vma_lookup(addr)
        if isinstance(entry, SwapSlot) or entry is not None or vma is None or vma.file is None:
            return isinstance(entry, SwapSlot)
        folio = self._memory.cache_of(vma.file).find(vma.pgoff_at(addr))
        if folio is None or folio.flags & DIRTY or folio.mapcount() or not folio.has_no_other_references():
            return False
        self._memory.evict(folio)
        self.left_out["clean pages of shared memory that the kernel took back"] += 1
        return True

    def _contents(self, process: Process, vma: Vma) -> list[tuple[int, bytes]]:
        """Runs of pages of a VMA that are there: where each begins, and what it holds."""
        tables = self._memory.tables(process.mm)
        found: list[tuple[int, bytes]] = []
        pages = 0
        for addr in range(vma.start, vma.end, PAGE_SIZE):
            entry, _, page = tables.entry(addr)
            if not isinstance(entry, Folio):
                continue
            content = entry.read(page, 0, PAGE_SIZE)
            if found and found[-1][0] + len(found[-1][1]) == addr:
                found[-1] = (found[-1][0], found[-1][1] + content)
            else:
                found.append((addr, content))
            pages += 1
            if pages == MOST_READ:
                break
        return found


def scan(pagemap: int, start: int, end: int) -> dict[int, int]:
    """What PAGEMAP_SCAN says of each page of [start, end), in bytes, where it says anything.  Raises OSError."""
    found: dict[int, int] = {}
    regions = (ctypes.c_uint64 * (3 * _REGIONS))()
    at = start
    while at < end:
        request = bytearray(
            struct.pack("<12Q", 96, 0, at, end, 0, ctypes.addressof(regions), _REGIONS, 0, 0, 0, 0, _ALL)
        )
        count = fcntl.ioctl(pagemap, _SCAN, request)
        for first, last, categories in zip(*[iter(regions[: 3 * count])] * 3, strict=True):
            for addr in range(first, last, PAGE_SIZE):
                found[addr] = categories
        (end_of_walk,) = struct.unpack_from("<Q", request, 32)
        assert end_of_walk > at, "the scan does not go on"
        at = end_of_walk
    return found


def _text(categories: int) -> str:
    return ", ".join([name for bit, name in _SHOWN.items() if categories & bit]) or "nothing"
