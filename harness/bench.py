#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
#
# Makes figures of the samples of a benchmark: medians with their spread, ratios to
# the peers with a verdict each, and plots over size. A ratio is that of two samples of
# one round; a boot has the median of its rounds. Quoted is the median of the boots,
# with the least and the most of them, and a bar has to be met in every boot.
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
    "unregister_last": ("unregister of the last one of an mm, one at a time", ""),
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
    "scale": ("mirrors of one device and one address space", "mirrors"),
    "masked": ("longest delay of an interrupt", "mirrors"),
    "unused_munmap": ("munmap() of 64 pages", "pages"),
    "unused_mprotect": ("mprotect() of 64 pages", "pages"),
    "unused_fork": ("fork()", "pages"),
    "unused_exit": ("exit of a process", "pages"),
}

MACHINES = {
    "qemu": "QEMU",
    "counted": "QEMU, an instruction a nanosecond",
    "uml": "User Mode Linux",
    "lean": "QEMU with HMM, an instruction a nanosecond",
    "lean-pristine": "QEMU unpatched, an instruction a nanosecond",
}


class Samples:
    """Nanoseconds for each operation, by machine, measure, peer and size; then by boot and round."""

    def __init__(self, path):
        self.of = collections.defaultdict(lambda: collections.defaultdict(dict))
        with open(path, newline="") as f:
            for row in csv.DictReader(f):
                key = row["machine"], row["measure"], row["peer"], int(row["size"])
                ops = int(row["operations"])
                if ops:
                    self.of[key][row["run"]][row["round"]] = int(row["nanoseconds"]) / ops

    def boots(self, key):
        return self.of.get(key, {})

    def spread(self, *key):
        values = sorted(v for rounds in self.boots(key).values() for v in rounds.values())
        return values[0], statistics.median(values), values[-1]

    def medians(self, *key):
        """Of each boot."""
        return [statistics.median(rounds.values()) for rounds in self.boots(key).values()]

    def most(self, *key):
        return [max(rounds.values()) for rounds in self.boots(key).values()]

    def ratios(self, one, other):
        """Of two keys, round by round: the median of each boot."""
        result = []
        for run, a in self.boots(one).items():
            b = self.boots(other).get(run, {})
            both = [a[i] / b[i] for i in a if i in b]
            if both:
                result.append(statistics.median(both))
        return result

    def sizes(self, machine, measure):
        return sorted({k[3] for k in self.of if k[:2] == (machine, measure)})

    def peers(self, machine, measure):
        return list(dict.fromkeys(k[2] for k in self.of if k[:2] == (machine, measure)))


def divide(values, others):
    return [a / b for a, b in zip(values, others)]


def growth(s, m, measure, peer, size=1000, base=10):
    """Of the median of each boot: samples of different sizes are not taken one after the other."""
    return divide(s.medians(m, measure, peer, size), s.medians(m, measure, peer, base))


class Verdicts:
    """Each is held against a bar, or, if it is a stretch, only shown. So are all those of
    User Mode Linux, where masking interrupts, for example, costs more than in a kernel."""

    def __init__(self, show):
        self.show = show
        self.passed = self.failed = 0
        self.only_shown = False

    def check(self, label, values, bar, unit="", stretch=False, scale=1):
        """@values: one of each boot."""
        stretch = stretch or self.only_shown
        values = sorted(v / scale for v in values)
        over = sum(v > bar for v in values)
        met = bool(values) and not over
        word = ("met" if met else "not met") if stretch else ("ok" if met else "MISSED")
        note = " (stretch)" if stretch and not self.only_shown else ""
        if 0 < over < len(values):
            word += f" in {over} of {len(values)} boots"
        median = f"{statistics.median(values):.4g}{unit}" if values else "-"
        spread = f" ({values[0]:.3g} to {values[-1]:.3g})" if len(values) > 1 else ""
        self.show(f"  {label:<92} {median + spread:>28} <= {bar:g}{unit}{note:<10} {word}")
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
    v.check(f"P1 register, {sizes[-1]} VMAs to {sizes[0]}", growth(s, *hmm, sizes[-1], sizes[0]), 2)
    v.check("P1 register to mmu_notifier_register(), 1000 VMAs", s.ratios((*hmm, 1000), (*notifier, 1000)), 0.01)
    for size in sizes:
        v.check(f"P1 register to mmu_notifier_get() of one that exists, {size} VMAs",
                s.ratios((*hmm, size), (m, "register", "mmu_notifier_get", size)), 5)


def judge_beside(s, v, m):
    for what, bar in ("unregister", 10), ("exit", 50):
        for asleep in "hmm", "mmu_notifier":
            v.check(f"P3 {what} beside a callback of {asleep} that sleeps, the longest",
                    s.most(m, f"{what}_beside_{asleep}", "hmm", 1), bar, " ms", scale=MS)


def judge_unregisters(s, v, m):
    for measure, size in ("unregister_idle", 1), ("unregister_last", 1), ("unregister_many", 1000):
        ratios = s.ratios((m, measure, "hmm", size), (m, measure, "mmu_notifier", size))
        v.check(f"P2 {TITLES[measure][0]}, to mmu_notifier_unregister()", ratios, 0.5)
        v.check(f"   {TITLES[measure][0]}, no callback in flight",
                s.medians(m, measure, "hmm", size), 10, " us", stretch=True, scale=US)
    for measure, size in ("unregister_idle", 1), ("unregister_many", 1000):
        v.check(f"P4 asynchronous {TITLES[measure][0]}, to mmu_notifier_put()",
                s.ratios((m, measure, "hmm_async", size), (m, measure, "mmu_notifier_put", size)), 2)
    v.check("P4 1000 asynchronous ones and hmm_synchronize(), to 1000 mmu_notifier_unregister()",
            s.ratios((m, "unregister_over", "hmm_async", 1000), (m, "unregister_many", "mmu_notifier", 1000)), 0.05)


