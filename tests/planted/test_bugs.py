"""Every planted bug is found, by the check that it names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted.bugs import BUGS, Bug
from tests.planted.calls import CALL_BUGS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "VMALAB_PURE": "1", "VMALAB_EXPECT_FORM": "interpreted", "VMALAB_SANITISE": "1"}


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_planted_bug(bug: Bug) -> None:
    command = [sys.executable, "-m", "tests.planted.find", bug.name]
    done = subprocess.run(command, check=False, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, f"{bug.history}: not found by {bug.found_by}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip(), done.stderr
    print(f"found by {bug.found_by}:\n{done.stdout}")


def test_there_are_enough_bugs() -> None:
    assert len(BUGS) >= 20
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", [*BUGS, *CALL_BUGS], ids=lambda bug: bug.name)
def test_its_text_is_there_once(bug: Bug) -> None:
    source = (ROOT / "src/vmalab" / f"{bug.module.replace('.', '/')}.py").read_text()
    for old, new in bug.changes:
        assert source.count(old) == 1
        assert old != new
        source = source.replace(old, new)
    compile(source, bug.module, "exec")
