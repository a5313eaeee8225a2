// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the HMM registration core
 *
 * An address space is made by mm_alloc() and dies by the mmput() that drops its
 * one user: exit_mmap() and what it calls run inside that mmput(), in the thread
 * that the test chose.
 *
 * Races are run in one order at a time. A gate stands at a test point of
 * mm/hmm.c, or in a callback; the first thread that comes to it stays until the
 * test opens it. That a thread waits where it must is seen by its arrival at the
 * point before that wait, and then by its not coming back for QUIET_MS, which on a
 * right core can never fail, and on a wrong one gives it ample time.
 */

#include <kunit/test.h>
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/hmm.h>
#include <linux/hmm_test.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

/* Before a test is taken to hang */
#define LIMIT_MS	20000
#define QUIET_MS	100

#define NR_RACES	300

/* Gates inside the callbacks, beside those at the test points */
enum {
	GATE_IN_RELEASE = HMM_NR_POINTS,
	GATE_IN_FREE,
	GATE_IN_INVALIDATE,
	NR_GATES
};

/* Where a page can be mapped in an empty mm */
#define SOME_ADDRESS	0x10000000UL

struct gate {
	atomic_t arrivals;
	bool closed;
	struct completion reached;
	struct completion open;
};

struct gpu {
	struct hmm_device hmm;
};

struct gpu_context {
	struct hmm_mirror mirror;
	atomic_t nr_running;
	atomic_t nr_release;
	atomic_t nr_free;
	bool overlapped;
	bool free_before_release;
	bool misuse;
	struct gpu *misuse_gpu;
	int misuse_ret;
	enum hmm_release_reason reason;
};

struct job {
	struct work_struct work;
	void (*fn)(void *arg);
	void *arg;
	int ret;
	struct completion done;
};

static struct gate gates[NR_GATES];
static struct workqueue_struct *jobs_wq;

static void gate_close(unsigned int at)
{
	init_completion(&gates[at].reached);
	init_completion(&gates[at].open);
	atomic_set(&gates[at].arrivals, 0);
	WRITE_ONCE(gates[at].closed, true);
}

static void gate_open(unsigned int at)
{
	complete_all(&gates[at].open);
}

static bool gate_reached(unsigned int at)
{
	return wait_for_completion_timeout(&gates[at].reached,
					   msecs_to_jiffies(LIMIT_MS));
}

/* Since it was closed */
static int gate_arrivals(unsigned int at)
{
	return atomic_read(&gates[at].arrivals);
}

static void gate_pass(unsigned int at)
{
	atomic_inc(&gates[at].arrivals);
	if (!xchg(&gates[at].closed, false))
		return;
	complete(&gates[at].reached);
	wait_for_completion(&gates[at].open);
}

static void gates_open_all(void)
{
	unsigned int at;

	for (at = 0; at < NR_GATES; at++) {
		WRITE_ONCE(gates[at].closed, false);
		gate_open(at);
	}
}

static void hmm_kunit_hook(enum hmm_test_point point, struct hmm_mirror *mirror)
{
	gate_pass(point);
}

static void job_work(struct work_struct *work)
{
	struct job *job = container_of(work, struct job, work);

	job->fn(job->arg);
	complete_all(&job->done);
}

static void job_start(struct job *job, void (*fn)(void *), void *arg)
{
	INIT_WORK_ONSTACK(&job->work, job_work);
	init_completion(&job->done);
	job->fn = fn;
	job->arg = arg;
	queue_work(jobs_wq, &job->work);
}

/* Nothing is left to say but whether it ended: its stack frame is the caller's. */
static bool job_end(struct job *job)
{
	bool done;

	done = wait_for_completion_timeout(&job->done,
					   msecs_to_jiffies(LIMIT_MS));
	/* The test has failed; what it holds must not hang the rest */
	if (!done)
		gates_open_all();
	flush_work(&job->work);
	destroy_work_on_stack(&job->work);
	return done;
}

static bool job_waits(struct job *job)
{
	return !wait_for_completion_timeout(&job->done,
					    msecs_to_jiffies(QUIET_MS));
}

static void job_mmput(void *mm)
{
	mmput(mm);
}

static void job_unregister(void *context)
{
	hmm_mirror_unregister(&((struct gpu_context *)context)->mirror);
}

static void job_device_unregister(void *gpu)
{
	WARN_ON(hmm_device_unregister(&((struct gpu *)gpu)->hmm));
}

