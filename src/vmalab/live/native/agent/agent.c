// The agent: runs steps that come over a pipe, in its own small address space, and reports its VMAs after each.
// docs/agent-protocol.md describes what goes over the pipes.  Freestanding: no libc, nothing is mapped behind its back.

typedef unsigned long u64;
typedef long i64;
typedef unsigned int u32;
typedef unsigned char u8;

enum {
	NR_READ = 0,
	NR_WRITE = 1,
	NR_OPEN = 2,
	NR_CLOSE = 3,
	NR_RT_SIGACTION = 13,
	NR_IOCTL = 16,
	NR_CLONE = 56,
	NR_FORK = 57,
	NR_EXECVE = 59,
	NR_WAIT4 = 61,
	NR_SIGALTSTACK = 131,
	NR_PRCTL = 157,
	NR_CLOCK_GETTIME = 228,
	NR_EXIT_GROUP = 231,
	NR_BPF = 321,
};

enum { STEP_READ = -1, STEP_WRITE = -2, STEP_FORK = -3, STEP_WAIT = -4, STEP_READER = -5, STEP_EXEC = -6, STEP_CLOCK = -7 };
enum { STEP_WORD = -8, STEP_PUT = -9 };
enum { READER_NONE, READER_QUERY, READER_BPF };
enum { REPORT_NONE, REPORT_EACH, REPORT_LAST };

#define MAX_STEPS 1024
#define MAX_VMAS 16384
#define SLOTS 64
#define SAME 0xffffffffu
#define FIRST_CHANNEL 10 /* descriptors of channel k: 10 + 2k to read, 11 + 2k to write */

struct step {
	i64 nr;
	u64 args[6];
	u8 from[6]; /* 1 + the slot that an argument comes from; 0 for none */
	u8 to;	    /* 1 + the slot that the result goes to */
	u8 length;  /* of data, which goes to the scratch page first */
	u8 data[64];
};

struct batch {
	u32 count;
	u32 report;
};

struct reply {
	i64 result;
	u64 signal; /* number << 56 | si_code << 48 | address, where a touch was ended by one */
	u32 count;  /* of VMAs, or SAME */
	u32 failed; /* errno of the reader */
};

/* Follows a reply that is not SAME; then come the records between the two. */
struct kept {
	u32 below, above; /* how many of the last list's first and last records stay */
};

struct record {
	u64 start, end, flags, pgoff, ino, anon, chain, extra;
};


struct query {
	u64 size, query_flags, query_addr, start, end, flags, page_size, offset, inode;
	u32 major, minor, name_size, build_id_size;
	u64 name, build_id;
};

static struct step steps[MAX_STEPS] __attribute__((aligned(4096)));
static struct record now[MAX_VMAS] __attribute__((aligned(4096)));
static struct record before[MAX_VMAS];
static u8 out[1 << 20];
static u8 signal_stack[65536] __attribute__((aligned(4096)));
static u8 child_stack[4096] __attribute__((aligned(4096)));
u8 scratch[4096] __attribute__((aligned(4096)));
static i64 slots[SLOTS], last_result;
static u32 count_before, out_used;
static int in_fd = FIRST_CHANNEL, out_fd = FIRST_CHANNEL + 1, maps_fd = -1, link_fd = -1;
static int reader = READER_QUERY;
static volatile u64 signalled;

static inline i64 call(i64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 r10 asm("r10") = d;
	register u64 r8 asm("r8") = e;
	register u64 r9 asm("r9") = f;
	i64 result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

static void die(int status)
{
	call(NR_EXIT_GROUP, status, 0, 0, 0, 0, 0);
	__builtin_unreachable();
}

void *memcpy(void *to, const void *from, u64 n)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
	return to;
}

void *memset(void *to, int value, u64 n)
{
	void *start = to;

	asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	return start;
}

static void receive(void *to, u64 length)
{
	u8 *at = to;

	while (length) {
		i64 got = call(NR_READ, in_fd, (u64)at, length, 0, 0, 0);

		if (got == -4)
			continue;
		if (got <= 0)
			die(0);
		at += got;
		length -= got;
	}
}

static void flush(void)
{
	u8 *at = out;

	while (out_used) {
		i64 put = call(NR_WRITE, out_fd, (u64)at, out_used, 0, 0, 0);

		if (put == -4)
			continue;
		if (put <= 0)
			die(0);
		at += put;
		out_used -= put;
	}
}

