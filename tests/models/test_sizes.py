"""Another input size: the same outputs, positions that learn, and a folder that comes back at that size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from echovlsm import models
from echovlsm.models.common import ENCODERS, ModelError
from tests.conftest import ROOT, WEIGHTS

PLACES = {"clipseg": WEIGHTS, "cris": ROOT / "data" / "weights" / "cris-tiny"}
PROMPTS = ["Left ventricular cavity of the heart.", "Myocardium of the heart."]
POSITIONS = {
    "clipseg": "segmenter.clip.vision_model.embeddings.position_embedding.weight",
    "cris": "backbone.visual.attnpool.positional_embedding",
}
ROWS = {"clipseg": 1 + 16 * 16, "cris": 1 + 4 * 4}


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", models.MODELS)
def test_outputs_at_the_new_size_are_those_of_interpolation_in_the_forward_pass(name: str) -> None:
    own, other = (
        models.load(name, PLACES[name]).eval(),
        models.load(name, PLACES[name], image_size=128).eval(),
    )
    assert (own.image_size, other.image_size) == (96, 128)
    assert len(other.state_dict()[POSITIONS[name]]) == ROWS[name]
    tokens, mask = own.tokenize(PROMPTS)
    with torch.no_grad():
        expected, found = (model(images(128), tokens, mask) for model in (own, other))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_saved_folder_comes_back_at_that_size(name: str, tmp_path: Path) -> None:
    model = models.load(name, PLACES[name], image_size=128).eval()
    with torch.no_grad():
        model.get_parameter(POSITIONS[name]).add_(0.1)
    model.save_pretrained(tmp_path)
    again = models.load(name, tmp_path).eval()
    assert again.image_size == 128
    tokens, mask = model.tokenize(PROMPTS)
    with torch.no_grad():
        assert torch.equal(again(images(128), tokens, mask), model(images(128), tokens, mask))


@pytest.mark.parametrize("encoders", ENCODERS)
@pytest.mark.parametrize("name", models.MODELS)
def test_new_positions_learn_if_the_encoders_do(name: str, encoders: str) -> None:
    model = models.load(name, PLACES[name], encoders, image_size=64).train()
    tokens, mask = model.tokenize(PROMPTS)
    model(images(64), tokens, mask).square().mean().backward()
    gradient = model.get_parameter(POSITIONS[name]).grad
    assert (gradient is not None and bool(gradient.any())) == (encoders == "unfrozen")


@pytest.mark.parametrize("name", models.MODELS)
def test_its_own_size_changes_nothing(name: str) -> None:
    model = models.load(name, PLACES[name])
    before = model.get_parameter(POSITIONS[name])
    assert model.resize(model.image_size).get_parameter(POSITIONS[name]) is before


@pytest.mark.parametrize(
    ("name", "side", "why"), [("clipseg", 100, "8"), ("cris", 112, "32"), ("cris", -32, "32")]
)
def test_a_side_that_does_not_fit_is_refused(name: str, side: int, why: str) -> None:
    with pytest.raises(ModelError, match=f"image_size: {side}.*multiples of {why}"):
        models.load(name, PLACES[name], image_size=side)
