"""Segments of System V shared memory, as far as address spaces know of them (ipc/shm.c, ipc/util.c).

A segment counts the VMAs that have it attached, in all address spaces, and goes with the last of them once it is marked
for removal.
"""

from __future__ import annotations

from typing import Final, final

from vmalab.vma.space import Commit

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

    __slots__ = ("attached", "charged", "id", "key", "locked", "mode", "name", "namespace", "size")

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

    def open(self) -> None:
        """One VMA more has it (shm_open)."""
        self.attached += 1

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

    def has(self, segment: Segment) -> bool:
        """Whether a segment is there."""
        return self.segments.get(segment.id) is segment

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
