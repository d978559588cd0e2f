"""Runs scenes: each as it is, and then again with each of its allocations failing in turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vmalab.errors import InputError
from vmalab.flags import permissions, vm_flags_text
from vmalab.testing.attributes import Attributes
from vmalab.testing.operations import Doing, perform, reason_name
from vmalab.testing.scene import Scene, Step, read_scenes
from vmalab.testing.stage import OPS, PLAIN, Shown, Stage, marked, runs
from vmalab.text import escape_text
from vmalab.vma.area import Vma
from vmalab.vma.validate import dump

PACKAGED: Final = Path(__file__).parent / "scenes"
MAKES: Final = frozenset({"mmap_region", "do_brk_flags", "insert_vm_struct"})
"""Operations whose new VMAs in the range have the attributes that are wanted of it."""


@dataclass
class Result:
    """What came of a scene."""

    scene: Scene
    problems: list[str] = field(default_factory=list)
    """What is wrong, a line or more each; empty if nothing is."""
    failures: int = 0
    """How many allocations failed in turn."""
    pairs: set[tuple[str, str]] = field(default_factory=set)
    """The operations and the sites of theirs that failed."""


def find_scenes(paths: list[Path] | None = None) -> list[Scene]:
    """The scenes in files, in directories of them, or the packaged ones.  Raises InputError."""
    files: list[Path] = []
    for path in paths or [PACKAGED]:
        found = sorted(path.rglob("*.scene")) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{escape_text(str(path))} holds no .scene file")
        files += found
    return [scene for path in files for scene in read_scenes(path)]


def run_scene(scene: Scene, *, sanitise: bool = True, failures: bool = True) -> Result:
    """Run one scene.  Raises InputError if it asks for something that cannot be done."""
    result = Result(scene)
    try:
        _run_plain(scene, result, sanitise)
        if failures and not result.problems:
            _run_failures(scene, result, sanitise)
    except InputError:
        raise
    except Exception as error:
        # Whatever the core does to itself is what a scene is there to find.
        result.problems.append(f"{type(error).__name__}: {error}")
    return result


class _Before:
    """What was there before a step."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.shown: dict[str, Shown] = {}
        self.by_page: dict[int, Shown] = {}
        for vma in stage.mm.vmas():
            shown = stage.shown(vma)
            self.shown[stage.letters[id(vma)]] = shown
            for page in range(shown[0], shown[1]):
                self.by_page[page] = shown


def _run_plain(scene: Scene, result: Result, sanitise: bool) -> None:
    stage = Stage(scene, sanitise=sanitise)
    problems = [f"before: {problem}" for problem in stage.problems()]
    for step in scene.steps:
        before = _Before(stage)
        stage.port.arm(0)
        stage.port.events.clear()
        doing = perform(stage, scene, step)
        found = _compare(before, doing, step)
        if found:
            problems += [f"line {step.line}, {' '.join(step.do)}:", *found, *_dumps(stage)]
            break
    result.problems += problems or [f"at the end: {leak}" for leak in stage.leaks()]


def _dumps(stage: Stage) -> list[str]:
    return [line for mm in stage.spaces() for line in dump(mm).splitlines()]


