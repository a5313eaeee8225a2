/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Heterogeneous memory management: devices that mirror an address space
 *
 * A driver embeds a struct hmm_device in what stands for its hardware and a
 * struct hmm_mirror in what stands for one address space on that hardware:
 *
 *	hmm_device_register(&gpu->hmm, &gpu_hmm_ops, "gpu0");
 *	...
 *	hmm_mirror_register(&context->mirror, &gpu->hmm, current->mm);
 *
 * HMM then calls ->release() exactly once, before the pages of the address space
 * are freed: when its last user goes (exit, exec, OOM kill), when the driver
 * unregisters the mirror, or when the device goes or fails, whichever comes first.
 * The driver stops the
 * device there. It frees the context in the line after hmm_mirror_unregister()
 * returned and the device in the line after hmm_device_unregister() returned 0:
 * whom of HMM there is to wait for, these have waited for.
 *
 * Page tables of the device are not handled here. They stand on
 * mmu_interval_notifier and hmm_range_fault(), which <linux/hmm_range.h> has.
 *
 * See Documentation/mm/hmm.rst for the life of each object.
 */
#ifndef _LINUX_HMM_DEVICE_H
#define _LINUX_HMM_DEVICE_H

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/llist.h>
#include <linux/lockdep.h>
#include <linux/refcount.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/workqueue.h>

struct hmm;
struct hmm_mirror;
struct mm_struct;

/**
 * enum hmm_release_reason - Why a mirror was released
 * @HMM_RELEASE_NONE: It was not: the mirror is live.
 * @HMM_RELEASE_MM_EXIT: The last user of the address space went: exit, exec or
 *	OOM kill.
 * @HMM_RELEASE_UNREGISTER: hmm_mirror_unregister() came first, or
 *	hmm_mirror_unregister_async().
 * @HMM_RELEASE_DEVICE_GONE: hmm_device_unplug().
 * @HMM_RELEASE_ERROR: hmm_mirror_kill(): the device failed this mirror.
 */
enum hmm_release_reason {
	HMM_RELEASE_NONE,
	HMM_RELEASE_MM_EXIT,
	HMM_RELEASE_UNREGISTER,
	HMM_RELEASE_DEVICE_GONE,
	HMM_RELEASE_ERROR,
};

/**
 * struct hmm_device_ops - What a driver does when HMM tells it to
 * @release: Stop the device: once this returns it accesses the address space of
 *	the mirror no more. Required. Called exactly once for each registration,
 *	never concurrently with itself for one mirror, and before any page of
 *	the address space is freed by its exit. hmm_mirror_release_reason() tells
 *	why. May sleep, wait for workers, take locks of the driver, and call
 *	hmm_mirror_unregister_async(), hmm_mirror_kill() and hmm_mirror_put().
 *	Those of several mirrors of one process or device run side by side. It
 *	runs in the task that exits or unregisters, or in a worker: do not use
 *	current->mm. Until it returns
 *	exit counts as an invalidation of the whole address space: it must not
 *	call mmu_interval_notifier_remove() for that, nor wait for anyone who
 *	does, or who calls mmu_interval_read_begin() without mm_users, nor for
 *	what its own interval notifiers do in a second pass of that invalidation.
 *	Nor may it, or who it waits for, drop mm_users of that address space by
 *	mmput(), which would wait for it: hmm_mirror_mm_put() and mmput_async()
 *	do not.
 * @free: The last reference to the mirror is gone, and HMM will not touch it
 *	again: free the memory. Needed for hmm_mirror_unregister_async();
 *	without it the memory belongs to the caller of hmm_mirror_unregister()
 *	again. Called once, after @release returned, in process context; may
 *	sleep. Best frees as its last act: work of a new mirror at the same
 *	address waits for this to return.
 *
 * HMM holds none of its locks over either callback. Neither may call
 * hmm_mirror_unregister(), hmm_device_unplug(), hmm_device_unregister() or
 * hmm_synchronize(), of whatever mirror or device: that would wait for the caller
 * itself. It is reported and refused.
 */
struct hmm_device_ops {
	void (*release)(struct hmm_mirror *mirror);
	void (*free)(struct hmm_mirror *mirror);
};

/**
 * struct hmm_device - One secondary MMU
 *
 * Embed it in the driver's device and zero it before the first registration.
 * All fields are private to mm/hmm.c.
 */
struct hmm_device {
	/* private: "Field protection" in mm/hmm.c */
	const struct hmm_device_ops *ops;
	const char *name;
	unsigned int state;
	unsigned int nr_registered;
	spinlock_t lock;		/* the lists, nr_registered, state */
	struct list_head mirrors;
	struct list_head released;
	struct list_head node;
	struct kref kref;
	struct completion *unused;
	struct lockdep_map callback_map;
};

/**
 * struct hmm_mirror - One address space, mirrored on one device
 *
 * Embed it in the driver's context and zero it before the first registration.
 * All fields are private to mm/hmm.c.
 */
struct hmm_mirror {
	/* private: "Field protection" in mm/hmm.c */
	struct hmm_device *device;
	struct mm_struct *mm;
	struct hmm __rcu *hmm;
	struct list_head node;
	struct list_head device_node;
	struct kref kref;
	refcount_t users;
	unsigned int registered;
	bool async;
	int step;
	int mm_pins;
	atomic_t due;
	enum hmm_release_reason reason;
	unsigned long unlink_gp;
	unsigned long since;
	struct completion released;
	struct completion *unused;
	struct llist_node lazy;
	struct work_struct work;
};

int __hmm_device_register(struct hmm_device *device,
			  const struct hmm_device_ops *ops, const char *name,
			  struct lock_class_key *key);

/**
 * hmm_device_register() - Let mirrors be registered on a device.
 * @device: Zeroed memory, or a device whose hmm_device_unregister() returned 0.
 * @ops: What to call; must stay until hmm_device_unregister() has returned 0.
 * @name: Names the device in reports; must stay as long as @ops.
 *
 * Once this returns 0, hmm_mirror_register() accepts @device. Each place that
 * calls this has a lockdep class of its own for the callbacks of its devices.
 *
 * Context: Process context. Does not sleep.
 * Return:
 * * 0 - @device is registered.
 * * %-EINVAL - @device, @ops, its release or @name is NULL, or @name is empty.
 * * %-EBUSY - @device is registered already; nothing was changed.
 * * %-ENODEV - HMM could not be set up at boot.
 */
#define hmm_device_register(device, ops, name)				\
({									\
	static struct lock_class_key __hmm_key;				\
									\
	__hmm_device_register(device, ops, name, &__hmm_key);		\
})

int hmm_device_unregister(struct hmm_device *device);
void hmm_device_unplug(struct hmm_device *device);

int hmm_mirror_register(struct hmm_mirror *mirror, struct hmm_device *device,
			struct mm_struct *mm);
void hmm_mirror_unregister(struct hmm_mirror *mirror);
void hmm_mirror_unregister_async(struct hmm_mirror *mirror);
void hmm_mirror_kill(struct hmm_mirror *mirror);
struct hmm_mirror *hmm_mirror_get(struct hmm_mirror *mirror);
void hmm_mirror_put(struct hmm_mirror *mirror);
struct hmm_mirror *hmm_mirror_find(struct hmm_device *device,
				   struct mm_struct *mm);
enum hmm_release_reason
hmm_mirror_release_reason(const struct hmm_mirror *mirror);
bool hmm_mirror_mm_get(struct hmm_mirror *mirror);
void hmm_mirror_mm_put(struct hmm_mirror *mirror);
void hmm_synchronize(void);

#endif /* _LINUX_HMM_DEVICE_H */
