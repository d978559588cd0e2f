"""The model and the running kernel, step by step."""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.programs import vmalab
from vmalab.errors import VmalabError
from vmalab.flags import (
    CLONE_VFORK,
    CLONE_VM,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    VM_EXEC,
    VM_LOCKED,
)
from vmalab.fuzz.as_c import as_c
from vmalab.fuzz.campaign import Campaign, Options, run
from vmalab.fuzz.divergence import Divergence
from vmalab.fuzz.files import Files
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.fuzz.pool import POOL
from vmalab.fuzz.safety import Safety
from vmalab.fuzz.show import strips, write_trace
from vmalab.fuzz.shrink import as_python, shrink
from vmalab.live.agent import why_not
from vmalab.live.bpf import BpfError, VmaIterator
from vmalab.reason import errno_of
from vmalab.semantics import Semantics
from vmalab.vma.area import File

SUPPORTED = "6.18."
RELEASE = os.uname().release
REASON = why_not() or (f"the model is of {SUPPORTED}x, this is {RELEASE}" if not RELEASE.startswith(SUPPORTED) else "")
live = pytest.mark.skipif(bool(REASON), reason=REASON)


def why_not_whole() -> str:
    """Why flags and anon_vmas cannot be seen here; empty if they can."""
    try:
        VmaIterator(os.getpid()).close()
    except BpfError as error:
        return f"the BPF reader is not to be had: {error}"
    return REASON


NOT_WHOLE = why_not_whole()
whole = pytest.mark.skipif(bool(NOT_WHOLE), reason=NOT_WHOLE)
AT = 0x10000000
FIXED = 0x32


@live
def test_random_calls() -> None:
    campaign = Campaign(1)
    run(campaign, 120_000, lambda steps: None)
    assert campaign.divergence is None, f"seed {campaign.seed}: {campaign.divergence}\n{as_python(campaign.ops)}"


@live
@pytest.mark.parametrize("reader", ["query", "smaps", "maps", "none"])
def test_random_calls_with_other_readers(reader: str) -> None:
    campaign = Campaign(900)
    run(campaign, 4_000, lambda steps: None, Options(reader, swarm=False))
    assert campaign.reader == reader
    assert campaign.divergence is None, f"seed {campaign.seed}: {campaign.divergence}\n{as_python(campaign.ops)}"


@live
def test_random_calls_with_the_legacy_layout() -> None:
    campaign = Campaign(700)
    run(campaign, 8_000, lambda steps: None, Options(legacy=True))
    assert campaign.divergence is None, f"seed {campaign.seed}: {campaign.divergence}\n{as_python(campaign.ops)}"


@live
def test_random_calls_with_huge_pages() -> None:
    before = POOL.read_text()
    done = vmalab("fuzz", "live", "--hugepages", "64", "--steps", "8000", "--seed", "30")
    assert POOL.read_text() == before
    if "cannot be set" in done.stderr or "no room" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, "no difference" in done.stdout) == (0, True), done.stdout


@live
def test_close_to_the_limit_of_the_map_count() -> None:
    with Lockstep() as lockstep:
        room = lockstep.machine.settings.max_map_count - lockstep.processes[0].mm.map_count
        if room > 100_000:
            pytest.skip(f"vm.max_map_count lies {room} above: too many VMAs to make")
        ops = [Op("crowd", (room - 1,)), *[Op("mmap", (AT + at * 0x2000, 0x1000, 3, FIXED, 0)) for at in range(4)]]
        assert lockstep.run(ops) is None
        assert errno_of(lockstep.last_reason) == errno.ENOMEM
        lockstep.restart()
        assert lockstep.run([Op("mmap", (AT, 0x1000, 3, FIXED, 0))]) is None


