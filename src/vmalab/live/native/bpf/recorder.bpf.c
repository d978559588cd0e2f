// SPDX-License-Identifier: GPL-2.0-or-later
// The recorder inside the kernel: memory calls, page faults, new tasks, execs and exits of the recorded tasks.
//
// What happens to an address space is ordered by its mmap lock.  So each event takes its number while the lock is held:
// a call when it releases the lock that it held for writing, or downgrades it; a fault when it releases the lock that it
// held for reading.  A fault that takes only the lock of its VMA changes no VMA, and comes whenever it comes.
//
// A task also works on address spaces that are not its own: execve fills the new one before the task is said to run the
// new program, fork locks the copy, other calls reach into other processes.  None of that happens to its own.
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "events.h"
#include "../modes.h"
#include "../numbers.h"

char LICENSE[] SEC("license") = "GPL";

#define USER_END 0x7ffffffff000ULL
#define CHAIN_MOST 16
#define COMPONENTS_MOST 48
#define RANGES_MOST 128
#define POPULATED_MOST 256
#define STACK_PIECE 512

#define CALL_CLOSE 3
#define CALL_MMAP 9
#define CALL_BRK 12
#define CALL_IOCTL 16
#define CALL_MREMAP 25
#define CALL_MADVISE 28
#define CALL_MLOCK 149
#define CALL_MLOCKALL 151
#define CALL_MLOCK2 325
#define CALL_SHMAT 30
#define CALL_SHMCTL 31
#define ERROR_BAD_DESCRIPTOR 9
#define CALL_FCNTL 72
#define CALL_PRCTL 157
#define CALL_SETRLIMIT 160
#define CALL_MBIND 237
#define CALL_SET_MEMPOLICY 238
#define CALL_PRLIMIT64 302
#define CALL_MEMFD_CREATE 319
#define CALL_USERFAULTFD 323
#define CALL_ARCH_PRCTL 158

#define VERSION(major, minor) ((major) << 16 | (minor) << 8)
#define MAGIC_HUGETLBFS 0x958458f6
#define MAGIC_SECRETMEM 0x5345434d
#define FLAG_VM_WRITE 2
#define FLAG_VM_LOCKED 0x2000
#define FLAG_WRITE_FAULT 2
#define FLAG_MAP_LOCKED 0x2000
#define FLAG_MAP_POPULATE 0x8000
#define ADVICE_POPULATE_READ 22
#define ADVICE_POPULATE_WRITE 23
#define TYPE_MASK 0170000
#define TYPE_REGULAR 0100000
#define FLAG_GROUP_EXIT 4
#define FLAG_EXITING 4

const volatile struct settings settings SEC(".rodata.settings");
struct state state SEC(".data.state");

enum { FAULT_NONE, FAULT_PENDING, FAULT_TOLD };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TASKS);
	__type(key, u32);
	__type(value, struct task);
} tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TASKS);
	__type(key, u32);
	__type(value, struct process);
} processes SEC(".maps");

struct {	// the inode behind each file that has been told of
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, u64);
	__type(value, u64);
} files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, STACK_PLACES);
	__uint(key_size, sizeof(u32));
	__uint(value_size, STACK_DEPTH * sizeof(u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct stack_event);
} stack_room SEC(".maps");

union scratch {
	struct file_event file;
	struct data_event data;
	struct task task;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);	// one for `ask` alone, which may be interrupted by the others
	__type(key, u32);
	__type(value, union scratch);
} scratches SEC(".maps");

extern int LINUX_KERNEL_VERSION __kconfig;
extern int bpf_iter_task_vma_new(struct bpf_iter_task_vma *it, struct task_struct *task, u64 addr) __ksym;
extern struct vm_area_struct *bpf_iter_task_vma_next(struct bpf_iter_task_vma *it) __ksym;
extern void bpf_iter_task_vma_destroy(struct bpf_iter_task_vma *it) __ksym;
extern struct task_struct *bpf_task_from_pid(s32 pid) __ksym;
extern void bpf_task_release(struct task_struct *task) __ksym;

static __always_inline u64 take_order(void)
{
	return __sync_fetch_and_add(&state.next_order, 1);
}

static __always_inline void lose(void)
{
	__sync_fetch_and_add(&state.lost, 1);
	state.lost_until = state.next_order;
	if (!state.lost_from)
		state.lost_from = state.lost_until;
}

static __always_inline union scratch *scratch(u32 which)
{
	which &= 1;
	return bpf_map_lookup_elem(&scratches, &which);
}

static __always_inline void set_head(struct event *head, const struct task *task, u16 type, u16 size, u64 order)
{
	head->order = order;
	head->time = bpf_ktime_get_ns();
	head->pid = task->pid;
	head->tid = task->tid;
	head->type = type;
	head->size = size;
	head->more = 0;
}

// Room in the ring for an event whose head is filled in; NULL where there is none, which is counted.
#define RESERVE(event, task, type, order)                                             \
	({                                                                            \
		struct event##_event *room = bpf_ringbuf_reserve(&events, sizeof *room, 0); \
		if (room)                                                             \
			set_head(&room->head, task, type, sizeof *room, order);       \
		else                                                                  \
			lose();                                                       \
		room;                                                                 \
	})
#define SUBMIT(room) bpf_ringbuf_submit(room, BPF_RB_NO_WAKEUP)

// ---- tasks ----

