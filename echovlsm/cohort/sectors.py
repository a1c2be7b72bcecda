"""Sector maps: the labels of a heart together with the ultrasound sector that it is seen in.

The study labels an image 0 background, 1 left ventricular cavity, 2 myocardium, 3 left atrium. A SECTOR map
has the order of the sector annotations of Stojanovski et al. 2023 ("Echo from Noise",
doi 10.1007/978-3-031-44521-7_4): 0 outside the sector, 1 left ventricular cavity, 2 sector background,
3 myocardium, 4 left atrium. Both orders meet in this module only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from echovlsm import STRUCTURES

SECTOR_CLASSES: tuple[str, ...] = (
    "outside the sector",
    STRUCTURES[1],
    "sector background",
    STRUCTURES[2],
    STRUCTURES[3],
)
"""Name of each class of a sector map; the index is the class."""

SECTOR_OF_LABEL: tuple[int, ...] = (2, 1, 3, 4)
"""Class in a sector map of the study's labels 0-3, inside the sector."""

_SECTOR_OF = np.array(SECTOR_OF_LABEL, np.uint8)

_LABEL_OF = np.array([0, 1, 0, 2, 3], np.uint8)


class LabelMapError(ValueError):
    """A label map cannot be used; the message names its source, what is wrong, and the remedy."""


def check_sector_map(
    sector_map: np.ndarray, size: int | tuple[int, int] | None = None, where: str = ""
) -> None:
    """Refuse what is no sector map.

    Parameters
    ----------
    sector_map
        (H, W) of any integer type.
    size
        The side or (H, W) it must have, where that matters.
    where
        The name of its source (a file, or an image) for the message.

    Raises
    ------
    LabelMapError
        Another type or shape, another size, or a class that is not in 0-4.
    """
    _check_map(
        sector_map, where, len(SECTOR_CLASSES) - 1, "a sector map", "to_sector_map makes it from labels"
    )
    expected = (size, size) if isinstance(size, int) else size
    if expected is not None and sector_map.shape != tuple(expected):
        raise LabelMapError(
            f"{where or 'label map'}: size {_by(sector_map.shape)}, but {_by(expected)} is needed; resize "
            "the labels with echovlsm.cohort.resize_labels, or choose the size of this map"
        )


def _check_map(values: np.ndarray, where: str, top: int, kind: str, remedy: str) -> None:
    where = where or "label map"
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not values.size:
        form = getattr(values, "shape", type(values).__name__)
        raise LabelMapError(f"{where}: {form} is not (height, width); {kind} is one 2-D array")
    if not np.issubdtype(values.dtype, np.integer):
        raise LabelMapError(f"{where}: type {values.dtype}; {kind} holds whole numbers, give it as uint8")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > top:
        wrong = high if high > top else low
        raise LabelMapError(f"{where}: class {wrong} is out of range, {kind} has 0-{top} only; {remedy}")


def _check_sector(sector: np.ndarray, shape: tuple[int, ...], where: str) -> None:
    if not isinstance(sector, np.ndarray) or sector.dtype != np.bool_ or sector.shape != shape:
        form = f"{getattr(sector, 'dtype', type(sector).__name__)} {getattr(sector, 'shape', '')}"
        raise LabelMapError(
            f"{where or 'label map'}: the sector is {form}, but bool {shape} is needed; find_sector makes it"
        )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def to_sector_map(labels: np.ndarray, sector: np.ndarray, where: str = "") -> np.ndarray:
    """Sector map uint8 (H, W) of labels 0-3 (H, W) and sector bool (H, W); labels outside it are cut off.

    Raises
    ------
    LabelMapError
        Another class, type or shape; it names `where`.
    """
    _check_map(labels, where, len(_SECTOR_OF) - 1, "the study's labels", "correct the mask")
    _check_sector(sector, labels.shape, where)
    return np.where(sector, _SECTOR_OF[labels], np.uint8(0))


def from_sector_map(sector_map: np.ndarray, where: str = "") -> np.ndarray:
    """The study's labels, uint8 (H, W) of 0-3, of a sector map; LabelMapError if it is none."""
    check_sector_map(sector_map, where=where)
    return _LABEL_OF[sector_map]
