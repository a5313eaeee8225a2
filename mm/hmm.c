// SPDX-License-Identifier: GPL-2.0
/*
 * HMM: devices that mirror an address space
 *
 * Overview
 * ========
 *
 * An hmm_device stands for a secondary MMU, an hmm_mirror for one address space on
 * it, and a struct hmm, private to this file, for what HMM keeps about one mm
 * however many mirrors it has. The driver owns the memory of the first two; HMM
 * tells it when that memory is its own again.
 *
 * HMM hears of the exit of an mm by an mmu_interval_notifier on the last page of
 * the address space, where no mapping can be. exit_mmap() calls it before it
 * frees anything, with nothing held that another process could wait for. An
 * mmu_notifier would be called inside the one SRCU domain that all notifiers of
 * the machine share, so that a device which is slow to stop would hold up every
 * other process that exits and every mmu_notifier_unregister(). The price: the
 * notifier gives no way from an mm to its struct hmm, which hmm_table makes good;
 * and it cannot be removed from a callback, so hmm_free_work() does that.
 *
 * Locking
 * =======
 *
 *	mmap_lock (write)		arming the first mirror of an mm takes it
 *	locks of the driver		->release() and ->free() may take them
 *	  hmm_device::callback_map	lockdep only: a callback, or a wait for it
 *	  hmm_callback_map		lockdep only: the same of all devices
 *	hmm_lazy_mutex			who queues what waited a moment
 *	hmm_devices_lock
 *	  hmm_device::lock
 *	hmm_bucket::lock
 *	    hmm::lock			in either of the two above
 *	hmm_tasks[]::lock
 *	hmm_srcu, read side		walks of mirrors: look, take a reference
 *	RCU, read side			walks of hmm_table, and mirror->hmm
 *
 * The rest, with a lock in their names, are spinlocks, held for a few lines. None of
 * HMM's is held over a callback.
 * Those inside objects and of the table are taken with interrupts off: a driver may
 * call in under a lock that its interrupt takes.
 * hmm_device::lock and hmm::lock lie inside objects and so never hold off the
 * freeing of these: whoever takes one has a reference, and drops it after the
 * unlock. hmm_device::lock nests outside of hmm::lock so that a mirror appears on
 * both lists at once, or on none.
 *
 * Rationale: the walks of mirrors are under SRCU of HMM's own. An unregister waits
 * for a grace period of it, which can be expedited, since it disturbs nobody, and
 * waits for walks and nothing else; and it waits for none if nobody walks. Nobody
 * waits for walks of hmm_table.
 *
 * Field protection
 * ================
 *
 * hmm_device:
 *	ops, name		immutable while registered
 *	state			cmpxchg() to own the making; lock to own the unmaking
 *	nr_registered		lock
 *	mirrors, released	lock
 *	node			hmm_devices_lock
 *	unused			written before the reference of the registration is
 *				dropped, read by who drops the last one
 * hmm_mirror:
 *	device			cmpxchg() to own the mirror; cleared at its end
 *	mm, since		immutable from register until the end
 *	node			hmm::lock, walked under hmm_srcu
 *	device_node		hmm_device::lock
 *	hmm			from register until the unlink, when the owner of the
 *				release clears it; read under RCU
 *	registered		xchg() to own the end of the registration
 *	mm_pins			hmm::lock
 *	reason			cmpxchg() to own the release, once
 *	due			atomic; see hmm_mirror_due()
 *	unlink_gp		written by the owner of the release, ordered for
 *				others by the completion of released, or by the
 *				reference that it drops
 *	async, step		written by who unregisters, before it drops the user
 *				of the registration, and async before it may own the
 *				release; read by the last user, and async by those
 *				who wait for the owner. step is then the one's who
 *				drops the last reference
 *	lazy			its owner's, then that of hmm_lazy_drain()
 *	unused			as hmm_device::unused
 * hmm:
 *	mm, notifier		immutable
 *	mirrors			written under lock, walked under hmm_srcu
 *	mm_pins			lock
 *	standby			xchg() to own the making of one; cleared by who
 *				begins with it or takes it
 *	node			hmm_bucket::lock, walked under RCU
 *
 * States of a mirror
 * ==================
 *
 *	registered, live	reason is NONE, linked, ->release() yet to come
 *	releasing		reason is set, linked; one thread or mirror->work,
 *				the owner, runs ->release(), or will; others wait
 *				for mirror->released
 *	released		unlinked, mirror->hmm is NULL, released is complete;
 *				still registered unless unregister released it
 *	unregistered		no user or reference is left; ->free() ran, or the
 *				memory is the caller's of hmm_mirror_unregister()
 *
 * Removal paths
 * =============
 *
 *	A. hmm_mirror_unregister(), hmm_mirror_unregister_async()
 *	B. exit of the mm, hmm_notifier_invalidate()
 *	C. hmm_device_unplug()
 *	D. hmm_mirror_kill()
 *	E. hmm_device_unregister()
 *
 * A to D, for one mirror: each tries to set the reason; who does owns the release.
 * A that is synchronous runs ->release() itself. C first owns all that it can and
 * queues mirror->work for each, so that the releases of one device run side by side;
 * then it goes from one to the next and waits, or runs what no worker has begun. B
 * owns and runs one after the other, always with a worker on its way that has the next
 * (see hmm_mm_exit_standby()); then it waits like C. D only queues, and so does
 * the other A, a moment later (see hmm_lazy_drain()). The losers among A, B and C that
 * have to wait take the work from the queue as well: a release never depends on a
 * worker that cannot be had, when memory is what exit is to give back.
 *
 * The mirror stays linked until ->release() has returned, so that B and C find it
 * and wait, whoever owns the release; exit_mmap() frees no page before.
 *
 * What HMM itself does with a mirror is done as one of its users: the registration,
 * the work, B and C. Together these have one reference. A that is synchronous waits
 * until all references are dropped, those of users among them; A that is not leaves
 * that to whoever drops the last. Then, for those who are about to find the number
 * of users at zero, hmm_mirror_finish() sees that nobody walks, or has a grace period of
 * hmm_srcu since the unlink pass, and ends the mirror. So that comes after B's and C's last look.
 *
 * B must find the mirror: hmm_mirror_register() holds mm_users until it is linked,
 * and until the notifier is in the interval tree, which mmu_interval_notifier_insert()
 * leaves to the end of an invalidation that runs (see hmm_create()).
 *
 * A against A is an error of the driver, reported where it is seen.
 *
 * E against A: a mirror holds a reference on its device until A is through with
 * it, ->free() included. E fails with -EBUSY before A was called, and waits for
 * that reference afterwards.
 *
 * E against B, C and D: these touch the device while they are users of the mirror,
 * whom A waits for, which E waits for.
 *
 * Waits for the last reference are completions on the stack of the waiter: the
 * one who drops it touches the waiter's stack, and not the object any more.
 *
 * Steps
 * =====
 *
 * A step is what hmm_synchronize() waits for: a release or ->free() that is due and
 * that no caller waits for. Steps are readers of hmm_steps that begin in one context
 * and end in another; a grace period of it waits for all that were begun before.
 * Nothing is counted that all processors would have to share.
 */

#define pr_fmt(fmt) "hmm: " fmt

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/export.h>
#include <linux/hash.h>
#include <linux/hmm_device.h>
#include <linux/hmm_test.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/kref.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/llist.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/rculist.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/workqueue.h>

#define CREATE_TRACE_POINTS
#include <trace/events/hmm.h>

/* The one place of an address space that is never mapped, nor invalidated */
#define HMM_LAST_PAGE		(ULONG_MAX & PAGE_MASK)

static unsigned int report_seconds = 20;
static int hmm_set_report_seconds(const char *value,
				  const struct kernel_param *param);
static const struct kernel_param_ops hmm_report_seconds_ops = {
	.set = hmm_set_report_seconds,
	.get = param_get_uint,
};

module_param_cb(report_seconds, &hmm_report_seconds_ops, &report_seconds, 0644);
MODULE_PARM_DESC(report_seconds,
		 "Seconds after which a callback or a wait for it is reported");

/* Keeps the references of a device far below where refcount_t saturates */
#define HMM_DEVICE_MAX_MIRRORS	(UINT_MAX / 4)

/* How often who waits for a release looks whether it can run it, in jiffies */
#define HMM_STEAL_AGAIN		(HZ / 10 ?: 1)

#define HMM_TABLE_BITS		8
#define HMM_TASKS_BITS		6

/* Values of hmm_device::state. Zeroed memory is an unregistered device. */
enum hmm_device_state {
	HMM_DEVICE_UNREGISTERED,	/* the driver's own memory */
	HMM_DEVICE_CHANGING,		/* one thread makes or unmakes it */
	HMM_DEVICE_REGISTERED,		/* mirrors may be registered */
	HMM_DEVICE_UNPLUGGED,		/* none any more */
};

/* Values of hmm_mirror::due that are no step */
#define HMM_NOT_DUE	-1
#define HMM_RELEASED	-2

/*
 * struct hmm - What HMM keeps about one mm
 *
 * Created by:    hmm_get(), with one reference, the caller's.
 * Pinned by:     each linked mirror (mirror->hmm, until hmm_mirror_unlink());
 *                each hmm_mirror_mm_get(); hmm_mirror_register() on its way.
 * Found by:      hmm_find(), under RCU or the lock of its bucket, with
 *                kref_get_unless_zero().
 * Pins:          mm_count, from mmu_interval_notifier_insert() until
 *                mmu_interval_notifier_remove(); never mm_users.
 * Dead when:     the last reference is dropped; a new mirror of the same mm then
 *                makes a new struct hmm.
 * Freed by:      hmm_free_work(), a moment later, after the notifier is removed, and
 *                a grace period of RCU.
 */
struct hmm {
	struct mm_struct *mm;
	struct mmu_interval_notifier notifier;
	struct hlist_node node;
	struct kref kref;
	spinlock_t lock;			/* mirrors (writers), mm_pins */
	struct list_head mirrors;
	int mm_pins;				/* see hmm_pin() */
	unsigned int standby;			/* see hmm_mm_exit_standby() */
	struct llist_node lazy;			/* see hmm_lazy_drain() */
	struct work_struct free_work;
	struct rcu_head rcu;
};

struct hmm_bucket {
	spinlock_t lock;			/* writers of hmms */
	struct hlist_head hmms;
};

/* A task inside a callback: on its stack, while the callback runs. */
struct hmm_callback {
	struct hlist_node node;
	struct task_struct *task;
	struct hmm_device *device;
	const char *what;
	unsigned long start;			/* jiffies */
};

struct hmm_tasks {
	spinlock_t lock;			/* callbacks */
	struct hlist_head callbacks;
};

DEFINE_STATIC_SRCU(hmm_srcu);
static struct hmm_bucket hmm_table[1 << HMM_TABLE_BITS] = {
	[0 ... (1 << HMM_TABLE_BITS) - 1] = {
		.lock = __SPIN_LOCK_UNLOCKED(hmm_table.lock),
	},
};

