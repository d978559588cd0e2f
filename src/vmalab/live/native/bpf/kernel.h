/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The parts of the kernel's types that the recorder looks at.  The loader puts in where this kernel has them (CO-RE). */
#ifndef KERNEL_H
#define KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_ANY, BPF_NOEXIST };
enum { BPF_RB_NO_WAKEUP = 1 };
enum { BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE };
enum { BPF_F_USER_STACK = 1 << 8 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
struct list_head {
	struct list_head *next;
};
struct hlist_bl_node {
	struct hlist_bl_node **pprev;
};
struct qstr {
	const unsigned char *name;
};
struct dentry {
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
};
struct vfsmount {
	struct dentry *mnt_root;
	int mnt_flags;
};
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};
struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};
struct file_system_type {
	const char *name;
};
struct super_block {
	u32 s_dev;
	unsigned long s_iflags, s_magic;
	struct file_system_type *s_type;
};
struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
	u32 i_rdev;
	struct super_block *i_sb;
	void *i_private;
};
struct counter {
	long counter;
};
struct file_reference {
	struct counter refcnt;
};
struct file {
	unsigned int f_mode;
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
};
struct file___ref {
	struct file_reference f_ref;
};
struct file___count {
	struct counter f_count;
};
struct backing_file {
	struct file file;
	struct path user_path;
};
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};
struct files_struct {
	struct fdtable *fdt;
};
struct vm_userfaultfd_ctx {
	void *ctx;
};
struct vm_special_mapping {
	const char *name;
};
struct anon_vma_name {
	char name[0];
};
struct vm_area_struct {
	unsigned long vm_start, vm_end, vm_flags, vm_pgoff;
	struct list_head anon_vma_chain;
	void *anon_vma, *vm_ops, *vm_private_data, *vm_policy;
	struct file *vm_file;
	struct vm_userfaultfd_ctx vm_userfaultfd_ctx;
	struct anon_vma_name *anon_name;
};
struct mm_words {
	unsigned long word[1];
};
struct mm_struct {
	unsigned long mmap_base, task_size, start_brk, brk, start_stack, start_code, end_code, start_data, end_data;
	unsigned long arg_start, arg_end, def_flags;
	int map_count;
	struct file *exe_file;
};
struct mm_struct___bitmap {
	struct mm_words flags;
};
struct mm_struct___word {
	unsigned long flags;
};
struct sequence_count {
	unsigned int sequence;
};
struct mm_struct___sequence {
	struct sequence_count mm_lock_seq;
};
struct upid {
	int nr;
};
struct pid {
	struct upid numbers[1];
};
struct rlimit {
	unsigned long rlim_cur;
};
struct signal_struct {
	unsigned int flags;
	int group_exit_code;
	struct rlimit rlim[16];
};
struct kernel_cap {
	u64 val;
};
struct cred {
	struct kernel_cap cap_effective;
};
struct cred___old {
	struct {
		u32 cap[2];
	} cap_effective;
};
struct completion;
struct task_struct {
	int pid, tgid, exit_code;
	unsigned int personality, flags, pagefault_disabled;
	struct mm_struct *mm;
	struct task_struct *group_leader;
	struct files_struct *files;
	struct signal_struct *signal;
	const struct cred *cred;
	struct pid *thread_pid;
	struct completion *vfork_done;
};
struct linux_binprm;

#pragma clang attribute pop

struct bpf_iter_task_vma {
	u64 opaque[1];
} __attribute__((aligned(8)));

#endif
