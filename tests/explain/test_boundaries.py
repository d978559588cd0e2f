"""Explaining a program that was written for it: the right reason for each pair of VMAs, and no other."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.programs import compile_program, record, vmalab

PROGRAM = Path(__file__).parent / "programs" / "boundaries.c"

EXPECTED = {
    "permissions": {"permissions"},
    "file-anonymous": {"file and anonymous memory"},
    "file-twice": {"the same file, opened twice"},
    "file-offset": {"file offset"},
    "policy": {"memory policy"},
    "locked": {"locked in memory", "locked on fault"},
    "sealed": {"sealed (mseal)"},
    "dontfork": {"not copied on fork (MADV_DONTFORK)"},
    "hugepage": {"huge-page advice (MADV_HUGEPAGE)"},
    "nohugepage": {"no huge pages (MADV_NOHUGEPAGE)"},
    "ksm": {"mergeable by KSM (MADV_MERGEABLE)"},
    "dontdump": {"not dumped (MADV_DONTDUMP)"},
    "wipeonfork": {"wiped on fork (MADV_WIPEONFORK)"},
    "sequential": {"read sequentially (MADV_SEQUENTIAL)"},
    "random": {"read at random (MADV_RANDOM)"},
    "uffd-missing": {"userfaultfd: missing", "registered with different userfaultfds"},
    "uffd-wp": {"userfaultfd: write-protect", "registered with different userfaultfds"},
    "uffd-two": {"registered with different userfaultfds"},
    "noreserve": {"committed memory (VM_ACCOUNT)", "no memory reserved (MAP_NORESERVE)"},
    "shared-private": {"shared", "shared mapping", "committed memory (VM_ACCOUNT)", "file and anonymous memory"},
    "shared-shared": {"different files"},
    "droppable": {
        "committed memory (VM_ACCOUNT)",
        "no memory reserved (MAP_NORESERVE)",
        "wiped on fork (MADV_WIPEONFORK)",
        "not dumped (MADV_DONTDUMP)",
        "droppable (MAP_DROPPABLE)",
    },
    "growsdown": {"grows down (MAP_GROWSDOWN)"},
    "anon-vma": {"written to apart (separate anon_vmas)"},
    "account": {"committed memory (VM_ACCOUNT)"},
    "anon-offset": {"anonymous offset (it was moved)"},
    "child": {"pages shared through fork"},
}
HIDDEN = {"policy", "uffd-two", "anon-vma", "anon-offset", "file-twice"}
"""What /proc does not show."""
UNFORKED = set(EXPECTED) - {"child"}


def explained(*arguments: str) -> dict[int, dict[str, Any]]:
    """What explain says, by the address of the boundary."""
    done = vmalab("explain", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return {boundary["addr"]: boundary for boundary in json.loads(done.stdout)["boundaries"]}


def printed(output: str) -> dict[str, int]:
    """The boundaries that the program made, by name."""
    lines = [line.split() for line in output.splitlines()]
    made = {name: int(addr, 16) for addr, name in lines if addr != "skip"}
    missing = [name for addr, name in lines if addr == "skip"]
    if missing:
        print("this kernel cannot make:", ", ".join(missing))
    assert len(made) >= 20
    assert made.keys() <= EXPECTED.keys()
    return made


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A recording of the program, and the boundaries that it made."""
    folder = tmp_path_factory.mktemp("boundaries")
    path = folder / "trace.jsonl"
    output = record(path, [compile_program(PROGRAM, folder)])
    return path, printed(output)


def test_every_boundary_has_exactly_its_reasons(trace: tuple[Path, dict[str, int]]) -> None:
    path, made = trace
    found = explained(str(path))
    for name, addr in made.items():
        if name in UNFORKED:
            assert {each["what"] for each in found[addr]["obstacles"]} == EXPECTED[name], name


def test_a_child_has_its_own_reason(trace: tuple[Path, dict[str, int]]) -> None:
    path, made = trace
    replayed = json.loads(vmalab("replay", "--json", str(path)).stdout)
    child = str(replayed["programs"][1]["pid"])
    assert {each["what"] for each in explained(str(path), "--pid", child)[made["child"]]["obstacles"]} == EXPECTED[
        "child"
    ]


def test_the_call_that_made_the_difference_is_named(trace: tuple[Path, dict[str, int]]) -> None:
    path, made = trace
    found = explained(str(path))
    calls = {
        name: found[made[name]]["obstacles"][0]["call"] for name in ("permissions", "policy", "sealed", "dontfork")
    }
    assert {name: call.split("(")[0] for name, call in calls.items()} == {
        "permissions": "mprotect",
        "policy": "mbind",
        "sealed": "mseal",
        "dontfork": "madvise",
    }
    for name, call in calls.items():
        assert f"{made[name]:#x}" in call


def test_the_replay_is_equal(trace: tuple[Path, dict[str, int]]) -> None:
    done = vmalab("replay", str(trace[0]))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_running_process_shows_what_proc_shows(tmp_path: Path) -> None:
    program = compile_program(PROGRAM, tmp_path)
    with subprocess.Popen([program, "wait"], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        try:
            lines = []
            while True:
                line = process.stdout.readline()
                lines.append(line)
                if re.search(r" child$", line):
                    break
            found = explained("--live", str(process.pid))
        finally:
            process.kill()
    for name, addr in printed("".join(lines)).items():
        if name not in UNFORKED or addr not in found:
            continue
        obstacles = found[addr]["obstacles"]
        if name in HIDDEN:
            assert [each["reason"] for each in obstacles] == ["UNKNOWN"], name
        else:
            assert {each["what"] for each in obstacles} == EXPECTED[name] - {
                "registered with different userfaultfds"
            }, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "--live", "4194303"], "there is no process 4194303"),
        (["explain"], "give either a trace FILE or --live PID"),
        (["why", "{trace}", "nowhere"], "nowhere is no address"),
        (["explain", "{trace}", "--pid", "4194303"], "there is no process 4194303 in this trace"),
        (["explain", "{trace}", "--at", "999999"], "there is no record 999999"),
        (["explain", "{trace}", "--at", "soon"], "soon is neither a record number nor end"),
        (["replay", "{trace}", "--at", "999999"], "there is no record 999999"),
        (["replay", "{trace}", "--maps", "--pid", "4194303"], "no process 4194303 is in the trace"),
    ],
)
def test_a_wrong_request_gets_one_line(trace: tuple[Path, dict[str, int]], arguments: list[str], message: str) -> None:
    done = vmalab(*[each.format(trace=trace[0]) for each in arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_story_of_an_address(trace: tuple[Path, dict[str, int]]) -> None:
    path, made = trace
    done = vmalab("why", str(path), hex(made["dontfork"]), "--json")
    story = json.loads(done.stdout)
    assert [line["what"].split(" ")[0] for line in story[:3]] == ["mapped", "split", "flags"]
    assert story[2]["call"].startswith("madvise(")
