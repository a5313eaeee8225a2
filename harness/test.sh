#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make test: KUnit and selftests in a guest; then, unless ARGS asks for less, those
# of this project once more on a kernel with another preemption model and with
# SRCU in its large form from the beginning. With RT=1, where there are no huge
# pages, only those of this project; with KCSAN=1, which is slow, those once. KTAP
# goes to stdout as it comes; the last line is "N passed, N failed, N skipped".
#
# usage: [BASE=...] [KCSAN=1|RT=1] [RUNS=N] [ARGS="[suite] arguments"] harness/test.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

status=0
streams=()

# boots NAME_AND_PARAMETERS ARGUMENT...
boots() {
	HMM_FLAVOUR=$flavour HMM_KERNEL=$1 run "$HARNESS/boot.sh" test "${@:2}" || status=1
	streams+=("$OUT/$flavour/${1%% *}/out.ktap")
}

choose_flavour
first=$ARGS
[[ ! $RT ]] || first=${ARGS:-own}
if [[ $KCSAN ]]; then
	first=${ARGS:=own}
	export HMM_LIMIT=${HMM_LIMIT:-1200}
fi
lock_out
run "$HARNESS/build.sh" "$flavour"
# shellcheck disable=SC2086 # words
boots "test hmm.runs=$RUNS" $first
# Whichever of the two models the kernel has: it ignores the other
[[ $ARGS ]] || boots "test-srcu hmm.runs=$RUNS srcutree.convert_to_big=1 preempt=none preempt=lazy" own
awk -f "$HARNESS/ktap.awk" -v bad="$status" "${streams[@]}" || status=1
exit "$status"
