"""Strategies: which images are learned from, what a joint prompt says, where a finetuning starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from echovlsm import STRUCTURES, models
from echovlsm.base.run_folder import RunFolder
from echovlsm.cohort.read import cohort_hash, read_cohort
from echovlsm.study.pretrained import find_run, pretrained_run, pretraining_content
from echovlsm.training import strategies
from echovlsm.training.strategies import StrategyError
from tests.conftest import WEIGHTS


class _Speller:
    """A stand-in for a model: token ids that tell texts apart, and an image size."""

    image_size = 32

    def __init__(self) -> None:
        self.seen: list[str] = []

    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += texts
        ids = torch.arange(len(texts))[:, None] + 1
        return ids, torch.ones_like(ids)


@pytest.fixture(scope="module")
def synthetic_cohort(phantom_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom cohort under a synthetic cohort's card: no quality, so that its highest level is P6."""
    root = tmp_path_factory.mktemp("cohorts") / "synthetic-test"
    shutil.copytree(phantom_cohort, root)
    card = yaml.safe_load((root / "cohort.yaml").read_text())
    (root / "cohort.yaml").write_text(yaml.safe_dump({**card, "name": "synthetic-test", "kind": "synthetic"}))
    return root


@pytest.fixture
def parameters(phantom_cohort: Path, synthetic_cohort: Path) -> dict[str, object]:
    """Parameters of notebook 04 for one epoch of the tiny CLIPSeg."""
    data = {"cohort": str(phantom_cohort), "cohort_split": "official", "synthetic": str(synthetic_cohort)}
    sizes = {
        "train_patients": 0,
        "val_patients": 0,
        "synthetic_patients": 0,
        "holdout": 0.0,
        "holdout_seed": 42,
    }
    model = {"model": "clipseg", "weights": str(WEIGHTS), "encoders": "frozen", "image_size": 32}
    words = {"prompt": "P1", "variant": "random", "missing": "error", "augment": False}
    rates = {
        "epochs": 1,
        "steps": 0,
        "look_every": 50,
        "batch_size": 4,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "schedule": "plateau",
    }
    loss = {"dice_weight": 1.0, "ce_weight": 0.25, "plateau_factor": 0.1, "plateau_patience": 0}
    rest = {
        "patience": 2,
        "keep": "last",
        "mixed_precision": "no",
        "seed": 5,
        "scale": "smoke",
        "strategy": "synth-PT:real-FT",
    }
    return data | sizes | model | words | rates | loss | rest


def test_fewer_patients_are_a_part_of_more(phantom_frames: pd.DataFrame) -> None:
    def patients(count: int, seed: int) -> set[str]:
        part = strategies.limit_patients(phantom_frames, {"train": count}, seed)
        return set(part.loc[part["split"] == "train", "patient"])

    assert len(patients(1, 0)) == 1
    assert patients(1, 0) < patients(2, 0) < patients(3, 0) == patients(0, 0)
    assert len({frozenset(patients(1, seed)) for seed in range(8)}) > 1
    untouched = strategies.limit_patients(phantom_frames, {"train": 1}, 0)
    assert set(untouched.loc[untouched["split"] == "test", "patient"]) == set(
        phantom_frames.loc[phantom_frames["split"] == "test", "patient"]
    )
    assert untouched.attrs["meta"]["kind"] == "phantom"


@pytest.mark.parametrize("count", [-1, 99])
def test_a_number_of_patients_that_is_not_there_is_refused(phantom_frames: pd.DataFrame, count: int) -> None:
    with pytest.raises(StrategyError, match="train"):
        strategies.limit_patients(phantom_frames, {"train": count}, 0)


def test_each_strategy_learns_from_its_own_images(parameters: dict[str, object]) -> None:
    target, sources = strategies.read_target(parameters), strategies.read_synthetic(parameters)
    sources = [strategies.limit_patients(sources[0], {"train": 1}, 0)]
    count = {
        name: len(strategies.strategy_triplets(name, "train", target, sources, "P1", _Speller()))
        for name in ("real", "synthetic", "synth-PT:real-FT", "joint")
    }
    assert count["real"] == count["synth-PT:real-FT"] == (target["split"] == "train").sum()
    assert count["synthetic"] == (sources[0]["split"] == "train").sum() < count["real"]
    assert count["joint"] == count["real"] + count["synthetic"]


def test_a_joint_prompt_names_the_source_and_others_do_not(parameters: dict[str, object]) -> None:
    target, sources = strategies.read_target(parameters), strategies.read_synthetic(parameters)
    joint, real = _Speller(), _Speller()
    triplets = strategies.strategy_triplets("joint", "train", target, sources, "P1", joint)
    strategies.strategy_triplets("real", "train", target, sources, "P1", real)
    ends = {text.rsplit(". ", 1)[-1] for text in joint.seen}
    assert ends == set(strategies.SOURCE_WORDS.values())
    assert not [text for text in real.seen if "picture" in text]
    # the first images are the target's, and say so
    assert all(text.endswith("Real picture.") for text in triplets.texts_of(0))
    assert all(text.endswith("Synthetic picture.") for text in triplets.texts_of(len(triplets) - 1))
    # a joint model is told that what it is scored on is of the target; P0 is left with the source alone
    scored = _Speller()
    strategies.strategy_triplets("joint", "test", target, [], "P0", scored, variant="0")
    assert scored.seen == ["Real picture."]


