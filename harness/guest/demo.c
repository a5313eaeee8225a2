// SPDX-License-Identifier: GPL-2.0-only
/*
 * The life of one mirror, told step by step: "make run" shows this.
 *
 * A process registers itself with a dummy device, lets it write into its memory,
 * forks, passes the descriptor to another process and exits while the device runs.
 * Each line is printed only when the event behind it was read from the device, and
 * the next event has to be the one that the next line tells. Exit status 0: all
 * happened, in order, and nothing was left.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <lib/test_hmm_device_uapi.h>

#include "common.h"

#define NR_PAGES	16
#define LIMIT_MS	20000

static uint64_t start_ns;

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	complain("demo", format, args);
	va_end(args);
	_exit(1);
}

static void __attribute__((format(printf, 2, 3)))
tell(uint64_t time_ns, const char *format, ...)
{
	va_list args;

	if (!start_ns)
		start_ns = time_ns;
	va_start(args, format);
	printf("%9.3f ms  ", (time_ns - start_ns) / 1e6);
	vprintf(format, args);
	va_end(args);
	fputs("\n", stdout);
	fflush(stdout);
}

static int open_device(void)
{
	int fd = open("/dev/test_hmm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("/dev/test_hmm: %s; load test_hmm_device.ko", strerror(errno));
	return fd;
}

static void call(int fd, unsigned long cmd, void *arg, const char *what)
{
	if (ioctl(fd, cmd, arg))
		die("%s: %s", what, strerror(errno));
}

/* The next event of the device, which has to be of this type. */
static struct test_hmm_event next_event(int fd, uint32_t type, const char *what)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	struct test_hmm_event event;

	if (poll(&pfd, 1, LIMIT_MS) != 1 ||
	    read(fd, &event, sizeof(event)) != sizeof(event))
		die("no event where this was to come: %s", what);
	if (event.type != type)
		die("event %" PRIu32 " came instead of %" PRIu32 ": %s",
		    event.type, type, what);
	return event;
}

static void no_event(int fd, const char *what)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	if (poll(&pfd, 1, 0))
		die("an event came too early: %s", what);
}

/* Tell that this process has come so far, and wait until it may go on. */
static void meet_parent(int go, int came)
{
	char c = 0;

	/* If the parent is gone it has said why */
	if (write(came, &c, 1) != 1 || read(go, &c, 1) != 1)
		_exit(2);
}

