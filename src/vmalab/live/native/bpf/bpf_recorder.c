// SPDX-License-Identifier: GPL-2.0-or-later
// Loads the BPF recorder, starts the program, and hands the events on in the order of the mmap locks.
//
//   bpf-recorder [OPTIONS] OBJECT FD -- COMMAND [ARGUMENT...]
//   bpf-recorder [OPTIONS] --pid PID OBJECT FD
//   bpf-recorder --check OBJECT
//
//   --stacks  --copy-stacks  --all-faults  --ms MILLISECONDS  --until-maps N  --ring MILLISECONDS  --buffer BYTES
//   --stack-places N
//
// Events are the structures of events.h, one after the other.  SIGUSR1: enough is recorded.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/types.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

#include "events.h"
#include "../numbers.h"
#include "../table.h"

#define PASS_NS 10000000L	// between two looks at the ring
#define GRACE_MS 2000		// from Ctrl-C to the end
#define SAME_SIGNAL_MS 1000	// a signal forwarded by the parent this soon after our own is the same one
#define LAST_DUMP_MS 300	// for the processes to show their VMAs once more
#define ASK_AFTER_MS 40		// after a snapshot is due: who makes calls has shown itself by then
#define ASK_UNTIL_MS 1000
#define ERROR_NO_MEMORY 12

static struct bpf_object *object;
static struct settings *settings;
static volatile struct state *state;
static int tasks_fd, processes_fd, stacks_fd, ask_fd = -1, out_fd = -1, attached_fd = -1;
static struct ring_buffer *ring;
static char last_words[512];

static u32 until_maps;
static u64 ring_ms, stop_after_ms, buffer_bytes;
static u32 stack_places = STACK_PLACES;
static bool attached, copy_stacks;
static pid_t root;
static int root_status;
static bool root_ended, stopped, interrupted, triggered;
static const char *reason = "ended";
static sigset_t waited_for;
static u64 own_signal_at, kill_at;

// ---- events on the way ----

static struct event **held;		// in the order of arrival, then of their numbers
static size_t held_count, held_capacity, sorted_count;
static struct event **window;		// of the flight recorder: those that may yet be written
static size_t window_count, window_capacity;
static u8 stacks_told[STACK_PLACES / 8];

static u64 now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (u64)now.tv_sec * 1000000000 + (u64)now.tv_nsec;
}

static u64 now_ms(void)
{
	return now_ns() / 1000000;
}

static void die(const char *message)
{
	fprintf(stderr, "vmalab: the recorder %s\n", message);
	exit(3);
}

static void *more_room(void *old, size_t count, size_t *capacity, size_t size)
{
	if (count < *capacity)
		return old;
	*capacity = *capacity ? *capacity * 2 : 4096;
	old = realloc(old, *capacity * size);
	if (!old)
		die("is out of memory");
	return old;
}

static char out_buffer[1 << 18];
static size_t out_length;

static void out_flush(void)
{
	for (size_t done = 0; done < out_length;) {
		ssize_t written = write(out_fd, out_buffer + done, out_length - done);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			_exit(3);	// nobody reads
		done += (size_t)written;
	}
	out_length = 0;
}

static void out_event(const struct event *event)
{
	if (out_length + event->size > sizeof out_buffer)
		out_flush();
	memcpy(out_buffer + out_length, event, event->size);
	out_length += event->size;
}

static void say(u16 type, u32 more, const char *first, const char *text, u64 order)
{
	struct name_event event = {.head = {.type = type, .more = more, .order = order, .time = now_ns()}};
	size_t at = 0;
	if (first)
		event.name[at++] = *first;
	snprintf(event.name + at, sizeof event.name - at, "%s", text);
	event.head.size = (u16)(sizeof event.head + at + strlen(event.name + at) + 1);
	out_event(&event.head);
}

