/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the BPF programs write, what the loader adds, and what Python reads (live/bpf_events.py). */
#ifndef EVENTS_H
#define EVENTS_H

enum event_type {
	EVENT_CALL = 1,
	EVENT_FAULT,
	EVENT_FORK,
	EVENT_EXEC,		/* a new address space, or one as it was found; its VMAs follow */
	EVENT_VMA,
	EVENT_VMA_NAME,		/* of the VMA that comes next */
	EVENT_DUMP_END,
	EVENT_EXIT,		/* its VMAs follow, if it has any of its own */
	EVENT_FILE,
	EVENT_DATA,		/* what a pointer of the next call of this task points to */
	EVENT_USER_STACK,	/* the stack of the next call of this task */
	EVENT_UNEXPLAINED,	/* the address space was changed by nothing that is told of */
	/* from the loader */
	EVENT_CALL_NAME = 64,	/* more: the number; a name_event, whose first byte is the number of arguments */
	EVENT_LOST,		/* more: how many; a name_event with the reason.  0: no more of them after this one */
	EVENT_STACK,		/* more: its number, or one of those of enum own_stack; the addresses follow */
	EVENT_STARTED,
	EVENT_FAILED,		/* more: the errno; a name_event with what was tried */
	EVENT_STACKS_LOST,	/* more: how many could not be taken */
	EVENT_DONE,		/* more: the status; a name_event with why it ended */
};

/* A stack that has no place in the kernel's table is told of by itself, before the event that it is of: then this is
   its number. */
enum own_stack { OWN_STACK_OF_CALL = -2, OWN_STACK_OF_FAULT = -3 };
#define STACK_DEPTH 127
#define STACK_PLACES 65536

#define CALLS 512
#define TASKS 16384

/* What the loader sets before it loads. */
struct settings {
	u64 adopt_cookie;	/* the task that says this in prctl is recorded from there on; 0: none */
	u32 attach_pid;		/* the process to be recorded, as the recorder numbers it; 0: none */
	u32 pid_level;		/* of the recorder's PID namespace */
	u32 with_stacks;
	u32 copy_stacks;	/* of calls, to be unwound later */
	u32 all_faults;		/* also those that cannot have changed a VMA */
	u8 call_mode[CALLS];	/* 0: not recorded; else 1 + its mode */
};

/* What both read and write while it runs. */
struct state {
	u64 next_order;
	u64 lost;		/* events, since the loader asked */
	u64 lost_from, lost_until;	/* the numbers of the first and the last of them */
	u64 tasks_lost, stacks_lost;
	u32 snapshot_wanted;	/* a number; each process is dumped once for it */
	u32 userfaultfds;	/* whether there are any */
};

/* What the loader asks the program `ask`: for the VMAs of a process, by its number in the first PID namespace. */
struct question {
	u32 pid;
};

/* What is known of a process. */
struct process {
	u32 dumped;		/* the snapshot that it was last dumped for */
	u32 writes;		/* how often its tasks have let go of the mmap lock that they held for writing */
};

/* What is known of a recorded task. */
struct task {
	u64 entered;		/* when the call in progress began; 0: none is */
	u64 released;		/* when it let go of the mmap lock that it held for writing */
	u64 read;		/* when it let go of the mmap lock that it held for reading */
	u64 file;
	u64 mm;			/* its address space, since its last execve */
	u64 fault_address;
	u64 args[6];
	u32 pid, tid;
	u32 number;		/* of the call, plus 1 */
	u32 fault_code;
	u32 fault;
	s32 stack, fault_stack;	/* the number in the table of stacks, an own_stack, or -1 */
	u32 locked;
	u32 look;		/* for the VMA at the result */
	u32 has_data;
	u32 writes;		/* of its process, when it let go of the lock */
};

/* The head of each event, in the ring and on the way to Python. */
struct event {
	u64 order;		/* of all events, as the mmap locks order them */
	u64 time;		/* nanoseconds */
	u32 pid, tid;
	u16 type, size;
	u32 more;
};

struct call_event {
	struct event head;	/* more: the number of the call */
	u64 args[6];
	s64 result;
	u64 file;
	u64 result_start, result_end, result_flags;	/* of the VMA at the result, where it was asked for */
	s32 stack;
	u32 map_count;
	u32 locked;		/* whether the mmap lock was taken for writing */
	u32 overtaken;		/* another task of the process has had it since */
};

struct fault_event {
	struct event head;	/* more: the error code */
	u64 address;
	u32 locked;		/* whether the mmap lock was held: otherwise no VMA has changed */
	s32 stack;
};

struct fork_event {
	struct event head;
	u64 flags;
	u32 child_pid, child_tid;
};

#define ARGV_MOST 1024
struct exec_event {
	struct event head;	/* more: 0 execve, 1 as found */
	u64 mmap_base, task_size, start_brk, brk, start_stack, start_code, end_code, start_data, end_data;
	u64 mm_flags, personality, limit_as, limit_data, limit_stack, limit_memlock, caps, exe;
	u32 argv_length, unused;
	char argv[ARGV_MOST];
};

#define SPECIAL_NAME 24
struct vma_event {
	struct event head;	/* more: 1 policy, 2 userfaultfd */
	u64 start, end, flags, pgoff, anon_vma, file, inode;
	u32 device, chain;
	char name[SPECIAL_NAME];
};

#define NAME_MOST 256
struct name_event {
	struct event head;
	char name[NAME_MOST];
};

struct dump_end_event {
	struct event head;
	u64 count;
	u64 whole;		/* no VMA changed meanwhile */
};

struct exit_event {
	struct event head;	/* more: 1 a list of VMAs follows */
	u64 code, start_brk, brk, start_stack;
};

#define PATH_MOST 4096
struct file_event {
	struct event head;	/* more: 1 deleted, 2 noexec, 4 the root of a mount inside the kernel */
	u64 file, inode;
	u32 device, rdev, mode, access;
	char fs[32];
	u32 length, unused;
	char path[PATH_MOST + NAME_MOST];	/* the names from the last to the first, each ended by 0 */
};

struct unexplained_event {
	struct event head;
};

struct stack_event {
	struct event head;
	u64 at[STACK_DEPTH];
};

#define STACK_COPIED 8192
struct user_stack_event {
	struct event head;
	u64 ip, sp, bp, bx, r12, r13, r14, r15;
	char bytes[STACK_COPIED];	/* from the stack pointer upwards, as far as there are any */
};

#define DATA_MOST 2048
struct data_event {
	struct event head;	/* more: the number of bytes */
	char bytes[DATA_MOST];
};

#endif
