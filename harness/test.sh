#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make test: KUnit and selftests in a guest. KTAP goes to stdout as it comes;
# the last line is "N passed, N failed, N skipped".
#
# usage: [BASE=...] [ARGS="[suite] arguments"] harness/test.sh

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

lock_out
run "$HARNESS/build.sh" debug
status=0
# shellcheck disable=SC2086 # ARGS is words
run "$HARNESS/boot.sh" test $ARGS || status=1
awk -f "$HARNESS/ktap.awk" -v bad="$status" "$OUT/debug/test/out.ktap" || status=1
exit "$status"
