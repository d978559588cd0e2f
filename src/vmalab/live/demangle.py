"""Names of C++ and Rust functions as they are written, by the demangler of the C++ library, where it is installed."""

import ctypes
from functools import cache
from typing import Final

from vmalab.live.procfs import printable

_LIBRARY: Final = "libstdc++.so.6"
_FUNCTION: Final = "__cxa_demangle"
_LONGEST: Final = 4096
"""A name with more bytes stays as it is."""


class _Demangler:
    """That function of the C++ library, if it is there."""

    def __init__(self) -> None:
        self._demangle = self._free = None
        try:
            library = ctypes.CDLL(_LIBRARY)
            self._free = ctypes.CDLL(None).free
            self._free.argtypes, self._free.restype = [ctypes.c_void_p], None
            self._demangle = getattr(library, _FUNCTION)
            self._demangle.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
            self._demangle.restype = ctypes.c_void_p
        except (OSError, AttributeError):
            self._demangle = None

    def read(self, name: str) -> str:
        """A name as it is written in the source; the same where it cannot be read."""
        if self._demangle is None or self._free is None:
            return name
        found = self._demangle(name.encode(), None, None, None)
        if not found:
            return name
        try:
            return printable(ctypes.string_at(found))
        finally:
            self._free(found)


@cache
def _demangler() -> _Demangler:
    return _Demangler()


def demangle(name: str) -> str:
    """``v8::internal::Heap::CollectGarbage(...)`` for ``_ZN2v88internal4Heap14CollectGarbage...``; else the name."""
    if not name.startswith("_Z") or len(name) > _LONGEST:
        return name
    return _demangler().read(name)
