// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the HMM registration core
 *
 * An address space is made by mm_alloc() and dies by the mmput() that drops its
 * last user: exit_mmap() and what it calls run inside that mmput(), in the
 * thread that the test chose.
 *
 * Races run in one order at a time. A gate stands at each test point of HMM and
 * in each callback. hold() starts a job and returns once the job, or a worker,
 * is held at a closed gate. That a job waits where it must is seen by its
 * arrival at the point before the wait and by its not returning for QUIET_MS:
 * on a right core this can never fail.
 *
 * The memory of a mirror or device is freed as soon as the contract allows: in
 * ->free() and ->device_free(), or in the line after the unregister. KASAN
 * reports whatever touches it afterwards. struct context and struct gpu are the
 * records of the tests and stay until the end of each.
 *
 * .init makes one device, one address space and one mirror. .exit unregisters
 * what a test has left registered, checks the records, and compares the counts
 * of live objects with those before the test. After a failure it leaves all
 * objects alone, as jobs may still use them.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <kunit/test.h>
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hmm_device.h>
#include <linux/hmm_test.h>
#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

/* A job that has not returned by then hangs */
#define LIMIT_MS	20000
#define QUIET_MS	100

#define NR_RACES	300

/* Where a page can be mapped in an empty address space */
#define SOME_ADDRESS	0x10000000UL

/*
 * Gates
 */

enum {
	GATE_JOB = HMM_NR_POINTS,	/* before a job begins */
	GATE_IN_RELEASE,
	GATE_IN_FREE,
	GATE_IN_DEVICE_FREE,
	GATE_IN_INVALIDATE,
	NR_GATES
};

struct gate {
	bool closed;
	struct completion reached;
	struct completion open;
};

static struct gate gates[NR_GATES];

static void gate_close(unsigned int at)
{
	init_completion(&gates[at].reached);
	init_completion(&gates[at].open);
	/* The completions come first. Pairs with xchg() in gate_pass(). */
	smp_store_release(&gates[at].closed, true);
}

static void let_go(unsigned int at)
{
	complete_all(&gates[at].open);
}

static bool wait_for(struct completion *completion)
{
	return wait_for_completion_timeout(completion,
					   msecs_to_jiffies(LIMIT_MS));
}

/* Only the first thread at a closed gate stays there. */
static void gate_pass(unsigned int at)
{
	if (!xchg(&gates[at].closed, false))
		return;
	complete(&gates[at].reached);
	wait_for_completion(&gates[at].open);
}

static void gates_open(void)
{
	unsigned int at;

	for (at = 0; at < NR_GATES; at++) {
		WRITE_ONCE(gates[at].closed, false);
		let_go(at);
	}
}

static void hmm_kunit_hook(enum hmm_test_point point, struct hmm_mirror *mirror)
{
	gate_pass(point);
}

/* For what signals no completion */
static bool counts_within(unsigned int ms, const atomic_t *counter, int value)
{
	unsigned long limit = jiffies + msecs_to_jiffies(ms);

	while (atomic_read(counter) != value && time_before(jiffies, limit))
		usleep_range(1000, 2000);
	return atomic_read(counter) == value;
}

static bool counts_to(const atomic_t *counter, int value)
{
	return counts_within(LIMIT_MS, counter, value);
}

/*
 * The scene: devices, address spaces and mirrors of a test, and its jobs
 */

struct gpu;
struct context;

struct gpu_mirror {
	struct hmm_mirror hmm;
	struct context *context;
};

struct gpu_device {
	struct hmm_device hmm;
	struct gpu *gpu;
};

struct gpu {
	struct list_head node;
	const struct hmm_device_ops *ops;
	struct gpu_device *memory;
	bool registered;
	bool async;		/* ->device_free() is called */
	atomic_t nr_running;	/* callbacks */
	atomic_t nr_release;
	atomic_t nr_free;
	atomic_t nr_device_free;
	const char *error;
	int ret;
	void (*in_device_free)(struct gpu *gpu);
};

struct process {
	struct list_head node;
	struct mm_struct *mm;
	struct page *page;	/* mapped at SOME_ADDRESS */
	bool mapped;
	bool watched;
	bool exited;
	struct mmu_interval_notifier notifier;
	atomic_t exiting;	/* the notifier has heard of mm exit */
	void (*in_invalidate)(struct process *process);
	struct hmm_mirror *mirror;
};

struct context {
	struct list_head node;
	struct gpu *gpu;
	struct process *process;
	struct gpu_mirror *memory;
	bool keep;		/* the memory, for another registration */
	bool registered;
	int nr_registered;
	int nr_to_free;		/* of these, with ->free() */
	atomic_t nr_running;
	atomic_t nr_release;
	atomic_t nr_free;
	const char *error;
	enum hmm_release_reason reason;
	struct task_struct *released_by;
	void (*in_release)(struct context *context);
	void (*in_free)(struct context *context);
	struct completion entered;	/* ->release() */
	struct completion go;
	struct context *other;
	int ret;
};

struct job {
	struct list_head node;
	void (*fn)(void *arg);
	void *arg;
	struct task_struct *task;
	struct completion done;
	bool ended;
};

struct scene {
	struct list_head gpus;
	struct list_head processes;
	struct list_head contexts;
	struct list_head jobs;
	struct hmm_test_counts start;
	/* Of .init */
	struct gpu *gpu;
	struct process *process;
	struct context *context;
};

static struct hmm_mirror *mirror_of(struct context *context)
{
	return &context->memory->hmm;
}

static struct hmm_device *device_of(struct gpu *gpu)
{
	return &gpu->memory->hmm;
}

static struct context *context_of(struct hmm_mirror *mirror)
{
	return container_of(mirror, struct gpu_mirror, hmm)->context;
}

static void gpu_release(struct hmm_mirror *mirror)
{
	struct context *context = context_of(mirror);
	struct gpu *gpu = context->gpu;
	struct page *page = context->process->page;

	atomic_inc(&gpu->nr_running);
	if (atomic_inc_return(&context->nr_running) != 1)
		context->error = "->release() runs twice at once";
	if (atomic_read(&context->nr_release) >= context->nr_registered)
		context->error = "->release() is called again";
	context->reason = hmm_mirror_release_reason(mirror);
	context->released_by = current;
	complete_all(&context->entered);
	if (context->in_release)
		context->in_release(context);
	gate_pass(GATE_IN_RELEASE);
	if (page && !folio_mapped(page_folio(page)))
		context->error = "exit does not wait for ->release()";
	atomic_dec(&context->nr_running);
	atomic_inc(&context->nr_release);
	atomic_inc(&gpu->nr_release);
	atomic_dec(&gpu->nr_running);
}

static void gpu_free(struct hmm_mirror *mirror)
{
	struct context *context = context_of(mirror);
	struct gpu *gpu = context->gpu;

	atomic_inc(&gpu->nr_running);
	if (atomic_read(&context->nr_free) >= atomic_read(&context->nr_release))
		context->error = "->free() is called too often or early";
	if (context->in_free)
		context->in_free(context);
	gate_pass(GATE_IN_FREE);
	if (!context->keep) {
		kfree(context->memory);
		context->memory = NULL;
	}
	atomic_inc(&context->nr_free);
	atomic_inc(&gpu->nr_free);
	atomic_dec(&gpu->nr_running);
}

static void gpu_device_free(struct hmm_device *device)
{
	struct gpu *gpu = container_of(device, struct gpu_device, hmm)->gpu;

	if (atomic_read(&gpu->nr_running) ||
	    atomic_read(&gpu->nr_release) != atomic_read(&gpu->nr_free))
		gpu->error = "->device_free() is not the last callback";
	if (gpu->in_device_free)
		gpu->in_device_free(gpu);
	gate_pass(GATE_IN_DEVICE_FREE);
	kfree(gpu->memory);
	gpu->memory = NULL;
	atomic_inc(&gpu->nr_device_free);
}

/* The caller of hmm_mirror_unregister() frees the mirror */
static const struct hmm_device_ops gpu_ops = {
	.release = gpu_release,
};

static const struct hmm_device_ops gpu_free_ops = {
	.release = gpu_release,
	.free = gpu_free,
};

static const struct hmm_device_ops gpu_async_ops = {
	.release = gpu_release,
	.free = gpu_free,
	.device_free = gpu_device_free,
};

static struct gpu *gpu_new_unregistered(struct kunit *test,
					const struct hmm_device_ops *ops)
{
	struct scene *s = test->priv;
	struct gpu *gpu = kzalloc_obj(*gpu);

	KUNIT_ASSERT_NOT_NULL(test, gpu);
	list_add_tail(&gpu->node, &s->gpus);
	gpu->ops = ops;
	gpu->memory = kzalloc_obj(*gpu->memory);
	KUNIT_ASSERT_NOT_NULL(test, gpu->memory);
	gpu->memory->gpu = gpu;
	return gpu;
}

static struct gpu *gpu_new(struct kunit *test, const struct hmm_device_ops *ops)
{
	struct gpu *gpu = gpu_new_unregistered(test, ops);

	KUNIT_ASSERT_EQ(test, hmm_device_register(device_of(gpu), ops, "gpu"),
			0);
	gpu->registered = true;
	return gpu;
}

static struct process *process_new(struct kunit *test)
{
	struct scene *s = test->priv;
	struct process *process = kzalloc_obj(*process);

	KUNIT_ASSERT_NOT_NULL(test, process);
	process->mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, process->mm);
	mmgrab(process->mm);
	list_add_tail(&process->node, &s->processes);
	return process;
}

static void process_exit(struct process *process)
{
	process->exited = true;
	mmput(process->mm);
}

/* Map a page and let gpu_release() check that it is there until the end. */
static void process_map(struct kunit *test, struct process *process, bool page)
{
	struct mm_struct *mm = process->mm;

	process->mapped = true;
	mm->task_size = TASK_SIZE;
	kthread_use_mm(mm);
	KUNIT_EXPECT_EQ(test, vm_mmap(NULL, SOME_ADDRESS, PAGE_SIZE,
				      PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
				      0), SOME_ADDRESS);
	if (page)
		KUNIT_EXPECT_EQ(test, get_user_pages_fast(SOME_ADDRESS, 1,
							  FOLL_WRITE,
							  &process->page), 1);
	kthread_unuse_mm(mm);
	if (page)
		KUNIT_ASSERT_NOT_NULL(test, process->page);
}

static bool process_has_page(struct process *process)
{
	return folio_mapped(page_folio(process->page));
}

static bool gpu_invalidate(struct mmu_interval_notifier *notifier,
			   const struct mmu_notifier_range *range,
			   unsigned long cur_seq)
{
	struct process *process = container_of(notifier, struct process,
					       notifier);

	mmu_interval_set_seq(notifier, cur_seq);
	if (range->event == MMU_NOTIFY_RELEASE)
		atomic_set(&process->exiting, 1);
	if (process->in_invalidate)
		process->in_invalidate(process);
	gate_pass(GATE_IN_INVALIDATE);
	return true;
}

static const struct mmu_interval_notifier_ops gpu_notifier_ops = {
	.invalidate = gpu_invalidate,
};

/* Exit calls this notifier before that of HMM, which is on the last page. */
static void process_watch(struct kunit *test, struct process *process)
{
	KUNIT_ASSERT_EQ(test,
			mmu_interval_notifier_insert(&process->notifier,
						     process->mm, SOME_ADDRESS,
						     PAGE_SIZE,
						     &gpu_notifier_ops), 0);
	process->watched = true;
}

static struct context *context_new(struct kunit *test, struct gpu *gpu,
				   struct process *process)
{
	struct scene *s = test->priv;
	struct context *context = kzalloc_obj(*context);

	KUNIT_ASSERT_NOT_NULL(test, context);
	list_add_tail(&context->node, &s->contexts);
	context->gpu = gpu;
	context->process = process;
	init_completion(&context->entered);
	init_completion(&context->go);
	context->memory = kzalloc_obj(*context->memory);
	KUNIT_ASSERT_NOT_NULL(test, context->memory);
	context->memory->context = context;
	return context;
}

static int context_register(struct context *context)
{
	int ret;

	/* The process may die before this returns, and so may the context */
	context->nr_registered++;
	context->nr_to_free += !!context->gpu->ops->free;
	context->registered = true;
	ret = hmm_mirror_register(mirror_of(context), device_of(context->gpu),
				  context->process->mm);
	if (ret) {
		context->nr_registered--;
		context->nr_to_free -= !!context->gpu->ops->free;
		context->registered = false;
	}
	return ret;
}

static struct context *context_add(struct kunit *test, struct gpu *gpu,
				   struct process *process)
{
	struct context *context = context_new(test, gpu, process);

	KUNIT_ASSERT_EQ(test, context_register(context), 0);
	return context;
}

/*
 * What jobs run. The argument is a context unless the name says another object.
 */

static void run_register(void *arg)
{
	struct context *context = arg;

	context->ret = context_register(context);
}

static void run_exit(void *arg)
{
	process_exit(((struct context *)arg)->process);
}

static void run_unregister(void *arg)
{
	struct context *context = arg;
	bool kfree_here = !context->gpu->ops->free && !context->keep;

	context->registered = false;
	hmm_mirror_unregister(mirror_of(context));
	if (kfree_here) {
		kfree(context->memory);
		context->memory = NULL;
	}
}

static void run_async(void *arg)
{
	struct context *context = arg;

	context->registered = false;
	hmm_mirror_unregister_async(mirror_of(context));
}

static void run_unplug(void *arg)
{
	hmm_device_unplug(device_of(((struct context *)arg)->gpu));
}

static void run_kill(void *arg)
{
	hmm_mirror_kill(mirror_of(arg));
}

static void run_find(void *arg)
{
	struct context *context = arg;
	struct hmm_mirror *found;

	found = hmm_mirror_find(device_of(context->gpu), context->process->mm);
	context->other = found ? context_of(found) : NULL;
}

static void run_gpu_unregister(void *arg)
{
	struct gpu *gpu = arg;

	gpu->ret = hmm_device_unregister(device_of(gpu));
	if (gpu->ret)
		return;
	gpu->registered = false;
	kfree(gpu->memory);
	gpu->memory = NULL;
}

static void run_gpu_unregister_async(void *arg)
{
	struct gpu *gpu = arg;

	gpu->registered = false;
	gpu->async = true;
	hmm_device_unregister_async(device_of(gpu));
}

static void run_process_munmap(void *arg)
{
	struct mm_struct *mm = ((struct process *)arg)->mm;

	kthread_use_mm(mm);
	WARN_ON(vm_munmap(SOME_ADDRESS, PAGE_SIZE));
	kthread_unuse_mm(mm);
}

static void run_synchronize(void *unused)
{
	hmm_synchronize();
}

static void run_quiesce(void *unused)
{
	hmm_test_quiesce(NULL);
}

/* The paths that release a mirror */
enum { EXIT, UNREGISTER, ASYNC, UNPLUG, KILL, NR_PATHS, NO_PATH = NR_PATHS };

