#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make coverage: which lines and branches of the core and the dummy driver do KUnit,
# selftests and torture reach, in guests of a kernel with gcov? The report is
# out/$BASE/coverage/html, what is not reached of mm/hmm_device.c is named. Fails below 95 %
# of its lines or 85 % of its branches; the last line is "N passed, N failed, N skipped".
#
# usage: [BASE=...] harness/coverage.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

dir=$OUT/coverage
log=$dir/coverage.log
torture_seconds=60
traces=()
lcov=(lcov --quiet --rc lcov_branch_coverage=1)
# Branches of their own, most of them never taken, that these macros of the kernel have:
# not of the code that is looked at
lcov+=(--rc 'lcov_excl_br_line=flush_workqueue|for_each_possible_cpu|lockdep_assert_held')

# traced NAME "FILE..." ARGUMENT...: one boot, with what it reached of these as a trace
# file of lcov.
traced() {
	local name=$1 files=$2 file
	shift 2
	HMM_FLAVOUR=coverage HMM_KERNEL=$name run "$HARNESS/boot.sh" test "$@"
	rm -rf "$dir/data"
	mkdir -p "$dir/data"
	tar -xf "$dir/$name/data" -C "$dir/data" || die "coverage: $name: the guest sent no counts; see $dir/$name/console.log"
	for file in $files; do
		[[ -s $dir/data/${file##*/}.gcda ]] || die "coverage: $name: no counts of $file.c: was it built with gcov?"
		cp "$obj/$file.gcno" "$dir/data/"
	done
	"${lcov[@]}" --capture --directory "$dir/data" --output-file "$dir/$name.info" >>"$log" 2>&1 ||
		die "coverage: $name: lcov failed; the whole output is in $log"
	traces+=(--add-tracefile "$dir/$name.info")
}

report() {
	"${lcov[@]}" "${traces[@]}" --output-file "$dir/all.info"
	"${lcov[@]}" --extract "$dir/all.info" '*/mm/hmm_device.c' '*/lib/test_hmm_device.c' \
		--output-file "$dir/hmm.info"
	rm -rf "$dir/html"
	genhtml --quiet --branch-coverage --legend --title HMM --prefix "$tree" --output-directory "$dir/html" "$dir/hmm.info"
}

need lcov
lock_out
run "$HARNESS/build.sh" coverage
# As build.sh has named them
tree=$(cat "$dir/tree")
obj=$(cat "$dir/obj")
: >"$log"
traced test "mm/hmm_device lib/test_hmm_device" own
traced torture mm/hmm_device torture "$torture_seconds"
report >>"$log" 2>&1 || { tail -n 20 "$log" >&2; die "coverage: no report; the whole output is in $log"; }
awk -v root="$tree/" -v lines=95 -v branches=85 -v only=mm/hmm_device.c -f "$HARNESS/coverage.awk" "$dir/hmm.info"
