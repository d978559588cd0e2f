"""From a Call to the function that performs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vmalab.addr import ULONG_END
from vmalab.calls import Call, Outcome
from vmalab.flags import (
    CLONE_NEWIPC,
    F_ADD_SEALS,
    MADV_COLLAPSE,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MAP_32BIT,
    MAP_FIXED,
    MAP_HUGETLB,
    PR_SET_MM,
    PR_SET_VMA,
    PR_SET_VMA_ANON_NAME,
    READ_IMPLIES_EXEC,
    RLIM_INFINITY,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    RLIMIT_STACK,
    UFFD_API,
    UFFDIO_API,
    UFFDIO_CONTINUE,
    UFFDIO_COPY,
    UFFDIO_MOVE,
    UFFDIO_POISON,
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
    UFFDIO_WAKE,
    UFFDIO_WRITEPROTECT,
    UFFDIO_ZEROPAGE,
)
from vmalab.pages import uffd as fills
from vmalab.pages.port import memory_of
from vmalab.reason import (
    ADDRESS_IS_ERROR,
    BEYOND_USER_EFAULT,
    CONTROL_ARGUMENTS,
    LAYOUT_SIZE,
    LENGTH_WRAPS,
    LIMIT_BAD,
    NOT_MODELLED,
    UNKNOWN_FLAGS,
    YES,
    errno_of,
)
from vmalab.syscalls import control, layout, lock, madvise, map, mremap, policy, protect, query, shm, uffd
from vmalab.syscalls.populate import pages_uncertain
from vmalab.vma.area import Userfaultfd
from vmalab.vma.shm import IpcNamespace
from vmalab.vma.space import Mm
from vmalab.world import ProcessState

NO_EFFECT: Final = frozenset(
    {
        "memfd_create",
        "userfaultfd",
        "memfd_secret",
        "io_uring_setup",
        "io_uring_register",
        "migrate_pages",
        "move_pages",
        "dup",
    }
)
"""Calls that change no VMA.  Their results are descriptors or counts that the model does not predict."""


def perform(process: ProcessState, call: Call) -> Outcome:
    """Perform a call as a process; a call that is not modelled changes nothing and says so."""
    mm = process.mm
    mm.limits = process.limits
    mm.read_implies_exec = process.personality & READ_IMPLIES_EXEC != 0
    name = call.name
    # The most frequent ones are called directly: by the table takes three times as long.
    if name == "mmap":
        return _mmap(process, call)
    if name == "munmap":
        return _munmap(process, call)
    if name == "mprotect":
        return _mprotect(process, call)
    if name == "madvise":
        return _madvise(process, call)
    if name == "brk":
        return _brk(process, call)
    if name == "mremap":
        return _mremap(process, call)
    handler = _HANDLERS.get(name)
    if handler is not None:
        return handler(process, call)
    if name in NO_EFFECT:
        return Outcome(0, known=False)
    return _not_modelled()


def _outcome(result: int) -> Outcome:
    """A result, or minus a reason, as an Outcome."""
    if result >= 0:
        return Outcome(result)
    return Outcome(-errno_of(-result), -result, modelled=-result != NOT_MODELLED)


def _not_modelled() -> Outcome:
    return _outcome(-NOT_MODELLED)


def _signed(word: int) -> int:
    """A register as a C int."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >> 31 else word


def _mmap(process: ProcessState, call: Call) -> Outcome:
    addr, length, prot, flags, _, offset = call.args
    outcome = _outcome(map.mmap(process.mm, addr, length, prot, flags, call.file, offset))
    if outcome.reason == ADDRESS_IS_ERROR:
        # The one reason whose errno is whatever was asked for.
        outcome.result = addr - ULONG_END
    # The kernel starts the low search at a random page, so the place is not known.
    if flags & MAP_32BIT and not flags & MAP_FIXED and addr == 0:
        outcome.known = False
    if process.mm.settings.hugepages and (flags & MAP_HUGETLB or (call.file is not None and call.file.huge_size)):
        # Whether the pool holds enough pages is not modelled.
        outcome.known = False
    return outcome


