"""Figures of notebook 07: gains by prompt, differences by group, two trainings. Titles are computed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from echovlsm.base import figures
from echovlsm.published.scores import EXTRA_RUN
from echovlsm.published.statistics import GAIN, HEADLINES, WORDED, family

_LOOKS = {"CLIPSeg": ("o", -0.15), "CRIS": ("s", 0.15)}


def plot_gains(comparisons: pd.DataFrame, limit: float, test: str = GAIN) -> Figure:
    """Difference of the two strategies for each model and prompt with words, with intervals over patients.

    Parameters
    ----------
    comparisons
        Of `statistics.compare_all`.
    limit
        Within which two CLIPSeg trainings lie (`statistics.limit`): the grey band.
    test
        One of `statistics.HEADLINES`.
    """
    import matplotlib.pyplot as plt

    cells = family(comparisons, test)
    cells = cells[cells["prompt"] != "P0"]
    colour = figures.STRATEGY_COLOURS[HEADLINES[test]["a"]]
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.7), sharey=True)
    for axis, (model, part) in zip(axes, cells.groupby("model"), strict=True):
        axis.axhspan(-limit, limit, color="#DDDDDD", label="two CLIPSeg trainings\n(settings may differ)")
        axis.axhline(0, color="#333333", linewidth=0.8)
        bars = (part["difference"] - part["low"], part["high"] - part["difference"])
        axis.errorbar(part["prompt"], part["difference"], bars, fmt="none", ecolor=colour)
        for sure, fill in ((True, colour), (False, "white")):
            some = part[(part["p_patient_holm"] < 0.05) == sure]
            label = "p < 0.05 after Holm" if sure else "not significant"
            axis.plot(some["prompt"], some["difference"], "o", mfc=fill, mec=colour, label=label)
        axis.set_title(model)
    axes[0].set_ylabel(f"{test}, points of Dice")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    up = cells["difference"] > 0
    clear = (up & (cells["p_patient_holm"] < 0.05)).sum()
    told = f"{test}, prompts with words: higher in {up.sum()} of {len(cells)} cells, significantly in {clear}"
    figures.heading(figure, told)
    return figure


def plot_groups(comparisons: pd.DataFrame) -> Figure:
    """Both comparisons over the prompts with words, of all masks and by group (quality if known).

    `comparisons` is that of `statistics.compare_all`.
    """
    import matplotlib.pyplot as plt

    groups = comparisons[(comparisons["prompt"] == WORDED) & (comparisons["model"] != EXTRA_RUN)]
    names = {"all": "all masks", **figures.SHORT_NAMES}
    groups = groups.assign(level=groups["level"].replace(names))
    levels = list(dict.fromkeys([*names.values(), *groups["level"]]))
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 1.4 + 0.3 * len(levels)), sharey=True)
    for axis, (test, part) in zip(axes, groups.groupby("test"), strict=True):
        colour = figures.STRATEGY_COLOURS[HEADLINES[test]["a"]]
        for model, (marker, offset) in _LOOKS.items():
            rows = part[part["model"] == model].set_index("level").loc[levels]
            bars = (rows["difference"] - rows["low"], rows["high"] - rows["difference"])
            style = {"fmt": marker, "color": colour, "mfc": colour if offset < 0 else "white"}
            axis.errorbar(rows["difference"], np.arange(len(levels)) + offset, xerr=bars, **style)
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
    gain = groups.loc[groups["test"] == GAIN, "difference"].max()
    without = groups[groups["test"] != GAIN]
    worst = without.loc[without["difference"].idxmin()]
    lost = f"{worst['model']} loses {-worst['difference']:.1f} at the {worst['level']}"
    figures.heading(figure, f"Pretraining gains at most {gain:.1f} points; without real images {lost}")
    return figure


def plot_two_trainings(spread: pd.DataFrame, claimed: float) -> Figure:
    """Unfrozen minus frozen CLIPSeg, prompts with words: neither training touched the encoders.

    Parameters
    ----------
    spread
        Of `statistics.encoder_rows`.
    claimed
        The gain to compare with, points of Dice.
    """
    import matplotlib.pyplot as plt

    twice = spread[(spread["model"] == "CLIPSeg") & (spread["prompt"] != "P0")]
    figure, axes = plt.subplots(figsize=(7.5, 3))
    order = list(dict.fromkeys(twice["strategy"]))
    for row, strategy in enumerate(order):
        values = twice.loc[twice["strategy"] == strategy, "difference"]
        colour = figures.STRATEGY_COLOURS[strategy]
        axes.plot(values, np.linspace(row - 0.15, row + 0.15, len(values)), "o", color=colour)
    axes.axvline(claimed, color="#333333", linestyle="--", label="± claimed gain\nof PT-FT")
    axes.axvline(-claimed, color="#333333", linestyle="--")
    axes.axvline(0, color="#333333", linewidth=0.8)
    label = "two CLIPSeg trainings (settings may differ), “unfrozen” − “frozen”, points of Dice"
    axes.set(xlabel=label, ylim=(-0.5, len(order) - 0.5))
    names = [name.replace("synth-PT:real-FT", "PT-FT") for name in order]
    axes.set(yticks=range(len(order)), yticklabels=names)
    figure.legend(loc="outside right upper", fontsize=8)
    compared = twice.loc[twice["strategy"] != "synthetic", "difference"].abs()
    larger = f"{(compared > claimed).sum()} of {len(compared)}"
    axes.set_title(f"{larger} cells (real, PT-FT) lie more than {claimed} apart")
    return figure
