"""Tables and sentences of notebook 07, worded for readers; the numbers are `statistics`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from echovlsm.published.runs import Beside
from echovlsm.published.scores import load_tables
from echovlsm.published.statistics import (
    GAIN,
    HEADLINES,
    family,
    format_p,
    limit,
    show_p,
    two_trainings,
)

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

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


def source_table(source: Mapping[str, Any], origin: str) -> pd.DataFrame:
    """What the numbers rest on: the fields of `source_of`, readably, and where the tables are from."""
    packages = ", ".join(f"{name} {version}" for name, version in source["packages"].items())
    told = {**source, "packages": packages, "these tables": origin}
    told["commit"] = told["commit"][:12]
    told["SHA-256 of the scores"] = f"{told.pop('scores_sha256')[:16]}…"
    return pd.DataFrame({"": told})


def without_quality(results: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables without comparisons by image quality, as they are on record."""
    every = results["comparisons"]
    return {**results, "comparisons": every[every["factor"] != "quality"]}


def side_by_side(cells: pd.DataFrame) -> pd.DataFrame:
    """The paper's Table 2 in its own shape, in HTML: the paper's mean above, the recomputed one below."""
    signs = {"yes": "=", "no": "≠", "not released": "–", "N/A in the paper": ""}

    def text(row: pd.Series) -> str:
        if pd.isna(row["given_mean"]):
            return "N/A"
        again = "" if pd.isna(row["mean"]) else f" {row['mean']:.2f}"
        return f"{row['given_mean']:.2f}<br>{signs[row['equal']]}{again}"

    shown = readable(cells.assign(text=cells.apply(text, axis=1)))
    shape = {"index": ["strategy", "model"], "columns": "prompt", "values": "text"}
    return shown.pivot_table(**shape, aggfunc="first", sort=False)


def comparison(comparisons: pd.DataFrame, test: str, other: str) -> Styler:
    """One test's comparison, one row per model and prompt; `other` is the first strategy's heading."""
    columns = ["mean_b", "mean_a", "difference", "low", "high", "p_mask", "p_patient", "p_patient_holm"]
    rows = family(comparisons, test).set_index(["model", "prompt"])
    table = readable(rows[[*columns, "p_max"]], {"mean_a": other})
    formats = dict.fromkeys(table.columns[:5], "{:.2f}") | dict.fromkeys(table.columns[5:8], show_p)
    return table.style.format({**formats, "max": format_p})


def trainings_apart(spread: pd.DataFrame) -> pd.DataFrame:
    """How far two CLIPSeg trainings lie apart (`two_trainings`): one row per strategy and per test."""
    sets = {"real": ["real"], "synthetic": ["synthetic"], "PT-FT": ["synth-PT:real-FT"]}
    sets |= {f"both of {name}": [test["a"], test["b"]] for name, test in HEADLINES.items()}
    return pd.DataFrame({name: two_trainings(spread, strategies) for name, strategies in sets.items()}).T


def apart_text(apart: pd.DataFrame, claimed: float, gain: float) -> str:
    """The gain beside the difference of two trainings, in words; `apart` is that of `trainings_apart`."""
    leaning = apart[~apart.index.str.startswith("both")].query("p_mean < 0.05")
    leans = "".join(
        f" The rows of {name} lean to one side (mean {row['mean']:+.2f}, t-test over "
        f"cells p = {row['p_mean']:.3f}), as another setting would make them."
        for name, row in leaning.iterrows()
    )
    row = apart.loc[f"both of {GAIN}"]
    return (
        "Over the two strategies that the gain compares, the two trainings differ by "
        f"{row['rms']:.2f} points (root mean square; {row['rms_low']:.2f} to {row['rms_high']:.2f}). "
        f"Twice that is the limit, {row['limit']:.2f}. The gain is {claimed:+.2f} as given and {gain:+.2f} "
        f"recomputed: {gain / row['limit']:.2f} of the limit.{leans}"
    )


def gains_text(gains: pd.DataFrame, between_trainings: float) -> str:
    """The estimates of the mean gain in words, and what they are not compared with."""
    lowest, highest = gains["mean"].min(), gains["mean"].max()
    clipseg = gains[gains["model"].str.startswith("CLIPSeg")].set_index("from")["mean"]
    sources = ("Table 2, scores", "Table 3, means only", "scores, in no table")
    one, other, extra = (f"{clipseg[name]:+.2f}" for name in sources)
    return (
        f"The mean gain is above zero in {(gains['mean'] > 0).sum()} of {len(gains)} estimates "
        f"({lowest:+.2f} to {highest:+.2f}), and {gains['higher'].sum()} of {gains['cells'].sum()} cells "
        "gain. All share the 600 masks, so they are not independent. The limit of two trainings, "
        f"{between_trainings:.2f}, is for one cell and is not applied to means. What a mean over seven cells "
        f"can shift by is seen in CLIPSeg, whose encoders were trained in neither table: {one} in Table 2 "
        f"and {other} in Table 3 ({extra} in the untabulated run)."
    )


def grid_text(facts: Mapping[str, float]) -> str:
    """On which grid the masks were scored, in words."""
    text = (
        "{hausdorff_whole_squares:.1%} of the values, divided by 100, are roots of whole numbers; the median "
        "is {hausdorff_median_px:.0f} pixels. On a grid of side {grid_side:.0f} the true masks' areas lie "
        "{grid_deviation:.3f} from whole numbers, on average; on the models' input sizes "
        "{grid_deviation_352:.2f} and {grid_deviation_416:.2f}, where chance gives 0.25. {so}"
    )
    at_512 = facts["grid_deviation"] < 0.05 < facts["grid_deviation_352"]
    so = "So they were scored at 512 × 512, the size that the paper states." if at_512 else ""
    return text.format(**facts, so=so)


