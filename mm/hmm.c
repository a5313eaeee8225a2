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
 *	hmm_device::lock
 *	hmm::lock
 *	hmm_bucket::lock
 *	hmm_tasks[]::lock
 *	hmm_srcu, read side		walks of mirrors: look, take a reference
 *	RCU, read side			walks of hmm_table, likewise
 *
 * The spinlocks are leaves: none nests in another, none is held over a callback
 * or over anything that sleeps. hmm_device::lock and hmm::lock lie inside objects
 * and so never hold off the freeing of these: whoever takes one has a reference,
 * and drops it after the unlock.
 *
 * Rationale: the walks of mirrors are under SRCU of HMM's own. An unregister waits
 * for a grace period of it, which can be expedited, since it disturbs nobody, and
 * waits for walks and nothing else. Nobody waits for those of hmm_table.
 *
 * Field protection
 * ================
 *
 * hmm_device:
 *	ops, name		immutable while registered
 *	state			cmpxchg() to own the making; lock to own the unmaking
 *	nr_registered		lock
 *	unused			written before the reference of the registration is
 *				dropped, read by who drops the last one
 * hmm_mirror:
 *	device			cmpxchg() to own the mirror; cleared at its end
 *	mm			immutable from register until the end
 *	node			hmm::lock, walked under hmm_srcu
 *	hmm			from register until the unlink; the owner of the
 *				release clears it
 *	registered		hmm_device::lock
 *	reason			cmpxchg() to own the release, once
 *	unlink_gp		written by the owner of the release, ordered for
 *				others by the completion of released
 *	unused			as hmm_device::unused
 * hmm:
 *	mm, notifier		immutable
 *	mirrors			written under lock, walked under hmm_srcu
 *	node			hmm_bucket::lock, walked under RCU
 *
 * States of a mirror
 * ==================
 *
 *	registered, live	reason is NONE, linked, ->release() yet to come
 *	releasing		reason is set, linked; one thread, the owner, runs
 *				->release(), others wait for mirror->released
 *	released		unlinked, mirror->hmm is NULL, released is complete;
 *				still registered if it was mm exit that released it
 *	unregistered		no reference is left; ->free() ran, or the memory is
 *				the caller's of hmm_mirror_unregister()
 *
 * Removal paths
 * =============
 *
 *	A. hmm_mirror_unregister()
 *	B. exit of the mm, hmm_notifier_invalidate()
 *	C. hmm_device_unregister()
 *
 * A against B, for one mirror: both try to set the reason; who does owns the
 * release and runs ->release(). The mirror stays linked until that returned, so
 * that B finds it and exit_mmap() frees no page before. The loser sees the reason
 * set and waits for mirror->released. B works with a reference on the mirror that
 * it took under hmm_srcu. A waits until all references are dropped, B's among
 * them, and for a grace period of hmm_srcu since the unlink, for those who are
 * about to find the mirror's reference count at zero. So A returns after B's last
 * look at the mirror, whoever of them won.
 *
 * B must find the mirror: hmm_mirror_register() holds mm_users until it is linked,
 * and until the notifier is in the interval tree, which mmu_interval_notifier_insert()
 * leaves to the end of an invalidation that runs (see hmm_create()).
 *
 * A against A is an error of the driver, reported where it is seen.
 *
 * C against A: a mirror holds a reference on its device until A is through with
 * it, ->free() included. C fails with -EBUSY before A was called, and waits for
 * that reference afterwards.
 *
 * C against B: B's touches of the device happen under its reference on the mirror,
 * which A waits for, which C waits for.
 *
 * Waits for the last reference are completions on the stack of the waiter: the
 * one who drops it touches the waiter's stack, and not the object any more.
 */

#define pr_fmt(fmt) "hmm: " fmt

#include <linux/completion.h>
#include <linux/export.h>
#include <linux/hash.h>
#include <linux/hmm.h>
#include <linux/hmm_test.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/rculist.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/srcu.h>
#include <linux/workqueue.h>

/* The one place of an address space that is never mapped, nor invalidated */
#define HMM_LAST_PAGE		(ULONG_MAX & PAGE_MASK)

/* A wait for a driver that takes longer is reported, and again each time */
#define HMM_REPORT_SECONDS	20

/* Keeps the references of a device far below where refcount_t saturates */
#define HMM_DEVICE_MAX_MIRRORS	(1U << 30)

#define HMM_TABLE_BITS		8
#define HMM_TASKS_BITS		6

