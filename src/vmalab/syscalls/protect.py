"""mprotect, protection keys and mseal."""

from __future__ import annotations

from mypy_extensions import i64

from vmalab.addr import PAGE_MASK, PAGE_SHIFT, ULONG_END, is_unsigned_long, page_up, within_word
from vmalab.flags import (
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_MAYEXEC,
    VM_NORESERVE,
    VM_PKEY_MASK,
    VM_PKEY_SHIFT,
    VM_SEALED,
    VM_SHARED,
    VM_WRITE,
)
from vmalab.pages.port import memory_of
from vmalab.pages.protect import change_protection
from vmalab.reason import (
    LENGTH_WRAPS,
    NOT_MAPPED,
    PKEY_NO_PROCESSOR,
    PKEY_NONE,
    PKEY_NOT_ALLOCATED,
    PROT_GROWS_BOTH,
    PROT_NOT_GROWING,
    PROT_NOT_PERMITTED,
    PROT_UNKNOWN,
    RANGE_WRAPS,
    SEAL_FLAGS,
    SEALED,
    UNALIGNED,
    UNKNOWN_FLAGS,
    YES,
)
from vmalab.syscalls.map import calc_vm_prot_bits, execute_only_pkey, take_pkey
from vmalab.syscalls.populate import populate_range
from vmalab.vma.area import Vma
from vmalab.vma.map import map_deny_write_exec
from vmalab.vma.modify import vma_modify_flags
from vmalab.vma.space import Mm


def mprotect(mm: Mm, start: int, length: int, prot: int, pkey: int = -1) -> int:
    """mprotect and pkey_mprotect (pkey -1: none given): 0 or minus a reason.  VMAs before a refusal stay changed."""
    grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    prot -= grows
    if grows == PROT_GROWSDOWN | PROT_GROWSUP:
        return -PROT_GROWS_BOTH
    if start & PAGE_MASK:
        return -UNALIGNED
    if length == 0:
        return 0
    end = start + page_up(length)
    if not is_unsigned_long(end):
        return -RANGE_WRAPS
    if prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM):
        return -PROT_UNKNOWN
    mm.mmap_write_lock()
    result = _protect_range(mm, start, end, prot, grows, pkey)
    mm.mmap_write_unlock()
    return result


def _protect_range(mm: Mm, start: int, end: int, prot: int, grows: int, pkey: int) -> int:
    if pkey != -1 and not mm_pkey_is_allocated(mm, pkey):
        return -PKEY_NOT_ALLOCATED
    end = within_word(end)
    vma = mm.find_vma(start)
    if vma is None or vma.start >= end:
        return -NOT_MAPPED
    if grows & PROT_GROWSDOWN:
        start = vma.start
        if not vma.flags & VM_GROWSDOWN:
            return -PROT_NOT_GROWING
    elif vma.start > start:
        return -NOT_MAPPED
    elif grows & PROT_GROWSUP:
        return -PROT_NOT_GROWING
    return _protect_vmas(mm, vma, start, end, prot, pkey)


def _protect_vmas(mm: Mm, first: Vma, start: i64, end: i64, prot: int, pkey: int) -> i64:
    at = start
    vma = first
    while True:
        upto = vma.end if vma.end < end else end
        wanted = prot
        if mm.read_implies_exec and prot & PROT_READ and vma.flags & VM_MAYEXEC:
            wanted |= PROT_EXEC
        key: i64 = 0
        if mm.settings.pkeys:
            key = pkey
            if pkey == -1:
                key = _pkey_for(vma, wanted)
        flags = calc_vm_prot_bits(wanted, key) | vma.flags & ~(VM_ACCESS | VM_PKEY_MASK)
        # Each access bit has its MAY bit four places up.
        if flags & ~(flags >> 4) & VM_ACCESS:
            return -PROT_NOT_PERMITTED
        refusal = map_deny_write_exec(mm, vma.flags, flags)
        if refusal == YES:
            vma, refusal = mprotect_fixup(vma, at, upto, flags)
        if refusal != YES:
            return -refusal
        at = vma.end if vma.start <= at and vma.end > upto else upto
        if at >= end:
            return 0
        above = mm.find_vma(at)
        if above is None or above.start > at:
            return -NOT_MAPPED
        vma = above


