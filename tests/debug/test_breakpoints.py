"""Breakpoints: a run in either direction stops at exactly the records where the condition holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.debug.tapes import made_trace, opened
from vmalab.debug.breakpoints import parse_breakpoint, parse_range, parse_watch
from vmalab.debug.commands import Debugger
from vmalab.debug.expressions import Expression
from vmalab.debug.moment import NAMES, Moment
from vmalab.debug.run import run_back, run_forward
from vmalab.errors import InputError
from vmalab.text import escape_text
from vmalab.trace import records

PLACE = 0x10008000


class Facts:
    """What is so at each record, found by going to every one."""

    def __init__(self, path: Path) -> None:
        self.debugger = opened(path)
        timeline = self.debugger.timeline
        self.records: list[records.Record] = []
        self.counts: list[dict[int, int]] = [{}]
        self.maps: list[dict[int, str]] = [{}]
        self.at_place: list[dict[int, str]] = [{}]
        for n in range(1, len(timeline.tape) + 1):
            timeline.goto(n)
            self.records.append(timeline.tape[n])
            processes = timeline.processes
            self.counts.append({pid: process.mm.map_count for pid, process in processes.items()})
            self.maps.append({pid: process.maps() for pid, process in processes.items()})
            self.at_place.append(
                {
                    pid: "\n".join(
                        " ".join(line.split()[1:])
                        for line in process.maps().splitlines()
                        if int(line.split("-")[0], 16) < PLACE + 4096 and int(line.split()[0].split("-")[1], 16) > PLACE
                    )
                    for pid, process in processes.items()
                }
            )

    def where(self, holds: Callable[[int, records.Record], bool]) -> list[int]:
        """The numbers of the records where something holds."""
        return [record.n for record in self.records if holds(record.n, record)]

    def crosses(self, above: int) -> Callable[[int, records.Record], bool]:
        """Whether the map count of a record's process comes to be above a number."""

        def holds(n: int, record: records.Record) -> bool:
            pid = getattr(record, "pid", 0)
            return self.counts[n].get(pid, 0) > above >= self.counts[n - 1].get(pid, 0)

        return holds


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return Facts(made_trace(tmp_path_factory.mktemp("facts"), 11, 260))


def _call(record: records.Record) -> records.Call | None:
    return record if isinstance(record, records.Call) else None


def cases(facts: Facts) -> dict[str, list[int]]:
    """Conditions, and the records where each holds."""

    def call(name: str, holds: Callable[[list[int]], bool] = lambda args: True) -> list[int]:
        return facts.where(lambda n, each: bool((c := _call(each)) and c.call == name and holds(c.args)))

    def failed(*numbers: int) -> list[int]:
        return facts.where(
            lambda n, each: bool((c := _call(each)) and (-(c.ret or 0) in numbers or (c.failed and not numbers)))
        )

    middle = sorted(count for counts in facts.counts for count in counts.values())[-30]
    pid = 100
    return {
        "call munmap": call("munmap"),
        "call m*lock": facts.where(lambda n, each: bool((c := _call(each)) and c.call in ("mlock", "munlock"))),
        "call mlock,munlock": facts.where(lambda n, each: bool((c := _call(each)) and c.call in ("mlock", "munlock"))),
        "call mprotect PROT_NONE": call("mprotect", lambda args: args[2] == 0),
        "call mmap MAP_FIXED PROT_WRITE": call("mmap", lambda args: bool(args[3] & 16 and args[2] & 2)),
        "call mmap !MAP_FIXED": call("mmap", lambda args: not args[3] & 16),
        "call madvise(MADV_*HUGEPAGE)": call("madvise", lambda args: args[2] in (14, 15)),
        "call madvise MADV_DONTFORK": call("madvise", lambda args: args[2] == 10),
        "errno ENOMEM": failed(12),
        "errno einval,EFAULT": failed(22, 14),
        "errno any": failed(),
        f"maps > {middle}": facts.where(facts.crosses(middle)),
        f"maps >= {middle + 1}": facts.where(facts.crosses(middle)),
        "fork": facts.where(lambda n, each: isinstance(each, records.Fork)),
        "fault": facts.where(lambda n, each: isinstance(each, records.Fault)),
        "mismatch": [],
        f"pid {pid}": facts.where(lambda n, each: getattr(each, "pid", 0) == pid),
        f"call mmap pid {pid}": [n for n in call("mmap") if getattr(facts.records[n - 1], "pid", 0) == pid],
        "call mmap if ret < 0 or length > 4*4096": call("mmap", lambda args: args[1] > 4 * 4096),
        "if kind == 'exit'": facts.where(lambda n, each: isinstance(each, records.Exit)),
        "if call == 'mmap' and args[1] == 4096": call("mmap", lambda args: args[1] == 4096),
        "if map_count == before + 2": facts.where(
            lambda n, each: facts.counts[n].get(p := getattr(each, "pid", 0), 0) == facts.counts[n - 1].get(p, 0) + 2
        ),
        f"if vma({PLACE}) and vma({PLACE}).perms == '---p'": facts.where(
            lambda n, each: "---p" in facts.at_place[n].get(getattr(each, "pid", 0), "")
        ),
    }


