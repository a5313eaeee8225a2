// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the HMM registration core
 *
 * An address space is made by mm_alloc() and dies by the mmput() that drops its
 * one user: exit_mmap() and what it calls run inside that mmput(), in the thread
 * that the test chose.
 *
 * Races are run in one order at a time. A gate stands at a test point of
 * mm/hmm_device.c, or in a callback; the first thread that comes to it stays
 * until the test opens it. That a thread waits where it must is seen by its
 * arrival at the point before that wait, and then by its not coming back for
 * QUIET_MS, which on a right core can never fail, and on a wrong one gives it
 * ample time.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <kunit/test.h>
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hmm_device.h>
#include <linux/hmm_test.h>
#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/uio.h>
#include <linux/workqueue.h>

/* Before a test is taken to hang */
#define LIMIT_MS	20000
#define QUIET_MS	100
/* That a callback stays: longer than what a test does meanwhile, be it slow */
#define HOLD_MS		(5 * LIMIT_MS)
#define SPIN_MS		500

#define NR_RACES	300

/* Gates inside the callbacks and around jobs, beside those at the test points */
enum {
	GATE_IN_RELEASE = HMM_NR_POINTS,
	GATE_IN_FREE,
	GATE_IN_INVALIDATE,
	GATE_BEFORE_JOB,
	GATE_AFTER_JOB,
	NR_GATES
};

/* Where a page can be mapped in an empty mm */
#define SOME_ADDRESS	0x10000000UL

struct gate {
	atomic_t arrivals;
	bool closed;
	unsigned int cpu;	/* of who is held */
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
	enum hmm_release_reason reason;
	/* What ->release() does besides, if anything */
	void (*in_release)(struct gpu_context *context);
	struct gpu_context *other;
	struct gpu *gpu;
	struct mm_struct *mm;
	struct completion entered;	/* ->release() has begun */
	struct completion came;
	int ret;
};

struct scene {
	struct gpu *gpu;
	struct mm_struct *mm;
	struct gpu_context *context;
	int path;
};

struct job {
	struct work_struct work;
	void (*fn)(void *arg);
	void *arg;
	struct scene scene;
	struct task_struct *task;	/* who runs it, from GATE_BEFORE_JOB on */
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

/*
 * The same without sleeping, for a gate that spins with interrupts off: its CPU may be
 * the one that would have to run who is woken.
 */
static bool gate_reached_awake(unsigned int at)
{
	ktime_t limit = ktime_add_ms(ktime_get(), LIMIT_MS);

	while (!completion_done(&gates[at].reached) &&
	       ktime_before(ktime_get(), limit))
		cond_resched();
	return completion_done(&gates[at].reached);
}

/* Since it was closed */
static int gate_arrivals(unsigned int at)
{
	return atomic_read(&gates[at].arrivals);
}

/*
 * In a read section of RCU or under a spinlock nobody may sleep. Not for long, for
 * what the test waits for may need this CPU; if so the test sees less.
 */
static bool gate_spins(unsigned int at)
{
	return at == HMM_POINT_FIND_WALK || at == HMM_POINT_FIND_FOUND ||
	       at == HMM_POINT_PIN_WALK || at == HMM_POINT_UNPLUG_OWNED;
}

static void gate_pass(unsigned int at)
{
	atomic_inc(&gates[at].arrivals);
	if (!xchg(&gates[at].closed, false))
		return;
	gates[at].cpu = raw_smp_processor_id();
	complete(&gates[at].reached);
	if (gate_spins(at)) {
		/* Not jiffies: this CPU may be the one that counts them */
		ktime_t limit = ktime_add_ms(ktime_get(), SPIN_MS);

		while (!completion_done(&gates[at].open) &&
		       ktime_before(ktime_get(), limit))
			cpu_relax();
	} else {
		wait_for_completion(&gates[at].open);
	}
}

static void gates_open_all(void)
{
	unsigned int at;

	for (at = 0; at < NR_GATES; at++) {
		WRITE_ONCE(gates[at].closed, false);
		gate_open(at);
	}
}

/* For what nobody tells of. */
static bool counts_to(const atomic_t *counter, int value)
{
	unsigned long limit = jiffies + msecs_to_jiffies(LIMIT_MS);

	while (atomic_read(counter) != value && time_before(jiffies, limit))
		usleep_range(1000, 2000);
	return atomic_read(counter) == value;
}

static void hmm_kunit_hook(enum hmm_test_point point, struct hmm_mirror *mirror)
{
	gate_pass(point);
}

static void job_work(struct work_struct *work)
{
	struct job *job = container_of(work, struct job, work);

	job->task = current;
	gate_pass(GATE_BEFORE_JOB);
	job->fn(job->arg);
	gate_pass(GATE_AFTER_JOB);
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

static void job_synchronize(void *unused)
{
	hmm_synchronize();
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
	complete_all(&context->entered);
	if (context->in_release)
		context->in_release(context);
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
	struct gpu *gpu = kzalloc_obj(*gpu);

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

static void mm_map_page(struct kunit *test, struct mm_struct *mm)
{
	mm->task_size = TASK_SIZE;
	kthread_use_mm(mm);
	KUNIT_EXPECT_EQ(test, vm_mmap(NULL, SOME_ADDRESS, PAGE_SIZE,
				      PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
				      0), SOME_ADDRESS);
	kthread_unuse_mm(mm);
}

static struct gpu_context *context_new(struct kunit *test)
{
	struct gpu_context *context = kzalloc_obj(*context);

	KUNIT_ASSERT_NOT_NULL(test, context);
	init_completion(&context->entered);
	init_completion(&context->came);
	return context;
}

static struct gpu_context *context_register(struct kunit *test, struct gpu *gpu,
					    struct mm_struct *mm)
{
	struct gpu_context *context = context_new(test);

	context->gpu = gpu;
	context->mm = mm;
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
	struct gpu *gpu = kzalloc_obj(*gpu);
	struct mm_struct *mm = mm_new(test);
	struct hmm_mirror mirror = {};
	unsigned int state;

	KUNIT_ASSERT_NOT_NULL(test, gpu);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&mirror, &gpu->hmm, mm),
			-ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_device_register(&gpu->hmm, &gpu_ops, "gpu"),
			0);
	state = READ_ONCE(gpu->hmm.state);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&mirror, &gpu->hmm, mm),
			-ENODEV);
	/* As it is to one who looked too early, and comes for a reference now */
	WRITE_ONCE(gpu->hmm.state, state);
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
	struct gpu *other = gpu_new(test, &gpu_free_ops);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct hmm_device unregistered = {};
	struct job synchronize;

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
	/* Nothing is left of the first time: there is a release to wait for */
	gate_close(GATE_IN_RELEASE);
	hmm_mirror_kill(&context->mirror);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	job_start(&synchronize, job_synchronize, NULL);
	KUNIT_EXPECT_TRUE(test, job_waits(&synchronize));
	gate_open(GATE_IN_RELEASE);
	KUNIT_EXPECT_TRUE(test, job_end(&synchronize));
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 2);
	hmm_mirror_unregister(&context->mirror);
	/* And nobody waits as for the first two */
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &other->hmm,
						  mm), 0);
	hmm_mirror_get(&context->mirror);
	hmm_mirror_unregister_async(&context->mirror);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 3);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free), 0);
	hmm_mirror_put(&context->mirror);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free), 1);

	atomic_set(&context->nr_release, 0);
	atomic_set(&context->nr_free, 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), 0);
	mmput(mm);
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
	gpu_end(test, other);
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
	/* What HMM keeps of the mm is out of reach now */
	KUNIT_EXPECT_NULL(test, (__force void *)context->mirror.hmm);
	KUNIT_EXPECT_FALSE(test, hmm_mirror_mm_get(&context->mirror));
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
	for (i = 2; i >= 0; i--) {
		hmm_mirror_unregister(&context[i]->mirror);
		context_end(test, context[i], HMM_RELEASE_MM_EXIT, 0);
	}
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 0);
	gpu_end(test, gpu[0]);
	gpu_end(test, gpu[1]);
}

/* The lock is one of their place in the table. */
static bool mms_share_a_place(struct mm_struct *a, struct mm_struct *b)
{
	return hmm_test_lock(HMM_TEST_LOCK_OF_TABLE, a) ==
	       hmm_test_lock(HMM_TEST_LOCK_OF_TABLE, b);
}

/* Of more mms than the table has places, two share one. */
#define NR_MMS		300

static void hmm_mms_in_one_place_are_told_apart(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct **mm, *two[2] = {};
	struct gpu_context *context[2];
	struct hmm_mirror *found;
	int i, j;

	mm = kunit_kcalloc(test, NR_MMS, sizeof(*mm), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, mm);
	for (i = 0; i < NR_MMS && !two[0]; i++) {
		mm[i] = mm_new(test);
		for (j = 0; j < i && !two[0]; j++) {
			if (mms_share_a_place(mm[i], mm[j])) {
				two[0] = mm[i];
				two[1] = mm[j];
			}
		}
	}
	KUNIT_ASSERT_NOT_NULL(test, two[0]);
	for (j = 0; j < 2; j++)
		context[j] = context_register(test, gpu, two[j]);
	for (j = 0; j < 2; j++) {
		found = hmm_mirror_find(&gpu->hmm, two[j]);
		KUNIT_EXPECT_PTR_EQ(test, found, &context[j]->mirror);
		if (found)
			hmm_mirror_put(found);
		KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(&context[j]->mirror));
		KUNIT_EXPECT_EQ(test, atomic_read(&two[j]->mm_users), 2);
		hmm_mirror_mm_put(&context[j]->mirror);
		KUNIT_EXPECT_EQ(test, atomic_read(&two[j]->mm_users), 1);
	}
	for (j = 0; j < NR_MMS && mm[j]; j++)
		mmput(mm[j]);
	for (j = 0; j < 2; j++) {
		KUNIT_EXPECT_EQ(test, atomic_read(&context[j]->nr_release), 1);
		hmm_mirror_unregister(&context[j]->mirror);
		context_end(test, context[j], HMM_RELEASE_MM_EXIT, 0);
	}
	gpu_end(test, gpu);
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
	/* What exit does is in no read section: a grace period is no fence here */
	synchronize_rcu();
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

/*
 * What was the last use is the last: everything goes while exit, and the thread that
 * drops the device, are one line behind it.
 */
static void hmm_nothing_is_touched_after_the_last_drop(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct job exit, unregister;

	gate_close(HMM_POINT_EXIT_DROPPED);
	job_start(&exit, job_mmput, mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_EXIT_DROPPED));
	gate_close(HMM_POINT_DEVICE_DROPPED);
	job_start(&unregister, job_unregister, context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_DROPPED));
	/* Without ->free() it is the caller's only once that has returned */
	gpu_end(test, gpu);
	gate_open(HMM_POINT_DEVICE_DROPPED);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gate_open(HMM_POINT_EXIT_DROPPED);
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

	/* Who drops the last reference is not through with that when it goes */
	gate_close(HMM_POINT_DEVICE_DROPPED);
	gate_open(HMM_POINT_DEVICE_PUT);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_DROPPED));
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	kfree(gpu);
	gate_open(HMM_POINT_DEVICE_DROPPED);
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
	atomic_t *ready;
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

	/* All of its pins are counted, and none too many */
	KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(&quick->mirror));
	mmput(mm);
	KUNIT_EXPECT_FALSE(test, hmm_mirror_mm_get(&slow.context->mirror));
	gate_close(GATE_IN_RELEASE);
	hmm_mirror_mm_put(&quick->mirror);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	gate_open(GATE_IN_RELEASE);
	hmm_mirror_unregister(&quick->mirror);
	context_end(test, quick, HMM_RELEASE_MM_EXIT, 0);
	hmm_mirror_unregister(&slow.context->mirror);
	context_end(test, slow.context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

/*
 * The last mirror of an mm goes, and its struct hmm can still be seen: a new mirror
 * needs a new one. Each of the two then hears of the exit, in either order.
 */
static void hmm_register_beside_last_unregister(struct kunit *test)
{
	int exit_first;

	for (exit_first = 0; exit_first < 2; exit_first++) {
		struct gpu *gpu = gpu_new(test, &gpu_ops);
		struct mm_struct *mm = mm_new(test);
		struct gpu_context *first = context_register(test, gpu, mm);
		struct gpu_context *second;
		struct hmm_test_counts counts;
		struct job unregister;

		gate_close(HMM_POINT_MM_UNUSED);
		job_start(&unregister, job_unregister, first);
		KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_MM_UNUSED));
		/* What has no reference any more is out of reach by then */
		KUNIT_EXPECT_NULL(test, (__force void *)first->mirror.hmm);
		second = context_register(test, gpu, mm);
		hmm_test_quiesce(&counts);
		KUNIT_EXPECT_EQ(test, counts.hmms, 2);
		KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_find(&gpu->hmm, mm),
				    &second->mirror);
		hmm_mirror_put(&second->mirror);

		if (exit_first)
			mmput(mm);
		gate_open(HMM_POINT_MM_UNUSED);
		KUNIT_EXPECT_TRUE(test, job_end(&unregister));
		if (!exit_first)
			mmput(mm);
		context_end(test, first, HMM_RELEASE_UNREGISTER, 0);
		hmm_mirror_unregister(&second->mirror);
		context_end(test, second, HMM_RELEASE_MM_EXIT, 0);
		gpu_end(test, gpu);
	}
}

