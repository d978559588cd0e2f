"""Which page tables go with what is unmapped."""

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.machine import Machine, Process
from vmalab.pages.memory import Memory
from vmalab.pages.table import Tables

AT = 0x40000000
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED


def scattered(count: int) -> tuple[Process, Tables]:
    """A process with a written page every other page from AT on, each a VMA of its own; and its page tables."""
    machine = Machine(memory=Memory())
    process = machine.process()
    for at in range(count):
        process.mmap(AT + 2 * at * PAGE_SIZE, PAGE_SIZE, 3, FIXED)
        process.write(AT + 2 * at * PAGE_SIZE, b"x")
    assert machine.memory is not None
    return process, machine.memory.tables(process.mm)


def test_a_page_table_goes_with_the_last_vma_that_needs_it() -> None:
    process, tables = scattered(4)
    process.munmap(AT, 2 * PAGE_SIZE)
    process.munmap(AT + 6 * PAGE_SIZE, PAGE_SIZE)
    assert tables.leaf(AT) is not None, "VMAs between the two are there"
    process.munmap(AT, PMD_SIZE)
    assert tables.leaf(AT) is None


def test_neighbours_of_what_is_unmapped_keep_their_page_tables() -> None:
    process, tables = scattered(600)
    process.munmap(AT + 2 * PAGE_SIZE, 596 * 2 * PAGE_SIZE)
    assert (tables.leaf(AT) is None, tables.leaf(AT + PMD_SIZE) is None) == (False, True)
    assert tables.leaf(AT + 2 * PMD_SIZE) is not None
    process.machine.validate()


def test_many_vmas_are_unmapped_one_after_the_other() -> None:
    process, tables = scattered(20_000)
    process.machine.exit(process)
    assert not tables.pmds
