"""Bugs that are planted in the core to see that the tests find them, drawn from the kernel's own history.

A bug is a change of a few words of a module, made while that module is imported (plant.py), so nothing of it is in the
core itself.  The text that it replaces must be there exactly once: if the core changes, the bug says so.
"""

from typing import NamedTuple


class Bug(NamedTuple):
    """One planted bug."""

    name: str
    history: str
    """What it is drawn from."""
    module: str
    """Below vmalab."""
    changes: tuple[tuple[str, str], ...]
    """Source text, and what stands there instead."""
    found_by: str
    """The check that finds it: a scene, or a test."""


BUGS = (
    Bug(
        "merge_forgets_anon_vma",
        "merges that lost the anon_vma of what they swallowed",
        "vma.merge",
        (
            (
                "    if source is not None:\n        duplicated",
                "    if source is not None and False:\n        duplicated",
            ),
        ),
        "merge_existing: the middle was written to: the left takes its anon_vma",
    ),
    Bug(
        "merge_keeps_duplicated_anon_vma",
        "merge error paths that left a duplicated anon_vma behind",
        "vma.merge",
        (("        if duplicated:\n            unlink_anon_vmas(target)\n", ""),),
        "merge_new: written to above: the survivor below takes its anon_vma",
    ),
    Bug(
        "merge_both_into_next",
        "a wrong survivor: a merge with both sides is to keep the lower",
        "vma.merge",
        (
            (
                "        end = following.end\n        _stick(prev, following.flags)\n"
                "        mm.absorb(prev, prev.start, end, prev.pgoff, middle)\n        mm.drop(following)\n",
                "        mm.absorb(following, prev.start, following.end, prev.pgoff, middle)\n"
                "        mm.drop(prev)\n        return following\n",
            ),
        ),
        "merge_existing: left, middle and right become one: the left survives",
    ),
    Bug(
        "merge_ignores_userfaultfd",
        "VMAs of different userfaultfds merged",
        "vma.merge",
        (("    if vma.uffd is not request.uffd:\n        return UFFD_DIFFERS\n", ""),),
        "merge_new: then the userfaultfd",
    ),
    Bug(
        "merge_ignores_fork",
        "a merge into pages that fork shares (the rule behind is_fork_child)",
        "vma.anon",
        (("return vma.anon_vma is not None and len(vma.chain) > 1", "return False"),),
        "merge_existing: a middle inherited from a parent joins no unwritten neighbour",
    ),
    Bug(
        "merge_removes_close_hook",
        "a driver that never hears of the end of its VMA",
        "vma.merge",
        (("return vma.ops is None or not vma.ops.has_close", "return True"),),
        "merge_existing: the middle has a close hook: it cannot be removed, so nothing merges",
    ),
    Bug(
        "merge_loses_sticky_flag",
        "a guard mark lost in a merge",
        "vma.merge",
        (("    target.flags = target.flags | flags & target.mm.semantics.sticky_flags", "    return"),),
        "expand_shrink: growing over a guarded VMA takes its mark",
    ),
    Bug(
        "merge_right_keeps_offset",
        "a VMA that grows down but keeps its offset",
        "vma.space",
        (("        above.pgoff += (at - old) >> PAGE_SHIFT\n", ""),),
        "merge_existing: the tail of the middle joins the right",
    ),
    Bug(
        "brk_merges_above",
        "a heap that swallows the mapping above it",
        "vma.merge",
        (("    if not request.expand_only:\n        right =", "    if True:\n        right ="),),
        "merge_new: in expand-only mode the right neighbour is not asked",
    ),
    Bug(
        "split_one_page_off",
        "an off-by-one page at a split",
        "vma.modify",
        (("        new.pgoff = vma.pgoff_at(addr)", "        new.pgoff = vma.pgoff_at(addr) - 1"),),
        "split: the upper half's offset is continued",
    ),
    Bug(
        "split_forgets_file",
        "a file that is freed while a VMA still holds it",
        "vma.modify",
        (("    new.take_references()\n", ""),),
        "split: both halves hold file, policy, userfaultfd, name and anon_vma",
    ),
    Bug(
        "modify_undoes_first_split",
        "an undo that the kernel does not do",
        "vma.modify",
        (
            (
                "        _, refusal = split_vma(vma, request.end, False)\n    return vma, refusal\n",
                "        _, refusal = split_vma(vma, request.end, False)\n        if refusal != YES:\n"
                "            below = vma.mm.find_vma_prev(vma.start)\n"
                "            if below is not None and below.end == vma.start:\n"
                "                start, offset = below.start, below.pgoff\n"
                "                vma.mm.tree.erase(below.start, below.end)\n                vma.mm.count_maps(-1)\n"
                "                vma.mm.free(below, 'undo')\n"
                "                vma.mm.set_range(vma, start, vma.end, offset)\n"
                "    return vma, refusal\n",
            ),
        ),
        "modify: one below the limit: the first split is done, the second is not, and nothing is undone",
    ),
    Bug(
        "uffd_release_use_after_free",
        "a use after free in clearing a userfaultfd range: the VMA that a merge has freed is looked at again",
        "syscalls.uffd",
        (
            (
                "            vma, _ = _clear(vma, vma.start, vma.end)",
                "            _clear(vma, vma.start, vma.end)",
            ),
        ),
        "tests/vma/test_properties.py::test_the_core_and_the_naive_model_agree",
    ),
    Bug(
        "uffd_range_cuts_wrongly",
        "a userfaultfd range whose start cuts a VMA",
        "syscalls.uffd",
        (
            (
                "vma_modify_uffd(found, max(at, found.start), upto, flags, uffd)",
                "vma_modify_uffd(found, found.start, upto, flags, uffd)",
            ),
        ),
        "tests/vma/test_properties.py::test_the_core_and_the_naive_model_agree",
    ),
    Bug(
        "unmap_head_split_above",
        "munmap that keeps the upper part of a split as the new VMA (as 6.1 did)",
        "vma.unmap",
        (
            (
                "        _, refusal = split_vma_unchecked(vma, start, True)\n",
                "        vma, refusal = split_vma_unchecked(vma, start, False)\n",
            ),
        ),
        "unmap: the end of a VMA: the old VMA becomes the new one's lower part",
    ),
    Bug(
        "unmap_loses_accounting",
        "committed memory that munmap does not give back",
        "vma.unmap",
        (("    mm.commit.uncharge(gathered.accounted)\n", ""),),
        "unmap: a whole VMA",
    ),
    Bug(
        "unmap_keeps_locked",
        "locked_vm that munmap does not take back",
        "vma.unmap",
        (("        mm.locked_vm -= npages\n", "        pass\n"),),
        "unmap: locked memory is given back",
    ),
    Bug(
        "unmap_one_too_many",
        "a map count that goes over its limit by cutting a hole",
        "vma.unmap",
        (("mm.map_count >= mm.settings.max_map_count", "mm.map_count > mm.settings.max_map_count"),),
        "unmap: at the map count limit a hole cannot be cut",
    ),
    Bug(
        "mmap_error_leaves_file",
        "the error path of mmap (CVE-2024-53096): what the driver refused is not cleaned up",
        "vma.map",
        (('            mm.free(vma, "mmap_region")\n', ""),),
        "map: the driver refuses a new mapping: a hole is left, and what was committed there is lost",
    ),
    Bug(
        "fork_links_early",
        "fork linked a VMA before it was whole (CVE-2024-27022)",
        "vma.relocate",
        (
            (
                "        child.commit.uncharge(charged)\n        return None, refusal\n",
                "        child.commit.uncharge(charged)\n        return copy, refusal\n",
            ),
        ),
        "fork: written to: the child has an anon_vma of its own below its parent's",
    ),
    Bug(
        "anon_vma_reused",
        "an anon_vma reused while others have pages in it (CVE-2022-42703)",
        "vma.anon",
        (("anon_vma.active == 0 and anon_vma.children < 2", "anon_vma.active >= 0"),),
        "fork: written to: the child has an anon_vma of its own below its parent's",
    ),
    Bug(
        "stack_guard_gap_lost",
        "a stack that grows onto its neighbour (Stack Clash, CVE-2017-1000364)",
        "vma.relocate",
        (("        and addr - below.end < mm.settings.stack_guard_gap\n", "        and addr < below.end\n"),),
        "stack: accessible memory within the guard gap",
    ),
    Bug(
        "stack_grows_read_locked",
        "a stack that grows under the read lock (StackRot, CVE-2023-3269)",
        "syscalls.populate",
        (
            ("    mm.mmap_read_unlock()\n    mm.mmap_write_lock()\n    refusal = expand", "    refusal = expand"),
            ("    mm.mmap_write_unlock()\n    mm.mmap_read_lock()\n    return refusal\n", "    return refusal\n"),
        ),
        "tests/vma/test_core.py::test_a_fault_grows_a_stack",
    ),
    Bug(
        "relocate_over_neighbour",
        "an exec stack moved over what lies below it",
        "vma.relocate",
        (("    if mm.find_vma(new_start) is not vma:\n        return OVERLAPS_STACK_MOVE\n", ""),),
        "relocate: something is in the way (by: 4)",
    ),
    Bug(
        "move_keeps_offset",
        "unfaulted memory that keeps its old offset when it moves, and merges with nothing",
        "vma.relocate",
        (("        pgoff = new >> PAGE_SHIFT\n", "        pass\n"),),
        "copy: into empty space, unwritten: the offset follows from the new address",
    ),
    Bug(
        "copy_error_leaves_anon_vma",
        "the error path of copy_vma: the copy stays in the anon_vma of its source",
        "vma.relocate",
        (('        mm.free(copy, "copy_vma")\n', ""),),
        "copy: into empty space, written: the offset stays",
    ),
    Bug(
        "tree_forgets_spanned_entry",
        "a store that spans several entries leaves one behind (maple tree, CVE-2024-50200)",
        "vma.unmap",
        (
            (
                "    gathered.mm.tree.erase(gathered.start, gathered.end)\n",
                "    if gathered.first is not None:\n"
                "        gathered.mm.tree.erase(gathered.first.start, gathered.first.end)\n",
            ),
        ),
        "unmap: several VMAs and the holes between them",
    ),
)
