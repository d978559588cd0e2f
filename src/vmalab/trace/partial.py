"""Replaying a process of which nobody knows what all was mapped, as in a trace that was made of another tool's log.

What the log maps is known; of the rest nothing is, nor of the limits.  A result that depends on the rest is *unknown*:
it is taken over from the record as far as it says what happened, and is neither right nor wrong.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from typing import Final, final

from vmalab.addr import PAGE_MASK, PAGE_SHIFT, page_down, page_up
from vmalab.calls import Call, Outcome
from vmalab.dispatch import perform
from vmalab.flags import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_HUGETLB,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_MAYSHARE,
)
from vmalab.reason import YES
from vmalab.vma.place import get_unmapped_area, round_hint_to_min
from vmalab.vma.space import Mm
from vmalab.world import ProcessState

RANGES: Final = frozenset(
    [
        "mprotect",
        "pkey_mprotect",
        "madvise",
        "mlock",
        "mlock2",
        "munlock",
        "mbind",
        "msync",
        "mseal",
        "set_mempolicy_home_node",
        "mincore",
    ]
)
"""Calls on the range that their first two arguments give."""
_LIMITED: Final = frozenset({-errno.ENOMEM, -errno.EAGAIN, -errno.EPERM})
"""What a limit that nobody knows may answer."""
_DEPENDS: Final = frozenset(
    {"mlockall", "process_madvise", "ioctl", "pkey_alloc", "prctl", "shmdt", "shmctl", "get_mempolicy"}
)
"""Other calls whose results depend on all that is mapped, on limits, or on the machine."""


@final
class Territory:
    """The addresses of which it is known what is mapped there, or that nothing is."""

    def __init__(self, ranges: list[tuple[int, int]] | None = None) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges or []:
            self.add(start, end)

    def copy(self) -> Territory:
        """The same, for a child."""
        made = Territory()
        made._starts, made._ends = self._starts[:], self._ends[:]
        return made

    def add(self, start: int, end: int) -> None:
        """What is mapped in [start, end) is now known."""
        if start >= end:
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def remove(self, start: int, end: int) -> None:
        """What is mapped in [start, end) is no longer known."""
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end)
        if low >= high:
            return
        pieces = [(self._starts[low], start), (end, self._ends[high - 1])]
        left = [(first, last) for first, last in pieces if first < last]
        self._starts[low:high] = [first for first, _ in left]
        self._ends[low:high] = [last for _, last in left]

    def covers(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is known."""
        place = bisect_right(self._starts, start) - 1
        return place >= 0 and end <= self._ends[place]