def _compare(before: _Before, doing: Doing, step: Step) -> list[str]:
    """What differs from the expectations of a step."""
    stage = before.stage
    stage.name_new(stage.mm)
    found: list[str] = []
    said = reason_name(doing.refusal)
    if said != step.says:
        found.append(f"says {said}, not {step.says}")
    if doing.plan is not None:
        for side, planned in zip((step.left, step.right), doing.plan, strict=True):
            if side and side != reason_name(planned):
                found.append(f"plans {reason_name(planned)}, not {side}")
    found += _compare_strip(before, step, step.after.replace("*", "."), step.attributes)
    if doing.found >= 0 or "*" in step.after:
        place = marked(step.after)[0] if "*" in step.after else -1
        if place != doing.found:
            found.append(f"finds page {doing.found}, not {place}")
    if step.child:
        found += _compare_child(before, step)
    if step.hooks is not None and (hooks := _hooks(stage)) != step.hooks:
        found.append(f"hooks: {hooks or 'none'}, not {step.hooks or 'none'}")
    sites = " ".join([site.replace(" ", "-") for site in stage.port.sites])
    if step.sites is not None and sites != step.sites:
        found.append(f"sites: {sites or 'none'}, not {step.sites or 'none'}")
    mm = stage.mm
    counted = {
        "count": mm.map_count,
        "locked": mm.locked_vm,
        "committed": stage.commit.committed,
        "total": mm.total_vm,
    }
    for name, value in step.counters.items():
        if counted[name] != value:
            found.append(f"{name} is {counted[name]}, not {value}")
    return found + stage.problems()


def _compare_strip(before: _Before, step: Step, strip: str, attributes: dict[str, Attributes]) -> list[str]:
    stage = before.stage
    width = max(len(strip), len(step.range))
    expected = strip.replace(" ", ".").ljust(width, ".")
    actual = stage.strip(stage.mm, width)
    if actual != expected:
        return [f"expected {expected}", f"actual   {actual}"]
    first, end = marked(step.range)
    found: list[str] = []
    vmas = {stage.letters[id(vma)]: vma for vma in stage.mm.vmas()}
    for letter, start, stop in runs(expected):
        shown = stage.shown(vmas[letter])
        if letter in attributes:
            wanted = _from_attributes(stage, attributes[letter], start, stop)
        elif letter in before.shown:
            wanted = _at(before.shown[letter], start, stop)
        elif step.do[0] in MAKES and first <= start < end:
            wanted = _from_attributes(stage, step.wanted or PLAIN, start, stop)
        elif start in before.by_page:
            wanted = _at(before.by_page[start], start, stop)
        else:
            continue
        found += _differences(stage, letter, wanted, shown)
    return found


def _compare_child(before: _Before, step: Step) -> list[str]:
    """The youngest child, whose VMAs are called as their parents."""
    stage = before.stage
    child = stage.keeper.children[-1]
    parents = {vma.start: stage.letters[id(vma)] for vma in stage.mm.vmas()}
    for vma in child.vmas():
        stage.call(vma, parents[vma.start])
    expected = step.child.replace(" ", ".").ljust(len(step.after), ".")
    actual = stage.strip(child, len(expected))
    if actual != expected:
        return [f"the child: expected {expected}", f"the child: actual   {actual}"]
    found: list[str] = []
    vmas = {stage.letters[id(vma)]: vma for vma in child.vmas()}
    for letter, start, stop in runs(expected):
        wanted = _at(before.shown[letter], start, stop)
        if letter in step.child_attributes:
            wanted = _from_attributes(stage, step.child_attributes[letter], start, stop)
        found += _differences(stage, f"the child's {letter}", wanted, stage.shown(vmas[letter]))
    return found


def _at(shown: Shown, start: int, stop: int) -> Shown:
    """The same VMA with other bounds: its offset moves along."""
    return (start, stop, shown[2], shown[3] + start - shown[0], *shown[4:])


def _from_attributes(stage: Stage, attributes: Attributes, start: int, stop: int) -> Shown:
    ops = OPS[attributes.driver]
    file = attributes.file or (attributes.driver and f"({attributes.driver})")
    offset = stage.offset(attributes, start)
    return (
        start,
        stop,
        attributes.flags,
        offset,
        file,
        "" if ops is None else ops.name,
        attributes.chain,
        attributes.uffd,
        attributes.name,
        attributes.policy,
    )


