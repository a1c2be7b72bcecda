"""The study on real hearts: learning curves from one command, and what they say.

    python -m echovlsm.real_study --cohort /path/to/CAMUS_public --install data/results/camus

trains and scores every run of the grid that is not there yet and writes the tables that notebook 09 shows.
The synthetic cohort of the diffusion model is notebook 02's, the phantom cohort notebook 01's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from echovlsm import runs
from echovlsm.learning_curves import LONGER, NONE, CurveError, Plan, Run, Study, all_runs


def _numbers(text: str, name: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise CurveError(f"{name}: {text!r} is no list of whole numbers such as 5,25,100") from error


def main(
    cohort: Annotated[str, typer.Option(help="cohort of real patients")] = "data/cohorts/camus",
    sdm: Annotated[str, typer.Option(help="synthetic cohort drawn by diffusion; empty: none")] = (
        "data/cohorts/synthetic-camus"
    ),
    phantom: Annotated[str, typer.Option(help="phantom cohort; empty: none")] = "data/cohorts/phantom-demo",
    both: Annotated[bool, typer.Option(help="also pretrain on both together")] = True,
    sizes: Annotated[
        str, typer.Option(help="numbers of patients; the largest may be `all`")
    ] = "5,25,100,all",
    seeds: Annotated[str, typer.Option(help="seeds of patients, order and augmentation")] = "0,1,2",
    control: Annotated[str, typer.Option(help="sizes at which longer training stands for pretraining")] = (
        "25,all"
    ),
    steps: Annotated[int, typer.Option(help="optimiser steps on real pictures")] = 100,
    pretraining_steps: Annotated[int, typer.Option(help="optimiser steps on synthetic pictures")] = 400,
    image_size: Annotated[int, typer.Option(help="side in pixels; 0: that of the weights")] = 0,
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/camus/curves"),
    minutes: Annotated[
        float, typer.Option(help="start no further run after this; 0: no limit; below 0: none at all")
    ] = 0,
    threads: Annotated[int, typer.Option(help="processor threads")] = 1,
    install: Annotated[Path | None, typer.Option(help="put tables and record into this folder")] = None,
) -> None:
    """Train and score every run that is missing."""
    named = {"sdm": [sdm] if sdm else [], "phantom": [phantom] if phantom else []}
    if both and sdm and phantom:
        named["both"] = [sdm, phantom]
    plan = Plan(
        cohort,
        {name: paths for name, paths in named.items() if paths},
        image_size=image_size,
        steps=steps,
        pretraining_steps=pretraining_steps,
    )
    torch.set_num_threads(threads)
    study = Study(plan, out)
    counts, longer = (
        _numbers(text.replace("all", str(len(study.patients))), name)
        for text, name in ((sizes, "--sizes"), (control, "--control"))
    )
    wanted = all_runs([NONE, *plan.pretraining], counts, _numbers(seeds, "--seeds"), longer)
    clock = time.perf_counter()
    for number, one in enumerate(wanted, start=1):
        if (study.folder / one.file).is_file():
            continue
        if minutes < 0 or (minutes and time.perf_counter() - clock > 60 * minutes):
            typer.echo(f"{len(wanted) - number + 1} runs are left; the same command goes on")
            break
        record = study.run(one)
        mean = float(np.mean(record["dice"]))
        typer.echo(f"{number}/{len(wanted)} {one.file}: Dice {mean:.3f}, {record['seconds']:.0f} s")
    if install:
        typer.echo(f"written to {put_on_record(study, wanted, runs.resolve(install))}")


def comparable(study: Study, wanted: Sequence[Run]) -> list[Run]:
    """The finished runs whose number of patients and seed every pretraining has: means compare like.

    A pretraining on several cohorts together may be behind the others; its rows then count fewer seeds.
    """
    made = [one for one in wanted if (study.folder / one.file).is_file()]
    behind = {LONGER, *(name for name, paths in study.plan.pretraining.items() if len(paths) > 1)}
    lacking = {
        (one.patients, one.seed) for one in wanted if one not in made and one.pretraining not in behind
    }
    return [one for one in made if (one.patients, one.seed) not in lacking]


def put_on_record(study: Study, wanted: Sequence[Run], folder: Path) -> Path:
    """Write scores, curves and a record of how they came about; no pictures, no weights."""
    made = comparable(study, wanted)
    scores, curves = study.tables(made)
    read = [json.loads((study.folder / one.file).read_text()) for one in made]
    trained = study.folder.glob("pretrained-*/training.json")
    pretraining = {
        file.parent.name.removeprefix("pretrained-"): round(json.loads(file.read_text())["seconds"] / 60, 1)
        for file in trained
    }
    record = runs.RunFolder(folder / "curves")
    record.write_table("curve_scores.parquet", scores)
    record.write_table("curves.csv", curves)
    plan = {key: value for key, value in asdict(study.plan).items() if key not in ("cohort", "pretraining")}
    values = {
        "status": "complete" if len(made) == len(wanted) else "partial",
        "runs": len(made),
        "cohort": study.meta["name"],
        "kind": study.meta["kind"],
        "scale": "demo",
        "parameters": plan | {"looks": list(plan["looks"])},
        "pretraining": study.made_from["pretraining"],
        "pool_patients": len(study.patients),
        "data_hash": study.made_from["data_hash"],
        "weights_hash": study.made_from["weights_hash"],
        "minutes": round(sum(one["seconds"] for one in read) / 60, 1),
        "pretraining_minutes": pretraining,
        "peak_memory_gib": max(one.get("peak_memory_gib", 0.0) for one in read),
        "commit": ", ".join(sorted({one["commit"] for one in read})),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": runs.device_name(),
        "packages": runs.package_versions(),
    }
    record.write_yaml("run.yaml", values)
    return record.path


if __name__ == "__main__":
    typer.run(main)
