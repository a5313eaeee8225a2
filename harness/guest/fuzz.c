// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fuzzer of the dummy devices: calls that no driver's author had in mind
 *
 * usage: fuzz SEED SECONDS
 *
 * Workers start one short life after the other. Each is a process with a row of random
 * calls: good ones, wrong pointers, sizes, commands and values; on descriptors of its
 * own, of its worker, and of other processes; half of the row beside the other half in
 * a second thread; with the memory that a device works on taken away; and it ends by
 * exit, exec or SIGKILL. A director holds threads at the test points for a moment.
 * Where the kernel has KCOV, a row that reached a new place of this project's code is
 * kept, and others are made from it.
 *
 * What is wrong: an error that the call has no reason to give (see commands), a life
 * that hangs, objects left at the end, a command that never succeeded (then this looks
 * at nothing), and all that the kernel itself reports. Without KCOV a row is a function
 * of the seed, the worker and its number.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/kcov.h>

#include <lib/test_hmm_device_uapi.h>

#include "common.h"

#define NR_WORKERS	6
#define NR_STEPS	32
#define NR_SLOTS	4	/* descriptors of a life */
#define NR_KEPT		1024	/* rows that reached something new */
#define NR_PLACES	(1 << 16)
#define NR_TRACED	(1 << 13)
#define LIMIT_MS	60000

/* Pages that devices work on, where they are in each life */
#define BUFFER		0x20000000UL
#define NR_PAGES	16

enum step_kind {
	STEP_IOCTL,
	STEP_SET_UP = 7,	/* so that half of the steps are an ioctl */
	STEP_SET_UP_AGAIN,
	STEP_OPEN,
	STEP_PASS,		/* a descriptor to, or from, another process */
	STEP_CLOSE,
	STEP_READ,
	STEP_MEMORY,
	STEP_FORK,
	NR_STEP_KINDS
};

/* Where the argument lies */
enum place {
	PLACE_GOOD,
	PLACE_NULL,
	PLACE_UNMAPPED,
	PLACE_READ_ONLY,
	PLACE_KERNEL,
	PLACE_CUT,		/* its last byte is not mapped */
	NR_PLACE_KINDS
};

/* Of so many: a command that is none, and values that may be anything */
#define NR_WRONG	32
#define WRONG_COMMAND	0
#define WRONG_VALUES(w)	((w) < 12)

/* Every field is drawn, whether it is used or not */
struct step {
	uint8_t kind;
	uint8_t slot;
	uint8_t command;	/* index into commands, or one too many: any */
	uint8_t place;
	uint8_t wrong;		/* WRONG_COMMAND, WRONG_VALUES, or nothing is */
	uint32_t a, b, c, d;	/* what the argument is made of */
};

struct row {
	struct step step[NR_STEPS];
	uint8_t end;		/* exit, exec, SIGKILL, exit while threads run */
	uint8_t threads;
};

struct command {
	const char *name;
	unsigned int cmd;
	int size;		/* of what the kernel reads or writes */
	int errors[10];		/* that it may give for its own reasons */
};

/* Those that are made on purpose */
enum {
	COMMAND_CREATE,
	COMMAND_ATTACH,
	COMMAND_REGISTER,
	COMMAND_WRITE,
	COMMAND_READ,
	COMMAND_RUN,
};

#define COMMAND(name, size, ...) { #name, TEST_HMM_##name, size, { __VA_ARGS__ } }

