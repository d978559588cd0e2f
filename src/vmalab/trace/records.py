"""The records of a trace file: what each line holds.

A trace is JSON Lines: a Header, then records numbered from 1.  docs/trace-format.md is the description for people;
these
classes are what is read and written, and msgspec checks every line against them.  Addresses and lengths are bytes.
Paths are printable text: every other byte is written as a backslash and three octal digits, as /proc/PID/maps does.
"""

from typing import Final

import msgspec

VERSION: Final = 1


class Vma(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One VMA of a dump, as smaps shows it."""

    start: int
    end: int
    flags: str
    """The VmFlags line: two letters a flag."""
    offset: int = 0
    """The file offset in bytes."""
    dev: str = "00:00"
    """Major and minor number in hexadecimal, as in /proc/PID/maps."""
    ino: int = 0
    path: str = ""
    """The path, or a name in brackets such as [stack]."""
    anon: int = 0
    """Bytes of anonymous memory present ("Anonymous:")."""
    swap: int = 0
    """Bytes swapped out ("Swap:")."""
    pkey: int = 0
    """The protection key ("ProtectionKey:")."""
    anon_vma: int = 0
    """Which anon_vma it has: VMAs of one list with the same number share one.  0 is none, where the list tells them."""
    chain: int = 0
    """How many anon_vmas its chain has, up to 16; 0 where that was not told."""


class Machine(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What a run depends on that belongs to the machine; sizes in pages where the name says so."""

    kernel: str = ""
    """The release, as uname -r prints it."""
    arch: str = "x86_64"
    page_size: int = 4096
    task_size: int = 0x7FFFFFFFF000
    mmap_min_addr: int = 65536
    """The lowest address that the kernel chooses, raises a hint to, or lets a stack grow to."""
    dac_mmap_min_addr: int | None = None
    """The sysctl: what is below it can be mapped with CAP_SYS_RAWIO only.  None where it is not known to be lower."""
    stack_guard_gap: int = 256
    """Pages."""
    max_map_count: int = 65530
    overcommit_memory: int = 0
    overcommit_ratio: int = 50
    overcommit_kbytes: int = 0
    ram_pages: int = 0
    swap_pages: int = 0
    thp_enabled: str = "madvise"
    """always, madvise, never; or "none" where the kernel has no transparent huge pages."""
    thp_shmem: str = "never"
    hugepages: dict[str, int] = {}
    """Free huge pages by size in KiB, for instance {"2048": 0}."""
    numa_nodes: int = 1
    soft_dirty: bool = False
    """Whether the kernel tracks soft-dirty pages (CONFIG_MEM_SOFT_DIRTY)."""
    anon_names: bool = False
    """Whether anonymous memory can be named (CONFIG_ANON_VMA_NAME)."""
    pkeys: bool = False
    """Whether there are protection keys."""
    pkeys_unusable: bool = False
    """The kernel is built for protection keys, and the processor has none: calls that name one say so otherwise."""


class Header(msgspec.Struct, omit_defaults=True):
    """The first line of a trace.  Unknown fields of a later minor revision are ignored."""

    vmalab: str
    """Always "trace"."""
    version: int
    recorder: str = ""
    """What made the trace: ptrace, bpf, strace, model, ..."""
    faults: str = "none"
    """How faults were observed: exact, at-calls (found at the entry of the next call that they could matter to)
    or none.
    """
    command: list[str] = []
    machine: Machine = msgspec.field(default_factory=Machine)
    notes: list[str] = []
    """What the recorder could not see."""


class Limits(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, rename={"as_": "as"}):
    """Soft resource limits in bytes; null is no limit."""

    as_: int | None = None
    data: int | None = None
    stack: int | None = 8 << 20
    memlock: int | None = 8 << 20


class Exec(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="exec"):
    """A process has a new address space: after execve, or as found when recording began."""

    n: int
    pid: int
    exe: str
    vmas: list[Vma]
    argv: list[str] = []
    mmap_base: int | None = None
    """Where the search for unmapped areas starts; null if it could not be told."""
    topdown: bool = True
    start_brk: int = 0
    brk: int = 0
    start_stack: int = 0
    start_code: int = 0
    end_code: int = 0
    start_data: int = 0
    end_data: int = 0
    limits: Limits = msgspec.field(default_factory=Limits)
    caps: list[str] = []
    """The effective ones of vmalab.flags.CAPABILITIES."""
    personality: int = 0
    thp_disabled: bool = False
    memory_merge: bool = False
    """PR_SET_MEMORY_MERGE is on: new VMAs are mergeable by KSM."""
    anon_vmas: bool = False
    """The list tells which VMAs have an anon_vma, and which one."""
    partial: bool = False
    """The list of VMAs is not whole: what else is mapped nobody knows, and limits and capabilities neither."""


class File(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="file"):
    """An open file description that gets mapped.  Two opens of one path are two of these."""

    n: int
    id: int
    dev: str = "00:00"
    ino: int = 0
    path: str = ""
    readable: bool = True
    writable: bool = False
    kind: str = "regular"
    """regular, memfd, shm, hugetlb, device or other."""
    fs: str = ""
    """The name of the filesystem: ext4, tmpfs, overlay, ...; a number in hexadecimal where the name is not known."""
    noexec: bool = False
    """On a filesystem mounted noexec."""
    driver_flags: str = ""
    """VmFlags that the driver added when a device was mapped."""


class Call(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="call"):
    """One system call that has returned."""

    n: int
    pid: int
    tid: int
    call: str
    args: list[int]
    """As unsigned 64-bit words, as many as the call takes."""
    ret: int | None
    """The result, or minus the errno; null where the source of an imported trace does not tell."""
    file: int | None = None
    """The id of the File that a descriptor argument stands for."""
    data: dict[str, int | str | list[int]] = {}
    """What pointer arguments point to, by name: see docs/trace-format.md."""
    written: list[int] = []
    """Observed at entry: an address in each private VMA that has gained anonymous pages since last asked."""
    grown: list[tuple[int, int]] = []
    """Observed at entry: [start, end) of each stack VMA that has grown since last asked."""
    stack: int | None = None
    """The id of the Stack that made it."""
    overtaken: bool = False
    """Another thread changed VMAs after this call had, and before it returned: what it populates it may have found
    otherwise.
    """
    unordered: bool = False
    """A call of another thread overlapped, and nobody knows which took effect first."""

    @property
    def failed(self) -> bool:
        """Whether it is known to have been answered with an errno."""
        return self.ret is not None and self.ret < 0


class Fault(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="fault"):
    """One page fault, from a recorder that sees them."""

    n: int
    pid: int
    tid: int
    addr: int
    write: bool = False
    vma_lock: bool = False
    """Taken under the lock of the VMA alone: no VMA changed by it."""
    stack: int | None = None


class Fork(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="fork"):
    """A new process or thread, from fork, vfork, clone or clone3."""

    n: int
    pid: int
    """The process (thread group) that the new task belongs to."""
    tid: int
    """The new task."""
    parent: int
    """The process that made it."""
    parent_tid: int
    flags: int
    """CLONE_ flags; those of fork and vfork are filled in."""
    written: list[int] = []
    grown: list[tuple[int, int]] = []


class Exit(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="exit"):
    """The last thread of a process is about to exit; its address space still exists."""

    n: int
    pid: int
    vmas: list[Vma] | None = None
    """Null where the list could not be read, or where the address space belongs to another process (vfork)."""
    code: int | None = None
    signal: int | None = None
    written: list[int] = []
    grown: list[tuple[int, int]] = []
    anon_vmas: bool = False
    """The list tells which VMAs have an anon_vma, and which one."""


class Maps(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="maps"):
    """The VMAs of a process that runs on, to compare with."""

    n: int
    pid: int
    vmas: list[Vma]
    anon_vmas: bool = False


class Stack(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="stack"):
    """A user stack, from the innermost frame outwards."""

    n: int
    id: int
    pid: int
    frames: list[str]
    """For instance ``malloc+0x1c (/usr/lib/libc.so.6)``: symbol and offset, or the offset in the file alone."""


class Lost(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="lost"):
    """From here on the trace is incomplete for a process (0: for all), until an exec record describes it anew."""

    n: int
    pid: int
    why: str
    events: int = 0
    """How many events of the recorder are missing; 0 where that cannot be said."""


class End(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, tag="end"):
    """The last line.  A trace without one was cut off."""

    n: int
    reason: str
    """done or interrupted."""


Record = Exec | File | Stack | Call | Fault | Fork | Maps | Exit | Lost | End
