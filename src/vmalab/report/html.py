"""The report: one HTML file that holds all it needs, data and code, and asks nobody for anything.

What comes from outside gets into it in two ways only: in JSON in which ``<`` is written as an escape, and in base64.
The code puts it on the page as text, never as HTML; and a content security policy lets nothing run but that code.
"""

from __future__ import annotations

import base64
import hashlib
import json
from array import array
from collections import Counter
from importlib import resources
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from vmalab.explain.attribution import GAP, UNASKED, Group
from vmalab.explain.obstacles import FLAG_WORDS
from vmalab.kinds import KINDS
from vmalab.report.collect import KINDS_TOLD, Collected
from vmalab.report.pack import Columns, Places
from vmalab.text import escape_text

if TYPE_CHECKING:
    from vmalab.explain.attribution import Maker
    from vmalab.report.lives import Space
    from vmalab.trace.records import Header

SCRIPTS: Final = ("data.js", "dom.js", "scale.js", "chart.js", "picture.js", "panels.js", "main.js")
"""The code of the page, in the order in which it is put together."""
MAKERS: Final = 100
"""How many shapes of calls are listed."""


def report_html(collected: Collected, header: Header, name: str) -> str:
    """The whole file.  name is what the trace is called."""
    spaces = collected.lives.spaces
    tale = collected.tale
    places = Places(
        [column for space in spaces for column in (space.start, space.end)]
        + [tale.start, tale.end, tale.about_start, tale.about_end]
    )
    first = Columns()
    first.add("places", places.addresses())
    described = _add_spaces(first, collected, places)
    failures = _add_failures(first, collected)
    later = Columns()
    _add_texts(later, "texts", collected.texts)
    _add_tale(later, collected, places)
    data = {
        "name": escape_text(name),
        "command": escape_text(" ".join(header.command)),
        "kernel": escape_text(header.machine.kernel),
        "recorder": escape_text(header.recorder),
        "faults": header.faults,
        "notes": _notes(collected, header),
        "records": len(collected.texts) - 1,
        "limit": header.machine.max_map_count,
        "kinds": [
            {"name": kind.name, "label": kind.label, "meaning": kind.meaning, "light": kind.light, "dark": kind.dark}
            for kind in KINDS
        ],
        "flagWords": FLAG_WORDS,
        "attributes": [
            {key: escape_text(value) if isinstance(value, str) else value for key, value in row.items()}
            for row in collected.lives.attributes.rows
        ],
        "words": [[escape_text(before), escape_text(after)] for before, after in tale.words],
        "kindsTold": KINDS_TOLD,
        "spaces": described,
        "failures": failures,
        "first": first.index(),
        "later": later.index(),
    }
    return _put_together(data, first.text(), later.text())


def _notes(collected: Collected, header: Header) -> list[str]:
    """What limits the report, a sentence each."""
    notes = [escape_text(note) for note in header.notes]
    if header.faults == "none":
        notes.append(
            "Nobody observed the faults of this trace: nothing counts as written to, "
            "and what depends on that is not known."
        )
    notes += [f"{each}." for each in collected.shortcomings]
    mismatches = sum(program.mismatches for program in collected.replay.programs)
    if mismatches:
        why = (
            "; some may depend on faults that nobody observed (vmalab replay tells)" if header.faults == "none" else ""
        )
        notes.append(
            f"{mismatches:,} results are not as the model predicts (see Failures){why}: "
            "from the first on, what is shown may not be what was there."
        )
    differences = sum(1 for program in collected.replay.programs if program.final)
    if differences:
        notes.append(f"The final VMAs of {differences:,} programs are not those that the kernel had.")
    skipped: Counter[str] = Counter()
    for program in collected.replay.programs:
        skipped.update(program.not_modelled)
    for call, times in sorted(skipped.items()):
        notes.append(f"{escape_text(call)} is not modelled, and was passed over {times:,} times.")
    return notes


# -- the spaces -------------------------------------------------------------------------------------


def _add_spaces(columns: Columns, collected: Collected, places: Places) -> list[dict[str, Any]]:
    """Put the lives and curves of all spaces into columns, end to end; what describes each space."""
    lives = _Table(("start", "end", "born", "died", "attributes", "anon", "apart", "moved"))
    counters = _Table(("n", "mapCount"))
    curves = _Table(("n", "value"))
    moves = sorted({moved for space in collected.lives.spaces for moved in space.moved})
    columns.add("moves", array("d", moves))
    move_numbers = {moved: number for number, moved in enumerate(moves)}
    described: list[dict[str, Any]] = []
    for number, space in enumerate(collected.lives.spaces):
        attributed = collected.attributed(number)
        groups = collected.groups(number)
        life_range = _add_lives(lives, space, places, move_numbers)
        counter_range = counters.extend([space.counter_n, space.map_count])
        described.append(
            {
                "pid": space.pid,
                "pids": space.pids,
                "exe": escape_text(space.exe),
                "first": space.first,
                "last": space.last,
                "parent": space.parent,
                "calls": space.calls,
                "lives": life_range,
                "counters": counter_range,
                "groups": [_describe_group(group, curves) for group in groups],
                "makers": [_describe_maker(maker, space.last) for maker in attributed.by_call()[:MAKERS]],
                "stacks": [
                    {"frames": [escape_text(frame) for frame in stack], **_describe_maker(maker, space.last)}
                    for stack, maker in attributed.by_stack()[:MAKERS]
                ],
            }
        )
    for name, table in (("lives", lives), ("counters", counters), ("curves", curves)):
        table.add_to(columns, name)
    return described


