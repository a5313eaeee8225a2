// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of faults that earlier versions of mm/hmm_device.c had
 *
 * Each case sets up one interleaving or one misuse that a version of the HMM
 * core, or a fault put into it, got wrong. The cases do not use the test points
 * of mm/hmm_device.c: they hold threads in the callbacks of the driver, in the interval
 * notifier of another driver, and in a probe of the tracepoint hmm_register.
 *
 * A case waits at most LIMIT_MS for what must happen. If a thread is still stuck
 * when the case ends, the case leaks its objects and the run goes on. A case
 * also fails if the kernel warned while it ran.
 *
 * The cases that expect a warning expect the first one of each place: run this
 * suite in a boot of its own, or with HMM just loaded.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <kunit/test.h>
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/debug_locks.h>
#include <linux/hmm_device.h>
#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <trace/events/hmm.h>
#include <trace/events/printk.h>

#define LIMIT_MS	20000
/* How long a ->release() waits for a worker before it lets the case fail */
#define GIVE_UP_MS	5000
#define QUIET_MS	100
#define SPIN_MS		500
#define CROWD_MS	10000
#define MAX_JOBS	8

/* Where a page can be mapped in an empty mm */
#define SOME_ADDRESS	0x10000000UL

struct scene;

struct gpu_context {
	struct hmm_mirror mirror;
	struct scene *s;
	bool registered;
	atomic_t nr_entered;		/* calls of ->release() */
	atomic_t nr_released;		/* and returns from it */
	atomic_t nr_freed;
	enum hmm_release_reason reason;
	struct task_struct *task;	/* runs ->release() */
	void (*in_release)(struct gpu_context *context);
	void (*in_free)(struct gpu_context *context);
};

struct job {
	struct scene *s;
	void (*fn)(struct scene *s);
	struct task_struct *task;
	bool done;
};

struct scene {
	struct hmm_device gpu;
	struct hmm_device other;
	struct mm_struct *mm;
	struct mm_struct *other_mm;
	struct gpu_context context;
	struct gpu_context second;
	struct gpu_context *many;
	unsigned int nr_many;
	struct job jobs[MAX_JOBS];
	unsigned int nr_jobs;
	wait_queue_head_t wait;		/* every change that a thread waits for */
	struct completion open;		/* for callbacks in wait_open() */
	atomic_t nr_waiting;
	atomic_t nr_released;
	atomic_t nr_freed;
	/* An interval notifier of another driver */
	struct mmu_interval_notifier notifier;
	struct completion open_invalidate;
	bool inserted;
	bool invalidates;
	/* Arguments and results of jobs and callbacks */
	struct workqueue_struct *wq;
	struct work_struct work;
	bool work_done;
	bool probed;
	bool finds;
	bool finder_kills;
	bool finder_ends;
	bool finder_done;
	bool helper_done;
	bool helper_came;
	bool pinned;
	int released_before;
	int ret;
};

static atomic_t nr_warnings;
static unsigned int nr_expected;

/* True as soon as @condition is, false after LIMIT_MS. */
#define comes(s, condition)						\
({									\
	!!wait_event_timeout((s)->wait, condition,			\
			     msecs_to_jiffies(LIMIT_MS));		\
})

/* The same for what happens @nr times: each time may take LIMIT_MS. */
#define comes_to(s, counter, nr)					\
({									\
	int __seen;							\
									\
	do {								\
		__seen = atomic_read(counter);				\
	} while (__seen < (nr) && comes(s, atomic_read(counter) > __seen)); \
	__seen >= (nr);							\
})

static void changed(struct scene *s)
{
	wake_up_all(&s->wait);
}

/*
 * What a driver does
 */

static void gpu_release(struct hmm_mirror *mirror)
{
	struct gpu_context *context =
		container_of(mirror, struct gpu_context, mirror);

	context->reason = hmm_mirror_release_reason(mirror);
	context->task = current;
	atomic_inc(&context->nr_entered);
	changed(context->s);
	if (context->in_release)
		context->in_release(context);
	atomic_inc(&context->nr_released);
	atomic_inc(&context->s->nr_released);
	changed(context->s);
}

static void gpu_free(struct hmm_mirror *mirror)
{
	struct gpu_context *context =
		container_of(mirror, struct gpu_context, mirror);

	if (context->in_free)
		context->in_free(context);
	atomic_inc(&context->nr_freed);
	atomic_inc(&context->s->nr_freed);
	changed(context->s);
}

static const struct hmm_device_ops gpu_ops = {
	.release = gpu_release,
	.free = gpu_free,
};

static void wait_open(struct gpu_context *context)
{
	atomic_inc(&context->s->nr_waiting);
	changed(context->s);
	wait_for_completion(&context->s->open);
}

static int context_register(struct gpu_context *context, struct scene *s,
			    struct hmm_device *device, struct mm_struct *mm)
{
	int ret;

	context->s = s;
	ret = hmm_mirror_register(&context->mirror, device, mm);
	context->registered = !ret;
	return ret;
}

