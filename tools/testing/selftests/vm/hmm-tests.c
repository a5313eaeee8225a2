// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lifetimes of HMM mirrors, seen from user space
 *
 * The dummy devices of lib/test_hmm_device.c write into processes that fork,
 * exec, exit, die and pass descriptors on. What happened, and in which order,
 * is read back as events. Where a race is tested the driver holds one side at a
 * named point until the other has come where it should; nothing here sleeps to
 * let time pass. That a process waits is checked for QUIET_MS: a right kernel
 * cannot fail there, and a wrong one has ample time to.
 */
#include "../kselftest_harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <lib/test_hmm_device_uapi.h>

#define DEVICE_NODE	"/dev/test_hmm"
#define NR_PAGES	4
#define MAX_EVENTS	512
#define LIMIT_MS	20000
#define QUIET_MS	100
#define NR_THREADS	16
#define NR_SOAKERS	6
#define NR_DEVICES	8
#define NR_CONTEXTS	1000
#define DEBUGFS		"/sys/kernel/debug/hmm/"
#define REPORT_SECONDS	"/sys/module/hmm_core/parameters/report_seconds"
/* The image of a process that called exec; see exec_child() */
#define EXEC_CHILD	"HMM_TESTS_EXEC_CHILD"

/*
 * A process that goes ahead when told. What it does is in the caller of
 * process_start(), between that and process_end().
 */
struct process {
	pid_t pid;
	int go;		/* parent: written and closed to let it go ahead */
	int came;	/* parent: a byte each time it came to process_wait() */
	int exited;	/* parent: end of file once it is gone */
};

struct events {
	struct test_hmm_event event[MAX_EVENTS];
	int nr;
};

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	ssize_t len = strlen(text);
	int ret = fd < 0 || write(fd, text, len) != len ? -1 : 0;

	if (fd >= 0)
		close(fd);
	return ret;
}

static int read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t len = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	if (len < 0)
		return -1;
	text[len] = 0;
	return 0;
}

static double now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static size_t page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

static int device_open(void)
{
	return open(DEVICE_NODE, O_RDWR | O_CLOEXEC);
}

static int device_attach(__u32 device)
{
	int fd = device_open();

	if (fd >= 0 && ioctl(fd, TEST_HMM_DEVICE_ATTACH, &device)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int mirror_register(int fd, void *buffer)
{
	struct test_hmm_register arg = {
		.addr = (uintptr_t)buffer,
		.size = NR_PAGES * page_size(),
	};

	return ioctl(fd, TEST_HMM_REGISTER, &arg);
}

static int device_access(int fd, unsigned long how, __u64 first, __u64 count,
			 __u64 value)
{
	struct test_hmm_access arg = {
		.first = first, .count = count, .value = value,
	};

	return ioctl(fd, how, &arg);
}

static int hold(int fd, __u32 point)
{
	return ioctl(fd, TEST_HMM_HOLD, &point);
}

static int resume(int fd, __u32 point)
{
	return ioctl(fd, TEST_HMM_RESUME, &point);
}

static int wait_held(int fd, __u32 point)
{
	struct test_hmm_wait arg = { .point = point, .timeout_ms = LIMIT_MS };

	return ioctl(fd, TEST_HMM_WAIT_HELD, &arg);
}

static void *buffer_new(void)
{
	return mmap(NULL, NR_PAGES * page_size(), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static __u64 *buffer_word(void *buffer, int page)
{
	return (__u64 *)((char *)buffer + page * page_size());
}

/* Everything that @fd has not read yet */
static void events_read(int fd, struct events *events)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	ssize_t size;

	events->nr = 0;
	while (poll(&pfd, 1, 0) == 1 && events->nr < MAX_EVENTS) {
		size = read(fd, &events->event[events->nr],
			    (MAX_EVENTS - events->nr) *
			    sizeof(events->event[0]));
		if (size <= 0)
			break;
		events->nr += size / sizeof(events->event[0]);
	}
}

/* All that ever happened to a device: each context reads for itself. */
static void events_all(__u32 device, struct events *events)
{
	int fd = device_attach(device);

	events->nr = 0;
	if (fd >= 0) {
		events_read(fd, events);
		close(fd);
	}
}

static int events_count(const struct events *events, __u32 type)
{
	int i, count = 0;

	for (i = 0; i < events->nr; i++)
		count += events->event[i].type == type;
	return count;
}

/* Wait until something of that type happens to the device of @fd. */
static bool events_await(int fd, __u32 type)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	struct test_hmm_event event;

	do {
		if (poll(&pfd, 1, LIMIT_MS) != 1 ||
		    read(fd, &event, sizeof(event)) != sizeof(event))
			return false;
	} while (event.type != type);
	return true;
}

/* Nothing happens to the device of @fd, of which all events are read. */
static bool events_stay_away(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, QUIET_MS) == 0;
}

/* Wait for a line of the kernel log: @prefix, and somewhere then @what. */
static bool kmsg_await(int kmsg, const char *prefix, const char *what)
{
	struct pollfd pfd = { .fd = kmsg, .events = POLLIN };
	char record[1024], *text;
	ssize_t len;

	while (poll(&pfd, 1, LIMIT_MS) == 1) {
		len = read(kmsg, record, sizeof(record) - 1);
		/* Overwritten before it was read: on with the next */
		if (len < 0 && errno == EPIPE)
			continue;
		if (len < 0)
			return false;
		record[len] = 0;
		text = strchr(record, ';');
		if (text && !strncmp(text + 1, prefix, strlen(prefix)) &&
		    strstr(text, what))
			return true;
	}
	return false;
}

/* The first of its type, or NULL */
static const struct test_hmm_event *events_find(const struct events *events,
						__u32 type)
{
	int i;

	for (i = 0; i < events->nr; i++)
		if (events->event[i].type == type)
			return &events->event[i];
	return NULL;
}

/* Both happened, and every @first before every @then */
static bool events_ordered(const struct events *events, __u32 first, __u32 then)
{
	bool seen_first = false, seen_then = false;
	int i;

	for (i = 0; i < events->nr; i++) {
		if (events->event[i].type == first) {
			if (seen_then)
				return false;
			seen_first = true;
		} else if (events->event[i].type == then) {
			if (!seen_first)
				return false;
			seen_then = true;
		}
	}
	return seen_then;
}

/* Returns 0 in the child, like fork(). */
static pid_t process_start(struct process *p, int *go, int *came)
{
	int go_pipe[2], came_pipe[2], exited_pipe[2];

	if (pipe2(go_pipe, O_CLOEXEC) || pipe2(came_pipe, O_CLOEXEC) ||
	    pipe(exited_pipe))
		return -1;

	p->pid = fork();
	if (!p->pid) {
		close(go_pipe[1]);
		close(came_pipe[0]);
		close(exited_pipe[0]);
		*go = go_pipe[0];
		*came = came_pipe[1];
		return 0;
	}
	close(go_pipe[0]);
	close(came_pipe[1]);
	close(exited_pipe[1]);
	p->go = go_pipe[1];
	p->came = came_pipe[0];
	p->exited = exited_pipe[0];
	return p->pid;
}

/* In the child: tell that it came here, and wait to be let go ahead. */
static void process_wait(int go, int came)
{
	char c = 0;

	if (write(came, &c, 1) != 1 || read(go, &c, 1) != 1)
		_exit(100);
}

/* In the parent: it came to its next process_wait(). */
static bool process_came(struct process *p)
{
	struct pollfd pfd = { .fd = p->came, .events = POLLIN };
	char c;

	return poll(&pfd, 1, LIMIT_MS) == 1 && read(p->came, &c, 1) == 1;
}

static bool process_go(struct process *p)
{
	char c = 0;

	return write(p->go, &c, 1) == 1;
}

/* It does not exit. Descriptors are closed late in exit, after the mm went. */
static bool process_stays(struct process *p)
{
	struct pollfd pfd = { .fd = p->exited, .events = POLLIN };

	return poll(&pfd, 1, QUIET_MS) == 0;
}

/* Its exit status, or -1 if it was killed or is there for ever. */
static int process_end(struct process *p)
{
	struct pollfd pfd = { .fd = p->exited, .events = POLLIN };
	int status;

	if (poll(&pfd, 1, LIMIT_MS) != 1)
		return -1;
	if (waitpid(p->pid, &status, 0) != p->pid)
		return -1;
	close(p->go);
	close(p->came);
	close(p->exited);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int fd_send(int sock, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {};
	char c = 0;
	struct iovec iov = { .iov_base = &c, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	return sendmsg(sock, &msg, 0) == 1 ? 0 : -1;
}

static int fd_receive(int sock)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char c;
	struct iovec iov = { .iov_base = &c, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	int fd;

	if (recvmsg(sock, &msg, 0) != 1 || !CMSG_FIRSTHDR(&msg))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	return fd;
}

/*
 * What exec_releases_the_old_mm() execs, before main(): a new address space
 * with an old descriptor, which mirrors itself at once.
 */
static void __attribute__((constructor)) exec_child(void)
{
	const char *device = getenv(EXEC_CHILD);
	void *buffer;
	int fd;

	if (!device)
		return;
	buffer = buffer_new();
	fd = device_attach(atoi(device));
	if (fd < 0 || buffer == MAP_FAILED)
		_exit(2);
	if (mirror_register(fd, buffer))
		_exit(3);
	if (device_access(fd, TEST_HMM_WRITE, 0, 1, 77) ||
	    *buffer_word(buffer, 0) != 77)
		_exit(4);
	_exit(0);
}

/* A device, a context that is attached to it, and a buffer: of every fixture */
struct world {
	int ctl;		/* made the device */
	int fd;			/* what the test registers; -1: closed */
	__u32 device;
	bool destroyed;
	void *buffer;
	struct test_hmm_counts start;
	struct events events;
};

static void world_setup(struct __test_metadata *_metadata, struct world *w)
{
	w->ctl = device_open();
	if (w->ctl < 0 && errno == ENOENT)
		SKIP(return, "load test_hmm_device.ko");
	ASSERT_LE(0, w->ctl);
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_COUNTS, &w->start));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_CREATE, &w->device));
	w->fd = device_attach(w->device);
	ASSERT_LE(0, w->fd);
	w->buffer = buffer_new();
	ASSERT_NE(MAP_FAILED, w->buffer);
}

/* Whatever the test did, nothing is registered: the device can go. */
static void world_close(struct __test_metadata *_metadata, struct world *w)
{
	if (w->fd >= 0)
		close(w->fd);
	if (!w->destroyed)
		EXPECT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_DESTROY));
	munmap(w->buffer, NR_PAGES * page_size());
	close(w->ctl);
}

