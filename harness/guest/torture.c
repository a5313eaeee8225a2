// SPDX-License-Identifier: GPL-2.0-only
/*
 * Torture of HMM by processes: what kernel threads cannot do
 *
 * usage: torture SEED SECONDS
 *
 * In each round a few workers live lives of random course on the dummy devices: they
 * register, fork, exec, exit, are killed, run out of memory, pass descriptors to each
 * other and close them, while a device is unplugged and removed. Then everybody is
 * gone, the events have to add up, no object may be left, and the modules are
 * unloaded and loaded. Courses are a function of the seed, the round and the worker.
 *
 * Exit status 0 and a line with the seed, the counts and a checksum of the courses of
 * the first round: nothing went wrong.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <lib/test_hmm_device_uapi.h>

#include "common.h"

#define NR_WORKERS	5
#define NR_LIVES	12
#define NR_DEVICES	2
#define NR_PAGES	4
#define MAX_CONTEXTS	4096
#define LIMIT_MS	120000
#define GROUP		"/sys/fs/cgroup/hmm-torture"

/* What becomes of a process at the end of a course */
enum end {
	END_EXIT,
	END_SIGKILL,
	END_EXEC,
	END_OOM,
	END_THREADS,	/* the group exits while threads register */
	NR_ENDS
};

/* One life; every field is drawn, whether it is used or not */
struct course {
	uint32_t device;
	uint32_t child;		/* in a process of its own */
	uint32_t slow;		/* ->release() takes that many ms */
	uint32_t access;	/* none, write, read, run */
	uint32_t fork;		/* a child that shares the descriptor */
	uint32_t kill;
	uint32_t pass;
	uint32_t unregister;	/* not, waiting, asynchronously, twice */
	uint32_t find;
	uint32_t end;
};

/* What was seen of one context */
struct sums {
	int registered;
	int released;
	int stopped;
	int freed;
};

struct board {
	int fd;
	uint32_t number;
	uint32_t last_seq;
	bool lost;		/* events: they need not add up */
	bool gone;
};

static uint64_t page_size;
static void *buffer;
static uint32_t reaper;	/* pid of the OOM reaper, which takes pages before exit does */
static int sock[2];
static struct board boards[NR_DEVICES];
static struct sums sums[MAX_CONTEXTS];

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	complain("# torture", format, args);
	va_end(args);
	_exit(1);
}

static uint32_t draw(uint32_t *state, uint32_t below)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return (*state >> 3) % below;
}

static uint32_t stream(uint32_t seed, uint32_t round, uint32_t worker)
{
	uint32_t state = seed ^ (round * 0x9e3779b9U) ^ (worker * 0x85ebca6bU);

	/* Zero is a fixed point; and the first few depend too much on the seed */
	state = state ? state : 1;
	for (int i = 0; i < 8; i++)
		draw(&state, 1);
	return state;
}

static void course_draw(uint32_t *state, struct course *c)
{
	c->device = draw(state, NR_DEVICES);
	c->child = draw(state, 4);
	c->slow = draw(state, 8) ? 0 : draw(state, 20);
	c->access = draw(state, 4);
	c->fork = draw(state, 4);
	c->kill = draw(state, 4);
	c->pass = draw(state, 4);
	c->unregister = draw(state, 4);
	c->find = draw(state, 4);
	c->end = draw(state, 32);
	/* The dear ones less often */
	c->end = c->end == 31 ? END_OOM : c->end % NR_ENDS;
	if (c->end == END_OOM && c->find)
		c->end = END_SIGKILL;
}

static uint32_t courses_checksum(uint32_t seed)
{
	uint32_t sum = 0;

	for (uint32_t worker = 0; worker < NR_WORKERS; worker++) {
		uint32_t state = stream(seed, 0, worker);
		struct course c;

		for (int i = 0; i < NR_LIVES; i++) {
			course_draw(&state, &c);
			sum = sum * 31 + c.device + 3 * c.access + 7 * c.pass +
			      11 * c.unregister + 13 * c.end + 17 * c.child;
		}
		sum = sum * 31 + state;
	}
	return sum;
}

/* An ioctl that may fail with one of the @allowed, a list that ends with 0. */
static bool call(int fd, unsigned long cmd, void *arg, const char *what,
		 const int *allowed)
{
	if (!ioctl(fd, cmd, arg))
		return true;
	for (; *allowed; allowed++)
		if (errno == *allowed)
			return false;
	die("%s: %s", what, strerror(errno));
}

