// SPDX-License-Identifier: GPL-2.0
/*
 * What an address space without a mirror pays: times munmap() and the exit of a
 * process, on a kernel with HMM and on one without
 *
 * Prints one line for each sample, as mm/tests/hmm_bench.c does:
 *	measure,none,pages,round,operations,nanoseconds
 *
 * usage: unused ROUNDS
 */

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGES	64
#define OPS	200
#define FORKS	20

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

static void sample(const char *measure, int round, int ops, unsigned long long ns)
{
	printf("%s,none,%d,%d,%d,%llu\n", measure, PAGES, round, ops, ns);
	fflush(stdout);
}

static void measure_munmap(int round)
{
	long page = sysconf(_SC_PAGESIZE);
	unsigned long long start, ns = 0;
	int i, j;

	for (i = 0; i < OPS; i++) {
		char *p = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			die("mmap");
		for (j = 0; j < PAGES; j++)
			p[j * page] = 1;
		start = now();
		if (munmap(p, PAGES * page))
			die("munmap");
		ns += now() - start;
	}
	sample("unused_munmap", round, OPS, ns);
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
	sample("unused_exit", round, FORKS, ns);
}

int main(int argc, char **argv)
{
	int round, rounds = argc > 1 ? atoi(argv[1]) : 0;

	if (rounds < 1) {
		fprintf(stderr, "usage: unused ROUNDS\n");
		return 1;
	}
	for (round = 0; round < rounds; round++) {
		measure_munmap(round);
		measure_exit(round);
	}
	return 0;
}