static void scene_register(struct kunit *test, struct gpu_context *context,
			   struct hmm_device *device, struct mm_struct *mm)
{
	KUNIT_ASSERT_EQ(test, context_register(context, test->priv, device, mm),
			0);
}

static void context_unregister(struct gpu_context *context)
{
	context->registered = false;
	hmm_mirror_unregister(&context->mirror);
}

static void context_unregister_async(struct gpu_context *context)
{
	context->registered = false;
	hmm_mirror_unregister_async(&context->mirror);
}

static void contexts_register(struct kunit *test, struct scene *s,
			      unsigned int nr, struct hmm_device *device,
			      struct mm_struct *mm)
{
	unsigned int i;

	s->many = kvcalloc(nr, sizeof(*s->many), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, s->many);
	s->nr_many = nr;
	for (i = 0; i < nr; i++)
		KUNIT_ASSERT_EQ(test, context_register(&s->many[i], s, device,
						       mm), 0);
}

/* The owner of the address space exits. */
static void mm_end(struct mm_struct **mm)
{
	struct mm_struct *ended = *mm;

	*mm = NULL;
	if (ended)
		mmput(ended);
}

static bool other_invalidate(struct mmu_interval_notifier *notifier,
			     const struct mmu_notifier_range *range,
			     unsigned long cur_seq)
{
	struct scene *s = container_of(notifier, struct scene, notifier);

	mmu_interval_set_seq(notifier, cur_seq);
	WRITE_ONCE(s->invalidates, true);
	changed(s);
	wait_for_completion(&s->open_invalidate);
	return true;
}

static const struct mmu_interval_notifier_ops other_ops = {
	.invalidate = other_invalidate,
};

/*
 * Threads
 */

static int job_thread(void *arg)
{
	struct job *job = arg;

	job->fn(job->s);
	/* Pairs with the acquire in job_ended() */
	smp_store_release(&job->done, true);
	changed(job->s);
	wait_event(job->s->wait, kthread_should_stop());
	return 0;
}

static struct job *job_start_on(struct kunit *test, struct scene *s,
				void (*fn)(struct scene *s), int cpu)
{
	struct job *job = &s->jobs[s->nr_jobs];

	KUNIT_ASSERT_LT(test, s->nr_jobs, MAX_JOBS);
	job->s = s;
	job->fn = fn;
	job->task = kthread_create(job_thread, job, "hmm_faults/%u", s->nr_jobs);
	KUNIT_ASSERT_FALSE(test, IS_ERR(job->task));
	s->nr_jobs++;
	if (cpu >= 0)
		kthread_bind(job->task, cpu);
	wake_up_process(job->task);
	return job;
}

static struct job *job_start(struct kunit *test, struct scene *s,
			     void (*fn)(struct scene *s))
{
	return job_start_on(test, s, fn, -1);
}

static bool job_ended(struct job *job)
{
	/* What @job wrote is visible once it has ended */
	return smp_load_acquire(&job->done);
}

static bool job_ends(struct job *job)
{
	return comes(job->s, job_ended(job));
}

/* Whether @fn returns; if not, its thread is left to itself. */
static bool returns(struct kunit *test, struct scene *s,
		    void (*fn)(struct scene *s))
{
	return job_ends(job_start(test, s, fn));
}

static void job_synchronize(struct scene *s)
{
	hmm_synchronize();
}

static void job_unregister(struct scene *s)
{
	context_unregister(&s->context);
}

static void job_munmap(struct scene *s)
{
	kthread_use_mm(s->mm);
	WARN_ON(vm_munmap(SOME_ADDRESS, PAGE_SIZE));
	kthread_unuse_mm(s->mm);
}

/* @task was woken and goes to sleep, as nothing else would tell. */
static bool falls_asleep(struct task_struct *task)
{
	unsigned long limit = jiffies + msecs_to_jiffies(LIMIT_MS);

	while (task_is_running(task) && time_before(jiffies, limit))
		schedule_timeout_uninterruptible(1);
	return !task_is_running(task);
}

/* A thread unmaps a page of s->mm, and another driver's notifier holds it. */
static struct job *invalidation_start(struct kunit *test, struct scene *s)
{
	struct job *job;

	s->mm->task_size = TASK_SIZE;
	kthread_use_mm(s->mm);
	KUNIT_EXPECT_EQ(test, vm_mmap(NULL, SOME_ADDRESS, PAGE_SIZE,
				      PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
				      0), SOME_ADDRESS);
	kthread_unuse_mm(s->mm);
	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&s->notifier, s->mm,
							   SOME_ADDRESS,
							   PAGE_SIZE,
							   &other_ops), 0);
	s->inserted = true;
	job = job_start(test, s, job_munmap);
	KUNIT_ASSERT_TRUE(test, comes(s, READ_ONCE(s->invalidates)));
	return job;
}

/*
 * Warnings
 */

/*
 * KCSAN also reports races in which HMM has no part. The scanner of the console
 * tells them apart, so no report of KCSAN counts here.
 */
