"""The paper's numbers recomputed from its authors' scores, by patient and corrected.

Three things are put beside the paper's own tests (`headlines`): the 600 masks belong to 50 patients; the best
of 16 cells was chosen after looking; and each cell is one training run.

`compute` gives every table of `data/published/results` but the ledger. Everything is deterministic.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from echovlsm import STRUCTURES
from echovlsm.evaluation import statistics
from echovlsm.published import code as published_code
from echovlsm.published.headlines import (
    CELL,
    DRAWS,
    GAIN,
    HEADLINES,
    by_patient,
    headline_tests,
    selection_tests,
)
from echovlsm.published.headlines import given as given  # for the chapter, beside the tests
from echovlsm.published.scores import EXTRA_RUN, MASK, PAPER_MODELS, load_tables, true_areas

FACTORS: tuple[str, ...] = ("all", "structure", "view", "phase", "quality")
WORDED = "with words"
"""In place of a prompt: each mask's mean over the prompts with words (P1-P7; synthetic: P1-P6)."""
_DRAWS_WITHIN = 2_000
_WORDED = [f"P{level}" for level in range(1, 8)]
FLOOR = 1 / (DRAWS + 1)
"""The smallest p-value that so many draws can give."""


def compute(scores: pd.DataFrame, prompts: str | os.PathLike[str] | None = None) -> dict[str, pd.DataFrame]:
    """Every table that pages show, by name: one for each function of this module, and `words_of_p6`.

    Parameters
    ----------
    scores
        `scores.load_scores`'s table; with a column `quality` (`runs.add_quality`) comparisons by
        quality are among the tables.
    prompts
        Folder of the authors' prompts, for `code.words_of_p6`; None: without that table.
    """
    comparisons = compare_all(scores)
    tables = {
        "cells": check_cells(scores),
        "headline": headline_tests(scores),
        "comparisons": comparisons,
        "selection": selection_tests(scores),
        "gains": pooled_gains(comparisons),
        "spread": encoder_rows(),
        "empty_prompt": empty_prompt(scores),
        "facts": facts(scores),
    }
    return tables if prompts is None else tables | {"words_of_p6": published_code.words_of_p6(prompts)}


def format_p(p: float) -> str:
    """A p-value of `DRAWS` draws: `show_p`, and one at the floor of the draws as an upper bound."""
    return f"≤ {FLOOR:.0e}" if p <= FLOOR * (1 + 1e-6) else show_p(p)


def show_p(p: float) -> str:
    """A p-value in two digits, below 0.001 with an exponent; empty where there is none."""
    if np.isnan(p):
        return ""
    return f"{p:.1e}" if p < 1e-3 else f"{p:.2g}"


def check_cells(scores: pd.DataFrame) -> pd.DataFrame:
    """The paper's unfrozen table beside the same recomputed.

    Returns
    -------
    DataFrame
        One row per cell of Table 2: `strategy, model, prompt, given_mean, given_sd`, `mean`, `sd` (masks,
        n - 1), `n`, `equal` (`yes`, `no`, `not released`, `N/A in the paper`): equal to two decimals.
    """
    given = (
        load_tables().query("encoders == 'unfrozen'").rename(columns=lambda c: c.replace("dice_", "given_"))
    )
    found = scores.groupby(CELL)["dice"].agg(["mean", "std", "size"])
    found.columns = ["mean", "sd", "n"]
    table = given[[*CELL, "given_mean", "given_sd"]].join(found, on=CELL)
    same = [np.isclose(table[name].round(2), table[f"given_{name}"], atol=1e-6) for name in ("mean", "sd")]
    table["equal"] = np.select(
        [table["given_mean"].isna(), table["n"].isna(), same[0] & same[1]],
        ["N/A in the paper", "not released", "yes"],
        "no",
    )
    table["n"] = table["n"].astype("Int64")
    return table.reset_index(drop=True)


def compare_all(scores: pd.DataFrame) -> pd.DataFrame:
    """Both comparisons for every model and prompt: over all masks, and within the levels of each factor.

    Returns
    -------
    DataFrame
        `test`, `factor` (one of `FACTORS`), `level`, `model`, `prompt` (or `WORDED`), `masks`, `patients`,
        `mean_a`, `mean_b`, `difference` (percent Dice), `low`, `high` (95 %, whole patients drawn), `p_mask`,
        `p_patient` (Wilcoxon, two-sided; over masks, and over patients' means), `effect_patient`
        (rank-biserial), `p_patient_holm` (over the test's cells within one level of one factor), `p_max` (the
        same family, sign flips of whole patients and the largest |t|: allows for the choice of any cell; at
        least `FLOOR`). The run that the paper does not tabulate stands under factor `all` only and in no
        family: its `p_patient_holm` and `p_max` are NaN.
    """
    masks = scores.rename(columns={"legacy_test_patient": "patient"})
    masks["structure"] = masks["label"].map(STRUCTURES)
    tables = []
    for factor in FACTORS:
        if factor != "all" and factor not in masks:
            continue
        tabulated = masks[masks["model"].isin(PAPER_MODELS)]
        groups = [("all", masks)] if factor == "all" else tabulated.groupby(factor)
        for level, part in groups:
            for name, test in HEADLINES.items():
                table = _compare(part, test["a"], test["b"], DRAWS if factor == "all" else _DRAWS_WITHIN)
                tables.append(table.assign(test=name, factor=factor, level=level))
    table = pd.concat(tables, ignore_index=True)
    first = ["test", "factor", "level", "model", "prompt"]
    return table[[*first, *(name for name in table if name not in first)]]


