// SPDX-License-Identifier: GPL-2.0
/*
 * HMM: devices that mirror an address space
 *
 * An hmm_device stands for a secondary MMU, an hmm_mirror for one address space
 * on it, and a struct hmm for one mm that has mirrors. The driver owns the
 * memory of the first two.
 */

/**
 * DOC: Release of a mirror
 *
 * Five paths release a mirror: mm exit, hmm_mirror_unregister(),
 * hmm_mirror_unregister_async(), hmm_device_unplug() and hmm_mirror_kill(). A
 * release is first *claimed* and then *started*, both under hmm_lock:
 *
 * - The path that comes first claims it by setting the reason.
 * - A thread starts it and calls ->release(): the claimant, a worker, or a
 *   thread that has to wait for it. Such a thread starts every release that has
 *   not been started, so that it never depends on a worker where memory is
 *   short.
 *
 * Exit and unplug are one function, hmm_release_all(), over the mirrors of one
 * mm or of one device. It keeps one worker queued for the next release, and a
 * worker that starts its release queues the following one. So releases that
 * sleep overlap, and releases that do not sleep wake no worker. The function
 * returns when every ->release() of the list has returned, whoever called it.
 *
 * The registration holds a reference. It is dropped when the driver has
 * unregistered the mirror, ->release() has returned and no work item is queued
 * for the mirror, whichever comes last. The last put wakes
 * hmm_mirror_unregister() or queues ->free().
 */

/**
 * DOC: Learning of mm exit
 *
 * HMM learns of mm exit from an mmu_interval_notifier on the last page of the
 * address space, which is never mapped. exit_mmap() invokes it before it frees
 * any page, and holds nothing that other processes wait for. An mmu_notifier
 * would be called inside an SRCU domain that all processes share, where one
 * device that stops slowly delays every exit. The cost is a hash table, because
 * an mm has no pointer to its struct hmm, and a work item, because an interval
 * notifier cannot be removed from its own callback.
 */

/**
 * DOC: Synchronization
 *
 * 1. hmm_lock, a raw spinlock in no object, protects states, lists and counts.
 *    It is a leaf, held for a few lines and never over a callback. It is raw
 *    because interrupt handlers call hmm_mirror_kill() and hmm_mirror_put().
 * 2. hmm->lock protects the mm_users that HMM holds, so that faults take no
 *    lock that processes share.
 * 3. hmm_srcu protects lookups, which take no lock. Freeing waits for them.
 * 4. Per-CPU counts of lookups: that wait is usually for none, and a grace
 *    period takes time all the same.
 * 5. hmm_table, a hash table from mm to struct hmm, is read under hmm_srcu.
 * 6. A kref counts the references of a mirror or a device.
 * 7. The last put signals a completion on the stack of the waiter and does not
 *    touch the object again.
 * 8. wait_var_event() waits for counts of releases to reach zero.
 * 9. hmm_release_wq runs releases of kill and unregister_async, hmm_free_wq
 *    ->free(), and hmm_mm_wq releases ahead of exit and unplug, and removals of
 *    notifiers. So a kill and ->free() do not queue behind sleeping releases of
 *    exits, and only module exit waits for invalidations of other drivers.
 * 10. hmm_deferred batches what hmm_mirror_unregister_async() queues.
 * 11. hmm_nr_pending counts the callbacks that hmm_synchronize() waits for.
 * 12. hmm_callbacks has the callbacks in progress. HMM refuses calls that would
 *     wait for their own callback; lockdep reports them before it happens.
 */

/*
 * Fields: hmm_lock protects all that is not mentioned here.
 *
 * hmm_device: ops, name and callback_map do not change while it is registered.
 *	hmm_mirror: device, mm, hmm and list do not change until the last put,
 *	which uses done and work. reason and node[HMM_BY_MM] are also read
 *	without a lock. hmm: mm and notifier do not change. lock protects
 *	nr_pins and pinned_since.
 */

#define pr_fmt(fmt) "hmm: " fmt

#include <linux/cleanup.h>
#include <linux/completion.h>
#include <linux/export.h>
#include <linux/hashtable.h>
#include <linux/hmm_device.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/rculist.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/wait_bit.h>

#include "hmm_internal.h"

#define CREATE_TRACE_POINTS
#include <trace/events/hmm.h>

#define HMM_LAST_PAGE		(ULONG_MAX & PAGE_MASK)

/* Keeps the references of a device far below the saturation of a refcount_t */
#define HMM_DEVICE_MAX_MIRRORS	(UINT_MAX / 4)

/* Values of hmm_device::state; zeroed memory is an unregistered device */
enum {
	HMM_DEVICE_UNREGISTERED,
	HMM_DEVICE_CLOSING,		/* unregistered, but has references */
	HMM_DEVICE_UNPLUGGED,		/* registered, refuses new mirrors */
	HMM_DEVICE_REGISTERED,
};

/* Values of hmm_release_list::by, and indices of hmm_mirror::node */
enum {
	HMM_BY_MM,
	HMM_BY_DEVICE,
	HMM_NR_LISTS
};

static const enum hmm_release_reason hmm_reason_by[HMM_NR_LISTS] = {
	[HMM_BY_MM] = HMM_RELEASE_MM_EXIT,
	[HMM_BY_DEVICE] = HMM_RELEASE_DEVICE_GONE,
};

#define hmm_misuse(condition, what)					\
	WARN_ONCE(condition, "%s() %s\n", __func__, what)

DEFINE_RAW_SPINLOCK(hmm_lock);
static DEFINE_HASHTABLE(hmm_table, 8);
static DEFINE_HASHTABLE(hmm_callbacks, 6);
static LIST_HEAD(hmm_deferred);
unsigned int hmm_nr_dying;	/* struct hmm without users, not yet freed */

static struct workqueue_struct *hmm_release_wq;
static struct workqueue_struct *hmm_free_wq;
static struct workqueue_struct *hmm_mm_wq;

static struct lock_class_key hmm_callback_key;
static struct lockdep_map hmm_callback_map;

/*
 * Before a mirror is freed, HMM waits for the lookups that may see it. As an
 * expedited grace period of hmm_srcu takes tens of microseconds even if there
 * are none, lookups are counted on the CPUs where they begin and end.
 */
