"""Label maps that a diffusion model draws from: the ultrasound sector and perturbed hearts.

`perturb` makes new anatomies from old ones as published: a random affine map, then an elastic deformation,
both nearest neighbour, then clipped to the sector, which itself stays where it is. The ranges are those of
the authors' released script ``augment_camus_labels.py``, which calls TorchVision's RandomAffine and TorchIO's
RandomElasticDeformation (a cubic B-spline of random control points, as here). MONAI's random affine map draws
each axis's scale separately and cannot give the published one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from echovlsm.cohort import load_image, load_labels, masks, resize_image, resize_labels, sectors

if TYPE_CHECKING:
    import pandas as pd

BLACK = 2
"""Grey value up to which a pixel counts as black: 0, and what lossy compression makes of 0."""
SPECK = 5
"""A component of fewer pixels is a speck: it neither tears a structure nor keeps it."""
KEPT = 0.25
"""Share of its area which a structure must keep; with less it counts as lost."""


def find_sector(image: np.ndarray, where: str = "") -> np.ndarray:
    """The ultrasound sector of an image uint8 (H, W), bool (H, W); `where` names the image in messages.

    It is the convex hull of the largest region where most pixels are brighter than `BLACK`: a cavity that
    reaches the edge is filled, a caption or grains of noise beside the sector are left out. Parts of the
    sector that a dark cavity cuts off belong to it from a tenth of the largest part's area.

    Raises
    ------
    LabelMapError
        An array of another form, or an image without a sector.
    """
    from scipy import ndimage

    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2 or not image.size:
        form = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
        raise sectors.LabelMapError(f"{where or 'image'}: {form}; a sector is found in uint8 (height, width)")
    bright = image > BLACK
    reach = max(1, round(0.015 * min(image.shape)))  # half the window, so the most the hull can be wrong by
    # mean of each window, nothing beyond the image's edge: lines of text and noise stay below one half
    dense = ndimage.uniform_filter(bright.astype(np.float32), 2 * reach + 1, mode="nearest") > 0.5
    parts, areas = masks.parts(dense)
    if areas.max() < 0.05 * image.size:
        raise sectors.LabelMapError(
            f"{where or 'image'}: no ultrasound sector, the largest bright region covers "
            f"{areas.max() / image.size:.1%} of the image; leave this image out"
        )
    kept = (areas >= areas.max() / 10)[parts]
    # the window rounds corners off, above all the apex
    kept = bright & ndimage.binary_dilation(kept, np.ones((3, 3), bool), iterations=reach)
    return masks.hull(kept)


@dataclass(frozen=True)
class Perturbation:
    """Ranges of `perturb`; the defaults are the published ones."""

    rotation: float = 5.0
    """Degrees, either way, about the image's centre."""
    translation: float = 0.05
    """Share of the image's width and height, either way. (The released script moves hearts only up and
    down; the paper says nothing of that.)"""
    scale: tuple[float, float] = (0.8, 1.05)
    """Of the heart; below 1 it shrinks. The same in both directions."""
    shear: float = 5.0
    """Degrees, either way, along the rows (as TorchVision takes a single number)."""
    control_points: tuple[int, int] = (10, 4)
    """Of the elastic deformation's cubic B-spline, down and across; the outermost ones do not move."""
    displacement: float = 0.08
    """Farthest move of a control point, a share of height and width, uniform. The released script has 30 of
    256 pixels, but gives TorchIO a volume of one slice, where two layers of control points are averaged: in
    the plane that is the spread of 20 of 256 pixels drawn once."""
    tries: int = 50
    """Draws before a label map is given up."""


PUBLISHED = Perturbation()
"""The published ranges."""


def perturb(
    labels: np.ndarray,
    sector: np.ndarray,
    rng: np.random.Generator,
    how: Perturbation = PUBLISHED,
    where: str = "",
) -> tuple[np.ndarray, int]:
    """A perturbed sector map uint8 (H, W), and how many impossible draws came before it.

    A draw is impossible, and drawn anew, if a structure of the source is lost (it keeps less than `KEPT` of
    the area that the source has in the sector) or torn (it has more components than the source, clipped or
    whole; 8-connected, those of fewer than `SPECK` pixels not counted). What of the heart lies outside the
    sector may come into it.

    Parameters
    ----------
    labels, sector
        uint8 (H, W) of 0-3, and bool (H, W).
    rng
        The only source of chance.
    how
        The ranges.
    where
        The image's name, for messages.

    Raises
    ------
    LabelMapError
        `how.tries` draws were impossible.
    """
    source = sectors.to_sector_map(labels, sector, where)
    whole = _components(sectors.to_sector_map(labels, np.ones(labels.shape, bool)))
    before = {value: max(parts, whole[value]) for value, parts in _components(source).items()}
    areas = np.bincount(source.ravel(), minlength=len(sectors.SECTOR_CLASSES))
    wrong = ""
    for redraws in range(how.tries):
        drawn = sectors.to_sector_map(_warp(labels, rng, how), sector)
        wrong = _impossible(drawn, before, areas)
        if not wrong:
            return drawn, redraws
    raise sectors.LabelMapError(
        f"{where or 'label map'}: none of {how.tries} perturbations is anatomically possible (the last: "
        f"{wrong}); use a weaker perturbation or leave this image out"
    )


def _components(sector_map: np.ndarray) -> dict[int, int]:
    """Number of components of each structure that the map holds."""
    found = {}
    for value in sectors.SECTOR_OF_LABEL[1:]:
        region = sector_map == value
        if region.any():
            # a structure may be a speck from the start
            found[value] = max(1, int((masks.parts(region)[1] >= SPECK).sum()))
    return found


