"""What a grid found: one table of its complete cells, differences, sentences, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from echovlsm.base import RunFolder, figures, files, paths
from echovlsm.cohort import load_image, load_labels
from echovlsm.evaluation import scoring
from echovlsm.study.answers.words import gain
from echovlsm.study.differences import FINDINGS, NO_DIFFERENCE, ONE_SEED, UNEQUAL, difference, judge
from echovlsm.study.grid.cells import Grid, GridError, cell_seconds

if TYPE_CHECKING:
    from torch import Tensor

NO_WORDS = "no words"
"""What stands for the prompt of the text-blind reference in tables."""

_MODEL_MARKS: dict[str, str] = {"clipseg": "o", "cris": "s", "unet": "^"}


def collect(grid: Grid, folder: str | Path) -> dict[str, pd.DataFrame]:
    """The results of a grid's complete cells.

    Returns
    -------
    dict
        `scores` (one row a mask of the three structures; the text-blind reference has the prompt
        `NO_WORDS`), `histories` (one row an epoch, with the cell's columns), `cells` (one row a cell: its
        columns, `name`, `done`, `seconds`, `training_minutes`, `peak_memory_gib`, `date`).

    Raises
    ------
    GridError
        No cell is complete, or two were made at different scales, on different images or with other code.
    """
    scores, histories, cells, first = [], [], [], None
    for cell in grid.cells:
        run = RunFolder(paths.resolve(folder) / cell.name)
        record, seconds = run.record, cell_seconds(run)
        about = vars(cell) | {"name": cell.name, "done": seconds is not None, "seconds": seconds}
        cells.append(
            about | {key: record.get(key) for key in ("training_minutes", "peak_memory_gib", "date")}
        )
        if seconds is None:
            continue
        same = {
            "scale": record.get("scale"),
            "scored images": record["evaluation"].get("data_hash"),
            "code": record.get("code_hash"),
        }
        first = first or (cell.name, same)
        for key, value in same.items():
            if value != first[1][key]:
                raise GridError(
                    f"grid: {cell.name} and {first[0]} differ in {key} ({value}, {first[1][key]}), so that "
                    f"they cannot stand in one table; run `snakemake grid` again"
                )
        remedy = f"delete {run.path} and run `snakemake grid` again"
        table = files.read_table(run / "scores.parquet", GridError, remedy, ("model", "prompt", "dice"))
        scores.append(scoring.three_structures(table))
        if cell.strategy != "zeroshot":
            history = files.read_table(run / "history.csv", GridError, remedy, ("epoch", "val_dice"))
            histories.append(history.assign(**vars(cell)))
    if not scores:
        raise GridError(f"grid: no complete cell in {paths.resolve(folder)}; run `snakemake grid` first")
    table = pd.concat(scores, ignore_index=True)
    table["prompt"] = table["prompt"].mask(table["model"] == "unet", NO_WORDS)
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame()
    return {"scores": table, "histories": history, "cells": pd.DataFrame(cells)}


def costs(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds by model, strategy and encoders of the complete cells, for `cells.RECORDED_COSTS`."""
    done = cells[cells["done"]]
    return done.groupby(["model", "strategy", "encoders"], as_index=False)["seconds"].mean().round(2)


def gains(
    scores: pd.DataFrame, names: Sequence[str], base: str, column: str, by: Sequence[str]
) -> pd.DataFrame:
    """Values of a column less another, in each cell that has both with a common seed: one family.

    Parameters
    ----------
    scores
        Of `collect`.
    names, base
        Values of `column`; each of `names` less `base`.
    by
        Columns that make a cell.

    Returns
    -------
    DataFrame
        `column`, `by`, `dice` (mean of the former on the seeds that both have), and as of `judge`; empty
        where no cell has both.
    """
    rows = []
    for cell, part in scores.groupby(list(by), sort=False):
        arms = {
            name: own.groupby(["seed", "patient"])["dice"].mean().unstack("patient")
            for name, own in part.groupby(column)
        }
        for name in names:
            found = difference(arms[name], arms[base]) if {name, base} <= set(arms) else None
            if found:
                seeds = arms[name].index.intersection(arms[base].index)
                own = {column: name, **dict(zip(by, cell, strict=True))}
                rows.append({**own, "dice": float(arms[name].loc[seeds].to_numpy().mean()), **found})
    return judge(rows)