@final
class PartialCalls:
    """Performs the calls of a process on the model, as far as it is known what they do."""

    def __init__(self, process: ProcessState, known: Territory) -> None:
        self._process = process
        self._mm: Mm = process.mm
        self._known = known
        self.certain = True
        """Whether the outcome of the last call depends on nothing that is unknown."""

    def perform(self, call: Call, ret: int) -> Outcome:
        """Perform a call that the record says gave ret.  A result that differs counts only where `certain`."""
        self.certain = True
        name = call.name
        if name == "mmap":
            return self._mmap(call, ret)
        if name == "munmap":
            return self._munmap(call, ret)
        if name in RANGES:
            return self._range(call, ret)
        if name == "mremap":
            return self._mremap(call, ret)
        if name == "brk":
            return self._brk(call, ret)
        if name == "shmat":
            return self._shmat(call, ret)
        outcome = perform(self._process, call)
        self.certain = outcome.result == ret or name not in _DEPENDS
        return outcome

    def _unknown(self, ret: int) -> Outcome:
        """What was recorded, because nothing else can be said."""
        self.certain = False
        return Outcome(ret)

    def _place(self, call: Call, length: int, flags: int, pgoff: int) -> int:
        """Where the model would map, changing nothing."""
        addr = round_hint_to_min(self._mm, call.args[0]) if call.name == "mmap" else 0
        self._mm.mmap_write_lock()
        place = get_unmapped_area(self._mm, call.file, addr, length, pgoff, flags)
        self._mm.mmap_write_unlock()
        return place

    def _mmap(self, call: Call, ret: int) -> Outcome:
        _, length, prot, flags, fd, offset = call.args
        fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
        if length == 0 or offset & PAGE_MASK:
            return perform(self._process, call)
        if ret < 0:
            if fixed and ret != -errno.EINVAL:
                return self._unknown(ret)
            outcome = perform(self._process, call)
            if outcome.result >= 0:
                # It was refused for something that is not in the trace: a limit, a size, other memory.
                perform(self._process, Call("munmap", (outcome.result, length)))
                return self._unknown(ret)
            self.certain = outcome.result == ret
            return outcome
        huge = bool(flags & MAP_ANONYMOUS and flags & MAP_HUGETLB)
        if not fixed and (huge or self._place(call, page_up(length), flags, offset >> PAGE_SHIFT) != ret):
            call = Call("mmap", (ret, length, prot, flags | MAP_FIXED, fd, offset), call.file, call.data)
            self.certain = False
        outcome = perform(self._process, call)
        if outcome.result < 0 and outcome.result != ret:
            self.certain = False
        self._known.add(ret, ret + page_up(length))
        return outcome

    def _munmap(self, call: Call, ret: int) -> Outcome:
        start, length = call.args
        end = start + page_up(length)
        if ret < 0 and ret != -errno.EINVAL:
            return self._unknown(ret)
        outcome = perform(self._process, call)
        self.certain = outcome.result == ret or self._known.covers(start, end)
        if ret == 0:
            self._known.add(start, end)
        return outcome

    def _range(self, call: Call, ret: int) -> Outcome:
        start = page_down(call.args[0])
        end = page_up(min(call.args[0] + call.args[1], self._mm.task_size))
        runs = self._runs(start, end)
        if ret == -errno.EINVAL or start >= end:
            outcome = perform(self._process, call)
            self.certain = outcome.result == ret or self._known.covers(start, end)
            return outcome
        if not self._known.covers(start, end):
            if ret >= 0:
                for first, last in runs:
                    perform(self._process, Call(call.name, (first, last - first, *call.args[2:]), call.file, call.data))
            return self._unknown(ret)
        if ret in _LIMITED and runs == [(start, end)]:
            # All is mapped: it was refused for a limit, or for a file.
            return self._unknown(ret)
        return perform(self._process, call)

    def _runs(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range that the model knows something mapped in, without gaps."""
        found: list[tuple[int, int]] = []
        if start < end:
            for vma in self._mm.tree.walk(start, end):
                first, last = max(vma.start, start), min(vma.end, end)
                if found and found[-1][1] == first:
                    found[-1] = (found[-1][0], last)
                else:
                    found.append((first, last))
        return found

    def _mremap(self, call: Call, ret: int) -> Outcome:
        old, old_length, new_length, flags, _ = call.args
        old_length, new_length = page_up(old_length), page_up(new_length)
        if not self._known.covers(old, old + max(old_length, 1)) or (ret < 0 and ret != -errno.EINVAL):
            if ret >= 0:
                if ret != old and not flags & MREMAP_DONTUNMAP:
                    perform(self._process, Call("munmap", (old, old_length)))
                    self._known.add(old, old + old_length)
                perform(self._process, Call("munmap", (ret, new_length)))
                self._known.remove(ret, ret + new_length)
            return self._unknown(ret)
        if ret >= 0 and ret != old and not flags & MREMAP_FIXED:
            vma = self._mm.vma_lookup(old)
            place = -1
            if vma is not None:
                shown = Call(call.name, call.args, vma.file)
                shared = MAP_SHARED if vma.flags & VM_MAYSHARE else 0
                place = self._place(shown, new_length, shared, vma.pgoff)
            self.certain = place == ret
            call = Call("mremap", (old, call.args[1], call.args[2], flags | MREMAP_MAYMOVE | MREMAP_FIXED, ret))
        outcome = perform(self._process, call)
        if ret >= 0:
            if ret != old:
                self._known.add(old, old + old_length)
            self._known.add(ret, ret + new_length)
        return outcome

    def _brk(self, call: Call, ret: int) -> Outcome:
        mm = self._mm
        if not mm.start_brk:
            mm.start_brk = mm.brk = ret
            return self._unknown(ret)
        old = mm.brk
        outcome = perform(self._process, call)
        if outcome.result != ret:
            # Something that is not known stood in the way, or did not.
            outcome = perform(self._process, Call("brk", (ret,)))
            self.certain = False
        self._known.add(page_up(min(old, ret)), page_up(max(old, ret)))
        return outcome if self.certain else Outcome(ret)

    def _shmat(self, call: Call, ret: int) -> Outcome:
        size = call.data.get("size")
        if ret < 0 or call.file is None or not isinstance(size, int):
            if ret >= 0:
                self._known.remove(ret, ret + 1)
            return self._unknown(ret)
        if call.args[1] == 0:
            place = self._place(call, page_up(size), MAP_SHARED, 0)
            self.certain = place == ret
            call = Call("shmat", (call.args[0], ret, call.args[2]), call.file, call.data)
        outcome = perform(self._process, call)
        self._known.add(ret, ret + page_up(size))
        self.certain = self.certain and outcome.reason == YES
        return outcome
