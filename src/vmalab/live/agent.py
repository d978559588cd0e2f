"""A live kernel as the judge: drives the agent, a small program that runs calls and reports its VMAs after each.

docs/agent-protocol.md describes what goes over the pipes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
import time
from typing import Final, final

from vmalab.errors import VmalabError
from vmalab.flags import VM_SOFTDIRTY, vm_flags_from_text
from vmalab.live import build_native
from vmalab.live.bpf import BpfError, VmaIterator

FIRST_CHANNEL: Final = 10
CHANNELS: Final = 8
"""How many processes an agent can have: itself and its descendants."""
MAX_STEPS: Final = 400
"""Steps of one batch: they fit into the pipe, so that neither side waits for the other."""
READ, WRITE, FORK, WAIT, SET_READER, EXEC, CLOCK, WORD, PUT = -1, -2, -3, -4, -5, -6, -7, -8, -9
"""Steps that are no system calls."""
DATA: Final = 64
"""Bytes that a step takes along."""
SAME: Final = 0xFFFFFFFF
READERS: Final = ("bpf", "query", "smaps", "maps", "none")
_READER_NUMBERS: Final = {"none": 0, "query": 1, "bpf": 2, "smaps": 0, "maps": 0}
_OUTSIDE: Final = ("smaps", "maps")
"""Readers of /proc from this side: one step at a time."""
_BATCH: Final = struct.Struct("<II")
_STEP: Final = struct.Struct("<q6Q6BBB64s")
_REPLY: Final = struct.Struct("<qQII")
_KEPT: Final = struct.Struct("<II")
_RECORD: Final = struct.Struct("<8Q")
_ADDR_NO_RANDOMIZE: Final = 0x40000
_ADDR_COMPAT_LAYOUT: Final = 0x200000
_STACK: Final = 8 << 20
_MOST_FILES: Final = 256
_CLONE_NEWNET: Final = 0x40000000
_USER_END: Final = 1 << 47
_CPU_SECONDS: Final = 3600
_WORD: Final = (1 << 64) - 1
_GONE: Final = -1
_EXIT_CODE: Final = 52
"""Field of /proc/PID/stat."""
_LARGE: Final = 1 << 61
_LOOK: Final = 1.0
"""After so many seconds without an answer it is looked whether the process is there at all."""
_PIPE: Final = 1 << 16
"""Bytes that a pipe holds."""
_NO_ARGUMENTS: Final = (0, 0, 0, 0, 0, 0)

Vmas = list[tuple[int, ...]]
"""Eight numbers for each VMA: start, end, flags, page offset, inode, anon_vma, chain length, extra.

