"""How the answers of the study on real hearts look: the budget, patients saved, convergence, the recipe."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from echovlsm.base import figures
from echovlsm.study.answer_text import NAMES
from echovlsm.study.answers import STRATEGIES
from echovlsm.study.plan import ALL, NOTHING
from echovlsm.study.real_figures import YARDSTICK

COLOURS: dict[str, str] = {
    "nothing": figures.STRATEGY_COLOURS["real"],
    "phantom": figures.STRATEGY_COLOURS["synthetic"],
    "diffusion": figures.STRATEGY_COLOURS["synth-PT:real-FT"],
    "diffusion+phantom": "#CC79A7",
    "diffusion-few": "#E69F00",
}
"""Okabe and Ito's colours; those of the strategies for what is one."""

MARKS: dict[str, str] = dict(zip(COLOURS, "osD^v", strict=True))

OBSERVER = "one cardiologist, twice"


def _size_axis(axes: Axes, sizes: list[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("annotated patients (logarithmic)")


def plot_budget(points: pd.DataFrame, cavity: pd.DataFrame | None = None) -> Figure:
    """Dice against annotated patients, an arm a line: mean of the three structures, and the cavity alone.

    Parameters
    ----------
    points, cavity
        Of `answers.budget_points`, of all structures and, in a panel of its own, of the left ventricular
        cavity: for this one it is known how well a cardiologist agrees with himself, which no model can be
        shown to pass.

    Bars: intervals over patients and seeds; marks of one seed are hollow.
    """
    tables = [points] if cavity is None else [points, cavity]
    size = {"figsize": (5.4, 3.9)} if cavity is None else {"figsize": (9.5, 4.4), "width_ratios": (1.25, 1)}
    figure, (panels,) = plt.subplots(1, len(tables), squeeze=False, **size)
    arms = [arm for arm in COLOURS if arm in set(points["arm"])]
    for axes, table in zip(panels, tables, strict=True):
        for place, arm in enumerate(arms):
            part = table[table["arm"] == arm].sort_values("patients")
            x = part["patients"].to_numpy() * 1.03 ** (place - len(arms) / 2)
            bars = part["dice"] - part["low"], part["high"] - part["dice"]
            style = {"color": COLOURS[arm], "marker": MARKS[arm], "markersize": 5}
            axes.errorbar(x, part["dice"], bars, **style, linewidth=1.4, elinewidth=1, label=NAMES[arm])
            single = (part["seeds"] == 1).to_numpy()
            hollow = style | {"linestyle": "none", "markerfacecolor": "white", "zorder": 3}
            axes.plot(x[single], part["dice"].to_numpy()[single], **hollow)
        _size_axis(axes, sorted(int(size) for size in table["patients"].unique()))
    panels[0].set_ylabel("mean Dice, validation patients")
    panels[0].legend(loc="lower right", fontsize=9)
    if cavity is None:
        return figure
    right = panels[1]
    ceiling = np.mean(YARDSTICK["left ventricular cavity", OBSERVER])
    right.axhline(ceiling, color="#555555", linestyle="--", linewidth=1)
    style = {"textcoords": "offset points", "fontsize": 8, "color": "#555555"}
    where = right.get_yaxis_transform()
    right.annotate("a cardiologist against himself", (0.02, ceiling), (0, 4), where, **style)
    right.set(ylabel="Dice of the left ventricular cavity", ylim=(None, ceiling + 0.03))
    return figure


def plot_gains(gains: pd.DataFrame) -> Figure:
    """What each kind of synthetic images adds, in points of Dice; filled marks are findings."""
    arms = [arm for arm in COLOURS if arm in set(gains["arm"])]
    figure, axes = plt.subplots(figsize=(8, 3.4))
    axes.axhline(0, color="#333333", linewidth=1)
    for place, arm in enumerate(arms):
        part = gains[gains["arm"] == arm].sort_values("patients")
        x = part["patients"].to_numpy() * 1.05 ** (place - (len(arms) - 1) / 2)
        low, high = (100 * (part["gain"] - part["low"]), 100 * (part["high"] - part["gain"]))
        colour = COLOURS[arm]
        found = part["verdict"].isin(["higher", "lower"]).to_numpy()
        axes.errorbar(x, 100 * part["gain"], (low, high), color=colour, linestyle="none", elinewidth=1.2)
        for filled in (True, False):
            at = found == filled
            face = colour if filled else "white"
            style = {"marker": MARKS[arm], "color": colour, "markerfacecolor": face, "linestyle": "none"}
            axes.plot(x[at], 100 * part["gain"].to_numpy()[at], **style)
        axes.plot([], [], marker=MARKS[arm], color=colour, linestyle="none", label=NAMES[arm])
    _size_axis(axes, sorted(int(size) for size in gains["patients"].unique()))
    axes.set_ylabel("gain in Dice (points)")
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def plot_worth(saved: pd.DataFrame) -> Figure:
    """How many annotated patients without synthetic images give as much; an arrow: more than were tried."""
    figure, axes = plt.subplots(figsize=(6.5, 4.4))
    sizes = sorted(int(size) for size in saved["patients"].unique())
    axes.plot(sizes, sizes, color="#999999", linewidth=1)
    top = ALL * 1.25
    for arm in (arm for arm in COLOURS if arm in set(saved["arm"])):
        part = saved[saved["arm"] == arm].sort_values("patients")
        worth, high = part["worth"].clip(upper=top), part["high"].clip(upper=top)
        style = {"color": COLOURS[arm], "marker": MARKS[arm], "markersize": 5, "label": NAMES[arm]}
        axes.errorbar(part["patients"], worth, (worth - part["low"].clip(upper=top), high - worth), **style)
    _size_axis(axes, sizes)
    ticks = [size for size in (5, 10, 25, 50, 100, ALL) if size >= min(sizes)]
    axes.set_yscale("log")
    axes.set_yticks([*ticks, top], [*(str(size) for size in ticks), f"> {ALL}"])
    axes.minorticks_off()
    axes.set_ylabel("patients without synthetic images\nthat give the same Dice")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def plot_curves(curves: Mapping[str, pd.DataFrame], target: float) -> Figure:
    """Dice on the held-out patients against all steps, an arm a line, each seed a thin one.

    Parameters
    ----------
    curves
        Arm to a table of one row a look: `step` (of both cycles), `seed` and `dice`.
    target
        Mean target of the seeds.
    """
    figure, axes = plt.subplots(figsize=(8, 3.8))
    for arm, table in curves.items():
        colour = COLOURS.get(arm, "#000000")
        for _, part in table.groupby("seed"):
            axes.plot(part["step"], part["dice"], color=colour, linewidth=0.8, alpha=0.6)
        axes.plot([], [], color=colour, label=STRATEGIES[arm])
    axes.axhline(target, color="#555555", linestyle="--", linewidth=1)
    axes.set(xlabel="optimiser steps, pretraining counted", ylabel="Dice, held-out patients")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def plot_doubling(table: pd.DataFrame, rate: float, size: int, chosen: int) -> Figure:
    """Dice on the held-out patients against all steps of a run, for each number of patients."""
    figure, axes = plt.subplots(figsize=(8, 3.6))
    usual = table[np.isclose(table["rate"], rate) & (table["image_size"] == size)]
    for (arm, patients), part in usual.groupby(["arm", "patients"]):
        part = part.sort_values("steps")
        style = {"linestyle": {"nothing": "-"}.get(arm, "--"), "color": COLOURS[arm], "marker": MARKS[arm]}
        axes.plot(part["steps"], part["dice"], **style, markersize=5)
        last = part.iloc[-1]
        axes.annotate(
            f"{patients}",
            (last["steps"], last["dice"]),
            xytext=(6, -3) if arm == NOTHING else (0, 5),
            ha="left" if arm == NOTHING else "center",
            textcoords="offset points",
            fontsize=9,
        )
    for arm in usual["arm"].unique():
        axes.plot([], [], color=COLOURS[arm], marker=MARKS[arm], label=NAMES[arm])
    axes.axvline(chosen, color="#555555", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = sorted(int(step) for step in usual["steps"].unique())
    axes.set_xticks(ticks, [f"{step:,}" for step in ticks])
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.set(xlabel="optimiser steps of both cycles", ylabel="Dice, held-out patients")
    figure.legend(loc="outside right center", fontsize=9)
    return figure
