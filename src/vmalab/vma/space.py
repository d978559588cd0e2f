"""Mm: the tree of VMAs of one address space, its layout, limits and counters."""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, within_word
from vmalab.flags import (
    CAP_CHECKPOINT_RESTORE,
    CAP_IPC_LOCK,
    CAP_IPC_OWNER,
    CAP_PERFMON,
    CAP_SYS_ADMIN,
    CAP_SYS_NICE,
    CAP_SYS_PTRACE,
    CAP_SYS_RAWIO,
    CAP_SYS_RESOURCE,
    RLIM_INFINITY,
    VM_GROWSDOWN,
    VM_LOCKED,
)
from vmalab.reason import LIMIT_AS, LIMIT_DATA, LIMIT_MEMLOCK_EAGAIN, OVERCOMMIT, YES
from vmalab.semantics import Semantics
from vmalab.vma.account import DATA_VM, EXEC_VM, STACK_VM, counter_of
from vmalab.vma.anon import unlink_anon_vmas
from vmalab.vma.area import Vma
from vmalab.vma.maple import MapleTree
from vmalab.vma.observer import Observer
from vmalab.vma.port import Port
from vmalab.vma.validate import dump, violations

OVERCOMMIT_GUESS: Final = 0
OVERCOMMIT_ALWAYS: Final = 1
OVERCOMMIT_NEVER: Final = 2

UNLOCKED: Final = 0
READ_LOCKED: Final = 1
WRITE_LOCKED: Final = 2

UNMAPPED_BASE: Final = 0x2AAAAAAAB000
"""A third of the address space: where a search upwards starts (TASK_UNMAPPED_BASE)."""


