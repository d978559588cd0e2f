"""Plants a bug: a finder that changes a module's source while it is imported.  Interpreted form only."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

from tests.planted.bugs import Bug


class _Loader(SourceFileLoader):
    """Compiles the changed source, and neither reads nor writes a cache of it."""

    def __init__(self, name: str, path: str, bug: Bug) -> None:
        super().__init__(name, path)
        self._bug = bug

    def get_code(self, fullname: str) -> Any:
        text = self.get_data(self.path).decode()
        for old, new in self._bug.changes:
            if text.count(old) != 1:
                raise LookupError(f"bug {self._bug.name}: its text is {text.count(old)} times in {self.path}, not once")
            text = text.replace(old, new)
        return compile(text, self.path, "exec", dont_inherit=True)


class _Finder:
    def __init__(self, bug: Bug) -> None:
        self.bug = bug
        self.name = f"vmalab.{bug.module}"

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name or path is None:
            return None
        for entry in path:
            source = f"{entry}/{name.rpartition('.')[2]}.py"
            found = PathFinder.find_spec(name, [entry])
            if found is not None:
                return ModuleSpec(name, _Loader(name, source, self.bug), origin=source)
        return None


def plant(bug: Bug) -> None:
    """Change what importing the bug's module gives.  To be called before vmalab is imported."""
    assert "vmalab" not in sys.modules, "the core is imported already"
    finder: Any = _Finder(bug)
    # The package's own finder puts itself first as well, when the package is imported: this one has to be before it.
    sys.meta_path = _First([finder, *sys.meta_path])


class _First(list[Any]):
    """A list whose first element stays there."""

    def insert(self, index: Any, value: Any) -> None:
        super().insert(max(int(index), 1), value)