def _munmap(process: ProcessState, call: Call) -> Outcome:
    return _outcome(map.munmap(process.mm, call.args[0], call.args[1]))


def _brk(process: ProcessState, call: Call) -> Outcome:
    result, refusal = map.brk(process.mm, call.args[0])
    return Outcome(result, refusal)


def _remap_file_pages(process: ProcessState, call: Call) -> Outcome:
    start, size, prot, pgoff, flags = call.args
    return _outcome(map.remap_file_pages(process.mm, start, size, prot, pgoff, flags))


def _mprotect(process: ProcessState, call: Call) -> Outcome:
    return _outcome(protect.mprotect(process.mm, call.args[0], call.args[1], call.args[2]))


def _pkey_mprotect(process: ProcessState, call: Call) -> Outcome:
    start, length, prot, pkey = call.args
    return _outcome(protect.mprotect(process.mm, start, length, prot, _signed(pkey)))


def _pkey_alloc(process: ProcessState, call: Call) -> Outcome:
    return _outcome(protect.pkey_alloc(process.mm, call.args[0], call.args[1]))


def _pkey_free(process: ProcessState, call: Call) -> Outcome:
    return _outcome(protect.pkey_free(process.mm, _signed(call.args[0])))


def _mseal(process: ProcessState, call: Call) -> Outcome:
    return _outcome(protect.mseal(process.mm, call.args[0], call.args[1], call.args[2]))


def _mremap(process: ProcessState, call: Call) -> Outcome:
    addr, old_len, new_len, flags, new_addr = call.args
    return _outcome(mremap.mremap(process.mm, addr, old_len, new_len, flags, new_addr))


def _madvise(process: ProcessState, call: Call) -> Outcome:
    start, length, advice = call.args
    return _advise(process.mm, start, length, _signed(advice))


def _advise(mm: Mm, start: int, length: int, advice: int) -> Outcome:
    outcome = _outcome(madvise.madvise(mm, start, length, advice))
    if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        return _populating(mm, start, length, outcome)
    if advice == MADV_REMOVE or (advice == MADV_COLLAPSE and memory_of(mm) is None):
        outcome.known = False
    return outcome


def _mlock(process: ProcessState, call: Call) -> Outcome:
    flags = call.args[2] & 0xFFFFFFFF if call.name == "mlock2" else 0
    outcome = _outcome(lock.mlock(process.mm, call.args[0], call.args[1], flags))
    return _populating(process.mm, call.args[0], call.args[1], outcome)


def _populating(mm: Mm, start: int, length: int, outcome: Outcome) -> Outcome:
    """Whether pages can be populated depends on the sizes of files and on guard markers, which a VMA does not show."""
    for vma in mm.tree.walk(start, min(start + length + 1, ULONG_END)):
        if pages_uncertain(vma):
            outcome.known = False
    return outcome


def _munlock(process: ProcessState, call: Call) -> Outcome:
    return _outcome(lock.munlock(process.mm, call.args[0], call.args[1]))


def _mlockall(process: ProcessState, call: Call) -> Outcome:
    return _outcome(lock.mlockall(process.mm, call.args[0]))


def _munlockall(process: ProcessState, call: Call) -> Outcome:
    return _outcome(lock.munlockall(process.mm))


def _nodes(call: Call) -> tuple[int, ...]:
    nodes = call.data.get("nodes", [])
    return tuple(nodes) if isinstance(nodes, list) else ()


def _mbind(process: ProcessState, call: Call) -> Outcome:
    start, length, mode, _, _, flags = call.args
    return _outcome(policy.mbind(process.mm, start, length, mode & 0xFFFFFFFF, _nodes(call), flags & 0xFFFFFFFF))


def _set_mempolicy(process: ProcessState, call: Call) -> Outcome:
    mode, refusal = policy.set_mempolicy(process.mm, call.args[0] & 0xFFFFFFFF, _nodes(call))
    if refusal == YES:
        process.policy_mode = mode
    return _outcome(-refusal)


