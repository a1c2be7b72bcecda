"""Sector maps: class order, the sector of an image, and perturbed hearts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from skimage.draw import disk, ellipse
from skimage.measure import label, regionprops

from echovlsm.cohort.images import load_image, load_labels
from echovlsm.cohort.read import read_cohort
from echovlsm.cohort.sectors import (
    SECTOR_CLASSES,
    LabelMapError,
    check_sector_map,
    from_sector_map,
    to_sector_map,
)
from echovlsm.synthesis.labels import (
    KEPT,
    Perturbation,
    PerturbedMaps,
    find_sector,
    perturb,
    source_maps,
)

SIZE = 96
STILL = {"rotation": 0.0, "translation": 0.0, "scale": (1.0, 1.0), "shear": 0.0, "displacement": 0.0}


def fan(size: int = SIZE) -> np.ndarray:
    """A sector with its apex at the top."""
    rows, columns = np.indices((size, size))
    down, across = rows + 1.0, columns - (size - 1) / 2
    return (np.hypot(down, across) < 0.98 * size) & (np.abs(np.arctan2(across, down)) < 0.65)


def heart(size: int = SIZE) -> np.ndarray:
    """A heart inside `fan`: wall around the cavity but for its base, atrium below."""
    labels, unit = np.zeros((size, size), np.uint8), size / 96
    labels[ellipse(46 * unit, 47.5 * unit, 25 * unit, 15 * unit)] = 2
    labels[ellipse(47 * unit, 47.5 * unit, 20 * unit, 10 * unit)] = 1
    labels[round(60 * unit) :] = 0
    labels[round(60 * unit) : round(76 * unit), round(38 * unit) : round(57 * unit)] = 3
    return labels


def everywhere(size: int = SIZE) -> np.ndarray:
    return np.ones((size, size), bool)


def draw_image(sector: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(sector, rng.integers(20, 200, sector.shape), 0).astype(np.uint8)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


# --- class order -----------------------------------------------------------------------------------------


def test_classes_are_those_of_the_authors() -> None:
    labels = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.uint8)
    sector = np.array([[True] * 4, [False] * 4])
    assert to_sector_map(labels, sector).tolist() == [[2, 1, 3, 4], [0, 0, 0, 0]]
    assert SECTOR_CLASSES[3] == "myocardium"
    assert SECTOR_CLASSES[4] == "left atrium cavity"
    assert len(SECTOR_CLASSES) == 5


def test_there_and_back() -> None:
    labels = heart()
    drawn = to_sector_map(labels, fan())
    assert drawn.dtype == np.uint8
    assert np.array_equal(from_sector_map(drawn), labels)
    assert np.array_equal(drawn != 0, fan())


@pytest.mark.parametrize(
    ("value", "size", "message"),
    [
        (np.full((8, 8), 5, np.uint8), None, r"a\.png: class 5 is out of range.*0-4"),
        (np.full((8, 8), -1), None, r"a\.png: class -1"),
        (np.zeros((8, 6), np.uint8), 8, r"a\.png: size 8 x 6, but 8 x 8 is needed.*resize"),
        (np.zeros((8, 6), np.uint8), (6, 8), r"size 8 x 6, but 6 x 8"),
        (np.zeros((1, 8, 8), np.uint8), None, r"\(1, 8, 8\)"),
        (np.zeros((8, 8)), None, "float64"),
        ([[0, 1]], None, "list"),
    ],
)
def test_a_wrong_map_is_refused_by_name(value: np.ndarray, size: int | None, message: str) -> None:
    with pytest.raises(LabelMapError, match=message) as caught:
        check_sector_map(value, size, where="a.png")
    assert "a.png" in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_right_map_passes() -> None:
    check_sector_map(to_sector_map(heart(), fan()).astype(np.int64), SIZE)
    check_sector_map(np.zeros((4, 6), np.uint8), (4, 6))


def test_conversion_refuses_the_other_order() -> None:
    with pytest.raises(LabelMapError, match=r"mask: class 4.*0-3"):
        to_sector_map(to_sector_map(heart(), fan()), fan(), "mask")
    with pytest.raises(LabelMapError, match="class 7"):
        from_sector_map(np.full((4, 4), 7, np.uint8))
    for sector in (fan().astype(np.uint8), fan(48)):
        with pytest.raises(LabelMapError, match="find_sector"):
            to_sector_map(heart(), sector)


# --- sector ----------------------------------------------------------------------------------------------


def test_the_sector_survives_dark_cavities_captions_and_noise() -> None:
    rng = np.random.default_rng(0)
    truth = fan(200)
    image = draw_image(truth, rng)
    image[150:, 80:130] = 0  # a dark atrium that reaches the lower edge
    image[disk((60, 100), 15)] = 0
    assert image[199 - 5, 100] == 0
    image[6:12, 4:40:3] = 255  # strokes of a caption
    far = ~truth & (np.indices(truth.shape)[1] < 40)
    image[far & (rng.random(truth.shape) < 0.02)] = 255
    found = find_sector(image)
    assert found.dtype == np.bool_
    assert overlap(found, truth) > 0.97
    assert not found[:14, :42].any()


def test_the_sector_survives_faint_compression_noise() -> None:
    rng = np.random.default_rng(1)
    truth = fan(128)
    image = np.maximum(draw_image(truth, rng), rng.integers(0, 3, truth.shape).astype(np.uint8))
    assert overlap(find_sector(image), truth) > 0.99


def test_no_sector_is_an_error() -> None:
    with pytest.raises(LabelMapError, match=r"p1\.png: no ultrasound sector"):
        find_sector(np.zeros((64, 64), np.uint8), "p1.png")
    with pytest.raises(LabelMapError, match="float64"):
        find_sector(np.zeros((64, 64)))


def test_the_sector_of_phantoms(phantom_frames: pd.DataFrame) -> None:
    for _, row in phantom_frames.iterrows():
        image, labels = load_image(row), load_labels(row)
        found = find_sector(image)
        assert not (image[~found] > 2).any()
        assert 0.4 < found.mean() < 0.65
        assert (labels[~found] > 0).sum() < 0.15 * (labels > 0).sum()
        # convex: what lies between two of its pixels in a row lies in it
        for line in found[found.any(axis=1)]:
            inside = np.flatnonzero(line)
            assert inside[-1] - inside[0] + 1 == len(inside)


def test_the_sector_of_camus(shared: Path) -> None:
    frames = read_cohort(shared / "camus").iloc[::150]
    for _, row in frames.iterrows():
        image = load_image(row)
        found = find_sector(image)
        assert ((image > 2) & ~found).mean() < 0.001
        assert 0.45 < found.mean() < 0.7


# --- perturbation ------------------------------------------------------------------------------------------


def draw(labels: np.ndarray, seed: int = 0, **changes: object) -> np.ndarray:
    how = Perturbation(**(STILL | changes))
    return from_sector_map(perturb(labels, everywhere(len(labels)), np.random.default_rng(seed), how)[0])


def test_nothing_moves_without_a_range() -> None:
    assert np.array_equal(draw(heart()), heart())


@pytest.mark.parametrize("scale", [0.8, 1.05])
def test_scale_below_one_shrinks_the_heart(scale: float) -> None:
    before, after = heart() == 1, draw(heart(), scale=(scale, scale)) == 1
    assert after.sum() / before.sum() == pytest.approx(scale**2, rel=0.05)
    height, width = (np.ptp(np.argwhere(after), axis=0) + 1) / (np.ptp(np.argwhere(before), axis=0) + 1)
    assert height == pytest.approx(scale, abs=0.04)
    assert width == pytest.approx(scale, abs=0.07)


def bar() -> np.ndarray:
    """An upright rod about the centre, of an atrium's label."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[18:78, 46:50] = 3
    return labels


