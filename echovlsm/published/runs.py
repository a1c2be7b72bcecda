"""Our runs beside the authors', image by image: whose images these are, and paired comparisons.

The authors scored CAMUS's 50 testing patients under the old release's numbers. With
`cohort.legacy_testing_map` a run of ours, scored on the public release's testing subgroup at 512 x 512,
can be compared with theirs on the same 600 masks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from echovlsm import STRUCTURES
from echovlsm.base import figures, files, paths
from echovlsm.cohort import legacy_testing_map, load_labels, read_cohort
from echovlsm.evaluation import scoring, statistics
from echovlsm.published.code import PROMPT_FILES
from echovlsm.published.scores import (
    MASK,
    PAPER_MODELS,
    PublishedError,
    load_scores,
    true_areas,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RUN = ["model", "prompt", "strategy"]
_PAIR = ["patient", "view", "phase", "structure"]


class Beside(NamedTuple):
    """A run of ours beside the authors' nearest one, on the same masks."""

    name: str
    strategy: str
    theirs: str
    """Their run in words."""
    scale: str
    pairs: pd.DataFrame
    """Of `pair_runs`."""
    table: pd.DataFrame
    """Of `compare_runs`."""


def check_identity(
    frames: pd.DataFrame, scores: pd.DataFrame, mapping: Mapping[str, str] | pd.Series
) -> pd.DataFrame:
    """Compare the areas behind the published scores with those of the testing patients' masks.

    Parameters
    ----------
    frames
        Frames table of `cohort.read_cohort`; its rows with split `test` and a mask are used.
    scores, mapping
        Of `load_scores`, and old testing number to patient, of `legacy_testing_map`.

    Returns
    -------
    DataFrame
        One row per old testing patient: `legacy_test_patient`, `patient` (of the mapping), `masks`,
        `difference` (mean absolute difference of the areas' shares of the image), `nearest` (the patient
        whose areas agree best), `next_best` (smallest difference to any other patient than the mapped one),
        `agrees`.

    Raises
    ------
    PublishedError
        No testing images with masks among the frames, or none of the mapped patients.
    """
    testing = frames[(frames["split"] == "test") & frames["labels"].notna()]
    if testing.empty:
        raise PublishedError(
            "frames: no testing image with a mask; the identity can only be checked with the whole public "
            "release (its 50 testing patients)"
        )
    records = {}
    for row in testing.itertuples():
        labels = load_labels(row)
        for value in STRUCTURES:
            records[row.patient, (row.view, row.phase, value)] = float((labels == value).mean())
    ours = pd.Series(records).unstack()
    theirs = true_areas(scores).unstack(MASK[1:])
    ours = ours.reindex(columns=theirs.columns.to_flat_index())
    known = [(old, new) for old, new in dict(mapping).items() if new in ours.index and old in theirs.index]
    if not known:
        raise PublishedError("mapping: none of its patients is among the testing images of the frames")
    rows = []
    for old, new in known:
        gap = (ours - theirs.loc[old].to_numpy()).abs()
        mean = gap.mean(axis=1)
        others = mean.drop(new)
        rows.append(
            {
                "legacy_test_patient": old,
                "patient": new,
                "masks": int(gap.loc[new].notna().sum()),
                "difference": float(mean[new]),
                "nearest": str(mean.idxmin()),
                "next_best": float(others.min()) if len(others) else np.nan,
                "agrees": bool(mean.idxmin() == new),
            }
        )
    return pd.DataFrame(rows)


def add_quality(
    scores: pd.DataFrame, frames: pd.DataFrame, mapping: Mapping[str, str] | pd.Series
) -> pd.DataFrame:
    """Scores with `quality` (of the view; NA where unknown), which the authors' files do not hold.

    `frames` is the frames table of the public release, `mapping` that of `legacy_testing_map`.
    """
    known = frames.drop_duplicates(["patient", "view"]).set_index(["patient", "view"])["quality"]
    keys = zip(scores["legacy_test_patient"].map(dict(mapping)), scores["view"], strict=True)
    return scores.assign(quality=pd.array([known.get(key, pd.NA) for key in keys], dtype="string"))


