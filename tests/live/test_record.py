"""Recordings of real programs: what the trace holds, and that the program does not notice."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import Recorded, Recorder
from vmalab.live.record import record as run
from vmalab.trace.file import read_trace
from vmalab.trace.records import Call, End, Exec, Exit, File, Fork, Lost

Program = Callable[..., str]
VFORK = 0x4100
THREAD = 0x10000
MAP_FIXED = 0x10


def calls(recorded: Recorded, name: str) -> list[Any]:
    """The records of one system call."""
    return [call for call in recorded.of(Call) if call.call == name]


@pytest.mark.parametrize("flags", [(), ("-static",), ("-static-pie",), ("-no-pie",)])
def test_hello(record: Recorder, program: Program, flags: tuple[str, ...]) -> None:
    path = program("hello", *flags)
    got = record(path)
    assert (got.status, got.stdout) == (7, "hello\n")
    assert got.truncated is None
    assert got.header is not None
    assert (got.header.recorder, got.header.faults, got.header.command) == ("ptrace", "at-calls", [path])
    (start,), (end,) = got.of(Exec), got.of(Exit)
    assert (start.exe, start.argv) == (path, [path])
    assert start.topdown
    assert start.mmap_base in {vma.end for vma in start.vmas}
    assert any(vma.path == "[stack]" for vma in start.vmas)
    assert (end.code, end.signal) == (7, None)
    assert end.vmas is not None
    assert any(vma.path == "[heap]" and vma.anon for vma in end.vmas)
    assert got.of(Lost) == []
    assert got.records[-1] == End(n=len(got.records), reason="done")


LAYOUTS = """
ulimit -S -s 8192
for program; do setarch -R $program; setarch -R -L $program; done
ulimit -s unlimited || exit 0
for program; do setarch -R $program; done
"""


def test_layouts(record: Recorder, program: Program) -> None:
    if shutil.which("setarch") is None:
        pytest.skip("no setarch")
    paths = [program("hello", *flags) for flags in ((), ("-static",), ("-static-pie",))]
    starts = record("sh", "-c", LAYOUTS, "sh", *paths).of(Exec)
    found = {path: [start for start in starts if start.exe == path] for path in paths}
    for fixed, legacy, *unlimited in found.values():
        assert (fixed.mmap_base, fixed.topdown, fixed.limits.stack) == (0x7FFFF7FFF000, True, 8 << 20)
        assert fixed.personality & 0x40000
        assert (legacy.mmap_base, legacy.topdown) == (0x2AAAAAAAB000, False)
        for start in unlimited:
            assert (start.mmap_base, start.topdown, start.limits.stack) == (0x155555556000, True, None)


def test_files_are_told_apart_by_open(record: Recorder, program: Program, tmp_path: Path) -> None:
    data = tmp_path / "a \\ b\n"
    data.write_bytes(b"x" * 4096)
    got = record(program("identity"), str(data))
    assert got.status == 0
    files = {file.id: file for file in got.of(File) if file.ino == data.stat().st_ino}
    ids = [call.file for call in calls(got, "mmap") if call.file in files]
    first, second, third = list(dict.fromkeys(ids))
    assert ids == [first, first, second, first, second, third, first]
    assert [files[each].writable for each in (first, second, third)] == [False, True, False]
    assert files[first].path == str(tmp_path) + "/a \\134 b\\012"
    assert {files[each].kind for each in files} == {"regular"}


def test_written_mappings_are_observed(record: Recorder, program: Program) -> None:
    got = record(program("written"))
    protects = {call.args[0]: call for call in calls(got, "mprotect")}
    assert protects[0x10000000].written == [0x1000C000]
    assert protects[0x20000000].written == []
    assert protects[0x30000000].written == []
    (fork,) = got.of(Fork)
    assert 0x40000000 in fork.written
    assert not {address for address in fork.written if 0x10000000 <= address < 0x40000000}


def test_the_stack_grows(record: Recorder, program: Program) -> None:
    got = record(program("stack"))
    stack = next(vma for vma in got.of(Exec)[0].vmas if vma.path == "[stack]")
    (grown,) = [call.grown for call in got.of(Call) if call.grown]
    ((start, end),) = grown
    assert start <= stack.end - 21 * 65536
    assert end == stack.end


def test_what_pointers_point_to(record: Recorder, program: Program) -> None:
    got = record(program("calls"))
    data = {call.call: call.data for call in got.of(Call)}
    area = next(call.ret for call in calls(got, "mmap") if call.args[1] == 1 << 20)
    named, laid_out = calls(got, "prctl")
    assert named.data == {"name": "a name"}
    assert laid_out.data == {"layout": [*range(1, 12)], "rest": [12, 13, 14]}
    assert [call.data for call in calls(got, "shmctl")] == [{"mode": 0o640}, {}]
    limit = next(call for call in got.of(Call) if call.call in ("setrlimit", "prlimit64"))
    assert limit.data["cur"] == 4 << 20
    assert data["mbind"] == {"nodes": [0]}
    assert data["memfd_create"] == {"name": "of\\012mine"}
    assert data["shmat"] == {"size": 12288, "key": 0x1234}
    advised = calls(got, "process_madvise")[0]
    assert advised.data == {"pid": advised.pid, "ranges": [area, 4096, area + 8192, 4096]}
    kinds = {file.kind: file for file in got.of(File)}
    assert kinds["memfd"].path == "/memfd:of\\012mine (deleted)"
    assert kinds["shm"].path == "/SYSV00001234 (deleted)"
    assert any(file.path == "/dev/zero" and file.kind == "regular" for file in got.of(File))
    registered = [call for call in calls(got, "ioctl") if "start" in call.data]
    if calls(got, "userfaultfd")[0].ret >= 0:
        number = registered[0].data["uffd"]
        assert registered[0].data == {"start": area, "len": 65536, "mode": 1, "uffd": number}
        (closed,) = calls(got, "close")
        assert closed.data == {"uffd": number}
    vfork = got.of(Fork)[-1]
    assert vfork.flags == VFORK
    (lent,) = [end for end in got.of(Exit) if end.pid == vfork.pid]
    assert lent.vmas is None


def pages(start: int, size: int) -> set[int]:
    """The numbers of the pages of a range."""
    return set(range(start >> 12, (start + size + 4095) >> 12))


def check_order(got: Recorded) -> int:
    """Walks through the calls: none may map what is mapped, or unmap what is not.  Returns how many there were."""
    mapped: set[int] = set().union(*(pages(vma.start, vma.end - vma.start) for vma in got.of(Exec)[0].vmas))
    count = 0
    for call in got.of(Call):
        if call.call not in ("mmap", "munmap", "mremap") or call.ret < 0:
            continue
        count += 1
        if call.call != "mmap":
            given = pages(call.args[0], call.args[1])
            assert given <= mapped, call
            mapped -= given
        if call.call != "munmap":
            taken = pages(call.ret, call.args[1] if call.call == "mmap" else call.args[2])
            replaces = call.call == "mmap" and call.args[3] & MAP_FIXED
            assert replaces or not taken & mapped, call
            mapped |= taken
    return count


def test_calls_of_threads_are_in_order(record: Recorder, program: Program) -> None:
    got = record(program("threads"))
    assert got.status == 0
    assert got.of(Lost) == []
    forks = got.of(Fork)
    assert len(forks) == 4
    assert all(fork.flags & THREAD and fork.pid == fork.parent for fork in forks)
    assert check_order(got) > 1200
    assert len(got.of(Exit)) == 1


def test_exec_by_a_thread(record: Recorder, program: Program) -> None:
    got = record(program("exec_thread"))
    assert (got.status, got.stdout) == (0, "from a thread\n")
    first, second = got.of(Exec)
    assert first.pid == second.pid
    assert second.argv == ["echo", "from a thread"]
    (end,) = got.of(Exit)
    assert end.pid == first.pid
    assert all(call.tid == first.pid for call in got.of(Call) if call.n > second.n)


def test_pipeline(record: Recorder) -> None:
    got = record("sh", "-c", "printf 'b\\na\\n' | sort | tr a-z A-Z; exit 5")
    assert (got.status, got.stdout) == (5, "A\nB\n")
    assert len(got.of(Exit)) == len({fork.pid for fork in got.of(Fork)}) + 1
    introduced = {got.records[0].pid} if isinstance(got.records[0], Exec) else set()
    for one in got.records:
        if isinstance(one, Fork):
            introduced.add(one.pid)
        elif isinstance(one, Call | Exec | Exit):
            assert one.pid in introduced


def test_without_the_new_ioctls(record: Recorder, program: Program, tmp_path: Path) -> None:
    trace = tmp_path / "old.jsonl"
    assert run([program("threads")], str(trace), use_ioctls=False).status == 0
    assert run([program("written")], str(trace), use_ioctls=False).status == 0
    with read_trace(trace) as reader:
        protects = {call.args[0]: call for call in reader if isinstance(call, Call) and call.call == "mprotect"}
    assert protects[0x10000000].written == [0x1000C000]
    assert protects[0x30000000].written == []


def test_children_that_outlive_the_program(record: Recorder) -> None:
    got = record("sh", "-c", "sleep 0.3 & exit 4")
    assert got.status == 4
    sleeper = next(start for start in got.of(Exec) if start.argv[0] == "sleep")
    assert [end.code for end in got.of(Exit) if end.pid == sleeper.pid] == [0]
    assert got.truncated is None
