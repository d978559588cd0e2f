"""Every way to say no: its errno, its sentence, the kernel function that says it.

A decision function returns a reason, and YES (0) for yes.  Where a function returns an address or a count, a refusal is
minus the reason.  The errno is a projection of the reason, made at the edge of the system calls; several reasons
share one errno.  The reasons why two VMAs do not merge have none: nobody is told.
"""

import errno
from typing import Final

YES: Final = 0
NOT_ADJACENT: Final = 1
NO_NEIGHBOUR: Final = 2
POLICY_DIFFERS: Final = 3
FLAGS_DIFFER: Final = 4
FILE_DIFFERS: Final = 5
UFFD_DIFFERS: Final = 6
NAME_DIFFERS: Final = 7
ANON_VMA_DIFFERS: Final = 8
ANON_VMA_OF_FORK: Final = 9
OFFSET_NOT_CONTIGUOUS: Final = 10
SPECIAL_VMA: Final = 11
NO_EDGE: Final = 12
CLOSE_HOOK: Final = 13
EXPAND_ONLY: Final = 14
NO_MEMORY_VMA: Final = 15
NO_MEMORY_TREE: Final = 16
NO_MEMORY_POLICY: Final = 17
NO_MEMORY_ANON_VMA: Final = 18
NO_MEMORY_PAGE_TABLE: Final = 19
NO_MEMORY_FILE: Final = 20
DRIVER_REFUSES_SPLIT: Final = 21
DRIVER_REFUSES_MAP: Final = 22
DRIVER_REFUSES_MOVE: Final = 23
MAP_COUNT_SPLIT: Final = 24
MAP_COUNT_UNMAP: Final = 25
MAP_COUNT_MAP: Final = 26
MAP_COUNT_BRK: Final = 27
MAP_COUNT_MREMAP: Final = 28
MAP_COUNT_SPLIT_EAGAIN: Final = 29
NO_MEMORY_EAGAIN: Final = 30
LIMIT_AS: Final = 31
LIMIT_DATA: Final = 32
LIMIT_DATA_BRK: Final = 33
LIMIT_STACK: Final = 34
LIMIT_MEMLOCK: Final = 35
LIMIT_MEMLOCK_EAGAIN: Final = 36
LIMIT_MEMLOCK_STACK: Final = 37
LOCK_NOT_PERMITTED: Final = 38
OVERCOMMIT: Final = 39
LENGTH_ZERO: Final = 40
LENGTH_OVERFLOW: Final = 41
LENGTH_WRAPS: Final = 42
RANGE_WRAPS: Final = 43
UNALIGNED: Final = 44
OFFSET_UNALIGNED: Final = 45
OFFSET_OVERFLOW: Final = 46
BEYOND_TASK_SIZE: Final = 47
BEYOND_TASK_SIZE_MAP: Final = 48
BELOW_MIN_ADDR: Final = 49
NO_GAP: Final = 50
OVERLAPS: Final = 51
OVERLAPS_INSERT: Final = 52
OVERLAPS_STACK_MOVE: Final = 53
UNKNOWN_FLAGS: Final = 54
FLAGS_NOT_SUPPORTED: Final = 55
MAP_TYPE_MISSING: Final = 56
GROWSDOWN_NOT_PRIVATE: Final = 57
DROPPABLE_CONFLICT: Final = 58
BAD_DESCRIPTOR: Final = 59
FILE_NOT_READABLE: Final = 60
FILE_NOT_WRITABLE: Final = 61
FILE_NOEXEC: Final = 62
FILE_SEALED: Final = 63
NOT_MAPPABLE: Final = 64
HUGETLB_LENGTH: Final = 65
HUGETLB_NOT_HUGE: Final = 66
HUGETLB_NO_PAGES: Final = 67
HUGETLB_NO_SIZE: Final = 68
HUGETLB_SPLIT: Final = 69
NOT_MAPPED: Final = 70
NOT_MAPPED_EFAULT: Final = 71
PROT_UNKNOWN: Final = 72
PROT_GROWS_BOTH: Final = 73
PROT_NOT_GROWING: Final = 74
PROT_NOT_PERMITTED: Final = 75
MDWE: Final = 76
PKEY_NOT_ALLOCATED: Final = 77
PKEY_NONE: Final = 78
SEALED: Final = 79
BRK_BELOW_START: Final = 80
BRK_IN_THE_WAY: Final = 81
BRK_NO_HEAP: Final = 82
MREMAP_NEW_LENGTH_ZERO: Final = 83
MREMAP_NEEDS_MAYMOVE: Final = 84
MREMAP_DONTUNMAP_RESIZES: Final = 85
MREMAP_OVERLAP: Final = 86
MREMAP_BEYOND_TASK_SIZE: Final = 87
MREMAP_DUPLICATES_PRIVATE: Final = 88
MREMAP_SPECIAL: Final = 89
MREMAP_DONTUNMAP_SPECIAL: Final = 90
MREMAP_CROSSES: Final = 91
MREMAP_OFFSET_OVERFLOW: Final = 92
MREMAP_HUGETLB: Final = 93
MREMAP_CANNOT_GROW: Final = 94
MREMAP_MANY_RESIZE: Final = 95
MREMAP_MANY_UNFIT: Final = 96
ADVICE_UNKNOWN: Final = 97
ADVICE_NOT_SUPPORTED: Final = 98
ADVICE_SPECIAL_VMA: Final = 99
ADVICE_NOT_ANONYMOUS: Final = 100
ADVICE_LOCKED: Final = 101
ADVICE_NOT_FILE: Final = 102
ADVICE_NOT_WRITABLE: Final = 103
POPULATE_FAULT: Final = 104
POPULATE_NO_PERMISSION: Final = 105
POPULATE_FAULT_LOCK: Final = 106
POLICY_BAD_MODE: Final = 107
POLICY_BAD_NODES: Final = 108
NAME_NOT_SUPPORTED: Final = 109
NAME_BAD: Final = 110
NAME_ON_FILE: Final = 111
SHM_NO_SEGMENT: Final = 112
SHM_NOT_ATTACHED: Final = 113
SHM_OVERLAPS: Final = 114
SHM_REMAP_NEEDS_ADDRESS: Final = 115
STACK_NOT_GROWSDOWN: Final = 116
STACK_BELOW_MIN_ADDR: Final = 117
STACK_GUARD_GAP: Final = 118
FAULT_NOT_MAPPED: Final = 119
FAULT_NO_PERMISSION: Final = 120
UFFD_NOT_ANONYMOUS: Final = 121
UFFD_NOT_WRITABLE: Final = 122
UFFD_BUSY: Final = 123
UFFD_BAD_MODE: Final = 124
UFFD_NOTHING_MAPPED: Final = 125
SEAL_FLAGS: Final = 126
REMAP_NOT_SHARED: Final = 127
LIMIT_BAD: Final = 128
NOT_MODELLED: Final = 129
FAULT_PKEY: Final = 130
FAULT_BEYOND_FILE: Final = 131
POLICY_ADDRESS: Final = 132
SYNC_FLAGS: Final = 133
SYNC_LOCKED: Final = 134
BEYOND_USER: Final = 135
SEALS_UNKNOWN: Final = 136
SEALS_NOT_WRITABLE: Final = 137
SEALS_SEALED: Final = 138
SEALS_MAPPED: Final = 139
SEALS_NOT_SUPPORTED: Final = 140
CONTROL_ARGUMENTS: Final = 141
MDWE_STAYS: Final = 142
POLICY_NONE: Final = 143
POLICY_NOT_SUPPORTED: Final = 144
SECRET_PRIVATE: Final = 145
UFFD_OF_ANOTHER: Final = 146
SYNC_NOTHING: Final = 147
HUGETLB_OFFSET: Final = 148
BEYOND_USER_EFAULT: Final = 149
FAULT_NO_HUGE_PAGES: Final = 150
ADDRESS_IS_ERROR: Final = 151
FAULT_NO_MEMORY: Final = 152
FAULT_GUARD: Final = 153
FAULT_POISONED: Final = 154
FAULT_USERFAULTFD: Final = 155
PIN_NOT_MAPPED: Final = 156
PIN_NOT_PERMITTED: Final = 157
PIN_SPECIAL: Final = 158
COLLAPSE_UNSUITABLE: Final = 159
COLLAPSE_BUSY: Final = 160
FILL_NOT_REGISTERED: Final = 161
FILL_NOT_WP: Final = 162
FILL_NOT_SUPPORTED: Final = 163
FILL_THERE: Final = 164
FILL_NO_PAGE: Final = 165
FILL_PARTLY: Final = 166
FAULT_USERFAULTFD_WP: Final = 167
FAULT_USERFAULTFD_MINOR: Final = 168
UFFD_NOT_READY: Final = 169
UFFD_API_REFUSED: Final = 170
UFFD_API_AGAIN: Final = 171
UFFD_NO_PRIVILEGE: Final = 172
UFFD_CHANGING: Final = 173
UFFD_NOTHING_TO_READ: Final = 174
MOVE_NOT_MAPPED: Final = 175
MOVE_UNFIT: Final = 176
MOVE_HOLE: Final = 177
MOVE_SHARED: Final = 178
MOVE_MARKER: Final = 179
MOVE_OF_ANOTHER: Final = 180
POLICY_NOT_INTERLEAVED: Final = 181
POLICY_MISPLACED: Final = 182
NO_PAGE_EFAULT: Final = 183
MOVE_ALL_NOT_PERMITTED: Final = 184
NICE_NOT_PERMITTED: Final = 185
ACCESS_NOT_PERMITTED: Final = 186
ADVICE_NOT_REMOTE: Final = 187
SHM_SIZE: Final = 188
SHM_TOO_SMALL: Final = 189
SHM_EXISTS: Final = 190
SHM_NO_KEY: Final = 191
SHM_TOO_MANY: Final = 192
SHM_NOT_PERMITTED: Final = 193
SHM_COMMAND: Final = 194
SHM_LOCK_LIMIT: Final = 195
LAYOUT_NOT_PERMITTED: Final = 196
LAYOUT_ADDRESS: Final = 197
LAYOUT_ORDER: Final = 198
LAYOUT_LIMIT_DATA: Final = 199
LAYOUT_NOT_MAPPED: Final = 200
LAYOUT_OPTION: Final = 201
LAYOUT_SIZE: Final = 202
LAYOUT_FILE_NOT_PERMITTED: Final = 203
FAULT_MIGRATION: Final = 204
MIGRATE_NOTHING: Final = 205
MIGRATE_PINNED: Final = 206
MIGRATE_HELD: Final = 207
MOVE_MIGRATION: Final = 208
SHM_HUGETLB_NOT_PERMITTED: Final = 209
COLLAPSE_HOLES: Final = 210
PKEY_NO_PROCESSOR: Final = 211


