"""From a step of a sequence to what the model does for it, and to what the agent does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from vmalab.addr import PAGE_SIZE
from vmalab.calls import Call
from vmalab.flags import (
    F_ADD_SEALS,
    F_SEAL_SEAL,
    IPC_SET,
    IPC_STAT,
    MFD_ALLOW_SEALING,
    PR_SET_MM,
    RLIM_INFINITY,
    UFFD_FEATURE_SIGBUS,
    UFFDIO_API,
    UFFDIO_CONTINUE,
    UFFDIO_COPY,
    UFFDIO_POISON,
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
    UFFDIO_WRITEPROTECT,
    UFFDIO_ZEROPAGE,
)
from vmalab.fuzz.ops import FIRST_MADE, NUMBERS, Op
from vmalab.live.agent import DATA, PUT, WORD, Step
from vmalab.syscalls import layout
from vmalab.vma.area import SECRET_OPS, SHMEM_OPS, File

NODE_MASK_BITS: Final = 64
PIDFD_SELF: Final = (1 << 64) - 10000
"""This thread group, where a call takes a descriptor of a process (Linux 6.14)."""
PIDFD_SLOT: Final = 48
"""The slot of the agent for a descriptor of process 0; that of process 1 follows."""
CLOSE: Final = 3
_FTRUNCATE: Final = 77
_CAPSET: Final = 126
_IOCTL: Final = 16
_FCNTL: Final = 72
_MEMFD_CREATE: Final = 319
_USERFAULTFD: Final = 323
_PIDFD_OPEN: Final = 434
_MEMFD_SECRET: Final = 447
_UFFD_API: Final = 0xAA
_CAPABILITY_VERSION: Final = 0x20080522
_O_CLOEXEC: Final = 0o2000000

SEGMENT_FIELDS: Final = ((88, 8), (48, 8), (20, 2))
"""Where struct shmid64_ds has shm_nattch, shm_segsz and the mode, and how many bytes they are."""
FILLS: Final = (UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_CONTINUE, UFFDIO_POISON)
"""What a step called fill does, by its kind."""
MAKERS: Final = ("memfd", "memfd_secret", "userfaultfd", "shmget")
"""Steps that make a file."""

Translated = tuple[Call, list[Step]]


@final
class Resources:
    """What a process of a run holds: files that all runs have, and what the run has made, by slot."""

    def __init__(
        self, files: list[File], descriptors: list[int], segments: dict[int, int], hard_limits: dict[int, int]
    ) -> None:
        self.files: list[File] = files
        self.descriptors: list[int] = descriptors
        self.segments: dict[int, int] = segments
        """The ids of segments of shared memory, by file; minus an errno where none could be made."""
        self.hard_limits: dict[int, int] = hard_limits
        """They stay as they are."""
        self.made: dict[int, File | None] = {}
        """By slot; None is a userfaultfd."""
        self.source: int = 0
        """Where the agent has something that can be copied, and what that is."""
        self.content: bytes = b""
        self.user: int = 0
        """Whose the agent is."""
        self.group: int = 0
        self.peers: dict[int, tuple[int, int]] = {}
        """The processes of the run: their numbers on the kernel and in the model."""
        self.pidfds: set[int] = set()
        """Of which processes this one holds a descriptor, in the slot PIDFD_SLOT and further."""

    def inherited(self) -> Resources:
        """What a child has of it: a userfaultfd is closed there, it speaks for the parent's memory."""
        child = Resources(self.files, self.descriptors, dict(self.segments), self.hard_limits)
        child.source = self.source
        child.content = self.content
        child.user = self.user
        child.group = self.group
        child.peers = self.peers
        child.pidfds = set(self.pidfds)
        child.made = {slot: file for slot, file in self.made.items() if file is not None}
        return child

    def has(self, op: Op) -> bool:
        """Whether the file of a step is there, or is made by it."""
        if op.name in ("shmat", "shmctl"):
            return op.file in self.segments
        return op.file < FIRST_MADE or op.name in MAKERS or op.file - FIRST_MADE in self.made

    def contexts(self) -> list[int]:
        """The slots of the userfaultfds."""
        return [slot for slot, file in self.made.items() if file is None]


