// SPDX-License-Identifier: GPL-2.0-or-later
// The kernel writes to a page that nobody has touched: first without waiting for it, then it brings the page.
#include <linux/futex.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int other = 0;

	if (page == MAP_FAILED || mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC))
		return 1;
	if (syscall(SYS_futex, &other, FUTEX_WAKE_OP_PRIVATE, 0, 0, page,
		    FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0)) < 0)
		perror("futex");
	return 0;
}
