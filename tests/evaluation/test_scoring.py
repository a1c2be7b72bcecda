"""Scores against geometry worked out by hand."""

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

from echovlsm.evaluation import scoring
from echovlsm.evaluation.scoring import DISTANCES, METRICS, OVERLAPS, ScoreError, score, score_table, to_mask


def square(top, left, side=10, shape=(64, 64)):
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def disc(radius, centre, shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def test_shifted_squares_have_the_overlap_and_distance_worked_out_by_hand():
    # side 10, shifted right by 4: 60 of 100 pixels shared; the farthest columns are 4 pixels off
    result = score(square(20, 24), square(20, 20), size=None)
    assert list(result) == list(METRICS)
    assert result["dice"] == pytest.approx(2 * 60 / 200)
    assert result["iou"] == pytest.approx(60 / 140)
    assert result["hausdorff"] == 4
    # each outline has 36 points. From one square's outline to the other's:
    # the far column's 10 are 4 off; of the two rows between, three points are 3, 2, 1 off and five are shared
    far = [4] * 10 + [3, 2, 1, 0, 0, 0, 0, 0] * 2
    # the near column lies inside the other square, 4 from its column and i or 9 - i from its rows
    near = [min(i, 9 - i, 4) for i in range(10)]
    outline = far + near
    assert len(outline) == 36
    assert result["assd"] == pytest.approx(np.mean(outline))
    assert result["hausdorff95"] == pytest.approx(np.percentile(outline, 95))


def test_a_far_square_is_farther_by_its_diagonal():
    result = score(square(0, 0, 2), square(30, 40, 2), size=None)
    assert result["dice"] == result["iou"] == 0
    # the corner nearest to the other square is at (1, 1); the farthest at (0, 0), with (30, 40) nearest to it
    assert result["hausdorff"] == pytest.approx(math.hypot(30, 40))


def test_identical_masks_are_perfect():
    mask = disc(11, (30, 25), (64, 50))
    for spacing in (None, (0.3, 0.15)):
        assert score(mask, mask, spacing) == dict.fromkeys(OVERLAPS, 1) | dict.fromkeys(DISTANCES, 0)


@pytest.mark.parametrize(("shift", "distance"), [((4, 0), 4 * 0.154), ((0, 4), 4 * 0.308)])
def test_anisotropic_spacing_measures_millimetres_along_the_right_axis(shift, distance):
    truth, pred = square(20, 20), square(20 + shift[0], 20 + shift[1])
    assert score(pred, truth, (0.154, 0.308))["hausdorff"] == pytest.approx(distance)


def test_every_distance_agrees_with_brute_force_over_the_outlines():
    rng = np.random.default_rng(3)
    truth = disc(14, (30, 30), (60, 70)) & (rng.random((60, 70)) > 0.02)
    pred = disc(12, (33, 41), (60, 70)) & (rng.random((60, 70)) > 0.02)
    spacing = np.array([0.5, 1.25])
    points = []
    for mask in (pred, truth):
        padded = np.pad(mask, 1)
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        points.append(np.argwhere(mask & ~inner) * spacing)
    table = cdist(*points)
    there, back = table.min(axis=1), table.min(axis=0)
    result = score(pred, truth, spacing)
    assert result["hausdorff"] == pytest.approx(max(there.max(), back.max()), rel=1e-5)
    assert result["hausdorff95"] == pytest.approx(
        max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5
    )
    assert result["assd"] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)


@pytest.mark.parametrize("spacing", [None, (0.31, 0.62)])
def test_every_score_is_that_of_monai(spacing):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
    )

    rng = np.random.default_rng(5)
    for _ in range(6):
        pair = [ndimage.gaussian_filter(rng.normal(size=(90, 120)), 6) > level for level in (0.01, 0.03)]
        mine = score(*pair, spacing=spacing, size=None)
        batch = [torch.from_numpy(mask)[None, None].double() for mask in pair]
        options = {"include_background": True, "spacing": spacing}
        theirs = {
            "dice": compute_dice(*batch),
            "iou": compute_iou(*batch),
            "hausdorff": compute_hausdorff_distance(*batch, **options),
            "hausdorff95": compute_hausdorff_distance(*batch, percentile=95, **options),
        }
        expected = {key: value.item() for key, value in theirs.items()}
        # MONAI takes percentiles in single precision
        assert {key: mine[key] for key in theirs} == pytest.approx(expected, rel=1e-5)
        # MONAI's symmetric mean weighs both directions by their number of points, as `assd` does
        symmetric = compute_average_surface_distance(*batch, symmetric=True, **options).item()
        assert mine["assd"] == pytest.approx(symmetric)


