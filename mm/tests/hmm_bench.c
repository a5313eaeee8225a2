// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the HMM registration core costs, beside what a driver would use without
 * it
 *
 * The module measures HMM and its peers in turn, round after round, so that a
 * drift of the machine affects all of them. It runs when it is loaded, or at
 * boot if it is built in, and prints one line for each sample:
 *
 *	hmm_bench: measure,peer,size,round,operations,nanoseconds
 *
 * size is the number of VMAs, mirrors, processes, devices or threads, depending
 * on the measure; nanoseconds is the elapsed time of all the operations
 * together. "make bench" computes medians, ranges and plots of the samples.
 *
 * An address space is made by mm_alloc(), with as many VMAs and pages as the
 * measure needs, and exits in the mmput() of its one user. So the measures of
 * exit time exit_mmap(), without the rest of the exit of a process.
 *
 * A program that writes 1 to the parameter "mirror" gets a mirror of its own
 * address space, 2 an interval notifier, and 0 neither.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/cleanup.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hmm_device.h>
#include <linux/hrtimer.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/reboot.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#define BENCH_ADDRESS		0x10000000UL
#define BENCH_MAX_DEVICES	64
#define BENCH_MAX_THREADS	8
#define BENCH_MAX_ITEMS		1000

/* A process that does little has about this many */
#define BENCH_VMAS		20

#define BENCH_OPS		20	/* slow, or timed one by one */
#define BENCH_REGISTERS		500	/* that take less than 1 us */
#define BENCH_MAX_MIRRORS	100000	/* of one device */
#define BENCH_IDLE_MS		20	/* before each operation */
#define BENCH_ASLEEP_MS		1000	/* callback of another device */
#define BENCH_STOP_MS		100	/* callback of a slow device */
#define BENCH_THREADS_MS	100	/* threads at work together */
#define BENCH_TIMER_NS		10000	/* from interrupt to interrupt */

static unsigned int rounds = 5;
module_param(rounds, uint, 0444);
MODULE_PARM_DESC(rounds, "Samples of each measure, peer and size");

static char *groups;
module_param(groups, charp, 0444);
MODULE_PARM_DESC(groups, "What to measure, of register,beside,idle,many,exit,processes,devices,scale,contention (all), and masked,nothing");

static bool shutdown = !IS_MODULE(CONFIG_HMM_BENCH);
module_param(shutdown, bool, 0444);
MODULE_PARM_DESC(shutdown, "Power off at the end");

struct bench_item {
	struct mm_struct *mm;
	unsigned int index;
	union {
		struct hmm_mirror mirror;
		struct mmu_notifier notifier;
		struct mmu_interval_notifier interval;
	};
};

/**
 * struct bench_peer - One way to learn of the exit of an address space
 * @name: Name in the samples.
 * @add: Register @item for @item->mm. Returns 0 or an error.
 * @del: Unregister @item.
 * @flush: Wait until nothing that @del has begun is pending; optional.
 */
struct bench_peer {
	const char *name;
	int (*add)(struct bench_item *item);
	void (*del)(struct bench_item *item);
	void (*flush)(void);
};

struct bench_thread {
	const struct bench_peer *peer;
	struct mm_struct *mm;
	struct hmm_device *device;
	u64 ops;
	u64 (*fn)(struct bench_thread *thread);
	struct bench_item item;
	struct completion done;
};

static struct hmm_device bench_devices[BENCH_MAX_DEVICES];
static struct hmm_device bench_async_device;
static struct bench_item *bench_items;

static unsigned int bench_callback_ms;	/* how long a callback sleeps */
static DECLARE_COMPLETION(bench_in_callback);

static atomic_t bench_nr_put = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(bench_all_put);

static ktime_t bench_deadline;
static struct completion bench_go;
static int bench_error;

static void bench_fail(const char *what, int error)
{
	pr_err("%s failed: %d\n", what, error);
	bench_error = error;
}

static void bench_sample(const char *measure, const char *peer,
			 unsigned int size, unsigned int round, u64 ops, u64 ns)
{
	pr_info("%s,%s,%u,%u,%llu,%llu\n", measure, peer, size, round, ops, ns);
}

/*
 * The peers
 */

static void bench_callback(void)
{
	unsigned int ms = READ_ONCE(bench_callback_ms);

	if (!ms)
		return;
	complete(&bench_in_callback);
	msleep(ms);
}

static void bench_release(struct hmm_mirror *mirror)
{
	bench_callback();
}

static void bench_nothing(struct hmm_mirror *mirror)
{
}

static const struct hmm_device_ops bench_ops = {
	.release = bench_release,
};

static const struct hmm_device_ops bench_async_ops = {
	.release = bench_release,
	.free = bench_nothing,
};

static int bench_hmm_add(struct bench_item *item)
{
	struct hmm_device *device = &bench_devices[item->index %
						   BENCH_MAX_DEVICES];

	memset(&item->mirror, 0, sizeof(item->mirror));
	return hmm_mirror_register(&item->mirror, device, item->mm);
}

