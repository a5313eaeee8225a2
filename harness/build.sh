#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds the guest: kernel, modules, static programs, initramfs, from the source
# that BASE or KDIR names, into out/$BASE/FLAVOUR.
#
# usage: harness/build.sh debug|kcsan|rt|coverage|pristine|lean|lean-pristine|lint
# debug is the kernel with this project in it and most checkers, kcsan the one that
# looks for data races, rt is debug with PREEMPT_RT, coverage counts which lines of this
# project run; pristine is without this project; lean and lean-pristine are with and
# without, and without any checker, to be measured; lint compiles this project's objects
# only, with W=1 and sparse, for their messages.

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

flavour=$1
log=$OUT/$flavour/build.log
unbuilt='^$'		# what this flavour does not build of our files
programs=(demo fuzz torture tests)	# see programs.mk
case $flavour in
debug | lint) fragments=(guest debug preempt tests hmm selftest kcov) ;;
rt) fragments=(guest debug tests hmm rt) unbuilt='^lib/test_hmm_range.c$' ;;
kcsan) fragments=(guest kcsan preempt tests hmm) ;;
coverage) fragments=(guest coverage preempt tests hmm) ;;
pristine) fragments=(guest debug preempt pristine) programs=(tests) ;;
lean) fragments=(guest lean lean-hmm) unbuilt='^lib/test_hmm.c$|_(kunit|torture).c$' programs=(unused) ;;
lean-pristine) fragments=(guest lean lean-pristine) programs=(unused) ;;
*) die "build: $flavour: no such flavour; use debug, kcsan, rt, coverage, pristine, lean, lean-pristine or lint" ;;
esac
fragments=("${fragments[@]/%/.config}")

# What gcov counts and KCOV traces are two objects only: the makefiles of the kernel
# look for a variable with the name of the object.
kernel_make() {
	local only=()
	[[ $flavour != coverage ]] || only=(GCOV_PROFILE_hmm.o=y GCOV_PROFILE_test_hmm.o=y)
	[[ $flavour != debug ]] || only=(KCOV_INSTRUMENT_hmm.o=y KCOV_INSTRUMENT_test_hmm.o=y)
	make -C "$tree" O="$obj" ARCH=x86_64 -j "$JOBS" "${only[@]}" "$@"
}

# A build that was cut short leaves files that look finished: those go.
heal() {
	if [[ -e $obj/.hmm-building ]]; then
		say "the last build was cut short; what it wrote last is built again"
		find "$obj" -newer "$obj/.hmm-building" -type f \
			\( -name '*.o' -o -name '*.a' -o -name '*.ko' -o -name '*.cmd' -o -name 'vmlinux*' -o -name bzImage \) -delete
	fi
	find "$obj" -type f -size 0 \( -name '*.o' -o -name '*.a' -o -name '*.ko' -o -name '*.cmd' \) -delete
}

