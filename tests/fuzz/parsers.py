"""Fuzzing of everything that reads text from outside: logs, programs of syzkaller, maps and smaps, and traces.

Run with ``python -m tests.fuzz.parsers`` or ``make fuzz-parsers``: until so many inputs have been seen in all, over any
number of runs.  Ctrl-C ends it, and the next run goes on.  An input that is refused raises InputError; anything else is
a finding, and so is one that takes more than `SECONDS` or more memory than `MEMORY`.  It is kept beside the state.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from vmalab.errors import VmalabError
from vmalab.live import maps_text, procfs
from vmalab.trace.check import Sequence, check
from vmalab.trace.file import read_trace
from vmalab.trace.import_log import FORMATS
from vmalab.trace.importing import TraceBuilder
from vmalab.trace.logs import Family, Tally, lines_of
from vmalab.trace.records import VERSION, Header, Record
from vmalab.trace.replay import replay_of

ROOT: Final = Path(__file__).parent.parent.parent
LOGS: Final = ROOT / "tests/data/logs"
STATE: Final = ROOT / "build/fuzz-parsers"
GOAL: Final = 10_000_000
SECONDS: Final = 5
"""Of the processor."""
MEMORY: Final = 1 << 30
"""Bytes that a run may need in all."""
LONGEST: Final = 2000
"""Bytes of an input, most of the time."""
_REPORT: Final = 5000


class TooSlow(BaseException):
    """An input took longer than it may."""


def import_text(kind: str, data: bytes) -> list[Record]:
    """The records of a log.  What comes out passes every check of a trace."""
    form = FORMATS[kind]
    family = Family()
    tally = Tally()
    found: list[Record] = []
    builder = TraceBuilder(family, tally, found.append)
    form.look_through(lines_of([data]), family)
    for event in form.read(lines_of([data]), family, tally):
        builder.take(event)
    builder.flush()
    sequence = Sequence()
    for number, record in enumerate(found, 1):
        record.n = number
        problem = check(record) or sequence.accept(record)
        assert problem is None, (problem, record)
    assert tally.misread <= tally.lines * 2
    return found


def replay(records: list[Record]) -> None:
    """The model takes whatever a log says, and stays whole."""
    replayed = replay_of(Header("trace", VERSION, faults="none"))
    for record in records:
        replayed.step(record)
    replayed.finish()
    replayed.machine.validate()


def _log(kind: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        records = import_text(kind, data)
        if len(data) % 4 == 0:
            replay(records)

    return read


def round_trip(data: bytes) -> None:
    """What is read of maps and smaps is written again byte for byte."""
    assert maps_text.parse(data, "maps").render() == data


def _trace(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        for _ in read_trace(f"/proc/self/fd/{file.fileno()}"):
            pass


TARGETS: Final[dict[str, Callable[[bytes], object]]] = {
    **{kind: _log(kind) for kind in FORMATS},
    "maps": round_trip,
    "smaps": procfs.parse_smaps,
    "trace": _trace,
}
_WEIGHTS: Final = {"trace": 1, "maps": 4, "smaps": 2}
"""How often a target is chosen; a log is chosen 5 times."""


def one(target: str, data: bytes) -> None:
    """Give an input to a target.  Raises what is a finding."""
    try:
        TARGETS[target](data)
    except VmalabError as error:
        text = str(error)
        assert "\n" not in text, text


_FRAMES: Final = {
    "strace": [
        b" > /usr/lib/x86_64-linux-gnu/libc.so.6(__mmap+0x13) [0x11ba33]",
        b" > /tmp/a b(c)/lib.so(std::map<int, int>::f(int, char const*)+0x1) [0x12]",
        b" > /usr/bin/a() [0x4021f]",
        b" > unexpected_backtracing_error [0x7ffe0]",
    ],
    "perf-trace": [
        b"                                       __mmap+0x13 (/usr/lib/x86_64-linux-gnu/libc.so.6)",
        b"                                       std::map<int, int>::f(int, char const*) (inlined)",
        b"                                       [0x4021f] (/usr/bin/a)",
        b"                                       [0xffffffff81234567] ([kernel.kallsyms])",
    ],
    "perf-script": [
        b"\t    7ffff7d1ba33 __mmap+0x13 (/usr/lib/x86_64-linux-gnu/libc.so.6)",
        b"\t            4021f f(int, char const*)+0x1 (/tmp/a b)",
        b"\t            4021f main (inlined)",
        b"\t               0 [unknown] ([unknown])",
        b"",
    ],
}
"""Of each kind of log that can have stacks the lines of one."""


def _with_stacks(text: bytes, frames: list[bytes]) -> bytes:
    """A log as it would be with stacks: below each line one that ends earlier or later."""
    lines: list[bytes] = []
    for number, line in enumerate(text.split(b"\n")):
        lines += [line, *frames[number % len(frames) :]]
    return b"\n".join(lines)


def seeds() -> dict[str, list[bytes]]:
    """Inputs that are as they should be, by target."""
    found: dict[str, list[bytes]] = {target: [] for target in TARGETS}
    for path in sorted(LOGS.rglob("*")):
        for target in TARGETS:
            if path.is_file() and path.name.startswith(target + "-"):
                found[target].append(path.read_bytes())
    for target, frames in _FRAMES.items():
        found[target] += [_with_stacks(text, frames) for text in found[target]]
    for name, target in (("maps", "maps"), ("smaps", "maps"), ("smaps", "smaps")):
        here = Path(f"/proc/self/{name}")
        if here.exists():
            found[target].append(here.read_bytes())
    found["trace"].append((b'{"vmalab":"trace","version":1}\n{"type":"lost","n":1,"pid":0,"why":"x"}\n') * 2)
    return found


_PIECES: Final = [
    b" = ", b" <unfinished ...>", b"<... mmap resumed>", b"0x", b"NULL", b"|", b"...", b"{", b"}", b"[", b"]", b"(",
    b")", b"\\", b'"', b"=>", b"/*", b"*/", b"<", b">", b"-1 ENOMEM (Cannot allocate memory)", b"?", b" = ?", b"&(0x",
    b"=ANY=[", b"@", b"nil", b"\x00", b"\xff", b"\x1b[31m", b"0x7fffffffffff", b"18446744073709551615", b"99999999",
    b"\\012", b"[continued]: ", b" ...", b"+++ exited with 0 +++", b"--- ", b"\r\n", b"\n", b"PROT_READ", b"1<<63",
    b"0xffffffffffffffff", b"-9223372036854775808", b"clone(", b"execve(", b" = 31256", b"[pid 31256] ",
    b"\xe2\x80\xae", b" (fail_nth: 3)", b"\n > /a(f(", b"+0x1) [0x12]", b" (inlined)", b"([unknown])", b"\n\t7f12 ",
    b"Process 9 attached", b"(INJECTED)",
]  # fmt: skip


def mutate(chance: random.Random, given: list[list[bytes]]) -> bytes:
    """An input near those whose lines are given: some of the lines, with bytes and pieces changed."""
    lines = chance.choice(given) if given else [b""]
    at = chance.randrange(len(lines))
    some = lines[at : at + chance.choice((1, 1, 1, 1, 1, 2, 2, 3, 8))]
    if chance.random() < 0.3:
        some.insert(chance.randrange(len(some) + 1), chance.choice(lines))
    data = bytearray(b"\n".join(some)[:LONGEST])
    for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(data) + 1)
        end = min(len(data), place + chance.choice((0, 1, 1, 2, 8, 40)))
        how = chance.random()
        if how < 0.35:
            data[place:end] = chance.choice(_PIECES)
        elif how < 0.55:
            data[place:end] = bytes(chance.randrange(256) for _ in range(end - place))
        elif how < 0.7:
            data[place:end] = b""
        elif how < 0.85:
            data[place:place] = data[place:end] * chance.choice((1, 2, 50))
        elif data:
            other = chance.randrange(len(data))
            data[place:end] = data[other : other + end - place + 3]
    if chance.random() < 0.001:
        data = data * 200
    return bytes(data)


class State:
    """How much has been done, in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "state.json"
        try:
            held = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            held = {}
        self.inputs: dict[str, int] = {target: int(held.get("inputs", {}).get(target, 0)) for target in TARGETS}
        self.findings: int = int(held.get("findings", 0))
        self.longest: float = float(held.get("longest", 0.0))

    def total(self) -> int:
        """The inputs of all targets and runs."""
        return sum(self.inputs.values())

    def save(self) -> None:
        """Write it, so that a run that is killed loses nothing but its last inputs."""
        held = {"inputs": self.inputs, "findings": self.findings, "longest": self.longest}
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(held, indent=2) + "\n", "utf-8")
        new.replace(self._path)

    def keep(self, target: str, data: bytes, error: BaseException) -> None:
        """Keep an input that is a finding."""
        self.findings += 1
        path = self.folder / f"finding-{self.findings}-{target}"
        path.write_bytes(data)
        print(f"{path}: {type(error).__name__}: {str(error)[:200]!r}", flush=True)


