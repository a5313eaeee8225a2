/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The protocol of mm/hmm.c: who releases, who waits, who frees
 *
 * For SPIN, run by harness/model.sh, which checks every scene below exhaustively.
 * The claims:
 *
 *	exactly once	->release() begins once for each registration, and has returned
 *			before exit frees pages, before ->free(), before
 *			hmm_mirror_unregister(), hmm_device_unplug() and, for those
 *			it is to wait for, hmm_synchronize() return
 *	no touch	nobody looks at a mirror, device or struct hmm that is freed; a
 *			driver frees in the line after hmm_mirror_unregister() or
 *			hmm_device_unregister() returned, or in ->free()
 *	no deadlock	SPIN calls that an invalid end state
 *	no leak		when all calls have returned and workers are idle no
 *			reference, user, step or object is left
 *
 * Every look at an object has a MIRROR(), DEVICE(), HMM() or MM beside it, which
 * asserts that it is there. What is kept besides the fields of the objects (gone,
 * releasing, releases, refs, killed, asynced, unplugged, coming, calls) is what the driver knows
 * or sees; no step of HMM depends on it.
 *
 * Steps
 * =====
 *
 * A d_step is what another thread cannot come between: one atomic operation, or one
 * critical section of a spinlock. Those that are more than one step hold
 * device[].lock, which the others look at. An inline or process has the name of the
 * function that it stands for; so these are all that stand for functions of mm/hmm.c:
 *
 *	hmm_step_begin(), hmm_step_end()	readers of hmm_steps
 *	hmm_device_get(), hmm_device_put()	kref of the device; the last tells
 *						who waits: hmm_device_unused()
 *	hmm_put()				kref of the struct hmm; the last
 *						unhashes and gathers: hmm_unused()
 *	hmm_lazy_add()				onto the list; if that was empty,
 *						the delayed work is seen to
 *	hmm_lazy_drain()			takes what is on the lists, queues it
 *	hmm_lazy_work_fn()			the delayed worker
 *	hmm_mirror_use(), hmm_mirror_unuse()	users, and the last of them
 *	hmm_mirror_put()			kref of the mirror
 *	hmm_mirror_unused()			the last reference: who waits is told,
 *	hmm_mirror_queue_free()			or ->free() is queued
 *	hmm_mirror_due()			the step that a kill gives the owner
 *	hmm_mirror_release()			->release(), in two steps, then
 *	hmm_mirror_unlink()			off both lists, and what comes with it
 *	hmm_mirror_queue_release()		a user for the work, and the work
 *	hmm_mm_exit_next()			exit: the walk that owns one release,
 *						from hmm_walk_begin() to
 *						hmm_walk_end()
 *	hmm_mm_exit_standby()			exit: a worker on its way, with a
 *						release of its own, if there is none
 *	hmm_mm_exit_standby_gone()		exit: it has begun, or its release was
 *						taken from it; the next is needed
 *	hmm_mirror_settle()			the loser: waits, or steals the work as
 *						in hmm_mirror_steal()
 *	hmm_mirror_release_work()		the worker of it
 *	hmm_first_mirror()			exit: who is still linked
 *	hmm_mm_exit()				exit: what nobody owns, and then the
 *						waits
 *	hmm_free_work()				removal of the notifier, kfree_rcu()
 *	hmm_mirror_finish()			grace period, or hmm_nobody_walks();
 *						list, ->free(), mmdrop(), reference on
 *						the device
 *	hmm_mirror_free_work()			the worker of it
 *	hmm_mirror_own_registration()		with hmm_device_forget()
 *	hmm_mirror_unregister()			removal path A
 *	hmm_mirror_unregister_async()		removal path A
 *	hmm_mirror_kill()			removal path D
 *	hmm_mirror_find()			the walk of a look-up
 *	hmm_device_unplug_begin()		unplug: the walk that owns releases
 *	hmm_device_first_mirror()		unplug: who is not released
 *
 * and these processes, whose steps are named where they stand:
 *
 *	exit_mmap	hmm_notifier_invalidate() for each notifier in the tree
 *	pin		hmm_mirror_mm_get(), hmm_mirror_mm_put(), hmm_pin(), hmm_unpin()
 *	register	hmm_mirror_register(), hmm_get(), hmm_find(), hmm_create(),
 *			hmm_mirror_link(), hmm_mirror_init(); then the same driver
 *			unregisters
 *	synchronize	hmm_synchronize()
 *	unplug		hmm_device_unplug()
 *	device_unregister	hmm_device_unregister(), hmm_device_close()
 *	unregister, unregister_async, kill, find
 *			the functions of these names, and hmm_mirror_put() of a
 *			reference that the thread has
 *	invalidation	another driver's, which is in the way of the notifier
 *	hardware	what a ->release() waits for, in the coarse scene
 *
 * Abstraction
 * ===========
 *
 * - Memory is sequentially consistent: one order of all steps, which everybody sees.
 *   Why an order of the processor's is enough is argued where mm/hmm.c has barriers.
 *   Hence nothing here stands for the second look of hmm_device_get() at the state.
 * - A grace period is the least that it may be: it waits for those who were inside
 *   when the mirror was unlinked. Whether that is by waiting, or by seeing that one
 *   has passed or that nobody is inside (hmm_nobody_walks()), is the same here.
 *   Likewise of RCU. Of hmm_steps a reader is counted in the phase in which it began.
 * - A completion on the stack of who waits is a bit that nobody frees: complete()
 *   is through with it before the waiter is.
 * - Lists are walked in the order of the mirrors' numbers. A walker on a mirror that
 *   is unlinked meanwhile may go on to another that is; NEXT() looks at that one.
 * - hmm_bucket::lock and hmm::lock are never held for more than one step, nor
 *   is there anything but one step in them. hmm_tasks and hmm_devices only tell who
 *   calls and what there is: tests have these, the protocol does not depend on them.
 * - A workqueue has a thread for each work, which may come late; scenes without
 *   workers() are those in which it never comes. A work is queued once at a time.
 * - What is gathered is on one list of mirrors and one of struct hmm, not on two for each
 *   processor. So the delayed work is seen to no more often than it is. A drain takes
 *   both in one step and queues all in another: who comes while it goes from one
 *   processor to the next is as if that had come before or after. To add to a list and to
 *   see to the delayed work is one step: a drain between the two only leaves that work
 *   nothing to do, and who adds between them comes no later than that work.
 * - The delayed worker may come at once. Where MOMENT says so it does not before all
 *   calls have returned, so that nobody who waits may depend on it. That is more than
 *   HMM promises: an hmm_mirror_unregister_async() that is under way when
 *   hmm_device_unregister() or hmm_synchronize() drains may be too late for that, and
 *   then it is the delayed worker that they wait for. So where nobody else settles the
 *   mirror these two begin later (CLOSE, SYNCHRONIZE).
 * - Who settles a mirror drains if that one is gathered, not each time that it looks;
 *   what it queues besides is what the delayed worker may do at any time. How long it
 *   sleeps between two looks is not here: it sees at once what it could see.
 * - A walk begins with its first look: to begin earlier only makes others wait longer.
 *   Each thread that may walk has a bit of its own.
 * - hmm::standby is looked at and set in one step. That it is looked at before is for
 *   speed.
 * - Two mirrors are enough, but for this: that who begins with a standby, or takes it,
 *   sees to the next one needs a third. It is in a scene of its own, in which no
 *   release returns before all have begun.
 * - What is left to the coarse scene, or to one of fewer objects: where two registers
 *   meet there is no worker for a release and no unplug, and the device goes last.
 *   Beside an hmm_synchronize() that may come at any time there is a kill, and the device
 *   goes last; or an hmm_mirror_unregister_async().
 * - A release may take as long as it likes. It calls nothing of HMM: what it may call
 *   are calls of their own here, that come at any time.
 * - Objects are not registered again: what is private to who has the object needs no
 *   model. hmm_device_unregister() that says -EBUSY changed nothing, so there is
 *   only the one that does not. Other errors of arguments are not here.
 * - Misuse is not here but for two unregisters of one mirror, which are to do what
 *   one does.
 * - That a driver calls into a device only while it is there is up to the driver:
 *   it frees it after all calls that it let in have looked (coming).
 * - Liveness: a deadlock is found, and that a loop of exit or unplug comes around
 *   without a mirror less. Fairness, time and who delays whom are for the tests.
 *
 * One scene has all calls on two mirrors of two devices at once. It is COARSE: a call
 * runs from one wait or callback to the next without another coming between. Nothing
 * else could be lost there than races inside of such stretches, which are
 * what the other scenes have, of fewer calls or fewer objects each.
 */

