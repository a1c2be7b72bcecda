"""Statistics of scores: the paper's tables, paired tests, intervals by patient, agreement, convergence.

A scores table has one row a mask (`echovlsm.evaluation.score_table`) and names its run in the columns
`model`, `prompt`, `strategy`, `encoders` and `seed`. The paper reports mean and standard deviation over masks
and a Wilcoxon signed-rank test over masks (section 4). The masks of one patient resemble each other, so that
a test or interval which takes them as independent is too narrow: each is given by patient as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from echovlsm.evaluation.inference import bootstrap_interval, holm, paired_test
from echovlsm.evaluation.scoring import DISTANCES, METRICS

STRATEGY_ORDER: tuple[str, ...] = ("zeroshot", "synthetic", "real", "synth-PT:real-FT", "joint")
"""Order of the strategies in tables; the first four are the paper's."""

ABSENT = "N/A"
"""What `summary_table` prints for a cell without runs, as the paper does."""

_MASK = ("cohort", "patient", "view", "phase", "structure")
_PATIENT = ("cohort", "patient")
_RUN = ("model", "prompt", "strategy", "encoders", "seed")


def summary(
    scores: pd.DataFrame,
    by: Sequence[str] = ("model", "strategy", "prompt"),
    value: str = "dice",
    resamples: int = 10_000,
) -> pd.DataFrame:
    """Mean, spread and 95 % interval of a score in each cell.

    Parameters
    ----------
    scores
        Scores table.
    by
        Columns that make a cell.
    value
        The score's column. Rows where it is NaN (distances of an empty mask) are left out and counted.
    resamples
        Of the interval, as for `bootstrap_interval`.

    Returns
    -------
    DataFrame
        One row a cell in the tables' order: `by`, `mean`, `sd` (over masks, n - 1), `n` (masks), `missing`
        (rows left out), `patients`, `low`, `high` (of the mean; whole patients are drawn).

    Raises
    ------
    ValueError
        A column is absent, or the table is empty.
    """
    by = [by] if isinstance(by, str) else list(by)
    _check_columns(scores, [*by, value, "patient"])
    rows = []
    for cell, part in scores.groupby(by, sort=False, observed=True, dropna=False):
        known = part[part[value].notna()]
        numbers, patients = known[value].to_numpy(dtype=float), _patients(known)
        low, high = (
            bootstrap_interval(numbers, patients, resamples=resamples) if len(known) else (math.nan, math.nan)
        )
        record = {
            "mean": float(numbers.mean()) if len(numbers) else math.nan,
            "sd": float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan,
            "n": len(numbers),
            "missing": len(part) - len(known),
            "patients": len(np.unique(patients)),
            "low": low,
            "high": high,
        }
        rows.append(dict(zip(by, cell, strict=True)) | record)
    return pd.DataFrame(rows).sort_values(by, key=_ranks, kind="stable", ignore_index=True)


def mean_scores(scores: pd.DataFrame, by: Sequence[str] = ("structure",)) -> pd.DataFrame:
    """Means over masks of every score that the table has, and over how many masks those of distances are.

    A distance exists only where both masks are there (`echovlsm.evaluation.scoring`), so that its mean leaves
    out just the masks that failed altogether. `by` are the columns that make a row.

    Returns
    -------
    DataFrame
        One row a cell in the scores' order: `scoring.METRICS`, `distances over` (str, such as ``50 of 100``)
        and `empty predictions`.

    Raises
    ------
    ValueError
        A column of `by`, `dice` or `empty_pred` is absent, or the table is empty.
    """
    by = [by] if isinstance(by, str) else list(by)
    _check_columns(scores, [*by, METRICS[0], "empty_pred"])
    groups = scores.groupby(by, sort=False, observed=True)
    table = groups[[name for name in METRICS if name in scores]].mean()
    # the distance that is over fewest: a table from elsewhere may lack one where it has another
    known = groups[[name for name in DISTANCES if name in scores]].count().min(axis=1)
    table["distances over"] = known.astype(str) + " of " + groups.size().astype(str)
    table["empty predictions"] = groups["empty_pred"].sum()
    return table


