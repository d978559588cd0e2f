"""The VMA and what hangs on it: file, memory policy, userfaultfd, driver operations, anon_vma."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from mypy_extensions import i64, mypyc_attr

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import F_SEAL_FUTURE_WRITE, F_SEAL_WRITE, VM_MAYWRITE, VM_SHARED, permissions
from vmalab.vma.keys import COMPILED

if TYPE_CHECKING:
    from vmalab.vma.shm import Segment
    from vmalab.vma.space import Mm


POISON: Final = 0x6B6B6B6B6B6B6B6B
"""What the numbers of a freed VMA are overwritten with (POISON_FREE): no address, no flags that make sense."""


@final
class AnonVma:
    """Ties the anonymous pages of VMAs that share an origin together (mm/rmap.c).

    children: anon_vmas made below it by fork, and itself for a root.  active: VMAs whose anon_vma it is.  links: VMAs
    that have it in their chain.
    """

    __slots__ = ("active", "children", "links", "parent", "root")

    def __init__(self, parent: AnonVma | None) -> None:
        self.parent: AnonVma = self if parent is None else parent
        self.root: AnonVma = self if parent is None else parent.root
        self.children: int = 1 if parent is None else 0
        self.active: int = 0
        self.links: int = 0


@final
class Policy:
    """A memory policy (mbind); two are equal if all of it is (mpol_equal)."""

    __slots__ = ("flags", "home_node", "mode", "nodes", "refs")

    def __init__(self, mode: int, flags: int, nodes: tuple[int, ...], home_node: int = -1) -> None:
        self.mode: int = mode
        self.flags: int = flags
        self.nodes: tuple[int, ...] = nodes
        self.home_node: int = home_node
        self.refs: int = 0
        """How many VMAs hold it."""


def mpol_equal(one: Policy | None, other: Policy | None) -> bool:
    """Whether two VMAs have the same memory policy; none is a policy of its own."""
    if one is other:
        return True
    if one is None or other is None:
        return False
    return (
        one.mode == other.mode
        and one.flags == other.flags
        and one.home_node == other.home_node
        and one.nodes == other.nodes
    )


@final
class UffdMessage:
    """What a read of a userfaultfd gives (struct uffd_msg).

    event: UFFD_EVENT_PAGEFAULT with the address, the UFFD_PAGEFAULT_FLAG_ bits and the thread; _FORK with the child's
    context; _REMAP with from, to, length; _REMOVE and _UNMAP with start and end.
    """

    __slots__ = ("context", "event", "first", "second", "third")

    def __init__(
        self, event: int, first: int = 0, second: int = 0, third: int = 0, context: Userfaultfd | None = None
    ) -> None:
        self.event: int = event
        self.first: int = first
        self.second: int = second
        self.third: int = third
        self.context: Userfaultfd | None = context


@final
class UffdFault:
    """An access that waits for a userfaultfd, until it is woken."""

    __slots__ = ("message", "woken")

    def __init__(self, message: UffdMessage) -> None:
        self.message: UffdMessage = message
        self.woken: bool = False


@final
class UffdQueue:
    """What somebody is to read from a userfaultfd."""

    __slots__ = ("events", "faults", "initialised", "seen")

    def __init__(self) -> None:
        self.initialised: bool = False
        """Whether UFFDIO_API was done."""
        self.faults: list[UffdFault] = []
        """Not read yet, the oldest first."""
        self.seen: list[UffdFault] = []
        """Read, and still waiting."""
        self.events: list[UffdMessage] = []
        """Of calls that wait until they are read."""


@final
class Userfaultfd:
    """The context of a userfaultfd; identity is what counts."""

    __slots__ = ("features", "mm", "name", "queue")

    def __init__(self, name: str, features: int = 0) -> None:
        self.name: str = name
        self.features: int = features
        """The UFFD_FEATURE_ bits that were asked for."""
        self.mm: Mm | None = None
        """The address space that it is for; None: that of whoever uses it."""
        self.queue: UffdQueue | None = None
        """None: whoever has it reads at once whatever there is, as in a program that was recorded."""

    def has(self, feature: int) -> bool:
        """Whether one of these features (UFFD_FEATURE_) was asked for."""
        return self.features & feature != 0

    def tell(self, message: UffdMessage) -> None:
        """An event: whoever made it waits until it is read (userfaultfd_event_wait_completion)."""
        if self.queue is not None:
            self.queue.events.append(message)


@final
class VmaOps:
    """What the core must know of a driver: its name, whether it has a close hook, and where its VMAs may be split.

    A VMA without operations is anonymous (vma_is_anonymous).
    """

    __slots__ = ("has_close", "name", "never_locked", "never_split", "split_size")

    def __init__(
        self,
        name: str,
        has_close: bool = False,
        split_size: int = 0,
        never_locked: bool = False,
        never_split: bool = False,
    ) -> None:
        self.name: str = name
        self.has_close: bool = has_close
        self.split_size: int = split_size
        """Splits must fall on a multiple of this many bytes; 0 for any page."""
        self.never_split: bool = never_split
        self.never_locked: bool = never_locked
        """Secret memory, which always is: mlock and munlock pass it over."""


FILE_OPS: Final = VmaOps("file")
SHMEM_OPS: Final = VmaOps("shmem")
SECRET_OPS: Final = VmaOps("secretmem", never_locked=True)
SHM_OPS: Final = VmaOps("shm", has_close=True)
SHM_HUGE_OPS: Final = VmaOps("shm", has_close=True, split_size=0x200000)
SHM_HUGE_1G_OPS: Final = VmaOps("shm", has_close=True, split_size=0x40000000)
"""Segments of huge pages: what both drivers want."""
SPECIAL_OPS: Final = VmaOps("special", has_close=True, never_split=True)
"""vvar and vdso."""
DEVICE_OPS: Final = VmaOps("device")
HUGETLB_OPS: Final = VmaOps("hugetlb", has_close=True, split_size=0x200000)
HUGETLB_1G_OPS: Final = VmaOps("hugetlb", has_close=True, split_size=0x40000000)


@final
class File:
    """An open file description.  VMAs are compared by it, so two opens of one path are different files."""

    __slots__ = (
        "charged",
        "dev",
        "driver_flags",
        "fs",
        "huge_size",
        "ino",
        "kind",
        "noexec",
        "ops",
        "path",
        "private_ops",
        "readable",
        "refs",
        "seals",
        "segment",
        "size",
        "thp_aligned",
        "writable",
        "writers",
    )

    def __init__(
        self,
        path: str,
        dev: str = "00:00",
        ino: int = 0,
        *,
        kind: str = "regular",
        fs: str = "",
        readable: bool = True,
        writable: bool = True,
        noexec: bool = False,
        ops: VmaOps | None = FILE_OPS,
        private_ops: VmaOps | None = FILE_OPS,
        driver_flags: int = 0,
        thp_aligned: bool = False,
        huge_size: int = 0,
    ) -> None:
        self.path: str = path
        self.dev: str = dev
        self.ino: int = ino
        self.kind: str = kind
        self.fs: str = fs
        self.readable: bool = readable
        self.writable: bool = writable
        self.noexec: bool = noexec
        self.ops: VmaOps | None = ops
        """The operations of a shared mapping."""
        self.private_ops: VmaOps | None = private_ops
        """The operations of a private mapping: none for /dev/zero, whose private mappings are anonymous."""
        self.driver_flags: int = driver_flags
        self.thp_aligned: bool = thp_aligned
        """The filesystem wants large mappings aligned to huge pages."""
        self.huge_size: int = huge_size
        """The page size in bytes of a hugetlb file, else 0."""
        self.seals: int = 0
        """The F_SEAL_ bits of a memfd."""
        self.writers: int = 0
        """How many VMAs share it and can ever write to it (i_mmap_writable)."""
        self.size: int = -1
        """Bytes, where that is known, else -1: pages beyond it cannot be touched."""
        self.refs: int = 0
        """How many VMAs hold it."""
        self.charged: int = 0
        """Committed pages that are given back with it: shared anonymous memory is charged as it is made."""
        self.segment: Segment | None = None
        """Of System V shared memory, if it is an attachment of one that is known."""

    def is_sealed(self) -> bool:
        """Whether nobody may write to it who does not already (F_SEAL_WRITE, F_SEAL_FUTURE_WRITE)."""
        return self.seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0


@mypyc_attr(free_list_len=1)
@final
class Vma:
    """One mapping: [start, end) in bytes, and everything that a merge compares.

    pgoff is in pages: the file offset, or for anonymous memory the page number it was first mapped at.
    """

    __slots__ = (
        "anon_vma",
        "chain",
        "end",
        "file",
        "flags",
        "freed",
        "label",
        "mm",
        "name",
        "ops",
        "pgoff",
        "policy",
        "private_data",
        "start",
        "uffd",
    )

    def __init__(self, mm: Mm, start: i64, end: i64, flags: i64, pgoff: i64, like: Vma | None = None) -> None:
        """A VMA of anonymous memory, or one that shares file, policy and the rest with another."""
        # What a merge compares comes first, in the order of the comparison: it lies together in memory.
        self.start: i64 = start
        self.end: i64 = end
        self.flags: i64 = flags
        if like is None:
            self.policy: Policy | None = None
            self.file: File | None = None
            self.uffd: Userfaultfd | None = None
            self.name: str | None = None
            """The anonymous name (PR_SET_VMA_ANON_NAME)."""
            self.anon_vma: AnonVma | None = None
            self.ops: VmaOps | None = None
            self.private_data: object | None = None
            """What its driver keeps with it (vm_private_data); a copy or a part has the same."""
            self.label: str = ""
            """What the kernel shows for a special mapping, for instance [vdso]."""
        else:
            self.policy = like.policy
            self.file = like.file
            self.uffd = like.uffd
            self.name = like.name
            self.anon_vma = like.anon_vma
            self.ops = like.ops
            self.private_data = like.private_data
            self.label = like.label
        self.pgoff: i64 = pgoff
        self.chain: tuple[AnonVma, ...] = ()
        """The anon_vmas that its pages may belong to, the newest first."""
        self.mm: Mm = mm
        self.freed: str = ""
        """Where it was freed; empty while it lives."""

    def __repr__(self) -> str:
        if self.freed:
            return f"<Vma freed by {self.freed}>"
        return f"<Vma {self.start:x}-{self.end:x} {permissions(self.flags)} {self.shown_name()}>"

    def pages(self) -> i64:
        """How many pages it spans."""
        return (self.end - self.start) >> PAGE_SHIFT

    def is_anonymous(self) -> bool:
        """No driver operations: private anonymous memory (also a private mapping of /dev/zero)."""
        return self.ops is None

    def has_in_chain(self, anon_vma: AnonVma) -> bool:
        """Whether an anonymous page of that anon_vma is looked for in this VMA."""
        return any([each is anon_vma for each in self.chain])

    def pgoff_at(self, addr: i64) -> i64:
        """The page offset that belongs to an address in it."""
        return self.pgoff + ((addr - self.start) >> PAGE_SHIFT)

    def offset_at(self, addr: i64) -> int:
        """The byte of its file that belongs to an address in it: up to 2**64, unlike a page offset no machine word."""
        index: int = self.pgoff_at(addr)
        return index << PAGE_SHIFT

    def shown_name(self) -> str:
        """The name in /proc/PID/maps, but for [heap] and [stack], which depend on the address space."""
        if self.file is not None:
            return self.file.path
        if self.name is not None:
            return f"[anon:{self.name}]"
        return self.label

    def is_shared_writer(self) -> i64:
        """1 if it shares its file and may ever be writable (vma_is_shared_maywrite), else 0."""
        return 1 if self.flags & (VM_SHARED | VM_MAYWRITE) == VM_SHARED | VM_MAYWRITE else 0

    def set_policy(self, policy: Policy | None) -> None:
        """Replace the memory policy, references included (vma_replace_policy)."""
        if policy is not None:
            policy.refs += 1
        if self.policy is not None:
            self.policy.refs -= 1
        self.policy = policy

    def take_references(self) -> None:
        """Count what a duplicate holds, now that nothing can fail any more."""
        if self.file is not None:
            self.file.refs += 1
            self.file.writers += self.is_shared_writer()
        if self.policy is not None:
            self.policy.refs += 1

    def duplicate(self, mm: Mm | None = None) -> Vma:
        """A copy that shares file, policy and the rest, without references and without a chain yet (vm_area_dup).

        It belongs to another address space if one is given.
        """
        return Vma(self.mm if mm is None else mm, self.start, self.end, self.flags, self.pgoff, self)

    def poison(self, where: str) -> None:
        """Make a freed VMA useless, so that a use after free shows.

        Interpreted, any touch of it raises AssertionError, which says where it was freed.  Compiled, its numbers are
        garbage and it holds nothing; Mm and validate() refuse it.
        """
        self.start = POISON
        self.end = POISON
        self.pgoff = POISON
        self.flags = POISON
        self.file = None
        self.ops = None
        self.policy = None
        self.uffd = None
        self.private_data = None
        self.freed = where
        if not COMPILED:
            self.__class__ = FreedVma  # type: ignore[assignment]


if not COMPILED:

    class FreedVma:
        """What a freed VMA has become: nothing of it can be read or set."""

        __slots__ = Vma.__slots__

        def __getattribute__(self, name: str) -> object:
            if name == "__class__":
                return FreedVma
            raise AssertionError(f"use after free: {name} of a VMA that {object.__getattribute__(self, 'freed')} freed")

        def __setattr__(self, name: str, value: object) -> None:
            FreedVma.__getattribute__(self, name)

        def __repr__(self) -> str:
            return f"<Vma freed by {object.__getattribute__(self, 'freed')}>"
