#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Boots the built guest in QEMU with one job, streams what it prints to stdout,
# and succeeds only if the guest said "pass", as its last word, in time, and its
# console is clean. Results are in out/$BASE/FLAVOUR/JOB/.
#
# usage: harness/boot.sh JOB [ARGUMENT...]   the jobs: harness/guest/init
# HMM_BOOT_LIMIT, HMM_LIMIT: seconds until init runs (120), from then on (480)
# HMM_FLAVOUR: which build to boot (debug); HMM_INITRAMFS: another initramfs
# HMM_KERNEL: the name of the results instead of JOB, then kernel parameters
# HMM_COUNT=1: an instruction takes the guest's clock a nanosecond, however long it
# takes here

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

job=$1
shift
read -r name parameters <<<"${HMM_KERNEL:-$job}"
guest=$OUT/${HMM_FLAVOUR:-debug}
dir=$guest/$name
boot_limit=${HMM_BOOT_LIMIT:-120}
limit=${HMM_LIMIT:-480}

# Called with the accelerator and what differs between the ways to boot.
qemu() {
	local accel=$1 cpu=max
	shift
	[[ $accel == tcg* ]] || cpu=host
	exec qemu-system-x86_64 -machine q35 -bios qboot.rom -accel "$accel" "${clock[@]}" -cpu "$cpu" -smp 2 -m 2G \
		-nodefaults -display none -no-reboot -kernel "$guest/bzImage" \
		-initrd "${HMM_INITRAMFS:-$guest/initramfs.cpio}" -append "$cmdline" -device virtio-serial-pci "$@"
}

# Panics end the guest; watchdogs have the patience that an emulated CPU needs;
# KUnit suites run when loaded (their Kconfig default, but allnoconfig takes it).
cmdline="console=ttyS0 panic=-1 oops=panic hung_task_panic=1 softlockup_panic=1 loglevel=7 nokaslr
	mitigations=off watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120
	kunit.enable=1 kunit.autorun=1 $parameters"
cmdline="${cmdline//[$'\n\t']/ } hmm.job=$job hmm.args=$(printf '%s' "$*" | base64 -w0)"

captured() {
	qemu "$1" -serial "file:$dir/console.log" \
		-chardev file,id=out,path=/dev/stdout -device virtserialport,chardev=out,name=hmm.out \
		-chardev "file,id=verdict,path=$dir/verdict" -device virtserialport,chardev=verdict,name=hmm.verdict \
		-chardev "file,id=data,path=$dir/data" -device virtserialport,chardev=data,name=hmm.data
}

# A KVM device that opens may still fail, hang or crawl: it counts only when a
# guest has booted with it in a few seconds. Asked once per boot of this host.
accelerator() {
	local answer
	answer=$HMM_CACHE/kvm-$(cat /proc/sys/kernel/random/boot_id)
	if [[ ! -e $answer ]]; then
		rm -f "$HMM_CACHE"/kvm-*
		echo tcg,thread=multi >"$answer.new"
		if [[ -w /dev/kvm ]] && (HMM_PROBE=kvm timeout -k 1 15 "$0" probe >/dev/null 2>&1); then
			echo kvm >"$answer.new"
		fi
		mv "$answer.new" "$answer"
	fi
	cat "$answer"
}

splats() {
	awk "$@" -f "$HARNESS/splats.awk" "$HARNESS/splats" "$dir/console.log"
}

# Relays the guest's output until it ends. Returns 0 when QEMU has ended, 2 when
# the guest did not get as far as a clean init, 1 when it ran too long.
relay() {
	local line status deadline=$((SECONDS + boot_limit)) begun=''
	while :; do
		status=0
		IFS= read -rt $((deadline > SECONDS ? deadline - SECONDS : 0)).1 -u "$from" line || status=$?
		if ((status > 128 || SECONDS > deadline)); then
			[[ $begun ]] || { why="no init within $boot_limit s"; return 2; }
			why="still running after $limit s"
			return 1
		elif ((status)); then
			[[ $begun ]] || { why="the guest died before init"; return 2; }
			return 0
		elif [[ $line == '# hmm-guest: init' ]]; then
			begun=yes
			deadline=$((SECONDS + limit))
			splats >"$dir/splats.log" || { why="a splat before init"; return 2; }
		else
			echo "$line"
		fi
	done
}

# One boot; sets why if it did not go well.
boot() {
	local pid status=0
	why=''
	rm -rf "$dir"
	mkdir -p "$dir"
	: >"$dir/console.log"
	mkfifo "$dir/out.fifo"
	set -m
	captured "$accel" >"$dir/out.fifo" 2>"$dir/qemu.log" </dev/null &
	pid=$!
	set +m
	doomed=("-$pid")
	exec {from}<"$dir/out.fifo"
	relay > >(tee "$dir/out.ktap") || status=$?
	wait $!
	kill -9 -- "-$pid" 2>/dev/null || :
	wait "$pid" || :
	doomed=()
	exec {from}<&-
	rm "$dir/out.fifo"
	return "$status"
}

# judge: the reason why this run failed, if any; prints what the console says of it.
judge() {
	local verdict
	verdict=$(cat "$dir/verdict" 2>/dev/null) || :
	if ! splats -v from='hmm-guest: init' >"$dir/splats.log"; then
		cat "$dir/splats.log" >&2
		why=${why:+$why; }$(grep -m 1 '^splat' "$dir/splats.log")
	else
		[[ ! -s $dir/splats.log ]] || say "$name: $(cat "$dir/splats.log")"
		[[ -z $why && $verdict == pass ]] || tail -n 15 "$dir/console.log" >&2
	fi
	[[ $verdict == pass ]] || why=${why:+$why; }${verdict:-the guest ended without a verdict}
}

[[ -s $guest/bzImage && -s $guest/initramfs.cpio ]] || die "boot: $guest has no kernel: not built; run: make run"
accel=${HMM_PROBE:-$(accelerator)}
clock=()
if [[ ${HMM_COUNT:-} ]]; then
	accel=tcg,thread=single
	clock=(-icount "shift=0,sleep=off")
fi
if [[ $job == shell ]]; then
	mkdir -p "$dir"
	(qemu "$accel" -chardev "stdio,id=tty,signal=off,logfile=$dir/console.log" -serial chardev:tty)
	exit
fi
for attempt in 1 2 3; do
	status=0
	boot || status=$?
	if ((status != 2 || attempt == 3)) || [[ ${HMM_PROBE:-} ]]; then
		break
	fi
	tail -n 5 "$dir/console.log" "$dir/qemu.log" >&2
	say "$name: $why: not the job's doing, booting again ($attempt of 2)"
done
judge
[[ -z $why ]] || die "$name: $why; the console is in $dir/console.log"
