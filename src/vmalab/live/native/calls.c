// SPDX-License-Identifier: GPL-2.0-or-later
// What each recorded call means: what to look at before it runs, what its pointers point to, the record it leaves.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "numbers.h"
#include "recorder.h"
#include "table.h"

#define MAX_RANGES 1024
#define MAX_NODES 1024
#define FIRST_RESTART_ERROR 512	// ERESTARTSYS and its kin: the call will be made again
#define LAST_RESTART_ERROR 516

const struct call *call_find(int number)
{
	static const struct call *by_number[LAST_CALL];
	if (!by_number[SYS_mmap])
		for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
			by_number[calls[i].number] = &calls[i];
	return number >= 0 && number < LAST_CALL ? by_number[number] : NULL;
}

bool tracee_read(pid_t tid, u64 address, void *to, size_t length)
{
	struct iovec here = {to, length}, there = {(void *)(uintptr_t)address, length};
	return process_vm_readv(tid, &here, 1, &there, 1, 0) == (ssize_t)length;
}

// ---- descriptors ----

static void unshare_files(struct task *task)
{
	struct files *copy = files_copy(task->files);
	files_release(task->files);
	task->files = copy;
}

bool call_changes_memory(const struct task *task)
{
	return task->call->number == SYS_close && last_of_userfaultfd(task->files, (int)task->args[0]) >= 0;
}

void call_at_entry(struct task *task)
{
	const u64 *args = task->args;
	switch (task->call->number) {
	case SYS_close:
		files_close(task->files, (unsigned)args[0], (unsigned)args[0]);
		break;
	case CALL_CLOSE_RANGE:
		if (args[2] & FLAG_CLOSE_RANGE_UNSHARE)
			unshare_files(task);
		if (!(args[2] & FLAG_CLOSE_RANGE_CLOEXEC))
			files_close(task->files, (unsigned)args[0], (unsigned)args[1]);
		break;
	case SYS_unshare:
		if (args[0] & FLAG_CLONE_FILES)
			unshare_files(task);
		break;
	}
}

// ---- what pointers point to ----

// The bytes of a string in the tracee, up to a limit; read to the end of a page at a time, for the next may be missing.
static size_t read_string(pid_t tid, u64 address, char *to, size_t limit)
{
	size_t length = 0;
	while (length < limit) {
		size_t part = (size_t)(PAGE - (address + length) % PAGE);
		if (part > limit - length)
			part = limit - length;
		if (!tracee_read(tid, address + length, to + length, part))
			return length;
		char *end = memchr(to + length, 0, part);
		if (end)
			return (size_t)(end - to);
		length += part;
	}
	return length;
}

static void data_string(struct task *task, const char *key, u64 address)
{
	char name[256];
	if (!address)
		return;
	size_t length = read_string(task->tid, address, name, sizeof name);
	text_print(&task->data, "\"%s\":", key);
	text_quote(&task->data, name, length);
}

static void data_limit(struct task *task, u64 address)
{
	u64 limit[2];
	if (address && tracee_read(task->tid, address, limit, sizeof limit))
		text_print(&task->data, "\"cur\":%lu,\"max\":%lu", limit[0], limit[1]);
}

static void data_nodes(struct task *task, u64 address, u64 bits)
{
	u64 mask[MAX_NODES / 64] = {0};
	const char *comma = "";
	bits = bits > MAX_NODES ? MAX_NODES : bits;
	// the kernel takes one bit fewer than it is told
	if (!address || bits < 2 || !tracee_read(task->tid, address, mask, (bits + 62) / 64 * 8))
		return;
	text_print(&task->data, "\"nodes\":[");
	for (unsigned i = 0; i + 1 < bits; i++)
		if (mask[i / 64] >> i % 64 & 1) {
			text_print(&task->data, "%s%u", comma, i);
			comma = ",";
		}
	text_print(&task->data, "]");
}

