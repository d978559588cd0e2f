"""A few calls for each answer of the memory calls: the last of them gets it, in the model and on the kernel."""

from tests.witness.advice import ADVICE
from tests.witness.mapping import MAPPING
from tests.witness.policies import POLICIES
from tests.witness.process import PROCESS
from tests.witness.segments import SEGMENTS

WITNESSES = (*MAPPING, *ADVICE, *POLICIES, *SEGMENTS, *PROCESS)

NOT_PROVOKED = {
    "ENOMEM because the kernel has no memory": "no fault injection here; the scenes fail each allocation in turn",
    "mmap EINVAL of the architecture": "x86-64 accepts all flags",
    "relocate_vma_down EFAULT and ENOMEM, insert_vm_struct ENOMEM": "they happen within execve",
    "EBADF for a name on a file": "the kernel here has no names of anonymous memory; PR_SET_VMA is EINVAL",
}
"""Answers that nothing here can provoke, and why."""
