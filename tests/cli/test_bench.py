"""vmalab bench as a command."""

import json

import pytest

from tests.programs import vmalab
from vmalab.live.agent import why_not

FIELDS = ("vmalab_ops_s", "interpreted_ops_s", "live_ops_s", "ctypes_ops_s", "ratio_live", "ratio_ctypes")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_one_workload() -> None:
    done = vmalab("bench", "--workload", "pairs", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["workload"] == "pairs"
    assert row["vmas"] > 0
    assert row["interpreted_ops_s"] > 0
    assert row["live_ops_s"] > 0
    assert row["ctypes_ops_s"] > 0
    for name in FIELDS:
        assert name in row
    if row["vmalab_ops_s"] is not None:
        assert row["ratio_live"] == pytest.approx(row["vmalab_ops_s"] / row["live_ops_s"])


def test_a_workload_that_is_not_there() -> None:
    done = vmalab("bench", "--workload", "nothing")
    assert done.returncode == 2
    assert "there is no workload nothing; there are pairs, mix-10" in done.stderr


def test_the_help_needs_nothing() -> None:
    assert vmalab("bench", "--help").returncode == 0
