"""Other recorded results on real hearts: the main run beside yardsticks, ejection fractions, rehearsals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from echovlsm import STRUCTURES
from echovlsm.base import figures, files, paths
from echovlsm.evaluation import statistics

PAIRS: dict[str, str] = {"edv_ml": "EDV (ml)", "esv_ml": "ESV (ml)", "ef_percent": "EF (percentage points)"}
"""Clinical ends that are compared, in words."""

REFERENCE = "unet"
"""The model without words."""

OBSERVER = "one cardiologist, twice"

YARDSTICK: dict[tuple[str, str], tuple[float, float]] = {
    ("left ventricular cavity", "nnU-Net"): (0.952, 0.935),
    ("left ventricular cavity", "U-Net (Leclerc)"): (0.936, 0.912),
    ("left ventricular cavity", OBSERVER): (0.945, 0.930),
    ("epicardium", "nnU-Net"): (0.963, 0.959),
    ("epicardium", "U-Net (Leclerc)"): (0.956, 0.946),
    ("epicardium", OBSERVER): (0.957, 0.951),
    ("left atrium cavity", "nnU-Net"): (0.902, 0.935),
    ("left atrium cavity", "U-Net (Leclerc)"): (0.889, 0.918),
}
"""Dice at end diastole and systole in the challenge's table (Leclerc et al. 2019); not verified."""


def read_record(folder: str | Path) -> dict[str, Any]:
    """`run.yaml` of a recorded result.

    Raises
    ------
    FileNotFoundError
        There is none; the message says what makes it.
    ValueError
        It is broken.
    """
    file = paths.resolve(folder) / "run.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no recorded result; book/how_to_run.md says how it is made")
    return files.read_yaml(file, ValueError, "restore it, or make the result again (book/how_to_run.md)")


def main_sentence(folder: str | Path, name: str) -> str:
    """Mean Dice of the recorded run `name` in `folder`, and of the reference trained alike, if there."""
    folder = paths.resolve(folder)

    def scores(run: Path) -> pd.DataFrame:
        table = pd.read_parquet(run / "scores.parquet")
        return table[table["structure"].isin(STRUCTURES.values())]

    ours = scores(folder / name)
    row = statistics.summary(ours.assign(all="all"), ("all",)).iloc[0]
    told = f"Main run ({figures.MODEL_NAMES[ours['model'].iloc[0]]}), validation patients: mean Dice "
    told += f"{row['mean']:.3f} (95 % over patients {row['low']:.3f} to {row['high']:.3f})"
    for beside in sorted(folder.glob(f"{REFERENCE}-*{name.split('-', 1)[1]}")):
        both = pd.concat([ours, scores(beside)], ignore_index=True)
        gap = statistics.compare(
            both, str(ours["model"].iloc[0]), REFERENCE, ("prompt",), column="model"
        ).iloc[0]
        told += f"; {figures.MODEL_NAMES[REFERENCE]}, which reads no words, after as many steps: "
        told += f"{gap['mean_b']:.3f}, a difference of {100 * gap['difference']:+.1f} points "
        told += f"({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}; one training each)"
    return f"{told}."