def _get_mempolicy(process: ProcessState, call: Call) -> Outcome:
    _, mask, bits, addr, flags = call.args
    return _outcome(-policy.get_mempolicy(process.mm, process.policy_mode, bits if mask else -1, addr, flags))


def _msync(process: ProcessState, call: Call) -> Outcome:
    return _outcome(query.msync(process.mm, call.args[0], call.args[1], call.args[2] & 0xFFFFFFFF))


def _mincore(process: ProcessState, call: Call) -> Outcome:
    return _outcome(query.mincore(process.mm, call.args[0], call.args[1]))


def _capset(process: ProcessState, call: Call) -> Outcome:
    """Capabilities that memory calls ask for."""
    effective = call.data.get("effective")
    if isinstance(effective, int):
        process.limits.take_capabilities(effective)
    return Outcome(0, known=False)


def _set_mempolicy_home_node(process: ProcessState, call: Call) -> Outcome:
    start, length, node, flags = call.args
    return _outcome(policy.set_mempolicy_home_node(process.mm, start, length, node, flags))


def _prctl(process: ProcessState, call: Call) -> Outcome:
    option = call.args[0]
    mm = process.mm
    if option == PR_SET_VMA and call.args[1] == PR_SET_VMA_ANON_NAME:
        name = call.data.get("name")
        text = name if isinstance(name, str) else None
        return _outcome(madvise.set_anon_name(mm, call.args[2], call.args[3], text))
    if option in control.OPTIONS:
        return _outcome(control.prctl(mm, option, (*call.args[1:], 0, 0, 0, 0)[:4]))
    if option == PR_SET_MM:
        return _set_mm(process, call)
    return Outcome(0, known=False)


def _set_mm(process: ProcessState, call: Call) -> Outcome:
    _, option, addr, size, last = call.args
    mm = process.mm
    if last or (size and option not in (layout.AUXV, layout.MAP, layout.MAP_SIZE)):
        return _outcome(-CONTROL_ARGUMENTS)
    if option == layout.MAP_SIZE:
        return Outcome(0, known=addr != 0)
    if option != layout.MAP:
        return _outcome(-layout.set_part(mm, option, addr))
    parts, rest = call.data.get("layout"), call.data.get("rest")
    if not isinstance(parts, list) or not isinstance(rest, list) or len(parts) != len(layout.ORDER) or len(rest) != 3:
        # The pointer was no good, or nobody looked.
        return _outcome(-LAYOUT_SIZE) if size != layout.MAP_BYTES else Outcome(0, known=False)
    return _outcome(-layout.set_layout(mm, parts, size, rest[0], rest[1], rest[2]))


def _set_limit(process: ProcessState, resource: int, call: Call) -> Outcome:
    value = call.data.get("cur")
    if not isinstance(value, int):
        return Outcome(0, known=False)
    limits = process.limits
    if value < 0:
        value = RLIM_INFINITY
    hard = call.data.get("max")
    if isinstance(hard, int) and value > hard:
        return _outcome(-LIMIT_BAD)
    if resource == RLIMIT_AS:
        limits.as_bytes = value
    elif resource == RLIMIT_DATA:
        limits.data = value
    elif resource == RLIMIT_STACK:
        limits.stack = value
    elif resource == RLIMIT_MEMLOCK:
        limits.memlock = value
    return Outcome(0, known=False)


def _setrlimit(process: ProcessState, call: Call) -> Outcome:
    return _set_limit(process, call.args[0], call)


def _prlimit64(process: ProcessState, call: Call) -> Outcome:
    target = call.args[0]
    if target not in (0, process.pid):
        return Outcome(0, known=False)
    return _set_limit(process, call.args[1], call)


def _personality(process: ProcessState, call: Call) -> Outcome:
    old = process.personality
    if call.args[0] & 0xFFFFFFFF != 0xFFFFFFFF:
        process.personality = call.args[0] & 0xFFFFFFFF
    return Outcome(old)


