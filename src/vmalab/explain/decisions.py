"""A changed rule as a small Python file: what a kernel developer's change would do to a real program.

Such a file may hold a subclass of `vmalab.semantics.Semantics`, and functions with the names of functions of the core,
which take their places: ``is_mergeable_vma``, ``can_vma_merge_left``, ``may_split``.  Functions can be replaced in the
interpreted form of the core only: compiled code calls its own directly.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final, final

from vmalab._form import form
from vmalab.behaviours import check_behaviours
from vmalab.errors import InputError, VmalabError
from vmalab.semantics import Semantics
from vmalab.text import escape_text

_PACKAGES: Final = ("vmalab.vma", "vmalab.syscalls")
"""Whose functions a file can replace; the first that has a name is meant."""
_NAME: Final = "vmalab_rules"
"""The name that the file has as a module."""


class NeedsInterpreted(Exception):
    """The file replaces functions, and the core is the compiled one."""


@final
class Decisions:
    """Functions of the core replaced by others; in force inside a ``with``."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.names: list[str] = sorted(functions)
        self._places: list[tuple[ModuleType, str, object, object]] = []
        for name, function in functions.items():
            original = _original(name)
            for module in list(sys.modules.values()):
                if getattr(module, "__name__", "").startswith("vmalab.") and vars(module).get(name) is original:
                    self._places.append((module, name, original, function))

    def __enter__(self) -> None:
        for module, name, _, function in self._places:
            setattr(module, name, function)

    def __exit__(self, *_exc: object) -> None:
        for module, name, original, _ in self._places:
            setattr(module, name, original)


@final
class Rules:
    """What a file changes."""

    def __init__(self, path: str, semantics: Semantics | None, decisions: Decisions | None) -> None:
        self.path: str = path
        self.semantics: Semantics | None = semantics
        self.decisions: Decisions | None = decisions

    def titles(self) -> list[str]:
        """What is changed, in words."""
        found = [f"semantics of {type(self.semantics).__name__}"] if self.semantics is not None else []
        return found + (self.decisions.names if self.decisions is not None else [])

    def blame(self, error: Exception) -> InputError | None:
        """The failure of a replay as the file's, if it happened in it or while functions were replaced."""
        shown = escape_text(self.path)
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if _is_file(frame.filename, self.path):
                said = escape_text(str(error), 200)
                return InputError(f"{shown}, line {frame.lineno}, in {frame.name}: {type(error).__name__}: {said}")
        if self.decisions is None or isinstance(error, VmalabError):
            return None
        said = escape_text(f"{type(error).__name__}: {error}".partition("\n")[0], 200)
        return InputError(f"{shown}: with it the core goes wrong: {said} (VMALAB_DEBUG=1 shows where)")


def load_rules(path: str) -> Rules:
    """Run a Python file and take what it defines.

    Raises InputError, in one line, for a file that cannot be run or changes nothing; NeedsInterpreted.
    """
    module = _run(path)
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == _NAME}
    classes = [value for value in own.values() if isinstance(value, type) and issubclass(value, Semantics)]
    functions = {
        name: value for name, value in own.items() if isinstance(value, FunctionType) and not name.startswith("_")
    }
    shown = escape_text(path)
    leaves = [kind for kind in classes if not any(kind is not other and issubclass(other, kind) for other in classes)]
    if len(leaves) > 1:
        names = ", ".join(kind.__name__ for kind in leaves)
        raise InputError(f"{shown}: several subclasses of Semantics ({names}): leave one")
    if not leaves and not functions:
        raise InputError(
            f"{shown}: it changes nothing: define a subclass of Semantics, or a function with the name of one of the "
            f"core, such as is_mergeable_vma"
        )
    if functions and form() == "compiled":
        raise NeedsInterpreted
    for name, function in functions.items():
        original = _original(name)
        if original is None:
            raise InputError(
                f"{shown}: the core has no function {escape_text(name, 60)} to replace; helpers begin with _"
            )
        if isinstance(original, FunctionType):
            _check_arguments(shown, function, original)
    semantics = _make(leaves[0], shown) if leaves else None
    return Rules(path, semantics, Decisions(functions) if functions else None)


def _check_arguments(shown: str, function: FunctionType, original: FunctionType) -> None:
    """A function has to take what the one that it replaces takes."""
    wanted = inspect.signature(original)
    try:
        inspect.signature(function).bind(*wanted.parameters)
    except TypeError:
        names = ", ".join(wanted.parameters)
        line = function.__code__.co_firstlineno
        raise InputError(f"{shown}, line {line}: {function.__name__} has to take ({names})") from None


def _make(kind: type[Semantics], shown: str) -> Semantics:
    """The semantics of a class, which may state behaviours in its body, or set them in ``__init__``."""
    stated: dict[str, Any] = {}
    for part in reversed(kind.__mro__[: kind.__mro__.index(Semantics)]):
        own = {name: value for name, value in vars(part).items() if not name.startswith("_") and not callable(value)}
        for name in own:
            delattr(part, name)  # it would hide the behaviour of the object
        stated.update(own)
    try:
        made = kind()
    except Exception as error:
        said = escape_text(f"{type(error).__name__}: {error}", 200)
        raise InputError(f"{shown}: {kind.__name__}() fails: {said}") from None
    check_behaviours(shown, {**getattr(made, "__dict__", {}), **stated})
    for name, value in stated.items():
        setattr(made, name, value)
    return made


def _run(path: str) -> ModuleType:
    shown = escape_text(path)
    if path == "-":
        raise InputError("rules are read from a file: standard input is for the trace")
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{shown}: cannot be read: {error.strerror}") from None
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{shown}: this is no Python file: its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    write, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{shown}, line {error.lineno}: {escape_text(error.msg)}") from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_file(frame.filename, path)]
        at = f", line {lines[-1]}" if lines else ""
        raise InputError(f"{shown}{at}: {escape_text(f'{type(error).__name__}: {error}', 200)}") from None
    finally:
        sys.dont_write_bytecode = write
    return module


def _is_file(filename: str, path: str) -> bool:
    """Whether code of a frame stands in the file: the import system makes its path absolute."""
    return Path(filename).absolute() == Path(path).absolute()


def _original(name: str) -> object | None:
    """The function of the core with this name."""
    for package in _PACKAGES:
        folder = importlib.import_module(package)
        for found in pkgutil.iter_modules(folder.__path__):
            module = importlib.import_module(f"{package}.{found.name}")
            value: object = vars(module).get(name)
            if callable(value) and not isinstance(value, type) and getattr(value, "__module__", "") == module.__name__:
                return value
    return None