static __always_inline u32 number_of(struct task_struct *task)
{
	u32 level = settings.pid_level;
	if (!level)
		return task->pid;
	struct pid *pid = task->thread_pid;
	struct upid at;
	u32 nr = 0;
	if (pid && !bpf_core_read(&at, sizeof at, &pid->numbers[level & 31]))
		nr = at.nr;
	return nr;
}

static __always_inline struct task *adopt(struct task_struct *which)
{
	u32 key = which->pid;
	struct task fresh = {.stack = -1, .fault_stack = -1};
	struct task_struct *leader = which->group_leader;
	fresh.mm = (u64)which->mm;
	fresh.tid = number_of(which);
	fresh.pid = BPF_CORE_READ(leader, pid);
	if (settings.pid_level)
		fresh.pid = number_of(leader);
	if (bpf_map_update_elem(&tasks, &key, &fresh, BPF_ANY)) {
		__sync_fetch_and_add(&state.tasks_lost, 1);
		lose();
	}
	return bpf_map_lookup_elem(&tasks, &key);
}

static __always_inline struct task *current_task(void)
{
	u32 key = bpf_get_current_pid_tgid();
	struct task *task = bpf_map_lookup_elem(&tasks, &key);
	if (task || !settings.attach_pid)
		return task;
	u32 process = bpf_get_current_pid_tgid() >> 32;
	if (!settings.pid_level)
		return process == settings.attach_pid ? adopt(bpf_get_current_task_btf()) : NULL;
	struct task_struct *now = bpf_get_current_task_btf();
	return number_of(now->group_leader) == settings.attach_pid ? adopt(now) : NULL;
}

// The same, unless it has ended already, and only takes its address space down.
static __always_inline struct task *living_task(void)
{
	struct task_struct *now = bpf_get_current_task_btf();
	return now->flags & FLAG_EXITING ? NULL : current_task();
}

static __always_inline struct process *process_of(u32 key)
{
	struct process *process = bpf_map_lookup_elem(&processes, &key), fresh = {};
	if (process)
		return process;
	if (bpf_map_update_elem(&processes, &key, &fresh, BPF_NOEXIST))
		lose();
	return bpf_map_lookup_elem(&processes, &key);
}

static __always_inline struct process *current_process(void)
{
	return process_of(bpf_get_current_pid_tgid() >> 32);
}

// Tells of a stack by itself.  Where the ring is half full events need the room more, and the stack is lost.
static __always_inline bool tell_stack(void *ctx, struct task *task, enum own_stack own)
{
	u32 key = 0;
	struct stack_event *event = bpf_map_lookup_elem(&stack_room, &key);
	if (!event || bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / 2)
		return false;
	long size = bpf_get_stack(ctx, event->at, sizeof event->at, BPF_F_USER_STACK);
	if (size <= 0 || size > (long)sizeof event->at)
		return false;
	size += __builtin_offsetof(struct stack_event, at);
	set_head(&event->head, task, EVENT_STACK, size, take_order());
	event->head.more = own;
	return !bpf_ringbuf_output(&events, event, size, BPF_RB_NO_WAKEUP);
}

// The stack of the task as a number.  The table of stacks has one place for each hash: a stack whose place is taken by
// another goes into the ring.
static __always_inline s32 take_stack(void *ctx, struct task *task, enum own_stack own)
{
	if (!settings.with_stacks)
		return -1;
	s32 id = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
	if (id >= 0)
		return id;
	if (tell_stack(ctx, task, own))
		return own;
	__sync_fetch_and_add(&state.stacks_lost, 1);
	return -1;
}

// Copies the registers that unwinding begins with, and the top of the stack.
static __always_inline void copy_stack(struct task *task, struct pt_regs *regs, u64 order)
{
	struct user_stack_event *event = RESERVE(user_stack, task, EVENT_USER_STACK, order);
	if (!event)
		return;
	u64 sp = regs->sp;
	u32 length = 0;
	event->ip = regs->ip;
	event->sp = sp;
	event->bp = regs->bp;
	event->bx = regs->bx;
	event->r12 = regs->r12;
	event->r13 = regs->r13;
	event->r14 = regs->r14;
	event->r15 = regs->r15;
	for (u32 at = 0; at < STACK_COPIED; at += STACK_PIECE) {
		if (bpf_probe_read_user(event->bytes + at, STACK_PIECE, (void *)(sp + at)))
			break;
		length = at + STACK_PIECE;
	}
	event->head.size = __builtin_offsetof(struct user_stack_event, bytes) + length;
	SUBMIT(event);
}

// ---- files ----

// Whether it is the file below one of an overlay: /proc shows the one above.
static __always_inline bool is_backing(struct file *file)
{
	u32 flag = LINUX_KERNEL_VERSION >= VERSION(6, 14) ? 1 << 24 : 1 << 25;
	return bpf_core_field_exists(struct backing_file, user_path) && BPF_CORE_READ(file, f_mode) & flag;
}

static __always_inline struct inode *user_inode(struct file *file)
{
	if (is_backing(file)) {
		struct backing_file *backing = (void *)((u64)file - bpf_core_field_offset(struct backing_file, file));
		return BPF_CORE_READ(backing, user_path.dentry, d_inode);
	}
	return BPF_CORE_READ(file, f_inode);
}

struct walk {
	struct dentry *dentry;
	struct mount *mount;
	u32 length;
	u32 asked;
	u32 inside;	// the mount is nowhere mounted, such as that of memfds: the name is that of its root
};

