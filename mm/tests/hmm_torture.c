// SPDX-License-Identifier: GPL-2.0-only
/*
 * Torture test of the HMM registration core
 *
 * Threads do random things to a few devices, address spaces and mirrors, all at
 * once: register, unregister, kill, find, pin, unplug, remove, exit. Each registration
 * has a record, which outlives it, of what was called and what came back, and every
 * callback and every return of HMM is checked against that: a callback after
 * unregister returned is seen, not hoped for. What HMM gave back is freed at once,
 * so that KASAN sees who still looks at it; or, in half of the cases, filled with a
 * pattern and kept for a while, so that a late callback finds the record and a late
 * write spoils the pattern, with no help of KASAN.
 *
 * The choices of each thread are a function of the seed and its number alone. They
 * are drawn whole, before the state of the world is looked at. How the threads meet
 * is up to the scheduler, and to the delays at the test points of mm/hmm_device.c;
 * those are random as well, but not the same each time.
 *
 * Every round_ms all threads stop, everything is torn down, and nothing may be left.
 * The first error ends the test, and leaves all as it is: the module stays.
 *
 * Locking
 * =======
 *
 *	torture_device_slot::remove	who takes the device away, or unplugs it
 *	  torture_device_slot::sem	for read while HMM is to register on the
 *					device, for write to replace it
 *	torture_device::lock		of the driver; taken by callbacks
 *	torture_slot::lock		which context is there; HMM is called under
 *					it where it does not sleep
 *	  torture_record::lock		leaf
 *	torture_mm_slot::lock		leaf
 *	graves_lock			leaf
 *
 * Callbacks take none of the first two. Who holds a reference on a mirror waits for
 * nobody who unregisters: the only call of HMM that it sleeps in is
 * hmm_synchronize().
 */

#define pr_fmt(fmt) "hmm_torture: " fmt

#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hash.h>
#include <linux/hmm_device.h>
#include <linux/hmm_test.h>
#include <linux/init.h>
#include <linux/irq_work.h>
#include <linux/jhash.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kref.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/prandom.h>
#include <linux/preempt.h>
#include <linux/random.h>
#include <linux/rcupdate.h>
#include <linux/reboot.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/torture.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

torture_param(ulong, seed, 0, "Of all choices; 0: one at random, which is printed");
torture_param(int, seconds, 0, "Duration; 0: until the module is unloaded");
torture_param(int, threads, 12, "Threads that choose");
torture_param(int, devices, 3, "Devices at a time");
torture_param(int, mms, 3, "Address spaces at a time");
torture_param(int, mirrors, 20, "Mirrors at a time");
torture_param(int, round_ms, 2000, "Time after which everything is torn down");
torture_param(int, stutter_ms, 50, "Pause of all threads in each second; 0: none");
torture_param(int, stall_seconds, 30, "Time after which a thread is taken to hang");
torture_param(bool, delays, true, "Delay threads at the test points of HMM");
torture_param(bool, shutdown, false, "Power off at the end");

#define NR_STEPS	12	/* of a record that are remembered */
#define NR_GRAVES	64	/* objects that are kept after their end */
#define NR_CHOICES	256	/* of each thread that go into the checksum */
#define NR_TRIES	20	/* of a device that is busy */
#define MAX_OF_A_KIND	64

#define MAGIC_LIVE	0x4c495645
#define MAGIC_DEAD	0x44454144
#define PATTERN		0x5a

/* Where pages are mapped in an address space: one that stays, one that comes and goes */
#define SOME_ADDRESS	0x10000000UL
#define OTHER_ADDRESS	(SOME_ADDRESS + 16 * PAGE_SIZE)

enum torture_step {
	STEP_REGISTER,		/* is called */
	STEP_REGISTERED,	/* returned 0 */
	STEP_REFUSED,		/* returned an error */
	STEP_KILL,
	STEP_UNREGISTER,
	STEP_UNREGISTER_ASYNC,
	STEP_RELEASE,
	STEP_RELEASED,
	STEP_FREE,
	STEP_FENCE,		/* hmm_mirror_unregister() returned */
};

static const char * const torture_steps[] = {
	[STEP_REGISTER] = "register",
	[STEP_REGISTERED] = "registered",
	[STEP_REFUSED] = "refused",
	[STEP_KILL] = "kill",
	[STEP_UNREGISTER] = "unregister",
	[STEP_UNREGISTER_ASYNC] = "unregister_async",
	[STEP_RELEASE] = "->release()",
	[STEP_RELEASED] = "->release() returns",
	[STEP_FREE] = "->free()",
	[STEP_FENCE] = "unregister returned",
};

/* What begins a context and a device, and stays when their end has come */
struct torture_guard {
	u32 magic;
	struct list_head node;		/* graves_lock */
	void *hmm;			/* HMM's part of the object */
	size_t size;
	void (*free)(struct torture_guard *guard);
};

struct torture_mm {
	struct kref kref;		/* of the slot, of records, of users */
	unsigned int slot;
	struct mm_struct *mm;		/* mm_count is ours */
	struct mmu_interval_notifier notifier;
	atomic_t users;			/* at least as many of mm_users are ours */
	atomic_t registering;
	atomic_t disturbed;		/* ever: began to use or to register */
	bool unmapped;			/* its pages are freed */
	struct work_struct end_work;
};

struct torture_event {
	enum torture_step step;
	int pid;
	u64 time_ns;
};

/* What is known of one registration */
struct torture_record {
	struct kref kref;		/* of the context, and of who looks */
	spinlock_t lock;		/* all but what is atomic */
	struct torture_mm *mm;
	bool has_free;
	bool unregistering;
	bool killed;
	bool stopped;			/* no worker is queued any more */
	bool slow;			/* callbacks are, for who is to wait for them */
	bool running;
	bool released;
	bool freed;
	bool fenced;
	atomic_t held;			/* references, at least */
	atomic_t might_hold;		/* references, at most */
	unsigned int nr_events;
	struct torture_event events[NR_STEPS];
};

struct torture_device_slot;

struct torture_device {
	struct torture_guard guard;
	struct hmm_device hmm;
	u32 tail;
	struct torture_device_slot *slot;
	bool unplugging;
	struct mutex lock;		/* the driver's: nr_callbacks */
	unsigned long nr_callbacks;
};

struct torture_device_slot {
	struct mutex remove;		/* who unplugs or removes device */
	struct rw_semaphore sem;
	struct torture_device *device;	/* sem and remove; NULL: no memory */
	bool has_free;
	bool going;			/* unplugged or removed, or about to */
	bool unplugged;
	struct task_struct *unplugger;	/* lets go of remove at UNPLUG_DONE */
	atomic_t nr_registered;		/* at most */
	atomic_t nr_published;		/* at least */
};

struct torture_context {
	struct torture_guard guard;
	struct hmm_mirror mirror;
	u32 tail;
	struct torture_record *record;
	struct torture_device *device;
	unsigned int slot;
	u32 plan;			/* of the callbacks */
	struct work_struct work;
};

struct torture_slot {
	spinlock_t lock;		/* the rest */
	struct torture_context *context;
	bool claimed;			/* somebody registers for it */
};

struct torture_mm_slot {
	spinlock_t lock;		/* mm */
	struct torture_mm *mm;
};

/* Bits of torture_choice::flags; an operation uses some */
enum {
	FLAG_ASYNC	= BIT(0),
	FLAG_KEEP	= BIT(1),	/* a grave, not kfree() */
	FLAG_REUSE	= BIT(2),	/* register the same memory again */
	FLAG_USE_MM	= BIT(3),
	FLAG_TWICE	= BIT(4),
	FLAG_WORKER	= BIT(5),
	FLAG_IRQ	= BIT(6),
	FLAG_EXIT	= BIT(7),
	FLAG_UNPLUG	= BIT(8),
	FLAG_EXCLUSIVE	= BIT(9),
	FLAG_LAST_PUT	= BIT(10),
};

