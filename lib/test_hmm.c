// SPDX-License-Identifier: GPL-2.0-only
/*
 * Dummy devices that mirror address spaces, to test HMM and to show its use
 *
 * A device here is a worker with page tables of its own. It maps the pages of a
 * buffer by hmm_range_fault(), without a reference on them, and then reads and
 * writes them as hardware would: whenever it likes, until it is told to stop, and
 * whether the process still runs or not. What keeps it off freed pages is what
 * keeps real devices off: the interval notifier that takes pages from it, and the
 * ->release() of its mirror.
 *
 * Who keeps what alive
 * ====================
 *
 *	test_context		one open file; freed by its release
 *	test_board		what is known of a device, and its events; a kref,
 *				of the attached contexts and of each test_mirror
 *	test_device		the device of a board, with its hmm_device; freed in
 *				the line after hmm_device_unregister() returned 0
 *	test_mirror		one registration of a context, with its hmm_mirror;
 *				freed by ->free()
 *
 * Locking
 * =======
 *
 *	test_context::lock		what the context is attached to and has
 *					registered; held over HMM's calls, so never
 *					taken in callbacks
 *	  test_board::removal_lock	one hmm_device_unregister() or _unplug() at a time
 *	    test_board::device_sem	for read while hmm_mirror_register() uses
 *					the device, for write to take it away
 *	test_mirror::lock		the page tables of the device; spinlock, taken
 *					by the interval notifier
 *	test_board::log_lock		events; spinlock
 *	test_boards_lock		the list of boards, their numbers, and how many
 *					contexts are attached; leaf
 *	test_hook_lock			whether the hook of the test points is set
 *	  test_holds_lock		who holds threads where; spinlock
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
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

#define TEST_MAX_SIZE		(4UL << 20)
#define TEST_NR_EVENTS		512
#define TEST_MAX_FAULT_TRIES	1000
#define TEST_MAX_RELEASE_MS	60000

static_assert((int)TEST_HMM_AT_REGISTER_OWN == HMM_POINT_REGISTER_OWN);
static_assert((int)TEST_HMM_AT_REGISTER_CREATED ==
	      HMM_POINT_REGISTER_CREATED);
static_assert((int)TEST_HMM_AT_REGISTER_ARMED == HMM_POINT_REGISTER_ARMED);
static_assert((int)TEST_HMM_AT_REGISTER_LINKED == HMM_POINT_REGISTER_LINKED);
static_assert((int)TEST_HMM_AT_EXIT_WALK == HMM_POINT_EXIT_WALK);
static_assert((int)TEST_HMM_AT_EXIT_FOUND == HMM_POINT_EXIT_FOUND);
static_assert((int)TEST_HMM_AT_RELEASE_OWNED == HMM_POINT_RELEASE_OWNED);
static_assert((int)TEST_HMM_AT_RELEASE_RETURNED == HMM_POINT_RELEASE_RETURNED);
static_assert((int)TEST_HMM_AT_RELEASE_WAIT == HMM_POINT_RELEASE_WAIT);
static_assert((int)TEST_HMM_AT_EXIT_DONE == HMM_POINT_EXIT_DONE);
static_assert((int)TEST_HMM_AT_EXIT_DROPPED == HMM_POINT_EXIT_DROPPED);
static_assert((int)TEST_HMM_AT_MM_UNUSED == HMM_POINT_MM_UNUSED);
static_assert((int)TEST_HMM_AT_UNREGISTER_WAIT == HMM_POINT_UNREGISTER_WAIT);
static_assert((int)TEST_HMM_AT_UNPLUG_DONE == HMM_POINT_UNPLUG_DONE);
static_assert((int)TEST_HMM_AT_DEVICE_WAIT == HMM_POINT_DEVICE_WAIT);
static_assert((int)TEST_HMM_AT_DEVICE_PUT == HMM_POINT_DEVICE_PUT);
static_assert((int)TEST_HMM_AT_DEVICE_DROPPED == HMM_POINT_DEVICE_DROPPED);
static_assert((int)TEST_HMM_AT_DEVICE_OWN == HMM_POINT_DEVICE_OWN);
static_assert((int)TEST_HMM_AT_FIND_WALK == HMM_POINT_FIND_WALK);
static_assert((int)TEST_HMM_AT_FIND_FOUND == HMM_POINT_FIND_FOUND);
static_assert((int)TEST_HMM_AT_PIN_WALK == HMM_POINT_PIN_WALK);
static_assert((int)TEST_HMM_AT_ASYNC_OWN == HMM_POINT_ASYNC_OWN);
static_assert((int)TEST_HMM_AT_UNPLUG_OWNED == HMM_POINT_UNPLUG_OWNED);
static_assert((int)TEST_HMM_AT_KILL_OWN == HMM_POINT_KILL_OWN);
static_assert((int)TEST_HMM_IN_RELEASE == HMM_NR_POINTS);
static_assert((int)TEST_HMM_REASON_MM_EXIT == HMM_RELEASE_MM_EXIT);
static_assert((int)TEST_HMM_REASON_UNREGISTER == HMM_RELEASE_UNREGISTER);
static_assert((int)TEST_HMM_REASON_DEVICE_GONE == HMM_RELEASE_DEVICE_GONE);
static_assert((int)TEST_HMM_REASON_ERROR == HMM_RELEASE_ERROR);

struct test_device {
	struct hmm_device hmm;
	char name[16];
};

struct test_board {
	struct kref kref;
	struct list_head node;			/* test_boards_lock */
	u32 number;
	unsigned int nr_attached;		/* test_boards_lock */
	struct mutex removal_lock;
	struct rw_semaphore device_sem;
	struct test_device *device;		/* device_sem; NULL: gone */

	spinlock_t log_lock;			/* events, nr_events */
	struct test_hmm_event events[TEST_NR_EVENTS];
	u32 nr_events;				/* ever; also the last seq */
	wait_queue_head_t more_events;
};

