"""How near synthetic echocardiograms come to the source ones, in measures an ultrasound person can check.

`fidelity_table` puts those of `echovlsm.synthesis.measures` side by side, each with its floor: the same
measure between two halves of the source cohort. A set as good as the source has a ratio near 1. What models
see in the images, `encoder_features` and `label_agreement`, stands here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from echovlsm import STRUCTURES
from echovlsm.cohort import resize_image
from echovlsm.synthesis.measures import (
    BACKGROUND,
    CAVITY,
    MYOCARDIUM,
    TISSUES,
    FidelityError,
    ImageSet,
    check_images,
    check_maps,
    gcnr,
    grey_counts,
    local_snr,
    nearest_training,
    pooled_distance,
    radial_spectrum,
    sample_distance,
    spectrum_distance,
    squared_mmd,
    thumbnails,
)

if TYPE_CHECKING:
    import pandas as pd

    from echovlsm.models import CLIPSeg

COLUMNS: tuple[str, ...] = (
    *("measure", "unit", "value", "floor", "ratio", "better"),
    *("spread", "floor_spread", "synthetic", "source", "note"),
)
"""Columns of `fidelity_table`."""

Features = Callable[[np.ndarray], np.ndarray]
Segmenter = Callable[[np.ndarray], np.ndarray]


def fidelity_table(
    synthetic: ImageSet,
    source: ImageSet,
    held_out: ImageSet | None = None,
    features: Features | None = None,
    segmenter: Segmenter | None = None,
    seed: int = 0,
    repeats: int = 20,
) -> pd.DataFrame:
    """Compare a synthetic set with its source cohort, one row a measure, each beside its floor.

    Distances between sets shrink as sets grow, so value and floor are taken at one size: in each of `repeats`
    rounds the source is halved at random, patients whole; the floor compares the halves with each other, the
    value compares as many synthetic images, drawn from the other half's patients where the sets name them,
    with the first half. `value` and `floor` are means over the rounds, `spread` and `floor_spread` their sd.
    Features are standardised by the source's mean and sd first; as they are not Inception's, this KID
    compares with no published one.

    Nearest-neighbour and agreement rows use every image: there `value` is of the synthetic images against the
    source (the training images) or their own labels, `floor` the same of `held_out`, or, without it, of the
    source itself (nearest image of another patient); `spread` is the bootstrap sd over patients.

    Parameters
    ----------
    synthetic
        Generated images and the sector maps they were drawn from.
    source, held_out
        The images that the generator learned from, of two patients at least, and others that it never saw.
    features
        From uint8 (N, H, W) to float (N, D), such as `encoder_features` with its model bound.
    segmenter
        From uint8 (N, H, W) to the study's labels (N, H, W), trained on source images; needs `labels` in the
        sets.
    seed, repeats
        Of halves, subsets and bootstrap; rounds.

    Returns
    -------
    DataFrame
        The columns of `COLUMNS`. `ratio` is value / floor, NaN where the floor is zero or, for KID, zero
        within its spread. `better` is ``lower``, or ``not below floor`` for distances to training images.
        `synthetic` and `source` are the sets' means where the measure has them (mean grey level, SNR, gCNR).
        `note` says why something is missing.

    Raises
    ------
    FidelityError
        Sets of different image size, a source of one patient, no labels for `segmenter`, features of another
        shape than (N, D).
    """
    import pandas as pd

    sets = {"synthetic": synthetic, "source": source}
    sets |= {} if held_out is None else {"held_out": held_out}
    for name, part in sets.items():
        if part.images.shape[1:] != source.images.shape[1:]:
            own, other = (f"{one.images.shape[1]} x {one.images.shape[2]}" for one in (part, source))
            raise FidelityError(f"{name}: images of {own}, the source's have {other}; resize one of them")
        if segmenter is not None and part.labels is None:
            raise FidelityError(f"{name}: has no labels: a segmenter needs them")
    if repeats < 2:
        raise FidelityError(f"repeats: {repeats} rounds have no spread; 2 at least")
    embedded = {} if features is None else _embed(features, sets)
    rows = [
        *_distribution_rows(synthetic, source, embedded, seed, repeats),
        *_memory_rows(sets, embedded, seed),
        *([] if segmenter is None else _agreement_rows(sets, segmenter, seed)),
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def halves(groups: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random halves of images with patient numbers `groups` (N,), patients whole: two index arrays."""
    order = np.argsort(rng.permutation(groups.max() + 1)[groups], kind="stable")  # patients in random order
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    if not len(cuts):
        raise FidelityError("source: one patient cannot be halved; give two patients or more")
    cut = cuts[np.abs(cuts - len(order) / 2).argmin()]
    return order[:cut], order[cut:]