/* Bits of torture_context::plan */
enum {
	PLAN_LOCK	= BIT(0),
	PLAN_ASYNC	= BIT(1),
	PLAN_KILL	= BIT(2),
	PLAN_SLEEP	= BIT(3),
	PLAN_KEEP	= BIT(4),
};

#define PLAN_RARE(plan)	(((plan) >> 8) % 8 == 0)

struct torture_choice {
	u32 op;
	u32 slot;
	u32 device;
	u32 mm;
	u32 flags;
	u32 plan;
	u32 delay;
};

struct torture_thread {
	struct task_struct *task;
	struct rnd_state rnd;
	u32 checksum;
	unsigned int nr_choices;
	const char *busy;		/* with what */
	bool parked;
	struct torture_context *spare;	/* unregistered, to be registered again */
	struct irq_work irq_work;
	struct torture_context *irq_context;
};

/* A reference that a timer drops */
struct torture_late_put {
	struct timer_list timer;
	struct torture_context *context;
};

static struct torture_device_slot device_slots[MAX_OF_A_KIND];
static struct torture_mm_slot mm_slots[MAX_OF_A_KIND];
static struct torture_slot slots[MAX_OF_A_KIND];
static struct torture_thread torture_threads[MAX_OF_A_KIND];
static struct task_struct *torture_main_task;
static struct workqueue_struct *torture_wq;

static LIST_HEAD(graves);			/* graves_lock, as is: */
static unsigned int nr_graves;
static DEFINE_SPINLOCK(graves_lock);

/* The main thread waits here, for errors too; parked threads do as well */
static DECLARE_WAIT_QUEUE_HEAD(torture_wait);
static bool torture_paused;
static atomic_t nr_parked;
static atomic_t nr_errors;
static atomic_t torture_ended;
static unsigned long torture_begun;		/* jiffies */
static unsigned int nr_rounds;

static atomic_t nr_late_puts;
static atomic_t nr_finding;			/* without a record, yet */
static atomic_t nr_contexts;
static atomic_t nr_mms;
static atomic_t nr_points;

/*
 * Errors
 */

static void torture_history(struct torture_record *record)
{
	unsigned int i = record->nr_events > NR_STEPS ?
			 record->nr_events - NR_STEPS : 0;

	for (; i < record->nr_events; i++) {
		struct torture_event *event = &record->events[i % NR_STEPS];

		pr_alert("    %llu.%06llu thread %d: %s\n",
			 div_u64(event->time_ns, NSEC_PER_SEC),
			 div_u64(event->time_ns % NSEC_PER_SEC, NSEC_PER_USEC),
			 event->pid, torture_steps[event->step]);
	}
}

/* @record may be NULL. Only the first errors are printed: others may follow from them. */
static void torture_error(struct torture_record *record, const char *what)
{
	unsigned long flags;

	if (atomic_inc_return(&nr_errors) <= 3) {
		pr_alert("!!! %s (in %s[%d])\n", what, current->comm,
			 task_pid_nr(current));
		if (record) {
			spin_lock_irqsave(&record->lock, flags);
			torture_history(record);
			spin_unlock_irqrestore(&record->lock, flags);
		}
	}
	wake_up_all(&torture_wait);
}

/*
 * Delays
 */

static bool may_sleep(void)
{
	return preemptible() && !rcu_preempt_depth();
}

static void torture_delay(u32 how)
{
	u32 us = (how >> 8) % 128;

	switch (how % 16) {
	case 0:
		if (may_sleep())
			usleep_range(us * 8, us * 8 + 100);
		break;
	case 1:
	case 2:
		if (may_sleep())
			usleep_range(us, us + 20);
		break;
	case 3:
	case 4:
	case 5:
		udelay(us / 2);
		break;
	case 6:
	case 7:
		if (may_sleep())
			schedule();
		break;
	default:
		break;
	}
}

/* The device can be removed, and freed, while its unplug returns. */
static void unplug_done(void)
{
	int i;

	for (i = 0; i < devices; i++) {
		struct torture_device_slot *ds = &device_slots[i];

		if (READ_ONCE(ds->unplugger) != current)
			continue;
		WRITE_ONCE(ds->unplugger, NULL);
		WRITE_ONCE(ds->unplugged, true);
		mutex_unlock(&ds->remove);
	}
}

static void torture_hook(enum hmm_test_point point, struct hmm_mirror *mirror)
{
	if (point == HMM_POINT_UNPLUG_DONE)
		unplug_done();
	torture_delay(jhash_2words(atomic_inc_return(&nr_points), point, seed));
}

/*
 * What HMM has given back
 */

static void guard_init(struct torture_guard *guard, void *hmm, size_t size,
		       void (*free)(struct torture_guard *guard))
{
	guard->magic = MAGIC_LIVE;
	guard->hmm = hmm;
	guard->size = size;
	guard->free = free;
}

static void guard_exhume(struct torture_guard *guard)
{
	if (memchr_inv(guard->hmm, PATTERN, guard->size))
		torture_error(NULL, "written to after HMM had given it back");
	guard->free(guard);
}

/* The oldest beyond @max goes. */
static void graves_shrink(unsigned int max)
{
	struct torture_guard *guard;
	unsigned long flags;

	for (;;) {
		spin_lock_irqsave(&graves_lock, flags);
		guard = NULL;
		if (nr_graves > max) {
			guard = list_first_entry(&graves, struct torture_guard,
						 node);
			list_del(&guard->node);
			nr_graves--;
		}
		spin_unlock_irqrestore(&graves_lock, flags);
		if (!guard)
			return;
		guard_exhume(guard);
	}
}

static void guard_bury(struct torture_guard *guard, bool keep)
{
	unsigned long flags;

	WRITE_ONCE(guard->magic, MAGIC_DEAD);
	if (!keep) {
		guard->free(guard);
		return;
	}
	memset(guard->hmm, PATTERN, guard->size);
	spin_lock_irqsave(&graves_lock, flags);
	list_add_tail(&guard->node, &graves);
	nr_graves++;
	spin_unlock_irqrestore(&graves_lock, flags);
	graves_shrink(NR_GRAVES);
}

/*
 * Address spaces
 */

/*
 * At exit this comes twice: for MMU_NOTIFY_RELEASE, when HMM calls ->release(), and
 * then as pages begin to be freed. Before that nobody unmaps this page.
 */
static bool torture_invalidate(struct mmu_interval_notifier *notifier,
			       const struct mmu_notifier_range *range,
			       unsigned long cur_seq)
{
	struct torture_mm *mm =
		container_of(notifier, struct torture_mm, notifier);

	if (range->event == MMU_NOTIFY_UNMAP)
		WRITE_ONCE(mm->unmapped, true);
	return true;
}

static const struct mmu_interval_notifier_ops torture_notifier_ops = {
	.invalidate = torture_invalidate,
};

/*
 * Nobody of ours uses it, nor has a registration on it. What a CPU that runs kernel
 * threads keeps of the last address space is none of HMM's.
 */
static void mm_end_work(struct work_struct *work)
{
	struct torture_mm *mm =
		container_of(work, struct torture_mm, end_work);

	mmu_interval_notifier_remove(&mm->notifier);
	hmm_synchronize();
	if (atomic_read(&mm->mm->mm_users))
		torture_error(NULL, "mm_users was not given back");
	if (atomic_read(&mm->mm->mm_count) > 2 + num_possible_cpus())
		torture_error(NULL, "mm_count was not given back");
	mmdrop(mm->mm);
	kfree(mm);
	if (atomic_dec_and_test(&nr_mms))
		wake_up_all(&torture_wait);
}