struct test_context {
	struct mutex lock;			/* board, mirror */
	u32 number;
	struct test_board *board;		/* set once */
	struct test_mirror *mirror;
	struct mutex read_lock;			/* nr_read */
	u32 nr_read;				/* read_lock: events seen */
	u32 release_ms;				/* lock */
	bool holds;				/* test_holds_lock: has held */
};

struct test_mirror {
	struct hmm_mirror hmm;
	struct test_board *board;
	struct mm_struct *mm;			/* pinned by hmm */
	u32 context;
	unsigned long start;
	unsigned long nr_pages;
	u32 release_ms;
	struct mmu_interval_notifier notifier;

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
};

/* A thread that is held waits for the next generation. */
struct test_hold {
	struct test_context *owner;		/* NULL: nobody holds here */
	bool held;
	unsigned int generation;
};

static LIST_HEAD(test_boards);
static DEFINE_MUTEX(test_boards_lock);
static u32 test_last_board;
static atomic_t test_last_context;
static atomic_long_t test_nr_mirrors;
static struct workqueue_struct *test_wq;

static struct test_hold test_holds[TEST_HMM_NR_POINTS];
static DEFINE_SPINLOCK(test_holds_lock);
static DEFINE_MUTEX(test_hook_lock);
static unsigned int test_nr_holders;		/* test_hook_lock */
static DECLARE_WAIT_QUEUE_HEAD(test_holds_wait);

/*
 * Boards and events
 */

static void test_board_free(struct kref *kref)
{
	kvfree(container_of(kref, struct test_board, kref));
}

static void test_board_put(struct test_board *board)
{
	kref_put(&board->kref, test_board_free);
}

static void test_log(struct test_board *board, u32 context,
		     enum test_hmm_event_type type, u64 arg)
{
	struct test_hmm_event *event;

	spin_lock(&board->log_lock);
	event = &board->events[board->nr_events % TEST_NR_EVENTS];
	event->time_ns = ktime_get_ns();
	event->arg = arg;
	event->seq = board->nr_events + 1;
	event->context = context;
	event->type = type;
	event->pid = task_pid_nr(current);
	/* Looked at without the lock, to see whether there are more */
	WRITE_ONCE(board->nr_events, board->nr_events + 1);
	spin_unlock(&board->log_lock);

	wake_up_all(&board->more_events);
}

static bool test_log_next(struct test_board *board, u32 *nr_read,
			  struct test_hmm_event *event)
{
	u32 next = *nr_read;
	bool more;

	spin_lock(&board->log_lock);
	if (board->nr_events - next > TEST_NR_EVENTS)
		next = board->nr_events - TEST_NR_EVENTS;
	more = next != board->nr_events;
	if (more)
		*event = board->events[next++ % TEST_NR_EVENTS];
	WRITE_ONCE(*nr_read, next);
	spin_unlock(&board->log_lock);

	return more;
}

/*
 * Holding threads
 */