struct churn {
	struct gpu *gpu;
	struct mm_struct *mm;
	struct gpu_context *context;
	int failed;
};

static void job_churn(void *arg)
{
	struct churn *churn = arg;
	struct hmm_mirror *found;
	int i;

	for (i = 0; i < NR_RACES; i++) {
		atomic_set(&churn->context->nr_release, 0);
		churn->failed += !!hmm_mirror_register(&churn->context->mirror,
						       &churn->gpu->hmm,
						       churn->mm);
		/* Its own at least */
		found = hmm_mirror_find(&churn->gpu->hmm, churn->mm);
		churn->failed += !found;
		if (found)
			hmm_mirror_put(found);
		hmm_mirror_unregister(&churn->context->mirror);
		churn->failed += atomic_read(&churn->context->nr_release) != 1;
	}
}

/* First and last mirrors of one mm, again and again: none may fail or be lost. */
static void hmm_registers_and_unregisters_on_one_mm(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct churn churn[4] = {};
	struct job jobs[4];
	int i;

	for (i = 0; i < ARRAY_SIZE(jobs); i++) {
		churn[i].gpu = gpu;
		churn[i].mm = mm;
		churn[i].context = context_new(test);
		job_start(&jobs[i], job_churn, &churn[i]);
	}
	for (i = 0; i < ARRAY_SIZE(jobs); i++) {
		KUNIT_EXPECT_TRUE(test, job_end(&jobs[i]));
		KUNIT_EXPECT_EQ(test, churn[i].failed, 0);
		context_end(test, churn[i].context, HMM_RELEASE_UNREGISTER, 0);
	}
	mmput(mm);
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

	mm_map_page(test, r.mm);
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

/*
 * An unregister must not wait for what another driver does to the mm; and a register
 * after it meets an invalidation that began before there was a mirror.
 */
static void hmm_unregister_and_register_during_an_invalidation(struct kunit *test)
{
	struct registration r = {
		.gpu = gpu_new(test, &gpu_ops),
		.mm = mm_new(test),
		.context = context_new(test),
	};
	struct gpu_context *first = context_register(test, r.gpu, r.mm);
	struct mmu_interval_notifier notifier;
	struct job unmap, unregister, synchronize, add;

	mm_map_page(test, r.mm);
	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&notifier, r.mm,
							   SOME_ADDRESS,
							   PAGE_SIZE,
							   &kunit_notifier_ops),
			0);
	gate_close(GATE_IN_INVALIDATE);
	job_start(&unmap, job_munmap, r.mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_INVALIDATE));
	job_start(&unregister, job_unregister, first);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	context_end(test, first, HMM_RELEASE_UNREGISTER, 0);
	/* HMM cannot let go of the mm meanwhile, and this says when it has */
	job_start(&synchronize, job_synchronize, NULL);
	KUNIT_EXPECT_TRUE(test, job_waits(&synchronize));
	job_start(&add, job_register, &r);
	KUNIT_EXPECT_TRUE(test, job_waits(&add));

	gate_open(GATE_IN_INVALIDATE);
	KUNIT_EXPECT_TRUE(test, job_end(&synchronize));
	KUNIT_EXPECT_TRUE(test, job_end(&add));
	KUNIT_EXPECT_TRUE(test, job_end(&unmap));
	KUNIT_EXPECT_EQ(test, r.ret, 0);
	mmu_interval_notifier_remove(&notifier);
	mmput(r.mm);
	hmm_mirror_unregister(&r.context->mirror);
	context_end(test, r.context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, r.gpu);
}

/* The release of one device is on its way: a second one may not be left behind. */
static void hmm_register_during_exit_fails(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct hmm_mirror late = {};
	struct job exit;

	gate_close(GATE_IN_RELEASE);
	job_start(&exit, job_mmput, mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&late, &other->hmm, mm),
			-ESRCH);
	gpu_end(test, other);
	gate_open(GATE_IN_RELEASE);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

/* One of two devices was not to be had: exit has the other to release, only. */
static void hmm_exit_after_a_second_device_failed(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct gpu *gone = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct gpu_context *failed = context_new(test);

	hmm_device_unplug(&gone->hmm);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&failed->mirror, &gone->hmm,
						  mm), -ENODEV);
	gpu_end(test, gone);
	mmput(mm);
	KUNIT_EXPECT_EQ(test, atomic_read(&failed->nr_release), 0);
	kfree(failed);
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

/* The count of mirrors must not wrap. Nobody has as many: it is set. */
static void hmm_register_on_a_full_device_fails(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct hmm_test_counts counts;
	struct hmm_mirror late = {};

	WRITE_ONCE(gpu->hmm.nr_registered, UINT_MAX / 4);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&late, &gpu->hmm, mm),
			-EOVERFLOW);
	WRITE_ONCE(gpu->hmm.nr_registered, 0);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 0);
	KUNIT_EXPECT_EQ(test, counts.mirrors, 0);
	mmput(mm);
	gpu_end(test, gpu);
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
 * Every way to release, and what they are to each other
 */

/*
 * Who may release a mirror, and how it is brought to begin. Each is held in
 * ->release() by the test that wants it so.
 */
struct release_path {
	const char *name;
	enum hmm_release_reason reason;
	bool ends_registration;
};

enum { PATH_EXIT, PATH_UNREGISTER, PATH_ASYNC, PATH_UNPLUG, PATH_KILL, NR_PATHS };

static const struct release_path paths[NR_PATHS] = {
	[PATH_EXIT] = { "exit", HMM_RELEASE_MM_EXIT },
	[PATH_UNREGISTER] = { "unregister", HMM_RELEASE_UNREGISTER, true },
	[PATH_ASYNC] = { "async", HMM_RELEASE_UNREGISTER, true },
	[PATH_UNPLUG] = { "unplug", HMM_RELEASE_DEVICE_GONE },
	[PATH_KILL] = { "kill", HMM_RELEASE_ERROR },
};

struct pair {
	int winner;
	int loser;
};

static void scene_run(struct scene *s, int path)
{
	switch (path) {
	case PATH_EXIT:
		mmput(s->mm);
		break;
	case PATH_UNREGISTER:
		hmm_mirror_unregister(&s->context->mirror);
		break;
	case PATH_ASYNC:
		hmm_mirror_unregister_async(&s->context->mirror);
		break;
	case PATH_UNPLUG:
		hmm_device_unplug(&s->gpu->hmm);
		break;
	case PATH_KILL:
		hmm_mirror_kill(&s->context->mirror);
		break;
	}
}

static void job_path(void *arg)
{
	struct scene *s = arg;

	scene_run(s, s->path);
}

/* A thread of its own for what may wait. @job holds a copy of the scene's path. */
static void scene_start(struct scene *s, struct job *job, int path)
{
	job->scene = *s;
	job->scene.path = path;
	job_start(job, job_path, &job->scene);
}

static void scene_set(struct kunit *test, struct scene *s)
{
	s->gpu = gpu_new(test, &gpu_free_ops);
	s->mm = mm_new(test);
	s->context = context_register(test, s->gpu, s->mm);
}

/* Do what neither of the two paths has done, and see that nothing is left. */
static void scene_end(struct kunit *test, struct scene *s, int a, int b)
{
	if (!paths[a].ends_registration && !paths[b].ends_registration)
		hmm_mirror_unregister(&s->context->mirror);
	if (a != PATH_EXIT && b != PATH_EXIT)
		mmput(s->mm);
	hmm_synchronize();
	context_end(test, s->context, paths[a].reason, 1);
	gpu_end(test, s->gpu);
}

static const void *pair_gen(struct pair *pair, char *desc)
{
	/* The same one twice is misuse, or nothing of interest */
	do {
		if (++pair->loser == NR_PATHS) {
			pair->loser = 0;
			pair->winner++;
		}
		if (pair->winner == NR_PATHS)
			return NULL;
	} while (pair->winner == pair->loser ||
		 (paths[pair->winner].ends_registration &&
		  pair->loser != PATH_EXIT && pair->loser != PATH_UNPLUG));

	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "%s_before_%s",
		 paths[pair->winner].name, paths[pair->loser].name);
	return pair;
}

/*
 * G1, G2, G3. Whoever comes second finds the release owned. Exit, unregister and
 * unplug wait until it has returned; the others return at once.
 */
static void hmm_second_one_waits_for_the_release_of_the_first(struct kunit *test)
{
	/* Where the first one is held: before, in and after ->release() */
	static const unsigned int held[] = {
		HMM_POINT_RELEASE_OWNED,
		GATE_IN_RELEASE,
		HMM_POINT_RELEASE_RETURNED,
	};
	struct pair pair = { .winner = 0, .loser = 0 };
	char desc[KUNIT_PARAM_DESC_SIZE];
	int i = 0;

	while (i || pair_gen(&pair, desc)) {
		unsigned int at = held[i];
		bool waits = pair.loser == PATH_EXIT ||
			     pair.loser == PATH_UNREGISTER ||
			     pair.loser == PATH_UNPLUG;
		struct job first, second;
		struct scene s = {};

		if (!i)
			kunit_info(test, "%s\n", desc);
		scene_set(test, &s);
		gate_close(at);
		if (waits)
			gate_close(HMM_POINT_RELEASE_WAIT);
		scene_start(&s, &first, pair.winner);
		KUNIT_EXPECT_TRUE(test, gate_reached(at));
		scene_start(&s, &second, pair.loser);
		if (waits) {
			KUNIT_EXPECT_TRUE(test,
					  gate_reached(HMM_POINT_RELEASE_WAIT));
			gate_open(HMM_POINT_RELEASE_WAIT);
			KUNIT_EXPECT_TRUE(test, job_waits(&second));
		} else {
			KUNIT_EXPECT_TRUE(test, job_end(&second));
		}
		KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_free), 0);

		gate_open(at);
		if (waits)
			KUNIT_EXPECT_TRUE(test, job_end(&second));
		KUNIT_EXPECT_TRUE(test, job_end(&first));
		scene_end(test, &s, pair.winner, pair.loser);
		i = (i + 1) % ARRAY_SIZE(held);
	}
}

/*
 * G3. Exit and unplug wait for the release of another. Once that is over, they are
 * about to notice, and still users of the mirror.
 */
static void hmm_unregister_waits_for_who_waits_for_the_release(struct kunit *test)
{
	static const int by[] = { PATH_EXIT, PATH_UNPLUG };
	int i;

	for (i = 0; i < ARRAY_SIZE(by); i++) {
		struct job waiter, unregister;
		struct scene s = {};

		scene_set(test, &s);
		gate_close(GATE_IN_RELEASE);
		hmm_mirror_kill(&s.context->mirror);
		KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
		gate_close(HMM_POINT_RELEASE_WAIT);
		scene_start(&s, &waiter, by[i]);
		KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_RELEASE_WAIT));
		gate_open(GATE_IN_RELEASE);
		gate_close(HMM_POINT_UNREGISTER_WAIT);
		job_start(&unregister, job_unregister, s.context);
		KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNREGISTER_WAIT));
		gate_open(HMM_POINT_UNREGISTER_WAIT);
		KUNIT_EXPECT_TRUE(test, job_waits(&unregister));

		gate_open(HMM_POINT_RELEASE_WAIT);
		KUNIT_EXPECT_TRUE(test, job_end(&unregister));
		context_end(test, s.context, HMM_RELEASE_ERROR, 1);
		KUNIT_EXPECT_TRUE(test, job_end(&waiter));
		if (by[i] != PATH_EXIT)
			mmput(s.mm);
		gpu_end(test, s.gpu);
	}
}

