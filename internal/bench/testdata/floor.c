/*
 * The floor: what the kernel alone takes to start a container with Docker's default isolation, run a program in it, and
 * remove all of it. No Go, no runtime, no interpreter, no bundle, no state: one static C program that makes the system
 * calls, again and again, and prints the nanoseconds of each round, one number a line.
 *
 *	floor [options] PROGRAM [ARG...]
 *
 *	-n N            rounds (1)                  -g MS            sleep before each round (0)
 *	-s DIR          state directory, empty      -l DIR           overlay lower directory, topmost first, repeated
 *	-f FILE         seccomp filter: an array of struct sock_filter; without it no filter is installed
 *	-H              the host's network namespace instead of a new one with lo up
 *	-h NAME         host name                   -p NAME          parent cgroup, below every hierarchy's root
 *	-M BYTES -P N   memory and pids limits      -Q US -T US      CPU quota and period      -W SHARES   CPU shares (v1)
 *	-m PATH         masked path, repeated       -r PATH          read-only path, repeated
 *	-w              one more round at first that is not printed: a new process has to fault in its pages
 *	-v              verbose: say what the machine has
 *	-x PID          run the program in the container whose first process is PID, which somebody else has started
 *
 * With -x a round is less: joiner (undumpable, own session, no inherited descriptors, default signals), setns by pidfd,
 * clone3 into the v2 group, session, tasks files, cgroup namespace, rights as above, execve, wait, wait. The pidfd and the
 * files of the groups are opened before.
 *
 * What a round does, in this order, so that it can be held against what a launcher does:
 *
 *	caller     cgroups     mkdir of a group in each v1 hierarchy with a controller, and in the v2 hierarchy, pure or
 *	                       hybrid; limits: memory, pids, cpu quota, period and shares; cpuset copied from the parent
 *	                       (v1); Docker's device rules, 12 writes (v1) or one BPF program attached (v2)
 *	           files       state directory with upper and work, hostname, hosts and resolv.conf
 *	           clone3      the guard, in a new outer pid namespace
 *	guard      hygiene     undumpable, killed with the caller, own session, no inherited descriptors, default signals
 *	           clone3      the payload: new pid (nested), mount, uts, ipc and network namespaces, into the v2 group
 *	payload    session     setsid, umask, stdio on /dev/null
 *	           cgroups     0 into each v1 tasks file; new cgroup namespace
 *	           uts, net    sethostname; lo up
 *	           root        mounts private; overlay of the lower directories (index, metacopy, redirects and uuid off)
 *	           mounts      /proc; /dev (tmpfs, 6 nodes, 6 links), /dev/pts, /dev/mqueue, /dev/shm; /sys read-only;
 *	                       /sys/fs/cgroup read-only: cgroup2, or a tmpfs with every v1 hierarchy
 *	           binds       /etc/resolv.conf, /etc/hostname, /etc/hosts
 *	           paths       read-only and masked paths, which Docker's default has
 *	           tune        oom_score_adj
 *	           pivot       pivot_root, the old root detached
 *	           rights      bounding set of 14 capabilities, no groups, uid and gid 0, the filter without no_new_privs,
 *	                       effective and permitted sets of 14, none inheritable
 *	           execve      the program
 *	guard      wait        reaps the payload, exits with its status
 *	caller     wait        reaps the guard
 *	           remove      every cgroup, the state directory with upper and work
 *
 * The clock runs from before the first mkdir to after the last rmdir. Any error ends the program with a message.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* <sys/mount.h> and <linux/mount.h> cannot be included together in every glibc. */
extern int mount(const char *, const char *, const char *, unsigned long, const void *);
extern int umount2(const char *, int);
#define MNT_DETACH 2
#ifndef MS_RDONLY
enum {
	MS_RDONLY = 1, MS_NOSUID = 2, MS_NODEV = 4, MS_NOEXEC = 8, MS_REMOUNT = 32, MS_BIND = 4096, MS_REC = 16384,
	MS_PRIVATE = 1 << 18, MS_STRICTATIME = 1 << 24
};
#endif

#define MAX 64
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static int rounds = 1, join_pid, join_fd = -1, host_network, verbose, warm, nlower, nmasked, nreadonly;
static long gap_ms;
static const char *state, *filter_file, *parent_name = "coracle-floor", *host_name = "floor";
static const char *memory, *pids, *quota, *period, *shares;
static const char *lower[MAX], *masked[MAX], *readonly[MAX];
static char **program;
static struct sock_fprog filter;

