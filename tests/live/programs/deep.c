// SPDX-License-Identifier: GPL-2.0-or-later
// A call below functions that keep no frame pointer, one of which saves registers and has a large frame.
#include <string.h>
#include <sys/mman.h>

__attribute__((noinline)) static int inner(char *text, int more)
{
	void *memory = mmap(0, 4096 * 77, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return munmap(memory, 4096 * 77) + text[more];
}

__attribute__((noinline)) static int middle(int count)
{
	char text[3000];
	memset(text, count, sizeof text);
	int sum = 0;
	for (int i = 0; i < count; i++)
		sum += inner(text, i) * count + text[sum & 7];
	return sum;
}

__attribute__((noinline)) int outer(int count)
{
	return middle(count) + 1;
}

int main(int count, char **words)
{
	(void)words;
	return outer(count) == 0;
}