static void mm_last_put(struct kref *kref)
{
	struct torture_mm *mm = container_of(kref, struct torture_mm, kref);

	queue_work(torture_wq, &mm->end_work);
}

static void torture_mm_put(struct torture_mm *mm)
{
	kref_put(&mm->kref, mm_last_put);
}

static bool mm_use(struct torture_mm *mm)
{
	atomic_inc(&mm->users);
	atomic_inc(&mm->disturbed);
	if (mmget_not_zero(mm->mm))
		return true;
	atomic_dec(&mm->users);
	return false;
}

/* The last user exits, here or in a worker. */
static void mm_unuse(struct torture_mm *mm, bool async)
{
	if (async)
		mmput_async(mm->mm);
	else
		mmput(mm->mm);
	atomic_dec(&mm->users);
}

/* Of current->mm. */
static bool map_page(unsigned long address)
{
	return vm_mmap(NULL, address, PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0) == address;
}

static struct torture_mm *torture_mm_new(unsigned int slot)
{
	struct torture_mm *mm = kzalloc_obj(*mm);
	bool mapped;

	if (!mm)
		return NULL;
	mm->mm = mm_alloc();
	if (!mm->mm) {
		kfree(mm);
		return NULL;
	}
	mmgrab(mm->mm);
	mm->mm->task_size = TASK_SIZE;
	kthread_use_mm(mm->mm);
	mapped = map_page(SOME_ADDRESS);
	kthread_unuse_mm(mm->mm);

	kref_init(&mm->kref);
	mm->slot = slot;
	atomic_set(&mm->users, 1);
	INIT_WORK(&mm->end_work, mm_end_work);
	if (!mapped ||
	    mmu_interval_notifier_insert(&mm->notifier, mm->mm, SOME_ADDRESS,
					 PAGE_SIZE, &torture_notifier_ops)) {
		mmput(mm->mm);
		mmdrop(mm->mm);
		kfree(mm);
		return NULL;
	}
	atomic_inc(&nr_mms);
	return mm;
}

/* The one that is there, or a new one, with a reference; NULL: no memory. */
static struct torture_mm *mm_slot_get(unsigned int nr)
{
	struct torture_mm_slot *slot = &mm_slots[nr];
	struct torture_mm *mm, *new = NULL;

	for (;;) {
		spin_lock(&slot->lock);
		if (!slot->mm) {
			slot->mm = new;
			new = NULL;
		}
		mm = slot->mm;
		if (mm)
			kref_get(&mm->kref);
		spin_unlock(&slot->lock);
		if (mm)
			break;
		new = torture_mm_new(nr);
		if (!new)
			return NULL;
	}
	/* Another thread was quicker */
	if (new) {
		mm_unuse(new, false);
		torture_mm_put(new);
	}
	return mm;
}

/* The process exits: @mm, or with NULL whichever is there. */
static void mm_slot_exit(unsigned int nr, struct torture_mm *mm, bool async)
{
	struct torture_mm_slot *slot = &mm_slots[nr];
	struct torture_mm *found = NULL;

	spin_lock(&slot->lock);
	if (!mm || slot->mm == mm) {
		found = slot->mm;
		slot->mm = NULL;
	}
	spin_unlock(&slot->lock);
	if (found) {
		mm_unuse(found, async);
		torture_mm_put(found);
	}
}

/*
 * Records
 */

static struct torture_record *record_new(struct torture_mm *mm)
{
	struct torture_record *record = kzalloc_obj(*record);

	if (!record)
		return NULL;
	kref_init(&record->kref);
	spin_lock_init(&record->lock);
	kref_get(&mm->kref);
	record->mm = mm;
	return record;
}

static void record_free(struct kref *kref)
{
	struct torture_record *record =
		container_of(kref, struct torture_record, kref);

	torture_mm_put(record->mm);
	kfree(record);
}

static struct torture_record *record_get(struct torture_record *record)
{
	kref_get(&record->kref);
	return record;
}

static void record_put(struct torture_record *record)
{
	kref_put(&record->kref, record_free);
}

/* What may come when; the caller holds the lock. */
static const char *record_check(struct torture_record *record,
				enum torture_step step)
{
	switch (step) {
	case STEP_RELEASE:
		if (record->fenced)
			return "->release() after unregister had returned";
		if (record->running)
			return "->release() by two at once";
		if (record->released)
			return "->release() a second time";
		break;
	case STEP_FREE:
		if (record->fenced)
			return "->free() after unregister had returned";
		if (record->freed)
			return "->free() a second time";
		if (!record->released)
			return "->free() before ->release() had returned";
		if (!record->unregistering)
			return "->free() of what is registered";
		break;
	case STEP_FENCE:
		if (!record->released)
			return "unregister returned before ->release() had";
		if (record->has_free && !record->freed)
			return "unregister returned before ->free() had";
		if (atomic_read(&record->held))
			return "unregister returned while a reference is held";
		break;
	case STEP_REFUSED:
		if (record->running || record->released)
			return "->release() of what was not registered";
		break;
	default:
		break;
	}
	return NULL;
}

static void record_update(struct torture_record *record, enum torture_step step)
{
	switch (step) {
	case STEP_KILL:
		record->killed = true;
		break;
	case STEP_UNREGISTER:
	case STEP_UNREGISTER_ASYNC:
		record->unregistering = true;
		break;
	case STEP_RELEASE:
		record->running = true;
		break;
	case STEP_RELEASED:
		record->running = false;
		record->released = true;
		break;
	case STEP_FREE:
		record->freed = true;
		break;
	case STEP_FENCE:
	case STEP_REFUSED:
		record->fenced = true;
		break;
	default:
		break;
	}
}

static void record_step(struct torture_record *record, enum torture_step step)
{
	struct torture_event *event;
	unsigned long flags;
	const char *wrong;

	spin_lock_irqsave(&record->lock, flags);
	event = &record->events[record->nr_events++ % NR_STEPS];
	event->step = step;
	event->pid = task_pid_nr(current);
	event->time_ns = ktime_get_ns();
	wrong = record_check(record, step);
	record_update(record, step);
	spin_unlock_irqrestore(&record->lock, flags);
	if (wrong)
		torture_error(record, wrong);
}

static bool record_is_released(struct torture_record *record)
{
	unsigned long flags;
	bool released;

	spin_lock_irqsave(&record->lock, flags);
	released = record->released;
	spin_unlock_irqrestore(&record->lock, flags);

	return released;
}

static bool record_is_freed(struct torture_record *record)
{
	unsigned long flags;
	bool freed;

	spin_lock_irqsave(&record->lock, flags);
	freed = record->freed;
	spin_unlock_irqrestore(&record->lock, flags);

	return freed;
}

/* Else it is over before anybody could fail to wait for it. */
static void record_be_slow(struct torture_record *record)
{
	if (READ_ONCE(record->slow))
		usleep_range(5000, 10000);
}

/* Whether somebody gave this reason to release. */
static bool record_has_reason(struct torture_record *record,
			      struct torture_device *device,
			      enum hmm_release_reason reason)
{
	unsigned long flags;
	bool ok = false;

	spin_lock_irqsave(&record->lock, flags);
	switch (reason) {
	case HMM_RELEASE_MM_EXIT:
		ok = !atomic_read(&record->mm->mm->mm_users);
		break;
	case HMM_RELEASE_UNREGISTER:
		ok = record->unregistering;
		break;
	case HMM_RELEASE_DEVICE_GONE:
		ok = READ_ONCE(device->unplugging);
		break;
	case HMM_RELEASE_ERROR:
		ok = record->killed;
		break;
	default:
		break;
	}
	spin_unlock_irqrestore(&record->lock, flags);

