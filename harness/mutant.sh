#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# One mutant: builds the modules that its patch changes and boots one guest after
# the other with them, until a test finds the fault or none is left. Writes
# DIRECTORY/verdict: what became of it, who found it, seconds, a checksum of all that
# this depends on; with tabs between.
#
# usage: harness/mutant.sh DIRECTORY (with its patch in it), from mutants.sh, which sets
#	HMM_MUTANTS_OBJ		build directory of User Mode Linux
#	HMM_MUTANTS_BASE	directory with the initramfs of all mutants, the boots, the limits
#	HMM_MUTANTS_ONLY	name of the one boot to make, or empty

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

dir=$1
obj=$HMM_MUTANTS_OBJ
base=$HMM_MUTANTS_BASE
begin=$SECONDS

# User Mode Linux need not end by SIGTERM, and would keep what it has inherited.
# shellcheck disable=SC2317 # the trap calls it
end_guests() {
	local pid
	for pid in $(jobs -p); do
		kill -9 -- "-$pid" 2>/dev/null || :
	done
	at_exit
}
trap end_guests EXIT

# verdict WHAT [WHO]
verdict() {
	printf '%s\t%s\t%s\t%s\n' "$1" "${2:-}" $((SECONDS - begin)) "$(cat "$dir/sum")" >"$dir/verdict.new"
	mv "$dir/verdict.new" "$dir/verdict"
	exit
}

