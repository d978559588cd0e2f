"""Reading what /proc shows."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from vmalab.errors import InputError
from vmalab.live import procfs
from vmalab.live.facts import machine_facts
from vmalab.trace.check import check, check_header
from vmalab.trace.records import Header

SMAPS = b"""\
00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/a\\012b c
Size:                328 kB
Anonymous:            12 kB
Swap:                  4 kB
THPeligible:           0
ProtectionKey:         3
VmFlags: rd ex mr mw me
7ffd1000-7ffd3000 rw-p 00000000 00:00 0                                  [stack]
Anonymous:             0 kB
VmFlags: rd wr mr mw me gd ac
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex
"""


def test_smaps() -> None:
    text, stack = procfs.parse_smaps(SMAPS)
    assert (text.start, text.end, text.offset, text.dev, text.ino) == (0x400000, 0x452000, 0x1000, "08:02", 173521)
    assert (text.path, text.flags) == ("/usr/bin/a\\012b c", "rd ex mr mw me")
    assert (text.anon, text.swap, text.pkey) == (12 << 10, 4 << 10, 3)
    assert (stack.path, stack.flags, stack.anon) == ("[stack]", "rd wr mr mw me gd ac", 0)
    assert procfs.parse_smaps(SMAPS.decode()) == [text, stack]
    assert procfs.parse_smaps(b"") == []


def test_maps() -> None:
    lines = b"".join(line + b"\n" for line in SMAPS.split(b"\n") if re.match(rb"[0-9a-f]+-", line))
    text, stack = procfs.parse_maps(lines.replace(b"rw-p", b"rw-s"))
    assert (text.flags, stack.flags) == ("rd ex", "rd wr sh")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"garbage\n", "smaps: line 1: not a VMA"),
        (b"Anonymous: 4 kB\n", "smaps: line 1: a field stands before the first VMA"),
        (b"1000-2000 r--p 0 00:00 0\nAnonymous: x kB\n", "smaps: line 2: not a size"),
        (b"1000-2000 r--p 0 00:00 0\nProtectionKey: x\n", "smaps: line 2: not a protection key"),
        (b"1000-2000 r--p 0 00:00 0\nProtectionKey: 123\n", "smaps: line 2: not a protection key"),
        (b"1000-2000 r--p 0 00:00 0\nProtectionKey:" + b" " * 60 + b"0\n", "smaps: the last VMA has no VmFlags"),
        (b"2000-1000 r--p 0 00:00 0\nVmFlags: rd\n", "smaps: line 1: not a range"),
        (b"1000-2000 r--p 0 00:00 0\n", "smaps: the last VMA has no VmFlags"),
    ],
)
def test_bad_smaps(text: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        procfs.parse_smaps(text)


def test_printable() -> None:
    assert procfs.printable("/tmp/plain ünï".encode()) == "/tmp/plain ünï"
    assert procfs.printable(b"a\\b\n\xff\x7f") == "a\\134b\\012\\377\\177"
    assert procfs.printable(b"\xe2\x80\xae") == "\\342\\200\\256"


needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/PID/smaps here")


@needs_proc
def test_a_running_process() -> None:
    sleeper = subprocess.Popen(["sleep", "30"])
    try:
        found = procfs.read_process(sleeper.pid)
    finally:
        sleeper.kill()
        sleeper.wait()
    found.n = 1
    assert check(found) is None
    assert found.pid == sleeper.pid
    assert any(vma.path == "[stack]" for vma in found.vmas)


@needs_proc
def test_limits_of_this_process() -> None:
    import resource

    soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
    assert procfs.read_limits(os.getpid()).stack == (None if soft == resource.RLIM_INFINITY else soft)
    with pytest.raises(InputError, match="not a limit"):
        procfs.parse_limits(b"Max stack size            many                 unlimited            bytes\n")


@needs_proc
@pytest.mark.parametrize(
    ("pid", "message"), [(1 << 22, "there is no process"), (2, "kernel thread|there is no process|cannot be read")]
)
def test_processes_that_cannot_be_read(pid: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        procfs.read_process(pid)


@needs_proc
def test_machine_facts() -> None:
    facts = machine_facts()
    assert check_header(Header(vmalab="trace", version=1, machine=facts)) is None
    assert facts.kernel == os.uname().release
    assert facts.ram_pages > 0
    assert facts.max_map_count == int(Path("/proc/sys/vm/max_map_count").read_text())