static void tell_stack(s32 id)
{
	struct stack_event event = {.head = {.type = EVENT_STACK, .more = (u32)id}};
	if (id < 0 || id >= STACK_PLACES || stacks_told[id / 8] >> id % 8 & 1)
		return;
	stacks_told[id / 8] |= (u8)(1 << id % 8);
	u32 key = (u32)id, depth = 0;
	if (bpf_map_lookup_elem(stacks_fd, &key, event.at))
		return;
	while (depth < STACK_DEPTH && event.at[depth])
		depth++;
	event.head.size = (u16)(sizeof event.head + depth * sizeof *event.at);
	out_event(&event.head);
}

static void hand_on(struct event *event)
{
	if (event->type == EVENT_CALL)
		tell_stack(((struct call_event *)event)->stack);
	else if (event->type == EVENT_FAULT)
		tell_stack(((struct fault_event *)event)->stack);
	out_event(event);
	free(event);
}

static int take(void *context, void *data, size_t size)
{
	(void)context;
	struct event *event = malloc(size);
	if (!event)
		die("is out of memory");
	memcpy(event, data, size);
	held = more_room(held, held_count, &held_capacity, sizeof *held);
	held[held_count++] = event;
	return 0;
}

// What is due in the flight recorder: everything since the last two snapshots but one stays.
static void keep(struct event *event)
{
	window = more_room(window, window_count, &window_capacity, sizeof *window);
	window[window_count++] = event;
}

static void look_at(const struct event *event)
{
	const struct call_event *call = (const void *)event;
	const struct dump_end_event *dump = (const void *)event;
	bool is_call = event->type == EVENT_CALL;
	u64 maps = is_call ? call->map_count : event->type == EVENT_DUMP_END ? dump->count : 0;
	if (until_maps && maps > until_maps && !stopped) {
		stopped = triggered = true;
		reason = "maps";
	}
	if (is_call && ring_ms && call->result == -ERROR_NO_MEMORY && !stopped) {
		stopped = triggered = true;
		reason = "enomem";
	}
}

static int compare_orders(const void *one, const void *two)
{
	const struct event *a = *(struct event *const *)one, *b = *(struct event *const *)two;
	return a->order < b->order ? -1 : a->order > b->order;
}

// Merges what has arrived with what was held back: both parts are in order, equal numbers stay as they came.
static void sort_held(void)
{
	size_t fresh = held_count - sorted_count;
	if (!fresh)
		return;
	struct event **merged = malloc(held_count * sizeof *merged);
	if (!merged)
		die("is out of memory");
	struct event **arrived = held + sorted_count;
	// Nearly sorted already: insertion keeps equal numbers in their order.
	for (size_t i = 1; i < fresh; i++) {
		struct event *event = arrived[i];
		size_t at = i;
		while (at > 0 && compare_orders(&arrived[at - 1], &event) > 0) {
			arrived[at] = arrived[at - 1];
			at--;
		}
		arrived[at] = event;
	}
	size_t i = 0, k = 0, out = 0;
	while (i < sorted_count || k < fresh)
		if (k == fresh || (i < sorted_count && compare_orders(&held[i], &arrived[k]) <= 0))
			merged[out++] = held[i++];
		else
			merged[out++] = arrived[k++];
	memcpy(held, merged, held_count * sizeof *held);
	free(merged);
	sorted_count = held_count;
}

static void release_below(u64 limit)
{
	size_t done = 0;
	sort_held();
	while (done < held_count && held[done]->order < limit) {
		look_at(held[done]);
		if (ring_ms)
			keep(held[done]);
		else
			hand_on(held[done]);
		done++;
	}
	memmove(held, held + done, (held_count - done) * sizeof *held);
	held_count -= done;
	sorted_count -= done;
}

// The earliest number that a call in progress can still take; counts the tasks.
static u64 earliest_in_progress(u32 *count)
{
	static struct task values[512];
	static u32 keys[512];
	u32 place, *from = NULL;
	u64 least = ~0ULL;
	*count = 0;
	for (;;) {
		u32 number = 512;
		int error = bpf_map_lookup_batch(tasks_fd, from, &place, keys, values, &number, NULL);
		if (error && errno != ENOENT)
			break;
		for (u32 i = 0; i < number; i++)
			if (values[i].entered && values[i].entered < least)
				least = values[i].entered;
		*count += number;
		if (error)
			break;
		from = &place;
	}
	return least;
}

