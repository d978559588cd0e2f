"""Plant one bug and run the check that is to find it: `python -m tests.planted.find NAME`, interpreted.

Prints what the check says, and exits with 1 if the bug is found, with 0 if it is not.
"""

import os
import sys

from tests.planted.bugs import BUGS, Bug
from tests.planted.plant import plant


def by_scene(name: str) -> list[str]:
    """What the scene of a name finds wrong."""
    from vmalab.testing.suite import find_scenes, run_scene

    (scene,) = [scene for scene in find_scenes() if scene.name == name]
    return run_scene(scene).problems


def by_test(node: str) -> list[str]:
    """The failures of a test, without the search for the smallest example."""
    import pytest

    class Reports:
        """Collects what failed."""

        def __init__(self) -> None:
            self.failed: list[str] = []

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                self.failed.append(report.longreprtext.splitlines()[-1])

    os.environ["HYPOTHESIS_PROFILE"] = "planted"
    reports = Reports()
    pytest.main(["-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", node], plugins=[reports])
    return reports.failed


def find(bug: Bug) -> list[str]:
    """What the bug's check says with the bug planted."""
    plant(bug)
    return by_test(bug.found_by) if bug.found_by.startswith("tests/") else by_scene(bug.found_by)


if __name__ == "__main__":
    (chosen,) = [bug for bug in BUGS if bug.name == sys.argv[1]]
    found = find(chosen)
    print("\n".join(found))
    sys.exit(1 if found else 0)
