"""Whatever numbers a program passes, a call is refused or done: nothing else comes out, compiled or not."""

import random

import pytest

from vmalab import Machine
from vmalab.addr import PAGE_SIZE, ULONG_END
from vmalab.calls import Call
from vmalab.dispatch import perform
from vmalab.flags import MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_PRIVATE, PROT_READ, PROT_WRITE
from vmalab.pages.memory import Memory
from vmalab.vma.area import DEVICE_OPS, File

CALLS = {
    "brk": 1,
    "madvise": 3,
    "mbind": 6,
    "mincore": 3,
    "mlock": 2,
    "mlock2": 3,
    "mlockall": 1,
    "mmap": 6,
    "mprotect": 3,
    "mremap": 5,
    "mseal": 3,
    "msync": 3,
    "munlock": 2,
    "munmap": 2,
    "pkey_alloc": 2,
    "pkey_free": 1,
    "pkey_mprotect": 4,
    "remap_file_pages": 5,
    "set_mempolicy_home_node": 4,
}
EDGES = [0, 1, 2, 3, 4, 7, 8, 16, 18, 22, 34, 50, PAGE_SIZE - 1, PAGE_SIZE, 2 * PAGE_SIZE, 1 << 20] + [
    (1 << bits) + by for bits in (31, 32, 47, 62, 63, 64) for by in (-2 * PAGE_SIZE, -PAGE_SIZE, -1, 0, 1, PAGE_SIZE)
]
NUMBERS = [number for number in EDGES if number < ULONG_END]


@pytest.mark.parametrize("pages", [False, True])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_any_numbers(name: str, pages: bool) -> None:
    chance = random.Random(name)
    machine = Machine(memory=Memory() if pages else None)
    for _ in range(20):
        process = machine.process()
        base = process.mmap(0, 1 << 20, PROT_READ | PROT_WRITE)
        process.mmap(0, 1 << 16, PROT_READ)
        process.mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN)
        for _ in range(20):
            near = [base + by for by in (0, PAGE_SIZE, 1 << 16)]
            args = tuple(chance.choice(near if chance.random() < 0.3 else NUMBERS) for _ in range(CALLS[name]))
            outcome = perform(process, Call(name, args))
            assert outcome.reason == 0 or -4095 <= outcome.result < 0 or name in ("brk", "mmap"), (args, outcome)
            machine.validate()
        machine.exit(process)
    machine.validate()


def test_an_offset_beyond_a_machine_word() -> None:
    process = Machine().process()
    device = File("/dev/far", kind="device", ops=DEVICE_OPS, private_ops=DEVICE_OPS)
    addr = process.mmap(0, PAGE_SIZE, PROT_READ, MAP_PRIVATE, device, 1 << 63)
    assert f"{addr:x}-{addr + PAGE_SIZE:x} r--p 8000000000000000 " in process.maps()
    process.touch(addr, write=False)