static const struct {
	const char *name;
	void (*run)(void *context);
	enum hmm_release_reason reason;
} paths[NR_PATHS] = {
	[EXIT] = { "exit", run_exit, HMM_RELEASE_MM_EXIT },
	[UNREGISTER] = { "unregister", run_unregister, HMM_RELEASE_UNREGISTER },
	[ASYNC] = { "async", run_async, HMM_RELEASE_UNREGISTER },
	[UNPLUG] = { "unplug", run_unplug, HMM_RELEASE_DEVICE_GONE },
	[KILL] = { "kill", run_kill, HMM_RELEASE_ERROR },
};

/*
 * A parameter: one path, or two for one mirror, and a gate where a thread of
 * the first is held
 */
struct param {
	int path;
	int then;
	unsigned int at;
};

static const char * const gate_names[NR_GATES] = {
	[HMM_POINT_REGISTER_ARMED] = "armed",
	[HMM_POINT_REGISTER_LINKED] = "linked",
	[HMM_POINT_RELEASE_STARTED] = "release_started",
	[HMM_POINT_RELEASE_RETURNED] = "release_returned",
	[HMM_POINT_DESTROY] = "destroy",
	[HMM_POINT_DEVICE_PUT] = "device_put",
	[GATE_JOB] = "",
	[GATE_IN_RELEASE] = "in_release",
	[GATE_IN_FREE] = "in_free",
	[GATE_IN_DEVICE_FREE] = "in_device_free",
};

static void param_desc(const struct param *param, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "%s%s%s%s%s",
		 param->path == NO_PATH ? "" : paths[param->path].name,
		 param->then == NO_PATH ? "" : "_then_",
		 param->then == NO_PATH ? "" : paths[param->then].name,
		 param->path == NO_PATH || param->at == GATE_JOB ? "" : "_",
		 gate_names[param->at]);
}

#define VARIANT(name, ...)						\
	static const struct param name##s[] = { __VA_ARGS__ };		\
	KUNIT_ARRAY_PARAM(name, name##s, param_desc)

#define ONE(path)	{ path, NO_PATH, GATE_JOB }
#define TWO(path, then)	{ path, then, GATE_JOB }

VARIANT(list_path, ONE(EXIT), ONE(UNPLUG));
VARIANT(worker_path, ONE(KILL), ONE(ASYNC));
VARIANT(unregister_path, ONE(UNREGISTER), ONE(ASYNC));
VARIANT(found_path, ONE(UNREGISTER), ONE(ASYNC), ONE(KILL));
VARIANT(ending_path, ONE(EXIT), ONE(UNPLUG), ONE(KILL));
VARIANT(driver_path, ONE(UNREGISTER), ONE(ASYNC), ONE(UNPLUG), ONE(KILL));

/*
 * Jobs
 */

static int job_thread(void *data)
{
	struct job *job = data;

	gate_pass(GATE_JOB);
	job->fn(job->arg);
	kthread_complete_and_exit(&job->done, 0);
}

static struct job *start(struct kunit *test, void (*fn)(void *), void *arg)
{
	struct scene *s = test->priv;
	struct job *job = kzalloc_obj(*job);

	KUNIT_ASSERT_NOT_NULL(test, job);
	init_completion(&job->done);
	job->fn = fn;
	job->arg = arg;
	job->task = kthread_create(job_thread, job, "hmm_kunit");
	if (IS_ERR(job->task)) {
		kfree(job);
		KUNIT_FAIL_AND_ABORT(test, "no thread");
	}
	list_add_tail(&job->node, &s->jobs);
	wake_up_process(job->task);
	return job;
}

static bool job_ends(struct job *job, unsigned int ms)
{
	if (!job->ended)
		job->ended = wait_for_completion_timeout(&job->done,
							 msecs_to_jiffies(ms));
	return job->ended;
}

#define expect_reached(test, at)					\
	KUNIT_ASSERT_TRUE_MSG(test, wait_for(&gates[at].reached),	\
			      "nobody comes to %s", #at)

/* Start a job, and have it or a worker held at a gate. */
#define hold(test, fn, arg, at)						\
({									\
	struct job *__job;						\
									\
	gate_close(at);							\
	__job = start(test, fn, arg);					\
	expect_reached(test, at);					\
	__job;								\
})

/* Let the thread that is held at one gate go on to the next. */
#define move(test, from, to)						\
do {									\
	gate_close(to);							\
	let_go(from);							\
	expect_reached(test, to);					\
} while (0)

#define expect_blocked(test, job)					\
	KUNIT_ASSERT_FALSE_MSG(test, job_ends(job, QUIET_MS),		\
			       "%s does not wait", #job)

#define expect_done(test, job)						\
	KUNIT_ASSERT_TRUE_MSG(test, job_ends(job, LIMIT_MS),		\
			      "%s does not return", #job)

/* Start a job that has to wait for others behind a point. */
#define start_blocked(test, fn, arg, at)				\
({									\
	struct job *__waiter = hold(test, fn, arg, at);			\
									\
	let_go(at);							\
	expect_blocked(test, __waiter);					\
	__waiter;							\
})

#define expect_entered(test, context)					\
	KUNIT_ASSERT_TRUE_MSG(test, wait_for(&(context)->entered),	\
			      "->release() of %s is not called", #context)

/* Macros, so that a failure has the line of the test */
#define expect_released(test, context, why)				\
do {									\
	KUNIT_EXPECT_EQ(test, atomic_read(&(context)->nr_release),	\
			(context)->nr_registered);			\
	KUNIT_EXPECT_EQ(test, (context)->reason, why);			\
} while (0)

#define expect_not_released(test, context)				\
	KUNIT_EXPECT_EQ(test, atomic_read(&(context)->nr_release), 0)

#define expect_freed(test, context, nr)					\
	KUNIT_EXPECT_EQ(test, atomic_read(&(context)->nr_free), nr)

#define expect_device_freed(test, gpu, nr)				\
	KUNIT_EXPECT_EQ(test, atomic_read(&(gpu)->nr_device_free), nr)

#define expect_users(test, mm, nr)					\
	KUNIT_EXPECT_EQ(test, atomic_read(&(mm)->mm_users), nr)

#define expect_pinned(test, mirror, mm)					\
	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_mm_get(mirror), mm)

#define expect_register(test, gpu, process, ret)			\
	KUNIT_EXPECT_EQ(test,						\
		context_register(context_new(test, gpu, process)), ret)

#define expect_gpu_unregistered(test, gpu)				\
do {									\
	run_gpu_unregister(gpu);					\
	KUNIT_EXPECT_EQ(test, (gpu)->ret, 0);				\
} while (0)

/* ->release() that stays until the test lets it go */
static void sleep_in_release(struct context *context)
{
	if (!wait_for(&context->go))
		context->error = "->release() waits in vain";
}

/*
 * Workers do not run between workers_stop() and workers_go(): each CPU has a
 * real-time thread, which is the caller on this one, as long as it does not
 * sleep, or a job that has come along.
 */
static struct task_struct *hogs[NR_CPUS];
static atomic_t nr_hogs;

static int hog(void *unused)
{
	atomic_inc(&nr_hogs);
	while (!kthread_should_stop())
		cpu_relax();
	return 0;
}

static void workers_stop(struct kunit *test, struct job *job)
{
	int cpu, here = cpumask_first(cpu_online_mask), nr = 0;

	set_cpus_allowed_ptr(current, cpumask_of(here));
	if (job) {
		set_cpus_allowed_ptr(job->task, cpumask_of(here));
		sched_set_fifo(job->task);
	}
	atomic_set(&nr_hogs, 0);
	for_each_online_cpu(cpu) {
		struct task_struct *task;

		if (cpu == here)
			continue;
		task = kthread_create(hog, NULL, "hmm_kunit_hog");
		KUNIT_ASSERT_FALSE(test, IS_ERR(task));
		kthread_bind(task, cpu);
		sched_set_fifo_low(task);
		hogs[cpu] = task;
		wake_up_process(task);
		nr++;
	}
	KUNIT_ASSERT_TRUE(test, counts_to(&nr_hogs, nr));
	sched_set_fifo(current);
}

static void workers_go(void)
{
	int cpu;

	sched_set_normal(current, 0);
	for_each_possible_cpu(cpu) {
		if (hogs[cpu])
			kthread_stop(hogs[cpu]);
		hogs[cpu] = NULL;
	}
	set_cpus_allowed_ptr(current, cpu_possible_mask);
}

/*
 * Contract of each call
 */

static void hmm_device_register_bad_arguments(struct kunit *test)
{
	static const struct hmm_device_ops no_release = { .free = gpu_free };
	struct hmm_device device = {};

	KUNIT_EXPECT_EQ(test, hmm_device_register(NULL, &gpu_ops, "x"),
			-EINVAL);
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
	struct scene *s = test->priv;

	KUNIT_EXPECT_EQ(test, hmm_device_register(device_of(s->gpu),
						  &gpu_async_ops, "x"), -EBUSY);
	KUNIT_EXPECT_STREQ(test, device_of(s->gpu)->name, "gpu");
	run_unregister(s->context);
	expect_freed(test, s->context, 1);
}

static void hmm_device_register_again(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_free_ops);
	struct scene *s = test->priv;

	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(gpu)), 0);
	KUNIT_ASSERT_EQ(test, hmm_device_register(device_of(gpu), &gpu_free_ops,
						  "again"), 0);
	/* Unplugged, it takes no mirrors until it is registered again */
	hmm_device_unplug(device_of(gpu));
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(gpu)), 0);
	KUNIT_ASSERT_EQ(test, hmm_device_register(device_of(gpu), &gpu_free_ops,
						  "again"), 0);
	context_add(test, gpu, s->process);
}

static void hmm_device_register_copies_the_name(struct kunit *test)
{
	struct gpu *gpu = gpu_new_unregistered(test, &gpu_free_ops);
	char *name = kstrdup("some name", GFP_KERNEL);
	struct scene *s = test->priv;

	KUNIT_ASSERT_NOT_NULL(test, name);
	KUNIT_ASSERT_EQ(test, hmm_device_register(device_of(gpu), &gpu_free_ops,
						  name), 0);
	gpu->registered = true;
	memset(name, 'x', strlen(name));
	kfree(name);
	KUNIT_EXPECT_STREQ(test, device_of(gpu)->name, "some name");
	run_unregister(context_add(test, gpu, s->process));
}

static void hmm_device_unregister_busy_until_unregister(struct kunit *test)
{
	struct scene *s = test->priv;

	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(s->gpu)), -EBUSY);
	/* A release does not end the registration */
	run_exit(s->context);
	expect_released(test, s->context, HMM_RELEASE_MM_EXIT);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(s->gpu)), -EBUSY);

	run_unregister(s->context);
	expect_gpu_unregistered(test, s->gpu);
}

static void hmm_mirror_register_bad_arguments(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_device *device = device_of(s->gpu);
	struct hmm_mirror mirror = {};

	KUNIT_EXPECT_EQ(test, hmm_mirror_register(NULL, device, s->process->mm),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&mirror, NULL,
						  s->process->mm), -EINVAL);
	/* As current->mm of a kernel thread */
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&mirror, device, NULL),
			-EINVAL);
}

static void hmm_mirror_register_without_device_fails(struct kunit *test)
{
	struct gpu *gpu = gpu_new_unregistered(test, &gpu_ops);
	struct scene *s = test->priv;
	struct context *context = context_new(test, gpu, s->process);

	KUNIT_EXPECT_EQ(test, context_register(context), -ENODEV);
	KUNIT_ASSERT_EQ(test, hmm_device_register(device_of(gpu), &gpu_ops,
						  "gpu"), 0);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(gpu)), 0);
	KUNIT_EXPECT_EQ(test, context_register(context), -ENODEV);
}

static void hmm_mirror_register_after_exit_fails(struct kunit *test)
{
	struct scene *s = test->priv;
	struct process *process = process_new(test);

	/* With and without a mirror before */
	process_exit(process);
	expect_register(test, s->gpu, process, -ESRCH);
	run_exit(s->context);
	expect_register(test, s->gpu, s->process, -ESRCH);
}

static void hmm_mirror_register_twice_keeps_first(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct hmm_mirror *mirror = mirror_of(s->context);

	KUNIT_EXPECT_EQ(test, hmm_mirror_register(mirror, device_of(s->gpu),
						  s->process->mm), -EBUSY);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(mirror, device_of(other),
						  s->process->mm), -EBUSY);
	expect_not_released(test, s->context);
	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_device(mirror), device_of(s->gpu));
	expect_gpu_unregistered(test, other);
	run_exit(s->context);
	expect_released(test, s->context, HMM_RELEASE_MM_EXIT);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(mirror, device_of(s->gpu),
						  s->process->mm), -EBUSY);
}

static void hmm_mirror_register_again(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct context *context = context_new(test, gpu, s->process);
	struct hmm_device unregistered = {};
	struct hmm_mirror *mirror;
	struct job *synchronize;

	context->keep = true;
	mirror = mirror_of(context);
	KUNIT_ASSERT_EQ(test, context_register(context), 0);
	run_unregister(context);
	/* A register that fails leaves the mirror as it was */
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(mirror, &unregistered,
						  s->process->mm), -ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror),
			HMM_RELEASE_UNREGISTER);

	KUNIT_ASSERT_EQ(test, context_register(context), 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror),
			HMM_RELEASE_NONE);
	KUNIT_EXPECT_EQ(test, hmm_mirror_error(mirror), 0);
	/* Nothing is left of the first time: hmm_synchronize() has to wait */
	hold(test, run_kill, context, GATE_IN_RELEASE);
	synchronize = start(test, run_synchronize, NULL);
	expect_blocked(test, synchronize);
	let_go(GATE_IN_RELEASE);
	expect_done(test, synchronize);
	expect_released(test, context, HMM_RELEASE_ERROR);
	run_unregister(context);

	/* On another device, with ->free() */
	context->gpu = s->gpu;
	KUNIT_ASSERT_EQ(test, context_register(context), 0);
	hmm_mirror_get(mirror);
	run_async(context);
	hmm_synchronize();
	expect_released(test, context, HMM_RELEASE_UNREGISTER);
	expect_freed(test, context, 0);
	hmm_mirror_put(mirror);
	hmm_synchronize();
	expect_freed(test, context, 1);

	/* And once more without */
	context->gpu = gpu;
	KUNIT_ASSERT_EQ(test, context_register(context), 0);
	run_exit(context);
	expect_released(test, context, HMM_RELEASE_MM_EXIT);
	run_unregister(context);
	expect_freed(test, context, 1);
	context->keep = false;
}

/* The count of mirrors must not wrap. The test sets it. */
static void hmm_register_on_a_full_device_fails(struct kunit *test)
{
	struct scene *s = test->priv;
	struct context *late = context_new(test, s->gpu, process_new(test));

	WRITE_ONCE(device_of(s->gpu)->nr_registered, UINT_MAX / 4);
	KUNIT_EXPECT_EQ(test, context_register(late), -EOVERFLOW);
	WRITE_ONCE(device_of(s->gpu)->nr_registered, 1);
	KUNIT_EXPECT_EQ(test, context_register(late), 0);
}

