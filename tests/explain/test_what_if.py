"""What-if: what it predicts for a changed program is what the really changed program does."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.explain.test_attribution import ANONYMOUS, BASE, FIXED, WORD, header
from tests.programs import compile_program, record, vmalab
from vmalab import flags
from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call
from vmalab.dispatch import perform
from vmalab.explain.join import joined
from vmalab.explain.rewrite import parse_drop, parse_rule
from vmalab.explain.what_if import Change, WhatIf, run
from vmalab.kernels import KERNELS
from vmalab.machine import Machine, Process
from vmalab.semantics import Semantics
from vmalab.trace import records
from vmalab.trace.file import read_trace
from vmalab.trace.load import load_exec, load_machine

PROGRAMS = Path(__file__).parent / "programs"
DEMO = Path(__file__).parents[2] / "src/vmalab/data/demo.jsonl.zst"
GUARDS = "mprotect(PROT_NONE) -> madvise(GUARD_INSTALL)"


def what_if(*arguments: str, status: int = 0) -> dict[str, Any]:
    done = vmalab("what-if", "--json", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def shape(line: str) -> tuple[int, list[str]]:
    """A line of /proc/PID/maps without the address: the size in bytes and the rest."""
    start, end = line.split()[0].split("-")
    return int(end, 16) - int(start, 16), line.split()[1:]


def test_guard_markers_instead_of_guard_pages_as_in_the_really_changed_program(tmp_path: Path) -> None:
    program = compile_program(PROGRAMS / "stacks.c", tmp_path)
    traces = {}
    for guard in ("mprotect", "madvise"):
        traces[guard] = tmp_path / f"{guard}.jsonl.zst"
        record(traces[guard], (program, guard, "2000"))
    really = json.loads(vmalab("replay", "--json", str(traces["madvise"])).stdout)
    assert really["equal"], "the changed program replays as recorded, with its final VMAs"
    found = what_if(str(traces["mprotect"]), "--replace", GUARDS, "--maps")
    assert found["rules"] == [{"rule": GUARDS, "calls": 2000}]
    assert found["prediction_from"] is None
    (predicted,) = found["extremes"][0]["programs"]
    assert predicted["before"]["vmas"] > 4000
    assert predicted["after"]["vmas"] == really["programs"][0]["vmas"] < 100
    assert predicted["after"]["peak_vmas"] <= really["programs"][0]["peak_vmas"]
    # Wherever they lie: the same VMAs in the same order, in size, permissions, offset and name.
    maps = vmalab("replay", "--maps", str(traces["madvise"])).stdout.splitlines()
    assert [shape(line) for line in predicted["maps"]] == [shape(line) for line in maps]


def test_a_limit_on_memory_fails_where_it_really_does(tmp_path: Path) -> None:
    program = compile_program(PROGRAMS / "stacks.c", tmp_path)
    limited_run = f"ulimit -v 16384 && exec {program} mprotect 300"
    free, limited = tmp_path / "free.jsonl.zst", tmp_path / "limited.jsonl.zst"
    record(free, (program, "mprotect", "300"))
    found = what_if(str(free), "--rlimit", "as=16M", status=1)
    (failure,) = [each for each in found["extremes"][0]["new_failures"] if each["shape"].startswith("mmap")]
    assert (failure["errno"], failure["reason"]) == ("ENOMEM", "LIMIT_AS")
    assert found["prediction_from"] == failure["first"]
    really = vmalab("record", "-q", "-o", str(limited), "--", "sh", "-c", limited_run)
    assert "stack: Cannot allocate memory" in really.stderr
    stacks = [sum(is_stack(each) for each in read_trace(str(limited)))]
    stacks.append(sum(is_stack(each) for each in read_trace(str(free)) if each.n < failure["first"]))
    assert stacks[0] == stacks[1] > 100


def is_stack(each: records.Record) -> bool:
    """Whether a record is a successful mmap of a stack."""
    return isinstance(each, records.Call) and each.call == "mmap" and each.args[1] == 65536 and (each.ret or 0) > 0


# -- programs that keep to their handles, run on one model and on another ----------------------------------


class Handles:
    """A program that knows its memory by handles only: it makes the same calls wherever the kernel puts them."""

    def __init__(self, process: Process, change: Callable[[str, tuple[int, ...]], tuple[str, tuple[int, ...]] | None]):
        self.process = process
        self.change = change
        self.trace: list[records.Record] = []
        self.moves = True
        """Whether it makes mremap, which fails where its range is in several VMAs."""
        self.places: list[list[int]] = []
        """For each handle the address of each of its pages; 0 for one that is gone."""

    def call(self, name: str, *args: int) -> int:
        words = tuple(arg & WORD for arg in args)
        made = self.change(name, words)
        result = 0 if made is None else perform(self.process, Call(*made)).result
        n = len(self.trace) + 2
        self.trace.append(records.Call(n, self.process.pid, self.process.pid, name, list(words), result))
        return result

    def step(self, rng: random.Random) -> None:
        kind = rng.choice(("mmap", "mmap", "mprotect", "mprotect", "madvise", "munmap", "mremap", "mlock"))
        size = rng.choice((1, 2, 3, 16, 511, 512, 513, 1024))
        prot = rng.choice((0, 1, 3))
        chosen, first, count = rng.random(), rng.random(), rng.randrange(1, 40)
        advice = rng.choice((flags.MADV_DONTFORK, flags.MADV_DOFORK, flags.MADV_NOHUGEPAGE, flags.MADV_HUGEPAGE))
        if kind == "mmap":
            at = self.call("mmap", 0, size * PAGE_SIZE, prot | 1, ANONYMOUS, -1, 0)
            if at > 0:
                self.places.append([at + i * PAGE_SIZE for i in range(size)])
            return
        live = [pages for pages in self.places if any(pages)]
        if not live:
            return
        pages = live[int(chosen * len(live))]
        here = int(first * len(pages))
        end = here
        while end < min(len(pages), here + count) and pages[end] == pages[here] + (end - here) * PAGE_SIZE != 0:
            end += 1
        if end == here:
            return
        at, length = pages[here], (end - here) * PAGE_SIZE
        if kind == "munmap":
            assert self.call("munmap", at, length) == 0
            pages[here:end] = [0] * (end - here)
        elif kind == "mremap":
            if not self.moves:
                return
            moved = self.call("mremap", at, length, length + PAGE_SIZE, flags.MREMAP_MAYMOVE, 0)
            if moved > 0:
                pages[here:end] = [0] * (end - here)
                self.places.append([moved + i * PAGE_SIZE for i in range(end - here + 1)])
        elif kind == "mprotect":
            self.call("mprotect", at, length, prot)
        elif kind == "madvise":
            self.call("madvise", at, length, advice)
        else:
            self.call("mlock", at, length)


START = records.Exec(1, 1, "/bin/program", [], limits=records.Limits(memlock=None))


def handles(
    seed: int,
    semantics: Semantics | None,
    change: Callable[[str, tuple[int, ...]], tuple[str, tuple[int, ...]] | None],
    *,
    moves: bool = True,
) -> Handles:
    machine: Machine = load_machine(header().machine, semantics)
    process = machine.process(1)
    load_exec(process, START)
    program = Handles(process, change)
    program.moves = moves
    rng = random.Random(seed)
    for _ in range(250):
        program.step(rng)
    return program


def as_it_is(name: str, args: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    return name, args


@pytest.mark.parametrize("seed", range(5))
def test_memory_that_another_kernel_places_elsewhere_is_followed(seed: int) -> None:
    change = Change()
    change.semantics = KERNELS["6.1"].semantics()
    recorded = handles(seed, None, as_it_is)
    really = handles(seed, KERNELS["6.1"].semantics(), as_it_is)
    found = run(header(), [START, *recorded.trace], change)
    process = found.after.replay.process(1)
    assert process is not None
    assert found.turn is None
    assert found.mismatches == 0
    assert found.moved > 0
    assert process.maps() == really.process.maps()
    assert process.maps() != recorded.process.maps()
    assert found.after.programs[1, 1].locked.last() == really.process.mm.locked_vm


@pytest.mark.parametrize("seed", range(5))
def test_calls_that_are_replaced_and_dropped(seed: int) -> None:
    rules = [
        parse_rule("mprotect(PROT_NONE) -> madvise(DONTDUMP)"),
        parse_rule("mmap(length>=2M) -> mmap(+MAP_NORESERVE)"),
        parse_drop("madvise:DONTFORK"),
    ]

    def changed(name: str, args: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | None:
        if name == "mprotect" and args[2] == 0:
            return "madvise", (args[0], args[1], flags.MADV_DONTDUMP)
        if name == "mmap" and args[1] >= 2 << 20:
            return "mmap", (*args[:3], args[3] | flags.MAP_NORESERVE, *args[4:])
        if name == "madvise" and args[2] == flags.MADV_DONTFORK:
            return None
        return name, args

    change = Change()
    change.rules = rules
    recorded = handles(seed, None, as_it_is, moves=False)
    really = handles(seed, None, changed, moves=False)
    found = run(header(), [START, *recorded.trace], change)
    process = found.after.replay.process(1)
    assert process is not None
    assert all(rule.used for rule in rules)
    assert process.maps() == really.process.maps()


@pytest.mark.parametrize("seed", range(2))
def test_nothing_changed_is_no_difference(seed: int) -> None:
    recorded = handles(seed, None, as_it_is)
    found = run(header(), [START, *recorded.trace], Change(), join=False)
    (before, after), *_ = found.programs()
    assert after is not None
    assert before.maps.points() == after.maps.points()
    assert before.locked.points() == after.locked.points()
    assert (found.turn, found.moved, found.absent, found.mismatches) == (None, 0, 0, 0)


# -- limits, and what follows from a failure ---------------------------------------------------------------


def trace_of(*calls: tuple[str, tuple[int, ...], int]) -> list[records.Record]:
    made = [
        records.Call(n, 1, 1, name, [arg & WORD for arg in args], ret) for n, (name, args, ret) in enumerate(calls, 2)
    ]
    return [START, *made]


def mapped(at: int, pages: int) -> tuple[str, tuple[int, ...], int]:
    return "mmap", (at, pages * PAGE_SIZE, 3, FIXED, -1, 0), at


def test_a_lower_limit_fails_with_its_reason_and_what_follows_is_a_prediction() -> None:
    change = Change()
    change.machine["max_map_count"] = 2
    trace = trace_of(
        mapped(BASE, 16),
        ("mprotect", (BASE + 4 * PAGE_SIZE, PAGE_SIZE, 0), 0),
        ("madvise", (BASE, PAGE_SIZE, flags.MADV_DONTFORK), 0),
    )
    found = run(header(), trace, change)
    assert found.turn is not None
    assert (found.turn.record.n, found.turn.before, found.turn.now, found.turns) == (3, 0, 12, 2)
    failures = [(each.first, each.errno_text(), each.cause) for each in found.new_failures.all()]
    assert failures == [
        (3, "ENOMEM", "1 VMAs, with max_map_count 2"),
        (4, "EAGAIN", "2 VMAs, with max_map_count 2"),
    ]
    assert found.gone_failures.all() == []


def test_a_higher_limit_lets_succeed_what_failed() -> None:
    change = Change()
    change.limits["memlock"] = None
    start = records.Exec(1, 1, "/bin/program", [], limits=records.Limits(memlock=PAGE_SIZE))
    trace = [start, *trace_of(mapped(BASE, 16), ("mlock", (BASE, 8 * PAGE_SIZE), -12))[1:]]
    found = run(header(), trace, change)
    assert found.turn is not None
    assert (found.turn.before, found.turn.now) == (12, 0)
    assert [each.first for each in found.gone_failures.all()] == [3]
    assert found.after.programs[1, 1].locked.last() == 8
    assert found.before.programs[1, 1].locked.last() == 0


def test_calls_on_memory_that_is_not_there_are_left_out() -> None:
    change = Change()
    change.limits["as"] = 20 * PAGE_SIZE
    second = BASE + 64 * PAGE_SIZE
    trace = trace_of(
        mapped(BASE, 16),
        mapped(second, 16),
        ("mprotect", (second + 2 * PAGE_SIZE, PAGE_SIZE, 0), 0),
        ("munmap", (BASE, 16 * PAGE_SIZE), 0),
        ("munmap", (second, 16 * PAGE_SIZE), 0),
        mapped(second, 4),
        ("mprotect", (second, PAGE_SIZE, 0), 0),
    )
    found = run(header(), trace, change)
    assert found.turn is not None
    assert (found.turn.record.n, found.turns, found.absent) == (3, 1, 2)
    assert found.after.programs[1, 1].maps.last() == 2


def test_overcommit_and_fork() -> None:
    change = Change()
    change.machine["overcommit_memory"] = 2
    trace: list[records.Record] = trace_of(mapped(BASE, 1000))
    trace += [records.Fork(3, 2, 2, 1, 1, 0), records.Call(4, 2, 2, "munmap", [BASE, PAGE_SIZE], 0)]
    found = run(header(ram_pages=90_000), trace, change)
    assert found.turn is None
    found = run(header(ram_pages=8_000), trace, change)
    assert found.turn is not None
    assert isinstance(found.turn.record, records.Fork)
    assert [each.shape for each in found.new_failures.all()] == ["fork()"]
    assert found.absent == 1
    assert {pid for pid, _ in found.after.programs} == {1}


def test_a_fault_that_fails_is_one() -> None:
    change = Change()
    change.rules = [parse_drop("mprotect(PROT_READ|PROT_WRITE)".replace("(", ":").replace(")", ""))]
    trace = trace_of(("mmap", (BASE, PAGE_SIZE, 0, FIXED, -1, 0), BASE), ("mprotect", (BASE, PAGE_SIZE, 3), 0))
    trace.append(records.Fault(4, 1, 1, BASE, True))
    found = run(header(), trace, change)
    assert (found.dropped, found.new_faults, found.turns) == (1, 1, 1)


# -- joining --------------------------------------------------------------------------------------------------


def test_calls_on_ranges_that_touch_are_joined_at_the_first() -> None:
    page = PAGE_SIZE
    trace = trace_of(
        mapped(BASE, 16),
        ("mprotect", (BASE, page, 0), 0),
        ("mprotect", (BASE + page, page, 0), 0),
        ("mprotect", (BASE + 2 * page, 1, 0), 0),
        ("mprotect", (BASE + 3 * page, page, 1), 0),
        ("madvise", (BASE + 8 * page, page, 10), 0),
        ("madvise", (BASE + 7 * page, page, 10), 0),
        ("madvise", (BASE + 12 * page, page, 10), 0),
        ("munmap", (BASE, page), 0),
        ("munmap", (BASE + page, page), -22),
    )
    plans = [joint for _, joint in joined(trace)]
    expected = [None, None, (BASE, 3 * page, 0), (), (), None, (BASE + 7 * page, 2 * page, 10), (), None, None, None]
    assert plans == expected
    found = run(header(), trace, Change(), join=True)
    assert found.joined == 3
    (before, after), *_ = found.programs()
    assert after is not None
    assert before.maps.last() == after.maps.last()


# -- the command ----------------------------------------------------------------------------------------------


def test_the_command_says_what_is_a_prediction(tmp_path: Path) -> None:
    done = vmalab("what-if", str(DEMO), "--max-map-count", "100")
    assert done.returncode == 1
    assert "max_map_count = 100" in done.stdout
    assert "on this is a prediction: " in done.stdout
    assert "now fails with EAGAIN, and the program would go another way" in done.stdout
    assert "VMAs, with max_map_count 100" in done.stdout
    dropped = vmalab("what-if", str(DEMO), "--drop", "madvise:DONTFORK")
    assert dropped.returncode == 0, dropped.stdout
    assert "no call fails that did not" in dropped.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "say what is to be different"),
        (("--rlimit", "nofile=3"), "write NAME=BYTES with NAME one of as, data, stack, memlock"),
        (("--rlimit", "as=many"), "a limit is a number of bytes"),
        (("--kernel", "2.4"), "'2.4' is not one of"),
        (("--replace", "mprotect"), "a rule is CALL(CONDITIONS) -> CALL(CHANGES)"),
        (("--rules", "-"), "standard input is for the trace"),
        (("--rules", "nowhere.py"), "nowhere.py: cannot be read"),
        (("--max-map-count", "9", "--pid", "1"), "there is no process 1 in this trace"),
    ],
)
def test_wrong_requests(options: tuple[str, ...], said: str) -> None:
    done = vmalab("what-if", str(DEMO), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


CHANGED_SEMANTICS = """
from vmalab.flags import VM_DONTCOPY
from vmalab.semantics import Semantics