static const struct command commands[] = {
	[COMMAND_CREATE] = COMMAND(DEVICE_CREATE, 4, EBUSY),
	[COMMAND_ATTACH] = COMMAND(DEVICE_ATTACH, 4, EBUSY, ENOENT),
	[COMMAND_REGISTER] = COMMAND(REGISTER, sizeof(struct test_hmm_register), EINVAL,
				     ENODEV, EBUSY, ESRCH, EINTR),
	[COMMAND_WRITE] = COMMAND(WRITE, sizeof(struct test_hmm_access), ENXIO, EPERM,
				  ENODEV, EIO, EINVAL, ESRCH, EBUSY),
	[COMMAND_READ] = COMMAND(READ, sizeof(struct test_hmm_access), ENXIO, EPERM,
				 ENODEV, EIO, EINVAL, ESRCH, EBUSY),
	[COMMAND_RUN] = COMMAND(RUN, sizeof(struct test_hmm_access), ENXIO, EPERM,
				ENODEV, EIO, EINVAL, EBUSY),
	COMMAND(DEVICE_DESTROY, 0, EBUSY, ENODEV),
	COMMAND(UNREGISTER, 0, ENXIO),
	COMMAND(HOLD, 4, EINVAL, EBUSY),
	COMMAND(WAIT_HELD, sizeof(struct test_hmm_wait), EINVAL, ENXIO, ETIME, EINTR),
	COMMAND(RESUME, 4, EINVAL, ENXIO),
	COMMAND(UNREGISTER_ASYNC, 0, ENXIO),
	COMMAND(KILL, 0, ENXIO),
	COMMAND(DEVICE_UNPLUG, 0, ENODEV),
	COMMAND(DEVICE_REMOVE, 0, ENODEV),
	COMMAND(USE_MM, 0, ENXIO, EPERM, ENODEV, EIO, EBUSY),
	COMMAND(SYNCHRONIZE, 0, 0),
	COMMAND(FIND, 0, ENODEV, ESRCH),
	COMMAND(RELEASE_TAKES, 4, EINVAL),
	COMMAND(COUNTS, sizeof(struct test_hmm_counts), 0),
};

#define NR_COMMANDS	(sizeof(commands) / sizeof(commands[0]))

/* What all processes share */
struct shared {
	atomic_int failed;
	atomic_int stop;
	atomic_ulong steps;
	atomic_ulong lives;
	atomic_ulong succeeded[NR_COMMANDS];
	atomic_ulong refused[NR_COMMANDS];
	atomic_uint last_device;
	atomic_uchar reached[NR_PLACES];
	atomic_uint nr_reached;
	atomic_uint nr_kept;
	atomic_bool kept_whole[NR_KEPT];
	struct row kept[NR_KEPT];
};

static struct shared *shared;
static uint64_t page_size;
static int slots[NR_SLOTS];
static int sock[2];	/* on it descriptors go from one process to another */
static char *good, *read_only, *cut;
static unsigned int worker_nr;

static void __attribute__((noreturn, format(printf, 1, 2)))
die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	complain("# fuzz", format, args);
	va_end(args);
	atomic_store(&shared->failed, 1);
	_exit(1);
}

static uint32_t draw(uint64_t *state)
{
	/* The multiplier is Knuth's; the low bits are poor */
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return *state >> 33;
}

static void step_draw(uint64_t *state, struct step *step)
{
	step->kind = draw(state) % NR_STEP_KINDS;
	step->slot = draw(state) % NR_SLOTS;
	step->command = draw(state) % (NR_COMMANDS + 1);
	step->wrong = draw(state) % NR_WRONG;
	step->place = draw(state) % NR_PLACE_KINDS;
	if (!WRONG_VALUES(step->wrong) || draw(state) % 2)
		step->place = PLACE_GOOD;
	step->a = draw(state);
	step->b = draw(state);
	step->c = draw(state);
	step->d = draw(state);
}

static void row_draw(uint64_t *state, struct row *row)
{
	unsigned int nr = atomic_load(&shared->nr_kept), from, i;

	if (nr > NR_KEPT)
		nr = NR_KEPT;
	if (nr && draw(state) % 4 && atomic_load(&shared->kept_whole[from = draw(state) % nr])) {
		*row = shared->kept[from];
		for (i = draw(state) % 4; i < 4; i++)
			step_draw(state, &row->step[draw(state) % NR_STEPS]);
	} else {
		for (i = 0; i < NR_STEPS; i++)
			step_draw(state, &row->step[i]);
		/* Without a device and a mirror most calls have nothing to do */
		row->step[0].kind = STEP_SET_UP;
		row->step[NR_STEPS / 2].kind = STEP_SET_UP;
	}
	row->end = draw(state) % 4;
	row->threads = draw(state) % 2;
}

