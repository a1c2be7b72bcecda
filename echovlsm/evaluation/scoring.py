"""Scores of a predicted mask against the true one: overlap, and distance between outlines.

`score(pred, truth)` is the paper's way (Adhikari et al. 2023, section 3; its code): both masks resized to
512 x 512, distances in pixels of that grid. `score(pred, truth, spacing=(sy, sx))` compares at the truth's
own size, distances in millimetres.

The definitions are MONAI's, and the tests hold the values against it; they are computed here, because MONAI
takes distance transforms of whole images. An outline is the mask's pixels with a neighbour (of four) outside
it; what lies outside the image is background.

A score is a function of `Masks`. To add one, write it here and name it in `OVERLAPS` or `DISTANCES`: tables,
means, tests and figures then have its column. The two differ in what an empty mask gives:

| prediction | truth | `OVERLAPS` | `DISTANCES` |
| --- | --- | --- | --- |
| empty | empty | 1 (nothing was there and nothing was found) | NaN (no outline) |
| empty | present | 0 | NaN |
| present | empty | 0 | NaN |

A mean of distances leaves out the NaN rows; `statistics.mean_scores` says over how many masks it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from echovlsm import STRUCTURES
from echovlsm.cohort import masks

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

PAPER_SIZE: int = 512
"""Side in pixels of the square at which the paper scores."""

Size = int | tuple[int, int] | None | Literal["auto"]


class ScoreError(ValueError):
    """Masks, spacing or rows that cannot be scored."""


class Masks:
    """Two masks bool (H, W) on one grid, and what scores take from them.

    `spacing` is the (height, width) of a pixel: 1, 1 for distances in pixels. `found`, `wanted` and `both`
    count the pixels of the prediction, of the truth, and of what they share.
    """

    def __init__(
        self, pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        self.pred, self.truth, self.spacing = pred, truth, spacing
        self.found, self.wanted, self.both = (
            int(np.count_nonzero(mask)) for mask in (pred, truth, pred & truth)
        )

    @cached_property
    def gaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Distance from each point of the prediction's outline to the truth's, (N,), and back, (M,)."""
        points = [masks.outline_points(mask) * self.spacing for mask in (self.pred, self.truth)]
        return _nearest(*points), _nearest(*points[::-1])


def _dice(pair: Masks) -> float:
    """Twice what both share, over the sum of the two."""
    return 2 * pair.both / (pair.found + pair.wanted)


def _iou(pair: Masks) -> float:
    """What both share, over what either has."""
    return pair.both / (pair.found + pair.wanted - pair.both)


def _hausdorff(pair: Masks) -> float:
    """The largest distance from either outline to the other."""
    there, back = pair.gaps
    return float(max(there.max(), back.max()))


def _hausdorff95(pair: Masks) -> float:
    """The larger of the two directed 95th percentiles."""
    return float(max(np.percentile(gap, 95) for gap in pair.gaps))


def _assd(pair: Masks) -> float:
    """The mean distance over the points of both outlines together."""
    there, back = pair.gaps
    return float((there.sum() + back.sum()) / (len(there) + len(back)))


Score = Callable[[Masks], float]
OVERLAPS: dict[str, Score] = {"dice": _dice, "iou": _iou}
"""Shares from 0 to 1; called where both masks have pixels."""
DISTANCES: dict[str, Score] = {"hausdorff": _hausdorff, "hausdorff95": _hausdorff95, "assd": _assd}
"""In the unit of the spacing; called where both masks have pixels, that is outlines."""
METRICS: tuple[str, ...] = (*OVERLAPS, *DISTANCES)
"""The score columns of every table."""


def dice(pred: np.ndarray, truth: np.ndarray) -> float:
    """Dice of two bool masks (H, W) on one grid, of empty ones too."""
    return _overlaps(Masks(pred, truth))["dice"]


def _overlaps(pair: Masks) -> dict[str, float]:
    if pair.found and pair.wanted:
        return {name: of(pair) for name, of in OVERLAPS.items()}
    return dict.fromkeys(OVERLAPS, 0.0 if pair.found or pair.wanted else 1.0)


def _scores(pair: Masks) -> dict[str, float]:
    whole = pair.found and pair.wanted
    return _overlaps(pair) | {name: of(pair) if whole else math.nan for name, of in DISTANCES.items()}


