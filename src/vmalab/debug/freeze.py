"""A replay in the middle of its trace as bytes, and back: what going back in time is made of.

Everything that changes while a trace is replayed is copied by value.  What never changes (behaviours, driver
operations, calls, programs that have ended) is kept by reference, in a table that all snapshots of one Freezer share.
"""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any, Final, final

import zstandard

from vmalab.calls import Call, Outcome
from vmalab.machine import Process
from vmalab.semantics import Semantics
from vmalab.trace.compare import Difference, Inodes
from vmalab.trace.records import Header
from vmalab.trace.replay import Mismatch, Program, Replay, UncertainReplay
from vmalab.vma.area import AnonVma, File, Policy, UffdFault, UffdMessage, UffdQueue, Userfaultfd, Vma, VmaOps
from vmalab.vma.observer import Observer
from vmalab.vma.port import Port
from vmalab.vma.shm import IpcNamespace, Segment
from vmalab.vma.space import Commit, Limits, Mm

_BY_REFERENCE: Final = (Semantics, Port, VmaOps, Header, Call, Outcome, Mismatch, Difference)
"""Classes whose objects do not change, or that belong to whoever made the replay."""

_NOWHERE: Final = IpcNamespace(Commit(0))
"""What a segment is made in: its own namespace holds it, and cannot come first."""
_MAKE: Final[dict[type, Callable[[Any], tuple[Any, ...]]]] = {
    AnonVma: lambda made: (None if made.parent is made else made.parent,),
    Commit: lambda made: (made.ram,),
    File: lambda made: (made.path,),
    Inodes: lambda made: (),
    IpcNamespace: lambda made: (made.commit,),
    Limits: lambda made: (),
    Policy: lambda made: (made.mode, made.flags, made.nodes),
    Process: lambda made: (made.machine, made.pid, made.mm, made.limits, made.ipc),
    Program: lambda made: (made.n, made.pid, made.exe),
    Replay: lambda made: (made.header,),
    Segment: lambda made: (_NOWHERE, made.id, made.key, made.size, made.mode, made.charged),
    UncertainReplay: lambda made: (made.header,),
    UffdFault: lambda made: (made.message,),
    UffdMessage: lambda made: (made.event,),
    UffdQueue: lambda made: (),
    Userfaultfd: lambda made: (made.name,),
}
"""What an object is made with before it is given its state.  A compiled class cannot be made without."""


def _state(thing: object) -> dict[str, Any]:
    """All attributes of an object, in either form of the core."""
    state: object = thing.__getstate__()
    found: dict[str, Any] = {}
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            found.update(part)
    found.update(getattr(thing, "__dict__", {}))
    return found


def _set_state(thing: object, state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(thing, name, value)


_Row = tuple[Any, ...]
"""A VMA: its bounds, flags and offset, and its other attributes in the order of _REST."""
_REST: Final = ("file", "ops", "policy", "uffd", "name", "label", "private_data", "anon_vma", "chain")


_rest: Final = operator.attrgetter(*_REST)


def _rows(mm: Mm) -> list[_Row]:
    return [(vma.start, vma.end, vma.flags, vma.pgoff, *_rest(vma)) for vma in mm.vmas()]


def _set_mm(mm: Mm, state: tuple[dict[str, Any], list[_Row]]) -> None:
    _set_state(mm, state[0])
    insert = mm.tree.insert
    for start, end, flags, pgoff, *rest in state[1]:
        vma = Vma(mm, start, end, flags, pgoff)
        for name, value in zip(_REST, rest, strict=True):
            setattr(vma, name, value)
        insert(start, end, vma)


class _Pickler(pickle.Pickler):
    """Writes objects of both forms of the core, and references where those will do."""

    def __init__(self, file: BytesIO, shared: _Shared, kept: set[int]) -> None:
        super().__init__(file, protocol=5)
        self._shared = shared
        self._kept = kept

    def reducer_override(self, thing: object) -> Any:
        if isinstance(thing, _BY_REFERENCE) or id(thing) in self._kept:
            return shared_thing, (self._shared.number(thing),)
        kind = type(thing)
        if isinstance(thing, Observer):
            return kind, (), _state(thing), None, None, _set_state
        if kind is Mm:
            assert isinstance(thing, Mm)
            rest = _state(thing)
            del rest["tree"]
            made = (thing.settings, thing.commit, thing.limits, thing.semantics, thing.port)
            return Mm, made, (rest, _rows(thing)), None, None, _set_mm
        make = _MAKE.get(kind)
        if make is not None:
            return kind, make(thing), _state(thing), None, None, _set_state
        if kind is Vma:
            raise TypeError("a VMA outside the tree of its address space cannot be frozen")
        return NotImplemented


def shared_thing(number: int) -> object:
    """Stands in a snapshot for an object of the shared table; the table is there only while one is read."""
    raise pickle.UnpicklingError(f"shared object {number} of a snapshot that is read without its Freezer")


class _Unpickler(pickle.Unpickler):
    """Reads what _Pickler wrote, in this process."""

    def __init__(self, file: BytesIO, shared: _Shared) -> None:
        super().__init__(file)
        self._things = shared.things

    def find_class(self, module: str, name: str) -> Any:
        return self._things.__getitem__ if name == shared_thing.__name__ else super().find_class(module, name)


@final
class _Shared:
    """The objects that snapshots refer to."""

    def __init__(self) -> None:
        self.things: list[object] = []
        self._numbers: dict[int, int] = {}

    def number(self, thing: object) -> int:
        known = self._numbers.get(id(thing))
        if known is None:
            known = self._numbers[id(thing)] = len(self.things)
            self.things.append(thing)
        return known


@final
class Freezer:
    """Makes snapshots of one replay, and replays of the snapshots."""

    def __init__(self) -> None:
        self._shared = _Shared()
        self._pack = zstandard.ZstdCompressor(level=1)
        self._unpack = zstandard.ZstdDecompressor()

    def freeze(self, replay: Replay, *keep: object) -> bytes:
        """All that a replay knows now, compressed.  It is to be between two records.  What to keep is not copied."""
        running = {id(program) for program in replay.current.values()}
        kept = {id(program) for program in replay.programs if id(program) not in running}
        kept.update(map(id, keep))
        file = BytesIO()
        # The anon_vmas first, parents before children: their chains are longer than pickling may recurse.
        _Pickler(file, self._shared, kept).dump((_anon_vmas(replay), replay))
        return self._pack.compress(file.getbuffer())

    def thaw(self, frozen: bytes) -> Replay:
        """A replay as it was when it was frozen.  It shares nothing that changes with any other."""
        replay: object = _Unpickler(BytesIO(self._unpack.decompress(frozen)), self._shared).load()[1]
        assert isinstance(replay, Replay)
        return replay


def _anon_vmas(replay: Replay) -> list[AnonVma]:
    """The anon_vmas of all processes and their ancestors, each behind its parent."""
    found: dict[AnonVma, None] = {}
    for mm in {id(process.mm): process.mm for process in replay.machine.processes.values()}.values():
        for vma in mm.vmas():
            for anon_vma in vma.chain:
                if anon_vma not in found:
                    found.update(dict.fromkeys(_line(anon_vma)))
    return list(found)


def _line(anon_vma: AnonVma) -> Iterable[AnonVma]:
    """An anon_vma behind its ancestors, the root first."""
    line = [anon_vma]
    while anon_vma.parent is not anon_vma:
        anon_vma = anon_vma.parent
        line.append(anon_vma)
    return reversed(line)