static void hold_lost(u64 order, u32 count, const char *why)
{
	struct name_event event = {.head = {.type = EVENT_LOST, .more = count, .order = order, .time = now_ns()}};
	snprintf(event.name, sizeof event.name, "%s", why);
	event.head.size = sizeof event;
	take(NULL, &event, sizeof event);
}

// What came between the first and the last event that were lost cannot be trusted, nor what follows, until each process
// has shown its VMAs anew.
static void tell_lost(void)
{
	u64 lost = __atomic_exchange_n(&state->lost, 0, __ATOMIC_SEQ_CST);
	if (!lost)
		return;
	u64 from = __atomic_exchange_n(&state->lost_from, 0, __ATOMIC_SEQ_CST);
	hold_lost(from, lost > UINT32_MAX ? UINT32_MAX : (u32)lost,
		  state->tasks_lost ? "there were too many tasks to follow" : "events were lost, the ring was full");
	hold_lost(state->lost_until, 0, "");
	state->snapshot_wanted++;
}

static void ask(u32 pid)
{
	struct question question = {.pid = pid};
	LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = &question, .ctx_size_in = sizeof question);
	bpf_prog_test_run_opts(ask_fd, &options);
}

// Asks the processes that have not shown their VMAs for the snapshot that is wanted: they may be asleep.
static void ask_the_silent(void)
{
	static u64 wanted_ms;
	static u32 asked;
	u32 wanted = state->snapshot_wanted, key, *from = NULL;
	struct process process;
	if (ask_fd < 0 || !wanted)
		return;
	if (wanted != asked) {
		asked = wanted;
		wanted_ms = now_ms();
	}
	u64 waited_ms = now_ms() - wanted_ms;
	if (waited_ms < ASK_AFTER_MS || waited_ms > ASK_UNTIL_MS)
		return;
	for (; !bpf_map_get_next_key(processes_fd, from, &key); from = &key)
		if (!bpf_map_lookup_elem(processes_fd, &key, &process) && process.dumped != wanted)
			ask(key);
}

// One look at everything; returns how many tasks there are.
static u32 pass(void)
{
	static u64 known;		// all events below this number were in the ring before the last pass
	u32 count;
	u64 seen = state->next_order, least = earliest_in_progress(&count);
	ring_buffer__consume(ring);
	tell_lost();
	release_below(known < least ? known : least);
	known = seen;
	ask_the_silent();
	return count;
}

// ---- the flight recorder ----

static u64 last_snapshot_ms;

// Forgets what is older than two snapshots, of which the older is older than the time to keep.
static void shorten_window(void)
{
	static u64 generations[64];	// when each of the last snapshots was asked for
	static u32 count;
	u64 now = now_ms();
	if (now - last_snapshot_ms < ring_ms / 2 + 1)
		return;
	last_snapshot_ms = now;
	state->snapshot_wanted++;
	if (count == 64)
		memmove(generations, generations + 1, --count * sizeof *generations);
	generations[count++] = now_ns();
	// The youngest snapshot that is old enough begins the trace.
	u64 begin = 0;
	for (u32 i = 0; i < count; i++)
		if (now_ns() - generations[i] >= ring_ms * 1000000)
			begin = generations[i];
	if (!begin)
		return;
	size_t kept = 0;
	for (size_t i = 0; i < window_count; i++)
		if (window[i]->time >= begin || window[i]->type == EVENT_FILE)
			window[kept++] = window[i];
		else
			free(window[i]);
	window_count = kept;
}

// ---- signals, the program ----

