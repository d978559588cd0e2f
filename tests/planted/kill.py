"""Run the checks of the core one after the other until one fails: exit status 1 then, 0 if all pass.

For mutation runs: the quick checks come first, since most mutants die of the first.
"""

import os
import sys

import pytest


def killed() -> str:
    """The first check that fails; empty if none does."""
    from vmalab.testing.suite import find_scenes, run_scene

    for scene in find_scenes():
        if run_scene(scene).problems:
            return scene.name
    for name in ("core", "userfaultfd", "behaviours", "properties"):
        test = f"tests/vma/test_{name}.py"
        if pytest.main(["-q", "-x", "--no-header", "--no-summary", "-p", "no:cacheprovider", test]):
            return test
    return ""


if __name__ == "__main__":
    os.environ["HYPOTHESIS_PROFILE"] = "planted"
    check = killed()
    print(check)
    sys.exit(1 if check else 0)
