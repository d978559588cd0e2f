"""Stacks in logs: they stand below the line of a call, and go with it into the trace."""

import time
from pathlib import Path

import pytest

from tests.trace.test_import_log import calls, imported, texts
from vmalab.trace.logs import MAX_FRAMES, MAX_LINE
from vmalab.trace.perf import _frame, _script_frame, _trace_frame
from vmalab.trace.records import Call, Fault, Record, Stack
from vmalab.trace.strace import frame_of

HEAD = 'execve("./a", ["./a"], 0x7ffe0 /* 1 var */) = 0\n > /usr/lib/ld.so(_start+0x0) [0x1ab70]\n'
MMAP = "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7fbf000\n"
NEXT = "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7fbe000\n"
FRAMES = " > /usr/lib/libc.so.6(__mmap+0x13) [0x11ba33]\n > /usr/bin/a() [0x4021f]\n"


def stack_of(records: list[Record], made: Call | Fault) -> list[str]:
    """The frames of a call or fault; the record of the stack stands before it."""
    known: dict[int, list[str]] = {}
    for record in records:
        if isinstance(record, Stack):
            assert record.id not in known
            known[record.id] = record.frames
        elif record is made:
            assert made.stack is not None
            return known[made.stack]
    raise AssertionError(made)


def test_stacks_of_strace(tmp_path: Path) -> None:
    other = "getpid() = 7\n > /usr/bin/a() [0x1]\n"
    done, records, _ = texts(tmp_path, HEAD + "brk(NULL) = 0x555555600000\n" + other + MMAP + FRAMES + NEXT + FRAMES)
    assert (done.calls, done.with_stack, done.misread, done.lines) == (3, 2, 0, 11)
    assert done.passed == {"lines of stacks of other calls": 1}
    one, two = calls(records, "mmap")
    assert calls(records, "brk")[0].stack is None
    assert one.stack == two.stack
    assert stack_of(records, one) == ["__mmap+0x13 (/usr/lib/libc.so.6)", "0x4021f (/usr/bin/a)"]


def test_a_call_in_two_halves_has_the_stack_below_the_second(tmp_path: Path) -> None:
    text = (
        "7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0 <unfinished ...>\n"
        "8 getpid() = 7\n > /other() [0x5]\n"
        "7 <... mmap resumed>) = 0x7ffff7fbf000\n"
    )
    _, records, _ = texts(tmp_path, text + FRAMES)
    (call,) = calls(records)
    assert stack_of(records, call)[0].startswith("__mmap")


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        (" > /tmp/a b(c)/lib.so(f(int, char const*)+0x1) [0x12]", "f(int, char const*)+0x1 (/tmp/a b(c)/lib.so)"),
        (" > /a\\033[31m(f+0x1) [0x12]", "f+0x1 (/a\\134033[31m)"),
        (" > unexpected_backtracing_error [0x7ffe0]", "0x7ffe0"),
    ],
)
def test_odd_frames(line: str, frame: str, tmp_path: Path) -> None:
    _, records, _ = texts(tmp_path, MMAP + line + "\n")
    assert stack_of(records, calls(records)[0]) == [frame]


@pytest.mark.parametrize("text", ["+0x1(", "(", ")", "()(", "[0x1", "[0x1]", "a (", "(a) ", " > ", "f 0x1 + "])
def test_a_long_line_takes_no_longer_than_it_is_long(text: str, tmp_path: Path) -> None:
    """The parts of a frame may begin and end in many places; each is looked at once."""
    long = text * (MAX_LINE // len(text))
    began = time.process_time()
    for line in (f" > {long}", f" > {long}x", f"  {long}", f"  {long}x", f"  {long})", f" > {long}) [0x1]"):
        for frame in (frame_of(line), _trace_frame(line), _script_frame(line)):
            assert frame is None or isinstance(frame, str)
    assert time.process_time() - began < 5


def test_a_stack_without_end_is_cut_off(tmp_path: Path) -> None:
    done, records, _ = texts(tmp_path, MMAP + " > /a(f+0x1) [0x12]\n" * 1000)
    assert (len(stack_of(records, calls(records)[0])), done.lines) == (MAX_FRAMES, 1001)


def test_stacks_of_separate_files(tmp_path: Path) -> None:
    thread = "clone(child_stack=0x7f1, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD|CLONE_SIGHAND) = 701\n"
    (tmp_path / "log.700").write_text(
        "1700000000.000001 " + thread + " > /a(clone+0x1) [0x1]\n1700000000.000003 " + MMAP + FRAMES
    )
    (tmp_path / "log.701").write_text("1700000000.000003 " + NEXT + " > /a(g+0x1) [0x12]\n")
    _, records, _ = imported(tmp_path, str(tmp_path / "log.700"), str(tmp_path / "log.701"))
    assert [stack_of(records, call)[0] for call in calls(records)] == ["__mmap+0x13 (/usr/lib/libc.so.6)", "g+0x1 (/a)"]


def test_stacks_of_perf(tmp_path: Path) -> None:
    done, records, _ = imported(tmp_path, "perf-script-callchains.txt")
    assert done.with_stack == 4
    big = next(call for call in calls(records, "mmap") if (call.ret or 0) < 0)
    assert stack_of(records, big) == ["mmap64+0x13 (/usr/lib/x86_64-linux-gnu/libc.so.6)", "CreateAnonymousSegment"]
    (fault,) = [record for record in records if isinstance(record, Fault) and record.stack]
    assert stack_of(records, fault) == ["_dl_start+0x1a9 (/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2)"]


def test_stacks_of_perf_trace(tmp_path: Path) -> None:
    text = (
        "     0.000 ( 0.004 ms): a/7 brk() = 0x555555600000\n"
        "                                       __brk+0x7 (/usr/lib/libc.so.6)\n"
        "                                       [0x1234] (/usr/bin/a)\n"
        "     0.100 ( 0.004 ms): a/7 brk(brk: 0x555555621000) = 0x555555621000\n"
    )
    _, records, _ = texts(tmp_path, text)
    one, two = calls(records)
    assert stack_of(records, one) == ["__brk+0x7 (/usr/lib/libc.so.6)", "0x1234 (/usr/bin/a)"]
    assert two.stack is None


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        ("7f12 std::map<int, int>::find(int const&)+0x1 (/a b)", "std::map<int, int>::find(int const&)+0x1 (/a b)"),
        ("7f12 [unknown] (/usr/bin/a)", "0x7f12 (/usr/bin/a)"),
        ("0 [unknown] ([unknown])", ""),
        ("ffffffff81234567 do_syscall_64+0x1 ([kernel.kallsyms])", ""),
        ("7f12 f (inlined)", "f"),
    ],
)
def test_frames_of_perf(line: str, frame: str) -> None:
    assert _frame(line) == frame
