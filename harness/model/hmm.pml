/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A model of the protocol of mm/hmm.c: who releases, who waits, who frees
 *
 * harness/model.sh runs SPIN on it, which checks every scene below exhaustively.
 * The claims:
 *
 *	exactly once	->release() is called once for each registration, and ->free()
 *			once after it. ->release() has returned before exit frees
 *			pages, and before hmm_mirror_unregister() and
 *			hmm_device_unplug() return.
 *	no touch	No thread touches a mirror, a device or a struct hmm after it
 *			is freed. The driver frees a mirror in the line after
 *			hmm_mirror_unregister() or in ->free(), and a device in the
 *			line after hmm_device_unregister() or in ->device_free(). An
 *			object is freed after the lookups that may see it.
 *	barrier		hmm_synchronize() waits for what its kernel-doc says, and for
 *			no reference that a driver holds.
 *	pins		hmm_mirror_mm_get() fails if HMM holds all mm_users, and a
 *			second after the process has died. A release holds mm_users
 *			unless exit has begun.
 *	no deadlock	SPIN calls it an invalid end state.
 *	no leak		When all calls have returned and the workers are idle, lists
 *			are empty, counts are zero and objects are freed.
 *
 * MIRROR(), DEVICE(), HMM() and MM stand beside each access to an object, and assert
 * that it is still there. The fields "of the driver" and the variables of an observer
 * are what someone outside of HMM knows. No step of HMM depends on them.
 *
 * Steps
 * =====
 *
 * A d_step stands for one atomic operation or for one critical section of hmm_lock or
 * hmm->lock: no other thread comes between its statements. These inlines and processes
 * have the name of the function that they stand for:
 *
 *	hmm_lookup_begin(), hmm_lookup_end(), hmm_wait_for_lookups()
 *	hmm_pending_begin(), hmm_pending_end()
 *	hmm_put(), hmm_free_work()
 *	hmm_pin()			with hmm_mm_has_task()
 *	hmm_unpin()
 *	hmm_queue_ahead(), hmm_start()	hmm_claim() is where "claimed" is set
 *	hmm_mirror_last_put_locked(), hmm_put_registration()
 *	hmm_mirror_release()		with hmm_pin_locked()
 *	hmm_mirror_release_work(), hmm_release_all()
 *	hmm_mirror_destroy(), hmm_mirror_free_work()
 *	hmm_mirror_link()
 *	hmm_mirror_register_first()	with hmm_create() and hmm_find()
 *	hmm_mirror_unregister(), hmm_mirror_unregister_async(), hmm_queue_deferred()
 *	hmm_mirror_kill(), hmm_mirror_find()
 *	hmm_mirror_put()		with hmm_mirror_last_put()
 *
 * and these stand for more, or for calls of the driver and the rest of the kernel:
 *
 *	device_put		kref_put(), hmm_device_last_put(), hmm_device_destroy()
 *	deferred_worker		the worker of hmm_deferred_work
 *	exit_mmap		the last mmput(), and hmm_invalidate() for each notifier
 *	unregister		either kind of unregister, if the device has ->free()
 *	kill			hmm_mirror_kill(), then hmm_mirror_put()
 *	find			hmm_mirror_find(), perhaps hmm_mirror_unregister_async(),
 *				then hmm_mirror_put()
 *	pin			hmm_mirror_mm_get(), a helper that holds mm_users for a
 *				moment, hmm_mirror_mm_put(), and that again unless
 *				COARSE; then hmm_mirror_put()
 *	register		hmm_mirror_register(), then either kind of unregister
 *	synchronize		hmm_synchronize()
 *	unplug			hmm_device_unplug(), then hmm_device_unregister_async()
 *				if the device has ->device_free()
 *	device_unregister	hmm_device_unregister(), with hmm_device_close()
 *	invalidation		one of another driver
 *	helper			a worker that ->release() waits for, which calls mmput()
 *	clock			a second after the process has died
 *	hardware		what ->release() waits for, in the coarse scene
 *
 * Abstraction
 * ===========
 *
 * - Memory is sequentially consistent. A barrier of a lookup is the order of two steps,
 *   and a mistake in "breaks" swaps them, as a processor may without the barrier.
 * - A sum of per-CPU counts is one step: the counts only grow, one by one, so at some
 *   moment of the real sum they have its value. A grace period is as short as it may
 *   be: it waits for the lookups that were in progress at the unlink.
 * - A list has its mirrors in the order of their numbers.
 * - A driver does not register an object again, but frees it. That no thread touches a
 *   freed object is the stronger claim.
 * - A completion of hmm_mirror_unregister() or hmm_device_unregister() is a bit that
 *   stays. Only that of hmm_synchronize() is one on a stack.
 * - A work item has a process, which may come at any time. In a scene without
 *   RELEASES() no worker ever comes for exit, kill, unplug or unregister. MOMENT
 *   holds back the delayed work, because no thread that waits may need it.
 * - exit_mmap stands for the last mmput() in any context, also for mmput_async().
 *   hmm_nr_dying, hmm_callbacks, misuse, errors of arguments and names of devices are
 *   for the tests.
 * - A ->release() may take as long as it likes. What it may call are calls of their
 *   own, which come at any time.
 * - One thread unregisters a mirror: the driver decides which ("ended"). The driver
 *   frees a device after the calls that it let in have looked at it ("coming"). An
 *   hmm_device_unregister() that returns -EBUSY changes nothing, and is not here.
 * - Fairness, time and delay are for the tests.
 *
 * One scene has all calls on two mirrors of two devices at once. It is COARSE: a call
 * runs from one wait or callback to the next without another thread between. The other
 * scenes look for races inside of such stretches, with fewer calls or objects each.
 */

