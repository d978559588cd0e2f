"""A contender in a process of its own: python -m vmalab.bench.worker KIND SCRIPT

KIND is model, face, ctypes or replay.  It says in one line of JSON when all is prepared, then answers each line of
standard input, the number of a round, with one line: the seconds of that round.  KIND memory says what memory is taken.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

import vmalab
from vmalab.bench.contenders import Contender, Ctypes, Face, Model
from vmalab.bench.script import Script
from vmalab.errors import VmalabError
from vmalab.flags import MADV_NOHUGEPAGE, PROT_READ, PROT_WRITE
from vmalab.trace.file import read_trace
from vmalab.trace.replay import Replay, replay_of

_MANY: Final = 1_000_000
_KINDS: dict[str, Any] = {"model": Model, "face": Face, "ctypes": Ctypes}


def resident() -> int:
    """Bytes of memory that this process has; 0 where that cannot be told."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Replaying:
    """A trace that is read, replayed and compared."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.calls = 0
        self.vmas = 0
        """The most that a process has had."""

    def setup(self) -> None:
        """Nothing comes before the first round."""

    def round(self, number: int) -> float:
        gc.collect()
        began = time.thread_time_ns()
        replayed = _replay(self._path)
        seconds = (time.thread_time_ns() - began) / 1e9
        self.calls = sum(program.calls for program in replayed.programs)
        self.vmas = max((program.peak for program in replayed.programs), default=0)
        if not all(program.is_equal() for program in replayed.programs):
            raise VmalabError("the replay differs from what was recorded")
        return seconds

    def close(self) -> None:
        """Nothing is held that does not go by itself."""


def memory() -> dict[str, float]:
    """Bytes of memory for each of a million VMAs, and for each of as many pages, at most."""
    from vmalab.machine import Machine
    from vmalab.pages.memory import Memory
    from vmalab.vma.space import Settings

    settings = Settings()
    settings.max_map_count = 2 * _MANY
    process = Machine(settings=settings).process()
    before = _peak()
    for at in range(_MANY):
        process.mmap(0, 4096, PROT_READ | (PROT_WRITE if at % 2 else 0))
    vmas = (_peak() - before) / _MANY
    del process
    process = Machine(memory=Memory()).process()
    addr = process.mmap(0, _MANY * 4096)
    process.madvise(addr, _MANY * 4096, MADV_NOHUGEPAGE)
    gc.collect()
    start = resident()
    for at in range(_MANY):
        process.touch(addr + at * 4096)
    return {"vma": vmas, "page": (resident() - start) / _MANY}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _replay(path: str) -> Replay:
    """All of a trace, read and replayed and compared."""
    reader = read_trace(path)
    replayed = replay_of(reader.header)
    step = replayed.step
    for record in reader:
        step(record)
    replayed.finish()
    return replayed


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


def main(kind: str, path: str) -> None:
    """Prepare a contender, then do rounds as they are asked for."""
    contender: Contender
    if kind == "memory":
        _say({"form": vmalab.form(), **memory()})
        return
    if kind == "replay":
        contender = Replaying(path)
    else:
        contender = _KINDS[kind](msgspec.msgpack.decode(Path(path).read_bytes(), type=Script))
    contender.setup()
    _say({"form": vmalab.form()})
    for line in sys.stdin:
        _say({"seconds": contender.round(int(line))})


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except VmalabError as error:
        _say({"error": str(error)})