# The sources as the patch makes them, where they land, with a Kbuild of external modules:
# neither the tree nor its build is touched, and many can be built at once. The core is
# one module of several files; each other file is one by itself.
sources() {
	local file name c=() header='' core=''
	mkdir -p "$temp/repo" "$temp/module"
	(cd "$ROOT" && tar -c mm lib include) | tar -x -C "$temp/repo"
	if [[ -s $dir/patch ]]; then
		patch --batch --forward --no-backup-if-mismatch -d "$temp/repo" -p1 <"$dir/patch" || return
	fi
	while read -r file; do
		! cmp -s "$ROOT/$file" "$temp/repo/$file" || continue
		if [[ $file == *.c ]]; then
			c+=("$file")
		else
			header=yes
		fi
	done < <(our_files | grep -E '^(mm|lib|include)/.*\.[ch]$')
	if [[ $header ]]; then
		mapfile -t c < <(our_files | grep -E '^(mm|lib)/.*\.c$')
	fi
	((${#c[@]})) || return 0
	while read -r file; do
		install -D "$temp/repo/$file" "$temp/module/$(land "$file" "$obj")"
	done < <(our_files | grep -E '^(mm|lib|include)/.*\.[ch]$')
	cp "$ROOT/module/compat.h" "$temp/module/"
	for file in "${c[@]}"; do
		file=$(land "$file" "$obj")
		name=$(basename "$file" .c)
		if [[ $file == mm/hmm_*.c ]]; then
			core=yes
		else
			printf '%s\n' "obj-m += $name.o" "$name-y := ${file%.c}.o"
		fi
	done >"$temp/module/Kbuild"
	if [[ $core ]]; then
		echo "obj-m += hmm_core.o"
		for file in "$temp"/module/mm/hmm_*.c; do
			echo "hmm_core-y += mm/$(basename "$file" .c).o"
		done
	fi >>"$temp/module/Kbuild"
	# Before the tree, which has the headers without the fault
	# shellcheck disable=SC2016 # make expands it
	printf '%s\n' 'NOSTDINC_FLAGS += -I$(src)/include' 'ccflags-y += -include $(src)/compat.h' >>"$temp/module/Kbuild"
}

build() {
	[[ -e $temp/module/Kbuild ]] || return 0
	make -C "$obj" ARCH=um M="$temp/module" modules
}

pack() {
	mkdir -p "$temp/guest/lib/modules"
	find "$temp/module" -maxdepth 1 -name '*.ko' -exec cp -t "$temp/guest/lib/modules" {} +
	(cd "$temp/guest" && find . -type f | cpio -o -H newc --quiet -R 0:0) | cat "$base/initramfs" - >"$temp/initramfs"
}

# Whether the console says that it is over: sets who.
look() {
	local splat
	who=$(awk -v cases="$cases" -f "$HARNESS/mutants.awk" "$console" | tr '\t' ' ')
	[[ -z $who ]] || return 0
	grep -q 'hmm-guest: init' "$console" || return 0
	if ! awk -v from='hmm-guest: init' -f "$HARNESS/splats.awk" "$HARNESS/splats" "$console" >"$dir/splats"; then
		# While the guest runs a test may be about to say what is missing
		splat=$(grep '^splat' "$dir/splats" | grep -vE "${1:-^$}" | head -n 1) || :
		[[ -z $splat ]] || who="$(running): ${splat#splat: }"
	fi
}

running() {
	awk -v cases="$cases" -v running=1 -f "$HARNESS/mutants.awk" "$console"
}

# boot NAME LIMIT SILENCE PARAMETER ARGUMENT...: one guest, which is ended as soon as anything
# fails. Sets who, empty if nothing did, and the seconds that it took, and was silent.
boot() {
	local name=$1 limit=$2 longest=$3 parameter=$4 pid size=0 now start=$SECONDS said=$SECONDS
	shift 4
	console=$dir/$name.console
	who=''
	silent=0
	: >"$console"
	set -m
	"$obj/linux" "initrd=$temp/initramfs" \
		"${parameters[@]}" "$parameter" panic=-1 oops=panic hung_task_panic=1 loglevel=7 \
		kunit.enable=1 kunit.autorun=1 hmm.job=test hmm.end=poweroff "hmm.args=$(printf '%s' "$*" | base64 -w0)" \
		>"$console" 2>&1 </dev/null &
	pid=$!
	set +m
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.3
		now=$(stat -c %s "$console")
		((SECONDS - said <= silent)) || silent=$((SECONDS - said))
		if ((now > size)); then
			size=$now
			said=$SECONDS
			look 'end-expect|an expected warning did not come'
		elif ((SECONDS - said > longest)); then
			# User Mode Linux at times does not end once it is powered down
			! grep -q 'hmm-guest: pass' "$console" || break
			who="$(running): hangs"
		fi
		((SECONDS - start <= limit)) || who="$(running): not done after $limit s"
		[[ -z $who ]] || break
	done
	kill -9 -- "-$pid" 2>/dev/null || :
	wait "$pid" 2>/dev/null || :
	took=$((SECONDS - start))
	[[ $who ]] || look
	if [[ -z $who ]] && ! grep -q 'hmm-guest: pass' "$console"; then
		who="$(running): the guest died"
	fi
}

# Each line of "boots": name, limit, silence, kernel parameter, arguments of the guest.
boots() {
	local name limit silence parameter arguments attempt
	while read -r name limit silence parameter arguments; do
		[[ -z $HMM_MUTANTS_ONLY || $name == "$HMM_MUTANTS_ONLY" ]] || continue
		for attempt in 1 2 3; do
			# shellcheck disable=SC2086 # words
			boot "$name" "$limit" "$silence" "$parameter" $arguments
			# Else it is not the mutant's doing, which is not loaded yet
			! grep -q 'hmm-guest: init' "$console" || break
			say "${dir##*/}: $name: the guest did not come up ($attempt of 3)"
		done
		echo "$name $took $silent" >>"$dir/times"
		[[ -z $who ]] || verdict killed "$who"
		rm "$console"
	done <"$base/boots"
}

temp mutant
mapfile -t parameters <"$base/parameters"
rm -f "$dir"/{verdict,times,*.console,splats}
cases=$(for suite in hmm hmm_faults; do
	echo "$suite:"
	sed -nE 's/^\tKUNIT_CASE(_SLOW|_PARAM)?\(([a-z0-9_]*).*/\2/p' "$ROOT/mm/tests/${suite}_kunit.c"
done | paste -sd' ')
sources >"$dir/log" 2>&1 || verdict invalid "does not apply: $(grep -m 1 -iE 'fail|malformed|garbage|can.t find' "$dir/log")"
[[ ! -s $dir/patch || -e $temp/module/Kbuild ]] || verdict invalid "changes nothing that is built here"
build >>"$dir/log" 2>&1 || verdict invalid "does not build: $(grep -m 1 -E 'error|ERROR' "$dir/log")"
pack
boots
verdict survived
