"""The page cache: folios of several orders, how they are split, and what collapses them."""

import errno

import pytest

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.calls import Call
from vmalab.machine import KernelError, Machine, Process
from vmalab.pages.filemap import split_file_folio
from vmalab.pages.folio import PMD_ORDER, Folio, PageCache
from vmalab.pages.holders import MemoryRegion
from vmalab.pages.memory import ALWAYS, DENY, FORCE, INHERIT, MADVISE, NEVER, WITHIN_SIZE, Memory, PageSettings
from vmalab.pages.table import Huge
from vmalab.pages.thp import shmem_orders
from vmalab.reason import FAULT_BEYOND_FILE
from vmalab.vma.area import SHM_OPS, SHMEM_OPS, File

AT = 0x40000000
FILE_SIZE = 8 * PMD_SIZE


def _memfd(size: int = FILE_SIZE) -> File:
    file = File("/memfd:m (deleted)", kind="memfd", ops=SHMEM_OPS, private_ops=SHMEM_OPS)
    file.size = size
    return file


def _process(settings: PageSettings | None = None) -> tuple[Process, Memory]:
    memory = Memory(settings)
    return Machine(memory=memory).process(), memory


def _map(process: Process, at: int, length: int, file: File, flags: int = f.MAP_SHARED, offset: int = 0) -> None:
    outcome = process.do(Call("mmap", (at, length, 3, flags | f.MAP_FIXED, 3, offset), file))
    assert outcome.result == at


def _collapsed(length: int = PMD_SIZE) -> tuple[Process, Memory, PageCache]:
    """A process that maps a memfd, of which each 2 MiB is one folio; pages 3 and 300 hold something."""
    process, memory = _process()
    file = _memfd()
    _map(process, AT, length, file)
    for at in range(AT, AT + length, PMD_SIZE):
        process.write(at + 3 * PAGE_SIZE, b"three")
        process.write(at + 300 * PAGE_SIZE, b"other")
    process.madvise(AT, length, f.MADV_COLLAPSE)
    process.machine.validate()
    return process, memory, memory.cache_of(file)


def _orders(cache: PageCache) -> list[tuple[int, int]]:
    return [(int(folio.index), int(folio.order)) for folio in cache.folios()]


def test_a_cache_finds_a_folio_by_any_of_its_pages_and_goes_through_them_in_order() -> None:
    cache = PageCache()
    folios = []
    for index, order in ((512, 9), (7, 0), (8, 3), (4, 1), (1024, 2)):
        folio = Folio(order, 0)
        folio.index = index
        cache.add(folio)
        folios.append(folio)
    assert _orders(cache) == [(4, 1), (7, 0), (8, 3), (512, 9), (1024, 2)]
    assert [cache.find(index) for index in (512, 1023, 7, 8, 15, 5, 1027)] == [
        folios[at] for at in (0, 0, 1, 2, 2, 3, 4)
    ]
    assert [cache.find(index) for index in (6, 16, 511, 1028, 0)] == [None] * 5
    assert [folio.index for folio in cache.overlapping(5, 9)] == [4, 7, 8]
    assert [folio.index for folio in cache.overlapping(16, 513)] == [512]
    assert cache.overlapping(16, 512) == []
    cache.remove(folios[2])
    assert cache.find(8) is None
    assert folios[2].cache is None
    assert _orders(cache) == [(4, 1), (7, 0), (512, 9), (1024, 2)]


def test_collapse_keeps_contents_and_frees_what_it_replaces() -> None:
    process, memory, cache = _collapsed()
    assert _orders(cache) == [(0, PMD_ORDER)]
    assert (memory.live, memory.resident) == (1, 512)
    assert process.read(AT + 3 * PAGE_SIZE, 5) + process.read(AT + 300 * PAGE_SIZE, 5) == b"threeother"
    assert process.read(AT + 4 * PAGE_SIZE, 1) == b"\0"
    folio = cache.find(0)
    assert folio is not None
    assert (folio.refs, folio.mapcount()) == (513, 1)


