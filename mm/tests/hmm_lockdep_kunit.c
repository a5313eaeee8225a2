// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of what lockdep knows about HMM
 *
 * A driver that waits for callbacks under a lock that a callback needs deadlocks
 * one day, in a race. Lockdep has to say so each time, race or not: in none of
 * these cases the callback and the wait meet, and no lock is contended.
 *
 * The first report turns lockdep off, so each case needs a boot of its own; when
 * several are asked for, those after the first that reports are skipped.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <kunit/test.h>
#include <linux/anon_inodes.h>
#include <linux/debug_locks.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hmm_device.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

/* Where a page can be mapped in an empty mm */
#define SOME_ADDRESS	0x10000000UL

struct gpu {
	struct hmm_device hmm;
	struct mutex lock;		/* taken by ->release(), or its worker */
	struct workqueue_struct *wq;
	struct work_struct work;
	struct mmu_interval_notifier notifier;
	bool release_locks;
	bool release_flushes;
	bool release_removes;
	bool release_reads;
};

struct gpu_context {
	struct hmm_mirror mirror;
	struct gpu *gpu;
};

struct scene {
	struct gpu gpu;
	struct gpu_context context;
	struct gpu_context second;
	struct mm_struct *mm;
};

static void gpu_work(struct work_struct *work)
{
	struct gpu *gpu = container_of(work, struct gpu, work);

	mutex_lock(&gpu->lock);
	mutex_unlock(&gpu->lock);
}

static void gpu_release(struct hmm_mirror *mirror)
{
	struct gpu *gpu = container_of(mirror, struct gpu_context, mirror)->gpu;

	if (gpu->release_locks) {
		mutex_lock(&gpu->lock);
		mutex_unlock(&gpu->lock);
	}
	if (gpu->release_flushes) {
		queue_work(gpu->wq, &gpu->work);
		/* Not flush_work(): lockdep hears of that if it has to wait */
		flush_workqueue(gpu->wq);
	}
	if (gpu->release_reads)
		mmu_interval_read_begin(&gpu->notifier);
	if (gpu->release_removes)
		mmu_interval_notifier_remove(&gpu->notifier);
}

static void gpu_free(struct hmm_mirror *mirror)
{
}

static const struct hmm_device_ops gpu_ops = {
	.release = gpu_release,
};

static const struct hmm_device_ops gpu_free_ops = {
	.release = gpu_release,
	.free = gpu_free,
};

static struct scene *scene_new(struct kunit *test,
			       const struct hmm_device_ops *ops)
{
	struct scene *s = kunit_kzalloc(test, sizeof(*s), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, s);
	mutex_init(&s->gpu.lock);
	INIT_WORK(&s->gpu.work, gpu_work);
	s->gpu.wq = alloc_workqueue("hmm_lockdep_kunit", WQ_UNBOUND, 0);
	KUNIT_ASSERT_NOT_NULL(test, s->gpu.wq);
	s->context.gpu = &s->gpu;
	s->second.gpu = &s->gpu;
	s->mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, s->mm);
	KUNIT_ASSERT_EQ(test, hmm_device_register(&s->gpu.hmm, ops, "gpu"), 0);
	KUNIT_ASSERT_EQ(test, hmm_mirror_register(&s->context.mirror, &s->gpu.hmm,
						  s->mm), 0);
	return s;
}

static void scene_end(struct kunit *test, struct scene *s)
{
	hmm_synchronize();
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&s->gpu.hmm), 0);
	destroy_workqueue(s->gpu.wq);
	mmput(s->mm);
}

/* Lockdep has learned by now; this is what it has to find fault with. */
static void expect_report(const char *what)
{
	pr_info("hmm-test: expect-warning %s\n", what);
}

static void reported(struct kunit *test)
{
	pr_info("hmm-test: end-expect\n");
	KUNIT_EXPECT_FALSE(test, debug_locks);
}

#define CIRCULAR	"possible circular locking dependency"
#define RECURSIVE	"possible recursive locking"

/* No callback of this device ever took it: that one may has to be known. */
static void hmm_unregister_under_mmap_write_lock(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);

	expect_report(CIRCULAR);
	mmap_write_lock(s->mm);
	hmm_mirror_unregister(&s->context.mirror);
	mmap_write_unlock(s->mm);
	reported(test);
	scene_end(test, s);
}

static void hmm_unregister_under_mmap_read_lock(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);

	expect_report(CIRCULAR);
	mmap_read_lock(s->mm);
	hmm_mirror_unregister(&s->context.mirror);
	mmap_read_unlock(s->mm);
	reported(test);
	scene_end(test, s);
}

