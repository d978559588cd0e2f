"""The Linux address space as a library.

>>> from vmalab import Machine
>>> process = Machine().process()
>>> addr = process.mmap(0, 8192)
>>> process.munmap(addr, 4096)
>>> len(process.vmas())
1
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from vmalab import _form

_form.choose()

if TYPE_CHECKING:
    from vmalab.calls import Call, Outcome
    from vmalab.machine import KernelError, Machine, Process
    from vmalab.semantics import Semantics
    from vmalab.trace.trace import Trace
    from vmalab.vma.area import File, Vma

form = _form.form

__all__ = ["Call", "File", "KernelError", "Machine", "Outcome", "Process", "Semantics", "Trace", "Vma", "form"]

_HOMES: Final = {
    "Call": "vmalab.calls",
    "File": "vmalab.vma.area",
    "KernelError": "vmalab.machine",
    "Machine": "vmalab.machine",
    "Outcome": "vmalab.calls",
    "Process": "vmalab.machine",
    "Semantics": "vmalab.semantics",
    "Trace": "vmalab.trace.trace",
    "Vma": "vmalab.vma.area",
}
"""Where each name comes from.  It is imported when it is first asked for: the command line needs few of them."""


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
