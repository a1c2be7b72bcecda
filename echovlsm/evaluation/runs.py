"""Score a folder of patients with a kept run: one command, one row a mask.

    echovlsm evaluate /path/to/CAMUS_public runs/camus/camus/main --out scores.parquet

The folder has the layout of the public CAMUS release; its subgroup files may be absent or incomplete. Beside
the scores lies a record of how they came about (``scores.yaml``).
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echovlsm import STRUCTURES
from echovlsm.base import RunFolder, files, paths, provenance
from echovlsm.cohort import cohort_hash, load_labels, read_cohort
from echovlsm.evaluation.clinical import clinical_table
from echovlsm.evaluation.scoring import METRICS, PAPER_SIZE, score_table, to_mask
from echovlsm.models import load
from echovlsm.training import predict, strategies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import pandas as pd
    from torch import Tensor

EPICARDIUM = "epicardium"
"""Name of the ventricular cavity and the myocardium together in tables of scores."""

SPLITS: tuple[str, ...] = ("auto", "test", "val", "train", "all")
"""What `choose_pictures` knows."""

IDENTITY: tuple[str, ...] = ("patient", "view", "phase", "split", "quality", "sex", "age")
"""Columns of the frames table that a row of scores carries."""


class EvaluationError(ValueError):
    """A cohort, run or option that cannot be scored; the message names the remedy."""


def choose_pictures(cohort: str | Path, split: str = "auto") -> tuple[pd.DataFrame, str]:
    """The pictures with a mask that are to be scored, and a sentence that says which they are.

    Parameters
    ----------
    cohort
        Folder of patients.
    split
        ``test``, ``val`` or ``train``: the patients of that subgroup file; ``all``: every patient in the
        folder; ``auto``: the testing patients, or every patient if no subgroup file names one that is there.

    Raises
    ------
    EvaluationError
        An unknown split, or no picture with a mask in it.
    CohortError
        The folder is no cohort.
    """
    if split not in SPLITS:
        raise EvaluationError(f"--split: {split!r} is not known; choose one of {', '.join(SPLITS)}")
    frames = read_cohort(paths.resolve(cohort), split="any")
    listed = set(frames["split"].dropna())
    if split == "auto" and listed and "test" not in listed:
        raise EvaluationError(
            f"{cohort}: its subgroup files name {' and '.join(sorted(listed))} patients, but none of the "
            "testing ones is here; say which to score: --split val, train or all"
        )
    wanted = split if split != "auto" else ("test" if listed else "all")
    chosen = frames if wanted == "all" else frames[frames["split"] == wanted]
    if chosen.empty:
        raise EvaluationError(
            f"{cohort}: no {wanted} patient is both listed in database_split/ and in the folder; "
            "--split all scores every patient in the folder"
        )
    with_mask = chosen[chosen["labels"].notna()].reset_index(drop=True)
    if with_mask.empty:
        raise EvaluationError(
            f"{cohort}: none of its {len(chosen)} pictures has a mask (*_gt.nii.gz): nothing to score with"
        )
    with_mask.attrs = frames.attrs
    what = "patients, all in the folder" if wanted == "all" else f"{wanted} patients"
    says = f"{len(with_mask)} pictures of {with_mask['patient'].nunique()} {what}"
    without = len(chosen) - len(with_mask)
    return with_mask, says + (f"; {without} pictures without a mask are left out" if without else "")


def kept_run(run: str | Path) -> RunFolder:
    """A complete run with weights.

    Raises
    ------
    EvaluationError
        The folder is no such run.
    """
    folder = RunFolder(run)
    record = folder.record
    if not record or not {"model", "prompt"} <= set(record.get("parameters", {})):
        raise EvaluationError(
            f"{folder.path}: no training's run.yaml is here; give a run folder of notebook 04"
        )
    if not folder.complete or not (folder / "weights").is_dir():
        raise EvaluationError(
            f"{folder.path}: holds no finished training with weights; run notebooks/04_training.ipynb with "
            "its parameters (recorded results carry no weights; book/how_to_run.md says how to train again)"
        )
    return folder


def predict_run(run: RunFolder, frames: pd.DataFrame, batch_size: int = 16) -> Tensor:
    """Logits float32 (N, S, h, w) of a run's model, for every picture and structure, at the model's size.

    Prompts have the run's level and the first template variant; absent metadata leave out their clause.
    """

    trained = run.record["parameters"]
    if trained["model"] == "unet":
        model = strategies.starting_model("unet", run / "weights", "unfrozen")
    else:
        model = load(trained["model"], run / "weights")
    strategy = trained.get("strategy", "real")
    asked = frames.assign(split="test")
    asked.attrs = frames.attrs
    triplets = strategies.strategy_triplets(
        strategy, "test", asked, [], trained["prompt"], model, variant="0", missing="omit"
    )
    return predict(model.eval(), triplets, batch_size, progress=sys.stderr.isatty())


def structure_masks(
    logits: Tensor, labels: np.ndarray, size: int | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, predicted and reference mask of each structure of an image, and of the epicardium.

    Parameters
    ----------
    logits
        float (S, h, w), in the order of `echovlsm.STRUCTURES`.
    labels
        Reference, uint8 (H, W).
    size
        Side of the predicted masks in pixels; None for that of the reference, which always keeps its own.

    The epicardium is the ventricular cavity and the myocardium together: what challenges and cardiologists
    score where this project, as the paper, scores the ring. It has no part in any mean over structures.
    """
    found = to_mask(logits, size or labels.shape).numpy()
    for mask, (value, name) in zip(found, STRUCTURES.items(), strict=True):
        yield name, mask, labels == value
    yield EPICARDIUM, found[0] | found[1], (labels == 1) | (labels == 2)


