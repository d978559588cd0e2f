"""KTAP, the kernel's format for test results (Documentation/dev-tools/ktap.rst), and kselftest's exit statuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vmalab.text import escape_text

PASS: Final = 0
FAIL: Final = 1
SKIP: Final = 4
"""kselftest's exit statuses; skip is for a run in which everything is skipped."""


@dataclass
class Totals:
    """How many tests ended how."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    expected: int = 0
    """Failures that are known and expected (xfail)."""
    unexpected: int = 0
    """Known failures that did not happen (xpass)."""

    def status(self) -> int:
        """The exit status for these results."""
        if self.failed or self.unexpected:
            return FAIL
        return SKIP if self.skipped and not self.passed and not self.expected else PASS

    def line(self) -> str:
        """The closing line, as kselftest prints it."""
        known = f"xfail:{self.expected} xpass:{self.unexpected}"
        return f"# Totals: pass:{self.passed} fail:{self.failed} {known} skip:{self.skipped} error:0"


def heading(count: int) -> list[str]:
    """The first lines: the version, and how many tests follow."""
    return ["KTAP version 1", f"1..{count}"]


def result_lines(number: int, name: str, problems: list[str], skip: str = "", *, xfail: bool = False) -> list[str]:
    """One result: `ok` or `not ok`, and what is wrong as comments before it.  xfail: as it is known to."""
    name = escape_text(name).replace("#", "\\#")
    notes = [f"# {escape_text(line)}" for problem in problems for line in problem.splitlines()]
    if skip:
        return [f"ok {number} {name} # SKIP {escape_text(skip)}"]
    if xfail and problems:
        return [*notes, f"ok {number} {name} # XFAIL known of Linux"]
    return [*notes, f"{'not ok' if problems else 'ok'} {number} {name}"]
