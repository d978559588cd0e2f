"""For all tests: the form of the core that runs must be the one that was asked for, and built from these sources."""

import os
import signal
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

# Before the first import of the core: its sanitisers are on, also in the commands that tests run.
os.environ.setdefault("VMALAB_SANITISE", "1")

import vmalab
from vmalab.machine import MACHINES

settings.register_profile("vmalab", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("campaign", deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("planted", deadline=None, derandomize=True, database=None, phases=[Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "vmalab"))


def pytest_report_header() -> str:
    return f"vmalab: {vmalab.form()} core"


def pytest_sessionstart() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in the background so; the programs that tests interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    expected = os.environ.get("VMALAB_EXPECT_FORM")
    if expected is not None and vmalab.form() != expected:
        raise pytest.UsageError(f"the core is {vmalab.form()}, but {expected} was asked for: make build")
    if vmalab.form() == "compiled":
        _refuse_stale()


def _refuse_stale() -> None:
    """Refuse a compiled core that is older than its sources: its tests would say nothing about them."""
    package = Path(vmalab.__file__).parent
    for suffix in EXTENSION_SUFFIXES[:1]:
        for built in package.rglob(f"*{suffix}"):
            source = built.with_name(built.name.removesuffix(suffix) + ".py")
            if not source.exists() or source.stat().st_mtime > built.stat().st_mtime:
                name = source.relative_to(package.parent)
                raise pytest.UsageError(
                    f"{name} is newer than its compiled form: make build, or VMALAB_PURE=1 to test the sources"
                )


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """At the end of every test each machine that it made is whole, and without its processes it holds nothing."""
    MACHINES.clear()
    yield
    for machine in list(MACHINES):
        machine.validate()
        held = [vma for process in machine.processes.values() for vma in process.vmas()]
        files = [vma.file for vma in held if vma.file is not None]
        policies = [vma.policy for vma in held if vma.policy is not None]
        anon_vmas = [anon_vma for vma in held for anon_vma in vma.chain]
        held.clear()
        for process in list(machine.processes.values()):
            machine.exit(process)
        for segment in list(machine.ipc.segments.values()):
            assert not segment.attached, "a segment stays attached"
            machine.ipc.remove(segment)
        assert machine.commit.committed == machine.commit.lost, "memory stays committed"
        assert not any(each.refs for each in files), "files leak"
        assert not any(each.refs for each in policies), "policies leak"
        assert not any(each.links or each.active for each in anon_vmas), "anon_vmas leak"