The anon_vma is the start of the first VMA that has the same; the query reader leaves it and what follows 0, and its
flags are 1 readable, 2 writable, 4 executable, 8 shared.
"""


class AgentDied(VmalabError):
    """The agent, or one of its processes, is gone; `status` is what waiting for it told."""

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done
        """How many steps of the batch were answered."""


@final
class Step:
    """One step: a system call by its number, or READ, WRITE, FORK, WAIT; data goes to the scratch page first."""

    __slots__ = ("args", "data", "number", "slots", "to")

    def __init__(
        self,
        number: int,
        args: tuple[int, ...] = (),
        data: bytes = b"",
        to: int = 0,
        slots: tuple[int, int, int, int, int, int] = _NO_ARGUMENTS,
    ) -> None:
        self.number: int = number
        self.args: tuple[int, ...] = args
        self.data: bytes = data
        self.to: int = to
        """1 + the slot that takes the result."""
        self.slots: tuple[int, int, int, int, int, int] = slots
        """For each argument, 1 + the slot that it comes from, or 0."""

    def pack(self) -> bytes:
        """The step as the agent takes it."""
        # An argument that is no word of 64 bits is taken modulo 2^64; few are large enough to look.
        words = [arg if 0 <= arg < _LARGE else arg & _WORD for arg in self.args]
        return _STEP.pack(
            self.number, *words, *_NO_ARGUMENTS[len(words) :], *self.slots, self.to, len(self.data), self.data
        )


@final
class Reply:
    """What came of a step: its result (minus an errno where it failed), the signal that ended a touch, the VMAs."""

    __slots__ = ("result", "signal", "vmas")

    def __init__(self, result: int, signal: int, vmas: Vmas | None) -> None:
        self.result: int = result
        self.signal: int = signal
        """Number << 56 | si_code << 48 | address; 0 for none."""
        self.vmas: Vmas | None = vmas
        """None where they are as they were, or were not asked for."""


def why_not() -> str | None:
    """Why no agent can run here; None if one can."""
    if not build_native.AGENT.exists():
        return build_native.unsupported() or "the agent is not built: reinstall where there is a C compiler"
    return None


class _Channel:
    """One process of the agent: its two pipes, and what has been read of the second."""

    def __init__(self, to: int, back: int) -> None:
        self.to = to
        self.back = back
        self.pid = 0
        self.iterator: VmaIterator | None = None
        self.vmas: Vmas = []
        """As it was last reported."""
        self._buffer = b""
        self._at = 0
        self._poll = select.poll()
        self._poll.register(back, select.POLLIN)

    def read(self, length: int, seconds: float) -> bytes:
        """The next bytes.  Raises EOFError where there are no more, TimeoutError where they do not come."""
        if len(self._buffer) - self._at < length:
            self._fill(length, seconds)
        found = self._buffer[self._at : self._at + length]
        self._at += length
        return found

    def _fill(self, length: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while len(self._buffer) - self._at < length:
            remaining = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(min(remaining, _LOOK) * 1000):
                # The first process of the agent holds the pipes of all others: nothing is closed when one is gone.
                if _ended_by(self.pid) is not None:
                    raise EOFError
                if remaining <= _LOOK:
                    raise TimeoutError
                continue
            part = os.read(self.back, _PIPE)
            if not part:
                raise EOFError
            self._buffer = self._buffer[self._at :] + part
            self._at = 0


class Agent:
    """A running agent.  A context manager: leaving it ends the agent and all its processes."""

    def __init__(self, reader: str = "", *, seconds: float = 20.0, legacy: bool = False) -> None:
        """Start an agent with a reader (one of READERS), or the best that works here.

        legacy: mappings are placed from below (ADDR_COMPAT_LAYOUT).  A batch that takes more than some seconds ends the
        agent.  Raises VmalabError where none can run.
        """
        reason = why_not()
        if reason is not None:
            raise VmalabError(reason)
        if reader and reader not in READERS:
            raise VmalabError(f"there is no reader {reader!r}: choose among {', '.join(READERS)}")
        self._seconds = seconds
        self.first: Vmas | None = None
        """The VMAs of the process whose reader was chosen last, as it found them."""
        self.scratch: int = _scratch_address()
        """Where the data of a step goes."""
        self.known: dict[tuple[int, ...], tuple[int, ...]] = {}
        """Rows of lists of VMAs: equal ones are one object.  Whoever likes may clear it."""
        self._channels: list[_Channel] = []
        self.pid = self._spawn(legacy)
        self._channels[0].pid = self.pid
        self.why_not_bpf = ""
        """Why the BPF reader was not chosen."""
        try:
            self.reader = self._choose(reader)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def _spawn(self, legacy: bool) -> int:
        """Start the program with its pipes, alone, contained, and with a layout that is always the same."""
        theirs: list[tuple[int, int]] = []
        for _ in range(CHANNELS):
            step_read, step_write = os.pipe()
            reply_read, reply_write = os.pipe()
            self._channels.append(_Channel(step_write, reply_read))
            theirs.append((step_read, reply_write))
        pid = os.fork()
        if pid == 0:
            try:
                _become_agent(theirs, legacy)
            finally:
                os._exit(127)
        for pair in theirs:
            os.close(pair[0])
            os.close(pair[1])
        return pid

    def _choose(self, wanted: str) -> str:
        if wanted in ("", "bpf"):
            try:
                self._set_reader(0, "bpf")
                return "bpf"
            except BpfError as error:
                if wanted:
                    raise VmalabError(str(error)) from None
                self.why_not_bpf = str(error)
        if wanted in ("", "query"):
            try:
                self._set_reader(0, "query")
                return "query"
            except VmalabError:
                if wanted:
                    raise VmalabError("this kernel does not have PROCMAP_QUERY (Linux 6.11)") from None
        wanted = wanted or "smaps"
        self._set_reader(0, wanted)
        return wanted

    def _set_reader(self, who: int, reader: str) -> None:
        """Choose a reader for a process.  Raises VmalabError if it shows nothing."""
        channel = self._channels[who]
        number = 0
        self.reader = reader
        if reader == "bpf":
            channel.iterator = VmaIterator(channel.pid)
            number = channel.iterator.number
        channel.vmas = []
        (reply,) = self.run([Step(SET_READER, (_READER_NUMBERS[reader], number))], who)
        if reply.result:
            raise BpfError(f"the agent cannot use the BPF iterator: {os.strerror(-reply.result)}")
        self.first = reply.vmas if reader not in _OUTSIDE else read_vmas(channel.pid, reader)

    # -- running ------------------------------------------------------------------------------------------

    def run(self, steps: list[Step], who: int = 0, *, report: int = 1) -> list[Reply]:
        """Run steps in a process of the agent (0 is the first): the reply of each.

        report: the VMAs after each step (1), after the last (2), never (0).  Raises AgentDied.
        """
        replies: list[Reply] = []
        for first in range(0, len(steps), MAX_STEPS):
            part = steps[first : first + MAX_STEPS]
            try:
                self.send(part, who, report=report)
                for _ in part:
                    replies.append(self.receive(who))
            except AgentDied as died:
                raise AgentDied(str(died), len(replies)) from None
        return replies

    def run_at_once(self, steps: list[Step], who: int = 0) -> bytes:
        """Run at most 1024 steps in one batch, without a report: the replies as they came.  Raises AgentDied.

        The agent has read all of the batch before it begins, and writes when all is done: nothing comes between.
        """
        channel = self._channels[who]
        message = _BATCH.pack(len(steps), 0) + b"".join([step.pack() for step in steps])
        try:
            done = 0
            while done < len(message):
                done += os.write(channel.to, message[done:])
            return channel.read(len(steps) * _REPLY.size, self._seconds)
        except (BrokenPipeError, EOFError):
            raise AgentDied(self._death(channel), 0) from None
        except TimeoutError:
            os.kill(channel.pid, signal.SIGKILL)
            raise AgentDied(f"the agent was killed: no answer for {self._seconds:g} s", 0) from None

    def send(self, steps: list[Step], who: int = 0, *, report: int = 1) -> None:
        """Send steps to a process, at most MAX_STEPS that are not answered yet.  Raises AgentDied."""
        message = _BATCH.pack(len(steps), report) + b"".join([step.pack() for step in steps])
        channel = self._channels[who]
        try:
            os.write(channel.to, message)
        except BrokenPipeError:
            raise AgentDied(self._death(channel), 0) from None

    def receive(self, who: int = 0) -> Reply:
        """The answer to the first step that was sent and not answered yet.  Raises AgentDied."""
        channel = self._channels[who]
        try:
            result, signalled, count, failed = _REPLY.unpack(channel.read(_REPLY.size, self._seconds))
            if failed and result < 0:
                # A reader that could not be set is the reason, and the result says why.
                return Reply(result, signalled, None)
            if failed:
                raise VmalabError(f"the agent cannot read its VMAs: {os.strerror(failed)}")
            if count == SAME:
                outside = self.reader in _OUTSIDE and channel.pid != 0
                return Reply(result, signalled, read_vmas(channel.pid, self.reader) if outside else None)
            channel.vmas = self._list(channel, count)
            return Reply(result, signalled, channel.vmas)
        except EOFError:
            raise AgentDied(self._death(channel), 0) from None
        except TimeoutError:
            os.kill(channel.pid, signal.SIGKILL)
            raise AgentDied(f"the agent was killed: no answer for {self._seconds:g} s", 0) from None

    def _list(self, channel: _Channel, count: int) -> Vmas:
        """The list of VMAs: what stays of the last one at its two ends, and what comes between."""
        below, above = _KEPT.unpack(channel.read(_KEPT.size, self._seconds))
        last = channel.vmas
        changed = channel.read((count - below - above) * _RECORD.size, self._seconds)
        known = self.known
        rows = [known.setdefault(row, row) for row in _RECORD.iter_unpack(changed)]
        return last[:below] + rows + last[len(last) - above :]

    def fork(self, who: int, channel: int, *, report: int = 1) -> int:
        """Fork a process of the agent; the child answers on a free channel from then on.  Its pid, or -errno.

        report: as for run(), of the parent.
        """
        (reply,) = self.run([Step(FORK, (channel,))], who, report=report)
        if reply.result > 0:
            self.adopt(channel, reply.result)
        return reply.result

    def adopt(self, channel: int, pid: int) -> None:
        """Take note of a child that a step of FORK has made."""
        self._channels[channel].pid = pid
        self._set_reader(channel, self.reader)

    def exec(self, who: int) -> None:
        """Replace the program of a process by itself: a new address space, the same channel.  Raises AgentDied."""
        channel = self._channels[who]
        # What comes back is not an answer to this, but to the first step of the new program.
        self.send([Step(EXEC)], who, report=0)
        if channel.iterator is not None:
            channel.iterator.close()
            channel.iterator = None
        self._set_reader(who, self.reader)

    def reads_outside(self) -> bool:
        """Whether VMAs are read from this side, when a step is done: then there can only be one on its way."""
        return self.reader in _OUTSIDE

    def pid_of(self, who: int) -> int:
        """The pid of a process of the agent."""
        return self._channels[who].pid

    def exit(self, who: int, parent: int) -> None:
        """End a child, and let its parent wait for it."""
        channel = self._channels[who]
        message = _BATCH.pack(1, 0) + Step(231).pack()
        with contextlib.suppress(BrokenPipeError):
            os.write(channel.to, message)
        self.run([Step(WAIT, (channel.pid,))], parent)
        if channel.iterator is not None:
            channel.iterator.close()
            channel.iterator = None

    def _death(self, channel: _Channel) -> str:
        if channel.pid != self.pid:
            status = _ended_by(channel.pid)
            return f"process {channel.pid} of the agent " + _how(_GONE if status is None else status)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return "the agent " + _how(status)

    def close(self) -> None:
        """End the agent, its children with it (they die with their parent)."""
        for channel in self._channels:
            os.close(channel.to)
            os.close(channel.back)
            if channel.iterator is not None:
                channel.iterator.close()
        self._channels = []
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def _ended_by(pid: int) -> int | None:
    """How a process ended, as waitpid tells it, or _GONE where somebody has waited for it; None if it is there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return _GONE
    return int(fields[_EXIT_CODE - 3]) if fields[0] == b"Z" else None