static void bench_hmm_del(struct bench_item *item)
{
	hmm_mirror_unregister(&item->mirror);
}

static int bench_async_add(struct bench_item *item)
{
	memset(&item->mirror, 0, sizeof(item->mirror));
	return hmm_mirror_register(&item->mirror, &bench_async_device,
				   item->mm);
}

static void bench_async_del(struct bench_item *item)
{
	hmm_mirror_unregister_async(&item->mirror);
}

static void bench_notifier_release(struct mmu_notifier *notifier,
				   struct mm_struct *mm)
{
	bench_callback();
}

static void bench_notifier_free(struct mmu_notifier *notifier)
{
	if (atomic_dec_and_test(&bench_nr_put))
		wake_up(&bench_all_put);
}

static const struct mmu_notifier_ops bench_notifier_ops = {
	.release = bench_notifier_release,
	.free_notifier = bench_notifier_free,
};

static int bench_notifier_add(struct bench_item *item)
{
	memset(&item->notifier, 0, sizeof(item->notifier));
	item->notifier.ops = &bench_notifier_ops;
	return mmu_notifier_register(&item->notifier, item->mm);
}

static void bench_notifier_del(struct bench_item *item)
{
	mmu_notifier_unregister(&item->notifier, item->mm);
}

static void bench_notifier_put(struct bench_item *item)
{
	atomic_inc(&bench_nr_put);
	mmu_notifier_put(&item->notifier);
}

/*
 * mmu_notifier_synchronize() waits for a grace period, and not for
 * ->free_notifier()
 */
static void bench_notifier_flush(void)
{
	wait_event(bench_all_put, !atomic_read(&bench_nr_put));
}

static bool bench_interval_invalidate(struct mmu_interval_notifier *interval,
				      const struct mmu_notifier_range *range,
				      unsigned long cur_seq)
{
	mmu_interval_set_seq(interval, cur_seq);
	if (range->event == MMU_NOTIFY_RELEASE)
		bench_callback();
	return true;
}

static const struct mmu_interval_notifier_ops bench_interval_ops = {
	.invalidate = bench_interval_invalidate,
};

static int bench_interval_add(struct bench_item *item)
{
	unsigned long start = BENCH_ADDRESS + item->index * PAGE_SIZE;

	return mmu_interval_notifier_insert(&item->interval, item->mm, start,
					    PAGE_SIZE, &bench_interval_ops);
}

static void bench_interval_del(struct bench_item *item)
{
	mmu_interval_notifier_remove(&item->interval);
}

static int bench_nothing_add(struct bench_item *item)
{
	return 0;
}

static void bench_nothing_del(struct bench_item *item)
{
}

static const struct bench_peer bench_hmm = {
	.name = "hmm",
	.add = bench_hmm_add,
	.del = bench_hmm_del,
	.flush = hmm_synchronize,
};

static const struct bench_peer bench_async = {
	.name = "hmm_async",
	.add = bench_async_add,
	.del = bench_async_del,
	.flush = hmm_synchronize,
};

static const struct bench_peer bench_notifier = {
	.name = "mmu_notifier",
	.add = bench_notifier_add,
	.del = bench_notifier_del,
};

static const struct bench_peer bench_put = {
	.name = "mmu_notifier_put",
	.add = bench_notifier_add,
	.del = bench_notifier_put,
	.flush = bench_notifier_flush,
};

static const struct bench_peer bench_interval = {
	.name = "mmu_interval_notifier",
	.add = bench_interval_add,
	.del = bench_interval_del,
};

static const struct bench_peer bench_none = {
	.name = "none",
	.add = bench_nothing_add,
	.del = bench_nothing_del,
};

/* Once del() has returned, no callback runs */
static const struct bench_peer * const bench_fenced[] = {
	&bench_hmm, &bench_notifier, &bench_interval,
};

static const struct bench_peer * const bench_all[] = {
	&bench_hmm, &bench_async, &bench_notifier, &bench_put, &bench_interval,
};

static const struct bench_peer * const bench_and_none[] = {
	&bench_none, &bench_hmm, &bench_notifier, &bench_interval,
};

static const unsigned int bench_decades[] = { 1, 10, 100, BENCH_MAX_ITEMS };

/*
 * Address spaces
 */

/* With @vmas of one page each, which are there if @touch. */
static struct mm_struct *bench_mm(unsigned int vmas, bool touch)
{
	struct mm_struct *mm = mm_alloc();
	unsigned long address = BENCH_ADDRESS;
	unsigned int i;

	if (!mm)
		return NULL;

	mm->task_size = TASK_SIZE;
	kthread_use_mm(mm);
	for (i = 0; i < vmas; i++) {
		/* The gap keeps them from being one */
		if (vm_mmap(NULL, address, PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			    0) != address ||
		    (touch && put_user(1, (int __user *)address)))
			break;
		address += 2 * PAGE_SIZE;
	}
	kthread_unuse_mm(mm);
	if (i == vmas)
		return mm;

