"""Phantom images and prompts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import plain, setups
from benchmarks.measure import Pair, Rate, Side, median_of
from benchmarks.setups import Settings
from echovlsm.phantom.cohort import draw_cohort_patient, simulate, write_phantom_cohort
from echovlsm.prompts.shapes import name_shapes
from echovlsm.prompts.templates import make_prompts


def run(settings: Settings) -> Iterator[Pair | Rate]:
    """Images per second, drawn alone and written as a cohort; prompts of 500 patients with shapes."""
    yield from _images(settings)
    yield from _prompts(settings)


def _images(settings: Settings) -> Iterator[Rate]:
    size, patients = (64, 2) if settings.quick else (256, 20)
    causes = [draw_cohort_patient(8, index) for index in range(5)]

    def draw() -> None:
        for number, patient in enumerate(causes):
            simulate(patient, "4CH", "ED", number, size)

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_phantom_cohort(Path(folder) / "phantom", patients, 8, size, progress=False)

    again = [simulate(causes[0], "4CH", "ED", 0, size).image for _ in range(2)]
    assert np.array_equal(*again), "a phantom of the same seed is another image"
    drawn = [len(causes) / seconds for seconds in median_of(draw, settings.repeats(5))]
    written = [4 * patients / seconds for seconds in median_of(write, settings.repeats(3))]
    name = f"phantom images, {size} px"
    cores = min(2, os.cpu_count() or 1)
    yield Rate("phantom-drawn", f"{name}, drawn by one process", "images/s", drawn, target=28)
    yield Rate(
        "phantom-written", f"{name}, drawn and written, {cores} processes", "images/s", written, target=20
    )


def _many(frames: pd.DataFrame, patients: int) -> pd.DataFrame:
    """Frames of `patients` patients from those of fewer, each with files of its own."""
    known = frames["patient"].unique()
    parts = []
    for number in range(patients):
        part = frames[frames["patient"] == known[number % len(known)]].assign(patient=f"patient{number:04d}")
        if number >= len(known):
            part["labels"] = [_copy(Path(path), number) for path in part["labels"]]
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.attrs = frames.attrs
    return table


def _copy(path: Path, number: int) -> Path:
    target = path.parents[1] / f"copy{number:04d}-{path.name}"
    if not target.exists():
        shutil.copy(path, target)
    return target


def _prompts(settings: Settings) -> Iterator[Pair | Rate]:
    patients, part = (6, 2) if settings.quick else (500, 20)
    table = _many(setups.cohort(5, 96 if settings.quick else 256), patients)
    few = table.iloc[: 4 * part]

    def run_ours(kept: bool = False) -> pd.DataFrame:
        with setups.own_cache(kept):
            return make_prompts(table, name_shapes(table, progress=False))

    def check(found: pd.DataFrame, wanted: pd.DataFrame) -> str:
        names = ["patient", "view", "phase", "structure", "level", "variant"]
        joined = wanted.set_index(names)["text"]
        mine = found.set_index(names)["text"].loc[joined.index]
        assert mine.equals(joined), "a prompt differs"
        return f"all {len(joined)} prompts of {part} patients are the same texts"

    yield Pair(
        "prompts",
        f"prompts of {patients} patients, all levels, shapes read off the masks",
        "patient",
        Side("tables at once, nothing known before", run_ours, patients),
        Side(f"prompt after prompt ({part} patients)", lambda: plain.prompts(few), part),
        check,
        repeats=settings.repeats(3),
        note=f"The plain way is timed on {part} patients. Masks are read from files; the "
        f"{patients} patients have the masks of five, in files of their own.",
    )
    seconds = median_of(run_ours, settings.repeats(3))
    title = f"prompts of {patients} patients with shapes"
    yield Rate("prompts-seconds", f"{title}, nothing known before", "s", seconds, target=5, better="less")
    again = median_of(lambda: run_ours(True), settings.repeats(3))
    yield Rate("prompts-again", f"{title}, masks seen before", "s", again, better="less")