// An array of iovec; each range is observed too if asked for.
static void data_ranges(struct task *task, u64 address, u64 number, bool observe)
{
	struct iovec ranges[MAX_RANGES];
	number = number > MAX_RANGES ? MAX_RANGES : number;
	if (!address || !number || !tracee_read(task->tid, address, ranges, number * sizeof *ranges))
		return;
	text_print(&task->data, "%s\"ranges\":[", task->data.length ? "," : "");
	for (size_t i = 0; i < number; i++) {
		u64 start = (u64)(uintptr_t)ranges[i].iov_base, length = ranges[i].iov_len;
		text_print(&task->data, "%s%lu,%lu", i ? "," : "", start, length);
		if (observe)
			observe_range(task, start, start + length);
	}
	text_print(&task->data, "]");
}

static pid_t process_of_pidfd(struct task *task, int fd)
{
	char name[40];
	struct text info = {0};
	int pid = 0;
	if (fd < 0)
		return task->process->pid;	// PIDFD_SELF
	snprintf(name, sizeof name, "fdinfo/%d", fd);
	if (proc_read(task->tid, name, &info)) {
		const char *at = strstr(info.bytes, "\nPid:");
		if (at)
			sscanf(at, "\nPid: %d", &pid);
	}
	text_free(&info);
	return pid;
}

static void enter_process_madvise(struct task *task)
{
	pid_t pid = process_of_pidfd(task, (int)task->args[0]);
	if (pid > 0)
		text_print(&task->data, "\"pid\":%d", pid);
	data_ranges(task, task->args[1], task->args[2], pid == task->process->pid);
}

static void enter_io_uring_register(struct task *task)
{
	u64 registration[4];	// number and flags, reserved, iovecs, tags
	if (task->args[1] == OP_REGISTER_BUFFERS)
		data_ranges(task, task->args[2], task->args[3], true);
	else if (task->args[1] == OP_REGISTER_BUFFERS2 &&
		 tracee_read(task->tid, task->args[2], registration, sizeof registration))
		data_ranges(task, registration[2], (uint32_t)registration[0], true);
}

static void enter_ioctl(struct task *task)
{
	u64 words[3] = {0};	// features: api, features; register: start, length, mode
	uint32_t request = (uint32_t)task->args[1];
	size_t length = request == REQUEST_UFFD_REGISTER ? 24 : 16;
	struct open_file *file = open_file_of(task, (int)task->args[0]);
	if (!tracee_read(task->tid, task->args[2], words, length))
		return;
	if (request == REQUEST_UFFD_API) {
		text_print(&task->data, "\"features\":%lu", words[1]);
	} else {
		text_print(&task->data, "\"start\":%lu,\"len\":%lu", words[0], words[1]);
		if (request == REQUEST_UFFD_REGISTER)
			text_print(&task->data, ",\"mode\":%lu", words[2]);
		observe_range(task, words[0], words[0] + words[1]);
	}
	if (file)
		text_print(&task->data, ",\"uffd\":%d", open_file_id(file));
}

// A struct prctl_mm_map: its addresses, then the auxiliary vector, its size and the descriptor of the executable.
static void data_layout(struct task *task, u64 address)
{
	u64 map[PARTS + 2];
	if (!tracee_read(task->tid, address, map, sizeof map))
		return;
	text_print(&task->data, "\"layout\":[");
	for (int i = 0; i < PARTS; i++)
		text_print(&task->data, "%s%lu", i ? "," : "", map[i]);
	text_print(&task->data, "],\"rest\":[%lu,%u,%u]", map[PARTS], (unsigned)map[PARTS + 1], (unsigned)(map[PARTS + 1] >> 32));
}

static void enter_shmctl(struct task *task)
{
	uint32_t mode;
	if ((int)task->args[1] == COMMAND_IPC_SET && tracee_read(task->tid, task->args[2] + OFFSET_SHM_MODE, &mode, sizeof mode))
		text_print(&task->data, "\"mode\":%u", mode);
}

static void enter_prctl(struct task *task)
{
	const u64 *args = task->args;
	if (args[0] == OPTION_SET_VMA) {
		data_string(task, "name", args[4]);
		observe_range(task, args[2], args[2] + args[3]);
	} else if (args[0] == OPTION_SET_MM && args[1] == PART_MAP) {
		data_layout(task, args[2]);
	} else if (args[0] == OPTION_SET_MEMORY_MERGE) {
		observe_all(task);
	}
}

