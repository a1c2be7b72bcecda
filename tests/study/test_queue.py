"""The queue of the study: every arm gets the steps, images, patients and seeds that its record says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from echovlsm import STRUCTURES
from echovlsm.base import files
from echovlsm.cohort.read import read_cohort
from echovlsm.evaluation.predictions import EPICARDIUM
from echovlsm.phantom import write_phantom_cohort
from echovlsm.phantom.versions import INGREDIENTS, require_phantom
from echovlsm.study import queue
from echovlsm.study.plan import (
    ALL,
    BOTH,
    HELD_OUT,
    NOTHING,
    PHANTOM,
    RATES,
    SDM,
    VALIDATION,
    WITHOUT,
    Recipe,
    Run,
    Source,
    blocks,
    digest,
    other_run,
    real_run,
    study,
)
from echovlsm.training import loop as training
from tests.conftest import ROOT

SMALL = Recipe(image_size=32, first=4, second=2, batch_size=3, look_every=2, holdout=0.2, score_size=32)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and three validation patients that stand for real ones."""
    root = tmp_path_factory.mktemp("cohorts") / "stand-in"
    write_phantom_cohort(root, 13, seed=8, size=64, splits=(10 / 13, 3 / 13, 0.0), progress=False, workers=1)
    return root


@pytest.fixture(scope="module")
def there(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> queue.Study:
    """The study with a denoiser of two steps and few synthetic images."""
    patch = pytest.MonkeyPatch()
    patch.setattr(queue, "SDM_STEPS", 2)
    patch.setattr(queue, "SAMPLING_STEPS", 1)
    patch.setattr(queue, "SYNTHETIC_IMAGES", 12)
    patch.setattr(queue, "PHANTOM_SIZE", 64)
    folder = tmp_path_factory.mktemp("study")
    yield queue.Study(cohort, folder / "runs", folder / "records", SMALL)
    patch.undo()


JOBS: dict[str, Run] = {
    "nothing": real_run("budget", NOTHING, None, 2, 0, SMALL),
    "phantom": real_run("budget", PHANTOM, Source(PHANTOM), 2, 0, SMALL),
    "few": real_run("budget", f"{SDM}-few", Source(SDM, 2, 0), 2, 0, SMALL),
    "both": real_run("budget", BOTH, Source(BOTH, ALL), 2, 0, SMALL),
    "joint": other_run("table", "joint", Source("joint", ALL), 0, SMALL),
    "synthetic": other_run("table", "synthetic", Source(SDM, ALL), 0, SMALL, model="unet"),
}


@pytest.fixture(scope="module")
def records(there: queue.Study) -> dict[str, dict]:
    """The record of each job."""
    return {name: there.carry_out(run) for name, run in JOBS.items()}


def test_every_arm_takes_the_same_steps_of_the_same_batches(
    there: queue.Study, records: dict[str, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, record in records.items():
        assert [cycle["steps"] for cycle in record["cycles"]] == [4, 2], name
        assert [cycle["step"] for cycle in record["cycles"]] == [[2, 4], [2]], name
    seen: list[list[int]] = []
    original = training._loss_and_logits

    def watched(model, bare, batch, loss, features):
        if model.training:
            seen.append(batch["index"].tolist())
        return original(model, bare, batch, loss, features)

    monkeypatch.setattr(training, "_loss_and_logits", watched)
    orders = {}
    for name in ("nothing", "phantom"):
        run = replace(JOBS[name], recipe=replace(SMALL, rate=5e-4))
        seen.clear()
        there.carry_out(run)
        assert [len(batch) for batch in seen] == [3] * 6, name
        orders[name] = list(seen)
    assert orders["nothing"][4:] == orders["phantom"][4:]
    assert orders["nothing"][:2] != orders["nothing"][4:]


def test_records_name_the_patients_that_were_learned_from(
    there: queue.Study, records: dict[str, dict]
) -> None:
    pool = set(there.parts["train"]["patient"])
    few = records["nothing"]["cycles"][1]["patients_seen"]
    assert len(few) == 2
    assert set(few) <= pool
    assert records["nothing"]["cycles"][0]["patients_seen"] == few
    for name in ("phantom", "both", "few"):
        assert records[name]["cycles"][1]["patients_seen"] == few, name
    assert records["few"]["cycles"][0]["patients_seen"] == few
    assert records["phantom"]["cycles"][0]["patients_seen"] == []
    drawn = read_cohort(there.folder / "cohorts" / "diffusion-real-002-seed0")
    sources = {name.rsplit("-", 1)[0] for name in drawn["patient"]}
    assert sources == set(few)


def test_arms_have_equally_many_synthetic_images(records: dict[str, dict]) -> None:
    counts = {name: [cycle["images"] for cycle in record["cycles"]] for name, record in records.items()}
    assert counts["nothing"] == [8, 8]
    assert counts["phantom"] == [12, 8]
    assert counts["few"] == [12, 8]
    assert counts["both"] == [24, 8]
    assert counts["synthetic"] == [12, 12]
    assert counts["joint"] == [32 + 12, 32 + 12]


def test_held_out_and_validation_patients_take_no_part_in_training(
    there: queue.Study, records: dict[str, dict], cohort: Path
) -> None:
    listed = read_cohort(cohort)
    learn, held, scored = (set(there.parts[name]["patient"]) for name in ("train", HELD_OUT, VALIDATION))
    assert not learn & held
    assert not (learn | held) & scored
    assert scored == set(listed.loc[listed["split"] == "val", "patient"])
    for record in records.values():
        assert {name.split()[0] for name in record["scores"][VALIDATION]["images"]} == scored
        assert {name.split()[0] for name in record["scores"][HELD_OUT]["images"]} == held


def test_a_run_that_chooses_the_recipe_never_sees_the_validation_patients(there: queue.Study) -> None:
    record = there.carry_out(replace(JOBS["nothing"], choice=True))
    assert set(record["scores"]) == {HELD_OUT}


def test_recorded_choices_have_no_validation_scores() -> None:
    folder = ROOT / "data/results/camus/study"
    found = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    if not found:
        pytest.skip("no run of the study is on record")
    known = {run.name for run in study()}
    assert {file.stem for file in folder.glob("*.json")} <= known
    for record in found:
        parts = {HELD_OUT} if record["choice"] else {HELD_OUT, VALIDATION}
        assert set(record["scores"]) == parts
        images = [{name.split()[0] for name in record["scores"][part]["images"]} for part in parts]
        assert len(images) == 1 or not images[0] & images[1]
        steps = record["recipe"]["first"] + record["recipe"]["second"]
        assert sum(cycle["steps"] for cycle in record["cycles"]) in (0, steps)


def test_scores_hold_the_three_structures_and_the_epicardium(records: dict[str, dict]) -> None:
    scores = records["nothing"]["scores"][VALIDATION]
    assert list(scores["dice"]) == [*STRUCTURES.values(), EPICARDIUM]
    assert set(map(len, scores["dice"].values())) == {len(scores["images"])}
    assert all(0 <= value <= 1 for values in scores["dice"].values() for value in values)


def test_a_finished_run_is_read_and_one_of_other_data_refused(
    there: queue.Study, records: dict[str, dict]
) -> None:
    file = there.record_of(JOBS["nothing"])
    before = file.stat().st_mtime_ns
    assert there.carry_out(JOBS["nothing"]) == json.loads(file.read_text())
    assert file.stat().st_mtime_ns == before
    file.write_text(json.dumps({**records["nothing"], "data_hash": "another"}))
    with pytest.raises(queue.QueueError, match="another data_hash"):
        there.carry_out(JOBS["nothing"])
    file.write_text(json.dumps(records["nothing"]))


def test_what_another_process_trains_is_left_to_it(there: queue.Study, monkeypatch) -> None:
    busy, free = (replace(JOBS["phantom"], recipe=replace(SMALL, rate=rate)) for rate in (3e-3, 4e-3))
    done: list[Run] = []

    def carry_out(run: Run) -> None:
        if run is busy and not done:
            raise files.InUseError("busy")
        done.append(run)
        there.record_of(run).write_text("{}")

    monkeypatch.setattr(there, "carry_out", carry_out)
    monkeypatch.setattr(queue.time, "sleep", lambda seconds: None)
    queue.work_through(there, [busy, free], float("inf"))
    assert [run for run in done if run in (busy, free)][:2] == [free, free] or done[:1] == [free]
    assert busy in done


def test_the_plan_shares_pretraining_and_names_no_run_twice() -> None:
    runs = study()
    assert len({run.name for run in runs}) == len(runs)
    parts = list(dict.fromkeys(run.part for run in runs))
    assert parts == [
        "recipe",
        "doubling",
        "rates",
        "budget",
        "table",
        "prompts",
        "frozen",
        "tuned",
        "ablation",
    ]
    assert len(blocks(runs)) > 15
    assert {(run.model, run.recipe.rate) for run in runs if not run.choice} == {
        *(("cris", Recipe().rate), ("unet", Recipe().rate), ("clipseg", RATES["clipseg"]))
    }
    final = [run for run in runs if not run.choice and run.cycles]
    assert {run.steps for run in final} == {4800}
    budget = pd.DataFrame([vars(run) for run in runs if run.part == "budget"])
    counts = budget.groupby(["arm", "patients"])["seed"].nunique()
    assert counts[NOTHING].to_dict() == {5: 5, 10: 3, 25: 5, 50: 3, 100: 3, 360: 3}
    assert counts["phantom"].equals(counts[NOTHING])
    assert counts[SDM].to_dict() == counts[BOTH].to_dict() == {5: 3, 25: 3, 100: 3}
    assert counts[f"{SDM}-few"].to_dict() == {25: 2, 100: 1}
    first = {
        digest(run.made_from(run.cycles[0])) for run in runs if run.arm == "phantom" and run.model == "cris"
    }
    assert len(first) == 5 + 1  # one a seed, and that of twice the steps
    assert not any(run.arm == "synthetic" and run.prompt == "P7" for run in runs)


def test_the_ablation_leaves_out_one_ingredient_and_sees_no_validation_patient() -> None:
    runs = [run for run in study() if run.part == "ablation"]
    assert all(run.choice for run in runs)
    table = pd.DataFrame([vars(run) for run in runs])
    seeds = table.groupby(["arm", "patients"])["seed"].agg(sorted).to_dict()
    assert set(seeds) == {(PHANTOM, 0), *((kind, n) for kind in WITHOUT for n in (0, 5))}
    assert all(found == [0, 1, 2] for found in seeds.values())
    assert sorted(WITHOUT.values()) == sorted(INGREDIENTS)
    for run in runs:
        first, second = (cycle.source for cycle in run.cycles)
        assert first == Source(run.arm)
        assert second == (Source("real", 5, run.seed) if run.patients else first)
    # what they are compared with shares their first cycles' seeds and their patients
    budget = [run for run in study() if run.part == "budget" and run.arm == PHANTOM and run.patients == 5]
    assert {(run.cycles[0].seed, run.cycles[1].source) for run in budget if run.seed < 3} == {
        (run.cycles[0].seed, run.cycles[1].source) for run in runs if run.patients == 5
    }


def test_a_phantom_without_an_ingredient_is_drawn_and_another_is_not_taken_for_it(
    there: queue.Study, records: dict[str, dict]
) -> None:
    kind, other = list(WITHOUT)[:2]
    none = there.carry_out(other_run("ablation", kind, Source(kind), 0, SMALL, choice=True))
    few = there.carry_out(real_run("ablation", kind, Source(kind), 2, 0, SMALL, choice=True))
    assert set(none["scores"]) == set(few["scores"]) == {HELD_OUT}
    assert none["cycles"][0] == few["cycles"][0]
    assert [cycle["images"] for cycle in none["cycles"]] == [12, 12]
    assert [cycle["images"] for cycle in few["cycles"]] == [12, 8]
    assert few["cycles"][0]["content"] != records["phantom"]["cycles"][0]["content"]
    cohorts = there.folder / "cohorts"
    require_phantom(read_cohort(cohorts / kind).attrs["meta"], without=(WITHOUT[kind],))
    shutil.copytree(cohorts / PHANTOM, cohorts / other)
    with pytest.raises(
        ValueError, match=f"{other}: holds phantoms of version 1; .* without {WITHOUT[other]}"
    ):
        there.phantom(other)
    shutil.rmtree(cohorts / other)


def test_what_is_left_counts_shared_cycles_once(there: queue.Study) -> None:
    runs = [replace(JOBS["phantom"], recipe=replace(SMALL, rate=9e-3)) for _ in range(2)]
    runs[1] = replace(runs[1], patients=5, last=replace(runs[1].last, source=Source("real", 5, 0)))
    table = queue.left(runs, there, dict.fromkeys(("cris", "clipseg", "unet"), 60.0))
    assert table["minutes"].sum() == pytest.approx((4 + 2 + 2) / 4)
    assert table["done"].sum() == 0