	return ok;
}

/*
 * Contexts
 */

static void context_free(struct torture_guard *guard)
{
	struct torture_context *context =
		container_of(guard, struct torture_context, guard);

	record_put(context->record);
	kfree(context);
	atomic_dec(&nr_contexts);
}

/* Also what callbacks may reach from it: the device */
static void context_check(struct torture_context *context, const char *where)
{
	struct torture_device *device = context->device;

	if (READ_ONCE(context->guard.magic) != MAGIC_LIVE ||
	    READ_ONCE(context->tail) != MAGIC_LIVE) {
		pr_alert("%s\n", where);
		torture_error(context->record, "a mirror that is gone, or was overwritten");
	}
	if (READ_ONCE(device->guard.magic) != MAGIC_LIVE ||
	    READ_ONCE(device->tail) != MAGIC_LIVE) {
		pr_alert("%s\n", where);
		torture_error(context->record, "a device that is gone, or was overwritten");
	}
}

/* Those that @context had before stay in its record. */
static struct torture_context *context_new(struct torture_context *spare,
					   struct torture_mm *mm)
{
	struct torture_context *context = spare;
	struct torture_record *record = record_new(mm);

	if (!record)
		return NULL;
	if (!context) {
		context = kzalloc_obj(*context);
		if (!context) {
			record_put(record);
			return NULL;
		}
		guard_init(&context->guard, &context->mirror,
			   sizeof(context->mirror), context_free);
		context->tail = MAGIC_LIVE;
		atomic_inc(&nr_contexts);
	} else {
		record_put(context->record);
	}
	context->record = record;
	return context;
}

static void context_got(struct torture_context *context)
{
	record_get(context->record);
	atomic_inc(&context->record->might_hold);
	atomic_inc(&context->record->held);
}

/* After hmm_mirror_find(), during which nr_finding counts what has no record yet. */
static void context_found(struct torture_context *context)
{
	context_got(context);
	/* Pairs with the smp_rmb() in op_synchronize() */
	smp_mb__before_atomic();
}

static void context_put(struct torture_context *context)
{
	struct torture_record *record = context->record;

	atomic_dec(&record->held);
	hmm_mirror_put(&context->mirror);
	atomic_dec(&record->might_hold);
	record_put(record);
}

static bool context_is_live(struct torture_context *context)
{
	return hmm_mirror_release_reason(&context->mirror) == HMM_RELEASE_NONE;
}

static void late_put(struct timer_list *timer)
{
	struct torture_late_put *late =
		container_of(timer, struct torture_late_put, timer);

	context_put(late->context);
	kfree(late);
	if (atomic_dec_and_test(&nr_late_puts))
		wake_up_all(&torture_wait);
}

/* By a timer, so in an interrupt. */
static void context_put_late(struct torture_context *context)
{
	struct torture_late_put *late = kzalloc_obj(*late, GFP_ATOMIC);

	if (!late) {
		context_put(context);
		return;
	}
	late->context = context;
	timer_setup(&late->timer, late_put, 0);
	atomic_inc(&nr_late_puts);
	mod_timer(&late->timer, jiffies + 1);
}

/*
 * Slots of contexts
 */

static bool slot_claim(struct torture_slot *slot)
{
	unsigned long flags;
	bool claimed;

	spin_lock_irqsave(&slot->lock, flags);
	claimed = !slot->context && !slot->claimed;
	if (claimed)
		slot->claimed = true;
	spin_unlock_irqrestore(&slot->lock, flags);

	return claimed;
}

/* The end of a claim: with a context that is registered, or NULL */
static void slot_publish(struct torture_slot *slot,
			 struct torture_context *context)
{
	unsigned long flags;

	spin_lock_irqsave(&slot->lock, flags);
	if (context)
		atomic_inc(&context->device->slot->nr_published);
	slot->context = context;
	slot->claimed = false;
	spin_unlock_irqrestore(&slot->lock, flags);
}

/* The caller is to unregister it. Only @context or those of @device, if given. */
static struct torture_context *slot_take(struct torture_slot *slot,
					 struct torture_context *context,
					 struct torture_device *device)
{
	struct torture_context *found;
	unsigned long flags;

	spin_lock_irqsave(&slot->lock, flags);
	found = slot->context;
	if (found && ((context && found != context) ||
		      (device && found->device != device)))
		found = NULL;
	if (found) {
		slot->context = NULL;
		atomic_dec(&found->device->slot->nr_published);
	}
	spin_unlock_irqrestore(&slot->lock, flags);

	return found;
}

static struct torture_context *slot_get(struct torture_slot *slot)
{
	struct torture_context *context;
	unsigned long flags;

	spin_lock_irqsave(&slot->lock, flags);
	context = slot->context;
	if (context) {
		atomic_inc(&context->record->might_hold);
		hmm_mirror_get(&context->mirror);
		record_get(context->record);
		atomic_inc(&context->record->held);
	}
	spin_unlock_irqrestore(&slot->lock, flags);

	return context;
}

/*
 * The driver: callbacks, and unregister, which one of them calls
 */

/* The caller took @context from its slot; may not touch it afterwards. */
static void context_unregister_async(struct torture_context *context)
{
	struct torture_device_slot *ds = context->device->slot;

	record_step(context->record, STEP_UNREGISTER_ASYNC);
	hmm_mirror_unregister_async(&context->mirror);
	atomic_dec(&ds->nr_registered);
}

static void context_kill(struct torture_context *context)
{
	record_step(context->record, STEP_KILL);
	hmm_mirror_kill(&context->mirror);
}

static void device_callback(struct torture_context *context)
{
	struct torture_device *device = context->device;

	mutex_lock(&device->lock);
	device->nr_callbacks++;
	torture_delay(context->plan >> 8);
	mutex_unlock(&device->lock);
}

/* Its own end, or that of a neighbour, who may be in its release as well. */
static void release_calls(struct torture_context *context)
{
	struct torture_slot *slot = &slots[context->slot];
	struct torture_context *other;

	if (context->plan & PLAN_KILL) {
		other = slot_get(&slots[(context->slot + 1) % mirrors]);
		if (other) {
			context_kill(other);
			context_put(other);
		}
	}
	if (context->plan & PLAN_ASYNC && context->record->has_free &&
	    slot_take(slot, context, NULL))
		context_unregister_async(context);
}

static void torture_release(struct hmm_mirror *mirror)
{
	struct torture_context *context =
		container_of(mirror, struct torture_context, mirror);
	struct torture_record *record = context->record;

	context_check(context, "in ->release()");
	record_step(record, STEP_RELEASE);
	if (!record_has_reason(record, context->device,
			       hmm_mirror_release_reason(mirror)))
		torture_error(record, "->release() for a reason that nobody gave");

	spin_lock_irq(&record->lock);
	record->stopped = true;
	spin_unlock_irq(&record->lock);
	flush_work(&context->work);

	if (context->plan & PLAN_LOCK)
		device_callback(context);
	if (PLAN_RARE(context->plan))
		release_calls(context);
	if (context->plan & PLAN_SLEEP)
		usleep_range(50, 50 + (context->plan >> 8) % 4096);
	record_be_slow(record);

	if (READ_ONCE(record->mm->unmapped))
		torture_error(record, "->release() while pages are freed");
	context_check(context, "at the end of ->release()");
	record_step(record, STEP_RELEASED);
}