class Careless(Semantics):
    def __init__(self):
        super().__init__()
        self.ignored_flags |= VM_DONTCOPY
"""

STATED_SEMANTICS = """
from vmalab.flags import VM_DONTCOPY, VM_MAYBE_GUARD, VM_SOFTDIRTY
from vmalab.semantics import Semantics

class Careless(Semantics):
    ignored_flags = VM_SOFTDIRTY | VM_MAYBE_GUARD | VM_DONTCOPY
"""

CHANGED_MERGE = """
from vmalab.flags import VM_DONTCOPY
from vmalab.vma.merge import is_mergeable_vma as original

def _without(flags):
    return flags & ~VM_DONTCOPY

def is_mergeable_vma(vma, request):
    # VMAs may differ in whether a fork copies them: the one that takes the other decides.
    kept = request.flags
    if (vma.flags ^ request.flags) == VM_DONTCOPY:
        request.flags = vma.flags
    try:
        return original(vma, request)
    finally:
        request.flags = kept
"""


def written(path: Path, *calls: tuple[str, tuple[int, ...], int], faults: str = "exact") -> str:
    """A trace file of one program that makes these calls."""
    head = {"vmalab": "trace", "version": 1, "faults": faults, "machine": {}}
    lines: list[dict[str, Any]] = [head, {"type": "exec", "n": 1, "pid": 1, "exe": "/bin/program", "vmas": []}]
    for name, args, ret in calls:
        words = [arg & WORD for arg in args]
        lines.append({"type": "call", "n": len(lines), "pid": 1, "tid": 1, "call": name, "args": words, "ret": ret})
    lines.append({"type": "end", "n": len(lines), "reason": "done"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


NEIGHBOURS = (mapped(BASE, 1), ("madvise", (BASE, PAGE_SIZE, flags.MADV_DONTFORK), 0), mapped(BASE + PAGE_SIZE, 1))


def test_a_changed_decision_of_the_core(tmp_path: Path) -> None:
    rules = tmp_path / "merge_dontcopy.py"
    rules.write_text(CHANGED_MERGE)
    found = what_if(written(tmp_path / "trace.jsonl", *NEIGHBOURS), "--rules", str(rules))
    assert found["what_if"] == [f"is_mergeable_vma of {rules}"]
    (program,) = found["extremes"][0]["programs"]
    assert (program["before"]["vmas"], program["after"]["vmas"]) == (2, 1)


@pytest.mark.parametrize("text", [CHANGED_SEMANTICS, STATED_SEMANTICS])
def test_changed_semantics(tmp_path: Path, text: str) -> None:
    rules = tmp_path / "semantics.py"
    rules.write_text(text)
    found = what_if(written(tmp_path / "trace.jsonl", *NEIGHBOURS), "--rules", str(rules))
    assert found["what_if"] == [f"semantics of Careless of {rules}"]
    (program,) = found["extremes"][0]["programs"]
    assert (program["before"]["vmas"], program["after"]["vmas"]) == (2, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "it changes nothing"),
        ("def no_such():\n    pass\n", "the core has no function no_such to replace"),
        ("def (\n", "line 1: invalid syntax"),
        ("import os\n\n1 / 0\n", "line 3: ZeroDivisionError"),
        ("import sys\n\nsys.exit(3)\n", "line 3: SystemExit: 3"),
        (
            "from vmalab.semantics import Semantics\nclass Mine(Semantics):\n    no_such = True\n",
            "there is no behaviour no_such; there are: anon_vma_reuse",
        ),
        (
            "from vmalab.semantics import Semantics\nclass Mine(Semantics):\n    guard_regions = 'no'\n",
            "guard_regions must be true or false",
        ),
        (
            "def is_mergeable_vma(vma, request):\n    return vma.nothing\n",
            "line 2, in is_mergeable_vma: AttributeError",
        ),
        ("def is_mergeable_vma(vma):\n    return 0\n", "line 1: is_mergeable_vma has to take (vma, request)"),
        ("def vma_merge_new_range(request):\n    return 7\n", "with it the core goes wrong: "),
    ],
)
def test_rules_that_do_not_work(tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rules = Path("rules.py")
    rules.write_text(text)
    done = vmalab("what-if", str(DEMO), "--rules", str(rules))
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert str(rules) in done.stderr


def test_where_nobody_saw_faults_the_answer_lies_between_two(tmp_path: Path) -> None:
    apart = (mapped(BASE, 1), mapped(BASE + 2 * PAGE_SIZE, 1), mapped(BASE + PAGE_SIZE, 1))
    trace = written(tmp_path / "trace.jsonl", *apart, faults="none")
    found = what_if(trace, "--max-map-count", "100")
    vmas = [extreme["programs"][0]["after"]["vmas"] for extreme in found["extremes"]]
    assert vmas == [1, 2]
    assert "1 to 2" in vmalab("what-if", trace, "--max-map-count", "100").stdout


def test_what_if_is_a_library() -> None:
    change = Change()
    change.rules = [parse_rule(GUARDS)]
    found = WhatIf(header(), change)
    for each in trace_of(mapped(BASE, 4), ("mprotect", (BASE, PAGE_SIZE, 0), 0)):
        found.step(each)
    assert [(before.maps.last(), after and after.maps.last()) for before, after in found.programs()] == [(2, 1)]