/*
 * Scenes: what there is at first, and which calls meet
 */

#define WITH(call)		calls++; run call
#define WITH_REF(call, m)	mirror[m].kref++; mirror[m].refs++; WITH(call(m))
#define WITH_UNPLUG(d, last)	device[d].coming++; device[last].coming = 1; WITH(unplug(d, last))
#define WITH_REGISTER(m)	device[DEV(m)].coming++; mm_count++; WITH(register(m))

#ifdef SCENE_exit
#define FREE		1
#define SCENE	live_mirror(0); workers(0); live_mirror(1); workers(1); \
		WITH(exit_mmap()); \
		WITH(unregister(0, 0)); WITH(unregister(1, 1)); \
		WITH(device_unregister(0)); WITH(device_unregister(1))
#endif

#ifdef SCENE_overlap
#define DEV(m)		0
#define FREE		1
#define MEANWHILE(m)	mirror[1 - m].releases > 0
#define SCENE	live_mirror(0); workers(0); live_mirror(1); workers(1); device[1].gone = true; \
		WITH(exit_mmap()); WITH_UNPLUG(0, 0); \
		calls++; WITH(unregister(0, 1)); WITH(device_unregister(0))
#endif

#ifdef SCENE_unplug
#define DEV(m)		0
#define FREE		0
#define SCENE	live_mirror(0); workers(0); live_mirror(1); workers(1); device[1].gone = true; \
		WITH(exit_mmap()); WITH_UNPLUG(0, 0); \
		calls++; WITH(unregister(0, 1)); WITH(device_unregister(0))
#endif

#ifdef SCENE_standby
#define NM		3
#define DEV(m)		0
#define FREE		0
#define MEANWHILE(m)	mirror[0].releases + mirror[1].releases + mirror[2].releases == 3
#define MAY_END(m)	(m == 1 || pages_freed)
#define SCENE	live_mirror(0); release_worker(0); live_mirror(1); release_worker(1); \
		live_mirror(2); release_worker(2); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH(unregister(0, 0)); WITH(unregister(1, 1)); WITH(unregister(2, 2)); \
		WITH(device_unregister(0))
#endif

#ifdef SCENE_gathered
#define DEV(m)		0
#define FREE		1
#define MOMENT		calls == 0
#define SCENE	live_mirror(0); free_worker(0); live_mirror(1); free_worker(1); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH_REF(unregister_async, 0); WITH_REF(unregister_async, 1); \
		WITH(device_unregister(0))
#endif

#ifdef SCENE_moment
#define DEV(m)		0
#define FREE		1
#define LATE		calls == 1
#define CLOSE		calls == 2
#define SYNCHRONIZE	calls == 3
#define MOMENT		calls == 0
#define SCENE	live_mirror(0); workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH_REF(kill, 0); WITH_REF(unregister_async, 0); \
		WITH(device_unregister(0)); \
		if :: WITH(synchronize()) :: true fi
#endif

#ifdef SCENE_noworker
#define DEV(m)		0
#define FREE		0
#define MOMENT		calls == 0
#define SCENE	live_mirror(0); live_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH_REF(kill, 0); \
		calls++; WITH(unregister(0, 1)); WITH(device_unregister(0))
#endif

#ifdef SCENE_late
#define DEV(m)		0
#define FREE		0
#define LATE		calls == 1
#define MOMENT		calls == 0
#define SCENE	live_mirror(0); live_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH_REF(kill, 0); WITH_REF(kill, 1); \
		calls++; WITH(unregister(0, 1)); WITH(device_unregister(0))
#endif

#ifdef SCENE_async
#define DEV(m)		0
#define FREE		1
#define LATE		calls == 1
#define SCENE	live_mirror(0); workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); WITH_UNPLUG(0, 0); \
		WITH_REF(kill, 0); WITH_REF(unregister_async, 0); \
		WITH(device_unregister(0))
#endif

#ifdef SCENE_one
#define DEV(m)		0
#define FREE		1
#define MOMENT		calls == 0
#define SCENE	live_mirror(0); workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); WITH_UNPLUG(0, 0); \
		WITH_REF(unregister_async, 0); \
		WITH(unregister(0, 0)); WITH(device_unregister(0))
#endif

#ifdef SCENE_kill
#define DEV(m)		0
#define FREE		1
#define LATE		calls == 1
#define SCENE	live_mirror(0); workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH_REF(kill, 0); WITH_REF(unregister_async, 0); \
		WITH(unregister(0, 0)); WITH(device_unregister(0))
#endif

#ifdef SCENE_sync
#define DEV(m)		0
#define FREE		1
#define SCENE	live_mirror(0); workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH_REF(unregister_async, 0); \
		WITH(device_unregister(0)); WITH(synchronize())
#endif

#ifdef SCENE_due
#define DEV(m)		0
#define FREE		0
#define CLOSE		calls == 1
#define SCENE	live_mirror(0); workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH_REF(kill, 0); \
		WITH(unregister(0, 0)); WITH(device_unregister(0)); WITH(synchronize())
#endif

#ifdef SCENE_pin
#define DEV(m)		0
#define FREE		0
#define SCENE	live_mirror(0); workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH(find(0)); WITH_REF(pin, 0); \
		WITH(unregister(0, 0)); WITH(device_unregister(0))
#endif

