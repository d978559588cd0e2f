"""The commands of the debugger: what a user types at the prompt, and what a script gives.

Each answers with lines for people and a value for programs.  Text from outside is escaped in the lines.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, final

from rich.text import Text

from vmalab.debug.breakpoints import FORMS, Breakpoint, parse_breakpoint, parse_range, parse_watch
from vmalab.debug.expressions import CONSTANTS, FUNCTIONS, Expression
from vmalab.debug.moment import NAMES, Moment, VmaView, view_of
from vmalab.debug.picture import EVERYWHERE, Picture, Range, surroundings, take_picture
from vmalab.debug.run import Stop, run_back, run_forward
from vmalab.debug.show import (
    BAD,
    DIM,
    GOOD,
    HEAD,
    WARN,
    boundaries_of,
    obstacle_text,
    row,
    sight_of,
    size_text,
    step_json,
    step_lines,
    text_of,
    vma_text,
)
from vmalab.debug.timeline import Poll, Timeline
from vmalab.errors import InputError
from vmalab.explain.story import Story
from vmalab.machine import Process
from vmalab.text import address_of, count_text, escape_text
from vmalab.trace.replay import Replay

LISTED: Final = 10
"""Rows that `list` shows."""
LONGEST_VALUE: Final = 2000
NEARBY: Final = 200
"""VMAs that are looked at around a place."""


@dataclass
class Answer:
    """What a command has to say."""

    lines: list[Text] = field(default_factory=list)
    data: Any = None
    moved: bool = False
    """The position may be another now."""
    over: bool = False
    """The user wants to leave."""


@final
class Debugger:
    """A timeline with breakpoints, a chosen process, and commands."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.tape = timeline.tape
        self.breakpoints: dict[int, Breakpoint] = {}
        self.pid: int = 0
        """The process whose records are gone through; 0 for all."""
        self.width: int = 80
        """Columns of the lines that draw."""
        self._next = 1
        self._again = ""

    @property
    def here(self) -> int:
        """The process that is looked at: the chosen one, else that of the record or of the last before it."""
        n = self.timeline.n
        while not self.pid and n and not getattr(self.tape[n], "pid", 0):
            n -= 1
        return self.pid or (getattr(self.tape[n], "pid", 0) if n else 0)

    def execute(self, line: str, poll: Poll = lambda n: None) -> Answer:
        """Perform a command.  An empty line repeats the last one that moved.

        Raises InputError that says what is wrong; what poll raises leaves the position in order.
        """
        words = line.strip().removeprefix(":").lstrip() or self._again
        if not words or words.startswith("#"):
            return Answer()
        if words in ("start", "end") or words.lstrip("+-").isdecimal():
            words = f"goto {words}"
        name, _, rest = words.partition(" ")
        command = _find(name)
        try:
            answer = command.perform(self, rest.strip(), poll)
        except InputError:
            self.timeline.goto(self.timeline.n)
            raise
        if answer.moved:
            self._again = words if command.repeats else ""
        return answer

    # -- moving -------------------------------------------------------------------------------------

    def goto(self, n: int, poll: Poll) -> Answer:
        """Go to a record, and show it."""
        if not 0 <= n <= len(self.tape):
            raise InputError(f"there is no record {n:,}: the last one is {len(self.tape):,}")
        self.timeline.goto(n, poll)
        return self.where()

    def where(self) -> Answer:
        """The record at this position and what it did."""
        return Answer(step_lines(self.timeline, self.width), step_json(self.timeline), moved=True)

    def neighbour(self, count: int) -> int:
        """The record that lies so many after this one (before it, if negative), of the chosen process if there is one.

        At the ends it is the last, or the start.
        """
        n = self.timeline.n
        if not self.pid:
            return max(0, min(len(self.tape), n + count))
        own = self.tape.of_process(self.pid)
        place = (bisect_right(own, n) - 1 if count > 0 else bisect_left(own, n)) + count
        if place < 0:
            return 0
        return own[place] if place < len(own) else max(n, own[-1] if own else n)

    def run(self, back: bool, poll: Poll) -> Answer:
        """Go on to a breakpoint.  If none is hit, stay; if there is none, go to the end (back: the start)."""
        wanted = [each for each in self.breakpoints.values() if each.enabled]
        start = self.timeline.n
        try:
            stop = (run_back if back else run_forward)(self.timeline, wanted, poll, self.pid)
        except InputError:
            raise
        except BaseException:
            # Interrupted: a run back has been anywhere, one forward has got so far.
            self.timeline.goto(start if back else self.timeline.n)
            raise
        # Where no breakpoint is hit the place is not lost; without any, there is an end to go to.
        answer = self.goto(stop.n if stop.reached or not wanted else start, poll)
        for each in stop.reached:
            each.stops += 1
        answer.lines = [self._why_stopped(stop, back, wanted), *answer.lines]
        if isinstance(answer.data, dict):
            answer.data["breakpoints"] = [each.number for each in stop.reached]
        return answer

    @staticmethod
    def _why_stopped(stop: Stop, back: bool, wanted: list[Breakpoint]) -> Text:
        end = "the start" if back else "the end"
        if stop.reached:
            shown = "; ".join([f"breakpoint {each.number}: {escape_text(each.text)}" for each in stop.reached])
            return Text(shown, WARN)
        return Text(f"no breakpoint is hit from here to {end}" if wanted else f"no breakpoints: {end}", WARN)

    @property
    def repeats(self) -> bool:
        """Whether an empty line does something."""
        return bool(self._again)

    # -- breakpoints --------------------------------------------------------------------------------

    def add(self, make: Callable[[int], Breakpoint]) -> Answer:
        """A new breakpoint."""
        made = make(self._next)
        self.breakpoints[made.number] = made
        self._next += 1
        return Answer([Text(f"breakpoint {made.number}: {escape_text(made.text)}")], _breakpoint_json(made))

    def chosen(self, text: str) -> list[Breakpoint]:
        """The breakpoints of a list of numbers; all if it is empty."""
        found = []
        for word in text.replace(",", " ").split():
            known = self.breakpoints.get(int(word)) if word.isascii() and word.isdecimal() else None
            if known is None:
                listed = ", ".join(map(str, self.breakpoints)) or "none"
                raise InputError(f"there is no breakpoint {escape_text(word, 40)}; there is: {listed}")
            found.append(known)
        return found if text else list(self.breakpoints.values())

    # -- processes ----------------------------------------------------------------------------------

    def process(self) -> Process:
        """The process that is looked at.  Raises InputError if there is none now."""
        process = self.timeline.processes.get(self.here)
        if process is None:
            alive = ", ".join(map(str, sorted(self.timeline.processes)[:20])) or "none"
            what = f"process {self.here} does not live" if self.here else "no process has acted"
            raise InputError(f"{what} at record {self.timeline.n:,}; these live: {alive}")
        return process

    def places(self) -> list[Range]:
        """Where the record at this position acts."""
        step = self.timeline.step
        return step.places if step is not None else []

    def nearby_obstacles(self) -> tuple[list[Text], int]:
        """Why VMAs around the place of this record did not merge (of a small process all); and the line to begin at."""
        process = self.process()
        places = self.places()
        if process.mm.map_count <= NEARBY or not places:
            picture = take_picture(process, [EVERYWHERE], limit=NEARBY)
        else:
            picture = take_picture(process, surroundings(process, places, NEARBY // 8), limit=NEARBY)
        lines, data = self.obstacle_lines(process, picture, ordinary=False)
        below = [each for each in data if places and each["addr"] < places[-1][0]]
        # A boundary is a line for its address, one for each VMA, and one for each obstacle.
        return lines, sum(3 + len(each["obstacles"]) for each in below)

    def obstacle_lines(self, process: Process, picture: Picture, *, ordinary: bool) -> tuple[list[Text], list[Any]]:
        """All places of a picture where VMAs touch that did not merge, with the reasons; and the same for a program.

        Those that every program has are only counted, unless ordinary.
        """
        lines: list[Text] = []
        data: list[Any] = []
        passed = 0
        for boundary in boundaries_of(picture, sight_of(self.tape)):
            if not ordinary and (boundary.is_foreign() or boundary.is_within_file()):
                passed += 1
                continue
            lines.append(Text(f"{boundary.addr:x}", HEAD))
            for vma in (boundary.below, boundary.above):
                lines.append(Text(f"    {vma_text(vma, process.name_of(vma), self.width - 4)}"))
            lines += [Text(f"    {obstacle_text(each)}", WARN) for each in boundary.obstacles]
            data.append({"addr": boundary.addr, "obstacles": [obstacle_text(each) for each in boundary.obstacles]})
        if passed:
            what = "1 boundary" if passed == 1 else f"{passed:,} boundaries"
            lines.append(
                Text(f"{what} of different files or segments of one are not listed; obstacles ADDR shows one", DIM)
            )
        return lines or [Text("no two VMAs there touch without having merged", DIM)], data


# -- the commands -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command: its names, the first of which is the full one, and what help says."""

    names: tuple[str, ...]
    usage: str
    says: str
    perform: Callable[[Debugger, str, Poll], Answer]
    repeats: bool = False


def _count(text: str) -> int:
    if not text:
        return 1
    if not (text.isascii() and text.isdecimal()) or len(text) > 12:
        raise InputError(f'"{escape_text(text, 40)}" is no number of records')
    return int(text)


def _step(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    n = debugger.neighbour(_count(rest))
    answer = debugger.goto(n, poll)
    if n == len(debugger.tape) and not rest:
        answer.lines.append(Text("this is the last record", DIM))
    return answer


def _back(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    return debugger.goto(debugger.neighbour(-_count(rest)), poll)


def _goto(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    here = debugger.timeline.n
    text = rest.replace(",", "")
    if text in ("start", "end"):
        return debugger.goto(0 if text == "start" else len(debugger.tape), poll)
    if text.startswith(("+", "-")):
        count = _count(text[1:] or "none")
        return debugger.goto(max(0, min(len(debugger.tape), here + (count if text[0] == "+" else -count))), poll)
    return debugger.goto(_count(text or "none"), poll)


def _list(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    tape = debugger.tape
    here = debugger.timeline.n
    count = _count(rest) if rest else LISTED
    of_pid = debugger.pid
    numbers: Any = tape.of_process(of_pid) if of_pid else range(1, len(tape) + 1)
    middle = bisect_left(numbers, max(here, 1))
    first = max(0, min(middle - count // 2, len(numbers) - count))
    digits = len(str(len(tape)))
    shown = list(numbers[first : first + count])
    lines = [Text("> " if n == here else "  ") + row(tape, n, digits, pids=not of_pid) for n in shown]
    return Answer(lines, [{"record": n, "text": row(tape, n, 0).plain.strip()} for n in shown])


def _where(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    answer = debugger.where()
    answer.moved = False
    return answer


def _break(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    return debugger.add(lambda number: parse_breakpoint(number, rest)) if rest else _breakpoints(debugger, rest, poll)


def _watch(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    pid = debugger.here
    if not pid:
        raise InputError("choose a process first (process PID), or go to a record of it: a watch is about one process")
    return debugger.add(lambda number: parse_watch(number, rest, pid))


def _breakpoint_json(each: Breakpoint) -> dict[str, Any]:
    return {"breakpoint": each.number, "text": each.text, "enabled": each.enabled, "stops": each.stops}


def _breakpoints(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    lines = [breakpoint_line(each) for each in debugger.breakpoints.values()]
    data = [_breakpoint_json(each) for each in debugger.breakpoints.values()]
    return Answer(lines or [Text("no breakpoints; help break says how to set one", DIM)], data)


def breakpoint_line(each: Breakpoint) -> Text:
    """A breakpoint in one line."""
    state = "" if each.enabled else " (disabled)"
    hit = f"  stopped {count_text(each.stops, 'time')}" if each.stops else ""
    return Text.assemble(f"{each.number:>3} {escape_text(each.text)}", (state, WARN), (hit, DIM))


def _delete(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    gone = debugger.chosen(rest)
    for each in gone:
        del debugger.breakpoints[each.number]
    return Answer([Text(f"deleted {count_text(len(gone), 'breakpoint')}")], [each.number for each in gone])


def _switch(enabled: bool) -> Callable[[Debugger, str, Poll], Answer]:
    def perform(debugger: Debugger, rest: str, poll: Poll) -> Answer:
        for each in debugger.chosen(rest):
            each.enabled = enabled
        return _breakpoints(debugger, "", poll)

    return perform


def _processes(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    timeline = debugger.timeline
    pids = list(timeline.tape.pids)
    living = [pid for pid in pids if pid in timeline.processes]
    lines = [process_line(debugger, pid) for pid in living]
    later = sum(timeline.tape.pids[pid] > timeline.n for pid in pids)
    gone = len(pids) - len(living) - later
    if gone or later:
        lines.append(Text(f"  {gone:,} have ended, {later:,} are not there yet", DIM))
    counts = {pid: timeline.processes[pid].mm.map_count for pid in living}
    return Answer(lines, [{"pid": pid, "lives": pid in counts, "map_count": counts.get(pid, 0)} for pid in pids])


def process_line(debugger: Debugger, pid: int) -> Text:
    """A process in one line: whether it lives, its VMAs, its program."""
    timeline = debugger.timeline
    process = timeline.processes.get(pid)
    mark = "> " if pid == debugger.here else "  "
    calls = count_text(len(timeline.tape.of_process(pid)), "record") if pid == debugger.pid else ""
    if process is None:
        first = timeline.tape.pids[pid]
        when = "not yet" if first > timeline.n else "ended"
        return Text.assemble(mark, f"{pid:>7} ", (when, DIM), f" {calls}".rstrip())
    program = timeline.replay.current.get(pid)
    exe = escape_text(program.exe) if program is not None else ""
    size = size_text(process.mm.total_vm << 12)
    wrong = program.mismatches if program is not None else 0
    return Text.assemble(
        mark,
        (f"{pid:>7} ", GOOD),
        f"{process.mm.map_count:>6,} VMAs {size:>6}  {exe} ",
        (f" {count_text(wrong, 'mismatch').replace('mismatchs', 'mismatches')}" if wrong else "", BAD),
        (calls, DIM),
    )


def _process(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    if rest in ("all", "0"):
        debugger.pid = 0
        return Answer([Text("all processes")], {"pid": 0})
    if not rest:
        return _processes(debugger, rest, poll)
    pid = _count(rest)
    if pid not in debugger.tape.pids:
        listed = ", ".join(map(str, list(debugger.tape.pids)[:20]))
        raise InputError(f"there is no process {pid} in this trace; it has: {listed}")
    debugger.pid = pid
    own = debugger.tape.of_process(pid)
    return Answer([Text(f"process {pid} alone: {count_text(len(own), 'record')}; process all ends that")], {"pid": pid})


def _vmas(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    process = debugger.process()
    low, high = parse_range(rest) if rest else (0, 1 << 64)
    found = process.mm.tree.walk(low, high)
    width = debugger.width
    lines = [Text(vma_text(vma, process.name_of(vma), width)) for vma in found]
    if not found:
        lines = [Text(f"nothing is mapped there in process {process.pid}", DIM)]
    return Answer(lines, [_value_json(view_of(process, vma)) for vma in found])


def _maps(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    process = debugger.process()
    lines = process.maps().splitlines()
    return Answer([Text(escape_text(line)) for line in lines], lines)


def _obstacles(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    process = debugger.process()
    low, high = parse_range(rest) if rest else (0, 1 << 64)
    around = process.mm.find_vma_prev(low)
    start = around.start if around is not None else low
    picture = take_picture(process, [(start, min(high + 1, EVERYWHERE[1]))], limit=0)
    return Answer(*debugger.obstacle_lines(process, picture, ordinary=bool(rest)))


def _why(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    addr = address_of(rest)
    if addr is None:
        raise InputError(f"why needs an address: {escape_text(rest, 40) or 'nothing'} is none; why 7f12a0000000, say")
    process = debugger.process()
    tape = debugger.tape
    story = Story(addr)
    replay = Replay(tape.header, debugger.timeline.replay.machine.semantics, observer=story)
    story.replay = replay
    for record in tape.between(1, debugger.timeline.n):
        story.step(record)
        if record.n % 64 == 0:
            poll(record.n)
    told = [line for line in story.lines if process.pid in line.pids]
    lines: list[Text] = []
    last = 0
    for line in told:
        if line.n != last:
            lines.append(Text(f"{line.n:>7} {text_of(tape, tape[line.n])}", DIM))
        last = line.n
        lines.append(Text(f"        {escape_text(line.what)}"))
    if not lines:
        lines = [Text(f"{addr:#x} was never mapped in process {process.pid} up to record {debugger.timeline.n:,}", DIM)]
    return Answer(lines, [{"record": line.n, "pid": line.pid, "what": line.what} for line in told])


def _print(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    timeline = debugger.timeline
    expression = Expression(rest)
    if timeline.step is None:
        raise InputError("there is nothing to ask before the first record; goto 1")
    moment = Moment(debugger.tape, timeline.step.record, timeline)
    moment.mismatch = timeline.step.mismatch
    moment.count_before = timeline.step.count_before
    if debugger.pid:
        moment.pid = debugger.pid
    value = expression.value(moment)
    return Answer([Text(value_text(value))], _value_json(value))


def value_text(value: object) -> str:
    """A value for people: addresses in hexadecimal; escaped."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,} ({value:#x})" if abs(value) > 9 else str(value)
    if isinstance(value, VmaView):
        bounds = f"{value.start:x}-{value.end:x} {value.perms} {escape_text(value.name) or 'anonymous'}"
        return f"{bounds} [{' '.join(sorted(value.flags))}]{' written' if value.written else ''}"
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)
        shown = [value_text(each) if not isinstance(each, int) else str(each) for each in items[:200]]
        return escape_text(f"[{', '.join(shown)}{', ...' if len(items) > 200 else ''}]", LONGEST_VALUE)
    return escape_text(str(value), LONGEST_VALUE)


def _value_json(value: object) -> Any:
    if isinstance(value, VmaView):
        return {name: _value_json(each) for name, each in vars(value).items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_value_json(each) for each in value]
    return value if isinstance(value, int | float | str | bool) or value is None else str(value)


def _names(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    lines = [Text("An expression is Python over these names:")]
    lines += [Text.assemble((f"  {name:<10}", HEAD), f" {each.says}") for name, each in NAMES.items()]
    lines.append(
        Text("A VMA has start, end, size, perms, flags (as in VmFlags), name, offset, written, shared, locked.")
    )
    lines.append(Text(f"Functions: {', '.join(FUNCTIONS)}; and constants such as MAP_FIXED, {len(CONSTANTS)} in all."))
    return Answer(lines, {name: each.says for name, each in NAMES.items()})


def _help(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    if rest == "names":
        return _names(debugger, rest, poll)
    if rest:
        command = _find(rest)
        lines = [Text(command.usage, HEAD), Text(f"  {command.says}")]
        if len(command.names) > 1:
            lines.append(Text(f"  also: {', '.join(command.names[1:])}"))
        if command.names[0] == "break":
            lines += [Text(f"  break {form}") for form in FORMS]
        return Answer(lines, command.says)
    lines = [Text.assemble((f"{each.usage:<26}", HEAD), each.says) for each in COMMANDS]
    lines.append(Text("help COMMAND tells more, help names what an expression may use; unique beginnings will do", DIM))
    return Answer(lines, [each.usage for each in COMMANDS])


def _quit(debugger: Debugger, rest: str, poll: Poll) -> Answer:
    return Answer(over=True)


COMMANDS: Final = (
    Command(("step", "s", "forward", "n", "next"), "step [N]", "go N records forward", _step, repeats=True),
    Command(("back", "reverse-step", "rs", "rn"), "back [N]", "go N records back", _back, repeats=True),
    Command(
        ("continue", "c", "run", "r"),
        "continue",
        "go on to the next breakpoint",
        lambda debugger, rest, poll: debugger.run(False, poll),
        repeats=True,
    ),
    Command(
        ("reverse", "reverse-continue", "rc"),
        "reverse",
        "go back to the breakpoint before",
        lambda debugger, rest, poll: debugger.run(True, poll),
        repeats=True,
    ),
    Command(("goto", "g"), "goto N|+N|-N|start|end", "go to a record", _goto),
    Command(("where", "w"), "where", "show this record, what the model says of it, and what it did", _where),
    Command(("list", "l"), "list [N]", "show the records around this one", _list),
    Command(("break", "b"), "break CONDITION", "stop where it is so", _break),
    Command(("watch",), "watch EXPRESSION", "stop where its value changes for this process", _watch),
    Command(("breakpoints", "info"), "breakpoints", "list the breakpoints", _breakpoints),
    Command(("delete", "d"), "delete [N ...]", "delete breakpoints, or all", _delete),
    Command(("disable",), "disable [N ...]", "let breakpoints stop nothing", _switch(False)),
    Command(("enable",), "enable [N ...]", "let them stop again", _switch(True)),
    Command(
        ("process", "processes", "pid"), "process [PID|all]", "list the processes, or go through one alone", _process
    ),
    Command(("vmas", "v"), "vmas [ADDR|RANGE]", "show the VMAs of the process", _vmas),
    Command(("maps",), "maps", "show them as /proc/PID/maps does", _maps),
    Command(("obstacles", "o"), "obstacles [ADDR|RANGE]", "say why neighbours did not merge", _obstacles),
    Command(("why",), "why ADDR", "tell what has happened to an address of the process so far", _why),
    Command(("print", "p"), "print EXPRESSION", "show the value of an expression here", _print),
    Command(("names",), "names", "list what an expression may use", _names),
    Command(("help", "h", "?"), "help [COMMAND|names]", "say what there is", _help),
    Command(("quit", "q", "exit"), "quit", "leave", _quit),
)
"""All commands, in the order of help."""


def _find(name: str) -> Command:
    for command in COMMANDS:
        if name in command.names:
            return command
    found = [command for command in COMMANDS if any(each.startswith(name) for each in command.names)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join([command.names[0] for command in found])
        raise InputError(f"{escape_text(name, 40)} may be one of: {listed}")
    raise InputError(f"there is no command {escape_text(name, 40)}; help lists them")