def test_a_mask_touching_the_image_border_has_its_outline_there():
    # truth fills the image: its outline is the border; the middle pixel is farther by 10 from it
    truth, pred = np.ones((21, 21), bool), square(10, 10, 1, (21, 21))
    assert score(pred, truth, size=None)["hausdorff"] == pytest.approx(math.hypot(10, 10))


def test_the_papers_size_is_the_default_and_measures_pixels_of_it():
    # 64 -> 512 multiplies by 8: shifted by 4 native pixels are 32 of the paper's
    result = score(square(20, 24), square(20, 20))
    assert result["hausdorff"] == 32
    assert result["dice"] == pytest.approx(0.6)
    # an image twice as high as wide is squeezed: a shift along the height counts half
    tall = score(square(24, 20, shape=(128, 64)), square(20, 20, shape=(128, 64)))
    assert tall["hausdorff"] == 16


def test_resizing_keeps_millimetres():
    truth, pred = square(20, 20, shape=(128, 64)), square(24, 20, shape=(128, 64))
    for size in ("auto", None, 512, (256, 128)):
        assert score(pred, truth, (0.5, 2.0), size=size)["hausdorff"] == pytest.approx(2.0), size


def test_a_small_prediction_is_brought_to_the_truths_grid():
    truth = square(16, 16, 32)
    assert score(truth[::4, ::4], truth, (1, 1)) == score(truth, truth, (1, 1))


def test_probabilities_are_resized_bilinearly_before_the_threshold():
    columns = np.array([1.0, 1.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0])
    probabilities = np.tile(columns, (8, 1))
    truth = np.zeros((64, 64), bool)
    # between the centres of column 2 (x = 19.5) and 3 (27.5) it falls from 0.9 to 0: 0.5 at x = 23.06
    truth[:, :24] = True
    assert score(probabilities, truth, size=None)["dice"] == 1
    assert score(probabilities > 0.5, truth, size=None)["dice"] == 1
    # a nearest-neighbour mask would not move with the threshold: 0.8 lies at x = 20.39
    truth[:, 21:] = False
    assert score(probabilities, truth, size=None, threshold=0.8)["dice"] == 1


def test_logits_become_masks_of_the_size_asked_for():
    logits = torch.tensor([[-3.0, 3.0], [-3.0, 3.0]]).expand(2, 3, 2, 2)
    masks = to_mask(logits, size=8)
    assert masks.shape == (2, 3, 8, 8)
    assert masks.dtype == torch.bool
    assert masks[0, 0, 0].tolist() == [False] * 4 + [True] * 4
    assert to_mask(logits).shape == (2, 3, 2, 2)
    assert to_mask(logits, size=(4, 6)).shape == (2, 3, 4, 6)
    # at 0.35 more belongs to the structure
    assert to_mask(logits, 64, 0.35).sum() > to_mask(logits, 64).sum()
    with pytest.raises(ScoreError, match="diverged"):
        to_mask(logits * float("nan"))
    with pytest.raises(ScoreError, match="floats"):
        to_mask(masks)


@pytest.mark.parametrize("spacing", [None, (0.3, 0.3)])
def test_empty_masks_follow_the_written_rules(spacing):
    empty, some = np.zeros((64, 64), bool), square(5, 5)
    for pred, truth, overlap in ((empty, empty, 1), (empty, some, 0), (some, empty, 0)):
        result = score(pred, truth, spacing)
        assert (result["dice"], result["iou"]) == (overlap, overlap)
        assert all(math.isnan(result[name]) for name in DISTANCES)


