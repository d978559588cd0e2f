"""Records a program: starts the helper that traces it, and turns the helper's events into a trace.

The program runs as it would without the recorder, with the same descriptors, terminal, process group and signals.  Its
processes are recorded until the last has ended, also those that outlive the first.
"""

import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from vmalab.errors import InputError
from vmalab.live import build_native
from vmalab.live.facts import machine_facts
from vmalab.live.procfs import ProcessFiles, describe, parse_smaps, printable
from vmalab.text import escape_text
from vmalab.trace.file import TraceWriter
from vmalab.trace.records import VERSION, Call, End, Exit, File, Fork, Header, Lost, Record

HELPER: Final = build_native.PROGRAM
FORWARD_AFTER: Final = 0.05
"""Seconds until a signal is passed on.  One from the terminal reaches the helper by itself; it must come first."""
QUIET: Final = 0.2
"""Seconds without an event after which what there is goes to the file."""
_CHUNK: Final = 1 << 18
_DRIVER_FLAGS: Final = frozenset({"io", "pf", "mm", "de", "dc", "dd", "ht"})
"""The VmFlags that only a driver gives to a new mapping."""
_NO_PRIVILEGES: Final = "set-user-ID programs ran without their privileges, because the recorder has none"
_NO_NEW_PRIVS: Final = "no_new_privs was set in the program, which the recorder needs without CAP_SYS_ADMIN"


class Summary(msgspec.Struct):
    """What a recording came to."""

    file: str
    status: int
    """The program's exit status; 128 + N if signal N ended it."""
    signal: int | None
    interrupted: bool
    """Ended by Ctrl-C or a signal to the recorder."""
    processes: int = 0
    threads: int = 0
    calls: int = 0
    records: int = 0
    lost: list[str] = []
    """What the trace lacks, in words."""
    notes: list[str] = []
    """What is to be known of the recording besides."""
    recorder: str = "ptrace"
    events_lost: int = 0
    """Events that there was no room for between the kernel and the recorder."""
    events_left_out: int = 0
    """Events that came after that, and before their process showed its VMAs anew."""
    faults: int = 0
    """Page faults that are records of their own."""
    reason: str = "ended"
    """Why the recording ended: ended, time, size, maps, enomem or interrupted."""


class _Start(msgspec.Struct, tag="start"):
    no_new_privs: bool | int


class _Failed(msgspec.Struct, tag="failed"):
    stage: str
    errno: int


class _Exec(msgspec.Struct, tag="exec"):
    pid: int
    exe: str = ""
    cmdline: str = ""
    stat: str = ""
    status: str = ""
    limits: str = ""
    personality: str = ""
    ksm_stat: str = ""
    smaps: str = ""


class _File(msgspec.Struct, tag="file"):
    id: int
    dev: str
    ino: int
    path: str
    readable: int
    writable: int
    kind: str
    fs: str
    noexec: int
    vmflags: str = ""


class _Exit(msgspec.Struct, tag="exit"):
    pid: int
    status: int
    smaps: str | None = None
    written: list[int] = []
    grown: list[tuple[int, int]] = []


class _Lost(msgspec.Struct, tag="lost"):
    pid: int
    why: str


class _Done(msgspec.Struct, tag="done"):
    status: int
    interrupted: int


_Event = _Start | _Failed | _Exec | _File | _Exit | _Lost | _Done | Call | Fork
_decoder: Final = msgspec.json.Decoder(_Event)


def why_not() -> str | None:
    """Why this machine cannot record, as one sentence that says what to do; None if it can."""
    return _try_out()[0]