def read_scores(scores: str, camus: str = "") -> tuple[pd.DataFrame, Path | None, pd.DataFrame | None]:
    """The authors' scores as notebook 07's parameters name them.

    Parameters
    ----------
    scores
        Their file or folder, or ``download``.
    camus
        The public release, from which the image qualities are; empty: without.

    Returns
    -------
    table : DataFrame
        Of `load_scores`, with `quality` where there is a release.
    prompts : Path or None
        The folder of the authors' prompt files, where they lie beside the scores.
    frames : DataFrame or None
        The frames table of the release.
    """
    place = None if scores == "download" else paths.resolve(scores)
    folder = place.parent if place and place.is_file() else place
    here = folder and all((folder / name).is_file() for name in PROMPT_FILES.values())
    table, frames = load_scores(place), None
    if camus:
        root = paths.resolve(camus)
        mapping, frames = legacy_testing_map(root), read_cohort(root)
        table = add_quality(table, frames, mapping)
    return table, folder if here else None, frames


def map_table(mapping: Mapping[str, str] | pd.Series) -> pd.DataFrame:
    """The old testing patients and the public release's, ten to a row."""
    named = [f"{int(old[7:])} → {int(new[7:])}" for old, new in dict(mapping).items()]
    return pd.DataFrame(np.reshape(named, (-1, 10)))


def find_runs(results: str | os.PathLike[str]) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
    """Our recorded runs on real images, by their path below `results`: the record and the scores table.

    Runs of another kind (phantoms, synthetic cohorts) and scores without a record are left out.
    """
    found = {}
    for path in sorted(Path(results).rglob("scores.parquet")):
        place = path.with_name("run.yaml")
        remedy = "restore this result, or take its folder away"
        record = files.read_yaml(place, PublishedError, remedy) if place.is_file() else {}
        if record.get("kind") == "real":
            table = scoring.three_structures(files.read_table(path, PublishedError, remedy))
            found[path.parent.relative_to(results).as_posix()] = record, table
    return found


def their_run(scores: pd.DataFrame, model: str, prompt: str, strategy: str) -> tuple[dict[str, str], bool]:
    """The authors' run to compare one of ours with.

    Parameters
    ----------
    scores
        Of `load_scores`.
    model, prompt, strategy
        Of our run (`clipseg`, `P1`, `real`).

    Returns
    -------
    dict, bool
        Model, prompt and strategy of theirs, and whether they are the same as ours. They have no zero-shot
        and no joint run; then it is their best, over the models that they tabulate.
    """
    cells = scores[scores["model"].isin(PAPER_MODELS)].groupby(_RUN)["dice"].mean()
    same = ({"clipseg": "CLIPSeg", "cris": "CRIS"}.get(model.lower(), model), prompt, strategy)
    chosen = same if same in cells.index else cells.idxmax()
    return dict(zip(_RUN, chosen, strict=True)), chosen == same


