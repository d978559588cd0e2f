"""The Linux address space as a library."""

from vmalab import _form

_form.choose()
form = _form.form

__all__ = ["form"]
