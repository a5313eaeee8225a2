#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make lint: every static check of the kernel files and of the harness. One line
# for each that finds nothing, its whole output for each that does.
#
# usage: [BASE=...] harness/lint.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

dir=$OUT/lint
failed=0

# The kernel files of this project, as they lie in the tree; C and headers only if asked.
kernel_files() {
	local file
	while read -r file; do
		[[ ${1:-} == c && $file != *.[ch] ]] || echo "$file"
	done < <(landed "$tree")
}

# Files of the repository that git knows or would add; without git, all but out/.
repository() {
	cd "$ROOT"
	git ls-files -co --exclude-standard 2>/dev/null || find . -path ./out -prune -o -path ./.git -prune -o -type f -printf '%P\n'
}

checkpatch() {
	local file ignore
	cd "$tree"
	while read -r file; do
		[[ $file != */.kunitconfig ]] || continue
		# The macros of trace headers are no statements; no tree has them otherwise.
		ignore=()
		[[ $file != include/trace/* ]] || ignore=(--ignore "OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT")
		# What a KUnit test expects is a macro, so that a failure has the line of the test,
		# and so are tables of parameters.
		[[ $file != mm/tests/*_kunit.c ]] || ignore=(--ignore "COMPLEX_MACRO,MACRO_ARG_REUSE")
		perl scripts/checkpatch.pl --strict --quiet --terse --show-types --no-summary "${ignore[@]}" --file "$file"
	done < <(kernel_files)
}

kernel_doc() {
	local tool=$tree/tools/docs/kernel-doc
	[[ -e $tool ]] || tool=$tree/scripts/kernel-doc
	cd "$tree"
	# shellcheck disable=SC2046 # no spaces in our names
	"$tool" -none -Wall $(kernel_files c | grep -v '^tools/')
}

# W=1 and sparse: everything that the compilation of our objects says of our files.
compiler() {
	local file pattern=''
	while read -r file; do
		pattern+="${pattern:+|}${file//./\\.}"
	done < <(kernel_files)
	grep -E "($pattern):[0-9]+" "$dir/build.log"
}

# What may not stand in a kernel file at all.
words() {
	cd "$tree"
	kernel_files c | grep -v '^tools/' | xargs grep -nE '\<(BUG_ON|BUG\(\)|TODO|FIXME|XXX|__GFP_NOFAIL)|\<EXPORT_SYMBOL\('
}

# Which kernel is newer than which others is no matter of a kernel file: module/compat.h has
# what older ones lack. What is measured names what it was measured on.
older() {
	cd "$tree"
	kernel_files | grep -vE 'hmm-(performance|tests)\.rst$' | xargs grep -nHiE \
		'LINUX_VERSION_CODE|KERNEL_VERSION\(|older kernel|(all|other) kernels|kernels (before|since|until)|\<[3-9]\.[0-9]{1,2}(\.[0-9]+)?\>'
}

# Every exported function has kernel-doc; what is exported as __name stands behind
# the macro name of a header.
exports() {
	local file name files
	cd "$tree"
	mapfile -t files < <(kernel_files c)
	while read -r file name; do
		grep -qE "^ \* ${name#__}\(\) - " "${files[@]}" || echo "$file: $name: exported without kernel-doc"
	done < <(awk -F'[(,)]' '/^EXPORT_SYMBOL/ { print FILENAME, $2 }' "${files[@]}")
}

scripts() {
	cd "$ROOT"
	# shellcheck disable=SC2046 # no spaces in our names
	shellcheck $(repository | xargs grep -lE '^#!.*(sh|busybox sh)$|^# shellcheck shell=')
}

# The driver in hmm.rst compiles.
example_driver() {
	local driver=$temp/example
	mkdir -p "$driver"
	example >"$driver/gpu.c"
	echo 'obj-m := gpu.o' >"$driver/Makefile"
	make -s -C "$tree" O="$(cat "$dir/obj")" M="$driver" W=1 KCFLAGS=-Werror gpu.o
}

# Each test that hmm-tests.rst names is there, and each that is there is named.
named_tests() {
	cd "$ROOT"
	# shellcheck disable=SC2016 # backquotes of reST
	diff --label named --label there -U0 \
		<(grep -oE '``(hmm_[a-z0-9_]+|[a-z_]+\.[a-z0-9_]+)``' Documentation/vm/hmm-tests.rst | tr -d '`' | sort -u) \
		<({
			sed -nE 's/^\tKUNIT_CASE(_PARAM|_SLOW)?\((\w+)[,)].*/\2/p' mm/tests/hmm_*kunit.c
			sed -nE 's/^TEST_F\((.*), (.*)\)$/\1.\2/p' tools/testing/selftests/vm/hmm-tests.c
		} | sort -u)
}

# Each fault of the list can still be made.
mutants() {
	"$HARNESS/mutate.py" check "$HARNESS/mutants/list" "$ROOT"
	"$HARNESS/mutate.py" check "$HARNESS/mutants/fuzz" "$ROOT"
	comm -13 <("$HARNESS/mutate.py" names "$HARNESS/mutants/list" | cut -f1 | sort) <(data mutants/sample | sort)
}

# The manifest of the series, and the messages of its patches.
series() {
	"$HARNESS/series.py" check
}

# Addresses and paths of one machine have no place in the repository.
places() {
	cd "$ROOT"
	repository | grep -v '^COPYING$' | xargs grep -nIE '(http|https|ftp):[/]{2}|/(root|home)/[a-z.]'
}

spelling() {
	cd "$ROOT"
	repository | grep -v '^COPYING$' | xargs codespell --ignore-words-list=damon
}

# check NAME COMMAND: clean means that it says nothing.
check() {
	"$2" >"$dir/$1.log" 2>&1 || :
	if [[ -s $dir/$1.log ]]; then
		cat "$dir/$1.log"
		echo "lint: $1 failed"
		failed=$((failed + 1))
	else
		echo "lint: $1 ok"
	fi
}

need codespell perl python3 shellcheck sparse
lock_out
lock_base
# A full disk would make every log empty, and so every check clean.
need_space 1
run "$HARNESS/build.sh" lint
tree=$(cat "$dir/tree")
temp lint
check checkpatch checkpatch
check kernel-doc kernel_doc
check compiler compiler
check words words
check older older
check exports exports
check shellcheck scripts
check places places
check spelling spelling
check example example_driver
check tests named_tests
check mutants mutants
check series series
((failed == 0)) || die "lint: $failed of 13 checks failed"
