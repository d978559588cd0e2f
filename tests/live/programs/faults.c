// SPDX-License-Identifier: GPL-2.0-or-later
// Faults at the same place over and over, and does not end on SIGTERM.
#include <signal.h>
#include <stdio.h>

static void again(int signal)
{
	(void)signal;
}

int main(void)
{
	signal(SIGSEGV, again);
	signal(SIGTERM, SIG_IGN);
	puts("up");
	fflush(stdout);
	*(volatile char *)8 = 1;
	return 0;
}
