"""The state of a process that system calls act on, below the public face."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from vmalab.flags import permissions
from vmalab.vma.area import Userfaultfd, Vma
from vmalab.vma.shm import IpcNamespace
from vmalab.vma.space import Limits, Mm


@mypyc_attr(allow_interpreted_subclasses=True)
class ProcessState:
    """A process: its address space, its limits, and what it holds that calls refer to by number."""

    def __init__(self, pid: int, mm: Mm, limits: Limits, ipc: IpcNamespace) -> None:
        self.pid: int = pid
        self.mm: Mm = mm
        self.limits: Limits = limits
        self.ipc: IpcNamespace = ipc
        """Whoever makes a process counts it as a holder, and lets go of it when the process ends."""
        self.personality: int = 0
        self.policy_mode: int = 0
        """The mode (MPOL_) of its own memory policy, which set_mempolicy sets."""
        self.uffds: dict[int, Userfaultfd] = {}

    def find_process(self, pid: int) -> ProcessState | None:
        """The process of a number, as far as this one knows of others."""
        return self if pid == self.pid else None

    def enter_ipc(self, namespace: IpcNamespace) -> None:
        """Be in another IPC namespace from now on, and let go of the one before."""
        namespace.holders += 1
        self.ipc.leave()
        self.ipc = namespace

    def inherit_state(self, parent: ProcessState) -> None:
        """What a child has from its parent besides memory and limits."""
        self.enter_ipc(parent.ipc)
        self.personality = parent.personality
        self.policy_mode = parent.policy_mode
        self.uffds = dict(parent.uffds)

    def name_of(self, vma: Vma) -> str:
        """The last column of /proc/PID/maps."""
        mm = self.mm
        name = vma.shown_name()
        if name or vma.file is not None:
            return name
        if vma.start < mm.brk and vma.end > mm.start_brk:
            return "[heap]"
        if vma.start <= mm.start_stack <= vma.end:
            return "[stack]"
        return ""

    def maps_line(self, vma: Vma) -> str:
        """One line of /proc/PID/maps, without the line end."""
        file = vma.file
        offset = vma.offset_at(vma.start) if file is not None else 0
        dev = file.dev if file is not None else "00:00"
        ino = file.ino if file is not None else 0
        line = f"{vma.start:08x}-{vma.end:08x} {permissions(vma.flags)} {offset:08x} {dev} {ino} "
        name = self.name_of(vma)
        return f"{line:<73}{name}" if name else line
