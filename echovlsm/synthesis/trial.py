"""The trial of a denoiser in notebook 02: what its images are worth, and which sampler draws them best."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from echovlsm.base import files, paths
from echovlsm.cohort import cohort_hash, load_image, load_labels, resize_image, resize_labels, sectors
from echovlsm.models import ReferenceUNet
from echovlsm.synthesis.labels import PerturbedMaps, source_maps
from echovlsm.synthesis.measures import (
    MYOCARDIUM,
    TISSUES,
    ImageSet,
    grey_counts,
    local_snr,
    own_kernel,
    pooled_distance,
    radial_spectrum,
    sample_distance,
    spectrum_distance,
    squared_mmd,
)
from echovlsm.synthesis.process import sample
from echovlsm.synthesis.train import train_diffusion
from echovlsm.synthesis.unet import SemanticUNet
from echovlsm.synthesis.weights import load_denoiser, save_denoiser, trained_on
from echovlsm.training import fit, hold_out, make_triplets, strategies

MEASURES: tuple[str, ...] = ("kernel distance", "power spectrum (dB)", "grey levels", "speckle SNR")
"""Distances to the source by which samplers are compared; see `compare_samplers`."""

_VARIANTS_IN_NAME = ("synthetic-camus-released",)  # five variants of a label are five patients there

TRAINING: dict[str, Any] = dict(warm_up=200, cosine=True, weight_decay=1e-4, ema_decay=0.999, check_every=150)
"""Settings of `train_diffusion` that suit a small network."""


def divide(
    frames: pd.DataFrame, evaluate_on: str, holdout: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frames to work with (training and validation splits), and those of `evaluate_on`, which take no part.

    Images without a mask are left out. `holdout` is the share of the training patients that validates in
    place of the validation split, so that this may be held out; 0 for none.

    Raises
    ------
    ValueError
        A split is empty, or the held-out split is also the one that chooses epochs.
    """
    if evaluate_on == "val" and holdout == 0:
        raise ValueError("evaluate_on: val also chooses the epochs; set `holdout`, or evaluate_on to test")
    usable = frames[frames["labels"].notna()].reset_index(drop=True)
    usable.attrs = frames.attrs
    work = hold_out(usable, holdout, seed)
    held_out = usable[usable["split"] == evaluate_on]
    parts = {name: work[work["split"] == name] for name in ("train", "val")}
    for name, table in {**parts, f"{evaluate_on} (held out)": held_out}.items():
        if table.empty:
            how = "set `holdout` or another `evaluate_on`"
            raise ValueError(f"cohort: no image with a mask in {name}; {how}")
    return work, held_out


def limit_sources(frames: pd.DataFrame, patients: int, seed: int) -> pd.DataFrame:
    """Frames of so many training patients at random, and of as large a share of the validation patients.

    0 keeps all; ValueError where `patients` is negative or more than there are.
    """
    if patients == 0:
        return frames
    there = frames.groupby("split")["patient"].nunique()
    if not 0 < patients <= there["train"]:
        raise ValueError(
            f"source_patients: {patients} of {there['train']} training patients cannot be taken; 0 takes all"
        )
    share = max(1, round(there["val"] * patients / there["train"]))
    kept = strategies.limit_patients(frames, {"train": patients, "val": share}, seed)
    kept.attrs = frames.attrs
    return kept


def image_set(
    frames: pd.DataFrame,
    size: int,
    source: pd.DataFrame | None = None,
    provenance: pd.DataFrame | None = None,
) -> ImageSet:
    """Images, sector maps and labels of a frames table at (size, size), for the measures of fidelity.

    Labels are whole; only the maps end at the sector, as a denoiser sees them. Every row needs a mask.

    Parameters
    ----------
    frames, size
        Frames table, and side in pixels.
    source, provenance
        For a synthetic cohort: the source's frames table, whose images have the sector (it does not move),
        and the cohort's `provenance.csv`, which says whose it is. Halves then keep source patients whole.
    """
    labels = np.stack([resize_labels(load_labels(row), size).numpy() for row in frames.itertuples()])
    if source is None or provenance is None:
        patients = frames["patient"].astype(str)
        if frames["cohort"].iloc[0] in _VARIANTS_IN_NAME:
            patients = patients.str.replace(r"_\d+$", "", regex=True)
        found = source_maps(frames, size)
        return ImageSet(found.images, found.maps, list(patients), labels)
    images = np.stack([resize_image(load_image(row), size).numpy() for row in frames.itertuples()])
    keys = ["patient", "view", "phase"]
    known = provenance.astype(dict.fromkeys(keys, str))
    origins = frames[keys].astype(str).merge(known, on=keys, how="left", validate="1:1")
    whose = pd.MultiIndex.from_frame(origins[[f"source_{key}" for key in keys]].set_axis(keys, axis=1))
    rows = source.set_index(keys).loc[whose.unique()].reset_index()
    cones = dict(zip(whose.unique(), source_maps(rows, size).maps > 0, strict=True))
    maps = [sectors.to_sector_map(one, cones[key]) for one, key in zip(labels, whose, strict=True)]
    return ImageSet(images, np.stack(maps), list(origins["source_patient"]), labels)


