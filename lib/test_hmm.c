// SPDX-License-Identifier: GPL-2.0-only
/*
 * Dummy devices that mirror address spaces, to test HMM and to show its use
 *
 * A device here is a worker with page tables of its own. It maps the pages of a
 * buffer by hmm_range_fault(), without a reference on them, and then reads and
 * writes them as hardware would: whenever it likes, until it is told to stop,
 * and whether the process still runs or not. What keeps it off freed pages is
 * what keeps real devices off: the interval notifier that takes pages from it,
 * and the ->release() of its mirror.
 *
 * Who keeps what alive
 * ====================
 *
 * thmm_context		One open file.
 * thmm_board		What is known of a device, and its events. A kref: one
 *			of each context that is attached and one of the device.
 * thmm_device		The device of a board, with its hmm_device. Freed after
 *			hmm_device_unregister(), or by ->device_free() if it was
 *			removed; then mirrors that contexts still have keep it.
 * thmm_mirror		One registration of a context, with its hmm_mirror.
 *			Freed by ->free().
 *
 * Locking
 * =======
 *
 * thmm_context::lock		Board and mirror of the context. It is held
 *				over calls of HMM: callbacks do not take it.
 *   thmm_board::removal_lock	One unplug or unregister at a time.
 *     thmm_board::device_sem	For read while hmm_mirror_register() uses the
 *				device, for write to take it away.
 * thmm_mirror::lock		The page tables of the device. A spinlock, which
 *				the interval notifier takes.
 * thmm_board::log_lock		Events; a spinlock.
 * thmm_boards_lock		The list of boards and their numbers; a leaf.
 * thmm_hook_lock		Whether the hook of the test points is set.
 *   thmm_holds_lock		Which contexts hold threads where; a spinlock.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/cleanup.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hmm.h>
#include <linux/hmm_device.h>
#include <linux/hmm_test.h>
#include <linux/init.h>
#include <linux/kref.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/poll.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "test_hmm_device_uapi.h"

#define THMM_MAX_SIZE		(4UL << 20)
#define THMM_NR_EVENTS		512
#define THMM_MAX_FAULT_TRIES	1000
#define THMM_MAX_RELEASE_MS	60000

static_assert((int)TEST_HMM_REASON_MM_EXIT == HMM_RELEASE_MM_EXIT);
static_assert((int)TEST_HMM_REASON_UNREGISTER == HMM_RELEASE_UNREGISTER);
static_assert((int)TEST_HMM_REASON_DEVICE_GONE == HMM_RELEASE_DEVICE_GONE);
static_assert((int)TEST_HMM_REASON_ERROR == HMM_RELEASE_ERROR);

struct thmm_device {
	struct hmm_device hmm;
	struct thmm_board *board;
};

struct thmm_board {
	struct kref kref;
	struct list_head node;			/* thmm_boards_lock */
	u32 number;
	struct mutex removal_lock;		/* removal of device */
	struct rw_semaphore device_sem;
	struct thmm_device *device;		/* both; NULL: gone */

	spinlock_t log_lock;			/* events, nr_events */
	struct test_hmm_event events[THMM_NR_EVENTS];
	u32 nr_events;				/* ever; also the last seq */
	wait_queue_head_t more_events;
};

struct thmm_context {
	struct mutex lock;			/* board, mirror */
	u32 number;
	struct thmm_board *board;		/* set once */
	bool created_board;
	struct thmm_mirror *mirror;
	struct mutex read_lock;			/* nr_read */
	u32 nr_read;				/* read_lock: events seen */
	u32 release_ms;				/* lock */
	bool holds;				/* thmm_holds_lock: has held */
};

struct thmm_mirror {
	struct hmm_mirror hmm;
	u32 context;
	unsigned long start;
	unsigned long nr_pages;
	u32 release_ms;
	struct mmu_interval_notifier notifier;
	bool has_notifier;

	spinlock_t lock;			/* stopped, pages, nr_writes */
	bool stopped;				/* set by ->release() */
	u64 nr_writes;
	struct page **pages;			/* what the device has mapped */

	struct work_struct access_work;		/* one ioctl at a time */
	struct test_hmm_access access;
	bool access_write;
	int access_ret;
	struct work_struct run_work;		/* again and again */
	struct test_hmm_access run;
	struct work_struct use_work;		/* see thmm_use_work() */
	struct mm_struct *used_mm;
	struct completion use_done;
};

/* A thread that is held waits for the next generation. */
struct thmm_hold {
	struct thmm_context *owner;		/* NULL: nobody holds here */
	bool held;
	unsigned int generation;
};