/* hmm_mirror_device(), hmm_mirror_is_current() and hmm_mirror_error() */
static void hmm_mirror_tells_what_it_is(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_mirror *mirror = mirror_of(s->context);
	struct process *other = process_new(test);

	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_device(mirror), device_of(s->gpu));
	KUNIT_EXPECT_EQ(test, hmm_mirror_error(mirror), 0);
	KUNIT_EXPECT_FALSE(test, hmm_mirror_is_current(mirror));
	kthread_use_mm(s->process->mm);
	KUNIT_EXPECT_TRUE(test, hmm_mirror_is_current(mirror));
	kthread_unuse_mm(s->process->mm);
	kthread_use_mm(other->mm);
	KUNIT_EXPECT_FALSE(test, hmm_mirror_is_current(mirror));
	kthread_unuse_mm(other->mm);
	s->process->mapped = true;
	other->mapped = true;
}

static void hmm_mirror_error_by_reason(struct kunit *test)
{
	static const int error[NR_PATHS] = {
		[EXIT] = -ESRCH, [UNREGISTER] = -ENODEV, [ASYNC] = -ENODEV,
		[UNPLUG] = -ENODEV, [KILL] = -EIO,
	};
	struct scene *s = test->priv;
	int path;

	for (path = 0; path < NR_PATHS; path++) {
		struct gpu *gpu = gpu_new(test, &gpu_free_ops);
		struct context *context = context_add(test, gpu,
						      process_new(test));
		struct hmm_mirror *mirror = hmm_mirror_get(mirror_of(context));
		struct job *job;

		job = hold(test, paths[path].run, context, GATE_IN_RELEASE);
		KUNIT_EXPECT_EQ(test, hmm_mirror_error(mirror), error[path]);
		let_go(GATE_IN_RELEASE);
		KUNIT_ASSERT_TRUE(test, counts_to(&context->nr_release, 1));
		KUNIT_EXPECT_EQ(test, hmm_mirror_error(mirror), error[path]);
		KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_device(mirror),
				    device_of(gpu));
		hmm_mirror_put(mirror);
		expect_done(test, job);
	}

	/* Exit has begun, but not reached HMM */
	process_watch(test, s->process);
	hold(test, run_exit, s->context, GATE_IN_INVALIDATE);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror_of(s->context)),
			HMM_RELEASE_NONE);
	KUNIT_EXPECT_EQ(test, hmm_mirror_error(mirror_of(s->context)), -ESRCH);
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror_of(s->context)));
	expect_register(test, s->gpu, s->process, -ESRCH);
	let_go(GATE_IN_INVALIDATE);
}

/*
 * Lifetimes
 */

static void hmm_unregister_releases_once(struct kunit *test)
{
	struct scene *s = test->priv;

	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror_of(s->context)),
			HMM_RELEASE_NONE);
	run_unregister(s->context);
	expect_released(test, s->context, HMM_RELEASE_UNREGISTER);
	expect_freed(test, s->context, 1);
	run_exit(s->context);
}

static void hmm_exit_releases_once(struct kunit *test)
{
	struct scene *s = test->priv;

	process_map(test, s->process, true);
	run_exit(s->context);
	expect_released(test, s->context, HMM_RELEASE_MM_EXIT);
	expect_freed(test, s->context, 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror_of(s->context)),
			HMM_RELEASE_MM_EXIT);
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror_of(s->context)));
	/* The memory of the process is given back all the same */
	KUNIT_EXPECT_FALSE(test, process_has_page(s->process));
	run_unregister(s->context);
	expect_freed(test, s->context, 1);
}

static void hmm_mirror_pins_mm_count_only(struct kunit *test)
{
	struct scene *s = test->priv;
	struct process *process = process_new(test);
	struct mm_struct *mm = process->mm;
	struct context *context;
	int count;

	count = atomic_read(&mm->mm_count);
	context = context_add(test, s->gpu, process);
	expect_users(test, mm, 1);
	KUNIT_EXPECT_GT(test, atomic_read(&mm->mm_count), count);

	run_exit(context);
	hmm_test_quiesce(NULL);
	/* That of mm_users is gone, the mirror's is there */
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), count);
	run_unregister(context);
	hmm_test_quiesce(NULL);
	KUNIT_EXPECT_EQ(test, atomic_read(&mm->mm_count), count - 1);
}

static void hmm_mirrors_share_per_mm_state(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *gpu[2] = { s->gpu, gpu_new(test, &gpu_ops) };
	struct hmm_test_counts counts;
	struct context *context[3];
	int i;

	context[0] = s->context;
	for (i = 1; i < 3; i++)
		context[i] = context_add(test, gpu[i & 1], s->process);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, s->start.hmms + 1);
	KUNIT_EXPECT_EQ(test, counts.mirrors, s->start.mirrors + 3);
	KUNIT_EXPECT_EQ(test, counts.devices, s->start.devices + 2);

	/* One that goes leaves the others registered, and room for more */
	run_unregister(context[0]);
	context[0] = context_add(test, gpu[0], s->process);
	expect_not_released(test, context[1]);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, s->start.hmms + 1);

	process_exit(s->process);
	for (i = 2; i >= 0; i--) {
		expect_released(test, context[i], HMM_RELEASE_MM_EXIT);
		run_unregister(context[i]);
	}
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, s->start.hmms);
}

/* More address spaces than the hash table has buckets: some share one. */
static void hmm_hash_collision(struct kunit *test)
{
	enum { NR_MMS = 300 };
	struct scene *s = test->priv;
	struct context **context;
	struct hmm_mirror *found;
	int i;

	context = kunit_kcalloc(test, NR_MMS, sizeof(*context), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, context);
	for (i = 0; i < NR_MMS; i++)
		context[i] = context_add(test, s->gpu, process_new(test));
	for (i = 0; i < NR_MMS; i++) {
		struct mm_struct *mm = context[i]->process->mm;

		found = hmm_mirror_find(device_of(s->gpu), mm);
		KUNIT_ASSERT_PTR_EQ(test, found, mirror_of(context[i]));
		expect_pinned(test, found, mm);
		expect_users(test, mm, 2);
		hmm_mirror_mm_put(found);
		expect_users(test, mm, 1);
		hmm_mirror_put(found);
	}
	for (i = 0; i < NR_MMS; i++) {
		run_exit(context[i]);
		expect_released(test, context[i], HMM_RELEASE_MM_EXIT);
	}
	expect_not_released(test, s->context);
}

static void hmm_unregister_waits_for_references(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_mirror *mirror = mirror_of(s->context);
	struct job *unregister;

	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_get(mirror), mirror);
	unregister = start_blocked(test, run_unregister, s->context,
				   HMM_POINT_UNREGISTER_WAIT);
	expect_released(test, s->context, HMM_RELEASE_UNREGISTER);
	expect_freed(test, s->context, 0);
	hmm_mirror_put(mirror);
	expect_done(test, unregister);
	expect_freed(test, s->context, 1);
}

/* A worker that has a reference may report a failure long after the end. */
static void hmm_kill_after_release_does_nothing(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_mirror *mirror = hmm_mirror_get(mirror_of(s->context));

	run_async(s->context);
	hmm_synchronize();
	hmm_mirror_kill(mirror);
	hmm_mirror_kill(mirror);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror),
			HMM_RELEASE_UNREGISTER);
	expect_freed(test, s->context, 0);
	hmm_mirror_put(mirror);
	hmm_synchronize();
	expect_freed(test, s->context, 1);
}

/*
 * Two paths to release one mirror
 */

#define PAIR(path, then)						\
	{ path, then, HMM_POINT_RELEASE_STARTED },			\
	{ path, then, GATE_IN_RELEASE },				\
	{ path, then, HMM_POINT_RELEASE_RETURNED }

VARIANT(pair,
	PAIR(EXIT, UNREGISTER), PAIR(EXIT, ASYNC), PAIR(EXIT, UNPLUG),
	PAIR(EXIT, KILL), PAIR(UNREGISTER, EXIT), PAIR(UNREGISTER, UNPLUG),
	PAIR(ASYNC, EXIT), PAIR(ASYNC, UNPLUG), PAIR(UNPLUG, EXIT),
	PAIR(UNPLUG, UNREGISTER), PAIR(UNPLUG, ASYNC), PAIR(UNPLUG, KILL),
	PAIR(KILL, EXIT), PAIR(KILL, UNREGISTER), PAIR(KILL, ASYNC),
	PAIR(KILL, UNPLUG));

/*
 * The second path finds the release claimed. Exit, unregister and unplug wait
 * until ->release() has returned; the others return at once. An exit that has
 * begun before the release waits inside; see hmm_release_holds_off_exit() for
 * one that has not.
 */
static void hmm_loser_waits_for_release_of_winner(struct kunit *test)
{
	const struct param *param = test->param_value;
	bool waits = param->then != ASYNC && param->then != KILL;
	struct scene *s = test->priv;
	struct job *winner, *loser;

	process_map(test, s->process, true);
	process_watch(test, s->process);
	if (param->then == EXIT)
		loser = hold(test, run_exit, s->context, GATE_IN_INVALIDATE);
	winner = hold(test, paths[param->path].run, s->context, param->at);
	if (param->then == EXIT) {
		move(test, GATE_IN_INVALIDATE, HMM_POINT_RELEASE_WAIT);
		let_go(HMM_POINT_RELEASE_WAIT);
		expect_blocked(test, loser);
	} else if (waits) {
		loser = start_blocked(test, paths[param->then].run, s->context,
				      HMM_POINT_RELEASE_WAIT);
	} else {
		loser = start(test, paths[param->then].run, s->context);
		expect_done(test, loser);
	}
	KUNIT_EXPECT_TRUE(test, process_has_page(s->process));
	expect_freed(test, s->context, 0);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror_of(s->context)),
			paths[param->path].reason);

	let_go(param->at);
	expect_done(test, loser);
	expect_done(test, winner);
	hmm_synchronize();
	expect_released(test, s->context, paths[param->path].reason);
}

/* A release that exit does not run holds mm_users: exit comes after it. */
static void hmm_release_holds_off_exit(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct scene *s = test->priv;
	struct gpu *other_gpu = gpu_new(test, &gpu_ops);
	struct context *other = context_add(test, other_gpu, s->process);
	struct job *release, *exit;

	process_map(test, s->process, true);
	process_watch(test, s->process);
	release = hold(test, paths[path].run, s->context, GATE_IN_RELEASE);
	expect_users(test, s->process->mm, 2);
	exit = start(test, run_exit, s->context);
	expect_done(test, exit);
	msleep(QUIET_MS);
	KUNIT_EXPECT_EQ(test, atomic_read(&s->process->exiting), 0);
	KUNIT_EXPECT_TRUE(test, process_has_page(s->process));
	/* These mm_users are HMM's own, which keep no other mirror usable */
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror_of(other)));
	expect_not_released(test, other);

	let_go(GATE_IN_RELEASE);
	expect_done(test, release);
	expect_entered(test, other);
	run_unregister(other);
	expect_released(test, other, HMM_RELEASE_MM_EXIT);
	hmm_synchronize();
	expect_released(test, s->context, paths[path].reason);
}

static void run_mmput_and_go(void *arg)
{
	struct context *context = arg;

	mmput(context->process->mm);
	complete_all(&context->go);
}

/* As helpers of the kernel do, which hold mm_users to fault in a page. */
static void hmm_release_may_wait_for_a_last_mmput(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct scene *s = test->priv;
	struct job *release, *worker;

	KUNIT_ASSERT_TRUE(test, mmget_not_zero(s->process->mm));
	s->context->in_release = sleep_in_release;
	release = start(test, paths[path].run, s->context);
	expect_entered(test, s->context);
	run_exit(s->context);
	worker = start(test, run_mmput_and_go, s->context);
	expect_done(test, worker);
	expect_done(test, release);
	hmm_synchronize();
	expect_released(test, s->context, paths[path].reason);
}

/* What exit and unplug do after the release does not touch the mirror. */
static void hmm_unregister_does_not_wait_for_waiters(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct scene *s = test->priv;
	struct job *waiter, *unregister, *remove;

	process_watch(test, s->process);
	if (path == EXIT)
		waiter = hold(test, run_exit, s->context, GATE_IN_INVALIDATE);
	hold(test, run_kill, s->context, GATE_IN_RELEASE);
	if (path == EXIT)
		move(test, GATE_IN_INVALIDATE, HMM_POINT_RELEASE_WAIT);
	else
		waiter = hold(test, run_unplug, s->context,
			      HMM_POINT_RELEASE_WAIT);
	let_go(GATE_IN_RELEASE);
	unregister = start(test, run_unregister, s->context);
	expect_done(test, unregister);
	expect_freed(test, s->context, 1);
	expect_released(test, s->context, HMM_RELEASE_ERROR);

	/* Unplug still uses the device */
	if (path == UNPLUG)
		remove = start_blocked(test, run_gpu_unregister, s->gpu,
				       HMM_POINT_DEVICE_WAIT);
	else
		remove = start(test, run_gpu_unregister, s->gpu);
	if (path == EXIT)
		expect_done(test, remove);
	let_go(HMM_POINT_RELEASE_WAIT);
	expect_done(test, waiter);
	expect_done(test, remove);
	KUNIT_EXPECT_EQ(test, s->gpu->ret, 0);
}

/*
 * The race of the 2015 review: exit is through with ->release() and not with
 * the mirror. Everything is freed as soon as the API allows.
 */
static void hmm_unregister_waits_for_exit_to_let_go(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct context *context = context_add(test, gpu, process_new(test));
	struct job *exit, *unregister, *remove;

	exit = hold(test, run_exit, context, HMM_POINT_RELEASE_RETURNED);
	run_gpu_unregister(gpu);
	KUNIT_EXPECT_EQ(test, gpu->ret, -EBUSY);
	unregister = start_blocked(test, run_unregister, context,
				   HMM_POINT_UNREGISTER_WAIT);
	remove = start_blocked(test, run_gpu_unregister, gpu,
			       HMM_POINT_DEVICE_WAIT);
	expect_blocked(test, unregister);
	let_go(HMM_POINT_RELEASE_RETURNED);
	expect_done(test, unregister);
	expect_done(test, remove);
	KUNIT_EXPECT_EQ(test, gpu->ret, 0);
	expect_done(test, exit);
	expect_not_released(test, s->context);
}

/* As it comes, on two CPUs; the device is removed and all is freed at once. */
static void hmm_exit_against_unregister_many_times(struct kunit *test)
{
	int i, by_exit = 0;

	for (i = 0; i < NR_RACES; i++) {
		struct gpu *gpu = gpu_new(test, i & 1 ? &gpu_ops :
							&gpu_free_ops);
		struct context *context = context_add(test, gpu,
						      process_new(test));
		struct job *exit, *unregister;

		if (i & 2)
			unregister = start(test, run_unregister, context);
		exit = start(test, run_exit, context);
		if (!(i & 2))
			unregister = start(test, run_unregister, context);
		expect_done(test, unregister);
		expect_gpu_unregistered(test, gpu);
		by_exit += context->reason == HMM_RELEASE_MM_EXIT;
		expect_released(test, context, context->reason);
		expect_done(test, exit);
	}
	kunit_info(test, "%d of %d released by exit\n", by_exit, NR_RACES);
}

