"""An address space as rows of numbers, as the agent reports it: to be compared at once after every step.

Rows that are equal are one object (Rows.one), on both sides, so that what has not changed is compared by identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab.flags import MNEMONICS, VM_MAYSHARE, VM_READ, VM_SOFTDIRTY, VM_WRITE
from vmalab.live.agent import Vmas
from vmalab.vma.area import AnonVma, File, Policy, Userfaultfd, Vma
from vmalab.vma.space import Mm

if TYPE_CHECKING:
    from mypy_extensions import i64

Row = tuple[int, ...]
"""A VMA: start, end, flags, page offset, inode, anon_vma, chain length, extra."""
INODE: Final = 4
EXTRA_POLICY: Final = 1
EXTRA_USERFAULTFD: Final = 2
VM_EXEC_SHOWN: Final = 4
SMAPS_FLAGS: Final[int] = sum([bit for bit in MNEMONICS.values() if bit != VM_SOFTDIRTY])


@final
class Ranges:
    """Ranges of addresses, few of them: neighbours are one."""

    def __init__(self) -> None:
        self._edges: list[int] = []
        """A start and an end, again and again."""

    def add_all(self, mm: Mm) -> None:
        """Add where the VMAs of an address space lie."""
        edges = self._edges
        for vma in mm.vmas():
            start: int = vma.start
            end: int = vma.end
            if edges and edges[-1] == start:
                edges[-1] = end
            elif not self.hold(start, end):
                edges.append(start)
                edges.append(end)

    def hold(self, start: int, end: int) -> bool:
        """Whether one range has all addresses from start up to end."""
        edges = self._edges
        return any(edges[at] <= start and end <= edges[at + 1] for at in range(0, len(edges), 2))

    def touch(self, start: int, end: int) -> bool:
        """Whether any address from start up to end is in a range."""
        edges = self._edges
        return any(start < edges[at + 1] and edges[at] < end for at in range(0, len(edges), 2))


@final
class Rows:
    """The rows of one run, and the files whose inodes only the kernel knows until it has shown them."""

    def __init__(self, known: dict[Row, Row]) -> None:
        self._rows: dict[Row, Row] = known
        self._unnumbered: dict[int, File] = {}
        self._same: dict[Row, Row] = {}
        """The kernel's row for one whose file had no inode yet."""

    def one(self, row: Row) -> Row:
        """The row that stands for all that are equal to it."""
        return self._rows.setdefault(row, row)

    def inode(self, file: File | None) -> int:
        """The inode of a file; minus a number of its own where only the kernel knows which it is."""
        if file is None or file.ino:
            return file.ino if file is not None else 0
        self._unnumbered[id(file)] = file
        return -id(file)

    def is_inode(self, model: int, kernel: int) -> bool:
        """Whether an inode is the kernel's; the first time for a file that had none tells which it has."""
        if model == kernel:
            return True
        file = self._unnumbered.get(-model)
        if file is None:
            return False
        if file.ino == 0:
            file.ino = kernel
        return file.ino == kernel

    def are_same(self, ours: Row, theirs: Row) -> bool:
        """Whether a row is the kernel's, but for an inode that only the kernel knew when it was made."""
        if ours == theirs or self._same.get(ours) is theirs:
            return True
        if ours[:INODE] != theirs[:INODE] or ours[INODE + 1 :] != theirs[INODE + 1 :]:
            return False
        if not self.is_inode(ours[INODE], theirs[INODE]):
            return False
        self._same[ours] = theirs
        return True


@final
class _Shown:
    """A VMA as it was when an address space was looked at: what its row holds, as it is compared fastest."""

    def __init__(self, vma: Vma, inode: int, anon: i64, rows: Rows) -> None:
        self.start: i64 = vma.start
        self.end: i64 = vma.end
        self.flags: i64 = vma.flags
        self.pgoff: i64 = vma.pgoff
        self.inode: int = inode
        self.anon: i64 = anon
        self.links: i64 = len(vma.chain)
        self.extra: i64 = _extra(vma)
        flags: int = vma.flags & ~VM_SOFTDIRTY
        self.row: Row = rows.one((vma.start, vma.end, flags, vma.pgoff, inode, anon, self.links, self.extra))

    def still(self, vma: Vma, inode: int, anon: i64) -> bool:
        """Whether a VMA with the same start is as this one was."""
        return (
            self.end == vma.end
            and self.flags == vma.flags
            and self.pgoff == vma.pgoff
            and self.inode == inode
            and self.anon == anon
            and self.links == len(vma.chain)
            and self.extra == _extra(vma)
        )


