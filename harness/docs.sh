#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make docs: the documents and the kernel-doc of this project as HTML, in out/docs/:
# the book about memory management of an imported tree, by the kernel's own Sphinx. A
# warning about a file that an import touches is a failure.
#
# usage: [BASE=latest] harness/docs.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

html=$ROOT/out/docs
log=$OUT/docs/build.log

build() {
	make -C "$tree" O="$obj" SPHINXDIRS="$book" SPHINXOPTS="-j $JOBS" htmldocs
}

# Of the files of an import, kernel-doc included; of the index only what is about them, as
# one book alone has links to others.
warnings() {
	local files
	files=$(landed "$tree" | sed 's/[.]/\\./g' | paste -sd'|')
	grep -iE "warning|error" "$log" | grep -E "($files)|/index\.rst:.*hmm"
}

need gcc libc6-dev make perl-base python3 python3-sphinx python3-yaml rsync
lock_out
lock_base
need_space 1
mkdir -p "${log%/*}"
key=$("$HARNESS/source.sh")
"$HARNESS/import.sh" "$key"
tree=$HMM_CACHE/tree/$key
obj=$HMM_CACHE/build/$key-docs
book=$(basename "$(dirname "$(land Documentation/vm/hmm.rst "$tree")")")
# What Sphinx keeps of an earlier run it does not warn of again
rm -rf "$obj"
mkdir -p "$obj"
step "building the documents of Linux ${key#*_}" "$log" build
if warnings >&2; then
	die "docs: warnings about this project's files; the whole output is in $log"
fi
[[ -f $obj/Documentation/output/$book/hmm-device.html ]] || die "docs: no hmm-device.html was made; the whole output is in $log"
rm -rf "$html"
mkdir -p "$html"
rsync -a --exclude=.doctrees --exclude=_sources "$obj/Documentation/output/$book/" "$html/"
say "docs: out/docs/hmm-device.html, out/docs/hmm-tests.html, out/docs/hmm-performance.html"