/*
 * Scenes: what there is at the start, and which calls come. All have exit and an
 * hmm_device_unregister() of each device that has no ->device_free().
 */

#define WITH(call)		calls++; run call
#define WITH_REF(call, m)	mirror[m].kref++; mirror[m].refs++; WITH(call(m))
#define WITH_UNPLUG(d)		device[d].coming++; WITH(unplug(d))
#define WITH_REGISTER(m)	mirror[m].gone = false; device[DEV(m)].coming++; mm_count++; \
				WITH(register(m))
#define RELEASES(m)		run hmm_mirror_release_work(m)
#define WORKERS(m)		RELEASES(m); run hmm_mirror_free_work(m)
#define LIVE(m)			live_mirror(m); WITH(unregister(m))
#define LIVE_WITH_WORKERS(m)	LIVE(m); WORKERS(m)

#ifdef SCENE_exit
#define TWO_DEVICES
#define SCENE	LIVE_WITH_WORKERS(0); LIVE_WITH_WORKERS(1)
#elif defined SCENE_unplug
#define FREE		0
#define CLOSE		calls == 1
#define SCENE	LIVE(0); RELEASES(0); LIVE(1); RELEASES(1); WITH_UNPLUG(0)
#elif defined SCENE_ahead
/* No release returns before all have begun */
#define NM		3
#define FREE		0
#define MEANWHILE(m)	mirror[0].releases + mirror[1].releases + mirror[2].releases == 3
#define MAY_END(m)	(pages_freed || (m == 1 && exiting))
#define SCENE	LIVE(0); RELEASES(0); LIVE(1); RELEASES(1); LIVE(2); RELEASES(2)
#elif defined SCENE_noworker
/* No worker ever comes; one of exit, unplug and unregister may end before others begin */
#define FREE		0
#define TURN(who)	(turn == 0 || turn == who || \
			 (turn == 1 && pages_freed) || (turn == 2 && device[0].unplugged) || \
			 (turn == 3 && mirror[0].gone && mirror[1].gone))
#define DIES		TURN(1)
#define UNPLUG		TURN(2)
#define MAY_END(m)	TURN(3)
#define SCENE	LIVE(0); LIVE(1); WITH_UNPLUG(0); WITH_REF(kill, 1); \
		if :: true :: turn = 1 :: turn = 2 :: turn = 3 fi
#elif defined SCENE_kill
#define LOOKUPS
#define CLOSE		calls == 1
#define SCENE	LIVE_WITH_WORKERS(0); WITH_UNPLUG(0); WITH_REF(kill, 0); WITH(find(0, 0))
#elif defined SCENE_deferred
/* The delayed work comes when all calls have returned */
#define ONLY_ASYNC
#define MOMENT		calls == 0
#define SCENE	LIVE_WITH_WORKERS(0); LIVE_WITH_WORKERS(1)
#elif defined SCENE_drain
#define ONLY_ASYNC
#define MOMENT		calls == 0
#define SYNCHRONIZE	mirror[0].asynced && mirror[1].asynced
#define CLOSE		synced
#define SCENE	LIVE_WITH_WORKERS(0); LIVE_WITH_WORKERS(1); WITH(synchronize(0))
#elif defined SCENE_sync
#define SCENE	LIVE_WITH_WORKERS(0); WITH_REF(kill, 0); WITH(synchronize(0))
#elif defined SCENE_epochs
#define DIES		calls == 1
#define CLOSE		calls == 2
#define SCENE	LIVE_WITH_WORKERS(0); WITH_REF(kill, 0); WITH(synchronize(0)); WITH(synchronize(1))
#elif defined SCENE_refs
/* A lookup keeps its reference until hmm_synchronize() has returned */
#define LOOKUPS
#define ONLY_ASYNC
#define MAY_PUT		synced
#define CLOSE		synced
#define SCENE	LIVE_WITH_WORKERS(0); WITH(find(0, 0)); WITH(synchronize(0))
#elif defined SCENE_remove
#define DEVICE_FREE	1
#define SCENE	LIVE_WITH_WORKERS(0); WITH_UNPLUG(0); WITH(synchronize(0))
#elif defined SCENE_register
#define FREE		0
#define SCENE	WITH_REGISTER(0); RELEASES(0); WITH_REGISTER(1); RELEASES(1)
#elif defined SCENE_plug
#define DEVICE_FREE	1
#define SCENE	WITH_REGISTER(0); WORKERS(0); WITH_UNPLUG(0)
#elif defined SCENE_found
/* A lookup ends what it finds while hmm_mirror_register() has not returned */
#define LOOKUPS
#define CLOSE		calls == 1
#define SCENE	WITH_REGISTER(0); WORKERS(0); WITH(find(0, 0))
#elif defined SCENE_insert
#define FREE		0
#define SCENE	WITH_REGISTER(0); RELEASES(0); WITH(invalidation())
#elif defined SCENE_lookups
#define DIES		calls == 1
#define TWO_DEVICES
#define LOOKUPS
#define FREE		0
#define CLOSE		calls <= 3
#define SCENE	LIVE(0); LIVE(1); WITH(find(0, 0)); WITH(find(0, 1))
#elif defined SCENE_pin
/* Workers pin in turn */
#define FREE		0
#define MAY_END(m)	(m == 0 || pages_freed)
#define CLOSE		calls == 1
#define SCENE	LIVE(0); RELEASES(0); LIVE(1); WITH_REF(pin, 1); WITH_REF(pin, 1); WITH(clock())
#elif defined SCENE_helper
/* ->release() waits for a worker that may drop the last mm_users */
#define CLOSE		calls == 1
#define MEANWHILE(m)	helped
#define SCENE	LIVE_WITH_WORKERS(0); WITH_REF(kill, 0); WITH_UNPLUG(0); mm_users++; WITH(helper())
#elif defined SCENE_all
#define COARSE
#define TWO_DEVICES
#define LOOKUPS
#define FREE		3
#define DEVICE_FREE	1
#define SCENE	LIVE_WITH_WORKERS(0); LIVE_WITH_WORKERS(1); WITH_UNPLUG(0); WITH_UNPLUG(1); \
		WITH_REF(kill, 0); WITH_REF(kill, 1); WITH_REF(pin, 0); WITH(find(1, 0)); \
		WITH(synchronize(0)); run hardware()