def score_run(run: RunFolder, frames: pd.DataFrame, logits: Tensor, size: int = PAPER_SIZE) -> pd.DataFrame:
    """Scores of a run, one row a mask: identity, structure, the run's settings, and `score_table`'s columns.

    Each image has a row more, of the epicardium (`structure_masks`).

    Parameters
    ----------
    run, frames, logits
        Of `kept_run`, `choose_pictures` and `predict_run`.
    size
        Side at which masks are compared, distances in its pixels; 0: native size, distances in millimetres.
    """
    trained = run.record["parameters"]
    settings = {key: trained[key] for key in ("model", "prompt", "encoders", "seed") if key in trained}
    settings["strategy"] = trained.get("strategy", "real")

    def rows() -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray, Any]]:
        for row, answers in zip(frames.itertuples(), logits, strict=True):
            reference, known = load_labels(row), {name: getattr(row, name) for name in IDENTITY}
            spacing = None if size else (row.spacing_y, row.spacing_x)
            for structure, *masks in structure_masks(answers, reference, size or None):
                yield {**known, "structure": structure}, *masks, spacing

    total = len(frames) * (len(STRUCTURES) + 1)
    table = score_table(rows(), size=size or None, total=total, progress=sys.stderr.isatty())
    meta = frames.attrs["meta"]
    return table.assign(**settings, cohort=meta["name"], scale=run.record.get("scale"))


def clinical_ends(frames: pd.DataFrame, logits: Tensor) -> pd.DataFrame:
    """Volumes and ejection fraction of each patient; `source` says whether of reference or prediction.

    Where the masks of two structures overlap, the one of higher probability counts.

    Raises
    ------
    echovlsm.evaluation.clinical.ClinicalError
        No view has a genuine pixel size.
    """
    import pandas as pd

    rows = [row._asdict() for row in frames.itertuples()]
    truth = clinical_table((row, load_labels(row)) for row in rows)

    def predicted() -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        for row, answers in zip(rows, logits, strict=True):
            yield row, labels_of(answers, (row["height"], row["width"]))

    found = clinical_table(predicted())
    return pd.concat([truth.assign(source="reference"), found.assign(source="prediction")], ignore_index=True)


