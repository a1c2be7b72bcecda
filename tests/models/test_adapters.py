"""LoRA: gradients reach the adapters and what follows the encoders only; merging changes no output."""

from __future__ import annotations

import copy
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from echovlsm import models
from echovlsm.models.adapters import (
    add_lora,
    encoders_of,
    has_lora,
    merge_lora,
    trainable_table,
)
from echovlsm.models.common import ModelError
from echovlsm.models.unet import ReferenceUNet
from echovlsm.training.loop import fit, predict
from echovlsm.training.triplets import make_triplets
from tests.conftest import WEIGHTS

KINDS = ("clipseg", "cris")


def _tiny_cris() -> nn.Module:
    from echovlsm.models import cris
    from echovlsm.models.cris_config import CRISConfig

    config = CRISConfig(
        image_resolution=64,
        vision_layers=(1, 1, 1, 1),
        vision_width=8,
        embed_dim=64,
        context_length=24,
        word_len=17,
        vocab_size=128,
        text_width=64,
        text_heads=1,
        text_layers=2,
        fpn_in=(64, 128, 64),
        fpn_out=(32, 64, 64),
        vis_dim=64,
        decoder_layers=2,
        decoder_heads=4,
        decoder_ffn=96,
        image_size=64,
    )
    torch.manual_seed(0)
    model = cris.CRIS(config, encoders="frozen")
    for name, module in model.named_modules():
        if name.endswith("bn3"):
            nn.init.ones_(module.weight)  # a fresh block ends in zeros, through which no gradient passes
    return model


def _make(kind: str) -> nn.Module:
    return _tiny_cris() if kind == "cris" else models.load("clipseg", WEIGHTS, "frozen")


def _inputs(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, model.image_size, model.image_size, generator=generator)
    if model.name == "clipseg":
        tokens, mask = model.tokenize(["Myocardium of the heart.", "Left atrium cavity of the heart."])
    else:
        tokens = torch.randint(1, 100, (2, 6), generator=generator)
        tokens[:, -1] = 127  # end of text
        mask = torch.ones_like(tokens)
    return images, tokens.repeat(2, 1, 1), mask.repeat(2, 1, 1)


def _steps(model: nn.Module, count: int = 2) -> None:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    model.train()
    for _ in range(count):
        optimiser.zero_grad()
        model(*_inputs(model)).square().mean().backward()
        optimiser.step()


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(*_inputs(model))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_unchanged_at_first(kind: str) -> None:
    model = _make(kind)
    before = _logits(model)
    assert add_lora(model) is model
    assert model.encoders == "lora"
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_adapters_and_decoder_and_nothing_else(kind: str) -> None:
    model = add_lora(_make(kind), rank=4)
    before = {name: value.clone() for name, value in model.named_parameters()}
    declared = {name for name, value in model.named_parameters() if value.requires_grad}
    _steps(model)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    inside = {f"{prefix}.{name}" for prefix, name in _encoder_names(model)}
    adapters = {name for name in before if ".lora_A." in name or ".lora_B." in name}
    assert adapters <= inside
    assert declared & inside == adapters
    assert moved <= declared
    assert adapters <= moved
    # softmax does not see a bias that all keys share; all else behind the encoders learns
    assert not {name for name in declared - moved if not name.endswith(("k_proj.bias", "in_proj_bias"))}


