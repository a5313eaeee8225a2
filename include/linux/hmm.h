/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Heterogeneous memory management: devices that mirror an address space
 *
 * A driver embeds a struct hmm_device in its device and a struct hmm_mirror in
 * its per-process context:
 *
 *	hmm_device_register(&gpu->hmm, &gpu_hmm_ops, dev_name(gpu->dev)); ...
 *	hmm_mirror_register(&context->mirror, &gpu->hmm, current->mm);
 *
 * HMM then calls ->release() exactly once, before any page of the address space
 * is freed: when the process exits, when the driver unregisters the mirror, or
 * when the device is unplugged or fails, whichever comes first. The driver
 * stops the device there. It may free the context in the line after
 * hmm_mirror_unregister() and the device in the line after a successful
 * hmm_device_unregister(): both have waited for every use of the object by HMM.
 *
 * Documentation/mm/hmm-device.rst describes the life of each object.
 */
#ifndef _LINUX_HMM_DEVICE_H
#define _LINUX_HMM_DEVICE_H

#include <linux/compiler_types.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/lockdep_types.h>
#include <linux/mm_types.h>
#include <linux/sched.h>
#include <linux/types.h>
#include <linux/workqueue.h>

struct completion;
struct hmm;
struct hmm_device;
struct hmm_mirror;

/**
 * enum hmm_release_reason - Why a mirror was released
 * @HMM_RELEASE_NONE: The mirror has not been released.
 * @HMM_RELEASE_MM_EXIT: The address space lost its last user: exit, exec or OOM
 *	kill.
 * @HMM_RELEASE_UNREGISTER: The driver called hmm_mirror_unregister() or
 *	hmm_mirror_unregister_async().
 * @HMM_RELEASE_DEVICE_GONE: The driver called hmm_device_unplug().
 * @HMM_RELEASE_ERROR: The driver called hmm_mirror_kill().
 */
enum hmm_release_reason {
	HMM_RELEASE_NONE,
	HMM_RELEASE_MM_EXIT,
	HMM_RELEASE_UNREGISTER,
	HMM_RELEASE_DEVICE_GONE,
	HMM_RELEASE_ERROR,
};

/**
 * struct hmm_device_ops - Callbacks of a driver
 * @release: Stop the device. Once this returns, the device must not access the
 *	address space of the mirror any more. Required. HMM calls it exactly
 *	once for each registration and, at mm exit, before any page is freed.
 *	hmm_mirror_release_reason() tells why. It may sleep, wait for workers,
 *	take locks of the driver and call hmm_mirror_unregister_async(),
 *	hmm_mirror_kill() and hmm_mirror_put(). The releases of several mirrors
 *	of one process or device run concurrently. It runs in the exiting task,
 *	in the caller of hmm_mirror_unregister() or hmm_device_unplug(), or in a
 *	worker, so it must not use current->mm.
 * @free: HMM does not touch the mirror any more: free the memory. Required for
 *	hmm_mirror_unregister_async(). Without it, the memory belongs to the
 *	caller of hmm_mirror_unregister(). HMM calls it once, after @release has
 *	returned and the last reference is dropped, in process context. It may
 *	sleep.
 * @device_free: HMM does not touch the device any more: free the memory.
 *	Required for hmm_device_unregister_async(). HMM calls it once, after
 *	every other callback of the device has returned, in process context: in
 *	the worker that called the last @free, or in the caller of
 *	hmm_mirror_unregister(), hmm_device_unplug(), hmm_mirror_register() or
 *	hmm_device_unregister_async() itself. It may sleep.
 *
 * HMM holds no lock over a callback. A callback must not call
 * hmm_mirror_unregister(), hmm_device_unplug(), hmm_device_unregister() or
 * hmm_synchronize(), for any mirror or device, because the call would wait for
 * the callback. HMM refuses the call and warns.
 *
 * At mm exit, @release runs inside an invalidation of the whole address space.
 * So, for whatever reason it is called, it must not call
 * mmu_interval_notifier_remove() or mmu_interval_read_begin(), nor
 * hmm_mirror_register() for an address space that has no mirror yet (lockdep
 * reports all of these), and must not wait for a thread that does so without
 * holding mm_users.
 *
 * If exit does not call @release, HMM holds mm_users around it. So @release may
 * wait for a worker that ends with mmput(). But if that mmput() is the last one
 * at another time, it runs exit, and thereby @release, in that worker. So a
 * worker that @release waits for calls helpers which end with mmput() between
 * hmm_mirror_mm_get() and hmm_mirror_mm_put().
 */
struct hmm_device_ops {
	void (*release)(struct hmm_mirror *mirror);
	void (*free)(struct hmm_mirror *mirror);
	void (*device_free)(struct hmm_device *device);
};

/* private: mirrors of one mm or of one device that have yet to be released */
struct hmm_release_list {
	struct list_head mirrors;
	struct hmm_mirror *ahead;
	unsigned int nr;
	u8 by;
};

/**
 * struct hmm_device - One secondary MMU
 *
 * Embed it in the driver's device and zero it before the first registration.
 * All fields are private to HMM.
 */
struct hmm_device {
	/* private: "Fields" in mm/hmm_device.c says what protects them */
	const struct hmm_device_ops *ops;
	const char *name;
	unsigned int state;
	unsigned int nr_registered;
	struct hmm_release_list unreleased;
	struct kref kref;
	struct completion *done;
	struct lockdep_map callback_map;
#ifdef CONFIG_HMM_DEBUG
	struct list_head debug_node;
#endif
};

/**
 * struct hmm_mirror - One address space, mirrored on one device
 *
 * Embed it in the driver's context and zero it before the first registration.
 * All fields are private to HMM.
 */
