// SPDX-License-Identifier: GPL-2.0-or-later
// Takes the user stack at each page fault, as a profiler does, in itself and in the command that it becomes.
#include <linux/perf_event.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct perf_event_attr wanted = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof wanted,
		.config = PERF_COUNT_SW_PAGE_FAULTS,
		.sample_period = 1,
		.sample_type = PERF_SAMPLE_CALLCHAIN,
		.inherit = 1,
		.exclude_callchain_kernel = 1,
	};

	if (argc < 2 || syscall(SYS_perf_event_open, &wanted, 0, -1, -1, 0) < 0) {
		perror("perf_event_open");
		return 77;
	}
	execvp(argv[1], argv + 1);
	return 127;
}
