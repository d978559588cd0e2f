"""A trace and what a record of it did, as lines for people: the same in a terminal, in a pipe and in the application.

Text from outside is escaped here, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from vmalab.addr import PAGE_SIZE
from vmalab.debug.moment import as_call
from vmalab.debug.picture import Picture, Seen, Strips
from vmalab.explain.obstacles import Boundary, Obstacle, Sight, find_obstacles
from vmalab.flags import (
    MNEMONICS,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_MAYACCESS,
    VM_MAYSHARE,
    VM_SHARED,
    permissions,
    vm_flags_text,
)
from vmalab.reason import explain
from vmalab.text import count_text, escape_text
from vmalab.trace import records
from vmalab.trace.show import record_text, result_text
from vmalab.vma.account import accountable_mapping

if TYPE_CHECKING:
    from vmalab.calls import Outcome
    from vmalab.debug.tape import Tape
    from vmalab.debug.timeline import Step, Timeline
    from vmalab.vma.area import Vma

WIDTH: Final = 80
"""Columns where nobody says otherwise."""
SHOWN_CHANGES: Final = 12
SHOWN_FRAMES: Final = 3
SHOWN_OBSTACLES: Final = 4
SHOWN_DIFFERENCES: Final = 8

DIM: Final = "dim"
GOOD: Final = "green"
BAD: Final = "red"
WARN: Final = "yellow"
HEAD: Final = "bold"
COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
"""Colours of the VMAs of a strip, in turn."""

_ORDINARY: Final = VM_ACCESS | VM_MAYACCESS | VM_SHARED | VM_MAYSHARE | VM_ACCOUNT
_OF_FLAG: Final = {bit: letters for letters, bit in MNEMONICS.items()}


def size_text(size: int) -> str:
    """Bytes in at most six columns: 4K, 1.5M, 2.0G."""
    if size < 1 << 20:
        return f"{size >> 10}K"
    for shift, letter in ((20, "M"), (30, "G"), (40, "T"), (50, "P")):
        if size < 1000 << shift:
            return f"{size / (1 << shift):.1f}{letter}"
    return f"{size >> 60}E"


# -- records ------------------------------------------------------------------------------------------


def text_of(tape: Tape, record: records.Record) -> str:
    """A record in one line; escaped."""
    return record_text(record, as_call(tape, record) if isinstance(record, records.Call) else None)


def record_style(record: records.Record) -> str:
    """The style of a record in a list: what failed stands out, what is no call stays back."""
    if isinstance(record, records.Call):
        return BAD if record.failed else ""
    if isinstance(record, records.Lost):
        return WARN
    return "bold cyan" if isinstance(record, records.Exec | records.Fork | records.Exit) else DIM


def row(tape: Tape, n: int, digits: int, *, pids: bool = True) -> Text:
    """A record as a row of the list: its number, its process, and what it is."""
    record = tape[n]
    pid = getattr(record, "pid", 0)
    head = f"{n:>{digits}} "
    if pids:
        head += f"{pid or '':>7} "
    return Text.assemble((head, DIM), (text_of(tape, record), record_style(record)))


# -- one step -----------------------------------------------------------------------------------------


def verdict(step: Step, outcome: Outcome | None, *, program_unknown: bool = False) -> Text:
    """What the model says of a call, and why."""
    record = step.record
    if isinstance(record, records.Fault):
        if step.refused:
            why = explain(step.refused)
            return Text(f"the model refuses it: {why.sentence} ({why.where})", WARN)
        return Text("the access is fine in the model", GOOD)
    if not isinstance(record, records.Call):
        return Text()
    if outcome is None:
        return Text("the process is not known: nothing was done", WARN)
    if not outcome.modelled:
        return Text("not modelled: the model passes it over", WARN)
    why = outcome.explanation()
    because = f": {why.sentence}" + (f" ({why.where})" if why.where else "") if outcome.reason else ""
    said = result_text(outcome.result)
    if step.mismatch is not None:
        return Text(f"the model says {said}{because}; the kernel said {result_text(record.ret)}", BAD)
    if not outcome.known:
        return Text(f"unknown: it depends on what the model does not hold; it says {said}{because}", WARN)
    if record.ret is None:
        return Text(f"the trace does not tell the result; the model says {said}{because}", WARN)
    if outcome.result != record.ret:
        how = "it depends on a fault that nobody observed" if program_unknown else "the kernel chose at random"
        return Text(f"unknown: {how}; the model says {said}{because}", WARN)
    if outcome.reason:
        return Text(f"{said} in the model as well{because}", WARN)
    return Text("as the model predicts", GOOD)


def vma_flags(vma: Vma) -> str:
    """What else there is to a VMA than its permissions: flags by their letters, and whether it was written to."""
    words = [_OF_FLAG.get(1 << bit, "") for bit in range(64) if (vma.flags & ~_ORDINARY) >> bit & 1]
    if bool(vma.flags & VM_ACCOUNT) != accountable_mapping(vma.flags):
        words.append("ac" if vma.flags & VM_ACCOUNT else "!ac")
    if vma.anon_vma is not None:
        words.append("written")
    return " ".join(word for word in words if word)


def vma_text(vma: Vma, name: str, width: int = 0) -> str:
    """A VMA in one line: bounds, permissions, size, flags, name; escaped.  A long path loses its beginning."""
    extra = vma_flags(vma)
    shown = escape_text(name) if name else "anonymous"
    bounds = f"{vma.start:x}-{vma.end:x}"
    words = [permissions(vma.flags), f"{size_text(vma.end - vma.start):>6}", extra]
    head = f"{bounds:<25} {' '.join(word for word in words if word)} "
    room = max(width - len(head), 12)
    return head + (shown if not width or len(shown) <= room else "…" + shown[1 - room :])


def colour(letter: str) -> str:
    """The colour of a VMA of a strip."""
    if letter in ".~?":
        return DIM
    return COLOURS[(ord(letter) - (ord("A") if letter.isalpha() else ord("0") - 3)) % len(COLOURS)]


def _painted(strip: str) -> Text:
    text = Text()
    for letter in strip:
        text.append(letter, colour(letter))
    return text


def _same(one: Seen, other: Seen) -> bool:
    a, b = one.vma, other.vma
    return (
        (a.start, a.end, a.flags, a.pgoff, one.name) == (b.start, b.end, b.flags, b.pgoff, other.name)
        and a.anon_vma is b.anon_vma
        and a.policy is b.policy
        and a.uffd is b.uffd
    )


def strip_lines(step: Step, strips: Strips, width: int) -> list[Text]:
    """The strips, and the VMAs that they show: those that went with -, those that came with +."""
    lines: list[Text] = []
    if strips.before == strips.after:
        lines.append(Text.assemble("  ", ("        ", DIM), _painted(strips.after)))
    else:
        lines.append(Text.assemble("  ", ("before  ", DIM), _painted(strips.before)))
        lines.append(Text.assemble("  ", ("after   ", DIM), _painted(strips.after)))
    if strips.marks:
        lines.append(Text.assemble("  ", ("        ", DIM), (strips.marks, HEAD)))
    lines += [_seen_line(mark, seen, strips, width) for mark, seen in _near(step)]
    hidden = max(step.before.hidden, step.after.hidden)
    if hidden:
        lines.append(Text(f"    ... and {hidden:,} more", DIM))
    return lines


def differences(before: Picture, after: Picture) -> Iterator[tuple[str, Seen]]:
    """All VMAs of two pictures by address, with what became of each: "-" it is no more so, "+" it is now so, " "."""
    new = {id(each.source): each for each in after.seen}
    same = {key for each in before.seen if (key := id(each.source)) in new and _same(each, new[key])}
    old = [("-", each) for each in before.seen if id(each.source) not in same]
    now = [(" " if id(each.source) in same else "+", each) for each in after.seen]
    order = {"-": 0, "+": 1, " ": 1}
    yield from sorted(old + now, key=lambda pair: (pair[1].vma.start, order[pair[0]]))


def _near(step: Step) -> list[tuple[str, Seen]]:
    """What is at the place or has changed, with a neighbour on each side: the strip shows more of them."""
    all_of_them = list(differences(step.before, step.after))
    near = {
        i
        for i, (mark, seen) in enumerate(all_of_them)
        if mark != " " or any(seen.vma.start < high and low < seen.vma.end for low, high in step.places)
    }
    wanted = {i + side for i in near for side in (-1, 0, 1)} or set(range(len(all_of_them)))
    return [each for i, each in enumerate(all_of_them) if i in wanted]


def _seen_line(mark: str, seen: Seen, strips: Strips, width: int) -> Text:
    letter = strips.letter(seen)
    style = {"-": BAD, "+": GOOD, " ": ""}[mark]
    return Text.assemble(
        (f"  {mark} ", style), (letter, colour(letter)), " ", (vma_text(seen.vma, seen.name, width - 6), style)
    )


def step_lines(timeline: Timeline, width: int = WIDTH, *, title: bool = True) -> list[Text]:
    """What the record at this position is, what the model says of it, and what it did."""
    step = timeline.step
    tape = timeline.tape
    if step is None:
        return [Text(f"before the first of {count_text(len(tape), 'record')}", HEAD)]
    lines = [_title(timeline, step)] if title else []
    lines.append(Text(text_of(tape, step.record), record_style(step.record) or HEAD))
    said = verdict(step, timeline.replay.outcome, program_unknown=tape.header.faults == "none")
    counts = counts_text(step)
    if counts:
        said = Text.assemble(said, "; " if said else "", counts)
    if said:
        lines.append(said)
    frames = tape.stack_of(step.record)
    lines += [Text(f"  from {escape_text(frame, width)}", DIM) for frame in frames[:SHOWN_FRAMES]]
    if len(frames) > SHOWN_FRAMES:
        lines.append(Text(f"  ... and {len(frames) - SHOWN_FRAMES} frames more; print stack shows them", DIM))
    lines += _observed_lines(step)
    lines += _end_lines(timeline, step)
    if step.before.seen or (step.after.seen and step.before.intervals):
        strips = Strips(step.before, step.after, step.places, width - 11)
        lines += strip_lines(step, strips, width)
        lines += _obstacle_lines(timeline, step, strips)
    shown = [change for change in step.changes if change.kind != "copied" or not step.before.seen]
    if shown and not isinstance(step.record, records.Exit):
        lines += [Text(f"  {escape_text(change.text)}", DIM) for change in shown[:SHOWN_CHANGES]]
        if len(shown) > SHOWN_CHANGES:
            lines.append(Text(f"  ... and {len(shown) - SHOWN_CHANGES:,} more changes", DIM))
    return lines


def _title(timeline: Timeline, step: Step) -> Text:
    record = step.record
    tape = timeline.tape
    title = f"record {step.n:,} of {len(tape):,}"
    pid = getattr(record, "pid", 0)
    if pid:
        title += f", process {pid}"
        tid = getattr(record, "tid", pid)
        if tid != pid:
            title += f" thread {tid}"
        program = timeline.replay.current.get(pid)
        if program is not None and program.exe:
            title += f", {escape_text(program.exe)}"
    return Text(title, HEAD)


def counts_text(step: Step) -> str:
    """The map count before and after."""
    before, after = step.count_before, step.count_after
    if not before and not after:
        return ""
    if before == after:
        return f"{count_text(after, 'VMA')} as before"
    return f"{before:,} -> {count_text(after, 'VMA')}"


def _observed_lines(step: Step) -> list[Text]:
    """What the recorder saw of faults since the call before."""
    written: list[int] = getattr(step.record, "written", [])
    grown: list[tuple[int, int]] = getattr(step.record, "grown", [])
    lines = []
    if written:
        shown = ", ".join([f"{addr:x}" for addr in written[:4]]) + (", ..." if len(written) > 4 else "")
        lines.append(Text(f"  found written to before it: {shown}", DIM))
    lines += [Text(f"  found grown before it: {start:x}-{end:x}", DIM) for start, end in grown]
    return lines


def _end_lines(timeline: Timeline, step: Step) -> list[Text]:
    """For an exit, or a list of VMAs on the way: how the VMAs compare."""
    if not isinstance(step.record, records.Exit | records.Maps):
        return []
    ended = [each for each in timeline.replay.programs if each.pid == step.record.pid]
    if not ended:
        return []
    program = ended[-1]
    lines = []
    if program.mismatches and isinstance(step.record, records.Exit):
        lines.append(Text(f"{count_text(program.mismatches, 'result')} differed", BAD))
    if program.final is None:
        lines.append(Text("the trace has no list of its VMAs", DIM))
    elif not program.final:
        lines.append(Text("its VMAs are as the kernel had them", GOOD))
    for difference in (program.final or [])[:SHOWN_DIFFERENCES]:
        what = f"{difference.addr:#x} {difference.field}: model {difference.model}; kernel {difference.kernel}"
        lines.append(Text(f"VMAs differ: {escape_text(what)}", BAD))
    return lines


# -- what did not merge -------------------------------------------------------------------------------


def sight_of(tape: Tape) -> Sight:
    """How much of what a merge compares a trace shows."""
    return Sight.NO_FAULTS if tape.header.faults == "none" else Sight.FULL


def boundaries_of(picture: Picture, sight: Sight) -> list[Boundary]:
    """All places of a picture where two VMAs touch and did not merge."""
    found = []
    for below, above in zip(picture.seen, picture.seen[1:], strict=False):
        if below.vma.end == above.vma.start:
            obstacles = find_obstacles(below.vma, above.vma, sight)
            if obstacles:
                found.append(Boundary(below.vma, above.vma, obstacles))
    return found


def obstacle_text(obstacle: Obstacle, below: str = "below", above: str = "above") -> str:
    """One reason why two VMAs did not merge, with both values; escaped."""
    if not obstacle.reason:
        return obstacle.detail
    mark = "" if obstacle.certain else " (?)"
    return f"{obstacle.detail}{mark}: {below} {escape_text(obstacle.below)}, {above} {escape_text(obstacle.above)}"


def _obstacle_lines(timeline: Timeline, step: Step, strips: Strips) -> list[Text]:
    """Why the VMAs at the edges of the place did not merge."""
    letters = {each.vma.start: strips.letter(each) for each in step.after.seen}
    near = [
        boundary
        for boundary in boundaries_of(step.after, sight_of(timeline.tape))
        if not boundary.is_foreign()
        and any(low - PAGE_SIZE < boundary.addr < high + PAGE_SIZE for low, high in step.places)
    ]
    lines = []
    for boundary in near[:SHOWN_OBSTACLES]:
        below, above = letters[boundary.below.start], letters[boundary.above.start]
        text = "; ".join([obstacle_text(each, below, above) for each in boundary.obstacles])
        lines.append(Text.assemble(("  not merged ", DIM), f"{below}|{above} ", (text, WARN)))
    if len(near) > SHOWN_OBSTACLES:
        lines.append(Text(f"  ... and {len(near) - SHOWN_OBSTACLES} more", DIM))
    return lines


# -- for programs -------------------------------------------------------------------------------------


def seen_json(seen: Seen) -> dict[str, Any]:
    """A VMA for a program."""
    vma = seen.vma
    return {
        "start": vma.start,
        "end": vma.end,
        "perms": permissions(vma.flags),
        "flags": vm_flags_text(vma.flags),
        "name": seen.name,
        "written": vma.anon_vma is not None,
    }


def step_json(timeline: Timeline) -> dict[str, Any]:
    """What the record at this position did, for a program."""
    step = timeline.step
    if step is None:
        return {"record": 0}
    record = step.record
    outcome = timeline.replay.outcome
    shown: dict[str, Any] = {
        "record": step.n,
        "kind": type(record).__name__.lower(),
        "pid": getattr(record, "pid", 0),
        "text": text_of(timeline.tape, record),
        "map_count": [step.count_before, step.count_after],
        "changes": [change.text for change in step.changes],
        "before": [seen_json(each) for each in step.before.seen],
        "after": [seen_json(each) for each in step.after.seen],
        "not_merged": [
            {
                "addr": each.addr,
                "obstacles": [
                    {"reason": one.name, "what": one.detail, "below": one.below, "above": one.above}
                    for one in each.obstacles
                ],
            }
            for each in boundaries_of(step.after, sight_of(timeline.tape))
        ],
    }
    if isinstance(record, records.Call):
        shown |= {"call": record.call, "args": record.args, "kernel": record.ret}
        shown["model"] = outcome.result if outcome is not None else None
        shown["reason"] = outcome.explanation().name if outcome is not None and outcome.reason else None
        shown["modelled"] = outcome is not None and outcome.modelled
        shown["mismatch"] = step.mismatch is not None
        shown["stack"] = timeline.tape.stack_of(record)
    return shown
