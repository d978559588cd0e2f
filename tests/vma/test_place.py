"""Where mappings go: what the scenes cannot show, because it is about huge pages and the ends of the address space."""

import pytest

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from vmalab.machine import Machine
from vmalab.reason import ADDRESS_IS_ERROR, BELOW_MIN_ADDR, BEYOND_TASK_SIZE_MAP, HUGETLB_LENGTH, NO_GAP, UNALIGNED, YES
from vmalab.semantics import THP_ALIGN_LARGE, THP_ALIGN_MULTIPLE, THP_ALIGN_NEVER
from vmalab.vma.area import SHMEM_OPS, File
from vmalab.vma.place import (
    LOW_4G,
    LOW_32BIT_END,
    LOW_32BIT_START,
    check_fixed,
    get_unmapped_area,
    round_hint_to_min,
    thp_get_unmapped_area,
)
from vmalab.vma.space import Mm

BASE = 0x7FFFF7FFF000
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED


def space(*, thp_shmem: bool = False) -> Mm:
    process = Machine().process()
    process.mm.settings.thp_shmem = thp_shmem
    return process.mm


@pytest.mark.parametrize(
    ("rule", "length", "aligned"),
    [
        (THP_ALIGN_MULTIPLE, PMD_SIZE, True),
        (THP_ALIGN_MULTIPLE, PMD_SIZE + PAGE_SIZE, False),
        (THP_ALIGN_LARGE, PMD_SIZE + PAGE_SIZE, True),
        (THP_ALIGN_LARGE, PMD_SIZE - 2 * PAGE_SIZE, False),
        (THP_ALIGN_NEVER, PMD_SIZE, False),
    ],
)
def test_anonymous_memory_is_aligned_for_huge_pages(rule: int, length: int, aligned: bool) -> None:
    mm = space()
    mm.semantics.thp_align_anonymous = rule
    found = get_unmapped_area(mm, None, 0, length, 0, 0)
    assert (found % PMD_SIZE == 0) == aligned
    assert BASE - 2 * PMD_SIZE <= found <= BASE - length


def test_alignment_for_huge_pages_gives_way() -> None:
    mm = space()
    process = Machine().process()
    mm = process.mm
    mm.mmap_base = 0x40000000 + PMD_SIZE + PAGE_SIZE
    process.mmap(0x10000, 0x40000000 - 0x10000 + PAGE_SIZE, flags=FIXED)
    mm.legacy_base = TASK_SIZE - PAGE_SIZE
    assert get_unmapped_area(mm, None, 0, PMD_SIZE, 0, 0) == 0x40000000 + PAGE_SIZE, "the padding did not fit"
    assert get_unmapped_area(mm, None, 0, 2 * PMD_SIZE, 0, 0) == -NO_GAP


def test_a_file_is_aligned_by_its_offset() -> None:
    mm = space()
    file = File("f", thp_aligned=True)
    for pages in (0, 1, 511):
        found = get_unmapped_area(mm, file, 0, 2 * PMD_SIZE, pages, 0)
        assert (found - pages * PAGE_SIZE) % PMD_SIZE == 0
    assert get_unmapped_area(mm, file, 0, PMD_SIZE, 1, 0) == BASE - PMD_SIZE, "it holds no whole huge page"
    hint = 0x123456000
    assert get_unmapped_area(mm, file, hint, 2 * PMD_SIZE, 0, 0) == hint
    mm.topdown = False
    mm.legacy_base = 0x2AAAAAAAB000
    found = thp_get_unmapped_area(mm, 0, PMD_SIZE, 0, 0)
    assert found == 0x2AAAAAC00000
    mm.legacy_base = 0x2AAAAAC00000
    assert thp_get_unmapped_area(mm, 0, PMD_SIZE, 0, 0) == 0x2AAAAAC00000
    mm.topdown = True
    mm.mmap_base = BASE & ~(PMD_SIZE - 1)
    assert thp_get_unmapped_area(mm, 0, PMD_SIZE, 0, 0) == mm.mmap_base - PMD_SIZE


def test_shared_memory_is_aligned_where_it_has_huge_pages() -> None:
    memfd = File("m", kind="memfd", ops=SHMEM_OPS)
    shared = f.MAP_SHARED | f.MAP_ANONYMOUS
    for mm in (space(thp_shmem=False), space(thp_shmem=True)):
        huge = mm.settings.thp_shmem
        for file, flags in ((memfd, f.MAP_SHARED), (None, shared), (File("z", kind="zero"), f.MAP_SHARED)):
            assert (get_unmapped_area(mm, file, 0, PMD_SIZE, 0, flags) % PMD_SIZE == 0) == huge
        assert get_unmapped_area(mm, memfd, 0, PAGE_SIZE, 0, f.MAP_SHARED) == BASE - PAGE_SIZE
    mm = space(thp_shmem=True)
    assert get_unmapped_area(mm, memfd, 0, 4 * PMD_SIZE, 3, f.MAP_SHARED) % PMD_SIZE == 3 * PAGE_SIZE
    assert get_unmapped_area(mm, memfd, 0, PMD_SIZE, 3, f.MAP_SHARED) == BASE - PMD_SIZE, "no whole huge page"
    assert get_unmapped_area(mm, memfd, 0x123456000, PMD_SIZE, 0, f.MAP_SHARED) == 0x123456000
    mm.mmap_base = 0x40000000
    assert get_unmapped_area(mm, memfd, 0, PMD_SIZE, 0, f.MAP_SHARED) == 0x40000000 - PMD_SIZE, "aligned already"


