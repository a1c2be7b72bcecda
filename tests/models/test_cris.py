"""CRIS: equal to the original stage by stage, strict about weights, honest about padding and what learns."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from echovlsm import models
from echovlsm.models.common import ModelError
from echovlsm.models.cris import CRIS
from echovlsm.models.cris_config import CRISConfig
from echovlsm.prompts.templates import make_prompt
from tests.conftest import WEIGHTS

SMALL = CRISConfig(
    image_resolution=64,
    vision_layers=(1, 1, 1, 1),
    vision_width=4,
    embed_dim=24,
    context_length=77,
    word_len=70,
    vocab_size=4610,
    text_width=16,
    text_heads=2,
    text_layers=2,
    fpn_in=(32, 64, 24),
    fpn_out=(8, 16, 24),
    vis_dim=16,
    decoder_layers=2,
    decoder_heads=2,
    decoder_ffn=24,
    dropout=0.0,
    image_size=64,
)
PROMPTS = ["Left ventricular cavity of the heart.", "Myocardium of the heart.", "A red circle on the left."]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make(tokenizer: CLIPTokenizer | None = None, encoders: str = "unfrozen", **changes) -> CRIS:
    """A small random CRIS in which every path carries a signal."""
    torch.manual_seed(0)
    model = CRIS(replace(SMALL, **changes), tokenizer, encoders)
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(parameter)  # zero at CLIP's random start, which closes the residual branch
        if "token_embedding" in name:
            torch.nn.init.normal_(parameter)
    return model


# -- parity with the original ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[dict, dict, dict]:
    stem = shared / "golden" / "cris_tiny"
    fields = json.loads(stem.with_suffix(".config.json").read_text())
    return fields, *(load_file(stem.with_suffix(f".{part}.safetensors")) for part in ("weights", "vectors"))


@pytest.fixture(scope="module")
def stages(golden) -> dict[str, torch.Tensor]:
    """Our outputs of every stage for the golden input, each stage fed by ours before it."""
    fields, weights, vectors = golden
    model = CRIS(CRISConfig(**fields)).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        maps = model.encode_image(vectors["image"])
        prompt = model.text_features(vectors["input_ids"], (vectors["input_ids"] != 0).long())
        neck = model.neck(maps, prompt.state)
        decoder = model.decoder(neck, prompt.words, prompt.padding)
        logits = model.proj(decoder.view_as(neck), prompt.state)
    names = ("vis3", "vis4", "vis5", "word", "state", "neck", "decoder", "logits")
    return dict(zip(names, (*maps, prompt.words, prompt.state, neck, decoder, logits), strict=True))


@pytest.mark.parametrize("stage", ["vis3", "vis4", "vis5", "word", "state", "neck", "decoder", "logits"])
def test_every_stage_is_the_originals(golden, stages, stage: str) -> None:
    expected = golden[2][stage]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(stages[stage], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("way", ["attention mask", "end of text", "authors"])
def test_the_whole_model_is_the_originals(golden, prefix: str, way: str) -> None:
    fields, weights, vectors = golden
    model = CRIS(CRISConfig(**fields, padding="authors" if way == "authors" else "attention")).eval()
    report = model.load_state_dict({prefix + name: value for name, value in weights.items()}, strict=True)
    assert not report.missing_keys
    assert not report.unexpected_keys
    mask = (vectors["input_ids"] != 0).long() if way == "attention mask" else None
    with torch.no_grad():
        quarter = model.quarter_logits(vectors["image"], vectors["input_ids"], mask)
        whole = model(vectors["image"], vectors["input_ids"], mask)
    torch.testing.assert_close(quarter, vectors["logits"][:, 0], atol=1e-4, rtol=0)
    enlarged = torch.nn.functional.interpolate(vectors["logits"], size=(64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(whole, enlarged, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_the_authors_enlarge_with_a_cubic_and_aligned_corners(golden, size: tuple[int, int]) -> None:
    """Their checkpoints need it: from the same quarter map come other logits, and other masks."""
    fields, weights, vectors = golden
    images = torch.nn.functional.interpolate(vectors["image"], size=size)
    made = {}
    for way in ("bilinear", "authors"):
        model = CRIS(CRISConfig(**fields, enlarging=way)).eval()
        model.load_state_dict(weights)
        with torch.no_grad():
            made[way] = model(images, vectors["input_ids"])
            quarter = model.quarter_logits(images, vectors["input_ids"])[:, None]
    expected = torch.nn.functional.interpolate(quarter, size, mode="bicubic", align_corners=True)[:, 0]
    torch.testing.assert_close(made["authors"], expected)
    # with aligned corners the corners are the quarter map's own
    torch.testing.assert_close(made["authors"][:, 0, -1], quarter[:, 0, 0, -1])
    cut = quarter.median()
    assert ((made["authors"] > cut) != (made["bilinear"] > cut)).any()


def test_the_way_of_enlarging_is_kept_with_the_weights(tokenizer, tmp_path: Path) -> None:
    make(tokenizer, enlarging="authors", padding="authors").save_pretrained(tmp_path / "saved")
    config = CRIS.from_pretrained(tmp_path / "saved").config
    assert (config.enlarging, config.padding) == ("authors", "authors")
    with pytest.raises(ModelError, match="enlarging: 'nearest' is not one of bilinear, authors"):
        make(tokenizer, enlarging="nearest")


def test_the_full_configuration_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = CRIS(CRISConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(146.8, abs=0.05)
    assert (model.image_size, model.config.word_len) == (416, 77)


# -- padding --------------------------------------------------------------------------------------------


def test_the_two_paddings_differ_exactly_where_there_is_padding(tokenizer, images) -> None:
    ours = make(tokenizer).eval()
    theirs = make(tokenizer, padding="authors").eval()
    theirs.load_state_dict(ours.state_dict())
    ids, mask = ours.tokenize(PROMPTS[:1])
    padded = torch.nn.functional.pad(ids, (0, 20), value=tokenizer.pad_token_id)
    attention = torch.nn.functional.pad(mask, (0, 20))
    with torch.no_grad():
        bare = ours(images[:1], ids, mask)
        torch.testing.assert_close(theirs(images[:1], ids, mask), bare)
        torch.testing.assert_close(ours(images[:1], padded, attention), bare, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours(images[:1], padded), bare, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(theirs(images[:1], padded, attention), bare, atol=1e-3)


def test_the_authors_padding_masks_nothing_of_a_clip_prompt(tokenizer) -> None:
    theirs = make(tokenizer, padding="authors")
    ids, mask = theirs.tokenize(PROMPTS)
    assert ids.shape == (3, 70)
    assert (mask == 0).any()
    assert not theirs.padding_of(ids, mask).any()
    # The original's own tokenizer pads with 0, and there both agree.
    zeros = ids * mask
    assert torch.equal(theirs.padding_of(zeros), mask == 0)
    assert torch.equal(make(tokenizer).padding_of(ids, mask), mask == 0)
    assert torch.equal(make(tokenizer).padding_of(ids), mask == 0)


# -- one image, several prompts -----------------------------------------------------------------------


def test_grouped_prompts_equal_single_calls_and_are_encoded_once(tokenizer, images, monkeypatch) -> None:
    model = make(tokenizer).eval()
    ids, mask = model.tokenize(PROMPTS)
    order = torch.tensor([[0, 1, 2], [2, 0, 0], [1, 1, 2]])
    with torch.no_grad():
        single = [model(images, ids[order[:, s]], mask[order[:, s]]) for s in range(3)]
        seen: dict[str, int] = {}
        for name in ("encode_image", "encode_text"):
            method = getattr(model.backbone, name)
            monkeypatch.setattr(
                model.backbone, name, lambda x, m=method, n=name: seen.update({n: len(x)}) or m(x)
            )
        grouped = model(images, ids[order], mask[order])
    assert seen == {"encode_image": 3, "encode_text": 3}
    assert grouped.shape == (3, 3, 64, 64)
    torch.testing.assert_close(grouped, torch.stack(single, dim=1), atol=1e-5, rtol=1e-4)
    assert grouped[0].std(dim=0).max() > 1e-3  # the prompt matters


def test_a_wider_image_than_clips_is_fine(tokenizer) -> None:
    model = make(tokenizer).eval()
    ids, mask = model.tokenize(PROMPTS[:1])
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 96, 160), ids, mask).shape == (1, 96, 160)
        assert model.quarter_logits(torch.zeros(1, 3, 96, 160), ids, mask).shape == (1, 24, 40)


# -- what learns ----------------------------------------------------------------------------------------


def _step(model: CRIS, images: torch.Tensor) -> set[str]:
    """Names of the parameters that the loss reaches, after one step in training mode."""
    ids, mask = model.tokenize(PROMPTS)
    model.train()
    model(images, ids, mask).square().mean().backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_unfrozen_the_loss_reaches_exactly_what_is_declared(tokenizer, images) -> None:
    model = make(tokenizer)
    declared = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    reached = _step(model, images)
    # A key bias shifts all scores of a query alike, which softmax ignores: its gradient is rounding.
    key_bias = {"backbone.visual.attnpool.k_proj.bias"}
    assert declared - key_bias == reached - key_bias
    assert {name for name, _ in model.named_parameters()} - declared == {"backbone.logit_scale"}


def test_frozen_encoders_get_no_gradient_and_keep_their_statistics(tokenizer, images) -> None:
    model = make(tokenizer, "frozen")
    before = copy.deepcopy(model.state_dict())
    reached = _step(model, images)
    declared = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert declared == reached
    assert {name.split(".")[0] for name in declared} == {"neck", "decoder", "proj"}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "neck.aggr.1.running_mean" in changed
    assert not any(name.startswith("backbone.") for name in changed)


def test_unfrozen_encoders_follow_the_batch(tokenizer, images) -> None:
    model = make(tokenizer)
    before = model.backbone.visual.bn1.running_mean.clone()
    _step(model, images)
    assert not torch.equal(model.backbone.visual.bn1.running_mean, before)


def test_one_sentence_in_a_batch_is_not_hidden_from_the_neck(tokenizer, images) -> None:
    """Level P0: batch statistics of one sentence would turn any sentence into the same constant."""
    model = make(tokenizer).train()
    norm = model.neck.txt_proj[1]
    norm.running_var.fill_(4.0)
    state = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    gates = [model.neck._project(state[row].expand(6, -1)) for row in (0, 1)]
    assert not torch.allclose(*gates, atol=1e-2)
    torch.testing.assert_close(gates[0], model.neck.eval()._project(state[:1]).expand(6, -1))
    assert norm.num_batches_tracked == 0
    model.train()
    model.neck._project(state)
    assert norm.num_batches_tracked == 1


def test_one_image_with_one_prompt_is_a_training_step(tokenizer, images) -> None:
    model = make(tokenizer).train()
    ids, mask = model.tokenize(PROMPTS[:1])
    model(images[:1], ids, mask).mean().backward()
    assert model.proj.txt.weight.grad.isfinite().all()


def test_the_parts_hold_every_parameter_once(tokenizer) -> None:
    parts = make(tokenizer).parts()
    pieces = [id(p) for name, part in parts.items() if name != "all" for p in part.parameters()]
    assert len(pieces) == len(set(pieces))
    assert set(pieces) == {id(p) for p in parts["all"].parameters()}


def test_it_trains_like_any_model_of_the_study(tokenizer, phantom_frames, tmp_path: Path) -> None:
    from echovlsm.training.loop import fit
    from echovlsm.training.triplets import make_triplets

    model = make(tokenizer)
    train, val = (
        make_triplets(phantom_frames[phantom_frames["split"] == split], "P1", model, seed=1)
        for split in ("train", "val")
    )
    options = {"epochs": 4, "batch_size": 4, "learning_rate": 3e-3, "seed": 1, "progress": False}
    history = fit(model, train, val, tmp_path, **options)
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0] - 0.02


# -- loading and saving ---------------------------------------------------------------------------------


def test_a_saved_folder_is_bit_equal_and_has_the_originals_names(tokenizer, images, tmp_path) -> None:
    model = make(tokenizer).eval()
    model.neck.aggr[1].running_mean.fill_(0.5)
    model.save_pretrained(tmp_path / "saved")
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} <= {".json", ".safetensors"}
    names = set(load_file(tmp_path / "saved" / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"backbone", "neck", "decoder", "proj"}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "cris"
    again = models.load("cris", tmp_path / "saved", "frozen").eval()
    assert (again.config, again.image_size, again.encoders) == (model.config, 64, "frozen")
    ids, mask = again.tokenize(PROMPTS)
    with torch.no_grad():
        assert torch.equal(model(images, ids, mask), again(images, ids, mask))


def test_a_folders_preprocessor_is_obeyed(tokenizer, tmp_path: Path) -> None:
    make(tokenizer).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    saved = json.loads(file.read_text())
    assert saved["image_mean"] == pytest.approx([0.481455, 0.457828, 0.408211])
    assert saved["image_std"] == pytest.approx([0.268630, 0.261303, 0.275777])
    file.write_text(json.dumps(saved | {"size": {"height": 96, "width": 96}, "image_mean": [0.5, 0.5, 0.5]}))
    model = models.load("cris", tmp_path)
    assert model.image_size == 96
    values = model.normalise(torch.full((1, 2, 2), 255, dtype=torch.uint8))
    assert values.shape == (1, 3, 2, 2)
    assert values[0, 0, 0, 0].item() == pytest.approx((1 - 0.5) / 0.268630, rel=1e-4)


def test_an_original_checkpoint_loads_under_state_dict_and_module(tmp_path: Path) -> None:
    source = make().state_dict()
    wrapped = {f"module.{name}": value for name, value in source.items()}
    torch.save({"epoch": 50, "best_iou": 0.7, "state_dict": wrapped}, tmp_path / "cris_best.pth")
    torch.save(source, tmp_path / "bare.pth")
    save_file(source, tmp_path / "cris.safetensors")
    torch.manual_seed(9)
    for file in ("cris_best.pth", "bare.pth", "cris.safetensors"):
        loaded = CRIS.from_checkpoint(tmp_path / file, SMALL).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in source.items()), file


def clip_tensors(grid: int) -> dict[str, torch.Tensor]:
    """A made-up CLIP ResNet of `SMALL`'s widths under the names of OpenAI's release."""
    generator = torch.Generator().manual_seed(4)
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, 16),
        "text_projection": (16, 24),
        "logit_scale": (),
        "token_embedding.weight": (4610, 16),
        "ln_final.weight": (16,),
        "ln_final.bias": (16,),
        "visual.attnpool.positional_embedding": (grid**2 + 1, 128),
        "visual.attnpool.c_proj.weight": (24, 128),
        "visual.attnpool.c_proj.bias": (24,),
    }
    for name in "qkv":
        shapes[f"visual.attnpool.{name}_proj.weight"] = (128, 128)
        shapes[f"visual.attnpool.{name}_proj.bias"] = (128,)

    def convolution(conv: str, norm: str, out: int, inner: int, kernel: int) -> None:
        shapes[f"visual.{conv}.weight"] = (out, inner, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"visual.{norm}.{name}"] = (out,)

    for index, (out, inner) in enumerate(((2, 3), (2, 2), (4, 2)), start=1):
        convolution(f"conv{index}", f"bn{index}", out, inner, 3)
    inner = 4
    for stage in (1, 2, 3, 4):
        width, block = 4 * 2 ** (stage - 1), f"layer{stage}.0"
        for index, (out, kernel) in enumerate(((width, 1), (width, 3), (4 * width, 1)), start=1):
            before = inner if index == 1 else width
            convolution(f"{block}.conv{index}", f"{block}.bn{index}", out, before, kernel)
        convolution(f"{block}.downsample.0", f"{block}.downsample.1", 4 * width, inner, 1)
        inner = 4 * width
    for layer in (0, 1):
        block = f"transformer.resblocks.{layer}"
        for name, shape in (
            ("attn.in_proj_weight", (48, 16)),
            ("attn.in_proj_bias", (48,)),
            ("attn.out_proj.weight", (16, 16)),
            ("attn.out_proj.bias", (16,)),
            ("ln_1.weight", (16,)),
            ("ln_1.bias", (16,)),
            ("mlp.c_fc.weight", (64, 16)),
            ("mlp.c_fc.bias", (64,)),
            ("mlp.c_proj.weight", (16, 64)),
            ("mlp.c_proj.bias", (16,)),
            ("ln_2.weight", (16,)),
            ("ln_2.bias", (16,)),
        ):
            shapes[f"{block}.{name}"] = shape
    tensors = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    norms = [name for name in shapes if name.endswith("running_mean")]
    tensors |= {name.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for name in norms}
    settings = {"input_resolution": grid * 32, "context_length": 77, "vocab_size": 4610}
    return tensors | {name: torch.tensor(value) for name, value in settings.items()}


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_a_fresh_start_takes_clips_weights(ending: str, tmp_path: Path) -> None:
    tensors, file = clip_tensors(grid=7), tmp_path / f"RN50{ending}"
    ramp = torch.linspace(-1, 1, 7)[:, None, None].expand(7, 7, 128)  # grows downwards
    tensors["visual.attnpool.positional_embedding"][1:] = ramp.flatten(0, 1)
    if ending == ".pt":
        torch.save({n: v.half() if v.is_floating_point() else v for n, v in tensors.items()}, file)
    else:
        save_file(tensors, file)
    model = CRIS.from_clip(file, SMALL)
    state = model.state_dict()
    for name in ("token_embedding.weight", "visual.layer3.0.bn2.running_var", "text_projection"):
        torch.testing.assert_close(state[f"backbone.{name}"], tensors[name], atol=1e-3, rtol=0)
    assert state["backbone.visual.bn1.num_batches_tracked"] == 7
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    places = state["backbone.visual.attnpool.positional_embedding"]
    assert places.shape == (5, 128)
    first = tensors["visual.attnpool.positional_embedding"][0]
    torch.testing.assert_close(places[0], first, atol=1e-3, rtol=0)
    assert (places[1:3] < -0.3).all()
    assert (places[3:5] > 0.3).all()


def test_positions_are_resized_to_the_image_as_it_comes(tmp_path: Path) -> None:
    """At the resolution of CLIP the embedding is kept whole and resized in the forward pass."""
    file = tmp_path / "RN50.safetensors"
    save_file(clip_tensors(grid=7), file)
    config = replace(SMALL, image_resolution=224, image_size=96)
    pool = CRIS.from_clip(file, config).eval().backbone.visual.attnpool
    assert pool.positional_embedding.shape == (50, 128)
    with torch.no_grad():
        pool.positional_embedding[1:] = torch.linspace(-1, 1, 7).expand(7, 7)[..., None].flatten(0, 1)
        pool.positional_embedding[0] = 1e6  # CLIP's mean token has no part in it
        assert pool(torch.zeros(1, 128, 3, 3)).shape == (1, 24, 3, 3)
        assert pool(torch.zeros(1, 128, 3, 3)).isfinite().all()
        assert pool(torch.zeros(1, 128, 3, 3)).abs().max() < 1e4


# -- errors ---------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_a_checkpoint_is_in_one_error(tmp_path: Path) -> None:
    tensors = make().state_dict()
    tensors["neck.extra.weight"] = tensors.pop("neck.aggr.0.weight")
    tensors["proj.txt.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match=r"odd.*neck\.aggr\.0\.weight.*neck\.extra.*proj\.txt\.bias \(3,\)"):
        CRIS.from_checkpoint(tmp_path / "odd.safetensors", SMALL)
    clip = clip_tensors(grid=2)
    clip.pop("ln_final.bias")
    save_file(clip, tmp_path / "clip.safetensors")
    with pytest.raises(ModelError, match=r"1 missing: ln_final\.bias\. Give"):
        CRIS.from_clip(tmp_path / "clip.safetensors", SMALL)


def test_files_that_hold_code_are_not_opened(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with pytest.raises(ModelError, match=r"bomb\.pth cannot be read with weights_only"):
        CRIS.from_checkpoint(tmp_path / "bomb.pth", SMALL)
    assert not (tmp_path / "exploded").exists()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "RN50.pt"))
    with pytest.raises(ModelError, match=r"TorchScript archive.*torch\.jit\.load"):
        CRIS.from_clip(tmp_path / "RN50.pt", SMALL)


def test_bad_inputs_name_the_remedy(tokenizer, images) -> None:
    model = make(tokenizer)
    ids, mask = model.tokenize(PROMPTS)
    with pytest.raises(ModelError, match="multiples of 32"):
        model(images[:, :, :40], ids, mask)
    with pytest.raises(ModelError, match="3 rows for 2 images"):
        model(images[:2], ids, mask)
    with pytest.raises(ModelError, match="longer than 70 tokens"):
        model.tokenize(["heart " * 90])
    with pytest.raises(ModelError, match="longer than 70 tokens"):
        make(tokenizer, padding="authors").tokenize(["short", "heart " * 90])
    with pytest.raises(ModelError, match="word_len is 70"):
        model(images, ids[:, :1].expand(-1, 71))
    with pytest.raises(ModelError, match="pass tokenizer="):
        make().tokenize(PROMPTS)


def test_the_longest_prompt_of_the_study_fits(tokenizer) -> None:
    from data.weights.make.models import TINY_CRIS

    details = {"view": "4CH", "phase": "ED", "sex": "F", "age": 77, "quality": "medium"}
    text = make_prompt("left ventricular cavity", "P7", 1, shape="rectangle", **details)
    assert len(tokenizer(text)["input_ids"]) <= TINY_CRIS["word_len"]


def test_fields_that_do_not_fit_are_named_together() -> None:
    with pytest.raises(ModelError, match=r"'CLIPSeg' is not CRIS.*fpn_in.*\(32, 64, 24\).*image_size: 100"):
        replace(SMALL, model="CLIPSeg", fpn_in=(1, 2, 3), image_size=100)
    with pytest.raises(ModelError, match="padding: 'zero'"):
        replace(SMALL, padding="zero")
    with pytest.raises(ModelError, match="word_len: 90"):
        replace(SMALL, word_len=90)


def test_folders_that_are_not_cris(tokenizer, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ModelError, match="holds a 'clipseg' model, not CRIS"):
        models.load("cris", WEIGHTS)
    with pytest.raises(ModelError, match="does not exist"):
        models.load("cris", "data/weights/none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot load 'nobody/cris-none'"):
        models.load("cris", "nobody/cris-none")
    with pytest.raises(ModelError, match="echovlsm weights convert"):
        models.load("cris", tmp_path)
    make(tokenizer).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    with pytest.raises(ModelError, match="unknown fields colour"):
        models.load("cris", tmp_path)


# -- tiny weights ---------------------------------------------------------------------------------------


def test_pretraining_writes_a_folder_in_16_bits_that_loads(tokenizer, tmp_path: Path) -> None:
    from data.weights.make.models import build_tiny_cris, pretrain

    model = build_tiny_cris(tokenizer)
    start = copy.deepcopy(model.state_dict())
    pretrain(model, tmp_path, steps=2, batch=2, rate=1e-3, seed=0, every=1, save_every=2)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["neck.aggr.0.weight"].dtype == torch.float16
    assert tensors["neck.aggr.1.running_var"].dtype == torch.float32
    loaded = models.load("cris", tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    learnt = loaded.state_dict()["backbone.visual.layer1.0.conv1.weight"]
    assert not torch.allclose(learnt, start["backbone.visual.layer1.0.conv1.weight"], atol=1e-4)