static struct hmm_tasks hmm_tasks[1 << HMM_TASKS_BITS] = {
	[0 ... (1 << HMM_TASKS_BITS) - 1] = {
		.lock = __SPIN_LOCK_UNLOCKED(hmm_tasks.lock),
	},
};

/*
 * Callbacks may sleep in WQ_MAX_ACTIVE workers at once. Those of exit and unplug, of
 * which there may be many and whose owners need no worker, are not in the way of
 * others, nor are those of others in the way of ->free(), which
 * hmm_device_unregister() waits for.
 */
static struct workqueue_struct *hmm_many_wq;	/* releases of exit and unplug */
static struct workqueue_struct *hmm_release_wq;	/* releases of kill and async */
static struct workqueue_struct *hmm_free_wq;	/* ->free() */
static struct workqueue_struct *hmm_mm_wq;	/* struct hmm: no callbacks */
static LIST_HEAD(hmm_devices);			/* hmm_devices_lock */
static DEFINE_SPINLOCK(hmm_devices_lock);
static struct dentry *hmm_debugfs;

#ifdef CONFIG_LOCKDEP
static struct lock_class_key hmm_callback_key;
static struct lockdep_map hmm_callback_map =
	STATIC_LOCKDEP_MAP_INIT("hmm_any_callback", &hmm_callback_key);
#endif

DEFINE_STATIC_SRCU(hmm_steps);

/* Live objects, for debugfs and tests; a sum over CPUs, so no cost to scaling */
struct hmm_counts {
	long devices;
	long mirrors;
	long hmms;
};

static DEFINE_PER_CPU(struct hmm_counts, hmm_counts);

#define hmm_count(object, n)	this_cpu_add(hmm_counts.object, n)

static void hmm_counts_sum(struct hmm_counts *sum)
{
	int cpu;

	memset(sum, 0, sizeof(*sum));
	for_each_possible_cpu(cpu) {
		struct hmm_counts *c = per_cpu_ptr(&hmm_counts, cpu);

		sum->devices += READ_ONCE(c->devices);
		sum->mirrors += READ_ONCE(c->mirrors);
		sum->hmms += READ_ONCE(c->hmms);
	}
}

#ifdef CONFIG_HMM_TEST_POINTS
DEFINE_STATIC_SRCU(hmm_test_srcu);
static hmm_test_hook hmm_test_hook_fn;

static void hmm_point(enum hmm_test_point point, struct hmm_mirror *mirror)
{
	hmm_test_hook hook;
	int idx;

	idx = srcu_read_lock(&hmm_test_srcu);
	hook = READ_ONCE(hmm_test_hook_fn);
	if (hook)
		hook(point, mirror);
	srcu_read_unlock(&hmm_test_srcu, idx);
}

/**
 * hmm_test_set_hook() - Have a function called at each test point.
 * @hook: What to call; may sleep where include/linux/hmm_test.h says no other.
 *
 * Context: Any context.
 * Return:
 * * 0 - @hook is called from now on.
 * * %-EBUSY - Another hook is set.
 */
int hmm_test_set_hook(hmm_test_hook hook)
{
	return cmpxchg(&hmm_test_hook_fn, NULL, hook) ? -EBUSY : 0;
}
EXPORT_SYMBOL_GPL(hmm_test_set_hook);

/**
 * hmm_test_clear_hook() - Have the hook called no more.
 *
 * Once this returns the hook does not run and will not be called.
 *
 * Context: Process context. May sleep; no thread may be held in the hook.
 */
void hmm_test_clear_hook(void)
{
	WRITE_ONCE(hmm_test_hook_fn, NULL);
	synchronize_srcu(&hmm_test_srcu);
}
EXPORT_SYMBOL_GPL(hmm_test_clear_hook);
#else
static inline void hmm_point(enum hmm_test_point point,
			     struct hmm_mirror *mirror)
{
}
#endif /* CONFIG_HMM_TEST_POINTS */

/*
 * What need not be done at once: releases of hmm_mirror_unregister_async(), and what
 * is left of an mm without mirrors. To wake a worker costs many times what the rest of
 * these does, and a worker that is woken in an exit would find its invalidation in the
 * way; so for a moment they are gathered.
 */
struct hmm_lazy {
	struct llist_head mirrors;
	struct llist_head hmms;
};

static DEFINE_PER_CPU(struct hmm_lazy, hmm_lazy);
static DEFINE_MUTEX(hmm_lazy_mutex);
static unsigned long hmm_lazy_delay = 1;	/* jiffies; changed by tests only */

/*
 * Who waits for any of them does not wait for the moment to pass: once this returns all
 * that was gathered before is queued. The mutex makes that true for what another
 * thread has taken from a list.
 */
static void hmm_lazy_drain(void)
{
	struct hmm_mirror *mirror, *next_mirror;
	struct hmm *hmm, *next_hmm;
	int cpu;

	mutex_lock(&hmm_lazy_mutex);
	for_each_possible_cpu(cpu) {
		struct hmm_lazy *lazy = per_cpu_ptr(&hmm_lazy, cpu);
		struct llist_node *mirrors, *hmms;

		if (llist_empty(&lazy->mirrors) && llist_empty(&lazy->hmms))
			continue;
		mirrors = llist_del_all(&lazy->mirrors);
		hmms = llist_del_all(&lazy->hmms);
		hmm_point(HMM_POINT_LAZY_TAKEN, NULL);
		llist_for_each_entry_safe(mirror, next_mirror,
					  llist_reverse_order(mirrors), lazy)
			queue_work(hmm_release_wq, &mirror->work);
		llist_for_each_entry_safe(hmm, next_hmm, hmms, lazy)
			queue_work(hmm_mm_wq, &hmm->free_work);
	}
	mutex_unlock(&hmm_lazy_mutex);
}

static void hmm_lazy_work_fn(struct work_struct *work)
{
	hmm_lazy_drain();
}

static DECLARE_DELAYED_WORK(hmm_lazy_work, hmm_lazy_work_fn);

/* To one of the lists of this CPU; that the task moves on meanwhile does no harm. */
static void hmm_lazy_add(struct llist_node *node, struct llist_head *list)
{
	/* If it was not empty, who made it so has seen to this, and it is yet to come */
	if (llist_add(node, list))
		schedule_delayed_work(&hmm_lazy_work, READ_ONCE(hmm_lazy_delay));
}

#ifdef CONFIG_HMM_TEST_POINTS
/**
 * hmm_test_quiesce() - Finish what is freed asynchronously, and count the rest.
 * @counts: Where to put the number of live objects, or NULL.
 *
 * Once this returns, HMM no longer listens to any mm whose last mirror was
 * unlinked before. The counts are exact only if nobody registers or unregisters meanwhile.
 *
 * Context: Process context. May sleep.
 */
void hmm_test_quiesce(struct hmm_test_counts *counts)
{
	struct hmm_counts sum;

	hmm_lazy_drain();
	flush_workqueue(hmm_mm_wq);
	if (!counts)
		return;

	hmm_counts_sum(&sum);
	counts->devices = sum.devices;
	counts->mirrors = sum.mirrors;
	counts->hmms = sum.hmms;
}
EXPORT_SYMBOL_GPL(hmm_test_quiesce);

/**
 * hmm_test_set_workers() - Limit what workers do at once.
 * @max: How many releases of exits and unplugs, how many others, and how many address
 *	spaces to let go of; or 0 for as many as can be.
 *
 * Context: Process context. May sleep.
 */
void hmm_test_set_workers(int max)
{
	workqueue_set_max_active(hmm_many_wq, max ?: WQ_MAX_ACTIVE);
	workqueue_set_max_active(hmm_release_wq, max ?: WQ_MAX_ACTIVE);
	workqueue_set_max_active(hmm_mm_wq, max ?: WQ_MAX_ACTIVE);
}
EXPORT_SYMBOL_GPL(hmm_test_set_workers);

/**
 * hmm_test_set_lazy_delay() - Change how long what is gathered may wait.
 * @delay: Jiffies, also for what is gathered already; or 0 for what it is without a
 *	test.
 *
 * For so long that nobody could wait for it: then who waits has to see to it.
 *
 * Context: Any context.
 */
void hmm_test_set_lazy_delay(unsigned long delay)
{
	WRITE_ONCE(hmm_lazy_delay, delay ?: 1);
	/* Not mod_delayed_work(): no name of a queue for it is one of all kernels */
	cancel_delayed_work(&hmm_lazy_work);
	schedule_delayed_work(&hmm_lazy_work, delay ?: 1);
}
EXPORT_SYMBOL_GPL(hmm_test_set_lazy_delay);

/**
 * hmm_test_lock() - A lock of HMM, for a test to take.
 * @which: Which one.
 * @of: Whose: a linked mirror, an mm, or a task, as @which says.
 *
 * A test that holds it sees whether the others wait for it.
 *
 * Context: Any context.
 * Return: The lock.
 */
spinlock_t *hmm_test_lock(enum hmm_test_lock which, void *of)
{
	struct hmm_mirror *mirror = of;

	switch (which) {
	case HMM_TEST_LOCK_OF_MIRRORS:
		return &rcu_dereference_protected(mirror->hmm, true)->lock;
	case HMM_TEST_LOCK_OF_TABLE:
		return &hmm_table[hash_ptr(of, HMM_TABLE_BITS)].lock;
	case HMM_TEST_LOCK_OF_CALLBACKS:
		return &hmm_tasks[hash_ptr(of, HMM_TASKS_BITS)].lock;
	default:
		return &hmm_devices_lock;
	}
}
EXPORT_SYMBOL_GPL(hmm_test_lock);
#endif /* CONFIG_HMM_TEST_POINTS */

static unsigned long hmm_report_after(void)
{
	return clamp(READ_ONCE(report_seconds), 1U, 3600U) * HZ;
}

static void hmm_report_wait(unsigned long start, const char *device,
			    const char *what)
{
	pr_warn("%s: %s[%d] waits for %s since %lu seconds\n", device,
		current->comm, task_pid_nr(current), what,
		(jiffies - start) / HZ);
}

/* Wait for a driver; say so when it takes long, for nobody else will. */
static void hmm_wait(struct completion *done, const char *device,
		     const char *what)
{
	unsigned long start = jiffies;

	while (!wait_for_completion_timeout(done, hmm_report_after()))
		hmm_report_wait(start, device, what);
}

/*
 * Steps. Not srcu_down_read(), which kernels before 6.2 lack; it is this, with a
 * check that kernels have which count readers in NMI.
 */

static int hmm_step_begin(void)
{
	unsigned long flags;
	int step;

	/*
	 * TINY_SRCU counts without atomics, and an interrupt may begin a step.
	 * The price is that hmm_synchronize() may hear of the end of one only
	 * when TINY_SRCU looks the next time, HZ / 10 later.
	 */
	local_irq_save(flags);
	step = __srcu_read_lock(&hmm_steps);
	/* For sparse: it ends in another context */
	__release(&hmm_steps);
	local_irq_restore(flags);

	return step;
}

