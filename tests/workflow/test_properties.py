"""Properties that hold for any input: found counterexamples are shrunk by Hypothesis and shown whole."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from skimage.draw import disk, ellipse, polygon

from echovlsm import PHASES, QUALITIES, STRUCTURES, VIEWS
from echovlsm.cohort.check import COLUMNS
from echovlsm.cohort.images import load_image, load_labels
from echovlsm.cohort.read import check_cohort, cohort_hash, read_cohort
from echovlsm.cohort.sectors import (
    LabelMapError,
    from_sector_map,
    sector_of,
    to_sector_map,
)
from echovlsm.cohort.write import write_cohort
from echovlsm.evaluation.scoring import DISTANCES, score
from echovlsm.evaluation.statistics import bootstrap_interval, holm, paired_test
from echovlsm.prompts.shapes import ROUND_UP_TO, describe_shape, name_shape
from echovlsm.prompts.templates import (
    VARIANTS,
    attributes_of,
    levels_of,
    make_prompt,
    make_prompts,
)
from echovlsm.prompts.vqa import SHAPES
from echovlsm.synthesis.labels import perturb
from tests.prompts.parsing import parse_prompt

# The same examples in every run: a test that fails only now and then helps nobody.
PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=60)
FEW = settings(PROPERTY, max_examples=15)
CHANGES = {
    "as it is": lambda array: array,
    "upside down": np.flipud,
    "mirrored": np.fliplr,
    "quarter turn": np.rot90,
    "half turn": lambda array: np.rot90(array, 2),
    "three quarters": lambda array: np.rot90(array, 3),
    "transposed": np.transpose,
}
TURNS_AXES = ("quarter turn", "three quarters", "transposed")


@st.composite
def blobs(draw: st.DrawFn, count: int = 1, least: int = 6, most: int = 40) -> tuple[np.ndarray, ...]:
    """Masks bool (H, W) of one size with smooth outlines; a mask may be empty."""
    shape = draw(st.tuples(st.integers(least, most), st.integers(least, most)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = []
    for _ in range(count):
        field = ndimage.gaussian_filter(rng.normal(size=shape), draw(st.sampled_from([0.5, 1.5, 3.0])))
        masks.append(field > np.quantile(field, draw(st.sampled_from([0.0, 0.4, 0.8, 0.97, 1.0]))))
    return tuple(masks)


# --- scores ----------------------------------------------------------------------------------------------


@PROPERTY
@given(blobs(2), st.sampled_from([None, (0.3, 0.3), (0.154, 0.308)]))
def test_scores_do_not_depend_on_which_of_two_masks_is_the_truth(pair: Any, spacing: Any) -> None:
    a, b = pair
    there, back = score(a, b, spacing, size=None), score(b, a, spacing, size=None)
    assert there == pytest.approx(back, nan_ok=True, rel=1e-12)


@PROPERTY
@given(blobs(2), st.sampled_from(sorted(CHANGES)), st.sampled_from([None, (0.154, 0.308)]))
def test_scores_are_those_of_the_flipped_and_turned_masks(pair: Any, name: str, spacing: Any) -> None:
    turned = [CHANGES[name](mask) for mask in pair]
    pixel = spacing[::-1] if spacing and name in TURNS_AXES else spacing
    assert score(*turned, pixel, size=None) == pytest.approx(
        score(*pair, spacing, size=None), nan_ok=True, rel=1e-9
    )


@PROPERTY
@given(blobs(2, most=24), st.integers(1, 4))
def test_overlap_at_the_papers_way_of_scoring_is_that_of_the_flipped_masks(pair: Any, factor: int) -> None:
    """Both are resized: a grid that divides evenly has no side of its own."""
    height, width = pair[0].shape
    size = (factor * height, factor * width)
    expected = score(*pair, size=size)
    for name in ("upside down", "mirrored", "half turn"):
        found = score(*(CHANGES[name](mask) for mask in pair), size=size)
        assert found == pytest.approx(expected, nan_ok=True, rel=1e-9), name
    assert expected["dice"] == pytest.approx(score(*pair, size=None)["dice"])


@PROPERTY
@given(blobs(2), st.floats(0.05, 20))
def test_scores_are_within_their_limits_and_distances_follow_the_pixel_size(pair: Any, factor: float) -> None:
    result = score(*pair, size=None)
    dice, iou = result["dice"], result["iou"]
    assert 0 <= iou <= dice <= 1
    assert dice == pytest.approx(2 * iou / (1 + iou))
    if pair[0].any() and pair[1].any():
        assert 0 <= result["assd"] <= result["hausdorff"] + 1e-9
        assert result["hausdorff95"] <= result["hausdorff"] + 1e-9
        assert (result["hausdorff"] == 0) == bool((pair[0] == pair[1]).all())
        scaled = score(*pair, (factor, factor), size=None)
        for name in DISTANCES:
            assert scaled[name] == pytest.approx(factor * result[name])
    else:
        assert all(np.isnan(result[name]) for name in DISTANCES)
        assert dice == float(not pair[0].any() and not pair[1].any())


# --- statistics ------------------------------------------------------------------------------------------

VALUES = st.lists(st.floats(0, 1).map(lambda value: round(value, 3)), min_size=2, max_size=30)


@FEW
@given(VALUES, st.randoms(use_true_random=False))
def test_a_paired_test_turns_round_with_its_pairs_and_knows_no_order(values: list, random: Any) -> None:
    others = [random.random() for _ in values]
    there, back = paired_test(values, others), paired_test(others, values)
    for name in ("mean_difference", "median_difference", "effect_size"):
        assert there[name] == pytest.approx(-back[name])
    assert there["p"] == pytest.approx(back["p"])
    assert 0 <= there["p"] <= 1
    assert -1 <= there["effect_size"] <= 1
    greater, less = (paired_test(values, others, side)["p"] for side in ("greater", "less"))
    assert greater + less >= 1 - 1e-9
    order = list(range(len(values)))
    random.shuffle(order)
    shuffled = paired_test([values[i] for i in order], [others[i] for i in order])
    assert shuffled == pytest.approx(there)


@PROPERTY
@given(VALUES)
def test_holm_keeps_the_order_and_lies_between_the_value_and_bonferroni(values: list) -> None:
    p, adjusted = np.array(values), holm(values)
    assert (adjusted >= p - 1e-12).all()
    assert (adjusted <= np.minimum(1, len(p) * p) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= -1e-12).all()
    assert adjusted[order[0]] == pytest.approx(min(1, len(p) * p[order[0]]))


@FEW
@given(VALUES, st.floats(0.5, 0.99), st.floats(-3, 3), st.floats(0.1, 9))
def test_an_interval_moves_and_stretches_with_its_values(
    values: list, level: float, shift: float, scale: float
) -> None:
    low, high = bootstrap_interval(values, level=level, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    moved = bootstrap_interval(np.array(values) * scale + shift, level=level, resamples=200)
    assert moved == pytest.approx((low * scale + shift, high * scale + shift), abs=1e-9)
    wide = bootstrap_interval(values, level=0.995, resamples=200)
    assert wide[0] <= low + 1e-12
    assert wide[1] >= high - 1e-12


# --- label maps ------------------------------------------------------------------------------------------


@st.composite
def hearts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 (H, W) with all or some structures, and the sector, bool (H, W)."""
    size = draw(st.integers(40, 72))
    y, x = np.mgrid[:size, :size] / size
    middle, wide = draw(st.floats(0.4, 0.6)), draw(st.floats(0.1, 0.16))
    long = draw(st.floats(0.18, 0.26))

    def oval(cy: float, cx: float, ry: float, rx: float) -> np.ndarray:
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1

    labels = np.zeros((size, size), np.uint8)
    thick = draw(st.floats(0.05, 0.08))
    labels[oval(0.42, middle, long + thick, wide + thick)] = 2
    labels[oval(0.78, middle, 0.13, wide)] = 3
    labels[oval(0.42, middle, long, wide)] = 1
    for value in draw(st.sets(st.sampled_from([1, 2, 3]), max_size=2)):
        labels[labels == value] = 0
    sector = np.abs(x - 0.5) <= 0.12 + 0.55 * y
    return labels, sector


