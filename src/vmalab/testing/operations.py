"""The operations that a scene can perform, each by its name in the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.errors import InputError
from vmalab.flags import VM_ACCOUNT, VM_LOCKED
from vmalab.reason import YES, explain
from vmalab.testing.scene import Scene, Step
from vmalab.testing.stage import PLAIN, Stage, marked
from vmalab.text import escape_text
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import Vma
from vmalab.vma.map import do_brk_flags, insert_vm_struct, mmap_region
from vmalab.vma.merge import (
    MergeRequest,
    plan_existing_range,
    plan_new_range,
    request_for_modify,
    request_for_vma,
    vma_expand,
    vma_merge_copied_range,
    vma_merge_existing_range,
    vma_merge_extend,
    vma_merge_new_range,
)
from vmalab.vma.modify import (
    split_vma,
    split_vma_unchecked,
    vma_modify_flags,
    vma_modify_flags_name,
    vma_modify_policy,
    vma_modify_uffd,
    vma_shrink,
)
from vmalab.vma.place import get_unmapped_area, unmapped_area, unmapped_area_topdown
from vmalab.vma.relocate import copy_vma, dup_mmap, exit_mmap, expand_stack, relocate_vma_down
from vmalab.vma.space import Mm
from vmalab.vma.unmap import do_munmap, munmap_range


class Doing:
    """One operation under way: where, with what, and what came of it."""

    def __init__(self, stage: Stage, scene: Scene, step: Step) -> None:
        self.stage = stage
        self.mm = stage.mm
        self.step = step
        self.words = step.do[1:]
        first, end = marked(step.range)
        self.first = first
        self.start = stage.addr(first)
        self.end = stage.addr(end)
        self.pages = end - first
        self.wanted = step.wanted if step.wanted is not None else PLAIN
        self.plan: tuple[int, int] | None = None
        """What a merge was planned to do: YES or the reason for the left and for the right."""
        self.refusal = YES
        self.found = -1
        """The page that a search found."""
        self.path = scene.path

    def wrong(self, problem: str) -> InputError:
        """An error of the scene."""
        return InputError(f"{escape_text(self.path)}, line {self.step.line}: {escape_text(problem)}")

    def vma(self) -> Vma:
        """The VMA that the next word names."""
        letter = self.words.pop(0) if self.words else ""
        try:
            return self.stage.vma(letter)
        except KeyError:
            raise self.wrong(f"{self.step.do[0]} needs the letter of a VMA, not {letter!r}") from None

    def number(self) -> int:
        """The number that the next word is."""
        word = self.words.pop(0) if self.words else ""
        try:
            return int(word, 0)
        except ValueError:
            raise self.wrong(f"{self.step.do[0]} needs a number, not {word!r}") from None

    def says(self, word: str) -> bool:
        """Whether the next words hold this one, which is taken."""
        if word in self.words:
            self.words.remove(word)
            return True
        return False

    def middle(self) -> Vma:
        """The VMA that the range lies in."""
        vma = self.mm.vma_lookup(self.start)
        if vma is None or vma.end < self.end:
            raise self.wrong("the range is to lie in one VMA")
        return vma

    def changed(self, old: int, new: int) -> None:
        """Count the pages of the range by their new flags."""
        _count(self, old, -self.pages)
        _count(self, new, self.pages)

    def request(self) -> MergeRequest:
        """A request for the range as memory that is not mapped yet, with what is wanted of it."""
        wanted, names = self.wanted, self.stage.names
        offset = self.stage.offset(wanted, self.first)
        request = MergeRequest(self.mm, self.start, self.end, wanted.flags, offset)
        self._want(request)
        request.file = names.file(wanted)
        request.prev = self.mm.find_vma_prev(self.start)
        request.next = self.mm.find_vma(self.start)
        return request

    def _want(self, request: MergeRequest) -> None:
        wanted, names = self.wanted, self.stage.names
        request.flags = wanted.flags
        request.uffd = names.uffd(wanted.uffd)
        request.name = wanted.name or None
        request.policy = names.policy(wanted.policy)

    def change(self) -> MergeRequest:
        """A request to change the range to what is wanted."""
        request = request_for_modify(self.middle(), self.start, self.end)
        self._want(request)
        return request


def _count(doing: Doing, flags: int, pages: int) -> None:
    """Do what the callers of the core do with the counters: pages with these flags have come (or gone, if negative)."""
    mm = doing.mm
    mm.vm_stat_account(flags, pages)
    if flags & VM_ACCOUNT:
        mm.commit.committed += pages
    if flags & VM_LOCKED:
        mm.locked_vm += pages


def _merge_new(doing: Doing) -> int:
    request = doing.request()
    request.expand_only = doing.says("expand_only")
    doing.plan = plan_new_range(request)
    if vma_merge_new_range(request) is not None:
        _count(doing, request.flags, doing.pages)
    return request.failure


def _merge_existing(doing: Doing) -> int:
    request = doing.change()
    doing.plan = plan_existing_range(request)
    old: int = doing.middle().flags
    if vma_merge_existing_range(request) is not None:
        doing.changed(old, request.flags)
    return request.failure


def _merge_copied(doing: Doing) -> int:
    source = doing.vma()
    request = request_for_vma(source, doing.start, doing.end)
    if doing.wanted.pgoff is not None:
        request.pgoff = doing.wanted.pgoff
    request.prev = doing.mm.find_vma_prev(doing.start)
    request.next = doing.mm.find_vma(doing.start)
    request.copied_from = source
    doing.plan = plan_new_range(request)
    flags: int = source.flags
    if vma_merge_copied_range(request, source) is not None:
        _count(doing, flags, doing.pages)
    return request.failure


def _merge_extend(doing: Doing) -> int:
    vma = doing.vma()
    flags: int = vma.flags
    pages = (doing.end - vma.end) >> PAGE_SHIFT
    merged, refusal = vma_merge_extend(vma, doing.end - vma.end)
    if merged is not None:
        _count(doing, flags, pages)
    return refusal


def _modify_flags(doing: Doing) -> int:
    vma = doing.middle()
    old: int = vma.flags
    _, refusal = vma_modify_flags(vma, doing.start, doing.end, doing.wanted.flags)
    if refusal == YES:
        doing.changed(old, doing.wanted.flags)
    return refusal


def _modify_flags_name(doing: Doing) -> int:
    name = doing.wanted.name or None
    _, refusal = vma_modify_flags_name(doing.middle(), doing.start, doing.end, doing.wanted.flags, name)
    return refusal


def _modify_policy(doing: Doing) -> int:
    policy = doing.stage.names.policy(doing.wanted.policy)
    _, refusal = vma_modify_policy(doing.middle(), doing.start, doing.end, policy)
    return refusal


def _modify_uffd(doing: Doing) -> int:
    uffd = doing.stage.names.uffd(doing.wanted.uffd)
    _, refusal = vma_modify_uffd(doing.middle(), doing.start, doing.end, doing.wanted.flags, uffd)
    return refusal


def _split(doing: Doing) -> int:
    below = doing.says("below")
    _, refusal = split_vma(doing.middle(), doing.start, below)
    return refusal


def _split_unchecked(doing: Doing) -> int:
    below = doing.says("below")
    _, refusal = split_vma_unchecked(doing.middle(), doing.start, below)
    return refusal


def _expand(doing: Doing) -> int:
    """To the range, which may lie beside the VMA, or reach over all of the next."""
    vma = doing.vma()
    start, end = min(vma.start, doing.start), max(vma.end, doing.end)
    following = doing.mm.find_vma_intersection(vma.end, end)
    request = request_for_vma(vma, start, end)
    request.pgoff = vma.pgoff - ((vma.start - start) >> PAGE_SHIFT)
    swallowed = 0 if following is None else following.end - following.start
    grown = (end - start - (vma.end - vma.start) - swallowed) >> PAGE_SHIFT
    if vma_expand(request, vma, start, end, request.pgoff, following):
        _count(doing, request.flags, grown)
    return request.failure


def _shrink(doing: Doing) -> int:
    vma = doing.vma()
    flags: int = vma.flags
    gone = vma.pages() - doing.pages
    refusal = vma_shrink(vma, doing.start, doing.end, vma.pgoff_at(doing.start))
    if refusal == YES:
        _count(doing, flags, -gone)
    return refusal


def _munmap(doing: Doing) -> int:
    return munmap_range(doing.mm, doing.start, doing.end)


def _do_munmap(doing: Doing) -> int:
    """With an address and a length in bytes; the address counts from the strip's start, or from the end with `-`."""
    start, length = doing.number(), doing.number()
    return do_munmap(doing.mm, (doing.stage.base if start >= 0 else doing.mm.task_size) + start, length)


