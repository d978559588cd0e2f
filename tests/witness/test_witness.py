"""Every witness, in the model and on this kernel: the answer that it names, and the same VMAs after each call."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.witness.ground import (
    AT,
    FIXED,
    MADE,
    MEMORY_CAPABILITIES,
    PAGE,
    Witness,
    call,
    limited,
    mapped,
    unprivileged,
)
from tests.witness.witnesses import WITNESSES
from vmalab.flags import RLIMIT_MEMLOCK
from vmalab.fuzz.divergence import Divergence
from vmalab.fuzz.files import Files
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.live.agent import why_not
from vmalab.live.facts import free_huge_pages
from vmalab.reason import errno_of, explain
from vmalab.syscalls import shm

RELEASE = os.uname().release
REASON = why_not() or ("" if RELEASE.startswith("6.18.") else f"the model is of 6.18, this is {RELEASE}")
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    made = Files()
    yield made
    made.close()


@contextmanager
def alone_with(witness: Witness) -> Iterator[None]:
    """What is locked of segments counts for the user: tests that lock some take turns."""
    if not any(op.name == "shmctl" and op.args[0] == shm.LOCK for op in witness.ops):
        yield
        return
    with open(Path(tempfile.gettempdir()) / f"vmalab-locked-segments-{os.geteuid()}", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("witness", WITNESSES, ids=[each.fact for each in WITNESSES])
def test_witness(files: Files, witness: Witness) -> None:
    if "pool of huge pages is empty" in witness.fact and any(free_huge_pages().values()):
        pytest.skip("there are huge pages in the pool of this machine")
    with alone_with(witness), Lockstep(files=files, pages=witness.pages) as lockstep:
        found = _run(lockstep, witness)
    assert found is None, str(found)
    assert lockstep.steps == len(witness.ops) + 1, "the first fork is a step as well"
    assert errno_of(lockstep.last_reason) == witness.errno, explain(lockstep.last_reason).name


def _run(lockstep: Lockstep, witness: Witness) -> Divergence | None:
    return lockstep.run([_left(op, lockstep.capabilities) if op.name == "capset" else op for op in witness.ops])


def _left(op: Op, capabilities: int) -> Op:
    """A capset that leaves what it does not name."""
    return Op("capset", (capabilities & ~(op.args[0] or MEMORY_CAPABILITIES),), op.who)


def test_what_a_run_has_locked_goes_with_it(files: Files) -> None:
    """Another may lock as much at once, though the kernel frees a namespace some time after its last process."""
    lock = limited(RLIMIT_MEMLOCK, 16, call("shmctl", shm.LOCK, 0, file=1))
    witness = Witness("shmctl: all that the limit allows", 0, unprivileged(*lock))
    with alone_with(witness), Lockstep(files=files) as other:
        with Lockstep(files=files) as lockstep:
            assert _run(lockstep, witness) is None
            assert lockstep.last_reason == 0
        found = _run(other, witness)
        assert found is None, str(found)


def test_they_differ() -> None:
    assert len({witness.fact for witness in WITNESSES}) == len(WITNESSES)


def test_the_map_count_limit() -> None:
    """What still works at the limit, and what does not: munmap of an end, a mremap that does nothing, one more mmap."""
    with Lockstep("none") as lockstep:
        limit = lockstep.machine.settings.max_map_count
        if limit > 100_000:
            pytest.skip(f"vm.max_map_count is {limit}: too many VMAs to make")
        free = limit - len(lockstep.processes[0].vmas())
        below = [mapped(AT, 6), mapped(2 * AT, 6)]
        ops = [mapped(4 * AT + 2 * at * PAGE, 1, prot=1 + 2 * (at & 1)) for at in range(free - 2)]
        assert lockstep.run([*below, *ops]) is None
        assert lockstep.processes[0].mm.map_count == limit
        at_the_limit = [
            (0, Op("munmap", (AT + 5 * PAGE, PAGE))),
            (0, Op("munmap", (AT, PAGE))),
            (0, Op("mremap", (AT + PAGE, PAGE, PAGE, 0, 0))),
            (12, Op("munmap", (AT + 2 * PAGE, PAGE))),
            (12, Op("mprotect", (AT + 2 * PAGE, PAGE, 1))),
            (12, Op("mlock", (AT + 2 * PAGE, PAGE))),
            (11, Op("madvise", (AT + 2 * PAGE, PAGE, 16))),
            (12, Op("mmap", (AT + 2 * PAGE, PAGE, 3, FIXED, 0))),
            (12, Op("mremap", (AT + PAGE, PAGE, PAGE, 3, 3 * AT))),
            (0, Op("mmap", (3 * AT, PAGE, 3, FIXED, 0))),
            (12, Op("brk", (0x760000,))),
            (12, Op("mmap", (3 * AT + 2 * PAGE, PAGE, 3, FIXED, 0))),
        ]
        for number, op in at_the_limit:
            assert lockstep.run([op]) is None
            assert errno_of(lockstep.last_reason) == number, str(op)


def test_the_limit_of_segments() -> None:
    """kernel.shmmni segments there can be in a namespace; their numbers go round."""
    with Lockstep("none") as lockstep:
        first = [Op("shmget", (0, PAGE, 0o1600), 0, MADE + at) for at in range(shm.MOST_SEGMENTS - 2)]
        assert lockstep.run(first) is None
        again = [Op("shmctl", (0, 0), 0, MADE + 7), Op("shmget", (0, PAGE, 0o1600), 0, MADE)]
        assert lockstep.run(again) is None
        assert lockstep.last_reason == 0
        assert lockstep.run([Op("shmget", (0, PAGE, 0o1600), 0, MADE + 7)]) is None
        assert errno_of(lockstep.last_reason) == errno.ENOSPC


def test_protection_keys_that_the_processor_lacks() -> None:
    """Key 0 is taken by the first who asks for one, who is refused; it cannot be named.  A child inherits that."""
    alloc = Op("pkey_alloc", (0, 0))
    asked = [
        (errno.EINVAL, Op("pkey_mprotect", (AT, PAGE, 1, 0))),
        (errno.EINVAL, Op("pkey_free", (0,))),
        (errno.EINVAL, alloc),
        (errno.ENOSPC, alloc),
        (errno.EINVAL, Op("pkey_mprotect", (AT, PAGE, 1, 0))),
        (0, Op("pkey_mprotect", (AT, PAGE, 1, (1 << 32) - 1))),
        (0, Op("fork")),
        (errno.ENOSPC, Op("pkey_alloc", (0, 0), 1)),
        (0, Op("exec", (), 1)),
        (errno.EINVAL, Op("pkey_alloc", (0, 0), 1)),
    ]
    with Lockstep("none") as lockstep:
        if not lockstep.machine.settings.pkeys_unusable:
            pytest.skip("this processor has protection keys, or this kernel is not built for them")
        assert lockstep.run([mapped()]) is None
        for number, op in asked:
            assert lockstep.run([op]) is None
            assert errno_of(lockstep.last_reason) == number, str(op)
