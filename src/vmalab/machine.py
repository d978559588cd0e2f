"""Machine and Process: the model's public face."""

from __future__ import annotations

import os
from typing import Final
from weakref import WeakSet

from vmalab.calls import Call, Outcome
from vmalab.dispatch import perform
from vmalab.flags import CLONE_VM, MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from vmalab.reason import YES, errno_of
from vmalab.semantics import Semantics
from vmalab.syscalls.populate import handle_fault
from vmalab.vma.area import File, Vma
from vmalab.vma.port import Port
from vmalab.vma.relocate import dup_mmap, exit_mmap
from vmalab.vma.space import Commit, Limits, Mm, Settings
from vmalab.vma.validate import dump, violations_of_all
from vmalab.world import ProcessState

SANITISE: Final = os.environ.get("VMALAB_SANITISE", "0") not in ("", "0")
"""Whether the sanitisers of the core are on (Settings.sanitise) without being asked for: on in the tests."""


MACHINES: Final[WeakSet[Machine]] = WeakSet()
"""The machines whose sanitisers are on, so that a test can look at all that it made."""


class KernelError(OSError):
    """A refused call: errno as from the kernel, and the Reason behind it."""

    def __init__(self, outcome: Outcome) -> None:
        why = outcome.explanation()
        super().__init__(-outcome.result, why.sentence)
        self.outcome: Outcome = outcome
        self.reason: int = outcome.reason
        self.where: str = why.where
        """The kernel function that says it."""


class Process(ProcessState):
    """A process of a Machine.  Methods named after system calls raise KernelError where the kernel answers an errno."""

    def __init__(self, machine: Machine, pid: int, mm: Mm, limits: Limits) -> None:
        super().__init__(pid, mm, limits)
        self.machine: Machine = machine

    def __repr__(self) -> str:
        return f"<Process {self.pid}: {self.mm.map_count} VMAs>"

    def do(self, call: Call) -> Outcome:
        """Perform a call as this process."""
        return perform(self, call)

    def _must(self, name: str, args: tuple[int, ...], file: File | None = None) -> int:
        outcome = perform(self, Call(name, args, file))
        if outcome.result < 0:
            raise KernelError(outcome)
        return outcome.result

    # -- system calls ---------------------------------------------------------------------------------

    def mmap(
        self,
        addr: int,
        length: int,
        prot: int = PROT_READ | PROT_WRITE,
        flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
        file: File | None = None,
        offset: int = 0,
    ) -> int:
        """Map length bytes; the address.  A file is a File, where the system call takes a descriptor."""
        return self._must("mmap", (addr, length, prot, flags, 3 if file is not None else 0xFFFFFFFF, offset), file)

    def munmap(self, addr: int, length: int) -> None:
        """Unmap length bytes from addr."""
        self._must("munmap", (addr, length))

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        """Set the permissions of a range."""
        self._must("mprotect", (addr, length, prot))

    def brk(self, addr: int) -> int:
        """Move the end of the heap; the end that is now in force (no error, as the system call)."""
        return perform(self, Call("brk", (addr,))).result

    def mremap(self, addr: int, old_length: int, new_length: int, flags: int = 0, new_addr: int = 0) -> int:
        """Resize or move a mapping; its address."""
        return self._must("mremap", (addr, old_length, new_length, flags, new_addr))

    def madvise(self, addr: int, length: int, advice: int) -> None:
        """Give an advice (MADV_) about a range."""
        self._must("madvise", (addr, length, advice))

    def mlock(self, addr: int, length: int, flags: int = 0) -> None:
        """Lock a range in memory (mlock2 if there are flags)."""
        self._must("mlock2", (addr, length, flags))

    def munlock(self, addr: int, length: int) -> None:
        """Unlock a range."""
        self._must("munlock", (addr, length))

    def mlockall(self, flags: int) -> None:
        """Lock all memory, present or future (MCL_)."""
        self._must("mlockall", (flags,))

    def munlockall(self) -> None:
        """Unlock all memory."""
        self._must("munlockall", ())

    def mseal(self, addr: int, length: int) -> None:
        """Seal a range against changes."""
        self._must("mseal", (addr, length, 0))

    def fork(self, flags: int = 0) -> Process:
        """A child process; with CLONE_VM in flags it shares this address space.  Raises KernelError."""
        return self.machine.fork(self, flags)

    def exit(self) -> None:
        """End the process and give back what its address space holds, unless another process shares it."""
        self.machine.exit(self)

    # -- memory ---------------------------------------------------------------------------------------

    def touch(self, addr: int, write: bool = True) -> None:
        """Read or write one byte.  Raises KernelError (EFAULT, or why a stack may not grow) where Linux sends
        SIGSEGV.
        """
        refusal = self.fault(addr, write)
        if refusal != YES:
            raise KernelError(Outcome(-errno_of(refusal), refusal))

    def fault(self, addr: int, write: bool) -> int:
        """As touch, but answers YES or the reason."""
        self.mm.limits = self.limits
        return handle_fault(self.mm, addr, write)

    def vmas(self) -> list[Vma]:
        """The VMAs in the order of their addresses."""
        return self.mm.vmas()

    def maps(self) -> str:
        """The VMAs as /proc/PID/maps shows them."""
        return "".join([self.maps_line(vma) + "\n" for vma in self.mm.vmas()])


