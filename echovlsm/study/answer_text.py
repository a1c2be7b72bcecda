"""The answers of the study on real hearts in words: sentences, titles, and tables for a page.

Of what is not on record nothing is said, and one seed is no finding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from echovlsm.study.answers import (
    LEARNS_FROM_REAL,
    STRATEGIES,
    Records,
    budget_gains,
    convergence,
    doubling,
    patients_saved,
    table_gains,
    worth_of_words,
)
from echovlsm.study.differences import ONE_SEED, UNEQUAL
from echovlsm.study.plan import ALL, NOTHING

NAMES: dict[str, str] = {
    "nothing": "no synthetic images",
    "phantom": "phantoms first",
    "diffusion": "diffusion images first",
    "diffusion+phantom": "both kinds first",
    "diffusion-few": "diffusion of the same patients first",
    "synthetic": "synthetic images only",
    "joint": "both at once",
    "zeroshot": "not trained",
}
"""Arms in words."""

NAMES_OF_MODELS: dict[str, str] = {
    "cris": "CRIS",
    "clipseg": "CLIPSeg",
    "unet": "The U-Net without words",
}
"""Models in words."""

WORDS: dict[str, str] = {
    "phantom": "phantoms, which need no annotation,",
    "diffusion": f"images of a diffusion model that learned from all {ALL} annotated patients",
    "diffusion+phantom": "both kinds of images",
    "diffusion-few": "images of a diffusion model that learned from the same few patients",
}
"""What the first cycle of an arm learned from, in a sentence."""


# -- tables and titles for a page ------------------------------------------------------------------------


def points(value: float) -> str:
    """A difference of Dice in points, with its sign."""
    return f"{100 * value:+.1f}"


def readable(table: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Differences of `judge` in words and points: `where` they are, gain, interval, seeds, p, verdict."""
    if table.empty:
        return table
    shown = table[list(where)].replace({"arm": NAMES, "model": NAMES_OF_MODELS})
    shown["gain"] = table["gain"].map(points)
    pairs = zip(table["low"].map(points), table["high"].map(points), strict=True)
    shown["95 % interval"] = [f"{low} to {high}" for low, high in pairs]
    shown["seeds"] = table["seeds"]
    told = [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in table["p_holm"]]
    untold = table["verdict"].isin([ONE_SEED, UNEQUAL])  # no finding, whatever its p
    shown["p (Holm)"] = np.where(untold, "–", told)
    shown["verdict"] = table["verdict"]
    return shown


def readable_steps(table: pd.DataFrame) -> pd.DataFrame:
    """`convergence` in words: one row a model, prompt and strategy, medians over seeds."""
    rows = []
    if table.empty:
        return table
    for (model, prompt, strategy), part in table.groupby(["model", "prompt", "strategy"], sort=False):
        middle = part[["real", "alone", "whole", "faster_alone", "faster_whole"]].median()
        steps = [
            "not reached" if math.isinf(middle[key]) else f"{middle[key]:.0f}" for key in middle.index[:3]
        ]
        ratios = [f"{ratio:.2f} ×" if ratio else "–" for ratio in list(middle)[3:]]
        row = {"model": NAMES_OF_MODELS[model], "prompt": prompt, "strategy": strategy, "seeds": len(part)}
        words = (
            "steps of real",
            "steps without pretraining's",
            "steps with them",
            "sooner without",
            "with them",
        )
        rows.append(row | dict(zip(words, [*steps, *ratios], strict=True)))
    return pd.DataFrame(rows)


def paper_shape(cells: pd.DataFrame) -> pd.DataFrame:
    """`table_cells` as the paper prints them: a row a model and strategy, a column a prompt; text."""
    order = ("P0", "P1", "P2", "P3", "P7*")

    def told(row: Any) -> str:
        if math.isnan(row.dice):
            return "–"
        few = f" ({row.seeds} of {row.planned} seeds)" if row.seeds < row.planned else ""
        return f"{100 * row.dice:.1f}{few}"

    texts = cells.assign(
        text=[told(row) for row in cells.itertuples()], model=cells["model"].map(NAMES_OF_MODELS)
    )
    wide = texts.pivot(index=["model", "strategy"], columns="prompt", values="text")
    rows = texts[["model", "strategy"]].drop_duplicates().itertuples(index=False, name=None)
    index = pd.MultiIndex.from_tuples(sorted(rows, key=lambda row: _place(*row)), names=["model", "strategy"])
    return wide.reindex(index)[[name for name in order if name in wide]].fillna("N/A")


def _place(model: str, strategy: str) -> tuple[int, int]:
    return list(NAMES_OF_MODELS.values()).index(model), list(STRATEGIES.values()).index(strategy)


