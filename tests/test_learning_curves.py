"""Learning curves: nested patients, runs that repeat themselves and are kept, plans that do not mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT

from echovlsm import learning_curves
from echovlsm.cohort import CohortError
from echovlsm.learning_curves import (
    LONGER,
    NONE,
    CurveError,
    Plan,
    Run,
    Study,
    all_runs,
)
from echovlsm.real_study import comparable, put_on_record
from echovlsm.strategies import StrategyError


@pytest.fixture(scope="module")
def plan(phantom_cohort: Path) -> Plan:
    return Plan(
        str(phantom_cohort),
        {"phantom": [str(phantom_cohort)], "both": [str(phantom_cohort)] * 2},
        weights=str(ROOT / "data" / "weights" / "cris-tiny"),
        image_size=64,
        holdout=0.4,
        steps=3,
        pretraining_steps=2,
        batch_size=4,
        looks=(1, 2),
        score_size=64,
    )


@pytest.fixture(scope="module")
def study(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(plan, tmp_path_factory.mktemp("curves"))


def test_a_study_cut_short_is_a_whole_grid_of_fewer_seeds() -> None:
    found = all_runs([NONE, "sdm"], [5, 25], [0, 1, 2], control=[25])
    assert found[:2] == [Run(NONE, 0, 0), Run("sdm", 0, 0)]
    assert {one.seed for one in found[:6]} == {0}
    assert found[10] == Run(LONGER, 25, 0)
    assert len(found) == len(set(found)) == 15


def test_the_control_takes_the_steps_that_a_pretraining_would(study: Study) -> None:
    steps = [step for step, _ in study.run(Run(LONGER, 1, 5))["curve"]]
    assert steps == [0, 1, 2, 5]


def test_held_out_and_scored_patients_are_never_learned(study: Study) -> None:
    assert set(study.pool["split"]) == {"train"}
    assert not set(study.patients) & set(study.scored["patient"])
    assert len(study.patients) == 2  # of three, one is held out
    with pytest.raises(StrategyError, match="3 patients of 2"):
        study.run(Run(NONE, 3, 0))


def test_a_run_repeats_itself_and_is_kept(study: Study, plan: Plan, tmp_path: Path, monkeypatch) -> None:
    one = Run("phantom", 1, 5)
    record = study.run(one)
    assert [step for step, _ in record["curve"]] == [0, 1, 2, 3]
    assert len(record["learned_from"]) == 1
    torch.rand(3)  # another state of the generators must not matter
    again = Study(plan, tmp_path).run(one)
    assert (again["dice"], again["curve"]) == (record["dice"], record["curve"])
    monkeypatch.setattr(learning_curves, "_train", None)
    assert study.run(one) == record


def test_pretraining_changes_where_a_run_starts(study: Study) -> None:
    starts = [study.run(Run(name, 0, 0)) for name in (NONE, "phantom", "both")]
    assert starts[0]["dice"] != starts[1]["dice"] != starts[2]["dice"]
    assert not any(record["learned_from"] for record in starts)


def test_an_untrained_score_is_that_of_scoring(study: Study) -> None:
    """The Dice of masks drawn here agrees with `scoring.score` at the same size."""
    from echovlsm.scoring import score
    from echovlsm.training import predict

    model = study.load("phantom")
    found = study.run(Run("phantom", 0, 0))["dice"][0]
    answer = predict(model, study.triplets(study.scored, model, learn=False))[0].sigmoid().numpy()
    truth = study._truth[0].numpy()
    expected = [score(answer[place], truth == place + 1, size=64)["dice"] for place in range(3)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_tables_hold_one_row_a_mask_and_say_how_they_were_made(study: Study, tmp_path: Path) -> None:
    wanted = all_runs([NONE, "phantom"], [1], [0])
    for one in wanted:
        study.run(one)
    folder = put_on_record(study, [*wanted, Run(NONE, 2, 9)], tmp_path)
    scores, curves = pd.read_parquet(folder / "curve_scores.parquet"), pd.read_csv(folder / "curves.csv")
    assert len(scores) == len(wanted) * len(study.scored) * 3
    assert set(scores["trained_on"]) == {0, 1}
    # a point that one of the pretrainings lacks would compare unlike seeds
    (study.folder / Run("phantom", 1, 0).file).rename(study.folder / "away")
    assert {(one.patients, one.seed) for one in comparable(study, wanted)} == {(0, 0)}
    (study.folder / "away").rename(study.folder / Run("phantom", 1, 0).file)
    assert set(curves["step"]) == {0, 1, 2, 3}
    text = (folder / "run.yaml").read_text()
    assert "status: partial" in text  # one was asked for that is not there
    assert "peak_memory_gib" in text
    assert str(study.folder) not in text
    assert not list(folder.glob("*.safetensors"))


@pytest.mark.parametrize("change", [{"steps": 4}, {"learning_rate": 0.1}, {"pretraining": {"phantom": []}}])
def test_plans_do_not_mix(study: Study, plan: Plan, change: dict) -> None:
    with pytest.raises(CurveError, match="made otherwise"):
        Study(replace(plan, **change), study.folder)


def test_a_cohort_that_is_not_there_is_named(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="nowhere"):
        Study(replace(plan, pretraining={"sdm": [str(tmp_path / "nowhere")]}), tmp_path / "out")
