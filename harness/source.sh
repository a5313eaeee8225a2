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

store=$HMM_CACHE/pristine
log=$OUT/source.log
apt=()			# options that select the list directory; empty: the machine's own

# The archive that this machine is configured for: "main archive URI" of Debian.
debian_uri() {
	# shellcheck disable=SC2016 # apt expands these
	apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(REPO_URI)' 'Created-By: Packages' |
		awk -F'|' '$1 == "Debian" && $2 ~ /^[a-z]+$/ { print $3; exit }'
}

# private_lists SUITE: package lists of our own, so that the machine's stay as they are.
private_lists() {
	local dir=$HMM_CACHE/apt/$1 uri
	apt=(-o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o "Dir::State::status=$dir/status"
		-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
		-o APT::Sandbox::User=root)
	[[ -z $(find "$dir/fresh" -mmin -1440 2>/dev/null) ]] || return 0
	need debian-archive-keyring
	uri=$(debian_uri)
	if [[ -z $uri && $EUID == 0 ]]; then
		try "reading this machine's package lists" "$log" apt-get update || :
		uri=$(debian_uri)
	fi
	[[ -n $uri ]] || { say "this machine's apt names no Debian archive; run: apt-get update"; return 1; }
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	: >"$dir/status"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $1 main" >"$dir/sources.list"
	try "reading the package list of $1" "$log" apt-get "${apt[@]}" -o APT::Update::Error-Mode=any update || return 1
	touch "$dir/fresh"
}

# field NAME PACKAGE: of the candidate version, from the lists in use; empty if none.
field() {
	apt-cache "${apt[@]}" show --no-all-versions "$2" 2>/dev/null | sed -n "s/^$1: //p" | head -n 1
}

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

download() {
	local sha
	sha=$(field SHA256 "$package")
	deb=$HMM_CACHE/debs/$package-$sha.deb
	mkdir -p "${deb%/*}"
	! sha256sum --status -c - <<<"$sha  $deb" 2>/dev/null || return 0
	need_space 1
	temp deb
	try "downloading $package $version" "$log" get_deb "$temp" || return 1
	mv "$temp"/*.deb "$deb"
}

get_deb() {
	cd "$1" && apt-get "${apt[@]}" -o APT::Sandbox::User=root download "$package=$version"
}

unpack() {
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package.tar.xz" | tar -xJ --strip-components=1 -C "$1"
}

# settle KEY DIR: makes DIR the pristine tree of that key.
settle() {
	listing "$2" >"$2.list"
	rm -rf "${store:?}/$1" "$store/$1.list"
	mv "$2" "$store/$1"
	mv "$2.list" "$store/$1.list"
}

whole() {
	[[ -f $store/$1.list && -d $store/$1 ]] && cmp -s <(listing "$store/$1") "$store/$1.list"
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
		download || { tail -n 3 "$log" >&2; die "$package $version: download failed, see $log; run: apt-get update"; }
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
