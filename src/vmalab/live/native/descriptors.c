// SPDX-License-Identifier: GPL-2.0-or-later
// Which descriptors stand for the same open file: two opens of a path are two files to the kernel's VMAs, a dup is not.
// A table holds only descriptors that have been asked for; each is forgotten when it is closed.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "recorder.h"

#define HUGETLBFS 0x958458f6UL
#define MOUNTS_KEPT 256
#define FLAG_NOEXEC 8	// of statfs

struct open_file {
	int id, users;
	bool known, told;
	unsigned major, minor, mode;
	u64 inode;
	char path[4200], fs[32];
	const char *kind;
	bool readable, writable, noexec;
};

struct slot {
	int fd;
	struct open_file *file;
};

struct files {
	int users;
	struct slot *at;
	size_t count, capacity;
};

static int last_id;

// ---- tables ----

struct files *files_new(void)
{
	struct files *files = get_memory(NULL, sizeof *files);
	*files = (struct files){.users = 1};
	return files;
}

struct files *files_share(struct files *files)
{
	files->users++;
	return files;
}

static void open_file_release(struct open_file *file)
{
	if (--file->users == 0)
		free(file);
}

void files_release(struct files *files)
{
	if (--files->users > 0)
		return;
	for (size_t i = 0; i < files->count; i++)
		open_file_release(files->at[i].file);
	free(files->at);
	free(files);
}

static struct open_file *files_get(const struct files *files, int fd)
{
	for (size_t i = 0; i < files->count; i++)
		if (files->at[i].fd == fd)
			return files->at[i].file;
	return NULL;
}

static void files_set(struct files *files, int fd, struct open_file *file)
{
	file->users++;
	if (fd >= 0)
		files_close(files, (unsigned)fd, (unsigned)fd);
	if (files->count == files->capacity) {
		files->capacity = files->capacity ? files->capacity * 2 : 8;
		files->at = get_memory(files->at, files->capacity * sizeof *files->at);
	}
	files->at[files->count++] = (struct slot){fd, file};
}

struct files *files_copy(const struct files *files)
{
	struct files *copy = files_new();
	for (size_t i = 0; i < files->count; i++)
		files_set(copy, files->at[i].fd, files->at[i].file);
	return copy;
}

void files_close(struct files *files, unsigned first, unsigned last)
{
	for (size_t i = 0; i < files->count;) {
		unsigned fd = (unsigned)files->at[i].fd;
		if (fd >= first && fd <= last) {
			open_file_release(files->at[i].file);
			files->at[i] = files->at[--files->count];
		} else {
			i++;
		}
	}
}

static struct open_file *open_file_new(void)
{
	struct open_file *file = get_memory(NULL, sizeof *file);
	*file = (struct open_file){.id = ++last_id, .kind = "other"};
	return file;
}

void files_duplicate(struct files *files, int from, int to)
{
	struct open_file *file = files_get(files, from);
	if (from == to || to < 0)
		return;
	if (!file) {	// not mapped so far; both may be, and are then one file
		file = open_file_new();
		files_set(files, from, file);
	}
	files_set(files, to, file);
}

// ---- what a file is ----

static struct {
	int id;
	char fs[32];
	bool noexec;
} mounts[MOUNTS_KEPT];

