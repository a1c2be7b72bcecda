"""The answers of the study on real hearts in words: sentences, titles, and tables for a page.

Of what is not on record nothing is said, and one seed is no finding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from echovlsm.base import figures
from echovlsm.study.answers.records import (
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
from echovlsm.study.differences import NO_DIFFERENCE, ONE_SEED, UNEQUAL
from echovlsm.study.plan import ALL, HELD_OUT, NOTHING, RATES, Run

NAMES: dict[str, str] = {
    "nothing": "no synthetic images",
    "phantom": "phantoms first",
    "diffusion": "diffusion images first",
    "diffusion+phantom": "both kinds first",
    "diffusion-few": "diffusion of the same patients first",
}
"""Arms of the annotation budget in words."""

WORDS: dict[str, str] = {
    "phantom": "phantoms, which need no annotation,",
    "diffusion": f"images of a diffusion model that learned from all {ALL} annotated patients",
    "diffusion+phantom": "both kinds of images",
    "diffusion-few": "images of a diffusion model that learned from the same few patients",
}
"""What the first cycle of an arm learned from, in a sentence."""


TAUGHT: dict[str, str] = {
    "synthetic": "diffusion images alone",
    "synth-PT:real-FT": NAMES["diffusion"],
    "phantom-PT:real-FT": NAMES["phantom"],
    "joint": "real and diffusion images mixed",
}
"""Strategies of the paper's table in words."""


UNFINISHED = 0.005
"""Dice that twice the steps may add to a model that counts as trained."""


# -- tables and titles for a page ------------------------------------------------------------------------


def points(value: float) -> str:
    """A difference of Dice in points, with its sign; a zero has none."""
    told = f"{100 * value:+.1f}"
    return told if told.strip("+-") != "0.0" else "0.0"


