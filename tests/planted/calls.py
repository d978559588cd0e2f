"""Bugs that are planted in system-call code, to see that lockstep with a live kernel finds each."""

from tests.planted.bugs import Bug

CALL_BUGS = (
    Bug(
        "mprotect_keeps_account",
        "memory that was never written to stays committed when it becomes read-only",
        "syscalls.protect",
        (
            (
                "    elif old & VM_ACCOUNT and vma.is_anonymous() and vma.anon_vma is None:\n",
                "    elif old & VM_ACCOUNT and False:\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "mprotect_stops_at_first",
        "mprotect that answers for a hole before it has changed what lies below it",
        "syscalls.protect",
        (("            return -NOT_MAPPED\n        vma = above", "            return 0\n        vma = above"),),
        "lockstep",
    ),
    Bug(
        "madvise_stops_at_hole",
        "madvise that does not go on behind a hole",
        "syscalls.madvise",
        (
            (
                "            result = NOT_MAPPED\n            at = vma.start\n            continue\n",
                "            return NOT_MAPPED\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "guard_without_anon_vma",
        "guard markers without page tables to hold them",
        "syscalls.madvise",
        (("    refusal = anon_vma_prepare(vma) if vma.is_anonymous() else YES\n", "    refusal = YES\n"),),
        "lockstep",
    ),
    Bug(
        "mlock_forgets_onfault",
        "mlock2 with MLOCK_ONFAULT that locks at once",
        "syscalls.lock",
        (
            (
                "    vm_flags = VM_LOCKED | VM_LOCKONFAULT if flags & MLOCK_ONFAULT else VM_LOCKED\n",
                "    vm_flags = VM_LOCKED\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "mseal_before_the_check",
        "mseal that has sealed a part when it finds a hole",
        "syscalls.protect",
        (
            (
                "        if vma is None:\n            return NOT_MAPPED\n        at = vma.end\n    at = start\n",
                "        if vma is None:\n            break\n        at = vma.end\n"
                "    end = min(at, end)\n    at = start\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "mremap_never_grows_by_a_page",
        "mremap that moves what could grow by a page in place",
        "syscalls.mremap",
        (
            (
                "        and mm.find_vma_intersection(vma.end, new_end) is None\n",
                "        and mm.find_vma_intersection(vma.end, new_end) is None\n        and remap.delta != 0x1000\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "mremap_keeps_userfaultfd",
        "a moved VMA that stays registered",
        "syscalls.mremap",
        (("        copy.uffd = None\n        set_flags(copy, copy.flags & ~VM_UFFD)\n", "        pass\n"),),
        "lockstep",
    ),
    Bug(
        "brk_passes_the_gap",
        "a heap that grows up to the next mapping",
        "syscalls.map",
        (
            (
                "    if above is not None and new + PAGE_MASK + 1 > mm.start_gap(above):\n",
                "    if above is not None and new > mm.start_gap(above):\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "noreplace_replaces",
        "MAP_FIXED_NOREPLACE that looks at its first page only",
        "syscalls.map",
        (
            (
                "    if flags & MAP_FIXED_NOREPLACE and mm.find_vma_intersection(addr, addr + length) is not None:\n",
                "    if flags & MAP_FIXED_NOREPLACE and mm.find_vma_intersection(addr, addr + 4096) is not None:\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "mbind_stops_at_equal",
        "mbind that ends at the first VMA that has the policy already",
        "syscalls.policy",
        (
            (
                "        if not mpol_equal(vma.policy, policy):\n",
                "        if mpol_equal(vma.policy, policy):\n            return YES\n        if True:\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "register_replaces_always",
        "UFFDIO_REGISTER that takes away a mode which is there already",
        "syscalls.uffd",
        (("found.flags & wanted != wanted:", "found.flags != flags:"),),
        "lockstep",
    ),
    Bug(
        "remap_file_pages_anywhere",
        "remap_file_pages over neighbours of another file",
        "syscalls.map",
        (
            (
                "        if following is None or following.file is not vma.file or following.flags != vma.flags:\n",
                "        if following is None:\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "stack_grows_for_writes_only",
        "a stack that does not grow when it is read below",
        "syscalls.populate",
        (
            (
                "    if addr < vma.start:\n        refusal = grow_stack(vma, addr)\n",
                "    if addr < vma.start:\n        refusal = grow_stack(vma, addr) if write else FAULT_NOT_MAPPED\n",
            ),
        ),
        "lockstep",
    ),
    Bug(
        "shm_forgets_parts",
        "a segment that does not count the parts that its attachments are cut into",
        "vma.modify",
        (("        mm.vma_open(new)\n", "        port.opened(new)\n"),),
        "lockstep",
    ),
    Bug(
        "shm_goes_at_once",
        "IPC_RMID of a segment that somebody still has attached",
        "vma.shm",
        (("        if segment.attached:\n            segment.mode", "        if False:\n            segment.mode"),),
        "lockstep",
    ),
    Bug(
        "shm_ids_start_over",
        "the lowest free index for a new segment, as if there were no rounds",
        "vma.shm",
        (("each for each in free if each >= self._next", "each for each in free"),),
        "lockstep",
    ),
    Bug(
        "advises_others_anything",
        "process_madvise that takes any advice about another process",
        "syscalls.madvise",
        (("    if advice not in REMOTE:\n", "    if False:\n"),),
        "lockstep",
    ),
    Bug(
        "layout_leaves_the_break",
        "PR_SET_MM_MAP that moves the start of the heap but not its end",
        "syscalls.layout",
        (
            (
                "    mm.start_brk, mm.brk, mm.start_stack = layout[4], layout[5], layout[6]\n",
                "    mm.start_brk, mm.start_stack = layout[4], layout[6]\n",
            ),
        ),
        "lockstep",
    ),
)
"""Each is found by random calls, from seed 0 on; lockstep.py runs them."""
