"""Scoring a folder of patients with a kept run: whom, with what, and what it leaves behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from echovlsm import STRUCTURES, models
from echovlsm.base.run_folder import RunFolder
from echovlsm.cohort.images import load_labels, resize_labels
from echovlsm.cohort.read import read_cohort
from echovlsm.evaluation import predictions
from echovlsm.evaluation.predictions import labels_of
from echovlsm.evaluation.runs import EvaluationError, choose_images, kept_run
from echovlsm.evaluation.scoring import METRICS, score, three_structures
from tests.conftest import ROOT
from tests.conftest import call as echovlsm

LISTS = {"train": "training", "val": "validation", "test": "testing"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run folder around the tiny CRIS weights, at another size than theirs."""
    record = RunFolder(tmp_path_factory.mktemp("runs") / "kept")
    weights = ROOT / "data" / "weights" / "cris-tiny"
    parameters = {"model": "cris", "prompt": "P3", "encoders": "unfrozen", "seed": 1, "scale": "smoke"}
    record.start(parameters | {"strategy": "real"})
    record.save_weights(models.load("cris", weights, image_size=64))
    record.finish()
    return record.path


@pytest.fixture
def cohort(phantom_cohort: Path, tmp_path: Path) -> Path:
    """A copy of the phantom cohort to spoil."""
    copy = tmp_path / "download"
    shutil.copytree(phantom_cohort, copy)
    return copy


def patients(cohort: Path, split: str = "auto") -> set[str]:
    return set(choose_images(cohort, split)[0]["patient"])