static void kill_all(void)
{
	u32 key, next, *from = NULL;
	struct task task;
	while (!bpf_map_get_next_key(tasks_fd, from, &next)) {
		if (!bpf_map_lookup_elem(tasks_fd, &next, &task) && task.pid > 1)
			kill((pid_t)task.pid, SIGKILL);
		key = next;
		from = &key;
	}
	if (root > 0 && !root_ended)
		kill(root, SIGKILL);
}

static void on_signal(const siginfo_t *info)
{
	if (info->si_signo == SIGUSR1) {
		stopped = true;
		reason = "size";
		return;
	}
	bool from_parent = info->si_code <= 0 && info->si_pid == getppid();
	if (from_parent && own_signal_at && now_ms() - own_signal_at < SAME_SIGNAL_MS)
		return;
	own_signal_at = now_ms();
	if (attached || ring_ms || root_ended || interrupted) {
		stopped = true;
		reason = "interrupted";
		if (interrupted && !attached)
			kill_all();
		interrupted = true;
		return;
	}
	interrupted = true;
	kill_at = now_ms() + GRACE_MS;
	if (info->si_code <= 0)		// one from the terminal went to the program as well
		kill(root, info->si_signo);
}

static void reap(void)
{
	int status;
	while (root > 0 && !root_ended && waitpid(root, &status, WNOHANG) == root) {
		root_status = status;
		root_ended = true;
	}
}

static const int ended_by[] = {SIGINT, SIGTERM, SIGHUP};
static sigset_t given_mask;
static struct sigaction given_actions[NSIG];
static const int ignored[] = {SIGPIPE, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU};

static void take_signals(void)
{
	sigemptyset(&waited_for);
	sigaddset(&waited_for, SIGCHLD);
	sigaddset(&waited_for, SIGUSR1);
	for (size_t i = 0; i < sizeof ended_by / sizeof *ended_by; i++) {
		struct sigaction given;
		sigaction(ended_by[i], NULL, &given);
		if (given.sa_handler != SIG_IGN)
			sigaddset(&waited_for, ended_by[i]);
	}
	for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
		struct sigaction ignore = {.sa_handler = SIG_IGN};
		sigaction(ignored[i], &ignore, &given_actions[ignored[i]]);
	}
	sigprocmask(SIG_BLOCK, &waited_for, &given_mask);
}

static int start(char **command)
{
	int answer[2];
	if (pipe2(answer, O_CLOEXEC))
		return errno;
	root = fork();
	if (root < 0)
		return errno;
	if (root == 0) {
		for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
			sigaction(ignored[i], &given_actions[ignored[i]], NULL);
		sigprocmask(SIG_SETMASK, &given_mask, NULL);
		close(out_fd);
		prctl((int)settings->adopt_cookie, 0, 0, 0, 0);
		execvp(command[0], command);
		int error = errno;
		if (write(answer[1], &error, sizeof error) < 0)
			_exit(126);
		_exit(127);
	}
	close(answer[1]);
	int error = 0;
	if (read(answer[0], &error, sizeof error) != sizeof error)
		error = 0;
	close(answer[0]);
	if (error)
		waitpid(root, NULL, 0);
	return error;
}

// ---- loading ----

static int remember(enum libbpf_print_level level, const char *format, va_list values)
{
	char line[sizeof last_words];
	if (level != LIBBPF_WARN)
		return 0;
	vsnprintf(line, sizeof line, format, values);
	if (!last_words[0]) {
		line[strcspn(line, "\n")] = 0;
		memcpy(last_words, line, sizeof last_words);
	}
	return 0;
}

static u32 level_of_namespace(void)
{
	char line[512];
	u32 level = 0;
	FILE *file = fopen("/proc/self/status", "r");
	while (file && fgets(line, sizeof line, file))
		if (!strncmp(line, "NSpid:", 6))
			for (char *at = line + 6, *save = NULL; (at = strtok_r(at, " \t\n", &save)); at = NULL)
				level++;
	if (file)
		fclose(file);
	return level ? level - 1 : 0;
}

static void *map_memory(const char *name)
{
	size_t size;
	struct bpf_map *map = bpf_object__find_map_by_name(object, name);
	return map ? (void *)bpf_map__initial_value(map, &size) : NULL;
}