/* G1. All at once, many times: one release, one free, whoever wins. */
static void hmm_everybody_at_once_releases_once(struct kunit *test)
{
	static const int all[] = { PATH_EXIT, PATH_UNPLUG, PATH_KILL };
	int won[HMM_RELEASE_ERROR + 1] = {};
	int i, j;

	for (i = 0; i < NR_RACES; i++) {
		struct job jobs[ARRAY_SIZE(all)];
		enum hmm_release_reason reason;
		struct scene s = {};

		scene_set(test, &s);
		for (j = 0; j < ARRAY_SIZE(all); j++)
			scene_start(&s, &jobs[j], all[(i + j) % 3]);
		/* Those may still use the mirror, which is theirs until here */
		if (i & 1)
			for (j = 0; j < ARRAY_SIZE(all); j++)
				KUNIT_EXPECT_TRUE(test, job_end(&jobs[j]));
		else
			hmm_mirror_get(&s.context->mirror);
		if (i & 2)
			hmm_mirror_unregister_async(&s.context->mirror);
		else if (i & 1)
			hmm_mirror_unregister(&s.context->mirror);
		if (!(i & 1)) {
			for (j = 0; j < ARRAY_SIZE(all); j++)
				KUNIT_EXPECT_TRUE(test, job_end(&jobs[j]));
			hmm_mirror_put(&s.context->mirror);
			if (!(i & 2))
				hmm_mirror_unregister(&s.context->mirror);
		}
		hmm_synchronize();
		reason = s.context->reason;
		won[reason]++;
		context_end(test, s.context, reason, 1);
		gpu_end(test, s.gpu);
	}
	kunit_info(test, "exit %d, unregister %d, unplug %d, kill %d\n",
		   won[HMM_RELEASE_MM_EXIT], won[HMM_RELEASE_UNREGISTER],
		   won[HMM_RELEASE_DEVICE_GONE], won[HMM_RELEASE_ERROR]);
	KUNIT_EXPECT_EQ(test, won[HMM_RELEASE_NONE], 0);
}

/* G4. Nothing is registered, but ->free() is still to come. */
static void hmm_device_unregister_waits_for_async_free(struct kunit *test)
{
	struct scene s = {};
	struct job remove;

	scene_set(test, &s);
	gate_close(GATE_IN_FREE);
	hmm_mirror_unregister_async(&s.context->mirror);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_FREE));
	gate_close(HMM_POINT_DEVICE_WAIT);
	job_start(&remove, job_device_unregister, s.gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_WAIT));
	gate_open(HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&remove));

	gate_open(GATE_IN_FREE);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	kfree(s.gpu);
	context_end(test, s.context, HMM_RELEASE_UNREGISTER, 1);
	mmput(s.mm);
}

static void work_in_release(struct gpu_context *context)
{
	/* The other's registration ends in here, its release too, and ours */
	hmm_mirror_kill(&context->other->mirror);
	hmm_mirror_unregister_async(&context->other->mirror);
	hmm_mirror_get(&context->mirror);
	hmm_mirror_kill(&context->mirror);
	hmm_mirror_unregister_async(&context->mirror);
	might_sleep();
	hmm_mirror_put(&context->mirror);
}

/* G8, G14. What a callback may do. */
static void hmm_release_may_unregister_async_kill_and_put(struct kunit *test)
{
	struct scene s = {};
	struct gpu_context *other;

	scene_set(test, &s);
	other = context_register(test, s.gpu, s.mm);
	s.context->in_release = work_in_release;
	s.context->other = other;
	hmm_mirror_kill(&s.context->mirror);
	/* For the release, and then for what was asked for in it */
	hmm_synchronize();
	hmm_synchronize();
	context_end(test, s.context, HMM_RELEASE_ERROR, 1);
	context_end(test, other, HMM_RELEASE_ERROR, 1);
	gpu_end(test, s.gpu);
	mmput(s.mm);
}

static void register_in_release(struct gpu_context *context)
{
	struct gpu_context *other = context->other;

	context->ret = hmm_mirror_register(&other->mirror, &other->gpu->hmm,
					   context->mm);
	other->ret = hmm_mirror_register(&other->mirror, &other->gpu->hmm,
					 other->mm);
}

/* Its own address space is gone by then, another one is as good as ever. */
static void hmm_register_in_release(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct gpu_context *other = context_new(test);

	other->gpu = gpu;
	other->mm = mm_new(test);
	context->other = other;
	context->in_release = register_in_release;
	mmput(mm);
	KUNIT_EXPECT_EQ(test, context->ret, -ESRCH);
	KUNIT_EXPECT_EQ(test, other->ret, 0);
	mmput(other->mm);
	hmm_mirror_unregister(&context->mirror);
	hmm_mirror_unregister(&other->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	context_end(test, other, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

/* A15. Exit is at a list of mirrors one of which ends the registration of all. */
static void hmm_release_of_exit_may_end_a_neighbour(struct kunit *test)
{
	int workers;

	for (workers = 0; workers < 2; workers++) {
		struct scene s = {};
		struct gpu_context *other;

		scene_set(test, &s);
		other = context_register(test, s.gpu, s.mm);
		s.context->in_release = work_in_release;
		s.context->other = other;
		hmm_test_set_workers(workers);
		mmput(s.mm);
		hmm_synchronize();
		hmm_test_set_workers(0);
		context_end(test, s.context, HMM_RELEASE_MM_EXIT, 1);
		context_end(test, other, HMM_RELEASE_MM_EXIT, 1);
		gpu_end(test, s.gpu);
	}
}

/* D17. Nothing is registered, and nothing on its way: a driver has a reference. */
static void hmm_device_unregister_waits_for_references(struct kunit *test)
{
	struct scene s = {};
	struct job remove;

	scene_set(test, &s);
	hmm_mirror_get(&s.context->mirror);
	hmm_mirror_unregister_async(&s.context->mirror);
	hmm_synchronize();
	gate_close(HMM_POINT_DEVICE_WAIT);
	job_start(&remove, job_device_unregister, s.gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_WAIT));
	gate_open(HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&remove));
	hmm_mirror_put(&s.context->mirror);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	kfree(s.gpu);
	context_end(test, s.context, HMM_RELEASE_UNREGISTER, 1);
	mmput(s.mm);
}

static void wait_in_release(struct gpu_context *context)
{
	context->ret = wait_for_completion_timeout(&context->came,
						   msecs_to_jiffies(HOLD_MS));
}

static bool context_entered(struct gpu_context *context)
{
	return wait_for_completion_timeout(&context->entered,
					   msecs_to_jiffies(LIMIT_MS));
}

/* G9. One callback sleeps: whom it must not hold up. */
static void hmm_sleeping_release_delays_nobody_else(struct kunit *test)
{
	struct scene slow = {};
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *same_mm, *same_gpu, *bystander;
	struct job exit;

	scene_set(test, &slow);
	same_mm = context_register(test, other, slow.mm);
	same_gpu = context_register(test, slow.gpu, mm);
	bystander = context_register(test, other, mm);

	slow.context->in_release = wait_in_release;
	scene_start(&slow, &exit, PATH_EXIT);
	KUNIT_EXPECT_TRUE(test, context_entered(slow.context));

	/* Another mirror of that process, of that device, and another process */
	hmm_mirror_unregister(&same_mm->mirror);
	hmm_mirror_unregister(&same_gpu->mirror);
	mmput(mm);
	hmm_mirror_unregister(&bystander->mirror);
	gpu_end(test, other);
	KUNIT_EXPECT_TRUE(test, job_waits(&exit));

	complete_all(&slow.context->came);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
	hmm_mirror_unregister(&slow.context->mirror);
	context_end(test, slow.context, HMM_RELEASE_MM_EXIT, 1);
	context_end(test, same_mm, HMM_RELEASE_MM_EXIT, 0);
	context_end(test, same_gpu, HMM_RELEASE_UNREGISTER, 1);
	context_end(test, bystander, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, slow.gpu);
}

/*
 * G11, G9. Releases of one process have all the workers there are: the exit of
 * another does what it has queued itself, and so does an unplug; a kill has workers
 * of its own, and when these are taken as well ->free() has.
 */
static void hmm_exit_without_workers_releases_all(struct kunit *test)
{
	struct scene blocked = {}, s = {}, failed = {}, gone = {}, stuck = {};
	struct gpu_context *more[2], *second;
	struct job exit, other_exit, unplug;
	int i;

	scene_set(test, &blocked);
	second = context_register(test, blocked.gpu, blocked.mm);
	blocked.context->in_release = wait_in_release;
	second->in_release = wait_in_release;
	scene_set(test, &failed);
	scene_set(test, &gone);
	gone.context->in_release = wait_in_release;
	scene_set(test, &stuck);
	stuck.context->in_release = wait_in_release;
	scene_set(test, &s);
	for (i = 0; i < 2; i++)
		more[i] = context_register(test, s.gpu, s.mm);
	hmm_test_set_workers(1);
	scene_start(&blocked, &other_exit, PATH_EXIT);
	KUNIT_EXPECT_TRUE(test, context_entered(blocked.context));
	KUNIT_EXPECT_TRUE(test, context_entered(second));

	scene_start(&s, &exit, PATH_EXIT);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
	scene_start(&gone, &unplug, PATH_UNPLUG);
	KUNIT_EXPECT_TRUE(test, context_entered(gone.context));
	hmm_mirror_kill(&failed.context->mirror);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, atomic_read(&failed.context->nr_release), 1);
	/* Nor has an asynchronous unregister to wait for exits */
	hmm_mirror_unregister_async(&more[0]->mirror);
	hmm_synchronize();
	hmm_mirror_unregister_async(&stuck.context->mirror);
	KUNIT_EXPECT_TRUE(test, context_entered(stuck.context));
	gate_close(GATE_IN_FREE);
	hmm_mirror_unregister_async(&failed.context->mirror);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_FREE));
	gate_open(GATE_IN_FREE);
	complete_all(&stuck.context->came);
	complete_all(&gone.context->came);
	complete_all(&blocked.context->came);
	complete_all(&second->came);
	KUNIT_EXPECT_TRUE(test, job_end(&unplug));
	KUNIT_EXPECT_TRUE(test, job_end(&other_exit));
	hmm_test_set_workers(0);
	/* They did not wait in vain */
	KUNIT_EXPECT_NE(test, blocked.context->ret, 0);
	KUNIT_EXPECT_NE(test, second->ret, 0);
	KUNIT_EXPECT_NE(test, gone.context->ret, 0);
	KUNIT_EXPECT_NE(test, stuck.context->ret, 0);

	hmm_synchronize();
	hmm_mirror_unregister(&second->mirror);
	context_end(test, second, HMM_RELEASE_MM_EXIT, 1);
	hmm_mirror_unregister(&more[1]->mirror);
	for (i = 0; i < 2; i++)
		context_end(test, more[i], HMM_RELEASE_MM_EXIT, 1);
	scene_end(test, &s, PATH_EXIT, PATH_KILL);
	scene_end(test, &failed, PATH_KILL, PATH_ASYNC);
	scene_end(test, &gone, PATH_UNPLUG, PATH_UNPLUG);
	scene_end(test, &stuck, PATH_ASYNC, PATH_ASYNC);
	scene_end(test, &blocked, PATH_EXIT, PATH_KILL);
}

struct interrupt {
	struct irq_work work;
	struct hmm_mirror *mirror;
	bool kill;
};

static void interrupt_work(struct irq_work *work)
{
	struct interrupt *irq = container_of(work, struct interrupt, work);

	if (irq->kill)
		hmm_mirror_kill(irq->mirror);
	hmm_mirror_put(irq->mirror);
}

static void interrupt(struct hmm_mirror *mirror, bool kill)
{
	struct interrupt irq = { .mirror = mirror, .kill = kill };

	init_irq_work(&irq.work, interrupt_work);
	irq_work_queue(&irq.work);
	irq_work_sync(&irq.work);
}

/* G14. The last put may be anywhere; ->free() is in process context. */
static void hmm_put_and_kill_in_interrupt(struct kunit *test)
{
	struct scene s = {};

	scene_set(test, &s);
	interrupt(hmm_mirror_get(&s.context->mirror), true);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, s.context->reason, HMM_RELEASE_ERROR);

	hmm_mirror_get(&s.context->mirror);
	hmm_mirror_unregister_async(&s.context->mirror);
	/* Not for what a reference of the driver keeps away */
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_free), 0);
	interrupt(&s.context->mirror, false);
	hmm_synchronize();
	context_end(test, s.context, HMM_RELEASE_ERROR, 1);
	gpu_end(test, s.gpu);
	mmput(s.mm);
}

struct failing {
	struct mmu_interval_notifier notifier;
	struct hmm_mirror *mirror;
	bool kill;
};

static bool failing_invalidate(struct mmu_interval_notifier *notifier,
			       const struct mmu_notifier_range *range,
			       unsigned long cur_seq)
{
	struct failing *failing = container_of(notifier, struct failing, notifier);
	struct hmm_mirror *mirror = xchg(&failing->mirror, NULL);

	mmu_interval_set_seq(notifier, cur_seq);
	if (mirror && failing->kill)
		hmm_mirror_kill(mirror);
	if (mirror)
		hmm_mirror_put(mirror);
	return true;
}

static const struct mmu_interval_notifier_ops failing_ops = {
	.invalidate = failing_invalidate,
};

/*
 * A device that fails when it is to give up a page is killed there, and there its
 * driver may drop the last reference. Its neighbours go on.
 */