@final
class WholeView:
    """All that the BPF reader shows of an address space: raw flags, every offset, which VMAs share an anon_vma.

    What has not changed since the last look is not made anew.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows: Rows = rows
        self._last: list[_Shown] = []

    def look(self, mm: Mm) -> list[Row]:
        """The rows of the address space as it is now."""
        rows = self._rows
        last = self._last
        many: i64 = len(last)
        at: i64 = 0
        now: list[_Shown] = []
        view: list[Row] = []
        firsts: dict[AnonVma, i64] = {}
        for vma in mm.vmas():
            start: i64 = vma.start
            anon: i64 = 0
            anon_vma = vma.anon_vma
            if anon_vma is not None:
                anon = firsts.setdefault(anon_vma, start)
            file = vma.file
            inode: int = 0
            if file is not None:
                inode = file.ino
                if inode == 0:
                    inode = rows.inode(file)
            while at < many and last[at].start < start:
                at += 1
            shown = last[at] if at < many else None
            if shown is None or shown.start != start or not shown.still(vma, inode, anon):
                shown = _Shown(vma, inode, anon, rows)
            now.append(shown)
            view.append(shown.row)
        self._last = now
        return view


def _extra(vma: Vma) -> i64:
    return (EXTRA_POLICY if vma.policy is not None else 0) | (EXTRA_USERFAULTFD if vma.uffd is not None else 0)


def outer_view(mm: Mm, rows: Rows, flags_too: bool) -> list[Row]:
    """What /proc/PID/maps shows, and with it the query reader: permissions, offsets of files; with smaps all flags."""
    view: list[Row] = []
    for vma in mm.vmas():
        flags: int = vma.flags
        file = vma.file
        if flags_too:
            shown = flags & SMAPS_FLAGS
        else:
            shown = flags & (VM_READ | VM_WRITE | VM_EXEC_SHOWN) | (8 if flags & VM_MAYSHARE else 0)
        pgoff = vma.pgoff if file is not None else 0
        row: Row = (vma.start, vma.end, shown, pgoff, rows.inode(file), 0, 0, 0)
        view.append(rows.one(row))
    return view


def same_view(model: list[Row], kernel: list[Row], rows: Rows) -> bool:
    """Whether two views are the same; the inode of a file that had none is learned."""
    if len(model) != len(kernel):
        return False
    for at in range(len(model)):
        ours = model[at]
        theirs = kernel[at]
        if ours is not theirs and not rows.are_same(ours, theirs):
            return False
    return True


def adopt(mm: Mm, shown: Vmas) -> None:
    """Take over what only the BPF reader shows of a fresh address space: raw flags, offsets, anon_vmas."""
    mm.mmap_write_lock()
    anon_vmas: dict[int, AnonVma] = {}
    vmas = mm.vmas()
    for start, _, flags, pgoff, _, anon, length, extra in shown:
        vma = next((each for each in vmas if each.start == start), None)
        if vma is None:
            continue
        vma.flags = flags
        vma.pgoff = pgoff
        for link in vma.chain:
            link.links -= 1
        if vma.anon_vma is not None:
            vma.anon_vma.active -= 1
        vma.chain = ()
        vma.anon_vma = None
        if anon:
            anon_vma = anon_vmas.setdefault(anon, AnonVma(None))
            anon_vma.active += 1
            anon_vma.links += 1
            vma.anon_vma = anon_vma
            vma.chain = (anon_vma,)
            mm.port.anon_vma_changed(vma)
        if extra & 1 and vma.policy is None:
            vma.set_policy(Policy(0, 0, ()))
        if extra & 2 and vma.uffd is None:
            vma.uffd = Userfaultfd("as found")
        assert length <= 1, "a fresh program has inherited nothing"
    mm.mmap_write_unlock()
