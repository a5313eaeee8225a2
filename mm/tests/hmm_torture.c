// SPDX-License-Identifier: GPL-2.0-only
/*
 * Torture test of the HMM registration core
 *
 * Threads do random operations on a few devices, address spaces and mirrors:
 * they register, unregister, kill, find, pin, unplug, remove and exit. Each
 * registration has a record, which outlives the mirror, of what was called and
 * what returned. Each callback and each return of HMM is checked against the
 * record. Memory that HMM has given back is freed at once in half of the cases,
 * so that KASAN reports a late access. In the other half it is filled with a
 * pattern and kept in a quarantine, so that a late callback finds the record
 * and a late write destroys the pattern.
 *
 * The choices of each thread are a function of the seed and its number alone: a
 * thread draws all of them before it reads any shared state. The order in which
 * the threads meet depends on the scheduler and on the delays at the test
 * points of HMM. The delays are random as well, but differ from run to run.
 *
 * Every round_ms all threads stop, everything is torn down, and nothing may be
 * left. The first error ends the test. Then nothing is torn down and the module
 * stays.
 *
 * Locking
 * =======
 *
 *	torture_device_slot::remove	held by a thread that unplugs or removes
 *	  torture_device_slot::sem	for read to register on the device, for
 *					write to replace it
 *	torture_device::lock		of the driver; taken by callbacks
 *	torture_slot::lock		context, and which thread unregisters
 *					it; held for calls that do not sleep
 *	  torture_record::lock		leaf
 *	torture_mm_slot::lock		leaf
 *	quarantine_lock			leaf
 *
 * Callbacks take none of the first two. A thread that holds a reference on a
 * mirror waits for no thread that unregisters: the only call of HMM in which it
 * sleeps is hmm_synchronize().
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
#define NR_QUARANTINED	64	/* objects that are kept after their end */
#define NR_CHOICES	256	/* of each thread that go into the checksum */
#define NR_TRIES	20	/* of a device that is busy */
#define MAX_OF_A_KIND	64

#define MAGIC_LIVE	0x4c495645
#define MAGIC_DEAD	0x44454144
#define PATTERN		0x5a

/*
 * Where pages are mapped in an address space: one that stays, one that comes
 * and goes
 */
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

/* The first part of a context and of a device; it stays valid in quarantine */
struct torture_object {
	u32 magic;
	struct list_head node;		/* quarantine_lock */
	void *hmm;			/* HMM's part of the object */
	size_t size;
	void (*free)(struct torture_object *object);
};

struct torture_mm {
	struct kref kref;		/* of the slot, of records, of users */
	unsigned int slot;
	struct mm_struct *mm;		/* mm_count is ours */
	struct mmu_interval_notifier notifier;
	atomic_t users;			/* mm_users of this test, at most */
	atomic_t registering;
	atomic_t disturbed;		/* ever: began to use or to register */
	unsigned long begun;		/* jiffies */
	bool unmapped;			/* its pages are freed */
	struct work_struct end_work;
};

struct torture_event {
	enum torture_step step;
	int pid;
	u64 time_ns;
};

/* What is known of one registration of a device; outlives the device */
struct torture_device_record {
	struct kref kref;
	atomic_t nr_registered;		/* at most */
	atomic_t nr_published;		/* at least */
	atomic_t nr_running;		/* callbacks */
	bool unplugging;
	bool async;			/* ->device_free() may come */
	bool freed;
};

/* What has happened to one registration of a mirror */
struct torture_state {
	bool unregistering;
	bool killed;
	bool stopped;			/* no worker is queued any more */
	bool running;
	bool released;
	bool freed;
	bool fenced;
};

/* What is known of one registration of a mirror; outlives the mirror */
struct torture_record {
	struct kref kref;		/* of the context and of readers */
	struct torture_mm *mm;
	struct torture_device_record *device;
	bool has_free;
	bool slow;			/* callbacks sleep */
	bool ended;			/* torture_slot::lock; no more slot */
	atomic_t held;			/* references, at least */
	atomic_t might_hold;		/* references, at most */
	spinlock_t lock;		/* the rest */
	struct torture_state state;
	unsigned int nr_events;
	struct torture_event events[NR_STEPS];
};

struct torture_device_slot;

struct torture_device {
	struct torture_object object;
	struct hmm_device hmm;
	u32 tail;
	struct torture_device_record *record;
	struct mutex lock;		/* the driver's: nr_callbacks */
	unsigned long nr_callbacks;
};

struct torture_device_slot {
	struct mutex remove;		/* of the thread that unplugs */
	struct rw_semaphore sem;
	struct torture_device *device;	/* sem and remove; NULL: no memory */
	bool has_free;
	bool going;			/* unplugged or removed, or soon */
	bool unplugged;
	struct task_struct *unplugger;	/* unlocks remove before it returns */
};

struct torture_context {
	struct torture_object object;
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
	bool claimed;			/* a thread registers for it */
};

struct torture_mm_slot {
	spinlock_t lock;		/* mm */
	struct torture_mm *mm;
};

