"""The shape of a structure, for the prompts that say it (paper, section 2.2: attribute "shape").

Two ways to name it:

`geometry` (default): the ideal shape which fits the mask best, by this rule.

1. The largest connected part is replaced by its convex hull: the myocardium's arch is named by its outside.
2. Its second moments give the two principal axes. The hull is moved, turned and scaled along them until it
   has unit variance in every direction. This turns every ellipse into one disc, every rectangle into one
   square and every triangle into one equilateral triangle, so that size, rotation and elongation no longer
   matter.
3. It is compared with these three (square and triangle at all rotations): the highest intersection over union
   names the family.
4. The ratio of the principal axes decides within the family: up to 1.2 a `circle` or a `square`, above it an
   `oval` or a `rectangle`.

`vqa`: as in the paper, a visual question answering model is asked "What is the shape of the <structure> in
the green box?" about the picture with a green box round the structure. The paper's model, OFA, is not part of
Transformers; any model that Transformers runs may be named. Answers differ between models, and the rule above
does not imitate them: it calls nearly every left ventricular cavity an oval, as the authors' prompts for
CAMUS mostly do, but hardly any myocardium a triangle, as those mostly do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echovlsm import STRUCTURES
from echovlsm.base import cache, processes
from echovlsm.cohort import load_image, load_labels
from echovlsm.prompts.vqa import (
    SHAPES,
    Ask,
    Shape,
    ShapeError,
    ask_shape,
    checked_mask,
    load_vqa,
)

if TYPE_CHECKING:
    import pandas as pd

ROUND_UP_TO: float = 1.2
"""Ratio of the principal axes up to which a shape counts as equally wide in both directions."""

_GRID = 96
_FEW, _CHUNK = 200, 32  # pictures that one process names while others would start; that it takes at a time


def name_shape(mask: np.ndarray, spacing: tuple[float, float] | None = None) -> Shape:
    """Name the shape of a mask by its geometry; the rule is in the module's docstring.

    Args:
        mask: (H, W), bool or 0 and 1.
        spacing: (height, width) of a pixel, where pixels are not square; None: square.

    Raises:
        ShapeError: the mask is empty, not two-dimensional, or has other values.
    """
    family, ratio = describe_shape(mask, spacing)[:2]
    equal = ratio <= ROUND_UP_TO
    if family == "ellipse":
        return "circle" if equal else "oval"
    if family == "rectangle":
        return "square" if equal else "rectangle"
    return "triangle"


def describe_shape(
    mask: np.ndarray, spacing: tuple[float, float] | None = None
) -> tuple[str, float, dict[str, float]]:
    """Return what `name_shape` decides by.

    Returns:
        The best family (`ellipse`, `rectangle` or `triangle`), the ratio of the principal axes (at least 1),
        and the best intersection over union with each family.

    Raises:
        ShapeError: as `name_shape`.
    """
    hull = _hull(checked_mask(mask))
    scale = np.ones(2) if spacing is None else np.asarray(spacing, dtype=float)
    if scale.shape != (2,) or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ShapeError(f"spacing {spacing!r} is not (height, width) of a pixel")
    centre, variance = _moments(hull)
    # a pixel is a small square, with a variance of its own: without it small masks look too long
    variance = (variance + np.eye(2) / 12) * np.outer(scale, scale)
    lengths, axes = np.linalg.eigh(variance)
    templates, areas, names = _templates()
    # each point of the normalised grid is looked up in the mask
    line = _line()
    where = [
        ((line * np.sqrt(lengths[0]) * axes[i, 0])[:, None] + (line * np.sqrt(lengths[1]) * axes[i, 1])[None])
        / scale[i]
        + centre[i]
        for i in (0, 1)
    ]
    # outside the mask all is empty: one pixel of it is enough
    rows, columns = (
        np.rint(np.clip(at, -1, side)).astype(np.intp) + 1 for at, side in zip(where, hull.shape, strict=True)
    )
    framed = np.zeros((hull.shape[0] + 2, hull.shape[1] + 2), dtype=bool)
    framed[1:-1, 1:-1] = hull
    found = np.packbits(framed.ravel().take(rows * framed.shape[1] + columns)).view(np.uint64)
    both = np.bitwise_count(templates & found).sum(axis=1, dtype=np.int64)
    iou = both / (areas + int(np.bitwise_count(found).sum()) - both)
    fits = {name: float(iou[names == name].max()) for name in ("ellipse", "rectangle", "triangle")}
    return max(fits, key=fits.__getitem__), float(np.sqrt(lengths[1] / lengths[0])), fits


def name_shapes(
    frames: pd.DataFrame,
    backend: Literal["geometry", "vqa"] = "geometry",
    model: str | os.PathLike[str] | Ask | None = None,
    missing: Literal["error", "omit"] = "error",
    progress: bool = True,
    workers: int | None = None,
) -> pd.DataFrame:
    """Name the shape of every structure in every picture of a cohort.

    Args:
        frames: the frames table.
        backend: `geometry` or `vqa`.
        model: for `vqa`, a hub id or a folder for `load_vqa`, or any function of (picture, question) that
            returns the answer.
        missing: what to do where a picture lacks the structure or the answer names no shape: `error`, or
            `omit`, which leaves the shape None (`make_prompts(..., missing="omit")` then drops the clause).
        progress: whether to show a progress bar.
        workers: processes that name shapes by geometry, if the pictures are many; None: one a usable core.

    Returns:
        DataFrame: `patient, view, phase, structure, shape`, one row a picture and structure.

    Raises:
        ShapeError: as above, naming picture and structure; or an unknown backend, or no model for `vqa`.
    """
    import pandas as pd

    if missing not in ("error", "omit"):
        raise ShapeError(f"missing={missing!r} is unknown: 'error' or 'omit'")
    if backend not in ("geometry", "vqa"):
        raise ShapeError(f"backend {backend!r} is unknown: 'geometry' or 'vqa'")
    if (backend == "vqa") != (model is not None):
        raise ShapeError(
            "backend='vqa' needs model=, a hub id or a folder"
            if model is None
            else "only backend='vqa' has a model"
        )
    ask = model if callable(model) or model is None else load_vqa(model)
    labels = list(frames["labels"]) if "labels" in frames.columns else [None]
    if ask is None and all(pd.notna(path) and str(path).endswith((".nii.gz", ".nii")) for path in labels):
        return _cached_shapes(frames, missing, progress, workers)
    return _name_all(frames, ask, missing, progress, workers)


def _cached_shapes(frames: pd.DataFrame, missing: str, progress: bool, workers: int | None) -> pd.DataFrame:
    """Shapes by geometry, from the cache where masks, pixel sizes and this rule are known to it."""
    import pandas as pd

    names = ["patient", "view", "phase", "structure"]

    def make() -> dict[str, np.ndarray]:
        named = _name_all(frames, None, missing, progress, workers)["shape"]
        return {
            "shapes": named.map({shape: number for number, shape in enumerate(SHAPES)})
            .fillna(-1)
            .to_numpy("int8")
        }

    spacing = frames.reindex(columns=["spacing_y", "spacing_x"]).to_numpy(dtype=float, na_value=np.nan)
    rule = Path(__file__).read_bytes()
    key = cache.key_of(
        cache.key_of_files(frames["labels"]), spacing, missing, hashlib.sha256(rule).hexdigest()
    )
    found = cache.arrays("shapes", key, make)["shapes"]
    rows = [
        (*place, name)
        for place in zip(*(frames[name] for name in names[:3]), strict=True)
        for name in STRUCTURES.values()
    ]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(shape=[SHAPES[number] if number >= 0 else None for number in found])


def _name_all(
    frames: pd.DataFrame, ask: Ask | None, missing: str, progress: bool, workers: int | None
) -> pd.DataFrame:
    import pandas as pd
    from tqdm import tqdm

    pictures = frames.to_dict("records")
    name = partial(_name_picture, ask=ask, missing=missing)
    # a model is asked here: it may hold a device
    named = (
        map(name, pictures) if ask else processes.in_order(name, pictures, workers, least=_FEW, chunk=_CHUNK)
    )
    rows = [
        (row["patient"], row["view"], row["phase"], structure, shape)
        for row, shapes in zip(
            tqdm(pictures, desc="shapes", unit="picture", disable=not progress), named, strict=True
        )
        for structure, shape in zip(STRUCTURES.values(), shapes, strict=True)
    ]
    return pd.DataFrame(rows, columns=["patient", "view", "phase", "structure", "shape"])


def _name_picture(row: Mapping[Hashable, Any], ask: Ask | None, missing: str) -> list[Shape | None]:
    """The shape's name of every structure of one picture, in the order of `STRUCTURES`."""
    import pandas as pd

    labels = load_labels(row)
    image = load_image(row) if ask else None
    spacing = (row.get("spacing_y"), row.get("spacing_x"))
    known = spacing if pd.notna(spacing[0]) and pd.notna(spacing[1]) else None
    named: list[Shape | None] = []
    for value, structure in STRUCTURES.items():
        try:
            if ask is None:
                named.append(name_shape(labels == value, known))
            else:
                named.append(ask_shape(ask, image, labels == value, structure))
        except ShapeError as error:
            if missing == "error":
                raise ShapeError(
                    f"{row['patient']} {row['view']} {row['phase']} {structure}: {error}; "
                    "missing='omit' leaves it out"
                ) from error
            named.append(None)
    return named


