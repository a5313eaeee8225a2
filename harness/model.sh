#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make model: checks harness/model/hmm.pml, the protocol of mm/hmm.c, in each of its
# scenes, exhaustively; that the design of 2015 has the races which its review found;
# that each mistake of harness/model/breaks is found; that each step of the model is
# come to, and each function that it names is there. The last line is "N passed, N
# failed, N skipped".
#
# usage: [ARGS="scenes|2015|breaks|text"] [JOBS=N] harness/model.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

model=$HARNESS/model/hmm.pml
old=$HARNESS/model/hmm2015.pml
# The model is of no kernel: what it leaves is beside what the bases leave.
OUT=$ROOT/out/model
passed=0
failed=0

for part in $ARGS; do
	[[ $part =~ ^(scenes|2015|breaks|text)$ ]] ||
		die "model: ARGS=$ARGS: no such part; there are scenes, 2015, breaks and text"
done

asked() {
	[[ -z $ARGS || " $ARGS " == *" $1 "* ]]
}

ok() {
	echo "ok - $1"
	passed=$((passed + 1))
}

# not_ok WHAT [FILE]: and what there is to read about it.
not_ok() {
	echo "not ok - $1"
	[[ -z ${2:-} ]] || sed 's/^/# /' "$2"
	failed=$((failed + 1))
}

scenes() {
	sed -nE 's/^#(ifdef|elif defined) SCENE_//p' "$model"
}

# check DIRECTORY FILE SCENE OPTION...: the checker of one scene, made and run in that
# directory, which its results are left in. No status: see verdict().
check() {
	local dir=$1 file=$2 scene=$3
	shift 3
	rm -rf "$dir"
	mkdir -p "$dir"
	cd "$dir"
	cp "$file" model.pml
	{
		spin -a "-DSCENE_$scene" model.pml &&
			nice gcc -Og -DSAFETY -DNOFAIR -DMEMLIM=6000 "$@" -o pan pan.c
	} >build.log 2>&1 || return 0
	# Trail in any case; a depth that is not enough is an error in the log
	nice ./pan -m100000 -w24 >run.log 2>&1 || :
	./pan -d >states.log 2>&1 || :
	rm -f pan pan.? pan_*
	[[ ! -e model.pml.trail ]] || spin -t "-DSCENE_$scene" model.pml >story.log 2>&1 || :
	[[ ! -e model.pml.trail ]] || spin -t -p "-DSCENE_$scene" model.pml >steps.log 2>&1 || :
}

# The error that a check found, "none" if it looked everywhere and there is none, or
# "broken" if it did not.
verdict() {
	local error
	[[ -s $1/run.log ]] || { echo "broken: $(tail -n 1 "$1/build.log")"; return; }
	error=$(sed -nE 's/^pan:[0-9]+: (.*) \(at depth.*/\1/p' "$1/run.log" | head -n 1)
	if [[ $error ]]; then
		echo "$error"
	elif grep -q 'errors: 0$' "$1/run.log" && ! grep -qE 'Search not completed|max search depth too small|out of memory|interrupted' "$1/run.log"; then
		echo none
	else
		echo "broken: $(grep -m 1 -E 'pan|error' "$1/run.log" || tail -n 1 "$1/run.log")"
	fi
}

# figures DIRECTORY: states, depth, seconds and memory of a check.
figures() {
	awk '/states, stored/ { states = $1 } /depth reached/ { sub(/.*depth reached /, ""); depth = $0 + 0 }
		/elapsed time/ { seconds = $4 } /total actual memory/ { memory = $1 }
		END { printf "%d states, depth %d, %.1f s, %d MB", states, depth, seconds, memory }' "$1/run.log"
}

# pool: reads lines "DIRECTORY FILE SCENE OPTION..." and checks them, JOBS at once, at
# most two, for the sake of memory.
pool() {
	local words running=0 most=$((JOBS < 2 ? JOBS : 2))
	while read -ra words; do
		((running < most)) || { wait -n; running=$((running - 1)); }
		(check "${words[@]}") &
		running=$((running + 1))
		echo "${words[0]##*/}"
	done
	wait
}

check_scenes() {
	while read -r scene; do
		# To compile it well takes longer than to look through a narrow scene
		echo "$OUT/$scene $model $scene $([[ $scene == all ]] || echo -O0)"
	done < <(scenes) | pool
}

check_2015() {
	for scene in callback device leak alone; do
		# Breadth first: the shortest story
		echo "$OUT/2015-$scene $old $scene -O0 -DBFS"
	done | pool
}