static void hmm_step_end(int step)
{
	unsigned long flags;

	local_irq_save(flags);
	__acquire(&hmm_steps);
	__srcu_read_unlock(&hmm_steps, step);
	local_irq_restore(flags);
}

/*
 * Callbacks of the driver
 */

static struct hmm_tasks *hmm_tasks_of(struct task_struct *task)
{
	return &hmm_tasks[hash_ptr(task, HMM_TASKS_BITS)];
}

/* A callback is on the stack of its task, and there as long as the lock is held. */
static void hmm_watch_callback(struct hmm_tasks *tasks,
			       struct hmm_callback *callback)
{
	unsigned long age = jiffies - callback->start;

	lockdep_assert_held(&tasks->lock);
	if (age >= hmm_report_after())
		pr_warn("%s: %s in %s[%d] has not returned for %lu seconds\n",
			callback->device->name, callback->what,
			callback->task->comm, task_pid_nr(callback->task),
			age / HZ);
}

/* Says which callbacks take long, whether or not anybody waits for them. */
static void hmm_watch_work(struct work_struct *work)
{
	struct hmm_callback *callback;
	bool busy = false;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(hmm_tasks); i++) {
		spin_lock(&hmm_tasks[i].lock);
		hlist_for_each_entry(callback, &hmm_tasks[i].callbacks, node) {
			busy = true;
			hmm_watch_callback(&hmm_tasks[i], callback);
		}
		spin_unlock(&hmm_tasks[i].lock);
	}
	if (busy)
		schedule_delayed_work(to_delayed_work(work), hmm_report_after());
}

static DECLARE_DELAYED_WORK(hmm_watch, hmm_watch_work);

/* From now on, also for callbacks that run */
static int hmm_set_report_seconds(const char *value,
				  const struct kernel_param *param)
{
	int ret = param_set_uint(value, param);

	/* Not mod_delayed_work(): no name of a queue for it is one of all kernels */
	if (!ret && cancel_delayed_work(&hmm_watch))
		schedule_delayed_work(&hmm_watch, hmm_report_after());
	return ret;
}

/*
 * Lockdep takes a callback for a lock that is held for read, and a wait for one
 * for taking it for write: a wait under a lock that a callback takes, or inside a
 * callback, is reported each time and not only when the two meet. For read, as a
 * callback that drops the last user of another mm runs that mm's callbacks.
 *
 * Two such locks: hmm_synchronize() waits for the callbacks of all devices, the
 * others for those of one. Trylocks, as who begins a callback waits for nobody. It
 * matters: lockdep links a lock to the one that was taken last before it, and to
 * those before that only past trylocks; and a path by way of a recursive read lock
 * is none to it. So a lock that a callback takes is linked to both of these, and to
 * what the caller of the callback holds.
 */
static void hmm_callback_maps_acquire(struct hmm_device *device)
{
	lock_acquire_shared_recursive(&hmm_callback_map, 0, 1, NULL, _THIS_IP_);
	lock_acquire_shared_recursive(&device->callback_map, 0, 1, NULL,
				      _THIS_IP_);
}

static void hmm_callback_maps_release(struct hmm_device *device)
{
	lock_map_release(&device->callback_map);
	lock_map_release(&hmm_callback_map);
}

static void hmm_callback_enter(struct hmm_callback *callback,
			       struct hmm_device *device, const char *what)
{
	struct hmm_tasks *tasks = hmm_tasks_of(current);

	callback->task = current;
	callback->device = device;
	callback->what = what;
	callback->start = jiffies;
	spin_lock(&tasks->lock);
	hlist_add_head(&callback->node, &tasks->callbacks);
	spin_unlock(&tasks->lock);
	if (!delayed_work_pending(&hmm_watch))
		schedule_delayed_work(&hmm_watch, hmm_report_after());
	hmm_callback_maps_acquire(device);
}

static void hmm_callback_exit(struct hmm_callback *callback)
{
	struct hmm_tasks *tasks = hmm_tasks_of(current);

	hmm_callback_maps_release(callback->device);
	spin_lock(&tasks->lock);
	hlist_del(&callback->node);
	spin_unlock(&tasks->lock);
}

/* A wait for callbacks of @device may come: see hmm_callback_enter(). */
static void hmm_callback_might_wait(struct hmm_device *device)
{
	lock_map_acquire(&device->callback_map);
	lock_map_release(&device->callback_map);
}

/*
 * hmm_device_unregister() waits for a register that waits for mmap_lock, and
 * ->release() for workers that do. Say so before it happens, and each time, not
 * only for the first mirror of an mm: then lockdep reports a wait for callbacks
 * under mmap_lock even if none of them takes it.
 */
static void hmm_callback_waits_for_mmap_lock(struct hmm_device *device,
					     struct mm_struct *mm)
{
	hmm_callback_maps_acquire(device);
	might_lock(&mm->mmap_lock);
	hmm_callback_maps_release(device);
}

static bool hmm_in_callback(void)
{
	struct hmm_tasks *tasks = hmm_tasks_of(current);
	struct hmm_callback *callback;
	bool found = false;

	spin_lock(&tasks->lock);
	hlist_for_each_entry(callback, &tasks->callbacks, node) {
		found = callback->task == current;
		if (found)
			break;
	}
	spin_unlock(&tasks->lock);

	return found;
}

/*
 * Walks of mirrors, under hmm_srcu. Who is about to end a mirror that is unlinked has
 * to wait for those that began before. A grace period does it, but takes tens of
 * microseconds even if nobody walks, which is nearly always: so the walks are
 * counted as well, on the CPU where they begin and that where they end.
 */
struct hmm_walks {
	unsigned long begun;
	unsigned long ended;
};

static DEFINE_PER_CPU(struct hmm_walks, hmm_walks);

static int hmm_walk_begin(void)
	__acquires(&hmm_srcu)
{
	int idx = srcu_read_lock(&hmm_srcu);

	this_cpu_inc(hmm_walks.begun);
	/*
	 * A: counted before it looks. With B in hmm_nobody_walks(), either the walk
	 * does not see what was unlinked, or it is counted there.
	 */
	smp_mb();
	return idx;
}

static void hmm_walk_end(int idx)
	__releases(&hmm_srcu)
{
	/* C: what it did comes before it is counted; pairs with D */
	smp_mb();
	this_cpu_inc(hmm_walks.ended);
	srcu_read_unlock(&hmm_srcu, idx);
}

/*
 * No walk that could see what was unlinked before this is called. Ends are summed up
 * first: all of them have begun when the beginnings are, so that the sums are equal
 * only if every walk that is counted has ended.
 */
static bool hmm_nobody_walks(void)
{
	unsigned long begun = 0, ended = 0;
	int cpu;

	/* B: unlinked before the look; pairs with A */
	smp_mb();
	for_each_possible_cpu(cpu)
		ended += READ_ONCE(per_cpu(hmm_walks.ended, cpu));
	/* D: pairs with C, and keeps the two sums in their order */
	smp_mb();
	for_each_possible_cpu(cpu)
		begun += READ_ONCE(per_cpu(hmm_walks.begun, cpu));

	return begun == ended;
}

/*
 * References on a device
 *
 * Created by:    __hmm_device_register(), with one reference, the driver's.
 * Pinned by:     each mirror, from hmm_device_get() in hmm_mirror_register()
 *                until hmm_mirror_finish(); hmm_device_unplug() while it runs.
 * Dead when:     hmm_device_unregister() made its state other than REGISTERED
 *                under the lock: hmm_mirror_link() refuses mirrors then.
 * Freed by:      the driver, after hmm_device_unregister() returned 0, which
 *                waits for the last reference.
 */

static void hmm_device_unused(struct kref *kref)
{
	struct hmm_device *device = container_of(kref, struct hmm_device, kref);

	/* On the waiter's stack: @device may be gone before this returns */
	complete(device->unused);
}

static void hmm_device_put(struct hmm_device *device)
{
	kref_put(&device->kref, hmm_device_unused);
}

/* Registered, unplugged or not: there is a lock, and a reference of the driver. */
static bool hmm_device_is_there(struct hmm_device *device)
{
	/* Pairs with the release in __hmm_device_register() */
	unsigned int state = smp_load_acquire(&device->state);

	return state == HMM_DEVICE_REGISTERED || state == HMM_DEVICE_UNPLUGGED;
}

/* NULL if @device is not there; needs no lock that may not be there either. */
static struct hmm_device *hmm_device_get(struct hmm_device *device)
{
	if (!hmm_device_is_there(device) ||
	    !kref_get_unless_zero(&device->kref))
		return NULL;

	/*
	 * The reference may be one of a registration later than the state that
	 * was seen; its lock need not be visible then. Now the state is at
	 * least as late.
	 */
	smp_mb__after_atomic();
	if (hmm_device_is_there(device))
		return device;

	hmm_device_put(device);
	return NULL;
}

/*
 * References on a mirror
 *
 * Created by:    hmm_mirror_link(), with one reference, of its users, and one user,
 *                the registration, until hmm_mirror_unregister() or _async().
 * Pinned by:     hmm_mirror_get() and hmm_mirror_find() of the driver, by a
 *                reference; mm exit, unplug, kill and mirror->work, as users.
 * Found by:      hmm_first_mirror(), hmm_mirror_find(), under hmm_srcu;
 *                hmm_device_first_mirror(), under hmm_device::lock.
 * Pins:          mm_count and the device, until hmm_mirror_finish().
 * Dead when:     unlinked from hmm::mirrors and hmm_device::mirrors, by the owner
 *                of the release: nobody finds it from then on.
 * Freed by:      hmm_mirror_finish(), after the last reference is dropped, and nobody
 *                walks or a grace period of hmm_srcu since the unlink has passed.
 */

static bool hmm_mirror_use(struct hmm_mirror *mirror)
{
	return refcount_inc_not_zero(&mirror->users);
}

/* The end of the last reference: nobody has or can find one. See below. */
static void hmm_mirror_finish(struct hmm_mirror *mirror);

static void hmm_mirror_free_work(struct work_struct *work)
{
	struct hmm_mirror *mirror = container_of(work, struct hmm_mirror, work);
	int step = mirror->step;

	hmm_mirror_finish(mirror);
	hmm_step_end(step);
}

/*
 * The last reference is gone, and mirror->step has begun: it is that of ->free().
 * A function of its own: the workqueue takes a work item that is queued with the
 * same address and function for one that runs, and puts it behind that. A release
 * is not to wait for the ->free() of the mirror that had its memory before.
 */
static void hmm_mirror_queue_free(struct kref *kref)
{
	struct hmm_mirror *mirror = container_of(kref, struct hmm_mirror, kref);

	INIT_WORK(&mirror->work, hmm_mirror_free_work);
	queue_work(hmm_free_wq, &mirror->work);
}

