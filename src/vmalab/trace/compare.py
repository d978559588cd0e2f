"""Comparing the VMAs of the model with the list that a kernel gave."""

from __future__ import annotations

from typing import final

from vmalab.flags import VM_PKEY_MASK, VM_PKEY_SHIFT, VM_SOFTDIRTY, vm_flags_from_text, vm_flags_text
from vmalab.trace import records
from vmalab.vma.area import AnonVma, File, Vma
from vmalab.world import ProcessState


@final
class Difference:
    """One place where the two lists differ: the address, the field, and both values as text."""

    __slots__ = ("addr", "field", "kernel", "model")

    def __init__(self, addr: int, field: str, model: str, kernel: str) -> None:
        self.addr = addr
        self.field = field
        self.model = model
        self.kernel = kernel

    def __repr__(self) -> str:
        return f"{self.addr:#x} {self.field}: model {self.model}, kernel {self.kernel}"


@final
class Inodes:
    """Which inode number the kernel gave a file that it made by itself, learned as the files are met."""

    def __init__(self) -> None:
        self._numbers: dict[File, tuple[str, int]] = {}

    def same(self, file: File, dev: str, ino: int) -> bool:
        """Whether a mapped file is this inode; the first meeting of a kernel-made file decides which it is."""
        if file.ino:
            return file.ino == ino and file.dev == dev
        known = self._numbers.get(file)
        if known is None:
            self._numbers[file] = (dev, ino)
            return True
        return known == (dev, ino)


@final
class _AnonVmas:
    """Which anon_vma of the model is which of the kernel: one for one, settled where they are first met."""

    def __init__(self) -> None:
        self._ours: dict[int, tuple[AnonVma, int]] = {}
        self._theirs: dict[int, tuple[int, int]] = {}

    def compare(self, model: Vma, kernel: records.Vma) -> list[Difference]:
        """Differences in what only such a list shows: the anon_vma, and the offset of anonymous memory."""
        found: list[Difference] = []
        offset = model.offset_at(model.start)
        if model.file is None and offset != kernel.offset:
            found.append(Difference(model.start, "offset", f"{offset:#x}", f"{kernel.offset:#x}"))
        ours, theirs = model.anon_vma, kernel.anon_vma
        if ours is None or not theirs:
            if ours is not None or theirs:
                has = ("none", "has one") if ours is None else ("has one", "none")
                found.append(Difference(model.start, "anon_vma", *has))
            return found
        mine, first = self._ours.setdefault(theirs, (ours, model.start))
        number, start = self._theirs.setdefault(id(ours), (theirs, model.start))
        if mine is not ours or number != theirs:
            shown = "its own" if number == theirs else f"that of {start:#x}"
            given = "its own" if mine is ours else f"that of {first:#x}"
            found.append(Difference(model.start, "anon_vma", shown, given))
        return found


def compare_maps(
    process: ProcessState, dump: list[records.Vma], inodes: Inodes | None = None, *, anon_vmas: bool = False
) -> list[Difference]:
    """All differences between a process of the model and a dump: bounds, flags, offset, file and name.

    With anon_vmas, where the dump tells them, also which VMAs have one and which share one.
    """
    inodes = Inodes() if inodes is None else inodes
    sharing = _AnonVmas() if anon_vmas else None
    found: list[Difference] = []
    ours = process.mm.vmas()
    i = k = 0
    while i < len(ours) or k < len(dump):
        model = ours[i] if i < len(ours) else None
        kernel = dump[k] if k < len(dump) else None
        if model is not None and kernel is not None and model.start == kernel.start and model.end == kernel.end:
            found.extend(_compare_vma(process, model, kernel, inodes))
            if sharing is not None:
                found.extend(sharing.compare(model, kernel))
            i += 1
            k += 1
        elif kernel is None or (model is not None and (model.start, model.end) < (kernel.start, kernel.end)):
            assert model is not None
            found.append(Difference(model.start, "bounds", _show(process, model), "none"))
            i += 1
        else:
            found.append(Difference(kernel.start, "bounds", "none", _show_dump(kernel)))
            k += 1
    return found


def _show(process: ProcessState, vma: Vma) -> str:
    return f"{vma.start:x}-{vma.end:x} [{vm_flags_text(vma.flags)}] {process.name_of(vma)}"


def _show_dump(vma: records.Vma) -> str:
    return f"{vma.start:x}-{vma.end:x} [{vma.flags}] {vma.path}"


def _compare_vma(process: ProcessState, model: Vma, kernel: records.Vma, inodes: Inodes) -> list[Difference]:
    found: list[Difference] = []
    addr: int = model.start
    differ = (model.flags ^ vm_flags_from_text(kernel.flags)) & ~(VM_PKEY_MASK | VM_SOFTDIRTY)
    if differ:
        found.append(Difference(addr, "flags", vm_flags_text(model.flags), kernel.flags))
    pkey = (model.flags & VM_PKEY_MASK) >> VM_PKEY_SHIFT
    if pkey != kernel.pkey:
        found.append(Difference(addr, "protection key", str(pkey), str(kernel.pkey)))
    file = model.file
    if file is None:
        if kernel.ino:
            found.append(Difference(addr, "file", "none", f"{kernel.dev} {kernel.ino} {kernel.path}"))
        elif process.name_of(model) != kernel.path:
            found.append(Difference(addr, "name", process.name_of(model) or "none", kernel.path or "none"))
        return found
    if not inodes.same(file, kernel.dev, kernel.ino):
        ours = f"{file.dev} {file.ino} {file.path}"
        found.append(Difference(addr, "file", ours, f"{kernel.dev} {kernel.ino} {kernel.path}"))
    offset = model.offset_at(model.start)
    if offset != kernel.offset:
        found.append(Difference(addr, "offset", f"{offset:#x}", f"{kernel.offset:#x}"))
    return found
