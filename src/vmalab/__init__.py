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

from vmalab.calls import Call, Outcome
from vmalab.machine import KernelError, Machine, Process
from vmalab.semantics import Semantics
from vmalab.trace.trace import Trace
from vmalab.vma.area import File, Vma

form = _form.form

__all__ = ["Call", "File", "KernelError", "Machine", "Outcome", "Process", "Semantics", "Trace", "Vma", "form"]