	mmput(mm);
	return NULL;
}

static bool bench_add(const struct bench_peer *peer, struct bench_item *item,
		      struct mm_struct *mm, unsigned int index)
{
	int ret;

	item->mm = mm;
	item->index = index;
	ret = peer->add(item);
	if (ret)
		bench_fail(peer->name, ret);
	return !ret;
}

static void bench_flush(const struct bench_peer *peer)
{
	if (peer->flush)
		peer->flush();
}

/* The first @n items listen to @mm. Returns how many do. */
static unsigned int bench_add_all(const struct bench_peer *peer,
				  struct mm_struct *mm, unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		if (!bench_add(peer, &bench_items[i], mm, i))
			break;
	return i;
}

static void bench_del_all(const struct bench_peer *peer, unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		peer->del(&bench_items[i]);
}

static u64 bench_since(ktime_t start)
{
	return ktime_to_ns(ktime_sub(ktime_get(), start));
}

/*
 * Registers, over the VMAs of the address space
 */

static struct mmu_notifier *bench_notifier_alloc(struct mm_struct *mm)
{
	struct mmu_notifier *notifier = kzalloc_obj(*notifier);

	return notifier ?: ERR_PTR(-ENOMEM);
}

static void bench_notifier_kfree(struct mmu_notifier *notifier)
{
	kfree(notifier);
}

static const struct mmu_notifier_ops bench_get_ops = {
	.release = bench_notifier_release,
	.alloc_notifier = bench_notifier_alloc,
	.free_notifier = bench_notifier_kfree,
};

/* The first one of an address space, then more of the same. */
static void bench_register_peer(const struct bench_peer *peer,
				unsigned int vmas, unsigned int round)
{
	struct mm_struct *mm = bench_mm(vmas, false);
	struct bench_item *first = &bench_items[BENCH_REGISTERS];
	unsigned int n = peer == &bench_notifier ? BENCH_OPS : BENCH_REGISTERS;
	ktime_t start;

	if (!mm) {
		bench_fail("address space", -ENOMEM);
		return;
	}
	start = ktime_get();
	if (!bench_add(peer, first, mm, BENCH_REGISTERS))
		goto out;
	bench_sample("register_first", peer->name, vmas, round, 1,
		     bench_since(start));

	start = ktime_get();
	n = bench_add_all(peer, mm, n);
	bench_sample("register", peer->name, vmas, round, n,
		     bench_since(start));

	bench_del_all(peer, n);
	peer->del(first);
	bench_flush(peer);
out:
	mmput(mm);
}

/*
 * The cost of masking interrupts, which the peers do not do: small on a
 * machine, but most of the cost of a spin_lock_irqsave() in User Mode Linux.
 */
static void bench_interrupts(unsigned int round)
{
	unsigned long flags;
	ktime_t start;
	unsigned int i;

	start = ktime_get();
	for (i = 0; i < BENCH_MAX_ITEMS; i++) {
		local_irq_save(flags);
		local_irq_restore(flags);
	}
	bench_sample("mask_interrupts", "none", 1, round, BENCH_MAX_ITEMS,
		     bench_since(start));
}

/* mmu_notifier_get() of a notifier that exists */
static void bench_register_get(unsigned int vmas, unsigned int round)
{
	struct mmu_notifier *first, *again = NULL;
	struct mm_struct *mm = bench_mm(vmas, false);
	ktime_t start;
	unsigned int i;

	if (!mm) {
		bench_fail("address space", -ENOMEM);
		return;
	}
	start = ktime_get();
	first = mmu_notifier_get(&bench_get_ops, mm);
	bench_sample("register_first", "mmu_notifier_get", vmas, round, 1,
		     bench_since(start));
	if (IS_ERR(first)) {
		bench_fail("mmu_notifier_get", PTR_ERR(first));
		goto out;
	}

	start = ktime_get();
	for (i = 0; i < BENCH_REGISTERS; i++)
		again = mmu_notifier_get(&bench_get_ops, mm);
	bench_sample("register", "mmu_notifier_get", vmas, round,
		     BENCH_REGISTERS, bench_since(start));
	WARN_ON(again != first);
	for (i = 0; i < BENCH_REGISTERS + 1; i++)
		mmu_notifier_put(first);
out:
	mmput(mm);
}

static void bench_register(void)
{
	static const unsigned int vmas[] = { 10, 100, 1000, 10000 };
	unsigned int i, j, round;

	for (round = 0; round < rounds; round++)
		bench_interrupts(round);
	for (i = 0; i < ARRAY_SIZE(vmas); i++) {
		for (round = 0; round < rounds; round++) {
			for (j = 0; j < ARRAY_SIZE(bench_fenced); j++)
				bench_register_peer(bench_fenced[j], vmas[i],
						    round);
			bench_register_get(vmas[i], round);
		}
	}
}

/*
 * Many on one address space: registered, unregistered, and all over
 */