_LESS: Final = {
    "lives.start": "lives.start",
    "lives.end": "lives.start",
    "lives.born": "lives.born",
    "lives.died": "lives.born",
    "counters.n": "counters.n",
    "counters.mapCount": "counters.mapCount",
    "curves.n": "curves.n",
    "curves.value": "curves.value",
    "failed.n": "failed.n",
    "tale.n": "tale.n",
    "tale.end": "tale.start",
    "tale.aboutStart": "tale.start",
    "tale.aboutEnd": "tale.end",
}
"""What the numbers of a column are near to: another column, or the same one row above."""


class _Table:
    """Columns that grow together, piece by piece."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._columns: dict[str, array[int]] = {name: array("I") for name in names}
        self._length = 0

    def extend(self, pieces: list[Any]) -> tuple[int, int]:
        """Add rows; from where to where they are."""
        for column, piece in zip(self._columns.values(), pieces, strict=True):
            column.extend(iter(piece))
        begin, self._length = self._length, self._length + len(pieces[0])
        return begin, self._length

    def add_to(self, columns: Columns, name: str) -> None:
        """Hand the columns over, named after the table."""
        for each, column in self._columns.items():
            columns.add(f"{name}.{each}", column, _LESS.get(f"{name}.{each}", ""))


def _add_lives(lives: _Table, space: Space, places: Places, moves: dict[int, int]) -> tuple[int, int]:
    """The lives of a space in the order of their addresses, as a page looks for them."""
    order = sorted(range(len(space.start)), key=lambda row: (space.start[row], space.born[row]))
    in_order = [
        array(column.typecode, [column[row] for row in order])
        for column in (space.born, space.died, space.attributes, space.anon, space.apart)
    ]
    moved = array("I", [moves[space.moved[row]] for row in order])
    starts = places.numbers([space.start[row] for row in order])
    ends = places.numbers([space.end[row] for row in order])
    return lives.extend([starts, ends, *in_order, moved])


def _describe_group(group: Group, curves: _Table) -> dict[str, Any]:
    points = group.curve.points()
    return {
        "kind": escape_text(group.kind),
        "file": escape_text(group.file),
        "ordinary": group.is_ordinary(),
        "gap": group.kind == GAP,
        "unasked": group.kind == UNASKED,
        "curve": curves.extend([[n for n, _ in points], [value for _, value in points]]),
    }


def _describe_maker(maker: Maker, last: int) -> dict[str, Any]:
    return {
        "title": escape_text(maker.title),
        "made": maker.made,
        "alive": maker.alive,
        "median": maker.median_life(),
        "weight": maker.weight(last + 1),
    }


# -- what happened ----------------------------------------------------------------------------------


def _add_texts(columns: Columns, name: str, texts: list[str]) -> None:
    """Texts, end to end in UTF-8, and where each of them ends: so that each is decoded when it is asked for."""
    encoded = [text.encode("utf-8") for text in texts]
    columns.add(name, b"".join(encoded))
    columns.add(f"{name}.ends", array("I", accumulate(map(len, encoded))), f"{name}.ends")


def _add_tale(columns: Columns, collected: Collected, places: Places) -> None:
    tale = collected.tale
    columns.add("tale.n", tale.n, "tale.n")
    columns.add("tale.space", tale.space)
    columns.add("tale.said", tale.said)
    columns.add("tale.kind", tale.kind)
    for name, column in (
        ("start", tale.start),
        ("end", tale.end),
        ("aboutStart", tale.about_start),
        ("aboutEnd", tale.about_end),
    ):
        columns.add(f"tale.{name}", places.numbers(column), _LESS.get(f"tale.{name}", ""))


def _add_failures(columns: Columns, collected: Collected) -> list[dict[str, Any]]:
    """Put the calls that failed into columns, in order; what is told of them, each different thing once."""
    told: dict[tuple[str, ...], int] = {}
    failed = _Table(("n", "space", "why"))
    rows: list[tuple[int, int, int]] = []
    for each in collected.failed:
        if each.space >= 0:
            what = (each.errno, each.sentence, each.where, each.cause, each.mismatch)
            rows.append((each.n, each.space, told.setdefault(what, len(told))))
    failed.extend([[row[i] for row in rows] for i in range(3)])
    failed.add_to(columns, "failed")
    names = ("errno", "sentence", "where", "cause", "predicted")
    return [dict(zip(names, map(escape_text, each), strict=True)) for each in told]


# -- the file ---------------------------------------------------------------------------------------


def _read(folder: str, name: str) -> str:
    return resources.files("vmalab.report").joinpath(folder, name).read_text("utf-8")


def script() -> str:
    """The code of the page."""
    return "\n".join(['"use strict";', *[_read("page", name) for name in SCRIPTS]])


def json_for_script(data: Any) -> str:
    """JSON that can stand within a script element: no text in it can end that, or begin another."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _put_together(data: dict[str, Any], first: str, later: str) -> str:
    library = _read("uplot", "uPlot.iife.min.js")
    licence = " ".join(_read("uplot", "LICENSE").split()).replace("*/", "")
    library = f"/* uPlot. {licence} */\n{library}"
    style = _read("uplot", "uPlot.min.css") + "\n" + _read("page", "page.css")
    code = script()
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(library)} {_hash(code)}"
    parts = {
        "policy": policy,
        "style": style,
        "data": json_for_script(data),
        "first": first,
        "later": later,
        "library": library,
        "code": code,
    }
    page = _read("page", "page.html")
    pieces = page.split("{{")
    whole = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        whole += [parts[name], rest]
    return "".join(whole)