/* Values of hmm_device::state. Zeroed memory is an unregistered device. */
enum hmm_device_state {
	HMM_DEVICE_UNREGISTERED,	/* the driver's own memory */
	HMM_DEVICE_CHANGING,		/* one thread makes or unmakes it */
	HMM_DEVICE_REGISTERED,		/* mirrors may be registered */
};

/*
 * struct hmm - What HMM keeps about one mm
 *
 * Created by:    hmm_get(), with one reference, the caller's.
 * Pinned by:     each linked mirror (mirror->hmm, until hmm_mirror_unlink());
 *                hmm_mirror_register() on its way.
 * Found by:      hmm_find(), under RCU or the lock of its bucket, with
 *                kref_get_unless_zero().
 * Pins:          mm_count, from mmu_interval_notifier_insert() until
 *                mmu_interval_notifier_remove(); never mm_users.
 * Dead when:     the last reference is dropped; a new mirror of the same mm then
 *                makes a new struct hmm.
 * Freed by:      hmm_free_work(), after the notifier is removed, and a grace
 *                period of RCU.
 */
struct hmm {
	struct mm_struct *mm;
	struct mmu_interval_notifier notifier;
	struct hlist_node node;
	struct kref kref;
	spinlock_t lock;			/* writers of mirrors */
	struct list_head mirrors;
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
};

struct hmm_tasks {
	spinlock_t lock;			/* callbacks */
	struct hlist_head callbacks;
};

DEFINE_STATIC_SRCU(hmm_srcu);
static struct hmm_bucket hmm_table[1 << HMM_TABLE_BITS];
static struct hmm_tasks hmm_tasks[1 << HMM_TASKS_BITS];
static struct workqueue_struct *hmm_wq;

#ifdef CONFIG_HMM_TEST_POINTS
DEFINE_STATIC_SRCU(hmm_test_srcu);
static hmm_test_hook hmm_test_hook_fn;
static DEFINE_PER_CPU(struct hmm_test_counts, hmm_counts);

#define hmm_count(object, n)	this_cpu_add(hmm_counts.object, n)

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
 * @hook: What to call; may sleep.
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
	int cpu;

	flush_workqueue(hmm_wq);
	if (!counts)
		return;

	memset(counts, 0, sizeof(*counts));
	for_each_possible_cpu(cpu) {
		struct hmm_test_counts *c = per_cpu_ptr(&hmm_counts, cpu);

		counts->devices += READ_ONCE(c->devices);
		counts->mirrors += READ_ONCE(c->mirrors);
		counts->hmms += READ_ONCE(c->hmms);
	}
}
EXPORT_SYMBOL_GPL(hmm_test_quiesce);
#else
#define hmm_count(object, n)	do { } while (0)
static inline void hmm_point(enum hmm_test_point point,
			     struct hmm_mirror *mirror)
{
}
#endif /* CONFIG_HMM_TEST_POINTS */

/* Wait for a driver; say so when it takes long, for nobody else will. */
static void hmm_wait(struct completion *done, const char *device,
		     const char *what)
{
	unsigned int seconds = 0;

	while (!wait_for_completion_timeout(done, HMM_REPORT_SECONDS * HZ)) {
		seconds += HMM_REPORT_SECONDS;
		pr_warn("%s: %s[%d] waits for %s since %u seconds\n", device,
			current->comm, task_pid_nr(current), what, seconds);
	}
}

/*
 * Callbacks of the driver
 */

static struct hmm_tasks *hmm_tasks_of(struct task_struct *task)
{
	return &hmm_tasks[hash_ptr(task, HMM_TASKS_BITS)];
}

/*
 * Lockdep takes a callback for a lock that is held for read, and a wait for one
 * for taking it for write: a wait under a lock that a callback takes, or inside a
 * callback, is reported each time and not only when the two meet. For read, as a
 * callback that drops the last user of another mm runs that mm's callbacks.
 */
static void hmm_callback_enter(struct hmm_callback *callback,
			       struct hmm_device *device)
{
	struct hmm_tasks *tasks = hmm_tasks_of(current);

	callback->task = current;
	spin_lock(&tasks->lock);
	hlist_add_head(&callback->node, &tasks->callbacks);
	spin_unlock(&tasks->lock);
	lock_map_acquire_read(&device->callback_map);
}

static void hmm_callback_exit(struct hmm_callback *callback,
			      struct hmm_device *device)
{
	struct hmm_tasks *tasks = hmm_tasks_of(current);