/* And nothing is left of it. */
static void expect_counts(struct __test_metadata *_metadata,
			  const struct test_hmm_counts *start)
{
	struct test_hmm_counts now;
	int fd = device_open();

	EXPECT_EQ(0, ioctl(fd, TEST_HMM_COUNTS, &now));
	EXPECT_EQ(start->devices, now.devices);
	EXPECT_EQ(start->mirrors, now.mirrors);
	EXPECT_EQ(start->hmms, now.hmms);
	EXPECT_EQ(start->contexts, now.contexts);
	close(fd);
}

static void world_teardown(struct __test_metadata *_metadata, struct world *w)
{
	world_close(_metadata, w);
	expect_counts(_metadata, &w->start);
}

/* One release, for @reason; the device stopped before pages were freed. */
static void expect_released(struct __test_metadata *_metadata,
			    const struct events *events, __u64 reason)
{
	const struct test_hmm_event *release =
		events_find(events, TEST_HMM_RELEASE);
	int i;

	EXPECT_EQ(1, events_count(events, TEST_HMM_RELEASE));
	EXPECT_EQ(1, events_count(events, TEST_HMM_STOPPED));
	if (release)
		EXPECT_EQ(reason, release->arg);
	if (events_count(events, TEST_HMM_UNMAP))
		EXPECT_TRUE(events_ordered(events, TEST_HMM_STOPPED,
					   TEST_HMM_UNMAP));
	for (i = 0; i < events->nr; i++)
		if (events->event[i].type == TEST_HMM_UNMAP)
			EXPECT_EQ(0, events->event[i].arg);
}

/* The device runs: its writes come in, each pass with the next value. */
static void wait_for_writes(void *buffer, __u64 value)
{
	__u64 *word = buffer_word(buffer, NR_PAGES - 1);

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) < value)
		sched_yield();
}

/* A process that registers @w->fd, has the device run, and exits when told. */
static pid_t start_mirrored(struct world *w, struct process *p)
{
	int go, came;
	pid_t pid;

	pid = process_start(p, &go, &came);
	if (pid)
		return pid;

	if (mirror_register(w->fd, w->buffer) ||
	    device_access(w->fd, TEST_HMM_WRITE, 0, NR_PAGES, 1) ||
	    device_access(w->fd, TEST_HMM_RUN, 0, NR_PAGES, 2))
		_exit(1);
	wait_for_writes(w->buffer, 5);
	/* Others hold the file open: it is not closed by this exit */
	process_wait(go, came);
	_exit(0);
}

/* A process that makes one call on @fd as soon as it is there. */
static pid_t start_caller(struct process *p, int fd, unsigned long cmd)
{
	int go, came;
	pid_t pid;

	pid = process_start(p, &go, &came);
	if (pid)
		return pid;
	_exit(ioctl(fd, cmd) ? 1 : 0);
}

FIXTURE(hmm)
{
	struct world w;
};

FIXTURE_SETUP(hmm)
{
	world_setup(_metadata, &self->w);
}

FIXTURE_TEARDOWN(hmm)
{
	world_teardown(_metadata, &self->w);
}

/* The device runs in a dead address space, or the mirror leaks with it. */
TEST_F(hmm, exit_releases_before_pages_are_freed)
{
	struct world *w = &self->w;
	struct process p;

	ASSERT_LT(0, start_mirrored(w, &p));
	ASSERT_TRUE(process_came(&p));
	events_read(w->ctl, &w->events);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_REGISTERED));
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_RELEASE));

	ASSERT_TRUE(process_go(&p));
	EXPECT_EQ(0, process_end(&p));
	events_read(w->ctl, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_MM_EXIT);
	/* Its pages went, in one go, after that */
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_UNMAP));
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_FREED));

	/* Still registered: only the late close ends that */
	EXPECT_EQ(-1, ioctl(w->ctl, TEST_HMM_DEVICE_DESTROY));
	EXPECT_EQ(EBUSY, errno);
	close(w->fd);
	w->fd = -1;
	events_read(w->ctl, &w->events);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_RELEASE));
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_FREED));
}

/* As above, but nobody asked the process. */
TEST_F(hmm, sigkill_releases_before_pages_are_freed)
{
	struct world *w = &self->w;
	struct process p;

	ASSERT_LT(0, start_mirrored(w, &p));
	ASSERT_TRUE(process_came(&p));
	ASSERT_EQ(0, kill(p.pid, SIGKILL));
	EXPECT_EQ(-1, process_end(&p));
	events_read(w->ctl, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_MM_EXIT);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_UNMAP));
}

/* The exit after an unregister finds nothing to release. */
TEST_F(hmm, exit_after_unregister_releases_nothing)
{
	struct world *w = &self->w;
	struct process p;
	int go, came;
	pid_t pid;

	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		if (mirror_register(w->fd, w->buffer) ||
		    device_access(w->fd, TEST_HMM_RUN, 0, NR_PAGES, 1) ||
		    ioctl(w->fd, TEST_HMM_UNREGISTER))
			_exit(1);
		process_wait(go, came);
		_exit(0);
	}
	ASSERT_TRUE(process_came(&p));
	ASSERT_TRUE(process_go(&p));
	EXPECT_EQ(0, process_end(&p));

	events_read(w->ctl, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_UNREGISTER);
	EXPECT_TRUE(events_ordered(&w->events, TEST_HMM_STOPPED,
				   TEST_HMM_FREED));
	EXPECT_TRUE(events_ordered(&w->events, TEST_HMM_FREED,
				   TEST_HMM_UNREGISTERED));
}

/* Exit of the owner against a close elsewhere, then the device goes: */
FIXTURE(race)
{
	struct world w;
};

FIXTURE_VARIANT(race)
{
	__u32 held;		/* where exit is held */
};

FIXTURE_SETUP(race)
{
	world_setup(_metadata, &self->w);
}

FIXTURE_TEARDOWN(race)
{
	world_teardown(_metadata, &self->w);
}

FIXTURE_VARIANT_ADD(race, exit_starts_release)
{
	.held = HMM_POINT_RELEASE_STARTED,
};

FIXTURE_VARIANT_ADD(race, exit_in_release)
{
	.held = TEST_HMM_IN_RELEASE,
};

FIXTURE_VARIANT_ADD(race, exit_returned_from_release)
{
	.held = HMM_POINT_RELEASE_RETURNED,
};

/*
 * Exit is held half way, unregister comes, then somebody takes the device away:
 * neither may get through. KASAN sees it if one does.
 */
TEST_F(race, unregister_and_device_wait_for_exit)
{
	struct world *w = &self->w;
	struct process owner, closer, remover;

	ASSERT_LT(0, start_mirrored(w, &owner));
	ASSERT_TRUE(process_came(&owner));
	ASSERT_EQ(0, hold(w->ctl, variant->held));
	ASSERT_EQ(0, hold(w->ctl, HMM_POINT_RELEASE_WAIT));
	ASSERT_TRUE(process_go(&owner));
	ASSERT_EQ(0, wait_held(w->ctl, variant->held));

	ASSERT_LT(0, start_caller(&closer, w->fd, TEST_HMM_UNREGISTER));
	ASSERT_EQ(0, wait_held(w->ctl, HMM_POINT_RELEASE_WAIT));
	ASSERT_EQ(0, resume(w->ctl, HMM_POINT_RELEASE_WAIT));
	EXPECT_TRUE(process_stays(&closer));
	ASSERT_LT(0, start_caller(&remover, w->ctl, TEST_HMM_DEVICE_DESTROY));
	EXPECT_TRUE(process_stays(&remover));
	EXPECT_TRUE(process_stays(&owner));
	events_read(w->ctl, &w->events);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_UNMAP));
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_FREED));
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_DEVICE_GONE));

	ASSERT_EQ(0, resume(w->ctl, variant->held));
	EXPECT_EQ(0, process_end(&closer));
	EXPECT_EQ(0, process_end(&remover));
	w->destroyed = true;
	EXPECT_EQ(0, process_end(&owner));

	events_all(w->device, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_MM_EXIT);
	EXPECT_TRUE(events_ordered(&w->events, TEST_HMM_STOPPED,
				   TEST_HMM_FREED));
	EXPECT_TRUE(events_ordered(&w->events, TEST_HMM_FREED,
				   TEST_HMM_DEVICE_GONE));
}

/*
 * As above, the other way round: a process exits while its mirror is being
 * released for another reason. The process goes, and its address space stays
 * until ->release() has returned.
 */
FIXTURE(late_exit)
{
	struct world w;
};

FIXTURE_VARIANT(late_exit)
{
	unsigned long cmd;	/* begins the release */
	__u32 held;
	__u64 reason;
};

FIXTURE_SETUP(late_exit)
{
	world_setup(_metadata, &self->w);
}

FIXTURE_TEARDOWN(late_exit)
{
	world_teardown(_metadata, &self->w);
}

FIXTURE_VARIANT_ADD(late_exit, unregister_starts_release)
{
	.cmd = TEST_HMM_UNREGISTER,
	.held = HMM_POINT_RELEASE_STARTED,
	.reason = TEST_HMM_REASON_UNREGISTER,
};

FIXTURE_VARIANT_ADD(late_exit, unregister_in_release)
{
	.cmd = TEST_HMM_UNREGISTER,
	.held = TEST_HMM_IN_RELEASE,
	.reason = TEST_HMM_REASON_UNREGISTER,
};

FIXTURE_VARIANT_ADD(late_exit, unregister_returned_from_release)
{
	.cmd = TEST_HMM_UNREGISTER,
	.held = HMM_POINT_RELEASE_RETURNED,
	.reason = TEST_HMM_REASON_UNREGISTER,
};

FIXTURE_VARIANT_ADD(late_exit, kill_starts_release)
{
	.cmd = TEST_HMM_KILL,
	.held = HMM_POINT_RELEASE_STARTED,
	.reason = TEST_HMM_REASON_ERROR,
};

FIXTURE_VARIANT_ADD(late_exit, kill_in_release)
{
	.cmd = TEST_HMM_KILL,
	.held = TEST_HMM_IN_RELEASE,
	.reason = TEST_HMM_REASON_ERROR,
};

FIXTURE_VARIANT_ADD(late_exit, kill_returned_from_release)
{
	.cmd = TEST_HMM_KILL,
	.held = HMM_POINT_RELEASE_RETURNED,
	.reason = TEST_HMM_REASON_ERROR,
};

