"""From the records of a trace to the model: machines, files, and address spaces as a dump shows them."""

from __future__ import annotations

from typing import Final

from vmalab.addr import PAGE_SHIFT, PAGE_SIZE
from vmalab.flags import (
    ADDR_COMPAT_LAYOUT,
    CAPABILITIES,
    RLIM_INFINITY,
    VM_ACCOUNT,
    VM_LOCKED,
    VM_PKEY_SHIFT,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_UFFD,
    vm_flags_from_text,
)
from vmalab.machine import Machine, Process
from vmalab.pages.folio import PMD_ORDER, PUD_ORDER
from vmalab.pages.memory import ALWAYS, MADVISE, NEVER, SHMEM_MODES, Memory, PageSettings
from vmalab.semantics import Semantics
from vmalab.trace import records
from vmalab.vma.anon import anon_vma_found, anon_vma_prepare, anon_vma_restore
from vmalab.vma.area import (
    DEVICE_OPS,
    FILE_OPS,
    HUGETLB_OPS,
    SECRET_OPS,
    SHM_HUGE_OPS,
    SHM_OPS,
    SHMEM_OPS,
    SPECIAL_OPS,
    AnonVma,
    File,
    Userfaultfd,
    Vma,
    VmaOps,
)
from vmalab.vma.space import UNMAPPED_BASE, Limits, Mm, Settings

HUGE_ALIGNED_FS: Final = frozenset({"ext2", "ext4", "xfs", "bcachefs", "btrfs"})
"""Filesystems that align large mappings to huge pages.  ext4 is confirmed on a live kernel, the others are not."""
CLOSE_HOOK_FS: Final = frozenset({"fuse", "9p", "ceph", "nfs"})
"""Filesystems whose mappings have a close hook.  Not confirmed on a live kernel."""
FUSE_OPS: Final = VmaOps("file with a close hook", has_close=True)


def load_machine(machine: records.Machine, semantics: Semantics | None = None, memory: Memory | None = None) -> Machine:
    """A Machine with the settings of the one that a trace was recorded on; with pages if it is given a memory."""
    settings = Settings()
    settings.max_map_count = machine.max_map_count
    settings.min_addr = machine.mmap_min_addr
    given = machine.dac_mmap_min_addr
    settings.dac_min_addr = machine.mmap_min_addr if given is None else given
    settings.stack_guard_gap = machine.stack_guard_gap * PAGE_SIZE
    settings.thp = machine.thp_enabled != "none"
    settings.thp_shmem = machine.thp_shmem not in ("never", "deny", "none")
    settings.hugepages = machine.hugepages.get("2048", 0)
    settings.numa_nodes = machine.numa_nodes
    settings.soft_dirty = VM_SOFTDIRTY if machine.soft_dirty else 0
    settings.anon_names = machine.anon_names
    settings.pkeys = machine.pkeys
    settings.pkeys_unusable = machine.pkeys_unusable
    ram = machine.ram_pages or 4 << 20
    made = Machine(semantics, ram_pages=ram, swap_pages=machine.swap_pages, settings=settings, memory=memory)
    # Who else has made segments of shared memory, and attached them, is not in a trace.
    made.ipc.whole = False
    made.commit.mode = machine.overcommit_memory
    made.commit.ratio = machine.overcommit_ratio
    made.commit.kbytes = machine.overcommit_kbytes
    return made


def load_memory(machine: records.Machine) -> Memory:
    """An empty memory with the settings of the machine that a trace was recorded on."""
    settings = PageSettings()
    settings.thp = {PMD_ORDER: {"always": ALWAYS, "madvise": MADVISE}.get(machine.thp_enabled, NEVER)}
    settings.shmem = SHMEM_MODES.get(machine.thp_shmem, NEVER)
    settings.swap_pages = machine.swap_pages
    settings.hugetlb = {order: machine.hugepages.get(str(4 << order), 0) for order in (PMD_ORDER, PUD_ORDER)}
    return Memory(settings)


def load_limits(exec_: records.Exec) -> Limits:
    """The limits and capabilities of a process."""
    limits = Limits()
    given = exec_.limits
    limits.as_bytes = RLIM_INFINITY if given.as_ is None else given.as_
    limits.data = RLIM_INFINITY if given.data is None else given.data
    limits.stack = RLIM_INFINITY if given.stack is None else given.stack
    limits.memlock = RLIM_INFINITY if given.memlock is None else given.memlock
    limits.take_capabilities(sum([1 << CAPABILITIES[name] for name in exec_.caps]))
    return limits


