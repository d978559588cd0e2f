/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the parts of the ptrace recorder share.
 *
 *   ptrace_recorder.c  waits for stops, decides what each means
 *   start.c            starts the program as it would start without the recorder
 *   filter.c           the seccomp filter: which calls stop at all
 *   calls.c            what each call's arguments mean, and the record it leaves
 *   observe.c          VMAs and their pages as /proc shows them: which have been written to, which stacks have grown
 *   descriptors.c      which descriptors stand for the same open file
 *   state.c            tasks, processes, address spaces
 *   events.c           the events, as lines of JSON
 */
#ifndef RECORDER_H
#define RECORDER_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "modes.h"

typedef uint64_t u64;

#define PAGE 4096ULL
#define TOP_OF_USER 0x7ffffffff000ULL

/* ---- events.c ---- */

struct text {
	char *bytes;
	size_t length, capacity;
};

void text_add(struct text *text, const void *bytes, size_t length);
void text_print(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_quote(struct text *text, const char *bytes, size_t length);
void text_free(struct text *text);

/* The event being written; event_end() completes the line. */
extern struct text event_out;
void event_open(int fd);
void event_begin(const char *type);
void event_number(const char *key, u64 value);
void event_signed(const char *key, int64_t value);
void event_string(const char *key, const char *value);
void event_bytes(const char *key, const char *bytes, size_t length);
void event_end(void);
void event_flush(void);
/* Flushes if the last time was a while ago; true if nothing is left to flush. */
bool event_flush_if_old(void);
void event_lost(pid_t pid, const char *why);

u64 now_ms(void);
void *get_memory(void *old, size_t size);

/* ---- state.c ---- */

struct range {
	u64 start, end;
};

/* Sorted ranges that neither overlap nor touch. */
struct ranges {
	struct range *at;
	size_t count, capacity;
};

void ranges_add(struct ranges *set, u64 start, u64 end);
void ranges_remove(struct ranges *set, u64 start, u64 end);
bool ranges_overlap(const struct ranges *set, u64 start, u64 end);
bool ranges_cover(const struct ranges *set, u64 start, u64 end);

struct list {
	struct range *at;
	size_t count, capacity;
};

void list_add(struct list *list, u64 start, u64 end);

struct task;

/* An address space. */
struct mm {
	int users;		/* processes */
	int maps_fd, pagemap_fd;	/* -1 until needed, -2 if they cannot be opened */
	u64 brk;
	struct ranges written;	/* where the VMA has been reported as written */
	struct ranges clean;	/* not writable and found without anonymous pages */
	struct list growing;	/* stacks: where each began and ended when last seen */
	struct list found;	/* written, not yet part of a record: start is the address */
	struct list grown;	/* likewise the stacks */
	struct task *holder;	/* whose call is in flight */
	u64 held_since;		/* ms */
	struct task *first_waiting, *last_waiting;
	struct mm *next;
	bool uncertain;		/* said that the order of its calls is not certain */
};

struct process {
	pid_t pid;
	int threads;		/* that have not reached their exit stop */
	int users;		/* tasks that point here */
	struct mm *mm;
	bool owns_mm;		/* it was not lent by the parent */
	bool started;		/* past the first exec */
	bool said_32bit;
};

struct call;
struct open_file;
struct files;

struct task {
	pid_t tid;
	struct process *process;	/* NULL: seen, but its parent's stop has not been */
	struct files *files;
	struct task *next;		/* in its hash chain */
	const struct call *call;	/* entered and not yet left */
	u64 args[6];
	u64 clone_flags;
	struct open_file *file;
	struct text data;		/* the pairs of "data" */
	struct task *next_waiting;
	u64 seen_at;			/* ms; of an orphan */
	bool waits_for_exit;		/* of the call */
	bool waiting;			/* for the call in flight in its mm */
	bool first_stop_done;
	bool exiting;
};

extern struct mm *all_mms;

struct task *task_find(pid_t tid);
struct task *task_new(pid_t tid);
void task_remove(struct task *task);
void task_attach(struct task *task, struct process *process);
void tasks_each(void (*visit)(struct task *task));
struct process *process_new(pid_t pid);
struct mm *mm_new(void);
struct mm *mm_copy(const struct mm *parent);
void process_set_mm(struct process *process, struct mm *mm);

/* ---- descriptors.c ---- */

struct files *files_new(void);
struct files *files_copy(const struct files *files);
struct files *files_share(struct files *files);
void files_release(struct files *files);
void files_close(struct files *files, unsigned first, unsigned last);
void files_duplicate(struct files *files, int from, int to);

/* The open file behind a descriptor; NULL if there is none. */
struct open_file *open_file_of(struct task *task, int fd);
/* Writes the event of a file unless it has been written; mapped_at: where it has just been mapped, or 0. */
void open_file_tell(struct task *task, struct open_file *file, u64 mapped_at);
int open_file_id(const struct open_file *file);
/* The id of the userfaultfd of which this is the only descriptor left, or -1. */
int last_of_userfaultfd(const struct files *files, int fd);
/* A file of its own for a System V segment that has just been attached at this address. */
struct open_file *segment_attached(struct task *task, u64 address, struct text *data);

/* ---- observe.c ---- */

struct vma {
	u64 start, end, offset, inode;
	unsigned major, minor;
	bool shared, writable;
	char name[256];		/* filled in on request */
};

extern bool use_ioctls;

/* The first VMA that ends above the address. */
bool vma_find(struct task *task, u64 address, struct vma *vma, bool with_name);
void observe_range(struct task *task, u64 start, u64 end);
void observe_all(struct task *task);
/* The VMAs left and right of a range that has just been mapped. */
void observe_neighbours(struct task *task, u64 start, u64 end);
void observe_stacks(struct task *task);
/* Nothing is known of this range any more. */
void observe_forget(struct mm *mm, u64 start, u64 end);
/* At exec: where the stack is, where brk is. */
void observe_new_space(struct task *task);
/* Ends an event with what was observed. */
void event_observed(struct mm *mm);
void mm_close(struct mm *mm);
void proc_forget_cache(void);

/* Adds the whole file to the text; false (and errno) if it cannot be read. */
bool proc_read(pid_t tid, const char *name, struct text *text);
/* smaps, without the lines that nobody uses. */
bool proc_read_smaps(pid_t tid, struct text *text);

/* ---- calls.c ---- */

const struct call *call_find(int number);
void call_at_entry(struct task *task);
/* Whether a call at whose entry all could be done is one of the address space after all. */
bool call_changes_memory(const struct task *task);
void call_enter(struct task *task);
void call_leave(struct task *task, int64_t result);
bool tracee_read(pid_t tid, u64 address, void *to, size_t length);

/* ---- start.c ---- */

/* What went wrong and where: p(rocess), t(race), f(ilter), e(xec); stage 0 is success. */
struct failure {
	char stage;
	int error;
};

extern bool no_new_privs_was_needed;

/* Makes the process and traces it; it waits for program_go().  No command: it does nothing and ends. */
struct failure program_start(char **command, long trace_options, sigset_t *waited_for, pid_t *started);
struct failure program_go(void);
/* What the child has said since: why it could not become the program, if so. */
struct failure program_answer(void);

/* ---- filter.c ---- */

/* 0, or the errno; says whether no_new_privs had to be set. */
int filter_install(bool *no_new_privs);

#endif