/* All at once: one release, one free, whichever path is first. */
static void hmm_all_paths_at_once_many_times(struct kunit *test)
{
	int won[HMM_RELEASE_ERROR + 1] = {};
	int i, j;

	for (i = 0; i < NR_RACES; i++) {
		struct gpu *gpu = gpu_new(test, &gpu_free_ops);
		struct process *process = process_new(test);
		struct context *context[3];
		struct hmm_mirror *mirror;
		struct job *jobs[4];

		for (j = 0; j < 3; j++)
			context[j] = context_add(test, gpu, process);
		/* The jobs use the first one, by this reference */
		mirror = hmm_mirror_get(mirror_of(context[0]));
		jobs[0] = start(test, i & 4 ? run_exit : run_kill, context[0]);
		jobs[1] = start(test, run_unplug, context[1]);
		jobs[2] = start(test, i & 4 ? run_kill : run_exit, context[0]);
		jobs[3] = start(test, i & 2 ? run_async : run_unregister,
				context[i & 1 ? 0 : 2]);
		for (j = 0; j < 3; j++)
			expect_done(test, jobs[j]);
		hmm_mirror_put(mirror);
		expect_done(test, jobs[3]);
		hmm_synchronize();
		for (j = 0; j < 3; j++) {
			won[context[j]->reason]++;
			expect_released(test, context[j], context[j]->reason);
			if (context[j]->registered)
				run_unregister(context[j]);
			expect_freed(test, context[j], 1);
		}
		expect_gpu_unregistered(test, gpu);
	}
	kunit_info(test, "exit %d, unregister %d, unplug %d, kill %d\n",
		   won[HMM_RELEASE_MM_EXIT], won[HMM_RELEASE_UNREGISTER],
		   won[HMM_RELEASE_DEVICE_GONE], won[HMM_RELEASE_ERROR]);
	KUNIT_EXPECT_EQ(test, won[HMM_RELEASE_NONE], 0);
}

/* Unregister meets the worker of a kill before, in or after its release. */
static void hmm_kill_against_unregister_many_times(struct kunit *test)
{
	struct scene *s = test->priv;
	int i, by_worker = 0;

	for (i = 0; i < NR_RACES; i++) {
		struct gpu *gpu = i & 1 ? s->gpu : gpu_new(test, &gpu_ops);
		struct context *context = context_add(test, gpu, s->process);

		run_kill(context);
		if (i & 2)
			udelay(i);
		run_unregister(context);
		expect_released(test, context, HMM_RELEASE_ERROR);
		by_worker += context->released_by != current;
		if (!(i & 1))
			expect_gpu_unregistered(test, gpu);
	}
	kunit_info(test, "%d of %d released by workers\n", by_worker, NR_RACES);
}

/*
 * Releases that no worker has started
 */

VARIANT(queued_pair,
	TWO(KILL, EXIT), TWO(KILL, UNREGISTER), TWO(KILL, UNPLUG),
	TWO(ASYNC, EXIT), TWO(ASYNC, UNPLUG));

/* Teardown is what frees the memory that a worker would need. */
static void hmm_waiter_starts_a_queued_release(struct kunit *test)
{
	const struct param *param = test->param_value;
	struct scene *s = test->priv;
	struct context *bystander = context_add(test, gpu_new(test, &gpu_ops),
						process_new(test));
	struct task_struct *released_by;
	bool slept;

	workers_stop(test, NULL);
	run_kill(bystander);
	paths[param->path].run(s->context);
	paths[param->then].run(s->context);
	released_by = s->context->released_by;
	/* If this thread had slept, a worker would have run */
	slept = completion_done(&bystander->entered);
	workers_go();
	KUNIT_EXPECT_PTR_EQ(test, released_by, current);
	KUNIT_EXPECT_FALSE(test, slept);
	hmm_synchronize();
	expect_released(test, s->context, paths[param->path].reason);
}

static void hmm_exit_and_unplug_need_no_worker(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct scene *s = test->priv;
	struct context *context[5];
	int i, by_workers = 0;

	context[0] = s->context;
	for (i = 1; i < ARRAY_SIZE(context); i++)
		context[i] = context_add(test, s->gpu, s->process);
	workers_stop(test, NULL);
	paths[path].run(s->context);
	for (i = 0; i < ARRAY_SIZE(context); i++)
		by_workers += context[i]->released_by != current;
	/* The last one is still queued: unregister takes it back */
	for (i = 1; i < ARRAY_SIZE(context); i++)
		run_unregister(context[i]);
	workers_go();
	KUNIT_EXPECT_EQ(test, by_workers, 0);
	for (i = 0; i < ARRAY_SIZE(context); i++)
		expect_released(test, context[i], paths[path].reason);
}

/*
 * Exit or unplug sleeps in the first release of three and has queued the last
 * one, which no worker runs. Returns the job; workers are stopped.
 */
static struct job *hold_chain(struct kunit *test, int path,
			      struct context *context[3])
{
	struct scene *s = test->priv;
	struct job *job;
	int i;

	context[0] = s->context;
	for (i = 1; i < 3; i++)
		context[i] = context_add(test, s->gpu, s->process);
	context[0]->in_release = sleep_in_release;
	context[1]->in_release = sleep_in_release;
	job = hold(test, paths[path].run, s->context, GATE_JOB);
	workers_stop(test, job);
	let_go(GATE_JOB);
	expect_entered(test, context[0]);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror_of(context[1])),
			HMM_RELEASE_NONE);
	KUNIT_EXPECT_EQ(test, hmm_mirror_release_reason(mirror_of(context[2])),
			paths[path].reason);
	return job;
}

/* Unregister runs the queued release, and a worker still comes for the next. */
static void hmm_unregister_of_the_queued_mirror(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct context *context[3];
	struct task_struct *released_by;
	struct job *job;
	bool slept;

	job = hold_chain(test, path, context);
	run_unregister(context[2]);
	released_by = context[2]->released_by;
	slept = completion_done(&context[1]->entered);
	workers_go();
	KUNIT_EXPECT_PTR_EQ(test, released_by, current);
	KUNIT_EXPECT_FALSE(test, slept);
	expect_released(test, context[2], paths[path].reason);
	/* While the first release still sleeps */
	expect_entered(test, context[1]);
	expect_blocked(test, job);
	complete_all(&context[0]->go);
	expect_blocked(test, job);
	complete_all(&context[1]->go);
	expect_done(test, job);
	expect_released(test, context[1], paths[path].reason);
}

/* Unplug finds the mirror that exit has queued claimed, and runs it. */
static void hmm_unplug_meets_the_queued_mirror_of_exit(struct kunit *test)
{
	struct context *context[3];
	struct job *exit;
	int i, by_workers = 0;

	exit = hold_chain(test, EXIT, context);
	context[1]->in_release = NULL;
	/* Exit does not go on before this thread sleeps */
	complete_all(&context[0]->go);
	run_unplug(context[0]);
	for (i = 1; i < 3; i++)
		by_workers += context[i]->released_by != current;
	workers_go();
	KUNIT_EXPECT_EQ(test, by_workers, 0);
	expect_done(test, exit);
	expect_released(test, context[0], HMM_RELEASE_MM_EXIT);
	expect_released(test, context[1], HMM_RELEASE_DEVICE_GONE);
	expect_released(test, context[2], HMM_RELEASE_MM_EXIT);
}

VARIANT(chain_pair,
	TWO(EXIT, KILL), TWO(EXIT, ASYNC), TWO(UNPLUG, KILL),
	TWO(UNPLUG, ASYNC));

/* It keeps its reason. hmm_synchronize() waits for it, not for the chain. */
static void hmm_kill_and_async_of_the_queued_mirror(struct kunit *test)
{
	const struct param *param = test->param_value;
	struct context *context[3];
	struct job *job, *synchronize;

	job = hold_chain(test, param->path, context);
	context[2]->in_release = sleep_in_release;
	paths[param->then].run(context[2]);
	workers_go();
	expect_entered(test, context[2]);
	synchronize = start(test, run_synchronize, NULL);
	expect_blocked(test, synchronize);
	gate_close(GATE_IN_FREE);
	complete_all(&context[2]->go);
	if (param->then == ASYNC) {
		expect_reached(test, GATE_IN_FREE);
		expect_blocked(test, synchronize);
	}
	let_go(GATE_IN_FREE);
	expect_done(test, synchronize);
	expect_released(test, context[2], paths[param->path].reason);
	expect_freed(test, context[2], param->then == ASYNC);
	expect_blocked(test, job);
	complete_all(&context[0]->go);
	complete_all(&context[1]->go);
	expect_done(test, job);
}

/*
 * Releases overlap
 */

#define NR_OVERLAP	8

static atomic_t nr_together;

static void wait_for_all_in_release(struct context *context)
{
	atomic_inc(&nr_together);
	if (!counts_to(&nr_together, NR_OVERLAP))
		context->error = "releases do not overlap";
}

static void overlap(struct kunit *test, struct context *context[NR_OVERLAP])
{
	struct scene *s = test->priv;
	int i;

	atomic_set(&nr_together, 0);
	for (i = 0; i < NR_OVERLAP; i++) {
		context[i] = i ? context_add(test, s->gpu, s->process) :
				 s->context;
		context[i]->in_release = wait_for_all_in_release;
	}
}

static void hmm_releases_of_exit_and_unplug_overlap(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct context *context[NR_OVERLAP];
	struct scene *s = test->priv;
	int i;

	overlap(test, context);
	paths[path].run(s->context);
	for (i = 0; i < NR_OVERLAP; i++)
		expect_released(test, context[i], paths[path].reason);
}

/* Killed and unregistered mirrors stand in the middle and at the ends. */
static void hmm_releases_overlap_beside_others(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct context *context[NR_OVERLAP];
	struct scene *s = test->priv;
	struct job *job;
	int i;

	process_watch(test, s->process);
	overlap(test, context);
	job = hold(test, paths[path].run, s->context,
		   path == EXIT ? GATE_IN_INVALIDATE : GATE_JOB);
	run_kill(context[0]);
	run_kill(context[3]);
	run_async(context[4]);
	run_kill(context[NR_OVERLAP - 1]);
	let_go(GATE_IN_INVALIDATE);
	let_go(GATE_JOB);
	expect_done(test, job);
	hmm_synchronize();
	for (i = 1; i < NR_OVERLAP - 1; i++)
		if (i < 3 || i > 4)
			expect_released(test, context[i], paths[path].reason);
	expect_released(test, context[0], HMM_RELEASE_ERROR);
	expect_released(test, context[4], HMM_RELEASE_UNREGISTER);
}

/* Exit and unplug at once, over the same mirrors */
static void hmm_releases_of_exit_beside_unplug_overlap(struct kunit *test)
{
	struct context *context[NR_OVERLAP];
	struct scene *s = test->priv;
	struct job *exit, *unplug;
	int i;

	overlap(test, context);
	exit = start(test, run_exit, s->context);
	unplug = start(test, run_unplug, s->context);
	expect_done(test, exit);
	expect_done(test, unplug);
	for (i = 0; i < NR_OVERLAP; i++)
		KUNIT_EXPECT_EQ(test, atomic_read(&context[i]->nr_release), 1);
}

/* One callback sleeps. It must not delay anything else. */
static void hmm_sleeping_release_delays_nobody_else(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct process *process = process_new(test);
	struct context *same_mm, *same_gpu, *bystander;
	struct job *exit;

	same_mm = context_add(test, other, s->process);
	same_gpu = context_add(test, s->gpu, process);
	bystander = context_add(test, other, process);
	s->context->in_release = sleep_in_release;
	exit = start(test, run_exit, s->context);
	expect_entered(test, s->context);

	/* A mirror of that process, one of that device, and another process */
	run_unregister(same_mm);
	run_unregister(same_gpu);
	process_exit(process);
	run_unregister(bystander);
	expect_gpu_unregistered(test, other);
	expect_blocked(test, exit);
	complete_all(&s->context->go);
	expect_done(test, exit);
	expect_released(test, s->context, HMM_RELEASE_MM_EXIT);
	expect_released(test, same_mm, HMM_RELEASE_MM_EXIT);
	expect_released(test, same_gpu, HMM_RELEASE_UNREGISTER);
	expect_released(test, bystander, HMM_RELEASE_MM_EXIT);
}

/* What workers do for one mirror does not wait for what they do for another. */
static void hmm_workers_do_not_wait_for_others(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct scene *s = test->priv;
	struct context *other = context_add(test, s->gpu, process_new(test));

	s->context->in_release = sleep_in_release;
	paths[path].run(s->context);
	expect_entered(test, s->context);
	paths[path].run(other);
	expect_entered(test, other);
	KUNIT_ASSERT_TRUE(test, counts_to(&other->nr_release, 1));
	if (path == KILL)
		run_unregister(other);
	KUNIT_ASSERT_TRUE(test, counts_to(&other->nr_free, 1));
	complete_all(&s->context->go);
}

static void hmm_free_does_not_wait_for_other_frees(struct kunit *test)
{
	struct scene *s = test->priv;
	struct context *other = context_add(test, s->gpu, s->process);

	hold(test, run_async, s->context, GATE_IN_FREE);
	run_async(other);
	KUNIT_EXPECT_TRUE(test, counts_to(&other->nr_free, 1));
	let_go(GATE_IN_FREE);
}

static void sleep_with_all_in_release(struct context *context)
{
	atomic_inc(&nr_together);
	wait_for_completion(&context->other->go);
}

/*
 * The releases of one exit have all the workers of their queue. Kill, ->free(),
 * and exit and unplug of others go on.
 */
static void hmm_kill_is_not_behind_releases_of_exit(struct kunit *test)
{
	enum { NR = WQ_MAX_ACTIVE + 1, PATIENCE_MS = 10000 };
	struct scene *s = test->priv;
	struct gpu *gpu[2] = { gpu_new(test, &gpu_free_ops),
			       gpu_new(test, &gpu_free_ops) };
	struct process *process = process_new(test);
	struct context *killed, *ended, *two[2];
	struct job *exit, *job;
	int i;

	killed = context_add(test, gpu[0], process);
	ended = context_add(test, gpu[0], process);
	for (i = 0; i < 2; i++) {
		context_add(test, gpu[0], process);
		two[i] = context_add(test, gpu[1], process_new(test));
	}
	atomic_set(&nr_together, 0);
	for (i = 0; i < NR; i++) {
		struct context *context = context_add(test, s->gpu, s->process);

		context->other = s->context;
		context->in_release = sleep_with_all_in_release;
	}
	exit = start(test, run_exit, s->context);
	if (!counts_within(PATIENCE_MS, &nr_together, NR)) {
		complete_all(&s->context->go);
		expect_done(test, exit);
		kunit_skip(test, "no %d workers within %d ms", NR, PATIENCE_MS);
	}

	run_kill(killed);
	KUNIT_EXPECT_TRUE(test, counts_to(&killed->nr_release, 1));
	run_async(ended);
	KUNIT_EXPECT_TRUE(test, counts_to(&ended->nr_free, 1));
	job = start(test, run_exit, killed);
	expect_done(test, job);
	job = start(test, run_unplug, two[0]);
	expect_done(test, job);
	job = start(test, run_synchronize, NULL);
	expect_done(test, job);
	expect_blocked(test, exit);
	complete_all(&s->context->go);
	expect_done(test, exit);
}

