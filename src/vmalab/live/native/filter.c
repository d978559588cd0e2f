// SPDX-License-Identifier: GPL-2.0-or-later
// The seccomp filter: only the calls that are recorded stop; all others run at full speed.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "numbers.h"
#include "recorder.h"

#define MAX_STEPS 400
#define FIRST_X32_CALL 0x40000000U

static struct sock_filter steps[MAX_STEPS];
static unsigned short count;

static void step(unsigned short code, unsigned char if_true, unsigned char if_false, unsigned value)
{
	steps[count++] = (struct sock_filter){code, if_true, if_false, value};
}

static void load(size_t offset)
{
	step(BPF_LD | BPF_W | BPF_ABS, 0, 0, (unsigned)offset);
}

static void load_argument(int index)
{
	load(offsetof(struct seccomp_data, args) + 8 * (size_t)index);
}

static void finish(unsigned action)
{
	step(BPF_RET | BPF_K, 0, 0, action);
}

static void stop_if_equal(unsigned value)
{
	step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, value);
	finish(SECCOMP_RET_TRACE);
}

/* Stops at this call if the low half of an argument is one of the values. */
static void stop_at_call_if(unsigned call, int argument, const unsigned *values, size_t number)
{
	step(BPF_JMP | BPF_JEQ | BPF_K, 0, (unsigned char)(2 * number + 2), call);
	load_argument(argument);
	for (size_t i = 0; i < number; i++)
		stop_if_equal(values[i]);
	finish(SECCOMP_RET_ALLOW);
}

static void stop_at_conditional_calls(void)
{
	static const unsigned options[] = {OPTION_SET_MM, OPTION_SET_THP_DISABLE, OPTION_SET_MDWE, OPTION_SET_MEMORY_MERGE,
					   OPTION_SET_VMA};
	static const unsigned requests[] = {REQUEST_UFFD_API, REQUEST_UFFD_REGISTER, REQUEST_UFFD_UNREGISTER};
	static const unsigned commands[] = {COMMAND_DUPFD, COMMAND_DUPFD_CLOEXEC, COMMAND_ADD_SEALS};
	static const unsigned vdso[] = {0x2001, 0x2002, 0x2003};
	stop_at_call_if(SYS_prctl, 0, options, sizeof options / sizeof *options);
	stop_at_call_if(SYS_ioctl, 1, requests, sizeof requests / sizeof *requests);
	stop_at_call_if(SYS_fcntl, 1, commands, sizeof commands / sizeof *commands);
	stop_at_call_if(SYS_arch_prctl, 0, vdso, sizeof vdso / sizeof *vdso);
	// prlimit64 with a new limit: either half of the pointer is not zero
	step(BPF_JMP | BPF_JEQ | BPF_K, 0, 6, SYS_prlimit64);
	load_argument(2);
	step(BPF_JMP | BPF_JEQ | BPF_K, 0, 3, 0);
	load(offsetof(struct seccomp_data, args) + 8 * 2 + 4);
	step(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
	finish(SECCOMP_RET_ALLOW);
	finish(SECCOMP_RET_TRACE);
}

static void build(void)
{
	static const unsigned char stops_32bit[] = {45, 90, 91, 125, 192};	// brk mmap munmap mprotect mmap2
	static const int conditional[] = {SYS_prctl, SYS_ioctl, SYS_fcntl, SYS_arch_prctl, SYS_prlimit64};
	count = 0;
	load(offsetof(struct seccomp_data, arch));
	step(BPF_JMP | BPF_JEQ | BPF_K, sizeof stops_32bit * 2 + 2, 0, AUDIT_ARCH_X86_64);
	load(offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < sizeof stops_32bit; i++)
		stop_if_equal(stops_32bit[i]);
	finish(SECCOMP_RET_ALLOW);
	load(offsetof(struct seccomp_data, nr));
	step(BPF_JMP | BPF_JGE | BPF_K, 0, 1, FIRST_X32_CALL);
	finish(SECCOMP_RET_ALLOW);
	for (int number = 0; number < LAST_CALL; number++) {
		bool skip = !call_find(number);
		for (size_t i = 0; i < sizeof conditional / sizeof *conditional; i++)
			skip = skip || number == conditional[i];
		if (!skip)
			stop_if_equal((unsigned)number);
	}
	stop_at_conditional_calls();
	finish(SECCOMP_RET_ALLOW);
}

int filter_install(bool *no_new_privs)
{
	build();
	struct sock_fprog program = {.len = count, .filter = steps};
	*no_new_privs = false;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program) == 0)
		return 0;
	if (errno == EACCES) {	// not privileged: the kernel wants the promise that nobody becomes so
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
			return errno;
		*no_new_privs = true;
		if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program) == 0)
			return 0;
	}
	return errno;
}