DEFINE_STATIC_SRCU(hmm_srcu);
static DEFINE_PER_CPU(unsigned long, hmm_lookups_begun);
static DEFINE_PER_CPU(unsigned long, hmm_lookups_ended);

int hmm_lookup_begin(void)
	__acquires(&hmm_srcu)
{
	int idx = srcu_read_lock(&hmm_srcu);

	this_cpu_inc(hmm_lookups_begun);
	/* A: count, then look. Pairs with B: counted, or sees no mirror. */
	smp_mb();
	return idx;
}

void hmm_lookup_end(int idx)
	__releases(&hmm_srcu)
{
	/* C: look, then count. Pairs with D. */
	smp_mb();
	this_cpu_inc(hmm_lookups_ended);
	srcu_read_unlock(&hmm_srcu, idx);
}

/*
 * Wait for the lookups that may see what was unlinked before this call. Those
 * in the first sum have begun when the second is taken. So the sums are equal
 * only if all lookups in the second have ended.
 */
static void hmm_wait_for_lookups(void)
{
	unsigned long begun = 0, ended = 0;
	int cpu;

	/* B: unlink, then sum. Pairs with A. */
	smp_mb();
	for_each_possible_cpu(cpu)
		ended += READ_ONCE(per_cpu(hmm_lookups_ended, cpu));
	/* D: keep the order of the sums. Pairs with C. */
	smp_mb();
	for_each_possible_cpu(cpu)
		begun += READ_ONCE(per_cpu(hmm_lookups_begun, cpu));
	if (begun != ended)
		synchronize_srcu_expedited(&hmm_srcu);
}

/*
 * For lockdep, a callback holds a lock for read, and a wait for callbacks
 * acquires it for write. So lockdep reports every wait inside a callback or
 * under a lock that a callback takes. hmm_synchronize() waits for callbacks of
 * all devices, other functions for those of one; hence two maps. A callback
 * acquires both by trylock, so that lockdep links what it takes to both maps
 * and to what its caller holds: links reach back to the first lock that is not
 * a trylock, and a path through a recursive read lock does not count.
 */
static void hmm_lockdep_acquire(struct hmm_device *device)
{
	lock_acquire_shared_recursive(&hmm_callback_map, 0, 1, NULL, _THIS_IP_);
	if (device)
		lock_acquire_shared_recursive(&device->callback_map, 0, 1, NULL,
					      _THIS_IP_);
}

static void hmm_lockdep_release(struct hmm_device *device)
{
	if (device)
		lock_map_release(&device->callback_map);
	lock_map_release(&hmm_callback_map);
}

static void hmm_lockdep_might_wait(struct lockdep_map *map)
{
	lock_map_acquire(map);
	lock_map_release(map);
}

static void hmm_callback_enter(struct hmm_callback *callback,
			       struct hmm_device *device)
{
	callback->task = current;
	callback->device = device;
	scoped_guard(raw_spinlock_irqsave, &hmm_lock)
		hash_add(hmm_callbacks, &callback->node,
			 (unsigned long)current);
	hmm_debug_callback_add(callback);
	hmm_lockdep_acquire(device);
}

static void hmm_callback_exit(struct hmm_callback *callback)
{
	hmm_lockdep_release(callback->device);
	hmm_debug_callback_del(callback);
	guard(raw_spinlock_irqsave)(&hmm_lock);
	hash_del(&callback->node);
}

static bool hmm_in_callback(void)
{
	struct hmm_callback *callback;

	guard(raw_spinlock_irqsave)(&hmm_lock);
	hash_for_each_possible(hmm_callbacks, callback, node,
			       (unsigned long)current)
		if (callback->task == current)
			return true;
	return false;
}

/*
 * hmm_synchronize() begins a new epoch and waits for the callbacks that became
 * pending before. pending is the epoch of an object plus one, or 0.
 */
static unsigned int hmm_epoch __guarded_by(&hmm_lock);
static unsigned long hmm_nr_pending[2] __guarded_by(&hmm_lock);
static struct completion *hmm_epoch_done __guarded_by(&hmm_lock);

static void hmm_pending_begin(u8 *pending)
{
	lockdep_assert_held(&hmm_lock);
	if (*pending)
		return;
	*pending = hmm_epoch + 1;
	hmm_nr_pending[hmm_epoch]++;
}

static void hmm_pending_end(u8 *pending)
{
	unsigned int epoch = *pending - 1;

	lockdep_assert_held(&hmm_lock);
	if (!*pending)
		return;
	*pending = 0;
	if (!--hmm_nr_pending[epoch] && epoch != hmm_epoch)
		complete(hmm_epoch_done);
}

static void hmm_device_destroy(struct hmm_device *device)
{
	const char *name = device->name;

	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		hmm_debug_device_del(device);
		hmm_count(HMM_COUNT_DEVICES, -1);
		device->state = HMM_DEVICE_UNREGISTERED;
	}
	if (IS_ENABLED(CONFIG_HMM_DEBUG))
		hmm_wait_for_lookups();
	kfree_const(name);
}

static void hmm_device_last_put(struct kref *kref)
{
	struct hmm_device *device = container_of(kref, struct hmm_device, kref);
	const struct hmm_device_ops *ops = device->ops;
	struct hmm_callback callback;

	if (device->done) {
		complete(device->done);
		return;
	}
	hmm_device_destroy(device);
	hmm_callback_enter(&callback, NULL);
	ops->device_free(device);
	hmm_callback_exit(&callback);
}

static struct hmm *hmm_find(struct mm_struct *mm)
{
	struct hmm *hmm;

	lockdep_assert_held(&hmm_lock);
	hash_for_each_possible(hmm_table, hmm, node, (unsigned long)mm)
		if (hmm->mm == mm)
			return hmm;
	return NULL;
}