static void put(const void *from, u64 length)
{
	const u8 *at = from;

	while (length) {
		u64 part = sizeof(out) - out_used < length ? sizeof(out) - out_used : length;

		memcpy(out + out_used, at, part);
		out_used += part;
		at += part;
		length -= part;
		if (out_used == sizeof(out))
			flush();
	}
}

// -- touching memory -------------------------------------------------------------------------------------------

i64 touch_read(u64 addr);
i64 touch_write(u64 addr);
void restorer(void);
extern u8 touch_end[];

asm(".text\n"
    "touch_read: movzbl (%rdi), %eax\n"
    "	ret\n"
    "touch_write: lock addb $1, (%rdi)\n"
    "	xor %eax, %eax\n"
    "	ret\n"
    "touch_end: mov $-14, %rax\n"
    "	ret\n"
    "restorer: mov $15, %eax\n"
    "	syscall\n"
    ".globl _start\n"
    "_start: xor %ebp, %ebp\n"
    "	mov %rsp, %rdi\n"
    "	and $-16, %rsp\n"
    "	call run\n"
    "	hlt\n");

struct action {
	void *handler;
	u64 flags;
	void *restorer;
	u64 mask;
};

struct context {
	u64 flags;
	void *link;
	struct {
		void *sp;
		int flags;
		u64 size;
	} stack;
	u64 registers[23];
};

static void handle(int number, u8 *info, struct context *context)
{
	u64 rip = context->registers[16];

	// Anything but a touch that faults is a fault of the agent itself.
	if (rip < (u64)touch_read || rip >= (u64)touch_end)
		die(128 + number);
	signalled = (u64)number << 56 | (u64)(*(u32 *)(info + 8) & 0xff) << 48 | (*(u64 *)(info + 16) & 0xffffffffffffUL);
	context->registers[16] = (u64)touch_end;
}

static void catch_signals(void)
{
	struct action action = {handle, 0x4 | 0x04000000 | 0x08000000 | 0x40000000, restorer, 0};
	struct {
		void *sp;
		int flags;
		u64 size;
	} stack = {signal_stack, 0, sizeof(signal_stack)};

	call(NR_SIGALTSTACK, (u64)&stack, 0, 0, 0, 0, 0);
	call(NR_RT_SIGACTION, 11, (u64)&action, 0, 8, 0, 0);
	call(NR_RT_SIGACTION, 7, (u64)&action, 0, 8, 0, 0);
}

// -- reading the VMAs ------------------------------------------------------------------------------------------

static i64 read_query(void)
{
	struct query query;
	u64 addr = 0;
	u32 n = 0;

	for (; n < MAX_VMAS; n++) {
		struct record *record = &now[n];
		i64 result;

		memset(&query, 0, sizeof(query));
		query.size = sizeof(query);
		query.query_flags = 0x10; /* the VMA at the address, or the next */
		query.query_addr = addr;
		result = call(NR_IOCTL, maps_fd, 3UL << 30 | sizeof(query) << 16 | 'f' << 8 | 17, (u64)&query, 0, 0, 0);
		if (result == -2)
			return n;
		if (result < 0)
			return result;
		record->start = query.start;
		record->end = query.end;
		record->flags = query.flags & 0xf;
		record->pgoff = query.offset >> 12;
		record->ino = query.inode;
		record->anon = record->chain = record->extra = 0;
		addr = query.end;
		if (addr >= 0xffffffffff000000UL)
			return n + 1;
	}
	return -7;
}

/* What of an anon_vma can be compared between kernels: where the first VMA that has it begins. */
static void number_anon(u32 n)
{
	static u64 keys[4096];
	static u64 values[4096];
	static u32 used[4096];
	u32 i, stored = 0;

	for (i = 0; i < n; i++) {
		u64 anon = now[i].anon;
		u32 at = (anon >> 4 ^ anon >> 16) & 4095;

		if (!anon)
			continue;
		while (keys[at] && keys[at] != anon)
			at = (at + 1) & 4095;
		if (!keys[at]) {
			if (stored == 4000) {
				now[i].anon = ~0UL;
				continue;
			}
			keys[at] = anon;
			values[at] = now[i].start;
			used[stored++] = at;
		}
		now[i].anon = values[at];
	}
	while (stored)
		keys[used[--stored]] = 0;
}

