"""Real programs, recorded and replayed: every result predicted, every list of final VMAs equal, flags included."""

import json
import shutil
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from tests.programs import compile_program, record, vmalab
from vmalab.addr import PAGE_SIZE as PAGE
from vmalab.trace import records
from vmalab.trace.file import TraceWriter, read_trace
from vmalab.trace.records import Call, Exec, Fault, Header, Maps, Record, Vma
from vmalab.trace.replay import Replay, replay_of

RANDOM = Path(__file__).parent / "programs" / "random_calls.c"

PYTHON = """
import asyncio, ctypes, decimal, email, http.client, json, logging, lzma, multiprocessing, sqlite3, ssl, threading
def work():
    kept = [bytearray(100000) for _ in range(50)]
threads = [threading.Thread(target=work) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
SQLITE = """
import sqlite3
db = sqlite3.connect("x.db")
db.execute("pragma mmap_size=268435456")
db.execute("create table t(a, b)")
db.executemany("insert into t values(?, ?)", [(i, "x" * 100) for i in range(20000)])
db.commit()
db.execute("create index i on t(b, a)")
print(db.execute("select count(*) from t where a % 7 = 0").fetchone())
"""
NODE = "const a = []; for (let i = 0; i < 100000; i++) a.push({i, s: 'x' + i}); console.log(JSON.stringify(a).length)"
PERL = 'my %h; $h{$_} = "x" x $_ for 1..2000; print length(join ",", sort values %h), "\\n"; system("true");'
PIPELINE = "seq 1 100000 | sort -r | xz -1 -T2 | xz -d | wc -c; tar cf - {file} | xz | wc -c"
HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); }\n'

PROGRAMS = {
    "python": [sys.executable, "-c", PYTHON],
    "sqlite": [sys.executable, "-c", SQLITE],
    "gcc": ["gcc", "-O2", "hello.c", "-o", "hello"],
    "git": ["git", "log", "-p"],
    "pipeline": ["sh", "-c", PIPELINE.format(file="hello.c")],
    "perl": ["perl", "-e", PERL],
    "node": ["node", "-e", NODE],
}


def assert_equal(trace: Path, *, processes: int = 1) -> None:
    """Every call and every final list of a trace is as the model says."""
    done = vmalab("replay", "--json", str(trace))
    result = json.loads(done.stdout)
    assert done.returncode == 0, vmalab("replay", str(trace)).stdout
    assert result["equal"]
    assert result["truncated"] is None
    assert sum(program["calls"] for program in result["programs"]) > 10
    assert len({program["pid"] for program in result["programs"]}) >= processes
    for program in result["programs"]:
        assert not program["not_modelled"], program
    assert any(program["final"] == [] for program in result["programs"])


@pytest.mark.parametrize("name", PROGRAMS)
def test_real_programs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = PROGRAMS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    trace = tmp_path / "trace.jsonl.zst"
    if name == "git":
        if not (Path(__file__).parents[2] / ".git").exists():
            pytest.skip("not in a git repository")
    else:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "hello.c").write_text(HELLO)
    record(trace, command)
    assert_equal(trace, processes=4 if name in ("gcc", "pipeline") else 1)


@pytest.mark.parametrize("seed", [5, 11, 20, 21, 35])
def test_random_calls(seed: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    record(trace, [compile_program(RANDOM, tmp_path, "-static"), str(seed), "1200"])
    assert_equal(trace)


def test_corners(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    record(trace, [compile_program(RANDOM.with_name("corners.c"), tmp_path)])
    assert_equal(trace)


# -- a trace made by hand -----------------------------------------------------------------------------

ANON = 0x22
BASE = 0x7FFFF7FFF000


def small_trace(faults: str = "at-calls", **changes: int) -> tuple[Header, list[Record]]:
    """Two neighbours, the lower one written to, made equal and joined by a third call."""
    header = Header(vmalab="trace", version=1, faults=faults)
    exec_ = Exec(n=1, pid=5, exe="/bin/x", vmas=[], mmap_base=BASE)
    top, low = BASE - 0x2000, BASE - 0x4000

    def call(n: int, name: str, args: list[int], ret: int, **more: list[int]) -> Call:
        return Call(n=n, pid=5, tid=5, call=name, args=args, ret=changes.get(f"ret{n}", ret), **more)  # type: ignore[arg-type]

    return header, [
        exec_,
        call(2, "mmap", [0, 0x2000, 3, ANON, 0xFFFFFFFF, 0], top),
        call(3, "mmap", [0, 0x2000, 1, ANON, 0xFFFFFFFF, 0], low),
        call(4, "mprotect", [low, 0x2000, 3], 0, written=[top] if faults != "none" else []),
    ]


def run(header: Header, records: list[Record]) -> Replay:
    replay = replay_of(header, keep_maps=True)
    for each in records:
        replay.step(each)
    replay.finish()
    return replay


def test_addresses_are_predicted() -> None:
    program = run(*small_trace()).programs[0]
    assert (program.calls, program.mismatches, program.vmas, program.peak) == (3, 0, 1, 2)
    assert program.maps == f"{BASE - 0x4000:x}-{BASE:x} rw-p 00000000 00:00 0 \n"


def test_a_wrong_address_is_a_mismatch_and_is_not_adopted() -> None:
    program = run(*small_trace(ret3=BASE - 0x9000)).programs[0]
    assert program.mismatches == 1
    assert program.first is not None
    assert (program.first.n, program.first.outcome.result) == (3, BASE - 0x4000)
    assert program.vmas == 1


def test_without_faults_what_depends_on_one_is_unknown() -> None:
    header, records = small_trace("none")
    assert run(header, records).programs[0].unknown == 0
    # Read-only memory beside memory that was perhaps written to: only the model in which it was keeps VM_ACCOUNT.
    top = BASE - 0x2000
    records.append(Call(n=5, pid=5, tid=5, call="mprotect", args=[top, 0x1000, 1], ret=0))
    shown = [
        {"start": start, "end": end, "flags": flags}
        for start, end, flags in (
            (BASE - 0x4000, top, "rd wr mr mw me ac"),
            (top, top + 0x1000, "rd mr mw me ac"),
            (top + 0x1000, BASE, "rd wr mr mw me ac"),
        )
    ]
    records.append(msgspec.convert({"type": "exit", "n": 6, "pid": 5, "vmas": shown}, type=Record))
    program = run(header, records).programs[0]
    assert (program.mismatches, program.final, program.unknown) == (0, [], 1)


def test_a_call_that_is_not_modelled_is_counted() -> None:
    header, records = small_trace()
    records.append(Call(n=5, pid=5, tid=5, call="map_shadow_stack", args=[0, 4096, 0], ret=-95))
    program = run(header, records).programs[0]
    assert program.not_modelled == {"map_shadow_stack": 1}
    assert program.mismatches == 0


def test_a_long_trace_needs_no_more_memory_than_a_short_one() -> None:
    header, records = small_trace()
    replay = Replay(header)
    replay.step(records[0])
    top = BASE - 0x2000
    pair = [
        Call(n=0, pid=5, tid=5, call="mmap", args=[0, 0x2000, 3, ANON, 0xFFFFFFFF, 0], ret=top),
        Call(n=0, pid=5, tid=5, call="munmap", args=[top, 0x2000], ret=0),
    ]

    def run_pairs(count: int) -> int:
        for _ in range(count):
            for each in pair:
                assert replay.step(each) is None
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        assert run_pairs(10_000) - run_pairs(1_000) < 20_000
    finally:
        tracemalloc.stop()


def test_at_and_exit_status(tmp_path: Path) -> None:
    path = str(tmp_path / "t.jsonl")
    header, records = small_trace(ret3=4096)
    with TraceWriter(path, header) as writer:
        for each in records:
            writer.write(each)
    assert vmalab("replay", path).returncode == 1
    assert vmalab("replay", "--at", "2", path).returncode == 0
    assert "is not whole" in vmalab("replay", path).stderr
    maps = vmalab("replay", "--at", "3", "--maps", path)
    assert [line.split()[1] for line in maps.stdout.splitlines()] == ["r--p", "rw-p"]
    with read_trace(path) as reader:
        assert len(list(reader)) == 4


def test_a_fork_that_the_model_refuses_is_a_mismatch() -> None:
    header = records.Header("trace", 1, faults="exact", machine=records.Machine(overcommit_memory=2, ram_pages=8000))
    replay = Replay(header)
    args = [0x10000000, 4096000, 3, 0x32, (1 << 64) - 1, 0]
    replay.step(records.Exec(1, 1, "/bin/program", []))
    assert replay.step(records.Call(2, 1, 1, "mmap", args, 0x10000000)) is None
    mismatch = replay.step(records.Fork(3, 2, 2, 1, 1, 0))
    assert mismatch is not None
    assert (mismatch.call.name, mismatch.outcome.explanation().name, mismatch.kernel) == ("fork", "OVERCOMMIT", 2)
    assert replay.step(records.Call(4, 2, 2, "munmap", args[:2], 0)) is None
    assert [(program.pid, program.mismatches) for program in replay.programs] == [(1, 1)]


def lists_with_anon_vmas(*numbers: int) -> tuple[Header, list[Record]]:
    """Three VMAs of which each is written to, and a list of them that says which share an anon_vma."""
    header, listed = small_trace("exact")
    assert isinstance(listed[0], Exec)
    start = 0x10000000
    flags = "rd wr mr mw me ac"
    for i, more in enumerate(("", " dc", "")):
        at = start + i * PAGE
        listed[0].vmas.append(Vma(at, at + PAGE, flags + more, offset=at))
    listed[0].vmas.sort(key=lambda vma: vma.start)
    listed[0].anon_vmas = True
    dump = [msgspec.structs.replace(vma) for vma in listed[0].vmas]
    for vma in dump:
        if start <= vma.start < start + 3 * PAGE:
            vma.anon_vma = numbers[(vma.start - start) // PAGE]
    faults: list[Record] = [Fault(0, 5, 5, start + i * PAGE, write=True) for i in range(3)]
    lock = Fault(0, 5, 5, start, write=True, vma_lock=True)
    return header, [listed[0], lock, *faults, Maps(0, 5, dump, anon_vmas=True)]


@pytest.mark.parametrize(
    ("numbers", "differences"),
    [
        ((1, 2, 3), []),
        ((0, 2, 3), ["0x10000000 anon_vma: model has one, kernel none"]),
        ((1, 2, 1), ["0x10002000 anon_vma: model its own, kernel that of 0x10000000"]),
    ],
)
def test_which_vmas_share_an_anon_vma_is_compared(numbers: tuple[int, ...], differences: list[str]) -> None:
    header, listed = lists_with_anon_vmas(*numbers)
    replayed = Replay(header)
    for each in listed:
        replayed.step(each)
    assert [repr(each) for each in replayed.programs[0].final or []] == differences


def test_a_fault_under_the_lock_of_a_vma_changes_none() -> None:
    header, listed = lists_with_anon_vmas(0, 0, 0)
    replayed = Replay(header)
    for each in [*listed[:2], listed[-1]]:
        replayed.step(each)
    assert replayed.programs[0].final == []


def test_the_answer_of_an_overtaken_mlock_is_unknown() -> None:
    header, listed = lists_with_anon_vmas(0, 0, 0)
    for overtaken in (False, True):
        replayed = Replay(header)
        replayed.step(listed[0])
        call = Call(0, 5, 5, "mlock", [0x10000000, PAGE], -12, overtaken=overtaken)
        mismatch = replayed.step(call)
        assert (mismatch is None) == overtaken
        assert replayed.programs[0].unknown == overtaken
