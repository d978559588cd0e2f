"""Scenes: tests of the core as text.  docs/scenes.md describes the format.

scene: a new range between equal neighbours joins both
  before: AA**BB..DD
  do:     merge_new
  after:  AAAAAA..DD
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vmalab.errors import InputError
from vmalab.reason import all_reasons
from vmalab.testing.attributes import Attributes, parse_attributes
from vmalab.text import escape_text

REASONS: Final = frozenset(["YES", *[reason.name for reason in all_reasons()]])
_LINE: Final = re.compile(r"\s*([^:]+?)\s*:\s*(.*?)\s*$")
_STRIP: Final = re.compile(r"[A-Za-z0-9.* ]+$")
_LETTERS: Final = re.compile(r"(child )?[A-Za-z0-9*]( [A-Za-z0-9*])*$")
SETTINGS: Final = {
    "max_map_count": "VMAs",
    "min_page": "the lowest page that can be mapped, in the strip",
    "guard_gap": "pages below a stack",
    "limit_as": "pages",
    "limit_data": "pages",
    "limit_stack": "pages",
    "limit_memlock": "pages",
    "ram": "pages that may be committed in one piece",
    "ignored": "a flag",
    "sticky": "a flag",
    "refuses": "what the driver refuses: split, map, move",
    "start": "the page where the strip starts",
}
"""What a `with:` line can set, to what; besides the words mdwe, ksm, never (strict
overcommit) and lockall (mlockall for what is yet to come)."""
WORDS: Final = ("ignored", "sticky", "refuses")
"""Those that are set to words, separated by commas."""
SWITCHES: Final = ("mdwe", "ksm", "never", "lockall")


@dataclass
class Step:
    """One operation and what is expected of it."""

    line: int
    do: list[str]
    range: str
    """The strip whose `*` are the range (and whose letters elsewhere do not count)."""
    wanted: Attributes | None
    """The attributes of the range, where `*` has any."""
    after: str = ""
    attributes: dict[str, Attributes] = field(default_factory=dict)
    """Expected after the step, where they are not those from before."""
    child: str = ""
    child_attributes: dict[str, Attributes] = field(default_factory=dict)
    leaves: list[str] = field(default_factory=list)
    """What a failed allocation may leave besides what was before."""
    says: str = "YES"
    left: str = ""
    right: str = ""
    hooks: str | None = None
    sites: str | None = None
    """What is allocated, in order."""
    counters: dict[str, int] = field(default_factory=dict)


@dataclass
class Scene:
    """One test: VMAs, operations on them, and what is expected."""

    title: str
    path: str
    line: int
    before: str = ""
    attributes: dict[str, Attributes] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The file's name and the title."""
        return f"{Path(self.path).stem}: {self.title}"


Lines = list[tuple[int, str, str]]
"""Line number, keyword and text of each line of a scene."""