/*
 * The driver has the memory back in ->free() and may use it again. The release
 * of the new mirror does not wait for that ->free() to return.
 */
static void hmm_release_does_not_wait_for_an_older_free(struct kunit *test)
{
	struct scene *s = test->priv;
	struct context *context = s->context;

	context->keep = true;
	hold(test, run_async, context, GATE_IN_FREE);
	reinit_completion(&context->entered);
	KUNIT_ASSERT_EQ(test, context_register(context), 0);
	run_kill(context);
	expect_entered(test, context);
	let_go(GATE_IN_FREE);
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release), 2);
	expect_freed(test, context, 1);
	context->keep = false;
	run_unregister(context);
	expect_freed(test, context, 2);
}

/*
 * What a callback may do
 */

static void end_all_in_release(struct context *context)
{
	run_kill(context->other);
	run_async(context->other);
	hmm_mirror_get(mirror_of(context));
	run_kill(context);
	run_async(context);
	might_sleep();
	hmm_mirror_put(mirror_of(context));
}

static void hmm_release_may_unregister_async_kill_and_put(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct scene *s = test->priv;
	struct context *other = context_add(test, s->gpu, s->process);
	struct job *job;

	/* Exit and unplug have queued the release of the other mirror */
	s->context->in_release = end_all_in_release;
	s->context->other = other;
	job = start(test, paths[path].run, s->context);
	expect_done(test, job);
	/* For the release, and then for what was asked for in it */
	hmm_synchronize();
	hmm_synchronize();
	expect_released(test, s->context, paths[path].reason);
	expect_freed(test, s->context, 1);
	expect_released(test, other, paths[path].reason);
	expect_freed(test, other, 1);
}

static void register_in_release(struct context *context)
{
	struct context *other = context->other;

	context->ret = hmm_mirror_register(mirror_of(other),
					   device_of(other->gpu),
					   context->process->mm);
	other->ret = context_register(other);
}

/* Its own address space is gone; another one that has mirrors may have more. */
static void hmm_register_in_release(struct kunit *test)
{
	struct scene *s = test->priv;
	struct context *first = context_add(test, s->gpu, process_new(test));
	struct context *other = context_new(test, s->gpu, first->process);

	s->context->other = other;
	s->context->in_release = register_in_release;
	run_exit(s->context);
	KUNIT_EXPECT_EQ(test, s->context->ret, -ESRCH);
	KUNIT_EXPECT_EQ(test, other->ret, 0);
	run_exit(other);
	expect_released(test, other, HMM_RELEASE_MM_EXIT);
}

static DEFINE_SPINLOCK(driver_lock);

struct interrupt {
	struct irq_work work;
	struct hmm_mirror *mirror;
	bool kill;
};

static void interrupt_work(struct irq_work *work)
{
	struct interrupt *irq = container_of(work, struct interrupt, work);

	guard(spinlock_irqsave)(&driver_lock);
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

/* The last put may be anywhere; ->free() is in process context. */
static void hmm_put_and_kill_in_interrupt(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_mirror *mirror = mirror_of(s->context);

	interrupt(hmm_mirror_get(mirror), true);
	hmm_synchronize();
	expect_released(test, s->context, HMM_RELEASE_ERROR);

	hmm_mirror_get(mirror);
	run_async(s->context);
	hmm_synchronize();
	expect_freed(test, s->context, 0);
	interrupt(mirror, false);
	hmm_synchronize();
	expect_freed(test, s->context, 1);
}

/* All calls that a driver may make under a spinlock */
static void use_and_end(struct kunit *test, struct context *context)
{
	struct mm_struct *mm = context->process->mm;
	struct hmm_mirror *found;

	found = hmm_mirror_find(device_of(context->gpu), mm);
	KUNIT_EXPECT_PTR_EQ(test, found, mirror_of(context));
	expect_pinned(test, mirror_of(context), mm);
	hmm_mirror_mm_put(mirror_of(context));
	run_kill(context);
	run_async(context);
	hmm_mirror_put(mirror_of(context));
}

/* For lockdep: no lock of HMM is ever taken with interrupts on. */
static void hmm_calls_under_a_lock_of_an_interrupt(struct kunit *test)
{
	struct scene *s = test->priv;
	struct context *second = context_add(test, s->gpu, s->process);
	struct context *last = context_add(test, s->gpu, s->process);
	struct hmm_mirror *mirror = hmm_mirror_get(mirror_of(last));

	use_and_end(test, s->context);
	interrupt(hmm_mirror_get(mirror_of(second)), false);
	scoped_guard(spinlock_irqsave, &driver_lock)
		use_and_end(test, second);
	hmm_synchronize();
	expect_freed(test, s->context, 1);
	expect_freed(test, second, 1);
	/* Here the last reference is dropped, and the struct hmm with it */
	run_async(last);
	hmm_synchronize();
	scoped_guard(spinlock_irqsave, &driver_lock)
		hmm_mirror_put(mirror);
}

/*
 * Devices that go
 */

VARIANT(device_wait,
	{ UNREGISTER, NO_PATH, GATE_IN_FREE },
	{ UNREGISTER, NO_PATH, HMM_POINT_DEVICE_PUT },
	{ ASYNC, NO_PATH, GATE_IN_RELEASE },
	{ ASYNC, NO_PATH, HMM_POINT_DESTROY },
	{ ASYNC, NO_PATH, GATE_IN_FREE },
	{ ASYNC, NO_PATH, HMM_POINT_DEVICE_PUT },
	{ EXIT, ASYNC, GATE_IN_RELEASE },
	{ KILL, ASYNC, GATE_IN_RELEASE });

/* No mirror is registered, but a callback is still to come or to return. */
static void hmm_device_unregister_waits_for_callbacks(struct kunit *test)
{
	const struct param *param = test->param_value;
	struct scene *s = test->priv;
	struct job *remove;

	hold(test, paths[param->path].run, s->context, param->at);
	if (param->then != NO_PATH)
		paths[param->then].run(s->context);
	remove = start_blocked(test, run_gpu_unregister, s->gpu,
			       HMM_POINT_DEVICE_WAIT);
	/* The device takes no more mirrors and cannot be registered again */
	expect_register(test, s->gpu, s->process, -ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_device_register(device_of(s->gpu), &gpu_ops,
						  "x"), -EBUSY);
	let_go(param->at);
	expect_done(test, remove);
	KUNIT_EXPECT_EQ(test, s->gpu->ret, 0);
	expect_freed(test, s->context, 1);
}

static void hmm_device_unregister_waits_for_references(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_mirror *mirror = hmm_mirror_get(mirror_of(s->context));
	struct job *remove;

	run_async(s->context);
	hmm_synchronize();
	remove = start_blocked(test, run_gpu_unregister, s->gpu,
			       HMM_POINT_DEVICE_WAIT);
	hmm_mirror_put(mirror);
	expect_done(test, remove);
	expect_freed(test, s->context, 1);
}

/* All released with the reason, new ones refused, the rest as ever. */
static void hmm_unplug_releases_all_and_refuses_new(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct process *process = process_new(test);
	struct context *second, *third;

	second = context_add(test, s->gpu, process);
	third = context_add(test, other, s->process);
	run_unplug(s->context);
	expect_released(test, s->context, HMM_RELEASE_DEVICE_GONE);
	expect_released(test, second, HMM_RELEASE_DEVICE_GONE);
	expect_not_released(test, third);
	expect_register(test, s->gpu, process, -ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(s->gpu)), -EBUSY);
	/* Again, with nothing left to do */
	run_unplug(s->context);
	process_exit(process);
	process_exit(s->process);
	run_async(second);
	hmm_synchronize();
	expect_freed(test, second, 1);
	expect_released(test, third, HMM_RELEASE_MM_EXIT);
}

/* Unplug waits for a release that another path runs, and uses the device. */
static void hmm_device_unregister_waits_for_unplug(struct kunit *test)
{
	struct scene *s = test->priv;
	struct job *unplug, *remove;

	unplug = hold(test, run_unplug, s->context, HMM_POINT_RELEASE_WAIT);
	run_unregister(s->context);
	remove = start_blocked(test, run_gpu_unregister, s->gpu,
			       HMM_POINT_DEVICE_WAIT);
	let_go(HMM_POINT_RELEASE_WAIT);
	expect_done(test, remove);
	KUNIT_EXPECT_EQ(test, s->gpu->ret, 0);
	expect_done(test, unplug);
}

static void hmm_device_unregister_async_without_mirrors(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_async_ops);
	struct scene *s = test->priv;
	struct context *context = context_add(test, gpu, s->process);

	run_unregister(context);
	run_gpu_unregister_async(gpu);
	expect_device_freed(test, gpu, 1);

	/* With ->device_free(), the other unregister is as ever */
	gpu = gpu_new(test, &gpu_async_ops);
	expect_gpu_unregistered(test, gpu);
	expect_device_freed(test, gpu, 0);
}

/* Hot-unplug: mirrors go when their files are closed, the device after them. */
static void hmm_last_mirror_frees_the_device(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct gpu *gpu = gpu_new(test, &gpu_async_ops);
	struct scene *s = test->priv;
	struct context *first, *last;
	struct job *job;

	first = context_add(test, gpu, s->process);
	last = context_add(test, gpu, s->process);
	run_unplug(first);
	run_gpu_unregister_async(gpu);
	expect_register(test, gpu, s->process, -ENODEV);
	KUNIT_EXPECT_EQ(test, hmm_device_register(device_of(gpu), &gpu_ops,
						  "x"), -EBUSY);
	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_device(mirror_of(last)),
			    device_of(gpu));
	paths[path].run(first);
	hmm_synchronize();
	expect_freed(test, first, 1);
	expect_device_freed(test, gpu, 0);

	/* ->device_free() comes after the other callbacks */
	job = hold(test, paths[path].run, last, GATE_IN_FREE);
	msleep(QUIET_MS);
	expect_device_freed(test, gpu, 0);
	let_go(GATE_IN_FREE);
	expect_done(test, job);
	hmm_synchronize();
	expect_device_freed(test, gpu, 1);
	expect_released(test, last, HMM_RELEASE_DEVICE_GONE);
}

/* It is only closed, not unplugged: mirrors live on, and exit releases them. */
static void hmm_device_unregister_async_releases_no_mirror(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_async_ops);
	struct scene *s = test->priv;
	struct context *context = context_add(test, gpu, s->process);
	struct hmm_mirror *mirror = hmm_mirror_get(mirror_of(context));

	run_gpu_unregister_async(gpu);
	KUNIT_EXPECT_EQ(test, hmm_mirror_error(mirror), 0);
	run_exit(context);
	expect_released(test, context, HMM_RELEASE_MM_EXIT);
	run_async(context);
	hmm_synchronize();
	/* A reference of the driver keeps both */
	expect_freed(test, context, 0);
	expect_device_freed(test, gpu, 0);
	hmm_mirror_put(mirror);
	hmm_synchronize();
	expect_freed(test, context, 1);
	expect_device_freed(test, gpu, 1);
}

/* Register and unplug hold the device while they run; one may be the last. */
static void hmm_register_and_unplug_may_free_the_device(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_async_ops);
	struct scene *s = test->priv;
	struct context *context = context_new(test, gpu, process_new(test));
	struct job *job;

	job = hold(test, run_register, context, HMM_POINT_REGISTER_ARMED);
	run_gpu_unregister_async(gpu);
	expect_device_freed(test, gpu, 0);
	let_go(HMM_POINT_REGISTER_ARMED);
	expect_done(test, job);
	KUNIT_EXPECT_EQ(test, context->ret, -ENODEV);
	expect_device_freed(test, gpu, 1);

	gpu = gpu_new(test, &gpu_async_ops);
	context = context_add(test, gpu, s->process);
	job = hold(test, run_unplug, context, HMM_POINT_RELEASE_WAIT);
	run_gpu_unregister_async(gpu);
	run_unregister(context);
	expect_device_freed(test, gpu, 0);
	let_go(HMM_POINT_RELEASE_WAIT);
	expect_done(test, job);
	expect_device_freed(test, gpu, 1);
}

/*
 * Registers, and what they meet
 */

/* The device goes while a mirror is on its way in: the register fails. */
static void hmm_register_loses_to_unplug_and_unregister(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct context *context = context_new(test, gpu, process_new(test));
	struct hmm_test_counts counts;
	struct job *add, *remove;

	add = hold(test, run_register, context, HMM_POINT_REGISTER_ARMED);
	remove = start_blocked(test, run_gpu_unregister, gpu,
			       HMM_POINT_DEVICE_WAIT);
	let_go(HMM_POINT_REGISTER_ARMED);
	expect_done(test, remove);
	expect_done(test, add);
	KUNIT_EXPECT_EQ(test, context->ret, -ENODEV);

	context->gpu = s->gpu;
	add = hold(test, run_register, context, HMM_POINT_REGISTER_ARMED);
	run_unplug(s->context);
	let_go(HMM_POINT_REGISTER_ARMED);
	expect_done(test, add);
	KUNIT_EXPECT_EQ(test, context->ret, -ENODEV);

	expect_users(test, context->process->mm, 1);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, s->start.hmms + 1);
}

VARIANT(register_point,
	{ NO_PATH, NO_PATH, HMM_POINT_REGISTER_ARMED },
	{ NO_PATH, NO_PATH, HMM_POINT_REGISTER_LINKED });

/* The last user goes while a mirror is on its way in. */
static void hmm_register_beside_exit_is_released(struct kunit *test)
{
	unsigned int at = ((const struct param *)test->param_value)->at;
	struct scene *s = test->priv;
	struct context *context = context_new(test, s->gpu, process_new(test));
	struct job *add, *exit;

	add = hold(test, run_register, context, at);
	exit = start(test, run_exit, context);
	expect_done(test, exit);
	if (at == HMM_POINT_REGISTER_ARMED)
		expect_not_released(test, context);
	let_go(at);
	expect_done(test, add);
	KUNIT_EXPECT_EQ(test, context->ret, 0);
	expect_entered(test, context);
	run_unregister(context);
	expect_released(test, context, HMM_RELEASE_MM_EXIT);
}

