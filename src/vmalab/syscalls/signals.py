"""What a process is told of an access that cannot be made: the signal, and its code (force_sig_fault, x86)."""

from __future__ import annotations

from typing import Final

from vmalab.reason import (
    FAULT_BEYOND_FILE,
    FAULT_MIGRATION,
    FAULT_NO_HUGE_PAGES,
    FAULT_NO_MEMORY,
    FAULT_NO_PERMISSION,
    FAULT_PKEY,
    FAULT_POISONED,
    FAULT_USERFAULTFD,
    FAULT_USERFAULTFD_MINOR,
    FAULT_USERFAULTFD_WP,
    YES,
)

SIGBUS: Final = 7
SIGSEGV: Final = 11
SEGV_MAPERR: Final = 1
"""Nothing is mapped there, a guard is, or the stack cannot grow that far."""
SEGV_ACCERR: Final = 2
"""The VMA does not permit it."""
SEGV_PKUERR: Final = 4
"""The protection key does not."""
BUS_ADRERR: Final = 2
"""There is no page: beyond the end of the file, or the pool is empty."""
BUS_MCEERR_AR: Final = 4
"""The page is poisoned."""


def signal_of(refusal: int) -> tuple[int, int]:
    """The signal for a refused access and its si_code; (0, 0) where nobody is sent one: it works, or it waits.

    What a userfaultfd is to answer is SIGBUS where it was asked to be (UFFD_FEATURE_SIGBUS), as it is here.
    """
    if refusal in (YES, FAULT_MIGRATION, FAULT_NO_MEMORY):
        return 0, 0
    if refusal == FAULT_NO_PERMISSION:
        return SIGSEGV, SEGV_ACCERR
    if refusal == FAULT_PKEY:
        return SIGSEGV, SEGV_PKUERR
    if refusal == FAULT_POISONED:
        return SIGBUS, BUS_MCEERR_AR
    if refusal in (FAULT_BEYOND_FILE, FAULT_NO_HUGE_PAGES):
        return SIGBUS, BUS_ADRERR
    if refusal in (FAULT_USERFAULTFD, FAULT_USERFAULTFD_WP, FAULT_USERFAULTFD_MINOR):
        return SIGBUS, BUS_ADRERR
    return SIGSEGV, SEGV_MAPERR


def signal_text(number: int, code: int) -> str:
    """A signal as sigaction(2) names it: SIGSEGV (SEGV_ACCERR)."""
    if number == SIGSEGV:
        names = {SEGV_MAPERR: "SEGV_MAPERR", SEGV_ACCERR: "SEGV_ACCERR", SEGV_PKUERR: "SEGV_PKUERR"}
        return f"SIGSEGV ({names.get(code, code)})"
    if number == SIGBUS:
        return f"SIGBUS ({ {BUS_ADRERR: 'BUS_ADRERR', BUS_MCEERR_AR: 'BUS_MCEERR_AR'}.get(code, code) })"
    return f"signal {number} ({code})" if number else "no signal"