def empty_prompt_text(rows: pd.DataFrame) -> str:
    """How near the released runs with the empty prompt come to the exact union, in words."""
    span = rows.groupby("model")[["dice", "correlation"]].agg(["min", "max"])
    text = "{0} scores {1:.1f} to {2:.1f} (correlation with the union's Dice {3:.2f} to {4:.2f})"
    told = "; ".join(text.format(name, *row) for name, *row in span.itertuples())
    return f"The exact union would score {rows['union'].iloc[0]:.1f}. {told}."


def beside_theirs(compared: Sequence[Beside]) -> Styler:
    """Our runs beside the authors' of `runs.beside_theirs`: one row per run and structure."""
    rows = {(one.name, one.strategy, one.theirs): one.table.set_index("structure") for one in compared}
    table = readable(pd.concat(rows, names=["run", "our run", "their run"]), {"higher": "ours higher"})
    digits = dict.fromkeys(["ours", "theirs", "difference", "95 % low", "95 % high"], "{:.2f}")
    digits |= {"ours higher": "{:.0%}"} | dict.fromkeys(["p, patients", "Holm"], show_p)
    return table.style.format(digits, na_rep="")


_COLOURS = {
    "holds": "#009E73",
    "holds weakly": "#E69F00",
    "mixed": "#CC79A7",
    "does not hold": "#D55E00",
    "premise false": "#D55E00",
}
_WIDTHS = {"claim": 18, "place": 11, "recomputed": 18, "reason": 22}  # percent


def ledger_table(ledger: pd.DataFrame) -> Styler:
    """The ledger (`claims.with_our_runs`) as the page shows it: claims link to their sections.

    A number of ours stands beside the one recomputed; where there is none nothing is said.
    """
    recomputed = ledger["recomputed"].fillna("")
    for name in (name for name in ledger if name.startswith("ours")):
        there = ledger[name] != "NA"
        recomputed[there] += f"; {name.replace(' ', ', ')} scale: " + ledger.loc[there, name]
    low, high = (ledger[name].map("{:.2f}".format) for name in ("low", "high"))
    link = '<a href="{where}">{claim}</a>'
    where = [section if "#" in section else f"#{section}" for section in ledger["section"]]
    shown = ledger.assign(
        recomputed=recomputed.str.removeprefix("; "),
        interval=(low + " to " + high).where(ledger["low"].notna(), ""),
        claim=[link.format(where=to, claim=claim) for to, claim in zip(where, ledger["claim"], strict=True)],
    )
    view = ["claim", "place", "given", "recomputed", "interval", "verdict", "reason"]
    # a p stays with its number
    shown = shown[view].fillna("").replace(r"\bp (?=[≤\d])", "p\u00a0", regex=True)
    rest = (100 - sum(_WIDTHS.values())) / (len(view) - len(_WIDTHS))
    widths = [
        {"selector": f"th.col{n}", "props": [("width", f"{_WIDTHS.get(name, rest):.1f}%")]}
        for n, name in enumerate(view)
    ]
    # on a phone one cell stands below the other (book/_static/echovlsm.css)
    fits = 'data-ledger="" style="table-layout: fixed; width: 100%; font-size: 0.75em"'
    styled = shown.style.set_table_attributes(fits).set_table_styles(widths)
    return styled.map(
        lambda word: f"border-left: 6px solid {_COLOURS.get(word, '#999999')}", subset=["verdict"]
    )


def findings(
    results: Mapping[str, pd.DataFrame], survive: pd.DataFrame, agree: tuple[int, int, int, int]
) -> str:
    """What the page saw (Markdown).

    Parameters
    ----------
    results
        Tables of `statistics.compute`.
    survive
        Of `survival`.
    agree
        Cells that agree, of how many; p-values that do, of how many.
    """
    rows = family(results["comparisons"], GAIN).query("prompt != 'P0'")
    sure = ((rows["p_patient_holm"] < 0.05) & (rows["difference"] > 0)).sum()
    up, means = (rows["difference"] > 0).sum(), results["gains"]["mean"]
    ratios, passed = survive.loc["as a share of that limit"], survive[:4].astype(bool).sum()
    best = results["headline"].groupby("test", sort=False).first()

    def told(test: str) -> str:
        row = best.loc[test]
        interval = f"95 % interval over patients {row['low']:+.2f} to {row['high']:+.2f}"
        limits = f"{ratios[test]} × the limit of two trainings"
        return f"{row['difference']:+.2f} points of Dice ({interval}), {limits}"

    synthetic = "synthetic vs real"
    cells, of_cells, values, of_values = agree
    return (
        f"- The paper's numbers come out again from its authors' own scores: {cells} of {of_cells} cells of "
        f"the main table and {values} of {of_values} p-values.\n"
        f"- Synthetic images alone are worse than real ones: {told(synthetic)}. This passes "
        f"{passed[synthetic]} of the 4 checks of “Which conclusions survive?”.\n"
        f"- Pretraining on them raises the best Dice by little: {told(GAIN)}. This passes {passed[GAIN]} of "
        f"the 4 checks. The mean gain is above zero in {(means > 0).sum()} of {len(means)} estimates, and "
        f"{up} of {len(rows)} cells with words gain, {sure} of them significantly by patient. With the empty "
        f"prompt pretraining leaves {empty_prompt_lost(results['comparisons'])}. Each cell is one run: only "
        "more seeds would tell how large the gain is.\n"
        "- What unfreezing does to CLIPSeg was not measured: the library did not unfreeze it."
    )


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
    """The paper's two comparisons against each objection, one column per test of `HEADLINES`.

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
