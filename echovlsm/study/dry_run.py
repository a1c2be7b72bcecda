"""Try a run before it starts: look at all that it needs, or go its whole way in small.

A large run should not stop after hours because a file is missing. `dry_run` looks at everything that a run of
notebooks 04 and 05 needs: the cohort, the synthetic cohorts, the weights, the prompts, the disk, and, by one
training step at batch 1 and one at batch 2, memory and time. Nothing is written, nothing is fetched.
`rehearse` executes both notebooks, with one patient in each part and two optimiser steps; what comes out is
no result.

    echovlsm dry-run camus-full --cohort /path/to/CAMUS_public
    echovlsm rehearse camus-full --cohort /path/to/CAMUS_public
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from echovlsm.base import RunFolder, cache, files, paths
from echovlsm.evaluation import scoring
from echovlsm.study import dry_run_checks as checks
from echovlsm.study import run_costs
from echovlsm.study.execution import execute
from echovlsm.study.parameters import (
    check_values,
    coerce,
    notebook_defaults,
    notebook_parameters,
    read_profile,
)

NOTEBOOKS: tuple[str, ...] = ("04_training", "05_evaluation")
"""What a run consists of."""

TWO_STEPS: dict[str, Any] = {
    **dict.fromkeys(("train_patients", "val_patients", "synthetic_patients", "test_patients"), 1),
    "epochs": 1,
    "batch_size": 2,
    "redo": True,
}
"""What a rehearsal has otherwise than its run: the four images of a patient are two batches."""

MARK = "A rehearsal of two optimiser steps: it shows that the way is open and is no result."

_PLACES = ("cohort", "run", "synthetic", "weights")  # paths of one machine tell another nothing
_KEPT = ("scale", "kind", "weights_hash", "data_hash", "commit", "date", "device", "packages")


def settings(profile: str | Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All parameters of a run: the notebooks' defaults, a profile's values, and changes on top.

    `profile` is a file of `notebooks/profiles`, or its name.

    Raises
    ------
    ParameterError
        No such profile, or a parameter that is unknown or has a value that it cannot have.
    """
    folder = paths.project_root() / "notebooks"
    named = Path(profile)
    file = paths.resolve(named) if named.suffix == ".yaml" else folder / "profiles" / f"{profile}.yaml"
    declared = {
        name: kind
        for path in sorted(folder.glob("*.ipynb"))
        for name, kind in notebook_parameters(path).items()
    }
    changed = coerce(changes or {}, declared)
    check_values(changed, declared, "parameters")
    values = {**read_profile(file), **changed}
    check_values(values, declared, file.name)
    training, evaluation = (notebook_defaults(folder / f"{name}.ipynb") for name in NOTEBOOKS)
    return {**evaluation, **training, **values}


def dry_run(
    values: Mapping[str, Any], *, measure: bool = True, batches: tuple[int, int] = (1, 2)
) -> pd.DataFrame:
    """Look at everything that a run needs.

    Parameters
    ----------
    values
        Of `settings`.
    measure
        Whether to take training steps, for memory and time; with a model of full size a minute on a CPU.
    batches
        Two numbers of images at which a step is measured; what lies between and beyond is a straight line.

    Returns
    -------
    DataFrame
        One row a check: `check`, `value`, `ok` (bool), `remedy` (empty where nothing is to be done).
    """
    room = cache.bound()
    with _without_cache():
        found = checks.check_machine(values)
        more, frames = checks.check_cohort(values)
        found += more
        more, sources = checks.check_synthetic(values)
        found += more
        held = run_costs.process_memory()
        more, model = checks.check_weights(values)
        found += more
        if model is not None:
            texts: list[str] = []
            if frames is not None or sources:
                more, texts = checks.check_prompts(values, frames, sources, model)
                found += more
            counts = checks.count_images(values, frames, sources)
            steps = batches if measure and texts else None
            found += run_costs.check_costs(values, model, texts, counts, room, held, steps)
    return pd.DataFrame(found).astype({"ok": bool})


@contextmanager
def _without_cache() -> Iterator[None]:
    """Nothing is kept of what is computed here."""
    before = os.environ.get(cache.FOLDER)
    os.environ[cache.FOLDER] = ""
    try:
        yield
    finally:
        del os.environ[cache.FOLDER]
        if before is not None:
            os.environ[cache.FOLDER] = before


def report(table: pd.DataFrame) -> str:
    """The checks as lines for a terminal, and a last line that sums them up."""
    name = max(map(len, table["check"])) + 2
    room = max(40, shutil.get_terminal_size((110, 24)).columns - name - 9)
    lines = []
    for row in table.itertuples():
        head = f"{'ok' if row.ok else 'MISSING':9}{row.check:{name}}"
        for text in (row.value, f"→ {row.remedy}") if row.remedy else (row.value,):
            for part in textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False):
                lines.append(f"{head}{part}")
                head = " " * len(head)
    bad = int((~table["ok"]).sum())
    lines.append(f"{bad} of {len(table)} checks failed: a run would stop" if bad else "a run can start")
    return "\n".join(lines)


# -- rehearsal --------------------------------------------------------------------------------------------


def rehearse(values: Mapping[str, Any]) -> dict[str, Any]:
    """Execute notebooks 04 and 05 with a rehearsal's parameters, in a new run folder.

    Parameters
    ----------
    values
        Of `settings`, with `TWO_STEPS` among the changes and a `run` folder, which is emptied first.

    Returns
    -------
    dict
        What may be put on record: `note`, parameters without places, provenance, `steps`, `history` (the
        epoch's row), `seconds` and `peak_memory_gib` of the training, `scored` (images, seconds, Dice).

    Raises
    ------
    papermill.PapermillExecutionError
        A cell failed.
    """
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
    counts = checks.count_images(values, frames, checks.check_synthetic(values)[1])
    scores = scoring.three_structures(pd.read_parquet(run / "scores.parquet"))
    scores = scores[scores["strategy"] == values["strategy"]]
    return {
        "note": MARK,
        "model": values["model"],
        "parameters": {key: value for key, value in record["parameters"].items() if key not in _PLACES},
        **{key: record[key] for key in _KEPT if key in record},
        "steps": -(-counts["train"] // values["batch_size"]) * record["epochs"],
        "history": pd.read_csv(run / "history.csv").to_dict("records")[-1],
        "seconds": record["seconds"],
        "peak_memory_gib": record["peak_memory_gib"],
        "scored": {
            "split": values["evaluate_on"],
            "pictures": len(scores[["patient", "view", "phase"]].drop_duplicates()),
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
        Tables of `dry_run`: of the rehearsal, and of the run that it rehearses.
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
    return f"{told}{record['scored']['pictures']} images scored. {MARK}"