def _encoder_names(model: nn.Module) -> list[tuple[str, str]]:
    prefix = "segmenter.clip" if model.name == "clipseg" else "backbone"
    return [(prefix, name) for name, _ in encoders_of(model).named_parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_both_encoders_have_adapters(kind: str) -> None:
    table = trainable_table(add_lora(_make(kind))).set_index("part")
    both = table.loc[["image encoder", "text encoder"]]
    assert (both["trained"] > 0).all()
    assert both["trained"].sum() == table.loc["adapters", "parameters"]
    assert table.loc["decoder", "share"] == 1


def test_rank_counts_the_parameters_of_clipseg() -> None:
    """Two projections (width x width) a layer, each with rank x width in A and in B; 6 and 3 layers."""
    model = add_lora(_make("clipseg"), rank=3)
    config = model.segmenter.config
    image = 2 * 2 * 3 * config.vision_config.hidden_size * (max(config.extract_layers) + 1)
    text = 2 * 2 * 3 * config.text_config.hidden_size * config.text_config.num_hidden_layers
    table = trainable_table(model).set_index("part")
    assert table.loc["image encoder", "trained"] == image
    assert table.loc["text encoder", "trained"] == text
    assert table.loc["all", "trained"] == image + text + table.loc["decoder", "parameters"]
    assert table.loc["all", "parameters"] == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_ordinary_weights(kind: str, tmp_path: Path) -> None:
    model = _make(kind)
    names, start = set(model.state_dict()), copy.deepcopy(model.state_dict())
    _steps(add_lora(model))
    trained = _logits(model)
    merge_lora(model)
    assert not has_lora(model)
    assert model.encoders == "frozen"
    assert set(model.state_dict()) == names
    torch.testing.assert_close(_logits(model), trained, atol=1e-5, rtol=1e-4)
    changed = [name for name in names if not torch.equal(model.state_dict()[name], start[name])]
    assert any("text_model" in name or "backbone.transformer" in name for name in changed)
    assert any("vision_model" in name or "backbone.visual" in name for name in changed)
    model.save_pretrained(tmp_path / "weights")
    again = models.load(kind, tmp_path / "weights", "unfrozen")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    torch.testing.assert_close(_logits(again), _logits(model), atol=1e-6, rtol=1e-5)  # other memory layout
    encoder = encoders_of(model).parameters()
    assert not any(value.requires_grad for value in encoder)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_statistics_stay(kind: str) -> None:
    """Batch normalisation in a frozen encoder must not follow the training images."""
    model = add_lora(_make(kind))
    before = {name: value.clone() for name, value in encoders_of(model).named_buffers()}
    _steps(model)
    assert all(torch.equal(value, before[name]) for name, value in encoders_of(model).named_buffers())
    assert not any(
        module.training
        for name, module in encoders_of(model).named_modules()
        if name and ".lora_dropout" not in name
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_adapters_follows_the_mode(kind: str) -> None:
    model = add_lora(_make(kind), dropout=0.5)
    dropouts = [m for name, m in encoders_of(model).named_modules() if name.endswith("lora_dropout.default")]
    assert dropouts
    for mode in (True, False):
        model.train(mode)
        assert all(module.training is mode for module in dropouts)
        assert not encoders_of(model).training


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_adapters_changes_what_encoders_give_in_training_only(kind: str) -> None:
    model = add_lora(_make(kind), dropout=0.5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:  # zero at first, so that nothing of A is seen
                value.fill_(0.1)
    images, tokens, mask = _inputs(model)

    def sentences(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.encode_text(tokens[0], mask[0]).detach()

    model.train()
    assert not torch.allclose(sentences(1), sentences(2), atol=1e-4)
    assert torch.equal(sentences(1), sentences(1))
    model.eval()
    assert torch.equal(sentences(1), sentences(2))
    assert torch.equal(*(model.encode_image(images)[-1] for _ in range(2)))


def test_fit_trains_adapters_and_its_best_weights_can_be_merged(
    phantom_frames: pd.DataFrame, tmp_path: Path
) -> None:
    model = add_lora(_make("clipseg"))
    triplets = make_triplets(phantom_frames[phantom_frames["split"] == "train"], "P1", model)
    history = fit(model, triplets, triplets, tmp_path, epochs=3, batch_size=4, progress=False)
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0] - 0.05
    learned = predict(model, triplets)
    assert all(value.abs().max() > 0 for name, value in model.named_parameters() if ".lora_B." in name)
    # at a few pixels the network turns rounding in float32 into some thousandths, merged or not
    merged = predict(merge_lora(model), triplets)
    torch.testing.assert_close(merged, learned, atol=0.03, rtol=0)
    assert (merged - learned).abs().mean() < 1e-4


def test_start_depends_on_the_seed_alone() -> None:
    starts = []
    for outer, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(outer)
        model = add_lora(_make("clipseg"), seed=seed)
        starts.append(torch.cat([v.flatten() for name, v in model.named_parameters() if ".lora_A." in name]))
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_what_cannot_be_adapted() -> None:
    model = add_lora(_make("clipseg"))
    with pytest.raises(ModelError, match="adapters already"):
        add_lora(model)
    with pytest.raises(ModelError, match="unet has none"):
        add_lora(ReferenceUNet.fresh(32, (8, 16)))
    with pytest.raises(ModelError, match="rank: 0"):
        add_lora(_make("clipseg"), rank=0)
    with pytest.raises(ModelError, match=r"dropout: 1\.5"):
        add_lora(_make("clipseg"), dropout=1.5)
    plain = _make("clipseg")
    assert merge_lora(plain) is plain
    with torch.no_grad():
        next(v for name, v in model.named_parameters() if ".lora_B." in name).fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        merge_lora(model)


def test_table_of_a_frozen_and_an_unfrozen_model() -> None:
    frozen, unfrozen = (
        trainable_table(models.load("clipseg", WEIGHTS, mode)).set_index("part")
        for mode in ("frozen", "unfrozen")
    )
    assert list(frozen.index) == ["image encoder", "text encoder", "decoder", "all"]
    assert frozen.loc[["image encoder", "text encoder"], "trained"].sum() == 0
    assert frozen.loc["all", "trained"] == frozen.loc["decoder", "parameters"]
    assert unfrozen.loc["text encoder", "share"] == 1
    assert (frozen["parameters"] == unfrozen["parameters"]).all()
    network = trainable_table(ReferenceUNet.fresh(32, (8, 16))).set_index("part")
    assert network.loc["all", "share"] == 1