def test_one_row_a_mask_with_all_five_metrics(cohort: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "mine.parquet"
    result = echovlsm("evaluate", cohort, run, "--out", out, "--size", 64, "--threads", 1)
    assert result.exit_code == 0, result.output
    scores, frames = pd.read_parquet(out), read_cohort(cohort)
    test = frames[frames["split"] == "test"]
    assert len(scores) == 4 * len(test)  # three structures and the epicardium
    three = scores[scores["structure"] != predictions.EPICARDIUM]
    assert set(scores["patient"]) == set(test["patient"])
    assert set(METRICS) <= set(scores.columns)
    assert set(scores["prompt"]) == {"P3"}
    record = yaml.safe_load((tmp_path / "results" / "mine.yaml").read_text())
    assert record["dice"]["mean"] == pytest.approx(three.groupby("structure")["dice"].mean().mean())
    assert record["peak_memory_gib"] > 0
    assert f"{record['dice']['mean']:.3f}" in result.output


def test_scores_are_those_of_the_model_in_the_run(cohort: Path, run: Path) -> None:
    frames, _ = choose_images(cohort)
    kept = kept_run(run)
    logits, _ = predictions.predict_run(kept, frames)
    assert logits.shape == (len(frames), 3, 64, 64)
    table = predictions.score_run(kept, frames, logits, 64)
    labels, place = load_labels(frames.iloc[-1]), len(table) - 4
    cavity, ring = (answer.sigmoid().numpy() for answer in logits[-1, :2])
    # what is more probable than not in either is so in the larger of both probabilities
    pairs = {
        place: (cavity, labels == 1),
        place + 3: (np.maximum(cavity, ring), (labels == 1) | (labels == 2)),
    }
    for row, (found, truth) in pairs.items():
        expected = score(found, truth, size=64)
        values = [expected[name] for name in METRICS]
        assert table.loc[row, list(METRICS)].tolist() == pytest.approx(values, nan_ok=True)
    assert table.loc[place + 3, "structure"] == predictions.EPICARDIUM


def test_whatever_the_lists_say(cohort: Path) -> None:
    split = {name: set(part["patient"]) for name, part in read_cohort(cohort).groupby("split")}
    everyone = set().union(*split.values())
    lists = {name: cohort / "database_split" / f"subgroup_{word}.txt" for name, word in LISTS.items()}
    assert patients(cohort) == split["test"]
    assert patients(cohort, "val") == split["val"]
    assert patients(cohort, "all") == everyone
    # a folder whose database_split lists only testing patients, some of them elsewhere
    for name in ("train", "val"):
        lists[name].unlink()
    lists["test"].write_text("\n".join([*sorted(split["test"]), "patient0499"]))
    assert patients(cohort) == split["test"]
    # lists that do not name those who are here
    lists["test"].write_text("patient0499\n")
    assert patients(cohort) == everyone
    with pytest.raises(EvaluationError, match="--split all"):
        choose_images(cohort, "test")
    # no lists at all, and the patients' folders themselves
    shutil.rmtree(cohort / "database_split")
    assert patients(cohort) == patients(cohort / "database_nifti") == everyone
    bare = cohort.with_name("bare")
    shutil.move(cohort / "database_nifti", bare)
    shutil.copy(cohort / "cohort.yaml", bare)
    assert patients(bare) == everyone


def test_nobody_is_scored_by_accident(cohort: Path) -> None:
    (cohort / "database_split" / "subgroup_testing.txt").write_text("")
    with pytest.raises(EvaluationError, match=r"name train and val patients.*--split val, train or all"):
        choose_images(cohort)
    with pytest.raises(EvaluationError, match="is not known"):
        choose_images(cohort, "testing")


def test_images_without_masks(cohort: Path) -> None:
    masks = sorted(cohort.rglob("*_gt.nii.gz"))
    frames = read_cohort(cohort)
    gone = frames.loc[frames["split"] == "test", "labels"].iloc[0]
    Path(gone).unlink()
    assert "1 images without a mask are left out" in choose_images(cohort)[1]
    for mask in masks:
        mask.unlink(missing_ok=True)
    with pytest.raises(EvaluationError, match="nothing to score with"):
        choose_images(cohort)


def test_errors_name_what_is_wrong(cohort: Path, run: Path, tmp_path: Path) -> None:
    unfinished = RunFolder(tmp_path / "unfinished")
    unfinished.start({"model": "cris", "prompt": "P1"})
    for words, why in (
        ((cohort, tmp_path), "no training's run.yaml"),
        ((cohort, unfinished.path), "no finished training"),
        ((tmp_path / "nowhere", run), "no such folder"),
        ((cohort, run, "--out", tmp_path / "scores.csv"), "must end in .parquet"),
    ):
        result = echovlsm("evaluate", *words)
        assert result.exit_code == 2, (words, result.output)
        assert why in result.output
    assert not list(tmp_path.glob("*.parquet"))


def test_clinical_ends_need_a_pixel_size(
    phantom_cohort: Path, cohort: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    result = echovlsm(
        "evaluate", phantom_cohort, run, "--out", out, "--size", 64, "--clinical", tmp_path / "ends.csv"
    )
    assert result.exit_code == 0, result.output
    ends = pd.read_csv(tmp_path / "ends.csv")
    assert set(ends["source"]) == {"reference", "prediction"}
    assert ends.loc[ends["source"] == "reference", "ef_percent"].between(5, 90).all()


def test_where_masks_overlap_the_surer_one_counts() -> None:
    logits = torch.full((3, 4, 4), -9.0)
    logits[0, :2] = 1.0
    logits[1, 1:3] = 2.0
    labels = labels_of(logits, (4, 4))
    first, second, _ = STRUCTURES
    assert labels.dtype == np.uint8
    assert labels[:, 0].tolist() == [first, second, second, 0]


def test_a_record_carries_numbers_only(phantom_cohort: Path, run: Path, tmp_path: Path) -> None:
    words = ("--out", tmp_path / "s.parquet", "--size", 64, "--split", "val", "--record", tmp_path / "on")
    result = echovlsm("evaluate", phantom_cohort, run, *words)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "on" / "cris-P3-real-unfrozen-seed1"
    assert {path.name for path in folder.iterdir()} == {"scores.parquet", "clinical.csv", "run.yaml"}
    text = (folder / "run.yaml").read_text()
    record = yaml.safe_load(text)
    assert record["evaluation"]["parameters"]["evaluate_on"] == "val"
    assert record["peak_memory_gib"] > 0
    assert str(tmp_path) not in text


# -- answers about images -----------------------------------------------------------------------------------


def _answers(frames: pd.DataFrame, size: int = 64) -> torch.Tensor:
    """Logits that repeat the reference masks at another size, as far as that can."""
    masks = [[load_labels(row) == value for value in STRUCTURES] for row in frames.itertuples()]
    exact = torch.from_numpy(np.array(masks)).float() * 20 - 10
    return torch.nn.functional.interpolate(exact, size=(size, size), mode="bilinear")


def test_images_have_a_score_a_structure_and_the_epicardiums(phantom_frames: pd.DataFrame) -> None:
    frames = phantom_frames.head(3).reset_index(drop=True)
    logits = _answers(frames)
    scores = predictions.score_images(frames, logits, 64, strategy="mine")
    assert list(scores.columns[:4]) == ["strategy", "patient", "view", "phase"]
    assert scores["structure"].tolist() == [*STRUCTURES.values(), predictions.EPICARDIUM] * 3
    assert scores["dice"].min() > 0.8
    native = predictions.score_images(frames, logits, 0)
    assert set(native["unit"]) == {"mm"}


def test_the_prompt_matrix_is_high_where_the_words_are_obeyed(phantom_frames: pd.DataFrame) -> None:
    frames = phantom_frames.head(4).reset_index(drop=True)
    logits = _answers(frames)
    labels = torch.stack([resize_labels(load_labels(row), 64) for row in frames.itertuples()])
    obeyed = predictions.prompt_matrix(logits, labels)
    names = list(STRUCTURES.values())
    assert list(obeyed.columns) == [*names, predictions.UNION]
    assert np.diag(obeyed[names]).min() > 0.8
    assert (obeyed[names].to_numpy() - np.diag(np.diag(obeyed[names]))).max() < 0.2
    # a model that outlines everything, whatever it is asked
    everything = predictions.prompt_matrix(logits.amax(dim=1, keepdim=True).expand_as(logits), labels)
    assert everything[predictions.UNION].min() > 0.9
    assert everything.nunique().eq(1).all()


def test_the_worst_images_come_first_with_their_place(phantom_frames: pd.DataFrame) -> None:
    frames = phantom_frames.head(4).reset_index(drop=True)
    logits = _answers(frames)
    logits[2], logits[1, 0] = -10, -10
    scores = three_structures(predictions.score_images(frames, logits, 64))
    worst = predictions.worst_images(scores, frames, 2)
    assert list(worst.index) == [2, 1]
    assert worst[2] == 0
    row = frames.iloc[1]
    own = scores[(scores[["patient", "view", "phase"]] == row[["patient", "view", "phase"]]).all(axis=1)]
    assert worst[1] == pytest.approx(own["dice"].mean())
    figure = predictions.plot_answers(worst, frames, logits, "the worst")
    assert figure.axes[0].get_title().endswith(": 0.00")