def _impossible(drawn: np.ndarray, before: dict[int, int], areas: np.ndarray) -> str:
    after = _components(drawn)
    now = np.bincount(drawn.ravel(), minlength=len(sectors.SECTOR_CLASSES))
    for value, parts in before.items():
        if now[value] < max(1, KEPT * areas[value]):
            return f"{sectors.SECTOR_CLASSES[value]} lost"
        if after[value] > parts:
            return f"{sectors.SECTOR_CLASSES[value]} torn"
    return ""


@lru_cache(maxsize=16)
def _spline(pixels: int, points: int) -> np.ndarray:
    """Uniform cubic B-spline of `points` control points over an axis: float64 (pixels, points)."""
    from scipy.interpolate import BSpline

    cell = pixels / (points - 3)
    knots = -0.5 + cell * np.arange(-3, points + 1)
    return BSpline.design_matrix(np.arange(pixels), knots, 3).toarray()


def _warp(labels: np.ndarray, rng: np.random.Generator, how: Perturbation) -> np.ndarray:
    """One draw: `labels` moved by a random affine map, then deformed; uint8 (H, W)."""
    from scipy.ndimage import map_coordinates

    shape = np.array(labels.shape)[:, None, None]  # vectors are (down, across) throughout
    angle, shear = np.deg2rad([rng.uniform(-top, top) for top in (how.rotation, how.shear)])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    slant = np.array([[1.0, 0.0], [math.tan(shear), 1.0]])
    forward = turn @ slant * rng.uniform(*how.scale)
    shift = rng.uniform(-how.translation, how.translation, (2, 1, 1)) * shape
    down, across = how.control_points
    moves = np.zeros((2, down, across))
    moves[:, 1:-1, 1:-1] = rng.uniform(-how.displacement, how.displacement, (2, down - 2, across - 2))
    # A pixel of the result looks up its place in the source: the inverse of what happens to the heart, and
    # in the inverse order.
    height, width = labels.shape
    place = np.indices(labels.shape) + shape * (_spline(height, down) @ moves @ _spline(width, across).T)
    centre = (shape - 1) / 2
    source = np.tensordot(np.linalg.inv(forward), place - centre - shift, axes=1) + centre
    return map_coordinates(labels, source, order=0, mode="grid-constant")


class PerturbedMap(NamedTuple):
    """One perturbed label map and where it comes from."""

    row: int
    """Position of the source in the frames table."""
    variant: int
    sector_map: np.ndarray
    """uint8 (size, size), classes as `SECTOR_CLASSES`."""
    redraws: int


class PerturbedMaps(Sequence[PerturbedMap]):
    """Perturbed label maps of every row of a frames table, made when asked for.

    The `variants` (published: 5) of an image follow each other, images in the table's order. Labels and
    sector are resized to (size, size) before they are perturbed. Each map depends on `seed`, the source's
    patient, view and phase, and the variant alone: not on the other rows, nor on what was asked for before.

    Raises
    ------
    LabelMapError
        When a map is asked for: no possible anatomy was drawn, or an image has no sector.
    CohortError
        When a map is asked for: an image has no mask.
    """

    def __init__(self, frames: pd.DataFrame, variants: int = 5, size: int = 96, seed: int = 0) -> None:
        for name, value, least in (("variants", variants, 1), ("size", size, 16), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        self.frames, self.variants, self.size, self.seed = frames, variants, size, seed

    def __len__(self) -> int:
        return len(self.frames) * self.variants

    def __getitem__(self, index: int) -> PerturbedMap:
        if not -len(self) <= index < len(self):
            raise IndexError(f"label map {index} of {len(self)}")
        row, variant = divmod(index % len(self), self.variants)
        source = self.frames.iloc[row]
        name = image_name(source)
        digest = hashlib.sha256(f"{name} {variant}".encode()).digest()
        rng = np.random.default_rng([self.seed, *np.frombuffer(digest, "<u4")])
        _, labels, sector = _load(source, self.size)
        return PerturbedMap(row, variant, *perturb(labels, sector, rng, where=f"{name}, variant {variant}"))


class SourceMaps(NamedTuple):
    """What a diffusion model is trained on."""

    maps: np.ndarray
    """uint8 (N, size, size), classes as `SECTOR_CLASSES`."""
    images: np.ndarray
    """uint8 (N, size, size)."""


def source_maps(frames: pd.DataFrame, size: int) -> SourceMaps:
    """Unperturbed sector maps and images of every row, in the table's order.

    Errors as for `PerturbedMaps`.
    """
    maps = np.empty((len(frames), size, size), np.uint8)
    images = np.empty_like(maps)
    for i in range(len(frames)):
        row = frames.iloc[i]
        images[i], labels, sector = _load(row, size)
        maps[i] = sectors.to_sector_map(labels, sector, image_name(row))
    return SourceMaps(maps, images)


_loaded: dict[tuple[Any, ...], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
_LOADED_BYTES = 2**28  # a study asks for the same images again and again


def image_name(row: pd.Series) -> str:
    """How messages name the image of a row."""
    return f"{row['patient']} {row['view']} {row['phase']}"


def _load(row: pd.Series, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image uint8, labels uint8 and sector bool of a row, each (size, size)."""
    times = [Path(row[name]).stat().st_mtime_ns for name in ("image", "labels") if isinstance(row[name], str)]
    key = (row["image"], str(row["labels"]), str(row.get("label_order")), size, *times)
    if key not in _loaded:
        if len(_loaded) * 3 * size**2 > _LOADED_BYTES:
            _loaded.clear()
        image, labels = load_image(row), load_labels(row)
        sector = find_sector(image, image_name(row)).astype(np.uint8)
        _loaded[key] = (
            resize_image(image, size).numpy(),
            resize_labels(labels, size).numpy(),
            resize_labels(sector, size).numpy().astype(bool),
        )
    return _loaded[key]