def denoiser_for(
    weights: str | Path, folder: Path, frames: pd.DataFrame | None, start: str = "random", **settings: Any
) -> Path:
    """The folder of the denoiser to sample from: `weights`, or one of its shape trained on `frames`.

    Training goes on if it was interrupted, and leaves `folder/sdm`.

    Parameters
    ----------
    weights
        Folder whose weights are used, or whose shape and prediction type are.
    folder
        The run's folder.
    frames
        Frames table whose training split is learned and whose validation split is watched; None loads.
    start
        ``random``, or ``weights``: go on from those of `weights`, which is cheaper; `trained_on.json` then
        says so.
    settings
        Of `train_diffusion`.
    """
    if start not in ("random", "weights"):
        raise ValueError(f"sdm_start: {start!r} is not known; choose one of random, weights")
    if frames is None:
        return paths.resolve(weights)
    target = folder / "sdm"
    if target.is_dir():
        return target
    with files.only_one(folder):
        if not target.is_dir():  # another process may have ended it
            _learn_denoiser(weights, target, frames, start, **settings)
    return target


def _learn_denoiser(
    weights: str | Path, target: Path, frames: pd.DataFrame, start: str, **settings: Any
) -> None:
    """Train a denoiser of the shape of `weights` and leave it as `target`."""
    import torch

    state = target.with_name("sdm-state")
    shape, schedule = load_denoiser(weights)
    torch.manual_seed(settings.get("seed", 0))
    model, size = shape if start == "weights" else SemanticUNet(shape.config), shape.config.image_size
    learn, check = (source_maps(frames[frames["split"] == split], size) for split in ("train", "val"))
    some = slice(None, None, max(1, len(check.images) // 64))
    history = train_diffusion(
        model,
        learn.images,
        learn.maps,
        state,
        validation=(check.images[some], check.maps[some]),
        prediction=schedule.config.prediction_type,
        **{**TRAINING, **settings},
    )
    source = {name: frames.attrs["meta"][name] for name in ("name", "kind")}
    source["hash"] = cohort_hash(frames[frames["split"] == "train"])
    if start == "weights":
        source |= {f"before_{key}": value for key, value in trained_on(weights).items()}
    with files.appearing(target) as partial:
        save_denoiser(model, schedule.config.prediction_type, partial, trained_on=source)
        history.to_csv(partial / "history.csv", index=False)
    shutil.rmtree(state)


def train_segmenter(
    frames: pd.DataFrame, folder: Path, *, size: int, updates: int, seed: int, progress: bool = True
) -> ReferenceUNet:
    """MONAI's U-Net trained on the training split of `frames`, its epoch chosen on the validation split.

    It takes `updates` steps of 16 images, up to whole epochs, so that cohorts of different size are learned
    for as long. `folder` is where an interrupted training is found again; it goes in the end.
    """
    net = ReferenceUNet.fresh(size, seed=seed)
    learn, check = (frames[frames["split"] == split] for split in ("train", "val"))
    options = {"missing": "omit", "seed": seed}
    fit(
        net,
        make_triplets(learn, "P1", net, augment=True, **options),
        make_triplets(check, "P1", net, variant="0", **options),
        folder,
        epochs=max(1, round(updates * 16 / len(learn))),
        keep="best",
        batch_size=16,
        learning_rate=3e-3,
        plateau_factor=0.3,
        plateau_patience=2,
        seed=seed,
        progress=progress,
    )
    shutil.rmtree(folder)
    return net


def compare_samplers(
    model: Any,
    schedule: Any,
    frames: pd.DataFrame,
    plan: Sequence[tuple[str, int]],
    images: int,
    source: ImageSet,
    features: Callable[[np.ndarray], np.ndarray],
    *,
    guidance: float = 1.0,
    seed: int = 0,
    repeats: int = 200,
    progress: bool = True,
) -> pd.DataFrame:
    """Draw from the same label maps with each sampler, time it, and measure the distance to the source.

    Parameters
    ----------
    model, schedule
        The denoiser.
    frames, images
        Frames table of which so many random images' labels are perturbed and drawn.
    plan
        Samplers and their steps; the first is the reference.
    source
        Images that the samples are compared with, all of them.
    features
        From uint8 (N, H, W) to float (N, D).
    repeats
        Random halves of the drawn images, the same for all samplers. A statistic of a half varies about that
        of all images as that of all varies about the truth: the sd over halves is the spread.

    Returns
    -------
    DataFrame
        One row a sampler: sampler, steps, evaluations of the network an image, pictures a second, speed-up
        over the first, and for each of `MEASURES` its value, its spread (``± ...``), and the spread of its
        difference to the first sampler's on the same images (``±d ...``).
    """
    from tqdm import tqdm

    chosen = frames.sample(min(images, len(frames)), random_state=seed).reset_index(drop=True)
    maps = np.stack([one.sector_map for one in PerturbedMaps(chosen, 1, model.config.image_size, seed)])
    batches = [range(start, min(start + 16, len(maps))) for start in range(0, len(maps), 16)]
    bar = tqdm(total=sum(steps for _, steps in plan), desc="samplers", unit="step", disable=not progress)
    distances = _Distances(source, features)
    orders = (np.random.default_rng((seed, number)).permutation(len(maps)) for number in range(repeats))
    halves = [order[: len(maps) // 2] for order in orders]
    rows, spreads = [], []
    for name, steps in plan:
        evaluations: list[int] = []
        clock = perf_counter()
        drawn = [
            sample(
                model,
                schedule,
                maps[batch],
                batch,
                scheduler=name,
                steps=steps,
                guidance=guidance,
                on_step=lambda counted=evaluations: counted.append(1),
            )
            for batch in batches
        ]
        seconds = perf_counter() - clock
        bar.update(steps)
        row = {
            "sampler": name,
            "steps": steps,
            "evaluations": len(evaluations) // len(batches),
            "pictures a second": len(maps) / seconds,
        }
        row["speed-up"] = row["pictures a second"] / rows[0]["pictures a second"] if rows else 1.0
        parts = distances.parts(np.concatenate(drawn), maps)
        values = distances(parts)
        in_halves = ({key: part[half] for key, part in parts.items()} for half in halves)
        over_halves = np.array([distances(half) for half in in_halves])
        spreads.append(over_halves)
        for column, measure in enumerate(MEASURES):
            row[measure] = values[column]
            row[f"± {measure}"] = over_halves[:, column].std(ddof=1)
            row[f"±d {measure}"] = (over_halves - spreads[0])[:, column].std(ddof=1)
        rows.append(row)
    bar.close()
    return pd.DataFrame(rows)


class _Distances:
    """The `MEASURES` between a few drawn images and all of the source."""

    def __init__(self, source: ImageSet, features: Callable[[np.ndarray], np.ndarray]) -> None:
        self.features = features
        self.mean, self.sd = 0.0, 1.0
        self.source = self.parts(source.images, source.maps)
        found = self.source["features"]
        self.mean, self.sd = found.mean(axis=0), found.std(axis=0) + 1e-9
        self.source["features"] = (found - self.mean) / self.sd
        self.within = own_kernel(self.source["features"])

    def parts(self, images: np.ndarray, maps: np.ndarray) -> dict[str, np.ndarray]:
        """What the measures need, a row an image."""
        return {
            "features": (self.features(images) - self.mean) / self.sd,
            "spectrum": radial_spectrum(images)[1],
            "counts": grey_counts(images, maps),
            "snr": local_snr(images, maps, MYOCARDIUM),
        }

    def __call__(self, parts: dict[str, np.ndarray]) -> tuple[float, ...]:
        own, counts = self.source["counts"], parts["counts"]
        grey = [pooled_distance(counts[:, value], own[:, value]) for value in TISSUES]
        return (
            squared_mmd(parts["features"], self.source["features"], self.within),
            spectrum_distance(parts["spectrum"], self.source["spectrum"]),
            float(np.nanmean(grey)),
            sample_distance(parts["snr"], self.source["snr"]),
        )