def learning_curves(records: Records, model: str = "cris", prompt: str = "P1") -> dict[str, pd.DataFrame]:
    """Looks of `real` and the pretrained arms at all patients; steps of both cycles."""
    found: dict[str, list[pd.DataFrame]] = {}
    rows = records.select(model=model, prompt=prompt, encoders="unfrozen", patients=ALL)
    rows = rows[rows["arm"].isin(LEARNS_FROM_REAL)]
    for name, arm, seed in zip(rows["name"], rows["arm"], rows["seed"], strict=True):
        before = 0
        for cycle in records.found[name]["cycles"]:
            steps = [before + step for step in cycle["step"]]
            before += cycle["steps"]
            looks = pd.DataFrame({"seed": seed, "step": steps, "dice": cycle["dice"]})
            found.setdefault(arm, []).append(looks)
    return {arm: pd.concat(tables, ignore_index=True) for arm, tables in found.items()}


def budget_title(gains: pd.DataFrame) -> str:
    """What the budget's figure shows, as its title."""
    rows = gains[gains["arm"] == "phantom"] if len(gains) else gains
    if rows.empty or rows["seeds"].max() < 2:
        return "One seed so far: no finding yet"
    higher = rows[rows["verdict"] == "higher"]["patients"]
    if higher.empty:
        return "Phantoms first: no gain shown at equal compute"
    return f"Phantoms first help with {', '.join(map(str, higher))} annotated patients"


def doubling_title(records: Records) -> str:
    """What twice the steps of the recipe add, as a figure's title."""
    table = doubling(records)
    recipe = records.recipe
    usual = table[np.isclose(table["rate"], recipe.rate) & (table["image_size"] == recipe.image_size)]
    wide = usual.pivot_table(index=["arm", "patients"], columns="steps", values="dice")
    steps = recipe.first + recipe.second
    gap = (
        (wide[2 * steps] - wide[steps]).dropna()
        if {steps, 2 * steps} <= set(wide.columns)
        else wide.iloc[:0, 0]
    )
    gap = gap[gap.index.get_level_values("arm") == NOTHING]
    if gap.empty:
        return "Trials of one seed each; the recipe's own steps are not among them yet"
    told = ", ".join(f"{points(value)} at {size}" for (_, size), value in gap.items())
    return f"Twice the steps add {told} patients (points; one seed)"


