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

dir=$OUT/kunit
need bc binutils bison flex gcc libc6-dev make patch perl-base python3 rsync
lock_out
lock_base
mkdir -p "$dir"
key=$("$HARNESS/source.sh")
"$HARNESS/import.sh" "$key"
tree=$HMM_CACHE/tree/$key
obj=$HMM_CACHE/build/$key-uml
[[ -d $obj ]] || need_space 2
# kunit.py makes the last directory of its path, and no other
mkdir -p "${obj%/*}"

config=(--kunitconfig="$tree/mm/tests/.kunitconfig" --kunitconfig="$HARNESS/config/uml.config")
kernel=()
if grep -q '^config SMP' "$tree/arch/um/Kconfig"; then
	config+=(--kunitconfig="$HARNESS/config/uml-smp.config")
	kernel=(--kernel_args=seccomp=on --kernel_args=ncpus=2)
fi

kunit() {
	cd "$tree" && python3 tools/testing/kunit/kunit.py "$@"
}

build() {
	kunit build --build_dir="$obj" --jobs="$JOBS" "${config[@]}"
}

label="building Linux ${key#*_} (User Mode Linux)"
if ! try "$label" "$dir/build.log" build; then
	excerpt "$dir/build.log"
	if [[ ! -e $obj/.hmm-built ]] || ours_failed "$tree" "$dir/build.log"; then
		die "$label: failed; the whole output is in $dir/build.log"
	fi
	say "the build failed outside this project's files: the cached build may be damaged; building from scratch"
	rm -rf "$obj"
	step "$label" "$dir/build.log" build
fi
touch "$obj/.hmm-built"

# boot NAME FILTER: one boot of User Mode Linux; adds to status and streams.
boot() {
	local name=$1
	echo "# suite: $name" | tee "$dir/$name.ktap"
	# The parser of kunit.py knows less of a broken log than ours: it only relays.
	kunit exec --build_dir="$obj" --timeout=300 --raw_output=kunit "${kernel[@]}" "$2" \
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
for ((i = 1; i <= RUNS; i++)); do
	name=kunit
	((RUNS == 1)) || name+=-$i
	boot "$name" "${ARGS:-hmm}"
done
if [[ -z $ARGS ]]; then
	while read -r case; do
		boot "$case" "hmm_lockdep.$case"
	done < <(lockdep_cases)
fi
awk -v bad="$status" -f "$HARNESS/ktap.awk" "${streams[@]}"
