"""Which file a descriptor stands for, followed through a log: opened, duplicated, inherited, closed."""

from __future__ import annotations

from typing import Final, final

from vmalab.flags import F_ADD_SEALS
from vmalab.trace.logs import LogCall, Value
from vmalab.trace.records import File

O_ACCMODE: Final = 3
O_CLOEXEC: Final = 0o2000000
_F_DUPFD: Final = 0
_F_DUPFD_CLOEXEC: Final = 1030
_F_SETFD: Final = 2
_MFD_CLOEXEC: Final = 1
_MFD_HUGETLB: Final = 4
_CLOSE_RANGE_CLOEXEC: Final = 4
_OPEN_FLAGS: Final = {"open": 1, "openat": 2}
_OTHER: Final = frozenset({"socket", "pipe", "pipe2", "eventfd2", "epoll_create1", "io_uring_setup"})


@final
class Description:
    """An open file description, as far as a log tells of it."""

    __slots__ = ("file", "fs", "kind", "number", "path", "readable", "uffd", "writable")

    def __init__(
        self,
        path: str,
        kind: str = "regular",
        fs: str = "",
        *,
        readable: bool = True,
        writable: bool = False,
        uffd: bool = False,
    ) -> None:
        self.path = path
        self.kind = kind
        self.fs = fs
        self.readable = readable
        self.writable = writable
        self.uffd = uffd
        self.number = 0
        """The id of its File record; 0 as long as there is none."""

    def record(self) -> File:
        """The File record."""
        return File(
            n=0,
            id=self.number,
            path=self.path,
            readable=self.readable,
            writable=self.writable,
            kind=self.kind,
            fs=self.fs,
        )


def described_by(path: str, *, readable: bool = True, writable: bool = True) -> Description:
    """What is open, told from its path."""
    kind, fs = "regular", ""
    if path.startswith("/memfd:"):
        kind, fs = "memfd", "tmpfs"
    elif path.startswith(("/dev/shm/", "/run/", "/dev/zero")):
        fs = "tmpfs"
    elif path.startswith("/SYSV"):
        kind = "shm"
    elif path.startswith(("/dev/hugepages/", "/anon_hugepage")):
        kind, fs = "hugetlb", "hugetlbfs"
    elif path.startswith("/dev/"):
        kind = "device"
    elif not path.startswith("/") and ":" in path:
        kind = "other"
    return Description(path, kind, fs, readable=readable, writable=writable)


@final
class Descriptors:
    """The descriptors of a process."""

    __slots__ = ("_cloexec", "table")

    def __init__(self) -> None:
        self.table: dict[int, Description] = {}
        self._cloexec: set[int] = set()

    def copy(self) -> Descriptors:
        """Those of a child made by fork."""
        made = Descriptors()
        made.table.update(self.table)
        made._cloexec.update(self._cloexec)
        return made

    def exec(self) -> None:
        """The process runs another program."""
        for number in self._cloexec:
            self.table.pop(number, None)
        self._cloexec.clear()

    def take(self, call: LogCall) -> Description | None:
        """Follow a call that has to do with descriptors.  Answers what a close takes away, or F_ADD_SEALS is for."""
        if call.ret is None or call.ret < 0:
            return None
        numbers = [_number(value) for value in call.args]
        name = call.name
        if name == "close":
            self._cloexec.discard(numbers[0] if numbers else -1)
            return self.table.pop(numbers[0], None) if numbers else None
        if name == "fcntl":
            return self._fcntl(numbers, call.ret)
        if name in ("dup", "dup2", "dup3"):
            if numbers and (numbers[0] != call.ret):
                self._duplicate(numbers[0], call.ret, cloexec=name == "dup3" and numbers[2:3] == [O_CLOEXEC])
        elif name == "close_range":
            self._close_range(numbers)
        else:
            self._opened(call, numbers)
        return None

    def _opened(self, call: LogCall, numbers: list[int]) -> None:
        assert call.ret is not None
        name = call.name
        flags = 0
        if name in _OPEN_FLAGS:
            flags = _flags(numbers, _OPEN_FLAGS[name])
            made = _opened_file(call, flags)
        elif name == "openat2":
            how = call.args[2].field("flags") if len(call.args) > 2 else None
            flags = how.number or 0 if how is not None else 0
            made = _opened_file(call, flags)
        elif name == "creat":
            made = _opened_file(call, 1)
        elif name == "memfd_create":
            title = (call.args[0].text if call.args else None) or ""
            huge = _flags(numbers, 1) & _MFD_HUGETLB
            flags = O_CLOEXEC if _flags(numbers, 1) & _MFD_CLOEXEC else 0
            kind, fs = ("hugetlb", "hugetlbfs") if huge else ("memfd", "tmpfs")
            made = Description(f"/memfd:{title}", kind, fs, writable=True)
        elif name == "memfd_secret":
            made = Description("/secretmem", "other", "secretmem", writable=True)
        elif name == "userfaultfd":
            flags = _flags(numbers, 0)
            made = Description("anon_inode:[userfaultfd]", "other", uffd=True)
        elif name in _OTHER:
            made = Description(f"anon_inode:[{name}]", "other", writable=True)
        else:
            return
        self.table[call.ret] = made
        if flags & O_CLOEXEC:
            self._cloexec.add(call.ret)
        else:
            self._cloexec.discard(call.ret)

    def _fcntl(self, numbers: list[int], ret: int) -> Description | None:
        if len(numbers) < 2:
            return None
        command = numbers[1]
        if command in (_F_DUPFD, _F_DUPFD_CLOEXEC):
            self._duplicate(numbers[0], ret, cloexec=command == _F_DUPFD_CLOEXEC)
        elif command == _F_SETFD:
            if numbers[2:3] == [1]:
                self._cloexec.add(numbers[0])
            else:
                self._cloexec.discard(numbers[0])
        elif command == F_ADD_SEALS:
            return self.table.get(numbers[0])
        return None

    def _duplicate(self, old: int, new: int, *, cloexec: bool) -> None:
        self._cloexec.discard(new)
        known = self.table.get(old)
        if known is None:
            self.table.pop(new, None)
            return
        self.table[new] = known
        if cloexec:
            self._cloexec.add(new)

    def _close_range(self, numbers: list[int]) -> None:
        if len(numbers) < 2:
            return
        last = numbers[1] & 0xFFFFFFFF
        for number in [each for each in self.table if numbers[0] <= each <= last]:
            if _flags(numbers, 2) & _CLOSE_RANGE_CLOEXEC:
                self._cloexec.add(number)
            else:
                del self.table[number]


def _opened_file(call: LogCall, flags: int) -> Description:
    place = 0 if call.name in ("open", "creat") else 1
    shown = call.args[place].text if len(call.args) > place else None
    access = flags & O_ACCMODE
    return described_by(call.path or shown or "", readable=access != 1, writable=access != 0)


def _number(value: Value) -> int:
    """A number; -1 where the log shows none."""
    return value.number if value.number is not None else -1


def _flags(numbers: list[int], place: int) -> int:
    """A word of flags; 0 where the log shows none.  A name among them that is not known does not matter here."""
    return max(numbers[place], 0) if len(numbers) > place else 0