def summary_table(
    scores: pd.DataFrame,
    rows: Sequence[str] = ("model", "strategy"),
    columns: str = "prompt",
    value: str = "dice",
    percent: bool = True,
    digits: int = 2,
) -> pd.DataFrame:
    """Table of `mean ± sd` in the paper's shape (its tables 1 and 2): sd over masks, all seeds together.

    Parameters
    ----------
    scores
        Scores table; select one kind of encoders first, or name `encoders` among the rows.
    rows, columns
        Columns of `scores` that make the table's index, and the one whose values become its columns.
    value
        The score's column.
    percent, digits
        Print 100 times the value; decimals.

    Returns
    -------
    DataFrame
        Of str; strategies in `STRATEGY_ORDER`, all else in alphabetical order; `N/A` where there is no run.
        Where some rows have no value (distances of an empty mask) it says over how many the mean is:
        ``12.3 ± 4.5 (50 of 100)``.

    Raises
    ------
    ValueError
        A column is absent, the table is empty, or it mixes encoders that the rows do not name.
    """
    rows = [rows] if isinstance(rows, str) else list(rows)
    _check_columns(scores, [*rows, columns, value])
    if "encoders" in scores and "encoders" not in (*rows, columns) and scores["encoders"].nunique() > 1:
        raise ValueError("scores: several kinds of encoders in one cell; select one or add encoders to rows")
    scale = 100 if percent else 1
    groups = scores.groupby([*rows, columns], observed=True)[value]
    means, spreads = groups.mean() * scale, groups.std() * scale
    told = [
        (ABSENT if np.isnan(mean) else f"{mean:.{digits}f}" + ("" if np.isnan(sd) else f" ± {sd:.{digits}f}"))
        + (f" ({known} of {rows})" if known < rows else "")
        for mean, sd, known, rows in zip(means, spreads, groups.count(), groups.size(), strict=True)
    ]
    table = pd.Series(told, index=means.index).unstack(columns).fillna(ABSENT)
    return table.sort_index(key=_ranks).sort_index(axis=1, key=_ranks)


def epochs_to_reach(history: pd.DataFrame, target: float) -> dict[str, Any]:
    """The `epoch` in which training first reached a validation Dice, and the `seconds` from the start to its
    end; both NA where it never did.

    `history` is `training.fit`'s table; ValueError where it lacks `epoch`, `val_dice` or `seconds`.
    """
    absent = [name for name in ("epoch", "val_dice", "seconds") if name not in history.columns]
    if absent:
        raise ValueError(f"history: no column {', '.join(absent)}; give the table that training.fit returns")
    ordered = history.sort_values("epoch", kind="stable")
    reached = np.flatnonzero(ordered["val_dice"].to_numpy(dtype=float) >= target)
    if not len(reached):
        return {"epoch": pd.NA, "seconds": pd.NA}
    first = reached[0]
    return {
        "epoch": int(ordered["epoch"].iloc[first]),
        "seconds": float(ordered["seconds"].iloc[: first + 1].sum()),
    }


def compare(
    scores: pd.DataFrame,
    a: str,
    b: str,
    by: Sequence[str] = ("model", "prompt"),
    *,
    column: str = "strategy",
    value: str = "dice",
    resamples: int = 10_000,
) -> pd.DataFrame:
    """Paired comparison of two strategies in each cell, by mask and by patient.

    Only seeds that both have count. A mask's value is its mean over these seeds, so that more seeds do not
    make more masks; a patient's value is the mean over its masks.

    Parameters
    ----------
    scores
        Scores table.
    a, b
        Values of `column`; differences are a - b.
    by
        Columns that make a cell; what else tells runs apart (`encoders`) must be among them or constant.
    column
        What is compared: `strategy`, or `encoders`, `prompt`, `model`.
    value
        The score's column.
    resamples
        Of the 95 % interval, as for `bootstrap_interval`.

    Returns
    -------
    DataFrame
        One row a cell: `by`, `a`, `b`, `masks`, `patients`, `seeds`, `mean_a`, `mean_b`, `difference`, `low`,
        `high` (of the difference over masks; whole patients are drawn), `seed_sd` (sd over seeds of the
        difference; NaN below two seeds), `p_mask`, `p_mask_holm`, `effect_mask`, `p_patient`,
        `p_patient_holm`, `effect_patient`; Holm over the table's cells. `attrs["left_out"]` lists the cells
        where one of the two has no runs or no seed is shared.

    Raises
    ------
    ValueError
        A column is absent; a or b is nowhere; two rows for one mask and seed; a mask that only one of the two
        has; NaN.
    """
    by = [by] if isinstance(by, str) else list(by)
    if column in by:
        raise ValueError(f"by: {column} is what is compared; take it out of by")
    _check_columns(scores, [*by, column, value, "patient"])
    for name in (a, b):
        if not (scores[column] == name).any():
            known = ", ".join(map(str, scores[column].unique()))
            raise ValueError(f"{column}: {name!r} is not in the scores; there are {known}")
    rows, left_out = [], []
    for cell, part in scores.groupby(by, sort=False, observed=True):
        label = ", ".join(f"{key} {val}" for key, val in zip(by, cell, strict=True))
        tables = [_by_mask_and_seed(part[part[column] == name], value, f"{label}, {name}") for name in (a, b)]
        seeds = tables[0].columns.intersection(tables[1].columns)
        if not len(seeds):
            left_out.append(label)
            continue
        first, second = (table[seeds] for table in tables)
        lonely = first.index.symmetric_difference(second.index)
        if len(lonely):
            raise ValueError(f"{label}: {len(lonely)} masks are scored for only one of {a} and {b}")
        second = second.loc[first.index]
        known = dict(zip(by, cell, strict=True)) | {"a": a, "b": b}
        rows.append(known | _compare_cell(first, second, resamples))
    if not rows:
        raise ValueError(f"scores: no cell of {', '.join(by)} has both {a} and {b} with a common seed")
    table = pd.DataFrame(rows).sort_values(by, key=_ranks, kind="stable", ignore_index=True)
    for unit in ("mask", "patient"):
        place = table.columns.get_loc(f"p_{unit}") + 1
        table.insert(place, f"p_{unit}_holm", holm(table[f"p_{unit}"]))
    table.attrs["left_out"] = left_out
    return table