@FEW
@given(hearts(), st.integers(0, 2**32 - 1))
def test_perturbation_keeps_the_set_of_labels_and_the_sector(heart: Any, seed: int) -> None:
    labels, sector = heart
    source = to_sector_map(labels, sector)
    before = labels.copy()
    try:
        drawn, redraws = perturb(labels, sector, np.random.default_rng(seed))
    except LabelMapError:  # no possible anatomy was drawn, which is said and not hidden
        assume(False)
    assert drawn.dtype == np.uint8
    assert drawn.shape == labels.shape
    assert set(np.unique(from_sector_map(drawn))) == set(np.unique(from_sector_map(source)))
    assert (sector_of(drawn) == sector).all()
    assert redraws >= 0
    assert (labels == before).all(), "the source is left as it is"
    again, _ = perturb(labels, sector, np.random.default_rng(seed))
    assert (again == drawn).all()


@PROPERTY
@given(
    arrays.arrays(np.uint8, (9, 7), elements=st.integers(0, 3)),
    arrays.arrays(np.bool_, (9, 7)),
)
def test_a_sector_map_and_back_are_the_labels_within_the_sector(labels: Any, sector: Any) -> None:
    found = to_sector_map(labels, sector)
    assert (sector_of(found) == sector).all()
    assert (from_sector_map(found) == np.where(sector, labels, 0)).all()