static void test_hold(enum test_hmm_point point)
{
	struct test_hold *hold = &test_holds[point];
	unsigned int generation;
	bool held;

	spin_lock(&test_holds_lock);
	generation = hold->generation;
	held = hold->owner && !hold->held;
	if (held)
		WRITE_ONCE(hold->held, true);
	spin_unlock(&test_holds_lock);
	if (!held)
		return;

	wake_up_all(&test_holds_wait);
	wait_event(test_holds_wait,
		   READ_ONCE(hold->generation) != generation);
}

static void test_hook(enum hmm_test_point point, struct hmm_mirror *mirror)
{
	test_hold((enum test_hmm_point)point);
}

/* The hook is set as long as a context lives that has held once. */
static int test_become_holder(struct test_context *context)
{
	int ret = 0;

	mutex_lock(&test_hook_lock);
	if (!context->holds) {
		if (!test_nr_holders)
			ret = hmm_test_set_hook(test_hook);
		if (!ret) {
			test_nr_holders++;
			context->holds = true;
		}
	}
	mutex_unlock(&test_hook_lock);

	return ret;
}

static int test_hold_arm(struct test_context *context, u32 point)
{
	int ret;

	if (point >= TEST_HMM_NR_POINTS ||
	    (point >= TEST_HMM_AT_FIND_WALK && point <= TEST_HMM_AT_LAZY_TAKEN))
		return -EINVAL;
	ret = test_become_holder(context);
	if (ret)
		return ret;

	spin_lock(&test_holds_lock);
	if (test_holds[point].owner)
		ret = -EBUSY;
	else
		WRITE_ONCE(test_holds[point].owner, context);
	spin_unlock(&test_holds_lock);

	return ret;
}

static int test_hold_wait(struct test_context *context,
			  const struct test_hmm_wait *wait)
{
	struct test_hold *hold;
	long left;

	if (wait->point >= TEST_HMM_NR_POINTS)
		return -EINVAL;
	hold = &test_holds[wait->point];
	if (READ_ONCE(hold->owner) != context)
		return -ENXIO;

	left = wait_event_interruptible_timeout(test_holds_wait,
						READ_ONCE(hold->held),
						msecs_to_jiffies(wait->timeout_ms));
	if (left < 0)
		return left;
	return left ? 0 : -ETIME;
}

static int test_hold_resume(struct test_context *context, u32 point)
{
	struct test_hold *hold;
	bool mine;

	if (point >= TEST_HMM_NR_POINTS)
		return -EINVAL;

	hold = &test_holds[point];
	spin_lock(&test_holds_lock);
	mine = hold->owner == context;
	if (mine) {
		WRITE_ONCE(hold->owner, NULL);
		WRITE_ONCE(hold->held, false);
		WRITE_ONCE(hold->generation, hold->generation + 1);
	}
	spin_unlock(&test_holds_lock);
	if (!mine)
		return -ENXIO;

	wake_up_all(&test_holds_wait);
	return 0;
}

/* A test that died holds nobody. */
static void test_holds_drop(struct test_context *context)
{
	u32 point;

	for (point = 0; point < TEST_HMM_NR_POINTS; point++)
		test_hold_resume(context, point);

	mutex_lock(&test_hook_lock);
	if (context->holds && !--test_nr_holders)
		hmm_test_clear_hook();
	mutex_unlock(&test_hook_lock);
}

/*
 * The device: page tables and accesses
 */

/*
 * Pages are about to change or to be freed: take them from the device. The lock
 * makes this wait for the access that runs. Exit comes here twice. First for
 * MMU_NOTIFY_RELEASE, which is of no interest, since ->release() follows; then to
 * unmap, and that is when pages begin to be freed.
 */
static bool test_invalidate(struct mmu_interval_notifier *notifier,
			    const struct mmu_notifier_range *range,
			    unsigned long cur_seq)
{
	struct test_mirror *mirror =
		container_of(notifier, struct test_mirror, notifier);
	unsigned long first, end, i;
	bool stopped;

	if (range->event == MMU_NOTIFY_RELEASE)
		return true;

	first = max(range->start, mirror->start) - mirror->start;
	end = min(range->end - mirror->start,
		  mirror->nr_pages << PAGE_SHIFT);

	spin_lock(&mirror->lock);
	mmu_interval_set_seq(notifier, cur_seq);
	stopped = mirror->stopped;
	for (i = first >> PAGE_SHIFT; i < PFN_UP(end); i++)
		mirror->pages[i] = NULL;
	spin_unlock(&mirror->lock);

	if (range->event == MMU_NOTIFY_UNMAP)
		test_log(mirror->board, mirror->context, TEST_HMM_UNMAP,
			 !stopped);
	return true;
}

