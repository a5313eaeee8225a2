/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Range faulting, out of tree: the kernel's own header, by the name that it has where
 * HMM is in the tree. This directory comes first, so that <linux/hmm.h> is ours; the
 * next one of that name is the kernel's.
 */
#if __has_include_next(<linux/hmm_range.h>)
#error "this kernel has HMM in its tree: use that, by CONFIG_HMM"
#endif

#include_next <linux/hmm.h>
