"""Phantom echocardiograms: a causal, physics-based simulator of apical 2CH and 4CH images with labels.

Every attribute that a prompt names is a cause of the image: view, phase (end-diastole: the last frame before
the mitral valve closes, its leaflets open; end-systole: valve closed, small cavity, large atrium), sex
(size), age (wall, atrium, echogenicity) and quality. Patient i of a cohort depends on the cohort's seed and
on i alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from echovlsm import PHASES, SPLITS, VIEWS
from echovlsm.base import in_order
from echovlsm.cohort import write_cohort
from echovlsm.phantom.acoustics import draw_recording, polar_image
from echovlsm.phantom.anatomy import Heart, Tissue, heart_coordinates, hinge_points, make_heart, tissue_map
from echovlsm.phantom.beam import image_grid, sample_points, scan_convert
from echovlsm.phantom.looks import LOOKS
from echovlsm.phantom.patient import Patient, draw_patient, of_version, without_variation
from echovlsm.phantom.versions import ORIGIN, check_making

LICENCE = "MIT"


@dataclass(frozen=True)
class Phantom:
    """One simulated image with everything known about it."""

    image: np.ndarray
    """uint8 (H, W), 0 outside the sector; H = size, W = round(1.22 size)."""
    labels: np.ndarray
    """uint8 (H, W): 0 background, 1 LV cavity, 2 myocardium, 3 left atrium."""
    spacing: float
    """Side of a pixel, mm; the same in both directions."""
    tissue: np.ndarray
    """uint8 (H, W) of `Tissue` values."""
    echoes: np.ndarray
    """Grey levels under the beams, of which the image is made: float32 (ranges, beams), 0 to 255."""
    heart: Heart
    """The geometry behind labels and image."""


def simulate(
    patient: Patient,
    view: str,
    phase: str,
    seed: int | np.random.Generator,
    size: int = 256,
    version: int = 1,
    without: tuple[str, ...] = (),
) -> Phantom:
    """Simulate one image of a patient.

    Parameters
    ----------
    patient
        The causes.
    view, phase
        2CH or 4CH; ED or ES.
    seed
        Decides what belongs to the frame alone: speckle, noise and a small movement of the probe.
    size
        Height of the image in pixels, at least 32.
    version
        A key of `versions.VERSIONS`; an image of a seed and version is always the same.
    without
        Keys of `versions.INGREDIENTS`: what is left out. The rest is drawn as it is with them.

    Raises
    ------
    ValueError
        An unknown view, phase, version or ingredient, or a size below 32.
    """
    if view not in VIEWS:
        raise ValueError(f"view={view!r}: use one of {VIEWS}")
    if phase not in PHASES:
        raise ValueError(f"phase={phase!r}: use one of {PHASES}")
    check_making(size, version, without)
    rng = np.random.default_rng(seed)
    patient = without_variation(of_version(patient, version), without)
    context = "context" not in without
    jitter = rng.normal(0, (0.8, 0.8, 0.015))
    moved = float(jitter[0]), float(jitter[1]), float(jitter[2])
    heart = make_heart(patient, view, phase, moved, version)
    causes = patient.views[view], patient.fibrosis, patient.calcification
    recording = draw_recording(*causes, version, tuple(without))
    depth, opening = recording.depth, recording.opening
    under_beams = tissue_map(heart, *sample_points(depth, opening, rng, version), context)
    echoes = polar_image(under_beams, recording, rng, hinge_points(heart), LOOKS[version].added(view, phase))
    x, y = (v * np.float32(depth) for v in image_grid(opening, size, version)[:2])
    tissue = tissue_map(heart, x, y, context)
    return Phantom(
        image=scan_convert(echoes, opening, size, version),
        labels=_labels_of(tissue, heart, x, y),
        spacing=depth / size,
        tissue=tissue,
        echoes=echoes,
        heart=heart,
    )


def _labels_of(tissue: np.ndarray, heart: Heart, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """CAMUS labels (uint8: 0 background, 1 LV cavity, 2 myocardium, 3 left atrium) of a tissue map.

    Papillary muscle and leaflets belong to the chamber they lie in, as annotators draw them.
    """
    labels = tissue * (tissue <= 3)
    labels[tissue == Tissue.PAPILLARY] = 1
    flaps = np.unravel_index(np.flatnonzero(tissue == Tissue.VALVE), tissue.shape)
    u, q = heart_coordinates(heart, x[flaps], y[flaps])
    left, right = -heart.share_left * heart.width, (1 - heart.share_left) * heart.width
    mitral = (u > left - 0.5) & (u < right + 0.5)  # and not the tricuspid valve
    labels[flaps] = np.where(mitral, np.where(q > 0, 1, 3), 0)
    return labels


def draw_cohort_patient(seed: int, index: int) -> Patient:
    """Causes of patient `index` (from 0) of the cohort of `seed`: the same however many patients it has."""
    return draw_patient(np.random.default_rng([seed, index]))


def _patient_frames(
    index: int, seed: int, size: int, version: int, without: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The four frames of a patient, as `cohort.write_cohort` takes them, without the split."""
    patient = without_variation(draw_cohort_patient(seed, index), without)
    info = {
        "EF": round(patient.ejection_fraction, 1),
        "Condition": patient.condition,
        "WallThickness": round(patient.wall_thickness, 1),
    }
    known = {"patient": f"patient{index + 1:04d}", "sex": patient.sex, "age": patient.age, "info": info}
    frames = []
    for (i, view), (j, phase) in product(enumerate(VIEWS), enumerate(PHASES)):
        rng = np.random.default_rng([seed, index, i, j])
        phantom = simulate(patient, view, phase, rng, size, version, without)
        frames.append(
            {
                **known,
                "view": view,
                "phase": phase,
                "quality": patient.views[view].quality,
                "spacing_y": phantom.spacing,
                "spacing_x": phantom.spacing,
                "image": phantom.image,
                "labels": phantom.labels,
            }
        )
    return frames


