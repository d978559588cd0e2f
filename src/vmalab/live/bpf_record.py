"""Records with BPF: starts the helper that loads the programs, and turns their events into a trace.

What is recorded runs without being stopped, and with all its privileges; recording needs root (CAP_BPF, CAP_PERFMON).
"""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from vmalab.errors import InputError
from vmalab.live import build_native
from vmalab.live.bpf_events import Told, Translator
from vmalab.live.facts import machine_facts
from vmalab.live.procfs import printable
from vmalab.live.record import Arrived, Output, Summary, cannot_run, check_command, check_output, given, signals
from vmalab.text import escape_text
from vmalab.trace.file import TraceWriter
from vmalab.trace.records import VERSION, End, Header, Lost

QUIET: Final = 0.2
"""Seconds without an event after which what there is goes to the file."""
TRIGGERS: Final = frozenset({"enomem", "maps"})
"""The ends of a recording at which a flight recorder writes what it has."""
_BTF: Final = Path("/sys/kernel/btf/vmlinux")


class Options(msgspec.Struct):
    """How to record."""

    pid: int | None = None
    """Attach to this running process instead of starting one."""
    stacks: bool = False
    """The user stacks of calls and faults, by frame pointers."""
    unwound: bool = False
    """The same, those of calls unwound by .eh_frame from copies of their memory."""
    all_faults: bool = True
    """Also the faults that no VMA can have changed by."""
    seconds: float | None = None
    """Stop after this time."""
    size: int | None = None
    """Stop when the trace has this many bytes."""
    until_maps: int | None = None
    """Stop when a process has more VMAs than this."""
    ring: float | None = None
    """Keep the last seconds only, and write them when a call fails with ENOMEM, or above until_maps VMAs."""
    buffer: int | None = None
    """The bytes of the ring between the kernel and the recorder, made a power of two of pages; None: 64 MiB."""
    stack_places: int | None = None
    """How many places the kernel's table of stacks has, a power of two up to 65536; None: that."""

    def needs_bpf(self) -> str:
        """The first option that the ptrace recorder does not have; empty if it has all."""
        asked = {
            "--pid": self.pid,
            "--stacks": self.stacks or self.unwound or None,
            "--time": self.seconds,
            "--size": self.size,
            "--until-maps": self.until_maps,
            "--ring": self.ring,
            "--buffer": self.buffer,
            "--changing-faults": None if self.all_faults else True,
        }
        return next((name for name, value in asked.items() if value is not None), "")


class NotHereError(InputError):
    """This kernel does not take the BPF programs."""


