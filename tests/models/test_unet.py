"""The text-blind reference: it learns through `training.fit`, reads no words, and survives its own folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from echovlsm import STRUCTURES
from echovlsm.models.common import ModelError
from echovlsm.models.unet import ReferenceUNet
from echovlsm.training.loop import fit, predict
from echovlsm.training.triplets import make_triplets

SMALL = (8, 16, 32)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _tokens(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, mask = ReferenceUNet.fresh(32, SMALL).tokenize(["a", "b", "c"])
    return tokens.expand(images, 3, -1), mask.expand(images, 3, -1)


@pytest.fixture(scope="module")
def trained(
    phantom_frames: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ReferenceUNet, pd.DataFrame]:
    model = ReferenceUNet.fresh(48, SMALL, seed=1)
    frames = phantom_frames[phantom_frames["split"] == "train"]
    triplets = make_triplets(frames, "P1", model)
    history = fit(
        model,
        triplets,
        triplets,
        tmp_path_factory.mktemp("unet"),
        epochs=40,
        batch_size=4,
        learning_rate=3e-3,
        progress=False,
    )
    return model, history


def test_it_learns_the_images_it_is_shown(trained: tuple[ReferenceUNet, pd.DataFrame]) -> None:
    history = trained[1]
    assert history["val_dice"].iloc[0] < 0.4
    assert history["val_dice"].max() > 0.75


def test_each_channel_is_its_structure(
    trained: tuple[ReferenceUNet, pd.DataFrame], phantom_frames: pd.DataFrame
) -> None:
    model = trained[0]
    triplets = make_triplets(phantom_frames[phantom_frames["split"] == "train"], "P1", model)
    found = predict(model, triplets) > 0
    assert found.shape == (len(triplets), 3, 48, 48)
    truth = torch.stack([triplets[index]["masks"] for index in range(len(triplets))]).bool()
    overlap = torch.einsum("nshw,nthw->st", found.float(), truth.float())
    assert overlap.argmax(dim=1).tolist() == [0, 1, 2]


def test_words_change_nothing(
    trained: tuple[ReferenceUNet, pd.DataFrame], phantom_frames: pd.DataFrame
) -> None:
    frames = phantom_frames[phantom_frames["split"] == "test"]
    few, many = (predict(trained[0], make_triplets(frames, level, trained[0])) for level in ("P0", "P5"))
    assert torch.equal(few, many)
    assert few.std() > 0.1


def test_labels_are_the_highest_logit_above_zero(trained: tuple[ReferenceUNet, pd.DataFrame]) -> None:
    model = trained[0]
    grey = torch.randint(0, 256, (5, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = model.segment(grey.numpy(), batch_size=2)
    with torch.no_grad():
        logits = model.eval()(model.normalise(grey), *_tokens(5)).numpy()
    assert labels.dtype == np.uint8
    assert labels.shape == (5, 48, 48)
    assert ((labels == 0) == (logits <= 0).all(axis=1)).all()
    for value, channel in zip(STRUCTURES, range(3), strict=True):
        inside = np.moveaxis(logits, 1, -1)[labels == value]
        assert (inside.argmax(axis=1) == channel).all()


def test_labels_of_phantoms_come_back_at_their_own_size(
    trained: tuple[ReferenceUNet, pd.DataFrame], phantom_frames: pd.DataFrame
) -> None:
    from echovlsm.cohort.images import load_image, load_labels

    rows = list(phantom_frames[phantom_frames["split"] == "train"].itertuples())
    shapes = {(row.height, row.width) for row in rows}
    overlaps = []
    for row in rows:
        image, truth = load_image(row), load_labels(row)
        found = trained[0].segment(image[None])[0]
        assert found.shape == image.shape
        overlaps.append((found == truth)[truth > 0].mean())
    assert (48, 48) not in shapes
    assert np.mean(overlaps) > 0.6


def test_segment_keeps_the_mode_and_takes_no_images(images: torch.Tensor) -> None:
    model = ReferenceUNet.fresh(32, SMALL).train()
    model.segment(images)
    assert model.training
    assert model.segment(images[:0]).shape == (0, 32, 32)
    with pytest.raises(ModelError, match="uint8"):
        model.segment(images.float())


def test_folder_holds_the_model(images: torch.Tensor, tmp_path: Path) -> None:
    model = ReferenceUNet.fresh(32, SMALL, seed=5).train()
    model(model.normalise(images), *_tokens(4))  # moves the running statistics of the batch norm
    model.save_pretrained(tmp_path / "unet")
    again = ReferenceUNet.from_pretrained(tmp_path / "unet")
    assert (again.image_size, again.channels) == (32, SMALL)
    with torch.no_grad():
        one, two = (m.eval()(m.normalise(images), *_tokens(4)) for m in (model, again))
    assert torch.equal(one, two)
    assert sorted(path.name for path in (tmp_path / "unet").iterdir()) == ["config.json", "model.safetensors"]


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = ReferenceUNet.fresh(32, SMALL, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    same, other = ReferenceUNet.fresh(32, SMALL, seed=1), ReferenceUNet.fresh(32, SMALL, seed=2)
    weights = [next(model.parameters()) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_one_prompt_is_refused(images: torch.Tensor) -> None:
    model = ReferenceUNet.fresh(32, SMALL)
    with pytest.raises(ModelError, match="one prompt a structure"):
        model(model.normalise(images), *model.tokenize(["a"] * 4))


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ModelError, match="image_size: 98 x 98 pixels; 3 levels need multiples of 4"):
        ReferenceUNet.fresh(98, SMALL)
    with pytest.raises(ModelError, match="pixel_values: 30 x 32"):
        ReferenceUNet.fresh(32, SMALL)(torch.zeros(1, 3, 30, 32))


def test_unusable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        ReferenceUNet.from_pretrained(tmp_path / "nothing")
    folder = tmp_path / "unet"
    ReferenceUNet.fresh(32, SMALL).save_pretrained(folder)
    with pytest.raises(ModelError, match="frozen"):
        ReferenceUNet.from_pretrained(folder, encoders="frozen")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"channels": [8, 16, 24]}))
    with pytest.raises(ModelError, match="does not fit"):
        ReferenceUNet.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config | {"structures": ["myocardium"]}))
    with pytest.raises(ModelError, match="segments"):
        ReferenceUNet.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clipseg"}))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="'clipseg' model"):
        ReferenceUNet.from_pretrained(folder)