static const int none[] = { 0 };
/* The device went, or another process that has the descriptor was quicker */
static const int gone[] = { ENODEV, ENXIO, 0 };
static const int refused[] = { ENODEV, EBUSY, EINTR, 0 };
static const int unreachable[] = {
	ENXIO, ENODEV, EIO, ESRCH, EPERM, EBUSY, EFAULT, ENOMEM, 0
};
static const int not_found[] = { ENODEV, ESRCH, 0 };

static int attach(uint32_t number)
{
	static const int allowed[] = { ENOENT, 0 };
	int fd = open("/dev/test_hmm", O_RDWR);

	if (fd < 0)
		die("/dev/test_hmm: %s", strerror(errno));
	if (!call(fd, TEST_HMM_DEVICE_ATTACH, &number, "attach", allowed)) {
		close(fd);
		return -1;
	}
	return fd;
}

static bool mirror(int fd)
{
	struct test_hmm_register arg = {
		.addr = (uintptr_t)buffer, .size = NR_PAGES * page_size,
	};

	return call(fd, TEST_HMM_REGISTER, &arg, "register", refused);
}

static void touch(int fd, uint32_t how, uint64_t value)
{
	struct test_hmm_access arg = { .count = NR_PAGES, .value = value };

	if (how == 1)
		call(fd, TEST_HMM_WRITE, &arg, "write", unreachable);
	else if (how == 2)
		call(fd, TEST_HMM_READ, &arg, "read", unreachable);
	else if (how == 3 && call(fd, TEST_HMM_RUN, &arg, "run", unreachable))
		call(fd, TEST_HMM_USE_MM, NULL, "use mm", unreachable);
}

/* Registers until the process is gone. */
static void *thread_main(void *arg)
{
	struct course *c = arg;

	for (int i = 0; i < 100; i++) {
		int fd = attach(boards[c->device].number);

		if (fd < 0)
			break;
		mirror(fd);
		touch(fd, i % 4, i);
		close(fd);
	}
	return NULL;
}

static void run_out_of_memory(void)
{
	char text[16];
	int fd = open(GROUP "/cgroup.procs", O_WRONLY);

	snprintf(text, sizeof(text), "%d", getpid());
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		_exit(0);	/* no memory controller here */
	for (;;) {
		char *more = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (more == MAP_FAILED)
			_exit(0);
		memset(more, 1, 1 << 20);
	}
}

/* The new image has the descriptor, and a mirror of the old one on it. */
static void __attribute__((noreturn)) exec_main(char **argv)
{
	int fd = atoi(argv[2]);

	touch(fd, 1, 1);
	call(fd, TEST_HMM_UNREGISTER, NULL, "unregister after exec", gone);
	if (mirror(fd))
		touch(fd, 3, 2);
	_exit(0);
}

static void __attribute__((noreturn)) life_end(int fd, struct course *c)
{
	char number[16];
	pthread_t thread;

	switch (c->end) {
	case END_SIGKILL:
		kill(getpid(), SIGKILL);
		break;
	case END_EXEC:
		if (fd < 0)
			break;
		snprintf(number, sizeof(number), "%d", fd);
		execl("/proc/self/exe", "torture", "-exec", number, (char *)NULL);
		die("exec: %s", strerror(errno));
	case END_OOM:
		run_out_of_memory();
		break;
	case END_THREADS:
		for (int i = 0; i < 2; i++)
			pthread_create(&thread, NULL, thread_main, c);
		usleep(1000 * c->slow + 500);
		break;
	default:
		break;
	}
	_exit(0);
}

/* Whoever has the descriptor may do this, in whatever process. */
static void life_use(int fd, struct course *c)
{
	int passed = -1;

	touch(fd, c->access, 1);
	if (!c->find)
		call(fd, TEST_HMM_FIND, NULL, "find", not_found);
	if (!c->kill)
		call(fd, TEST_HMM_KILL, NULL, "kill", gone);
	if (!c->pass) {
		/* Full: nobody takes them; then this one stays here */
		fd_send(sock[c->device & 1], fd, MSG_DONTWAIT);
		passed = fd_receive(sock[c->access & 1], MSG_DONTWAIT);
	}
	if (c->unregister & 1)
		call(fd, TEST_HMM_UNREGISTER, NULL, "unregister", gone);
	if (c->unregister & 2)
		call(fd, TEST_HMM_UNREGISTER_ASYNC, NULL, "unregister", gone);
	if (passed >= 0) {
		touch(passed, c->access, 2);
		close(passed);
	}
}

