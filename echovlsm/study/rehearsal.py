"""Rehearse a run: ``echovlsm rehearse camus-full --cohort /path/to/CAMUS_public``.

The dry run looks; this goes the whole way, with the model, the pictures and the settings of the run, but with
one patient in each part and two optimiser steps: notebooks 04 and 05, executed as for the run itself. What
comes out is no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echovlsm.base import RunFolder, files, paths
from echovlsm.evaluation import scoring
from echovlsm.study import dry_run_checks as checks
from echovlsm.study.dry_run import (
    NOTEBOOKS,
)
from echovlsm.study.execution import execute
from echovlsm.study.parameters import notebook_parameters

if TYPE_CHECKING:
    import pandas as pd

TWO_STEPS: dict[str, Any] = {
    **dict.fromkeys(("train_patients", "val_patients", "synthetic_patients", "test_patients"), 1),
    "epochs": 1,
    "batch_size": 2,
    "redo": True,
}
"""What a rehearsal has otherwise than its run: the four pictures of a patient are two batches."""

MARK = "A rehearsal of two optimiser steps: it shows that the way is open and is no result."

_PLACES = ("cohort", "run", "synthetic", "weights")  # paths of one machine tell another nothing
_KEPT = ("scale", "kind", "weights_hash", "data_hash", "commit", "date", "device", "packages")


def rehearse(values: Mapping[str, Any]) -> dict[str, Any]:
    """Execute notebooks 04 and 05 with a rehearsal's parameters, in a new run folder.

    Parameters
    ----------
    values
        Of `echovlsm.study.dry_run.settings`, with `TWO_STEPS` among the changes and a `run` folder, which is
        emptied first.

    Returns
    -------
    dict
        What may be put on record: `note`, parameters without places, provenance, `steps`, `history` (the
        epoch's row), `seconds` and `peak_memory_gib` of the training, `scored` (pictures, seconds, Dice).

    Raises
    ------
    papermill.PapermillExecutionError
        A cell failed.
    """
    import pandas as pd

    run = RunFolder(values["run"])
    if run.path.is_dir():
        with files.only_one(run.path):
            files.remove(run.path)
    for name in NOTEBOOKS:
        source = paths.project_root() / "notebooks" / f"{name}.ipynb"
        declared = notebook_parameters(source)
        given = {key: value for key, value in values.items() if key in declared}
        execute(source, run / f"{name}.ipynb", given, progress=False)
    record = run.record
    _, frames = checks.check_cohort(values)
    counts = checks.count_pictures(values, frames, checks.check_synthetic(values)[1])
    history = pd.read_csv(run / "history.csv").to_dict("records")[-1]
    scores = scoring.three_structures(pd.read_parquet(run / "scores.parquet"))
    scores = scores[scores["strategy"] == values["strategy"]]
    pictures = len(scores[["patient", "view", "phase"]].drop_duplicates())
    shown = {key: value for key, value in record["parameters"].items() if key not in _PLACES}
    return {
        "note": MARK,
        "model": values["model"],
        "parameters": shown,
        **{key: record[key] for key in _KEPT if key in record},
        "steps": -(-counts["train"] // values["batch_size"]) * record["epochs"],
        "history": history,
        "seconds": record["seconds"],
        "peak_memory_gib": record["peak_memory_gib"],
        "scored": {
            "split": values["evaluate_on"],
            "pictures": pictures,
            "seconds": record["evaluation"]["seconds"],
            "dice": float(scores["dice"].mean()),
        },
    }


def put_on_record(
    record: Mapping[str, Any], before: pd.DataFrame, whole: pd.DataFrame, folder: str | Path, remark: str = ""
) -> Path:
    """Write a rehearsal's record and the dry runs of itself and of the whole run.

    Parameters
    ----------
    record
        Of `rehearse`.
    before, whole
        Tables of `echovlsm.study.dry_run.dry_run`: of the rehearsal, and of the run that it rehearses.
    folder
        Folder of recorded rehearsals; files are named after the model.
    remark
        Added to the note, such as what the weights were.
    """
    target = RunFolder(folder)
    name = record["model"]
    note = f"{record['note']} {remark}".strip()
    target.write_yaml(f"{name}.yaml", {**record, "note": note})
    target.write_table(f"{name}-checks.csv", before)
    target.write_table(f"{name}-checks-whole.csv", whole)
    return target.path


def summary(record: Mapping[str, Any]) -> str:
    """A rehearsal's record in one sentence."""
    told = f"{record['steps']} steps: loss {record['history']['train_loss']:.3f}"
    told += f", {record['seconds']:.0f} s and {record['peak_memory_gib']:.1f} GiB in all; "
    return f"{told}{record['scored']['pictures']} pictures scored. {MARK}"