def _of_patients(
    synthetic: ImageSet, source: ImageSet, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Synthetic images in random order, those first whose source patients are among `rows` of the source.

    The floor compares two halves that share no patient; so must the value. Single images are shuffled, not
    patients, so that several variants of a label do not narrow the choice.
    """
    order = rng.permutation(len(synthetic))
    if synthetic.patients is None or source.patients is None:
        return order
    wanted = {source.patients[row] for row in rows}
    there = np.array([synthetic.patients[row] in wanted for row in order])
    return np.concatenate([order[there], order[~there]])


class _Measure(NamedTuple):
    """What a row of distances is made of: a per-image array of both sets and a distance of subsets."""

    name: str
    unit: str
    synthetic: np.ndarray
    source: np.ndarray
    distance: Callable[[np.ndarray, np.ndarray], float]
    mean: Callable[[np.ndarray], float] | None = None
    why_missing: str = ""


def _distribution_rows(
    synthetic: ImageSet,
    source: ImageSet,
    embedded: dict[str, np.ndarray],
    seed: int,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    measures = list(_measures(synthetic, source, embedded))
    rng = np.random.default_rng(seed)
    values, floors = np.empty((2, repeats, len(measures)))
    for repeat in range(repeats):
        first, second = halves(source.groups(), rng)
        size = min(len(first), len(second), len(synthetic))
        if size < 2:
            raise FidelityError("source and synthetic: a half has one image only; give more")
        drawn = _of_patients(synthetic, source, second, rng)[:size]
        first, second = first[:size], second[:size]
        for column, measure in enumerate(measures):
            reference = measure.source[first]
            values[repeat, column] = measure.distance(measure.synthetic[drawn], reference)
            floors[repeat, column] = measure.distance(measure.source[second], reference)
    for column, measure in enumerate(measures):
        value, floor = values[:, column], floors[:, column]
        notes = []
        missing = max(np.isnan(value).sum(), np.isnan(floor).sum())
        if missing:
            notes.append(f"{missing} of {repeats} rounds left out: {measure.why_missing}")
        row = _row(measure.name, measure.unit, _mean(value), _mean(floor), spread=_sd(value))
        row["floor_spread"] = _sd(floor)
        if measure.distance is squared_mmd and not row["floor"] > row["floor_spread"]:
            row["ratio"] = math.nan
            notes.append("the floor is zero within its spread: compare the value with the spreads")
        if measure.mean:
            row |= {"synthetic": measure.mean(measure.synthetic), "source": measure.mean(measure.source)}
        yield row | {"note": "; ".join(notes)}


def _measures(synthetic: ImageSet, source: ImageSet, embedded: dict[str, np.ndarray]) -> Iterator[_Measure]:
    pair = (synthetic, source)
    counts = [grey_counts(part.images, part.maps) for part in pair]
    for value, tissue in TISSUES.items():
        own = [part[:, value] for part in counts]
        name, why = f"grey levels, {tissue}", f"no pixel of {tissue}"
        yield _Measure(name, "grey levels", *own, pooled_distance, _pooled_mean, why)
    for value in (MYOCARDIUM, BACKGROUND):
        snr = [local_snr(part.images, part.maps, value) for part in pair]
        why = f"no unclipped 5 x 5 window in {TISSUES[value]}"
        yield _Measure(f"speckle SNR, {TISSUES[value]}", "1", *snr, sample_distance, _mean, why)
    contrast = [gcnr(part[:, CAVITY], part[:, MYOCARDIUM]) for part in counts]
    name, why = "gCNR, cavity to myocardium", "no image with both tissues"
    yield _Measure(name, "1", *contrast, sample_distance, _mean, why)
    spectra = [radial_spectrum(part.images)[1] for part in pair]
    yield _Measure("power spectrum", "dB", *spectra, spectrum_distance)
    if embedded:
        both = embedded["synthetic"], embedded["source"]
        yield _Measure("kernel distance (KID), given features", "1", *both, squared_mmd)


def _memory_rows(
    sets: dict[str, ImageSet], embedded: dict[str, np.ndarray], seed: int
) -> Iterator[dict[str, Any]]:
    spaces = [("nearest training image", "grey levels, 32 x 32", "rmse")]
    spaces += [("nearest training image, features", "1 - cosine", "cosine")] if embedded else []
    for name, unit, metric in spaces:
        if metric == "rmse":
            points = {key: thumbnails(part.images) for key, part in sets.items()}
        else:
            points = embedded
        own = nearest_training(points["synthetic"], points["source"], metric=metric)
        if "held_out" in sets:
            other, note = nearest_training(points["held_out"], points["source"], metric=metric), ""
        else:
            groups = sets["source"].groups()
            same = groups[:, None] == groups[None]
            other = nearest_training(points["source"], points["source"], same, metric)
            note = "floor: source images against those of other patients"
        median, floor = float(np.median(own.distance)), float(np.median(other.distance))
        held = "held_out" if "held_out" in sets else "source"
        spread = _bootstrap(own.distance, sets["synthetic"].groups(), np.median, seed)
        row = _row(name, unit, median, floor, "not below floor", spread)
        row["floor_spread"] = _bootstrap(other.distance, sets[held].groups(), np.median, seed)
        smallest = ", ".join(f"{value:.3g}" for value in np.sort(own.distance)[:3])
        row["note"] = "; ".join(filter(None, [f"smallest: {smallest}", note]))
        yield row
        if metric == "rmse":
            copies = np.flatnonzero(own.copy)
            row = _row("copies of a training image", "share", own.copy.mean(), other.copy.mean())
            if len(copies):
                shown = ", ".join(map(str, copies[:10])) + (", ..." if len(copies) > 10 else "")
                row["note"] = f"synthetic images number {shown} (from 0)"
            yield row


def _agreement_rows(sets: dict[str, ImageSet], segmenter: Segmenter, seed: int) -> Iterator[dict[str, Any]]:
    reference = "held_out" if "held_out" in sets else "source"
    dice = {
        name: label_agreement(np.asarray(segmenter(sets[name].images)), sets[name].labels)
        for name in ("synthetic", reference)
    }
    for structure in STRUCTURES.values():
        own, other = (1 - dice[name][structure].to_numpy() for name in ("synthetic", reference))
        row = _row(f"label disagreement, {structure}", "1 - Dice", _mean(own), _mean(other))
        row["spread"] = _bootstrap(own, sets["synthetic"].groups(), np.nanmean, seed)
        row["floor_spread"] = _bootstrap(other, sets[reference].groups(), np.nanmean, seed)
        if reference == "source":
            row["note"] = "floor: on source images, which the segmenter may have learned from"
        if np.isnan(own).all() or np.isnan(other).all():
            row["note"] = f"no image with {structure}"
        yield row


def _row(
    name: str, unit: str, value: float, floor: float, better: str = "lower", spread: float = math.nan
) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, math.nan)
    ratio = value / floor if floor > 0 else math.nan
    row |= {"measure": name, "unit": unit, "value": float(value), "floor": float(floor), "ratio": ratio}
    return row | {"better": better, "spread": spread, "note": ""}


def _pooled_mean(counts: np.ndarray) -> float:
    pooled = counts.sum(axis=0)
    return float(np.average(np.arange(256), weights=pooled)) if pooled.any() else math.nan


def _embed(features: Features, sets: dict[str, ImageSet]) -> dict[str, np.ndarray]:
    embedded = {name: np.asarray(features(part.images), float) for name, part in sets.items()}
    for name, values in embedded.items():
        width = embedded["source"].shape[1:]
        if values.ndim != 2 or values.shape != (len(sets[name]), *width) or not np.isfinite(values).all():
            raise FidelityError(f"features: {values.shape} for {name}; finite (N, D) was expected")
    mean, sd = embedded["source"].mean(axis=0), embedded["source"].std(axis=0)
    # raw activations sit far from the origin: the cubic kernel is all but linear there, every cosine near 1
    return {name: (values - mean) / np.where(sd > 0, sd, 1) for name, values in embedded.items()}


def _bootstrap(
    values: np.ndarray, groups: np.ndarray, statistic: Callable[..., Any], seed: int, resamples: int = 200
) -> float:
    """Sd of a statistic of the images' values when whole patients are drawn with replacement."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    if len(members) < 2 or np.isnan(values).all():
        return math.nan
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(members), size=len(members)) for _ in range(resamples))
    return float(np.nanstd([statistic(values[np.concatenate([members[i] for i in who])]) for who in drawn]))


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def _sd(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def encoder_features(images: np.ndarray, model: CLIPSeg, batch_size: int = 8) -> np.ndarray:
    """Features float32 (N, width) of a CLIPSeg's image encoder: the mean over the tokens of the last
    activation that it decodes. Images uint8 (N, H, W) are resized to the model's size as in training.
    """
    import torch

    check_images(images)
    was_training = model.training
    model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = [resize_image(image, model.image_size) for image in images[start : start + batch_size]]
            found.append(model.encode_image(model.normalise(torch.stack(batch)))[-1].mean(dim=1).cpu())
    model.train(was_training)
    return torch.cat(found).numpy()


def label_agreement(predicted: np.ndarray, conditioning: np.ndarray) -> pd.DataFrame:
    """Dice between what a segmenter found and the labels that an image was drawn from, uint8 (N, H, W).

    There are N rows, and a column a structure; NaN where the image was drawn without that structure.
    """
    import pandas as pd
    import torch
    from monai.metrics import compute_dice

    for name, labels in (("predicted", predicted), ("conditioning", conditioning)):
        check_maps(labels, name, max(STRUCTURES), conditioning)
    values = list(STRUCTURES)
    hot = [
        torch.from_numpy(np.stack([labels == value for value in values], axis=1))
        for labels in (predicted, conditioning)
    ]
    return pd.DataFrame(compute_dice(*hot, ignore_empty=True).numpy(), columns=list(STRUCTURES.values()))
