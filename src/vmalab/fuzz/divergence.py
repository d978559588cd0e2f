"""Where a model and a live kernel part."""

from __future__ import annotations

import os

from vmalab.addr import TASK_SIZE
from vmalab.fuzz.ops import Op
from vmalab.fuzz.view import Row
from vmalab.reason import explain
from vmalab.syscalls.signals import signal_of, signal_text


class Divergence:
    """The first difference between the model and the kernel."""

    def __init__(self, step: int, op: Op, field: str, model: str, kernel: str) -> None:
        self.step = step
        """Its place in the sequence, from 0."""
        self.op = op
        self.field = field
        self.model = model
        self.kernel = kernel
        self.before: list[Row] = []
        """The model's VMAs before the step, as view.py has them; empty where VMAs do not differ."""
        self.model_view: list[Row] = []
        self.kernel_view: list[Row] = []

    def __reduce__(self) -> tuple[object, ...]:
        # What the strips are made of stays where it was found: it is found again when the sequence is made short.
        return Divergence, (self.step, self.op, self.field, self.model, self.kernel)

    def __str__(self) -> str:
        return f"step {self.step}, {self.op}: {self.field}: model {self.model}, kernel {self.kernel}"


def access_difference(reason: int, addr: int, signal: int) -> tuple[str, str] | None:
    """What the model and the kernel tell a process of an access, where that differs.

    signal: the kernel's, as Reply has it.  Where no address of a program can be, the processor itself may refuse it.
    """
    number, code = signal_of(reason)
    ours = number << 56 | code << 48 | addr & (1 << 48) - 1 if number else 0
    if not (ours ^ signal) >> (0 if addr < TASK_SIZE else 56):
        return None
    theirs = signal_text(signal >> 56, signal >> 48 & 255)
    return f"{signal_text(number, code)}, {explain(reason).name}", f"{theirs} at {signal & (1 << 48) - 1:x}"


def result_text(result: int) -> str:
    """The result of a call as it is shown: an address, or what the error means."""
    return f"-{os.strerror(-result)}" if result < 0 else hex(result)