static void hmm_mirror_unused(struct kref *kref);

static void hmm_mirror_unuse(struct hmm_mirror *mirror)
{
	int step;

	if (!refcount_dec_and_test(&mirror->users))
		return;

	/* Both pair with the kref_init() in hmm_mirror_init() */
	if (!mirror->async) {
		kref_put(&mirror->kref, hmm_mirror_unused);
		return;
	}
	/*
	 * ->free() is due since hmm_mirror_unregister_async() unless a driver
	 * has a reference. So it goes on with that step: a new one would be too
	 * late for a hmm_synchronize() that has begun.
	 */
	step = mirror->step;
	if (!kref_put(&mirror->kref, hmm_mirror_queue_free))
		hmm_step_end(step);
}

static void hmm_mirror_unused(struct kref *kref)
{
	struct hmm_mirror *mirror = container_of(kref, struct hmm_mirror, kref);
	struct completion *unused = mirror->unused;

	/* ->free() is due now, whoever runs it */
	mirror->step = hmm_step_begin();
	if (unused)
		/* On the waiter's stack: @mirror may be gone before this returns */
		complete(unused);
	else
		hmm_mirror_queue_free(kref);
}

/**
 * hmm_mirror_get() - Take a reference on a mirror.
 * @mirror: A mirror that the caller has a reference on, or that is registered
 *	and cannot be unregistered meanwhile.
 *
 * Until the reference is dropped by hmm_mirror_put(), hmm_mirror_unregister()
 * does not return, ->free() is not called and the memory of @mirror stays. A
 * reference keeps no release away: @mirror may be released at any time.
 *
 * Context: Any context but NMI.
 * Return: @mirror.
 */
struct hmm_mirror *hmm_mirror_get(struct hmm_mirror *mirror)
{
	kref_get(&mirror->kref);
	return mirror;
}
EXPORT_SYMBOL_GPL(hmm_mirror_get);

/**
 * hmm_mirror_put() - Drop a reference on a mirror.
 * @mirror: A mirror that the caller has a reference on.
 *
 * From this call on the caller may not touch @mirror. If it was the last reference
 * after hmm_mirror_unregister_async(), ->free() is called soon, in a worker;
 * hmm_synchronize() waits for that. A put too many is refused if there is no other
 * reference that it could take, and warns, once a boot.
 *
 * Context: Any context but NMI. Never sleeps, takes no lock that a driver could
 * hold.
 */
void hmm_mirror_put(struct hmm_mirror *mirror)
{
	if (refcount_dec_not_one(&mirror->kref.refcount))
		return;
	/*
	 * The last one is that of the users, until there are none. Pairs with
	 * refcount_dec_and_test() in hmm_mirror_unuse(), which comes before the
	 * users' reference is dropped.
	 */
	smp_acquire__after_ctrl_dep();
	if (WARN_ONCE(refcount_read(&mirror->users),
		      "%s() of what was not taken\n", __func__))
		return;
	kref_put(&mirror->kref, hmm_mirror_unused);
}
EXPORT_SYMBOL_GPL(hmm_mirror_put);

/*
 * What HMM keeps about an mm
 */

static struct hmm_bucket *hmm_bucket_of(struct mm_struct *mm)
{
	return &hmm_table[hash_ptr(mm, HMM_TABLE_BITS)];
}

/*
 * The removal waits for the invalidation that runs, which at exit is the one that
 * got us here, and elsewhere may be as slow as any other driver of this mm likes:
 * neither is a thing that an unregister should wait for. For the first, it comes a
 * moment later; for the second, each is work of its own.
 */
static void hmm_free_work(struct work_struct *work)
{
	struct hmm *hmm = container_of(work, struct hmm, free_work);

	mmu_interval_notifier_remove(&hmm->notifier);
	kfree_rcu(hmm, rcu);
	hmm_count(hmms, -1);
}

static void hmm_unused(struct kref *kref)
{
	struct hmm *hmm = container_of(kref, struct hmm, kref);
	struct hmm_bucket *bucket = hmm_bucket_of(hmm->mm);
	unsigned long flags;

	hmm_point(HMM_POINT_MM_UNUSED, NULL);
	spin_lock_irqsave(&bucket->lock, flags);
	/* Not hashed if another thread was quicker in hmm_get() */
	hlist_del_init_rcu(&hmm->node);
	spin_unlock_irqrestore(&bucket->lock, flags);

	hmm_lazy_add(&hmm->lazy, raw_cpu_ptr(&hmm_lazy.hmms));
}

static void hmm_put(struct hmm *hmm)
{
	kref_put(&hmm->kref, hmm_unused);
}

/* Needs RCU or the lock of the bucket. Returns a reference, or NULL. */
static struct hmm *hmm_find(struct hmm_bucket *bucket, struct mm_struct *mm)
{
	struct hmm *hmm;

	/*
	 * One whose references are gone may still be there, beside its
	 * successor. It pins mm until it is unhashed, so that an equal mm
	 * pointer means the same address space.
	 */
	hlist_for_each_entry_rcu(hmm, &bucket->hmms, node,
				 lockdep_is_held(&bucket->lock))
		if (hmm->mm == mm && kref_get_unless_zero(&hmm->kref))
			return hmm;

	return NULL;
}

/*
 * Pins: mm_users that HMM has, for hmm_mirror_mm_get() and hmm_mirror_register().
 * They are refused once only they are left of mm_users: those who pin in turn cannot
 * keep the memory of a process that is gone. Each has a reference on @hmm, by which
 * hmm_unpin() finds it.
 */

/* For @mirror, if there is one. Consumes a reference on @hmm if it returns true. */
static bool hmm_pin(struct hmm *hmm, struct hmm_mirror *mirror)
{
	struct mm_struct *mm = hmm->mm;
	unsigned long flags;
	bool pinned;

	/* The lock makes mm_pins and what they add to mm_users change as one */
	spin_lock_irqsave(&hmm->lock, flags);
	pinned = (!mirror ||
		  READ_ONCE(mirror->reason) == HMM_RELEASE_NONE) &&
		 atomic_read(&mm->mm_users) > hmm->mm_pins &&
		 mmget_not_zero(mm);
	if (pinned) {
		hmm->mm_pins++;
		if (mirror)
			mirror->mm_pins++;
	}
	spin_unlock_irqrestore(&hmm->lock, flags);

	return pinned;
}

/*
 * Not mmput(): if this is the last user exit must not run here, where the caller
 * may hold what ->release() needs, or be one that it waits for. False if @mirror
 * has no pin.
 */
static bool hmm_unpin(struct hmm *hmm, struct hmm_mirror *mirror)
{
	unsigned long flags;
	bool pinned;

	spin_lock_irqsave(&hmm->lock, flags);
	pinned = !mirror || mirror->mm_pins;
	if (pinned) {
		hmm->mm_pins--;
		if (mirror)
			mirror->mm_pins--;
		mmput_async(hmm->mm);
	}
	spin_unlock_irqrestore(&hmm->lock, flags);
	if (pinned)
		hmm_put(hmm);

	return pinned;
}

/*
 * Releases
 */

static bool hmm_mirror_own(struct hmm_mirror *mirror,
			   enum hmm_release_reason reason)
{
	return cmpxchg(&mirror->reason, HMM_RELEASE_NONE, reason) ==
	       HMM_RELEASE_NONE;
}

/*
 * hmm_synchronize() is to wait for the release of @mirror, whoever owns it: give
 * the owner a step to end. If it has one, that was begun earlier and will do.
 */
static void hmm_mirror_due(struct hmm_mirror *mirror)
{
	int step = hmm_step_begin();

	if (atomic_cmpxchg(&mirror->due, HMM_NOT_DUE, step) != HMM_NOT_DUE)
		hmm_step_end(step);
}

/* Owner of the release only. Nobody finds @mirror any more afterwards. */
static void hmm_mirror_unlink(struct hmm_mirror *mirror)
{
	struct hmm_device *device = mirror->device;
	struct hmm *hmm = rcu_dereference_protected(mirror->hmm, true);
	unsigned long flags;

	spin_lock_irqsave(&device->lock, flags);
	list_move_tail(&mirror->device_node, &device->released);
	spin_unlock_irqrestore(&device->lock, flags);

	spin_lock_irqsave(&hmm->lock, flags);
	list_del_rcu(&mirror->node);
	spin_unlock_irqrestore(&hmm->lock, flags);
	/*
	 * No grace period is begun: one that is not expedited would be in the
	 * way of the one that hmm_mirror_finish() expedites.
	 */
	mirror->unlink_gp = get_state_synchronize_srcu(&hmm_srcu);

	RCU_INIT_POINTER(mirror->hmm, NULL);
	/* Pairs with the kref_get() in hmm_mirror_init() */
	hmm_put(hmm);
}

/*
 * For the owner, who is a user and stays one until this returned: complete_all()
 * may touch @mirror after the waiters it woke have gone.
 */
static void hmm_mirror_release(struct hmm_mirror *mirror)
{
	struct hmm_device *device = mirror->device;
	struct hmm_callback callback;
	ktime_t start = ktime_get();
	int step;

	hmm_point(HMM_POINT_RELEASE_OWNED, mirror);
	hmm_callback_enter(&callback, device, "->release()");
	device->ops->release(mirror);
	hmm_callback_exit(&callback);
	hmm_point(HMM_POINT_RELEASE_RETURNED, mirror);
	trace_hmm_release(device->name, mirror, mirror->mm,
			  READ_ONCE(mirror->reason),
			  ktime_to_ns(ktime_sub(ktime_get(), start)));

	hmm_mirror_unlink(mirror);
	complete_all(&mirror->released);
	step = atomic_xchg(&mirror->due, HMM_RELEASED);
	if (step >= 0)
		hmm_step_end(step);
}

/* For the owner, who is a user; the work becomes one, and owner in its stead. */
static void hmm_mirror_queue_release(struct hmm_mirror *mirror,
				     struct workqueue_struct *wq)
{
	refcount_inc(&mirror->users);
	/* Only once for each mirror, and see hmm_mirror_steal() */
	WARN_ON_ONCE(!queue_work(wq, &mirror->work));
}

/*
 * Take a release that is queued, and that no worker has begun; its user comes with
 * it. Not cancel_work() alone: on work that is idle that looks, for a moment, as if
 * it was pending, to a queue_work() that does nothing then. What is pending is
 * queued already, and a release is queued once; ->free() is not while there are
 * users, of whom the caller is one.
 */
static bool hmm_mirror_steal(struct hmm_mirror *mirror)
{
	return work_pending(&mirror->work) && cancel_work(&mirror->work);
}

/*
 * The releases of an exit
 *
 * They are to run side by side, as any of them may sleep; but most do not, and then a
 * worker for each costs more than all of them. So there is only one on its way at a
 * time, the standby, with a release of its own. Who runs a release sees to it, before it
 * calls the driver, that there is a standby: so if a release sleeps there is somebody
 * for the next one. The task that exits goes on to what nobody owns; if no release sleeps
 * it is through with most of them before the workers begin.
 *
 * A worker has one release and ends. The workqueue takes work with the same address and
 * function for the one that runs, and puts it behind that: who is given the memory of
 * the mirror next is not to wait for the releases of others.
 */