/* Pages are freed while the device runs, or the mirror is used late. */
TEST_F(late_exit, comes_after_release)
{
	struct world *w = &self->w;
	struct process owner, caller;

	ASSERT_LT(0, start_mirrored(w, &owner));
	ASSERT_TRUE(process_came(&owner));
	ASSERT_EQ(0, hold(w->ctl, variant->held));
	ASSERT_LT(0, start_caller(&caller, w->fd, variant->cmd));
	ASSERT_EQ(0, wait_held(w->ctl, variant->held));

	ASSERT_TRUE(process_go(&owner));
	EXPECT_EQ(0, process_end(&owner));
	events_read(w->ctl, &w->events);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_UNMAP));
	EXPECT_TRUE(events_stay_away(w->ctl));

	ASSERT_EQ(0, resume(w->ctl, variant->held));
	EXPECT_EQ(0, process_end(&caller));
	/* What is unregistered does not hear of it */
	if (variant->cmd == TEST_HMM_KILL) {
		EXPECT_TRUE(events_await(w->ctl, TEST_HMM_UNMAP));
	} else {
		EXPECT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_DESTROY));
		w->destroyed = true;
	}
	events_all(w->device, &w->events);
	expect_released(_metadata, &w->events, variant->reason);
}

/*
 * Killed, while a worker that ->release() waits for has the last mm_users: its
 * mmput() would wait for the release that waits for it.
 */
TEST_F(hmm, close_waits_for_a_worker_with_the_last_mm_users)
{
	struct world *w = &self->w;
	struct process p;
	int go, came;
	pid_t pid;

	ASSERT_EQ(0, hold(w->ctl, TEST_HMM_IN_USE_MM));
	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = device_attach(w->device);

		if (fd < 0 || mirror_register(fd, w->buffer) ||
		    ioctl(fd, TEST_HMM_USE_MM))
			_exit(1);
		process_wait(go, came);
		_exit(2);
	}
	ASSERT_TRUE(process_came(&p));
	ASSERT_EQ(0, wait_held(w->ctl, TEST_HMM_IN_USE_MM));
	ASSERT_EQ(0, kill(p.pid, SIGKILL));
	ASSERT_TRUE(events_await(w->ctl, TEST_HMM_RELEASE));
	EXPECT_TRUE(events_stay_away(w->ctl));
	ASSERT_EQ(0, resume(w->ctl, TEST_HMM_IN_USE_MM));
	EXPECT_EQ(-1, process_end(&p));
	events_all(w->device, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_UNREGISTER);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_FREED));
}

/* The child must not get at the parent's memory, nor end its mirror. */
TEST_F(hmm, fork_gives_the_child_no_mirror)
{
	struct world *w = &self->w;
	struct process child;
	int go, came;
	pid_t pid;

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	pid = process_start(&child, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		if (!device_access(w->fd, TEST_HMM_WRITE, 0, 1, 1) ||
		    errno != EPERM)
			_exit(1);
		if (!device_access(w->fd, TEST_HMM_READ, 0, 1, 0) ||
		    errno != EPERM)
			_exit(2);
		_exit(0);
	}
	EXPECT_EQ(0, process_end(&child));
	events_read(w->ctl, &w->events);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_RELEASE));

	EXPECT_EQ(0, device_access(w->fd, TEST_HMM_WRITE, 0, 1, 42));
	EXPECT_EQ(42, *buffer_word(w->buffer, 0));
}

/* Parent and child each mirror themselves, and end on their own. */
TEST_F(hmm, fork_and_both_register)
{
	struct world *w = &self->w;
	struct process child;
	struct test_hmm_counts counts;
	int go, came, fd;
	pid_t pid;

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	fd = device_attach(w->device);
	ASSERT_LE(0, fd);
	pid = process_start(&child, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		if (mirror_register(fd, w->buffer) ||
		    device_access(fd, TEST_HMM_WRITE, 0, 1, 7) ||
		    *buffer_word(w->buffer, 0) != 7)
			_exit(1);
		process_wait(go, came);
		_exit(0);
	}
	ASSERT_TRUE(process_came(&child));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_COUNTS, &counts));
	EXPECT_EQ(w->start.hmms + 2, counts.hmms);
	EXPECT_EQ(w->start.mirrors + 2, counts.mirrors);
	EXPECT_EQ(0, *buffer_word(w->buffer, 0));

	ASSERT_TRUE(process_go(&child));
	EXPECT_EQ(0, process_end(&child));
	events_all(w->device, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_MM_EXIT);
	EXPECT_EQ(0, device_access(w->fd, TEST_HMM_WRITE, 0, 1, 9));
	EXPECT_EQ(9, *buffer_word(w->buffer, 0));
	close(fd);
}

/* The new image inherits the descriptor, not the mirror. */
TEST_F(hmm, exec_releases_the_old_mm)
{
	struct world *w = &self->w;
	struct process p;
	char device[16];
	int go, came;
	pid_t pid;

	snprintf(device, sizeof(device), "%u", w->device);
	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		setenv(EXEC_CHILD, device, 1);
		if (mirror_register(w->fd, w->buffer) ||
		    device_access(w->fd, TEST_HMM_RUN, 0, NR_PAGES, 1))
			_exit(10);
		execl("/proc/self/exe", "hmm-device-tests", (char *)NULL);
		_exit(11);
	}
	EXPECT_EQ(0, process_end(&p));

	events_all(w->device, &w->events);
	EXPECT_EQ(2, events_count(&w->events, TEST_HMM_REGISTERED));
	EXPECT_EQ(2, events_count(&w->events, TEST_HMM_RELEASE));
	EXPECT_EQ(TEST_HMM_REASON_MM_EXIT,
		  events_find(&w->events, TEST_HMM_RELEASE)->arg);
	EXPECT_EQ(0, events_find(&w->events, TEST_HMM_UNMAP)->arg);
	/* The old image was released before the new one registered */
	EXPECT_LT(events_find(&w->events, TEST_HMM_STOPPED)->seq,
		  events_find(&w->events, TEST_HMM_DEVICE_WROTE)->seq);
}

/* The last close unregisters, whatever process does it. */
TEST_F(hmm, descriptor_closed_in_another_process_unregisters)
{
	struct world *w = &self->w;
	struct process p;
	int go, came, sock[2], fd;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		fd = device_attach(w->device);
		if (fd < 0 || mirror_register(fd, w->buffer) ||
		    device_access(fd, TEST_HMM_RUN, 0, NR_PAGES, 1) ||
		    fd_send(sock[0], fd) || close(fd))
			_exit(1);
		process_wait(go, came);
		/* The device was stopped in our life time */
		*buffer_word(w->buffer, 0) = 0;
		process_wait(go, came);
		_exit(*buffer_word(w->buffer, 0) ? 2 : 0);
	}
	ASSERT_TRUE(process_came(&p));
	fd = fd_receive(sock[1]);
	ASSERT_LE(0, fd);
	events_read(w->ctl, &w->events);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_REGISTERED));
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_RELEASE));
	close(fd);
	events_read(w->ctl, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_UNREGISTER);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_FREED));

	ASSERT_TRUE(process_go(&p));
	ASSERT_TRUE(process_came(&p));
	ASSERT_TRUE(process_go(&p));
	EXPECT_EQ(0, process_end(&p));
	close(sock[0]);
	close(sock[1]);
}

/* The owner is gone when the descriptor that it passed on is closed. */
TEST_F(hmm, descriptor_outlives_the_process_that_passed_it)
{
	struct world *w = &self->w;
	struct process p;
	int go, came, sock[2], fd;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		fd = device_attach(w->device);
		_exit(fd < 0 || mirror_register(fd, w->buffer) ||
		      fd_send(sock[0], fd));
	}
	EXPECT_EQ(0, process_end(&p));
	fd = fd_receive(sock[1]);
	ASSERT_LE(0, fd);
	/* What happened can be read from the descriptor itself */
	events_read(fd, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_MM_EXIT);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_FREED));
	EXPECT_EQ(-1, device_access(fd, TEST_HMM_WRITE, 0, 1, 1));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(0, ioctl(fd, TEST_HMM_UNREGISTER));
	events_read(fd, &w->events);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_FREED));
	close(fd);
	close(sock[0]);
	close(sock[1]);
}

/* How another holder of the descriptor comes to it, and who lets go last */
enum { BY_DUP, BY_FORK, BY_PASSING, NR_WAYS };
enum { OTHER_LAST, OWNER_LAST, EXIT_FIRST, NR_ORDERS };

FIXTURE(descriptors)
{
	struct world w;
};

FIXTURE_VARIANT(descriptors)
{
	int way;
	int order;
};

FIXTURE_SETUP(descriptors)
{
	world_setup(_metadata, &self->w);
}

FIXTURE_TEARDOWN(descriptors)
{
	world_teardown(_metadata, &self->w);
}

FIXTURE_VARIANT_ADD(descriptors, dup_closed_last)
{
	.way = BY_DUP,
	.order = OTHER_LAST,
};

FIXTURE_VARIANT_ADD(descriptors, dup_closed_by_exit)
{
	.way = BY_DUP,
	.order = EXIT_FIRST,
};

FIXTURE_VARIANT_ADD(descriptors, forked_closed_last)
{
	.way = BY_FORK,
	.order = OTHER_LAST,
};

FIXTURE_VARIANT_ADD(descriptors, forked_closed_first)
{
	.way = BY_FORK,
	.order = OWNER_LAST,
};

FIXTURE_VARIANT_ADD(descriptors, forked_closed_after_exit)
{
	.way = BY_FORK,
	.order = EXIT_FIRST,
};

FIXTURE_VARIANT_ADD(descriptors, passed_closed_last)
{
	.way = BY_PASSING,
	.order = OTHER_LAST,
};

FIXTURE_VARIANT_ADD(descriptors, passed_closed_first)
{
	.way = BY_PASSING,
	.order = OWNER_LAST,
};

FIXTURE_VARIANT_ADD(descriptors, passed_closed_after_exit)
{
	.way = BY_PASSING,
	.order = EXIT_FIRST,
};

/* The owner: registers, and closes what it has when told, unless exit is to. */
static void descriptors_owner(struct world *w, int way, int order, int sock,
			      int go, int came)
{
	int fd = w->fd, other = -1;

	if (way == BY_PASSING)
		fd = device_attach(w->device);
	if (mirror_register(fd, w->buffer) ||
	    device_access(fd, TEST_HMM_RUN, 0, NR_PAGES, 1))
		_exit(1);
	/* All is mapped: no worker has a pin that would put exit off */
	wait_for_writes(w->buffer, 5);
	if (way == BY_PASSING && fd_send(sock, fd))
		_exit(2);
	if (way == BY_DUP)
		other = dup(fd);
	process_wait(go, came);
	if (order != EXIT_FIRST)
		close(fd);
	process_wait(go, came);
	if (order != EXIT_FIRST && other >= 0)
		close(other);
	process_wait(go, came);
	_exit(0);
}