def _how(status: int) -> str:
    """How the agent, or a process of it, came to its end."""
    if status == _GONE:
        return "is gone"
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    if code > 128:
        return f"stumbled over {signal.Signals(code - 128).name}"
    return f"exited with status {code}"


def read_vmas(pid: int, reader: str) -> Vmas:
    """The VMAs of a process from its smaps or maps, as the query reader shows them; with smaps the flags are whole."""
    rows: list[list[int]] = []
    with open(f"/proc/{pid}/{reader}", "rb") as file:
        for line in file.read().splitlines():
            words = line.split()
            if words[0] == b"VmFlags:":
                rows[-1][2] = vm_flags_from_text(line[8:].decode("ascii")) & ~VM_SOFTDIRTY
            elif not words[0].endswith(b":"):
                start, _, end = words[0].partition(b"-")
                inode = int(words[4])
                if int(start, 16) >= _USER_END:
                    break
                shown = sum([bit for letter, bit in zip(words[1], (1, 2, 4, 8), strict=True) if letter not in b"-p"])
                offset = int(words[2], 16) >> 12
                rows.append([int(start, 16), int(end, 16), shown, offset, inode, 0, 0, 0])
    return [tuple(row) for row in rows]


def _become_agent(theirs: list[tuple[int, int]], legacy: bool) -> None:
    """What the child of the fork does before it is the agent."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)
    os.setpgid(0, 0)
    libc.personality(_ADDR_NO_RANDOMIZE | (_ADDR_COMPAT_LAYOUT if legacy else 0))
    libc.unshare(_CLONE_NEWNET)
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK, hard))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Where memory runs out, this is what goes first.
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    high = [os.dup(each) for pair in theirs for each in pair]
    low = FIRST_CHANNEL + len(high)
    moved: list[int] = []
    for each in high:
        copy = each
        while copy < low:
            copy = os.dup(copy)
        moved.append(copy)
    for number, each in enumerate(moved):
        os.dup2(each, FIRST_CHANNEL + number)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, FIRST_CHANNEL)
    os.closerange(low, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_FILES, _MOST_FILES))
    os.execve(build_native.AGENT, ["agent"], {})


def _scratch_address() -> int:
    """The address of the scratch page: a symbol of the program."""
    data = build_native.AGENT.read_bytes()
    (sections_at,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + size * i) for i in range(count)]
    symbols = next(section for section in sections if section[1] == 2)
    names = sections[symbols[6]][4]
    for at in range(symbols[4], symbols[4] + symbols[5], 24):
        name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
        if data[names + name : names + name + 8] == b"scratch\0":
            return int(value)
    raise VmalabError("the agent has no scratch page")
