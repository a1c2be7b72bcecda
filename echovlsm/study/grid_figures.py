"""Figures of notebook 06: differences by prompt, convergence, what each prompt finds. Titles are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from echovlsm.base import figures
from echovlsm.cohort import load_image, load_labels
from echovlsm.evaluation import to_mask

if TYPE_CHECKING:
    from torch import Tensor

MODEL_NAMES: dict[str, str] = {"clipseg": "CLIPSeg", "cris": "CRIS", "unet": "U-Net"}
_MODEL_MARKS: dict[str, str] = {"clipseg": "o", "cris": "s", "unet": "^"}
_STRATEGY_NAMES: dict[str, str] = {"synth-PT:real-FT": "PT-FT"}


def short(strategy: str) -> str:
    """A strategy's name in figures."""
    return _STRATEGY_NAMES.get(strategy, strategy)


def plot_differences(tables: Mapping[str, pd.DataFrame], what: str) -> Figure:
    """Differences of Dice by prompt, one panel a model, with intervals over patients.

    Parameters
    ----------
    tables
        Strategy to a table of `statistics.compare` by model and prompt.
    what
        What is subtracted from what, for axis and title.
    """
    together = pd.concat(tables, names=["strategy"]).reset_index("strategy")
    models = list(dict.fromkeys(together["model"]))
    # a panel has the prompts of its model alone and is as wide as they need
    asked = {model: sorted(part["prompt"].unique()) for model, part in together.groupby("model")}
    widths = [len(asked[model]) for model in models]
    figure, axes = plt.subplots(
        1,
        len(models),
        figsize=(1.6 + 1.15 * sum(widths), 3.6),
        sharey=True,
        squeeze=False,
        gridspec_kw={"width_ratios": widths},
    )
    for axis, model in zip(axes[0], models, strict=True):
        prompts = asked[model]
        axis.axhline(0, color="#333333", linewidth=0.8)
        for number, (strategy, table) in enumerate(tables.items()):
            part = table[table["model"] == model]
            place = np.array([prompts.index(prompt) for prompt in part["prompt"]], dtype=float)
            place += 0.16 * (number - (len(tables) - 1) / 2)
            points = 100 * part[["difference", "low", "high"]].to_numpy(dtype=float).T
            style = {"color": figures.STRATEGY_COLOURS[strategy], "label": short(strategy)}
            bars = np.abs(points[1:] - points[0])
            axis.errorbar(place, points[0], bars, fmt=_MODEL_MARKS[model], **style)
        axis.set_title(MODEL_NAMES[model])
        axis.set_xticks(range(len(prompts)), prompts)
        axis.set_xlim(-0.5, len(prompts) - 0.5)
    axes[0, 0].set_ylabel("difference, points of Dice")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if len(tables) > 1:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    up = (together["difference"] > 0).sum()
    clear = (together["low"] > 0).sum()
    told = f"{what}: higher in {up} of {len(together)} cells, beyond the interval in {clear}"
    figures.heading(figure, told)
    return figure


def plot_convergence(histories: pd.DataFrame, target: float, encoders: str = "unfrozen") -> Figure:
    """Validation Dice over epochs, mean and range over prompts and seeds, one panel a model."""
    chosen = histories[histories["encoders"] == encoders]
    models = list(dict.fromkeys(chosen["model"]))
    figure, axes = plt.subplots(1, len(models), figsize=(3.4 * len(models), 3.4), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for strategy, part in chosen[chosen["model"] == model].groupby("strategy"):
            curve = part.groupby("epoch")["val_dice"].agg(["mean", "min", "max"])
            colour = figures.STRATEGY_COLOURS[strategy]
            axis.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.12, linewidth=0)
            axis.plot(curve.index, curve["mean"], "-o", markersize=3, color=colour, label=short(strategy))
        axis.axhline(target, color="#333333", linestyle=":", linewidth=1)
        axis.set(xlabel="epoch", ylim=(0, 1), title=MODEL_NAMES[model])
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("validation Dice")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    first = chosen[chosen["epoch"] == 1].groupby("strategy")["val_dice"].mean()
    told = f"After one epoch, {encoders}: " + ", ".join(
        f"{short(name)} {first[name]:.2f}" for name in ("real", "synth-PT:real-FT") if name in first
    )
    figures.heading(figure, told)
    return figure