static void hmm_kill_and_put_in_an_invalidation(struct kunit *test)
{
	struct gpu_context *neighbour;
	struct failing failing = {};
	struct scene s = {};
	struct job unmap;
	int i;

	scene_set(test, &s);
	neighbour = context_register(test, s.gpu, s.mm);
	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&failing.notifier,
							   s.mm, SOME_ADDRESS,
							   PAGE_SIZE,
							   &failing_ops), 0);
	for (i = 0; i < 2; i++) {
		failing.mirror = hmm_mirror_get(&s.context->mirror);
		failing.kill = !i;
		if (i)
			hmm_mirror_unregister_async(&s.context->mirror);
		mm_map_page(test, s.mm);
		job_start(&unmap, job_munmap, s.mm);
		KUNIT_EXPECT_TRUE(test, job_end(&unmap));
		hmm_synchronize();
		KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_release), 1);
		KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_free), i);
	}
	KUNIT_EXPECT_EQ(test, atomic_read(&neighbour->nr_release), 0);
	mmu_interval_notifier_remove(&failing.notifier);
	mmput(s.mm);
	hmm_mirror_unregister(&neighbour->mirror);
	context_end(test, neighbour, HMM_RELEASE_MM_EXIT, 1);
	context_end(test, s.context, HMM_RELEASE_ERROR, 1);
	gpu_end(test, s.gpu);
}

/* A worker that still has a reference may report a failure long after the end. */
static void hmm_kill_after_the_end_does_nothing(struct kunit *test)
{
	struct scene s = {};

	scene_set(test, &s);
	hmm_mirror_get(&s.context->mirror);
	hmm_mirror_unregister_async(&s.context->mirror);
	hmm_synchronize();
	hmm_mirror_kill(&s.context->mirror);
	hmm_mirror_kill(&s.context->mirror);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(&s.context->mirror),
			HMM_RELEASE_UNREGISTER);
	KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_free), 0);
	hmm_mirror_put(&s.context->mirror);
	hmm_synchronize();
	context_end(test, s.context, HMM_RELEASE_UNREGISTER, 1);
	gpu_end(test, s.gpu);
	mmput(s.mm);
}

/* G14. A barrier: everything that was due has returned, whoever is at it. */
static void hmm_synchronize_waits_for_what_is_due(struct kunit *test)
{
	static const struct {
		unsigned int gate;
		int first;
		int then;
	} cases[] = {
		{ GATE_IN_RELEASE, PATH_ASYNC, -1 },
		{ GATE_IN_FREE, PATH_ASYNC, -1 },
		{ GATE_IN_RELEASE, PATH_KILL, -1 },
		/* Exit and unplug have the release that the other asks for */
		{ GATE_IN_RELEASE, PATH_EXIT, PATH_KILL },
		{ GATE_IN_RELEASE, PATH_EXIT, PATH_ASYNC },
		{ GATE_IN_RELEASE, PATH_UNPLUG, PATH_ASYNC },
		{ HMM_POINT_EXIT_DONE, PATH_EXIT, PATH_ASYNC },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct job first, synchronize;
		int last = cases[i].then;
		struct scene s = {};

		if (last < 0)
			last = cases[i].first;
		scene_set(test, &s);
		gate_close(cases[i].gate);
		scene_start(&s, &first, cases[i].first);
		KUNIT_EXPECT_TRUE(test, gate_reached(cases[i].gate));
		if (cases[i].then >= 0)
			scene_run(&s, cases[i].then);
		job_start(&synchronize, job_synchronize, NULL);
		KUNIT_EXPECT_TRUE(test, job_waits(&synchronize));
		if (last == PATH_ASYNC && cases[i].gate != GATE_IN_FREE) {
			/* It was due when synchronize began, so it is waited for */
			gate_close(GATE_IN_FREE);
			gate_open(cases[i].gate);
			KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_FREE));
			KUNIT_EXPECT_TRUE(test, job_waits(&synchronize));
			gate_open(GATE_IN_FREE);
		}
		gate_open(cases[i].gate);
		KUNIT_EXPECT_TRUE(test, job_end(&synchronize));
		KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_release), 1);
		KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_free),
				last == PATH_ASYNC);
		KUNIT_EXPECT_TRUE(test, job_end(&first));
		scene_end(test, &s, cases[i].first, last);
	}
}

/* G14. The last put makes ->free() due, also if an unregister waits for it. */
static void hmm_synchronize_waits_for_the_free_of_an_unregister(struct kunit *test)
{
	struct job unregister, synchronize;
	struct scene s = {};

	scene_set(test, &s);
	hmm_mirror_get(&s.context->mirror);
	gate_close(HMM_POINT_UNREGISTER_WAIT);
	gate_close(GATE_IN_FREE);
	scene_start(&s, &unregister, PATH_UNREGISTER);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNREGISTER_WAIT));
	gate_open(HMM_POINT_UNREGISTER_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&unregister));
	hmm_mirror_put(&s.context->mirror);
	job_start(&synchronize, job_synchronize, NULL);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_FREE));
	KUNIT_EXPECT_TRUE(test, job_waits(&synchronize));
	gate_open(GATE_IN_FREE);
	KUNIT_EXPECT_TRUE(test, job_end(&synchronize));
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	scene_end(test, &s, PATH_UNREGISTER, PATH_UNREGISTER);
}

/* G9. What workers do for one mirror does not wait for what they do for another. */
static void hmm_workers_do_not_wait_for_others(struct kunit *test)
{
	static const int by[] = { PATH_KILL, PATH_ASYNC };
	struct scene slow = {}, s = {};
	int i;

	for (i = 0; i < ARRAY_SIZE(by); i++) {
		scene_set(test, &slow);
		slow.context->in_release = wait_in_release;
		scene_set(test, &s);
		scene_run(&slow, by[i]);
		KUNIT_EXPECT_TRUE(test, context_entered(slow.context));
		scene_run(&s, by[i]);
		KUNIT_EXPECT_TRUE(test, context_entered(s.context));
		complete_all(&slow.context->came);
		scene_end(test, &slow, by[i], by[i]);
		scene_end(test, &s, by[i], by[i]);
	}

	/* ->free() */
	scene_set(test, &slow);
	scene_set(test, &s);
	gate_close(GATE_IN_FREE);
	scene_run(&slow, PATH_ASYNC);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_FREE));
	scene_run(&s, PATH_ASYNC);
	KUNIT_EXPECT_TRUE(test, counts_to(&gates[GATE_IN_FREE].arrivals, 2));
	gate_open(GATE_IN_FREE);
	scene_end(test, &slow, PATH_ASYNC, PATH_ASYNC);
	scene_end(test, &s, PATH_ASYNC, PATH_ASYNC);
}

/* G9. Nor does HMM keep an mm because another driver is slow about another mm. */
static void hmm_mms_are_let_go_of_side_by_side(struct kunit *test)
{
	struct mmu_interval_notifier notifier;
	struct scene slow = {}, s = {};
	struct job unmap, synchronize;

	scene_set(test, &slow);
	scene_set(test, &s);
	mm_map_page(test, slow.mm);
	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&notifier, slow.mm,
							   SOME_ADDRESS,
							   PAGE_SIZE,
							   &kunit_notifier_ops),
			0);
	gate_close(GATE_IN_INVALIDATE);
	job_start(&unmap, job_munmap, slow.mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_INVALIDATE));
	hmm_mirror_unregister(&slow.context->mirror);
	/* Its worker is at it now */
	job_start(&synchronize, job_synchronize, NULL);
	KUNIT_EXPECT_TRUE(test, job_waits(&synchronize));
	hmm_mirror_unregister(&s.context->mirror);
	KUNIT_EXPECT_TRUE(test, counts_to(&s.mm->mm_count, 1));
	KUNIT_EXPECT_TRUE(test, job_waits(&synchronize));

	gate_open(GATE_IN_INVALIDATE);
	KUNIT_EXPECT_TRUE(test, job_end(&synchronize));
	KUNIT_EXPECT_TRUE(test, job_end(&unmap));
	mmu_interval_notifier_remove(&notifier);
	scene_end(test, &slow, PATH_UNREGISTER, PATH_UNREGISTER);
	scene_end(test, &s, PATH_UNREGISTER, PATH_UNREGISTER);
}

/*
 * The driver has the memory back in ->free(), and may use it again. What becomes of
 * the new mirror does not wait for that ->free() to return.
 */
static void hmm_release_does_not_wait_for_an_older_free(struct kunit *test)
{
	struct gpu_context *context;
	struct scene s = {};

	scene_set(test, &s);
	context = s.context;
	gate_close(GATE_IN_FREE);
	hmm_mirror_unregister_async(&context->mirror);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_FREE));
	reinit_completion(&context->entered);
	KUNIT_ASSERT_EQ(test, hmm_mirror_register(&context->mirror, &s.gpu->hmm,
						  s.mm), 0);
	hmm_mirror_kill(&context->mirror);
	KUNIT_EXPECT_TRUE(test, context_entered(context));
	gate_open(GATE_IN_FREE);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 2);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free), 1);
	hmm_mirror_unregister(&context->mirror);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free), 2);
	kfree(context);
	gpu_end(test, s.gpu);
	mmput(s.mm);
}

/* G15. Pins in turn must not keep a process that is gone. */
static void hmm_mm_get_fails_once_only_pins_are_left(struct kunit *test)
{
	struct hmm_mirror late = {};
	struct hmm_mirror *mirror;
	struct scene s = {};

	scene_set(test, &s);
	mirror = &s.context->mirror;
	KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(mirror));
	KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(mirror));
	KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_users), 3);
	/* The process goes; one worker is still at it */
	mmgrab(s.mm);
	mmput(s.mm);
	hmm_mirror_mm_put(mirror);
	KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_users), 1);
	KUNIT_EXPECT_FALSE(test, hmm_mirror_mm_get(mirror));
	/* Nor may one who registers in turn */
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&late, &s.gpu->hmm, s.mm),
			-ESRCH);
	KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_users), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_release), 0);

	gate_close(GATE_IN_RELEASE);
	hmm_mirror_mm_put(mirror);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	KUNIT_EXPECT_FALSE(test, hmm_mirror_mm_get(mirror));
	gate_open(GATE_IN_RELEASE);
	mmdrop(s.mm);
	hmm_mirror_unregister(mirror);
	context_end(test, s.context, HMM_RELEASE_MM_EXIT, 1);
	gpu_end(test, s.gpu);
}

/* A release that is not by exit fails pins too, those that are there stay good. */
static void hmm_mm_pin_outlives_the_release(struct kunit *test)
{
	struct scene s = {};

	scene_set(test, &s);
	hmm_mirror_get(&s.context->mirror);
	KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(&s.context->mirror));
	hmm_mirror_kill(&s.context->mirror);
	hmm_synchronize();
	KUNIT_EXPECT_FALSE(test, hmm_mirror_mm_get(&s.context->mirror));
	hmm_mirror_unregister_async(&s.context->mirror);
	KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_users), 2);
	hmm_mirror_mm_put(&s.context->mirror);
	KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_users), 1);
	hmm_mirror_put(&s.context->mirror);
	hmm_synchronize();
	context_end(test, s.context, HMM_RELEASE_ERROR, 1);
	gpu_end(test, s.gpu);
	mmput(s.mm);
}

static void job_last_pin(void *arg)
{
	struct gpu_context *context = arg;

	hmm_mirror_mm_put(&context->mirror);
	complete_all(&context->came);
}

/* G15, D2. The worker that ->release() waits for drops the last pin. */
static void hmm_last_pin_in_a_worker_that_release_waits_for(struct kunit *test)
{
	struct scene s = {};
	struct job worker;

	scene_set(test, &s);
	s.context->in_release = wait_in_release;
	KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(&s.context->mirror));
	mmput(s.mm);
	job_start(&worker, job_last_pin, s.context);
	KUNIT_EXPECT_TRUE(test, job_end(&worker));
	/* Exit is in yet another worker: not before it is there */
	KUNIT_EXPECT_TRUE(test, context_entered(s.context));
	hmm_mirror_unregister(&s.context->mirror);
	KUNIT_EXPECT_NE(test, s.context->ret, 0);
	context_end(test, s.context, HMM_RELEASE_MM_EXIT, 1);
	gpu_end(test, s.gpu);
}

/* G16. All released with the reason, new ones refused, the rest as ever. */
static void hmm_unplug_releases_all_and_refuses_new(struct kunit *test)
{
	struct scene s = {};
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct gpu_context *second, *third;
	struct hmm_mirror late = {};
	struct mm_struct *mm = mm_new(test);

	scene_set(test, &s);
	second = context_register(test, s.gpu, mm);
	third = context_register(test, other, s.mm);
	hmm_device_unplug(&s.gpu->hmm);
	KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_release), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&second->nr_release), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&third->nr_release), 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&late, &s.gpu->hmm, mm),
			-ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&s.gpu->hmm), -EBUSY);
	/* Again, with nothing left to do */
	hmm_device_unplug(&s.gpu->hmm);

	mmput(mm);
	mmput(s.mm);
	hmm_mirror_unregister(&s.context->mirror);
	hmm_mirror_unregister_async(&second->mirror);
	hmm_mirror_unregister(&third->mirror);
	hmm_synchronize();
	context_end(test, s.context, HMM_RELEASE_DEVICE_GONE, 1);
	context_end(test, second, HMM_RELEASE_DEVICE_GONE, 1);
	context_end(test, third, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, s.gpu);
	gpu_end(test, other);
}

