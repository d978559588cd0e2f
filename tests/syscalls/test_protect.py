"""Protection keys, as kernels and processors have them."""

from vmalab import Machine
from vmalab.calls import Call
from vmalab.reason import PKEY_NO_PROCESSOR, PKEY_NONE, PKEY_NOT_ALLOCATED, YES
from vmalab.vma.space import Settings

AT = 0x10000000


def test_keys_that_the_processor_lacks() -> None:
    """As tests/witness sees it on such a kernel."""
    settings = Settings()
    settings.pkeys_unusable = True
    machine = Machine(settings=settings)
    process = machine.process()
    process.mmap(AT, 4096)
    alloc = Call("pkey_alloc", (0, 0))
    name_it = Call("pkey_mprotect", (AT, 4096, 1, 0))
    assert [process.do(call).reason for call in (name_it, alloc, alloc)] == [
        PKEY_NOT_ALLOCATED,
        PKEY_NO_PROCESSOR,
        PKEY_NONE,
    ]
    assert process.fork().do(alloc).reason == PKEY_NONE
    machine.replace_mm(process)
    assert process.do(alloc).reason == PKEY_NO_PROCESSOR


def test_keys_that_the_kernel_is_not_built_for() -> None:
    process = Machine().process()
    process.mmap(AT, 4096)
    calls = Call("pkey_alloc", (0, 0)), Call("pkey_mprotect", (AT, 4096, 1, 0))
    assert [process.do(call).reason for call in calls] == [PKEY_NONE, YES]