static void bench_many_peer(const struct bench_peer *peer, unsigned int n,
			    unsigned int round)
{
	struct mm_struct *mm = bench_mm(BENCH_VMAS, true);
	struct bench_item *first = &bench_items[n];
	ktime_t start;
	u64 ns;

	if (!mm || !bench_add(peer, first, mm, n)) {
		bench_fail("address space", -ENOMEM);
		return;
	}

	start = ktime_get();
	n = bench_add_all(peer, mm, n);
	bench_sample("register_many", peer->name, n, round, n,
		     bench_since(start));

	start = ktime_get();
	bench_del_all(peer, n);
	ns = bench_since(start);
	bench_flush(peer);
	bench_sample("unregister_over", peer->name, n, round, n,
		     bench_since(start));
	bench_sample("unregister_many", peer->name, n, round, n, ns);

	peer->del(first);
	bench_flush(peer);
	mmput(mm);
}

static void bench_many(void)
{
	unsigned int i, j, round;

	for (i = 0; i < ARRAY_SIZE(bench_decades); i++)
		for (round = 0; round < rounds; round++)
			for (j = 0; j < ARRAY_SIZE(bench_all); j++)
				bench_many_peer(bench_all[j], bench_decades[i],
						round);
}

/* One at a time, on an idle machine. Another one of the address space stays. */
static void bench_idle_peer(const struct bench_peer *peer, unsigned int round)
{
	struct mm_struct *mm = bench_mm(BENCH_VMAS, true);
	struct bench_item *first = &bench_items[BENCH_OPS];
	unsigned int i, n;
	ktime_t start;
	u64 ns = 0;

	if (!mm || !bench_add(peer, first, mm, BENCH_OPS)) {
		bench_fail("address space", -ENOMEM);
		return;
	}
	n = bench_add_all(peer, mm, BENCH_OPS);
	for (i = 0; i < n; i++) {
		msleep(BENCH_IDLE_MS);
		start = ktime_get();
		peer->del(&bench_items[i]);
		ns += bench_since(start);
	}
	bench_sample("unregister_idle", peer->name, 1, round, n, ns);
	peer->del(first);
	bench_flush(peer);
	mmput(mm);
}

/* As above, and each is the last one of its address space. */
static void bench_last_peer(const struct bench_peer *peer, unsigned int round)
{
	unsigned int i, n;
	ktime_t start;
	u64 ns = 0;

	for (n = 0; n < BENCH_OPS; n++) {
		struct mm_struct *mm = bench_mm(BENCH_VMAS, true);

		if (!mm || !bench_add(peer, &bench_items[n], mm, 0)) {
			bench_fail("address space", -ENOMEM);
			break;
		}
	}
	for (i = 0; i < n; i++) {
		struct mm_struct *mm = bench_items[i].mm;

		msleep(BENCH_IDLE_MS);
		start = ktime_get();
		peer->del(&bench_items[i]);
		ns += bench_since(start);
		bench_flush(peer);
		mmput(mm);
	}
	bench_sample("unregister_last", peer->name, 1, round, n, ns);
}

/* Takes no sample. */
static void bench_warm_up(const struct bench_peer *peer)
{
	struct mm_struct *mm = bench_mm(BENCH_VMAS, true);

	if (!mm) {
		bench_fail("address space", -ENOMEM);
		return;
	}
	bench_del_all(peer, bench_add_all(peer, mm, BENCH_OPS));
	bench_flush(peer);
	mmput(mm);
}

static void bench_idle(void)
{
	unsigned int i, round;

	for (round = 0; round < rounds; round++) {
		for (i = 0; i < ARRAY_SIZE(bench_all); i++)
			bench_idle_peer(bench_all[i], round);
		for (i = 0; i < ARRAY_SIZE(bench_all); i++)
			bench_last_peer(bench_all[i], round);
	}
}

/*
 * Beside a callback that sleeps, of another device and of another process
 */

static int bench_exit_thread(void *data)
{
	struct bench_thread *thread = data;

	mmput(thread->mm);
	complete(&thread->done);
	return 0;
}

/* Returns once another process is in the callback of @peer. */
static bool bench_sleeper_begin(struct bench_thread *sleeper,
				const struct bench_peer *peer)
{
	struct task_struct *task;

	sleeper->peer = peer;
	sleeper->mm = bench_mm(1, true);
	init_completion(&sleeper->done);
	if (!sleeper->mm ||
	    !bench_add(peer, &sleeper->item, sleeper->mm, 1)) {
		bench_fail("sleeper", -ENOMEM);
		return false;
	}
	reinit_completion(&bench_in_callback);
	WRITE_ONCE(bench_callback_ms, BENCH_ASLEEP_MS);
	task = kthread_run(bench_exit_thread, sleeper, "hmm_bench_sleep");
	if (IS_ERR(task)) {
		bench_fail("kthread", PTR_ERR(task));
		return false;
	}
	wait_for_completion(&bench_in_callback);
	WRITE_ONCE(bench_callback_ms, 0);
	return true;
}

static void bench_sleeper_end(struct bench_thread *sleeper)
{
	wait_for_completion(&sleeper->done);
	sleeper->peer->del(&sleeper->item);
	bench_flush(sleeper->peer);
}