static void torture_free(struct hmm_mirror *mirror)
{
	struct torture_context *context =
		container_of(mirror, struct torture_context, mirror);
	struct torture_record *record = context->record;

	context_check(context, "in ->free()");
	if (atomic_read(&record->held))
		torture_error(record, "->free() while a reference is held");
	if (context->plan & PLAN_LOCK)
		device_callback(context);
	record_be_slow(record);
	if (hmm_mirror_release_reason(mirror) == HMM_RELEASE_NONE)
		torture_error(record, "->free() of what was not released");
	record_step(record, STEP_FREE);
	guard_bury(&context->guard, context->plan & PLAN_KEEP);
}

static const struct hmm_device_ops torture_ops = {
	.release = torture_release,
};

static const struct hmm_device_ops torture_free_ops = {
	.release = torture_release,
	.free = torture_free,
};

/* Pins again and again until the mirror is released, which waits for this. */
static void torture_work(struct work_struct *work)
{
	struct torture_context *context =
		container_of(work, struct torture_context, work);
	struct torture_record *record = context->record;
	int i;

	for (i = 0; i < 20 && hmm_mirror_mm_get(&context->mirror); i++) {
		if (READ_ONCE(record->mm->unmapped))
			torture_error(record, "pages are freed in spite of a pin");
		torture_delay(context->plan >> (i % 8));
		if (READ_ONCE(record->mm->unmapped))
			torture_error(record, "pages are freed in spite of a pin");
		hmm_mirror_mm_put(&context->mirror);
	}
}

/* As context_unregister_async(), and waits. @t keeps the memory, if it may. */
static void context_unregister(struct torture_thread *t,
			       struct torture_context *context, u32 flags)
{
	struct torture_device_slot *ds = context->device->slot;
	struct torture_record *record = record_get(context->record);

	record_step(record, STEP_UNREGISTER);
	hmm_mirror_unregister(&context->mirror);
	record_step(record, STEP_FENCE);
	if (!ds->has_free) {
		if (context_is_live(context))
			torture_error(record, "no reason after unregister");
		if (t && flags & FLAG_REUSE && !t->spare)
			t->spare = context;
		else
			guard_bury(&context->guard, flags & FLAG_KEEP);
	}
	atomic_dec(&ds->nr_registered);
	record_put(record);
}

static void context_end(struct torture_thread *t,
			struct torture_context *context, u32 flags)
{
	if (context->record->has_free && flags & FLAG_ASYNC)
		context_unregister_async(context);
	else
		context_unregister(t, context, flags);
}

/*
 * Devices
 */

static void device_free(struct torture_guard *guard)
{
	kfree(container_of(guard, struct torture_device, guard));
}

/* The memory of @device again, or new one; NULL: no memory. */
static struct torture_device *device_new(struct torture_device_slot *ds,
					 struct torture_device *device)
{
	const struct hmm_device_ops *ops =
		ds->has_free ? &torture_free_ops : &torture_ops;

	if (!device) {
		device = kzalloc_obj(*device);
		if (!device)
			return NULL;
		guard_init(&device->guard, &device->hmm, sizeof(device->hmm),
			   device_free);
		device->tail = MAGIC_LIVE;
		device->slot = ds;
		mutex_init(&device->lock);
	}
	WRITE_ONCE(device->unplugging, false);
	if (hmm_device_register(&device->hmm, ops, "torture"))
		torture_error(NULL, "a device cannot be registered");
	return device;
}

/*
 * Exclusive: nobody tries to register meanwhile. Then the device is freed in the
 * line after hmm_device_unregister(). The caller holds ds->remove.
 */
static int device_end(struct torture_device_slot *ds, u32 flags)
{
	struct torture_device *device = ds->device;
	bool exclusive = flags & FLAG_EXCLUSIVE;
	bool unused;
	int ret;

	if (exclusive)
		down_write(&ds->sem);
	unused = exclusive && !atomic_read(&ds->nr_registered);
	ret = hmm_device_unregister(&device->hmm);
	if (!ret && atomic_read(&ds->nr_published))
		torture_error(NULL, "a device went that has mirrors");
	if (!ret && !exclusive)
		down_write(&ds->sem);
	if (!ret) {
		ds->device = NULL;
		if (!(flags & FLAG_REUSE)) {
			guard_bury(&device->guard, flags & FLAG_KEEP);
			device = NULL;
		}
		ds->device = device_new(ds, device);
		WRITE_ONCE(ds->going, false);
		WRITE_ONCE(ds->unplugged, false);
	}
	if (exclusive || !ret)
		up_write(&ds->sem);

	if (ret && (ret != -EBUSY || unused))
		torture_error(NULL, "hmm_device_unregister() failed");
	return ret;
}

static void device_unplug(struct torture_device_slot *ds)
{
	WRITE_ONCE(ds->going, true);
	WRITE_ONCE(ds->device->unplugging, true);
	hmm_device_unplug(&ds->device->hmm);
}

/* After unplug, while nobody can have replaced it. */
static void device_check_released(struct torture_device *device)
{
	unsigned long flags;
	int i;

	for (i = 0; i < mirrors; i++) {
		struct torture_context *context;

		spin_lock_irqsave(&slots[i].lock, flags);
		context = slots[i].context;
		if (context && context->device == device &&
		    !record_is_released(context->record))
			torture_error(context->record, "live after unplug");
		spin_unlock_irqrestore(&slots[i].lock, flags);
	}
}

/*
 * Operations
 */

static void check_registered(struct torture_device_slot *ds, int ret,
			     bool unplugged, bool using, bool signal)
{
	switch (ret) {
	case 0:
		if (unplugged)
			torture_error(NULL, "registered on an unplugged device");
		break;
	case -ESRCH:
		if (using)
			torture_error(NULL, "-ESRCH, though the mm has users");
		break;
	case -ENODEV:
		if (!READ_ONCE(ds->going))
			torture_error(NULL, "-ENODEV, though the device is there");
		break;
	case -EINTR:
		if (!signal)
			torture_error(NULL, "-EINTR, though there was no signal");
		break;
	case -ENOMEM:
		break;
	default:
		torture_error(NULL, "hmm_mirror_register() failed");
		break;
	}
}

/* The caller holds ds->sem. */
static int context_register(struct torture_context *context,
			    struct torture_device_slot *ds,
			    const struct torture_choice *c)
{
	struct torture_mm *mm = context->record->mm;
	bool using = c->flags & FLAG_USE_MM && mm_use(mm);
	bool unplugged = READ_ONCE(ds->unplugged);
	bool signal = c->delay % 32 == 0;
	int ret;

	record_step(context->record, STEP_REGISTER);
	atomic_inc(&ds->nr_registered);
	atomic_inc(&mm->registering);
	atomic_inc(&mm->disturbed);
	if (signal) {
		allow_signal(SIGUSR1);
		send_sig(SIGUSR1, current, 1);
	}
	ret = hmm_mirror_register(&context->mirror, &ds->device->hmm, mm->mm);
	if (signal) {
		flush_signals(current);
		disallow_signal(SIGUSR1);
	}
	atomic_dec(&mm->registering);
	record_step(context->record, ret ? STEP_REFUSED : STEP_REGISTERED);
	check_registered(ds, ret, unplugged, using, signal);
	if (!ret && READ_ONCE(mm->unmapped) &&
	    !record_is_released(context->record))
		torture_error(context->record, "registered on a dead mm");
	if (!ret && c->flags & FLAG_TWICE &&
	    hmm_mirror_register(&context->mirror, &ds->device->hmm, mm->mm) !=
	    -EBUSY)
		torture_error(context->record, "registered twice");
	if (using)
		mm_unuse(mm, c->flags & FLAG_ASYNC);
	if (ret)
		atomic_dec(&ds->nr_registered);
	return ret;
}

