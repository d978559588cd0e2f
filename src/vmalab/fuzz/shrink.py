"""A divergence made short: the fewest steps, with the simplest arguments, that still show one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmalab.addr import PAGE_SIZE
from vmalab.fuzz.lockstep import Divergence
from vmalab.fuzz.ops import NUMBERS, Op

Tries = Callable[[list[Op]], Divergence | None]
ROUNDS: Final = 3


def shrink(ops: list[Op], tries: Tries) -> tuple[list[Op], Divergence | None]:
    """The shortest sequence that was found to diverge, and how; tries performs a sequence from the start."""
    found = tries(ops)
    if found is None:
        return ops, None
    ops = ops[: found.step + 1]
    for _ in range(ROUNDS):
        shorter = _simplify(_drop(ops, tries), tries)
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
            if fewer and tries(fewer) is not None:
                ops = fewer
            else:
                at += size
        size //= 2
    return ops


def _simplify(ops: list[Op], tries: Tries) -> list[Op]:
    """Make arguments smaller, one at a time."""
    for i, op in enumerate(ops):
        for at in range(len(op.args)):
            for value in (0, 1, PAGE_SIZE, 2 * PAGE_SIZE):
                now = ops[i]
                if value >= now.args[at]:
                    break
                simpler = Op(now.name, (*now.args[:at], value, *now.args[at + 1 :]), now.who, now.file)
                changed = [*ops[:i], simpler, *ops[i + 1 :]]
                if tries(changed) is not None:
                    ops = changed
                    break
    return ops


def as_python(ops: list[Op]) -> str:
    """A sequence as Python that performs it in lockstep."""
    lines = [
        "from vmalab.fuzz.lockstep import Lockstep",
        "from vmalab.fuzz.ops import Op",
        "",
        "with Lockstep() as lockstep:",
    ]
    lines.append("    print(lockstep.run([")
    lines += [f"        {op!r}," for op in ops]
    return "\n".join([*lines, "    ]))", ""])


def as_c(ops: list[Op]) -> str:
    """A sequence of one process as a C program that performs it, prints each result, and its VMAs at the end."""
    lines = [
        "#define _GNU_SOURCE",
        "#include <errno.h>",
        "#include <fcntl.h>",
        "#include <stdio.h>",
        "#include <stdlib.h>",
        "#include <sys/mman.h>",
        "#include <sys/personality.h>",
        "#include <sys/resource.h>",
        "#include <sys/syscall.h>",
        "#include <unistd.h>",
        "",
        "int main(int argc, char **argv)",
        "{",
        "	long files[5], result;",
        "",
        "	(void)argc;",
        "	if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE)) {",
        "		personality(ADDR_NO_RANDOMIZE);",
        '		execv("/proc/self/exe", argv);',
        "	}",
        '	files[0] = open("/tmp/lockstep", O_RDWR | O_CREAT, 0600);',
        '	files[1] = open("/tmp/lockstep", O_RDWR);',
        '	files[2] = open("/tmp/lockstep", O_RDONLY);',
        '	files[3] = memfd_create("m", 0);',
        '	files[4] = memfd_create("n", 0);',
        "	if (ftruncate(files[0], 1 << 30) || ftruncate(files[3], 1 << 30) || ftruncate(files[4], 24 * 4096))",
        "		return 2;",
    ]
    for op in ops:
        lines += [f"	{line}" for line in _c_lines(op)]
    lines += ["	return system(\"cat /proc/$PPID/smaps | grep -E '^[0-9a-f]+-|VmFlags'\");", "}", ""]
    return "\n".join(lines)


def _c_lines(op: Op) -> list[str]:
    if op.name in ("read", "write"):
        access = "(void)*p" if op.name == "read" else "++*p"
        return [f"{{ volatile char *p = (char *){op.args[0]:#x}; {access}; }}"]
    if op.name in ("fork", "exit"):
        return [f"/* {op.name}: needs the agent */"]
    args = [f"{arg:#x}ul" for arg in op.args]
    before = ""
    if op.name == "mmap":
        args = [*args[:4], f"files[{op.file}]" if op.file >= 0 else "-1L", args[4]]
    elif op.name == "mbind":
        before = f"unsigned long mask = {args[3]}; "
        args = [*args[:3], "&mask", "65ul", args[4]]
    elif op.name == "prlimit64":
        before = f"struct rlimit limit = {{{args[1]}, RLIM_INFINITY}}; "
        args = ["0ul", args[0], "&limit", "0ul"]
    call = ", ".join([str(NUMBERS[op.name]), *args])
    return [
        f"{{ {before}result = syscall({call}); }}",
        f'printf("{op.name}: %#lx, errno %d\\n", result, result == -1 ? errno : 0);',
        "fflush(stdout);",
    ]
