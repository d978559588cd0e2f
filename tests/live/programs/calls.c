// SPDX-License-Identifier: GPL-2.0-or-later
// One of each call whose pointers the recorder follows.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	char *area = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	prctl(0x53564d41, 0, area, 4096, "a name");
	unsigned long layout[13] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 | 14L << 32};
	prctl(35, 14, layout, sizeof layout, 0);
	struct rlimit limit;
	getrlimit(RLIMIT_STACK, &limit);
	limit.rlim_cur = 4 << 20;
	setrlimit(RLIMIT_STACK, &limit);
	unsigned long nodes[2] = {1, 0};
	syscall(SYS_mbind, area, 8192, 1, nodes, 65, 0);
	int memory = memfd_create("of\nmine", 0);
	if (ftruncate(memory, 8192) == 0)
		mmap(0, 8192, PROT_READ, MAP_SHARED, memory, 0);
	int segment = shmget(0x1234, 12288, IPC_CREAT | 0600);
	void *attached = shmat(segment, 0, 0);
	struct shmid_ds set = {.shm_perm = {.uid = geteuid(), .gid = getegid(), .mode = 0640}};
	shmctl(segment, IPC_SET, &set);
	shmctl(segment, IPC_RMID, 0);
	shmdt(attached);
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	struct iovec ranges[2] = {{area, 4096}, {area + 8192, 4096}};
	syscall(SYS_process_madvise, self, ranges, 2, MADV_COLD, 0);
	int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1);
	struct uffdio_api api = {.api = UFFD_API};
	ioctl(faults, UFFDIO_API, &api);
	struct uffdio_register registration = {{(unsigned long)area, 65536}, UFFDIO_REGISTER_MODE_MISSING, 0};
	ioctl(faults, UFFDIO_REGISTER, &registration);
	int copy = dup(faults);
	close(faults);
	close(copy);
	int device = open("/dev/zero", O_RDWR);
	mmap(0, 4096, PROT_READ, MAP_PRIVATE, device, 0);
	if (vfork() == 0)
		_exit(0);
	wait(0);
	return 0;
}
