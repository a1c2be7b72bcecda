"""An image of the cohort, an answer about it, and both as pixels to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from echovlsm import STRUCTURES
from echovlsm.cohort import masks

Key = tuple[str, str, str]
"""Patient, view, phase."""
LEAST_SHARE = 0.005
"""Share of the sector below which an answer is that there is nothing by that name."""
_VALUES = {name: value for value, name in STRUCTURES.items()}
_DARK = 8


class ExplorerError(ValueError):
    """An image, model or run that the explorer does not have; the message says what there is."""


@dataclass(frozen=True)
class CohortImage:
    """One image of the cohort and what is known about it."""

    key: Key
    pixels: np.ndarray
    """uint8 (H, W)."""
    labels: np.ndarray | None
    """uint8 (H, W); None where the cohort has no mask."""
    known: Mapping[str, Any]
    """view, phase, sex, age and quality, as far as the cohort says them."""

    def reference(self, structure: str) -> np.ndarray | None:
        """The structure's reference mask, bool (H, W); None where there is none."""
        return None if self.labels is None else self.labels == _VALUES[structure]


@dataclass(frozen=True)
class Answer:
    """What one model says to one sentence about one image."""

    probability: np.ndarray
    """float32 (H, W), at the image's size."""

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """Pixels at or above the threshold, bool (H, W)."""
        return self.probability >= threshold


def sector(pixels: np.ndarray) -> np.ndarray:
    """Where a uint8 (H, W) image shows anything, bool (H, W).

    In each row from the first to the last pixel that is not dark, as cavities inside are dark as well; the
    whole image where all is dark.
    """
    bright = pixels > _DARK
    found = np.logical_or.accumulate(bright, 1) & np.logical_or.accumulate(bright[:, ::-1], 1)[:, ::-1]
    return found if found.any() else np.ones(pixels.shape, dtype=bool)


def share_outlined(mask: np.ndarray, pixels: np.ndarray) -> float:
    """Share of an image's sector that a mask (H, W) covers; below `LEAST_SHARE` nothing was found."""
    seen = sector(pixels)
    return float((mask & seen).sum() / seen.sum())


def paint(
    pixels: np.ndarray,
    colour: str,
    *,
    mask: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    fill: float = 0.25,
) -> np.ndarray:
    """A uint8 (H, W) image with an answer on it: uint8 (2 H, 2 W, 3), so that outlines are fine.

    The answer `mask`, bool (H, W), is filled (0 to 1) and outlined in a hexadecimal colour, the reference
    `truth` outlined in white. `probability`, float (H, W), is laid over the image instead of the filled mask.
    """
    ink = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)
    canvas = np.repeat(pixels.astype(np.float32)[..., None], 3, axis=2)
    share = None
    if probability is not None:
        share = 0.75 * probability.astype(np.float32)
    elif mask is not None:
        share = fill * mask.astype(np.float32)
    if share is not None:
        canvas += share[..., None] * (ink - canvas)
    canvas = _twice(canvas)
    for area, line in ((truth, np.float32(255)), (mask, ink)):
        if area is not None:
            canvas[masks.outline(_twice(area))] = line
    return canvas.round().clip(0, 255).astype(np.uint8)


def _twice(values: np.ndarray) -> np.ndarray:
    return values.repeat(2, axis=0).repeat(2, axis=1)


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image file of uint8 pixels, (H, W) or (H, W, 3); `options` are Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()
