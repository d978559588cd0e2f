/* Makes COUNT random memory calls from SEED, on a small arena and where the kernel likes, and writes to random pages.
 * Most calls are reasonable, some are not.  Build it static, so that no library lies beside what the kernel chooses. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARENA 0x10000000000UL
#define PAGES 48
#define PAGE 4096UL
#define SEAL 462

static uint64_t state;
static sigjmp_buf back;
static volatile int touching;
static int descriptors[6];
static unsigned long elsewhere[16];

static unsigned draw(unsigned limit)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (unsigned)(state >> 11) % limit;
}

static void on_fault(int number)
{
	(void)number;
	if (!touching)
		_exit(4);
	touching = 0;
	siglongjmp(back, 1);
}

static unsigned long place(void)
{
	if (draw(8) == 0)
		return elsewhere[draw(16)];
	return ARENA + draw(PAGES) * PAGE;
}

static unsigned long length(void)
{
	unsigned kind = draw(20);

	if (kind == 0)
		return draw(2) ? 0 : 1 + draw(5000);
	return (1 + draw(kind < 14 ? 4 : 12)) * PAGE;
}

static int protection(void)
{
	static const int choice[] = {PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE,
				     PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC, PROT_WRITE};
	return choice[draw(7)];
}

static void touch(void)
{
	volatile char *at = (volatile char *)place();
	int write = draw(3);

	if (sigsetjmp(back, 1))
		return;
	touching = 1;
	if (write)
		*at = 1;
	else
		(void)*at;
	touching = 0;
}

static void map(void)
{
	int flags = draw(5) ? MAP_PRIVATE : MAP_SHARED;
	int fd = -1;
	unsigned long addr = 0, result;
	long offset = 0;

	if (draw(3)) {
		addr = ARENA + draw(PAGES) * PAGE;
		flags |= draw(12) ? MAP_FIXED : MAP_FIXED_NOREPLACE;
	} else if (draw(3) == 0) {
		addr = place() + draw(3);
	}
	if (draw(4)) {
		flags |= MAP_ANONYMOUS;
	} else {
		fd = descriptors[draw(6)];
		offset = draw(4) * PAGE;
	}
	if (draw(10) == 0)
		flags |= MAP_NORESERVE;
	if (draw(14) == 0)
		flags |= MAP_POPULATE;
	if (draw(14) == 0)
		flags |= MAP_STACK;
	if (draw(25) == 0)
		flags |= MAP_LOCKED;
	result = (unsigned long)mmap((void *)addr, length(), protection(), flags, fd, offset);
	if (result < ~4095UL && !(addr && flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)))
		elsewhere[draw(16)] = result;
}

static void advise(void)
{
	static const int advice[] = {MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
				     MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_RANDOM,
				     MADV_SEQUENTIAL, MADV_NORMAL, MADV_DONTNEED, MADV_FREE, MADV_WILLNEED, MADV_COLD,
				     22 /* POPULATE_READ */, 23 /* POPULATE_WRITE */, 102 /* GUARD_INSTALL */,
				     103 /* GUARD_REMOVE */, 24 /* DONTNEED_LOCKED */, 55};
	madvise((void *)place(), length(), advice[draw(sizeof advice / sizeof *advice)]);
}

static void move(void)
{
	int flags = draw(4) ? MREMAP_MAYMOVE : 0;
	unsigned long old = length(), new = draw(3) ? old : length(), target = 0;

	if (draw(2)) {
		flags |= MREMAP_FIXED;
		target = ARENA + draw(PAGES) * PAGE;
	}
	if (draw(6) == 0)
		flags |= 4 /* DONTUNMAP */;
	new = (unsigned long)syscall(SYS_mremap, place(), old, new, flags, target);
	if (new < ~4095UL && !target)
		elsewhere[draw(16)] = new;
}

static void bind(void)
{
	unsigned long nodes = 1;
	int mode = draw(3) * 2;

	syscall(SYS_mbind, place(), length(), mode, mode == 2 ? &nodes : NULL, mode == 2 ? 8 : 0, 0);
}

static void step(int deep)
{
	unsigned kind = draw(100);

	if (kind < 24)
		map();
	else if (kind < 36)
		munmap((void *)place(), length());
	else if (kind < 54)
		mprotect((void *)place(), length(), protection());
	else if (kind < 66)
		advise();
	else if (kind < 74)
		move();
	else if (kind < 77)
		mlock((void *)place(), length());
	else if (kind < 79)
		munlock((void *)place(), length());
	else if (kind < 80)
		syscall(SYS_mlock2, place(), length(), 1);
	else if (kind < 83)
		bind();
	else if (kind < 84 && getenv("SEALS"))
		syscall(SEAL, place(), length(), 0);
	else if (kind < 86)
		sbrk((long)(draw(7) - 2) * 4096);
	else if (kind < 87 && deep) {
		pid_t child = fork();

		if (child == 0) {
			for (int i = 0; i < 40; i++)
				step(0);
			_exit(0);
		}
		waitpid(child, NULL, 0);
	} else
		touch();
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_fault};
	int count = argc > 2 ? atoi(argv[2]) : 1000;

	state = argc > 1 ? strtoull(argv[1], NULL, 10) * 2654435761u + 88172645463325252u : 1;
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (int i = 0; i < 6; i++) {
		if (i < 4)
			descriptors[i] = memfd_create("random", 0);
		else
			descriptors[i] = open("/proc/self/exe", O_RDONLY);
		if (i < 4 && ftruncate(descriptors[i], 64 * PAGE))
			return 3;
	}
	descriptors[3] = dup(descriptors[2]);
	for (int i = 0; i < 16; i++)
		elsewhere[i] = ARENA;
	for (int i = 0; i < count; i++)
		step(1);
	return 0;
}
