// SPDX-License-Identifier: GPL-2.0-or-later
// Runs a program and writes what it and its children do to their address spaces to a pipe, as lines of JSON.
//
//   ptrace-recorder [--no-ioctls] FD -- COMMAND [ARGUMENT...]
//   ptrace-recorder --check
//
// The program keeps its descriptors, process group, terminal and signals.  The status of this process is 0 unless the
// program could not be started; the program's own is in the last event.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "numbers.h"
#include "recorder.h"

#define HOLD_MS 100		// how long a call may keep the others of its address space waiting
#define ORPHAN_MS 500		// how long a new task waits for the stop of its parent
#define TICK_NS 50000000L
#define STOPS_UNTIL_NEWS 256	// of a program that never leaves the recorder idle
#define GRACE_MS 2000		// from Ctrl-C to the end
#define SAME_SIGNAL_MS 1000	// a signal forwarded by the parent this soon after our own is the same one
#define TRACE_OPTIONS                                                                                                  \
	(PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEEXEC | PTRACE_O_TRACEEXIT | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | \
	 PTRACE_O_TRACECLONE | PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)
#define INFO_SECCOMP 3
#define INFO_EXIT 2

// What PTRACE_GET_SYSCALL_INFO tells (since Linux 5.3).
struct call_info {
	uint8_t op, padding[3];
	uint32_t arch;
	u64 instruction, stack;
	union {
		struct {
			u64 number, args[6];
			uint32_t data;
		} entry;
		struct {
			int64_t result;
			uint8_t is_error;
		} exit;
	};
};

static pid_t root;
static int root_status;
static bool root_ended, root_started;
static sigset_t waited_for;
static u64 own_signal_at, kill_at;
static bool interrupted, killed;

// ---- running and stopping ----

static void resume(struct task *task, int signal)
{
	ptrace(task->waits_for_exit ? PTRACE_SYSCALL : PTRACE_CONT, task->tid, 0L, (long)signal);
}

static void begin_call(struct task *task)
{
	struct mm *mm = task->process->mm;
	mm->holder = task;
	mm->held_since = now_ms();
	call_enter(task);
	task->waits_for_exit = true;
	resume(task, 0);
}

static void next_in_line(struct mm *mm)
{
	struct task *task = mm->first_waiting;
	mm->holder = NULL;
	if (!task)
		return;
	mm->first_waiting = task->next_waiting;
	if (!mm->first_waiting)
		mm->last_waiting = NULL;
	task->waiting = false;
	task->next_waiting = NULL;
	proc_forget_cache();
	begin_call(task);
}

static void wait_in_line(struct task *task)
{
	struct mm *mm = task->process->mm;
	task->waiting = true;
	if (mm->last_waiting)
		mm->last_waiting->next_waiting = task;
	else
		mm->first_waiting = task;
	mm->last_waiting = task;
}

// The task takes part in no call any more: it is done, or dies.
static void leave_line(struct task *task)
{
	struct mm *mm = task->process ? task->process->mm : NULL;
	task->call = NULL;
	task->waits_for_exit = false;
	if (!mm)
		return;
	if (task->waiting) {
		struct task **link = &mm->first_waiting, *last = NULL;
		while (*link && *link != task) {
			last = *link;
			link = &(*link)->next_waiting;
		}
		if (*link)
			*link = task->next_waiting;
		if (mm->last_waiting == task)
			mm->last_waiting = last;
		task->waiting = false;
		task->next_waiting = NULL;
	}
	if (mm->holder == task)
		next_in_line(mm);
}

// A call that does not return may wait for a thread that waits for it: let the next one go.
static void release_stuck_calls(void)
{
	for (struct mm *mm = all_mms, *next; mm; mm = next) {
		next = mm->next;
		if (!mm->first_waiting || !mm->holder || now_ms() - mm->held_since < HOLD_MS)
			continue;
		if (!mm->uncertain)
			event_lost(mm->holder->process->pid, "a call did not return at once: the order between threads is uncertain from here");
		mm->uncertain = true;
		next_in_line(mm);
	}
}

// ---- stops ----