static LIST_HEAD(thmm_boards);
static DEFINE_MUTEX(thmm_boards_lock);
static u32 thmm_last_board;
static atomic_t thmm_last_context;
static atomic_long_t thmm_nr_mirrors;
static struct workqueue_struct *thmm_wq;

static struct thmm_hold thmm_holds[TEST_HMM_NR_POINTS];
static DEFINE_SPINLOCK(thmm_holds_lock);
static DEFINE_MUTEX(thmm_hook_lock);
static unsigned int thmm_nr_holders;		/* thmm_hook_lock */
static DECLARE_WAIT_QUEUE_HEAD(thmm_holds_wait);

/*
 * Boards and events
 */

static void thmm_board_free(struct kref *kref)
{
	kvfree(container_of(kref, struct thmm_board, kref));
}

static void thmm_board_put(struct thmm_board *board)
{
	kref_put(&board->kref, thmm_board_free);
}

static void thmm_log(struct thmm_board *board, u32 context,
		     enum test_hmm_event_type type, u64 arg)
{
	struct test_hmm_event *event;

	scoped_guard(spinlock, &board->log_lock) {
		event = &board->events[board->nr_events % THMM_NR_EVENTS];
		event->time_ns = ktime_get_ns();
		event->arg = arg;
		event->seq = board->nr_events + 1;
		event->context = context;
		event->type = type;
		event->pid = task_pid_nr(current);
		/* Readers look without the lock whether there are more */
		WRITE_ONCE(board->nr_events, board->nr_events + 1);
	}
	wake_up_all(&board->more_events);
}

/* HMM keeps the device as long as the mirror, and the device its board. */
static struct thmm_board *thmm_board_of(struct thmm_mirror *mirror)
{
	return container_of(hmm_mirror_device(&mirror->hmm), struct thmm_device,
			    hmm)->board;
}

static void thmm_log_mirror(struct thmm_mirror *mirror,
			    enum test_hmm_event_type type, u64 arg)
{
	thmm_log(thmm_board_of(mirror), mirror->context, type, arg);
}

static bool thmm_log_next(struct thmm_board *board, u32 *nr_read,
			  struct test_hmm_event *event)
{
	u32 next = *nr_read;
	bool more;

	guard(spinlock)(&board->log_lock);
	if (board->nr_events - next > THMM_NR_EVENTS)
		next = board->nr_events - THMM_NR_EVENTS;
	more = next != board->nr_events;
	if (more)
		*event = board->events[next++ % THMM_NR_EVENTS];
	WRITE_ONCE(*nr_read, next);
	return more;
}

/*
 * Holding threads
 */

static void thmm_hold(unsigned int point)
{
	struct thmm_hold *hold = &thmm_holds[point];
	unsigned int generation;

	scoped_guard(spinlock, &thmm_holds_lock) {
		generation = hold->generation;
		if (!hold->owner || hold->held)
			return;
		WRITE_ONCE(hold->held, true);
	}
	wake_up_all(&thmm_holds_wait);
	wait_event(thmm_holds_wait,
		   READ_ONCE(hold->generation) != generation);
}

static void thmm_hook(enum hmm_test_point point, struct hmm_mirror *mirror)
{
	thmm_hold(point);
}

/* The hook is set as long as a context lives that has held once. */
static int thmm_become_holder(struct thmm_context *context)
{
	int ret;

	guard(mutex)(&thmm_hook_lock);
	if (context->holds)
		return 0;
	ret = thmm_nr_holders ? 0 : hmm_test_set_hook(thmm_hook);
	if (ret)
		return ret;
	thmm_nr_holders++;
	context->holds = true;
	return 0;
}

static int thmm_hold_arm(struct thmm_context *context, u32 point)
{
	int ret;

	if (point >= TEST_HMM_NR_POINTS)
		return -EINVAL;
	ret = thmm_become_holder(context);
	if (ret)
		return ret;

	guard(spinlock)(&thmm_holds_lock);
	if (thmm_holds[point].owner)
		return -EBUSY;
	WRITE_ONCE(thmm_holds[point].owner, context);
	return 0;
}

static int thmm_hold_wait(struct thmm_context *context,
			  const struct test_hmm_wait *wait)
{
	struct thmm_hold *hold;
	long left;

	if (wait->point >= TEST_HMM_NR_POINTS)
		return -EINVAL;
	hold = &thmm_holds[wait->point];
	if (READ_ONCE(hold->owner) != context)
		return -ENXIO;

	left = msecs_to_jiffies(wait->timeout_ms);
	left = wait_event_interruptible_timeout(thmm_holds_wait,
						READ_ONCE(hold->held), left);
	if (left < 0)
		return left;
	return left ? 0 : -ETIME;
}

