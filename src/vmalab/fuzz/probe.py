"""Which behaviours the running kernel has: each one's witness on it, and on a model of either side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.behaviours import Value, behaviours, semantics_of
from vmalab.flags import MADV_GUARD_INSTALL, VM_MAYBE_GUARD, VM_SOFTDIRTY
from vmalab.fuzz.files import Files
from vmalab.fuzz.lockstep import Lockstep
from vmalab.fuzz.ops import Op
from vmalab.live.agent import Agent, Step
from vmalab.live.cow import LiveGround
from vmalab.semantics import THP_ALIGN_LARGE, THP_ALIGN_MULTIPLE, THP_ALIGN_NEVER, Semantics
from vmalab.testing.cow_families import cases, run_case

AT: Final = 0x10000000
FIXED: Final = 0x32
MOVE: Final = 3
DONTUNMAP: Final = 4
BOTH: Final = (True, False)
_COMMITTED: Final = 64 << 20
"""Bytes of the mapping whose commitment is looked at: other programs' noise is less."""
_ATTEMPTS: Final = 5


def _map(at: int, pages: int, prot: int = 3, flags: int = FIXED) -> Op:
    return Op("mmap", (at, pages * PAGE_SIZE, prot, flags, 0))


@dataclass(frozen=True)
class Witness:
    """A sequence that goes differently with each value of a behaviour."""

    values: tuple[Value, ...]
    ops: tuple[Op, ...] = ()
    measure: Callable[[], Value | None] | None = None
    """Where no list of VMAs shows it: asks the kernel, None if it gives no clear answer."""
    hidden: str = ""
    """Why nothing that a program can do shows it."""


def _shrinking_move_charges() -> Value | None:
    """Whether mremap that shrinks and moves commits more, by Committed_AS: the first clear answer."""
    with Agent("none") as agent:
        for _ in range(_ATTEMPTS):
            before = _committed()
            agent.run([Step(9, (AT, _COMMITTED, 3, FIXED, (1 << 64) - 1, 0))], report=0)
            agent.run([Step(25, (AT, _COMMITTED, PAGE_SIZE, MOVE, AT + 2 * _COMMITTED))], report=0)
            agent.run([Step(11, (AT, 3 * _COMMITTED))], report=0)
            grown = _committed() - before
            if abs(grown) < _COMMITTED // 4 or abs(grown - _COMMITTED) < _COMMITTED // 4:
                return grown > _COMMITTED // 2
    return None


def _vmsplice_is_safe() -> Value | None:
    """Whether a page that a pipe holds is copied before it is written to, though only one process maps it."""
    case = next(each for each in cases() if each.name == "vmsplice in the child, then unmap: base page")
    with LiveGround(settings=False) as ground:
        result = run_case(case, ground)
    return None if result.skip else not result.wrong


def _committed() -> int:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("Committed_AS:"):
            return int(line.split()[1]) << 10
    return 0


