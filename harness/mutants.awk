# SPDX-License-Identifier: GPL-2.0
#
# Who found a fault: prints the first test that the console of a guest says has
# failed, with a tab and what it said; else, after a tab alone, the test that ran
# last, which is the one that did not come to its end. Nothing failed: nothing.
#
# usage: awk -v cases="SUITE: KUnit tests in their order..." [-v running=1] -f mutants.awk console.log
# running: for a guest that hangs or splatted: name the test that runs

BEGIN {
	n = split(cases, order, " ")
	for (i = 1; i < n; i++)
		if (sub(/:$/, "", order[i]))
			first_of[order[i]] = order[i + 1]
		else if (order[i + 1] !~ /:$/)
			next_of[order[i]] = order[i + 1]
	test = "boot"
}

# prints and is done
function found(who, what) {
	print who "\t" what
	named = 1
	exit
}

{
	sub(/\r$/, "")
	sub(/^(<[0-9]+>)?(\[ *[0-9.]+\])?(\[ *[TC][0-9]+\])? */, "")
}

# A suite, or a test with parameters
/^# Subtest: hmm/ { test = $3 in first_of ? first_of[$3] : $3 }

# The selftests say which they run
/^# +RUN +/ { test = $3 }

/^# .*: (EXPECTATION|ASSERTION) FAILED at/ {
	sub(/:$/, "", $2)
	if (!running)
		found($2, "failed")
	test = $2
}

/^not ok [0-9]+ / {
	if (!running)
		found($4, "failed")
}

/^ok [0-9]+ hmm_/ && $3 in next_of { test = next_of[$3] }

# All of a suite
/^ok [0-9]+ hmm/ && !($3 in next_of) { test = "unload" }

/^hmm-guest: fail/ && !running {
	sub(/^hmm-guest: fail */, "")
	found("guest", $0)
}

/^hmm-guest: pass/ { test = "end" }

END {
	if (running && !named)
		print test
}