static int thmm_hold_resume(struct thmm_context *context, u32 point)
{
	struct thmm_hold *hold;

	if (point >= TEST_HMM_NR_POINTS)
		return -EINVAL;

	hold = &thmm_holds[point];
	scoped_guard(spinlock, &thmm_holds_lock) {
		if (hold->owner != context)
			return -ENXIO;
		WRITE_ONCE(hold->owner, NULL);
		WRITE_ONCE(hold->held, false);
		WRITE_ONCE(hold->generation, hold->generation + 1);
	}
	wake_up_all(&thmm_holds_wait);
	return 0;
}

/* A test that died holds no thread. */
static void thmm_holds_drop(struct thmm_context *context)
{
	u32 point;

	for (point = 0; point < TEST_HMM_NR_POINTS; point++)
		thmm_hold_resume(context, point);

	guard(mutex)(&thmm_hook_lock);
	if (context->holds && !--thmm_nr_holders)
		hmm_test_clear_hook();
}

/*
 * The device: page tables and accesses
 */

/*
 * Pages are about to change or to be freed: take them from the device. The lock
 * makes this wait for the access that runs. Exit comes here twice. First for
 * MMU_NOTIFY_RELEASE, which is of no interest, since ->release() follows; then
 * to unmap, and that is when pages begin to be freed.
 */
static bool thmm_invalidate(struct mmu_interval_notifier *notifier,
			    const struct mmu_notifier_range *range,
			    unsigned long cur_seq)
{
	struct thmm_mirror *mirror =
		container_of(notifier, struct thmm_mirror, notifier);
	unsigned long first, end, i;
	bool stopped;

	if (range->event == MMU_NOTIFY_RELEASE)
		return true;

	first = max(range->start, mirror->start) - mirror->start;
	end = min(range->end - mirror->start,
		  mirror->nr_pages << PAGE_SHIFT);

	scoped_guard(spinlock, &mirror->lock) {
		mmu_interval_set_seq(notifier, cur_seq);
		stopped = mirror->stopped;
		for (i = first >> PAGE_SHIFT; i < PFN_UP(end); i++)
			mirror->pages[i] = NULL;
	}
	if (range->event == MMU_NOTIFY_UNMAP)
		thmm_log_mirror(mirror, TEST_HMM_UNMAP, !stopped);
	return true;
}

static const struct mmu_interval_notifier_ops thmm_notifier_ops = {
	.invalidate = thmm_invalidate,
};

static int thmm_map_once(struct thmm_mirror *mirror, struct mm_struct *mm,
			 unsigned long index)
{
	unsigned long pfn = 0;
	struct hmm_range range = {
		.notifier = &mirror->notifier,
		.start = mirror->start + (index << PAGE_SHIFT),
		.end = mirror->start + ((index + 1) << PAGE_SHIFT),
		.hmm_pfns = &pfn,
		/* All mappings are writable: this device has one sort */
		.default_flags = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE,
	};
	int ret;

	range.notifier_seq = mmu_interval_read_begin(&mirror->notifier);
	mmap_read_lock(mm);
	ret = hmm_range_fault(&range);
	mmap_read_unlock(mm);
	if (ret)
		return ret;

	guard(spinlock)(&mirror->lock);
	if (mirror->stopped)
		return hmm_mirror_error(&mirror->hmm);
	if (mmu_interval_read_retry(&mirror->notifier, range.notifier_seq))
		return -EBUSY;
	mirror->pages[index] = hmm_pfn_to_page(pfn);
	return 0;
}

/*
 * Only a fault needs the address space: what is mapped stays usable without.
 * The caller is a worker that ->release() waits for, so the mirror stays. Like
 * helpers of the kernel, the fault takes mm_users of its own; those of HMM keep
 * its mmput() from running exit here.
 */
static int thmm_map(struct thmm_mirror *mirror, unsigned long index)
{
	struct mm_struct *mm = hmm_mirror_mm_get(&mirror->hmm);
	unsigned int tries = 0;
	int ret;

	if (!mm)
		return hmm_mirror_error(&mirror->hmm) ?: -ESRCH;
	mmget(mm);
	do {
		ret = thmm_map_once(mirror, mm, index);
	} while (ret == -EBUSY && ++tries < THMM_MAX_FAULT_TRIES);
	mmput(mm);
	hmm_mirror_mm_put(&mirror->hmm);

	return ret;
}

/* One access to one page that is mapped. -EAGAIN: it is not. */
static int thmm_touch(struct thmm_mirror *mirror, unsigned long index,
		      bool write, u64 *value)
{
	u64 *word;

	guard(spinlock)(&mirror->lock);
	if (mirror->stopped)
		return hmm_mirror_error(&mirror->hmm);
	if (!mirror->pages[index])
		return -EAGAIN;

	word = kmap_local_page(mirror->pages[index]);
	if (write) {
		WRITE_ONCE(*word, *value);
		folio_mark_dirty(page_folio(mirror->pages[index]));
		mirror->nr_writes++;
	} else {
		*value = READ_ONCE(*word);
	}
	kunmap_local(word);
	return 0;
}

