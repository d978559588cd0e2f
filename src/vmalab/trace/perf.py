"""Reads the text of perf trace, and of perf script on the events of system calls.

perf trace shows arguments by name and leaves out those that are 0; perf script shows registers.  Neither shows what
pointers point to, nor what clone3 is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, final

from vmalab.text import octal_text
from vmalab.trace.check import PID_LIMIT
from vmalab.trace.constants import errno_of_name, evaluate, number_of
from vmalab.trace.logs import (
    FORKS,
    MAX_LINE,
    WANTED,
    Event,
    Family,
    LogCall,
    LogEnd,
    LogFault,
    LogTask,
    Tally,
    Value,
    with_stacks,
)

Lines = Iterable[tuple[int, str]]

NUMBERS: Final[dict[int, str]] = {
    2: "open", 3: "close", 9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk", 16: "ioctl", 22: "pipe", 25: "mremap",
    26: "msync", 27: "mincore", 28: "madvise", 29: "shmget", 30: "shmat", 31: "shmctl", 32: "dup", 33: "dup2",
    41: "socket", 56: "clone", 57: "fork", 58: "vfork", 59: "execve", 67: "shmdt", 72: "fcntl", 85: "creat",
    135: "personality", 149: "mlock", 150: "munlock", 151: "mlockall", 152: "munlockall", 157: "prctl",
    160: "setrlimit", 216: "remap_file_pages", 231: "exit_group", 237: "mbind", 238: "set_mempolicy",
    256: "migrate_pages", 257: "openat", 279: "move_pages", 290: "eventfd2", 291: "epoll_create1", 292: "dup3",
    293: "pipe2", 302: "prlimit64", 319: "memfd_create", 322: "execveat", 323: "userfaultfd", 325: "mlock2",
    329: "pkey_mprotect", 330: "pkey_alloc", 331: "pkey_free", 425: "io_uring_setup", 427: "io_uring_register",
    435: "clone3", 436: "close_range", 437: "openat2", 440: "process_madvise", 447: "memfd_secret",
    448: "process_mrelease", 450: "set_mempolicy_home_node", 453: "map_shadow_stack", 462: "mseal",
}  # fmt: skip
"""The numbers of calls on x86-64, of those whose arguments are read."""

ARGUMENT_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "brk": ("brk",),
    "clone": ("clone_flags", "newsp", "parent_tidptr", "child_tidptr", "tls"),
    "clone3": ("uargs", "size"),
    "close": ("fd",),
    "close_range": ("fd", "max_fd", "flags"),
    "creat": ("pathname", "mode"),
    "dup": ("fildes",),
    "dup2": ("oldfd", "newfd"),
    "dup3": ("oldfd", "newfd", "flags"),
    "fcntl": ("fd", "cmd", "arg"),
    "io_uring_register": ("fd", "opcode", "arg", "nr_args"),
    "ioctl": ("fd", "cmd", "arg"),
    "madvise": ("start", "len_in", "behavior"),
    "map_shadow_stack": ("addr", "size", "flags"),
    "mbind": ("start", "len", "mode", "nmask", "maxnode", "flags"),
    "memfd_create": ("uname", "flags"),
    "memfd_secret": ("flags",),
    "migrate_pages": ("pid", "maxnode", "old_nodes", "new_nodes"),
    "mincore": ("start", "len", "vec"),
    "mlock": ("start", "len"),
    "mlock2": ("start", "len", "flags"),
    "mlockall": ("flags",),
    "mmap": ("addr", "len", "prot", "flags", "fd", "off"),
    "move_pages": ("pid", "nr_pages", "pages", "nodes", "status", "flags"),
    "mprotect": ("start", "len", "prot"),
    "mremap": ("addr", "old_len", "new_len", "flags", "new_addr"),
    "mseal": ("start", "len", "flags"),
    "msync": ("start", "len", "flags"),
    "munlock": ("start", "len"),
    "munmap": ("addr", "len"),
    "open": ("filename", "flags", "mode"),
    "openat": ("dfd", "filename", "flags", "mode"),
    "openat2": ("dfd", "filename", "how", "usize"),
    "personality": ("personality",),
    "pkey_alloc": ("flags", "init_val"),
    "pkey_free": ("pkey",),
    "pkey_mprotect": ("start", "len", "prot", "pkey"),
    "prctl": ("option", "arg2", "arg3", "arg4", "arg5"),
    "prlimit64": ("pid", "resource", "new_rlim", "old_rlim"),
    "process_madvise": ("pidfd", "vec", "vlen", "behavior", "flags"),
    "process_mrelease": ("pidfd", "flags"),
    "remap_file_pages": ("start", "size", "prot", "pgoff", "flags"),
    "set_mempolicy": ("mode", "nmask", "maxnode"),
    "set_mempolicy_home_node": ("start", "len", "home_node", "flags"),
    "setrlimit": ("resource", "rlim"),
    "shmat": ("shmid", "shmaddr", "shmflg"),
    "shmctl": ("shmid", "cmd", "buf"),
    "shmdt": ("shmaddr",),
    "shmget": ("key", "size", "shmflg"),
    "userfaultfd": ("flags",),
}
"""The arguments of each call by the names that the kernel gives them."""
_OTHER_NAMES: Final = {"pgoff": "off", "len": "len_in", "size": "len", "start": "addr", "addr": "start"}
"""What other kernels call an argument."""
_PREFIXES: Final = {
    "arg2": "PR_SET_MM_",
    "prot": "PROT_",
    "behavior": "MADV_",
    "clone_flags": "CLONE_",
    "resource": "RLIMIT_",
    "dfd": "AT_FD",
    "option": "PR_",
    "cmd": "F_",
}
_FLAG_PREFIXES: Final = {"mmap": "MAP_", "mremap": "MREMAP_", "mlockall": "MCL_", "msync": "MS_", "mlock2": "MLOCK_",
                         "open": "O_", "openat": "O_", "memfd_create": "MFD_", "remap_file_pages": "MAP_"}  # fmt: skip
_STRINGS: Final = frozenset({"filename", "pathname", "uname"})

_TRACE: Final = re.compile(
    r"(?:\?|\d{1,12}\.\d{1,6}) \( ?(?:\d{1,20}\.\d{1,6} ms)? ?\): (?:(?P<comm>.{0,64}?)/(?P<tid>\d{1,7}) )?(?P<rest>.*)"
)
_TRACE_CALL: Final = re.compile(r"([a-z_]\w{0,63})\((.*)")
_CONTINUED: Final = re.compile(r"\.\.\. \[continued\]: ([a-z_]\w{0,63})\(.{0,8}?\) ?= ?(.*)")
_TRACE_END: Final = re.compile(r"(.*)\) ?= ?(.*)")
_RESULT: Final = re.compile(r"(-?\d{1,20}|0x[0-9a-f]{1,16})(?: (E[A-Z0-9]{1,20})\b.*| \(.*\))?")
_FAULT: Final = re.compile(r"(?:min|maj)fault \[.*")
_LOST: Final = re.compile(r"LOST \d+ events!.*|\[ ?perf .*|.*: ?LOST \d+.*")

_SCRIPT: Final = re.compile(
    r"(?:(?P<comm>\S.{0,63}?) )?(?:(?P<pid>-?\d{1,7})/)?(?P<tid>-?\d{1,7}) (?:\[\d{1,5}\] )?(?:\S{4,8} )?"
    r"(?:\d{1,12}\.\d{1,9}: )(?:\d{1,12} )?(?P<event>[a-z_]\w{0,40}:[a-z_]\w{0,63}): ?(?P<rest>.*)"
)
_RECORD: Final = re.compile(r".{0,200}?PERF_RECORD_(\w{1,30})(?:\((\d{1,7}):(\d{1,7})\):\((\d{1,7}):(\d{1,7})\))?.*")
_OFFSET: Final = re.compile(r"\+0x[0-9a-f]")
_ADDRESS: Final = re.compile(r"\[?(?:0x)?([0-9a-f]{1,16})\]?")
_RAW_ENTER: Final = re.compile(r"NR (-?\d{1,6}) \(([0-9a-fx, ]{0,200})\)")
_RAW_EXIT: Final = re.compile(r"NR (-?\d{1,6}) = (-?\d{1,20})")
_FIELD: Final = re.compile(r"(\w{1,40})=(\S{0,4096})")


def _plain(line: str) -> str:
    """A line with single spaces."""
    return " ".join(line[:MAX_LINE].split())


def _is_frame(text: str) -> bool:
    """Whether a line, with single spaces, is one of a stack: address, symbol and file, or two of them."""
    if text.startswith("[") and text.endswith("]"):
        return True
    head, parenthesis, _ = text.rpartition("(")
    if not parenthesis or not text.endswith(")"):
        return False
    first, space, _ = head.partition(" ")
    return bool(
        (space and _ADDRESS.fullmatch(first)) or _OFFSET.search(head) or (" (" in text and text.count(" ") == 1)
    )


def _frame(text: str) -> str:
    """A line of a stack, with single spaces, as a frame of a Stack record; empty where it is of the kernel, or none."""
    name, space, path = text.removesuffix(")").rpartition(" (")
    if not space or path.startswith(("[kernel", "[unknown")):
        return ""
    head, _, symbol = name.partition(" ")
    address = _ADDRESS.fullmatch(head)
    if address is not None:
        name = f"0x{address[1]}" if symbol in ("", "[unknown]") else symbol
    return f"{name} ({path})" if path != "inlined" else name


def _trace_frame(line: str) -> str | None:
    if not line[:1].isspace():
        return None
    text = _plain(line)
    return _frame(text) if _is_frame(text) and not _TRACE.fullmatch(text) else None


def _script_frame(line: str) -> str | None:
    if not line[:1].isspace():
        return None
    text = _plain(line)
    return _frame(text) if _is_frame(text) and not _SCRIPT.fullmatch(text) else None


# -- perf trace ---------------------------------------------------------------------------------------


def looks_like_trace(line: str) -> bool:
    """Whether a line is one of perf trace."""
    found = _TRACE.fullmatch(_plain(line))
    return found is not None and any(form.match(found["rest"]) for form in (_TRACE_CALL, _CONTINUED, _FAULT))


def look_through_trace(lines: Lines, family: Family) -> None:
    """The first look: which task made which, and which ran another program."""
    for _, line in lines:
        if "clone" not in line and "fork" not in line and "exec" not in line:
            continue
        found = _TRACE.fullmatch(_plain(line))
        if found is None:
            continue
        tid = _tid(found["tid"]) or family.main
        call = _TRACE_CALL.fullmatch(found["rest"])
        end = _TRACE_END.fullmatch(call[2]) if call is not None else None
        again = _CONTINUED.fullmatch(found["rest"])
        name, result = (call[1], end[2]) if call and end else (again[1], again[2]) if again else ("", "")
        ret = _returned(result)
        if name in FORKS and ret is not None and 0 < ret <= PID_LIMIT:
            family.parents.setdefault(ret, []).append(tid)
        elif name == "execve" and ret == 0:
            family.execs.add(tid)


def read_trace(lines: Lines, family: Family, tally: Tally) -> Iterator[Event]:
    """What perf trace shows, in its order; what is not understood goes to the tally."""
    begun: dict[int, LogCall] = {}
    for line in with_stacks(lines, _trace_frame):
        tally.lines += 1
        yield from line.give_stack(_trace_text(line.number, line.text, family, begun, tally), tally)


def _trace_text(number: int, line: str, family: Family, begun: dict[int, LogCall], tally: Tally) -> Iterator[Event]:
    text = _plain(line)
    if len(line) > MAX_LINE:
        tally.bad(number, line[:200], "the line is too long")
        return
    if not text or text.startswith("#"):
        tally.passed["empty lines and comments"] += 1
        return
    found = _TRACE.fullmatch(text)
    if found is not None:
        tid = _tid(found["tid"]) or family.main
        yield from _trace_line(number, tid, found["comm"] or "", found["rest"], begun, tally)
    elif _LOST.fullmatch(text):
        tally.passed["notices of perf"] += 1
        yield LogTask(number, 0, "lost", why=f"line {number}: perf lost events")
    elif _trace_frame(line) is not None:
        tally.passed["lines of stacks of other calls"] += 1
    else:
        tally.bad(number, line, "not a line of perf trace")


def _trace_line(
    number: int, tid: int, comm: str, rest: str, begun: dict[int, LogCall], tally: Tally
) -> Iterator[Event]:
    again = _CONTINUED.fullmatch(rest)
    if again is not None:
        yield from _continued(number, tid, comm, again, begun, tally)
        return
    call = _TRACE_CALL.fullmatch(rest)
    if call is None:
        if _FAULT.fullmatch(rest):
            tally.passed["page faults, of which perf trace does not say whether they wrote"] += 1
        else:
            tally.bad(number, rest, "not a line of perf trace")
        return
    name = call[1]
    if name not in WANTED or name == "exit_group":
        tally.others += not rest.endswith("...")
        return
    if rest.endswith("..."):
        begun[tid] = LogCall(number, tid, name, _named(name, call[2][:-3].strip().removesuffix(")")), unfinished=True)
        yield begun[tid]
        return
    end = _TRACE_END.fullmatch(call[2])
    if end is None:
        tally.bad(number, rest, "the call has no result")
        return
    ret = _returned(end[2])
    if ret is None and name == "fcntl":
        tally.others += 1  # flags by their names: no descriptor, and no seal
    elif ret is None:
        tally.bad(number, rest, "the result is none that perf trace prints")
        yield LogTask(number, tid, "lost", why=f"line {number}: {name} was not understood")
    else:
        yield LogCall(number, tid, name, _named(name, end[1]), ret)


def _continued(
    number: int, tid: int, comm: str, again: re.Match[str], begun: dict[int, LogCall], tally: Tally
) -> Iterator[Event]:
    name, ret = again[1], _returned(again[2])
    before = begun.pop(tid, None)
    if name == "execve" and ret == 0:
        args = before.args if before is not None and before.args and before.args[0].text else []
        yield LogCall(number, tid, name, args or [Value(text=octal_text(comm))], ret)
    elif before is not None and before.name == name and ret is not None:
        yield LogCall(number, tid, name, before.args, ret, stack=before.stack)
    elif name in FORKS and (ret == 0 or before is None):
        # A new task returns from the call that its maker made.
        tally.others += 1
    elif name in WANTED and name != "exit_group":
        tally.bad(number, again[0], "the first half of the call is missing")
        yield LogTask(number, tid, "lost", why=f"line {number}: the first half of a call is missing")
    else:
        tally.others += 1


def _tid(text: str | None) -> int:
    number = int(text) if text else 0
    return number if 0 < number <= PID_LIMIT else 0


def _returned(text: str) -> int | None:
    """The result or minus the errno."""
    found = _RESULT.fullmatch(text.strip())
    if found is None:
        return None
    value = number_of(found[1])
    if found[2] is not None:
        error = errno_of_name(found[2])
        return -error if error else None
    return value if value is None or value >= -4095 else None


# -- arguments ----------------------------------------------------------------------------------------


def _named(name: str, text: str) -> list[Value]:
    """Arguments by their names, put in order; those that are not there are 0."""
    order = ARGUMENT_NAMES.get(name, ())
    found = [Value(number=0) for _ in order]
    if name == "mmap":
        found[4] = Value(number=-1)
    place = 0
    for part in _split(text):
        label, colon, shown = part.partition(":")
        label = label.strip()
        if not colon:
            continue
        if label not in order:
            label = _OTHER_NAMES.get(label, label)
        if label in order:
            place = order.index(label)
        elif label.startswith("arg") and label[3:].isdecimal() and len(label) < 6 and name != "prctl":
            place = int(label[3:])
        else:
            continue
        if place < len(found):
            found[place] = _argument(name, order[place], shown.strip())
    return found


def _split(text: str) -> Iterator[str]:
    """The parts between commas, but for those within quotes or a path in angle brackets."""
    start = 0
    quoted = angle = False
    for at, char in enumerate(text):
        if char == '"' and not angle:
            quoted = not quoted
        elif char == "<" and not quoted:
            angle = True
        elif char == ">" and not quoted:
            angle = False
        elif char == "," and not quoted and not angle:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _argument(name: str, label: str, shown: str) -> Value:
    if '"' in shown:
        head, _, rest = shown.partition('"')
        text, closed, _ = rest.rpartition('"')
        return Value(number=number_of(head.strip()), text=octal_text(text if closed else rest))
    number, angle, path = shown.partition("<")
    if angle and path.endswith(">"):
        return Value(number=number_of(number.strip()), path=octal_text(path[:-1].removesuffix(" (deleted)")))
    prefix = _FLAG_PREFIXES.get(name, "") if label == "flags" else _PREFIXES.get(label, "")
    value = evaluate(shown, prefix) if shown else None
    if value is None and label in _STRINGS:
        return Value(text=octal_text(shown))
    return Value(number=value)


# -- perf script --------------------------------------------------------------------------------------


def looks_like_script(line: str) -> bool:
    """Whether a line is one of perf script's about system calls, faults or tasks."""
    found = _SCRIPT.fullmatch(_plain(line))
    return found is not None and found["event"].startswith(("syscalls:", "raw_syscalls:", "exceptions:", "sched:"))