/* G4. Unplug is through with the last mirror, and not with the device. */
static void hmm_device_unregister_waits_for_unplug(struct kunit *test)
{
	struct scene s = {};
	struct job unplug, remove;

	scene_set(test, &s);
	gate_close(HMM_POINT_UNPLUG_DONE);
	scene_start(&s, &unplug, PATH_UNPLUG);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNPLUG_DONE));
	hmm_mirror_unregister(&s.context->mirror);
	gate_close(HMM_POINT_DEVICE_WAIT);
	job_start(&remove, job_device_unregister, s.gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_WAIT));
	gate_open(HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&remove));

	gate_open(HMM_POINT_UNPLUG_DONE);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	kfree(s.gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&unplug));
	context_end(test, s.context, HMM_RELEASE_DEVICE_GONE, 1);
	mmput(s.mm);
}

static void job_unregister_async(void *context)
{
	hmm_mirror_unregister_async(&((struct gpu_context *)context)->mirror);
}

/*
 * Unplug owns a release, and an asynchronous unregister that finds it owned drops the
 * user of the registration: it may not be the last one.
 */
static void hmm_async_unregister_while_unplug_owns(struct kunit *test)
{
	struct scene s = {};
	struct job async, unplug;

	if (num_online_cpus() < 2)
		kunit_skip(test, "one CPU spins, another goes on: there is one");

	scene_set(test, &s);
	gate_close(HMM_POINT_ASYNC_OWN);
	job_start(&async, job_unregister_async, s.context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_ASYNC_OWN));
	gate_close(HMM_POINT_UNPLUG_OWNED);
	scene_start(&s, &unplug, PATH_UNPLUG);
	KUNIT_EXPECT_TRUE(test, gate_reached_awake(HMM_POINT_UNPLUG_OWNED));
	gate_open(HMM_POINT_ASYNC_OWN);
	KUNIT_EXPECT_TRUE(test, job_end(&async));
	gate_open(HMM_POINT_UNPLUG_OWNED);
	KUNIT_EXPECT_TRUE(test, job_end(&unplug));
	scene_end(test, &s, PATH_UNPLUG, PATH_ASYNC);
}

/* The same with a kill, which owns the release and has not queued it. */
static void hmm_async_unregister_while_kill_owns(struct kunit *test)
{
	struct scene s = {};
	struct job kill;

	scene_set(test, &s);
	hmm_mirror_get(&s.context->mirror);
	gate_close(HMM_POINT_KILL_OWN);
	scene_start(&s, &kill, PATH_KILL);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_KILL_OWN));
	hmm_mirror_unregister_async(&s.context->mirror);
	gate_open(HMM_POINT_KILL_OWN);
	KUNIT_EXPECT_TRUE(test, job_end(&kill));
	hmm_mirror_put(&s.context->mirror);
	scene_end(test, &s, PATH_KILL, PATH_ASYNC);
}

/*
 * What is gathered would not be done for long. Who waits for it does not wait for that:
 * hmm_synchronize(), for what comes of it too; exit; and hmm_device_unregister().
 */
static void hmm_who_waits_does_what_is_gathered(struct kunit *test)
{
	struct scene s = {};
	struct job job;

	hmm_test_set_lazy_delay(msecs_to_jiffies(2 * LIMIT_MS));
	scene_set(test, &s);
	hmm_mirror_unregister_async(&s.context->mirror);
	job_start(&job, job_synchronize, NULL);
	KUNIT_EXPECT_TRUE(test, job_end(&job));
	KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_free), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_count), 1);
	scene_end(test, &s, PATH_ASYNC, PATH_ASYNC);

	scene_set(test, &s);
	hmm_mirror_unregister_async(&s.context->mirror);
	scene_start(&s, &job, PATH_EXIT);
	KUNIT_EXPECT_TRUE(test, job_end(&job));
	scene_end(test, &s, PATH_ASYNC, PATH_EXIT);

	scene_set(test, &s);
	hmm_mirror_unregister_async(&s.context->mirror);
	job_start(&job, job_device_unregister, s.gpu);
	KUNIT_EXPECT_TRUE(test, job_end(&job));
	kfree(s.gpu);
	context_end(test, s.context, HMM_RELEASE_UNREGISTER, 1);
	mmput(s.mm);
	hmm_test_set_lazy_delay(0);
}

/* One takes it, and has not queued it yet: another who waits for it has to see that. */
static void hmm_synchronize_waits_for_who_does_what_is_gathered(struct kunit *test)
{
	struct job first, second;
	struct scene s = {};

	hmm_test_set_lazy_delay(msecs_to_jiffies(2 * LIMIT_MS));
	scene_set(test, &s);
	hmm_mirror_unregister(&s.context->mirror);
	gate_close(HMM_POINT_LAZY_TAKEN);
	job_start(&first, job_synchronize, NULL);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_LAZY_TAKEN));
	job_start(&second, job_synchronize, NULL);
	KUNIT_EXPECT_TRUE(test, job_waits(&second));
	KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_count), 2);
	gate_open(HMM_POINT_LAZY_TAKEN);
	KUNIT_EXPECT_TRUE(test, job_end(&second));
	KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_count), 1);
	KUNIT_EXPECT_TRUE(test, job_end(&first));
	scene_end(test, &s, PATH_UNREGISTER, PATH_UNREGISTER);
	hmm_test_set_lazy_delay(0);
}

static void meet_in_release(struct gpu_context *context)
{
	complete_all(&context->came);
	context->ret = wait_for_completion_timeout(&context->other->came,
						   msecs_to_jiffies(LIMIT_MS));
}

/* G17, D20. Two releases of one process, or device, each waits for the other. */
static void hmm_releases_of_exit_and_unplug_overlap(struct kunit *test)
{
	static const int by[] = { PATH_EXIT, PATH_UNPLUG };
	int i;

	for (i = 0; i < ARRAY_SIZE(by); i++) {
		struct scene s = {};
		struct gpu_context *other;

		scene_set(test, &s);
		other = context_register(test, s.gpu, s.mm);
		other->other = s.context;
		s.context->other = other;
		other->in_release = meet_in_release;
		s.context->in_release = meet_in_release;
		scene_run(&s, by[i]);
		KUNIT_EXPECT_NE(test, s.context->ret, 0);
		KUNIT_EXPECT_NE(test, other->ret, 0);
		hmm_mirror_unregister(&other->mirror);
		context_end(test, other, paths[by[i]].reason, 1);
		scene_end(test, &s, by[i], by[i]);
	}
}

/* G17. Each of several waits for the next one, and the last for the first. */
static void hmm_releases_of_one_exit_all_overlap(struct kunit *test)
{
	struct gpu_context *ring[5];
	struct scene s = {};
	int i;

	scene_set(test, &s);
	ring[0] = s.context;
	for (i = 1; i < ARRAY_SIZE(ring); i++)
		ring[i] = context_register(test, s.gpu, s.mm);
	for (i = 0; i < ARRAY_SIZE(ring); i++) {
		ring[i]->other = ring[(i + 1) % ARRAY_SIZE(ring)];
		ring[i]->in_release = meet_in_release;
	}
	scene_run(&s, PATH_EXIT);
	for (i = 0; i < ARRAY_SIZE(ring); i++)
		KUNIT_EXPECT_NE(test, ring[i]->ret, 0);

	for (i = 1; i < ARRAY_SIZE(ring); i++) {
		hmm_mirror_unregister(&ring[i]->mirror);
		context_end(test, ring[i], HMM_RELEASE_MM_EXIT, 1);
	}
	scene_end(test, &s, PATH_EXIT, PATH_EXIT);
}

/*
 * G17. The only worker is inside another exit. So the second release of this one stays
 * in its queue, until an unregister takes it. The third must then have a worker to come:
 * the first waits for it.
 */
static void hmm_releases_overlap_when_a_queued_one_is_taken(struct kunit *test)
{
	struct scene blocked = {}, s = {};
	struct gpu_context *held, *taken, *third;
	struct job exit, other_exit;

	scene_set(test, &blocked);
	held = context_register(test, blocked.gpu, blocked.mm);
	blocked.context->in_release = wait_in_release;
	held->in_release = wait_in_release;
	scene_set(test, &s);
	taken = context_register(test, s.gpu, s.mm);
	third = context_register(test, s.gpu, s.mm);
	s.context->other = third;
	third->other = s.context;
	s.context->in_release = meet_in_release;
	third->in_release = meet_in_release;
	hmm_test_set_workers(1);
	scene_start(&blocked, &other_exit, PATH_EXIT);
	KUNIT_EXPECT_TRUE(test, context_entered(blocked.context));
	KUNIT_EXPECT_TRUE(test, context_entered(held));
	scene_start(&s, &exit, PATH_EXIT);
	KUNIT_EXPECT_TRUE(test, context_entered(s.context));

	hmm_mirror_unregister(&taken->mirror);
	hmm_test_set_workers(0);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
	KUNIT_EXPECT_NE(test, s.context->ret, 0);
	KUNIT_EXPECT_NE(test, third->ret, 0);
	complete_all(&blocked.context->came);
	complete_all(&held->came);
	KUNIT_EXPECT_TRUE(test, job_end(&other_exit));

	context_end(test, taken, HMM_RELEASE_MM_EXIT, 1);
	hmm_mirror_unregister(&third->mirror);
	context_end(test, third, HMM_RELEASE_MM_EXIT, 1);
	hmm_mirror_unregister(&held->mirror);
	context_end(test, held, HMM_RELEASE_MM_EXIT, 1);
	scene_end(test, &s, PATH_EXIT, PATH_EXIT);
	scene_end(test, &blocked, PATH_EXIT, PATH_EXIT);
}

static void kill_here(void *context)
{
	hmm_mirror_kill(&((struct gpu_context *)context)->mirror);
}

static void tell_and_wait_in_release(struct gpu_context *context)
{
	complete_all(&context->other->entered);
	wait_in_release(context);
}

/*
 * G9. A worker that ran a release of an exit has nothing to do with the next ones: the
 * workqueue takes work with the address of what it began with for that, and puts it
 * behind them. Who has the memory now is on another address space.
 */
static void hmm_kill_is_not_behind_an_exit(struct kunit *test)
{
	struct gpu_context *reused, *slow[2];
	struct mm_struct *mm = mm_new(test);
	struct scene s = {};
	struct job exit;
	int cpu, i;

	scene_set(test, &s);
	s.context->in_release = wait_in_release;
	reused = context_register(test, s.gpu, s.mm);
	reused->in_release = wait_in_release;
	for (i = 0; i < ARRAY_SIZE(slow); i++) {
		slow[i] = context_register(test, s.gpu, s.mm);
		slow[i]->other = s.context;
		slow[i]->in_release = tell_and_wait_in_release;
	}
	/* The worker of the second is the only one, and the next would be its own */
	hmm_test_set_workers(1);
	scene_start(&s, &exit, PATH_EXIT);
	KUNIT_EXPECT_TRUE(test, context_entered(s.context));
	KUNIT_EXPECT_TRUE(test, context_entered(reused));
	reinit_completion(&s.context->entered);
	complete_all(&reused->came);
	KUNIT_EXPECT_TRUE(test, context_entered(s.context));
	hmm_test_set_workers(0);
	for (i = 0; i < ARRAY_SIZE(slow); i++)
		KUNIT_EXPECT_TRUE(test, context_entered(slow[i]));

	hmm_mirror_unregister(&reused->mirror);
	KUNIT_EXPECT_EQ(test, atomic_read(&reused->nr_release), 1);
	/* A CPU has its own workers, or shares those of some others */
	for_each_online_cpu(cpu) {
		memset(reused, 0, sizeof(*reused));
		init_completion(&reused->entered);
		KUNIT_EXPECT_EQ(test, hmm_mirror_register(&reused->mirror,
							  &s.gpu->hmm, mm), 0);
		KUNIT_EXPECT_EQ(test, smp_call_function_single(cpu, kill_here,
							       reused, 1), 0);
		KUNIT_EXPECT_TRUE(test, context_entered(reused));
		hmm_mirror_unregister(&reused->mirror);
		KUNIT_EXPECT_EQ(test, reused->reason, HMM_RELEASE_ERROR);
	}
	/* Which it did not wait for: these do not wait for ever either */
	for (i = 0; i < ARRAY_SIZE(slow); i++)
		KUNIT_EXPECT_EQ(test, atomic_read(&slow[i]->nr_release), 0);

	complete_all(&s.context->came);
	for (i = 0; i < ARRAY_SIZE(slow); i++)
		complete_all(&slow[i]->came);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));
	kfree(reused);
	for (i = 0; i < ARRAY_SIZE(slow); i++) {
		hmm_mirror_unregister(&slow[i]->mirror);
		context_end(test, slow[i], HMM_RELEASE_MM_EXIT, 1);
	}
	mmput(mm);
	scene_end(test, &s, PATH_EXIT, PATH_EXIT);
}