// Adds one name to the path in the scratch; 1 at its end.
static long walk_up(u32 index, struct walk *walk)
{
	union scratch *space = scratch(walk->asked);
	struct dentry *at = walk->dentry, *parent = BPF_CORE_READ(at, d_parent);
	struct mount *mount = walk->mount;
	struct dentry *root = BPF_CORE_READ(mount, mnt.mnt_root);
	u32 length = walk->length;
	if (!space || length >= PATH_MOST)
		return 1;
	if (at == root || at == parent) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);
		if (at == root && above != mount) {
			walk->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			walk->mount = above;
			return 0;
		}
		if (length)
			return 1;
		walk->inside = 1;
	}
	long got = bpf_probe_read_kernel_str(space->file.path + (length & (PATH_MOST - 1)), NAME_MOST,
					     BPF_CORE_READ(at, d_name.name));
	if (got <= 0)
		return 1;
	walk->length = length + got;
	walk->dentry = parent;
	return walk->inside ? 1 : 0;
}

// Tells of a file once.  Functions that are not static are verified once, not at each call.
__noinline int tell_file(struct task *task, u64 key, u64 order, u32 asked)
{
	struct file *file = (void *)key;
	if (!task || !file)
		return 0;
	struct inode *inode = user_inode(file);
	u64 *known = bpf_map_lookup_elem(&files, &key);
	if (known && *known == (u64)inode)
		return 0;
	union scratch *space = scratch(asked);
	if (!space)
		return 0;
	struct file_event *event = &space->file;
	struct super_block *sb = BPF_CORE_READ(inode, i_sb);
	struct vfsmount *mnt = BPF_CORE_READ(file, f_path.mnt);
	struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
	if (is_backing(file)) {
		struct backing_file *backing = (void *)((u64)file - bpf_core_field_offset(struct backing_file, file));
		mnt = BPF_CORE_READ(backing, user_path.mnt);
		dentry = BPF_CORE_READ(backing, user_path.dentry);
	}
	set_head(&event->head, task, EVENT_FILE, 0, order);
	event->file = key;
	event->inode = BPF_CORE_READ(inode, i_ino);
	event->device = BPF_CORE_READ(sb, s_dev);
	event->rdev = BPF_CORE_READ(inode, i_rdev);
	event->mode = BPF_CORE_READ(inode, i_mode);
	event->access = BPF_CORE_READ(file, f_mode);
	bpf_probe_read_kernel_str(event->fs, sizeof event->fs, BPF_CORE_READ(sb, s_type, name));
	if (BPF_CORE_READ(mnt, mnt_flags) & 4 || BPF_CORE_READ(sb, s_iflags) & 2)
		event->head.more |= 2;
	if (!BPF_CORE_READ(dentry, d_hash.pprev) && BPF_CORE_READ(dentry, d_parent) != dentry)
		event->head.more |= 1;
	struct mount *mount = (void *)((u64)mnt - bpf_core_field_offset(struct mount, mnt));
	struct walk walk = {.dentry = dentry, .mount = mount, .asked = asked};
	bpf_loop(COMPONENTS_MOST, walk_up, &walk, 0);
	if (walk.inside)
		event->head.more |= 4;
	u32 length = walk.length;
	event->length = length;
	u32 size = (u64)event->path - (u64)event + length;
	size &= 0x1fff;
	if (size > sizeof *event)
		size = sizeof *event;
	event->head.size = size;
	if (bpf_ringbuf_output(&events, event, size, BPF_RB_NO_WAKEUP)) {
		lose();
		return 0;
	}
	key = event->file;
	u64 value = (u64)inode;
	bpf_map_update_elem(&files, &key, &value, BPF_ANY);
	return 0;
}

static __always_inline struct file *file_of(u32 fd)
{
	struct task_struct *now = bpf_get_current_task_btf();
	struct fdtable *table = BPF_CORE_READ(now, files, fdt);
	struct file **array, *file = NULL;
	if (!table || fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	array = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof file, array + fd);
	return file;
}

// The process that a pidfd stands for, by the number that the recorder has for it; 0 where it is none.
static __always_inline u64 process_of_pidfd(u32 fd)
{
	struct file *file = file_of(fd);
	struct pid *pid = file ? BPF_CORE_READ(file, f_inode, i_private) : NULL;
	if (file && !pid)	// before Linux 6.9 all pidfds had one inode
		pid = BPF_CORE_READ(file, private_data);
	return pid ? (u32)BPF_CORE_READ(pid, numbers[0].nr) : 0;
}

static __always_inline long references(struct file *file)
{
	struct file___ref *new = (void *)file;
	struct file___count *old = (void *)file;
	if (bpf_core_field_exists(new->f_ref))
		return BPF_CORE_READ(new, f_ref.refcnt.counter) + 1;
	return BPF_CORE_READ(old, f_count.counter);
}

// ---- dumps ----

// The iterator may show a copy of the VMA, so where the list's head lies is not known: it is counted and taken off.
static __always_inline u32 chain_length(struct vm_area_struct *vma)
{
	struct list_head *first = BPF_CORE_READ(vma, anon_vma_chain.next), *link = first;
	u32 count = 0;
	for (int i = 0; i < CHAIN_MOST; i++) {
		link = BPF_CORE_READ(link, next);
		if (link == first || !link)
			break;
		count++;
	}
	return count;
}

