"""An address space as rows of numbers, as the agent reports it: to be compared at once after every step.

Rows that are equal are one object (Rows.one), on both sides, so that what has not changed is compared by identity.
"""

from __future__ import annotations

from typing import final

from vmalab.flags import MNEMONICS, VM_MAYSHARE, VM_READ, VM_SOFTDIRTY, VM_WRITE
from vmalab.vma.area import File, Vma
from vmalab.vma.space import Mm

Row = tuple[int, ...]
"""A VMA: start, end, flags, page offset, inode, anon_vma, chain length, extra."""
INODE: int = 4
EXTRA_POLICY: int = 1
EXTRA_USERFAULTFD: int = 2
VM_EXEC_SHOWN: int = 4
SMAPS_FLAGS: int = sum([bit for bit in MNEMONICS.values() if bit != VM_SOFTDIRTY])


@final
class Rows:
    """The rows of one run, and the files whose inodes only the kernel knows until it has shown them."""

    def __init__(self, known: dict[Row, Row]) -> None:
        self._rows: dict[Row, Row] = known
        self._unnumbered: dict[int, File] = {}

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


def whole_view(mm: Mm, rows: Rows, before: list[Row]) -> list[Row]:
    """All that the BPF reader shows: raw flags, every offset, which VMAs share an anon_vma.

    before is an earlier view of the same address space: its rows serve where nothing has changed.
    """
    view: list[Row] = []
    firsts: dict[int, int] = {}
    at = 0
    many = len(before)
    for vma in mm.vmas():
        start: int = vma.start
        anon = 0
        anon_vma = vma.anon_vma
        if anon_vma is not None:
            anon = firsts.setdefault(id(anon_vma), start)
        while at < many and before[at][0] < start:
            at += 1
        if at < many:
            row = before[at]
            if row[0] == start and _is_row(vma, rows, row, anon):
                view.append(row)
                continue
        view.append(rows.one(_row(vma, rows, anon)))
    return view


def _extra(vma: Vma) -> int:
    return (EXTRA_POLICY if vma.policy is not None else 0) | (EXTRA_USERFAULTFD if vma.uffd is not None else 0)


def _is_row(vma: Vma, rows: Rows, row: Row, anon: int) -> bool:
    """Whether a row is that of a VMA with the same start."""
    return (
        row[1] == vma.end
        and row[2] == vma.flags & ~VM_SOFTDIRTY
        and row[3] == vma.pgoff
        and row[INODE] == rows.inode(vma.file)
        and row[5] == anon
        and row[6] == len(vma.chain)
        and row[7] == _extra(vma)
    )


def _row(vma: Vma, rows: Rows, anon: int) -> Row:
    inode = rows.inode(vma.file)
    flags: int = vma.flags & ~VM_SOFTDIRTY
    return (vma.start, vma.end, flags, vma.pgoff, inode, anon, len(vma.chain), _extra(vma))


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
    if model == kernel:
        return True
    if len(model) != len(kernel):
        return False
    for ours, theirs in zip(model, kernel, strict=True):
        if ours is theirs or ours == theirs:
            continue
        if ours[:INODE] != theirs[:INODE] or ours[INODE + 1 :] != theirs[INODE + 1 :]:
            return False
        if not rows.is_inode(ours[INODE], theirs[INODE]):
            return False
    return True
