# SPDX-License-Identifier: GPL-2.0
#
# Scans a kernel log for splats and prints each with what follows it; exit
# status 1 if there are any. A test that provokes a warning on purpose says so
# in the log: "hmm-test: expect-warning REGEX" ... "hmm-test: end-expect" allow
# the WARNINGs whose first line, or the text above or below it, matches, with what
# follows up to the end of its trace; and HMM's reports that match. There must be one.
# A data race (KCSAN) is one only if it is ours: if the first or second function of
# either side is in a module of this project, and not both first ones are such that the
# list says are not ours. Others are counted in a note.
#
# usage: awk [-v from=REGEX] -f splats.awk splats console.log
# from: only what follows the first line that matches counts

FILENAME == ARGV[1] {
	if (/^!/)
		harmless = harmless (harmless == "" ? "" : "|") "(" substr($0, 2) ")"
	else if (/^~/)
		others = others (others == "" ? "" : "|") "(" substr($0, 2) ")"
	else if ($0 !~ /^[ \t]*(#|$)/)
		splat = splat (splat == "" ? "" : "|") "(" $0 ")"
	next
}

{
	sub(/\r$/, "")
	sub(/^(<[0-9]+>)?(\[ *[0-9.]+\])?(\[ *[TC][0-9]+\])? */, "")
	if (from != "" && $0 ~ from) {
		n = 0
		from = ""
	}
	line[++n] = $0
}

# The line after which a KCSAN report ends. Sets ours.
function race_end(i,    j, side, sides, theirs) {
	ours = 0
	for (j = i + 1; j <= n && j < i + 120 && line[j] !~ /^=====/; j++) {
		if (line[j] ~ / by (task|interrupt)/ || line[j] ~ /^race at unknown origin/) {
			side = j
			sides++
			theirs += others != "" && line[j + 1] ~ others
		} else if (side && j <= side + 2 && line[j] ~ /\[(hmm_[a-z_]+|test_hmm_device)\]/)
			ours = 1
	}
	if (sides == theirs)
		ours = 0
	return j
}

function report(i, why,    j) {
	print "splat: " why
	for (j = i; j <= n && j < i + 30; j++)
		print "    " line[j]
	found = 1
}

END {
	for (i = 1; i <= n; i++) {
		if (match(line[i], /hmm-test: expect-warning /)) {
			if (expected != "")
				report(opened, "expect-warning without end-expect")
			expected = substr(line[i], RSTART + RLENGTH)
			opened = i
			seen = 0
		} else if (line[i] ~ /hmm-test: end-expect/) {
			if (expected == "" || !seen)
				report(expected == "" ? i : opened, "an expected warning did not come")
			expected = ""
			allowed = 0		# lockdep does not mark the end of its own
		} else if (harmless != "" && line[i] ~ harmless) {
			explained = 1
		} else if (explained && line[i] ~ /^Call Trace:/) {
			explained = 0
		} else if (line[i] ~ /^BUG: KCSAN: / && (after = race_end(i)) && !ours) {
			races++
			i = after
		} else if (line[i] ~ splat) {
			if (allowed)
				continue		# still inside a warning that was expected
			if (expected != "" && line[i] ~ /^WARNING[: ]/ &&
			    (line[i - 1] "\n" line[i] "\n" line[i + 1]) ~ expected) {
				seen++
				allowed = 1
			} else if (expected != "" && line[i] ~ /^hmm: / && line[i] ~ expected) {
				seen++
			} else {
				report(i, line[i])
				i += 29
			}
		}
		if (line[i] ~ /---\[ end trace/)
			allowed = 0
	}
	if (expected != "")
		report(opened, "expect-warning without end-expect")
	if (races)
		print "note: " races " data races in the rest of the kernel"
	exit found
}