def _compare(part: pd.DataFrame, a: str, b: str, draws: int) -> pd.DataFrame:
    chosen = part[part["strategy"].isin([a, b])]
    cells = statistics.compare(chosen, a, b, resamples=draws)
    worded = chosen[chosen["prompt"].isin(_WORDED)]
    # a mask's mean over prompts: `compare` takes the mean over seeds
    pooled = statistics.compare(worded.assign(seed=worded["prompt"]), a, b, ["model"], resamples=draws)
    pooled["prompt"] = WORDED
    table = pd.concat([cells, pooled], ignore_index=True)
    family = table["model"].isin(PAPER_MODELS) & (table["prompt"] != WORDED)
    table["p_patient_holm"] = np.nan
    table.loc[family, "p_patient_holm"] = statistics.holm(table.loc[family, "p_patient"])
    table["p_max"] = np.nan
    order = list(zip(table.loc[family, "model"], table.loc[family, "prompt"], strict=True))
    first, second = (by_patient(chosen, strategy)[order].to_numpy() for strategy in (a, b))
    table.loc[family, "p_max"] = _largest_t(first - second)
    names = "model prompt masks patients mean_a mean_b difference low high p_mask p_patient effect_patient"
    return table[[*names.split(), "p_patient_holm", "p_max"]]


def _largest_t(differences: np.ndarray) -> np.ndarray:
    """P-values of the column means of `differences` (patients, cells): sign flips, largest |t|."""
    n = len(differences)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(DRAWS, n))
    squares = (differences**2).sum(axis=0)

    def t(means: np.ndarray) -> np.ndarray:
        return np.abs(means) / np.sqrt((squares - n * means**2) / (n - 1) / n)

    largest = t(signs @ differences / n).max(axis=1)
    return ((largest[:, None] >= t(differences.mean(axis=0))).sum(axis=0) + 1) / (DRAWS + 1)