@pytest.mark.parametrize(
    ("start", "pages", "left"),
    [
        (0, 512, []),
        (0, 256, [(256, 0), (257, 0), *[(256 + (1 << order), order) for order in range(1, 8)]]),
        (256, 256, [(0, 8)]),
        (511, 1, [(0, 8), (256, 7), (384, 6), (448, 5), (480, 4), (496, 3), (504, 2), (508, 1), (510, 0)]),
        (128, 128, [(0, 7), (256, 0), (257, 0), *[(256 + (1 << order), order) for order in range(1, 8)]]),
        (2, 3, [(0, 1), (5, 0), (6, 1), (8, 3), (16, 4), (32, 5), (64, 6), (128, 7), (256, 8)]),
    ],
)
def test_around_a_hole_folios_stay_as_large_as_they_can(start: int, pages: int, left: list[tuple[int, int]]) -> None:
    """They are split around its first page, and around the first one after it."""
    process, memory, cache = _collapsed()
    process.madvise(AT + start * PAGE_SIZE, pages * PAGE_SIZE, f.MADV_REMOVE)
    process.machine.validate()
    assert _orders(cache) == left
    assert memory.resident == 512 - pages
    for page, content in ((3, b"three"), (300, b"other")):
        kept = b"\0" * 5 if start <= page < start + pages else content
        assert process.read(AT + page * PAGE_SIZE, 5) == kept


def test_a_pinned_folio_is_not_split_and_has_zeros_where_the_hole_is() -> None:
    process, _, cache = _collapsed()
    region = MemoryRegion(process.mm, AT, PAGE_SIZE)
    process.madvise(AT + 3 * PAGE_SIZE, PAGE_SIZE, f.MADV_REMOVE)
    assert _orders(cache) == [(0, PMD_ORDER)]
    assert process.read(AT + 3 * PAGE_SIZE, 5) + process.read(AT + 300 * PAGE_SIZE, 5) == b"\0\0\0\0\0other"
    region.close()
    process.machine.validate()


def test_a_page_that_somebody_holds_keeps_its_neighbours_small() -> None:
    process, _ = _process()
    file = _memfd()
    _map(process, AT, 2 * PMD_SIZE, file)
    process.write(AT, b"x")
    process.write(AT + PMD_SIZE, b"y")
    region = MemoryRegion(process.mm, AT, PAGE_SIZE)
    with pytest.raises(KernelError) as refused:
        process.madvise(AT, 2 * PMD_SIZE, f.MADV_COLLAPSE)
    assert refused.value.errno == errno.EAGAIN
    tables = process.machine.memory.tables(process.mm) if process.machine.memory else None
    assert tables is not None
    assert [isinstance(tables.pmds[(AT >> 21) + at], Huge) for at in (0, 1)] == [False, True]
    region.close()
    process.machine.validate()


def test_a_device_goes_on_seeing_what_it_holds_after_a_hole() -> None:
    process, _, cache = _collapsed()
    region = MemoryRegion(process.mm, AT + 3 * PAGE_SIZE, PAGE_SIZE)
    process.madvise(AT, PMD_SIZE, f.MADV_REMOVE)
    assert cache.folios() == []
    assert region.read()[:5] == b"three"
    assert process.read(AT + 3 * PAGE_SIZE, 5) == b"\0" * 5
    region.close()
    process.machine.validate()


def test_what_is_past_the_end_of_the_file_goes_when_a_folio_is_split() -> None:
    process, memory = _process()
    file = _memfd(24 * PAGE_SIZE)
    _map(process, AT, PMD_SIZE, file)
    process.write(AT, b"x")
    process.madvise(AT, PMD_SIZE, f.MADV_COLLAPSE)
    process.write(AT + 30 * PAGE_SIZE, b"beyond")
    folio = memory.cache_of(file).find(0)
    assert folio is not None
    assert split_file_folio(memory, folio, file)
    assert memory.resident == 24
    with pytest.raises(KernelError) as refused:
        process.read(AT + 30 * PAGE_SIZE, 6)
    assert refused.value.reason == FAULT_BEYOND_FILE
    process.machine.validate()


