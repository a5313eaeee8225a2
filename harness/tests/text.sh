# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# The readers of text: each file of ktap/ and console/ says in its first line what
# its reader has to make of it.
#
# usage: sourced by harness/tests/run
# shellcheck disable=SC2154 # which sets work and said

test_ktap_is_counted() {
	local file
	for file in "$HARNESS"/tests/ktap/*; do
		holds test "$(awk -f "$HARNESS/ktap.awk" "$file" | tail -n 1)" = "$(sed -n '1s/^# expect: //p' "$file")"
		case $file in
		*/good-*) holds awk -f "$HARNESS/ktap.awk" "$file" ;;
		*) fails . awk -f "$HARNESS/ktap.awk" "$file" ;;
		esac
	done
}

test_splats_are_found() {
	local file
	for file in "$HARNESS"/tests/console/bad-*; do
		fails "^splat: $(sed -n '1s/^# expect: //p' "$file")" \
			awk -v from='hmm-guest: init' -f "$HARNESS/splats.awk" "$HARNESS/splats" "$file"
	done
}

test_clean_consoles_are_clean() {
	local file
	for file in "$HARNESS"/tests/console/good-*; do
		holds awk -v from='hmm-guest: init' -f "$HARNESS/splats.awk" "$HARNESS/splats" "$file"
	done
}

# bench_samples REGISTER EXIT: of a quick benchmark, with the nanoseconds that HMM takes.
bench_samples() {
	local peer vmas asleep
	echo machine,run,measure,peer,size,round,operations,nanoseconds
	for vmas in 10 1000; do
		for peer in "hmm,$1" mmu_notifier,$((vmas * 1000)) mmu_interval_notifier,700 mmu_notifier_get,300; do
			echo "qemu,1,register,${peer%,*},$vmas,0,1,${peer#*,}"
		done
	done
	for asleep in hmm mmu_notifier; do
		echo "qemu,1,unregister_beside_$asleep,hmm,1,0,1,50000"
		echo "qemu,1,exit_beside_$asleep,hmm,1,0,1,$2"
	done
}

test_benchmark_is_judged() {
	mkdir -p "$work/bench"
	bench_samples 1000 200000 >"$work/bench/samples.csv"
	holds python3 "$HARNESS/bench.py" --quick "$work/bench" machine
	bench_samples 2000 200000 >"$work/bench/samples.csv"
	fails '^ +P1 register to mmu_notifier_get.* 6\.667 +<= 5 +MISSED$' \
		python3 "$HARNESS/bench.py" --quick "$work/bench" machine
	bench_samples 1000 60000000 >"$work/bench/samples.csv"
	fails '^ +P3 exit beside a callback of hmm that sleeps.* 60 ms <= 50 ms +MISSED$' \
		python3 "$HARNESS/bench.py" --quick "$work/bench" machine
	holds test "$(tail -n 1 <<<"$said")" = "6 passed, 2 failed, 0 skipped"
}