def by_group(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Both comparisons within structures, views and phases (qualities where known), prompts with words.

    Returns
    -------
    DataFrame
        `test, factor, level, model, difference, low, high, p_patient`, `p_holm` (over all rows of the test).
    """
    rows = comparisons[(comparisons["prompt"] == WORDED) & (comparisons["factor"] != "all")]
    rows = rows[["test", "factor", "level", "model", "difference", "low", "high", "p_patient"]]
    adjusted = rows.groupby("test")["p_patient"].transform(lambda p: statistics.holm(p))
    return rows.assign(p_holm=adjusted).reset_index(drop=True)


def pooled_gains(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The gain of pretraining (PT-FT - real) over the prompts with words, estimated five times.

    From scores: both models of Table 2 and the run that is not tabulated. From means only: both models of
    Table 3 (frozen encoders; scores not released).

    Returns
    -------
    DataFrame
        `from`, `model`, `cells`, `higher` (cells with a gain), `mean`, `lowest`, `highest` (of the cells,
        points of Dice), `low`, `high` (95 % of the mean, whole patients drawn; NaN for Table 3).
    """
    table = comparisons[(comparisons["test"] == GAIN) & (comparisons["factor"] == "all")]
    means = (
        load_tables()
        .query("encoders == 'frozen'")
        .pivot(index=["model", "prompt"], columns="strategy", values="dice_mean")
    )
    frozen = (means[HEADLINES[GAIN]["a"]] - means[HEADLINES[GAIN]["b"]]).rename("difference").reset_index()
    rows = []
    sources = (("Table 2, scores", table), ("Table 3, means only", frozen))
    for source, part in sources:
        for model, cells in part.groupby("model"):
            gains = cells.loc[cells["prompt"].isin(_WORDED), "difference"]
            pooled = cells[cells["prompt"] == WORDED]
            rows.append(
                {
                    "from": "scores, in no table" if model == EXTRA_RUN else source,
                    "model": model,
                    "cells": len(gains),
                    "higher": int((gains > 0).sum()),
                    "mean": float(gains.mean()),
                    "lowest": float(gains.min()),
                    "highest": float(gains.max()),
                    "low": float(pooled["low"].iloc[0]) if len(pooled) else np.nan,
                    "high": float(pooled["high"].iloc[0]) if len(pooled) else np.nan,
                }
            )
    return pd.DataFrame(rows)


def encoder_rows() -> pd.DataFrame:
    """Unfrozen minus frozen in the paper's tables, points of Dice, one row per cell that both tables have.

    For CLIPSeg neither training touched the encoders (`code.encoder_gradients`). Other settings may
    differ: the authors' `plot_configs/encoder-freeze-unfreeze-camus-sdm.json` (@ 8adcde2552) takes the frozen
    rows from `camus_metrics/clip_seg`, the unfrozen ones from `camus_metrics_reduce_lr/clip_seg_bs_128`.

    Returns
    -------
    DataFrame
        `strategy, model, prompt, frozen, unfrozen, difference`.
    """
    means = load_tables().set_index([*CELL, "encoders"])["dice_mean"].unstack("encoders")
    means = means.dropna().reset_index()
    return means.assign(difference=means["unfrozen"] - means["frozen"]).rename_axis(columns=None)


def two_trainings(rows: pd.DataFrame, strategies: Sequence[str]) -> pd.Series:
    """How far two CLIPSeg trainings lie apart whose encoders were not trained (settings may differ).

    A gain is a difference of two trainings, too. Where nothing but the repetition differed, 95 % of such
    differences would lie within about twice their root mean square: `limit`. Everything that is compared with
    the spread is compared with it. Cells of one model on the same masks are not independent, so nothing is
    divided by their number, and the range of `rms` (chi-square) is narrower than it should be.

    Parameters
    ----------
    rows
        Of `encoder_rows`.
    strategies
        Those that a comparison has.

    Returns
    -------
    Series
        `cells` (CLIPSeg, prompts with words), `mean`, `sd`, `p_mean` (t-test of the mean against zero: do the
        rows lean to one side?), `rms`, `rms_low`, `rms_high` (95 %), `limit` (2 x `rms`); all but the first
        and `p_mean` in points of Dice.
    """
    from scipy.stats import chi2, ttest_1samp

    same = rows[(rows["model"] == "CLIPSeg") & (rows["prompt"] != "P0") & rows["strategy"].isin(strategies)]
    values = same["difference"].to_numpy()
    squares = float((values**2).sum())
    return pd.Series(
        {
            "cells": len(values),
            "mean": values.mean(),
            "sd": values.std(ddof=1),
            "p_mean": float(ttest_1samp(values, 0).pvalue),
            "rms": (squares / len(values)) ** 0.5,
            "rms_low": (squares / chi2.ppf(0.975, len(values))) ** 0.5,
            "rms_high": (squares / chi2.ppf(0.025, len(values))) ** 0.5,
            "limit": 2 * (squares / len(values)) ** 0.5,
        }
    )


def limit(rows: pd.DataFrame, test: str) -> float:
    """`two_trainings`'s `limit` for the two strategies of a test of `HEADLINES`, points of Dice."""
    return float(two_trainings(rows, [HEADLINES[test]["a"], HEADLINES[test]["b"]])["limit"])


def empty_prompt(scores: pd.DataFrame) -> pd.DataFrame:
    """Dice of P0 beside what the exact union of the three structures would score.

    The caption of Table 3 says that with the empty prompt CLIPSeg predicts the union. The union of the true
    masks has the Dice 2 s / (s + S) with a structure of area s, where S is the sum of the three areas.

    Returns
    -------
    DataFrame
        `strategy, model, dice`, `union` (percent, means over masks), `correlation` (over masks).
    """
    area = true_areas(scores)
    total = area.groupby(MASK[:-1]).transform("sum")
    union = 100 * 2 * area / (area + total)
    rows = []
    for (strategy, model), part in scores.query("prompt == 'P0'").groupby(["strategy", "model"]):
        dice = part.set_index(MASK)["dice"]
        expected = union.reindex(dice.index)
        rows.append(
            {
                "strategy": strategy,
                "model": model,
                "dice": float(dice.mean()),
                "union": float(expected.mean()),
                "correlation": float(np.corrcoef(dice, expected)[0, 1]),
            }
        )
    return pd.DataFrame(rows)


def facts(scores: pd.DataFrame) -> pd.DataFrame:
    """Single numbers that pages and the ledger use: `name, value`."""
    found = published_code.hausdorff_unit(scores)
    best = (
        scores[scores["model"].isin(PAPER_MODELS)].groupby(CELL)["dice"].mean().groupby("strategy").idxmax()
    )
    for strategy, cell in best.items():
        key = tuple(cell)
        part = scores.set_index(CELL).sort_index().loc[key]
        low, high = statistics.bootstrap_interval(part["dice"], part["legacy_test_patient"])
        found |= {
            f"best {strategy}": float(part["dice"].mean()),
            f"best {strategy} low": low,
            f"best {strategy} high": high,
        }
    worst = scores.query("strategy == 'synthetic' and prompt != 'P0'").groupby(["model", "prompt", "label"])[
        "dice"
    ]
    found["lowest synthetic dice of a structure"] = float(worst.mean().min())
    return pd.DataFrame({"name": list(found), "value": [float(value) for value in found.values()]})


def family(comparisons: pd.DataFrame, test: str, factor: str = "all") -> pd.DataFrame:
    """The paper's own cells of one test: both models, every prompt, no pooled rows, not the extra run."""
    rows = comparisons[(comparisons["test"] == test) & (comparisons["factor"] == factor)]
    return rows[(rows["model"] != EXTRA_RUN) & (rows["prompt"] != WORDED)]