def _pkey_for(vma: Vma, prot: int) -> i64:
    """The protection key that a VMA gets with new permissions, if none was asked for (arch_override_mprotect_pkey).

    Memory that can be executed only has a key of its own, and loses it with that.
    """
    mm = vma.mm
    if prot == PROT_EXEC:
        only = execute_only_pkey(mm)
        if only > 0:
            return only
    key = (vma.flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT
    if vma.flags & VM_ACCESS == VM_EXEC and key == mm.execute_only_pkey:
        return 0
    return key


def mprotect_fixup(vma: Vma, start: i64, end: i64, flags: i64) -> tuple[Vma, i64]:
    """Give [start, end) of a VMA new permissions: the VMA that then holds it and YES, or a reason.

    Private memory that becomes writable is committed.  It is given back only if anonymous memory becomes read-only
    before it was ever written to: so a VMA keeps VM_ACCOUNT, and with it a difference from its neighbours.
    """
    mm = vma.mm
    old = vma.flags
    if old & VM_SEALED:
        return vma, SEALED
    if flags == old:
        return vma, YES
    pages = (end - start) >> PAGE_SHIFT
    charged: i64 = 0
    if flags & VM_WRITE:
        refusal = mm.may_expand_vm(flags, pages)
        if refusal != YES and mm.may_expand_vm(old, pages) == YES:
            return vma, refusal
        if not old & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE):
            refusal = mm.charge(pages)
            if refusal != YES:
                return vma, refusal
            charged = pages
            flags |= VM_ACCOUNT
    elif old & VM_ACCOUNT and vma.is_anonymous() and vma.anon_vma is None:
        flags &= ~VM_ACCOUNT
    modified, refusal = vma_modify_flags(vma, start, end, flags)
    if refusal != YES:
        mm.commit.uncharge(charged)
        return modified, refusal
    if not mm.quiet:
        memory = memory_of(mm)
        if memory is not None:
            change_protection(memory, modified, start, end)
    if old & VM_ACCOUNT and not flags & VM_ACCOUNT:
        mm.commit.uncharge(pages)
    if old & (VM_WRITE | VM_SHARED | VM_LOCKED) == VM_LOCKED and flags & VM_WRITE:
        # A locked private mapping that becomes writable gets its own pages at once.
        populate_range(mm, start, end)
    mm.vm_stat_account(old, -pages)
    mm.vm_stat_account(flags, pages)
    return modified, YES


def mm_pkey_is_allocated(mm: Mm, pkey: int) -> bool:
    """Whether a key can be named in a call: the one of memory that can be executed only cannot."""
    return 0 <= pkey < 16 and mm.pkeys >> pkey & 1 != 0 and pkey != mm.execute_only_pkey


def pkey_alloc(mm: Mm, flags: int, rights: int) -> int:
    """pkey_alloc: the key, or minus a reason."""
    if flags or rights & ~3:
        return -UNKNOWN_FLAGS
    if mm.settings.pkeys_unusable and not mm.pkeys:
        # Key 0 is taken, refused by the processor, and cannot be given back.
        mm.pkeys = 1
        return -PKEY_NO_PROCESSOR
    if not mm.settings.pkeys:
        return -PKEY_NONE
    key = take_pkey(mm)
    return key if key >= 0 else -PKEY_NONE


def pkey_free(mm: Mm, pkey: int) -> int:
    """pkey_free: 0 or minus a reason.  VMAs keep the key."""
    if not mm_pkey_is_allocated(mm, pkey):
        return -PKEY_NOT_ALLOCATED
    mm.pkeys &= ~(1 << pkey)
    return 0


def mseal(mm: Mm, start: int, length: int, flags: int) -> int:
    """mseal: 0 or minus a reason; the whole range must be mapped."""
    if flags:
        return -SEAL_FLAGS
    if start & PAGE_MASK:
        return -UNALIGNED
    end = start + page_up(length)
    if end >= ULONG_END:
        return -LENGTH_WRAPS
    if end == start:
        return 0
    mm.mmap_write_lock()
    refusal = _seal_range(mm, start, end)
    mm.mmap_write_unlock()
    return -refusal


def _seal_range(mm: Mm, start: int, end: int) -> int:
    at = start
    while at < end:
        vma = mm.vma_lookup(at)
        if vma is None:
            return NOT_MAPPED
        at = vma.end
    at = start
    while at < end:
        vma = mm.vma_lookup(at)
        assert vma is not None
        upto: int = min(vma.end, end)
        if not vma.flags & VM_SEALED:
            vma, refusal = vma_modify_flags(vma, at, upto, vma.flags | VM_SEALED)
            if refusal != YES:
                return refusal
        at = max(upto, vma.end)
    return YES