static const struct mmu_interval_notifier_ops test_notifier_ops = {
	.invalidate = test_invalidate,
};

static int test_map_once(struct test_mirror *mirror, unsigned long index)
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
	mmap_read_lock(mirror->mm);
	ret = hmm_range_fault(&range);
	mmap_read_unlock(mirror->mm);
	if (ret)
		return ret;

	spin_lock(&mirror->lock);
	if (mirror->stopped)
		ret = -ECANCELED;
	else if (mmu_interval_read_retry(&mirror->notifier, range.notifier_seq))
		ret = -EBUSY;
	else
		mirror->pages[index] = hmm_pfn_to_page(pfn);
	spin_unlock(&mirror->lock);

	return ret;
}

/*
 * Needs the address space only to fault: what is mapped stays usable without. The
 * worker is one that ->release() waits for, so HMM's own reference keeps the mirror.
 */
static int test_map(struct test_mirror *mirror, unsigned long index)
{
	unsigned int tries = 0;
	int ret;

	if (!hmm_mirror_mm_get(&mirror->hmm))
		return -ESRCH;
	do {
		ret = test_map_once(mirror, index);
	} while (ret == -EBUSY && ++tries < TEST_MAX_FAULT_TRIES);
	hmm_mirror_mm_put(&mirror->hmm);

	return ret;
}

/* One access to one page that is mapped. -EAGAIN: it is not. */
static int test_touch(struct test_mirror *mirror, unsigned long index,
		      bool write, u64 *value)
{
	int ret = -EAGAIN;
	u64 *word;

	spin_lock(&mirror->lock);
	if (mirror->stopped) {
		ret = -ECANCELED;
	} else if (mirror->pages[index]) {
		word = kmap_local_page(mirror->pages[index]);
		if (write) {
			WRITE_ONCE(*word, *value);
			folio_mark_dirty(page_folio(mirror->pages[index]));
			mirror->nr_writes++;
		} else {
			*value = READ_ONCE(*word);
		}
		kunmap_local(word);
		ret = 0;
	}
	spin_unlock(&mirror->lock);

	return ret;
}

static int test_access_page(struct test_mirror *mirror, unsigned long index,
			    bool write, u64 *value)
{
	int ret;

	for (;;) {
		ret = test_touch(mirror, index, write, value);
		if (ret != -EAGAIN)
			return ret;
		ret = test_map(mirror, index);
		if (ret)
			return ret;
		cond_resched();
	}
}

static void test_access_work(struct work_struct *work)
{
	struct test_mirror *mirror =
		container_of(work, struct test_mirror, access_work);
	struct test_hmm_access *access = &mirror->access;
	u64 i;

	mirror->access_ret = 0;
	for (i = 0; i < access->count && !mirror->access_ret; i++)
		mirror->access_ret = test_access_page(mirror, access->first + i,
						      mirror->access_write,
						      &access->value);
	if (!mirror->access_ret)
		test_log(mirror->board, mirror->context,
			 mirror->access_write ? TEST_HMM_DEVICE_WROTE :
						TEST_HMM_DEVICE_READ,
			 mirror->access_write ? access->count : access->first);
}

/*
 * On and on: also in a process that is dying, on what is mapped; what is not
 * cannot be faulted any more then. ->release() ends it.
 */
static void test_run_work(struct work_struct *work)
{
	struct test_mirror *mirror =
		container_of(work, struct test_mirror, run_work);
	struct test_hmm_access *run = &mirror->run;
	int ret = 0;
	u64 i;

	for (i = 0; i < run->count && ret != -ECANCELED; i++)
		ret = test_access_page(mirror, run->first + i, true,
				       &run->value);
	run->value++;
	if (ret != -ECANCELED)
		queue_work(test_wq, &mirror->run_work);
}

/*
 * Callbacks of HMM
 */

static void test_release(struct hmm_mirror *hmm)
{
	struct test_mirror *mirror = container_of(hmm, struct test_mirror, hmm);

	test_log(mirror->board, mirror->context, TEST_HMM_RELEASE,
		 hmm_mirror_release_reason(hmm));

	/* Nothing is begun from here on, nor queued again; then drain */
	spin_lock(&mirror->lock);
	mirror->stopped = true;
	memset(mirror->pages, 0, mirror->nr_pages * sizeof(*mirror->pages));
	spin_unlock(&mirror->lock);
	cancel_work_sync(&mirror->run_work);
	flush_work(&mirror->access_work);

	test_hold(TEST_HMM_IN_RELEASE);
	if (mirror->release_ms)
		msleep(mirror->release_ms);
	test_log(mirror->board, mirror->context, TEST_HMM_STOPPED,
		 mirror->nr_writes);
}