static void check_status(int status)
{
	if (WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) != SIGKILL)
		die("a process ended with status %#x", status);
}

static void reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		die("wait: %s", strerror(errno));
	check_status(status);
}

static pid_t start(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork: %s", strerror(errno));
	return pid;
}

static void life(struct course *c)
{
	pid_t pid = c->child ? start() : 0, other = 0;
	int fd;

	if (pid) {
		reap(pid);
		return;
	}
	fd = attach(boards[c->device].number);
	if (fd >= 0) {
		call(fd, TEST_HMM_RELEASE_TAKES, &c->slow, "release takes", none);
		mirror(fd);
		other = c->fork ? 0 : start();
		if (!c->fork && !other) {
			/* Has the descriptor, and no mirror of its own */
			life_use(fd, c);
			_exit(0);
		}
		life_use(fd, c);
	}
	if (c->child)
		life_end(fd, c);
	if (other)
		reap(other);
	close(fd);
}

static void __attribute__((noreturn)) worker(uint32_t state)
{
	struct course c;

	for (int i = 0; i < NR_LIVES; i++) {
		course_draw(&state, &c);
		life(&c);
	}
	_exit(0);
}

static void event_add(struct board *board, const struct test_hmm_event *event)
{
	struct sums *sum = &sums[event->context % MAX_CONTEXTS];

	if (event->seq != board->last_seq + 1)
		board->lost = true;
	board->last_seq = event->seq;
	switch (event->type) {
	case TEST_HMM_REGISTERED:
		sum->registered++;
		break;
	case TEST_HMM_RELEASE:
		sum->released++;
		if (event->arg == TEST_HMM_REASON_NONE)
			die("context %u was released for no reason", event->context);
		break;
	case TEST_HMM_STOPPED:
		if (++sum->stopped > sum->released)
			die("context %u stopped before its release", event->context);
		break;
	case TEST_HMM_UNMAP:
		if (event->arg && event->pid != reaper)
			die("pages of context %u are freed while the device reaches them",
			    event->context);
		break;
	case TEST_HMM_FREED:
		if (++sum->freed > sum->stopped)
			die("context %u was freed before its release", event->context);
		break;
	default:
		break;
	}
}

static void events_read(struct board *board)
{
	struct pollfd pfd = { .fd = board->fd, .events = POLLIN };
	struct test_hmm_event event[64];
	ssize_t size;

	while (poll(&pfd, 1, 0) == 1) {
		size = read(board->fd, event, sizeof(event));
		if (size <= 0)
			die("events: %s", strerror(errno));
		for (unsigned int i = 0; i < size / sizeof(event[0]); i++)
			event_add(board, &event[i]);
	}
}

static void counts_check(void)
{
	struct test_hmm_counts counts;
	bool lost = false;

	call(boards[0].fd, TEST_HMM_COUNTS, &counts, "counts", none);
	if (counts.mirrors || counts.hmms || counts.contexts)
		die("left: %lld mirrors, %lld address spaces, %lld contexts",
		    (long long)counts.mirrors, (long long)counts.hmms,
		    (long long)counts.contexts);
	for (int i = 0; i < NR_DEVICES; i++) {
		events_read(&boards[i]);
		lost |= boards[i].lost;
	}
	for (int i = 0; i < MAX_CONTEXTS && !lost; i++)
		if (sums[i].registered != sums[i].released ||
		    sums[i].registered != sums[i].stopped ||
		    sums[i].registered != sums[i].freed)
			die("context %d: %d registered, %d released, %d stopped, %d freed",
			    i, sums[i].registered, sums[i].released,
			    sums[i].stopped, sums[i].freed);
}

static int module_file(const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/lib/modules/%s.ko", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	return fd;
}

static void module_load(const char *name)
{
	int fd = module_file(name);

	if (syscall(SYS_finit_module, fd, "", 0))
		die("cannot load %s: %s", name, strerror(errno));
	close(fd);
}

static void module_unload(const char *name)
{
	if (syscall(SYS_delete_module, name, O_NONBLOCK))
		die("cannot unload %s: %s", name, strerror(errno));
}

static void boards_open(void)
{
	memset(sums, 0, sizeof(sums));
	for (int i = 0; i < NR_DEVICES; i++) {
		boards[i] = (struct board){
			.fd = open("/dev/test_hmm", O_RDWR | O_CLOEXEC),
		};
		if (boards[i].fd < 0)
			die("/dev/test_hmm: %s", strerror(errno));
		call(boards[i].fd, TEST_HMM_DEVICE_CREATE, &boards[i].number,
		     "create", none);
	}
}

