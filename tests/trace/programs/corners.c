/* Calls that real programs make rarely: huge pages, alignment, limits, /dev/zero, seals, and process-wide switches. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1UL << 20)
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define AT ((char *)0x10000000000UL)

static char *map(unsigned long length, int prot, int flags)
{
	return mmap(NULL, length, prot, flags, -1, 0);
}

static void huge_pages(void)
{
	int libc = open("/usr/lib/x86_64-linux-gnu/libc.so.6", O_RDONLY);

	map(PAGE, RW, ANON | MAP_HUGETLB);
	map(PAGE, RW, ANON | MAP_HUGETLB | 30 << 26);
	map(PAGE, RW, ANON | MAP_HUGETLB | 25 << 26);
	mmap(AT + 2 * MIB, PAGE, RW, ANON | MAP_FIXED | MAP_HUGETLB, -1, 0);
	map(2 * MIB, RW, ANON);
	map(2 * MIB + PAGE, RW, ANON);
	map(8 * MIB, RW, ANON);
	mmap(NULL, 3 * MIB, PROT_READ, MAP_PRIVATE, libc, 0);
	mmap(NULL, 2 * MIB, PROT_READ, MAP_PRIVATE, libc, PAGE);
}

static void zero(void)
{
	int fd = open("/dev/zero", O_RDWR);
	char *private = mmap(NULL, 4 * PAGE, RW, MAP_PRIVATE, fd, 0);

	memset(private, 1, 4 * PAGE);
	mprotect(private, PAGE, PROT_READ);
	mmap(NULL, 4 * PAGE, RW, MAP_SHARED, fd, 0);
	map(PAGE, RW, ANON | MAP_32BIT);
	map(PAGE, RW, ANON | MAP_32BIT);
}

static void limits(void)
{
	struct rlimit locked = {MIB, MIB}, space = {256 * MIB, 256 * MIB};

	mlockall(MCL_CURRENT | MCL_FUTURE);
	map(4 * PAGE, RW, ANON);
	sbrk(99999);
	munlockall();
	setrlimit(RLIMIT_MEMLOCK, &locked);
	mlock(AT, 8 * PAGE);
	setrlimit(RLIMIT_AS, &space);
	map(512 * MIB, RW, ANON);
	map(MIB, RW, ANON);
}

static void switches(void)
{
	int sealed = memfd_create("sealed", MFD_ALLOW_SEALING);

	prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0);
	map(4 * PAGE, RW, ANON);
	sbrk(99999);
	prctl(67, 0, 0, 0, 0);
	prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0);
	map(4 * PAGE, RW | PROT_EXEC, ANON);
	mprotect(AT, PAGE, RW | PROT_EXEC);
	mprotect(AT, PAGE, PROT_READ | PROT_EXEC);
	if (ftruncate(sealed, 8 * PAGE) == 0)
		fcntl(sealed, F_ADD_SEALS, 16 /* F_SEAL_FUTURE_WRITE */);
	mmap(NULL, PAGE, RW, MAP_SHARED, sealed, 0);
	mmap(NULL, PAGE, PROT_READ, MAP_SHARED, sealed, 0);
	mmap(NULL, PAGE, RW, MAP_PRIVATE, sealed, 0);
	personality(READ_IMPLIES_EXEC);
	map(4 * PAGE, PROT_READ, ANON);
	map(4 * PAGE, RW, ANON | MAP_GROWSDOWN);
	remap_file_pages(AT, PAGE, 0, 0, 0);
}

/* A child extends what it has inherited up to memory that nobody has written to: the two merge. */
static void inherited(void)
{
	char *at = map(10 * PAGE, RW, ANON);
	pid_t child;

	munmap(at + PAGE, PAGE);
	at[0] = 1;
	child = fork();
	if (child == 0) {
		mremap(at, PAGE, 2 * PAGE, 0);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	mremap(at, PAGE, 2 * PAGE, 0);
}

int main(void)
{
	inherited();
	mmap(AT, 8 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
	huge_pages();
	zero();
	limits();
	switches();
	return 0;
}