/* One of a few values where mistakes are made, or any */
static uint64_t value(const struct step *step, uint32_t which, uint32_t any,
		      uint64_t likely)
{
	if (!WRONG_VALUES(step->wrong))
		return likely;
	switch (which % 16) {
	case 0: return 0;
	case 1: return ~0ULL;
	case 2: return (uint64_t)any << 32;
	case 3: return any;
	case 4: return likely + 1;
	case 5: return 1ULL << 63;
	case 6: return (1UL << 47) - page_size;
	default: return likely;
	}
}

static void argument_make(const struct command *command, const struct step *step,
			  void *to)
{
	struct test_hmm_register reg = {
		.addr = value(step, step->a, step->d, BUFFER + page_size * (step->b % NR_PAGES)),
		.size = value(step, step->b, step->d, page_size * (1 + step->c % 4)),
		.context = step->d,
		.flags = step->c % 8 ? 0 : value(step, step->d, step->a, 0),
	};
	struct test_hmm_access access = {
		.first = value(step, step->a, step->d, 0),
		.count = value(step, step->b, step->d, 1 + (step->c % 4 == 0)),
		.value = step->d,
	};
	struct test_hmm_wait wait = { step->a, step->b % 20 };
	uint32_t number;

	/* A sum that wraps round to one that looks right */
	if (WRONG_VALUES(step->wrong) && step->c % 4 == 1)
		access.count = 1 - access.first;

	switch (command->cmd) {
	case TEST_HMM_REGISTER:
		memcpy(to, &reg, sizeof(reg));
		return;
	case TEST_HMM_WRITE:
	case TEST_HMM_READ:
	case TEST_HMM_RUN:
		memcpy(to, &access, sizeof(access));
		return;
	case TEST_HMM_WAIT_HELD:
		wait.point = value(step, step->a, step->d, step->c % TEST_HMM_NR_POINTS);
		memcpy(to, &wait, sizeof(wait));
		return;
	case TEST_HMM_DEVICE_ATTACH:
		number = value(step, step->a, step->d,
			       atomic_load(&shared->last_device) - step->b % 4);
		break;
	case TEST_HMM_HOLD:
		/* A life that holds a thread may wait for itself: the director does */
		number = value(step, step->a, step->d, TEST_HMM_NR_POINTS);
		if (number < TEST_HMM_NR_POINTS)
			number = TEST_HMM_NR_POINTS;
		break;
	case TEST_HMM_RESUME:
		number = value(step, step->a, step->d, step->c % TEST_HMM_NR_POINTS);
		break;
	case TEST_HMM_RELEASE_TAKES:
		/* Not for seconds: those have a test of their own */
		number = value(step, step->a, step->d, 0);
		if (number <= 60000)
			number %= 20;
		break;
	default:
		number = step->a;
	}
	memcpy(to, &number, sizeof(number));
}

static void *argument_place(const struct command *command, const struct step *step,
			    char **memory)
{
	*memory = NULL;
	switch (step->place) {
	case PLACE_NULL:
		return NULL;
	case PLACE_UNMAPPED:
		return cut + page_size;
	case PLACE_READ_ONLY:
		return read_only;
	case PLACE_KERNEL:
		return (void *)(~0UL - 0xfff);
	case PLACE_CUT:
		return cut + page_size - (command->size ? command->size - 1 : 0);
	default:
		*memory = good + 64 * (step->slot + NR_SLOTS * (step->wrong % 2));
		return *memory;
	}
}