/* Own a release that nobody owns yet. The caller becomes a user. */
static struct hmm_mirror *hmm_mm_exit_next(struct hmm *hmm)
{
	struct hmm_mirror *mirror, *next = NULL;
	int idx;

	idx = hmm_walk_begin();
	list_for_each_entry_srcu(mirror, &hmm->mirrors, node,
				 srcu_read_lock_held(&hmm_srcu)) {
		hmm_point(HMM_POINT_EXIT_WALK, mirror);
		if (READ_ONCE(mirror->reason) != HMM_RELEASE_NONE ||
		    !hmm_mirror_use(mirror))
			continue;
		hmm_point(HMM_POINT_EXIT_FOUND, mirror);
		if (hmm_mirror_own(mirror, HMM_RELEASE_MM_EXIT)) {
			next = mirror;
			break;
		}
		hmm_mirror_unuse(mirror);
	}
	hmm_walk_end(idx);

	return next;
}

static void hmm_mm_exit_standby(struct hmm *hmm)
{
	struct hmm_mirror *mirror;

	/* Looked at first, as it is there nearly always */
	if (READ_ONCE(hmm->standby) || xchg(&hmm->standby, 1))
		return;

	mirror = hmm_mm_exit_next(hmm);
	if (mirror) {
		hmm_mirror_queue_release(mirror, hmm_many_wq);
		hmm_mirror_unuse(mirror);
	} else {
		WRITE_ONCE(hmm->standby, 0);
	}
}

/*
 * For the owner of a release that was the standby's: it has begun, or this was taken
 * from it. The next one is needed. @mirror is linked, and so keeps its struct hmm.
 */
static void hmm_mm_exit_standby_gone(struct hmm_mirror *mirror)
{
	struct hmm *hmm = rcu_dereference_protected(mirror->hmm, true);

	WRITE_ONCE(hmm->standby, 0);
	hmm_mm_exit_standby(hmm);
}

/*
 * Returns when ->release() has, whoever owns the release. If that is the work and
 * no worker has begun with it, runs it here. The caller is a user.
 */
static void hmm_mirror_settle(struct hmm_mirror *mirror)
{
	unsigned long start = jiffies;
	unsigned long report = start + hmm_report_after();

	hmm_point(HMM_POINT_RELEASE_WAIT, mirror);
	while (!try_wait_for_completion(&mirror->released)) {
		/* It may be among what is gathered, and have no worker to come */
		if (READ_ONCE(mirror->async))
			hmm_lazy_drain();
		if (hmm_mirror_steal(mirror)) {
			if (READ_ONCE(mirror->reason) ==
			    HMM_RELEASE_MM_EXIT)
				hmm_mm_exit_standby_gone(mirror);
			hmm_mirror_release(mirror);
			/* Pairs with hmm_mirror_queue_release() */
			hmm_mirror_unuse(mirror);
			return;
		}
		/* The owner may be about to queue it: look again */
		if (wait_for_completion_timeout(&mirror->released,
						HMM_STEAL_AGAIN))
			return;
		if (time_after(jiffies, report)) {
			hmm_report_wait(start, mirror->device->name,
					"->release()");
			report = jiffies + hmm_report_after();
		}
	}
}

static void hmm_mirror_release_work(struct work_struct *work)
{
	struct hmm_mirror *mirror = container_of(work, struct hmm_mirror, work);

	if (READ_ONCE(mirror->reason) == HMM_RELEASE_MM_EXIT)
		hmm_mm_exit_standby_gone(mirror);
	hmm_mirror_release(mirror);
	/* Pairs with hmm_mirror_queue_release() */
	hmm_mirror_unuse(mirror);
}

/*
 * mm exit
 */

/* The caller becomes a user. */
static struct hmm_mirror *hmm_first_mirror(struct hmm *hmm)
{
	struct hmm_mirror *mirror, *found = NULL;
	int idx;

	idx = hmm_walk_begin();
	list_for_each_entry_srcu(mirror, &hmm->mirrors, node,
				 srcu_read_lock_held(&hmm_srcu)) {
		if (hmm_mirror_use(mirror)) {
			found = mirror;
			break;
		}
	}
	hmm_walk_end(idx);

	return found;
}

/*
 * Removal path B. mm_users is zero: no mirror is added any more, see
 * hmm_mirror_register(). The notifier, and with it @hmm, stays until this returned:
 * mmu_interval_notifier_remove() in hmm_free_work() waits for that. Each turn of the
 * second loop sees a mirror unlinked.
 */
static void hmm_mm_exit(struct hmm *hmm)
{
	struct hmm_mirror *mirror;

	while ((mirror = hmm_mm_exit_next(hmm))) {
		hmm_mm_exit_standby(hmm);
		hmm_mirror_release(mirror);
		hmm_point(HMM_POINT_EXIT_DONE, mirror);
		hmm_mirror_unuse(mirror);
		hmm_point(HMM_POINT_EXIT_DROPPED, NULL);
	}

	while ((mirror = hmm_first_mirror(hmm))) {
		hmm_mirror_settle(mirror);
		hmm_point(HMM_POINT_EXIT_DONE, mirror);
		hmm_mirror_unuse(mirror);
		hmm_point(HMM_POINT_EXIT_DROPPED, NULL);
	}
}

/*
 * Whole address space events reach the last page too: the end of the mm, from
 * __mmu_notifier_release() in mm/mmu_notifier.c, and clear_refs of procfs. Nobody
 * reads under this notifier, so there is no sequence to advance.
 */
static bool hmm_notifier_invalidate(struct mmu_interval_notifier *notifier,
				    const struct mmu_notifier_range *range,
				    unsigned long cur_seq)
{
	if (range->event == MMU_NOTIFY_RELEASE)
		hmm_mm_exit(container_of(notifier, struct hmm, notifier));
	return true;
}

static const struct mmu_interval_notifier_ops hmm_notifier_ops = {
	.invalidate = hmm_notifier_invalidate,
};

/*
 * The caller has mm_users. Not in the table yet.
 *
 * While an invalidation runs, of whatever range and for whatever driver, the
 * notifier is only queued for the interval tree. mn_itree_release() would not find
 * it there, and exit would pass by without a release if it came before the end of
 * that invalidation. mmu_interval_read_begin() waits for that end.
 */
static struct hmm *hmm_create(struct mm_struct *mm)
{
	struct hmm *hmm;
	int ret;

	hmm = kzalloc(sizeof(*hmm), GFP_KERNEL_ACCOUNT);
	if (!hmm)
		return ERR_PTR(-ENOMEM);

	hmm->mm = mm;
	/* The caller's, see hmm_get() */
	hmm->mm_pins = 1;
	kref_init(&hmm->kref);
	spin_lock_init(&hmm->lock);
	INIT_LIST_HEAD(&hmm->mirrors);
	INIT_HLIST_NODE(&hmm->node);
	INIT_WORK(&hmm->free_work, hmm_free_work);

	ret = mmu_interval_notifier_insert(&hmm->notifier, mm, HMM_LAST_PAGE,
					   PAGE_SIZE, &hmm_notifier_ops);
	if (ret) {
		kfree(hmm);
		return ERR_PTR(ret);
	}
	mmu_interval_read_begin(&hmm->notifier);

	hmm_count(hmms, 1);
	return hmm;
}

/*
 * The one struct hmm of @mm, with a pin: see hmm_pin(). Threads that come first
 * together each make one, as arming may wait for mmap_lock and must not hold up
 * other address spaces; one is kept.
 */
static struct hmm *hmm_get(struct mm_struct *mm)
{
	struct hmm_bucket *bucket = hmm_bucket_of(mm);
	struct hmm *hmm, *created;
	unsigned long flags;

	rcu_read_lock();
	hmm = hmm_find(bucket, mm);
	rcu_read_unlock();
	if (hmm) {
		if (hmm_pin(hmm, NULL))
			return hmm;
		hmm_put(hmm);
		return ERR_PTR(-ESRCH);
	}

	if (!mmget_not_zero(mm))
		return ERR_PTR(-ESRCH);
	created = hmm_create(mm);
	if (IS_ERR(created)) {
		mmput_async(mm);
		return created;
	}
	hmm_point(HMM_POINT_REGISTER_CREATED, NULL);

	spin_lock_irqsave(&bucket->lock, flags);
	hmm = hmm_find(bucket, mm);
	if (hmm) {
		/* It goes with the pin that @created was made with */
		spin_lock(&hmm->lock);
		hmm->mm_pins++;
		spin_unlock(&hmm->lock);
	} else {
		hlist_add_head_rcu(&created->node, &bucket->hmms);
	}
	spin_unlock_irqrestore(&bucket->lock, flags);
	if (!hmm)
		return created;

	hmm_put(created);
	return hmm;
}

/*
 * Mirrors: the driver's side
 */

/*
 * Nobody has a reference, and once no walk is left that began before the unlink nobody
 * looks whether there is a user. The device goes last: with its reference dropped, the module of
 * the driver may be unloaded.
 */
static void hmm_mirror_finish(struct hmm_mirror *mirror)
{
	struct hmm_device *device = mirror->device;
	struct mm_struct *mm = mirror->mm;
	struct hmm_callback callback;
	unsigned long flags;

	if (!hmm_nobody_walks() &&
	    !poll_state_synchronize_srcu(&hmm_srcu, mirror->unlink_gp))
		synchronize_srcu_expedited(&hmm_srcu);

	spin_lock_irqsave(&device->lock, flags);
	list_del(&mirror->device_node);
	spin_unlock_irqrestore(&device->lock, flags);
	trace_hmm_free(device->name, mirror, mm);

	mirror->mm = NULL;
	/* Pairs with the cmpxchg() in hmm_mirror_register() */
	smp_store_release(&mirror->device, NULL);
	if (device->ops->free) {
		hmm_callback_enter(&callback, device, "->free()");
		device->ops->free(mirror);
		hmm_callback_exit(&callback);
	}

	/* Pairs with the mmgrab() in hmm_mirror_link() */
	mmdrop(mm);
	hmm_count(mirrors, -1);
	hmm_point(HMM_POINT_DEVICE_PUT, NULL);
	hmm_device_put(device);
	hmm_point(HMM_POINT_DEVICE_DROPPED, NULL);
}