/* The last close unregisters; an earlier exit releases, and frees not. */
TEST_F(descriptors, last_close_unregisters)
{
	struct world *w = &self->w;
	int go, came, sock[2], other = -1;
	struct process p;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid)
		descriptors_owner(w, variant->way, variant->order, sock[0], go,
				  came);
	ASSERT_TRUE(process_came(&p));
	if (variant->way == BY_PASSING)
		other = fd_receive(sock[1]);
	else if (variant->way == BY_FORK)
		other = dup(w->fd);
	close(w->fd);
	w->fd = -1;
	if (variant->order == OWNER_LAST)
		close(other);
	events_read(w->ctl, &w->events);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_RELEASE));

	ASSERT_TRUE(process_go(&p));
	ASSERT_TRUE(process_came(&p));
	if (variant->order == OTHER_LAST) {
		events_read(w->ctl, &w->events);
		EXPECT_EQ(0, events_count(&w->events, TEST_HMM_RELEASE));
		close(other);
	}
	ASSERT_TRUE(process_go(&p));
	ASSERT_TRUE(process_came(&p));
	events_all(w->device, &w->events);
	EXPECT_EQ(variant->order != EXIT_FIRST,
		  events_count(&w->events, TEST_HMM_FREED));
	ASSERT_TRUE(process_go(&p));
	EXPECT_EQ(0, process_end(&p));

	events_all(w->device, &w->events);
	expect_released(_metadata, &w->events, variant->order == EXIT_FIRST ?
			TEST_HMM_REASON_MM_EXIT : TEST_HMM_REASON_UNREGISTER);
	if (variant->order == EXIT_FIRST && other >= 0) {
		EXPECT_EQ(0, events_count(&w->events, TEST_HMM_FREED));
		close(other);
		events_all(w->device, &w->events);
	}
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_FREED));
	close(sock[0]);
	close(sock[1]);
}

FIXTURE(two_devices)
{
	struct world w[2];
};

FIXTURE_VARIANT(two_devices)
{
	int first;
};

FIXTURE_SETUP(two_devices)
{
	world_setup(_metadata, &self->w[0]);
	world_setup(_metadata, &self->w[1]);
}

FIXTURE_TEARDOWN(two_devices)
{
	world_close(_metadata, &self->w[1]);
	world_close(_metadata, &self->w[0]);
	expect_counts(_metadata, &self->w[0].start);
}

FIXTURE_VARIANT_ADD(two_devices, first_goes_first)
{
	.first = 0,
};

FIXTURE_VARIANT_ADD(two_devices, second_goes_first)
{
	.first = 1,
};

/* One address space: what one device does must leave the other alone. */
TEST_F(two_devices, are_torn_down_independently)
{
	struct world *gone = &self->w[variant->first];
	struct world *left = &self->w[!variant->first];
	struct test_hmm_counts counts;
	struct process p;
	int go, came;
	pid_t pid;

	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		if (mirror_register(self->w[0].fd, self->w[0].buffer) ||
		    mirror_register(self->w[1].fd, self->w[1].buffer))
			_exit(1);
		process_wait(go, came);
		if (ioctl(gone->fd, TEST_HMM_UNREGISTER))
			_exit(2);
		if (device_access(left->fd, TEST_HMM_WRITE, 0, 1, 5) ||
		    *buffer_word(left->buffer, 0) != 5)
			_exit(3);
		process_wait(go, came);
		_exit(0);
	}
	ASSERT_TRUE(process_came(&p));
	ASSERT_EQ(0, ioctl(left->ctl, TEST_HMM_COUNTS, &counts));
	EXPECT_EQ(self->w[0].start.hmms + 1, counts.hmms);
	EXPECT_EQ(self->w[0].start.mirrors + 2, counts.mirrors);
	ASSERT_TRUE(process_go(&p));
	ASSERT_TRUE(process_came(&p));
	EXPECT_EQ(0, ioctl(gone->ctl, TEST_HMM_DEVICE_DESTROY));
	gone->destroyed = true;
	events_all(gone->device, &gone->events);
	expect_released(_metadata, &gone->events, TEST_HMM_REASON_UNREGISTER);

	ASSERT_TRUE(process_go(&p));
	EXPECT_EQ(0, process_end(&p));
	events_all(left->device, &left->events);
	expect_released(_metadata, &left->events, TEST_HMM_REASON_MM_EXIT);
}

struct registrant {
	pthread_t thread;
	pthread_barrier_t *start;
	void *buffer;
	int fd;
	int ret;
};

static void *registrant_run(void *arg)
{
	struct registrant *r = arg;

	pthread_barrier_wait(r->start);
	r->ret = mirror_register(r->fd, r->buffer);
	return NULL;
}

/* Threads of one process, each with a device: all are served, by one object. */
TEST_F(hmm, threads_register_many_devices_at_once)
{
	struct registrant threads[NR_THREADS];
	struct world *w = &self->w;
	struct test_hmm_counts counts;
	pthread_barrier_t start;
	__u32 device;
	int i;

	pthread_barrier_init(&start, NULL, NR_THREADS);
	for (i = 0; i < NR_THREADS; i++) {
		threads[i].start = &start;
		threads[i].buffer = w->buffer;
		threads[i].fd = device_open();
		ASSERT_LE(0, threads[i].fd);
		ASSERT_EQ(0, ioctl(threads[i].fd, TEST_HMM_DEVICE_CREATE,
				   &device));
	}
	for (i = 0; i < NR_THREADS; i++)
		ASSERT_EQ(0, pthread_create(&threads[i].thread, NULL,
					    registrant_run, &threads[i]));
	for (i = 0; i < NR_THREADS; i++) {
		ASSERT_EQ(0, pthread_join(threads[i].thread, NULL));
		EXPECT_EQ(0, threads[i].ret);
	}
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_COUNTS, &counts));
	EXPECT_EQ(w->start.hmms + 1, counts.hmms);
	EXPECT_EQ(w->start.mirrors + NR_THREADS, counts.mirrors);
	for (i = 0; i < NR_THREADS; i++)
		close(threads[i].fd);
}

/* The first registration is lost, or the mirror is linked twice. */
TEST_F(hmm, same_mirror_twice_keeps_the_first)
{
	struct world *w = &self->w;

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	EXPECT_EQ(-1, mirror_register(w->fd, w->buffer));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(0, device_access(w->fd, TEST_HMM_WRITE, 1, 1, 3));
	EXPECT_EQ(3, *buffer_word(w->buffer, 1));
	EXPECT_EQ(0, ioctl(w->fd, TEST_HMM_UNREGISTER));
	events_all(w->device, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_UNREGISTER);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_REGISTERED));

	/* And it can be had again */
	EXPECT_EQ(0, mirror_register(w->fd, w->buffer));
}

/* The device works on the memory of the process, and on nothing else. */
TEST_F(hmm, device_sees_the_memory_of_the_process)
{
	struct world *w = &self->w;
	struct test_hmm_access arg = { .first = 2, .count = 1 };
	int i;

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	*buffer_word(w->buffer, 2) = 1234;
	EXPECT_EQ(0, ioctl(w->fd, TEST_HMM_READ, &arg));
	EXPECT_EQ(1234, arg.value);
	EXPECT_EQ(0, device_access(w->fd, TEST_HMM_WRITE, 0, NR_PAGES, 99));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_EQ(99, *buffer_word(w->buffer, i)) {
			TH_LOG("page %d", i);
		}

	/* The device cannot reach what is unmapped, but what replaces it */
	ASSERT_EQ(0, munmap(buffer_word(w->buffer, 1), page_size()));
	EXPECT_EQ(-1, device_access(w->fd, TEST_HMM_WRITE, 1, 1, 98));
	EXPECT_EQ(EFAULT, errno);
	ASSERT_EQ(buffer_word(w->buffer, 1),
		  mmap(buffer_word(w->buffer, 1), page_size(),
		       PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	EXPECT_EQ(0, device_access(w->fd, TEST_HMM_WRITE, 1, 1, 97));
	EXPECT_EQ(97, *buffer_word(w->buffer, 1));
}

/* Each wrong argument has its errno, and changes nothing. */
TEST_F(hmm, wrong_arguments_are_refused)
{
	struct world *w = &self->w;
	const __u64 good = (uintptr_t)w->buffer;
	const __u64 size = NR_PAGES * page_size();
	const struct test_hmm_register bad[] = {
		{ .addr = good + 1, .size = size },
		{ .addr = good, .size = 0 },
		{ .addr = good, .size = size - 1 },
		{ .addr = good, .size = (4 << 20) + page_size() },
		{ .addr = good, .size = size, .flags = 0x80 },
		{ .addr = -page_size(), .size = page_size() },
		{ .addr = -page_size(), .size = 2 * page_size() },
	};
	struct test_hmm_register arg;
	__u32 number = 0xffffffff;
	char small;
	size_t i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		arg = bad[i];
		EXPECT_EQ(-1, ioctl(w->fd, TEST_HMM_REGISTER, &arg)) {
			TH_LOG("bad[%zu] was accepted", i);
		}
		EXPECT_EQ(EINVAL, errno);
	}
	EXPECT_EQ(-1, ioctl(w->fd, TEST_HMM_REGISTER, NULL));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, ioctl(w->fd, TEST_HMM_UNREGISTER));
	EXPECT_EQ(ENXIO, errno);
	EXPECT_EQ(-1, device_access(w->fd, TEST_HMM_WRITE, 0, 1, 1));
	EXPECT_EQ(ENXIO, errno);
	EXPECT_EQ(-1, ioctl(w->fd, _IO('H', 0xff)));
	EXPECT_EQ(ENOTTY, errno);
	EXPECT_EQ(-1, ioctl(w->fd, TEST_HMM_DEVICE_CREATE, &number));
	EXPECT_EQ(EBUSY, errno);
	number = TEST_HMM_NR_POINTS;
	EXPECT_EQ(-1, ioctl(w->ctl, TEST_HMM_HOLD, &number));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, resume(w->ctl, 0));
	EXPECT_EQ(ENXIO, errno);
	EXPECT_EQ(-1, wait_held(w->ctl, 0));
	EXPECT_EQ(ENXIO, errno);
	EXPECT_EQ(0, hold(w->ctl, 0));
	EXPECT_EQ(-1, hold(w->fd, 0));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(0, resume(w->ctl, 0));
	EXPECT_EQ(-1, read(w->ctl, &small, sizeof(small)));
	EXPECT_EQ(EINVAL, errno);

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	EXPECT_EQ(-1, device_access(w->fd, TEST_HMM_WRITE, NR_PAGES, 1, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, device_access(w->fd, TEST_HMM_WRITE, 1, NR_PAGES, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, device_access(w->fd, TEST_HMM_WRITE, 0, 0, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, device_access(w->fd, TEST_HMM_WRITE, 0, -1ULL, 1));
	EXPECT_EQ(EINVAL, errno);

	fd = device_open();
	ASSERT_LE(0, fd);
	EXPECT_EQ(-1, mirror_register(fd, w->buffer));
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(-1, ioctl(fd, TEST_HMM_DEVICE_DESTROY));
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(-1, read(fd, &w->events, sizeof(w->events)));
	EXPECT_EQ(ENODEV, errno);
	number = 0xffffffff;
	EXPECT_EQ(-1, ioctl(fd, TEST_HMM_DEVICE_ATTACH, &number));
	EXPECT_EQ(ENOENT, errno);
	close(fd);
}

/* A mirror registered after the device went would have nobody to stop it. */
TEST_F(hmm, register_on_a_destroyed_device_fails)
{
	struct world *w = &self->w;

	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_DESTROY));
	w->destroyed = true;
	EXPECT_EQ(-1, mirror_register(w->fd, w->buffer));
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(-1, ioctl(w->ctl, TEST_HMM_DEVICE_DESTROY));
	EXPECT_EQ(ENODEV, errno);
}

