"""What a process is told of an access that cannot be made, the same in the model and on the running kernel."""

import ctypes
import os
import resource
import signal
from collections.abc import Callable

import pytest

from tests.fuzz.test_lockstep import live
from vmalab import flags as f
from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call
from vmalab.fuzz.divergence import access_difference
from vmalab.live.agent import READ, WRITE, Agent, Step
from vmalab.machine import Fault, Machine, Process
from vmalab.pages.memory import Memory
from vmalab.reason import FAULT_NO_PERMISSION, FAULT_NOT_MAPPED, YES
from vmalab.syscalls.signals import (
    BUS_ADRERR,
    BUS_MCEERR_AR,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SIGBUS,
    SIGSEGV,
    signal_text,
)
from vmalab.vma.area import SHMEM_OPS, File

A, PAGE = 0x10000000, PAGE_SIZE
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED
Told = tuple[int, int, int]
"""Signal, si_code, si_addr."""
CASES: dict[str, tuple[list[tuple[str, tuple[int, ...]]], bool, int, tuple[int, int]]] = {
    "nothing there": ([], True, A, (SIGSEGV, SEGV_MAPERR)),
    "read-only": ([("mmap", (A, PAGE, 1, FIXED, 0xFFFFFFFF, 0))], True, A + 5, (SIGSEGV, SEGV_ACCERR)),
    "no access": ([("mmap", (A, PAGE, 0, FIXED, 0xFFFFFFFF, 0))], False, A + 5, (SIGSEGV, SEGV_ACCERR)),
    "a guard": (
        [("mmap", (A, PAGE, 3, FIXED, 0xFFFFFFFF, 0)), ("madvise", (A, PAGE, f.MADV_GUARD_INSTALL))],
        False,
        A + 9,
        (SIGSEGV, SEGV_MAPERR),
    ),
    "below a stack that cannot grow": (
        [
            ("mmap", (A + PAGE, PAGE, 3, FIXED, 0xFFFFFFFF, 0)),
            ("mmap", (A + 16 * PAGE, PAGE, 3, FIXED | f.MAP_GROWSDOWN, 0xFFFFFFFF, 0)),
        ],
        True,
        A + 15 * PAGE,
        (SIGSEGV, SEGV_MAPERR),
    ),
    "a hole in an empty file": (
        [("mmap", (A, PAGE, 3, f.MAP_SHARED | f.MAP_FIXED, 3, 0))],
        True,
        A + 7,
        (SIGBUS, BUS_ADRERR),
    ),
}
NUMBERS = {"mmap": 9, "madvise": 28}


def empty_file() -> File:
    file = File("/memfd:empty", kind="memfd", ops=SHMEM_OPS, private_ops=SHMEM_OPS)
    file.size = 0
    return file


def process_of(calls: list[tuple[str, tuple[int, ...]]]) -> Process:
    process = Machine(memory=Memory()).process()
    for name, args in calls:
        file = empty_file() if name == "mmap" and args[4] == 3 else None
        assert process.do(Call(name, args, file)).result >= 0
    return process


@pytest.mark.parametrize("case", CASES)
def test_the_model(case: str) -> None:
    calls, write, addr, expected = CASES[case]
    with pytest.raises(Fault) as fault:
        process_of(calls).touch(addr, write)
    assert (fault.value.signal, fault.value.si_code, fault.value.addr) == (*expected, addr)


@live
@pytest.mark.parametrize("case", CASES)
def test_the_kernel(case: str) -> None:
    calls, write, addr, expected = CASES[case]
    with Agent("none") as agent:
        descriptor = agent.run([Step(319, (agent.scratch, 0), b"empty\0")], report=0)[0].result
        for name, args in calls:
            given = (*args[:4], descriptor, args[5]) if name == "mmap" and args[4] == 3 else args
            assert agent.run([Step(NUMBERS[name], given)], report=0)[0].result >= 0
        told = agent.run([Step(WRITE if write else READ, (addr,))], report=0)[0].signal
    assert (told >> 56, told >> 48 & 255, told & (1 << 48) - 1) == (*expected, addr)


