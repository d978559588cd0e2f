// SPDX-License-Identifier: GPL-2.0-or-later
// The VMAs of a stopped task, and which of them have anonymous pages: those are the ones that have been written to.
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "recorder.h"

#define HUGE_PAGE (2ULL << 20)

// ---- the kernel's interface, for system headers that do not have it yet ----

struct query_vma {	// since Linux 6.11
	u64 size, flags, address;
	u64 start, end, vma_flags, page_size, offset, inode;
	uint32_t major, minor, name_size, build_id_size;
	u64 name, build_id;
};
#define QUERY_VMA _IOWR('f', 17, struct query_vma)
#define QUERY_WRITABLE 2
#define QUERY_SHARED 8
#define QUERY_OR_NEXT 0x10

struct scan_pages {	// since Linux 6.7
	u64 size, flags, start, end, walk_end, regions, region_count, max_pages;
	u64 inverted, all_of, any_of, returned;
};
#define SCAN_PAGES _IOWR('f', 16, struct scan_pages)
#define IS_FILE 4
#define IS_PRESENT 8
#define IS_SWAPPED 16
#define IS_ZERO_PAGE 32
#define IS_HUGE 64
#define IS_GUARD 256	// since Linux 6.15; before it there is no such page

bool use_ioctls = true;
static bool query_works = true, scan_works = true;
static u64 not_written = IS_FILE | IS_ZERO_PAGE | IS_GUARD;

// ---- files of /proc ----

static int proc_open(pid_t tid, const char *name)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", tid, name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

bool proc_read(pid_t tid, const char *name, struct text *text)
{
	static char chunk[65536];
	int fd = proc_open(tid, name);
	ssize_t length = -1;
	if (fd < 0)
		return false;
	text_add(text, "", 0);
	while ((length = read(fd, chunk, sizeof chunk)) > 0)
		text_add(text, chunk, (size_t)length);
	int error = errno;
	close(fd);
	errno = error;
	return length == 0;
}

static bool smaps_line_matters(const char *line)
{
	return !isupper((unsigned char)*line) || !strncmp(line, "Anonymous:", 10) || !strncmp(line, "Swap:", 5) ||
	       !strncmp(line, "ProtectionKey:", 14) || !strncmp(line, "VmFlags:", 8);
}

bool proc_read_smaps(pid_t tid, struct text *text)
{
	int fd = proc_open(tid, "smaps");
	FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
	if (!file)
		return false;
	char *line = NULL;
	size_t capacity = 0;
	ssize_t length;
	text_add(text, "", 0);
	while ((length = getline(&line, &capacity, file)) > 0)
		if (smaps_line_matters(line))
			text_add(text, line, (size_t)length);
	bool complete = !ferror(file);
	free(line);
	fclose(file);
	return complete;
}

void mm_close(struct mm *mm)
{
	if (mm->maps_fd >= 0)
		close(mm->maps_fd);
	if (mm->pagemap_fd >= 0)
		close(mm->pagemap_fd);
	mm->maps_fd = mm->pagemap_fd = -1;
	proc_forget_cache();
}

static bool mm_open(struct task *task)
{
	struct mm *mm = task->process->mm;
	if (mm->maps_fd == -1) {
		mm->maps_fd = proc_open(task->tid, "maps");
		mm->pagemap_fd = proc_open(task->tid, "pagemap");
		if (mm->maps_fd < 0 || mm->pagemap_fd < 0) {
			mm_close(mm);
			mm->maps_fd = -2;
			event_lost(task->process->pid, "its memory cannot be looked at: what it has written to is not known");
		}
	}
	return mm->maps_fd >= 0;
}

// ---- the VMA at an address ----

// Without the ioctl, the whole of maps is read; it holds until the next stop.
static struct vma *cached;
static size_t cached_count, cached_capacity;
static struct mm *cached_mm;

void proc_forget_cache(void)
{
	cached_mm = NULL;
}