class Explanation:
    """What a reason means: its name, errno (0 if it has none), a sentence, and the kernel function that says it."""

    __slots__ = ("errno", "name", "sentence", "where")

    def __init__(self, name: str, errno: int, sentence: str, where: str) -> None:
        self.name = name
        self.errno = errno
        self.sentence = sentence
        self.where = where


_EXPLANATIONS: Final[list[Explanation]] = [
    Explanation("YES", 0, "yes", ""),
    Explanation("NOT_ADJACENT", 0, "the ranges do not touch", "can_vma_merge_left, can_vma_merge_right"),
    Explanation("NO_NEIGHBOUR", 0, "there is no VMA on this side", "vma_merge_new_range"),
    Explanation("POLICY_DIFFERS", 0, "their memory policies differ", "is_mergeable_vma"),
    Explanation("FLAGS_DIFFER", 0, "their flags differ", "is_mergeable_vma"),
    Explanation("FILE_DIFFERS", 0, "they map different open files", "is_mergeable_vma"),
    Explanation("UFFD_DIFFERS", 0, "they are registered with different userfaultfds", "is_mergeable_vma"),
    Explanation("NAME_DIFFERS", 0, "their anonymous names differ", "is_mergeable_vma"),
    Explanation(
        "ANON_VMA_DIFFERS", 0, "they were written to apart, so each has its own anon_vma", "is_mergeable_anon_vma"
    ),
    Explanation(
        "ANON_VMA_OF_FORK",
        0,
        "the one that was written to shares pages with a process it was forked from",
        "is_mergeable_anon_vma",
    ),
    Explanation(
        "OFFSET_NOT_CONTIGUOUS",
        0,
        "the page offset of the second does not continue the first",
        "can_vma_merge_before, can_vma_merge_after",
    ),
    Explanation(
        "SPECIAL_VMA",
        0,
        "a special VMA (IO, DONTEXPAND, PFNMAP or MIXEDMAP) is never merged",
        "vma_merge_new_range, vma_merge_existing_range",
    ),
    Explanation("NO_EDGE", 0, "the range touches neither edge of its VMA", "vma_merge_existing_range"),
    Explanation("CLOSE_HOOK", 0, "the VMA that would go has a close hook", "can_merge_remove_vma"),
    Explanation("EXPAND_ONLY", 0, "only the VMA below may be extended", "vma_merge_new_range"),
    Explanation("NO_MEMORY_VMA", errno.ENOMEM, "no memory for a VMA", "vm_area_alloc, vm_area_dup"),
    Explanation("NO_MEMORY_TREE", errno.ENOMEM, "no memory for a node of the maple tree", "vma_iter_prealloc"),
    Explanation("NO_MEMORY_POLICY", errno.ENOMEM, "no memory for a memory policy", "vma_dup_policy"),
    Explanation(
        "NO_MEMORY_ANON_VMA",
        errno.ENOMEM,
        "no memory for an anon_vma or its chain",
        "anon_vma_clone, __anon_vma_prepare",
    ),
    Explanation("NO_MEMORY_PAGE_TABLE", errno.ENOMEM, "no memory for a page table", "move_page_tables"),
    Explanation("NO_MEMORY_FILE", errno.ENOMEM, "no memory for a file", "shmem_zero_setup"),
    Explanation("DRIVER_REFUSES_SPLIT", errno.EINVAL, "the driver cannot be split there", "__split_vma"),
    Explanation("DRIVER_REFUSES_MAP", errno.ENODEV, "the driver refuses to be mapped so", "mmap_region"),
    Explanation("DRIVER_REFUSES_MOVE", errno.EINVAL, "the driver refuses to be moved", "copy_vma_and_data"),
    Explanation("MAP_COUNT_SPLIT", errno.ENOMEM, "the split would exceed max_map_count", "split_vma"),
    Explanation(
        "MAP_COUNT_UNMAP", errno.ENOMEM, "cutting out the middle would exceed max_map_count", "vms_gather_munmap_vmas"
    ),
    Explanation("MAP_COUNT_MAP", errno.ENOMEM, "there are more than max_map_count VMAs already", "do_mmap"),
    Explanation("MAP_COUNT_BRK", errno.ENOMEM, "there are more than max_map_count VMAs already", "do_brk_flags"),
    Explanation(
        "MAP_COUNT_MREMAP",
        errno.ENOMEM,
        "mremap keeps room below max_map_count for the splits it may need",
        "check_mremap_params, prep_move_vma",
    ),
    Explanation(
        "MAP_COUNT_SPLIT_EAGAIN",
        errno.EAGAIN,
        "the split would exceed max_map_count (madvise says EAGAIN)",
        "madvise_walk_vmas",
    ),
    Explanation("NO_MEMORY_EAGAIN", errno.EAGAIN, "no memory for the split (madvise says EAGAIN)", "madvise_walk_vmas"),
    Explanation("LIMIT_AS", errno.ENOMEM, "RLIMIT_AS would be exceeded", "may_expand_vm"),
    Explanation("LIMIT_DATA", errno.ENOMEM, "RLIMIT_DATA would be exceeded", "may_expand_vm"),
    Explanation("LIMIT_DATA_BRK", errno.ENOMEM, "RLIMIT_DATA would be exceeded by the heap", "check_data_rlimit"),
    Explanation("LIMIT_STACK", errno.ENOMEM, "RLIMIT_STACK would be exceeded", "acct_stack_growth"),
    Explanation("LIMIT_MEMLOCK", errno.ENOMEM, "RLIMIT_MEMLOCK would be exceeded", "do_mlock"),
    Explanation(
        "LIMIT_MEMLOCK_EAGAIN",
        errno.EAGAIN,
        "RLIMIT_MEMLOCK would be exceeded by memory that is locked as it is mapped",
        "mlock_future_ok",
    ),
    Explanation("LIMIT_MEMLOCK_STACK", errno.ENOMEM, "the stack would exceed RLIMIT_MEMLOCK", "acct_stack_growth"),
    Explanation("LOCK_NOT_PERMITTED", errno.EPERM, "RLIMIT_MEMLOCK is 0 and CAP_IPC_LOCK is absent", "can_do_mlock"),
    Explanation("OVERCOMMIT", errno.ENOMEM, "more memory than may be committed", "__vm_enough_memory"),
    Explanation("LENGTH_ZERO", errno.EINVAL, "the length is 0", ""),
    Explanation("LENGTH_OVERFLOW", errno.ENOMEM, "the length overflows when rounded up to pages", "do_mmap"),
    Explanation("LENGTH_WRAPS", errno.EINVAL, "the end of the range wraps around", ""),
    Explanation("RANGE_WRAPS", errno.ENOMEM, "the end of the range wraps around", "do_mprotect_pkey"),
    Explanation("UNALIGNED", errno.EINVAL, "the address is not a multiple of the page size", ""),
    Explanation("OFFSET_UNALIGNED", errno.EINVAL, "the file offset is not a multiple of the page size", "mmap"),
    Explanation("OFFSET_OVERFLOW", errno.EOVERFLOW, "the file offset and length overflow", "do_mmap"),
    Explanation("BEYOND_TASK_SIZE", errno.EINVAL, "the range reaches beyond the address space", ""),
    Explanation(
        "BEYOND_TASK_SIZE_MAP", errno.ENOMEM, "the range reaches beyond the address space", "__get_unmapped_area"
    ),
    Explanation(
        "BELOW_MIN_ADDR", errno.EPERM, "the address is below mmap_min_addr and CAP_SYS_RAWIO is absent", "cap_mmap_addr"
    ),
    Explanation("NO_GAP", errno.ENOMEM, "no gap is large enough", "vm_unmapped_area"),
    Explanation("OVERLAPS", errno.EEXIST, "something is mapped there already (MAP_FIXED_NOREPLACE)", "do_mmap"),
    Explanation("OVERLAPS_INSERT", errno.ENOMEM, "something is mapped there already", "insert_vm_struct"),
    Explanation("OVERLAPS_STACK_MOVE", errno.EFAULT, "another VMA is in the way of the stack", "relocate_vma_down"),
    Explanation("UNKNOWN_FLAGS", errno.EINVAL, "a flag that the call does not know", ""),
    Explanation("FLAGS_NOT_SUPPORTED", errno.EOPNOTSUPP, "a flag that this mapping does not support", "do_mmap"),
    Explanation("MAP_TYPE_MISSING", errno.EINVAL, "neither MAP_SHARED nor MAP_PRIVATE", "do_mmap"),
    Explanation("GROWSDOWN_NOT_PRIVATE", errno.EINVAL, "MAP_GROWSDOWN needs private anonymous memory", "do_mmap"),
    Explanation("DROPPABLE_CONFLICT", errno.EINVAL, "droppable memory is neither locked, huge nor a stack", "do_mmap"),
    Explanation("BAD_DESCRIPTOR", errno.EBADF, "no such file descriptor", ""),
    Explanation("FILE_NOT_READABLE", errno.EACCES, "the descriptor was not opened for reading", "do_mmap"),
    Explanation(
        "FILE_NOT_WRITABLE", errno.EACCES, "a shared writable mapping needs a descriptor opened for writing", "do_mmap"
    ),
    Explanation("FILE_NOEXEC", errno.EPERM, "the filesystem is mounted noexec", "do_mmap"),
    Explanation("FILE_SEALED", errno.EPERM, "the memfd is sealed against writing", "memfd_check_seals_mmap"),
    Explanation("NOT_MAPPABLE", errno.ENODEV, "the file cannot be mapped", "do_mmap"),
    Explanation("HUGETLB_LENGTH", errno.EINVAL, "the length is not a multiple of the huge page size", "hugetlb"),
    Explanation("HUGETLB_NOT_HUGE", errno.EINVAL, "MAP_HUGETLB on a file that has no huge pages", "ksys_mmap_pgoff"),
    Explanation("HUGETLB_NO_PAGES", errno.ENOMEM, "not enough huge pages", "hugetlb_reserve_pages"),
    Explanation("HUGETLB_NO_SIZE", errno.EINVAL, "no huge pages of this size", "hugetlb_file_setup"),
    Explanation("HUGETLB_SPLIT", errno.EINVAL, "huge pages can be split between pages only", "hugetlb_vm_op_split"),
    Explanation("NOT_MAPPED", errno.ENOMEM, "part of the range is not mapped", ""),
    Explanation("NOT_MAPPED_EFAULT", errno.EFAULT, "part of the range is not mapped", ""),
    Explanation("PROT_UNKNOWN", errno.EINVAL, "an unknown protection bit", "arch_validate_prot"),
    Explanation("PROT_GROWS_BOTH", errno.EINVAL, "PROT_GROWSDOWN and PROT_GROWSUP together", "do_mprotect_pkey"),
    Explanation(
        "PROT_NOT_GROWING",
        errno.EINVAL,
        "PROT_GROWSDOWN or PROT_GROWSUP on a VMA that does not grow so",
        "do_mprotect_pkey",
    ),
    Explanation("PROT_NOT_PERMITTED", errno.EACCES, "the mapping may never have this permission", "do_mprotect_pkey"),
    Explanation("MDWE", errno.EACCES, "memory-deny-write-execute refuses it", "map_deny_write_exec"),
    Explanation("PKEY_NOT_ALLOCATED", errno.EINVAL, "the protection key is not allocated", "do_mprotect_pkey"),
    Explanation("PKEY_NONE", errno.ENOSPC, "no protection key is free", "pkey_alloc"),
    Explanation("SEALED", errno.EPERM, "the VMA is sealed", "can_modify_vma"),
    Explanation("BRK_BELOW_START", errno.ENOMEM, "the new break is below the start of the heap", "brk"),
    Explanation("BRK_IN_THE_WAY", errno.ENOMEM, "another mapping (or its guard gap) is in the way", "brk"),
    Explanation("BRK_NO_HEAP", errno.ENOMEM, "there is no heap to shrink", "brk"),
    Explanation("MREMAP_NEW_LENGTH_ZERO", errno.EINVAL, "the new length is 0", "check_mremap_params"),
    Explanation(
        "MREMAP_NEEDS_MAYMOVE",
        errno.EINVAL,
        "MREMAP_FIXED and MREMAP_DONTUNMAP need MREMAP_MAYMOVE",
        "check_mremap_params",
    ),
    Explanation("MREMAP_DONTUNMAP_RESIZES", errno.EINVAL, "MREMAP_DONTUNMAP cannot resize", "check_mremap_params"),
    Explanation("MREMAP_OVERLAP", errno.EINVAL, "the old and the new range overlap", "mremap_to"),
    Explanation("MREMAP_BEYOND_TASK_SIZE", errno.EINVAL, "the new range reaches beyond the address space", "mremap_to"),
    Explanation(
        "MREMAP_DUPLICATES_PRIVATE",
        errno.EINVAL,
        "only shared memory can be duplicated (old length 0)",
        "remap_is_valid",
    ),
    Explanation("MREMAP_SPECIAL", errno.EFAULT, "a DONTEXPAND or PFNMAP VMA cannot be resized", "remap_is_valid"),
    Explanation(
        "MREMAP_DONTUNMAP_SPECIAL",
        errno.EINVAL,
        "a DONTEXPAND or PFNMAP VMA cannot be moved with DONTUNMAP",
        "remap_is_valid",
    ),
    Explanation("MREMAP_CROSSES", errno.EFAULT, "the range crosses the end of its VMA", "remap_is_valid"),
    Explanation("MREMAP_OFFSET_OVERFLOW", errno.EINVAL, "the file offset would overflow", "remap_is_valid"),
    Explanation("MREMAP_HUGETLB", errno.EINVAL, "huge pages move whole and cannot grow", "align_hugetlb"),
    Explanation(
        "MREMAP_CANNOT_GROW",
        errno.ENOMEM,
        "there is no room to grow in place, and MREMAP_MAYMOVE is absent",
        "expand_vma",
    ),
    Explanation("MREMAP_MANY_RESIZE", errno.EFAULT, "several VMAs can be moved, but not resized", "remap_move"),
    Explanation(
        "MREMAP_MANY_UNFIT",
        errno.EFAULT,
        "a VMA of the range cannot be moved together with others",
        "vma_multi_allowed",
    ),
    Explanation("ADVICE_UNKNOWN", errno.EINVAL, "an unknown advice", "madvise_behavior_valid"),
    Explanation(
        "ADVICE_NOT_SUPPORTED",
        errno.EINVAL,
        "the kernel is built without what this advice needs",
        "madvise_behavior_valid",
    ),
    Explanation(
        "ADVICE_SPECIAL_VMA", errno.EINVAL, "the advice does not apply to this kind of VMA", "madvise_vma_behavior"
    ),
    Explanation(
        "ADVICE_NOT_ANONYMOUS", errno.EINVAL, "the advice is for private anonymous memory only", "madvise_vma_behavior"
    ),
    Explanation("ADVICE_LOCKED", errno.EINVAL, "the VMA is locked", "madvise_vma_behavior"),
    Explanation("ADVICE_NOT_FILE", errno.EINVAL, "the advice is for shared writable files only", "madvise_remove"),
    Explanation("ADVICE_NOT_WRITABLE", errno.EACCES, "the advice needs a shared writable mapping", "madvise_remove"),
    Explanation("POPULATE_FAULT", errno.EFAULT, "a page of the range cannot be populated", "madvise_populate"),
    Explanation(
        "POPULATE_NO_PERMISSION", errno.EINVAL, "the VMA does not permit the access to populate", "faultin_page_range"
    ),
    Explanation(
        "POPULATE_FAULT_LOCK",
        errno.ENOMEM,
        "a page of the range cannot be populated, so it is not locked in memory",
        "__mlock_posix_error_return",
    ),
    Explanation("POLICY_BAD_MODE", errno.EINVAL, "an unknown policy mode or flag", "mbind"),
    Explanation("POLICY_BAD_NODES", errno.EINVAL, "the nodes do not fit the policy", "mpol_new"),
    Explanation("NAME_NOT_SUPPORTED", errno.EINVAL, "the kernel is built without anonymous names", "prctl"),
    Explanation("NAME_BAD", errno.EINVAL, "a character that a name may not hold, or a name too long", "prctl_set_vma"),
    Explanation("NAME_ON_FILE", errno.EBADF, "only anonymous memory can be named", "madvise_vma_anon_name"),
    Explanation("SHM_NO_SEGMENT", errno.EINVAL, "no such segment", "shm_obtain_object_check"),
    Explanation("SHM_NOT_ATTACHED", errno.EINVAL, "no segment is attached there", "ksys_shmdt"),
    Explanation("SHM_OVERLAPS", errno.EINVAL, "something is mapped there already", "do_shmat"),
    Explanation("SHM_REMAP_NEEDS_ADDRESS", errno.EINVAL, "SHM_REMAP needs an address", "do_shmat"),
    Explanation("STACK_NOT_GROWSDOWN", errno.EFAULT, "the VMA does not grow downwards", "expand_downwards"),
    Explanation("STACK_BELOW_MIN_ADDR", errno.EPERM, "the stack would grow below mmap_min_addr", "expand_downwards"),
    Explanation(
        "STACK_GUARD_GAP", errno.ENOMEM, "a mapping lies within the guard gap below the stack", "expand_downwards"
    ),
    Explanation("FAULT_NOT_MAPPED", errno.EFAULT, "nothing is mapped there (SIGSEGV)", "lock_mm_and_find_vma"),
    Explanation("FAULT_NO_PERMISSION", errno.EFAULT, "the VMA does not permit the access (SIGSEGV)", "access_error"),
    Explanation(
        "UFFD_NOT_ANONYMOUS",
        errno.EINVAL,
        "memory of this kind cannot be registered with a userfaultfd",
        "vma_can_userfault",
    ),
    Explanation(
        "UFFD_NOT_WRITABLE",
        errno.EPERM,
        "memory that may never be written to cannot be registered",
        "userfaultfd_register",
    ),
    Explanation("UFFD_BUSY", errno.EBUSY, "the memory is registered with another userfaultfd", "userfaultfd_register"),
    Explanation("UFFD_BAD_MODE", errno.EINVAL, "an unknown userfaultfd mode", "userfaultfd_register"),
    Explanation("UFFD_NOTHING_MAPPED", errno.EINVAL, "nothing is mapped in the range", "userfaultfd_register"),
    Explanation("SEAL_FLAGS", errno.EINVAL, "mseal takes no flags", "do_mseal"),
    Explanation(
        "REMAP_NOT_SHARED", errno.EINVAL, "remap_file_pages works on one shared file mapping only", "remap_file_pages"
    ),
    Explanation("LIMIT_BAD", errno.EINVAL, "the soft limit is above the hard limit", "prlimit64"),
    Explanation("NOT_MODELLED", errno.ENOSYS, "the model does not know this call", ""),
    Explanation(
        "FAULT_PKEY",
        errno.EFAULT,
        "the protection key of the VMA does not permit the access (SIGSEGV)",
        "arch_vma_access_permitted",
    ),
    Explanation("FAULT_BEYOND_FILE", errno.EFAULT, "the page lies beyond the end of the file (SIGBUS)", "__do_fault"),
    Explanation("POLICY_ADDRESS", errno.EINVAL, "an address is given without MPOL_F_ADDR", "do_get_mempolicy"),
    Explanation("SYNC_FLAGS", errno.EINVAL, "unknown flags, or MS_SYNC together with MS_ASYNC", "msync"),
    Explanation("SYNC_LOCKED", errno.EBUSY, "locked memory cannot be invalidated", "msync"),
    Explanation("BEYOND_USER", errno.ENOMEM, "the range is not within user space", "mincore"),
    Explanation("SEALS_UNKNOWN", errno.EINVAL, "unknown seals", "memfd_add_seals"),
    Explanation("SEALS_NOT_WRITABLE", errno.EPERM, "the descriptor cannot write", "memfd_add_seals"),
    Explanation("SEALS_SEALED", errno.EPERM, "no more seals can be added", "memfd_add_seals"),
    Explanation("SEALS_MAPPED", errno.EBUSY, "writable shared mappings are there", "memfd_add_seals"),
    Explanation("SEALS_NOT_SUPPORTED", errno.EINVAL, "the file cannot be sealed", "memfd_add_seals"),
    Explanation("CONTROL_ARGUMENTS", errno.EINVAL, "arguments that prctl does not take", "prctl"),
    Explanation("MDWE_STAYS", errno.EPERM, "memory-deny-write-execute cannot be taken back", "prctl_set_mdwe"),
    Explanation("POLICY_NONE", errno.ENOENT, "no memory of the range has a policy", "set_mempolicy_home_node"),
    Explanation(
        "POLICY_NOT_SUPPORTED",
        errno.EOPNOTSUPP,
        "only MPOL_BIND and MPOL_PREFERRED_MANY know a home node",
        "set_mempolicy_home_node",
    ),
    Explanation("SECRET_PRIVATE", errno.EINVAL, "secret memory can be mapped shared only", "secretmem_mmap"),
    Explanation("UFFD_OF_ANOTHER", errno.EINVAL, "another userfaultfd has registered it", "userfaultfd_unregister"),
    Explanation("SYNC_NOTHING", errno.EINVAL, "secret memory cannot be written back", "vfs_fsync_range"),
    Explanation("HUGETLB_OFFSET", errno.EINVAL, "the offset is no multiple of a huge page", "hugetlbfs_file_mmap"),
    Explanation("BEYOND_USER_EFAULT", errno.EFAULT, "a range is not within user space", "import_iovec"),
    Explanation("FAULT_NO_HUGE_PAGES", errno.EFAULT, "there is no free huge page (SIGBUS)", "hugetlb_no_page"),
    Explanation(
        "ADDRESS_IS_ERROR",
        errno.EPERM,
        "the fixed address is one of the last 4095 there are, and is answered as an error number",
        "__get_unmapped_area",
    ),
    Explanation("FAULT_NO_MEMORY", errno.ENOMEM, "there is no memory for the page", "handle_mm_fault"),
    Explanation("FAULT_GUARD", errno.EFAULT, "a guard marker is there (SIGSEGV)", "handle_pte_marker"),
    Explanation("FAULT_POISONED", errno.EFAULT, "the page is marked as poisoned (SIGBUS)", "handle_pte_marker"),
    Explanation("FAULT_USERFAULTFD", errno.EAGAIN, "the access waits for a userfaultfd", "handle_userfault"),
    Explanation("PIN_NOT_MAPPED", errno.EFAULT, "nothing is mapped where a page is asked for", "__get_user_pages"),
    Explanation("PIN_NOT_PERMITTED", errno.EFAULT, "the VMA does not permit that use of its pages", "check_vma_flags"),
    Explanation("PIN_SPECIAL", errno.EFAULT, "the VMA has no pages that anybody may hold", "check_vma_flags"),
    Explanation("COLLAPSE_UNSUITABLE", errno.EINVAL, "no huge page may be there", "madvise_collapse"),
    Explanation("COLLAPSE_BUSY", errno.EAGAIN, "a page of the range is in use by others", "madvise_collapse"),
    Explanation("FILL_NOT_REGISTERED", errno.ENOENT, "the range is not in one VMA with a userfaultfd", "mfill_atomic"),
    Explanation("FILL_NOT_WP", errno.EINVAL, "the VMA is not registered for write protection", "mfill_atomic"),
    Explanation("FILL_NOT_SUPPORTED", errno.EINVAL, "pages of that memory cannot be put in place so", "mfill_atomic"),
    Explanation("FILL_THERE", errno.EEXIST, "a page is there already", "mfill_atomic_install_pte"),
    Explanation("FILL_NO_PAGE", errno.EFAULT, "the file has no page there to go on with", "mfill_atomic_pte_continue"),
    Explanation("FILL_PARTLY", errno.EAGAIN, "some pages were put in place, not all", "userfaultfd_ioctl"),
    Explanation(
        "FAULT_USERFAULTFD_WP",
        errno.EAGAIN,
        "the write waits for a userfaultfd that has protected the page",
        "handle_userfault",
    ),
    Explanation(
        "FAULT_USERFAULTFD_MINOR",
        errno.EAGAIN,
        "the access waits for a userfaultfd to go on with the page of the file",
        "handle_userfault",
    ),
    Explanation("UFFD_NOT_READY", errno.EINVAL, "UFFDIO_API was not done", "userfaultfd_ioctl"),
    Explanation("UFFD_API_REFUSED", errno.EINVAL, "an unknown version or feature of userfaultfd", "userfaultfd_api"),
    Explanation("UFFD_API_AGAIN", errno.EINVAL, "UFFDIO_API was done already", "userfaultfd_api"),
    Explanation("UFFD_NO_PRIVILEGE", errno.EPERM, "events of fork need CAP_SYS_PTRACE", "userfaultfd_api"),
    Explanation("UFFD_CHANGING", errno.EAGAIN, "an event of the userfaultfd is not read yet", "userfaultfd_ioctl"),
    Explanation("UFFD_NOTHING_TO_READ", errno.EAGAIN, "nobody waits for the userfaultfd", "userfaultfd_ctx_read"),
    Explanation("MOVE_NOT_MAPPED", errno.ENOENT, "nothing is mapped at one of the two places", "move_pages"),
    Explanation("MOVE_UNFIT", errno.EINVAL, "pages cannot be moved between the two VMAs", "validate_move_areas"),
    Explanation("MOVE_HOLE", errno.ENOENT, "there is no page to move", "move_pages_pte"),
    Explanation("MOVE_SHARED", errno.EBUSY, "a page to move is not the process's alone", "move_pages_pte"),
    Explanation("MOVE_MARKER", errno.EFAULT, "a marker is in the place of a page to move", "move_pages_pte"),
    Explanation("MOVE_OF_ANOTHER", errno.EINVAL, "only a process itself can move its pages", "userfaultfd_move"),
    Explanation("POLICY_NOT_INTERLEAVED", errno.EINVAL, "the policy of the task has no next node", "do_get_mempolicy"),
    Explanation("POLICY_MISPLACED", errno.EIO, "a page of the range is on another node", "queue_pages_range"),
    Explanation("NO_PAGE_EFAULT", errno.EFAULT, "the page cannot be made present", "lookup_node"),
    Explanation("MOVE_ALL_NOT_PERMITTED", errno.EPERM, "MPOL_MF_MOVE_ALL needs CAP_SYS_NICE", "do_mbind"),
    Explanation(
        "NICE_NOT_PERMITTED", errno.EPERM, "advice about another process needs CAP_SYS_NICE", "process_madvise"
    ),
    Explanation(
        "ACCESS_NOT_PERMITTED",
        errno.EACCES,
        "the other process has capabilities that the caller lacks, and CAP_SYS_PTRACE and CAP_PERFMON are absent",
        "mm_access",
    ),
    Explanation(
        "ADVICE_NOT_REMOTE",
        errno.EINVAL,
        "about another process only COLD, PAGEOUT, WILLNEED and COLLAPSE can be advised",
        "process_madvise_remote_valid",
    ),
    Explanation("SHM_SIZE", errno.EINVAL, "a segment has at least one byte, and at most shmmax", "newseg"),
    Explanation("SHM_TOO_SMALL", errno.EINVAL, "the segment with that key is smaller", "shm_more_checks"),
    Explanation("SHM_EXISTS", errno.EEXIST, "a segment with that key exists", "ipcget_public"),
    Explanation("SHM_NO_KEY", errno.ENOENT, "no segment has that key, and IPC_CREAT is absent", "ipcget_public"),
    Explanation("SHM_TOO_MANY", errno.ENOSPC, "there are shmmni segments", "ipc_addid"),
    Explanation("SHM_NOT_PERMITTED", errno.EACCES, "the mode of the segment does not permit it", "ipcperms"),
    Explanation("SHM_COMMAND", errno.EINVAL, "an unknown command", "shmctl"),
    Explanation(
        "SHM_LOCK_LIMIT",
        errno.ENOMEM,
        "with the segment, the user would have locked more than RLIMIT_MEMLOCK",
        "user_shm_lock",
    ),
    Explanation("LAYOUT_NOT_PERMITTED", errno.EPERM, "PR_SET_MM needs CAP_SYS_RESOURCE", "prctl_set_mm"),
    Explanation(
        "LAYOUT_ADDRESS",
        errno.EINVAL,
        "an address of the layout is below mmap_min_addr, or not in user space",
        "validate_prctl_map_addr",
    ),
    Explanation("LAYOUT_ORDER", errno.EINVAL, "a part of the layout ends before it starts", "validate_prctl_map_addr"),
    Explanation("LAYOUT_LIMIT_DATA", errno.EINVAL, "the heap would exceed RLIMIT_DATA", "validate_prctl_map_addr"),
    Explanation("LAYOUT_NOT_MAPPED", errno.EFAULT, "nothing is mapped at or above the address", "prctl_set_mm"),
    Explanation("LAYOUT_OPTION", errno.EINVAL, "an unknown part of the layout", "prctl_set_mm"),
    Explanation("LAYOUT_SIZE", errno.EINVAL, "the structure, or the vector, has another size", "prctl_set_mm_map"),
    Explanation(
        "LAYOUT_FILE_NOT_PERMITTED",
        errno.EPERM,
        "another executable needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
        "prctl_set_mm_map",
    ),
    Explanation("FAULT_MIGRATION", errno.EAGAIN, "the access waits for a page to be moved", "migration_entry_wait"),
    Explanation("MIGRATE_NOTHING", errno.ENOENT, "no page that can be moved is there", "add_folio_for_migration"),
    Explanation("MIGRATE_PINNED", errno.EAGAIN, "the page is pinned", "try_to_migrate_one"),
    Explanation("MIGRATE_HELD", errno.EAGAIN, "somebody holds the page", "__migrate_folio"),
    Explanation("MOVE_MIGRATION", errno.EAGAIN, "a page to move is being moved already", "move_pages_pte"),
    Explanation("SHM_HUGETLB_NOT_PERMITTED", errno.EPERM, "it needs CAP_IPC_LOCK or a group", "can_do_hugetlb_shm"),
    Explanation("COLLAPSE_HOLES", errno.EBUSY, "a userfaultfd wants to know of missing pages", "madvise_collapse"),
    Explanation("PKEY_NO_PROCESSOR", errno.EINVAL, "the processor has no protection keys", "arch_set_user_pkey_access"),
]


def explain(why: int) -> Explanation:
    """What a reason means.  Raises IndexError for a number that is no reason."""
    return _EXPLANATIONS[why]


def errno_of(why: int) -> int:
    """The errno that a caller of the kernel sees for a reason; 0 for YES and for why two VMAs do not merge."""
    return _EXPLANATIONS[why].errno


def all_reasons() -> list[Explanation]:
    """Every reason but YES, in the order of their numbers from 1."""
    return _EXPLANATIONS[1:]