static void configure(bool stacks, bool all_faults, u32 pid, u32 cookie)
{
	*settings = (struct settings){.attach_pid = pid, .pid_level = level_of_namespace(), .adopt_cookie = cookie};
	settings->with_stacks = stacks;
	settings->copy_stacks = copy_stacks;
	settings->all_faults = all_faults;
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		enum call_mode mode = calls[i].mode;
		if (mode == MEMORY || mode == NEW_TASK || calls[i].number == SYS_fcntl || calls[i].number == SYS_close)
			settings->call_mode[calls[i].number] = (u8)(1 + mode);
	}
	state->next_order = 1;
	state->snapshot_wanted = 1;
	bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "stacks"), stacks ? stack_places : 1);
	if (buffer_bytes) {
		u64 size = (u64)sysconf(_SC_PAGESIZE);	// a power of two times that
		while (size < buffer_bytes)
			size *= 2;
		bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "events"), (u32)size);
	}
}

// Loads the object.  Kernels before 6.10 do not let `ask` look up a task: there processes show themselves, at a call.
static int load(const char *path, bool stacks, bool all_faults, u32 pid)
{
	u32 cookie = 0;
	int error = 0;
	if (!pid && getrandom(&cookie, sizeof cookie, 0) < 0)
		return errno;
	for (int with_ask = 1; with_ask >= 0; with_ask--) {
		object = bpf_object__open_file(path, NULL);
		if (!object)
			return errno;
		settings = map_memory(".rodata.settings");
		state = map_memory(".data.state");
		if (!settings || !state)
			return EINVAL;
		configure(stacks, all_faults, pid, pid ? 0 : 0x40000000U | (cookie & 0x3fffffffU));
		bpf_program__set_autoload(bpf_object__find_program_by_name(object, "ask"), with_ask);
		error = -bpf_object__load(object);
		if (!error)
			return 0;
		bpf_object__close(object);
	}
	return error;
}

static int prepare(const char *path, bool stacks, bool all_faults, u32 pid)
{
	libbpf_set_print(remember);
	int error = load(path, stacks, all_faults, pid);
	if (error)
		return error;
	// From here on the memory is that of the map itself.
	int state_fd = bpf_object__find_map_fd_by_name(object, ".data.state");
	void *shared = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, state_fd, 0);
	if (shared == MAP_FAILED)
		return errno;
	state = shared;
	struct bpf_program *program;
	bpf_object__for_each_program(program, object) {
		if (bpf_program__type(program) == BPF_PROG_TYPE_SYSCALL)
			ask_fd = bpf_program__fd(program);
		else if (!bpf_program__attach(program))
			return errno;
	}
	tasks_fd = bpf_object__find_map_fd_by_name(object, "tasks");
	processes_fd = bpf_object__find_map_fd_by_name(object, "processes");
	stacks_fd = bpf_object__find_map_fd_by_name(object, "stacks");
	ring = ring_buffer__new(bpf_object__find_map_fd_by_name(object, "events"), take, NULL, NULL);
	if (ring && pid && !settings->pid_level)
		ask(pid);
	return ring ? 0 : errno;
}

// ---- the run ----

// Whether the process that was attached to has ended: also if nobody has waited for it yet.
static bool attached_ended(void)
{
	struct pollfd ended = {.fd = attached_fd, .events = POLLIN};
	return attached_fd < 0 || poll(&ended, 1, 0) > 0;
}

static void run(void)
{
	u64 began = now_ms();
	last_snapshot_ms = began;
	while (!stopped) {
		siginfo_t info;
		struct timespec tick = {0, PASS_NS};
		int number = sigtimedwait(&waited_for, &info, &tick);
		if (number > 0 && number != SIGCHLD)
			on_signal(&info);
		reap();
		if (number > 0)
			continue;
		u32 tasks = pass();
		if (ring_ms)
			shorten_window();
		else
			out_flush();
		if (kill_at && now_ms() >= kill_at)
			kill_all();
		if (stop_after_ms && now_ms() - began >= stop_after_ms) {
			stopped = true;
			reason = "time";
		}
		if (tasks == 0 && (attached ? attached_ended() : root_ended))
			break;
	}
}

