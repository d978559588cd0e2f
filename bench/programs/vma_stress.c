// SPDX-License-Identifier: GPL-2.0-or-later
// Threads that map, unmap, protect, advise, lock, move and write to one small region, each wherever it likes: what
// stress-ng --vma does.  Argument: how many calls each thread makes.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096UL
#define PAGES 64UL
#define THREADS 4

static char *region;
static long calls;
static __thread sigjmp_buf back;
static __thread volatile int touching;

static void on_fault(int number)
{
	if (touching)
		siglongjmp(back, 1);
	signal(number, SIG_DFL);
}

static void touch(char *at, int write)
{
	touching = 1;
	if (sigsetjmp(back, 1) == 0) {
		if (write)
			*(volatile char *)at = 1;
		else
			(void)*(volatile char *)at;
	}
	touching = 0;
}

static void *work(void *seed)
{
	unsigned state = (unsigned)(uintptr_t)seed;
	static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE | PROT_EXEC};
	static const int advices[] = {MADV_NORMAL, MADV_DONTNEED, MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTFORK, MADV_DOFORK,
				      MADV_DONTDUMP, MADV_DODUMP};
	for (long i = 0; i < calls; i++) {
		unsigned draw = (unsigned)rand_r(&state);
		unsigned long first = draw % PAGES, count = 1 + draw / PAGES % (PAGES - first);
		char *at = region + first * PAGE;
		int protection = protections[rand_r(&state) % 4], flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
		switch (rand_r(&state) % 10) {
		case 0: mmap(at, count * PAGE, protection, flags, -1, 0); break;
		case 1: mmap(at, count * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0); break;
		case 2: munmap(at, count * PAGE); break;
		case 3: mprotect(at, count * PAGE, protection); break;
		case 4: madvise(at, count * PAGE, advices[rand_r(&state) % 8]); break;
		case 5: mlock(at, PAGE); break;
		case 6: munlock(at, count * PAGE); break;
		case 7: mremap(at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, region + rand_r(&state) % PAGES * PAGE); break;
		default: touch(at, draw & 1); break;
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];
	struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
	calls = argc > 1 ? atol(argv[1]) : 5000;
	sigaction(SIGSEGV, &action, NULL);
	region = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	region += PAGE;
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)(i + 1));
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
