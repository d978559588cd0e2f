"""What a record can and cannot be."""

from typing import Any

import pytest
from hypothesis import given

from tests.trace.strategies import traces
from vmalab.flags import CAPABILITIES
from vmalab.trace.check import Sequence, check, check_header
from vmalab.trace.records import Call, End, Exec, Exit, Fault, File, Fork, Header, Limits, Lost, Machine, Record, Vma


def _call(**changes: Any) -> Call:
    fields: dict[str, Any] = {"n": 1, "pid": 7, "tid": 7, "call": "mprotect", "args": [0x1000, 0x1000, 1], "ret": 0}
    return Call(**(fields | changes))


def _vma(start: int, end: int, **changes: Any) -> Vma:
    fields: dict[str, Any] = {"start": start, "end": end, "flags": "rd mr mw me"}
    return Vma(**(fields | changes))


def _exec(*vmas: Vma, **changes: Any) -> Exec:
    fields: dict[str, Any] = {"n": 1, "pid": 7, "exe": "/bin/true", "vmas": list(vmas)}
    return Exec(**(fields | changes))


@given(traces())
def test_what_the_format_allows_passes(trace: tuple[Header, list[Record]]) -> None:
    header, records = trace
    assert check_header(header) is None
    sequence = Sequence()
    for number, record in enumerate(records, 1):
        record.n = number
        assert check(record) is None
        assert sequence.accept(record) is None


@pytest.mark.parametrize(
    "record",
    [
        _exec(_vma(0x1000, 0x2000), _vma(0x2000, 0x3000), _vma(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000)),
        _exec(_vma((1 << 64) - 4096, 1 << 64), caps=["sys_admin"], mmap_base=0x7FFFF7FFF000),
        _call(ret=-4095),
        _call(ret=0x7FFFF7FFF000),
        _call(call="shiny_new_call", args=[1, 2]),
        _call(call="process_madvise", args=[1, 2, 3, 4, 0], data={"pid": 7, "ranges": [0x1000, 0x1000]}),
        Lost(n=1, pid=0, why="full"),
        Exit(n=1, pid=7, signal=9),
    ],
)
def test_the_edges_of_what_is_possible(record: Record) -> None:
    assert check(record) is None


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (_call(call="MPROTECT"), '"MPROTECT" is no name of a system call'),
        (
            Fork(n=1, pid=7, tid=7, parent=7, parent_tid=7, flags=17),
            "pid is 7, the number of its parent; only a thread",
        ),
        (_call(call="a\x1b[0m"), r'"a\x1b[0m" is no name of a system call'),
        (_call(args=[1]), "mprotect has 1 argument; it takes 3"),
        (_call(args=[1, 2, 3, 4]), "mprotect has 4 arguments; it takes 3"),
        (_call(call="shiny_new_call", args=[0] * 7), "shiny_new_call has 7 arguments; no call takes more than 6"),
        (_call(args=[-1, 0, 0]), "argument 1 of mprotect is -1; it must be an unsigned 64-bit word"),
        (_call(args=[0, 1 << 64, 0]), "argument 2 of mprotect is 18446744073709551616; it must be an unsigned"),
        (_call(args=[0, 10**4000, 0]), "argument 2 of mprotect is above 2**64; it must be an unsigned 64-bit word"),
        (_call(ret=-4096), "ret is -4096; it must be a 64-bit result or minus an errno (at least -4095)"),
        (_call(ret=1 << 64), "ret is 18446744073709551616; it must be"),
        (_call(file=-1), "file is -1; it must not be negative"),
        (_call(pid=0), "pid is 0; it must be from 1 to 4194304"),
        (_call(tid=1 << 40), "tid is 1099511627776; it must be from 1 to 4194304"),
        (_call(data={"ranges": [1]}), "data ranges must be a list of address, length"),
        (_call(data={"ranges": 1}), "data ranges must be a list of address, length"),
        (_call(data={"cur": 1 << 64}), 'data "cur" holds 18446744073709551616; it must be a 64-bit number'),
        (_call(data={"name": "a\nb"}), r'data."name" is "a\x0ab": a byte that is not printable'),
        (_call(written=[-1]), "written holds -1, which is no address"),
        (_call(grown=[(0x2000, 0x1000)]), "grown holds [0x2000, 0x1000), which is no range of whole pages"),
        (_call(grown=[(0x1000, 0x1001)]), "grown holds [0x1000, 0x1001), which is no range of whole pages"),
        (Fault(n=1, pid=7, tid=7, addr=-1), "addr is -1; it must be from 0 to 2**64 - 1"),
        (Fork(n=1, pid=8, tid=8, parent=0, parent_tid=7, flags=0), "parent is 0; it must be from 1 to 4194304"),
        (Fork(n=1, pid=8, tid=8, parent=7, parent_tid=7, flags=-1), "flags is -1; it must be from 0 to 2**64 - 1"),
        (File(n=1, id=-1), "id is -1; it must not be negative"),
        (File(n=1, id=1, kind="pipe"), 'kind is "pipe"; it must be one of device, hugetlb, memfd, other, regular, shm'),
        (File(n=1, id=1, dev="8"), 'dev is "8"; it must be two hexadecimal numbers, such as 08:01'),
        (File(n=1, id=1, path="a\tb"), r'path is "a\x09b": a byte that is not printable is written as a backslash'),
        (File(n=1, id=1, driver_flags="zz"), "driver_flags: unknown VmFlags mnemonic 'zz'"),
        (_exec(_vma(0x2000, 0x1000)), "VMA 1 is [0x2000, 0x1000), which is no range of addresses"),
        (_exec(_vma(-4096, 0x1000)), "VMA 1 is [-4096, 0x1000), which is no range of addresses"),
        (_exec(_vma(0, (1 << 64) + 4096)), "VMA 1 is [0x0, above 2**64), which is no range of addresses"),
        (_exec(_vma(0x1000, 0x1800)), "VMA 1 is [0x1000, 0x1800), which is not whole pages"),
        (
            _exec(_vma(0x1000, 0x3000), _vma(0x2000, 0x4000)),
            "VMA 2 starts at 0x2000, below the end of the one before it, 0x3000",
        ),
        (
            _exec(_vma(0x5000, 0x6000), _vma(0x1000, 0x2000)),
            "VMA 2 starts at 0x1000, below the end of the one before it, 0x6000",
        ),
        (_exec(_vma(0x1000, 0x2000, flags="rd xx")), "VMA 1, at 0x1000: flags: unknown VmFlags mnemonic 'xx'"),
        (_exec(_vma(0x1000, 0x2000, offset=5)), "VMA 1, at 0x1000: offset is 0x5, which is not whole pages"),
        (_exec(_vma(0x1000, 0x2000, pkey=16)), "VMA 1, at 0x1000: pkey is 16; it must be from 0 to 15"),
        (_exec(_vma(0x1000, 0x2000, ino=-1)), "VMA 1, at 0x1000: ino is -1; it must be from 0"),
        (_exec(mmap_base=-1), "mmap_base is -1; it must be from 0 to 2**64 - 1"),
        (_exec(start_stack=1 << 64), "start_stack is 18446744073709551616; it must be from 0 to 2**64 - 1"),
        (_exec(start_brk=0x2000, brk=0x1000), "brk is 0x1000, below start_brk, 0x2000"),
        (_exec(caps=["all"]), f'caps holds "all"; it may hold {", ".join(sorted(CAPABILITIES))}'),
        (_exec(limits=Limits(as_=-1)), "limits.as is -1; it must be from 0 to 2**64 - 1"),
        (Exit(n=1, pid=7, code=256), "code is 256; an exit code is from 0 to 255"),
        (Exit(n=1, pid=7, signal=0), "signal is 0; a signal is from 1 to 64"),
        (Exit(n=1, pid=7, vmas=[_vma(1, 2)]), "VMA 1 is [0x1, 0x2), which is not whole pages"),
        (Lost(n=1, pid=-1, why=""), "pid is -1; it must be from 1 to 4194304"),
        (End(n=1, reason="bored"), 'reason is "bored"; it must be one of done, interrupted'),
    ],
)
def test_what_is_impossible(record: Record, problem: str) -> None:
    assert (check(record) or "").startswith(problem)


