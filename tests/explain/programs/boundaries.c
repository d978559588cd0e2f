/* Makes pairs of VMAs that touch and differ in one thing each, and prints a line for each pair: the address where they
 * touch, and what differs.  A pair that this kernel cannot make is printed as "skip", one that it has merged after all
 * as "merged".  With an argument it then waits. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#define PAGE 4096UL
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)

struct uffd_api {
	uint64_t api, features, ioctls;
};
struct uffd_register {
	uint64_t start, len, mode, ioctls;
};

static char *slot = (char *)0x100000000000;
static int file, again;

/* Four pages with room around them: the boundary is in the middle. */
static char *fresh(void)
{
	slot += 64 * PAGE;
	return slot;
}

/* Whether the kernel shows VMAs that end and begin at an address. */
static int is_boundary(unsigned long at)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[8192];
	unsigned long start, end;
	int ends = 0, begins = 0;

	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) != 2)
			continue;
		ends |= end == at;
		begins |= start == at;
	}
	if (smaps)
		fclose(smaps);
	return ends && begins;
}

static void tell(const char *what, char *at, int failed)
{
	if (failed)
		printf("skip %s\n", what);
	else if (!is_boundary((unsigned long)at))
		printf("merged %s\n", what);
	else
		printf("%lx %s\n", (unsigned long)at, what);
}

static char *pages(int flags)
{
	return mmap(fresh(), 4 * PAGE, RW, ANON | flags, -1, 0);
}

static void advice(const char *what, int value)
{
	char *at = pages(0);

	tell(what, at + 2 * PAGE, madvise(at + 2 * PAGE, 2 * PAGE, value));
}

static void mapped(const char *what, int flags, int other_flags)
{
	char *at = fresh();

	mmap(at, 2 * PAGE, RW, MAP_FIXED | flags, -1, 0);
	tell(what, at + 2 * PAGE, mmap(at + 2 * PAGE, 2 * PAGE, RW, MAP_FIXED | other_flags, -1, 0) == MAP_FAILED);
}

static void files(const char *what, int fd, long offset)
{
	char *at = fresh();

	mmap(at, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0);
	if (fd < 0)
		mmap(at + 2 * PAGE, 2 * PAGE, PROT_READ, ANON, -1, 0);
	else
		mmap(at + 2 * PAGE, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, offset);
	tell(what, at + 2 * PAGE, 0);
}

static int watch(int fd, char *at, int mode)
{
	struct uffd_register range = {.start = (uint64_t)at, .len = 2 * PAGE, .mode = mode};

	return ioctl(fd, 0xc020aa00, &range);
}

static int new_uffd(void)
{
	struct uffd_api api = {.api = 0xaa};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd >= 0 && ioctl(fd, 0xc018aa3f, &api))
		return -1;
	return fd;
}

static void userfaults(void)
{
	int one = new_uffd(), two = new_uffd();
	char *at = pages(0);

	tell("uffd-missing", at + 2 * PAGE, watch(one, at + 2 * PAGE, 1));
	at = pages(0);
	tell("uffd-wp", at + 2 * PAGE, watch(one, at + 2 * PAGE, 2));
	at = pages(0);
	tell("uffd-two", at + 2 * PAGE, watch(one, at, 1) || watch(two, at + 2 * PAGE, 1));
}

