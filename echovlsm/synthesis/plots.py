"""The figures of notebook 02. Each returns a figure whose title states what the data say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from echovlsm.base import figures
from echovlsm.synthesis.measures import ImageSet, radial_spectrum, tissue_histograms
from echovlsm.synthesis.trial import MEASURES

LINES: dict[str, str] = {"source": "-", "synthetic": "--"}
COLOURS: dict[str, str] = {"source": "#000000", "synthetic": figures.STRATEGY_COLOURS["synthetic"]}


def plot_maps(maps: Sequence[np.ndarray]) -> Figure:
    """A source sector map and its perturbations."""
    figure, axes = plt.subplots(1, len(maps), figsize=(11, 2.5))
    for number, (axis, sector_map) in enumerate(zip(axes, maps, strict=True)):
        figures.show_sector_map(axis, sector_map, f"perturbation {number}" if number else "source")
    outside = all(np.array_equal(maps[0] == 0, other == 0) for other in maps)
    sector = "the sector does not" if outside else "and so does the sector"
    figures.structure_legend(figure)
    figures.heading(figure, f"A label map and its perturbations: the anatomy moves, {sector}")
    return figure


def plot_denoiser_history(history: pd.DataFrame) -> Figure:
    """Loss of a denoiser's training over its steps."""
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.plot(history["step"], history["loss"], color="#000000", label="training")
    label = "validation (averaged weights)"
    axes.plot(history["step"], history["val_loss"], color="#000000", linestyle="--", label=label)
    axes.set(xlabel="optimiser step", ylabel="loss of the prediction", yscale="log")
    best = history["val_loss"].min()
    late = history.loc[history["val_loss"] <= 1.02 * best, "step"]
    last = (
        f"The validation loss is within 2 % of its best from step {late.iloc[0]:,} on"
        if len(late)
        else "The loss"
    )
    axes.set_title(last)
    axes.legend()
    return figure


def plot_samples(source: ImageSet, samples: np.ndarray) -> Figure:
    """For each source image its label map and `samples` uint8 (N, K, H, W) drawn from that map."""
    count, each = samples.shape[:2]
    figure, axes = plt.subplots(count, each + 2, figsize=(11, 1.9 * count), squeeze=False)
    titles = ["label map", "source image", *(f"sample {number + 1}" for number in range(each))]
    for row, line in enumerate(axes):
        names = titles if row == 0 else [""] * len(titles)
        figures.show_sector_map(line[0], source.maps[row], names[0])
        for axis, image, name in zip(line[1:], [source.images[row], *samples[row]], names[1:], strict=True):
            figures.show_image(axis, image, name)
    between = samples.astype(float).std(axis=1)[source.maps > 0].mean()
    figures.heading(
        figure,
        f"Held-out label maps: one anatomy, samples {between:.0f} grey levels (sd) apart in the sector",
    )
    return figure


def plot_fidelity(sets: Mapping[str, ImageSet], report: pd.DataFrame) -> Figure:
    """Grey levels of each tissue and the power spectrum, source against synthetic."""
    figure, grid = plt.subplots(2, 3, figsize=(9, 5))
    *axes, legend = grid.ravel()
    legend.axis("off")
    for name, colour in COLOURS.items():
        edges, histograms = tissue_histograms(sets[name].images, sets[name].maps)
        for axis, (tissue, values) in zip(axes, histograms.items(), strict=False):
            axis.stairs(values, edges, color=colour, label=name, linestyle=LINES[name])
            axis.set(xlabel="grey level", yticks=[])
            axis.set_title(figures.SHORT_NAMES.get(tissue, tissue), fontweight="normal")
        frequencies, power = radial_spectrum(sets[name].images)
        cycles = frequencies * sets[name].images.shape[1]
        axes[-1].plot(cycles, power.mean(axis=0), color=colour, linestyle=LINES[name])
    axes[-1].set(xlabel="cycles per image", ylabel="dB")
    axes[-1].set_title("power spectrum", fontweight="normal")
    legend.legend(*axes[0].get_legend_handles_labels(), loc="center")
    rows = report[report["measure"].str.startswith("grey")].set_index("measure")
    worst = rows["value"].idxmax()
    tissue = worst.removeprefix("grey levels, ")
    figures.heading(
        figure,
        f"Grey levels differ most in the {tissue}: by {rows.loc[worst, 'value']:.1f}, "
        f"where halves of the source differ by {rows.loc[worst, 'floor']:.1f}",
    )
    return figure


