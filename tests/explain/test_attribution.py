"""Attribution: at every record the makers and the reasons add up to the map count, and say what explain says."""

import json
import random
from pathlib import Path

import pytest

from tests.programs import vmalab
from vmalab import flags
from vmalab.addr import PAGE_SIZE
from vmalab.explain.attribution import EXECVE, GAP, UNASKED, Attribution, Space
from vmalab.explain.failures import UNEXPLAINED
from vmalab.explain.obstacles import Sight, boundaries
from vmalab.trace import records
from vmalab.trace.file import read_trace
from vmalab.trace.replay import Replay

DEMO = Path(__file__).parents[2] / "src/vmalab/data/demo.jsonl.zst"
BASE = 0x10000000
PAGES = 48
WORD = (1 << 64) - 1


def header(**machine: int) -> records.Header:
    return records.Header("trace", 1, faults="exact", machine=records.Machine(**machine))  # type: ignore[arg-type]


def begin(**machine: int) -> tuple[Attribution, Replay]:
    attribution = Attribution()
    replay = Replay(header(**machine), observer=attribution)
    attribution.replay = replay
    return attribution, replay


def check(attribution: Attribution, replay: Replay) -> None:
    """What is written down is what is there."""
    for process in replay.machine.processes.values():
        space = attribution.space_of(process.pid)
        assert space is not None
        vmas = process.vmas()
        assert space.starts() == [vma.start for vma in vmas]
        assert space.count.last() == len(vmas)
        assert sum(maker.alive for maker in space.calls.values()) == len(vmas)
        assert sum(maker.curve.last() for maker in space.calls.values()) == len(vmas)
        assert sum(tally.alive for tally in space.single.values()) == len(vmas)
        expected = {boundary.addr: boundary.kind() for boundary in boundaries(process.mm, Sight.FULL)}
        below = 0
        kinds: dict[str, int] = {}
        for vma in vmas:
            kind = expected.get(vma.start, UNASKED if below == vma.start else GAP)
            kinds[kind] = kinds.get(kind, 0) + 1
            below = vma.end
        found: dict[str, int] = {}
        for group in space.groups.values():
            if group.curve.last():
                found[group.kind] = found.get(group.kind, 0) + group.curve.last()
        assert found == kinds


class Program:
    """Makes the records of a program, one after another."""

    def __init__(self) -> None:
        self.n = 0

    def exec(self, pid: int = 1, **limits: int) -> records.Exec:
        self.n += 1
        return records.Exec(self.n, pid, "/bin/program", [], limits=records.Limits(**limits))

    def call(self, name: str, *args: int, ret: int = 0, pid: int = 1, written: list[int] | None = None) -> records.Call:
        self.n += 1
        return records.Call(self.n, pid, pid, name, [arg & WORD for arg in args], ret, written=written or [])

    def fork(self, parent: int, child: int) -> records.Fork:
        self.n += 1
        return records.Fork(self.n, child, child, parent, parent, 0)

    def exit(self, pid: int) -> records.Exit:
        self.n += 1
        return records.Exit(self.n, pid)


ANONYMOUS = flags.MAP_PRIVATE | flags.MAP_ANONYMOUS
FIXED = ANONYMOUS | flags.MAP_FIXED


def random_call(program: Program, rng: random.Random, pid: int) -> records.Call:
    start = BASE + rng.randrange(PAGES) * PAGE_SIZE
    length = rng.choice((1, 1, 1, 2, 3, 8, 30)) * PAGE_SIZE
    prot = rng.choice((0, 1, 3, 3))
    written = [BASE + rng.randrange(PAGES) * PAGE_SIZE] if rng.random() < 0.3 else []
    name, args = rng.choice(
        (
            ("mmap", (start, length, prot, FIXED, -1, 0)),
            ("mmap", (start, length, 3, FIXED, -1, 0)),
            ("munmap", (start, length)),
            ("mprotect", (start, length, prot)),
            ("mprotect", (start, length, 3)),
            ("madvise", (start, length, rng.choice((flags.MADV_DONTFORK, flags.MADV_DOFORK, flags.MADV_NOHUGEPAGE)))),
            ("mlock", (start, length)),
            ("munlock", (start, length)),
            ("mremap", (start, PAGE_SIZE, length, flags.MREMAP_MAYMOVE | flags.MREMAP_FIXED, start ^ 0x10000)),
            ("mremap", (start, PAGE_SIZE, length, flags.MREMAP_MAYMOVE, 0)),
            ("mremap", (start, length, PAGE_SIZE, 0, 0)),
            ("mlockall", (flags.MCL_CURRENT,)),
            ("munlockall", ()),
        )
    )
    return program.call(name, *args, pid=pid, written=written)


