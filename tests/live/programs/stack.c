// SPDX-License-Identifier: GPL-2.0-or-later
// Uses much of its stack, then makes a call.
#include <string.h>
#include <sys/mman.h>

static int deep(int levels)
{
	volatile char room[65536];
	memset((char *)room, levels, sizeof room);
	return levels ? deep(levels - 1) + room[0] : room[1];
}

int main(void)
{
	int sum = deep(20);
	mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return sum > 0 ? 0 : 1;
}