static void gpu_release(struct hmm_mirror *mirror)
{
	struct gpu_context *context =
		container_of(mirror, struct gpu_context, mirror);

	if (atomic_inc_return(&context->nr_running) != 1)
		context->overlapped = true;
	if (atomic_read(&context->nr_free))
		context->free_before_release = true;
	context->reason = hmm_mirror_release_reason(mirror);
	if (context->misuse) {
		hmm_mirror_unregister(mirror);
		context->misuse_ret =
			hmm_device_unregister(&context->misuse_gpu->hmm);
	}
	gate_pass(GATE_IN_RELEASE);
	atomic_dec(&context->nr_running);
	atomic_inc(&context->nr_release);
}

static void gpu_free(struct hmm_mirror *mirror)
{
	struct gpu_context *context =
		container_of(mirror, struct gpu_context, mirror);

	if (!atomic_read(&context->nr_release))
		context->free_before_release = true;
	gate_pass(GATE_IN_FREE);
	atomic_inc(&context->nr_free);
}

static const struct hmm_device_ops gpu_ops = {
	.release = gpu_release,
};

static const struct hmm_device_ops gpu_free_ops = {
	.release = gpu_release,
	.free = gpu_free,
};

static struct gpu *gpu_new(struct kunit *test, const struct hmm_device_ops *ops)
{
	struct gpu *gpu = kzalloc(sizeof(*gpu), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, gpu);
	KUNIT_ASSERT_EQ(test, hmm_device_register(&gpu->hmm, ops, "gpu"), 0);
	return gpu;
}

/* The next line frees it: whatever still touches it is KASAN's. */
static void gpu_end(struct kunit *test, struct gpu *gpu)
{
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), 0);
	kfree(gpu);
}

static struct mm_struct *mm_new(struct kunit *test)
{
	struct mm_struct *mm = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, mm);
	return mm;
}

static struct gpu_context *context_new(struct kunit *test)
{
	struct gpu_context *context = kzalloc(sizeof(*context), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, context);
	return context;
}

static struct gpu_context *context_register(struct kunit *test, struct gpu *gpu,
					    struct mm_struct *mm)
{
	struct gpu_context *context = context_new(test);

	KUNIT_ASSERT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), 0);
	return context;
}

/* After hmm_mirror_unregister(); as with gpu_end(). */
static void context_end(struct kunit *test, struct gpu_context *context,
			enum hmm_release_reason reason, int nr_free)
{
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free), nr_free);
	KUNIT_EXPECT_EQ(test, context->reason, reason);
	KUNIT_EXPECT_FALSE(test, context->overlapped);
	KUNIT_EXPECT_FALSE(test, context->free_before_release);
	kfree(context);
}

/*
 * Contract of each call
 */

static void hmm_device_register_bad_arguments(struct kunit *test)
{
	static const struct hmm_device_ops no_release = { .free = gpu_free };
	struct hmm_device device = {};

	KUNIT_EXPECT_EQ(test, hmm_device_register(NULL, &gpu_ops, "x"), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_device_register(&device, NULL, "x"), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_device_register(&device, &no_release, "x"),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_device_register(&device, &gpu_ops, NULL),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_device_register(&device, &gpu_ops, ""),
			-EINVAL);
}

static void hmm_device_register_twice_keeps_first(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);

	KUNIT_EXPECT_EQ(test, hmm_device_register(&gpu->hmm, &gpu_ops, "x"),
			-EBUSY);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), -EBUSY);

	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_UNREGISTER, 0);
	gpu_end(test, gpu);
	mmput(mm);
}

static void hmm_device_register_again(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);

	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), 0);
	KUNIT_EXPECT_EQ(test, hmm_device_register(&gpu->hmm, &gpu_ops, "again"),
			0);
	gpu_end(test, gpu);
}

static void hmm_device_unregister_busy_until_unregister(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);

	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), -EBUSY);
	/* A release does not end the registration */
	mmput(mm);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 1);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), -EBUSY);

	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

static void hmm_mirror_register_bad_arguments(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct hmm_mirror mirror = {};

	KUNIT_EXPECT_EQ(test, hmm_mirror_register(NULL, &gpu->hmm, mm), -EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&mirror, NULL, mm), -EINVAL);
	/* As current->mm of a kernel thread */
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&mirror, &gpu->hmm, NULL),
			-EINVAL);

	mmput(mm);
	gpu_end(test, gpu);
}

