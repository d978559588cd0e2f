"""Logs that strace and perf write on this machine, of a program that is known: imported, replayed, and compared."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.programs import compile_program, record, vmalab
from vmalab.trace.file import read_trace
from vmalab.trace.import_log import import_log
from vmalab.trace.records import Call, Exec, Fork, Record
from vmalab.trace.replay import replay_of

PROGRAMS = Path(__file__).parent / "programs"
PROCESSES = 3
"""The program, its child, and the child after its execve."""

OPTIONS = [
    "-f",
    "-f -t",
    "-f -tt -T -y",
    "-f -ttt -yy",
    "-f -r -v -s 3",
    "-f -X raw",
    "-f -X verbose -y",
    "-f -i -n",
    "-f -x -a 60",
    "-f -Y",
    "-f -C",
    "-f -k",
    "-f -q -q",
    "-f -z",
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compile_program(PROGRAMS / "logged.c", tmp_path_factory.mktemp("logged"), "-pthread")


def strace(log: Path, options: str, *command: str) -> None:
    """Run a command under strace; skips where there is none, or it may not trace."""
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    done = subprocess.run(
        ["strace", *options.split(), "-o", str(log), *command], capture_output=True, text=True, check=False, timeout=60
    )
    if "Operation not permitted" in done.stderr or "invalid option" in done.stderr or "not been" in done.stderr:
        pytest.skip(f"strace: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stderr


def records_of(path: Path) -> list[Record]:
    return list(read_trace(path))


def shown(records: list[Record]) -> list[tuple[str, list[int], int | None]]:
    """The calls, without what only one of the sources shows."""
    found = []
    for each in records:
        if isinstance(each, Call) and each.call not in ("prlimit64", "ioctl", "close", "memfd_create"):
            args = each.args[:]
            if each.call == "mmap" and args[3] & 0x20:
                args[4] = 0xFFFFFFFF
            found.append((each.call, args[:4] if each.call == "mremap" else args, each.ret))
    return found


def check(path: Path, *, unknown: int) -> None:
    """Every result is as predicted, but for a few that depend on what was mapped before."""
    reader = read_trace(path)
    replay = replay_of(reader.header)
    for each in reader:
        replay.step(each)
    assert [program.first for program in replay.programs if program.first] == []
    assert sum(program.unknown for program in replay.programs) <= unknown
    assert [dict(program.not_modelled) for program in replay.programs if program.not_modelled] == []


@pytest.mark.parametrize("options", OPTIONS)
def test_strace(options: str, program: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    strace(log, options, program)
    output = tmp_path / "out.jsonl"
    done = import_log([str(log)], str(output))
    assert (done.format, done.programs, done.misread) == ("strace", 2, 0), done.problems
    found = records_of(output)
    threads = [each for each in found if isinstance(each, Fork)]
    assert [each.pid == each.tid for each in threads] == [False, False, False, True]
    check(output, unknown=12)


def test_strace_into_several_files(program: str, tmp_path: Path) -> None:
    for options in ("-ff", "-ff -ttt"):
        folder = tmp_path / options.replace(" ", "")
        folder.mkdir()
        strace(folder / "log", options, program)
        files = sorted(map(str, folder.iterdir()))
        assert len(files) == 5
        done = import_log(files, str(tmp_path / "out.jsonl"))
        assert (done.programs, done.misread) == (2, 0)
        check(tmp_path / "out.jsonl", unknown=16)


def test_it_is_as_recorded(program: str, tmp_path: Path) -> None:
    """The calls of a log are those that the recorder saw, with the same arguments and results."""
    if shutil.which("setarch") is None:
        pytest.skip("no setarch")
    log = tmp_path / "log"
    strace(log, "-f", "setarch", "-R", program)
    import_log([str(log)], str(tmp_path / "out.jsonl"))
    record(tmp_path / "recorded.jsonl", ["setarch", "-R", program])
    ours, theirs = records_of(tmp_path / "out.jsonl"), records_of(tmp_path / "recorded.jsonl")
    start = [
        next(n for n, each in enumerate(some) if isinstance(each, Exec) and each.exe == program)
        for some in (ours, theirs)
    ]
    imported, recorded = shown(ours[start[0] :]), shown(theirs[start[1] :])
    # Numbers of System V segments differ from run to run.
    for found in (imported, recorded):
        for place, (name, args, ret) in enumerate(found):
            if name in ("shmget", "shmat", "shmctl"):
                found[place] = (name, args[1:], None if name == "shmget" else ret)
    assert imported == recorded
    whole = [each for each in theirs if isinstance(each, Exec)][start[1] > 0]
    given = [each for each in ours if isinstance(each, Exec)][start[0] > 0]
    assert (given.topdown, given.start_brk) == (whole.topdown, whole.start_brk)
    assert whole.mmap_base is not None
    assert given.mmap_base is not None
    assert given.mmap_base <= whole.mmap_base


def test_perf_trace(program: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Where the clocks of two processors differ, perf now and then takes an end for earlier than its call, and loses it.
    for _ in range(5):
        perf(["perf", "trace", "-o", str(log), program])
        done = import_log([str(log)], str(tmp_path / "out.jsonl"))
        problems = {each.why for each in done.problems} - {"the new limit is not shown"}
        if not problems:
            break
    assert problems == set()
    assert (done.format, done.programs) == ("perf-trace", 2)
    check(tmp_path / "out.jsonl", unknown=12)


@pytest.mark.parametrize(
    "events", ["raw_syscalls:sys_enter,raw_syscalls:sys_exit", "syscalls:sys_*_m*,syscalls:sys_*_brk"]
)
def test_perf_script(events: str, program: str, tmp_path: Path) -> None:
    data = tmp_path / "perf.data"
    perf(
        [
            "perf",
            "record",
            "-q",
            "-o",
            str(data),
            "-e",
            f"{events},exceptions:page_fault_user,sched:sched_process_*",
            program,
        ]
    )
    text = subprocess.run(["perf", "script", "-i", str(data)], capture_output=True, check=True, timeout=60).stdout
    log = tmp_path / "log"
    log.write_bytes(text)
    done = import_log([str(log)], str(tmp_path / "out.jsonl"))
    assert (done.format, done.programs) == ("perf-script", 2)
    assert done.faults > 50
    assert {each.why for each in done.problems} <= {"the new limit is not shown"}
    check(tmp_path / "out.jsonl", unknown=14)


def perf(command: list[str]) -> None:
    if shutil.which("perf") is None:
        pytest.skip("no perf")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        pytest.skip(f"perf does not run here: {done.stderr.strip()[:100]}")


def test_the_commands(program: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    strace(log, "-f", program)
    output = str(tmp_path / "out.jsonl.zst")
    done = vmalab("import", str(log), "-o", output)
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    assert "is of strace, as its lines show" in text
    assert "missing: what was mapped at first is not in the log (--maps gives it)" in text
    done = vmalab("replay", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert "or what was mapped at first is not known" in " ".join(done.stdout.split())
    done = vmalab("explain", output)
    assert done.returncode == 0
    assert "what was mapped at first is not known" in " ".join(done.stdout.split())
    assert vmalab("why", output, "0x10000000").returncode == 0