static __always_inline void tell_name(const struct task *task, struct vm_area_struct *vma, u64 order)
{
	if (!bpf_core_field_exists(vma->anon_name))
		return;
	if (BPF_CORE_READ(vma, vm_file))
		return;
	struct anon_vma_name *name = BPF_CORE_READ(vma, anon_name);
	if (!name)
		return;
	struct name_event *event = RESERVE(name, task, EVENT_VMA_NAME, order);
	if (!event)
		return;
	bpf_probe_read_kernel_str(event->name, sizeof event->name, name->name);
	SUBMIT(event);
}

// Pointers are read with BPF_CORE_READ: for each that is followed directly the verifier searches all types of the kernel
// for the name of the structure, again and again in a loop, which takes seconds.
static __always_inline void tell_vma(struct task *task, struct vm_area_struct *vma, u64 order, bool asked)
{
	struct file *file = BPF_CORE_READ(vma, vm_file);	// a number to the verifier, as functions take it
	if (file)
		tell_file(task, (u64)file, order, asked);
	else
		tell_name(task, vma, order);
	struct vma_event *event = RESERVE(vma, task, EVENT_VMA, order);
	if (!event)
		return;
	event->start = vma->vm_start;
	event->end = vma->vm_end;
	event->flags = vma->vm_flags;
	event->pgoff = vma->vm_pgoff;
	event->anon_vma = (u64)BPF_CORE_READ(vma, anon_vma);
	event->chain = chain_length(vma);
	event->file = (u64)file;
	event->inode = event->device = 0;
	event->name[0] = 0;
	if (file) {
		struct inode *inode = user_inode(file);
		event->inode = BPF_CORE_READ(inode, i_ino);
		event->device = BPF_CORE_READ(inode, i_sb, s_dev);
	} else if (BPF_CORE_READ(vma, vm_ops)) {	// only what the kernel maps by itself has these without a file
		struct vm_special_mapping *special = BPF_CORE_READ(vma, vm_private_data);
		bpf_probe_read_kernel_str(event->name, sizeof event->name, BPF_CORE_READ(special, name));
	}
	if (BPF_CORE_READ(vma, vm_policy))
		event->head.more |= 1;
	if (bpf_core_field_exists(vma->vm_userfaultfd_ctx.ctx) && BPF_CORE_READ(vma, vm_userfaultfd_ctx.ctx))
		event->head.more |= 2;
	SUBMIT(event);
}

// Changes whenever a VMA is changed, and is odd meanwhile.  Kernels without it hold the lock throughout an iteration.
static __always_inline u32 sequence_of(struct mm_struct *mm)
{
	struct mm_struct___sequence *new = (void *)mm;
	if (bpf_core_field_exists(new->mm_lock_seq.sequence))
		return BPF_CORE_READ(new, mm_lock_seq.sequence);
	return 0;
}

static __always_inline void end_dump(const struct task *task, u64 order, u64 count, bool whole)
{
	struct dump_end_event *event = RESERVE(dump_end, task, EVENT_DUMP_END, order);
	if (!event)
		return;
	event->count = count;
	event->whole = whole;
	SUBMIT(event);
}

static __always_inline u64 flags_of_mm(struct mm_struct *mm)
{
	u64 flags = 0;
	struct mm_struct___bitmap *new = (void *)mm;
	struct mm_struct___word *old = (void *)mm;
	if (bpf_core_field_exists(old->flags) && bpf_core_field_size(old->flags) == 8)
		bpf_probe_read_kernel(&flags, 8, (void *)((u64)mm + bpf_core_field_offset(old->flags)));
	else if (bpf_core_field_exists(new->flags))
		bpf_probe_read_kernel(&flags, 8, (void *)((u64)mm + bpf_core_field_offset(new->flags)));
	return flags;
}

static __always_inline u64 capabilities(struct task_struct *task)
{
	const struct cred *new = task->cred;
	struct cred___old *old = (void *)new;
	if (bpf_core_field_exists(new->cap_effective.val))
		return BPF_CORE_READ(new, cap_effective.val);
	return BPF_CORE_READ(old, cap_effective.cap[0]);
}

