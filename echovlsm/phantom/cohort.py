"""Phantom echocardiograms: a causal, physics-based simulator of apical 2CH and 4CH pictures with labels.

Causes (:func:`draw_patient`, in `phantom_patient`) make anatomy in millimetres (`phantom_anatomy`); anatomy
makes labels and, through the acoustics of a sector scanner (`phantom_acoustics`), the picture. Every
attribute that a prompt names is a cause of the picture: view, phase (end-diastole: the last frame before
the mitral valve closes, its leaflets open; end-systole: valve closed, small cavity, large atrium), sex
(size), age (wall, atrium, echogenicity) and quality.

Everything follows from seeds: patient i of a cohort depends on the cohort's seed and on i alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from echovlsm import PHASES, SPLITS, VIEWS
from echovlsm.base import processes
from echovlsm.cohort import write_cohort
from echovlsm.phantom.acoustics import draw_recording, polar_picture
from echovlsm.phantom.anatomy import (
    Heart,
    Tissue,
    heart_coordinates,
    hinge_points,
    make_heart,
    tissue_map,
)
from echovlsm.phantom.beam import (
    envelope,
    picture_grid,
    polar_grid,
    scan_convert,
    smooth_field,
)
from echovlsm.phantom.patient import Acquisition, Patient, draw_patient

__all__ = [
    "Acquisition",
    "Heart",
    "Patient",
    "Phantom",
    "Tissue",
    "biplane_volume",
    "draw_cohort_patient",
    "draw_patient",
    "ejection_fraction",
    "envelope",
    "simulate",
    "write_phantom_cohort",
]

ORIGIN = "EchoVLSM phantom simulator (echovlsm.phantom): no patient data"
LICENCE = "MIT"


@dataclass(frozen=True)
class Phantom:
    """One simulated picture with everything known about it."""

    image: np.ndarray
    """uint8 (H, W), 0 outside the sector; H = size, W = round(1.22 size)."""
    labels: np.ndarray
    """uint8 (H, W): 0 background, 1 LV cavity, 2 myocardium, 3 left atrium."""
    spacing: float
    """Side of a pixel, mm; the same in both directions."""
    tissue: np.ndarray
    """uint8 (H, W) of :class:`Tissue` values."""
    heart: Heart
    """The geometry behind labels and picture."""


def simulate(
    patient: Patient, view: str, phase: str, seed: int | np.random.Generator, size: int = 256
) -> Phantom:
    """Simulate one picture of a patient.

    `view` is 2CH or 4CH, `phase` ED or ES, `size` the picture's height in pixels (at least 32). `seed`
    decides what belongs to the frame alone: speckle, noise and a small movement of the probe. Raises
    ValueError for an unknown view or phase, or a size below 32.
    """
    if view not in VIEWS:
        raise ValueError(f"view={view!r}: use one of {VIEWS}")
    if phase not in PHASES:
        raise ValueError(f"phase={phase!r}: use one of {PHASES}")
    if size < 32:
        raise ValueError(f"size={size}: a phantom needs at least 32 rows")
    rng = np.random.default_rng(seed)
    acquisition = patient.views[view]
    jitter = rng.normal(0, (0.8, 0.8, 0.015))
    heart = make_heart(patient, view, phase, (float(jitter[0]), float(jitter[1]), float(jitter[2])))
    depth, opening = acquisition.depth, acquisition.opening

    beam_x, beam_y, _ = polar_grid(opening)
    # trabeculae and the thickness of the slice make borders rough where annotators draw them smooth
    amplitude = 0.4 + 0.7 * np.hypot(beam_x, beam_y)
    rough_x, rough_y = (amplitude * smooth_field(rng, (24, 16), flat=True) for _ in range(2))
    recording = draw_recording(
        (acquisition.seed, 2),
        acquisition.quality,
        depth,
        opening,
        patient.fibrosis,
        patient.calcification,
    )
    polar = polar_picture(
        tissue_map(heart, beam_x * np.float32(depth) + rough_x, beam_y * np.float32(depth) + rough_y),
        recording,
        rng,
        hinge_points(heart),
    )
    x, y = (v * np.float32(depth) for v in picture_grid(opening, size)[:2])
    tissue = tissue_map(heart, x, y)
    return Phantom(
        image=scan_convert(polar, opening, size),
        labels=_labels_of(tissue, heart, x, y),
        spacing=depth / size,
        tissue=tissue,
        heart=heart,
    )


def _labels_of(tissue: np.ndarray, heart: Heart, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """CAMUS labels (uint8: 0 background, 1 LV cavity, 2 myocardium, 3 left atrium) of a tissue map.

    Papillary muscle and leaflets belong to the chamber they lie in, as annotators draw them.
    """
    labels = np.where(tissue <= 3, tissue, 0).astype(np.uint8)
    labels[tissue == Tissue.PAPILLARY] = 1
    flaps = np.nonzero(tissue == Tissue.VALVE)
    u, q = heart_coordinates(heart, x[flaps], y[flaps])
    left, right = -heart.share_left * heart.width, (1 - heart.share_left) * heart.width
    mitral = (u > left - 0.5) & (u < right + 0.5)  # and not the tricuspid valve
    labels[flaps] = np.where(mitral, np.where(q > 0, 1, 3), 0)
    return labels


def biplane_volume(labels: Sequence[np.ndarray], spacing: Sequence[float], discs: int = 20) -> float:
    """Biplane volume (mL) of the LV cavity from a 2CH and a 4CH label map (H, W) with spacings in mm.

    Modified Simpson rule of Lang et al. 2015: each cavity is cut along its long axis (from the middle of the
    valve to the farthest point of the apex) into `discs`; discs have the two views' widths as diameters, and
    the longer axis gives their height. Raises ValueError if a label map has no cavity.
    """
    widths, lengths = zip(
        *(_disc_widths(a, s, discs) for a, s in zip(labels, spacing, strict=True)), strict=True
    )
    return float(np.pi / 4 * np.sum(np.prod(widths, axis=0)) * max(lengths) / discs / 1000)


def _disc_widths(labels: np.ndarray, spacing: float, discs: int) -> tuple[np.ndarray, float]:
    """Widths (discs,) across the long axis and its length, in mm."""
    rows, columns = np.nonzero(labels == 1)
    if len(rows) == 0:
        raise ValueError("labels hold no LV cavity (1): no volume can be measured")
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    # the valve line: cavity pixels with something else than cavity or wall right below them
    below = np.vstack([labels[1:], np.zeros_like(labels[:1])])
    edge_rows, edge_columns = np.nonzero((labels == 1) & ((below == 0) | (below == 3)))
    middle = np.array([(edge_columns.min() + edge_columns.max()) / 2, edge_rows.mean()])
    apex = points[np.argmax(((points - middle) ** 2).sum(axis=1))]
    axis = apex - middle
    axis /= np.linalg.norm(axis)
    height = (points - middle) @ axis
    length = height.max() - height.min() + 1
    index = np.clip(((height - height.min()) / length * discs).astype(int), 0, discs - 1)
    area = np.bincount(index, minlength=discs)
    return area * spacing / (length / discs), length * spacing


def ejection_fraction(phantoms: dict[tuple[str, str], Phantom]) -> float:
    """Ejection fraction (%) measured on the label maps of a patient's four phantoms, keyed (view, phase)."""
    ed, es = (
        biplane_volume([phantoms[v, p].labels for v in VIEWS], [phantoms[v, p].spacing for v in VIEWS])
        for p in PHASES
    )
    return 100 * (1 - es / ed)


