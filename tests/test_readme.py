"""The examples of the README run as it shows them."""

import doctest
import re
from pathlib import Path

import pytest

from tests.programs import vmalab
from vmalab.live.record import why_not

README = Path(__file__).resolve().parents[1] / "README.md"
SCENES = README.parent / "docs" / "scenes.md"


def test_python_examples() -> None:
    failed, tried = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 10
    assert failed == 0


def test_the_port_of_ones_own() -> None:
    failed, tried = doctest.testfile(str(SCENES), module_relative=False)
    assert (failed, tried) == (0, 7)


def test_the_scenes_of_the_documentation(tmp_path: Path) -> None:
    for page in (README, SCENES):
        found = re.search(r"```\n(scene: .*?)```", page.read_text(), re.DOTALL)
        assert found is not None
        (tmp_path / f"{page.stem}.scene").write_text(found.group(1))
    done = vmalab("test", "vma", "--scenes", str(tmp_path))
    assert "# Totals: pass:2 fail:0" in done.stdout, done.stdout


def test_the_table_of_calls() -> None:
    found = re.search(r"<!-- support -->\n(.*?)<!-- /support -->", README.read_text(), re.DOTALL)
    assert found is not None
    table = vmalab("support", "--markdown").stdout
    assert found.group(1) == table, "put what vmalab support --markdown prints between the marks in the README"


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    commands = [line.removeprefix("$ vmalab ") for line in block.group(1).splitlines() if line.startswith("$ ")]
    assert [command.split()[0] for command in commands] == ["record", "replay", "explain"]
    for command in commands:
        match = re.fullmatch(r'(.*) "(.*)"', command)
        words = [*match.group(1).split(), match.group(2)] if match is not None else command.split()
        done = vmalab(*words)
        assert done.returncode == 0, done.stderr


def test_every_command_of_the_table_exists() -> None:
    listed = re.findall(r"^\| `vmalab ([\w-]+)", README.read_text(), re.MULTILINE)
    shown = vmalab("--help").stdout
    assert listed
    for name in listed:
        assert re.search(rf"^  {name} ", shown, re.MULTILINE), name


def test_demo() -> None:
    done = vmalab("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal" in done.stdout


def test_the_trace_of_the_package_replays() -> None:
    trace = README.parent / "src" / "vmalab" / "data" / "demo.jsonl.zst"
    assert vmalab("replay", str(trace)).returncode == 0
