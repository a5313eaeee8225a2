#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make dkms-deb: the package hmm-dkms, out/hmm-dkms_VERSION_all.deb, by which DKMS builds
# hmm_core.ko on the machine where it is installed.
#
# make dkms-test: installs it in a bare Debian 12 with the headers of the stock kernel
# of that base, and looks whether the module is built and installed; builds the driver of
# hmm.rst against what the package has installed; loads and unloads both on that kernel,
# in QEMU; and removes the package. TAP; the last line is "N passed, N failed, N skipped".
#
# usage: [BASE=6.12|6.1] harness/dkms.sh deb|test

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"
# shellcheck source=debian.sh
. "${BASH_SOURCE[0]%/*}/debian.sh"

dir=$OUT/dkms
log=$OUT/dkms/dkms.log
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"$/\1/p' "$ROOT/module/dkms.conf")
[[ $version == "$(cat "$ROOT/VERSION")" ]] || die "dkms: module/dkms.conf has version $version, VERSION another; make them one"
deb=$ROOT/out/hmm-dkms_${version}_all.deb

# fill FILE: prints it with what is filled in of the package's control files.
fill() {
	local maintainer
	maintainer=$(git -C "$ROOT" log -1 --format='%an <%ae>' 2>/dev/null) || maintainer='unknown <unknown@localhost>'
	sed "s|@VERSION@|$version|g; s|@MAINTAINER@|$maintainer|" "$ROOT/module/debian/$1"
}

make_deb() {
	local package=$temp/package source file
	source=$package/usr/src/hmm-$version
	mkdir -p "$package/DEBIAN" "$source"
	"$HARNESS/module.sh" source "$source"
	install -m 644 -t "$source" "$ROOT/module/dkms.conf"
	install -m 755 -t "$source" "$ROOT/module/keep-symvers"
	install -Dm 644 "$ROOT/COPYING" "$package/usr/share/doc/hmm-dkms/copyright"
	for file in control postinst prerm; do
		fill "$file" >"$package/DEBIAN/$file"
	done
	chmod 755 "$package"/DEBIAN/p*
	chmod 755 "$package"
	# The same files make the same package, as far as git knows when they were made
	SOURCE_DATE_EPOCH=$(git -C "$ROOT" log -1 --format=%ct 2>/dev/null || date +%s)
	export SOURCE_DATE_EPOCH
	mkdir -p "${deb%/*}"
	dpkg-deb --root-owner-group --build "$package" "$deb.new" >/dev/null
	mv "$deb.new" "$deb"
	rm -r "$package"
}

# A Debian 12 with DKMS and no kernel, made once. Sets chroot, a copy of it.
bare_debian() {
	local suite=bookworm new uri
	store=$HMM_CACHE/debian
	mkdir -p "$store"
	if [[ ! -e $store/$suite.tar ]]; then
		uri=$(debian_uri)
		[[ -n $uri ]] || die "dkms-test: this machine's apt names no Debian archive; run: apt-get update"
		need debootstrap
		new=$temp/new
		step "making a bare Debian ($suite)" "$log" debootstrap --variant=minbase \
			--include=dkms,gcc-12,libelf1,make,pahole "$suite" "$new" "$uri"
		rm -rf "$new"/var/cache/apt/archives/*.deb "$new"/var/lib/apt/lists/*
		tar -C "$new" -cf "$store/$suite.tar.new" .
		mv "$store/$suite.tar.new" "$store/$suite.tar"
		rm -rf "$new"
	fi
	chroot=$temp/chroot
	mkdir -p "$chroot"
	step "unpacking a bare Debian ($suite)" "$log" tar -C "$chroot" -xf "$store/$suite.tar"
}

# inside COMMAND...: in the chroot, with a procfs that goes with the command.
inside() {
	# shellcheck disable=SC2016 # the inner shell expands
	unshare --mount --fork -- /bin/sh -c 'mount -t proc proc "$1/proc" && shift && exec chroot "$@"' - "$chroot" "$chroot" \
		env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive "$@"
}

install_headers() {
	local headers root
	headers=$("$HARNESS/stock.sh" headers)
	root=${headers%/usr/src/*}
	release=$(sed -n 's/^#define UTS_RELEASE "\(.*\)"$/\1/p' "$headers/include/generated/utsrelease.h")
	cp -a "$root"/usr/src/. "$chroot/usr/src/"
	cp -a "$root"/usr/lib/. "$chroot/usr/lib/"
	cp -a "$root"/lib/modules "$chroot/lib/"
}

# result NAME COMMAND...
result() {
	local name=$1
	shift
	number=$((number + 1))
	if try "$name" "$dir/$name.log" "$@"; then
		echo "ok $number $name" | tee -a "$dir/out.ktap"
	else
		tail -n 20 "$dir/$name.log" >&2
		echo "not ok $number $name" | tee -a "$dir/out.ktap"
		exit 1
	fi
}

installs() {
	local built
	inside dpkg -i "/${deb##*/}" || return
	built=$(inside dkms status)
	echo "$built"
	[[ $built == "hmm/$version, $release, x86_64: installed" ]] || return
	inside modinfo -k "$release" hmm_core
}

