"""From the events of the BPF recorder (live/native/bpf/events.h) to the records of a trace."""

import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vmalab.addr import PAGE_SHIFT
from vmalab.flags import (
    ADDR_COMPAT_LAYOUT,
    CAPABILITIES,
    CLONE_THREAD,
    PR_SET_MM,
    RLIM_INFINITY,
    VM_EXEC,
    vm_flags_text,
)
from vmalab.live.procfs import legacy_layout, printable
from vmalab.live.symbols import Symbols
from vmalab.live.unwind import Unwinder
from vmalab.syscalls import layout
from vmalab.trace.records import Call, Exec, Exit, Fault, File, Fork, Limits, Lost, Maps, Record, Stack, Vma

DRIVER_FLAGS: Final = frozenset({"io", "pf", "mm", "de", "dc", "dd", "ht"})
"""The VmFlags that only a driver gives to a new mapping."""

_HEAD: Final = struct.Struct("<QQIIHHI")
_CALL: Final = struct.Struct("<6QqQ3QiIII")
_FAULT: Final = struct.Struct("<QIi")
_FORK: Final = struct.Struct("<QII")
_EXEC: Final = struct.Struct("<17QI4x")
_VMA: Final = struct.Struct("<7QII24s")
_DUMP_END: Final = struct.Struct("<QQ")
_EXIT: Final = struct.Struct("<4Q")
_FILE: Final = struct.Struct("<QQ4I32sI4x")
_OWN_STACKS: Final = (0xFFFFFFFE, 0xFFFFFFFD)
"""The numbers of the stacks of a call and of a fault that the task tells of by itself."""
_WRITE_FAULT: Final = 2
_MODE_END: Final = 24
_THP_DISABLED: Final = 24
_MERGE_ANY: Final = 30
_EINTR: Final = 4
_DELETED, _NOEXEC, _INSIDE = 1, 2, 4
_ANONYMOUS: Final = 0x20
_EXECUTE: Final = 4
_SET_VMA: Final = 0x53564D41
_UFFD_API, _UFFD_REGISTER = 0xC018AA3F, 0xC020AA00


class Told:
    """The events that the loader adds: how the recording began and ended."""

    def __init__(self) -> None:
        self.failed: tuple[int, str, str] | None = None
        """The errno, the stage, and what libbpf said."""
        self.done: tuple[int, bool, str] | None = None
        """The status of the program, whether Ctrl-C ended it, and why the recording ended."""
        self.started = False
        self.lost: list[str] = []
        """What is missing, other than events, in words."""
        self.events_lost = 0
        self.events_left_out = 0
        """Events that came after some were lost, before their process showed its VMAs anew."""
        self.processes = 0
        self.threads = 0
        self.calls = 0
        self.faults = 0
        self.stacks = self.short_stacks = self.stacks_lost = 0
        """The different stacks of calls, those that were not followed to their end, and how many could not be taken."""
        self.unexplained = 0
        """How often an address space was changed by a call that is not in the trace."""
        self.interrupted_calls = 0
        """Calls that a fatal signal broke off before they did anything; they are not in the trace."""


class _File:
    """A file that the kernel told of."""

    def __init__(self, number: int, more: int, fields: tuple[int, ...], fs: str, path: str) -> None:
        self.id = number
        self.inode, self.device, self.rdev, self.mode, self.access = fields
        self.noexec = more & _NOEXEC != 0
        self.fs = fs
        self.path = path
        self.told = False
        self.from_segment = False

    def kind(self) -> str:
        """The kind as a File record has it."""
        if stat.S_ISCHR(self.mode):
            return "regular" if self.rdev == 1 << 20 | 5 else "device"  # /dev/zero maps as memory does
        if self.fs == "hugetlbfs":
            return "hugetlb"
        if self.path.startswith("/memfd:"):
            return "memfd"
        return "regular" if stat.S_ISREG(self.mode) and not self.path.startswith("/secretmem") else "other"


class _Dump:
    """A list of VMAs that is on its way."""

    def __init__(self, record: Exec | Exit | Maps, start_brk: int, brk: int, start_stack: int) -> None:
        self.record = record
        self.heap = (start_brk, brk)
        self.start_stack = start_stack
        self.vmas: list[Vma] = []
        self.anon_vmas: dict[int, int] = {}
        self.name = ""