static void bench_beside_peer(const struct bench_peer *peer,
			      const struct bench_peer *asleep, bool exit,
			      unsigned int round)
{
	static struct bench_thread sleeper;
	struct mm_struct *mm = bench_mm(BENCH_VMAS, true);
	char measure[40];
	ktime_t start;

	if (!mm || !bench_add(peer, &bench_items[0], mm, 0) ||
	    !bench_sleeper_begin(&sleeper, asleep)) {
		bench_fail("address space", -ENOMEM);
		return;
	}

	snprintf(measure, sizeof(measure), "%s_beside_%s",
		 exit ? "exit" : "unregister", asleep->name);
	start = ktime_get();
	if (exit)
		mmput(mm);
	else
		peer->del(&bench_items[0]);
	bench_sample(measure, peer->name, 1, round, 1, bench_since(start));

	bench_sleeper_end(&sleeper);
	if (exit)
		peer->del(&bench_items[0]);
	else
		mmput(mm);
	bench_flush(peer);
}

static void bench_beside(void)
{
	static const struct bench_peer * const asleep[] = {
		&bench_hmm, &bench_notifier,
	};
	unsigned int i, j, round, exit;

	for (round = 0; round < min(rounds, 3U); round++)
		for (i = 0; i < ARRAY_SIZE(asleep); i++)
			for (exit = 0; exit < 2; exit++)
				for (j = 0; j < ARRAY_SIZE(bench_fenced); j++)
					bench_beside_peer(bench_fenced[j],
							  asleep[i], exit,
							  round);
}

/*
 * Exit
 */

static void bench_exit_peer(const char *measure, const struct bench_peer *peer,
			    unsigned int n, unsigned int round)
{
	struct mm_struct *mm = bench_mm(BENCH_VMAS, true);
	unsigned int size = n;
	ktime_t start;

	if (!mm) {
		bench_fail("address space", -ENOMEM);
		return;
	}
	n = bench_add_all(peer, mm, n);
	start = ktime_get();
	mmput(mm);
	bench_sample(measure, peer->name, size, round, 1, bench_since(start));
	bench_del_all(peer, n);
	bench_flush(peer);
}

static void bench_exit(void)
{
	unsigned int i, j, round;

	for (i = 0; i < ARRAY_SIZE(bench_decades); i++)
		for (round = 0; round < rounds; round++)
			for (j = 0; j < ARRAY_SIZE(bench_fenced); j++)
				bench_exit_peer("exit", bench_fenced[j],
						bench_decades[i], round);
}

/* The devices stop slowly, and may do so at the same time. */
static void bench_devices_exit(void)
{
	static const unsigned int devices[] = { 1, 8, BENCH_MAX_DEVICES };
	unsigned int i, j, round;

	WRITE_ONCE(bench_callback_ms, BENCH_STOP_MS);
	for (i = 0; i < ARRAY_SIZE(devices); i++)
		for (round = 0; round < min(rounds, 3U); round++)
			for (j = 0; j < ARRAY_SIZE(bench_fenced); j++)
				bench_exit_peer("exit_slow_devices",
						bench_fenced[j], devices[i],
						round);
	WRITE_ONCE(bench_callback_ms, 0);
}

/* Many address spaces with one each. */
static void bench_processes_peer(const struct bench_peer *peer, unsigned int n,
				 unsigned int round)
{
	unsigned int i, nr = 0;
	ktime_t start;
	u64 ns = 0;

	for (i = 0; i < n; i++) {
		struct mm_struct *mm = bench_mm(BENCH_VMAS, true);
		bool added;

		if (!mm) {
			bench_fail("address space", -ENOMEM);
			break;
		}
		start = ktime_get();
		added = bench_add(peer, &bench_items[i], mm, 0);
		ns += bench_since(start);
		if (!added) {
			mmput(mm);
			break;
		}
		nr++;
	}
	bench_sample("register_processes", peer->name, n, round, nr, ns);

	start = ktime_get();
	for (i = 0; i < nr; i++)
		mmput(bench_items[i].mm);
	bench_sample("exit_processes", peer->name, n, round, nr,
		     bench_since(start));
	bench_del_all(peer, nr);
	bench_flush(peer);
}

static void bench_processes(void)
{
	unsigned int i, j, round;

	for (i = 0; i < ARRAY_SIZE(bench_decades); i++)
		for (round = 0; round < rounds; round++)
			for (j = 0; j < ARRAY_SIZE(bench_and_none); j++)
				bench_processes_peer(bench_and_none[j],
						     bench_decades[i], round);
}

/*
 * Up to 100,000 mirrors of one device and one address space
 *
 * Either the time of each step is measured, or how late interrupts are at most:
 * as long as HMM masks them, a timer of the same CPU does not fire.
 */

static struct hmm_device bench_scale_device;
static struct bench_item *bench_scale_items;
static struct mm_struct *bench_scale_mm;
static struct hrtimer bench_timer;
static u64 bench_latest;