/*
 * G9. What an asynchronous unregister leaves for later is not behind an mm that cannot
 * be let go of, as it is being invalidated.
 */
static void hmm_async_release_beside_an_mm_in_use(struct kunit *test)
{
	struct scene busy = {}, s = {};
	struct mmu_interval_notifier notifier;
	struct job unmap, synchronize, exit;

	scene_set(test, &busy);
	scene_set(test, &s);
	mm_map_page(test, busy.mm);
	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&notifier, busy.mm,
							   SOME_ADDRESS,
							   PAGE_SIZE,
							   &kunit_notifier_ops),
			0);
	gate_close(GATE_IN_INVALIDATE);
	job_start(&unmap, job_munmap, busy.mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_INVALIDATE));
	hmm_test_set_workers(1);
	hmm_mirror_unregister(&busy.context->mirror);
	job_start(&synchronize, job_synchronize, NULL);
	KUNIT_EXPECT_TRUE(test, job_waits(&synchronize));

	hmm_mirror_unregister_async(&s.context->mirror);
	KUNIT_EXPECT_TRUE(test, context_entered(s.context));
	scene_start(&s, &exit, PATH_EXIT);
	KUNIT_EXPECT_TRUE(test, job_end(&exit));

	gate_open(GATE_IN_INVALIDATE);
	KUNIT_EXPECT_TRUE(test, job_end(&unmap));
	hmm_test_set_workers(0);
	KUNIT_EXPECT_TRUE(test, job_end(&synchronize));
	mmu_interval_notifier_remove(&notifier);
	scene_end(test, &s, PATH_ASYNC, PATH_EXIT);
	scene_end(test, &busy, PATH_UNREGISTER, PATH_UNREGISTER);
}

/* G9, D24. Two processes exit, and the device of each waits for the other's. */
static void hmm_releases_of_two_processes_overlap(struct kunit *test)
{
	struct scene s[2] = {};
	struct job exit[2];
	int i;

	for (i = 0; i < 2; i++) {
		scene_set(test, &s[i]);
		s[i].context->in_release = meet_in_release;
	}
	for (i = 0; i < 2; i++)
		s[i].context->other = s[!i].context;
	for (i = 0; i < 2; i++)
		scene_start(&s[i], &exit[i], PATH_EXIT);
	for (i = 0; i < 2; i++) {
		KUNIT_EXPECT_TRUE(test, job_end(&exit[i]));
		KUNIT_EXPECT_NE(test, s[i].context->ret, 0);
	}
	for (i = 0; i < 2; i++)
		scene_end(test, &s[i], PATH_EXIT, PATH_EXIT);
}

/* Found: the live mirror of that device and mm, with a reference; no other. */
static void hmm_find_gives_live_mirrors_only(struct kunit *test)
{
	struct scene s = {};
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct job kill;

	scene_set(test, &s);
	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_find(&s.gpu->hmm, s.mm),
			    &s.context->mirror);
	KUNIT_EXPECT_NULL(test, hmm_mirror_find(&other->hmm, s.mm));
	KUNIT_EXPECT_NULL(test, hmm_mirror_find(&s.gpu->hmm, mm));

	gate_close(GATE_IN_RELEASE);
	scene_start(&s, &kill, PATH_KILL);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	KUNIT_EXPECT_NULL(test, hmm_mirror_find(&s.gpu->hmm, s.mm));
	/* The process lives on; the mirror is dying, and pins nothing any more */
	KUNIT_EXPECT_FALSE(test, hmm_mirror_mm_get(&s.context->mirror));
	gate_open(GATE_IN_RELEASE);
	KUNIT_EXPECT_TRUE(test, job_end(&kill));

	/* What was found stays until it is put */
	hmm_mirror_unregister_async(&s.context->mirror);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_free), 0);
	KUNIT_EXPECT_NULL(test, hmm_mirror_find(&s.gpu->hmm, s.mm));
	hmm_mirror_put(&s.context->mirror);
	hmm_synchronize();
	context_end(test, s.context, HMM_RELEASE_ERROR, 1);
	gpu_end(test, s.gpu);
	gpu_end(test, other);
	mmput(s.mm);
	mmput(mm);
}

static void job_quiesce(void *unused)
{
	hmm_test_quiesce(NULL);
}

static void job_find(void *arg)
{
	struct scene *s = arg;
	struct hmm_mirror *mirror = hmm_mirror_find(&s->gpu->hmm, s->mm);

	if (mirror) {
		s->context = container_of(mirror, struct gpu_context, mirror);
		s->path = -1;
	}
}

static void job_pin(void *arg)
{
	struct scene *s = arg;

	if (hmm_mirror_mm_get(&s->context->mirror))
		s->path = -1;
}

/* B11, B16. Who looks at what HMM keeps of an mm has no reference: it stays. */
static void hmm_lookups_beside_the_end_of_an_mm(struct kunit *test)
{
	static const struct {
		unsigned int point;
		void (*fn)(void *arg);
	} cases[] = {
		{ HMM_POINT_FIND_WALK, job_find },
		{ HMM_POINT_PIN_WALK, job_pin },
	};
	int i;

	if (num_online_cpus() < 2)
		kunit_skip(test, "one CPU spins, another goes on: there is one");

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		struct scene s = {}, looker;
		struct job look, last;

		scene_set(test, &s);
		/* For who pins: the release is to come, and not the end */
		hmm_mirror_get(&s.context->mirror);
		looker = s;
		gate_close(cases[i].point);
		job_start(&look, cases[i].fn, &looker);
		KUNIT_EXPECT_TRUE(test, gate_reached(cases[i].point));
		gate_close(HMM_POINT_MM_UNUSED);
		hmm_mirror_kill(&s.context->mirror);
		KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_MM_UNUSED));
		gate_open(HMM_POINT_MM_UNUSED);
		/* Its memory may go now, but for who looks at it */
		job_start(&last, job_quiesce, NULL);
		KUNIT_EXPECT_TRUE(test, job_end(&last));
		gate_open(cases[i].point);
		KUNIT_EXPECT_TRUE(test, job_end(&look));
		KUNIT_EXPECT_EQ(test, looker.path, 0);
		hmm_mirror_put(&s.context->mirror);
		scene_end(test, &s, PATH_KILL, PATH_KILL);
	}
}

/*
 * G3. A mirror was found live, and ends before there is a reference on it; then there may
 * be another.
 */
static void hmm_unregister_waits_for_who_found_it(struct kunit *test)
{
	struct scene s = {}, looker;
	struct job look, unregister;
	struct gpu_context *next;

	if (num_online_cpus() < 2)
		kunit_skip(test, "one CPU spins, another goes on: there is one");

	scene_set(test, &s);
	next = context_register(test, s.gpu, s.mm);
	looker = s;
	gate_close(HMM_POINT_FIND_FOUND);
	job_start(&look, job_find, &looker);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_FIND_FOUND));
	gate_close(HMM_POINT_UNREGISTER_WAIT);
	job_start(&unregister, job_unregister, s.context);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNREGISTER_WAIT));
	gate_open(HMM_POINT_UNREGISTER_WAIT);
	KUNIT_EXPECT_TRUE(test, job_waits(&unregister));
	gate_open(HMM_POINT_FIND_FOUND);
	KUNIT_EXPECT_TRUE(test, job_end(&look));
	/* It is the next one, but on a machine so slow that it was not held */
	KUNIT_EXPECT_NE(test, looker.path, 0);
	if (looker.path)
		hmm_mirror_put(&looker.context->mirror);
	KUNIT_EXPECT_TRUE(test, job_end(&unregister));
	hmm_mirror_unregister(&next->mirror);
	context_end(test, next, HMM_RELEASE_UNREGISTER, 1);
	scene_end(test, &s, PATH_UNREGISTER, PATH_UNREGISTER);
}

/*
 * Who is held at one gate, and is let go, does not get to the next one as long as
 * that lock is taken: it takes it in between.
 */
static void lock_between(struct kunit *test, spinlock_t *lock, unsigned int at,
			 unsigned int next)
{
	unsigned long flags;
	int came;

	/* Or it is let go on this CPU, which is busy here, and comes nowhere at all */
	set_cpus_allowed_ptr(current, cpumask_of(cpumask_any_but(cpu_online_mask,
								 gates[at].cpu)));
	gate_close(next);
	spin_lock_irqsave(lock, flags);
	gate_open(at);
	mdelay(QUIET_MS);
	came = gate_arrivals(next);
	spin_unlock_irqrestore(lock, flags);
	set_cpus_allowed_ptr(current, cpu_possible_mask);
	KUNIT_EXPECT_EQ(test, came, 0);
	KUNIT_EXPECT_TRUE(test, gate_reached(next));
}

/* Held before it begins. */
static void job_start_held(struct kunit *test, struct job *job,
			   void (*fn)(void *), void *arg)
{
	gate_close(GATE_BEFORE_JOB);
	job_start(job, fn, arg);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_BEFORE_JOB));
}

static void lock_ends(struct kunit *test, struct job *job, unsigned int at)
{
	gate_open(at);
	KUNIT_EXPECT_TRUE(test, job_end(job));
}

/* On its way from one list to the next, a mirror passes each lock. */
static void hmm_unregister_takes_each_lock(struct kunit *test)
{
	enum { OF_DEVICE, OF_MIRRORS, NR_LOCKS };
	int i;

	if (num_online_cpus() < 2)
		kunit_skip(test, "one CPU holds a lock, another wants it: there is one");

	for (i = 0; i < NR_LOCKS; i++) {
		struct scene s = {};
		struct job job;

		scene_set(test, &s);
		job_start_held(test, &job, job_unregister, s.context);
		lock_between(test, &s.gpu->hmm.lock, GATE_BEFORE_JOB,
			     HMM_POINT_RELEASE_OWNED);
		lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_CALLBACKS,
						 job.task),
			     HMM_POINT_RELEASE_OWNED, GATE_IN_RELEASE);
		lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_CALLBACKS,
						 job.task),
			     GATE_IN_RELEASE, HMM_POINT_RELEASE_RETURNED);
		lock_between(test, i == OF_DEVICE ? &s.gpu->hmm.lock :
			     hmm_test_lock(HMM_TEST_LOCK_OF_MIRRORS,
					   &s.context->mirror),
			     HMM_POINT_RELEASE_RETURNED, HMM_POINT_MM_UNUSED);
		lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_TABLE, s.mm),
			     HMM_POINT_MM_UNUSED, HMM_POINT_UNREGISTER_WAIT);
		lock_between(test, &s.gpu->hmm.lock, HMM_POINT_UNREGISTER_WAIT,
			     HMM_POINT_DEVICE_PUT);
		lock_ends(test, &job, HMM_POINT_DEVICE_PUT);
		scene_end(test, &s, PATH_UNREGISTER, PATH_UNREGISTER);
	}
}

static void hmm_register_takes_each_lock(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct registration r[2];
	struct gpu_context *quick;
	struct mm_struct *mm;
	struct job job;
	int i;

	if (num_online_cpus() < 2) {
		gpu_end(test, gpu);
		kunit_skip(test, "one CPU holds a lock, another wants it: there is one");
	}

	mm = mm_new(test);
	for (i = 0; i < 2; i++) {
		r[i].gpu = gpu;
		r[i].mm = mm;
		r[i].context = context_new(test);
		r[i].ret = 1;
	}
	/* The first of an mm */
	gate_close(HMM_POINT_REGISTER_CREATED);
	job_start(&job, job_register, &r[0]);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_REGISTER_CREATED));
	lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_TABLE, mm),
		     HMM_POINT_REGISTER_CREATED, HMM_POINT_REGISTER_ARMED);
	lock_between(test, &gpu->hmm.lock, HMM_POINT_REGISTER_ARMED,
		     GATE_AFTER_JOB);
	lock_ends(test, &job, GATE_AFTER_JOB);
	KUNIT_EXPECT_EQ(test, r[0].ret, 0);
	hmm_mirror_unregister(&r[0].context->mirror);

	/* One that would have liked to be it */
	gate_close(HMM_POINT_REGISTER_CREATED);
	job_start(&job, job_register, &r[1]);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_REGISTER_CREATED));
	quick = context_register(test, gpu, mm);
	lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_MIRRORS, &quick->mirror),
		     HMM_POINT_REGISTER_CREATED, HMM_POINT_MM_UNUSED);
	gate_close(HMM_POINT_REGISTER_ARMED);
	gate_open(HMM_POINT_MM_UNUSED);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_REGISTER_ARMED));
	lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_MIRRORS, &quick->mirror),
		     HMM_POINT_REGISTER_ARMED, HMM_POINT_REGISTER_LINKED);
	lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_MIRRORS, &quick->mirror),
		     HMM_POINT_REGISTER_LINKED, GATE_AFTER_JOB);
	lock_ends(test, &job, GATE_AFTER_JOB);
	KUNIT_EXPECT_EQ(test, r[1].ret, 0);
	hmm_mirror_unregister(&r[1].context->mirror);
	hmm_mirror_unregister(&quick->mirror);
	context_end(test, r[0].context, HMM_RELEASE_UNREGISTER, 0);
	context_end(test, r[1].context, HMM_RELEASE_UNREGISTER, 0);
	context_end(test, quick, HMM_RELEASE_UNREGISTER, 0);
	mmput(mm);
	gpu_end(test, gpu);
}

