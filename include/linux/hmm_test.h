/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Test points of mm/hmm.c: places where a test may hold a thread
 *
 * A race that a test provokes by luck proves nothing. With CONFIG_HMM_TEST_POINTS
 * mm/hmm.c calls the hook of the one test module that set it at each of the places
 * named here; the hook may sleep, and so hold the thread there until the test has
 * brought the other side of the race to where it wants it. Without the option the
 * places compile to nothing.
 */
#ifndef _LINUX_HMM_TEST_H
#define _LINUX_HMM_TEST_H

#include <linux/spinlock.h>
#include <linux/types.h>

struct hmm_mirror;

/**
 * enum hmm_test_point - Where a thread can be held
 * @HMM_POINT_REGISTER_OWN: hmm_mirror_register() has seen a mirror that is not
 *	registered, and tries to own it next.
 * @HMM_POINT_REGISTER_CREATED: hmm_mirror_register() listens to the mm by a
 *	struct hmm of its own; another thread may have been quicker.
 * @HMM_POINT_REGISTER_ARMED: hmm_mirror_register() hears of the exit of the
 *	mm; the mirror is not linked yet.
 * @HMM_POINT_REGISTER_LINKED: hmm_mirror_register() has linked the mirror, or failed
 *	to, and still pins the mm.
 * @HMM_POINT_EXIT_WALK: mm exit looks at the mirror under hmm_srcu, and is no user
 *	of it yet.
 * @HMM_POINT_EXIT_FOUND: mm exit is a user of the mirror, and has not tried to own
 *	its release.
 * @HMM_POINT_RELEASE_OWNED: This thread owns the release; ->release() is next.
 * @HMM_POINT_RELEASE_RETURNED: ->release() returned; the mirror is still linked.
 * @HMM_POINT_RELEASE_WAIT: This thread lost the release and waits for its owner
 *	next.
 * @HMM_POINT_EXIT_DONE: mm exit is done with the mirror, but still a user of it.
 * @HMM_POINT_EXIT_DROPPED: mm exit is no user of a mirror any more; that may be
 *	freed, and its device.
 * @HMM_POINT_MM_UNUSED: Nobody uses the struct hmm of an mm any more, but it can
 *	still be seen in the table.
 * @HMM_POINT_UNREGISTER_WAIT: hmm_mirror_unregister() waits for the other
 *	references next.
 * @HMM_POINT_UNPLUG_DONE: hmm_device_unplug() has no mirror left, and returns next.
 * @HMM_POINT_DEVICE_WAIT: hmm_device_unregister() takes no more mirrors, and
 *	waits for the references of those that were next.
 * @HMM_POINT_DEVICE_PUT: The reference of a mirror to its device is dropped
 *	next; the mirror may be freed already and is not to be touched.
 * @HMM_POINT_DEVICE_DROPPED: It is dropped; the device may be freed.
 * @HMM_POINT_DEVICE_OWN: hmm_device_register() has seen a device that is not
 *	registered, and tries to own it next.
 * @HMM_POINT_DEVICE_CLOSE: hmm_device_unregister() has seen a device that is
 *	registered, and tries to close it next.
 * @HMM_POINT_FIND_WALK: hmm_mirror_find() looks at the struct hmm of an mm, without
 *	a reference. Under RCU: the hook must not sleep.
 * @HMM_POINT_FIND_FOUND: hmm_mirror_find() has seen a live mirror, and takes a
 *	reference next. The hook must not sleep.
 * @HMM_POINT_PIN_WALK: hmm_mirror_mm_get() looks at the struct hmm of an mm. The
 *	hook must not sleep.
 * @HMM_POINT_ASYNC_OWN: hmm_mirror_unregister_async() tries to own the release next.
 *	The hook may sleep only if the caller of that may.
 * @HMM_POINT_UNPLUG_OWNED: hmm_device_unplug() owns a release, and has not queued it.
 *	Under a spinlock: the hook must not sleep.
 * @HMM_POINT_KILL_OWN: hmm_mirror_kill() has tried to own the release. The hook may
 *	sleep only if the caller of that may.
 * @HMM_POINT_LAZY_TAKEN: What was gathered on one CPU is taken from there, and not
 *	queued yet.
 * @HMM_NR_POINTS: How many there are.
 */
enum hmm_test_point {
	HMM_POINT_REGISTER_OWN,
	HMM_POINT_REGISTER_CREATED,
	HMM_POINT_REGISTER_ARMED,
	HMM_POINT_REGISTER_LINKED,
	HMM_POINT_EXIT_WALK,
	HMM_POINT_EXIT_FOUND,
	HMM_POINT_RELEASE_OWNED,
	HMM_POINT_RELEASE_RETURNED,
	HMM_POINT_RELEASE_WAIT,
	HMM_POINT_EXIT_DONE,
	HMM_POINT_EXIT_DROPPED,
	HMM_POINT_MM_UNUSED,
	HMM_POINT_UNREGISTER_WAIT,
	HMM_POINT_UNPLUG_DONE,
	HMM_POINT_DEVICE_WAIT,
	HMM_POINT_DEVICE_PUT,
	HMM_POINT_DEVICE_DROPPED,
	HMM_POINT_DEVICE_OWN,
	HMM_POINT_DEVICE_CLOSE,
	HMM_POINT_FIND_WALK,
	HMM_POINT_FIND_FOUND,
	HMM_POINT_PIN_WALK,
	HMM_POINT_ASYNC_OWN,
	HMM_POINT_UNPLUG_OWNED,
	HMM_POINT_KILL_OWN,
	HMM_POINT_LAZY_TAKEN,
	HMM_NR_POINTS
};

/**
 * struct hmm_test_counts - Objects that are alive
 * @devices: Registered devices.
 * @mirrors: Mirrors, from a successful register until their device is dropped.
 * @hmms: Address spaces that HMM listens to.
 */
struct hmm_test_counts {
	long devices;
	long mirrors;
	long hmms;
};

/**
 * enum hmm_test_lock - A lock that a test can take
 * @HMM_TEST_LOCK_OF_DEVICES: The list of all devices.
 * @HMM_TEST_LOCK_OF_MIRRORS: Mirrors and pins of the mm of a linked mirror.
 * @HMM_TEST_LOCK_OF_TABLE: What HMM keeps about an mm, and those that share its place.
 * @HMM_TEST_LOCK_OF_CALLBACKS: The callbacks of a task, and of those that do.
 */
enum hmm_test_lock {
	HMM_TEST_LOCK_OF_DEVICES,
	HMM_TEST_LOCK_OF_MIRRORS,
	HMM_TEST_LOCK_OF_TABLE,
	HMM_TEST_LOCK_OF_CALLBACKS,
};

typedef void (*hmm_test_hook)(enum hmm_test_point point,
			      struct hmm_mirror *mirror);

int hmm_test_set_hook(hmm_test_hook hook);
void hmm_test_clear_hook(void);
void hmm_test_quiesce(struct hmm_test_counts *counts);
void hmm_test_set_workers(int max);
void hmm_test_set_lazy_delay(unsigned long delay);
spinlock_t *hmm_test_lock(enum hmm_test_lock which, void *of);

#endif /* _LINUX_HMM_TEST_H */
