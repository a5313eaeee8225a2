#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
#
# Makes figures of the samples of a benchmark: medians with their spread, ratios to
# the peers with a verdict each, and plots over size. Ratios are of samples that were
# taken one after the other, in one round of one boot; what is quoted is their median.
#
# usage: bench.py [--quick] DIRECTORY MACHINE
# Reads samples.csv and footprint of the directory, writes figures.txt and *.svg there;
# prints the figures; the last line is "N passed, N failed, N skipped".

import collections
import csv
import os
import statistics
import subprocess
import sys

US, MS = 1e3, 1e6

TITLES = {
    "mask_interrupts": ("interrupts off and on", ""),
    "register_first": ("first registration of an address space", "VMAs"),
    "register": ("a further registration", "VMAs"),
    "register_many": ("registration, many on one address space", "mirrors"),
    "unregister_many": ("unregister, back to back", "mirrors"),
    "unregister_over": ("unregister, until all is over", "mirrors"),
    "unregister_idle": ("unregister, one at a time", ""),
    "unregister_beside_hmm": ("unregister beside a callback of HMM that sleeps 1 s", ""),
    "unregister_beside_mmu_notifier": ("unregister beside a callback of mmu_notifier that sleeps 1 s", ""),
    "exit_beside_hmm": ("exit beside a callback of HMM that sleeps 1 s", ""),
    "exit_beside_mmu_notifier": ("exit beside a callback of mmu_notifier that sleeps 1 s", ""),
    "exit": ("exit of one address space, in all", "mirrors"),
    "register_processes": ("first registration, each of another address space", "processes"),
    "exit_processes": ("exit, each of another address space", "processes"),
    "exit_slow_devices": ("exit, each device takes 100 ms to stop, in all", "devices"),
    "pairs_one_mm": ("register and unregister on one address space", "threads"),
    "pairs_many_mm": ("register and unregister, an address space each", "threads"),
    "find_one_mm": ("look-up in one address space", "threads"),
    "find_many_mm": ("look-up, an address space each", "threads"),
    "lives": ("new address space, register, exit, unregister", "threads"),
    "unused_munmap": ("munmap() of 64 pages, no mirror, an instruction a nanosecond", "pages"),
    "unused_exit": ("exit of a process, no mirror, an instruction a nanosecond", "pages"),
}

MACHINES = {
    "qemu": "QEMU",
    "uml": "User Mode Linux",
    "lean": "QEMU, with HMM",
    "lean-pristine": "QEMU, unpatched",
}


class Samples:
    """Nanoseconds for each operation, by machine, measure, peer and size."""

    def __init__(self, path):
        self.of = collections.defaultdict(dict)
        with open(path, newline="") as f:
            for row in csv.DictReader(f):
                key = row["machine"], row["measure"], row["peer"], int(row["size"])
                ops = int(row["operations"])
                if ops:
                    self.of[key][row["run"], row["round"]] = int(row["nanoseconds"]) / ops

    def median(self, *key):
        return statistics.median(self.of[key].values())

    def spread(self, *key):
        values = sorted(self.of[key].values())
        return values[0], statistics.median(values), values[-1]

    def ratio(self, one, other):
        """Of two keys, pair by pair."""
        a, b = self.of[one], self.of[other]
        return statistics.median(a[i] / b[i] for i in a if i in b)

    def sizes(self, machine, measure):
        return sorted({k[3] for k in self.of if k[:2] == (machine, measure)})

    def peers(self, machine, measure):
        return list(dict.fromkeys(k[2] for k in self.of if k[:2] == (machine, measure)))


class Verdicts:
    """Each is held against a bar, or, if it is a stretch, only shown. So are all those of
    User Mode Linux, where what a kernel does natively, like masking interrupts, is not."""

    def __init__(self, show):
        self.show = show
        self.passed = self.failed = 0
        self.only_shown = False

    def check(self, label, value, bar, unit="", stretch=False):
        stretch = stretch or self.only_shown
        met = value <= bar
        word = ("met" if met else "not met") if stretch else ("ok" if met else "MISSED")
        note = " (stretch)" if stretch and not self.only_shown else ""
        self.show(f"  {label:<100}{value:>10.4g}{unit:<3} <= {bar:g}{unit}{note:<10} {word}")
        if not stretch:
            self.passed += met
            self.failed += not met


def time(ns):
    for unit, name in ((1e9, "s"), (MS, "ms"), (US, "us")):
        if ns >= unit:
            return f"{ns / unit:.3g} {name}"
    return f"{ns:.0f} ns"


