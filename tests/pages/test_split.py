"""Splitting of large folios: by an advice for a part of them, with the page of zeros in place of zeros."""

import pytest

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.machine import Machine, Process
from vmalab.pages.holders import MemoryRegion
from vmalab.pages.memory import Memory, PageSettings

AT = 0x40000000


def _huge(swap: int = 0) -> Process:
    """A process with one huge page, whose pages 0 and 300 hold something."""
    settings = PageSettings()
    settings.swap_pages = swap
    process = Machine(memory=Memory(settings)).process()
    process.mmap(AT, PMD_SIZE, 3, f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED)
    process.madvise(AT, PMD_SIZE, f.MADV_HUGEPAGE)
    process.write(AT, b"first")
    process.write(AT + 300 * PAGE_SIZE, b"other")
    return process


def _memory(process: Process) -> Memory:
    memory = process.machine.memory
    assert memory is not None
    return memory


@pytest.mark.parametrize("advice", [f.MADV_COLD, f.MADV_PAGEOUT, f.MADV_FREE])
def test_an_advice_for_a_part_splits_it(advice: int) -> None:
    process = _huge()
    memory = _memory(process)
    process.madvise(AT, 8 * PAGE_SIZE, advice)
    process.machine.validate()
    pages = [process.page(AT + at * PAGE_SIZE) for at in range(512)]
    own = [at for at, page in enumerate(pages) if page.folio is not memory.zero]
    assert own == [0, 300]
    assert all(page.exclusive and page.folio is not None and not page.folio.order for page in (pages[0], pages[300]))
    assert memory.resident == 2
    process.write(AT + PAGE_SIZE, b"new")
    assert process.read(AT, 5) + process.read(AT + PAGE_SIZE, 3) == b"firstnew"


@pytest.mark.parametrize("advice", [f.MADV_COLD, f.MADV_FREE])
def test_an_advice_for_all_of_it_does_not(advice: int) -> None:
    process = _huge()
    process.madvise(AT, PMD_SIZE, advice)
    assert process.page(AT).folio is process.page(AT + 300 * PAGE_SIZE).folio


@pytest.mark.parametrize("how", ["shared", "pinned"])
def test_what_others_have_stays_whole(how: str) -> None:
    process = _huge()
    region = MemoryRegion(process.mm, AT, PAGE_SIZE) if how == "pinned" else None
    child = process.fork() if how == "shared" else None
    folio = process.page(AT + 300 * PAGE_SIZE).folio
    for advice in (f.MADV_COLD, f.MADV_PAGEOUT, f.MADV_FREE):
        process.madvise(AT, 8 * PAGE_SIZE, advice)
        assert process.page(AT + 300 * PAGE_SIZE).folio is folio
    process.machine.validate()
    if region is not None:
        region.close()
    if child is not None:
        child.exit()


def test_locked_zeros_stay() -> None:
    process = _huge()
    memory = _memory(process)
    folio = process.page(AT).folio
    assert folio is not None
    process.mlock(AT, PMD_SIZE)
    assert memory.split_folio(folio)
    assert process.page(AT + PAGE_SIZE).folio is not memory.zero
    assert memory.resident == 512


@pytest.mark.parametrize("swap", [0, 100, 1000])
def test_what_goes_to_swap_is_as_much_as_there_is_room_for(swap: int) -> None:
    """Where all of it has room it goes as it is; else it is split, and what is left of it goes."""
    process = _huge(swap)
    memory = _memory(process)
    process.madvise(AT, PMD_SIZE, f.MADV_PAGEOUT)
    process.machine.validate()
    assert memory.swapped == {0: 0, 100: 2, 1000: 512}[swap]
    assert process.read(AT + 300 * PAGE_SIZE, 5) == b"other"


def test_a_huge_page_that_is_given_up_is_thrown_away() -> None:
    process = _huge()
    process.madvise(AT, PMD_SIZE, f.MADV_FREE)
    process.madvise(AT, PMD_SIZE, f.MADV_PAGEOUT)
    assert process.page(AT).folio is None
    assert process.read(AT, 5) == bytes(5)