#endif

/* One device which has ->free() and no ->device_free() */
#ifdef TWO_DEVICES
#define DEV(m)		m
#else
#define DEV(m)		0
#endif
#ifndef FREE
#define FREE		1
#endif
#ifndef DEVICE_FREE
#define DEVICE_FREE	0
#endif
#define HAS_FREE(d)	((FREE >> d) & 1)
#define HAS_DEVICE_FREE(d)	((DEVICE_FREE >> d) & 1)

/* When the process dies, a mirror or device is unregistered, a reference put ... */
#ifndef DIES
#define DIES		true
#endif
#ifndef UNPLUG
#define UNPLUG		true
#endif
#ifndef MAY_END
#define MAY_END(m)	true
#endif
#ifndef CLOSE
#define CLOSE		true
#endif
#ifndef MAY_PUT
#define MAY_PUT		true
#endif
#ifndef SYNCHRONIZE
#define SYNCHRONIZE	true
#endif

/* When the delayed work may come */
#ifndef MOMENT
#define MOMENT		true
#endif

/* How long a thread runs before another may come between, and how long a release */
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
#define NO		3	/* no mirror */

/* hmm_device::state */
#define UNREGISTERED	0
#define CLOSING		1
#define UNPLUGGED	2
#define REGISTERED	3

/* hmm_mirror::work and hmm::free_work */
#define IDLE		0
#define QUEUED		1	/* for ->release(), or for the removal of a notifier */
#define RUNNING		2	/* its worker has yet to take hmm_lock */
#define FREE_QUEUED	3
#define DEFERRED	4	/* on hmm_deferred */
#define SPLICED		5	/* on the list of an hmm_queue_deferred() */

/* The notifier of a struct hmm */
#define OUT		0
#define WAITS		1	/* for the end of an invalidation */
#define IN_TREE		2

/* What hmm_mirror_link() returns */
#define LINKED		0
#define FAILED		1
#define AGAIN_FIRST	2	/* -EAGAIN */

typedef mirror_t {
	bit gone;		/* the driver has freed the memory */
	bit h;			/* which struct hmm it has */
	bit linked[2];		/* on the list of its struct hmm, of its device */
	bit reserved, registered, started, released, queued;
	bit claimed;		/* reason is not HMM_RELEASE_NONE */
	bit done, completed;	/* whether done is set, and what it points to */
	unsigned pending : 2; unsigned work : 3; unsigned kref : 3;
	unsigned seen : 2;	/* lookups in progress since before the unlink */
	/* Of the driver */
	bit releasing;		/* ->release() runs */
	bit stopped;		/* what it waits for, if COARSE */
	unsigned releases : 2;	/* how often it was called */
	unsigned refs : 2;	/* taken, and hmm_mirror_put() has not returned */
	bit found;		/* hmm_mirror_find() has taken one */
	bit ended;		/* a thread has decided to unregister it */
	bit killed, asynced;	/* hmm_mirror_kill(), _unregister_async() have returned */
};

typedef device_t {
	bit gone, done, completed;
	unsigned state : 2; unsigned nr_registered : 2; unsigned kref : 3;
	/* Of the driver */
	bit unplugged, closed;	/* hmm_device_unplug(), _unregister_async() have returned */
	unsigned coming : 2;	/* calls that have not yet looked at it */
};

typedef hmm_t {
	bit gone;		/* freed, or not yet allocated */
	bit hashed;
	bit old;		/* pinned_since is more than a second ago */
	unsigned tree : 2; unsigned work : 2; unsigned seen : 2;
	unsigned users : 3; unsigned pins : 3;
};

typedef list_t { unsigned ahead : 2; unsigned nr : 2 };

mirror_t mirror[NM]; device_t device[2]; hmm_t hmm[2];
list_t list[4];			/* of the struct hmm 0 and 1, of the devices 0 and 1 */
byte mm_users, mm_count;
bit exiting, invalidating;	/* invalidations in progress: exit, another driver's */
byte begun, ended;		/* counts of lookups */
byte lookups;			/* threads inside hmm_srcu, one bit each */
bit epoch, mutex;
byte nr_pending[2];
bit epoch_done;			/* whose completion it is */
bit epoch_completed[2], epoch_waited[2];	/* that, and whether it is on a stack */
bit deferred_due;		/* hmm_deferred_work is queued */

/* Of an observer */
byte calls;			/* in progress */
bit alive;			/* a task has the mm */
bit second;			/* one has passed since the process died */
byte others;			/* mm_users of helpers of threads that pin */
byte pinning;			/* threads inside hmm_pin() */
bit pages_freed;
byte turn;			/* who comes first, if a scene chooses */
bit helped, synced;		/* the helper, an hmm_synchronize() has returned */

