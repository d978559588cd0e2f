"""A copy of /proc/PID/smaps in a file, as the record of a process."""

import os
import re
from typing import Final

from vmalab.errors import InputError
from vmalab.live.procfs import ProcessFiles, describe
from vmalab.text import escape_text
from vmalab.trace.check import check
from vmalab.trace.records import Exec

_LIMIT: Final = 1 << 30
_FIRST_LINE: Final = re.compile(rb"[0-9a-f]{8,16}-[0-9a-f]{8,16} [r-][w-][x-][ps] [0-9a-f]{8,16} ")


def read_snapshot(path: str) -> Exec | None:
    """The process that a copy of smaps shows; None where the file does not begin as one, or cannot be looked into.

    ``-`` is standard input, which must be a file: a pipe cannot be read twice.  Raises InputError if it is damaged.
    """
    try:
        descriptor = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        if not _FIRST_LINE.match(os.pread(descriptor, 64, 0)):
            return None
        parts = []
        read = 0
        while read < _LIMIT and (part := os.pread(descriptor, 1 << 20, read)):
            parts.append(part)
            read += len(part)
    except OSError:
        return None
    finally:
        if descriptor:
            os.close(descriptor)
    return _describe(b"".join(parts), "standard input" if path == "-" else escape_text(path))


def _describe(text: bytes, name: str) -> Exec:
    if b"VmFlags:" not in text:
        raise InputError(f"{name} looks like a copy of maps, which shows too little: use /proc/PID/smaps")
    try:
        found = describe(1, ProcessFiles(smaps=text))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    found.n = 1
    found.exe = name
    heap = [vma for vma in found.vmas if vma.path == "[heap]"]
    found.start_brk = min([vma.start for vma in heap], default=0)
    found.brk = max([vma.end for vma in heap], default=0)
    found.start_stack = max([vma.end for vma in found.vmas if vma.path == "[stack]"], default=0)
    problem = check(found)
    if problem is not None:
        raise InputError(f"{name}: {problem}")
    return found