static int thmm_access_page(struct thmm_mirror *mirror, unsigned long index,
			    bool write, u64 *value)
{
	int ret;

	while ((ret = thmm_touch(mirror, index, write, value)) == -EAGAIN) {
		ret = thmm_map(mirror, index);
		if (ret)
			return ret;
		cond_resched();
	}
	return ret;
}

static void thmm_access_work(struct work_struct *work)
{
	struct thmm_mirror *mirror =
		container_of(work, struct thmm_mirror, access_work);
	struct test_hmm_access *access = &mirror->access;
	u64 i;

	mirror->access_ret = 0;
	for (i = 0; i < access->count && !mirror->access_ret; i++)
		mirror->access_ret = thmm_access_page(mirror, access->first + i,
						      mirror->access_write,
						      &access->value);
	if (mirror->access_ret)
		return;
	if (mirror->access_write)
		thmm_log_mirror(mirror, TEST_HMM_DEVICE_WROTE, access->count);
	else
		thmm_log_mirror(mirror, TEST_HMM_DEVICE_READ, access->first);
}

/*
 * On and on: also in a process that is dying, on what is mapped; what is not
 * cannot be faulted any more then. ->release() ends it.
 */
static void thmm_run_work(struct work_struct *work)
{
	struct thmm_mirror *mirror =
		container_of(work, struct thmm_mirror, run_work);
	struct test_hmm_access *run = &mirror->run;
	u64 i;

	for (i = 0; i < run->count; i++)
		thmm_access_page(mirror, run->first + i, true, &run->value);
	run->value++;

	guard(spinlock)(&mirror->lock);
	if (!mirror->stopped)
		queue_work(thmm_wq, &mirror->run_work);
}

/*
 * A worker with mm_users that HMM does not know of, like the workers of the
 * IOMMU core. Its mmput() may run exit, and so ->release() of this mirror.
 */
static void thmm_use_work(struct work_struct *work)
{
	struct thmm_mirror *mirror =
		container_of(work, struct thmm_mirror, use_work);

	thmm_hold(TEST_HMM_IN_USE_MM);
	mmput(mirror->used_mm);
	complete_all(&mirror->use_done);
	hmm_mirror_put(&mirror->hmm);
}

/*
 * Callbacks of HMM
 */

static void thmm_release(struct hmm_mirror *hmm)
{
	struct thmm_mirror *mirror = container_of(hmm, struct thmm_mirror, hmm);

	thmm_log_mirror(mirror, TEST_HMM_RELEASE,
			hmm_mirror_release_reason(hmm));

	/* Nothing is begun from here on, nor queued again; then drain */
	scoped_guard(spinlock, &mirror->lock) {
		mirror->stopped = true;
		memset(mirror->pages, 0,
		       mirror->nr_pages * sizeof(*mirror->pages));
	}
	cancel_work_sync(&mirror->run_work);
	flush_work(&mirror->access_work);
	/* Without mm_users, the mmput() of that worker may wait for this */
	if (mirror->used_mm && atomic_read(&mirror->used_mm->mm_users))
		wait_for_completion(&mirror->use_done);

	thmm_hold(TEST_HMM_IN_RELEASE);
	if (mirror->release_ms)
		msleep(mirror->release_ms);
	thmm_log_mirror(mirror, TEST_HMM_STOPPED, mirror->nr_writes);
}

static void thmm_mirror_free(struct thmm_mirror *mirror)
{
	kvfree(mirror->pages);
	kfree(mirror);
	atomic_long_dec(&thmm_nr_mirrors);
}

static void thmm_free(struct hmm_mirror *hmm)
{
	struct thmm_mirror *mirror = container_of(hmm, struct thmm_mirror, hmm);

	/* Not in ->release(): it would wait for an exit that calls it */
	if (mirror->has_notifier)
		mmu_interval_notifier_remove(&mirror->notifier);
	thmm_log_mirror(mirror, TEST_HMM_FREED, 0);
	thmm_mirror_free(mirror);
}

/* The device was removed, and its last mirror is gone. */
static void thmm_device_free(struct hmm_device *hmm)
{
	struct thmm_device *device = container_of(hmm, struct thmm_device, hmm);

	thmm_log(device->board, 0, TEST_HMM_DEVICE_FREED, 0);
	thmm_board_put(device->board);
	kfree(device);
}

static const struct hmm_device_ops thmm_device_ops = {
	.release	= thmm_release,
	.free		= thmm_free,
	.device_free	= thmm_device_free,
};

