"""Explaining a program that was written for it: the right reason for each pair of VMAs, and no other."""

import json
import os
import re
import subprocess
import sys
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
    "policies": {"memory policy"},
    "locked": {"locked in memory"},
    "locked-on-fault": {"locked in memory", "locked on fault"},
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
    "name": {"anonymous name"},
    "key": {"protection key"},
    "two-things": {"not copied on fork (MADV_DONTFORK)", "not dumped (MADV_DONTDUMP)"},
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
    "executable": {"permissions"},
    "anon-offset": {"anonymous offset (it was moved)"},
    "child": {"pages shared through fork"},
}
HIDDEN = {"policy", "policies", "uffd-two", "anon-vma", "anon-offset", "file-twice"}
"""What /proc does not show."""
UNFORKED = set(EXPECTED) - {"child"}
MADE_BY = {
    "permissions": "mprotect",
    "file-anonymous": "mmap",
    "file-twice": "mmap",
    "file-offset": "mmap",
    "policy": "mbind",
    "policies": "mbind",
    "locked": "mlock",
    "locked-on-fault": "mlock2",
    "sealed": "mseal",
    "uffd-missing": "ioctl",
    "uffd-wp": "ioctl",
    "uffd-two": "ioctl",
    "name": "prctl",
    "key": "pkey_mprotect",
    "noreserve": "mmap",
    "shared-private": "mmap",
    "shared-shared": "mmap",
    "droppable": "mmap",
    "growsdown": "mmap",
    "anon-vma": "madvise",
    "account": "mmap",
    "executable": "mmap",
    "anon-offset": "mremap",
}
"""The call that made the difference; madvise for all others.  A write is told by the call it was seen at."""


def explained(*arguments: str) -> dict[int, dict[str, Any]]:
    """What explain says, by the address of the boundary."""
    done = vmalab("explain", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return {boundary["addr"]: boundary for boundary in json.loads(done.stdout)["boundaries"]}


def printed(output: str) -> dict[str, int]:
    """The boundaries that the program made, by name."""
    lines = [line.split() for line in output.splitlines()]
    made = {name: int(addr, 16) for addr, name in lines if addr not in ("skip", "merged")}
    missing = [name for addr, name in lines if addr == "skip"]
    assert "merged" not in output, "the kernel has merged what was to be a boundary"
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
    for name, addr in made.items():
        if name in UNFORKED:
            calls = {each["call"] for each in found[addr]["obstacles"]}
            assert {call.split("(")[0] for call in calls} == {MADE_BY.get(name, "madvise")}, name
            assert all(f"{addr - 0x2000:#x}" in call or f"{addr:#x}" in call or "ioctl" in call for call in calls), name


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
        if name not in UNFORKED:
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
        (["explain"], "give either a FILE or --live PID"),
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


def test_a_copy_of_smaps_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "smaps"
    path.write_bytes(Path("/proc/self/smaps").read_bytes())
    found = explained(str(path))
    assert found
    assert all(each["record"] is None for boundary in found.values() for each in boundary["obstacles"])
    with path.open("rb") as file:
        command = [sys.executable, "-m", "vmalab", "explain", "--json", "-"]
        done = subprocess.run(command, stdin=file, capture_output=True, check=True)
    assert len(json.loads(done.stdout)["boundaries"]) == len(found)
    whole = path.read_text()
    for text, message in (
        (whole + "garbage\n", "not a VMA as the kernel prints one"),
        (whole + whole, "smaps: "),
    ):
        path.write_text(text)
        done_badly = vmalab("explain", str(path))
        assert (done_badly.returncode, done_badly.stderr.count("\n")) == (2, 1), done_badly.stderr
        assert message in done_badly.stderr
        assert "internal error" not in done_badly.stderr


def test_of_maps_only_permissions_are_known(tmp_path: Path) -> None:
    path = tmp_path / "maps"
    path.write_text(
        "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n"
        "7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n"
        "7f0000002000-7f0000003000 r--p 00000000 00:00 0 \n"
    )
    found = json.loads(vmalab("explain", "--json", str(path)).stdout)
    assert (found["sight"], found["vmas"]) == ("maps", 3)
    details = [[obstacle["what"] for obstacle in boundary["obstacles"]] for boundary in found["boundaries"]]
    assert details[0][0].startswith("unknown: one of: flags that only smaps shows")
    assert details[1] == ["permissions"]


def test_flags_that_are_not_known_are_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "smaps"
    path.write_text(Path("/proc/self/smaps").read_text().replace("VmFlags: rd", "VmFlags: z\x1b rd", 1))
    found = json.loads(vmalab("explain", "--json", str(path)).stdout)
    assert "flags that are not known here are left out: z\\x1b" in found["notes"]


def test_the_story_of_an_address(trace: tuple[Path, dict[str, int]]) -> None:
    path, made = trace
    done = vmalab("why", str(path), hex(made["dontfork"]), "--json")
    story = json.loads(done.stdout)
    assert [line["what"].split(":")[0].split(" at ")[0] for line in story[1:3]] == [
        "what is below it was split off",
        "now",
    ]
    assert story[0]["what"].startswith("mapped")
    assert story[2]["call"].startswith("madvise(")
    assert vmalab("why", str(path), str(made["dontfork"]), "--json").stdout == done.stdout, "decimal is fine as well"


def test_a_moved_address_tells_from_both_ends(trace: tuple[Path, dict[str, int]]) -> None:
    path, made = trace
    story = json.loads(vmalab("why", str(path), hex(made["anon-offset"]), "--json").stdout)
    moved = next(line for line in story if line["what"].startswith("moved here"))
    source = moved["call"].split("(")[1].split(",")[0]
    there = json.loads(vmalab("why", str(path), source, "--json").stdout)
    assert [line["what"].split(",")[0] for line in there if line["record"] == moved["record"]][-1] == "moved away"


def test_an_address_that_was_never_mapped(trace: tuple[Path, dict[str, int]]) -> None:
    done = vmalab("why", str(trace[0]), "1000")
    assert (done.returncode, done.stdout) == (0, "0x1000 was never mapped\n")