#ifdef SCENE_register
#define DEV(m)		0
#define CLOSE		calls == 1
#define FREE		0
#define SCENE	device[1].gone = true; \
		WITH(exit_mmap()); \
		WITH_REGISTER(0); WITH_REGISTER(1); WITH(device_unregister(0))
#endif

#ifdef SCENE_plug
#define DEV(m)		0
#define FREE		0
#define SCENE	workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); WITH_UNPLUG(0, 0); \
		WITH_REGISTER(0); WITH(device_unregister(0))
#endif

#ifdef SCENE_insert
#define DEV(m)		0
#define FREE		0
#define SCENE	workers(0); no_mirror(1); device[1].gone = true; \
		WITH(exit_mmap()); WITH(invalidation()); \
		WITH_REGISTER(0); WITH(device_unregister(0))
#endif

#ifdef SCENE_all
#define COARSE
#define FREE		3
#define SCENE	run hardware(); live_mirror(0); workers(0); live_mirror(1); workers(1); \
		WITH(exit_mmap()); WITH_UNPLUG(0, 1); \
		WITH_REF(kill, 0); WITH_REF(kill, 1); \
		WITH_REF(unregister_async, 0); WITH_REF(unregister_async, 1); \
		WITH(unregister(0, 0)); WITH(unregister(1, 1)); \
		WITH(device_unregister(0)); WITH(device_unregister(1)); WITH(synchronize())
#endif

#ifndef DEV
#define DEV(m)		m
#endif
#define HAS_FREE(d)	((FREE >> d) & 1)

/* When mm_users may be dropped, a mirror or device unregistered, a synchronize begin */
#ifndef LATE
#define LATE		true
#endif
#ifndef MAY_END
#define MAY_END(m)	true
#endif
#ifndef CLOSE
#define CLOSE		true
#endif
#ifndef SYNCHRONIZE
#define SYNCHRONIZE	true
#endif

/* When the delayed worker may come */
#ifndef MOMENT
#define MOMENT		true
#endif

/* How long a thread goes on before another may come between, and a release */
#ifdef COARSE
#define CALL		atomic
#define MEANWHILE(m)	mirror[m].stopped
#else
#define CALL
#endif
#ifndef MEANWHILE
#define MEANWHILE(m)	true
#endif

#ifndef NM
#define NM		2
#endif
#define NH		2

/* hmm_mirror::reason; no step asks which of the last three it is */
#define NONE		0
#define MM_EXIT		1
#define UNREGISTER	2
#define DEVICE_GONE	2
#define ERROR		2

/* hmm_mirror::due, where a step is 1 + its phase */
#define NOT_DUE		0
#define RELEASED	3

/* hmm_device::state */
#define UNREGISTERED	0
#define CHANGING	1
#define REGISTERED	2
#define UNPLUGGED	3

/* Which list of the device a mirror is on */
#define ON_NONE		0
#define ON_MIRRORS	1
#define ON_RELEASED	2

/* hmm_mirror::work, hmm::free_work */
#define IDLE		0
#define QUEUED		1
#define FREE_QUEUED	2
#define LAZY		3	/* gathered */
#define TAKEN		4	/* by hmm_lazy_drain(), and not queued yet */

/* The notifier of a struct hmm */
#define OUT		0
#define DEFERRED	1
#define IN_TREE		2

/* Readers of hmm_srcu, one bit for each thread, and of RCU */
#define FINDS		1
#define EXITS		2
#define UNPLUGS		4
#define WORKS(m)	(8 << m)
#define SETTLES(m)	(64 << m)
#define PINS		2
#define REGISTERS(m)	(4 << m)

typedef mirror_t {
	bit gone;		/* the driver has freed the memory */
	bit device;		/* mirror->device is not NULL */
	bit has_hmm;		/* mirror->hmm is not NULL */
	bit h;			/* which it is, or was */
	bit linked;		/* on hmm::mirrors */
	bit registered;
	bit async;
	bit step;
	bit released;		/* the completion */
	bit unused;		/* mirror->unused is not NULL */
	bit done;		/* that completion, on the stack of who waits */
	unsigned pins : 2;
	unsigned list : 2;
	unsigned due : 2;
	unsigned work : 3;
	unsigned reason : 2;
	unsigned kref : 3;
	unsigned users : 3;
	unsigned walkers : 9;	/* who was in hmm_srcu at the unlink, and still is */
	/* What the driver knows and sees */
	bit releasing;		/* ->release() runs */
	bit stopped;		/* what it waits for, if COARSE */
	unsigned releases : 2;	/* how often it began */
	unsigned refs : 2;	/* taken, and hmm_mirror_put() has not returned */
	bit killed;		/* hmm_mirror_kill() has returned */
	bit asynced;		/* hmm_mirror_unregister_async() has returned */
};

typedef device_t {
	bit gone;
	bit lock;
	bit unused;
	bit done;
	unsigned state : 2;
	unsigned nr_registered : 2;
	unsigned kref : 3;
	bit unplugged;		/* hmm_device_unplug() has returned */
	unsigned coming : 2;	/* calls that have not yet looked whether it is there */
};

typedef hmm_t {
	bit gone;		/* freed, or not yet allocated */
	bit hashed;
	bit standby;
	unsigned tree : 2;
	unsigned work : 3;
	unsigned kref : 3;
	unsigned pins : 2;
	unsigned readers : 4;	/* who was in RCU at the kfree_rcu(), and still is */
};

mirror_t mirror[NM];
device_t device[2];
hmm_t hmm[NH];

byte mm_users;
byte mm_count;
bit pages_freed;
bit exiting;			/* the invalidation that is the exit runs */
bit invalidating;		/* one of another driver runs */

unsigned walkers : 9;		/* who is in hmm_srcu */
byte readers;			/* who is in RCU */
byte steps[2];			/* readers of hmm_steps, by the phase they began in */
bit phase;

bit lazy_lock;			/* hmm_lazy_mutex */
bit lazy_due;			/* hmm_lazy_work is pending */

byte calls;			/* of the driver, that have not returned */

/* Whoever looks at an object says so: its owner may not have freed it. */
#define MIRROR(m)	assert(!mirror[m].gone)
#define DEVICE(d)	assert(!device[d].gone)
#define HMM(i)		assert(!hmm[i].gone)
#define MM		assert(mm_count > 0)

#define UNLOCKED(d)	(!device[d].lock)
/* What the lock of a device protects, changes while no other has it. */
#define ALONE(d)	assert(!device[d].lock)

/* The end of a process of the model; SPIN would let only the youngest go. */
#define EXIT		end: false

inline device_lock(d)
{
	d_step { UNLOCKED(d) -> DEVICE(d); device[d].lock = true }
}

inline device_unlock(d)
{
	atomic { DEVICE(d); device[d].lock = false }
}

inline srcu_read_lock(who)
{
	walkers = walkers | who
}