static bool allowed(const struct command *command, const struct step *step, int error)
{
	/* Another thread may close it; no memory is a thing that happens */
	if (error == EBADF || error == ENOMEM)
		return true;
	/* The memory that the device is to work on may be gone as well */
	if (error == EFAULT && command->size)
		return step->place != PLACE_GOOD || command->cmd == TEST_HMM_WRITE ||
		       command->cmd == TEST_HMM_READ;
	for (int i = 0; i < 10 && command->errors[i]; i++)
		if (command->errors[i] == error)
			return true;
	return false;
}

/* A command that is none: refused as such, whatever it comes with. */
static void wrong_ioctl(int fd, const struct step *step)
{
	unsigned int cmd;

	if (step->command < NR_COMMANDS)
		cmd = commands[step->command].cmd ^
		      (1U << (_IOC_SIZESHIFT + step->a % (_IOC_SIZEBITS + _IOC_DIRBITS)));
	else
		cmd = _IOC(step->a % 4, 'H', step->b % 256, step->c % 64);
	for (unsigned int i = 0; i < NR_COMMANDS; i++)
		if (commands[i].cmd == cmd)
			return;
	if (!ioctl(fd, cmd, good))
		die("ioctl %#x succeeds", cmd);
	if (errno != ENOTTY && errno != EBADF)
		die("ioctl %#x: %s", cmd, strerror(errno));
}

static void step_ioctl(const struct step *step)
{
	const struct command *command = &commands[step->command];
	int fd = slots[step->slot];
	void *argument;
	char *memory;

	if (step->command >= NR_COMMANDS || step->wrong == WRONG_COMMAND) {
		wrong_ioctl(fd, step);
		return;
	}
	argument = argument_place(command, step, &memory);
	if (memory)
		argument_make(command, step, memory);
	if (!ioctl(fd, command->cmd, argument)) {
		atomic_fetch_add(&shared->succeeded[step->command], 1);
		if (command->cmd == TEST_HMM_DEVICE_CREATE && memory)
			atomic_store(&shared->last_device, *(uint32_t *)memory);
		return;
	}
	if (!allowed(command, step, errno))
		die("%s (%u %#x %#x %#x %#x): %s", command->name, step->place, step->a,
		    step->b, step->c, step->d, strerror(errno));
	atomic_fetch_add(&shared->refused[step->command], 1);
}

/* Takes the place of what was there. */
static void slot_set(unsigned int slot, int fd)
{
	int old = slots[slot];

	if (fd < 0)
		return;
	slots[slot] = fd;
	if (old >= 0)
		close(old);
}

/*
 * Not by pidfd_getfd(): a slot that was closed, of this life or another, must not
 * come to mean a file that is no device.
 */
static void step_pass(const struct step *step)
{
	if (step->a % 2) {
		int fd = fd_receive(sock[0], MSG_DONTWAIT);

		if (fd >= 0)
			slot_set(step->slot, fd);
	} else {
		fd_send(sock[1], slots[step->slot], MSG_DONTWAIT);
	}
}

static void step_read(const struct step *step)
{
	static const int errors[] = { ENODEV, EINVAL, EAGAIN, EFAULT, EBADF, 0 };
	struct pollfd pfd = { .fd = slots[step->slot], .events = POLLIN };
	size_t size = value(step, step->a, step->d % 4096, step->b % 256);
	void *to = good + 2048;
	ssize_t ret;

	if (step->place == PLACE_NULL)
		to = NULL;
	else if (step->place == PLACE_CUT)
		to = cut + page_size - 40;
	else
		size %= 2048;
	if (step->c % 4 == 0)
		poll(&pfd, 1, 0);
	ret = read(slots[step->slot], to, size);
	if (ret >= 0) {
		/* Whole events, and never the end of the file */
		if (!ret || ret % sizeof(struct test_hmm_event))
			die("read of %zu bytes gives %zd", size, ret);
		return;
	}
	for (int i = 0; errors[i]; i++)
		if (errno == errors[i])
			return;
	die("read of %zu bytes: %s", size, strerror(errno));
}

