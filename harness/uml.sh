# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds User Mode Linux with this project in it, by the kernel's own kunit.py.
# Sourced after lib.sh, never run.
#
# usage: . "${BASH_SOURCE[0]%/*}/uml.sh"
# shellcheck disable=SC2034,SC2154 # what is set here, others use, and so in lib.sh

need bc binutils bison flex gcc libc6-dev make patch perl-base python3 rsync

# uml_source: gets and imports the source. Sets key, tree, and smp, which is not empty
# where User Mode Linux can have two CPUs.
uml_source() {
	lock_base
	key=$("$HARNESS/source.sh")
	"$HARNESS/import.sh" "$key"
	tree=$HMM_CACHE/tree/$key
	smp=$(grep '^config SMP' "$tree/arch/um/Kconfig") || :
}

# uml_build NAME DIRECTORY FRAGMENT...: with the fragments, two CPUs if it can have
# them, and the variables of make in uml_make; the log is in DIRECTORY. Sets obj, and
# parameters of a boot with these CPUs.
uml_make=()
uml_build() {
	local label="building Linux ${key#*_} (User Mode Linux, $1)" log=$2/build.log config=()
	obj=$HMM_CACHE/build/$key-uml-$1
	config=("${@:3}")
	parameters=()
	if [[ $smp ]]; then
		config+=("$HARNESS/config/uml-smp.config")
		parameters=(seccomp=on ncpus=2)
	fi
	[[ -d $obj ]] || need_space 2
	# kunit.py makes the last directory of its path, and no other
	mkdir -p "$2" "${obj%/*}"
	if ! try "$label" "$log" uml_kunit build --build_dir="$obj" --jobs="$JOBS" \
		"${uml_make[@]/#/--make_options=}" "${config[@]/#/--kunitconfig=}"; then
		excerpt "$log"
		if [[ ! -e $obj/.hmm-built ]] || ours_failed "$tree" "$log"; then
			die "$label: failed; the whole output is in $log"
		fi
		say "the build failed outside this project's files: the cached build may be damaged; building from scratch"
		rm -rf "$obj"
		step "$label" "$log" uml_kunit build --build_dir="$obj" --jobs="$JOBS" \
		"${uml_make[@]/#/--make_options=}" "${config[@]/#/--kunitconfig=}"
	fi
	touch "$obj/.hmm-built"
}

uml_kunit() {
	cd "$tree" && python3 tools/testing/kunit/kunit.py "$@"
}
