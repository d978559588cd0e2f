"""The two forms of the core: each can be asked for, and tells which it is."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import vmalab

ROOT: Final = Path(__file__).parent.parent
SOURCES: Final = ROOT / "src/vmalab"


def _form(asked: str) -> str:
    environment = {**os.environ, "VMALAB_PURE": asked}
    code = "import vmalab, vmalab.addr; print(vmalab.form(), vmalab.addr.__file__.endswith('.py'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_interpreted_form_can_be_asked_for() -> None:
    assert _form("1") == "interpreted True"


def test_without_the_variable_the_compiled_form_is_taken_where_it_is() -> None:
    assert _form("0") in ("compiled False", "interpreted True")


def test_this_run_tells_its_form() -> None:
    assert vmalab.form() in ("compiled", "interpreted")
    if os.environ.get("VMALAB_PURE") == "1":
        assert vmalab.form() == "interpreted"


def test_what_the_core_imports_is_there_to_compile_it() -> None:
    """mypyc looks at all modules that the core leads to: what they import is a requirement of the build as well."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lists = project["tool"]["vmalab"]["build"]
    left_out = {SOURCES / name for name in lists["interpreted"]}
    waiting = [path for pattern in lists["compiled"] for path in SOURCES.glob(pattern) if path not in left_out]
    seen: set[Path] = set()
    others: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in _imports(path):
            first, *rest = name.split(".")
            if first == "vmalab":
                module = SOURCES.joinpath(*rest)
                waiting += [each for each in (module.with_suffix(".py"), module / "__init__.py") if each.is_file()]
            elif first not in sys.stdlib_module_names:
                others.add(first)
    requires = project["build-system"]["requires"]
    required = {re.split(r"[<>=]", each)[0] for each in requires}
    # mypy brings mypy_extensions.
    assert {"msgspec", "librt"} <= others
    assert others - {"mypy_extensions"} <= required
    assert [each for each in project["project"]["dependencies"] if re.split(r"[<>=]", each)[0] in required] == [
        each for each in project["project"]["dependencies"] if each in requires
    ], "it is compiled with what it runs with"


def _imports(path: Path) -> Iterator[str]:
    """The modules that one imports, and what may be modules in packages."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from [f"{node.module}.{alias.name}" for alias in node.names]