static void on_call(struct task *task)
{
	struct call_info info;
	if (ptrace(PTRACE_GET_SYSCALL_INFO, task->tid, sizeof info, &info) <= 0 || info.op != INFO_SECCOMP) {
		resume(task, 0);
		return;
	}
	if (info.arch != AUDIT_ARCH_X86_64) {
		if (!task->process->said_32bit && task->process->started)
			event_lost(task->process->pid, "32-bit system calls are not recorded");
		task->process->said_32bit = true;
		resume(task, 0);
		return;
	}
	const struct call *call = call_find((int)info.entry.number);
	if (!call || !task->process->started) {
		resume(task, 0);
		return;
	}
	task->call = call;
	memcpy(task->args, info.entry.args, sizeof task->args);
	if (call->mode == AT_ENTRY && !call_changes_memory(task)) {
		call_at_entry(task);
		task->call = NULL;
		resume(task, 0);
	} else if (call->mode == DESCRIPTOR) {
		call_enter(task);
		task->waits_for_exit = true;
		resume(task, 0);
	} else if (task->process->mm->holder) {
		wait_in_line(task);
	} else {
		begin_call(task);
	}
}

static void on_call_exit(struct task *task)
{
	struct call_info info;
	bool known = ptrace(PTRACE_GET_SYSCALL_INFO, task->tid, sizeof info, &info) > 0 && info.op == INFO_EXIT;
	if (known && task->call && task->waits_for_exit)
		call_leave(task, info.exit.result);
	leave_line(task);
	resume(task, 0);
}

// Connects a new task with the one that made it.
static void adopt(struct task *child, struct task *parent, u64 flags)
{
	struct process *process = parent->process;
	if (!(flags & FLAG_CLONE_THREAD)) {
		process = process_new(child->tid);
		process->owns_mm = !(flags & FLAG_CLONE_VM);
		process->started = parent->process->started;
		process_set_mm(process, process->owns_mm ? mm_copy(parent->process->mm) : parent->process->mm);
	}
	task_attach(child, process);
	process->threads++;
	child->files = flags & FLAG_CLONE_FILES ? files_share(parent->files) : files_copy(parent->files);
	event_begin("fork");
	event_number("n", 0);
	event_number("pid", (u64)process->pid);
	event_number("tid", (u64)child->tid);
	event_number("parent", (u64)parent->process->pid);
	event_number("parent_tid", (u64)parent->tid);
	event_number("flags", flags);
	event_observed(parent->process->mm);
	event_end();
}

static pid_t status_number(pid_t tid, const char *key)
{
	struct text status = {0};
	int number = 0;
	if (proc_read(tid, "status", &status)) {
		const char *at = strstr(status.bytes, key);
		if (at)
			number = atoi(at + strlen(key));
	}
	text_free(&status);
	return number;
}

static void on_new_task(struct task *parent, int event)
{
	unsigned long tid = 0;
	u64 flags = parent->clone_flags;
	if (ptrace(PTRACE_GETEVENTMSG, parent->tid, 0L, &tid)) {
		resume(parent, 0);
		return;
	}
	if (!parent->call || parent->call->mode != NEW_TASK) {	// made by a call that does not stop
		flags = event == PTRACE_EVENT_VFORK ? FLAG_CLONE_VM | FLAG_CLONE_VFORK : 0;
		if (event == PTRACE_EVENT_CLONE && status_number((pid_t)tid, "\nTgid:") == parent->process->pid)
			flags = FLAG_CLONE_VM | FLAG_CLONE_FILES | FLAG_CLONE_THREAD;
	}
	struct task *child = task_find((pid_t)tid);
	if (child && child->process) {	// an old number, used again
		task_remove(child);
		child = NULL;
	}
	if (!child)
		child = task_new((pid_t)tid);
	adopt(child, parent, flags);
	leave_line(parent);
	if (child->first_stop_done)
		resume(child, 0);
	resume(parent, 0);
}

static void add_proc_text(pid_t tid, const char *name)
{
	struct text text = {0};
	if (proc_read(tid, name, &text) && text.length)
		event_bytes(name, text.bytes, text.length);
	text_free(&text);
}

static void add_link(pid_t tid, const char *name)
{
	char link[64], path[4200];
	snprintf(link, sizeof link, "/proc/%d/%s", tid, name);
	ssize_t length = readlink(link, path, sizeof path);
	if (length > 0)
		event_bytes(name, path, (size_t)length);
}

static void add_smaps(pid_t tid)
{
	struct text text = {0};
	if (proc_read_smaps(tid, &text))
		event_bytes("smaps", text.bytes, text.length);
	text_free(&text);
}

