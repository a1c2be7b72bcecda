"""Timing of pairs, and what the machine can do: the tools of every entry."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Way = Callable[[], Any]


@dataclass(frozen=True)
class Side:
    """One way of doing something.

    Parameters
    ----------
    words
        What it does, for the table.
    run
        Does it once; what it returns goes to the pair's check.
    units
        How many units (triplets, masks, images) one call does.
    scale
        Times by which its seconds are multiplied where only a part was run (1: all of it).
    """

    words: str
    run: Way
    units: float = 1
    scale: float = 1


@dataclass(frozen=True)
class Pair:
    """Two ways of the same; see `time_pair`.

    Parameters
    ----------
    name, title, unit
        Short name, what is done in words, and what one unit is.
    ours, plain
        The two ways. For a choice between two settings `ours` is the one that differs from the default.
    check
        Called with what both gave; raises AssertionError where they differ, otherwise says how alike.
    target
        The ratio that is asked for; None where there is none.
    repeats
        Measured pairs, after one that is not.
    kind
        ``goal``, or ``choice`` between two settings.
    chosen
        Of a choice: which of both the package takes, ``ours`` or ``plain``.
    note
        What a reader must know of the measurement.
    """

    name: str
    title: str
    unit: str
    ours: Side
    plain: Side
    check: Callable[[Any, Any], str]
    target: float | None = None
    repeats: int = 5
    kind: str = "goal"
    chosen: str = ""
    note: str = ""


@dataclass(frozen=True)
class Rate:
    """A number by itself: seconds, images per second, GFLOP a second.

    `better` is ``more`` or ``less``; `target` the value that is asked for, None where there is none; `values`
    the repeated measurements.
    """

    name: str
    title: str
    unit: str
    values: list[float]
    target: float | None = None
    better: str = "more"
    note: str = ""


@dataclass(frozen=True)
class Growth:
    """Seconds of one stage at several amounts along one axis (images, prompts, pixels)."""

    stage: str
    axis: str
    seconds: dict[float, list[float]]
    note: str = ""


@dataclass
class Found:
    """What one entry found."""

    pairs: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    rates: list[dict[str, Any]] = field(default_factory=list)
    growth: list[dict[str, Any]] = field(default_factory=list)


def time_call(run: Way) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    gc.collect()  # the one before pays for its own rubbish
    clock = time.perf_counter()
    result = run()
    return time.perf_counter() - clock, result


def time_pair(pair: Pair, entry: str, found: Found, repeats: int | None = None) -> dict[str, Any]:
    """Check that both ways give the same, then time them in turn; which goes first changes each time.

    Adds the summary to `found.pairs` and returns it: seconds a unit of both (medians), the median of the
    ratios of neighbours with quartiles and range, and how alike the results are.
    """
    # neither counts: first calls allocate and compile
    equal = pair.check(pair.ours.run(), pair.plain.run())
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(repeats or pair.repeats):
        order = ("ours", "plain") if number % 2 == 0 else ("plain", "ours")
        for name in order:
            side = getattr(pair, name)
            spent, _ = time_call(side.run)
            each = spent * side.scale / side.units
            seconds[name].append(each)
            row = {"entry": entry, "pair": pair.name, "side": name, "repeat": number, "seconds": spent}
            found.measurements.append(
                row | {"units": side.units, "scale": side.scale, "seconds_per_unit": each}
            )
    ratios = np.array(seconds["plain"]) / np.array(seconds["ours"])
    low, high = np.percentile(ratios, (25, 75))
    summary = {
        **{"entry": entry, "pair": pair.name, "kind": pair.kind, "title": pair.title, "unit": pair.unit},
        **{"ours": pair.ours.words, "plain": pair.plain.words},
        **{f"{name}_seconds": float(np.median(values)) for name, values in seconds.items()},
        **{"ratio": float(np.median(ratios)), "ratio_low": float(low), "ratio_high": float(high)},
        **{"ratio_min": float(ratios.min()), "ratio_max": float(ratios.max()), "repeats": len(ratios)},
        **{"target": pair.target, "chosen": pair.chosen, "equal": equal, "note": pair.note},
    }
    found.pairs.append(summary)
    return summary


def add_rate(rate: Rate, entry: str, found: Found) -> dict[str, Any]:
    """Add a rate to `found.rates` and return its row: median, range, target."""
    values = np.array(rate.values, dtype=float)
    row = {
        **{"entry": entry, "rate": rate.name, "title": rate.title, "unit": rate.unit},
        **{"value": float(np.median(values)), "low": float(values.min()), "high": float(values.max())},
        **{"repeats": len(values), "target": rate.target, "better": rate.better, "note": rate.note},
    }
    found.rates.append(row)
    return row


def add_growth(growth: Growth, entry: str, found: Found) -> None:
    """Add a row for each repeat at each amount to `found.growth`."""
    for amount, values in growth.seconds.items():
        for number, seconds in enumerate(values):
            row = {"entry": entry, "stage": growth.stage, "axis": growth.axis, "amount": amount}
            found.growth.append(row | {"repeat": number, "seconds": seconds, "note": growth.note})


def median_of(run: Way, repeats: int) -> list[float]:
    """Seconds of `repeats` calls, after one that does not count."""
    run()
    return [time_call(run)[0] for _ in range(repeats)]


# -- the machine ----------------------------------------------------------------------------------------


def matrix_rate(size: int = 2048, repeats: int = 5) -> list[float]:
    """GFLOP a second of a float32 product of two square matrices, with the threads that are set."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    times = median_of(lambda: torch.mm(a, b, out=out), repeats)
    return [2 * size**3 / seconds / 1e9 for seconds in times]


def processor() -> str:
    """The processor's name, as the system tells it."""
    import platform

    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def watch_others() -> Iterator[dict[str, float]]:
    """Say, when the block is left, which share of the processors others used meanwhile.

    The dict gets ``seconds`` and ``busy_elsewhere`` (0 to 1; NaN where the system does not tell): all time
    that the processors worked, less that of this process and of its children.
    """
    told: dict[str, float] = {}
    clock, busy, own = time.perf_counter(), _busy(), _own()
    yield told
    seconds = time.perf_counter() - clock
    others = (_busy() - busy) - (_own() - own)
    told["seconds"] = round(seconds, 1)
    told["busy_elsewhere"] = round(max(0.0, others) / (seconds * (os.cpu_count() or 1)), 3)


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _busy() -> float:
    """Seconds that all processors together have worked since the start; NaN where that is not told."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return float("nan")
    user, nice, system, _, _, irq, soft, _ = map(int, first)
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
