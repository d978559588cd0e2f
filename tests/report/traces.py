"""Small traces, made with the model."""

from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

from vmalab.flags import (
    MADV_DONTFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from vmalab.trace import records
from vmalab.trace.file import TraceWriter, read_trace

SCRIPT = "/tmp/<script>alert(1)</script>"
"""A path that would run, were it HTML."""
ENDING = "/tmp/</script><script>alert(2)</script><!--"
"""A path that would end the script that holds the data."""
PAGE = 4096
BASE = 0x10000000
RW = PROT_READ | PROT_WRITE
FIXED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED


def _call(pid: int, name: str, *args: int, ret: int = 0, **more: object) -> records.Call:
    return records.Call(0, pid, pid, name, list(args), ret, **more)  # type: ignore[arg-type]


def made_up(hostile: bool = True) -> tuple[records.Header, list[records.Record]]:
    """A program of two processes that splits memory, is refused a call, and maps files with the names above."""
    script, ending = (SCRIPT, ENDING) if hostile else ("/tmp/one", "/tmp/two")
    header = records.Header("trace", 1, "model", "at-calls", ["/bin/sh", "-c", f"cat {ending}"])
    header.machine.anon_names = True
    stack = records.Vma(0x7FFFFF000000, 0x7FFFFF021000, "rd wr mr mw me gd ac", path="[stack]", anon=8192)
    first = records.Exec(0, 100, script, [stack], mmap_base=0x7FFFF7FFF000, start_stack=0x7FFFFF020000)
    made: list[records.Record] = [
        first,
        records.File(0, 1, "08:01", 7, script),
        records.File(0, 2, "08:01", 8, ending),
        _call(100, "mmap", BASE, 16 * PAGE, RW, FIXED, 0xFFFFFFFF, 0, ret=BASE),
        _call(100, "mmap", BASE * 2, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, 3, 0, ret=BASE * 2, file=1),
        _call(100, "mmap", BASE * 3, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, 3, 0, ret=BASE * 3, file=2),
        _call(100, "mprotect", BASE + 4 * PAGE, PAGE, PROT_NONE, written=[BASE]),
        _call(100, "madvise", BASE + 8 * PAGE, PAGE, MADV_DONTFORK),
        _call(100, "mprotect", BASE * 4, PAGE, RW, ret=-12),
        records.Fork(0, 101, 101, 100, 100, 0),
        _call(101, "munmap", BASE + 12 * PAGE, 4 * PAGE),
        _call(100, "mprotect", BASE + 4 * PAGE, PAGE, RW),
        _call(100, "mmap", BASE + 2 * PAGE, 2 * PAGE, PROT_READ, FIXED, 0xFFFFFFFF, 0, ret=BASE + 2 * PAGE),
        _call(101, "mremap", BASE, 2 * PAGE, 2 * PAGE, 3, BASE * 5, ret=BASE * 5),
        records.Exit(0, 101),
        records.Exit(0, 100),
        records.End(0, "done"),
    ]
    for n, record in enumerate(made, 1):
        record.n = n
    return header, made


def write(path: Path, trace: tuple[records.Header, list[records.Record]]) -> Path:
    """The trace as a file."""
    with TraceWriter(path, trace[0]) as writer:
        for record in trace[1]:
            writer.write(record)
    return path


def demo() -> tuple[records.Header, list[records.Record]]:
    """The trace that comes with the package."""
    with as_file(files("vmalab") / "data/demo.jsonl.zst") as path:
        reader = read_trace(path)
        return reader.header, list(_all(iter(reader)))


def _all(found: Iterator[records.Record]) -> Iterator[records.Record]:
    yield from found