WITNESSES = {
    "the heap does not extend the program's own data": [Op("brk", (0x900000,)), Op("brk", (0x901000,))],
    "memory that can be executed only has a key of its own": [
        Op("mmap", (AT, 0x3000, 4, FIXED, 0)),
        Op("read", (AT,)),
        Op("mlock", (AT, 0x1000)),
        Op("madvise", (AT, 0x1000, 22)),
        Op("mprotect", (AT, 0x1000, 5)),
        Op("read", (AT,)),
    ],
    "a write beyond the end of a file makes an anon_vma, and then SIGBUS": [
        Op("mmap", (AT, 0x2000, 3, 0x12, 0x20000), 0, 4),
        Op("write", (AT,)),
    ],
    "populating beyond the end of a file makes an anon_vma as well": [
        Op("mmap", (AT, 0x2000, 3, 0x8012, 0x20000), 0, 4)
    ],
    "a child extends what it has inherited up to memory that was never written to": [
        Op("mmap", (AT, 0xA000, 3, FIXED, 0)),
        Op("munmap", (AT + 0x1000, 0x1000)),
        Op("write", (AT,)),
        Op("fork"),
        Op("mremap", (AT, 0x1000, 0x2000, 0, 0), 1),
    ],
    "sealed memory of a file can be discarded, and answers for itself": [
        Op("mmap", (AT, 0x2000, 1, 0x12, 0), 0, 0),
        Op("mseal", (AT, 0x1000, 0)),
        Op("madvise", (AT, 0x1000, 18)),
        Op("madvise", (AT, 0x1000, 4)),
    ],
    "memory that has the home node already is not split for it": [
        Op("mmap", (AT, 0x4000, 3, FIXED, 0)),
        Op("mbind", (AT, 0x4000, 2, 1, 0)),
        Op("set_mempolicy_home_node", (AT, 0x4000, 0, 0)),
        Op("set_mempolicy_home_node", (AT, 0x1000, 0, 0)),
    ],
    "flags that are ints are cut to 32 bits": [
        Op("mmap", (AT, 0x1000, 3, FIXED, 0)),
        Op("mlock2", (AT, 0x1000, 1 << 47)),
        Op("mbind", (AT, 0x1000, 1 << 47, 0, 0)),
    ],
}


@live
@pytest.mark.parametrize("name", WITNESSES)
def test_witness(name: str) -> None:
    """Rules that random calls have taught, in a few steps each."""
    with Lockstep() as lockstep:
        assert lockstep.run(WITNESSES[name]) is None


@live
def test_a_difference_is_found_and_told() -> None:
    with Lockstep() as lockstep:
        lockstep.machine.settings.max_map_count = 0
        found = lockstep.run([Op("mmap", (AT, 0x1000, 3, FIXED, 0)), Op("munmap", (AT, 0x1000))])
    assert found is not None
    assert (found.field, found.kernel) == ("result", hex(AT))
    assert "MAP_COUNT" in found.model


@live
def test_an_agent_that_has_died_can_be_closed() -> None:
    with Lockstep() as lockstep:
        assert lockstep.run([Op("brk", (0,))]) is None
        os.kill(lockstep.agent.pid_of(1), signal.SIGKILL)
    assert (lockstep.agent.pid, lockstep.files.descriptors) == (0, [])


@live
def test_a_start_that_fails_says_why() -> None:
    class NoModels(Files):
        def models(self) -> list[File]:
            raise VmalabError("there are no models")

    files = NoModels()
    with pytest.raises(VmalabError, match="there are no models"):
        Lockstep("none", files)
    files.close()


def test_shrinking_keeps_what_matters() -> None:
    def tries(ops: list[Op]) -> Divergence | None:
        names = [op.name for op in ops]
        wrong = [i for i, op in enumerate(ops) if op.name == "mremap" and op.args[1] >= 0x1000 and "mmap" in names[:i]]
        return Divergence(wrong[0], ops[wrong[0]], "result", "0", "1") if wrong else None

    ops = [Op("brk", (i,)) for i in range(40)]
    ops[7] = Op("mmap", (AT, 0x5000, 3, FIXED, 0))
    ops[30] = Op("mremap", (AT, 0x5000, 0x6000, 1, 0))
    shortest, found = shrink(ops, tries)
    assert shortest == [Op("mmap", (0, 0, 0, 0, 0)), Op("mremap", (0, 0x1000, 0, 0, 0))]
    assert found is not None


def test_what_does_not_diverge_stays() -> None:
    ops = [Op("brk", (0,))]
    assert shrink(ops, lambda ops: None) == (ops, None)


