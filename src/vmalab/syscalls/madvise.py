"""madvise and process_madvise: every advice as far as it changes or populates VMAs."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_MASK, is_unsigned_long, page_up, within_word
from vmalab.flags import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
    MADV_WIPEONFORK,
    UFFD_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_REMOVE,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_LOCKED,
    VM_MAYBE_GUARD,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_SEALED,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SPECIAL,
    VM_WIPEONFORK,
    VM_WRITE,
)
from vmalab.pages.advice import advise_pages
from vmalab.pages.ksm import unmerge_ksm_pages
from vmalab.pages.port import memory_of
from vmalab.reason import (
    ACCESS_NOT_PERMITTED,
    ADVICE_LOCKED,
    ADVICE_NOT_ANONYMOUS,
    ADVICE_NOT_FILE,
    ADVICE_NOT_REMOTE,
    ADVICE_NOT_SUPPORTED,
    ADVICE_NOT_WRITABLE,
    ADVICE_SPECIAL_VMA,
    ADVICE_UNKNOWN,
    FAULT_NO_MEMORY,
    FILE_SEALED,
    LENGTH_WRAPS,
    MAP_COUNT_SPLIT,
    MAP_COUNT_SPLIT_EAGAIN,
    NAME_BAD,
    NAME_NOT_SUPPORTED,
    NAME_ON_FILE,
    NICE_NOT_PERMITTED,
    NO_MEMORY_ANON_VMA,
    NO_MEMORY_EAGAIN,
    NO_MEMORY_POLICY,
    NO_MEMORY_TREE,
    NO_MEMORY_VMA,
    NOT_MAPPED,
    SEALED,
    UNALIGNED,
    YES,
)
from vmalab.syscalls.populate import madvise_populate
from vmalab.vma.anon import anon_vma_prepare
from vmalab.vma.area import UffdMessage, Vma
from vmalab.vma.map import ksm_compatible
from vmalab.vma.modify import set_flag_atomic, vma_modify_flags, vma_modify_flags_name
from vmalab.vma.space import Limits, Mm

READS_ONLY: Final = frozenset(
    {
        MADV_REMOVE,
        MADV_WILLNEED,
        MADV_COLD,
        MADV_PAGEOUT,
        MADV_COLLAPSE,
        MADV_DONTNEED,
        MADV_DONTNEED_LOCKED,
        MADV_FREE,
        MADV_GUARD_INSTALL,
        MADV_GUARD_REMOVE,
    }
)
"""Advices that change no VMA, and so hold the lock for reading."""

REMOTE: Final = frozenset({MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_COLLAPSE})
"""Advices that a process may give about another (process_madvise_remote_valid)."""

KEEP_NAME: Final = "\0"
"""Stands for "leave the name as it is": no name can hold it."""


def madvise(mm: Mm, start: int, length: int, advice: int) -> int:
    """madvise: 0 or minus a reason.  Holes are passed over, and NOT_MAPPED is answered when the rest is done."""
    refusal = _advice_valid(mm, advice)
    if refusal != YES:
        return -refusal
    end, refusal = _range_end(start, length)
    if refusal != YES or end == start:
        return -refusal
    if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        return -madvise_populate(mm, start, end, advice == MADV_POPULATE_WRITE)
    if advice in READS_ONLY:
        mm.mmap_read_lock()
        refusal = _walk(mm, start, end, advice, KEEP_NAME)
        mm.mmap_read_unlock()
    else:
        mm.mmap_write_lock()
        refusal = _walk(mm, start, end, advice, KEEP_NAME)
        mm.mmap_write_unlock()
    return -refusal


def may_advise_other(caller: Limits, target: Limits, advice: int) -> int:
    """Whether a process may advise about the address space of another: YES or a reason (process_madvise)."""
    looks = caller.sys_ptrace or caller.sys_admin or caller.perfmon
    if not looks and target.capabilities() & ~caller.capabilities():
        return ACCESS_NOT_PERMITTED
    if advice not in REMOTE:
        return ADVICE_NOT_REMOTE
    return YES if caller.sys_nice else NICE_NOT_PERMITTED


def set_anon_name(mm: Mm, start: int, length: int, name: str | None) -> int:
    """prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME): 0 or minus a reason."""
    if not mm.settings.anon_names:
        return -NAME_NOT_SUPPORTED
    if name is not None and (len(name) >= 80 or any(not " " <= c <= "~" or c in "\\`$[]" for c in name)):
        return -NAME_BAD
    end, refusal = _range_end(start, length)
    if refusal != YES or end == start:
        return -refusal
    mm.mmap_write_lock()
    refusal = _walk(mm, start, end, -1, name)
    mm.mmap_write_unlock()
    return -refusal


def _range_end(start: int, length: int) -> tuple[int, int]:
    if start & PAGE_MASK:
        return 0, UNALIGNED
    rounded = page_up(length)
    if not is_unsigned_long(rounded) or not is_unsigned_long(start + rounded):
        return 0, LENGTH_WRAPS
    return start + rounded, YES


def _advice_valid(mm: Mm, advice: int) -> int:
    if advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE):
        return YES if mm.settings.thp else ADVICE_NOT_SUPPORTED
    if advice in (MADV_MERGEABLE, MADV_UNMERGEABLE):
        return YES if mm.settings.ksm else ADVICE_NOT_SUPPORTED
    if advice in (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE):
        return YES if mm.semantics.guard_regions else ADVICE_UNKNOWN
    known = MADV_NORMAL <= advice <= MADV_DONTNEED or MADV_FREE <= advice <= MADV_DONTNEED_LOCKED
    return YES if known else ADVICE_UNKNOWN


def _walk(mm: Mm, start: int, end: int, advice: int, name: str | None) -> int:
    """Visit each VMA of the range (madvise_walk_vmas)."""
    result = YES
    at = start
    while at < end:
        vma = mm.find_vma(at)
        if vma is None:
            return NOT_MAPPED
        if vma.start > at:
            result = NOT_MAPPED
            at = vma.start
            continue
        upto: int = min(vma.end, within_word(end))
        if advice >= 0:
            vma, refusal = _madvise_vma(vma, at, upto, advice)
        else:
            vma, refusal = _name_vma(vma, at, upto, name)
        if refusal != YES:
            return refusal
        at = max(upto, vma.end)
    return result


def _name_vma(vma: Vma, start: int, end: int, name: str | None) -> tuple[Vma, int]:
    if vma.file is not None and vma.file.kind != "shm":
        return vma, NAME_ON_FILE
    if vma.name == name:
        return vma, YES
    modified, refusal = vma_modify_flags_name(vma, start, end, vma.flags, name)
    return modified, _as_eagain(refusal)


def _as_eagain(refusal: int) -> int:
    """madvise says EAGAIN where others say ENOMEM."""
    if refusal == MAP_COUNT_SPLIT:
        return MAP_COUNT_SPLIT_EAGAIN
    if refusal in (NO_MEMORY_VMA, NO_MEMORY_TREE, NO_MEMORY_POLICY, NO_MEMORY_ANON_VMA, FAULT_NO_MEMORY):
        return NO_MEMORY_EAGAIN
    return refusal


def _madvise_vma(vma: Vma, start: int, end: int, advice: int) -> tuple[Vma, int]:
    """One advice for one VMA: the VMA that then holds the range and YES, or a reason (madvise_vma_behavior)."""
    if not _may_discard(vma, advice):
        return vma, SEALED
    if advice in READS_ONLY:
        refusal = _may_advise(vma, start, advice)
        memory = memory_of(vma.mm)
        if refusal == YES and advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_REMOVE):
            _tell_removed(vma, start, end)
            if advice == MADV_REMOVE and vma.file is not None and vma.file.is_sealed():
                refusal = FILE_SEALED
        if refusal == YES and memory is not None:
            refusal = advise_pages(memory, vma, start, end, advice)
        return vma, refusal
    flags, refusal = _new_flags(vma, advice)
    if refusal != YES or flags == vma.flags:
        return vma, refusal
    if advice == MADV_UNMERGEABLE:
        refusal = unmerge(vma, start, end)
        if refusal != YES:
            return vma, _as_eagain(refusal)
    modified, refusal = vma_modify_flags(vma, start, end, flags)
    return modified, _as_eagain(refusal)


def unmerge(vma: Vma, start: int, end: int) -> int:
    """What KSM has merged in [start, end) is the process's own again: YES, or FAULT_NO_MEMORY (ksm_madvise)."""
    memory = memory_of(vma.mm)
    if memory is None or not vma.flags & VM_MERGEABLE or vma.anon_vma is None:
        return YES
    return unmerge_ksm_pages(memory, vma, start, end)