@pytest.mark.parametrize("seed", range(2))
def test_makers_and_reasons_add_up_to_the_map_count(seed: int) -> None:
    rng = random.Random(seed)
    program = Program()
    attribution, replay = begin()
    attribution.step(program.exec())
    pids = [1]
    for step in range(400):
        record: records.Record = random_call(program, rng, rng.choice(pids))
        if step % 100 == 50:
            pids.append(pids[-1] + 1)
            record = program.fork(pids[0], pids[-1])
        attribution.step(record)
        check(attribution, replay)
    attribution.step(program.exit(pids[-1]))
    attribution.finish()
    assert attribution.spaces[-1].mm is None
    assert len(attribution.spaces) == len(pids)


def test_the_demo_trace_adds_up() -> None:
    reader = read_trace(str(DEMO))
    attribution = Attribution()
    replay = Replay(reader.header, observer=attribution)
    attribution.replay = replay
    for record in reader:
        assert attribution.step(record) is None
        check(attribution, replay)
    attribution.finish()
    spaces = {space.first: space for space in attribution.spaces}
    programs = [program for program in replay.programs if program.n in spaces]
    assert len(programs) == len(spaces) == 2
    for program in programs:
        space = spaces[program.n]
        # Within a call there may be more for a moment: a split before what it cuts out is unmapped.
        assert space.count.peak()[1] <= program.peak <= space.count.peak()[1] + 2
        assert space.count.last() == program.vmas


def run(*calls: tuple[str, tuple[int, ...]], **machine: int) -> tuple[Attribution, Space]:
    program = Program()
    attribution, _ = begin(**machine)
    attribution.step(program.exec())
    for name, args in calls:
        attribution.step(program.call(name, *args, ret=-12 if name == "mprotect" and machine else 0))
    attribution.finish()
    return attribution, attribution.spaces[0]


def test_a_guard_page_in_the_middle_makes_two_vmas() -> None:
    attribution, space = run(
        ("mmap", (BASE, 16 * PAGE_SIZE, 3, FIXED, -1, 0)), ("mprotect", (BASE + 8 * PAGE_SIZE, PAGE_SIZE, 0))
    )
    made = {maker.title: maker.made for maker in space.by_call()}
    assert made == {"mmap(PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS)": 1, "mprotect(PROT_NONE)": 2}
    kinds = {group.kind: group.curve.last() for group in space.by_reason()}
    assert kinds == {"permissions; committed memory (VM_ACCOUNT)": 2, GAP: 1}
    n, tally = max(space.by_record(2), key=lambda item: item[1].made)
    assert (tally.made, attribution.call_of(n)) == (2, f"mprotect({BASE + 8 * PAGE_SIZE:#x}, 4096, PROT_NONE)")


def test_what_merges_again_dies_and_the_oldest_stays() -> None:
    _, space = run(
        ("mmap", (BASE, 16 * PAGE_SIZE, 3, FIXED, -1, 0)),
        ("mprotect", (BASE + 8 * PAGE_SIZE, PAGE_SIZE, 0)),
        ("mprotect", (BASE + 8 * PAGE_SIZE, PAGE_SIZE, 3)),
    )
    alive = {maker.title.split("(")[0]: (maker.alive, list(maker.lives)) for maker in space.by_call()}
    assert alive == {"mmap": (1, []), "mprotect": (0, [1, 1])}


