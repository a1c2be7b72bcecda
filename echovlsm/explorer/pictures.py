"""An image of the cohort, an answer about it, and how much of the image an answer outlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from echovlsm import STRUCTURES

Key = tuple[str, str, str]
"""Patient, view, phase."""
_VALUES = {name: value for value, name in STRUCTURES.items()}


class ExplorerError(ValueError):
    """A picture, model or run that the explorer does not have; the message says what there is."""


@dataclass(frozen=True)
class Picture:
    """One picture of the cohort and what is known about it."""

    key: Key
    image: np.ndarray
    """uint8 (H, W)."""
    labels: np.ndarray | None
    """uint8 (H, W); None where the cohort has no mask."""
    known: Mapping[str, Any]
    """view, phase, sex, age, quality and shape of each structure, as far as the cohort says them."""

    def reference(self, structure: str) -> np.ndarray | None:
        """The structure's reference mask, bool (H, W); None where there is none."""
        return None if self.labels is None else self.labels == _VALUES[structure]


@dataclass(frozen=True)
class Answer:
    """What one model says to one sentence about one picture."""

    probability: np.ndarray
    """float32 (H, W), at the picture's size."""

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """Pixels that the model holds for the structure, bool (H, W)."""
        return self.probability >= threshold


LEAST_SHARE = 0.005
"""Share of the sector below which an answer is that there is nothing by that name."""
_DARK = 8


def sector(image: np.ndarray) -> np.ndarray:
    """Where a uint8 (H, W) image shows anything, bool (H, W).

    In each row from the first to the last pixel that is not dark, as cavities inside are dark as well; the
    whole image where all is dark.
    """
    bright = image > _DARK
    found = np.logical_or.accumulate(bright, 1) & np.logical_or.accumulate(bright[:, ::-1], 1)[:, ::-1]
    return found if found.any() else np.ones(image.shape, dtype=bool)


def share_outlined(mask: np.ndarray, image: np.ndarray) -> float:
    """Share of an image's sector that a mask (H, W) outlines; below `LEAST_SHARE` it names nothing there."""
    seen = sector(image)
    return float((mask & seen).sum() / seen.sum())
