"""Training: it learns, it stops, and a killed run ends like an uninterrupted one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from echovlsm import models
from echovlsm.training.loop import HISTORY_COLUMNS, fit, make_loss, predict
from echovlsm.training.triplets import Batches, Triplets, make_triplets
from tests.conftest import WEIGHTS


@pytest.fixture(scope="module")
def pair(phantom_frames: pd.DataFrame) -> tuple[Triplets, Triplets]:
    model = models.load("clipseg", WEIGHTS)
    parts = (phantom_frames[phantom_frames["split"] == split] for split in ("train", "val"))
    train, validation = (make_triplets(part, "P1", model, seed=1) for part in parts)
    return train, validation


OPTIONS = {"epochs": 3, "batch_size": 5, "learning_rate": 1e-3, "seed": 1, "progress": False}


def _dice(model: torch.nn.Module, triplets: Triplets) -> float:
    from monai.metrics import compute_dice

    masks = torch.stack([triplets[index]["masks"] for index in range(len(triplets))])
    return compute_dice(predict(model, triplets) > 0, masks, ignore_empty=False).mean().item()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_training_lowers_the_loss_and_keeps_the_weights_asked_for(pair, tmp_path: Path, keep: str) -> None:
    model = models.load("clipseg", WEIGHTS)
    # a rate so high that the last epoch is not the best
    options = OPTIONS | ({} if keep == "last" else {"learning_rate": 1e-2, "epochs": 4})
    history = fit(model, *pair, tmp_path, keep=keep, **options)
    assert tuple(history.columns) == HISTORY_COLUMNS
    assert list(history["epoch"]) == list(range(1, options["epochs"] + 1))
    if keep == "last":  # at the other rate the loss may rise, as rounding has it
        assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    kept = history["val_dice"].max() if keep == "best" else history["val_dice"].iloc[-1]
    assert _dice(model, pair[1]) == pytest.approx(kept, abs=1e-6)


def test_steps_are_whole_batches_whatever_the_number_of_images(pair, tmp_path: Path) -> None:
    seen: list[int] = []
    model = models.load("clipseg", WEIGHTS)
    forward = model.forward

    def counted(pixel_values, *others, **more):
        if model.training:
            seen.append(len(pixel_values))
        return forward(pixel_values, *others, **more)

    model.forward = counted
    options = {
        "steps": 6,
        "look_every": 2,
        "batch_size": 5,
        "schedule": "cosine",
        "seed": 1,
        "progress": False,
    }
    history = fit(model, *pair, tmp_path, **options)
    assert seen == [5] * 6
    assert history["step"].tolist() == [2, 4, 6]
    with pytest.raises(ValueError, match="steps: 5 is no multiple"):
        fit(model, *pair, tmp_path, **(options | {"steps": 5}))


def test_a_row_of_batches_holds_each_image_once_an_epoch() -> None:
    batches = Batches(7, 4, seed=3, steps=7)
    row = [place for batch in batches for place in batch]
    assert [len(batch) for batch in batches] == [4] * 7
    assert [epoch for epoch, _ in row] == [epoch for epoch in (1, 2, 3, 4) for _ in range(7)]
    for epoch in (1, 2, 3, 4):
        assert sorted(index for number, index in row if number == epoch) == list(range(7))
    batches.steps = 1
    parts = []
    for number in range(1, 8):
        batches.start_round(number)
        parts += [place for batch in batches for place in batch]
    assert parts == row


def test_both_halves_of_the_loss_count() -> None:
    """In the MONAI version of the paper's code the cross entropy of one channel was identically zero."""
    logits = torch.tensor([[[[3.0, -3.0], [0.5, -0.5]]]])
    masks = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    dice, both = make_loss(1, 0)(logits, masks), make_loss(1, 0.25)(logits, masks)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
    torch.testing.assert_close(both - dice, 0.25 * entropy)


def test_the_learning_rate_falls_on_a_plateau_and_training_stops(pair, tmp_path: Path) -> None:
    model = models.load("clipseg", WEIGHTS)
    options = OPTIONS | {"epochs": 20, "learning_rate": 0.0, "plateau_patience": 0, "patience": 3}
    history = fit(model, *pair, tmp_path, **options)
    assert len(history) == 4  # one epoch sets the mark, three do not pass it
    history = fit(
        models.load("clipseg", WEIGHTS),
        *pair,
        tmp_path / "falling",
        **(OPTIONS | {"epochs": 3, "learning_rate": 1e-4, "plateau_patience": 0, "min_delta": 1.0}),
    )
    assert history["learning_rate"].tolist() == pytest.approx([1e-4, 1e-4, 1e-5])


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from echovlsm import models
from echovlsm.cohort import read_cohort
from echovlsm.training import loop as training, make_triplets
frames = read_cohort({cohort!r})
model = models.load("clipseg", {weights!r})
def triplets(split):
    return make_triplets(frames[frames["split"] == split], "P1", model, seed=1, augment=split == "train")
step = training._loss_and_logits
count = [0]
def slow(*arguments):
    count[0] += 1
    if count[0] == {die}:
        print("in mid-epoch", flush=True)
        import time; time.sleep(60)
    return step(*arguments)
training._loss_and_logits = slow
options = dict(epochs=3, batch_size=4, learning_rate=1e-3, seed=1, progress=False) | {more}
history = training.fit(model, triplets("train"), triplets("val"), sys.argv[1], **options)
from safetensors.torch import save_file
save_file(dict(model.state_dict()), sys.argv[1] + "/kept.safetensors")
history.drop(columns="seconds").to_json(sys.argv[1] + "/final.json", double_precision=15)
"""


def _run(cohort: Path, folder: Path, die: int, **options: float) -> None:
    """Train in a process of its own; `die` > 0 kills it in the middle of that step."""
    source = SCRIPT.format(
        tests=str(Path(__file__).parents[2]),
        cohort=str(cohort),
        weights=str(WEIGHTS),
        die=die,
        more=options,
    )
    process = subprocess.Popen([sys.executable, "-c", source, str(folder)], stdout=subprocess.PIPE, text=True)
    if die:
        assert process.stdout.readline().strip() == "in mid-epoch"
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    process.wait(timeout=300)


STEPS = {"steps": 9, "look_every": 3, "schedule": "cosine"}


@pytest.mark.parametrize(
    "options", [{}, {"epochs": 4, "min_delta": 0.5, "patience": 2, "plateau_patience": 0}, STEPS]
)
def test_a_run_killed_in_mid_epoch_ends_with_the_same_history(
    phantom_cohort: Path, tmp_path: Path, options: dict[str, float]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    _run(phantom_cohort, whole, die=0, **options)
    # An epoch has three training steps and two checks: the seventh is in the middle of the second epoch.
    _run(phantom_cohort, parts, die=7, **options)
    assert not (parts / "final.json").exists()
    assert len(pd.read_csv(parts / "history.csv")) == 1
    _run(phantom_cohort, parts, die=0, **options)
    assert (whole / "final.json").read_text() == (parts / "final.json").read_text()
    from safetensors.torch import load_file

    expected, resumed = (load_file(folder / "kept.safetensors") for folder in (whole, parts))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_a_loss_that_is_not_finite_stops_with_advice(pair, tmp_path: Path) -> None:
    model = models.load("clipseg", WEIGHTS)
    with torch.no_grad():
        model.segmenter.decoder.film_add.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="learning_rate"):
        fit(model, *pair, tmp_path, **OPTIONS)
    assert not (tmp_path / "best.safetensors").exists()