def at_equal_steps(table: pd.DataFrame, histories: pd.DataFrame) -> pd.DataFrame:
    """`gains` of strategies less `real`, where those of unequal steps are no findings.

    Parameters
    ----------
    table
        Of `gains`, by encoders, model and prompt.
    histories
        Of `collect`; the steps of a finetuning are its own and those of the strategy `synthetic`.

    Returns
    -------
    DataFrame
        The table with the verdict `UNEQUAL` where a strategy and `real` did not take equally many.
    """
    if table.empty:
        return table
    steps = histories.groupby(["encoders", "model", "strategy"])["step"].max().unstack("strategy")
    if (tuned := "synth-PT:real-FT") in steps:
        steps[tuned] += steps.get("synthetic", float("nan"))
    equal = [
        steps.loc[(row.encoders, row.model), row.strategy] == steps.loc[(row.encoders, row.model), "real"]
        for row in table.itertuples()
    ]
    return table.assign(verdict=table["verdict"].where(equal, UNEQUAL))


# -- sentences ------------------------------------------------------------------------------------------


def told_of_verdicts(table: pd.DataFrame) -> str:
    """How often each verdict stands in a family of differences, in words."""
    counts = table["verdict"].value_counts()
    verdicts = (*FINDINGS, NO_DIFFERENCE, ONE_SEED, UNEQUAL)
    parts = [f"{verdict} in {counts[verdict]}" for verdict in verdicts if verdict in counts]
    return f"{', '.join(parts)} of {len(table)} comparisons"


def told_of_gains(table: pd.DataFrame) -> list[str]:
    """What each strategy changes against `real`, a sentence each; `table`: of `gains`."""
    told = []
    for strategy, part in table.groupby("strategy", sort=False) if len(table) else ():
        found = []
        for row in part[part["verdict"].isin(FINDINGS)].itertuples():
            where = "" if row.model == "unet" else f" at {row.prompt}"
            found.append(f"{figures.MODEL_NAMES[row.model]}{where} {gain(row)}")
        each = f": {', '.join(found)} points" if found else ""
        told.append(f"`{strategy}` against `real`: {told_of_verdicts(part)}{each}.")
    return told


def told_of_models(scores: pd.DataFrame) -> str:
    """The models' mean Dice where all read words and learn from real images alone, in a sentence."""
    fair = scores.query("strategy == 'real' and encoders == 'unfrozen' and prompt != 'P0'")
    means = fair.groupby("model")["dice"].mean()
    told = ", ".join(f"{figures.MODEL_NAMES[name]} {100 * dice:.1f}" for name, dice in means.items())
    return f"Mean Dice of `real`, unfrozen, prompts with words: {told} (reads no words)."


def _told_of_words(effects: pd.DataFrame) -> str:
    """What a false structure and the worst other false word cost each model, as a title."""
    told = []
    for model, part in effects.groupby("model", sort=False):
        mean = part.set_index("swapped")["mean"]
        others = mean.drop("structure", errors="ignore")
        worst = f", {others.idxmin()} {-100 * others.min():.1f}" if len(others) and others.min() < 0 else ""
        told.append(
            f"{figures.MODEL_NAMES[model]}: structure {-100 * mean.get('structure', np.nan):.0f}{worst}"
        )
    return f"What a false word costs, in points. {'; '.join(told)}"


# -- figures --------------------------------------------------------------------------------------------


def _short(strategy: str) -> str:
    """A strategy's name in figures."""
    return strategy.replace("synth-PT:real-FT", "PT-FT")


