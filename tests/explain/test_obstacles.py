"""The contract of an explanation: all repairs together merge, and each one that is left out refuses for its own
reason.
"""

from hypothesis import given
from hypothesis import strategies as st

from vmalab import reason
from vmalab.addr import PAGE_SIZE
from vmalab.explain import obstacles
from vmalab.explain.obstacles import find_obstacles, merge_refusal
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
from vmalab.vma.anon import anon_vma_prepare
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
        vma.chain = draw(st.sampled_from([[], [ANON_VMAS[0]], [ANON_VMAS[1]], list(ANON_VMAS)]))
        vma.anon_vma = vma.chain[0] if vma.chain else None
        made.append(vma)
    return made[0], made[1]


def repaired(left: Vma, right: Vma, leave_out: int) -> int:
    """What the merge says when all it names is repaired but one reason."""
    one, two = obstacles._copy(left), obstacles._copy(right)
    for _ in range(20):
        refusal = merge_refusal(one, two)
        if refusal in (reason.YES, leave_out):
            return refusal
        obstacles._REPAIRS[refusal](one, two)
    raise AssertionError("the repairs do not come to an end")


@given(neighbours())
def test_sound_and_minimal(pair: tuple[Vma, Vma]) -> None:
    left, right = pair
    before = (left.flags, right.flags, left.pgoff, right.pgoff, left.file, right.file, right.ops)
    found = find_obstacles(left, right)
    assert (merge_refusal(left, right) == reason.YES) == (not found)
    assert repaired(left, right, -1) == reason.YES
    for why in {obstacle.reason for obstacle in found}:
        assert repaired(left, right, why) == why
    assert before == (left.flags, right.flags, left.pgoff, right.pgoff, left.file, right.file, right.ops)


def test_a_snapshot_does_not_guess() -> None:
    process = Machine().process()
    addr = process.mmap(0, 4 * PAGE_SIZE)
    process.mprotect(addr, 2 * PAGE_SIZE, 1)
    process.mprotect(addr, PAGE_SIZE, 3)
    vmas = process.vmas()
    for vma in (vmas[0], vmas[2]):
        anon_vma_prepare(vma)
    process.mprotect(addr + PAGE_SIZE, PAGE_SIZE, 3)
    assert process.mm.map_count == 2, "two anon_vmas stay apart"
    below, above = process.vmas()
    assert [each.name for each in find_obstacles(below, above)] == ["ANON_VMA_DIFFERS"]
    assert [each.name for each in find_obstacles(below, above, hidden=True)] == ["UNKNOWN"]