/* A second register of the mirror is refused wherever the first one is. */
static void hmm_second_register_is_refused(struct kunit *test)
{
	unsigned int at = ((const struct param *)test->param_value)->at;
	struct scene *s = test->priv;
	struct context *context = context_new(test, s->gpu, process_new(test));
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct job *add;

	add = hold(test, run_register, context, at);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(mirror_of(context),
						  device_of(s->gpu),
						  context->process->mm),
			-EBUSY);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(mirror_of(context),
						  device_of(other),
						  s->process->mm), -EBUSY);
	let_go(at);
	expect_done(test, add);
	KUNIT_EXPECT_EQ(test, context->ret, 0);
	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_device(mirror_of(context)),
			    device_of(s->gpu));
	run_unregister(context);
	expect_released(test, context, HMM_RELEASE_UNREGISTER);
	expect_gpu_unregistered(test, other);
}

/* Two threads come first, each with a struct hmm of its own: one is kept. */
static void hmm_concurrent_registers_share_per_mm_state(struct kunit *test)
{
	struct scene *s = test->priv;
	struct process *process = process_new(test);
	struct context *slow = context_new(test, s->gpu, process);
	struct hmm_test_counts counts;
	struct context *quick;
	struct job *add;

	add = hold(test, run_register, slow, HMM_POINT_REGISTER_ARMED);
	quick = context_add(test, s->gpu, process);
	let_go(HMM_POINT_REGISTER_ARMED);
	expect_done(test, add);
	KUNIT_ASSERT_EQ(test, slow->ret, 0);
	expect_users(test, process->mm, 1);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, s->start.hmms + 2);
	KUNIT_EXPECT_EQ(test, counts.mirrors, s->start.mirrors + 3);

	/* All of its pins are counted, and none too many */
	expect_pinned(test, mirror_of(quick), process->mm);
	process_exit(process);
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror_of(slow)));
	hmm_mirror_mm_put(mirror_of(quick));
	expect_entered(test, quick);
	run_unregister(quick);
	expect_released(test, quick, HMM_RELEASE_MM_EXIT);
	run_unregister(slow);
	expect_released(test, slow, HMM_RELEASE_MM_EXIT);
}

/*
 * The last mirror of an mm goes, and its struct hmm is still there: a new
 * mirror gets a new one. It learns of exit, which comes first or second.
 */
static void hmm_register_beside_last_unregister(struct kunit *test)
{
	struct scene *s = test->priv;
	int exit_first;

	for (exit_first = 0; exit_first < 2; exit_first++) {
		struct process *process = process_new(test);
		struct context *first = context_add(test, s->gpu, process);
		struct context *second;
		struct hmm_test_counts counts;
		struct hmm_mirror *found;
		struct job *unregister;

		unregister = hold(test, run_unregister, first,
				  HMM_POINT_MM_LAST_PUT);
		second = context_add(test, s->gpu, process);
		found = hmm_mirror_find(device_of(s->gpu), process->mm);
		KUNIT_ASSERT_PTR_EQ(test, found, mirror_of(second));
		hmm_mirror_put(found);
		if (exit_first)
			process_exit(process);
		let_go(HMM_POINT_MM_LAST_PUT);
		expect_done(test, unregister);
		if (!exit_first)
			process_exit(process);
		expect_released(test, first, HMM_RELEASE_UNREGISTER);
		expect_released(test, second, HMM_RELEASE_MM_EXIT);
		run_unregister(second);
		hmm_test_quiesce(&counts);
		KUNIT_EXPECT_EQ(test, counts.hmms, s->start.hmms + 1);
	}
}

struct churn {
	struct context *context;
	bool stop;
	int failed;
};

static void run_churn(void *arg)
{
	struct churn *churn = arg;
	struct context *context = churn->context;
	struct hmm_mirror *found;
	int i;

	for (i = 0; i < NR_RACES; i++) {
		churn->failed += !!context_register(context);
		/* Its own at least */
		found = hmm_mirror_find(device_of(context->gpu),
					context->process->mm);
		churn->failed += !found;
		if (found)
			hmm_mirror_put(found);
		run_unregister(context);
	}
}

static void run_find_often(void *arg)
{
	struct churn *churn = arg;
	struct hmm_mirror *found;

	while (!READ_ONCE(churn->stop)) {
		found = hmm_mirror_find(device_of(churn->context->gpu),
					churn->context->process->mm);
		if (found)
			hmm_mirror_put(found);
		cond_resched();
	}
}

/* First and last mirrors of one mm: no register fails, none is lost. */
static void hmm_registers_on_one_mm_many_times(struct kunit *test)
{
	struct process *process = process_new(test);
	struct churn churn[4] = {}, finder = {};
	struct scene *s = test->priv;
	struct job *jobs[4], *find;
	int i, j;

	/* From one, which is always the first and the last, to many */
	for (i = 1; i <= ARRAY_SIZE(jobs); i += 3) {
		finder.stop = false;
		finder.context = context_new(test, s->gpu, process);
		find = start(test, run_find_often, &finder);
		for (j = 0; j < i; j++) {
			churn[j].context = context_new(test, s->gpu, process);
			churn[j].context->keep = true;
			jobs[j] = start(test, run_churn, &churn[j]);
		}
		for (j = 0; j < i; j++) {
			expect_done(test, jobs[j]);
			KUNIT_EXPECT_EQ(test, churn[j].failed, 0);
			expect_released(test, churn[j].context,
					HMM_RELEASE_UNREGISTER);
		}
		WRITE_ONCE(finder.stop, true);
		expect_done(test, find);
	}
}

/*
 * While another driver of the mm is in an invalidation, a notifier that is
 * inserted is not in the interval tree, and exit would not find it.
 */
static void hmm_register_waits_for_running_invalidation(struct kunit *test)
{
	struct scene *s = test->priv;
	struct process *process = process_new(test);
	struct context *context = context_new(test, s->gpu, process);
	struct job *unmap, *add;

	process_map(test, process, false);
	process_watch(test, process);
	unmap = hold(test, run_process_munmap, process, GATE_IN_INVALIDATE);
	add = start(test, run_register, context);
	expect_blocked(test, add);
	let_go(GATE_IN_INVALIDATE);
	expect_done(test, add);
	KUNIT_EXPECT_EQ(test, context->ret, 0);
	expect_done(test, unmap);
	run_exit(context);
	expect_released(test, context, HMM_RELEASE_MM_EXIT);
}

/*
 * Unregister, hmm_synchronize() and the unregister of a device do not wait for
 * what another driver does to the mm; nor does the end of another mm.
 */
static void hmm_nothing_waits_for_invalidations_of_others(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct process *process = process_new(test);
	struct context *context = context_add(test, gpu, process);
	struct context *late = context_new(test, s->gpu, process);
	struct job *unmap, *job, *quiesce, *add;

	process_map(test, process, false);
	process_watch(test, process);
	unmap = hold(test, run_process_munmap, process, GATE_IN_INVALIDATE);
	job = start(test, run_unregister, context);
	expect_done(test, job);
	job = start(test, run_gpu_unregister, gpu);
	expect_done(test, job);
	/* HMM cannot drop the mm meanwhile */
	quiesce = start(test, run_quiesce, NULL);
	expect_blocked(test, quiesce);
	run_async(s->context);
	job = start(test, run_synchronize, NULL);
	expect_done(test, job);
	KUNIT_EXPECT_TRUE(test, counts_to(&s->process->mm->mm_count, 2));
	/* A register meets an invalidation older than the struct hmm */
	add = start(test, run_register, late);
	expect_blocked(test, add);
	expect_blocked(test, quiesce);

	let_go(GATE_IN_INVALIDATE);
	expect_done(test, quiesce);
	expect_done(test, add);
	expect_done(test, unmap);
	KUNIT_EXPECT_EQ(test, late->ret, 0);
	run_exit(late);
	expect_released(test, late, HMM_RELEASE_MM_EXIT);
}

/* The release of one device is on its way: no second one is left behind. */
static void hmm_register_during_exit_fails(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct job *exit;

	exit = hold(test, run_exit, s->context, GATE_IN_RELEASE);
	expect_register(test, other, s->process, -ESRCH);
	expect_gpu_unregistered(test, other);
	let_go(GATE_IN_RELEASE);
	expect_done(test, exit);
}

/* A signal while the first mirror is armed: nothing is left, and again. */
static void hmm_register_with_a_signal_pending_unwinds(struct kunit *test)
{
	struct scene *s = test->priv;
	struct process *process = process_new(test);
	struct context *context = context_new(test, s->gpu, process);
	struct hmm_test_counts counts;
	int ret;

	process_map(test, process, false);
	allow_signal(SIGUSR1);
	send_sig(SIGUSR1, current, 1);
	ret = context_register(context);
	flush_signals(current);
	disallow_signal(SIGUSR1);
	KUNIT_EXPECT_EQ(test, ret, -EINTR);
	expect_users(test, process->mm, 1);
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.hmms, s->start.hmms + 1);
	KUNIT_EXPECT_EQ(test, counts.mirrors, s->start.mirrors + 1);
	KUNIT_EXPECT_EQ(test, context_register(context), 0);
}

/*
 * Invalidations during a release, and calls in them
 */

static void hmm_invalidations_reach_driver_during_release(struct kunit *test)
{
	struct scene *s = test->priv;
	struct job *unmap;

	process_map(test, s->process, false);
	process_watch(test, s->process);
	hold(test, run_kill, s->context, GATE_IN_RELEASE);
	unmap = hold(test, run_process_munmap, s->process, GATE_IN_INVALIDATE);
	let_go(GATE_IN_INVALIDATE);
	expect_done(test, unmap);
	expect_not_released(test, s->context);
	let_go(GATE_IN_RELEASE);
	hmm_synchronize();
}

static void kill_and_put(struct process *process)
{
	struct hmm_mirror *mirror = xchg(&process->mirror, NULL);

	if (mirror) {
		hmm_mirror_kill(mirror);
		hmm_mirror_put(mirror);
	}
}

/*
 * A device that fails when it is to give up a page is killed there, and its
 * driver may drop the last reference there.
 */
static void hmm_kill_and_put_in_an_invalidation(struct kunit *test)
{
	struct scene *s = test->priv;
	struct context *neighbour = context_add(test, s->gpu, s->process);
	struct job *unmap;
	int i;

	process_watch(test, s->process);
	s->process->in_invalidate = kill_and_put;
	for (i = 0; i < 2; i++) {
		process_map(test, s->process, false);
		s->process->mirror = hmm_mirror_get(mirror_of(s->context));
		if (i)
			run_async(s->context);
		unmap = start(test, run_process_munmap, s->process);
		expect_done(test, unmap);
		hmm_synchronize();
		expect_released(test, s->context, HMM_RELEASE_ERROR);
		expect_freed(test, s->context, i);
	}
	expect_not_released(test, neighbour);
}

/*
 * Lookups
 */

/* Found: the live mirror of that device and mm, with a reference; no other. */
static void hmm_find_gives_live_mirrors_only(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *other = gpu_new(test, &gpu_ops);
	struct process *process = process_new(test);
	struct mm_struct *mm = s->process->mm;
	struct hmm_mirror *mirror;

	context_add(test, other, process);
	mirror = hmm_mirror_find(device_of(s->gpu), mm);
	KUNIT_ASSERT_PTR_EQ(test, mirror, mirror_of(s->context));
	KUNIT_EXPECT_NULL(test, hmm_mirror_find(device_of(other), mm));
	KUNIT_EXPECT_NULL(test, hmm_mirror_find(device_of(s->gpu),
						process->mm));

	hold(test, run_kill, s->context, GATE_IN_RELEASE);
	KUNIT_EXPECT_NULL(test, hmm_mirror_find(device_of(s->gpu), mm));
	/* The process lives on; the mirror is dying and pins nothing */
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror));
	let_go(GATE_IN_RELEASE);

	/* What was found stays until it is put */
	run_async(s->context);
	hmm_synchronize();
	expect_freed(test, s->context, 0);
	KUNIT_EXPECT_NULL(test, hmm_mirror_find(device_of(s->gpu), mm));
	hmm_mirror_put(mirror);
	hmm_synchronize();
	expect_freed(test, s->context, 1);
}

/* Exit and unplug have claimed the last mirror, and will come to the others. */
static void hmm_find_gives_no_claimed_mirror(struct kunit *test)
{
	struct context *context[3];
	struct scene *s = test->priv;
	struct hmm_mirror *found;
	struct job *unplug;

	unplug = hold_chain(test, UNPLUG, context);
	run_kill(context[1]);
	found = hmm_mirror_find(device_of(s->gpu), s->process->mm);
	workers_go();
	KUNIT_EXPECT_NULL(test, found);
	complete_all(&context[0]->go);
	complete_all(&context[1]->go);
	expect_done(test, unplug);
}

/*
 * The mirror was found live, and is unlinked before the lookup has a reference.
 * The lookup finds the next one, and does not touch the first afterwards.
 */
static void hmm_unregister_waits_for_lookups(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct scene *s = test->priv;
	struct context *next = context_add(test, s->gpu, s->process);
	struct context *finder = context_new(test, s->gpu, s->process);
	struct job *find, *unregister;

	find = hold(test, run_find, finder, HMM_POINT_FIND_FOUND);
	unregister = hold(test, paths[path].run, s->context, HMM_POINT_DESTROY);
	let_go(HMM_POINT_DESTROY);
	msleep(QUIET_MS);
	expect_freed(test, s->context, 0);
	if (path == UNREGISTER)
		expect_blocked(test, unregister);
	let_go(HMM_POINT_FIND_FOUND);
	expect_done(test, find);
	expect_done(test, unregister);
	KUNIT_ASSERT_PTR_EQ(test, finder->other, next);
	hmm_mirror_put(mirror_of(next));
	hmm_synchronize();
	expect_freed(test, s->context, 1);
}

/*
 * A lookup finds the mirror before hmm_mirror_register() has returned, and may
 * end the registration: the register does not touch the mirror any more.
 */
static void hmm_found_mirror_is_registered(struct kunit *test)
{
	int path = ((const struct param *)test->param_value)->path;
	struct scene *s = test->priv;
	struct process *process = process_new(test);
	struct context *context = context_new(test, s->gpu, process);
	struct hmm_mirror *found;
	struct job *add;

	add = hold(test, run_register, context, HMM_POINT_REGISTER_LINKED);
	found = hmm_mirror_find(device_of(s->gpu), process->mm);
	KUNIT_ASSERT_PTR_EQ(test, found, mirror_of(context));
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(s->gpu)), -EBUSY);
	expect_pinned(test, found, process->mm);
	hmm_mirror_mm_put(found);
	if (path != UNREGISTER) {
		hmm_mirror_get(found);
		paths[path].run(context);
		hmm_synchronize();
		expect_released(test, context, paths[path].reason);
		hmm_mirror_put(found);
	}
	hmm_mirror_put(found);
	if (path != ASYNC)
		run_unregister(context);
	hmm_synchronize();
	expect_freed(test, context, 1);
	let_go(HMM_POINT_REGISTER_LINKED);
	expect_done(test, add);
	KUNIT_EXPECT_EQ(test, context->ret, 0);
	expect_released(test, context, paths[path].reason);
}