def _mmap_region(doing: Doing) -> int:
    wanted = doing.wanted
    file = doing.stage.names.file(wanted)
    offset = doing.stage.offset(wanted, doing.first)
    flags = wanted.flags & ~VM_ACCOUNT
    request = MergeRequest(doing.mm, doing.start, doing.end, flags, offset)
    request.file = file
    return mmap_region(request)


def _brk(doing: Doing) -> int:
    return do_brk_flags(doing.mm, doing.mm.find_vma_prev(doing.start), doing.start, doing.end - doing.start, 0)


def _insert(doing: Doing) -> int:
    vma = doing.stage.make(doing.wanted, doing.first, doing.first + ((doing.end - doing.start) >> PAGE_SHIFT))
    refusal = insert_vm_struct(vma)
    if refusal != YES:
        doing.mm.free(vma, "the scene")
        return refusal
    doing.mm.vm_stat_account(vma.flags, vma.pages())
    return YES


def _copy(doing: Doing) -> int:
    """From the range of `s` to that of `*`.  What copy_vma leaves to mremap is done as well: the counters."""
    old, old_end = marked(doing.step.range, "s")
    start = doing.stage.addr(old)
    vma = doing.mm.vma_lookup(start)
    if vma is None or not old_end:
        raise doing.wrong("the source, marked s, is not mapped")
    flags: int = vma.flags
    length = doing.stage.addr(old_end) - start
    copy, _, refusal = copy_vma(vma, start, doing.start, length)
    if copy is not None:
        _count(doing, flags, length >> PAGE_SHIFT)
    return refusal