CAPABILITIES = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16)
SEQUENCE = [
    Op("mmap", (AT, 0x3000, 3, FIXED, 0)),
    Op("write", (AT,)),
    Op("read", (AT,)),
    Op("read", (0x1000,)),
    Op("mbind", (AT, 0x1000, 2, 1, 0)),
    Op("set_mempolicy", (2, 1)),
    Op("get_mempolicy", (0, 0)),
    Op("mmap", (AT + 0x1000, 0x1000, 1, 0x11, 0x1000), 0, 3),
    Op("mmap", (AT + 0x10000, 0x1000, 1, 0x11, 0x1000), 0, 0),
    Op("prlimit64", (9, 1 << 40)),
    Op("process_madvise", (4, 0, AT, 0x1000, AT + 0x2000, 0x1000)),
    Op("mincore", (AT, 0x1000)),
    Op("shmat", (0, 0), 0, 1),
    Op("memfd", (2, 8), 0, 16),
    Op("seal", (8,), 0, 16),
    Op("mmap", (AT + 0x20000, 0x1000, 1, 0x11, 0), 0, 16),
    Op("memfd_secret", (8,), 0, 17),
    Op("userfaultfd", (), 0, 18),
    Op("register", (AT, 0x1000, 2), 0, 18),
    Op("unregister", (AT, 0x1000), 0, 18),
    Op("close", (), 0, 18),
    Op("capset", (CAPABILITIES & ~(1 << 14),)),
    Op("mmap", (AT + 0x30000, 0x2000, 3, FIXED, 0), 0, -1, CLONE_VM | CLONE_VFORK),
    Op("munmap", (AT + 0x30000, 0x1000), 0, -1, CLONE_VM),
    Op("fork"),
    Op("mprotect", (AT, 0x1000, 1), 1),
    Op("exit", (), 1),
    Op("munmap", (AT, 0x1000)),
]


@live
def test_a_sequence_as_python() -> None:
    space: dict[str, object] = {}
    exec(compile(as_python(SEQUENCE), "sequence", "exec"), space)
    assert isinstance(space["lockstep"], Lockstep)


