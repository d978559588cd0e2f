"""The copy-on-write suite, in the model and on the running kernel."""

import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.test_lockstep import live
from tests.programs import vmalab
from vmalab.semantics import Semantics
from vmalab.testing.cow import page_types
from vmalab.testing.cow_families import cases, families
from vmalab.testing.cow_model import run_in_model

SETTINGS = [
    *sorted(Path("/sys/kernel/mm/hugepages").glob("*/nr_hugepages")),
    *sorted(Path("/sys/kernel/mm/transparent_hugepage").glob("**/enabled")),
]


def settings() -> list[str]:
    swaps = [line.split()[0] for line in Path("/proc/swaps").read_text().splitlines()]
    return [*swaps, *[path.read_text() for path in SETTINGS if path.exists()]]


def test_there_are_as_many_cases_as_linux_has() -> None:
    assert (len(families()), len(list(page_types())), len(list(cases()))) == (14, 54, 778)
    assert len({case.name for case in cases()}) == 778


def test_the_model_fails_where_linux_does_and_nowhere_else() -> None:
    results = [run_in_model(case) for case in cases()]
    assert [
        f"{each.case.name}: {each.wrong}{each.skip}" for each in results if each.verdict() not in ("pass", "xfail")
    ] == []
    failing = Counter(each.case.family for each in results if each.verdict() == "xfail")
    assert failing == {family.name: 2 for family in families() if family.fails_on_hugetlb}


@pytest.mark.parametrize(
    ("behaviour", "fails"),
    [
        ("anonymous_exclusive", {"vmsplice in the child, then unmap", "read-only pin of a page that is shared"}),
        ("pins_break_cow", {"read-only pin of other pages", "read-only fast pin of other pages"}),
    ],
)
def test_older_kernels_fail(behaviour: str, fails: set[str]) -> None:
    semantics = Semantics()
    setattr(semantics, behaviour, False)
    chosen = [case for case in cases() if case.kind in ("base page", "memfd", "the page of zeros")]
    failing = {case.family for case in chosen if run_in_model(case, semantics).verdict() == "fail"}
    assert fails <= failing
    assert "COW after fork" not in failing


def test_the_command() -> None:
    done = vmalab("test", "cow", "--type", "base page", "--family", "vmsplice")
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[:2], lines[-1]) == (
        0,
        ["KTAP version 1", "1..8"],
        "# Totals: pass:8 fail:0 xfail:0 xpass:0 skip:0 error:0",
    )
    listed = vmalab("test", "cow", "--type", "base page", "--family", "vmsplice", "--list").stdout.splitlines()
    assert len(listed) == 8
    assert vmalab("test", "cow", "--family", "nothing of the kind").returncode == 2


@live
def test_the_kernel_agrees_and_its_settings_are_put_back() -> None:
    before = settings()
    with subprocess.Popen(
        [sys.executable, "-m", "vmalab", "test", "cow", "--live", "--json"], stdout=subprocess.PIPE, text=True
    ) as done:
        try:
            shown, _ = done.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            # It puts the settings back before it ends; killed it could not.
            done.terminate()
            raise
    assert settings() == before
    found = json.loads(shown)
    differing = [case for case in found["cases"] if case["verdict"] in ("fail", "xpass")]
    assert (differing, done.returncode) == ([], 0)
    assert found["totals"]["passed"] >= 8
    assert sum(found["skipped"].values()) == found["totals"]["skipped"]


@live
def test_the_check_says_beforehand_what_can_run() -> None:
    before = settings()
    done = vmalab("test", "--check")
    assert settings() == before
    able, *missing = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert done.returncode == (0 if able else 4)
    assert able + sum(missing) == len(list(cases()))


@live
def test_two_at_once_do_not_keep_each_other_s_settings() -> None:
    before = settings()
    command = [sys.executable, "-m", "vmalab", "test", "cow", "--live", "--type", "THP (64 kB)", "--family", "vmsplice"]
    runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    assert settings() == before


@live
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_settings_are_put_back_when_it_is_interrupted(ending: signal.Signals) -> None:
    before = settings()
    with subprocess.Popen(
        [sys.executable, "-m", "vmalab", "test", "cow", "--live"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(ending)
        # Whoever is impatient does not stop it from putting them back.
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode in (130, 128 + ending)
    assert settings() == before
    assert not list(Path(tempfile.gettempdir()).glob("vmalab-swap-*"))
