"""Call and Outcome: one system call as it is asked for, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from mypy_extensions import mypyc_attr

from vmalab.reason import Explanation, explain

if TYPE_CHECKING:
    from vmalab.vma.area import File


NO_DATA: Final[dict[str, int | str | list[int]]] = {}
"""What most calls have as data: one empty dictionary for all of them.  Not to be changed."""


@final
class Call:
    """A system call by name, with its arguments as unsigned integers.

    file is what a descriptor argument stands for; data is what pointer arguments point to, as docs/trace-format.md
    names it.  A call does not change once it is made.
    """

    __slots__ = ("args", "data", "file", "name")

    def __init__(
        self,
        name: str,
        args: tuple[int, ...],
        file: File | None = None,
        data: dict[str, int | str | list[int]] | None = None,
    ) -> None:
        self.name: str = name
        self.args: tuple[int, ...] = args
        self.file: File | None = file
        self.data: dict[str, int | str | list[int]] = NO_DATA if data is None else data

    def __repr__(self) -> str:
        shown = ", ".join([hex(arg) if arg > 9 else str(arg) for arg in self.args])
        return f"{self.name}({shown})"


@mypyc_attr(free_list_len=1, acyclic=True)
@final
class Outcome:
    """What a call answers: result is 0 or more, or minus the errno; reason says why it was refused (0: it was not).

    modelled is false for a call that the model passes over; known is false where the result depends on something that
    the model does not hold, such as a random choice of the kernel.
    """

    __slots__ = ("known", "modelled", "reason", "result")

    def __init__(self, result: int, reason: int = 0, *, modelled: bool = True, known: bool = True) -> None:
        self.result: int = result
        self.reason: int = reason
        self.modelled: bool = modelled
        self.known: bool = known

    def explanation(self) -> Explanation:
        """What the reason means."""
        return explain(self.reason)

    def __repr__(self) -> str:
        return f"Outcome({self.result:#x}, {self.explanation().name})"
