// SPDX-License-Identifier: GPL-2.0-or-later
// Writes to one mapping, reads another, and leaves a third; then changes the first half of each, and forks.
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (16 * 4096)

static char *map(long address)
{
	return mmap((void *)address, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

int main(void)
{
	char *written = map(0x10000000), *only_read = map(0x20000000), *untouched = map(0x30000000);
	written[12 * 4096] = 1;
	volatile char value = only_read[12 * 4096];
	(void)value;
	mprotect(written, SIZE / 2, PROT_READ);
	mprotect(only_read, SIZE / 2, PROT_READ);
	mprotect(untouched, SIZE / 2, PROT_READ);
	char *late = map(0x40000000);
	late[0] = 1;
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	waitpid(child, 0, 0);
	return 0;
}