def write_phantom_cohort(
    root: str | Path,
    patients: int,
    seed: int,
    size: int = 256,
    splits: tuple[float, float, float] = (0.6, 0.15, 0.25),
    overwrite: bool = False,
    progress: bool = True,
    workers: int | None = None,
    version: int = 1,
    without: tuple[str, ...] = (),
) -> Path:
    """Write a cohort of phantom patients, four images each, and return its folder.

    Parameters
    ----------
    root
        Folder to make, as for `echovlsm.cohort.write_cohort`, which also says what `overwrite` does.
    patients, seed, size
        Number of patients, seed, and height of the images in pixels. An image depends on the seed and its
        patient's number alone.
    splits
        Shares of train, val and test patients: the first patients train, the last test.
    progress
        Whether to show a progress bar.
    workers
        Processes that draw; None: one a usable core.
    version, without
        As for `simulate`; ``cohort.yaml`` names them, so that `require_phantom` tells cohorts apart.

    Raises
    ------
    ValueError
        A bad parameter.

    Notes
    -----
    The cfg files carry the drawn ejection fraction (`EF`, %).
    """
    if patients < 1:
        raise ValueError(f"patients={patients}: a cohort needs at least one patient")
    if seed < 0:
        raise ValueError(f"seed={seed}: use a whole number of at least 0")
    if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise ValueError(f"splits={splits}: give three shares (train, val, test) that add up to 1")
    check_making(size, version, without)

    root, without = Path(root), tuple(without)
    made = {"patients": patients, "size": size, "splits": list(splits), "version": version}
    if without:
        made["without"] = sorted(without)
    meta = {
        "name": root.name,
        "kind": "phantom",
        "origin": ORIGIN,
        "licence": LICENCE,
        "seed": seed,
        "parameters": made,
    }
    make = partial(_patient_frames, seed=seed, size=size, version=version, without=without)
    # the first patients train, the next validate, the last test
    train, val = (round(share * patients) for share in splits[:2])

    def frames() -> Iterator[dict[str, Any]]:
        with tqdm(total=4 * patients, desc="phantoms", unit="image", disable=not progress) as bar:
            for index, four in enumerate(in_order(make, range(patients), workers, least=8)):
                split = SPLITS[(index >= train) + (index >= train + val)]
                for frame in four:
                    yield {**frame, "split": split}
                    bar.update()

    write_cohort(root, frames(), meta, overwrite=overwrite)
    return root
