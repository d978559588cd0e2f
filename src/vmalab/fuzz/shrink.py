"""A divergence made short: the fewest steps, with the simplest arguments, that still show one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from vmalab.addr import PAGE_SIZE, TASK_SIZE
from vmalab.fuzz.divergence import Divergence
from vmalab.fuzz.ops import Op

Tries = Callable[[list[Op]], Divergence | None]
ROUNDS: Final = 4
FEW: Final = 16
"""Steps that are few enough to try all pairs of."""
_PRIVATE: Final = 0x32
"""MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED."""
_PLAIN: Final = {"write": 0, "munmap": 2, "mprotect": 3}
"""Steps by how plain they are; a private anonymous mmap at a fixed place is 1, all others are 4."""


def shrink(ops: list[Op], tries: Tries) -> tuple[list[Op], Divergence | None]:
    """The shortest sequence that was found to diverge, and how; tries performs a sequence from the start."""
    found = tries(ops)
    if found is None:
        return ops, None
    ops = ops[: found.step + 1]
    for _ in range(ROUNDS):
        shorter = _drop(ops, tries)
        shorter = _drop_pairs(_make_plainer(shorter, tries), tries)
        shorter = _simplify(shorter, tries)
        if shorter == ops:
            break
        ops = shorter
    return ops, tries(ops)


def _drop(ops: list[Op], tries: Tries) -> list[Op]:
    """Leave out as many steps as possible, first many at a time."""
    size = max(1, len(ops) // 2)
    while size:
        at = 0
        while at < len(ops):
            fewer = ops[:at] + ops[at + size :]
            found = tries(fewer) if fewer else None
            if found is not None:
                ops = fewer[: found.step + 1]
            else:
                at += size
        size //= 2
    return ops


def _drop_pairs(ops: list[Op], tries: Tries) -> list[Op]:
    """Leave out two steps at once, which only together make no difference."""
    again = len(ops) <= FEW
    while again:
        again = False
        for one, two in itertools.combinations(range(len(ops)), 2):
            fewer = [op for at, op in enumerate(ops) if at not in (one, two)]
            found = tries(fewer) if fewer else None
            if found is not None:
                ops = fewer[: found.step + 1]
                again = True
                break
    return ops


def _make_plainer(ops: list[Op], tries: Tries) -> list[Op]:
    """Replace steps by plainer ones: another process's by the first's, anything by a mapping or a write there."""
    first = [Op(op.name, op.args, 0, op.file, op.clone) for op in ops if op.name not in ("fork", "exit")]
    if len(first) < len(ops) and tries(first) is not None:
        ops = first
    for i in range(len(ops)):
        op = ops[i]
        alone = [*ops[:i], Op(op.name, op.args, op.who, op.file), *ops[i + 1 :]]
        if op.clone and tries(alone) is not None:
            ops = alone
        for plainer in _plainer(ops[i], [op for op in ops if op is not ops[i]]):
            changed = [*ops[:i], plainer, *ops[i + 1 :]]
            if tries(changed) is not None:
                ops = changed
                break
    return ops


def _plainness(op: Op) -> int:
    if op.name == "mmap" and op.args[3] == _PRIVATE:
        return 1
    return _PLAIN.get(op.name, 4)


def _plainer(op: Op, others: list[Op]) -> list[Op]:
    """What a step could be instead, plainest first; a mapping may also reach as far as another one."""
    places = [addr for addr in op.args if PAGE_SIZE <= addr < TASK_SIZE and addr > 1 << 24]
    found: list[Op] = []
    for place in places:
        start = place & -PAGE_SIZE
        found.append(Op("write", (place,), op.who))
        found.append(Op("mmap", (start, PAGE_SIZE, 3, _PRIVATE, 0), op.who))
        found.append(Op("mmap", (start, 16 * PAGE_SIZE, 3, _PRIVATE, 0), op.who))
        found.append(Op("munmap", (start, PAGE_SIZE), op.who))
        found.append(Op("mprotect", (start, PAGE_SIZE, 1), op.who))
    better = [each for each in found if _plainness(each) < _plainness(op)]
    if _plainness(op) == 1:
        for other in others:
            if other.name == "mmap" and other.args[0] > op.args[0]:
                reach = other.args[0] + other.args[1] - op.args[0]
                if op.args[1] < reach < 1 << 24:
                    better.append(Op("mmap", (op.args[0], reach, op.args[2], _PRIVATE, 0), op.who))
    return better


def _simplify(ops: list[Op], tries: Tries) -> list[Op]:
    """Make arguments smaller, one at a time."""
    for i, op in enumerate(ops):
        for at in range(len(op.args)):
            for value in (0, 1, PAGE_SIZE, 2 * PAGE_SIZE):
                now = ops[i]
                if value >= now.args[at]:
                    break
                simpler = Op(now.name, (*now.args[:at], value, *now.args[at + 1 :]), now.who, now.file, now.clone)
                changed = [*ops[:i], simpler, *ops[i + 1 :]]
                if tries(changed) is not None:
                    ops = changed
                    break
    return ops


def as_python(ops: list[Op], pages: bool = False) -> str:
    """A sequence as Python that performs it in lockstep; pages: what is below the VMAs is compared as well."""
    lines = [
        "from vmalab.fuzz.lockstep import Lockstep",
        "from vmalab.fuzz.ops import Op",
        "",
        f"with Lockstep({'pages=True' if pages else ''}) as lockstep:",
    ]
    lines.append("    print(lockstep.run([")
    lines += [f"        {op!r}," for op in ops]
    return "\n".join([*lines, "    ]))", ""])
