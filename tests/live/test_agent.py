"""The agent: a live kernel that runs steps and shows its VMAs after each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from vmalab.errors import VmalabError
from vmalab.live import build_native
from vmalab.live.agent import CHANNELS, MAX_STEPS, READ, READERS, WRITE, Agent, AgentDied, Step, Vmas, why_not
from vmalab.live.bpf import BpfError, VmaIterator
from vmalab.live.procfs import parse_smaps

MMAP, MPROTECT, MUNMAP, GETPID, EXIT, KILL = 9, 10, 11, 39, 231, 62
AT = 0x10000000
ANON = 0x22
FIXED = 0x32
NO_FILE = -1

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def readers() -> list[str]:
    """The readers that work here."""
    found = ["query"]
    try:
        VmaIterator(os.getpid()).close()
        found.append("bpf")
    except BpfError:
        pass
    return found


@pytest.fixture(params=["query", "bpf"])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    if request.param not in readers():
        pytest.skip(f"the {request.param} reader does not work here")
    with Agent(request.param) as started:
        yield started


def bounds(vmas: Vmas | None) -> list[tuple[int, int]]:
    """The bounds of the VMAs of a report."""
    assert vmas is not None
    return [(row[0], row[1]) for row in vmas]


def test_a_batch_shows_what_each_step_has_done(agent: Agent) -> None:
    steps = [
        Step(MMAP, (AT, 0x4000, 3, FIXED, NO_FILE, 0)),
        Step(WRITE, (AT,)),
        Step(MPROTECT, (AT + 0x1000, 0x1000, 1)),
        Step(GETPID),
        Step(MUNMAP, (AT, 0x4000)),
        Step(MUNMAP, (1, 1)),
    ]
    replies = agent.run(steps)
    assert [reply.result for reply in replies] == [AT, 0, 0, agent.pid, 0, -22]
    assert (AT, AT + 0x4000) in bounds(replies[0].vmas)
    assert (AT + 0x1000, AT + 0x2000) in bounds(replies[2].vmas)
    assert replies[3].vmas is None, "nothing has changed"
    assert not any(AT <= start < AT + 0x4000 for start, _ in bounds(replies[4].vmas))


def test_the_layout_is_always_the_same() -> None:
    layouts = set()
    for _ in range(3):
        with Agent("query") as started:
            layouts.add(tuple(started.first or ()))
    assert len(layouts) == 1


def test_the_readers_agree_with_smaps(agent: Agent) -> None:
    steps = [Step(MMAP, (AT + page * 0x1000, 0x1000, page % 4, FIXED, NO_FILE, 0)) for page in range(60)]
    shown = agent.run(steps, report=2)[-1].vmas
    with open(f"/proc/{agent.pid}/smaps", "rb") as file:
        expected = [vma for vma in parse_smaps(file.read()) if vma.path != "[vsyscall]"]
    assert bounds(shown) == [(vma.start, vma.end) for vma in expected]
    assert shown is not None
    assert [row[4] for row in shown] == [vma.ino for vma in expected]


@pytest.mark.skipif("bpf" not in readers(), reason="no BPF iterator can be had")
def test_the_iterator_shows_what_proc_does_not() -> None:
    with Agent("bpf") as started:
        steps = [Step(MMAP, (AT + page * 0x2000, 0x1000, 3, FIXED, NO_FILE, 0)) for page in range(2)]
        steps += [Step(WRITE, (AT + page * 0x2000,)) for page in range(2)]
        shown = started.run(steps, report=2)[-1].vmas
        assert shown is not None
        rows = [row for row in shown if AT <= row[0] < AT + 0x10000]
        assert [row[3] for row in rows] == [AT >> 12, (AT >> 12) + 2], "offsets of anonymous memory"
        assert all(row[5] and row[6] == 1 for row in rows), "each has an anon_vma"
        assert rows[0][5] != rows[1][5], "of its own"
        assert started.fork(0, 1) > 0
        shown = started.first
        assert shown is not None
        lengths = [row[6] for row in shown if AT <= row[0] < AT + 0x10000]
        assert lengths == [2, 2], "a child's chain"


def test_touches_come_back_from_signals(agent: Agent) -> None:
    steps = [
        Step(READ, (AT,)),
        Step(MMAP, (AT, 0x1000, 1, FIXED, NO_FILE, 0)),
        Step(READ, (AT,)),
        Step(WRITE, (AT + 8,)),
    ]
    replies = agent.run(steps)
    signals = [(reply.signal >> 56, reply.signal >> 48 & 255, reply.signal & 0xFFFFFFFFFFFF) for reply in replies]
    assert signals == [(11, 1, AT), (0, 0, 0), (0, 0, 0), (11, 2, AT + 8)]


def test_children_answer_for_themselves(agent: Agent) -> None:
    agent.run([Step(MMAP, (AT, 0x2000, 3, FIXED, NO_FILE, 0))])
    child = agent.fork(0, 1)
    grandchild = agent.fork(1, 2)
    assert [agent.run([Step(GETPID)], who)[0].result for who in range(3)] == [agent.pid, child, grandchild]
    (reply,) = agent.run([Step(MUNMAP, (AT, 0x1000))], 2)
    assert (AT + 0x1000, AT + 0x2000) in bounds(reply.vmas)
    assert agent.run([Step(GETPID)], 0)[0].vmas is None, "the parent keeps its own"
    agent.exit(2, 1)
    agent.exit(1, 0)
    assert agent.fork(0, CHANNELS - 1) > 0


def test_results_go_through_slots(agent: Agent) -> None:
    (made,) = agent.run([Step(MMAP, (0, 0x3000, 3, ANON, NO_FILE, 0), to=1)])
    (gone,) = agent.run([Step(MUNMAP, (0, 0x3000), slots=(1, 0, 0, 0, 0, 0))])
    assert gone.result == 0
    assert made.result not in [start for start, _ in bounds(gone.vmas)]


def test_long_batches(agent: Agent) -> None:
    replies = agent.run([Step(GETPID)] * (3 * MAX_STEPS + 7))
    assert len(replies) == 3 * MAX_STEPS + 7
    assert all(reply.result == agent.pid for reply in replies)


def test_its_death_is_the_outcome_of_the_step(agent: Agent) -> None:
    with pytest.raises(AgentDied, match="exited with status 3") as died:
        agent.run([Step(GETPID), Step(EXIT, (3,)), Step(GETPID)])
    assert died.value.done in (0, 1)


def test_it_is_killed_by_a_signal() -> None:
    with Agent("query") as started, pytest.raises(AgentDied, match="ended by SIGKILL"):
        started.run([Step(KILL, (started.pid, signal.SIGKILL))])


def test_its_own_memory_is_gone() -> None:
    with Agent("query") as started, pytest.raises(AgentDied, match=r"ended by|stumbled over"):
        started.run([Step(MUNMAP, (0x400000, 0x10000000))])


def test_a_child_that_dies_is_noticed_soon() -> None:
    """Its parent holds its pipes as well, so they stay open."""
    with Agent("query", seconds=60.0) as started:
        pid = started.fork(0, 1)
        began = time.monotonic()
        with pytest.raises(AgentDied, match=f"process {pid} of the agent was ended by SIGKILL"):
            started.run([Step(KILL, (pid, signal.SIGKILL))], 1)
        assert time.monotonic() - began < 30


def test_a_step_that_does_not_come_back() -> None:
    with Agent("query", seconds=0.3) as started, pytest.raises(AgentDied, match=r"killed: no answer for 0\.3 s"):
        started.run([Step(34)])


def test_nothing_is_left_behind() -> None:
    with Agent("query") as started:
        pids = [started.pid, started.fork(0, 1)]
    for pid in pids:
        for _ in range(1000):
            if not os.path.exists(f"/proc/{pid}"):
                break
            subprocess.run([sys.executable, "-c", ""], check=True)
        assert not os.path.exists(f"/proc/{pid}")


def test_wrong_requests() -> None:
    with pytest.raises(VmalabError, match="no reader 'smoke'"):
        Agent("smoke")
    assert set(READERS) == {"bpf", "query", "smaps", "maps", "none"}


def test_a_missing_agent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_native, "AGENT", build_native.AGENT.with_name("none"))
    with pytest.raises(VmalabError, match="the agent is not built"):
        Agent()