def _hull(mask: np.ndarray) -> np.ndarray:
    """Return the convex hull of the largest connected part, as a small bool array.

    It holds the pixels whose centre lies in, or on the border of, the hull of the middles of all the part's
    pixels' edges, as scikit-image's `convex_hull_image` does; but only the two ends of each row are tried.
    """
    from scipy import ndimage

    mask = _cropped(mask)
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count > 1:
        mask = _cropped(parts == np.bincount(parts.ravel())[1:].argmax() + 1)
    if min(mask.shape) <= 2:
        return mask  # a line of pixels has no hull with corners at their centres
    first, last = _outermost(mask), _outermost(mask[:, ::-1])
    column = 2 * np.arange(mask.shape[1])
    return (column >= first[:, None] - 1e-6) & (column[::-1] >= last[:, None] - 1e-6)


def _outermost(mask: np.ndarray) -> np.ndarray:
    """Return twice the column at which the hull of a connected mask begins in each row, (H,)."""
    first = 2 * mask.argmax(axis=1)  # twice the coordinates are whole numbers
    left = np.empty(2 * len(first) + 1, dtype=int)  # between the rows, at the top, and at the bottom too
    left[1::2] = first - 1
    left[0], left[-1] = first[0], first[-1]
    left[2:-1:2] = np.minimum(first[1:], first[:-1])
    x, y = left, np.arange(len(left))
    while True:  # a point not left of its neighbours' line is no corner, whatever else is taken away
        corner = (x[1:-1] - x[:-2]) * (y[2:] - y[:-2]) < (x[2:] - x[:-2]) * (y[1:-1] - y[:-2])
        if corner.all():
            return np.interp(np.arange(1, len(left), 2), y, x)
        keep = np.ones(len(x), dtype=bool)
        keep[1:-1] = corner
        x, y = x[keep], y[keep]


