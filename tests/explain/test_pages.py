"""The pages of the documentation about explanations show what the commands really print."""

import doctest
import re
import shutil
from pathlib import Path

import pytest

from tests.programs import vmalab

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the trace of the package, as the examples name it."""
    shutil.copy(ROOT / "src/vmalab/data/demo.jsonl.zst", tmp_path / "trace.jsonl.zst")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_if_prints_what_its_page_shows(here: Path) -> None:
    text = (ROOT / "docs/what-if.md").read_text("utf-8")
    rules = re.search(r'```python\n(""".*?)```', text, re.DOTALL)
    assert rules is not None
    (here / "rules.py").write_text(rules.group(1))
    blocks = re.findall(r"```console\n\$ vmalab (.*?)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    for command, expected in blocks:
        shown = "".join(line.rstrip() + "\n" for line in vmalab(*command.split()).stdout.splitlines())
        assert shown == expected


@pytest.mark.parametrize("page", ["what-if.md", "attribution.md"])
def test_python_examples(here: Path, page: str) -> None:
    failed, tried = doctest.testfile(str(ROOT / "docs" / page), module_relative=False)
    assert tried > 5
    assert failed == 0
