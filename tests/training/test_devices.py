"""Ready for a GPU, as far as can be told without one: nothing stays behind, nothing asks for values.

On PyTorch's meta device tensors have a shape and no values: a tensor left on the processor fails there, and
so does a decision by what a tensor holds, which on a GPU is a wait in every step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from monai.metrics import compute_dice
from torch import Tensor, nn

from echovlsm import models
from echovlsm.models import ReferenceUNet
from echovlsm.training import devices, loop
from echovlsm.training.features import Features, Read
from echovlsm.training.triplets import Triplets, make_triplets
from tests.conftest import WEIGHTS

META = torch.device("meta")


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator()


def load(name: str, encoders: str = "unfrozen") -> nn.Module:
    if name == "unet":
        return ReferenceUNet.fresh(32)
    model = models.load(
        name, WEIGHTS.with_name(f"{name}-tiny"), "unfrozen" if encoders == "lora" else encoders, 32
    )
    return models.adapters.add_lora(model) if encoders == "lora" else model


def triplets(model: nn.Module, frames: pd.DataFrame, level: str = "P3", **options: object) -> Triplets:
    return make_triplets(frames.iloc[:6], level, model, **options)


def step(model: nn.Module, batch: dict[str, Tensor], accelerator: Accelerator, known: Features | None = None):
    """A step as `fit` makes it; loss and logits."""
    learning = [value for value in model.parameters() if value.requires_grad]
    loss, logits = loop._loss_and_logits(model.train(), model, batch, loop.make_loss(), known)
    loop._learn(accelerator, loss, learning, torch.optim.SGD(learning, 0.1), 0.5)
    assert all(value.grad is not None for value in learning)
    return loss, logits


@pytest.mark.parametrize(
    ("name", "encoders"),
    [("clipseg", "unfrozen"), ("clipseg", "lora"), ("cris", "unfrozen"), ("cris", "frozen"), ("unet", "")],
)
def test_a_step_and_a_look_ask_for_no_values(
    phantom_frames: pd.DataFrame, accelerator: Accelerator, name: str, encoders: str
) -> None:
    model = load(name, encoders)
    part = triplets(model, phantom_frames, augment=True).to(META)
    model.to(META)
    batch = part.__getitems__([(1, 0), (1, 3), (2, 5)])
    assert {values.device for values in batch.values()} == {META}
    loss, logits = step(model, batch, accelerator)
    assert (loss.device, logits.shape) == (META, (3, 3, 32, 32))
    with torch.inference_mode():
        _, logits = loop._loss_and_logits(model.eval(), model, batch, loop.make_loss(), None)
        assert loop._dice(logits > 0, batch["masks"]).shape == (3, 3)
        alone = model(model.normalise(batch["image"]), batch["input_ids"], batch["attention_mask"])
    assert alone.shape == logits.shape, "without word of repeats"


@pytest.mark.parametrize("name", models.MODELS)
def test_kept_features_lie_where_the_batch_is(
    phantom_frames: pd.DataFrame, accelerator: Accelerator, name: str
) -> None:
    model = load(name, "frozen")
    part = triplets(model, phantom_frames)
    with torch.no_grad():
        seen = model.encode_image(model.normalise(part.images))
        read = model.text_features(part.input_ids, part.attention_mask)
    known = Features(*([value.numpy() for value in values] for values in (seen, read)))
    assert known.to(torch.device("cpu")) is known
    loss, _ = step(model.to(META), part.to(META).__getitems__([0, 4]), accelerator, known.to(META))
    assert loss.device == META
    encoded = Read(model, [value.numpy() for value in read]).to(META)
    assert all(value.device == META for value in encoded.of(part.to(META).__getitems__([1]))[0])


@pytest.mark.parametrize("level", ["P0", "P3"])
@pytest.mark.parametrize("name", models.MODELS)
def test_prompts_said_to_repeat_are_those_that_are_found(
    phantom_frames: pd.DataFrame, name: str, level: str
) -> None:
    model = load(name).eval()
    part = triplets(model, phantom_frames, level)
    batch = part.__getitems__([(3, 0), (3, 1), (3, 5), (3, 2)])
    distinct, where = batch["distinct"], batch["where"]
    flat = batch["input_ids"].flatten(0, 1)
    assert torch.equal(flat[distinct][where], flat)
    assert len(flat[distinct].unique(dim=0)) == len(distinct)
    encoded: list[int] = []
    text_features = model.text_features
    model.text_features = lambda ids, mask: encoded.append(len(ids)) or text_features(ids, mask)
    words = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        pixels = model.normalise(batch["image"])
        assert torch.equal(model(pixels, *words, repeats=(distinct, where)), model(pixels, *words))
    assert encoded == [len(distinct)] * 2
    assert len(distinct) < len(flat)


def test_texts_of_the_same_tokens_are_one_prompt(phantom_frames: pd.DataFrame) -> None:
    model = load("clipseg")
    one = model.tokenize
    model.tokenize = lambda texts: tuple(values[:1].expand(len(texts), -1) for values in one(texts))
    batch = triplets(model, phantom_frames).__getitems__([0, 1])
    assert batch["distinct"].tolist() == [0]
    assert batch["where"].tolist() == [0] * 6


def test_numbers_too_small_to_matter_are_zero_in_training_and_nowhere_else(
    phantom_frames: pd.DataFrame,
) -> None:
    least = torch.tensor(1e-38)
    with devices.without_denormals():
        assert least * 0.01 == 0
    model = models.load("unet", "", image_size=32)
    triplets = make_triplets(phantom_frames[:2], "P1", model)
    loop.predict(model, triplets)
    assert least * 0.01 > 0


def test_dice_is_monais() -> None:
    torch.manual_seed(0)
    found = torch.rand(4, 3, 9, 7) > torch.rand(4, 3, 1, 1)
    wanted = (torch.rand(4, 3, 9, 7) > 0.6).float()
    found[0, 0] = wanted[0, 0] = 0  # both empty
    found[1, 1], wanted[2, 2] = 0, 0  # one of them
    assert torch.equal(loop._dice(found, wanted), compute_dice(found, wanted, ignore_empty=False))


# -- precision ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_halves_is_that_of_float32(dtype: torch.dtype) -> None:
    """A mask of 512 x 512 sums to more than a half can hold, 65504."""
    torch.manual_seed(0)
    loss = loop.make_loss()
    masks = torch.ones(2, 1, 512, 512)
    masks[1, :, 100:] = 0
    logits = torch.where(torch.rand(masks.shape) < 0.5, -20.0, 20.0)
    wanted, value = logits.clone().requires_grad_(True), logits.to(dtype).requires_grad_(True)
    exact = loss(wanted, masks)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = loss(value, masks.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact)
    exact.backward()
    found.backward()
    torch.testing.assert_close(value.grad.float(), wanted.grad, atol=1e-7, rtol=1e-2)
    assert loop._dice(value.detach()[None, :, 0] > 0, masks[None, :, 0]).isfinite().all()


@pytest.mark.parametrize("name", [*models.MODELS, "unet"])
def test_a_step_in_bfloat16_is_near_that_in_float32(
    phantom_frames: pd.DataFrame, name: str, tmp_path: Path
) -> None:
    options = {"epochs": 1, "batch_size": 3, "learning_rate": 1e-4, "seed": 1, "progress": False}
    first = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()
        model = load(name)
        part = triplets(model, phantom_frames, seed=1)
        history = loop.fit(model, part, part, tmp_path / precision, mixed_precision=precision, **options)
        assert np.isfinite(history.drop(columns="seconds")).all(axis=None)
        assert all(value.isfinite().all() for value in model.parameters())
        first[precision] = history.iloc[0]
    assert first["bf16"]["train_loss"] == pytest.approx(first["no"]["train_loss"], rel=0.02)
    assert first["bf16"]["train_loss"] != first["no"]["train_loss"], "it was in float32"


# -- on a GPU -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", [*models.MODELS, "unet"])
def test_a_step_does_not_wait_for_the_gpu(
    phantom_frames: pd.DataFrame, accelerator: Accelerator, name: str
) -> None:
    model = load(name).to("cuda")
    part = triplets(model, phantom_frames, augment=True).to(torch.device("cuda"))
    step(model, part.__getitems__([0, 1, 2]), accelerator)  # the first one loads kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = step(model, part.__getitems__([3, 4, 5]), accelerator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