static void job_unpin(void *context)
{
	hmm_mirror_mm_put(&((struct gpu_context *)context)->mirror);
}

static void hmm_pins_take_the_lock(struct kunit *test)
{
	static void (* const fn[])(void *) = { job_pin, job_unpin };
	struct scene s = {};
	int i;

	if (num_online_cpus() < 2)
		kunit_skip(test, "one CPU holds a lock, another wants it: there is one");

	scene_set(test, &s);
	for (i = 0; i < ARRAY_SIZE(fn); i++) {
		struct scene pinner = s;
		struct job job;

		job_start_held(test, &job, fn[i],
			       fn[i] == job_pin ? (void *)&pinner : s.context);
		lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_MIRRORS,
						 &s.context->mirror),
			     GATE_BEFORE_JOB, GATE_AFTER_JOB);
		lock_ends(test, &job, GATE_AFTER_JOB);
		KUNIT_EXPECT_EQ(test, atomic_read(&s.mm->mm_users), 2 - i);
	}
	hmm_mirror_unregister(&s.context->mirror);
	scene_end(test, &s, PATH_UNREGISTER, PATH_UNREGISTER);
}

static void job_device_register(void *gpu)
{
	WARN_ON(hmm_device_register(&((struct gpu *)gpu)->hmm, &gpu_free_ops,
				    "gpu"));
}

static void hmm_devices_take_each_lock(struct kunit *test)
{
	struct gpu *gpu = kzalloc_obj(*gpu);
	struct scene s = { .gpu = gpu };
	struct job job;

	KUNIT_ASSERT_NOT_NULL(test, gpu);
	if (num_online_cpus() < 2) {
		kfree(gpu);
		kunit_skip(test, "one CPU holds a lock, another wants it: there is one");
	}

	job_start_held(test, &job, job_device_register, s.gpu);
	lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_DEVICES, NULL),
		     GATE_BEFORE_JOB, GATE_AFTER_JOB);
	lock_ends(test, &job, GATE_AFTER_JOB);

	s.mm = mm_new(test);
	s.context = context_register(test, s.gpu, s.mm);
	s.path = PATH_UNPLUG;
	job_start_held(test, &job, job_path, &s);
	/* It goes over the list of mirrors, and then from one to the next */
	gate_close(HMM_POINT_RELEASE_WAIT);
	lock_between(test, &s.gpu->hmm.lock, GATE_BEFORE_JOB,
		     HMM_POINT_RELEASE_OWNED);
	/* Found while it is linked: the worker that is held may not go on before */
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_RELEASE_WAIT));
	hmm_mirror_kill(&s.context->mirror);
	gate_open(HMM_POINT_RELEASE_OWNED);
	hmm_synchronize();
	lock_between(test, &s.gpu->hmm.lock, HMM_POINT_RELEASE_WAIT,
		     HMM_POINT_UNPLUG_DONE);
	lock_ends(test, &job, HMM_POINT_UNPLUG_DONE);
	hmm_mirror_unregister(&s.context->mirror);
	context_end(test, s.context, HMM_RELEASE_DEVICE_GONE, 1);
	mmput(s.mm);

	/* Whether a callback calls is looked at first */
	job_start_held(test, &job, job_synchronize, NULL);
	lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_CALLBACKS, job.task),
		     GATE_BEFORE_JOB, GATE_AFTER_JOB);
	lock_ends(test, &job, GATE_AFTER_JOB);

	job_start_held(test, &job, job_device_unregister, s.gpu);
	lock_between(test, &s.gpu->hmm.lock, GATE_BEFORE_JOB,
		     HMM_POINT_DEVICE_WAIT);
	lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_DEVICES, NULL),
		     HMM_POINT_DEVICE_WAIT, GATE_AFTER_JOB);
	lock_ends(test, &job, GATE_AFTER_JOB);
	kfree(s.gpu);
}

static void job_show(void *file)
{
	static char text[PAGE_SIZE];
	struct kvec vec = { .iov_base = text, .iov_len = sizeof(text) };
	struct iov_iter iter;
	struct kiocb kiocb;

	init_sync_kiocb(&kiocb, file);
	kiocb.ki_pos = 0;
	iov_iter_kvec(&iter, ITER_DEST, &vec, 1, sizeof(text));
	WARN_ON(seq_read_iter(&kiocb, &iter) <= 0);
}

/* What debugfs shows may be on its way out. */
static void hmm_debugfs_takes_each_lock(struct kunit *test)
{
	static const char * const names[] = { "hmm/devices", "hmm/mirrors" };
	struct file_system_type *type;
	struct vfsmount *debugfs;
	struct scene s = {};
	struct job job;
	int i;

	if (num_online_cpus() < 2)
		kunit_skip(test, "one CPU holds a lock, another wants it: there is one");
	type = get_fs_type("debugfs");
	if (!type)
		kunit_skip(test, "needs debugfs");

	debugfs = kern_mount(type);
	module_put(type->owner);
	KUNIT_ASSERT_FALSE(test, IS_ERR(debugfs));
	scene_set(test, &s);
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		struct file *file = file_open_root_mnt(debugfs, names[i],
						       O_RDONLY, 0);

		KUNIT_EXPECT_FALSE(test, IS_ERR(file));
		if (IS_ERR(file))
			continue;
		job_start_held(test, &job, job_show, file);
		lock_between(test, hmm_test_lock(HMM_TEST_LOCK_OF_DEVICES, NULL),
			     GATE_BEFORE_JOB, GATE_AFTER_JOB);
		lock_ends(test, &job, GATE_AFTER_JOB);
		/* The mirrors are those of one device after the other */
		if (i) {
			job_start_held(test, &job, job_show, file);
			lock_between(test, &s.gpu->hmm.lock, GATE_BEFORE_JOB,
				     GATE_AFTER_JOB);
			lock_ends(test, &job, GATE_AFTER_JOB);
		}
		fput(file);
	}
	kern_unmount(debugfs);
	hmm_mirror_unregister(&s.context->mirror);
	scene_end(test, &s, PATH_UNREGISTER, PATH_UNREGISTER);
}

/* G11, C11. A signal while the first mirror is armed: nothing is left, and again. */
static void hmm_register_with_a_signal_pending_unwinds(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_new(test);
	struct hmm_test_counts counts;

	mm_map_page(test, mm);

	allow_signal(SIGUSR1);
	send_sig(SIGUSR1, current, 1);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), -EINTR);
	flush_signals(current);
	disallow_signal(SIGUSR1);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, 0);
	KUNIT_EXPECT_EQ(test, counts.mirrors, 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), 0);
	mmput(mm);
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
}

/* G5, C3. Until ->release() returns the driver hears what becomes of the pages. */
static void hmm_invalidations_reach_the_driver_during_release(struct kunit *test)
{
	struct mmu_interval_notifier notifier;
	struct job kill, unmap;
	struct scene s = {};

	scene_set(test, &s);
	mm_map_page(test, s.mm);
	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&notifier, s.mm,
							   SOME_ADDRESS,
							   PAGE_SIZE,
							   &kunit_notifier_ops),
			0);
	gate_close(GATE_IN_RELEASE);
	gate_close(GATE_IN_INVALIDATE);
	scene_start(&s, &kill, PATH_KILL);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_RELEASE));
	job_start(&unmap, job_munmap, s.mm);
	KUNIT_EXPECT_TRUE(test, gate_reached(GATE_IN_INVALIDATE));
	gate_open(GATE_IN_INVALIDATE);
	KUNIT_EXPECT_TRUE(test, job_end(&unmap));
	KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_release), 0);
	gate_open(GATE_IN_RELEASE);
	KUNIT_EXPECT_TRUE(test, job_end(&kill));
	hmm_synchronize();
	mmu_interval_notifier_remove(&notifier);
	scene_end(test, &s, PATH_KILL, PATH_KILL);
}

/*
 * Misuse: reported, refused, survived
 */

/* Each misuse, at each place, warns; once a boot, so that it is refused in silence then. */
#define expect_warning(what, call)					\
do {									\
	int times;							\
									\
	for (times = 0; times < 2; times++) {				\
		if (!times)						\
			pr_info("hmm-test: expect-warning %s\n", what);	\
		call;							\
		if (!times)						\
			pr_info("hmm-test: end-expect\n");		\
	}								\
} while (0)

static void misuse_in_release(struct gpu_context *context)
{
	expect_warning("hmm_mirror_unregister.* in a callback",
		       hmm_mirror_unregister(&context->mirror));
	expect_warning("hmm_device_unplug.* in a callback",
		       hmm_device_unplug(&context->gpu->hmm));
	expect_warning("hmm_synchronize.* in a callback", hmm_synchronize());
	expect_warning("hmm_device_unregister.* in a callback",
		       context->ret = hmm_device_unregister(&context->gpu->hmm));
}

static void hmm_unregister_in_callback_is_refused(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_new(test);

	context->in_release = misuse_in_release;
	context->gpu = other;
	KUNIT_ASSERT_EQ(test, hmm_mirror_register(&context->mirror, &gpu->hmm,
						  mm), 0);
	mmput(mm);
	KUNIT_EXPECT_EQ(test, context->ret, -EBUSY);
	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_MM_EXIT, 0);
	gpu_end(test, gpu);
	gpu_end(test, other);
}

static void job_device_unregister_late(void *gpu)
{
	WARN_ON(hmm_device_unregister(&((struct gpu *)gpu)->hmm) != -EINVAL);
}

static void hmm_unregister_of_unregistered_is_refused(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct hmm_mirror never_mirror = {};
	struct hmm_device never = {};
	struct scene s = {};
	struct job remove;
	int ret;

	hmm_mirror_unregister(&context->mirror);
	/* Twice, then never registered: the same place, so one warning a boot */
	expect_warning("hmm_mirror_unregister.* of an unregistered mirror",
		       hmm_mirror_unregister(&context->mirror));
	hmm_mirror_unregister(&never_mirror);
	/* Twice, with a reference that keeps it; then never registered */
	scene_set(test, &s);
	hmm_mirror_get(&s.context->mirror);
	hmm_mirror_unregister_async(&s.context->mirror);
	expect_warning("hmm_mirror_unregister_async.* of an unregistered mirror",
		       hmm_mirror_unregister_async(&s.context->mirror));
	hmm_mirror_put(&s.context->mirror);
	scene_end(test, &s, PATH_ASYNC, PATH_ASYNC);
	hmm_mirror_unregister_async(&never_mirror);
	expect_warning("hmm_device_unplug.* of an unregistered device",
		       hmm_device_unplug(&never));
	expect_warning("hmm_device_unregister.* of an unregistered device",
		       ret = hmm_device_unregister(&never));
	KUNIT_EXPECT_EQ(test, ret, -EINVAL);
	/* Two at once */
	gate_close(HMM_POINT_DEVICE_WAIT);
	job_start(&remove, job_device_unregister, gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_WAIT));
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), -EINVAL);

	gate_open(HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	context_end(test, context, HMM_RELEASE_UNREGISTER, 0);
	/* One of them comes when the other is through */
	KUNIT_ASSERT_EQ(test, hmm_device_register(&gpu->hmm, &gpu_ops, "gpu"), 0);
	gate_close(HMM_POINT_DEVICE_CLOSE);
	job_start(&remove, job_device_unregister_late, gpu);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_CLOSE));
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), 0);
	gate_open(HMM_POINT_DEVICE_CLOSE);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	kfree(gpu);

	/* Of a mirror, too, one thread in the middle of it; it has warned above */
	scene_set(test, &s);
	hmm_mirror_get(&s.context->mirror);
	gate_close(HMM_POINT_UNREGISTER_WAIT);
	scene_start(&s, &remove, PATH_UNREGISTER);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_UNREGISTER_WAIT));
	KUNIT_EXPECT_EQ(test, atomic_read(&s.context->nr_release), 1);
	hmm_mirror_unregister(&s.context->mirror);
	hmm_mirror_unregister_async(&s.context->mirror);
	hmm_mirror_put(&s.context->mirror);
	gate_open(HMM_POINT_UNREGISTER_WAIT);
	KUNIT_EXPECT_TRUE(test, job_end(&remove));
	scene_end(test, &s, PATH_UNREGISTER, PATH_UNREGISTER);
	mmput(mm);
}