static enum hrtimer_restart bench_timer_fn(struct hrtimer *timer)
{
	u64 late = bench_since(hrtimer_get_expires(timer));

	if (late > bench_latest)
		bench_latest = late;
	hrtimer_forward_now(timer, BENCH_TIMER_NS);
	return HRTIMER_RESTART;
}

static void bench_scale_register(unsigned int n)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < n && !ret; i++) {
		struct hmm_mirror *mirror = &bench_scale_items[i].mirror;

		memset(mirror, 0, sizeof(*mirror));
		ret = hmm_mirror_register(mirror, &bench_scale_device,
					  bench_scale_mm);
	}
	if (ret)
		bench_fail("hmm_mirror_register", ret);
}

static void bench_scale_unregister(unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		hmm_mirror_unregister(&bench_scale_items[i].mirror);
}

/* Workers run while this calls, so that only both together can be compared */
static void bench_scale_async(unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		hmm_mirror_unregister_async(&bench_scale_items[i].mirror);
	hmm_synchronize();
}

static void bench_scale_unplug(unsigned int n)
{
	hmm_device_unplug(&bench_scale_device);
}

static void bench_scale_exit(unsigned int n)
{
	mmput(bench_scale_mm);
}

/* What other parts of the kernel do to interrupts */
static void bench_scale_nothing(unsigned int n)
{
	struct mm_struct *mm = bench_mm(100, true);

	if (mm)
		mmput(mm);
}

static void bench_scale_step(const char *name, void (*fn)(unsigned int),
			     unsigned int n, unsigned int round, bool masked)
{
	ktime_t start;

	if (bench_error)
		return;
	if (!masked) {
		start = ktime_get();
		fn(n);
		bench_sample("scale", name, n, round, n, bench_since(start));
		return;
	}
	bench_latest = 0;
	hrtimer_start(&bench_timer, BENCH_TIMER_NS,
		      HRTIMER_MODE_REL_PINNED_HARD);
	fn(n);
	hrtimer_cancel(&bench_timer);
	bench_sample("masked", name, n, round, 1, bench_latest);
}

static bool bench_scale_begin(void)
{
	int ret;

	bench_scale_mm = bench_mm(BENCH_VMAS, true);
	ret = hmm_device_register(&bench_scale_device, &bench_async_ops,
				  "bench");
	if (bench_scale_mm && !ret)
		return true;
	bench_fail("address space or device", ret);
	return false;
}

static void bench_scale_end(void)
{
	WARN_ON(hmm_device_unregister(&bench_scale_device));
}

static void bench_scale_of(unsigned int n, unsigned int round, bool masked)
{
	if (masked)
		bench_scale_step("none", bench_scale_nothing, n, round, masked);

	if (!bench_scale_begin())
		return;
	bench_scale_step("register", bench_scale_register, n, round, masked);
	bench_scale_step("unregister", bench_scale_unregister, n, round,
			 masked);
	mmput(bench_scale_mm);
	bench_scale_end();

	if (!bench_scale_begin())
		return;
	bench_scale_register(n);
	bench_scale_step("unplug", bench_scale_unplug, n, round, masked);
	bench_scale_unregister(n);
	mmput(bench_scale_mm);
	bench_scale_end();

	if (!bench_scale_begin())
		return;
	bench_scale_register(n);
	bench_scale_step("exit", bench_scale_exit, n, round, masked);
	bench_scale_unregister(n);
	bench_scale_end();

	if (!bench_scale_begin())
		return;
	bench_scale_register(n);
	bench_scale_step("async", bench_scale_async, n, round, masked);
	mmput(bench_scale_mm);
	bench_scale_end();
}

static void bench_scale_all(bool masked)
{
	static const unsigned int mirrors[] = {
		1000, 10000, BENCH_MAX_MIRRORS
	};
	unsigned int i, round;

	bench_scale_items = kvcalloc(BENCH_MAX_MIRRORS,
				     sizeof(*bench_scale_items), GFP_KERNEL);
	if (!bench_scale_items) {
		bench_fail("mirrors", -ENOMEM);
		return;
	}
	for (i = 0; i < ARRAY_SIZE(mirrors); i++)
		for (round = 0; round < rounds; round++)
			bench_scale_of(mirrors[i], round, masked);
	kvfree(bench_scale_items);
}

static void bench_scale(void)
{
	bench_scale_all(false);
}

static void bench_masked(void)
{
	if (hrtimer_resolution > BENCH_TIMER_NS) {
		bench_fail("high resolution timer", -ENODEV);
		return;
	}
	hrtimer_setup(&bench_timer, bench_timer_fn, CLOCK_MONOTONIC,
		      HRTIMER_MODE_REL_PINNED_HARD);
	bench_scale_all(true);
}

/*
 * Threads at work together
 */