def _tell_removed(vma: Vma, start: int, end: int) -> None:
    """Pages are about to be thrown away: a userfaultfd may want to hear of it (userfaultfd_remove)."""
    if vma.flags & VM_HUGETLB and vma.file is not None:
        end &= -vma.file.huge_size
    if vma.uffd is not None and vma.uffd.has(UFFD_FEATURE_EVENT_REMOVE) and start < end:
        vma.uffd.tell(UffdMessage(UFFD_EVENT_REMOVE, start, end))


def _may_advise(vma: Vma, start: int, advice: int) -> int:
    """Whether an advice that concerns pages alone may be given: YES or a reason."""
    if advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_REMOVE):
        return _discard(vma, start, advice)
    if advice in (MADV_COLD, MADV_PAGEOUT):
        return ADVICE_SPECIAL_VMA if vma.flags & (VM_LOCKED | VM_PFNMAP | VM_HUGETLB) else YES
    if advice in (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE):
        return _guard(vma, advice)
    return YES


def _may_discard(vma: Vma, advice: int) -> bool:
    """Sealed anonymous memory that cannot be written to cannot be discarded either (can_madvise_modify)."""
    if not vma.flags & VM_SEALED or vma.flags & VM_WRITE or not vma.is_anonymous():
        return True
    return advice not in (
        MADV_FREE,
        MADV_DONTNEED,
        MADV_DONTNEED_LOCKED,
        MADV_REMOVE,
        MADV_DONTFORK,
        MADV_WIPEONFORK,
        MADV_GUARD_INSTALL,
    )


