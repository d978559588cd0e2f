"""Segments of System V shared memory, as far as address spaces know of them (ipc/shm.c, ipc/util.c).

A segment counts the VMAs that have it attached, in all address spaces, and goes with the last of them once it is marked
for removal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from vmalab.reason import SHM_NO_SEGMENT, YES
from vmalab.vma.space import Commit

if TYPE_CHECKING:
    from mypy_extensions import i64

    from vmalab.vma.area import File
    from vmalab.vma.port import Port

SHM_DEST: Final = 0o1000
"""The segment is marked for removal.  A bit of the mode that IPC_STAT tells, and so is the next."""
SHM_LOCKED: Final = 0o2000
IPC_PRIVATE: Final = 0
INDEX_BITS: Final = 15
"""An id is the index of its place and, above that, how many rounds there were (ipcmni_seq_shift)."""
MOST_INDEXES: Final = 1 << INDEX_BITS
MIN_CYCLE: Final = 64
"""Indexes are given out in turn up to this one before the first is used again (ipc_min_cycle)."""


@final
class Segment:
    """One segment (struct shmid_kernel); size in bytes."""

    __slots__ = ("attached", "charged", "file", "id", "key", "locked", "mode", "name", "namespace", "port", "size")

    def __init__(self, namespace: IpcNamespace, id_: int, key: int, size: int, mode: int, charged: int) -> None:
        self.namespace: IpcNamespace = namespace
        self.id: int = id_
        self.key: int = key
        """IPC_PRIVATE as soon as it is marked for removal: nobody finds it any more."""
        self.name: str = f"/SYSV{key & 0xFFFFFFFF:08x} (deleted)"
        """What /proc/PID/maps shows."""
        self.size: int = size
        self.mode: int = mode
        """The permissions, SHM_DEST and SHM_LOCKED."""
        self.attached: int = 0
        """How many VMAs have it (shm_nattch)."""
        self.charged: int = charged
        """Committed pages."""
        self.locked: int = 0
        """Pages that count as locked by the user (SHM_LOCK)."""
        self.file: File | None = None
        """What every attachment is of, where it has huge pages (SHM_HUGETLB)."""
        self.port: Port | None = None
        """Who keeps its pages."""

    @property
    def length(self) -> int:
        """Bytes that an attachment maps: whole huge pages, where it has such."""
        return self.size if self.file is None else self.file.size

    def open(self) -> i64:
        """One VMA more has it (shm_open): YES, or SHM_NO_SEGMENT where it has been destroyed."""
        if self.namespace.segments.get(self.id) is not self:
            return SHM_NO_SEGMENT
        self.attached += 1
        return YES

    def close(self) -> None:
        """A VMA that had it is gone (shm_close)."""
        self.attached -= 1
        if self.attached == 0 and self.mode & SHM_DEST:
            self.namespace.destroy(self)


@final
class IpcNamespace:
    """The segments that a group of processes knows by number (struct ipc_namespace)."""

    def __init__(self, commit: Commit, *, whole: bool = True) -> None:
        self.commit: Commit = commit
        self.whole: bool = whole
        """All its segments are known, and so the ids of new ones."""
        self.segments: dict[int, Segment] = {}
        """By id."""
        self.user_locked: int = 0
        """Pages that the user has locked with SHM_LOCK: there is one user in the model."""
        self.holders: int = 0
        """How many processes are in it."""
        self._next: int = 0
        self._last: int = -1
        self._round: int = 0

    def new_id(self) -> int:
        """The id of the next segment (ipc_idr_alloc): indexes go round, and each round changes the ids."""
        taken = {id_ % MOST_INDEXES for id_ in self.segments}
        most = min(max(len(taken) * 3 // 2, MIN_CYCLE), MOST_INDEXES)
        free = [index for index in range(most) if index not in taken]
        index = next((each for each in free if each >= self._next), free[0])
        if index <= self._last:
            self._round += 1
        self._last = index
        self._next = index + 1
        return self._round << INDEX_BITS | index

    def add(self, segment: Segment) -> None:
        """A segment is made: it has been charged already."""
        self.segments[segment.id] = segment
        self.commit.shm += segment.charged

    def destroy(self, segment: Segment) -> None:
        """A segment goes for good (shm_destroy)."""
        del self.segments[segment.id]
        self.user_locked -= segment.locked
        segment.locked = 0
        self.commit.shm -= segment.charged
        self.commit.uncharge(segment.charged)
        segment.charged = 0
        if segment.port is not None:
            segment.port.forget_segment(segment)

    def remove(self, segment: Segment) -> None:
        """A segment goes, at once or with its last attachment (do_shm_rmid)."""
        if segment.attached:
            segment.mode |= SHM_DEST
            segment.key = IPC_PRIVATE
        else:
            self.destroy(segment)

    def leave(self) -> None:
        """A process is in it no more; with the last one its segments go."""
        self.holders -= 1
        if self.holders == 0:
            for segment in list(self.segments.values()):
                self.remove(segment)
