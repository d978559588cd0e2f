"""The campaign of the range tree as a command."""

import json

from tests.programs import vmalab


def test_no_difference() -> None:
    done = vmalab("fuzz", "tree", "--steps", "2000", "--seed", "7", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"steps": 2000, "seed": 7, "difference": None}


def test_a_bad_number_is_refused() -> None:
    assert vmalab("fuzz", "tree", "--steps", "0").returncode == 2