enum { BOARD_UNPLUG, BOARD_DESTROY, BOARD_REMOVE, NR_BOARD_ENDS };

/* One device goes at a random time; -EBUSY if a process has not closed yet. */
static void board_remove(struct board *board, uint32_t how)
{
	static const int allowed[] = { EBUSY, 0 };

	if (how == BOARD_REMOVE) {
		call(board->fd, TEST_HMM_DEVICE_REMOVE, NULL, "remove", none);
		board->gone = true;
		return;
	}
	call(board->fd, TEST_HMM_DEVICE_UNPLUG, NULL, "unplug", none);
	if (how == BOARD_DESTROY)
		board->gone = call(board->fd, TEST_HMM_DEVICE_DESTROY, NULL,
				   "destroy", allowed);
}

/* Those who ended, whoever began them; false once there are none. */
static bool reap_all(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		check_status(status);
	return !pid;
}

static void workers_run(uint32_t seed, uint32_t round)
{
	uint32_t state = stream(seed, round, NR_WORKERS);
	uint32_t unplug_ms = draw(&state, 2000), how = draw(&state, NR_BOARD_ENDS);
	struct board *board = &boards[draw(&state, NR_DEVICES)];
	bool unplugged = false;

	for (uint32_t i = 0; i < NR_WORKERS; i++)
		if (!start())
			worker(stream(seed, round, i));
	for (uint32_t ms = 0; reap_all(); ms += 20) {
		if (!unplugged && ms >= unplug_ms) {
			board_remove(board, how);
			unplugged = true;
		}
		for (int i = 0; i < NR_DEVICES; i++)
			events_read(&boards[i]);
		if (ms > LIMIT_MS)
			die("a process hangs");
		usleep(20000);
	}
}

static void modules_reload(bool both)
{
	module_unload("test_hmm_device");
	if (both) {
		module_unload("hmm_core");
		module_load("hmm_core");
	}
	module_load("test_hmm_device");
}

static void round_run(uint32_t seed, uint32_t round)
{
	boards_open();
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, sock))
		die("socketpair: %s", strerror(errno));
	workers_run(seed, round);
	/* Descriptors on their way are closed with it */
	close(sock[0]);
	close(sock[1]);
	counts_check();
	for (int i = 0; i < NR_DEVICES; i++) {
		if (!boards[i].gone)
			call(boards[i].fd, TEST_HMM_DEVICE_DESTROY, NULL,
			     "destroy", none);
		close(boards[i].fd);
	}
	modules_reload(round & 1);
}

static uint32_t pid_of(const char *name)
{
	char path[300], comm[32];
	uint32_t pid = 0;
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	FILE *file;

	while (proc && !pid && (entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(comm, sizeof(comm), file) &&
		    !strcmp(strtok(comm, "\n"), name))
			pid = atoi(entry->d_name);
		fclose(file);
	}
	if (!pid)
		die("%s: no such thread", name);
	closedir(proc);
	return pid;
}

static void group_make(void)
{
	int fd = open("/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY);

	if (fd >= 0 && write(fd, "+memory", 7) == 7)
		mkdir(GROUP, 0700);
	close(fd);
	fd = open(GROUP "/memory.max", O_WRONLY);
	if (fd >= 0 && write(fd, "8M", 2) != 2)
		die("memory.max: %s", strerror(errno));
	close(fd);
}

int main(int argc, char **argv)
{
	uint32_t seed, round = 0;
	time_t end;

	setvbuf(stdout, NULL, _IONBF, 0);
	page_size = sysconf(_SC_PAGESIZE);
	buffer = mmap(NULL, NR_PAGES * page_size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED || argc != 3)
		die("usage: torture SEED SECONDS");
	if (!strcmp(argv[1], "-exec"))
		exec_main(argv);

	seed = strtoul(argv[1], NULL, 10);
	end = time(NULL) + atoi(argv[2]);
	reaper = pid_of("oom_reaper");
	group_make();
	/* Children of those who were killed are waited for here */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	do {
		round_run(seed, round++);
	} while (time(NULL) < end);
	rmdir(GROUP);
	printf("# torture: SUCCESS: seed=%u rounds=%u lives=%u choices=%08x\n",
	       seed, round, round * NR_WORKERS * NR_LIVES,
	       courses_checksum(seed));
	return 0;
}