static void probe_console(void *unused, const char *text, size_t len)
{
	if (strnstr(text, "BUG: KCSAN: ", len))
		return;
	if (strnstr(text, "WARNING: ", len) || strnstr(text, "BUG: ", len))
		atomic_inc(&nr_warnings);
}

/* Tells the scanner of the console as well, see harness/splats.awk. */
#define expect_warning(what, call)					\
do {									\
	pr_info("hmm-test: expect-warning %s\n", what);			\
	nr_expected++;							\
	call;								\
	pr_info("hmm-test: end-expect\n");				\
} while (0)

/*
 * A mirror is found, and ended, before its hmm_mirror_register() returns
 */

/* Interrupts may be off, and locks of HMM held. */
static void probe_register(void *data, const char *device, const void *mirror,
			   const void *mm)
{
	struct scene *s = data;
	ktime_t limit = ktime_add_ms(ktime_get(), SPIN_MS);

	if (mirror != &s->context.mirror)
		return;
	while (!READ_ONCE(s->finder_done) && ktime_before(ktime_get(), limit))
		cpu_relax();
}

static void release_unregisters_async(struct gpu_context *context)
{
	hmm_mirror_unregister_async(&context->mirror);
}

static void job_register(struct scene *s)
{
	s->ret = context_register(&s->context, s, &s->gpu, s->mm);
}

static void job_find(struct scene *s)
{
	struct hmm_mirror *found;

	WRITE_ONCE(s->finds, true);
	changed(s);
	do {
		found = hmm_mirror_find(&s->gpu, s->mm);
		cond_resched();
	} while (!found && !READ_ONCE(s->finder_ends));
	if (!found)
		return;

	if (s->finder_kills) {
		hmm_mirror_kill(found);
		comes(s, atomic_read(&s->context.nr_released));
	} else {
		hmm_mirror_unregister_async(found);
	}
	hmm_mirror_put(found);
	WRITE_ONCE(s->finder_done, true);
}

/*
 * The probe holds hmm_mirror_register() at the tracepoint until the finder is
 * through. If a mirror cannot be found there yet, the probe lets go after SPIN_MS
 * and the finder meets the rest of the register, or comes after it.
 */
static void found_during_register(struct kunit *test, bool kill)
{
	struct scene *s = test->priv;
	struct job *find;

	if (num_online_cpus() < 2)
		kunit_skip(test, "one CPU spins, another goes on: there is one");
	if (register_trace_hmm_register(probe_register, s))
		kunit_skip(test, "needs tracepoints");
	s->probed = true;
	s->finder_kills = kill;
	if (kill)
		s->context.in_release = release_unregisters_async;

	/* The first CPU keeps the time: it does not spin with interrupts off */
	find = job_start_on(test, s, job_find, cpumask_first(cpu_online_mask));
	KUNIT_ASSERT_TRUE(test, comes(s, READ_ONCE(s->finds)));
	KUNIT_ASSERT_TRUE(test,
			  job_ends(job_start_on(test, s, job_register,
						cpumask_last(cpu_online_mask))));
	KUNIT_EXPECT_EQ(test, s->ret, 0);
	KUNIT_EXPECT_TRUE(test, job_ends(find));
	KUNIT_EXPECT_TRUE(test, s->finder_done);
	KUNIT_EXPECT_TRUE(test, returns(test, s, job_synchronize));
	KUNIT_EXPECT_EQ(test, atomic_read(&s->context.nr_released), 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&s->context.nr_freed), 1);
	KUNIT_EXPECT_EQ(test, s->context.reason,
			kill ? HMM_RELEASE_ERROR : HMM_RELEASE_UNREGISTER);
	/* hmm_faults_exit() expects 0 of hmm_device_unregister() */
}

static void hmm_find_during_register_then_kill(struct kunit *test)
{
	found_during_register(test, true);
}

static void hmm_find_during_register_then_unregister_async(struct kunit *test)
{
	found_during_register(test, false);
}

/*
 * hmm_synchronize()
 */

/*
 * A counter of 16 bits wraps at 65,536. TINY_SRCU has one: a core that counts
 * pending callbacks as SRCU readers fails on a kernel without SMP and
 * PREEMPT_RCU. On an emulated CPU with KASAN so many take two minutes, and the
 * hung task detector reports the test; there, fewer have to do. PREEMPT_RT does
 * not refill the pool of debug objects (1,024) under a raw spinlock, and HMM
 * initializes and queues the work items of mirrors under one.
 */
#define NR_PENDING	(IS_ENABLED(CONFIG_PREEMPT_RT) ? 512 :		\
			 IS_ENABLED(CONFIG_TINY_SRCU) ||		\
			 IS_ENABLED(CONFIG_UML) ? 65536 : 4096)

static void job_synchronize_and_count(struct scene *s)
{
	hmm_synchronize();
	s->released_before = atomic_read(&s->nr_released);
}

