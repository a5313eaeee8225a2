/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the kernel files of this project take for granted, and an older kernel lacks.
 *
 * Included before each of them by the compiler (-include): by Kbuild beside this, and
 * where the project is imported into such a kernel. 7.0 has all of it, and stable kernels
 * have taken over parts. The oldest that is supported is 6.1, with the linux/cleanup.h
 * of its later stable releases.
 */

#ifndef HMM_COMPAT_H
#define HMM_COMPAT_H

#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 0, 0)

#include <linux/export.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/slab.h>

/* Each file that prints defines its own, before it includes anything */
#undef pr_fmt

#ifndef EXPORT_SYMBOL_FOR_MODULES
#define EXPORT_SYMBOL_FOR_MODULES(sym, mods)	EXPORT_SYMBOL_GPL(sym)
#endif

/* It took a token until 6.13 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
#undef MODULE_IMPORT_NS
#define MODULE_IMPORT_NS(ns)	MODULE_INFO(import_ns, ns)
#define hrtimer_setup(timer, fn, clock, mode)				\
	do {								\
		hrtimer_init(timer, clock, mode);			\
		(timer)->function = (fn);				\
	} while (0)
#endif

/* Not by #ifndef, which would need kunit/test.h here: since 6.6 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
#define KUNIT_CASE_SLOW(test_name)	KUNIT_CASE(test_name)
#endif

#ifndef default_gfp
#define __hmm_default_gfp(a, b, ...)	b
#define default_gfp(...)	__hmm_default_gfp(, ##__VA_ARGS__, GFP_KERNEL)
#endif

#ifndef kzalloc_obj
#define kzalloc_objs(P, COUNT, ...)					\
	((typeof(P) *)kzalloc(size_mul(sizeof(typeof(P)), COUNT),	\
			      default_gfp(__VA_ARGS__)))
#define kzalloc_obj(P, ...)	kzalloc_objs(P, 1, ##__VA_ARGS__)
#define kvzalloc_obj(P, ...)						\
	((typeof(P) *)kvzalloc(sizeof(typeof(P)), default_gfp(__VA_ARGS__)))
#endif

/* Context analysis, which such a kernel has no compiler do */
#ifndef __guarded_by
#define __guarded_by(...)
#endif
#ifndef __pt_guarded_by
#define __pt_guarded_by(...)
#endif
#ifndef __must_hold_shared
#define __must_hold_shared(...)
#endif
#ifndef __must_not_hold
#define __must_not_hold(...)
#endif
#ifndef __acquires_shared
#define __acquires_shared(...)
#endif
#ifndef __releases_shared
#define __releases_shared(...)
#endif
#ifndef __no_context_analysis
#define __no_context_analysis
#endif
#ifndef __context_unsafe
#define __context_unsafe(comment)	__no_context_analysis
#endif
#ifndef context_unsafe
#define context_unsafe(...)	({ __VA_ARGS__; })
#endif
#ifndef disable_context_analysis
#define disable_context_analysis()
#define enable_context_analysis()
#endif

#endif
#endif /* HMM_COMPAT_H */
