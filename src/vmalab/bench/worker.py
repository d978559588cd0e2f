"""A contender in a process of its own: python -m vmalab.bench.worker KIND SCRIPT

KIND is model, face, ctypes or replay.  It says "ready" in JSON when all is prepared, then answers each line of standard
input, the number of a round, with one line: the seconds of that round.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

import vmalab
from vmalab.bench.contenders import Contender, Ctypes, Face, Model
from vmalab.bench.script import Script
from vmalab.errors import VmalabError
from vmalab.trace.file import read_trace
from vmalab.trace.replay import Replay, replay_of

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
    if kind == "replay":
        contender = Replaying(path)
    else:
        contender = _KINDS[kind](msgspec.msgpack.decode(Path(path).read_bytes(), type=Script))
    gc.collect()
    before = resident()
    contender.setup()
    _say({"form": vmalab.form(), "grown": resident() - before})
    for line in sys.stdin:
        before = resident()
        seconds = contender.round(int(line))
        _say({"seconds": seconds, "grown": resident() - before})


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except VmalabError as error:
        _say({"error": str(error)})