static void hmm_synchronize_with_many_pending_releases(struct kunit *test)
{
	struct scene *s = test->priv;
	struct job *job;
	int i;

	contexts_register(test, s, NR_PENDING, &s->gpu, s->mm);
	for (i = 0; i < NR_PENDING; i++)
		s->many[i].in_release = wait_open;
	for (i = 0; i < NR_PENDING; i++)
		hmm_mirror_kill(&s->many[i].mirror);
	job = job_start(test, s, job_synchronize_and_count);
	/* Time for a wrong core to return: what counts is what the job has seen */
	wait_event_timeout(s->wait, job_ended(job), msecs_to_jiffies(QUIET_MS));
	KUNIT_EXPECT_FALSE(test, job_ended(job));

	complete_all(&s->open);
	KUNIT_EXPECT_TRUE(test, comes_to(s, &s->nr_released, NR_PENDING));
	KUNIT_EXPECT_TRUE(test, job_ends(job));
	KUNIT_EXPECT_EQ(test, s->released_before, NR_PENDING);
	for (i = 0; i < NR_PENDING; i++)
		context_unregister_async(&s->many[i]);
	KUNIT_EXPECT_TRUE(test, comes_to(s, &s->nr_freed, NR_PENDING));
}

static void work_synchronize(struct work_struct *work)
{
	struct scene *s = container_of(work, struct scene, work);

	WRITE_ONCE(s->context.task, current);
	changed(s);
	hmm_synchronize();
	WRITE_ONCE(s->work_done, true);
	changed(s);
}

/*
 * Drivers tear contexts down in workers that memory reclaim relies on. Such a worker
 * waits for a release first, then maybe for a struct hmm that is let go of.
 */
static void hmm_synchronize_in_a_mem_reclaim_worker(struct kunit *test)
{
	struct scene *s = test->priv;
	struct job *unmap;

	scene_register(test, &s->context, &s->gpu, s->mm);
	scene_register(test, &s->second, &s->other, s->other_mm);
	s->wq = alloc_workqueue("hmm_faults_reclaim",
				WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	KUNIT_ASSERT_NOT_NULL(test, s->wq);
	unmap = invalidation_start(test, s);
	KUNIT_EXPECT_TRUE(test, returns(test, s, job_unregister));
	s->second.in_release = wait_open;
	hmm_mirror_kill(&s->second.mirror);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->nr_waiting)));

	s->context.task = NULL;
	INIT_WORK(&s->work, work_synchronize);
	queue_work(s->wq, &s->work);
	KUNIT_ASSERT_TRUE(test, comes(s, READ_ONCE(s->context.task)));
	KUNIT_EXPECT_TRUE(test, falls_asleep(s->context.task));
	KUNIT_EXPECT_FALSE(test, READ_ONCE(s->work_done));
	complete_all(&s->open);
	/* Whether it waits for the invalidation is another case's question */
	wait_event_timeout(s->wait, READ_ONCE(s->work_done),
			   msecs_to_jiffies(10 * QUIET_MS));
	complete_all(&s->open_invalidate);
	KUNIT_EXPECT_TRUE(test, comes(s, READ_ONCE(s->work_done)));
	KUNIT_EXPECT_TRUE(test, job_ends(unmap));
}

static void work_wait_open(struct work_struct *work)
{
	wait_for_completion(&container_of(work, struct scene, work)->open);
}

static void release_flushes(struct gpu_context *context)
{
	struct scene *s = context->s;

	/* Its worker cannot end before the test sees this thread asleep */
	queue_work(s->wq, &s->work);
	WRITE_ONCE(s->finds, true);
	changed(s);
	flush_work(&s->work);
}

/* The workers of HMM in turn may not be such that waiting for others warns. */
static void hmm_release_in_a_worker_flushes_ordinary_work(struct kunit *test)
{
	struct scene *s = test->priv;

	scene_register(test, &s->context, &s->gpu, s->mm);
	s->wq = alloc_workqueue("hmm_faults", WQ_UNBOUND, 0);
	KUNIT_ASSERT_NOT_NULL(test, s->wq);
	INIT_WORK(&s->work, work_wait_open);
	s->context.in_release = release_flushes;
	hmm_mirror_kill(&s->context.mirror);
	KUNIT_ASSERT_TRUE(test, comes(s, READ_ONCE(s->finds)));
	KUNIT_EXPECT_TRUE(test, falls_asleep(s->context.task));
	complete_all(&s->open);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_released)));
}

/* Another driver may take long to invalidate: what is that to this one? */
static void hmm_synchronize_beside_an_invalidation(struct kunit *test)
{
	struct scene *s = test->priv;
	struct job *unmap, *synchronize;

	scene_register(test, &s->context, &s->gpu, s->mm);
	scene_register(test, &s->second, &s->gpu, s->other_mm);
	unmap = invalidation_start(test, s);
	/* Its struct hmm cannot leave the interval tree before that is over */
	KUNIT_EXPECT_TRUE(test, returns(test, s, job_unregister));
	context_unregister_async(&s->second);
	synchronize = job_start(test, s, job_synchronize);
	KUNIT_EXPECT_TRUE(test, job_ends(synchronize));
	KUNIT_EXPECT_EQ(test, atomic_read(&s->second.nr_freed), 1);
	KUNIT_EXPECT_FALSE(test, job_ended(unmap));
	complete_all(&s->open_invalidate);
	KUNIT_EXPECT_TRUE(test, job_ends(synchronize));
	KUNIT_EXPECT_TRUE(test, job_ends(unmap));
}