static const char *step = "start"; /* what the failing call was for */

static void die(const char *fmt, ...)
{
	int err = errno;
	va_list ap;
	fprintf(stderr, "floor: %s: ", step);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(err));
	_exit(99);
}

#define CHECK(call, ...) do { if ((long)(call) < 0) die(__VA_ARGS__); } while (0)

static void write_at(int dir, const char *name, const char *text, int flags)
{
	int fd = openat(dir, name, O_WRONLY | O_CLOEXEC | flags, 0644);
	CHECK(fd, "open %s", name);
	size_t n = strlen(text);
	if (write(fd, text, n) != (ssize_t)n)
		die("write \"%s\" to %s", text, name);
	close(fd);
}

/* ---- cgroups ---- */

static struct hierarchy {
	char *controllers; /* "memory", "cpu,cpuacct", "name=systemd"; "" for v2 */
	char *name;        /* of the directory where the host has it */
	char *where;
	int v2, parent;    /* parent: the directory in which groups are made; -1 for a v1 hierarchy without controller */
	int tasks, group;
} hierarchies[MAX];
static int nhierarchies, have_v1, have_v2, device_prog = -1;

static int has(const struct hierarchy *h, const char *controller)
{
	size_t n = strlen(controller);
	for (const char *p = h->controllers; (p = strstr(p, controller)); p += n)
		if ((p == h->controllers || p[-1] == ',') && (p[n] == 0 || p[n] == ','))
			return 1;
	return 0;
}

/* Docker's rules (any node may be made; the usual ones may be opened), as a device program for cgroup v2. */
static void load_device_program(void)
{
#define INSN(c, d, s, o, i) ((struct bpf_insn){ .code = c, .dst_reg = d, .src_reg = s, .off = o, .imm = i })
#define LOAD(d, o) INSN(BPF_LDX | BPF_MEM | BPF_W, d, 1, o, 0)
#define JNE(r, v, o) INSN(BPF_JMP | BPF_JNE | BPF_K, r, 0, o, v)
#define JEQ(r, v, o) INSN(BPF_JMP | BPF_JEQ | BPF_K, r, 0, o, v)
	struct bpf_insn code[] = {
		LOAD(2, 0),                                          /*  0 r2 = access << 16 | type */
		LOAD(3, 4),                                          /*  1 r3 = major */
		LOAD(4, 8),                                          /*  2 r4 = minor */
		INSN(BPF_ALU | BPF_MOV | BPF_X, 5, 2, 0, 0),         /*  3 r5 = type */
		INSN(BPF_ALU | BPF_AND | BPF_K, 5, 0, 0, 0xffff),    /*  4 */
		INSN(BPF_ALU | BPF_RSH | BPF_K, 2, 0, 0, 16),        /*  5 r2 = access */
		JEQ(2, BPF_DEVCG_ACC_MKNOD, 13),                     /*  6 mknod alone: allow */
		JNE(5, BPF_DEVCG_DEV_CHAR, 10),                      /*  7 not a character device: deny */
		JEQ(3, 136, 11),                                     /*  8 pts/... */
		JNE(3, 1, 5),                                        /*  9 */
		JEQ(4, 3, 9), JEQ(4, 5, 8), JEQ(4, 7, 7),            /* 10 null zero full */
		JEQ(4, 8, 6), JEQ(4, 9, 5),                          /* 13 random urandom */
		JNE(3, 5, 2),                                        /* 15 */
		INSN(BPF_JMP | BPF_JGT | BPF_K, 4, 0, 1, 2),         /* 16 tty console ptmx: 0 to 2 */
		INSN(BPF_JMP | BPF_JA, 0, 0, 2, 0),                  /* 17 */
		INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),       /* 18 deny */
		INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),                /* 19 */
		INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 1),       /* 20 allow */
		INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insns = (uintptr_t)code, .insn_cnt = COUNT(code),
		.license = (uintptr_t)"Apache-2.0",
	};
	device_prog = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
	CHECK(device_prog, "load the device program");
}