@live
def test_a_sequence_as_c(tmp_path: Path) -> None:
    source = tmp_path / "sequence.c"
    source.write_text(as_c(SEQUENCE))
    subprocess.run(["cc", "-Wall", "-Werror", "-o", str(tmp_path / "sequence"), str(source)], check=True)
    done = subprocess.run([str(tmp_path / "sequence")], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines.count("write 0x10000000: works") == 1
    assert "read 0x1000: SIGSEGV" in lines
    told = [line for line in lines if ", errno " in line]
    assert [line for line in told if not line.endswith("errno 0")] == []
    child, parent = done.stdout.split("process 0")
    assert "10000000-10001000 r--p" in child
    assert "10001000-10002000 r--s 00001000" in parent
    assert "10000000-10001000" not in parent


@live
def test_a_sequence_as_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "sequence.jsonl"
    write_trace(str(path), SEQUENCE)
    done = vmalab("replay", str(path))
    assert (done.returncode, "differ" in done.stdout) == (0, False), done.stdout + done.stderr
    assert "final VMAs: 1 of 1 lists equal" in done.stdout


@live
def test_events_of_a_userfaultfd() -> None:
    features = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
    ops = [
        Op("userfaultfd", (features,), 0, 16),
        Op("mmap", (AT, 0x4000, 3, FIXED, 0)),
        Op("register", (AT, 0x4000, 1), 0, 16),
        Op("fork"),
        Op("fork", (), 1),
        Op("mremap", (AT, 0x1000, 0x1000, 3, AT + 0x10000)),
        Op("madvise", (AT + 0x1000, 0x1000, 4)),
        Op("munmap", (AT + 0x2000, 0x1000)),
        Op("munmap", (AT, 0x1000), 1),
    ]
    with Lockstep() as lockstep:
        assert lockstep.run(ops) is None
        child = lockstep.processes[1].mm.vma_lookup(AT + 0x1000)
        assert child is not None
        assert child.uffd is not None, "a child keeps its registration where fork is told of"
        (reader,) = lockstep._readers.values()
        names = {0x13: "fork", 0x14: "remap", 0x15: "remove", 0x16: "unmap"}
        seen = [names[event] for event in reader.seen]
        assert (seen.count("fork"), sorted(set(seen))) == (2, ["fork", "remap", "remove", "unmap"])
        assert lockstep.run([Op("close", (), 0, 16)]) is None


@live
@pytest.mark.parametrize("flags", [MAP_HUGETLB, MAP_HUGETLB | 30 << MAP_HUGE_SHIFT])
def test_the_agent_is_not_mapped_over(flags: int) -> None:
    """Lengths of huge pages are rounded up: at address 0 they reach the program."""
    op = Op("mmap", (0, 0x200000, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, 0))
    with Lockstep() as lockstep:
        assert Safety(lockstep).allows(op) is (flags >> MAP_HUGE_SHIFT == 0)


@live
def test_a_sequence_made_short_keeps_what_the_reader_needs() -> None:
    with Lockstep() as lockstep:
        assert Safety(lockstep).allows(Op("capset", (lockstep.capabilities,)))
        assert not Safety(lockstep).allows(Op("capset", (0,)))


@live
@pytest.mark.parametrize("flags", [CLONE_VM, CLONE_VM | CLONE_VFORK])
def test_a_child_that_shares_the_memory(flags: int) -> None:
    """What it does to the memory stays; what it asks for itself ends with it."""
    read_implies_exec = 0x400000
    through = (0, -1, flags)
    ops = [
        Op("mmap", (AT, 0x4000, 3, FIXED, 0), *through),
        Op("munmap", (AT, 0x1000), *through),
        Op("write", (AT + 0x1000,)),
        Op("write", (AT,)),
        Op("mlockall", (2,), *through),
        Op("personality", (read_implies_exec,), *through),
        Op("prlimit64", (9, 0x1000), *through),
        Op("set_mempolicy", (2, 1), *through),
        Op("mmap", (AT + 0x10000, 0x1000, 1, FIXED, 0)),
    ]
    with Lockstep() as lockstep:
        found = lockstep.run(ops)
        assert found is None, str(found)
        process = lockstep.processes[0]
        vma = process.mm.vma_lookup(AT + 0x10000)
        assert vma is not None
        assert (bool(vma.flags & VM_LOCKED), bool(vma.flags & VM_EXEC)) == (True, False)


@live
def test_what_outlives_execve() -> None:
    settings = ((65, 1), (67, 1), (41, 1))
    ops = [Op("prctl", (option, value, 0, 0, 0)) for option, value in settings]
    asked = [Op("prctl", (option, 0, 0, 0, 0)) for option in (66, 68, 42)]
    with Lockstep() as lockstep:
        before = lockstep.processes[0].mm
        mapped = Op("mmap", (AT, 0x1000, 3, FIXED, 0))
        assert lockstep.run([*ops, mapped, Op("prlimit64", (3, 64 << 20)), Op("exec"), *asked]) is None
        after = lockstep.processes[0].mm
        assert after is not before
        assert after.vma_lookup(AT) is None
        assert (after.mdwe, after.merge_any, after.thp_disable) == (True, True, 1)
        assert lockstep.run([Op("mmap", (0, 0x1000, 3, 0x22, 0)), Op("exec"), Op("brk", (0x900000,))]) is None


@whole
def test_strips() -> None:
    other = Semantics()
    other.dontunmap_merges_source = False
    with Lockstep(semantics=other) as lockstep:
        ops = [Op("mmap", (AT, 0x2000, 3, FIXED, 0)), Op("mremap", (AT, 0x2000, 0x2000, 5, AT + 0x2000))]
        found = lockstep.run(ops)
    assert found is not None
    assert strips(found)[:3] == ["  before  .aa...", "  model   .aa|bb.", "  kernel  .cccc."]
    assert strips(found)[3].startswith("    a 10000000-10002000 rw-p pgoff 10000  rd wr mr mw me ac")
    assert strips(Divergence(0, ops[0], "result", "0", "1")) == []


@live
def test_the_command() -> None:
    found = json.loads(vmalab("fuzz", "live", "--steps", "1000", "--seed", "3", "--json").stdout)
    assert found["divergence"] is None
    assert found["steps"] >= 1000
    # A step that a child with shared memory takes is a clone as well.
    assert sum(found["outcomes"].values()) - found["outcomes"].get("clone: YES", 0) == found["steps"]
    again = json.loads(vmalab("fuzz", "live", "--steps", "1000", "--seed", "3", "--json").stdout)
    assert again == found, "a seed reproduces a run"
    done = vmalab("fuzz", "live", "--steps", "500", "--reader", "query")
    assert (done.returncode, "no difference" in done.stdout) == (0, True)