@pytest.mark.parametrize("spacing", [(float("nan"), 1.0), (pd.NA, pd.NA), (0, 1), (1, -1), (1, 1, 1), 0.3])
def test_millimetres_need_a_genuine_spacing(spacing):
    with pytest.raises(ScoreError, match="spacing=None"):
        score(square(1, 1), square(1, 1), spacing)


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        (square(1, 1), np.full((64, 64), 2), "truth must hold only 0 and 1"),
        (square(1, 1).astype(np.uint8) * 255, square(1, 1), "to_mask"),
        (square(1, 1) * 7.5 - 3, square(1, 1), "to_mask"),
        (square(1, 1)[None], square(1, 1), "pred must have the shape"),
        (square(1, 1), np.zeros((0, 4)), "truth must have the shape"),
        (square(1, 1) * np.nan, square(1, 1), "NaN"),
        (np.full((2, 2), "a"), square(1, 1), "numbers"),
    ],
)
def test_what_is_no_mask_is_refused(pred, truth, message):
    with pytest.raises(ScoreError, match=message):
        score(pred, truth)


def test_unknown_sizes_and_thresholds_are_refused():
    for size in ("native", 0, (3,), 2.5 * np.ones(2)):
        with pytest.raises(ScoreError, match="size"):
            score(square(1, 1), square(1, 1), size=size)
    with pytest.raises(ScoreError, match="threshold"):
        score(square(1, 1), square(1, 1), threshold=1.0)


def test_the_table_has_one_row_a_mask_and_says_what_was_empty():
    truth = square(20, 20)
    rows = [
        ({"patient": "a", "structure": "myocardium"}, torch.from_numpy(square(20, 24)), truth, (0.5, 0.5)),
        ({"patient": "b", "structure": "myocardium"}, np.zeros_like(truth), truth),
    ]
    table = score_table(iter(rows), progress=False)
    assert list(table["patient"]) == ["a", "b"]
    assert list(table["unit"]) == ["mm", "px"]
    assert table.loc[0, "hausdorff"] == 2
    assert list(table["empty_pred"]) == [False, True]
    assert not table["empty_truth"].any()
    assert list(table["area_truth"]) == [100, 100 * 64]
    assert list(table["area_pred"]) == [100, 0]
    assert table[["dice", "iou"]].iloc[1].tolist() == [0, 0]
    assert set(METRICS) <= set(score_table([]))


def test_a_table_names_the_row_that_cannot_be_scored():
    with pytest.raises(ScoreError, match=r"patient 7: .*truth must hold"):
        score_table([({"patient": 7}, square(1, 1), np.full((9, 9), 3))], progress=False)
    with pytest.raises(ScoreError, match="'dice'"):
        score_table([({"dice": 7}, square(1, 1), square(1, 1))], progress=False)


def test_a_mask_at_the_papers_size_takes_milliseconds():
    truth, pred = disc(120, (250, 250), (512, 512)), disc(110, (270, 255), (512, 512))
    score(pred, truth)  # the first call imports MONAI
    took = []
    for _ in range(5):
        start = time.perf_counter()
        score(pred, truth)
        took.append(time.perf_counter() - start)
    # about 3 ms on one core: a distance map or a crop over the whole image would show
    assert min(took) < 0.1


# --- edges: a change of the module here went unnoticed by the tests above --------------------------------


def test_a_probability_at_the_threshold_belongs_to_the_structure():
    assert to_mask(torch.zeros(2, 2)).all()
    half = np.full((4, 4), 0.5)
    full = np.ones((4, 4), bool)
    assert score(half, full, size=None)["dice"] == 1
    assert score(half, full, size=None, threshold=0.51)["dice"] == 0
    # 0.25 and 0.75 are no mask; 0 and 1 as floats are one, and need no threshold
    assert score(np.where(full, 0.75, 0), full, size=None, threshold=0.8)["dice"] == 0
    assert score(full.astype(float), full, size=None, threshold=0.99)["dice"] == 1