/*
 * Contexts: the ioctls
 */

static struct thmm_board *thmm_board_create(void)
{
	struct thmm_device *device;
	struct thmm_board *board;
	char name[16];
	int ret = -ENOMEM;

	board = kvzalloc_obj(*board);
	device = kzalloc_obj(*device);
	if (!board || !device)
		goto err_free;

	kref_init(&board->kref);
	INIT_LIST_HEAD(&board->node);
	mutex_init(&board->removal_lock);
	init_rwsem(&board->device_sem);
	board->device = device;
	device->board = board;
	spin_lock_init(&board->log_lock);
	init_waitqueue_head(&board->more_events);

	scoped_guard(mutex, &thmm_boards_lock)
		board->number = ++thmm_last_board;
	snprintf(name, sizeof(name), "test%u", board->number);
	ret = hmm_device_register(&device->hmm, &thmm_device_ops, name);
	if (ret)
		goto err_free;
	/* Of the device; the first is of the context */
	kref_get(&board->kref);
	return board;

err_free:
	kfree(device);
	kvfree(board);
	return ERR_PTR(ret);
}

/*
 * A register in another thread still looks at the device, until HMM refuses it.
 */
static struct thmm_device *thmm_board_take_device(struct thmm_board *board)
{
	struct thmm_device *device = board->device;

	guard(rwsem_write)(&board->device_sem);
	board->device = NULL;
	return device;
}

/* Unregister the device and free it in the next line, if it has no mirrors. */
static int thmm_ioctl_destroy(struct thmm_board *board)
{
	int ret;

	guard(mutex)(&board->removal_lock);
	if (!board->device)
		return -ENODEV;
	ret = hmm_device_unregister(&board->device->hmm);
	if (ret)
		return ret;
	kfree(thmm_board_take_device(board));
	thmm_log(board, 0, TEST_HMM_DEVICE_GONE, 0);
	thmm_board_put(board);
	return 0;
}

/* HMM refuses a register that comes meanwhile. */
static int thmm_ioctl_unplug(struct thmm_board *board)
{
	guard(mutex)(&board->removal_lock);
	if (!board->device)
		return -ENODEV;
	hmm_device_unplug(&board->device->hmm);
	thmm_log(board, 0, TEST_HMM_UNPLUGGED, 0);
	return 0;
}

/*
 * The device is pulled out. Contexts that have mirrors keep it until they are
 * closed; then HMM calls ->device_free().
 */
static int thmm_ioctl_remove(struct thmm_board *board)
{
	struct thmm_device *device;

	scoped_guard(mutex, &thmm_boards_lock)
		list_del_init(&board->node);

	guard(mutex)(&board->removal_lock);
	if (!board->device)
		return -ENODEV;
	hmm_device_unplug(&board->device->hmm);
	thmm_log(board, 0, TEST_HMM_UNPLUGGED, 0);
	device = thmm_board_take_device(board);
	hmm_device_unregister_async(&device->hmm);
	return 0;
}

static void thmm_attach(struct thmm_context *context, struct thmm_board *board)
{
	/* Pairs with the acquire in thmm_read() and thmm_poll() */
	smp_store_release(&context->board, board);
}

static int thmm_ioctl_create(struct thmm_context *context, u32 __user *number)
{
	struct thmm_board *board;

	if (context->board)
		return -EBUSY;
	board = thmm_board_create();
	if (IS_ERR(board))
		return PTR_ERR(board);

	context->created_board = true;
	thmm_attach(context, board);
	scoped_guard(mutex, &thmm_boards_lock)
		list_add(&board->node, &thmm_boards);
	return put_user(board->number, number);
}

static int thmm_ioctl_attach(struct thmm_context *context, u32 number)
{
	struct thmm_board *board;

	if (context->board)
		return -EBUSY;

	guard(mutex)(&thmm_boards_lock);
	list_for_each_entry(board, &thmm_boards, node) {
		if (board->number == number) {
			kref_get(&board->kref);
			thmm_attach(context, board);
			return 0;
		}
	}
	return -ENOENT;
}

static int thmm_check_buffer(const struct test_hmm_register *arg)
{
	u64 end;

	if (arg->flags)
		return -EINVAL;
	if (!arg->size || arg->size > THMM_MAX_SIZE)
		return -EINVAL;
	if (!PAGE_ALIGNED(arg->addr) || !PAGE_ALIGNED(arg->size))
		return -EINVAL;
	if (check_add_overflow(arg->addr, arg->size, &end) || end > TASK_SIZE)
		return -EINVAL;
	return 0;
}

