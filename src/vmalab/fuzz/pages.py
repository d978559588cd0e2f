"""Below the VMAs: what /proc/PID/pagemap shows of each page, against the model's page tables."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import VM_HUGETLB
from vmalab.fuzz.page_views import EVERY, PageViews
from vmalab.fuzz.view import Ranges
from vmalab.live.agent import AgentDied
from vmalab.live.facts import POOLS, THP, chosen, free_huge_pages
from vmalab.live.procfs import PM_EXCLUSIVE, PM_FILE, PM_GUARD, PM_PRESENT, PM_SWAP, PM_UFFD_WP
from vmalab.machine import Process
from vmalab.pages.folio import ANON, ZERO, Folio, MigrationEntry, SwapSlot
from vmalab.pages.memory import ALWAYS, MADVISE, NEVER, SHMEM_MODES, Memory, PageSettings
from vmalab.pages.table import BITS, GUARD, PAGE_AT, PMD_SHIFT, POISON, PRESENT, UFFD_WP, Huge, Leaf, Tables, Target
from vmalab.pages.zap import leaf_range
from vmalab.vma.area import Vma

_FRAME: Final = (1 << 55) - 1
_SHOWN: Final = PM_PRESENT | PM_SWAP | PM_FILE | PM_GUARD | PM_UFFD_WP | PM_EXCLUSIVE
_NAMES: Final = {
    PM_PRESENT: "present",
    PM_SWAP: "in swap",
    PM_FILE: "of a file",
    PM_GUARD: "guard",
    PM_UFFD_WP: "userfaultfd-wp",
    PM_EXCLUSIVE: "mapped once",
}
_SETTINGS: Final = ("thp", "shmem", "shmem_orders", "huge_zero", "swap_pages", "hugetlb")
"""What of the settings somebody may change while a run goes on."""
PLENTY: Final = 1 << 20
"""Pages of a pool of which nobody counts those that others use."""
A_MOMENT: Final = 0.05
"""Seconds."""
MOST_PAGES: Final = 4096
"""A VMA with more pages is not looked at."""

Difference = tuple[str, str, str]
"""Where, what the model has, what the kernel has."""


def page_settings() -> PageSettings:
    """What this machine's settings say of huge pages and swap."""
    settings = PageSettings()
    settings.thp = {}
    settings.shmem = SHMEM_MODES.get(_mode(THP, "shmem_enabled"), NEVER)
    settings.shmem_orders = {}
    # Others use the pools as well: a mapping that the kernel refuses for that is no difference.
    settings.hugetlb = {order: PLENTY if _has_pool(order) else 0 for order in settings.hugetlb}
    top = _mode(THP)
    for order in range(1, 10):
        size = THP / f"hugepages-{(PAGE_SIZE << order) >> 10}kB"
        settings.shmem_orders[order] = SHMEM_MODES.get(_mode(size, "shmem_enabled"), NEVER)
        mode = _mode(size)
        mode = top if mode == "inherit" else mode
        settings.thp[order] = {"always": ALWAYS, "madvise": MADVISE}.get(mode, NEVER)
    swap = [line.split() for line in Path("/proc/swaps").read_text("ascii", "replace").splitlines()[1:]]
    settings.swap_pages = sum([int(words[-3]) for words in swap]) // 4
    zero = THP / "use_zero_page"
    settings.huge_zero = zero.exists() and zero.read_text("ascii").strip() == "1"
    return settings


def _has_pool(order: int) -> bool:
    """Whether this machine has huge pages of an order that nobody has, nor was promised, or makes some on request."""
    size = (PAGE_SIZE << order) >> 10
    overcommit = POOLS / f"hugepages-{size}kB/nr_overcommit_hugepages"
    made = overcommit.exists() and overcommit.read_text("ascii").strip() != "0"
    return made or free_huge_pages().get(str(size), 0) > 0


def _collapsed() -> int:
    """How many huge pages khugepaged has made, of anybody's."""
    path = THP / "khugepaged/pages_collapsed"
    return int(path.read_text("ascii")) if path.exists() else 0