static void hmm_mirror_register_without_device_fails(struct kunit *test)
{
	struct gpu *gpu = kzalloc(sizeof(*gpu), GFP_KERNEL);
	struct mm_struct *mm = mm_new(test);
	struct hmm_mirror mirror = {};

	KUNIT_ASSERT_NOT_NULL(test, gpu);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&mirror, &gpu->hmm, mm),
			-ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_device_register(&gpu->hmm, &gpu_ops, "gpu"),
			0);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&mirror, &gpu->hmm, mm),
			-ENODEV);

	mmput(mm);
	kfree(gpu);
}

static void hmm_mirror_register_after_exit_fails(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_new(test);

	mmgrab(mm);
	mmput(mm);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), -ESRCH);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 0);
	mmdrop(mm);

	kfree(context);
	gpu_end(test, gpu);
}

static void hmm_mirror_register_twice_keeps_first(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);

	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), -EBUSY);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &other->hmm,
						  mm), -EBUSY);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 0);
	gpu_end(test, other);

	mmput(mm);
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

static void hmm_mirror_register_again(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct hmm_device unregistered = {};

	hmm_mirror_unregister(&context->mirror);
	/* One that fails leaves it as it was */
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &unregistered,
						  mm), -ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(&context->mirror),
			HMM_RELEASE_UNREGISTER);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(&context->mirror),
			HMM_RELEASE_NONE);
	atomic_set(&context->nr_release, 0);
	mmput(mm);
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

/*
 * Lifetimes, one thing after the other
 */

static void hmm_unregister_releases_once(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_free_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);

	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(&context->mirror),
			HMM_RELEASE_NONE);
	hmm_mirror_unregister(&context->mirror);
	mmput(mm);
	context_end(test, context, HMM_RELEASE_UNREGISTER, 1);
	gpu_end(test, gpu);
}

static void hmm_exit_releases_once(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_free_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);

	mmput(mm);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free), 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(&context->mirror),
			HMM_RELEASE_MM_EXIT);
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 1);
	gpu_end(test, gpu);
}

/* mm_count is pinned until unregister, the process dead or not; mm_users never. */
static void hmm_mirror_pins_mm_count_only(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context;
	int count;

	mmgrab(mm);
	count = atomic_read(&mm->mm_count);
	context = context_register(test, gpu, mm);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_users), 1);
	KUNIT_EXPECT_GT(test, atomic_read(&mm->mm_count), count);

	mmput(mm);
	hmm_test_quiesce(NULL);
	/* That of mm_users is gone, the mirror's is there */
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), count);
	hmm_mirror_unregister(&context->mirror);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), count - 1);
	mmdrop(mm);

	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

static void hmm_one_hmm_for_all_mirrors_of_an_mm(struct kunit *test)
{
	struct gpu *gpu[2] = { gpu_new(test, &gpu_ops), gpu_new(test, &gpu_ops) };
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context[3];
	struct hmm_test_counts counts;
	int i;

	for (i = 0; i < 3; i++)
		context[i] = context_register(test, gpu[i & 1], mm);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 1);
	KUNIT_EXPECT_EQ(test, counts.mirrors, 3);

	/* One that goes leaves the others registered, and room for more */
	hmm_mirror_unregister(&context[0]->mirror);
	context_end(test, context[0], HMM_RELEASE_UNREGISTER, 0);
	context[0] = context_register(test, gpu[0], mm);
	KUNIT_EXPECT_EQ(test, atomic_read(&context[1]->nr_release), 0);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 1);

	mmput(mm);
	for (i = 0; i < 3; i++)
		KUNIT_EXPECT_EQ(test, atomic_read(&context[i]->nr_release), 1);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 0);
	for (i = 2; i >= 0; i--) {
		hmm_mirror_unregister(&context[i]->mirror);
		context_end(test, context[i], HMM_RELEASE_MM_EXIT, 0);
	}
	gpu_end(test, gpu[0]);
	gpu_end(test, gpu[1]);
}