static void enter_new_task(struct task *task)
{
	const u64 *args = task->args;
	u64 flags = 0;
	if (task->call->number == SYS_vfork)
		flags = FLAG_CLONE_VM | FLAG_CLONE_VFORK;
	else if (task->call->number == SYS_clone)
		flags = args[0] & ~0xffULL;	// the low byte is the exit signal
	else if (task->call->number == CALL_CLONE3 && !tracee_read(task->tid, args[0], &flags, sizeof flags))
		flags = 0;
	task->clone_flags = flags;
	if (!(flags & FLAG_CLONE_VM))
		observe_all(task);
}

static void enter_mmap(struct task *task)
{
	const u64 *args = task->args;
	if (!(args[3] & FLAG_MAP_ANONYMOUS))
		task->file = open_file_of(task, (int)args[4]);
	if (args[3] & FLAG_MAP_FIXED)
		observe_range(task, args[0], args[0] + args[1]);
}

static void enter_mremap(struct task *task)
{
	const u64 *args = task->args;
	u64 longest = args[1] > args[2] ? args[1] : args[2];
	observe_range(task, args[0], args[0] + longest);
	if (args[3] & FLAG_MREMAP_FIXED)
		observe_range(task, args[4], args[4] + args[2]);
}

static void enter_brk(struct task *task)
{
	u64 now = task->process->mm->brk, wanted = task->args[0];
	if (wanted)
		observe_range(task, now < wanted ? now : wanted, now < wanted ? wanted : now);
}

// Looks at what the call can touch, and reads what its pointers point to.
void call_enter(struct task *task)
{
	const u64 *args = task->args;
	task->data.length = 0;
	task->file = NULL;
	observe_stacks(task);
	switch (task->call->number) {
	case SYS_mmap: enter_mmap(task); break;
	case SYS_mremap: enter_mremap(task); break;
	case SYS_brk: enter_brk(task); break;
	case SYS_prctl: enter_prctl(task); break;
	case SYS_shmctl: enter_shmctl(task); break;
	case SYS_ioctl: enter_ioctl(task); break;
	case CALL_PROCESS_MADVISE: enter_process_madvise(task); break;
	case CALL_IO_URING_REGISTER: enter_io_uring_register(task); break;
	case SYS_memfd_create: data_string(task, "name", args[0]); break;
	case SYS_setrlimit: data_limit(task, args[1]); break;
	case SYS_prlimit64: data_limit(task, args[2]); break;
	case SYS_set_mempolicy: data_nodes(task, args[1], args[2]); break;
	case SYS_mbind:
		data_nodes(task, args[3], args[4]);
		observe_range(task, args[0], args[0] + args[1]);
		break;
	case SYS_munmap:
	case SYS_mprotect:
	case CALL_PKEY_MPROTECT:
	case SYS_madvise:
	case SYS_mlock:
	case SYS_mlock2:
	case SYS_munlock:
	case SYS_remap_file_pages:
	case CALL_SET_MEMPOLICY_HOME_NODE:
	case CALL_MSEAL:
		observe_range(task, args[0], args[0] + args[1]);
		break;
	case SYS_mlockall:
	case SYS_munlockall:
		observe_all(task);
		break;
	case SYS_fork:
	case SYS_vfork:
	case SYS_clone:
	case CALL_CLONE3:
		enter_new_task(task);
		break;
	case SYS_close:	// the last of a userfaultfd: its ranges are no longer registered
		text_print(&task->data, "\"uffd\":%d", last_of_userfaultfd(task->files, (int)args[0]));
		files_close(task->files, (unsigned)args[0], (unsigned)args[0]);
		observe_all(task);
		break;
	case SYS_fcntl:
		if ((int)args[1] == COMMAND_ADD_SEALS)
			task->file = open_file_of(task, (int)args[0]);
		break;
	}
}

// ---- the result ----

