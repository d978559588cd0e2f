"""The three modes of overcommitting, in the model and on this kernel, whose setting is put back."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.witness.test_witness import REASON
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.reason import errno_of, explain

SETTING = Path("/proc/sys/vm/overcommit_memory")
HUGE = 1 << 46
PRIVATE, NORESERVE, READ_ONLY = 0x22, 0x4022, 1
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture
def setting() -> Iterator[Path]:
    before = SETTING.read_text()
    try:
        SETTING.write_text(before)
    except OSError as error:
        pytest.skip(f"vm.overcommit_memory cannot be set: {error.strerror}")
    yield SETTING
    SETTING.write_text(before)


def mapping(flags: int, prot: int = 3, length: int = HUGE) -> Op:
    """A mapping at a place of the kernel's choice."""
    return Op("mmap", (0, length, prot, flags, 0))


@pytest.mark.parametrize(
    ("mode", "op", "expected"),
    [
        (0, mapping(PRIVATE), errno.ENOMEM),
        (0, mapping(NORESERVE), 0),
        (0, mapping(PRIVATE, READ_ONLY), 0),
        (1, mapping(PRIVATE), 0),
        (1, mapping(NORESERVE), 0),
        (2, mapping(PRIVATE), errno.ENOMEM),
        (2, mapping(NORESERVE), errno.ENOMEM),
        (2, mapping(PRIVATE, READ_ONLY), 0),
        (2, mapping(PRIVATE, length=1 << 20), 0),
    ],
)
def test_modes(setting: Path, mode: int, op: Op, expected: int) -> None:
    with Lockstep() as lockstep:
        setting.write_text(str(mode))
        lockstep.machine.commit.mode = mode
        found = lockstep.run([op])
    assert found is None, str(found)
    assert errno_of(lockstep.last_reason) == expected, explain(lockstep.last_reason).name


def test_what_was_not_committed_cannot_become_writable(setting: Path) -> None:
    """In mode 2, mprotect charges what it makes writable."""
    with Lockstep() as lockstep:
        setting.write_text("2")
        lockstep.machine.commit.mode = 2
        found = lockstep.run(
            [Op("mmap", (0x10000000, 1 << 44, READ_ONLY, 0x32, 0)), Op("mprotect", (0x10000000, 1 << 44, 3))]
        )
    assert found is None, str(found)
    assert errno_of(lockstep.last_reason) == errno.ENOMEM