static void hmm_mirror_init(struct hmm_mirror *mirror, struct mm_struct *mm,
			    struct hmm *hmm)
{
	/* Pairs with the mmdrop() in hmm_mirror_finish() */
	mmgrab(mm);
	mirror->mm = mm;
	mirror->mm_pins = 0;
	/* Pairs with the hmm_put() in hmm_mirror_unlink() */
	kref_get(&hmm->kref);
	RCU_INIT_POINTER(mirror->hmm, hmm);
	mirror->since = jiffies;
	mirror->async = false;
	mirror->unused = NULL;
	kref_init(&mirror->kref);
	refcount_set(&mirror->users, 1);
	atomic_set(&mirror->due, HMM_NOT_DUE);
	init_completion(&mirror->released);
	INIT_WORK(&mirror->work, hmm_mirror_release_work);
	WRITE_ONCE(mirror->reason, HMM_RELEASE_NONE);
}

/* From here on mm exit and unplug find it, and hmm_device_unregister() is -EBUSY. */
static int hmm_mirror_link(struct hmm_mirror *mirror, struct hmm_device *device,
			   struct mm_struct *mm, struct hmm *hmm)
{
	int ret = 0;
	unsigned long flags;

	spin_lock_irqsave(&device->lock, flags);
	if (device->state != HMM_DEVICE_REGISTERED) {
		ret = -ENODEV;
	} else if (device->nr_registered == HMM_DEVICE_MAX_MIRRORS) {
		ret = -EOVERFLOW;
	} else {
		hmm_mirror_init(mirror, mm, hmm);
		WRITE_ONCE(device->nr_registered, device->nr_registered + 1);
		list_add_tail(&mirror->device_node, &device->mirrors);
		spin_lock(&hmm->lock);
		list_add_tail_rcu(&mirror->node, &hmm->mirrors);
		spin_unlock(&hmm->lock);
		hmm_count(mirrors, 1);
		trace_hmm_register(device->name, mirror, mm);
		/* Pairs with the xchg() in hmm_mirror_own_registration() */
		smp_store_release(&mirror->registered, 1);
	}
	spin_unlock_irqrestore(&device->lock, flags);

	return ret;
}

/*
 * The other end of hmm_mirror_link(), in two steps. The first owns the end of the
 * registration, and with it mirror->device; before it that need not be there.
 */
static bool hmm_mirror_own_registration(struct hmm_mirror *mirror)
{
	return xchg(&mirror->registered, 0);
}

static void hmm_device_forget(struct hmm_device *device)
{
	unsigned long flags;

	spin_lock_irqsave(&device->lock, flags);
	WRITE_ONCE(device->nr_registered, device->nr_registered - 1);
	spin_unlock_irqrestore(&device->lock, flags);
}

/**
 * hmm_mirror_register() - Mirror an address space on a device.
 * @mirror: Zeroed memory, or a mirror whose hmm_mirror_unregister() returned.
 * @device: Must stay until this returned, registered or not.
 * @mm: Any address space that the caller has mm_count of: current->mm, or that
 *	of another process.
 *
 * Once this returns 0, @mirror is registered: until hmm_mirror_unregister() or
 * hmm_mirror_unregister_async() is called, its mm_count reference keeps @mm from
 * being freed (not from exiting: mm_users is not held), and
 * hmm_device_unregister() of @device fails. From any time on that this runs,
 * ->release() may: the process may die at once. That does not end the
 * registration.
 *
 * A mirror belongs to @mm alone. A child that the process forks has none, and
 * exec ends the address space like exit does. Several mirrors of one device on
 * one mm are allowed.
 *
 * If this fails nothing is left behind, and ->release() was not called.
 *
 * Context: Process context. May sleep. The caller may not hold mmap_lock: the
 * first mirror of an mm takes it for write, and mm_take_all_locks() of mm/vma.c in
 * it. It also waits for the invalidation of @mm that runs, so the caller may hold
 * no lock that an invalidate callback of any driver takes, or reclaim.
 * Return:
 * * 0 - @mirror is registered.
 * * %-EINVAL - @mirror, @device or @mm is NULL; current->mm is, in a kernel
 *   thread.
 * * %-ENODEV - @device is not registered, or no longer.
 * * %-EBUSY - @mirror is registered already; that registration is unchanged.
 * * %-ESRCH - @mm has no user left, its last thread exited or went on to exec; or
 *   none but hmm_mirror_mm_get() and other calls of this.
 * * %-EINTR - A signal was pending while the first mirror of @mm was armed.
 * * %-EOVERFLOW - @device has as many mirrors as can be counted.
 * * %-ENOMEM - No memory.
 */
int hmm_mirror_register(struct hmm_mirror *mirror, struct hmm_device *device,
			struct mm_struct *mm)
{
	struct hmm *hmm;
	int ret;

	might_sleep();
	if (!mirror || !device || !mm)
		return -EINVAL;
	if (!hmm_device_get(device))
		return -ENODEV;
	/* Looked at first, so that one that is registered is not written to */
	if (READ_ONCE(mirror->device))
		goto err_busy;
	hmm_point(HMM_POINT_REGISTER_OWN, NULL);
	if (cmpxchg(&mirror->device, NULL, device))
		goto err_busy;
	hmm_callback_waits_for_mmap_lock(device, mm);

	hmm = hmm_get(mm);
	ret = PTR_ERR_OR_ZERO(hmm);
	if (!ret) {
		hmm_point(HMM_POINT_REGISTER_ARMED, mirror);
		ret = hmm_mirror_link(mirror, device, mm, hmm);
		hmm_point(HMM_POINT_REGISTER_LINKED, NULL);
		/*
		 * Pairs with hmm_get(). Not before @mirror is linked: mm exit comes
		 * before all of this, or finds @mirror.
		 */
		hmm_unpin(hmm, NULL);
	}
	if (!ret)
		return 0;

	/* Pairs with the cmpxchg() above */
	smp_store_release(&mirror->device, NULL);
	hmm_device_put(device);
	return ret;

err_busy:
	hmm_device_put(device);
	return -EBUSY;
}
EXPORT_SYMBOL_GPL(hmm_mirror_register);

/**
 * hmm_mirror_unregister() - Release a mirror and wait until it is unused.
 * @mirror: A registered mirror.
 *
 * Once this returns:
 *
 * * ->release() has returned, whoever ran it: this, or mm exit before or beside
 *   it. It has run exactly once since hmm_mirror_register().
 * * No callback of @mirror runs or will run, on any CPU, and nothing in HMM looks
 *   at @mirror: the fence is a strong one.
 * * Every reference of hmm_mirror_get() was dropped.
 * * The mm_count reference of @mirror is dropped, and so is its device.
 * * If the device has ->free(), that has returned too, and the caller may not
 *   touch @mirror. If not, the caller may free it, or register it again.
 *
 * This does not depend on current->mm: whoever closes the last descriptor may
 * call it, the mm dead or alive. It waits for callbacks and references of @mirror
 * alone, not for those of other mirrors, devices or processes.
 *
 * The caller must see to it that nobody takes a new reference, and may hold none
 * itself: this would wait for ever. Waits that take long are reported in the
 * kernel log with the name of the device. Calling this from a callback, twice, or
 * for a mirror that is not registered does nothing, and warns, once a boot.
 *
 * Context: Process context. May sleep. The caller may hold no lock that
 * ->release() or ->free() takes or waits for, nor mmap_lock, nor one that is taken
 * under mmap_lock, as most ->release() wait for a worker that faults; lockdep knows.
 */
void hmm_mirror_unregister(struct hmm_mirror *mirror)
{
	DECLARE_COMPLETION_ONSTACK(unused);
	struct hmm_device *device;
	ktime_t start = ktime_get();
	int step;

	might_sleep();
	if (WARN_ONCE(hmm_in_callback(),
		      "%s() in a callback of HMM\n", __func__))
		return;
	if (WARN_ONCE(!hmm_mirror_own_registration(mirror),
		      "%s() of an unregistered mirror\n", __func__))
		return;
	device = READ_ONCE(mirror->device);
	hmm_device_forget(device);
	hmm_callback_might_wait(device);

	if (hmm_mirror_own(mirror, HMM_RELEASE_UNREGISTER))
		hmm_mirror_release(mirror);
	else
		hmm_mirror_settle(mirror);

	mirror->unused = &unused;
	hmm_point(HMM_POINT_UNREGISTER_WAIT, mirror);
	/* Pairs with the refcount_set() in hmm_mirror_init() */
	hmm_mirror_unuse(mirror);
	hmm_wait(&unused, device->name, "references to a mirror");
	trace_hmm_unregister(device->name, mirror, mirror->mm,
			     ktime_to_ns(ktime_sub(ktime_get(), start)));
	/* Pairs with hmm_mirror_unused() */
	step = mirror->step;
	hmm_mirror_finish(mirror);
	hmm_step_end(step);
}
EXPORT_SYMBOL_GPL(hmm_mirror_unregister);

/**
 * hmm_mirror_unregister_async() - Release and free a mirror, without waiting.
 * @mirror: A registered mirror of a device that has ->free().
 *
 * ->release() is called soon, in a worker, if it was not before: what comes within a
 * jiffy is done together, unless somebody waits for it. ->free() is called
 * after it returned and every reference of hmm_mirror_get() was dropped. From this
 * call on the caller may not touch @mirror, unless it has a reference. @mirror no
 * longer keeps hmm_device_unregister() from succeeding, which waits for ->free().
 *
 * hmm_synchronize() waits for the callbacks. Calling this twice, for a mirror that
 * is not registered or for one whose device has no ->free() does nothing, and
 * warns, once a boot.
 *
 * Context: Process context, atomic or not, callbacks of HMM and of mmu_notifier
 * included. Does not sleep. (PREEMPT_RT: not under a raw spinlock.)
 */
void hmm_mirror_unregister_async(struct hmm_mirror *mirror)
{
	struct hmm_device *device;

	if (WARN_ONCE(!hmm_mirror_own_registration(mirror),
		      "%s() of an unregistered mirror\n", __func__))
		return;
	device = READ_ONCE(mirror->device);
	if (WARN_ONCE(!device->ops->free,
		      "%s() on a device without ->free()\n", __func__)) {
		/* Pairs with the xchg() in hmm_mirror_own_registration() */
		smp_store_release(&mirror->registered, 1);
		return;
	}

	hmm_device_forget(device);
	trace_hmm_unregister(device->name, mirror, mirror->mm, 0);
	mirror->step = hmm_step_begin();
	/* Ordered for those who wait by the cmpxchg() in hmm_mirror_own() */
	WRITE_ONCE(mirror->async, true);
	hmm_point(HMM_POINT_ASYNC_OWN, mirror);
	if (hmm_mirror_own(mirror, HMM_RELEASE_UNREGISTER)) {
		/* For hmm_mirror_release_work(), see hmm_mirror_queue_release() */
		refcount_inc(&mirror->users);
		hmm_lazy_add(&mirror->lazy, raw_cpu_ptr(&hmm_lazy.mirrors));
	}
	/* Pairs with the refcount_set() in hmm_mirror_init() */
	hmm_mirror_unuse(mirror);
}
EXPORT_SYMBOL_GPL(hmm_mirror_unregister_async);