/* A thread that touches an object says so: its owner may not have freed it. */
#define MIRROR(m)	assert(!mirror[m].gone)
#define DEVICE(d)	assert(!device[d].gone)
#define HMM(i)		assert(!hmm[i].gone)
#define MM		assert(mm_count > 0)

/* The end of a call. SPIN would let only the youngest process go. */
#define EXIT		calls--; end: false

#define IF		if ::
#define FI		:: else fi

/* Lists */
#define BY_MM(m)	mirror[m].h
#define BY_DEVICE(m)	2 + DEV(m)
#define ON(m, l)	((mirror[m].linked[0] && BY_MM(m) == l) || \
			 (mirror[m].linked[1] && BY_DEVICE(m) == l))
#if NM > 2
#define IF_2(l, other)	(ON(2, l) -> 2 : other)
#define ALL(what)	what(0) && what(1) && what(2)
#else
#define IF_2(l, other)	other
#define ALL(what)	what(0) && what(1)
#endif
#define FIRST(l)	(ON(0, l) -> 0 : (ON(1, l) -> 1 : IF_2(l, NO)))
#define LAST(l)		IF_2(l, (ON(1, l) -> 1 : (ON(0, l) -> 0 : NO)))

/* No list has the mirror, and ->release() has returned if it was ever registered. */
#define RELEASED(m)	(!mirror[m].linked[0] && !mirror[m].linked[1] && \
			 !mirror[m].releasing && mirror[m].started == mirror[m].releases)

/* Lookups */

inline hmm_lookup_begin(who)
{
	d_step { begun++; lookups = lookups | who }
}

#define UNSEE(object, who)	object.seen = object.seen & ~who

inline hmm_lookup_end(who)
{
	d_step {
		ended++; lookups = lookups & ~who; UNSEE(mirror[0], who);
		UNSEE(mirror[1], who); UNSEE(hmm[0], who); UNSEE(hmm[1], who)
	}
}

/* @sum is a local variable, which is 0 before and after. */
inline hmm_wait_for_lookups(object, sum)
{
#ifdef LOOKUPS
	d_step { assert(!object.gone); sum = ended };
	if
	:: d_step { begun == sum -> sum = 0 }
	:: d_step { begun != sum -> sum = 0 };
		/* synchronize_srcu_expedited() */
		object.seen == 0
	fi
#else
	skip
#endif
}

/*
 * Pending callbacks; in critical sections
 */

inline hmm_pending_begin(m)
{
	IF mirror[m].pending == 0 -> mirror[m].pending = epoch + 1; nr_pending[epoch]++ FI
}

inline hmm_pending_end(m)
{
	IF mirror[m].pending != 0 ->
		assert(nr_pending[mirror[m].pending - 1] > 0);
		nr_pending[mirror[m].pending - 1]--;
		IF nr_pending[mirror[m].pending - 1] == 0 && mirror[m].pending - 1 != epoch ->
			assert(epoch_waited[epoch_done]);
			epoch_completed[epoch_done] = true
		FI;
		mirror[m].pending = 0
	FI
}

/* Devices and the struct hmm */

/* No callback of the mirror follows. */
#define OVER(m, d)	(DEV(m) != d || (RELEASED(m) && !mirror[m].reserved && \
			 (mirror[m].gone || !HAS_FREE(d) || mirror[m].releases == 0)))

inline free_device(d)
{
	d_step {
		device[d].coming == 0 ->
		DEVICE(d); assert(OVER(0, d) && OVER(1, d)); device[d].gone = true
	}
}

inline device_put(d)
{
	if
	:: d_step { device[d].kref != 1 -> DEVICE(d); assert(device[d].kref > 1); device[d].kref-- }
	:: d_step { device[d].kref == 1 -> DEVICE(d); device[d].kref = 0 };
		if
		:: d_step { device[d].done -> DEVICE(d); device[d].completed = true }
		:: d_step { !device[d].done -> DEVICE(d); device[d].state = UNREGISTERED };
			/* ->device_free() */
			assert(HAS_DEVICE_FREE(d));
			free_device(d)
		fi
	fi
}

inline hmm_put(i)
{
	d_step {
		HMM(i); assert(hmm[i].users > 0); hmm[i].users--;
		IF hmm[i].users == 0 ->
			hmm[i].hashed = false; hmm[i].seen = lookups; hmm[i].work = QUEUED
		FI
	}
}

proctype hmm_free_work(bit i)
{
	byte sum;
end:	do
	:: CALL {
			/* mmu_interval_notifier_remove() */
			d_step {
				hmm[i].work == QUEUED && !exiting && !invalidating ->
				HMM(i); MM; assert(hmm[i].tree == IN_TREE);
				hmm[i].work = IDLE; hmm[i].tree = OUT; mm_count--
			};
			hmm_wait_for_lookups(hmm[i], sum);
			d_step { HMM(i); assert(hmm[i].seen == 0 && hmm[i].pins == 0); hmm[i].gone = true }
		}
	od
}

/* Pins */

inline hmm_pin(i)
{
	d_step {
		HMM(i); MM; pinning++; stale = hmm[i].pins > 0 && hmm[i].old;
		/* hmm_mm_has_task() */
		got = !stale || alive
	};
	d_step {
		HMM(i); MM; hmm[i].old = hmm[i].old && hmm[i].pins > 0 && !(stale && got);
		got = got && mm_users > hmm[i].pins;
		IF got ->
			/* Not all mm_users are pins, and the process has not long been dead. */
			assert(alive || (others > 0 && !second));
			mm_users++; hmm[i].pins++
		FI;
		pinning--; stale = false
	}
}

/* In a d_step of the caller */
inline hmm_unpin(i)
{
	HMM(i); MM;
	assert(hmm[i].pins > 0 && mm_users > 0);
	hmm[i].pins--; mm_users--
}

