"""What the benchmarks on record say, and how it looks: ratios against goals, growth, choices of arithmetic.

``python -m benchmarks`` makes them; notebook 10 shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from echovlsm.base import figures, paths

TABLES: tuple[str, ...] = ("pairs", "rates", "growth")
"""Tables that are read."""

BUSY = 0.05
"""Share of the processors that others may use before a measurement counts as provisional."""

BLUE, GREEN, RED, GREY = "#0072B2", "#009E73", "#D55E00", "#7F7F7F"


def read_results(folder: str | Path) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables by name, and `about.yaml`.

    Raises
    ------
    FileNotFoundError
        There is no record; the message says what makes it.
    """
    folder = paths.resolve(folder)
    for name in (*(f"{name}.csv" for name in TABLES), "about.yaml"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: no {name}; `python -m benchmarks` makes it")
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in TABLES}
    for name in ("pairs", "rates"):
        words = tables[name].select_dtypes(exclude="number").columns
        tables[name][words] = tables[name][words].fillna("")
    return tables, yaml.safe_load((folder / "about.yaml").read_text())


def how_measured(about: Mapping[str, Any]) -> str:
    """Markdown: device, versions, commits, and whether others were busy."""
    machine, entries = about["machine"], about["entries"]
    cores = f"{machine['threads']} of {machine['cores']} cores, {machine['instructions']}"
    versions = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "transformers", "monai"))
    dates = sorted(entry["date"][:10] for entry in entries.values())
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    commits = ", ".join(dict.fromkeys(f"`{entry['commit']}`" for entry in entries.values()))
    minutes = sum(entry["seconds"] for entry in entries.values()) / 60
    told = f"Measured on {when} on {machine['device']} ({cores}) with {versions}; commit {commits}; "
    told += f"{minutes:.0f} minutes in all."
    busy = [f"{name} {one['busy_elsewhere']:.0%}" for name, one in entries.items() if disturbed(one)]
    if busy:
        told += (
            f"\n\n**Provisional:** others used the processors meanwhile ({', '.join(busy)}). That changes "
        )
        told += "the times, but hardly the ratios."
    return told


def read_gpu(folder: str | Path) -> tuple[dict[str, pd.DataFrame], str]:
    """The tables of ``python -m benchmarks.gpu`` by name, and the GPU's name; nothing where there is none."""
    found = sorted(paths.resolve(folder).glob("*/about.yaml"))
    if not found:
        return {}, ""
    tables = {file.stem: pd.read_csv(file) for file in sorted(found[-1].parent.glob("*.csv"))}
    return tables, yaml.safe_load(found[-1].read_text())["machine"]["gpu"]


def gpu_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """Triplets a second of the package's way and the plain one, each at its fastest batch; one row a case.

    Returns
    -------
    DataFrame
        `model, encoders, precision, ours, ours_batch, plain, plain_batch, ratio`.
    """
    rows = []
    fits = steps[steps["fits"].astype(bool)]
    for (model, encoders, precision), part in fits.groupby(["model", "encoders", "precision"], sort=False):
        if not {"ours", "plain"} <= set(part["way"]):
            continue
        row: dict[str, Any] = {"model": model, "encoders": encoders, "precision": precision}
        for way in ("ours", "plain"):
            best = part.loc[part.loc[part["way"] == way, "triplets_a_second"].idxmax()]
            row |= {way: best["triplets_a_second"], f"{way}_batch": int(best["batch"])}
        rows.append(row | {"ratio": row["ours"] / row["plain"]})
    return pd.DataFrame(rows)