# The Kbuild of README, with the two places where DKMS has what it asks for.
driver_builds() {
	mkdir "$chroot/gpu"
	example >"$chroot/gpu/gpu.c"
	example_kbuild "/usr/src/hmm-$version" "/var/lib/dkms/hmm/$version/$release/x86_64/Module.symvers" >"$chroot/gpu/Kbuild"
	inside make -C "/lib/modules/$release/build" M=/gpu W=1 KCFLAGS=-Werror modules
}

# An archive after the one of "make test-stock": its files take the place of those.
loads_and_unloads() {
	local modules=$temp/more/lib/modules
	mkdir -p "$modules"
	cp "$(find "$chroot/lib/modules/$release/updates" -name 'hmm_core.ko*')" "$chroot/gpu/gpu.ko" "$modules/" || return
	! compgen -G "$modules/*.xz" >/dev/null || xz -d "$modules"/*.xz || return
	(cd "$temp/more" && find . | cpio -o -H newc --quiet -R 0:0) | cat "$OUT/stock/initramfs.cpio" - >"$temp/initramfs.cpio" || return
	HMM_BOOT_LIMIT=${HMM_BOOT_LIMIT:-300} HMM_FLAVOUR=stock HMM_KERNEL=dkms HMM_INITRAMFS=$temp/initramfs.cpio \
		"$HARNESS/boot.sh" test driver
}

goes() {
	inside dpkg -r hmm-dkms || return
	[[ -z $(inside dkms status) && -z $(find "$chroot/lib/modules/$release" -name 'hmm_core.ko*') ]]
}

test_deb() {
	[[ -z $KDIR ]] || die "KDIR=$KDIR: make dkms-test is for Debian's kernel of BASE"
	((EUID == 0)) || die "dkms-test: not root: a bare Debian cannot be made; run as root"
	rm -rf "$dir"
	mkdir -p "$dir"
	need_space 3
	run "$HARNESS/module.sh"
	run "$HARNESS/build.sh" stock
	lock_base
	bare_debian
	install_headers
	cp "$deb" "$chroot/"
	number=0
	printf '# suite: dkms\nTAP version 13\n1..4\n' | tee "$dir/out.ktap"
	# What does not come is a failure
	(
		result installs installs
		result driver-builds driver_builds
		result loads-and-unloads loads_and_unloads
		result goes goes
	) || :
	awk -f "$HARNESS/ktap.awk" "$dir/out.ktap"
}

lock_out
need dpkg
temp dkms
make_deb
say "the package is ${deb#"$PWD/"}"
[[ $1 != test ]] || test_deb
