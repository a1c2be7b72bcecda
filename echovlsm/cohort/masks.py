"""Shapes of masks: the box that holds one, its connected parts, its outline, its convex hull.

A mask is a bool array (H, W). Whatever measures or draws one takes these from here.
"""

from __future__ import annotations

import numpy as np


def box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold all pixels of a mask, which must have one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def parts(mask: np.ndarray, diagonals: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Connected parts of a mask.

    Parameters
    ----------
    mask
        Bool (H, W).
    diagonals
        Whether pixels that touch at a corner belong together.

    Returns
    -------
    numbers : ndarray of int32 (H, W)
        1, 2, ... in the parts, 0 outside.
    areas : ndarray of int64
        Pixels of each number; those of 0 do not count and are 0.
    """
    from scipy import ndimage

    numbers, _ = ndimage.label(mask, np.ones((3, 3)) if diagonals else None)
    areas = np.bincount(numbers.ravel())
    areas[0] = 0
    return numbers, areas


def largest_part(mask: np.ndarray, diagonals: bool = True) -> np.ndarray:
    """The largest connected part of a mask (`parts`), the upper one of two; an empty mask is its own."""
    numbers, areas = parts(mask, diagonals)
    return mask if len(areas) <= 2 else numbers == areas.argmax()


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with one of the four neighbours outside it, or at the image's edge: bool (H, W)."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def outline_points(mask: np.ndarray) -> np.ndarray:
    """Row and column of each pixel of the outline of a mask that is not empty: int64 (N, 2)."""
    where = box(mask)
    return np.argwhere(outline(mask[where])) + [side.start for side in where]


def hull(mask: np.ndarray, edges: bool = False) -> np.ndarray:
    """Convex hull of a mask that is not empty: the pixels whose centre lies in it or on its border.

    Parameters
    ----------
    mask
        Bool (H, W).
    edges
        Whether the hull is that of the middles of the pixels' edges, as scikit-image's `convex_hull_image`
        has it, or that of their centres.

    Returns
    -------
    ndarray
        Bool (H, W).
    """
    rows, width = np.flatnonzero(mask.any(axis=1)), mask.shape[1]
    first = _outermost(rows, mask[rows].argmax(axis=1), edges)
    last = _outermost(rows, mask[rows, ::-1].argmax(axis=1), edges)
    column = 2 * np.arange(width)
    found = np.zeros(mask.shape, dtype=bool)
    found[rows[0] : rows[-1] + 1] = (column >= first[:, None] - 1e-6) & (column[::-1] >= last[:, None] - 1e-6)
    return found


def _outermost(rows: np.ndarray, first: np.ndarray, edges: bool) -> np.ndarray:
    """Twice the column at which the hull begins in each row from the first of `rows` to the last.

    `first` (rows,) is the leftmost pixel of each of `rows`. Twice the coordinates are whole numbers, so that
    only the last step rounds.
    """
    at = 2 * (rows - rows[0]) + 1
    left = np.full(at[-1] + 2, np.iinfo(np.int64).max)
    left[at] = 2 * first - edges
    if edges:  # between the rows, at the top, and at the bottom too
        for beside in (at - 1, at + 1):
            left[beside] = np.minimum(left[beside], 2 * first)
    y = np.flatnonzero(left < np.iinfo(np.int64).max)
    x = left[y]
    while True:  # a point not left of its neighbours' line is no corner, whatever else is taken away
        corner = (x[1:-1] - x[:-2]) * (y[2:] - y[:-2]) < (x[2:] - x[:-2]) * (y[1:-1] - y[:-2])
        if corner.all():
            return np.interp(np.arange(1, len(left), 2), y, x)
        keep = np.ones(len(x), dtype=bool)
        keep[1:-1] = corner
        x, y = x[keep], y[keep]