def plot_samplers(trials: pd.DataFrame, drew: tuple[str, int] | None = None) -> Figure:
    """Each sampler's distance to the source against its time; the band is the first one's spread.

    `drew`: sampler and steps that drew the cohort, marked by a star.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 5.6))
    first = trials.iloc[0]
    for axis, name in zip(axes.ravel(), MEASURES, strict=True):
        value, spread = first[name], first[f"± {name}"]
        axis.axhspan(value - spread, value + spread, color="#E6E6E6")
        for sampler, group in trials.groupby("sampler", sort=False):
            group = group.sort_values("steps")
            seconds, colour = 1 / group["pictures a second"], figures.SAMPLER_COLOURS[str(sampler)]
            axis.errorbar(seconds, group[name], group[f"± {name}"], color=colour, linewidth=1, label=sampler)
            for x, y, steps in zip(seconds, group[name], group["steps"], strict=True):
                marker = "*" if (sampler, steps) == drew else "o"
                fill = "white" if steps <= 10 else colour
                axis.plot(
                    x, y, marker, color=colour, markerfacecolor=fill, markersize=9 if marker == "*" else 6
                )
        axis.annotate(f"{first['steps']} steps", (1 / first["pictures a second"], value), (-8, 6),
                      textcoords="offset points", fontsize=8, ha="right")  # fmt: skip
        axis.set(xscale="log", xlabel="seconds per image", ylabel="distance to the source")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(name, fontweight="normal")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    fast = chosen_solver(trials)
    figures.heading(
        figure,
        f"{fast['sampler']} in {fast['steps']} steps is {fast['speed-up']:.2g} times as fast as "
        f"{first['sampler']} in {first['steps']}",
    )
    return figure


def chosen_solver(trials: pd.DataFrame) -> pd.Series:
    """The row of the stochastic fast solver at 20 steps, or at the most it has."""
    rows = trials[trials["sampler"] == "sde-dpm-solver++"].sort_values("steps")
    twenty = rows[rows["steps"] == 20]
    return (twenty if len(twenty) else rows).iloc[-1]


def solver_against_ancestral(trials: pd.DataFrame) -> pd.DataFrame:
    """Distances of a fast solver beside those of the first sampler, on the same label maps."""
    first, fast = trials.iloc[0], chosen_solver(trials)
    slow, quick = (f"{row['sampler']}, {row['steps']} steps" for row in (first, fast))
    table = pd.DataFrame({slow: first[list(MEASURES)], quick: fast[list(MEASURES)]}).astype(float)
    table["difference"] = table[quick] - table[slow]
    table["spread of the difference"] = [float(fast[f"±d {measure}"]) for measure in MEASURES]
    return table


def plot_worst(images: ImageSet, found: np.ndarray, dice: pd.DataFrame) -> Figure:
    """The images in which a segmenter misses a structure most; `dice` is what `label_agreement` gives."""
    figure, axes = plt.subplots(1, 6, figsize=(12, 2.9))
    for axis in axes:
        axis.axis("off")
    least = dice.min(axis=1)
    for axis, index in zip(axes, least.nsmallest(len(axes)).index, strict=False):
        missed = figures.SHORT_NAMES[dice.loc[index].idxmin()]
        figures.show_image(axis, images.images[index], f"{missed}: Dice {least[index]:.2f}")
        figures.outline_labels(axis, images.labels[index])
        figures.outline_labels(axis, found[index], dashed=True)
    figures.structure_legend(figure, {"drawn from": "-", "found": "--"})
    low = (least < 0.5).mean()
    figures.heading(figure, f"{low:.1%} of the synthetic images lose a structure (Dice below 0.5): the worst")
    return figure