/* Releases */

#define CLAIM_AND_QUEUE(m, how)	MIRROR(m); assert(mirror[m].work == IDLE); mirror[m].work = how; \
				mirror[m].claimed = true; mirror[m].queued = true

/* In a critical section, as are all up to hmm_put_registration() */
inline hmm_queue_ahead(l)
{
	list[l].ahead = LAST(l);
	IF list[l].ahead != NO && !mirror[list[l].ahead].claimed ->
		CLAIM_AND_QUEUE(list[l].ahead, QUEUED)
	FI
}

inline unlink(m, by, l)
{
	assert(mirror[m].linked[by]);
	mirror[m].linked[by] = false;
	IF list[l].ahead == m -> hmm_queue_ahead(l) FI
}

/* @start is a local variable, which is false before. */
inline hmm_start(m, start)
{
	start = !mirror[m].started;
	IF start ->
		mirror[m].started = true; mirror[m].seen = lookups; unlink(m, 0, BY_MM(m));
		unlink(m, 1, BY_DEVICE(m))
	FI
}

inline hmm_mirror_last_put_locked(m)
{
	MIRROR(m);
	if
	:: mirror[m].done -> mirror[m].completed = true
	:: else ->
		hmm_pending_begin(m);
		assert(mirror[m].work == IDLE);
		mirror[m].work = FREE_QUEUED
	fi
}

/*
 * hmm_mirror_find() and hmm_mirror_put() change the count without hmm_lock, but access
 * no other field that this changes. So kref_put() and what follows are one step.
 */
inline hmm_put_registration(m)
{
	if
	:: mirror[m].registered || !mirror[m].released || mirror[m].queued
	:: else ->
		assert(mirror[m].kref > 0);
		mirror[m].kref--;
		if
		:: mirror[m].kref == 0 -> hmm_mirror_last_put_locked(m)
		:: else -> hmm_pending_end(m)
		fi
	fi
}

/* @pinned is a local variable, which is false before and after. */
inline hmm_mirror_release(m, pinned)
{
	d_step {
		MIRROR(m); HMM(mirror[m].h); DEVICE(DEV(m));
		/* hmm_pin_locked() */
		pinned = mm_users > 0;
		IF pinned ->
			hmm[mirror[m].h].old = hmm[mirror[m].h].old && hmm[mirror[m].h].pins > 0;
			mm_users++; hmm[mirror[m].h].pins++
		FI;
		assert(mirror[m].releases == 0 && !device[DEV(m)].unplugged);
		mirror[m].releases++; mirror[m].releasing = true
	};
	d_step {
		MEANWHILE(m) ->
		MIRROR(m); DEVICE(DEV(m)); assert(!pages_freed);
		IF pinned -> hmm_unpin(mirror[m].h) FI;
		mirror[m].releasing = false
	};
	d_step {
		MIRROR(m); HMM(mirror[m].h); DEVICE(DEV(m)); mirror[m].released = true;
		assert(list[BY_MM(m)].nr > 0 && list[BY_DEVICE(m)].nr > 0);
		list[BY_MM(m)].nr--; list[BY_DEVICE(m)].nr--;
		IF mirror[m].registered || mirror[m].done -> hmm_pending_end(m) FI;
		hmm_put_registration(m); pinned = false
	}
}

proctype hmm_mirror_release_work(byte m)
{
	bit start, pinned;
end:	do
	:: CALL {
			d_step { mirror[m].work == QUEUED -> MIRROR(m); mirror[m].work = RUNNING };
			d_step {
				MIRROR(m); mirror[m].work = IDLE; mirror[m].queued = false;
				hmm_start(m, start); hmm_put_registration(m)
			};
			IF start -> start = false; hmm_mirror_release(m, pinned) FI
		}
	od
}

/* @owner is the struct hmm or the device that has the list. */
inline hmm_release_all(l, owner)
{
	do
	:: d_step {
			FIRST(l) != NO ->
			assert(!owner.gone);
			m = FIRST(l); MIRROR(m);
			mirror[m].claimed = true; hmm_start(m, start);
			IF list[l].ahead == NO -> hmm_queue_ahead(l) FI;
			start = false
		};
		hmm_mirror_release(m, pinned)
	:: d_step { FIRST(l) == NO -> assert(!owner.gone) };
		break
	od;
	atomic { list[l].nr == 0 -> assert(!owner.gone); m = 0 }
}

/*
 * mm exit
 */

/* What waits for the end of an invalidation comes into the interval tree then. */
#define INSERT(i)	hmm[i].tree = (!exiting && !invalidating && hmm[i].tree == WAITS -> IN_TREE : hmm[i].tree)

/* The last thread of the process exits. Others may hold mm_users for longer. */
proctype exit_mmap()
{
	bit start, pinned; byte m, i;
	CALL {
		d_step { DIES -> alive = false; mm_users-- };
		d_step { mm_users == 0 -> exiting = true };
		do
		:: d_step { i < 2 && hmm[i].tree == IN_TREE -> HMM(i) };
			hmm_release_all(i, hmm[i]);
			i++
		:: i < 2 && hmm[i].tree != IN_TREE -> i++
		:: i == 2 -> break
		od;
		atomic {
			i = 0; exiting = false; INSERT(0); INSERT(1);
			assert(ALL(RELEASED)); assert(mm_users == 0);
			pages_freed = true; MM; mm_count--
		};
		EXIT
	}
}

proctype invalidation()
{
	invalidating = true;
	d_step { invalidating = false; INSERT(0); INSERT(1) };
	EXIT
}

