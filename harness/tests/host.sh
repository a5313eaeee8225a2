# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# Wrong requests, and imports and configurations that do not fit: one line says
# what is wrong.
#
# usage: sourced by harness/tests/run
# shellcheck disable=SC2154 # which sets work and checkout

test_unknown_command() {
	fails '^hmm: frobnicate: no such command' "$HARNESS/hmm" frobnicate
	fails 'hmm: frobnicate: no such command' make -C "$ROOT" frobnicate
}

test_unknown_setting() {
	fails '^hmm: COLOUR=red: no such setting' "$HARNESS/hmm" run COLOUR=red
	fails 'hmm: COLOUR: no such variable' make -C "$ROOT" run COLOUR=red
}

test_unknown_base() {
	fails '^hmm: BASE=2.4: no such base; use 6.12' env BASE=2.4 "$HARNESS/build.sh" debug
}

test_unknown_part_of_the_model() {
	fails '^hmm: model: ARGS=walls: no such part; there are scenes' env ARGS=walls "$HARNESS/model.sh"
}

test_kdir_is_no_tree() {
	fails "^hmm: KDIR=$work: no kernel source tree" env KDIR="$work" "$HARNESS/build.sh" debug
}

test_kdir_is_too_old() {
	local tree=$work/old
	mkdir -p "$tree/mm"
	touch "$tree"/{Kbuild,mm/Kconfig}
	printf 'VERSION = 5\nPATCHLEVEL = 10\n' >"$tree/Makefile"
	fails 'Linux 5.10: too old; 6.1 is the oldest' env KDIR="$tree" "$HARNESS/build.sh" debug
}

test_module_for_no_kernel() {
	local kernel=$work/kernel
	fails "^hmm: KDIR=$work/gone: no such directory" env KDIR="$work/gone" "$HARNESS/module.sh"
	mkdir -p "$kernel"/include/{config,generated}
	fails "^hmm: KDIR=$kernel: no configured kernel \(Makefile is missing\)" env KDIR="$kernel" "$HARNESS/module.sh"
	touch "$kernel"/{Makefile,include/config/auto.conf}
	echo '#define UTS_RELEASE "5.10.0-9-amd64"' >"$kernel/include/generated/utsrelease.h"
	fails "^hmm: KDIR=$kernel: no Module.symvers" env KDIR="$kernel" "$HARNESS/module.sh"
	echo >"$kernel/Module.symvers"
	fails 'Linux 5.10.0-9-amd64: too old; 6.1 is the oldest' env KDIR="$kernel" "$HARNESS/module.sh"
	echo CONFIG_HMM_DEVICE=m >"$kernel/include/config/auto.conf"
	fails "^hmm: KDIR=$kernel: has HMM in its tree" env KDIR="$kernel" "$HARNESS/module.sh"
	fails '^hmm: BASE=latest: its stock kernel is not for Debian 12' env BASE=latest KDIR= "$HARNESS/module.sh"
	fails '^hmm: BASE=2.4: no such base; use 6.12 or 6.1' env BASE=2.4 KDIR= "$HARNESS/module.sh"
}

test_stock_kernel_is_as_it_is() {
	fails "^hmm: KDIR=$work: make test-stock boots Debian's kernel" "$HARNESS/hmm" test-stock KDIR="$work"
	fails '^hmm: KCSAN=1 RT=: a stock kernel is as it is' "$HARNESS/hmm" test-stock KCSAN=1 KDIR=
	fails "^hmm: KDIR=$work: make dkms-test is for Debian's kernel" "$HARNESS/hmm" dkms-test KDIR="$work"
}

