#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make series: what an import puts into a kernel tree, as patches for linux-mm: mails
# with a cover letter in out/series/, and a branch "hmm" of a git repository in the
# cache. That has the whole kernel as its working tree, of which git knows the files
# that the series touches. harness/series/manifest says what each patch brings. The
# same input gives the same patches.
#
# usage: [BASE=latest] harness/series.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

mails=$ROOT/out/series

# Neither the settings nor the name of whoever runs this may show in the patches.
git_() {
	git -C "$tree" -c core.abbrev=12 "$@"
}

identity() {
	local author
	author=$(data series/manifest | sed -n 's/^author[[:space:]]*//p')
	export GIT_AUTHOR_NAME=${author% <*} GIT_COMMITTER_NAME=${author% <*}
	author=${author#*<}
	export GIT_AUTHOR_EMAIL=${author%>} GIT_COMMITTER_EMAIL=${author%>}
	GIT_COMMITTER_DATE=$(data series/manifest | sed -n 's/^date[[:space:]]*//p')
	export GIT_COMMITTER_DATE GIT_AUTHOR_DATE=$GIT_COMMITTER_DATE
	export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
}

# The kernel as it is shipped, but for the files that git knows (hard links: git
# writes no file in place).
working_tree() {
	local known=$temp/known
	{ git -C "$temp/repository" log --name-only --format= --all; echo .git; } | sort -u >"$known"
	others() { awk 'FILENAME == ARGV[1] { mine[$0]; next } !($1 in mine) && $1 !~ /^\.git\//' "$known" -; }
	if [[ ! -d $tree ]] || ! cmp -s <(listing "$tree" | others) <(others <"$pristine.list"); then
		mkdir -p "${tree%/*}"
		rm -rf "$tree"
		cp -al "$pristine" "$tree"
	fi
	rm -rf "$tree/.git"
	mv "$temp/repository/.git" "$tree/.git"
}

import() {
	mkdir "$temp/final"
	"$HARNESS/stage.sh" "$pristine" "$temp/final"
	git init --quiet --initial-branch=hmm "$temp/repository"
	"$HARNESS/series.py" stream "$pristine" "$temp/final" "$version" refs/heads/hmm >"$temp/stream"
	git -C "$temp/repository" fast-import --quiet <"$temp/stream"
}

branch() {
	echo '*' >"$tree/.git/info/exclude"
	git_ tag base "$(git_ rev-list --max-parents=0 hmm)"
	git_ config branch.hmm.description "$("$HARNESS/series.py" message cover "$version")"
	git_ reset --quiet --hard hmm
}

# All of them, or none.
mail() {
	mkdir "$temp/mails"
	git_ format-patch --quiet --output-directory "$temp/mails" --cover-letter --cover-from-description=subject \
		--no-signature --rfc --numbered base..hmm
	mkdir -p "${mails%/*}"
	rm -rf "$mails"
	cp -r "$temp/mails" "$mails"
}

need git make patch perl-base python3
# Whatever stops this leaves no mails of another run
rm -rf "$mails"
"$HARNESS/series.py" check >&2 || die "series: harness/series: correct what is above"
identity
lock series
lock_base
mkdir -p "$OUT/series"
key=$("$HARNESS/source.sh")
pristine=$HMM_CACHE/pristine/$key
tree=$HMM_CACHE/series/$key
version=$(make -s -C "$pristine" kernelversion)
need_space 1
temp series
import
working_tree
branch
mail
echo "$tree" >"$OUT/series/tree"
say "series: $(find "$mails" -name '*.patch' ! -name '0000-*' | wc -l) patches for Linux $version in out/series/; branch hmm in $tree"
