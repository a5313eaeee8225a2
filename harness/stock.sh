#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Unpacks a package of Debian's stock kernel of that base into the cache, whole or not
# at all; nothing is installed. Prints where: of headers the directory that modules are
# built against, of the image the one with its boot/ and lib/modules/.
#
# usage: BASE=6.12|6.1 harness/stock.sh headers|image
# The caller holds the lock of this base.

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"
# shellcheck source=debian.sh
. "${BASH_SOURCE[0]%/*}/debian.sh"

what=$1
store=$HMM_CACHE/stock
log=$OUT/stock.log

# depends PACKAGE REGEX: the first dependency of that form.
depends() {
	field Depends "$1" | grep -oE "$2" | head -n 1
}

# Sets package and version: what a metapackage of that base stands for.
newest() {
	local meta
	for meta in "linux-$what-$BASE-amd64" "linux-$what-amd64"; do
		version=$(field Version "$meta")
		[[ $version == "$BASE".* ]] || continue
		package=$(depends "$meta" "linux-$what-[0-9][^ ,]*")
		return
	done
	return 1
}

# Debian 12 has 6.1, and 6.12 among its security updates; older lists, in backports.
find_package() {
	local suite=bookworm
	[[ $BASE != 6.12 ]] || suite=bookworm-backports
	newest && return
	private_lists "$suite" || [[ -e $HMM_CACHE/apt/$suite/fresh ]] || return 1
	newest
}

# Those that belong together: what depends on the kernel, what does not, and the tools.
packages() {
	echo "$package"
	[[ $what == headers ]] || return 0
	depends "$package" 'linux-headers-[^ ,]*-common'
	depends "$package" 'linux-kbuild-[^ ,]*'
}

# The makefile names the other directory where the package would install it.
relink() {
	# shellcheck disable=SC2016 # make expands
	sed -i 's|^include /usr/src/|include $(dir $(lastword $(MAKEFILE_LIST)))../|' "$1"/usr/src/*-amd64/Makefile
}

get() {
	local p names
	mapfile -t names < <(packages)
	need_space 2
	temp stock
	for p in "${names[@]}"; do
		download "$p" "$(field Version "$p")" ||
			{ tail -n 3 "$log" >&2; die "$p: download failed, see $log; run: apt-get update"; }
		step "unpacking $p" "$log" dpkg-deb -x "$deb" "$temp"
	done
	[[ $what != headers ]] || relink "$temp"
	chmod 755 "$temp"
}

# Versions that Debian has replaced are of no use to anyone.
prune() {
	local old
	for old in "$store/${BASE}_"*"-$what.list"; do
		old=${old##*/}
		old=${old%.list}
		[[ $old == "$1" ]] || rm -rf "${store:?}/$old"{,.list}
	done
}

case $BASE in
6.12 | 6.1) ;;
latest) die "BASE=latest: its stock kernel is not for Debian 12; use BASE=6.12 or 6.1, or make module KDIR=path" ;;
*) die "BASE=$BASE: no such base; use 6.12 or 6.1" ;;
esac
mkdir -p "$store"
if find_package; then
	key=${BASE}_${version//[~:]/-}-$what
	if ! whole "$key"; then
		[[ ! -d $store/$key ]] || say "the cached $package is damaged; unpacking it again"
		get
		settle "$key" "$temp"
		prune "$key"
	fi
else
	key=$(cd "$store" && find . -maxdepth 1 -name "${BASE}_*-$what.list" -printf '%f\n')
	key=${key%.list}
	{ [[ -n $key ]] && whole "$key"; } ||
		die "BASE=$BASE: no package list has its stock kernel and none is cached; see $log, run: apt-get update"
	say "no network: using the cached stock kernel $key"
fi
case $what in
headers) echo "$store/$key"/usr/src/linux-headers-*-amd64 ;;
image) echo "$store/$key" ;;
esac
