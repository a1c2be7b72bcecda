"""CLIPSeg: equal to Transformers' forward, and, unlike it, able to train its encoders."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPSegForImageSegmentation

from echovlsm import STRUCTURES, models
from echovlsm.models import clipseg
from echovlsm.models.common import ModelError
from echovlsm.prompts.templates import make_prompt
from tests.conftest import ROOT, WEIGHTS

PROMPTS = ["Left ventricular cavity of the heart.", "Myocardium of the heart.", "A red circle on the left."]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_logits_are_bit_equal_to_transformers_in_eval_mode(images: torch.Tensor) -> None:
    ours = models.load("clipseg", WEIGHTS).eval()
    theirs = CLIPSegForImageSegmentation.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    tokens, mask = ours.tokenize(PROMPTS)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, pixel_values=images, attention_mask=mask).logits
        assert torch.equal(ours(images, tokens, mask), expected)


def test_one_encoding_serves_three_prompts(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load("clipseg", WEIGHTS).eval()
    tokens, mask = model.tokenize(PROMPTS)
    encoded = []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    with torch.no_grad():
        grouped = model(images[:2], tokens.expand(2, 3, -1), mask.expand(2, 3, -1))
        assert encoded == [2]
        single = model(images[:1].expand(3, -1, -1, -1), tokens, mask)
    assert grouped.shape == (2, 3, 96, 96)
    torch.testing.assert_close(grouped[0], single, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("channels", "side"), [((64, 1), 8), ((64, 32), 4)])
def test_patches_side_by_side_are_a_transposed_convolution(channels: tuple[int, int], side: int) -> None:
    """With one enlarging step, as the small models have, and with several channels, as the large ones."""
    torch.manual_seed(0)
    step = torch.nn.ConvTranspose2d(*channels, side, stride=side)
    ours, theirs = (torch.randn(3, channels[0], 5, 7).requires_grad_() for _ in range(2))
    theirs.data = ours.data.clone()
    found, wanted = clipseg._paste(step, ours), step(theirs)
    torch.testing.assert_close(found, wanted)
    for values in (found, wanted):
        values.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_layers_behind_the_last_that_counts_are_not_run() -> None:
    ours = models.load("clipseg", WEIGHTS).eval()
    segmenter = ours.segmenter
    layers = segmenter.clip.vision_model.encoder.layers
    segmenter.config.extract_layers = segmenter.extract_layers = [0, 1, 2]
    ran = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens, mask = ours.tokenize(PROMPTS[:1])
    with torch.no_grad():
        logits = ours(image, tokens, mask)
        assert ran == [0, 1, 2]
        assert torch.equal(logits, segmenter(tokens, image, attention_mask=mask).logits)
    assert len(ran) == 3 + len(layers)


@pytest.mark.parametrize("conditional", [0, 1, 2])
def test_images_share_the_decoder_until_the_words_enter(conditional: int, images: torch.Tensor) -> None:
    model = models.load("clipseg", WEIGHTS).eval()
    model.segmenter.decoder.conditional_layer = conditional
    sizes = []
    for layer in model.segmenter.decoder.layers:
        layer.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    tokens, mask = model.tokenize(PROMPTS)
    with torch.no_grad():
        grouped = model(images[:2], tokens.expand(2, 3, -1), mask.expand(2, 3, -1))
        assert sizes == [2 if number < conditional else 6 for number in range(3)]
        rows = images[:2].repeat_interleave(3, dim=0), tokens.repeat(2, 1), mask.repeat(2, 1)
        alone = model.segmenter(pixel_values=rows[0], input_ids=rows[1], attention_mask=rows[2]).logits
    torch.testing.assert_close(grouped.flatten(0, 1), alone, atol=1e-4, rtol=1e-4)


def _moved(model: models.clipseg.CLIPSeg, images: torch.Tensor) -> set[str]:
    """Names of parameters that one optimiser step changes."""
    before = copy.deepcopy(model.state_dict())
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0)
    tokens, mask = model.tokenize(PROMPTS)
    model.train()
    model(images, tokens, mask).square().mean().backward()
    optimiser.step()
    after = model.state_dict()
    return {name for name, _ in model.named_parameters() if not torch.equal(before[name], after[name])}


def test_unfrozen_encoders_learn(images: torch.Tensor) -> None:
    moved = _moved(models.load("clipseg", WEIGHTS, "unfrozen"), images)
    model = models.load("clipseg", WEIGHTS, "unfrozen")
    declared = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"segmenter.clip.vision_model.embeddings.patch_embedding.weight"} <= moved
    assert {"segmenter.clip.text_model.embeddings.token_embedding.weight"} <= moved
    # A key bias shifts all attention scores of a query alike, which softmax ignores: no gradient.
    stuck = {name for name in declared - moved if not name.endswith("k_proj.bias")}
    assert not stuck
    assert moved <= declared


def test_frozen_encoders_stay(images: torch.Tensor) -> None:
    moved = _moved(models.load("clipseg", WEIGHTS, "frozen"), images)
    assert moved
    assert all(name.startswith("segmenter.decoder.") for name in moved)


def test_transformers_own_forward_never_trains_the_encoders(images: torch.Tensor) -> None:
    """The fact that makes `encoders="unfrozen"` of the paper's code the same as frozen."""
    model = models.load("clipseg", WEIGHTS, "unfrozen")
    tokens, mask = model.tokenize(PROMPTS)
    theirs = model.segmenter.train()
    theirs(input_ids=tokens, pixel_values=images, attention_mask=mask).logits.mean().backward()
    assert all(parameter.grad is None for parameter in theirs.clip.parameters())
    assert any(parameter.grad is not None for parameter in theirs.decoder.parameters())