def test_what_a_fixed_mapping_replaces_dies() -> None:
    _, space = run(
        ("mmap", (BASE, 4 * PAGE_SIZE, 1, FIXED, -1, 0)),
        ("mmap", (BASE, 4 * PAGE_SIZE, 3, FIXED, -1, 0)),
    )
    first, second = sorted(space.by_call(), key=lambda maker: maker.alive)
    assert (first.alive, list(first.lives)) == (0, [1])
    assert (second.alive, list(second.lives)) == (1, [])


def test_a_failure_has_its_reason_and_the_state_that_caused_it() -> None:
    program = Program()
    attribution, _ = begin(max_map_count=3)
    attribution.step(program.exec())
    attribution.step(program.call("mmap", BASE, 64 * PAGE_SIZE, 3, FIXED, -1, 0, ret=BASE))
    attribution.step(program.call("mprotect", BASE + PAGE_SIZE, PAGE_SIZE, 0))
    for page in (8, 16):
        attribution.step(program.call("mprotect", BASE + page * PAGE_SIZE, PAGE_SIZE, 0, ret=-12))
    attribution.step(program.call("munmap", BASE + 1, 1, ret=-22))
    attribution.step(program.call("munmap", BASE, PAGE_SIZE, ret=-1))
    found = [(each.count, each.errno_text(), each.cause) for each in attribution.failures.all()]
    assert found == [
        (2, "ENOMEM", "3 VMAs, with max_map_count 3"),
        (1, "EINVAL", f"there is {BASE:x}-{BASE + PAGE_SIZE:x} rw-p anonymous"),
        (1, "EPERM", "the model predicts 0"),
    ]
    assert [each.reason == UNEXPLAINED for each in attribution.failures.all()] == [False, False, True]


def test_fork_keeps_what_made_the_original() -> None:
    program = Program()
    attribution, replay = begin()
    attribution.step(program.exec())
    attribution.step(program.call("mmap", BASE, 4 * PAGE_SIZE, 3, FIXED, -1, 0))
    attribution.step(program.fork(1, 2))
    attribution.step(program.fork(2, 3))
    check(attribution, replay)
    title = "fork: mmap(PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS)"
    assert [maker.title for maker in attribution.spaces[2].by_call()] == [title]
    assert attribution.call_of(1) == "execve or fork"
    assert EXECVE not in attribution.spaces[2].calls


def test_by_stack_where_the_trace_has_stacks() -> None:
    attribution, replay = begin()
    attribution.step(Program().exec())
    deep = ("mmap+0x1c (libc.so.6)", "allocate (program)", "main (program)")
    for number, frames in ((7, list(deep)), (8, ["mprotect (libc.so.6)"])):
        attribution.step(records.Stack(number - 5, number, 1, frames))
    mapped = records.Call(4, 1, 1, "mmap", [BASE, 4 * PAGE_SIZE, 3, FIXED, WORD, 0], BASE, stack=7)
    changed = records.Call(5, 1, 1, "mprotect", [BASE + PAGE_SIZE, PAGE_SIZE, 0], 0, stack=8)
    for record in (mapped, changed):
        attribution.step(record)
    check(attribution, replay)
    found = {frames: (maker.made, maker.alive) for frames, maker in attribution.spaces[0].by_stack()}
    assert found == {deep: (1, 1), ("mprotect (libc.so.6)",): (2, 2)}


def test_the_command_prints_it_for_people_and_for_programs() -> None:
    done = vmalab("attribute", str(DEMO))
    assert done.returncode == 0, done.stderr
    assert "madvise(MADV_DONTFORK)" in done.stdout
    assert "not copied on fork (MADV_DONTFORK)" in done.stdout
    found = json.loads(vmalab("attribute", "--json", str(DEMO)).stdout)
    for space in found["spaces"]:
        assert sum(maker["at_end"] for maker in space["by_call"]) == space["vmas"]
        assert sum(maker["at_peak"] for maker in space["by_call"]) == space["peak"]["vmas"]
        assert sum(group["at_end"] for group in space["by_reason"]) == space["vmas"]
        assert sum(group["at_peak"] for group in space["by_reason"]) == space["peak"]["vmas"]
    refused = vmalab("attribute", str(DEMO), "--pid", "7")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "there is no process 7 in this trace" in refused.stderr