/* Nor is it one to unplug, from the moment when HMM begins to take it away. */
TEST_F(hmm, unplug_of_a_device_that_goes_fails)
{
	struct world *w = &self->w;
	struct process remover, unplug;

	ASSERT_EQ(0, hold(w->ctl, HMM_POINT_DEVICE_WAIT));
	ASSERT_LT(0, start_caller(&remover, w->ctl, TEST_HMM_DEVICE_DESTROY));
	ASSERT_EQ(0, wait_held(w->ctl, HMM_POINT_DEVICE_WAIT));
	ASSERT_LT(0, start_caller(&unplug, w->fd, TEST_HMM_DEVICE_UNPLUG));
	EXPECT_TRUE(process_stays(&unplug));
	ASSERT_EQ(0, resume(w->ctl, HMM_POINT_DEVICE_WAIT));
	EXPECT_EQ(0, process_end(&remover));
	w->destroyed = true;
	EXPECT_EQ(1, process_end(&unplug));
}

/* A mirror whose device failed is released, and stays registered. */
TEST_F(hmm, kill_releases_and_stays_registered)
{
	struct world *w = &self->w;

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_FIND));
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_KILL));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_SYNCHRONIZE));
	events_all(w->device, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_ERROR);
	EXPECT_EQ(-1, ioctl(w->fd, TEST_HMM_FIND));
	EXPECT_EQ(ESRCH, errno);
	EXPECT_EQ(-1, device_access(w->fd, TEST_HMM_WRITE, 0, 1, 1));
	EXPECT_EQ(EIO, errno);
	/* Nothing of the device's may run when ->free() comes */
	EXPECT_EQ(-1, device_access(w->fd, TEST_HMM_RUN, 0, 1, 1));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(-1, mirror_register(w->fd, w->buffer));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(-1, ioctl(w->ctl, TEST_HMM_DEVICE_DESTROY));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(0, ioctl(w->fd, TEST_HMM_UNREGISTER));
}

/* Nobody waits, and hmm_synchronize() says when it is over. */
TEST_F(hmm, async_unregister_frees_by_synchronize)
{
	struct world *w = &self->w;

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	ASSERT_EQ(0, device_access(w->fd, TEST_HMM_RUN, 0, NR_PAGES, 1));
	ASSERT_EQ(0, hold(w->ctl, TEST_HMM_IN_RELEASE));
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_UNREGISTER_ASYNC));
	ASSERT_EQ(0, wait_held(w->ctl, TEST_HMM_IN_RELEASE));
	/* It is out of the way already: there may be another */
	EXPECT_EQ(0, mirror_register(w->fd, w->buffer));
	ASSERT_EQ(0, resume(w->ctl, TEST_HMM_IN_RELEASE));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_SYNCHRONIZE));
	events_all(w->device, &w->events);
	expect_released(_metadata, &w->events, TEST_HMM_REASON_UNREGISTER);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_FREED));
}

/* The device is pulled while it runs in several processes. */
TEST_F(hmm, unplug_releases_all_processes)
{
	struct world *w = &self->w;
	struct process p[3];
	int fd[3];
	int i;

	for (i = 0; i < 3; i++) {
		struct world one = *w;

		fd[i] = device_attach(w->device);
		ASSERT_LE(0, fd[i]);
		one.fd = fd[i];
		ASSERT_LT(0, start_mirrored(&one, &p[i]));
		ASSERT_TRUE(process_came(&p[i]));
	}
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_UNPLUG));
	events_all(w->device, &w->events);
	EXPECT_EQ(3, events_count(&w->events, TEST_HMM_STOPPED));
	EXPECT_EQ(TEST_HMM_REASON_DEVICE_GONE,
		  events_find(&w->events, TEST_HMM_RELEASE)->arg);
	EXPECT_TRUE(events_ordered(&w->events, TEST_HMM_STOPPED,
				   TEST_HMM_UNPLUGGED));
	EXPECT_EQ(-1, mirror_register(w->fd, w->buffer));
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(-1, ioctl(w->ctl, TEST_HMM_DEVICE_DESTROY));
	EXPECT_EQ(EBUSY, errno);
	for (i = 0; i < 3; i++) {
		ASSERT_TRUE(process_go(&p[i]));
		EXPECT_EQ(0, process_end(&p[i]));
		close(fd[i]);
	}
	events_all(w->device, &w->events);
	EXPECT_EQ(3, events_count(&w->events, TEST_HMM_RELEASE));
	EXPECT_EQ(3, events_count(&w->events, TEST_HMM_FREED));
}

/* The process of removed_device_goes_with_the_last_close(). */
static void __noreturn
removed_user(struct world *w, bool closes, int go, int came)
{
	struct test_hmm_register again = {
		.addr = (uintptr_t)w->buffer, .size = page_size(),
	};
	int fd = device_attach(w->device);
	struct {
		unsigned long cmd;
		void *arg;
	} calls[] = {
		{ TEST_HMM_WRITE, &(struct test_hmm_access){ .count = 1 } },
		{ TEST_HMM_READ, &(struct test_hmm_access){ .count = 1 } },
		{ TEST_HMM_RUN, &(struct test_hmm_access){ .count = 1 } },
		{ TEST_HMM_USE_MM, NULL },
		{ TEST_HMM_REGISTER, &again },
		{ TEST_HMM_FIND, NULL },
		{ TEST_HMM_DEVICE_UNPLUG, NULL },
		{ TEST_HMM_DEVICE_DESTROY, NULL },
		{ TEST_HMM_DEVICE_REMOVE, NULL },
	};
	size_t i;

	if (fd < 0 || mirror_register(fd, w->buffer) ||
	    device_access(fd, TEST_HMM_RUN, 0, NR_PAGES, 1))
		_exit(1);
	wait_for_writes(w->buffer, 5);
	process_wait(go, came);
	for (i = 0; i < ARRAY_SIZE(calls); i++)
		if (!ioctl(fd, calls[i].cmd, calls[i].arg) || errno != ENODEV)
			_exit(10 + i);
	process_wait(go, came);
	if (closes)
		close(fd);
	process_wait(go, came);
	_exit(0);
}

/*
 * Hot-unplug does not wait for open files: they get errors, the last one that
 * is closed takes the device along, and there is no way to open it again.
 */
TEST_F(hmm, removed_device_goes_with_the_last_close)
{
	struct world *w = &self->w;
	struct test_hmm_counts counts;
	struct process p[2];
	int go, came, i;
	pid_t pid;

	for (i = 0; i < 2; i++) {
		pid = process_start(&p[i], &go, &came);
		ASSERT_LE(0, pid);
		if (!pid)
			removed_user(w, i == 0, go, came);
		ASSERT_TRUE(process_came(&p[i]));
	}
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_REMOVE));
	w->destroyed = true;
	events_read(w->ctl, &w->events);
	EXPECT_EQ(2, events_count(&w->events, TEST_HMM_STOPPED));
	EXPECT_TRUE(events_ordered(&w->events, TEST_HMM_STOPPED,
				   TEST_HMM_UNPLUGGED));
	EXPECT_EQ(TEST_HMM_REASON_DEVICE_GONE,
		  events_find(&w->events, TEST_HMM_RELEASE)->arg);
	EXPECT_EQ(-1, device_attach(w->device));
	EXPECT_EQ(ENOENT, errno);
	EXPECT_EQ(-1, mirror_register(w->fd, w->buffer));
	EXPECT_EQ(ENODEV, errno);
	/* Their ioctls, then the first is closed */
	for (i = 0; i < 3; i++) {
		ASSERT_TRUE(process_go(&p[i & 1]));
		ASSERT_TRUE(process_came(&p[i & 1]));
	}
	events_read(w->ctl, &w->events);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_FREED));
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_DEVICE_FREED));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_COUNTS, &counts));
	EXPECT_EQ(w->start.devices + 1, counts.devices);
	/* The second, by exit */
	ASSERT_TRUE(process_go(&p[1]));
	ASSERT_TRUE(process_came(&p[1]));
	for (i = 0; i < 2; i++) {
		ASSERT_TRUE(process_go(&p[i]));
		EXPECT_EQ(0, process_end(&p[i]));
	}
	events_read(w->ctl, &w->events);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_RELEASE));
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_FREED));
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_DEVICE_FREED));
	EXPECT_TRUE(events_ordered(&w->events, TEST_HMM_FREED,
				   TEST_HMM_DEVICE_FREED));
}

/* A worker that frees the last mirror takes the device along. */
TEST_F(hmm, removed_device_goes_with_an_asynchronous_unregister)
{
	struct world *w = &self->w;

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	ASSERT_EQ(0, hold(w->ctl, TEST_HMM_IN_RELEASE));
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_UNREGISTER_ASYNC));
	ASSERT_EQ(0, wait_held(w->ctl, TEST_HMM_IN_RELEASE));
	ASSERT_EQ(0, hold(w->ctl, HMM_POINT_DESTROY));
	ASSERT_EQ(0, resume(w->ctl, TEST_HMM_IN_RELEASE));
	ASSERT_EQ(0, wait_held(w->ctl, HMM_POINT_DESTROY));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_REMOVE));
	w->destroyed = true;
	events_read(w->ctl, &w->events);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_DEVICE_FREED));
	ASSERT_EQ(0, resume(w->ctl, HMM_POINT_DESTROY));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_SYNCHRONIZE));
	events_read(w->ctl, &w->events);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_DEVICE_FREED));
}

