"""Segments of shared memory: who has them attached, when they go, and what they commit."""

import pytest

from vmalab import KernelError, Machine, Process
from vmalab.calls import Call
from vmalab.debug.freeze import Freezer
from vmalab.flags import CLONE_NEWIPC, IPC_CREAT, IPC_RMID, MAP_ANONYMOUS, MAP_NORESERVE, MAP_SHARED
from vmalab.pages.folio import PMD_ORDER
from vmalab.pages.memory import Memory, PageSettings
from vmalab.syscalls import shm
from vmalab.trace import records
from vmalab.trace.replay import Replay
from vmalab.vma.shm import SHM_DEST

PAGE = 0x1000
AT = 0x10000000


def attached(process: Process) -> list[int]:
    return [segment.attached for segment in process.ipc.segments.values()]


def test_every_vma_counts() -> None:
    machine = Machine()
    process = machine.process()
    number = process.shmget(0, 4 * PAGE)
    process.shmat(number, AT)
    process.munmap(AT + PAGE, PAGE)
    assert attached(process) == [2]
    child = process.fork()
    assert attached(process) == [4]
    child.mremap(AT, PAGE, PAGE, 3, 2 * AT)
    assert attached(process) == [4]
    machine.validate()
    child.exit()
    assert attached(process) == [2]
    process.shmdt(AT)
    assert attached(process) == [0]


def test_a_removed_segment_goes_with_its_last_attachment() -> None:
    machine = Machine()
    process = machine.process()
    number = process.shmget(7, 4 * PAGE)
    process.shmat(number, AT)
    process.shmctl(number, IPC_RMID)
    (segment,) = process.ipc.segments.values()
    assert segment.mode & SHM_DEST
    assert process.shmget(7, PAGE) != number, "nobody finds it by its key any more"
    process.shmat(number, 2 * AT)
    process.shmdt(AT)
    machine.validate()
    machine.replace_mm(process)
    assert number not in process.ipc.segments
    with pytest.raises(KernelError):
        process.shmat(number, AT)


def test_what_a_segment_commits_is_given_back() -> None:
    machine = Machine()
    process = machine.process()
    number = process.shmget(0, 5 * PAGE + 1)
    assert machine.commit.committed == 6
    machine.validate()
    process.shmctl(number, IPC_RMID)
    assert machine.commit.committed == 0
    process.shmget(0, 1 << 46, 0o1600 | shm.NORESERVE)
    assert machine.commit.committed == 0


def test_shared_anonymous_memory_is_committed_as_long_as_anybody_has_it() -> None:
    machine = Machine()
    process = machine.process()
    shared = process.mmap(0, 8 * PAGE, 1, MAP_SHARED | MAP_ANONYMOUS)
    process.mmap(0, 8 * PAGE, 1, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE)
    assert machine.commit.committed == 8
    child = process.fork()
    process.munmap(shared, 4 * PAGE)
    process.munmap(shared + 4 * PAGE, 4 * PAGE)
    assert machine.commit.committed == 8
    machine.validate()
    child.exit()
    assert machine.commit.committed == 0
    machine.validate()


def test_a_namespace_goes_with_its_last_process() -> None:
    machine = Machine()
    process = machine.process()
    process.do(Call("unshare", (CLONE_NEWIPC,)))
    process.shmget(0, PAGE)
    child = process.fork()
    process.exit()
    assert machine.commit.shm == 1
    child.exit()
    assert (machine.commit.shm, machine.commit.committed) == (0, 0)


def test_a_replay_with_segments_can_be_frozen() -> None:
    header = records.Header("trace", 1, recorder="test", faults="exact", machine=records.Machine("6.18", "x86_64"))
    replay = Replay(header)
    replay.step(records.Exec(n=1, pid=7, exe="/bin/true", vmas=[], start_brk=AT, brk=AT))
    replay.step(records.Call(n=2, pid=7, tid=7, call="shmget", args=[0, PAGE, 0o1600], ret=1234))
    replay.step(records.File(n=3, id=1, path="/SYSV00000000 (deleted)", kind="shm", ino=1234))
    data: dict[str, int | str | list[int]] = {"size": PAGE, "key": 0}
    attach = records.Call(n=4, pid=7, tid=7, call="shmat", args=[1234, AT, 0], ret=AT, file=1, data=data)
    assert replay.step(attach) is None
    replay.step(records.Call(n=5, pid=7, tid=7, call="shmctl", args=[1234, IPC_RMID, 0], ret=0))
    freezer = Freezer()
    thawed = freezer.thaw(freezer.freeze(replay))
    again = thawed.machine.processes[7]
    assert attached(again) == [1]
    assert again.ipc is thawed.machine.ipc
    assert again.ipc is not replay.machine.ipc
    again.shmdt(AT)
    assert again.ipc.segments == {}
    assert attached(replay.machine.processes[7]) == [1]


