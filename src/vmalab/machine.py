"""Machine and Process: the model's public face."""

from __future__ import annotations

import gc
import os
from typing import Final
from weakref import WeakSet

from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call, Outcome
from vmalab.dispatch import perform
from vmalab.errors import VmalabError
from vmalab.flags import CLONE_VM, IPC_CREAT, MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, UFFDIO_API
from vmalab.notebook import process_html
from vmalab.pages import migrate
from vmalab.pages.access import read_page, write_page
from vmalab.pages.clear_refs import (
    CLEAR_REFS_ALL,
    CLEAR_REFS_SOFT_DIRTY,
    clear_refs,
)
from vmalab.pages.folio import MigrationEntry
from vmalab.pages.ksm import ksm_scan
from vmalab.pages.memory import Memory
from vmalab.pages.migrate import Migration, entry_of
from vmalab.pages.port import PagePort
from vmalab.pages.validate import violations_of_memory
from vmalab.pages.view import PageView
from vmalab.reason import FAULT_MIGRATION, UFFD_NOTHING_TO_READ, YES, errno_of
from vmalab.semantics import Semantics
from vmalab.syscalls import uffd
from vmalab.syscalls.populate import handle_fault
from vmalab.syscalls.signals import signal_of
from vmalab.vma.area import File, UffdFault, UffdMessage, UffdQueue, Userfaultfd, Vma
from vmalab.vma.port import Port
from vmalab.vma.relocate import dup_mmap, exit_mmap
from vmalab.vma.shm import IpcNamespace
from vmalab.vma.space import Commit, Limits, Mm, Settings
from vmalab.vma.validate import dump, violations_of_all
from vmalab.world import ProcessState

SANITISE: Final = os.environ.get("VMALAB_SANITISE", "0") not in ("", "0")
"""Whether the sanitisers of the core are on (Settings.sanitise) without being asked for: on in the tests."""


MACHINES: Final[WeakSet[Machine]] = WeakSet()
"""The machines whose sanitisers are on, so that a test can look at all that it made."""


NO_PAGES: Final = "this machine has VMAs alone: make it with Machine(memory=Memory()) for pages"


class KernelError(OSError):
    """A refused call: errno as from the kernel, and the Reason behind it."""

    def __init__(self, outcome: Outcome) -> None:
        why = outcome.explanation()
        super().__init__(-outcome.result, why.sentence)
        self.outcome: Outcome = outcome
        self.reason: int = outcome.reason
        self.where: str = why.where
        """The kernel function that says it."""


class Fault(KernelError):
    """An access that cannot be made: what its process is told."""

    def __init__(self, reason: int, addr: int, signal: tuple[int, int]) -> None:
        super().__init__(Outcome(-errno_of(reason), reason))
        self.addr: int = addr
        """si_addr."""
        self.signal: int = signal[0]
        """SIGSEGV or SIGBUS; 0 where it waits."""
        self.si_code: int = signal[1]
        """SEGV_ or BUS_ (vmalab.syscalls.signals)."""


class Access:
    """One access to memory, which may wait for a userfaultfd until that is answered."""

    def __init__(self, process: Process, addr: int, write: bool) -> None:
        self.process: Process = process
        self.addr: int = addr
        self.write: bool = write
        self.reason: int = YES
        """YES, or why it failed, or what it waits for."""
        self.fault: UffdFault | None = None
        """What its userfaultfd is told, while it waits for that."""
        self.moving: MigrationEntry | None = None
        """The page that it waits for, which is being moved."""
        self.go_on()

    @property
    def waits(self) -> bool:
        """Whether it is not done yet."""
        return self.fault is not None or self.moving is not None

    @property
    def woken(self) -> bool:
        """Whether it waits, and may go on."""
        return self.moving.done if self.moving is not None else self.fault is not None and self.fault.woken

    def go_on(self) -> None:
        """Make the access, or make it again when it was woken."""
        process = self.process
        self.fault = self.moving = None
        self.reason = process.fault(self.addr, self.write)
        vma = process.mm.vma_lookup(self.addr)
        if uffd.is_userfault(self.reason) and vma is not None and vma.uffd is not None:
            self.fault = uffd.wait_for(vma.uffd, vma, self.addr, self.write, self.reason, process.pid)
        elif self.reason == FAULT_MIGRATION and vma is not None and process.machine.memory is not None:
            self.moving = entry_of(process.machine.memory, vma, self.addr)

    def give_up(self) -> None:
        """Nobody makes the access any more: its process ends."""
        vma = self.process.mm.vma_lookup(self.addr)
        if self.fault is not None and vma is not None and vma.uffd is not None:
            uffd.forget(vma.uffd, self.fault)