static void hmm_two_devices_torn_down_in_either_order(struct kunit *test)
{
	int first;

	for (first = 0; first < 2; first++) {
		struct gpu *gpu[2] = { gpu_new(test, &gpu_ops),
				       gpu_new(test, &gpu_ops) };
		struct mm_struct *mm = mm_new(test);
		struct gpu_context *context[2] = {
			context_register(test, gpu[0], mm),
			context_register(test, gpu[1], mm),
		};

		hmm_mirror_unregister(&context[first]->mirror);
		context_end(test, context[first], HMM_RELEASE_UNREGISTER, 0);
		gpu_end(test, gpu[first]);
		mmput(mm);
		hmm_mirror_unregister(&context[!first]->mirror);
		context_end(test, context[!first], HMM_RELEASE_MM_EXIT, 0);
		gpu_end(test, gpu[!first]);
	}
}

static void hmm_unregister_waits_for_references(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_free_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct job unregister;

	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_get(&context->mirror),
			    &context->mirror);
	gate_close(HMM_POINT_UNREGISTER_WAIT);
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNREGISTER_WAIT));
	gate_open(HMM_POINT_UNREGISTER_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&unregister));
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free), 0);

	hmm_mirror_put(&context->mirror);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, context, HMM_RELEASE_UNREGISTER, 1);
	gpu_end(test, gpu);
	mmput(mm);
}

/*
 * Races, held open
 */

/* Exit frees pages after ->release() has returned, also that of an unregister. */
static void hmm_exit_waits_for_release_of_unregister(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_free_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct job unregister, exit;

	gate_close(GATE_IN_RELEASE);
	gate_close(HMM_POINT_RELEASE_WAIT);
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	job_start(&exit, job_mmput, mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_RELEASE_WAIT));
	gate_open(HMM_POINT_RELEASE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&exit));

	gate_open(GATE_IN_RELEASE);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	/* It slept there, and did not come again and again */
	KUNIT_EXPECT_EQ(test, gate_arrivals(HMM_POINT_RELEASE_WAIT), 1);
	context_end(test, context, HMM_RELEASE_UNREGISTER, 1);
	gpu_end(test, gpu);
}

static void hmm_unregister_waits_for_release_of_exit(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_free_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct job unregister, exit;

	gate_close(GATE_IN_RELEASE);
	gate_close(HMM_POINT_RELEASE_WAIT);
	job_start(&exit, job_mmput, mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_RELEASE_WAIT));
	gate_open(HMM_POINT_RELEASE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&unregister));
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free), 0);

	gate_open(GATE_IN_RELEASE);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, context, HMM_RELEASE_MM_EXIT, 1);
	gpu_end(test, gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
}

/*
 * The race of the 2015 review: exit is through with ->release(), and not with the
 * mirror. Everything is freed as soon as the API allows.
 */
static void hmm_unregister_waits_for_exit_to_let_go(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct job unregister, exit;

	gate_close(HMM_POINT_EXIT_DONE);
	gate_close(HMM_POINT_UNREGISTER_WAIT);
	job_start(&exit, job_mmput, mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_EXIT_DONE));
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), -EBUSY);
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNREGISTER_WAIT));
	gate_open(HMM_POINT_UNREGISTER_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&unregister));

	gate_open(HMM_POINT_EXIT_DONE);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
}

/*
 * Exit looks at a mirror that it has no reference on. Unregister drops the last
 * one, and waits for that look by a grace period.
 */
static void hmm_unregister_waits_for_exit_that_walks(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct job unregister, exit;

	gate_close(HMM_POINT_EXIT_WALK);
	gate_close(HMM_POINT_UNREGISTER_WAIT);
	job_start(&exit, job_mmput, mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_EXIT_WALK));
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNREGISTER_WAIT));
	gate_open(HMM_POINT_UNREGISTER_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&unregister));

	gate_open(HMM_POINT_EXIT_WALK);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, context, HMM_RELEASE_UNREGISTER, 0);
	gpu_end(test, gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
}

/* Exit holds a mirror that it has not released yet: unregister wins and waits. */
static void hmm_unregister_overtakes_exit_that_found_it(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct job unregister, exit;

	gate_close(HMM_POINT_EXIT_FOUND);
	gate_close(HMM_POINT_UNREGISTER_WAIT);
	job_start(&exit, job_mmput, mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_EXIT_FOUND));
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNREGISTER_WAIT));
	gate_open(HMM_POINT_UNREGISTER_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&unregister));

	gate_open(HMM_POINT_EXIT_FOUND);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, context, HMM_RELEASE_UNREGISTER, 0);
	gpu_end(test, gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
}

