"""Random affine and contrast changes of training images, a batch at a time on plain tensors.

The transforms and their ranges are MONAI's ``RandAffined``, ``RandAdjustContrastd`` and
``RandScaleIntensityd``, against which the tests hold the results. MONAI takes one image at a time and returns
a ``MetaTensor``, through which every later operation of the network would pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from echovlsm.training import devices

AFFINE, CONTRAST, INTENSITY = 0.9, 0.5, 0.5
"""Probability of each change."""

ROTATION, SHIFT, SCALE, SHEAR = 0.2, 0.06, 0.12, 0.08
"""Largest change: radians, shares of the side, shares, shares."""


@dataclass(frozen=True)
class Change:
    """What happens to one image; the defaults leave it as it is.

    `rotation` in radians; `shear`, `shift` (in pixels) and `scale` along rows and columns; `gamma` of the
    contrast; `factor` of all grey levels.
    """

    rotation: float = 0.0
    shear: tuple[float, float] = (0.0, 0.0)
    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    gamma: float = 1.0
    factor: float = 1.0


def draw_change(rng: np.random.Generator, size: int) -> Change:
    """A random change of an image of `size` pixels a side."""

    def pair(bound: float, about: float = 0.0) -> tuple[float, float]:
        return tuple((about + rng.uniform(-bound, bound, 2)).tolist())

    drawn = {}
    if rng.random() < AFFINE:
        drawn = {"rotation": rng.uniform(-ROTATION, ROTATION), "shear": pair(SHEAR)}
        drawn |= {"shift": pair(SHIFT * size), "scale": pair(SCALE, 1.0)}
    if rng.random() < CONTRAST:
        drawn["gamma"] = rng.uniform(0.7, 1.4)
    if rng.random() < INTENSITY:
        drawn["factor"] = 1 + rng.uniform(-0.2, 0.2)
    return Change(**drawn)


def augment(images: Tensor, labels: Tensor, changes: Sequence[Change]) -> tuple[Tensor, Tensor]:
    """Change images and their labels alike.

    Parameters
    ----------
    images, labels
        uint8 (B, H, W).
    changes
        One an image. What moves in from outside is 0.

    Returns
    -------
    tuple of Tensor
        Images (bilinear) and labels (nearest neighbour), uint8 (B, H, W).
    """
    rows = [[value for part in astuple(change) for value in np.atleast_1d(part)] for change in changes]
    known = devices.put(torch.tensor(np.array(rows), dtype=torch.float32), images.device)
    rotation, shear, shift, scale, gamma, factor = known.split((1, 2, 2, 2, 1, 1), dim=1)
    grid = _grid(rotation[:, 0], shear, shift, scale, images.shape[-2:])

    def moved(values: Tensor, mode: str) -> Tensor:
        return functional.grid_sample(values[:, None].float(), grid, mode, "zeros", align_corners=False)[:, 0]

    found = moved(images, "bilinear").flatten(1)
    low = found.amin(dim=1, keepdim=True)
    span = found.amax(dim=1, keepdim=True) - low
    found = (((found - low) / (span + 1e-7)) ** gamma * span + low) * factor
    grey = found.view(images.shape).clamp(0, 255).round().to(torch.uint8)
    return grey, moved(labels, "nearest").to(torch.uint8)


def _grid(rotation: Tensor, shear: Tensor, shift: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """Where each pixel comes from, (B, H, W, 2), as `grid_sample` wants it: columns first, -1 to 1.

    Rotation, then shear (of rows, then of columns), shift and scale are multiplied in this order, about the
    image's centre.
    """
    one, none = torch.ones_like(rotation), torch.zeros_like(rotation)
    sin, cos = rotation.sin(), rotation.cos()

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack([*entries, none, none, one], dim=-1).view(-1, 3, 3)

    affine = (
        matrix(cos, -sin, none, sin, cos, none)
        @ matrix(one, shear[:, 0], none, shear[:, 1], one + shear[:, 0] * shear[:, 1], none)
        @ matrix(one, none, shift[:, 0], none, one, shift[:, 1])
        @ matrix(scale[:, 0], none, none, none, scale[:, 1], none)
    )
    places = [torch.arange(side, device=rotation.device) - (side - 1) / 2 for side in shape]
    rows, columns = torch.meshgrid(*places, indexing="ij")
    points = torch.stack([rows, columns, torch.ones_like(rows)]).flatten(1)
    moved = (affine[:, :2] @ points).unflatten(2, tuple(shape))
    return torch.stack([moved[:, axis] / (shape[axis] / 2) for axis in (1, 0)], dim=-1)