def load_file(record: records.File) -> File:
    """The open file description that a File record tells of."""
    ops: VmaOps | None = FILE_OPS
    private: VmaOps | None = FILE_OPS
    kind = record.kind
    if record.path.startswith(("/secretmem", "secretmem")):
        ops = private = SECRET_OPS
    elif record.path == "/dev/zero":
        # A private mapping of /dev/zero is anonymous memory that holds a file.
        ops, private, kind = SHMEM_OPS, None, "zero"
    elif kind == "hugetlb":
        ops = private = SHM_HUGE_OPS if record.path.startswith("/SYSV") else HUGETLB_OPS
    elif kind == "shm":
        ops = private = SHM_OPS
    elif kind == "memfd" or record.fs == "tmpfs":
        ops = private = SHMEM_OPS
        kind = "memfd"
    elif kind in ("device", "other"):
        ops = private = DEVICE_OPS
    elif record.fs in CLOSE_HOOK_FS:
        ops = private = FUSE_OPS
    driver = vm_flags_from_text(record.driver_flags) if record.driver_flags else 0
    return File(
        record.path,
        record.dev,
        record.ino,
        kind=kind,
        fs=record.fs,
        readable=record.readable,
        writable=record.writable,
        noexec=record.noexec,
        ops=ops,
        private_ops=private,
        driver_flags=driver,
        thp_aligned=record.fs in HUGE_ALIGNED_FS or kind == "zero",
        huge_size=0x200000 if kind == "hugetlb" else 0,
    )


def load_exec(process: Process, record: records.Exec) -> None:
    """Fill the empty address space of a process with what a dump shows, and set its layout and limits."""
    mm = process.mm
    process.limits = load_limits(record)
    process.personality = record.personality
    mm.limits = process.limits
    mm.topdown = record.topdown and not record.personality & ADDR_COMPAT_LAYOUT
    if record.mmap_base is not None:
        mm.mmap_base = record.mmap_base
        mm.legacy_base = UNMAPPED_BASE if mm.topdown else record.mmap_base
    mm.start_brk = record.start_brk
    mm.brk = record.brk
    mm.start_stack = record.start_stack
    mm.start_code = record.start_code
    mm.end_code = record.end_code
    mm.start_data = record.start_data
    mm.end_data = record.end_data
    mm.merge_any = record.memory_merge
    load_vmas(mm, record.vmas, anon_vmas=record.anon_vmas)


def load_vmas(mm: Mm, dump: list[records.Vma], *, anon_vmas: bool = False) -> None:
    """Put the VMAs of a dump into an empty address space.

    Where a dump shows anonymous pages there is an anon_vma, unless it tells the anon_vmas themselves.  What it cannot
    show is filled in as for a fresh program: the offset of anonymous memory follows from its address, and mappings of
    one inode are of one open file.
    """
    mm.mmap_write_lock()
    _link_vmas(mm, dump, anon_vmas)
    mm.mmap_write_unlock()


def _link_vmas(mm: Mm, dump: list[records.Vma], anon_vmas: bool) -> None:
    known: dict[int, AnonVma] = {}
    files: dict[tuple[str, int], File] = {}
    uffd: Userfaultfd | None = None
    for shown in dump:
        flags = vm_flags_from_text(shown.flags) | shown.pkey << VM_PKEY_SHIFT
        vma = Vma(mm, shown.start, shown.end, flags, shown.start >> PAGE_SHIFT)
        if shown.ino:
            key = (shown.dev, shown.ino)
            file = files.get(key)
            if file is None:
                file = load_file(_file_record(shown))
                files[key] = file
            vma.file = file
            vma.ops = file.ops if flags & VM_SHARED else file.private_ops
            vma.pgoff = shown.offset >> PAGE_SHIFT
            file.refs += 1
        elif shown.path.startswith("[anon:"):
            vma.name = shown.path[6:-1]
        elif shown.path.startswith("[v") or shown.path == "[uprobes]":
            vma.label = shown.path
            vma.ops = SPECIAL_OPS
            vma.pgoff = shown.offset >> PAGE_SHIFT
        if flags & VM_UFFD:
            uffd = uffd or Userfaultfd("as found")
            vma.uffd = uffd
        if anon_vmas and vma.file is None:
            vma.pgoff = shown.offset >> PAGE_SHIFT
        mm.link(vma)
        mm.vm_stat_account(flags, vma.pages())
        if flags & VM_ACCOUNT:
            mm.commit.committed += vma.pages()
        if flags & VM_LOCKED:
            mm.locked_vm += vma.pages()
        if anon_vmas and shown.anon_vma:
            anon_vma = known.get(shown.anon_vma)
            if anon_vma is None:
                anon_vma = known[shown.anon_vma] = anon_vma_found(shown.chain)
            anon_vma_restore(vma, anon_vma)
        elif not anon_vmas and (shown.anon or shown.swap) and not flags & VM_SHARED:
            anon_vma_prepare(vma)


def _file_record(shown: records.Vma) -> records.File:
    """What can be told of a mapped file from a dump alone."""
    kind = "regular"
    if shown.path.startswith("/memfd:") or shown.path.startswith("/dev/zero"):
        kind = "memfd"
    elif shown.path.startswith("/SYSV"):
        kind = "shm"
    elif shown.path.startswith("/anon_hugepage"):
        kind = "hugetlb"
    return records.File(0, 0, shown.dev, shown.ino, shown.path, kind=kind, writable=True)
