"""What a VMA is for people: heap, stack, code, ... with a colour for each, the same wherever memory is drawn."""

from __future__ import annotations

from typing import Final, final

from vmalab.flags import VM_ACCESS, VM_EXEC, VM_GROWSDOWN, VM_HUGETLB, VM_MAYSHARE, VM_SPECIAL, VM_WRITE
from vmalab.vma.area import Vma


@final
class Kind:
    """One kind of VMA: how it is called, and its colour on a light and on a dark ground (``#rrggbb``)."""

    __slots__ = ("dark", "label", "light", "meaning", "name")

    def __init__(self, name: str, label: str, meaning: str, light: str, dark: str) -> None:
        self.name = name
        self.label = label
        self.meaning = meaning
        self.light = light
        self.dark = dark


CODE: Final = 0
FILE: Final = 1
DATA: Final = 2
SHARED: Final = 3
HEAP: Final = 4
STACK: Final = 5
ANONYMOUS: Final = 6
JIT: Final = 7
HUGE: Final = 8
NO_ACCESS: Final = 9
KERNEL: Final = 10

KINDS: Final = [
    Kind("code", "code", "a file that can be executed", "#2f6fb5", "#5b9be0"),
    Kind("file", "file", "a private mapping of a file that cannot be written to", "#8fb8de", "#3f6388"),
    Kind("data", "file data", "a private, writable mapping of a file", "#2a9d8f", "#48b8a9"),
    Kind("shared", "shared", "a shared mapping: of a file, of memory, or of System V", "#8e5bb5", "#b48ad8"),
    Kind("heap", "heap", "the area of brk", "#e07b1f", "#f09a4a"),
    Kind("stack", "stack", "the main stack, and others that grow", "#c8385a", "#e8647f"),
    Kind("anonymous", "anonymous", "private memory without a file", "#d9b534", "#c9a83c"),
    Kind("jit", "anonymous code", "private memory without a file that can be executed", "#b0348f", "#dd6fc0"),
    Kind("huge", "hugetlb", "pages of the pool of huge pages", "#6b8e23", "#9bbf4f"),
    Kind("none", "no access", "PROT_NONE: guards and reserved addresses", "#b9bec7", "#4a505b"),
    Kind("kernel", "kernel", "vdso, vvar, and memory of devices", "#5f6672", "#9aa2b1"),
]
"""The kinds; the number of each is its place."""


def kind_of(vma: Vma, name: str) -> int:
    """The kind of a VMA, by number.  name is the last column of /proc/PID/maps: the heap is known by nothing else."""
    if not vma.flags & VM_ACCESS:
        return NO_ACCESS
    if vma.flags & VM_HUGETLB:
        return HUGE
    if vma.label or vma.flags & VM_SPECIAL:
        return KERNEL
    if vma.flags & VM_MAYSHARE:
        return SHARED
    if vma.is_anonymous():
        if name == "[heap]":
            return HEAP
        if name == "[stack]" or vma.flags & VM_GROWSDOWN:
            return STACK
        return JIT if vma.flags & VM_EXEC else ANONYMOUS
    if vma.flags & VM_EXEC:
        return CODE
    return DATA if vma.flags & VM_WRITE else FILE