_GUARDED: Final = (
    _map(AT, 4),
    Op("mprotect", (AT + 2 * PAGE_SIZE, 2 * PAGE_SIZE, 1)),
    Op("madvise", (AT, PAGE_SIZE, MADV_GUARD_INSTALL)),
    Op("mprotect", (AT + 2 * PAGE_SIZE, 2 * PAGE_SIZE, 3)),
)
WITNESSES: Final[dict[str, Witness]] = {
    "ignored_flags": Witness((VM_SOFTDIRTY | VM_MAYBE_GUARD, VM_SOFTDIRTY), _GUARDED),
    "sticky_flags": Witness((VM_MAYBE_GUARD, 0), _GUARDED),
    "unfaulted_merges": Witness(
        BOTH,
        (
            _map(AT, 1),
            _map(AT + PAGE_SIZE, 1, 7),
            Op("write", (AT + PAGE_SIZE,)),
            Op("mprotect", (AT + PAGE_SIZE, PAGE_SIZE, 3)),
        ),
    ),
    "guard_regions": Witness(BOTH, (_map(AT, 1), Op("madvise", (AT, PAGE_SIZE, MADV_GUARD_INSTALL)))),
    "thp_align_anonymous": Witness(
        (THP_ALIGN_MULTIPLE, THP_ALIGN_LARGE, THP_ALIGN_NEVER),
        (
            Op("mmap", (0, PAGE_SIZE, 3, 0x22, 0)),
            Op("mmap", (0, PMD_SIZE + PAGE_SIZE, 3, 0x22, 0)),
            Op("mmap", (0, PAGE_SIZE, 1, 0x22, 0)),
            Op("mmap", (0, 2 * PMD_SIZE, 3, 0x22, 0)),
        ),
    ),
    "map_stack_no_hugepage": Witness(BOTH, (_map(AT, 1, flags=FIXED | 0x20000),)),
    "mremap_moves_many": Witness(
        BOTH,
        (
            _map(AT, 2),
            _map(AT + 2 * PAGE_SIZE, 2, 1),
            Op("mremap", (AT, 4 * PAGE_SIZE, 4 * PAGE_SIZE, MOVE, AT + 0x100000)),
        ),
    ),
    "dontunmap_merges_source": Witness(
        BOTH, (_map(AT, 2), Op("mremap", (AT, 0x2000, 0x2000, MOVE | DONTUNMAP, AT + 2 * PAGE_SIZE)))
    ),
    "mremap_shrink_charges": Witness(BOTH, measure=_shrinking_move_charges),
    "mremap_uffd_merges_first": Witness(
        BOTH,
        (
            Op("userfaultfd", (), 0, 16),
            _map(AT, 1),
            _map(AT + 0x10000, 1),
            Op("register", (AT, PAGE_SIZE, 1), 0, 16),
            Op("register", (AT + 0x10000, PAGE_SIZE, 1), 0, 16),
            Op("mremap", (AT + 0x10000, PAGE_SIZE, PAGE_SIZE, MOVE, AT + PAGE_SIZE)),
        ),
    ),
    "dontunmap_unlocks_source": Witness(
        BOTH,
        (
            _map(AT, 6),
            Op("mlock", (AT, 6 * PAGE_SIZE)),
            Op("mremap", (AT + 2 * PAGE_SIZE, 0x2000, 0x2000, MOVE | DONTUNMAP, AT + 0x100000)),
        ),
    ),
    "anonymous_exclusive": Witness(BOTH, measure=_vmsplice_is_safe),
    "pins_break_cow": Witness(BOTH, hidden="only a driver that pins memory for reading shows it"),
    "force_write_reads_again": Witness((False, True), hidden="only a race between two threads shows it"),
    "anon_vma_reuse_counts_children": Witness(
        BOTH,
        (
            _map(AT, 2),
            Op("write", (AT,)),
            # The third process takes over the anon_vma of the first child, and then nobody uses the second child's.
            *(Op("fork"), Op("fork", (), 1), Op("munmap", (AT, 2 * PAGE_SIZE), 1)),
            *(Op("fork", (), 2), Op("munmap", (AT, 2 * PAGE_SIZE), 2)),
            # Of two VMAs only one may have it.
            *(Op("mprotect", (AT, PAGE_SIZE, 1), 3), Op("fork", (), 3)),
        ),
    ),
}
"""The witness of each behaviour; the first value is that of 6.18."""


@dataclass
class Finding:
    """What a witness told of the running kernel."""

    name: str
    value: Value | None
    """None: the kernel does something that no value stands for, or the witness cannot tell."""
    default: Value
    told: str = ""
    """Why there is no value."""
    hidden: bool = False
    """Nothing that a program can do shows it: no value is no finding."""


def probe(update: Callable[[int], None]) -> list[Finding]:
    """Find the behaviours of the running kernel.  update is called with how many are done."""
    found: list[Finding] = []
    known: dict[str, Value] = {}
    files = Files()
    try:
        for done, (name, witness) in enumerate(WITNESSES.items(), 1):
            finding = _probe_one(name, witness, known, files)
            if finding.value is not None:
                known[name] = finding.value
            found.append(finding)
            update(done)
    finally:
        files.close()
    return found


def _probe_one(name: str, witness: Witness, known: dict[str, Value], files: Files) -> Finding:
    default = behaviours(Semantics())[name]
    if witness.hidden:
        return Finding(name, None, default, witness.hidden, hidden=True)
    if witness.measure is not None:
        measured = witness.measure()
        return Finding(name, measured, default, "" if measured is not None else "the measurement is not clear")
    agree: list[Value] = []
    told = ""
    for value in witness.values:
        # The other behaviours that are known by now are those of this kernel.
        with Lockstep(files=files, semantics=semantics_of({**known, name: value})) as lockstep:
            divergence = lockstep.run(witness.ops)
        if divergence is None:
            agree.append(value)
        elif not told:
            told = str(divergence)
    if len(agree) == 1:
        return Finding(name, agree[0], default)
    return Finding(name, None, default, told if not agree else "this reader shows no difference")