static struct thmm_mirror *
thmm_mirror_alloc(struct thmm_context *context,
		  const struct test_hmm_register *arg)
{
	struct thmm_mirror *mirror;

	mirror = kzalloc_obj(*mirror);
	if (!mirror)
		return NULL;

	mirror->nr_pages = arg->size >> PAGE_SHIFT;
	mirror->pages = kvcalloc(mirror->nr_pages, sizeof(*mirror->pages),
				 GFP_KERNEL);
	if (!mirror->pages) {
		kfree(mirror);
		return NULL;
	}

	mirror->context = context->number;
	mirror->start = arg->addr;
	mirror->release_ms = context->release_ms;
	spin_lock_init(&mirror->lock);
	INIT_WORK(&mirror->access_work, thmm_access_work);
	INIT_WORK(&mirror->run_work, thmm_run_work);
	INIT_WORK(&mirror->use_work, thmm_use_work);
	init_completion(&mirror->use_done);
	complete_all(&mirror->use_done);
	atomic_long_inc(&thmm_nr_mirrors);
	return mirror;
}

static int thmm_register(struct thmm_mirror *mirror, struct thmm_board *board)
{
	guard(rwsem_read)(&board->device_sem);
	if (!board->device)
		return -ENODEV;
	return hmm_mirror_register(&mirror->hmm, &board->device->hmm,
				   current->mm);
}

/* From hmm_mirror_register() on, the mirror may be released at any time. */
static int thmm_ioctl_register(struct thmm_context *context,
			       struct test_hmm_register __user *uarg)
{
	struct thmm_board *board = context->board;
	struct test_hmm_register arg;
	struct thmm_mirror *mirror;
	int ret;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	ret = thmm_check_buffer(&arg);
	if (ret)
		return ret;
	if (!board)
		return -ENODEV;
	/* Same mirror twice: HMM says no, not this driver */
	if (context->mirror)
		return thmm_register(context->mirror, board);
	/* Told before the mirror is there: nothing to undo on a bad pointer */
	if (put_user(context->number, &uarg->context))
		return -EFAULT;

	mirror = thmm_mirror_alloc(context, &arg);
	if (!mirror)
		return -ENOMEM;
	ret = thmm_register(mirror, board);
	if (ret) {
		thmm_mirror_free(mirror);
		return ret;
	}
	ret = mmu_interval_notifier_insert(&mirror->notifier, current->mm,
					   mirror->start, arg.size,
					   &thmm_notifier_ops);
	if (ret) {
		hmm_mirror_unregister(&mirror->hmm);
		return ret;
	}
	mirror->has_notifier = true;

	context->mirror = mirror;
	thmm_log(board, context->number, TEST_HMM_REGISTERED,
		 mirror->nr_pages);
	return 0;
}

static int thmm_ioctl_unregister(struct thmm_context *context, bool async)
{
	struct thmm_mirror *mirror = context->mirror;

	if (!mirror)
		return -ENXIO;

	context->mirror = NULL;
	if (async) {
		hmm_mirror_unregister_async(&mirror->hmm);
		return 0;
	}
	hmm_mirror_unregister(&mirror->hmm);
	thmm_log(context->board, context->number, TEST_HMM_UNREGISTERED, 0);
	return 0;
}

static int thmm_ioctl_kill(struct thmm_context *context)
{
	if (!context->mirror)
		return -ENXIO;

	hmm_mirror_kill(&context->mirror->hmm);
	return 0;
}

static int thmm_ioctl_find(struct thmm_board *board)
{
	struct hmm_mirror *mirror;

	scoped_guard(rwsem_read, &board->device_sem) {
		if (!board->device)
			return -ENODEV;
		mirror = hmm_mirror_find(&board->device->hmm, current->mm);
	}
	if (!mirror)
		return -ESRCH;

	hmm_mirror_put(mirror);
	return 0;
}

static int thmm_access_check(struct thmm_context *context,
			     struct test_hmm_access __user *uarg,
			     struct test_hmm_access *arg)
{
	struct thmm_mirror *mirror = context->mirror;

	if (copy_from_user(arg, uarg, sizeof(*arg)))
		return -EFAULT;
	if (!mirror)
		return -ENXIO;
	if (!hmm_mirror_is_current(&mirror->hmm))
		return -EPERM;
	if (!arg->count || arg->first >= mirror->nr_pages ||
	    arg->count > mirror->nr_pages - arg->first)
		return -EINVAL;
	return 0;
}

static int thmm_ioctl_access(struct thmm_context *context,
			     struct test_hmm_access __user *uarg, bool write)
{
	struct thmm_mirror *mirror = context->mirror;
	struct test_hmm_access arg;
	int ret;

	ret = thmm_access_check(context, uarg, &arg);
	if (ret)
		return ret;