/*
 * A ->release() that exit does not run waits for a worker that ends with mmput()
 */

static void job_helper(struct scene *s)
{
	struct mm_struct *mm = s->other_mm;

	s->other_mm = NULL;
	comes(s, atomic_read(&s->context.nr_entered));
	mmput(mm);
	WRITE_ONCE(s->helper_done, true);
	changed(s);
}

static void release_waits_for_helper(struct gpu_context *context)
{
	struct scene *s = context->s;

	s->helper_came =
		wait_event_timeout(s->wait, READ_ONCE(s->helper_done),
				   msecs_to_jiffies(GIVE_UP_MS));
	/* If HMM keeps the address space now, that keeps it for nobody else */
	if (hmm_mirror_mm_get(&s->second.mirror)) {
		s->pinned = true;
		hmm_mirror_mm_put(&s->second.mirror);
	}
}

static void release_of_exit_looks(struct gpu_context *context)
{
	context->s->released_before =
		atomic_read(&context->s->context.nr_released);
}

static void job_kill(struct scene *s)
{
	hmm_mirror_kill(&s->context.mirror);
	hmm_synchronize();
}

static void job_unregister_async(struct scene *s)
{
	context_unregister_async(&s->context);
	hmm_synchronize();
}

static void job_unplug(struct scene *s)
{
	hmm_device_unplug(&s->gpu);
}

/* The process is dead, and its last user is in a helper that ends with mmput(). */
static void release_waits_for_mmput(struct kunit *test,
				    void (*path)(struct scene *s))
{
	struct scene *s = test->priv;
	struct job *helper;

	scene_register(test, &s->context, &s->gpu, s->mm);
	scene_register(test, &s->second, &s->other, s->mm);
	s->context.in_release = release_waits_for_helper;
	s->second.in_release = release_of_exit_looks;
	/* The helper's user, dropped by hmm_faults_exit() if it does not start */
	mm_end(&s->other_mm);
	mmget(s->mm);
	s->other_mm = s->mm;
	helper = job_start(test, s, job_helper);
	mm_end(&s->mm);

	KUNIT_EXPECT_TRUE(test, returns(test, s, path));
	KUNIT_EXPECT_TRUE(test, s->helper_came);
	KUNIT_EXPECT_TRUE(test, job_ends(helper));
	KUNIT_EXPECT_FALSE(test, s->pinned);
	/* Exit comes then, after that ->release(): G2 */
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->second.nr_released)));
	KUNIT_EXPECT_EQ(test, s->second.reason, HMM_RELEASE_MM_EXIT);
	KUNIT_EXPECT_EQ(test, s->released_before, 1);
}

static void hmm_release_of_unregister_waits_for_mmput(struct kunit *test)
{
	release_waits_for_mmput(test, job_unregister);
}

static void hmm_release_of_unregister_async_waits_for_mmput(struct kunit *test)
{
	release_waits_for_mmput(test, job_unregister_async);
}

static void hmm_release_of_kill_waits_for_mmput(struct kunit *test)
{
	release_waits_for_mmput(test, job_kill);
}

static void hmm_release_of_unplug_waits_for_mmput(struct kunit *test)
{
	release_waits_for_mmput(test, job_unplug);
}

/*
 * G15. Two workers fault in turn. Each pins the address space while the other, with
 * its own pin, is in a helper that holds mm_users for a moment. So there is always a
 * pin, and always a user that is not a pin; but no task.
 */
static void hmm_pins_beside_a_helper_do_not_keep_a_dead_process(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_mirror *mirror = &s->context.mirror;
	struct mm_struct *mm = s->mm;
	unsigned long nr = 0;
	ktime_t start, limit;
	bool pinned;

	scene_register(test, &s->context, &s->gpu, mm);
	KUNIT_ASSERT_TRUE(test, !!hmm_mirror_mm_get(mirror));
	mm_end(&s->mm);
	start = ktime_get();
	limit = ktime_add_ms(start, GIVE_UP_MS);
	do {
		mmget(mm);
		pinned = hmm_mirror_mm_get(mirror);
		mmput(mm);
		hmm_mirror_mm_put(mirror);
		nr++;
		cond_resched();
	} while (pinned && ktime_before(ktime_get(), limit));
	KUNIT_EXPECT_FALSE_MSG(test, pinned, "%lu pins in turn were granted", nr);
	if (pinned)
		hmm_mirror_mm_put(mirror);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_entered)));
	KUNIT_EXPECT_LT(test, ktime_ms_delta(ktime_get(), start), 3000);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_released)));
	KUNIT_EXPECT_EQ(test, s->context.reason, HMM_RELEASE_MM_EXIT);
}

/*
 * G9. More callbacks sleep than a workqueue can run at once
 */