/* Bits of torture_choice::flags; an operation uses some */
enum {
	FLAG_ASYNC	= BIT(0),
	FLAG_KEEP	= BIT(1),	/* quarantine, not kfree() */
	FLAG_REUSE	= BIT(2),	/* register the same memory again */
	FLAG_USE_MM	= BIT(3),
	FLAG_TWICE	= BIT(4),
	FLAG_WORKER	= BIT(5),
	FLAG_IRQ	= BIT(6),
	FLAG_EXIT	= BIT(7),
	FLAG_UNPLUG	= BIT(8),
	FLAG_EXCLUSIVE	= BIT(9),
	FLAG_LAST_PUT	= BIT(10),
	FLAG_KILL	= BIT(11),
	FLAG_END	= BIT(12),	/* unregister what was found */
};

/* Bits of torture_context::plan */
enum {
	PLAN_LOCK	= BIT(0),
	PLAN_ASYNC	= BIT(1),
	PLAN_KILL	= BIT(2),
	PLAN_SLEEP	= BIT(3),
	PLAN_KEEP	= BIT(4),
	PLAN_HELPER	= BIT(5),	/* takes mm_users under a pin */
	PLAN_MMPUT	= BIT(6),	/* ends with mmput() */
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
	struct torture_context *spare;	/* to be registered again */
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
static struct workqueue_struct *torture_reclaim_wq;

static LIST_HEAD(quarantine);			/* quarantine_lock */
static unsigned int nr_quarantined;		/* quarantine_lock */
static DEFINE_SPINLOCK(quarantine_lock);

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
static atomic_t nr_devices;
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

/*
 * @record may be NULL. Only the first errors are printed: others may follow
 * from them.
 */
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
		/* Longer than HMM delays what it does later */
		if (!((how >> 4) % 256) && may_sleep())
			schedule_timeout_uninterruptible(3);
		break;
	}
}

/* While a thread is in hmm_device_unplug(), others may remove the device. */
static void unplug_begun(void)
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
	if (point == HMM_POINT_RELEASE_WAIT && !mirror)
		unplug_begun();
	torture_delay(jhash_2words(atomic_inc_return(&nr_points), point, seed));
}

/*
 * What HMM has given back
 */

static void object_init(struct torture_object *object, void *hmm, size_t size,
			void (*free)(struct torture_object *object))
{
	object->magic = MAGIC_LIVE;
	object->hmm = hmm;
	object->size = size;
	object->free = free;
}

static void object_check_and_free(struct torture_object *object)
{
	if (memchr_inv(object->hmm, PATTERN, object->size))
		torture_error(NULL, "written to after HMM had given it back");
	object->free(object);
}

/* The oldest beyond @max goes. */
static void quarantine_shrink(unsigned int max)
{
	struct torture_object *object;
	unsigned long flags;

	for (;;) {
		spin_lock_irqsave(&quarantine_lock, flags);
		object = NULL;
		if (nr_quarantined > max) {
			object = list_first_entry(&quarantine,
						  struct torture_object, node);
			list_del(&object->node);
			nr_quarantined--;
		}
		spin_unlock_irqrestore(&quarantine_lock, flags);
		if (!object)
			return;
		object_check_and_free(object);
	}
}

static void object_give_up(struct torture_object *object, bool keep)
{
	unsigned long flags;

	WRITE_ONCE(object->magic, MAGIC_DEAD);
	if (!keep) {
		object->free(object);
		return;
	}
	memset(object->hmm, PATTERN, object->size);
	spin_lock_irqsave(&quarantine_lock, flags);
	list_add_tail(&object->node, &quarantine);
	nr_quarantined++;
	spin_unlock_irqrestore(&quarantine_lock, flags);
	quarantine_shrink(NR_QUARANTINED);
}

/*
 * Address spaces
 */

/*
 * At exit this comes twice: for MMU_NOTIFY_RELEASE, when HMM calls ->release(),
 * and then as pages begin to be freed. Before that nobody unmaps this page.
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

static long stall_jiffies(void)
{
	return (long)stall_seconds * HZ;
}

/*
 * The test has no users and no registration left. HMM removes its notifier,
 * which holds mm_count, later. Each CPU that runs a kernel thread may hold
 * mm_count of the last address space.
 */
static void mm_wait_for_count(struct torture_mm *mm)
{
	unsigned long deadline = jiffies + stall_jiffies();

	while (atomic_read(&mm->mm->mm_count) > 1 + num_possible_cpus()) {
		if (time_after(jiffies, deadline)) {
			torture_error(NULL, "mm_count was not given back");
			break;
		}
		schedule_timeout_uninterruptible(1);
	}
}

