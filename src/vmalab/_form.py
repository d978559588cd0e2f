"""Which form of the core runs: the compiled one, or the Python source.

The extension modules lie beside their sources, and Python prefers them.  With VMALAB_PURE=1 in the environment the
sources are imported instead: the reference, which a debugger and a coverage tool can see into.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final

VARIABLE: Final = "VMALAB_PURE"
"""The environment variable that asks for the interpreted form."""

_PROBE: Final = "vmalab.addr"
"""A module that the build always compiles."""


class _SourceFinder:
    """Finds the modules of this package by their sources only."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("vmalab.") or path is None:
            return None
        for entry in path:
            spec = FileFinder(entry, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name, target)
            if spec is not None and spec.loader is not None:
                return spec
        return None


def choose() -> None:
    """Make the imports that follow load the form that the environment asks for.  To be called before any of them."""
    if os.environ.get(VARIABLE, "0") not in ("", "0") and _SourceFinder not in sys.meta_path:
        sys.meta_path.insert(0, _SourceFinder)


def is_built() -> bool:
    """Whether the compiled form is there to be taken."""
    here = Path(__file__).parent
    return any((here / (_PROBE.rpartition(".")[2] + suffix)).exists() for suffix in EXTENSION_SUFFIXES)


def form() -> str:
    """The form of the core that this process runs: ``compiled`` or ``interpreted``."""
    module = sys.modules.get(_PROBE)
    spec = module.__spec__ if module is not None else find_spec(_PROBE)
    origin = (spec.origin if spec is not None else None) or ""
    return "compiled" if origin.endswith(tuple(EXTENSION_SUFFIXES)) else "interpreted"
