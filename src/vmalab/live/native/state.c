// SPDX-License-Identifier: GPL-2.0-or-later
// Tasks by their number, processes, address spaces, and sets of address ranges.
#include <stdlib.h>
#include <string.h>

#include "recorder.h"

#define BUCKETS 1024

static struct task *buckets[BUCKETS];
struct mm *all_mms;

// ---- sets of ranges ----

// The first range that ends at or after the address (touching counts).
static size_t ranges_index(const struct ranges *set, u64 address)
{
	size_t low = 0, high = set->count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (set->at[middle].end < address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

// Puts `number` ranges in the place of those from first to last (exclusive).
static void ranges_replace(struct ranges *set, size_t first, size_t last, const struct range *with, size_t number)
{
	size_t count = set->count - (last - first) + number;
	if (count > set->capacity) {
		set->capacity = count * 2;
		set->at = get_memory(set->at, set->capacity * sizeof *set->at);
	}
	memmove(set->at + first + number, set->at + last, (set->count - last) * sizeof *set->at);
	if (number)
		memcpy(set->at + first, with, number * sizeof *with);
	set->count = count;
}

void ranges_add(struct ranges *set, u64 start, u64 end)
{
	size_t first = ranges_index(set, start), last = first;
	struct range whole = {start, end};
	while (last < set->count && set->at[last].start <= end) {
		if (set->at[last].start < whole.start)
			whole.start = set->at[last].start;
		if (set->at[last].end > whole.end)
			whole.end = set->at[last].end;
		last++;
	}
	ranges_replace(set, first, last, &whole, 1);
}

void ranges_remove(struct ranges *set, u64 start, u64 end)
{
	size_t first = ranges_index(set, start + 1), last = first, number = 0;
	struct range rest[2];
	while (last < set->count && set->at[last].start < end)
		last++;
	if (first == last)
		return;
	if (set->at[first].start < start)
		rest[number++] = (struct range){set->at[first].start, start};
	if (set->at[last - 1].end > end)
		rest[number++] = (struct range){end, set->at[last - 1].end};
	ranges_replace(set, first, last, rest, number);
}

bool ranges_overlap(const struct ranges *set, u64 start, u64 end)
{
	size_t index = ranges_index(set, start + 1);
	return index < set->count && set->at[index].start < end;
}

bool ranges_cover(const struct ranges *set, u64 start, u64 end)
{
	size_t index = ranges_index(set, start + 1);
	return index < set->count && set->at[index].start <= start && set->at[index].end >= end;
}

void list_add(struct list *list, u64 start, u64 end)
{
	if (list->count == list->capacity) {
		list->capacity = list->capacity ? list->capacity * 2 : 8;
		list->at = get_memory(list->at, list->capacity * sizeof *list->at);
	}
	list->at[list->count++] = (struct range){start, end};
}

// ---- address spaces ----

struct mm *mm_new(void)
{
	struct mm *mm = get_memory(NULL, sizeof *mm);
	*mm = (struct mm){.maps_fd = -1, .pagemap_fd = -1, .next = all_mms};
	all_mms = mm;
	return mm;
}

struct mm *mm_copy(const struct mm *parent)
{
	struct mm *mm = mm_new();
	mm->brk = parent->brk;
	for (size_t i = 0; i < parent->growing.count; i++)
		list_add(&mm->growing, parent->growing.at[i].start, parent->growing.at[i].end);
	return mm;
}

static void mm_release(struct mm *mm)
{
	if (--mm->users > 0)
		return;
	struct mm **link = &all_mms;
	while (*link != mm)
		link = &(*link)->next;
	*link = mm->next;
	mm_close(mm);
	free(mm->written.at);
	free(mm->clean.at);
	free(mm->growing.at);
	free(mm->found.at);
	free(mm->grown.at);
	free(mm);
}

// ---- processes and tasks ----

struct process *process_new(pid_t pid)
{
	struct process *process = get_memory(NULL, sizeof *process);
	*process = (struct process){.pid = pid};
	return process;
}

void process_set_mm(struct process *process, struct mm *mm)
{
	if (mm)
		mm->users++;
	if (process->mm)
		mm_release(process->mm);
	process->mm = mm;
}

struct task *task_find(pid_t tid)
{
	struct task *task = buckets[(unsigned)tid % BUCKETS];
	while (task && task->tid != tid)
		task = task->next;
	return task;
}

struct task *task_new(pid_t tid)
{
	struct task *task = get_memory(NULL, sizeof *task);
	struct task **bucket = &buckets[(unsigned)tid % BUCKETS];
	*task = (struct task){.tid = tid, .next = *bucket};
	*bucket = task;
	return task;
}

static void task_leave_process(struct task *task)
{
	struct process *process = task->process;
	task->process = NULL;
	if (process && --process->users == 0) {
		process_set_mm(process, NULL);
		free(process);
	}
}

void task_attach(struct task *task, struct process *process)
{
	process->users++;
	task_leave_process(task);
	task->process = process;
}

void task_remove(struct task *task)
{
	struct task **link = &buckets[(unsigned)task->tid % BUCKETS];
	while (*link != task)
		link = &(*link)->next;
	*link = task->next;
	task_leave_process(task);
	if (task->files)
		files_release(task->files);
	text_free(&task->data);
	free(task);
}

void tasks_each(void (*visit)(struct task *task))
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct task *task = buckets[i], *next; task; task = next) {
			next = task->next;
			visit(task);
		}
}