def table(show, samples, machine, measure):
    title, grows = TITLES[measure]
    sizes = samples.sizes(machine, measure)
    show(f"{title}, {MACHINES[machine]}: median (least to most), each")
    heads = [f"{size} {grows}" if grows else "" for size in sizes]
    show(f"  {'':<22}" + "".join(f"{h:<32}" for h in heads).rstrip())
    for peer in samples.peers(machine, measure):
        cells = []
        for size in sizes:
            if (machine, measure, peer, size) in samples.of:
                least, median, most = samples.spread(machine, measure, peer, size)
                cells.append(f"{time(median)} ({time(least)} to {time(most)})")
            else:
                cells.append("")
        show(f"  {peer:<22}" + "".join(f"{c:<32}" for c in cells).rstrip())
    show("")


def judge_registers(s, v, m):
    hmm, notifier = (m, "register", "hmm"), (m, "register", "mmu_notifier")
    sizes = s.sizes(m, "register")
    v.check(f"P1 register, {sizes[-1]} VMAs to {sizes[0]}",
            s.median(*hmm, sizes[-1]) / s.median(*hmm, sizes[0]), 2)
    v.check("P1 register to mmu_notifier_register(), 1000 VMAs", s.ratio((*hmm, 1000), (*notifier, 1000)), 0.01)
    for size in sizes:
        v.check(f"P1 register to mmu_notifier_get() of one that is there, {size} VMAs",
                s.ratio((*hmm, size), (m, "register", "mmu_notifier_get", size)), 5)


def judge_beside(s, v, m):
    for what, bar in ("unregister", 10), ("exit", 50):
        for asleep in "hmm", "mmu_notifier":
            worst = s.spread(m, f"{what}_beside_{asleep}", "hmm", 1)[2]
            v.check(f"P3 {what} beside a callback of {asleep} that sleeps, the longest", worst / MS, bar, " ms")


def judge_unregisters(s, v, m):
    for measure, size in ("unregister_idle", 1), ("unregister_many", 1000):
        ratio = s.ratio((m, measure, "hmm", size), (m, measure, "mmu_notifier", size))
        label = f"P2 {TITLES[measure][0]}, to mmu_notifier_unregister()"
        v.check(label, ratio, 0.5)
        v.check(label, ratio, 0.05, stretch=True)
        v.check(f"   {TITLES[measure][0]}, no callback in flight",
                s.median(m, measure, "hmm", size) / US, 10, " us", stretch=True)
    for measure, size in ("unregister_idle", 1), ("unregister_many", 1000):
        v.check(f"P4 asynchronous {TITLES[measure][0]}, to mmu_notifier_put()",
                s.ratio((m, measure, "hmm_async", size), (m, measure, "mmu_notifier_put", size)), 2)
    v.check("P4 1000 asynchronous ones and hmm_synchronize(), to 1000 mmu_notifier_unregister()",
            s.ratio((m, "unregister_over", "hmm_async", 1000), (m, "unregister_many", "mmu_notifier", 1000)), 0.05)


def growth(s, m, measure, peer):
    return s.median(m, measure, peer, 1000) / s.median(m, measure, peer, 10)


def judge_exits(s, v, m):
    for peer, stretch in ("mmu_notifier", False), ("mmu_interval_notifier", True):
        v.check(f"P9 exit with 1000 mirrors, to a walk of 1000 {peer}",
                s.ratio((m, "exit", "hmm", 1000), (m, "exit", peer, 1000)), 5, stretch=stretch)
    v.check("P9 exit, each of 1000 mirrors to each of 100",
            s.median(m, "exit", "hmm", 1000) / s.median(m, "exit", "hmm", 100) / 10, 2)
    for peer in "mmu_notifier", "mmu_interval_notifier":
        v.check(f"P9 exit of each of 1000 processes, to one with a {peer}",
                s.ratio((m, "exit_processes", "hmm", 1000), (m, "exit_processes", peer, 1000)), 2)
    v.check("P9 exit, each of 1000 processes to each of 10, to the same without a mirror",
            growth(s, m, "exit_processes", "hmm") / growth(s, m, "exit_processes", "none"), 2)
    v.check("P11 exit, 8 devices that take 100 ms each", s.median(m, "exit_slow_devices", "hmm", 8) / MS, 150, " ms")