def all_hits(debugger: Debugger, *, back: bool) -> list[int]:
    """Every stop of a run from one end to the other."""
    found: list[int] = []
    timeline = debugger.timeline
    timeline.move(len(debugger.tape) if back else 0)
    breakpoints = list(debugger.breakpoints.values())
    while (stop := (run_back if back else run_forward)(timeline, breakpoints, lambda n: None)).reached:
        found.append(stop.n)
        timeline.move(stop.n)
    assert stop.n == (0 if back else len(debugger.tape))
    return found


def test_a_run_stops_where_the_condition_holds(facts: Facts) -> None:
    debugger = facts.debugger
    found = cases(facts)
    assert sum(map(bool, found.values())) >= len(found) - 1, "a case that never holds tests nothing"
    for text, expected in found.items():
        debugger.execute("delete")
        debugger.execute(f"break {text}")
        assert all_hits(debugger, back=False) == expected, text
        assert all_hits(debugger, back=True) == expected[::-1], text


@given(start=st.integers(0, 260), data=st.data())
@settings(max_examples=20)
def test_from_anywhere_and_several_at_once(facts: Facts, start: int, data: st.DataObject) -> None:
    found = cases(facts)
    chosen = data.draw(st.lists(st.sampled_from(sorted(found)), min_size=1, max_size=3, unique=True))
    debugger = facts.debugger
    debugger.execute("delete")
    for text in chosen:
        debugger.execute(f"break {text}")
    expected = sorted({n for text in chosen for n in found[text]})
    debugger.timeline.goto(start)
    debugger.execute("continue")
    assert debugger.timeline.n == next((n for n in expected if n > start), start)
    debugger.timeline.goto(start)
    debugger.execute("reverse")
    assert debugger.timeline.n == next((n for n in reversed(expected) if n < start), start)


def test_an_address_is_touched_where_its_maps_change(facts: Facts) -> None:
    """Every record that changes what is mapped at a page stops a run; and those that name it without changing it."""
    debugger = facts.debugger
    debugger.execute("delete")
    debugger.execute(f"break address {PLACE:x}")
    hits = all_hits(debugger, back=False)
    changed = facts.where(
        lambda n, each: (
            isinstance(each, records.Call) and facts.at_place[n].get(each.pid) != facts.at_place[n - 1].get(each.pid)
        )
    )
    named = facts.where(
        lambda n, each: bool(
            (c := _call(each))
            and c.call in ("munmap", "mprotect", "madvise", "mlock", "munlock")
            and c.args[0] < PLACE + 4096
            and c.args[0] + c.args[1] > PLACE
        )
    )
    assert len(changed) > 5
    assert set(changed) | set(named) <= set(hits)
    assert len(hits) < len(debugger.tape) // 2


def test_a_watch_stops_where_the_value_changes(facts: Facts) -> None:
    debugger = facts.debugger
    debugger.execute("delete")
    debugger.execute("goto 1")
    debugger.execute("watch map_count")
    expected = [
        n for n in range(1, len(debugger.tape) + 1) if facts.counts[n].get(100, 0) != facts.counts[n - 1].get(100, 0)
    ]
    assert len(expected) > 20
    # Before the first record there is nothing to compare with.
    debugger.timeline.goto(1)
    found = []
    while debugger.execute("continue").data.get("breakpoints"):
        found.append(debugger.timeline.n)
    assert found == [n for n in expected if n > 1]
    found = []
    debugger.execute("goto end")
    while debugger.execute("reverse").data.get("breakpoints"):
        found.append(debugger.timeline.n)
    assert found[::-1] == expected


def test_disabled_breakpoints_stop_nothing_and_stops_are_counted(facts: Facts) -> None:
    debugger = facts.debugger
    debugger.execute("delete")
    debugger.execute("break call mmap")
    number = next(iter(debugger.breakpoints))
    debugger.execute("goto 1")
    debugger.execute("continue")
    debugger.execute("continue")
    assert debugger.breakpoints[number].stops == 2
    debugger.execute(f"disable {number}")
    debugger.execute("continue")
    assert debugger.timeline.n == len(debugger.tape)
    debugger.execute("enable")
    debugger.execute("reverse")
    assert debugger.timeline.n < len(debugger.tape)


def test_one_process_alone(facts: Facts) -> None:
    debugger = facts.debugger
    debugger.execute("delete")
    pid = sorted(debugger.tape.pids)[1]
    own = list(debugger.tape.of_process(pid))
    debugger.execute("goto start")
    debugger.execute(f"process {pid}")
    found = []
    for _ in own:
        debugger.execute("step")
        found.append(debugger.timeline.n)
    assert found == own
    debugger.execute("step")
    assert debugger.timeline.n == own[-1]
    found = [own[-1]]
    for _ in own[1:]:
        debugger.execute("back")
        found.append(debugger.timeline.n)
    assert found == own[::-1]
    debugger.execute("break call mmap")
    debugger.execute("continue")
    assert debugger.timeline.n in own
    debugger.execute("process all")
    debugger.execute("delete")
    debugger.execute("goto 1")
    debugger.execute("step 3")
    assert debugger.timeline.n == 4


