#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Single faults in this project's code, as harness/mutants/list writes them down.

usage: mutate.py names LIST
       mutate.py check LIST ROOT
       mutate.py apply LIST NAME ROOT

names prints each mutant: name, "killed" or "equivalent" (what is expected of it), why;
with tabs between. check says of each that does not fit what is wrong with it.
apply prints one mutant as a patch. ROOT is the repository, the format of a list: the
top of harness/mutants/list.
"""

import difflib
import os
import re
import sys


class Mutant:
    def __init__(self, name, why, file):
        self.name = name
        self.why = why
        self.file = file
        self.equivalent = ""
        self.places = []        # [function, old lines, new lines]


def parse(path):
    mutants = []
    last = ""
    function = None
    file = "mm/hmm.c"

    def wrong(number, what):
        sys.exit(f"hmm: {path}:{number}: {what}; its top explains the format")

    for number, line in enumerate(open(path, encoding="utf-8"), 1):
        line = line.rstrip("\n")
        kind = line[:1]
        if kind in ("", "#"):
            last = kind
            continue
        named = re.fullmatch(r"([a-z0-9][a-z0-9-]*): (\S.*)", line)
        if named:
            if named[1] in (mutant.name for mutant in mutants):
                wrong(number, f"{named[1]}: a second mutant of that name")
            mutants.append(Mutant(*named.groups(), file))
            function = None
        elif kind == "%":
            file = line[1:].strip()
        elif not mutants:
            wrong(number, "no mutant begins here")
        elif kind == "=":
            text = re.sub(r"^= (equivalent: )?", "", line)
            mutants[-1].equivalent += (" " if mutants[-1].equivalent else "") + text
        elif kind == "@":
            function = line[1:].strip()
        elif kind == "<" and function:
            if last != "<":
                mutants[-1].places.append([function, [], []])
            mutants[-1].places[-1][1].append(line[1:])
        elif kind == ">" and last in "<>" and last:
            mutants[-1].places[-1][2].append(line[1:])
        else:
            wrong(number, f'"{line}" is nothing that can stand here')
        last = kind
    for mutant in mutants:
        if not mutant.places:
            sys.exit(f"hmm: {path}: {mutant.name}: changes nothing")
    return mutants


def body(lines, function):
    """The first and the last line of that function, or an error."""
    begin = None
    for i, line in enumerate(lines):
        if re.match(rf"[a-z].*\b{function}\(", line):
            begin = i
        elif line == "{" and begin is not None:
            return begin, lines.index("}", i)
        elif line.endswith(";") or line == "":
            begin = None
    raise ValueError(f"no function {function}() in the file")


def apply(mutant, text):
    lines = text.split("\n")
    for function, old, new in mutant.places:
        begin, end = body(lines, function)
        found = [i for i in range(begin, end) if lines[i:i + len(old)] == old]
        if len(found) != 1:
            raise ValueError(f'{function}(): "{old[0].strip()}" and what follows: '
                             f"found {len(found)} times, not once")
        lines[found[0]:found[0] + len(old)] = new
    return "\n".join(lines)


def main(verb, path, *rest):
    mutants = parse(path)
    if verb == "names":
        for mutant in mutants:
            expected = "equivalent" if mutant.equivalent else "killed"
            print(mutant.name, expected, mutant.why, sep="\t")
        return
    name = rest[0] if verb == "apply" else ""
    bad = False
    for mutant in mutants:
        if name not in ("", mutant.name):
            continue
        try:
            source = open(os.path.join(rest[-1], mutant.file), encoding="utf-8").read()
            text = apply(mutant, source)
        except (OSError, ValueError) as error:
            print(f"hmm: {path}: {mutant.name}: does not apply: {error}; "
                  "correct it, or drop it if it is a fault no more", file=sys.stderr)
            bad = True
            continue
        if name:
            sys.stdout.writelines(difflib.unified_diff(
                source.splitlines(True), text.splitlines(True), "a/" + mutant.file, "b/" + mutant.file))
            return
    if name and not bad:
        sys.exit(f"hmm: {path}: no mutant is named {name}")
    sys.exit(bad)


if __name__ == "__main__":
    if len(sys.argv) - 1 != {"names": 2, "check": 3, "apply": 4}.get(sys.argv[1] if sys.argv[1:] else ""):
        sys.exit(__doc__)
    main(*sys.argv[1:])
