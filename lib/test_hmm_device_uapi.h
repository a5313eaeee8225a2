/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The dummy devices of lib/test_hmm_device.c, as user space sees them
 *
 * Each open of /dev/test_hmm makes a context: it can be attached to a device
 * and register one mirror of the caller's address space. Any number of contexts
 * may be attached to a device. read() on an attached context gives the events
 * of its device as whole struct test_hmm_event, oldest first, each once; poll()
 * says when there are any. Closing the last descriptor unregisters the mirror,
 * whoever closes it.
 *
 * All sizes are bytes, all ranges [first, first + count).
 */
#ifndef _LIB_TEST_HMM_DEVICE_UAPI_H
#define _LIB_TEST_HMM_DEVICE_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Includes nothing, and has the test points for user space as well */
#ifdef __KERNEL__
#include <linux/hmm_test.h>
#else
#include <include/linux/hmm_test.h>
#endif

/* What happened, in the order it did */
enum test_hmm_event_type {
	TEST_HMM_REGISTERED = 1,	/* arg: pages of the buffer */
	TEST_HMM_DEVICE_WROTE,		/* arg: pages written */
	TEST_HMM_DEVICE_READ,		/* arg: first page read */
	TEST_HMM_DEVICE_RUNS,		/* writes on and on; arg: pages */
	TEST_HMM_RELEASE,		/* ->release() is called; arg: reason */
	TEST_HMM_STOPPED,		/* ... and returns; arg: writes */
	TEST_HMM_UNMAP,			/* pages go; arg: the device has them */
	TEST_HMM_FREED,			/* ->free() is called */
	TEST_HMM_UNREGISTERED,		/* hmm_mirror_unregister() returned */
	TEST_HMM_DEVICE_GONE,		/* hmm_device_unregister() returned 0 */
	TEST_HMM_UNPLUGGED,		/* hmm_device_unplug() returned */
	TEST_HMM_DEVICE_FREED,		/* ->device_free() is called */
};

/* arg of TEST_HMM_RELEASE: enum hmm_release_reason */
enum test_hmm_reason {
	TEST_HMM_REASON_NONE,
	TEST_HMM_REASON_MM_EXIT,
	TEST_HMM_REASON_UNREGISTER,
	TEST_HMM_REASON_DEVICE_GONE,
	TEST_HMM_REASON_ERROR,
};

struct test_hmm_event {
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	__u64 arg;
	__u32 seq;		/* of the device, from 1; a gap: lost events */
	__u32 context;		/* as struct test_hmm_register says; or 0 */
	__u32 type;		/* enum test_hmm_event_type */
	__u32 pid;		/* thread that it happened in */
};

struct test_hmm_register {
	__u64 addr;		/* of the buffer, which is page aligned */
	__u64 size;		/* a multiple of the page size, at most 4 MiB */
	__u32 context;		/* out: names this context in events */
	__u32 flags;		/* 0 */
};

struct test_hmm_access {
	__u64 first;		/* page of the buffer */
	__u64 count;		/* pages */
	__u64 value;		/* written to the start of each, or read */
};

/* Live objects of HMM, and of this driver */
struct test_hmm_counts {
	__s64 devices;
	__s64 mirrors;
	__s64 hmms;
	__s64 contexts;		/* mirrors that ->free() has not freed */
};

/* Where a thread can be held, beside enum hmm_test_point of HMM */
enum {
	TEST_HMM_IN_RELEASE = HMM_NR_POINTS, /* the device is stopped */
	TEST_HMM_IN_USE_MM,	/* the worker of TEST_HMM_USE_MM */
	TEST_HMM_NR_POINTS
};

struct test_hmm_wait {
	__u32 point;
	__u32 timeout_ms;
};

/*
 * Make a device and attach to it. Out: its number. When this descriptor is
 * closed, the device is removed.
 */
#define TEST_HMM_DEVICE_CREATE	_IOR('H', 0xa0, __u32)
/* Attach to the device of this number: -ENOENT if there is none. */
#define TEST_HMM_DEVICE_ATTACH	_IOW('H', 0xa1, __u32)
/* hmm_device_unregister() and free: -EBUSY if a mirror is registered. */
#define TEST_HMM_DEVICE_DESTROY	_IO('H', 0xa2)
/* Mirror the caller's address space: -EBUSY if this context does already. */
#define TEST_HMM_REGISTER	_IOWR('H', 0xa3, struct test_hmm_register)
/* hmm_mirror_unregister(): -ENXIO if nothing is registered. */
#define TEST_HMM_UNREGISTER	_IO('H', 0xa4)
/*
 * Have the device write or read pages, and wait. -ENXIO: no mirror; -EPERM: the
 * caller's address space is another; hmm_mirror_error() if the mirror was
 * released.
 */
#define TEST_HMM_WRITE		_IOW('H', 0xa5, struct test_hmm_access)
#define TEST_HMM_READ		_IOWR('H', 0xa6, struct test_hmm_access)
/*
 * Have the device write pages until it is released. Errors as above; -EBUSY: it
 * does already.
 */
#define TEST_HMM_RUN		_IOW('H', 0xa7, struct test_hmm_access)
/*
 * Hold the next thread that comes to a point: -EBUSY if another context does.
 */
#define TEST_HMM_HOLD		_IOW('H', 0xa8, __u32)
/* Wait until a thread is held: -ETIME after timeout_ms, -ENXIO: no HOLD. */
#define TEST_HMM_WAIT_HELD	_IOW('H', 0xa9, struct test_hmm_wait)
/* Let it go, and hold no other: -ENXIO if this context holds none there. */
#define TEST_HMM_RESUME		_IOW('H', 0xaa, __u32)
/* hmm_mirror_unregister_async(): -ENXIO if nothing is registered. */
#define TEST_HMM_UNREGISTER_ASYNC _IO('H', 0xac)
/* hmm_mirror_kill(): the device failed. -ENXIO if nothing is registered. */
#define TEST_HMM_KILL		_IO('H', 0xad)
/* hmm_device_unplug(). */
#define TEST_HMM_DEVICE_UNPLUG	_IO('H', 0xae)
/* Pull the device out: unplug and hmm_device_unregister_async(). */
#define TEST_HMM_DEVICE_REMOVE	_IO('H', 0xb2)
/* hmm_synchronize(). */
#define TEST_HMM_SYNCHRONIZE	_IO('H', 0xaf)
/*
 * hmm_mirror_find() the caller's address space on the device: -ESRCH if none.
 */
#define TEST_HMM_FIND		_IO('H', 0xb0)
/*
 * Have a worker take mm_users that HMM does not know of, as helpers of the
 * kernel do, and drop them. Errors as of TEST_HMM_RUN.
 */
#define TEST_HMM_USE_MM		_IO('H', 0xb3)
/*
 * ->release() of what this context registers next takes that many ms: to 60000.
 */
#define TEST_HMM_RELEASE_TAKES	_IOW('H', 0xb1, __u32)
/* Finish what is freed asynchronously, and count. */
#define TEST_HMM_COUNTS		_IOR('H', 0xab, struct test_hmm_counts)

#endif /* _LIB_TEST_HMM_DEVICE_UAPI_H */
