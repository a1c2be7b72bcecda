"""Scores of a predicted mask against the true one: overlap and distance between outlines.

Two ways of scoring:

- the paper's (Adhikari et al. 2023, section 3; its code): both masks resized to 512 x 512, distances in
  pixels of that grid. What `score(pred, truth)` does.
- at native size in millimetres: the prediction brought to the truth's grid, distances by the pixel spacing.
  What `score(pred, truth, spacing=(sy, sx))` does.

The definitions are MONAI's, and the tests hold the values against it; they are computed here, because MONAI
takes distance transforms of whole pictures. An outline is the mask's pixels with a neighbour (of four)
outside it; what lies outside the picture is background. `hausdorff` is the largest distance from either
outline to the other, `hausdorff95` the larger of the two directed 95th percentiles, `assd` the mean over the
points of both outlines together.

Empty masks, decided here and nowhere else:

| prediction | truth | dice, iou | hausdorff, hausdorff95, assd |
| --- | --- | --- | --- |
| empty | empty | 1 (nothing was there and nothing was found) | NaN (no outline) |
| empty | present | 0 | NaN |
| present | empty | 0 | NaN |

No score is ever infinite. A mean of distances leaves out the NaN rows, so report beside it over how many of
the masks it is: `echovlsm.evaluation.statistics.mean_scores` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echovlsm import STRUCTURES
from echovlsm.cohort import masks

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

METRICS: tuple[str, ...] = ("dice", "iou", "hausdorff", "hausdorff95", "assd")
PAPER_SIZE: int = 512
"""Side in pixels of the square at which the paper scores."""

Size = int | tuple[int, int] | None | Literal["auto"]
Spacing = tuple[float, float] | None


class ScoreError(ValueError):
    """Masks, spacing or rows that cannot be scored."""


def to_mask(logits: Tensor, size: int | tuple[int, int] | None = None, threshold: float = 0.5) -> Tensor:
    """Turn a model's logits into masks, as the paper: sigmoid, resize bilinearly, threshold; nothing after.

    Args:
        logits: float tensor (..., H, W).
        size: side or (height, width) in pixels of the masks; None keeps H x W.
        threshold: probability from which a pixel belongs to the structure (paper 0.5; CRIS's code 0.35).

    Returns:
        bool tensor (..., height, width), on the device of `logits`.

    Raises:
        ScoreError: logits that are not finite floats, or a threshold outside (0, 1).
    """
    if not logits.is_floating_point():
        raise ScoreError(f"logits must be floats, not {logits.dtype}: a mask needs no threshold")
    if not bool(logits.isfinite().all()):
        raise ScoreError("logits hold NaN or infinity: the model diverged")
    _check_threshold(threshold)
    # half precision would move the outline: the threshold falls where the sigmoid is steepest
    return _resize(logits.float().sigmoid(), _height_width(size), "bilinear") >= threshold


def score(
    pred: np.ndarray | Tensor,
    truth: np.ndarray | Tensor,
    spacing: Sequence[float] | None = None,
    size: Size = "auto",
    threshold: float = 0.5,
) -> dict[str, float]:
    """Score one predicted mask.

    Args:
        pred: (H, W). A mask (bool, or any number type with 0 and 1 only), resized by nearest neighbour; or
            probabilities (floats from 0 to 1), resized bilinearly and then thresholded.
        truth: (H, W), a mask; its size may differ from the prediction's.
        spacing: (height, width) of one pixel of `truth` in millimetres: distances are millimetres. None:
            distances are pixels of the grid on which the masks are compared.
        size: side, or (height, width), of the grid on which the masks are compared; None for the truth's own.
            `auto`: 512 without spacing, the truth's own with it. Spacing is scaled when masks are resized.
        threshold: probability from which a pixel belongs to the prediction; masks do not need it.

    Returns:
        dict of float: `dice` and `iou` as fractions from 0 to 1; `hausdorff`, `hausdorff95`, `assd` in pixels
        or millimetres. The rules for empty masks are in the module's docstring.

    Raises:
        ScoreError: a mask that is not two-dimensional, has values other than 0 and 1, or no pixels; a spacing
            that is missing (NaN, NA) or not positive; an unknown size.
    """
    return _compare(*_prepare(pred, truth, spacing, size, threshold))


def score_table(
    rows: Iterable[
        tuple[Mapping[str, Any], Any, Any] | tuple[Mapping[str, Any], Any, Any, Sequence[float] | None]
    ],
    size: Size = "auto",
    threshold: float = 0.5,
    progress: bool = True,
    total: int | None = None,
) -> pd.DataFrame:
    """Score many masks, one row a mask.

    Args:
        rows: (identifiers, pred, truth) or (identifiers, pred, truth, spacing) each; `identifiers` maps
            column names to values (patient, view, phase, structure, level, ...). May be a generator: one pair
            of masks is held at a time.
        size: as in `score`.
        threshold: as in `score`.
        progress: whether to show a progress bar.
        total: number of rows, for the bar, where `rows` has no length.

    Returns:
        DataFrame: the identifiers, then `dice, iou, hausdorff, hausdorff95, assd`, `empty_pred` and
        `empty_truth` (bool), `area_pred` and `area_truth` (pixels of the grid compared on) and `unit` of the
        distances (`px` or `mm`).

    Raises:
        ScoreError: as `score`, naming the row's identifiers; or an identifier named as one of our columns.
    """
    import pandas as pd
    from tqdm import tqdm

    ours = (*METRICS, "empty_pred", "empty_truth", "area_pred", "area_truth", "unit")
    records: list[dict[str, Any]] = []
    for identifiers, pred, truth, *rest in tqdm(
        rows, desc="scoring", unit="mask", total=total, disable=not progress
    ):
        clash = [name for name in identifiers if name in ours]
        if clash:
            raise ScoreError(f"identifier {clash[0]!r} is the name of a score's column: rename it")
        spacing = rest[0] if rest else None
        try:
            masks = _prepare(pred, truth, spacing, size, threshold)
        except ScoreError as error:
            raise ScoreError(f"{', '.join(f'{k} {v}' for k, v in identifiers.items())}: {error}") from error
        area_pred, area_truth = int(masks[0].sum()), int(masks[1].sum())
        records.append(
            dict(identifiers)
            | _compare(*masks)
            | {
                "empty_pred": area_pred == 0,
                "empty_truth": area_truth == 0,
                "area_pred": area_pred,
                "area_truth": area_truth,
                "unit": "px" if spacing is None else "mm",
            }
        )
    return pd.DataFrame(records) if records else pd.DataFrame(columns=list(ours))


def three_structures(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the three structures, without the epicardium's; a table that names no structure, whole."""
    return scores[scores["structure"].isin(STRUCTURES.values())] if "structure" in scores else scores


def _prepare(
    pred: Any, truth: Any, spacing: Sequence[float] | None, size: Size, threshold: float
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Return both masks (bool, one shape) on the grid to compare on, and the spacing of that grid."""
    pred, truth = _as_array(pred, "pred"), _as_array(truth, "truth")
    _check_threshold(threshold)
    pixel = _check_spacing(spacing)
    auto = isinstance(size, str)
    if auto and size != "auto":
        raise ScoreError(
            f"size {size!r} is unknown: pixels, (height, width), None for native size, or 'auto'"
        )
    native = size is None or (auto and spacing is not None)
    grid = truth.shape if native else _height_width(PAPER_SIZE if auto else size)
    true_mask = _is_mask(truth)
    if true_mask is None:
        raise ScoreError("truth must hold only 0 and 1: choose one structure (labels == value)")
    found = _is_mask(pred)
    if found is not None:
        found = _resize_array(found, grid, "nearest-exact")
    elif np.issubdtype(pred.dtype, np.floating) and pred.min() >= 0 and pred.max() <= 1:
        found = _resize_array(pred, grid, "bilinear") >= threshold
    else:
        raise ScoreError(
            f"pred is neither a mask (0 and 1) nor probabilities (0 to 1): {pred.dtype} from {pred.min()} to "
            f"{pred.max()}; make masks of logits with scoring.to_mask"
        )
    scaled = (
        (pixel[0] * truth.shape[0] / grid[0], pixel[1] * truth.shape[1] / grid[1])
        if spacing is not None
        else pixel
    )
    return found, _resize_array(true_mask, grid, "nearest-exact"), scaled


def _compare(pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, float]) -> dict[str, float]:
    found, wanted, both = (int(np.count_nonzero(mask)) for mask in (pred, truth, pred & truth))
    if not found and not wanted:
        return {"dice": 1.0, "iou": 1.0} | dict.fromkeys(METRICS[2:], math.nan)
    result = {"dice": 2 * both / (found + wanted), "iou": both / (found + wanted - both)}
    if not found or not wanted:
        return result | dict.fromkeys(METRICS[2:], math.nan)
    points = [masks.outline_points(mask) * spacing for mask in (pred, truth)]
    there, back = (_nearest(*pair) for pair in (points, points[::-1]))
    return result | {
        "hausdorff": float(max(there.max(), back.max())),
        "hausdorff95": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "assd": float((there.sum() + back.sum()) / (len(there) + len(back))),
    }


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance from each point to the nearest of the others, float64 (N,).

    A tree of the few hundred points of an outline costs a tenth of a distance transform of the picture.
    """
    from scipy.spatial import KDTree

    return KDTree(others, balanced_tree=False, compact_nodes=False).query(points)[0]


def _as_array(values: Any, name: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.ndim != 2 or array.size == 0:
        raise ScoreError(f"{name} must have the shape (height, width), not {array.shape}")
    if array.dtype != bool and not np.issubdtype(array.dtype, np.number):
        raise ScoreError(f"{name} must hold numbers, not {array.dtype}")
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise ScoreError(f"{name} holds NaN or infinity")
    return array


def _is_mask(array: np.ndarray) -> np.ndarray | None:
    """Return the array as bool where it holds 0 and 1 only, else None."""
    if array.dtype == bool:
        return array
    return array == 1 if ((array == 0) | (array == 1)).all() else None


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ScoreError(f"threshold {threshold!r} is not a probability between 0 and 1")


def _check_spacing(spacing: Any) -> tuple[float, float]:
    if spacing is None:
        return 1.0, 1.0
    try:
        height, width = (float(value) for value in spacing)
    except (TypeError, ValueError):
        height = width = math.nan
    if not (0 < height < math.inf and 0 < width < math.inf):
        raise ScoreError(
            f"spacing {spacing!r} is not (height, width) of a pixel in millimetres, so that no distance in "
            "millimetres can be had: score in pixels with spacing=None"
        )
    return height, width


def _height_width(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, (int, np.integer)) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, (int, np.integer)) and side > 0 for side in pair):
        raise ScoreError(f"size {size!r} is neither a number of pixels nor (height, width)")
    return int(pair[0]), int(pair[1])


def _resize(values: Tensor, shape: tuple[int, int] | None, mode: str) -> Tensor:
    """Resize the last two axes by pixel areas (corners not aligned)."""
    from torch.nn import functional

    if shape is None or tuple(values.shape[-2:]) == shape:
        return values
    flat = values.reshape(-1, 1, *values.shape[-2:])
    return functional.interpolate(flat, size=shape, mode=mode).reshape(*values.shape[:-2], *shape)


def _resize_array(values: np.ndarray, shape: tuple[int, int], mode: str) -> np.ndarray:
    import torch

    if values.shape == shape:
        return values
    if values.dtype == bool:
        return _resize(torch.from_numpy(values.astype(np.uint8)), shape, mode).numpy().astype(bool)
    return _resize(torch.from_numpy(values.astype(np.float32)), shape, mode).numpy()