def size_sentence(records: Records) -> str:
    """What a larger image gains at half the recipe's steps, and why it is not taken; empty without record."""
    table, recipe = doubling(records), records.recipe
    if table.empty:
        return ""
    half = table[(table["steps"] == (recipe.first + recipe.second) // 2) & (table["arm"] == NOTHING)]
    half = half[np.isclose(half["rate"], recipe.rate)]
    wide = half.pivot_table(index="patients", columns="image_size", values="dice").dropna()
    larger = [size for size in wide.columns if size > recipe.image_size]
    if wide.empty or not larger:
        return ""
    side = larger[0]
    told = " and ".join(
        f"{row[side]:.3f} instead of {row[recipe.image_size]:.3f} with {patients} patients"
        for patients, row in wide.iterrows()
    )
    return (
        f"The size of the images counts: with {side} pixels a side {half['steps'].iloc[0]:,} steps give "
        f"{told} (one seed), at {(side / recipe.image_size) ** 2:.3g} times the cost. The study stays at "
        f"{recipe.image_size} pixels, so that all of it can be run on a processor; what it says holds for "
        "small images."
    )


# -- sentences ------------------------------------------------------------------------------------------


def gain(row: Any) -> str:
    """A difference of `judge` in points, with its interval."""
    return f"{points(row.gain)} ({points(row.low)} to {points(row.high)})"


def progress(records: Records) -> str:
    """How much of the study is on record."""
    return (
        f"{len(records.plan) - len(records.missing)} of {len(records.plan)} runs of the study are on record"
    )


def left_out(records: Records) -> str:
    """What is missing, in sentences with the command that makes it; empty where nothing is."""
    if not records.missing:
        return ""
    told = []
    for block in dict.fromkeys(run.part for run in records.plan):
        mine = [run for run in records.plan if run.part == block]
        gaps = sum(run.name not in records.found for run in mine)
        if gaps:
            told.append(f"`{block}` lacks {gaps} of {len(mine)}")
    return (
        f"{progress(records)}. By part: {', '.join(told)}. What is missing is shown as no result; "
        "`echovlsm study --cohort /path/to/CAMUS_public` goes on with it."
    )


def _by_verdict(rows: pd.DataFrame, at: str) -> str:
    """Gains of one arm in words: what is a finding with its interval, what is not by its place alone."""
    parts = []
    for verdict, words in (("higher", "raises Dice by"), ("lower", "lowers it by")):
        found = rows[rows["verdict"] == verdict]
        if len(found):
            told = ", ".join(f"{gain(row)} at {getattr(row, at)}" for row in found.itertuples())
            parts.append(f"{words} {told}")
    rest = rows[rows["verdict"] == "no difference shown"]
    if len(rest):
        parts.append(f"shows no difference at {', '.join(map(str, rest[at]))}")
    return "; ".join(parts)


def budget_sentences(records: Records) -> list[str]:
    """What each kind of synthetic images adds at equal compute; an arm of one seed is not told."""
    gains = budget_gains(records)
    if gains.empty:
        return []
    several = gains[gains["seeds"] > 1]
    return [
        f"Pretraining on {WORDS[arm]} {_by_verdict(part, 'patients')} annotated patients (points of Dice, "
        "equal compute)."
        for arm, part in several.groupby("arm", sort=False)
    ]


def saved_sentence(records: Records) -> str:
    """What pretraining on phantoms is worth in annotated patients; empty until the curve is whole."""
    saved = patients_saved(records)
    if saved.empty:
        return ""
    rows = saved[(saved["arm"] == "phantom") & (saved["seeds"] > 1)]
    told = [
        f"{row.patients} patients with phantoms give what {_patients(row.worth)} give without "
        f"({_patients(row.low)} to {_patients(row.high)})"
        for row in rows.itertuples()
        if row.patients < ALL
    ]
    return f"In annotated patients: {'; '.join(told)}." if told else ""


def _patients(count: float) -> str:
    return f"more than {ALL}" if math.isinf(count) else f"{count:.0f}"


def table_sentences(records: Records) -> list[str]:
    """Each strategy of the paper's table against `real` at P1, with its interval."""
    gains = table_gains(records)
    if gains.empty:
        return []
    several = gains[(gains["seeds"] > 1) & (gains["prompt"] == "P1")]
    return [
        f"{NAMES_OF_MODELS[model]}, all annotated patients, P1, against `real`: {_strategies(part)}."
        for model, part in several.groupby("model", sort=False)
    ]


def _strategies(rows: pd.DataFrame) -> str:
    return "; ".join(f"`{row.strategy}` {gain(row)}, {row.verdict}" for row in rows.itertuples())


def convergence_sentence(records: Records) -> str:
    """How much sooner a pretrained model arrives, with and without its pretraining's steps."""
    table = convergence(records)
    if table.empty:
        return ""
    told = []
    for (model, strategy), part in table.groupby(["model", "strategy"], sort=False):
        if part["seed"].nunique() < 2:
            continue
        alone, whole = part["faster_alone"].median(), part["faster_whole"].median()
        told.append(f"{NAMES_OF_MODELS[model]}, `{strategy}`: {alone:.2f} × without, {whole:.2f} × with them")
    if not told:
        return ""
    return (
        "Steps to `real`'s final Dice less a point, pretraining's steps not counted and counted (median over "
        f"prompts and seeds; 0: not reached): {'; '.join(told)}."
    )


def words_sentence(records: Records) -> str:
    """What words add beyond the structure's name, and what any words add to none."""
    table = worth_of_words(records)
    if table.empty:
        return ""
    told = [
        f"{NAMES_OF_MODELS[row.model]}, {row.comparison}: {gain(row)}"
        + (" (one seed)" if row.verdict == "one seed" else f", {row.verdict}")
        for row in table.itertuples()
    ]
    return f"What words are worth, in points of Dice: {'; '.join(told)}."


def findings(records: Records) -> list[str]:
    """Everything that the records say, a sentence each; of what is not on record there is none."""
    single = (saved_sentence(records), convergence_sentence(records), words_sentence(records))
    found = [*budget_sentences(records), single[0], *table_sentences(records), *single[1:]]
    return [sentence for sentence in found if sentence]


def headline(records: Records) -> str:
    """The sentence under the book's title: the budget's answer, or that it is not there yet."""
    gains = budget_gains(records)
    planned = {run.patients for run in records.plan if run.part == "budget" and run.arm == "phantom"}
    rows = gains[(gains["arm"] == "phantom") & (gains["seeds"] > 2)] if len(gains) else gains
    if rows.empty or set(rows["patients"]) != planned:
        return f"No answer on real hearts yet: {progress(records)}."
    higher = rows[rows["verdict"] == "higher"]
    if higher.empty:
        return (
            "On real echocardiograms, at equal compute and with a small model, pretraining on simulated ones "
            f"shows no gain at any number of annotated patients from {min(planned)} to {max(planned)}."
        )
    told = ", ".join(f"{gain(row)} with {row.patients}" for row in higher.itertuples())
    rest = rows[rows["verdict"] != "higher"]["patients"]
    beyond = f", and none is shown with {', '.join(map(str, rest))}" if len(rest) else ""
    return (
        "Yes, where annotations are few: at equal compute, a small model that first learned from simulated "
        f"echocardiograms outlines real hearts better by {told} annotated patients (points of Dice, 95 % "
        f"interval){beyond}."
    )