def labels_of(logits: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """One label map uint8 `shape` from logits (S, h, w): of the structures found, the most probable."""
    import torch
    from torch.nn import functional

    found = to_mask(logits, shape)
    sure = functional.interpolate(
        logits[None].float().sigmoid(), size=shape, mode="bilinear", align_corners=False
    )[0]
    values = torch.tensor(list(STRUCTURES), dtype=torch.uint8)
    best = torch.where(found, sure, torch.zeros(())).max(dim=0)
    return torch.where(found.any(dim=0), values[best.indices], torch.zeros((), dtype=torch.uint8)).numpy()


def mean_dice(scores: pd.DataFrame) -> dict[str, float]:
    """Mean Dice of each structure, of the three together (``mean``), and of the epicardium."""
    means = scores.groupby("structure", sort=False)["dice"].mean().to_dict()
    three = [means[name] for name in STRUCTURES.values()]
    return {**{name: float(value) for name, value in means.items()}, "mean": float(sum(three) / len(three))}


def summary(scores: pd.DataFrame) -> str:
    """Mean Dice of each structure and of the three together, in lines."""
    means = mean_dice(scores)
    lines = [f"  {name:<24} {value:.3f}" for name, value in means.items() if name != "mean"]
    return "\n".join(["mean Dice", *lines, f"  {'the three structures':<24} {means['mean']:.3f}"])


def put_on_record(
    run: RunFolder, scores: pd.DataFrame, ends: pd.DataFrame | None, evaluation: dict[str, Any], to: Path
) -> Path:
    """Copy what may be published of a scored run into a folder of `to`: scores, history, record; no weights.

    `run.yaml` is the training's, with `evaluation` added and without the paths of one machine.
    """
    trained = run.record
    parameters = {key: value for key, value in trained["parameters"].items() if key not in ("cohort", "run")}
    strategy = parameters.get("strategy", "real")
    words = (parameters[key] for key in ("model", "prompt"))
    name = paths.run_path("-", "-", *words, strategy, parameters["encoders"], parameters["seed"]).name
    target = RunFolder(paths.resolve(to) / name)
    (target / "run.yaml").unlink(missing_ok=True)  # until all is there, nothing counts
    target.write_table("scores.parquet", scores)
    if ends is not None:
        target.write_table("clinical.csv", ends)
    if (run / "history.csv").is_file():
        files.copy(run / "history.csv", target / "history.csv")
    target.write_yaml("run.yaml", {**trained, "parameters": parameters, "evaluation": evaluation})
    return target.path


def evaluate_run(
    cohort: str | Path,
    run: str | Path,
    split: str = "auto",
    *,
    out: str | Path | None = None,
    size: int = PAPER_SIZE,
    clinical: str | Path | None = None,
    record: str | Path | None = None,
    tell: Callable[[str], None] = print,
) -> Path:
    """Score a folder of patients with a kept run, and write the scores with a record of how they came about.

    Parameters
    ----------
    cohort
        Folder of patients in the layout of the CAMUS release.
    run
        Run folder of a training, with its weights.
    split
        As for `choose_pictures`.
    out
        File of the scores (.parquet); by default ``scores-<cohort>.parquet`` in the run.
    size
        Side at which masks are compared; 0: native, distances in mm.
    clinical
        Where to write volumes and ejection fractions too (.csv).
    record
        Folder of recorded runs that gets what may be published of this one.
    tell
        Takes the lines that say what is going on.

    Returns
    -------
    Path
        The file of the scores.

    Raises
    ------
    EvaluationError
        Something cannot be scored, or a file cannot be written where it was asked for.
    """
    clock = time.perf_counter()
    out, clinical = (None if file is None else Path(file) for file in (out, clinical))
    if out is not None and out.suffix != ".parquet":
        raise EvaluationError(f"--out: {out} must end in .parquet")
    for name, file in (("--out", out), ("--clinical", clinical)):
        if file is not None and file.absolute().parent.exists() and not file.absolute().parent.is_dir():
            raise EvaluationError(f"{name}: {file.parent} is no folder; give a file in a folder")
    if size < 0:
        raise EvaluationError(f"--size: {size} is no number of pixels")
    folder = kept_run(run)
    frames, says = choose_pictures(cohort, split)
    tell(says)
    logits = predict_run(folder, frames)
    ends = clinical_ends(frames, logits) if clinical or record else None
    scores = score_run(folder, frames, logits, size)
    target = (out or folder / f"scores-{frames.attrs['meta']['name']}.parquet").absolute()
    beside = RunFolder(target.parent)
    beside.write_table(target.name, scores)
    if clinical:
        RunFolder(clinical.absolute().parent).write_table(clinical.name, ends)
    known = {
        "run": folder.path.name,
        "weights_hash": provenance.weights_hash(folder / "weights"),
        "pictures": says,
        "data_hash": cohort_hash(frames),
        "size": size,
        "metrics": list(METRICS),
        "dice": mean_dice(scores),
        "minutes": round((time.perf_counter() - clock) / 60, 2),
        "peak_memory_gib": provenance.peak_memory(),
        "commit": provenance.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": provenance.device_name(),
    }
    beside.write_yaml(f"{target.stem}.yaml", known)
    if record:
        scored = sorted(set(frames["split"].dropna()))
        known["parameters"] = {"evaluate_on": "+".join(scored) or "all", "score_size": size}
        tell(f"on record: {put_on_record(folder, scores, ends, known, record)}")
    tell(f"{summary(scores)}\nwritten: {os.path.relpath(target)}")
    return target