static void test_mirror_free(struct test_mirror *mirror)
{
	kvfree(mirror->pages);
	test_board_put(mirror->board);
	kfree(mirror);
	atomic_long_dec(&test_nr_mirrors);
}

static void test_free(struct hmm_mirror *hmm)
{
	struct test_mirror *mirror = container_of(hmm, struct test_mirror, hmm);

	/* Not in ->release(): an exit that calls it would be waited for */
	mmu_interval_notifier_remove(&mirror->notifier);
	test_log(mirror->board, mirror->context, TEST_HMM_FREED, 0);
	test_mirror_free(mirror);
}

static const struct hmm_device_ops test_device_ops = {
	.release	= test_release,
	.free		= test_free,
};

/*
 * Contexts: the ioctls
 */

static struct test_board *test_board_create(void)
{
	struct test_device *device;
	struct test_board *board;
	int ret = -ENOMEM;

	board = kvzalloc_obj(*board);
	device = kzalloc_obj(*device);
	if (!board || !device)
		goto err_free;

	kref_init(&board->kref);
	mutex_init(&board->removal_lock);
	init_rwsem(&board->device_sem);
	board->device = device;
	spin_lock_init(&board->log_lock);
	init_waitqueue_head(&board->more_events);

	mutex_lock(&test_boards_lock);
	board->number = ++test_last_board;
	mutex_unlock(&test_boards_lock);
	snprintf(device->name, sizeof(device->name), "test%u", board->number);
	ret = hmm_device_register(&device->hmm, &test_device_ops, device->name);
	if (!ret)
		return board;

err_free:
	kfree(device);
	kvfree(board);
	return ERR_PTR(ret);
}

/*
 * The device is freed in the line after hmm_device_unregister(). Only a register
 * that fails may still look at it, and keeps it by device_sem.
 */
static int test_board_destroy(struct test_board *board)
{
	struct test_device *device;
	int ret = -ENODEV;

	mutex_lock(&board->removal_lock);
	device = board->device;
	if (device)
		ret = hmm_device_unregister(&device->hmm);
	if (!ret) {
		down_write(&board->device_sem);
		board->device = NULL;
		kfree(device);
		up_write(&board->device_sem);
	}
	mutex_unlock(&board->removal_lock);

	if (!ret)
		test_log(board, 0, TEST_HMM_DEVICE_GONE, 0);
	return ret;
}

/* The caller holds test_boards_lock. */
static void __test_attach(struct test_context *context, struct test_board *board)
{
	board->nr_attached++;
	/* Pairs with the acquire in test_read() and test_poll() */
	smp_store_release(&context->board, board);
}

/* Nobody is attached any more, so nothing is registered: take the device along. */
static void test_detach(struct test_context *context)
{
	struct test_board *board = context->board;
	bool last;

	mutex_lock(&test_boards_lock);
	last = !--board->nr_attached;
	if (last)
		list_del(&board->node);
	mutex_unlock(&test_boards_lock);
	if (!last)
		return;

	test_board_destroy(board);
	/* Pairs with the kref_init() in test_board_create() */
	test_board_put(board);
}

static int test_ioctl_create(struct test_context *context, u32 __user *number)
{
	struct test_board *board;

	if (context->board)
		return -EBUSY;
	board = test_board_create();
	if (IS_ERR(board))
		return PTR_ERR(board);

	mutex_lock(&test_boards_lock);
	list_add(&board->node, &test_boards);
	__test_attach(context, board);
	mutex_unlock(&test_boards_lock);

	return put_user(board->number, number);
}

static int test_ioctl_attach(struct test_context *context, u32 number)
{
	struct test_board *board;
	int ret = -ENOENT;

	if (context->board)
		return -EBUSY;

	mutex_lock(&test_boards_lock);
	list_for_each_entry(board, &test_boards, node) {
		if (board->number == number) {
			__test_attach(context, board);
			ret = 0;
			break;
		}
	}
	mutex_unlock(&test_boards_lock);

	return ret;
}

static int test_check_buffer(const struct test_hmm_register *arg)
{
	u64 end;

	if (arg->flags & ~TEST_HMM_IN_WORKER)
		return -EINVAL;
	if (!arg->size || arg->size > TEST_MAX_SIZE)
		return -EINVAL;
	if (!PAGE_ALIGNED(arg->addr) || !PAGE_ALIGNED(arg->size))
		return -EINVAL;
	if (check_add_overflow(arg->addr, arg->size, &end) || end > TASK_SIZE)
		return -EINVAL;
	return 0;
}