def judge_growth(s, v, m):
    for measure, peer in (("register_many", "hmm"), ("unregister_many", "hmm"), ("unregister_many", "hmm_async"),
                          ("unregister_over", "hmm_async")):
        v.check(f"   {TITLES[measure][0]}, {peer}: each of 1000 to each of 10",
                growth(s, m, measure, peer), 2, stretch=True)
    v.check("   first registration of each of 1000 processes to that of 10, to the same of an interval notifier",
            growth(s, m, "register_processes", "hmm") / growth(s, m, "register_processes", "mmu_interval_notifier"),
            2, stretch=True)
    for measure in "find_one_mm", "find_many_mm", "pairs_many_mm", "lives":
        v.check(f"   {TITLES[measure][0]}: time with 2 threads to that with 1, same number",
                s.median(m, measure, "hmm", 2) / s.median(m, measure, "hmm", 1), 1, stretch=True)


def judge_unused(s, v, sizes):
    for measure in "unused_munmap", "unused_exit":
        size = s.sizes("lean", measure)[0]
        v.check(f"P8 {TITLES[measure][0]}, to an unpatched kernel",
                s.median("lean", measure, "none", size) / s.median("lean-pristine", measure, "none", size), 1.02)
    for what, label in ("mm_struct", "size of struct mm_struct"), ("vmlinux", "size of vmlinux, HMM as a module"):
        v.check(f"P8 {label}, to an unpatched kernel", sizes["lean", what] / sizes["lean-pristine", what], 1)


def footprint(path):
    with open(path) as f:
        return {(kernel, what): int(size) for kernel, what, size in map(str.split, f)}


def show_footprint(show, sizes):
    show("Bytes, of the kernel in QEMU")
    for what in "hmm_device", "hmm_mirror", "hmm", "mmu_notifier", "mmu_interval_notifier":
        show(f"  struct {what:<24}{sizes['lean', what]:>8}")
    show(f"  {'code of mm/hmm_device.o':<31}{sizes['lean', 'text']:>8}")
    show(f"  {'data of mm/hmm_device.o':<31}{sizes['lean', 'data']:>8}")
    show("  a mirror costs its struct, and nothing besides; the first of an address space a struct hmm")
    show("")


def plot(samples, machine, measure, directory):
    """One curve for each peer; a bar from the least sample to the most."""
    title, grows = TITLES[measure]
    script = [f'set terminal svg size 720,480 dynamic background "white"; set output "{machine}-{measure}.svg"',
              f'set title "{title} ({MACHINES[machine]})"; set xlabel "{grows}"; set ylabel "microseconds, each"',
              "set logscale xy; set key outside bottom center horizontal; set grid"]
    curves = []
    for i, peer in enumerate(samples.peers(machine, measure)):
        script.append(f"$p{i} << EOD")
        for size in samples.sizes(machine, measure):
            if (machine, measure, peer, size) in samples.of:
                least, median, most = samples.spread(machine, measure, peer, size)
                script.append(f"{size} {median / US} {least / US} {most / US}")
        script.append("EOD")
        curves.append(f'$p{i} with yerrorlines title "{peer}" noenhanced')
    script.append("plot " + ", ".join(curves))
    subprocess.run(["gnuplot"], input="\n".join(script), text=True, check=True, cwd=directory)


def main():
    quick = sys.argv[1] == "--quick"
    directory, machine = sys.argv[1 + quick:]
    samples = Samples(os.path.join(directory, "samples.csv"))
    lines = []
    verdicts = Verdicts(lines.append)

    machines = [m for m in ("qemu", "uml") if samples.sizes(m, "register")]
    lines += [f"Measured on: {machine}, {os.cpu_count()} CPUs", ""]
    for m in machines:
        for measure in TITLES:
            if samples.sizes(m, measure):
                table(lines.append, samples, m, measure)
    if not quick:
        for measure in "unused_munmap", "unused_exit":
            for m in "lean", "lean-pristine":
                table(lines.append, samples, m, measure)
        sizes = footprint(os.path.join(directory, "footprint"))
        show_footprint(lines.append, sizes)
    for m in machines:
        lines.append(f"Verdicts, {MACHINES[m]}")
        verdicts.only_shown = m == "uml"
        judge_registers(samples, verdicts, m)
        judge_beside(samples, verdicts, m)
        if not quick:
            judge_unregisters(samples, verdicts, m)
            judge_exits(samples, verdicts, m)
            judge_growth(samples, verdicts, m)
    verdicts.only_shown = False
    if not quick:
        judge_unused(samples, verdicts, sizes)
        for m in machines:
            for measure in TITLES:
                if len(samples.sizes(m, measure)) > 1:
                    plot(samples, m, measure, directory)
    with open(os.path.join(directory, "figures.txt"), "w") as f:
        f.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"{verdicts.passed} passed, {verdicts.failed} failed, 0 skipped")
    return verdicts.failed > 0 or not verdicts.passed


if __name__ == "__main__":
    sys.exit(main())