/* A descriptor with a device and a mirror, as most calls want it. */
static void step_set_up(const struct step *step)
{
	struct step call = {
		.kind = STEP_IOCTL, .slot = step->slot, .wrong = NR_WRONG,
		.a = step->a, .b = step->b, .c = step->c, .d = step->d,
	};

	slot_set(step->slot, open("/dev/test_hmm", O_RDWR | O_NONBLOCK));
	call.command = step->a % 2 ? COMMAND_CREATE : COMMAND_ATTACH;
	step_ioctl(&call);
	call.command = COMMAND_REGISTER;
	step_ioctl(&call);
	if (step->b % 2)
		return;
	call.command = COMMAND_WRITE + step->c % 3;
	step_ioctl(&call);
}

static void *buffer_map(void *at, size_t size)
{
	return mmap(at, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void step_memory(const struct step *step)
{
	char *at = (char *)BUFFER + page_size * (step->a % NR_PAGES);
	size_t size = page_size * (1 + step->b % 4);

	switch (step->c % 6) {
	case 0:
		munmap(at, size);
		break;
	case 1:
		buffer_map(at, size);
		break;
	case 2:
		mprotect(at, size, step->d % 2 ? PROT_READ : PROT_NONE);
		break;
	case 3:
		madvise(at, size, MADV_DONTNEED);
		break;
	case 4:
		mremap(at, page_size, page_size, MREMAP_MAYMOVE | MREMAP_FIXED,
		       (char *)BUFFER + page_size * (step->d % (NR_PAGES + 4)));
		break;
	default:
		mprotect(at, size, PROT_READ | PROT_WRITE);
	}
}

/* A child that shares the descriptors, and has another address space. */
static void step_fork(const struct step *step)
{
	static atomic_uint forks;
	pid_t pid;

	if (atomic_fetch_add(&forks, 1) >= 2)
		return;
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (pid) {
		if (step->a % 2)
			waitpid(pid, NULL, 0);
		return;
	}
	for (unsigned int i = 0; i < 4; i++) {
		struct step mine = *step;

		mine.slot = (step->b >> i) % NR_SLOTS;
		mine.command = (step->c >> (4 * i)) % NR_COMMANDS;
		mine.wrong = NR_WRONG;
		step_ioctl(&mine);
	}
	if (step->d % 2)
		kill(getpid(), SIGKILL);
	_exit(0);
}

static void step_run(const struct step *step)
{
	atomic_fetch_add(&shared->steps, 1);
	switch (step->kind) {
	case STEP_SET_UP:
	case STEP_SET_UP_AGAIN:
		step_set_up(step);
		break;
	case STEP_OPEN:
		slot_set(step->slot, open("/dev/test_hmm", O_RDWR | O_NONBLOCK));
		break;
	case STEP_PASS:
		step_pass(step);
		break;
	case STEP_CLOSE:
		close(slots[step->slot]);
		break;
	case STEP_READ:
		step_read(step);
		break;
	case STEP_MEMORY:
		step_memory(step);
		break;
	case STEP_FORK:
		step_fork(step);
		break;
	default:
		step_ioctl(step);
	}
}

static void *second_thread(void *arg)
{
	const struct row *row = arg;

	for (int i = NR_STEPS / 2; i < NR_STEPS; i++)
		step_run(&row->step[i]);
	return NULL;
}

/*
 * KCOV: what this thread reaches. NULL if the kernel has none.
 */

static unsigned long *trace_begin(void)
{
	int fd = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);
	unsigned long *trace;

	if (fd < 0)
		return NULL;
	if (ioctl(fd, KCOV_INIT_TRACE, NR_TRACED))
		die("KCOV: %s", strerror(errno));
	trace = mmap(NULL, NR_TRACED * sizeof(*trace), PROT_READ | PROT_WRITE,
		     MAP_SHARED, fd, 0);
	if (trace == MAP_FAILED || ioctl(fd, KCOV_ENABLE, KCOV_TRACE_PC))
		die("KCOV: %s", strerror(errno));
	trace[0] = 0;
	return trace;
}

static void trace_end(unsigned long *trace, const struct row *row)
{
	unsigned long nr = trace ? __atomic_load_n(&trace[0], __ATOMIC_RELAXED) : 0;
	bool new = false;
	unsigned int at;

	for (unsigned long i = 1; i <= nr && i < NR_TRACED; i++) {
		at = (trace[i] * 0x9e3779b97f4a7c15ULL) >> 48;
		if (!atomic_exchange(&shared->reached[at], 1)) {
			atomic_fetch_add(&shared->nr_reached, 1);
			new = true;
		}
	}
	if (!new)
		return;
	at = atomic_fetch_add(&shared->nr_kept, 1);
	if (at < NR_KEPT) {
		shared->kept[at] = *row;
		atomic_store(&shared->kept_whole[at], true);
	}
}

static void __attribute__((noreturn)) life(const struct row *row)
{
	int nr = row->threads ? NR_STEPS / 2 : NR_STEPS;
	unsigned long *trace = trace_begin();
	pthread_t thread;

	if (row->threads &&
	    pthread_create(&thread, NULL, second_thread, (void *)row))
		die("no thread");
	for (int i = 0; i < nr; i++)
		step_run(&row->step[i]);
	if (row->threads && row->end != 3)
		pthread_join(thread, NULL);
	trace_end(trace, row);
	switch (row->end) {
	case 1:
		/* Its descriptors go on to the new image */
		execl("/proc/self/exe", "fuzz", "-exec", (char *)NULL);
		die("exec: %s", strerror(errno));
	case 2:
		kill(getpid(), SIGKILL);
	}
	_exit(0);
}

static void life_wait(pid_t pid, const char *what)
{
	int pidfd = syscall(SYS_pidfd_open, pid, 0), status;
	struct pollfd pfd = { .fd = pidfd, .events = POLLIN };

	if (poll(&pfd, 1, LIMIT_MS) != 1)
		die("%s %d hangs", what, pid);
	close(pidfd);
	if (waitpid(pid, &status, 0) != pid)
		die("wait: %s", strerror(errno));
	if (WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) != SIGKILL)
		die("%s %d ended with status %#x", what, pid, status);
}