def test_joint_masks_belong_to_their_images(parameters: dict[str, object]) -> None:
    """Both cohorts name their patients alike, so that a mix-up would go unseen by name."""
    target, sources = strategies.read_target(parameters), strategies.read_synthetic(parameters)
    joint = strategies.strategy_triplets("joint", "train", target, sources, "P1", _Speller())
    alone = strategies.strategy_triplets("synthetic", "train", target, sources, "P1", _Speller())
    assert torch.equal(joint.labels[-len(alone) :], alone.labels)
    assert torch.equal(joint.images[-len(alone) :], alone.images)


def test_negatives_are_for_models_that_read(parameters: dict[str, object]) -> None:
    target = strategies.read_target(parameters)
    for name, count in (("clipseg", 5), ("unet", 3)):
        model = _Speller()
        model.name = name
        triplets = strategies.strategy_triplets("real", "train", target, [], "P1", model, negatives=2)
        assert triplets[0]["masks"].shape[0] == count


def test_synthetic_images_have_no_p7(parameters: dict[str, object]) -> None:
    target, sources = strategies.read_target(parameters), strategies.read_synthetic(parameters)
    assert strategies.synthetic_level("P7", sources) == "P6"
    assert strategies.synthetic_level("P7", [target]) == "P7"
    assert strategies.synthetic_level("P3", sources) == "P3"
    with pytest.raises(StrategyError, match="P6"):
        strategies.strategy_triplets("synthetic", "train", target, sources, "P7", _Speller())
    speller = _Speller()
    strategies.strategy_triplets("joint", "train", target, sources, "P7", speller, variant="0")
    of_target = [text for text in speller.seen if text.endswith("Real picture.")]
    of_synthetic = [text for text in speller.seen if text.endswith("Synthetic picture.")]
    assert all("image quality" in text for text in of_target)
    assert not any("image quality" in text for text in of_synthetic)
    assert all(" shape " in text for text in [*of_target, *of_synthetic])


def test_no_source_is_an_error(parameters: dict[str, object]) -> None:
    with pytest.raises(StrategyError, match="synthetic"):
        strategies.read_synthetic({**parameters, "synthetic": " , "})


def test_a_finetuning_finds_its_synthetic_run_by_content(
    parameters: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOVLSM_ROOT", str(tmp_path))
    sources = strategies.read_synthetic(parameters)
    record = RunFolder("runs/a/finetuning")
    made = pretrained_run(parameters, sources, record)
    assert made.path == record / "pretraining"
    assert made.record["strategy"] == "synthetic"
    assert (made / "weights" / "model.safetensors").is_file()
    assert len(pd.read_csv(made / "history.csv")) == 1

    # wherever it lies, whatever it is called
    elsewhere = tmp_path / "runs" / "b" / "under-another-name"
    elsewhere.parent.mkdir()
    shutil.move(made.path, elsewhere)
    found = pretrained_run(parameters, sources, RunFolder("runs/c/finetuning"))
    assert found.path == elsewhere
    # another seed, other images, other starting weights: another run
    content = pretraining_content(parameters, sources)
    fewer = [strategies.limit_patients(sources[0], {"train": 1}, 0)]
    others = [
        pretraining_content({**parameters, "seed": 6}, sources),
        pretraining_content(parameters, fewer),
        pretraining_content({**parameters, "weights": ""}, sources),
    ]
    assert content not in others
    assert len(set(others)) == 3
    # nor do negatives where there are none, as in runs from before there were any
    assert pretraining_content({**parameters, "negatives": 0}, sources) == content
    assert pretraining_content({**parameters, "negatives": 1}, sources) != content
    # the finetuning's own settings do not count: how many real patients it will learn from
    assert pretraining_content({**parameters, "train_patients": 1}, sources) == content
    # an interrupted run is no run
    RunFolder(elsewhere).note(status="started")
    assert find_run(content) is None


def test_hashes_name_only_what_is_read(parameters: dict[str, object]) -> None:
    target, sources = strategies.read_target(parameters), strategies.read_synthetic(parameters)
    assert strategies.data_hashes("real", target, []) == {"data_hash": cohort_hash(target)}
    assert set(strategies.data_hashes("synthetic", target, sources)) == {"synthetic_hash"}
    assert set(strategies.data_hashes("joint", target, sources)) == {"data_hash", "synthetic_hash"}


def test_the_reference_starts_from_its_seed_and_reads_no_words() -> None:
    first, again, other = (models.load("unet", "", "unfrozen", 32, seed) for seed in (1, 1, 2))
    images = torch.rand(2, 3, 32, 32)
    outputs = [net.eval()(images) for net in (first, again, other)]
    assert outputs[0].shape == (2, len(STRUCTURES), 32, 32)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_cohort_read_as_target_keeps_the_split_asked_for(parameters: dict[str, object]) -> None:
    whole = read_cohort(parameters["cohort"])
    held = strategies.read_target({**parameters, "holdout": 0.4})
    assert set(held.loc[held["split"] == "val", "patient"]) <= set(
        whole.loc[whole["split"] == "train", "patient"]
    )
