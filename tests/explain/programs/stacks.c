/* Makes many stacks, each with one guard page below it, runs a little on each, and ends with all of them mapped.
 *
 *   stacks mprotect N    the guard is made of PROT_NONE
 *   stacks madvise N     the guard is made of guard markers: MADV_GUARD_INSTALL
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static const size_t PAGE = 4096;
static const size_t SIZE = 16 * 4096;

static ucontext_t caller;
static long ran;

static void work(void)
{
	volatile char frame[5000];

	memset((char *)frame, 1, sizeof(frame));
	ran += frame[17];
}

int main(int argc, char **argv)
{
	long count = argc == 3 ? atol(argv[2]) : 0;
	int guards = argc == 3 && strcmp(argv[1], "madvise") == 0;

	for (long i = 0; i < count; i++) {
		char *stack = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		int refused = stack == MAP_FAILED;

		if (!refused)
			refused = guards ? madvise(stack, PAGE, MADV_GUARD_INSTALL) : mprotect(stack, PAGE, PROT_NONE);
		if (refused) {
			perror("stack");
			return 1;
		}

		ucontext_t coroutine;

		getcontext(&coroutine);
		coroutine.uc_stack.ss_sp = stack;
		coroutine.uc_stack.ss_size = SIZE;
		coroutine.uc_link = &caller;
		makecontext(&coroutine, work, 0);
		swapcontext(&caller, &coroutine);
	}
	return ran == count ? 0 : 2;
}
