"""Score a folder of patients with a kept run: one command, one row a mask.

    echovlsm evaluate /path/to/CAMUS_public runs/camus/camus/main --out scores.parquet

The folder has the layout of the public CAMUS release; its subgroup files may be absent or incomplete. Beside
the scores lies a record of how they came about (``scores.yaml``).
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from echovlsm import STRUCTURES
from echovlsm.base import RunFolder, paths, provenance
from echovlsm.cohort import cohort_hash, load_labels, read_cohort
from echovlsm.evaluation.clinical import clinical_table
from echovlsm.evaluation.predictions import labels_of, predict_run, score_run
from echovlsm.evaluation.scoring import METRICS, PAPER_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd
    from torch import Tensor

SPLITS: tuple[str, ...] = ("auto", "test", "val", "train", "all")
"""What `choose_images` knows."""


class EvaluationError(ValueError):
    """A cohort, run or option that cannot be scored; the message names the remedy."""


def choose_images(cohort: str | Path, split: str = "auto") -> tuple[pd.DataFrame, str]:
    """The images with a mask that are to be scored, and a sentence that says which they are.

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
        An unknown split, or no image with a mask in it.
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
            f"{cohort}: none of its {len(chosen)} images has a mask (*_gt.nii.gz): nothing to score with"
        )
    with_mask.attrs = frames.attrs
    what = "patients, all in the folder" if wanted == "all" else f"{wanted} patients"
    says = f"{len(with_mask)} images of {with_mask['patient'].nunique()} {what}"
    without = len(chosen) - len(with_mask)
    return with_mask, says + (f"; {without} images without a mask are left out" if without else "")


def kept_run(run: str | Path) -> RunFolder:
    """A complete run with weights; EvaluationError where the folder is none."""
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


def clinical_ends(frames: pd.DataFrame, logits: Tensor) -> pd.DataFrame:
    """Volumes and ejection fraction of each patient; `source` says whether of reference or prediction.

    Where the masks of two structures overlap, the one of higher probability counts. ClinicalError where no
    view has a genuine pixel size.
    """
    import pandas as pd

    rows = [row._asdict() for row in frames.itertuples()]
    truth = clinical_table((row, load_labels(row)) for row in rows)
    found = clinical_table(
        (row, labels_of(answers, (row["height"], row["width"])))
        for row, answers in zip(rows, logits, strict=True)
    )
    return pd.concat([truth.assign(source="reference"), found.assign(source="prediction")], ignore_index=True)


def mean_dice(scores: pd.DataFrame) -> dict[str, float]:
    """Mean Dice of each structure, of the three together (``mean``), and of the epicardium."""
    means = scores.groupby("structure", sort=False)["dice"].mean().to_dict()
    three = [means[name] for name in STRUCTURES.values()]
    return {**{name: float(value) for name, value in means.items()}, "mean": float(sum(three) / len(three))}


def summary(means: Mapping[str, float]) -> str:
    """What `mean_dice` found, in lines."""
    lines = [f"  {name:<24} {value:.3f}" for name, value in means.items() if name != "mean"]
    return "\n".join(["mean Dice", *lines, f"  {'the three structures':<24} {means['mean']:.3f}"])


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
    cohort, split
        As for `choose_images`.
    run
        Run folder of a training, with its weights.
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
        Something cannot be scored, or written where it was asked for.
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
    frames, says = choose_images(cohort, split)
    tell(says)
    logits, _ = predict_run(folder, frames, batch_size=16)
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
        tables = {"scores.parquet": scores, "clinical.csv": ends}
        trained = {"strategy": "real", **folder.record["parameters"]}
        named = (trained[key] for key in ("model", "prompt", "strategy", "encoders", "seed"))
        name = paths.run_path("-", "-", *named).name
        tell(f"on record: {folder.put_on_record(record, name, tables, known)}")
    tell(f"{summary(known['dice'])}\nwritten: {os.path.relpath(target)}")
    return target
