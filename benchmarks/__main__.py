"""Command line: ``python -m benchmarks [--only NAME ...] [--quick] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

OUT = Path("data/results/benchmarks")


def main(arguments: list[str] | None = None) -> int:
    """Run entries, print what they find, and put it on record; returns the exit status."""
    from benchmarks.entries import NAMES

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Time ours against the plain way."
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME",
                        help=f"entries to run: {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, once: whether it works, not how fast"
    )
    parser.add_argument(
        "--out", type=Path, help=f"folder of the record ({OUT}; with --quick nothing is written)"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="PyTorch's threads")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads: {options.threads} is less than one thread")
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    out = options.out or (None if options.quick else OUT)
    return _run(options.only, options.quick, options.threads, out)


def _run(names: list[str], quick: bool, threads: int, out: Path | None) -> int:
    import torch

    from benchmarks import record
    from benchmarks.entries import entry
    from benchmarks.measure import Found, Growth, Pair, add_growth, add_rate, time_pair, watch_others
    from benchmarks.setups import Settings

    torch.set_num_threads(threads)
    machine = record.about_machine(threads)
    gpu = machine["gpu"] or "no GPU"
    print(f"{machine['device']}, {machine['instructions']}, {threads} of {machine['cores']} cores, {gpu}")
    if out is not None:
        record.check_machine(out, names, machine)
    missed = []
    for name in names:
        found = Found()
        print(f"\n{name}", flush=True)
        with watch_others() as told:
            for item in entry(name, Settings(quick, threads)):
                if isinstance(item, Pair):
                    row = time_pair(item, name, found)
                    print(_pair_line(row), flush=True)
                    if row["target"] and row["ratio"] < row["target"]:
                        missed.append(row["pair"])
                elif isinstance(item, Growth):
                    add_growth(item, name, found)
                    print(_growth_line(item), flush=True)
                else:
                    row = add_rate(item, name, found)
                    print(_rate_line(row), flush=True)
                    if row["target"] and (row["value"] < row["target"]) == (row["better"] == "more"):
                        missed.append(row["rate"])
        print(
            f"  ({told['seconds']:.0f} s; others used {told['busy_elsewhere']:.0%} of the processors)",
            flush=True,
        )
        if out is not None:  # after each entry, so that a run cut off keeps what it has
            record.write(out, {name: found}, {name: dict(told) | {"quick": quick}}, machine)
    if missed and not quick:
        print(f"\nbelow the target: {', '.join(missed)}")
    return 0


def _pair_line(row: dict) -> str:
    target = f", wanted {row['target']:g}" if row["target"] else ""
    return (
        f"  {row['title']}: {row['ratio']:.2f} x "
        f"(quartiles {row['ratio_low']:.2f} to {row['ratio_high']:.2f}, "
        f"range {row['ratio_min']:.2f} to {row['ratio_max']:.2f}, {row['repeats']} pairs{target})\n"
        f"      {row['ours']}: {row['ours_seconds']:.4g} s a {row['unit']}; "
        f"{row['plain']}: {row['plain_seconds']:.4g} s\n      {row['equal']}"
    )


def _rate_line(row: dict) -> str:
    target = f", wanted {row['target']:g}" if row["target"] else ""
    spread = f" ({row['low']:.3g} to {row['high']:.3g}{target})"
    return f"  {row['title']}: {row['value']:.3g} {row['unit']}{spread} {row['note']}".rstrip()


def _growth_line(growth: object) -> str:
    middle = {amount: sorted(values)[len(values) // 2] for amount, values in growth.seconds.items()}
    told = ", ".join(f"{amount:g}: {seconds:.3g} s" for amount, seconds in middle.items())
    return f"  {growth.stage}, by {growth.axis}: {told}"


if __name__ == "__main__":
    sys.exit(main())
