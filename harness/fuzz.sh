#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make fuzz: random and malformed calls of the dummy devices for MINUTES, in QEMU, on
# the debug kernel, where what they reach is traced (KCOV) and guides them, or with
# KCSAN=1 on the one that looks for data races. SEED=N begins with the same choices
# again. The last line is "N passed, N failed, N skipped".
#
# usage: [BASE=...] [KCSAN=1] [MINUTES=N] [SEED=N] harness/fuzz.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

choose_seed
choose_flavour
lock_out
status=0
run "$HARNESS/build.sh" "$flavour"
echo "# seed $seed; from the same again: make fuzz MINUTES=$minutes SEED=$seed BASE=$BASE${KCSAN:+ KCSAN=1}"
HMM_FLAVOUR=$flavour HMM_KERNEL=fuzz HMM_LIMIT=$((minutes * 90 + 300)) \
	run "$HARNESS/boot.sh" test fuzz "$seed" $((minutes * 60)) || status=1
awk -f "$HARNESS/ktap.awk" -v bad="$status" "$OUT/$flavour/fuzz/out.ktap"