/* Waits for the invalidation in progress: at mm exit, the caller of HMM. */
static void hmm_free_work(struct work_struct *work)
{
	struct hmm *hmm = container_of(to_delayed_work(work), struct hmm,
				       free_work);

	mmu_interval_notifier_remove(&hmm->notifier);
	hmm_wait_for_lookups();
	kfree(hmm);
	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		hmm_count(HMM_COUNT_HMMS, -1);
		WRITE_ONCE(hmm_nr_dying, hmm_nr_dying - 1);
	}
	smp_mb(); /* Pairs with set_current_state() in wait_var_event(). */
	wake_up_var(&hmm_nr_dying);
}

/* The delay lets an exit that drops the last user end its invalidation. */
static void hmm_put(struct hmm *hmm)
{
	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		if (--hmm->users)
			return;
		hash_del_rcu(&hmm->node);
		WRITE_ONCE(hmm_nr_dying, hmm_nr_dying + 1);
	}
	hmm_point(HMM_POINT_MM_LAST_PUT, NULL);
	queue_delayed_work(hmm_mm_wq, &hmm->free_work, 1);
}

/*
 * Pins are the mm_users of hmm_mirror_mm_get() and of releases. Workers that
 * pin in turn must not keep the memory of a dead process, so HMM refuses a pin
 * if it holds all mm_users. But helpers of such workers may hold mm_users as
 * well, which looks like a live process. So once pins have overlapped for a
 * second, a pin takes a task that has the mm.
 */
static bool hmm_mm_has_task(struct mm_struct *mm)
{
	struct task_struct *process, *thread;

	guard(rcu)();
	for_each_process(process) {
		if (process->flags & PF_KTHREAD)
			continue;
		/* for_each_thread(), which modules cannot use with lockdep */
		list_for_each_entry_rcu(thread, &process->signal->thread_head,
					thread_node) {
			struct mm_struct *thread_mm = READ_ONCE(thread->mm);

			if (thread_mm == mm)
				return true;
			if (thread_mm)	/* the mm of all threads */
				break;
		}
	}
	return false;
}

/* hmm->lock makes nr_pins and mm_users change as one. */
static bool hmm_pin_locked(struct hmm *hmm)
{
	lockdep_assert_held(&hmm->lock);
	if (!mmget_not_zero(hmm->mm))
		return false;
	if (!hmm->nr_pins++)
		hmm->pinned_since = jiffies;
	return true;
}

static bool hmm_pin(struct hmm *hmm)
{
	bool stale;

	scoped_guard(spinlock_irqsave, &hmm->lock)
		stale = hmm->nr_pins &&
			time_after(jiffies, hmm->pinned_since + HZ);
	if (stale && !hmm_mm_has_task(hmm->mm))
		return false;

	guard(spinlock_irqsave)(&hmm->lock);
	if (stale)
		hmm->pinned_since = jiffies;
	return atomic_read(&hmm->mm->mm_users) > hmm->nr_pins &&
	       hmm_pin_locked(hmm);
}

/* Not mmput(): ->release() may wait for the caller, which must not run exit. */
static void hmm_unpin(struct hmm *hmm)
{
	guard(spinlock_irqsave)(&hmm->lock);
	if (WARN_ONCE(!hmm->nr_pins, "hmm_mirror_mm_put() without a pin\n"))
		return;
	hmm->nr_pins--;
	mmput_async(hmm->mm);
}

/* The caller starts the release or queues the mirror if this returns true. */
static bool hmm_claim(struct hmm_mirror *mirror, enum hmm_release_reason reason)
{
	lockdep_assert_held(&hmm_lock);
	if (mirror->reason != HMM_RELEASE_NONE)
		return false;
	WRITE_ONCE(mirror->reason, reason);
	return true;
}

/*
 * Queue the last mirror of @list, as hmm_release_all() begins with the first.
 * It is queued already if another path has claimed it.
 */
static void hmm_queue_ahead(struct hmm_release_list *list)
{
	struct hmm_mirror *mirror = NULL;

	lockdep_assert_held(&hmm_lock);
	if (!list_empty(&list->mirrors))
		mirror = list_last_entry(&list->mirrors, struct hmm_mirror,
					 node[list->by]);
	list->ahead = mirror;
	if (mirror && hmm_claim(mirror, hmm_reason_by[list->by])) {
		mirror->queued = true;
		queue_work(hmm_mm_wq, &mirror->work);
	}
}

/* The caller calls hmm_mirror_release() if this returns true. */
static bool hmm_start(struct hmm_mirror *mirror)
{
	int by;

	lockdep_assert_held(&hmm_lock);
	if (mirror->started)
		return false;
	mirror->started = true;
	for (by = 0; by < HMM_NR_LISTS; by++) {
		struct hmm_release_list *list = mirror->list[by];

		list_del_rcu(&mirror->node[by]);
		if (list->ahead == mirror)
			hmm_queue_ahead(list);
	}
	return true;
}

static void hmm_mirror_free_work(struct work_struct *work);

/*
 * The function differs from that of releases, because a workqueue queues an
 * item behind one in progress with the same address and function: a release
 * must not wait for the ->free() of an earlier mirror in the same memory.
 */
static void hmm_mirror_last_put_locked(struct kref *kref)
{
	struct hmm_mirror *mirror = container_of(kref, struct hmm_mirror, kref);

	lockdep_assert_held(&hmm_lock);
	if (mirror->done) {
		complete(mirror->done);
		return;
	}
	hmm_pending_begin(&mirror->pending);
	INIT_WORK(&mirror->work, hmm_mirror_free_work);
	queue_work(hmm_free_wq, &mirror->work);
}

/*
 * Drop the registration's reference once all three conditions hold. None is
 * revoked, so this happens once. @mirror may be freed after the unlock, but not
 * before, because the last put takes hmm_lock.
 */
static void hmm_put_registration(struct hmm_mirror *mirror)
{
	lockdep_assert_held(&hmm_lock);
	if (mirror->registered || !mirror->released || mirror->queued)
		return;
	/*
	 * ->free() is not pending while a driver has a reference. Else it stays
	 * pending in the epoch of hmm_mirror_unregister_async().
	 */
	if (!kref_put(&mirror->kref, hmm_mirror_last_put_locked))
		hmm_pending_end(&mirror->pending);
}