@final
class Commit:
    """How much memory the machine has promised; sizes in pages (mm/util.c).  Shared by all address spaces."""

    __slots__ = ("admin_reserve", "committed", "kbytes", "lost", "mode", "ram", "ratio", "shm", "swap", "user_reserve")

    def __init__(self, ram: i64, swap: i64 = 0, mode: i64 = OVERCOMMIT_GUESS) -> None:
        self.ram: i64 = ram
        self.swap: i64 = swap
        self.mode: i64 = mode
        self.ratio: i64 = 50
        self.kbytes: i64 = 0
        self.admin_reserve: i64 = 2048
        self.user_reserve: i64 = 32768
        self.committed: i64 = 0
        self.lost: i64 = 0
        """Committed pages that no VMA stands for, because the kernel loses count; negative: given back twice."""
        self.shm: int = 0
        """Committed pages of segments of System V shared memory, attached or not."""

    def limit(self) -> i64:
        """The most that may be committed in mode 2 (vm_commit_limit)."""
        allowed = self.kbytes >> (PAGE_SHIFT - 10) if self.kbytes else self.ram * self.ratio // 100
        return allowed + self.swap

    def charge(self, pages: i64, total_vm: i64, is_admin: bool) -> i64:
        """Commit pages for an address space of total_vm pages: YES or OVERCOMMIT (__vm_enough_memory)."""
        after = self.committed + pages
        if self.mode == OVERCOMMIT_GUESS:
            if pages > self.ram + self.swap:
                return OVERCOMMIT
        elif self.mode == OVERCOMMIT_NEVER:
            allowed = self.limit() - min(total_vm // 32, self.user_reserve)
            if not is_admin:
                allowed -= self.admin_reserve
            if after >= allowed:
                return OVERCOMMIT
        self.committed = after
        return YES

    def uncharge(self, pages: i64) -> None:
        """Give committed pages back (vm_unacct_memory)."""
        self.committed -= pages


@final
class Limits:
    """Soft resource limits in bytes, and the capabilities that lift them."""

    __slots__ = (
        "_as_bytes",
        "_data",
        "as_pages",
        "checkpoint_restore",
        "data_pages",
        "hugetlb_shm",
        "ipc_lock",
        "ipc_owner",
        "memlock",
        "perfmon",
        "stack",
        "sys_admin",
        "sys_nice",
        "sys_ptrace",
        "sys_rawio",
        "sys_resource",
    )

    def __init__(self) -> None:
        self._as_bytes: int = RLIM_INFINITY
        self._data: int = RLIM_INFINITY
        self.as_pages: int = RLIM_INFINITY >> PAGE_SHIFT
        """RLIMIT_AS in whole pages, and RLIMIT_DATA: unlike infinity in bytes, numbers of one machine word."""
        self.data_pages: int = RLIM_INFINITY >> PAGE_SHIFT
        self.stack: int = 8 << 20
        self.memlock: int = 8 << 20
        self.ipc_lock: bool = False
        self.ipc_owner: bool = False
        self.hugetlb_shm: bool = True
        """A member of the group that may make segments of huge pages (vm.hugetlb_shm_group: root's, if unset)."""
        self.sys_rawio: bool = False
        self.sys_admin: bool = False
        self.sys_ptrace: bool = True
        self.sys_nice: bool = False
        self.sys_resource: bool = False
        self.perfmon: bool = False
        self.checkpoint_restore: bool = False

    @property
    def as_bytes(self) -> int:
        """RLIMIT_AS."""
        return self._as_bytes

    @as_bytes.setter
    def as_bytes(self, value: int) -> None:
        self._as_bytes = value
        self.as_pages = value >> PAGE_SHIFT

    @property
    def data(self) -> int:
        """RLIMIT_DATA."""
        return self._data

    @data.setter
    def data(self, value: int) -> None:
        self._data = value
        self.data_pages = value >> PAGE_SHIFT

    def copy(self) -> Limits:
        """The same limits, to be changed on their own."""
        new = Limits()
        new.as_bytes = self.as_bytes
        new.data = self.data
        new.stack = self.stack
        new.memlock = self.memlock
        new.hugetlb_shm = self.hugetlb_shm
        new.take_capabilities(self.capabilities())
        return new

    def capabilities(self) -> int:
        """The capabilities as the bits of the kernel's set."""
        return (
            self.ipc_lock << CAP_IPC_LOCK
            | self.ipc_owner << CAP_IPC_OWNER
            | self.sys_rawio << CAP_SYS_RAWIO
            | self.sys_ptrace << CAP_SYS_PTRACE
            | self.sys_admin << CAP_SYS_ADMIN
            | self.sys_nice << CAP_SYS_NICE
            | self.sys_resource << CAP_SYS_RESOURCE
            | self.perfmon << CAP_PERFMON
            | self.checkpoint_restore << CAP_CHECKPOINT_RESTORE
        )

    def take_capabilities(self, effective: int) -> None:
        """Have those capabilities alone whose bits are set; others than memory calls ask for are passed over."""
        self.ipc_lock = effective >> CAP_IPC_LOCK & 1 != 0
        self.ipc_owner = effective >> CAP_IPC_OWNER & 1 != 0
        self.sys_rawio = effective >> CAP_SYS_RAWIO & 1 != 0
        self.sys_ptrace = effective >> CAP_SYS_PTRACE & 1 != 0
        self.sys_admin = effective >> CAP_SYS_ADMIN & 1 != 0
        self.sys_nice = effective >> CAP_SYS_NICE & 1 != 0
        self.sys_resource = effective >> CAP_SYS_RESOURCE & 1 != 0
        self.perfmon = effective >> CAP_PERFMON & 1 != 0
        self.checkpoint_restore = effective >> CAP_CHECKPOINT_RESTORE & 1 != 0


@final
class Settings:
    """What belongs to the machine rather than to one address space."""

    __slots__ = (
        "anon_names",
        "dac_min_addr",
        "hugepages",
        "ksm",
        "max_map_count",
        "min_addr",
        "numa_nodes",
        "pkeys",
        "pkeys_unusable",
        "sanitise",
        "soft_dirty",
        "stack_guard_gap",
        "thp",
        "thp_shmem",
    )

    def __init__(self) -> None:
        self.max_map_count: int = 65530
        self.min_addr: int = 65536
        """mmap_min_addr in bytes, or the security module's if that is higher: nothing below it is chosen."""
        self.dac_min_addr: int = 65536
        """What lies below it can be mapped with CAP_SYS_RAWIO only, in bytes (the sysctl vm.mmap_min_addr)."""
        self.stack_guard_gap: int = 256 * PAGE_SIZE
        """Bytes."""
        self.thp: bool = True
        """Whether the kernel has transparent huge pages at all."""
        self.thp_shmem: bool = False
        """Whether shared memory is aligned to huge pages."""
        self.hugepages: int = 0
        """Huge pages of 2 MiB in the pool."""
        self.numa_nodes: int = 1
        self.soft_dirty: i64 = 0
        """VM_SOFTDIRTY where the kernel tracks soft-dirty pages, else 0."""
        self.anon_names: bool = False
        self.pkeys: bool = False
        """There are protection keys: the kernel is built for them (CONFIG_ARCH_HAS_PKEYS), the processor has them."""
        self.pkeys_unusable: bool = False
        """The kernel is built for protection keys, and the processor has none."""
        self.ksm: bool = True
        self.sanitise: bool = False
        """Freed VMAs are poisoned, and the core asserts the locks that the kernel asserts."""


@final
class Mm:
    """One address space.  Counters are in pages, addresses in bytes."""

    def __init__(self, settings: Settings, commit: Commit, limits: Limits, semantics: Semantics, port: Port) -> None:
        self.settings: Settings = settings
        self.commit: Commit = commit
        self.limits: Limits = limits
        self.semantics: Semantics = semantics
        self.port: Port = port
        self.quiet: bool = type(port) is Port
        """The port does nothing and never fails, so it need not be asked."""
        self.observer: Observer = Observer()
        self.tree: MapleTree[Vma] = MapleTree()
        self.task_size: int = TASK_SIZE
        self.mmap_base: int = 0x7FFFF7FFF000
        self.legacy_base: int = UNMAPPED_BASE
        self.topdown: bool = True
        self.start_brk: int = 0
        self.brk: int = 0
        self.start_code: int = 0
        self.end_code: int = 0
        self.start_data: int = 0
        self.end_data: int = 0
        self.start_stack: int = 0
        self.arg_start: int = 0
        """Where the arguments of the program are, and below its environment; 0 where nobody has told."""
        self.arg_end: int = 0
        self.env_start: int = 0
        self.env_end: int = 0
        self.def_flags: int = 0
        """Flags of every new VMA: VM_LOCKED after mlockall(MCL_FUTURE)."""
        self.merge_any: bool = False
        """New VMAs are mergeable by KSM (PR_SET_MEMORY_MERGE)."""
        self.mdwe: bool = False
        """Memory-deny-write-execute is on (PR_SET_MDWE)."""
        self.mdwe_inherits: bool = True
        """A child has it as well (without PR_MDWE_NO_INHERIT)."""
        self.read_implies_exec: bool = False
        """The personality of the process that makes a call: what can be read can be executed as well."""
        self.thp_disable: int = 0
        """What PR_GET_THP_DISABLE tells."""
        self.pkeys: int = 0 if settings.pkeys_unusable else 1
        """The allocated protection keys, as bits.  Key 0 is, until somebody frees it."""
        self.execute_only_pkey: int = 0 if settings.pkeys_unusable else -1
        """The protection key of memory that can be executed only; -1 until such memory is asked for.

        Nobody sets it, nor allocates key 0, where the processor has no keys (init_new_context): so it is 0 there, and
        key 0 cannot be named.
        """
        self.faults_observed: bool = False
        """Somebody tells which pages are there: populating then assumes nothing behind pages that may be missing."""
        self.map_count: i64 = 0
        self.total_vm: i64 = 0
        self.data_vm: i64 = 0
        self.exec_vm: i64 = 0
        self.stack_vm: i64 = 0
        self.locked_vm: i64 = 0
        self.lost_locked: i64 = 0
        """Pages that locked_vm counts though their VMA is not locked any more: the kernel loses count of them."""
        self.pinned_vm: i64 = 0
        self.hiwater_map_count: i64 = 0
        self.doomed: bool = False
        """An execve has failed half-way: the counters are off, and the process can only exit."""
        self.mmap_lock: i64 = UNLOCKED

    def outlive(self, old: Mm) -> None:
        """Take over what lasts through execve, and through fork (MMF_INIT_MASK): settings of prctl."""
        self.mdwe = old.mdwe and old.mdwe_inherits
        self.merge_any = old.merge_any
        self.thp_disable = old.thp_disable

    def inherit(self, parent: Mm) -> None:
        """Take the layout and the lasting settings of the address space that this one is forked from."""
        self.task_size = parent.task_size
        self.mmap_base = parent.mmap_base
        self.legacy_base = parent.legacy_base
        self.topdown = parent.topdown
        self.start_brk = parent.start_brk
        self.brk = parent.brk
        self.start_code = parent.start_code
        self.end_code = parent.end_code
        self.start_data = parent.start_data
        self.end_data = parent.end_data
        self.start_stack = parent.start_stack
        self.arg_start = parent.arg_start
        self.arg_end = parent.arg_end
        self.env_start = parent.env_start
        self.env_end = parent.env_end
        self.outlive(parent)
        self.pkeys = parent.pkeys
        self.execute_only_pkey = parent.execute_only_pkey
        self.observer = parent.observer
        self.faults_observed = parent.faults_observed

    # -- the lock ---------------------------------------------------------------------------------

    def mmap_write_lock(self) -> None:
        """Take the lock of the address space for a change.  Raises AssertionError if it is held: a deadlock."""
        assert self.mmap_lock == UNLOCKED, "mmap_lock is held already"
        self.mmap_lock = WRITE_LOCKED

    def mmap_write_unlock(self) -> None:
        """Let go of the lock after a change."""
        assert self.mmap_lock == WRITE_LOCKED, "mmap_lock is not held for writing"
        self.mmap_lock = UNLOCKED

    def mmap_read_lock(self) -> None:
        """Take the lock for faults and lookups.  Raises AssertionError if it is held: a deadlock."""
        assert self.mmap_lock == UNLOCKED, "mmap_lock is held already"
        self.mmap_lock = READ_LOCKED

    def mmap_read_unlock(self) -> None:
        """Let go of the lock after a lookup."""
        assert self.mmap_lock == READ_LOCKED, "mmap_lock is not held for reading"
        self.mmap_lock = UNLOCKED

    def assert_write_locked(self) -> None:
        """Raise AssertionError unless the lock is held for writing (mmap_assert_write_locked); if sanitisers are on."""
        if self.settings.sanitise:
            assert self.mmap_lock == WRITE_LOCKED, "mmap_lock is not held for writing"

    def assert_locked(self) -> None:
        """Raise AssertionError unless the lock is held (mmap_assert_locked); if sanitisers are on."""
        if self.settings.sanitise:
            assert self.mmap_lock != UNLOCKED, "mmap_lock is not held"

    def validate(self) -> None:
        """Check tree, order, counters and chains.  Raises AssertionError with all that is wrong and the whole state."""
        found = violations(self)
        if found:
            raise AssertionError("\n".join(["the address space is broken:", *found, dump(self)]))

    # -- looking ----------------------------------------------------------------------------------

    def vmas(self) -> list[Vma]:
        """All VMAs in the order of their addresses."""
        return self.tree.values()

    def vma_lookup(self, addr: int) -> Vma | None:
        """The VMA that holds addr."""
        return self.tree.load(addr)

    def find_vma(self, addr: int) -> Vma | None:
        """The first VMA that ends above addr."""
        return self.tree.find(addr)

    def find_vma_prev(self, addr: int) -> Vma | None:
        """The last VMA that starts below addr."""
        return self.tree.find_before(addr)

    def find_vma_intersection(self, start: int, end: int) -> Vma | None:
        """The first VMA that overlaps [start, end)."""
        vma = self.tree.find(start)
        if vma is None or vma.start >= within_word(end):
            return None
        return vma

    def start_gap(self, vma: Vma) -> i64:
        """Where the space that a VMA claims starts: below a stack lies its guard gap (vm_start_gap)."""
        if not vma.flags & VM_GROWSDOWN:
            return vma.start
        return max(vma.start - self.settings.stack_guard_gap, 0)

    # -- the tree -----------------------------------------------------------------------------------

    def link(self, vma: Vma) -> None:
        """Put a new VMA into the tree and count it (vma_link)."""
        self.assert_write_locked()
        assert not vma.freed, f"a VMA that {vma.freed} freed is linked"
        inserted = self.tree.insert(vma.start, vma.end, vma)
        assert inserted, f"{vma!r} overlaps what is mapped"
        self.count_maps(1)

    def count_maps(self, delta: i64) -> None:
        """The number of VMAs changes."""
        self.map_count += delta
        if self.map_count > self.hiwater_map_count:
            self.hiwater_map_count = self.map_count

    def set_range(self, vma: Vma, start: i64, end: i64, pgoff: i64) -> None:
        """Give a VMA of the tree new bounds (vma_set_range); what they newly cover must be empty."""
        self.assert_write_locked()
        assert not vma.freed, f"a VMA that {vma.freed} freed is resized"
        old_start = vma.start
        old_end = vma.end
        self.tree.set_range(old_start, start, end)
        vma.start = start
        vma.end = end
        vma.pgoff = pgoff
        if not self.quiet:
            self.port.resized(vma, old_start, old_end)

    def move_boundary(self, below: Vma, above: Vma, at: i64) -> None:
        """Move the address at which two VMAs touch: one takes from the other (vma_set_range of both)."""
        self.assert_write_locked()
        assert not below.freed and not above.freed, "a VMA that was freed is resized"
        old = above.start
        self.tree.move_boundary(old, at)
        below.end = at
        above.pgoff += (at - old) >> PAGE_SHIFT
        above.start = at
        if not self.quiet:
            self.port.resized(below, below.start, old)
            self.port.resized(above, old, above.end)

    def absorb(self, vma: Vma, start: i64, end: i64, pgoff: i64, gone: Vma) -> None:
        """Give a VMA of the tree new bounds, and let go of another that lies within them."""
        self.assert_write_locked()
        assert not vma.freed, f"a VMA that {vma.freed} freed is resized"
        old_start = vma.start
        old_end = vma.end
        self.tree.absorb(old_start, start, end)
        vma.start = start
        vma.end = end
        vma.pgoff = pgoff
        self.drop(gone)
        if not self.quiet:
            self.port.resized(vma, old_start, old_end)

    def drop(self, vma: Vma) -> None:
        """Let go of a VMA that a merge has swallowed."""
        self.map_count -= 1
        self.free(vma, "commit_merge")

    def split(self, vma: Vma, new: Vma, below: bool) -> None:
        """Put the part of a VMA that is to be a VMA of its own into the tree, below or above the rest."""
        self.assert_write_locked()
        assert not vma.freed, f"a VMA that {vma.freed} freed is split"
        old_start = vma.start
        old_end = vma.end
        self.tree.split(new.end if below else new.start, new, below)
        if below:
            vma.pgoff += (new.end - old_start) >> PAGE_SHIFT
            vma.start = new.end
        else:
            vma.end = new.start
        self.count_maps(1)
        if not self.quiet:
            self.port.resized(vma, old_start, old_end)

    def vma_open(self, vma: Vma) -> None:
        """The driver of a VMA that has one learns that it is a copy or a part of an older one (vm_ops->open)."""
        if vma.file is not None and vma.file.segment is not None:
            refusal = vma.file.segment.open()
            assert refusal == YES, "a segment is gone that a VMA has"
        self.port.opened(vma)

    def vma_close(self, vma: Vma) -> None:
        """The driver of a VMA that has one learns that it goes (vma_close); a segment may go with it."""
        if vma.file is not None and vma.file.segment is not None:
            vma.file.segment.close()
        self.port.closed(vma)

    def free(self, vma: Vma, where: str) -> None:
        """Give back what a VMA holds that is no longer in the tree (remove_vma)."""
        assert not vma.freed, f"{where} frees a VMA that {vma.freed} freed"
        if vma.anon_vma is not None or vma.chain:
            unlink_anon_vmas(vma)
        file = vma.file
        if file is not None:
            file.refs -= 1
            file.writers -= vma.is_shared_writer()
            if file.refs == 0 and file.charged:
                self.commit.uncharge(file.charged)
                file.charged = 0
        policy = vma.policy
        if policy is not None:
            policy.refs -= 1
        vma.freed = where
        if self.settings.sanitise:
            vma.poison(where)

    # -- accounting ---------------------------------------------------------------------------------

    def vm_stat_account(self, flags: i64, npages: i64) -> None:
        """Count npages (which may be negative) of memory with these flags (vm_stat_account)."""
        self.total_vm += npages
        counter = counter_of(flags)
        if counter == DATA_VM:
            self.data_vm += npages
        elif counter == EXEC_VM:
            self.exec_vm += npages
        elif counter == STACK_VM:
            self.stack_vm += npages

    def may_expand_vm(self, flags: i64, npages: i64) -> i64:
        """YES, LIMIT_AS or LIMIT_DATA for npages more with these flags (may_expand_vm)."""
        if self.total_vm + npages > self.limits.as_pages:
            return LIMIT_AS
        if self.data_vm + npages > self.limits.data_pages and counter_of(flags) == DATA_VM:
            return LIMIT_DATA
        return YES

    def charge(self, npages: i64) -> i64:
        """Commit memory: YES or OVERCOMMIT (security_vm_enough_memory_mm)."""
        return self.commit.charge(npages, self.total_vm, self.limits.sys_admin)

    def mlock_future_ok(self, flags: i64, length: int) -> i64:
        """Whether length bytes more may be locked as they are mapped: YES or LIMIT_MEMLOCK_EAGAIN."""
        if not flags & VM_LOCKED or self.limits.ipc_lock:
            return YES
        if self.locked_vm + (length >> PAGE_SHIFT) > self.limits.memlock >> PAGE_SHIFT:
            return LIMIT_MEMLOCK_EAGAIN
        return YES