class Process(ProcessState):
    """A process of a Machine.  Methods named after system calls raise KernelError where the kernel answers an errno."""

    def __init__(self, machine: Machine, pid: int, mm: Mm, limits: Limits, ipc: IpcNamespace) -> None:
        super().__init__(pid, mm, limits, ipc)
        self.machine: Machine = machine

    def __repr__(self) -> str:
        return f"<Process {self.pid}: {self.mm.map_count} VMAs>"

    def find_process(self, pid: int) -> Process | None:
        """The process of the machine with that number."""
        return self.machine.processes.get(pid)

    def _repr_html_(self) -> str:
        """Its VMAs as a strip and a table: for a notebook."""
        return process_html(self)

    def do(self, call: Call) -> Outcome:
        """Perform a call as this process."""
        outcome = perform(self, call)
        if self.machine.waiting:
            self.machine.wake()
        return outcome

    def _must(self, name: str, args: tuple[int, ...], file: File | None = None) -> int:
        outcome = self.do(Call(name, args, file))
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
        return self.do(Call("brk", (addr,))).result

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

    def shmget(self, key: int, size: int, flags: int = IPC_CREAT | 0o600) -> int:
        """Find or make a segment of shared memory of so many bytes; its id, by which `ipc.segments` knows it."""
        return self._must("shmget", (key, size, flags))

    def shmat(self, number: int, addr: int = 0, flags: int = 0) -> int:
        """Attach a segment; its address."""
        return self._must("shmat", (number, addr, flags))

    def shmdt(self, addr: int) -> None:
        """Detach the segment that is attached at an address."""
        self._must("shmdt", (addr,))

    def shmctl(self, number: int, command: int) -> int:
        """IPC_RMID, or another command that needs no buffer."""
        return self._must("shmctl", (number, command, 0))

    def fork(self, flags: int = 0) -> Process:
        """A child process; with CLONE_VM in flags it shares this address space.  Raises KernelError."""
        return self.machine.fork(self, flags)

    def exit(self) -> None:
        """End the process and give back what its address space holds, unless another process shares it."""
        self.machine.exit(self)

    # -- memory ---------------------------------------------------------------------------------------

    def touch(self, addr: int, write: bool = True, execute: bool = False) -> None:
        """Read or write one byte, or fetch an instruction.  Raises Fault where Linux sends a signal or lets it wait."""
        refusal = self.fault(addr, write and not execute, execute)
        if refusal != YES:
            vma = self.mm.vma_lookup(addr)
            waits = uffd.is_userfault(refusal) and vma is not None and uffd.lets_wait(vma)
            raise Fault(refusal, addr, (0, 0) if waits else signal_of(refusal))

    def fault(self, addr: int, write: bool, execute: bool = False) -> int:
        """As touch, but answers YES or the reason."""
        self.mm.limits = self.limits
        return handle_fault(self.mm, addr, write, execute)

    def access(self, addr: int, write: bool = True) -> Access:
        """As touch, by a thread of its own: it waits for a userfaultfd that is to answer, and for a page that is moved.

        It is made again when it is woken: by UFFDIO_WAKE, by an answer that wakes, when the userfaultfd is closed, or
        when the page has arrived.
        """
        access = Access(self, addr, write)
        if access.waits:
            self.machine.waiting.append(access)
        return access

    def userfaultfd(self, api: int | None = None) -> int:
        """A new userfaultfd: its number, which calls name as `uffd`.  api: features to ask for at once (UFFDIO_API).

        Raises KernelError where the features are refused.
        """
        number = max(self.uffds, default=2) + 1
        context = self.uffds[number] = Userfaultfd(f"userfaultfd {number}")
        context.mm = self.mm
        context.queue = UffdQueue()
        if api is not None:
            outcome = self.do(Call("ioctl", (number, UFFDIO_API, 0), data={"uffd": number, "features": api}))
            if outcome.result < 0:
                raise KernelError(outcome)
        return number

    def read_userfaultfd(self, number: int) -> UffdMessage | None:
        """Read one message; None if there is none.  Raises KernelError before UFFDIO_API.

        The userfaultfd that comes with the fork of a child has the number that is in the message.
        """
        message, refusal = uffd.read(self.uffds[number])
        if message is None:
            if refusal == UFFD_NOTHING_TO_READ:
                return None
            raise KernelError(Outcome(-errno_of(refusal), refusal))
        if message.context is not None:
            message.first = max(self.uffds) + 1
            self.uffds[message.first] = message.context
        return message

    def read(self, addr: int, length: int) -> bytes:
        """Bytes of memory, read as the program would.  Raises KernelError at the first that cannot be read."""
        parts: list[bytes] = []
        end = addr + length
        while addr < end:
            step = min(PAGE_SIZE - addr % PAGE_SIZE, end - addr)
            self.touch(addr, write=False)
            parts.append(read_page(self._memory(), self._vma_at(addr), addr, step))
            addr += step
        return b"".join(parts)

    def write(self, addr: int, data: bytes) -> None:
        """Write bytes as the program would.  Raises KernelError at the first page that cannot be written to."""
        done = 0
        while done < len(data):
            step = min(PAGE_SIZE - (addr + done) % PAGE_SIZE, len(data) - done)
            self.touch(addr + done)
            write_page(self._memory(), self._vma_at(addr + done), addr + done, data[done : done + step])
            done += step

    def _vma_at(self, addr: int) -> Vma:
        vma = self.mm.vma_lookup(addr)
        assert vma is not None, "an access that succeeds has a VMA"
        return vma

    def _memory(self) -> Memory:
        memory = self.machine.memory
        if memory is None:
            raise VmalabError(NO_PAGES)
        return memory

    def page(self, addr: int) -> PageView:
        """What an address refers to now, without touching it.  Raises VmalabError for a machine without pages."""
        return PageView(self._memory(), self.mm, addr)

    def migrate(self, addr: int) -> Migration:
        """Begin to move the folio at an address to another place in memory: accesses wait until it is finished.

        Raises KernelError where it cannot be moved.
        """
        migration, refusal = migrate.begin(self._memory(), self.mm, addr)
        if migration is None:
            raise KernelError(Outcome(-errno_of(refusal), refusal))
        migration.on_end = self.machine.wake
        return migration

    def clear_refs(self, kind: int) -> None:
        """Write a number (CLEAR_REFS_) to /proc/PID/clear_refs: 1, 2 or 3 for referenced, 4 for soft-dirty.

        Soft-dirty is tracked where Settings.soft_dirty is VM_SOFTDIRTY, and else nothing happens.  Raises VmalabError.
        """
        if not CLEAR_REFS_ALL <= kind <= CLEAR_REFS_SOFT_DIRTY:
            raise VmalabError(f"clear_refs takes a number from 1 to 4, not {kind}")
        self.mm.mmap_write_lock()
        clear_refs(self.machine.memory, self.mm, kind)
        self.mm.mmap_write_unlock()

    def vmas(self) -> list[Vma]:
        """The VMAs in the order of their addresses."""
        return self.mm.vmas()

    def maps(self) -> str:
        """The VMAs as /proc/PID/maps shows them."""
        return "".join([self.maps_line(vma) + "\n" for vma in self.mm.vmas()])


