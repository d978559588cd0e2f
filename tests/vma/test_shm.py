"""Segments of System V shared memory: their ids, who counts in them, and when they go."""

import pytest

from vmalab import Machine
from vmalab.calls import Call
from vmalab.flags import IPC_CREAT, IPC_RMID, MAP_ANONYMOUS, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE
from vmalab.machine import KernelError
from vmalab.reason import HUGETLB_OFFSET, SHM_NO_SEGMENT, YES
from vmalab.syscalls import shm
from vmalab.vma.area import File
from vmalab.vma.port import Port
from vmalab.vma.shm import INDEX_BITS, MIN_CYCLE, SHM_DEST, IpcNamespace, Segment
from vmalab.vma.space import OVERCOMMIT_NEVER, Commit

PAGE = 4096
AT = 0x10000000


def segment(namespace: IpcNamespace, charged: int = 1) -> Segment:
    made = Segment(namespace, namespace.new_id(), 5, charged * PAGE, 0o600, charged)
    namespace.add(made)
    return made


def test_ids_go_round() -> None:
    namespace = IpcNamespace(Commit(1 << 20))
    first = [segment(namespace) for _ in range(3)]
    assert [each.id for each in first] == [0, 1, 2]
    namespace.remove(first[0])
    for number in range(3, MIN_CYCLE):
        made = segment(namespace)
        assert made.id == number, "a place that is free is used when its turn comes"
        namespace.remove(made)
    assert segment(namespace).id == 1 << INDEX_BITS, "in another round the id is another"
    assert namespace.commit.shm == len(namespace.segments) == 3


def test_a_segment_that_is_removed_goes_with_its_last_attachment() -> None:
    commit = Commit(1 << 20)
    namespace = IpcNamespace(commit)
    commit.committed = 4
    held = segment(namespace, 4)
    held.locked = namespace.user_locked = 4
    held.open()
    namespace.remove(held)
    assert (held.mode & SHM_DEST, held.key) == (SHM_DEST, 0)
    held.close()
    assert namespace.segments == {}
    assert (namespace.user_locked, commit.shm, commit.committed) == (0, 0, 0)


def test_a_namespace_goes_with_its_last_process() -> None:
    namespace = IpcNamespace(Commit(1 << 20))
    segment(namespace)
    namespace.holders = 2
    namespace.leave()
    assert namespace.segments
    namespace.leave()
    assert not namespace.segments


def test_every_vma_counts() -> None:
    machine = Machine()
    process = machine.process()
    number = process.shmget(0, 8 * PAGE)
    attached = process.ipc.segments[number]
    process.shmat(number, AT)
    process.munmap(AT + PAGE, PAGE)
    child = process.fork()
    assert attached.attached == 4
    machine.validate()
    child.exit()
    attached.attached += 1
    with pytest.raises(AssertionError, match="counts 3 attachments, 2 VMAs have it"):
        machine.validate()
    attached.attached -= 1
    process.shmctl(number, IPC_RMID)
    process.shmdt(AT)
    assert number not in process.ipc.segments
    machine.validate()


def test_shared_memory_is_committed_as_it_is_made() -> None:
    machine = Machine(ram_pages=1 << 20)
    process = machine.process()
    shared = MAP_SHARED | MAP_ANONYMOUS
    addr = process.mmap(0, 8 * PAGE, PROT_READ, shared)
    process.mmap(0, 8 * PAGE, PROT_READ, shared | MAP_NORESERVE)
    assert machine.commit.committed == 8
    process.munmap(addr, 4 * PAGE)
    assert machine.commit.committed == 8, "the file is there as long as a part of it is mapped"
    process.munmap(addr, 8 * PAGE)
    assert machine.commit.committed == 0
    machine.commit.mode = OVERCOMMIT_NEVER
    with pytest.raises(KernelError):
        process.mmap(0, 1 << 40, PROT_READ | PROT_WRITE, shared)
    machine.validate()


class Keeper(Port):
    """Notes which segments are gone."""

    def __init__(self) -> None:
        self.gone: list[int] = []

    def forget_segment(self, segment: Segment) -> None:
        super().forget_segment(segment)
        self.gone.append(segment.id)


def test_whoever_keeps_the_pages_of_a_segment_hears_of_its_end() -> None:
    namespace = IpcNamespace(Commit(1 << 20))
    made = segment(namespace)
    keeper = made.port = Keeper()
    made.open()
    namespace.remove(made)
    assert keeper.gone == []
    made.close()
    assert keeper.gone == [made.id]


def test_an_attachment_has_whole_huge_pages() -> None:
    made = segment(IpcNamespace(Commit(1 << 20)))
    assert made.length == PAGE
    made.file = File("/SYSV00000005 (deleted)", huge_size=0x200000)
    made.file.size = 0x200000
    assert (made.length, made.size) == (0x200000, PAGE)
    assert Port().reserve_huge(made.file) == YES


def test_what_makes_room_may_be_the_last_attachment() -> None:
    machine = Machine()
    process = machine.process()
    number = process.shmget(0, 4 * PAGE)
    process.shmat(number, AT)
    process.shmctl(number, IPC_RMID)
    assert process.do(Call("remap_file_pages", (AT, PAGE, 0, 0, 0))).result == 0
    assert process.do(Call("remap_file_pages", (AT, 4 * PAGE, 0, 0, 0))).reason == SHM_NO_SEGMENT
    assert number not in process.ipc.segments
    assert process.mm.find_vma_intersection(AT, AT + 4 * PAGE) is None, "the old mapping is gone all the same"
    assert machine.commit.committed == 0
    machine.validate()


def test_a_mapping_that_its_driver_refuses_does_not_count() -> None:
    """Huge pages begin at their own size in the segment as well."""
    machine = Machine()
    process = machine.process()
    process.shmat(process.shmget(0, PAGE, 0o600 | IPC_CREAT | shm.HUGETLB | shm.NORESERVE), AT)
    (held,) = process.ipc.segments.values()
    assert process.do(Call("remap_file_pages", (AT, held.length, 0, 1, 0))).reason == HUGETLB_OFFSET
    assert held.attached == 0
    machine.validate()
