"""What the recorded study on real hearts says, and how it looks: learning curves, steps, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from echovlsm.clinical import agreement
from echovlsm.files import read_yaml
from echovlsm.learning_curves import LONGER, NONE
from echovlsm.statistics import bootstrap_interval

NAMES: dict[str, str] = {
    NONE: "no pretraining",
    "sdm": "diffusion pictures",
    "phantom": "phantom",
    "both": "both kinds",
    LONGER: "no pretraining, trained longer",
}
"""Words for each pretraining."""

COLOURS: dict[str, str] = {
    NONE: "#0072B2",
    "sdm": "#D55E00",
    "phantom": "#009E73",
    "both": "#CC79A7",
    LONGER: "#000000",
}
"""Okabe and Ito's colours; those of the strategies for what is one."""

PAIRS: dict[str, str] = {"edv_ml": "EDV (ml)", "esv_ml": "ESV (ml)", "ef_percent": "EF (percentage points)"}
"""Columns of `clinical.clinical_table` that are compared, in words."""


def read_record(folder: str | Path) -> dict[str, Any]:
    """`run.yaml` of a recorded result.

    Raises
    ------
    FileNotFoundError
        There is none; the message says what makes it.
    ValueError
        It is broken.
    """
    from echovlsm.runs import resolve

    file = resolve(folder) / "run.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no recorded result; book/how_to_run.md says how it is made")
    return read_yaml(file, ValueError, "restore it, or make the result again (book/how_to_run.md)")