def _cropped(mask: np.ndarray) -> np.ndarray:
    """Return the part of a mask that holds all its pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre, (2,), and the covariance, (2, 2), of a mask's pixels, from sums of whole numbers."""
    rows, columns = np.nonzero(mask)
    count, total = len(rows), (int(rows.sum()), int(columns.sum()))
    products = (int(rows @ rows), int(rows @ columns), int(columns @ columns))
    square, mixed, other = (
        (count * product - total[i] * total[j]) / count**2
        for product, i, j in zip(products, (0, 0, 1), (0, 1, 1), strict=True)
    )
    return np.array(total) / count, np.array([[square, mixed], [mixed, other]])


def _line() -> np.ndarray:
    """Return the coordinates along one side of the normalised grid, (G,)."""
    # the triangle's corner lies at 2 * sqrt(2) = 2.83
    return ((np.arange(_GRID) + 0.5) / _GRID * 2 - 1) * 3


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ideal shapes of unit variance on a grid: their points, areas and families.

    The points are bits, (T, G * G / 64) uint64; the areas (T,) count them; the families are names, (T,).

    Inside means at most so far from the centre along each side's normal: a disc of unit variance has the
    radius 2, a square the half side sqrt(3), an equilateral triangle the inradius sqrt(2).
    """
    grid = np.stack(np.meshgrid(_line(), _line(), indexing="ij"), axis=-1).reshape(-1, 2)
    shapes = [(grid**2).sum(axis=1) <= 4]
    names = ["ellipse"]
    for name, sides, inradius in (("rectangle", 4, np.sqrt(3)), ("triangle", 3, np.sqrt(2))):
        for turn in np.arange(0, 360 / sides, 3):
            angles = np.deg2rad(turn + np.arange(sides) * 360 / sides)
            normals = np.stack([np.cos(angles), np.sin(angles)])
            shapes.append((grid @ normals).max(axis=1) <= inradius)
            names.append(name)
    inside = np.array(shapes)
    return np.packbits(inside, axis=1).view(np.uint64), inside.sum(axis=1), np.array(names)
