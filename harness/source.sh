#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Puts the pristine kernel source that BASE or KDIR names into the cache, whole
# or not at all, and prints its key: the name of its directory in pristine/.
#
# usage: BASE=6.12|6.1|latest harness/source.sh; KDIR=path harness/source.sh
# The caller holds the lock of this base.

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"
# shellcheck source=debian.sh
. "${BASH_SOURCE[0]%/*}/debian.sh"

store=$HMM_CACHE/pristine
log=$OUT/source.log

# Sets package and version of the wanted source, or fails.
find_package() {
	case $BASE in
	6.12) package=linux-source-6.12 suite=trixie ;;
	6.1) package=linux-source-6.1 suite=bookworm ;;
	latest) package='' suite=trixie-backports ;;
	esac
	if [[ -n $package && -n $(field SHA256 "$package") ]]; then
		version=$(field Version "$package")
		return
	fi
	private_lists "$suite" || [[ -e $HMM_CACHE/apt/$suite/fresh ]] || return 1
	[[ -n $package ]] || package=$(field Depends linux-source | grep -oE 'linux-source-[0-9.]+' | head -n 1)
	version=$(field Version "$package")
	[[ -n $version ]]
}

unpack() {
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package.tar.xz" | tar -xJ --strip-components=1 -C "$1"
}

from_debian() {
	local newest
	if ! find_package; then
		newest=$(find "$store" -maxdepth 1 -name "${BASE}_*.list" -printf '%T@ %f\n' 2>/dev/null | sort -n | tail -n 1)
		newest=${newest#* }
		newest=${newest%.list}
		{ [[ -n $newest ]] && whole "$newest"; } ||
			die "BASE=$BASE: no package list has its source and none is cached; see $log, run: apt-get update"
		say "no network: using the cached source ${newest#*_}"
		key=$newest
		return
	fi
	key=${BASE}_${version//[~:]/-}
	[[ $BASE != latest ]] || say "latest is $package $version"
	if ! whole "$key"; then
		[[ ! -d $store/$key ]] || say "the cached source $key is damaged; unpacking it again"
		need dpkg tar xz-utils
		download "$package" "$version" || { tail -n 3 "$log" >&2; die "$package $version: download failed, see $log; run: apt-get update"; }
		need_space 4
		temp source
		step "unpacking $package $version" "$log" unpack "$temp"
		chmod 755 "$temp"
		settle "$key" "$temp"
		prune "$key"
	fi
}

# Versions that Debian has replaced are of no use to anyone.
prune() {
	local old
	for old in "$store/${BASE}_"*.list; do
		old=${old##*/}
		old=${old%.list}
		[[ $old == "$1" ]] || rm -rf "${store:?}/$old"{,.list} "${HMM_CACHE:?}/tree/$old"{,.imported} "$HMM_CACHE/series/$old" \
			"$HMM_CACHE/build/$old"-*
	done
}

from_directory() {
	local path
	path=$(realpath -- "$KDIR")
	[[ -f $path/Kbuild && -f $path/mm/Kconfig && -f $path/Makefile ]] ||
		die "KDIR=$KDIR: no kernel source tree; give the directory with the kernel's Makefile"
	need rsync
	need_space 4
	key=kdir_$(sha256sum <<<"$path" | head -c 12)
	mkdir -p "$store/$key"
	step "copying $path" "$log" rsync -a --delete --delete-excluded \
		--exclude=/.git --exclude='*.o' --exclude='*.ko' --exclude='.*.cmd' --exclude='*.a' --exclude=/.config \
		--exclude=/include/generated --exclude=/include/config --exclude='/arch/*/include/generated' \
		--exclude=/vmlinux --exclude=__pycache__ "$path/" "$store/$key/"
	listing "$store/$key" >"$store/$key.list"
}

# check_version KEY: the project needs what 6.1 has.
check_version() {
	local v p
	v=$(sed -n 's/^VERSION = //p' "$store/$1/Makefile")
	p=$(sed -n 's/^PATCHLEVEL = //p' "$store/$1/Makefile")
	((v > 6 || v == 6 && p >= 1)) || die "${KDIR:-$BASE}: Linux $v.$p: too old; 6.1 is the oldest that works"
}

mkdir -p "$store"
case $BASE in
6.12 | 6.1 | latest) from_debian ;;
kdir) from_directory ;;
*) die "BASE=$BASE: no such base; use 6.12, 6.1, latest, or KDIR=path" ;;
esac
check_version "$key"
echo "$key"