def look_through_script(lines: Lines, family: Family) -> None:
    """The first look: which task made which, which ran another program, and which events there are."""
    for _, line in lines:
        text = _plain(line)
        found = _SCRIPT.fullmatch(text)
        if found is None:
            record = _RECORD.fullmatch(text)
            if record is not None and record[1] == "FORK" and record[2]:
                _made(family, int(record[3]), int(record[5]))
            continue
        event, rest = found["event"], found["rest"]
        if event.startswith("sched:"):
            fields = dict(_FIELD.findall(rest))
            family.seen.add(event)
            if event == "sched:sched_process_fork":
                _made(family, _tid_field(fields, "child_pid"), _tid_field(fields, "pid"))
            elif event == "sched:sched_process_exec":
                family.execs.add(_tid_field(fields, "pid"))
            continue
        tid = _tid(found["tid"].lstrip("-"))
        name, ret = _script_exit(event, rest)
        if name in FORKS and ret is not None and 0 < ret <= PID_LIMIT:
            _made(family, ret, tid)
        elif name in ("execve", "execveat") and ret == 0:
            family.execs.add(tid)


def _made(family: Family, child: int, parent: int) -> None:
    """Note who made a task; several events may tell of one."""
    parents = family.parents.setdefault(child, [])
    if 0 < child <= PID_LIMIT and parent not in parents[-1:]:
        parents.append(parent)