def agreement(reference: Any, measured: Any) -> dict[str, float]:
    """Agreement of two measurements of the same patients, after Bland and Altman.

    Source: Lancet 1986, doi 10.1016/S0140-6736(86)90837-8.

    Parameters
    ----------
    reference, measured
        (n,) floats of one unit, a value a patient; pairs with a NaN are left out and counted.

    Returns
    -------
    dict
        `n, left_out, bias` (measured - reference), `bias_low, bias_high, sd` (of the differences), `low,
        high` (limits of agreement, bias -+ 1.96 sd), `mean_absolute, correlation` (Pearson; NaN where one of
        them is constant), `correlation_low, correlation_high`; intervals are bootstrap ones of 95 %.

    Raises
    ------
    ValueError
        Different lengths, or fewer than three pairs.
    """
    first, second = (np.asarray(values, dtype=float) for values in (reference, measured))
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"agreement: {first.shape} and {second.shape}; give one value a patient in each")
    whole = ~(np.isnan(first) | np.isnan(second))
    first, second = first[whole], second[whole]
    if len(first) < 3:
        raise ValueError(f"agreement: {len(first)} pairs; three at least are needed")
    differences = second - first
    bias, sd = float(differences.mean()), float(differences.std(ddof=1))

    def correlation(rows: np.ndarray) -> float:
        chosen = rows.astype(int)
        if np.ptp(first[chosen]) == 0 or np.ptp(second[chosen]) == 0:
            return math.nan
        return float(np.corrcoef(first[chosen], second[chosen])[0, 1])

    places = np.arange(len(first), dtype=float)
    bias_low, bias_high = bootstrap_interval(differences)
    r_low, r_high = bootstrap_interval(places, resamples=2000, statistic=correlation)
    return {
        "n": len(first),
        "left_out": int((~whole).sum()),
        "bias": bias,
        "bias_low": bias_low,
        "bias_high": bias_high,
        "sd": sd,
        "low": bias - 1.96 * sd,
        "high": bias + 1.96 * sd,
        "mean_absolute": float(np.abs(differences).mean()),
        "correlation": correlation(places),
        "correlation_low": r_low,
        "correlation_high": r_high,
    }


def _compare_cell(first: pd.DataFrame, second: pd.DataFrame, resamples: int) -> dict[str, float]:
    """Compare two tables of one row a mask and one column a seed, with the same index and columns."""
    one, two = first.mean(axis=1, skipna=False), second.mean(axis=1, skipna=False)
    by_mask = paired_test(one, two)
    patients = _patients(first.index.to_frame(index=False))
    by_patient = paired_test(*(values.groupby(patients).mean() for values in (one, two)))
    low, high = bootstrap_interval(one - two, patients, resamples=resamples)
    return {
        "masks": by_mask["n"],
        "patients": by_patient["n"],
        "seeds": first.shape[1],
        "mean_a": float(one.mean()),
        "mean_b": float(two.mean()),
        "difference": by_mask["mean_difference"],
        "low": low,
        "high": high,
        "seed_sd": float((first - second).mean().std(ddof=1)),
        "p_mask": by_mask["p"],
        "effect_mask": by_mask["effect_size"],
        "p_patient": by_patient["p"],
        "effect_patient": by_patient["effect_size"],
    }


def _by_mask_and_seed(part: pd.DataFrame, value: str, label: str) -> pd.DataFrame:
    """One row a mask and one column a seed (0 where the scores name no seeds)."""
    part = part if "seed" in part.columns else part.assign(seed=0)
    mask = [name for name in _MASK if name in part.columns]
    twice = part.duplicated([*mask, "seed"])
    if twice.any():
        varying = [name for name in _RUN if name in part.columns and part[name].nunique() > 1]
        hint = f"add to by, or select one of: {', '.join(varying)}" if varying else "drop the repeated rows"
        raise ValueError(f"{label}: {twice.sum()} masks occur twice for one seed; {hint}")
    return part.set_index([*mask, "seed"])[value].unstack("seed")


def _patients(table: pd.DataFrame) -> np.ndarray:
    """A number for each row's patient; patients of two cohorts may share a name."""
    return (
        table.groupby([name for name in _PATIENT if name in table.columns], dropna=False).ngroup().to_numpy()
    )


def _ranks(values: Any) -> Any:
    """Sorting key: strategies in the paper's order, all else as it is."""
    known = {name: f"{place:02d}" for place, name in enumerate(STRATEGY_ORDER)}
    return values.map(lambda value: known.get(value, value)) if values.name == "strategy" else values


def _check_columns(scores: pd.DataFrame, names: Sequence[str]) -> None:
    absent = [name for name in names if name not in scores.columns]
    if absent:
        raise ValueError(f"scores: no column {', '.join(absent)}; give a table of scoring.score_table")
    if scores.empty:
        raise ValueError("scores: the table is empty")
