// SPDX-License-Identifier: GPL-2.0-or-later
// Maps one path seven times: through two opens, dups of the first, and a descriptor number that is used again.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static void map(int fd)
{
	mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
}

int main(int count, char **arguments)
{
	(void)count;
	int first = open(arguments[1], O_RDONLY), second = open(arguments[1], O_RDWR);
	int before = dup(first);
	map(before);
	map(first);
	map(second);
	map(fcntl(first, F_DUPFD, 50));
	dup2(second, 60);
	map(60);
	close(first);
	int again = open(arguments[1], O_RDONLY);
	map(again);
	map(before);
	return again != first;
}