	mirror->access = arg;
	mirror->access_write = write;
	queue_work(thmm_wq, &mirror->access_work);
	flush_work(&mirror->access_work);
	if (mirror->access_ret || write)
		return mirror->access_ret;

	return put_user(mirror->access.value, &uarg->value);
}

static int thmm_ioctl_run(struct thmm_context *context,
			  struct test_hmm_access __user *uarg)
{
	struct thmm_mirror *mirror = context->mirror;
	struct test_hmm_access arg;
	int ret;

	ret = thmm_access_check(context, uarg, &arg);
	if (ret)
		return ret;
	/* ->release() drains what was queued before it set stopped */
	guard(spinlock)(&mirror->lock);
	if (mirror->stopped)
		return hmm_mirror_error(&mirror->hmm);
	if (mirror->run.count)
		return -EBUSY;
	mirror->run = arg;
	thmm_log_mirror(mirror, TEST_HMM_DEVICE_RUNS, arg.count);
	queue_work(thmm_wq, &mirror->run_work);
	return 0;
}

static int thmm_ioctl_use_mm(struct thmm_mirror *mirror)
{
	if (!mirror)
		return -ENXIO;
	if (!hmm_mirror_is_current(&mirror->hmm))
		return -EPERM;

	guard(spinlock)(&mirror->lock);
	if (mirror->stopped)
		return hmm_mirror_error(&mirror->hmm);
	if (!completion_done(&mirror->use_done))
		return -EBUSY;
	reinit_completion(&mirror->use_done);
	mirror->used_mm = current->mm;
	mmget(current->mm);
	hmm_mirror_get(&mirror->hmm);
	queue_work(thmm_wq, &mirror->use_work);
	return 0;
}

static int thmm_ioctl_counts(struct test_hmm_counts __user *ucounts)
{
	struct hmm_test_counts hmm;
	struct test_hmm_counts counts;

	hmm_synchronize();
	hmm_test_quiesce(&hmm);
	counts.devices = hmm.devices;
	counts.mirrors = hmm.mirrors;
	counts.hmms = hmm.hmms;
	counts.contexts = atomic_long_read(&thmm_nr_mirrors);

	return copy_to_user(ucounts, &counts, sizeof(counts)) ? -EFAULT : 0;
}

/* Those that need a device. */
static long thmm_ioctl_board(struct thmm_board *board, unsigned int cmd)
{
	if (!board)
		return -ENODEV;

	switch (cmd) {
	case TEST_HMM_DEVICE_DESTROY:
		return thmm_ioctl_destroy(board);
	case TEST_HMM_DEVICE_UNPLUG:
		return thmm_ioctl_unplug(board);
	case TEST_HMM_DEVICE_REMOVE:
		return thmm_ioctl_remove(board);
	case TEST_HMM_FIND:
		return thmm_ioctl_find(board);
	default:
		return -ENOTTY;
	}
}

static long thmm_ioctl_locked(struct thmm_context *context, unsigned int cmd,
			      void __user *uarg)
{
	u32 number;

	switch (cmd) {
	case TEST_HMM_DEVICE_CREATE:
		return thmm_ioctl_create(context, uarg);
	case TEST_HMM_DEVICE_ATTACH:
		if (get_user(number, (u32 __user *)uarg))
			return -EFAULT;
		return thmm_ioctl_attach(context, number);
	case TEST_HMM_REGISTER:
		return thmm_ioctl_register(context, uarg);
	case TEST_HMM_UNREGISTER:
		return thmm_ioctl_unregister(context, false);
	case TEST_HMM_UNREGISTER_ASYNC:
		return thmm_ioctl_unregister(context, true);
	case TEST_HMM_KILL:
		return thmm_ioctl_kill(context);
	case TEST_HMM_RELEASE_TAKES:
		if (get_user(number, (u32 __user *)uarg))
			return -EFAULT;
		if (number > THMM_MAX_RELEASE_MS)
			return -EINVAL;
		context->release_ms = number;
		return 0;
	case TEST_HMM_WRITE:
		return thmm_ioctl_access(context, uarg, true);
	case TEST_HMM_READ:
		return thmm_ioctl_access(context, uarg, false);
	case TEST_HMM_RUN:
		return thmm_ioctl_run(context, uarg);
	case TEST_HMM_USE_MM:
		return thmm_ioctl_use_mm(context->mirror);
	case TEST_HMM_DEVICE_DESTROY:
	case TEST_HMM_DEVICE_UNPLUG:
	case TEST_HMM_DEVICE_REMOVE:
	case TEST_HMM_FIND:
		return thmm_ioctl_board(context->board, cmd);
	default:
		return -ENOTTY;
	}
}