def why_not(*, try_out: bool = True) -> str | None:
    """Why this machine cannot record with BPF, as one sentence; None if it can.  Loading is the last proof."""
    reason = build_native.unsupported()
    if reason is not None:
        return reason
    if not build_native.BPF_LOADER.exists() or not build_native.BPF_OBJECT.exists():
        writable = os.access(build_native.BPF_LOADER.parent.parent, os.W_OK)
        reason = build_native.build_bpf() if writable else "it is not part of this installation"
        if reason is not None:
            return f"the BPF recorder is missing: {reason}"
    if not _BTF.exists():
        return f"this kernel does not describe its types ({_BTF} is not there)"
    if not try_out:
        return None
    try:
        command = [str(build_native.BPF_LOADER), "--check", str(build_native.BPF_OBJECT)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the BPF recorder does not run: {error}"
    if done.returncode == 0:
        return None
    translator = Translator()
    for _ in translator.feed(done.stdout):
        pass
    return _explain(translator.told) if translator.told.failed else f"the loader ended with status {done.returncode}"


def _explain(told: Told) -> str:
    """Why the loader could not load."""
    number, _, words = told.failed or (0, "", "")
    error = os.strerror(number)
    if number in (1, 13):
        return f"loading BPF programs is not permitted ({error}): run as root, or with CAP_BPF and CAP_PERFMON"
    return f"this kernel does not take the BPF programs ({error}): {escape_text(words, 200)}"


def record(
    command: Sequence[str],
    output: str,
    options: Options,
    *,
    environment: dict[str, str] | None = None,
    started: Callable[[], None] | None = None,
) -> Summary:
    """Record a command, or a running process, as the options say; returns when that is over.

    Calls started when it has begun.  Raises InputError if the command, the process or the output is no good, and
    NotHereError if the programs cannot be loaded; nothing has run then.
    """
    if options.ring is not None and options.size is not None:
        raise InputError("--ring keeps seconds, and the trace is written at its end: leave --size away")
    if options.pid is None:
        check_command(command)
    else:
        _check_process(options.pid)
    check_output(output)
    header = Header(
        vmalab="trace",
        version=VERSION,
        recorder="bpf",
        faults="exact",
        command=[printable(os.fsencode(word)) for word in command],
        machine=machine_facts(),
        notes=[] if options.all_faults else ["faults that changed no VMA were not recorded"],
    )
    with TraceWriter(output, header, at_first_record=True) as writer:
        recording = _Recording(writer, output, options, started)
        told = recording.run(list(command), environment)
        if told.failed is not None:
            writer.abandon()
    if told.failed is not None:
        if told.failed[1] == "e":
            raise cannot_run(command[0], told.failed[0])
        raise NotHereError(_explain(told))
    return recording.summary


def _check_process(pid: int) -> None:
    """Raises InputError where there is nothing to attach to."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except OSError:
        raise InputError(f"there is no process {pid}") from None
    status = dict(line.partition(":")[::2] for line in text.splitlines())
    leader = int(status.get("Tgid", str(pid)))
    if leader != pid:
        raise InputError(f"{pid} is a thread of process {leader}: give --pid {leader}")
    if status.get("State", "").strip().startswith(("Z", "X")):
        raise InputError(f"process {pid} has ended")
    if "VmSize" not in status:
        raise InputError(f"process {pid} is a thread of the kernel, without an address space")


class _Recording:
    """One run: the loader, its events, and the trace they go to."""

    def __init__(self, writer: TraceWriter, output: str, options: Options, started: Callable[[], None] | None) -> None:
        self.summary = Summary(file=output, status=2, signal=None, interrupted=False, recorder="bpf")
        self._output = Output(writer)
        self._options = options
        self._translator = Translator()
        self._started = started

    def run(self, command: list[str], environment: dict[str, str] | None) -> Told:
        """Record to the end; says what the loader told."""
        read_end, write_end = os.pipe()
        with signals() as arrived:
            os.set_inheritable(write_end, True)
            try:
                words = self._command(write_end, command)
                helper = subprocess.Popen(words, close_fds=False, env=given(environment))
            finally:
                os.close(write_end)
            told = self._translator.told
            try:
                self._follow(read_end, helper, arrived)
            finally:
                os.close(read_end)
                if told.done is None and told.failed is None:
                    helper.kill()
                helper.wait()
        if told.failed is None:
            self._finish(told, helper.returncode)
        return told

    def _command(self, events: int, command: list[str]) -> list[str]:
        options = self._options
        words = [str(build_native.BPF_LOADER)]
        words += ["--copy-stacks" if options.unwound else "--stacks"] if options.stacks or options.unwound else []
        words += ["--all-faults"] if options.all_faults else []
        words += ["--ms", str(int(options.seconds * 1000))] if options.seconds is not None else []
        words += ["--until-maps", str(options.until_maps)] if options.until_maps is not None else []
        words += ["--ring", str(int(options.ring * 1000))] if options.ring is not None else []
        words += ["--buffer", str(options.buffer)] if options.buffer is not None else []
        words += ["--stack-places", str(options.stack_places)] if options.stack_places is not None else []
        words += ["--pid", str(options.pid)] if options.pid is not None else []
        words += [str(build_native.BPF_OBJECT), str(events)]
        return words + (["--", *command] if options.pid is None else [])

    def _follow(self, events: int, helper: "subprocess.Popen[bytes]", arrived: Arrived) -> None:
        """Read events until there are no more; pass signals on.  Once the file is full, the recording is over."""
        enough = False
        for data in arrived.read(events, helper, lambda: QUIET, self._output.flush):
            self._take(data)
            if self._started is not None and self._translator.told.started:
                self._started()
                self._started = None
            if not enough and (self._output.broken is not None or self._is_full()):
                enough = True
                helper.send_signal(signal.SIGUSR1)

    def _is_full(self) -> bool:
        limit = self._options.size
        return limit is not None and self._output.writer.bytes_written >= limit

    def _take(self, data: bytes) -> None:
        """Write the records that some bytes complete."""
        for record in self._translator.feed(data):
            self._output.write(record)

    def _finish(self, told: Told, helper_status: int) -> None:
        summary = self.summary
        summary.processes, summary.threads = told.processes, told.threads
        summary.calls, summary.faults, summary.lost = told.calls, told.faults, told.lost
        summary.events_lost, summary.events_left_out = told.events_lost, told.events_left_out
        if told.events_lost:
            left_out = f", and {told.events_left_out:,} after them left out" if told.events_left_out else ""
            summary.lost.append(f"{told.events_lost:,} events were lost{left_out}: a larger --buffer loses fewer")
        if told.unexplained:
            times = "once" if told.unexplained == 1 else f"{told.unexplained:,} times"
            summary.lost.append(
                f"memory was changed {times} by a call that had begun before the recording, or that is not recorded"
            )
        if told.short_stacks * 2 > told.stacks and not self._options.unwound:
            summary.notes.append(
                f"{told.short_stacks:,} of {told.stacks:,} stacks of calls end too early, because the code keeps no "
                "frame pointers: --dwarf-stacks follows them"
            )
        if told.stacks_lost:
            summary.notes.append(f"{told.stacks_lost:,} stacks could not be taken: a larger --buffer has room for more")
        if told.done is None:
            self._output.write(Lost(n=0, pid=0, why=f"the BPF recorder was ended (status {helper_status})"))
            self._output.write(End(n=0, reason="interrupted"))
            kept = f"{escape_text(summary.file)} holds what came before"
            raise InputError(f"the BPF recorder was ended (status {helper_status}); {kept}")
        status, interrupted, summary.reason = told.done
        flight = self._options.ring is not None
        written = not flight or summary.reason in TRIGGERS
        if self._options.pid is not None and not told.processes and not flight:
            why = f"process {self._options.pid} has not shown its VMAs: nothing of it was recorded"
            summary.lost.append(why)
            self._output.write(Lost(n=0, pid=0, why=why))
        if written:
            self._output.end(summary, status, interrupted=interrupted)
        else:
            self._output.say_end(summary, status, interrupted=interrupted)
            self._output.writer.abandon()
        if flight:
            summary.status = 0 if written else 1
        if self._output.broken is not None:
            raise InputError(f"{self._output.broken}; what was recorded ran on (status {summary.status})")