class Machine:
    """One machine: its kernel's behaviours, its memory and settings, and its processes."""

    def __init__(
        self,
        semantics: Semantics | None = None,
        *,
        ram_pages: int = 4 << 20,
        swap_pages: int = 0,
        settings: Settings | None = None,
        port: Port | None = None,
    ) -> None:
        self.semantics: Semantics = Semantics() if semantics is None else semantics
        self.settings: Settings = Settings() if settings is None else settings
        self.settings.sanitise = self.settings.sanitise or SANITISE
        self.commit: Commit = Commit(ram_pages, swap_pages)
        self.port: Port = Port() if port is None else port
        self.processes: dict[int, Process] = {}
        if self.settings.sanitise:
            MACHINES.add(self)
        self._users: dict[int, int] = {}

    def _new_mm(self, limits: Limits) -> Mm:
        return Mm(self.settings, self.commit, limits, self.semantics, self.port)

    def process(self, pid: int = 0, limits: Limits | None = None) -> Process:
        """A new process with an empty address space; pid 0 takes the next free number from 1."""
        chosen = Limits() if limits is None else limits
        return self._adopt(pid, self._new_mm(chosen), chosen)

    def _adopt(self, pid: int, mm: Mm, limits: Limits) -> Process:
        if pid == 0:
            pid = max(self.processes, default=0) + 1
        process = Process(self, pid, mm, limits)
        self.processes[pid] = process
        self._users[id(mm)] = self._users.get(id(mm), 0) + 1
        return process

    def fork(self, parent: Process, flags: int = 0, pid: int = 0) -> Process:
        """A child of a process.  Raises KernelError if its address space cannot be copied."""
        limits = parent.limits.copy()
        if flags & CLONE_VM:
            child = self._adopt(pid, parent.mm, limits)
        else:
            old = parent.mm
            mm = self._new_mm(limits)
            mm.inherit(old)
            refusal = dup_mmap(mm, old)
            if refusal != YES:
                exit_mmap(mm)
                raise KernelError(Outcome(-errno_of(refusal), refusal))
            child = self._adopt(pid, mm, limits)
        child.inherit_state(parent)
        return child

    def replace_mm(self, process: Process) -> Mm:
        """Give a process a new, empty address space, as execve does, and let go of the old one."""
        old = process.mm
        process.mm = self._new_mm(process.limits)
        process.mm.outlive(old)
        self._release(old)
        self._users[id(process.mm)] = 1
        return process.mm

    def validate(self) -> None:
        """Check all address spaces, what they share, and what is committed.

        Raises AssertionError with all that is wrong, and the whole state.
        """
        mms = list({id(process.mm): process.mm for process in self.processes.values()}.values())
        found = violations_of_all(self.commit, mms)
        if found:
            raise AssertionError("\n".join(["the machine is broken:", *found, *[dump(mm) for mm in mms]]))

    def exit(self, process: Process) -> None:
        """End a process."""
        self._release(process.mm)
        del self.processes[process.pid]

    def _release(self, mm: Mm) -> None:
        users = self._users[id(mm)] - 1
        if users:
            self._users[id(mm)] = users
        else:
            del self._users[id(mm)]
            if self.settings.sanitise:
                mm.validate()
            exit_mmap(mm)
