#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make test-stock: the selftests on Debian's stock kernel of that base, as it is, in
# QEMU, with the modules that "make module" builds for it, and the driver of hmm.rst.
# No kernel is built. What needs a kernel with checkers or KUnit is skipped. KTAP goes
# to stdout as it comes; the last line is "N passed, N failed, N skipped".
#
# usage: [BASE=6.12|6.1] [RUNS=N] [ARGS="[suite] arguments"] harness/test-stock.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

[[ -z $KDIR ]] || die "KDIR=$KDIR: make test-stock boots Debian's kernel of BASE; make module KDIR=path builds the modules for another"
[[ -z $KCSAN$RT ]] || die "KCSAN=$KCSAN RT=$RT: a stock kernel is as it is; make test takes them"
lock_out
status=0
run "$HARNESS/module.sh"
run "$HARNESS/build.sh" stock
# It has thousands of drivers, which set themselves up before init
export HMM_BOOT_LIMIT=${HMM_BOOT_LIMIT:-300}
# shellcheck disable=SC2086 # words
HMM_FLAVOUR=stock HMM_KERNEL="test hmm.runs=$RUNS" run "$HARNESS/boot.sh" test ${ARGS:-own} || status=1
awk -f "$HARNESS/ktap.awk" -v bad="$status" "$OUT/stock/test/out.ktap"