/* The process that is mirrored. */
static void __attribute__((noreturn)) owner(int fd, int go, int came, int sock)
{
	long size = sysconf(_SC_PAGESIZE);
	struct test_hmm_register reg = { .size = NR_PAGES * size };
	struct test_hmm_access all = { .count = NR_PAGES, .value = 0x484d4d };
	volatile uint64_t *last;
	char *buffer;
	pid_t child;
	int i, status;

	buffer = mmap(NULL, reg.size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		die("no memory");
	reg.addr = (uintptr_t)buffer;
	call(fd, TEST_HMM_REGISTER, &reg, "register");
	call(fd, TEST_HMM_WRITE, &all, "device write");
	for (i = 0; i < NR_PAGES; i++)
		if (*(uint64_t *)(buffer + i * size) != all.value)
			die("page %d does not hold what the device wrote", i);
	meet_parent(go, came);

	child = fork();
	if (!child)
		_exit(!ioctl(fd, TEST_HMM_WRITE, &all) || errno != EPERM);
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		die("the child could use its parent's mirror");
	if (fd_send(sock, fd, 0))
		die("passing the descriptor: %s", strerror(errno));
	call(fd, TEST_HMM_RUN, &all, "device run");
	/* Each pass writes the next value: see some come in */
	last = (volatile uint64_t *)(buffer + (NR_PAGES - 1) * size);
	while (*last < all.value + 10)
		sched_yield();
	meet_parent(go, came);
	_exit(0);
}

/* The process that the descriptor is passed to: closes it last when told. */
static void __attribute__((noreturn)) keeper(int go, int came, int sock)
{
	int fd = fd_receive(sock, 0);

	if (fd < 0)
		die("receiving the descriptor: %s", strerror(errno));
	meet_parent(go, came);
	close(fd);
	_exit(0);
}

struct process {
	pid_t pid;
	int go, came;
};

static void step(struct process *p)
{
	char c = 0;

	if (write(p->go, &c, 1) != 1)
		die("process %d is gone", p->pid);
}

static void meet(struct process *p)
{
	struct pollfd pfd = { .fd = p->came, .events = POLLIN };
	char c;

	if (poll(&pfd, 1, LIMIT_MS) != 1 || read(p->came, &c, 1) != 1)
		die("process %d did not come", p->pid);
}

static void end(struct process *p)
{
	int status;

	if (waitpid(p->pid, &status, 0) != p->pid || status)
		die("process %d ended badly", p->pid);
}

static struct process start(int fd, int sock)
{
	int go[2], came[2];
	struct process p;

	if (pipe2(go, O_CLOEXEC) || pipe2(came, O_CLOEXEC))
		die("pipe: %s", strerror(errno));
	p.pid = fork();
	if (p.pid < 0)
		die("fork: %s", strerror(errno));
	if (!p.pid) {
		close(go[1]);
		close(came[0]);
		if (fd >= 0)
			owner(fd, go[0], came[1], sock);
		keeper(go[0], came[1], sock);
	}
	close(go[0]);
	close(came[1]);
	p.go = go[1];
	p.came = came[0];
	return p;
}

static struct test_hmm_counts counts(int ctl)
{
	struct test_hmm_counts c;

	call(ctl, TEST_HMM_COUNTS, &c, "counts");
	return c;
}

int main(void)
{
	struct test_hmm_event event, stopped;
	struct process user, holder;
	struct test_hmm_counts c;
	int ctl, fd, sock[2];
	uint32_t device;

	ctl = open_device();
	call(ctl, TEST_HMM_DEVICE_CREATE, &device, "device create");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock))
		die("socketpair: %s", strerror(errno));
	/* Before there is a descriptor to inherit */
	holder = start(-1, sock[1]);
	fd = open_device();
	call(fd, TEST_HMM_DEVICE_ATTACH, &device, "device attach");
	user = start(fd, sock[0]);
	close(fd);
	close(sock[0]);
	close(sock[1]);

	meet(&user);
	event = next_event(ctl, TEST_HMM_REGISTERED, "registered");
	tell(event.time_ns, "process %d registered a buffer of %" PRIu64
	     " pages with device test%u", user.pid, (uint64_t)event.arg, device);
	event = next_event(ctl, TEST_HMM_DEVICE_WROTE, "device wrote");
	tell(event.time_ns, "the device wrote %" PRIu64 " pages, and the process "
	     "read them", (uint64_t)event.arg);
	c = counts(ctl);
	if (c.devices != 1 || c.mirrors != 1 || c.hmms != 1)
		die("counts are not 1, 1, 1");

	step(&user);
	meet(&user);
	meet(&holder);
	event = next_event(ctl, TEST_HMM_DEVICE_RUNS, "device runs");
	tell(event.time_ns, "it forked a child, which has no mirror; passed the "
	     "descriptor to process %d;", holder.pid);
	tell(event.time_ns, "the device writes on and on, and it sees the writes "
	     "come in");
	no_event(ctl, "before exit");

	step(&user);
	end(&user);
	event = next_event(ctl, TEST_HMM_RELEASE, "release on exit");
	if (event.arg != TEST_HMM_REASON_MM_EXIT)
		die("release has reason %" PRIu64, (uint64_t)event.arg);
	tell(event.time_ns, "process %d exits: HMM calls ->release(), reason "
	     "mm-exit", user.pid);
	stopped = next_event(ctl, TEST_HMM_STOPPED, "device stopped");
	tell(stopped.time_ns, "the device has stopped, after %" PRIu64 " writes; "
	     "->release() returns", (uint64_t)stopped.arg);
	event = next_event(ctl, TEST_HMM_UNMAP, "pages are freed after release");
	if (event.arg)
		die("pages were freed while the device could reach them");
	tell(event.time_ns, "only then are its pages freed");
	no_event(ctl, "before the close");
	if (!ioctl(ctl, TEST_HMM_DEVICE_DESTROY) || errno != EBUSY)
		die("the device could be removed under a registered mirror");

	step(&holder);
	end(&holder);
	event = next_event(ctl, TEST_HMM_FREED, "free");
	tell(event.time_ns, "process %d closed the descriptor: HMM calls "
	     "->free()", holder.pid);
	event = next_event(ctl, TEST_HMM_UNREGISTERED, "unregistered");
	tell(event.time_ns, "hmm_mirror_unregister() has returned");
	call(ctl, TEST_HMM_DEVICE_DESTROY, NULL, "device unregister");
	event = next_event(ctl, TEST_HMM_DEVICE_GONE, "device gone");
	tell(event.time_ns, "hmm_device_unregister() has returned 0; the device "
	     "is freed");
	no_event(ctl, "at the end");

	c = counts(ctl);
	printf("live objects: %lld devices, %lld mirrors, %lld address spaces, "
	       "%lld contexts\n", (long long)c.devices, (long long)c.mirrors,
	       (long long)c.hmms, (long long)c.contexts);
	if (c.devices || c.mirrors || c.hmms || c.contexts)
		die("something was left behind");
	puts("demo: every step was seen, in order");
	return 0;
}
