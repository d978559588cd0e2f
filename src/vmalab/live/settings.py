"""Settings of this machine, changed for a while and put back."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from vmalab.errors import VmalabError
from vmalab.live.facts import chosen

SETTINGS: Final = "/sys/kernel/mm"
"""Where the settings are that are changed."""
PATIENCE: Final = 60
"""Seconds to wait for another run that has changed them."""


def lock_settings() -> int:
    """A descriptor that holds a lock on the settings of the machine, against another run.  Raises VmalabError."""
    where = SETTINGS if os.path.isdir(SETTINGS) else tempfile.gettempdir()
    descriptor = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(descriptor)
                raise VmalabError(
                    f"another run has changed the settings of this machine for {PATIENCE} seconds: try again when it"
                    " has put them back"
                ) from None
            time.sleep(0.1)


def change_setting(stack: ExitStack, path: Path, value: str) -> None:
    """Write a setting, which is as it was when the stack is left.  Raises OSError."""
    before = path.read_text("ascii").strip()
    before = chosen(before, before)
    # First, since a signal may come as soon as it is written.
    stack.callback(_put_back, path, before)
    path.write_text(value, "ascii")


@contextmanager
def changed_settings(values: dict[Path, str]) -> Iterator[None]:
    """Settings that are so while the block runs.  Raises OSError; VmalabError where another run has them for long."""
    with ExitStack() as stack:
        stack.callback(os.close, lock_settings())
        for path, value in values.items():
            change_setting(stack, path, value)
        yield


def _put_back(path: Path, before: str) -> None:
    """Write a setting as it was, if it has changed."""
    now = path.read_text("ascii").strip()
    if chosen(now, now) != before:
        path.write_text(before, "ascii")
