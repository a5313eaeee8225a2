#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Puts what stage.sh makes into a copy of a pristine kernel tree. Writes only what
# differs and takes back what an earlier import left, so that a build afterwards
# compiles only what changed.
#
# usage: harness/import.sh KEY (from source.sh); prints nothing
# The caller holds the lock of this base.

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

pristine=$HMM_CACHE/pristine/$1
tree=$HMM_CACHE/tree/$1
record=$tree.imported		# every path that this or an earlier import wrote

# The tree is the pristine one but for the recorded paths, else it is made anew
# (hard links: nothing here writes a file in place).
fresh_tree() {
	mkdir -p "${tree%/*}"
	touch "$record"
	if [[ -d $tree ]] && cmp -s <(listing "$tree" | others) <(others <"$pristine.list"); then
		return
	fi
	[[ ! -d $tree ]] || say "the working tree in the cache is not what it was; making it again"
	rm -rf "$tree"
	: >"$record"
	cp -al "$pristine" "$tree"
}

others() {
	awk 'FILENAME == ARGV[1] { mine[$0]; next } !($1 in mine)' "$record" -
}

# Paths of an earlier import go back, with a new time so that make sees it.
take_back() {
	local path
	while IFS= read -r path; do
		if [[ -e $stage/$path ]]; then
			continue
		elif [[ ! -e $pristine/$path ]]; then
			rm -f "${tree:?}/$path"
		elif ! cmp -s "$pristine/$path" "$tree/$path"; then
			rm -f "${tree:?}/$path"
			cp "$pristine/$path" "$tree/$path"
		fi
	done <"$record"
}

temp import
stage=$temp
chmod 755 "$stage"
"$HARNESS/stage.sh" "$pristine" "$stage"
fresh_tree
find "$stage" -type f -printf '%P\n' | sort -u - "$record" >"$record.new"
mv "$record.new" "$record"
take_back
rsync -rcp "$stage/" "$tree/"