def rehearsals(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recorded rehearsals of the full study (`echovlsm.rehearsal`): none of it is a result.

    Parameters
    ----------
    folder
        Folder with ``<model>.yaml`` and ``<model>-checks-whole.csv`` of each.

    Returns
    -------
    DataFrame
        One row a model: `pixels`, `pictures a step`, `steps`, `loss`, `seconds` and `GiB` (the most that the
        training held), `pictures scored`, `seconds to score`.
    DataFrame
        The dry run of the whole run: one row a check; for each model what was found, and what to do about
        what is missing.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    from echovlsm.runs import resolve

    files = sorted(resolve(folder).glob("*.yaml"))
    if not files:
        raise FileNotFoundError(
            f"{resolve(folder)}: no recorded rehearsal; book/how_to_run.md says how it is made"
        )
    rows, tables = {}, {}
    for file in files:
        record = read_yaml(file, ValueError, "make the rehearsal again")
        setup, scored = record["parameters"], record["scored"]
        rows[file.stem] = {
            "pixels": setup["image_size"],
            "pictures a step": setup["batch_size"],
            "steps": record["steps"],
            "loss": record["history"]["train_loss"],
            "seconds": record["seconds"],
            "GiB": record["peak_memory_gib"],
            "pictures scored": scored["pictures"],
            "seconds to score": scored["seconds"],
        }
        table = pd.read_csv(file.with_name(f"{file.stem}-checks-whole.csv"), keep_default_na=False)
        missing = table["remedy"].where(~table["ok"].astype(bool), "")
        table["told"] = table["value"] + missing.map(lambda text: f" – missing: {text}" if text else "")
        tables[file.stem] = table.set_index("check")["told"]
    return pd.DataFrame(rows).T, pd.DataFrame(tables).reindex(tables[files[0].stem].index)


def curve_table(scores: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Mean Dice of each pretraining and number of patients.

    Parameters
    ----------
    scores
        `curve_scores.parquet`: one row a mask and run.
    resamples
        Of the bootstrap over scored patients.

    Returns
    -------
    DataFrame
        `pretraining, trained_on, dice, low, high` (95 % interval over scored patients, of the mean over
        seeds), `seeds, seed_low, seed_high` (range of the seeds' means).
    """
    rows = []
    for (name, count), part in scores.groupby(["pretraining", "trained_on"], sort=False):
        low, high = bootstrap_interval(part["dice"], part["patient"], resamples=resamples)
        seeds = part.groupby("seed")["dice"].mean()
        rows.append(
            {
                **{"pretraining": name, "trained_on": count, "dice": part["dice"].mean()},
                **{"low": low, "high": high, "seeds": len(seeds)},
                **{"seed_low": seeds.min(), "seed_high": seeds.max()},
            }
        )
    return pd.DataFrame(rows).sort_values(["pretraining", "trained_on"], ignore_index=True)


def gains(scores: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """What each pretraining adds to none, on the same patients, seeds and masks.

    Returns
    -------
    DataFrame
        `pretraining, trained_on, gain, low, high` (95 % interval over scored patients), `seeds, seed_low,
        seed_high`, `verdict`: ``helps`` or ``harms`` where the interval leaves out 0 and every seed agrees,
        otherwise ``no difference shown``.
    """
    keys = ["trained_on", "seed", "patient", "view", "phase", "structure"]
    base = scores[scores["pretraining"] == NONE].set_index(keys)["dice"].rename("base")
    rows = []
    for name, part in scores[~scores["pretraining"].isin([NONE, LONGER])].groupby("pretraining", sort=False):
        joined = part.set_index(keys)[["dice"]].join(base, how="inner").reset_index()
        joined["gain"] = joined["dice"] - joined["base"]
        for count, group in joined.groupby("trained_on"):
            low, high = bootstrap_interval(group["gain"], group["patient"], resamples=resamples)
            seeds = group.groupby("seed")["gain"].mean()
            row = {"pretraining": name, "trained_on": count, "gain": group["gain"].mean()}
            row |= {"low": low, "high": high, "seeds": len(seeds)}
            row |= {"seed_low": seeds.min(), "seed_high": seeds.max()}
            rows.append(row | {"verdict": _verdict(low, high, seeds)})
    return pd.DataFrame(rows)


def _verdict(low: float, high: float, seeds: pd.Series) -> str:
    if low > 0 and (seeds > 0).all():
        return "helps"
    return "harms" if high < 0 and (seeds < 0).all() else "no difference shown"


def steps_to_reach(curves: pd.DataFrame, target: float, batch_size: int, pictures: float = 4) -> pd.DataFrame:
    """Optimiser steps and epochs until a Dice is first reached, between two looks by straight line.

    Parameters
    ----------
    curves
        `curves.csv`: `pretraining, trained_on, seed, step, dice`.
    target
        Dice, as a fraction.
    batch_size, pictures
        Pictures a step, and pictures a patient: an epoch is all pictures of the real patients once.

    Returns
    -------
    DataFrame
        `pretraining, trained_on, steps, epochs` (medians over seeds; NaN unless more than half of them got
        there), `reached, seeds`.
    """
    rows = []
    for (name, count), part in curves.groupby(["pretraining", "trained_on"], sort=False):
        found = [_first(group, target) for _, group in part.groupby("seed")]
        steps = float(np.median([math.inf if math.isnan(step) else step for step in found]))
        steps = steps if math.isfinite(steps) else math.nan
        epochs = steps * batch_size / (pictures * count)
        reached = sum(not math.isnan(step) for step in found)
        row = {"pretraining": name, "trained_on": count, "steps": steps, "epochs": epochs}
        rows.append(row | {"reached": reached, "seeds": len(found)})
    return pd.DataFrame(rows).sort_values(["pretraining", "trained_on"], ignore_index=True)


def _first(curve: pd.DataFrame, target: float) -> float:
    """Step at which one curve first passes the target; NaN where it never does."""
    ordered = curve.sort_values("step")
    steps, dice = ordered["step"].to_numpy(dtype=float), ordered["dice"].to_numpy(dtype=float)
    above = np.flatnonzero(dice >= target)
    if not len(above):
        return math.nan
    first = above[0]
    if first == 0:
        return steps[0]
    share = (target - dice[first - 1]) / (dice[first] - dice[first - 1])
    return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))


def without_patients(table: pd.DataFrame) -> dict[str, Any]:
    """What a model that saw no real patient is worth, counted in patients without pretraining.

    Returns
    -------
    dict
        `pretraining` (the best one), `dice`, and `patients`: the smallest number tried from which no
        pretraining reaches that Dice; None where none does.
    """
    fresh = table[table["pretraining"] == NONE].sort_values("trained_on")
    others = table[~table["pretraining"].isin([NONE, LONGER]) & (table["trained_on"] == 0)]
    best = others.loc[others["dice"].idxmax()]
    enough = fresh[fresh["dice"] >= best["dice"]]["trained_on"]
    return {
        "pretraining": best["pretraining"],
        "dice": float(best["dice"]),
        "patients": int(enough.iloc[0]) if len(enough) else None,
        "most": int(fresh["trained_on"].max()),
    }


# -- figures --------------------------------------------------------------------------------------------


def _places(counts: pd.Series) -> dict[int, float]:
    """Where numbers of patients stand: logarithms, and 0 a step to the left."""
    known = sorted(set(map(int, counts)))
    logs = {count: math.log10(count) for count in known if count}
    return ({0: min(logs.values()) - 0.5} if 0 in known else {}) | logs


def _count_axis(axes: Axes, places: Mapping[int, float]) -> None:
    axes.set_xticks(list(places.values()), [str(count) for count in places])
    axes.set_xlabel("real patients to learn from (logarithmic; 0 apart)")


def plot_curves(table: pd.DataFrame, steps: int) -> Figure:
    """Dice after `steps` against number of patients; bands: intervals over patients, bars: range of seeds."""
    figure, axes = plt.subplots(figsize=(8, 4.4))
    places = _places(table["trained_on"])
    for offset, name in enumerate(name for name in NAMES if name in set(table["pretraining"])):
        part = table[table["pretraining"] == name].sort_values("trained_on")
        x = np.array([places[count] for count in part["trained_on"]])
        style = {"color": COLOURS[name], "label": NAMES[name]}
        if name == LONGER:
            axes.plot(x, part["dice"], "o", mfc="white", zorder=4, **style)
            continue
        joined = part["trained_on"].to_numpy() > 0
        axes.plot(x[joined], part["dice"][joined], "o-", markersize=4, zorder=3, **style)
        axes.plot(x[~joined], part["dice"][~joined], "D", markersize=5, zorder=3, color=COLOURS[name])
        axes.fill_between(
            x[joined], part["low"][joined], part["high"][joined], color=COLOURS[name], alpha=0.13
        )
        shifted = x + 0.012 * (offset - 1)
        axes.vlines(
            shifted, part["seed_low"], part["seed_high"], color=COLOURS[name], linewidth=2.5, alpha=0.7
        )
    _count_axis(axes, places)
    shown = table[(table["pretraining"] != NONE) | (table["trained_on"] > 0)]
    low = math.floor(20 * min(shown["low"].min(), shown["seed_low"].min())) / 20
    axes.set(ylabel="mean Dice, validation patients", ylim=(low - 0.02, 0.95))
    axes.legend(loc="lower right", fontsize=9)
    found = without_patients(table)
    told = f"{NAMES[found['pretraining']]} and no real patient: Dice {found['dice']:.2f}"
    if found["patients"]:
        more = f"as much as {found['patients']} patients give in {steps} steps without pretraining"
    else:
        more = f"more than {found['most']} patients give in {steps} steps without pretraining"
    axes.set_title(f"{told[0].upper()}{told[1:]},\n{more}")
    return figure


def plot_steps(table: pd.DataFrame, target: float) -> Figure:
    """Optimiser steps to a Dice, against number of patients; a cross where most seeds never got there."""
    figure, axes = plt.subplots(figsize=(8, 3.6))
    places = _places(table["trained_on"])
    top = table["steps"].max()
    top = 100.0 if math.isnan(top) else 1.25 * top + 5
    for offset, name in enumerate(name for name in NAMES if name in set(table["pretraining"])):
        if name == LONGER:
            continue
        part = table[table["pretraining"] == name].sort_values("trained_on")
        x = np.array([places[count] for count in part["trained_on"]]) + 0.02 * (offset - 1)
        axes.plot(x, part["steps"], "o-", markersize=5, color=COLOURS[name], label=NAMES[name])
        never = part["steps"].isna().to_numpy()
        axes.plot(x[never], np.full(never.sum(), top), "x", color=COLOURS[name])
    _count_axis(axes, places)
    axes.set(ylabel=f"steps to Dice {target:.2f}", ylim=(-3, 1.12 * top))
    axes.margins(x=0.08)
    figure.legend(loc="outside right upper", fontsize=9)
    fresh = table[table["pretraining"] == NONE]
    never = int(fresh["steps"].isna().sum())
    rest = table[~table["pretraining"].isin([NONE, LONGER])]
    reached = rest["steps"].notna().sum()
    axes.set_title(
        f"Dice {target:.2f} is reached at {reached} of {len(rest)} points with pretraining,\n"
        f"at {len(fresh) - never} of {len(fresh)} without (a cross: never)"
    )
    return figure


def compare_ends(ends: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Agreement of prediction and reference: a table (rows: `PAIRS`), and EF side by side a patient."""
    wide = ends.pivot(index="patient", columns="source", values=list(PAIRS))
    rows = {word: agreement(wide[key]["reference"], wide[key]["prediction"]) for key, word in PAIRS.items()}
    return pd.DataFrame(rows).T, wide["ef_percent"]


def plot_agreement(ef: pd.DataFrame, found: Mapping[str, float]) -> Figure:
    """Bland and Altman's plot of the ejection fraction, and prediction against reference."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(1.35, 1))
    mean, difference = ef.mean(axis=1), ef["prediction"] - ef["reference"]
    left.plot(mean, difference, "o", color="#0072B2", markersize=4, alpha=0.75)
    for value, style in ((found["bias"], "-"), (found["low"], "--"), (found["high"], "--")):
        left.axhline(value, color="#333333", linestyle=style, linewidth=1)
    left.fill_between(
        [0, 1],
        found["bias_low"],
        found["bias_high"],
        color="#333333",
        alpha=0.12,
        transform=left.get_yaxis_transform(),
    )
    left.set(xlabel="mean of both EF (%)", ylabel="prediction - reference\n(percentage points)")
    left.set_title(f"Bias {found['bias']:+.1f}, limits {found['low']:+.1f} to {found['high']:+.1f}")
    low, high = float(np.nanmin(ef.to_numpy())), float(np.nanmax(ef.to_numpy()))
    right.plot([low, high], [low, high], color="#999999", linewidth=1)
    right.plot(ef["reference"], ef["prediction"], "o", color="#0072B2", markersize=4, alpha=0.75)
    right.set(xlabel="reference EF (%)", ylabel="predicted EF (%)", aspect="equal")
    right.set_title(f"r = {found['correlation']:.2f}")
    return figure