static void __attribute__((noreturn)) worker(uint32_t seed)
{
	uint64_t state = ((uint64_t)seed << 8) + worker_nr;
	struct row row;
	pid_t pid;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	/* One descriptor outlives the others */
	slots[0] = open("/dev/test_hmm", O_RDWR | O_NONBLOCK);
	for (draw(&state); !atomic_load(&shared->stop); atomic_fetch_add(&shared->lives, 1)) {
		row_draw(&state, &row);
		pid = fork();
		if (pid < 0)
			die("fork: %s", strerror(errno));
		if (!pid)
			life(&row);
		life_wait(pid, "a life");
		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			;
	}
	/* Those that lives left behind */
	while ((pid = wait(NULL)) > 0)
		;
	_exit(0);
}

/* Holds threads for a moment; is nobody who could be held. */
static void __attribute__((noreturn)) director(uint32_t seed)
{
	uint64_t state = ((uint64_t)seed << 8) + NR_WORKERS;
	struct test_hmm_wait wait;
	int fd = -1;

	for (draw(&state); !atomic_load(&shared->stop);) {
		if (fd < 0)
			fd = open("/dev/test_hmm", O_RDWR | O_CLOEXEC);
		wait.point = draw(&state) % TEST_HMM_NR_POINTS;
		wait.timeout_ms = draw(&state) % 50;
		if (draw(&state) % 8 == 0)
			wait.point = TEST_HMM_IN_RELEASE;
		if (ioctl(fd, TEST_HMM_HOLD, &wait.point))
			die("hold: %s", strerror(errno));
		ioctl(fd, TEST_HMM_WAIT_HELD, &wait);
		usleep(draw(&state) % 20000);
		if (draw(&state) % 4) {
			if (ioctl(fd, TEST_HMM_RESUME, &wait.point))
				die("resume: %s", strerror(errno));
		} else {
			close(fd);
			fd = -1;
		}
		usleep(draw(&state) % 100000);
	}
	_exit(0);
}

