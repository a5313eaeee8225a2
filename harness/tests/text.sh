# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# The readers of text: each file of ktap/ and console/ says in its first line what
# its reader has to make of it.
#
# usage: sourced by harness/tests/run

test_ktap_is_counted() {
	local file
	for file in "$HARNESS"/tests/ktap/*; do
		holds test "$(awk -f "$HARNESS/ktap.awk" "$file" | tail -n 1)" = "$(sed -n '1s/^# expect: //p' "$file")"
		case $file in
		*/good-*) holds awk -f "$HARNESS/ktap.awk" "$file" ;;
		*) fails . awk -f "$HARNESS/ktap.awk" "$file" ;;
		esac
	done
}

test_splats_are_found() {
	local file
	for file in "$HARNESS"/tests/console/bad-*; do
		fails "^splat: $(sed -n '1s/^# expect: //p' "$file")" \
			awk -v from='hmm-guest: init' -f "$HARNESS/splats.awk" "$HARNESS/splats" "$file"
	done
}

test_clean_consoles_are_clean() {
	local file
	for file in "$HARNESS"/tests/console/good-*; do
		holds awk -v from='hmm-guest: init' -f "$HARNESS/splats.awk" "$HARNESS/splats" "$file"
	done
}
