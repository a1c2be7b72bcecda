"""Shapes of masks: boxes, parts, outlines and hulls against plain ways of finding them."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from skimage.morphology import convex_hull_image

from echovlsm.cohort import masks


def blobs(count: int) -> Iterator[np.ndarray]:
    """Masks of every raggedness: thresholded noise, which has islands, holes and thin parts."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        noise = gaussian_filter(rng.normal(size=rng.integers(4, 120, 2)), rng.uniform(0, 6))
        mask = noise > np.quantile(noise, rng.uniform(0.3, 0.95))
        if mask.any():
            yield mask


@pytest.mark.parametrize("edges", [True, False])
def test_the_hull_is_that_of_scikit_image(edges: bool) -> None:
    compared = 0
    for mask in blobs(150):
        part = masks.largest_part(mask) if edges else mask
        part = part[masks.box(part)]
        if min(part.shape) > 2:
            expected = convex_hull_image(part, offset_coordinates=edges, include_borders=True)
            np.testing.assert_array_equal(masks.hull(part, edges), expected)
            compared += 1
    assert compared > 100


def test_the_hull_spans_rows_without_a_pixel() -> None:
    mask = np.zeros((9, 12), bool)
    mask[1, 2] = mask[1, 8] = mask[7, 5] = True
    hull = masks.hull(mask)
    assert hull.sum(axis=1).tolist() == [0, 7, 6 - 1, 5, 3, 3, 1, 1, 0]
    assert np.flatnonzero(hull[4]).tolist() == [4, 5, 6]
    assert masks.hull(np.eye(1, 5, 3, dtype=bool)).tolist() == [[False, False, False, True, False]]


def test_the_largest_part_is_that_with_most_pixels() -> None:
    mask = np.zeros((6, 9), bool)
    mask[0:2, 0:2] = mask[2, 2] = True  # five pixels, one of which touches at a corner only
    mask[4:6, 5:7] = True
    assert np.count_nonzero(masks.largest_part(mask)) == 5
    assert np.argwhere(masks.largest_part(mask, diagonals=False))[0].tolist() == [0, 0]
    assert np.count_nonzero(masks.largest_part(mask, diagonals=False)) == 4
    numbers, areas = masks.parts(mask)
    assert areas.tolist() == [0, 5, 4]
    np.testing.assert_array_equal(numbers > 0, mask)
    assert not masks.largest_part(np.zeros((3, 3), bool)).any()


def test_the_outline_is_what_erosion_takes_away() -> None:
    cross = ndimage.generate_binary_structure(2, 1)
    for mask in blobs(40):
        expected = mask & ~ndimage.binary_erosion(mask, cross, border_value=0)
        np.testing.assert_array_equal(masks.outline(mask), expected)
        np.testing.assert_array_equal(masks.outline_points(mask), np.argwhere(expected))


def test_the_box_holds_every_pixel_and_no_empty_border() -> None:
    for mask in blobs(40):
        inside = mask[masks.box(mask)]
        assert inside.sum() == mask.sum()
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
