# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# What every script of the harness shares: settings, messages, long steps with
# their progress, locks, packages. Sourced, never run.
#
# usage: . "${BASH_SOURCE[0]%/*}/lib.sh"
# shellcheck disable=SC2034 # what is set here, others use

HARNESS=$(cd "${BASH_SOURCE[0]%/*}" && pwd)
ROOT=${HARNESS%/*}
HMM_CACHE=${HMM_CACHE:-$HOME/.cache/hmm}
KDIR=${KDIR:-}
BASE=${BASE:-6.12}
ARGS=${ARGS:-}
KCSAN=${KCSAN:-}
RT=${RT:-}
RUNS=${RUNS:-1}
MINUTES=${MINUTES:-}
SEED=${SEED:-}
JOBS=${JOBS:-$(nproc)}
[[ -z $KDIR ]] || BASE=kdir
OUT=$ROOT/out/$BASE
export HMM_CACHE BASE KDIR ARGS KCSAN RT RUNS MINUTES SEED JOBS

# Nothing of the caller's environment may steer the kernel's own makefiles, and
# no tool may leave its droppings in a source tree.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL ARCH CROSS_COMPILE KBUILD_OUTPUT KCFLAGS CDPATH
export LC_ALL=C PYTHONDONTWRITEBYTECODE=1
export KBUILD_BUILD_USER=hmm KBUILD_BUILD_HOST=hmm KBUILD_BUILD_TIMESTAMP=@0
umask 022

say() {
	printf 'hmm: %s\n' "$*" >&2
}

die() {
	say "$@"
	exit 1
}

[[ $RUNS =~ ^[1-9][0-9]{0,4}$ ]] || die "RUNS=$RUNS: not a number from 1 to 99999"

# Prints "label: 75 s" until killed: one line kept fresh on a terminal, else a
# new line every half a minute. Waits by reading a pipe that nobody writes to,
# so that no sleeping child outlives it.
ticker() {
	local never tick=30 start=$SECONDS
	exec {never}<> <(:)
	[[ ! -t 2 ]] || tick=1
	while ! read -rt "$tick" -u "$never"; do
		if [[ -t 2 ]]; then
			printf '\r\033[Khmm: %s: %d s  %.60s' "$1" $((SECONDS - start)) "$(tail -n 1 "$2" | tr -d '\r\t')" >&2
		else
			say "$1: $((SECONDS - start)) s so far"
		fi
	done
}

# What must go when the script ends, however it ends: processes (as kill takes
# them), files.
doomed=()
doomed_files=()
at_exit() {
	((${#doomed[@]} == 0)) || kill -- "${doomed[@]}" 2>/dev/null || :
	((${#doomed_files[@]} == 0)) || rm -rf "${doomed_files[@]}"
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The kernel that KCSAN and RT ask for. Sets flavour.
choose_flavour() {
	[[ $KCSAN$RT =~ ^(1?)$ ]] || die "KCSAN=$KCSAN RT=$RT: one of them may be 1"
	flavour=debug
	if [[ $KCSAN ]]; then
		flavour=kcsan
		# It was seen to take 108 s to init, on a machine that had nothing else to do
		export HMM_BOOT_LIMIT=${HMM_BOOT_LIMIT:-300}
	fi
	[[ -z $RT ]] || flavour=rt
}

# How long, and with which choices, random tests run. Sets minutes and seed.
choose_seed() {
	minutes=${MINUTES:-1}
	[[ $minutes =~ ^[1-9][0-9]{0,3}$ ]] || die "MINUTES=$minutes: not a number from 1 to 9999"
	seed=${SEED:-$((SRANDOM % 999999999 + 1))}
	[[ $seed =~ ^[1-9][0-9]{0,8}$ ]] || die "SEED=$seed: not a number from 1 to 999999999"
	[[ -z $RT ]] || die "RT=$RT: only make test takes it"
}

# run COMMAND...: another script, in the foreground; a signal to this one ends both.
run() {
	local status=0
	"$@" <&0 &
	doomed=($!)
	wait "$!" || status=$?
	doomed=()
	return "$status"
}

# temp NAME: a new directory in the cache, gone at exit. Sets $temp.
temp() {
	mkdir -p "$HMM_CACHE/tmp"
	temp=$(mktemp -d "$HMM_CACHE/tmp/$1.XXXXXX")
	doomed_files+=("$temp")
}

# try LABEL LOG COMMAND...: a long step. Output goes to LOG; the status is the
# command's. The command, in a process group of its own, dies with the script.
try() {
	local label=$1 log=$2 ticker pid status=0 start=$SECONDS
	shift 2
	mkdir -p "${log%/*}"
	: >"$log"
	set -m
	ticker "$label" "$log" &
	ticker=$!
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	set +m
	doomed=("-$ticker" "-$pid")
	wait "$pid" || status=$?
	kill -- "-$ticker" 2>/dev/null || :
	wait "$ticker" 2>/dev/null || :
	doomed=()
	[[ ! -t 2 ]] || printf '\r\033[K' >&2
	((SECONDS - start < 10 || status)) || say "$label: done in $((SECONDS - start)) s"
	return "$status"
}

# What to read of a failed step's log: its diagnostics, else its end.
excerpt() {
	grep -nE '(^|[^a-z_])(error|ERROR|fatal|undefined|warning: .*\[-Werror|E:|\*\*\*)([^a-z_]|$)' "$1" |
		grep -v ' Waiting for unfinished' | head -n 40 >&2 || tail -n 20 "$1" >&2
}

step() {
	try "$@" && return
	excerpt "$2"
	die "$1: failed; the whole output is in $2"
}

# lock NAME: one run at a time, until the script and all that it started have
# ended. What a script has locked, those that it starts need not lock again.
lock() {
	local fd
	[[ " ${HMM_LOCKS:-} " != *" $1 "* ]] || return 0
	export HMM_LOCKS="${HMM_LOCKS:-} $1"
	mkdir -p "$HMM_CACHE"
	exec {fd}>"$HMM_CACHE/lock-$1"
	flock -n "$fd" && return
	say "waiting for another run (lock $1)"
	flock "$fd"
}

# What lies in out/ of one base belongs to one run at a time.
lock_out() {
	lock "out-$(cksum <<<"$OUT" | cut -d' ' -f1)"
}

# Source, tree and builds of one base, likewise.
lock_base() {
	lock "$BASE-$(cksum <<<"$KDIR" | cut -d' ' -f1)"
}

# need PACKAGE...: installs what is missing, or says how.
need() {
	local missing=() p log=$ROOT/out/packages.log remedy
	for p; do
		[[ $(dpkg-query -Wf '${Status}' "$p" 2>/dev/null) == 'install ok installed' ]] || missing+=("$p")
	done
	((${#missing[@]})) || return 0
	remedy="apt-get update && apt-get install --no-install-recommends ${missing[*]}"
	((EUID == 0)) || die "missing packages: ${missing[*]}: not root; run as root: $remedy"
	(lock packages && try "installing ${missing[*]}" "$log" install_packages "${missing[@]}") && return
	tail -n 5 "$log" >&2
	die "missing packages: ${missing[*]}: apt-get failed (see $log); run when there is a network: $remedy"
}

install_packages() {
	local install=(apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@")
	export DEBIAN_FRONTEND=noninteractive
	"${install[@]}" || { apt-get update && "${install[@]}"; }
}

# need_space GIGABYTES: of the cache's disk, before anything large is written.
need_space() {
	local free
	mkdir -p "$HMM_CACHE"
	free=$(df -BM --output=avail "$HMM_CACHE" | tail -n 1 | tr -dc 0-9)
	((free >= $1 * 1024)) || die "$HMM_CACHE: $free MB free, $1 GB needed; make room or set HMM_CACHE"
}

# our_files: the kernel files of this repository.
our_files() {
	data files | awk '{ print $1 }'
}

# landed TREE: where they lie in that tree.
landed() {
	local to
	while read -r _ to; do
		in_tree "$to" "$1"
	done < <(data files)
}

# land PATH TREE: where one of them does.
land() {
	in_tree "$(data files | path=$1 awk '$1 == ENVIRON["path"] { print $2 }')" "$2"
}

# in_tree PATH TREE: vm/ is mm/ where the tree has renamed that directory.
in_tree() {
	case $1 in
	Documentation/vm/* | tools/testing/selftests/vm/*)
		[[ -d $2/${1%%/vm/*}/mm ]] && echo "${1/vm/mm}" || echo "$1" ;;
	*) echo "$1" ;;
	esac
}

# ours_failed TREE LOG: does a failed build blame a file or module of this project? Then a
# build from scratch cannot help.
ours_failed() {
	local file
	while read -r file; do
		! grep -qE "${file//./\\.}:([0-9]|\()|modpost: .*\[${file%.c}\.ko\]" "$2" || return 0
	done < <(landed "$1"; printf "%s\n" mm/hmm_core.c demo.c fuzz.c torture.c)
	return 1
}

# data FILE: the lines of a data file that say something.
data() {
	grep -vE '^[[:space:]]*(#|$)' "$HARNESS/$1"
}

# The driver in hmm.rst: its parts together are a file.
example() {
	awk '/^A driver, step by step$/ { on = 1 } on && /^Interval notifiers$/ { exit }
		on && /^(\t|$)/ { sub(/^\t/, ""); print }' "$ROOT/Documentation/vm/hmm.rst"
}

# example_kbuild DIRECTORY SYMVERS: the Kbuild that README has for it, where HMM is that.
example_kbuild() {
	sed -nE "s|^ {4}HMM := .*|HMM := $1|p; s|^ {4}(KBUILD_EXTRA_SYMBOLS := ).*|\\1$2|p
		s/^ {4}((ccflags-y \+|obj-m :)= .*)/\\1/p" "$ROOT/README.md"
}

# The lines that tell whether a source tree still is what it was: names, sizes, times.
listing() {
	find "$1" -name __pycache__ -prune -o ! -type d -printf '%P %s %T@\n' | sort
}