static void job_exit(struct scene *s)
{
	mm_end(&s->mm);
}

static void job_other_exit(struct scene *s)
{
	mm_end(&s->other_mm);
}

/* Mirrors for more sleeping callbacks than a queue can run, on other_mm. */
static void crowd_register(struct kunit *test, struct scene *s)
{
	unsigned int nr = WQ_MAX_ACTIVE + 8;

	/* A stack, a task and what the checkers add to them */
	if (totalram_pages() / nr < SZ_256K / PAGE_SIZE)
		kunit_skip(test, "no memory for %u workers", nr);
	scene_register(test, &s->context, &s->gpu, s->mm);
	scene_register(test, &s->second, &s->gpu, s->mm);
	contexts_register(test, s, nr, &s->other, s->other_mm);
}

/*
 * How many callbacks get to sleep depends on the core: wait until no more come. On a
 * machine that is too slow to start the workers, HMM would report the first ones.
 */
static void crowd_sleeps(struct kunit *test, struct scene *s)
{
	ktime_t limit = ktime_add_ms(ktime_get(), CROWD_MS);
	int seen;

	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->nr_waiting)));
	do {
		seen = atomic_read(&s->nr_waiting);
		if (ktime_after(ktime_get(), limit))
			kunit_skip(test, "%d of %u callbacks sleep after %u ms",
				   seen, s->nr_many, CROWD_MS);
	} while (seen < s->nr_many &&
		 wait_event_timeout(s->wait, atomic_read(&s->nr_waiting) > seen,
				    HZ));
	kunit_info(test, "%d of %u callbacks sleep", seen, s->nr_many);
}

static void hmm_kill_and_async_beside_more_exits_than_workers(struct kunit *test)
{
	struct scene *s = test->priv;
	struct job *other_exit;
	unsigned int i;

	crowd_register(test, s);
	for (i = 0; i < s->nr_many; i++)
		s->many[i].in_release = wait_open;
	other_exit = job_start(test, s, job_other_exit);
	crowd_sleeps(test, s);

	hmm_mirror_kill(&s->context.mirror);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_released)));
	context_unregister_async(&s->second);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->second.nr_freed)));
	context_unregister_async(&s->context);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_freed)));
	KUNIT_EXPECT_FALSE(test, job_ended(other_exit));
	complete_all(&s->open);
	KUNIT_EXPECT_TRUE(test, job_ends(other_exit));
}

/* Not another kill, which has to wait for a worker; exit and ->free() have not. */
static void hmm_free_and_exit_beside_more_kills_than_workers(struct kunit *test)
{
	struct scene *s = test->priv;
	unsigned int i;

	crowd_register(test, s);
	hmm_mirror_kill(&s->context.mirror);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_released)));
	for (i = 0; i < s->nr_many; i++)
		s->many[i].in_release = wait_open;
	for (i = 0; i < s->nr_many; i++)
		hmm_mirror_kill(&s->many[i].mirror);
	crowd_sleeps(test, s);

	context_unregister_async(&s->context);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_freed)));
	/* Queued behind the others, and exit takes it */
	hmm_mirror_kill(&s->second.mirror);
	KUNIT_EXPECT_TRUE(test, returns(test, s, job_exit));
	KUNIT_EXPECT_EQ(test, atomic_read(&s->second.nr_released), 1);
	complete_all(&s->open);
}

static void hmm_kill_beside_more_frees_than_workers(struct kunit *test)
{
	struct scene *s = test->priv;
	unsigned int i;

	crowd_register(test, s);
	for (i = 0; i < s->nr_many; i++) {
		s->many[i].in_free = wait_open;
		context_unregister_async(&s->many[i]);
	}
	crowd_sleeps(test, s);

	hmm_mirror_kill(&s->context.mirror);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_released)));
	context_unregister_async(&s->second);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->second.nr_released)));
	complete_all(&s->open);
}

/*
 * Calls under a lock that an interrupt of the driver takes
 */

struct interrupt {
	struct irq_work work;
	spinlock_t lock;		/* protects nothing */
};

static void interrupt_locks(struct irq_work *work)
{
	struct interrupt *irq = container_of(work, struct interrupt, work);

	spin_lock(&irq->lock);
	spin_unlock(&irq->lock);
}

/* All that may be called under a spinlock, with two registered mirrors of @mm. */
static void atomic_calls(struct scene *s, struct mm_struct *mm)
{
	struct hmm_mirror *mirror = &s->context.mirror, *found;

	found = hmm_mirror_find(&s->gpu, mm);
	if (found)
		hmm_mirror_put(found);
	if (hmm_mirror_mm_get(mirror))
		hmm_mirror_mm_put(mirror);
	hmm_mirror_kill(mirror);
	hmm_mirror_get(mirror);
	context_unregister_async(&s->context);
	hmm_mirror_put(mirror);
	context_unregister_async(&s->second);
}

/*
 * Lockdep sees the lock in an interrupt, then HMM's locks under it. It reports any of
 * those that HMM elsewhere takes with interrupts on: so the calls that may sleep, and
 * the callbacks, belong to the case.
 */
