"""Measures of fidelity against theory, geometry and plain loops."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter, uniform_filter

from echovlsm import STRUCTURES
from echovlsm.synthesis import fidelity
from echovlsm.synthesis.fidelity import encoder_features, fidelity_table, label_agreement
from echovlsm.synthesis.measures import (
    FidelityError,
    ImageSet,
    gcnr,
    grey_counts,
    local_snr,
    nearest_training,
    own_kernel,
    pooled_distance,
    radial_spectrum,
    squared_mmd,
    thumbnails,
    tissue_histograms,
)
from tests.conftest import WEIGHTS

CAVITY, BACKGROUND, MYOCARDIUM, ATRIUM = 1, 2, 3, 4
SIDE = 48


def to_grey(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def sector_map(side=SIDE):
    """A cavity in a wall above an atrium, in a square sector."""
    labels = np.zeros((side, side), np.uint8)
    y, x = np.mgrid[:side, :side] / side - 0.5
    labels[2:-2, 2:-2] = BACKGROUND
    labels[np.hypot(y + 0.1, x) < 0.33] = MYOCARDIUM
    labels[np.hypot(y + 0.1, x) < 0.15] = CAVITY
    labels[np.hypot(y - 0.35, x) < 0.1] = ATRIUM
    return labels


def cohort(patients, seed, shift=0.0, a_patient=2):
    """Echo-like noise: tissue means of its own for each patient, two images a patient."""
    rng = np.random.default_rng(seed)
    labels = sector_map()
    gain = rng.normal(0, 8, patients).repeat(a_patient)[:, None, None]
    means = np.array([0, 30, 80, 130, 30])[labels] + gain
    noise = gaussian_filter(rng.normal(size=(len(gain), SIDE, SIDE)), (0, 0.7, 0.7))
    images = to_grey(np.where(labels > 0, means + shift + 50 * noise, 0))
    ids = [f"p{number}" for number in range(patients) for _ in range(a_patient)]
    return ImageSet(images, np.repeat(labels[None], len(images), 0), ids)


def tiny_features(images):
    values = images.reshape(len(images), -1).astype(float)
    return np.stack([values.mean(axis=1), values.std(axis=1), np.median(values, axis=1)], axis=1)


def by_name(table):
    assert table["measure"].is_unique
    return table.set_index("measure")


# -- grey levels ----------------------------------------------------------------------------------------


def test_histograms_count_the_pixels_of_their_tissue_only():
    maps = np.repeat(sector_map()[None], 2, 0)
    images = np.choose(maps, [0, 10, 100, 200, 10]).astype(np.uint8)
    images[1][maps[1] == MYOCARDIUM] = 240
    edges, histograms = tissue_histograms(images, maps, bins=32)
    assert list(edges[:2]) == [0, 8]
    assert list(histograms) == [STRUCTURES[1], "sector background", STRUCTURES[2], STRUCTURES[3]]
    assert histograms["myocardium"][[200 // 8, 240 // 8]] == pytest.approx([0.5, 0.5])
    assert histograms["sector background"][100 // 8] == 1
    counts = grey_counts(images, maps)
    assert counts.sum() == images.size
    assert counts[1, MYOCARDIUM, 240] == (maps[1] == MYOCARDIUM).sum()
    maps[maps == ATRIUM] = BACKGROUND
    assert np.isnan(tissue_histograms(images, maps)[1]["left atrium cavity"]).all()


@pytest.mark.parametrize("shift", [1, 7, -20])
def test_a_shift_by_k_grey_levels_is_k_away(shift):
    images = np.random.default_rng(0).integers(60, 180, (3, SIDE, SIDE)).astype(np.uint8)
    maps = np.repeat(sector_map()[None], 3, 0)
    own = grey_counts(images, maps)[:, MYOCARDIUM]
    moved = grey_counts(images + np.uint8(shift % 256), maps)[:, MYOCARDIUM]
    assert pooled_distance(own, moved) == pytest.approx(abs(shift))
    assert math.isnan(pooled_distance(own, np.zeros((1, 256), int)))


def histogram_of(values):
    return np.bincount(to_grey(values), minlength=256)[None]


def test_gcnr_of_disjoint_identical_and_gaussian_tissues():
    rng = np.random.default_rng(1)
    dark, bright = histogram_of(rng.normal(40, 5, 9000)), histogram_of(rng.normal(200, 5, 9000))
    assert gcnr(dark, bright) == pytest.approx([1])
    again = histogram_of(rng.normal(40, 5, 9000))
    assert gcnr(dark, again)[0] < 0.03
    # equal sd s, means d apart: the overlap is 2 Phi(-d / 2s)
    for distance in (10, 25, 60):
        pair = [histogram_of(rng.normal(mean, 20, 200_000)) for mean in (100, 100 + distance)]
        expected = 1 - 2 * stats.norm.cdf(-distance / 40)
        assert gcnr(*pair, bins=64)[0] == pytest.approx(expected, abs=0.01)
    # with as many pixels as a tissue has, chance shows: the docstring says so
    few = [histogram_of(rng.normal(120, 20, 500)) for _ in range(100)]
    assert np.mean([gcnr(a, b)[0] for a, b in zip(few[::2], few[1::2], strict=True)]) == pytest.approx(
        0.1, abs=0.05
    )
    assert np.isnan(gcnr(dark, np.zeros_like(dark))).all()
    with pytest.raises(FidelityError, match="bins"):
        gcnr(dark, bright, bins=30)


def uniform_tissue(tissue, count, side=64):
    return np.full((count, side, side), tissue, np.uint8)


def test_rayleigh_speckle_has_the_snr_of_theory():
    rng = np.random.default_rng(2)
    amplitude = rng.rayleigh(30, (4, 64, 64))
    found = local_snr(to_grey(amplitude), uniform_tissue(MYOCARDIUM, 4), MYOCARDIUM, window=11)
    assert found == pytest.approx(np.full(4, math.sqrt(math.pi / (4 - math.pi))), rel=0.05)  # 1.913
    # smaller windows estimate the sd from fewer pixels, yet agree within a tenth
    small = local_snr(to_grey(amplitude), uniform_tissue(MYOCARDIUM, 4), MYOCARDIUM)
    assert small == pytest.approx(np.full(4, 1.913), rel=0.1)


def test_log_compressed_speckle_has_one_sd_at_every_gain():
    # 5.57 dB, which is 23.7 of 255 grey levels over 60 dB: the SNR is then the mean over that
    decibel = 20 * np.log10(np.random.default_rng(3).rayleigh(1, (4, 64, 64)))
    for gain in (30, 40):
        grey = to_grey(255 / 60 * (decibel + gain))
        found = local_snr(grey, uniform_tissue(BACKGROUND, 4), BACKGROUND, window=15)
        assert found.mean() == pytest.approx(grey.mean() / (5.57 * 255 / 60), rel=0.05)


def test_averaging_nine_independent_pixels_raises_the_snr_by_three():
    noise = np.random.default_rng(4).normal(128, 30, (4, 128, 128))
    maps = uniform_tissue(MYOCARDIUM, 4, 128)
    rough = local_snr(to_grey(noise), maps, MYOCARDIUM, window=31)
    smooth = local_snr(to_grey(uniform_filter(noise, (1, 3, 3))), maps, MYOCARDIUM, window=31)
    assert rough == pytest.approx(np.full(4, 128 / 30), rel=0.03)
    assert smooth / rough == pytest.approx(np.full(4, 3), rel=0.05)


def test_snr_looks_at_whole_windows_of_the_tissue_only():
    rng = np.random.default_rng(5)
    maps = uniform_tissue(BACKGROUND, 1)
    maps[0, 20:40, 20:40] = MYOCARDIUM
    image = to_grey(rng.normal(120, 10, (1, 64, 64)))
    before = local_snr(image, maps, MYOCARDIUM)
    image[maps != MYOCARDIUM] = 255
    assert local_snr(image, maps, MYOCARDIUM) == pytest.approx(before)
    assert np.isnan(local_snr(image, maps, BACKGROUND)).all()  # clipped white
    assert np.isnan(local_snr(image, maps, ATRIUM)).all()
    # a window that just fits, and one that does not
    assert np.isfinite(local_snr(image, maps, MYOCARDIUM, window=19)).all()
    assert np.isnan(local_snr(image, maps, MYOCARDIUM, window=21)).all()
    # a tissue of one grey level has the sd of rounding, not zero
    flat = np.full((1, 64, 64), 60, np.uint8)
    assert local_snr(flat, maps, MYOCARDIUM)[0] == pytest.approx(60 * math.sqrt(12))
    for wrong in ({"window": 4}, {"window": 1}, {"tissue": 0}):
        with pytest.raises(FidelityError, match=next(iter(wrong))):
            local_snr(**{"images": image, "maps": maps, "tissue": MYOCARDIUM} | wrong)


@pytest.mark.parametrize("shape", [(96, 96), (95, 117)])
def test_white_noise_is_flat_and_a_blur_falls_as_its_transfer_function(shape):
    noise = np.random.default_rng(6).normal(128, 30, (60, *shape))
    frequencies, power = radial_spectrum(to_grey(noise))
    assert power.shape == (60, len(frequencies)) == (60, min(shape) // 2 - 1)
    assert 0 < frequencies[0] < frequencies[-1] < 0.5
    mean = 10 * np.log10((10 ** (power / 10)).mean(axis=0))
    # the innermost rings hold a dozen coefficients an image, so that chance is larger there
    assert mean == pytest.approx(np.full(len(mean), 20 * math.log10(30)), abs=1.5)
    assert mean[5:] == pytest.approx(np.full(len(mean) - 5, 20 * math.log10(30)), abs=0.5)
    sigma = 0.8
    blurred = radial_spectrum(to_grey(gaussian_filter(noise, (0, sigma, sigma), mode="wrap")))[1]
    fall = (blurred - power).mean(axis=0)
    expected = 20 * np.log10(np.exp(-2 * (np.pi * frequencies * sigma) ** 2))
    heard = frequencies < 0.35
    assert fall[heard] == pytest.approx(expected[heard], abs=0.5)
    # a flat image: nothing but the floor of rounding
    flat = radial_spectrum(np.full((1, *shape), 90, np.uint8))[1]
    assert flat == pytest.approx(np.full(flat.shape, 10 * math.log10(1 / 12)))


def test_a_wave_shows_at_its_own_frequency():
    x = np.arange(96)
    image = to_grey(128 + 60 * np.sin(2 * np.pi * x / 8))[None, None].repeat(96, 1)
    frequencies, power = radial_spectrum(image[0][None])
    assert frequencies[power[0].argmax()] == pytest.approx(1 / 8, abs=1 / 96)


# -- features -------------------------------------------------------------------------------------------


def test_squared_mmd_agrees_with_the_sum_written_out():
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(6, 4)), rng.normal(0.5, 1, (9, 4))

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 4 + 1) ** 3

    within_x = sum(kernel(x[i], x[j]) for i in range(6) for j in range(6) if i != j) / (6 * 5)
    within_y = sum(kernel(y[i], y[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    between = sum(kernel(a, b) for a in x for b in y) / (6 * 9)
    assert squared_mmd(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_the_kernel_distance_is_unbiased_and_grows_with_the_distance():
    rng = np.random.default_rng(8)
    chance = [squared_mmd(*rng.normal(size=(2, 25, 8))) for _ in range(400)]
    # a biased estimator would lie above zero by the mean of k(x, x) - k(x, y) over 12.5, far over this error
    assert abs(np.mean(chance)) < 4 * np.std(chance) / 20
    assert min(chance) < 0
    first = rng.normal(size=(300, 8))
    found = [squared_mmd(first, rng.normal(shift, 1, (300, 8))) for shift in (0, 0.5, 1)]
    assert abs(found[0]) < 0.1 < found[1] < found[2]
    second = rng.normal(0.5, 1, (80, 8))
    known = squared_mmd(first, second, own_kernel(second))
    assert known == squared_mmd(first, second), "a term that is known is not worked out again"
    with pytest.raises(FidelityError, match="one D"):
        squared_mmd(first, second[:, :5])
    with pytest.raises(FidelityError, match="two of each"):
        squared_mmd(first, second[:1])


def test_encoder_features_pool_the_last_activation_and_ignore_the_batch():
    from echovlsm import models

    model = models.load("clipseg", WEIGHTS, "frozen")
    model.train()
    images = cohort(3, 9).images
    found = encoder_features(images, model)
    assert found.shape == (6, model.segmenter.config.vision_config.hidden_size)
    assert found.dtype == np.float32
    assert model.training
    assert encoder_features(images[:3], model, batch_size=2) == pytest.approx(found[:3], abs=1e-4)
    assert np.abs(found[0] - found[5]).max() > 1e-3
    # another size of the same image is nearly the same point
    double = encoder_features(images[:1].repeat(2, 1).repeat(2, 2), model)
    assert np.linalg.norm(double - found[0]) < np.linalg.norm(found[5] - found[0])


# -- memorising -----------------------------------------------------------------------------------------


def test_a_copy_is_flagged_and_so_is_a_noisy_one():
    training, fresh = cohort(40, 10).images, cohort(10, 11).images
    rng = np.random.default_rng(12)
    images = fresh.copy()
    images[3] = training[17]
    images[8] = to_grey(training[60] + rng.normal(0, 6, (SIDE, SIDE)))
    near = nearest_training(thumbnails(images), thumbnails(training))
    assert list(np.flatnonzero(near.copy)) == [3, 8]
    assert list(near.index[[3, 8]]) == [17, 60]
    assert near.distance[3] == 0
    assert 0 < near.distance[8] < np.delete(near.distance, [3, 8]).min()


def test_nearest_distances_are_those_worked_out_by_hand():
    training = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 40.0]])
    near = nearest_training(np.array([[13.0, 4.0], [0.0, 30.0]]), training)
    assert near.distance == pytest.approx([5 / math.sqrt(2), 10 / math.sqrt(2)])
    assert list(near.index) == [1, 2]
    angle = nearest_training(np.array([[3.0, 3.0]]), training[1:], metric="cosine")
    assert angle.distance == pytest.approx([1 - math.sqrt(0.5)])
    # pairs of one patient do not count
    same = np.eye(3, dtype=bool)
    assert list(nearest_training(training, training, same).index) == [1, 0, 0]
    with pytest.raises(FidelityError, match="no image to compare image 2"):
        nearest_training(training, training, np.array([[False], [False], [True]]).repeat(3, 1))
    with pytest.raises(FidelityError, match="metric"):
        nearest_training(training, training, metric="manhattan")
    with pytest.raises(FidelityError, match="do not compare"):
        nearest_training(training, training[:, :1])


# -- labels ---------------------------------------------------------------------------------------------


def test_label_agreement_is_the_dice_of_each_structure():
    truth = np.zeros((2, 20, 20), np.uint8)
    truth[:, 2:8, 2:8] = 1
    truth[:, 10:14, 2:12] = 2
    truth[0, 16:18, 2:6] = 3
    found = truth.copy()
    found[0, 2:8, 2:5] = 0  # half of the cavity: 18 of 36 pixels, Dice 2 * 18 / 54
    found[1, 10:14] = 0
    found[1, 16:18, 2:6] = 3  # an atrium that nobody asked for
    table = label_agreement(found, truth)
    assert list(table) == list(STRUCTURES.values())
    assert table["left ventricular cavity"].tolist() == pytest.approx([36 / 54, 1])
    assert table["myocardium"].tolist() == [1, 0]
    assert table["left atrium cavity"].isna().tolist() == [False, True]
    with pytest.raises(FidelityError, match="predicted"):
        label_agreement(found[:, :10], truth)
    with pytest.raises(FidelityError, match="0 to 3"):
        label_agreement(found + np.uint8(2), truth)


# -- the table ------------------------------------------------------------------------------------------

SHIFTED = [
    "grey levels, left ventricular cavity",
    "grey levels, myocardium",
    "grey levels, sector background",
]


@pytest.fixture(scope="module")
def source():
    return cohort(40, 20)


@pytest.fixture(scope="module")
def alike(source):
    return by_name(fidelity_table(cohort(40, 21), source, features=tiny_features))


def test_a_set_of_the_same_distribution_is_at_the_floor(alike):
    assert list(alike.reset_index()) == list(fidelity.COLUMNS)
    ratio = alike["ratio"].dropna()
    assert {"speckle SNR, myocardium", "gCNR, cavity to myocardium", "power spectrum"} <= set(ratio.index)
    assert ((ratio > 0.3) & (ratio < 3)).all()
    kernel = alike.loc["kernel distance (KID), given features"]
    assert abs(kernel["value"] - kernel["floor"]) < 3 * (kernel["spread"] + kernel["floor_spread"])
    assert alike.loc["copies of a training image", "value"] == 0
    assert set(alike.loc[alike.index.str.startswith("nearest"), "better"]) == {"not below floor"}
    assert alike.loc["grey levels, myocardium", "source"] == pytest.approx(130, abs=6)


def test_a_shifted_set_is_above_the_floor_by_about_its_shift(source, alike):
    table = by_name(fidelity_table(cohort(40, 21, shift=20), source, features=tiny_features))
    for name in SHIFTED:
        assert table.loc[name, "value"] == pytest.approx(20, abs=5)
        assert table.loc[name, "value"] > 3 * table.loc[name, "floor"]
        # the floor is the source's own, whatever it is compared with
        assert table.loc[name, "floor"] == alike.loc[name, "floor"]
    kernel = "kernel distance (KID), given features"
    assert table.loc[kernel, "value"] > 5 * alike.loc[kernel, "value"]
    # log compression turns a gain into a shift: contrast stays
    assert table.loc["gCNR, cavity to myocardium", "ratio"] < 3


def test_a_smoothed_set_shows_in_speckle_and_spectrum(source):
    other = cohort(40, 21)
    smooth = dataclasses.replace(
        other, images=to_grey(gaussian_filter(other.images.astype(float), (0, 1, 1)))
    )
    table = by_name(fidelity_table(smooth, source))
    assert "kernel distance (KID), given features" not in table.index
    for name in ("speckle SNR, myocardium", "speckle SNR, sector background", "power spectrum"):
        assert table.loc[name, "ratio"] > 5
    speckle = table.loc["speckle SNR, myocardium"]
    assert speckle["synthetic"] > speckle["source"]


def test_copies_are_counted_and_named_in_the_table(source):
    held_out = cohort(15, 22)
    images = cohort(15, 23).images
    images[[4, 9]] = source.images[[0, 50]]
    table = by_name(fidelity_table(ImageSet(images, held_out.maps), source, held_out))
    row = table.loc["copies of a training image"]
    assert (row["value"], row["floor"]) == (2 / len(images), 0)
    assert "4, 9" in row["note"]
    near = table.loc["nearest training image"]
    assert near["note"] == f"smallest: 0, 0, {near['note'].split(', ')[-1]}"
    expected = nearest_training(thumbnails(held_out.images), thumbnails(source.images))
    assert near["floor"] == pytest.approx(np.median(expected.distance))
    # all copied: far below what held-out images have
    whole = by_name(fidelity_table(source, source, held_out)).loc["nearest training image"]
    assert (whole["value"], whole["ratio"]) == (0, 0)


def test_agreement_rows_are_one_minus_dice_beside_held_out_images(source):
    def with_labels(images):
        return dataclasses.replace(images, labels=np.array([0, 1, 0, 2, 3], np.uint8)[images.maps])

    synthetic, held_out = with_labels(cohort(5, 24)), with_labels(cohort(5, 25))

    def segmenter(images):  # blind to the atrium in every synthetic image, perfect otherwise
        labels = synthetic.labels.copy()
        if np.array_equal(images, synthetic.images):
            labels[labels == 3] = 0
        return labels

    table = by_name(fidelity_table(synthetic, with_labels(source), held_out, segmenter=segmenter))
    assert table.loc["label disagreement, myocardium", ["value", "floor"]].tolist() == [0, 0]
    assert table.loc["label disagreement, left atrium cavity", ["value", "floor"]].tolist() == [1, 0]
    with pytest.raises(FidelityError, match=r"source: has no labels"):
        fidelity_table(synthetic, source, segmenter=segmenter)


def test_seeds_reproduce_the_table_and_others_do_not(source):
    other = cohort(20, 26)
    first, again, third = (
        fidelity_table(other, source, features=tiny_features, seed=seed, repeats=3) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(first, again)
    assert (first["value"].iloc[:5] != third["value"].iloc[:5]).all()


def test_images_without_an_atrium_are_legal_and_said(source):
    other = cohort(20, 27)
    maps = np.where(other.maps == ATRIUM, BACKGROUND, other.maps).astype(np.uint8)
    table = by_name(fidelity_table(dataclasses.replace(other, maps=maps), source, repeats=4))
    row = table.loc["grey levels, left atrium cavity"]
    assert math.isnan(row["value"])
    assert row["floor"] > 0
    assert "4 of 4 rounds left out: no pixel of left atrium cavity" in row["note"]
    assert table.drop(index="grey levels, left atrium cavity")["value"].notna().all()


def test_halves_keep_patients_whole():
    groups = np.repeat(np.arange(9), [1, 4, 2, 3, 1, 1, 5, 2, 1])
    rng = np.random.default_rng(0)
    cuts = set()
    for _ in range(20):
        first, second = fidelity.halves(groups, rng)
        assert sorted([*first, *second]) == list(range(20))
        assert not set(groups[first]) & set(groups[second])
        assert 7 <= len(first) <= 13
        cuts.add(tuple(sorted(first)))
    assert len(cuts) > 5


def test_sets_that_cannot_be_compared_are_refused(source):
    images, maps = source.images, source.maps
    with pytest.raises(FidelityError, match=r"maps: .* does not match"):
        ImageSet(images, maps[:, :-1])
    with pytest.raises(FidelityError, match="no image"):
        ImageSet(images[:0], maps[:0])
    with pytest.raises(FidelityError, match="uint8"):
        ImageSet(images / 255, maps)
    with pytest.raises(FidelityError, match="0 to 4"):
        ImageSet(images, maps + np.uint8(1))
    with pytest.raises(FidelityError, match="patients: 3 ids for 80"):
        ImageSet(images, maps, ["a", "b", "c"])
    small = ImageSet(images[:, ::2, ::2].copy(), maps[:, ::2, ::2].copy())
    with pytest.raises(FidelityError, match=r"synthetic: images of 24 x 24.*48 x 48"):
        fidelity_table(small, source)
    with pytest.raises(FidelityError, match="one patient"):
        fidelity_table(source, ImageSet(images[:4], maps[:4], ["a"] * 4))
    with pytest.raises(FidelityError, match="repeats"):
        fidelity_table(source, source, repeats=1)
    with pytest.raises(FidelityError, match="features"):
        fidelity_table(source, source, features=lambda images: np.zeros(len(images)))