/**
 * hmm_mirror_kill() - Release a mirror whose device failed.
 * @mirror: A mirror that the caller has a reference on, or that is registered and
 *	cannot be unregistered meanwhile.
 *
 * ->release() is called soon, in a worker, with reason %HMM_RELEASE_ERROR, unless
 * something else was quicker to release @mirror. @mirror stays registered.
 * hmm_synchronize() waits for ->release().
 *
 * Context: Any context but NMI. Does not sleep.
 */
void hmm_mirror_kill(struct hmm_mirror *mirror)
{
	bool owner;

	/* No user: unregistered, so released */
	if (!hmm_mirror_use(mirror))
		return;
	owner = hmm_mirror_own(mirror, HMM_RELEASE_ERROR);
	hmm_point(HMM_POINT_KILL_OWN, mirror);
	hmm_mirror_due(mirror);
	if (owner)
		hmm_mirror_queue_release(mirror, hmm_release_wq);
	hmm_mirror_unuse(mirror);
}
EXPORT_SYMBOL_GPL(hmm_mirror_kill);

/**
 * hmm_synchronize() - Wait for what other calls left to workers.
 *
 * Once this returns, every ->release() and ->free() has returned that was due
 * because of an hmm_mirror_unregister_async(), an hmm_mirror_kill() or a last
 * hmm_mirror_put() which returned before this was called, also if mm exit or
 * hmm_device_unplug() did the release; and HMM has let go of each address space
 * whose last mirror was released before, mm_count included. It does not wait for a
 * ->free() that a reference of a driver still keeps away. It may wait for some steps
 * that begin while it runs. It is a barrier for callbacks, not only a grace period: a
 * driver may call it before its module is unloaded. But hmm_device_unregister() waits
 * for the callbacks of its device all by itself.
 *
 * Context: Process context. May sleep. The caller may hold no lock that a callback
 * of any device takes or waits for, that an invalidate callback of any driver takes,
 * or mmap_lock; lockdep knows. In a callback this does nothing, and warns, once a
 * boot.
 */
void hmm_synchronize(void)
{
	might_sleep();
	if (WARN_ONCE(hmm_in_callback(),
		      "%s() in a callback of HMM\n", __func__))
		return;
	lock_map_acquire(&hmm_callback_map);
	lock_map_release(&hmm_callback_map);
	hmm_lazy_drain();
	synchronize_srcu_expedited(&hmm_steps);
	/* What these left of address spaces */
	hmm_lazy_drain();
	flush_workqueue(hmm_mm_wq);
}
EXPORT_SYMBOL_GPL(hmm_synchronize);

/**
 * hmm_mirror_release_reason() - Why a mirror was released.
 * @mirror: A mirror that is registered, that the caller has a reference on, or
 *	that was unregistered and is still allocated.
 *
 * The reason is set just before ->release() is called, and stays until the
 * mirror is registered again. %HMM_RELEASE_NONE is out of date as soon as it is
 * returned, unless the caller keeps mm_users and unregister away.
 *
 * Context: Any context, callbacks included.
 * Return: The reason, or %HMM_RELEASE_NONE if the release has not begun.
 */
enum hmm_release_reason
hmm_mirror_release_reason(const struct hmm_mirror *mirror)
{
	return READ_ONCE(mirror->reason);
}
EXPORT_SYMBOL_GPL(hmm_mirror_release_reason);

/**
 * hmm_mirror_find() - Find the mirror of an address space on a device.
 * @device: A device that stays registered meanwhile.
 * @mm: An address space that the caller has mm_count of.
 *
 * For drivers that get an address space or its PASID from a fault or from another
 * process. Looks at the mirrors of @mm one after the other; if there are several of
 * @device any of them is returned. A mirror whose
 * release has begun is not; one that is returned may be released at any time, but
 * stays until its reference is dropped by hmm_mirror_put().
 *
 * Context: Any context but NMI and hard interrupts. Does not sleep. Takes no lock
 * and writes nothing that other processes share.
 * Return: The mirror with a reference, or NULL.
 */
struct hmm_mirror *hmm_mirror_find(struct hmm_device *device,
				   struct mm_struct *mm)
{
	struct hmm_bucket *bucket = hmm_bucket_of(mm);
	struct hmm_mirror *mirror, *found = NULL;
	struct hmm *hmm;
	int idx;

	idx = hmm_walk_begin();
	rcu_read_lock();
	hlist_for_each_entry_rcu(hmm, &bucket->hmms, node) {
		if (hmm->mm != mm)
			continue;
		hmm_point(HMM_POINT_FIND_WALK, NULL);
		list_for_each_entry_srcu(mirror, &hmm->mirrors, node,
					 srcu_read_lock_held(&hmm_srcu)) {
			if (READ_ONCE(mirror->device) != device ||
			    READ_ONCE(mirror->reason) != HMM_RELEASE_NONE)
				continue;
			hmm_point(HMM_POINT_FIND_FOUND, mirror);
			if (!kref_get_unless_zero(&mirror->kref))
				continue;
			found = mirror;
			goto out;
		}
	}
out:
	rcu_read_unlock();
	hmm_walk_end(idx);

	return found;
}
EXPORT_SYMBOL_GPL(hmm_mirror_find);

/**
 * hmm_mirror_mm_get() - Pin the address space of a mirror.
 * @mirror: A mirror that the caller has a reference on, or that is registered and
 *	cannot be unregistered meanwhile.
 *
 * Once this returns true, the caller has mm_users of the address space until
 * hmm_mirror_mm_put(): it can fault, and exit does not begin. For a worker, who has
 * to drop it soon. This fails once the release of @mirror has begun, and once only
 * pins like this one are left of mm_users: workers that pin in turn cannot keep
 * the memory of a process that is gone.
 *
 * Context: Process context, atomic or not. Does not sleep. (PREEMPT_RT: not under a
 * raw spinlock.)
 * Return: Whether the address space is pinned.
 */
bool hmm_mirror_mm_get(struct hmm_mirror *mirror)
{
	struct hmm *hmm;

	rcu_read_lock();
	hmm = rcu_dereference(mirror->hmm);
	hmm_point(HMM_POINT_PIN_WALK, mirror);
	if (hmm && !kref_get_unless_zero(&hmm->kref))
		hmm = NULL;
	rcu_read_unlock();
	if (!hmm)
		return false;

	if (hmm_pin(hmm, mirror))
		return true;

	hmm_put(hmm);
	return false;
}
EXPORT_SYMBOL_GPL(hmm_mirror_mm_get);

/**
 * hmm_mirror_mm_put() - Unpin the address space of a mirror.
 * @mirror: The mirror of a hmm_mirror_mm_get() that returned true. The caller still
 *	has its reference, but @mirror may be released by now.
 *
 * If this drops the last of mm_users, exit and ->release() run in a worker: the
 * caller may be one that ->release() waits for.
 *
 * Context: Process context, atomic or not. Does not sleep. (PREEMPT_RT: not under a
 * raw spinlock.)
 */
void hmm_mirror_mm_put(struct hmm_mirror *mirror)
{
	struct mm_struct *mm = mirror->mm;
	struct hmm *hmm;
	bool pinned;

	/* mirror->hmm is gone if @mirror was released since */
	rcu_read_lock();
	hmm = hmm_find(hmm_bucket_of(mm), mm);
	rcu_read_unlock();
	pinned = hmm && hmm_unpin(hmm, mirror);
	if (hmm)
		hmm_put(hmm);
	WARN_ONCE(!pinned, "%s() of what is not pinned\n", __func__);
}
EXPORT_SYMBOL_GPL(hmm_mirror_mm_put);

/*
 * Devices
 */

/* Documented as hmm_device_register() in include/linux/hmm.h */
int __hmm_device_register(struct hmm_device *device,
			  const struct hmm_device_ops *ops, const char *name,
			  struct lock_class_key *key)
{
	unsigned long flags;

	if (!device || !ops || !ops->release || !name || !*name)
		return -EINVAL;
	/* Built in, without the memory for it at boot */
	if (!hmm_mm_wq)
		return -ENODEV;
	/* Looked at first, so that one that is registered is not written to */
	if (READ_ONCE(device->state) != HMM_DEVICE_UNREGISTERED)
		return -EBUSY;
	hmm_point(HMM_POINT_DEVICE_OWN, NULL);
	if (cmpxchg(&device->state, HMM_DEVICE_UNREGISTERED,
		    HMM_DEVICE_CHANGING) != HMM_DEVICE_UNREGISTERED)
		return -EBUSY;

	device->ops = ops;
	device->name = name;
	device->nr_registered = 0;
	device->unused = NULL;
	INIT_LIST_HEAD(&device->mirrors);
	INIT_LIST_HEAD(&device->released);
	spin_lock_init(&device->lock);
	kref_init(&device->kref);
	lockdep_init_map(&device->callback_map, "hmm_callback", key, 0);
	spin_lock_irqsave(&hmm_devices_lock, flags);
	list_add_tail(&device->node, &hmm_devices);
	spin_unlock_irqrestore(&hmm_devices_lock, flags);
	hmm_count(devices, 1);
	/* Pairs with the acquire in hmm_device_get() */
	smp_store_release(&device->state, HMM_DEVICE_REGISTERED);

	return 0;
}
EXPORT_SYMBOL_GPL(__hmm_device_register);

/*
 * Own all releases that nobody owns yet; none is added from here on. Returns how many
 * mirrors were not released.
 */
static unsigned int hmm_device_unplug_begin(struct hmm_device *device)
{
	struct hmm_mirror *mirror;
	unsigned int nr = 0;
	unsigned long flags;

	spin_lock_irqsave(&device->lock, flags);
	if (device->state == HMM_DEVICE_REGISTERED)
		WRITE_ONCE(device->state, HMM_DEVICE_UNPLUGGED);
	/*
	 * Who is on this list has a user, at least the owner of its release. So
	 * does who is about to own it: an hmm_mirror_unregister_async() that finds
	 * it owned drops the registration's, which may be the only one.
	 */
	list_for_each_entry(mirror, &device->mirrors, device_node) {
		refcount_inc(&mirror->users);
		if (hmm_mirror_own(mirror, HMM_RELEASE_DEVICE_GONE)) {
			hmm_point(HMM_POINT_UNPLUG_OWNED, mirror);
			hmm_mirror_queue_release(mirror, hmm_many_wq);
		}
		hmm_mirror_unuse(mirror);
		nr++;
	}
	spin_unlock_irqrestore(&device->lock, flags);

	return nr;
}

/* The caller becomes a user. */
static struct hmm_mirror *hmm_device_first_mirror(struct hmm_device *device)
{
	struct hmm_mirror *mirror;
	unsigned long flags;

	spin_lock_irqsave(&device->lock, flags);
	mirror = list_first_entry_or_null(&device->mirrors, struct hmm_mirror,
					  device_node);
	if (mirror)
		refcount_inc(&mirror->users);
	spin_unlock_irqrestore(&device->lock, flags);

	return mirror;
}

