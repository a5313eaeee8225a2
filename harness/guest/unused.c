// SPDX-License-Identifier: GPL-2.0
/*
 * What an address space pays that has no mirror, and one that has a mirror and no
 * interval: times munmap(), mprotect(), fork() and the exit of a process
 *
 * A mirror comes from the parameter "mirror" of mm/tests/hmm_bench.c. On a kernel
 * without that module, only an address space without a mirror is measured. Prints one
 * line for each sample, as hmm_bench does:
 *	measure,peer,pages,round,operations,nanoseconds
 *
 * usage: unused ROUNDS
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGES	64
#define OPS	200
#define FORKS	20
#define MIRROR	"/sys/module/hmm_bench/parameters/mirror"

static const char * const peers[] = { "none", "hmm", "mmu_interval_notifier" };

static unsigned long long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void sample(const char *measure, const char *peer, int round, int ops,
		   unsigned long long ns)
{
	printf("%s,%s,%d,%d,%d,%llu\n", measure, peer, PAGES, round, ops, ns);
	fflush(stdout);
}

static size_t size(void)
{
	return PAGES * sysconf(_SC_PAGESIZE);
}

static char *map_pages(void)
{
	char *p = mmap(NULL, size(), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t i;

	if (p == MAP_FAILED)
		die("mmap");
	for (i = 0; i < size(); i += sysconf(_SC_PAGESIZE))
		p[i] = 1;
	return p;
}

static void measure_pages(const char *peer, int round)
{
	unsigned long long start, protect = 0, unmap = 0;
	int i;

	for (i = 0; i < OPS; i++) {
		char *p = map_pages();

		start = now();
		if (mprotect(p, size(), PROT_READ))
			die("mprotect");
		protect += now() - start;
		start = now();
		if (munmap(p, size()))
			die("munmap");
		unmap += now() - start;
	}
	sample("unused_mprotect", peer, round, OPS, protect);
	sample("unused_munmap", peer, round, OPS, unmap);
}

static void measure_fork(const char *peer, int round)
{
	unsigned long long start, ns = 0;
	char *p = map_pages();
	int i, status;
	pid_t pid;

	for (i = 0; i < FORKS; i++) {
		start = now();
		pid = fork();
		if (!pid)
			_exit(0);
		ns += now() - start;
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			die("fork");
	}
	munmap(p, size());
	sample("unused_fork", peer, round, FORKS, ns);
}

/* From the write that is its last act until it is reaped */
static void measure_exit(int round)
{
	unsigned long long start, ns = 0;
	int i, status;
	pid_t pid;

	for (i = 0; i < FORKS; i++) {
		int fds[2];

		if (pipe(fds))
			die("pipe");
		pid = fork();
		if (pid < 0)
			die("fork");
		if (!pid) {
			start = now();
			_exit(write(fds[1], &start, sizeof(start)) != sizeof(start));
		}
		if (read(fds[0], &start, sizeof(start)) != sizeof(start))
			die("read");
		if (waitpid(pid, &status, 0) != pid || status)
			die("child");
		ns += now() - start;
		close(fds[0]);
		close(fds[1]);
	}
	sample("unused_exit", "none", round, FORKS, ns);
}

static void give_mirror(int fd, int peer)
{
	if (fd >= 0 && dprintf(fd, "%d", peer) != 1)
		die(MIRROR);
}

int main(int argc, char **argv)
{
	int round, rounds = argc > 1 ? atoi(argv[1]) : 0;
	int fd = open(MIRROR, O_WRONLY);
	int peer, nr = fd < 0 ? 1 : sizeof(peers) / sizeof(peers[0]);

	if (rounds < 1) {
		fprintf(stderr, "usage: unused ROUNDS\n");
		return 1;
	}
	for (round = 0; round < rounds; round++) {
		for (peer = 0; peer < nr; peer++) {
			give_mirror(fd, peer);
			measure_pages(peers[peer], round);
			measure_fork(peers[peer], round);
		}
		give_mirror(fd, 0);
		measure_exit(round);
	}
	return 0;
}