def _mode(folder: Path, name: str = "enabled") -> str:
    path = folder / name
    return chosen(path.read_text("ascii"), "never") if path.exists() else "never"


class PageWatch:
    """Compares the pages of the processes of a run, one process after each of its steps."""

    def __init__(self, memory: Memory, own: Ranges, views: PageViews) -> None:
        self._memory = memory
        self._own = own
        self._views = views
        views.begin(own)
        self._looks = 0
        self._collapsed = _collapsed()
        self._frames: dict[int, dict[int, tuple[int, tuple[int, int]]]] = {}
        """By process and address: the kernel's frame, and the model's (a folio's identity, the page in it)."""

    def is_disturbed(self) -> bool:
        """Whether khugepaged has made huge pages since the run began, or somebody has changed what pages may be had."""
        now, ours = page_settings(), self._memory.settings
        same = all([getattr(now, name) == getattr(ours, name) for name in _SETTINGS])
        return not same or _collapsed() != self._collapsed

    def forget(self, who: int) -> None:
        """A process is gone."""
        self._frames.pop(who, None)

    def forget_all(self) -> None:
        """Nothing is known of any process's frames any more."""
        self._frames.clear()

    def compare(self, who: int, process: Process, pid: int, *, whole: bool = False) -> Difference | None:
        """The first difference between the pages of a process and its model's.

        Now and then, and where it is to be the whole, everything else that the kernel shows of them is looked at too.
        What differs is looked at again a moment later: khugepaged takes pages out of page tables while it works.
        """
        self._looks += 1
        found = self._compare(who, process, pid, whole)
        if found is not None and (THP / "khugepaged").exists():
            time.sleep(A_MOMENT)
            found = self._compare(who, process, pid, whole)
            if found is None:
                self._views.compared["second looks"] += 1
        return found

    def _compare(self, who: int, process: Process, pid: int, whole: bool) -> Difference | None:
        vmas: list[Vma] = []
        frames: dict[int, tuple[int, tuple[int, int]]] = {}
        try:
            file = open(f"/proc/{pid}/pagemap", "rb", buffering=0)  # noqa: SIM115 - closed below
        except OSError as error:
            return "pagemap", "there", str(error.strerror)
        with file:
            for vma in process.mm.vmas():
                if vma.pages() > MOST_PAGES or vma.flags & VM_HUGETLB or self._own.touch(vma.start, vma.end):
                    continue
                file.seek((vma.start >> PAGE_SHIFT) * 8)
                data = file.read(vma.pages() * 8)
                found = self._compare_vma(process, vma, data, frames)
                if found is not None:
                    return found
                self._views.compared["pagemap"] += vma.pages()
                if has_own_pages(vma) and self._memory.tables(process.mm).spans(vma.start, vma.end):
                    vmas.append(vma)
        found = None
        if self._frames.get(who) != frames:
            self._frames[who] = frames
            found = self._sharing()
            if found is not None:
                # A second look is to find it again.
                del self._frames[who]
        if found is not None or not vmas or (not whole and self._looks % EVERY):
            return found
        places = itertools.chain.from_iterable([range(vma.start, vma.end, PAGE_SIZE) for vma in vmas])
        shown = {addr: frames[addr][0] for addr in places if addr in frames}
        try:
            return self._views.compare(who + 1, process, pid, vmas, shown)
        except AgentDied as died:
            return "pages", "the process tells of them", str(died)

    def _compare_vma(
        self, process: Process, vma: Vma, data: bytes, frames: dict[int, tuple[int, tuple[int, int]]]
    ) -> Difference | None:
        start: int = vma.start
        if len(data) != vma.pages() * 8:
            return f"pages of VMA {start:x}", "there", "gone"
        tables = self._memory.tables(process.mm)
        if not data.strip(b"\0") and not tables.spans(start, vma.end):
            return None
        strict = has_own_pages(vma)
        for addr, word, entry, bits in _entries(tables, start, memoryview(data).cast("Q")):
            model = _word(entry, bits & BITS)
            kernel = word & _SHOWN
            if isinstance(entry, Folio) and entry.order and entry.mapped:
                # It is told of each page, and the model counts those of the folio.
                kernel &= ~PM_EXCLUSIVE
                model &= ~PM_EXCLUSIVE
            if not strict and ((kernel | model) & PM_FILE or not (kernel and model)):
                # The page cache has a history of its own: other runs, reading ahead.
                self._views.left_out["pages of files of a disk"] += 1
                continue
            if kernel != model:
                return f"page {addr:x}", _text(model), _text(kernel)
            if isinstance(entry, Folio):
                frames[addr] = (word & _FRAME, (id(entry), bits >> PAGE_AT))
        return None

    def _sharing(self) -> Difference | None:
        """Whether the same addresses share a frame on both sides, over all processes."""
        by_kernel: dict[int, tuple[tuple[int, int], str]] = {}
        by_model: dict[tuple[int, int], tuple[int, str]] = {}
        for who, frames in self._frames.items():
            for addr, (frame, ours) in frames.items():
                name = f"{addr:x} of process {who}"
                first = by_kernel.setdefault(frame, (ours, name))
                if first[0] != ours:
                    return f"page {name}", f"another frame than {first[1]}", f"the frame of {first[1]}"
                other = by_model.setdefault(ours, (frame, name))
                if other[0] != frame:
                    return f"page {name}", f"the frame of {other[1]}", f"another frame than {other[1]}"
        return None