def _shmat(process: ProcessState, call: Call) -> Outcome:
    number = _signed(call.args[0])
    namespace = process.ipc
    size, key = call.data.get("size"), call.data.get("key", 0)
    if not namespace.whole and call.file is not None and isinstance(size, int) and isinstance(key, int):
        # It was made before anybody looked, with whatever permissions.
        shm.found_segment(namespace, number, key, size, shm.PERMISSIONS)
    return _outcome(shm.shmat(process.mm, namespace, number, call.args[1], call.args[2] & 0xFFFFFFFF, call.file))


def _shmget(process: ProcessState, call: Call) -> Outcome:
    key, size, flags = _signed(call.args[0]), call.args[1], call.args[2] & 0xFFFFFFFF
    number = call.data.get("id")
    namespace = process.ipc
    if isinstance(number, int):
        shm.found_segment(namespace, number, key, size, flags & shm.PERMISSIONS)
        return Outcome(number)
    if not namespace.whole:
        return Outcome(0, known=False)
    outcome = _outcome(shm.shmget(process.mm, namespace, key, size, flags))
    if flags & shm.HUGETLB and not flags & shm.NORESERVE and process.mm.settings.hugepages:
        # Whether the pool holds enough pages is not modelled, as for mmap.
        outcome.known = False
    return outcome


def _shmctl(process: ProcessState, call: Call) -> Outcome:
    number, command = _signed(call.args[0]), _signed(call.args[1])
    mode = call.data.get("mode")
    namespace = process.ipc
    outcome = _outcome(shm.shmctl(process.mm, namespace, number, command, mode if isinstance(mode, int) else -1))
    outcome.known = namespace.whole or number in namespace.segments or command not in shm.COMMANDS
    return outcome


def _unshare(process: ProcessState, call: Call) -> Outcome:
    if call.args[0] & CLONE_NEWIPC:
        process.enter_ipc(IpcNamespace(process.mm.commit))
    return Outcome(0, known=False)


def _shmdt(process: ProcessState, call: Call) -> Outcome:
    return _outcome(shm.shmdt(process.mm, call.args[0]))


def _uffd_of(process: ProcessState, call: Call) -> Userfaultfd:
    number = call.data.get("uffd", call.args[0])
    assert isinstance(number, int)
    return process.uffds.setdefault(number, Userfaultfd(f"userfaultfd {number}"))


_FILLS: Final = {
    UFFDIO_COPY: fills.COPY,
    UFFDIO_ZEROPAGE: fills.ZERO,
    UFFDIO_CONTINUE: fills.CONTINUE,
    UFFDIO_POISON: fills.MARK_POISON,
}


def _ioctl(process: ProcessState, call: Call) -> Outcome:
    command = call.args[1] & 0xFFFFFFFF
    data = call.data
    context = _uffd_of(process, call)
    if command == UFFDIO_API:
        features, version = data.get("features", 0), data.get("api", UFFD_API)
        if not isinstance(features, int) or not isinstance(version, int):
            return Outcome(0, known=False)
        if context.queue is None:
            # It was recorded: the kernel has said what it thinks of it.
            uffd.enable(context, features)
            return Outcome(0, known=False)
        return _outcome(uffd.api(process.mm, context, version, features))
    refusal = uffd.is_ready(context)
    if refusal != YES:
        return _outcome(-refusal)
    start = data.get("start")
    length = data.get("len")
    if not isinstance(start, int) or not isinstance(length, int):
        return Outcome(0, known=False)
    mm = process.mm if context.mm is None else context.mm
    if command == UFFDIO_REGISTER:
        mode = data.get("mode")
        if isinstance(mode, int):
            return _outcome(uffd.register(mm, context, start, length, mode))
    elif command == UFFDIO_UNREGISTER:
        return _outcome(uffd.unregister(mm, context, start, length))
    elif command == UFFDIO_WAKE:
        return _outcome(uffd.wake(mm, context, start, length))
    memory = memory_of(mm)
    mode = data.get("mode")
    if memory is None or not isinstance(mode, int):
        return _not_modelled()
    if command == UFFDIO_WRITEPROTECT:
        return _outcome(uffd.write_protect(mm, memory, context, start, length, mode))
    if command == UFFDIO_MOVE:
        source = data.get("src")
        assert isinstance(source, int)
        return _outcome(uffd.move(process.mm, memory, context, start, source, length, mode))
    kind = _FILLS.get(command)
    if kind is None:
        return _not_modelled()
    content = data.get("content", "")
    assert isinstance(content, str)
    return _outcome(uffd.fill(mm, memory, context, start, length, kind, mode, bytes.fromhex(content)))