/* Where a module lies: of an installed kernel, or of a guest. -1: nowhere. */
static int module_open(const char *name, const char *subdirectory)
{
	struct utsname kernel;
	char path[256];
	int fd;

	uname(&kernel);
	snprintf(path, sizeof(path), "/lib/modules/%s/kernel/%s/%s.ko",
		 kernel.release, subdirectory, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	snprintf(path, sizeof(path), "/lib/modules/%s.ko", name);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static int module_load(int fd)
{
	return syscall(SYS_finit_module, fd, "", 0);
}

static int module_unload(const char *name)
{
	return syscall(SYS_delete_module, name, O_NONBLOCK);
}

/* Modules that are unloaded come back, or no later test could run. */
FIXTURE(modules)
{
	int hmm;
	int test_hmm;
};

FIXTURE_SETUP(modules)
{
	self->hmm = module_open("hmm_core", "mm");
	self->test_hmm = module_open("test_hmm_device", "lib");
	if (self->hmm < 0 || self->test_hmm < 0 ||
	    access("/sys/module/hmm_core/initstate", R_OK) ||
	    access("/sys/module/test_hmm_device/initstate", R_OK))
		SKIP(return, "HMM and its test driver are not modules");
}

FIXTURE_TEARDOWN(modules)
{
	/* Both are there already if the test passed */
	module_load(self->hmm);
	module_load(self->test_hmm);
	close(self->hmm);
	close(self->test_hmm);
}

/* Of what lockdep knows: a workqueue has a class as long as it is there. */
static bool lockdep_knows(const char *name)
{
	FILE *classes = fopen("/proc/lockdep", "r");
	char line[512];
	bool found = false;

	while (classes && !found && fgets(line, sizeof(line), classes))
		found = strstr(line, name);
	if (classes)
		fclose(classes);
	return found;
}

/* Out and in again: nothing of theirs is in use, nor on its way. */
static void expect_reload(struct __test_metadata *_metadata, int hmm,
			  int test_hmm)
{
	EXPECT_EQ(0, module_unload("test_hmm_device")) {
		TH_LOG("test_hmm_device: %s", strerror(errno));
	}
	EXPECT_EQ(0, module_unload("hmm_core")) {
		TH_LOG("hmm_core: %s", strerror(errno));
	}
	EXPECT_EQ(-1, access("/sys/kernel/debug/hmm", F_OK));
	EXPECT_EQ(0, module_load(hmm));
	EXPECT_EQ(0, module_load(test_hmm));
}

/* Registers, exits and closes go on, and a process waits for events. */
TEST_F(hmm, unplug_and_destroy_under_load)
{
	struct world *w = &self->w;
	struct process p[4], reader;
	struct test_hmm_event event;
	int go, came, fd, i, hmm, test_hmm;
	pid_t pid;

	pid = process_start(&reader, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		fd = device_attach(w->device);
		do {
			if (read(fd, &event, sizeof(event)) != sizeof(event))
				_exit(1);
		} while (event.type != TEST_HMM_DEVICE_GONE);
		_exit(0);
	}
	for (i = 0; i < 4; i++) {
		pid = process_start(&p[i], &go, &came);
		ASSERT_LE(0, pid);
		if (pid)
			continue;
		process_wait(go, came);
		/* Until the device is gone; every other in a child */
		for (;;) {
			fd = device_attach(w->device);
			pid = i & 1 ? fork() : 0;
			if (!pid && mirror_register(fd, w->buffer))
				_exit(errno == ENODEV ? 0 : 2);
			if (!pid && i & 1)
				_exit(42);
			if (i & 1) {
				int status;

				if (waitpid(pid, &status, 0) != pid)
					_exit(3);
				if (WEXITSTATUS(status) != 42)
					_exit(WEXITSTATUS(status));
			} else {
				device_access(fd, TEST_HMM_RUN, 0, NR_PAGES, 1);
				if (i & 2)
					ioctl(fd, TEST_HMM_UNREGISTER_ASYNC);
			}
			close(fd);
		}
	}
	for (i = 0; i < 4; i++)
		ASSERT_TRUE(process_came(&p[i]));
	for (i = 0; i < 4; i++)
		ASSERT_TRUE(process_go(&p[i]));
	/* Load, until enough has happened */
	do {
		struct pollfd pfd = { .fd = w->ctl, .events = POLLIN };

		ASSERT_EQ(1, poll(&pfd, 1, LIMIT_MS));
		ASSERT_EQ(sizeof(event), read(w->ctl, &event, sizeof(event)));
	} while (event.seq < 300);
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_UNPLUG));
	for (i = 0; i < 4; i++)
		EXPECT_EQ(0, process_end(&p[i]));
	EXPECT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_DESTROY));
	w->destroyed = true;
	EXPECT_EQ(0, process_end(&reader));

	/* And the driver goes, and comes back */
	close(w->fd);
	w->fd = -1;
	close(w->ctl);
	hmm = module_open("hmm_core", "mm");
	test_hmm = module_open("test_hmm_device", "lib");
	if (hmm >= 0 && test_hmm >= 0 &&
	    !access("/sys/module/test_hmm_device/initstate", R_OK))
		expect_reload(_metadata, hmm, test_hmm);
	close(hmm);
	close(test_hmm);
	w->ctl = device_open();
}

/*
 * Their text goes right after the last put, be it in a worker on another CPU,
 * and not before.
 */
TEST_F(modules, go_right_after_the_last_put)
{
	const struct test_hmm_counts none = {};
	void *buffer = buffer_new();
	__u32 device;
	int fd, i;

	ASSERT_NE(MAP_FAILED, buffer);
	for (i = 0; i < 20; i++) {
		fd = device_open();
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, ioctl(fd, TEST_HMM_DEVICE_CREATE, &device));
		ASSERT_EQ(0, mirror_register(fd, buffer));
		ASSERT_EQ(0, device_access(fd, TEST_HMM_RUN, 0, NR_PAGES, 1));
		if (i & 1)
			ASSERT_EQ(0, ioctl(fd, TEST_HMM_KILL));
		if (i & 2)
			ASSERT_EQ(0, ioctl(fd, TEST_HMM_UNREGISTER_ASYNC));
		EXPECT_EQ(-1, module_unload("test_hmm_device"));
		EXPECT_EQ(-1, module_unload("hmm_core"));
		EXPECT_EQ(EWOULDBLOCK, errno);
		close(fd);
		expect_reload(_metadata, self->hmm, self->test_hmm);
	}
	expect_counts(_metadata, &none);
	ASSERT_EQ(0, module_unload("test_hmm_device"));
	ASSERT_EQ(0, module_unload("hmm_core"));
	EXPECT_FALSE(lockdep_knows("(wq_completion)hmm_"));
}

/* The same, but a process that dies does the last put. */
TEST_F(modules, go_right_after_the_exit_of_a_process)
{
	struct process p;
	int go, came, i;
	__u32 device;
	pid_t pid;

	for (i = 0; i < 10; i++) {
		pid = process_start(&p, &go, &came);
		ASSERT_LE(0, pid);
		if (!pid) {
			void *buffer = buffer_new();
			int fd = device_open();

			if (ioctl(fd, TEST_HMM_DEVICE_CREATE, &device) ||
			    mirror_register(fd, buffer) ||
			    device_access(fd, TEST_HMM_RUN, 0, NR_PAGES, 1))
				_exit(1);
			kill(getpid(), SIGKILL);
		}
		EXPECT_EQ(-1, process_end(&p));
		expect_reload(_metadata, self->hmm, self->test_hmm);
	}
}

/* Exec again and again, with the descriptors kept: each time a release. */
TEST_F(hmm, exec_in_a_loop)
{
	struct world *w = &self->w;
	struct process p;
	char device[16];
	int go, came, i;
	pid_t pid;

	snprintf(device, sizeof(device), "%u", w->device);
	for (i = 0; i < 10; i++) {
		pid = process_start(&p, &go, &came);
		ASSERT_LE(0, pid);
		if (!pid) {
			int fd = device_attach(w->device);

			fcntl(fd, F_SETFD, 0);
			setenv(EXEC_CHILD, device, 1);
			if (mirror_register(fd, w->buffer))
				_exit(10);
			execl("/proc/self/exe", "hmm-device-tests",
			      (char *)NULL);
			_exit(11);
		}
		ASSERT_EQ(0, process_end(&p));
	}
	events_all(w->device, &w->events);
	EXPECT_EQ(20, events_count(&w->events, TEST_HMM_REGISTERED));
	EXPECT_EQ(20, events_count(&w->events, TEST_HMM_RELEASE));
	EXPECT_EQ(20, events_count(&w->events, TEST_HMM_FREED));
}

/*
 * Two devices fault again and again on what is not mapped, each with a pin of
 * the address space. That must not keep the memory of a process that is gone.
 */
TEST_F(two_devices, workers_that_pin_do_not_keep_a_dead_process)
{
	struct process p;
	int go, came, i;
	pid_t pid;

	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		for (i = 0; i < 2; i++) {
			munmap(buffer_word(self->w[i].buffer, 1), page_size());
			if (mirror_register(self->w[i].fd, self->w[i].buffer) ||
			    device_access(self->w[i].fd, TEST_HMM_RUN, 0,
					  NR_PAGES, 1))
				_exit(1);
			wait_for_writes(self->w[i].buffer, 5);
		}
		_exit(0);
	}
	EXPECT_EQ(0, process_end(&p));
	/* It may be a worker that ran exit, but soon */
	for (i = 0; i < 2; i++)
		EXPECT_TRUE(events_await(self->w[i].ctl, TEST_HMM_STOPPED));
}

