# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# The cache may be cut short, damaged or shared: the next run mends it, and says so.
#
# usage: sourced by harness/tests/run
# shellcheck disable=SC2154 # which sets work and checkout

# Sets key: of the source in the cache.
cached_key() {
	key=$("$HARNESS/source.sh")
}

test_damaged_source_heals() {
	cached_key
	truncate -s 100 "$HMM_CACHE/pristine/$key/mm/memory.c"
	rm "$HMM_CACHE/pristine/$key/mm/rmap.c"
	"$HARNESS/source.sh" 2>&1 | tee "$work/source"
	holds grep -q 'is damaged; unpacking it again' "$work/source"
	holds test "$(stat -c %s "$HMM_CACHE/pristine/$key/mm/memory.c")" -gt 100
	holds test -s "$HMM_CACHE/pristine/$key/mm/rmap.c"
}

test_damaged_package_heals() {
	local deb
	[[ $BASE != kdir ]] || return 0
	cached_key
	for deb in "$HMM_CACHE"/debs/*; do truncate -s 1000 "$deb"; done
	rm "$HMM_CACHE/pristine/$key/COPYING"
	"$HARNESS/source.sh"
	holds test -s "$HMM_CACHE/pristine/$key/COPYING"
}

test_damaged_tree_heals() {
	cached_key
	"$HARNESS/import.sh" "$key"
	rm "$HMM_CACHE/tree/$key/mm/mlock.c"
	"$HARNESS/import.sh" "$key" 2>&1 | tee "$work/import"
	holds grep -q 'is not what it was; making it again' "$work/import"
	holds cmp "$HMM_CACHE/pristine/$key/mm/mlock.c" "$HMM_CACHE/tree/$key/mm/mlock.c"
}

# What an import wrote and this one does not is as it was; nothing else is touched.
test_import_takes_back() {
	cached_key
	copy import
	touch "$checkout/mm/leftover.h"
	echo mm/leftover.h mm/leftover.h >>"$checkout/harness/files"
	printf '\nmm/rmap.c after\n<#include <linux/mm.h>\n>#include <linux/leftover.h>\n' >>"$checkout/harness/hooks"
	"$checkout/harness/import.sh" "$key"
	holds test -e "$HMM_CACHE/tree/$key/mm/leftover.h"
	holds grep -q leftover "$HMM_CACHE/tree/$key/mm/rmap.c"
	touch "$work/before"
	"$HARNESS/import.sh" "$key"
	holds test ! -e "$HMM_CACHE/tree/$key/mm/leftover.h"
	holds cmp "$HMM_CACHE/pristine/$key/mm/rmap.c" "$HMM_CACHE/tree/$key/mm/rmap.c"
	holds test "$(find "$HMM_CACHE/tree/$key" -newer "$work/before" -type f | wc -l)" = 1
}

test_interrupted_build_heals() {
	"$HARNESS/build.sh" lint
	cached_key
	local obj=$HMM_CACHE/build/$key-lint
	touch "$obj/.hmm-building"
	: >"$obj/mm/hmm_device.o"
	printf 'half' >"$obj/scripts/mod/empty.o"
	"$HARNESS/build.sh" lint 2>&1 | tee "$work/interrupted"
	holds grep -q 'was cut short' "$work/interrupted"
	holds test "$(stat -c %s "$obj/scripts/mod/empty.o")" -gt 4
	holds test -s "$obj/mm/hmm_device.o"
}

test_damaged_build_heals() {
	"$HARNESS/build.sh" lint
	cached_key
	local obj=$HMM_CACHE/build/$key-lint
	truncate -s 100 "$obj/tools/objtool/objtool" "$obj/scripts/basic/fixdep"
	rm "$obj/mm/hmm_device.o"
	"$HARNESS/build.sh" lint 2>&1 | tee "$work/damaged"
	holds grep -q 'building from scratch' "$work/damaged"
	holds test -s "$obj/mm/hmm_device.o"
}

# Each of two checkouts gets its own kernel files, though they share the cache.
test_two_runs_at_once() {
	local one two
	copy one
	one=$checkout
	copy two
	two=$checkout
	unset HMM_LOCKS
	echo 'MODULE_INFO(checkout, "one");' >>"$one/mm/hmm.c"
	echo 'MODULE_INFO(checkout, "two");' >>"$two/mm/hmm.c"
	"$one/harness/build.sh" debug 2>"$work/one.said" &
	"$two/harness/build.sh" debug 2>"$work/two.said"
	wait $!
	cat "$work"/{one,two}.said
	holds grep -q 'waiting for another run' "$work"/{one,two}.said
	holds grep -qa checkout=one "$one/out/$BASE/debug/initramfs.cpio"
	holds grep -qa checkout=two "$two/out/$BASE/debug/initramfs.cpio"
	fails '' grep -qa checkout=two "$one/out/$BASE/debug/initramfs.cpio"
	fails '' grep -qa checkout=one "$two/out/$BASE/debug/initramfs.cpio"
}
