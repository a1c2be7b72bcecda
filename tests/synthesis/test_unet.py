"""The denoiser: parity with the original, its names and shapes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from echovlsm.synthesis.process import diffusion_loss, noise_schedule
from echovlsm.synthesis.unet import (
    DROPPED,
    ConditionError,
    SemanticUNet,
    SemanticUNetConfig,
)
from echovlsm.synthesis.weights import (
    WeightsError,
    config_of,
    load_checkpoint,
    load_denoiser,
    load_state,
    save_denoiser,
)

TINY = SemanticUNetConfig(
    image_size=16,
    model_channels=8,
    out_channels=1,
    num_res_blocks=1,
    attention_downsample_factors=(2,),
    channel_mult=(1, 2),
    num_head_channels=8,
    spade_hidden=8,
    groupnorm_groups=4,
)


def random_unet(config: SemanticUNetConfig = TINY, seed: int = 0) -> SemanticUNet:
    """A network whose zero-initialised layers are random too, so that every path reaches the output."""
    torch.manual_seed(seed)
    model = SemanticUNet(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[SemanticUNet, dict[str, torch.Tensor]]:
    folder = shared / "golden"
    config = config_of(json.loads((folder / "sdm_tiny.config.json").read_text()))
    tensors = load_file(folder / "sdm_tiny.weights.safetensors")
    return load_state(SemanticUNet(config), tensors, "golden"), load_file(
        folder / "sdm_tiny.vectors.safetensors"
    )


def test_the_original_output_is_reproduced(golden) -> None:
    model, vectors = golden
    with torch.no_grad():
        output = model(vectors["x"], vectors["t"], vectors["labels"])
        cached = model(vectors["x"], vectors["t"], model.modulate(vectors["labels"]))
    torch.testing.assert_close(output, vectors["output"], atol=1e-4, rtol=0)
    torch.testing.assert_close(cached, vectors["output"], atol=1e-4, rtol=0)


def test_the_original_checkpoint_loads_by_its_own_names(golden, tmp_path) -> None:
    model, vectors = golden
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "ema_0.9999.pt")
    again = load_checkpoint(tmp_path / "ema_0.9999.pt", model.config)
    with torch.no_grad():
        output = again(vectors["x"], vectors["t"], vectors["labels"])
    torch.testing.assert_close(output, vectors["output"], atol=1e-4, rtol=0)


def test_the_full_configuration_has_the_names_and_shapes_of_its_architecture() -> None:
    with torch.device("meta"):
        model = SemanticUNet(SemanticUNetConfig())
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    # one stem, two blocks a level, one downsampling between levels; the decoder has one block more a level
    assert len(model.input_blocks) == 1 + 6 * 2 + 5
    assert len(model.output_blocks) == 6 * 3
    assert shapes["input_blocks.0.0.weight"] == (256, 1, 3, 3)
    assert shapes["time_embed.0.weight"] == (1024, 256)
    assert shapes["out.2.weight"] == (2, 256, 3, 3)
    assert shapes["middle_block.0.in_norm.mlp_shared.0.weight"] == (128, 5, 3, 3)
    assert shapes["middle_block.1.qkv.weight"] == (3 * 1024, 1024, 1)
    # going down: 256 256 512 512 1024 1024 channels, each level's blocks and its downsampling leave a skip
    down = [256]
    for level, width in enumerate((256, 256, 512, 512, 1024, 1024)):
        down += [width] * (2 if level == 5 else 3)
    channels = 1024
    for number in range(18):
        width = (1024, 1024, 512, 512, 256, 256)[number // 3]
        entering = channels + down.pop()
        prefix = f"output_blocks.{number}.0"
        assert shapes[f"{prefix}.in_norm.mlp_gamma.weight"] == (entering, 128, 3, 3)
        assert shapes[f"{prefix}.in_layers.1.weight"] == (width, entering, 3, 3)
        assert shapes[f"{prefix}.skip_connection.weight"] == (width, entering, 1, 1)
        assert shapes[f"{prefix}.emb_layers.1.weight"] == (2 * width, 1024)
        attention = number // 3 < 3  # at 8, 16 and 32 pixels
        assert (f"output_blocks.{number}.1.qkv.weight" in shapes) == attention
        last = f"output_blocks.{number}.{2 if attention else 1}.in_norm.mlp_beta.weight"
        assert (last in shapes) == (number % 3 == 2 and number < 15)  # the block that upsamples
        channels = width
    assert not down


def test_the_label_map_steers_the_image_and_a_dropped_one_does_not() -> None:
    model = random_unet()
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([10, 900])
    maps = torch.randint(0, 5, (2, 16, 16))
    with torch.no_grad():
        one, other = model(x, t, maps), model(x, t, (maps + 1) % 5)
        dropped = model(x, t, torch.full_like(maps, DROPPED))
        shared = model(x, t, model.modulate(torch.full((1, 16, 16), DROPPED)))
    assert (one - other).abs().max() > 1e-3
    assert (one - dropped).abs().max() > 1e-3
    torch.testing.assert_close(shared, dropped)


def test_patches_see_the_whole_label_map() -> None:
    model = random_unet(SemanticUNetConfig(**{**vars(TINY), "patch_size": 2}))
    x, t = torch.randn(1, 1, 16, 16), torch.tensor([500])
    maps = torch.zeros(1, 16, 16, dtype=torch.long)
    moved = maps.clone()
    moved[0, 5, 5] = 1  # one pixel that nearest sampling of every second pixel would not see
    with torch.no_grad():
        before, after = model(x, t, maps), model(x, t, moved)
    assert before.shape == x.shape
    assert (before - after).abs().max() > 1e-4


@pytest.mark.parametrize("updown", [True, False])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_every_parameter_learns(updown: bool, scale_shift: bool) -> None:
    fields = {**vars(TINY), "resblock_updown": updown, "use_scale_shift_norm": scale_shift}
    model = random_unet(SemanticUNetConfig(**fields))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([10, 900])
    (model(x, t, torch.randint(0, 5, (2, 16, 16))) ** 2).sum().backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_a_wrong_label_map_is_refused_by_name() -> None:
    model = random_unet()
    x, t = torch.randn(1, 1, 16, 16), torch.tensor([10])
    with pytest.raises(ConditionError, match=r"class 5 found; the model knows 0 to 4"):
        model(x, t, torch.full((1, 16, 16), 5))
    with pytest.raises(ConditionError, match=r"class -2 found"):
        model(x, t, torch.full((1, 16, 16), -2))
    with pytest.raises(ConditionError, match=r"\(1, 8, 8\) does not belong to images of \(1, 16, 16\)"):
        model(x, t, torch.zeros(1, 8, 8, dtype=torch.long))
    with pytest.raises(ConditionError, match="integer classes"):
        model(x, t, torch.zeros(1, 16, 16))


def test_weights_come_back_and_broken_ones_are_named(tmp_path) -> None:
    model = random_unet()
    save_denoiser(model, "v_prediction", tmp_path / "w")
    again, schedule = load_denoiser(tmp_path / "w")
    assert schedule.config.prediction_type == "v_prediction"
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())

    config = json.loads((tmp_path / "w" / "config.json").read_text())
    (tmp_path / "w" / "config.json").write_text(json.dumps({**config, "channel_mult": [1, 3]}))
    with pytest.raises(WeightsError, match=r"model\.safetensors: .* of another shape"):
        load_denoiser(tmp_path / "w")
    (tmp_path / "w" / "config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(WeightsError, match=r"config\.json: unknown field 'colour'"):
        load_denoiser(tmp_path / "w")
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    (tmp_path / "w" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsError, match=r"model\.safetensors: cannot be read"):
        load_denoiser(tmp_path / "w")
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        load_denoiser(tmp_path / "nowhere")


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path) -> None:
    class Malicious:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"time_embed.0.weight": Malicious()}, tmp_path / "bad.pt")
    torch.save({"epoch": 3}, tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match=r"whole\.pt: holds more than a state dict"):
        load_checkpoint(tmp_path / "whole.pt", TINY)
    with pytest.raises(WeightsError, match=r"bad\.pt: is no plain state dict"):
        load_checkpoint(tmp_path / "bad.pt", TINY)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_step_asks_for_no_values(channels: int, prediction: str) -> None:
    """On PyTorch's meta device, where what stayed on the processor fails, and what a value decides."""
    config = SemanticUNetConfig(**{**vars(TINY), "out_channels": channels})
    model, schedule = SemanticUNet(config).to("meta"), noise_schedule(prediction, config.learned_variance)
    clean, noise = (torch.empty(2, 1, 16, 16, device="meta") for _ in range(2))
    maps = torch.zeros(2, 16, 16, dtype=torch.long, device="meta")
    t = torch.zeros(2, dtype=torch.long, device="meta")
    for _ in range(2):  # the schedule goes along in the first step
        losses = diffusion_loss(model, schedule, clean, maps, t, noise)
        losses.mean().backward()
    assert (losses.device.type, losses.shape) == ("meta", (2,))
    assert all(value.grad is not None for value in model.parameters())
    with torch.no_grad():
        assert model(clean, t, model.modulate(maps)).shape == (2, channels, 16, 16)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_loss_in_bfloat16_is_near_that_in_float32(channels: int) -> None:
    model = random_unet(SemanticUNetConfig(**{**vars(TINY), "out_channels": channels}))
    schedule = noise_schedule("epsilon", channels == 2)
    clean, noise = (torch.rand(4, 1, 16, 16) * 2 - 1 for _ in range(2))
    maps, t = torch.randint(0, 5, (4, 16, 16)), torch.tensor([0, 10, 500, 999])
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(diffusion_loss(model, schedule, clean, maps, t, noise))
    assert losses[1].dtype == torch.float32
    assert not torch.equal(*losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.02)
