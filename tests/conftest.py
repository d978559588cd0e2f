"""For all tests: the form of the core that runs must be the one that was asked for, and built from these sources."""

import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import vmalab

settings.register_profile("vmalab", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "vmalab"))


def pytest_report_header() -> str:
    return f"vmalab: {vmalab.form()} core"


def pytest_sessionstart() -> None:
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
                    f"{name} is newer than its compiled form: make build, or VMALAB_INTERPRETED=1 to test the sources"
                )