def plot_prompt_matrices(matrices: Mapping[tuple[str, str], pd.DataFrame]) -> Figure:
    """Dice of each prompt's mask with each structure, one small matrix a model (row) and prompt (column).

    `matrices` maps (model, prompt level) to a table as notebook 05 writes it, structures by structures.
    """
    models = list(dict.fromkeys(model for model, _ in matrices))
    prompts = sorted({prompt for _, prompt in matrices})
    size = (2.7 * len(prompts) + 1, 2.7 * len(models) + 0.6)
    figure, axes = plt.subplots(len(models), len(prompts), figsize=size, squeeze=False)
    gaps = {}
    for row, model in enumerate(models):
        for column, prompt in enumerate(prompts):
            axis, matrix = axes[row, column], matrices.get((model, prompt))
            if matrix is None:
                axis.axis("off")
                continue
            values = matrix.to_numpy()
            right = values.trace() / 3
            gaps[model, prompt] = right - (values.sum() - 3 * right) / 6
            figures.plot_matrix(axis, matrix, f"{MODEL_NAMES[model]}, {prompt}")
            if column:
                axis.set_yticklabels([])
            if row < len(models) - 1:
                axis.set_xticklabels([])
            if row == len(models) - 1:
                axis.set_xlabel("reference mask")
            if column == 0:
                axis.set_ylabel("prompt asks for")
    without = np.mean([gap for (_, prompt), gap in gaps.items() if prompt == "P0"] or [np.nan])
    with_words = np.mean([gap for (_, prompt), gap in gaps.items() if prompt != "P0"] or [np.nan])
    told = f"Right minus wrong structure: {with_words:.2f} with words, {without:.2f} with the empty prompt"
    figures.heading(figure, told)
    return figure


def plot_word_effects(effects: pd.DataFrame) -> Figure:
    """Change of Dice when one attribute is made false; `effects`: `statistics.summary` by model, swapped."""
    names = list(dict.fromkeys(effects["swapped"]))
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.4 * len(names)))
    models = list(dict.fromkeys(effects["model"]))
    for number, model in enumerate(models):
        part = effects[effects["model"] == model].set_index("swapped").reindex(names)
        points = 100 * part[["mean", "low", "high"]].to_numpy(dtype=float).T
        place = np.arange(len(names)) + 0.2 * (number - (len(models) - 1) / 2)
        fill = "#333333" if number == 0 else "white"
        style = {"fmt": _MODEL_MARKS[model], "color": "#333333", "mfc": fill}
        axes.errorbar(
            points[0], place, xerr=np.abs(points[1:] - points[0]), label=MODEL_NAMES[model], **style
        )
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("change of Dice when this word is false, points")
    figure.legend(loc="outside right center", fontsize=8)
    mean = effects.groupby("swapped")["mean"].mean()
    others = mean.drop("structure", errors="ignore")
    told = f"A false structure costs {-100 * mean.get('structure', np.nan):.0f} points"
    told = f"{told}, any other false word at most {max(0, -100 * others.min()):.1f}"
    figures.heading(figure, told)
    return figure


def plot_union(frames: pd.DataFrame, logits: Tensor, places: Sequence[int], title: str) -> Figure:
    """Images with reference outlines and, in white, the mask that the empty prompt gives.

    Parameters
    ----------
    frames, logits
        Images with masks, and the answers float (N, S, h, w) about them; the S answers are alike.
    places
        Which images, by their place in `frames`.
    title
        Heading of the figure.
    """
    figure, axes = plt.subplots(1, len(places), figsize=(2.9 * len(places), 3.3), squeeze=False)
    for axis, place in zip(axes[0], places, strict=True):
        labels = load_labels(frames.iloc[place])
        figures.show_picture(axis, load_image(frames.iloc[place]))
        figures.outline_labels(axis, labels)
        figures.outline(axis, to_mask(logits[place, 0], labels.shape).numpy(), "#FFFFFF", dashed=True)
    figures.structure_legend(figure)
    figures.heading(figure, title)
    return figure


def told_of_gain(strategy: str, comparison: pd.DataFrame) -> str:
    """What a strategy changes against `real`, in a sentence; `comparison` is of `statistics.compare`."""
    up, clear = (comparison["difference"] > 0).sum(), (comparison["low"] > 0).sum()
    points = 100 * comparison["difference"].mean()
    return (
        f"`{strategy}` minus `real`: {points:+.1f} points of Dice on average, higher in {up} of "
        f"{len(comparison)} cells, beyond the interval over patients in {clear}."
    )


def told_of_models(scores: pd.DataFrame) -> str:
    """The models' mean Dice where all read words and learn from real images alone, in a sentence."""
    fair = scores.query("strategy == 'real' and encoders == 'unfrozen' and prompt != 'P0'")
    means = fair.groupby("model")["dice"].mean()
    told = ", ".join(f"{MODEL_NAMES[name]} {100 * dice:.1f}" for name, dice in means.items())
    return f"Mean Dice of `real`, unfrozen, prompts with words: {told} (no words)."