HUGE = 0x200000


def test_huge_pages_are_promised_to_a_segment_when_it_is_made() -> None:
    """Attaching it promises nothing more, and what nobody used is free again when it goes."""
    settings = PageSettings()
    settings.hugetlb[PMD_ORDER] = 4
    memory = Memory(settings)
    machine = Machine(memory=memory)
    machine.settings.hugepages = 4
    process = machine.process()
    number = process.shmget(0, HUGE + 1, IPC_CREAT | 0o600 | shm.HUGETLB)
    assert memory.hugetlb_reserved[PMD_ORDER] == 2
    assert process.shmat(number, AT) == AT
    assert process.shmat(number, 2 * AT) == 2 * AT
    assert memory.hugetlb_reserved[PMD_ORDER] == 2
    process.write(AT + 5, b"x")
    assert process.read(2 * AT + 5, 1) == b"x"
    assert (memory.hugetlb_free[PMD_ORDER], memory.hugetlb_reserved[PMD_ORDER]) == (3, 1)
    machine.validate()
    with pytest.raises(KernelError, match="Errno 12"):
        process.shmget(0, 4 * HUGE, IPC_CREAT | 0o600 | shm.HUGETLB)
    process.shmctl(number, IPC_RMID)
    process.shmdt(AT)
    process.shmdt(2 * AT)
    machine.validate()
    assert (memory.hugetlb_free[PMD_ORDER], memory.hugetlb_reserved[PMD_ORDER]) == (4, 0)


def test_attachments_share_their_pages_and_the_last_gives_them_back() -> None:
    """Also those of the first segment of a namespace, whose number is 0, and not those of another namespace's first."""
    memory = Memory()
    machine = Machine(memory=memory)
    process, other = machine.process(), machine.process()
    other.do(Call("unshare", (CLONE_NEWIPC,)))
    for each in (process, other):
        each.shmat(each.shmget(0, PAGE), AT)
    process.shmat(0, 2 * AT)
    process.write(AT, b"x")
    assert (process.read(2 * AT, 1), other.read(AT, 1)) == (b"x", b"\0")
    process.shmctl(0, IPC_RMID)
    process.shmdt(AT)
    assert process.read(2 * AT, 1) == b"x"
    process.shmdt(2 * AT)
    machine.validate()
    assert memory.resident == 1, "the page of the other namespace"


def test_huge_pages_are_not_committed_and_cannot_be_cut() -> None:
    machine = Machine()
    process = machine.process()
    before = machine.commit.committed
    number = process.shmget(0, PAGE, IPC_CREAT | 0o600 | shm.HUGETLB | shm.NORESERVE)
    process.shmat(number, AT)
    assert machine.commit.committed == before
    (vma,) = process.vmas()
    assert (vma.start, vma.end) == (AT, AT + HUGE)
    with pytest.raises(KernelError):
        process.munmap(AT, PAGE)
    process.shmdt(AT)
    assert process.vmas() == []


def test_who_may_make_a_segment_of_huge_pages() -> None:
    process = Machine().process()
    process.limits.hugetlb_shm = False
    flags = IPC_CREAT | 0o600 | shm.HUGETLB | shm.NORESERVE
    with pytest.raises(KernelError, match="CAP_IPC_LOCK or a group"):
        process.shmget(0, PAGE, flags)
    with pytest.raises(KernelError, match="Errno 22"):
        process.shmget(0, PAGE, flags | 13 << 26)
    process.limits.ipc_lock = True
    assert process.shmget(0, PAGE, flags) == 0