static void hmm_calls_under_a_lock_of_an_interrupt(struct kunit *test)
{
	struct scene *s = test->priv;
	struct interrupt irq = {};
	unsigned long flags;
	int locked;

	if (!IS_ENABLED(CONFIG_PROVE_LOCKING) || !debug_locks)
		kunit_skip(test, "needs lockdep, which has not reported before");
	spin_lock_init(&irq.lock);
	init_irq_work(&irq.work, interrupt_locks);
	irq_work_queue(&irq.work);
	irq_work_sync(&irq.work);

	for (locked = 0; locked < 2; locked++) {
		scene_register(test, &s->context, &s->gpu, s->mm);
		scene_register(test, &s->second, &s->gpu, s->mm);
		if (locked)
			spin_lock_irqsave(&irq.lock, flags);
		atomic_calls(s, s->mm);
		if (locked)
			spin_unlock_irqrestore(&irq.lock, flags);
		KUNIT_EXPECT_TRUE(test, returns(test, s, job_synchronize));
	}
	KUNIT_EXPECT_EQ(test, atomic_read(&s->nr_freed), 4);

	/* The last reference and the last pin are dropped under it as well */
	scene_register(test, &s->context, &s->gpu, s->mm);
	hmm_mirror_get(&s->context.mirror);
	KUNIT_ASSERT_TRUE(test, !!hmm_mirror_mm_get(&s->context.mirror));
	mm_end(&s->mm);
	spin_lock_irqsave(&irq.lock, flags);
	hmm_mirror_mm_put(&s->context.mirror);
	spin_unlock_irqrestore(&irq.lock, flags);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->nr_released) == 5));
	context_unregister_async(&s->context);
	KUNIT_EXPECT_TRUE(test, returns(test, s, job_synchronize));
	spin_lock_irqsave(&irq.lock, flags);
	hmm_mirror_put(&s->context.mirror);
	spin_unlock_irqrestore(&irq.lock, flags);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->nr_freed) == 5));

	scene_register(test, &s->second, &s->gpu, s->other_mm);
	context_unregister(&s->second);
	scene_register(test, &s->second, &s->gpu, s->other_mm);
	/* So is a pin that outlives the release of the only mirror */
	KUNIT_ASSERT_TRUE(test, !!hmm_mirror_mm_get(&s->second.mirror));
	hmm_device_unplug(&s->gpu);
	spin_lock_irqsave(&irq.lock, flags);
	hmm_mirror_mm_put(&s->second.mirror);
	spin_unlock_irqrestore(&irq.lock, flags);
	context_unregister(&s->second);
	KUNIT_EXPECT_TRUE(test, debug_locks);
}

/*
 * Misuse
 */

static void free_misuses(struct gpu_context *context)
{
	struct scene *s = context->s;

	expect_warning("hmm_synchronize.* callback", hmm_synchronize());
	expect_warning("hmm_mirror_unregister.* callback",
		       hmm_mirror_unregister(&s->second.mirror));
	expect_warning("hmm_device_unplug.* callback",
		       hmm_device_unplug(&s->other));
	expect_warning("hmm_device_unregister.* callback",
		       s->ret = hmm_device_unregister(&s->other));
}

/* ->free() is a callback as ->release() is. */
static void hmm_waits_in_free_are_refused(struct kunit *test)
{
	struct scene *s = test->priv;

	scene_register(test, &s->context, &s->gpu, s->mm);
	scene_register(test, &s->second, &s->other, s->mm);
	s->context.in_free = free_misuses;
	context_unregister_async(&s->context);
	KUNIT_EXPECT_TRUE(test, comes(s, atomic_read(&s->context.nr_freed)));
	KUNIT_EXPECT_EQ(test, s->ret, -EBUSY);
	KUNIT_EXPECT_EQ(test, atomic_read(&s->second.nr_entered), 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(&s->second.mirror),
			HMM_RELEASE_NONE);
}

/* A register that failed left nothing to unregister. */
static void hmm_unregister_after_a_failed_register_is_refused(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_mirror *mirror = &s->context.mirror;

	hmm_device_unplug(&s->gpu);
	KUNIT_EXPECT_EQ(test, context_register(&s->context, s, &s->gpu, s->mm),
			-ENODEV);
	expect_warning("hmm_mirror_unregister.* unregistered",
		       hmm_mirror_unregister(mirror));
	expect_warning("hmm_mirror_unregister_async.* unregistered",
		       hmm_mirror_unregister_async(mirror));
	KUNIT_EXPECT_EQ(test, atomic_read(&s->context.nr_entered), 0);
	/* And it is as good as new */
	KUNIT_EXPECT_EQ(test, context_register(&s->context, s, &s->other, s->mm),
			0);
	KUNIT_EXPECT_TRUE(test, returns(test, s, job_unregister));
	KUNIT_EXPECT_EQ(test, atomic_read(&s->context.nr_released), 1);
}

