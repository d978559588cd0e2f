/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Numbers of the Linux interface on x86-64 that older system headers do not have.
 */
#ifndef NUMBERS_H
#define NUMBERS_H

#define LAST_CALL 480

#define CALL_PKEY_MPROTECT 329
#define CALL_PKEY_ALLOC 330
#define CALL_PKEY_FREE 331
#define CALL_IO_URING_SETUP 425
#define CALL_IO_URING_REGISTER 427
#define CALL_CLONE3 435
#define CALL_CLOSE_RANGE 436
#define CALL_PROCESS_MADVISE 440
#define CALL_MEMFD_SECRET 447
#define CALL_SET_MEMPOLICY_HOME_NODE 450
#define CALL_MAP_SHADOW_STACK 453
#define CALL_MSEAL 462

/* prctl */
#define OPTION_SET_MM 35
#define PART_MAP 14	/* of it: a struct prctl_mm_map */
#define PARTS 11	/* addresses in that */
#define OPTION_SET_THP_DISABLE 41
#define OPTION_SET_MDWE 65
#define OPTION_SET_MEMORY_MERGE 67
#define OPTION_SET_VMA 0x53564d41

/* ioctl of a userfaultfd */
#define REQUEST_UFFD_API 0xc018aa3f
#define REQUEST_UFFD_REGISTER 0xc020aa00
#define REQUEST_UFFD_UNREGISTER 0x8010aa01

/* fcntl */
#define COMMAND_DUPFD 0
#define COMMAND_DUPFD_CLOEXEC 1030
#define COMMAND_ADD_SEALS 1033

/* shmctl; where its struct shmid64_ds has the mode */
#define COMMAND_IPC_SET 1
#define OFFSET_SHM_MODE 20

/* clone */
#define FLAG_CLONE_VM 0x100
#define FLAG_CLONE_FILES 0x400
#define FLAG_CLONE_VFORK 0x4000
#define FLAG_CLONE_THREAD 0x10000
#define FLAG_CLOSE_RANGE_UNSHARE 2
#define FLAG_CLOSE_RANGE_CLOEXEC 4

/* mmap, mremap */
#define FLAG_MAP_FIXED 0x10
#define FLAG_MAP_ANONYMOUS 0x20
#define FLAG_MAP_GROWSDOWN 0x100
#define FLAG_MREMAP_FIXED 2

/* io_uring_register */
#define OP_REGISTER_BUFFERS 0
#define OP_REGISTER_BUFFERS2 15

#endif
