// SPDX-License-Identifier: GPL-2.0-or-later
// A program for the import of logs: threads one after the other, a fork that runs another program, and memory calls
// whose results do not depend on the run when addresses are not randomised.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) exit(100); } while (0)

static void *thread(void *argument)
{
	char *area = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(area != MAP_FAILED);
	area[0] = 1;
	CHECK(mprotect(area, 4096, PROT_READ) == 0);
	CHECK(munmap(area, 1 << 20) == 0);
	return argument;
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return 0;
	for (int i = 0; i < 3; i++) {
		pthread_t id;
		CHECK(pthread_create(&id, NULL, thread, NULL) == 0);
		pthread_join(id, NULL);
	}
	int file = open(argv[0], O_RDONLY | O_CLOEXEC);
	char *text = mmap(NULL, 8192, PROT_READ, MAP_SHARED, file, 4096);
	CHECK(text != MAP_FAILED && close(file) == 0);
	char *area = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	area = mremap(area, 8192, 65536, MREMAP_MAYMOVE);
	CHECK(area != MAP_FAILED);
	CHECK(madvise(area, 65536, MADV_DONTNEED) == 0 && madvise(area, 4096, MADV_DONTFORK) == 0);
	CHECK(mprotect(area + 8192, 4096, PROT_NONE) == 0);
	CHECK(munmap((void *)123, 1) == -1);
	struct rlimit limit = {1UL << 40, RLIM_INFINITY};
	CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
	CHECK(mmap(NULL, 1UL << 41, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED);
	int segment = shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600);
	void *attached = shmat(segment, NULL, SHM_RDONLY);
	shmctl(segment, IPC_RMID, NULL);
	CHECK(attached != (void *)-1 && shmdt(attached) == 0);
	int memory = memfd_create("buffer", MFD_CLOEXEC);
	CHECK(ftruncate(memory, 8192) == 0);
	void *fixed = mmap((void *)0x10000000, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, 0);
	CHECK(fixed == (void *)0x10000000);
	pid_t child = fork();
	if (child == 0) {
		munmap(text, 4096);
		execl(argv[0], argv[0], "again", NULL);
		_exit(101);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	return 0;
}
