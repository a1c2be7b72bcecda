"""Hold the phantom's images against CAMUS, and put the table on record: `hearts.csv`. Numbers only.

    python -m benchmarks.phantom.hearts --cohort /path/to/CAMUS_public

Four-chamber images of the training subgroup alone: no version of the phantom that is chosen by this table has
seen a validation patient. CAMUS is brought to 0.616 mm by the mean of 2 x 2 pixels where it is of native
resolution; the phantom is drawn at half of that spacing and brought to it in the same way. Each measure is
compared as distributions over images: a distance, beside the floor, which is the same distance between two
halves of CAMUS. All sets have the size of a half, and patients stay whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import fft, ndimage

from benchmarks.phantom import put_on_record
from echovlsm import PHASES, STRUCTURES
from echovlsm.base import paths
from echovlsm.cohort import cohort_hash, load_image, load_labels, read_cohort
from echovlsm.phantom import draw_cohort_patient, simulate
from echovlsm.phantom.patient import of_version
from echovlsm.phantom.versions import VERSIONS
from echovlsm.synthesis.fidelity import halves
from echovlsm.synthesis.measures import gcnr, local_snr, pooled_distance, sample_distance

VIEW, SPACING = "4CH", 0.616
"""The views with a true spacing, and the spacing of the comparison in mm."""
SEED = 17
"""Of the phantom patients: those that the study learns from."""
REPEATS = 20
CAVITY, WALL = 1, 2
OUTSIDE = 4
"""Added to the labels of the study: outside the sector."""
TISSUES = {"sector background": 0} | {name: value for value, name in STRUCTURES.items()}


class Frame(NamedTuple):
    """An image at `SPACING`: its patient, phase, grey levels, and the study's labels with `OUTSIDE`."""

    patient: str
    phase: str
    image: np.ndarray
    labels: np.ndarray


