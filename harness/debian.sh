# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# What is taken from the Debian archive: package lists, packages, and what is unpacked
# of them in the cache. Sourced after lib.sh, never run; nothing is installed.
#
# usage: . "${BASH_SOURCE[0]%/*}/debian.sh"; then set store, the directory of the
# cache for what is unpacked, and log, where the output of apt goes
# shellcheck disable=SC2154 # which sets log

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

# download PACKAGE VERSION: from the lists in use into the cache. Sets deb.
download() {
	local sha temp
	sha=$(field SHA256 "$1")
	deb=$HMM_CACHE/debs/$1-$sha.deb
	mkdir -p "${deb%/*}"
	! sha256sum --status -c - <<<"$sha  $deb" 2>/dev/null || return 0
	need_space 1
	temp deb
	try "downloading $1 $2" "$log" get_deb "$temp" "$1=$2" || return 1
	mv "$temp"/*.deb "$deb"
}

get_deb() {
	cd "$1" && apt-get "${apt[@]}" -o APT::Sandbox::User=root download "$2"
}

# settle KEY DIR: makes DIR what the store has of that key.
settle() {
	listing "$2" >"$2.list"
	rm -rf "${store:?}/$1" "$store/$1.list"
	mv "$2" "$store/$1"
	mv "$2.list" "$store/$1.list"
}

whole() {
	[[ -f $store/$1.list && -d $store/$1 ]] && cmp -s <(listing "$store/$1") "$store/$1.list"
}
