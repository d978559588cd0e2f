"""A sequence of steps as a C program that performs it on the kernel, without the agent."""

from __future__ import annotations

from typing import Final

from vmalab.flags import IPC_SET, IPC_STAT
from vmalab.fuzz.events import EVENTS
from vmalab.fuzz.files import FILE_PAGES, SEGMENT_PAGES
from vmalab.fuzz.ops import FIRST_MADE, NUMBERS, Op

_HEAD: Final = """\
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static long files[64], segments[64], result;
static int failed, pids[8];
static sigjmp_buf back;

static void caught(int number)
{
	siglongjmp(back, number);
}

static void touch(const char *name, unsigned long addr, int writes)
{
	volatile char *p = (volatile char *)addr;
	int number = sigsetjmp(back, 1);

	if (!number) {
		if (writes)
			++*p;
		else
			(void)*p;
	}
	printf("%s %#lx: %s\\n", name, addr, !number ? "works" : number == SIGBUS ? "SIGBUS" : "SIGSEGV");
}

static void told(const char *name)
{
	printf("%s: %#lx, errno %d\\n", name, result, result == -1 ? errno : 0);
	fflush(stdout);
}

static void show(int who)
{
	char command[99];

	printf("process %d\\n", who);
	fflush(stdout);
	snprintf(command, sizeof(command), "cat /proc/%d/smaps | grep -E '^[0-9a-f]+-|VmFlags'", getpid());
	if (system(command))
		exit(2);
}
"""
_MAIN: Final = """\

int main(int argc, char **argv)
{
	static char signal_stack[65536];
	stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof(signal_stack)};
	struct sigaction action = {.sa_handler = caught, .sa_flags = SA_ONSTACK};

	(void)argc;
	if (unshare(CLONE_NEWIPC))
		perror("an IPC namespace of its own");
	if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE)) {
		personality(ADDR_NO_RANDOMIZE);
		execv("/proc/self/exe", argv);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaltstack(&stack, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
"""


def as_c(ops: list[Op]) -> str:
    """The program: it prints each result, and the VMAs of every process at the end.

    A process that forks waits for its child before it goes on, so steps of a parent after a fork come when the child is
    done with all of its own: where the order matters, the Python form keeps it.
    """
    lines = [_HEAD, *_functions(ops), _MAIN.rstrip("\n"), *[f"	{line}" for line in _files(ops)], "	process0();"]
    return "\n".join([*lines, "	return 0;", "}", ""])


def _has_segments(ops: list[Op]) -> bool:
    return any(op.name in ("shmat", "shmctl") for op in ops)


def _functions(ops: list[Op]) -> list[str]:
    """One function for each process; a fork calls the child's in the child."""
    bodies: dict[int, list[str]] = {0: []}
    for op in ops:
        body = bodies.setdefault(op.who, [])
        if op.name == "fork":
            child = next(who for who in range(len(ops) + 1) if who not in bodies)
            bodies[child] = []
            body.append(f"if (!fork()) {{ process{child}(); _exit(0); }}")
            body.append("wait(NULL);")
        elif op.name in ("exec", "crowd"):
            body.append(f"/* {op.name}: needs the agent */")
        elif op.name != "exit":
            body += _step(op)
    lines = [f"static void process{who}(void);" for who in bodies]
    for who, body in bodies.items():
        lines += [
            "",
            f"static void process{who}(void)",
            "{",
            f"	pids[{who}] = getpid();",
            *[f"	{line}" for line in body],
            f"	show({who});",
            "}",
        ]
    return lines


def _files(ops: list[Op]) -> list[str]:
    """What makes the files that the sequence uses."""
    used = {op.file for op in ops if op.name == "mmap" and 0 <= op.file < FIRST_MADE}
    lines: list[str] = []
    if used & {0, 1, 2}:
        modes = ("O_RDWR | O_CREAT", "O_RDWR", "O_RDONLY")
        lines += [f'files[{at}] = open("/tmp/lockstep", {mode}, 0600);' for at, mode in enumerate(modes)]
        lines += [f"if (ftruncate(files[0], {FILE_PAGES}l * 4096))", "	return 2;", 'unlink("/tmp/lockstep");']
    for at, name, pages in ((3, "m", FILE_PAGES), (4, "n", 24)):
        if at in used:
            lines.append(f'files[{at}] = memfd_create("{name}", 0);')
            lines += [f"if (ftruncate(files[{at}], {pages}l * 4096))", "	return 2;"]
    if _has_segments(ops):
        for at, pages in enumerate(SEGMENT_PAGES):
            lines.append(f"segments[{at}] = shmget(IPC_PRIVATE, {pages}l * 4096, IPC_CREAT | 0600);")
    return lines


def _step(op: Op) -> list[str]:
    """The statements for one step."""
    args = [f"{arg:#x}ul" for arg in op.args]
    if op.name in ("read", "write"):
        return [f'touch("{op.name}", {args[0]}, {int(op.name == "write")});']
    file = f"files[{op.file}]"
    if op.name == "memfd":
        return [f'{file} = memfd_create("v", {args[0]});', *_truncated(file, op.args[1])]
    if op.name == "memfd_secret":
        return [f"{file} = syscall(447, 0);", *_truncated(file, op.args[0])]
    if op.name == "userfaultfd":
        features = op.args[0] & ~EVENTS if op.args else 0
        api = f"struct uffdio_api api = {{.api = UFFD_API, .features = UFFD_FEATURE_SIGBUS | {features:#x}}};"
        make = f"{file} = syscall(323, 0); result = ioctl({file}, UFFDIO_API, &api);"
        # Events would have to be read: the Python form has a reader.
        return [f"{{ {api} {make} }}", 'told("userfaultfd");']
    statement = f"{{ {_call(op, args, file)} }}"
    if op.clone:
        # The child shares the memory, and so tells the result; the parent waits for it whatever the flags were.
        statement = f"if (!vfork()) {{ {statement} failed = errno; _exit(0); }} wait(NULL); errno = failed;"
    return [statement, f'told("{op.name}");']


