#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make mutants: are the tests any good? Puts single faults into this project's code,
# one at a time, builds the module and runs the tests on it under User Mode Linux
# until one fails, in a boot each: the KUnit suites, selftests, each test of lockdep, a
# short torture and fuzzing, and KUnit with a look for leaks. Each fault has to be found, or
# be none, and the list says why. Those that have a verdict from before, of the same sources,
# are not run again. The table is out/$BASE/mutants/table.txt, the last line
# "N passed, N failed, N skipped"; a mutant that survives is a failure.
#
# usage: [BASE=...] [JOBS=N] [ARGS="[only=BOOT] [LIST|PATCH|DIRECTORY|sample]... [NAME...]"] harness/mutants.sh
# only=BOOT: kunit, faults, selftests, torture, fuzz or leaks, and no other: can it find them?
# LIST is a file like harness/mutants/list (the default), PATCH a file *.patch or *.diff
# against this repository, DIRECTORY one with patches; sample: the names in
# harness/mutants/sample; NAME: a mutant of a list, instead of all of them.

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"
# shellcheck source=uml.sh
. "${BASH_SOURCE[0]%/*}/uml.sh"

out=$OUT/mutants
base=$out/unmutated
torture_seconds=15
fuzz_seconds=30

# What ARGS names. Sets lists, patches, wanted (names) and HMM_MUTANTS_ONLY (a boot).
arguments() {
	local word
	lists=()
	patches=()
	wanted=()
	export HMM_MUTANTS_ONLY=
	for word in $ARGS; do
		if [[ $word =~ ^only=(kunit|faults|selftests|torture|fuzz|leaks)$ ]]; then
			HMM_MUTANTS_ONLY=${BASH_REMATCH[1]}
		elif [[ $word == sample ]]; then
			mapfile -t -O ${#wanted[@]} wanted < <(data mutants/sample)
		elif [[ -d $word ]]; then
			mapfile -t -O ${#patches[@]} patches < <(find "$word" -type f \( -name '*.patch' -o -name '*.diff' \) | sort)
		elif [[ -f $word && $word =~ \.(patch|diff)$ ]]; then
			patches+=("$word")
		elif [[ -f $word ]]; then
			lists+=("$word")
		elif [[ $word =~ ^[a-z0-9][a-z0-9-]*$ ]]; then
			wanted+=("$word")
		else
			die "ARGS: $word: no file, directory or name of a mutant; see harness/mutants/list"
		fi
	done
	if ((${#lists[@]} == 0)) && ((${#patches[@]} == 0 || ${#wanted[@]})); then
		lists=("$HARNESS/mutants/list")
	fi
}

# add NAME EXPECTED WHY: takes the patch from stdin.
add() {
	[[ -z ${expected[$1]:-} ]] || die "$1: two mutants of that name; rename one"
	mkdir -p "$out/$1"
	cat >"$out/$1/patch"
	names+=("$1")
	expected[$1]=$2
	why[$1]=$3
}

# Every mutant as a patch. Sets names, expected and why.
collect() {
	local list name how text patch
	for list in "${lists[@]}"; do
		"$HARNESS/mutate.py" names "$list" >"$temp/names"
		while IFS=$'\t' read -r name how text; do
			((${#wanted[@]} == 0)) || [[ " ${wanted[*]} " == *" $name "* ]] || continue
			if ! "$HARNESS/mutate.py" apply "$list" "$name" "$ROOT" >"$temp/patch" 2>"$temp/error"; then
				cat "$temp/error" >&2
				how="does not apply"
			fi
			add "$name" "$how" "$text" <"$temp/patch"
		done <"$temp/names"
	done
	for name in "${wanted[@]}"; do
		[[ ${expected[$name]:-} ]] || die "$name: no such mutant; harness/mutate.py names ${lists[0]} prints them"
	done
	for patch in "${patches[@]}"; do
		name=$(basename "$patch")
		add "${name%.*}" killed "$(sed -n 's/^Subject: *//p' "$patch" | head -n 1)" < <(cat "$patch")
	done
	((${#names[@]})) || die "ARGS=$ARGS: names no mutant"
}

uml_config() {
	# A stack trace, of which KASAN takes one with each allocation, asks of each word
	# of the stack whether it is in a module, with two system calls: with modules,
	# User Mode Linux is slower by an order of magnitude. So none has functions of them.
	uml_make=(CFLAGS_stacktrace.o=-D__kernel_text_address=core_kernel_text)
	# Built in there, modules here
	grep -v '^CONFIG_HMM' "$HARNESS/config/uml.config" >"$temp/uml.config"
	uml_build mutants "$out" "$temp/uml.config" "$HARNESS/config/uml-modules.config"
}

# The guest without a fault: what does not depend on the mutant.
initramfs() {
	local root=$temp/root module
	mkdir -p "$root"/{bin,lib/modules}
	rsync -rc --delete "$HARNESS/guest/" "$obj/hmm-guest/"
	make -f "$obj/hmm-guest/programs.mk" TREE="$tree" OBJ="$obj" "$obj"/hmm-programs/{hmm-device-tests,fuzz}
	cp "$obj"/hmm-programs/{hmm-device-tests,fuzz} "$(command -v busybox)" "$root/bin/"
	install -m 755 "$HARNESS/guest/init" "$root/init"
	while read -r module; do
		cp "$obj/${module%.*}.ko" "$root/lib/modules/"
	done <"$obj/modules.order"
	chmod -R a+rX "$root"
	(cd "$root" && find . | cpio -o -H newc --quiet -R 0:0) >"$base/initramfs.new"
	cmp -s "$base/initramfs.new" "$base/initramfs" || mv "$base/initramfs.new" "$base/initramfs"
	rm -f "$base/initramfs.new"
}

# The boots of each mutant, with limits of any length.
boots() {
	local case
	echo "kunit 600 120 hmm.leaks=no kunit hmm"
	echo "faults 600 120 hmm.leaks=no kunit hmm_faults"
	# But the soak, which takes minutes here, and is a torture of processes
	echo "selftests 900 120 hmm.leaks=no hmm-device-tests -T soak"
	while read -r case; do
		echo "$case 120 60 hmm.leaks=no lockdep $case"
	done < <(sed -n 's/^\tKUNIT_CASE(\(.*\)),$/\1/p' "$ROOT/mm/tests/hmm_lockdep_kunit.c")
	echo "torture $((torture_seconds + 120)) 60 hmm.leaks=no torture $torture_seconds"
	echo "fuzz $((fuzz_seconds + 120)) 120 hmm.leaks=no fuzz 1 $fuzz_seconds"
	echo "leaks 600 120 kmemleak=on kunit hmm"
}

# Limits by what it takes without a fault: a test that fails says so within 20 s.
limit() {
	local name took silent
	while read -r name took silent; do
		sed -i -E "s/^($name) [0-9]+ [0-9]+/\1 $((3 * took + 60)) $((3 * silent + 25))/" "$base/boots"
	done <"$base/times"
}

# sum NAME: of all that its verdict depends on.
sum() {
	cat "$out/$1/patch" "$base/sources" - <<<"$HMM_MUTANTS_ONLY" | sha256sum | cut -d' ' -f1
}

# done_before NAME: is there a verdict that still holds?
done_before() {
	sum "$1" >"$out/$1/sum"
	[[ -e $out/$1/verdict && $(cut -f4 "$out/$1/verdict") == "$(cat "$out/$1/sum")" ]]
}

# row NAME: of the table. Counts it.
row() {
	local result
	read_verdict "$1"
	result=$what
	case $what:${expected[$1]} in
	killed:killed) passed=$((passed + 1)) ;;
	killed:*) passed=$((passed + 1)); who+=" (the list says that it is equivalent)" ;;
	survived:equivalent) passed=$((passed + 1)); result=equivalent ;;
	*) failed=$((failed + 1)); result=${what^^}; who+="${who:+; }${why[$1]}" ;;
	esac
	printf '%-30s %-10s %4s s  %s\n' "$1" "$result" "$seconds" "$who"
}

# Sets what, who and seconds: empty fields count, unlike with read.
read_verdict() {
	local line
	line=$(cat "$out/$1/verdict")
	what=${line%%$'\t'*}
	line=${line#*$'\t'}
	who=${line%%$'\t'*}
	line=${line#*$'\t'}
	seconds=${line%%$'\t'*}
}

# Runs what has no verdict, each in a process group of its own; two for each of JOBS, as
# a guest waits more than it computes.
run_all() {
	local name left=()
	for name in "${names[@]}"; do
		if [[ ${expected[$name]} == "does not apply" ]]; then
			printf 'invalid\tdoes not apply\t0\t\n' >"$out/$name/verdict"
		elif ! done_before "$name"; then
			left+=("$name")
		fi
	done
	say "${#names[@]} mutants, ${#left[@]} of them to run"
	for name in "${left[@]}"; do
		(($(jobs -pr | wc -l) < 2 * JOBS)) || one_ends
		set -m
		one "$name" &
		set +m
	done
	while (($(jobs -pr | wc -l))); do
		one_ends
	done
}

# Those that still run end with this script.
end_all() {
	mapfile -t -O ${#doomed[@]} doomed < <(jobs -pr | sed 's/^/-/')
	at_exit
}

one() {
	trap - EXIT
	"$HARNESS/mutant.sh" "$out/$1" </dev/null && row "$1"
}

one_ends() {
	wait -n || die "a mutant could not be run; what it said is above"
}

need busybox-static cpio
lock_out
temp mutants
arguments
declare -A expected why
names=()
mkdir -p "$base"
collect
uml_source
uml_config
step "packing the guest" "$out/pack.log" initramfs
printf '%s\n' mem=512M "${parameters[@]}" >"$base/parameters"
# All that the tests are, and that they run on
(cd "$ROOT" && our_files | grep -v '^Documentation/' | xargs cat module/compat.h; cat "$HARNESS"/guest/{init,patience.h,common.h,fuzz.c} "$HARNESS"/splats* "$obj/.config") >"$base/sources"
export HMM_MUTANTS_OBJ=$obj HMM_MUTANTS_BASE=$base

: >"$base/patch"
if ! done_before unmutated || [[ ! -e $base/limits ]]; then
	boots >"$base/boots"
	step "running the tests without a fault" "$out/unmutated.log" "$HARNESS/mutant.sh" "$base"
	read_verdict unmutated
	[[ $what == survived ]] || die "without any fault: $what: $who; the console is in $base; correct that first"
	limit
	touch "$base/limits"
fi

passed=0
failed=0
trap end_all EXIT
run_all
for name in "${names[@]}"; do
	row "$name"
done >"$out/table.txt"
cat "$out/table.txt"
echo "$passed passed, $failed failed, 0 skipped"
((failed == 0 && passed > 0))
