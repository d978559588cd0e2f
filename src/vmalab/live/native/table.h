/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The system calls that the recorders follow. */
#ifndef TABLE_H
#define TABLE_H

#include <sys/syscall.h>

#include "modes.h"
#include "numbers.h"

static const struct call calls[] = {
	{SYS_mmap, "mmap", 6, MEMORY},
	{SYS_munmap, "munmap", 2, MEMORY},
	{SYS_mprotect, "mprotect", 3, MEMORY},
	{CALL_PKEY_MPROTECT, "pkey_mprotect", 4, MEMORY},
	{CALL_PKEY_ALLOC, "pkey_alloc", 2, MEMORY},
	{CALL_PKEY_FREE, "pkey_free", 1, MEMORY},
	{SYS_brk, "brk", 1, MEMORY},
	{SYS_mremap, "mremap", 5, MEMORY},
	{SYS_madvise, "madvise", 3, MEMORY},
	{CALL_PROCESS_MADVISE, "process_madvise", 5, MEMORY},
	{SYS_mlock, "mlock", 2, MEMORY},
	{SYS_mlock2, "mlock2", 3, MEMORY},
	{SYS_munlock, "munlock", 2, MEMORY},
	{SYS_mlockall, "mlockall", 1, MEMORY},
	{SYS_munlockall, "munlockall", 0, MEMORY},
	{SYS_mbind, "mbind", 6, MEMORY},
	{SYS_set_mempolicy, "set_mempolicy", 3, MEMORY},
	{CALL_SET_MEMPOLICY_HOME_NODE, "set_mempolicy_home_node", 4, MEMORY},
	{SYS_migrate_pages, "migrate_pages", 4, MEMORY},
	{CALL_MSEAL, "mseal", 3, MEMORY},
	{SYS_remap_file_pages, "remap_file_pages", 5, MEMORY},
	{CALL_MAP_SHADOW_STACK, "map_shadow_stack", 3, MEMORY},
	{SYS_shmget, "shmget", 3, MEMORY},
	{SYS_shmat, "shmat", 3, MEMORY},
	{SYS_shmdt, "shmdt", 1, MEMORY},
	{SYS_shmctl, "shmctl", 3, MEMORY},
	{SYS_memfd_create, "memfd_create", 2, MEMORY},
	{CALL_MEMFD_SECRET, "memfd_secret", 1, MEMORY},
	{SYS_userfaultfd, "userfaultfd", 1, MEMORY},
	{CALL_IO_URING_SETUP, "io_uring_setup", 2, MEMORY},
	{CALL_IO_URING_REGISTER, "io_uring_register", 4, MEMORY},
	{SYS_personality, "personality", 1, MEMORY},
	{SYS_setrlimit, "setrlimit", 2, MEMORY},
	{SYS_prlimit64, "prlimit64", 4, MEMORY},
	{SYS_prctl, "prctl", 5, MEMORY},
	{SYS_arch_prctl, "arch_prctl", 2, MEMORY},
	{SYS_ioctl, "ioctl", 3, MEMORY},
	{SYS_fork, "fork", 0, NEW_TASK},
	{SYS_vfork, "vfork", 0, NEW_TASK},
	{SYS_clone, "clone", 5, NEW_TASK},
	{CALL_CLONE3, "clone3", 2, NEW_TASK},
	{SYS_fcntl, "fcntl", 3, DESCRIPTOR},
	{SYS_dup, "dup", 1, DESCRIPTOR},
	{SYS_dup2, "dup2", 2, DESCRIPTOR},
	{SYS_dup3, "dup3", 3, DESCRIPTOR},
	{SYS_close, "close", 1, AT_ENTRY},
	{CALL_CLOSE_RANGE, "close_range", 3, AT_ENTRY},
	{SYS_unshare, "unshare", 1, AT_ENTRY},
};

#endif
