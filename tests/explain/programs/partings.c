/* Pages that a fork shares: one that both write to, one that the parent alone does, one that was only read. */
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT ((char *)0x10000000)
#define PAGE 4096

int main(void)
{
	volatile char *at = mmap(AT, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (at != AT)
		return 1;
	at[0] = 1;
	at[PAGE] = 1;
	(void)at[2 * PAGE];
	pid_t child = fork();
	if (child == 0) {
		at[0] = 2;
		at[2 * PAGE] = 2;
		madvise(AT + PAGE, PAGE, MADV_DONTNEED);
		_exit(0);
	}
	waitpid(child, 0, 0);
	at[0] = 3;
	at[PAGE] = 3;
	return munmap(AT, 4 * PAGE);
}
