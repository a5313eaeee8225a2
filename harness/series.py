#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""The patches of the series, as harness/series/manifest cuts them.

usage: series.py check
       series.py names
       series.py message NAME VERSION
       series.py stream PRISTINE FINAL VERSION REF

check says what is wrong with the manifest and its messages. names prints one patch a
line, and "rfc" behind those that an import does not make. message prints one, for Linux
VERSION. stream prints what git fast-import makes a branch REF of: the files that the series
touches as PRISTINE, of Linux VERSION, has them, then a commit for each patch. It fails if a
name of ours comes with a patch before the one that uses it. FINAL is what stage.sh writes.
The format of the manifest: its top.
"""

import collections
import datetime
import difflib
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "series")
MANIFEST = os.path.join(HERE, "manifest")
COLUMNS = 75            # of a message, as checkpatch wants them


def stop(what):
    sys.exit(f"hmm: series: {what}")


class Lines:
    """What finds the lines of a claim, and what stands there before its patch."""

    def __init__(self, pattern, with_comment):
        self.pattern = pattern
        self.with_comment = with_comment
        self.before = []

    def of(self, lines):
        text = "".join(lines)
        for match in self.pattern.finditer(text):
            first = text.count("\n", 0, match.start())
            while self.with_comment and first and lines[first - 1].strip():
                first -= 1
            yield range(first, text.count("\n", 0, max(match.end() - 1, match.start())) + 1)


class Patch:
    def __init__(self, name, number, rfc):
        self.name = name
        self.number = number
        self.rfc = rfc
        self.claims = []        # (path, what finds its lines)
        self.diffs = []         # paths of diffs


class Series:
    def __init__(self):
        self.settings = {}
        self.patches = []
        for number, line in enumerate(open(MANIFEST, encoding="utf-8"), 1):
            if line.startswith(">"):
                self.before(line[1:], f"{MANIFEST}:{number}")
            elif line.strip() and not line.startswith("#"):
                self.line(line.split(None, 2), f"{MANIFEST}:{number}")

    def before(self, text, where):
        lines = self.patches[-1].claims[-1][1] if self.patches and self.patches[-1].claims else ""
        if not lines:
            stop(f"{where}: a line with > stands below a take of some lines")
        lines.before.append(text)

    def line(self, words, where):
        verb = words[0]
        rest = words[2].strip() if len(words) > 2 else ""
        if len(words) == 1:
            stop(f"{where}: {verb} what? Its top explains the format")
        if verb in ("author", "date") and not self.patches:
            self.settings[verb] = f"{words[1]} {rest}".strip()
        elif verb == "patch" and rest in ("", "rfc"):
            if words[1] in (patch.name for patch in self.patches):
                stop(f"{where}: {words[1]}: a second patch of that name")
            self.patches.append(Patch(words[1], len(self.patches) + 1, bool(rest)))
        elif verb == "apply" and self.patches and not rest:
            self.patches[-1].diffs.append(os.path.join(HERE, words[1]))
        elif verb == "take" and self.patches:
            self.patches[-1].claims.append((words[1], self.span(rest, where)))
        else:
            stop(f"{where}: \"{' '.join(words).strip()}\" is nothing that can stand here; its top explains the format")

    @staticmethod
    def span(text, where):
        """What finds the lines of a claim; nothing: those that nobody else claims."""
        function = re.fullmatch(r"(\w+)\(\)", text)
        comment = re.fullmatch(r"comment (\w+)\(\)", text)
        paragraph = re.fullmatch(r"paragraph (.+)", text)
        config = re.fullmatch(r"config (\w+)", text)
        pattern = re.fullmatch(r"/(.+)/", text)
        if function:
            # From its first line to what exports it, and the empty line behind
            text = r"^(?:\S.*\b)?%s\([^;{]*\n\{\n(?s:.*?)^\}\n(?:\S.*\n)*\n?" % function[1]
        elif comment:
            text = r"^/\*.*\n(?: \*.*\n)*(?=(?:\S.*\b)?%s\([^;{]*\n\{\n)" % comment[1]
        elif paragraph:
            text = r"^ \* %s.*\n(?: \*[ \t].*\n)*" % re.escape(paragraph[1])
        elif config:
            # With the empty line before it
            text = r"^\nconfig %s\n(?s:.*?)(?=^\nconfig |\Z)" % config[1]
        elif pattern:
            text = pattern[1]
        elif text:
            stop(f"{where}: {text}: no /regular expression/, function(), comment, paragraph or config")
        try:
            return text and Lines(re.compile(text, re.M), bool(function))
        except re.error as error:
            stop(f"{where}: {text}: {error}")

    def message(self, name, version=""):
        path = os.path.join(HERE, name)
        if not os.path.exists(path):
            stop(f"{path}: not there; each patch has its message in a file of its name")
        lines = [line.rstrip("\n") for line in open(path, encoding="utf-8") if not line.startswith("#")]
        return "\n".join(lines).strip().replace("@VERSION@", version) + "\n"

    def wrong_messages(self):
        for patch in [*(patch.name for patch in self.patches), "cover"]:
            lines = self.message(patch, "x.yy.zzz").split("\n")
            if len(lines) < 3 or lines[1]:
                yield f"{patch}: no subject and body with an empty line between"
            for line in lines:
                if len(line) > COLUMNS:
                    yield f"{patch}: longer than {COLUMNS} columns: {line}"
                if re.search(r"^(Signed-off|Co-authored)-by:", line):
                    yield f"{patch}: {line}: whoever sends the series signs it"
        known = {patch.name for patch in self.patches} | {"cover", "manifest"}
        known |= {os.path.basename(diff) for patch in self.patches for diff in patch.diffs}
        for name in sorted(set(os.listdir(HERE)) - known):
            yield f"{name}: the manifest has no such patch"


def read(directory, path):
    """The lines of a file and its mode; nothing if it is not there."""
    full = os.path.join(directory, path)
    if not os.path.exists(full):
        return None, None
    mode = "100755" if os.stat(full).st_mode & 0o100 else "100644"
    return open(full, encoding="utf-8", newline="\n").read().splitlines(keepends=True), mode


def files_of(directory):
    for base, _, names in os.walk(directory):
        for name in names:
            yield os.path.relpath(os.path.join(base, name), directory)


def changes(old, new):
    """What difflib says, quickly for large files with small changes."""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    result = [(0, head, 0, head, False)]
    matcher = difflib.SequenceMatcher(None, old[head:len(old) - tail], new[head:len(new) - tail], autojunk=False)
    for tag, i, j, k, l in matcher.get_opcodes():
        result.append((head + i, head + j, head + k, head + l, tag != "equal"))
    return [*result, (len(old) - tail, len(old), len(new) - tail, len(new), False)]


class Cutter:
    """What each file of the tree is after each patch."""

    def __init__(self, series, pristine, final):
        self.series = series
        self.pristine, self.final = pristine, final
        self.paths = set(files_of(final))
        self.base_owner = {}            # path: the patches that take the rest of it
        self.claims = {}                # path: [(number, what finds the lines)]
        self.known = {}                 # owners() of what was asked
        self.changes = {}               # changes() likewise
        for patch in series.patches:
            for path, lines in patch.claims:
                path = self.land(path)
                if path not in self.paths:
                    stop(f"{patch.name}: take {path}: an import does not touch it")
                if lines and lines.before and os.path.exists(os.path.join(pristine, path)):
                    stop(f"{patch.name}: take {path}: lines with > are for files that the kernel does not have")
                if lines:
                    self.claims.setdefault(path, []).append((patch.number, lines))
                else:
                    self.base_owner.setdefault(path, []).append(patch.number)
        for path in sorted(self.paths):
            # Of hooks that this kernel does not need a file may be left as it was
            if path not in self.base_owner and path not in self.claims and not self.same(path):
                stop(f"{path}: no patch takes it; add it to {MANIFEST}")

    def land(self, path):
        if path in self.paths or os.path.exists(os.path.join(self.pristine, path)):
            return path
        return path.replace("/vm/", "/mm/")

    def owners(self, path, lines, base, claims):
        """Of each line, the patch from which on it is there."""
        key = path, len(claims) and claims[0][0], len(lines)
        if key not in self.known:
            owners = [0] * len(lines)
            for number, claim in claims:
                found = list(claim.of(lines))
                for i in (i for span in found for i in span if not claim.before):
                    owners[i] = max(owners[i], number)
                if not found and not self.same(path):
                    stop(f"{self.series.patches[number - 1].name}: {path}: "
                         f"no line of it is like /{claim.pattern.pattern}/")
            self.known[key] = owners
        return [owner or base for owner in self.known[key]]

    @staticmethod
    def standing(new, number, claims):
        """The lines as they stand after that patch, which some claims of later ones change."""
        result = list(new)
        later = [claim for claim in claims if claim[0] > number and claim[1].before]
        for _, claim in sorted(later, key=lambda claim: -claim[0]):
            for span in claim.of(new):
                for i in span:
                    result[i] = ""
                result[span[0]] = "".join(claim.before)
        return result

    def same(self, path):
        """An import may write a file and leave it as it was."""
        return read(self.pristine, path) == read(self.final, path)

    def merge(self, path, old, new, number, claims, bases):
        """old, with those changes that come up to this patch."""
        base = bases[0] if bases else sys.maxsize
        owners = self.owners(path, new, base, claims)
        if (path, len(new)) not in self.changes:
            self.changes[path, len(new)] = changes(old, new)
        result = []
        for i, j, k, l, differ in self.changes[path, len(new)]:
            kept = [new[n] for n in range(k, l) if not differ or owners[n] <= number]
            if not kept and (k < l or base > number):
                kept = old[i:j]
            result += kept
        return result

    def version(self, path, number):
        """The lines and mode of a file after that patch; nothing: it is not there."""
        old, _ = read(self.pristine, path)
        new, mode = read(self.final, path)
        if new is None:
            return None, None
        claims = self.claims.get(path, [])
        bases = self.base_owner.get(path, [])
        if old is None:
            owners = self.owners(path, new, bases[-1] if bases else sys.maxsize, claims)
            lines = [text for text, owner in zip(self.standing(new, number, claims), owners) if owner <= number]
            return (lines, mode) if any(lines) else (None, None)
        return self.merge(path, old, new, number, claims, bases), mode

    def tree(self, number):
        tree = {}
        for path in sorted(self.paths):
            lines, mode = self.version(path, number)
            if lines is not None:
                tree[path] = ("".join(lines), mode)
        return tree


def patched(pristine, tree, diff):
    """The tree with a diff applied, whose files may be others of the kernel; or None."""
    tree = dict(tree)
    paths = re.findall(r"^\+\+\+ b/(\S+)", open(diff, encoding="utf-8").read(), re.M)
    with tempfile.TemporaryDirectory() as work:
        for path in paths:
            if path not in tree and not os.path.exists(os.path.join(pristine, path)):
                return None
            text, _ = tree.get(path) or ("".join(read(pristine, path)[0]), None)
            os.makedirs(os.path.dirname(os.path.join(work, path)), exist_ok=True)
            open(os.path.join(work, path), "w", encoding="utf-8").write(text)
        done = subprocess.run(["patch", "-s", "-F0", "--no-backup-if-mismatch", "-d", work, "-p1", "-i", diff],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            return None
        for path in paths:
            lines, mode = read(work, path)
            tree[path] = ("".join(lines), mode)
    return tree


def names_in(tree):
    """How often each name of ours stands in the code of the core."""
    names = collections.Counter()
    for path, (text, _) in tree.items():
        if re.fullmatch(r"(mm/hmm_\w+|include/linux/hmm_device)\.[ch]", path):
            code = re.sub(r"/\*(?s:.*?)\*/|\"[^\"\n]*\"", "", text)
            names.update(re.findall(r"\b(?:hmm|HMM)_\w+", code))
    return names


def too_early(patches):
    """What comes with one of (patch, tree), and is used from a later one on only."""
    counted = [(patch, names_in(tree)) for patch, tree in patches]
    for at, (patch, names) in enumerate(counted):
        for name in sorted(name for name in names if names[name] == 1):
            if at and counted[at - 1][1][name]:
                continue
            user = next((later.name for later, count in counted[at + 1:] if count[name] > 1), None)
            if user:
                yield f"{patch.name}: {name} is not used before {user}; see {MANIFEST}"


def emit(out, *texts):
    for text in texts:
        out.write(text.encode())


def data(out, text):
    raw = text.encode()
    emit(out, f"data {len(raw)}\n")
    out.write(raw)
    emit(out, "\n")


def commit(out, ref, who, message, before, after):
    emit(out, f"commit {ref}\n", f"author {who}\n", f"committer {who}\n")
    data(out, message)
    for path in sorted(set(before) - set(after)):
        emit(out, f"D {path}\n")
    for path in sorted(after):
        if before.get(path) != after[path]:
            emit(out, f"M {after[path][1]} inline {path}\n")
            data(out, after[path][0])
    emit(out, "\n")


def stream(pristine, final, version, ref):
    series = Series()
    cutter = Cutter(series, pristine, final)
    try:
        begin = datetime.datetime.fromisoformat(series.settings["date"])
        author = series.settings["author"]
    except (KeyError, ValueError):
        stop(f"{MANIFEST}: no author and date; its top explains the format")
    out = sys.stdout.buffer
    diffs = [diff for patch in series.patches for diff in patch.diffs]
    others = {path for diff in diffs
              for path in re.findall(r"^\+\+\+ b/(\S+)", open(diff, encoding="utf-8").read(), re.M)}
    before = cutter.tree(0)
    # What checkpatch looks up in git
    others |= {os.path.join("LICENSES", path) for path in files_of(os.path.join(pristine, "LICENSES"))}
    for path in others - set(before):
        lines, mode = read(pristine, path)
        if lines is not None:
            before[path] = ("".join(lines), mode)
    emit(out, f"reset {ref}\n")
    commit(out, ref, f"{author} {int(begin.timestamp())} +0000", f"Linux {version}\n", {}, before)
    rest = {path: before[path] for path in others if path in before}
    applied = []
    trees = []
    for patch in series.patches:
        after = {**rest, **cutter.tree(patch.number)}
        for diff in applied + patch.diffs:
            after = after and patched(pristine, after, diff)
        if after is None:
            stop(f"{patch.name}: a diff of it does not apply to this kernel")
        applied += patch.diffs
        if after == before:
            stop(f"{patch.name}: changes nothing; see {MANIFEST}")
        when = int(begin.timestamp()) + patch.number
        commit(out, ref, f"{author} {when} +0000", series.message(patch.name, version), before, after)
        before = after
        trees.append((patch, after))
    early = list(too_early(trees))
    if early:
        stop("\nhmm: series: ".join(early))


def main():
    arguments = sys.argv[1:]
    if arguments == ["check"]:
        wrong = list(Series().wrong_messages())
        print(*wrong, sep="\n", end="\n" if wrong else "")
        sys.exit(bool(wrong))
    elif arguments == ["names"]:
        for patch in Series().patches:
            print(patch.name, "rfc" if patch.rfc else "")
    elif arguments[:1] == ["message"] and len(arguments) == 3:
        print(Series().message(*arguments[1:]), end="")
    elif arguments[:1] == ["stream"] and len(arguments) == 5:
        stream(*arguments[1:])
    else:
        sys.exit(__doc__)


main()