def halved(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half as many rows and columns: the mean of 2 x 2 grey levels, every second label."""
    height, width = (side // 2 * 2 for side in image.shape)
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8), labels[:height:2, :width:2]


def with_sector(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels with `OUTSIDE` where the image is black; dark spots inside do not count."""
    sector = ndimage.binary_fill_holes(image > 0)
    return np.where(sector | (labels > 0), labels, np.uint8(OUTSIDE))


def camus(cohort: str) -> tuple[list[Frame], str]:
    """The frames of CAMUS and the hash of their files."""
    frames = read_cohort(paths.resolve(cohort))
    frames = frames[(frames["view"] == VIEW) & (frames["split"] == "train") & frames["labels"].notna()]
    fine, coarse = (
        np.isclose(frames["spacing_y"].astype(float), s, rtol=0.01) for s in (SPACING / 2, SPACING)
    )
    found = []
    for row, native in zip(frames[fine | coarse].itertuples(), fine[fine | coarse], strict=True):
        pair = load_image(row), load_labels(row)
        image, labels = halved(*pair) if native else pair
        found.append(Frame(row.patient, row.phase, image, with_sector(image, labels)))
    return found, cohort_hash(frames[fine | coarse])


def phantoms(version: int, patients: int) -> Iterator[Frame]:
    """As many phantom patients, drawn at half of `SPACING`."""
    for index in range(patients):
        patient = draw_cohort_patient(SEED, index)
        size = round(of_version(patient, version).views[VIEW].depth / SPACING) * 2
        for number, phase in enumerate(PHASES):
            drawn = simulate(
                patient, VIEW, phase, np.random.default_rng([SEED, index, 1, number]), size, version
            )
            image, labels = halved(drawn.image, drawn.labels)
            yield Frame(f"phantom{index}", phase, image, with_sector(image, labels))


# -- measures of an image ---------------------------------------------------------------------------------


def correlation_lengths(image: np.ndarray, region: np.ndarray, smooth: float = 4.0) -> tuple[float, float]:
    """Widths at half maximum (mm), along the image's rows' axis and across, of grey levels' autocovariance.

    Parameters
    ----------
    image
        uint8 (H, W).
    region
        Bool (H, W): the pixels that count; NaN where fewer than 200.
    smooth
        Slow changes, of more than this standard deviation in mm, are taken off first.
    """
    if region.sum() < 200:
        return np.nan, np.nan
    rows, columns = np.nonzero(region)
    part = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    inside, grey = region[part].astype(float), image[part] * region[part].astype(float)
    slow, weight = (ndimage.gaussian_filter(v, smooth / SPACING) for v in (grey, inside))
    values = (grey - slow / np.maximum(weight, 1e-6)) * inside
    shape = [fft.next_fast_len(n + 16) for n in values.shape]
    products, pairs = (fft.irfft2(np.abs(fft.rfft2(v, shape)) ** 2, shape) for v in (values, inside))
    covariance = products / np.maximum(pairs, 1)
    lines = covariance[:9, 0], covariance[0, :9]
    return tuple(2 * SPACING * _half(line / max(line[0], 1e-9)) for line in lines)


def _half(line: np.ndarray) -> float:
    """The lag at which a line that begins at 1 falls below a half."""
    below = int(np.argmax(line < 0.5))
    return float(below - (0.5 - line[below]) / (line[below - 1] - line[below])) if below else np.nan


def lost_wall(frame: Frame) -> float:
    """Share of the wall whose mean over 2.5 mm within it is not brighter than the cavity's median."""
    wall = frame.labels == WALL
    inside, grey = (ndimage.uniform_filter(v * wall.astype(float), 4 + 1) for v in (1.0, frame.image))
    level = grey[wall] / np.maximum(inside[wall], 1e-6)
    return float((level <= np.median(frame.image[frame.labels == CAVITY])).mean())


def measures_of(frame: Frame) -> dict[str, Any]:
    """Every measure of one image; `grey` are its pixels of each tissue and grey level, (tissues, 256)."""
    image, labels = frame.image, frame.labels
    sector = labels != OUTSIDE
    rows, width = np.flatnonzero(sector.any(axis=1)), sector.sum(axis=1)
    widest = int(width.argmax())
    radius = np.hypot(widest - rows[0], width[widest] / 2)
    grey = np.stack([np.bincount(image[labels == value], minlength=256) for value in TISSUES.values()])
    found: dict[str, Any] = {"patient": frame.patient, "phase": frame.phase, "grey": grey}
    found["gcnr"] = float(gcnr(grey[[1]], grey[[2]])[0])
    maps = (labels == WALL).astype(np.uint8)
    found["snr"] = float(local_snr(image[None], maps[None], 1)[0])
    for name, value in (("wall", WALL), ("cavity", CAVITY)):
        region = ndimage.binary_erosion(labels == value, iterations=1)
        found[f"{name} along"], found[f"{name} across"] = correlation_lengths(image, region)
    found["lost"] = 100 * lost_wall(frame)
    found["depth"] = float((rows[-1] - rows[0] + 1) * SPACING)
    found["opening"] = float(np.rad2deg(2 * np.arcsin(min(1.0, width[widest] / 2 / radius))))
    found |= {name: float((labels == value).sum() * SPACING**2 / 100) for value, name in STRUCTURES.items()}
    return found


MEASURES: dict[str, tuple[str, str]] = {
    "gcnr": ("gCNR of cavity and wall", "1"),
    "lost": ("wall lost to dropout", "% of the wall"),
    "snr": ("speckle SNR, wall", "1"),
    "wall along": ("speckle correlation length along depth, wall", "mm"),
    "wall across": ("speckle correlation length across, wall", "mm"),
    "cavity along": ("speckle correlation length along depth, cavity", "mm"),
    "cavity across": ("speckle correlation length across, cavity", "mm"),
    "depth": ("depth of the sector", "mm"),
    "opening": ("opening of the sector", "degrees"),
}
"""Columns of `measures_of` that are a number an image: name and unit. Areas are added a phase at a time."""


def compare(phantom: pd.DataFrame, real: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A row a measure.

    Returns
    -------
    DataFrame
        `measure, unit`; `phantom, phantom_sd, camus, camus_sd`: mean and sd over images (of pooled pixels for
        grey levels); `distance, floor`: Wasserstein's, mean over `REPEATS` halvings; `ratio`.
    """
    rng, names = np.random.default_rng(seed), [*_columns(real)]
    cuts = [halves(pd.factorize(real["patient"])[0], rng) for _ in range(REPEATS)]
    order = [rng.permutation(phantom["patient"].unique()) for _ in range(REPEATS)]
    groups = phantom.groupby("patient").indices
    rows = []
    for name, unit, values, distance in names:
        own, other = values(phantom), values(real)
        found = []
        for (first, second), who in zip(cuts, order, strict=True):
            drawn = np.concatenate([groups[one] for one in who])[: len(second)]
            found.append([distance(part, other[first]) for part in (own[drawn], other[second])])
        gap, floor = np.mean(found, axis=0)
        row = {"measure": name, "unit": unit}
        for key, part in (("phantom", own), ("camus", other)):
            row[key], row[f"{key}_sd"] = _mean_and_sd(part)
        rows.append(row | {"distance": gap, "floor": floor, "ratio": gap / floor})
    return pd.DataFrame(rows)


def _columns(table: pd.DataFrame) -> Iterator[tuple[str, str, Callable[[pd.DataFrame], np.ndarray], Any]]:
    """Name, unit, values of a set and distance of two, for every row of the table."""
    for number, tissue in enumerate(TISSUES):
        yield (
            f"grey levels, {tissue}",
            "grey levels",
            lambda part, number=number: np.stack(part["grey"].tolist())[:, number],
            pooled_distance,
        )
    for column, (name, unit) in MEASURES.items():
        yield name, unit, lambda part, column=column: part[column].to_numpy(float), sample_distance
    for structure in STRUCTURES.values():
        for phase in PHASES:

            def areas(part: pd.DataFrame, structure: str = structure, phase: str = phase) -> np.ndarray:
                return part[structure].where(part["phase"] == phase).to_numpy(float)

            yield f"area of {structure}, {phase}", "cm²", areas, sample_distance


def _mean_and_sd(values: np.ndarray) -> tuple[float, float]:
    if values.ndim == 2:
        levels, counts = np.arange(256), values.sum(axis=0)
        mean = float(np.average(levels, weights=counts))
        return mean, float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
    return float(np.nanmean(values)), float(np.nanstd(values, ddof=1))


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cohort", required=True, help="folder of CAMUS")
    parser.add_argument("--patients", type=int, default=200, help="phantom patients: half of CAMUS's")
    asked = parser.parse_args()
    frames, content = camus(asked.cohort)
    real = pd.DataFrame([measures_of(frame) for frame in frames])
    tables = []
    for version in VERSIONS:
        drawn = pd.DataFrame([measures_of(frame) for frame in phantoms(version, asked.patients)])
        table = compare(drawn, real)
        table.insert(0, "version", version)
        tables.append(table)
    told = {"patients": real["patient"].nunique(), "images": len(real), "data_hash": content}
    told |= {"phantom_patients": asked.patients, "phantom_seed": SEED, "spacing_mm": SPACING}
    print(put_on_record("hearts", pd.concat(tables), **told))


if __name__ == "__main__":
    main()