static void written(void)
{
	char *at = pages(0), *other;

	/* Written to while one of them is not copied on fork, then made equal. */
	madvise(at + 2 * PAGE, 2 * PAGE, MADV_DONTFORK);
	at[0] = at[2 * PAGE] = 1;
	madvise(at + 2 * PAGE, 2 * PAGE, MADV_DOFORK);
	tell("anon-vma", at + 2 * PAGE, 0);
	/* Written to, then read-only: memory stays committed, unlike that of a neighbour never written to. */
	at = mmap(fresh(), 2 * PAGE, RW, ANON, -1, 0);
	at[0] = 1;
	mprotect(at, 2 * PAGE, PROT_READ);
	mmap(at + 2 * PAGE, 2 * PAGE, PROT_READ, ANON, -1, 0);
	tell("account", at + 2 * PAGE, 0);
	/* The same for memory that was not written to while it could have been: nothing is committed on either side, so that
	 * only a third difference is left. */
	at = mmap(fresh(), 2 * PAGE, RW, ANON, -1, 0);
	mprotect(at, 2 * PAGE, PROT_READ);
	mmap(at + 2 * PAGE, 2 * PAGE, PROT_READ | PROT_EXEC, ANON, -1, 0);
	tell("executable", at + 2 * PAGE, 0);
	/* Written to elsewhere, then moved beside memory never written to: the offset remembers. */
	at = pages(0);
	munmap(at + 2 * PAGE, 2 * PAGE);
	other = mmap(fresh(), 2 * PAGE, RW, ANON, -1, 0);
	other[0] = 1;
	mremap(other, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + 2 * PAGE);
	tell("anon-offset", at + 2 * PAGE, 0);
	/* In a child, memory written to before the fork does not merge with new memory. */
	at = pages(0);
	munmap(at + 2 * PAGE, 2 * PAGE);
	at[0] = 1;
	fflush(stdout);
	if (fork() == 0) {
		mmap(at + 2 * PAGE, 2 * PAGE, RW, ANON, -1, 0);
		tell("child", at + 2 * PAGE, 0);
		fflush(stdout);
		_exit(0);
	}
	wait(NULL);
}

int main(int argc, char **argv)
{
	unsigned long node = 1;
	long key;
	char *at;

	(void)argv;
	file = open("/proc/self/exe", O_RDONLY);
	again = open("/proc/self/exe", O_RDONLY);
	at = pages(0);
	tell("permissions", at + 2 * PAGE, mprotect(at + 2 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
	files("file-anonymous", -1, 0);
	files("file-twice", again, 2 * PAGE);
	files("file-offset", file, 0);
	at = pages(0);
	tell("policy", at + 2 * PAGE, syscall(SYS_mbind, at + 2 * PAGE, 2 * PAGE, 2, &node, 8UL, 0));
	at = pages(0);
	tell("policies", at + 2 * PAGE,
	     syscall(SYS_mbind, at, 2 * PAGE, 1, &node, 8UL, 0) ||
		     syscall(SYS_mbind, at + 2 * PAGE, 2 * PAGE, 2, &node, 8UL, 0));
	at = pages(0);
	tell("locked", at + 2 * PAGE, mlock(at + 2 * PAGE, 2 * PAGE));
	at = pages(0);
	tell("locked-on-fault", at + 2 * PAGE, mlock2(at + 2 * PAGE, 2 * PAGE, MLOCK_ONFAULT));
	at = pages(0);
	tell("sealed", at + 2 * PAGE, syscall(462, at + 2 * PAGE, 2 * PAGE, 0));
	advice("dontfork", MADV_DONTFORK);
	advice("hugepage", MADV_HUGEPAGE);
	advice("nohugepage", MADV_NOHUGEPAGE);
	advice("ksm", MADV_MERGEABLE);
	advice("dontdump", MADV_DONTDUMP);
	advice("wipeonfork", MADV_WIPEONFORK);
	advice("sequential", MADV_SEQUENTIAL);
	advice("random", MADV_RANDOM);
	userfaults();
	at = pages(0);
	tell("name", at + 2 * PAGE, prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at + 2 * PAGE, 2 * PAGE, "a name"));
	at = pages(0);
	key = syscall(SYS_pkey_alloc, 0UL, 0UL);
	tell("key", at + 2 * PAGE, key < 0 || syscall(SYS_pkey_mprotect, at + 2 * PAGE, 2 * PAGE, RW, key));
	at = pages(0);
	tell("two-things", at + 2 * PAGE,
	     madvise(at, 2 * PAGE, MADV_DONTFORK) || madvise(at + 2 * PAGE, 2 * PAGE, MADV_DONTDUMP));
	mapped("noreserve", MAP_PRIVATE | MAP_ANONYMOUS, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
	mapped("shared-private", MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS);
	mapped("shared-shared", MAP_SHARED | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS);
	mapped("droppable", MAP_PRIVATE | MAP_ANONYMOUS, 8 | MAP_ANONYMOUS);
	mapped("growsdown", MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, MAP_PRIVATE | MAP_ANONYMOUS);
	written();
	fflush(stdout);
	if (argc > 1)
		pause();
	return 0;
}