/* Those that hold and count work while another ioctl of the context is held. */
static long thmm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct thmm_context *context = file->private_data;
	void __user *uarg = (void __user *)arg;
	struct test_hmm_wait wait;
	u32 point;

	switch (cmd) {
	case TEST_HMM_HOLD:
		if (get_user(point, (u32 __user *)uarg))
			return -EFAULT;
		return thmm_hold_arm(context, point);
	case TEST_HMM_RESUME:
		if (get_user(point, (u32 __user *)uarg))
			return -EFAULT;
		return thmm_hold_resume(context, point);
	case TEST_HMM_WAIT_HELD:
		if (copy_from_user(&wait, uarg, sizeof(wait)))
			return -EFAULT;
		return thmm_hold_wait(context, &wait);
	case TEST_HMM_SYNCHRONIZE:
		hmm_synchronize();
		return 0;
	case TEST_HMM_COUNTS:
		return thmm_ioctl_counts(uarg);
	}

	guard(mutex)(&context->lock);
	return thmm_ioctl_locked(context, cmd, uarg);
}

static bool thmm_log_has_more(struct thmm_context *context)
{
	return READ_ONCE(context->board->nr_events) !=
	       READ_ONCE(context->nr_read);
}

static ssize_t thmm_read(struct file *file, char __user *buf, size_t size,
			 loff_t *pos)
{
	struct thmm_context *context = file->private_data;
	/* Pairs with the release in thmm_attach() */
	struct thmm_board *board = smp_load_acquire(&context->board);
	struct test_hmm_event event;
	ssize_t done = 0;
	int ret = 0;

	if (!board)
		return -ENODEV;
	if (size < sizeof(event))
		return -EINVAL;
	if (mutex_lock_interruptible(&context->read_lock))
		return -ERESTARTSYS;

	while (size - done >= sizeof(event)) {
		if (!thmm_log_next(board, &context->nr_read, &event)) {
			if (done)
				break;
			ret = -EAGAIN;
			if (file->f_flags & O_NONBLOCK)
				break;
			ret = wait_event_interruptible(board->more_events,
						       thmm_log_has_more(context));
			if (ret)
				break;
			continue;
		}
		if (copy_to_user(buf + done, &event, sizeof(event))) {
			ret = -EFAULT;
			break;
		}
		done += sizeof(event);
	}
	mutex_unlock(&context->read_lock);

	return done ?: ret;
}

static __poll_t thmm_poll(struct file *file, poll_table *wait)
{
	struct thmm_context *context = file->private_data;
	/* Pairs with the release in thmm_attach() */
	struct thmm_board *board = smp_load_acquire(&context->board);

	if (!board)
		return EPOLLERR;
	poll_wait(file, &board->more_events, wait);
	return thmm_log_has_more(context) ? EPOLLIN | EPOLLRDNORM : 0;
}

static int thmm_open(struct inode *inode, struct file *file)
{
	struct thmm_context *context;

	context = kzalloc_obj(*context);
	if (!context)
		return -ENOMEM;

	mutex_init(&context->lock);
	mutex_init(&context->read_lock);
	context->number = atomic_inc_return(&thmm_last_context);
	file->private_data = context;
	return stream_open(inode, file);
}

/*
 * The last descriptor is closed, in whatever process: the mirror is
 * unregistered whosever address space it mirrors.
 */
static int thmm_close(struct inode *inode, struct file *file)
{
	struct thmm_context *context = file->private_data;

	thmm_holds_drop(context);
	thmm_ioctl_unregister(context, false);
	if (context->created_board)
		thmm_ioctl_remove(context->board);
	if (context->board)
		thmm_board_put(context->board);
	kfree(context);
	return 0;
}

static const struct file_operations thmm_fops = {
	.owner		= THIS_MODULE,
	.open		= thmm_open,
	.release	= thmm_close,
	.read		= thmm_read,
	.poll		= thmm_poll,
	.unlocked_ioctl	= thmm_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
};

static struct miscdevice thmm_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "test_hmm",
	.fops	= &thmm_fops,
	.mode	= 0600,
};

static int __init thmm_init(void)
{
	int ret;

	/* Unbound: an access may fault, and wait for as long as that takes */
	thmm_wq = alloc_workqueue("test_hmm", WQ_UNBOUND, 0);
	if (!thmm_wq)
		return -ENOMEM;

	ret = misc_register(&thmm_misc);
	if (ret)
		destroy_workqueue(thmm_wq);
	return ret;
}

/* No file is open, but callbacks may be pending. */
static void __exit thmm_exit(void)
{
	misc_deregister(&thmm_misc);
	hmm_synchronize();
	destroy_workqueue(thmm_wq);
}

module_init(thmm_init);
module_exit(thmm_exit);

MODULE_DESCRIPTION("Dummy devices that mirror address spaces");
MODULE_LICENSE("GPL");