static void mm_end_work(struct work_struct *work)
{
	struct torture_mm *mm =
		container_of(work, struct torture_mm, end_work);

	mmu_interval_notifier_remove(&mm->notifier);
	if (atomic_read(&mm->mm->mm_users))
		torture_error(NULL, "mm_users was not given back");
	mm_wait_for_count(mm);
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
	mm->begun = jiffies;
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
	/* Another thread was faster */
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

static void device_record_free(struct kref *kref)
{
	kfree(container_of(kref, struct torture_device_record, kref));
}

static void device_record_put(struct torture_device_record *device)
{
	kref_put(&device->kref, device_record_free);
}

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
	if (record->device)
		device_record_put(record->device);
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

/* Whether @step may come now; the caller holds the lock. */
static const char *record_check(struct torture_record *record,
				enum torture_step step)
{
	struct torture_state *state = &record->state;

	switch (step) {
	case STEP_RELEASE:
		if (state->fenced)
			return "->release() after unregister had returned";
		if (state->running)
			return "->release() by two at once";
		if (state->released)
			return "->release() a second time";
		break;
	case STEP_FREE:
		if (state->fenced)
			return "->free() after unregister had returned";
		if (state->freed)
			return "->free() a second time";
		if (!state->released)
			return "->free() before ->release() had returned";
		if (!state->unregistering)
			return "->free() of a registered mirror";
		break;
	case STEP_FENCE:
		if (!state->released)
			return "unregister returned before ->release() had";
		if (record->has_free && !state->freed)
			return "unregister returned before ->free() had";
		if (atomic_read(&record->held))
			return "unregister returned while a reference is held";
		break;
	case STEP_REFUSED:
		if (state->running || state->released)
			return "->release() of a mirror that was not registered";
		break;
	default:
		break;
	}
	return NULL;
}

static void record_update(struct torture_state *state, enum torture_step step)
{
	switch (step) {
	case STEP_KILL:
		state->killed = true;
		break;
	case STEP_UNREGISTER:
	case STEP_UNREGISTER_ASYNC:
		state->unregistering = true;
		break;
	case STEP_RELEASE:
		state->running = true;
		break;
	case STEP_RELEASED:
		state->running = false;
		state->released = true;
		break;
	case STEP_FREE:
		state->freed = true;
		break;
	case STEP_FENCE:
	case STEP_REFUSED:
		state->fenced = true;
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
	record_update(&record->state, step);
	spin_unlock_irqrestore(&record->lock, flags);
	if (wrong)
		torture_error(record, wrong);
}

static struct torture_state record_state(struct torture_record *record)
{
	struct torture_state state;
	unsigned long flags;

	spin_lock_irqsave(&record->lock, flags);
	state = record->state;
	spin_unlock_irqrestore(&record->lock, flags);

	return state;
}

/* So that a thread that fails to wait for the callback is noticed. */
static void record_be_slow(struct torture_record *record)
{
	if (READ_ONCE(record->slow))
		usleep_range(5000, 10000);
}

/* Whether there was a cause for this reason. */
static bool record_has_reason(struct torture_record *record,
			      enum hmm_release_reason reason)
{
	switch (reason) {
	case HMM_RELEASE_MM_EXIT:
		return !atomic_read(&record->mm->mm->mm_users);
	case HMM_RELEASE_UNREGISTER:
		return record_state(record).unregistering;
	case HMM_RELEASE_DEVICE_GONE:
		return READ_ONCE(record->device->unplugging);
	case HMM_RELEASE_ERROR:
		return record_state(record).killed;
	default:
		return false;
	}
}

/*
 * Contexts
 */

static struct torture_context *to_context(struct hmm_mirror *mirror)
{
	return container_of(mirror, struct torture_context, mirror);
}

static void context_free(struct torture_object *object)
{
	struct torture_context *context =
		container_of(object, struct torture_context, object);

	record_put(context->record);
	kfree(context);
	atomic_dec(&nr_contexts);
}

/* A context and its device, which callbacks may use as well */
static void context_check(struct torture_context *context, const char *where)
{
	struct torture_device *device = context->device;
	bool current_is;

	if (READ_ONCE(context->object.magic) != MAGIC_LIVE ||
	    READ_ONCE(context->tail) != MAGIC_LIVE) {
		pr_alert("%s\n", where);
		torture_error(context->record, "a mirror that is gone, or was overwritten");
	}
	if (hmm_mirror_device(&context->mirror) != &device->hmm)
		torture_error(context->record, "a mirror of another device");
	current_is = current->mm == context->record->mm->mm;
	if (hmm_mirror_is_current(&context->mirror) != current_is)
		torture_error(context->record, "hmm_mirror_is_current() is wrong");
	if (READ_ONCE(device->object.magic) != MAGIC_LIVE ||
	    READ_ONCE(device->tail) != MAGIC_LIVE) {
		pr_alert("%s\n", where);
		torture_error(context->record, "a device that is gone, or was overwritten");
	}
}

/* A @spare gets a new record. */
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
		object_init(&context->object, &context->mirror,
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

/*
 * After hmm_mirror_find(), during which nr_finding counts what has no record
 * yet.
 */
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

static bool error_fits(struct torture_context *context, int error,
		       enum hmm_release_reason reason)
{
	atomic_t *users = &context->record->mm->mm->mm_users;

	switch (reason) {
	case HMM_RELEASE_NONE:
		return !error || (error == -ESRCH && !atomic_read(users));
	case HMM_RELEASE_MM_EXIT:
		return error == -ESRCH;
	case HMM_RELEASE_ERROR:
		return error == -EIO;
	default:
		return error == -ENODEV;
	}
}

/*
 * The caller has a reference, or is a callback. The reason changes once, at
 * most.
 */
static void context_check_error(struct torture_context *context)
{
	enum hmm_release_reason before, after;
	int error;

	before = hmm_mirror_release_reason(&context->mirror);
	/* Read each after the one before */
	smp_rmb();
	error = hmm_mirror_error(&context->mirror);
	/* As above */
	smp_rmb();
	after = hmm_mirror_release_reason(&context->mirror);

	if (!error_fits(context, error, before) &&
	    !error_fits(context, error, after))
		torture_error(context->record, "hmm_mirror_error() is wrong");
	if (before != HMM_RELEASE_NONE && before != after)
		torture_error(context->record, "another reason");
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

/*
 * The end of a claim. If @record is not NULL, @context is registered, unless
 * another thread has found and unregistered it meanwhile: then it may be freed.
 */
static void slot_publish(struct torture_slot *slot,
			 struct torture_context *context,
			 struct torture_record *record)
{
	unsigned long flags;

	spin_lock_irqsave(&slot->lock, flags);
	if (record && !record->ended) {
		atomic_inc(&record->device->nr_published);
		slot->context = context;
	}
	slot->claimed = false;
	spin_unlock_irqrestore(&slot->lock, flags);
}

/* The caller holds the lock and is to unregister @context. */
static bool slot_end_locked(struct torture_slot *slot,
			    struct torture_context *context)
{
	struct torture_record *record = context->record;

	if (record->ended)
		return false;
	record->ended = true;
	if (slot->context == context) {
		slot->context = NULL;
		atomic_dec(&record->device->nr_published);
	}
	return true;
}

/* The caller is to unregister the context, one of @device if that is given. */
static struct torture_context *slot_take(struct torture_slot *slot,
					 struct torture_device *device)
{
	struct torture_context *found;
	unsigned long flags;

	spin_lock_irqsave(&slot->lock, flags);
	found = slot->context;
	if (found && device && found->device != device)
		found = NULL;
	if (found && !slot_end_locked(slot, found))
		found = NULL;
	spin_unlock_irqrestore(&slot->lock, flags);

	return found;
}

/*
 * If this returns true, the caller is to unregister @context. The caller has a
 * reference, or is a callback: the thread that registers may not have returned
 * yet.
 */
static bool context_take(struct torture_context *context)
{
	struct torture_slot *slot = &slots[context->slot];
	unsigned long flags;
	bool taken;

	spin_lock_irqsave(&slot->lock, flags);
	taken = slot_end_locked(slot, context);
	spin_unlock_irqrestore(&slot->lock, flags);

	return taken;
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

/*
 * The caller has taken @context and, without a reference, may not use it
 * afterwards.
 */
static void context_unregister_async(struct torture_context *context)
{
	struct torture_record *record = record_get(context->record);

	record_step(record, STEP_UNREGISTER_ASYNC);
	hmm_mirror_unregister_async(&context->mirror);
	atomic_dec(&record->device->nr_registered);
	record_put(record);
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

/* Ends itself, or kills a neighbour, which may be in its release as well. */
static void release_calls(struct torture_context *context)
{
	struct torture_context *other;

	if (context->plan & PLAN_KILL) {
		other = slot_get(&slots[(context->slot + 1) % mirrors]);
		if (other) {
			context_kill(other);
			context_put(other);
		}
	}
	if (context->plan & PLAN_ASYNC && context->record->has_free &&
	    context_take(context))
		context_unregister_async(context);
}

/*
 * If HMM could take mm_users before this, it holds them until this has
 * returned. Else exit has begun, and none are left.
 */
static void torture_release(struct hmm_mirror *mirror)
{
	struct torture_context *context = to_context(mirror);
	struct torture_record *record = context->record;
	struct mm_struct *mm = record->mm->mm;
	bool exiting = !atomic_read(&mm->mm_users);

	atomic_inc(&record->device->nr_running);
	context_check(context, "in ->release()");
	record_step(record, STEP_RELEASE);
	if (!record_has_reason(record, hmm_mirror_release_reason(mirror)))
		torture_error(record, "->release() for a reason without a cause");
	context_check_error(context);

	spin_lock_irq(&record->lock);
	record->state.stopped = true;
	spin_unlock_irq(&record->lock);
	flush_work(&context->work);

	if (context->plan & PLAN_LOCK)
		device_callback(context);
	if (PLAN_RARE(context->plan))
		release_calls(context);
	if (context->plan & PLAN_SLEEP)
		usleep_range(50, 50 + (context->plan >> 8) % 4096);
	record_be_slow(record);

	if (!exiting && !atomic_read(&mm->mm_users))
		torture_error(record, "->release() while exit has begun");
	if (READ_ONCE(record->mm->unmapped))
		torture_error(record, "->release() while pages are freed");
	context_check(context, "at the end of ->release()");
	record_step(record, STEP_RELEASED);
	atomic_dec(&record->device->nr_running);
}

static void torture_free(struct hmm_mirror *mirror)
{
	struct torture_context *context = to_context(mirror);
	struct torture_record *record = record_get(context->record);

	atomic_inc(&record->device->nr_running);
	context_check(context, "in ->free()");
	if (atomic_read(&record->held))
		torture_error(record, "->free() while a reference is held");
	if (context->plan & PLAN_LOCK)
		device_callback(context);
	record_be_slow(record);
	if (hmm_mirror_release_reason(mirror) == HMM_RELEASE_NONE)
		torture_error(record, "->free() of a mirror that was not released");
	record_step(record, STEP_FREE);
	object_give_up(&context->object, context->plan & PLAN_KEEP);
	atomic_dec(&record->device->nr_running);
	record_put(record);
}

static void torture_device_free(struct hmm_device *hmm)
{
	struct torture_device *device =
		container_of(hmm, struct torture_device, hmm);
	struct torture_device_record *record = device->record;

	if (READ_ONCE(device->object.magic) != MAGIC_LIVE ||
	    xchg(&record->freed, true))
		torture_error(NULL, "->device_free() a second time");
	if (!READ_ONCE(record->async))
		torture_error(NULL, "->device_free() of a registered device");
	if (atomic_read(&record->nr_published))
		torture_error(NULL, "->device_free() of a device that has mirrors");
	if (atomic_read(&record->nr_running))
		torture_error(NULL, "->device_free() beside another callback");
	torture_delay(jhash_1word(atomic_inc_return(&nr_points), seed));
	object_give_up(&device->object, (unsigned long)device & 64);
}

static const struct hmm_device_ops torture_ops = {
	.release = torture_release,
	.device_free = torture_device_free,
};

static const struct hmm_device_ops torture_free_ops = {
	.release = torture_release,
	.free = torture_free,
	.device_free = torture_device_free,
};

/*
 * Holds mm_users until ->release() has begun, which then waits for the mmput().
 * The caller has a reference.
 */
static void work_mmput(struct torture_context *context)
{
	struct torture_record *record = context->record;
	struct torture_mm *mm = record->mm;

	if (mm_use(mm)) {
		context_kill(context);
		while (!record_state(record).stopped)
			usleep_range(50, 100);
		torture_delay(context->plan >> 8);
		mm_unuse(mm, false);
		if (READ_ONCE(mm->unmapped))
			torture_error(record, "pages are freed before ->release() has returned");
	}
	context_put(context);
}

/* What a helper does that takes mm_users by itself. The caller holds a pin. */
static void work_helper(struct torture_context *context)
{
	struct torture_mm *mm = context->record->mm;

	if (!mm_use(mm)) {
		torture_error(context->record, "no mm_users in spite of a pin");
		return;
	}
	kthread_use_mm(mm->mm);
	if (!hmm_mirror_is_current(&context->mirror))
		torture_error(context->record, "hmm_mirror_is_current() is wrong");
	torture_delay(context->plan >> 8);
	kthread_unuse_mm(mm->mm);
	mm_unuse(mm, false);
}

/* Pins again and again until the mirror is released, which waits for this. */
static void torture_work(struct work_struct *work)
{
	struct torture_context *context =
		container_of(work, struct torture_context, work);
	struct torture_record *record = context->record;
	int i;

	if (context->plan & PLAN_MMPUT) {
		work_mmput(context);
		return;
	}
	for (i = 0; i < 20; i++) {
		struct mm_struct *mm = hmm_mirror_mm_get(&context->mirror);

		if (!mm)
			break;
		if (mm != record->mm->mm)
			torture_error(record, "a pin on another address space");
		if (READ_ONCE(record->mm->unmapped))
			torture_error(record, "pages are freed in spite of a pin");
		if (context->plan & PLAN_HELPER)
			work_helper(context);
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
	struct torture_record *record = record_get(context->record);

	record_step(record, STEP_UNREGISTER);
	hmm_mirror_unregister(&context->mirror);
	record_step(record, STEP_FENCE);
	if (!record->has_free) {
		if (context_is_live(context))
			torture_error(record, "no reason after unregister");
		if (t && flags & FLAG_REUSE && !t->spare)
			t->spare = context;
		else
			object_give_up(&context->object, flags & FLAG_KEEP);
	}
	atomic_dec(&record->device->nr_registered);
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

static void device_free(struct torture_object *object)
{
	struct torture_device *device =
		container_of(object, struct torture_device, object);

	device_record_put(device->record);
	kfree(device);
	if (atomic_dec_and_test(&nr_devices))
		wake_up_all(&torture_wait);
}

/* The memory of @device again, or new memory; NULL: no memory. */
static struct torture_device *device_new(struct torture_device_slot *ds,
					 struct torture_device *device)
{
	const struct hmm_device_ops *ops =
		ds->has_free ? &torture_free_ops : &torture_ops;
	struct torture_device_record *record =
		kzalloc_obj(*record);

	if (device)
		device_record_put(device->record);
	else if (record)
		device = kzalloc_obj(*device);
	if (!record || !device) {
		if (device)
			atomic_dec(&nr_devices);
		kfree(record);
		kfree(device);
		return NULL;
	}
	kref_init(&record->kref);
	device->record = record;
	if (!device->tail) {
		object_init(&device->object, &device->hmm, sizeof(device->hmm),
			    device_free);
		device->tail = MAGIC_LIVE;
		mutex_init(&device->lock);
		atomic_inc(&nr_devices);
	}
	if (hmm_device_register(&device->hmm, ops, "torture"))
		torture_error(NULL, "a device cannot be registered");
	return device;
}

/* The caller holds ds->sem for write. */
static void device_replace(struct torture_device_slot *ds,
			   struct torture_device *old)
{
	ds->device = device_new(ds, old);
	WRITE_ONCE(ds->going, false);
	WRITE_ONCE(ds->unplugged, false);
}

/*
 * Exclusive: no thread tries to register meanwhile. Then the device is freed in
 * the line after hmm_device_unregister(). The caller holds ds->remove.
 */
static int device_end(struct torture_device_slot *ds, u32 flags)
{
	struct torture_device *device = ds->device;
	bool exclusive = flags & FLAG_EXCLUSIVE;
	bool unused;
	int ret;

	if (exclusive)
		down_write(&ds->sem);
	unused = exclusive && !atomic_read(&device->record->nr_registered);
	ret = hmm_device_unregister(&device->hmm);
	if (!ret && atomic_read(&device->record->nr_published))
		torture_error(NULL, "a device went that has mirrors");
	if (!ret && !exclusive)
		down_write(&ds->sem);
	if (!ret) {
		if (!(flags & FLAG_REUSE)) {
			object_give_up(&device->object, flags & FLAG_KEEP);
			device = NULL;
		}
		device_replace(ds, device);
	}
	if (exclusive || !ret)
		up_write(&ds->sem);

	if (ret && (ret != -EBUSY || unused))
		torture_error(NULL, "hmm_device_unregister() failed");
	return ret;
}

/* Its mirrors, if any, stay registered. The caller holds ds->remove. */
static void device_end_async(struct torture_device_slot *ds)
{
	down_write(&ds->sem);
	WRITE_ONCE(ds->device->record->async, true);
	hmm_device_unregister_async(&ds->device->hmm);
	device_replace(ds, NULL);
	up_write(&ds->sem);
}

/* The caller holds ds->remove, or, if it is ds->unplugger, may lose it. */
static void device_unplug(struct torture_device_slot *ds)
{
	WRITE_ONCE(ds->going, true);
	WRITE_ONCE(ds->device->record->unplugging, true);
	hmm_device_unplug(&ds->device->hmm);
}

/* After unplug; the caller still holds ds->remove. */
static void device_check_released(struct torture_device *device)
{
	unsigned long flags;
	int i;

	for (i = 0; i < mirrors; i++) {
		struct torture_context *context;

		spin_lock_irqsave(&slots[i].lock, flags);
		context = slots[i].context;
		if (context && context->device == device &&
		    !record_state(context->record).released)
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

/*
 * The caller holds ds->sem. If this returns 0, another thread may have found
 * and freed @context: only @record is left.
 */
static int context_register(struct torture_context *context,
			    struct torture_record *record,
			    struct torture_device_slot *ds,
			    const struct torture_choice *c)
{
	struct torture_mm *mm = record->mm;
	bool using = c->flags & FLAG_USE_MM && mm_use(mm);
	bool unplugged = READ_ONCE(ds->unplugged);
	bool signal = c->delay % 32 == 0;
	int ret;

	record_step(record, STEP_REGISTER);
	atomic_inc(&record->device->nr_registered);
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
	record_step(record, ret ? STEP_REFUSED : STEP_REGISTERED);
	check_registered(ds, ret, unplugged, using, signal);
	if (!ret && READ_ONCE(mm->unmapped) && !record_state(record).released)
		torture_error(record, "registered on a dead mm");
	if (using)
		mm_unuse(mm, c->flags & FLAG_ASYNC);
	if (ret)
		atomic_dec(&record->device->nr_registered);
	return ret;
}

/* The caller has a reference. */
static void context_register_again(struct torture_context *context,
				   struct torture_device_slot *ds)
{
	int ret = hmm_mirror_register(&context->mirror, &context->device->hmm,
				      context->record->mm->mm);

	if (ret != -EBUSY && (ret != -ENODEV || !READ_ONCE(ds->going)))
		torture_error(context->record, "registered twice");
}

/* ->release() waits for the worker, so none is queued once that has begun. */
static void context_start_work(struct torture_context *context)
{
	bool holds = context->plan & PLAN_MMPUT;

	if (holds) {
		hmm_mirror_get(&context->mirror);
		context_got(context);
	}
	spin_lock_irq(&context->record->lock);
	if (!context->record->state.stopped) {
		queue_work(torture_wq, &context->work);
		holds = false;
	}
	spin_unlock_irq(&context->record->lock);
	if (holds)
		context_put(context);
}

/*
 * After @context was published in its slot, from which others may have taken
 * it.
 */
static void context_registered(struct torture_context *context,
			       struct torture_record *record,
			       struct torture_device_slot *ds,
			       const struct torture_choice *c)
{
	struct torture_context *there = slot_get(&slots[c->slot]);

	if (!there)
		return;
	if (there == context && there->record == record) {
		if (c->flags & FLAG_TWICE)
			context_register_again(context, ds);
		if (c->flags & FLAG_WORKER)
			context_start_work(context);
	}
	context_put(there);
}

static void op_register(struct torture_thread *t,
			const struct torture_choice *c)
{
	struct torture_device_slot *ds = &device_slots[c->device];
	struct torture_slot *slot = &slots[c->slot];
	struct torture_context *context;
	struct torture_record *record;
	struct torture_mm *mm;
	int ret = -ENODEV;

	if (!slot_claim(slot))
		return;
	mm = mm_slot_get(c->mm);
	context = mm ? context_new(t->spare, mm) : NULL;
	if (mm)
		torture_mm_put(mm);
	if (!context) {
		slot_publish(slot, NULL, NULL);
		return;
	}
	t->spare = NULL;
	context->slot = c->slot;
	context->plan = c->plan;
	INIT_WORK(&context->work, torture_work);
	record = record_get(context->record);

	down_read(&ds->sem);
	if (ds->device) {
		context->device = ds->device;
		record->device = ds->device->record;
		kref_get(&record->device->kref);
		record->has_free = ds->has_free;
		ret = context_register(context, record, ds, c);
	}
	slot_publish(slot, context, ret ? NULL : record);
	if (ret)
		object_give_up(&context->object, c->flags & FLAG_KEEP);
	else
		context_registered(context, record, ds, c);
	up_read(&ds->sem);
	record_put(record);
}

static void op_unregister(struct torture_thread *t,
			  const struct torture_choice *c)
{
	struct torture_context *context;

	context = slot_take(&slots[c->slot], NULL);
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
	context_check_error(context);
	if (c->flags & FLAG_IRQ)
		context_put_late(context);
	else
		context_put(context);
}

/*
 * If the test uses the address space and there was no release, this must pin.
 * But the address space has no task, so that HMM may refuse a second after its
 * first pin. Once there was a release, this may not pin, nor if only HMM has
 * used the address space meanwhile.
 */
static bool context_pin(struct torture_context *context, bool using)
{
	struct torture_mm *mm = context->record->mm;
	int disturbed = atomic_read(&mm->disturbed);
	bool live = context_is_live(context);
	bool abandoned, pinned;
	struct mm_struct *got;

	/* A thread that disturbs counts itself before it does */
	smp_rmb();
	abandoned = !atomic_read(&mm->registering) && !atomic_read(&mm->users);
	got = hmm_mirror_mm_get(&context->mirror);
	pinned = got;
	if (pinned && got != mm->mm)
		torture_error(context->record, "a pin on another address space");
	/* As above; threads that began meanwhile are seen now */
	smp_mb();
	if (pinned && abandoned && atomic_read(&mm->disturbed) == disturbed)
		torture_error(context->record, "pinned what only pins hold");
	if (pinned && !live)
		torture_error(context->record, "pinned, though it is released");
	if (!pinned && using && context_is_live(context) &&
	    time_before(jiffies, mm->begun + HZ))
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

/*
 * Perhaps before hmm_mirror_register() has returned to another thread. The
 * caller has a reference, which this drops.
 */
static void found_end(struct torture_thread *t, struct torture_context *context,
		      const struct torture_choice *c)
{
	bool end = c->flags & FLAG_END && context_take(context);

	if (c->flags & FLAG_KILL)
		context_kill(context);
	if (end && context->record->has_free)
		context_unregister_async(context);
	torture_delay(c->delay);
	context_check(context, "while a reference is held");
	end = end && !context->record->has_free;
	context_put(context);
	if (end)
		context_unregister(t, context, c->flags);
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
		context = to_context(mirror);
		context_found(context);
	}
	atomic_dec(&nr_finding);
	if (context) {
		context_check(context, "of a mirror that was found");
		if (context->device != device || context->record->mm != mm)
			torture_error(context->record, "another mirror was found");
		found_end(t, context, c);
	}
	torture_mm_put(mm);
}

/*
 * A mirror that is live before and after the lookup is found, or another mirror
 * of the same device and address space. A mirror that is not live is not found.
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
		context_found(to_context(mirror));
	atomic_dec(&nr_finding);
	if (mirror)
		context_put(to_context(mirror));
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

struct torture_sync {
	struct work_struct work;
};

static void torture_sync_work(struct work_struct *work)
{
	hmm_synchronize();
}

/* In a worker of a WQ_MEM_RECLAIM workqueue, if the flag says so. */
static void torture_synchronize(u32 flags)
{
	struct torture_sync sync;

	if (!(flags & FLAG_WORKER)) {
		hmm_synchronize();
		return;
	}
	INIT_WORK_ONSTACK(&sync.work, torture_sync_work);
	queue_work(torture_reclaim_wq, &sync.work);
	flush_work(&sync.work);
	destroy_work_on_stack(&sync.work);
}

/*
 * A callback that is pending when hmm_synchronize() is called has then
 * returned.
 */
static void op_synchronize(struct torture_thread *t,
			   const struct torture_choice *c)
{
	struct torture_context *context;
	struct torture_record *record;
	bool last_put = c->flags & FLAG_LAST_PUT;
	bool pending;

	context = slot_take(&slots[c->slot], NULL);
	if (!context)
		return;
	record = record_get(context->record);
	WRITE_ONCE(record->slow, true);
	context_kill(context);
	torture_synchronize(c->flags);
	if (!record_state(record).released)
		torture_error(record, "not released by hmm_synchronize()");
	if (!record->has_free) {
		context_unregister(t, context, c->flags);
		goto out;
	}
	/*
	 * No thread finds it any more, but one may be about to count its
	 * reference
	 */
	pending = !atomic_read(&nr_finding);
	/* Pairs with the barrier in context_found() */
	smp_rmb();
	pending = pending && !atomic_read(&record->might_hold);
	if (last_put) {
		hmm_mirror_get(&context->mirror);
		context_got(context);
	}
	context_unregister_async(context);
	if (last_put) {
		torture_delay(c->delay);
		context_put(context);
	}
	torture_synchronize(c->flags);
	if (pending && !record_state(record).freed)
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
		/* Unlocks ds->remove before it returns */
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
	if (c->flags & FLAG_ASYNC) {
		device_end_async(ds);
		goto out;
	}
	do {
		for (i = 0; i < mirrors; i++) {
			context = slot_take(&slots[i], ds->device);
			if (context)
				context_end(t, context, c->flags);
		}
		ret = device_end(ds, c->flags);
		if (ret)
			usleep_range(100, 1000);
	} while (ret && ++try < NR_TRIES && !READ_ONCE(torture_paused));
	/*
	 * Others have registered all the time: it stays, unless it was
	 * unplugged
	 */
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

/* Draws everything, also what the operation does not need. */
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
		object_give_up(&t->spare->object, false);
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
	if (atomic_read(&nr_devices))
		torture_error(NULL, "devices were not freed");
	if (!IS_ENABLED(CONFIG_HMM_TEST_POINTS))
		return;
	hmm_test_quiesce(&counts);
	if (counts.devices || counts.mirrors || counts.hmms) {
		pr_alert("%ld devices, %ld mirrors, %ld address spaces left\n",
			 counts.devices, counts.mirrors, counts.hmms);
		torture_error(NULL, "HMM has live objects left");
	}
}

static void round_end_device(struct torture_device_slot *ds, bool keep)
{
	struct torture_device *device = ds->device;

	if (!device)
		return;
	ds->device = NULL;
	if (hmm_device_unregister(&device->hmm))
		torture_error(NULL, "a device without mirrors is busy");
	else
		object_give_up(&device->object, keep);
}

/* As remove() of a driver whose files are still open */
static void round_unplug_device(struct torture_device_slot *ds, bool async)
{
	struct torture_device *device = ds->device;

	if (!device)
		return;
	device_unplug(ds);
	if (!async)
		return;
	ds->device = NULL;
	WRITE_ONCE(device->record->async, true);
	hmm_device_unregister_async(&device->hmm);
}

/* All threads are parked. Some mirrors are released by exit or unplug first. */
static void round_end(void)
{
	struct torture_context *context;
	int i;

	for (i = 0; i < mms; i += 2)
		mm_slot_exit(i, NULL, i & 2);
	for (i = 0; i < devices; i += 2)
		round_unplug_device(&device_slots[i], i & 2);
	for (i = 0; i < mirrors; i++) {
		context = slot_take(&slots[i], NULL);
		if (context)
			context_end(NULL, context, i);
	}
	for (i = 0; i < devices; i++)
		round_end_device(&device_slots[i], i & 1);
	for (i = 0; i < mms; i++)
		mm_slot_exit(i, NULL, false);
	wait_event_idle(torture_wait, !atomic_read(&nr_late_puts));
	hmm_synchronize();
	quarantine_shrink(0);
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

/* The verdict, how to repeat the test, and what was done. */
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

/* Also in a worker, which may be faster than the main thread. */
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
	/* First the thread that pauses the others and waits for them */
	torture_stop_kthread(torture_main, torture_main_task);
	for (i = 0; i < threads; i++)
		torture_stop_kthread(torture_choose, torture_threads[i].task);
	if (IS_ENABLED(CONFIG_HMM_TEST_POINTS) && delays)
		hmm_test_clear_hook();
	destroy_workqueue(torture_wq);
	destroy_workqueue(torture_reclaim_wq);
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

	/* The main thread lets them begin */
	WRITE_ONCE(torture_paused, true);
	for (i = 0; i < threads; i++) {
		struct torture_thread *t = &torture_threads[i];

		ret = torture_create_kthread(torture_choose, t, t->task);
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
	torture_reclaim_wq = alloc_workqueue("hmm_torture_reclaim",
					     WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	ret = torture_wq && torture_reclaim_wq ? 0 : -ENOMEM;
	if (!ret && IS_ENABLED(CONFIG_HMM_TEST_POINTS) && delays)
		ret = hmm_test_set_hook(torture_hook);
	if (ret) {
		if (torture_wq)
			destroy_workqueue(torture_wq);
		if (torture_reclaim_wq)
			destroy_workqueue(torture_reclaim_wq);
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