inline srcu_read_unlock(who)
{
	atomic {
		walkers = walkers & ~who;
		mirror[0].walkers = mirror[0].walkers & ~who;
		mirror[1].walkers = mirror[1].walkers & ~who;
#if NM > 2
		mirror[2].walkers = mirror[2].walkers & ~who
#endif
	}
}

inline rcu_read_lock(who)
{
	readers = readers | (who)
}

inline rcu_read_unlock(who)
{
	atomic {
		readers = readers & ~(who);
		hmm[0].readers = hmm[0].readers & ~(who);
		hmm[1].readers = hmm[1].readers & ~(who)
	}
}

/* Walks of hmm::mirrors, in the order of the numbers */
#define ON(m, i)	(mirror[m].linked && mirror[m].h == i)
#if NM > 2
#define FIRST(i)	(ON(0, i) -> 0 : (ON(1, i) -> 1 : (ON(2, i) -> 2 : NM)))
#define AFTER(m, i)	((m == 0 && ON(1, i)) -> 1 : ((m <= 1 && ON(2, i)) -> 2 : NM))
#define AFTER_IS_THERE(m, who)	(BEHIND_IS_THERE(m, 1, who) && BEHIND_IS_THERE(m, 2, who))
#else
#define FIRST(i)	(ON(0, i) -> 0 : (ON(1, i) -> 1 : NM))
#define AFTER(m, i)	((m == 0 && ON(1, i)) -> 1 : NM)
#define AFTER_IS_THERE(m, who)	BEHIND_IS_THERE(m, 1, who)
#endif

/* Behind a mirror that was unlinked may be one that was unlinked since. */
#define BEHIND_IS_THERE(m, other, who) \
	(m >= other || !(mirror[other].walkers & (who)) || !mirror[other].gone)
#define NEXT(m, i, who)						\
	MIRROR(m);						\
	assert(AFTER_IS_THERE(m, who));				\
	m = AFTER(m, i)

/*
 * Steps
 */

inline hmm_step_begin(step)
{
	d_step { step = phase; steps[phase]++ }
}

inline hmm_step_end(step)
{
	d_step { assert(steps[step] > 0); steps[step]--; step = 0 }
}

/*
 * What need not be done at once
 */

#if NM > 2
#define MIRRORS(w)	(mirror[0].work == w || mirror[1].work == w || mirror[2].work == w)
#else
#define MIRRORS(w)	(mirror[0].work == w || mirror[1].work == w)
#endif
#define HMMS(w)		(hmm[0].work == w || hmm[1].work == w)

#define MOVE(object, from, to)	\
	assert(object.work != from || !object.gone); \
	object.work = (object.work == from -> to : object.work)

inline lazy_all(from, to)
{
	MOVE(mirror[0], from, to);
	MOVE(mirror[1], from, to);
#if NM > 2
	MOVE(mirror[2], from, to);
#endif
	MOVE(hmm[0], from, to);
	MOVE(hmm[1], from, to)
}

/* One step if there is nothing to take: then nobody sees that the mutex is held. */
inline hmm_lazy_drain()
{
	if
	:: d_step { !lazy_lock && !MIRRORS(LAZY) && !HMMS(LAZY) -> skip }
	:: d_step { !lazy_lock && (MIRRORS(LAZY) || HMMS(LAZY)) -> lazy_lock = true; lazy_all(LAZY, TAKEN) };
		d_step { lazy_all(TAKEN, QUEUED); lazy_lock = false }
	fi
}

/* Whole: what it has taken looks to others as if it was still to come, or had come. */
proctype hmm_lazy_work_fn()
{
end:	do
	:: atomic {
			d_step { lazy_due && MOMENT -> lazy_due = false };
			hmm_lazy_drain()
		}
	od
}

/*
 * To a list on which there is another, or not. If a drain comes before the delayed work
 * is seen to, that finds nothing: so nobody need come between.
 */
inline hmm_lazy_add(object, others)
{
	if
	:: d_step { others -> assert(object.work == IDLE && !object.gone); object.work = LAZY }
	:: d_step { !others -> assert(object.work == IDLE && !object.gone); object.work = LAZY; lazy_due = true }
	fi
}

/*
 * References
 */

inline hmm_device_put(d)
{
	if
	:: d_step { device[d].kref != 1 -> DEVICE(d); assert(device[d].kref > 1); device[d].kref-- }
	:: d_step { device[d].kref == 1 -> DEVICE(d); device[d].kref = 0 };
		/* hmm_device_unused() */
		d_step { DEVICE(d); assert(device[d].unused); device[d].done = true }
	fi
}

/* The driver keeps the device until this has looked whether it is there. */
inline hmm_device_get(d)
{
	if
	:: d_step { device[d].state >= REGISTERED -> DEVICE(d) };
		if
		:: d_step { device[d].kref > 0 -> DEVICE(d); device[d].kref++; device[d].coming--; got = true }
		:: d_step { device[d].kref == 0 -> DEVICE(d); device[d].coming-- }
		fi
	:: d_step { device[d].state < REGISTERED -> DEVICE(d); device[d].coming-- }
	fi
}

inline hmm_put(i)
{
	if
	:: d_step { hmm[i].kref != 1 -> HMM(i); assert(hmm[i].kref > 1); hmm[i].kref-- }
	:: d_step { hmm[i].kref == 1 -> HMM(i); hmm[i].kref = 0 };
		/* hmm_unused() */
		d_step { HMM(i); hmm[i].hashed = false };
		hmm_lazy_add(hmm[i], HMMS(LAZY))
	fi
}

inline hmm_mirror_use(m)
{
	MIRROR(m); assert(mirror[m].users > 0 && mirror[m].users < 7); mirror[m].users++
}

inline hmm_mirror_queue_free(m)
{
	assert(mirror[m].work == IDLE); mirror[m].work = FREE_QUEUED
}

inline hmm_mirror_unused(m)
{
	if
	:: d_step { mirror[m].unused -> MIRROR(m); mirror[m].done = true }
	:: d_step { !mirror[m].unused -> MIRROR(m); hmm_mirror_queue_free(m) }
	fi
}

/* The last reference: a step begins, and then who waits is told. */
inline last_reference(m)
{
	if
	:: d_step { mirror[m].kref != 1 -> MIRROR(m); assert(mirror[m].kref > 1); mirror[m].kref-- }
	:: d_step { mirror[m].kref == 1 -> MIRROR(m); mirror[m].kref = 0; mirror[m].step = phase; steps[phase]++ };
		hmm_mirror_unused(m)
	fi
}

inline hmm_mirror_unuse(m)
{
	if
	:: d_step { mirror[m].users != 1 -> MIRROR(m); assert(mirror[m].users > 1); mirror[m].users-- }
	:: d_step { mirror[m].users == 1 && !mirror[m].async -> MIRROR(m); mirror[m].users = 0 };
		last_reference(m)
	:: d_step { mirror[m].users == 1 && mirror[m].async -> MIRROR(m); mirror[m].users = 0; step = mirror[m].step };
		if
		:: d_step { mirror[m].kref != 1 -> MIRROR(m); assert(mirror[m].kref > 1); mirror[m].kref-- };
			hmm_step_end(step)
		:: d_step { mirror[m].kref == 1 -> MIRROR(m); mirror[m].kref = 0; hmm_mirror_queue_free(m); step = 0 }
		fi
	fi
}

