#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make bench: what HMM costs beside the mmu notifiers, measured by mm/tests/hmm_bench.c
# on a kernel without checkers in QEMU and, where that has two CPUs, in User Mode Linux;
# what an address space without a mirror pays, on this kernel and an unpatched one; and
# how long HMM masks interrupts. make bench-quick: only the figures that CI holds
# against a change. Each bar has to be met in each of RUNS boots. Samples, figures and
# plots go to out/BASE/bench/; the last line is "N passed, N failed, N skipped".
#
# usage: [BASE=...] [RUNS=N] harness/bench.sh [quick]; RUNS: boots of each kernel (1)

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

quick=${1:-}
dir=$OUT/bench${quick:+-quick}
samples=$dir/samples.csv

# add MACHINE RUN LOG: the samples that a log has.
add() {
	sed -nE "s/^(.*hmm_bench: )?([a-z_]+,[a-z_]+(,[0-9]+){4})\r?\$/$1,$2,\2/p" "$3" >>"$samples"
}

# guest FLAVOUR NAME JOB ARGUMENT...: one boot. Its output is of interest if it fails.
guest() {
	HMM_FLAVOUR=$1 HMM_KERNEL=$2 HMM_LIMIT=1800 step "measuring in QEMU, $1, $2" "$dir/$1-${2%% *}.log" "$HARNESS/boot.sh" "${@:3}"
}

measure_qemu() {
	local run
	for ((run = 1; run <= RUNS; run++)); do
		guest lean "bench-$run" bench ${quick:+groups=register,beside}
		add qemu "$run" "$OUT/lean/bench-$run/console.log"
	done
}

# In instructions: no difference is what is expected, and no clock of a shared machine
# could show it.
measure_unused() {
	local run flavour
	export HMM_COUNT=1
	for ((run = 1; run <= RUNS; run++)); do
		for flavour in lean lean-pristine; do
			guest "$flavour" "unused-$run" unused 10
			add "$flavour" "$run" "$OUT/$flavour/unused-$run/out.ktap"
		done
	done
	unset HMM_COUNT
}

# As above, in instructions: no other process of this machine makes an interrupt late,
# and the size of the caches does not matter. One CPU, as two would take turns, and a
# clock that timers trust at once.
measure_counted() {
	local run
	export HMM_COUNT=1
	for ((run = 1; run <= RUNS; run++)); do
		guest lean "counted-$run maxcpus=1 tsc=reliable" bench groups=masked,scale,register rounds=1
		add counted "$run" "$OUT/lean/counted-$run/console.log"
	done
	unset HMM_COUNT
}

measure_uml() {
	local run
	for ((run = 1; run <= RUNS; run++)); do
		try "measuring in User Mode Linux, $run" "$dir/uml-$run.log" \
			timeout 900 "$obj/linux" mem=1G "${parameters[@]}" console=tty || :
		grep -q 'hmm_bench: done' "$dir/uml-$run.log" || {
			tail -n 20 "$dir/uml-$run.log" >&2
			die "User Mode Linux: the benchmark did not end; the whole output is in $dir/uml-$run.log"
		}
		add uml "$run" "$dir/uml-$run.log"
	done
}

# struct_size KERNEL OBJECT TYPE...: "KERNEL TYPE SIZE", after compiling the object once
# more as in that kernel's build directory, with the types in it.
struct_size() {
	local command type bytes obj
	obj=$(cat "$OUT/$1/obj")
	command=$(sed -nE '1s/^(saved)?cmd_[^ ]* := ([^;]*).*/\2/p' "$obj/${2%/*}/.${2##*/}.cmd")
	[[ $command == *" -o $2 "* ]] || die "bench: $2: its command is not in the build directory; run: rm -rf $obj"
	(cd "$obj" && eval "${command/ -o $2 / -g -o $temp/types.o }")
	for type in "${@:3}"; do
		bytes=$(pahole -C "$type" "$temp/types.o" | sed -nE 's|.*/\* size: ([0-9]+),.*|\1|p' | head -n 1)
		[[ $bytes ]] || die "bench: $2: pahole finds no struct $type in it"
		echo "$1 $type $bytes"
	done
}

# section_sizes KERNEL FILE: text, data, bss, all
section_sizes() {
	size "$(cat "$OUT/$1/obj")/$2" | tail -n 1
}

# Bytes: of each object, of the code, and of mm_struct and vmlinux with this project and
# without.
footprint() {
	local kernel
	temp footprint
	struct_size lean kernel/fork.o mm_struct
	struct_size lean-pristine kernel/fork.o mm_struct
	struct_size lean mm/hmm_device.o hmm_device hmm_mirror hmm
	struct_size lean mm/tests/hmm_bench.o mmu_notifier mmu_interval_notifier
	section_sizes lean mm/hmm_device.o | awk '{ print "lean text", $1; print "lean data", $2 + $3 }'
	for kernel in lean lean-pristine; do
		section_sizes "$kernel" vmlinux | awk -v kernel="$kernel" '{ print kernel, "vmlinux", $4 }'
	done
}

machine() {
	sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1 | tr -s ' '
}

need python3
lock_out
rm -rf "$dir"
mkdir -p "$dir"
echo machine,run,measure,peer,size,round,operations,nanoseconds >"$samples"
run "$HARNESS/build.sh" lean
if [[ ! $quick ]]; then
	need gnuplot-nox pahole
	run "$HARNESS/build.sh" lean-pristine
	footprint >"$dir/footprint"
fi
measure_qemu
if [[ ! $quick ]]; then
	measure_unused
	measure_counted
	# shellcheck source=uml.sh
	. "$HARNESS/uml.sh"
	uml_source
	if [[ $smp ]]; then
		uml_build lean "$dir" "$HARNESS/config/uml-lean.config"
		measure_uml
	else
		say "User Mode Linux of this base has one CPU: not measured there"
	fi
fi
python3 "$HARNESS/bench.py" ${quick:+--quick} "$dir" "$(machine)" || status=$?
exit "${status:-0}"
