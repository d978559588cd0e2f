"""The Linux address space as a library.

>>> from vmalab import Machine
>>> process = Machine().process()
>>> addr = process.mmap(0, 8192)
>>> process.munmap(addr, 4096)
>>> len(process.vmas())
1
"""

# ruff: noqa: E402 - the form is chosen before anything that it concerns is imported
from vmalab import _form

_form.choose()

from typing import TYPE_CHECKING

from vmalab.calls import Call, Outcome
from vmalab.machine import KernelError, Machine, Process
from vmalab.semantics import Semantics
from vmalab.vma.area import File, Vma

if TYPE_CHECKING:
    from vmalab.trace.trace import Trace

form = _form.form

__all__ = ["Call", "File", "KernelError", "Machine", "Outcome", "Process", "Semantics", "Trace", "Vma", "form"]


def __getattr__(name: str) -> object:
    """Trace is imported when it is first asked for: most programs read no files."""
    if name == "Trace":
        from vmalab.trace.trace import Trace

        return Trace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
