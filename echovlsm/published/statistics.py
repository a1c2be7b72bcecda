"""The paper's numbers recomputed from its authors' scores, and its comparisons done by patient and corrected.

The paper (section 4) compares the best prompt of one strategy with the best of another, both over all prompts
and models, by a one-sided Wilcoxon signed-rank test over 600 masks. Three things are put beside it here: the
600 masks belong to 50 patients; the best of 16 was chosen after looking; and each cell is one training run.

`compute` gives every table of `data/published/results` but the ledger. Everything is deterministic.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from echovlsm import STRUCTURES
from echovlsm.evaluation import statistics
from echovlsm.published import code as published_code
from echovlsm.published.scores import (
    EXTRA_RUN,
    MASK,
    PAPER_MODELS,
    load_claims,
    load_tables,
    true_areas,
)

HEADLINES: dict[str, dict[str, Any]] = {
    "synthetic vs real": {
        "a": "synthetic",
        "b": "real",
        "alternative": "less",
        "claim": "synthetic-below-real",
    },
    "PT-FT vs real": {
        "a": "synth-PT:real-FT",
        "b": "real",
        "alternative": "greater",
        "claim": "pretraining-headline",
    },
}
"""The paper's two tests (section 4): a - b, and the row of `data/published/claims.csv` with its numbers."""

FACTORS: tuple[str, ...] = ("all", "structure", "view", "phase", "quality")
WORDED = "with words"
"""In place of a prompt: each mask's mean over the prompts with words (P1-P7; synthetic: P1-P6)."""
GAIN = "PT-FT vs real"
_CELL = ["strategy", "model", "prompt"]
_DRAWS = 10_000
_DRAWS_WITHIN = 2_000
_WORDED = [f"P{level}" for level in range(1, 8)]
FLOOR = 1 / (_DRAWS + 1)
"""The smallest p-value that so many draws can give."""


def compute(scores: pd.DataFrame, prompts: str | os.PathLike[str] | None = None) -> dict[str, pd.DataFrame]:
    """Every table that pages show, by name: one for each function of this module, and `words_of_p6`.

    Args:
        scores: `published.load_scores`'s table; with a column `quality` (`published_runs.add_quality`)
            comparisons by quality are among the tables.
        prompts: folder of the authors' prompts, for `published_code.words_of_p6`; None: without that table.
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


def given(test: str) -> tuple[float, float]:
    """The difference (points of Dice) and the p-value that the paper gives for a test of `HEADLINES`."""
    row = load_claims().set_index("id").loc[HEADLINES[test]["claim"]]
    return float(row["value"]), float(row["p"])


def format_p(p: float) -> str:
    """A p-value of `_DRAWS` draws: `show_p`, and one at the floor of the draws as an upper bound."""
    return f"≤ {FLOOR:.0e}" if p <= FLOOR * (1 + 1e-6) else show_p(p)


def show_p(p: float) -> str:
    """A p-value in two digits, below 0.001 with an exponent; empty where there is none."""
    if np.isnan(p):
        return ""
    return f"{p:.1e}" if p < 1e-3 else f"{p:.2g}"


def check_cells(scores: pd.DataFrame) -> pd.DataFrame:
    """The paper's unfrozen table beside the same recomputed.

    Returns:
        DataFrame, one row a cell of Table 2: `strategy, model, prompt, given_mean, given_sd`, `mean`, `sd`
        (over masks, n - 1), `n`, `equal` (`yes`, `no`, `not released`, `N/A in the paper`): equal to two
        decimals.
    """
    given = (
        load_tables().query("encoders == 'unfrozen'").rename(columns=lambda c: c.replace("dice_", "given_"))
    )
    found = scores.groupby(_CELL)["dice"].agg(["mean", "std", "size"])
    found.columns = ["mean", "sd", "n"]
    table = given[[*_CELL, "given_mean", "given_sd"]].join(found, on=_CELL)
    same = [np.isclose(table[name].round(2), table[f"given_{name}"], atol=1e-6) for name in ("mean", "sd")]
    table["equal"] = np.select(
        [table["given_mean"].isna(), table["n"].isna(), same[0] & same[1]],
        ["N/A in the paper", "not released", "yes"],
        "no",
    )
    table["n"] = table["n"].astype("Int64")
    return table.reset_index(drop=True)


def headline_tests(scores: pd.DataFrame) -> pd.DataFrame:
    """The two tests of the text, as the authors' `scripts/get_pvalues.py` (@ 8adcde2552) makes them.

    That is `scipy.stats.wilcoxon` over masks with SciPy's defaults; its `alternative` is an option of the
    script, so each test has two rows.

    Returns:
        DataFrame: `test`, `cell_a`, `cell_b` (the best of each strategy), `masks`, `given_difference`,
        `difference` (mean over masks, points of Dice), `low`, `high` (95 %, whole patients drawn; for these
        two cells, chosen or not), `given_p`, `alternative`, `p`, `same` (to the paper's two significant
        digits).
    """
    from scipy.stats import wilcoxon

    wide = _wide(scores)
    rows = []
    for name, test in HEADLINES.items():
        best = {side: wide[test[side]].mean().idxmax() for side in "ab"}
        a, b = (wide[test[side]][best[side]] for side in "ab")
        difference, p_value = given(name)
        low, high = statistics.bootstrap_interval(a - b, a.index.get_level_values("legacy_test_patient"))
        for alternative in (test["alternative"], "two-sided"):
            p = float(wilcoxon(a, b, alternative=alternative).pvalue)
            rows.append(
                {
                    "test": name,
                    "cell_a": " ".join(best["a"]),
                    "cell_b": " ".join(best["b"]),
                    "masks": len(a),
                    "given_difference": difference,
                    "difference": float((a - b).mean()),
                    "low": low,
                    "high": high,
                    "given_p": p_value,
                    "alternative": alternative,
                    "p": p,
                    "same": f"{p:.1e}" == f"{p_value:.1e}",
                }
            )
    return pd.DataFrame(rows)


def compare_all(scores: pd.DataFrame) -> pd.DataFrame:
    """Both comparisons for every model and prompt: over all masks, and within the levels of each factor.

    Returns:
        DataFrame: `test`, `factor` (one of `FACTORS`), `level`, `model`, `prompt` (or `WORDED`), `masks`,
        `patients`, `mean_a`, `mean_b`, `difference` (percent Dice), `low`, `high` (95 %, whole patients
        drawn), `p_mask`, `p_patient` (Wilcoxon, two-sided; over masks, and over patients' means),
        `effect_patient` (rank-biserial), `p_patient_holm` (over the test's cells within one level of one
        factor), `p_max` (the same family, sign flips of whole patients and the largest |t|: allows for the
        choice of any cell; at least `FLOOR`). The run that the paper does not tabulate stands under factor
        `all` only and in no family: its `p_patient_holm` and `p_max` are NaN.
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
                table = _compare(part, test["a"], test["b"], _DRAWS if factor == "all" else _DRAWS_WITHIN)
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
    first, second = (_by_patient(chosen, strategy)[order].to_numpy() for strategy in (a, b))
    table.loc[family, "p_max"] = _largest_t(first - second)
    names = "model prompt masks patients mean_a mean_b difference low high p_mask p_patient effect_patient"
    return table[[*names.split(), "p_patient_holm", "p_max"]]


def _largest_t(differences: np.ndarray) -> np.ndarray:
    """P-values of the column means of `differences` (patients, cells): sign flips, largest |t|."""
    n = len(differences)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_DRAWS, n))
    squares = (differences**2).sum(axis=0)

    def t(means: np.ndarray) -> np.ndarray:
        return np.abs(means) / np.sqrt((squares - n * means**2) / (n - 1) / n)

    largest = t(signs @ differences / n).max(axis=1)
    return ((largest[:, None] >= t(differences.mean(axis=0))).sum(axis=0) + 1) / (_DRAWS + 1)