def gpu_lines(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What the tables of `read_gpu` say of steps, the paper's grid and sampling, a sentence each."""
    lines = [
        f"{figures.MODEL_NAMES[row.model]}, encoders {row.encoders}: {row.ours:,.0f} triplets a second with "
        f"{row.ours_batch} images a batch, {row.ratio:.1f} times the plain loop."
        for row in (gpu_steps(tables["steps"]).itertuples() if "steps" in tables else ())
    ]
    if "hours" in tables:
        cost = tables["hours"]
        names = " and ".join(figures.MODEL_NAMES[name] for name in cost["model"].unique())
        lines += [
            f"{names} in the paper's grid, without zero-shot and joint cells: {cost['runs'].sum()} runs of "
            f"{cost['epochs'].max()} epochs, the fewest that its patience of 20 allows, take "
            f"{cost['hours'].sum():.1f} hours (runs × epochs × images × seconds an image)."
        ]
    if "sampling" in tables:
        best = tables["sampling"].groupby("scheduler")["images_a_second"].max()
        fast, slow = best["dpm-solver++"], best["ddpm"]
        lines += [
            f"The small denoiser draws {fast:.0f} images a second in 20 steps of DPM-Solver++, {slow:.1f} in "
            f"DDPM's 1000: {fast / slow:.0f} times as many."
        ]
    return lines


def gpu_waits(waits: pd.DataFrame) -> pd.DataFrame:
    """How often a round of training waits for the GPU at each place; a column a model, encoders learning."""
    part = waits[waits["encoders"] == "unfrozen"]
    return part.pivot_table(index="place", columns="model", values="a_round", sort=False)


def disturbed(entry: Mapping[str, Any]) -> bool:
    """Whether an entry's times are provisional: others were busy, nobody knows, or the sizes were tiny."""
    return not entry["busy_elsewhere"] <= BUSY or bool(entry.get("quick"))


def goals(pairs: pd.DataFrame, rates: pd.DataFrame) -> pd.DataFrame:
    """Targets against what was reached, one row each.

    Returns
    -------
    DataFrame
        `what, wanted, found, spread, reached` (bool); texts but for the last.
    """
    rows = []
    for row in pairs[pairs["target"].notna()].itertuples():
        spread = f"{row.ratio_min:.2f} to {row.ratio_max:.2f}, {row.repeats} pairs"
        found, wanted = f"{row.ratio:.2f} ×", f"at least {row.target:g} ×"
        rows.append((row.title, wanted, found, spread, row.ratio >= row.target))
    for row in rates[rates["target"].notna()].itertuples():
        more = row.better == "more"
        wanted = f"{'at least' if more else 'below'} {row.target:g} {row.unit}"
        spread = f"{row.low:.3g} to {row.high:.3g}, {row.repeats} times"
        reached = row.value >= row.target if more else row.value < row.target
        rows.append((row.title, wanted, f"{row.value:.3g} {row.unit}", spread, reached))
    return pd.DataFrame(rows, columns=["what", "wanted", "found", "spread", "reached"])


def exponents(growth: pd.DataFrame) -> pd.DataFrame:
    """How seconds grow: the exponent of a power of the amount, by least squares of logarithms.

    Returns
    -------
    DataFrame
        `axis, stage, least, most` (amounts), `seconds_least, seconds_most` (medians), `exponent` over all
        amounts, and `exponent_end` between the last two.
    """
    rows = []
    for (axis, stage), part in growth.groupby(["axis", "stage"], sort=False):
        middle = part.groupby("amount")["seconds"].median()
        x, y = np.log(middle.index.to_numpy(dtype=float)), np.log(middle.to_numpy())
        end = (y[-1] - y[-2]) / (x[-1] - x[-2])
        row = {"axis": axis, "stage": stage, "least": middle.index[0], "most": middle.index[-1]}
        row |= {"seconds_least": middle.iloc[0], "seconds_most": middle.iloc[-1]}
        rows.append(row | {"exponent": float(np.polyfit(x, y, 1)[0]), "exponent_end": float(end)})
    return pd.DataFrame(rows)


def choices(pairs: pd.DataFrame) -> pd.DataFrame:
    """Choices of arithmetic: `what, setting, default, ratio, spread, verdict, taken`.

    `verdict` is ``faster`` or ``slower`` where the quartiles of the ratios agree, else ``no difference``;
    `taken` says in words what the package does.
    """
    rows = []
    for row in pairs[pairs["kind"] == "choice"].itertuples():
        verdict = "no difference"
        if row.ratio_low > 1.02 or row.ratio_high < 0.98:
            verdict = "faster" if row.ratio > 1 else "slower"
        taken = {"ours": row.ours, "plain": row.plain}.get(row.chosen, "up to the user")
        spread = f"{row.ratio_low:.2f} to {row.ratio_high:.2f}"
        rows.append((row.title, row.ours, row.plain, row.ratio, spread, verdict, taken, row.pair))
    names = ["what", "setting", "default", "ratio", "spread", "verdict", "taken", "pair"]
    return pd.DataFrame(rows, columns=names)


# -- figures --------------------------------------------------------------------------------------------


def _dots(axes: Axes, table: pd.DataFrame, colours: Sequence[str]) -> None:
    """One line a pair: median ratio and range, on a logarithmic axis with 1 marked."""
    places = np.arange(len(table))[::-1]
    for place, row, colour in zip(places, table.itertuples(), colours, strict=True):
        axes.plot([row.ratio_min, row.ratio_max], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(row.ratio, place, "o", color=colour)
        if not np.isnan(row.target):
            axes.plot(row.target, place, "|", color="#000000", markersize=14, markeredgewidth=1.6)
    axes.axvline(1, color="#999999", linewidth=1)
    axes.set(xscale="log", ylim=(-0.6, len(table) - 0.4))
    axes.set_yticks(places, table["label"], fontsize=9)
    low, high = axes.get_xlim()
    ticks = [value for value in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= value <= high]
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.minorticks_off()


def plot_ratios(pairs: pd.DataFrame) -> Figure:
    """How many times faster than the plain way; a stroke marks what was wanted."""
    table = pairs[pairs["kind"] == "goal"]
    labels = table["title"] + "\n" + table["ours"] + " / " + table["plain"]
    table = table.assign(label=labels.str.replace("`", ""))
    wanted, reached = table["target"].notna(), table["ratio"] >= table["target"]
    figure, axes = plt.subplots(figsize=(9, 0.62 * len(table) + 1.2))
    _dots(axes, table, np.where(wanted, np.where(reached, GREEN, RED), BLUE))
    axes.set_xlabel("times faster than the plain way (median and range; black stroke: wanted)")
    axes.set_title(
        f"{reached.sum()} of {wanted.sum()} ratios asked for are reached; "
        f"medians from {table['ratio'].min():.1f} to {table['ratio'].max():.0f} ×"
    )
    return figure


def plot_choices(pairs: pd.DataFrame) -> Figure:
    """How many times faster a setting is than the default; green: the package takes it."""
    table = pairs[pairs["kind"] == "choice"]
    table = table.assign(label=table["ours"] + ": " + table["title"], target=np.nan)
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(table) + 1.2))
    _dots(axes, table, np.where(table["chosen"] == "ours", GREEN, GREY))
    axes.set_xlabel("times faster than the default (median and range; green: taken)")
    best, worst = table.loc[table["ratio"].idxmax()], table.loc[table["ratio"].idxmin()]
    axes.set_title(
        f"Most is gained by {best['ours']} ({best['ratio']:.1f} ×), "
        f"most lost by {worst['ours']} ({worst['ratio']:.2f} ×)"
    )
    return figure