class Translator:
    """Makes records of events.  Feed it bytes as they come."""

    def __init__(self) -> None:
        self.told = Told()
        self._rest = b""
        self._names: dict[int, tuple[str, int]] = {}
        self._files: dict[int, _File] = {}
        self._file_count = 0
        self._data: dict[int, bytes] = {}
        self._dumps: dict[int, _Dump] = {}
        self._known: set[int] = set()
        self._at_a_loss = False
        """Events were lost, and no process has shown its VMAs since."""
        self._unsaid = 0
        self._symbols = Symbols()
        self._unwinder = Unwinder(self._symbols)
        self._copies: dict[int, bytes] = {}
        """Of each task the stack of its next call, as it lay in memory."""
        self._stacks: dict[int, tuple[int, ...]] = {}
        self._own_stacks: dict[tuple[int, int], tuple[int, ...]] = {}
        """Of each task the last stack of a call and of a fault that had no place in the kernel's table."""
        self._told_stacks: dict[int, dict[tuple[int, ...], int]] = {}
        """Of each process the numbers of the stacks that the trace has, by their addresses."""
        self._stack_count = 0
        self._handlers = {
            1: self._call,
            2: self._fault,
            3: self._fork,
            4: self._exec,
            5: self._vma,
            6: self._vma_name,
            7: self._dump_end,
            8: self._exit,
            9: self._file,
            10: self._take_data,
            11: self._take_user_stack,
            12: self._unexplained,
            64: self._call_name,
            65: self._lost,
            66: self._stack,
            67: self._started,
            68: self._failed,
            69: self._stacks_lost,
            70: self._done,
        }

    def feed(self, data: bytes) -> Iterator[Record]:
        """The records that these bytes complete."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        size = _HEAD.size
        while at + size <= end:
            _, _, pid, tid, kind, length, more = _HEAD.unpack_from(data, at)
            if at + length > end:
                break
            yield from self._handlers[kind](pid, tid, more, data[at + size : at + length])
            at += length
        self._rest = data[at:]

    # -- what the loader says -------------------------------------------------------------------------

    def _call_name(self, _pid: int, _tid: int, more: int, body: bytes) -> Iterator[Record]:
        self._names[more] = (_text(body[1:]), body[0] - ord("0"))
        return iter(())

    def _lost(self, _pid: int, _tid: int, more: int, body: bytes) -> Iterator[Record]:
        """Nothing is known of any process any more, until it is found anew.  Told for the first event and the last."""
        self._dumps.clear()
        self._data.clear()
        self._copies.clear()
        self._known.clear()
        self.told.events_lost += more
        if self._at_a_loss:
            self._unsaid += more
        elif more:
            self._at_a_loss = True
            yield Lost(n=0, pid=0, why=_text(body), events=more)

    def _find_again(self) -> Iterator[Record]:
        """Something is known again, or the recording is over: says how much more was lost since it was said first."""
        if self._unsaid:
            yield Lost(n=0, pid=0, why="more events were lost, before any process was found anew", events=self._unsaid)
        self._at_a_loss = False
        self._unsaid = 0

    def _unexplained(self, pid: int, _tid: int, _more: int, _body: bytes) -> Iterator[Record]:
        self._dumps.pop(pid, None)
        if pid in self._known:
            self._known.discard(pid)
            why = "its memory was changed by a call that had begun before the recording, or that is not recorded"
            self.told.unexplained += 1
            yield Lost(n=0, pid=pid, why=why)

    def _is_known(self, pid: int) -> bool:
        """Whether an event says something about a process whose VMAs are known; counted if not, after a loss."""
        known = pid in self._known
        if not known and (self.told.events_lost or self.told.unexplained):
            self.told.events_left_out += 1
        return known

    def _stack(self, _pid: int, tid: int, more: int, body: bytes) -> Iterator[Record]:
        addresses = struct.unpack(f"<{len(body) // 8}Q", body)
        if more in _OWN_STACKS:
            self._own_stacks[tid, more - (1 << 32)] = addresses
        else:
            self._stacks[more] = addresses
        return iter(())

    def _started(self, _pid: int, _tid: int, _more: int, _body: bytes) -> Iterator[Record]:
        self.told.started = True
        return iter(())

    def _failed(self, _pid: int, _tid: int, more: int, body: bytes) -> Iterator[Record]:
        text = _text(body)
        self.told.failed = (more, text[:1], text[1:])
        return iter(())

    def _stacks_lost(self, _pid: int, _tid: int, more: int, _body: bytes) -> Iterator[Record]:
        self.told.stacks_lost = more
        return iter(())

    def _done(self, _pid: int, _tid: int, more: int, body: bytes) -> Iterator[Record]:
        text = _text(body)
        self.told.done = (more, text[:1] == "i", text[1:])
        return self._find_again()

    # -- calls, faults, tasks -------------------------------------------------------------------------

    def _call(self, pid: int, tid: int, more: int, body: bytes) -> Iterator[Record]:
        *words, ret, pointer, start, end, flags, stack, _, locked, overtaken = _CALL.unpack_from(body)
        data = self._data.pop(tid, b"")
        copied = self._copies.pop(tid, b"")
        if not self._is_known(pid):
            return
        if ret == -_EINTR and not locked:
            self.told.interrupted_calls += 1
            return
        name, count = self._names[more]
        file = self._files.get(pointer) if pointer else None
        call = Call(n=0, pid=pid, tid=tid, call=name, args=words[:count], ret=ret)
        call.overtaken = overtaken != 0
        call.stack, fresh = self._stack_of(pid, tid, copied or stack)
        if fresh is not None:
            self.told.stacks += 1
            self.told.short_stacks += _went_astray(fresh.frames)
            yield fresh
        call.data = self._data_of(name, words, data, file)
        if name == "process_madvise" and start:
            call.data["pid"] = start
        if name == "shmat" and file is not None:
            file.from_segment = True
            key = file.path[5:13]
            call.data = {"size": end - start, "key": int(key, 16) if file.path.startswith("/SYSV") else 0}
        if file is not None and name != "close":
            call.file = file.id
            if not file.told:
                mapped = name == "mmap" and ret >= 0
                file.told = mapped or name == "shmat" or file.kind() in ("regular", "memfd")
                yield _file_record(file, flags if mapped else 0)
        if name == "mmap" and ret >= 0 and words[2] & _EXECUTE and file is not None:
            self._symbols.map(pid, ret, ret + words[1], words[5], file.path)
        self.told.calls += 1
        yield call

    def _data_of(self, name: str, args: list[int], data: bytes, file: _File | None) -> dict[str, int | str | list[int]]:
        """What pointer arguments point to, as docs/trace-format.md has it."""
        found: dict[str, int | str | list[int]] = {}
        words = list(struct.unpack_from(f"<{len(data) // 8}Q", data))
        if name == "prctl" and args[0] == PR_SET_MM and len(words) == len(layout.ORDER) + 2:
            *found["layout"], vector, rest = words
            found["rest"] = [vector, rest & 0xFFFFFFFF, rest >> 32]
        elif name == "shmctl" and len(data) == _MODE_END:
            found["mode"] = int.from_bytes(data[-4:], "little")
        elif name in ("prctl", "memfd_create") and data:
            found["name"] = printable(data.split(b"\0")[0])
        elif name in ("setrlimit", "prlimit64") and len(words) >= 2:
            found["cur"], found["max"] = words[:2]
        elif name in ("mbind", "set_mempolicy") and words:
            bits = args[4] if name == "mbind" else args[2]
            mask = int.from_bytes(data, "little")
            found["nodes"] = [bit for bit in range(bits - 1) if mask >> bit & 1]
        elif name == "process_madvise" or (name == "io_uring_register" and words):
            found["ranges"] = words
        elif name == "ioctl" and len(words) >= 2:
            request = args[1] & 0xFFFFFFFF
            if request == _UFFD_API:
                found["features"] = words[1]
            else:
                found["start"], found["len"] = words[:2]
                if request == _UFFD_REGISTER:
                    found["mode"] = words[2]
        if name in ("ioctl", "close") and file is not None:
            found["uffd"] = file.id
        return found

    def _fault(self, pid: int, tid: int, more: int, body: bytes) -> Iterator[Record]:
        address, locked, stack = _FAULT.unpack_from(body)
        if not self._is_known(pid):
            return
        self.told.faults += 1
        write = more & _WRITE_FAULT != 0
        number, fresh = self._stack_of(pid, tid, stack)
        if fresh is not None:
            yield fresh
        yield Fault(n=0, pid=pid, tid=tid, addr=address, write=write, vma_lock=not locked, stack=number)

    def _fork(self, pid: int, tid: int, _more: int, body: bytes) -> Iterator[Record]:
        flags, child, child_tid = _FORK.unpack_from(body)
        if not self._is_known(pid):
            return
        self.told.threads += 1
        if not flags & CLONE_THREAD:
            self.told.processes += 1
            self._known.add(child)
            self._symbols.fork(pid, child)
        yield Fork(n=0, pid=child, tid=child_tid, parent=pid, parent_tid=tid, flags=flags & ~0xFF)

    # -- lists of VMAs --------------------------------------------------------------------------------

    def _exec(self, pid: int, _tid: int, more: int, body: bytes) -> Iterator[Record]:
        fields = _EXEC.unpack_from(body)
        mmap_base, task_size, start_brk, brk, start_stack, start_code, end_code, start_data, end_data = fields[:9]
        mm_flags, personality, limit_as, data, stack, memlock, caps, exe, argv_length = fields[9:]
        if more and pid in self._known:
            self._dumps[pid] = _Dump(Maps(n=0, pid=pid, vmas=[]), start_brk, brk, start_stack)
            return
        if not self.told.processes:
            self.told.processes = self.told.threads = 1
        self._known.add(pid)
        self._symbols.clear(pid)
        self._told_stacks.pop(pid, None)
        argv = body[_EXEC.size : _EXEC.size + argv_length] or _command_line(pid)
        file = self._files.get(exe)
        record = Exec(
            n=0,
            pid=pid,
            exe=file.path if file is not None else "",
            vmas=[],
            argv=[printable(word) for word in argv.removesuffix(b"\0").split(b"\0")] if argv else [],
            mmap_base=mmap_base,
            topdown=not personality & ADDR_COMPAT_LAYOUT and not legacy_layout(),
            start_brk=start_brk,
            brk=brk,
            start_stack=start_stack,
            start_code=start_code,
            end_code=end_code,
            start_data=start_data,
            end_data=end_data,
            limits=Limits(as_=_limit(limit_as), data=_limit(data), stack=_limit(stack), memlock=_limit(memlock)),
            caps=[name for name, bit in CAPABILITIES.items() if caps >> bit & 1],
            personality=personality,
            thp_disabled=mm_flags >> _THP_DISABLED & 1 != 0,
            memory_merge=mm_flags >> _MERGE_ANY & 1 != 0,
        )
        self._dumps[pid] = _Dump(record, start_brk, brk, start_stack)
        if task_size < 1 << 32:
            why = "it is a 32-bit program, whose calls are not recorded"
            self.told.lost.append(f"process {pid}: {why}")
            yield Lost(n=0, pid=pid, why=why)

    def _exit(self, pid: int, _tid: int, more: int, body: bytes) -> Iterator[Record]:
        code, start_brk, brk, start_stack = _EXIT.unpack_from(body)
        if not self._is_known(pid):
            return
        signalled = code & 0x7F
        record = Exit(n=0, pid=pid, code=None if signalled else code >> 8 & 0xFF, signal=signalled or None)
        self._known.discard(pid)
        if more:
            self._dumps[pid] = _Dump(record, start_brk, brk, start_stack)
        else:
            yield record

    def _vma_name(self, pid: int, _tid: int, _more: int, body: bytes) -> Iterator[Record]:
        dump = self._dumps.get(pid)
        if dump is not None:
            dump.name = f"[anon:{printable(body.split(bytes(1))[0])}]"
        return iter(())

    def _vma(self, pid: int, _tid: int, _more: int, body: bytes) -> Iterator[Record]:
        dump = self._dumps.get(pid)
        if dump is None:
            return
        start, end, flags, pgoff, anon_vma, pointer, inode, device, chain, label = _VMA.unpack_from(body)
        vma = Vma(start=start, end=end, flags=vm_flags_text(flags), offset=pgoff << PAGE_SHIFT, ino=inode, chain=chain)
        vma.dev = _device(device)
        vma.pkey = flags >> 32 & 15
        if anon_vma:
            vma.anon_vma = dump.anon_vmas.setdefault(anon_vma, len(dump.anon_vmas) + 1)
        file = self._files.get(pointer) if pointer else None
        if file is not None:
            vma.path = file.path
            if flags & VM_EXEC and isinstance(dump.record, Exec):
                self._symbols.map(pid, start, end, vma.offset, file.path)
        else:
            vma.path = dump.name or printable(label.split(b"\0")[0])
            if not vma.path and start < dump.heap[1] and end > dump.heap[0]:
                vma.path = "[heap]"
            elif not vma.path and start <= dump.start_stack <= end:
                vma.path = "[stack]"
        dump.name = ""
        dump.vmas.append(vma)
        yield from ()

    def _dump_end(self, pid: int, _tid: int, _more: int, body: bytes) -> Iterator[Record]:
        dump = self._dumps.pop(pid, None)
        if dump is None:
            return
        record = dump.record
        count, whole = _DUMP_END.unpack_from(body)
        complete = count == len(dump.vmas) and whole
        if complete:
            record.vmas = dump.vmas
            record.anon_vmas = True
        if complete or isinstance(record, Exit):
            yield from self._find_again()
            yield record
        elif isinstance(record, Exec):
            self._known.discard(pid)

    # -- files and data -------------------------------------------------------------------------------

    def _file(self, _pid: int, _tid: int, more: int, body: bytes) -> Iterator[Record]:
        pointer, inode, device, rdev, mode, access, fs, length = _FILE.unpack_from(body)
        names = body[_FILE.size : _FILE.size + length].split(b"\0")[:-1]
        self._file_count += 1
        fields = (inode, device, rdev, mode, access)
        kind = _text(fs)
        self._files[pointer] = _File(self._file_count, more, fields, kind, _path(names, more, kind))
        return iter(())

    def _take_data(self, _pid: int, tid: int, more: int, body: bytes) -> Iterator[Record]:
        self._data[tid] = body[:more]
        return iter(())

    # -- stacks ---------------------------------------------------------------------------------------

    def _take_user_stack(self, _pid: int, tid: int, _more: int, body: bytes) -> Iterator[Record]:
        self._copies[tid] = body
        return iter(())

    def _stack_of(self, pid: int, tid: int, stack: int | bytes) -> tuple[int | None, Stack | None]:
        """The id of the Stack record for a stack of a task, and that record if it is new.

        The stack is the number of one of the kernel's, that of one that the task told of by itself, or a copy of its
        memory.
        """
        addresses: tuple[int, ...] | None
        if isinstance(stack, bytes):
            addresses = self._unwinder.addresses(pid, stack)
        else:
            addresses = self._own_stacks.get((tid, stack)) if stack < -1 else self._stacks.get(stack)
        if addresses is None:
            return None, None
        told = self._told_stacks.setdefault(pid, {})
        known = told.get(addresses)
        if known is not None:
            return known, None
        self._stack_count += 1
        number = told[addresses] = self._stack_count
        frames = [self._symbols.frame(pid, address) for address in addresses]
        return number, Stack(n=0, id=number, pid=pid, frames=frames)


def _file_record(file: _File, flags: int) -> File:
    kept = DRIVER_FLAGS | {"lo"} if file.path.startswith("/secretmem") else DRIVER_FLAGS
    kind = "shm" if file.from_segment else file.kind()
    driver = vm_flags_text(flags).split() if kind in ("device", "other", "hugetlb") else []
    return File(
        n=0,
        id=file.id,
        dev=_device(file.device),
        ino=file.inode,
        path=file.path,
        readable=file.access & 1 != 0,
        writable=file.access & 2 != 0,
        kind=kind,
        fs=file.fs,
        noexec=file.noexec,
        driver_flags=" ".join(word for word in driver if word in kept),
    )


def _went_astray(frames: list[str]) -> bool:
    """Whether a stack ends too early to be true, or where there is no code: a frame pointer was taken that is none."""
    return len(frames) <= 2 or (frames[-1].startswith("0x") and "(" not in frames[-1])


def _path(names: list[bytes], more: int, fs: str) -> str:
    """The path of names from the last to the first, as /proc shows it."""
    deleted = " (deleted)" if more & _DELETED else ""
    if more & _INSIDE:
        name = printable(names[0]) if names else ""
        if fs in ("anon_inodefs", "anon_inode"):
            return f"anon_inode:{name}"
        return f"/{name} (deleted)"
    return "/" + printable(b"/".join(reversed(names))) + deleted


def _device(number: int) -> str:
    return f"{number >> 20:02x}:{number & 0xFFFFF:02x}"


def _command_line(pid: int) -> bytes:
    """The arguments of a process that was found running; none if it has ended since."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _limit(value: int) -> int | None:
    return None if value == RLIM_INFINITY else value


def _text(raw: bytes) -> str:
    return printable(raw.split(b"\0")[0])