_within = False
"""An input is being read."""


def _alarm(_number: int, _frame: FrameType | None) -> None:
    if _within:
        raise TooSlow(f"more than {SECONDS} seconds")


def run_plain(state: State, goal: int, seconds: float) -> None:
    """Mutate seeds until the goal or the time is reached."""
    given = {target: [text.split(b"\n") for text in texts] for target, texts in seeds().items()}
    choices = [target for target in TARGETS for _ in range(_WEIGHTS.get(target, 5))]
    signal.signal(signal.SIGPROF, _alarm)
    began = time.monotonic()
    start = state.total()
    while state.total() < goal and time.monotonic() - began < seconds:
        chance = random.Random(state.total())
        for _ in range(_REPORT):
            target = chance.choice(choices)
            data = mutate(chance, given[target])
            _try(state, target, data)
        state.save()
        _report(state, goal, state.total() - start, time.monotonic() - began)


def _try(state: State, target: str, data: bytes) -> None:
    global _within
    before = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        _within = True
        one(target, data)
        _within = False
    except (Exception, TooSlow) as error:
        _within = False
        state.keep(target, data, error)
    state.longest = max(state.longest, time.process_time() - before)
    state.inputs[target] += 1


def _report(state: State, goal: int, done: int, took: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{state.total():,} of {goal:,} inputs, {done / took:,.0f} a second, {state.findings} findings, "
        f"longest {state.longest:.2f} s, {peak} MiB",
        flush=True,
    )


