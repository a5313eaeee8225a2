# SPDX-License-Identifier: GPL-2.0
#
# Which lines of a model a run of its checker came to: of all states that "pan -d"
# lists, those that the run does not call unreached.
#
# usage: awk -v model=hmm.pml -f reached.awk run.log states.log

function line_of(text) {
	sub(".*" model ":", "", text)
	return text + 0
}

/^unreached in / { process = $NF; next }
/^\t.*, state [0-9]+, / {
	match($0, /state [0-9]+/)
	unreached[process, substr($0, RSTART + 6, RLENGTH - 6) + 0] = 1
	next
}
/^(proctype|init|claim)/ { process = $1 == "init" ? "init" : $NF; next }
/^\tstate +[0-9]+ -\(tr/ {
	if (!((process, $2 + 0) in unreached))
		print line_of($0), "reached"
	else
		print line_of($0), "unreached"
}