def read_scenes(path: Path) -> list[Scene]:
    """The scenes of a file.  Raises InputError with the line that is wrong."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{escape_text(str(path))}: not UTF-8 at byte {error.start}") from None
    scenes: list[Scene] = []
    lines: Lines = []
    for number, whole in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)#.*", "", whole)
        if not line.strip():
            continue
        match = _LINE.match(line)
        if match is None:
            raise _wrong(path, number, f"expected `keyword: text`, not {whole.strip()!r}")
        keyword, rest = match.groups()
        if keyword == "scene":
            scenes += _vary(path, lines)
            lines = [(number, keyword, rest)]
        elif lines:
            lines.append((number, keyword, rest))
        else:
            raise _wrong(path, number, "a scene starts with `scene: title`")
    return scenes + _vary(path, lines)


def _wrong(path: Path, line: int, problem: str) -> InputError:
    return InputError(f"{escape_text(str(path))}, line {line}: {escape_text(problem)}")


def _vary(path: Path, lines: Lines) -> list[Scene]:
    """The scenes that the lines of one make: one for each combination of its `vary:` lines."""
    names: list[str] = []
    choices: list[list[str]] = []
    rest: Lines = []
    for number, keyword, text in lines:
        if keyword != "vary":
            rest.append((number, keyword, text))
            continue
        name, equals, values = text.partition("=")
        if not equals:
            raise _wrong(path, number, "expected `vary: name = one | two`")
        names.append(name.strip())
        choices.append([value.strip() for value in values.split("|")])
    if not rest:
        return []
    return [_scene(path, rest, dict(zip(names, each, strict=True))) for each in itertools.product(*choices)]


class _Builder:
    """Turns the lines of a scene into one."""

    def __init__(self, path: Path, title: str, line: int) -> None:
        self.path = path
        self.scene = Scene(title, str(path), line)
        self.wanted: Attributes | None = None
        self.range = ""
        self.target: dict[str, Attributes] = self.scene.attributes

    def add(self, number: int, keyword: str, text: str) -> str:
        """Take one line; what is wrong with it, or nothing."""
        scene = self.scene
        step = scene.steps[-1] if scene.steps else None
        if keyword == "before":
            scene.before = text
            self.range = text
            return "" if _STRIP.match(text) else "a strip has letters, digits, `*`, `.` and spaces"
        if keyword == "with":
            return self._settings(text)
        if not scene.before:
            return "`before:` comes first"
        if keyword == "range":
            self.range = text
            self.target = {}
            return "" if _STRIP.match(text) else "a strip has letters, digits, `*`, `.` and spaces"
        if keyword == "do":
            scene.steps.append(Step(number, text.split(), self.range, self.wanted))
            return "" if text else "`do:` names an operation"
        if _LETTERS.match(keyword):
            return self._attributes(keyword, text)
        if step is None:
            return f"`{keyword}:` is no keyword before `do:`"
        return self._expectation(step, keyword, text)

    def _settings(self, text: str) -> str:
        for word in text.split():
            key, equals, value = word.partition("=")
            if key not in SETTINGS if equals else key not in SWITCHES:
                return f"{word!r} is no setting; there are {', '.join([*SETTINGS, *SWITCHES])}"
            if equals and key not in WORDS and not re.fullmatch(r"\d+|0x[0-9a-f]+", value):
                return f"{key} is a number, not {value!r}"
            self.scene.settings[key] = value
        return ""

    def _attributes(self, keyword: str, text: str) -> str:
        attributes = parse_attributes(text.split())
        if isinstance(attributes, str):
            return attributes
        child = keyword.startswith("child ")
        for letter in keyword.removeprefix("child ").split():
            if letter == "*":
                self.wanted = attributes
            elif child and self.scene.steps:
                self.scene.steps[-1].child_attributes[letter] = attributes
            else:
                self.target[letter] = attributes
        return ""

    def _expectation(self, step: Step, keyword: str, text: str) -> str:
        if keyword == "after":
            step.after = self.range = text
            self.target = step.attributes
        elif keyword == "child":
            step.child = text
        elif keyword == "leaves":
            step.leaves.append(text)
        elif keyword in ("says", "left", "right"):
            if text not in REASONS:
                return f"{text} is no Reason"
            setattr(step, keyword, text)
        elif keyword in ("hooks", "sites"):
            setattr(step, keyword, text)
        elif keyword in ("count", "locked", "committed", "total"):
            if not text.isdigit():
                return f"`{keyword}:` takes a number"
            step.counters[keyword] = int(text)
        else:
            return f"`{keyword}:` is no keyword"
        return ""


def _scene(path: Path, lines: Lines, values: dict[str, str]) -> Scene:
    varied = ", ".join([f"{name}: {value or 'nothing'}" for name, value in values.items()])
    title = f"{lines[0][2]} ({varied})" if varied else lines[0][2]
    builder = _Builder(path, title, lines[0][0])
    for number, keyword, text in lines[1:]:
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        problem = builder.add(number, keyword, text.strip())
        if problem:
            raise _wrong(path, number, problem)
    scene = builder.scene
    if not scene.steps:
        raise _wrong(path, lines[0][0], "the scene has no `do:`")
    for step in scene.steps:
        if not step.after and step.do[0] != "exit_mmap":
            raise _wrong(path, step.line, "`do:` needs an `after:` strip")
    return scene