def plot_differences(table: pd.DataFrame) -> Figure:
    """Strategies less `real` by prompt with intervals, one panel a model; what is no finding is hollow.

    `table` is of `gains`, by model and prompt.
    """
    models = list(dict.fromkeys(table["model"]))
    names = list(dict.fromkeys(table["strategy"]))
    # a panel has the prompts of its model alone and is as wide as they need
    asked = {model: sorted(part["prompt"].unique()) for model, part in table.groupby("model")}
    widths = [len(asked[model]) for model in models]
    size = (2.2 + 1.3 * sum(widths), 3.6)
    ratios = {"width_ratios": widths}
    figure, axes = plt.subplots(1, len(models), figsize=size, sharey=True, squeeze=False, gridspec_kw=ratios)
    for axis, model in zip(axes[0], models, strict=True):
        axis.axhline(0, color="#333333", linewidth=0.8)
        for row in table[table["model"] == model].itertuples():
            shift = 0.16 * (names.index(row.strategy) - (len(names) - 1) / 2)
            place = asked[model].index(row.prompt) + shift
            colour = figures.STRATEGY_COLOURS[row.strategy]
            bars = [[100 * (row.gain - row.low)], [100 * (row.high - row.gain)]]
            fill = colour if row.verdict in FINDINGS else "white"
            style = {"color": colour, "mfc": fill, "fmt": _MODEL_MARKS[model]}
            axis.errorbar(place, 100 * row.gain, bars, **style)
        axis.set_title(figures.MODEL_NAMES[model])
        axis.set_xticks(range(len(asked[model])), asked[model])
        axis.set_xlim(-0.5, len(asked[model]) - 0.5)
    axes[0, 0].set_ylabel("difference, points of Dice")
    marks = [
        plt.Line2D([], [], color=figures.STRATEGY_COLOURS[name], marker="o", label=_short(name))
        for name in names
    ]
    hollow = plt.Line2D([], [], color="#333333", marker="o", mfc="white", linestyle="", label="no finding")
    figure.legend(handles=[*marks, hollow], loc="outside right upper", fontsize=8)
    figures.heading(figure, f"Strategy less real: {told_of_verdicts(table)}")
    return figure


def plot_convergence(histories: pd.DataFrame, target: float) -> Figure:
    """Validation Dice over steps, mean and range over prompts and seeds, one panel a model."""
    chosen = histories[histories["encoders"] == "unfrozen"]
    models = list(dict.fromkeys(chosen["model"]))
    figure, axes = plt.subplots(1, len(models), figsize=(3.4 * len(models), 3.4), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for strategy, part in chosen[chosen["model"] == model].groupby("strategy"):
            curve = part.groupby("step")["val_dice"].agg(["mean", "min", "max"])
            colour = figures.STRATEGY_COLOURS[strategy]
            axis.fill_between(curve.index, curve["min"], curve["max"], color=colour, alpha=0.12, linewidth=0)
            axis.plot(curve.index, curve["mean"], "-o", markersize=3, color=colour, label=_short(strategy))
        axis.axhline(target, color="#333333", linestyle=":", linewidth=1)
        axis.set(xlabel="step of this training", ylim=(0, 1), title=figures.MODEL_NAMES[model])
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel("validation Dice")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    ends = chosen.sort_values("step").groupby(["model", "prompt", "strategy", "seed"])["val_dice"]
    late = (ends.last() - ends.apply(lambda values: values.iloc[-1 - len(values) // 4])).mean()
    figures.heading(figure, f"The last quarter of the steps adds {100 * late:+.1f} points on average")
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
            figures.plot_matrix(axis, matrix, f"{figures.MODEL_NAMES[model]}, {prompt}")
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
            points[0], place, xerr=np.abs(points[1:] - points[0]), label=figures.MODEL_NAMES[model], **style
        )
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("change of Dice when this word is false, points")
    figure.legend(loc="outside right center", fontsize=8)
    figures.heading(figure, _told_of_words(effects))
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
        figures.show_image(axis, load_image(frames.iloc[place]))
        figures.outline_labels(axis, labels)
        figures.outline(axis, scoring.to_mask(logits[place, 0], labels.shape).numpy(), "#FFFFFF", dashed=True)
    figures.structure_legend(figure)
    figures.heading(figure, title)
    return figure
