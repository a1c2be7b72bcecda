"""The dry run: what is missing is named with a remedy; nothing is written; the same way works in small."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from echovlsm import models
from echovlsm.study import dry_run, dry_run_checks, run_costs
from echovlsm.study.parameters import ParameterError
from tests.conftest import ROOT, WEIGHTS, call

CRIS = ROOT / "data" / "weights" / "cris-tiny"
TEXTS = [
    "Left ventricular cavity of the heart.",
    "Myocardium of the heart.",
    "Left atrium cavity of the heart.",
]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project in which a run may write."""
    root = tmp_path / "site"
    root.mkdir()
    for name in ("_config.yml", "_toc.yml", "requirements.lock", "CITATION.cff"):
        shutil.copy(ROOT / name, root / name)
    (root / "data").mkdir()
    for name in ("echovlsm", "book", "notebooks", "data/weights", "data/results"):
        (root / name).symlink_to(ROOT / name)
    monkeypatch.setenv("ECHOVLSM_ROOT", str(root))
    monkeypatch.setenv("ECHOVLSM_CACHE", str(root / "runs" / "cache"))
    return root


@pytest.fixture
def values(site: Path, phantom_cohort: Path) -> Callable[..., dict[str, Any]]:
    """The parameters of a small run, with changes."""

    def made(**changes: Any) -> dict[str, Any]:
        return dry_run.settings("smoke", {"cohort": str(phantom_cohort), "threads": 1, **changes})

    return made


def _row(table: pd.DataFrame, check: str) -> pd.Series:
    (at,) = table.index[table["check"] == check]
    return table.loc[at]


def _failed(table: pd.DataFrame) -> list[str]:
    assert (table.loc[~table["ok"], "remedy"] != "").all()
    return table.loc[~table["ok"], "check"].tolist()


# -- all is there -----------------------------------------------------------------------------------------


def test_a_run_that_can_start_is_told_and_nothing_is_written(site: Path, values: Callable) -> None:
    before = sorted(site.rglob("*"))
    table = dry_run.dry_run(values(prompt="P7", encoders="frozen"))
    assert sorted(site.rglob("*")) == before
    assert list(table.columns) == ["check", "value", "ok", "remedy"]
    assert _failed(table) == []
    assert "phantom-test (phantom): 3 train, 2 val, 1 test patients" in _row(table, "cohort")["value"]
    assert "24 images, four a patient" in _row(table, "patients")["value"]
    assert _row(table, "structures")["value"] == "all 3 in 24 masks"
    assert "clipseg, 3.6 million parameters, 0.2 of them learn" in _row(table, "weights")["value"]
    assert "of 77 tokens" in _row(table, "prompts")["value"]
    assert "GiB" in _row(table, "memory")["value"]
    assert "2 steps of" in _row(table, "time")["value"]  # 12 images, 8 a step
    assert "a run can start" in dry_run.report(table)