# --- prompts ---------------------------------------------------------------------------------------------

ATTRIBUTES = {
    "view": st.sampled_from(VIEWS),
    "phase": st.sampled_from(PHASES),
    "sex": st.sampled_from(["F", "M"]),
    "age": st.integers(0, 130),
    "quality": st.sampled_from(QUALITIES),
    "shape": st.sampled_from([*SHAPES, "triangular", "rectangular"]),
}


@PROPERTY
@given(
    st.sampled_from(list(STRUCTURES.values())),
    st.sampled_from(list(VARIANTS)),
    st.booleans(),
    st.data(),
)
def test_a_prompt_says_what_it_was_made_from_and_nothing_else(
    structure: str, variant: int, synthetic: bool, data: st.DataObject
) -> None:
    level = data.draw(st.sampled_from(levels_of(synthetic)))
    values = {name: data.draw(values) for name, values in ATTRIBUTES.items()}
    text = make_prompt(structure, level, variant, synthetic=synthetic, **values)
    said = parse_prompt(text)
    if level == "P0":
        assert text == ""
        assert said["level"] == "P0"
        return
    wanted = attributes_of(level, synthetic)
    assert said["level"] == level
    assert (said["structure"], said["variant"]) == (structure, variant)
    assert {name: said[name] for name in ATTRIBUTES if said[name] is not None} == {
        name: values[name] for name in wanted
    }
    again = {name: said[name] for name in wanted}
    assert make_prompt(structure, level, variant, synthetic=synthetic, **again) == text


@PROPERTY
@given(st.sets(st.sampled_from(sorted(ATTRIBUTES))), st.sampled_from(list(VARIANTS)), st.data())
def test_a_clause_that_is_missing_is_left_out_and_the_others_are_still_read(
    known: set[str], variant: int, data: st.DataObject
) -> None:
    values = {name: data.draw(ATTRIBUTES[name]) for name in sorted(known)}
    said = parse_prompt(make_prompt("myocardium", "P7", variant, missing="omit", **values))
    assert {name: said[name] for name in ATTRIBUTES if said[name] is not None} == values


# --- cohorts ---------------------------------------------------------------------------------------------

NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=1).flatmap(
    lambda first: st.text(string.ascii_letters + string.digits + "_-", max_size=12).map(
        lambda rest: first + rest
    )
)
ONE_LINE = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="<>`{}|$\\"),
    min_size=1,
    max_size=20,
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | ONE_LINE


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Frames and what `cohort.yaml` says; every value that may be absent sometimes is."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    rows = []
    # names that differ in case only are one folder on some systems
    for patient in draw(st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower)):
        person = {
            "patient": patient,
            "split": draw(st.sampled_from(["train", "val", "test"])),
            "sex": draw(st.sampled_from(["F", "M", None])),
            "age": draw(st.none() | st.integers(0, 120)),
        }
        for view in draw(st.sets(st.sampled_from(VIEWS), min_size=1)):
            quality = draw(st.sampled_from([*QUALITIES, None]))
            for phase in draw(st.sets(st.sampled_from(PHASES), min_size=1)):
                spacing = draw(st.none() | st.tuples(*[st.floats(0.01, 9)] * 2))
                rows.append(
                    person
                    | {"view": view, "phase": phase, "quality": quality}
                    | dict(zip(("spacing_y", "spacing_x"), spacing or (None, None), strict=True))
                    | {"image": draw(arrays.arrays(np.uint8, shape))}
                    | {"labels": draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 3)))}
                )
    meta = {
        "name": draw(ONE_LINE),
        "kind": draw(st.sampled_from(["real", "phantom", "synthetic"])),
        "origin": draw(st.none() | ONE_LINE),
        "licence": draw(st.none() | ONE_LINE),
        "seed": draw(st.none() | st.integers(0, 2**40)),
        "parameters": draw(
            st.none() | st.dictionaries(ONE_LINE, PLAIN | st.lists(PLAIN, max_size=3), max_size=3)
        ),
    }
    return rows, meta