def selection_tests(scores: pd.DataFrame) -> pd.DataFrame:
    """The paper's own statistic, best cell of a minus best cell of b, with the choosing inside every draw.

    This describes how much the choosing does; what corrects for it is `compare_all`'s `p_max`. The swap test
    asks whether the two strategies are exchangeable in all cells at once, so that a difference in any cell
    counts, and its p-value may be below the uncorrected one. And a maximum of noisy means lies too high, more
    so where more cells are close, so that the interval of the difference of two maxima is biased.

    Returns:
        DataFrame, one row a test: `cells` to choose from, `best_a`, `best_b`, `difference`; `p_exchangeable`
        (patients swap their two strategies, all cells at once, and the best are chosen again; one-sided);
        `low`, `high` (95 %, patients drawn with replacement, the best chosen again); `unseen` (mean over
        draws: best chosen on the drawn patients, difference taken on those not drawn), `same_a`, `same_b`
        (share of draws in which the paper's best cell was the best).
    """
    rows = []
    for name, test in HEADLINES.items():
        rng = np.random.default_rng(0)
        a, b = (_by_patient(scores, test[side]) for side in "ab")
        both = [cell for cell in a.columns if cell in b.columns and cell[0] in PAPER_MODELS]
        a, b = a[both], b[both]
        first, second = a.to_numpy(), b.to_numpy()
        n, sign = len(first), -1 if test["alternative"] == "less" else 1
        observed = first.mean(axis=0).max() - second.mean(axis=0).max()
        moved = (rng.random((_DRAWS, n)) < 0.5) @ (first - second) / n
        swapped = (first.mean(axis=0) - moved).max(axis=1) - (second.mean(axis=0) + moved).max(axis=1)
        extreme = (sign * swapped >= sign * observed - 1e-12).sum()
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS)
        in_a, in_b = drawn @ first / n, drawn @ second / n
        again = in_a.max(axis=1) - in_b.max(axis=1)
        low, high = np.percentile(again, [2.5, 97.5])
        out = drawn == 0
        out_a, out_b = (out @ values / out.sum(axis=1, keepdims=True) for values in (first, second))
        pick_a, pick_b = in_a.argmax(axis=1), in_b.argmax(axis=1)
        every = np.arange(_DRAWS)
        rows.append(
            {
                "test": name,
                "cells": len(both),
                "best_a": " ".join(a.mean().idxmax()),
                "best_b": " ".join(b.mean().idxmax()),
                "difference": observed,
                "p_exchangeable": (extreme + 1) / (_DRAWS + 1),
                "low": low,
                "high": high,
                "unseen": float((out_a[every, pick_a] - out_b[every, pick_b]).mean()),
                "same_a": float((pick_a == first.mean(axis=0).argmax()).mean()),
                "same_b": float((pick_b == second.mean(axis=0).argmax()).mean()),
            }
        )
    return pd.DataFrame(rows)


