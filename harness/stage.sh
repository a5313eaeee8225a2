#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Writes into a directory every file that this project changes in a kernel tree or
# adds to it: the hooks, the files, and what an older kernel needs besides. Stops with
# the reason if anything does not fit exactly.
#
# usage: harness/stage.sh PRISTINE DIRECTORY (empty)

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

pristine=$1
stage=$2

# stage_of PATH: a kernel file on its way, at first as it is in the pristine tree.
stage_of() {
	staged=$stage/$1
	[[ ! -e $staged ]] || return 0
	mkdir -p "${staged%/*}"
	cp -p "$pristine/$1" "$staged"
}

# hook PATH OPERATION CONDITION ANCHOR TEXT
hook() {
	local file count
	file=$(in_tree "$1" "$pristine")
	[[ -f $pristine/$file ]] || die "import: $file: not in this kernel; harness/hooks expects it"
	[[ $3 != 'without '* ]] || ! grep -qF -- "${3#without }" "$pristine/$file" || return 0
	stage_of "$file"
	count=$(grep -cFx -- "$4" "$staged") || :
	[[ $3 != if-there || $count -gt 0 ]] || return 0
	((count == 1)) || die "import: $file: anchor \"$4\" found $count times, not once; correct harness/hooks"
	op=$2 anchor=$4 text=$5 awk '$0 != ENVIRON["anchor"] { print; next }
		ENVIRON["op"] == "after" { print }
		{ print ENVIRON["text"] }
		ENVIRON["op"] == "before" { print }' "$staged" >"$staged.new"
	chmod --reference="$staged" "$staged.new"
	mv "$staged.new" "$staged"
}

hooks() {
	local line path='' op='' condition='' anchor='' text=''
	while IFS= read -r line; do
		case $line in
		\<*) anchor=${line#<} ;;
		\>*) text+=${text:+$'\n'}${line#>} ;;
		*)
			[[ -z $path ]] || hook "$path" "$op" "$condition" "$anchor" "$text"
			read -r path op condition <<<"$line"
			text=''
			;;
		esac
	done < <(data hooks; echo end)
}

# our_file PATH LANDS-AS
our_file() {
	local to
	to=$(in_tree "$2" "$pristine")
	[[ -f $ROOT/$1 ]] || die "import: $1: missing from this checkout; harness/files lists it"
	[[ ! -e $pristine/$to ]] || die "import: $to: this kernel has it already; is it an imported tree?"
	install -Dm 644 "$ROOT/$1" "$stage/$to"
}

# In a kernel that may lack what compat.h provides, each of our objects includes that first.
compat() {
	local directory file
	(($(sed -n 's/^VERSION = //p' "$pristine/Makefile") < 7)) || return 0
	install -Dm 644 "$ROOT/module/compat.h" "$stage/include/linux/hmm_compat.h"
	for directory in lib mm; do
		stage_of "$directory/Makefile"
		while read -r file; do
			echo "CFLAGS_$file.o += -include \$(srctree)/include/linux/hmm_compat.h"
		done < <(landed "$pristine" | sed -n "s|^$directory/\(.*\)\.c\$|\1|p") >>"$stage/$directory/Makefile"
	done
}

hooks
while read -r from to; do our_file "$from" "$to"; done < <(data files)
compat
if [[ -f $ROOT/MAINTAINERS.patch ]]; then
	stage_of MAINTAINERS
	# As in_tree does it
	[[ -d $pristine/tools/testing/selftests/mm ]] && selftests=mm || selftests=vm
	sed "s|selftests/mm/|selftests/$selftests/|" "$ROOT/MAINTAINERS.patch" |
		patch -s -F0 --no-backup-if-mismatch -d "$stage" -p1 >&2 ||
		die "import: MAINTAINERS.patch does not apply to this kernel; correct its context"
fi