/*
 * @mirror and its device stay, because the caller has started the release. It
 * holds mm_users unless exit has begun: if ->release() waits for a worker that
 * drops the last mm_users, exit must not wait for ->release() there.
 */
static void hmm_mirror_release(struct hmm_mirror *mirror)
{
	struct hmm_device *device = mirror->device;
	struct hmm *hmm = mirror->hmm;
	struct hmm_callback callback;
	u64 begin = ktime_get_ns();
	bool pinned;

	scoped_guard(spinlock_irqsave, &hmm->lock)
		pinned = hmm_pin_locked(hmm);
	hmm_point(HMM_POINT_RELEASE_STARTED, mirror);
	hmm_callback_enter(&callback, device);
	hmm_forbid_invalidation_wait();
	device->ops->release(mirror);
	hmm_allow_invalidation_wait();
	hmm_callback_exit(&callback);
	hmm_point(HMM_POINT_RELEASE_RETURNED, mirror);
	trace_hmm_release(device->name, mirror, mirror->mm, mirror->reason,
			  ktime_get_ns() - begin);
	if (pinned)
		hmm_unpin(hmm);

	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		mirror->released = true;
		WRITE_ONCE(hmm->unreleased.nr, hmm->unreleased.nr - 1);
		WRITE_ONCE(device->unreleased.nr, device->unreleased.nr - 1);
		/* After hmm_mirror_unregister_async(), ->free() is pending */
		if (mirror->registered || mirror->done)
			hmm_pending_end(&mirror->pending);
		hmm_put_registration(mirror);
	}
	/* Only addresses from here on: all three objects may be freed */
	smp_mb(); /* Pairs with set_current_state() in wait_var_event(). */
	wake_up_var(&hmm->unreleased.nr);
	wake_up_var(&device->unreleased.nr);
}

static void hmm_mirror_release_work(struct work_struct *work)
{
	struct hmm_mirror *mirror = container_of(work, struct hmm_mirror, work);
	bool start;

	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		mirror->queued = false;
		start = hmm_start(mirror);
		hmm_put_registration(mirror);
	}
	if (start)
		hmm_mirror_release(mirror);
}

/*
 * For an mm that exits, or a device that is unplugged and so takes no mirror.
 */
static void hmm_release_all(struct hmm_release_list *list)
{
	struct hmm_mirror *mirror;

	for (;;) {
		scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
			mirror = list_first_entry_or_null(&list->mirrors,
							  struct hmm_mirror,
							  node[list->by]);
			if (!mirror)
				break;
			hmm_claim(mirror, hmm_reason_by[list->by]);
			hmm_start(mirror);
			if (!list->ahead)
				hmm_queue_ahead(list);
		}
		if (!mirror)
			break;
		hmm_mirror_release(mirror);
	}

	hmm_point(HMM_POINT_RELEASE_WAIT, NULL);
	wait_var_event(&list->nr, !READ_ONCE(list->nr));
}

/*
 * Events for the whole address space reach the last page: exit, unmap_vmas() in
 * exit_mmap() after it, and clear_refs of procfs. No page tables are read under
 * this notifier, so there is no sequence to advance.
 */
static bool hmm_invalidate(struct mmu_interval_notifier *notifier,
			   const struct mmu_notifier_range *range,
			   unsigned long cur_seq)
{
	struct hmm *hmm = container_of(notifier, struct hmm, notifier);

	if (range->event == MMU_NOTIFY_RELEASE)
		hmm_release_all(&hmm->unreleased);
	return true;
}

static const struct mmu_interval_notifier_ops hmm_notifier_ops = {
	.invalidate = hmm_invalidate,
};

/*
 * The caller holds mm_users. While an invalidation of @mm is in progress, the
 * notifier is only queued for the interval tree, and exit would not find it
 * there: mmu_interval_read_begin() waits for the invalidation.
 */
static struct hmm *hmm_create(struct mm_struct *mm)
{
	struct hmm *hmm;
	int ret;

	hmm = kzalloc_obj(*hmm, GFP_KERNEL_ACCOUNT);
	if (!hmm)
		return ERR_PTR(-ENOMEM);
	hmm->mm = mm;
	hmm->users = 1;
	hmm->unreleased.by = HMM_BY_MM;
	INIT_LIST_HEAD(&hmm->unreleased.mirrors);
	INIT_HLIST_NODE(&hmm->node);
	spin_lock_init(&hmm->lock);
	INIT_DELAYED_WORK(&hmm->free_work, hmm_free_work);
	ret = mmu_interval_notifier_insert(&hmm->notifier, mm, HMM_LAST_PAGE,
					   PAGE_SIZE, &hmm_notifier_ops);
	if (ret) {
		kfree(hmm);
		return ERR_PTR(ret);
	}
	mmu_interval_read_begin(&hmm->notifier);
	return hmm;
}

/* The last reference is dropped. The driver may be unloaded afterwards. */
static void hmm_mirror_destroy(struct hmm_mirror *mirror)
{
	struct hmm_device *device = mirror->device;
	struct hmm *hmm = mirror->hmm;
	struct hmm_callback callback;

	hmm_point(HMM_POINT_DESTROY, mirror);
	hmm_debug_mirror_del(mirror);
	hmm_wait_for_lookups();
	trace_hmm_free(device->name, mirror, mirror->mm);
	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		hmm_count(HMM_COUNT_MIRRORS, -1);
		mirror->reserved = false;
	}
	if (device->ops->free) {
		hmm_callback_enter(&callback, device);
		device->ops->free(mirror);
		hmm_callback_exit(&callback);
	}
	hmm_put(hmm);
	hmm_point(HMM_POINT_DEVICE_PUT, NULL);
	kref_put(&device->kref, hmm_device_last_put);
}

static void hmm_mirror_free_work(struct work_struct *work)
{
	struct hmm_mirror *mirror = container_of(work, struct hmm_mirror, work);
	u8 pending = mirror->pending;

	hmm_mirror_destroy(mirror);
	guard(raw_spinlock_irqsave)(&hmm_lock);
	hmm_pending_end(&pending);
}

static void hmm_mirror_last_put(struct kref *kref)
{
	guard(raw_spinlock_irqsave)(&hmm_lock);
	hmm_mirror_last_put_locked(kref);
}