/*
 * hmm_synchronize()
 */

VARIANT(pending_callback,
	{ ASYNC, NO_PATH, GATE_IN_RELEASE },
	{ ASYNC, NO_PATH, HMM_POINT_DESTROY },
	{ ASYNC, NO_PATH, GATE_IN_FREE },
	{ ASYNC, NO_PATH, HMM_POINT_DEVICE_PUT },
	{ ASYNC, NO_PATH, GATE_IN_DEVICE_FREE },
	{ KILL, NO_PATH, GATE_IN_RELEASE },
	{ KILL, ASYNC, GATE_IN_RELEASE },
	/* The release belongs to a path that is not waited for */
	{ EXIT, KILL, GATE_IN_RELEASE },
	{ EXIT, ASYNC, GATE_IN_RELEASE },
	{ EXIT, ASYNC, HMM_POINT_RELEASE_RETURNED },
	{ UNPLUG, KILL, GATE_IN_RELEASE },
	{ UNPLUG, ASYNC, GATE_IN_RELEASE },
	{ UNPLUG, ASYNC, HMM_POINT_RELEASE_RETURNED },
	{ UNREGISTER, KILL, GATE_IN_RELEASE });

/* Whichever thread runs the callback: what is pending is waited for. */
static void hmm_synchronize_waits_for_pending_callbacks(struct kunit *test)
{
	const struct param *param = test->param_value;
	bool async = param->path == ASYNC || param->then == ASYNC;
	bool in_free = param->at != GATE_IN_RELEASE &&
		       param->at != HMM_POINT_RELEASE_RETURNED;
	struct gpu *gpu = gpu_new(test, &gpu_async_ops);
	struct scene *s = test->priv;
	struct context *context = context_add(test, gpu, process_new(test));
	struct job *first, *synchronize;

	if (param->at == GATE_IN_DEVICE_FREE)
		run_gpu_unregister_async(gpu);
	first = hold(test, paths[param->path].run, context, param->at);
	if (param->then != NO_PATH)
		paths[param->then].run(context);
	synchronize = start(test, run_synchronize, NULL);
	expect_blocked(test, synchronize);
	if (async && !in_free) {
		/* ->free() was pending as well when hmm_synchronize() began */
		move(test, param->at, GATE_IN_FREE);
		expect_blocked(test, synchronize);
		let_go(GATE_IN_FREE);
	} else if (param->path == UNREGISTER) {
		/* ->free() is the unregister's, which is not waited for */
		move(test, param->at, GATE_IN_FREE);
		expect_done(test, synchronize);
		let_go(GATE_IN_FREE);
	} else {
		let_go(param->at);
	}
	expect_done(test, synchronize);
	expect_released(test, context, paths[param->path].reason);
	if (async)
		expect_freed(test, context, 1);
	KUNIT_EXPECT_EQ(test, atomic_read(&gpu->nr_device_free),
			param->at == GATE_IN_DEVICE_FREE);
	expect_done(test, first);
	expect_not_released(test, s->context);
}

/* Not pending: an exit, an unplug or an unregister of another thread */
static void hmm_synchronize_waits_for_nothing_else(struct kunit *test)
{
	static const int by[] = { EXIT, UNPLUG, UNREGISTER };
	static const unsigned int at[] = {
		GATE_IN_RELEASE, GATE_IN_RELEASE, GATE_IN_FREE
	};
	struct scene *s = test->priv;
	struct job *job, *synchronize;
	int i;

	for (i = 0; i < ARRAY_SIZE(by); i++) {
		struct gpu *gpu = gpu_new(test, &gpu_free_ops);
		struct context *context = context_add(test, gpu,
						      process_new(test));

		job = hold(test, paths[by[i]].run, context, at[i]);
		synchronize = start(test, run_synchronize, NULL);
		expect_done(test, synchronize);
		let_go(at[i]);
		expect_done(test, job);
	}
	/* Nor a reference */
	hmm_mirror_get(mirror_of(s->context));
	run_async(s->context);
	synchronize = start(test, run_synchronize, NULL);
	expect_done(test, synchronize);
	expect_released(test, s->context, HMM_RELEASE_UNREGISTER);
	expect_freed(test, s->context, 0);
	hmm_mirror_put(mirror_of(s->context));
}

/*
 * The release was pending when hmm_synchronize() began, ->free() was not: a
 * driver had a reference, and dropped it later.
 */
static void hmm_synchronize_does_not_wait_for_a_later_put(struct kunit *test)
{
	struct scene *s = test->priv;
	struct hmm_mirror *mirror = hmm_mirror_get(mirror_of(s->context));
	struct context *other = context_add(test, s->gpu, s->process);
	struct job *first, *second;

	hold(test, run_kill, other, GATE_IN_RELEASE);
	run_async(s->context);
	first = start(test, run_synchronize, NULL);
	expect_blocked(test, first);
	KUNIT_ASSERT_TRUE(test, counts_to(&s->context->nr_release, 1));
	gate_close(GATE_IN_FREE);
	hmm_mirror_put(mirror);
	expect_reached(test, GATE_IN_FREE);
	expect_blocked(test, first);
	let_go(GATE_IN_RELEASE);
	expect_done(test, first);
	expect_freed(test, s->context, 0);
	second = start(test, run_synchronize, NULL);
	expect_blocked(test, second);
	let_go(GATE_IN_FREE);
	expect_done(test, second);
	expect_freed(test, s->context, 1);
}

/* Each waits for what was pending when it began, and only for that. */
static void hmm_concurrent_synchronize(struct kunit *test)
{
	struct scene *s = test->priv;
	struct context *early = s->context;
	struct context *late = context_add(test, s->gpu, s->process);
	struct context *last = context_add(test, s->gpu, s->process);
	struct job *first, *second, *third;

	early->in_release = sleep_in_release;
	late->in_release = sleep_in_release;
	last->in_release = sleep_in_release;
	run_kill(early);
	first = start(test, run_synchronize, NULL);
	expect_blocked(test, first);
	run_kill(late);
	expect_entered(test, late);
	second = start(test, run_synchronize, NULL);
	third = start(test, run_synchronize, NULL);
	expect_blocked(test, second);
	complete_all(&early->go);
	expect_done(test, first);
	expect_blocked(test, second);
	expect_blocked(test, third);
	complete_all(&late->go);
	expect_done(test, second);
	expect_done(test, third);

	/* A callback that returns early does not end the wait for another */
	run_kill(last);
	expect_entered(test, last);
	run_async(early);
	first = start(test, run_synchronize, NULL);
	expect_blocked(test, first);
	expect_freed(test, early, 1);
	complete_all(&last->go);
	expect_done(test, first);
}

static void synchronize_work(struct work_struct *work)
{
	hmm_synchronize();
}

/* GPU drivers tear contexts down on such queues. */
static void hmm_synchronize_in_a_reclaim_worker(struct kunit *test)
{
	struct workqueue_struct *wq;
	struct scene *s = test->priv;
	struct work_struct work;

	wq = alloc_workqueue("hmm_kunit", WQ_MEM_RECLAIM | WQ_UNBOUND, 0);
	KUNIT_ASSERT_NOT_NULL(test, wq);
	INIT_WORK_ONSTACK(&work, synchronize_work);
	run_async(s->context);
	queue_work(wq, &work);
	flush_work(&work);
	expect_freed(test, s->context, 1);
	destroy_work_on_stack(&work);
	destroy_workqueue(wq);
}

/*
 * Pins of the address space
 */

/* Pins in turn must not keep a process that is gone. */
static void hmm_mm_get_fails_once_only_pins_are_left(struct kunit *test)
{
	struct scene *s = test->priv;
	struct mm_struct *mm = s->process->mm;
	struct hmm_mirror *mirror = mirror_of(s->context);
	struct context *late;

	expect_pinned(test, mirror, mm);
	expect_pinned(test, mirror, mm);
	expect_users(test, mm, 3);
	/* The process goes; one worker is still at it */
	run_exit(s->context);
	hmm_mirror_mm_put(mirror);
	expect_users(test, mm, 1);
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror));
	/* A mirror that is registered now does not keep the process, either */
	late = context_add(test, s->gpu, s->process);
	expect_users(test, mm, 1);
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror_of(late)));
	expect_not_released(test, s->context);

	gate_close(GATE_IN_RELEASE);
	hmm_mirror_mm_put(mirror);
	expect_reached(test, GATE_IN_RELEASE);
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror));
	let_go(GATE_IN_RELEASE);
	run_unregister(s->context);
	expect_released(test, s->context, HMM_RELEASE_MM_EXIT);
	run_unregister(late);
	expect_released(test, late, HMM_RELEASE_MM_EXIT);
}

/*
 * A helper that workers call holds mm_users, too, and looks like a live
 * process. The address space has no task here, so after a second HMM can tell.
 */
static void hmm_mm_get_fails_a_second_after_the_process(struct kunit *test)
{
	struct scene *s = test->priv;
	struct mm_struct *mm = s->process->mm;
	struct hmm_mirror *mirror = mirror_of(s->context);
	unsigned long begin = jiffies;
	struct mm_struct *again;

	KUNIT_ASSERT_TRUE(test, mmget_not_zero(mm));
	expect_pinned(test, mirror, mm);
	run_exit(s->context);
	again = hmm_mirror_mm_get(mirror);
	if (time_before(jiffies, begin + HZ))
		KUNIT_EXPECT_PTR_EQ(test, again, mm);
	if (again)
		hmm_mirror_mm_put(mirror);
	msleep(1100);
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror));
	expect_users(test, mm, 2);
	hmm_mirror_mm_put(mirror);
	mmput(mm);
	expect_released(test, s->context, HMM_RELEASE_MM_EXIT);
}

/* A release that is not by exit fails pins, those that are there stay good. */
static void hmm_mm_pin_outlives_the_release(struct kunit *test)
{
	struct scene *s = test->priv;
	struct mm_struct *mm = s->process->mm;
	struct hmm_mirror *mirror = hmm_mirror_get(mirror_of(s->context));

	expect_pinned(test, mirror, mm);
	run_kill(s->context);
	hmm_synchronize();
	KUNIT_EXPECT_NULL(test, hmm_mirror_mm_get(mirror));
	run_async(s->context);
	expect_users(test, mm, 2);
	hmm_mirror_mm_put(mirror);
	expect_users(test, mm, 1);
	hmm_mirror_put(mirror);
}

static void run_mm_put_and_go(void *arg)
{
	struct context *context = arg;

	hmm_mirror_mm_put(mirror_of(context));
	complete_all(&context->go);
}

/* The worker that ->release() waits for drops the last pin. */
static void hmm_release_may_wait_for_a_worker_with_a_pin(struct kunit *test)
{
	struct scene *s = test->priv;
	struct job *worker;

	s->context->in_release = sleep_in_release;
	expect_pinned(test, mirror_of(s->context), s->process->mm);
	run_exit(s->context);
	worker = start(test, run_mm_put_and_go, s->context);
	expect_done(test, worker);
	/* Exit is in yet another worker: not before it is there */
	expect_entered(test, s->context);
	run_unregister(s->context);
	expect_released(test, s->context, HMM_RELEASE_MM_EXIT);
}

/*
 * Misuse: reported, refused, survived
 */

/*
 * Each function warns once in a boot and refuses in silence afterwards, so the
 * call is made twice.
 */
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

static void misuse_in_release(struct context *context)
{
	expect_warning("hmm_mirror_unregister.* in a callback",
		       hmm_mirror_unregister(mirror_of(context)));
	expect_warning("hmm_device_unplug.* in a callback",
		       hmm_device_unplug(device_of(context->gpu)));
	expect_warning("hmm_synchronize.* in a callback", hmm_synchronize());
	expect_warning("hmm_device_unregister.* in a callback",
		       context->ret =
		       hmm_device_unregister(device_of(context->gpu)));
}

/* These have warned. Whatever object they are called for, none waits. */
static void misuse_in_free(struct context *context)
{
	hmm_mirror_unregister(mirror_of(context->other));
	hmm_device_unplug(device_of(context->other->gpu));
	hmm_synchronize();
	context->ret = hmm_device_unregister(device_of(context->gpu));
}

static void misuse_in_device_free(struct gpu *gpu)
{
	hmm_synchronize();
	gpu->ret = hmm_device_unregister(device_of(gpu));
}

static void hmm_waits_in_callbacks_are_refused(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *gpu = gpu_new(test, &gpu_async_ops);
	struct context *context = context_add(test, gpu, process_new(test));
	struct job *job;

	context->in_release = misuse_in_release;
	context->in_free = misuse_in_free;
	context->other = s->context;
	gpu->in_device_free = misuse_in_device_free;
	job = start(test, run_kill, context);
	expect_done(test, job);
	hmm_synchronize();
	expect_released(test, context, HMM_RELEASE_ERROR);
	KUNIT_EXPECT_EQ(test, context->ret, -EBUSY);
	KUNIT_EXPECT_EQ(test, hmm_mirror_error(mirror_of(s->context)), 0);

	context->ret = 0;
	run_async(context);
	job = start(test, run_synchronize, NULL);
	expect_done(test, job);
	KUNIT_EXPECT_EQ(test, context->ret, -EBUSY);
	expect_not_released(test, s->context);
	run_gpu_unregister_async(gpu);
	KUNIT_EXPECT_EQ(test, gpu->ret, -EBUSY);
}

static void hmm_unregister_of_unregistered_mirror_is_refused(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct context *context = context_new(test, gpu, process_new(test));
	struct hmm_mirror *mirror = mirror_of(context);
	struct job *unregister;

	/* Never registered */
	expect_warning("hmm_mirror_unregister.* of an unregistered mirror",
		       hmm_mirror_unregister(mirror));
	expect_warning("hmm_mirror_unregister_async.* of an unregistered",
		       hmm_mirror_unregister_async(mirror));
	/* The register failed, or has not come far enough */
	run_unplug(context);
	KUNIT_EXPECT_EQ(test, context_register(context), -ENODEV);
	hmm_mirror_unregister(mirror);
	context->gpu = s->gpu;
	unregister = hold(test, run_register, context,
			  HMM_POINT_REGISTER_ARMED);
	hmm_mirror_unregister(mirror);
	hmm_mirror_unregister_async(mirror);
	let_go(HMM_POINT_REGISTER_ARMED);
	expect_done(test, unregister);
	KUNIT_ASSERT_EQ(test, context->ret, 0);

	/* While another thread unregisters it */
	hmm_mirror_get(mirror);
	unregister = hold(test, run_unregister, context,
			  HMM_POINT_UNREGISTER_WAIT);
	hmm_mirror_unregister(mirror);
	hmm_mirror_unregister_async(mirror);
	hmm_mirror_put(mirror);
	let_go(HMM_POINT_UNREGISTER_WAIT);
	expect_done(test, unregister);
	expect_released(test, context, HMM_RELEASE_UNREGISTER);
	expect_freed(test, context, 1);

	/* Twice, with a reference that keeps it */
	mirror = hmm_mirror_get(mirror_of(s->context));
	run_async(s->context);
	hmm_mirror_unregister_async(mirror);
	hmm_mirror_unregister(mirror);
	hmm_mirror_put(mirror);
	hmm_synchronize();
	expect_released(test, s->context, HMM_RELEASE_UNREGISTER);
}

