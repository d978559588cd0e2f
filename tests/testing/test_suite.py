"""The runner of scenes: it says what is wrong, with a scene and with its text."""

import json
from pathlib import Path

import pytest

from tests.programs import vmalab
from vmalab.testing.ports import FailingPort, RecordingPort
from vmalab.vma.port import ALLOC_TREE, ALLOC_VMA

GOOD = """
scene: both neighbours take the range
  before: AA**BB
  do:     vma_merge_new_range
  after:  AAAAAA
"""


def run(tmp_path: Path, text: str, *options: str) -> tuple[int, str, str]:
    path = tmp_path / "own.scene"
    path.write_text(text)
    done = vmalab("test", "vma", "--scenes", str(path), *options)
    return done.returncode, done.stdout, done.stderr


def test_a_scene_of_ones_own(tmp_path: Path) -> None:
    status, out, _ = run(tmp_path, GOOD)
    assert status == 0
    assert out.splitlines() == [
        "KTAP version 1",
        "1..1",
        "ok 1 own: both neighbours take the range",
        "# 1 allocations failed in turn: 1 pairs of operation and site",
        "# Totals: pass:1 fail:0 xfail:0 xpass:0 skip:0 error:0",
    ]
    assert "failed in turn" not in run(tmp_path, GOOD, "--no-failures", "--no-sanitise")[1]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("after:  AAAAAA", "after:  BBBBBB", "# actual   AAAAAA"),
        ("after:  AAAAAA", "after:  AAAA..", "# expected AAAA.."),
        ("after:  AAAAAA", "after:  AAAAAA\n  A: r", "A: flags is rw-p"),
        ("after:  AAAAAA", "after:  AAAAAA\n  A: rw anon=x", "A: chain is none, not x"),
        ("after:  AAAAAA", "after:  AAAAAA\n  A: rw pgoff=1", "A: offset is 4096, not 1"),
        ("after:  AAAAAA", "after:  AAAAAA\n  says: MDWE", "says YES, not MDWE"),
        ("after:  AAAAAA", "after:  AAAAAA\n  left: FLAGS_DIFFER", "plans YES, not FLAGS_DIFFER"),
        ("after:  AAAAAA", "after:  AAAAAA\n  count: 2", "count is 1, not 2"),
        ("after:  AAAAAA", "after:  AAAAAA\n  hooks: open A", "hooks: none, not open A"),
        ("after:  AAAAAA", "after:  AAAAAA\n  leaves: AAAABB", "no failed allocation leaves AAAABB"),
        ("vma_merge_new_range\n", "unmapped_area 2\n", "finds page 2, not -1"),
    ],
)
def test_a_scene_that_is_broken_on_purpose(tmp_path: Path, old: str, new: str, problem: str) -> None:
    status, out, _ = run(tmp_path, GOOD.replace(old, new))
    assert status == 1
    assert "not ok 1 own: both neighbours take the range" in out
    assert problem in out
    assert "own.scene, line 2" in out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("before: AA**BB", "before: AA?BB", "line 3: a strip has letters"),
        ("scene: both", "both", "line 2: expected `keyword: text`"),
        ("scene:", "sceme:", "line 2: a scene starts with `scene: title`"),
        ("before:", "bevor:", "line 3: `before:` comes first"),
        ("vma_merge_new_range", "merge", "line 4: there is no operation 'merge'"),
        ("vma_merge_new_range", "vma_merge_new_range now", "line 4: vma_merge_new_range takes no 'now'"),
        ("vma_merge_new_range", "vma_shrink Q", "line 4: vma_shrink needs the letter of a VMA, not 'Q'"),
        ("vma_merge_new_range", "do_munmap 0 x", "line 4: do_munmap needs a number, not 'x'"),
        ("vma_merge_new_range", "vma_modify_flags", "line 4: the range is to lie in one VMA"),
        ("vma_merge_new_range", "copy_vma", "line 4: the source, marked s, is not mapped"),
        ("after:  AAAAAA", "", "line 4: `do:` needs an `after:` strip"),
        ("  do:     vma_merge_new_range\n  after:  AAAAAA", "", "line 2: the scene has no `do:`"),
        ("  do: ", "  A: rv\n  do: ", "line 4: 'rv' is no permission, flag or attribute"),
        ("  do: ", "  A: colour=red\n  do: ", "line 4: colour= is no attribute"),
        ("  do: ", "  A: pgoff=x\n  do: ", "line 4: pgoff is a number of pages, not 'x'"),
        ("  do: ", "  A: driver=x\n  do: ", "line 4: driver=x is none of file"),
        ("  do: ", "  with: speed=3\n  do: ", "line 4: 'speed=3' is no setting"),
        ("  do: ", "  with: limit_as=much\n  do: ", "line 4: limit_as is a number, not 'much'"),
        ("  do: ", "  says: YES\n  do: ", "line 4: `says:` is no keyword before `do:`"),
        ("after:  AAAAAA", "after:  AAAAAA\n  count: two", "line 6: `count:` takes a number"),
        ("after:  AAAAAA", "after:  AAAAAA\n  counts: 2", "line 6: `counts:` is no keyword"),
        ("after:  AAAAAA", "after:  AAAAAA\n  says: NOPE", "line 6: NOPE is no Reason"),
        ("scene:", "vary: a\nscene:", "line 2: a scene starts with `scene: title`"),
        ("  before:", "  vary: a\n  before:", "line 3: expected `vary: name = one | two`"),
    ],
)
def test_a_wrong_text_gets_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    status, out, err = run(tmp_path, GOOD.replace(old, new))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert "own.scene" in err


def test_options_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = vmalab("test", "vma", "--scenes", str(tmp_path / "empty"))
    assert (done.returncode, "holds no .scene file" in done.stderr) == (2, True)
    done = vmalab("test", "vma", "--filter", "no such scene")
    assert (done.returncode, "no scene's name holds" in done.stderr) == (2, True)
    listed = vmalab("test", "vma", "--list", "--filter", "sticky").stdout.splitlines()
    assert len(listed) > 10
    found = json.loads(vmalab("test", "vma", "--json", "--filter", "sticky").stdout)
    assert [each["name"] for each in found["scenes"]] == listed
    assert found["failures"] > 0
    assert not any(each["problems"] for each in found["scenes"])
    (tmp_path / "bad.scene").write_bytes(b"scene: \xff")
    done = vmalab("test", "vma", "--scenes", str(tmp_path / "bad.scene"))
    assert (done.returncode, "not UTF-8 at byte 7" in done.stderr) == (2, True)


def test_the_failing_port_fails_one_allocation() -> None:
    port = FailingPort()
    port.arm(2)
    assert [port.may_fail(site) for site in (ALLOC_VMA, ALLOC_TREE, ALLOC_VMA)] == [False, True, False]
    assert (port.count, port.failed) == (3, "tree")
    port.arm(0)
    assert not port.may_fail(ALLOC_VMA)
    assert isinstance(port, RecordingPort)