def _relocate(doing: Doing) -> int:
    vma = doing.vma()
    return relocate_vma_down(vma, doing.number() * PAGE_SIZE)


def _expand_stack(doing: Doing) -> int:
    return expand_stack(doing.vma(), doing.start)


def _touch(doing: Doing) -> int:
    return anon_vma_prepare(doing.vma())


def _fork(doing: Doing) -> int:
    mm = doing.mm
    child = Mm(mm.settings, mm.commit, mm.limits, mm.semantics, mm.port)
    child.inherit(mm)
    refusal = dup_mmap(child, mm)
    if refusal != YES:
        exit_mmap(child)
    return refusal


def _exit(doing: Doing) -> int:
    exit_mmap(doing.mm)
    return YES


def _topdown(doing: Doing) -> int:
    """The highest place for a number of pages in the range, which `aligned N` wants on a multiple of N pages."""
    return _search(doing, True)


def _bottomup(doing: Doing) -> int:
    return _search(doing, False)


def _search(doing: Doing, topdown: bool) -> int:
    length = doing.number() * PAGE_SIZE
    align = (doing.number() - 1) * PAGE_SIZE if doing.says("aligned") else 0
    search = unmapped_area_topdown if topdown else unmapped_area
    return _note(doing, search(doing.mm, length, doing.start, doing.end, align))


def _place(doing: Doing) -> int:
    """Where mmap goes: a number of pages, with the hint of a page."""
    length, hint = doing.number() * PAGE_SIZE, doing.number()
    mm = doing.mm
    mm.mmap_base = doing.end
    mm.legacy_base = doing.start
    mm.topdown = not doing.says("legacy")
    file = doing.stage.names.file(doing.wanted)
    addr = doing.stage.addr(hint) if hint >= 0 else 0
    return _note(doing, get_unmapped_area(mm, file, addr, length, 0, 0))


def _note(doing: Doing, found: int) -> int:
    if found < 0:
        return -found
    doing.found = doing.stage.page(found)
    return YES


OPERATIONS: Final[dict[str, Callable[[Doing], int]]] = {
    "vma_merge_new_range": _merge_new,
    "vma_merge_existing_range": _merge_existing,
    "vma_merge_copied_range": _merge_copied,
    "vma_merge_extend": _merge_extend,
    "vma_modify_flags": _modify_flags,
    "vma_modify_flags_name": _modify_flags_name,
    "vma_modify_policy": _modify_policy,
    "vma_modify_uffd": _modify_uffd,
    "split_vma": _split,
    "split_vma_unchecked": _split_unchecked,
    "vma_expand": _expand,
    "vma_shrink": _shrink,
    "munmap_range": _munmap,
    "do_munmap": _do_munmap,
    "mmap_region": _mmap_region,
    "do_brk_flags": _brk,
    "insert_vm_struct": _insert,
    "copy_vma": _copy,
    "relocate_vma_down": _relocate,
    "expand_stack": _expand_stack,
    "anon_vma_prepare": _touch,
    "dup_mmap": _fork,
    "exit_mmap": _exit,
    "unmapped_area_topdown": _topdown,
    "unmapped_area": _bottomup,
    "get_unmapped_area": _place,
}
UNLOCKED: Final = frozenset({"dup_mmap", "exit_mmap"})
"""Operations that take the lock themselves."""


def perform(stage: Stage, scene: Scene, step: Step) -> Doing:
    """Perform a step; `refusal` of what is returned is what the operation said."""
    doing = Doing(stage, scene, step)
    operation = OPERATIONS.get(step.do[0])
    if operation is None:
        raise doing.wrong(f"there is no operation {step.do[0]!r}; there are {', '.join(OPERATIONS)}")
    mm = stage.mm
    if step.do[0] in UNLOCKED:
        doing.refusal = operation(doing)
    else:
        mm.mmap_write_lock()
        doing.refusal = operation(doing)
        mm.mmap_write_unlock()
    if doing.words:
        raise doing.wrong(f"{step.do[0]} takes no {doing.words[0]!r}")
    return doing


def reason_name(reason: int) -> str:
    """The name of a Reason."""
    return "YES" if reason == YES else explain(reason).name