// The address space of a task; 0 if it has none, or another one changed it meanwhile.
static __always_inline int tell_space(struct task *task, struct task_struct *now, u32 found, bool asked)
{
	struct bpf_iter_task_vma iterator;
	struct vm_area_struct *vma;
	struct mm_struct *mm = now->mm;
	u64 count = 0;
	if (!mm || !task)
		return 0;
	struct file *exe = BPF_CORE_READ(mm, exe_file);
	u32 sequence = sequence_of(mm);
	bool taken = !bpf_iter_task_vma_new(&iterator, now, 0);
	u64 order = take_order();
	tell_file(task, (u64)exe, order, asked);
	if (taken) {
		struct exec_event *event = RESERVE(exec, task, EVENT_EXEC, order);
		if (event) {
			struct signal_struct *signal = now->signal;
			event->head.more = found;
			event->mmap_base = BPF_CORE_READ(mm, mmap_base);
			event->task_size = BPF_CORE_READ(mm, task_size);
			event->start_brk = BPF_CORE_READ(mm, start_brk);
			event->brk = BPF_CORE_READ(mm, brk);
			event->start_stack = BPF_CORE_READ(mm, start_stack);
			event->start_code = BPF_CORE_READ(mm, start_code);
			event->end_code = BPF_CORE_READ(mm, end_code);
			event->start_data = BPF_CORE_READ(mm, start_data);
			event->end_data = BPF_CORE_READ(mm, end_data);
			event->mm_flags = flags_of_mm(mm);
			event->personality = now->personality;
			event->limit_data = BPF_CORE_READ(signal, rlim[2].rlim_cur);
			event->limit_stack = BPF_CORE_READ(signal, rlim[3].rlim_cur);
			event->limit_memlock = BPF_CORE_READ(signal, rlim[8].rlim_cur);
			event->limit_as = BPF_CORE_READ(signal, rlim[9].rlim_cur);
			event->caps = capabilities(now);
			event->exe = (u64)exe;
			u64 start = BPF_CORE_READ(mm, arg_start), length = BPF_CORE_READ(mm, arg_end) - start;
			if (length > ARGV_MOST)
				length = ARGV_MOST;
			event->argv_length = 0;
			event->unused = 0;
			if (length && !asked && !bpf_probe_read_user(event->argv, length, (void *)start))
				event->argv_length = length;	// of another process they are in /proc
			SUBMIT(event);
		}
	}
	while ((vma = bpf_iter_task_vma_next(&iterator))) {
		tell_vma(task, vma, order, asked);
		count++;
	}
	bpf_iter_task_vma_destroy(&iterator);
	bool whole = taken && !(sequence & 1) && sequence_of(mm) == sequence;
	if (taken)
		end_dump(task, order, count, whole);
	return whole;
}

// Dumps the process of the current task if a snapshot is due.
static __always_inline void snapshot_if_due(struct task *task)
{
	u32 wanted = state.snapshot_wanted;
	if (!wanted)
		return;
	struct process *process = current_process();
	if (process && process->dumped != wanted && tell_space(task, bpf_get_current_task_btf(), 1, false))
		process->dumped = wanted;
}

// The loader asks for a process that has made no call since a snapshot was due.
SEC("syscall")
int ask(struct question *question)
{
	u32 key = question->pid, wanted = state.snapshot_wanted;
	struct task_struct *which = bpf_task_from_pid(key);
	if (!which)
		return 0;
	struct task *task = bpf_map_lookup_elem(&tasks, &key);
	if (!task)
		task = adopt(which);
	struct process *process = process_of(key);
	bool in_execve = task && (u64)which->mm != task->mm;	// the new program will be told of
	if (task && !in_execve && process && process->dumped != wanted && tell_space(task, which, 1, true))
		process->dumped = wanted;
	bpf_task_release(which);
	return 0;
}

// ---- faults ----

__noinline int tell_fault(struct task *task, u32 locked)
{
	if (!task)
		return 0;
	struct fault_event *event = RESERVE(fault, task, EVENT_FAULT, take_order());
	task->fault = FAULT_TOLD;
	if (!event)
		return 0;
	event->head.more = task->fault_code;
	event->address = task->fault_address;
	event->locked = locked;
	event->stack = task->fault_stack;
	SUBMIT(event);
	return 0;
}

// The fault that was in progress, if any, is over.
static __always_inline void end_fault(struct task *task)
{
	if (task->fault == FAULT_PENDING && settings.all_faults)
		tell_fault(task, 0);
	task->fault = FAULT_NONE;
}

static __always_inline int begin_fault(void *ctx, u64 address, u64 code)
{
	struct task *task = current_task();
	struct task_struct *now = bpf_get_current_task_btf();
	if (!task || address >= USER_END || (u64)now->mm != task->mm)
		return 0;
	// A look at memory that may not wait for it, by a profiler, a BPF program or this one: the kernel handles no such
	// fault, and it may come within one that it handles.  After a write the kernel itself brings the page.
	if (now->pagefault_disabled && !(code & FLAG_WRITE_FAULT))
		return 0;
	end_fault(task);
	task->fault_address = address;
	task->fault_code = code;
	// Most faults take the lock of the VMA, and are not told of.
	if (settings.all_faults)
		task->fault_stack = take_stack(ctx, task, OWN_STACK_OF_FAULT);
	task->fault = FAULT_PENDING;
	return 0;
}

SEC("tp_btf/page_fault_user")
int BPF_PROG(user_fault, unsigned long address, struct pt_regs *regs, unsigned long code)
{
	return begin_fault(ctx, address, code);
}

SEC("tp_btf/page_fault_kernel")
int BPF_PROG(kernel_fault, unsigned long address, struct pt_regs *regs, unsigned long code)
{
	return begin_fault(ctx, address, code);
}

// ---- the mmap lock ----

// VMAs may have changed, by a call that had begun before the recorder came, or by one that it does not know.
static __always_inline void tell_unexplained(struct task *task, struct process *process)
{
	struct unexplained_event *event = RESERVE(unexplained, task, EVENT_UNEXPLAINED, take_order());
	if (process)
		process->dumped = 0;
	if (event)
		SUBMIT(event);
}

static __always_inline void let_go_for_writing(struct task *task)
{
	struct process *process = current_process();
	u32 writes = process ? __sync_fetch_and_add(&process->writes, 1) + 1 : 0;
	if (!task->number) {
		// In a fault a stack grew; at the end of execve the old address space goes.
		if (task->fault == FAULT_NONE && (u64)bpf_get_current_task_btf()->mm == task->mm)
			tell_unexplained(task, process);
		return;
	}
	task->writes = writes;
	task->released = take_order();
	task->locked = 1;
}