def draw_cohort_patient(seed: int, index: int) -> Patient:
    """Causes of patient `index` (from 0) of the cohort of `seed`: the same however many patients it has."""
    return draw_patient(np.random.default_rng([seed, index]))


def _patient_frames(index: int, seed: int, size: int) -> list[dict[str, Any]]:
    """The four frames of a patient, as `cohort.write_cohort` takes them, without the split."""
    patient = draw_cohort_patient(seed, index)
    frames = []
    for view in VIEWS:
        for phase in PHASES:
            frame_seed = np.random.default_rng([seed, index, VIEWS.index(view), PHASES.index(phase)])
            phantom = simulate(patient, view, phase, frame_seed, size)
            info = {
                "EF": round(patient.ejection_fraction, 1),
                "Condition": patient.condition,
                "WallThickness": round(patient.wall_thickness, 1),
            }
            frames.append(
                {
                    "patient": f"patient{index + 1:04d}",
                    "view": view,
                    "phase": phase,
                    "sex": patient.sex,
                    "age": patient.age,
                    "quality": patient.views[view].quality,
                    "spacing_y": phantom.spacing,
                    "spacing_x": phantom.spacing,
                    "image": phantom.image,
                    "labels": phantom.labels,
                    "info": info,
                }
            )
    return frames


def split_of(index: int, patients: int, splits: tuple[float, float, float]) -> str:
    """Split of patient `index` (from 0): the first patients train, the next validate, the last test."""
    train = round(splits[0] * patients)
    val = round(splits[1] * patients)
    return SPLITS[0] if index < train else SPLITS[1] if index < train + val else SPLITS[2]


def _all_frames(
    patients: int,
    seed: int,
    size: int,
    splits: tuple[float, float, float],
    progress: bool,
    workers: int | None,
) -> Iterator[dict[str, Any]]:
    """Frames of the whole cohort in order, made by `workers` processes; by this one if they are few."""
    from tqdm.auto import tqdm

    make = partial(_patient_frames, seed=seed, size=size)
    with tqdm(total=4 * patients, desc="phantoms", unit="picture", disable=not progress) as bar:
        made = processes.in_order(make, range(patients), workers, least=8)
        for index, frames in enumerate(made):
            for frame in frames:
                yield {**frame, "split": split_of(index, patients, splits)}
                bar.update()


def write_phantom_cohort(
    root: str | Path,
    patients: int,
    seed: int,
    size: int = 256,
    splits: tuple[float, float, float] = (0.6, 0.15, 0.25),
    overwrite: bool = False,
    progress: bool = True,
    workers: int | None = None,
) -> Path:
    """Write a cohort of `patients` phantom patients (four pictures each) to the folder `root`; return it.

    `splits` are the shares of train, val and test patients: the first patients train, the last test.
    `workers` processes draw them, None: one a usable core. Pictures depend on `seed` and the patient's number
    alone, not on `patients`, `workers` or `splits`. The
    cfg files carry the drawn ejection fraction (`EF`, %). Raises ValueError for bad parameters; the writer
    (:func:`echovlsm.cohort.write_cohort`) is atomic and refuses an existing folder unless `overwrite`.
    """
    if patients < 1:
        raise ValueError(f"patients={patients}: a cohort needs at least one patient")
    if size < 32:
        raise ValueError(f"size={size}: a phantom needs at least 32 rows")
    if seed < 0:
        raise ValueError(f"seed={seed}: use a whole number of at least 0")
    if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise ValueError(f"splits={splits}: give three shares (train, val, test) that add up to 1")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: use at least one process")

    root = Path(root)
    meta = {
        "name": root.name,
        "kind": "phantom",
        "origin": ORIGIN,
        "licence": LICENCE,
        "seed": seed,
        "parameters": {"patients": patients, "size": size, "splits": list(splits)},
    }
    frames = _all_frames(patients, seed, size, splits, progress, workers)
    write_cohort(root, frames, meta, overwrite=overwrite)
    return root
