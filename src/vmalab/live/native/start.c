// SPDX-License-Identifier: GPL-2.0-or-later
// Starts the program: with the signals, limits and descriptors that this process was given, traced and filtered.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "recorder.h"

static int answer_pipe = -1, go_pipe = -1;
static struct sigaction saved_actions[NSIG];
static sigset_t saved_mask;
static struct rlimit saved_files;

bool no_new_privs_was_needed;

static const int ended_by[] = {SIGINT, SIGTERM, SIGHUP};
static const int ignored[] = {SIGPIPE, SIGTSTP, SIGTTIN, SIGTTOU, SIGQUIT};

static void save_signals(sigset_t *waited_for)
{
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	for (size_t i = 0; i < sizeof ended_by / sizeof *ended_by; i++) {
		struct sigaction given;
		sigaction(ended_by[i], NULL, &given);
		if (given.sa_handler != SIG_IGN)	// nohup stays nohup
			sigaddset(&blocked, ended_by[i]);
	}
	for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
		struct sigaction ignore = {.sa_handler = SIG_IGN};
		sigaction(ignored[i], &ignore, &saved_actions[ignored[i]]);
	}
	struct sigaction standard = {.sa_handler = SIG_DFL};
	sigaction(SIGCHLD, &standard, &saved_actions[SIGCHLD]);
	sigprocmask(SIG_BLOCK, &blocked, &saved_mask);
	*waited_for = blocked;
	getrlimit(RLIMIT_NOFILE, &saved_files);
	struct rlimit most = {saved_files.rlim_max, saved_files.rlim_max};
	setrlimit(RLIMIT_NOFILE, &most);
}

static void restore_signals(void)
{
	setrlimit(RLIMIT_NOFILE, &saved_files);
	for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
		sigaction(ignored[i], &saved_actions[ignored[i]], NULL);
	sigaction(SIGCHLD, &saved_actions[SIGCHLD], NULL);
	sigprocmask(SIG_SETMASK, &saved_mask, NULL);
}

static void report_failure(int fd, char stage, int error)
{
	struct failure failure = {stage, error};
	if (write(fd, &failure, sizeof failure) < 0)
		_exit(3);
	_exit(127);
}

// The child: waits until it is traced, then becomes the program.
static void become(char **command, int go, int answer)
{
	char byte;
	bool no_new_privs;
	restore_signals();
	if (read(go, &byte, 1) != 1)
		_exit(127);
	int error = filter_install(&no_new_privs);
	if (error)
		report_failure(answer, 'f', error);
	if (no_new_privs && write(answer, "n", 1) != 1)
		_exit(3);
	if (!command)
		_exit(0);
	execvp(command[0], command);
	report_failure(answer, 'e', errno);
}

struct failure program_start(char **command, long trace_options, sigset_t *waited_for, pid_t *started)
{
	int go[2], answer[2];
	if (pipe2(go, O_CLOEXEC) || pipe2(answer, O_CLOEXEC | O_NONBLOCK))
		return (struct failure){'p', errno};
	save_signals(waited_for);
	pid_t child = fork();
	if (child < 0)
		return (struct failure){'p', errno};
	if (child == 0) {
		close(go[1]);
		become(command, go[0], answer[1]);
	}
	close(go[0]);
	close(answer[1]);
	answer_pipe = answer[0];
	go_pipe = go[1];
	*started = child;
	if (ptrace(PTRACE_SEIZE, child, 0L, trace_options)) {
		struct failure failure = {'t', errno};
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		return failure;
	}
	return (struct failure){0, 0};
}

struct failure program_go(void)
{
	ssize_t written = write(go_pipe, "", 1);
	struct failure failure = {written == 1 ? 0 : 'p', errno};
	close(go_pipe);
	return failure;
}

struct failure program_answer(void)
{
	struct failure failure = {0, 0};
	char bytes[32];
	ssize_t length = read(answer_pipe, bytes, sizeof bytes);
	if (length > 0 && bytes[0] == 'n')
		no_new_privs_was_needed = true;
	if (length >= (ssize_t)sizeof failure)
		memcpy(&failure, bytes + length - sizeof failure, sizeof failure);
	return failure;
}
