#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make module: HMM and its dummy driver as modules for a kernel that is there already,
# without building one: Debian's stock kernel of that base, whose headers are unpacked
# in the cache, or the one whose build or header directory KDIR names. In
# out/$BASE/module are then the modules, and what other modules build against: include/
# and Module.symvers.
#
# usage: [BASE=6.12|6.1|KDIR=path] harness/module.sh
#	 harness/module.sh source DIRECTORY	only the source, as Kbuild needs it

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

dir=$OUT/module
log=$OUT/module.log

# source_to DIRECTORY: ours as they lie in a kernel, and what is only for here.
source_to() {
	local from to
	while read -r from to; do
		[[ -f $ROOT/$from ]] || die "module: $from: missing from this checkout; harness/files lists it"
		install -Dm 644 "$ROOT/$from" "$1/$to"
	done < <(data files | grep -E '^(include|lib|mm)/[^[:space:]]*\.[ch][[:space:]]' | grep -v '^mm/tests/')
	install -m 644 -t "$1" "$ROOT"/module/{Kbuild,compat.h}
}

# Sets kernel, the directory that KDIR names: one with all that a module needs.
given_kernel() {
	local file
	kernel=$(realpath -e -- "$KDIR" 2>/dev/null) || die "KDIR=$KDIR: no such directory"
	for file in Makefile include/config/auto.conf include/generated/utsrelease.h; do
		[[ -e $kernel/$file ]] ||
			die "KDIR=$KDIR: no configured kernel ($file is missing); give a build or header directory, as /lib/modules/VERSION/build is"
	done
	[[ -s $kernel/Module.symvers ]] ||
		die "KDIR=$KDIR: no Module.symvers: its modules were never built; run there: make modules"
	! grep -q '^CONFIG_HMM_DEVICE=' "$kernel/include/config/auto.conf" ||
		die "KDIR=$KDIR: has HMM in its tree, and needs no other; run there: make modules"
}

# check_release: the project needs what 6.1 has. Sets release.
check_release() {
	local v
	release=$(sed -n 's/^#define UTS_RELEASE "\(.*\)"$/\1/p' "$kernel/include/generated/utsrelease.h")
	IFS=.- read -ra v <<<"$release"
	((v[0] > 6 || v[0] == 6 && v[1] >= 1)) || die "${KDIR:-$BASE}: Linux $release: too old; 6.1 is the oldest that works"
}

if [[ ${1:-} == source ]]; then
	source_to "$2"
	exit
fi
[[ $dir != *[[:space:]:]* ]] || die "$ROOT: the kernel's makefiles take no path with a space or a colon; move the checkout"
lock_out
need gcc libc6-dev libelf-dev make
if [[ $KDIR ]]; then
	given_kernel
else
	# What these kernels were built with, which their headers ask for
	need dpkg gcc-12 pahole
	lock_base
	kernel=$("$HARNESS/stock.sh" headers)
fi
check_release
# From scratch: it takes seconds, and the last one may have been another kernel's.
rm -rf "$dir"
mkdir -p "$dir"
source_to "$dir"
step "building the modules for Linux $release" "$log" make -C "$kernel" M="$dir" HMM_TESTS=1 -j "$JOBS" modules
echo "$release" >"$dir/release"
say "hmm_core.ko and test_hmm_device.ko for Linux $release are in ${dir#"$PWD/"}"
# Where this kernel's headers are is known here only
say "a driver against them has in its Kbuild:"
cat >&2 <<-END
	ccflags-y += -I$dir/include
	KBUILD_EXTRA_SYMBOLS := $dir/Module.symvers
END
say "and is built, in its directory, by:"
echo "make -C $kernel M=\$PWD modules" >&2
