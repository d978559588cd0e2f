"""The pool of huge pages of this machine, set for a while and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vmalab.errors import VmalabError

POOL: Final = Path("/proc/sys/vm/nr_hugepages")


@contextmanager
def huge_pages(wanted: int) -> Iterator[None]:
    """At least so many huge pages of 2 MiB while the block runs; 0 leaves the pool as it is.

    Raises VmalabError if they cannot be had.
    """
    if not wanted:
        yield
        return
    try:
        before = POOL.read_text().strip()
        POOL.write_text(str(max(wanted, int(before))))
    except OSError as error:
        raise VmalabError(f"the pool of huge pages cannot be set ({POOL}): {error.strerror}") from None
    try:
        got = int(POOL.read_text())
        if got < wanted:
            raise VmalabError(f"the machine has no room for {wanted} huge pages: it made {got}")
        yield
    finally:
        POOL.write_text(before)
