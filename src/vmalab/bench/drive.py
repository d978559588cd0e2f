"""The loop over prepared calls, compiled with the core: what a caller who is compiled as well pays."""

from __future__ import annotations

from typing import final

from vmalab.calls import Call
from vmalab.dispatch import perform
from vmalab.reason import YES, errno_of
from vmalab.syscalls.populate import handle_fault
from vmalab.world import ProcessState


@final
class Prepared:
    """A call, or a touch of memory where there is none, and the result that it must have."""

    __slots__ = ("addr", "call", "result", "write")

    def __init__(self, call: Call | None, addr: int, write: bool, result: int) -> None:
        self.call: Call | None = call
        self.addr: int = addr
        self.write: bool = write
        self.result: int = result


def drive(process: ProcessState, steps: list[Prepared]) -> int:
    """Perform them all: how many had another result."""
    wrong = 0
    for step in steps:
        call = step.call
        if call is not None:
            result = perform(process, call).result
        else:
            refusal = handle_fault(process.mm, step.addr, step.write)
            result = 0 if refusal == YES else -errno_of(refusal)
        if result != step.result:
            wrong += 1
    return wrong