static struct test_mirror *test_mirror_alloc(struct test_context *context,
					     const struct test_hmm_register *arg)
{
	struct test_mirror *mirror;

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

	mirror->board = context->board;
	kref_get(&mirror->board->kref);
	mirror->mm = current->mm;
	mirror->context = context->number;
	mirror->start = arg->addr;
	mirror->release_ms = context->release_ms;
	spin_lock_init(&mirror->lock);
	INIT_WORK(&mirror->access_work, test_access_work);
	INIT_WORK(&mirror->run_work, test_run_work);
	atomic_long_inc(&test_nr_mirrors);
	return mirror;
}

static int test_hmm_register(struct test_mirror *mirror)
{
	struct test_board *board = mirror->board;
	int ret = -ENODEV;

	down_read(&board->device_sem);
	if (board->device)
		ret = hmm_mirror_register(&mirror->hmm, &board->device->hmm,
					  current->mm);
	up_read(&board->device_sem);

	return ret;
}

struct test_worker {
	struct work_struct work;
	struct test_mirror *mirror;
	int ret;
};

static void test_register_work(struct work_struct *work)
{
	struct test_worker *worker =
		container_of(work, struct test_worker, work);

	worker->ret = test_hmm_register(worker->mirror);
}

static int test_hmm_register_in_worker(struct test_mirror *mirror)
{
	struct test_worker worker = { .mirror = mirror };

	INIT_WORK_ONSTACK(&worker.work, test_register_work);
	queue_work(test_wq, &worker.work);
	flush_work(&worker.work);
	destroy_work_on_stack(&worker.work);
	return worker.ret;
}

/* HMM comes last: from then on the mirror may be released at any time. */
static int test_mirror_register(struct test_mirror *mirror, u32 flags)
{
	int ret;

	ret = mmu_interval_notifier_insert(&mirror->notifier, mirror->mm,
					   mirror->start,
					   mirror->nr_pages << PAGE_SHIFT,
					   &test_notifier_ops);
	if (ret)
		return ret;

	ret = flags & TEST_HMM_IN_WORKER ? test_hmm_register_in_worker(mirror) :
					   test_hmm_register(mirror);
	if (ret)
		mmu_interval_notifier_remove(&mirror->notifier);
	return ret;
}

static int test_ioctl_register(struct test_context *context,
			       struct test_hmm_register __user *uarg)
{
	struct test_hmm_register arg;
	struct test_mirror *mirror;
	int ret;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	ret = test_check_buffer(&arg);
	if (ret)
		return ret;
	if (!context->board)
		return -ENODEV;
	/* Same mirror twice: HMM says no, not this driver */
	if (context->mirror)
		return test_hmm_register(context->mirror);
	/* Told before the mirror is there: nothing to undo on a bad pointer */
	if (put_user(context->number, &uarg->context))
		return -EFAULT;

	mirror = test_mirror_alloc(context, &arg);
	if (!mirror)
		return -ENOMEM;
	ret = test_mirror_register(mirror, arg.flags);
	if (ret) {
		test_mirror_free(mirror);
		return ret;
	}

	context->mirror = mirror;
	test_log(context->board, context->number, TEST_HMM_REGISTERED,
		 arg.size >> PAGE_SHIFT);
	return 0;
}

static int test_ioctl_unregister(struct test_context *context)
{
	struct test_mirror *mirror = context->mirror;

	if (!mirror)
		return -ENXIO;

	context->mirror = NULL;
	hmm_mirror_unregister(&mirror->hmm);
	test_log(context->board, context->number, TEST_HMM_UNREGISTERED, 0);
	return 0;
}

static int test_ioctl_unregister_async(struct test_context *context)
{
	struct test_mirror *mirror = context->mirror;

	if (!mirror)
		return -ENXIO;

	context->mirror = NULL;
	hmm_mirror_unregister_async(&mirror->hmm);
	return 0;
}

static int test_ioctl_kill(struct test_context *context)
{
	if (!context->mirror)
		return -ENXIO;

	hmm_mirror_kill(&context->mirror->hmm);
	return 0;
}

/*
 * A device that another context unregisters is no longer one to unplug, and HMM would
 * warn. A register that comes meanwhile is to be refused by HMM.
 */
