"""How the answers of the study on real hearts look: the budget, patients saved, convergence, the recipe."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from echovlsm.base import figures
from echovlsm.study.answers.recorded import OBSERVER, YARDSTICK
from echovlsm.study.answers.records import STRATEGIES, Records, doubling
from echovlsm.study.answers.words import NAMES, how_many, points, several, span
from echovlsm.study.differences import FINDINGS
from echovlsm.study.plan import ALL, NOTHING

COLOURS: dict[str, str] = {
    "nothing": figures.STRATEGY_COLOURS["real"],
    "phantom": figures.STRATEGY_COLOURS["synthetic"],
    "diffusion": figures.STRATEGY_COLOURS["synth-PT:real-FT"],
    "diffusion+phantom": "#CC79A7",
    "diffusion-few": "#E69F00",
}
"""Okabe and Ito's colours; those of the strategies for what is one."""

MARKS: dict[str, str] = dict(zip(COLOURS, "osD^v", strict=True))


# -- titles: what a figure shows ---------------------------------------------------------------------------


def budget_title(gains: pd.DataFrame) -> str:
    """What the budget's figure shows, as its title."""
    rows = gains[gains["arm"] == "phantom"] if len(gains) else gains
    if rows.empty or rows["seeds"].max() < 2:
        return "One seed so far: no finding yet"
    higher = rows[rows["verdict"] == "higher"]["patients"]
    if higher.empty:
        return "Phantoms first: no gain shown at equal compute"
    seeds = span(rows[rows["verdict"] == "higher"]["seeds"])
    return f"Phantoms first help with {', '.join(map(str, higher))} annotated patients ({seeds} seeds)"


def gains_title(gains: pd.DataFrame) -> str:
    """What the figure of the gains shows, as its title: of phantoms, which need no annotation."""
    found = gains[gains["verdict"].isin(FINDINGS) & (gains["arm"] == "phantom")]
    if found.empty:
        return "Gain over as many steps on real images alone: no finding of phantoms yet"
    row = found.loc[found["gain"].idxmax()]
    return (
        f"Phantoms first gain most with {row['patients']} patients: {points(row['gain'])} points "
        "(hollow: no finding)"
    )


def curves_title(arrived: pd.DataFrame) -> str:
    """Rows of `convergence`, of one model and prompt, as a figure's title."""

    def steps(counts: pd.Series) -> str:
        return "never" if math.isinf(counts.median()) else f"{counts.median():,.0f}"

    told = [f"real {steps(arrived['real'])}"]
    told += [f"{name} {steps(part['whole'])}" for name, part in arrived.groupby("strategy", sort=False)]
    return f"Steps to the dashed line, pretraining counted: {', '.join(told)}"


def worth_title(saved: pd.DataFrame) -> str:
    """What the figure of patients saved shows, as its title."""
    rows = several(saved)
    rows = rows[rows["arm"] == "phantom"] if len(rows) else rows
    row = rows.loc[(rows["worth"] / rows["patients"]).idxmax()] if len(rows) else None
    if row is None or row["low"] <= row["patients"]:
        return "On the line, synthetic images are worth no patient"
    told = f"{row['patients']} patients with phantoms first are worth {how_many(row['worth'])} without"
    return f"{told} (on the grey line: no patient saved)"


def doubling_title(records: Records) -> str:
    """What twice the steps of the recipe add, as a figure's title."""
    table, recipe = doubling(records), records.recipe
    steps = recipe.first + recipe.second
    usual = table[np.isclose(table["rate"], recipe.rate) & (table["image_size"] == recipe.image_size)]
    usual = usual[usual["arm"] == NOTHING]
    wide = usual.pivot_table(index="patients", columns="steps", values="dice")
    gap = (wide[2 * steps] - wide[steps]).dropna() if {steps, 2 * steps} <= set(wide) else ()
    if not len(gap):
        return "Trials of one seed each; the recipe's own steps are not among them yet"
    told = ", ".join(f"{points(value)} at {size}" for size, value in gap.items())
    return f"Twice the steps add {told} patients (points; one seed)"


# -- figures --------------------------------------------------------------------------------------------


def _arms(table: pd.DataFrame) -> list[str]:
    return [arm for arm in COLOURS if arm in set(table["arm"])]


def _size_axis(axes: Axes, table: pd.DataFrame) -> list[int]:
    """A logarithmic axis of annotated patients with a tick at each number of the table."""
    sizes = sorted(int(size) for size in table["patients"].unique())
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("annotated patients (logarithmic)")
    return sizes