def test_shared_memory_is_aligned_up_within_its_padding() -> None:
    mm = space(thp_shmem=True)
    mm.mmap_base = BASE - 5 * PAGE_SIZE
    memfd = File("m", kind="memfd", ops=SHMEM_OPS)
    assert get_unmapped_area(mm, memfd, 0, PMD_SIZE, 0, f.MAP_SHARED) == (BASE & ~(PMD_SIZE - 1)) - PMD_SIZE


def test_shared_memory_that_finds_no_room_to_be_aligned() -> None:
    process = Machine().process()
    mm = process.mm
    mm.settings.thp_shmem = True
    mm.topdown = False
    mm.legacy_base = TASK_SIZE - PMD_SIZE
    memfd = File("m", kind="memfd", ops=SHMEM_OPS)
    assert get_unmapped_area(mm, memfd, 0, PMD_SIZE, 0, f.MAP_SHARED) == TASK_SIZE - PMD_SIZE
    # The padded search finds a place, but what is left of it above the alignment ends beyond the address space.
    mm.legacy_base = TASK_SIZE - 2 * PMD_SIZE + PAGE_SIZE
    found = get_unmapped_area(mm, memfd, 0, PMD_SIZE, 0, f.MAP_SHARED)
    assert found == TASK_SIZE - 2 * PMD_SIZE + PAGE_SIZE


def test_huge_pages_have_their_own_alignment() -> None:
    mm = space()
    huge = File("h", kind="hugetlb", huge_size=PMD_SIZE)
    assert get_unmapped_area(mm, huge, 0, PMD_SIZE, 0, 0) % PMD_SIZE == 0
    assert get_unmapped_area(mm, huge, 0, PAGE_SIZE, 0, 0) == -HUGETLB_LENGTH
    assert get_unmapped_area(mm, huge, 0x40000000, PMD_SIZE, 0, f.MAP_FIXED) == 0x40000000
    assert get_unmapped_area(mm, huge, 0x40001000, PMD_SIZE, 0, f.MAP_FIXED) == -HUGETLB_LENGTH
    assert get_unmapped_area(mm, huge, 0x40001000, PMD_SIZE, 0, 0) == 0x40000000 + PMD_SIZE


def test_the_low_parts_of_the_address_space() -> None:
    mm = space()
    assert get_unmapped_area(mm, None, 0, PAGE_SIZE, 0, f.MAP_32BIT) == LOW_32BIT_START
    assert get_unmapped_area(mm, None, 0x50000000, PAGE_SIZE, 0, f.MAP_32BIT) == 0x50000000
    assert get_unmapped_area(mm, None, 0, LOW_32BIT_END + PAGE_SIZE, 0, f.MAP_32BIT) == -NO_GAP
    assert get_unmapped_area(mm, None, 0, PAGE_SIZE, 0, f.MAP_ABOVE4G) == BASE - PAGE_SIZE
    mm.topdown = False
    mm.legacy_base = 0x10000000
    assert get_unmapped_area(mm, None, 0, PAGE_SIZE, 0, f.MAP_ABOVE4G) == LOW_4G
    assert get_unmapped_area(mm, None, TASK_SIZE - PAGE_SIZE, 2 * PAGE_SIZE, 0, 0) == 0x10000000


def test_the_ends_of_the_address_space() -> None:
    mm = space()
    assert get_unmapped_area(mm, None, 0, TASK_SIZE + PAGE_SIZE, 0, 0) == -BEYOND_TASK_SIZE_MAP
    assert get_unmapped_area(mm, None, TASK_SIZE, PAGE_SIZE, 0, f.MAP_FIXED) == -BEYOND_TASK_SIZE_MAP
    assert get_unmapped_area(mm, None, 0x10001, PAGE_SIZE, 0, f.MAP_FIXED) == -UNALIGNED
    assert get_unmapped_area(mm, None, (1 << 64) - 4095, PAGE_SIZE, 0, f.MAP_FIXED) == -ADDRESS_IS_ERROR
    assert get_unmapped_area(mm, None, (1 << 64) - 4096, PAGE_SIZE, 0, f.MAP_FIXED) == -BEYOND_TASK_SIZE_MAP
    assert check_fixed(mm, 0x1000, PAGE_SIZE) == BELOW_MIN_ADDR
    mm.limits.sys_rawio = True
    assert check_fixed(mm, 0x1000, PAGE_SIZE) == YES
    assert round_hint_to_min(mm, 0x1234) == mm.settings.min_addr
    assert round_hint_to_min(mm, 0x800) == 0
    assert round_hint_to_min(mm, 0x123456) == 0x123000