static void last_dumps(void)
{
	u32 tasks;
	u64 began = now_ms();
	struct timespec tick = {0, PASS_NS};
	state->snapshot_wanted++;
	earliest_in_progress(&tasks);
	while (tasks && now_ms() - began < LAST_DUMP_MS) {
		nanosleep(&tick, NULL);
		tasks = pass();
	}
}

static void finish(void)
{
	if (stopped)
		last_dumps();
	pass();
	ring_buffer__consume(ring);
	tell_lost();
	release_below(~0ULL);
	if (triggered)
		for (size_t i = 0; i < window_count; i++)
			hand_on(window[i]);
	if (state->stacks_lost)
		say(EVENT_STACKS_LOST, (u32)state->stacks_lost, NULL, "", 0);
	bpf_object__close(object);	// the program runs on as it would without us
	out_flush();
	if (root > 0 && !root_ended) {
		// Our own Ctrl-C must not end us before the program.
		while (waitpid(root, &root_status, 0) < 0 && errno == EINTR)
			;
	}
	say(EVENT_DONE, (u32)root_status, interrupted ? "i" : "d", reason, 0);
	out_flush();
}

int main(int count, char **words)
{
	static const struct option options[] = {
		{"stacks", no_argument, NULL, 's'},	      {"all-faults", no_argument, NULL, 'f'},
		{"ms", required_argument, NULL, 't'},	      {"until-maps", required_argument, NULL, 'm'},
		{"ring", required_argument, NULL, 'r'},	      {"pid", required_argument, NULL, 'p'},
		{"check", no_argument, NULL, 'c'},	      {"buffer", required_argument, NULL, 'b'},
		{"copy-stacks", no_argument, NULL, 'k'},      {"stack-places", required_argument, NULL, 'n'},
		{NULL, 0, NULL, 0},
	};
	bool stacks = false, all_faults = false, check = false;
	u32 pid = 0;
	int option;
	while ((option = getopt_long(count, words, "+", options, NULL)) >= 0)
		switch (option) {
		case 's': stacks = true; break;
		case 'f': all_faults = true; break;
		case 't': stop_after_ms = strtoull(optarg, NULL, 10); break;
		case 'm': until_maps = (u32)strtoul(optarg, NULL, 10); break;
		case 'r': ring_ms = strtoull(optarg, NULL, 10); break;
		case 'p': pid = (u32)strtoul(optarg, NULL, 10); break;
		case 'k': stacks = copy_stacks = true; break;
		case 'b': buffer_bytes = strtoull(optarg, NULL, 10); break;
		case 'n': stack_places = (u32)strtoul(optarg, NULL, 10); break;
		case 'c': check = true; break;
		default: return 3;
		}
	if (count - optind < (check ? 1 : 2))
		return 3;
	out_fd = check ? 1 : atoi(words[optind + 1]);
	attached = pid != 0;
	if (attached)
		attached_fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (!check)
		take_signals();
	int error = prepare(words[optind], stacks, all_faults, pid);
	if (error) {
		say(EVENT_FAILED, (u32)error, "l", last_words, 0);
		out_flush();
		return 1;
	}
	if (check)
		return 0;
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		char arguments = (char)('0' + calls[i].arguments);
		say(EVENT_CALL_NAME, (u32)calls[i].number, &arguments, calls[i].name, 0);
	}
	char **command = words + optind + 2;
	if (*command && !strcmp(*command, "--"))
		command++;
	error = attached ? 0 : start(command);
	if (error) {
		say(EVENT_FAILED, (u32)error, "e", "", 0);
		out_flush();
		return 1;
	}
	say(EVENT_STARTED, (u32)root, NULL, "", 0);
	out_flush();
	run();
	finish();
	return 0;
}
