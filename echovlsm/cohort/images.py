"""One row's image and labels: read upright, and resized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from echovlsm.cohort import files, released
from echovlsm.cohort.files import CohortError

if TYPE_CHECKING:
    from torch import Tensor


def _field(row: Any, name: str) -> Any:
    try:
        return row[name] if isinstance(row, Mapping | pd.Series) else getattr(row, name)
    except (KeyError, AttributeError):
        raise CohortError(f"the row has no {name!r}; give a row of the frames table of read_cohort") from None


def load_image(row: Any) -> np.ndarray:
    """Image of one row of the frames table (Series, namedtuple or mapping): uint8 (H, W), apex at the top.

    CohortError where the file is missing, broken, or holds anything but whole numbers in 0-255.
    """
    path = Path(_field(row, "image"))
    return released.decode_png(path) if path.suffix == ".png" else files.decode(path, 255)


def load_labels(row: Any) -> np.ndarray:
    """Mask of one row of the frames table: uint8 (H, W), 0 and the keys of `echovlsm.STRUCTURES`, upright.

    CohortError where there is none, or the file is missing, broken, or holds anything but the numbers 0-3.
    """
    labels = _field(row, "labels")
    if pd.isna(labels):
        raise CohortError(
            f"{_field(row, 'image')}: this image has no mask; leave out rows whose labels is NA"
        )
    if str(labels).endswith(".png"):
        order, step = str(_field(row, "label_order")), float(_field(row, "label_step"))
        return released.load_released_labels(Path(labels), order, step)
    return files.decode(Path(labels), 3)


def resize_image(image: np.ndarray, size: int) -> Tensor:
    """Resize a uint8 (H, W) image to uint8 (size, size), bilinear with antialiasing."""
    import torch
    from torch.nn import functional

    tensor = torch.from_numpy(np.ascontiguousarray(image))[None, None].float()
    small = functional.interpolate(
        tensor, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return small[0, 0].round().clamp(0, 255).to(torch.uint8)


def resize_labels(labels: np.ndarray, size: int) -> Tensor:
    """Resize a uint8 (H, W) label map to uint8 (size, size), nearest neighbour (pixel centres)."""
    import torch
    from torch.nn import functional

    tensor = torch.from_numpy(np.ascontiguousarray(labels))[None, None].float()
    return functional.interpolate(tensor, size=(size, size), mode="nearest-exact")[0, 0].to(torch.uint8)