/*
 * From success on, exit, unplug and lookups find the mirror. If @mm has no
 * struct hmm, this reserves @mirror and returns -EAGAIN, for another call with
 * a new one.
 */
static int hmm_mirror_link(struct hmm_mirror *mirror, struct hmm_device *device,
			   struct mm_struct *mm, struct hmm *created)
{
	struct hmm *hmm;
	int by;

	guard(raw_spinlock_irqsave)(&hmm_lock);
	if (created)
		hmm_count(HMM_COUNT_HMMS, 1);
	if (device->state != HMM_DEVICE_REGISTERED)
		return -ENODEV;
	if (mirror->reserved && !created)
		return -EBUSY;
	if (device->nr_registered == HMM_DEVICE_MAX_MIRRORS)
		return -EOVERFLOW;
	hmm = hmm_find(mm);
	/* Exit drops mm_users first, then takes hmm_lock to release mirrors */
	if (hmm && !atomic_read(&mm->mm_users))
		return -ESRCH;
	if (!created) {
		kref_get(&device->kref);
		*mirror = (struct hmm_mirror) {
			.device = device,
			.mm = mm,
			.reserved = true,
		};
		if (!hmm)
			return -EAGAIN;
	}
	if (!hmm) {
		hmm = created;
		hash_add_rcu(hmm_table, &hmm->node, (unsigned long)mm);
	}

	hmm->users++;
	mirror->hmm = hmm;
	mirror->list[HMM_BY_MM] = &hmm->unreleased;
	mirror->list[HMM_BY_DEVICE] = &device->unreleased;
	kref_init(&mirror->kref);
	INIT_WORK(&mirror->work, hmm_mirror_release_work);
	mirror->registered = true;
	device->nr_registered++;
	hmm_count(HMM_COUNT_MIRRORS, 1);
	hmm_debug_mirror_add(mirror);
	trace_hmm_register(device->name, mirror, mm);
	for (by = 0; by < HMM_NR_LISTS; by++) {
		mirror->list[by]->nr++;
		list_add_tail_rcu(&mirror->node[by],
				  &mirror->list[by]->mirrors);
	}
	return 0;
}

/* Links the first mirror of @mm, which is reserved, or unreserves it. */
static int hmm_mirror_register_first(struct hmm_mirror *mirror,
				     struct hmm_device *device,
				     struct mm_struct *mm)
{
	struct hmm *created;
	int ret = -ESRCH;

	if (mmget_not_zero(mm)) {
		created = hmm_create(mm);
		ret = PTR_ERR_OR_ZERO(created);
		if (!ret) {
			hmm_point(HMM_POINT_REGISTER_ARMED, mirror);
			ret = hmm_mirror_link(mirror, device, mm, created);
			hmm_put(created);
		}
		/* Exit begins after this, and finds the mirror */
		mmput_async(mm);
	}
	if (ret) {
		scoped_guard(raw_spinlock_irqsave, &hmm_lock)
			mirror->reserved = false;
		kref_put(&device->kref, hmm_device_last_put);
	}
	return ret;
}

/**
 * hmm_mirror_register() - Mirror an address space on a device.
 * @mirror: Zeroed memory, or a mirror whose hmm_mirror_unregister() returned.
 * @device: The device. Its memory must stay until this returns.
 * @mm: Any address space that the caller has mm_count of, current->mm or not.
 *
 * Once this returns 0, @mirror is registered until hmm_mirror_unregister() or
 * hmm_mirror_unregister_async() is called: it holds mm_count of @mm, but not
 * mm_users, and hmm_device_unregister() of @device fails. A release by exit,
 * unplug or kill does not end the registration. ->release() may run before this
 * returns.
 *
 * A child that the process forks has no mirror, and exec ends the address space
 * like exit. A device may have several mirrors of one address space.
 *
 * If this fails, nothing is left behind and ->release() is not called.
 *
 * Context: Process context. May sleep. The caller must not hold mmap_lock: the
 * first mirror of an mm takes it for write. That also waits for the
 * invalidation of @mm in progress, so the caller must not hold a lock that an
 * invalidate callback of any driver takes.
 * Return:
 * * 0 - @mirror is registered.
 * * %-EINVAL - An argument is NULL, as current->mm of a kernel thread.
 * * %-ENODEV - @device is not registered, or is unplugged.
 * * %-EBUSY - @mirror is registered already. That registration is unchanged.
 * * %-ESRCH - The address space has no users left.
 * * %-EINTR - A signal was pending while the first mirror of @mm was armed. A
 *   system call should return -ERESTARTSYS.
 * * %-EOVERFLOW - @device has as many mirrors as HMM can count.
 * * %-ENOMEM - No memory.
 */
int hmm_mirror_register(struct hmm_mirror *mirror, struct hmm_device *device,
			struct mm_struct *mm)
{
	int ret;

	might_sleep();
	if (!mirror || !device || !mm)
		return -EINVAL;
	/*
	 * hmm_device_unregister() waits for this, and most ->release() for a
	 * worker that faults: no wait for callbacks under mmap_lock. A device
	 * that was never registered has no lockdep class.
	 */
	if (hmm_lockdep_has_class(device)) {
		hmm_lockdep_acquire(device);
		might_lock(&mm->mmap_lock);
		hmm_lockdep_release(device);
	}
	ret = hmm_mirror_link(mirror, device, mm, NULL);
	if (ret == -EAGAIN)
		ret = hmm_mirror_register_first(mirror, device, mm);
	hmm_point(HMM_POINT_REGISTER_LINKED, NULL);
	return ret;
}
EXPORT_SYMBOL_GPL(hmm_mirror_register);