def readable(table: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Differences of `judge` in words and points: `where` they are, gain, interval, seeds, p, verdict."""
    if table.empty:
        return table
    shown = table[list(where)].replace({"arm": NAMES, "model": figures.MODEL_NAMES})
    shown["gain"] = table["gain"].map(points)
    shown["95 % interval"] = table["low"].map(points) + " to " + table["high"].map(points)
    shown["seeds"] = table["seeds"]
    told = [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in table["p_holm"]]
    untold = table["verdict"].isin([ONE_SEED, UNEQUAL])  # no finding, whatever its p
    shown["p (Holm)"] = np.where(untold, "–", told)
    shown["verdict"] = table["verdict"]
    return shown


def readable_steps(table: pd.DataFrame) -> pd.DataFrame:
    """`convergence` in words: one row a model, prompt and strategy, medians over seeds."""
    if table.empty:
        return table
    rows = []
    for (model, prompt, strategy), part in table.groupby(["model", "prompt", "strategy"], sort=False):
        middle = part[["real", "alone", "whole", "faster_alone", "faster_whole"]].median()
        real, alone, whole = (
            "not reached" if math.isinf(steps) else f"{steps:.0f}" for steps in middle.iloc[:3]
        )
        sooner, sooner_whole = (f"{ratio:.2f} ×" if ratio else "–" for ratio in middle.iloc[3:])
        rows.append(
            {
                "model": figures.MODEL_NAMES[model],
                "prompt": prompt,
                "strategy": strategy,
                "seeds": len(part),
                "real": real,
                "finetuning": alone,
                "in all": whole,
                "sooner, finetuning": sooner,
                "sooner, in all": sooner_whole,
            }
        )
    return pd.DataFrame(rows)


def paper_shape(cells: pd.DataFrame) -> pd.DataFrame:
    """`table_cells` as the paper prints them: a row a model and strategy, a column a prompt; text."""

    def told(row: Any) -> str:
        if math.isnan(row.dice):
            return "–"
        few = f" ({row.seeds} of {row.planned} seeds)" if row.seeds < row.planned else ""
        return f"{100 * row.dice:.1f}{few}"

    texts = cells.assign(
        text=[told(row) for row in cells.itertuples()],
        model=pd.Categorical(cells["model"].map(figures.MODEL_NAMES), figures.MODEL_NAMES.values()),
        strategy=pd.Categorical(cells["strategy"], STRATEGIES.values()),
    )
    wide = texts.set_index(["model", "strategy", "prompt"])["text"].unstack("prompt").sort_index()
    return wide[[name for name in ("P0", "P1", "P2", "P3", "P7*") if name in wide]].fillna("N/A")


def learning_curves(records: Records) -> dict[str, pd.DataFrame]:
    """Looks of CRIS at P1, `real` and the pretrained arms at all patients; steps of both cycles."""
    found: dict[str, list[pd.DataFrame]] = {}
    rows = records.select(model="cris", prompt="P1", encoders="unfrozen", patients=ALL)
    for row in rows[rows["arm"].isin(LEARNS_FROM_REAL)].itertuples():
        before = 0
        for cycle in records.found[row.name]["cycles"]:
            steps = [before + step for step in cycle["step"]]
            before += cycle["steps"]
            looks = pd.DataFrame({"seed": row.seed, "step": steps, "dice": cycle["dice"]})
            found.setdefault(row.arm, []).append(looks)
    return {arm: pd.concat(tables, ignore_index=True) for arm, tables in found.items()}


def _size_sentence(records: Records) -> str:
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


def _rates_sentence(records: Records) -> str:
    """The Dice of CLIPSeg at several rates, and what more steps at its own add; empty without record."""
    study = records.recipe.first + records.recipe.second
    runs = [run for run in records.plan if run.part == "rates" and run.name in records.found]
    trials = [run for run in runs if run.steps < study]
    if not trials:
        return ""
    told = ", ".join(f"{_held_out(records, run):.3f} with {run.recipe.rate:g}" for run in trials)
    model = trials[0].model
    sentence = (
        f"{figures.MODEL_NAMES[model]} has a learning rate of its own, {RATES[model]:g}: after "
        f"{trials[0].steps:,} steps with all patients its Dice is {told} (one seed). No pretraining was "
        "compared to choose it."
    )
    dice = by_steps(records, model)
    more = [f"{dice[steps]:.3f} after {steps:,} ({points(gain)})" for steps, gain in doublings(dice).items()]
    if more:
        sentence += f" Each time twice the steps give {', '.join(more)}; the study takes {study:,}."
    if unfinished(records, model):
        sentence += " It is not fully trained there, and what is said of it holds for that."
    return sentence


def _held_out(records: Records, run: Run) -> float:
    return float(records.by_patient(run.name, HELD_OUT).mean())


def by_steps(records: Records, model: str) -> dict[int, float]:
    """Dice of a model with a rate of its own after each number of steps tried (real images, P1, one seed)."""
    return {
        run.steps: _held_out(records, run)
        for run in records.plan
        if run.part in ("rates", "table")
        and (run.model, run.prompt, run.arm) == (model, "P1", NOTHING)
        and (run.seed, run.encoders, run.recipe.rate) == (0, "unfrozen", RATES.get(model))
        and run.name in records.found
    }


def doublings(dice: dict[int, float]) -> dict[int, float]:
    """What each number of steps adds to half of them, from few to many; empty where no half was tried."""
    return {steps: dice[steps] - dice[steps // 2] for steps in sorted(dice) if steps // 2 in dice}


def unfinished(records: Records, model: str) -> bool:
    """Whether the most steps on record still added more than half a point."""
    return next(reversed(doublings(by_steps(records, model)).values()), 0) > UNFINISHED


def recipe_sentences(records: Records) -> str:
    """What a larger image and other learning rates did: paragraphs, or nothing."""
    return "\n\n".join(filter(None, (_size_sentence(records), _rates_sentence(records))))


# -- sentences ------------------------------------------------------------------------------------------


def gain(row: Any) -> str:
    """A difference of `judge` in points, with its interval."""
    return f"{points(row.gain)} ({points(row.low)} to {points(row.high)})"


def several(table: pd.DataFrame) -> pd.DataFrame:
    """The differences of more than one seed."""
    return table[table["seeds"] > 1] if len(table) else table


def progress(records: Records) -> str:
    """How much of the study is on record."""
    return (
        f"{len(records.plan) - len(records.missing)} of {len(records.plan)} runs of the study are on record"
    )


def left_out(records: Records) -> str:
    """What is missing, with the command that makes it, and which devices made what is there."""
    told = f"{progress(records)}."
    if records.missing:
        planned = [run.part for run in records.plan]
        missing = [run.part for run in records.missing]
        parts = (
            f"`{part}` lacks {missing.count(part)} of {planned.count(part)}"
            for part in dict.fromkeys(missing)
        )
        told += (
            f" By part: {', '.join(parts)}. What is missing is shown as no result; "
            "`echovlsm study --cohort /path/to/CAMUS_public` goes on with it."
        )
    devices = Counter(str(record["device"]) for record in records.found.values()).most_common()
    if devices:
        told += f" By device: {'; '.join(f'{count} on {device}' for device, count in devices)}."
    if len(devices) > 1:
        told += (
            " Patients, their order and the augmentation are the same on each; rounding is not, so that a "
            "run made anew on another device ends a little higher or lower. Two arms of one seed may come "
            "from two devices."
        )
    return told


def _by_verdict(rows: pd.DataFrame) -> str:
    """Gains of one arm in words: what is a finding with its interval, what is not by its patients alone."""
    parts = []
    for verdict, words in (("higher", "raises Dice by"), ("lower", "lowers it by")):
        found = rows[rows["verdict"] == verdict]
        if len(found):
            told = ", ".join(f"{gain(row)} at {row.patients}" for row in found.itertuples())
            parts.append(f"{words} {told}")
    rest = rows[rows["verdict"] == NO_DIFFERENCE]
    if len(rest):
        parts.append(f"shows no difference at {', '.join(map(str, rest['patients']))}")
    return "; ".join(parts)


def budget_sentences(records: Records) -> list[str]:
    """What each kind of synthetic images adds at equal compute; an arm of one seed is not told."""
    gains = several(budget_gains(records))
    plan = Counter((run.arm, run.patients) for run in records.plan if run.part == "budget")
    told = []
    for arm, part in gains.groupby("arm", sort=False) if len(gains) else ():
        planned = [plan[arm, patients] for patients in part["patients"]]
        few = (
            f"; so far {span(part['seeds'])} of {span(planned)} seeds" if any(part["seeds"] < planned) else ""
        )
        told.append(
            f"Pretraining on {WORDS[arm]} {_by_verdict(part)} annotated patients "
            f"(points of Dice, equal compute{few})."
        )
    return told


def span(numbers: Iterable[int]) -> str:
    """The least and the largest number, or the only one."""
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least} to {most}"


def how_many(count: float) -> str:
    """How many patients something is worth."""
    return f"more than {ALL}" if math.isinf(count) else f"{count:.0f}"


def saved_sentence(records: Records) -> str:
    """What pretraining on phantoms is worth in annotated patients; empty until the curve is whole."""

    told = [
        f"{row.patients} patients with phantoms give what {how_many(row.worth)} give without "
        f"({how_many(row.low)} to {how_many(row.high)})"
        for row in several(patients_saved(records)).itertuples()
        if row.arm == "phantom" and row.patients < ALL
    ]
    return f"In annotated patients: {'; '.join(told)}." if told else ""


def table_sentences(records: Records) -> list[str]:
    """Each strategy of the paper's table against `real` at P1, with its interval."""
    told: dict[str, list[str]] = {}
    for row in several(table_gains(records)).itertuples():
        if row.prompt == "P1":
            told.setdefault(row.model, []).append(f"{TAUGHT[row.strategy]} {gain(row)}, {row.verdict}")
    return [
        f"{figures.MODEL_NAMES[model]} at P1 with all annotated patients, against real images alone: "
        f"{'; '.join(parts)}{' (not fully trained)' if unfinished(records, model) else ''}."
        for model, parts in told.items()
    ]


def convergence_sentence(records: Records) -> str:
    """How much sooner a pretrained model arrives at P1, by the steps of finetuning and by all."""
    table = convergence(records)
    table = table[table["prompt"] == "P1"]
    table = table[table.groupby(["model", "strategy"])["seed"].transform("nunique") > 1]
    if table.empty:
        return ""

    def told(ratios: pd.Series) -> str:
        return f"{ratios.median():.2f} ({ratios.min():.2f} to {ratios.max():.2f})"

    lead = "What pretraining saves of the steps"
    if table["faster_alone"].min() > 1 and table["faster_whole"].max() <= 1:
        lead = "Pretraining saved steps of finetuning but none in all, in every run"
    parts = "; ".join(
        f"{figures.MODEL_NAMES[model]}, {TAUGHT[strategy]}, {told(part['faster_alone'])} and "
        f"{told(part['faster_whole'])}"
        for (model, strategy), part in table.groupby(["model", "strategy"], sort=False)
    )
    return (
        f"{lead}. Times sooner than real images alone at their final Dice less a point, by the steps of "
        f"finetuning and by all steps (median of the seeds and their range; 0: never): {parts}."
    )


def words_sentence(records: Records) -> str:
    """What words add beyond the structure's name, and what any words add to none."""
    told = [
        f"{figures.MODEL_NAMES[row.model]}, {row.comparison}: {gain(row)}"
        + (" (one seed)" if row.verdict == ONE_SEED else f", {row.verdict}")
        for row in worth_of_words(records).itertuples()
    ]
    return f"What words are worth, in points of Dice: {'; '.join(told)}." if told else ""


def findings(records: Records) -> list[str]:
    """Everything that the records say, a sentence each; of what is not on record there is none."""
    found = [*budget_sentences(records), saved_sentence(records), *table_sentences(records)]
    found += [convergence_sentence(records), words_sentence(records)]
    return [sentence for sentence in found if sentence]


def headline(records: Records) -> str:
    """The sentence under the book's title: the budget's answer, a first one, or that there is none yet."""
    gains = budget_gains(records)
    planned = {run.patients for run in records.plan if run.part == "budget" and run.arm == "phantom"}
    rows = gains[(gains["arm"] == "phantom") & (gains["seeds"] > 2)] if len(gains) else gains
    if rows.empty or set(rows["patients"]) != planned:
        early = next((told for told in budget_sentences(records) if WORDS["phantom"] in told), "")
        if early:
            return f"A first answer on real hearts ({progress(records)}): {early[0].lower()}{early[1:]}"
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


def what_we_saw(records: Records) -> list[str]:
    """The headline, and the findings but that on phantoms first, which it tells."""
    told = [
        sentence for sentence in findings(records) if f"Pretraining on {WORDS['phantom']}" not in sentence
    ]
    return [headline(records), *told]