def _process_madvise(process: ProcessState, call: Call) -> Outcome:
    if call.args[4] & 0xFFFFFFFF:
        return _outcome(-UNKNOWN_FLAGS)
    ranges = call.data.get("ranges")
    target = call.data.get("pid", process.pid)
    if not isinstance(ranges, list) or not isinstance(target, int):
        return Outcome(0, known=False)
    if any([length >> 63 for length in ranges[1::2]]):
        return _outcome(-LENGTH_WRAPS)
    for start, length in zip(ranges[::2], ranges[1::2], strict=True):
        if start + length > process.mm.task_size:
            return _outcome(-BEYOND_USER_EFAULT)
    other = process.find_process(target)
    if other is None:
        return Outcome(0, known=False)
    advice = _signed(call.args[3])
    if other.mm is not process.mm:
        refusal = madvise.may_advise_other(process.limits, other.limits, advice)
        if refusal != YES:
            return _outcome(-refusal)
    done = 0
    known = True
    for start, length in zip(ranges[::2], ranges[1::2], strict=True):
        if not length:
            continue
        outcome = _advise(other.mm, start, length, advice)
        known = known and outcome.known
        if outcome.result < 0:
            return Outcome(done if done else outcome.result, outcome.reason, known=known)
        done += length
    return Outcome(done, known=known)


def _close(process: ProcessState, call: Call) -> Outcome:
    """The last descriptor of a userfaultfd is closed: its VMAs leave it."""
    number = call.data.get("uffd")
    context = process.uffds.pop(number, None) if isinstance(number, int) else None
    if context is not None:
        uffd.release(process.mm, context)
    return Outcome(0)


def _fcntl(process: ProcessState, call: Call) -> Outcome:
    """F_ADD_SEALS on a memfd that is or will be mapped."""
    if call.args[1] == F_ADD_SEALS and call.file is not None:
        return _outcome(query.add_seals(call.file, call.args[2] & 0xFFFFFFFF))
    return Outcome(0, known=False)


_HANDLERS: Final[dict[str, Callable[[ProcessState, Call], Outcome]]] = {
    "brk": _brk,
    "remap_file_pages": _remap_file_pages,
    "pkey_mprotect": _pkey_mprotect,
    "pkey_alloc": _pkey_alloc,
    "pkey_free": _pkey_free,
    "mseal": _mseal,
    "mremap": _mremap,
    "process_madvise": _process_madvise,
    "mlock": _mlock,
    "mlock2": _mlock,
    "munlock": _munlock,
    "mlockall": _mlockall,
    "munlockall": _munlockall,
    "mbind": _mbind,
    "set_mempolicy": _set_mempolicy,
    "get_mempolicy": _get_mempolicy,
    "msync": _msync,
    "mincore": _mincore,
    "capset": _capset,
    "set_mempolicy_home_node": _set_mempolicy_home_node,
    "prctl": _prctl,
    "setrlimit": _setrlimit,
    "prlimit64": _prlimit64,
    "personality": _personality,
    "shmget": _shmget,
    "shmat": _shmat,
    "shmctl": _shmctl,
    "unshare": _unshare,
    "shmdt": _shmdt,
    "ioctl": _ioctl,
    "close": _close,
    "fcntl": _fcntl,
}