def test_logits_keep_their_leading_axes_and_single_precision():
    logits = torch.linspace(-4, 4, 2 * 3 * 8 * 6).reshape(2, 3, 8, 6)
    masks = to_mask(logits, (16, 12))
    assert masks.shape == (2, 3, 16, 12)
    for i in range(2):
        for j in range(3):
            assert torch.equal(masks[i, j], to_mask(logits[i, j], (16, 12)))
    close = torch.full((2, 2), 1e-4, dtype=torch.float64).half()
    assert to_mask(close, threshold=0.50001).all(), (
        "sigmoid(1e-4) = 0.500025, which half precision rounds away"
    )
    with pytest.raises(ScoreError, match="diverged"):
        to_mask(torch.tensor([[0.0, float("inf")]]))
    for threshold in (0, 1, -0.1, 1.1):
        with pytest.raises(ScoreError, match="threshold"):
            to_mask(logits, threshold=threshold)
        with pytest.raises(ScoreError, match="threshold"):
            score(square(1, 1), square(1, 1), threshold=threshold)


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (np.full((4, 4), -0.25), "-0.25 to -0.25"),
        (np.full((4, 4), 1.25), "1.25 to 1.25"),
        (np.full((4, 4), 2), "2 to 2"),
        (np.full((4, 4), np.inf), "infinity"),
        (np.full((4, 4), 1j), "pred"),
        (np.ones(4), r"not \(4,\)"),
        (np.ones((4, 0)), r"not \(4, 0\)"),
        ([["x"]], "numbers"),
    ],
)
def test_predictions_that_are_none(pred, message):
    with pytest.raises((ScoreError, TypeError), match=message):
        score(pred, np.ones((4, 4), bool), size=None)


def test_masks_of_any_number_type_are_masks():
    truth = square(2, 2, 4, (12, 12))
    expected = score(square(3, 2, 4, (12, 12)), truth, size=None)
    for kind in (np.uint8, np.int64, np.float32, np.float64):
        assert score(square(3, 2, 4, (12, 12)).astype(kind), truth.astype(kind), size=None) == expected
    assert score(square(3, 2, 4, (12, 12)).tolist(), truth.tolist(), size=None) == expected
    tensor = torch.from_numpy(truth).float().requires_grad_()
    assert score(tensor, truth, size=None)["dice"] == 1


def test_sizes_may_be_numbers_of_any_kind_and_one_pixel_is_a_size():
    truth, pred = square(2, 2, 8, (16, 32)), square(4, 4, 8, (16, 32))
    by_side = score(pred, truth, size=32)
    assert by_side == score(pred, truth, size=np.int64(32)) == score(pred, truth, size=(32, np.int32(32)))
    assert score(pred, truth, size=[32, 32]) == by_side
    assert score(np.ones((3, 3)), np.ones((3, 3)), size=1)["dice"] == 1
    assert score(pred, truth, size="auto") == score(pred, truth, size=512)
    assert score(pred, truth, (0.5, 0.5), size="auto") == score(pred, truth, (0.5, 0.5), size=None)
    for wrong in (-1, (8, 0), (8, -8), (8, 8, 8), (8.0, 8.0)):
        with pytest.raises(ScoreError, match="neither a number of pixels nor"):
            score(pred, truth, size=wrong)
    with pytest.raises(ScoreError, match="size 'full' is unknown"):
        score(pred, truth, size="full")


@pytest.mark.parametrize("spacing", [(math.inf, 1.0), (1.0, math.inf), (1.0, 0.0), "ab", (1.0,), ("x", 1.0)])
def test_pixel_sizes_that_are_none(spacing):
    with pytest.raises(ScoreError, match="spacing"):
        score(square(1, 1), square(1, 1), spacing)
    assert score(square(1, 1), square(1, 1), (1e-9, 1e9))["hausdorff"] == 0