/* The helper has had its mm_users from the start. Its mmput() may run exit. */
proctype helper()
{
	bit last;

	d_step { mirror[0].releasing -> mm_users--; last = mm_users == 0 };
	IF last -> pages_freed FI;
	d_step { helped = true; last = false };
	EXIT
}

/* An hmm_pin() takes less than a second. */
proctype clock()
{
	d_step { !alive && pinning == 0 -> second = true; hmm[0].old = hmm[0].pins > 0 };
	EXIT
}

/* Only so that a ->release() waits, and a coarse call does not go on through it */
proctype hardware()
{
end:	do
	:: d_step { mirror[0].releasing && !mirror[0].stopped -> mirror[0].stopped = true }
	:: d_step { mirror[1].releasing && !mirror[1].stopped -> mirror[1].stopped = true }
	od
}

/* Mirrors */

inline free_mirror(m)
{
	MIRROR(m);
	assert(mirror[m].releases == 1 && RELEASED(m));
	assert(mirror[m].refs == 0 && mirror[m].seen == 0);
	mirror[m].gone = true
}

inline hmm_mirror_destroy(m, sum)
{
	hmm_wait_for_lookups(mirror[m], sum);
	d_step {
		DEVICE(DEV(m)); assert(mirror[m].reserved && mirror[m].kref == 0);
		mirror[m].reserved = false;
		/* ->free(); without it, the caller may free the mirror in the next line. */
		free_mirror(m)
	};
	hmm_put(mirror[m].h);
	device_put(DEV(m))
}

proctype hmm_mirror_free_work(byte m)
{
	byte sum;
end:	do
	:: CALL {
			d_step { mirror[m].work == FREE_QUEUED -> MIRROR(m); mirror[m].work = IDLE };
			hmm_mirror_destroy(m, sum);
			/* The function has a copy of "pending", which here is the field. */
			d_step { hmm_pending_end(m) }
		}
	od
}

inline hmm_mirror_put(m)
{
	if
	:: d_step { mirror[m].kref != 1 -> MIRROR(m); assert(mirror[m].kref > 1); mirror[m].kref--; mirror[m].refs-- }
	:: d_step { mirror[m].kref == 1 -> MIRROR(m); mirror[m].kref = 0 };
		d_step { hmm_mirror_last_put_locked(m); mirror[m].refs-- }
	fi
}

inline hmm_mirror_unregister(m)
{
	d_step {
		MIRROR(m); DEVICE(DEV(m)); assert(mirror[m].registered);
		mirror[m].registered = false; device[DEV(m)].nr_registered--;
		mirror[m].done = true; mirror[m].claimed = true; hmm_start(m, start);
		hmm_put_registration(m)
	};
	IF start -> start = false; hmm_mirror_release(m, pinned) FI;
	if
	:: d_step { !mirror[m].queued && mirror[m].completed -> MIRROR(m) }
	:: d_step { mirror[m].queued -> MIRROR(m) };
		/* cancel_work_sync() */
		if
		:: d_step { mirror[m].work == QUEUED -> MIRROR(m); mirror[m].work = IDLE };
			d_step { MIRROR(m); mirror[m].queued = false; hmm_put_registration(m) }
		:: d_step { mirror[m].work == IDLE -> MIRROR(m) }
		fi;
		mirror[m].completed
	fi;
	hmm_mirror_destroy(m, sum)
}

inline hmm_mirror_unregister_async(m)
{
	d_step {
		MIRROR(m); DEVICE(DEV(m)); assert(mirror[m].registered);
		mirror[m].registered = false; device[DEV(m)].nr_registered--;
		hmm_pending_begin(m);
		IF !mirror[m].claimed ->
			first = mirror[0].work != DEFERRED && mirror[1].work != DEFERRED;
			CLAIM_AND_QUEUE(m, DEFERRED)
		FI;
		hmm_put_registration(m)
	};
	d_step { deferred_due = deferred_due || first; first = false; mirror[m].asynced = true }
}

inline splice(m, bits)
{
	IF mirror[m].work == DEFERRED -> MIRROR(m); mirror[m].work = SPLICED; bits = bits | (1 << m)
	FI
}

/* @bits is a local variable, which is 0 before and after. */
inline hmm_queue_deferred(bits)
{
	d_step { splice(0, bits); splice(1, bits) };
	IF bits & 1 -> d_step { MIRROR(0); mirror[0].work = QUEUED } FI;
	IF bits & 2 -> d_step { MIRROR(1); mirror[1].work = QUEUED } FI;
	bits = 0
}

proctype deferred_worker()
{
	byte bits;
end:	do
	:: CALL {
			d_step { deferred_due && MOMENT -> deferred_due = false };
			hmm_queue_deferred(bits)
		}
	od
}

inline hmm_mirror_kill(m)
{
	d_step {
		MIRROR(m);
		if
		:: mirror[m].released
		:: else ->
			hmm_pending_begin(m);
			IF !mirror[m].claimed -> CLAIM_AND_QUEUE(m, QUEUED) FI
		fi;
		mirror[m].killed = true
	}
}

proctype unregister(byte m)
{
	bit start, pinned, first; byte sum;
	CALL {
		if
#ifndef ONLY_ASYNC
		:: d_step { MAY_END(m) && !mirror[m].ended -> mirror[m].ended = true };
			hmm_mirror_unregister(m)
#endif
		:: d_step { MAY_END(m) && !mirror[m].ended && HAS_FREE(DEV(m)) -> mirror[m].ended = true };
			hmm_mirror_unregister_async(m)
		:: mirror[m].ended
		fi;
		EXIT
	}
}