static void tell_started(void)
{
	program_answer();
	event_begin("start");
	event_number("no_new_privs", no_new_privs_was_needed);
	event_end();
	root_started = true;
}

static void on_exec(struct task *task)
{
	unsigned long former = 0;
	struct process *process = task->process;
	if (!ptrace(PTRACE_GETEVENTMSG, task->tid, 0L, &former) && (pid_t)former != task->tid) {
		// another thread did it, and has taken over the number of the first one
		struct task *other = task_find((pid_t)former);
		if (other) {
			leave_line(other);
			if (other->files != task->files) {
				struct files *files = files_share(other->files);
				files_release(task->files);
				task->files = files;
			}
			task_remove(other);
		}
	}
	leave_line(task);
	if (!root_started)
		tell_started();
	task->exiting = false;
	process->threads = 1;
	process->started = process->owns_mm = true;
	process->said_32bit = false;
	process_set_mm(process, mm_new());
	files_release(task->files);
	task->files = files_new();
	observe_new_space(task);
	event_begin("exec");
	event_number("pid", (u64)process->pid);
	add_link(task->tid, "exe");
	static const char *const names[] = {"cmdline", "stat", "status", "limits", "personality", "ksm_stat"};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		add_proc_text(task->tid, names[i]);
	add_smaps(task->tid);
	event_end();
	event_flush();
	resume(task, 0);
}

static void on_exit_stop(struct task *task)
{
	struct process *process = task->process;
	unsigned long status = 0;
	leave_line(task);
	if (!task->exiting && process && --process->threads == 0 && process->started) {
		ptrace(PTRACE_GETEVENTMSG, task->tid, 0L, &status);
		if (process->owns_mm && process->mm) {
			observe_stacks(task);
			observe_all(task);
		}
		event_begin("exit");
		event_number("pid", (u64)process->pid);
		event_number("status", status);
		if (process->owns_mm) {
			add_smaps(task->tid);
			event_observed(process->mm);
		}
		event_end();
	}
	task->exiting = true;
	resume(task, 0);
}

static void on_stop(struct task *task, int status)
{
	int signal = WSTOPSIG(status), event = status >> 16;
	proc_forget_cache();
	if (!task->process && event != PTRACE_EVENT_EXIT) {	// its parent's stop has not been seen
		task->first_stop_done = true;
		return;
	}
	task->first_stop_done = true;
	switch (event) {
	case PTRACE_EVENT_SECCOMP: on_call(task); break;
	case PTRACE_EVENT_FORK:
	case PTRACE_EVENT_VFORK:
	case PTRACE_EVENT_CLONE: on_new_task(task, event); break;
	case PTRACE_EVENT_EXEC: on_exec(task); break;
	case PTRACE_EVENT_EXIT: on_exit_stop(task); break;
	case PTRACE_EVENT_STOP:
		if (signal == SIGTRAP)
			resume(task, 0);
		else
			ptrace(PTRACE_LISTEN, task->tid, 0L, 0L);	// stopped as a job: stays so until SIGCONT
		break;
	default:
		if (signal == (SIGTRAP | 0x80))
			on_call_exit(task);
		else
			resume(task, signal);
	}
}

static void on_end(pid_t tid, int status)
{
	struct task *task = task_find(tid);
	if (tid == root) {
		root_ended = true;
		root_status = status;
	}
	if (task) {
		leave_line(task);
		task_remove(task);
	}
}

// A new task whose parent was killed before it could say so.
static void adopt_orphan(struct task *task)
{
	if (task->process || !task->first_stop_done || now_ms() - task->seen_at < ORPHAN_MS)
		return;
	pid_t pid = status_number(task->tid, "\nTgid:");
	struct task *leader = pid == task->tid ? NULL : task_find(pid);
	struct process *process = leader ? leader->process : NULL;
	if (!process) {
		process = process_new(pid > 0 ? pid : task->tid);
		process_set_mm(process, mm_new());
		process->started = true;
		event_lost(process->pid, "its parent was killed while making it: where it comes from is not known");
	}
	task_attach(task, process);
	process->threads++;
	task->files = files_new();
	resume(task, 0);
}

// ---- signals and waiting ----

static void kill_task(struct task *task)
{
	kill(task->tid, SIGKILL);
}