def tilt(labels: np.ndarray) -> float:
    """Degrees of the rod's long axis from the vertical."""
    return float(np.rad2deg(regionprops((labels == 3).astype(np.uint8))[0].orientation))


def test_rotation_is_in_degrees_and_both_ways() -> None:
    tilts = [tilt(draw(bar(), seed, rotation=5.0)) for seed in range(60)]
    assert max(np.abs(tilts)) < 5.6
    assert max(tilts) > 3.5
    assert min(tilts) < -3.5


def test_translation_is_a_share_of_the_image() -> None:
    centre = np.argwhere(bar()).mean(axis=0)
    shifts = [np.argwhere(draw(bar(), seed, translation=0.05)).mean(axis=0) - centre for seed in range(60)]
    assert np.abs(shifts).max() <= 0.05 * SIZE + 0.5
    assert (np.max(shifts, axis=0) > 0.03 * SIZE).all()
    assert (np.min(shifts, axis=0) < -0.03 * SIZE).all()


def test_shear_slants_along_the_rows() -> None:
    for seed in range(20):
        drawn = draw(bar(), seed, shear=5.0) == 3
        assert np.array_equal(drawn.any(axis=1), (bar() == 3).any(axis=1))  # rows stay
    tilts = np.abs([tilt(draw(bar(), seed, shear=5.0)) for seed in range(60)])
    assert 3.5 < tilts.max() < 5.6


def test_elastic_deformation_bends_and_stays_smooth() -> None:
    before = heart()
    scores, edges = [], []
    for seed in range(20):
        after = draw(before, seed, displacement=0.08)
        scores.append(overlap(before == 1, after == 1))
        edges.append(regionprops((after == 1).astype(np.uint8))[0].solidity)
    assert min(scores) > 0.4
    assert np.mean(scores) < 0.95
    assert np.mean(edges) > 0.9  # a cavity in shreds is far from its convex hull


def test_the_sector_does_not_move_and_clips_the_heart() -> None:
    labels, sector = heart(), fan()
    how = Perturbation(translation=0.3, tries=500)
    for seed in range(20):
        drawn, _ = perturb(labels, sector, np.random.default_rng(seed), how)
        assert drawn.dtype == np.uint8
        assert np.array_equal(drawn != 0, sector)
        assert set(np.unique(drawn)) == {0, 1, 2, 3, 4}


