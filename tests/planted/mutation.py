"""Mutation testing of the core: `python -m tests.planted.mutation`, or `make mutation`.

Every small change (cosmic-ray makes them) of merge, modify and unmap in turn, in a copy of the sources, against the
checks of kill.py.  Interrupted, it goes on where it was.  docs/mutation.md is written with what came of it.
"""

import ast
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
WORK: Final = ROOT / "build" / "mutation"
MODULES: Final = ("merge", "modify", "unmap")
SAME_ALWAYS: Final = ("RemoveDecorator", "_Is_Eq", "_IsNot_NotEq")
"""A decorator says only that a class is final; and what is compared by identity has no equality of its own."""
SAME_FOR_CONSTANTS: Final = ("_Eq_Is", "_NotEq_IsNot")
"""Small numbers are equal where they are the same object."""
SAME_FOR_ZERO: Final = ("_Eq_LtE", "_NotEq_Gt")
"""Reasons are never negative."""
SAME_HERE: Final = (
    ("_NotEq_Lt", "if prev.end != request.start:", "a neighbour below never reaches into the range"),
    ("_NotEq_Lt", "if request.end != following.start:", "nor one above"),
    ("_Eq_LtE", "at_start = request.start == middle.start", "the range lies in the middle"),
    ("_Eq_GtE", "at_end = request.end == middle.end", "the range lies in the middle"),
    ("_Eq_LtE", "if start == vma.start else None", "the range lies in the VMA"),
    ("_Eq_GtE", "if start == vma.start else None", "a neighbour that the range does not touch is not asked"),
    ("_Eq_GtE", "if end == vma.end else None", "the range lies in the VMA"),
    ("_Eq_LtE", "if end == vma.end else None", "a neighbour that the range does not touch is not asked"),
    ("_GtE_Eq", "if vma.end >= end:", "what reaches out of the range was split off"),
    ("_GtE_Gt", "if vma.end >= end:", "the next one lies above the range, and is let be"),
    ("_GtE_Is", "if vma.end >= end:", "the next one lies above the range, and is let be"),
    ("NumberReplacer", "@mypyc_attr(", "what it says is for the compiler"),
    ("ReplaceTrueWithFalse", "@mypyc_attr(", "what it says is for the compiler"),
    ("_Lt_NotEq", "if vma.start < request.start:", "the range lies in the VMA"),
    ("_Gt_NotEq", "if vma.end > request.end:", "the range lies in the VMA"),
    ("_Eq_LtE", "if start == middle.start:", "the range lies in the middle"),
    ("_Eq_GtE", "if end == middle.end:", "the range lies in the middle"),
    ("_BitAnd_FloorDiv", "& VM_SEALED", "it is the highest flag"),
    ("_Eq_LtE", "if end == start:", "a length is never negative"),
)
"""Mutants that change nothing where they stand: operator, text of the line, and why."""
HEAD: Final = """\
# Mutation run of the core

`make mutation` changes one small thing at a time in merge, modify and unmap (cosmic-ray makes the changes: another
comparison, another operator, a constant one larger or smaller, a condition turned round) and runs the scenes, the tests
of the core and the properties until one fails. This file is what it has written.
"""
LEFT_OUT: Final = """
## What is left out

Mutants that are the same program are no test of the tests: annotations; the decorator `final`; `==` for `is` where
identity is what counts; `is` for `==` with small constants; `<=` for `==` against 0 where nothing is
negative; and these:
"""
CONFIG: Final = """\
[cosmic-ray]
module-path = [{modules}]
timeout = 60.0
excluded-modules = []
test-command = "env PYTHONPATH=src VMALAB_PURE=1 VMALAB_SANITISE=1 {python} -m tests.planted.kill"

[cosmic-ray.distributor]
name = "local"
"""


def prepare() -> None:
    """Copy the sources and make a session of all mutants; one that is there is gone on with."""
    if (WORK / "session.sqlite").exists():
        return
    shutil.rmtree(WORK, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_native")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, WORK / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", WORK)
    modules = ", ".join([f'"src/vmalab/vma/{name}.py"' for name in MODULES])
    (WORK / "cosmic-ray.toml").write_text(CONFIG.format(modules=modules, python=sys.executable))
    run("init", "cosmic-ray.toml", "session.sqlite")
    leave_out_equivalents()