struct hmm_mirror {
	/* private: "Fields" in mm/hmm_device.c says what protects them */
	struct hmm_device *device;
	struct mm_struct *mm;
	struct hmm *hmm;
	struct hmm_release_list *list[2];
	struct list_head node[2];
	struct list_head deferred_node;
	struct kref kref;
	enum hmm_release_reason reason;
	u8 reserved;
	u8 registered;
	u8 started;
	u8 released;
	u8 queued;
	u8 pending;
	struct completion *done;
	struct work_struct work;
#ifdef CONFIG_HMM_DEBUG
	struct list_head debug_node;
	unsigned long debug_since;
#endif
};

int __must_check __hmm_device_register(struct hmm_device *device,
				       const struct hmm_device_ops *ops,
				       const char *name,
				       struct lock_class_key *key);

/**
 * hmm_device_register() - Register a device so that it can mirror address
 * spaces.
 * @device: Zeroed memory, or a device whose registration has ended.
 * @ops: Callbacks; must stay valid until the registration has ended.
 * @name: Name of the device in reports. HMM copies it.
 *
 * Once this returns 0, hmm_mirror_register() accepts @device. The callbacks of
 * all devices that are registered by one call site share a lockdep class.
 *
 * Context: Process context. May sleep.
 * Return:
 * * 0 - @device is registered.
 * * %-EINVAL - @device, @ops, its release or @name is NULL, or @name is empty.
 * * %-EBUSY - @device is registered already; nothing has changed.
 * * %-ENOMEM - No memory.
 */
#define hmm_device_register(device, ops, name)				\
({									\
	static struct lock_class_key __hmm_key;				\
									\
	__hmm_device_register(device, ops, name, &__hmm_key);		\
})

int __must_check hmm_device_unregister(struct hmm_device *device);
void hmm_device_unregister_async(struct hmm_device *device);
void hmm_device_unplug(struct hmm_device *device);

int __must_check hmm_mirror_register(struct hmm_mirror *mirror,
				     struct hmm_device *device,
				     struct mm_struct *mm);
void hmm_mirror_unregister(struct hmm_mirror *mirror);
void hmm_mirror_unregister_async(struct hmm_mirror *mirror);
void hmm_mirror_kill(struct hmm_mirror *mirror);
void hmm_mirror_put(struct hmm_mirror *mirror);
struct hmm_mirror * __must_check hmm_mirror_find(struct hmm_device *device,
						 struct mm_struct *mm);
struct mm_struct * __must_check hmm_mirror_mm_get(struct hmm_mirror *mirror);
void hmm_mirror_mm_put(struct hmm_mirror *mirror);
void hmm_synchronize(void);

/**
 * hmm_mirror_get() - Take a reference on a mirror.
 * @mirror: A mirror that the caller has a reference on, or that is registered
 *	and cannot be unregistered meanwhile.
 *
 * Until hmm_mirror_put() drops the reference, hmm_mirror_unregister() does not
 * return, ->free() is not called and the memory of @mirror stays. A reference
 * does not prevent the release.
 *
 * Context: Any context but NMI.
 * Return: @mirror.
 */
static inline struct hmm_mirror *hmm_mirror_get(struct hmm_mirror *mirror)
{
	kref_get(&mirror->kref);
	return mirror;
}

/**
 * hmm_mirror_release_reason() - Why a mirror was released.
 * @mirror: A mirror that is registered, that the caller has a reference on, or
 *	that was unregistered and is still allocated.
 *
 * The reason is set before ->release() is called and stays until the mirror is
 * registered again.
 *
 * Context: Any context.
 * Return: The reason, or %HMM_RELEASE_NONE if the release has not begun.
 */
static inline enum hmm_release_reason
hmm_mirror_release_reason(const struct hmm_mirror *mirror)
{
	return READ_ONCE(mirror->reason);
}

/**
 * hmm_mirror_device() - The device of a mirror.
 * @mirror: A mirror that is registered, or that the caller has a reference on,
 *	or the argument of a callback.
 *
 * Context: Any context.
 * Return: The device, which stays at least as long as @mirror.
 */
static inline struct hmm_device *
hmm_mirror_device(const struct hmm_mirror *mirror)
{
	return mirror->device;
}

/**
 * hmm_mirror_is_current() - Does the caller belong to a mirrored address space?
 * @mirror: A mirror that is registered, or that the caller has a reference on,
 *	or the argument of a callback.
 *
 * Context: Any context.
 * Return: Whether current->mm is the address space of @mirror.
 */
static inline bool hmm_mirror_is_current(const struct hmm_mirror *mirror)
{
	return mirror->mm == current->mm;
}

/**
 * hmm_mirror_error() - Error code for a call that needs a live mirror.
 * @mirror: A mirror that is registered, or that the caller has a reference on.
 *
 * Context: Any context.
 * Return:
 * * 0 - The release has not begun.
 * * %-ESRCH - The address space has exited.
 * * %-ENODEV - The device is unplugged, or the mirror was unregistered.
 * * %-EIO - hmm_mirror_kill() has released the mirror.
 */
static inline int hmm_mirror_error(const struct hmm_mirror *mirror)
{
	switch (hmm_mirror_release_reason(mirror)) {
	case HMM_RELEASE_NONE:
		return atomic_read(&mirror->mm->mm_users) ? 0 : -ESRCH;
	case HMM_RELEASE_MM_EXIT:
		return -ESRCH;
	case HMM_RELEASE_ERROR:
		return -EIO;
	default:
		return -ENODEV;
	}
}

#endif /* _LINUX_HMM_DEVICE_H */
