"""The phantom's beam against SIMUS, whose numbers are on record (`benchmarks/phantom/simus.py` made them)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.phantom import simus
from echovlsm.phantom.versions import VERSIONS
from tests.conftest import ROOT

FOLDER = ROOT / "data/results/phantom"
KEYS = ["depth_mm", "angle_deg"]
WIDTHS = ["axial_mm", "lateral_deg"]


@pytest.fixture(scope="module")
def beam() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "beam.csv")


@pytest.fixture(scope="module")
def speckle() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "speckle.csv").set_index("source")


def _widths(beam: pd.DataFrame, source: str) -> pd.DataFrame:
    rows = beam[(beam["source"] == source) & (beam["periods"].isna() | (beam["periods"] == simus.PERIODS))]
    return rows.set_index(KEYS)[WIDTHS]


def test_the_second_versions_beam_is_that_of_simus_within_a_fifth(beam: pd.DataFrame) -> None:
    wanted = _widths(beam, simus.SIMUS)
    assert len(wanted) == len(simus.DEPTHS) * len(simus.ANGLES)
    for (depth, angle), row in wanted.iterrows():
        found = simus.target_widths(*simus.phantom_target(2, depth, angle))
        np.testing.assert_allclose(found, row, rtol=0.2, err_msg=f"{depth} mm, {angle} degrees")


def test_the_first_versions_beam_is_not(beam: pd.DataFrame) -> None:
    """Why there is a second: a pulse that is too long, and a beam that is too narrow at the edges."""
    ratio = _widths(beam, "phantom 1") / _widths(beam, simus.SIMUS)
    assert (ratio["axial_mm"] > 1.2).all()
    assert (ratio["lateral_deg"].xs(36, level="angle_deg") < 0.8).any()


def test_the_pulse_lies_among_those_that_a_scanner_may_send(beam: pd.DataFrame) -> None:
    rows = beam[(beam["source"] == simus.SIMUS) & (beam["depth_mm"] == 80) & (beam["angle_deg"] == 0)]
    by_pulse = rows.set_index("periods")["axial_mm"]
    found = simus.target_widths(*simus.phantom_target(2, 80, 0))[0]
    assert by_pulse[1] < found < by_pulse[3]


def test_what_is_on_record_of_the_phantom_is_what_it_is(beam: pd.DataFrame) -> None:
    for version in VERSIONS:
        recorded = _widths(beam, simus.PHANTOM.format(version=version))
        for (depth, angle), row in recorded.iterrows():
            found = simus.target_widths(*simus.phantom_target(version, depth, angle))
            np.testing.assert_allclose(found, row, rtol=1e-3)


@pytest.mark.parametrize("version", VERSIONS)
def test_speckle_is_fully_developed_and_its_cell_is_the_beams(version: int) -> None:
    blocks = [simus.phantom_block(version, 80, 0, seed) for seed in range(4)]
    found = simus.speckle(blocks)
    assert found["nakagami"] == pytest.approx(1, abs=0.1)
    assert found["ratio"] == pytest.approx(1.913, rel=0.05)
    assert found["ks"] < found["ks_95"]
    expected = simus.expected_cell(*simus.phantom_target(version, 80, 0))
    assert [found["cell_axial_mm"], found["cell_lateral_deg"]] == pytest.approx(expected, rel=0.2)


def test_the_speckle_of_simus_is_that_of_the_second_version(speckle: pd.DataFrame) -> None:
    theirs, ours = speckle.loc[simus.SIMUS].set_index(KEYS), speckle.loc["phantom 2"].set_index(KEYS)
    for name in ("cell_axial_mm", "cell_lateral_deg"):
        assert (ours[name] / theirs[name]).between(0.8, 1.25).all(), name
    for rows in (theirs, ours):
        assert rows["nakagami"].between(0.9, 1.1).all()
        assert (rows["ks"] < rows["ks_95"]).all()
        for way in ("axial_mm", "lateral_deg"):
            assert (rows[f"cell_{way}"] / rows[f"psf_{way}"]).between(0.8, 1.2).all(), way


def test_widths_of_a_gaussian_are_known() -> None:
    rows, columns = np.arange(-60, 61)[:, None], np.arange(-80, 81)[None]
    echoes = np.exp(-0.5 * (rows / 6.0) ** 2 - 0.5 * (columns / 9.0) ** 2)
    wanted = (2.3548 * 6 * 0.1, 2.3548 * 9 * 0.2)
    assert simus.target_widths(echoes, 0.1, 0.2) == pytest.approx(wanted, rel=0.01)
    assert simus.expected_cell(echoes, 0.1, 0.2) == pytest.approx(wanted, rel=0.01)


def test_few_scatterers_are_no_developed_speckle() -> None:
    """The statistics tell a cell with two scatterers from one with many."""
    rng, found = np.random.default_rng(0), {}
    kernel = np.exp(-0.5 * (np.arange(-12, 13) / 3.0) ** 2)
    for count in (0.02, 1):
        field = np.where(rng.random((160, 160)) < count, rng.choice([-1.0, 1.0], (160, 160)), 0)
        field = field * np.exp(2j * np.pi * rng.random(field.shape))
        for axis in (0, 1):
            field = np.apply_along_axis(np.convolve, axis, field, kernel, "same")
        found[count] = simus.speckle([(field, 1.0, 1.0)])
    assert found[0.02]["nakagami"] < 0.8 < 0.9 < found[1]["nakagami"]
    assert found[1]["ks"] < found[1]["ks_95"] < found[0.02]["ks"]


def test_the_package_never_imports_the_simulator() -> None:
    assert not [path for path in (ROOT / "echovlsm").rglob("*.py") if "import pymust" in path.read_text()]