/* That there is no user if there is one reference: the check for a put too many */
inline hmm_mirror_put(m)
{
	if
	:: d_step { mirror[m].kref != 1 -> MIRROR(m); assert(mirror[m].kref > 1); mirror[m].kref-- }
	:: d_step { mirror[m].kref == 1 -> MIRROR(m); assert(mirror[m].users == 0) };
		last_reference(m)
	fi;
	d_step { mirror[m].refs--; calls-- }
}

/*
 * Releases
 */

inline hmm_mirror_due(m)
{
	hmm_step_begin(step);
	if
	:: d_step { mirror[m].due == NOT_DUE -> MIRROR(m); mirror[m].due = 1 + step; step = 0 }
	:: d_step { mirror[m].due != NOT_DUE -> MIRROR(m) };
		hmm_step_end(step)
	fi
}

inline hmm_mirror_unlink(m)
{
	d_step { UNLOCKED(DEV(m)) -> ALONE(DEV(m)); MIRROR(m); DEVICE(DEV(m)); assert(mirror[m].list == ON_MIRRORS); mirror[m].list = ON_RELEASED };
	d_step { HMM(mirror[m].h); MIRROR(m); assert(mirror[m].linked); mirror[m].linked = false };
	d_step { MIRROR(m); mirror[m].walkers = walkers };
	d_step { MIRROR(m); assert(mirror[m].has_hmm); mirror[m].has_hmm = false };
	hmm_put(mirror[m].h)
}

inline hmm_mirror_release(m)
{
	d_step {
		MIRROR(m); DEVICE(DEV(m));
		assert(mirror[m].releases == 0);
		mirror[m].releases++;
		mirror[m].releasing = true
	};
	d_step {
		MEANWHILE(m) ->
		MIRROR(m); DEVICE(DEV(m));
		assert(!pages_freed);
		mirror[m].releasing = false
	};
	hmm_mirror_unlink(m);
	d_step { MIRROR(m); mirror[m].released = true };
	if
	:: d_step { mirror[m].due == NOT_DUE -> MIRROR(m); mirror[m].due = RELEASED }
	:: d_step { mirror[m].due != NOT_DUE -> MIRROR(m); step = mirror[m].due - 1; mirror[m].due = RELEASED };
		hmm_step_end(step)
	fi
}

inline hmm_mirror_queue_release(m)
{
	d_step { hmm_mirror_use(m) };
	d_step { MIRROR(m); assert(mirror[m].work == IDLE); mirror[m].work = QUEUED }
}

/* Of a struct hmm that only a linked mirror, or the exit, keeps. NM if there is none. */
inline hmm_mm_exit_next(i, next, who)
{
	d_step {
		srcu_read_lock(who);
		HMM(i);
		next = FIRST(i)
	};
	do
	:: next == NM -> break
	:: else ->
		if
		:: d_step { mirror[next].reason != NONE -> MIRROR(next) }
		:: d_step { mirror[next].reason == NONE -> MIRROR(next) };
			if
			:: d_step { mirror[next].users == 0 -> MIRROR(next) }
			:: d_step { mirror[next].users > 0 -> hmm_mirror_use(next) };
				if
				:: d_step { mirror[next].reason == NONE -> MIRROR(next); mirror[next].reason = MM_EXIT };
					break
				:: d_step { mirror[next].reason != NONE -> MIRROR(next) };
					hmm_mirror_unuse(next)
				fi
			fi
		fi;
		d_step { NEXT(next, i, who) }
	od;
	srcu_read_unlock(who)
}

inline hmm_mm_exit_standby(i, next, who)
{
	if
	:: d_step { hmm[i].standby -> HMM(i) }
	:: d_step { !hmm[i].standby -> HMM(i); hmm[i].standby = true };
		hmm_mm_exit_next(i, next, who);
		if
		:: next < NM ->
			hmm_mirror_queue_release(next);
			hmm_mirror_unuse(next);
			next = NM
		:: else ->
			atomic { HMM(i); hmm[i].standby = false }
		fi
	fi
}

inline hmm_mm_exit_standby_gone(m, i, next, who)
{
	d_step { MIRROR(m); assert(mirror[m].has_hmm); HMM(i); hmm[i].standby = false };
	hmm_mm_exit_standby(i, next, who)
}

inline hmm_mirror_settle(m, next, who)
{
	do
	:: d_step { mirror[m].released -> MIRROR(m) };
		break
	:: d_step { mirror[m].async && mirror[m].work == LAZY -> MIRROR(m) };
		hmm_lazy_drain()
	:: d_step { mirror[m].work == QUEUED -> MIRROR(m); mirror[m].work = IDLE };
		if
		:: mirror[m].reason == MM_EXIT ->
			hmm_mm_exit_standby_gone(m, mirror[m].h, next, who)
		:: else
		fi;
		hmm_mirror_release(m);
		hmm_mirror_unuse(m);
		break
	od
}

proctype hmm_mirror_release_work(byte m)
{
	bit step;
	byte next = NM;

end:	do
	:: CALL {
			d_step { mirror[m].work == QUEUED -> MIRROR(m); mirror[m].work = IDLE };
			if
			:: mirror[m].reason == MM_EXIT ->
				hmm_mm_exit_standby_gone(m, mirror[m].h, next, WORKS(m))
			:: else
			fi;
			hmm_mirror_release(m);
			hmm_mirror_unuse(m)
		}
	od
}

/* Only so that a ->release() waits, and a coarse call does not go on through it */
proctype hardware()
{
end:	do
	:: d_step { mirror[0].releasing && !mirror[0].stopped -> mirror[0].stopped = true }
	:: d_step { mirror[1].releasing && !mirror[1].stopped -> mirror[1].stopped = true }
	od
}

/*
 * mm exit
 */

inline hmm_first_mirror(i)
{
	d_step {
		srcu_read_lock(EXITS);
		HMM(i);
		m = FIRST(i)
	};
	do
	:: m == NM -> break
	:: else ->
		if
		:: d_step { mirror[m].users > 0 -> hmm_mirror_use(m) };
			break
		:: d_step { mirror[m].users == 0 -> NEXT(m, i, EXITS) }
		fi
	od;
	srcu_read_unlock(EXITS)
}

inline hmm_mm_exit(i)
{
	do
	:: hmm_mm_exit_next(i, m, EXITS);
		if
		:: m < NM ->
			hmm_mm_exit_standby(i, next, EXITS);
			hmm_mirror_release(m);
			hmm_mirror_unuse(m)
		:: else ->
			break
		fi
	od;
	do
	:: hmm_first_mirror(i);
		if
		:: m < NM ->
			hmm_mirror_settle(m, next, EXITS);
			atomic { MIRROR(m); assert(!mirror[m].linked) };
			hmm_mirror_unuse(m)
		:: else ->
			break
		fi
	od
}