static void job_device_register_ret(void *arg)
{
	struct registration *r = arg;

	r->ret = hmm_device_register(&r->gpu->hmm, &gpu_ops, "gpu");
}

static void job_register_at_once(void *arg)
{
	struct registration *r = arg;

	/* Both begin in the same moment, if there are CPUs for it */
	atomic_inc(r->ready);
	while (num_online_cpus() > 1 && atomic_read(r->ready) < 2)
		cond_resched();
	job_register(r);
}

/* Two registers of one mirror: one is refused, and spoils nothing, whoever wins. */
static void hmm_registers_of_one_mirror_at_once(struct kunit *test)
{
	struct gpu *gpu[2] = { gpu_new(test, &gpu_ops), gpu_new(test, &gpu_ops) };
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_new(test);
	int i, j, wrong = 0;

	for (i = 0; i < NR_RACES; i++) {
		struct registration r[2];
		struct job jobs[2];
		atomic_t ready = ATOMIC_INIT(0);

		for (j = 0; j < 2; j++) {
			r[j] = (struct registration) {
				.gpu = gpu[j], .mm = mm, .context = context,
				.ready = &ready,
			};
			job_start(&jobs[j], job_register_at_once, &r[j]);
		}
		for (j = 0; j < 2; j++)
			KUNIT_EXPECT_TRUE(test, job_end(&jobs[j]));
		wrong += (r[0].ret != 0) == (r[1].ret != 0);
		wrong += (r[0].ret ?: r[1].ret) != -EBUSY;
		atomic_set(&context->nr_release, 0);
		hmm_mirror_unregister(&context->mirror);
	}
	KUNIT_EXPECT_EQ(test, wrong, 0);
	context_end(test, context, HMM_RELEASE_UNREGISTER, 0);
	gpu_end(test, gpu[0]);
	gpu_end(test, gpu[1]);
	mmput(mm);
}

/* The same in one order, and of a device: who looked first comes second. */
static void hmm_register_that_looked_first_loses(struct kunit *test)
{
	struct gpu *gpu = kzalloc_obj(*gpu);
	struct mm_struct *mm = mm_new(test);
	struct registration r = {
		.gpu = gpu, .mm = mm, .context = context_new(test),
	};
	struct job job;

	KUNIT_ASSERT_NOT_NULL(test, gpu);
	gate_close(HMM_POINT_DEVICE_OWN);
	job_start(&job, job_device_register_ret, &r);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_DEVICE_OWN));
	KUNIT_EXPECT_EQ(test, hmm_device_register(&gpu->hmm, &gpu_ops, "gpu"),
			0);
	gate_open(HMM_POINT_DEVICE_OWN);
	KUNIT_EXPECT_TRUE(test, job_end(&job));
	KUNIT_EXPECT_EQ(test, r.ret, -EBUSY);

	gate_close(HMM_POINT_REGISTER_OWN);
	job_start(&job, job_register, &r);
	KUNIT_EXPECT_TRUE(test, gate_reached(HMM_POINT_REGISTER_OWN));
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&r.context->mirror, &gpu->hmm,
						  mm), 0);
	gate_open(HMM_POINT_REGISTER_OWN);
	KUNIT_EXPECT_TRUE(test, job_end(&job));
	KUNIT_EXPECT_EQ(test, r.ret, -EBUSY);

	hmm_mirror_unregister(&r.context->mirror);
	context_end(test, r.context, HMM_RELEASE_UNREGISTER, 0);
	gpu_end(test, gpu);
	mmput(mm);
}

/* What is dropped too often, or cannot work: said, and survived. */
static void hmm_put_of_what_was_not_taken_is_refused(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct mm_struct *mm = mm_new(test);
	struct gpu_context *context = context_register(test, gpu, mm);
	struct gpu_context *pinned = context_register(test, gpu, mm);

	expect_warning("hmm_mirror_put.* of what was not taken",
		       hmm_mirror_put(&context->mirror));
	/* The pin is another's: it stays; that of its own is gone */
	KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(&pinned->mirror));
	KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(&context->mirror));
	hmm_mirror_mm_put(&context->mirror);
	expect_warning("hmm_mirror_mm_put.* of what is not pinned",
		       hmm_mirror_mm_put(&context->mirror));
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_users), 2);
	hmm_mirror_mm_put(&pinned->mirror);
	expect_warning("hmm_mirror_unregister_async.* without ->free",
		       hmm_mirror_unregister_async(&context->mirror));
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_users), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 0);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&gpu->hmm), -EBUSY);

	hmm_mirror_unregister(&context->mirror);
	context_end(test, context, HMM_RELEASE_UNREGISTER, 0);
	hmm_mirror_unregister(&pinned->mirror);
	context_end(test, pinned, HMM_RELEASE_UNREGISTER, 0);
	mmput(mm);
	gpu_end(test, gpu);
}

static int hmm_kunit_suite_init(struct kunit_suite *suite)
{
	unsigned int at;
	int ret;

	for (at = 0; at < NR_GATES; at++) {
		init_completion(&gates[at].reached);
		init_completion(&gates[at].open);
	}
	hmm_test_set_lazy_delay(0);
	jobs_wq = alloc_workqueue("hmm_kunit", WQ_UNBOUND, 0);
	if (!jobs_wq)
		return -ENOMEM;
	ret = hmm_test_set_hook(hmm_kunit_hook);
	if (ret)
		destroy_workqueue(jobs_wq);
	return ret;
}

/*
 * The next may be the unload of HMM: its timer is still to come, and what is left of an
 * address space is gathered. It came to that after the last device had looked.
 */
static void leave_it_to_the_unload(void)
{
	static struct gpu_context context;
	static struct gpu gpu;
	struct mm_struct *mm = mm_alloc();
	struct job unregister, remove;

	hmm_test_set_lazy_delay(msecs_to_jiffies(2 * LIMIT_MS));
	if (WARN_ON(!mm))
		return;
	WARN_ON(hmm_device_register(&gpu.hmm, &gpu_ops, "gpu"));
	init_completion(&context.entered);
	WARN_ON(hmm_mirror_register(&context.mirror, &gpu.hmm, mm));
	gate_close(HMM_POINT_RELEASE_OWNED);
	job_start(&unregister, job_unregister, &context);
	WARN_ON(!gate_reached(HMM_POINT_RELEASE_OWNED));
	job_start(&remove, job_device_unregister, &gpu);
	WARN_ON(!job_waits(&remove));
	gate_open(HMM_POINT_RELEASE_OWNED);
	WARN_ON(!job_end(&unregister));
	WARN_ON(!job_end(&remove));
	mmput(mm);
}

static void hmm_kunit_suite_exit(struct kunit_suite *suite)
{
	if (IS_MODULE(CONFIG_HMM_DEVICE))
		leave_it_to_the_unload();
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
	/* The first walk there is must be seen as well as any other */
	KUNIT_CASE(hmm_unregister_waits_for_exit_that_walks),
	/* Before a test sets how much workers do at once */
	KUNIT_CASE(hmm_workers_do_not_wait_for_others),
	KUNIT_CASE(hmm_mms_are_let_go_of_side_by_side),
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
	KUNIT_CASE(hmm_mms_in_one_place_are_told_apart),
	KUNIT_CASE(hmm_two_devices_torn_down_in_either_order),
	KUNIT_CASE(hmm_unregister_waits_for_references),
	KUNIT_CASE(hmm_exit_waits_for_release_of_unregister),
	KUNIT_CASE(hmm_unregister_waits_for_release_of_exit),
	KUNIT_CASE(hmm_unregister_waits_for_exit_to_let_go),
	KUNIT_CASE(hmm_unregister_overtakes_exit_that_found_it),
	KUNIT_CASE(hmm_nothing_is_touched_after_the_last_drop),
	KUNIT_CASE(hmm_device_unregister_waits_for_unregister),
	KUNIT_CASE(hmm_device_unregister_waits_for_free),
	KUNIT_CASE(hmm_register_loses_to_device_unregister),
	KUNIT_CASE(hmm_register_beside_exit_is_released),
	KUNIT_CASE(hmm_registers_at_once_share_one_hmm),
	KUNIT_CASE(hmm_register_beside_last_unregister),
	KUNIT_CASE_SLOW(hmm_registers_and_unregisters_on_one_mm),
	KUNIT_CASE(hmm_register_waits_for_running_invalidation),
	KUNIT_CASE(hmm_unregister_and_register_during_an_invalidation),
	KUNIT_CASE(hmm_register_during_exit_fails),
	KUNIT_CASE(hmm_exit_after_a_second_device_failed),
	KUNIT_CASE(hmm_register_on_a_full_device_fails),
	KUNIT_CASE_SLOW(hmm_exit_against_unregister_many_times),
	KUNIT_CASE_SLOW(hmm_second_one_waits_for_the_release_of_the_first),
	KUNIT_CASE(hmm_unregister_waits_for_who_waits_for_the_release),
	KUNIT_CASE_SLOW(hmm_everybody_at_once_releases_once),
	KUNIT_CASE(hmm_device_unregister_waits_for_async_free),
	KUNIT_CASE(hmm_release_may_unregister_async_kill_and_put),
	KUNIT_CASE(hmm_release_of_exit_may_end_a_neighbour),
	KUNIT_CASE(hmm_device_unregister_waits_for_references),
	KUNIT_CASE(hmm_register_in_release),
	KUNIT_CASE(hmm_sleeping_release_delays_nobody_else),
	KUNIT_CASE(hmm_exit_without_workers_releases_all),
	KUNIT_CASE(hmm_put_and_kill_in_interrupt),
	KUNIT_CASE(hmm_kill_and_put_in_an_invalidation),
	KUNIT_CASE(hmm_kill_after_the_end_does_nothing),
	KUNIT_CASE(hmm_synchronize_waits_for_what_is_due),
	KUNIT_CASE(hmm_synchronize_waits_for_the_free_of_an_unregister),
	KUNIT_CASE(hmm_release_does_not_wait_for_an_older_free),
	KUNIT_CASE(hmm_mm_get_fails_once_only_pins_are_left),
	KUNIT_CASE(hmm_mm_pin_outlives_the_release),
	KUNIT_CASE(hmm_last_pin_in_a_worker_that_release_waits_for),
	KUNIT_CASE(hmm_unplug_releases_all_and_refuses_new),
	KUNIT_CASE(hmm_device_unregister_waits_for_unplug),
	KUNIT_CASE(hmm_async_unregister_while_unplug_owns),
	KUNIT_CASE(hmm_async_unregister_while_kill_owns),
	KUNIT_CASE(hmm_who_waits_does_what_is_gathered),
	KUNIT_CASE(hmm_synchronize_waits_for_who_does_what_is_gathered),
	KUNIT_CASE(hmm_releases_of_exit_and_unplug_overlap),
	KUNIT_CASE(hmm_releases_of_one_exit_all_overlap),
	KUNIT_CASE(hmm_releases_overlap_when_a_queued_one_is_taken),
	KUNIT_CASE(hmm_kill_is_not_behind_an_exit),
	KUNIT_CASE(hmm_async_release_beside_an_mm_in_use),
	KUNIT_CASE(hmm_releases_of_two_processes_overlap),
	KUNIT_CASE(hmm_find_gives_live_mirrors_only),
	KUNIT_CASE(hmm_lookups_beside_the_end_of_an_mm),
	KUNIT_CASE(hmm_unregister_waits_for_who_found_it),
	KUNIT_CASE_SLOW(hmm_unregister_takes_each_lock),
	KUNIT_CASE(hmm_register_takes_each_lock),
	KUNIT_CASE(hmm_pins_take_the_lock),
	KUNIT_CASE(hmm_devices_take_each_lock),
	KUNIT_CASE(hmm_debugfs_takes_each_lock),
	KUNIT_CASE(hmm_register_with_a_signal_pending_unwinds),
	KUNIT_CASE(hmm_invalidations_reach_the_driver_during_release),
	KUNIT_CASE(hmm_unregister_in_callback_is_refused),
	KUNIT_CASE(hmm_unregister_of_unregistered_is_refused),
	KUNIT_CASE(hmm_put_of_what_was_not_taken_is_refused),
	KUNIT_CASE_SLOW(hmm_registers_of_one_mirror_at_once),
	KUNIT_CASE(hmm_register_that_looked_first_loses),
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

/* mm_alloc() */
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
MODULE_DESCRIPTION("KUnit tests of the HMM registration core");
MODULE_LICENSE("GPL");