/* This and pin have a reference from the start. */
proctype kill(byte m)
{
	CALL {
		hmm_mirror_kill(m);
		hmm_mirror_put(m);
		EXIT
	}
}

proctype pin(byte m)
{
	bit got, stale;
	CALL {
		do
		:: break
		:: d_step { mirror[m].claimed -> MIRROR(m) };
			break
		:: d_step { !mirror[m].claimed -> MIRROR(m) };
			hmm_pin(mirror[m].h);
			IF got ->
				got = false;
				d_step { MM; mm_users++; others++ };
				d_step { MM; assert(!exiting && !pages_freed); mm_users--; others-- };
				d_step { MIRROR(m); hmm_unpin(mirror[m].h) }
			FI
#ifdef COARSE
			; break
#endif
		od;
		hmm_mirror_put(m);
		EXIT
	}
}

#define AFTER(m, l)	(m == 0 && ON(1, l) -> 1 : NO)

inline hmm_mirror_find(d, who)
{
	hmm_lookup_begin(who);
	do
	:: i == 2 -> m = NO; break
	:: i < 2 && !hmm[i].hashed -> i++
	:: d_step { i < 2 && hmm[i].hashed -> HMM(i) };
		d_step { HMM(i); m = FIRST(i) };
		do
		:: m == NO -> break
		:: d_step { m != NO && (DEV(m) != d || mirror[m].claimed) -> MIRROR(m); m = AFTER(m, i) }
		:: d_step { m != NO && DEV(m) == d && !mirror[m].claimed -> MIRROR(m) };
			if
			:: d_step { mirror[m].kref == 0 -> MIRROR(m); m = AFTER(m, i) }
			:: d_step {
				mirror[m].kref > 0 ->
				MIRROR(m);
				mirror[m].kref++; mirror[m].refs++; mirror[m].found = true
				};
				goto out
			fi
		od;
		i++
	od;
out:	hmm_lookup_end(who)
}

proctype find(bit d, number)
{
	bit first;
	byte m, i;
	CALL {
		hmm_mirror_find(d, (1 << number));
		if
		:: m == NO
		:: m != NO -> MAY_PUT
		:: d_step { m != NO && HAS_FREE(d) && !mirror[m].ended -> mirror[m].ended = true };
			hmm_mirror_unregister_async(m);
			MAY_PUT
		fi;
		IF m != NO -> hmm_mirror_put(m) FI;
		d_step { m = 0; i = 0 };
		EXIT
	}
}

/* ->free() is pending or has returned. */
#define FREE_DUE(m)	(mirror[m].asynced && mirror[m].refs == 0)
#define FREE_IS_LAST(m)	(FREE_DUE(m) || DEV(m) != 0 || mirror[m].releases == 0)

/* It need not wait for references, and that of a lookup may come late. */
#define WAITED_FOR(m)	((!release[m] || (mirror[m].releases == 1 && !mirror[m].releasing)) && \
			 (!free[m] || mirror[m].gone || mirror[m].found))

proctype synchronize(bit number)
{
	bit pending, device_free;
	byte bits;
	bit release[2];
	bit free[2];
	CALL {
		/* What earlier calls have made pending */
		d_step {
			SYNCHRONIZE ->
			release[0] = mirror[0].asynced || mirror[0].killed;
			release[1] = mirror[1].asynced || mirror[1].killed;
			free[0] = FREE_DUE(0); free[1] = FREE_DUE(1);
			device_free = device[0].closed && FREE_DUE(0) && FREE_IS_LAST(1)
		};
		d_step { !mutex -> mutex = true };
		hmm_queue_deferred(bits);
		d_step {
			pending = nr_pending[epoch] > 0; epoch = !epoch;
			epoch_done = number; epoch_waited[number] = pending
		};
		IF pending -> epoch_completed[number] FI;
		d_step {
			assert(WAITED_FOR(0) && WAITED_FOR(1));
			assert(!device_free || device[0].gone);
			release[0] = 0; release[1] = 0; free[0] = 0; free[1] = 0;
			device_free = 0; pending = 0;
			epoch_completed[number] = false; epoch_waited[number] = false;
			mutex = false; synced = true
		};
		EXIT
	}
}

/* In a critical section; @created is NO, or the number of a new struct hmm. */
inline hmm_mirror_link(m)
{
	MIRROR(m); DEVICE(DEV(m)); MM;
	found = (hmm[0].hashed -> 0 : (hmm[1].hashed -> 1 : NO));
	if
	:: device[DEV(m)].state != REGISTERED -> ret = FAILED
	:: device[DEV(m)].state == REGISTERED && found != NO && mm_users == 0 -> ret = FAILED
	:: else ->
		IF created == NO -> device[DEV(m)].kref++; mirror[m].reserved = true FI;
		if
		:: found == NO && created == NO -> ret = AGAIN_FIRST
		:: else ->
			IF found == NO -> found = created; hmm[found].hashed = true FI;
			HMM(found); assert(!(hmm[0].hashed && hmm[1].hashed));
			hmm[found].users++; mirror[m].h = found; mirror[m].kref = 1;
			mirror[m].registered = true; device[DEV(m)].nr_registered++;
			list[BY_MM(m)].nr++; list[BY_DEVICE(m)].nr++;
			mirror[m].linked[0] = true; mirror[m].linked[1] = true;
			ret = LINKED
		fi
	fi;
	found = 0
}

