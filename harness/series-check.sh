#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make series-check: is the series as linux-mm wants it? Makes it, applies it patch by
# patch with git am to a kernel as it is shipped, and looks after each: at the objects
# of its files with CONFIG_HMM_DEVICE=y, m and n, at what checkpatch, sparse, W=1, kernel-doc
# and codespell say; after the last at what coccinelle says, at the drivers that use
# the range functions, and that the tree is what an import makes. TAP goes to stdout,
# then a table of what each part took; the last line is "N passed, N failed, N skipped".
#
# usage: [BASE=latest] [ARGS="PART..."] harness/series-check.sh
# The parts: checkpatch codespell build kernel-doc maintainers tree coccinelle users;
# all of them by default. The patches are applied for each. And build-core: that part of
# build that is after patches of mm/hmm_device.c, of its objects alone, which finds a
# function that came with the wrong patch.

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

parts=(checkpatch codespell build kernel-doc maintainers tree coccinelle users)
read -ra wanted <<<"${ARGS:-${parts[*]}}"
for part in "${wanted[@]}"; do
	[[ " ${parts[*]} build-core " == *" $part "* ]] || die "series-check: ARGS=$part: no such part; there are ${parts[*]} build-core"
done

dir=$OUT/series-check
passed=0
failed=0
skipped=0
declare -A took=()

wants() {
	[[ " ${wanted[*]} " == *" $1 "* ]]
}

# result NAME STATUS [REASON]: one line of TAP; what it said is in its log. With a
# reason it was skipped.
result() {
	local number=$((passed + failed + skipped + 1))
	if [[ ${3:-} ]]; then
		skipped=$((skipped + 1))
		echo "ok $number - $1 # SKIP $3"
	elif (($2 == 0)); then
		passed=$((passed + 1))
		echo "ok $number - $1"
	else
		failed=$((failed + 1))
		[[ ! -s $log ]] || excerpt "$log" 2>&1 | sed 's/^/# /'
		echo "not ok $number - $1"
	fi
}

