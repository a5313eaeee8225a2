#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make torture: random operations on HMM for MINUTES. First in User Mode Linux, where
# BASE has it with two CPUs: kernel threads, with KASAN and lockdep. Then in QEMU, on
# the debug kernel or with KCSAN=1 on the one that looks for data races: kernel threads
# and processes in turn. SEED=N makes the same choices again, ARGS=uml or ARGS=qemu
# leaves the other out. The last line is "N passed, N failed, N skipped".
#
# usage: [BASE=...] [KCSAN=1] [MINUTES=N] [SEED=N] [ARGS=uml|qemu] harness/torture.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"
# shellcheck source=uml.sh
. "$HARNESS/uml.sh"

choose_seed
[[ $ARGS =~ ^(uml|qemu|)$ ]] || die "ARGS=$ARGS: torture takes uml or qemu"

dir=$OUT/torture
status=0
streams=()

# shellcheck disable=SC2317 # try calls it
uml_boot() {
	exec timeout -k 5 $((minutes * 60 + 180)) "$obj/linux" mem=1G console=tty earlyprintk "${parameters[@]}" \
		root=/dev/none rootwait kunit.enable=0 panic=-1 oops=panic panic_on_warn=1 \
		hmm_torture.seed="$seed" hmm_torture.seconds=$((minutes * 60)) hmm_torture.shutdown=1
}

# No user space: the kernel waits for a root that never comes, and powers off
# when the test ends, which the first error does.
uml() {
	local result=ok console=$dir/uml.console line
	echo "# suite: torture-uml"
	printf 'TAP version 13\n1..1\n'
	if [[ $KCSAN ]]; then
		echo "ok 1 kernel # SKIP KCSAN does not run in User Mode Linux"
		return
	fi
	uml_source
	if [[ ! $smp ]]; then
		echo "ok 1 kernel # SKIP User Mode Linux of this kernel has one CPU; with BASE=latest it has two"
		return
	fi
	uml_build kunit "$dir" "$tree/mm/tests/.kunitconfig" "$HARNESS/config/uml.config"
	try "torture in User Mode Linux" "$console" uml_boot || result="not ok"
	line=$(grep -o 'hmm_torture: --- End of test: .*' "$console") || line="hmm_torture: no verdict"
	echo "# $line"
	[[ $line == *' SUCCESS: '* ]] || result="not ok"
	# It warns of itself (no PCI) before the test begins
	if ! awk -v from='^hmm_torture: --- Start of test' -f "$HARNESS/splats.awk" "$HARNESS/splats" "$console" >"$dir/uml.splats"; then
		cat "$dir/uml.splats" >&2
		say "torture: $(grep -m 1 '^splat' "$dir/uml.splats"); the console is in $console"
		result="not ok"
	fi
	echo "$result 1 kernel seed $seed"
}

qemu() {
	local boot=torture
	run "$HARNESS/build.sh" "$flavour"
	# A data race in the rest of the kernel is no reason to stop
	[[ $KCSAN ]] || boot+=" panic_on_warn=1"
	HMM_FLAVOUR=$flavour HMM_KERNEL=$boot HMM_LIMIT=$((minutes * 240 + 600)) \
		run "$HARNESS/boot.sh" torture "$seed" "$minutes" || status=1
	streams+=("$OUT/$flavour/torture/out.ktap")
}

choose_flavour
lock_out
mkdir -p "$dir"
echo "# seed $seed; the same again: make torture MINUTES=$minutes SEED=$seed BASE=$BASE${KCSAN:+ KCSAN=1}${ARGS:+ ARGS=$ARGS}"
if [[ $ARGS != qemu ]]; then
	uml >"$dir/uml.ktap"
	cat "$dir/uml.ktap"
	streams+=("$dir/uml.ktap")
fi
[[ $ARGS == uml ]] || qemu
awk -f "$HARNESS/ktap.awk" -v bad="$status" "${streams[@]}" || status=1
exit "$status"
