"""Recordings with BPF of real programs: replayed, everything is as recorded, also which VMAs share an anon_vma."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.conftest import Recorded, Recorder, record_command
from vmalab.live import bpf_events, bpf_record
from vmalab.trace.file import TraceWriter, read_trace
from vmalab.trace.records import VERSION, Call, End, Exec, Exit, Fault, File, Fork, Header, Lost, Maps, Record, Stack
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


def test_hello(record_bpf: Recorder, program: Program, tmp_path: Path, environment: dict[str, str]) -> None:
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
    words = [sys.executable, "-m", "vmalab", "replay", str(tmp_path / "trace.jsonl")]
    shown = subprocess.run(words, capture_output=True, text=True, check=False, env=environment).stdout
    assert "1 of 1 lists equal in bounds, flags, offset, file and anon_vma" in shown
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


def test_what_execve_writes_is_not_written_by_the_old_program(record_bpf: Recorder, program: Program) -> None:
    """The kernel fills the new stack before the new program is said to run; the caller of vfork still has the old one.

    Without randomisation the new stack, which is long, lies right below the old one, which would have grown there.
    """
    code = "import subprocess; subprocess.run(['true', *['x' * 100_000] * 10, *['y'] * 2000])"
    got = record_bpf("setarch", "-R", sys.executable, "-c", code)
    assert [fork.flags for fork in got.of(Fork)] == [VFORK]
    exact(got)


def test_a_profiler_runs_too(record_bpf: Recorder, program: Program) -> None:
    """It follows frame pointers that are none: the faults that this takes come within others, and are not handled."""
    got = record_bpf(program("profiled"), sys.executable, "-c", "import json, sqlite3")
    if got.status == 77:
        pytest.skip(f"no events of page faults here: {got.stderr.splitlines()[-1]}")
    assert len([fault for fault in got.of(Fault) if fault.write and not fault.vma_lock]) > 10
    assert [fault for fault in got.of(Fault) if fault.addr < 0x10000] == []
    exact(got)


def test_the_kernel_writes_without_waiting_for_the_page(record_bpf: Recorder, program: Program) -> None:
    got = record_bpf(program("futex"))
    page = next(call.args[0] for call in got.of(Call) if call.call == "mprotect" and call.args[2] == 7)
    assert [fault.write for fault in got.of(Fault) if fault.addr == page and not fault.vma_lock] == [True]
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


def test_no_stack_is_lost_where_the_table_of_the_kernel_is_full(
    can_record_with_bpf: None, program: Program, tmp_path: Path
) -> None:
    """Each call has the stack that its path says: 256 different ones, of calls and faults, in a table of two."""
    path, trace = program("paths", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls"), tmp_path / "t.jsonl"
    summary = bpf_record.record([path, "8"], str(trace), bpf_record.Options(stacks=True, stack_places=2))
    assert summary.notes == []
    with read_trace(trace) as reader:
        records = list(reader)
    frames = {stack.id: stack.frames for stack in records if isinstance(stack, Stack)}
    calls = [call for call in records if isinstance(call, Call) and call.args[-1] == 1000]
    assert [call.args[1] >> 12 for call in calls] == list(range(256))
    walked = [[each for each in frames[call.stack or 0] if each.startswith("walk+")] for call in calls]
    left, right = walked[0][-1], walked[-1][-1]
    assert left != right
    for number, found in enumerate(walked):
        # The innermost returns to its end, those above it to where they went left or right.
        steps = found[-8:]
        assert steps == [right if number >> bit & 1 else left for bit in range(8)], number
    assert all(fault.stack is not None for fault in records if isinstance(fault, Fault))


def test_stacks_of_code_without_frame_pointers(record_bpf: Recorder, tmp_path: Path) -> None:
    from tests.programs import compile_program

    path = compile_program(ROOT / "tests/live/programs/deep.c", tmp_path, "-O2", "-fomit-frame-pointer")
    got = record_bpf(path, options=["--dwarf-stacks"])
    known = {stack.id: stack.frames for stack in got.of(Stack)}
    (stack,) = [known[call.stack] for call in got.of(Call) if call.call == "mmap" and call.args[1] == 4096 * 77]
    names = [frame.split("+")[0] for frame in stack]
    below = names[names.index("inner") :]
    assert [name for name in below[:4] if name != "outer"][:3] == ["inner", "middle", "main"]  # outer may be inlined
    assert names[-1] == "_start"
    assert "note:" not in got.stderr
    exact(got)
    short = record_bpf(path, options=["--stacks"], name="short.jsonl")
    assert "stacks of calls end too early" in short.stderr


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


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "all(n == 0 for n in iter(int, 1))"])
def test_a_process_that_makes_no_call_shows_its_vmas_too(
    can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str], code: str
) -> None:
    trace = tmp_path / "trace.jsonl"
    words = [sys.executable, "-c", f"print(flush=True); {code}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            running.stdout.readline()
            asked = record_command(trace, [], "--pid", str(running.pid), "--time", "0.3", recorder="bpf")
            done = subprocess.run(asked, capture_output=True, check=False, timeout=60, env=environment)
            maps = Path(f"/proc/{running.pid}/maps").read_text().splitlines()
        finally:
            running.kill()
    got = Recorded(done, trace)
    (found,) = got.of(Exec)
    assert found.argv == words
    (shown,) = got.of(Maps)
    assert len(shown.vmas) == len([line for line in maps if not line.startswith("ffffffff")])
    exact(got)


def test_the_process_ends_and_nobody_waits_for_it(
    can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str]
) -> None:
    with subprocess.Popen(["sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        running.stdout.readline()
        words = record_command(tmp_path / "t", [], "--pid", str(running.pid), recorder="bpf")
        with subprocess.Popen(words, stderr=subprocess.PIPE, env=environment) as recording:
            assert recording.stderr is not None
            assert b"recording with bpf" in recording.stderr.readline()
            time.sleep(0.3)
            running.stdin.close()
            assert recording.wait(20) == 0
        state = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "Z", "it has ended, and is still there"
    got = Recorded(subprocess.CompletedProcess([], 0, b"", b""), tmp_path / "t")
    assert [end.pid for end in got.of(Exit)] == [running.pid]
    exact(got)


def a_thread_of_the_kernel() -> str:
    return next(path.parent.name for path in Path("/proc").glob("[0-9]*/status") if "\nKthread:\t1" in path.read_text())


def test_there_is_nothing_to_attach_to(can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str]) -> None:
    code = "import os, threading, time; threading.Thread(target=time.sleep, args=(9,)).start(); print(flush=True)"
    with (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as threads,
        subprocess.Popen([sys.executable, "-c", "print(flush=True)"], stdout=subprocess.PIPE) as ended,
    ):
        assert threads.stdout is not None
        assert ended.stdout is not None
        threads.stdout.readline()
        ended.stdout.read()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        thread = next(
            path.name for path in Path(f"/proc/{threads.pid}/task").iterdir() if path.name != str(threads.pid)
        )
        expected = {
            thread: f"{thread} is a thread of process {threads.pid}: give --pid {threads.pid}",
            str(ended.pid): f"process {ended.pid} has ended",
            a_thread_of_the_kernel(): "is a thread of the kernel, without an address space",
        }
        for pid, words in expected.items():
            asked = record_command(tmp_path / "t", [], "--pid", pid, recorder="bpf")
            done = subprocess.run(asked, capture_output=True, text=True, check=False, env=environment)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert words in done.stderr
            assert not (tmp_path / "t").exists()
        threads.kill()


def test_until_maps(record_bpf: Recorder) -> None:
    got = record_bpf(
        sys.executable, "-c", GROWING.replace("range(100000)", "range(1500)"), options=["--until-maps", "600"]
    )
    assert "more VMAs than the limit" in got.stderr
    assert len(got.of(Maps)[-1].vmas) > 600
    exact(got)


def test_a_process_that_has_too_many_already(
    can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str]
) -> None:
    code = "print(flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            running.stdout.readline()
            words = ["--pid", str(running.pid), "--until-maps", "20"]
            asked = record_command(tmp_path / "t", [], *words, recorder="bpf")
            done = subprocess.run(asked, capture_output=True, check=False, timeout=30, env=environment)
        finally:
            running.kill()
    got = Recorded(done, tmp_path / "t")
    assert (got.status, "more VMAs than the limit" in got.stderr) == (0, True)
    assert len(got.of(Exec)[0].vmas) > 20
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


def test_flight_recorder_until_there_are_too_many_vmas(record_bpf: Recorder) -> None:
    words = [sys.executable, "-c", GROWING.replace("range(100000)", "range(1500)")]
    got = record_bpf(*words, options=["--ring", "0.5", "--until-maps", "600"])
    assert got.status == 0
    assert "more VMAs than the limit" in got.stderr
    assert len(got.of(Maps)[-1].vmas) > 600
    exact(got)
    got = record_bpf("true", options=["--ring", "1", "--until-maps", "600"], name="none")
    assert (got.status, got.header) == (1, None)
    assert "failed with ENOMEM and no process had more VMAs than the limit" in got.stderr
    got = record_bpf("true", options=["--ring", "1", "--size", "600"], name="none")
    assert (got.status, got.stderr.count("\n")) == (2, 1)


def test_flight_recorder_without_a_failure(record_bpf: Recorder) -> None:
    got = record_bpf("true", options=["--ring", "1"])
    assert got.status == 1
    assert "no memory call failed with ENOMEM" in got.stderr
    assert got.header is None


def test_a_trace_is_replaced_by_another_one_only(record_bpf: Recorder, record: Recorder, tmp_path: Path) -> None:
    """Not by a flight recorder that had nothing to write, nor by a program that does not start."""
    first = record_bpf("true")
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert record_bpf("true", options=["--ring", "1"]).records == first.records
    for recorder in (record_bpf, record):
        got = recorder(str(script))
        assert (got.status, "No such file or directory" in got.stderr) == (2, True)
        assert got.records == first.records
    assert record_bpf("true").records != first.records


def test_a_process_that_shows_nothing(tmp_path: Path) -> None:
    told = bpf_events.Told()
    told.done = (0, False, "time")
    options = bpf_record.Options(pid=7, seconds=1)
    with TraceWriter(tmp_path / "t", Header(vmalab="trace", version=VERSION), at_first_record=True) as writer:
        recording = bpf_record._Recording(writer, "t", options, None)
        recording._finish(told, 0)
    why = "process 7 has not shown its VMAs: nothing of it was recorded"
    assert recording.summary.lost == [why]
    with read_trace(tmp_path / "t") as reader:
        assert [each.why for each in reader if isinstance(each, Lost)] == [why]


PAGES = 100_000


def test_events_are_lost_where_the_ring_is_full(
    record_bpf: Recorder, program: Program, tmp_path: Path, environment: dict[str, str]
) -> None:
    """They are counted, and the trace can be trusted again where the process has shown its VMAs anew."""
    got = record_bpf(program("burst"), str(PAGES), options=["--buffer", "65536", "--json"])
    summary = json.loads(got.stderr)
    (block,) = [call.ret for call in got.of(Call) if call.call == "mmap" and call.args[1] == PAGES << 12]
    first = next(lost.n for lost in got.of(Lost))
    seen = [fault for fault in got.of(Fault) if block <= fault.addr < block + (PAGES << 12)]
    missing = summary["events_lost"] + summary["events_left_out"]
    assert 0 < len(seen) < PAGES
    assert PAGES <= len(seen) + missing < PAGES + 1000  # lists of VMAs may not have had room either
    assert sum(lost.events for lost in got.of(Lost)) == summary["events_lost"] > 0
    assert all(lost.why and lost.pid == 0 for lost in got.of(Lost))
    replayed = Replay(got.header) if got.header is not None else None
    assert replayed is not None
    for each in got.records:
        replayed.step(each)
    *befores, after = replayed.programs
    for before in befores:
        assert (bool(before.lost), before.replaced, before.mismatches, before.final) == (True, True, 0, None)
    assert (after.lost, after.mismatches, after.final) == ("", 0, [])
    assert after.calls == 10
    words = [sys.executable, "-m", "vmalab", "replay", str(tmp_path / "trace.jsonl")]
    shown = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment).stdout
    assert "then something was lost" in shown
    assert "that ran another program" not in shown
    for command in ("replay", "explain", "attribute", "why", "report"):
        words = [sys.executable, "-m", "vmalab", command, str(tmp_path / "trace.jsonl")]
        words += {"why": [hex(block)], "report": ["-o", str(tmp_path / "report.html")]}.get(command, [])
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment)
        assert f"from record {first} on " in done.stdout + done.stderr, command
        assert f"{summary['events_lost']:,} events in all" in done.stdout + done.stderr, command
    assert f"from record {first} on " in (tmp_path / "report.html").read_text()


def test_a_call_that_is_not_recorded_changes_memory(record_bpf: Recorder) -> None:
    """io_setup maps a ring: the recorder does not know it, but sees that something happened, and looks again."""
    code = (
        "import ctypes, mmap; libc = ctypes.CDLL(None); context = ctypes.c_ulong();"
        "print(libc.syscall(206, 4, ctypes.byref(context))); kept = [mmap.mmap(-1, 8192) for _ in range(5)]"
    )
    got = record_bpf(sys.executable, "-c", code)
    if got.stdout != "0\n":
        pytest.skip("this kernel has no io_setup")
    (lost,) = got.of(Lost)
    assert lost.pid == got.of(Exec)[0].pid
    assert "by a call that had begun before the recording, or that is not recorded" in lost.why
    assert "memory was changed once" in got.stderr
    assert any("[aio]" in vma.path for vma in got.of(Exec)[-1].vmas)
    assert got.header is not None
    replayed = Replay(got.header)
    for each in got.records:
        replayed.step(each)
    assert [(program.mismatches, program.final) for program in replayed.programs] == [(0, None), (0, [])]


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


def test_a_killed_recorder_leaves_a_readable_trace(
    can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Whichever part is killed; the program runs on."""
    for victim in ("recorder", "helper"):
        trace = tmp_path / f"{victim}.jsonl.zst"
        words = record_command(trace, ["sh", "-c", "echo $$; while :; do sleep 0.05; done"], recorder="bpf")
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            program = int(running.stdout.readline())
            try:
                running.stderr.readline()
                time.sleep(1.5)
                children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
                os.kill(running.pid if victim == "recorder" else int(children[0]), signal.SIGKILL)
                status = running.wait(timeout=30)
                os.kill(program, 0)
            finally:
                os.kill(program, signal.SIGKILL)
            said = running.stderr.read().decode()
        with read_trace(trace) as reader:
            records = list(reader)
        assert sum(isinstance(each, Exit) for each in records) > 3
        if victim == "recorder":
            assert (status, said, reader.truncated is not None) == (-signal.SIGKILL, "", True)
        else:
            assert (status, said.count("\n")) == (2, 1)
            assert "the BPF recorder was ended (status -9)" in said
            assert isinstance(records[-2], Lost)
            assert records[-1] == End(n=len(records), reason="interrupted")


def test_a_full_disk(can_record_with_bpf: None, tmp_path: Path, environment: dict[str, str]) -> None:
    """What is recorded runs on, whoever started it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        words = record_command(disk / "trace.jsonl", [sys.executable, "-c", "import json; print('ran')"])
        words[words.index("ptrace")] = "bpf"
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment)
        assert (done.returncode, done.stdout) == (2, "ran\n")
        assert "No space left on device; what was recorded ran on (status 0)" in done.stderr
        assert len(done.stderr.splitlines()) == 2
        with read_trace(disk / "trace.jsonl") as reader:
            assert len(list(reader)) > 100
        assert reader.truncated is not None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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