/* Finds the mounted hierarchies and makes the parent group in each. */
static void find_hierarchies(void)
{
	step = "find the cgroup hierarchies";
	FILE *f = fopen("/proc/self/mountinfo", "re");
	if (!f)
		die("/proc/self/mountinfo");
	char *line = NULL;
	size_t size = 0;
	while (getline(&line, &size, f) > 0) {
		char where[4096], type[64], options[1024];
		char *tail = strstr(line, " - ");
		if (!tail || sscanf(line, "%*s %*s %*s %*s %4095s", where) != 1 ||
		    sscanf(tail, " - %63s %*s %1023s", type, options) != 2 || strncmp(type, "cgroup", 6) || nhierarchies == MAX)
			continue;
		struct hierarchy *h = &hierarchies[nhierarchies];
		h->v2 = !strcmp(type, "cgroup2");
		char controllers[1024] = "";
		if (!h->v2)
			for (char *o = strtok(options, ","); o; o = strtok(NULL, ","))
				if (strcmp(o, "rw") && strcmp(o, "ro") && strcmp(o, "xattr") && strcmp(o, "clone_children") &&
				    strncmp(o, "release_agent=", 14)) {
					if (controllers[0])
						strcat(controllers, ",");
					strcat(controllers, o);
				}
		int known = 0;
		for (int i = 0; i < nhierarchies; i++)
			known |= hierarchies[i].v2 == h->v2 && !strcmp(hierarchies[i].controllers, controllers);
		if (known)
			continue;
		h->controllers = strdup(controllers);
		h->where = strdup(where);
		h->name = strrchr(h->where, '/') + 1;
		h->parent = -1;
		nhierarchies++;
		have_v1 |= !h->v2;
		have_v2 |= h->v2;
		if (join_pid || (!h->v2 && !strncmp(controllers, "name=", 5)))
			continue;
		int root = open(where, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
		CHECK(root, "%s", where);
		if (mkdirat(root, parent_name, 0755) < 0 && errno != EEXIST)
			die("mkdir %s/%s", where, parent_name);
		h->parent = openat(root, parent_name, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
		CHECK(h->parent, "%s/%s", where, parent_name);
		if (h->v2)
			for (int i = 0; i < 2; i++) {
				/* What the kernel does not have, the limits below will miss. */
				static const char *all[] = { "+cpu", "+cpuset", "+io", "+memory", "+pids" };
				int fd = openat(i ? h->parent : root, "cgroup.subtree_control", O_WRONLY | O_CLOEXEC);
				CHECK(fd, "cgroup.subtree_control");
				for (size_t k = 0; k < COUNT(all); k++)
					if (write(fd, all[k], strlen(all[k])) < 0 && !have_v1)
						die("enable %s", all[k]);
				close(fd);
			}
		if (has(h, "cpuset"))
			for (int i = 0; i < 2; i++) {
				const char *name = i ? "cpuset.mems" : "cpuset.cpus";
				char value[4096];
				int fd = openat(root, name, O_RDONLY | O_CLOEXEC);
				ssize_t n = read(fd, value, sizeof(value) - 1);
				CHECK(n, "read %s", name);
				close(fd);
				value[n] = 0;
				write_at(h->parent, name, value, 0);
			}
		close(root);
	}
	free(line);
	fclose(f);
	if (have_v2 && !have_v1 && !join_pid)
		load_device_program();
	if (verbose)
		for (int i = 0; i < nhierarchies; i++)
			fprintf(stderr, "floor: %s %s\n", hierarchies[i].where, hierarchies[i].v2 ? "v2" : hierarchies[i].controllers);
}

static void drop_parents(void)
{
	for (int i = 0; i < nhierarchies; i++) {
		char path[8192];
		snprintf(path, sizeof(path), "%s/%s", hierarchies[i].where, parent_name);
		if (hierarchies[i].parent >= 0)
			rmdir(path); /* another floor may be using it */
	}
}

static void limit(int group, const char *name, const char *value)
{
	if (value)
		write_at(group, name, value, 0);
}

static char cpuset_cpus[4096], cpuset_mems[4096];

static void make_cgroups(const char *id)
{
	step = "make cgroups";
	for (int i = 0; i < nhierarchies; i++) {
		struct hierarchy *h = &hierarchies[i];
		if (h->parent < 0)
			continue;
		CHECK(mkdirat(h->parent, id, 0755), "mkdir in %s", h->where);
		h->group = openat(h->parent, id, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
		CHECK(h->group, "open in %s", h->where);
		if (h->v2 && !have_v1) {
			limit(h->group, "memory.max", memory);
			limit(h->group, "pids.max", pids);
			if (quota) {
				char max[64];
				snprintf(max, sizeof(max), "%s %s", quota, period ? period : "100000");
				limit(h->group, "cpu.max", max);
			}
			if (shares) { /* 2 to 262144 become 1 to 10000 */
				char weight[32];
				snprintf(weight, sizeof(weight), "%ld", 1 + (atol(shares) - 2) * 9999 / 262142);
				limit(h->group, "cpu.weight", weight);
			}
			union bpf_attr attr = {
				.target_fd = h->group, .attach_bpf_fd = device_prog, .attach_type = BPF_CGROUP_DEVICE,
			};
			CHECK(syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof(attr)), "attach the device program");
		}
		if (h->v2)
			continue;
		if (has(h, "memory"))
			limit(h->group, "memory.limit_in_bytes", memory);
		if (has(h, "pids"))
			limit(h->group, "pids.max", pids);
		if (has(h, "cpu")) {
			limit(h->group, "cpu.shares", shares);
			limit(h->group, "cpu.cfs_period_us", period);
			limit(h->group, "cpu.cfs_quota_us", quota);
		}
		if (has(h, "cpuset")) {
			limit(h->group, "cpuset.cpus", cpuset_cpus);
			limit(h->group, "cpuset.mems", cpuset_mems);
		}
		if (has(h, "devices")) {
			static const char *allow[] = {
				"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",
				"c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm",
			};
			limit(h->group, "devices.deny", "a");
			int fd = openat(h->group, "devices.allow", O_WRONLY | O_CLOEXEC);
			CHECK(fd, "devices.allow");
			for (size_t k = 0; k < COUNT(allow); k++)
				CHECK(write(fd, allow[k], strlen(allow[k])), "allow %s", allow[k]);
			close(fd);
		}
		h->tasks = openat(h->group, "tasks", O_WRONLY | O_CLOEXEC);
		CHECK(h->tasks, "tasks in %s", h->where);
	}
}

static void remove_cgroups(const char *id)
{
	step = "remove cgroups";
	for (int i = 0; i < nhierarchies; i++) {
		struct hierarchy *h = &hierarchies[i];
		if (h->parent < 0)
			continue;
		if (!h->v2)
			close(h->tasks);
		close(h->group);
		for (int tries = 0; unlinkat(h->parent, id, AT_REMOVEDIR) < 0; tries++) {
			if (errno != EBUSY || tries == 10000)
				die("rmdir in %s", h->where);
			sched_yield();
		}
	}
}

/* ---- files ---- */

static void make_state(const char *dir)
{
	step = "make the state directory";
	CHECK(mkdir(dir, 0700), "%s", dir);
	int fd = open(dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	CHECK(fd, "%s", dir);
	CHECK(mkdirat(fd, "upper", 0755), "upper");
	CHECK(mkdirat(fd, "work", 0700), "work");
	write_at(fd, "hostname", "floor\n", O_CREAT | O_EXCL);
	write_at(fd, "hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\tfloor\n", O_CREAT | O_EXCL);
	write_at(fd, "resolv.conf", "nameserver 127.0.0.1\n", O_CREAT | O_EXCL);
	close(fd);
}

static void remove_tree(int parent, const char *name)
{
	if (unlinkat(parent, name, 0) == 0)
		return;
	if (errno != EISDIR)
		die("unlink %s", name);
	int fd = openat(parent, name, O_DIRECTORY | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	CHECK(fd, "open %s", name);
	DIR *d = fdopendir(fd);
	if (!d)
		die("read %s", name);
	for (struct dirent *e; (e = readdir(d));)
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			remove_tree(fd, e->d_name);
	closedir(d);
	CHECK(unlinkat(parent, name, AT_REMOVEDIR), "rmdir %s", name);
}

/* ---- the container ---- */

static void mount_overlay(const char *dir) /* shorter than 2048 */
{
	step = "mount the overlay";
	char upper[4096], work[4096];
	snprintf(upper, sizeof(upper), "%s/upper", dir);
	snprintf(work, sizeof(work), "%s/work", dir);
	int fs = syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC);
	CHECK(fs, "fsopen");
	/* fsconfig takes strings of at most 255 bytes; one by one, lower directories need Linux 6.8. */
	size_t length = 0;
	for (int i = 0; i < nlower; i++)
		length += strlen(lower[i]) + 1;
	if (length <= 255) {
		char all[256] = "";
		for (int i = 0; i < nlower; i++)
			strcat(strcat(all, i ? ":" : ""), lower[i]);
		CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "lowerdir", all, 0), "lowerdir");
	} else {
		for (int i = 0; i < nlower; i++)
			CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "lowerdir+", lower[i], 0), "lowerdir+ %s", lower[i]);
	}
	const char *options[][2] = {
		{ "upperdir", upper }, { "workdir", work }, { "index", "off" }, { "metacopy", "off" }, { "redirect_dir", "nofollow" },
		{ "uuid", "off" },
	};
	for (size_t i = 0; i < COUNT(options); i++)
		CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, options[i][0], options[i][1], 0), "%s", options[i][0]);
	/* Not volatile: its mark is two more directories to make and remove, 2 ms on ext4, which is more than the sync costs
	 * at the container's end while nobody else writes. */
	CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0), "create");
	int mnt = syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	CHECK(mnt, "fsmount");
	CHECK(syscall(SYS_move_mount, mnt, "", AT_FDCWD, upper, MOVE_MOUNT_F_EMPTY_PATH), "move_mount to %s", upper);
	CHECK(fchdir(mnt), "fchdir");
}