	lock_map_release(&device->callback_map);
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
	lock_map_acquire_read(&device->callback_map);
	might_lock(&mm->mmap_lock);
	lock_map_release(&device->callback_map);
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
 * References on a device
 *
 * Created by:    __hmm_device_register(), with one reference, the driver's.
 * Pinned by:     each mirror, from hmm_device_get() in hmm_mirror_register()
 *                until hmm_mirror_finish().
 * Dead when:     hmm_device_unregister() made its state other than REGISTERED
 *                under the lock: hmm_device_link() refuses mirrors then.
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

static bool hmm_device_is_registered(struct hmm_device *device)
{
	/* Pairs with the release in __hmm_device_register() */
	return smp_load_acquire(&device->state) == HMM_DEVICE_REGISTERED;
}

/* NULL if @device is not registered; needs no lock that may not be there yet. */
static struct hmm_device *hmm_device_get(struct hmm_device *device)
{
	if (!hmm_device_is_registered(device) ||
	    !kref_get_unless_zero(&device->kref))
		return NULL;

	/*
	 * The reference may be one of a registration later than the state that
	 * was seen; its lock need not be visible then. Now the state is at
	 * least as late.
	 */
	smp_mb__after_atomic();
	if (hmm_device_is_registered(device))
		return device;

	hmm_device_put(device);
	return NULL;
}

/* From here on hmm_device_unregister() says -EBUSY. */
static int hmm_device_link(struct hmm_device *device, struct hmm_mirror *mirror)
{
	int ret = 0;

	spin_lock(&device->lock);
	if (device->state != HMM_DEVICE_REGISTERED) {
		ret = -ENODEV;
	} else if (device->nr_registered == HMM_DEVICE_MAX_MIRRORS) {
		ret = -EOVERFLOW;
	} else {
		device->nr_registered++;
		mirror->registered = true;
	}
	spin_unlock(&device->lock);

	return ret;
}

/* The other end of hmm_device_link(). NULL if @mirror is not registered. */
static struct hmm_device *hmm_device_unlink(struct hmm_mirror *mirror)
{
	struct hmm_device *device = READ_ONCE(mirror->device);
	bool registered;

	if (!device)
		return NULL;

	spin_lock(&device->lock);
	registered = mirror->registered;
	if (registered) {
		mirror->registered = false;
		device->nr_registered--;
	}
	spin_unlock(&device->lock);

