"""The shape of a structure, for the prompts that say it (paper, section 2.2: attribute "shape").

Two ways to name it:

`geometry` (default): the ideal shape which fits the mask best, by this rule.

1. The largest connected part is replaced by its convex hull: the myocardium's arch is named by its outside
   (`hull_of`).
2. Its second moments give the two principal axes. The hull is moved, turned and scaled along them until it
   has unit variance in every direction. This turns every ellipse into one disc, every rectangle into one
   square and every triangle into one equilateral triangle, so that size, rotation and elongation no longer
   matter (`normalised`).
3. It is compared with these three (square and triangle at all rotations): the highest intersection over union
   names the family (`ideal_fits`).
4. The ratio of the principal axes decides within the family: up to 1.2 a `circle` or a `square`, above it an
   `oval` or a `rectangle`.

`vqa`: as in the paper, a visual question answering model is asked about the image with a green box round the
structure. The paper's model, OFA, is not part of Transformers; any model that Transformers runs may be named.
Answers differ between models, and the rule above does not imitate them: it calls nearly every left
ventricular cavity an oval, as the authors' prompts for CAMUS mostly do, but hardly any myocardium a triangle,
as those mostly do.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echovlsm import STRUCTURES
from echovlsm.base import cache, in_order
from echovlsm.cohort import is_synthetic, load_image, load_labels, masks
from echovlsm.prompts.templates import Missing, attributes_of, make_prompts
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
_FEW, _CHUNK = 200, 32  # images that one process names while others would start; that it takes at a time


def name_shape(mask: np.ndarray, spacing: tuple[float, float] | None = None) -> Shape:
    """Name the shape of a mask by its geometry; the rule is in the module's docstring.

    Parameters
    ----------
    mask
        (H, W), bool or 0 and 1.
    spacing
        Height and width of a pixel, where pixels are not square.

    Raises
    ------
    ShapeError
        The mask is empty, or is none.
    """
    family, ratio, _ = describe_shape(mask, spacing)
    equal = ratio <= ROUND_UP_TO
    if family == "ellipse":
        return "circle" if equal else "oval"
    if family == "rectangle":
        return "square" if equal else "rectangle"
    return "triangle"


def describe_shape(
    mask: np.ndarray, spacing: tuple[float, float] | None = None
) -> tuple[str, float, dict[str, float]]:
    """What `name_shape` decides by: the best family, the ratio of the principal axes (at least 1), and the
    best intersection over union with each family (`ellipse`, `rectangle`, `triangle`).
    """
    normal, ratio = normalised(hull_of(mask), spacing)
    fits = {family: fit for family, (fit, _) in ideal_fits(normal).items()}
    return max(fits, key=fits.__getitem__), ratio, fits


def hull_of(mask: np.ndarray) -> np.ndarray:
    """Step 1: the convex hull of a mask's largest connected part, bool, cut out of the image."""
    mask = checked_mask(mask)
    part = masks.largest_part(mask[masks.box(mask)])
    part = part[masks.box(part)]
    # a line of pixels has no hull with corners at their centres
    return part if min(part.shape) <= 2 else masks.hull(part, edges=True)


def normalised(hull: np.ndarray, spacing: tuple[float, float] | None = None) -> tuple[np.ndarray, float]:
    """Step 2: a hull moved, turned and scaled to unit variance in every direction.

    Returns
    -------
    normal : ndarray of bool (96, 96)
        The hull on a grid from -3 to 3; its longer axis lies along the rows.
    ratio : float
        Of the longer to the shorter principal axis.
    """
    scale = np.ones(2) if spacing is None else np.asarray(spacing, dtype=float)
    if scale.shape != (2,) or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ShapeError(f"spacing {spacing!r} is not (height, width) of a pixel")
    centre, variance = _moments(hull)
    # a pixel is a small square, with a variance of its own: without it small masks look too long
    variance = (variance + np.eye(2) / 12) * np.outer(scale, scale)
    lengths, axes = np.linalg.eigh(variance)
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
    framed = np.pad(hull, 1)
    return framed.ravel().take(rows * framed.shape[1] + columns), float(np.sqrt(lengths[1] / lengths[0]))


