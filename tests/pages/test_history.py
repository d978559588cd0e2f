"""The history of copy-on-write, replayed: each script parts under the old behaviour, and nobody does under the new."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

from tests.programs import vmalab
from vmalab.errors import InputError
from vmalab.explain.ledger import lines_of
from vmalab.explain.script import Script, read_script, run_script

SCRIPTS = Path(__file__).parents[2] / "docs/cow"
PARTED = "it holds another page than its owner has"
EXPECTED = {
    "stale-zero-page": (PARTED, "rdma: read", "''"),
    "stale-file-page": (PARTED, "rdma: read", "'old'"),
    "vmsplice-leak": ("what it holds has been written to", "pipe: read", "'password'"),
    "anon-vma-reuse": ("its anon_vma is freed", "F: protect high r", ""),
    "dirty-cow": ("the file has changed", "P: read buf", "'root:x'"),
}


OTHERS = ("soft-dirty", "migration")
"""Scripts in which nobody parts."""


def test_every_script_is_here() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.ledger")} == {*EXPECTED, *OTHERS}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_old_behaviour_shows_it_and_the_new_does_not(name: str) -> None:
    path = SCRIPTS / f"{name}.ledger"
    alarm, step, said = EXPECTED[name]
    old = read_script(str(path))
    assert any(alarm in text for each in old.steps for text in each.alarms())
    assert [each.said for each in old.steps if each.text == step] == [said]
    new = run_script("\n".join([line for line in path.read_text().splitlines() if not line.startswith("kernel")]), name)
    assert not any(each.alarms() for each in new.steps)


@pytest.mark.parametrize("name", OTHERS)
def test_nobody_parts(name: str) -> None:
    assert not any(step.alarms() for step in read_script(str(SCRIPTS / f"{name}.ledger")).steps)


def test_the_examples_of_the_page_of_documentation_do_what_it_says() -> None:
    """Each block of Python, and each value that a comment behind an expression says."""
    text = (SCRIPTS.parent / "copy-on-write.md").read_text()
    blocks = [
        block for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE) if "    from vmalab" in block
    ]
    compared = 0
    for block in blocks:
        names: dict[str, object] = {}
        statements: list[str] = []
        for line in textwrap.dedent(block).splitlines():
            code, _, said = line.partition("  # ")
            try:
                expected = ast.literal_eval(said.strip())
                compile(code.strip(), "", "eval")
            except (SyntaxError, ValueError):
                statements.append(line)
            else:
                exec("\n".join(statements), names)
                statements.clear()
                assert eval(code, names) == expected, line
                compared += 1
        exec("\n".join(statements), names)
    assert len(blocks) >= 4
    assert compared >= 6


@pytest.mark.parametrize("name", [*EXPECTED, *OTHERS])
def test_the_page_of_documentation_shows_what_is_printed(name: str) -> None:
    found = read_script(str(SCRIPTS / f"{name}.ledger"))
    page = (SCRIPTS.parent / "copy-on-write.md").read_text()
    assert "\n".join([f"    {line}".rstrip() for step in found.steps for line in lines_of(step)]) in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no step in it"),
        ("what is this", "line 1: a step is"),
        ("P: fly", "line 1: fly is no step; there are: map"),
        ("kernel x = no", "line 1: there is no behaviour x; there are: anon_vma_reuse"),
        ("P: map a 1\nkernel pins_break_cow = no", "line 2: the kernel is chosen before"),
        ("P: map a 0", "line 1: memory is mapped as"),
        ("P: map a 1 x", "line 1: map knows no x"),
        ("P: map a 1\nQ: read a", "line 2: there is no process Q"),
        ("P: read a", "line 1: nobody has mapped a"),
        ("P: map a 1\nP: write a", "line 2: a process writes as"),
        ('P: map a 1\nP: write a "', "line 2: No closing quotation"),
        ("P: map a 1\nP: protect a w", "line 2: permissions are: none"),
        ("P: map a 1\nP: advise a X", "line 2: advice is given as"),
        ("P: map a 1\nd: pin Q a", "line 2: pages are held as"),
        ("P: map a 1\nd: pin P a x", "line 2: pin knows no x"),
        ("P: map a 1\nd: release", "line 2: d holds nothing"),
        ("P: map a 1\nP: fork P", "line 2: a child is made as"),
        ("P: map a 1\nP: poke a", "line 2: a debugger writes as"),
        ("file f", "line 1: a file is made as"),
        ("show all", "line 1: what can be shown besides is"),
        ("P: map a 1\nshow soft-dirty", "line 2: what is written to is tracked from the beginning"),
        ("P: clear_refs 5", "line 1: bits are cleared as"),
        ("P: map a 1\nP: migrate a now", "line 2: a page is moved as"),
        ("P: map a 1\nP: settle a", "line 2: a page that is being moved arrives as"),
    ],
)
def test_other_scripts(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run_script(text, "script")


def test_the_machine_is_broken_as_soon_as_an_anon_vma_has_two_chains() -> None:
    lines = (SCRIPTS / "anon-vma-reuse.ledger").read_text().splitlines()
    script = Script()
    said: dict[str, str] = {}
    for line in lines:
        script.line(line)
        try:
            script.validate()
        except AssertionError as error:
            said[line] = str(error)
    assert list(said) == ["E: fork F", "F: protect high r", "E: exit"]
    assert "another VMA has the same anon_vma, and another chain" in said["E: fork F"]
    assert "its anon_vma does not lead to the VMA that maps it" in said["F: protect high r"]
    assert "its anon_vma is freed" in said["E: exit"]


def test_a_refusal_is_said() -> None:
    found = run_script("P: map a 1 ro\nP: write a x\nd: pin P a write\nd: fixed P a", "script")
    assert [step.said.rpartition("(")[2] for step in found.steps] == [
        "",
        "FAULT_NO_PERMISSION)",
        "PIN_NOT_PERMITTED)",
        "PIN_NOT_PERMITTED)",
    ]


def test_the_command(tmp_path: Path) -> None:
    done = vmalab("ledger", str(SCRIPTS / "vmsplice-leak.ledger"))
    assert done.returncode == 1
    assert "what it holds has been written to" in done.stdout
    path = tmp_path / "script"
    path.write_bytes(b"P: map \x1b[31m 1\n")
    assert vmalab("ledger", str(path)).returncode == 0
    path.write_bytes(b"\xff")
    done = vmalab("ledger", str(path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert vmalab("ledger", str(path.with_name("none"))).returncode == 2
