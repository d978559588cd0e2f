// SPDX-License-Identifier: GPL-2.0-or-later
// A thread that is not the first one becomes another program.
#include <pthread.h>
#include <unistd.h>

static void *wait_forever(void *argument)
{
	for (;;)
		pause();
	return argument;
}

static void *become(void *argument)
{
	execl("/bin/echo", "echo", "from a thread", (char *)NULL);
	return argument;
}

int main(void)
{
	pthread_t threads[3];
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, wait_forever, NULL);
	pthread_create(&threads[2], NULL, become, NULL);
	for (;;)
		pause();
}
