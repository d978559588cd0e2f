"""Which calls are supported, and how that is known."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.programs import vmalab
from vmalab.errors import InputError
from vmalab.support import CLEAN, MISSING, UNCONFIRMED, add, load, table


def test_levels() -> None:
    record: dict[str, Any] = {"kernels": {}}
    add(record, "6.18", 10, {"mmap": 4, "mmap MAP_FIXED": 2, "madvise MADV_HWPOISON": 1, "madvise": 1})
    add(record, "6.18", 5, {"mmap": 1})
    found = {(row.call, row.flag): (row.level, row.steps) for row in table(record)}
    assert record["kernels"]["6.18"]["steps"] == 15
    assert found["mmap", ""] == (CLEAN, 5)
    assert found["mmap", "MAP_FIXED"] == (CLEAN, 2)
    assert found["mmap", "MAP_LOCKED"] == (UNCONFIRMED, 0)
    assert found["madvise", "MADV_HWPOISON"] == (MISSING, 0), "wrong on purpose, and refused: that confirms nothing"
    assert found["migrate_pages", ""] == (MISSING, 0)


def test_the_record_of_the_package() -> None:
    record = load()
    assert sum(kernel["steps"] for kernel in record["kernels"].values()) >= 2_000_000
    rows = table(record)
    assert {row.level for row in rows} == {CLEAN, UNCONFIRMED, MISSING}
    assert {row.call for row in rows if row.level == CLEAN and not row.flag} >= {"mmap", "munmap", "mremap", "madvise"}


def test_runs_are_added(tmp_path: Path) -> None:
    data, run, bad = tmp_path / "data.json", tmp_path / "run.json", tmp_path / "bad.json"
    data.write_text('{"kernels": {}}')
    run.write_text(json.dumps({"kernel": "6.18", "steps": 3, "features": {"mmap": 3}, "divergence": None}))
    assert vmalab("support", "--data", str(data), "--add", str(run), "--add", str(run)).returncode == 0
    assert load(data)["kernels"]["6.18"] == {"steps": 6, "features": {"mmap": 6}}
    shown = vmalab("support", "--data", str(data))
    assert "6 steps without a difference on 6.18" in shown.stdout
    rows = json.loads(vmalab("support", "--data", str(data), "--json").stdout)
    assert {"call": "mmap", "flag": "", "level": CLEAN, "steps": 6} in rows
    for text, said in (
        ("{", "not what vmalab fuzz live --json prints"),
        (run.read_text().replace("null", '"here"'), "found a difference"),
    ):
        bad.write_text(text)
        done = vmalab("support", "--data", str(data), "--add", str(bad))
        assert (done.returncode, len(done.stderr.splitlines()), said in done.stderr) == (2, 1, True), done.stderr
    assert load(data)["kernels"]["6.18"]["steps"] == 6


@pytest.mark.parametrize("text", ["", "[]", '{"kernels": {"6.18": {}}}', '{"kernels": {"6.18": {"steps": "1"}}}'])
def test_a_record_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(InputError, match="this is no record of support"):
        load(path)
    assert vmalab("support", "--data", str(path)).returncode == 2