static void leave_mremap(struct task *task, u64 result)
{
	struct mm *mm = task->process->mm;
	const u64 *args = task->args;
	if (result != args[0]) {
		observe_forget(mm, args[0], args[0] + args[1]);
		observe_forget(mm, result, result + args[2]);
		observe_neighbours(task, result, result + args[2]);
	} else if (args[2] < args[1]) {
		observe_forget(mm, result + args[2], result + args[1]);
	}
}

static void leave_brk(struct task *task, u64 result)
{
	struct mm *mm = task->process->mm;
	if (result < mm->brk)
		observe_forget(mm, (result + PAGE - 1) / PAGE * PAGE, mm->brk + PAGE);
	mm->brk = result;
}

static void leave_mapping(struct task *task, u64 address, u64 length)
{
	u64 end = address + (length + PAGE - 1) / PAGE * PAGE;
	observe_forget(task->process->mm, address, end);
	if (task->call->number != SYS_mmap || !(task->args[3] & FLAG_MAP_FIXED))
		observe_neighbours(task, address, end);
}

// Observes what could only be known after the call, and keeps what is known of the address space up to date.
static void leave_successfully(struct task *task, u64 result)
{
	struct mm *mm = task->process->mm;
	const u64 *args = task->args;
	struct vma vma;
	switch (task->call->number) {
	case SYS_mmap:
		leave_mapping(task, result, args[1]);
		if (args[3] & FLAG_MAP_GROWSDOWN && vma_find(task, result, &vma, false))
			list_add(&mm->growing, result, vma.end);
		break;
	case CALL_MAP_SHADOW_STACK:
		leave_mapping(task, result, args[1]);
		break;
	case SYS_shmat:
		task->file = segment_attached(task, result, &task->data);
		if (task->file && vma_find(task, result, &vma, false))
			leave_mapping(task, result, vma.end - result);
		break;
	case SYS_munmap:
	case SYS_remap_file_pages:
		observe_forget(mm, args[0] / PAGE * PAGE, (args[0] + args[1] + PAGE - 1) / PAGE * PAGE);
		break;
	case SYS_mprotect:
	case CALL_PKEY_MPROTECT:
		ranges_remove(&mm->clean, args[0], (args[0] + args[1] + PAGE - 1) / PAGE * PAGE);
		break;
	case SYS_mremap: leave_mremap(task, result); break;
	case SYS_brk: leave_brk(task, result); break;
	}
}

// The descriptor calls that are followed but not recorded.
static bool leave_descriptor(struct task *task, int64_t result)
{
	if (task->call->number == SYS_fcntl && (int)task->args[1] == COMMAND_ADD_SEALS)
		return false;
	if (result >= 0)
		files_duplicate(task->files, (int)task->args[0], (int)result);
	return true;
}

void call_leave(struct task *task, int64_t result)
{
	const struct call *call = task->call;
	if (result <= -FIRST_RESTART_ERROR && result >= -LAST_RESTART_ERROR)
		return;
	if (call->mode == NEW_TASK || (call->mode == DESCRIPTOR && leave_descriptor(task, result)))
		return;		// a new task has an event of its own; a failed one leaves nothing
	if (result >= 0 || result < -4095)
		leave_successfully(task, (u64)result);
	if (task->file && call->number != SYS_shmat)
		open_file_tell(task, task->file, result >= 0 && call->number == SYS_mmap ? (u64)result : 0);
	else if (task->file)
		open_file_tell(task, task->file, (u64)result);
	event_begin("call");
	event_number("n", 0);
	event_number("pid", (u64)task->process->pid);
	event_number("tid", (u64)task->tid);
	event_string("call", call->name);
	text_print(&event_out, ",\"args\":[");
	for (int i = 0; i < call->arguments; i++)
		text_print(&event_out, "%s%lu", i ? "," : "", task->args[i]);
	text_print(&event_out, "]");
	event_signed("ret", result);
	if (task->file)
		event_number("file", (u64)open_file_id(task->file));
	if (task->data.length) {
		text_print(&event_out, ",\"data\":{");
		text_add(&event_out, task->data.bytes, task->data.length);
		text_add(&event_out, "}", 1);
	}
	event_observed(task->process->mm);
	event_end();
}