def _differences(stage: Stage, letter: str, wanted: Shown, shown: Shown) -> list[str]:
    """In what a VMA is not as wanted.  A `+name` in a chain is a new anon_vma, which has the name from then on."""
    chain = shown[6]
    vma = next((each for each in _vmas(stage) if stage.shown(each) == shown), None)
    if vma is not None and len(chain) == len(wanted[6]):
        for anon_vma, name, old in zip(vma.chain, wanted[6], chain, strict=True):
            if name.startswith("+") and name != "+" and old == "+":
                stage.names.give(anon_vma, name[1:])
                stage.names.anon_vmas[name[1:]] = anon_vma
        chain = tuple(
            [want if want.startswith("+") and old == "+" else old for want, old in zip(wanted[6], chain, strict=True)]
        )
    actual = (*shown[:6], chain, *shown[7:])
    names = ("start", "end", "flags", "offset", "file", "driver", "chain", "userfaultfd", "name", "policy")
    return [
        f"{letter}: {name} is {_text(name, got)}, not {_text(name, want)}"
        for name, got, want in zip(names, actual, wanted, strict=True)
        if got != want
    ]


def _vmas(stage: Stage) -> list[Vma]:
    return [vma for mm in stage.spaces() for vma in mm.vmas()]


def _text(name: str, value: object) -> str:
    if name == "flags" and isinstance(value, int):
        return f"{permissions(value)} ({vm_flags_text(value)})"
    if isinstance(value, tuple):
        return ",".join(value) or "none"
    return repr(value) if isinstance(value, str) else str(value)


def _hooks(stage: Stage) -> str:
    """What drivers and page tables were told, in order."""
    parts: list[str] = []
    for kind, vma, one, two in stage.port.events:
        letter = stage.letters.get(id(vma), "?")
        if kind in ("unmap", "move"):
            parts.append(f"{kind} {letter} {stage.page(one)}-{stage.page(two)}")
        elif kind in ("open", "close", "map"):
            parts.append(f"{kind} {letter}")
    return ", ".join(parts)


# -- failure of every allocation --------------------------------------------------------------------


def _run_failures(scene: Scene, result: Result, sanitise: bool) -> None:
    for index, step in enumerate(scene.steps):
        reached: set[str] = set()
        number = 0
        while not result.problems:
            number += 1
            stage = Stage(scene, sanitise=sanitise)
            for earlier in scene.steps[:index]:
                before = _Before(stage)
                _compare(before, perform(stage, scene, earlier), earlier)
            before = _Before(stage)
            state = stage.state()
            stage.port.arm(number)
            doing = perform(stage, scene, step)
            site = stage.port.failed
            stage.port.arm(0)
            if not site:
                break
            result.failures += 1
            result.pairs.add((step.do[0], site))
            stage.name_new(stage.mm)
            found = _compare_failed(before, state, doing, step, reached)
            found += stage.problems() or [f"at the end: {leak}" for leak in stage.leaks()]
            if found:
                head = f"line {step.line}, {' '.join(step.do)}, allocation {number} ({site}) failed:"
                result.problems += [head, *found]
        if not result.problems:
            result.problems += [
                f"line {step.line}, {' '.join(step.do)}: no failed allocation leaves {strip}"
                for strip in step.leaves
                if strip not in reached
            ]


def _compare_failed(before: _Before, state: list[object], doing: Doing, step: Step, reached: set[str]) -> list[str]:
    """After a failed allocation: as before, or as one of the leftovers, or all is done as if nothing had failed."""
    stage = before.stage
    refused = reason_name(doing.refusal)
    if stage.state() == state and doing.refusal:
        return []
    if not doing.refusal and step.says == "YES":
        found = _compare_strip(before, step, step.after.replace("*", "."), step.attributes)
        if not found:
            return []
    closest: list[str] = []
    for strip in step.leaves:
        # What a refusal leaves has the old attributes, or, where the operation had come further, the new ones.
        found = (
            [] if not _compare_strip(before, step, strip, {}) else _compare_strip(before, step, strip, step.attributes)
        )
        if not found:
            reached.add(strip)
            return []
        closest = closest or found
    actual = stage.strip(stage.mm, len(step.after))
    return [f"says {refused} and leaves {actual}, which is neither what was before nor a stated leftover", *closest]
