"""All records of a trace, in any order: packed in memory, a few hundred at a time."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Final, final

import msgspec
import zstandard

from vmalab.errors import InputError
from vmalab.trace.file import TraceReader
from vmalab.trace.records import Call, File, Fork, Header, Record, Stack

BLOCK: Final = 256
"""Records that are packed together."""
_UNPACKED: Final = 64
"""Blocks that are kept as records as well."""
_REPORT: Final = 512


@final
class Tape:
    """The records of a trace by number, from 1.  Takes some 15 to 40 bytes for a record of an ordinary trace.

    A trace that was cut off has the records that are there.  If one is damaged, InputError is raised as by any
    reader, unless only the first `wanted` records have to be whole: then the tape ends where the damage begins.
    """

    def __init__(
        self, reader: TraceReader, report: Callable[[int], None] = lambda done: None, *, wanted: int | None = None
    ) -> None:
        self.header: Header = reader.header
        self.name: str = reader.name
        self.shortcomings: list[str] = []
        """What the trace lacks, a sentence each without its full stop; escaped."""
        self.files: dict[int, File] = {}
        """The files by their number in the trace."""
        self.pids: dict[int, int] = {}
        """All processes in the order in which they appear, each with its first record."""
        self._stacks: dict[int, int] = {}
        self._blocks: list[bytes] = []
        self._pid_of: array[int] = array("I")
        self._pack = zstandard.ZstdCompressor(level=1)
        self._unpack = zstandard.ZstdDecompressor()
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(list[Record])
        self._cache: OrderedDict[int, list[Record]] = OrderedDict()
        self._lock = Lock()
        self._of_pid: tuple[int, array[int]] = (0, array("I"))
        self._load(reader, report, wanted)

    def _load(self, reader: TraceReader, report: Callable[[int], None], wanted: int | None) -> None:
        block: list[Record] = []
        try:
            for record in reader:
                self._note(record)
                block.append(record)
                if len(block) == BLOCK:
                    self._store(block)
                    block = []
                if record.n % _REPORT == 0:
                    report(reader.bytes_read)
        except InputError as error:
            if wanted is None or len(self._pid_of) < wanted:
                raise
            self.shortcomings.append(f"{self.name} cannot be read further: {error}")
        if block:
            self._store(block)
        self.shortcomings += reader.shortcomings()

    def _note(self, record: Record) -> None:
        pid: int = getattr(record, "pid", 0)
        self._pid_of.append(pid)
        if pid and pid not in self.pids:
            self.pids[pid] = record.n
        if isinstance(record, File):
            self.files[record.id] = record
        elif isinstance(record, Stack):
            self._stacks[record.id] = record.n

    def _store(self, block: list[Record]) -> None:
        self._blocks.append(self._pack.compress(self._encoder.encode(block)))

    def __len__(self) -> int:
        return len(self._pid_of)

    def __getitem__(self, n: int) -> Record:
        """The record with number n.  Raises IndexError if there is none."""
        if not 1 <= n <= len(self._pid_of):
            raise IndexError(f"there is no record {n}")
        block, place = divmod(n - 1, BLOCK)
        return self._records(block)[place]

    def _records(self, block: int) -> list[Record]:
        # The application draws rows while a run goes on in another thread.
        with self._lock:
            return self._unpacked(block)

    def _unpacked(self, block: int) -> list[Record]:
        found = self._cache.get(block)
        if found is None:
            found = self._decoder.decode(self._unpack.decompress(self._blocks[block]))
            self._cache[block] = found
            if len(self._cache) > _UNPACKED:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(block)
        return found

    def between(self, first: int, last: int) -> Iterator[Record]:
        """Records first to last, both included."""
        n = first
        while n <= last:
            block, place = divmod(n - 1, BLOCK)
            for record in self._records(block)[place : place + last - n + 1]:
                yield record
                n += 1

    def backwards(self, first: int, last: int) -> Iterator[Record]:
        """Records last to first, both included."""
        for n in range(last, first - 1, -1):
            yield self[n]

    def of_process(self, pid: int) -> array[int]:
        """The numbers of all records of a process, in order."""
        if self._of_pid[0] != pid:
            self._of_pid = (pid, array("I", [n for n, each in enumerate(self._pid_of, 1) if each == pid]))
        return self._of_pid[1]

    def file_of(self, record: Call) -> File | None:
        """The file that a descriptor of a call stands for."""
        return self.files.get(record.file) if record.file is not None else None

    def stack_of(self, record: Record) -> list[str]:
        """The user stack that made a record, from the innermost frame outwards; empty where the trace has none."""
        known: int | None = getattr(record, "stack", None)
        number = self._stacks.get(known) if known is not None else None
        found = self[number] if number is not None else None
        return found.frames if isinstance(found, Stack) else []

    def parent_of(self, pid: int) -> int:
        """The process that made another, by the record that it first appears in; 0 if the trace does not show it."""
        first = self[self.pids[pid]] if pid in self.pids else None
        return first.parent if isinstance(first, Fork) else 0

    def size(self) -> int:
        """Bytes that the packed records take."""
        return sum(map(len, self._blocks)) + 4 * len(self._pid_of)
