"""The ledger of a program that was really recorded: which page each process has, and where they part."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.live.conftest import record_command
from tests.programs import compile_program, record, vmalab
from vmalab.cli import main
from vmalab.explain.trace_ledger import Where, where
from vmalab.live import bpf_record

PROGRAMS = Path(__file__).parent / "programs"
AT = 0x10000000


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program partings.c, recorded with BPF."""
    reason = bpf_record.why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("partings")
    path = folder / "trace.jsonl.zst"
    command = record_command(path, [compile_program(PROGRAMS / "partings.c", folder)], recorder="bpf")
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path


def _ledger(*arguments: str) -> str:
    """What the command prints, run within this process."""
    done = CliRunner().invoke(main, ["ledger", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def _pids(steps: list[dict[str, object]]) -> dict[str, str]:
    """Letters for the two processes, in the order of their numbers."""
    found = {re.split(r"\W", str(step["text"]))[0] for step in steps}
    return {str(pid): name for pid, name in zip(sorted(found, key=int), "PC", strict=False)}


def _told(*arguments: str) -> list[tuple[str, str, list[str]]]:
    """The steps from the fork on: what was done, what came of it, and what each process sees then."""
    steps = json.loads(_ledger("--json", *arguments))["steps"]
    names = _pids(steps)

    def name(text: str) -> str:
        return re.sub(r"\d+", lambda found: names.get(found[0], found[0]), text)

    return [
        (
            name(step["text"]),
            name(step["said"]),
            [f"{name(each['viewer'])} {each['frame']} {name(', '.join(each['marks']))}" for each in step["sights"]],
        )
        for step in steps
    ]


def test_a_page_that_both_write_to(trace: Path) -> None:
    told = _told("--page", f"{AT:x}", str(trace))
    assert [(said, sees) for _, said, sees in told] == [
        ("", ["P - not touched yet"]),
        ("", ["P #1 writable, exclusive"]),
        ("", ["P #1 shared with C", "C #1 shared with P"]),
        ("copy-on-write: C gets a copy of #1", ["P #1 ", "C #2 writable, exclusive"]),
        ("", ["P #1 "]),
        ("nobody but P has #1 any more: it is written to in place", ["P #1 writable, exclusive"]),
        ("", []),
    ]
    assert [text.split("(")[0].split(" at ")[0] for text, _, _ in told] == [
        *("P: mmap", "P: write fault", "C: fork: process C of P", "C: write fault", "C: exit with code 0"),
        *("P: write fault", "P: munmap"),
    ]


def test_a_page_that_the_child_gives_up_and_one_of_zeros(trace: Path) -> None:
    _, _, fork, discard, write, *_ = _told("--page", f"{AT + 4096:x}", str(trace))
    assert fork[2] == ["P #1 shared with C", "C #1 shared with P"]
    assert discard[0] == f"C: madvise({AT + 4096:#x}, 4096, MADV_DONTNEED) = 0"
    assert discard[2] == ["P #1 ", "C - nothing there"]
    assert write[2] == ["P #1 "], "the child has gone"
    zeros = _told("--page", f"{AT + 0x2000:#x}-{AT + 0x3000:#x}", str(trace))
    assert zeros[2][2] == ["P zero ", "C zero "]
    assert zeros[3][1:] == (
        "C gets a page of its own in place of the page of zeros",
        ["P zero ", "C #1 writable, exclusive"],
    )


def test_without_a_choice_those_that_parted_are_shown(trace: Path) -> None:
    found = json.loads(_ledger("--json", "--most", "100", str(trace)))
    shown = {page["address"]: page for page in found["pages"]}
    assert shown[hex(AT)]["copies"] == 1
    assert hex(AT + 4096) not in shown, "nobody copied it"
    assert not found["parted"]
    assert all(each["content"] is None for step in found["steps"] for each in step["sights"])
    assert any("pinned" in note for note in found["notes"])
    few = _ledger("--most", "1", str(trace))
    assert f"page {AT:x} in {AT:x}-{AT + 0x8000:x}: process" in few
    assert f"... and {len(shown) - 1} more pages: --most shows more" in few


def test_the_name_of_a_vma_chooses_and_what_could_be_chosen_is_said(trace: Path) -> None:
    stack = json.loads(_ledger("--json", "--page", "[stack]", str(trace)))
    assert {page["name"] for page in stack["pages"]} == {"[stack]"}
    nothing = _ledger("--page", "[nothing]", str(trace))
    assert "no touched page is meant; --page can choose among:" in nothing
    assert re.search(rf"{AT:x}-{AT + 0x8000:x} +3 pages", nothing)


def test_standard_input(trace: Path) -> None:
    command = [sys.executable, "-m", "vmalab", "ledger", "--page", f"{AT:x}", "-"]
    done = subprocess.run(command, input=trace.read_bytes(), capture_output=True, check=False, timeout=60)
    assert done.stdout.decode() == _ledger("--page", f"{AT:x}", str(trace))
    script = subprocess.run(command[:-3] + ["-"], input=b"P: map a 1\n", capture_output=True, check=False, timeout=60)
    assert script.stdout.decode().startswith("  1  P: map a 1\n")
    wrong = subprocess.run(command, input=trace.read_bytes()[:20], capture_output=True, check=False, timeout=60)
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert wrong.stderr.decode().startswith("vmalab: standard input")


def test_a_trace_without_each_fault_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    record(path, ["true"])
    done = vmalab("ledger", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not hold each fault (faults: at-calls)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--page", "3000-1000"], "the range is empty"),
        (["--page", "1000-7f0000000000"], "more than 1,048,576 pages"),
        (["--page", ""], "give an address"),
        (["--pid", "1"], "they do not go with a script"),
    ],
)
def test_wrong_requests(arguments: list[str], said: str, tmp_path: Path) -> None:
    script = tmp_path / "a.ledger"
    script.write_text("P: map a 1\n")
    done = vmalab("ledger", *arguments, str(script))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") <= 4


def test_no_such_process_or_file(trace: Path) -> None:
    done = vmalab("ledger", "--pid", "1", str(trace))
    assert done.returncode == 2
    assert "process 1 has touched no page in this trace; these have: " in done.stderr
    gone = vmalab("ledger", "/nonexistent\x1b")
    assert (gone.returncode, gone.stderr) == (
        2,
        "vmalab: /nonexistent\\x1b: cannot be read: No such file or directory\n",
    )


def test_where() -> None:
    assert where("1234") == Where(0x1000, 0x2000)
    assert where("0x1fff-3000") == Where(0x1000, 0x3000)
    assert where("libc.so.6").has(0, "/usr/lib/libc.so.6")
    assert not where("[heap]").has(0, "")