def test_copy_on_write_in_a_private_mapping_leaves_the_folio_whole() -> None:
    process, memory, cache = _collapsed()
    child = process.fork()
    file = process.vmas()[0].file
    assert file is not None
    _map(child, AT + 4 * PMD_SIZE, PMD_SIZE, file, f.MAP_PRIVATE)
    assert child.read(AT + 4 * PMD_SIZE + 3 * PAGE_SIZE, 5) == b"three"
    tables = memory.tables(child.mm)
    assert isinstance(tables.pmds.get(AT + 4 * PMD_SIZE >> 21), Huge)
    child.write(AT + 4 * PMD_SIZE + 3 * PAGE_SIZE, b"mine!")
    assert process.read(AT + 3 * PAGE_SIZE, 5) == b"three"
    assert child.read(AT + 4 * PMD_SIZE + 300 * PAGE_SIZE, 5) == b"other"
    assert _orders(cache) == [(0, PMD_ORDER)]
    process.machine.validate()


def test_a_large_uniform_range_costs_one_folio_and_one_entry_each() -> None:
    """16 GiB of a memfd in huge pages: nothing is kept of single pages."""
    size = 1 << 34
    settings = PageSettings()
    settings.shmem = FORCE
    process, memory = _process(settings)
    file = _memfd(size)
    _map(process, AT << 4, size, file)
    process.madvise(AT << 4, size, f.MADV_POPULATE_WRITE)
    assert (memory.live, memory.resident) == (size // PMD_SIZE, size // PAGE_SIZE)
    assert all(isinstance(entry, Huge) for entry in memory.tables(process.mm).pmds.values())
    assert len(memory.cache_of(file).folios()) == size // PMD_SIZE
    process.munmap(AT << 4, size)
    assert memory.resident == size // PAGE_SIZE


ALL = list(range(PMD_ORDER, 0, -1))


@pytest.mark.parametrize(
    ("top", "sizes", "advised", "named", "orders"),
    [
        (NEVER, {PMD_ORDER: INHERIT}, True, False, []),
        (MADVISE, {PMD_ORDER: INHERIT}, True, False, [9]),
        (MADVISE, {PMD_ORDER: INHERIT}, False, False, []),
        (ALWAYS, {PMD_ORDER: INHERIT, 4: NEVER}, False, False, [9]),
        (NEVER, {4: ALWAYS, 2: MADVISE}, True, False, [4, 2]),
        (NEVER, {4: ALWAYS, 2: MADVISE}, False, False, [4]),
        (DENY, {4: ALWAYS, PMD_ORDER: INHERIT}, True, False, []),
        (FORCE, {4: ALWAYS, PMD_ORDER: INHERIT, 3: INHERIT}, False, False, [9, 3]),
        (WITHIN_SIZE, {PMD_ORDER: INHERIT, 4: WITHIN_SIZE}, False, False, [9, 4]),
        (WITHIN_SIZE, {PMD_ORDER: INHERIT}, True, False, [9]),
        (MADVISE, {}, True, True, ALL),
        (WITHIN_SIZE, {}, False, True, [6, 5, 4, 3, 2, 1]),
        (WITHIN_SIZE, {}, True, True, [6, 5, 4, 3, 2, 1]),
        (FORCE, {}, False, True, [9]),
    ],
)
def test_sizes_of_shared_memory_by_setting(
    top: int, sizes: dict[int, int], advised: bool, named: bool, orders: list[int]
) -> None:
    """A file of 100 pages; a segment of System V has no settings for each size (named)."""
    settings = PageSettings()
    settings.shmem, settings.shmem_orders = top, sizes
    process, memory = _process(settings)
    file = _memfd(100 * PAGE_SIZE)
    _map(process, AT, PMD_SIZE, file)
    if advised:
        process.madvise(AT, PMD_SIZE, f.MADV_HUGEPAGE)
    (vma,) = process.vmas()
    if named:
        vma.ops = SHM_OPS
    assert shmem_orders(memory, vma, 5, False) == orders
    vma.ops = SHMEM_OPS