test_missing_package() {
	mkdir -p "$work/bin"
	printf '#!/bin/sh\nexit 1\n' | tee "$work/bin/dpkg-query" >"$work/bin/apt-get"
	chmod +x "$work"/bin/*
	fails '^hmm: missing packages: .* run .*: apt-get update && apt-get install .*qemu-system-x86' \
		env PATH="$work/bin:$PATH" "$HARNESS/build.sh" debug
}

test_full_disk() {
	mkdir -p "$work/bin-df"
	printf '#!/bin/sh\necho Avail\necho 12M\n' >"$work/bin-df/df"
	chmod +x "$work/bin-df/df"
	# shellcheck disable=SC2016 # the inner shell expands
	fails '^hmm: .*: 12 MB free, [0-9]+ GB needed; make room or set HMM_CACHE' \
		env PATH="$work/bin-df:$PATH" bash -c '. "$1/lib.sh"; need_space 4' - "$HARNESS"
	fails '^hmm: .*: 12 MB free, 1 GB needed' env PATH="$work/bin-df:$PATH" "$HARNESS/lint.sh"
}

test_bad_setting() {
	fails '^hmm: RUNS=many: not a number from 1' "$HARNESS/hmm" test RUNS=many
	fails '^hmm: MINUTES=half: not a number from 1' "$HARNESS/hmm" torture MINUTES=half
	fails '^hmm: SEED=0: not a number from 1' "$HARNESS/hmm" torture SEED=0
	fails '^hmm: ARGS=kvm: torture takes uml or qemu' "$HARNESS/hmm" torture ARGS=kvm
	fails '^hmm: MINUTES=0: not a number from 1' "$HARNESS/hmm" fuzz MINUTES=0
	fails '^hmm: RT=1: only make test' "$HARNESS/hmm" fuzz RT=1
	fails '^hmm: KCSAN=1 RT=1: one of them may be 1' "$HARNESS/hmm" test KCSAN=1 RT=1
	fails '^hmm: KCSAN=yes RT=: one of them' "$HARNESS/hmm" test KCSAN=yes
}

test_hook_does_not_apply() {
	copy hook
	# shellcheck disable=SC2016 # a literal dollar
	sed -i 's/^<obj-\$(CONFIG_HMM_MIRROR).*hmm.o$/<obj-y += nowhere.o/' "$checkout/harness/hooks"
	fails '^hmm: import: mm/Makefile: anchor "obj-y \+= nowhere.o" found 0 times, not once' \
		"$checkout/harness/build.sh" lint
}

test_hook_applies_twice() {
	copy hook
	sed -i 's/^<source "mm\/damon\/Kconfig"$/<endmenu/; s/^<   hmm$/<.. toctree::/' "$checkout/harness/hooks"
	fails '^hmm: import: .*: anchor ".*" found [2-9] times, not once' "$checkout/harness/build.sh" lint
}

test_file_is_missing() {
	copy file
	rm "$checkout/lib/test_hmm.c"
	fails '^hmm: import: lib/test_hmm.c: missing from this checkout' "$checkout/harness/build.sh" lint
}

test_landing_place_is_taken() {
	copy taken
	sed -i 's/hmm_device\.c$/hmm.c/' "$checkout/harness/files"
	fails '^hmm: import: lib/test_hmm.c: this kernel has it already' "$checkout/harness/build.sh" lint
}

# What stands in harness/hooks for other kernels only does not touch this one.
test_hook_for_other_kernels() {
	cached_key
	copy others
	printf 'mm/rmap.c after without anon_vma\n<no such line\n>#error\n' >>"$checkout/harness/hooks"
	"$checkout/harness/import.sh" "$key"
	holds cmp "$HMM_CACHE/pristine/$key/mm/rmap.c" "$HMM_CACHE/tree/$key/mm/rmap.c"
	sed -i 's/without anon_vma$/without anon_vma_of_nobody/' "$checkout/harness/hooks"
	fails '^hmm: import: mm/rmap.c: anchor "no such line" found 0 times, not once' \
		"$checkout/harness/import.sh" "$key"
}

test_config_line_is_substituted() {
	copy substitute
	echo CONFIG_NO_SUCH_THING=y >>"$checkout/harness/config/guest.config"
	echo 'CONFIG_NO_SUCH_THING=y CONFIG_NET=y' >>"$checkout/harness/config/substitutes"
	"$checkout/harness/build.sh" lint
	sed -i 's/ CONFIG_NET=y$/ CONFIG_NOR_THIS=y/' "$checkout/harness/config/substitutes"
	fails '^hmm: config: lost CONFIG_NOR_THIS=y \(harness/config/guest.config\)' "$checkout/harness/build.sh" lint
}

test_config_line_does_not_survive() {
	copy config
	echo CONFIG_NO_SUCH_THING=y >>"$checkout/harness/config/guest.config"
	fails '^hmm: config: lost CONFIG_NO_SUCH_THING=y \(harness/config/guest.config\)' \
		"$checkout/harness/build.sh" lint
}

test_file_does_not_compile() {
	copy broken
	echo '#error broken on purpose' >>"$checkout/mm/hmm.c"
	fails 'mm/hmm_device.c:[0-9]+:2: error: #error broken on purpose' "$checkout/harness/build.sh" lint
	holds test ! -e "$checkout/out/$BASE/lint/tree"
}

test_lint_finds_older_kernels() {
	copy lint
	echo '/* As Linux 6.12 has it */' >>"$checkout/mm/tests/hmm_bench.c"
	fails '^mm/tests/hmm_bench.c:[0-9]+:/\* As Linux 6.12' "$checkout/harness/lint.sh"
	holds grep -qx 'lint: older failed' <<<"$said"
}