/* Killed half way through register: it is released, or never was registered. */
TEST_F(hmm, sigkill_while_registering)
{
	struct world *w = &self->w;
	static const __u32 points[] = {
		HMM_POINT_REGISTER_ARMED, HMM_POINT_REGISTER_LINKED,
	};
	struct process p;
	int go, came;
	size_t i;
	pid_t pid;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, hold(w->ctl, points[i]));
		pid = process_start(&p, &go, &came);
		ASSERT_LE(0, pid);
		if (!pid)
			_exit(mirror_register(device_attach(w->device),
					      w->buffer));
		ASSERT_EQ(0, wait_held(w->ctl, points[i]));
		ASSERT_EQ(0, kill(p.pid, SIGKILL));
		ASSERT_EQ(0, resume(w->ctl, points[i]));
		EXPECT_EQ(-1, process_end(&p));
		events_read(w->ctl, &w->events);
		EXPECT_EQ(events_count(&w->events, TEST_HMM_RELEASE),
			  events_count(&w->events, TEST_HMM_FREED));
		EXPECT_EQ(events_count(&w->events, TEST_HMM_REGISTERED),
			  events_count(&w->events, TEST_HMM_RELEASE));
	}
}

/* Each allocation on the way fails in turn: an errno, and nothing is left. */
TEST_F(hmm, register_unwinds_at_each_failed_allocation)
{
	struct world *w = &self->w;
	struct test_hmm_counts counts;
	struct process p;
	char text[16];
	int go, came, nth, failed = 0, fd, len;
	pid_t pid;

	if (write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N") ||
	    access("/proc/self/fail-nth", W_OK))
		SKIP(return, "needs CONFIG_FAILSLAB and its debugfs");
	/* Not a stack dump for each failure that is wanted */
	write_file("/sys/kernel/debug/failslab/verbose", "0");
	for (nth = 1; nth < 100; nth++) {
		/* Each in a new address space, where nothing is armed yet */
		pid = process_start(&p, &go, &came);
		ASSERT_LE(0, pid);
		if (!pid) {
			/* Opened before: that allocates too */
			int fail = open("/proc/thread-self/fail-nth", O_RDWR);

			fd = device_attach(w->device);
			len = snprintf(text, sizeof(text), "%d", nth);
			if (fd < 0 || fail < 0 || write(fail, text, len) != len)
				_exit(1);
			errno = 0;
			if (mirror_register(fd, w->buffer) && errno != ENOMEM)
				_exit(2);
			failed = errno;
			memset(text, 0, sizeof(text));
			/* What is left of the count: not so many allocations */
			if (pread(fail, text, sizeof(text) - 1, 0) <= 0)
				_exit(3);
			if (pwrite(fail, "0", 1, 0) != 1 &&
			    write(fail, "0", 1) != 1)
				_exit(3);
			close(fd);
			_exit(atoi(text) ? 4 : failed ? 5 : 6);
		}
		came = process_end(&p);
		ASSERT_LE(4, came);
		ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_COUNTS, &counts));
		ASSERT_EQ(w->start.hmms, counts.hmms) {
			TH_LOG("allocation %d", nth);
		}
		ASSERT_EQ(w->start.mirrors, counts.mirrors);
		ASSERT_EQ(w->start.contexts, counts.contexts);
		if (came == 4)
			break;
		failed += came == 5;
	}
	/* The dummy driver's two, HMM's one, mmu_notifier's one at least */
	EXPECT_LE(4, failed);
	EXPECT_LT(nth, 100);
	TH_LOG("%d allocations failed in turn", failed);
}

static bool invalidate_stop;

static void *invalidate_forever(void *buffer)
{
	while (!__atomic_load_n(&invalidate_stop, __ATOMIC_ACQUIRE)) {
		madvise(buffer, NR_PAGES * page_size(), MADV_DONTNEED);
		mprotect(buffer, page_size(), PROT_READ);
		mprotect(buffer, page_size(), PROT_READ | PROT_WRITE);
	}
	return NULL;
}

/* Register and unregister while the pages under the device come and go. */
TEST_F(hmm, unregister_under_invalidations)
{
	struct world *w = &self->w;
	pthread_t thread;
	int i;

	ASSERT_EQ(0, pthread_create(&thread, NULL, invalidate_forever,
				    w->buffer));
	for (i = 0; i < 50; i++) {
		ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
		ASSERT_EQ(0, device_access(w->fd, TEST_HMM_RUN, 0, NR_PAGES,
					   i));
		ASSERT_EQ(0, ioctl(w->fd, i & 1 ? TEST_HMM_UNREGISTER :
						  TEST_HMM_UNREGISTER_ASYNC));
	}
	__atomic_store_n(&invalidate_stop, true, __ATOMIC_RELEASE);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_SYNCHRONIZE));
}

/* The OOM killer reaps memory before exit does; the mirror is released once. */
TEST_F(hmm, oom_kill_releases_once)
{
	struct world *w = &self->w;
	const char *group = "/sys/fs/cgroup/hmm-device-tests";
	char path[64], text[32];
	int go, came, kmsg;
	struct process p;
	pid_t pid;

	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	lseek(kmsg, 0, SEEK_END);

	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (mkdir(group, 0700) && errno != EEXIST)
		SKIP(return, "needs cgroup2 on /sys/fs/cgroup");
	snprintf(path, sizeof(path), "%s/memory.max", group);
	if (write_file(path, "16M"))
		SKIP(return, "needs the memory controller of cgroup2");
	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	ASSERT_EQ(0, hold(w->ctl, TEST_HMM_IN_RELEASE));
	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		snprintf(text, sizeof(text), "%d", getpid());
		if (write_file(path, text) ||
		    mirror_register(w->fd, w->buffer) ||
		    device_access(w->fd, TEST_HMM_RUN, 0, NR_PAGES, 1))
			_exit(1);
		wait_for_writes(w->buffer, 5);
		for (;;) {
			char *more = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

			if (more == MAP_FAILED)
				_exit(2);
			memset(more, 1, 1 << 20);
		}
	}
	/* Killed; and the reaper comes while it cannot get through exit */
	EXPECT_EQ(0, wait_held(w->ctl, TEST_HMM_IN_RELEASE));
	EXPECT_TRUE(kmsg_await(kmsg, "oom_reaper: reaped process ", ""));
	EXPECT_EQ(0, resume(w->ctl, TEST_HMM_IN_RELEASE));
	EXPECT_EQ(-1, process_end(&p));
	close(kmsg);
	events_read(w->ctl, &w->events);
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_RELEASE));
	EXPECT_EQ(1, events_count(&w->events, TEST_HMM_STOPPED));
	EXPECT_EQ(TEST_HMM_REASON_MM_EXIT,
		  events_find(&w->events, TEST_HMM_RELEASE)->arg);
	rmdir(group);
}

/* An event of the whole address space that is not its end. */
TEST_F(hmm, clear_refs_releases_nothing)
{
	struct world *w = &self->w;

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	if (write_file("/proc/self/clear_refs", "4"))
		SKIP(return, "needs CONFIG_PROC_PAGE_MONITOR");
	EXPECT_EQ(0, device_access(w->fd, TEST_HMM_WRITE, 0, 1, 42));
	EXPECT_EQ(42, *buffer_word(w->buffer, 0));
	events_all(w->device, &w->events);
	EXPECT_EQ(0, events_count(&w->events, TEST_HMM_RELEASE));
}

/* What an administrator sees: what there is, in which state, and since when. */
TEST_F(hmm, debugfs_shows_devices_and_mirrors)
{
	struct world *w = &self->w;
	char text[4096], want[64], *at;
	double start = now_ms();
	unsigned long age;

	if (access(DEBUGFS "devices", R_OK))
		SKIP(return, "needs CONFIG_HMM_DEBUG, and debugfs mounted");
	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	ASSERT_EQ(0, read_file(DEBUGFS "devices", text, sizeof(text)));
	snprintf(want, sizeof(want), "\ntest%u 1 1 2\n", w->device);
	EXPECT_NE(NULL, strstr(text, want)) {
		TH_LOG("%s", text);
	}
	ASSERT_EQ(0, read_file(DEBUGFS "mirrors", text, sizeof(text)));
	at = strstr(text, " registered live none 1 ");
	ASSERT_NE(NULL, at) {
		TH_LOG("%s", text);
	}
	ASSERT_EQ(1, sscanf(at, " registered live none 1 %lu\n", &age));
	EXPECT_GE((now_ms() - start) / 1e3 + 1, age);
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_KILL));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_SYNCHRONIZE));
	ASSERT_EQ(0, read_file(DEBUGFS "mirrors", text, sizeof(text)));
	EXPECT_NE(NULL, strstr(text, " registered released error 1 ")) {
		TH_LOG("%s", text);
	}
	ASSERT_EQ(0, read_file(DEBUGFS "devices", text, sizeof(text)));
	snprintf(want, sizeof(want), "\ntest%u 1 0 2\n", w->device);
	EXPECT_NE(NULL, strstr(text, want)) {
		TH_LOG("%s", text);
	}
}

/* A release that hangs is reported, and listed with its task. */
TEST_F(hmm, hung_release_is_reported)
{
	struct world *w = &self->w;
	char before[16], prefix[32], text[4096];
	int kmsg;

	kmsg = open("/dev/kmsg", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (kmsg < 0 || read_file(REPORT_SECONDS, before, sizeof(before)))
		SKIP(return, "needs CONFIG_HMM_DEBUG, /dev/kmsg and sysfs");
	lseek(kmsg, 0, SEEK_END);
	snprintf(prefix, sizeof(prefix), "hmm: test%u: ", w->device);
	snprintf(text, sizeof(text), "hmm-test: expect-warning ^%s\n", prefix);
	ASSERT_EQ(strlen(text), write(kmsg, text, strlen(text)));
	ASSERT_EQ(0, write_file(REPORT_SECONDS, "1"));

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	ASSERT_EQ(0, hold(w->ctl, TEST_HMM_IN_RELEASE));
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_KILL));
	ASSERT_EQ(0, wait_held(w->ctl, TEST_HMM_IN_RELEASE));
	EXPECT_TRUE(kmsg_await(kmsg, prefix, " has not returned for "));
	ASSERT_EQ(0, read_file(DEBUGFS "callbacks", text, sizeof(text)));
	snprintf(prefix, sizeof(prefix), "\ntest%u ", w->device);
	EXPECT_NE(NULL, strstr(text, prefix)) {
		TH_LOG("%s", text);
	}
	EXPECT_EQ(0, resume(w->ctl, TEST_HMM_IN_RELEASE));

	EXPECT_EQ(0, write_file(REPORT_SECONDS, before));
	snprintf(text, sizeof(text), "hmm-test: end-expect\n");
	EXPECT_EQ(strlen(text), write(kmsg, text, strlen(text)));
	close(kmsg);
}

#define TRACING		"/sys/kernel/tracing/"