static void hmm_unplug_under_mmap_lock(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);

	expect_report(CIRCULAR);
	mmap_read_lock(s->mm);
	hmm_device_unplug(&s->gpu.hmm);
	mmap_read_unlock(s->mm);
	reported(test);
	hmm_mirror_unregister(&s->context.mirror);
	scene_end(test, s);
}

static void hmm_device_unregister_under_mmap_lock(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);

	hmm_mirror_unregister(&s->context.mirror);
	expect_report(CIRCULAR);
	mmap_read_lock(s->mm);
	KUNIT_EXPECT_EQ(test, hmm_device_unregister(&s->gpu.hmm), 0);
	mmap_read_unlock(s->mm);
	reported(test);
	destroy_workqueue(s->gpu.wq);
	mmput(s->mm);
}

static void hmm_synchronize_under_mmap_lock(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_free_ops);

	hmm_mirror_unregister_async(&s->context.mirror);
	expect_report(CIRCULAR);
	mmap_read_lock(s->mm);
	hmm_synchronize();
	mmap_read_unlock(s->mm);
	reported(test);
	scene_end(test, s);
}

/* It waits for callbacks of any device, so this one's lock counts. */
static void hmm_synchronize_under_a_lock_that_release_takes(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_free_ops);

	s->gpu.release_locks = true;
	hmm_mirror_unregister(&s->context.mirror);
	expect_report(CIRCULAR);
	mutex_lock(&s->gpu.lock);
	hmm_synchronize();
	mutex_unlock(&s->gpu.lock);
	reported(test);
	scene_end(test, s);
}

/* The release is over when the lock is taken: nothing would ever be seen. */
static void hmm_unregister_under_a_lock_that_release_takes(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);

	s->gpu.release_locks = true;
	hmm_device_unplug(&s->gpu.hmm);
	expect_report(CIRCULAR);
	mutex_lock(&s->gpu.lock);
	hmm_mirror_unregister(&s->context.mirror);
	mutex_unlock(&s->gpu.lock);
	reported(test);
	scene_end(test, s);
}

static void hmm_unregister_under_a_lock_of_a_flushed_worker(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);

	s->gpu.release_flushes = true;
	hmm_device_unplug(&s->gpu.hmm);
	expect_report(CIRCULAR);
	mutex_lock(&s->gpu.lock);
	hmm_mirror_unregister(&s->context.mirror);
	mutex_unlock(&s->gpu.lock);
	reported(test);
	scene_end(test, s);
}

static void gpu_vma_close(struct vm_area_struct *vma)
{
	struct scene *s = vma->vm_private_data;

	hmm_mirror_unregister(&s->context.mirror);
}

static const struct vm_operations_struct gpu_vm_ops = {
	.close = gpu_vma_close,
};

static int gpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_private_data = file->private_data;
	vma->vm_ops = &gpu_vm_ops;
	return 0;
}

static const struct file_operations gpu_fops = {
	.owner = THIS_MODULE,
	.mmap = gpu_mmap,
};

/* munmap() of what the driver mapped holds mmap_lock. */
static void hmm_unregister_in_a_vma_close(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);
	struct file *file;

	file = anon_inode_getfile("hmm_kunit", &gpu_fops, s, O_RDWR);
	KUNIT_ASSERT_FALSE(test, IS_ERR(file));
	s->mm->task_size = TASK_SIZE;
	kthread_use_mm(s->mm);
	KUNIT_EXPECT_EQ(test, vm_mmap(file, SOME_ADDRESS, PAGE_SIZE, PROT_READ,
				      MAP_SHARED | MAP_FIXED, 0), SOME_ADDRESS);
	expect_report(CIRCULAR);
	KUNIT_EXPECT_EQ(test, vm_munmap(SOME_ADDRESS, PAGE_SIZE), 0);
	reported(test);
	kthread_unuse_mm(s->mm);
	fput(file);
	/* A kernel thread leaves it to a worker, and the file keeps the module */
	flush_delayed_fput();
	scene_end(test, s);
}

/* Also the second mirror of an mm, which does not take it. */
static void hmm_register_under_mmap_lock(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);

	expect_report(CIRCULAR "|" RECURSIVE);
	mmap_read_lock(s->mm);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(&s->second.mirror, &s->gpu.hmm,
						  s->mm), 0);
	mmap_read_unlock(s->mm);
	reported(test);
	hmm_mirror_unregister(&s->second.mirror);
	hmm_mirror_unregister(&s->context.mirror);
	scene_end(test, s);
}

static bool gpu_invalidate(struct mmu_interval_notifier *notifier,
			   const struct mmu_notifier_range *range,
			   unsigned long cur_seq)
{
	mmu_interval_set_seq(notifier, cur_seq);
	return true;
}

