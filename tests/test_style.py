"""Style that a test enforces: files and functions to be read at a sitting, and nothing that is about one machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES = 650
FUNCTION_LINES = 80
COLUMNS = 120


def _files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


PYTHON = _files("src/**/*.py", "tests/**/*.py", "bench/**/*.py", "setup.py")
SOURCES = _files("src/**/*.py")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_file_is_long(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= FILE_LINES
    assert [number for number, line in enumerate(lines, 1) if len(line) > COLUMNS] == []


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_no_function_is_long(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    long = {
        function.name: length
        for function in _functions(tree)
        if (length := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


@pytest.mark.parametrize("path", _files("src/**/*.py"), ids=_name)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "the module has none"
    missing = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert missing == []


def test_every_test_file_has_a_place_in_the_sources() -> None:
    """A folder of tests is named after a module or package that it tests, or holds data."""
    package = ROOT / "src/vmalab"
    here = {path.stem if path.suffix == ".py" else path.name for path in package.iterdir()}
    folders = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))
    }
    assert folders - here <= {"data", "scenes", "planted", "witness", "programs", "docs"}


def test_the_repository_is_about_no_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    place = re.compile(re.escape(str(ROOT)) + r"\b")
    found = []
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and len(ROOT.parts) > 2 and place.search(path.read_text("utf-8", errors="replace")):
            found.append(name)
    assert found == []