def _tid_field(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    return _tid(text) if text.isdecimal() and text.isascii() and len(text) < 8 else 0


def _script_exit(event: str, rest: str) -> tuple[str, int | None]:
    """The call that returned in an event and what it gave; an empty name if none did."""
    if event == "raw_syscalls:sys_exit":
        found = _RAW_EXIT.fullmatch(rest)
        if found is None:
            return "", None
        return NUMBERS.get(int(found[1]), f"call {found[1]}"), _signed(int(found[2]))
    if event.startswith("syscalls:sys_exit_"):
        value = number_of(rest.strip())
        return event[len("syscalls:sys_exit_") :], _signed(value) if value is not None else None
    return "", None


def _signed(value: int) -> int | None:
    """A register as a result: an errno is negative."""
    value = value - (1 << 64) if value >= (1 << 64) - 4095 else value
    return value if -4095 <= value < 1 << 63 else None


def read_script(lines: Lines, family: Family, tally: Tally) -> Iterator[Event]:
    """What perf script shows, in its order; what is not understood goes to the tally."""
    reader = _Script(family, tally)
    for line in with_stacks(lines, _script_frame):
        tally.lines += 1
        if len(line.text) > MAX_LINE:
            tally.bad(line.number, line.text[:200], "the line is too long")
            continue
        yield from line.give_stack(reader.line(line.number, line.text), tally)


@final
class _Script:
    """Pairs what enters with what returns."""

    def __init__(self, family: Family, tally: Tally) -> None:
        self.family = family
        self.tally = tally
        self.begun: dict[int, LogCall] = {}
        self.grouped: set[int] = set()

    def line(self, number: int, line: str) -> Iterator[Event]:
        tally = self.tally
        text = _plain(line)
        found = _SCRIPT.fullmatch(text)
        if found is not None:
            tid = _tid(found["tid"].lstrip("-"))
            pid = _tid((found["pid"] or "").lstrip("-"))
            if not tid:
                tally.passed["events of the kernel's own tasks"] += 1
                return
            if pid and pid != tid and tid not in self.grouped:
                self.grouped.add(tid)
                yield LogTask(number, tid, "group", pid)
            yield from self._event(number, tid, found["comm"] or "", found["event"], found["rest"], line)
        elif not text or text.startswith("#"):
            tally.passed["empty lines and comments"] += 1
        elif _script_frame(line) is not None:
            tally.passed["lines of stacks of other calls"] += 1
        elif record := _RECORD.fullmatch(text):
            yield from self._record(number, record)
        elif _LOST.fullmatch(text):
            yield LogTask(number, 0, "lost", why=f"line {number}: perf lost events")
        else:
            tally.bad(number, line, "not a line of perf script")

    def _record(self, number: int, record: re.Match[str]) -> Iterator[Event]:
        if record[1].startswith("LOST"):
            yield LogTask(number, 0, "lost", why=f"line {number}: perf lost events")
        elif record[1] == "FORK" and record[2] and record[2] != record[3]:
            yield LogTask(number, int(record[3]), "group", int(record[2]))
        self.tally.passed["records of perf"] += 1

    def _event(self, number: int, tid: int, comm: str, event: str, rest: str, line: str) -> Iterator[Event]:
        tally = self.tally
        if event == "raw_syscalls:sys_enter":
            found = _RAW_ENTER.fullmatch(rest)
            if found is None:
                tally.bad(number, line, "not as perf script shows a call")
                return
            words = [_word(word) for word in found[2].split(",")]
            yield from self._enter(number, tid, NUMBERS.get(int(found[1]), ""), words)
        elif event.startswith("syscalls:sys_enter_"):
            name = event[len("syscalls:sys_enter_") :]
            yield from self._enter(number, tid, name, _named(name, rest) if name in WANTED else [])
        elif event == "raw_syscalls:sys_exit" or event.startswith("syscalls:sys_exit_"):
            yield from self._exit(number, tid, comm, event, rest, line)
        elif event in ("exceptions:page_fault_user", "exceptions:page_fault_kernel"):
            yield from self._fault(number, tid, rest, line)
        elif event.startswith("sched:sched_process_"):
            yield from self._sched(number, tid, event, rest)
        else:
            tally.passed["other events"] += 1

    def _enter(self, number: int, tid: int, name: str, args: list[Value]) -> Iterator[Event]:
        name = _renamed(name)
        if name in WANTED:
            self.begun[tid] = LogCall(number, tid, name, args, unfinished=True)
            yield self.begun[tid]
        else:
            self.begun.pop(tid, None)

    def _exit(self, number: int, tid: int, comm: str, event: str, rest: str, line: str) -> Iterator[Event]:
        name, ret = _script_exit(event, rest)
        name = _renamed(name)
        if not name or ret is None:
            self.tally.bad(number, line, "not as perf script shows a result")
            return
        begun = self.begun.pop(tid, None)
        if name in ("execve", "execveat"):
            if ret == 0 and "sched:sched_process_exec" not in self.family.seen:
                yield LogCall(number, tid, "execve", [Value(text=octal_text(comm))], 0)
        elif begun is not None and begun.name == name:
            yield LogCall(number, tid, name, begun.args, ret, stack=begun.stack)
        elif name in WANTED and name not in FORKS:
            # The recording began within the call.
            self.tally.passed["results of calls whose beginning is not in the log"] += 1
            yield LogTask(number, tid, "lost", why=f"line {number}: the beginning of {name} is not in the log")
        else:
            self.tally.others += 1

    def _fault(self, number: int, tid: int, rest: str, line: str) -> Iterator[Event]:
        fields = dict(_FIELD.findall(rest))
        addr = number_of(fields.get("address", ""))
        code = number_of(fields.get("error_code", ""))
        if addr is None or code is None or addr < 0:
            self.tally.bad(number, line, "not as perf script shows a page fault")
        else:
            yield LogFault(number, tid, addr, bool(code & 2))

    def _sched(self, number: int, tid: int, event: str, rest: str) -> Iterator[Event]:
        fields = dict(_FIELD.findall(rest))
        pid = _tid_field(fields, "pid") or tid
        if event == "sched:sched_process_exec":
            yield LogCall(number, pid, "execve", [Value(text=octal_text(fields.get("filename", "")))], 0)
        elif event == "sched:sched_process_exit":
            yield LogEnd(number, pid)
        else:
            self.tally.passed["other events"] += 1


def _renamed(name: str) -> str:
    return {"newuname": "uname", "prlimit": "prlimit64"}.get(name, name)


def _word(text: str) -> Value:
    """A register in hexadecimal without 0x."""
    digits = text.strip().removeprefix("0x")
    try:
        return Value(number=int(digits, 16) if len(digits) <= 16 else None)
    except ValueError:
        return Value()