def pair_runs(
    ours: pd.DataFrame,
    scores: pd.DataFrame,
    mapping: Mapping[str, str] | pd.Series,
    *,
    our_strategy: str,
    run: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Our Dice and theirs of the same masks.

    Parameters
    ----------
    ours
        Scores table of one run (`scoring.score_table`, `data/results/*/scores.parquet`), Dice as a fraction.
    scores, mapping
        Of `load_scores`, and old testing number to patient, of `legacy_testing_map`.
    our_strategy
        Rows of `ours` to compare.
    run
        The authors' `model`, `prompt` and `strategy`; None: that of `their_run`.

    Returns
    -------
    DataFrame
        One row per mask that both have: `patient, view, phase, structure`, `ours`, `theirs` (percent).

    Raises
    ------
    PublishedError
        The strategy or the authors' run does not exist, a mask twice, or no mask in common.
    """
    absent = [name for name in (*_PAIR, *_RUN, "dice") if name not in ours]
    if absent:
        raise PublishedError(f"ours: no column {', '.join(absent)}; give a run's scores.parquet")
    mine = ours[ours["strategy"] == our_strategy]
    if mine.empty:
        known = ", ".join(ours["strategy"].unique())
        raise PublishedError(f"our_strategy: {our_strategy!r} is not in the scores; there are {known}")
    if mine.duplicated(_PAIR).any():
        raise PublishedError("ours: a mask is scored twice; select one run (model, prompt, encoders, seed)")
    if run is None:
        run, _ = their_run(scores, mine["model"].iloc[0], mine["prompt"].iloc[0], our_strategy)
    wanted = {name: run[name] for name in _RUN}
    their = scores[(scores[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    if their.empty:
        raise PublishedError(f"scores: the authors have no run {', '.join(wanted.values())}")
    theirs = their.assign(
        patient=their["legacy_test_patient"].map(dict(mapping)), structure=their["label"].map(STRUCTURES)
    )
    pairs = (
        mine.set_index(_PAIR)["dice"].mul(100).rename("ours").to_frame()
        .join(theirs.set_index(_PAIR)["dice"].rename("theirs"), how="inner")
    )  # fmt: skip
    if pairs.empty:
        raise PublishedError(
            "ours: no mask of CAMUS's testing patients; score the run with evaluate_on=test on the whole "
            "public release"
        )
    return pairs.reset_index()


def compare_runs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Paired comparison of our Dice with theirs, over all masks and by structure.

    Parameters
    ----------
    pairs
        Of `pair_runs`.

    Returns
    -------
    DataFrame
        One row `all` and one a structure: `masks, patients, ours, theirs, difference` (ours - theirs, percent
        Dice), `low`, `high` (95 %, whole patients drawn), `p_patient` (Wilcoxon over patients' means,
        two-sided), `p_patient_holm` (over the structures; NaN for `all`), `higher` (share of masks).
    """
    rows = []
    groups = [("all", pairs), *((name, part) for name, part in pairs.groupby("structure"))]
    for name, part in groups:
        means = part.groupby("patient")[["ours", "theirs"]].mean()
        difference = part["ours"] - part["theirs"]
        low, high = statistics.bootstrap_interval(difference, part["patient"])
        rows.append(
            {
                "structure": name,
                "masks": len(part),
                "patients": len(means),
                "ours": float(part["ours"].mean()),
                "theirs": float(part["theirs"].mean()),
                "difference": float(difference.mean()),
                "low": low,
                "high": high,
                "p_patient": statistics.paired_test(means["ours"], means["theirs"])["p"],
                "higher": float((difference > 0).mean()),
            }
        )
    table = pd.DataFrame(rows)
    table.insert(9, "p_patient_holm", np.r_[np.nan, statistics.holm(table["p_patient"].iloc[1:])])
    return table


def beside_theirs(
    results: str | os.PathLike[str], scores: pd.DataFrame, mapping: Mapping[str, str] | pd.Series
) -> list[Beside]:
    """Our recorded runs that were scored on the testing patients, each beside the authors' nearest one.

    Parameters
    ----------
    results
        Folder of recorded runs.
    scores, mapping
        Of `load_scores` and `legacy_testing_map`.
    """
    found = []
    for name, (_, ours) in find_runs(results).items():
        if not set(ours["patient"]) & set(mapping):
            continue
        for strategy, part in ours.groupby("strategy"):
            run, same = their_run(scores, part["model"].iloc[0], part["prompt"].iloc[0], strategy)
            pairs = pair_runs(ours, scores, mapping, our_strategy=strategy, run=run)
            theirs = " ".join(run.values()) + ("" if same else " (their best)")
            found.append(Beside(name, strategy, theirs, ours["scale"].iloc[0], pairs, compare_runs(pairs)))
    return found


def plot_runs(axes: Axes, pairs: pd.DataFrame, ours: str = "ours", theirs: str = "the authors'") -> None:
    """Our Dice over theirs, one point a mask; above the diagonal ours is better."""
    whole = compare_runs(pairs).iloc[0]
    both = pairs[["ours", "theirs"]]
    low = 10 * np.floor(both.quantile(0.01).min() / 10)
    outside = int((both < low).any(axis=1).sum())
    axes.plot([low, 100], [low, 100], color="#333333", linewidth=1)
    for structure, colour in figures.STRUCTURE_COLOURS.items():
        part = pairs[pairs["structure"] == structure]
        style = {"s": 9, "color": colour, "alpha": 0.7, "edgecolors": "none", "clip_on": False}
        x, y = part["theirs"].clip(lower=low), part["ours"].clip(lower=low)
        axes.scatter(x, y, label=figures.SHORT_NAMES[structure], **style)
    note = f"\n{outside} masks below the frame are drawn on its edge" if outside else ""
    axes.set(xlim=(low, 101), ylim=(low, 101))
    axes.set(xlabel=f"Dice, {theirs} (%){note}", ylabel=f"Dice, {ours} (%)")
    axes.set_aspect("equal")
    interval = f"[{whole['low']:+.1f}, {whole['high']:+.1f}]"
    axes.set_title(f"Ours {whole['difference']:+.1f} {interval} points of Dice on {whole['masks']:.0f} masks")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=2)
