#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make dist: what is committed, as out/hmm-core-VERSION.tar.xz, with the patches of the
# series in it as series/. The same commit gives the same bytes.
#
# usage: [BASE=latest] harness/dist.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

need git tar xz-utils
cd "$ROOT"
version=$(cat VERSION)
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || die "dist: VERSION: \"$version\" is no version; three numbers with dots between"
grep -qF "## $version" CHANGELOG.md || die "dist: CHANGELOG.md: nothing about $version; add a section \"## $version\""
changed=$(git status --porcelain 2>/dev/null) ||
	die "dist: $ROOT is no git checkout; a tarball is made of a commit"
[[ -z $changed ]] || die "dist: not committed: $(cut -c4- <<<"$changed" | paste -sd' '); commit or remove it"
lock series
run "$HARNESS/series.sh"
need_space 1
temp dist
name=hmm-core-$version
git archive --format=tar --prefix="$name/" HEAD >"$temp/$name.tar"
tar --append --file="$temp/$name.tar" --sort=name --mtime="@$(git log -1 --format=%ct)" \
	--owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --transform="s,^,$name/," -C "$ROOT/out" series
xz --threads=1 "$temp/$name.tar"
mv "$temp/$name.tar.xz" "$ROOT/out/"
say "dist: out/$name.tar.xz, $(stat -c %s "$ROOT/out/$name.tar.xz") bytes, sha256 $(sha256sum <"$ROOT/out/$name.tar.xz" | cut -d' ' -f1)"