static void cache_maps(struct task *task)
{
	struct text maps = {0};
	cached_count = 0;
	cached_mm = task->process->mm;
	if (!proc_read(task->tid, "maps", &maps))
		return;
	for (char *save = NULL, *line = strtok_r(maps.bytes, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		struct vma vma = {0};
		char mode[5];
		int name = 0;
		if (sscanf(line, "%lx-%lx %4s %lx %x:%x %lu %n", &vma.start, &vma.end, mode, &vma.offset, &vma.major,
			   &vma.minor, &vma.inode, &name) < 7)
			continue;
		vma.writable = mode[1] == 'w';
		vma.shared = mode[3] == 's';
		if (name)
			snprintf(vma.name, sizeof vma.name, "%s", line + name);
		if (cached_count == cached_capacity) {
			cached_capacity = cached_capacity * 2 + 64;
			cached = get_memory(cached, cached_capacity * sizeof *cached);
		}
		cached[cached_count++] = vma;
	}
	text_free(&maps);
}

static bool vma_find_in_maps(struct task *task, u64 address, struct vma *vma)
{
	if (cached_mm != task->process->mm)
		cache_maps(task);
	for (size_t i = 0; i < cached_count; i++)
		if (cached[i].end > address) {
			*vma = cached[i];
			return true;
		}
	return false;
}

bool vma_find(struct task *task, u64 address, struct vma *vma, bool with_name)
{
	if (!mm_open(task))
		return false;
	if (!use_ioctls || !query_works)
		return vma_find_in_maps(task, address, vma);
	struct query_vma query = {.size = sizeof query, .flags = QUERY_OR_NEXT, .address = address};
	if (with_name) {
		query.name = (u64)(uintptr_t)vma->name;
		query.name_size = sizeof vma->name;
	}
	vma->name[0] = 0;
	if (ioctl(task->process->mm->maps_fd, QUERY_VMA, &query)) {
		if (errno != ENOTTY)
			return false;
		query_works = false;
		return vma_find_in_maps(task, address, vma);
	}
	vma->start = query.start;
	vma->end = query.end;
	vma->offset = query.offset;
	vma->inode = query.inode;
	vma->major = query.major;
	vma->minor = query.minor;
	vma->shared = query.vma_flags & QUERY_SHARED;
	vma->writable = query.vma_flags & QUERY_WRITABLE;
	return true;
}

// ---- pages ----

static u64 scan(int fd, u64 start, u64 end, u64 inverted, u64 all_of, u64 any_of)
{
	u64 region[3] = {0};
	struct scan_pages arguments = {
		.size = sizeof arguments, .start = start, .end = end, .regions = (u64)(uintptr_t)region, .region_count = 1,
		.max_pages = 1, .inverted = inverted, .all_of = all_of, .any_of = any_of, .returned = IS_PRESENT | IS_SWAPPED,
	};
	int found = ioctl(fd, SCAN_PAGES, &arguments);
	if (found < 0 && errno == ENOTTY)
		scan_works = false;
	return found > 0 ? region[0] : 0;
}

// Without the ioctl: one word a page.  The zero page looks like any other, so a VMA that has only been read counts.
static u64 scan_pagemap(int fd, u64 start, u64 end)
{
	static u64 words[4096];
	const u64 present = 1ULL << 63, swapped = 1ULL << 62, of_file = 1ULL << 61, guard = 1ULL << 58;
	while (start < end) {
		size_t pages = (end - start) / PAGE < 4096 ? (end - start) / PAGE : 4096;
		ssize_t length = pread(fd, words, pages * sizeof *words, (off_t)(start / PAGE * sizeof *words));
		if (length <= 0)
			return 0;
		for (size_t i = 0; i < (size_t)length / sizeof *words; i++)
			if ((words[i] & (present | swapped)) && !(words[i] & (of_file | guard)))
				return start + i * PAGE;
		start += (u64)length / sizeof *words * PAGE;
	}
	return 0;
}

// The first page in a private VMA that shows that it has been written to, or 0.
static u64 anonymous_page(int fd, u64 start, u64 end)
{
	if (use_ioctls && scan_works) {
		errno = 0;
		u64 page = scan(fd, start, end, not_written, not_written, IS_PRESENT | IS_SWAPPED);
		if (errno == EINVAL && not_written & IS_GUARD) {
			not_written &= ~(u64)IS_GUARD;
			page = scan(fd, start, end, not_written, not_written, IS_PRESENT | IS_SWAPPED);
		}
		// A huge zero page counts although nothing was written: the fault prepares the VMA before it chooses it.
		if (!page && scan_works && start / HUGE_PAGE != end / HUGE_PAGE)
			page = scan(fd, start, end, 0, IS_ZERO_PAGE | IS_HUGE, 0);
		if (scan_works)
			return page;
	}
	return scan_pagemap(fd, start, end);
}

// Looks at the part of a VMA from start to end.
static void observe_part(struct task *task, const struct vma *vma, u64 start, u64 end)
{
	struct mm *mm = task->process->mm;
	if (vma->shared || start >= end || ranges_overlap(&mm->written, start, end))
		return;
	if (!vma->writable && ranges_cover(&mm->clean, start, end))
		return;
	if (!(use_ioctls && query_works) && !strncmp(vma->name, "[v", 2))
		return;		// vvar and vdso: the kernel's own pages
	u64 page = anonymous_page(mm->pagemap_fd, start, end);
	if (page) {
		list_add(&mm->found, page, 0);
		ranges_add(&mm->written, start, end);
	} else if (!vma->writable) {
		ranges_add(&mm->clean, start, end);
	}
}

void observe_range(struct task *task, u64 start, u64 end)
{
	struct vma vma;
	if (end < start || start >= TOP_OF_USER)
		return;
	start = start / PAGE * PAGE;
	start -= start ? 1 : 0;
	end = (end < TOP_OF_USER ? end + PAGE - 1 : TOP_OF_USER) / PAGE * PAGE + 1;
	while (start < end && vma_find(task, start, &vma, false) && vma.start < end) {
		observe_part(task, &vma, vma.start, vma.end);
		start = vma.end;
	}
}

void observe_all(struct task *task)
{
	observe_range(task, 0, TOP_OF_USER);
}

void observe_neighbours(struct task *task, u64 start, u64 end)
{
	struct vma vma;
	if (start && vma_find(task, start - 1, &vma, false) && vma.start < start)
		observe_part(task, &vma, vma.start, vma.end < start ? vma.end : start);
	if (vma_find(task, end, &vma, false) && vma.start <= end)
		observe_part(task, &vma, vma.start > end ? vma.start : end, vma.end);
}

void observe_forget(struct mm *mm, u64 start, u64 end)
{
	if (start < end) {
		ranges_remove(&mm->written, start, end);
		ranges_remove(&mm->clean, start, end);
	}
}

// ---- stacks ----

void observe_stacks(struct task *task)
{
	struct mm *mm = task->process->mm;
	struct vma vma;
	for (size_t i = 0; i < mm->growing.count;) {
		struct range *stack = &mm->growing.at[i];
		if (!vma_find(task, stack->start, &vma, false) || vma.start >= stack->end) {
			*stack = mm->growing.at[--mm->growing.count];	// unmapped
			continue;
		}
		if (vma.start < stack->start)
			list_add(&mm->grown, vma.start, vma.end);
		stack->start = vma.start;
		i++;
	}
}

void observe_new_space(struct task *task)
{
	struct mm *mm = task->process->mm;
	struct text maps = {0};
	unsigned long start, end;
	u64 start_brk = 0;
	if (proc_read(task->tid, "maps", &maps))
		for (char *save = NULL, *line = strtok_r(maps.bytes, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
			if (sscanf(line, "%lx-%lx", &start, &end) != 2)
				continue;
			if (strstr(line, " [stack]"))
				list_add(&mm->growing, start, end);
			if (strstr(line, " [heap]"))
				mm->brk = end;
		}
	text_free(&maps);
	if (!mm->brk && proc_read(task->tid, "stat", &maps)) {
		char *at = strrchr(maps.bytes, ')');	// field 2; start_brk is field 47
		for (int field = 2; at && field < 47; field++)
			at = strchr(at + 1, ' ');
		if (at)
			sscanf(at, " %lu", &start_brk);
		mm->brk = start_brk;
	}
	text_free(&maps);
}

void event_observed(struct mm *mm)
{
	char sign = '[';
	if (mm->found.count) {
		text_print(&event_out, ",\"written\":");
		for (size_t i = 0; i < mm->found.count; i++, sign = ',')
			text_print(&event_out, "%c%llu", sign, (unsigned long long)mm->found.at[i].start);
		text_print(&event_out, "]");
	}
	sign = '[';
	if (mm->grown.count) {
		text_print(&event_out, ",\"grown\":");
		for (size_t i = 0; i < mm->grown.count; i++, sign = ',')
			text_print(&event_out, "%c[%llu,%llu]", sign, (unsigned long long)mm->grown.at[i].start,
				   (unsigned long long)mm->grown.at[i].end);
		text_print(&event_out, "]");
	}
	mm->found.count = mm->grown.count = 0;
}