def _discard(vma: Vma, start: int, advice: int) -> int:
    """Whether the pages of a VMA may be thrown away; the VMA stays as it is, anon_vma included."""
    flags = vma.flags
    if advice == MADV_REMOVE:
        if flags & VM_LOCKED:
            return ADVICE_LOCKED
        if vma.file is None:
            return ADVICE_NOT_FILE
        if flags & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
            return ADVICE_NOT_WRITABLE
        return YES
    if flags & VM_HUGETLB:
        if advice == MADV_FREE:
            return ADVICE_SPECIAL_VMA
        size = vma.file.huge_size if vma.file is not None else 0x200000
        return ADVICE_SPECIAL_VMA if start & (size - 1) else YES
    if flags & VM_PFNMAP:
        return ADVICE_SPECIAL_VMA
    if flags & VM_LOCKED and advice != MADV_DONTNEED_LOCKED:
        return ADVICE_LOCKED
    if advice == MADV_FREE and not vma.is_anonymous():
        return ADVICE_NOT_ANONYMOUS
    return YES


def _guard(vma: Vma, advice: int) -> int:
    """Guard markers live in the page tables, so installing them gives anonymous memory an anon_vma."""
    if vma.flags & (VM_SPECIAL | VM_HUGETLB):
        return ADVICE_SPECIAL_VMA
    if advice == MADV_GUARD_REMOVE:
        return YES
    if vma.flags & VM_LOCKED:
        return ADVICE_LOCKED
    refusal = anon_vma_prepare(vma) if vma.is_anonymous() else YES
    if refusal == YES:
        # The whole VMA is marked, without a split; the mark stays when the guards go.
        set_flag_atomic(vma, VM_MAYBE_GUARD)
    return refusal


def _new_flags(vma: Vma, advice: int) -> tuple[int, int]:
    """The flags that an advice gives a VMA, and YES or a reason."""
    flags: int = vma.flags
    if advice == MADV_NORMAL:
        return flags & ~(VM_RAND_READ | VM_SEQ_READ), YES
    if advice == MADV_SEQUENTIAL:
        return flags & ~VM_RAND_READ | VM_SEQ_READ, YES
    if advice == MADV_RANDOM:
        return flags & ~VM_SEQ_READ | VM_RAND_READ, YES
    if advice == MADV_DONTFORK:
        return flags | VM_DONTCOPY, YES
    if advice == MADV_DOFORK:
        return (flags, ADVICE_SPECIAL_VMA) if flags & VM_IO else (flags & ~VM_DONTCOPY, YES)
    if advice == MADV_WIPEONFORK:
        if vma.file is not None or flags & VM_SHARED:
            return flags, ADVICE_NOT_ANONYMOUS
        return flags | VM_WIPEONFORK, YES
    if advice == MADV_KEEPONFORK:
        return (flags, ADVICE_SPECIAL_VMA) if flags & VM_DROPPABLE else (flags & ~VM_WIPEONFORK, YES)
    if advice == MADV_DONTDUMP:
        return flags | VM_DONTDUMP, YES
    if advice == MADV_DODUMP:
        if (not flags & VM_HUGETLB and flags & VM_SPECIAL) or flags & VM_DROPPABLE:
            return flags, ADVICE_SPECIAL_VMA
        return flags & ~VM_DONTDUMP, YES
    if advice == MADV_MERGEABLE:
        return (flags | VM_MERGEABLE if ksm_compatible(flags) else flags), YES
    if advice == MADV_UNMERGEABLE:
        return flags & ~VM_MERGEABLE, YES
    if advice == MADV_HUGEPAGE:
        return flags & ~VM_NOHUGEPAGE | VM_HUGEPAGE, YES
    if advice == MADV_NOHUGEPAGE:
        return flags & ~VM_HUGEPAGE | VM_NOHUGEPAGE, YES
    return flags, ADVICE_UNKNOWN
