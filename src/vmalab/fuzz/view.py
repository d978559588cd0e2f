"""An address space as a row of numbers, as the agent reports it: to be compared at once after every step."""

from __future__ import annotations

from vmalab.flags import MNEMONICS, VM_MAYSHARE, VM_READ, VM_SOFTDIRTY, VM_WRITE
from vmalab.vma.area import File
from vmalab.vma.space import Mm

WIDTH: int = 8
"""Numbers for each VMA: start, end, flags, page offset, inode, anon_vma, chain length, extra."""
INODE: int = 4
EXTRA_POLICY: int = 1
EXTRA_USERFAULTFD: int = 2
VM_EXEC_SHOWN: int = 4


def _inode(file: File | None, unnumbered: dict[int, File]) -> int:
    """The inode of a file; minus a number of its own where only the kernel knows which it is."""
    if file is None or file.ino:
        return file.ino if file is not None else 0
    unnumbered[id(file)] = file
    return -id(file)


def whole_view(mm: Mm, unnumbered: dict[int, File]) -> list[int]:
    """All that the BPF reader shows: raw flags, every offset, which VMAs share an anon_vma.

    Files whose inode is not known are put into unnumbered, and stand in the view as minus their key there.
    """
    view: list[int] = []
    places: dict[int, int] = {}
    for place, vma in enumerate(mm.vmas(), 1):
        anon = 0
        anon_vma = vma.anon_vma
        if anon_vma is not None:
            anon = places.setdefault(id(anon_vma), place)
        file = vma.file
        inode = _inode(file, unnumbered)
        extra = (EXTRA_POLICY if vma.policy is not None else 0) | (EXTRA_USERFAULTFD if vma.uffd is not None else 0)
        view.append(vma.start)
        view.append(vma.end)
        view.append(vma.flags & ~VM_SOFTDIRTY)
        view.append(vma.pgoff)
        view.append(inode)
        view.append(anon)
        view.append(len(vma.chain))
        view.append(extra)
    return view


SMAPS_FLAGS: int = sum([bit for bit in MNEMONICS.values() if bit != VM_SOFTDIRTY])


def outer_view(mm: Mm, unnumbered: dict[int, File], flags_too: bool) -> list[int]:
    """What /proc/PID/maps shows, and with it the query reader: permissions, offsets of files; with smaps all flags."""
    view: list[int] = []
    for vma in mm.vmas():
        flags: int = vma.flags
        file = vma.file
        if flags_too:
            shown = flags & SMAPS_FLAGS
        else:
            shown = flags & (VM_READ | VM_WRITE | VM_EXEC_SHOWN) | (8 if flags & VM_MAYSHARE else 0)
        view.append(vma.start)
        view.append(vma.end)
        view.append(shown)
        view.append(vma.pgoff if file is not None else 0)
        view.append(_inode(file, unnumbered))
        view.append(0)
        view.append(0)
        view.append(0)
    return view


def same_view(model: list[int], kernel: tuple[int, ...], unnumbered: dict[int, File]) -> bool:
    """Whether two views are the same; the inode of a file that had none is learned."""
    if list(kernel) == model:
        return True
    if len(model) != len(kernel) or not unnumbered:
        return False
    for at, number in enumerate(model):
        if number != kernel[at]:
            if number >= 0 or at % WIDTH != INODE:
                return False
            file = unnumbered[-number]
            if file.ino == 0:
                file.ino = kernel[at]
            elif file.ino != kernel[at]:
                return False
    return True
