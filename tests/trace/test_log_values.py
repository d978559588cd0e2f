"""Values as strace, perf and syzkaller write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmalab.trace import syzkaller
from vmalab.trace.constants import NAMES, evaluate
from vmalab.trace.import_log import FORMATS
from vmalab.trace.logs import Event, Family, LogCall, LogFault, LogTask, Tally, Value, lines_of
from vmalab.trace.strace_values import Unreadable, read_arguments, unescape


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("0600", 0o600),
        ("0x10", 16),
        ("-1", -1),
        ("PROT_READ|PROT_WRITE", 3),
        ("MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT", 0x22 | 0x40000 | 21 << 26),
        ("8192*1024", 8 << 20),
        ("IPC_CREAT|0600", 0o1600),
        ("RLIM64_INFINITY", (1 << 64) - 1),
        ("MAP_NO_SUCH", None),
        ("", None),
        ("1<<64", None),
        ("PROT_READ|", None),
        ("0x1ffffffffffffffff", None),
    ],
)
def test_expressions(text: str, value: int | None) -> None:
    assert evaluate(text) == value


def test_names_without_their_prefix() -> None:
    assert evaluate("READ|WRITE", "PROT_") == 3
    assert evaluate("NONE", "PROT_") == 0
    assert evaluate("CWD", "AT_FD") == -100
    assert evaluate("PROT_READ", "PROT_") == 1


@given(st.lists(st.sampled_from(sorted(NAMES)), min_size=1, max_size=6))
def test_every_name_is_known(names: list[str]) -> None:
    value = 0
    for name in names:
        value |= NAMES[name]
    assert evaluate("|".join(names)) == value


def numbers(text: str) -> list[int | None]:
    return [value.number for value in read_arguments(text)]


def test_arguments_of_strace() -> None:
    assert numbers("NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE, 3</a (b), c>, 0x1000") == [0, 8192, 3, 2, 3, 4096]
    assert numbers("0x3 /* PROT_READ|PROT_WRITE */, 0x200 /* IPC_CREAT */|0600") == [3, 0o1600]
    assert numbers("makedev(0x8, 0x1), ~[RTMIN RT_1]") == [None, None]
    fd, char, tcp = read_arguments("4</memfd:a b>(deleted), 0</dev/pts/0<char 136:0>>, 5<TCP:[1.2.3.4:5->6.7.8.9:10]>")
    assert (fd.number, fd.path) == (4, "/memfd:a b")
    assert (char.number, char.path) == (0, "/dev/pts/0<char 136:0>")
    assert (tcp.number, tcp.path) == (5, "TCP:[1.2.3.4:5->6.7.8.9:10]")
    (cwd,) = read_arguments("-100 /* AT_FDCWD */</tmp>")
    assert (cwd.number, cwd.path) == (-100, "/tmp")


def test_structures_of_strace() -> None:
    (clone, size) = read_arguments("{flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD, ...} => {parent_tid=[7]}, 88")
    flags = clone.field("flags")
    assert flags is not None
    assert (flags.number, clone.cut, size.number) == (0x4100, True, 88)
    (ranges,) = read_arguments('[{iov_base=0x1000, iov_len=4096}, {iov_base="a"..., iov_len=5}, ...]')
    assert ranges.cut
    assert ranges.items is not None
    assert [each.field("iov_len") for each in ranges.items] == [Value(number=4096), Value(number=5)]
    (named,) = read_arguments("child_stack=NULL")
    assert named.field("child_stack") == Value(number=0)
    (left_out,) = read_arguments("...")
    assert (left_out.number, left_out.cut) == (None, True)


@pytest.mark.parametrize("text", ['"a', "{1", "[1, ", "1, , 2", "(", "3<a", "/* a", "{" * 40, "a b", "[1 /* "])
def test_what_is_no_argument(text: str) -> None:
    with pytest.raises(Unreadable):
        read_arguments(text)


def test_strings() -> None:
    assert unescape(r"a\"b\\c") == 'a"b\\134c'
    assert unescape(r"\303\251\x41\n\0") == "éA\\012\\000"
    assert unescape("\x1b") == "\\033"
    (cut,) = read_arguments(r'"abc\"d"...')
    assert (cut.text, cut.cut) == ('abc"d', True)


def events(kind: str, text: str) -> tuple[list[Event], Tally]:
    """The events of a text, and what was counted."""
    family, tally = Family(), Tally()
    FORMATS[kind].look_through(lines_of([text.encode()]), family)
    return list(FORMATS[kind].read(lines_of([text.encode()]), family, tally)), tally


def test_results_of_strace() -> None:
    text = (
        "munmap(0x1000, 1) = 0 <0.000010>\n"
        "munmap(0x1000, 1) = -1 EINVAL (Invalid argument) <0.1>\n"
        "munmap(0x1000, 1) = -1 (errno 22)\n"
        "munmap(0x1000, 1)                   = ?\n"
        "munmap(0x1000, 1) = ? ERESTARTNOINTR (To be restarted)\n"
        "munmap(0x1000, 1) = -1 EWHAT (Unknown)\n"
        "munmap(0x1000, 1) = whatever\n"
    )
    found, tally = events("strace", text)
    assert [event.ret for event in found if isinstance(event, LogCall)] == [0, -22, -22, None]
    assert [(each.line, each.why) for each in tally.problems] == [
        (6, "the result is none that strace prints"),
        (7, "the result is none that strace prints"),
    ]
    assert sum(isinstance(event, LogTask) and event.what == "lost" for event in found) == 2


def test_halves_of_strace() -> None:
    text = (
        "7 mmap(NULL, 4096, PROT_READ,  <unfinished ...>\n"
        "8 <... mprotect resumed>) = 0\n"
        "7 <... mmap resumed>MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000\n"
        "7 <... futex resumed> ) = 0\n"
    )
    found, tally = events("strace", text)
    calls = [event for event in found if isinstance(event, LogCall) and not event.unfinished]
    assert [[value.number for value in call.args] for call in calls] == [[0, 4096, 1, 0x22, -1, 0]]
    assert [each.why for each in tally.problems] == ["the first half of the call is missing"]
    assert tally.others == 1


def test_arguments_of_perf_trace() -> None:
    text = (
        "  1.0 ( 0.0 ms): a b/c/7 mmap(addr: 0x1000, len: 4096, prot: READ|EXEC, flags: PRIVATE|FIXED, "
        "fd: 3</x, y>, off: 8) = 0x1000\n"
        "  1.0 ( 0.0 ms): a/7 madvise(start: 0x1000, len_in: 4096, behavior: MADV_DONTNEED) = 0\n"
        "  1.0 ( 0.0 ms): a/7 brk() = 0x2000\n"
    )
    found, tally = events("perf-trace", text)
    calls = [event for event in found if isinstance(event, LogCall)]
    assert [[value.number for value in call.args] for call in calls] == [
        [0x1000, 4096, 5, 0x12, 3, 8],
        [0x1000, 4096, 4],
        [0],
    ]
    assert (calls[0].tid, calls[0].args[4].path, tally.misread) == (7, "/x, y", 0)


def test_events_of_perf_script() -> None:
    text = (
        "a b 9/11 [001] 1.5: raw_syscalls:sys_enter: NR 11 (1000, 2000, 0, 0, 0, 0)\n"
        "a b 9/11 [001] 1.6: raw_syscalls:sys_exit: NR 11 = -22\n"
        "a 9 1.7: exceptions:page_fault_user: address=0x5000 ip=0x1 error_code=0x7\n"
        "a 9 1.8: syscalls:sys_enter_mprotect: start: 0x00001000, len: 0x00001000, prot: 0x00000001\n"
        "a 9 1.9: syscalls:sys_exit_mprotect: 0xfffffffffffffff3\n"
        "swapper 0 [000] 0.0: PERF_RECORD_LOST lost 5\n"
    )
    found, tally = events("perf-script", text)
    assert [event.ret for event in found if isinstance(event, LogCall) and not event.unfinished] == [-22, -13]
    assert [event for event in found if isinstance(event, LogFault)] == [LogFault(3, 9, 0x5000, True)]
    assert [event.what for event in found if isinstance(event, LogTask)] == ["group", "lost"]
    assert tally.misread == 0


def test_values_of_syzkaller() -> None:
    text = (
        "r0 = openat(0xffffffffffffff9c, &AUTO='./a\\x00', 0x42, 0x1ff)\n"
        "mmap(&(0x7f0000001000/0x2000)=nil, 0x2000, 0x3, 0x11, r0, 0x0) (async, fail_nth: 3)\n"
        "madvise(&(0x7fffffffe000/0x1000)=nil, 0x1000, @adv=0x4)\n"
        "munmap(&(0x7f0000001000/0x2000)=nil, 0x2000) (what: 1)\n"
    )
    found, tally = events("syzkaller", text)
    calls = [event for event in found if isinstance(event, LogCall)][3:]
    assert [call.ret for call in calls] == [3, None, None, None]
    assert [value.number for value in calls[1].args] == [syzkaller.ARENA + 0x1000, 0x2000, 3, 0x11, 3, 0]
    assert [value.number for value in calls[2].args] == [0x7FFFFFFFE000, 0x1000, 4]
    assert [(each.line, each.why) for each in tally.problems] == [(4, "what stands behind the call is not known")]


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_lines_are_the_same_however_they_are_cut(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert list(lines_of(parts)) == list(lines_of([whole]))