# check PART NAME COMMAND...: clean means that it succeeds.
check() {
	local part=$1 name=$2 begin=$SECONDS status=0
	shift 2
	log=$dir/${name//[^A-Za-z0-9.]/-}.log
	try "$name" "$log" "$@" || status=$?
	took[$part]=$((${took[$part]:-0} + SECONDS - begin))
	result "$name" "$status"
}

# silent COMMAND...: succeeds if it says nothing.
silent() {
	local said
	said=$("$@" 2>&1) || :
	[[ -z $said ]] || { echo "$said"; return 1; }
}

git_() {
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 git -C "$tree" \
		-c user.name=HMM -c user.email=hmm@localhost "$@"
}

# What a patch touches, as it lies in the tree now.
touched() {
	git_ show --format= --name-only --diff-filter=AMR HEAD -- "$@"
}

# The kernel files of this project, of those that are given.
ours() {
	grep -xFf <(landed "$tree") || :
}

apply() {
	git_ am --quiet "$1" && git_ diff --quiet HEAD "$2" && return
	git_ am --abort 2>/dev/null
	echo "after git am it is not what the branch has"
	return 1
}

# The kernel's scripts in Python, with Debian's packages for it, whatever PATH begins with.
export PATH=/usr/bin:$PATH

# Who sends the series signs it; the patch of MAINTAINERS is one of its own, and the part
# maintainers looks whether it has all files. The macros of trace headers are no statements,
# those of KUnit tests expect something at the line of the test, and the file that mm/Kconfig reads has its name in it.
checkpatch() {
	(cd "$tree" && perl scripts/checkpatch.pl --strict --quiet --terse --showfile --show-types --no-summary \
		--ignore MISSING_SIGN_OFF,FILE_PATH_CHANGES "$1") |
		grep -vE '^include/trace/.*(OPEN_ENDED_LINE|PARENTHESIS_ALIGNMENT)|^mm/tests/.*_kunit\.c:.*(COMPLEX_MACRO|MACRO_ARG_REUSE)|^mm/Kconfig:.*EMBEDDED_FILENAME' || :
}

spelling() {
	sed -n -e '1,/^---$/p' -e '/^+/p' "$1" | codespell --ignore-words-list=damon -
}

kernel_doc() {
	local tool=$tree/tools/docs/kernel-doc files
	[[ -e $tool ]] || tool=$tree/scripts/kernel-doc
	mapfile -t files < <(touched '*.c' '*.h' | grep -v ^tools/ | ours)
	((${#files[@]} == 0)) || (cd "$tree" && "$tool" -none -Wall "${files[@]}")
}

# CONFIG_HMM_DEVICE has no prompt: what selects it is beside the objects.
kernel_make() {
	local obj=$HMM_CACHE/build/$key-series-$1
	shift
	mkdir -p "$obj"
	{
		cat "$tree/Kconfig"
		printf '\nconfig HMM_USER\n\ttristate "User of HMM_DEVICE"\n\tdepends on MMU\n\tselect HMM_DEVICE\n'
	} >"$obj/Kconfig.hmm-user"
	make -C "$tree" O="$obj" ARCH=x86_64 KBUILD_KCONFIG="$obj/Kconfig.hmm-user" -j "$JOBS" "$@"
}

# fragment y|m|n: of a kernel with HMM built in, as modules, or without it
fragment() {
	cat "$HARNESS/config"/{guest,series,selftest}.config
	[[ $1 == n ]] || echo "CONFIG_HMM_USER=$1"
	case $1 in
	y) sed 's/=m$/=y/' "$HARNESS/config/hmm.config" ;;
	m) cat "$HARNESS/config/hmm.config" ;;
	n) grep -vE '^CONFIG_(TEST_)?HMM_' "$HARNESS/config/hmm.config" ;;
	esac
}

# enabled OBJ FILE.c: has that configuration the file? By the lines of a Makefile above it.
enabled() {
	local place=${2%/*} object whole symbol part
	while [[ ! -e $tree/$place/Makefile && $place == */* ]]; do place=${place%/*}; done
	object=${2#"$place"/}
	object=${object%.c}.o
	# Part of a module of several, if that has a symbol of its own
	read -r whole part < <(sed -nE "s,^([a-z_]+)-(y|\\$\((CONFIG_[A-Z0-9_]+)\))[[:space:]]*[:+]=[[:space:]]*$object$,\1.o \3,p" \
		"$tree/$place/Makefile") || :
	[[ $whole != obj.o ]] || whole='' part=''
	symbol=$(sed -nE "s|^obj-\\$\((CONFIG_[A-Z0-9_]+)\)[[:space:]]*\+=[[:space:]]*${whole:-$object}$|\1|p" "$tree/$place/Makefile")
	[[ $symbol ]] && grep -qE "^$symbol=[ym]$" "$1/.config" && { [[ ! $part ]] || grep -qx "$part=y" "$1/.config"; }
}

# A configuration of what its Kconfig files and fragments say now; made only if they differ.
configure() {
	local obj=$1 sum
	shift
	fragment "$1" >"$obj/.hmm-fragments"
	sum=$(cat "$obj/.hmm-fragments" "$tree"/{,mm/,lib/}Kconfig* | sha256sum)
	[[ ! -f $obj/.config || $(cat "$obj/.hmm-config" 2>/dev/null) != "$sum" ]] || return 0
	kernel_make "$1" KCONFIG_ALLCONFIG="$obj/.hmm-fragments" allnoconfig || return
	echo "$sum" >"$obj/.hmm-config"
}

# build y|m|n [PATH...]: the objects of all files that the series has touched up to here, or
# of those that are given: of one configuration.
build() {
	local config=$1 obj=$HMM_CACHE/build/$key-series-$1 file objects=() said
	shift
	mkdir -p "$obj"
	configure "$obj" "$config" || return
	while read -r file; do
		! enabled "$obj" "$file" || objects+=("${file%.c}.o")
	done < <(git_ ls-files "${@:-*.c}" | grep -v ^tools/)
	echo "objects: ${objects[*]}"
	if [[ $config != n && -e $tree/mm/hmm_device.c && " ${objects[*]} " != *' mm/hmm_device.o '* ]]; then
		echo "mm/hmm_device.o is not among them"
		return 1
	fi
	kernel_make "$config" W=1 C=1 CHECK=sparse "${objects[@]}" >"$obj/.hmm-said" 2>&1 || { cat "$obj/.hmm-said"; return 1; }
	said=$(grep -E "^[^ ]*($(git_ ls-files '*.[ch]' | ours | paste -sd'|')):[0-9]+" "$obj/.hmm-said") || return 0
	echo "$said"
	return 1
}

# The program of the selftests, with the headers of this tree.
build_selftests() {
	local obj=$HMM_CACHE/build/$key-series-m
	kernel_make m headers || return
	rsync -rc --delete "$HARNESS/guest/" "$obj/hmm-guest/"
	make -f "$obj/hmm-guest/programs.mk" -j "$JOBS" TREE="$tree" OBJ="$obj" tests
}

# After the last patch: an entry of MAINTAINERS has each file that came or moved.
maintainers() {
	local file sections
	cd "$tree"
	while read -r file; do
		sections=$(perl scripts/get_maintainer.pl --no-tree --no-git --no-git-fallback --sections -f "$file" 2>/dev/null)
		[[ $sections == *'HMM - '* ]] || echo "$file: the entry of HMM does not have it"
	done < <(git_ diff --name-only --diff-filter=AR base.."$imported")
}

# What an import makes of the same kernel, file by file, against the last patch but
# those that are marked RFC.
same_tree() {
	local import=$temp/import file
	mkdir -p "$import"
	"$HARNESS/stage.sh" "$HMM_CACHE/pristine/$key" "$import" || return
	git_ archive "$imported" | tar -xmf - -C "$temp/series" || return
	# What both have, and what git knows that no import touches is as it is shipped
	while read -r file; do
		[[ -e $import/$file ]] || install -D "$HMM_CACHE/pristine/$key/$file" "$import/$file"
	done < <(git_ ls-tree -r --name-only "$imported")
	diff -r "$import" "$temp/series"
}

# Each semantic patch of the kernel that has a report mode. What they cannot do of
# themselves, or with this coccinelle, is named and no finding. bench_fail() of the
# benchmark prints errors that are no pointers as well: %pe is not for it.
coccinelle() {
	local script files options said found=0 ran=0
	cd "$tree"
	mapfile -t files < <(git_ ls-files '*.c' | ours | grep -v ^tools/)
	while read -r script; do
		read -ra options < <(sed -n 's,^// Options: *,,p' "$script" | paste -sd' ')
		if ! said=$(spatch -D report --very-quiet --no-show-diff --cocci-file "$script" "${options[@]}" \
			--jobs "$JOBS" --timeout 120 -I include -I arch/x86/include "${files[@]}" 2>"$temp/spatch"); then
			echo "$script does not run: $(tail -n 1 "$temp/spatch")"
			continue
		fi
		ran=$((ran + 1))
		said=$(grep -E '^[^ ]+\.[ch]:[0-9]+' <<<"$said" | grep -v '^mm/tests/hmm_bench\.c:.* %pe ') || continue
		echo "$said"
		found=1
	done < <(grep -rl '^virtual report' scripts/coccinelle --include='*.cocci' | sort)
	echo "$ran semantic patches ran"
	((ran > 0 && found == 0))
}

# The files that include linux/hmm.h, or a header that does; and what a patch that is
# marked RFC changes.
users() {
	local headers
	cd "$pristine"
	headers=$(grep -rlE '^#include <linux/hmm\.h>' --include='*.h' include drivers | sed 's,.*/,,' | paste -sd'|')
	grep -rlE "^#include (<linux/hmm\.h>|[<\"](.*/)?($headers)[>\"])" --include='*.c' drivers
	echo lib/test_hmm.c
	git_ diff --name-only "$imported"..hmm -- '*.c'
}

# object_of FILE.c: as make wants it. The Makefile of a directory may have no object of
# its own, and those of the directory be part of one beside it.
object_of() {
	local place=${1%/*} beside
	if ! grep -qs '^obj-' "$tree/$place/Makefile" "$tree/$place/Kbuild"; then
		beside=$(cd "$tree/${place%/*}" && grep -lE "\.\./${place##*/}\>" -- */Makefile | head -n 1)
		place=${place%/*}/${beside%/Makefile}/../${place##*/}
	fi
	echo "$place/$(basename "${1%.c}").o"
}

build_users() {
	local obj=$HMM_CACHE/build/$key-series-users file objects=()
	mkdir -p "$obj"
	kernel_make users KCONFIG_ALLCONFIG="$HARNESS/config/series-users.config" allmodconfig || return
	while read -r file; do
		objects+=("$(object_of "$file")")
	done < <(users | sort -u)
	echo "objects: ${objects[*]}"
	kernel_make users "${objects[@]}"
}

need bc binutils bison codespell flex gcc libc6-dev libelf-dev libssl-dev make patch perl \
	python3 python3-git python3-ply rsync sparse
! wants coccinelle || need coccinelle
lock series
lock_base
lock_out
run "$HARNESS/series.sh"
tree=$(cat "$OUT/series/tree")
key=${tree##*/}
pristine=$HMM_CACHE/pristine/$key
rm -rf "$dir"
mkdir -p "$dir"
need_space 3
temp series-check
mkdir "$temp/series"
echo "TAP version 13"
# A kernel may refuse the sparse that there is, and then does without
checks=W=1
if [[ ! -e $tree/scripts/checker-valid.sh || $(cd "$tree" && sh scripts/checker-valid.sh sparse -m64) == 1 ]]; then
	checks+=', sparse'
fi

git_ checkout --quiet --detach base
mapfile -t commits < <(git_ rev-list --reverse base..hmm)
number=0
imported=base
while read -r name rfc; do
	mail=$(compgen -G "$ROOT/out/series/$(printf '%04d' $((number + 1)))-*.patch")
	label=$(printf '%02d %s' $((number + 1)) "$name")
	check apply "$label: git am" apply "$mail" "${commits[number]}"
	[[ $rfc ]] || imported=${commits[number]}
	! wants checkpatch || check checkpatch "$label: checkpatch --strict" silent checkpatch "$mail"
	! wants codespell || check codespell "$label: codespell" silent spelling "$mail"
	! wants kernel-doc || check kernel-doc "$label: kernel-doc" silent kernel_doc
	if wants build && [[ $(touched ':!tools' ':!Documentation' ':!MAINTAINERS') ]]; then
		for config in y m n; do
			check build "$label: objects, $checks, HMM_DEVICE=$config" build "$config"
		done
	fi
	if wants build-core && [[ $(touched mm/hmm_device.c) ]]; then
		for config in y m; do
			check build-core "$label: mm/hmm_*.o, $checks, HMM_DEVICE=$config" build "$config" 'mm/hmm_*.c'
		done
	fi
	if wants build && [[ $(touched tools) ]]; then
		check build "$label: selftests" build_selftests
	fi
	number=$((number + 1))
done < <("$HARNESS/series.py" names)

! wants maintainers || check maintainers "all: MAINTAINERS" silent maintainers
! wants tree || check tree "all: the tree of an import" same_tree
if wants coccinelle; then
	check coccinelle "all: coccinelle" coccinelle
	log='' result "all: smatch" 0 "no package of Debian has it"
fi
if wants build && [[ $checks != *sparse ]]; then
	log='' result "all: sparse" 0 "this kernel refuses $(sparse --version)"
fi
! wants users || check users "all: drivers that use hmm_range_fault()" build_users
git_ checkout --quiet hmm

echo "1..$((passed + failed + skipped))"
for part in apply "${wanted[@]}"; do
	printf '# %-12s %5d s\n' "$part" "${took[$part]:-0}"
done
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0))