	return registered ? device : NULL;
}

/*
 * References on a mirror
 *
 * Created by:    hmm_mirror_register(), with one reference, the registration's,
 *                which hmm_mirror_unregister() drops.
 * Pinned by:     hmm_mirror_get() of the driver; mm exit while it works on it.
 * Found by:      hmm_first_mirror(), under hmm_srcu, with kref_get_unless_zero().
 * Pins:          mm_count and the device, until hmm_mirror_finish().
 * Dead when:     unlinked from hmm::mirrors, by the owner of the release: nobody
 *                finds it from then on.
 * Freed by:      hmm_mirror_finish(), after the last reference is dropped and a
 *                grace period of hmm_srcu since the unlink.
 */

static void hmm_mirror_unused(struct kref *kref)
{
	struct hmm_mirror *mirror = container_of(kref, struct hmm_mirror, kref);
	struct completion *unused = mirror->unused;

	/* Somebody dropped what was not his: leak rather than free */
	if (WARN_ON_ONCE(!unused))
		return;
	/* On the waiter's stack: @mirror may be gone before this returns */
	complete(unused);
}

/**
 * hmm_mirror_get() - Take a reference on a mirror.
 * @mirror: A mirror that the caller has a reference on, or that is registered
 *	and cannot be unregistered meanwhile.
 *
 * Until the reference is dropped by hmm_mirror_put(), hmm_mirror_unregister()
 * does not return and the memory of @mirror stays. A reference keeps no release
 * away: @mirror may be released at any time.
 *
 * Context: Any context.
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
 * @mirror: A mirror that the caller took a reference on by hmm_mirror_get().
 *
 * From this call on the caller may not touch @mirror.
 *
 * Context: Any context. Never sleeps, takes no lock that a driver could hold.
 */
void hmm_mirror_put(struct hmm_mirror *mirror)
{
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
 * neither is a thing that an unregister should wait for.
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

	spin_lock(&bucket->lock);
	/* Not hashed if another thread was quicker in hmm_get() */
	hlist_del_init_rcu(&hmm->node);
	spin_unlock(&bucket->lock);

	queue_work(hmm_wq, &hmm->free_work);
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

static struct hmm_mirror *hmm_first_mirror(struct hmm *hmm)
{
	struct hmm_mirror *mirror, *found = NULL;
	int idx;

	idx = srcu_read_lock(&hmm_srcu);
	list_for_each_entry_srcu(mirror, &hmm->mirrors, node,
				 srcu_read_lock_held(&hmm_srcu)) {
		hmm_point(HMM_POINT_EXIT_WALK, mirror);
		if (kref_get_unless_zero(&mirror->kref)) {
			found = mirror;
			break;
		}
	}
	srcu_read_unlock(&hmm_srcu, idx);

	return found;
}

/*
 * Owner of the release only. No grace period is begun: one that is not expedited
 * would be in the way of the one that hmm_mirror_unregister() expedites. A mirror
 * that lives on for a while after exit may find that others saw to it.
 */
static void hmm_mirror_unlink(struct hmm_mirror *mirror)
{
	struct hmm *hmm = mirror->hmm;

	spin_lock(&hmm->lock);
	list_del_rcu(&mirror->node);
	spin_unlock(&hmm->lock);
	mirror->unlink_gp = get_state_synchronize_srcu(&hmm_srcu);

	mirror->hmm = NULL;
	/* Pairs with hmm_get() in hmm_mirror_register() */
	hmm_put(hmm);
}

/*
 * Returns when ->release() has, whoever ran it. The caller has a reference and
 * keeps it until this returned: complete_all() may touch @mirror after the waiters
 * it woke have gone.
 */
static void hmm_mirror_release(struct hmm_mirror *mirror,
			       enum hmm_release_reason reason)
{
	struct hmm_device *device = mirror->device;
	struct hmm_callback callback;

	if (cmpxchg(&mirror->reason, HMM_RELEASE_NONE, reason) !=
	    HMM_RELEASE_NONE) {
		hmm_point(HMM_POINT_RELEASE_WAIT, mirror);
		hmm_wait(&mirror->released, device->name, "->release()");
		return;
	}

	hmm_point(HMM_POINT_RELEASE_OWNED, mirror);
	hmm_callback_enter(&callback, device);
	device->ops->release(mirror);
	hmm_callback_exit(&callback, device);
	hmm_point(HMM_POINT_RELEASE_RETURNED, mirror);

	hmm_mirror_unlink(mirror);
	complete_all(&mirror->released);
}

/*
 * Removal path B. mm_users is zero: no mirror is added any more, see
 * hmm_mirror_register(). Each turn unlinks the mirror that it found, or waits for
 * who does. The notifier, and with it @hmm, stays until this returned:
 * mmu_interval_notifier_remove() in hmm_free_work() waits for that.
 */
static void hmm_mm_exit(struct hmm *hmm)
{
	struct hmm_mirror *mirror;

	while ((mirror = hmm_first_mirror(hmm))) {
		hmm_point(HMM_POINT_EXIT_FOUND, mirror);
		hmm_mirror_release(mirror, HMM_RELEASE_MM_EXIT);
		hmm_point(HMM_POINT_EXIT_DONE, mirror);
		/* Pairs with the get in hmm_first_mirror() */
		hmm_mirror_put(mirror);
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
 * The one struct hmm of @mm, with a reference. Threads that come first together
 * each make one, as arming may wait for mmap_lock and must not hold up other
 * address spaces; one is kept.
 */
static struct hmm *hmm_get(struct mm_struct *mm)
{
	struct hmm_bucket *bucket = hmm_bucket_of(mm);
	struct hmm *hmm, *created;

	rcu_read_lock();
	hmm = hmm_find(bucket, mm);
	rcu_read_unlock();
	if (hmm)
		return hmm;

	created = hmm_create(mm);
	if (IS_ERR(created))
		return created;
	hmm_point(HMM_POINT_REGISTER_CREATED, NULL);

	spin_lock(&bucket->lock);
	hmm = hmm_find(bucket, mm);
	if (!hmm)
		hlist_add_head_rcu(&created->node, &bucket->hmms);
	spin_unlock(&bucket->lock);
	if (!hmm)
		return created;

	hmm_put(created);
	return hmm;
}

/*
 * Mirrors: the driver's side
 */

/*
 * Nobody has a reference and nobody can find @mirror. The device goes last: with
 * its reference dropped, the module of the driver may be unloaded.
 */
static void hmm_mirror_finish(struct hmm_mirror *mirror)
{
	struct hmm_device *device = mirror->device;
	struct mm_struct *mm = mirror->mm;
	struct hmm_callback callback;

	mirror->mm = NULL;
	/* Pairs with the cmpxchg() in hmm_mirror_register() */
	smp_store_release(&mirror->device, NULL);
	if (device->ops->free) {
		hmm_callback_enter(&callback, device);
		device->ops->free(mirror);
		hmm_callback_exit(&callback, device);
	}

	/* Pairs with the mmgrab() in hmm_mirror_register() */
	mmdrop(mm);
	hmm_count(mirrors, -1);
	hmm_point(HMM_POINT_DEVICE_PUT, NULL);
	hmm_device_put(device);
}

/* The caller has mm_users, a reference on @device, and owns @mirror. */
static int hmm_mirror_link(struct hmm_mirror *mirror, struct hmm_device *device,
			   struct mm_struct *mm)
{
	struct hmm *hmm;
	int ret;

	hmm = hmm_get(mm);
	if (IS_ERR(hmm))
		return PTR_ERR(hmm);

	hmm_point(HMM_POINT_REGISTER_ARMED, mirror);
	ret = hmm_device_link(device, mirror);
	if (ret) {
		hmm_put(hmm);
		return ret;
	}

	/* Pairs with the mmdrop() in hmm_mirror_finish() */
	mmgrab(mm);
	mirror->mm = mm;
	mirror->hmm = hmm;
	mirror->unused = NULL;
	kref_init(&mirror->kref);
	init_completion(&mirror->released);
	WRITE_ONCE(mirror->reason, HMM_RELEASE_NONE);
	hmm_count(mirrors, 1);
	/* From here on mm exit finds it */
	spin_lock(&hmm->lock);
	list_add_tail_rcu(&mirror->node, &hmm->mirrors);
	spin_unlock(&hmm->lock);

	return 0;
}

/**
 * hmm_mirror_register() - Mirror an address space on a device.
 * @mirror: Zeroed memory, or a mirror whose hmm_mirror_unregister() returned.
 * @device: Must stay until this returned, registered or not.
 * @mm: Any address space that the caller has mm_count of: current->mm, or that
 *	of another process.
 *
 * Once this returns 0, @mirror is registered: until hmm_mirror_unregister() is
 * called, its mm_count reference keeps @mm from being freed (not from exiting:
 * mm_users is not held), and hmm_device_unregister() of @device fails. From any
 * time on that this runs, ->release() may: the process may die at once. That
 * does not end the registration.
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
 * * %-EBUSY - @mirror is registered already; that registration is unchanged.
 * * %-ENODEV - @device is not registered, or no longer.
 * * %-ESRCH - @mm has no user left: its last thread exited or went on to exec.
 * * %-EINTR - A signal was pending while the first mirror of @mm was armed.
 * * %-EOVERFLOW - @device has as many mirrors as can be counted.
 * * %-ENOMEM - No memory.
 */
int hmm_mirror_register(struct hmm_mirror *mirror, struct hmm_device *device,
			struct mm_struct *mm)
{
	int ret;

	might_sleep();
	if (!mirror || !device || !mm)
		return -EINVAL;
	if (cmpxchg(&mirror->device, NULL, device))
		return -EBUSY;

	ret = -ENODEV;
	if (!hmm_device_get(device))
		goto out_disown;
	hmm_callback_waits_for_mmap_lock(device, mm);

	/*
	 * Held until @mirror is linked: mm exit comes before all of this, or
	 * finds @mirror.
	 */
	ret = -ESRCH;
	if (!mmget_not_zero(mm))
		goto out_put_device;
	ret = hmm_mirror_link(mirror, device, mm);
	/*
	 * Not mmput(): if this is the last user, exit must not run here, where
	 * the caller may hold what ->release() needs.
	 */
	mmput_async(mm);
	if (!ret)
		return 0;

out_put_device:
	hmm_device_put(device);
out_disown:
	smp_store_release(&mirror->device, NULL);
	return ret;
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
 * ->release() or ->free() takes or waits for; lockdep knows.
 */
void hmm_mirror_unregister(struct hmm_mirror *mirror)
{
	DECLARE_COMPLETION_ONSTACK(unused);
	struct hmm_device *device;

	might_sleep();
	if (WARN_ONCE(hmm_in_callback(),
		      "hmm_mirror_unregister() in a callback of HMM\n"))
		return;
	device = hmm_device_unlink(mirror);
	if (WARN_ONCE(!device,
		      "hmm_mirror_unregister() of an unregistered mirror\n"))
		return;
	hmm_callback_might_wait(device);

	hmm_mirror_release(mirror, HMM_RELEASE_UNREGISTER);

	mirror->unused = &unused;
	hmm_point(HMM_POINT_UNREGISTER_WAIT, mirror);
	/* Pairs with the kref_init() in hmm_mirror_link() */
	hmm_mirror_put(mirror);
	hmm_wait(&unused, device->name, "references to a mirror");

	/*
	 * A walk of hmm_first_mirror() that began before the unlink may still
	 * look at the reference count, to find it zero.
	 */
	if (!poll_state_synchronize_srcu(&hmm_srcu, mirror->unlink_gp))
		synchronize_srcu_expedited(&hmm_srcu);
	hmm_mirror_finish(mirror);
}
EXPORT_SYMBOL_GPL(hmm_mirror_unregister);

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

/*
 * Devices
 */

/* Documented as hmm_device_register() in include/linux/hmm.h */
int __hmm_device_register(struct hmm_device *device,
			  const struct hmm_device_ops *ops, const char *name,
			  struct lock_class_key *key)
{
	if (!device || !ops || !ops->release || !name || !*name)
		return -EINVAL;
	/* Built in, without the memory for it at boot */
	if (!hmm_wq)
		return -ENODEV;
	if (cmpxchg(&device->state, HMM_DEVICE_UNREGISTERED,
		    HMM_DEVICE_CHANGING) != HMM_DEVICE_UNREGISTERED)
		return -EBUSY;

	device->ops = ops;
	device->name = name;
	device->nr_registered = 0;
	device->unused = NULL;
	spin_lock_init(&device->lock);
	kref_init(&device->kref);
	lockdep_init_map(&device->callback_map, "hmm_callback", key, 0);
	hmm_count(devices, 1);
	/* Pairs with the acquire in hmm_device_get() */
	smp_store_release(&device->state, HMM_DEVICE_REGISTERED);

	return 0;
}
EXPORT_SYMBOL_GPL(__hmm_device_register);

/* From here on no mirror is registered, and whoever is the last tells @unused. */
static int hmm_device_close(struct hmm_device *device, struct completion *unused)
{
	int ret = 0;

	spin_lock(&device->lock);
	if (device->state != HMM_DEVICE_REGISTERED) {
		ret = -EINVAL;
	} else if (device->nr_registered) {
		ret = -EBUSY;
	} else {
		device->unused = unused;
		WRITE_ONCE(device->state, HMM_DEVICE_CHANGING);
	}
	spin_unlock(&device->lock);

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

	might_sleep();
	if (WARN_ONCE(hmm_in_callback(),
		      "hmm_device_unregister() in a callback of HMM\n"))
		return -EBUSY;
	/* The lock is one only after registration */
	if (hmm_device_is_registered(device)) {
		hmm_callback_might_wait(device);
		ret = hmm_device_close(device, &unused);
	}
	WARN_ONCE(ret == -EINVAL,
		  "hmm_device_unregister() of an unregistered device\n");
	if (ret)
		return ret;

	hmm_point(HMM_POINT_DEVICE_WAIT, NULL);
	/* Pairs with the kref_init() in __hmm_device_register() */
	hmm_device_put(device);
	hmm_wait(&unused, device->name, "mirrors that go");

	hmm_count(devices, -1);
	/* Pairs with the cmpxchg() in __hmm_device_register() */
	smp_store_release(&device->state, HMM_DEVICE_UNREGISTERED);
	return 0;
}
EXPORT_SYMBOL_GPL(hmm_device_unregister);

static int __init hmm_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(hmm_table); i++)
		spin_lock_init(&hmm_table[i].lock);
	for (i = 0; i < ARRAY_SIZE(hmm_tasks); i++)
		spin_lock_init(&hmm_tasks[i].lock);

	/* Unbound: a removal may wait for as long as an exit takes */
	hmm_wq = alloc_workqueue("hmm", WQ_UNBOUND, 0);
	return hmm_wq ? 0 : -ENOMEM;
}

/*
 * Drivers are gone, and with them all mirrors; what is left of their address
 * spaces may be on its way. Once a notifier is removed, exit has left this module.
 */
static void __exit hmm_exit(void)
{
	destroy_workqueue(hmm_wq);
}

subsys_initcall(hmm_init);
module_exit(hmm_exit);

MODULE_DESCRIPTION("Devices that mirror an address space");
MODULE_LICENSE("GPL");