def by_group(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Both comparisons within structures, views and phases (qualities where known), prompts with words.

    Returns:
        DataFrame: `test, factor, level, model, difference, low, high, p_patient`, `p_holm` (over all rows of
        the test).
    """
    rows = comparisons[(comparisons["prompt"] == WORDED) & (comparisons["factor"] != "all")]
    rows = rows[["test", "factor", "level", "model", "difference", "low", "high", "p_patient"]]
    adjusted = rows.groupby("test")["p_patient"].transform(lambda p: statistics.holm(p))
    return rows.assign(p_holm=adjusted).reset_index(drop=True)


def pooled_gains(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The gain of pretraining (PT-FT - real) over the prompts with words, estimated five times.

    From scores: both models of Table 2 and the run that is not tabulated. From means only: both models of
    Table 3 (frozen encoders; scores not released).

    Returns:
        DataFrame: `from`, `model`, `cells`, `higher` (cells with a gain), `mean`, `lowest`, `highest` (of the
        cells, points of Dice), `low`, `high` (95 % of the mean, whole patients drawn; NaN for Table 3).
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
    """Unfrozen minus frozen in the paper's tables, points of Dice, one row a cell that both tables have.

    For CLIPSeg neither training touched the encoders (`published_code.encoder_gradients`). Other settings may
    differ: the authors' `plot_configs/encoder-freeze-unfreeze-camus-sdm.json` (@ 8adcde2552) takes the frozen
    rows from `camus_metrics/clip_seg`, the unfrozen ones from `camus_metrics_reduce_lr/clip_seg_bs_128`.

    Returns:
        DataFrame: `strategy, model, prompt, frozen, unfrozen, difference`.
    """
    means = load_tables().set_index([*_CELL, "encoders"])["dice_mean"].unstack("encoders")
    means = means.dropna().reset_index()
    return means.assign(difference=means["unfrozen"] - means["frozen"]).rename_axis(columns=None)


def two_trainings(rows: pd.DataFrame, strategies: Sequence[str]) -> pd.Series:
    """How far two CLIPSeg trainings lie apart whose encoders were not trained (settings may differ).

    A gain is a difference of two trainings, too. Where nothing but the repetition differed, 95 % of such
    differences would lie within about twice their root mean square: `limit`. Everything that is compared with
    the spread is compared with it. Cells of one model on the same masks are not independent, so nothing is
    divided by their number, and the range of `rms` (chi-square) is narrower than it should be.

    Args:
        rows: of `encoder_rows`.
        strategies: those that a comparison has.

    Returns:
        Series: `cells` (CLIPSeg, prompts with words), `mean`, `sd`, `p_mean` (t-test of the mean against
        zero: do the rows lean to one side?), `rms`, `rms_low`, `rms_high` (95 %), `limit` (2 x `rms`); all
        but the first and `p_mean` in points of Dice.
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

    Returns:
        DataFrame: `strategy, model, dice`, `union` (percent, means over masks), `correlation` (over masks).
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
        scores[scores["model"].isin(PAPER_MODELS)].groupby(_CELL)["dice"].mean().groupby("strategy").idxmax()
    )
    for strategy, cell in best.items():
        key = tuple(cell)
        part = scores.set_index(_CELL).sort_index().loc[key]
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


def _wide(scores: pd.DataFrame) -> pd.DataFrame:
    """Dice of the paper's two models, one row a mask, one column a strategy, model and prompt."""
    part = scores[scores["model"].isin(PAPER_MODELS)]
    return part.set_index([*MASK, *_CELL])["dice"].unstack(_CELL).sort_index(axis=1)


def _by_patient(scores: pd.DataFrame, strategy: str) -> pd.DataFrame:
    """Mean Dice, one row a patient, one column a model and prompt."""
    part = scores[scores["strategy"] == strategy]
    name = "patient" if "patient" in part else "legacy_test_patient"
    return part.pivot_table(index=name, columns=["model", "prompt"], values="dice")