def plot_budget(points: pd.DataFrame, gains: pd.DataFrame, cavity: pd.DataFrame | None = None) -> Figure:
    """Dice against annotated patients, an arm a line: mean of the three structures, and the cavity alone.

    Parameters
    ----------
    points, cavity
        Of `budget_points`, of all structures and, in a panel of its own, of the left ventricular cavity: for
        this one it is known how well a cardiologist agrees with himself, which no model can be shown to pass.
    gains
        Of `budget_gains`, for the title.

    Notes
    -----
    Bars are intervals over patients and seeds; marks of one seed are hollow.
    """
    tables = [points] if cavity is None else [points, cavity]
    size = {"figsize": (5.4, 3.9)} if cavity is None else {"figsize": (9.5, 4.4), "width_ratios": (1.25, 1)}
    figure, (panels,) = plt.subplots(1, len(tables), squeeze=False, **size)
    arms = _arms(points)
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
        _size_axis(axes, table)
    title = textwrap.fill(budget_title(gains), 55 if cavity is None else 60)
    panels[0].set(ylabel="mean Dice, validation patients", title=title)
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
    arms = _arms(gains)
    figure, axes = plt.subplots(figsize=(8, 3.4))
    axes.axhline(0, color="#333333", linewidth=1)
    for place, arm in enumerate(arms):
        part = gains[gains["arm"] == arm].sort_values("patients")
        x = part["patients"].to_numpy() * 1.05 ** (place - (len(arms) - 1) / 2)
        gain = 100 * part["gain"]
        bars = (100 * (part["gain"] - part["low"]), 100 * (part["high"] - part["gain"]))
        colour = COLOURS[arm]
        axes.errorbar(x, gain, bars, color=colour, linestyle="none", elinewidth=1.2)
        style = {"marker": MARKS[arm], "color": colour, "linestyle": "none"}
        found = part["verdict"].isin(FINDINGS).to_numpy()
        axes.plot(x[found], gain.to_numpy()[found], **style)
        axes.plot(x[~found], gain.to_numpy()[~found], **style, markerfacecolor="white")
        axes.plot([], [], **style, label=NAMES[arm])
    _size_axis(axes, gains)
    axes.set_ylabel("gain in Dice (points)")
    axes.set_title(textwrap.fill(gains_title(gains), 75))
    axes.legend(loc="upper right", fontsize=9)
    return figure


def plot_worth(saved: pd.DataFrame) -> Figure:
    """How many annotated patients without synthetic images give as much; at the top: more than were tried."""
    figure, axes = plt.subplots(figsize=(6.5, 4.4))
    top = ALL * 1.25
    for arm in _arms(saved):
        part = saved[saved["arm"] == arm].sort_values("patients")
        worth, low, high = (part[name].clip(upper=top) for name in ("worth", "low", "high"))
        style = {"color": COLOURS[arm], "marker": MARKS[arm], "markersize": 5, "label": NAMES[arm]}
        axes.errorbar(part["patients"], worth, (worth - low, high - worth), **style)
    sizes = _size_axis(axes, saved)
    axes.plot(sizes, sizes, color="#999999", linewidth=1, zorder=1)
    ticks = [size for size in (5, 10, 25, 50, 100, ALL) if size >= min(sizes)]
    axes.set_yscale("log")
    axes.set_yticks([*ticks, top], [*(str(size) for size in ticks), f"> {ALL}"])
    axes.minorticks_off()
    axes.set_ylabel("patients without synthetic images\nthat give the same Dice")
    axes.set_title(textwrap.fill(worth_title(saved), 60))
    axes.legend(loc="lower right", fontsize=9)
    return figure


def plot_curves(curves: Mapping[str, pd.DataFrame], arrived: pd.DataFrame) -> Figure:
    """Dice on the held-out patients against all steps, an arm a line, each seed a thin one.

    Parameters
    ----------
    curves
        Of `learning_curves`: `step` (of both cycles), `seed` and `dice` of each arm.
    arrived
        Rows of `convergence` of the same model and prompt; the line is the mean target of their seeds.
    """
    figure, axes = plt.subplots(figsize=(8, 3.8))
    for arm, table in curves.items():
        for _, part in table.groupby("seed"):
            axes.plot(part["step"], part["dice"], color=COLOURS[arm], linewidth=0.8, alpha=0.6)
        axes.plot([], [], color=COLOURS[arm], label=STRATEGIES[arm])
    axes.axhline(arrived["target"].mean(), color="#555555", linestyle="--", linewidth=1)
    axes.set(xlabel="optimiser steps, pretraining counted", ylabel="Dice, held-out patients")
    axes.set_title(textwrap.fill(curves_title(arrived), 75))
    axes.legend(loc="lower right", fontsize=9)
    return figure


def plot_doubling(records: Records, table: pd.DataFrame) -> Figure:
    """Dice on the held-out patients against all steps of a run, for each number of patients.

    `table` is of `doubling`; only its runs at the recipe's rate and image size are drawn.
    """
    figure, axes = plt.subplots(figsize=(8, 3.6))
    recipe = records.recipe
    usual = table[np.isclose(table["rate"], recipe.rate) & (table["image_size"] == recipe.image_size)]
    for (arm, patients), part in usual.groupby(["arm", "patients"]):
        part = part.sort_values("steps")
        plain = arm == NOTHING
        style = {"linestyle": "-" if plain else "--", "color": COLOURS[arm], "marker": MARKS[arm]}
        axes.plot(part["steps"], part["dice"], **style, markersize=5)
        axes.annotate(
            f"{patients}",
            tuple(part[["steps", "dice"]].iloc[-1]),
            xytext=(6, -3) if plain else (0, 5),
            ha="left" if plain else "center",
            textcoords="offset points",
            fontsize=9,
        )
    for arm in usual["arm"].unique():
        axes.plot([], [], color=COLOURS[arm], marker=MARKS[arm], label=NAMES[arm])
    axes.axvline(recipe.first + recipe.second, color="#555555", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = sorted(int(step) for step in usual["steps"].unique())
    axes.set_xticks(ticks, [f"{step:,}" for step in ticks])
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.set(xlabel="optimiser steps of both cycles", ylabel="Dice, held-out patients")
    axes.set_title(doubling_title(records))
    figure.legend(loc="outside right center", fontsize=9)
    return figure
