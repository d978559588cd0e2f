"""Logs of the kinds that are found in reports of bugs: each becomes a trace that replays, or is refused in one line."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmalab.errors import InputError
from vmalab.live.snapshot import read_snapshot
from vmalab.trace.file import read_trace
from vmalab.trace.import_log import Imported, import_log
from vmalab.trace.records import Call, Exec, Exit, Fork, Lost, Record
from vmalab.trace.replay import Replay, replay_of

LOGS = Path(__file__).parent.parent / "data/logs"

IMPORTED = {
    # log: format, calls, programs, lines not understood, unknown results
    "perf-script-callchains.txt": ("perf-script", 5, 1, 0, 0),
    "perf-script-raw.txt": ("perf-script", 6, 1, 0, 2),
    "perf-trace-old.txt": ("perf-trace", 8, 1, 0, 1),
    "perf-trace-threads.txt": ("perf-trace", 8, 1, 0, 0),
    "strace-attached-jvm.txt": ("strace", 9, 1, 0, 3),
    "strace-cut-off.txt": ("strace", 6, 1, 1, 1),
    "strace-exec-in-thread.txt": ("strace", 6, 2, 0, 0),
    "strace-go-runtime.txt": ("strace", 14, 1, 0, 4),
    "strace-injected.txt": ("strace", 5, 1, 0, 0),
    "strace-old-spelling.txt": ("strace", 13, 2, 0, 0),
    "strace-redis-save.txt": ("strace", 11, 1, 0, 2),
    "strace-stderr-mixed.txt": ("strace", 4, 1, 5, 1),
    "strace-verbose-numbers.txt": ("strace", 16, 1, 0, 1),
    "strace-vfork-spawn.txt": ("strace", 9, 2, 0, 0),
    "syzkaller-log.txt": ("syzkaller", 7, 1, 2, 7),
    "syzkaller-uffd.txt": ("syzkaller", 14, 1, 0, 12),
}
REFUSED = {
    "refused-backtrace.txt": "is no log that can be imported",
    "refused-empty.txt": "is empty",
    "refused-perf.data": "give what perf script makes of it",
    "strace-32bit.txt": "only 64-bit programs are modelled",
    "strace-arm64.txt": "line 2: brk gave 0xaaaadc53d000, .* another architecture",
    "strace-only-a-table.txt": "is no log that can be imported",
}


def imported(tmp_path: Path, *names: str, **options: Any) -> tuple[Imported, list[Record], Replay]:
    """A log as a trace, its records, and its replay."""
    output = tmp_path / "out.jsonl"
    done = import_log([str(LOGS / name) for name in names], str(output), **options)
    return done, *replayed(output)


def replayed(path: Path) -> tuple[list[Record], Replay]:
    reader = read_trace(path)
    replay = replay_of(reader.header)
    records = []
    for record in reader:
        replay.step(record)
        records.append(record)
    assert reader.truncated is None
    replay.finish()
    return records, replay


def texts(tmp_path: Path, text: str, **options: Any) -> tuple[Imported, list[Record], Replay]:
    """The same of a text."""
    path = tmp_path / "log"
    path.write_text(text, "utf-8")
    return imported(tmp_path, str(path), **options)


def calls(records: list[Record], name: str = "") -> list[Call]:
    return [record for record in records if isinstance(record, Call) and name in ("", record.call)]


def test_every_log_is_listed() -> None:
    assert {path.name for path in LOGS.iterdir() if path.is_file()} == IMPORTED.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", sorted(IMPORTED))
def test_it_becomes_a_trace(name: str, tmp_path: Path) -> None:
    kind, count, programs, misread, unknown = IMPORTED[name]
    done, records, replay = imported(tmp_path, name)
    assert (done.format, done.calls, done.programs, done.misread) == (kind, count, programs, misread)
    assert len(calls(records)) == count
    assert [program.first for program in replay.programs] == [None] * len(replay.programs)
    assert sum(program.unknown for program in replay.programs) == unknown
    assert sum(sum(program.not_modelled.values()) for program in replay.programs) == 0
    assert any("mapped at first" in sentence for sentence in done.missing)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=REFUSED[name]) as caught:
        import_log([str(LOGS / name)], str(output))
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_files_of_ff_are_one_log(tmp_path: Path) -> None:
    done, records, replay = imported(tmp_path, "strace-ff/log.700", "strace-ff/log.701")
    assert [record.tid for record in records if isinstance(record, Fork)] == [701]
    assert (done.calls, done.unordered) == (11, 5)
    assert all(call.unordered for call in calls(records) if call.tid == 701)
    assert replay.programs[0].first is None
    # Read one after the other, the results are right: the thread ran while its maker waited.
    assert done.misread == 0


def test_lines_that_are_not_understood_are_shown_escaped(tmp_path: Path) -> None:
    text = "brk(NULL) = 0x1000000\n\x1b[31mred\u202e\n"
    text += "mmap(NULL, 8192, PROT_NEW, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f0000000000\n"
    text += "mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7efffffff000\n"
    done, records, _ = texts(tmp_path, text)
    assert [(each.line, each.text, each.why) for each in done.problems] == [
        (2, "\\x1b[31mred\\u202e", "not a line of strace"),
        (3, "mmap", "argument 3 of mmap is not known here"),
    ]
    lost = [record for record in records if isinstance(record, Lost)]
    assert [record.why for record in lost] == ["line 3: argument 3 of mmap is not known here"]


def test_what_is_known_is_compared_and_the_rest_is_unknown(tmp_path: Path) -> None:
    head = (
        'execve("./a", ["./a"], 0x7ffe0 /* 1 var */) = 0\nbrk(NULL) = 0x555555600000\n'
        "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7fbf000\n"
    )
    # Below what was mapped before: as the kernel chooses.  Elsewhere: nobody knows why.
    good = "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7fbe000\n"
    odd = "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7f00000\n"
    elsewhere = "mprotect(0x7ffff7ffc000, 8192, PROT_READ) = 0\n"
    wrong = "munmap(0x7ffff7fbe000, 4095) = -1 EINVAL (Invalid argument)\n"
    for text, expected in ((good, (0, 0)), (odd, (0, 1)), (elsewhere, (0, 1)), (good + wrong, (1, 0))):
        _, _, replay = texts(tmp_path, head + text)
        program = replay.programs[0]
        assert (program.mismatches, program.unknown) == expected, text
    _, _, replay = texts(tmp_path, head + odd)
    assert [(vma.start, vma.end) for vma in replay.machine.processes[1].vmas()] == [
        (0x7FFFF7F00000, 0x7FFFF7F01000),
        (0x7FFFF7FBF000, 0x7FFFF7FC1000),
    ]


def test_a_refusal_that_nothing_explains_is_unknown_and_changes_nothing(tmp_path: Path) -> None:
    text = (
        "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7fbf000\n"
        "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = -1 ENOMEM (no memory)\n"
        "mprotect(0x7ffff7fbf000, 4096, PROT_NONE) = -1 ENOMEM (no memory)\n"
    )
    _, _, replay = texts(tmp_path, text)
    program = replay.programs[0]
    assert (program.mismatches, program.unknown, program.vmas) == (0, 2, 1)


def test_the_first_maps_can_be_given(tmp_path: Path) -> None:
    shown = tmp_path / "maps"
    shown.write_text(
        "555555554000-555555555000 r--p 00000000 08:01 77                         /usr/bin/a\n"
        "555555556000-555555558000 rw-p 00001000 08:01 77                         /usr/bin/a\n"
        "7ffff7fc5000-7ffff7fff000 r-xp 00000000 08:01 99                         /usr/lib/ld.so\n"
    )
    log = "mprotect(0x555555556000, 4096, PROT_READ) = 0\nmprotect(0x555555553000, 4096, PROT_READ) = -1 ENOMEM (x)\n"
    found = read_snapshot(str(shown))
    assert found is not None
    assert not found.whole
    done, records, replay = texts(tmp_path, log, first={0: found.process})
    assert isinstance(records[0], Exec)
    assert len(records[0].vmas) == 3
    assert replay.programs[0].unknown == 1, "the hole is in no list: it may have been filled since"
    assert len(replay.machine.processes[1].vmas()) == 4
    assert not any("--maps" in sentence for sentence in done.missing)


def test_ends_and_limits(tmp_path: Path) -> None:
    text = (
        '5 execve("/bin/a", ["a"], 0x7ffe0 /* 1 var */) = 0\n'
        "5 prlimit64(0, RLIMIT_AS, {rlim_cur=8192*1024, rlim_max=RLIM64_INFINITY}, NULL) = 0\n"
        "5 mmap(NULL, 16777216, PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = -1 ENOMEM (Cannot allocate memory)\n"
        "5 +++ killed by SIGKILL +++\n"
    )
    _, records, replay = texts(tmp_path, text)
    assert [(record.code, record.signal) for record in records if isinstance(record, Exit)] == [(None, 9)]
    assert replay.programs[0].unknown == 0, "the limit is in the log, so the refusal is predicted"


def test_what_strace_says_besides(tmp_path: Path) -> None:
    """Dumps of what is read and written (-e read=3), and a second half that does not say what it is (-z)."""
    text = (
        '5 read(3, "\\177ELF"..., 20) = 20\n'
        " | 00000  7f 45 4c 46 02 01 01 00  00 00 00 00 00 00 00 00  .ELF............ |\n"
        " | 00010  03 00 3e 00                                       ..>.             |\n"
        "5 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD, stack=0x7f4} <unfinished ...>\n"
        " => {parent_tid=[6]}, 88)           = 6\n"
        "6 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7fbf000\n"
    )
    done, records, _ = texts(tmp_path, text)
    assert (done.misread, done.programs) == (0, 1)
    assert done.passed == {"lines of what was read or written": 2}
    assert [(call.pid, call.tid) for call in calls(records)] == [(5, 6)]


def test_a_thread_that_ends_before_the_log_tells_who_made_it(tmp_path: Path) -> None:
    text = (
        "5 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD, stack=0x7f4}, 88 <unfinished ...>\n"
        "6 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7fbf000\n"
        "6 +++ exited with 0 +++\n"
        "5 <... clone3 resumed> => {parent_tid=[0]}) = 6\n"
        "5 munmap(0x7ffff7fbf000, 8192) = 0\n"
    )
    done, records, _ = texts(tmp_path, text)
    assert (done.misread, done.programs) == (0, 1)
    assert [(made.pid, made.tid) for made in records if isinstance(made, Fork)] == [(5, 6)]
    assert [(call.pid, call.tid) for call in calls(records)] == [(5, 6), (5, 5)]


def test_a_list_of_vmas_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a list of VMAs, and no log: vmalab explain reads it"):
        texts(tmp_path, "555555554000-555555555000 r--p 00000000 08:01 77                         /usr/bin/a\n")


def test_an_editor_may_have_marked_the_text(tmp_path: Path) -> None:
    done, _, _ = texts(tmp_path, "\ufeffbrk(NULL) = 0x555555600000\r\nbrk(0x555555621000) = 0x555555621000\r\n")
    assert (done.calls, done.misread) == (2, 0)


def test_what_perf_trace_says_in_words(tmp_path: Path) -> None:
    """Flags of a descriptor are no result that matters; a log of faults alone is one of perf trace."""
    fault = "     0.000 ( 0.000 ms): a/7 minfault [f+0x40] => 0x7f57275ae110 (?k)\n"
    text = (
        "     0.010 ( 0.001 ms): a/7 fcntl(fd: 1</dev/null>, cmd: GETFD)      = CLOEXEC\n"
        "     0.020 ( 0.004 ms): a/7 brk()                                   = 0x555555600000\n"
    )
    done, records, _ = texts(tmp_path, fault + text)
    assert (done.misread, done.others, done.calls) == (0, 1, 1)
    assert not any(isinstance(record, Lost) for record in records)
    with pytest.raises(InputError, match="no call in this log is one that changes memory"):
        texts(tmp_path, fault)


def test_it_may_be_packed_or_come_from_a_pipe(tmp_path: Path) -> None:
    name = "strace-go-runtime.txt"
    raw = (LOGS / name).read_bytes()
    packed = tmp_path / "log.gz"
    packed.write_bytes(gzip.compress(raw))
    assert import_log([str(packed)], str(tmp_path / "a.jsonl")).calls == 14
    packed.write_bytes(gzip.compress(raw)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        import_log([str(packed)], str(tmp_path / "b.jsonl"))
    command = [sys.executable, "-m", "vmalab", "import", "-", "-o", str(tmp_path / "c.jsonl"), "--json"]
    done = subprocess.run(command, input=raw, capture_output=True, check=True)
    assert json.loads(done.stdout)["calls"] == 14
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_a_format_that_is_given_is_believed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"33 of 33 lines are not of perf trace; line 1: not a line of perf trace"):
        imported(tmp_path, "strace-go-runtime.txt", kind="perf-trace")
    with pytest.raises(InputError, match="several files are one log with strace -ff alone"):
        imported(tmp_path, "perf-trace-old.txt", "perf-trace-threads.txt")
