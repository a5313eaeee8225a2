#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Do the in-tree range tests give the same results before and after the import?
# Runs hmm-tests on the kernel as it is shipped and on the one with this project in it,
# and prints each test whose result differs.
#
# usage: [BASE=...] harness/range-check.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

# results FLAVOUR: "name result" of each test, run alone in a guest.
results() {
	run "$HARNESS/build.sh" "$1"
	HMM_FLAVOUR=$1 run "$HARNESS/boot.sh" test hmm-tests >/dev/null 2>"$OUT/$1/range.log" || :
	sed -nE 's/^(ok|not ok) [0-9]+ ([^ ]+)( # (SKIP).*)?/\2 \1 \4/p' "$OUT/$1/test/out.ktap" >"$OUT/$1/range.results"
	say "$1: $(tail -n 1 "$OUT/$1/range.log")"
	[[ -s $OUT/$1/range.results ]] || die "range-check: $1: no results; see $OUT/$1/range.log"
}

lock_out
results pristine
results debug
awk -f "$HARNESS/ktap.awk" "$OUT/debug/test/out.ktap" || :
diff "$OUT"/{pristine,debug}/range.results || die "range-check: results differ (< shipped, > imported)"
say "range-check: the same $(wc -l <"$OUT/debug/range.results") results before and after the import"
