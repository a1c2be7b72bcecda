"""The paper's two tests (section 4): made again as its authors made them, and with the choosing counted in.

They compare the best prompt of one strategy with the best of another, both over all prompts and models, by a
one-sided Wilcoxon signed-rank test over 600 masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from echovlsm.evaluation import bootstrap_interval
from echovlsm.published.scores import MASK, PAPER_MODELS, load_claims

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

GAIN = "PT-FT vs real"
CELL = ["strategy", "model", "prompt"]
DRAWS = 10_000
FLOOR = 1 / (DRAWS + 1)
"""The smallest p-value that so many draws can give."""


def given(test: str) -> tuple[float, float]:
    """The difference (points of Dice) and the p-value that the paper gives for a test of `HEADLINES`."""
    row = load_claims().set_index("id").loc[HEADLINES[test]["claim"]]
    return float(row["value"]), float(row["p"])


def headline_tests(scores: pd.DataFrame) -> pd.DataFrame:
    """The two tests of the text, as the authors' `scripts/get_pvalues.py` (@ 8adcde2552) makes them.

    That is `scipy.stats.wilcoxon` over masks with SciPy's defaults; its `alternative` is an option of the
    script, so each test has two rows.

    Returns
    -------
    DataFrame
        `test`, `cell_a`, `cell_b` (the best of each strategy), `masks`, `given_difference`, `difference`
        (mean over masks, points of Dice), `low`, `high` (95 %, whole patients drawn; for these two cells,
        chosen or not), `given_p`, `alternative`, `p`, `same` (to the paper's two significant digits).
    """
    from scipy.stats import wilcoxon

    wide = _wide(scores)
    rows = []
    for name, test in HEADLINES.items():
        best = {side: wide[test[side]].mean().idxmax() for side in "ab"}
        a, b = (wide[test[side]][best[side]] for side in "ab")
        difference, p_value = given(name)
        low, high = bootstrap_interval(a - b, a.index.get_level_values("legacy_test_patient"))
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


def selection_tests(scores: pd.DataFrame) -> pd.DataFrame:
    """The paper's own statistic, best cell of a minus best cell of b, with the choosing inside every draw.

    This describes how much the choosing does; what corrects for it is `compare_all`'s `p_max`. The swap test
    asks whether the two strategies are exchangeable in all cells at once, so that a difference in any cell
    counts, and its p-value may be below the uncorrected one. And a maximum of noisy means lies too high, more
    so where more cells are close, so that the interval of the difference of two maxima is biased.

    Returns
    -------
    DataFrame
        One row per test: `cells` to choose from, `best_a`, `best_b`, `difference`; `p_exchangeable` (patients
        swap their two strategies, all cells at once, and the best are chosen again; one-sided); `low`, `high`
        (95 %, patients drawn with replacement, the best chosen again); `unseen` (mean over draws: best chosen
        on the drawn patients, difference taken on those not drawn), `same_a`, `same_b` (share of draws in
        which the paper's best cell was the best).
    """
    rows = []
    for name, test in HEADLINES.items():
        rng = np.random.default_rng(0)
        a, b = (by_patient(scores, test[side]) for side in "ab")
        both = [cell for cell in a.columns if cell in b.columns and cell[0] in PAPER_MODELS]
        a, b = a[both], b[both]
        first, second = a.to_numpy(), b.to_numpy()
        n, sign = len(first), -1 if test["alternative"] == "less" else 1
        observed = first.mean(axis=0).max() - second.mean(axis=0).max()
        moved = (rng.random((DRAWS, n)) < 0.5) @ (first - second) / n
        swapped = (first.mean(axis=0) - moved).max(axis=1) - (second.mean(axis=0) + moved).max(axis=1)
        extreme = (sign * swapped >= sign * observed - 1e-12).sum()
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)
        in_a, in_b = drawn @ first / n, drawn @ second / n
        again = in_a.max(axis=1) - in_b.max(axis=1)
        low, high = np.percentile(again, [2.5, 97.5])
        out = drawn == 0
        out_a, out_b = (out @ values / out.sum(axis=1, keepdims=True) for values in (first, second))
        pick_a, pick_b = in_a.argmax(axis=1), in_b.argmax(axis=1)
        every = np.arange(DRAWS)
        rows.append(
            {
                "test": name,
                "cells": len(both),
                "best_a": " ".join(a.mean().idxmax()),
                "best_b": " ".join(b.mean().idxmax()),
                "difference": observed,
                "p_exchangeable": (extreme + 1) / (DRAWS + 1),
                "low": low,
                "high": high,
                "unseen": float((out_a[every, pick_a] - out_b[every, pick_b]).mean()),
                "same_a": float((pick_a == first.mean(axis=0).argmax()).mean()),
                "same_b": float((pick_b == second.mean(axis=0).argmax()).mean()),
            }
        )
    return pd.DataFrame(rows)


def _wide(scores: pd.DataFrame) -> pd.DataFrame:
    """Dice of the paper's two models, one row per mask, one column per strategy, model and prompt."""
    part = scores[scores["model"].isin(PAPER_MODELS)]
    return part.set_index([*MASK, *CELL])["dice"].unstack(CELL).sort_index(axis=1)


def by_patient(scores: pd.DataFrame, strategy: str) -> pd.DataFrame:
    """Mean Dice, one row per patient, one column per model and prompt."""
    part = scores[scores["strategy"] == strategy]
    name = "patient" if "patient" in part else "legacy_test_patient"
    return part.pivot_table(index=name, columns=["model", "prompt"], values="dice")


def format_p(p: float) -> str:
    """A p-value of `DRAWS` draws: `show_p`, and one at the floor of the draws as an upper bound."""
    return f"≤ {FLOOR:.0e}" if p <= FLOOR * (1 + 1e-6) else show_p(p)


def show_p(p: float) -> str:
    """A p-value in two digits, below 0.001 with an exponent; empty where there is none."""
    if np.isnan(p):
        return ""
    return f"{p:.1e}" if p < 1e-3 else f"{p:.2g}"