def _entries(tables: Tables, start: int, words: memoryview[int]) -> Iterator[tuple[int, int, Target | None, int]]:
    """Of the pages from start on those where the kernel or the model has anything.

    The address, the kernel's word, what the model's entry refers to, its bits with the page in the folio above them.
    """
    end = start + (len(words) << PAGE_SHIFT)
    for number in range(start >> PMD_SHIFT, (end - 1 >> PMD_SHIFT) + 1):
        low, high = leaf_range(number, start, end)
        base = number << PMD_SHIFT
        first = (base - start >> PAGE_SHIFT) + low
        part = words[first : first + high - low]
        found = tables.pmds.get(number)
        if isinstance(found, Huge):
            for at, word in enumerate(part, low):
                yield base + (at << PAGE_SHIFT), word, found.folio, found.bits | at << PAGE_AT
        elif isinstance(found, Leaf):
            pages, bits = found.pages, found.bits
            for at, word in enumerate(part, low):
                if word or pages[at] is not None or bits[at]:
                    yield base + (at << PAGE_SHIFT), word, pages[at], bits[at]
        elif any(part):
            for at, word in enumerate(part, low):
                if word:
                    yield base + (at << PAGE_SHIFT), word, None, 0


def has_own_pages(vma: Vma) -> bool:
    """Whether nobody but the processes of a run has ever seen its pages: no file of a disk.

    Memfds that all runs map are emptied before each; segments are in a namespace of the run's own.
    """
    return vma.file is None or vma.file.kind in ("memfd", "shm")


def _word(entry: Target | None, bits: int) -> int:
    """What pagemap would show of an entry of the model, without its frame."""
    word = PM_UFFD_WP if bits & UFFD_WP else 0
    if isinstance(entry, SwapSlot):
        return word | PM_SWAP
    if entry is None:
        if bits & GUARD:
            word |= PM_SWAP | PM_GUARD
        elif bits & (UFFD_WP | POISON):
            word |= PM_SWAP
        return word
    if isinstance(entry, MigrationEntry) or not bits & PRESENT:
        moving = entry.folio if isinstance(entry, MigrationEntry) else entry
        return word | PM_SWAP | (0 if moving.flags & ANON else PM_FILE)
    word |= PM_PRESENT
    if entry.flags & ZERO:
        # Of a huge entry pagemap looks at the page itself, which is not anonymous.
        return word | PM_FILE if entry.order else word
    if not entry.flags & ANON:
        word |= PM_FILE
    return word | PM_EXCLUSIVE if entry.mapcount() == 1 else word


def _text(word: int) -> str:
    return ", ".join([name for bit, name in _NAMES.items() if word & bit]) or "nothing there"