/* No mirror is registered, but one thread has not let go of the device yet. */
static void hmm_device_unregister_waits_for_unregister(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_free_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct job unregister, remove;

	gate_close(HMM_POINT_DEVICE_PUT);
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_PUT));
	gate_close(HMM_POINT_DEVICE_WAIT);
	job_start(&remove, job_device_unregister, gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_WAIT));
	gate_open(HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&remove));

	gate_open(HMM_POINT_DEVICE_PUT);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	kfree(gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, context, HMM_RELEASE_UNREGISTER, 1);
	mmput(mm);
}

static void hmm_device_unregister_waits_for_free(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_free_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct hmm_mirror late = {};
	struct job unregister, remove;

	gate_close(GATE_IN_FREE);
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_FREE));
	gate_close(HMM_POINT_DEVICE_WAIT);
	job_start(&remove, job_device_unregister, gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_WAIT));
	gate_open(HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&remove));
	/* The device is going: it takes no more mirrors, nor comes back */
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&late, &gpu->hmm, mm),
			-ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_device_register(&gpu->hmm, &gpu_ops, "x"),
			-EBUSY);

	gate_open(GATE_IN_FREE);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	kfree(gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, context, HMM_RELEASE_UNREGISTER, 1);
	mmput(mm);
}

struct registration {
	struct gpu *gpu;
	struct mm_struct *mm;
	struct gpu_context *context;
	int ret;
};

static void job_register(void *arg)
{
	struct registration *r = arg;

	r->ret = hmm_mirror_register(&r->context->mirror, &r->gpu->hmm, r->mm);
}

/* The device goes while a mirror is on its way in: one of the two gives up. */
static void hmm_register_loses_to_device_unregister(struct kunit *test)
{
	struct registration r = {
		.gpu = gpu_new(test, &gpu_ops),
		.mm = mm_new(test),
		.context = context_new(test),
	};
	struct hmm_test_counts counts;
	struct job add, remove;

	gate_close(HMM_POINT_REGISTER_ARMED);
	job_start(&add, job_register, &r);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_REGISTER_ARMED));
	gate_close(HMM_POINT_DEVICE_WAIT);
	job_start(&remove, job_device_unregister, r.gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_WAIT));
	gate_open(HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&remove));

	gate_open(HMM_POINT_REGISTER_ARMED);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	kfree(r.gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&add));
	KUNIT_EXPECT_EQ(test, r.ret, -ENODEV);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&r.context->nr_release), 0);
	kfree(r.context);
	mmput(r.mm);
}

/* The last user goes while a mirror is on its way in: it is released all the same. */
static void hmm_register_beside_exit_is_released(struct kunit *test)
{
	struct registration r = {
		.gpu = gpu_new(test, &gpu_free_ops),
		.mm = mm_new(test),
		.context = context_new(test),
	};
	struct job add;

	gate_close(HMM_POINT_REGISTER_ARMED);
	gate_close(GATE_IN_RELEASE);
	job_start(&add, job_register, &r);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_REGISTER_ARMED));
	mmput(r.mm);
	gate_open(HMM_POINT_REGISTER_ARMED);
	KUNIT_EXPECT_TRUE(test, job_end(&add));
	KUNIT_EXPECT_EQ(test, r.ret, 0);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	gate_open(GATE_IN_RELEASE);

	hmm_mirror_unregister(&r.context->mirror);
	context_end(test, r.context, HMM_RELEASE_MM_EXIT, 1);
	gpu_end(test, r.gpu);
}

