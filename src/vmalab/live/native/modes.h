/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a recorder treats a system call. */
#ifndef MODES_H
#define MODES_H

enum call_mode {
	AT_ENTRY,		/* changes descriptors: nothing to wait for */
	DESCRIPTOR,		/* changes descriptors, its result says how */
	MEMORY,			/* one at a time in an address space */
	NEW_TASK,
};

struct call {
	int number;
	const char *name;
	int arguments;
	enum call_mode mode;
};

#endif
