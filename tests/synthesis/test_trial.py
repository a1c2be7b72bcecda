"""The steps of notebook 02: who is held out, which denoiser, which images, which sampler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from echovlsm.cohort.images import load_labels
from echovlsm.cohort.read import cohort_hash, read_cohort
from echovlsm.synthesis import trial as study
from echovlsm.synthesis.fidelity import label_agreement
from echovlsm.synthesis.labels import source_maps
from echovlsm.synthesis.measures import ImageSet
from echovlsm.synthesis.process import sample
from echovlsm.synthesis.sampling import ensure_cohort
from echovlsm.synthesis.unet import SemanticUNetConfig
from echovlsm.synthesis.weights import (
    WeightsError,
    load_denoiser,
    save_denoiser,
    trained_on,
)
from tests.conftest import ROOT
from tests.synthesis.test_unet import TINY, random_unet

SMALL = SemanticUNetConfig(**{**vars(TINY), "image_size": 32})
TRAIN = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "check_every": 2, "seed": 1, "progress": False}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_denoiser(random_unet(SMALL), "v_prediction", tmp_path / "weights")
    return tmp_path / "weights"


def test_sources_are_limited_by_patient_and_validation_in_proportion(phantom_frames: pd.DataFrame) -> None:
    there = phantom_frames.groupby("split")["patient"].nunique()
    few = study.limit_sources(phantom_frames[phantom_frames["split"] != "test"], 2, seed=3)
    kept = few.groupby("split")["patient"].nunique()
    assert kept["train"] == 2
    assert kept["val"] == max(1, round(there["val"] * 2 / there["train"]))
    whole = phantom_frames[phantom_frames["patient"].isin(few["patient"])]
    assert len(few) == len(whole), "a patient's images stay together"
    assert few.attrs["meta"] == phantom_frames.attrs["meta"]
    with pytest.raises(ValueError, match=r"source_patients: 9999 of .* 0 takes all"):
        study.limit_sources(phantom_frames, 9999, seed=3)


def test_the_held_out_split_takes_no_part(phantom_frames: pd.DataFrame) -> None:
    work, held_out = study.divide(phantom_frames, "test", 0.0, 0)
    assert set(held_out["split"]) == {"test"}
    used = set(work.loc[work["split"].isin(["train", "val"]), "patient"])
    assert not used & set(held_out["patient"])
    with pytest.raises(ValueError, match="val also chooses the epochs; set `holdout`"):
        study.divide(phantom_frames, "val", 0.0, 0)
    work, held_out = study.divide(phantom_frames, "val", 0.4, 0)
    used = set(work.loc[work["split"].isin(["train", "val"]), "patient"])
    assert set(held_out["patient"]) == set(phantom_frames.loc[phantom_frames["split"] == "val", "patient"])
    assert not used & set(held_out["patient"])
    assert (work["split"] == "val").any()
    with pytest.raises(ValueError, match="no image with a mask in test"):
        study.divide(phantom_frames[phantom_frames["split"] != "test"], "test", 0.0, 0)


def test_labels_for_scoring_are_whole(phantom_frames: pd.DataFrame) -> None:
    """A heart may reach beyond the sector; what is scored must not be cut there."""
    found = study.image_set(phantom_frames, 96)
    wall = [(load_labels(row) == 2).mean() for row in phantom_frames.itertuples()]
    assert (found.labels == 2).mean() == pytest.approx(np.mean(wall), rel=0.03)
    assert ((found.labels == 2) & (found.maps == 0)).any(), "some wall lies outside, and is scored"


def test_a_denoiser_is_trained_once_and_goes_on_after_an_interrupt(
    phantom_frames: pd.DataFrame, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.denoiser_for(weights, tmp_path, None) == weights
    from echovlsm.synthesis import train

    whole = study.denoiser_for(weights, tmp_path / "a", phantom_frames, **TRAIN)
    draw, steps = train._draw, []

    def dies(*arguments):
        steps.append(arguments[6])
        if len(steps) == 4:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(train, "_draw", dies)
    with pytest.raises(KeyboardInterrupt):
        study.denoiser_for(weights, tmp_path / "b", phantom_frames, **TRAIN)
    assert not (tmp_path / "b" / "sdm").exists()
    resumed = study.denoiser_for(weights, tmp_path / "b", phantom_frames, **TRAIN)
    assert steps == [0, 1, 2, 3, 2, 3]
    one, other = (load_denoiser(folder)[0].state_dict() for folder in (whole, resumed))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    learned = phantom_frames[phantom_frames["split"] == "train"]
    assert trained_on(resumed) == {"name": "phantom-test", "kind": "phantom", "hash": cohort_hash(learned)}
    assert (resumed / "history.csv").is_file()


def test_a_synthetic_cohort_is_drawn_when_something_it_hangs_on_changes(
    phantom_frames: pd.DataFrame, weights: Path, tmp_path: Path
) -> None:
    root, options = tmp_path / "synthetic", {"variants": 1, "steps": 2, "progress": False}
    assert ensure_cohort(root, phantom_frames, weights, **options)
    before = cohort_hash(root)
    assert not ensure_cohort(root, phantom_frames, weights, **options)
    assert ensure_cohort(root, phantom_frames, weights, **{**options, "steps": 3})
    assert cohort_hash(root) != before
    assert read_cohort(root).attrs["meta"]["parameters"]["seconds"] > 0
    save_denoiser(random_unet(SMALL, seed=1), "v_prediction", weights)
    assert ensure_cohort(root, phantom_frames, weights, **{**options, "steps": 3})


def test_a_cohort_that_is_not_synthetic_is_never_replaced(
    phantom_cohort: Path, phantom_frames: pd.DataFrame, weights: Path
) -> None:
    before = cohort_hash(phantom_cohort)
    with pytest.raises(ValueError, match="holds a phantom cohort; name another folder"):
        ensure_cohort(phantom_cohort, phantom_frames, weights, variants=1, progress=False)
    assert cohort_hash(phantom_cohort) == before


def test_synthetic_images_keep_their_source_patient_and_sector(
    phantom_frames: pd.DataFrame, weights: Path, tmp_path: Path
) -> None:
    root = tmp_path / "synthetic"
    ensure_cohort(root, phantom_frames, weights, variants=2, steps=2, progress=False)
    drawn = read_cohort(root)
    found = study.image_set(drawn, 32, phantom_frames, pd.read_csv(root / "provenance.csv"))
    assert len(set(found.patients)) == drawn["patient"].nunique() / 2
    row = drawn.iloc[-1]
    source = phantom_frames[
        (phantom_frames["patient"] == found.patients[-1])
        & (phantom_frames["view"] == row["view"])
        & (phantom_frames["phase"] == row["phase"])
    ]
    np.testing.assert_array_equal(found.maps[-1] > 0, source_maps(source, 32).maps[0] > 0)


def test_samplers_are_compared_on_the_same_label_maps(phantom_frames: pd.DataFrame) -> None:
    model, schedule = load_denoiser(ROOT / "data" / "weights" / "sdm-tiny")
    source = study.image_set(phantom_frames, 96)

    def features(images: np.ndarray) -> np.ndarray:
        return images[:, ::12, ::12].reshape(len(images), -1).astype(float)

    plan = [("ddpm", 3), ("dpm-solver++", 3), ("heun", 2), ("dpm-solver++", 3)]
    options = {"repeats": 20, "progress": False}
    trials = study.compare_samplers(model, schedule, phantom_frames, plan, 4, source, features, **options)
    assert list(trials["evaluations"]) == [3, 3, 3, 3]
    assert trials["speed-up"].iloc[0] == 1
    for name in study.MEASURES:
        assert trials[f"±d {name}"].iloc[0] == 0
        assert trials[name].iloc[1] == trials[name].iloc[3], "the same sampler draws the same"
        assert trials[f"± {name}"].iloc[0] > 0


def test_the_distances_are_zero_for_the_source_itself(phantom_frames: pd.DataFrame) -> None:
    source = study.image_set(phantom_frames, 96)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(96 * 96, 6)) / 96

    def project(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1) @ features

    distances = study._Distances(source, project)
    same = dict(zip(study.MEASURES, distances(distances.source), strict=True))
    brighter = np.minimum(source.images.astype(int) + 30, 255).astype(np.uint8)
    other = dict(zip(study.MEASURES, distances(distances.parts(brighter, source.maps)), strict=True))
    assert same["power spectrum (dB)"] == same["grey levels"] == same["speckle SNR"] == 0
    assert other["grey levels"] == pytest.approx(30, abs=3)
    assert other["speckle SNR"] > 0
    assert other["kernel distance"] > same["kernel distance"]


def test_the_tiny_weights_draw_what_the_label_map_says(phantom_frames: pd.DataFrame) -> None:
    """Cavities are dark, the wall is bright, and outside the sector there is nothing."""
    model, schedule = load_denoiser(ROOT / "data" / "weights" / "sdm-tiny")
    maps = source_maps(phantom_frames.iloc[:4], 96).maps
    drawn = sample(model, schedule, maps, range(4), scheduler="sde-dpm-solver++", steps=10)
    cavity, wall, outside = (drawn[maps == value].mean() for value in (1, 3, 0))
    assert outside < 6
    assert wall > cavity + 20
    with pytest.raises(WeightsError):
        load_denoiser(ROOT / "data" / "weights" / "clipseg-tiny")


def test_a_segmenter_learns_from_a_frames_table(phantom_frames: pd.DataFrame, tmp_path: Path) -> None:
    net = study.train_segmenter(
        phantom_frames, tmp_path / "state", size=96, updates=60, seed=0, progress=False
    )
    known = study.image_set(phantom_frames[phantom_frames["split"] == "train"], 96)
    dice = label_agreement(net.segment(known.images), known.labels).mean()
    assert dice["left ventricular cavity"] > 0.5
    assert not (tmp_path / "state").exists()
    assert isinstance(known, ImageSet)
