/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Included before a selftest: under an emulated CPU, with KASAN, the 30 s that
 * the kselftest harness gives each test are too few.
 */
#include <kselftest_harness.h>

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 240