def plot_growth(growth: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Seconds against amount, one panel an axis, with the exponents."""
    axes_names = list(dict.fromkeys(growth["axis"]))
    figure, panels = plt.subplots(1, len(axes_names), figsize=(3.6 * len(axes_names), 3.9), squeeze=False)
    colours = (BLUE, RED, GREEN, "#CC79A7", "#E69F00")
    for axes, name in zip(panels[0], axes_names, strict=True):
        part = growth[growth["axis"] == name]
        exponent = fits[fits["axis"] == name].set_index("stage")["exponent"]
        for colour, (stage, rows) in zip(colours, part.groupby("stage", sort=False), strict=False):
            middle = rows.groupby("amount")["seconds"].median()
            axes.plot(middle.index, middle, "o-", color=colour, markersize=4)
            axes.plot([], [], "o-", color=colour, markersize=4, label=f"{stage}: {exponent[stage]:.2f}")
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds")
        amounts = sorted(part["amount"].unique())
        axes.set_xticks(amounts, [f"{amount:g}" for amount in amounts], fontsize=8, rotation=45)
        axes.minorticks_off()
        axes.legend(fontsize=8, title="exponents", title_fontsize=8, loc="upper left")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.45)
        most = exponent.idxmax()
        axes.set_title(f"{most[0].upper()}{most[1:]}\ngrows fastest, power {exponent[most]:.2f}")
    return figure


def plot_peak(rates: pd.DataFrame) -> Figure:
    """Rate of a matrix product and of a training step."""
    figure, axes = plt.subplots(figsize=(8, 1.9))
    values = rates.set_index("rate").loc[["clipseg-operations", "matrix-product"], "value"].to_list()
    axes.barh(
        ["training step, CLIPSeg 352 px", "matrix product, 2048 × 2048"],
        values,
        color=[BLUE, GREY],
        height=0.55,
    )
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.0f}", va="center", fontsize=9)
    axes.set(xlabel="GFLOP per second, float32", xlim=(0, 1.12 * max(values)))
    axes.set_title(
        f"A training step does {values[0]:.0f} GFLOP per second, a large matrix product {values[1]:.0f}"
    )
    return figure


def plot_schedule(table: pd.DataFrame) -> Figure:
    """Which notebook ran when, in as many lanes as ran at once; `table`: of `execution.schedule`."""
    colours = {"01_cohort": BLUE, "02_synthesis": "#E69F00", "04_training": GREEN, "05_evaluation": "#56B4E9"}
    ends: list[float] = []  # of what runs last in each lane
    figure, axes = plt.subplots(figsize=(8, 2.2))
    for row in table.itertuples():
        free = [lane for lane, end in enumerate(ends) if end <= row.start]
        lane = free[0] if free else len(ends)
        ends[lane : lane + 1] = [row.end]
        colour = colours.get(row.notebook, "#999999")
        axes.barh(lane, row.end - row.start, left=row.start, color=colour, edgecolor="white", linewidth=0.3)
    whole = table["end"].max()
    busy = (table["end"] - table["start"]).sum() / (whole * len(ends))
    axes.set(xlabel="minutes", ylabel="job", yticks=range(len(ends)), yticklabels=range(1, len(ends) + 1))
    axes.invert_yaxis()
    named = (colours | {"others": "#999999"}).items()
    marks = [plt.Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in named]
    figure.legend(handles=marks, loc="outside right center", fontsize=8)
    figures.heading(
        figure, f"{len(table)} notebooks in {whole:.0f} minutes: {busy:.0%} of the jobs' time is work"
    )
    return figure