def test_what_a_userfaultfd_puts_there() -> None:
    """A poisoned page, and one that nobody is to wait for."""
    process = process_of([("mmap", (A, 2 * PAGE, 3, FIXED, 0xFFFFFFFF, 0))])
    number = process.userfaultfd(f.UFFD_FEATURE_SIGBUS)
    for command, length in ((f.UFFDIO_REGISTER, 2 * PAGE), (f.UFFDIO_POISON, PAGE)):
        data: dict[str, int | str | list[int]] = {"uffd": number, "start": A, "len": length}
        data["mode"] = 1 if command == f.UFFDIO_REGISTER else 0
        assert process.do(Call("ioctl", (number, command, 0), data=data)).result >= 0
    told = []
    for addr in (A, A + PAGE):
        with pytest.raises(Fault) as fault:
            process.touch(addr)
        told.append((fault.value.signal, fault.value.si_code))
    assert told == [(SIGBUS, BUS_MCEERR_AR), (SIGBUS, BUS_ADRERR)]


def test_what_waits_gets_no_signal() -> None:
    process = process_of([("mmap", (A, PAGE, 3, FIXED, 0xFFFFFFFF, 0))])
    number = process.userfaultfd(0)
    data: dict[str, int | str | list[int]] = {"uffd": number, "start": A, "len": PAGE, "mode": 1}
    process.do(Call("ioctl", (number, f.UFFDIO_REGISTER, 0), data=data))
    with pytest.raises(Fault) as fault:
        process.touch(A)
    assert (fault.value.signal, fault.value.si_code) == (0, 0)


EXECUTED = {
    "no access": (0, SIGSEGV, False),
    "readable": (f.PROT_READ, SIGSEGV, True),
    "writable": (f.PROT_READ | f.PROT_WRITE, SIGSEGV, True),
    "executable": (f.PROT_READ | f.PROT_EXEC, 0, True),
}
"""Permissions, the signal for fetching an instruction, and whether the page is there then."""


@pytest.mark.parametrize("case", EXECUTED)
def test_fetching_an_instruction(case: str) -> None:
    prot, expected, present = EXECUTED[case]
    process = process_of([("mmap", (A, PAGE, prot, FIXED, 0xFFFFFFFF, 0))])
    try:
        process.touch(A, execute=True)
        told = 0
    except Fault as fault:
        told = fault.signal
    assert (told, process.page(A).present) == (expected, present)


def _in_child(action: Callable[[], object]) -> int:
    """The signal that ends a child which does something; 0 for none."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGSEGV, signal.SIGILL, signal.SIGTRAP):
            signal.signal(number, signal.SIG_DFL)
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1] & 127


@live
@pytest.mark.parametrize("case", EXECUTED)
def test_fetching_an_instruction_on_the_kernel(case: str) -> None:
    """A page of a file, so that it can be seen from outside whether it is there."""
    prot, expected, present = EXECUTED[case]
    memfd = os.memfd_create("executed")
    try:
        os.ftruncate(memfd, PAGE)
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        addr = libc.mmap(None, ctypes.c_size_t(PAGE), prot, f.MAP_SHARED, memfd, ctypes.c_long(0))
        told = _in_child(ctypes.CFUNCTYPE(None)(addr))
        libc.munmap(ctypes.c_void_p(addr), ctypes.c_size_t(PAGE))
        # Zeros are an instruction that reads where its register points: what comes of it is another matter.
        assert told == expected or (not expected and told in (SIGSEGV, SIGBUS))
        assert (os.fstat(memfd).st_blocks > 0) == present
    finally:
        os.close(memfd)


def test_differences_are_named() -> None:
    word = SIGSEGV << 56 | SEGV_MAPERR << 48 | A
    assert access_difference(FAULT_NOT_MAPPED, A, word) is None
    assert access_difference(YES, A, 0) is None
    assert access_difference(FAULT_NO_PERMISSION, A, word) == (
        "SIGSEGV (SEGV_ACCERR), FAULT_NO_PERMISSION",
        "SIGSEGV (SEGV_MAPERR) at 10000000",
    )
    assert access_difference(YES, A, word) == ("no signal, YES", "SIGSEGV (SEGV_MAPERR) at 10000000")
    assert access_difference(FAULT_NOT_MAPPED, 1 << 60, SIGSEGV << 56 | 128 << 48) is None, "the processor refuses it"
    assert signal_text(SIGBUS, BUS_MCEERR_AR) == "SIGBUS (BUS_MCEERR_AR)"