/* Two threads come first, each with a struct hmm of its own: one of these is kept. */
static void hmm_registers_at_once_share_one_hmm(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct registration slow = {
		.gpu = gpu, .mm = mm, .context = context_new(test),
	};
	struct hmm_test_counts counts;
	struct gpu_context *quick;
	struct job add;

	gate_close(HMM_POINT_REGISTER_CREATED);
	job_start(&add, job_register, &slow);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_REGISTER_CREATED));
	quick = context_register(test, gpu, mm);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 2);

	gate_open(HMM_POINT_REGISTER_CREATED);
	KUNIT_EXPECT_TRUE(test, job_end(&add));
	KUNIT_EXPECT_EQ(test, slow.ret, 0);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 1);
	KUNIT_EXPECT_EQ(test, counts.mirrors, 2);

	mmput(mm);
	hmm_mirror_unregister(&quick->mirror);
	context_end(test, quick, HMM_RELEASE_MM_EXIT, 0);
	hmm_mirror_unregister(&slow.context->mirror);
	context_end(test, slow.context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

static bool kunit_invalidate(struct mmu_interval_notifier *notifier,
			     const struct mmu_notifier_range *range,
			     unsigned long cur_seq)
{
	mmu_interval_set_seq(notifier, cur_seq);
	gate_pass(GATE_IN_INVALIDATE);
	return true;
}

static const struct mmu_interval_notifier_ops kunit_notifier_ops = {
	.invalidate = kunit_invalidate,
};

static void job_munmap(void *mm)
{
	kthread_use_mm(mm);
	WARN_ON(vm_munmap(SOME_ADDRESS, PAGE_SIZE));
	kthread_unuse_mm(mm);
}

/*
 * While another driver of the mm is in an invalidation, a notifier that is inserted
 * is not in the interval tree: an exit then would not be heard, for ever.
 */
static void hmm_register_waits_for_running_invalidation(struct kunit *test)
{
	struct registration r = {
		.gpu = gpu_new(test, &gpu_ops),
		.mm = mm_new(test),
		.context = context_new(test),
	};
	struct mmu_interval_notifier notifier;
	struct job unmap, add;

	r.mm->task_size = TASK_SIZE;
	kthread_use_mm(r.mm);
	KUNIT_EXPECT_EQ(test, vm_mmap(NULL, SOME_ADDRESS, PAGE_SIZE,
				      PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
				      0), SOME_ADDRESS);
	kthread_unuse_mm(r.mm);
	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&notifier, r.mm,
							   SOME_ADDRESS,
							   PAGE_SIZE,
							   &kunit_notifier_ops),
			0);

	gate_close(GATE_IN_INVALIDATE);
	job_start(&unmap, job_munmap, r.mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_INVALIDATE));
	job_start(&add, job_register, &r);
	KUNIT_EXPECT_TRUE(test, job_waits(&add));

	gate_open(GATE_IN_INVALIDATE);
	KUNIT_EXPECT_TRUE(test, job_end(&add));
	KUNIT_EXPECT_EQ(test, r.ret, 0);
	KUNIT_EXPECT_TRUE(test, job_end(&unmap));
	mmu_interval_notifier_remove(&notifier);
	mmput(r.mm);
	hmm_mirror_unregister(&r.context->mirror);
	context_end(test, r.context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, r.gpu);
}

/* As it comes, on two CPUs; the device is removed and all is freed at once. */
static void hmm_exit_against_unregister_many_times(struct kunit *test)
{
	int i, by_exit = 0;

	for (i = 0; i < NR_RACES; i++) {
		struct gpu *gpu = gpu_new(test, i & 1 ? &gpu_ops : &gpu_free_ops);
		struct mm_struct *mm = mm_new(test);
		struct gpu_context *context = context_register(test, gpu, mm);
		enum hmm_release_reason reason;
		struct job exit, unregister;

		if (i & 2)
			job_start(&unregister, job_unregister, context);
		job_start(&exit, job_mmput, mm);
		if (!(i & 2))
			job_start(&unregister, job_unregister, context);
		KUNIT_EXPECT_TRUE(test, job_end(&unregister));
		gpu_end(test, gpu);
		reason = context->reason;
		KUNIT_EXPECT_NE(test, reason, HMM_RELEASE_NONE);
		by_exit += reason == HMM_RELEASE_MM_EXIT;
		context_end(test, context, reason, !(i & 1));
		KUNIT_EXPECT_TRUE(test, job_end(&exit));
	}
	kunit_info(test, "%d of %d released by exit\n", by_exit, NR_RACES);
}

/*
 * Misuse: reported, refused, survived
 */

static void hmm_unregister_in_callback_is_refused(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_new(test);

	context->misuse = true;
	context->misuse_gpu = other;
	KUNIT_ASSERT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), 0);
	pr_info("hmm-test: expect-warning in a callback of HMM\n");
	mmput(mm);
	pr_info("hmm-test: end-expect\n");
	KUNIT_EXPECT_EQ(test, context->misuse_ret, -EBUSY);
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
	gpu_end(test, other);
}

static void hmm_unregister_of_unregistered_is_refused(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct hmm_mirror never_mirror = {};
	struct hmm_device never = {};
	struct job remove;

	hmm_mirror_unregister(&context->mirror);
	pr_info("hmm-test: expect-warning of an unregistered (mirror|device)\n");
	hmm_mirror_unregister(&context->mirror);
	hmm_mirror_unregister(&never_mirror);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&never), -EINVAL);
	/* Two at once */
	gate_close(HMM_POINT_DEVICE_WAIT);
	job_start(&remove, job_device_unregister, gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_WAIT));
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), -EINVAL);
	pr_info("hmm-test: end-expect\n");

	gate_open(HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	context_end(test, context, HMM_RELEASE_UNREGISTER, 0);
	kfree(gpu);
	mmput(mm);
}

