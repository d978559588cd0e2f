"""The presets of kernels: named behaviours only, and values that a file of semantics can hold."""

import pytest

from vmalab import Machine
from vmalab.behaviours import behaviours
from vmalab.flags import MADV_GUARD_INSTALL, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE
from vmalab.fuzz.probe import WITNESSES
from vmalab.kernels import KERNELS
from vmalab.machine import KernelError
from vmalab.semantics import Semantics

FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


@pytest.mark.parametrize("name", KERNELS)
def test_presets_are_of_behaviours_with_a_witness(name: str) -> None:
    kernel = KERNELS[name]
    assert kernel.name == name
    known = behaviours(Semantics())
    for behaviour, value in kernel.values.items():
        assert type(value) is type(known[behaviour])
        assert value in WITNESSES[behaviour].values
        assert value != known[behaviour] or name == "6.12"
    assert behaviours(kernel.semantics()) == {**known, **kernel.values}


def test_guard_markers_are_not_known_before_6_13() -> None:
    process = Machine(KERNELS["6.12"].semantics()).process()
    at = process.mmap(0, 4096)
    with pytest.raises(KernelError, match="an unknown advice"):
        process.madvise(at, 4096, MADV_GUARD_INSTALL)


@pytest.mark.parametrize(("kernel", "vmas"), [("6.1", 2), ("6.12", 2), ("6.18", 1)])
def test_what_was_never_written_to_takes_what_was_since_6_16(kernel: str, vmas: int) -> None:
    process = Machine(KERNELS[kernel].semantics()).process()
    process.mmap(0x10000000, 4096, flags=FIXED)
    process.mmap(0x10001000, 4096, 7, FIXED)
    process.touch(0x10001000)
    process.mprotect(0x10001000, 4096, PROT_READ | PROT_WRITE)
    assert len(process.vmas()) == vmas