_MANY: Final = 10_000
"""VMAs, of which a search for garbage takes as long as a call that makes so many."""


def _pass_over(made: int) -> None:
    """Spare the next search for garbage what a call has just made, if that is much: none of it is garbage.

    It goes among the old objects, which are searched when there are many more of them.
    """
    if made >= _MANY and not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()


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
        memory: Memory | None = None,
    ) -> None:
        """A machine of VMAs alone, or with the pages below them if it is given a memory.

        port: what happens outside (drivers, failures of allocations).
        """
        self.semantics: Semantics = Semantics() if semantics is None else semantics
        self.settings: Settings = Settings() if settings is None else settings
        self.settings.sanitise = self.settings.sanitise or SANITISE
        self.commit: Commit = Commit(ram_pages, swap_pages)
        self.memory: Memory | None = memory
        outside = Port() if port is None else port
        self.port: Port = outside if memory is None else PagePort(memory, outside)
        self.ipc: IpcNamespace = IpcNamespace(self.commit)
        self.ipc.holders = 1
        self.processes: dict[int, Process] = {}
        self.waiting: list[Access] = []
        """Accesses that wait for a userfaultfd."""
        if self.settings.sanitise:
            MACHINES.add(self)

    def _new_mm(self, limits: Limits) -> Mm:
        return Mm(self.settings, self.commit, limits, self.semantics, self.port)

    def process(self, pid: int = 0, limits: Limits | None = None) -> Process:
        """A new process with an empty address space; pid 0 takes the next free number from 1."""
        chosen = Limits() if limits is None else limits
        return self._adopt(pid, self._new_mm(chosen), chosen)

    def _adopt(self, pid: int, mm: Mm, limits: Limits) -> Process:
        if pid == 0:
            pid = max(self.processes, default=0) + 1
        process = Process(self, pid, mm, limits, self.ipc)
        self.ipc.holders += 1
        self.processes[pid] = process
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
            collects = gc.isenabled()
            gc.disable()
            try:
                refusal = dup_mmap(mm, old)
            finally:
                if collects:
                    _pass_over(mm.map_count)
                    gc.enable()
            if refusal != YES:
                self._tear_down(mm)
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
        return process.mm

    def validate(self) -> None:
        """Check all address spaces, what they share, and what is committed.

        Raises AssertionError with all that is wrong, and the whole state.
        """
        mms = list({id(process.mm): process.mm for process in self.processes.values()}.values())
        found = violations_of_all(self.commit, mms)
        if self.memory is not None:
            found += violations_of_memory(self.memory)
        if found:
            raise AssertionError("\n".join(["the machine is broken:", *found, *[dump(mm) for mm in mms]]))

    def ksm_scan(self) -> int:
        """Let KSM merge pages of equal contents where that was permitted: how many mappings were changed.

        Raises VmalabError for a machine without pages.
        """
        if self.memory is None:
            raise VmalabError(NO_PAGES)
        return ksm_scan(self.memory)

    def wake(self) -> None:
        """Let the accesses go on that were woken, in the order in which they began to wait."""
        woken = [access for access in self.waiting if access.woken]
        for access in woken:
            access.go_on()
        self.waiting = [access for access in self.waiting if access.waits]

    def exit(self, process: Process) -> None:
        """End a process."""
        for access in self.waiting:
            if access.process is process:
                access.give_up()
        self.waiting = [access for access in self.waiting if access.process is not process]
        del self.processes[process.pid]
        self._release(process.mm)
        process.ipc.leave()

    def _release(self, mm: Mm) -> None:
        """A process has let go of an address space: tear it down unless another shares it."""
        if any(process.mm is mm for process in self.processes.values()):
            return
        if self.settings.sanitise:
            mm.validate()
        self._tear_down(mm)

    def _tear_down(self, mm: Mm) -> None:
        exit_mmap(mm)
        if self.memory is not None:
            self.memory.forget(mm)
            self.memory.sweep()
