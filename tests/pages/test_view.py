"""What Process.page shows of an address."""

import pytest

from vmalab import flags as f
from vmalab.addr import PAGE_SIZE, PMD_SIZE
from vmalab.errors import VmalabError
from vmalab.machine import Machine, Process
from vmalab.pages.folio import PMD_ORDER
from vmalab.pages.memory import ALWAYS, Memory, PageSettings
from vmalab.vma.area import File

A = 0x10000000
FIXED = f.MAP_PRIVATE | f.MAP_ANONYMOUS | f.MAP_FIXED


def a_process() -> Process:
    settings = PageSettings()
    settings.swap_pages = 8
    process = Machine(swap_pages=8, memory=Memory(settings)).process()
    process.mmap(A, 4 * PAGE_SIZE, flags=FIXED)
    return process


def shown(process: Process, addr: int = A) -> str:
    return repr(process.page(addr)).removeprefix(f"<page {addr:#x}: ").removesuffix(">")


def test_private_memory() -> None:
    process = a_process()
    assert shown(process) == "nothing there"
    process.touch(A, write=False)
    assert shown(process) == "the page of zeros"
    assert process.page(A).special
    process.write(A, b"a text that is long")
    assert shown(process) == "anonymous, writable, exclusive, dirty, referenced, holds b'a text that is l'..."
    assert not process.page(A).special
    process.fork()
    assert shown(process) == "anonymous, dirty, referenced, holds b'a text that is l'..."
    process.madvise(A + PAGE_SIZE, PAGE_SIZE, f.MADV_GUARD_INSTALL)
    assert shown(process, A + PAGE_SIZE) == "nothing there, guard"


def test_swap_and_being_moved() -> None:
    process = a_process()
    process.write(A, b"text")
    migration = process.migrate(A)
    assert shown(process) == "anonymous, being moved (writable), dirty, holds b'text'"
    migration.finish()
    process.madvise(A, PAGE_SIZE, f.MADV_PAGEOUT)
    assert shown(process) == "in swap, exclusive, holds b'text'"


def test_files_and_large_folios() -> None:
    settings = PageSettings()
    settings.thp[PMD_ORDER] = ALWAYS
    process = Machine(memory=Memory(settings)).process()
    file = File("/file")
    file.size = PAGE_SIZE
    addr = process.mmap(0, PAGE_SIZE, f.PROT_READ, f.MAP_PRIVATE, file)
    process.touch(addr, write=False)
    assert shown(process, addr) == "of a file, referenced, holds zeros"
    process.mmap(A, PMD_SIZE, flags=FIXED)
    process.write(A + 3 * PAGE_SIZE, b"x")
    assert shown(process, A + 3 * PAGE_SIZE) == (
        "anonymous, page 3 of 512, writable, exclusive, dirty, referenced, holds b'x'"
    )


def test_a_machine_without_pages_says_so() -> None:
    with pytest.raises(VmalabError, match="VMAs alone"):
        Machine().process().page(A)