def run_atheris(state: State, goal: int, seconds: float) -> None:
    """Let atheris look for inputs that reach new code; its corpus is beside the state."""
    try:
        import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        sys.exit("atheris is not here: pip install atheris, or leave out --engine atheris")
    for name in [each for each in sys.modules if each.startswith(("vmalab.trace", "vmalab.live"))]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["vmalab.trace", "vmalab.live"]):
        give = importlib.import_module("tests.fuzz.parsers").one
    names = list(TARGETS)
    corpus = state.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for target, given in seeds().items():
        for place, data in enumerate(given):
            (corpus / f"seed-{target}-{place}").write_bytes(bytes([names.index(target)]) + data[:LONGEST])
    began = time.monotonic()
    start = state.total()

    saved = began

    def test(data: bytes) -> None:
        nonlocal saved
        if data:
            target = names[data[0] % len(names)]
            try:
                give(target, data[1:])
            except Exception as error:
                state.keep(target, data[1:], error)
            state.inputs[target] += 1
        if time.monotonic() - saved > SECONDS:
            # libFuzzer ends the process by itself.
            saved = time.monotonic()
            state.save()
            _report(state, goal, state.total() - start, saved - began)

    runs = max(goal - start, 1)
    options = [f"-runs={runs}", f"-max_total_time={int(seconds)}", f"-timeout={SECONDS}", "-max_len=4096",
               f"-rss_limit_mb={MEMORY >> 20}", "-verbosity=0", f"-artifact_prefix={state.folder}/"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], test)
    atheris.Fuzz()


def _arguments(given: list[str]) -> Any:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.parsers", description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=GOAL, help="how many inputs are to be seen in all, over all runs")
    parser.add_argument("--seconds", type=float, default=1e9, help="how long this run may take")
    parser.add_argument("--state", type=Path, default=STATE, help="the folder of the state and the findings")
    parser.add_argument("--engine", choices=("plain", "atheris"), default="plain")
    return parser.parse_args(given)


def main(given: list[str]) -> int:
    """Run to the goal; 1 if there are findings."""
    arguments = _arguments(given)
    resource.setrlimit(resource.RLIMIT_AS, (max(MEMORY, 1 << 45) if arguments.engine == "atheris" else MEMORY,) * 2)
    state = State(arguments.state)
    run = run_atheris if arguments.engine == "atheris" else run_plain
    try:
        run(state, arguments.inputs, arguments.seconds)
    except KeyboardInterrupt:
        print("interrupted; the next run goes on here", flush=True)
    finally:
        state.save()
    return 1 if state.findings else 0


def findings(folder: Path) -> Iterator[Path]:
    """The inputs that were kept."""
    return folder.glob("finding-*")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
