/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of HMM share
 */
#ifndef _MM_HMM_INTERNAL_H
#define _MM_HMM_INTERNAL_H

#include <linux/hmm_device.h>
#include <linux/hmm_test.h>
#include <linux/mmu_notifier.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

struct task_struct;

/*
 * What HMM keeps about one mm. Its notifier holds mm_count; nothing here holds
 * mm_users but for a short time. Each mirror is a user until its last reference
 * is dropped.
 */
struct hmm {
	struct mm_struct *mm;
	struct mmu_interval_notifier notifier;
	struct hlist_node node;
	unsigned int users;
	struct hmm_release_list unreleased;
	spinlock_t lock;		/* nr_pins, and mm_users with it */
	/* mm_users that HMM holds, and when they left 0 (jiffies) */
	unsigned int nr_pins __guarded_by(&lock);
	unsigned long pinned_since __guarded_by(&lock);
	struct delayed_work free_work;
};

/* A callback in progress; on the stack of its task */
struct hmm_callback {
	struct hlist_node node;
	struct task_struct *task;
	struct hmm_device *device;	/* NULL in ->device_free() */
#ifdef CONFIG_HMM_DEBUG
	struct list_head debug_node;
	unsigned long debug_start;	/* jiffies */
	bool debug_reported;
#endif
};

extern raw_spinlock_t hmm_lock;

int hmm_lookup_begin(void);
void hmm_lookup_end(int idx);

#ifdef CONFIG_LOCKDEP
#define hmm_lockdep_has_class(device)	((device)->callback_map.key)
#else
#define hmm_lockdep_has_class(device)	((void)(device), false)
#endif

/*
 * At mm exit, ->release() runs inside an invalidation, so it must not wait for
 * one. On other paths this happens to work, so lockdep reports it there, too:
 * ->release() holds the lock that such a wait acquires. Check is 0, which adds
 * no dependency on what ->release() takes: it may wait for a worker that holds
 * mm_users, and that worker for an invalidation.
 */
#ifdef mmu_interval_wait_map
#define hmm_forbid_invalidation_wait() \
	lock_acquire(&mmu_interval_wait_map, 0, 1, 0, 0, NULL, _THIS_IP_)
#define hmm_allow_invalidation_wait() \
	lock_map_release(&mmu_interval_wait_map)
#else
#define hmm_forbid_invalidation_wait()	do { } while (0)
#define hmm_allow_invalidation_wait()	do { } while (0)
#endif

enum hmm_counter {
	HMM_COUNT_DEVICES,
	HMM_COUNT_MIRRORS,
	HMM_COUNT_HMMS,
	HMM_NR_COUNTERS
};

/* The callers of hmm_count() hold hmm_lock */
#ifdef CONFIG_HMM_TEST_POINTS
extern unsigned int hmm_nr_dying;
void hmm_count(enum hmm_counter counter, int n);
void hmm_point(enum hmm_test_point point, struct hmm_mirror *mirror);
#else
static inline void hmm_count(enum hmm_counter counter, int n) { }
static inline void hmm_point(enum hmm_test_point point,
			     struct hmm_mirror *mirror) { }
#endif

/*
 * The callers of those of devices, and of hmm_debug_mirror_add(), hold hmm_lock
 */
#ifdef CONFIG_HMM_DEBUG
void hmm_debug_device_add(struct hmm_device *device);
void hmm_debug_device_del(struct hmm_device *device);
void hmm_debug_mirror_add(struct hmm_mirror *mirror);
void hmm_debug_mirror_del(struct hmm_mirror *mirror);
void hmm_debug_callback_add(struct hmm_callback *callback);
void hmm_debug_callback_del(struct hmm_callback *callback);
void hmm_debug_init(void);
void hmm_debug_exit(void);
#else
static inline void hmm_debug_device_add(struct hmm_device *device) { }
static inline void hmm_debug_device_del(struct hmm_device *device) { }
static inline void hmm_debug_mirror_add(struct hmm_mirror *mirror) { }
static inline void hmm_debug_mirror_del(struct hmm_mirror *mirror) { }
static inline void hmm_debug_callback_add(struct hmm_callback *callback) { }
static inline void hmm_debug_callback_del(struct hmm_callback *callback) { }
static inline void hmm_debug_init(void) { }
static inline void hmm_debug_exit(void) { }
#endif

#endif /* _MM_HMM_INTERNAL_H */
