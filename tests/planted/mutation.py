"""Mutation testing of the core: `python -m tests.planted.mutation`, or `make mutation`.

Every small change (cosmic-ray makes them) of merge, modify and unmap in turn, in a copy of the sources, against the
checks of kill.py.  Interrupted, it goes on where it was.  What survives is printed, and docs/mutation.md is written.
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
SAME_FOR_ZERO: Final = ("_Eq_LtE", "_Eq_Is", "_NotEq_Gt", "_NotEq_IsNot")
CONFIG: Final = """\
[cosmic-ray]
module-path = [{modules}]
timeout = 60.0
excluded-modules = []
test-command = "env PYTHONPATH=src VMALAB_INTERPRETED=1 VMALAB_SANITISE=1 {python} -m tests.planted.kill"

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
    """Mutants that change nothing go: of annotations, and of comparisons of what is never negative with 0."""
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
                if in_annotation or (str(operator).endswith(SAME_FOR_ZERO) and compares_with_zero(lines[row - 1])):
                    for table in ("mutation_specs", "work_items"):
                        database.execute(f"DELETE FROM {table} WHERE job_id = ?", (job,))
    database.close()


def compares_with_zero(line: str) -> bool:
    """Whether all comparisons of a line are of a Reason or a kind of merge with the one that is 0."""
    compared = re.findall(r"(?:==|!=) ([A-Z_]+)", line)
    return bool(compared) and set(compared) <= {"YES", "KIND_NONE"}


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
    """The score, and what survives."""
    lines = ["| module | mutants | killed | survive |", "|---|---|---|---|"]
    for module in MODULES:
        of = [outcome for path, _, _, outcome in found if path.endswith(f"/{module}.py")]
        alive = sum("SURVIVED" in outcome for outcome in of)
        lines.append(f"| {module} | {len(of)} | {len(of) - alive} | {alive} |")
    for path, operator, line, outcome in found:
        if "SURVIVED" in outcome:
            text = (WORK / path).read_text().splitlines()[line - 1].strip()
            lines.append(f"- {Path(path).stem}, line {line}, {operator.removeprefix('core/')}: `{text}`")
    return "\n".join(lines)


if __name__ == "__main__":
    prepare()
    run("exec", "cosmic-ray.toml", "session.sqlite")
    print(report(results()))