def to_mask(logits: Tensor, size: int | tuple[int, int] | None = None, threshold: float = 0.5) -> Tensor:
    """Turn a model's logits into masks, as the paper: sigmoid, resize bilinearly, threshold; nothing after.

    Parameters
    ----------
    logits
        float (..., H, W).
    size
        Side or (height, width) in pixels of the masks; None keeps H x W.
    threshold
        Probability from which a pixel belongs to the structure (paper 0.5; CRIS's code 0.35).

    Returns
    -------
    Tensor
        bool (..., height, width).

    Raises
    ------
    ScoreError
        Logits that are not finite floats, or a threshold outside (0, 1).
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

    Parameters
    ----------
    pred
        (H, W): a mask (bool, or any number type with 0 and 1 only), resized by nearest neighbour; or
        probabilities (floats from 0 to 1), resized bilinearly and then thresholded.
    truth
        (H, W), a mask; its size may differ from the prediction's.
    spacing
        (height, width) of one pixel of `truth` in millimetres, which distances then have. None: distances
        are pixels of the grid on which the masks are compared.
    size
        Side, or (height, width), of that grid; None for the truth's own. ``auto``: 512 without spacing, the
        truth's own with it. Spacing is scaled when masks are resized.
    threshold
        Probability from which a pixel belongs to the prediction; masks do not need it.

    Returns
    -------
    dict
        Each of `METRICS`; of empty masks see the module.

    Raises
    ------
    ScoreError
        A mask that is none; a spacing that is missing (NaN, NA) or not positive; an unknown size.
    """
    return _scores(_prepare(pred, truth, spacing, size, threshold))


def score_table(
    rows: Iterable[tuple[Any, ...]],
    size: Size = "auto",
    threshold: float = 0.5,
    progress: bool = True,
    total: int | None = None,
) -> pd.DataFrame:
    """Score many masks, one row a mask.

    Parameters
    ----------
    rows
        (identifiers, pred, truth) or (identifiers, pred, truth, spacing) each; `identifiers` maps column
        names to values (patient, view, phase, structure, level, ...). May be a generator: one pair of masks
        is held at a time.
    size, threshold
        As in `score`.
    progress, total
        Whether to show a progress bar, and of how many rows, where `rows` has no length.

    Returns
    -------
    DataFrame
        The identifiers, `METRICS`, `empty_pred` and `empty_truth` (bool), `area_pred` and `area_truth`
        (pixels of the grid compared on) and `unit` of the distances (`px` or `mm`).

    Raises
    ------
    ScoreError
        As `score`, naming the row's identifiers; or an identifier named as one of our columns.
    """
    import pandas as pd
    from tqdm import tqdm

    ours = (*METRICS, "empty_pred", "empty_truth", "area_pred", "area_truth", "unit")
    records: list[dict[str, Any]] = []
    bar = tqdm(rows, desc="scoring", unit="mask", total=total, disable=not progress)
    for identifiers, pred, truth, *rest in bar:
        if clash := [name for name in identifiers if name in ours]:
            raise ScoreError(f"identifier {clash[0]!r} is the name of a score's column: rename it")
        spacing = rest[0] if rest else None
        try:
            compared = _prepare(pred, truth, spacing, size, threshold)
        except ScoreError as error:
            raise ScoreError(f"{', '.join(f'{k} {v}' for k, v in identifiers.items())}: {error}") from error
        records.append(
            dict(identifiers)
            | _scores(compared)
            | {
                "empty_pred": compared.found == 0,
                "empty_truth": compared.wanted == 0,
                "area_pred": compared.found,
                "area_truth": compared.wanted,
                "unit": "px" if spacing is None else "mm",
            }
        )
    return pd.DataFrame(records) if records else pd.DataFrame(columns=list(ours))


def three_structures(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the three structures, without the epicardium's; a table that names no structure, whole."""
    return scores[scores["structure"].isin(STRUCTURES.values())] if "structure" in scores else scores


def _prepare(pred: Any, truth: Any, spacing: Sequence[float] | None, size: Size, threshold: float) -> Masks:
    """Both masks on the grid to compare on, and the spacing of that grid."""
    pred, truth = _as_array(pred, "pred"), _as_array(truth, "truth")
    _check_threshold(threshold)
    pixel = (1.0, 1.0) if spacing is None else pixel_size(spacing)
    if pixel is None:
        raise ScoreError(
            f"spacing {spacing!r} is not (height, width) of a pixel in millimetres, so that no distance in "
            "millimetres can be had: score in pixels with spacing=None"
        )
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
    if spacing is not None:
        pixel = (pixel[0] * truth.shape[0] / grid[0], pixel[1] * truth.shape[1] / grid[1])
    return Masks(found, _resize_array(true_mask, grid, "nearest-exact"), pixel)


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance from each point to the nearest of the others, float64 (N,)."""
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
    """The array as bool where it holds 0 and 1 only, else None."""
    if array.dtype == bool:
        return array
    return array == 1 if ((array == 0) | (array == 1)).all() else None


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ScoreError(f"threshold {threshold!r} is not a probability between 0 and 1")


def pixel_size(spacing: Any) -> tuple[float, float] | None:
    """A pixel's (height, width) as floats; None where that is no pair of finite, positive numbers."""
    try:
        height, width = (float(value) for value in spacing)
    except (TypeError, ValueError):
        return None
    return (height, width) if 0 < height < math.inf and 0 < width < math.inf else None


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
