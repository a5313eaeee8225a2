/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Test points of HMM: places where a test can hold a thread
 *
 * With CONFIG_HMM_TEST_POINTS, mm/hmm_device.c calls the hook of a test module
 * at each of these places. The hook may sleep, and so hold the thread there
 * until the test has brought the other side of a race to where it wants it.
 * Without the option the places compile to nothing.
 */
#ifndef _LINUX_HMM_TEST_H
#define _LINUX_HMM_TEST_H

struct hmm_mirror;

/**
 * enum hmm_test_point - Where a thread can be held
 * @HMM_POINT_REGISTER_ARMED: The hmm_mirror_register() of the first mirror of
 *	an mm will learn of the exit of the mm and holds mm_users; another
 *	thread may have been faster. The mirror is not linked yet.
 * @HMM_POINT_REGISTER_LINKED: hmm_mirror_register() has linked the mirror, or
 *	has failed, and returns next. The mirror is NULL.
 * @HMM_POINT_RELEASE_STARTED: This thread has started the release and calls
 *	->release() next.
 * @HMM_POINT_RELEASE_RETURNED: ->release() has returned; exit and unplug still
 *	wait for the mirror.
 * @HMM_POINT_RELEASE_WAIT: Exit or unplug, with mirror NULL, or
 *	hmm_mirror_unregister() waits next for releases that others have
 *	started.
 * @HMM_POINT_UNREGISTER_WAIT: hmm_mirror_unregister() waits next for the last
 *	reference.
 * @HMM_POINT_FIND_FOUND: hmm_mirror_find() has seen a live mirror and takes a
 *	reference next. The hook may sleep only if the caller may.
 * @HMM_POINT_DESTROY: The last reference is dropped; HMM waits next for lookups
 *	that may still see the mirror.
 * @HMM_POINT_MM_LAST_PUT: A struct hmm has lost its last mirror; its notifier
 *	will be removed later. The mirror is NULL.
 * @HMM_POINT_DEVICE_WAIT: hmm_device_unregister() accepts no more mirrors and
 *	waits next for the last reference. The mirror is NULL.
 * @HMM_POINT_DEVICE_PUT: A mirror has been freed and drops its reference on the
 *	device next. The mirror is NULL.
 * @HMM_NR_POINTS: Number of test points.
 */
enum hmm_test_point {
	HMM_POINT_REGISTER_ARMED,
	HMM_POINT_REGISTER_LINKED,
	HMM_POINT_RELEASE_STARTED,
	HMM_POINT_RELEASE_RETURNED,
	HMM_POINT_RELEASE_WAIT,
	HMM_POINT_UNREGISTER_WAIT,
	HMM_POINT_FIND_FOUND,
	HMM_POINT_DESTROY,
	HMM_POINT_MM_LAST_PUT,
	HMM_POINT_DEVICE_WAIT,
	HMM_POINT_DEVICE_PUT,
	HMM_NR_POINTS
};

/**
 * struct hmm_test_counts - Live objects
 * @devices: Registered devices, until HMM has dropped them.
 * @mirrors: Mirrors, from a successful register until HMM has dropped them.
 * @hmms: Address spaces that HMM has a notifier on.
 */
struct hmm_test_counts {
	long devices;
	long mirrors;
	long hmms;
};

typedef void (*hmm_test_hook)(enum hmm_test_point point,
			      struct hmm_mirror *mirror);

int hmm_test_set_hook(hmm_test_hook hook);
void hmm_test_clear_hook(void);
void hmm_test_quiesce(struct hmm_test_counts *counts);

#endif /* _LINUX_HMM_TEST_H */
