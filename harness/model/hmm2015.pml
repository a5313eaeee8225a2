/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The design of 2015 that a review took apart, to see its races found
 *
 * One mirror of one device, on an mm whose process exits (thread B) while another
 * one, to which the file was passed, closes it last (thread A). The driver closes
 * by unregistering the mirror, then the device as often as that says -EBUSY, and
 * frees the device in the next line.
 *
 * What that design had, by the text of the review; each is an inline or process here:
 *
 *	hmm_notifier_release	exit: takes the mirrors off their mm, under
 *				hmm->rwsem, and drops the reference of that list
 *	hmm_mirror_kill		the same for one mirror, unless it is off already
 *	hmm_mirror_unregister	kills the mirror and drops the caller's reference
 *	hmm_mirror_destroy	the last reference: under device->mutex, takes the
 *				mirror off the device and calls ->release()
 *	hmm_device_unregister	-EBUSY while the device has a mirror; looks at that
 *				under device->mutex
 *
 * Each scene looks for one thing that the review says, and has to find it:
 *
 *	callback	hmm_mirror_unregister() has returned while exit still works
 *			on the mirror: ->release() comes after it.
 *	device		hmm_device_unregister() returns 0 while exit is in the
 *			mutex_unlock() inside the device that is freed. Waiting for
 *			->release() before, as the driver here does, does not help.
 *	leak		kill drops no reference on the struct hmm, which stays, and
 *			with it the mm.
 *
 * and one, alone, that without exit at the same time neither of the first two is
 * there: it is the race that is found.
 *
 * Abstraction: a mutex_unlock() is two steps, as it may touch the mutex after it has
 * let another thread in. hmm_device_unregister() that says -EBUSY is called again,
 * so it is a wait.
 */

#if defined(SCENE_callback) || defined(SCENE_alone)
#define CALLBACK
#endif
#if defined(SCENE_device) || defined(SCENE_alone)
#define FREE_DEVICE
#endif

bit rwsem;			/* of the struct hmm */
bit mutex;			/* of the device */
bit on_mm = true;		/* mirror->mlist */
bit on_device = true;		/* mirror->dlist */
byte refs = 2;			/* on the mirror: of the list, and of who registered */
byte hmm_refs = 1;		/* on the struct hmm: of hmm_mirror_register() */
bit released;
bit unregistered;		/* hmm_mirror_unregister() has returned */
bit freed;			/* the device */
byte calls;

#define DEVICE		assert(!freed)

inline hmm_mirror_destroy()
{
	atomic { !mutex -> DEVICE; mutex = true; printf("mutex_lock(&device->mutex)\n") };
	on_device = false;
	atomic {
		DEVICE;
		printf("device->ops->release(mirror)\n");
#ifdef CALLBACK
		assert(!unregistered);
#endif
		released = true
	};
	atomic { DEVICE; mutex = false; printf("mutex_unlock(&device->mutex) lets others in\n") };
	atomic { printf("mutex_unlock(&device->mutex) touches the mutex\n"); DEVICE }
}

inline hmm_mirror_unref()
{
	if
	:: atomic { refs > 1 -> refs--; printf("mirror ref 2 -> 1\n") }
	:: atomic { refs == 1 -> refs--; printf("mirror ref 1 -> 0\n") };
		hmm_mirror_destroy()
	fi
}

inline hmm_mirror_kill()
{
	atomic { !rwsem -> rwsem = true; printf("down_write(&hmm->rwsem)\n") };
	if
	:: atomic { on_mm -> on_mm = false; printf("hlist_del_init(&mirror->mlist)\n") };
		atomic { rwsem = false; printf("up_write(&hmm->rwsem)\n") };
		hmm_mirror_unref()
	:: atomic { !on_mm -> printf("hlist_unhashed(&mirror->mlist)\n") };
		atomic { rwsem = false; printf("up_write(&hmm->rwsem)\n") }
	fi
}

inline hmm_mirror_unregister()
{
	hmm_mirror_kill();
	hmm_mirror_unref()
}

proctype hmm_notifier_release()
{
	hmm_mirror_kill();
	calls--
}

proctype close_file()
{
	hmm_mirror_unregister();
	atomic { unregistered = true; printf("hmm_mirror_unregister() returns\n") };
#ifdef FREE_DEVICE
	released;
	/* hmm_device_unregister() */
	atomic { !mutex && !on_device -> DEVICE; printf("hmm_device_unregister() returns 0\n") };
	atomic { freed = true; printf("frees the device\n") };
#endif
	calls--
}

init {
	atomic {
		calls++;
		run close_file();
#ifndef SCENE_alone
		calls++;
		run hmm_notifier_release()
#endif
	};
	calls == 0;
	assert(refs == 0 && !on_mm && !on_device && released);
#ifdef SCENE_leak
	assert(hmm_refs == 0)
#endif
}