static int hmm_faults_init(struct kunit *test)
{
	struct scene *s = kzalloc(sizeof(*s), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, s);
	init_waitqueue_head(&s->wait);
	init_completion(&s->open);
	init_completion(&s->open_invalidate);
	s->mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, s->mm);
	s->other_mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, s->other_mm);
	KUNIT_ASSERT_EQ(test, hmm_device_register(&s->gpu, &gpu_ops, "gpu"), 0);
	KUNIT_ASSERT_EQ(test, hmm_device_register(&s->other, &gpu_ops, "other"),
			0);
	atomic_set(&nr_warnings, 0);
	nr_expected = 0;
	test->priv = s;
	return 0;
}

static void context_end(struct gpu_context *context)
{
	/* A callback of the case may have unregistered it */
	if (context->registered && !atomic_read(&context->nr_freed))
		context_unregister(context);
}

static void job_teardown(struct scene *s)
{
	unsigned int i;

	context_end(&s->context);
	context_end(&s->second);
	for (i = 0; i < s->nr_many; i++)
		if (s->many[i].registered)
			context_unregister_async(&s->many[i]);
	hmm_synchronize();
	if (s->inserted)
		mmu_interval_notifier_remove(&s->notifier);
	if (s->wq)
		destroy_workqueue(s->wq);
	mm_end(&s->mm);
	mm_end(&s->other_mm);
	s->ret = hmm_device_unregister(&s->gpu) ?:
		 hmm_device_unregister(&s->other);
}

static void hmm_faults_exit(struct kunit *test)
{
	struct scene *s = test->priv;
	bool stuck = false;
	unsigned int i;

	if (!s)
		return;
	WRITE_ONCE(s->finder_ends, true);
	complete_all(&s->open);
	complete_all(&s->open_invalidate);
	if (s->probed) {
		unregister_trace_hmm_register(probe_register, s);
		tracepoint_synchronize_unregister();
	}
	for (i = 0; i < s->nr_jobs; i++)
		stuck |= !job_ends(&s->jobs[i]);
	s->ret = -EBUSY;
	if (!stuck)
		stuck = !returns(test, s, job_teardown);
	for (i = 0; i < s->nr_jobs; i++)
		if (job_ended(&s->jobs[i]))
			kthread_stop(s->jobs[i].task);
	KUNIT_EXPECT_FALSE(test, stuck);
	KUNIT_EXPECT_EQ(test, s->ret, 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&nr_warnings), nr_expected);
	/* Else HMM may use it still, now or when the case is long over */
	if (!stuck && !s->ret) {
		kvfree(s->many);
		kfree(s);
	}
}

static int hmm_faults_suite_init(struct kunit_suite *suite)
{
	return register_trace_console(probe_console, NULL);
}

static void hmm_faults_suite_exit(struct kunit_suite *suite)
{
	unregister_trace_console(probe_console, NULL);
	tracepoint_synchronize_unregister();
}

static struct kunit_case hmm_faults_cases[] = {
	/* First, as each place warns once */
	KUNIT_CASE(hmm_unregister_after_a_failed_register_is_refused),
	KUNIT_CASE(hmm_waits_in_free_are_refused),
	KUNIT_CASE(hmm_find_during_register_then_kill),
	KUNIT_CASE(hmm_find_during_register_then_unregister_async),
	KUNIT_CASE_SLOW(hmm_synchronize_with_many_pending_releases),
	KUNIT_CASE(hmm_synchronize_in_a_mem_reclaim_worker),
	KUNIT_CASE(hmm_release_in_a_worker_flushes_ordinary_work),
	KUNIT_CASE(hmm_synchronize_beside_an_invalidation),
	KUNIT_CASE(hmm_release_of_unregister_waits_for_mmput),
	KUNIT_CASE(hmm_release_of_unregister_async_waits_for_mmput),
	KUNIT_CASE(hmm_release_of_kill_waits_for_mmput),
	KUNIT_CASE(hmm_release_of_unplug_waits_for_mmput),
	KUNIT_CASE_SLOW(hmm_pins_beside_a_helper_do_not_keep_a_dead_process),
	/* The first makes the workers, all at once; the last needs one by one */
	KUNIT_CASE_SLOW(hmm_free_and_exit_beside_more_kills_than_workers),
	KUNIT_CASE_SLOW(hmm_kill_beside_more_frees_than_workers),
	KUNIT_CASE_SLOW(hmm_kill_and_async_beside_more_exits_than_workers),
	KUNIT_CASE(hmm_calls_under_a_lock_of_an_interrupt),
	{}
};

static struct kunit_suite hmm_faults_suite = {
	.name = "hmm_faults",
	.suite_init = hmm_faults_suite_init,
	.suite_exit = hmm_faults_suite_exit,
	.init = hmm_faults_init,
	.exit = hmm_faults_exit,
	.test_cases = hmm_faults_cases,
};

kunit_test_suite(hmm_faults_suite);

/* mm_alloc() */
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
MODULE_DESCRIPTION("KUnit tests of faults that HMM had");
MODULE_LICENSE("GPL");
