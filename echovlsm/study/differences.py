"""Differences of two kinds of runs of equal compute that share model, prompt, patients and seeds.

An interval is of a crossed bootstrap: seeds and scored patients are drawn independently. A difference is a
finding where the interval leaves out zero, every seed has the same sign, and Holm's correction over the
family leaves p at or below 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from echovlsm.evaluation import statistics

LEVEL, RESAMPLES, SEED = 0.95, 5000, 0

FINDINGS: tuple[str, ...] = ("higher", "lower")
"""Verdicts that are findings."""

NO_DIFFERENCE = "no difference shown"

ONE_SEED, UNEQUAL = "one seed", "unequal steps"
"""Verdicts on differences that cannot be findings: of a single training, and of unequal compute."""


def weights(rng: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """How often each of `count` was drawn, as shares, (resamples, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), resamples) / count


def crossed(values: pd.DataFrame, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of crossed bootstrap samples, float (resamples,).

    Rows are seeds, columns scored patients; either is drawn with replacement, independently of the other.
    """
    rng = np.random.default_rng(SEED)
    table = values.to_numpy(dtype=float)
    rows, columns = (weights(rng, count, resamples) for count in table.shape)
    return ((rows @ table) * columns).sum(axis=1)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """Percentile interval of bootstrap samples, at `LEVEL`."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Any] | None:
    """First minus second on the seeds and patients that both have; None where they share no seed.

    Returns
    -------
    dict
        `gain`, `low`, `high`, `p` (two-sided, of the bootstrap), `seeds`, `seed_low`, `seed_high` and
        `one_sign`: whether every seed has the same sign.
    """
    seeds = first.index.intersection(second.index)
    if not len(seeds):
        return None
    gap = first.loc[seeds] - second.loc[seeds, first.columns]
    samples = crossed(gap)
    low, high = interval(samples)
    beyond = min((samples <= 0).mean(), (samples >= 0).mean())
    each = gap.mean(axis=1)
    return {
        "gain": float(gap.to_numpy().mean()),
        "low": low,
        "high": high,
        "p": min(1.0, 2 * max(float(beyond), 1 / len(samples))),
        "seeds": len(seeds),
        "seed_low": float(each.min()),
        "seed_high": float(each.max()),
        "one_sign": bool((each > 0).all() or (each < 0).all()),
    }


def judge(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A family of differences with Holm's p-values and verdicts.

    Returns
    -------
    DataFrame
        The rows, `p_holm`, and `verdict`: one of `FINDINGS`, `NO_DIFFERENCE`, or `ONE_SEED` where there are
        fewer than two.
    """
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    table["p_holm"] = statistics.holm(table["p"])
    clear = ((table["low"] > 0) | (table["high"] < 0)) & table["one_sign"] & (table["p_holm"] <= 1 - LEVEL)
    words = np.where(table["gain"] > 0, "higher", "lower")
    table["verdict"] = np.where(table["seeds"] < 2, ONE_SEED, np.where(clear, words, NO_DIFFERENCE))
    return table