static void context_start_work(struct torture_context *context)
{
	spin_lock_irq(&context->record->lock);
	if (!context->record->stopped)
		queue_work(torture_wq, &context->work);
	spin_unlock_irq(&context->record->lock);
}

static void op_register(struct torture_thread *t, const struct torture_choice *c)
{
	struct torture_device_slot *ds = &device_slots[c->device];
	struct torture_slot *slot = &slots[c->slot];
	struct torture_context *context;
	struct torture_mm *mm;

	if (!slot_claim(slot))
		return;
	mm = mm_slot_get(c->mm);
	context = mm ? context_new(t->spare, mm) : NULL;
	if (mm)
		torture_mm_put(mm);
	if (!context) {
		slot_publish(slot, NULL);
		return;
	}
	t->spare = NULL;
	context->slot = c->slot;
	context->plan = c->plan;
	INIT_WORK(&context->work, torture_work);

	down_read(&ds->sem);
	context->device = ds->device;
	context->record->has_free = ds->has_free;
	if (ds->device && !context_register(context, ds, c)) {
		if (c->flags & FLAG_WORKER)
			context_start_work(context);
		slot_publish(slot, context);
		context = NULL;
	}
	up_read(&ds->sem);
	if (context) {
		slot_publish(slot, NULL);
		guard_bury(&context->guard, c->flags & FLAG_KEEP);
	}
}

static void op_unregister(struct torture_thread *t,
			  const struct torture_choice *c)
{
	struct torture_context *context;

	context = slot_take(&slots[c->slot], NULL, NULL);
	if (context)
		context_end(t, context, c->flags);
}

static void kill_in_irq(struct irq_work *work)
{
	struct torture_thread *t =
		container_of(work, struct torture_thread, irq_work);

	context_kill(t->irq_context);
	context_put(t->irq_context);
}

static void op_kill(struct torture_thread *t, const struct torture_choice *c)
{
	struct torture_context *context = slot_get(&slots[c->slot]);

	if (!context)
		return;
	if (c->flags & FLAG_IRQ) {
		t->irq_context = context;
		irq_work_queue(&t->irq_work);
		irq_work_sync(&t->irq_work);
		return;
	}
	context_kill(context);
	torture_delay(c->delay);
	context_put(context);
}

static void op_hold(struct torture_thread *t, const struct torture_choice *c)
{
	struct torture_context *context = slot_get(&slots[c->slot]);

	if (!context)
		return;
	torture_delay(c->delay);
	context_check(context, "while a reference is held");
	if (c->flags & FLAG_IRQ)
		context_put_late(context);
	else
		context_put(context);
}

/*
 * It must pin if we use the address space and there was no release; and may not once
 * there was one, or if nobody uses it but for pins of HMM, nor began to meanwhile.
 */
static bool context_pin(struct torture_context *context, bool using)
{
	struct torture_mm *mm = context->record->mm;
	int disturbed = atomic_read(&mm->disturbed);
	bool live = context_is_live(context);
	bool abandoned, pinned;

	/* Each read before the next: who disturbs says so first */
	smp_rmb();
	abandoned = !atomic_read(&mm->registering) && !atomic_read(&mm->users);
	pinned = hmm_mirror_mm_get(&context->mirror);
	/* As above; those that began meanwhile are seen now */
	smp_mb();
	if (pinned && abandoned && atomic_read(&mm->disturbed) == disturbed)
		torture_error(context->record, "pinned what only pins keep");
	if (pinned && !live)
		torture_error(context->record, "pinned, though it is released");
	if (!pinned && using && context_is_live(context))
		torture_error(context->record, "not pinned, though it is live");
	if (pinned && READ_ONCE(mm->unmapped))
		torture_error(context->record, "pinned what is freed");
	return pinned;
}

static void op_pin(struct torture_thread *t, const struct torture_choice *c)
{
	struct torture_context *context = slot_get(&slots[c->slot]);
	struct torture_mm *mm;
	bool pinned, using;

	if (!context)
		return;
	mm = context->record->mm;
	using = c->flags & FLAG_USE_MM && mm_use(mm);
	pinned = context_pin(context, using);
	if (using)
		mm_unuse(mm, false);
	if (c->flags & FLAG_EXIT)
		mm_slot_exit(mm->slot, mm, c->flags & FLAG_ASYNC);
	torture_delay(c->delay);
	if (pinned && context_pin(context, false))
		hmm_mirror_mm_put(&context->mirror);
	if (pinned && READ_ONCE(mm->unmapped))
		torture_error(context->record, "pages are freed in spite of a pin");
	if (pinned)
		hmm_mirror_mm_put(&context->mirror);
	context_put(context);
}

static void op_find(struct torture_thread *t, const struct torture_choice *c)
{
	struct torture_device_slot *ds = &device_slots[c->device];
	struct torture_mm *mm = mm_slot_get(c->mm);
	struct torture_context *context = NULL;
	struct torture_device *device;
	struct hmm_mirror *mirror = NULL;

	if (!mm)
		return;
	atomic_inc(&nr_finding);
	down_read(&ds->sem);
	device = ds->device;
	if (device)
		mirror = hmm_mirror_find(&device->hmm, mm->mm);
	up_read(&ds->sem);
	if (mirror) {
		context = container_of(mirror, struct torture_context, mirror);
		context_found(context);
	}
	atomic_dec(&nr_finding);
	if (context) {
		context_check(context, "of a mirror that was found");
		if (context->device != device || context->record->mm != mm)
			torture_error(context->record, "another mirror was found");
		torture_delay(c->delay);
		context_check(context, "while a reference is held");
		context_put(context);
	}
	torture_mm_put(mm);
}

/*
 * What is live, before and after, is found, or another one of the same two; and what
 * is not is not.
 */
static void op_find_live(struct torture_thread *t,
			 const struct torture_choice *c)
{
	struct torture_context *context = slot_get(&slots[c->slot]);
	struct hmm_mirror *mirror;
	bool live;

	if (!context)
		return;
	live = context_is_live(context);
	atomic_inc(&nr_finding);
	mirror = hmm_mirror_find(&context->device->hmm,
				 context->record->mm->mm);
	if (mirror)
		context_found(container_of(mirror, struct torture_context, mirror));
	atomic_dec(&nr_finding);
	if (mirror)
		context_put(container_of(mirror, struct torture_context, mirror));
	if (mirror == &context->mirror && !live)
		torture_error(context->record, "found, though it is released");
	if (!mirror && live && context_is_live(context))
		torture_error(context->record, "live, and not found");
	context_put(context);
}

static void op_exit(struct torture_thread *t, const struct torture_choice *c)
{
	mm_slot_exit(c->mm, NULL, c->flags & FLAG_ASYNC);
}

/* Invalidations beside the rest; and the last user may be this one. */
static void op_unmap(struct torture_thread *t, const struct torture_choice *c)
{
	struct torture_mm *mm = mm_slot_get(c->mm);

	if (!mm)
		return;
	if (mm_use(mm)) {
		kthread_use_mm(mm->mm);
		if (map_page(OTHER_ADDRESS)) {
			torture_delay(c->delay);
			vm_munmap(OTHER_ADDRESS, PAGE_SIZE);
		}
		kthread_unuse_mm(mm->mm);
		mm_unuse(mm, c->flags & FLAG_ASYNC);
	}
	torture_mm_put(mm);
}