test_mutant_is_unknown() {
	fails '^hmm: no-such-mutant: no such mutant' env ARGS=no-such-mutant "$HARNESS/mutants.sh"
	fails '^hmm: ARGS: No/such/file: no file, directory or name' env ARGS=No/such/file "$HARNESS/mutants.sh"
}

test_mutant_does_not_apply() {
	printf '%s\n' 'gone: its line is there no more' '@hmm_put' '<	no_such_line();' >"$work/list"
	fails '^hmm: .*/list: gone: does not apply: hmm_put\(\): "no_such_line\(\);".* found 0 times, not once' \
		"$HARNESS/mutate.py" check "$work/list" "$ROOT"
	printf '%s\n' 'lost: its function is there no more' '@no_such_function' '<	return;' >"$work/list"
	fails '^hmm: .*/list: lost: does not apply: no function no_such_function\(\)' \
		"$HARNESS/mutate.py" check "$work/list" "$ROOT"
}

test_mutants_list_is_malformed() {
	printf '%s\n' 'odd: a line that means nothing' '@hmm_put' '!	return;' >"$work/list"
	fails '^hmm: .*/list:3: "!.*" is nothing that can stand here' "$HARNESS/mutate.py" names "$work/list"
	printf '%s\n' 'twin: one' '@hmm_put' '<	x' 'twin: two' '@hmm_put' '<	x' >"$work/list"
	fails '^hmm: .*/list:4: twin: a second mutant of that name' "$HARNESS/mutate.py" names "$work/list"
}

# The guest here ignores SIGTERM, as User Mode Linux at times does.
test_mutant_ends_with_its_guest() {
	local boot=$work/base mutant guest
	mkdir -p "$boot" "$work/mutant"
	touch "$boot"/{initramfs,parameters} "$work/mutant"/{patch,sum}
	echo "kunit 60 60 hmm.leaks=no kunit" >"$boot/boots"
	printf '%s\n' '#!/bin/bash' 'trap "" TERM' 'echo "hmm-guest: init"' "echo \$\$ >$boot/guest" \
		'while :; do sleep 1; done' >"$boot/linux"
	chmod +x "$boot/linux"
	HMM_MUTANTS_OBJ=$boot HMM_MUTANTS_BASE=$boot HMM_MUTANTS_ONLY='' "$HARNESS/mutant.sh" "$work/mutant" &
	mutant=$!
	# shellcheck disable=SC2016 # the shell that this starts expands it
	holds timeout 30 bash -c 'until [[ -s $1 ]]; do sleep 0.1; done' - "$boot/guest"
	guest=$(cat "$boot/guest")
	kill "$mutant"
	fails '' wait "$mutant"
	holds timeout 10 tail -f --pid="$guest" /dev/null
}

test_series_manifest_is_malformed() {
	copy series
	echo 'give mm/hmm_device.c' >>"$checkout/harness/series/manifest"
	fails '^hmm: series: .*/manifest:[0-9]+: "give mm/hmm_device.c" is nothing that can stand here' "$checkout/harness/series.py" check
	sed -i '$s/.*/take mm\/hmm_device.c \/(\//' "$checkout/harness/series/manifest"
	fails '^hmm: series: .*/manifest:[0-9]+: \(: ' "$checkout/harness/series.py" check
	sed -i '$s/.*/patch nameless/' "$checkout/harness/series/manifest"
	fails '^hmm: series: .*/nameless: not there; each patch has its message' "$checkout/harness/series.py" check
}

test_series_message_is_wrong() {
	copy series
	printf '%s\n' 'Signed-off-by: Some Body <some@body>' "$(printf '%076d' 1)" >>"$checkout/harness/series/core"
	fails '^core: longer than 75 columns: 0+1$' "$checkout/harness/series.sh"
	holds grep -q '^core: Signed-off-by: .*: whoever sends the series signs it$' <<<"$said"
}

test_series_check_has_no_such_part() {
	fails '^hmm: series-check: ARGS=spelling: no such part; there are checkpatch codespell' \
		env ARGS='build spelling' "$HARNESS/series-check.sh"
}