// Whether a lock orders what the task does: that of its own address space, or of the one it gives advice about.
static __always_inline bool counts(const struct task *task, struct mm_struct *mm)
{
	return (u64)mm == task->mm || task->number == CALL_PROCESS_MADVISE + 1;
}

SEC("tp_btf/mmap_lock_acquire_returned")
int BPF_PROG(lock_acquired, struct mm_struct *mm, bool write, bool success)
{
	struct task *task = living_task();
	if (!task || !success || !counts(task, mm))
		return 0;
	if (write)
		task->locked = 2;	// held; a downgrade looks like taking it for reading
	else if (task->locked == 2)
		let_go_for_writing(task);
	return 0;
}

SEC("tp_btf/mmap_lock_released")
int BPF_PROG(lock_released, struct mm_struct *mm, bool write)
{
	struct task *task = living_task();
	if (!task || !counts(task, mm))
		return 0;
	if (write)
		let_go_for_writing(task);
	else if (task->fault != FAULT_NONE) {
		if (!settings.all_faults)
			task->fault_stack = take_stack(ctx, task, OWN_STACK_OF_FAULT);
		tell_fault(task, 1);
	} else if (task->number)
		task->read = take_order();
	return 0;
}

// ---- calls ----

__noinline int read_data(struct task *task, u64 order, u64 address, u64 length, u32 is_string)
{
	union scratch *space = scratch(0);
	if (!task || !space || !address || !length)
		return true;
	struct data_event *event = &space->data;
	long got;
	if (is_string) {
		got = bpf_probe_read_user_str(event->bytes, NAME_MOST, (void *)address);
		length = got;
	} else {
		if (length > DATA_MOST)
			length = DATA_MOST;
		got = bpf_probe_read_user(event->bytes, length, (void *)address);
	}
	if (got < 0)
		return false;
	set_head(&event->head, task, EVENT_DATA, 0, order);
	event->head.more = length;
	u32 size = sizeof event->head + length;
	size &= 0xfff;
	if (size > sizeof *event)
		size = sizeof *event;
	event->head.size = size;
	if (bpf_ringbuf_output(&events, event, size, BPF_RB_NO_WAKEUP))
		lose();
	return true;
}

// Tells what the call's pointers point to; false if it is not in memory yet.
__noinline int tell_data(struct task *task, u32 number, u64 order)
{
	if (!task)
		return true;
	const u64 *args = task->args;
	u64 registration[4];
	switch (number) {
	case CALL_PRCTL:
		if (args[0] == OPTION_SET_MM && args[1] == PART_MAP)
			return read_data(task, order, args[2], 8 * (PARTS + 2), false);
		return args[0] != OPTION_SET_VMA || read_data(task, order, args[4], NAME_MOST, true);
	case CALL_SHMCTL:
		return (u32)args[1] != COMMAND_IPC_SET || read_data(task, order, args[2], OFFSET_SHM_MODE + 4, false);
	case CALL_MEMFD_CREATE:
		return read_data(task, order, args[0], NAME_MOST, true);
	case CALL_SETRLIMIT:
		return read_data(task, order, args[1], 16, false);
	case CALL_PRLIMIT64:
		return read_data(task, order, args[2], 16, false);
	case CALL_MBIND:
	case CALL_SET_MEMPOLICY: {
		u64 address = number == CALL_MBIND ? args[3] : args[1], bits = number == CALL_MBIND ? args[4] : args[2];
		if (bits < 2 || bits > 8 * DATA_MOST)
			return true;
		return read_data(task, order, address, (bits + 62) / 64 * 8, false);	// the kernel takes one bit fewer
	}
	case CALL_PROCESS_MADVISE:
		return read_data(task, order, args[1], args[2] > RANGES_MOST ? 16 * RANGES_MOST : args[2] * 16, false);
	case CALL_IOCTL:
		return read_data(task, order, args[2], 24, false);
	case CALL_IO_URING_REGISTER:
		if (args[1] == OP_REGISTER_BUFFERS)
			return read_data(task, order, args[2], args[3] > RANGES_MOST ? 16 * RANGES_MOST : args[3] * 16, false);
		if (args[1] != OP_REGISTER_BUFFERS2)
			return true;
		if (bpf_probe_read_user(registration, sizeof registration, (void *)args[2]))
			return false;
		registration[0] &= 0xffffffff;
		return read_data(task, order, registration[2],
				 registration[0] > RANGES_MOST ? 16 * RANGES_MOST : registration[0] * 16, false);
	}
	return true;
}

static __always_inline bool worth_telling(u32 number, const u64 *args)
{
	u32 request = args[1];
	switch (number) {
	case CALL_PRCTL:
		return args[0] == OPTION_SET_MM || args[0] == OPTION_SET_THP_DISABLE || args[0] == OPTION_SET_MDWE ||
		       args[0] == OPTION_SET_MEMORY_MERGE || args[0] == OPTION_SET_VMA;
	case CALL_ARCH_PRCTL:
		return args[0] >= 0x2001 && args[0] <= 0x2003;	// maps a vdso
	case CALL_PRLIMIT64:
		return args[2] != 0;
	case CALL_IOCTL:
		return request == REQUEST_UFFD_API || request == REQUEST_UFFD_REGISTER || request == REQUEST_UFFD_UNREGISTER;
	case CALL_FCNTL:
		return request == COMMAND_ADD_SEALS;
	}
	return true;
}