/* What is due when hmm_synchronize() is called has been done when it returns. */
static void op_synchronize(struct torture_thread *t,
			   const struct torture_choice *c)
{
	struct torture_context *context;
	struct torture_record *record;
	bool last_put = c->flags & FLAG_LAST_PUT;
	bool due;

	context = slot_take(&slots[c->slot], NULL, NULL);
	if (!context)
		return;
	record = record_get(context->record);
	WRITE_ONCE(record->slow, true);
	context_kill(context);
	hmm_synchronize();
	if (!record_is_released(record))
		torture_error(record, "not released by hmm_synchronize()");
	if (!record->has_free) {
		context_unregister(t, context, c->flags);
		goto out;
	}
	/* Nobody finds it any more; but a find may be about to say what it found */
	due = !atomic_read(&nr_finding);
	/* Pairs with the barrier in context_found() */
	smp_rmb();
	due = due && !atomic_read(&record->might_hold);
	if (last_put) {
		hmm_mirror_get(&context->mirror);
		context_got(context);
	}
	context_unregister_async(context);
	if (last_put) {
		torture_delay(c->delay);
		context_put(context);
	}
	hmm_synchronize();
	if (due && !record_is_freed(record))
		torture_error(record, "not freed by hmm_synchronize()");
out:
	record_put(record);
}

static void op_unplug(struct torture_thread *t, const struct torture_choice *c)
{
	struct torture_device_slot *ds = &device_slots[c->device];

	if (!mutex_trylock(&ds->remove))
		return;
	if (!ds->device) {
		mutex_unlock(&ds->remove);
		return;
	}
	if (IS_ENABLED(CONFIG_HMM_TEST_POINTS) && delays &&
	    c->flags & FLAG_EXCLUSIVE) {
		WRITE_ONCE(ds->unplugger, current);
		/* Which unlocks, before it returns */
		device_unplug(ds);
		return;
	}
	device_unplug(ds);
	WRITE_ONCE(ds->unplugged, true);
	device_check_released(ds->device);
	mutex_unlock(&ds->remove);
}

static void op_remove(struct torture_thread *t, const struct torture_choice *c)
{
	struct torture_device_slot *ds = &device_slots[c->device];
	struct torture_context *context;
	int i, try = 0, ret;

	if (!mutex_trylock(&ds->remove))
		return;
	if (!ds->device)
		goto out;
	WRITE_ONCE(ds->going, true);
	if (c->flags & FLAG_UNPLUG) {
		device_unplug(ds);
		WRITE_ONCE(ds->unplugged, true);
	}
	do {
		for (i = 0; i < mirrors; i++) {
			context = slot_take(&slots[i], NULL, ds->device);
			if (context)
				context_end(t, context, c->flags);
		}
		ret = device_end(ds, c->flags);
		if (ret)
			usleep_range(100, 1000);
	} while (ret && ++try < NR_TRIES && !READ_ONCE(torture_paused));
	/* Registers went on and on: it stays, unless it was unplugged */
	if (ret && !READ_ONCE(ds->unplugged))
		WRITE_ONCE(ds->going, false);
out:
	mutex_unlock(&ds->remove);
}

static const struct torture_op {
	const char *name;
	unsigned int weight;
	void (*fn)(struct torture_thread *t, const struct torture_choice *c);
} torture_op[] = {
	{ "register", 34, op_register },
	{ "unregister", 18, op_unregister },
	{ "kill", 6, op_kill },
	{ "hold", 6, op_hold },
	{ "pin", 8, op_pin },
	{ "find", 6, op_find },
	{ "find_live", 4, op_find_live },
	{ "exit", 7, op_exit },
	{ "unmap", 3, op_unmap },
	{ "synchronize", 3, op_synchronize },
	{ "unplug", 2, op_unplug },
	{ "remove", 3, op_remove },
};

static atomic_long_t torture_op_count[ARRAY_SIZE(torture_op)];

/*
 * Threads
 */

static u32 draw(struct torture_thread *t, u32 below)
{
	return prandom_u32_state(&t->rnd) % below;
}

/* All of it, whether or not the operation needs it: nothing depends on the world. */
static void choose(struct torture_thread *t, struct torture_choice *c)
{
	unsigned int i, sum = 0;
	u32 weight;

	for (i = 0; i < ARRAY_SIZE(torture_op); i++)
		sum += torture_op[i].weight;
	weight = draw(t, sum);
	for (i = 0; weight >= torture_op[i].weight; i++)
		weight -= torture_op[i].weight;

	c->op = i;
	c->slot = draw(t, mirrors);
	c->device = draw(t, devices);
	c->mm = draw(t, mms);
	c->flags = prandom_u32_state(&t->rnd);
	c->plan = prandom_u32_state(&t->rnd);
	c->delay = prandom_u32_state(&t->rnd);
	if (t->nr_choices == NR_CHOICES)
		return;
	t->checksum = jhash2((u32 *)c, sizeof(*c) / sizeof(u32), t->checksum);
	WRITE_ONCE(t->nr_choices, t->nr_choices + 1);
}

static void park(struct torture_thread *t)
{
	if (t->spare)
		guard_bury(&t->spare->guard, false);
	t->spare = NULL;
	WRITE_ONCE(t->parked, true);
	atomic_inc(&nr_parked);
	wake_up_all(&torture_wait);
}

static void unpark(struct torture_thread *t)
{
	wait_event_idle(torture_wait,
			!READ_ONCE(torture_paused) || torture_must_stop());
	atomic_dec(&nr_parked);
	WRITE_ONCE(t->parked, false);
}

static int torture_choose(void *arg)
{
	struct torture_thread *t = arg;
	struct torture_choice choice;

	do {
		if (READ_ONCE(torture_paused)) {
			park(t);
			unpark(t);
			continue;
		}
		choose(t, &choice);
		WRITE_ONCE(t->busy, torture_op[choice.op].name);
		torture_op[choice.op].fn(t, &choice);
		atomic_long_inc(&torture_op_count[choice.op]);
		stutter_wait("torture_choose");
		cond_resched();
	} while (!torture_must_stop());
	/* For good */
	park(t);
	torture_kthread_stopping("torture_choose");
	return 0;
}

/*
 * Rounds
 */

static long stall_jiffies(void)
{
	return (long)stall_seconds * HZ;
}

/* False: something went wrong, and all is left alone. */
static bool threads_pause(void)
{
	int i;

	WRITE_ONCE(torture_paused, true);
	if (wait_event_idle_timeout(torture_wait,
				    atomic_read(&nr_parked) == threads ||
				    atomic_read(&nr_errors), stall_jiffies()))
		return !atomic_read(&nr_errors);
	for (i = 0; i < threads; i++)
		if (!READ_ONCE(torture_threads[i].parked))
			pr_alert("thread %d hangs in %s\n",
				 task_pid_nr(torture_threads[i].task),
				 READ_ONCE(torture_threads[i].busy));
	torture_error(NULL, "a thread hangs");
	return false;
}

static void threads_go(void)
{
	WRITE_ONCE(torture_paused, false);
	wake_up_all(&torture_wait);
}

static void round_begin(void)
{
	int i;

	for (i = 0; i < devices; i++) {
		struct torture_device_slot *ds = &device_slots[i];

		down_write(&ds->sem);
		ds->device = device_new(ds, NULL);
		ds->going = false;
		ds->unplugged = false;
		up_write(&ds->sem);
	}
}

/* Everything is given back: ours, which HMM was to free; and HMM's own. */
static void round_check(void)
{
	struct hmm_test_counts counts = {};

	if (!wait_event_idle_timeout(torture_wait, !atomic_read(&nr_mms),
				     stall_jiffies()))
		torture_error(NULL, "an address space was not given back");
	if (atomic_read(&nr_contexts))
		torture_error(NULL, "mirrors were not freed");
	if (!IS_ENABLED(CONFIG_HMM_TEST_POINTS))
		return;
	hmm_test_quiesce(&counts);
	if (counts.devices || counts.mirrors || counts.hmms) {
		pr_alert("%ld devices, %ld mirrors, %ld address spaces left\n",
			 counts.devices, counts.mirrors, counts.hmms);
		torture_error(NULL, "HMM has live objects left");
	}
}

