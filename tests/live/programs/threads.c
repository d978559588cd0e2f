// SPDX-License-Identifier: GPL-2.0-or-later
// Threads that map and unmap at the same time, so that each reuses what another has just given back.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

static void *run(void *argument)
{
	unsigned seed = (unsigned)(long)argument;
	for (int i = 0; i < 150; i++) {
		size_t size = 4096UL * (1 + (unsigned)rand_r(&seed) % 8);
		char *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		at[0] = 1;
		if (rand_r(&seed) % 4 == 0) {
			at = mremap(at, size, size + 8192, MREMAP_MAYMOVE);
			size += 8192;
		}
		munmap(at, size);
	}
	return NULL;
}

int main(void)
{
	pthread_t threads[4];
	for (long i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, run, (void *)i);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