/* From here on, the working directory is the new root. */

static void mount_at(const char *type, const char *where, unsigned long flags, const char *data)
{
	if (mount(type, where, type, flags, data) == 0)
		return;
	if (errno == ENOENT && mkdir(where, 0755) == 0 && mount(type, where, type, flags, data) == 0)
		return;
	die("mount %s on /%s", type, where);
}

static void mount_all(void)
{
	const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	step = "mount";
	mount_at("proc", "proc", safe, NULL);
	mount_at("tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
	static const struct { const char *name; int major, minor; } nodes[] = {
		{ "dev/null", 1, 3 }, { "dev/zero", 1, 5 }, { "dev/full", 1, 7 }, { "dev/random", 1, 8 }, { "dev/urandom", 1, 9 },
		{ "dev/tty", 5, 0 },
	};
	for (size_t i = 0; i < COUNT(nodes); i++)
		CHECK(mknod(nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)), "mknod %s", nodes[i].name);
	static const char *links[][2] = {
		{ "/proc/self/fd", "dev/fd" }, { "/proc/self/fd/0", "dev/stdin" }, { "/proc/self/fd/1", "dev/stdout" },
		{ "/proc/self/fd/2", "dev/stderr" }, { "pts/ptmx", "dev/ptmx" }, { "/proc/kcore", "dev/core" },
	};
	for (size_t i = 0; i < COUNT(links); i++)
		CHECK(symlink(links[i][0], links[i][1]), "symlink %s", links[i][1]);
	CHECK(mkdir("dev/pts", 0755), "dev/pts");
	mount_at("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
	mount_at("sysfs", "sys", safe | MS_RDONLY, NULL);
	if (have_v1) {
		mount_at("tmpfs", "sys/fs/cgroup", safe, "mode=755");
		for (int i = 0; i < nhierarchies; i++) {
			struct hierarchy *h = &hierarchies[i];
			char where[256], data[1024];
			if (h->v2)
				continue;
			snprintf(where, sizeof(where), "sys/fs/cgroup/%s", h->name);
			CHECK(mkdir(where, 0755), "%s", where);
			snprintf(data, sizeof(data), "%s%s", strncmp(h->controllers, "name=", 5) ? "" : "none,", h->controllers);
			mount_at("cgroup", where, safe | MS_RDONLY, data);
		}
		CHECK(mount(NULL, "sys/fs/cgroup", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | safe, NULL), "remount /sys/fs/cgroup");
	} else {
		mount_at("cgroup2", "sys/fs/cgroup", safe | MS_RDONLY, NULL);
	}
	CHECK(mkdir("dev/mqueue", 0755), "dev/mqueue");
	mount_at("mqueue", "dev/mqueue", safe, NULL);
	CHECK(mkdir("dev/shm", 0755), "dev/shm");
	mount_at("tmpfs", "dev/shm", safe, "mode=1777,size=65536k");
}

static void bind_files(const char *dir)
{
	step = "bind files";
	static const char *names[] = { "resolv.conf", "hostname", "hosts" };
	for (size_t i = 0; i < COUNT(names); i++) {
		char from[4096], to[64];
		snprintf(from, sizeof(from), "%s/%s", dir, names[i]);
		snprintf(to, sizeof(to), "etc/%s", names[i]);
		if (mount(from, to, NULL, MS_BIND, NULL) == 0)
			continue;
		if (errno != ENOENT)
			die("bind %s", to);
		if (mkdir("etc", 0755) < 0 && errno != EEXIST)
			die("mkdir etc");
		int fd = open(to, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
		CHECK(fd, "create %s", to);
		close(fd);
		CHECK(mount(from, to, NULL, MS_BIND, NULL), "bind %s", to);
	}
}

static void protect_paths(void)
{
	step = "make paths read-only";
	for (int i = 0; i < nreadonly; i++) {
		const char *path = readonly[i] + 1;
		if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) < 0) {
			if (errno == ENOENT)
				continue;
			die("bind %s", path);
		}
		CHECK(mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "remount %s", path);
	}
	step = "mask paths";
	const char *mask = NULL;
	for (int i = 0; i < nmasked; i++) {
		const char *path = masked[i] + 1;
		if (mount("dev/null", path, NULL, MS_BIND, NULL) == 0 || errno == ENOENT)
			continue;
		if (errno != ENOTDIR)
			die("%s", path);
		if (mask) {
			CHECK(mount(mask, path, NULL, MS_BIND, NULL), "%s", path);
			continue;
		}
		mount_at("tmpfs", path, MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
		mask = path;
	}
}

static const int kept[] = {
	CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FSETID, CAP_FOWNER, CAP_MKNOD, CAP_NET_RAW, CAP_SETGID, CAP_SETUID, CAP_SETFCAP,
	CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT, CAP_KILL, CAP_AUDIT_WRITE,
};

static void drop_rights(void)
{
	step = "drop rights";
	uint64_t set = 0;
	for (size_t i = 0; i < COUNT(kept); i++)
		set |= UINT64_C(1) << kept[i];
	for (int i = 0; i <= CAP_LAST_CAP; i++)
		if (!(set >> i & 1) && prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0 && errno != EINVAL)
			die("capability %d", i);
	CHECK(syscall(SYS_setgroups, 0, NULL), "setgroups");
	CHECK(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
	CHECK(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
	if (filter.len)
		CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter), "seccomp");
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = {
		{ .effective = (uint32_t)set, .permitted = (uint32_t)set },
		{ .effective = set >> 32, .permitted = set >> 32 },
	};
	CHECK(syscall(SYS_capset, &header, data), "capset");
}

static int null_fd;

static void payload(const char *dir)
{
	step = "start the payload";
	CHECK(setsid(), "setsid");
	umask(0);
	for (int i = 0; i < 3; i++)
		CHECK(dup2(null_fd, i), "dup2");
	step = "join cgroups";
	for (int i = 0; i < nhierarchies; i++)
		if (hierarchies[i].parent >= 0 && !hierarchies[i].v2)
			CHECK(write(hierarchies[i].tasks, "0", 1), "%s", hierarchies[i].where);
	CHECK(unshare(CLONE_NEWCGROUP), "unshare the cgroup namespace");
	step = "set names";
	CHECK(sethostname(host_name, strlen(host_name)), "sethostname");
	if (!host_network) {
		struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP };
		int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		CHECK(fd, "socket");
		CHECK(ioctl(fd, SIOCSIFFLAGS, &ifr), "lo up");
	}
	CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "make mounts private");
	mount_overlay(dir);
	mount_all();
	bind_files(dir);
	protect_paths();
	step = "tune";
	write_at(AT_FDCWD, "proc/self/oom_score_adj", "0", 0);
	step = "pivot";
	CHECK(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	CHECK(umount2(".", MNT_DETACH), "detach the old root");
	CHECK(chdir("/"), "chdir");
	umask(022);
	drop_rights();
	step = "execute";
	static char *env[] = { "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL };
	execve(program[0], program, env);
	die("%s", program[0]);
}

/* Opens the container to join: its first process and its groups. */
static void find_container(void)
{
	step = "find the container";
	join_fd = syscall(SYS_pidfd_open, join_pid, 0);
	CHECK(join_fd, "process %d", join_pid);
	char path[8192], line[4096];
	snprintf(path, sizeof(path), "/proc/%d/cgroup", join_pid);
	FILE *f = fopen(path, "re");
	if (!f)
		die("%s", path);
	while (fgets(line, sizeof(line), f)) {
		char *controllers = strchr(line, ':') + 1, *group = strchr(controllers, ':');
		*group++ = 0;
		group[strcspn(group, "\n")] = 0;
		for (int i = 0; i < nhierarchies; i++) {
			struct hierarchy *h = &hierarchies[i];
			if (strcmp(h->controllers, controllers) || !strcmp(group, "/"))
				continue;
			snprintf(path, sizeof(path), "%s%s%s", h->where, group, h->v2 ? "" : "/tasks");
			h->parent = h->group = open(path, h->v2 ? O_RDONLY | O_DIRECTORY | O_CLOEXEC : O_WRONLY | O_CLOEXEC);
			CHECK(h->group, "%s", path);
			h->tasks = h->group;
		}
	}
	fclose(f);
}

/* Messages of the payload go here: its standard error is /dev/null. */
static int error_fd;

static pid_t clone_process(uint64_t flags, int cgroup)
{
	struct clone_args args = { .flags = flags, .exit_signal = SIGCHLD };
	if (cgroup >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = cgroup;
	}
	pid_t pid = syscall(SYS_clone3, &args, sizeof(args));
	CHECK(pid, "clone3");
	return pid;
}

static int reap(pid_t pid)
{
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void guard(const char *dir)
{
	step = "start the guard";
	CHECK(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable");
	CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "death signal");
	CHECK(setsid(), "setsid");
	CHECK(syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC), "close_range");
	for (int i = 1; i <= 64; i++)
		signal(i, SIG_DFL);
	sigset_t none;
	sigemptyset(&none);
	CHECK(sigprocmask(SIG_SETMASK, &none, NULL), "sigprocmask");
	int cgroup = -1;
	for (int i = 0; i < nhierarchies; i++)
		if (hierarchies[i].v2)
			cgroup = hierarchies[i].group;
	pid_t pid = clone_process(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | (host_network ? 0 : CLONE_NEWNET), cgroup);
	if (pid == 0) {
		/* dup2 over 2 loses the standard error; keep it for messages until execve. */
		stderr = fdopen(error_fd, "w");
		if (!stderr)
			_exit(98);
		setvbuf(stderr, NULL, _IONBF, 0);
		payload(dir);
	}
	_exit(reap(pid));
}

static void joiner(void)
{
	step = "join";
	CHECK(prctl(PR_SET_DUMPABLE, 0), "dumpable");
	CHECK(setsid(), "setsid");
	CHECK(syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC), "close_range");
	for (int i = 1; i <= 64; i++)
		signal(i, SIG_DFL);
	sigset_t none;
	sigemptyset(&none);
	CHECK(sigprocmask(SIG_SETMASK, &none, NULL), "sigprocmask");
	int cgroup = -1;
	for (int i = 0; i < nhierarchies; i++)
		if (hierarchies[i].v2 && hierarchies[i].parent >= 0)
			cgroup = hierarchies[i].group;
	CHECK(setns(join_fd, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | (host_network ? 0 : CLONE_NEWNET)), "setns");
	pid_t pid = clone_process(0, cgroup);
	if (pid == 0) {
		CHECK(setsid(), "setsid");
		for (int i = 0; i < 3; i++)
			CHECK(dup2(null_fd, i), "dup2");
		for (int i = 0; i < nhierarchies; i++)
			if (hierarchies[i].parent >= 0 && !hierarchies[i].v2)
				CHECK(write(hierarchies[i].tasks, "0", 1), "%s", hierarchies[i].where);
		CHECK(setns(join_fd, CLONE_NEWCGROUP), "setns");
		umask(022);
		drop_rights();
		static char *env[] = { "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL };
		execve(program[0], program, env);
		die("%s", program[0]);
	}
	_exit(reap(pid));
}

static int64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static void read_filter(void)
{
	step = "read the filter";
	static struct sock_filter code[BPF_MAXINSNS];
	int fd = open(filter_file, O_RDONLY | O_CLOEXEC);
	CHECK(fd, "%s", filter_file);
	ssize_t n = read(fd, code, sizeof(code));
	CHECK(n, "%s", filter_file);
	close(fd);
	errno = EINVAL;
	if (n == 0 || n % sizeof(code[0]))
		die("%s: %zd bytes are no filter", filter_file, n);
	filter.len = n / sizeof(code[0]);
	filter.filter = code;
}

static void copy_cpuset(void)
{
	for (int i = 0; i < nhierarchies; i++)
		if (has(&hierarchies[i], "cpuset"))
			for (int k = 0; k < 2; k++) {
				int fd = openat(hierarchies[i].parent, k ? "cpuset.mems" : "cpuset.cpus", O_RDONLY | O_CLOEXEC);
				CHECK(read(fd, k ? cpuset_mems : cpuset_cpus, sizeof(cpuset_cpus) - 1), "read the cpuset");
				close(fd);
			}
}

static void parse(int argc, char **argv)
{
	static struct { char option; const char **value; int *count; } lists[] = {
		{ 'l', lower, &nlower }, { 'm', masked, &nmasked }, { 'r', readonly, &nreadonly },
	};
	static struct { char option; const char **value; } strings[] = {
		{ 's', &state }, { 'f', &filter_file }, { 'h', &host_name }, { 'p', &parent_name }, { 'M', &memory }, { 'P', &pids },
		{ 'Q', &quota }, { 'T', &period }, { 'W', &shares },
	};
	int c;
	while ((c = getopt(argc, argv, "+n:g:s:l:f:Hh:p:M:P:Q:T:W:m:r:vwx:")) != -1) {
		if (c == '?')
			exit(2);
		for (size_t i = 0; i < COUNT(lists); i++)
			if (c == lists[i].option) {
				errno = E2BIG;
				if (*lists[i].count == MAX)
					die("-%c", c);
				lists[i].value[(*lists[i].count)++] = optarg;
			}
		for (size_t i = 0; i < COUNT(strings); i++)
			if (c == strings[i].option)
				*strings[i].value = optarg;
		rounds = c == 'n' ? atoi(optarg) : rounds;
		gap_ms = c == 'g' ? atol(optarg) : gap_ms;
		join_pid = c == 'x' ? atoi(optarg) : join_pid;
		host_network |= c == 'H';
		verbose |= c == 'v';
		warm |= c == 'w';
	}
	program = argv + optind;
	errno = EINVAL;
	if (!*program || (!join_pid && (!state || !nlower)) || rounds < 1)
		die("usage: floor [options] -s STATE -l LOWER PROGRAM [ARG...]");
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	CHECK(null_fd, "/dev/null");
	error_fd = fcntl(2, F_DUPFD_CLOEXEC, 3);
	CHECK(error_fd, "standard error");
	if (filter_file)
		read_filter();
	find_hierarchies();
	if (join_pid)
		find_container();
	else
		copy_cpuset();
	for (int i = -warm; i < rounds; i++) {
		char id[64], dir[2048];
		snprintf(id, sizeof(id), "%d-%d", (int)getpid(), i);
		snprintf(dir, sizeof(dir), "%s/%s", state, id);
		if (gap_ms)
			usleep(gap_ms * 1000);
		int64_t start = now();
		if (!join_pid) {
			make_cgroups(id);
			make_state(dir);
		}
		step = "start";
		pid_t pid = clone_process(join_pid ? 0 : CLONE_NEWPID, -1);
		if (pid == 0 && join_pid)
			joiner();
		if (pid == 0)
			guard(dir);
		int status = reap(pid);
		if (!join_pid) {
			remove_cgroups(id);
			step = "remove the state directory";
			remove_tree(AT_FDCWD, dir);
		}
		int64_t end = now();
		if (status != 0) {
			fprintf(stderr, "floor: %s ended with status %d\n", program[0], status);
			if (!join_pid)
				drop_parents();
			return 1;
		}
		if (i >= 0)
			printf("%lld\n", (long long)(end - start));
	}
	if (!join_pid)
		drop_parents();
	return 0;
}