def test_the_cache_is_as_before_afterwards(values: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    dry_run.dry_run(values(), measure=False)
    assert os.environ["ECHOVLSM_CACHE"].endswith("cache")
    monkeypatch.delenv("ECHOVLSM_CACHE")
    dry_run.dry_run(values(), measure=False)
    assert "ECHOVLSM_CACHE" not in os.environ


def test_the_text_blind_reference_is_looked_at_as_well(values: Callable) -> None:
    assert _failed(dry_run.dry_run(values(model="unet", weights=""))) == []


# -- something is missing ---------------------------------------------------------------------------------


def test_a_missing_cohort_is_one_clear_line(values: Callable, tmp_path: Path) -> None:
    table = dry_run.dry_run(values(cohort=str(tmp_path / "nowhere")))
    assert _failed(table) == ["cohort"]
    assert "nowhere: no such folder" in _row(table, "cohort")["remedy"]
    assert "\n" not in _row(table, "cohort")["remedy"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": "data/weights/nowhere"}, "data/weights/nowhere does not exist"),
        ({"weights": "somebody/never-fetched"}, "hub id and not on this machine.*hf download.*--weights"),
        ({"weights": "data/weights/cris-tiny"}, "holds a 'cris' model, not CLIPSeg"),
        ({"model": "cris", "weights": "data/weights/nowhere"}, "echovlsm weights convert"),
        ({"image_size": 100}, "multiples of 8"),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit(values: Callable, changes: dict, told: str) -> None:
    table = dry_run.dry_run(values(**{"weights": str(WEIGHTS), **changes}), measure=False)
    assert _failed(table) == ["weights"]
    assert pd.Series([_row(table, "weights")["remedy"]]).str.contains(told).all()


@pytest.mark.parametrize(("name", "weights"), [("clipseg", WEIGHTS), ("cris", CRIS)])
def test_a_missing_tensor_is_named(values: Callable, tmp_path: Path, name: str, weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(weights, tmp_path / "w")
    tensors = load_file(weights / "model.safetensors")
    gone = next(key for key in tensors if "decoder" in key)
    del tensors[gone]
    save_file(tensors, tmp_path / "w" / "model.safetensors", metadata={"format": "pt"})
    table = dry_run.dry_run(values(model=name, weights=str(tmp_path / "w")), measure=False)
    assert _failed(table) == ["weights"]
    assert gone in _row(table, "weights")["remedy"]


def test_fp16_without_a_gpu_is_refused(values: Callable) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    table = dry_run.dry_run(values(mixed_precision="fp16"))
    assert _failed(table) == ["precision"]
    assert "choose bf16" in _row(table, "precision")["remedy"]
    assert "measured in float32" in _row(table, "memory")["value"]  # the rest is still looked at


def test_patients_that_a_run_needs_are_missed(values: Callable, phantom_cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_cohort, tmp_path / "c")
    listed = (tmp_path / "c/database_split/subgroup_training.txt").read_text().split()
    shutil.rmtree(tmp_path / "c/database_nifti" / listed[0])
    table = dry_run.dry_run(values(cohort=str(tmp_path / "c")), measure=False)
    assert "absent patients" in _failed(table)
    assert "1 train listed without a folder" in _row(table, "absent patients")["value"]
    assert listed[0] in _row(table, "absent patients")["remedy"]


def test_absent_testing_patients_matter_only_if_they_are_to_be_scored(
    values: Callable, phantom_cohort: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_cohort, tmp_path / "c")
    meta = yaml.safe_load((phantom_cohort / "cohort.yaml").read_text())
    meta.pop("frames", None)
    (tmp_path / "c/cohort.yaml").write_text(yaml.safe_dump(meta))
    for name in (tmp_path / "c/database_split/subgroup_testing.txt").read_text().split():
        shutil.rmtree(tmp_path / "c/database_nifti" / name)
    table = dry_run.dry_run(values(cohort=str(tmp_path / "c")), measure=False)
    assert _failed(table) == ["cohort", "absent patients"]
    assert "evaluate_on=val" in _row(table, "cohort")["remedy"]
    others = dry_run.dry_run(values(cohort=str(tmp_path / "c"), evaluate_on="val"), measure=False)
    assert _failed(others) == []


def test_a_structure_that_no_mask_shows_is_named(values: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    real = dry_run_checks.load_labels

    def without_atrium(row: Any):
        labels = real(row).copy()
        labels[labels == 3] = 0
        return labels

    monkeypatch.setattr(dry_run_checks, "load_labels", without_atrium)
    table = dry_run.dry_run(values(), measure=False)
    assert _failed(table) == ["structures"]
    assert "no left atrium cavity in 24 masks" in _row(table, "structures")["value"]


def test_a_broken_file_is_named(values: Callable, phantom_cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom_cohort, tmp_path / "c")
    mask = next((tmp_path / "c").rglob("*_gt.nii.gz"))
    mask.write_bytes(mask.read_bytes()[:-40])
    table = dry_run.dry_run(values(cohort=str(tmp_path / "c")), measure=False)
    assert "broken files" in _failed(table)
    assert mask.name in _row(table, "broken files")["remedy"]


def test_metadata_that_a_prompt_says_must_be_there_or_be_left_out(
    values: Callable, phantom_cohort: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_cohort, tmp_path / "c")
    for cfg in (tmp_path / "c").rglob("Info_*.cfg"):
        cfg.write_text("".join(line + "\n" for line in cfg.read_text().splitlines() if "Age" not in line))
    cohort = str(tmp_path / "c")
    for changes, failed in (
        ({"prompt": "P4"}, []),
        ({"prompt": "P5", "missing": "omit"}, []),
        ({"prompt": "P5"}, ["metadata", "prompts"]),
    ):
        table = dry_run.dry_run(values(cohort=cohort, **changes), measure=False)
        assert _failed(table) == failed
        assert "24 without age of 24 images" in _row(table, "metadata")["value"]
    assert "P5 says age" in _row(table, "metadata")["remedy"]


def test_a_strategy_asks_for_its_synthetic_cohort(values: Callable, phantom_cohort: Path) -> None:
    table = dry_run.dry_run(values(strategy="synth-PT:real-FT", synthetic="data/cohorts/none"), measure=False)
    assert _failed(table) == ["strategy"]
    assert "data/cohorts/none: no such folder" in _row(table, "strategy")["remedy"]
    assert "notebook 02" in _row(table, "strategy")["remedy"]
    both = dry_run.dry_run(values(strategy="synth-PT:real-FT", synthetic=str(phantom_cohort)))
    assert _failed(both) == []
    assert "2 steps" in _row(both, "time")["value"]
    assert " and 2 steps" in _row(both, "time")["value"]  # the synthetic run comes before


def test_a_prompt_longer_than_the_text_encoder_is_named(values: Callable) -> None:
    model = models.load("cris", CRIS)
    model.longest = 6
    asked = values(model="cris", weights=str(CRIS), prompt="P5")
    frames = dry_run_checks.check_cohort(asked)[1]
    (row,), texts = dry_run_checks.check_prompts(asked, frames, [], model)
    assert not row.ok
    assert "longer than 6 tokens" in row.remedy
    assert texts == []


def test_a_tokenizer_of_another_model_is_named(values: Callable) -> None:
    model = models.load("clipseg", WEIGHTS)
    model.segmenter.config.text_config.vocab_size = 300
    asked = values()
    (row,), _ = dry_run_checks.check_prompts(asked, dry_run_checks.check_cohort(asked)[1], [], model)
    assert not row.ok
    assert "belong together" in row.remedy


def test_too_large_a_batch_is_told_with_one_that_fits(
    values: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_costs, "process_memory", lambda: 0)
    monkeypatch.setattr(run_costs, "device_memory", lambda: 200.0 * 2**20)
    table = dry_run.dry_run(values(batch_size=12, image_size=96))
    assert _failed(table) == ["memory"]
    fits = int(_row(table, "memory")["remedy"].split()[0].removeprefix("batch_size="))
    assert 0 < fits < 12
    assert _failed(dry_run.dry_run(values(batch_size=fits, image_size=96))) == []
    assert _failed(dry_run.dry_run(values(batch_size=fits + 1, image_size=96))) == ["memory"]


# -- costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weights"), [("clipseg", WEIGHTS), ("cris", CRIS)])
def test_memory_grows_with_the_batch_and_weights_stay(name: str, weights: Path) -> None:
    model = models.load(name, weights)
    before = {key: value.clone() for key, value in model.named_parameters()}
    table = run_costs.measure_steps(model, TEXTS, (1, 3))
    assert list(table["batch"]) == [1, 3]
    assert (table["seconds"] > 0).all()
    total, learned = run_costs.count_parameters(model)
    kept = table["memory"] - 4 * total - 12 * learned
    assert 2 < kept[1] / kept[0] < 3.3  # words and casts are encoded once for all images
    assert all(torch.equal(before[key], value) for key, value in model.named_parameters())


def test_frozen_encoders_keep_less() -> None:
    kept = {}
    for encoders in ("unfrozen", "frozen"):
        model = models.load("clipseg", WEIGHTS, encoders)
        table = run_costs.measure_steps(model, TEXTS, (1, 2), reuse=encoders == "frozen")
        kept[encoders] = table.loc[1, "memory"]
    assert kept["frozen"] < 0.7 * kept["unfrozen"]


def test_half_precision_keeps_less() -> None:
    model = models.load("clipseg", WEIGHTS)
    total, learned = run_costs.count_parameters(model)
    kept = [
        run_costs.measure_steps(model, TEXTS, (1, 2), mixed_precision=name).loc[1, "memory"]
        - (4 * total + 12 * learned)
        for name in ("no", "bf16")
    ]
    assert kept[1] < 0.9 * kept[0]


def test_between_and_beyond_two_batches_is_a_straight_line() -> None:
    table = pd.DataFrame(
        {"batch": [1, 2], "seconds": [3.0, 5.0], "check_seconds": [1.0, 1.0], "memory": [10, 14]}
    )
    assert run_costs.extrapolate(table, "seconds", 10) == 21
    assert run_costs.extrapolate(table, "memory", 0) == 6
    assert run_costs.extrapolate(table, "check_seconds", 99) == 1
    text = run_costs.time_needed(table, 10, [(95, 20)], epochs=100, patience=20)
    whole = "an epoch of 10 steps of 21.0 s: 3.5 minutes; 74.2 minutes for 21 epochs, the fewest, "
    assert text == f"{whole}5.9 hours for 100"


# -- command line -----------------------------------------------------------------------------------------


def test_the_exit_status_tells(site: Path, phantom_cohort: Path) -> None:
    start = ["dry-run", "smoke", "--cohort", phantom_cohort, "--no-measure", "-p", "threads", "1"]
    done = call(*start)
    assert done.exit_code == 0
    assert "a run can start" in done.output
    missing = call(*start, "--weights", "data/weights/nowhere")
    assert missing.exit_code == 1
    assert "1 of " in missing.output
    wrong = call(*start, "-p", "promt", "P1")
    assert wrong.exit_code == 2
    assert "did you mean `prompt`?" in wrong.output
    unknown = call("dry-run", "large")
    assert unknown.exit_code == 2
    assert "there are: camus, " in unknown.output


def test_a_parameter_is_given_in_two_words_or_one_and_the_table_had_as_csv(
    site: Path, phantom_cohort: Path
) -> None:
    start = ["dry-run", "smoke", "--cohort", phantom_cohort, "--no-measure", "--csv", "-p", "threads", "1"]
    two, one = call(*start, "-p", "prompt", "P3").stdout, call(*start, "-p", "prompt=P3").stdout
    assert two == one
    table = pd.read_csv(io.StringIO(two))
    assert list(table.columns) == ["check", "value", "ok", "remedy"]
    assert table["ok"].all()
    assert "P3: " in _row(table, "prompts")["value"]


def test_a_profile_is_named_or_given_as_a_file(site: Path) -> None:
    by_name = dry_run.settings("camus-full", {"seed": "7"})
    assert by_name == dry_run.settings("notebooks/profiles/camus-full.yaml", {"seed": 7})
    assert by_name["weights"] == "CIDAS/clipseg-rd64-refined"
    with pytest.raises(ParameterError, match="mixed_precision"):
        dry_run.settings("camus-full", {"mixed_precision": "fp8"})


# -- the same way in small --------------------------------------------------------------------------------


def test_the_way_of_the_full_study_goes_through_in_small(site: Path, phantom_cohort: Path) -> None:
    """Profile camus-full with tiny weights on phantoms: two steps through both notebooks, on record."""
    words = ["camus-full-cris", "--cohort", str(phantom_cohort), "--weights", "data/weights/cris-tiny"]
    small = {"image_size": "64", "mixed_precision": "no", "cohort_split": "official", "threads": "1"}
    for name, value in small.items():
        words += ["-p", name, value]
    words += ["--here", "evaluate_on", "val"]
    words += ["--record", str(site / "record"), "--remark", "Tiny weights."]
    done = call("rehearse", *words)
    assert done.exit_code == 0, done.output
    record = yaml.safe_load((site / "record" / "cris.yaml").read_text())
    assert record["note"] == f"{dry_run.MARK} Tiny weights."
    assert (record["steps"], record["scale"], record["scored"]["pictures"]) == (2, "full", 4)
    assert (record["parameters"]["learning_rate"], record["parameters"]["batch_size"]) == (2e-5, 2)
    assert record["scored"]["split"] == "val"
    assert record["peak_memory_gib"] > 0
    assert record["history"]["epoch"] == 1
    assert not {"cohort", "run", "weights", "synthetic"} & set(record["parameters"])
    for name in ("checks", "checks-whole"):
        table = pd.read_csv(site / "record" / f"cris-{name}.csv", keep_default_na=False)
        assert _failed(table) == []
        assert not table["value"].str.contains(str(site)).any()
    run = site / "runs/camus-full-cris/rehearsal-cris"
    assert {"04_training.ipynb", "05_evaluation.ipynb", "run.yaml", "weights"} <= {
        p.name for p in run.iterdir()
    }


def test_a_rehearsal_does_not_begin_where_something_is_missing(site: Path, phantom_cohort: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = ["camus-full", "--cohort", str(phantom_cohort), "--weights", "data/weights/clipseg-tiny"]
    words += ["-p", "image_size", "64", "-p", "cohort_split", "official", "-p", "threads", "1"]
    done = call("rehearse", *words)
    assert done.exit_code == 1
    assert "fp16 needs a GPU" in done.output
    assert not (site / "runs").exists()
