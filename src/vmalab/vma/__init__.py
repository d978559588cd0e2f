"""The core: VMAs and the operations on them (the kernel's mm/vma.c).  It depends on nothing above it."""
