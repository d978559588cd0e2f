"""The parsers under random input: what they refuse they refuse in one line, and they end."""

import random
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import parsers
from vmalab.trace import perf, strace_values, syzkaller
from vmalab.trace.constants import evaluate
from vmalab.trace.logs import MAX_LINE

SECONDS = 3
"""Of the processor: a quarter of the longest line takes some milliseconds, or minutes."""

PIECES = st.one_of(
    st.sampled_from([piece.decode("utf-8", "surrogateescape") for piece in parsers._PIECES]),
    st.text(max_size=5),
    st.sampled_from(["mmap(", ", ", "PROT_READ", "MAP_PRIVATE|MAP_ANONYMOUS", ") = 0", "execve(", "r0 = ", "0x1000"]),
)
TEXTS = st.lists(PIECES, max_size=20).map("".join)


@pytest.mark.parametrize("target", sorted(parsers.TARGETS))
@given(text=TEXTS)
def test_any_text(target: str, text: str) -> None:
    parsers.one(target, text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("target", sorted(parsers.TARGETS))
def test_changed_seeds(target: str) -> None:
    given_lines = [text.split(b"\n") for text in parsers.seeds()[target]]
    assert given_lines
    chance = random.Random(5)
    for _ in range(150):
        parsers.one(target, parsers.mutate(chance, given_lines))


@pytest.mark.parametrize("target", sorted(parsers.TARGETS))
@pytest.mark.parametrize(
    "piece", [" ", "(", ")", "<", "a(", "{", "[", "\\", '"', ") ", "= ", "&", "a|", "_", "(a", "0", ": ", "]: ", "-"]
)
def test_long_repetitions_take_no_time(target: str, piece: str) -> None:
    """No expression backtracks: a line of the greatest length takes a moment, also behind a good beginning."""
    long = piece * (MAX_LINE // len(piece) // 4)
    for head in ("", "1 mmap(", "mmap(NULL, 1) = 1 ", "0.1 ( 0.1 ms): a/1 mmap(", "mmap(0x1) ", "a 1 [0] 1.0: a:b: "):
        began = time.process_time()
        parsers.one(target, (head + long).encode())
        assert time.process_time() - began < SECONDS


@given(TEXTS)
def test_expressions_and_values(text: str) -> None:
    value = evaluate(text)
    assert value is None or -(1 << 63) <= value < 1 << 64
    with suppress(strace_values.Unreadable):
        strace_values.read_arguments(text)
    syzkaller.looks_like_program(text)
    perf.looks_like_trace(text)
    perf.looks_like_script(text)


FOUND = {
    "a length beyond all memory": (
        "perf-trace",
        " 1.2 ( 0.0 ms): a/5 mmap(len: 0xffffffffffffffff, flags: PRIVATE|ANONYMOUS) = 0x7f7a1ddc2000",
    ),
    "a mapping of nothing": (
        "strace",
        "1 mmap(NULL, 0, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f7a1ddc2000  ",
    ),
    "an argument that is missing": (
        "strace",
        '7 memfd_create("a", 0) = 9\n7 fcntl(9, F_ADD_SEALS) = 0\n 7 brk(0) = 0x1000 ',
    ),
    "a process made again by its thread": (
        "strace",
        "[pid 2] dup2(7, 1) = 1\n[pid 1] <... clone resumed>) = 2\n[pid 2] +++ exited with 0 +++\n"
        '[pid 1] <... clone resumed>) = 2\n[pid 2] execve("/bin/sh", ["/b09"], 0x6) = 0',
    ),
    "many letters behind a call": ("syzkaller", f"mlock(&(0x7f0000ffd000)=nil, 0x3000) ({'async' * 30}"),
}


@pytest.mark.parametrize("name", sorted(FOUND))
def test_what_fuzzing_has_found(name: str) -> None:
    target, text = FOUND[name]
    for padding in range(4):
        parsers.one(target, (text + " " * padding).encode())


def test_a_run_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.parsers", "--state", str(tmp_path), "--inputs"]
    root = Path(__file__).parent.parent.parent
    for goal, shown in (("5000", "5,000 of 5,000"), ("5000", "")):
        done = subprocess.run([*command, goal], cwd=root, capture_output=True, text=True, check=False, timeout=300)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.match(re.escape(shown), done.stdout), done.stdout
    assert parsers.State(tmp_path).total() == 5000