def _try_out() -> tuple[str | None, bool]:
    """Traces a process that does nothing: what prevents it, and whether no_new_privs was needed."""
    reason = build_native.unsupported()
    if reason is not None:
        return reason, False
    if not HELPER.exists():
        writable = os.access(HELPER.parent.parent, os.W_OK)
        reason = build_native.build() if writable else "it is not part of this installation"
        if reason is not None:
            return f"the recorder's helper is missing: {reason}", False
    if not Path("/proc/self/smaps").exists():
        return "recording needs /proc, and it is not mounted here", False
    try:
        done = subprocess.run([str(HELPER), "--check"], capture_output=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the recorder's helper does not run: {error}", False
    if done.returncode == 0:
        return None, b'"no_new_privs":1' in done.stdout
    try:
        event = _decoder.decode(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return f"the recorder's helper ended with status {done.returncode}", False
    return (_explain(event) if isinstance(event, _Failed) else "the recorder's helper failed"), False


def _explain(failed: _Failed) -> str:
    """Why the helper could not start a program, other than for reasons of the program."""
    error = os.strerror(failed.errno)
    if failed.stage == "t":
        scope = _ptrace_scope()
        if scope >= 2:
            return f"ptrace is forbidden here: kernel.yama.ptrace_scope is {scope} ({error})"
        return f"a new process cannot be traced ({error}): vmalab itself is being traced, or ptrace is forbidden here"
    if failed.stage == "f":
        return f"seccomp filters, which the recorder needs, are not to be had here ({error})"
    return f"a new process cannot be started ({error})"


def _ptrace_scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text("ascii"))
    except (OSError, ValueError):
        return 0


def given(environment: Mapping[str, str] | None) -> Mapping[str, str]:
    """The environment of a program that is started: this process's own unless given.

    Without what libraries have put into the one of C since, as readline puts the size of the terminal.
    """
    return os.environ if environment is None else environment


def record(
    command: Sequence[str], output: str, *, environment: dict[str, str] | None = None, use_ioctls: bool = True
) -> Summary:
    """Run a command and write its trace; returns when it and all that it started have ended.

    The environment is this process's own unless given.  Without use_ioctls, maps and pagemap are read as kernels before
    6.7 have them.  Raises InputError if the command or the output is no good; the program has not run then, unless the
    message says so.
    """
    check_command(command)
    check_output(output)
    reason, no_new_privs = _try_out()
    if reason is not None:
        raise InputError(f"cannot record: {reason}")
    notes = [_NO_NEW_PRIVS] if no_new_privs else []
    if os.geteuid() != 0:
        notes.append(_NO_PRIVILEGES)
    header = Header(
        vmalab="trace",
        version=VERSION,
        recorder="ptrace",
        faults="at-calls",
        command=[printable(os.fsencode(word)) for word in command],
        machine=machine_facts(),
        notes=notes,
    )
    with TraceWriter(output, header, at_first_record=True) as writer:
        recording = _Recording(writer, output)
        options = [] if use_ioctls else ["--no-ioctls"]
        failed = recording.run(options, list(command), environment)
        if failed is not None:
            writer.abandon()
    if failed is not None:
        if failed.stage == "e":
            raise cannot_run(command[0], failed.errno)
        raise InputError(f"cannot record: {_explain(failed)}")
    return recording.summary


def check_command(command: Sequence[str]) -> None:
    """Raises InputError where it is clear before the output is opened that the program is not there."""
    if not command:
        raise InputError("no command to record: vmalab record -o FILE -- COMMAND [ARGUMENT...]")
    name = command[0]
    if "/" not in name and shutil.which(name) is None:
        raise cannot_run(name, 2)
    if "/" in name and not Path(name).exists():
        raise cannot_run(name, 2)


def check_output(output: str) -> None:
    """Raises InputError where a trace cannot go."""
    if output == "-":
        raise InputError("a trace cannot go to standard output, which belongs to the program: give a file with -o")


def cannot_run(name: str, error: int) -> InputError:
    """The program is there, or not, and does not start."""
    return InputError(f"cannot run '{escape_text(name, 200)}': {os.strerror(error)}")


class Output:
    """The trace of a recording.  Where the disk is full what is recorded runs on, and what comes is dropped."""

    def __init__(self, writer: TraceWriter) -> None:
        self.writer = writer
        self.broken: InputError | None = None
        """Why nothing more can be written."""
        self.dirty = False
        """Something has not been brought to where a reader can see it."""

    def write(self, record: Record) -> None:
        """Write a record."""
        self.dirty = True
        self._try(lambda: self.writer.write(record))

    def flush(self) -> None:
        """Nothing happens for the moment: bring what there is to the file."""
        self.dirty = False
        self._try(self.writer.flush)

    def end(self, summary: Summary, status: int, *, interrupted: bool) -> None:
        """Write the last record and close, and put into the summary how the program ended, by its wait status."""
        self.write(End(n=0, reason="interrupted" if interrupted else "done"))
        self._try(self.writer.close)
        self.say_end(summary, status, interrupted=interrupted)

    def say_end(self, summary: Summary, status: int, *, interrupted: bool) -> None:
        """Put into the summary how the program ended."""
        summary.interrupted = interrupted
        summary.signal = status & 0x7F or None
        summary.status = 128 + summary.signal if summary.signal else status >> 8 & 0xFF
        summary.records = self.writer.count

    def _try(self, action: Callable[[], object]) -> None:
        if self.broken is None:
            try:
                action()
            except InputError as error:
                self.broken = error


class _Recording:
    """One run: the helper, its events, and the trace they go to."""

    def __init__(self, writer: TraceWriter, output: str) -> None:
        self.summary = Summary(file=output, status=2, signal=None, interrupted=False)
        self._output = Output(writer)
        self._failed: _Failed | None = None
        self._done: _Done | None = None

    def run(self, options: list[str], command: list[str], environment: dict[str, str] | None) -> _Failed | None:
        """Record to the end.  Returns why the program did not start, if it did not."""
        read_end, write_end = os.pipe()
        with signals() as arrived:
            os.set_inheritable(write_end, True)
            try:
                helper = subprocess.Popen(
                    [str(HELPER), *options, str(write_end), "--", *command], close_fds=False, env=given(environment)
                )
            finally:
                os.close(write_end)
            try:
                self._follow(read_end, helper, arrived)
            finally:
                os.close(read_end)
                if self._done is None and self._failed is None:
                    helper.kill()
                helper.wait()
        if self._failed is not None:
            return self._failed
        self._finish(helper.returncode)
        return None

    def _follow(self, events: int, helper: "subprocess.Popen[bytes]", arrived: "Arrived") -> None:
        """Read events until there are no more; pass signals on."""
        rest: list[bytes] = []
        for data in arrived.read(events, helper, self._patience, self._output.flush):
            *lines, last = data.split(b"\n")
            if lines:
                lines[0] = b"".join([*rest, lines[0]])
                rest = []
                for line in lines:
                    self._take(line)
            rest.append(last)

    def _patience(self) -> float | None:
        """How long nothing may come before what is read is written out, in seconds."""
        return QUIET if self._output.dirty else None

    def _take(self, line: bytes) -> None:
        event = _decoder.decode(line)
        summary = self.summary
        if isinstance(event, Call):
            summary.calls += 1
            name = event.data.get("name") if event.data else None
            if isinstance(name, str):
                event.data["name"] = printable(name.encode("latin-1"))
            self._output.write(event)
        elif isinstance(event, Fork):
            summary.threads += 1
            summary.processes += event.pid == event.tid
            self._output.write(event)
        elif isinstance(event, _File):
            self._output.write(_file(event))
        elif isinstance(event, _Exec):
            self._take_exec(event)
        elif isinstance(event, _Exit):
            self._take_exit(event)
        elif isinstance(event, _Lost):
            self._lose(event.pid, event.why)
        elif isinstance(event, _Done):
            self._done = event
        elif isinstance(event, _Failed):
            self._failed = event

    def _take_exec(self, event: _Exec) -> None:
        raw = {name: getattr(event, name).encode("latin-1") for name in ProcessFiles.__struct_fields__}
        if not self.summary.processes:
            self.summary.processes = self.summary.threads = 1
        if not event.smaps:
            self._lose(event.pid, f"it runs {printable(raw['exe']) or 'a program'}, whose memory may not be looked at")
        self._output.write(describe(event.pid, ProcessFiles(**raw)))

    def _take_exit(self, event: _Exit) -> None:
        signalled = event.status & 0x7F
        self._output.write(
            Exit(
                n=0,
                pid=event.pid,
                vmas=parse_smaps(event.smaps.encode("latin-1")) if event.smaps else None,
                code=None if signalled else event.status >> 8 & 0xFF,
                signal=signalled or None,
                written=event.written,
                grown=event.grown,
            )
        )

    def _lose(self, pid: int, why: str) -> None:
        self.summary.lost.append(f"process {pid}: {why}" if pid else why)
        self._output.write(Lost(n=0, pid=pid, why=why))

    def _finish(self, helper_status: int) -> None:
        done = self._done
        summary = self.summary
        if done is None:
            self._lose(0, f"the recorder's helper was ended (status {helper_status})")
            self._output.write(End(n=0, reason="interrupted"))
            kept = f"{escape_text(summary.file)} holds what came before"
            raise InputError(f"the recorder's helper was ended, and the program with it; {kept}")
        self._output.end(summary, done.status, interrupted=bool(done.interrupted))
        if self._output.broken is not None:
            raise InputError(f"{self._output.broken}; the program ran to its end (status {summary.status})")


def _file(event: _File) -> File:
    path = printable(event.path.encode("latin-1"))
    kept = _DRIVER_FLAGS | {"lo"} if path.startswith("/secretmem") else _DRIVER_FLAGS
    return File(
        n=0,
        id=event.id,
        dev=event.dev,
        ino=event.ino,
        path=path,
        readable=bool(event.readable),
        writable=bool(event.writable),
        kind=event.kind,
        fs=printable(event.fs.encode("latin-1")),
        noexec=bool(event.noexec),
        driver_flags=" ".join(word for word in event.vmflags.split() if word in kept),
    )


class Arrived:
    """The signals that came for the recorder."""

    def __init__(self) -> None:
        self.wakeup = -1
        """Readable when a signal has come; -1 outside the main thread, where none are taken."""
        self._due: list[tuple[float, int]] = []

    def take(self, number: int, _frame: FrameType | None) -> None:
        """The handler: the signal goes to the helper, a little later."""
        if number != signal.SIGQUIT:
            self._due.append((time.monotonic() + FORWARD_AFTER, number))

    def timeout(self, longest: float | None) -> float | None:
        """How long to wait for events, in seconds; None is as long as it takes."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else longest

    def forward(self, helper: "subprocess.Popen[bytes]") -> None:
        """Pass on what is due; the helper decides whether the program has had it already."""
        while self._due and self._due[0][0] <= time.monotonic():
            helper.send_signal(self._due.pop(0)[1])

    def read(
        self,
        events: int,
        helper: "subprocess.Popen[bytes]",
        patience: Callable[[], float | None],
        idle: Callable[[], None],
    ) -> Iterator[bytes]:
        """What a helper writes, until it writes no more; signals are passed on meanwhile.

        idle is called when nothing has come for as long as patience says, in seconds; None is for ever.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(events, selectors.EVENT_READ)
            if self.wakeup >= 0:
                selector.register(self.wakeup, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select(self.timeout(patience()))}
                if self.wakeup in ready:
                    os.read(self.wakeup, 512)
                self.forward(helper)
                if events in ready:
                    data = os.read(events, _CHUNK)
                    if not data:
                        return
                    yield data
                elif not ready:
                    idle()


@contextmanager
def signals() -> Iterator[Arrived]:
    """Takes the signals that would end the recorder before the program; what was ignored stays ignored.

    Handlers rather than "ignore": the program must not inherit anything from them.
    """
    arrived = Arrived()
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    taken = {}
    arrived.wakeup, wakes = os.pipe()
    os.set_blocking(wakes, False)
    previous = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                taken[number] = signal.signal(number, arrived.take)
        yield arrived
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(previous)
        os.close(wakes)
        os.close(arrived.wakeup)