inline hmm_mirror_register_first(m)
{
	if
	:: d_step { mm_users == 0 -> MM; ret = FAILED }
	:: d_step { mm_users > 0 -> MM; mm_users++ };
		/* hmm_create(), in a place that is this thread's */
		d_step {
			MM; hmm[m].gone = false; hmm[m].users = 1;
			/* mmu_interval_notifier_insert() */
			mm_count++;
			hmm[m].tree = (invalidating -> WAITS : IN_TREE)
		};
		/* mmu_interval_read_begin() */
		d_step { hmm[m].tree == IN_TREE -> HMM(m) };
		d_step { created = m; hmm_mirror_link(m); created = NO };
		hmm_put(m);
		d_step { MM; mm_users-- }
	fi;
	IF ret == FAILED ->
		d_step { MIRROR(m); mirror[m].reserved = false };
		device_put(DEV(m))
	FI
}

proctype register(byte m)
{
	bit start, pinned, first;
	byte ret, found, sum;
	byte created = NO;

	d_step { hmm_mirror_link(m); device[DEV(m)].coming-- };
	IF ret == AGAIN_FIRST -> hmm_mirror_register_first(m) FI;
	/* The caller has mm_count for this call only. */
	d_step { MM; mm_count-- };
	if
	:: d_step { ret == FAILED -> MIRROR(m); assert(mirror[m].releases == 0); mirror[m].gone = true }
	:: d_step { ret == LINKED && !mirror[m].ended -> mirror[m].ended = true };
		hmm_mirror_unregister(m)
	:: d_step { ret == LINKED && !mirror[m].ended && HAS_FREE(DEV(m)) -> mirror[m].ended = true };
		hmm_mirror_unregister_async(m)
	:: ret == LINKED && mirror[m].ended
	fi;
	ret = 0;
	EXIT
}

/* Devices */

#define UNPLUGGED_OF(m)	(DEV(m) != d || RELEASED(m))

proctype unplug(byte d)
{
	bit start, pinned, got;
	byte m;
	CALL {
		d_step {
			UNPLUG ->
			DEVICE(d); device[d].coming--; got = device[d].state >= UNPLUGGED;
			IF got -> device[d].state = UNPLUGGED; device[d].kref++ FI
		};
		IF got ->
			got = false; hmm_release_all((2 + d), device[d]);
			d_step { DEVICE(d); assert(ALL(UNPLUGGED_OF)); device[d].unplugged = true };
			device_put(d)
		FI;
		/* hmm_device_unregister_async() */
		IF HAS_DEVICE_FREE(d) ->
			d_step { DEVICE(d); device[d].state = CLOSING };
			device_put(d); device[d].closed = true
		FI;
		EXIT
	}
}

proctype device_unregister(byte d)
{
	byte bits;
	CALL {
		/* hmm_device_close() */
		d_step {
			CLOSE && device[d].nr_registered == 0 ->
			DEVICE(d); device[d].state = CLOSING; device[d].done = true
		};
		hmm_queue_deferred(bits);
		device_put(d);
		d_step { device[d].completed -> DEVICE(d); device[d].state = UNREGISTERED };
		free_device(d);
		EXIT
	}
}

/* The start and the end */

inline live_device(d)
{
	device[d].state = REGISTERED; device[d].kref = 1;
	IF !HAS_DEVICE_FREE(d) -> WITH(device_unregister(d)) FI
}

inline live_mirror(m)
{
	mirror[m].gone = false; mirror[m].reserved = true; mirror[m].registered = true; mirror[m].kref = 1;
	mirror[m].linked[0] = true; mirror[m].linked[1] = true;
	list[BY_MM(m)].nr++; list[BY_DEVICE(m)].nr++;
	device[DEV(m)].kref++; device[DEV(m)].nr_registered++;
	IF hmm[0].gone -> hmm[0].gone = false; mm_count++ FI;
	hmm[0].users++; hmm[0].hashed = true; hmm[0].tree = IN_TREE
}

#define MIRROR_AT_END(m)	(mirror[m].gone && RELEASED(m) && !mirror[m].reserved && \
				 !mirror[m].registered && !mirror[m].queued && \
				 mirror[m].work == IDLE && mirror[m].kref == 0 && mirror[m].refs == 0)
#define DEVICE_AT_END(d)	(device[d].gone && device[d].kref == 0 && \
				 device[d].nr_registered == 0)
#define HMM_AT_END(i)		(hmm[i].gone && !hmm[i].hashed && hmm[i].users == 0 && \
				 hmm[i].pins == 0 && hmm[i].tree == OUT)
#define LIST_AT_END(l)		(list[l].nr == 0 && list[l].ahead == NO)

init {
	atomic {
		alive = true; mm_users = 1; mm_count = 1;
		mirror[0].gone = true; mirror[1].gone = true;
		hmm[0].gone = true; hmm[1].gone = true;
		list[0].ahead = NO; list[1].ahead = NO; list[2].ahead = NO; list[3].ahead = NO;
		live_device(0);
#ifdef TWO_DEVICES
		live_device(1);
#else
		device[1].gone = true;
#endif
		run hmm_free_work(0); run hmm_free_work(1); run deferred_worker();
		WITH(exit_mmap());
		SCENE
	};
	/* All calls have returned, and all workers are idle: nothing is left. */
	timeout && calls == 0;
	d_step {
		assert(mm_users == 0 && mm_count == 0 && others == 0);
		assert(nr_pending[0] == 0 && nr_pending[1] == 0);
		assert(begun == ended && lookups == 0); assert(ALL(MIRROR_AT_END));
		assert(DEVICE_AT_END(0) && DEVICE_AT_END(1));
		assert(HMM_AT_END(0) && HMM_AT_END(1));
		assert(LIST_AT_END(0) && LIST_AT_END(1) && LIST_AT_END(2) && LIST_AT_END(3))
	}
}