static void kill_all(void)
{
	killed = true;
	kill_at = 0;
	tasks_each(kill_task);
}

static void on_signal(const siginfo_t *info)
{
	bool from_parent = info->si_code <= 0 && info->si_pid == getppid();
	u64 now = now_ms();
	if (from_parent && own_signal_at && now - own_signal_at < SAME_SIGNAL_MS)
		return;
	if (!from_parent)
		own_signal_at = now;
	if (interrupted || root_ended) {
		interrupted = true;
		kill_all();
		return;
	}
	interrupted = true;
	kill_at = now + GRACE_MS;
	if (from_parent)	// it came to vmalab alone
		kill(root, info->si_signo);
}

// Does what is due; waits for a stop or a signal first, unless there is a stop to look at.
static void wait_for_news(bool busy)
{
	struct timespec tick = {0, busy ? 0 : TICK_NS};
	siginfo_t info;
	int signal = sigtimedwait(&waited_for, &info, &tick);
	if (signal > 0 && signal != SIGCHLD)
		on_signal(&info);
	if (signal != SIGCHLD && !busy && event_out.length)
		event_flush();
	event_flush_if_old();
	if (kill_at && now_ms() >= kill_at)
		kill_all();
	release_stuck_calls();
	if (signal != SIGCHLD)
		tasks_each(adopt_orphan);
}

static void record(void)
{
	for (unsigned stops = 1;; stops++) {
		int status;
		if (stops % STOPS_UNTIL_NEWS == 0)
			wait_for_news(true);
		pid_t tid = waitpid(-1, &status, __WALL | WNOHANG);
		if (tid < 0 && errno == ECHILD)
			return;
		if (tid <= 0) {
			wait_for_news(false);
			continue;
		}
		if (!WIFSTOPPED(status)) {
			on_end(tid, status);
			continue;
		}
		struct task *task = task_find(tid);
		if (!task) {
			task = task_new(tid);
			task->seen_at = now_ms();
		}
		on_stop(task, status);
	}
}

// Ctrl-C may have ended the program before this process has looked at its own signals.
static void take_late_signals(void)
{
	struct timespec at_once = {0, 0};
	int signal;
	while ((signal = sigtimedwait(&waited_for, NULL, &at_once)) > 0)
		interrupted = interrupted || signal != SIGCHLD;
}

// ---- starting ----

static struct failure start(char **command)
{
	struct failure failure = program_start(command, TRACE_OPTIONS, &waited_for, &root);
	if (failure.stage)
		return failure;
	struct task *task = task_new(root);
	struct process *process = process_new(root);
	task_attach(task, process);
	process->threads = 1;
	process_set_mm(process, mm_new());
	task->files = files_new();
	return program_go();
}

static int tell_failure(struct failure failure)
{
	char stage[2] = {failure.stage, 0};
	event_begin("failed");
	event_string("stage", stage);
	event_number("errno", (u64)failure.error);
	event_end();
	event_flush();
	return 2;
}

static int check(void)
{
	event_open(1);
	struct failure failure = start(NULL);
	if (!failure.stage) {
		record();
		failure = program_answer();
	}
	if (failure.stage)
		return tell_failure(failure);
	event_begin("start");
	event_number("no_new_privs", no_new_privs_was_needed);
	event_end();
	event_flush();
	return 0;
}

int main(int count, char **arguments)
{
	if (count == 2 && !strcmp(arguments[1], "--check"))
		return check();
	if (count > 1 && !strcmp(arguments[1], "--no-ioctls")) {
		use_ioctls = false;
		arguments++;
		count--;
	}
	if (count < 4 || strcmp(arguments[2], "--")) {
		fprintf(stderr, "usage: ptrace-recorder [--no-ioctls] FD -- COMMAND [ARGUMENT...]\n");
		return 2;
	}
	int fd = atoi(arguments[1]);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	event_open(fd);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct failure failure = start(arguments + 3);
	if (!failure.stage) {
		record();
		if (!root_started)
			failure = program_answer();
	}
	if (failure.stage)
		return tell_failure(failure);
	take_late_signals();
	event_begin("done");
	event_number("status", (u64)root_status);
	event_number("interrupted", killed || (interrupted && WIFSIGNALED(root_status)));
	event_end();
	event_flush();
	return 0;
}