def run(*arguments: str) -> None:
    """Run cosmic-ray in the copy."""
    subprocess.run([Path(sys.executable).with_name("cosmic-ray"), *arguments], cwd=WORK, check=True)


def leave_out_equivalents() -> None:
    """Mutants that change nothing go."""
    database = sqlite3.connect(WORK / "session.sqlite")
    with database:
        for module in MODULES:
            path = f"src/vmalab/vma/{module}.py"
            source = (WORK / path).read_text()
            spans = annotations(source)
            lines = source.splitlines()
            rows = database.execute(
                "SELECT job_id, operator_name, start_pos_row, start_pos_col FROM mutation_specs WHERE module_path = ?",
                (path,),
            ).fetchall()
            for job, operator, row, column in rows:
                in_annotation = any(start <= (row, column) < end for start, end in spans)
                if in_annotation or is_equivalent(str(operator), lines[row - 1]):
                    for table in ("mutation_specs", "work_items"):
                        database.execute(f"DELETE FROM {table} WHERE job_id = ?", (job,))
    database.close()


def is_equivalent(operator: str, line: str) -> bool:
    """Whether a mutant of a line is the same program."""
    sign = "==" if "_Eq_" in operator else "!="
    compared = re.findall(rf"{sign} ([\w.]+)", line)
    constants = bool(compared) and all(each.isupper() for each in compared)
    zero = bool(compared) and set(compared) <= {"YES"}
    return (
        operator.endswith(SAME_ALWAYS)
        or (constants and operator.endswith(SAME_FOR_CONSTANTS))
        or (zero and operator.endswith(SAME_FOR_ZERO))
        or any(operator.endswith(name) and text in line for name, text, _ in SAME_HERE)
    )


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations of a source begin and end, as line and column."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            found = getattr(node, field, None)
            if isinstance(found, ast.expr) and found.end_lineno is not None and found.end_col_offset is not None:
                spans.append(((found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)))
    return spans


def results() -> list[tuple[str, str, int, str]]:
    """Each mutant: its module, operator, line, and what became of it."""
    database = sqlite3.connect(WORK / "session.sqlite")
    rows = database.execute(
        "SELECT module_path, operator_name, start_pos_row, coalesce(test_outcome, 'none') FROM mutation_specs "
        "LEFT JOIN work_results USING (job_id) ORDER BY module_path, start_pos_row, operator_name"
    ).fetchall()
    database.close()
    return [(str(path), str(operator), int(line), str(outcome)) for path, operator, line, outcome in rows]


def report(found: list[tuple[str, str, int, str]]) -> str:
    """docs/mutation.md: the score, what survives, and what was left out."""
    lines = [HEAD, "| module | mutants | killed | survive |", "|---|---|---|---|"]
    for module in MODULES:
        of = [outcome for path, _, _, outcome in found if path.endswith(f"/{module}.py")]
        alive = sum("SURVIVED" in outcome for outcome in of)
        lines.append(f"| `vma/{module}.py` | {len(of)} | {len(of) - alive} | {alive} |")
    survivors = [row for row in found if "SURVIVED" in row[3]]
    lines += ["", f"Killed: {len(found) - len(survivors)} of {len(found)}.", ""]
    for path, operator, line, _ in survivors:
        text = (WORK / path).read_text().splitlines()[line - 1].strip()
        lines.append(f"- survives: {Path(path).stem}, line {line}, {operator.removeprefix('core/')}: `{text}`")
    lines += [LEFT_OUT, "| mutation | where | why it is the same |", "|---|---|---|"]
    lines += [f"| {name.strip('_')} | `{text}` | {why} |" for name, text, why in SAME_HERE]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    prepare()
    run("exec", "cosmic-ray.toml", "session.sqlite")
    (ROOT / "docs" / "mutation.md").write_text(report(results()))
    print((ROOT / "docs" / "mutation.md").read_text())