def _bytes(value: int) -> bytes:
    return (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")


def _first(slot: int) -> tuple[int, int, int, int, int, int]:
    """Where the arguments of a step come from whose first is in a slot."""
    return slot + 1, 0, 0, 0, 0, 0


def _nodes(mask: int) -> list[int]:
    return [node for node in range(NODE_MASK_BITS) if mask >> node & 1]


def _mmap(op: Op, resources: Resources, scratch: int) -> Translated:
    args = op.args
    slots = (0, 0, 0, 0, 0, 0)
    file: File | None = None
    descriptor = 0xFFFFFFFFFFFFFFFF
    if op.file >= FIRST_MADE:
        slot = op.file - FIRST_MADE
        file = resources.made[slot]
        slots = (0, 0, 0, 0, slot + 1, 0)
    elif op.file >= 0:
        file = resources.files[op.file]
        descriptor = resources.descriptors[op.file]
    four = args[:4]
    return Call("mmap", (*four, 3, args[4]), file), [Step(NUMBERS["mmap"], (*four, descriptor, args[4]), slots=slots)]


def _mbind(op: Op, resources: Resources, scratch: int) -> Translated:
    start, length, mode, mask, flags = op.args
    args = (start, length, mode, scratch, NODE_MASK_BITS + 1, flags)
    return Call("mbind", args, data={"nodes": _nodes(mask)}), [Step(NUMBERS["mbind"], args, _bytes(mask))]


def _set_mempolicy(op: Op, resources: Resources, scratch: int) -> Translated:
    mode, mask = op.args
    args = (mode, scratch, NODE_MASK_BITS + 1)
    return Call("set_mempolicy", args, data={"nodes": _nodes(mask)}), [
        Step(NUMBERS["set_mempolicy"], args, _bytes(mask))
    ]


def _get_mempolicy(op: Op, resources: Resources, scratch: int) -> Translated:
    addr, flags = op.args
    args = (scratch, scratch + 8, NODE_MASK_BITS + 1, addr, flags)
    return Call("get_mempolicy", args), [Step(NUMBERS["get_mempolicy"], args)]


def _prlimit64(op: Op, resources: Resources, scratch: int) -> Translated:
    limit, value = op.args
    args = (0, limit, scratch, 0)
    hard = resources.hard_limits.get(limit, RLIM_INFINITY)
    return Call("prlimit64", args, data={"cur": value, "max": hard}), [
        Step(NUMBERS["prlimit64"], args, _bytes(value) + _bytes(hard))
    ]


def _mincore(op: Op, resources: Resources, scratch: int) -> Translated:
    args = (op.args[0], op.args[1], scratch)
    return Call("mincore", args), [Step(NUMBERS["mincore"], args)]


def _process_madvise(op: Op, resources: Resources, scratch: int) -> Translated:
    advice, flags, ranges = op.args[0], op.args[1], list(op.args[2:])
    args = (PIDFD_SELF, scratch, len(ranges) // 2, advice, flags)
    packed = b"".join([_bytes(word) for word in ranges])
    data: dict[str, int | str | list[int]] = {"ranges": ranges}
    if op.file < 0:
        return Call("process_madvise", args, data=data), [Step(NUMBERS["process_madvise"], args, packed)]
    pid, data["pid"] = resources.peers[op.file]
    slot = PIDFD_SLOT + op.file
    steps = [Step(NUMBERS["process_madvise"], args, packed, slots=_first(slot))]
    if op.file not in resources.pidfds:
        resources.pidfds.add(op.file)
        steps.insert(0, Step(_PIDFD_OPEN, (pid, 0), to=slot + 1))
    return Call("process_madvise", args, data=data), steps


def _shmat(op: Op, resources: Resources, scratch: int) -> Translated:
    args = (resources.segments[op.file], *op.args)
    return Call("shmat", args), [Step(NUMBERS["shmat"], args)]


def _shmctl(op: Op, resources: Resources, scratch: int) -> Translated:
    """With a command; and the mode for IPC_SET, or which field of what IPC_STAT tells is the answer."""
    command, what = op.args
    args = (resources.segments[op.file], command, scratch)
    if command == IPC_SET:
        owner = b"".join([each.to_bytes(4, "little") for each in (0, resources.user, resources.group, 0, 0)])
        packed = owner + (what & 0xFFFFFFFF).to_bytes(4, "little")
        return Call("shmctl", args, data={"mode": what & 0xFFFF}), [Step(NUMBERS["shmctl"], args, packed)]
    steps = [Step(NUMBERS["shmctl"], args)]
    if command == IPC_STAT:
        steps.append(Step(WORD, SEGMENT_FIELDS[what % len(SEGMENT_FIELDS)]))
    return Call("shmctl", args), steps


def _memfd(op: Op, resources: Resources, scratch: int) -> Translated:
    flags, pages = op.args
    slot = op.file - FIRST_MADE
    file = File("/memfd:v (deleted)", kind="memfd", ops=SHMEM_OPS, private_ops=SHMEM_OPS)
    file.size = pages * PAGE_SIZE
    if not flags & MFD_ALLOW_SEALING:
        file.seals = F_SEAL_SEAL
    resources.made[slot] = file
    create = Step(_MEMFD_CREATE, (scratch, flags | 1), b"v\0", to=slot + 1)
    return Call("memfd_create", (scratch, flags)), [create, _truncate(slot, file.size)]


def _truncate(slot: int, size: int) -> Step:
    return Step(_FTRUNCATE, (0, size), slots=_first(slot))


def _memfd_secret(op: Op, resources: Resources, scratch: int) -> Translated:
    slot = op.file - FIRST_MADE
    file = File("/secretmem (deleted)", kind="secretmem", noexec=True, ops=SECRET_OPS, private_ops=SECRET_OPS)
    file.size = op.args[0] * PAGE_SIZE
    resources.made[slot] = file
    create = Step(_MEMFD_SECRET, (_O_CLOEXEC,), to=slot + 1)
    return Call("memfd_secret", (0,)), [create, _truncate(slot, file.size)]


def _seal(op: Op, resources: Resources, scratch: int) -> Translated:
    slot = op.file - FIRST_MADE
    call = Call("fcntl", (slot, F_ADD_SEALS, op.args[0]), resources.made[slot])
    return call, [Step(_FCNTL, (0, F_ADD_SEALS, op.args[0]), slots=_first(slot))]


def _userfaultfd(op: Op, resources: Resources, scratch: int) -> Translated:
    """A userfaultfd that answers a missing page with SIGBUS, so that nobody waits for it; other features as asked."""
    slot = op.file - FIRST_MADE
    resources.made[slot] = None
    features = UFFD_FEATURE_SIGBUS | (op.args[0] if op.args else 0)
    api = _bytes(_UFFD_API) + _bytes(features) + bytes(8)
    create = Step(_USERFAULTFD, (_O_CLOEXEC,), to=slot + 1)
    speak = Step(_IOCTL, (0, UFFDIO_API, scratch), api, slots=_first(slot))
    call = Call("ioctl", (slot, UFFDIO_API, scratch), data={"uffd": slot, "features": features})
    return call, [create, speak]


def _register(op: Op, resources: Resources, scratch: int) -> Translated:
    start, length, mode = op.args
    slot = op.file - FIRST_MADE
    data: dict[str, int | str | list[int]] = {"uffd": slot, "start": start, "len": length, "mode": mode}
    packed = _bytes(start) + _bytes(length) + _bytes(mode) + bytes(8)
    step = Step(_IOCTL, (0, UFFDIO_REGISTER, scratch), packed, slots=_first(slot))
    return Call("ioctl", (slot, UFFDIO_REGISTER, scratch), data=data), [step]


def _unregister(op: Op, resources: Resources, scratch: int) -> Translated:
    start, length = op.args
    slot = op.file - FIRST_MADE
    data: dict[str, int | str | list[int]] = {"uffd": slot, "start": start, "len": length}
    step = Step(_IOCTL, (0, UFFDIO_UNREGISTER, scratch), _bytes(start) + _bytes(length), slots=_first(slot))
    return Call("ioctl", (slot, UFFDIO_UNREGISTER, scratch), data=data), [step]


def _fill(op: Op, resources: Resources, scratch: int) -> Translated:
    """An answer to a fault, though nobody waits for it: a page from the agent's program, zeros, the file's, poison."""
    start, length, kind, mode = op.args
    slot = op.file - FIRST_MADE
    command = FILLS[kind & 3]
    data: dict[str, int | str | list[int]] = {"uffd": slot, "start": start, "len": length, "mode": mode}
    packed = _bytes(start) + _bytes(length) + _bytes(mode) + bytes(8)
    if command == UFFDIO_COPY:
        data["content"] = resources.content[: min(length, len(resources.content))].hex()
        packed = _bytes(start) + _bytes(resources.source) + _bytes(length) + _bytes(mode) + bytes(8)
    step = Step(_IOCTL, (0, command, scratch), packed, slots=_first(slot))
    return Call("ioctl", (slot, command, scratch), data=data), [step]


def _writeprotect(op: Op, resources: Resources, scratch: int) -> Translated:
    start, length, mode = op.args
    slot = op.file - FIRST_MADE
    data: dict[str, int | str | list[int]] = {"uffd": slot, "start": start, "len": length, "mode": mode}
    packed = _bytes(start) + _bytes(length) + _bytes(mode)
    step = Step(_IOCTL, (0, UFFDIO_WRITEPROTECT, scratch), packed, slots=_first(slot))
    return Call("ioctl", (slot, UFFDIO_WRITEPROTECT, scratch), data=data), [step]


def _layout(op: Op, resources: Resources, scratch: int) -> Translated:
    """PR_SET_MM_MAP: eleven addresses; where there are more, the auxiliary vector, its size and the executable."""
    count = len(layout.ORDER)
    parts, rest = list(op.args[:count]), list(op.args[count:]) or [0, 0, layout.NO_FILE]
    packed = b"".join([_bytes(part) for part in [*parts, rest[0], rest[1] | rest[2] << 32]])
    args = (PR_SET_MM, layout.MAP, scratch, len(packed), 0)
    steps = [Step(PUT, (DATA,), packed[DATA:]), Step(NUMBERS["prctl"], args, packed[:DATA])]
    return Call("prctl", args, data={"layout": parts, "rest": rest}), steps


def _capset(op: Op, resources: Resources, scratch: int) -> Translated:
    effective = op.args[0]
    low, high = effective & 0xFFFFFFFF, effective >> 32
    words = (_CAPABILITY_VERSION, 0, low, low, 0, high, high, 0)
    packed = b"".join([word.to_bytes(4, "little") for word in words])
    call = Call("capset", (scratch, scratch + 8), data={"effective": effective})
    return call, [Step(_CAPSET, (scratch, scratch + 8), packed)]


def _close(op: Op, resources: Resources, scratch: int) -> Translated:
    slot = op.file - FIRST_MADE
    del resources.made[slot]
    return Call("close", (slot,), data={"uffd": slot}), [Step(CLOSE, slots=_first(slot))]


_TRANSLATORS: Final[dict[str, Callable[[Op, Resources, int], Translated]]] = {
    "mmap": _mmap,
    "mbind": _mbind,
    "set_mempolicy": _set_mempolicy,
    "get_mempolicy": _get_mempolicy,
    "prlimit64": _prlimit64,
    "mincore": _mincore,
    "process_madvise": _process_madvise,
    "shmat": _shmat,
    "shmctl": _shmctl,
    "memfd": _memfd,
    "memfd_secret": _memfd_secret,
    "seal": _seal,
    "userfaultfd": _userfaultfd,
    "register": _register,
    "fill": _fill,
    "writeprotect": _writeprotect,
    "layout": _layout,
    "unregister": _unregister,
    "capset": _capset,
    "close": _close,
}


def translate(op: Op, resources: Resources, scratch: int) -> Translated:
    """The call for the model, and the steps for the agent; scratch is the address of the agent's page for data."""
    found = _TRANSLATORS.get(op.name)
    if found is not None:
        return found(op, resources, scratch)
    return Call(op.name, op.args), [Step(NUMBERS[op.name], op.args)]