// The type and the options of a mount.  Read from mountinfo: statfs would ask the server of a FUSE filesystem, and
// that may be the very program that is stopped.
static bool mount_read(pid_t tid, int id, struct open_file *file)
{
	unsigned slot = (unsigned)id % MOUNTS_KEPT;
	if (mounts[slot].id != id || !*mounts[slot].fs) {
		struct text table = {0};
		bool found = false;
		if (!proc_read(tid, "mountinfo", &table))
			return false;
		for (char *save = NULL, *line = strtok_r(table.bytes, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
			char options[256], *dash = strstr(line, " - ");
			int number;
			if (!dash || sscanf(line, "%d %*d %*s %*s %*s %255s", &number, options) != 2 || number != id)
				continue;
			if (sscanf(dash, " - %31s", mounts[slot].fs) != 1)
				continue;
			mounts[slot].id = id;
			mounts[slot].noexec = strstr(options, "noexec") != NULL;
			found = true;
		}
		text_free(&table);
		if (!found)
			return false;
	}
	strcpy(file->fs, mounts[slot].fs);
	file->noexec = mounts[slot].noexec;
	return true;
}

// Filesystems without a mount that the process can see: those inside the kernel, or in another mount namespace.
static void fs_from_magic(const char *link, struct open_file *file)
{
	static const struct {
		unsigned long magic;
		const char *name;
	} known[] = {
		{0xef53, "ext4"}, {0x01021994, "tmpfs"}, {0x794c7630, "overlay"}, {0x58465342, "xfs"}, {0x9123683e, "btrfs"},
		{HUGETLBFS, "hugetlbfs"}, {0x6969, "nfs"}, {0x65735546, "fuse"}, {0x01021997, "9p"}, {0x9fa0, "proc"},
		{0x62656572, "sysfs"}, {0x09041934, "anon_inodefs"}, {0x50494446, "pidfs"}, {0x5345434d, "secretmem"},
		{0x858458f6, "ramfs"}, {0x2fc12fc1, "zfs"}, {0xf2f52010, "f2fs"}, {0x73717368, "squashfs"},
		{0x9660, "iso9660"}, {0x4d44, "msdos"}, {0xff534d42, "cifs"}, {0x534f434b, "sockfs"}, {0x50495045, "pipefs"},
	};
	struct statfs about;
	if (statfs(link, &about))
		return;
	unsigned long magic = (unsigned long)about.f_type & 0xffffffffUL;
	file->noexec = about.f_flags & FLAG_NOEXEC;
	snprintf(file->fs, sizeof file->fs, "%lx", magic);
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (known[i].magic == magic)
			strcpy(file->fs, known[i].name);
}

static const char *kind_of(const struct open_file *file, u64 device)
{
	if (S_ISCHR(file->mode))
		return device == makedev(1, 5) ? "regular" : "device";	// /dev/zero maps as memory does
	if (!strcmp(file->fs, "hugetlbfs"))
		return "hugetlb";
	if (!strncmp(file->path, "/memfd:", 7))
		return "memfd";
	return S_ISREG(file->mode) && strncmp(file->path, "/secretmem", 10) ? "regular" : "other";
}

static bool open_file_learn(pid_t tid, int fd, struct open_file *file)
{
	char link[64], name[40];
	struct statx about;
	struct text info = {0};
	snprintf(link, sizeof link, "/proc/%d/fd/%d", tid, fd);
	if (statx(AT_FDCWD, link, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &about))
		return false;
	ssize_t length = readlink(link, file->path, sizeof file->path - 1);
	file->path[length > 0 ? length : 0] = 0;
	file->major = about.stx_dev_major;
	file->minor = about.stx_dev_minor;
	file->inode = about.stx_ino;
	file->mode = about.stx_mode;
	unsigned flags = O_RDONLY;
	int mount = -1;
	snprintf(name, sizeof name, "fdinfo/%d", fd);
	if (proc_read(tid, name, &info)) {
		char *at = strstr(info.bytes, "flags:");
		if (at)
			sscanf(at, "flags: %o", &flags);
		if ((at = strstr(info.bytes, "mnt_id:")))
			sscanf(at, "mnt_id: %d", &mount);
	}
	text_free(&info);
	file->readable = !(flags & O_PATH) && (flags & O_ACCMODE) != O_WRONLY;
	file->writable = !(flags & O_PATH) && (flags & O_ACCMODE) != O_RDONLY;
	if (mount < 0 || !mount_read(tid, mount, file))
		fs_from_magic(link, file);
	file->kind = kind_of(file, makedev(about.stx_rdev_major, about.stx_rdev_minor));
	file->known = true;
	return true;
}

struct open_file *open_file_of(struct task *task, int fd)
{
	if (fd < 0)
		return NULL;
	struct open_file *file = files_get(task->files, fd);
	if (file && file->known)
		return file;
	if (file)
		return open_file_learn(task->tid, fd, file) ? file : NULL;
	file = open_file_new();
	if (!open_file_learn(task->tid, fd, file)) {
		free(file);
		return NULL;
	}
	files_set(task->files, fd, file);
	return file;
}

int last_of_userfaultfd(const struct files *files, int fd)
{
	const struct open_file *file = files_get(files, fd);
	return file && file->users == 1 && !strcmp(file->path, "anon_inode:[userfaultfd]") ? file->id : -1;
}

int open_file_id(const struct open_file *file)
{
	return file->id;
}

// ---- telling ----

// The VmFlags of the VMA at an address; smaps is long, so this is for the kinds of file where a driver matters.
static void add_driver_flags(pid_t tid, u64 address)
{
	struct text smaps = {0};
	if (!proc_read_smaps(tid, &smaps))
		return;
	u64 start = 0, end = 0;
	for (char *save = NULL, *line = strtok_r(smaps.bytes, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		unsigned long from, to;
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
			start = from;
			end = to;
		} else if (!strncmp(line, "VmFlags:", 8) && start <= address && address < end) {
			event_string("vmflags", line + 8);
			break;
		}
	}
	text_free(&smaps);
}

void open_file_tell(struct task *task, struct open_file *file, u64 mapped_at)
{
	char device[32];
	struct vma vma;
	if (file->told)
		return;
	// What /proc/PID/maps shows is what the dumps show; stat differs on some filesystems.
	if (mapped_at && vma_find(task, mapped_at, &vma, false) && vma.start <= mapped_at && vma.inode) {
		file->major = vma.major;
		file->minor = vma.minor;
		file->inode = vma.inode;
	}
	file->told = mapped_at != 0 || !strcmp(file->kind, "regular") || !strcmp(file->kind, "memfd");
	snprintf(device, sizeof device, "%02x:%02x", file->major, file->minor);
	event_begin("file");
	event_number("id", (u64)file->id);
	event_string("dev", device);
	event_number("ino", file->inode);
	event_string("path", file->path);
	event_number("readable", file->readable);
	event_number("writable", file->writable);
	event_string("kind", file->kind);
	event_string("fs", file->fs);
	event_number("noexec", file->noexec);
	if (mapped_at && (!strcmp(file->kind, "device") || !strcmp(file->kind, "other") || !strcmp(file->kind, "hugetlb")))
		add_driver_flags(task->tid, mapped_at);
	event_end();
}

struct open_file *segment_attached(struct task *task, u64 address, struct text *data)
{
	struct vma vma;
	unsigned key = 0;
	if (!vma_find(task, address, &vma, true) || vma.start > address)
		return NULL;
	struct open_file *file = open_file_new();
	file->readable = file->writable = file->known = true;
	file->kind = "shm";
	file->inode = vma.inode;
	file->major = vma.major;
	file->minor = vma.minor;
	snprintf(file->path, sizeof file->path, "%s", vma.name);
	strcpy(file->fs, "tmpfs");
	sscanf(vma.name, "/SYSV%8x", &key);
	text_print(data, "\"size\":%llu,\"key\":%u", (unsigned long long)(vma.end - address), key);
	files_set(task->files, -1, file);	// keeps it until the process ends
	return file;
}
