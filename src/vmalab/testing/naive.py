"""A naive model of address spaces: an array of pages, each with its attributes, and the rules in their simplest words.

It shares nothing with the core but the numbers of flags, and is slow, small and plain, so that one can believe it.  A
*run* is what the kernel would have as one VMA: neighbouring pages with one run number.  Properties compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from vmalab import flags as f

IGNORED: Final = f.VM_SOFTDIRTY | f.VM_MAYBE_GUARD
STICKY: Final = f.VM_MAYBE_GUARD


@dataclass
class Page:
    """One mapped page."""

    run: int
    flags: int
    offset: int
    """In pages: of the file, or for anonymous memory where it was first mapped."""
    file: str = ""
    close: bool = False
    """Its driver has a close hook."""
    policy: str = ""
    uffd: str = ""
    name: str = ""
    anon: int = 0
    """The anon_vma, 0 for none."""
    chain: tuple[int, ...] = ()

    def inherited(self) -> bool:
        """Whether its run may share anonymous pages with a parent."""
        return self.anon != 0 and len(self.chain) > 1

    def private_data(self) -> bool:
        """Private memory that can be written to."""
        return self.flags & (f.VM_WRITE | f.VM_SHARED) == f.VM_WRITE


def difference(left: Page, right: Page) -> str:
    """The first of the reasons why two pages that touch cannot be of one run; empty if they can."""
    if (left.flags | right.flags) & f.VM_SPECIAL:
        return "SPECIAL_VMA"
    if left.policy != right.policy:
        return "POLICY_DIFFERS"
    if (left.flags ^ right.flags) & ~IGNORED:
        return "FLAGS_DIFFER"
    if left.file != right.file:
        return "FILE_DIFFERS"
    if left.uffd != right.uffd:
        return "UFFD_DIFFERS"
    if left.name != right.name:
        return "NAME_DIFFERS"
    if left.anon != right.anon:
        if left.anon and right.anon:
            return "ANON_VMA_DIFFERS"
        if left.inherited() or right.inherited():
            return "ANON_VMA_OF_FORK"
    return "" if right.offset == left.offset + 1 else "OFFSET_NOT_CONTIGUOUS"


class World:
    """All the address spaces, and the family tree of the anon_vmas."""

    def __init__(self, size: int, base_page: int) -> None:
        self.size = size
        self.base_page = base_page
        self.spaces: list[Space] = []
        self.parents: dict[int, int] = {}
        """The parent of each anon_vma; a root is its own."""
        self._anons = 0

    def space(self) -> Space:
        """A new, empty address space."""
        made = Space(self)
        self.spaces.append(made)
        return made

    def new_anon(self, parent: int = 0) -> int:
        """A new anon_vma, below a parent or a root."""
        self._anons += 1
        self.parents[self._anons] = parent or self._anons
        return self._anons

    def is_idle(self, anon: int) -> bool:
        """Whether no run uses an anon_vma any more and it has at most one living child: then fork uses it again."""
        linked: set[int] = set()
        for space in self.spaces:
            for page in space.pages:
                if page is not None:
                    linked.update(page.chain)
                    if page.anon == anon:
                        return False
        return sum(1 for child in linked if self.parents[child] == anon) < 2

    def committed(self) -> int:
        """Pages that are committed."""
        return sum(space.count(lambda page: page.flags & f.VM_ACCOUNT != 0) for space in self.spaces)


class Space:
    """One address space: a row of pages or holes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pages: list[Page | None] = [None] * world.size
        self.changed: list[int] = []
        """The edges of what the last operation changed: there the kernel has tried to merge."""
        self._runs = 0

    def new_run(self) -> int:
        """A run number that is not in use."""
        self._runs += 1
        return self._runs

    def count(self, counts: Callable[[Page], bool]) -> int:
        """How many pages are of a kind."""
        return sum(1 for page in self.pages if page is not None and counts(page))

    def at(self, place: int) -> Page | None:
        """The page at a place; None for a hole and outside."""
        return self.pages[place] if 0 <= place < len(self.pages) else None

    def is_edge(self, place: int) -> bool:
        """Whether a run starts or ends between a place and the one before it."""
        left, right = self.at(place - 1), self.at(place)
        return left is None or right is None or left.run != right.run

    def runs(self) -> list[tuple[int, int]]:
        """The first place of each run and the place behind its last."""
        edges = [place for place in range(len(self.pages) + 1) if self.is_edge(place)]
        return [(start, end) for start, end in pairwise(edges) if self.at(start) is not None]

    def pieces(self, first: int, end: int) -> list[tuple[int, int]]:
        """The part of each run that lies in a range."""
        return [(max(start, first), min(stop, end)) for start, stop in self.runs() if start < end and stop > first]

    def _members(self, run: int) -> list[Page]:
        return [page for page in self.pages if page is not None and page.run == run]

    # -- the three things that everything else is made of ---------------------------------------------------

    def cut(self, place: int) -> None:
        """Split the run that crosses a place."""
        if not self.is_edge(place):
            page = self.at(place)
            assert page is not None
            run, old = self.new_run(), page.run
            for each in self.pages[place:]:
                if each is not None and each.run == old:
                    each.run = run

    def unmap(self, first: int, end: int) -> None:
        """Make a hole."""
        self.cut(first)
        self.cut(end)
        self.pages[first:end] = [None] * (end - first)

    def _join(self, runs: list[int], start: int, end: int) -> None:
        """Make one run of several and of the pages in a range: with the anon_vma that any of them has."""
        members = [page for run in runs for page in self._members(run)]
        members += [page for page in self.pages[start:end] if page is not None]
        source = next((page for page in members if page.anon), members[0])
        sticky = 0
        for page in members:
            sticky |= page.flags & STICKY
        for page in members:
            page.run, page.anon, page.chain = runs[0], source.anon, source.chain
            page.flags |= sticky

    # -- merging -----------------------------------------------------------------------------------------------

    def _sides(self, left: Page | None, low: Page, high: Page, right: Page | None) -> tuple[Page | None, Page | None]:
        """Which of two neighbours take a range whose first and last page are to be like low and high."""
        if left is not None and difference(left, low):
            left = None
        if right is not None and difference(high, right):
            right = None
        if left is not None and right is not None and left.anon and right.anon and left.anon != right.anon:
            right = None
        return left, right

    def map(self, first: int, end: int, page: Page, *, left_only: bool = False) -> None:
        """Map an empty range: like page at its start, with offsets that go on from there."""
        assert all(each is None for each in self.pages[first:end])
        self.changed = [first, end]
        new = [replace(page, offset=page.offset + i) for i in range(end - first)]
        left, right = self._sides(self.at(first - 1), new[0], new[-1], self.at(end))
        if left_only or (left is not None and right is not None and right.close):
            right = None
        run = self.new_run()
        for each in new:
            each.run = run
        self.pages[first:end] = list(new)
        joined = [each.run for each in (left, right) if each is not None]
        if joined:
            self._join(joined, first, end)

    def modify(self, first: int, end: int, change: Callable[[Page], None]) -> None:
        """Change a part of one run: into a neighbour that is like it already, or into a run of its own."""
        low, high = self.at(first), self.at(end - 1)
        assert low is not None and high is not None and low.run == high.run
        self.changed += [first, end]
        wanted_low, wanted_high = replace(low), replace(high)
        change(wanted_low)
        change(wanted_high)
        at_start, at_end = self.is_edge(first), self.is_edge(end)
        left = self.at(first - 1) if at_start else None
        right = self.at(end) if at_end else None
        left, right = self._sides(left, wanted_low, wanted_high, right)
        if at_start and at_end and low.close:
            left = right = None
        if left is not None and right is not None and right.close:
            right = None
        if left is None and right is None:
            self.cut(first)
            self.cut(end)
        for page in self.pages[first:end]:
            assert page is not None
            change(page)
        joined = [each.run for each in (left, right) if each is not None]
        if joined:
            self._join(joined, first, end)

    # -- first writes and fork -------------------------------------------------------------------------------------

    def write(self, place: int) -> None:
        """The first write to a run gives it an anon_vma: a neighbour's, if they could become equal, or a new one."""
        page = self.at(place)
        assert page is not None
        if page.anon:
            return
        start, end = next((s, e) for s, e in self.runs() if s <= place < e)
        first, last, after, before = self.at(start), self.at(end - 1), self.at(end), self.at(start - 1)
        assert first is not None and last is not None
        found = 0
        for left, right, other in ((last, after, after), (before, first, before)):
            if not found and left is not None and right is not None and other is not None:
                found = other.anon if len(other.chain) == 1 and _nearly(left, right) else 0
        anon = found or self.world.new_anon()
        for each in self._members(page.run):
            each.anon, each.chain = anon, (anon,)

    def fork(self) -> Space:
        """A child."""
        child = self.world.space()
        child._runs = self._runs
        for start, end in self.runs():
            parent = self.at(start)
            assert parent is not None
            if parent.flags & f.VM_DONTCOPY:
                continue
            anon, chain = 0, parent.chain
            if parent.flags & f.VM_WIPEONFORK:
                chain = ()
            elif parent.anon:
                anon = next((each for each in reversed(chain) if self.world.is_idle(each)), 0)
                if not anon:
                    anon = self.world.new_anon(parent.anon)
                    chain = (anon, *chain)
            for place in range(start, end):
                page = self.pages[place]
                assert page is not None
                copy = replace(page, anon=anon, chain=chain, flags=page.flags & ~f.VM_LOCKED_MASK)
                copy.flags &= ~f.VM_UFFD
                copy.uffd = ""
                child.pages[place] = copy
        return child

    def move(self, first: int, end: int, target: int) -> None:
        """Move a part of one run to a place that does not overlap it, over whatever is there."""
        self.unmap(target, target + end - first)
        page = self.at(first)
        assert page is not None
        copy = replace(page)
        if not copy.anon and not copy.file:
            copy.offset = self.world.base_page + target
        self.map(target, target + end - first, copy)
        moved = self.at(target)
        assert moved is not None
        # A userfaultfd that does not hear of moves is left: after the merge, and so by all of the merged run.
        for each in self._members(moved.run):
            each.uffd = ""
            each.flags &= ~f.VM_UFFD
        self.unmap(first, end)
        self.changed = []


def _nearly(left: Page, right: Page) -> bool:
    """Whether two pages that touch differ in no more than mprotect could change."""
    return (
        left.policy == right.policy
        and left.file == right.file
        and not (left.flags ^ right.flags) & ~(f.VM_ACCESS | IGNORED)
        and right.offset == left.offset + 1
    )