def judge_exits(s, v, m):
    for peer, stretch in ("mmu_notifier", False), ("mmu_interval_notifier", True):
        v.check(f"P9 exit with 1000 mirrors, to a walk of 1000 {peer}",
                s.ratios((m, "exit", "hmm", 1000), (m, "exit", peer, 1000)), 5, stretch=stretch)
    v.check("P9 exit, each of 1000 mirrors to each of 100",
            growth(s, m, "exit", "hmm", 1000, 100), 2, scale=10)
    for peer in "mmu_notifier", "mmu_interval_notifier":
        v.check(f"P9 exit of each of 1000 processes, to one with a {peer}",
                s.ratios((m, "exit_processes", "hmm", 1000), (m, "exit_processes", peer, 1000)), 2)
    v.check("P9 exit, each of 1000 processes to each of 10, to the same without a mirror",
            divide(growth(s, m, "exit_processes", "hmm"), growth(s, m, "exit_processes", "none")), 2)
    v.check("P11 exit, 8 devices that take 100 ms each",
            s.medians(m, "exit_slow_devices", "hmm", 8), 150, " ms", scale=MS)


def judge_scale(s, v):
    """In instructions, so that caches do not count; in time, this is only shown."""
    for peer in s.peers("counted", "scale"):
        for m, stretch in ("counted", False), ("qemu", True):
            label = "   time of" if stretch else "P9"
            v.check(f"{label} {peer}, each of 100000 mirrors to each of 1000",
                    growth(s, m, "scale", peer, 100000, 1000), 2, stretch=stretch)
    for peer in s.peers("counted", "masked"):
        if peer != "none":
            sizes = s.sizes("counted", "masked")
            v.check(f"P9 {peer}, {sizes[0]} to {sizes[-1]} mirrors, interrupts are masked at most",
                    [max(values) for values in zip(*(s.most("counted", "masked", peer, size) for size in sizes))],
                    100, " us", scale=US)


def judge_growth(s, v, m):
    for measure, peer in (("register_many", "hmm"), ("unregister_many", "hmm"), ("unregister_many", "hmm_async"),
                          ("unregister_over", "hmm_async")):
        v.check(f"   {TITLES[measure][0]}, {peer}: each of 1000 to each of 10",
                growth(s, m, measure, peer), 2, stretch=True)
    v.check("   first registration of each of 1000 processes to each of 10, to an interval notifier",
            divide(growth(s, m, "register_processes", "hmm"),
                   growth(s, m, "register_processes", "mmu_interval_notifier")), 2, stretch=True)
    for measure in "find_one_mm", "find_many_mm", "pairs_many_mm", "lives":
        v.check(f"   {TITLES[measure][0]}: 2 threads to 1, for the same number",
                growth(s, m, measure, "hmm", 2, 1), 1, stretch=True)


def judge_unused(s, v, sizes):
    for measure in "unused_munmap", "unused_mprotect", "unused_fork", "unused_exit":
        size = s.sizes("lean", measure)[0]
        none = "lean", measure, "none", size
        v.check(f"P8 {TITLES[measure][0]}, no mirror, to an unpatched kernel",
                divide(s.medians(*none), s.medians("lean-pristine", measure, "none", size)), 1.02)
        if measure != "unused_exit":
            v.check(f"P8 {TITLES[measure][0]}, one mirror, to none",
                    s.ratios(("lean", measure, "hmm", size), none), 1.05)
            v.check(f"   {TITLES[measure][0]}, one interval notifier elsewhere, to none",
                    s.ratios(("lean", measure, "mmu_interval_notifier", size), none), 1.05, stretch=True)
    for what, label in ("mm_struct", "size of struct mm_struct"), ("vmlinux", "size of vmlinux, HMM as a module"):
        v.check(f"P8 {label}, to an unpatched kernel", [sizes["lean", what] / sizes["lean-pristine", what]], 1)


def footprint(path):
    with open(path) as f:
        return {(kernel, what): int(size) for kernel, what, size in map(str.split, f)}


def show_footprint(show, sizes):
    show("Bytes, of the kernel in QEMU")
    for what in "hmm_device", "hmm_mirror", "hmm", "mmu_notifier", "mmu_interval_notifier", "mm_struct":
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
    runs = max(len(boots) for boots in samples.of.values())
    lines += [f"Measured on: {machine}, {os.cpu_count()} CPUs; {runs} boots", ""]
    for m in machines:
        for measure in TITLES:
            if samples.sizes(m, measure):
                table(lines.append, samples, m, measure)
    if not quick:
        for measure in "register", "scale", "masked":
            table(lines.append, samples, "counted", measure)
        for measure in "unused_munmap", "unused_mprotect", "unused_fork", "unused_exit":
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
        lines.append("Verdicts, in instructions")
        judge_registers(samples, verdicts, "counted")
        judge_scale(samples, verdicts)
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