/* No thread runs. Mirrors of exit and unplug go here as well, half of them. */
static void round_end(void)
{
	struct torture_context *context;
	int i;

	for (i = 0; i < mms; i += 2)
		mm_slot_exit(i, NULL, i & 2);
	for (i = 0; i < devices; i += 2)
		if (device_slots[i].device)
			device_unplug(&device_slots[i]);
	for (i = 0; i < mirrors; i++) {
		context = slot_take(&slots[i], NULL, NULL);
		if (context)
			context_end(NULL, context, i);
	}
	for (i = 0; i < devices; i++) {
		struct torture_device *device = device_slots[i].device;

		if (!device)
			continue;
		if (hmm_device_unregister(&device->hmm))
			torture_error(NULL, "a device without mirrors is busy");
		else
			guard_bury(&device->guard, i & 1);
		device_slots[i].device = NULL;
	}
	for (i = 0; i < mms; i++)
		mm_slot_exit(i, NULL, false);
	wait_event_idle(torture_wait, !atomic_read(&nr_late_puts));
	hmm_synchronize();
	graves_shrink(0);
	round_check();
}

static u32 choices_checksum(void)
{
	u32 checksum = 0;
	int i;

	for (i = 0; i < threads; i++) {
		if (READ_ONCE(torture_threads[i].nr_choices) != NR_CHOICES)
			return 0;
		checksum += torture_threads[i].checksum;
	}
	return checksum;
}

/* One line that says all: the verdict, how to have it again, what was done. */
static void torture_verdict(void)
{
	static char counts[512];
	long sum = 0;
	int i, len = 0;

	for (i = 0; i < ARRAY_SIZE(torture_op); i++) {
		long count = atomic_long_read(&torture_op_count[i]);

		sum += count;
		len += scnprintf(counts + len, sizeof(counts) - len, " %s=%ld",
				 torture_op[i].name, count);
	}
	pr_alert("--- End of test: %s: seed=%lu seconds=%d threads=%d devices=%d mms=%d mirrors=%d round_ms=%d stutter_ms=%d delays=%d elapsed=%lu rounds=%u errors=%d choices=%08x ops=%ld%s\n",
		 atomic_read(&nr_errors) ? "FAILURE" : "SUCCESS", seed, seconds,
		 threads, devices, mms, mirrors, round_ms, stutter_ms, delays,
		 (jiffies - torture_begun) / HZ, nr_rounds,
		 atomic_read(&nr_errors), choices_checksum(), sum, counts);
}

/* In a worker too, which may be quicker than the main thread. */
static void torture_end(void)
{
	if (atomic_xchg(&torture_ended, 1))
		return;
	torture_verdict();
	if (shutdown)
		kernel_power_off();
}

static void torture_watch(struct work_struct *work)
{
	torture_error(NULL, "the end of a round hangs");
	torture_end();
}

static DECLARE_DELAYED_WORK(torture_watchdog, torture_watch);

static bool torture_is_over(void)
{
	return torture_must_stop() || atomic_read(&nr_errors) ||
	       (seconds && time_after(jiffies, torture_begun +
					       (unsigned long)seconds * HZ));
}

static int torture_main(void *unused)
{
	torture_begun = jiffies;
	do {
		round_begin();
		threads_go();
		wait_event_idle_timeout(torture_wait, torture_is_over(),
					msecs_to_jiffies(round_ms));
		if (threads_pause()) {
			schedule_delayed_work(&torture_watchdog,
					      stall_jiffies() + 10 * HZ);
			round_end();
			cancel_delayed_work_sync(&torture_watchdog);
		}
		nr_rounds++;
	} while (!torture_is_over());
	if (atomic_read(&nr_errors))
		__module_get(THIS_MODULE);
	torture_end();
	torture_kthread_stopping("torture_main");
	return 0;
}

/*
 * The module
 */

static void torture_stop(void)
{
	int i;

	if (torture_cleanup_begin())
		return;
	wake_up_all(&torture_wait);
	/* First who pauses the others, and waits for them */
	torture_stop_kthread(torture_main, torture_main_task);
	for (i = 0; i < threads; i++)
		torture_stop_kthread(torture_choose, torture_threads[i].task);
	if (IS_ENABLED(CONFIG_HMM_TEST_POINTS) && delays)
		hmm_test_clear_hook();
	destroy_workqueue(torture_wq);
	torture_cleanup_end();
}

static void __init torture_world_init(void)
{
	int i;

	for (i = 0; i < MAX_OF_A_KIND; i++) {
		spin_lock_init(&slots[i].lock);
		spin_lock_init(&mm_slots[i].lock);
		mutex_init(&device_slots[i].remove);
		init_rwsem(&device_slots[i].sem);
		device_slots[i].has_free = i & 1;
		init_irq_work(&torture_threads[i].irq_work, kill_in_irq);
		prandom_seed_state(&torture_threads[i].rnd,
				   hash_64(seed + i, 32));
	}
}

static int __init torture_start(void)
{
	int i, ret;

	/* They begin when the main thread lets them */
	WRITE_ONCE(torture_paused, true);
	for (i = 0; i < threads; i++) {
		ret = torture_create_kthread(torture_choose, &torture_threads[i],
					     torture_threads[i].task);
		if (ret)
			return ret;
	}
	if (stutter_ms) {
		ret = torture_stutter_init(msecs_to_jiffies(stutter_ms), HZ);
		if (ret)
			return ret;
	}
	return torture_create_kthread(torture_main, NULL, torture_main_task);
}

static int __init hmm_torture_init(void)
{
	int ret;

	/* Built in, for another boot: it would never end */
	if (!IS_MODULE(CONFIG_HMM_TORTURE_TEST) && !seconds)
		return 0;
	if (threads < 1 || threads > MAX_OF_A_KIND || devices < 1 ||
	    devices > MAX_OF_A_KIND || mms < 1 || mms > MAX_OF_A_KIND ||
	    mirrors < 1 || mirrors > MAX_OF_A_KIND || seconds < 0 ||
	    round_ms < 1 || stutter_ms < 0 || stall_seconds < 1)
		return -EINVAL;
	if (!torture_init_begin("hmm", 0))
		return -EBUSY;
	if (!seed)
		seed = get_random_u32();
	pr_alert("--- Start of test: seed=%lu seconds=%d threads=%d devices=%d mms=%d mirrors=%d round_ms=%d stutter_ms=%d delays=%d\n",
		 seed, seconds, threads, devices, mms, mirrors, round_ms,
		 stutter_ms, delays);
	torture_world_init();
	torture_wq = alloc_workqueue("hmm_torture", WQ_UNBOUND, 0);
	ret = torture_wq ? 0 : -ENOMEM;
	if (!ret && IS_ENABLED(CONFIG_HMM_TEST_POINTS) && delays) {
		ret = hmm_test_set_hook(torture_hook);
		if (ret)
			destroy_workqueue(torture_wq);
	}
	if (ret) {
		torture_init_end();
		torture_cleanup_begin();
		torture_cleanup_end();
		return ret;
	}
	ret = torture_start();
	torture_init_end();
	if (ret)
		torture_stop();
	return ret;
}

static void __exit hmm_torture_exit(void)
{
	torture_stop();
}

/* Built in, not before the console: the test may fail at once, and power off */
late_initcall(hmm_torture_init);
module_exit(hmm_torture_exit);

/* mm_alloc() */
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
MODULE_DESCRIPTION("Torture test of the HMM registration core");
MODULE_LICENSE("GPL");