/**
 * hmm_mirror_unregister() - Release a mirror and wait until it is unused.
 * @mirror: A registered mirror.
 *
 * Once this returns, ->release() has returned, whoever called it. No callback
 * of @mirror runs or will run on any CPU. Every reference of hmm_mirror_get()
 * and hmm_mirror_find() is dropped. If the device has ->free(), that has
 * returned and the caller must not touch @mirror. Otherwise the caller may free
 * @mirror or register it again.
 *
 * Any process may call this, whether the address space is alive or dead. It
 * waits for callbacks and references of @mirror only. The caller must prevent
 * new references and must not hold one: this would wait forever.
 *
 * In a callback, or if @mirror is not registered, this does nothing and warns
 * once. The caller cannot tell and must not free @mirror in a callback, so use
 * hmm_mirror_unregister_async() there.
 *
 * Context: Process context. May sleep. The caller must not hold mmap_lock, a
 * lock that ->release() or ->free() takes or waits for (lockdep reports both),
 * nor a lock that someone needs before the hmm_mirror_put() of a reference.
 */
void hmm_mirror_unregister(struct hmm_mirror *mirror)
{
	DECLARE_COMPLETION_ONSTACK(done);
	u64 begin = ktime_get_ns();
	bool registered, queued = false, start = false;

	might_sleep();
	if (hmm_misuse(hmm_in_callback(), "in a callback"))
		return;
	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		registered = mirror->registered;
		if (!registered)
			break;
		mirror->registered = false;
		mirror->device->nr_registered--;
		mirror->done = &done;
		hmm_claim(mirror, HMM_RELEASE_UNREGISTER);
		start = hmm_start(mirror);
		hmm_put_registration(mirror);
	}
	if (hmm_misuse(!registered, "of an unregistered mirror"))
		return;
	hmm_lockdep_might_wait(&mirror->device->callback_map);

	if (start)
		hmm_mirror_release(mirror);
	else
		hmm_point(HMM_POINT_RELEASE_WAIT, mirror);
	/* A worker that is still queued for the release has nothing to do */
	scoped_guard(raw_spinlock_irqsave, &hmm_lock)
		queued = mirror->queued;
	if (queued && cancel_work_sync(&mirror->work)) {
		guard(raw_spinlock_irqsave)(&hmm_lock);
		mirror->queued = false;
		hmm_put_registration(mirror);
	}
	hmm_point(HMM_POINT_UNREGISTER_WAIT, mirror);
	wait_for_completion(&done);
	trace_hmm_unregister(mirror->device->name, mirror, mirror->mm,
			     ktime_get_ns() - begin);
	hmm_mirror_destroy(mirror);
}
EXPORT_SYMBOL_GPL(hmm_mirror_unregister);

/* A deferred mirror is marked as queued, so that it stays until it is. */
static void hmm_queue_deferred(struct work_struct *unused)
{
	struct hmm_mirror *mirror, *next;
	LIST_HEAD(deferred);

	scoped_guard(raw_spinlock_irqsave, &hmm_lock)
		list_splice_init(&hmm_deferred, &deferred);
	list_for_each_entry_safe(mirror, next, &deferred, deferred_node)
		queue_work(hmm_release_wq, &mirror->work);
}

static DECLARE_DELAYED_WORK(hmm_deferred_work, hmm_queue_deferred);

/**
 * hmm_mirror_unregister_async() - Release and free a mirror without waiting.
 * @mirror: A registered mirror of a device that has ->free().
 *
 * A worker calls ->release(), unless that has been called, and ->free() once
 * every reference of hmm_mirror_get() and hmm_mirror_find() is dropped. Calls
 * within a jiffy are batched. The caller must not touch @mirror any more,
 * unless it holds a reference. hmm_device_unregister() no longer fails because
 * of @mirror, but waits for ->free(). So does hmm_synchronize().
 *
 * If @mirror is not registered, or its device has no ->free(), this does
 * nothing and warns once.
 *
 * Context: Process context, atomic or not, and callbacks of HMM and of
 * mmu_notifier. Does not sleep.
 */
void hmm_mirror_unregister_async(struct hmm_mirror *mirror)
{
	bool valid, first = false;

	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		valid = mirror->registered && mirror->device->ops->free;
		if (!valid)
			break;
		trace_hmm_unregister(mirror->device->name, mirror,
				     mirror->mm, 0);
		mirror->registered = false;
		mirror->device->nr_registered--;
		hmm_pending_begin(&mirror->pending);
		if (hmm_claim(mirror, HMM_RELEASE_UNREGISTER)) {
			mirror->queued = true;
			first = list_empty(&hmm_deferred);
			list_add_tail(&mirror->deferred_node, &hmm_deferred);
		}
		hmm_put_registration(mirror);
	}
	hmm_misuse(!valid, "of an unregistered mirror, or without ->free()");
	if (first)
		queue_delayed_work(hmm_release_wq, &hmm_deferred_work, 1);
}
EXPORT_SYMBOL_GPL(hmm_mirror_unregister_async);

/**
 * hmm_mirror_kill() - Release a mirror whose device has failed.
 * @mirror: A mirror that is registered, or that the caller has a reference on.
 *
 * A worker calls ->release() for %HMM_RELEASE_ERROR, unless another path has
 * claimed the release. @mirror stays registered. hmm_synchronize() waits for
 * ->release().
 *
 * Context: Any context but NMI. Does not sleep.
 */
void hmm_mirror_kill(struct hmm_mirror *mirror)
{
	guard(raw_spinlock_irqsave)(&hmm_lock);
	if (mirror->released)
		return;
	hmm_pending_begin(&mirror->pending);
	if (hmm_claim(mirror, HMM_RELEASE_ERROR)) {
		mirror->queued = true;
		queue_work(hmm_release_wq, &mirror->work);
	}
}
EXPORT_SYMBOL_GPL(hmm_mirror_kill);

/**
 * hmm_mirror_put() - Drop a reference on a mirror.
 * @mirror: A mirror that the caller has a reference on, and does not touch any
 *	more.
 *
 * After hmm_mirror_unregister_async(), the last put makes a worker call
 * ->free(). hmm_synchronize() waits for that.
 *
 * Context: Any context but NMI. Does not sleep.
 */
void hmm_mirror_put(struct hmm_mirror *mirror)
{
	kref_put(&mirror->kref, hmm_mirror_last_put);
}
EXPORT_SYMBOL_GPL(hmm_mirror_put);

