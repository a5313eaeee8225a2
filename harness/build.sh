#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Builds the guest: kernel, modules, static programs, initramfs, from the source
# that BASE or KDIR names, into out/$BASE/FLAVOUR.
#
# usage: harness/build.sh debug|kcsan|rt|coverage|pristine|lean|lean-pristine|lint|stock
# debug is the kernel with this project in it and most checkers, kcsan the one that
# looks for data races, rt is debug with PREEMPT_RT, coverage counts which lines of this
# project run; pristine is without this project; lean and lean-pristine are with and
# without, and without any checker, to be measured; lint compiles this project's objects
# only, with W=1 and sparse, for their messages; stock builds no kernel: it packs Debian's
# own with the modules that module.sh has built for it.

set -euo pipefail
# shellcheck source=lib.sh
. "${BASH_SOURCE[0]%/*}/lib.sh"

flavour=$1
log=$OUT/$flavour/build.log
unbuilt='^$'		# what this flavour does not build of our files
programs=(demo fuzz torture tests)	# see programs.mk
case $flavour in
debug | lint) fragments=(guest debug preempt tests hmm selftest kcov) ;;
rt) fragments=(guest debug tests hmm rt) ;;
kcsan) fragments=(guest kcsan preempt tests hmm) ;;
coverage) fragments=(guest coverage preempt tests hmm) ;;
pristine) fragments=(guest debug preempt pristine) programs=(tests) ;;
lean) fragments=(guest lean lean-hmm) unbuilt='^lib/|_(kunit|torture|debug|test_points).c$' programs=(unused) ;;
lean-pristine) fragments=(guest lean) programs=(unused) ;;
stock) fragments=() programs=(demo tests) ;;
*) die "build: $flavour: no such flavour; use debug, kcsan, rt, coverage, pristine, lean, lean-pristine, lint or stock" ;;
esac
fragments=("${fragments[@]/%/.config}")

