"""The contract of an explanation: all repairs together merge, and each one that is left out refuses for its own
reason.
"""

from hypothesis import given
from hypothesis import strategies as st

from vmalab import reason
from vmalab.addr import PAGE_SIZE
from vmalab.explain import obstacles
from vmalab.explain.obstacles import Boundary, Sight, boundaries, count_merges, find_obstacles, merge_refusal
from vmalab.flags import (
    VM_DONTCOPY,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_MAYREAD,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from vmalab.machine import Machine
from vmalab.vma.area import FILE_OPS, SHM_OPS, AnonVma, File, Policy, Userfaultfd, Vma

START = 0x10000000
FILES = [File("/a", "00:01", 1), File("/a", "00:01", 1), File("/b", "00:01", 2)]
POLICIES = [None, Policy(2, 0, (0,)), Policy(4, 0, ())]
UFFDS = [None, Userfaultfd("one"), Userfaultfd("two")]
ANON_VMAS = [AnonVma(None), AnonVma(None)]
FLAGS = [VM_READ, VM_WRITE, VM_MAYREAD, VM_MAYWRITE, VM_SHARED, VM_LOCKED, VM_DONTCOPY, VM_DONTEXPAND]


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Vma, Vma]:
    """Two VMAs that touch, alike or not in each attribute."""
    mm = Machine().process().mm
    made = []
    for i in range(2):
        start = START + i * 4 * PAGE_SIZE
        vma = Vma(mm, start, start + 4 * PAGE_SIZE, 0, 0)
        vma.flags = sum(draw(st.sets(st.sampled_from(FLAGS))), start=0)
        vma.pgoff = draw(st.sampled_from([0, 4, 4, 9]))
        vma.policy = draw(st.sampled_from(POLICIES))
        vma.uffd = draw(st.sampled_from(UFFDS))
        vma.name = draw(st.sampled_from([None, "x"]))
        vma.file = draw(st.sampled_from([None, *FILES]))
        vma.ops = draw(st.sampled_from([FILE_OPS, SHM_OPS])) if vma.file is not None else None
        vma.chain = draw(st.sampled_from([(), (ANON_VMAS[0],), (ANON_VMAS[1],), tuple(ANON_VMAS)]))
        vma.anon_vma = vma.chain[0] if vma.chain else None
        made.append(vma)
    return made[0], made[1]


def repaired(left: Vma, right: Vma, reasons: list[int]) -> int:
    """What the merge says once these reasons, and no others, are repaired."""
    one, two = obstacles.detached_copy(left), obstacles.detached_copy(right)
    for why in reasons:
        obstacles._REPAIRS[why](one, two)
    return merge_refusal(one, two)


@given(neighbours())
def test_sound_and_minimal(pair: tuple[Vma, Vma]) -> None:
    left, right = pair
    attributes = ("start", "end", "flags", "pgoff", "file", "ops", "policy", "uffd", "name", "anon_vma")
    before = [[getattr(vma, name) for name in attributes] + list(vma.chain) for vma in pair]
    found = find_obstacles(left, right)
    reasons = list(dict.fromkeys(obstacle.reason for obstacle in found))
    assert (merge_refusal(left, right) == reason.YES) == (not found)
    assert repaired(left, right, reasons) == reason.YES
    for why in reasons:
        assert repaired(left, right, [each for each in reasons if each != why]) == why
    assert before == [[getattr(vma, name) for name in attributes] + list(vma.chain) for vma in pair]


@given(neighbours())
def test_each_flag_that_is_named_is_needed(pair: tuple[Vma, Vma]) -> None:
    left, right = pair
    found = find_obstacles(left, right)
    flags = [obstacle.bits for obstacle in found if obstacle.reason == reason.FLAGS_DIFFER]
    left.flags ^= sum(flags, start=0)
    assert all(each.reason != reason.FLAGS_DIFFER for each in find_obstacles(left, right))
    for bits in flags:
        left.flags ^= bits
        assert [each.bits for each in find_obstacles(left, right) if each.reason == reason.FLAGS_DIFFER] == [bits]
        left.flags ^= bits


@given(neighbours(), st.sampled_from([Sight.SNAPSHOT, Sight.NO_FAULTS]))
def test_less_sight_never_names_more(pair: tuple[Vma, Vma], sight: Sight) -> None:
    known = [(each.reason, each.detail) for each in find_obstacles(*pair)]
    seen = find_obstacles(*pair, sight)
    assert [(each.reason, each.detail) for each in seen if each.reason] == [
        each
        for each in known
        if sight is Sight.NO_FAULTS
        or each[0] not in (reason.ANON_VMA_DIFFERS, reason.ANON_VMA_OF_FORK, reason.UFFD_DIFFERS, reason.POLICY_DIFFERS)
    ]
    if sight is Sight.SNAPSHOT:
        assert seen, "in a snapshot two VMAs that are there did not merge"


def test_what_would_go_is_really_merged() -> None:
    process = Machine().process()
    addr = process.mmap(0, 3 * PAGE_SIZE)
    process.mprotect(addr + PAGE_SIZE, PAGE_SIZE, 7)
    assert [each.kind() for each in boundaries(process.mm)] == ["permissions", "permissions"]
    assert count_merges(boundaries(process.mm)) == 2
    first, _, third = process.vmas()
    for vma in (first, third):
        vma.anon_vma = AnonVma(None)
        vma.chain = (vma.anon_vma,)
        vma.anon_vma.links = vma.anon_vma.active = 1
    found: list[Boundary] = list(boundaries(process.mm))
    assert [each.kind() for each in found] == ["permissions", "permissions"]
    assert count_merges(found) == 1, "each pair would merge, but not all three: the outer two were written to apart"


def test_a_snapshot_does_not_guess() -> None:
    process = Machine().process()
    addr = process.mmap(0, 4 * PAGE_SIZE)
    process.mprotect(addr, 2 * PAGE_SIZE, 1)
    process.mprotect(addr, PAGE_SIZE, 3)
    vmas = process.vmas()
    for vma in (vmas[0], vmas[2]):
        process.touch(vma.start)
    process.mprotect(addr + PAGE_SIZE, PAGE_SIZE, 3)
    assert process.mm.map_count == 2, "two anon_vmas stay apart"
    below, above = process.vmas()
    assert [each.name for each in find_obstacles(below, above)] == ["ANON_VMA_DIFFERS"]
    assert [each.name for each in find_obstacles(below, above, Sight.SNAPSHOT)] == ["UNKNOWN"]
