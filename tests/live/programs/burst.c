// SPDX-License-Identifier: GPL-2.0-or-later
// Touches many pages without a call between them, then makes calls.  Argument: how many pages.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int count, char **words)
{
	size_t pages = count > 1 ? strtoul(words[1], NULL, 10) : 100000;
	volatile char *memory = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || madvise((void *)memory, pages << 12, MADV_NOHUGEPAGE))
		return 1;
	for (size_t i = 0; i < pages; i++)
		memory[i << 12] = 1;
	for (int i = 0; i < 20; i++)
		usleep(10000);
	for (int i = 0; i < 10; i++)
		mprotect((void *)memory, 4096 << i, PROT_READ | i % 2 * PROT_WRITE);
	return 0;
}