/* What processes left may be on its way: an address space dies some time after them. */
static void nothing_left(void)
{
	struct test_hmm_counts counts;
	int fd = open("/dev/test_hmm", O_RDWR | O_CLOEXEC);

	for (int ms = 0; ; ms += 100) {
		if (fd < 0 || ioctl(fd, TEST_HMM_COUNTS, &counts))
			die("counts: %s", strerror(errno));
		if (!counts.devices && !counts.mirrors && !counts.hmms &&
		    !counts.contexts)
			break;
		if (ms > LIMIT_MS)
			die("left: %lld devices, %lld mirrors, %lld address spaces, %lld contexts",
			    (long long)counts.devices, (long long)counts.mirrors,
			    (long long)counts.hmms, (long long)counts.contexts);
		usleep(100000);
	}
	close(fd);
}

static void something_done(void)
{
	for (unsigned int i = 0; i < NR_COMMANDS; i++) {
		unsigned long good = atomic_load(&shared->succeeded[i]);
		unsigned long bad = atomic_load(&shared->refused[i]);

		printf("# fuzz: %-16s %8lu succeeded, %8lu refused\n",
		       commands[i].name, good, bad);
		/* These are the director's */
		if (!good && commands[i].cmd != TEST_HMM_HOLD &&
		    commands[i].cmd != TEST_HMM_WAIT_HELD &&
		    commands[i].cmd != TEST_HMM_RESUME)
			die("%s never succeeded", commands[i].name);
	}
}

static void memory_set(void)
{
	page_size = sysconf(_SC_PAGESIZE);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	good = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	read_only = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cut = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || good == MAP_FAILED || read_only == MAP_FAILED ||
	    cut == MAP_FAILED || munmap(cut + page_size, page_size) ||
	    buffer_map((void *)BUFFER, NR_PAGES * page_size) == MAP_FAILED) {
		puts("# fuzz: FAILED: no memory");
		exit(1);
	}
	/* Zero would be a point to hold a thread at */
	memset(read_only, -1, page_size);
	mprotect(read_only, page_size, PROT_READ);
	for (int i = 0; i < NR_SLOTS; i++)
		slots[i] = -1;
}

int main(int argc, char **argv)
{
	pid_t pid[NR_WORKERS + 1];
	uint32_t seed;
	time_t end;

	if (argc == 2 && !strcmp(argv[1], "-exec"))
		return 0;
	if (argc != 3) {
		puts("# fuzz: FAILED: usage: fuzz SEED SECONDS");
		return 1;
	}
	setvbuf(stdout, NULL, _IONBF, 0);
	memory_set();
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, sock))
		die("socketpair: %s", strerror(errno));
	seed = strtoul(argv[1], NULL, 10);
	end = time(NULL) + atoi(argv[2]);
	for (worker_nr = 0; worker_nr <= NR_WORKERS; worker_nr++) {
		pid[worker_nr] = fork();
		if (pid[worker_nr] < 0)
			die("fork: %s", strerror(errno));
		if (!pid[worker_nr]) {
			if (worker_nr == NR_WORKERS)
				director(seed);
			worker(seed);
		}
	}
	while (time(NULL) < end && !atomic_load(&shared->failed))
		usleep(100000);
	if (atomic_load(&shared->failed))
		return 1;
	atomic_store(&shared->stop, 1);
	for (int i = 0; i <= NR_WORKERS; i++)
		life_wait(pid[i], "a worker");
	/* Descriptors on their way are closed with it */
	close(sock[0]);
	close(sock[1]);
	nothing_left();
	something_done();
	printf("# fuzz: SUCCESS: seed=%u lives=%lu steps=%lu places=%u rows=%u\n", seed,
	       atomic_load(&shared->lives), atomic_load(&shared->steps),
	       atomic_load(&shared->nr_reached), atomic_load(&shared->nr_kept));
	return 0;
}
