"""Tests and intervals of plain numbers. SciPy tests and resamples; Holm's correction is ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

Numbers = Sequence[float] | np.ndarray | pd.Series


def paired_test(
    a: Numbers, b: Numbers, alternative: Literal["two-sided", "greater", "less"] = "two-sided"
) -> dict[str, float]:
    """Wilcoxon's signed-rank test of a - b.

    Parameters
    ----------
    a, b
        (n,) floats; two Series must have the same index, in the same order.
    alternative
        As in SciPy: ``greater`` tests whether a is larger than b.

    Returns
    -------
    dict
        `n` (pairs), `mean_difference`, `median_difference`, SciPy's `statistic` (the smaller rank sum; that
        of the positive ones where one-sided) and `p`, and `effect_size`: the matched-pairs rank-biserial
        correlation (Kerby 2014), from -1 (a always smaller) to 1. Pairs without a difference take no part in
        the ranks; where there are only such pairs, the statistic and the effect are 0 and p is 1.

    Raises
    ------
    ValueError
        No pairs, different lengths or indices, NaN or infinity, an unknown alternative.
    """
    from scipy.stats import rankdata, wilcoxon

    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative: {alternative!r} is not one of two-sided, greater, less")
    if isinstance(a, pd.Series) and isinstance(b, pd.Series) and not a.index.equals(b.index):
        raise ValueError("a, b: the two indices differ, so that pairs would be wrong; use b.reindex(a.index)")
    first, second = _numbers(a, "a"), _numbers(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a, b: {len(first)} and {len(second)} values are not pairs")
    difference = first - second
    result = {
        "n": len(difference),
        "mean_difference": float(difference.mean()),
        "median_difference": float(np.median(difference)),
    }
    moved = difference[difference != 0]
    if not len(moved):
        return result | {"statistic": 0.0, "p": 1.0, "effect_size": 0.0}
    test = wilcoxon(difference, alternative=alternative, zero_method="wilcox")
    ranks = rankdata(np.abs(moved))
    return result | {
        "statistic": float(test.statistic),
        "p": float(test.pvalue),
        "effect_size": float((ranks * np.sign(moved)).sum() / ranks.sum()),
    }


def holm(p_values: Numbers) -> np.ndarray:
    """P-values adjusted by Holm's step-down method (Holm 1979), float (n,), in the order given.

    The i-th smallest of n is multiplied by n - i + 1; none is smaller than the one before it nor above 1.
    ValueError for a value that is not a probability.
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p_values: each must be a probability from 0 to 1; drop the tests that have none")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def bootstrap_interval(
    values: Numbers,
    groups: Sequence[Any] | np.ndarray | pd.Series | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    statistic: Literal["mean", "median"] | Callable[[np.ndarray], float] = "mean",
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic; with `groups`, whole groups are drawn.

    Parameters
    ----------
    values
        (n,) floats.
    groups
        (n,) labels such as patients: as many as there are get drawn with replacement, each with all of its
        values (cluster bootstrap). None: each value is its own group.
    level
        Coverage, between 0 and 1.
    resamples, seed
        Number of bootstrap samples, and the seed of their draw.
    statistic
        ``mean``, ``median``, or a function of a float array (m,), called once a resample.

    Returns
    -------
    float, float
        Low and high; NaN where there is one group only, which says nothing about others.

    Raises
    ------
    ValueError
        No values, NaN, lengths that differ, a group that is NA, a level outside (0, 1).
    """
    from scipy.stats import bootstrap

    numbers = _numbers(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level: {level!r} is not between 0 and 1")
    if isinstance(statistic, str) and statistic not in ("mean", "median"):
        raise ValueError(f"statistic: {statistic!r} is neither mean, median nor a function")
    labels = np.arange(len(numbers)) if groups is None else np.asarray(groups)
    if len(labels) != len(numbers):
        raise ValueError(f"groups: {len(labels)} labels for {len(numbers)} values")
    codes, names = pd.factorize(labels, use_na_sentinel=True)
    if (codes < 0).any():
        raise ValueError(f"groups: {(codes < 0).sum()} values have none; drop them or name their group")
    if len(names) < 2:
        return float("nan"), float("nan")
    settings = {
        "n_resamples": resamples,
        "confidence_level": level,
        "method": "percentile",
        "rng": np.random.default_rng(seed),
    }
    if statistic == "mean":
        # a mean over drawn groups needs each group's sum and count only
        sums, counts = np.bincount(codes, numbers), np.bincount(codes)
        interval = bootstrap(
            (sums, counts),
            lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
            paired=True,
            vectorized=True,
            batch=2000,
            **settings,
        ).confidence_interval
    else:
        function = np.median if statistic == "median" else statistic
        members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        interval = bootstrap(
            (np.arange(len(names)),),
            lambda drawn: function(numbers[np.concatenate([members[group] for group in drawn])]),
            vectorized=False,
            **settings,
        ).confidence_interval
    return float(interval.low), float(interval.high)


def _numbers(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name}: one dimension with at least one value expected, not {array.shape}")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(array)} values are NaN or infinite; leave out their pairs")
    return array
