# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# Guests that misbehave, each in one way (job_selftest in harness/guest/init): the
# boot fails and says why.
#
# usage: sourced by harness/tests/run
# shellcheck disable=SC2154 # which sets work, checkout and said

selftest() {
	[[ -s $OUT/debug/bzImage ]] || "$HARNESS/build.sh" debug
	HMM_LIMIT=${HMM_LIMIT:-120} "$HARNESS/boot.sh" selftest "$1"
}

test_guest_good() {
	selftest good
	holds grep -qx 'ok 2 second' "$OUT/debug/selftest/out.ktap"
}

test_guest_hangs() {
	HMM_LIMIT=5 fails '^hmm: selftest: still running after 5 s; the guest ended without a verdict' selftest hang
}

test_guest_hangs_in_boot() {
	HMM_BOOT_LIMIT=1 fails '^hmm: selftest: no init within 1 s; ' selftest good
	holds grep -q 'booting again (2 of 2)' <<<"$said"
}

test_guest_oopses() {
	fails '^hmm: selftest: splat: .*(Oops|BUG|KASAN|general protection)' selftest oops
}

test_guest_panics() {
	fails '^hmm: selftest: splat: .*Kernel panic.* the guest ended without a verdict' selftest panic
}

test_guest_warns() {
	fails '^hmm: selftest: splat: WARNING: .*lkdtm_WARNING' selftest warning
}

test_guest_warns_as_expected() {
	selftest expected
}

test_guest_gives_no_verdict() {
	fails '^hmm: selftest: the guest ended without a verdict' selftest noverdict
}

test_guest_leaks() {
	fails '^hmm: selftest: splat: .*fail memory leaked \(kmemleak\)' selftest leak
}

test_guest_dies_before_init() {
	mkdir -p "$work/empty"
	(cd "$work/empty" && find . | cpio -o -H newc --quiet) >"$work/empty.cpio"
	HMM_INITRAMFS=$work/empty.cpio fails '^hmm: selftest: the guest died before init.*Kernel panic' selftest good
	holds grep -q 'booting again (2 of 2)' <<<"$said"
}

# Whoever is told to end takes the guest along.
test_guest_ends_with_its_command() {
	local command qemu
	[[ -s $OUT/debug/bzImage ]] || "$HARNESS/build.sh" debug
	rm -rf "$OUT/debug/selftest"
	# shellcheck disable=SC2016 # the inner shell expands
	bash -c '. "$1/lib.sh"; run "$1/boot.sh" selftest hang' - "$HARNESS" >"$work/hang" 2>&1 &
	command=$!
	holds grep -qm1 'ok 1 first' <(timeout 120 tail -n +1 -f --pid="$command" "$work/hang")
	qemu=$(pgrep -f "qemu.*$OUT/debug/selftest/console.log")
	kill "$command"
	fails '' wait "$command"
	holds timeout 10 tail -f --pid="$qemu" /dev/null
}
