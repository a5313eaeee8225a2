#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make kunit: the KUnit suites under User Mode Linux, by the kernel's own kunit.py,
# with KASAN and lockdep, on two CPUs where the kernel can. KTAP goes to stdout;
# the last line is "N passed, N failed, N skipped".
#
# usage: [BASE=...] [RUNS=N] [ARGS="filter glob"] harness/kunit.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"
# shellcheck source=uml.sh
. "${BASH_SOURCE[0]%/*}/uml.sh"

dir=$OUT/kunit
lock_out
uml_source
uml_build kunit "$dir" "$tree/mm/tests/.kunitconfig" "$HARNESS/config/uml.config"

# boot NAME FILTER: one boot of User Mode Linux; adds to status and streams.
boot() {
	local name=$1
	echo "# suite: $name" | tee "$dir/$name.ktap"
	# The parser of kunit.py knows less of a broken log than ours: it only relays.
	uml_kunit exec --build_dir="$obj" --timeout=300 --raw_output=kunit \
		--kernel_args=hmm_core.report_seconds=300 "${parameters[@]/#/--kernel_args=}" "$2" \
		2>"$dir/$name.log" | tee -a "$dir/$name.ktap" || status=1
	mv "$obj/test.log" "$dir/$name.console"
	# User Mode Linux warns of itself (no PCI) before the tests begin.
	if ! awk -v from='^KTAP version' -f "$HARNESS/splats.awk" "$HARNESS/splats" "$dir/$name.console" >"$dir/$name.splats"; then
		cat "$dir/$name.splats" >&2
		say "kunit: $name: $(grep -m 1 '^splat' "$dir/$name.splats"); the console is in $dir/$name.console"
		status=1
	fi
	streams+=("$dir/$name.ktap")
}

# Those of lockdep one by one: its first report turns it off.
lockdep_cases() {
	sed -n 's/^\tKUNIT_CASE(\(.*\)),$/\1/p' "$tree/mm/tests/hmm_lockdep_kunit.c"
}

status=0
streams=()
# A boot for each suite: what warns once warns in each.
suites=(hmm hmm_faults)
[[ -z $ARGS ]] || suites=("$ARGS")
for ((i = 1; i <= RUNS; i++)); do
	for suite in "${suites[@]}"; do
		name=kunit
		[[ $suite != hmm_faults ]] || name=faults
		((RUNS == 1)) || name+=-$i
		boot "$name" "$suite"
	done
done
if [[ -z $ARGS ]]; then
	while read -r case; do
		boot "$case" "hmm_lockdep.$case"
	done < <(lockdep_cases)
fi
awk -v bad="$status" -f "$HARNESS/ktap.awk" "${streams[@]}"