static int test_ioctl_unplug(struct test_board *board)
{
	int ret = -ENODEV;

	mutex_lock(&board->removal_lock);
	if (board->device) {
		hmm_device_unplug(&board->device->hmm);
		ret = 0;
	}
	mutex_unlock(&board->removal_lock);
	if (!ret)
		test_log(board, 0, TEST_HMM_UNPLUGGED, 0);
	return ret;
}

static int test_ioctl_find(struct test_board *board)
{
	struct hmm_mirror *mirror = NULL;

	down_read(&board->device_sem);
	if (board->device)
		mirror = hmm_mirror_find(&board->device->hmm, current->mm);
	up_read(&board->device_sem);
	if (!mirror)
		return -ESRCH;

	hmm_mirror_put(mirror);
	return 0;
}

static int test_access_check(struct test_context *context,
			     struct test_hmm_access __user *uarg,
			     struct test_hmm_access *arg)
{
	struct test_mirror *mirror = context->mirror;

	if (copy_from_user(arg, uarg, sizeof(*arg)))
		return -EFAULT;
	if (!mirror)
		return -ENXIO;
	if (mirror->mm != current->mm)
		return -EPERM;
	if (!arg->count || arg->first >= mirror->nr_pages ||
	    arg->count > mirror->nr_pages - arg->first)
		return -EINVAL;
	return 0;
}

static int test_ioctl_access(struct test_context *context,
			     struct test_hmm_access __user *uarg, bool write)
{
	struct test_mirror *mirror = context->mirror;
	struct test_hmm_access arg;
	int ret;

	ret = test_access_check(context, uarg, &arg);
	if (ret)
		return ret;

	mirror->access = arg;
	mirror->access_write = write;
	queue_work(test_wq, &mirror->access_work);
	flush_work(&mirror->access_work);
	if (mirror->access_ret || write)
		return mirror->access_ret;

	return put_user(mirror->access.value, &uarg->value);
}

static int test_ioctl_run(struct test_context *context,
			  struct test_hmm_access __user *uarg)
{
	struct test_mirror *mirror = context->mirror;
	struct test_hmm_access arg;
	int ret;

	ret = test_access_check(context, uarg, &arg);
	if (ret)
		return ret;
	/* ->release() drains what was queued before it set stopped, and nothing later */
	spin_lock(&mirror->lock);
	if (mirror->stopped) {
		ret = -ECANCELED;
	} else if (mirror->run.count) {
		ret = -EBUSY;
	} else {
		mirror->run = arg;
		test_log(mirror->board, mirror->context, TEST_HMM_DEVICE_RUNS,
			 arg.count);
		queue_work(test_wq, &mirror->run_work);
	}
	spin_unlock(&mirror->lock);
	return ret;
}

static int test_ioctl_counts(struct test_hmm_counts __user *ucounts)
{
	struct hmm_test_counts hmm;
	struct test_hmm_counts counts;

	hmm_synchronize();
	hmm_test_quiesce(&hmm);
	counts.devices = hmm.devices;
	counts.mirrors = hmm.mirrors;
	counts.hmms = hmm.hmms;
	counts.contexts = atomic_long_read(&test_nr_mirrors);

	return copy_to_user(ucounts, &counts, sizeof(counts)) ? -EFAULT : 0;
}

static long test_ioctl_locked(struct test_context *context, unsigned int cmd,
			      void __user *uarg)
{
	u32 number;

	switch (cmd) {
	case TEST_HMM_DEVICE_CREATE:
		return test_ioctl_create(context, uarg);
	case TEST_HMM_DEVICE_ATTACH:
		if (get_user(number, (u32 __user *)uarg))
			return -EFAULT;
		return test_ioctl_attach(context, number);
	case TEST_HMM_DEVICE_DESTROY:
		return context->board ? test_board_destroy(context->board) :
					-ENODEV;
	case TEST_HMM_REGISTER:
		return test_ioctl_register(context, uarg);
	case TEST_HMM_UNREGISTER:
		return test_ioctl_unregister(context);
	case TEST_HMM_UNREGISTER_ASYNC:
		return test_ioctl_unregister_async(context);
	case TEST_HMM_KILL:
		return test_ioctl_kill(context);
	case TEST_HMM_DEVICE_UNPLUG:
		return context->board ? test_ioctl_unplug(context->board) :
					-ENODEV;
	case TEST_HMM_RELEASE_TAKES:
		if (get_user(number, (u32 __user *)uarg))
			return -EFAULT;
		if (number > TEST_MAX_RELEASE_MS)
			return -EINVAL;
		context->release_ms = number;
		return 0;
	case TEST_HMM_FIND:
		return context->board ? test_ioctl_find(context->board) :
					-ENODEV;
	case TEST_HMM_WRITE:
		return test_ioctl_access(context, uarg, true);
	case TEST_HMM_READ:
		return test_ioctl_access(context, uarg, false);
	case TEST_HMM_RUN:
		return test_ioctl_run(context, uarg);
	default:
		return -ENOTTY;
	}
}