@settings(PROPERTY, max_examples=40)
@given(cohorts(), ONE_LINE)
def test_what_is_written_is_read_back(cohort: Any, folder: str) -> None:
    rows, meta = cohort
    folder = folder.replace("/", "-").strip(".") or "x"
    with tempfile.TemporaryDirectory() as place:
        root = write_cohort(Path(place) / folder, rows, meta)
        frames = read_cohort(root)
        assert check_cohort(root).empty
        assert frames.attrs["meta"] == meta
        found = {(row.patient, row.view, row.phase): row for row in frames.itertuples()}
        assert len(found) == len(frames) == len(rows)
        for row in rows:
            read = found[row["patient"], row["view"], row["phase"]]
            assert (load_image(read) == row["image"]).all()
            assert (load_labels(read) == row["labels"]).all()
            assert load_image(read).shape == row["image"].shape == (read.height, read.width)
            for name in ("split", "sex", "age", "quality"):
                value = getattr(read, name)
                assert (None if pd.isna(value) else value) == row[name], name
            for name in ("spacing_y", "spacing_x"):
                value = getattr(read, name)
                known = row[name]  # stored as float32
                assert pd.isna(value) if known is None else np.float32(value) == np.float32(known), name
        # what was read can be written again, and is then the same
        again = [
            {name: getattr(read, name) for name in COLUMNS if name not in ("image", "labels")}
            | {"image": load_image(read), "labels": load_labels(read)}
            for read in frames.itertuples()
        ]
        second = write_cohort(Path(place) / "again", again, frames.attrs["meta"])
        assert cohort_hash(second) == cohort_hash(root)


@FEW
@given(cohorts())
def test_prompts_of_a_cohort_are_those_of_its_rows(cohort: Any) -> None:
    rows, meta = cohort
    frames = pd.DataFrame(rows).drop(columns=["image", "labels"])
    frames.attrs["meta"] = meta
    table = make_prompts(frames, missing="omit", levels=("P4",))
    assert len(table) == len(rows) * len(STRUCTURES) * len(VARIANTS)
    sexes = {(row["patient"], row["view"], row["phase"]): row["sex"] for row in rows}
    for row in table.itertuples():
        said = parse_prompt(row.text)
        assert (said["view"], said["phase"], said["structure"]) == (row.view, row.phase, row.structure)
        assert said["sex"] == sexes[row.patient, row.view, row.phase]


# --- shapes ----------------------------------------------------------------------------------------------

FORMS = {"circle": 1.0, "oval": 2.0, "square": 1.0, "rectangle": 2.0, "triangle": 1.2}


@st.composite
def shapes(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A shape's name and an ideal mask of it, large enough for its pixels not to matter."""
    name = draw(st.sampled_from(sorted(FORMS)))
    radius, ratio = draw(st.integers(14, 22)), FORMS[name] * draw(st.floats(0.98, 1.05))
    side = int(4 * radius)
    mask = np.zeros((side, side), bool)
    middle, long = side / 2 - 0.5, radius * ratio if ratio > 1.15 else radius
    if name in ("circle", "oval"):
        rows, columns = (
            disk((middle, middle), radius)
            if name == "circle"
            else ellipse(middle, middle, radius * 0.8, long * 0.8)
        )
    elif name in ("square", "rectangle"):
        tall, wide = (radius, radius) if name == "square" else (radius * 0.8, long * 0.8)
        rows, columns = polygon(
            np.array([-tall, -tall, tall, tall]) + middle, np.array([-wide, wide, wide, -wide]) + middle
        )
    else:
        rows, columns = polygon(
            np.array([-radius, radius, radius]) + middle, np.array([0, -long, long]) * 0.8 + middle
        )
    mask[rows, columns] = True
    return name, mask


@PROPERTY
@given(shapes(), st.sampled_from(sorted(CHANGES)), st.integers(1, 3), st.integers(0, 9), st.integers(0, 9))
def test_a_shape_keeps_its_name_turned_scaled_and_moved(
    shape: Any, change: str, factor: int, down: int, across: int
) -> None:
    name, mask = shape
    assert name_shape(mask) == name
    changed = np.pad(CHANGES[change](mask), ((down, across), (across, down)))
    assert name_shape(np.kron(changed, np.ones((factor, factor), bool))) == name
    assert name_shape(mask.astype(np.uint8)) == name


@PROPERTY
@given(blobs(1, least=12, most=48), st.sampled_from(sorted(CHANGES)))
def test_any_mask_keeps_its_name_turned_and_flipped(masks: Any, change: str) -> None:
    """But for a mask on a border between two names, which a rounding may move across."""
    (mask,) = masks
    assume(mask.sum() >= 12)
    family, ratio, fits = describe_shape(mask)
    best, second = sorted(fits.values(), reverse=True)[:2]
    assume(best - second > 0.02)
    assume(family == "triangle" or abs(ratio - ROUND_UP_TO) > 0.01)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.sort(np.bincount(labels.ravel())[1:])
    assume(count == 1 or sizes[-1] > sizes[-2])  # of two equal parts either may be the largest
    found = describe_shape(CHANGES[change](mask))
    assert found[0] == family
    assert found[1] == pytest.approx(ratio, rel=1e-9)
    assert name_shape(CHANGES[change](mask)) == name_shape(mask)