/* What is queued for the interval tree comes in when no invalidation runs. */
inline invalidation_end()
{
	if
	:: !exiting && !invalidating && hmm[0].tree == DEFERRED -> hmm[0].tree = IN_TREE
	:: else
	fi;
	if
	:: !exiting && !invalidating && hmm[1].tree == DEFERRED -> hmm[1].tree = IN_TREE
	:: else
	fi
}

/* The last thread of the process goes; others may have mm_users. */
proctype exit_mmap()
{
	bit step;
	byte m, i;
	byte next = NM;

	CALL {
		d_step { LATE -> mm_users-- };
		d_step { mm_users == 0 -> exiting = true };
		do
		:: i == NH -> break
		:: else ->
			if
			:: d_step { hmm[i].tree == IN_TREE -> HMM(i) };
				hmm_mm_exit(i)
			:: d_step { hmm[i].tree != IN_TREE -> skip }
			fi;
			i++
		od;
		atomic { exiting = false; invalidation_end() };
		d_step { assert(FIRST(0) == NM && FIRST(1) == NM); pages_freed = true };
		d_step { MM; mm_count--; calls-- }
	};
	EXIT
}

/* Of another driver, which is in the way of insert and removal of a notifier. */
proctype invalidation()
{
	invalidating = true;
	d_step { invalidating = false; invalidation_end(); calls-- };
	EXIT
}

proctype hmm_free_work(bit i)
{
end:	do
	:: CALL {
			d_step { hmm[i].work == QUEUED -> HMM(i) };
			/* mmu_interval_notifier_remove() */
			d_step {
				!exiting && !invalidating ->
				HMM(i); MM;
				assert(hmm[i].tree == IN_TREE);
				hmm[i].tree = OUT;
				mm_count--
			};
			/* kfree_rcu() */
			d_step { HMM(i); hmm[i].readers = readers; hmm[i].work = IDLE };
			d_step { hmm[i].readers == 0 -> HMM(i); hmm[i].gone = true }
		}
	od
}

/*
 * Mirrors: the driver's side
 */

inline hmm_mirror_finish(m)
{
	d_step { mirror[m].walkers == 0 -> MIRROR(m) };
	d_step { UNLOCKED(DEV(m)) -> ALONE(DEV(m)); MIRROR(m); DEVICE(DEV(m)); assert(mirror[m].list == ON_RELEASED); mirror[m].list = ON_NONE };
	d_step {
		MIRROR(m);
		assert(mirror[m].device && mirror[m].kref == 0);
		mirror[m].device = false;
		/* Nobody asks for these any more */
		mirror[m].reason = NONE;
		mirror[m].async = false;
		mirror[m].step = 0;
		if
		:: HAS_FREE(DEV(m)) ->
			DEVICE(DEV(m));
			assert(mirror[m].releases == 1 && !mirror[m].releasing);
			mirror[m].gone = true
		:: else
		fi
	};
	d_step { MM; mm_count-- };
	hmm_device_put(DEV(m))
}

proctype hmm_mirror_free_work(byte m)
{
	bit step;

end:	do
	:: CALL {
			d_step { mirror[m].work == FREE_QUEUED -> MIRROR(m); mirror[m].work = IDLE; step = mirror[m].step };
			hmm_mirror_finish(m);
			hmm_step_end(step)
		}
	od
}

/* Own the end of the registration, and have the device forget it. */
inline hmm_mirror_own_registration(m)
{
	ALONE(DEV(m));
	MIRROR(m);
	DEVICE(DEV(m));
	mirror[m].registered = false;
	assert(device[DEV(m)].nr_registered > 0);
	device[DEV(m)].nr_registered--
}

/*
 * Without ->free(), the memory is the caller's in the line after. That of a mirror
 * that the other call has unregistered may be gone: a driver does not call then.
 */
inline hmm_mirror_unregister(m)
{
	if
	:: d_step { !mirror[m].registered -> calls-- }
	:: d_step { mirror[m].registered && UNLOCKED(DEV(m)) -> hmm_mirror_own_registration(m) };
		if
		:: d_step { mirror[m].reason == NONE -> MIRROR(m); mirror[m].reason = UNREGISTER };
			hmm_mirror_release(m)
		:: d_step { mirror[m].reason != NONE -> MIRROR(m) };
			hmm_mirror_settle(m, next, SETTLES(m))
		fi;
		atomic { MIRROR(m); mirror[m].unused = true };
		hmm_mirror_unuse(m);
		d_step { mirror[m].done -> MIRROR(m); mirror[m].done = false; step = mirror[m].step };
		hmm_mirror_finish(m);
		hmm_step_end(step);
		d_step {
			assert(mirror[m].gone == HAS_FREE(DEV(m)));
			assert(mirror[m].releases == 1 && !mirror[m].releasing);
			mirror[m].gone = true;
			calls--
		}
	fi
}

inline hmm_mirror_unregister_async(m)
{
	if
	:: d_step { !mirror[m].registered -> MIRROR(m) }
	:: d_step { mirror[m].registered && UNLOCKED(DEV(m)) -> hmm_mirror_own_registration(m) };
		d_step { MIRROR(m); mirror[m].step = phase; steps[phase]++ };
		d_step { MIRROR(m); mirror[m].async = true };
		if
		:: d_step { mirror[m].reason == NONE -> MIRROR(m); mirror[m].reason = UNREGISTER };
			d_step { hmm_mirror_use(m) };
			hmm_lazy_add(mirror[m], MIRRORS(LAZY))
		:: d_step { mirror[m].reason != NONE -> MIRROR(m) }
		fi;
		hmm_mirror_unuse(m);
		mirror[m].asynced = true
	fi
}

inline hmm_mirror_kill(m)
{
	if
	:: d_step { mirror[m].users == 0 -> MIRROR(m) }
	:: d_step { mirror[m].users > 0 -> hmm_mirror_use(m) };
		if
		:: d_step { mirror[m].reason == NONE -> MIRROR(m); mirror[m].reason = ERROR };
			hmm_mirror_due(m);
			hmm_mirror_queue_release(m)
		:: d_step { mirror[m].reason != NONE -> MIRROR(m) };
			hmm_mirror_due(m)
		fi;
		hmm_mirror_unuse(m)
	fi;
	mirror[m].killed = true
}

proctype unregister(byte m, last)
{
	bit step;
	byte next = NM;

	CALL {
		do
		:: m > last -> break
		:: m <= last && MAY_END(m) ->
			hmm_mirror_unregister(m);
			m++
		od
	};
	EXIT
}

/* Those below have a reference, so that they may come at any time. */

proctype unregister_async(bit m)
{
	bit step;

	CALL {
		hmm_mirror_unregister_async(m);
		hmm_mirror_put(m)
	};
	EXIT
}

