"""Versions and ingredients of the phantom: the same image for ever, and cohorts that are told apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from echovlsm.cohort import read_cohort
from echovlsm.phantom import beam, draw_cohort_patient, simulate, write_phantom_cohort
from echovlsm.phantom.anatomy import Tissue
from echovlsm.phantom.cohort import Phantom
from echovlsm.phantom.patient import of_version
from echovlsm.phantom.versions import INGREDIENTS, VERSIONS, require_phantom

PINNED = Path(__file__).with_name("pinned.json")
"""Means over 8 x 8 parts of a few images of each version, and the pixels of each of their labels."""


def pinned(version: int) -> list[dict]:
    """What `PINNED` has of a version, drawn now; `python -m tests.phantom.test_versions` writes it."""
    found = []
    for index, (view, phase, size) in enumerate((("4CH", "ED", 128), ("2CH", "ES", 256), ("4CH", "ES", 96))):
        drawn = simulate(draw_cohort_patient(17, index), view, phase, index, size, version)
        parts = [np.array_split(strip, 8, axis=1) for strip in np.array_split(drawn.image, 8)]
        means = [round(float(part.mean()), 3) for strip in parts for part in strip]
        found.append({"means": means, "labels": np.bincount(drawn.labels.ravel()).tolist()})
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_draws_what_it_always_drew(version: int) -> None:
    """Results on record rest on it; a changed image is a new version."""
    for now, before in zip(pinned(version), json.loads(PINNED.read_text())[str(version)], strict=True):
        assert now["labels"] == before["labels"]
        np.testing.assert_allclose(now["means"], before["means"], atol=0.02)


def _frames(patients: int = 6, version: int = 1, without: tuple[str, ...] = ()) -> list[Phantom]:
    return [
        simulate(draw_cohort_patient(5, i), "4CH", phase, 10 * i + j, 128, version, without)
        for i in range(patients)
        for j, phase in enumerate(("ED", "ES"))
    ]


@pytest.fixture(scope="module")
def whole() -> list[Phantom]:
    return _frames()


def test_versions_differ_in_the_image_and_not_in_the_heart(whole: list[Phantom]) -> None:
    for first, second in zip(whole, _frames(version=2), strict=True):
        np.testing.assert_array_equal(first.labels, second.labels)
        assert (first.image != second.image).mean() > 0.2


def test_tuned_hearts_differ_more_from_each_other_and_shine_where_hearts_do(whole: list[Phantom]) -> None:
    tuned = _frames(version=3)
    shares = [np.array([(frame.labels == 1).mean() for frame in frames[::2]]) for frames in (whole, tuned)]
    plain, wide = (np.log(share).std() for share in shares)
    assert wide > 1.2 * plain

    def apex(frame: Phantom) -> float:
        """Mean grey level of the wall above the cavity, over that of the sector."""
        top = np.flatnonzero((frame.labels == 1).any(axis=1))[0]
        return frame.image[:top][frame.labels[:top] == 2].mean() / frame.image[frame.image > 0].mean()

    assert np.median([apex(frame) for frame in tuned]) > np.median([apex(frame) for frame in whole]) + 0.1


def test_a_tuned_patient_is_the_same_heart_in_both_phases() -> None:
    patient = draw_cohort_patient(5, 1)
    assert of_version(patient, 2) is patient
    first, second = (of_version(patient, 3) for _ in range(2))
    assert first == second != patient
    assert first.ejection_fraction == patient.ejection_fraction


@pytest.mark.parametrize("name", INGREDIENTS)
def test_what_is_left_out_leaves_the_rest(whole: list[Phantom], name: str) -> None:
    """Labels change where the heart or its scale does; the image always does."""
    for first, second in zip(whole, _frames(without=(name,)), strict=True):
        assert (first.image != second.image).mean() > 0.02
        if name not in ("anatomy", "gain"):
            np.testing.assert_array_equal(first.labels, second.labels)
            assert first.spacing == second.spacing


def _grain(frame: Phantom) -> float:
    """Median size of the second differences along the rows of the wall: edges and slopes do not count."""
    image, wall = frame.image.astype(float), frame.labels == 2
    three = wall[2:] & wall[1:-1] & wall[:-2]
    return float(np.median(np.abs(image[2:] - 2 * image[1:-1] + image[:-2])[three]))


def test_without_speckle_the_wall_is_smooth(whole: list[Phantom]) -> None:
    plain = _frames(without=("speckle",))
    assert np.median([_grain(f) for f in plain]) < 0.4 * np.median([_grain(f) for f in whole])


def test_without_dropout_and_shadows_the_wall_is_brighter_against_the_cavity(whole: list[Phantom]) -> None:
    def step(frames: list[Phantom]) -> float:
        return float(np.mean([f.image[f.labels == 2].mean() - f.image[f.labels == 1].mean() for f in frames]))

    assert step(_frames(without=("shadows",))) > step(whole) + 3


def test_without_anatomical_variation_all_patients_have_one_heart(whole: list[Phantom]) -> None:
    alike = _frames(without=("anatomy",))
    for phase in ("ED", "ES"):
        shapes = {
            tuple(np.round((f.heart.width, f.heart.wall, *f.heart.bend, *f.heart.papillary), 6))
            for f in alike
            if f.heart.phase == phase
        }
        assert len(shapes) == 1, phase
    areas = [[(f.labels == 1).sum() * f.spacing**2 for f in frames[::2]] for frames in (whole, alike)]
    assert np.std(areas[1]) < 0.5 * np.std(areas[0])
    assert len({f.heart.tilt for f in alike}) == len(alike), "how the heart lies still varies"


def test_without_variation_of_gain_and_depth_images_are_equally_bright(whole: list[Phantom]) -> None:
    same = _frames(without=("gain",))
    assert len({f.spacing for f in same}) == 1
    assert len({f.spacing for f in whole}) > 3
    bright = [[np.median(f.image[f.image > 0]) for f in frames] for frames in (whole, same)]
    assert np.std(bright[1]) < 0.5 * np.std(bright[0])


def test_without_context_nothing_lies_around_the_labelled_structures() -> None:
    kept = {Tissue.SURROUNDINGS, 1, 2, 3, Tissue.VALVE, Tissue.PAPILLARY}
    for frame in _frames(without=("context",)):
        assert set(np.unique(frame.tissue)) <= kept
        outside = frame.labels == 0
        assert set(np.unique(frame.tissue[outside])) == {Tissue.SURROUNDINGS}


def test_the_mean_envelope_is_that_of_many_scatterers() -> None:
    rng = np.random.default_rng(0)
    strength = rng.uniform(0.1, 1, (beam.RANGES, beam.BEAMS)).astype(np.float32)
    coherent = np.zeros_like(strength)
    coherent[100:104, 60:100] = 4
    how = 150.0, 72, 1.2, coherent
    for version in VERSIONS:
        many = beam.envelope(strength, rng, *how, looks=150, version=version)
        mean = beam.mean_envelope(strength, *how, version=version)
        ratio = (many / mean)[20:-20, 10:-10]
        assert ratio.mean() == pytest.approx(1, abs=0.01)
        assert ratio.std() < 0.08


def test_a_cohort_says_how_it_was_made_and_another_is_refused(tmp_path: Path) -> None:
    how = {"patients": 2, "seed": 3, "size": 32, "progress": False, "workers": 1}
    one = write_phantom_cohort(tmp_path / "one", **how)
    two = write_phantom_cohort(tmp_path / "two", **how, version=2, without=("speckle",))
    told = [yaml.safe_load((root / "cohort.yaml").read_text())["parameters"] for root in (one, two)]
    assert [t["version"] for t in told] == [1, 2]
    assert [t.get("without") for t in told] == [None, ["speckle"]]
    first, second = (read_cohort(root).attrs["meta"] for root in (one, two))
    require_phantom(first)
    require_phantom(second, 2, ("speckle",))
    with pytest.raises(
        ValueError, match=r"one: holds phantoms of version 1; phantoms of version 2 was asked"
    ):
        require_phantom(first, 2, place=one)
    with pytest.raises(ValueError, match="version 2 without speckle; phantoms of version 1 was"):
        require_phantom(second)
    with pytest.raises(ValueError, match="without shadows and speckle was asked"):
        require_phantom(first, 1, ("speckle", "shadows"))


def test_a_cohort_from_before_versions_is_the_first_and_others_are_not_asked() -> None:
    origin = "EchoVLSM phantom simulator (echovlsm.phantom): no patient data"
    old = {"kind": "phantom", "origin": origin, "parameters": {"patients": 2}}
    require_phantom(old)
    with pytest.raises(ValueError, match="version 1"):
        require_phantom(old, 2)
    require_phantom({"kind": "real"}, 2)
    require_phantom({"kind": "phantom", "origin": "another simulator"}, 2)


def test_unknown_versions_and_ingredients_are_named(tmp_path: Path) -> None:
    patient = draw_cohort_patient(0, 0)
    with pytest.raises(ValueError, match="version=9: the phantom has versions 1, 2, 3"):
        simulate(patient, "4CH", "ED", 0, 64, version=9)
    with pytest.raises(ValueError, match="without='noise': choose of speckle"):
        write_phantom_cohort(tmp_path / "c", 2, 1, without=("noise",))
    with pytest.raises(ValueError, match="give a tuple"):
        simulate(patient, "4CH", "ED", 0, 64, without="speckle")
    assert not (tmp_path / "c").exists()


if __name__ == "__main__":
    PINNED.write_text(json.dumps({version: pinned(version) for version in VERSIONS}) + "\n")
