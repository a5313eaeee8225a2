# SPDX-License-Identifier: GPL-2.0
#
# Sums up a trace file of lcov: for each source its lines and branches, and of one of
# them what was not reached, with the text of the line. The last line is "N passed, N
# failed, N skipped": of that file, are there as many lines and branches as asked for?
#
# usage: awk -v root=SOURCE/ -v only=FILE -v lines=PERCENT -v branches=PERCENT -f coverage.awk trace

/^SF:/ {
	path = substr($0, 4)
	name = path
	if (index(path, root) == 1)
		name = substr(path, length(root) + 1)
	delete text
	nr = 0
	while ((getline line < path) > 0)
		text[++nr] = line
	close(path)
	all = hit = ball = bhit = 0
	missed = bmissed = ""
}

/^DA:/ {
	split(substr($0, 4), f, ",")
	all++
	if (f[2] > 0)
		hit++
	else
		missed = missed sprintf("%s:%d: not reached: %s\n", name, f[1], text[f[1]])
}

/^BRDA:/ {
	split(substr($0, 6), f, ",")
	ball++
	if (f[4] != "-" && f[4] > 0)
		bhit++
	else if (f[1] != last || name != last_name) {
		bmissed = bmissed sprintf("%s:%d: not both ways: %s\n", name, f[1], text[f[1]])
		last = f[1]
		last_name = name
	}
}

function percent(part, whole) {
	return whole ? 100 * part / whole : 0
}

/^end_of_record/ {
	if (name == only) {
		printf "%s%s", missed, bmissed
		passed += percent(hit, all) >= lines
		passed += percent(bhit, ball) >= branches
		asked += 2
	}
	summary = summary sprintf("%s: %.1f %% of %d lines, %.1f %% of %d branches\n", name,
				  percent(hit, all), all, percent(bhit, ball), ball)
}

END {
	printf "%s", summary
	if (!asked)
		asked = 2
	printf "%d passed, %d failed, 0 skipped\n", passed, asked - passed
	exit passed < asked
}