proctype kill(bit m)
{
	bit step;

	CALL {
		hmm_mirror_kill(m);
		hmm_mirror_put(m)
	};
	EXIT
}

/* hmm_mirror_mm_get() and hmm_mirror_mm_put() */
proctype pin(bit m)
{
	byte i;

	CALL {
		rcu_read_lock(PINS);
		if
		:: d_step { !mirror[m].has_hmm -> MIRROR(m); i = NH }
		:: d_step { mirror[m].has_hmm -> MIRROR(m); i = mirror[m].h };
			if
			:: d_step { hmm[i].kref == 0 -> HMM(i); i = NH }
			:: d_step { hmm[i].kref > 0 -> HMM(i); hmm[i].kref++ }
			fi
		fi;
		rcu_read_unlock(PINS);
		if
		:: i == NH
		:: else ->
			/* hmm_pin() */
			if
			:: d_step {
				mirror[m].reason != NONE || mm_users <= hmm[i].pins ->
				MIRROR(m); HMM(i); MM
				};
				hmm_put(i)
			:: d_step {
				mirror[m].reason == NONE && mm_users > hmm[i].pins ->
				MIRROR(m); HMM(i); MM;
				mm_users++;
				hmm[i].pins++;
				mirror[m].pins++
				};
				i = 0;
				d_step { assert(!exiting && !pages_freed) };
				rcu_read_lock(PINS);
				do
				:: d_step { hmm[i].hashed && hmm[i].kref > 0 -> HMM(i); hmm[i].kref++ };
					break
				:: d_step { !(hmm[i].hashed && hmm[i].kref > 0) -> i++; assert(i < NH) }
				od;
				rcu_read_unlock(PINS);
				/* hmm_unpin() */
				d_step {
					MIRROR(m); HMM(i); MM;
					assert(hmm[i].pins > 0 && mirror[m].pins > 0);
					hmm[i].pins--;
					mirror[m].pins--;
					mm_users--
				};
				hmm_put(i);
				hmm_put(i)
			fi
		fi;
		i = 0;
		hmm_mirror_put(m)
	};
	EXIT
}

inline hmm_mirror_find(d)
{
	srcu_read_lock(FINDS);
	rcu_read_lock(FINDS);
	do
	:: i == NH -> m = NM; break
	:: else ->
		if
		:: d_step { !hmm[i].hashed -> skip }
		:: d_step { hmm[i].hashed -> HMM(i) };
			d_step { HMM(i); m = FIRST(i) };
			do
			:: m == NM -> break
			:: else ->
				if
				:: d_step { DEV(m) != d || mirror[m].reason != NONE -> MIRROR(m) }
				:: d_step { DEV(m) == d && mirror[m].reason == NONE -> MIRROR(m) };
					if
					:: d_step { mirror[m].kref == 0 -> MIRROR(m) }
					:: d_step { mirror[m].kref > 0 -> MIRROR(m); mirror[m].kref++; mirror[m].refs++ };
						goto out
					fi
				fi;
				d_step { NEXT(m, i, FINDS) }
			od;
			atomic { HMM(i) }
		fi;
		i++
	od;
out:	i = 0;
	rcu_read_unlock(FINDS);
	srcu_read_unlock(FINDS)
}

proctype find(bit d)
{
	byte m, i;

	CALL {
		hmm_mirror_find(d);
		if
		:: m == NM -> calls--
		:: else -> hmm_mirror_put(m)
		fi;
		m = 0
	};
	EXIT
}

#define DUE(m)	(mirror[m].asynced || mirror[m].killed)

proctype synchronize()
{
	bit old, let_go;
	bit release[NM];
	bit free[NM];

	CALL {
		d_step {
			SYNCHRONIZE ->
			/* Of what has come before */
			release[0] = DUE(0);
			release[1] = DUE(1);
			free[0] = mirror[0].asynced && mirror[0].refs == 0;
			free[1] = mirror[1].asynced && mirror[1].refs == 0;
			let_go = (mirror[0].released || DUE(0)) && (mirror[1].released || DUE(1))
		};
		hmm_lazy_drain();
		/* synchronize_srcu_expedited(&hmm_steps) */
		d_step { old = phase; phase = !phase };
		steps[old] == 0;
		hmm_lazy_drain();
		d_step {
			/* flush_workqueue(hmm_mm_wq) */
			hmm[0].work != QUEUED ->
			assert(!release[0] || (mirror[0].releases == 1 && !mirror[0].releasing));
			assert(!release[1] || (mirror[1].releases == 1 && !mirror[1].releasing));
			assert(!free[0] || mirror[0].gone);
			assert(!free[1] || mirror[1].gone);
			assert(!let_go || hmm[0].tree == OUT);
			old = 0;
			let_go = 0;
			release[0] = 0;
			release[1] = 0;
			free[0] = 0;
			free[1] = 0;
			calls--
		}
	};
	EXIT
}

#if defined(SCENE_register) || defined(SCENE_plug) || defined(SCENE_insert)
proctype register(bit m)
{
	bit step, got, linked;
	byte i;
	byte next = NM;

	hmm_device_get(DEV(m));
	if
	:: !got -> goto failed
	:: else -> got = false
	fi;
	d_step { MIRROR(m); assert(!mirror[m].device); mirror[m].device = true };
	/* hmm_get() */
	rcu_read_lock(REGISTERS(m));
	do
	:: i == NH -> break
	:: else ->
		if
		:: d_step { hmm[i].hashed && hmm[i].kref > 0 -> HMM(i); hmm[i].kref++ };
			break
		:: d_step { !(hmm[i].hashed && hmm[i].kref > 0) -> i++ }
		fi
	od;
	rcu_read_unlock(REGISTERS(m));
	if
	:: i < NH ->
		/* hmm_pin() */
		if
		:: d_step { mm_users <= hmm[i].pins -> HMM(i); MM };
			hmm_put(i);
			goto failed_get
		:: d_step { mm_users > hmm[i].pins -> HMM(i); MM; mm_users++; hmm[i].pins++ }
		fi
	:: else ->
		if
		:: d_step { mm_users == 0 -> MM };
			goto failed_get
		:: d_step { mm_users > 0 -> MM; mm_users++ }
		fi;
		/* hmm_create(), in a place that is this one's */
		i = m;
		d_step {
			MM;
			hmm[i].gone = false;
			hmm[i].kref = 1;
			hmm[i].pins = 1;
			/* mmu_interval_notifier_insert() */
			mm_count++;
			hmm[i].tree = (invalidating -> DEFERRED : IN_TREE)
		};
		/* mmu_interval_read_begin() */
		d_step { hmm[i].tree == IN_TREE -> HMM(i) };
		/* The lock of the bucket */
		if
		:: d_step { !(hmm[1 - i].hashed && hmm[1 - i].kref > 0) -> HMM(i); hmm[i].hashed = true }
		:: d_step { hmm[1 - i].hashed && hmm[1 - i].kref > 0 -> HMM(1 - i); hmm[1 - i].kref++; hmm[1 - i].pins++ };
			hmm_put(i);
			i = 1 - i
		fi
	fi;
	/* hmm_mirror_link() */
	device_lock(DEV(m));
	if
	:: d_step { device[DEV(m)].state != REGISTERED -> DEVICE(DEV(m)) }
	:: d_step { device[DEV(m)].state == REGISTERED -> DEVICE(DEV(m)) };
		/* hmm_mirror_init() */
		d_step {
			MIRROR(m); HMM(i); MM;
			mm_count++;
			assert(hmm[i].kref > 0);
			hmm[i].kref++;
			mirror[m].h = i;
			mirror[m].has_hmm = true;
			mirror[m].kref = 1;
			mirror[m].users = 1
		};
		d_step { MIRROR(m); assert(!device[DEV(m)].unused && !device[DEV(m)].unplugged); device[DEV(m)].nr_registered++; mirror[m].list = ON_MIRRORS };
		d_step { MIRROR(m); HMM(i); mirror[m].linked = true };
		d_step { MIRROR(m); mirror[m].registered = true };
		linked = true
	fi;
	device_unlock(DEV(m));
	/* hmm_unpin() */
	d_step { HMM(i); MM; assert(hmm[i].pins > 0 && mm_users > 0); hmm[i].pins--; mm_users-- };
	hmm_put(i);
	i = 0;
	/* The caller has mm_count only for this call. */
	d_step { MM; mm_count-- };
	if
	:: linked ->
		linked = false;
		hmm_mirror_unregister(m);
		goto out
	:: else -> goto failed_link
	fi;
failed_get:
	i = 0;
	d_step { MM; mm_count-- };
failed_link:
	atomic { MIRROR(m); mirror[m].device = false };
	hmm_device_put(DEV(m));
	goto free;
failed:
	atomic { MM; mm_count-- };
free:
	atomic { MIRROR(m); assert(mirror[m].releases == 0); mirror[m].gone = true; calls-- };
out:
	EXIT
}
#endif

