"""Calls that make no sense, with answers that no kernel gives: attribution and what-if keep their books straight."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmalab.explain.attribution import Attribution
from vmalab.explain.rewrite import parse_rule
from vmalab.explain.what_if import Change, run
from vmalab.kernels import KERNELS
from vmalab.trace import records
from vmalab.trace.check import ARGUMENTS
from vmalab.trace.replay import Replay

WORD = (1 << 64) - 1
NUMBERS = st.one_of(
    st.integers(0, 40).map(lambda page: page << 12),
    st.sampled_from(
        [0, 1, 2, 3, 5, 10, 0x22, 0x32, 102, 1 << 47, 1 << 63, WORD, WORD - 4095, 0x7FFFFF000000, 0x53564D41]
    ),
    st.integers(0, WORD),
)
NAMES = [*["mmap"] * 6, *["mremap", "brk", "munmap", "mprotect", "madvise"] * 2]
NAMES += ["mlock", "shmdt", "shmat", "prctl", "get_mempolicy", "remap_file_pages", "process_madvise", "ioctl", "mbind"]
DATA = {"ioctl": ("start", "len", "mode"), "shmat": ("size",)}


@st.composite
def calls(draw: st.DrawFn) -> records.Record:
    """A call of one of two processes; some mappings are sensible."""
    name = draw(st.sampled_from(NAMES))
    args = [draw(NUMBERS) for _ in range(ARGUMENTS[name])]
    if name == "mmap" and draw(st.booleans()):
        kind = draw(st.sampled_from([0x22, 0x32, 0x62, 0x122]))
        args = [draw(NUMBERS), draw(st.integers(1, 9)) << 12, draw(st.integers(0, 7)), kind, WORD, 0]
    data: dict[str, int | str | list[int]] = {key: draw(NUMBERS) for key in DATA.get(name, ())}
    if name == "process_madvise":
        data["ranges"] = [draw(NUMBERS), draw(NUMBERS)]
    ret = draw(st.one_of(st.integers(-40, 0), NUMBERS))
    pages = draw(st.integers(1, 40))
    grown = draw(st.sampled_from([[], [(pages << 12, (pages + 3) << 12)]]))
    pid = draw(st.integers(1, 2))
    return records.Call(0, pid, pid, name, args, ret, None, data, draw(st.lists(NUMBERS, max_size=2)), grown)


FAULTS = st.builds(
    records.Fault, n=st.just(0), pid=st.integers(1, 2), tid=st.just(1), addr=NUMBERS, write=st.booleans()
)
EXITS = st.builds(records.Exit, n=st.just(0), pid=st.integers(1, 2))


@st.composite
def traces(draw: st.DrawFn) -> list[records.Record]:
    """A program, at some point its child, and what they do."""
    found: list[records.Record] = [records.Exec(0, 1, "/bin/program", [])]
    found += draw(st.lists(calls(), max_size=12))
    found.append(records.Fork(0, 2, 2, 1, 1, draw(st.sampled_from([0, 0x100, 0x4100]))))
    found += draw(st.lists(st.one_of(calls(), calls(), calls(), FAULTS, EXITS), max_size=16))
    for n, record in enumerate(found, 1):
        record.n = n
    return found


def change(bits: int) -> Change:
    """Several changes at once, a bit each."""
    made = Change()
    if bits & 1:
        made.machine["max_map_count"] = 4
    if bits & 2:
        made.limits.update({"as": 20 << 12, "stack": 0, "memlock": 0})
    if bits & 4:
        texts = ("mprotect -> madvise(GUARD_INSTALL)", "munmap -> nothing", "mmap(addr=0) -> mmap(length=64K)")
        made.rules = [parse_rule(text) for text in texts]
    if bits & 8:
        made.semantics = KERNELS["6.1"].semantics()
    if bits & 16:
        made.machine["overcommit_memory"] = 2
    return made


HEADER = records.Header("trace", 1, faults="exact")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(traces())
def test_attribution_finds_every_vma(trace: list[records.Record]) -> None:
    attribution = Attribution()
    replay = Replay(HEADER, observer=attribution)
    attribution.replay = replay
    for record in trace:
        attribution.step(record)
    attribution.finish()
    for process in replay.machine.processes.values():
        space = attribution.space_of(process.pid)
        assert space is not None
        assert space.starts() == [vma.start for vma in process.vmas()]
        assert sum(group.curve.last() for group in space.by_reason()) == process.mm.map_count


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(traces(), st.integers(0, 31), st.booleans())
def test_what_if_leaves_a_sound_machine(trace: list[records.Record], bits: int, join: bool) -> None:
    found = run(HEADER, trace, change(bits), join=join)
    found.after.replay.machine.validate()
    if bits == 0 and not join and not found.mismatches:
        assert found.turn is None
        for before, after in found.programs():
            assert after is not None
            assert before.maps.points() == after.maps.points()
