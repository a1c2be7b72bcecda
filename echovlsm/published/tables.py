"""What notebook 07 shows, worded for readers: tables, sentences, and figures with their titles.

The numbers are those of `statistics` and `claims`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from echovlsm.base import figures
from echovlsm.published.claims import Beside
from echovlsm.published.headlines import GAIN, HEADLINES, format_p, show_p
from echovlsm.published.scores import EXTRA_RUN, load_tables
from echovlsm.published.statistics import WORDED, by_group, family, limit

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
_LOOKS = {"CLIPSeg": ("o", -0.15), "CRIS": ("s", 0.15)}


def readable(table: pd.DataFrame, headings: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table with headings for readers, yes and no for truth values, and PT-FT for the released name.

    `headings` come besides or in place of `HEADINGS`.
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


def map_table(mapping: Mapping[str, str] | pd.Series) -> pd.DataFrame:
    """The old testing patients and the public release's, ten to a row."""
    named = [f"{int(old[7:])} → {int(new[7:])}" for old, new in dict(mapping).items()]
    return pd.DataFrame(np.reshape(named, (-1, 10)))


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


def groups(comparisons: pd.DataFrame) -> Styler:
    """Both comparisons within structures, views and phases (qualities where known), prompts with words."""
    table = readable(by_group(comparisons).sort_values("test", kind="stable"))
    digits = dict.fromkeys(["difference", "95 % low", "95 % high"], "{:+.2f}")
    return table.style.format(digits | dict.fromkeys(["p, patients", "Holm"], show_p))


def gains_text(results: Mapping[str, pd.DataFrame]) -> str:
    """The estimates of the mean gain in words, and what they are not compared with."""
    gains, between_trainings = results["gains"], limit(results["spread"], GAIN)
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


def beside_theirs(compared: Sequence[Beside]) -> Styler:
    """Our runs beside the authors' of `claims.beside_theirs`: one row per run and structure."""
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
        Of `claims.results_of`.
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
    """The two tests of the paper's text in words (Markdown), of `headline_tests`.

    Where the paper's text and the means of its Table 2 give different differences, both are told.
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


# -- figures --------------------------------------------------------------------------------------------


def plot_gains(results: Mapping[str, pd.DataFrame]) -> Figure:
    """Gain of PT-FT over real for each model and prompt with words, with intervals over patients.

    The grey band: within it lie two CLIPSeg trainings (`statistics.limit`).
    """
    cells = family(results["comparisons"], GAIN)
    cells = cells[cells["prompt"] != "P0"]
    band = limit(results["spread"], GAIN)
    colour = figures.STRATEGY_COLOURS[HEADLINES[GAIN]["a"]]
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.7), sharey=True)
    for axis, (model, part) in zip(axes, cells.groupby("model"), strict=True):
        axis.axhspan(-band, band, color="#DDDDDD", label="two CLIPSeg trainings\n(settings may differ)")
        axis.axhline(0, color="#333333", linewidth=0.8)
        bars = (part["difference"] - part["low"], part["high"] - part["difference"])
        axis.errorbar(part["prompt"], part["difference"], bars, fmt="none", ecolor=colour)
        for sure, fill in ((True, colour), (False, "white")):
            some = part[(part["p_patient_holm"] < 0.05) == sure]
            label = "p < 0.05 after Holm" if sure else "not significant"
            axis.plot(some["prompt"], some["difference"], "o", mfc=fill, mec=colour, label=label)
        axis.set_title(model)
    axes[0].set_ylabel(f"{GAIN}, points of Dice")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    up = cells["difference"] > 0
    clear = (up & (cells["p_patient_holm"] < 0.05)).sum()
    told = f"{GAIN}, prompts with words: higher in {up.sum()} of {len(cells)} cells, significantly in {clear}"
    figures.heading(figure, told)
    return figure


def plot_groups(comparisons: pd.DataFrame) -> Figure:
    """Both comparisons over the prompts with words, of all masks and by group (quality if known)."""
    rows = comparisons[(comparisons["prompt"] == WORDED) & (comparisons["model"] != EXTRA_RUN)]
    names = {"all": "all masks", **figures.SHORT_NAMES}
    rows = rows.assign(level=rows["level"].replace(names))
    levels = list(dict.fromkeys([*names.values(), *rows["level"]]))
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 1.4 + 0.3 * len(levels)), sharey=True)
    for axis, (test, part) in zip(axes, rows.groupby("test"), strict=True):
        colour = figures.STRATEGY_COLOURS[HEADLINES[test]["a"]]
        for model, (marker, offset) in _LOOKS.items():
            own = part[part["model"] == model].set_index("level").loc[levels]
            bars = (own["difference"] - own["low"], own["high"] - own["difference"])
            style = {"fmt": marker, "color": colour, "mfc": colour if offset < 0 else "white"}
            axis.errorbar(own["difference"], np.arange(len(levels)) + offset, xerr=bars, **style)
        axis.axvline(0, color="#333333", linewidth=0.8)
        axis.set(xlabel="difference, points of Dice", yticks=range(len(levels)), yticklabels=levels)
        low, high = part["difference"].min(), part["difference"].max()
        axis.set_title(f"{test}: {low:+.1f} to {high:+.1f}")
    axes[0].invert_yaxis()
    for model, (marker, offset) in _LOOKS.items():
        fill = "#333333" if offset < 0 else "white"
        axes[0].plot([], [], marker, color="#333333", mfc=fill, label=model)
    figure.legend(loc="outside right center", fontsize=8)
    axes[1].set_xlabel("difference, points of Dice (other scale)")
    gain = rows.loc[rows["test"] == GAIN, "difference"].max()
    without = rows[rows["test"] != GAIN]
    worst = without.loc[without["difference"].idxmin()]
    lost = f"{worst['model']} loses {-worst['difference']:.1f} at the {worst['level']}"
    figures.heading(figure, f"Pretraining gains at most {gain:.1f} points; without real images {lost}")
    return figure


def plot_runs(beside: Beside) -> Figure:
    """Our Dice over theirs, one point a mask; above the diagonal ours is better."""
    whole, both = beside.table.iloc[0], beside.pairs[["ours", "theirs"]]
    low = 10 * np.floor(both.quantile(0.01).min() / 10)
    outside = int((both < low).any(axis=1).sum())
    figure, axes = plt.subplots(figsize=(6, 4.4))
    axes.plot([low, 100], [low, 100], color="#333333", linewidth=1)
    for structure, colour in figures.STRUCTURE_COLOURS.items():
        part = both[beside.pairs["structure"] == structure].clip(lower=low)
        style = {"s": 9, "color": colour, "alpha": 0.7, "edgecolors": "none", "clip_on": False}
        axes.scatter(part["theirs"], part["ours"], label=figures.SHORT_NAMES[structure], **style)
    note = f"\n{outside} masks below the frame are drawn on its edge" if outside else ""
    axes.set(xlim=(low, 101), ylim=(low, 101), aspect="equal")
    axes.set_xlabel(f"Dice, the authors' {beside.theirs} (%){note}")
    axes.set_ylabel(f"Dice, {beside.name} {beside.strategy} (%)")
    interval = f"[{whole['low']:+.1f}, {whole['high']:+.1f}]"
    axes.set_title(f"Ours {whole['difference']:+.1f} {interval} points of Dice on {whole['masks']:.0f} masks")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=2)
    return figure