static void hmm_unregister_async_without_free_is_refused(struct kunit *test)
{
	struct gpu *gpu = gpu_new(test, &gpu_ops);
	struct scene *s = test->priv;
	struct context *context = context_add(test, gpu, s->process);

	/* It has warned of an unregistered mirror */
	hmm_mirror_unregister_async(mirror_of(context));
	KUNIT_EXPECT_EQ(test, hmm_mirror_error(mirror_of(context)), 0);
	run_gpu_unregister(gpu);
	KUNIT_EXPECT_EQ(test, gpu->ret, -EBUSY);
	run_unregister(context);
	expect_released(test, context, HMM_RELEASE_UNREGISTER);
}

static void hmm_unregister_of_unregistered_device_is_refused(struct kunit *test)
{
	struct scene *s = test->priv;
	struct gpu *gpu = gpu_new(test, &gpu_async_ops);
	struct hmm_device never = {};
	struct context *context;
	struct job *remove;
	int ret;

	expect_warning("hmm_device_unplug.* of an unregistered device",
		       hmm_device_unplug(&never));
	expect_warning("hmm_device_unregister.* of an unregistered device",
		       ret = hmm_device_unregister(&never));
	KUNIT_EXPECT_EQ(test, ret, -EINVAL);
	expect_warning("hmm_device_unregister_async.* of an unregistered",
		       hmm_device_unregister_async(&never));
	/* Without ->device_free(), nothing has changed */
	hmm_device_unregister_async(device_of(s->gpu));
	context_add(test, s->gpu, s->process);

	/* Twice */
	context = context_add(test, gpu, s->process);
	run_gpu_unregister_async(gpu);
	hmm_device_unregister_async(device_of(gpu));
	hmm_device_unplug(device_of(gpu));
	expect_not_released(test, context);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(gpu)), -EINVAL);
	run_unregister(context);
	expect_device_freed(test, gpu, 1);

	/* Two at once */
	gpu = gpu_new(test, &gpu_async_ops);
	remove = hold(test, run_gpu_unregister, gpu, HMM_POINT_DEVICE_WAIT);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(device_of(gpu)), -EINVAL);
	hmm_device_unregister_async(device_of(gpu));
	let_go(HMM_POINT_DEVICE_WAIT);
	expect_done(test, remove);
	KUNIT_EXPECT_EQ(test, gpu->ret, 0);
	expect_device_freed(test, gpu, 0);
}

static void hmm_mm_put_without_a_pin_is_refused(struct kunit *test)
{
	struct scene *s = test->priv;
	struct mm_struct *mm = s->process->mm;
	struct hmm_mirror *mirror = mirror_of(s->context);

	expect_pinned(test, mirror, mm);
	hmm_mirror_mm_put(mirror);
	expect_warning("hmm_mirror_mm_put.* without a pin",
		       hmm_mirror_mm_put(mirror));
	expect_users(test, mm, 1);
}

/*
 * The frame
 */

static int hmm_kunit_init(struct kunit *test)
{
	struct scene *s = kzalloc_obj(*s);

	if (!s)
		return -ENOMEM;
	INIT_LIST_HEAD(&s->gpus);
	INIT_LIST_HEAD(&s->processes);
	INIT_LIST_HEAD(&s->contexts);
	INIT_LIST_HEAD(&s->jobs);
	hmm_test_quiesce(&s->start);
	test->priv = s;
	s->gpu = gpu_new(test, &gpu_free_ops);
	s->process = process_new(test);
	s->context = context_add(test, s->gpu, s->process);
	return 0;
}

/* Unregister what is left; each object has had its callbacks then. */
static void scene_check(struct kunit *test, struct scene *s)
{
	struct hmm_test_counts counts;
	struct context *context;
	struct process *process;
	struct gpu *gpu;

	list_for_each_entry(context, &s->contexts, node)
		if (context->registered)
			run_unregister(context);
	list_for_each_entry(process, &s->processes, node)
		if (!process->exited)
			process_exit(process);
	hmm_synchronize();
	list_for_each_entry(gpu, &s->gpus, node) {
		if (gpu->registered)
			expect_gpu_unregistered(test, gpu);
		KUNIT_EXPECT_EQ(test, atomic_read(&gpu->nr_device_free),
				gpu->async);
		KUNIT_EXPECT_NULL_MSG(test, gpu->error, "%s", gpu->error);
	}
	list_for_each_entry(context, &s->contexts, node) {
		KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_release),
				context->nr_registered);
		KUNIT_EXPECT_EQ(test, atomic_read(&context->nr_free),
				context->nr_to_free);
		KUNIT_EXPECT_NULL_MSG(test, context->error, "%s",
				      context->error);
	}
	list_for_each_entry(process, &s->processes, node) {
		if (process->watched)
			mmu_interval_notifier_remove(&process->notifier);
		KUNIT_EXPECT_TRUE(test, counts_to(&process->mm->mm_users, 0));
	}
	hmm_test_quiesce(&counts);
	KUNIT_EXPECT_EQ(test, counts.devices, s->start.devices);
	KUNIT_EXPECT_EQ(test, counts.mirrors, s->start.mirrors);
	KUNIT_EXPECT_EQ(test, counts.hmms, s->start.hmms);
	/* The idle thread may have borrowed the page tables of some */
	list_for_each_entry(process, &s->processes, node)
		if (!process->mapped)
			KUNIT_EXPECT_TRUE(test,
					  counts_to(&process->mm->mm_count, 1));
}

static void scene_free(struct scene *s)
{
	struct context *context, *next_context;
	struct process *process, *next_process;
	struct gpu *gpu, *next_gpu;
	struct job *job, *next_job;

	list_for_each_entry_safe(job, next_job, &s->jobs, node)
		kfree(job);
	list_for_each_entry_safe(context, next_context, &s->contexts, node) {
		kfree(context->memory);
		kfree(context);
	}
	list_for_each_entry_safe(process, next_process, &s->processes, node) {
		if (process->page)
			put_page(process->page);
		mmdrop(process->mm);
		kfree(process);
	}
	list_for_each_entry_safe(gpu, next_gpu, &s->gpus, node) {
		kfree(gpu->memory);
		kfree(gpu);
	}
	kfree(s);
}

static void hmm_kunit_exit(struct kunit *test)
{
	struct scene *s = test->priv;
	struct context *context;
	struct job *job;

	workers_go();
	gates_open();
	if (!s)
		return;
	list_for_each_entry(context, &s->contexts, node)
		complete_all(&context->go);
	list_for_each_entry(job, &s->jobs, node)
		expect_done(test, job);
	if (test->status == KUNIT_FAILURE)
		return;
	scene_check(test, s);
	if (test->status != KUNIT_FAILURE)
		scene_free(s);
}

static int hmm_kunit_suite_init(struct kunit_suite *suite)
{
	unsigned int at;

	for (at = 0; at < NR_GATES; at++) {
		init_completion(&gates[at].reached);
		init_completion(&gates[at].open);
	}
	return hmm_test_set_hook(hmm_kunit_hook);
}

static void hmm_kunit_suite_exit(struct kunit_suite *suite)
{
	hmm_test_clear_hook();
}

static struct kunit_case hmm_kunit_cases[] = {
	KUNIT_CASE(hmm_device_register_bad_arguments),
	KUNIT_CASE(hmm_device_register_twice_keeps_first),
	KUNIT_CASE(hmm_device_register_again),
	KUNIT_CASE(hmm_device_register_copies_the_name),
	KUNIT_CASE(hmm_device_unregister_busy_until_unregister),
	KUNIT_CASE(hmm_mirror_register_bad_arguments),
	KUNIT_CASE(hmm_mirror_register_without_device_fails),
	KUNIT_CASE(hmm_mirror_register_after_exit_fails),
	KUNIT_CASE(hmm_mirror_register_twice_keeps_first),
	KUNIT_CASE(hmm_mirror_register_again),
	KUNIT_CASE(hmm_register_on_a_full_device_fails),
	KUNIT_CASE(hmm_mirror_tells_what_it_is),
	KUNIT_CASE(hmm_mirror_error_by_reason),
	KUNIT_CASE(hmm_unregister_releases_once),
	KUNIT_CASE(hmm_exit_releases_once),
	KUNIT_CASE(hmm_mirror_pins_mm_count_only),
	KUNIT_CASE(hmm_mirrors_share_per_mm_state),
	KUNIT_CASE(hmm_hash_collision),
	KUNIT_CASE(hmm_unregister_waits_for_references),
	KUNIT_CASE(hmm_kill_after_release_does_nothing),
	KUNIT_CASE_PARAM(hmm_loser_waits_for_release_of_winner,
			 pair_gen_params),
	KUNIT_CASE_PARAM(hmm_release_holds_off_exit, driver_path_gen_params),
	KUNIT_CASE_PARAM(hmm_release_may_wait_for_a_last_mmput,
			 driver_path_gen_params),
	KUNIT_CASE_PARAM(hmm_unregister_does_not_wait_for_waiters,
			 list_path_gen_params),
	KUNIT_CASE(hmm_unregister_waits_for_exit_to_let_go),
	KUNIT_CASE_PARAM(hmm_waiter_starts_a_queued_release,
			 queued_pair_gen_params),
	KUNIT_CASE_PARAM(hmm_exit_and_unplug_need_no_worker,
			 list_path_gen_params),
	KUNIT_CASE_PARAM(hmm_unregister_of_the_queued_mirror,
			 list_path_gen_params),
	KUNIT_CASE_PARAM(hmm_kill_and_async_of_the_queued_mirror,
			 chain_pair_gen_params),
	KUNIT_CASE(hmm_unplug_meets_the_queued_mirror_of_exit),
	KUNIT_CASE_PARAM(hmm_releases_of_exit_and_unplug_overlap,
			 list_path_gen_params),
	KUNIT_CASE_PARAM(hmm_releases_overlap_beside_others,
			 list_path_gen_params),
	KUNIT_CASE(hmm_releases_of_exit_beside_unplug_overlap),
	KUNIT_CASE(hmm_sleeping_release_delays_nobody_else),
	KUNIT_CASE_PARAM(hmm_workers_do_not_wait_for_others,
			 worker_path_gen_params),
	KUNIT_CASE(hmm_free_does_not_wait_for_other_frees),
	KUNIT_CASE(hmm_release_does_not_wait_for_an_older_free),
	KUNIT_CASE_PARAM(hmm_release_may_unregister_async_kill_and_put,
			 ending_path_gen_params),
	KUNIT_CASE(hmm_register_in_release),
	KUNIT_CASE(hmm_put_and_kill_in_interrupt),
	KUNIT_CASE(hmm_calls_under_a_lock_of_an_interrupt),
	KUNIT_CASE_PARAM(hmm_device_unregister_waits_for_callbacks,
			 device_wait_gen_params),
	KUNIT_CASE(hmm_device_unregister_waits_for_references),
	KUNIT_CASE(hmm_unplug_releases_all_and_refuses_new),
	KUNIT_CASE(hmm_device_unregister_waits_for_unplug),
	KUNIT_CASE(hmm_device_unregister_async_without_mirrors),
	KUNIT_CASE_PARAM(hmm_last_mirror_frees_the_device,
			 unregister_path_gen_params),
	KUNIT_CASE(hmm_device_unregister_async_releases_no_mirror),
	KUNIT_CASE(hmm_register_and_unplug_may_free_the_device),
	KUNIT_CASE(hmm_register_loses_to_unplug_and_unregister),
	KUNIT_CASE_PARAM(hmm_register_beside_exit_is_released,
			 register_point_gen_params),
	KUNIT_CASE_PARAM(hmm_second_register_is_refused,
			 register_point_gen_params),
	KUNIT_CASE(hmm_concurrent_registers_share_per_mm_state),
	KUNIT_CASE(hmm_register_beside_last_unregister),
	KUNIT_CASE(hmm_register_waits_for_running_invalidation),
	KUNIT_CASE(hmm_nothing_waits_for_invalidations_of_others),
	KUNIT_CASE(hmm_register_during_exit_fails),
	KUNIT_CASE(hmm_register_with_a_signal_pending_unwinds),
	KUNIT_CASE(hmm_invalidations_reach_driver_during_release),
	KUNIT_CASE(hmm_kill_and_put_in_an_invalidation),
	KUNIT_CASE(hmm_find_gives_live_mirrors_only),
	KUNIT_CASE(hmm_find_gives_no_claimed_mirror),
	KUNIT_CASE_PARAM(hmm_unregister_waits_for_lookups,
			 unregister_path_gen_params),
	KUNIT_CASE_PARAM(hmm_found_mirror_is_registered, found_path_gen_params),
	KUNIT_CASE_PARAM(hmm_synchronize_waits_for_pending_callbacks,
			 pending_callback_gen_params),
	KUNIT_CASE(hmm_synchronize_waits_for_nothing_else),
	KUNIT_CASE(hmm_synchronize_does_not_wait_for_a_later_put),
	KUNIT_CASE(hmm_concurrent_synchronize),
	KUNIT_CASE(hmm_synchronize_in_a_reclaim_worker),
	KUNIT_CASE(hmm_mm_get_fails_once_only_pins_are_left),
	KUNIT_CASE(hmm_mm_get_fails_a_second_after_the_process),
	KUNIT_CASE(hmm_mm_pin_outlives_the_release),
	KUNIT_CASE(hmm_release_may_wait_for_a_worker_with_a_pin),
	KUNIT_CASE(hmm_waits_in_callbacks_are_refused),
	KUNIT_CASE(hmm_unregister_of_unregistered_mirror_is_refused),
	KUNIT_CASE(hmm_unregister_async_without_free_is_refused),
	KUNIT_CASE(hmm_unregister_of_unregistered_device_is_refused),
	KUNIT_CASE(hmm_mm_put_without_a_pin_is_refused),
	KUNIT_CASE_SLOW(hmm_exit_against_unregister_many_times),
	KUNIT_CASE_SLOW(hmm_all_paths_at_once_many_times),
	KUNIT_CASE_SLOW(hmm_kill_against_unregister_many_times),
	KUNIT_CASE_SLOW(hmm_registers_on_one_mm_many_times),
	KUNIT_CASE_SLOW(hmm_kill_is_not_behind_releases_of_exit),
	{}
};

static struct kunit_suite hmm_kunit_suite = {
	.name = "hmm",
	.suite_init = hmm_kunit_suite_init,
	.suite_exit = hmm_kunit_suite_exit,
	.init = hmm_kunit_init,
	.exit = hmm_kunit_exit,
	.test_cases = hmm_kunit_cases,
};

kunit_test_suite(hmm_kunit_suite);

/* mm_alloc() */
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
MODULE_DESCRIPTION("KUnit tests of the HMM registration core");
MODULE_LICENSE("GPL");