static const struct mmu_interval_notifier_ops gpu_notifier_ops = {
	.invalidate = gpu_invalidate,
};

/*
 * At exit a ->release() that waits for the end of invalidations waits for itself:
 * exit is one. Elsewhere it works, and lockdep has to report it all the same.
 */
static struct scene *scene_new_with_notifier(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_ops);

	KUNIT_ASSERT_EQ(test, mmu_interval_notifier_insert(&s->gpu.notifier, s->mm,
							   SOME_ADDRESS,
							   PAGE_SIZE,
							   &gpu_notifier_ops), 0);
	return s;
}

static void hmm_release_removes_an_interval_notifier(struct kunit *test)
{
	struct scene *s = scene_new_with_notifier(test);

	s->gpu.release_removes = true;
	expect_report(CIRCULAR "|" RECURSIVE);
	hmm_mirror_unregister(&s->context.mirror);
	reported(test);
	scene_end(test, s);
}

static void hmm_release_begins_an_interval_read(struct kunit *test)
{
	struct scene *s = scene_new_with_notifier(test);

	s->gpu.release_reads = true;
	expect_report(CIRCULAR "|" RECURSIVE);
	hmm_mirror_unregister(&s->context.mirror);
	reported(test);
	mmu_interval_notifier_remove(&s->gpu.notifier);
	scene_end(test, s);
}

/* What is not misuse: lockdep has nothing to say, now or at the fence. */
static void hmm_calls_that_do_not_wait_are_quiet(struct kunit *test)
{
	struct scene *s = scene_new(test, &gpu_free_ops);
	struct hmm_mirror *second = &s->second.mirror;
	struct mm_struct *mm = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, mm);
	s->gpu.release_locks = true;
	s->gpu.release_flushes = true;
	hmm_mirror_kill(&s->context.mirror);
	hmm_synchronize();

	/* A register waits for no callback: not even for its own mirror's */
	mutex_lock(&s->gpu.lock);
	KUNIT_EXPECT_EQ(test, hmm_mirror_register(second, &s->gpu.hmm, mm), 0);
	mutex_unlock(&s->gpu.lock);

	mutex_lock(&s->gpu.lock);
	mmap_write_lock(mm);
	hmm_mirror_get(second);
	KUNIT_EXPECT_TRUE(test, hmm_mirror_mm_get(second));
	hmm_mirror_mm_put(second);
	KUNIT_EXPECT_PTR_EQ(test, hmm_mirror_find(&s->gpu.hmm, mm), second);
	hmm_mirror_put(second);
	hmm_mirror_kill(second);
	hmm_mirror_unregister_async(second);
	hmm_mirror_unregister_async(&s->context.mirror);
	hmm_mirror_put(second);
	mmap_write_unlock(mm);
	mutex_unlock(&s->gpu.lock);

	mmput(mm);
	scene_end(test, s);
	KUNIT_EXPECT_TRUE(test, debug_locks);
}

static int hmm_lockdep_init(struct kunit *test)
{
	if (!debug_locks)
		kunit_skip(test, "lockdep has reported before: one case a boot");
	return 0;
}

static struct kunit_case hmm_lockdep_cases[] = {
	KUNIT_CASE(hmm_calls_that_do_not_wait_are_quiet),
	KUNIT_CASE(hmm_unregister_under_mmap_write_lock),
	KUNIT_CASE(hmm_unregister_under_mmap_read_lock),
	KUNIT_CASE(hmm_unplug_under_mmap_lock),
	KUNIT_CASE(hmm_device_unregister_under_mmap_lock),
	KUNIT_CASE(hmm_synchronize_under_mmap_lock),
	KUNIT_CASE(hmm_synchronize_under_a_lock_that_release_takes),
	KUNIT_CASE(hmm_unregister_under_a_lock_that_release_takes),
	KUNIT_CASE(hmm_unregister_under_a_lock_of_a_flushed_worker),
	KUNIT_CASE(hmm_unregister_in_a_vma_close),
	KUNIT_CASE(hmm_register_under_mmap_lock),
	KUNIT_CASE(hmm_release_removes_an_interval_notifier),
	KUNIT_CASE(hmm_release_begins_an_interval_read),
	{}
};

static struct kunit_suite hmm_lockdep_suite = {
	.name = "hmm_lockdep",
	.init = hmm_lockdep_init,
	.test_cases = hmm_lockdep_cases,
};

kunit_test_suite(hmm_lockdep_suite);

/* mm_alloc() */
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
MODULE_DESCRIPTION("KUnit tests of what lockdep knows about HMM");
MODULE_LICENSE("GPL");