def test_each_axis_is_scaled_by_its_own_factor_when_masks_are_resized():
    truth, pred = square(8, 8, 8, (32, 64)), square(12, 8, 8, (32, 64))
    assert score(pred, truth, (0.5, 0.25), size=(64, 64))["hausdorff"] == pytest.approx(4 * 0.5)
    truth, pred = square(8, 8, 8, (32, 64)), square(8, 12, 8, (32, 64))
    assert score(pred, truth, (0.5, 0.25), size=(64, 64))["hausdorff"] == pytest.approx(4 * 0.25)


def test_a_tables_columns_and_areas_are_those_of_the_grid():
    truth, pred = square(2, 2, 4, (16, 16)), square(2, 3, 4, (16, 16))
    rows = [({"patient": "a"}, pred, truth, None)]
    rows.append(({"patient": "b"}, truth, np.zeros_like(truth), (1.0, 2.0)))
    table = score_table(rows, size=None, progress=False)
    assert list(table.columns) == [
        *("patient", *METRICS, "empty_pred", "empty_truth", "area_pred", "area_truth", "unit")
    ]
    assert table["area_pred"].tolist() == [16, 16]
    assert table["area_truth"].tolist() == [16, 0]
    assert table["empty_truth"].tolist() == [False, True]
    assert table["empty_pred"].tolist() == [False, False]
    assert table["unit"].tolist() == ["px", "mm"]
    assert score_table(rows[:1], progress=False)["area_truth"].tolist() == [16 * 32**2]
    faint = [({}, np.full((4, 4), 0.4), np.ones((4, 4)))]
    looser = score_table(faint, size=None, threshold=0.3, progress=False)
    assert looser["dice"].tolist() == [1]
    nothing = score_table([], progress=False)
    assert list(nothing.columns) == [*METRICS, "empty_pred", "empty_truth", "area_pred", "area_truth", "unit"]
    assert nothing.empty


# --- a score of one's own ----------------------------------------------------------------------------------

PRECISION = """
def _precision(masks: Masks) -> float:
    return masks.both / masks.found


Score = Callable"""

USES = """
import numpy as np
from echovlsm.evaluation import score_table, statistics

truth = np.zeros((8, 8), bool)
truth[2:6, 2:6] = True
known = {"structure": "s", "seed": 1, "model": "m", "prompt": "P1"}
rows = [
    ({"patient": str(number), "strategy": name, **known}, *pair)
    for number, pair in enumerate([(truth, truth), (np.roll(truth, 1, 0), truth), (truth & False, truth)])
    for name in ("real", "synthetic")
]
scores = score_table(rows, size=None, progress=False)
print(scores["precision"].tolist()[::2])
print(statistics.mean_scores(scores)["precision"].tolist())
print(statistics.summary_table(scores, value="precision").iloc[0, 0])
print(statistics.summary(scores, value="precision", resamples=50)["mean"].tolist())
print(statistics.compare(scores, "real", "synthetic", value="precision", resamples=50)["difference"].tolist())
print(statistics.mean_scores(scores.drop(columns="precision")).shape)
"""


def test_a_new_score_takes_one_file(tmp_path: Path) -> None:
    """Written and named in `scoring.py`, it is a column of every table; a table from before goes without."""
    package = Path(scoring.__file__).parents[1]
    shutil.copytree(package, tmp_path / "echovlsm", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "echovlsm" / "evaluation" / "scoring.py"
    text = file.read_text()
    for old, new in (
        ("\nScore = Callable", PRECISION),
        ('"iou": _iou}', '"iou": _iou, "precision": _precision}'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text)
    result = subprocess.run(
        [sys.executable, "-c", USES],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    precision, means, told, mean, difference, shape = result.stdout.splitlines()
    assert precision == "[1.0, 0.75, 0.0]"
    assert means == str([1.75 / 3])
    assert mean == str([1.75 / 3] * 2)
    assert told.startswith("58.33 ± ")
    assert difference == "[0.0]"
    assert shape == "(1, 7)"


def test_dice_of_two_masks_on_one_grid_is_the_scores():
    for pair in (
        (square(1, 1), square(3, 2)),
        (square(1, 1), square(1, 1) & False),
        (np.zeros((2, 2), bool),) * 2,
    ):
        assert scoring.dice(*pair) == score(*pair, size=None)["dice"]
