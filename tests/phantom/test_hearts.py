"""The measures that hold phantoms against hearts, on images whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from benchmarks.phantom import hearts
from benchmarks.phantom.hearts import OUTSIDE, SPACING, Frame
from echovlsm import STRUCTURES
from echovlsm.phantom import draw_cohort_patient
from echovlsm.phantom.patient import of_version
from echovlsm.phantom.versions import VERSIONS
from tests.conftest import ROOT


def test_correlation_lengths_are_those_of_the_grain() -> None:
    rng = np.random.default_rng(0)
    region = np.zeros((160, 200), bool)
    region[20:140, 30:170] = True
    for along, across in ((0.8, 1.6), (1.5, 1.0)):
        grain = ndimage.gaussian_filter(rng.standard_normal(region.shape), (along, across))
        image = np.clip(120 + 60 * grain / grain.std() / 2, 0, 255).astype(np.uint8)
        wanted = [2.3548 * np.sqrt(2) * sigma * SPACING for sigma in (along, across)]
        assert hearts.correlation_lengths(image, region) == pytest.approx(wanted, rel=0.12)
    assert np.isnan(hearts.correlation_lengths(image, np.zeros_like(region))).all()


def test_slow_changes_of_gain_are_no_grain() -> None:
    rng, region = np.random.default_rng(1), np.ones((150, 150), bool)
    grain = ndimage.gaussian_filter(rng.standard_normal(region.shape), 1.0)
    slope = np.linspace(0, 60, 150)[:, None]
    plain, tilted = (
        np.clip(90 + 20 * grain / grain.std() + added, 0, 255).astype(np.uint8) for added in (0, slope)
    )
    first, second = (hearts.correlation_lengths(image, region) for image in (plain, tilted))
    assert second == pytest.approx(first, rel=0.1)


def _heart(lost: float) -> Frame:
    """A wall around a cavity, whose lower share `lost` is as dark as the cavity."""
    labels = np.zeros((120, 120), np.uint8)
    labels[20:100, 20:100], labels[35:85, 35:85] = 2, 1
    rng = np.random.default_rng(2)
    image = np.where(labels == 2, 120, 40) + rng.normal(0, 3, labels.shape)
    below = round(100 - 80 * lost)
    image[below:100, 20:100] = np.where(labels[below:100, 20:100] == 2, 30, image[below:100, 20:100])
    return Frame("p", "ED", image.clip(1, 255).astype(np.uint8), labels)


def test_the_lost_share_of_the_wall_is_found() -> None:
    assert hearts.lost_wall(_heart(0)) < 0.02
    half = _heart(0.5)
    gone = (half.image[half.labels == 2] < 60).mean()
    assert hearts.lost_wall(half) == pytest.approx(gone, abs=0.06)


def test_the_sector_is_measured() -> None:
    y, x = np.mgrid[0.5:230, -180:180]
    inside = (np.hypot(x, y) * SPACING < 140) & (np.abs(np.arctan2(x, y)) < np.deg2rad(37))
    image = np.where(inside, 80, 0).astype(np.uint8)
    labels = np.zeros_like(image)
    labels[60:100, 160:200], labels[100:120, 160:200], labels[130:150, 160:200] = 1, 2, 3
    image[70, 180] = 0
    frame = Frame("p", "ES", image, hearts.with_sector(image, labels))
    assert frame.labels[70, 180] == 1
    assert frame.labels[0, 0] == OUTSIDE
    found = hearts.measures_of(frame)
    assert found["depth"] == pytest.approx(140, abs=1)
    assert found["opening"] == pytest.approx(74, abs=1)
    assert found[STRUCTURES[1]] == pytest.approx(1600 * SPACING**2 / 100)


def test_halving_takes_means_and_keeps_labels() -> None:
    image = np.arange(30, dtype=np.uint8).reshape(5, 6)
    small, labels = hearts.halved(image, image)
    np.testing.assert_array_equal(labels, [[0, 2, 4], [12, 14, 16]])
    np.testing.assert_allclose(small, image[:4].reshape(2, 2, 3, 2).mean(axis=(1, 3)), atol=0.5)


def _set(seed: int, shift: float = 0.0, patients: int = 60) -> pd.DataFrame:
    rng, rows = np.random.default_rng(seed), []
    for patient in range(patients):
        for phase in ("ED", "ES"):
            grey = np.zeros((len(hearts.TISSUES), 256), int)
            grey[:, 60:90] = rng.integers(0, 9, (len(hearts.TISSUES), 30))
            values = {name: rng.normal(10 + shift, 1) for name in (*hearts.MEASURES, *STRUCTURES.values())}
            rows.append({"patient": f"p{patient}", "phase": phase, "grey": grey, **values})
    return pd.DataFrame(rows)


def test_sets_of_one_kind_lie_at_the_floor_and_others_above_it() -> None:
    real = _set(0)
    same, other = hearts.compare(_set(1), real), hearts.compare(_set(2, 2.0), real)
    assert same["ratio"].median() == pytest.approx(1, abs=0.35)
    numbers = ~other["measure"].str.startswith("grey")
    assert (other.loc[numbers, "ratio"] > 3).all()
    assert other.loc[numbers, "phantom"].to_numpy() == pytest.approx(12, abs=0.5)
    assert (same["floor"] > 0).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_phantoms_come_at_the_spacing_of_the_comparison(version: int) -> None:
    frame = next(hearts.phantoms(version, 1))
    patient = of_version(draw_cohort_patient(hearts.SEED, 0), version)
    assert hearts.measures_of(frame)["depth"] == pytest.approx(patient.views[hearts.VIEW].depth, rel=0.02)


def test_the_table_on_record_has_every_measure_of_every_version() -> None:
    table = pd.read_csv(ROOT / "data/results/phantom/hearts.csv")
    counts = table.groupby("version")["measure"].nunique()
    assert set(counts) == {len(hearts.TISSUES) + len(hearts.MEASURES) + 2 * len(STRUCTURES)}
    assert table.notna().all(axis=None)
