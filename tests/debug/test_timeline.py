"""Going anywhere in a trace gives what replaying up to there gives, in any order of going."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.debug.generated import Generator
from tests.debug.tapes import made_tape
from vmalab.debug.freeze import Freezer
from vmalab.debug.tape import BLOCK, Tape
from vmalab.debug.timeline import Timeline
from vmalab.errors import InputError
from vmalab.trace import records
from vmalab.trace.file import TraceWriter, read_trace
from vmalab.trace.replay import Replay, replay_of
from vmalab.vma.area import Policy, UffdFault, UffdMessage, UffdQueue, Userfaultfd


def state(replay: Replay) -> dict[int, object]:
    """All processes: their VMAs byte for byte, and what else decides what happens next."""
    found: dict[int, object] = {}
    for pid, process in replay.machine.processes.items():
        mm = process.mm
        ids: dict[int, int] = {}
        chains = [[ids.setdefault(id(each), len(ids)) for each in vma.chain] for vma in mm.vmas()]
        flags = [(vma.flags, vma.pgoff, vma.name) for vma in mm.vmas()]
        counters = (mm.map_count, mm.hiwater_map_count, mm.total_vm, mm.locked_vm, mm.brk, mm.mmap_base)
        found[pid] = (process.maps(), chains, flags, counters, process.limits.stack, replay.machine.commit.committed)
    return found


def verdicts(replay: Replay) -> list[tuple[int, int, int, int, int]]:
    return [(each.n, each.pid, each.calls, each.mismatches, each.unknown) for each in replay.programs]


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tape, list[object], list[object]]]:
    """Tapes with the state after each record, by how their faults were observed."""
    found: dict[str, tuple[Tape, list[object], list[object]]] = {}
    for faults in ("exact", "none"):
        tape = made_tape(tmp_path_factory.mktemp("tapes"), 7, 420, faults=faults)
        replay = replay_of(tape.header)
        states: list[object] = [state(replay)]
        counts: list[object] = [verdicts(replay)]
        for record in tape.between(1, len(tape)):
            replay.step(record)
            states.append(state(replay))
            counts.append(verdicts(replay))
        found[faults] = (tape, states, counts)
    return found


@given(
    faults=st.sampled_from(["exact", "none"]),
    places=st.lists(st.integers(0, 425), min_size=1, max_size=6),
    memory=st.sampled_from([1, 20_000, 1 << 28]),
    spacing=st.sampled_from([1, 20, 100]),
)
@settings(max_examples=25)
def test_any_order_of_going_is_the_plain_replay(
    tapes: dict[str, tuple[Tape, list[object], list[object]]],
    faults: str,
    places: list[int],
    memory: int,
    spacing: int,
) -> None:
    tape, states, counts = tapes[faults]
    timeline = Timeline(tape, memory=memory, spacing=spacing)
    for n in places:
        n = min(n, len(tape))
        timeline.goto(n)
        assert timeline.n == n
        assert state(timeline.replay) == states[n]
        assert verdicts(timeline.replay) == counts[n]
        timeline.replay.machine.validate()
        assert (timeline.step is None) == (n == 0)
        if timeline.step is not None:
            assert timeline.step.record == tape[n]


def test_every_step_back(tapes: dict[str, tuple[Tape, list[object], list[object]]]) -> None:
    tape, states, _ = tapes["exact"]
    timeline = Timeline(tape, spacing=64)
    for n in range(len(tape), -1, -1):
        timeline.goto(n)
        assert state(timeline.replay) == states[n], n


def test_a_thawed_replay_shares_nothing_that_changes(tmp_path: Path) -> None:
    generator = Generator(3)
    generator.run(300)
    replay = replay_of(generator.header)
    for record in generator.records[:200]:
        replay.step(record)
    freezer = Freezer()
    frozen = freezer.freeze(replay)
    here = state(replay)
    copies = [freezer.thaw(frozen) for _ in range(2)]
    for record in generator.records[200:]:
        replay.step(record)
        copies[0].step(record)
    assert state(copies[1]) == here
    assert state(copies[0]) == state(replay) != here
    assert freezer.thaw(frozen).machine.semantics is replay.machine.semantics


def test_anon_vmas_of_many_generations_can_be_frozen() -> None:
    """Each child writes where its parent did, and forks: a chain longer than Python may recurse."""
    generator = Generator(1)
    replay = Replay(generator.header)
    n = 0

    def step(record: records.Record) -> None:
        nonlocal n
        n += 1
        record.n = n
        replay.step(record)

    step(generator.records[0])
    top = 0x20000000
    step(records.Call(n=0, pid=100, tid=100, call="mmap", args=[top, 4096, 3, 0x32, 0xFFFFFFFF, 0], ret=top))
    last = 1000
    for pid in range(100, last):
        step(records.Fault(n=0, pid=pid, tid=pid, addr=top, write=True))
        step(records.Fork(n=0, pid=pid + 1, tid=pid + 1, parent=pid, parent_tid=pid, flags=17))
        if pid > 102:
            step(records.Exit(n=0, pid=pid - 1))
    freezer = Freezer()
    thawed = freezer.thaw(freezer.freeze(replay))
    assert state(thawed) == state(replay)
    thawed.machine.validate()


def test_snapshots_stay_within_their_memory(tmp_path: Path) -> None:
    tape = made_tape(tmp_path, 5, 1500)
    wide = Timeline(tape, spacing=10)
    wide.goto(len(tape))
    memory = wide.shots.size() // 4
    narrow = Timeline(tape, spacing=10, memory=memory)
    narrow.goto(len(tape))
    assert len(wide.shots.places()) > 16
    assert narrow.shots.size() <= memory
    assert 3 < len(narrow.shots.places()) < len(wide.shots.places()) // 2
    assert narrow.shots.places()[0] == 0


def test_an_interrupted_way_leaves_a_timeline_that_goes_on(tmp_path: Path) -> None:
    tape = made_tape(tmp_path, 6, 1000)

    def stop(n: int) -> None:
        if n > 300:
            raise KeyboardInterrupt

    timeline = Timeline(tape)
    with pytest.raises(KeyboardInterrupt):
        timeline.goto(900, stop)
    assert 300 < timeline.n < 900
    assert timeline.step is None
    timeline.goto(700)
    other = Timeline(tape)
    other.goto(700)
    assert state(timeline.replay) == state(other.replay)


def test_a_step_shows_before_and_after(tmp_path: Path) -> None:
    tape = made_tape(tmp_path, 8, 600)
    timeline = Timeline(tape)
    split = 0
    for n in range(1, len(tape) + 1):
        timeline.goto(n)
        step = timeline.step
        assert step is not None
        if isinstance(step.record, records.Call):
            assert len(step.after.seen) - len(step.before.seen) == step.count_after - step.count_before
            split += any(change.text.startswith("split") for change in step.changes)
            for change in step.changes:
                assert step.before.covers(change.range)
    assert split > 10


# -- the tape -----------------------------------------------------------------------------------------


@given(data=st.data(), count=st.sampled_from([1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5]))
@settings(max_examples=10)
def test_a_tape_has_each_record_by_its_number(
    data: st.DataObject, count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    generator = Generator(count)
    generator.run(count - 1)
    path = tmp_path_factory.mktemp("tape") / "t.jsonl"
    with TraceWriter(path, generator.header) as writer:
        for record in generator.records:
            writer.write(record)
    tape = Tape(read_trace(path))
    assert len(tape) == len(generator.records)
    assert "cut off" in tape.shortcomings[0]
    order = list(range(1, len(tape) + 1))
    random.Random(data.draw(st.integers(0, 99))).shuffle(order)
    assert all(tape[n] == generator.records[n - 1] for n in order)
    first = data.draw(st.integers(1, len(tape)))
    assert list(tape.between(first, len(tape))) == generator.records[first - 1 :]
    assert list(tape.backwards(first, len(tape))) == generator.records[first - 1 :][::-1]
    for pid in tape.pids:
        assert list(tape.of_process(pid)) == [each.n for each in generator.records if getattr(each, "pid", 0) == pid]
    for outside in (0, len(tape) + 1, -1):
        with pytest.raises(IndexError):
            tape[outside]


def test_a_damaged_trace_is_refused_unless_only_what_comes_before_is_wanted(tmp_path: Path) -> None:
    generator = Generator(1)
    generator.run(50)
    path = tmp_path / "t.jsonl"
    with TraceWriter(path, generator.header) as writer:
        for record in generator.records:
            writer.write(record)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:31], b"nonsense\n", *lines[31:]]))
    with pytest.raises(InputError, match="record 31"):
        Tape(read_trace(path))
    with pytest.raises(InputError):
        Tape(read_trace(path), wanted=31)
    tape = Tape(read_trace(path), wanted=30)
    assert len(tape) == 30
    assert "record 31" in tape.shortcomings[0]


def test_what_hangs_on_a_process_is_frozen_with_it() -> None:
    """Userfaultfds with what waits in them, policies, files and limits come back as they were, shared as they were."""
    generator = Generator(4)
    generator.run(60)
    replay = replay_of(generator.header)
    for record in generator.records:
        replay.step(record)
    process = replay.machine.processes[min(replay.machine.processes)]
    first, *_ = process.vmas()
    uffd = Userfaultfd("u", 5)
    uffd.mm = process.mm
    uffd.queue = UffdQueue()
    uffd.queue.faults.append(UffdFault(UffdMessage(3, 1, 2, context=uffd)))
    process.uffds[7] = first.uffd = uffd
    first.policy = Policy(2, 0, (0, 1), 1)
    first.policy.refs = 1
    process.limits.data = 12345
    freezer = Freezer()
    copy = freezer.thaw(freezer.freeze(replay)).machine.processes[process.pid]
    other = copy.vmas()[0]
    assert other.uffd is not None
    assert other.uffd is copy.uffds[7]
    assert other.uffd is not uffd
    assert other.uffd.mm is copy.mm
    assert other.uffd.queue is not None
    (fault,) = other.uffd.queue.faults
    assert (fault.message.event, fault.message.second, fault.message.context) == (3, 2, other.uffd)
    assert other.policy is not None
    assert (other.policy.mode, other.policy.nodes, other.policy.home_node, other.policy.refs) == (2, (0, 1), 1, 1)
    assert copy.limits.data == 12345
    assert copy.mm.limits is copy.limits
    process.uffds.clear()
    first.uffd = first.policy = None
    copy.uffds.clear()
    other.uffd = other.policy = None