/**
 * hmm_device_unplug() - Release all mirrors of a device that is gone.
 * @device: A registered device.
 *
 * Once this returns, every ->release() of @device has returned, whoever ran it;
 * those that this began had reason %HMM_RELEASE_DEVICE_GONE and ran side by side.
 * No new mirror can be registered: hmm_mirror_register() fails with -ENODEV, until
 * @device was unregistered and registered again. The mirrors stay registered until
 * the driver unregisters them, and hmm_device_unregister() fails until then.
 *
 * May be called more than once. In a callback, or on a device that is not
 * registered, this does nothing, and warns, once a boot.
 *
 * Context: Process context. May sleep. The caller may hold no lock that a callback
 * of @device takes or waits for, nor mmap_lock; lockdep knows.
 */
void hmm_device_unplug(struct hmm_device *device)
{
	struct hmm_mirror *mirror;
	ktime_t start = ktime_get();
	unsigned int nr;

	might_sleep();
	if (WARN_ONCE(hmm_in_callback(),
		      "%s() in a callback of HMM\n", __func__))
		return;
	/* The last mirror may be unregistered, and so @device, before this ends */
	if (WARN_ONCE(!hmm_device_get(device),
		      "%s() of an unregistered device\n", __func__))
		return;
	hmm_callback_might_wait(device);

	nr = hmm_device_unplug_begin(device);
	while ((mirror = hmm_device_first_mirror(device))) {
		hmm_mirror_settle(mirror);
		hmm_mirror_unuse(mirror);
	}
	hmm_point(HMM_POINT_UNPLUG_DONE, NULL);
	trace_hmm_unplug(device->name, nr,
			 ktime_to_ns(ktime_sub(ktime_get(), start)));
	hmm_device_put(device);
}
EXPORT_SYMBOL_GPL(hmm_device_unplug);

/* From here on no mirror is registered, and whoever is the last tells @unused. */
static int hmm_device_close(struct hmm_device *device, struct completion *unused)
{
	int ret = 0;
	unsigned long flags;

	spin_lock_irqsave(&device->lock, flags);
	if (!hmm_device_is_there(device)) {
		ret = -EINVAL;
	} else if (device->nr_registered) {
		ret = -EBUSY;
	} else {
		device->unused = unused;
		WRITE_ONCE(device->state, HMM_DEVICE_CHANGING);
	}
	spin_unlock_irqrestore(&device->lock, flags);

	return ret;
}

/**
 * hmm_device_unregister() - Take a device away that has no mirrors.
 * @device: A registered device.
 *
 * If this returns 0, nothing in HMM touches @device, runs a callback of its
 * mirrors or will do so, on any CPU: it may be freed, or registered again, and
 * the module of its driver unloaded, in the next line. No retry or grace period of
 * the caller's is needed: what exit and hmm_mirror_unregister() in other threads
 * still have to do with @device is waited for here. So is an hmm_mirror_register()
 * on its way, which fails. One that comes later fails as well, but needs @device to
 * be there: to keep those away is up to the driver.
 *
 * If this returns an error nothing was changed. -EBUSY means that the driver has
 * mirrors to unregister first. A mirror that mm exit released counts until it is
 * unregistered.
 *
 * Context: Process context. May sleep. The caller may hold no lock that a
 * callback of @device takes or waits for, nor mmap_lock; lockdep knows. In a
 * callback this fails with -EBUSY and warns, once a boot.
 * Return:
 * * 0 - @device belongs to the caller again.
 * * %-EBUSY - A mirror of @device is registered.
 * * %-EINVAL - @device is not registered, or another thread unregisters it; warns,
 *   once a boot.
 */
int hmm_device_unregister(struct hmm_device *device)
{
	DECLARE_COMPLETION_ONSTACK(unused);
	int ret = -EINVAL;
	unsigned long flags;

	might_sleep();
	if (WARN_ONCE(hmm_in_callback(),
		      "%s() in a callback of HMM\n", __func__))
		return -EBUSY;
	/* The lock is one only after registration */
	if (hmm_device_is_there(device)) {
		hmm_callback_might_wait(device);
		hmm_point(HMM_POINT_DEVICE_CLOSE, NULL);
		ret = hmm_device_close(device, &unused);
	}
	WARN_ONCE(ret == -EINVAL,
		  "%s() of an unregistered device\n", __func__);
	if (ret)
		return ret;

	hmm_point(HMM_POINT_DEVICE_WAIT, NULL);
	hmm_lazy_drain();
	/* Pairs with the kref_init() in __hmm_device_register() */
	hmm_device_put(device);
	hmm_wait(&unused, device->name, "mirrors that go");

	spin_lock_irqsave(&hmm_devices_lock, flags);
	list_del(&device->node);
	spin_unlock_irqrestore(&hmm_devices_lock, flags);
	hmm_count(devices, -1);
	/* Pairs with the cmpxchg() in __hmm_device_register() */
	smp_store_release(&device->state, HMM_DEVICE_UNREGISTERED);
	return 0;
}
EXPORT_SYMBOL_GPL(hmm_device_unregister);

/*
 * /sys/kernel/debug/hmm/
 */

static const char * const hmm_device_states[] = {
	[HMM_DEVICE_UNREGISTERED] = "unregistered",
	[HMM_DEVICE_CHANGING] = "going",
	[HMM_DEVICE_REGISTERED] = "registered",
	[HMM_DEVICE_UNPLUGGED] = "unplugged",
};

static const char * const hmm_reasons[] = {
	[HMM_RELEASE_NONE] = "-",
	[HMM_RELEASE_MM_EXIT] = "mm-exit",
	[HMM_RELEASE_UNREGISTER] = "unregister",
	[HMM_RELEASE_DEVICE_GONE] = "device-gone",
	[HMM_RELEASE_ERROR] = "error",
};

static int hmm_debugfs_counts_show(struct seq_file *m, void *unused)
{
	struct hmm_counts sum;

	hmm_counts_sum(&sum);
	seq_printf(m, "devices %ld\nmirrors %ld\naddress_spaces %ld\n",
		   sum.devices, sum.mirrors, sum.hmms);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(hmm_debugfs_counts);

static int hmm_debugfs_devices_show(struct seq_file *m, void *unused)
{
	struct hmm_device *device;
	unsigned long flags;

	seq_puts(m, "device state registered references\n");
	spin_lock_irqsave(&hmm_devices_lock, flags);
	list_for_each_entry(device, &hmm_devices, node)
		seq_printf(m, "%s %s %u %u\n", device->name,
			   hmm_device_states[READ_ONCE(device->state)],
			   READ_ONCE(device->nr_registered),
			   kref_read(&device->kref));
	spin_unlock_irqrestore(&hmm_devices_lock, flags);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(hmm_debugfs_devices);

static void hmm_debugfs_mirrors_of(struct seq_file *m, struct hmm_device *device,
				   struct list_head *mirrors, bool released)
{
	struct hmm_mirror *mirror;

	list_for_each_entry(mirror, mirrors, device_node) {
		enum hmm_release_reason reason = READ_ONCE(mirror->reason);

		if (seq_has_overflowed(m))
			return;
		seq_printf(m, "%s %p %p %s %s %s %u %lu\n", device->name, mirror,
			   mirror->mm,
			   READ_ONCE(mirror->registered) ? "registered" :
							   "unregistered",
			   released ? "released" :
			   reason == HMM_RELEASE_NONE ? "live" : "releasing",
			   hmm_reasons[reason], kref_read(&mirror->kref),
			   (jiffies - mirror->since) / HZ);
	}
}

static int hmm_debugfs_mirrors_show(struct seq_file *m, void *unused)
{
	struct hmm_device *device;
	unsigned long flags;

	seq_puts(m, "device mirror mm registration state reason references age_s\n");
	spin_lock_irqsave(&hmm_devices_lock, flags);
	list_for_each_entry(device, &hmm_devices, node) {
		spin_lock(&device->lock);
		hmm_debugfs_mirrors_of(m, device, &device->mirrors, false);
		hmm_debugfs_mirrors_of(m, device, &device->released, true);
		spin_unlock(&device->lock);
		/* It is shown again, with more room */
		if (seq_has_overflowed(m))
			break;
	}
	spin_unlock_irqrestore(&hmm_devices_lock, flags);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(hmm_debugfs_mirrors);

static void __init hmm_debugfs_init(void)
{
	hmm_debugfs = debugfs_create_dir("hmm", NULL);
	debugfs_create_file("counts", 0400, hmm_debugfs, NULL,
			    &hmm_debugfs_counts_fops);
	debugfs_create_file("devices", 0400, hmm_debugfs, NULL,
			    &hmm_debugfs_devices_fops);
	debugfs_create_file("mirrors", 0400, hmm_debugfs, NULL,
			    &hmm_debugfs_mirrors_fops);
}

static void hmm_destroy_queues(void)
{
	if (hmm_many_wq)
		destroy_workqueue(hmm_many_wq);
	if (hmm_release_wq)
		destroy_workqueue(hmm_release_wq);
	if (hmm_free_wq)
		destroy_workqueue(hmm_free_wq);
	if (hmm_mm_wq)
		destroy_workqueue(hmm_mm_wq);
}

static int __init hmm_init(void)
{
	/*
	 * Unbound, as callbacks may sleep for long; as many at once as can be.
	 * Not WQ_MEM_RECLAIM: a callback that flushes an ordinary queue would be
	 * warned of, and who needs memory back runs its releases itself.
	 */
	hmm_many_wq = alloc_workqueue("hmm_many", WQ_UNBOUND, WQ_MAX_ACTIVE);
	hmm_release_wq = alloc_workqueue("hmm_release", WQ_UNBOUND,
					 WQ_MAX_ACTIVE);
	hmm_free_wq = alloc_workqueue("hmm_free", WQ_UNBOUND, WQ_MAX_ACTIVE);
	/* The last: what says that there is all that devices need */
	if (hmm_many_wq && hmm_release_wq && hmm_free_wq)
		hmm_mm_wq = alloc_workqueue("hmm_mm", WQ_UNBOUND, WQ_MAX_ACTIVE);
	if (!hmm_mm_wq) {
		hmm_destroy_queues();
		return -ENOMEM;
	}
	hmm_debugfs_init();
	return 0;
}

/*
 * Drivers are gone, and with them all mirrors; what is left of their address
 * spaces may be on its way. Once a notifier is removed, exit has left this module.
 * A worker may just have ended the step that a driver waited for.
 */
static void __exit hmm_exit(void)
{
	debugfs_remove_recursive(hmm_debugfs);
	cancel_delayed_work_sync(&hmm_watch);
	/* Its timer first; then what it would have done, which destruction waits for */
	cancel_delayed_work_sync(&hmm_lazy_work);
	hmm_lazy_drain();
	hmm_destroy_queues();
}

subsys_initcall(hmm_init);
module_exit(hmm_exit);

MODULE_DESCRIPTION("Devices that mirror an address space");
MODULE_LICENSE("GPL");
