"""Frozen encoders encode once: the same numbers, and never those of other weights or images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from echovlsm import models
from echovlsm.base import cache
from echovlsm.training import features
from echovlsm.training import loop as training
from echovlsm.training.triplets import Triplets, make_triplets
from tests.conftest import ROOT

OPTIONS = {"epochs": 2, "batch_size": 5, "learning_rate": 1e-3, "seed": 1, "progress": False}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))


def _load(name: str, encoders: str = "frozen"):
    return models.load(name, ROOT / "data" / "weights" / f"{name}-tiny", encoders)


def _triplets(frames: pd.DataFrame, model, split: str, **options) -> Triplets:
    return make_triplets(frames[frames["split"] == split], "P1", model, seed=1, **options)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_frozen_training_is_the_same_from_features(
    name: str, phantom_frames: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _load(name)
    parts = [_triplets(phantom_frames, model, split) for split in ("train", "val")]
    kept = training.fit(model, *parts, tmp_path / "kept", **OPTIONS)
    answers = training.predict(model, parts[1])

    encode_image = type(model).encode_image

    def once(self, pixels):
        assert len(pixels) == 1, "encoded again"  # one image tells how large the features are
        return encode_image(self, pixels)

    monkeypatch.setattr(type(model), "encode_image", once)
    again = training.fit(_load(name), *parts, tmp_path / "again", **OPTIONS)
    assert again.drop(columns="seconds").equals(kept.drop(columns="seconds"))

    monkeypatch.undo()
    monkeypatch.setattr(training, "encode", lambda *_: None)
    # same weights, two ways of getting their answers
    torch.testing.assert_close(training.predict(model, parts[1]), answers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", models.MODELS)
def test_loss_and_gradients_are_the_same_from_features(
    name: str, phantom_frames: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_CHUNK", 4)  # as the batch: another size rounds otherwise
    # in double precision, where rounding hides nothing: gradients near zero differ by it in single
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model = _load(name).double()
    part = _triplets(phantom_frames, model, "val")
    batch = torch.utils.data.default_collate([part[index] for index in range(4)])
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    loss = training.make_loss()
    found = []
    for known in (None, features.encode(model, part)):
        torch.manual_seed(0)  # dropout of the decoder
        model.train().zero_grad()
        value, _ = training._loss_and_logits(model, model, batch, loss, known)
        value.backward()
        found.append((value, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (plain, expected), (kept, gradients) = found
    torch.testing.assert_close(kept, plain, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(gradient, expected[key], rtol=1e-6, atol=1e-6 * scale + 1e-12)


@pytest.mark.parametrize("name", models.MODELS)
def test_other_weights_images_or_sizes_are_encoded_anew(
    name: str, phantom_frames: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _load(name)
    validation = _triplets(phantom_frames, model, "val")
    first = features.encode(model, validation)
    calls = []
    encode_image = type(model).encode_image

    def counted(self, pixels):
        calls.append(pixels.shape)
        return encode_image(self, pixels)

    monkeypatch.setattr(type(model), "encode_image", counted)
    features.encode(model, validation)
    assert all(shape[0] == 1 for shape in calls)  # one image tells how large the features are
    validation.images[0, 40:60, 40:60] += 1
    features.encode(model, validation)
    assert any(shape[0] > 1 for shape in calls)
    validation.images[0, 40:60, 40:60] -= 1
    calls.clear()
    from echovlsm.models.adapters import encoders_of

    with torch.no_grad():
        for parameter in encoders_of(model).parameters():
            parameter.mul_(1.01)
    other = features.encode(model, validation)
    assert any(shape[0] > 1 for shape in calls)
    assert not torch.allclose(torch.tensor(other.images[0]), torch.tensor(first.images[0]))


def test_features_serve_only_frozen_encoders_and_unchanged_images(
    phantom_frames: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = _load("clipseg")
    plain = _triplets(phantom_frames, frozen, "val")
    assert features.encode(_load("clipseg", "unfrozen"), plain) is None
    assert features.encode(_load("clipseg", "lora"), plain) is None
    assert features.encode(frozen, _triplets(phantom_frames, frozen, "val", augment=True)) is None
    monkeypatch.setenv(cache.BOUND, "0.00001")
    assert features.encode(frozen, plain) is None