def rehearsals(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recorded rehearsals of the full study (`echovlsm rehearse`): none of it is a result.

    Parameters
    ----------
    folder
        Folder with ``<model>.yaml`` and ``<model>-checks-whole.csv`` of each.

    Returns
    -------
    DataFrame
        One row a model: `pixels`, `images per step`, `steps`, `loss`, `seconds` and `GiB` (the most that the
        training held), `images scored`, `seconds to score`.
    DataFrame
        The dry run of the whole run: one row a check; for each model what was found, and what to do about
        what is missing.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    found = sorted(paths.resolve(folder).glob("*.yaml"))
    if not found:
        raise FileNotFoundError(
            f"{paths.resolve(folder)}: no recorded rehearsal; book/how_to_run.md says how it is made"
        )
    rows, tables = {}, {}
    for file in found:
        record = files.read_yaml(file, ValueError, "make the rehearsal again")
        setup, scored = record["parameters"], record["scored"]
        rows[file.stem] = {
            "pixels": setup["image_size"],
            "images per step": setup["batch_size"],
            "steps": record["steps"],
            "loss": record["history"]["train_loss"],
            "seconds": record["seconds"],
            "GiB": record["peak_memory_gib"],
            "images scored": scored["pictures"],
            "seconds to score": scored["seconds"],
        }
        table = pd.read_csv(file.with_name(f"{file.stem}-checks-whole.csv"), keep_default_na=False)
        missing = table["remedy"].where(~table["ok"].astype(bool), "")
        table["told"] = table["value"] + missing.map(lambda text: f" – missing: {text}" if text else "")
        tables[file.stem] = table.set_index("check")["told"]
    return pd.DataFrame(rows).T, pd.DataFrame(tables).reindex(tables[found[0].stem].index)


def yardstick(ours: pd.DataFrame) -> pd.DataFrame:
    """Dice of supervised models and of a cardiologist against himself beside ours.

    Parameters
    ----------
    ours
        A row a structure, columns ``ED`` and ``ES``; a record without masks has no epicardium: NaN.

    Returns
    -------
    DataFrame
        A row a structure, columns (source, phase); the myocardium's ring, which challenges do not score, is
        not in it.
    """
    table = pd.DataFrame(YARDSTICK, index=["ED", "ES"]).T.unstack(1).swaplevel(axis=1)
    for phase in ("ED", "ES"):
        table["main run", phase] = ours[phase].reindex(table.index)
    order = ("nnU-Net", "U-Net (Leclerc)", OBSERVER, "main run")
    return table.loc[:, [(name, phase) for name in order for phase in ("ED", "ES")]]


def by_view(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice of each structure (row) by view and phase (column), with means of both."""
    means = scores.groupby(["structure", "view", "phase"])["dice"].mean().unstack(["view", "phase"])
    table = means.loc[list(STRUCTURES.values())]
    table["mean", ""] = scores.groupby("structure")["dice"].mean()
    table.loc["mean"] = table.mean()
    return table


def impossible(ends: pd.DataFrame) -> str:
    """A sentence on ejection fractions below 5 %, with the areas they rest on."""
    rows = ends[ends["ef_percent"] < 5]
    if rows.empty:
        return "No ejection fraction lies below 5 %."
    told = [
        f"{row.patient}, {row.source}: {row.ef_percent:.1f} % (cavity in {row.views} "
        f"{row.area_ed_cm2:.1f} cm² at end diastole, {row.area_es_cm2:.1f} at end systole)"
        for row in rows.itertuples()
    ]
    return f"Ejection fractions below 5 %: {len(rows)} of {len(ends)}. {'; '.join(told)}."


def compare_ends(ends: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Agreement of prediction and reference: a table (rows: `PAIRS`), and EF side by side a patient."""
    wide = ends.pivot(index="patient", columns="source", values=list(PAIRS))
    rows = {
        word: statistics.agreement(wide[key]["reference"], wide[key]["prediction"])
        for key, word in PAIRS.items()
    }
    return pd.DataFrame(rows).T, wide["ef_percent"]


def plot_agreement(agreements: pd.DataFrame, ef: pd.DataFrame) -> Figure:
    """Bland and Altman's plot of the ejection fraction, and prediction against reference."""
    found = agreements.loc[PAIRS["ef_percent"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(1.35, 1))
    mean, difference = ef.mean(axis=1), ef["prediction"] - ef["reference"]
    left.plot(mean, difference, "o", color="#0072B2", markersize=4, alpha=0.75)
    for value, style in ((found["bias"], "-"), (found["low"], "--"), (found["high"], "--")):
        left.axhline(value, color="#333333", linestyle=style, linewidth=1)
    left.axhspan(found["bias_low"], found["bias_high"], color="#333333", alpha=0.12)
    left.set(xlabel="mean of both EF (%)", ylabel="prediction - reference\n(percentage points)")
    left.set_title(f"Bias {found['bias']:+.1f}, limits {found['low']:+.1f} to {found['high']:+.1f}")
    low, high = float(np.nanmin(ef.to_numpy())), float(np.nanmax(ef.to_numpy()))
    right.plot([low, high], [low, high], color="#999999", linewidth=1)
    right.plot(ef["reference"], ef["prediction"], "o", color="#0072B2", markersize=4, alpha=0.75)
    right.set(xlabel="reference EF (%)", ylabel="predicted EF (%)", aspect="equal")
    right.set_title(f"r = {found['correlation']:.2f}")
    return figure