# What gcov counts and KCOV traces are two objects only: the makefiles of the kernel
# look for a variable with the name of the object.
kernel_make() {
	local only=()
	[[ $flavour != coverage ]] || only=(GCOV_PROFILE_hmm_device.o=y GCOV_PROFILE_test_hmm_device.o=y)
	[[ $flavour != debug ]] || only=(KCOV_INSTRUMENT_hmm_device.o=y KCOV_INSTRUMENT_test_hmm_device.o=y)
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

# The fragments as this kernel can have them, into a directory.
fragments_for() {
	local line other symbol script=(-e '')
	while read -r line other; do
		symbol=${line%%=*}
		grep -rqE --include='Kconfig*' "^(menu)?config ${symbol#CONFIG_}\$" "$tree" ||
			script+=(-e "s/^$line\$/$other/")
	done < <(data config/substitutes)
	rm -rf "$1"
	mkdir -p "$1"
	for line in "${fragments[@]}"; do
		sed "${script[@]}" "$HARNESS/config/$line" >"$1/$line"
	done
}

# Every line of every fragment must hold in .config, but for those that a later
# fragment takes back; prints those that do not.
lost_lines() {
	(cd "$obj/.hmm-fragments" && awk 'FILENAME == ARGV[1] { have[$0]; next }
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
	[[ $flavour != stock ]] || return 0
	fragments_for "$obj/.hmm-fragments"
	sum=$(cd "$obj/.hmm-fragments" && cat "${fragments[@]}" "$tree"/{,mm/,lib/}Kconfig* | sha256sum)
	if [[ -f $obj/.config && $(cat "$obj/.hmm-config" 2>/dev/null) == "$sum" && -z $(lost_lines) ]]; then
		return
	fi
	rm -f "$obj/.hmm-config"
	(cd "$obj/.hmm-fragments" && cat "${fragments[@]}") >"$obj/.hmm-allconfig"
	try "configuring the kernel" "$log" kernel_make KCONFIG_ALLCONFIG="$obj/.hmm-allconfig" allnoconfig || return
	lost=$(lost_lines)
	[[ -z $lost ]] || die "config: lost $(paste -sd, <<<"$lost" | sed 's/,/, /g'): its dependencies are not met in this kernel; correct the fragment"
	echo "$sum" >"$obj/.hmm-config"
}

# The object files of this project's part in the kernel.
objects() {
	landed "$tree" | sed -n '/^tools/!s/\.c$/.o/p'
}

compile() {
	touch "$obj/.hmm-building"
	if [[ $flavour == lint ]]; then
		(cd "$obj" && xargs rm -f) < <(objects)
		# Sparse takes the end of a guard() for a lock that is not released: its contexts
		# are left to lockdep_assert_held().
		# shellcheck disable=SC2046 # one word for each object
		kernel_make W=1 C=2 CHECK="sparse -Wno-context" $(objects) || return
		rm "$obj/.hmm-building"
		return
	fi
	[[ -e $obj/usr/include/.hmm-whole ]] || {
		kernel_make headers || return
		touch "$obj/usr/include/.hmm-whole"
	}
	[[ $flavour == stock ]] || kernel_make bzImage modules || return
	# By content, not time: the next run may be another checkout's.
	rsync -rc --delete "$HARNESS/guest/" "$obj/hmm-guest/"
	make -f "$obj/hmm-guest/programs.mk" -j "$JOBS" TREE="$tree" OBJ="$obj" "${programs[@]}" || return
	rm "$obj/.hmm-building"
}

build() {
	local label
	label="building Linux ${key#*_} ($flavour)"
	[[ $flavour != stock ]] || label="building the programs of the tests"
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
	done < <(landed "$tree")
}

# The driver of hmm.rst against what "make module" has left, by the Kbuild that README has.
build_example() {
	local driver=$temp/driver
	mkdir -p "$driver"
	example >"$driver/gpu.c"
	# shellcheck disable=SC2016 # make expands
	example_kbuild "$OUT/module" '$(HMM)/Module.symvers' >"$driver/Kbuild"
	step "building the driver of hmm.rst" "$log" \
		make -C "$("$HARNESS/stock.sh" headers)" M="$driver" W=1 KCFLAGS=-Werror modules
	cp "$driver/gpu.ko" "$1"
}

# What this guest needs and that kernel has as modules: /lib/modules/stock is the order
# to load them.
virtio_modules() {
	local all=$temp/all modules=$temp/all/lib/modules/$release file name
	mkdir -p "$modules"
	file=$(find "$image" -path "*/modules/$release/kernel")
	(cd "${file%/*}" && find modules.builtin* modules.order kernel/drivers/{virtio,char} \
		\( -name 'virtio*' -o -name 'modules.*' \) -type f -exec cp --parents -t "$modules" {} +)
	depmod -b "$all" "$release"
	: >"$1/stock"
	while read -r file; do
		name=$(basename "$file")
		case $file in
		*.ko) cp "$file" "$1/" ;;
		*.ko.xz) xz -dc "$file" >"$1/${name%.xz}" ;;
		*) die "stock: $name: compressed as no kernel before; correct harness/build.sh" ;;
		esac
		echo "${name%%.*}" >>"$1/stock"
	done < <(for name in virtio_pci virtio_console; do
		modprobe -C /dev/null -d "$all" -S "$release" --show-depends "$name"
	done | awk '$1 == "insmod" && !($2 in seen) { seen[$2]; print $2 }')
}

stock_kernel() {
	local image release
	image=$("$HARNESS/stock.sh" image)
	release=$(<"$OUT/module/release")
	[[ -e $image/boot/vmlinuz-$release ]] ||
		die "stock: the archive has headers of Linux $release, but another image; run: apt-get update"
	cp "$image/boot/vmlinuz-$release" "$temp/bzImage"
	virtio_modules "$1"
	cp "$OUT"/module/*.ko "$1/"
	build_example "$1"
	strip --strip-debug "$1"/*.ko
}

built_kernel() {
	local module
	while read -r module; do
		cp "$obj/${module%.*}.ko" "$1/"
	done <"$obj/modules.order"
	cp "$obj/arch/x86/boot/bzImage" "$temp/"
}

pack() {
	local root=$temp/root
	mkdir -p "$root"/{bin,lib/modules}
	find "$obj/hmm-programs" -maxdepth 1 -type f -exec cp -t "$root/bin" "$(command -v busybox)" {} +
	install -m 755 "$HARNESS/guest/init" "$root/init"
	if [[ $flavour == stock ]]; then
		stock_kernel "$root/lib/modules"
	else
		built_kernel "$root/lib/modules"
	fi
	chmod -R a+rX "$root"
	(cd "$root" && find . | cpio -o -H newc --quiet -R 0:0) >"$temp/initramfs.cpio"
	mv "$temp"/{initramfs.cpio,bzImage} "$OUT/$flavour/"
}

need bc binutils bison busybox-static cpio flex gcc libc6-dev libelf-dev make patch perl-base python3 \
	qemu-system-x86 rsync
[[ $flavour != stock ]] || need kmod xz-utils
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
[[ $flavour == *pristine || $flavour == stock ]] || check_objects
temp pack
pack