static __always_inline struct file *file_of_call(struct task *task, u32 number)
{
	const u64 *args = task->args;
	switch (number) {
	case CALL_MMAP:
		return args[3] & FLAG_MAP_ANONYMOUS ? NULL : file_of(args[4]);
	case CALL_FCNTL:
	case CALL_IOCTL:
	case CALL_CLOSE:
		return file_of(args[0]);
	}
	return NULL;
}

static __always_inline bool driver_matters(struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	u64 magic = BPF_CORE_READ(inode, i_sb, s_magic);
	return (BPF_CORE_READ(inode, i_mode) & TYPE_MASK) != TYPE_REGULAR || magic == MAGIC_HUGETLBFS ||
	       magic == MAGIC_SECRETMEM;
}

SEC("tp_btf/sys_enter")
int BPF_PROG(enter, struct pt_regs *regs, long id)
{
	struct task *task = current_task();
	if (!task) {
		if (settings.adopt_cookie && id == CALL_PRCTL && regs->di == settings.adopt_cookie) {
			adopt(bpf_get_current_task_btf());
			struct process *process = current_process();
			if (process)	// it is the loader's until it execs
				process->dumped = state.snapshot_wanted;
		}
		return 0;
	}
	end_fault(task);
	task->number = 0;
	task->entered = 0;
	snapshot_if_due(task);
	if (id < 0 || id >= CALLS || !settings.call_mode[id])
		return 0;
	if (id == CALL_CLOSE && !state.userfaultfds)
		return 0;
	task->args[0] = regs->di;
	task->args[1] = regs->si;
	task->args[2] = regs->dx;
	task->args[3] = regs->r10;
	task->args[4] = regs->r8;
	task->args[5] = regs->r9;
	if (!worth_telling(id, task->args))
		return 0;
	struct file *file = file_of_call(task, id);
	if (id == CALL_CLOSE) {
		struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
		char name[16] = {};
		bpf_probe_read_kernel_str(name, sizeof name, BPF_CORE_READ(dentry, d_name.name));
		if (!file || name[0] != '[' || name[1] != 'u' || name[5] != 'f' || references(file) != 1)
			return 0;
	}
	task->file = (u64)file;
	task->look = file && id == CALL_MMAP && driver_matters(file);
	if (file)
		tell_file(task, (u64)file, take_order(), 0);
	task->released = 0;
	task->read = 0;
	task->locked = 0;
	task->stack = settings.copy_stacks ? -1 : take_stack(ctx, task, OWN_STACK_OF_CALL);
	task->entered = take_order();
	if (settings.copy_stacks)
		copy_stack(task, regs, task->entered);
	task->number = id + 1;
	task->has_data = tell_data(task, id, task->entered);
	return 0;
}

struct looked {
	u64 start, end, flags, file;
};

static long look(struct task_struct *task, struct vm_area_struct *vma, void *context)
{
	struct looked *to = context;
	to->start = vma->vm_start;
	to->end = vma->vm_end;
	to->flags = vma->vm_flags;
	to->file = (u64)BPF_CORE_READ(vma, vm_file);
	return 0;
}

// What the call itself populates takes no fault.  Whether each page was there to populate only the pages know, so the
// VMAs that have an anon_vma afterwards are told, as writes to their first address.
__noinline int tell_populated(struct task *task, u64 start, u64 end)
{
	struct bpf_iter_task_vma iterator;
	struct vm_area_struct *vma;
	u32 count = 0;
	if (!task)
		return 0;
	bpf_iter_task_vma_new(&iterator, bpf_get_current_task_btf(), start);
	while ((vma = bpf_iter_task_vma_next(&iterator))) {
		if (vma->vm_start >= end || count >= POPULATED_MOST)
			break;
		if (!(vma->vm_flags & FLAG_VM_WRITE) || !BPF_CORE_READ(vma, anon_vma))
			continue;
		struct fault_event *event = RESERVE(fault, task, EVENT_FAULT, take_order());
		if (!event)
			break;
		event->head.more = FLAG_WRITE_FAULT;
		event->address = vma->vm_start;
		event->locked = 1;
		event->stack = -1;
		SUBMIT(event);
		count++;
	}
	bpf_iter_task_vma_destroy(&iterator);
	return 0;
}

static __always_inline void tell_if_populated(struct task *task, u32 number, u64 result)
{
	const u64 *args = task->args;
	struct task_struct *now = bpf_get_current_task_btf();
	bool all_locked = BPF_CORE_READ(now, mm, def_flags) & FLAG_VM_LOCKED;
	if (number == CALL_MLOCK || number == CALL_MLOCK2)
		tell_populated(task, args[0], args[0] + args[1]);
	else if (number == CALL_MLOCKALL)
		tell_populated(task, 0, ~0ULL);
	else if (number == CALL_MADVISE && (args[2] == ADVICE_POPULATE_READ || args[2] == ADVICE_POPULATE_WRITE))
		tell_populated(task, args[0], args[0] + args[1]);
	else if (result >= -4095ULL)
		return;
	else if (number == CALL_MMAP && (all_locked || args[3] & (FLAG_MAP_POPULATE | FLAG_MAP_LOCKED)))
		tell_populated(task, result, result + args[1]);
	else if (number == CALL_MREMAP && task->locked)
		tell_populated(task, result, result + args[2]);
	else if (number == CALL_BRK && all_locked)
		tell_populated(task, result - 1, result);
}