static int bench_thread_fn(void *data)
{
	struct bench_thread *thread = data;

	wait_for_completion(&bench_go);
	thread->ops = 0;
	while (ktime_before(ktime_get(), READ_ONCE(bench_deadline))) {
		thread->ops += thread->fn(thread);
		cond_resched();
	}
	complete(&thread->done);
	return 0;
}

static u64 bench_pair(struct bench_thread *thread)
{
	if (!bench_add(thread->peer, &thread->item, thread->mm, 0))
		return 0;
	thread->peer->del(&thread->item);
	return 1;
}

static u64 bench_find(struct bench_thread *thread)
{
	unsigned int i;

	for (i = 0; i < BENCH_OPS; i++) {
		struct hmm_mirror *mirror = hmm_mirror_find(thread->device,
							    thread->mm);

		if (!mirror) {
			bench_fail("hmm_mirror_find", -ENOENT);
			return 0;
		}
		hmm_mirror_put(mirror);
	}
	return BENCH_OPS;
}

static u64 bench_get_existing(struct bench_thread *thread)
{
	unsigned int i;

	for (i = 0; i < BENCH_OPS; i++)
		mmu_notifier_put(mmu_notifier_get(&bench_get_ops, thread->mm));
	return BENCH_OPS;
}

static u64 bench_life(struct bench_thread *thread)
{
	struct mm_struct *mm = bench_mm(1, true);

	if (!mm || !bench_add(thread->peer, &thread->item, mm, 0)) {
		bench_fail("address space", -ENOMEM);
		return 0;
	}
	mmput(mm);
	thread->peer->del(&thread->item);
	return 1;
}

static struct bench_thread bench_threads[BENCH_MAX_THREADS];

/* All threads do @fn until time is up. */
static void bench_together(const char *measure, const struct bench_peer *peer,
			   const char *name, u64 (*fn)(struct bench_thread *),
			   unsigned int n, unsigned int round)
{
	u64 ops = 0, ns;
	unsigned int i;
	ktime_t start;

	init_completion(&bench_go);
	for (i = 0; i < n; i++) {
		struct bench_thread *thread = &bench_threads[i];
		struct task_struct *task;

		thread->peer = peer;
		thread->fn = fn;
		init_completion(&thread->done);
		task = kthread_run(bench_thread_fn, thread, "hmm_bench/%u", i);
		if (IS_ERR(task)) {
			bench_fail("kthread", PTR_ERR(task));
			break;
		}
	}
	n = i;
	start = ktime_get();
	WRITE_ONCE(bench_deadline, ktime_add_ms(start, BENCH_THREADS_MS));
	complete_all(&bench_go);
	for (i = 0; i < n; i++) {
		wait_for_completion(&bench_threads[i].done);
		ops += bench_threads[i].ops;
	}
	ns = bench_since(start);
	bench_sample(measure, name, n, round, ops, ns);
	if (peer)
		bench_flush(peer);
}

/*
 * The mirrors and notifiers of all threads: of one mm, or of one for each
 * thread
 */
static bool bench_threads_begin(bool one)
{
	struct mm_struct *mm = NULL;
	unsigned int i;

	for (i = 0; i < BENCH_MAX_THREADS; i++) {
		struct bench_thread *thread = &bench_threads[i];

		if (mm && one)
			mmget(mm);
		else
			mm = bench_mm(BENCH_VMAS, true);
		if (!mm)
			return false;
		thread->mm = mm;
		thread->device = &bench_devices[i % BENCH_MAX_DEVICES];
		if (!bench_add(&bench_hmm, &bench_items[i], mm, i) ||
		    IS_ERR(mmu_notifier_get(&bench_get_ops, mm)))
			return false;
	}
	return true;
}

static void bench_threads_end(void)
{
	unsigned int i;

	for (i = 0; i < BENCH_MAX_THREADS; i++) {
		struct mm_struct *mm = bench_threads[i].mm;
		struct mmu_notifier *notifier;

		notifier = mmu_notifier_get(&bench_get_ops, mm);
		/* Its own, and that of bench_threads_begin() */
		mmu_notifier_put(notifier);
		mmu_notifier_put(notifier);
		bench_hmm_del(&bench_items[i]);
		mmput(mm);
	}
}

static void bench_contention_of(bool one, unsigned int threads,
				unsigned int round)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bench_all); i++)
		/*
		 * An item that is deleted asynchronously cannot be used again
		 */
		if (!bench_all[i]->flush || bench_all[i] == &bench_hmm)
			bench_together(one ? "pairs_one_mm" : "pairs_many_mm",
				       bench_all[i], bench_all[i]->name,
				       bench_pair, threads, round);
	bench_together(one ? "find_one_mm" : "find_many_mm", NULL, "hmm",
		       bench_find, threads, round);
	bench_together(one ? "find_one_mm" : "find_many_mm", NULL,
		       "mmu_notifier_get", bench_get_existing, threads, round);
	if (one)
		return;
	for (i = 0; i < ARRAY_SIZE(bench_fenced); i++)
		bench_together("lives", bench_fenced[i], bench_fenced[i]->name,
			       bench_life, threads, round);
}