def test_a_perturbation_follows_from_its_seed() -> None:
    one, two, other = (perturb(heart(), fan(), np.random.default_rng(s))[0] for s in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def parts(region: np.ndarray) -> int:
    sizes = np.bincount(label(region, connectivity=2).ravel())[1:]
    return int((sizes >= 5).sum())


def test_torn_and_lost_structures_are_redrawn_and_counted() -> None:
    labels, sector = heart(), fan()
    how = Perturbation(translation=0.25, displacement=0.2, tries=1000)
    total = 0
    for seed in range(30):
        drawn, redraws = perturb(labels, sector, np.random.default_rng(seed), how)
        total += redraws
        for value in (1, 3, 4):
            assert parts(drawn == value) == 1
            assert (drawn == value).sum() >= KEPT * (to_sector_map(labels, sector) == value).sum()
    assert total > 5


def test_a_structure_in_two_parts_may_stay_so() -> None:
    labels = heart()
    labels[10:20, 46:50] = 3
    drawn, _ = perturb(labels, everywhere(), np.random.default_rng(0), Perturbation(**STILL))
    assert parts(drawn == 4) == 2


def test_giving_up_names_the_image() -> None:
    labels, sector = np.zeros((SIZE, SIZE), np.uint8), everywhere()
    labels[40:56, 40:56] = 1
    how = Perturbation(**(STILL | {"scale": (0.3, 0.3), "tries": 4}))
    with pytest.raises(
        LabelMapError, match=r"patient7 2CH ED: none of 4 .*left ventricular cavity lost.*weaker"
    ):
        perturb(labels, sector, np.random.default_rng(0), how, "patient7 2CH ED")


# --- cohorts ---------------------------------------------------------------------------------------------


def test_maps_come_in_order_and_do_not_depend_on_each_other(phantom_frames: pd.DataFrame) -> None:
    frames = phantom_frames.iloc[:4]
    maps = PerturbedMaps(frames, variants=3, size=64, seed=7)
    records = list(maps)
    assert len(maps) == len(records) == 12
    assert [(r.row, r.variant) for r in records] == [(i, v) for i in range(4) for v in range(3)]
    for record in records:
        check_sector_map(record.sector_map, 64)
        assert record.sector_map.dtype == np.uint8
        assert set(np.unique(record.sector_map)) == {0, 1, 2, 3, 4}
    assert not np.array_equal(records[0].sector_map, records[1].sector_map)
    # out of order, from another table, with more variants: the same map
    alone = PerturbedMaps(frames.iloc[[2]], variants=5, size=64, seed=7)
    assert np.array_equal(alone[1].sector_map, records[2 * 3 + 1].sector_map)
    assert alone[1].row == 0
    assert not np.array_equal(PerturbedMaps(frames, 3, 64, seed=8)[0].sector_map, records[0].sector_map)
    assert np.array_equal(maps[-1].sector_map, records[-1].sector_map)
    with pytest.raises(IndexError):
        maps[12]


def test_source_maps_are_unperturbed(phantom_frames: pd.DataFrame) -> None:
    frames = phantom_frames.iloc[:3]
    maps, images = source_maps(frames, 48)
    assert maps.shape == images.shape == (3, 48, 48)
    assert maps.dtype == images.dtype == np.uint8
    for sector_map, image, (_, row) in zip(maps, images, frames.iterrows(), strict=True):
        labels, sector = load_labels(row), find_sector(load_image(row))
        for value in (1, 2, 3):
            share = (from_sector_map(sector_map) == value).mean()
            assert share == pytest.approx(((labels == value) & sector).mean(), abs=0.005)
        assert image[sector_map != 0].mean() > 20 * image[sector_map == 0].mean()
    # every perturbed map has its source's sector
    assert np.array_equal(PerturbedMaps(frames, 1, 48)[1].sector_map != 0, maps[1] != 0)


def test_a_black_image_is_named(phantom_frames: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echovlsm.synthesis.labels._loaded", {})
    monkeypatch.setattr("echovlsm.synthesis.labels.load_image", lambda row: np.zeros((64, 64), np.uint8))
    row = phantom_frames.iloc[0]
    with pytest.raises(LabelMapError, match=f"{row['patient']} {row['view']} {row['phase']}: no ultrasound"):
        source_maps(phantom_frames.iloc[:1], 48)


def test_wrong_parameters_are_refused_by_name(phantom_frames: pd.DataFrame) -> None:
    for name, value in (("variants", 0), ("size", 4), ("seed", -1)):
        with pytest.raises(ValueError, match=name):
            PerturbedMaps(phantom_frames, **{name: value})


def test_a_heart_without_an_atrium() -> None:
    """A mask without an atrium is perturbed too: only what the source has can be lost."""
    labels = heart()
    labels[labels == 3] = 0
    drawn, _ = perturb(labels, fan(), np.random.default_rng(3))
    assert not (drawn == 4).any()
    assert (drawn == 1).any()