static i64 read_bpf(void)
{
	u32 attr[4] = {link_fd, 0, 0, 0};
	i64 fd = call(NR_BPF, 33 /* BPF_ITER_CREATE */, (u64)attr, sizeof(attr), 0, 0, 0);
	u64 used = 0;

	if (fd < 0)
		return fd;
	while (used < sizeof(now)) {
		i64 got = call(NR_READ, fd, (u64)now + used, sizeof(now) - used, 0, 0, 0);

		if (got == 0)
			break;
		if (got < 0 && got != -4 && got != -11) {
			call(NR_CLOSE, fd, 0, 0, 0, 0, 0);
			return got;
		}
		if (got > 0)
			used += got;
	}
	call(NR_CLOSE, fd, 0, 0, 0, 0, 0);
	number_anon(used / sizeof(now[0]));
	return used / sizeof(now[0]);
}

static int is_equal(const struct record *one, const struct record *two)
{
	const u64 *a = (const u64 *)one, *b = (const u64 *)two;
	u64 i;

	for (i = 0; i < sizeof(*one) / 8; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/* How many records at either end are as they were. */
static struct kept compare(u32 n)
{
	u32 most = n < count_before ? n : count_before;
	struct kept kept = {0, 0};

	while (kept.below < most && is_equal(&now[kept.below], &before[kept.below]))
		kept.below++;
	while (kept.above < most - kept.below && is_equal(&now[n - 1 - kept.above], &before[count_before - 1 - kept.above]))
		kept.above++;
	return kept;
}

static void report(struct reply *reply, int wanted)
{
	struct kept kept = {0, 0};
	i64 n = 0;

	reply->count = SAME;
	reply->failed = 0;
	if (wanted && reader != READER_NONE) {
		n = reader == READER_BPF ? read_bpf() : read_query();
		if (n < 0) {
			reply->failed = -n;
		} else {
			kept = compare(n);
			if (kept.below < n || n != count_before)
				reply->count = n;
		}
	}
	put(reply, sizeof(*reply));
	if (reply->count != SAME) {
		put(&kept, sizeof(kept));
		put(now + kept.below, (n - kept.below - kept.above) * sizeof(now[0]));
		memcpy(before + kept.below, now + kept.below, (n - kept.below) * sizeof(now[0]));
		count_before = n;
	}
}

// -- steps -----------------------------------------------------------------------------------------------------

static void open_maps(void)
{
	if (maps_fd >= 0)
		call(NR_CLOSE, maps_fd, 0, 0, 0, 0, 0);
	maps_fd = call(NR_OPEN, (u64) "/proc/self/maps", 02000000, 0, 0, 0, 0);
}

/* The child goes on with the next batch of its own channel. */
static i64 fork_to(u64 channel)
{
	i64 pid = call(NR_FORK, 0, 0, 0, 0, 0, 0);

	if (pid)
		return pid;
	call(NR_PRCTL, 1 /* PR_SET_PDEATHSIG */, 9, 0, 0, 0, 0);
	in_fd = FIRST_CHANNEL + 2 * channel;
	out_fd = in_fd + 1;
	out_used = 0;
	count_before = 0;
	open_maps();
	return 0;
}

/* The same program anew, which goes on with the next batch of this channel: a letter tells which that is. */
static i64 exec_on(void)
{
	char letter[2] = {'a' + (in_fd - FIRST_CHANNEL) / 2, 0};
	u64 arguments[3] = {(u64)letter, (u64)letter, 0};

	return call(NR_EXECVE, (u64) "/proc/self/exe", (u64)arguments, 0, 0, 0, 0);
}

static i64 set_reader(u64 which, u64 link)
{
	u32 attr[4] = {link, 0, 0, 0};

	reader = which;
	count_before = 0;
	if (which != READER_BPF)
		return 0;
	if (link_fd >= 0)
		call(NR_CLOSE, link_fd, 0, 0, 0, 0, 0);
	link_fd = call(NR_BPF, 30 /* BPF_LINK_GET_FD_BY_ID */, (u64)attr, sizeof(attr), 0, 0, 0);
	return link_fd < 0 ? link_fd : 0;
}

static struct step *shared_step;
static i64 shared_result;

/* What a child does that shares the memory: one call. */
__attribute__((used)) static void child(void)
{
	u64 *a = shared_step->args;

	shared_result = call((u32)shared_step->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	die(0);
}

/* Let a child that shares the memory perform a step, and wait for it: clone with flags, of which CLONE_VM is one. */
static i64 share(struct step *step, u64 flags)
{
	register u64 r10 asm("r10") = 0;
	register u64 r8 asm("r8") = 0;
	i64 pid;

	shared_step = step;
	asm volatile("syscall\n"
		     "	test %%rax, %%rax\n"
		     "	jnz 1f\n"
		     "	xor %%ebp, %%ebp\n"
		     "	call child\n"
		     "1:\n"
		     : "=a"(pid)
		     : "a"(NR_CLONE), "D"(flags | 17 /* SIGCHLD */), "S"(child_stack + sizeof(child_stack)), "d"(0), "r"(r10), "r"(r8)
		     : "rcx", "r11", "memory");
	if (pid < 0)
		return pid;
	while (call(NR_WAIT4, pid, 0, 0, 0, 0, 0) == -4)
		;
	return shared_result;
}

static i64 read_clock(u64 which)
{
	i64 time[2] = {0, 0};
	i64 failed = call(NR_CLOCK_GETTIME, which, (u64)time, 0, 0, 0, 0);

	return failed ? failed : time[0] * 1000000000 + time[1];
}

/* Up to eight bytes of the scratch page, at an offset; where the step before has failed, that is the answer. */
static i64 read_scratch(u64 offset, u64 length)
{
	i64 word = 0;

	if (last_result < 0)
		return last_result;
	memcpy(&word, scratch + offset % (sizeof(scratch) - 8), length % 9);
	return word;
}

static i64 perform(struct step *step)
{
	u64 *a = step->args;
	u64 at = step->nr == STEP_PUT ? a[0] % (sizeof(scratch) - sizeof(step->data)) : 0;
	int i;

	signalled = 0;
	for (i = 0; i < 6; i++)
		if (step->from[i])
			a[i] = slots[(step->from[i] - 1) % SLOTS];
	if (step->length)
		memcpy(scratch + at, step->data, step->length);
	switch (step->nr) {
	case STEP_READ:
		return touch_read(a[0]);
	case STEP_WRITE:
		return touch_write(a[0]);
	case STEP_FORK:
		return fork_to(a[0]);
	case STEP_WAIT:
		return call(NR_WAIT4, a[0], 0, 0, 0, 0, 0);
	case STEP_EXEC:
		return exec_on();
	case STEP_READER:
		return set_reader(a[0], a[1]);
	case STEP_WORD:
		return read_scratch(a[0], a[1]);
	case STEP_PUT:
		return 0;
	case STEP_CLOCK:
		return read_clock(a[0]);
	default:
		if (step->nr >> 32)
			return share(step, (u64)step->nr >> 32);
		return call(step->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	}
}

__attribute__((used)) void run(u64 *started)
{
	struct batch batch;
	u64 page;
	u32 i;

	/* Number and addresses of the arguments are what a program finds on its stack. */
	if (started[0] > 1) {
		in_fd = FIRST_CHANNEL + 2 * (*(char *)started[2] - 'a');
		out_fd = in_fd + 1;
	}
	catch_signals();
	for (page = 0; page < sizeof(signal_stack); page += 4096)
		signal_stack[page] = 0;
	child_stack[0] = 0;
	/* Each of its VMAs is written to by now, so that none changes under way; one page does for all of a VMA. */
	open_maps();
	for (;;) {
		int mine = in_fd;

		receive(&batch, sizeof(batch));
		if (batch.count > MAX_STEPS)
			die(3);
		receive(steps, batch.count * sizeof(steps[0]));
		for (i = 0; i < batch.count && mine == in_fd; i++) {
			struct reply reply;

			reply.result = perform(&steps[i]);
			last_result = reply.result;
			reply.signal = signalled;
			if (mine != in_fd)
				break;
			if (steps[i].to)
				slots[(steps[i].to - 1) % SLOTS] = reply.result;
			report(&reply, batch.report == REPORT_EACH || (batch.report == REPORT_LAST && i + 1 == batch.count));
		}
		flush();
	}
}