/**
 * hmm_mirror_find() - Find the mirror of an address space on a device.
 * @device: A device that stays registered meanwhile.
 * @mm: An address space that the caller has mm_count of.
 *
 * For drivers that learn of an address space from a fault or from another
 * process. If there are several mirrors, this returns any of them. It returns
 * none whose release has begun, but that may begin at any time. The caller may
 * use the mirror even if its hmm_mirror_register() has not returned yet.
 *
 * Context: Any context but NMI and hard interrupts. Does not sleep and takes no
 * lock.
 * Return: The mirror with a reference, for hmm_mirror_put(); or NULL.
 */
struct hmm_mirror *hmm_mirror_find(struct hmm_device *device,
				   struct mm_struct *mm)
{
	struct hmm_mirror *mirror, *found = NULL;
	struct hmm *hmm;
	int idx;

	idx = hmm_lookup_begin();
	hash_for_each_possible_rcu(hmm_table, hmm, node, (unsigned long)mm,
				   srcu_read_lock_held(&hmm_srcu)) {
		if (hmm->mm != mm)
			continue;
		list_for_each_entry_srcu(mirror, &hmm->unreleased.mirrors,
					 node[HMM_BY_MM],
					 srcu_read_lock_held(&hmm_srcu)) {
			if (mirror->device != device ||
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
	hmm_lookup_end(idx);
	return found;
}
EXPORT_SYMBOL_GPL(hmm_mirror_find);

/**
 * hmm_mirror_mm_get() - Hold mm_users of a mirrored address space.
 * @mirror: A mirror that is registered, or that the caller has a reference on,
 *	until hmm_mirror_mm_put().
 *
 * For workers that fault: exit does not begin until hmm_mirror_mm_put(), so
 * call that soon. This fails once the release of @mirror has begun, and once
 * only HMM holds mm_users: workers that call it in turn cannot keep the memory
 * of a dead process. If they call helpers that hold mm_users as well, they can
 * for a second.
 *
 * Context: Process context, atomic or not. Does not sleep. On PREEMPT_RT, not
 * under a raw spinlock.
 * Return: The address space, or NULL.
 */
struct mm_struct *hmm_mirror_mm_get(struct hmm_mirror *mirror)
{
	if (hmm_mirror_release_reason(mirror) != HMM_RELEASE_NONE)
		return NULL;
	return hmm_pin(mirror->hmm) ? mirror->mm : NULL;
}
EXPORT_SYMBOL_GPL(hmm_mirror_mm_get);

/**
 * hmm_mirror_mm_put() - Drop mm_users of a mirrored address space.
 * @mirror: The mirror of a successful hmm_mirror_mm_get().
 *
 * If these were the last, exit runs in a worker, because ->release() may wait
 * for the caller.
 *
 * Context: As hmm_mirror_mm_get().
 */
void hmm_mirror_mm_put(struct hmm_mirror *mirror)
{
	hmm_unpin(mirror->hmm);
}
EXPORT_SYMBOL_GPL(hmm_mirror_mm_put);

/**
 * hmm_synchronize() - Wait for pending callbacks.
 *
 * Once this returns, every ->release() and ->free() has returned that an
 * earlier hmm_mirror_unregister_async(), hmm_mirror_kill() or last
 * hmm_mirror_put() made pending, even if exit or unplug called ->release(), and
 * so has ->device_free() if that ->free() was the last of its device. This does
 * not wait for references that a driver holds, nor for another thread's
 * hmm_mirror_unregister(). Drivers call it before their module is unloaded.
 *
 * Context: Process context, also in a worker of a WQ_MEM_RECLAIM workqueue. May
 * sleep. The caller must not hold mmap_lock, nor a lock that a callback of any
 * device takes or waits for; lockdep reports that. In a callback, this does
 * nothing and warns once.
 */
void hmm_synchronize(void)
{
	static DEFINE_MUTEX(mutex);
	DECLARE_COMPLETION_ONSTACK(done);
	unsigned long pending;

	might_sleep();
	if (hmm_misuse(hmm_in_callback(), "in a callback"))
		return;
	hmm_lockdep_might_wait(&hmm_callback_map);

	/* The mutex lets an epoch end before its number is used again */
	guard(mutex)(&mutex);
	hmm_queue_deferred(NULL);
	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		pending = hmm_nr_pending[hmm_epoch];
		hmm_epoch = !hmm_epoch;
		hmm_epoch_done = &done;
	}
	if (pending)
		wait_for_completion(&done);
}
EXPORT_SYMBOL_GPL(hmm_synchronize);

/* The header has the kernel-doc of hmm_device_register(). */
int __hmm_device_register(struct hmm_device *device,
			  const struct hmm_device_ops *ops, const char *name,
			  struct lock_class_key *key)
{
	int ret = -ENOMEM;

	might_sleep();
	if (!device || !ops || !ops->release || !name || !*name)
		return -EINVAL;
	name = kstrdup_const(name, GFP_KERNEL);
	/* Without workqueues, there was no memory at boot */
	if (!name || !hmm_mm_wq)
		goto err_free;

	ret = -EBUSY;
	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		if (device->state != HMM_DEVICE_UNREGISTERED)
			break;
		ret = 0;
		*device = (struct hmm_device) {
			.ops = ops,
			.name = name,
			.state = HMM_DEVICE_REGISTERED,
			.unreleased.by = HMM_BY_DEVICE,
		};
		INIT_LIST_HEAD(&device->unreleased.mirrors);
		kref_init(&device->kref);
		lockdep_init_map(&device->callback_map, "hmm_callback", key, 0);
		hmm_count(HMM_COUNT_DEVICES, 1);
		hmm_debug_device_add(device);
	}
	if (!ret)
		return 0;

err_free:
	kfree_const(name);
	return ret;
}
EXPORT_SYMBOL_GPL(__hmm_device_register);

/* If this returns 0, the caller drops the reference of the registration. */
static int hmm_device_close(struct hmm_device *device, struct completion *done)
{
	guard(raw_spinlock_irqsave)(&hmm_lock);
	if (device->state < HMM_DEVICE_UNPLUGGED)
		return -EINVAL;
	if (!done && !device->ops->device_free)
		return -EINVAL;
	if (done && device->nr_registered)
		return -EBUSY;
	device->state = HMM_DEVICE_CLOSING;
	device->done = done;
	return 0;
}

/**
 * hmm_device_unregister() - Unregister a device that has no mirrors.
 * @device: A registered device.
 *
 * If this returns 0, HMM does not touch @device, and no callback of its mirrors
 * runs or will run on any CPU: the caller may free @device or register it
 * again, and unload the driver. It needs no retry and no grace period: this
 * waits for exit, hmm_mirror_unregister(), pending callbacks, and
 * hmm_mirror_register() in other threads, which fails. If this fails, nothing
 * has changed.
 *
 * Context: Process context. May sleep. The caller must not hold mmap_lock, nor
 * a lock that a callback of @device takes or waits for; lockdep reports that.
 * Return:
 * * 0 - @device belongs to the caller.
 * * %-EBUSY - A mirror of @device is registered, released or not; or this was
 *   called in a callback, which warns once.
 * * %-EINVAL - @device is not registered, or is being unregistered; warns once.
 */
int hmm_device_unregister(struct hmm_device *device)
{
	DECLARE_COMPLETION_ONSTACK(done);
	int ret;

	might_sleep();
	if (hmm_misuse(hmm_in_callback(), "in a callback"))
		return -EBUSY;
	ret = hmm_device_close(device, &done);
	if (hmm_misuse(ret == -EINVAL, "of an unregistered device"))
		return ret;
	hmm_lockdep_might_wait(&device->callback_map);
	if (ret)
		return ret;

	hmm_point(HMM_POINT_DEVICE_WAIT, NULL);
	hmm_queue_deferred(NULL);
	kref_put(&device->kref, hmm_device_last_put);
	wait_for_completion(&done);
	hmm_device_destroy(device);
	return 0;
}
EXPORT_SYMBOL_GPL(hmm_device_unregister);

/**
 * hmm_device_unregister_async() - Unregister a device that may have mirrors.
 * @device: A registered device that has ->device_free().
 *
 * hmm_mirror_register() fails with -ENODEV from now on. The mirrors stay
 * registered until the driver unregisters them, for instance when user space
 * closes its files. After the last one HMM calls ->device_free(); if there is
 * none, before this returns. The caller must not touch @device any more.
 *
 * For hot-unplug, remove() calls hmm_device_unplug() and then this. Open files
 * keep the module; before it is unloaded, it calls hmm_synchronize(). If
 * @device is not registered or has no ->device_free(), this does nothing and
 * warns once.
 *
 * Context: Process context. Sleeps only in ->device_free().
 */
void hmm_device_unregister_async(struct hmm_device *device)
{
	might_sleep();
	if (!hmm_misuse(hmm_device_close(device, NULL),
			"of an unregistered device or without device_free()"))
		kref_put(&device->kref, hmm_device_last_put);
}
EXPORT_SYMBOL_GPL(hmm_device_unregister_async);

/**
 * hmm_device_unplug() - Release all mirrors of a device that is gone.
 * @device: A registered device.
 *
 * Once this returns, every ->release() of @device has returned, whoever called
 * it, and hmm_mirror_register() fails with -ENODEV. Mirrors that no other path
 * had claimed were released for %HMM_RELEASE_DEVICE_GONE. They stay registered
 * until the driver unregisters them. May be called more than once. In a
 * callback, or if @device is not registered, this does nothing and warns once.
 *
 * Context: Process context. May sleep. The caller must not hold mmap_lock, nor
 * a lock that a callback of @device takes or waits for; lockdep reports that.
 */
void hmm_device_unplug(struct hmm_device *device)
{
	u64 begin = ktime_get_ns();
	unsigned int nr = 0;
	bool registered;

	might_sleep();
	if (hmm_misuse(hmm_in_callback(), "in a callback"))
		return;
	scoped_guard(raw_spinlock_irqsave, &hmm_lock) {
		registered = device->state >= HMM_DEVICE_UNPLUGGED;
		if (registered) {
			device->state = HMM_DEVICE_UNPLUGGED;
			kref_get(&device->kref);
			nr = device->unreleased.nr;
		}
	}
	if (hmm_misuse(!registered, "of an unregistered device"))
		return;
	hmm_lockdep_might_wait(&device->callback_map);

	hmm_release_all(&device->unreleased);
	trace_hmm_unplug(device->name, nr, ktime_get_ns() - begin);
	kref_put(&device->kref, hmm_device_last_put);
}
EXPORT_SYMBOL_GPL(hmm_device_unplug);

/*
 * Unbound, because callbacks may sleep for long. Not WQ_MEM_RECLAIM, because
 * that would warn of a callback that flushes an ordinary workqueue.
 */
static int __init hmm_init(void)
{
	lockdep_init_map(&hmm_callback_map, "hmm_any_callback",
			 &hmm_callback_key, 0);
	hmm_release_wq = alloc_workqueue("hmm_release", WQ_UNBOUND,
					 WQ_MAX_ACTIVE);
	if (!hmm_release_wq)
		return -ENOMEM;
	hmm_free_wq = alloc_workqueue("hmm_free", WQ_UNBOUND, WQ_MAX_ACTIVE);
	if (!hmm_free_wq)
		goto err_release;
	hmm_mm_wq = alloc_workqueue("hmm_mm", WQ_UNBOUND, WQ_MAX_ACTIVE);
	if (!hmm_mm_wq)
		goto err_free;
	hmm_debug_init();
	return 0;

err_free:
	destroy_workqueue(hmm_free_wq);
err_release:
	destroy_workqueue(hmm_release_wq);
	return -ENOMEM;
}

/* All drivers and mirrors are gone. Notifiers may still be on their way out. */
static void __exit hmm_exit(void)
{
	hmm_debug_exit();
	cancel_delayed_work_sync(&hmm_deferred_work);
	wait_var_event(&hmm_nr_dying, !READ_ONCE(hmm_nr_dying));
	destroy_workqueue(hmm_release_wq);
	destroy_workqueue(hmm_free_wq);
	destroy_workqueue(hmm_mm_wq);
}

subsys_initcall(hmm_init);
module_exit(hmm_exit);

MODULE_DESCRIPTION("Devices that mirror an address space");
MODULE_LICENSE("GPL");