/* What an administrator can follow: each step of a life, with its device. */
TEST_F(hmm, tracepoints_tell_the_life_of_a_mirror)
{
	static const char * const lives[] = {
		/* Killed, and unregistered by a caller who waits */
		"hmm_register: device=%s mirror=", " mm=",
		"hmm_release: device=%s mirror=", " reason=error duration_ns=",
		"hmm_unregister: device=%s mirror=", " wait_ns=",
		"hmm_free: device=%s mirror=", " mm=",
		/* Unplugged, and unregistered by one who does not */
		"hmm_register: device=%s mirror=", " mm=",
		"hmm_release: device=%s mirror=", " reason=device-gone ",
		"hmm_unplug: device=%s mirrors=", "1 wait_ns=",
		"hmm_unregister: device=%s mirror=", " wait_ns=0\n",
		"hmm_free: device=%s mirror=", " mm=",
	};
	struct world *w = &self->w;
	char text[8192], name[16], want[64], *at = text;
	size_t i;

	if (write_file(TRACING "events/hmm/enable", "1"))
		SKIP(return, "needs tracefs on " TRACING);
	ASSERT_EQ(0, truncate(TRACING "trace", 0));
	snprintf(name, sizeof(name), "test%u", w->device);
	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_KILL));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_SYNCHRONIZE));
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_UNREGISTER));
	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_DEVICE_UNPLUG));
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_UNREGISTER_ASYNC));
	ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_SYNCHRONIZE));
	EXPECT_EQ(0, write_file(TRACING "events/hmm/enable", "0"));

	ASSERT_EQ(0, read_file(TRACING "trace", text, sizeof(text)));
	for (i = 0; i < ARRAY_SIZE(lives) && at; i += 2) {
		char *line_end;

		snprintf(want, sizeof(want), lives[i], name);
		at = strstr(at, want);
		line_end = at ? strchr(at, '\n') : NULL;
		at = line_end ? strstr(at, lives[i + 1]) : NULL;
		EXPECT_NE(NULL, at) {
			TH_LOG("no \"%s...%s\" where it is due in:\n%s", want,
			       lives[i + 1], text);
		}
		if (at)
			EXPECT_LT(at, line_end + 1);
	}
}

/* One step of soak(): a random life. False: the device is gone. */
static bool soak_step(struct world *w, __u32 device, int sock)
{
	int fd = device_attach(device), passed = -1, course = rand();
	bool there;
	pid_t pid;

	if (fd < 0)
		return false;
	pid = course & 1 ? fork() : 0;
	if (pid < 0)
		_exit(50);
	there = pid || !mirror_register(fd, w->buffer) || errno != ENODEV;
	if (!pid && there) {
		if (course & 2)
			device_access(fd, TEST_HMM_RUN, 0, NR_PAGES, 1);
		else
			device_access(fd, TEST_HMM_WRITE, 0, NR_PAGES, 1);
		if (course & 4)
			ioctl(fd, TEST_HMM_KILL);
		/* To whoever takes one next, or away with the socket */
		if (course & 8 && !fd_send(sock, fd))
			passed = fd_receive(sock);
		if (course & 16)
			ioctl(fd, course & 32 ? TEST_HMM_UNREGISTER :
						TEST_HMM_UNREGISTER_ASYNC);
	}
	if (course & 1 && !pid) {
		if (course & 64)
			kill(getpid(), SIGKILL);
		_exit(there ? 0 : 51);
	}
	if (pid) {
		int status;

		if (waitpid(pid, &status, 0) != pid)
			_exit(52);
		there = !WIFEXITED(status) || WEXITSTATUS(status) != 51;
	}
	close(fd);
	if (passed >= 0)
		close(passed);
	return there;
}

/* All of it, as it comes, while devices come and go under it. */
TEST_F(hmm, soak)
{
	struct process p[NR_SOAKERS];
	struct world *w = &self->w;
	unsigned int seed = time(NULL);
	int go, came, i, round, sock[2];
	pid_t pid;

	TH_LOG("seed %u", seed);
	for (round = 0; round < 5; round++) {
		__u32 device;
		int ctl = device_open();

		ASSERT_LE(0, ctl);
		ASSERT_EQ(0, ioctl(ctl, TEST_HMM_DEVICE_CREATE, &device));
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK,
					0, sock));
		for (i = 0; i < NR_SOAKERS; i++) {
			pid = process_start(&p[i], &go, &came);
			ASSERT_LE(0, pid);
			if (pid)
				continue;
			srand(seed + round * NR_SOAKERS + i);
			while (soak_step(w, device, sock[i & 1]))
				;
			_exit(0);
		}
		/* Load, until enough has happened */
		do {
			ASSERT_EQ(sizeof(w->events.event[0]),
				  read(ctl, w->events.event,
				       sizeof(w->events.event[0])));
		} while (w->events.event[0].seq < 500);
		ASSERT_EQ(0, ioctl(ctl, round & 1 ? TEST_HMM_DEVICE_REMOVE :
						    TEST_HMM_DEVICE_UNPLUG));
		for (i = 0; i < NR_SOAKERS; i++)
			EXPECT_EQ(0, process_end(&p[i]));
		/* Descriptors on their way are closed with it */
		close(sock[0]);
		close(sock[1]);
		if (!(round & 1))
			EXPECT_EQ(0, ioctl(ctl, TEST_HMM_DEVICE_DESTROY));
		close(ctl);
	}
}

/*
 * Figures. Each asserts no more than tells a right core from a wrong one on any
 * machine, and says what it measured.
 */

/*
 * One device takes 5 s to stop for a process that exits: how long that holds up
 * an unregister on another device and on the same, and the exit of another
 * process.
 */
TEST_F(two_devices, release_of_five_seconds_delays_nobody_else)
{
	struct world *slow = &self->w[variant->first];
	struct world *w = &self->w[!variant->first];
	struct process owner, bystander;
	double start, other_device, same_device, exit_ms;
	__u32 release_ms = 5000;
	int go, came, fd;
	pid_t pid;

	fd = device_attach(slow->device);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ioctl(fd, TEST_HMM_RELEASE_TAKES, &release_ms));
	pid = process_start(&owner, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(mirror_register(fd, slow->buffer));
	ASSERT_TRUE(events_await(slow->ctl, TEST_HMM_RELEASE));

	ASSERT_EQ(0, mirror_register(w->fd, w->buffer));
	start = now_ms();
	ASSERT_EQ(0, ioctl(w->fd, TEST_HMM_UNREGISTER));
	other_device = now_ms() - start;
	ASSERT_EQ(0, mirror_register(slow->fd, slow->buffer));
	start = now_ms();
	ASSERT_EQ(0, ioctl(slow->fd, TEST_HMM_UNREGISTER));
	same_device = now_ms() - start;

	ASSERT_LT(0, start_mirrored(w, &bystander));
	ASSERT_TRUE(process_came(&bystander));
	start = now_ms();
	ASSERT_TRUE(process_go(&bystander));
	EXPECT_EQ(0, process_end(&bystander));
	exit_ms = now_ms() - start;

	/* All that while it was in there */
	events_all(slow->device, &slow->events);
	EXPECT_EQ(2, events_count(&slow->events, TEST_HMM_RELEASE));
	EXPECT_EQ(1, events_count(&slow->events, TEST_HMM_STOPPED));
	EXPECT_EQ(0, process_end(&owner));
	close(fd);
	TH_LOG("unregister on another device %.3f ms, on the same %.3f ms",
	       other_device, same_device);
	TH_LOG("exit of another process %.3f ms", exit_ms);
}

/* A process that used one device from many contexts closes them all. */
TEST_F(hmm, thousand_contexts_are_closed)
{
	static int fds[NR_CONTEXTS];
	struct world *w = &self->w;
	struct rlimit limit = { 2 * NR_CONTEXTS, 2 * NR_CONTEXTS };
	struct test_hmm_counts counts;
	double start, closed;
	int i, async;

	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	for (i = 0; i < NR_CONTEXTS; i++) {
		fds[i] = device_attach(w->device);
		ASSERT_LE(0, fds[i]);
	}
	for (async = 0; async < 2; async++) {
		start = now_ms();
		for (i = 0; i < NR_CONTEXTS; i++)
			ASSERT_EQ(0, mirror_register(fds[i], w->buffer));
		TH_LOG("%d contexts registered in %.1f ms", NR_CONTEXTS,
		       now_ms() - start);
		start = now_ms();
		for (i = 0; i < NR_CONTEXTS; i++)
			ASSERT_EQ(0, ioctl(fds[i], async ?
					   TEST_HMM_UNREGISTER_ASYNC :
					   TEST_HMM_UNREGISTER));
		closed = now_ms() - start;
		ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_SYNCHRONIZE));
		TH_LOG("closed %s in %.1f ms, all over in %.1f ms",
		       async ? "asynchronously" : "synchronously", closed,
		       now_ms() - start);
		ASSERT_EQ(0, ioctl(w->ctl, TEST_HMM_COUNTS, &counts));
		EXPECT_EQ(w->start.contexts, counts.contexts);
		EXPECT_EQ(w->start.mirrors, counts.mirrors);
	}
	for (i = 0; i < NR_CONTEXTS; i++)
		close(fds[i]);
}

/* Exit takes as long as the slowest device, not as all of them. */
TEST_F(hmm, exit_releases_eight_devices_side_by_side)
{
	struct world *w = &self->w;
	int fds[NR_DEVICES], go, came, i;
	__u32 device, release_ms = 1000;
	struct process p;
	double start, ms;
	pid_t pid;

	for (i = 0; i < NR_DEVICES; i++) {
		fds[i] = device_open();
		ASSERT_LE(0, fds[i]);
		ASSERT_EQ(0, ioctl(fds[i], TEST_HMM_DEVICE_CREATE, &device));
		ASSERT_EQ(0, ioctl(fds[i], TEST_HMM_RELEASE_TAKES,
				   &release_ms));
	}
	pid = process_start(&p, &go, &came);
	ASSERT_LE(0, pid);
	if (!pid) {
		for (i = 0; i < NR_DEVICES; i++)
			if (mirror_register(fds[i], w->buffer))
				_exit(1);
		process_wait(go, came);
		_exit(0);
	}
	ASSERT_TRUE(process_came(&p));
	start = now_ms();
	ASSERT_TRUE(process_go(&p));
	EXPECT_EQ(0, process_end(&p));
	ms = now_ms() - start;
	for (i = 0; i < NR_DEVICES; i++)
		close(fds[i]);
	TH_LOG("exit with %d devices, each %u ms to stop: %.1f ms", NR_DEVICES,
	       release_ms, ms);
	EXPECT_LE(release_ms, ms);
	EXPECT_GT(NR_DEVICES * release_ms / 2, ms);
}

TEST_HARNESS_MAIN
