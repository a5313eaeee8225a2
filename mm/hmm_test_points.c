// SPDX-License-Identifier: GPL-2.0
/*
 * Test points of HMM, see include/linux/hmm_test.h
 */

#define pr_fmt(fmt) "hmm: " fmt

#include <linux/atomic.h>
#include <linux/cleanup.h>
#include <linux/export.h>
#include <linux/hmm_test.h>
#include <linux/lockdep.h>
#include <linux/spinlock.h>
#include <linux/srcu.h>
#include <linux/wait_bit.h>
#include <trace/events/hmm.h>

#include "hmm_internal.h"

#define HMM_TESTS	"hmm_bench,hmm_faults_kunit,hmm_kunit,"		\
			"hmm_lockdep_kunit,hmm_torture,test_hmm_device"

DEFINE_STATIC_SRCU(hmm_test_srcu);
static hmm_test_hook hmm_test_hook_fn;
static long hmm_counters[HMM_NR_COUNTERS];	/* hmm_lock */

/* A probe of this holds a register before its mirror can be found */
EXPORT_TRACEPOINT_SYMBOL_GPL(hmm_register);

void hmm_count(enum hmm_counter counter, int n)
{
	lockdep_assert_held(&hmm_lock);
	hmm_counters[counter] += n;
}

void hmm_point(enum hmm_test_point point, struct hmm_mirror *mirror)
{
	hmm_test_hook hook;

	guard(srcu)(&hmm_test_srcu);
	hook = READ_ONCE(hmm_test_hook_fn);
	if (hook)
		hook(point, mirror);
}

/**
 * hmm_test_set_hook() - Call a function at each test point.
 * @hook: The function.
 *
 * Context: Any context.
 * Return: 0, or %-EBUSY if another hook is set.
 */
int hmm_test_set_hook(hmm_test_hook hook)
{
	return cmpxchg(&hmm_test_hook_fn, NULL, hook) ? -EBUSY : 0;
}
EXPORT_SYMBOL_FOR_MODULES(hmm_test_set_hook, HMM_TESTS);

/**
 * hmm_test_clear_hook() - Stop calling the hook.
 *
 * Once this returns, the hook does not run and will not be called.
 *
 * Context: Process context. May sleep. No thread may be held in the hook.
 */
void hmm_test_clear_hook(void)
{
	WRITE_ONCE(hmm_test_hook_fn, NULL);
	synchronize_srcu(&hmm_test_srcu);
}
EXPORT_SYMBOL_FOR_MODULES(hmm_test_clear_hook, HMM_TESTS);

/**
 * hmm_test_quiesce() - Wait for removals of notifiers, and count objects.
 * @counts: Where to store the counts, or NULL.
 *
 * Context: Process context. May sleep.
 */
void hmm_test_quiesce(struct hmm_test_counts *counts)
{
	wait_var_event(&hmm_nr_dying, !READ_ONCE(hmm_nr_dying));
	guard(raw_spinlock_irqsave)(&hmm_lock);
	if (!counts)
		return;
	counts->devices = hmm_counters[HMM_COUNT_DEVICES];
	counts->mirrors = hmm_counters[HMM_COUNT_MIRRORS];
	counts->hmms = hmm_counters[HMM_COUNT_HMMS];
}
EXPORT_SYMBOL_FOR_MODULES(hmm_test_quiesce, HMM_TESTS);