static void bench_contention(void)
{
	static const unsigned int threads[] = { 1, 2, 4, BENCH_MAX_THREADS };
	unsigned int one, i, round;

	for (one = 0; one < 2; one++) {
		if (!bench_threads_begin(one)) {
			bench_fail("threads", -ENOMEM);
			return;
		}
		for (i = 0; i < ARRAY_SIZE(threads); i++)
			for (round = 0; round < rounds; round++)
				bench_contention_of(one, threads[i], round);
		bench_threads_end();
	}
}

/*
 * A mirror, or an interval notifier, of the program that writes the parameter
 */

static struct hmm_device bench_user_device;
static struct bench_item bench_user_item;
static const struct bench_peer *bench_user_peer;

static int bench_user_add(struct bench_item *item)
{
	memset(&item->mirror, 0, sizeof(item->mirror));
	return hmm_mirror_register(&item->mirror, &bench_user_device, item->mm);
}

static const struct bench_peer bench_user = {
	.name = "hmm",
	.add = bench_user_add,
	.del = bench_hmm_del,
};

static const struct bench_peer * const bench_user_peers[] = {
	NULL, &bench_user, &bench_interval,
};

static int bench_user_set(const char *value, const struct kernel_param *param)
{
	static DEFINE_MUTEX(mutex);
	unsigned int nr;
	int ret;

	ret = kstrtouint(value, 0, &nr);
	if (ret)
		return ret;
	if (nr >= ARRAY_SIZE(bench_user_peers) || !current->mm)
		return -EINVAL;
	guard(mutex)(&mutex);
	ret = hmm_device_register(&bench_user_device, &bench_ops, "bench");
	if (ret && ret != -EBUSY)
		return ret;
	if (bench_user_peer)
		bench_user_peer->del(&bench_user_item);
	bench_user_peer = bench_user_peers[nr];
	if (!bench_user_peer)
		return 0;
	bench_user_item.mm = current->mm;
	ret = bench_user_peer->add(&bench_user_item);
	if (ret)
		bench_user_peer = NULL;
	return ret;
}

static const struct kernel_param_ops bench_user_ops = {
	.set = bench_user_set,
};
module_param_cb(mirror, &bench_user_ops, NULL, 0200);
MODULE_PARM_DESC(mirror, "What the address space of the writer gets: 0 nothing, 1 a mirror, 2 an interval notifier");

/*
 * Everything
 */

static const struct {
	const char *name;
	void (*fn)(void);
	bool asked;		/* only if groups names it */
} bench_groups[] = {
	{ "register", bench_register },
	{ "beside", bench_beside },
	{ "idle", bench_idle },
	{ "many", bench_many },
	{ "exit", bench_exit },
	{ "processes", bench_processes },
	{ "devices", bench_devices_exit },
	{ "scale", bench_scale },
	{ "contention", bench_contention },
	{ "masked", bench_masked, true },
};

static int bench_run(void *done)
{
	unsigned int i;

	/* Fills caches */
	for (i = 0; i < ARRAY_SIZE(bench_all); i++)
		bench_warm_up(bench_all[i]);
	for (i = 0; i < ARRAY_SIZE(bench_groups); i++)
		if (groups ? !!strstr(groups, bench_groups[i].name) :
			     !bench_groups[i].asked)
			bench_groups[i].fn();
	complete(done);
	return 0;
}

static void bench_devices_gone(unsigned int n)
{
	while (n--)
		WARN_ON(hmm_device_unregister(&bench_devices[n]));
	kvfree(bench_items);
}

static int __init bench_init(void)
{
	DECLARE_COMPLETION_ONSTACK(done);
	struct task_struct *task;
	unsigned int i;
	int ret;

	bench_items = kvcalloc(BENCH_MAX_ITEMS + 1, sizeof(*bench_items),
			       GFP_KERNEL);
	if (!bench_items)
		return -ENOMEM;
	for (i = 0; i < BENCH_MAX_DEVICES; i++) {
		ret = hmm_device_register(&bench_devices[i], &bench_ops,
					  "bench");
		if (ret)
			goto out;
	}
	ret = hmm_device_register(&bench_async_device, &bench_async_ops,
				  "bench");
	if (ret)
		goto out;

	/* Only kernel threads may use the mm of others */
	task = kthread_run(bench_run, &done, "hmm_bench");
	ret = PTR_ERR_OR_ZERO(task);
	if (!ret)
		wait_for_completion(&done);
	pr_info("%s\n", ret || bench_error ? "failed" : "done");
	WARN_ON(hmm_device_unregister(&bench_async_device));
out:
	bench_devices_gone(i);
	if (shutdown)
		kernel_power_off();
	return ret;
}

/*
 * Built in, this runs after the initcalls of what it measures. The module
 * cannot be unloaded: no call waits until the last ->free_notifier() of
 * mmu_notifier_put() has left its text.
 */
late_initcall(bench_init);

/* mm_alloc() */
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
MODULE_DESCRIPTION("What the HMM registration core costs");
MODULE_LICENSE("GPL");
