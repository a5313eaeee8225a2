/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM hmm

#if !defined(_TRACE_HMM_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_HMM_H

#include <linux/hmm_device.h>
#include <linux/string.h>
#include <linux/tracepoint.h>

/* Names are cut to this, so that every event has a fixed size */
#define HMM_TRACE_NAME_SIZE	32

TRACE_DEFINE_ENUM(HMM_RELEASE_MM_EXIT);
TRACE_DEFINE_ENUM(HMM_RELEASE_UNREGISTER);
TRACE_DEFINE_ENUM(HMM_RELEASE_DEVICE_GONE);
TRACE_DEFINE_ENUM(HMM_RELEASE_ERROR);

#define show_hmm_release_reason(reason)				\
	__print_symbolic(reason,				\
		{ HMM_RELEASE_MM_EXIT,		"mm-exit" },	\
		{ HMM_RELEASE_UNREGISTER,	"unregister" },	\
		{ HMM_RELEASE_DEVICE_GONE,	"device-gone" },	\
		{ HMM_RELEASE_ERROR,		"error" })

DECLARE_EVENT_CLASS(hmm_mirror,
	TP_PROTO(const char *device, const void *mirror, const void *mm),
	TP_ARGS(device, mirror, mm),
	TP_STRUCT__entry(
		__array(char, device, HMM_TRACE_NAME_SIZE)
		__field(const void *, mirror)
		__field(const void *, mm)
	),
	TP_fast_assign(
		strscpy_pad(__entry->device, device, HMM_TRACE_NAME_SIZE);
		__entry->mirror = mirror;
		__entry->mm = mm;
	),
	TP_printk("device=%s mirror=%p mm=%p", __entry->device,
		  __entry->mirror, __entry->mm)
);

DEFINE_EVENT(hmm_mirror, hmm_register,
	TP_PROTO(const char *device, const void *mirror, const void *mm),
	TP_ARGS(device, mirror, mm)
);

/* ->free() is next, or the return of hmm_mirror_unregister() */
DEFINE_EVENT(hmm_mirror, hmm_free,
	TP_PROTO(const char *device, const void *mirror, const void *mm),
	TP_ARGS(device, mirror, mm)
);

/* ->release() has returned */
TRACE_EVENT(hmm_release,
	TP_PROTO(const char *device, const void *mirror, const void *mm,
		 int reason, s64 duration_ns),
	TP_ARGS(device, mirror, mm, reason, duration_ns),
	TP_STRUCT__entry(
		__array(char, device, HMM_TRACE_NAME_SIZE)
		__field(const void *, mirror)
		__field(const void *, mm)
		__field(int, reason)
		__field(s64, duration_ns)
	),
	TP_fast_assign(
		strscpy_pad(__entry->device, device, HMM_TRACE_NAME_SIZE);
		__entry->mirror = mirror;
		__entry->mm = mm;
		__entry->reason = reason;
		__entry->duration_ns = duration_ns;
	),
	TP_printk("device=%s mirror=%p mm=%p reason=%s duration_ns=%lld",
		  __entry->device, __entry->mirror, __entry->mm,
		  show_hmm_release_reason(__entry->reason),
		  __entry->duration_ns)
);

/* Nobody else uses the mirror any more; or, after 0 ns, it is left to workers */
TRACE_EVENT(hmm_unregister,
	TP_PROTO(const char *device, const void *mirror, const void *mm,
		 s64 wait_ns),
	TP_ARGS(device, mirror, mm, wait_ns),
	TP_STRUCT__entry(
		__array(char, device, HMM_TRACE_NAME_SIZE)
		__field(const void *, mirror)
		__field(const void *, mm)
		__field(s64, wait_ns)
	),
	TP_fast_assign(
		strscpy_pad(__entry->device, device, HMM_TRACE_NAME_SIZE);
		__entry->mirror = mirror;
		__entry->mm = mm;
		__entry->wait_ns = wait_ns;
	),
	TP_printk("device=%s mirror=%p mm=%p wait_ns=%lld", __entry->device,
		  __entry->mirror, __entry->mm, __entry->wait_ns)
);

TRACE_EVENT(hmm_unplug,
	TP_PROTO(const char *device, unsigned int nr, s64 wait_ns),
	TP_ARGS(device, nr, wait_ns),
	TP_STRUCT__entry(
		__array(char, device, HMM_TRACE_NAME_SIZE)
		__field(unsigned int, nr)
		__field(s64, wait_ns)
	),
	TP_fast_assign(
		strscpy_pad(__entry->device, device, HMM_TRACE_NAME_SIZE);
		__entry->nr = nr;
		__entry->wait_ns = wait_ns;
	),
	TP_printk("device=%s mirrors=%u wait_ns=%lld", __entry->device,
		  __entry->nr, __entry->wait_ns)
);

#endif /* _TRACE_HMM_H */

#include <trace/define_trace.h>