static int hmm_kunit_suite_init(struct kunit_suite *suite)
{
	unsigned int at;
	int ret;

	for (at = 0; at < NR_GATES; at++) {
		init_completion(&gates[at].reached);
		init_completion(&gates[at].open);
	}
	jobs_wq = alloc_workqueue("hmm_kunit", WQ_UNBOUND, 0);
	if (!jobs_wq)
		return -ENOMEM;
	ret = hmm_test_set_hook(hmm_kunit_hook);
	if (ret)
		destroy_workqueue(jobs_wq);
	return ret;
}

static void hmm_kunit_suite_exit(struct kunit_suite *suite)
{
	hmm_test_clear_hook();
	destroy_workqueue(jobs_wq);
}

static void hmm_kunit_exit(struct kunit *test)
{
	struct hmm_test_counts counts;

	/* Only after a failed test is anyone still held */
	gates_open_all();
	/* Each test leaves the world as it found it */
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.devices, 0);
	KUNIT_EXPECT_EQ(test, counts.mirrors, 0);
	KUNIT_EXPECT_EQ(test, counts.hmms, 0);
}

static struct kunit_case hmm_kunit_cases[] = {
	KUNIT_CASE(hmm_device_register_bad_arguments),
	KUNIT_CASE(hmm_device_register_twice_keeps_first),
	KUNIT_CASE(hmm_device_register_again),
	KUNIT_CASE(hmm_device_unregister_busy_until_unregister),
	KUNIT_CASE(hmm_mirror_register_bad_arguments),
	KUNIT_CASE(hmm_mirror_register_without_device_fails),
	KUNIT_CASE(hmm_mirror_register_after_exit_fails),
	KUNIT_CASE(hmm_mirror_register_twice_keeps_first),
	KUNIT_CASE(hmm_mirror_register_again),
	KUNIT_CASE(hmm_unregister_releases_once),
	KUNIT_CASE(hmm_exit_releases_once),
	KUNIT_CASE(hmm_mirror_pins_mm_count_only),
	KUNIT_CASE(hmm_one_hmm_for_all_mirrors_of_an_mm),
	KUNIT_CASE(hmm_two_devices_torn_down_in_either_order),
	KUNIT_CASE(hmm_unregister_waits_for_references),
	KUNIT_CASE(hmm_exit_waits_for_release_of_unregister),
	KUNIT_CASE(hmm_unregister_waits_for_release_of_exit),
	KUNIT_CASE(hmm_unregister_waits_for_exit_to_let_go),
	KUNIT_CASE(hmm_unregister_waits_for_exit_that_walks),
	KUNIT_CASE(hmm_unregister_overtakes_exit_that_found_it),
	KUNIT_CASE(hmm_device_unregister_waits_for_unregister),
	KUNIT_CASE(hmm_device_unregister_waits_for_free),
	KUNIT_CASE(hmm_register_loses_to_device_unregister),
	KUNIT_CASE(hmm_register_beside_exit_is_released),
	KUNIT_CASE(hmm_registers_at_once_share_one_hmm),
	KUNIT_CASE(hmm_register_waits_for_running_invalidation),
	KUNIT_CASE_SLOW(hmm_exit_against_unregister_many_times),
	KUNIT_CASE(hmm_unregister_in_callback_is_refused),
	KUNIT_CASE(hmm_unregister_of_unregistered_is_refused),
	{}
};

static struct kunit_suite hmm_kunit_suite = {
	.name = "hmm",
	.suite_init = hmm_kunit_suite_init,
	.suite_exit = hmm_kunit_suite_exit,
	.exit = hmm_kunit_exit,
	.test_cases = hmm_kunit_cases,
};

kunit_test_suite(hmm_kunit_suite);

/* mm_alloc(); MODULE_IMPORT_NS() takes other arguments in older kernels */
MODULE_INFO(import_ns, "EXPORTED_FOR_KUNIT_TESTING");
MODULE_DESCRIPTION("KUnit tests of the HMM registration core");
MODULE_LICENSE("GPL");