def ideal_fits(normal: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    """Step 3: how well the ideal shapes fit a normalised hull, bool (96, 96).

    Returns
    -------
    dict
        Family (`ellipse`, `rectangle`, `triangle`) to the highest intersection over union and the ideal shape
        that has it, bool (96, 96).
    """
    templates, areas, names = _templates()
    found = np.packbits(normal).view(np.uint64)
    both = np.bitwise_count(templates & found).sum(axis=1, dtype=np.int64)
    iou = both / (areas + int(np.bitwise_count(found).sum()) - both)
    fits = {}
    for family in dict.fromkeys(names.tolist()):
        best = max(np.flatnonzero(names == family), key=iou.__getitem__)
        shape = np.unpackbits(templates[best].view(np.uint8)).astype(bool).reshape(_GRID, _GRID)
        fits[family] = float(iou[best]), shape
    return fits


def name_shapes(
    frames: pd.DataFrame,
    backend: Literal["geometry", "vqa"] = "geometry",
    model: str | os.PathLike[str] | Ask | None = None,
    missing: Missing = "error",
    progress: bool = True,
    workers: int | None = None,
) -> pd.DataFrame:
    """Name the shape of every structure in every image of a cohort.

    Parameters
    ----------
    frames
        The frames table.
    backend
        `geometry` or `vqa`.
    model
        For `vqa`, a hub id or a folder for `load_vqa`, or any function of (image, question) that returns the
        answer.
    missing
        What to do where an image lacks the structure or the answer names no shape: `error`, or `omit`, which
        leaves the shape None (`make_prompts(..., missing="omit")` then drops the clause).
    progress
        Whether to show a progress bar.
    workers
        Processes that name shapes by geometry, if the images are many; None: one a usable core.

    Returns
    -------
    DataFrame
        `patient, view, phase, structure, shape`, one row per image and structure.

    Raises
    ------
    ShapeError
        As `name_shape`, with image and structure; or an unknown backend, or no model for `vqa`.
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

    def find() -> list[Shape | None]:
        return _find_names(frames, ask, missing, progress, workers)

    labels = list(frames["labels"]) if "labels" in frames.columns else [None]
    kept = ask is None and all(str(at).endswith((".nii.gz", ".nii")) for at in labels)
    rows = [
        (*place, structure)
        for place in zip(frames["patient"], frames["view"], frames["phase"], strict=True)
        for structure in STRUCTURES.values()
    ]
    table = pd.DataFrame(rows, columns=["patient", "view", "phase", "structure"])
    return table.assign(shape=_kept_names(frames, missing, find) if kept else find())


def prompts_for(frames: pd.DataFrame, level: str, missing: Missing = "error") -> pd.DataFrame:
    """Prompts of one level for a cohort (`make_prompts`); shapes that it names are read off the masks."""
    says_shape = "shape" in attributes_of(level, is_synthetic(frames))
    shapes = name_shapes(frames, missing=missing) if says_shape else None
    return make_prompts(frames, shapes=shapes, missing=missing, levels=(level,))


def _kept_names(
    frames: pd.DataFrame, missing: str, find: Callable[[], list[Shape | None]]
) -> list[Shape | None]:
    """Names by geometry, from the cache where masks, pixel sizes and this rule are known to it."""

    def make() -> dict[str, np.ndarray]:
        numbers = [-1 if name is None else SHAPES.index(name) for name in find()]
        return {"shapes": np.array(numbers, dtype=np.int8)}

    spacing = frames.reindex(columns=["spacing_y", "spacing_x"]).to_numpy(dtype=float, na_value=np.nan)
    rule = b"".join(Path(file).read_bytes() for file in (masks.__file__, __file__))
    key = cache.key_of(
        cache.key_of_files(frames["labels"]), spacing, missing, hashlib.sha256(rule).hexdigest()
    )
    found = cache.arrays("shapes", key, make)["shapes"]
    return [SHAPES[number] if number >= 0 else None for number in found]


def _find_names(
    frames: pd.DataFrame, ask: Ask | None, missing: str, progress: bool, workers: int | None
) -> list[Shape | None]:
    """The shape's name of every structure of every image, in the order of the table."""
    from tqdm import tqdm

    rows = frames.to_dict("records")
    name = partial(_name_structures, ask=ask, missing=missing)
    # a model is asked here: it may hold a device
    found = map(name, rows) if ask else in_order(name, rows, workers, least=_FEW, chunk=_CHUNK)
    bar = tqdm(found, desc="shapes", unit="image", total=len(rows), disable=not progress)
    return [shape for names in bar for shape in names]


def _name_structures(row: Mapping[Hashable, Any], ask: Ask | None, missing: str) -> list[Shape | None]:
    """The shape's name of every structure of one image, in the order of `STRUCTURES`."""
    import pandas as pd

    labels = load_labels(row)
    image = load_image(row) if ask else None
    spacing = (row.get("spacing_y"), row.get("spacing_x"))
    known = spacing if pd.notna(spacing[0]) and pd.notna(spacing[1]) else None
    named: list[Shape | None] = []
    for value, structure in STRUCTURES.items():
        try:
            mask = labels == value
            named.append(ask_shape(ask, image, mask, structure) if ask else name_shape(mask, known))
        except ShapeError as error:
            if missing == "error":
                raise ShapeError(
                    f"{row['patient']} {row['view']} {row['phase']} {structure}: {error}; "
                    "missing='omit' leaves it out"
                ) from error
            named.append(None)
    return named


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (2,) and covariance (2, 2) of a mask's pixels, from sums of whole numbers."""
    rows, columns = np.nonzero(mask)
    count, total = len(rows), (int(rows.sum()), int(columns.sum()))
    products = (int(rows @ rows), int(rows @ columns), int(columns @ columns))
    square, mixed, other = (
        (count * product - total[i] * total[j]) / count**2
        for product, i, j in zip(products, (0, 0, 1), (0, 1, 1), strict=True)
    )
    return np.array(total) / count, np.array([[square, mixed], [mixed, other]])


def _line() -> np.ndarray:
    """Coordinates along one side of the normalised grid, (G,)."""
    # the triangle's corner lies at 2 * sqrt(2) = 2.83
    return ((np.arange(_GRID) + 0.5) / _GRID * 2 - 1) * 3


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ideal shapes of unit variance: points as bits, uint64 (T, G * G / 64), areas and families.

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
