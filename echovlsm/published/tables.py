"""Tables and sentences of notebook 07, worded for readers; the numbers are `statistics`'s."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from echovlsm.published.scores import load_tables
from echovlsm.published.statistics import GAIN, HEADLINES, family, limit

HEADINGS: dict[str, str] = {
    "mean_b": "real",
    "given_p": "p in the paper",
    "same": "agrees",
    "p_mask": "p, masks",
    "p_patient": "p, patients",
    "p_patient_holm": "Holm",
    "p_holm": "Holm",
    "p_max": "max",
    "low": "95 % low",
    "high": "95 % high",
    "from": "source",
    "higher": "cells that gain",
    "best_a": "best (first)",
    "best_b": "best (second)",
    "unseen": "on patients not drawn",
    "same_a": "again, a",
    "same_b": "again, b",
    "requires_grad": "ask for a gradient",
    "with_gradient": "get one",
    "moved": "changed by a step",
    "p_mean": "p of the mean",
    "rms_low": "rms, 95 % low",
    "rms_high": "rms, 95 % high",
    "cross_entropy": "cross entropy",
    "gradient": "its largest gradient",
    "union": "exact union",
    "1": "label 1",
    "2": "label 2",
    "3": "label 3",
}
"""Column of a recorded table to its heading on the page."""

_WORDS = {True: "yes", False: "no", "synth-PT:real-FT": "PT-FT"}


def readable(table: pd.DataFrame, headings: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table with headings for readers, yes and no for truth values, and PT-FT for the released name.

    Parameters
    ----------
    table
        Of `statistics` or `code`.
    headings
        Besides or in place of `HEADINGS`.
    """
    shown = table.copy()
    for name in shown:
        if not pd.api.types.is_numeric_dtype(shown[name]) or pd.api.types.is_bool_dtype(shown[name]):
            shown[name] = shown[name].map(lambda value: _WORDS.get(value, value))
    return shown.rename(columns={**HEADINGS, **(headings or {})})


def headline_text(head: pd.DataFrame) -> str:
    """The two tests of the paper's text in words (Markdown): cells, p-value, difference, the paper's own.

    Where the paper's text and the means of its Table 2 give different differences, both are told.

    Parameters
    ----------
    head
        Of `statistics.headline_tests`.
    """
    means = load_tables().query("encoders == 'unfrozen'").groupby("strategy")["dice_mean"].max()
    lines = []
    hits = head[head["same"]].groupby("test", sort=False).first()
    for test, row in hits.iterrows():
        a, b = (HEADLINES[test][side] for side in "ab")
        first, second = (
            f"{cell.replace(' ', ' with ')} ({_WORDS.get(strategy, strategy)})"
            for cell, strategy in ((row["cell_a"], a), (row["cell_b"], b))
        )
        given, table = f"{row['given_difference']:+.2f}", f"{means[a] - means[b]:+.2f}"
        says = f"the paper says {given}"
        if given != table:
            parts = f"{means[a]:.2f} − {means[b]:.2f} = {table}"
            says = f"the paper's text says {given}, its own Table 2 gives {parts}"
        sided = "two-sided" if row["alternative"] == "two-sided" else "one-sided"
        what = test[0].upper() + test[1:]
        lines.append(
            f"- {what}: {first} against {second}, over {row['masks']} masks. The {sided} test "
            f"(`{row['alternative']}`) gives p = {row['p']:.1e}, as in the paper. They differ by "
            f"{row['difference']:+.2f} points of Dice (95 % interval over patients {row['low']:+.2f} to "
            f"{row['high']:+.2f}, which does not allow for the choice); {says}."
        )
    wide = head.assign(side=np.where(head["alternative"] == "two-sided", "two", "one"))
    wide = wide.pivot(index="test", columns="side", values="p")
    if len(hits) == head["test"].nunique() == 2 and "two-sided" not in set(hits["alternative"]):
        end = "Both p-values come out again, but only from one-sided tests"
        if np.allclose(wide["two"], 2 * wide["one"], rtol=0.01, atol=0):
            end += "; two-sided ones are twice as large"
    else:
        end = f"{len(hits)} of {head['test'].nunique()} p-values come out again"
    return "\n".join(lines) + f"\n\n{end}."


def survival(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The paper's two comparisons against each objection, one column a test of `HEADLINES`.

    The first three rows compare the model and prompt that is best in the first strategy with itself in the
    other; the next two use the paper's difference, whose cells may have different prompts; the last three
    count cells of `family`. The first four rows are truth values.

    Parameters
    ----------
    results
        Tables of `statistics.compute`.
    """
    head = results["headline"].groupby("test", sort=False).first()
    same = f"same prompt ({' / '.join(head['cell_a'])})"
    columns = {}
    for test, row in head.iterrows():
        cells = family(results["comparisons"], test)
        own = cells[cells["model"] + " " + cells["prompt"] == row["cell_a"]].iloc[0]
        along = np.sign(cells["difference"]) == np.sign(row["difference"])
        sure = cells["p_patient_holm"] < 0.05
        ratio = abs(row["difference"]) / limit(results["spread"], test)
        columns[test] = {
            f"{same}, over masks": bool(own["p_mask"] < 0.05),
            f"{same}, by patient, Holm": bool(own["p_patient_holm"] < 0.05),
            f"{same}, by patient, allowing for the choice (max)": bool(own["p_max"] < 0.05),
            "the paper's difference exceeds the limit of two trainings": bool(ratio > 1),
            "as a share of that limit": f"{ratio:.2f}",
            "cells in its direction": f"{along.sum()} of {len(cells)}",
            "of these significant": f"{(along & sure).sum()}",
            "significantly in the other direction": f"{(~along & sure).sum()}",
        }
    return pd.DataFrame(columns)


def empty_prompt_lost(comparisons: pd.DataFrame) -> str:
    """Which models score significantly lower after pretraining with the empty prompt P0, in words."""
    rows = family(comparisons, GAIN).query("prompt == 'P0' and difference < 0 and p_patient_holm < 0.05")
    told = " and ".join(f"{row.model} ({row.difference:+.2f})" for row in rows.itertuples())
    return f"{told} significantly lower" if told else "no model significantly lower"