/* Those that hold and count work while another ioctl of the context is held. */
static long test_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct test_context *context = file->private_data;
	void __user *uarg = (void __user *)arg;
	struct test_hmm_wait wait;
	long ret;
	u32 point;

	switch (cmd) {
	case TEST_HMM_HOLD:
		if (get_user(point, (u32 __user *)uarg))
			return -EFAULT;
		return test_hold_arm(context, point);
	case TEST_HMM_RESUME:
		if (get_user(point, (u32 __user *)uarg))
			return -EFAULT;
		return test_hold_resume(context, point);
	case TEST_HMM_WAIT_HELD:
		if (copy_from_user(&wait, uarg, sizeof(wait)))
			return -EFAULT;
		return test_hold_wait(context, &wait);
	case TEST_HMM_SYNCHRONIZE:
		hmm_synchronize();
		return 0;
	case TEST_HMM_COUNTS:
		return test_ioctl_counts(uarg);
	}

	mutex_lock(&context->lock);
	ret = test_ioctl_locked(context, cmd, uarg);
	mutex_unlock(&context->lock);
	return ret;
}

static ssize_t test_read(struct file *file, char __user *buf, size_t size,
			 loff_t *pos)
{
	struct test_context *context = file->private_data;
	/* Pairs with the release in __test_attach() */
	struct test_board *board = smp_load_acquire(&context->board);
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
		if (!test_log_next(board, &context->nr_read, &event)) {
			if (done)
				break;
			ret = -EAGAIN;
			if (file->f_flags & O_NONBLOCK)
				break;
			ret = wait_event_interruptible(board->more_events,
						       READ_ONCE(board->nr_events) !=
						       context->nr_read);
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

static __poll_t test_poll(struct file *file, poll_table *wait)
{
	struct test_context *context = file->private_data;
	/* Pairs with the release in __test_attach() */
	struct test_board *board = smp_load_acquire(&context->board);

	if (!board)
		return EPOLLERR;
	poll_wait(file, &board->more_events, wait);
	return READ_ONCE(board->nr_events) != READ_ONCE(context->nr_read) ?
	       EPOLLIN | EPOLLRDNORM : 0;
}

static int test_open(struct inode *inode, struct file *file)
{
	struct test_context *context;

	context = kzalloc_obj(*context);
	if (!context)
		return -ENOMEM;

	mutex_init(&context->lock);
	mutex_init(&context->read_lock);
	context->number = atomic_inc_return(&test_last_context);
	file->private_data = context;
	return stream_open(inode, file);
}

/*
 * The last descriptor is closed, in whatever process: the mirror is unregistered
 * whosever address space it mirrors.
 */
static int test_close(struct inode *inode, struct file *file)
{
	struct test_context *context = file->private_data;

	test_holds_drop(context);
	if (context->mirror)
		test_ioctl_unregister(context);
	if (context->board)
		test_detach(context);
	kfree(context);
	return 0;
}

static const struct file_operations test_fops = {
	.owner		= THIS_MODULE,
	.open		= test_open,
	.release	= test_close,
	.read		= test_read,
	.poll		= test_poll,
	.unlocked_ioctl	= test_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
};

static struct miscdevice test_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "test_hmm",
	.fops	= &test_fops,
	.mode	= 0600,
};

static int __init test_hmm_init(void)
{
	int ret;

	/* Unbound: an access may fault, and wait for as long as that takes */
	test_wq = alloc_workqueue("test_hmm", WQ_UNBOUND, 0);
	if (!test_wq)
		return -ENOMEM;

	ret = misc_register(&test_misc);
	if (ret)
		destroy_workqueue(test_wq);
	return ret;
}

/* No file is open, so no context, board or mirror is left. */
static void __exit test_hmm_exit(void)
{
	misc_deregister(&test_misc);
	destroy_workqueue(test_wq);
}

module_init(test_hmm_init);
module_exit(test_hmm_exit);

MODULE_DESCRIPTION("Dummy devices that mirror address spaces");
MODULE_LICENSE("GPL");
