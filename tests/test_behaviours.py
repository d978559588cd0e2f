"""Files of semantics, and the probe that writes them."""

import json
import os
from pathlib import Path

import pytest

from tests.fuzz.test_lockstep import whole
from tests.programs import vmalab
from vmalab.behaviours import behaviours, read_semantics, semantics_of, write_semantics
from vmalab.errors import InputError
from vmalab.fuzz.probe import WITNESSES
from vmalab.semantics import Semantics


def test_they_come_back(tmp_path: Path) -> None:
    changed = {"mremap_moves_many": False, "thp_align_anonymous": 1}
    write_semantics(str(tmp_path / "file"), "6.1", changed)
    assert behaviours(read_semantics(str(tmp_path / "file"))) == {**behaviours(Semantics()), **changed}
    assert semantics_of({}).mremap_moves_many


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no file of semantics"),
        ("[" * 100_000, "no file of semantics"),
        ("[]", 'it has no "behaviours"'),
        ('{"behaviours": []}', 'it has no "behaviours"'),
        (
            '{"behaviours": {"\\u001b[31m": 1}}',
            r"no behaviour \\x1b\[31m; there are: anon_vma_reuse_counts_children, anon",
        ),
        ('{"behaviours": {"mremap_moves_many": 1}}', "mremap_moves_many must be true or false"),
        ('{"behaviours": {"sticky_flags": true}}', "sticky_flags must be a number"),
        ('{"behaviours": {"sticky_flags": -1}}', "sticky_flags must be a number"),
    ],
)
def test_other_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_semantics(str(path))
    done = vmalab("fuzz", "live", "--semantics", str(path))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_every_behaviour_has_a_witness() -> None:
    assert set(WITNESSES) == set(behaviours(Semantics()))
    for name, witness in WITNESSES.items():
        assert witness.values[0] == behaviours(Semantics())[name]


@whole
def test_this_kernel_is_on_one_side_of_each(tmp_path: Path) -> None:
    path = tmp_path / "semantics"
    done = vmalab("probe", "-o", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["kernel"] == os.uname().release
    if found["kernel"].startswith("6.18."):
        assert behaviours(read_semantics(str(path))) == behaviours(Semantics())
        assert set(WITNESSES).difference(found["behaviours"]) == {"pins_break_cow", "force_write_reads_again"}
    assert vmalab("fuzz", "live", "--steps", "400", "--semantics", str(path)).returncode == 0
