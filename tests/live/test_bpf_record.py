"""Recordings with BPF of real programs: replayed, everything is as recorded, also which VMAs share an anon_vma."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.conftest import Recorded, Recorder, record_command
from vmalab.live import bpf_record
from vmalab.trace.file import read_trace
from vmalab.trace.records import Call, End, Exec, Exit, Fault, File, Fork, Lost, Maps, Record, Stack
from vmalab.trace.replay import Replay

Program = Callable[..., str]
ROOT = Path(__file__).resolve().parents[2]
VFORK = 0x4100
GROWING = """
import mmap, time
kept = []
print("ready", flush=True)
for i in range(100000):
    kept.append(mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=1 + 2 * (i % 2)))
    if len(kept) > 3000: del kept[:2000]
    time.sleep(0.0005)
"""
FAILING = """
import mmap, time
kept = []
for i in range(400):
    kept.append(mmap.mmap(-1, 4096 * (1 + i % 5), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    if len(kept) > 50: del kept[::2]
    time.sleep(0.004)
try:
    mmap.mmap(-1, 1 << 46, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except OSError as error:
    print(error.errno)
"""


def replay(records: list[Record], got: Recorded) -> Replay:
    """Replays a recording that has to be exact."""
    assert got.header is not None
    replayed = Replay(got.header)
    for each in records:
        replayed.step(each)
    replayed.finish()
    for program in replayed.programs:
        assert program.mismatches == 0, repr(program.first and program.first.call)
        assert not program.final
        assert not program.lost
    return replayed


def exact(got: Recorded) -> Replay:
    """Checks that a recording replays exactly, and has lists to compare with."""
    assert got.of(Lost) == []
    replayed = replay(got.records, got)
    assert any(program.final is not None for program in replayed.programs)
    return replayed


def test_hello(record_bpf: Recorder, program: Program) -> None:
    path = program("hello")
    got = record_bpf(path)
    assert (got.status, got.stdout) == (7, "hello\n")
    assert "recording with bpf: as asked for" in got.stderr
    assert got.header is not None
    assert (got.header.recorder, got.header.faults) == ("bpf", "exact")
    (start,), (end,) = got.of(Exec), got.of(Exit)
    assert (start.exe, start.argv, start.anon_vmas) == (path, [path], True)
    assert {"[heap]", "[stack]", "[vdso]"} <= {vma.path for vma in end.vmas}
    assert (end.code, end.signal, end.anon_vmas) == (7, None, True)
    stack = next(vma for vma in end.vmas if vma.path == "[stack]")
    assert (stack.anon_vma > 0, stack.chain) == (True, 1)
    assert any(fault.write for fault in got.of(Fault))
    assert got.records[-1] == End(n=len(got.records), reason="done")
    exact(got)


def test_it_sees_what_the_ptrace_recorder_sees(record_bpf: Recorder, record: Recorder, program: Program) -> None:
    """The same calls, processes and files, and the same lists of VMAs, without randomisation."""
    command = ["setarch", "-R", program("calls")]
    one, two = record_bpf(*command), record(*command)
    exact(one)
    seen = [
        [(call.call, call.args, call.ret, call.data) for call in got.of(Call) if call.call not in ("close", "ioctl")]
        for got in (one, two)
    ]
    pids = [{pid: i for i, pid in enumerate(sorted({each.pid for each in got.of(Exec)}))} for got in (one, two)]
    assert len(pids[0]) == len(pids[1])
    assert [(name, len(args)) for name, args, _, _ in seen[0]] == [(name, len(args)) for name, args, _, _ in seen[1]]
    # A string that the program has not touched yet is not seen where the kernel does not look at it either.
    followed = [[each for each in calls if each[0] in ("shmctl", "mbind") or "layout" in each[3]] for calls in seen]
    assert [data for *_, data in followed[0]] == [data for *_, data in followed[1]]
    assert len(followed[0]) == 4
    for got, calls in zip((one, two), seen, strict=True):
        (advised,) = [data for name, _, _, data in calls if name == "process_madvise"]
        assert advised["pid"] == got.of(Exec)[-1].pid
    ends = [[(vma.start, vma.end, vma.flags, vma.path) for vma in got.of(Exit)[-1].vmas] for got in (one, two)]
    assert ends[0] == ends[1]


def test_files(record_bpf: Recorder, program: Program, tmp_path: Path) -> None:
    data = tmp_path / "a \\ b\n"
    data.write_bytes(b"x" * 4096)
    got = record_bpf(program("identity"), str(data))
    files = {file.id: file for file in got.of(File) if file.ino == data.stat().st_ino}
    ids = [call.file for call in got.of(Call) if call.call == "mmap" and call.file in files]
    first, second, third = list(dict.fromkeys(ids))
    assert ids == [first, first, second, first, second, third, first]
    assert [files[each].writable for each in (first, second, third)] == [False, True, False]
    assert files[first].path == str(tmp_path) + "/a \\134 b\\012"
    exact(got)


def test_random_calls(record_bpf: Recorder, tmp_path: Path) -> None:
    """Forks, guard markers, locks, policies, seals, userfaultfds, in five processes and more."""
    from tests.programs import compile_program

    path = compile_program(ROOT / "tests/trace/programs/random_calls.c", tmp_path)
    got = record_bpf(path, "3", "1500")
    exact(got)
    assert len(got.of(Exit)) > 3


def test_the_order_of_threads(record_bpf: Recorder, tmp_path: Path) -> None:
    """Four threads change one region at the same time: in no other order would the results be these."""
    from tests.programs import compile_program

    path = compile_program(ROOT / "bench/programs/vma_stress.c", tmp_path, "-pthread")
    got = record_bpf(path, "2000")
    assert len([fork for fork in got.of(Fork) if fork.flags & 0x10000]) == 4
    replayed = exact(got)
    assert replayed.programs[-1].calls > 5000


def test_children(record_bpf: Recorder) -> None:
    got = record_bpf("sh", "-c", "true | cat; sh -c 'kill -9 $$'; echo done")
    assert (got.status, got.stdout) == (0, "done\n")
    assert {end.signal for end in got.of(Exit)} == {None, 9}
    exact(got)


def test_only_faults_that_change(record_bpf: Recorder, program: Program) -> None:
    got = record_bpf(program("threads"), options=["--changing-faults"])
    assert got.of(Fault)
    assert not any(fault.vma_lock for fault in got.of(Fault))
    exact(got)


def test_stacks(record_bpf: Recorder, program: Program) -> None:
    got = record_bpf(program("threads"), options=["--stacks"])
    known = {stack.id: stack.frames for stack in got.of(Stack)}
    found = {frame.split("+")[0] for call in got.of(Call) if call.stack for frame in known[call.stack][:1]}
    assert any("mmap" in name for name in found)
    exact(got)


def test_attach_and_stop_at_a_time(can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str]) -> None:
    trace = tmp_path / "trace.jsonl"
    with subprocess.Popen([sys.executable, "-c", GROWING], stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            running.stdout.readline()
            words = record_command(trace, [], "--pid", str(running.pid), "--time", "0.7", recorder="auto")
            done = subprocess.run(words, capture_output=True, check=False, timeout=60, env=environment)
            assert running.poll() is None
        finally:
            running.kill()
    got = Recorded(done, trace)
    assert got.status == 0
    assert "the time is over" in got.stderr
    assert [each.pid for each in got.of(Exec)] == [running.pid]
    assert got.of(Maps)
    exact(got)


def test_until_maps(record_bpf: Recorder) -> None:
    got = record_bpf(
        sys.executable, "-c", GROWING.replace("range(100000)", "range(1500)"), options=["--until-maps", "600"]
    )
    assert "more VMAs than the limit" in got.stderr
    assert len(got.of(Maps)[-1].vmas) > 600
    exact(got)


def test_size(record_bpf: Recorder) -> None:
    command = [sys.executable, "-c", GROWING.replace("range(100000)", "range(4000)")]
    got = record_bpf(*command, options=["--size", "300000"])
    assert "has the size" in got.stderr
    exact(got)


def test_flight_recorder(record_bpf: Recorder) -> None:
    got = record_bpf(sys.executable, "-c", FAILING, options=["--ring", "0.5"])
    assert (got.status, got.stdout) == (0, "12\n")
    assert "failed with ENOMEM" in got.stderr
    assert [call.ret for call in got.of(Call) if call.ret < 0] == [-12]
    exact(got)


def test_flight_recorder_without_a_failure(record_bpf: Recorder) -> None:
    got = record_bpf("true", options=["--ring", "1"])
    assert got.status == 1
    assert "no memory call failed with ENOMEM" in got.stderr
    assert got.header is None


def test_ctrl_c(can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str]) -> None:
    trace = tmp_path / "trace.jsonl"
    words = record_command(trace, ["sleep", "60"], recorder="bpf")
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=environment) as running:
        assert running.stderr is not None
        assert b"recording with bpf" in running.stderr.readline()
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == 128 + signal.SIGINT
    with read_trace(trace) as reader:
        records = list(reader)
    assert isinstance(records[-1], End)
    assert any(isinstance(each, Exit) and each.signal == signal.SIGINT for each in records)


@pytest.mark.parametrize(
    ("options", "command", "words"),
    [
        (["--pid", "1"], ["true"], "either it or a COMMAND"),
        ([], [], "nothing to record"),
        (["--pid", "4194304"], [], "there is no process 4194304"),
        (["--with", "ptrace", "--stacks"], ["true"], "--stacks needs the BPF recorder"),
    ],
)
def test_wrong_requests(
    tmp_path: Path, environment: dict[str, str], options: list[str], command: list[str], words: str
) -> None:
    asked = record_command(tmp_path / "t", command, *options, recorder="auto")
    done = subprocess.run(asked, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "t").exists()


def test_no_such_program(record_bpf: Recorder, tmp_path: Path) -> None:
    data = tmp_path / "not a program"
    data.write_text("x")
    data.chmod(0o644)
    got = record_bpf(str(data))
    assert got.status == 2
    assert "cannot run" in got.stderr
    assert got.header is None


def test_without_clang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vmalab.live import build_native

    monkeypatch.setattr(build_native, "BPF_OBJECT", tmp_path / "none.o")
    monkeypatch.setenv("CLANG", "no-such-clang")
    if build_native.unsupported() is not None:
        pytest.skip(str(build_native.unsupported()))
    reason = bpf_record.why_not()
    assert reason is not None
    assert "clang is missing" in reason
    assert os.linesep not in reason