# One fault for each part that does not compile: each is found, where it is.
test_series_check_finds_faults() {
	local -x BASE=latest	# what the series is for
	local out
	copy series-check
	printf 'It rec%s nothing.\n' ieves >>"$checkout/harness/series/debugfs"
	sed -i 's/^\thmm = hmm_find(mm);$/& /; /^ \* hmm_mirror_find() - /,/^ \*\/$/{/^ \* @mm: /d}' "$checkout/mm/hmm.c"
	sed -i 's/^+F:\tmm\/Kconfig.hmm$/+F:\tmm\/Kconfig.nowhere/' "$checkout/MAINTAINERS.patch"
	fails '^[0-9]+ passed, 10 failed, 0 skipped$' \
		env ARGS='checkpatch codespell kernel-doc maintainers' "$checkout/harness/series-check.sh"
	out=$(grep '^not ok' <<<"$said" | sed 's/^not ok [0-9]* - //')
	holds test "$out" = "02 core: checkpatch --strict
06 find: kernel-doc
07 count: kernel-doc
08 pin: kernel-doc
09 trace: kernel-doc
10 debugfs: checkpatch --strict
10 debugfs: codespell
10 debugfs: kernel-doc
11 points: kernel-doc
all: MAINTAINERS"
}

# What no patch takes, or none has; the same input gives the same patches.
test_series_has_all() {
	local -x BASE=latest
	copy series
	holds "$checkout/harness/series.sh"
	mv "$checkout/out/series" "$checkout/out/first"
	holds "$checkout/harness/series.sh"
	holds diff -r "$checkout/out/first" "$checkout/out/series"
	sed -i '/^take MAINTAINERS/d' "$checkout/harness/series/manifest"
	fails '^hmm: series: MAINTAINERS: no patch takes it' "$checkout/harness/series.sh"
	cp "$HARNESS/series/manifest" "$checkout/harness/series/"
	sed -i 's/^take mm.hmm_device.c hmm_mirror_find()/take mm\/hmm_device.c hmm_mirror_lose()/' "$checkout/harness/series/manifest"
	fails '^hmm: series: find: mm/hmm_device.c: no line of it is like .*hmm_mirror_lose' "$checkout/harness/series.sh"
}

test_docs_warnings_are_found() {
	copy docs
	# shellcheck disable=SC2016 # backquotes of reST
	sed -i 's/^Rules$/See `no such place`_. And :ref:`nowhere-at-all`.\n\nRules/' "$checkout/Documentation/vm/hmm.rst"
	sed -i 's/^ \* struct hmm_mirror - /&and @nothing: /; /^ \* @free: /d' "$checkout/include/linux/hmm.h"
	fails '^hmm: docs: warnings about this project' "$checkout/harness/docs.sh"
	holds grep -qE 'hmm-device.rst:[0-9]+: .*no such place' <<<"$said"
	holds grep -qE "hmm_device.h:[0-9]+:? .*'free' not described" <<<"$said"
	holds test ! -e "$checkout/out/docs"
}

# A commit of its own, as the checkout that is tested may have changes.
test_dist_needs_a_commit() {
	local -x BASE=latest
	copy dist
	fails '^hmm: dist: .* is no git checkout' env GIT_DIR="$checkout/none" "$checkout/harness/dist.sh"
	git init --quiet "$checkout"
	git -C "$checkout" add -A
	git -C "$checkout" -c user.name=test -c user.email=test commit --quiet -m test
	echo 0.1 >"$checkout/VERSION"
	fails '^hmm: dist: VERSION: "0.1" is no version; three numbers' "$checkout/harness/dist.sh"
	echo 9999.0.0 >"$checkout/VERSION"
	fails '^hmm: dist: CHANGELOG.md: nothing about 9999.0.0' "$checkout/harness/dist.sh"
	git -C "$checkout" checkout --quiet VERSION
	echo '# edited' >>"$checkout/Makefile"
	fails '^hmm: dist: not committed: Makefile; commit or remove it' "$checkout/harness/dist.sh"
	git -C "$checkout" checkout --quiet Makefile
	holds "$checkout/harness/dist.sh"
	mv "$checkout"/out/hmm-core-*.tar.xz "$work/first.tar.xz"
	holds "$checkout/harness/dist.sh"
	holds cmp "$work/first.tar.xz" "$checkout"/out/hmm-core-*.tar.xz
	holds grep -qx 'hmm-core-[0-9.]*/series/0000-cover-letter.patch' <(tar -tf "$work/first.tar.xz")
}