def test_tiny_text_encoder_separates_structures_and_joins_paraphrases() -> None:
    model = models.load("clipseg", WEIGHTS).eval()
    names = list(STRUCTURES.values())
    texts = [make_prompt(name, "P1", variant) for variant in (0, 1) for name in names]
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.encode_text(*model.tokenize(texts)), dim=-1)
    cosine = features @ features.T
    across = torch.stack([cosine[i, j] for i in range(3) for j in range(3) if i != j])
    paraphrase = torch.stack([cosine[i, i + 3] for i in range(3)])
    assert across.max() < 0.95
    assert across.mean() < 0.7
    assert paraphrase.min() > across.max()


def test_saved_folder_loads_again_with_equal_logits(images: torch.Tensor, tmp_path: Path) -> None:
    model = models.load("clipseg", WEIGHTS).eval()
    model.save_pretrained(tmp_path / "saved")
    again = models.load("clipseg", tmp_path / "saved").eval()
    tokens, mask = again.tokenize(PROMPTS)
    with torch.no_grad():
        assert torch.equal(model(images, tokens, mask), again(images, tokens, mask))
    assert again.image_size == 96
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} <= {".json", ".safetensors"}


def test_another_input_size_gives_logits_of_that_size() -> None:
    model = models.load("clipseg", WEIGHTS).eval()
    tokens, mask = model.tokenize(PROMPTS[:1])
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 128, 128), tokens, mask).shape == (1, 128, 128)
        assert model(torch.zeros(1, 3, 100, 100), tokens, mask).shape == (1, 100, 100)


def test_grey_images_are_normalised_as_the_weights_want() -> None:
    model = models.load("clipseg", WEIGHTS)
    values = model.normalise(torch.full((2, 4, 4), 255, dtype=torch.uint8))
    assert values.shape == (2, 3, 4, 4)
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    torch.testing.assert_close(values[0, :, 0, 0], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("clipsegg", WEIGHTS), "model: 'clipsegg'"),
        (("clipseg", WEIGHTS, "thawed"), "encoders: 'thawed'"),
        (("clipseg", "data/weights/none"), "does not exist"),
        (("clipseg", Path(__file__).parent), "config.json"),
    ],
)
def test_bad_requests_name_the_parameter(arguments: tuple, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.load(*arguments)


def test_weights_with_missing_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = models.load("clipseg", WEIGHTS)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("decoder.film_mul.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="film_mul"):
        models.load("clipseg", tmp_path)


def test_weights_with_foreign_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(WEIGHTS, tmp_path / "w")
    tensors = load_file(WEIGHTS / "model.safetensors") | {"decoder.nonsense": torch.zeros(3)}
    save_file(tensors, tmp_path / "w" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors that .* no place for, the first is decoder\.nonsense"):
        models.load("clipseg", tmp_path / "w")


def test_too_long_a_prompt_and_a_rectangle_are_errors() -> None:
    model = models.load("clipseg", WEIGHTS)
    with pytest.raises(ModelError, match="longer than 77 tokens"):
        model.tokenize(["heart " * 100])
    tokens, mask = model.tokenize(PROMPTS[:1])
    with pytest.raises(ModelError, match="square"):
        model(torch.zeros(1, 3, 96, 64), tokens, mask)


def test_relative_weights_count_from_the_project_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JupyterLab starts a notebook in its own folder."""
    monkeypatch.chdir(ROOT / "notebooks")
    assert models.load("clipseg", "data/weights/clipseg-tiny").image_size == 96


def test_images_are_sized_as_the_preprocessor_says(tmp_path: Path) -> None:
    """rd64-refined has position embeddings for 224 and a preprocessor for 352."""
    import json

    model = models.load("clipseg", WEIGHTS).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    config["size"] = {"height": 128, "width": 128}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    larger = models.load("clipseg", tmp_path).eval()
    assert larger.image_size == 128
    larger.save_pretrained(tmp_path / "again")
    assert models.load("clipseg", tmp_path / "again").image_size == 128