/*
 * Devices
 */

#define OF(m, d)	(mirror[m].list == ON_MIRRORS && DEV(m) == d)
#define FIRST_OF(d)	(OF(0, d) -> 0 : (OF(1, d) -> 1 : NM))
#define AFTER_OF(m, d)	((m == 0 && OF(1, d)) -> 1 : NM)

inline hmm_device_unplug_begin(d)
{
	device_lock(d);
	d_step {
		DEVICE(d);
		device[d].state = (device[d].state == REGISTERED -> UNPLUGGED : device[d].state);
		m = FIRST_OF(d)
	};
	do
	:: m == NM -> break
	:: else ->
		d_step { hmm_mirror_use(m) };
		if
		:: d_step { mirror[m].reason != NONE -> MIRROR(m) }
		:: d_step { mirror[m].reason == NONE -> MIRROR(m); mirror[m].reason = DEVICE_GONE };
			hmm_mirror_queue_release(m)
		fi;
		hmm_mirror_unuse(m);
		d_step { MIRROR(m); m = AFTER_OF(m, d) }
	od;
	device_unlock(d)
}

inline hmm_device_first_mirror(d)
{
	d_step {
		UNLOCKED(d) ->
		ALONE(d);
		DEVICE(d);
		m = FIRST_OF(d);
		if
		:: m < NM -> hmm_mirror_use(m)
		:: else
		fi
	}
}

#if defined(SCENE_overlap) || defined(SCENE_unplug) || defined(SCENE_async) || \
	defined(SCENE_one) || defined(SCENE_plug) || defined(SCENE_all)
proctype unplug(byte d, last)
{
	bit step, got;
	byte m;
	byte next = NM;

	CALL {
		do
		:: d > last -> break
		:: else ->
			hmm_device_get(d);
			if
			:: got ->
				got = false;
				hmm_device_unplug_begin(d);
				do
				:: hmm_device_first_mirror(d);
					if
					:: m == NM -> break
					:: else ->
						hmm_mirror_settle(m, next, UNPLUGS);
						atomic { MIRROR(m); assert(mirror[m].list != ON_MIRRORS) };
						hmm_mirror_unuse(m)
					fi
				od;
				atomic {
					assert(DEV(0) != d || !mirror[0].releasing);
					assert(DEV(1) != d || !mirror[1].releasing);
					m = 0
				};
				hmm_device_put(d)
			:: else
			fi;
			d_step { device[d].unplugged = true; d++ }
		od;
		calls--
	};
	EXIT
}
#endif

/* A call that fails with -EBUSY changes nothing: this is the one that does not. */
proctype device_unregister(bit d)
{
	CALL {
		/* hmm_device_close() */
		d_step {
			CLOSE && UNLOCKED(d) && device[d].nr_registered == 0 ->
			ALONE(d);
			DEVICE(d);
			device[d].unused = true;
			device[d].state = CHANGING
		};
		hmm_lazy_drain();
		hmm_device_put(d);
		d_step { device[d].done -> DEVICE(d); device[d].state = UNREGISTERED };
		d_step { device[d].coming == 0 -> device[d].gone = true; calls-- }
	};
	EXIT
}

/*
 * The beginning and the end
 */

inline no_mirror(m)
{
	mirror[m].gone = true;
	mirror[m].released = true
}

inline release_worker(m)
{
	run hmm_mirror_release_work(m)
}

inline free_worker(m)
{
	run hmm_mirror_free_work(m)
}

inline workers(m)
{
	release_worker(m);
	free_worker(m)
}

inline live_mirror(m)
{
	mirror[m].device = true;
	mirror[m].has_hmm = true;
	mirror[m].linked = true;
	mirror[m].list = ON_MIRRORS;
	mirror[m].registered = true;
	mirror[m].kref = 1;
	mirror[m].users = 1;
	device[DEV(m)].kref++;
	device[DEV(m)].nr_registered++;
	if
	:: hmm[0].gone -> hmm[0].gone = false; mm_count++
	:: else
	fi;
	hmm[0].kref++;
	hmm[0].hashed = true;
	hmm[0].tree = IN_TREE;
	mm_count++
}

init {
	atomic {
		mm_users = 1;
		mm_count = 1;
		device[0].state = REGISTERED;
		device[0].kref = 1;
		device[1].state = REGISTERED;
		device[1].kref = 1;
		hmm[0].gone = true;
		hmm[1].gone = true;
		run hmm_free_work(0);
		run hmm_free_work(1);
		run hmm_lazy_work_fn();
		SCENE
	};
	/* All calls have returned, and all workers are idle: nothing is left. */
	timeout && calls == 0;
	d_step {
		assert(mm_users == 0 && mm_count == 0);
		assert(steps[0] == 0 && steps[1] == 0);
		assert(mirror[0].refs == 0 && mirror[1].refs == 0);
		assert(mirror[0].gone && mirror[1].gone);
#if NM > 2
		assert(mirror[2].gone);
#endif
		assert(device[0].gone && device[1].gone);
		assert(hmm[0].gone && hmm[1].gone)
	}
}