SEC("tp_btf/sys_exit")
int BPF_PROG(leave, struct pt_regs *regs, long result)
{
	u32 key = bpf_get_current_pid_tgid();
	struct task *task = bpf_map_lookup_elem(&tasks, &key);
	if (!task || !task->number)
		return 0;
	u32 number = task->number - 1;
	if (settings.call_mode[number & (CALLS - 1)] == 1 + NEW_TASK)
		goto out;
	if (result <= -512 && result >= -516)	// it will be made again
		goto out;
	end_fault(task);
	struct looked found = {};
	if (number == CALL_SHMAT || task->look)
		bpf_find_vma(bpf_get_current_task_btf(), result, look, &found, 0);
	if (number == CALL_PROCESS_MADVISE && result != -ERROR_BAD_DESCRIPTOR && (int)task->args[0] >= 0)
		found.start = process_of_pidfd(task->args[0]);
	u64 order = task->released ?: task->read ?: take_order();
	struct process *process = current_process();
	if (number == CALL_SHMAT && found.file) {
		tell_file(task, found.file, order, 0);
		task->file = found.file;
	}
	if (!task->has_data)
		tell_data(task, number, order);
	if (number == CALL_USERFAULTFD || number == CALL_IOCTL)
		state.userfaultfds = 1;
	struct call_event *event = RESERVE(call, task, EVENT_CALL, order);
	if (event) {
		event->head.more = number;
		__builtin_memcpy(event->args, task->args, sizeof event->args);
		event->result = result;
		event->file = task->file;
		event->result_start = found.start;
		event->result_end = found.end;
		event->result_flags = found.flags;
		event->stack = task->stack;
		struct task_struct *now = bpf_get_current_task_btf();
		event->map_count = BPF_CORE_READ(now, mm, map_count);
		event->locked = task->released != 0;
		event->overtaken = task->released && process && process->writes != task->writes;
		SUBMIT(event);
	}
	tell_if_populated(task, number, result);
out:
	task->number = 0;
	task->entered = 0;
	task->file = 0;
	return 0;
}

// ---- new tasks, execs and exits ----

SEC("tp_btf/task_newtask")
int BPF_PROG(new_task, struct task_struct *child, u64 flags)
{
	struct task *task = current_task();
	if (!task)
		return 0;
	struct task *made = adopt(child);
	if (!made)
		return 0;
	struct fork_event *event = RESERVE(fork, task, EVENT_FORK, 0);
	if (!event)
		return 0;
	event->head.order = !(flags & FLAG_CLONE_VM) && task->released ? task->released : take_order();
	event->flags = flags;
	event->child_pid = made->pid;
	event->child_tid = made->tid;
	SUBMIT(event);
	struct process *process = current_process();
	u32 own = BPF_CORE_READ(child, tgid);
	if (process && own != bpf_get_current_pid_tgid() >> 32) {	// a copy of what is known
		struct process copy = {.dumped = process->dumped};
		bpf_map_update_elem(&processes, &own, &copy, BPF_ANY);
	}
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(exec, struct task_struct *now, int old_pid, struct linux_binprm *binary)
{
	u32 key = old_pid;
	struct task *task = bpf_map_lookup_elem(&tasks, &key);
	if (!task)
		return 0;
	end_fault(task);
	bpf_map_delete_elem(&tasks, &key);
	task = adopt(now);
	if (!task)
		return 0;
	struct process *process = current_process();
	if (!tell_space(task, now, 0, false))	// nothing is known of the new program
		lose();
	else if (process)
		process->dumped = state.snapshot_wanted;
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(end_of_task, struct task_struct *now, bool group_dead)
{
	u32 key = bpf_get_current_pid_tgid(), own = bpf_get_current_pid_tgid() >> 32;
	struct task *task = current_task();
	struct bpf_iter_task_vma iterator;
	struct vm_area_struct *vma;
	u64 count = 0;
	if (!task)
		return 0;
	end_fault(task);
	task->number = 0;
	task->entered = 0;
	if (group_dead) {
		struct signal_struct *signal = now->signal;
		u64 code = BPF_CORE_READ(signal, flags) & FLAG_GROUP_EXIT ? BPF_CORE_READ(signal, group_exit_code)
									   : now->exit_code;
		bool has_list = now->mm && !now->vfork_done;
		bool taken = !bpf_iter_task_vma_new(&iterator, now, 0);
		u64 order = take_order();
		struct exit_event *event = RESERVE(exit, task, EVENT_EXIT, order);
		if (event) {
			event->head.more = has_list && taken;
			event->code = code;
			event->start_brk = BPF_CORE_READ(now, mm, start_brk);
			event->brk = BPF_CORE_READ(now, mm, brk);
			event->start_stack = BPF_CORE_READ(now, mm, start_stack);
			SUBMIT(event);
		}
		if (has_list)
			while ((vma = bpf_iter_task_vma_next(&iterator))) {
				tell_vma(task, vma, order, false);
				count++;
			}
		bpf_iter_task_vma_destroy(&iterator);
		if (has_list && taken)
			end_dump(task, order, count, true);
		bpf_map_delete_elem(&processes, &own);
	}
	bpf_map_delete_elem(&tasks, &key);
	return 0;
}