# -- what is wrong is one clear line ------------------------------------------------------------------

WRONG = {
    "": "needs a condition|a condition",
    "call": "name of a call",
    "call nonsense": "no call",
    "call mmap fixed": "no flag",
    "errno EWHAT": "no errno",
    "address zzz": "no address",
    "address 2000-1000": "empty",
    "address 1000+x": "no number",
    "maps": "no comparison",
    "maps > many": "no comparison",
    "mismatch now": "no condition",
    "\x1b[2J": r"\\x1b",
    "if": "missing",
    "if 1 +": "no expression",
    "if foo": "no name foo",
    "if map_cont > 1": "did you mean map_count",
    "if import os": "no expression",
    "if ().__class__": "__class__ cannot",
    "if '{0.x}'.format(n)": "format cannot",
    "if (lambda: 1)()": "Lambda cannot",
    "if [x := 1]": "NamedExpr cannot",
    "if f'{n}'": "JoinedStr cannot",
    "if " + "(" * 300 + ")" * 300: "no expression",
    "if " + "n+" * 600 + "n": "longer",
    "call mmap if": "missing",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_breakpoint_says_so(text: str) -> None:
    with pytest.raises(InputError, match=WRONG[text]) as error:
        parse_breakpoint(1, text)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


@given(st.text(max_size=40))
@settings(max_examples=100)
def test_no_text_is_a_traceback(text: str) -> None:
    shown = []
    for parse in (
        lambda: parse_breakpoint(1, text),
        lambda: parse_breakpoint(1, "if " + text),
        lambda: parse_breakpoint(1, "call " + text),
        lambda: parse_watch(1, text, 1),
        lambda: parse_range(text),
    ):
        try:
            parse()
        except InputError as error:
            shown.append(str(error))
    assert shown == [escape_text(each) for each in shown]


def test_an_expression_without_a_value_names_breakpoint_and_record(facts: Facts) -> None:
    debugger = facts.debugger
    for where, condition in (
        ("args[7]", "args[7]"),
        ("10 // (map_count - map_count)", "10 // (map_count - map_count)"),
    ):
        debugger.execute("delete")
        debugger.execute("goto 1")
        debugger.execute(f"break call mmap if {condition}")
        number = next(iter(debugger.breakpoints))
        with pytest.raises(InputError, match=rf"breakpoint {number}: .* has no value at record \d+: \w+Error"):
            debugger.execute("continue")
        assert where
        assert debugger.timeline.step is not None
    debugger.execute("delete")


def test_a_watch_is_about_a_state() -> None:
    with pytest.raises(InputError, match="about the state of a process"):
        parse_watch(1, "ret < 0", 5)


def test_every_name_has_a_value_at_every_kind_of_record(facts: Facts) -> None:
    debugger = facts.debugger
    seen: set[str] = set()
    for n in range(1, len(debugger.tape) + 1):
        record = debugger.tape[n]
        kind = f"{type(record).__name__} {getattr(record, 'call', '')}"
        if kind in seen:
            continue
        seen.add(kind)
        debugger.timeline.goto(n)
        moment = Moment(debugger.tape, record, debugger.timeline)
        for name in NAMES:
            value: Any = Expression(name).value(moment)
            assert value is not None or name == "vma"
    assert len(seen) > 8


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "2**99999999", "(0-5)**99999", "1<<99999999999", "'a'*10**10", "3*[0]*10**7", "'%99999999d' % 1"],
)
def test_small_expressions_make_no_huge_values(facts: Facts, text: str) -> None:
    facts.debugger.execute("goto 60")
    with pytest.raises(InputError, match=r"has no value at record 60: (OverflowError|TypeError)"):
        facts.debugger.execute(f"print {text}")


def test_operators_do_what_they_do(facts: Facts) -> None:
    facts.debugger.execute("goto 60")
    for text in ("2**64*3%7<<2", "2**-1", "[0]*3", "'ab'*2", "-7%4", "1<<4000", "2.5*2"):
        assert facts.debugger.execute(f"print {text}").data == eval(text)


def test_a_place_alone_is_gone_to(facts: Facts) -> None:
    debugger = facts.debugger
    for line, n in (("60", 60), ("+2", 62), ("-12", 50), ("start", 0), ("end", len(debugger.tape))):
        debugger.execute(line)
        assert debugger.timeline.n == n
    with pytest.raises(InputError, match="there is no record"):
        debugger.execute("99999")


def test_expressions_have_python_and_constants(facts: Facts) -> None:
    debugger = facts.debugger
    debugger.execute("goto 60")
    assert debugger.execute("print len([v for v in vmas if v.size > 0]) == map_count").data is True
    assert debugger.execute("print max(v.end for v in vmas) - min(v.start for v in vmas) > 0").data is True
    assert debugger.execute("print MAP_FIXED | PROT_READ").data == 17
    assert debugger.execute("print vma(vmas[0].start).start == vmas[0].start").data is True
    assert debugger.execute("print sorted(processes)[0]").data in debugger.tape.pids
    assert debugger.execute("print vma(1)").data is None
    assert debugger.execute("print n").data == 60
