"""Random sequences of all operations, against the naive model: the same attributes at every page, the same runs.

Every step is a system call on the model and its plain meaning on the naive one.  After each, everything is compared.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from vmalab import flags as f
from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.calls import Call
from vmalab.explain.obstacles import merge_refusal
from vmalab.machine import KernelError, Machine, Process
from vmalab.reason import YES, explain
from vmalab.syscalls import uffd as uffd_calls
from vmalab.syscalls.policy import mbind
from vmalab.testing.naive import Page, Space, World, difference
from vmalab.vma.account import DATA_VM, EXEC_VM, STACK_VM, counter_of
from vmalab.vma.area import FILE_OPS, File, Userfaultfd, Vma, VmaOps
from vmalab.vma.merge import plan_existing_range, plan_new_range, request_for_modify, request_for_vma

PAGES: Final = 12
BASE: Final = 0x10000000
BASE_PAGE: Final = BASE >> PAGE_SHIFT
CLOSE_OPS: Final = VmaOps("close", has_close=True)
ACCESS: Final = (0, f.PROT_READ, f.PROT_READ | f.PROT_WRITE, f.PROT_READ | f.PROT_EXEC, 7)
ADVICE: Final[dict[int, tuple[int, int]]] = {
    f.MADV_DONTFORK: (f.VM_DONTCOPY, 0),
    f.MADV_DOFORK: (0, f.VM_DONTCOPY),
    f.MADV_HUGEPAGE: (f.VM_HUGEPAGE, f.VM_NOHUGEPAGE),
    f.MADV_NOHUGEPAGE: (f.VM_NOHUGEPAGE, f.VM_HUGEPAGE),
    f.MADV_RANDOM: (f.VM_RAND_READ, f.VM_SEQ_READ),
    f.MADV_NORMAL: (0, f.VM_RAND_READ | f.VM_SEQ_READ),
}
"""The flags that an advice sets, and those that it clears."""
ACCOUNTABLE: Final = f.VM_ACCOUNT | f.VM_WRITE | f.VM_HUGETLB | f.VM_SHARED | f.VM_NORESERVE


@dataclass
class Step:
    """One operation on some pages, with a number that chooses among its variants."""

    name: str
    first: int
    length: int
    choice: int
    who: int


class Twins:
    """The model and the naive model, side by side."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.machine.settings.anon_names = True
        self.machine.settings.numa_nodes = 3
        self.processes: list[Process] = [self.machine.process()]
        self.world = World(PAGES, BASE_PAGE)
        self.spaces: list[Space] = [self.world.space()]
        # Without descriptors' sizes nothing is known of what lies beyond a file's end: these are large enough.
        self.files = {name: self._file(name) for name in ("f", "g", "c")}
        self.uffds = [Userfaultfd("u"), Userfaultfd("v")]
        map_memory(self, self.processes[0], self.spaces[0], 0, PAGES - 2, 2)

    def _file(self, name: str) -> File:
        ops = CLOSE_OPS if name == "c" else FILE_OPS
        return File(name, ops=ops, private_ops=ops)

    def step(self, step: Step) -> None:
        """Perform a step on both, and compare."""
        who = step.who % len(self.processes)
        process, space = self.processes[who], self.spaces[who]
        first = step.first % PAGES
        end = min(first + 1 + step.length, PAGES)
        space.changed = []
        OPERATIONS[step.name](self, process, space, first, end, step.choice)
        self.compare()
        for place in space.changed:
            left, right = space.at(place - 1), space.at(place)
            merged = not space.is_edge(place)
            if left is not None and right is not None and not merged and not (left.close or right.close):
                assert difference(left, right), f"nothing keeps the runs apart at page {place}"

    # -- comparing ------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Everything that both know."""
        self.machine.validate()
        anons: dict[int, int] = {}
        for process, space in zip(self.processes, self.spaces, strict=True):
            vmas = process.vmas()
            bounds = [((vma.start - BASE) // PAGE_SIZE, (vma.end - BASE) // PAGE_SIZE) for vma in vmas]
            assert bounds == space.runs()
            for vma, (start, end) in zip(vmas, bounds, strict=True):
                for place in range(start, end):
                    page = space.at(place)
                    assert page is not None
                    self._compare_page(vma, page, place, anons)
            self._compare_counters(process, space)
        assert len(set(anons.values())) == len(anons), "two anon_vmas are one in the naive model"
        assert self.machine.commit.committed - self.machine.commit.lost == self.world.committed()

    def _compare_page(self, vma: Vma, page: Page, place: int, anons: dict[int, int]) -> None:
        addr = BASE + place * PAGE_SIZE
        where = f"page {place}"
        assert vma.flags == page.flags, f"{where}: {f.vm_flags_text(vma.flags)}, not {f.vm_flags_text(page.flags)}"
        assert vma.pgoff_at(addr) == page.offset, where
        assert (vma.file.path if vma.file is not None else "") == page.file, where
        assert (vma.uffd.name if vma.uffd is not None else "") == page.uffd, where
        assert (vma.name or "") == page.name, where
        assert (str(vma.policy.nodes[0]) if vma.policy is not None else "") == page.policy, where
        chain = [id(anon_vma) for anon_vma in vma.chain]
        assert len(chain) == len(page.chain), where
        for anon_vma, number in zip(chain, page.chain, strict=True):
            assert anons.setdefault(anon_vma, number) == number, where
        assert (anons[id(vma.anon_vma)] if vma.anon_vma is not None else 0) == page.anon, where

    def _compare_counters(self, process: Process, space: Space) -> None:
        mm = process.mm
        assert mm.map_count == len(space.runs())
        assert mm.total_vm == space.count(lambda page: True)
        assert mm.exec_vm == space.count(lambda page: counter_of(page.flags) == EXEC_VM)
        assert mm.stack_vm == space.count(lambda page: counter_of(page.flags) == STACK_VM)
        assert mm.data_vm == space.count(lambda page: counter_of(page.flags) == DATA_VM)
        assert mm.locked_vm - mm.lost_locked == space.count(lambda page: page.flags & f.VM_LOCKED != 0)


def addr_of(place: int) -> int:
    """The address of a page."""
    return BASE + place * PAGE_SIZE


def must_be(process: Process, call: Call, works: bool) -> None:
    """Perform a call that the naive model expects to work, or not."""
    outcome = process.do(call)
    assert (outcome.result >= 0) == works, f"{call.name}: {explain(outcome.reason).name}"


def has_hole(space: Space, first: int, end: int) -> bool:
    """Whether a page of a range is not mapped."""
    return any(space.at(place) is None for place in range(first, end))


# -- the operations ---------------------------------------------------------------------------------------------


def map_memory(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """mmap, fixed: anonymous, or a file, private or shared."""
    prot = ACCESS[choice % 5]
    kind = choice // 5 % 6
    flags = f.MAP_FIXED | (f.MAP_SHARED if kind in (3, 5) else f.MAP_PRIVATE)
    file = None if kind in (0, 1) else twins.files["fgfc"[kind - 2]]
    offset = first + choice // 30 % 2
    if kind == 1:
        flags |= f.MAP_NORESERVE
    if file is None:
        flags |= f.MAP_ANONYMOUS
    process.mmap(addr_of(first), (end - first) * PAGE_SIZE, prot, flags, file, offset * PAGE_SIZE)
    page = Page(
        0, f.VM_MAYACCESS | prot, BASE_PAGE + first if file is None else offset, "" if file is None else file.path
    )
    page.close = page.file == "c"
    if flags & f.MAP_SHARED:
        page.flags |= f.VM_SHARED | f.VM_MAYSHARE
    if kind == 1:
        page.flags |= f.VM_NORESERVE
    elif page.private_data():
        page.flags |= f.VM_ACCOUNT
    space.unmap(first, end)
    space.map(first, end, page)


def unmap_memory(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """munmap."""
    process.munmap(addr_of(first), (end - first) * PAGE_SIZE)
    space.unmap(first, end)


def protect(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """mprotect: ends at the first hole."""
    prot = ACCESS[choice % 5]
    must_be(
        process, Call("mprotect", (addr_of(first), (end - first) * PAGE_SIZE, prot)), not has_hole(space, first, end)
    )
    for start, stop in space.pieces(first, end):
        if start > first:
            break
        first = stop
        page = space.at(start)
        assert page is not None
        old = page.flags
        flags = old & ~f.VM_ACCESS | prot
        if flags == old:
            continue
        if prot & f.PROT_WRITE:
            flags |= 0 if old & ACCOUNTABLE else f.VM_ACCOUNT
        elif old & f.VM_ACCOUNT and not page.file and not page.anon:
            flags &= ~f.VM_ACCOUNT
        space.modify(start, stop, setter(flags))
        if old & (f.VM_WRITE | f.VM_SHARED | f.VM_LOCKED) == f.VM_LOCKED and prot & f.PROT_WRITE:
            space.write(start)


def setter(flags: int) -> Callable[[Page], None]:
    """Sets flags; a mark that is sticky stays."""

    def change(page: Page) -> None:
        page.flags = flags | page.flags & f.VM_MAYBE_GUARD

    return change


def advise(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """madvise: passes over holes."""
    advice = list(ADVICE)[choice % len(ADVICE)]
    sets, clears = ADVICE[advice]
    call = Call("madvise", (addr_of(first), (end - first) * PAGE_SIZE, advice))
    must_be(process, call, not has_hole(space, first, end))
    for start, stop in space.pieces(first, end):
        page = space.at(start)
        assert page is not None
        flags = page.flags & ~clears | sets
        if flags != page.flags:
            space.modify(start, stop, setter(flags))


def guard(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """MADV_GUARD_INSTALL marks whole runs and gives anonymous ones an anon_vma."""
    pieces = space.pieces(first, end)
    locked = next((piece for piece in pieces if (space.pages[piece[0]] or Page(0, 0, 0)).flags & f.VM_LOCKED), None)
    call = Call("madvise", (addr_of(first), (end - first) * PAGE_SIZE, f.MADV_GUARD_INSTALL))
    must_be(process, call, locked is None and not has_hole(space, first, end))
    for piece in pieces:
        if piece == locked:
            break
        page = space.at(piece[0])
        assert page is not None
        if not page.file:
            space.write(piece[0])
        for each in space.pages:
            if each is not None and each.run == page.run:
                each.flags |= f.VM_MAYBE_GUARD


def write(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """A write to one page."""
    page = space.at(first)
    if page is None or not page.flags & f.VM_WRITE:
        try:
            process.touch(addr_of(first))
        except KernelError:
            return
        raise AssertionError("the write went through")
    process.touch(addr_of(first))
    if page.private_data():
        space.write(first)


def lock(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """mlock and munlock: end at the first hole; locking writes to what is private and can be written to."""
    locking = choice % 2 == 0
    call = Call("mlock" if locking else "munlock", (addr_of(first), (end - first) * PAGE_SIZE))
    outcome = process.do(call)
    if has_hole(space, first, end):
        assert outcome.result < 0
    reached = first
    for start, stop in space.pieces(first, end):
        if start > reached:
            break
        reached = stop
        page = space.at(start)
        assert page is not None
        flags = page.flags & ~f.VM_LOCKED_MASK | (f.VM_LOCKED if locking else 0)
        if flags != page.flags:
            space.modify(start, stop, setter(flags))
    if locking and reached == end:
        for start, _ in space.pieces(first, end):
            page = space.at(start)
            assert page is not None
            if not page.flags & f.VM_ACCESS:
                break
            if page.private_data():
                space.write(start)


def move(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """mremap of a part of one run to a place that does not overlap it."""
    target = choice % PAGES
    length = end - first
    if len(space.pieces(first, end)) != 1 or has_hole(space, first, end):
        return
    if target + length > PAGES or (target < end and first < target + length):
        return
    size = length * PAGE_SIZE
    process.mremap(addr_of(first), size, size, f.MREMAP_MAYMOVE | f.MREMAP_FIXED, addr_of(target))
    space.move(first, end, target)


def grow(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """mremap of the end of a run, in place."""
    page = space.at(first)
    piece = next((piece for piece in space.runs() if piece[0] <= first < piece[1]), None)
    if page is None or piece is None:
        return
    stop, more = piece[1], 1 + choice % 3
    free = stop + more <= PAGES and all(space.at(place) is None for place in range(stop, stop + more))
    old, new = (stop - first) * PAGE_SIZE, (stop + more - first) * PAGE_SIZE
    if stop + more > PAGES:
        return
    must_be(process, Call("mremap", (addr_of(first), old, new, 0, 0)), free)
    if free:
        last = space.at(stop - 1)
        assert last is not None
        added = Page(0, last.flags, last.offset + 1, last.file, last.close, last.policy, last.uffd, last.name)
        # What is added has never been shared through fork, so it may join an unwritten run above even in a child.
        added.anon, added.chain = last.anon, last.chain[-1:] and (last.anon,)
        space.map(stop, stop + more, added)
        if last.flags & f.VM_LOCKED and last.private_data():
            space.write(stop)


def set_policy(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """mbind: a policy needs a range without holes, no policy does not."""
    node = choice % 3
    nodes = (node,) if node else ()
    result = mbind(process.mm, addr_of(first), (end - first) * PAGE_SIZE, 2 if node else 0, nodes, 0)
    pieces = space.pieces(first, end)
    works = bool(pieces) and (node == 0 or not has_hole(space, first, end))
    assert (result == 0) == works
    wanted = str(node) if node else ""
    for start, stop in pieces if works else []:
        page = space.at(start)
        if page is not None and page.policy != wanted:
            space.modify(start, stop, lambda page: setattr(page, "policy", wanted))


def set_name(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """prctl(PR_SET_VMA_ANON_NAME): ends at the first file."""
    name = ("", "n", "m")[choice % 3]
    args = (f.PR_SET_VMA, f.PR_SET_VMA_ANON_NAME, addr_of(first), (end - first) * PAGE_SIZE, 0)
    process.do(Call("prctl", args, data={"name": name} if name else {}))
    for start, stop in space.pieces(first, end):
        page = space.at(start)
        assert page is not None
        if page.file:
            break
        if page.name != name:
            space.modify(start, stop, lambda page: setattr(page, "name", name))


def register(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """UFFDIO_REGISTER, UFFDIO_UNREGISTER and close, for two userfaultfds."""
    context = twins.uffds[choice % 2]
    kind = choice // 2 % 4
    length = (end - first) * PAGE_SIZE
    pieces = space.pieces(first, end)
    pages = [page for start, _ in pieces if (page := space.at(start)) is not None]
    fits = bool(pages) and not any(page.file or page.uffd not in ("", context.name) for page in pages)
    if kind == 3:
        uffd_calls.release(process.mm, context)
        for start, stop in space.runs():
            page = space.at(start)
            if page is not None and page.uffd == context.name:
                space.modify(start, stop, change_uffd("", 0))
    elif kind == 2:
        result = uffd_calls.unregister(process.mm, context, addr_of(first), length)
        assert (result == 0) == fits
        for start, stop in pieces if result == 0 else []:
            page = space.at(start)
            if page is not None and page.uffd:
                space.modify(start, stop, change_uffd("", 0))
    else:
        mode = (f.VM_UFFD_MISSING, f.VM_UFFD_WP)[kind]
        result = uffd_calls.register(process.mm, context, addr_of(first), length, 1 if kind == 0 else 2)
        assert (result == 0) == fits
        for start, stop in pieces if result == 0 else []:
            page = space.at(start)
            if page is not None and (page.uffd != context.name or page.flags & f.VM_UFFD != mode):
                space.modify(start, stop, change_uffd(context.name, mode))


def change_uffd(name: str, mode: int) -> Callable[[Page], None]:
    """Sets a userfaultfd."""

    def change(page: Page) -> None:
        page.uffd = name
        page.flags = page.flags & ~f.VM_UFFD | mode

    return change


def heap(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """brk: the heap grows at its end."""
    mm = process.mm
    if has_hole(space, first, end) and all(space.at(place) is None for place in range(first, end)):
        mm.start_brk, mm.brk = BASE, addr_of(first)
        grown = process.brk(addr_of(end))
        if end < PAGES and space.at(end) is not None and grown == addr_of(first):
            return
        assert grown == addr_of(end)
        page = Page(0, f.VM_MAYACCESS | f.VM_READ | f.VM_WRITE | f.VM_ACCOUNT, BASE_PAGE + first)
        space.map(first, end, page, left_only=True)
        space.changed = []


def fork(twins: Twins, process: Process, space: Space, first: int, end: int, choice: int) -> None:
    """fork, while there are few; then the exit of one."""
    if len(twins.processes) < 3:
        twins.processes.append(process.fork())
        twins.spaces.append(space.fork())
    else:
        gone = 1 + choice % 2
        twins.processes.pop(gone).exit()
        twins.world.spaces.remove(twins.spaces.pop(gone))


OPERATIONS: Final[dict[str, Callable[[Twins, Process, Space, int, int, int], None]]] = {
    each.__name__: each
    for each in (
        map_memory,
        unmap_memory,
        protect,
        advise,
        guard,
        write,
        lock,
        move,
        grow,
        set_policy,
        set_name,
        register,
        heap,
        fork,
    )
}


@st.composite
def sequences(draw: st.DrawFn) -> list[Step]:
    """Steps of a few kinds at a time, so that those meet each other (swarm testing)."""
    kinds = draw(st.lists(st.sampled_from(list(OPERATIONS)), min_size=1, max_size=4, unique=True))
    step = st.builds(
        Step,
        st.sampled_from([*kinds, *kinds, *kinds, "protect", "map_memory", "write"]),
        st.integers(0, PAGES - 1),
        st.sampled_from([0, 0, 1, 1, 2, 3, 5, 11]),
        st.integers(0, 59),
        st.integers(0, 5),
    )
    return draw(st.lists(step, min_size=30, max_size=60))


CAMPAIGN: Final = os.environ.get("HYPOTHESIS_PROFILE") == "campaign"


@settings(max_examples=20_000 if CAMPAIGN else 250)
@given(sequences())
def test_the_core_and_the_naive_model_agree(steps: list[Step]) -> None:
    twins = Twins()
    for step in steps:
        twins.step(step)


@settings(max_examples=4_000 if CAMPAIGN else 60)
@given(sequences())
def test_each_reason_is_the_first_that_the_naive_model_sees(steps: list[Step]) -> None:
    """For every two VMAs that touch; and a plan that is asked again says the same and changes nothing."""
    twins = Twins()
    for step in steps:
        twins.step(step)
    for process, space in zip(twins.processes, twins.spaces, strict=True):
        vmas = process.vmas()
        for below, above in pairwise(vmas):
            if below.end != above.start:
                continue
            place = (above.start - BASE) // PAGE_SIZE
            left, right = space.at(place - 1), space.at(place)
            assert left is not None
            assert right is not None
            refusal = merge_refusal(below, above)
            name = "" if refusal == YES else explain(refusal).name
            expected = difference(left, right) or ("CLOSE_HOOK" if left.close or right.close else "")
            assert name == expected
        for vma in vmas:
            request = request_for_modify(vma, vma.start, vma.end)
            plans = [plan_existing_range(request) for _ in range(2)]
            assert plans[0] == plans[1]
            beside = request_for_vma(vma, vma.end, vma.end + PAGE_SIZE)
            beside.prev = vma
            again = [plan_new_range(beside) for _ in range(2)]
            assert again[0] == again[1]
        twins.compare()