check_breaks() {
	local name scene script
	while IFS='|' read -r name scene _ script; do
		mkdir -p "$OUT/broken"
		sed -e "$script" "$model" >"$OUT/broken/$name.pml"
		# To compile takes longer than to find it
		echo "$OUT/break-$name $OUT/broken/$name.pml $scene -O0"
	done < <(data model/breaks) | pool
}

# Every function of HMM that the model names, as its own or in a comment, is one of
# mm/hmm.c.
named_functions() {
	local name
	while read -r name; do
		grep -qE "^[a-z].*[ *]${name}\(" "$ROOT/mm/hmm.c" || echo "$name() is not in mm/hmm.c"
	done < <({
		grep -oE '\<hmm_[a-z_]+\(\)' "$model" | tr -d '()'
		sed -nE 's/^(inline|proctype) (hmm_[a-z_]+)\(.*/\2/p' "$model"
	} | sort -u)
}

# Every inline and process of the model is in the table of its banner.
named_steps() {
	local name table
	table=$(sed '/^ \* Abstraction/q' "$model")
	while read -r name; do
		grep -qwE -- "$name" <<<"$table" || echo "$name is not in the table of hmm.pml"
	done < <(sed -nE 's/^inline (hmm_[a-z_]+)\(.*/\1/p; s/^proctype ([a-z_]+)\(.*/\1/p' "$model")
}

# Lines of the model that no scene came to, but the ends of processes: EXIT stops there.
unreached() {
	local scene
	while read -r scene; do
		awk -v model=model.pml -f "$HARNESS/model/reached.awk" "$OUT/$scene/run.log" "$OUT/$scene/states.log"
	done < <(scenes) | sort -n | awk -v file="$model" '
		$2 == "reached" { reached[$1] = 1 }
		{ seen[$1] = 1 }
		END { while (getline text < file) if (++n in seen && !(n in reached) && text != "}") print "hmm.pml:" n ": " text }'
}

# says NAME COMMAND: right if it says nothing.
says() {
	"$2" >"$OUT/$2.log"
	if [[ -s $OUT/$2.log ]]; then not_ok "$1" "$OUT/$2.log"; else ok "$1"; fi
}

need gcc libc6-dev spin
lock_out
mkdir -p "$OUT"

if asked text; then
	says "each function that the model names is in mm/hmm.c" named_functions
	says "each step of the model is in its table" named_steps
fi

if asked scenes; then
	step "checking the scenes of the model" "$OUT/scenes.log" check_scenes
	while read -r scene; do
		found=$(verdict "$OUT/$scene")
		if [[ $found == none ]]; then
			ok "scene $scene: $(figures "$OUT/$scene")"
		else
			not_ok "scene $scene: $found; the steps are in $OUT/$scene/steps.log"
		fi
	done < <(scenes)
	says "some scene comes to each step of the model" unreached
fi

if asked 2015; then
	step "checking the design of 2015" "$OUT/2015.log" check_2015
	while IFS='|' read -r scene expected what; do
		found=$(verdict "$OUT/2015-$scene")
		if [[ $found =~ $expected ]]; then
			ok "2015: $what: $found"
			[[ ! -e $OUT/2015-$scene/story.log ]] || grep '^  ' "$OUT/2015-$scene/story.log" | sed 's/^/#/'
		else
			not_ok "2015: $what: expected \"$expected\", found \"$found\""
		fi
	done <<-'END'
		callback|^assertion violated .*unregistered|->release() comes after hmm_mirror_unregister() has returned
		device|^assertion violated .*freed|the device is freed while its mutex is being unlocked
		leak|^assertion violated .*hmm_refs|the struct hmm is never dropped
		alone|^none$|without exit at the same time, neither of the first two
	END
fi

if asked breaks; then
	step "checking models with one mistake each" "$OUT/breaks.log" check_breaks
	while IFS='|' read -r name _ expected _; do
		found=$(verdict "$OUT/break-$name")
		if cmp -s "$model" "$OUT/broken/$name.pml"; then
			not_ok "break $name: its sed script changes nothing"
		elif [[ $found =~ $expected ]]; then
			ok "break $name: $found"
		else
			not_ok "break $name: expected \"$expected\", found \"$found\""
		fi
	done < <(data model/breaks)
fi

echo "$passed passed, $failed failed, 0 skipped"
((failed == 0 && passed > 0))
