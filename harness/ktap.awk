# SPDX-License-Identifier: GPL-2.0
#
# Counts the results of a KTAP stream, nested or flat, in frames that begin with
# "# suite: NAME". A result that has results below it is their sum and counts
# only if it failed and none of them did. What a plan promised and did not come
# is a failure, and so is a suite without any plan. The last line is
# "N passed, N failed, N skipped"; exit status 1 if any failed or none passed.
#
# usage: awk [-v bad=1] -f ktap.awk out.ktap
# bad: the guest itself failed, which counts as one failure

function problem(what) {
	print "# " suite ": " what
	failed++
}

# The plan of that depth, and of all below it, is over.
function close_plans(depth,    d) {
	for (d = deepest; d >= depth; d--) {
		if (d in plan && plan[d] > results[d]) {
			problem(plan[d] - results[d] " of " plan[d] " planned results are missing")
			failed += plan[d] - results[d] - 1
		} else if (d in plan && plan[d] < results[d])
			problem("more results than planned")
		delete plan[d]
		results[d] = below[d] = 0
	}
	deepest = depth
}

function close_suite() {
	close_plans(0)
	if (suite != "" && !plans)
		problem("no plan, no results")
	plans = 0
}

BEGIN { suite = "" }

/^# suite: / {
	close_suite()
	suite = $3
	next
}

{
	match($0, /^ */)
	depth = int(RLENGTH / 4)
	text = substr($0, RLENGTH + 1)
}

text ~ /^1\.\.[0-9]+( |$)/ {
	if (depth in plan)
		problem("a second plan")
	plan[depth] = substr(text, 4) + 0
	results[depth] = 0
	if (depth > deepest)
		deepest = depth
	plans++
}

text ~ /^Bail out!/ { problem(text) }

text ~ /^(not )?ok [0-9]+/ {
	children = deepest > depth && (results[depth + 1] || depth + 1 in plan)
	before = failed
	close_plans(depth + 1)
	below_failed = below[depth] + failed - before
	results[depth]++
	if (depth > deepest)
		deepest = depth
	number = text
	sub(/^(not )?ok /, "", number)
	if (number + 0 != results[depth])
		problem("result " number + 0 " where " results[depth] " was due")
	if (text ~ /^not ok/) {
		if (!children || !below_failed)
			failed++
	} else if (!children) {
		if (text ~ /# SKIP/)
			skipped++
		else
			passed++
	}
	below[depth] = 0
	if (depth && text ~ /^not ok/)
		below[depth - 1]++
}

END {
	close_suite()
	if (bad) {
		suite = "guest"
		problem("failed, for the reason given above")
	}
	if (!passed)
		print "# nothing passed"
	printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
	exit failed > 0 || !passed
}
