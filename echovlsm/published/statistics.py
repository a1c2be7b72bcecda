"""The paper's numbers recomputed from its authors' scores, by patient and corrected.

Three things are put beside the paper's own tests (`headlines`): the 600 masks belong to 50 patients; the best
of 16 cells was chosen after looking; and each cell is one training run.

Everything is deterministic.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echovlsm import STRUCTURES
from echovlsm.evaluation import statistics
from echovlsm.published.headlines import (
    CELL,
    DRAWS,
    GAIN,
    HEADLINES,
    by_patient,
    headline_tests,
    selection_tests,
)
from echovlsm.published.scores import (
    EXTRA_RUN,
    MASK,
    PAPER_MODELS,
    PROMPT_FILES,
    PublishedError,
    load_tables,
    true_areas,
)

FACTORS: tuple[str, ...] = ("all", "structure", "view", "phase", "quality")
WORDED = "with words"
"""In place of a prompt: each mask's mean over the prompts with words (P1-P7; synthetic: P1-P6)."""
_DRAWS_WITHIN = 2_000
_WORDED = [f"P{level}" for level in range(1, 8)]


def compute(scores: pd.DataFrame, prompts: str | os.PathLike[str] | None = None) -> dict[str, pd.DataFrame]:
    """Every table that pages show but the ledger, by name.

    Parameters
    ----------
    scores
        Of `load_scores`; with a column `quality` comparisons by quality are among the tables.
    prompts
        Folder of the authors' prompts, for `words_of_p6`; None: without that table.
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
    return tables if prompts is None else tables | {"words_of_p6": words_of_p6(prompts)}


def check_cells(scores: pd.DataFrame) -> pd.DataFrame:
    """The paper's unfrozen table beside the same recomputed.

    Returns
    -------
    DataFrame
        One row per cell of Table 2: `strategy, model, prompt, given_mean, given_sd`, `mean`, `sd` (masks,
        n - 1), `n`, `equal` (`yes`, `no`, `not released`, `N/A in the paper`): equal to two decimals.
    """
    given = load_tables().query("encoders == 'unfrozen'")
    given = given.rename(columns=lambda name: name.replace("dice_", "given_"))
    found = scores.groupby(CELL)["dice"].agg(mean="mean", sd="std", n="size")
    table = given[[*CELL, "given_mean", "given_sd"]].join(found, on=CELL)
    same = [np.isclose(table[name].round(2), table[f"given_{name}"], atol=1e-6) for name in ("mean", "sd")]
    states = {"N/A in the paper": table["given_mean"].isna(), "not released": table["n"].isna()}
    states["yes"] = same[0] & same[1]
    table["equal"] = np.select(list(states.values()), list(states), "no")
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
    means = load_tables().query("encoders == 'frozen'")
    means = means.pivot(index=["model", "prompt"], columns="strategy", values="dice_mean")
    frozen = (means[HEADLINES[GAIN]["a"]] - means[HEADLINES[GAIN]["b"]]).rename("difference").reset_index()
    rows = []
    for source, part in (("Table 2, scores", table), ("Table 3, means only", frozen)):
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
    differences would lie within about twice their root mean square: `limit`. Cells of one model on the same
    masks are not independent, so nothing is divided by their number, and the range of `rms` (chi-square) is
    narrower than it should be.

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
        rows lean to one side?), `rms`, `rms_low`, `rms_high` (95 %), `limit` (2 x `rms`); points of Dice.
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
    found = hausdorff_unit(scores)
    means = scores[scores["model"].isin(PAPER_MODELS)].groupby(CELL)["dice"].mean()
    cells = scores.set_index(CELL).sort_index()
    for strategy, cell in means.groupby("strategy").idxmax().items():
        part = cells.loc[tuple(cell)]
        low, high = statistics.bootstrap_interval(part["dice"], part["legacy_test_patient"])
        found |= {
            f"best {strategy}": float(part["dice"].mean()),
            f"best {strategy} low": low,
            f"best {strategy} high": high,
        }
    synthetic = scores.query("strategy == 'synthetic' and prompt != 'P0'")
    worst = synthetic.groupby(["model", "prompt", "label"])["dice"].mean().min()
    found["lowest synthetic dice of a structure"] = float(worst)
    return pd.DataFrame({"name": list(found), "value": [float(value) for value in found.values()]})


def family(comparisons: pd.DataFrame, test: str) -> pd.DataFrame:
    """The paper's own cells of one test: both models, every prompt, no pooled rows, not the extra run."""
    rows = comparisons[(comparisons["test"] == test) & (comparisons["factor"] == "all")]
    return rows[(rows["model"] != EXTRA_RUN) & (rows["prompt"] != WORDED)]


def words_of_p6(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """What P6 says that P5 does not, counted in the authors' own prompts.

    Returns
    -------
    DataFrame
        `cohort` (real, synthetic), `pairs`, `says quality`, `says shape` (share of P6 prompts that name it
        and whose P5 does not), `P5`, `P6` (an example).

    Raises
    ------
    PublishedError
        One of `PROMPT_FILES` is absent from `folder`, or not one of their prompts.
    """
    rows = []
    for cohort, name in PROMPT_FILES.items():
        path = Path(folder) / name
        try:
            entries = json.loads(path.read_text(encoding="utf-8-sig"))
            pairs = [(e["prompts"]["p5"][0], e["prompts"]["p6"][0]) for e in entries]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise PublishedError(
                f"prompts: {path} cannot be read as the authors' prompts ({type(error).__name__}); give the "
                "folder that holds them"
            ) from error
        says = {
            f"says {word}": float(np.mean([text in p6 and text not in p5 for p5, p6 in pairs]))
            for word, text in (("quality", " image quality"), ("shape", " shape"))
        }
        rows.append({"cohort": cohort, "pairs": len(pairs), **says, "P5": pairs[0][0], "P6": pairs[0][1]})
    return pd.DataFrame(rows)


def hausdorff_unit(scores: pd.DataFrame) -> dict[str, Any]:
    """What the column `hausdorff` counts, told from its values.

    The squared distance of two pixels is a whole number. And a true mask's area, its share of the image
    (from `dice_of_all_foreground`) times the number of pixels, must be one too: that tells the grid.

    Returns
    -------
    dict
        `hausdorff_whole_squares` (share of values whose (value / 100) squared is a whole number, within
        rounding), `hausdorff_median_px`, `grid_side`, `grid_deviation` (mean distance of the areas from whole
        numbers on a grid of this side), `grid_deviation_352`, `grid_deviation_416` (on the models' input
        sizes; 0.25 is chance).
    """
    pixels = scores["hausdorff"] / 100
    squares = pixels**2
    off = (squares - squares.round()).abs()
    # four decimals after multiplication by 100, or the seven digits of the authors' float32
    whole = (off <= 2 * pixels * 1e-6 + 1e-9) | (off <= 2.4e-7 * squares)
    share = true_areas(scores)

    def deviation(width: int) -> float:
        areas = share * width**2
        return float((areas - areas.round()).abs().mean())

    return {
        "hausdorff_whole_squares": float(whole.mean()),
        "hausdorff_median_px": float(pixels.median()),
        "grid_side": 512,
        "grid_deviation": deviation(512),
        "grid_deviation_352": deviation(352),
        "grid_deviation_416": deviation(416),
    }
