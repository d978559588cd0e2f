// SPDX-License-Identifier: GPL-2.0-or-later
// Calls from as many different stacks: two to the power of the first argument.  The path to each is its second argument.
#include <stdlib.h>
#include <sys/mman.h>

__attribute__((noinline)) static int walk(int steps, unsigned long path)
{
	if (steps == 0)
		return madvise((void *)0x10000, path << 12, 1000);
	int left = walk(steps - 1, path << 1);
	int right = walk(steps - 1, path << 1 | 1);
	return left + right;
}

int main(int count, char **words)
{
	return walk(count > 1 ? atoi(words[1]) : 0, 0) == 0;
}