@pytest.mark.parametrize(
    ("machine", "problem"),
    [
        (Machine(page_size=3000), "machine.page_size is 3000; it must be a power of two"),
        (Machine(max_map_count=-1), "machine.max_map_count is -1; it must be from 0 to 2**31 - 1"),
        (Machine(ram_pages=1 << 60), "machine.ram_pages is 1152921504606846976; it must be from 0 to 2**52 - 1"),
        (Machine(dac_mmap_min_addr=-5), "machine.dac_mmap_min_addr is -5; it must be from 0 to 2**62 - 1"),
        (Machine(overcommit_memory=3), "machine.overcommit_memory is 3; it must be 0, 1 or 2"),
        (Machine(numa_nodes=0), "machine.numa_nodes is 0; it must be from 1 to 1024"),
    ],
)
def test_impossible_machines(machine: Machine, problem: str) -> None:
    assert check_header(Header(vmalab="trace", version=1, machine=machine)) == problem


def test_a_fork_needs_its_parent() -> None:
    sequence = Sequence()
    assert sequence.accept(_exec()) is None
    child = Fork(n=2, pid=8, tid=8, parent=9, parent_tid=9, flags=0)
    assert sequence.accept(child) == "process 9 was not introduced by an exec or fork record before it"
    child.parent = 7
    assert sequence.accept(child) is None
    assert sequence.accept(Exit(n=3, pid=8)) is None
    assert sequence.count == 3
