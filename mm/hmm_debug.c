// SPDX-License-Identifier: GPL-2.0
/*
 * Debugging of HMM: debugfs, and a report of callbacks that take long
 *
 * /sys/kernel/debug/hmm/ has the registered devices, the mirrors, also those
 * that are released but not yet freed, and the callbacks in progress.
 */

#define pr_fmt(fmt) "hmm: " fmt

#include <linux/cleanup.h>
#include <linux/debugfs.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/rculist.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "hmm_internal.h"

static unsigned int report_seconds = 20;
module_param(report_seconds, uint, 0644);
MODULE_PARM_DESC(report_seconds,
		 "Seconds after which a callback in progress is reported");

/*
 * Written under hmm_lock; walked by a lookup, for which HMM waits before it
 * frees
 */
static LIST_HEAD(hmm_debug_devices);
static LIST_HEAD(hmm_debug_mirrors);
static DEFINE_SPINLOCK(hmm_debug_callback_lock);
static LIST_HEAD(hmm_debug_callbacks);		/* hmm_debug_callback_lock */
static struct dentry *hmm_debugfs;

static const char * const hmm_reasons[] = {
	[HMM_RELEASE_NONE] = "none",
	[HMM_RELEASE_MM_EXIT] = "mm-exit",
	[HMM_RELEASE_UNREGISTER] = "unregister",
	[HMM_RELEASE_DEVICE_GONE] = "device-gone",
	[HMM_RELEASE_ERROR] = "error",
};

void hmm_debug_device_add(struct hmm_device *device)
{
	lockdep_assert_held(&hmm_lock);
	list_add_tail_rcu(&device->debug_node, &hmm_debug_devices);
}

void hmm_debug_device_del(struct hmm_device *device)
{
	lockdep_assert_held(&hmm_lock);
	list_del_rcu(&device->debug_node);
}

void hmm_debug_mirror_add(struct hmm_mirror *mirror)
{
	lockdep_assert_held(&hmm_lock);
	mirror->debug_since = jiffies;
	list_add_tail_rcu(&mirror->debug_node, &hmm_debug_mirrors);
}

void hmm_debug_mirror_del(struct hmm_mirror *mirror)
{
	guard(raw_spinlock_irqsave)(&hmm_lock);
	list_del_rcu(&mirror->debug_node);
}

static unsigned long hmm_debug_period(void)
{
	return clamp(READ_ONCE(report_seconds), 1U, 3600U) * HZ;
}

static const char *hmm_debug_name(struct hmm_callback *callback)
{
	return callback->device ? callback->device->name : "(a freed device)";
}

/* Runs each second while there are callbacks, and reports each of them once. */
static void hmm_debug_watch_fn(struct work_struct *work)
{
	struct hmm_callback *callback;
	unsigned long age;

	guard(spinlock)(&hmm_debug_callback_lock);
	list_for_each_entry(callback, &hmm_debug_callbacks, debug_node) {
		age = jiffies - callback->debug_start;
		if (callback->debug_reported || age < hmm_debug_period())
			continue;
		callback->debug_reported = true;
		pr_warn("%s: a callback in %s[%d] has not returned for %lu seconds\n",
			hmm_debug_name(callback), callback->task->comm,
			task_pid_nr(callback->task), age / HZ);
	}
	if (!list_empty(&hmm_debug_callbacks))
		schedule_delayed_work(to_delayed_work(work), HZ);
}

static DECLARE_DELAYED_WORK(hmm_debug_watch, hmm_debug_watch_fn);

void hmm_debug_callback_add(struct hmm_callback *callback)
{
	callback->debug_start = jiffies;
	callback->debug_reported = false;
	scoped_guard(spinlock, &hmm_debug_callback_lock)
		list_add_tail(&callback->debug_node, &hmm_debug_callbacks);
	schedule_delayed_work(&hmm_debug_watch, HZ);
}

void hmm_debug_callback_del(struct hmm_callback *callback)
{
	guard(spinlock)(&hmm_debug_callback_lock);
	list_del(&callback->debug_node);
}

static int hmm_debugfs_devices_show(struct seq_file *m, void *unused)
{
	struct hmm_device *device;
	int idx = hmm_lookup_begin();

	seq_puts(m, "device registered unreleased references\n");
	list_for_each_entry_rcu(device, &hmm_debug_devices, debug_node, true)
		seq_printf(m, "%s %u %u %u\n", device->name,
			   /* a snapshot is good enough */
			   data_race(device->nr_registered),
			   READ_ONCE(device->unreleased.nr),
			   kref_read(&device->kref));
	hmm_lookup_end(idx);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(hmm_debugfs_devices);

/*
 * The states in which a mirror stays; a release that was claimed is as good as
 * started
 */
static const char *hmm_debug_state(struct hmm_mirror *mirror)
{
	/* A snapshot is good enough */
	if (data_race(mirror->released))
		return "released";
	return hmm_mirror_release_reason(mirror) ? "releasing" : "live";
}

static int hmm_debugfs_mirrors_show(struct seq_file *m, void *unused)
{
	struct hmm_mirror *mirror;
	int idx = hmm_lookup_begin();

	seq_puts(m, "device mirror mm registration state reason references age_s\n");
	list_for_each_entry_rcu(mirror, &hmm_debug_mirrors, debug_node, true)
		seq_printf(m, "%s %p %p %s %s %s %u %lu\n",
			   mirror->device->name, mirror, mirror->mm,
			   /* a snapshot is good enough */
			   data_race(mirror->registered) ? "registered" :
							   "unregistered",
			   hmm_debug_state(mirror),
			   hmm_reasons[hmm_mirror_release_reason(mirror)],
			   kref_read(&mirror->kref),
			   (jiffies - mirror->debug_since) / HZ);
	hmm_lookup_end(idx);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(hmm_debugfs_mirrors);

static int hmm_debugfs_callbacks_show(struct seq_file *m, void *unused)
{
	struct hmm_callback *callback;

	seq_puts(m, "device task pid age_s\n");
	guard(spinlock)(&hmm_debug_callback_lock);
	list_for_each_entry(callback, &hmm_debug_callbacks, debug_node)
		seq_printf(m, "%s %s %d %lu\n", hmm_debug_name(callback),
			   callback->task->comm, task_pid_nr(callback->task),
			   (jiffies - callback->debug_start) / HZ);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(hmm_debugfs_callbacks);

void __init hmm_debug_init(void)
{
	hmm_debugfs = debugfs_create_dir("hmm", NULL);
	debugfs_create_file("devices", 0400, hmm_debugfs, NULL,
			    &hmm_debugfs_devices_fops);
	debugfs_create_file("mirrors", 0400, hmm_debugfs, NULL,
			    &hmm_debugfs_mirrors_fops);
	debugfs_create_file("callbacks", 0400, hmm_debugfs, NULL,
			    &hmm_debugfs_callbacks_fops);
}

/* No callback runs any more, so the watch does not schedule itself again. */
void hmm_debug_exit(void)
{
	debugfs_remove_recursive(hmm_debugfs);
	cancel_delayed_work_sync(&hmm_debug_watch);
}