def _truncated(file: str, pages: int) -> list[str]:
    return [f"result = ftruncate({file}, {pages}l * 4096);", f'told("{file}");']


def _call(op: Op, args: list[str], file: str) -> str:
    """A statement that sets result."""
    if op.name == "mmap":
        return _syscall(9, [*args[:4], file if op.file >= 0 else "-1L", args[4]])
    if op.name in ("mbind", "set_mempolicy"):
        mask = args[3] if op.name == "mbind" else args[1]
        rest = [*args[:3], "&mask", "65ul", args[4]] if op.name == "mbind" else [args[0], "&mask", "65ul"]
        return f"unsigned long mask = {mask}; {_syscall(NUMBERS[op.name], rest)}"
    if op.name == "get_mempolicy":
        return f"unsigned long mask[2]; int mode; {_syscall(239, ['&mode', 'mask', '65ul', *args])}"
    if op.name == "prlimit64":
        return f"struct rlimit limit = {{{args[1]}, RLIM_INFINITY}}; {_syscall(302, ['0ul', args[0], '&limit', '0ul'])}"
    if op.name == "mincore":
        return f"static unsigned char shown[1 << 16]; {_syscall(27, [*args, 'shown'])}"
    if op.name == "process_madvise":
        ranges = ", ".join([f"{{(void *){args[at]}, {args[at + 1]}}}" for at in range(2, len(args), 2)])
        count = f"{(len(args) - 2) // 2}ul"
        of = "-10000L" if op.file < 0 else f"syscall(434, pids[{op.file}], 0)"
        return f"struct iovec ranges[] = {{{ranges}}}; {_syscall(440, [of, 'ranges', count, args[0], args[1]])}"
    if op.name == "shmat":
        return _syscall(30, [f"segments[{op.file}]", *args])
    if op.name == "layout":
        fields = ", ".join(args if len(args) > 11 else [*args, "0", "0", "-1"])
        return f"struct prctl_mm_map map = {{{fields}}}; {_syscall(157, ['35ul', '14ul', '&map', '104ul', '0ul'])}"
    if op.name == "shmget":
        return f"{_syscall(29, args)} segments[{op.file}] = result;"
    if op.name == "shmctl":
        return _shmctl(op)
    if op.name == "seal":
        return f"result = fcntl({file}, F_ADD_SEALS, {args[0]});"
    if op.name == "register":
        return (
            f"struct uffdio_register range = {{{{{args[0]}, {args[1]}}}, {args[2]}, 0}}; "
            f"result = ioctl({file}, UFFDIO_REGISTER, &range);"
        )
    if op.name == "unregister":
        return (
            f"struct uffdio_range range = {{{args[0]}, {args[1]}}}; result = ioctl({file}, UFFDIO_UNREGISTER, &range);"
        )
    if op.name == "fill":
        return _fill(op, file)
    if op.name == "writeprotect":
        return (
            f"struct uffdio_writeprotect range = {{{{{args[0]}, {args[1]}}}, {args[2]}}}; "
            f"result = ioctl({file}, UFFDIO_WRITEPROTECT, &range);"
        )
    if op.name == "close":
        return f"result = close({file});"
    if op.name == "capset":
        low, high = op.args[0] & 0xFFFFFFFF, op.args[0] >> 32
        head = "unsigned head[] = {0x20080522, 0}"
        return f"{head}, caps[] = {{{low}u, {low}u, 0, {high}u, {high}u, 0}}; {_syscall(126, ['head', 'caps'])}"
    return _syscall(NUMBERS[op.name], args)


def _shmctl(op: Op) -> str:
    segment = f"segments[{op.file}]"
    if op.args[0] == IPC_STAT:
        field = ("shm_nattch", "shm_segsz", "shm_perm.mode")[op.args[1] % 3]
        return f"struct shmid_ds told; result = shmctl({segment}, IPC_STAT, &told); if (!result) result = told.{field};"
    if op.args[0] == IPC_SET:
        fields = f".shm_perm = {{.uid = geteuid(), .gid = getegid(), .mode = {op.args[1] & 0xFFFF:#o}}}"
        return f"struct shmid_ds set = {{{fields}}}; result = shmctl({segment}, IPC_SET, &set);"
    return f"static struct shmid_ds told[9]; {_syscall(31, [segment, f'{op.args[0]:#x}ul', 'told'])}"


def _fill(op: Op, file: str) -> str:
    start, length, _, mode = [f"{arg:#x}ul" for arg in op.args]
    name = ("COPY", "ZEROPAGE", "CONTINUE", "POISON")[op.args[2] & 3]
    if name == "COPY":
        fields = f".dst = {start}, .src = (unsigned long)&__executable_start, .len = {length}, .mode = {mode}"
        before = "extern char __executable_start; "
    else:
        fields = f".range = {{{start}, {length}}}, .mode = {mode}"
        before = ""
    return f"{before}struct uffdio_{name.lower()} page = {{{fields}}}; result = ioctl({file}, UFFDIO_{name}, &page);"


def _syscall(number: int, args: list[str]) -> str:
    return f"result = syscall({', '.join([str(number), *args])});"