# Every line of every fragment must hold in .config, but for those that a later
# fragment takes back; prints those that do not.
lost_lines() {
	(cd "$HARNESS/config" && awk 'FILENAME == ARGV[1] { have[$0]; next }
		/^CONFIG_/ {
			symbol = $0
			sub(/=.*/, "", symbol)
			line[symbol] = $0
			from[symbol] = FILENAME
		}
		END {
			for (symbol in line)
				if (line[symbol] == symbol "=n" ? symbol "=y" in have || symbol "=m" in have : !(line[symbol] in have))
					print line[symbol] " (harness/config/" from[symbol] ")"
		}' "$obj/.config" "${fragments[@]}" | sort)
}

configure() {
	local sum lost
	sum=$(cd "$HARNESS/config" && cat "${fragments[@]}" "$tree"/{,mm/,lib/}Kconfig* | sha256sum)
	if [[ -f $obj/.config && $(cat "$obj/.hmm-config" 2>/dev/null) == "$sum" && -z $(lost_lines) ]]; then
		return
	fi
	rm -f "$obj/.hmm-config"
	(cd "$HARNESS/config" && cat "${fragments[@]}") >"$obj/.hmm-fragments"
	try "configuring the kernel" "$log" kernel_make KCONFIG_ALLCONFIG="$obj/.hmm-fragments" allnoconfig || return
	lost=$(lost_lines)
	[[ -z $lost ]] || die "config: lost $(paste -sd, <<<"$lost" | sed 's/,/, /g'): its dependencies are not met in this kernel; correct the fragment"
	echo "$sum" >"$obj/.hmm-config"
}

# The object files of this project's part in the kernel.
objects() {
	data files | sed -n '/^tools/!s/\.c$/.o/p'
}

compile() {
	touch "$obj/.hmm-building"
	if [[ $flavour == lint ]]; then
		(cd "$obj" && xargs rm -f) < <(objects)
		# shellcheck disable=SC2046 # one word for each object
		kernel_make W=1 C=2 CHECK="sparse" $(objects) || return
		rm "$obj/.hmm-building"
		return
	fi
	[[ -e $obj/usr/include/.hmm-whole ]] || {
		kernel_make headers || return
		touch "$obj/usr/include/.hmm-whole"
	}
	kernel_make bzImage modules || return
	# By content, not time: the next run may be another checkout's.
	rsync -rc --delete "$HARNESS/guest/" "$obj/hmm-guest/"
	make -f "$obj/hmm-guest/programs.mk" -j "$JOBS" TREE="$tree" OBJ="$obj" "${programs[@]}" || return
	rm "$obj/.hmm-building"
}

build() {
	local label
	label="building Linux ${key#*_} ($flavour)"
	mkdir -p "$obj"
	heal
	if configure && try "$label" "$log" compile; then
		return
	elif [[ -e $obj/.hmm-built ]] && ! ours_failed "$tree" "$log"; then
		excerpt "$log"
		mv "$log" "$log.failed"
		say "the build failed outside this project's files ($log.failed): the cache may be damaged; building from scratch"
		rm -rf "$obj"
		build
		return
	fi
	# Its diagnostics are of no further use as a sign of damage.
	rm -f "$obj/.hmm-building"
	excerpt "$log"
	die "$label: failed; the whole output is in $log"
}

# What was imported must also have been built.
check_objects() {
	local file
	while read -r file; do
		[[ ! $file =~ $unbuilt ]] || continue
		[[ $file != *.c || $file == tools/* || $obj/${file%.c}.o -nt $tree/$file ]] ||
			die "build: $file: imported but not built; check its Makefile hook and CONFIG line"
	done < <(data files; data renames | cut -d' ' -f2)
}

pack() {
	local root=$temp/root module
	mkdir -p "$root"/{bin,lib/modules}
	find "$obj/hmm-programs" -maxdepth 1 -type f -exec cp -t "$root/bin" "$(command -v busybox)" {} +
	install -m 755 "$HARNESS/guest/init" "$root/init"
	while read -r module; do
		cp "$obj/${module%.*}.ko" "$root/lib/modules/"
	done <"$obj/modules.order"
	chmod -R a+rX "$root"
	(cd "$root" && find . | cpio -o -H newc --quiet -R 0:0) >"$temp/initramfs.cpio"
	cp "$obj/arch/x86/boot/bzImage" "$temp/"
	mv "$temp"/{initramfs.cpio,bzImage} "$OUT/$flavour/"
}

need bc binutils bison busybox-static cpio flex gcc libc6-dev libelf-dev make patch perl-base python3 \
	qemu-system-x86 rsync
lock_base
mkdir -p "$OUT/$flavour"
key=$("$HARNESS/source.sh")
obj=$HMM_CACHE/build/$key-$flavour
tree=$HMM_CACHE/pristine/$key
if [[ $flavour != *pristine ]]; then
	"$HARNESS/import.sh" "$key"
	tree=$HMM_CACHE/tree/$key
fi
[[ -d $obj ]] || need_space 3
build
touch "$obj/.hmm-built"
echo "$tree" >"$OUT/$flavour/tree"
echo "$obj" >"$OUT/$flavour/obj"
[[ $flavour != lint ]] || exit 0
[[ $flavour == *pristine ]] || check_objects
temp pack
pack
